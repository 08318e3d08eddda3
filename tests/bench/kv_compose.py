"""How good composed KV caches are: against full prefill of the same tokens, and against simpler ways of composing.

    .venv/bin/python tests/bench/kv_compose.py --model DIR [--worlds N] [--processes N] [--out FILE]

The questions (`kv_questions.json`) are about invented conversations and documents. A request is the model's default system
message, 3 to 6 memories of one world in random order (the one that is asked about among them), and the question; a second
table has 7 to 8 memories. Neighbours are further memories of that world, which no request holds: two of four, or all four,
which makes two contexts. Some ways are measured on the first questions of each world only.

Measured over the question, the generation prompt and up to 20 tokens that the model answers greedily after full prefill:
mean KL(full ‖ composed), how often both have the same most likely token (top-1), and whether the whole answer is the same
text. Time is processor time from ids to the logits of the first answer token, as a ratio to full prefill by the same forward
code. Intervals are bootstrapped over questions. A share of r recomputes at most r of all token-layers of the memories.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import torch
import transformers
from tests.steps import done

from memos_drivers.activation.compose import Chunk, Composed, capture, capture_prefix, changed, compose, lay, repair
from memos_drivers.activation.forward import Stack, blank, embedded, logits_of, places, prefill, step, taken_apart
from memos_drivers.lm.past import Segment
from memos_drivers.lm.tokens import TokenLayout

T = TypeVar("T")
Given = ParamSpec("Given")
QUESTIONS: Final = Path(__file__).with_name("kv_questions.json")
ASKED: Final = 10
"""Memories of a world that requests hold; those after them are neighbours only."""
ANSWER: Final = 20
FEW: Final = (3, 6)
MANY: Final = (7, 8)


@dataclass
class World:
    """One world's captures: behind two neighbours each, and behind four, which is the mean of two such contexts."""

    two: list[Chunk]
    four: list[Chunk]


@dataclass
class Asked:
    """What full prefill says to a request, and how long that took."""

    rest: list[int]
    answer: list[int]
    logs: torch.Tensor
    seconds: float


@dataclass
class Row:
    """One way's measurements, one entry a question."""

    kl: list[float] = field(default_factory=list)
    top1: list[float] = field(default_factory=list)
    same: list[float] = field(default_factory=list)
    time: list[float] = field(default_factory=list)


@dataclass
class Measured:
    """What was measured: rows, and for each question how many memories, tokens and seconds of full prefill."""

    few: dict[str, Row] = field(default_factory=dict)
    many: dict[str, Row] = field(default_factory=dict)
    memories: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    captures: dict[str, list[float]] = field(default_factory=dict)
    """Seconds for the same memory, once a world, by what stands before it."""
    token_bytes: int = 0


Way = Callable[[torch.nn.Module, Segment, World, list[int], list[int]], Composed]


def two(world: World) -> list[Chunk]:
    return world.two


def four(world: World) -> list[Chunk]:
    return world.four


def recipe(share: float, take: Callable[[World], list[Chunk]]) -> Way:
    """`compose`, with the chunks that `take` takes or changes."""
    return lambda model, prefix, world, memories, rest: done(
        compose(model, prefix, [take(world)[n] for n in memories], rest, share)
    )


def alone(chunks: list[Chunk]) -> list[Chunk]:
    return [replace(chunk, near=None, score=None) for chunk in chunks]


def unrotated(model: torch.nn.Module, prefix: Segment, world: World, memories: list[int], rest: list[int]) -> Composed:
    """Plain concatenation: keys stay as they were, wherever they now stand."""
    at, chunks = prefix.tokens, list[Chunk]()
    for chunk in alone([world.two[n] for n in memories]):
        chunks.append(replace(chunk, alone=chunk.alone._replace(start=at)))
        at += len(chunk.token_ids)
    return done(compose(model, prefix, chunks, rest, 0))


