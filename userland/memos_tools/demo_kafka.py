"""The demonstration on Kafka: `python -m memos_tools.demo_kafka [--fast]`, a memory that outlives its machine, in a minute.

A kernel writes its log to Kafka; its machine is lost while clients write; another one rebuilds everything from the topics
and a key. The topic is verified, a copy of it with one bit changed is caught, and a standby takes over while its predecessor
still writes. Real programs throughout: memosd, memctl, memsh. As in demo.py a claim that does not hold ends it with exit
status 1.

A broker is found as follows, first match wins; without any the exit status is 2:

1. `MEMOS_KAFKA=HOST:PORT`: one that runs; `MEMOS_KAFKA_CONFIG` names a file with its settings. The topics made are removed.
2. `KAFKA_HOME`: a Kafka distribution, from which a broker is started, and ended again. Needs Java.
3. `../shared/kafka` beside the repository: likewise.

Nothing is left behind: no process, no topic, no file.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import importlib.util
import json
import logging
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from memos_client import Kernel
from memos_kernel.config import BadConfig, kafka_settings
from memos_kernel.eventlog import counting
from memos_kernel.eventlog.link import SCHEME, BadLink, Link
from memos_kernel.events import Damaged, Frame
from memos_syscalls.errors import MemError, MemReadOnly, MemShredded, MemUnreachable

from .demo import START_SECONDS_MAX, DoesNotHold, Story, burst, text_of, traces

if TYPE_CHECKING:
    from confluent_kafka import Message

BROKER_SECONDS_MAX: Final = 90.0
STARTED: Final = b"Kafka Server started"
SCRIPTS: Final = ("kafka-server-start.sh", "kafka-storage.sh")
HOWTO: Final = (
    "no Kafka: set MEMOS_KAFKA=HOST:PORT to a broker that runs, or KAFKA_HOME to an unpacked Kafka distribution (needs Java). "
    "docs/operations.md shows how to start one"
)
SECRET: Final = "7730-HERON"
LARGE_CHARACTERS: Final = 900_000
BURST_WRITES: Final = 120
"""Acknowledged writes after which the machine is lost; more are in flight."""
HANDOVER_WRITES: Final = 40
FENCED_STATUS: Final = 4
CHECKPOINT_SECONDS: Final = 1.5


class NoKafka(Exception):
    """There is no broker to be had; the message says what to do."""


# -- the broker ----------------------------------------------------------------------------------------------------------


def distribution() -> Path | None:
    """The Kafka distribution that is configured, or lies beside the repository."""
    named = os.environ.get("KAFKA_HOME")
    beside = Path(__file__).resolve().parents[3] / "shared" / "kafka"
    return Path(named) if named else beside if beside.is_dir() else None


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def properties(directory: Path, port: int, controller: int) -> str:
    """A broker for a minute: one node, KRaft, everything small. Not settings to keep data with."""
    found = {
        "process.roles": "broker,controller", "node.id": 1, "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}", "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT", "log.dirs": directory / "data",
        "offsets.topic.replication.factor": 1, "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1, "transaction.state.log.num.partitions": 4, "offsets.topic.num.partitions": 4,
        "auto.create.topics.enable": "false", "group.initial.rebalance.delay.ms": 0,
        "log.cleaner.dedupe.buffer.size": 8 << 20, "log.cleaner.backoff.ms": 1000,
    }  # fmt: skip
    return "".join(f"{name}={value}\n" for name, value in found.items())


@contextlib.contextmanager
def throwaway(home: Path, directory: Path) -> Generator[str]:
    """A broker that ends with this block; its address."""
    if lacking := [script for script in SCRIPTS if not (home / "bin" / script).is_file()]:
        raise NoKafka(
            f"{home} has no bin/{lacking[0]}: name an unpacked Kafka distribution with KAFKA_HOME, or set MEMOS_KAFKA"
        )
    if shutil.which("java") is None:
        raise NoKafka("there is no java on the PATH, which Kafka needs: install one, or set MEMOS_KAFKA=HOST:PORT")
    directory.mkdir()
    settings, words, port = directory / "server.properties", directory / "server.log", free_port()
    settings.write_text(properties(directory, port, free_port()))
    environment = {**os.environ, "LOG_DIR": str(directory), "KAFKA_HEAP_OPTS": "-Xms64m -Xmx384m"}
    if (talkative := home / "config" / "log4j2-server.yaml").is_file():
        environment["KAFKA_LOG4J"] = str(talkative)

    def run(script: str, *args: str) -> subprocess.Popen[bytes]:
        with words.open("ab") as out:
            return subprocess.Popen(
                [str(home / "bin" / script), *args], env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True, cwd=directory,
            )  # fmt: skip

    # The first byte keeps the id from beginning with a dash, which the tool would take for an option.
    cluster_id = base64.urlsafe_b64encode(b"M" + uuid.uuid4().bytes[1:]).rstrip(b"=").decode()
    if run("kafka-storage.sh", "format", "-t", cluster_id, "-c", str(settings)).wait(BROKER_SECONDS_MAX) != 0:
        raise NoKafka(f"kafka-storage.sh of {home} failed: {words.read_text(errors='replace')[-1000:]}")
    broker = run("kafka-server-start.sh", str(settings))
    try:
        until = time.monotonic() + BROKER_SECONDS_MAX
        while STARTED not in words.read_bytes():
            if broker.poll() is not None or time.monotonic() > until:
                raise NoKafka(f"the broker of {home} did not start: {words.read_text(errors='replace')[-1000:]}")
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        broker.kill()
        broker.wait()


@contextlib.contextmanager
def kafka(directory: Path) -> Generator[tuple[str, bool]]:
    """The address of a broker, and whether it is our own to look into."""
    given = os.environ.get("MEMOS_KAFKA")
    home = distribution()
    if given:
        yield given, False
    elif home is not None:
        with throwaway(home, directory / "kafka") as address:
            yield address, True
    else:
        raise NoKafka(HOWTO)


# -- the story -----------------------------------------------------------------------------------------------------------


class Machine(NamedTuple):
    """A computer, as far as the story needs one: a directory, a socket, a kernel."""

    name: str
    directory: Path
    process: subprocess.Popen[bytes]
    kernel: Kernel
    seconds: float
    """What the start took."""

    @property
    def socket(self) -> str:
        return str(self.directory / "memos.sock")


@dataclass
class KafkaStory(Story):
    """What the steps share."""

    url: str = ""
    link: Link | None = None
    own_broker: bool = False
    machines: list[Machine] = field(default_factory=list[Machine])
    texts: dict[str, str] = field(default_factory=dict[str, str])
    """Cube → what was acknowledged last."""
    erased: str = ""
    public_key: str = ""

    @property
    def key_file(self) -> Path:
        return self.directory / "vault" / "master.key"

    @property
    def topic(self) -> Link:
        assert self.link is not None
        return self.link

    def start(self, name: str, *flags: str) -> Machine:
        """A kernel on an empty machine."""
        place = self.directory / name
        place.mkdir(mode=0o700)
        words = [
            sys.executable, "-m", "memos_kernel", "--data-dir", str(place / "data"), "--socket", str(place / "memos.sock"),
            "--log", self.url, "--master-key-file", str(self.key_file), "--embedder", "none", *flags,
        ]  # fmt: skip
        if config := os.environ.get("MEMOS_KAFKA_CONFIG"):
            words += ["--kafka-config", config]
        self.show(f"$ memosd --log {self.url} --master-key-file … {' '.join(flags)}".rstrip(), "bold")
        began = time.monotonic()
        with (self.directory / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        while True:
            try:
                kernel = Kernel.connect(str(place / "memos.sock"))
                break
            except MemUnreachable:
                if process.poll() is not None or time.monotonic() - began > START_SECONDS_MAX:
                    process.kill()
                    said = (self.directory / f"{name}.log").read_text(errors="replace")[-2000:]
                    raise DoesNotHold(f"the kernel starts on {name} (it said: {said})") from None
            time.sleep(0.01)
        machine = Machine(name, place, process, kernel, time.monotonic() - began)
        self.machines.append(machine)
        return machine

    def stop(self, machine: Machine, how: signal.Signals) -> int:
        """End a kernel; its exit status."""
        machine.kernel.close()
        if machine.process.poll() is None:
            machine.process.send_signal(how)
        status = machine.process.wait(START_SECONDS_MAX)
        self.machines.remove(machine)
        return status

    def tool(self, program: str, *words: str, quiet: bool = False) -> tuple[int, str]:
        """Run memctl or memsh as a user would; its exit status and output."""
        module = {"memctl": "memos_tools.ctl", "memsh": "memos_tools.shell"}[program]
        done = subprocess.run([sys.executable, "-m", module, *words], capture_output=True, text=True, check=False)
        output = (done.stdout + done.stderr).strip()
        if not quiet:
            # Our files are long names of no interest.
            title = f"$ {program} {' '.join(words)}".replace(str(self.directory) + "/", "")
            shown = output if len(output) < 1600 else output[:1600] + " …"
            self.console.print(Panel(Text(shown), title=Text(title), title_align="left", border_style="dim"))
        return done.returncode, output

    def asked(self, *words: str) -> tuple[int, dict[str, Any]]:
        """What memctl says to a machine."""
        status, output = self.tool("memctl", "--json", *words, quiet=True)
        try:
            found: dict[str, Any] = json.loads(output)
        except ValueError:
            raise DoesNotHold(f"memctl {words[0]} answers in JSON (it said: {output[-500:]})") from None
        return status, found


def first_machine(story: KafkaStory) -> Machine:
    story.step("Begin", "A kernel whose log is a topic. The machine it runs on holds a mirror, and nothing that counts.")
    machine = story.start("first")
    info = machine.kernel.sys_info()
    story.public_key = info.public_key
    story.show(f"answered after {machine.seconds:.1f} s; log {info.log_id}, epoch {info.epoch}")
    names = (story.topic.topic, story.topic.payloads, story.topic.keys)
    what = (
        "every record, in order, for ever",
        "contents above 16 KiB, encrypted",
        "keys, wrapped; compacted, so that a key can go",
    )
    table = Table("topic", "holds", border_style="dim")
    for name, use in zip(names, what, strict=True):
        table.add_row(name, use)
    story.console.print(table)
    story.check(
        info.log["kind"] == "kafka" and info.log["phase"] == "open", "the topics are made, and this kernel has the word"
    )
    return machine


def work(story: KafkaStory, kernel: Kernel) -> str:
    story.step("Work", "Remember, change, fuse, erase; and one content of 900,000 characters, too large for a record.")
    job = kernel.mem_alloc("maya/facts", "Tomas works at the observatory in Uccle.", name="job")
    kernel.mem_write(job.cube_id, content="Tomas works at Polaris Optics in Leuven.", expect_version=1, actor_note="he signed")
    story.texts[job.cube_id] = "Tomas works at Polaris Optics in Leuven."
    one = kernel.mem_alloc("maya/facts", "Pixel is a Danish-Swedish farmdog. She eats salmon kibble.")
    two = kernel.mem_alloc("maya/facts", "Chicken gives Pixel a rash. She eats salmon kibble.")
    fused = kernel.mem_fuse([one.cube_id, two.cube_id], "merge")
    story.texts[fused.cube_id] = text_of(kernel.mem_read(fused.cube_id).content)
    words = random.Random(4).choices(("salmon", "beagle", "Porto", "studio", "kiln", "glaze", "Ghent", "train"), k=160_000)
    large = " ".join(words)[:LARGE_CHARACTERS]
    big = kernel.mem_alloc("maya/archive", large, name="diary")
    story.texts[big.cube_id] = large
    code = kernel.mem_alloc("maya/facts", f"The code of the street door is {SECRET}.", name="door")
    report = kernel.mem_shred(code.cube_id, actor_note="Maya asked for it").report
    (story.directory / "receipt.bin").write_bytes(report.receipt)
    story.erased = code.cube_id
    story.check(len(story.texts[fused.cube_id]) > 40, "two memories are fused into one")
    story.check(kernel.mem_read(big.cube_id).content == large, f"{len(large):,} characters are in {story.topic.payloads}")
    assert report.keys_gone_by is not None
    seconds = report.keys_gone_by / 1e9 - time.time()
    story.check(0 < seconds < 300, f"the receipt says that no broker holds the key any more in {seconds:.0f} s at the latest")
    if story.own_broker:
        found = traces(story.directory, SECRET.encode())
        story.check(not found, f"grep {SECRET} finds it in no file, of the broker or of the kernel")
    return job.cube_id


def lose(story: KafkaStory, machine: Machine) -> tuple[int, str]:
    """The offset and digest that the lost kernel showed last."""
    info = machine.kernel.sys_info()
    story.step("Lose the machine", "kill -9 while four clients write; then its directory is removed. No backup was made.")
    acknowledged = burst(machine.socket, BURST_WRITES, lambda: story.stop(machine, signal.SIGKILL))
    shutil.rmtree(machine.directory)
    story.texts |= dict(acknowledged)
    enough = len(acknowledged) >= BURST_WRITES
    story.check(enough and not machine.directory.exists(), f"it is gone, {len(acknowledged)} writes after it began")
    return info.head_offset, info.state_digest


def rebuild(story: KafkaStory, offset: int, digest: str) -> Machine:
    story.step("Rebuild", "An empty machine, the topic's name and the master key: that is all a new kernel gets.")
    status, then = story.asked("digest", story.url, "--at", str(offset), "--key-file", str(story.key_file))
    story.show(f"the lost kernel, at offset {offset}   {digest}")
    story.show(f"the topic, replayed up to there  {then.get('state_digest', then)}")
    story.check(status == 0 and then["state_digest"] == digest, "replaying the topic gives the very state that was lost")
    machine = story.start("second")
    kernel = machine.kernel
    info = kernel.sys_info()
    story.show(f"back after {machine.seconds:.1f} s, epoch {info.epoch}, head {info.head_offset}")
    lost = [cube_id for cube_id, text in story.texts.items() if kernel.mem_read(cube_id).content != text]
    story.check(not lost, f"all {len(story.texts)} acknowledged memories are there, the large one too")
    try:
        kernel.mem_read(story.erased)
        raise DoesNotHold("what was erased stays erased")
    except MemShredded as error:
        story.show(str(error), "red")
    story.check(True, "what was erased stays erased")
    # Without a key, what no signed checkpoint covers yet does not count; the new kernel signs one within a second.
    time.sleep(CHECKPOINT_SECONDS)
    status, whole = story.asked("digest", story.url, "--no-keys", "--public-key", story.public_key)
    same = status == 0 and whole["state_digest"] == kernel.sys_info().state_digest
    story.check(same, "who replays the topic without any key gets the new kernel's digest, too")
    return machine


def prove(story: KafkaStory) -> None:
    story.step("Prove", "Anyone who can read the topic can check it, with the master key or with the public key alone.")
    receipt = str(story.directory / "receipt.bin")
    status, _said = story.tool("memctl", "verify", story.url, "--full", "--receipt", receipt, "--key-file", str(story.key_file))
    story.check(status == 0, "chain, MACs, signatures, state, every content and the receipt of the erasure hold")
    status, _said = story.tool("memctl", "verify", story.url, "--no-keys", "--public-key", story.public_key)
    story.check(status == 0, "a stranger with the public key finds the same log whole")


def messages(link: Link, topic: str) -> Iterator[Message]:
    """Every message of a topic's only partition."""
    from confluent_kafka import KafkaError, TopicPartition

    consumer = link.consumer()
    try:
        consumer.assign([TopicPartition(topic, 0, consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=30)[0])])
        until = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < until:
            message = consumer.poll(1)
            if message is None:
                continue
            error = message.error()
            if error is None:
                yield message
            elif error.code() == KafkaError._PARTITION_EOF:
                return
        raise DoesNotHold(f"the broker shows topic {topic} to its end")
    finally:
        consumer.close()


