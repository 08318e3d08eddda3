"""How good composed KV caches are: against full prefill of the same tokens, and against simpler ways of composing.

    OMP_NUM_THREADS=1 .venv/bin/python tests/bench/kv_compose.py --model DIR [--worlds N] [--out FILE]

The questions (`kv_questions.json`) are about invented conversations and documents. A request is the model's default system
message, 3 to 6 memories of one world in random order (the one that is asked about among them), and the question; a second
table has 7 to 8 memories. Neighbours are two of four further memories of that world, which no request holds.

Measured over the question, the generation prompt and up to 20 tokens that the model answers greedily after full prefill:
mean KL(full ‖ composed), how often both have the same most likely token (top-1), and whether the whole answer is the same
text. Time is processor time from ids to the logits of the first answer token, as a ratio to full prefill by the same forward
code. Intervals are bootstrapped over questions. A share of r recomputes at most r of all token-layers of the memories.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import torch
import transformers

from memos_drivers.activation.compose import Chunk, Composed, capture, capture_prefix, compose, lay, repair
from memos_drivers.activation.forward import Stack, blank, embedded, logits_of, places, prefill, step, taken_apart
from memos_drivers.lm.past import Segment
from memos_drivers.lm.tokens import TokenLayout

T = TypeVar("T")
QUESTIONS: Final = Path(__file__).with_name("kv_questions.json")
ASKED: Final = 10
"""Memories of a world that requests hold; those after them are neighbours only."""
ANSWER: Final = 20
FEW: Final = (3, 6)
MANY: Final = (7, 8)
FIXED: Final = "the recipe, one fixed context for all | 15 %"


def done(work: Generator[None, None, T]) -> T:
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


@dataclass
class World:
    """One world's captures. `near` stand behind two neighbours each of their own, `fixed` all behind the same two."""

    near: list[Chunk]
    fixed: list[Chunk]
    seconds: list[float]
    alone_seconds: list[float]


@dataclass
class Asked:
    """A request's parts, what full prefill says to it, and how long that took."""

    memories: list[int]
    rest: list[int]
    answer: list[int]
    logs: torch.Tensor
    seconds: float
    tokens: int


@dataclass
class Row:
    """One way's measurements, one entry a question."""

    kl: list[float] = field(default_factory=list)
    top1: list[float] = field(default_factory=list)
    same: list[float] = field(default_factory=list)
    time: list[float] = field(default_factory=list)


class Measured(NamedTuple):
    """What was measured so far."""

    few: dict[str, Row]
    many: dict[str, Row]
    asked: list[Asked]
    captures: list[World]


Way = Callable[[torch.nn.Module, Segment, World, list[int], list[int]], Composed]


def shared(share: float, take: Callable[[World], list[Chunk]] = lambda w: w.near) -> Way:
    """The recipe, with chunks changed by `take` first."""
    return lambda model, prefix, world, memories, rest: done(
        compose(model, prefix, [take(world)[n] for n in memories], rest, share)
    )


def alone(chunks: list[Chunk]) -> list[Chunk]:
    return [replace(chunk, near=None, score=None) for chunk in chunks]


def unrotated(model: torch.nn.Module, prefix: Segment, world: World, memories: list[int], rest: list[int]) -> Composed:
    """Plain concatenation: keys stay as they were, wherever they now stand."""
    at, chunks = prefix.tokens, list[Chunk]()
    for chunk in alone([world.near[n] for n in memories]):
        chunks.append(replace(chunk, alone=chunk.alone._replace(start=at)))
        at += len(chunk.token_ids)
    return done(compose(model, prefix, chunks, rest, 0))


def heads(share: float) -> Way:
    """Neighbours, and the same number of tokens recomputed at the head of every chunk but the first, in all layers."""

    def way(model: torch.nn.Module, prefix: Segment, world: World, memories: list[int], rest: list[int]) -> Composed:
        stack, chunks = taken_apart(model), [world.near[n] for n in memories]
        with torch.no_grad():
            laid = done(lay(stack, prefix, chunks, len(rest), share))
            lengths = [len(chunk.token_ids) for chunk in chunks]
            index = torch.cat([torch.arange(length) for length in lengths[1:]])
            chosen = laid.open[torch.topk(-index, round(share * sum(lengths))).indices]
            rest_at = torch.arange(laid.memory_end, laid.memory_end + len(rest))
            states = done(repair(stack, laid, chosen, len(stack.layers), rest, rest_at))
            logits = logits_of(stack, states[:, -1:])[0, -1]
        return Composed(logits, laid.cache, states, len(chosen), len(stack.layers))

    return way


def as_float16(chunks: list[Chunk]) -> list[Chunk]:
    return [_stored(chunk, lambda x: x.half().float()) for chunk in chunks]


def as_int8(chunks: list[Chunk]) -> list[Chunk]:
    def rounded(x: torch.Tensor) -> torch.Tensor:
        scale = x.abs().amax(-1, keepdim=True).clamp_min(1e-12) / 127
        return (x / scale).round() * scale

    return [_stored(chunk, rounded) for chunk in chunks]


