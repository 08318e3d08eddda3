"""Composition of KV caches: memories captured one by one, put together in any order, and repaired where it matters.

A memory is captured as `Chunk`: its keys and values behind the prefix P alone, and, if there are neighbours (other memories of
its namespace), behind P and these, of which only the memory's own slice is kept. The second version knows what the first
cannot: how its tokens read when something real stands before them. Neighbours are taken two by two; each two are a context
of their own, and `near` is the mean over contexts, in which what is peculiar to one of them counts less. Per token, `score`
says how much all that changed it.

`compose` puts P, parts and the rest of a request into one cache:

1. The first chunk directly behind P uses its `alone` version, which is exact there. Every other chunk uses its `near`
   version, if it has one. Keys are rotated to where they now stand.
2. The rest (the question) runs through the first two thirds of the layers over that cache. What it attends to in the second
   third, times the score, says which tokens are worth recomputing.
3. One pass computes the chosen tokens, all `Text` parts and the rest together, each layer writing over their keys and values.
   The chosen ones leave after four fifths of the layers: later layers hardly change what the rest reads from them.

`share` bounds step 3: of all token-layers that the chunks' prefill would take, at most that share is computed. So a share of
.15 chooses 18.75 % of the tokens and runs them through 80 % of the layers; with share 1 everything is computed in all layers
and the result is the full prefill's. `merge` does the same for chunks alone, without a question: tokens are chosen by score.

Functions that run a model are generators: they yield between blocks or layers and return their result. Nothing here changes a
chunk; a cache is written only into tensors of its own.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final

import torch

from memos_drivers.activation.forward import (
    BLOCK,
    Places,
    Stack,
    blank,
    cut,
    embedded,
    finished,
    logits_of,
    places,
    prefill,
    step,
    taken_apart,
    written,
)
from memos_drivers.activation.rotate import moved
from memos_drivers.lm.past import Segment
from memos_syscalls.errors import MemInvalid, MemModel

LOOK_FROM: Final = 1 / 3
LOOK_TO: Final = 2 / 3
LEAVE: Final = 0.8
"""Shares of the depth: where the question's attention is read, and after which chosen tokens leave."""
TOGETHER: Final = 2
"""Neighbours that make one context."""
FADE_TOKENS: Final = 100
"""A chunk's first tokens miss their context most: the score falls to a half after so many."""


@dataclass(frozen=True)
class Chunk:
    """A captured memory. `alone` and `near` hold the same tokens; `score` is float32 [tokens] and comes with `near`."""

    token_ids: tuple[int, ...]
    alone: Segment
    near: Segment | None
    score: torch.Tensor | None


@dataclass(frozen=True)
class Text:
    """A part that has no cache: computed in full."""

    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Composed:
    """What `compose` returns: logits [vocabulary] behind the last token, the whole request's cache from position 0, and the
    last layer's states of the rest [1, tokens, width]. `recomputed` of the chunks' tokens ran through `depth` layers.
    """

    logits: torch.Tensor
    cache: Segment
    states: torch.Tensor
    recomputed: int
    depth: int


@dataclass(frozen=True)
class Laid:
    """P and parts in one cache: `text` are positions without keys yet, `open` may be chosen, `score` has their scores."""

    cache: Segment
    ids: torch.Tensor
    memory_end: int
    chunk_tokens: int
    text: torch.Tensor
    open: torch.Tensor
    score: torch.Tensor


@torch.no_grad()
def capture_prefix(model: torch.nn.Module, prefix_ids: Sequence[int]) -> Generator[None, None, Segment]:
    """P's own keys and values."""
    stack = taken_apart(model)
    cache = blank(stack, len(prefix_ids))
    yield from prefill(stack, prefix_ids, cache, 0)
    return cache


@torch.no_grad()
def capture(
    model: torch.nn.Module, prefix_ids: Sequence[int], token_ids: Sequence[int], neighbours: Sequence[Sequence[int]] = ()
) -> Generator[None, None, Chunk]:
    """Prefill a memory behind P, and again behind P and each two of its neighbours, given by their tokens."""
    if not token_ids:
        raise MemInvalid("a memory without tokens has no cache")
    stack = taken_apart(model)
    start, count = len(prefix_ids), len(token_ids)
    contexts = [list(chain.from_iterable(neighbours[n : n + TOGETHER])) for n in range(0, len(neighbours), TOGETHER)]
    cache = blank(stack, start + count + max(map(len, contexts), default=0))
    yield from prefill(stack, [*prefix_ids, *token_ids], cache, 0)
    alone = _own(cut(cache, start, start + count))
    if not contexts:
        return Chunk(tuple(token_ids), alone, None, None)
    keys = [torch.zeros_like(k, dtype=torch.float32) for k in alone.keys]
    values = [torch.zeros_like(v, dtype=torch.float32) for v in alone.values]
    here = torch.arange(start, start + count)
    for before in contexts:
        yield from prefill(stack, [*before, *token_ids], cache, start)
        behind = cut(cache, start + len(before), start + len(before) + count)
        turn = stack.rotary.turn(here + len(before), here)
        for number in range(len(stack.layers)):
            keys[number] += moved(behind.keys[number], turn).float() / len(contexts)
            values[number] += behind.values[number].float() / len(contexts)
    near = Segment(tuple(k.to(stack.dtype) for k in keys), tuple(v.to(stack.dtype) for v in values), start)
    return Chunk(tuple(token_ids), alone, near, changed(alone, near))