def changed(data: bytes, seq: int) -> bytes | None:
    """The message with one bit of record `seq` flipped; None when it does not hold that record."""
    try:
        frame = counting.decode(data)
    except Damaged:
        return None
    if not isinstance(frame, Frame) or not frame.first_seq <= seq < frame.first_seq + len(frame.records):
        return None
    record = frame.records[seq - frame.first_seq]
    at = data.index(record) + len(record) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def tamper(story: KafkaStory, seq: int) -> None:
    story.step("Tamper", f"Copy the topics message by message, and change one bit of record {seq} on the way.")
    from memos_kernel.eventlog.topics import ensure

    copy = Link.parse(f"{story.url}.copy", story.topic.options)
    ensure(copy)
    producer = copy.producer()
    where, count = -1, 0
    pairs = ((story.topic.topic, copy.topic), (story.topic.payloads, copy.payloads), (story.topic.keys, copy.keys))
    for source, target in pairs:
        for at, message in enumerate(messages(story.topic, source)):
            value = message.value()
            if source == story.topic.topic and where < 0 and value is not None:
                flipped = changed(value, seq)
                where, value = (where, value) if flipped is None else (at, flipped)
            producer.produce(target, value=value, key=message.key(), partition=0)
            producer.poll(0)
            count += 1
    if producer.flush(START_SECONDS_MAX) or where < 0:
        raise DoesNotHold(f"the copy of record {seq} is made ({count} messages)")
    story.show(f"{count} messages copied; the bit is in message {where} of {copy.topic}")
    url = f"{SCHEME}{copy.brokers}/{copy.topic}"
    for keys, claim in (
        (("--key-file", str(story.key_file)), f"it is caught, at offset {seq}; what is before is good"),
        (("--no-keys", "--public-key", story.public_key), f"a stranger with the public key catches it, at offset {seq}"),
    ):
        _status, said = story.tool("memctl", "verify", url, *keys)
        if story.key_file.name in str(keys):
            named = f"topic offset {where} " in " ".join(said.split())
            story.check(named, f"the message is named: it is the one at offset {where} of the topic")
        status, found = story.asked("verify", url, *keys)
        story.check(status == 1 and seq in [problem["offset"] for problem in found["problems"]], claim)