def _stored(chunk: Chunk, change: Callable[[torch.Tensor], torch.Tensor]) -> Chunk:
    def changed(segment: Segment) -> Segment:
        return Segment(tuple(map(change, segment.keys)), tuple(map(change, segment.values)), segment.start)

    return replace(chunk, alone=changed(chunk.alone), near=changed(chunk.near) if chunk.near else None)


WAYS: Final[dict[str, Way]] = {
    "alone, plain concatenation | 0": unrotated,
    "alone, re-rotated | 0": shared(0, lambda w: alone(w.near)),
    "alone, re-rotated, chosen tokens recomputed | 15 %": shared(0.15, lambda w: alone(w.near)),
    "neighbours | 0": shared(0),
    "neighbours, heads of chunks recomputed | 15 %": heads(0.15),
    "**the recipe** | 5 %": shared(0.05),
    "**the recipe** | 10 %": shared(0.10),
    "**the recipe** | 15 %": shared(0.15),
    "**the recipe** | 20 %": shared(0.20),
    FIXED: shared(0.15, lambda w: w.fixed),
    "the recipe, stored in float16 | 15 %": shared(0.15, lambda w: as_float16(w.near)),
    "the recipe, stored in int8 | 15 %": shared(0.15, lambda w: as_int8(w.near)),
}
MANY_WAYS: Final = frozenset(
    name for name in WAYS if name.startswith(("alone, re-rotated |", "neighbours", "**the recipe** | 15"))
)


def captured(model: torch.nn.Module, prefix_ids: list[int], memories: list[list[int]], fixed: bool) -> World:
    asked, pool = memories[:ASKED], memories[ASKED:]
    world = World([], [], [], [])
    for n, ids in enumerate(asked):
        begin = time.process_time()
        done(capture(model, prefix_ids, ids))
        world.alone_seconds.append(time.process_time() - begin)
        begin = time.process_time()
        world.near.append(done(capture(model, prefix_ids, ids, [pool[n % len(pool)], pool[(n + 1) % len(pool)]])))
        world.seconds.append(time.process_time() - begin)
        if fixed:
            world.fixed.append(done(capture(model, prefix_ids, ids, pool[:2])))
    return world


@torch.no_grad()
def ask(stack: Stack, ids: list[int], memories: list[int], rest: list[int], ends: set[int]) -> Asked:
    """Full prefill and the greedy answer."""
    begin = time.process_time()
    cache = blank(stack, len(ids) + len(rest) + ANSWER)
    done(prefill(stack, ids, cache, 0))
    states = done(prefill(stack, rest, cache, len(ids)))
    token = int(logits_of(stack, states[:, -1:])[0, -1].argmax())
    seconds = time.process_time() - begin
    answer, seen = list[int](), [states]
    while len(answer) < ANSWER and token not in ends:
        answer.append(token)
        states = done(prefill(stack, [token], cache, len(ids) + len(rest) + len(answer) - 1))
        seen.append(states)
        token = int(logits_of(stack, states)[0, -1].argmax())
    logs = logits_of(stack, torch.cat(seen, 1))[0].log_softmax(-1)
    return Asked(memories, rest, answer, logs, seconds, len(ids) + len(rest))


@torch.no_grad()
def compare(stack: Stack, asked: Asked, composed: Composed, row: Row) -> None:
    states = composed.states
    if asked.answer:
        length = composed.cache.tokens + len(asked.answer)
        cache = blank(stack, length)
        for new, old in zip((*cache.keys, *cache.values), (*composed.cache.keys, *composed.cache.values), strict=True):
            new[:, :, : composed.cache.tokens] = old
        at = places(stack, torch.arange(composed.cache.tokens, length), length)
        hidden = embedded(stack, asked.answer)
        for number in range(len(stack.layers)):
            hidden = step(stack, number, hidden, at, cache)
        states = torch.cat((states, hidden), 1)
    logs = logits_of(stack, states)[0].log_softmax(-1)
    row.kl.append(float((asked.logs.exp() * (asked.logs - logs)).sum(-1).mean()))
    agree = asked.logs.argmax(-1) == logs.argmax(-1)
    row.top1.append(float(agree.float().mean()))
    row.same.append(float(agree[len(asked.rest) - 1 :].all()))