def _own(segment: Segment) -> Segment:
    return Segment(tuple(k.clone() for k in segment.keys), tuple(v.clone() for v in segment.values), segment.start)


def changed(alone: Segment, near: Segment) -> torch.Tensor:
    """How far neighbours moved each token's keys and values, over all layers and heads, in units of the usual length there."""
    total = torch.zeros(alone.tokens, device=alone.keys[0].device)
    for one, other in chain(zip(alone.keys, near.keys, strict=True), zip(alone.values, near.values, strict=True)):
        usual = other.float().norm(dim=-1).mean(-1, keepdim=True).clamp_min(1e-12)
        total += ((other.float() - one.float()).norm(dim=-1) / usual).sum((0, 1))
    return total * _fade(alone.tokens, total.device)


def _fade(tokens: int, device: torch.device) -> torch.Tensor:
    return 1 / (1 + torch.arange(tokens, device=device) / FADE_TOKENS)


@torch.no_grad()
def compose(
    model: torch.nn.Module, prefix: Segment, parts: Sequence[Chunk | Text], rest_ids: Sequence[int], share: float
) -> Generator[None, None, Composed]:
    """P, parts and the rest in one cache, and the logits behind it; see the head of this module."""
    if not rest_ids:
        raise MemInvalid("nothing follows the memories: a request needs at least one token of its own")
    stack = taken_apart(model)
    laid = yield from lay(stack, prefix, parts, len(rest_ids), share)
    rest_at = torch.arange(laid.memory_end, laid.memory_end + len(rest_ids), device=stack.device)
    wanted, depth = budget(stack, laid, share)
    chosen = laid.open[:0]
    if wanted == len(laid.open):
        chosen = laid.open
    elif wanted:
        looked = yield from look(stack, laid, rest_ids, rest_at)
        chosen = laid.open[torch.topk(looked * laid.score, wanted).indices]
    states = yield from repair(stack, laid, chosen, depth, rest_ids, rest_at)
    logits = logits_of(stack, states[:, -1:])[0, -1]
    return Composed(logits, laid.cache, states, len(chosen), depth)


@torch.no_grad()
def merge(model: torch.nn.Module, prefix: Segment, chunks: Sequence[Chunk], share: float) -> Generator[None, None, Chunk]:
    """One chunk of several, in their order, repaired by score; it has no `near` version, but keeps the scores."""
    if not chunks:
        raise MemInvalid("nothing to merge")
    stack = taken_apart(model)
    laid = yield from lay(stack, prefix, chunks, 0, share)
    wanted, depth = budget(stack, laid, share)
    chosen = laid.open[torch.topk(laid.score, wanted).indices]
    yield from repair(stack, laid, chosen, depth, (), laid.open[:0])
    score = torch.zeros(laid.chunk_tokens, device=stack.device)
    score[laid.open - prefix.tokens] = laid.score
    ids = tuple(chain.from_iterable(chunk.token_ids for chunk in chunks))
    return Chunk(ids, _own(cut(laid.cache, prefix.tokens, laid.memory_end)), None, score)


def lay(stack: Stack, prefix: Segment, parts: Sequence[Chunk | Text], more: int, share: float) -> Generator[None, None, Laid]:
    """Put P and the parts at their places, keys rotated."""
    if not 0 <= share <= 1:
        raise MemInvalid(f"the share to recompute is {share}; it must be between 0 and 1")
    _fits(stack, prefix, prefix.tokens)
    for part in parts:
        if isinstance(part, Chunk):
            for version in (part.alone, part.near):
                _fits(stack, version, len(part.token_ids))
    memory_end = prefix.tokens + sum(len(part.token_ids) for part in parts)
    here = torch.arange(memory_end, device=stack.device)
    origin = here.clone()
    ids = torch.zeros(memory_end, dtype=torch.long, device=stack.device)
    text = torch.zeros(memory_end, dtype=torch.bool, device=stack.device)
    may = torch.zeros_like(text)
    score = torch.zeros(memory_end, device=stack.device)
    usual = _usual([part.score for part in parts if isinstance(part, Chunk) and part.score is not None])
    runs = [(0, prefix)]
    at = prefix.tokens
    for part in parts:
        count = len(part.token_ids)
        span = slice(at, at + count)
        ids[span] = torch.tensor(part.token_ids, dtype=torch.long, device=stack.device)
        if isinstance(part, Text):
            text[span] = True
        else:
            exact = at == prefix.tokens and part.alone.start == at
            used = part.alone if exact or part.near is None else part.near
            may[span] = not exact
            score[span] = part.score.to(stack.device) if part.score is not None else usual * _fade(count, stack.device)
            origin[span] = torch.arange(used.start, used.start + count, device=stack.device)
            runs.append((at, used))
        at += count
    cache = blank(stack, memory_end + more)
    strangers = (origin != here).nonzero()
    first = int(strangers[0]) if len(strangers) else memory_end
    turn = stack.rotary.turn(origin[first:], here[first:])
    for number in range(len(stack.layers)):
        for begin, segment in runs:
            cache.keys[number][:, :, begin : begin + segment.tokens].copy_(segment.keys[number])
            cache.values[number][:, :, begin : begin + segment.tokens].copy_(segment.values[number])
        if first < memory_end:
            keys = cache.keys[number][:, :, first:memory_end]
            keys.copy_(moved(keys, turn))
        if number % 8 == 7:
            yield
    free = may.nonzero()[:, 0]
    chunk_tokens = memory_end - prefix.tokens - int(text.sum())
    return Laid(cache, ids, memory_end, chunk_tokens, text.nonzero()[:, 0], free, score[free])