def audit(story: KafkaStory, cube_id: str) -> None:
    story.step("Audit", "Who changed this memory, when, by which right, and why? From the topic, without a kernel.")
    status, said = story.tool("memctl", "audit", story.url, cube_id, "--key-file", str(story.key_file))
    story.check(status == 0 and "he signed" in said, "every change of the cube is named, with its reason")


def hand_over(story: KafkaStory, primary: Machine) -> Machine:
    story.step("Hand over", "A standby follows, and is promoted while the old primary still writes. Two kernels, one log.")
    standby = story.start("third", "--standby")
    kernel = standby.kernel
    until = time.monotonic() + START_SECONDS_MAX
    while (there := kernel.sys_info()).head_offset < primary.kernel.sys_info().head_offset and time.monotonic() < until:
        time.sleep(0.05)
    story.check(
        there.standby and there.state_digest == primary.kernel.sys_info().state_digest, "the standby has the same digest"
    )
    try:
        kernel.mem_alloc("maya/facts", "too early")
        raise DoesNotHold("a standby writes nothing")
    except MemReadOnly as error:
        story.show(str(error), "red")
    asked: list[str] = []
    failed: list[MemError] = []

    def write() -> None:
        with Kernel.connect(primary.socket) as writer:
            try:
                while True:
                    asked.append(f"handover-{len(asked) + 1}")
                    writer.mem_alloc("maya/handover", f"entry {len(asked)}", request_id=asked[-1])
            except MemError as error:
                failed.append(error)

    writing = threading.Thread(target=write)
    writing.start()
    while len(asked) < HANDOVER_WRITES and writing.is_alive() and time.monotonic() < until:
        time.sleep(0.01)
    status, _said = story.tool("memsh", "--socket", standby.socket, "sys-promote")
    story.check(status == 0, "the standby opened an epoch of its own")
    writing.join(START_SECONDS_MAX)
    ended = story.stop(primary, signal.SIGKILL) if primary.process.poll() is None else story.stop(primary, signal.SIGTERM)
    story.check(ended == FENCED_STATUS, f"the old primary saw it and ended itself, exit status {FENCED_STATUS}: fenced")
    story.show(str(failed[0]) if failed else "no call failed", "red")
    again = kernel.mem_alloc("maya/handover", f"entry {len(asked)}", request_id=asked[-1])
    count = kernel.sys_stats().cubes["namespaces"]["maya/handover"]["cubes"]
    story.show(f"the call whose outcome was unknown, repeated with its request id: offset {again.offset}")
    story.check(count == len(asked), f"{len(asked)} calls were made, and {count} memories are there: none lost, none twice")
    lost = [cube_id for cube_id, text in story.texts.items() if kernel.mem_read(cube_id).content != text]
    story.check(not lost and not kernel.sys_info().standby, "the new primary has everything, and writes")
    return standby