def heads(share: float, take: Callable[[World], list[Chunk]]) -> Way:
    """Neighbours, and the same number of tokens recomputed at the head of every chunk but the first, in all layers."""

    def way(model: torch.nn.Module, prefix: Segment, world: World, memories: list[int], rest: list[int]) -> Composed:
        stack, chunks = taken_apart(model), [take(world)[n] for n in memories]
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
    "alone, re-rotated | 0": recipe(0, lambda w: alone(w.two)),
    "two neighbours | 0": recipe(0, two),
    "two neighbours, heads of chunks recomputed | 15 %": heads(0.15, two),
    "two neighbours, chosen tokens | 15 %": recipe(0.15, two),
    "four neighbours, chosen tokens | 10 %": recipe(0.10, four),
    "**four neighbours, chosen tokens** | 15 %": recipe(0.15, four),
}
"""Measured on every question; the others on the first `SOME` of each world."""
MORE: Final[dict[str, Way]] = {
    "alone, re-rotated, chosen tokens | 15 %": recipe(0.15, lambda w: alone(w.two)),
    "four neighbours, heads of chunks recomputed | 15 %": heads(0.15, four),
    "four neighbours, chosen tokens | 5 %": recipe(0.05, four),
    "four neighbours, chosen tokens | 20 %": recipe(0.20, four),
    "**four neighbours, chosen tokens**, stored in float16 | 15 %": recipe(0.15, lambda w: as_float16(w.four)),
    "**four neighbours, chosen tokens**, stored in int8 | 15 %": recipe(0.15, lambda w: as_int8(w.four)),
}
SOME: Final = 3
MAIN: Final = "**four neighbours, chosen tokens** | 15 %"
HEADS: Final = "two neighbours, heads of chunks recomputed | 15 %"
MANY_WAYS: Final = ("alone, re-rotated | 0", HEADS, MAIN)


def timed(work: Callable[Given, T], *given: Given.args, **more: Given.kwargs) -> tuple[T, float]:
    begin = time.process_time()
    result = work(*given, **more)
    return result, time.process_time() - begin


def chunk_of(model: torch.nn.Module, prefix_ids: list[int], ids: list[int], neighbours: list[list[int]]) -> Chunk:
    return done(capture(model, prefix_ids, ids, neighbours))


def captured(model: torch.nn.Module, prefix_ids: list[int], memories: list[list[int]], spent: dict[str, list[float]]) -> World:
    """Every memory behind one pair of neighbours and behind another; behind both is the mean, as `capture` makes it."""
    world, pool = World([], []), memories[ASKED:]
    for n, ids in enumerate(memories[:ASKED]):
        around = [pool[(n + k) % len(pool)] for k in range(4)]
        one, other = (chunk_of(model, prefix_ids, ids, pair) for pair in (around[:2], around[2:]))
        world.two.append(one)
        world.four.append(averaged(one, other))
        if n == 0:
            for name, neighbours in (("P alone", []), ("two neighbours", around[:2]), ("four neighbours", around)):
                seconds = timed(chunk_of, model, prefix_ids, ids, neighbours)[1]
                spent.setdefault(name, []).append(seconds)
    return world


def averaged(one: Chunk, other: Chunk) -> Chunk:
    assert one.near and other.near
    keys = tuple((a + b) / 2 for a, b in zip(one.near.keys, other.near.keys, strict=True))
    values = tuple((a + b) / 2 for a, b in zip(one.near.values, other.near.values, strict=True))
    near = Segment(keys, values, one.near.start)
    return replace(one, near=near, score=changed(one.alone, near))


@torch.no_grad()
def ask(stack: Stack, ids: list[int], rest: list[int], ends: set[int]) -> Asked:
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
    return Asked(rest, answer, logs, seconds)


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