def _usual(scores: Sequence[torch.Tensor]) -> float:
    """The score of a chunk's first token, for chunks that have none of their own."""
    return float(torch.cat([s.cpu() for s in scores]).mean()) if scores else 1.0


def _fits(stack: Stack, segment: Segment | None, tokens: int) -> None:
    """Raise unless the segment, if there is one, holds so many tokens of this model."""
    if segment is None:
        return
    wanted = (1, stack.kv_heads, tokens, stack.head_dim)
    shapes = {tuple(t.shape) for t in chain(segment.keys, segment.values)}
    if len(segment.keys) != len(stack.layers) or len(segment.values) != len(stack.layers) or shapes != {wanted}:
        raise MemModel(
            f"a cache of {len(segment.keys)} layers and shapes {sorted(shapes)} is none of {tokens} tokens of the model"
        )


def budget(stack: Stack, laid: Laid, share: float) -> tuple[int, int]:
    """How many tokens to choose, and how many layers to run them through."""
    layers = len(stack.layers)
    token_layers = share * laid.chunk_tokens * layers
    wanted = min(len(laid.open), math.floor(token_layers / round(LEAVE * layers)))
    if not wanted:
        return 0, 0
    return wanted, min(layers, math.floor(token_layers / wanted))


def look(stack: Stack, laid: Laid, rest_ids: Sequence[int], rest_at: torch.Tensor) -> Generator[None, None, torch.Tensor]:
    """How much the rest attends to each open position, over the middle layers. It sees chunks only: texts have no keys yet.

    Of a long rest only the last block is asked, and it does not see what stands before it in the rest.
    """
    asked = rest_ids[-BLOCK:]
    at = places(stack, rest_at[-BLOCK:], laid.memory_end + len(rest_ids))
    at.mask[:, laid.text] = float("-inf")
    at.mask[:, laid.memory_end : laid.memory_end + len(rest_ids) - len(asked)] = float("-inf")
    layers = len(stack.layers)
    first, last = round(LOOK_FROM * layers), max(1, round(LOOK_TO * layers))
    looked = torch.zeros(at.length, device=stack.device)
    hidden = embedded(stack, asked)
    for number in range(last):
        if number < first:
            hidden = step(stack, number, hidden, at, laid.cache)
        else:
            query, keys, values = written(stack, number, hidden, at, laid.cache)
            weights = _weights(stack, query, keys, at)
            looked += weights.float().sum((0, 1, 2, 3))
            seen = (weights @ values[:, :, None]).flatten(1, 2)
            hidden = finished(stack, number, hidden, seen)
        yield
    return looked[laid.open]


def _weights(stack: Stack, query: torch.Tensor, keys: torch.Tensor, at: Places) -> torch.Tensor:
    """Attention weights, [1, KV heads, queries per KV head, tokens, length]."""
    grouped = query.view(1, stack.kv_heads, -1, *query.shape[2:])
    logits = grouped @ keys[:, :, None].transpose(-1, -2) * stack.scale + at.mask
    return torch.softmax(logits, -1, dtype=torch.float32).to(query.dtype)


def repair(
    stack: Stack, laid: Laid, chosen: torch.Tensor, depth: int, rest_ids: Sequence[int], rest_at: torch.Tensor
) -> Generator[None, None, torch.Tensor]:
    """Compute chosen tokens (for `depth` layers), texts and the rest in one pass; the rest's last states."""
    rest = torch.tensor(list(rest_ids), dtype=torch.long, device=stack.device)
    ids = torch.cat((laid.ids[chosen], laid.ids[laid.text], rest))
    at = places(stack, torch.cat((chosen, laid.text, rest_at)), laid.memory_end + len(rest_ids))
    hidden = embedded(stack, ids.tolist())
    for number in range(len(stack.layers)):
        if number == depth and len(chosen):
            hidden, at = hidden[:, len(chosen) :], at.without(len(chosen))
        if not hidden.shape[1]:
            break
        hidden = step(stack, number, hidden, at, laid.cache)
        yield
    return hidden[:, hidden.shape[1] - len(rest_ids) :]