def tell(story: KafkaStory) -> None:
    title = "MemOS on Kafka: a memory that outlives its machine"
    opening = Text("A real broker, three machines of which one is lost, and a check on every claim.", justify="center")
    story.console.print(Panel(opening, title=title))
    story.show(f"Kafka at {story.topic.brokers}{', started for this' if story.own_broker else ''}")
    first = first_machine(story)
    job = work(story, first.kernel)
    seq = first.kernel.mem_stat(job).header.offset
    assert seq is not None
    second = rebuild(story, *lose(story, first))
    prove(story)
    tamper(story, seq)
    audit(story, job)
    third = hand_over(story, second)
    story.check(story.stop(third, signal.SIGTERM) == 0, "the last kernel stopped cleanly")


def remove_topics(link: Link) -> None:
    """On a broker that stays: what the story made there goes."""
    mine = [name for one in (link.topic, f"{link.topic}.copy") for name in (one, f"{one}.payloads", f"{one}.keys")]
    # Taken as untyped: the library does not declare what an admin's futures hold.
    admin: Any = link.admin()
    there = admin.list_topics(timeout=30).topics
    for done in admin.delete_topics([name for name in mine if name in there] or [""]).values() if there else ():
        done.exception(30)


def onwards(story: KafkaStory) -> Group:
    table = Table.grid(padding=(0, 2))
    for command, meaning in (
        ("memosd --log kafka://HOST:PORT/TOPIC --data-dir DIR", "your own kernel on Kafka"),
        ("memctl copy DIR kafka://HOST:PORT/TOPIC", "move an embedded log there"),
        ("docs/operations.md", "brokers, rights, standbys, erasure, what may be lost"),
        ("docs/kafka.md", "the protocol: who may acknowledge, and why"),
    ):
        table.add_row(Text(command, style="bold"), meaning)
    return Group(Text(f"{len(story.learned)} claims, each checked against what the programs answered.\n", style="green"), table)


