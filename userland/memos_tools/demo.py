"""The demonstration: `python -m memos_tools.demo [--fast]`, a private kernel and a story of eight months.

It starts a real kernel in a temporary directory, remembers a conversation, asks, edits, looks back, forks, fuses, lets a
model continue from what it remembers, erases, kills the kernel with signal 9, and checks the log offline. Every sentence
it prints is followed by what the kernel answered, and every claim is checked: a claim that does not hold ends the
demonstration with exit status 1. So it is a test as well. `--fast` leaves out the pauses for reading and what trains,
`--keep DIR` works in DIR and leaves it there.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import itertools
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rich.console import Console, Group
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from memos_client import Kernel
from memos_client.ingest import ingest
from memos_syscalls import messages as m
from memos_syscalls.errors import MemConflict, MemError, MemShredded, MemUnreachable

from .demo_lessons import learn
from .demo_model import think

CONVERSATION: Final = Path(__file__).parent / "data" / "conversation.json"
SECRET: Final = "4471-KITE"
START_SECONDS_MAX: Final = 30.0
INDEX_SECONDS_MAX: Final = 90.0
BURST_WRITES: Final = 150
WRITERS: Final = ("Maya", "Tomas", "Rosa", "Griet")
"""Acknowledged writes after which the kernel is killed; more are in flight."""
READING_SECONDS: Final = 1.6

QUESTIONS: Final = (
    ("Is Pixel really a beagle?", "not a beagle"),
    ("Which new company, after leaving the observatory?", "Polaris Optics"),
    ("Does she take the train to Porto or a flight?", "by train"),
    ("Which weekend in October was the visit moved to?", "24th to the 27th"),
    ("What is the code of the street door?", SECRET),
)
"""A question, and what must stand in one of its first hits."""


class DoesNotHold(Exception):
    """A claim of the demonstration that the kernel did not bear out."""


@dataclass
class Story:
    """The kernel under demonstration and what earlier steps found."""

    console: Console
    directory: Path
    fast: bool
    process: subprocess.Popen[bytes] | None = None
    trains: bool = True
    """Whether the chapter that takes minutes is told."""
    steps: int = 0
    learned: list[str] = field(default_factory=list[str])

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def socket(self) -> str:
        return str(self.directory / "memos.sock")

    def step(self, title: str, sentence: str) -> None:
        if self.steps and not self.fast:
            time.sleep(READING_SECONDS)
        self.steps += 1
        self.console.print()
        self.console.rule(f"[bold cyan]{self.steps}. {title}", align="left")
        self.console.print(Text(sentence, style="italic"))

    def show(self, text: str, style: str = "") -> None:
        self.console.print(Text("  " + text, style=style))

    def check(self, holds: bool, claim: str) -> None:
        """Say a claim that holds; end everything with one that does not."""
        if not holds:
            raise DoesNotHold(claim)
        self.console.print(Text("  ✓ " + claim, style="green"))
        self.learned.append(claim)

    def boot(self) -> tuple[Kernel, float]:
        """Start memosd on the data directory; the kernel and the seconds until it answered."""
        began = time.monotonic()
        with (self.directory / "memosd.log").open("ab") as log:
            command = [sys.executable, "-m", "memos_kernel", "--data-dir", str(self.data), "--socket", self.socket]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        while True:
            try:
                return Kernel.connect(self.socket), time.monotonic() - began
            except MemUnreachable:
                if self.process.poll() is not None or time.monotonic() - began > START_SECONDS_MAX:
                    said = (self.directory / "memosd.log").read_text(errors="replace")[-2000:]
                    raise DoesNotHold(f"the kernel starts (it said: {said})") from None
            time.sleep(0.01)

    def end(self, how: signal.Signals) -> int:
        """Stop the kernel and wait for its end; its exit status."""
        assert self.process is not None
        self.process.send_signal(how)
        status = self.process.wait(START_SECONDS_MAX)
        self.process = None
        return status


def date(time_ns: int | None) -> str:
    return "-" if time_ns is None else f"{dt.datetime.fromtimestamp(time_ns / 1e9, dt.UTC):%d %b %Y}"


def text_of(content: str | bytes | None) -> str:
    return content if isinstance(content, str) else ""


def quoted(content: str | bytes | None, needle: str = "", size: int = 110) -> str:
    """Content, or the part of a long one that holds the needle."""
    text = text_of(content)
    if len(text) <= size:
        return text
    at = text.lower().find(needle.lower()) + len(needle)
    start = 0 if at <= size - 10 else text.find(" ", at - size + 30) + 1
    return ("…" if start else "") + text[start : start + size].rsplit(" ", 1)[0] + "…"


def remember(story: Story, kernel: Kernel) -> None:
    story.step("Remember", "A conversation becomes memories: a cube for each turn, with who said it and when.")
    began = time.monotonic()
    summary = ingest(kernel, CONVERSATION, "chat-json", "maya/chat")
    took = time.monotonic() - began
    story.show(f"{summary.turns} turns of {summary.sessions} sessions in {summary.batches} records, {took:.2f} s")
    story.check(summary.new == summary.turns >= 220, f"{summary.new} memories are durable")
    story.check(ingest(kernel, CONVERSATION, None, "maya/chat").new == 0, "running it again adds nothing")
    waited = wait_for_indexes(kernel, summary.offset)
    indexes = kernel.sys_stats().indexes
    sizes = ", ".join(f"{name} ({index.get('documents', '?')})" for name, index in indexes.items())
    story.show(f"indexes built in {waited:.1f} s: {sizes}")


def wait_for_indexes(kernel: Kernel, offset: int) -> float:
    """Until every index has read the log up to `offset`; the seconds that took."""
    began = time.monotonic()
    while True:
        indexes = kernel.sys_stats().indexes
        if all(int(index.get("indexed_offset", -1)) >= offset for index in indexes.values()):
            return time.monotonic() - began
        if time.monotonic() - began > INDEX_SECONDS_MAX:
            raise DoesNotHold(f"the indexes reach offset {offset} within {INDEX_SECONDS_MAX:.0f} s ({indexes})")
        time.sleep(0.05)


def found_by(hit: m.SearchHit) -> str:
    """The retrievers that found a hit, with its rank in each, from its explanation."""
    parts: list[str] = []
    for name, value in (hit.why or {}).items():
        rank = value.get("rank") if isinstance(value, dict) else value if name.endswith("rank") else None
        if rank is not None:
            parts.append(f"{name.removesuffix('_rank')} #{rank}")
    return ", ".join(parts) or "-"


def ask(story: Story, kernel: Kernel) -> None:
    story.step("Ask", "Search by meaning and by words; each hit says who said it, when, in which record, and how it was found.")
    for question, answer in QUESTIONS:
        hits = kernel.mem_search(question, namespace="maya", k=5, explain=True).hits
        table = Table(title=question, title_justify="left", title_style="bold", border_style="dim", expand=True)
        table.add_column("memory", ratio=1)
        for name in ("said by", "record", "found by"):
            table.add_column(name, no_wrap=True)
        place = next((at for at, hit in enumerate(hits) if answer.lower() in text_of(hit.content).lower()), None)
        for at, hit in enumerate(hits[: max(3, (place or 0) + 1)]):
            header = hit.header or kernel.mem_stat(hit.cube_id).header
            memory = Text(quoted(hit.content, answer), style="bold" if at == place else "")
            memory.highlight_regex(f"(?i){answer}", style="black on yellow")
            said_by = f"{header.metadata.get('speaker', '-')}, {date(header.valid_from)}"
            table.add_row(memory, said_by, str(header.offset), found_by(hit))
        story.console.print(table)
        story.check(place is not None, f"“{answer}” is among the first hits")


def change(story: Story, kernel: Kernel) -> tuple[str, int]:
    story.step("Change", "A fact gets a new version; nothing is overwritten, and nobody overwrites what they have not seen.")
    first = kernel.mem_alloc("maya/facts", "Tomas works at the observatory in Uccle.", name="job", semantic_type="fact")
    new = "Tomas works at Polaris Optics in Leuven, as head of calibration."
    kernel.mem_write(first.cube_id, content=new, expect_version=1, actor_note="he signed on 14 June")
    try:
        kernel.mem_write(first.cube_id, content="Tomas is retired.", expect_version=1)
        raise DoesNotHold("a write that expects an old version is refused")
    except MemConflict as error:
        story.show(str(error), "red")
    story.check(kernel.mem_read(first.cube_id).content == new, "the conflicting write was refused and changed nothing")
    difference = kernel.mem_diff(first.cube_id, 1, 2)
    story.console.print(Panel(Syntax(difference.diff, "diff", theme="ansi_dark"), title="diff 1 2", border_style="dim"))
    kernel.mem_rollback(first.cube_id, 1, actor_note="by mistake")
    back = kernel.mem_rollback(first.cube_id, 2, actor_note="and back")
    table = Table("version", "record", "by", "why", border_style="dim", title="history", title_justify="left")
    for version in kernel.mem_history(first.cube_id).versions:
        table.add_row(str(version.version), str(version.offset), version.syscall, version.note or "-")
    story.console.print(table)
    same = kernel.mem_read(first.cube_id).content == new
    story.check(back.version == 4 and same, "a rollback is a new version, and it can be undone")
    return first.cube_id, first.offset


def look_back(story: Story, kernel: Kernel, job: str, offset: int) -> None:
    story.step("Look back", "What did it believe then? Any read, and search too, can stand at an earlier point of the log.")
    created = kernel.mem_stat(job, version=1).header.updated_at
    then, now = kernel.mem_read(job, at_time=created).content, kernel.mem_read(job).content
    story.show(f"then  {quoted(then)}")
    story.show(f"now   {quoted(now)}")
    same = then == kernel.mem_read(job, at_offset=offset).content
    story.check(same and then != now, "the past is read by time and by offset")
    wait_for_indexes(kernel, kernel.mem_stat(job).header.offset)
    hits = kernel.mem_search("where does Tomas work", namespace="maya/facts", at_offset=offset).hits
    story.show(f"search at offset {offset} finds: {quoted(hits[0].content) if hits else 'nothing'}")
    story.check(bool(hits) and "Uccle" in text_of(hits[0].content), "search in the past answers with what was true then")


def what_if(story: Story, kernel: Kernel) -> None:
    story.step("What if", "Fork a namespace: a cheap copy with its own future. And fuse memories into one, reversibly.")
    plan = kernel.mem_alloc("maya/plans", "Porto from September to the end of November.", name="plan")
    began = time.monotonic()
    fork = kernel.mem_fork("maya", "what-if")
    story.show(f"{fork.cubes} cubes forked in {(time.monotonic() - began) * 1000:.0f} ms")
    copy = kernel.mem_list("what-if/plans", name="plan").cubes[0]
    kernel.mem_write(copy.cube_id, content="Porto for good, and the studio in Ghent stays closed.")
    story.show(f"what-if  {quoted(kernel.mem_read(copy.cube_id).content)}")
    original = text_of(kernel.mem_read(plan.cube_id).content)
    story.show(f"maya     {original}")
    story.check(original.startswith("Porto from September"), "the original does not notice")
    one = kernel.mem_alloc("maya/facts", "Pixel is a Danish-Swedish farmdog. She eats salmon kibble.")
    two = kernel.mem_alloc("maya/facts", "Chicken gives Pixel a rash. She eats salmon kibble.")
    fused = kernel.mem_fuse([one.cube_id, two.cube_id], "merge")
    story.console.print(Panel(Text(text_of(kernel.mem_read(fused.cube_id).content)), title="fused", border_style="dim"))
    story.check(kernel.mem_stat(one.cube_id).header.state == "merged", "the sources are merged, and stay readable")
    kernel.mem_unfuse(fused.cube_id)
    story.check(kernel.mem_stat(one.cube_id).header.state in ("generated", "activated"), "unfuse brings them back")


def traces(directory: Path, needle: bytes) -> list[str]:
    """The files below a directory that hold these bytes."""
    return [str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file() and needle in path.read_bytes()]


def erase(story: Story, kernel: Kernel) -> None:
    story.step("Erase", "Maya asked to forget the door code. A shred destroys its key, so the log forgets too.")
    hits = [h for h in kernel.mem_search(SECRET, namespace="maya/chat").hits if SECRET in text_of(h.content)]
    story.check(len(hits) == 2, f"{len(hits)} memories hold the code {SECRET}")
    table = Table("erased", "in forks", "receipt, signed", border_style="dim")
    for hit in hits:
        report = kernel.mem_shred(hit.cube_id, actor_note="Maya asked for it").report
        receipt = f"…{report.receipt.hex()[-32:]} ({len(report.receipt)} bytes)"
        table.add_row(str(len(report.shredded)), str(len(report.forks)), receipt)
        story.check(hit.cube_id in report.shredded and bool(report.receipt), "the receipt names the cube")
        try:
            kernel.mem_read(hit.cube_id, at_offset=hit.header.offset if hit.header else None)
            raise DoesNotHold("an erased memory cannot be read, in the past either")
        except MemShredded as error:
            story.show(str(error), "red")
    story.console.print(table)
    left = [h for h in kernel.mem_search(SECRET, k=50).hits if SECRET in text_of(h.content)]
    story.check(not left, "search no longer finds it, nor in the forks")
    found = traces(story.directory, SECRET.encode())
    story.check(not found, f"grep {SECRET} finds it in no file: content is only ever written encrypted")


def burst(socket: str, writes: int, kill: Callable[[], object]) -> list[tuple[str, str]]:
    """Have several clients write, and kill the kernel after so many writes; cubes and texts of what it acknowledged."""
    acknowledged: list[tuple[str, str]] = []
    enough = threading.Event()

    def write(name: str) -> None:
        with contextlib.suppress(MemError), Kernel.connect(socket) as writer:
            for number in itertools.count(1):
                text = f"{name} writes line {number}"
                acknowledged.append((writer.mem_alloc("maya/burst", text).cube_id, text))
                if len(acknowledged) >= writes:
                    enough.set()

    writers = [threading.Thread(target=write, args=(name,)) for name in WRITERS]
    for writer in writers:
        writer.start()
    enough.wait(START_SECONDS_MAX)
    kill()
    for writer in writers:
        writer.join()
    return acknowledged


def crash(story: Story, kernel: Kernel) -> Kernel:
    story.step("Crash", "Kill the kernel with signal 9 while it writes. What it acknowledged must be there when it is back.")
    acknowledged = burst(story.socket, BURST_WRITES, lambda: story.end(signal.SIGKILL))
    kernel.close()
    enough = len(acknowledged) >= BURST_WRITES
    story.check(enough, f"killed while {len(WRITERS)} clients wrote, {len(acknowledged)} writes acknowledged")
    again, seconds = story.boot()
    story.show(f"back after {seconds:.2f} s, epoch {again.sys_info().epoch}")
    lost = [text for cube_id, text in acknowledged if again.mem_read(cube_id).content != text]
    story.check(not lost, "every acknowledged write is there")
    return again


def prove(story: Story, kernel: Kernel) -> None:
    story.step("Prove", "The log is a chain of hashes; replaying it must give the very state that the live kernel had.")
    verdict = kernel.sys_verify(full=True)
    story.check(verdict.ok, f"the running kernel verifies its {verdict.records} records: chain, signatures, contents, replay")
    digest = kernel.sys_info().state_digest
    story.show(f"live state digest  {digest}")
    kernel.close()
    story.check(story.end(signal.SIGTERM) == 0, "the kernel stopped cleanly")
    for word in ("verify", "digest"):
        command = [sys.executable, "-m", "memos_tools.ctl", word, str(story.data)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        output = Text((done.stdout + done.stderr).strip() or f"exit status {done.returncode}")
        story.console.print(Panel(output, title=f"memctl {word}", title_align="left", border_style="dim"))
        if word == "verify":
            story.check(done.returncode == 0, "the chain is whole, offline and without the kernel")
        else:
            story.check(done.returncode == 0 and digest in done.stdout, "the replayed state has the live kernel's digest")


def tell(story: Story) -> None:
    """All steps in order."""
    title = "MemOS: one verifiable log for everything an agent remembers"
    opening = Text("A real kernel, a conversation of eight months, and a check on every claim.", justify="center")
    story.console.print(Panel(opening, title=title))
    story.step("Boot", "One daemon and a directory: no services, no accounts.")
    kernel, seconds = story.boot()
    info = kernel.sys_info()
    story.show(f"kernel {info.version} answered after {seconds:.2f} s; you are {info.principal}")
    story.show(f"log {info.log_id}, {info.log.get('kind', '?')}")
    remember(story, kernel)
    ask(story, kernel)
    job, offset = change(story, kernel)
    look_back(story, kernel, job, offset)
    what_if(story, kernel)
    think(story, kernel)
    learn(story, kernel)
    erase(story, kernel)
    prove(story, crash(story, kernel))
    onwards = Table.grid(padding=(0, 2))
    for command, meaning in (
        ("memosd --data-dir DIR", "your own kernel"),
        ("memsh", "the shell; `help` lists its commands"),
        ("memctl audit CUBE", "who did what, from the log alone"),
        ("docs/README.md", "the one-hour tour of the code"),
        ("docs/syscalls.md", "every call, argument and error"),
    ):
        onwards.add_row(Text(command, style="bold"), meaning)
    seen = Text(f"{len(story.learned)} claims, each checked against the kernel's answers.\n", style="green")
    story.console.print()
    story.console.print(Panel(Group(seen, onwards), title="What you saw, and where to read on", border_style="green"))


@contextlib.contextmanager
def workplace(keep: str | None) -> Generator[Path]:
    """A directory for the kernel: a temporary one, or one that stays."""
    if keep is not None:
        Path(keep).mkdir(parents=True, exist_ok=True)
        yield Path(keep).resolve()
        return
    with tempfile.TemporaryDirectory(prefix="memos-demo-") as directory:
        yield Path(directory)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("memos-demo", description="A kernel, a conversation, and checks on every claim.")
    parser.add_argument("--fast", action="store_true", help="no pauses for reading, and no training, which takes minutes")
    parser.add_argument("--keep", metavar="DIR", help="work in DIR and leave it there")
    options = parser.parse_args(argv)
    console = Console(highlight=False)
    with workplace(options.keep) as directory:
        story = Story(console, directory, options.fast or not console.is_terminal, trains=not options.fast)
        try:
            tell(story)
        except (DoesNotHold, MemError) as error:
            console.print(Panel(Text(str(error)), title="This does not hold", border_style="bold red"))
            return 1
        finally:
            if story.process is not None:
                story.end(signal.SIGKILL)
    return 0


if __name__ == "__main__":
    sys.exit(main())