def ratio_between(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """The ratio of the means, between its 2.5th and 97.5th percentile over samples of the same questions."""
    chance, pairs = random.Random(7), list(zip(ours, theirs, strict=True))
    samples = (chance.choices(pairs, k=len(pairs)) for _ in range(2000))
    ratios = sorted(sum(a for a, _ in sample) / sum(b for _, b in sample) for sample in samples)
    return ratios[50], sum(ours) / sum(theirs), ratios[1949]


def lines(rows: dict[str, Row]) -> Iterator[str]:
    yield "| how | share | questions | KL | top-1 % | same text % | time % |"
    yield "|---|---|---|---|---|---|---|"
    for name, row in rows.items():
        kl, *others = (between(v) for v in (row.kl, row.top1, row.same, row.time))
        cells = [
            f"{kl[0]:.4f} ({kl[1]:.4f}–{kl[2]:.4f})",
            *(f"{100 * m:.1f} ({100 * a:.1f}–{100 * b:.1f})" for m, a, b in others),
        ]
        yield f"| {name} | {len(row.kl)} | {' | '.join(cells)} |"


def measure(model: torch.nn.Module, layout: TokenLayout, ends: set[int], told: Any, seed: int, many: int) -> Measured:
    """All ways on a world's questions; also, for its first `many` questions, with more memories."""
    result, stack, prefix_ids = Measured(), taken_apart(model), layout.prefix(None)
    prefix = done(capture_prefix(model, prefix_ids))
    memories = [layout.memory(text) for text in told["memories"]]
    world = captured(model, prefix_ids, memories, result.captures)
    for s in (world.four[0].alone, world.four[0].near):
        assert s
        result.token_bytes += sum(t.nbytes for t in (*s.keys, *s.values)) // s.tokens
    chance = random.Random(seed)
    for nth, question in enumerate(told["questions"]):
        rest = layout.rest([{"role": "user", "content": question["text"]}])
        for rows, (least, most) in ((result.few, FEW), (result.many, MANY)):
            others = [n for n in range(ASKED) if n != question["memory"]]
            picked = [question["memory"], *chance.sample(others, chance.randint(least, most) - 1)]
            chance.shuffle(picked)
            if rows is result.many and nth >= many:
                continue
            ids = list(itertools.chain(prefix_ids, *(memories[n] for n in picked)))
            asked = ask(stack, ids, rest, ends)
            if rows is result.few:
                result.memories.append(len(picked))
                result.tokens.append(len(ids) + len(rest))
                result.seconds.append(asked.seconds)
            ways = {**WAYS, **(MORE if nth < SOME else {})} if rows is result.few else {name: WAYS[name] for name in MANY_WAYS}
            for name, way in ways.items():
                composed, seconds = timed(way, model, prefix, world, picked, rest)
                row = rows.setdefault(name, Row())
                row.time.append(seconds / asked.seconds)
                compare(stack, asked, composed, row)
    return result


def joined(parts: Sequence[Measured]) -> Measured:
    whole = Measured(token_bytes=parts[0].token_bytes)
    for part in parts:
        for rows, more in ((whole.few, part.few), (whole.many, part.many)):
            for name, row in more.items():
                into = rows.setdefault(name, Row())
                for old, new in ((into.kl, row.kl), (into.top1, row.top1), (into.same, row.same), (into.time, row.time)):
                    old.extend(new)
        whole.memories += part.memories
        whole.tokens += part.tokens
        whole.seconds += part.seconds
        for name, seconds in part.captures.items():
            whole.captures.setdefault(name, []).extend(seconds)
    return whole


def report(got: Measured) -> Iterator[str]:
    mean = statistics.fmean
    yield f"{len(got.seconds)} questions, 3–6 memories, {mean(got.tokens):.0f} tokens; full prefill {mean(got.seconds):.2f} s."
    yield f"{cpu()}; one thread, float32, torch {torch.__version__}."
    yield ""
    yield from lines(got.few)
    if got.many:
        yield "\n7–8 memories:\n"
        yield from lines(got.many)
    low, ours, high = ratio_between(got.few[MAIN].kl, got.few[HEADS].kl)
    yield f"\nKL of chosen tokens with four neighbours / of heads with two: {ours:.2f} ({low:.2f}–{high:.2f})."
    each = zip(got.seconds, got.few[MAIN].time, got.memories, strict=True)
    saved = mean(seconds * (1 - share) / memories for seconds, share, memories in each)
    yield f"A memory composed, not prefilled, saves {saved:.2f} s; both versions take {got.token_bytes / 1024:.0f} KiB a token."
    for name, seconds in got.captures.items():
        use = math.ceil(mean(seconds) / saved)
        yield f"Capture behind {name}: {mean(seconds):.2f} s a memory, which pays from use {use} on."


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


def work(where: Path, number: int, many: int) -> Measured:
    """One world, in a process of its own."""
    torch.set_num_threads(1)
    return measure(*load(where), json.loads(QUESTIONS.read_text())["worlds"][number], number, many)


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--model", type=Path, required=True, help="a folder with a Llama-like chat model")
    words.add_argument("--worlds", type=int, default=None, help="only so many worlds")
    words.add_argument("--many", type=int, default=1, help="questions of each world that are also asked with 7–8 memories")
    words.add_argument("--processes", type=int, default=1, help="worlds that are measured at the same time")
    words.add_argument("--out", type=Path, help="write the tables here, again after every world")
    given = words.parse_args()
    count = len(json.loads(QUESTIONS.read_text())["worlds"][: given.worlds])
    parts, text = dict[int, Measured](), ""
    with ProcessPoolExecutor(given.processes, multiprocessing.get_context("spawn")) as pool:
        jobs = {pool.submit(work, given.model, number, given.many): number for number in range(count)}
        for job in as_completed(jobs):
            parts[jobs[job]] = job.result()
            text = "\n".join(report(joined([parts[number] for number in sorted(parts)]))) + "\n"
            print(f"{len(parts)} of {count} worlds", file=sys.stderr, flush=True)
            if given.out:
                given.out.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