def perform(story: KafkaStory, options: dict[str, str]) -> None:
    """The story on a broker, and everything that it started ended after it."""
    with kafka(story.directory) as (address, own):
        story.url = f"{SCHEME}{address}/memos-demo-{uuid.uuid4().hex[:8]}"
        story.link, story.own_broker = Link.parse(story.url, options), own
        story.key_file.parent.mkdir(mode=0o700)
        try:
            tell(story)
        finally:
            for machine in list(story.machines):
                story.stop(machine, signal.SIGKILL)
            if not own:
                remove_topics(story.topic)


def _ended(_number: int, _frame: FrameType | None) -> None:
    sys.exit(130)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("memos-demo-kafka", description="A kernel on Kafka loses its machine, and nothing else.")
    parser.add_argument("--fast", action="store_true", help="no pauses for reading")
    arguments = parser.parse_args(argv)
    if importlib.util.find_spec("confluent_kafka") is None:
        print("memos-demo-kafka: the Kafka client is missing: pip install 'memos-kernel[kafka]'", file=sys.stderr)
        return 2
    console = Console(highlight=False)
    # That topics for a minute have one replica needs no warning.
    logging.getLogger("memos.kafka").setLevel(logging.ERROR)
    # What ends us must end what we started.
    signal.signal(signal.SIGTERM, _ended)
    with tempfile.TemporaryDirectory(prefix="memos-demo-kafka-", ignore_cleanup_errors=True) as directory:
        story = KafkaStory(console, Path(directory), arguments.fast or not console.is_terminal)
        try:
            given = os.environ.get("MEMOS_KAFKA_CONFIG")
            perform(story, kafka_settings(Path(given)) if given else {})
        except (NoKafka, BadLink, BadConfig) as error:
            print(f"memos-demo-kafka: {error}", file=sys.stderr)
            return 2
        except (DoesNotHold, MemError) as error:
            console.print(Panel(Text(str(error)), title="This does not hold", border_style="bold red"))
            return 1
    story.check(not Path(directory).exists(), "everything that this started is ended, and every file of it is gone")
    console.print(Panel(onwards(story), title="What you saw, and where to read on", border_style="green"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