def between(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and the 2.5th and 97.5th percentile of the means of 2,000 samples with replacement."""
    chance = random.Random(7)
    means = sorted(sum(chance.choices(values, k=len(values))) / len(values) for _ in range(2000))
    return sum(values) / len(values), means[50], means[1949]


def lines(rows: dict[str, Row]) -> Iterator[str]:
    yield "| how | share | KL | top-1 % | same text % | time % |"
    yield "|---|---|---|---|---|---|"
    for name, row in rows.items():
        kl, top1, same, spent = (between(v) for v in (row.kl, row.top1, row.same, row.time))
        cells = [
            f"{kl[0]:.4f} ({kl[1]:.4f}–{kl[2]:.4f})",
            *(f"{100 * m:.1f} ({100 * a:.1f}–{100 * b:.1f})" for m, a, b in (top1, same, spent)),
        ]
        yield f"| {name} | {' | '.join(cells)} |"


def measure(
    model: torch.nn.Module, layout: TokenLayout, ends: set[int], ways: dict[str, Way], worlds: list[Any], many: int
) -> Iterator[Measured]:
    """All ways on all questions; also, for the first `many` questions of each world, with more memories. Step by world."""
    stack, prefix_ids = taken_apart(model), layout.prefix(None)
    prefix = done(capture_prefix(model, prefix_ids))
    few_rows = {name: Row() for name in ways}
    many_rows = {name: Row() for name in ways if name in MANY_WAYS}
    asked_all, captures = list[Asked](), list[World]()
    for number, told in enumerate(worlds):
        memories = [layout.memory(text) for text in told["memories"]]
        world = captured(model, prefix_ids, memories, FIXED in ways)
        chance = random.Random(number)
        for nth, question in enumerate(told["questions"]):
            rest = layout.rest([{"role": "user", "content": question["text"]}])
            for rows, (least, most) in ((few_rows, FEW), (many_rows, MANY)):
                others = [n for n in range(ASKED) if n != question["memory"]]
                picked = [question["memory"], *chance.sample(others, chance.randint(least, most) - 1)]
                chance.shuffle(picked)
                if rows is many_rows and nth >= many:
                    continue
                ids = list(itertools.chain(prefix_ids, *(memories[n] for n in picked)))
                asked = ask(stack, ids, picked, rest, ends)
                if rows is few_rows:
                    asked_all.append(replace(asked, logs=torch.empty(0)))
                for name in rows:
                    begin = time.process_time()
                    composed = ways[name](model, prefix, world, picked, rest)
                    rows[name].time.append((time.process_time() - begin) / asked.seconds)
                    compare(stack, asked, composed, rows[name])
        captures.append(replace(world, near=world.near[:1], fixed=[]))
        yield Measured(few_rows, many_rows, asked_all, captures)


def report(few: dict[str, Row], many: dict[str, Row], asked: list[Asked], captures: list[World]) -> Iterator[str]:
    tokens, seconds = statistics.fmean(a.tokens for a in asked), statistics.fmean(a.seconds for a in asked)
    yield f"{len(asked)} questions, 3–6 memories, {tokens:.0f} tokens on average; full prefill {seconds:.2f} s."
    yield f"{cpu()}, {torch.get_num_threads()} thread(s), float32, torch {torch.__version__}."
    yield ""
    yield from lines(few)
    if any(row.kl for row in many.values()):
        yield f"\n7–8 memories, {len(next(iter(many.values())).kl)} questions:\n"
        yield from lines(many)
    recipe = next((row for name, row in few.items() if "**" in name and "15 %" in name), None)
    if recipe:
        seconds, bare = (
            statistics.fmean(s for w in captures for s in w.seconds),
            statistics.fmean(s for w in captures for s in w.alone_seconds),
        )
        chunk = captures[0].near[0]
        size = sum(t.nbytes for s in (chunk.alone, chunk.near) if s for t in (*s.keys, *s.values))
        saved = statistics.fmean(a.seconds * (1 - t) / len(a.memories) for a, t in zip(asked, recipe.time, strict=True))
        yield (
            f"\nCapture: {seconds:.2f} s a memory behind P and behind two neighbours ({bare:.2f} s behind P alone), "
            f"{size / len(chunk.token_ids) / 1024:.1f} KiB a token (both versions, float32). "
            f"A use in a composition saves {saved:.2f} s a memory: a capture pays from use {seconds / saved:.1f} on."
        )


def cpu() -> str:
    try:
        names = [
            s.partition(":")[2].strip() for s in Path("/proc/cpuinfo").read_text().splitlines() if s.startswith("model name")
        ]
    except OSError:
        return "unknown processor"
    return f"{names[0]} × {len(names)}" if names else "unknown processor"


def load(where: Path) -> tuple[torch.nn.Module, TokenLayout, set[int]]:
    model = transformers.AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(where)
    ends = model.generation_config.eos_token_id
    return model, TokenLayout(tokenizer), {ends} if isinstance(ends, int) else set(ends or ())


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--model", type=Path, required=True, help="a folder with a Llama-like chat model")
    words.add_argument("--worlds", type=int, default=None, help="only so many worlds")
    words.add_argument("--fixed", action="store_true", help="also with one fixed context for all memories of a world")
    words.add_argument("--many", type=int, default=2, help="questions of each world that are also asked with 7–8 memories")
    words.add_argument("--out", type=Path, help="also write the tables here")
    given = words.parse_args()
    model, layout, ends = load(given.model)
    worlds = json.loads(QUESTIONS.read_text())["worlds"][: given.worlds]
    ways = {name: way for name, way in WAYS.items() if given.fixed or name != FIXED}
    text = ""
    for number, measured in enumerate(measure(model, layout, ends, ways, worlds, given.many), 1):
        text = "\n".join(report(*measured)) + "\n"
        print(f"world {number} of {len(worlds)}", file=sys.stderr, flush=True)
        if given.out:
            given.out.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
