"""One loaded model at work: prefill, capture, attach, compose, decode. Long work is a generator that yields between steps.

A request is P ⧺ M ⧺ rest (lm/tokens.py). Its parts are texts, which are prefilled, and caches, which are continued from:

- one cache directly behind P, then texts: the cache is used as it is (`attached`), and what follows is prefilled
- several caches, or one that stands elsewhere: they are composed (compose.py), a share of their tokens computed again
- no cache: one forward over all ids, block by block

A cache is used only if everything it depends on is the same here: fingerprint, adapters, dtype, RoPE, prefix ids, and the
token ids of its texts, compared one by one.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import torch

from memos_drivers.activation.compose import Chunk, Text, capture, compose, merge
from memos_drivers.activation.forward import cut
from memos_drivers.activation.forward import supported as composable
from memos_drivers.activation.kv import Packed, Payload, pack
from memos_drivers.lm.fingerprint import adapters, rope_digest
from memos_drivers.lm.models import Loaded
from memos_drivers.lm.past import Segment, past, segment_of, shape_of, supported
from memos_drivers.lm.payload import FORMAT, STORED
from memos_drivers.lm.sampling import Options, Sampler, Writer
from memos_drivers.lm.tokens import TokenLayout
from memos_drivers.parametric.adapter import Adapter, applied
from memos_syscalls.errors import MemError, MemInvalid, MemIO, MemModel, MemTooLarge

BLOCK: Final = 512
"""Tokens that run without a pause: others get their turn between blocks, and half of what a block attends to within itself is
masked out again."""
ROOM: Final = 256
"""Tokens of an answer that a cache has room for before it grows."""
PREFIXES_MAX: Final = 64
PREFIX_BYTES_MAX: Final = 512 * 2**20
"""Of prefixes that are kept: a system message may be as long as the model reads."""
Progress = Callable[[float, str], None]
T = TypeVar("T")


class Part(NamedTuple):
    """One part of M. `payload` is None for texts, and for caches that are no use."""

    at: int
    ids: list[int]
    how: str
    payload: Payload | None


class Begun(NamedTuple):
    """A request up to its first token: logits behind the last one, the cache to go on with, what was reused."""

    logits: torch.Tensor
    cache: Any
    tokens: int
    reused: int
    parts: list[Part]


def digest(ids: Sequence[int]) -> str:
    """Of a run of token ids."""
    return hashlib.sha256(b"".join(number.to_bytes(4, "little") for number in ids)).hexdigest()


def mark(adapter: Adapter, weight: float) -> str:
    """An adapter as what depends on it names it: two that act otherwise have other marks."""
    return adapter.digest if weight == 1 else f"{adapter.digest}*{weight!r}"


class Engine:
    """A model and its tokenizer."""

    def __init__(self, loaded: Loaded) -> None:
        self.name = loaded.name
        self.model: Any = loaded.model
        self.tokenizer: Any = loaded.tokenizer
        self.fingerprint = loaded.fingerprint
        supported(self.model.config)
        config = self.model.config.get_text_config(decoder=True)
        self.layout = TokenLayout(self.tokenizer)
        self.device = next(self.model.parameters()).device
        self.dtype: torch.dtype = next(self.model.parameters()).dtype
        self.dtype_name = str(self.dtype).removeprefix("torch.")
        self.rope = rope_digest(self.model)
        self.layers, self.kv_heads, self.head_dim = shape_of(config)
        self.context = int(config.max_position_embeddings)
        self._ends = self._end_tokens()
        self._prefixes: OrderedDict[tuple[str, tuple[str, ...], tuple[int, ...]], Segment] = OrderedDict()
        self.acting: tuple[str, ...] = ()
        """Marks of the adapters that act in the present step, sorted: what is computed now depends on them."""
        none = torch.empty((1, self.kv_heads, 0, self.head_dim), dtype=self.dtype, device=self.device)
        self._nothing = Segment((none,) * self.layers, (none,) * self.layers, 0)

    def _end_tokens(self) -> frozenset[int]:
        found: set[int] = set()
        for source in (getattr(self.model, "generation_config", None), self.model.config):
            ends = getattr(source, "eos_token_id", None)
            found |= set(ends if isinstance(ends, list) else [] if ends is None else [ends])
        if self.tokenizer.eos_token_id is not None:
            found.add(int(self.tokenizer.eos_token_id))
        return frozenset(found)

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name, "fingerprint": self.fingerprint, "dtype": self.dtype_name, "device": str(self.device),
            "layers": self.layers, "context": self.context, "bytes_per_token": self.bytes_per_token,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
        }  # fmt: skip

    @property
    def bytes_per_token(self) -> int:
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype.itemsize

    def under(self, adapters: Sequence[tuple[Adapter, float]], steps: Generator[None, None, T]) -> Generator[None, None, T]:
        """Run steps with adapters acting, and between the steps without: others have their turns there."""
        if not adapters:
            return (yield from steps)
        marks = tuple(sorted(mark(adapter, weight) for adapter, weight in adapters))
        try:
            while True:
                with applied(self.model, adapters):
                    self.acting = marks
                    try:
                        next(steps)
                    except StopIteration as done:
                        return done.value  # type: ignore[no-any-return]
                    finally:
                        self.acting = ()
                yield
        finally:
            steps.close()

    def forget_words(self) -> None:
        """Empty the tokenizer's cache of words that it has seen, and what was computed under adapters."""
        for key in [key for key in list(self._prefixes) if key[1]]:
            self._prefixes.pop(key, None)
        clear = getattr(self.tokenizer.backend_tokenizer.model, "_clear_cache", None)
        if clear is not None:
            clear()

    def marks(self) -> list[str]:
        """Everything that acts now, sorted: adapters of this step, and those that somebody wrapped the model in."""
        return sorted((*self.acting, *adapters(self.model)))

    # -- tokens ------------------------------------------------------------------------------------------------------

    def memory_ids(self, texts: Sequence[str]) -> list[int]:
        return [number for text in texts for number in self.layout.memory(text)]

    def sizes(self, system: str | None, texts: Sequence[str], stored: str | None) -> dict[str, Any]:
        """What a capture of these texts would depend on."""
        return self._sizes(*self._tokens(system, texts), stored)

    def _tokens(self, system: str | None, texts: Sequence[str]) -> tuple[list[int], list[int]]:
        """P and M of a capture."""
        prefix, ids = self.layout.prefix(system), self.memory_ids(texts)
        self._fits(len(prefix) + len(ids))
        if not ids:
            raise MemInvalid("the memory has no tokens")
        return prefix, ids

    def _sizes(self, prefix: Sequence[int], ids: Sequence[int], stored: str | None) -> dict[str, Any]:
        return {
            "model": self.name, "fingerprint": self.fingerprint, "adapters": self.marks(),
            "dtype": self.dtype_name, "stored": stored or self.dtype_name, "rope": self.rope, "prefix": digest(prefix),
            "start": len(prefix), "tokens": len(ids), "digest": digest(ids),
        }  # fmt: skip

    def _fits(self, tokens: int) -> None:
        if tokens > self.context:
            raise MemTooLarge(f"{tokens} tokens; model {self.name} reads at most {self.context}", "Attach fewer memories.")

    # -- forward -----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _forward(self, ids: Sequence[int], cache: Any, at: int) -> torch.Tensor:
        """Logits [vocabulary] behind the last of these ids, which stand at positions at, at + 1, …"""
        batch = torch.tensor([list(ids)], device=self.device)
        places = torch.arange(at, at + len(ids), device=self.device)
        out = self.model(input_ids=batch, past_key_values=cache, position_ids=places[None], use_cache=True, logits_to_keep=1)
        logits: torch.Tensor = out.logits[0, -1]
        return logits

    def _room(self, tokens: int) -> Any:
        """An empty cache that takes so many tokens without growing."""
        return past([self._nothing], room=tokens)

    def prefill(
        self, ids: Sequence[int], cache: Any, at: int, progress: Progress | None = None
    ) -> Generator[None, None, torch.Tensor]:
        """Run ids through the model, block by block; returns the logits behind the last."""
        logits = torch.empty(0)
        for begin in range(0, len(ids), BLOCK):
            logits = self._forward(ids[begin : begin + BLOCK], cache, at + begin)
            if progress is not None:
                progress((begin + BLOCK) / len(ids), "prefilling")
            yield
        return logits

    def prefix(self, tenant: str, system: str | None) -> Generator[None, None, tuple[list[int], Segment]]:
        """P and its keys and values, computed once for each tenant."""
        ids = self.layout.prefix(system)
        key = (tenant, self.acting, tuple(ids))
        if (known := self._prefixes.get(key)) is not None:
            self._prefixes.move_to_end(key)
            return ids, known
        made = self._nothing
        if ids:
            cache = self._room(len(ids))
            yield from self.prefill(ids, cache, 0)
            made = segment_of(cache, 0, len(ids))
        self._prefixes[key] = made
        while len(self._prefixes) > PREFIXES_MAX or self.prefix_bytes > PREFIX_BYTES_MAX:
            self._prefixes.popitem(last=False)
        return ids, made

    @property
    def prefix_bytes(self) -> int:
        return sum(one.tokens * self.bytes_per_token for one in list(self._prefixes.values()))

    # -- capture -----------------------------------------------------------------------------------------------------

    def capture(
        self, system: str | None, texts: Sequence[str], neighbours: Sequence[str], stored: str | None, progress: Progress
    ) -> Generator[None, None, tuple[dict[str, Any], Packed]]:
        """Prefill texts and keep their slice of the cache."""
        prefix, ids = self._tokens(system, texts)
        sizes = self._sizes(prefix, ids, stored)
        if sizes["stored"] not in STORED:
            raise MemInvalid(f"a cache cannot be stored as {sizes['stored']}")
        began = time.perf_counter()
        if neighbours:
            composable(self.model)
            before = [self.layout.memory(text) for text in neighbours]
            self._fits(len(prefix) + len(ids) + sum(map(len, before)))
            progress(0.1, "prefilling behind its neighbours")
            chunk = yield from capture(self.model, prefix, ids, before)
        else:
            cache = self._room(len(prefix) + len(ids))
            yield from self.prefill([*prefix, *ids], cache, 0, lambda share, said: progress(0.9 * share, said))
            whole = Segment(tuple(one.keys for one in cache.layers), tuple(one.values for one in cache.layers), 0)
            chunk = Chunk(tuple(ids), cut(whole, len(prefix), len(prefix) + len(ids)), None, None)
        sizes["seconds"] = time.perf_counter() - began
        return sizes, self._packed(chunk, prefix, sizes)

    def _packed(self, chunk: Chunk, prefix: list[int], sizes: dict[str, Any]) -> Packed:
        descriptor = {
            "format": FORMAT, "model": self.fingerprint, "adapters": sizes["adapters"], "dtype": self.dtype_name,
            "stored": sizes["stored"], "layers": self.layers, "kv_heads": self.kv_heads, "head_dim": self.head_dim,
            "rope": self.rope, "start": len(prefix), "tokens": len(chunk.token_ids),
        }  # fmt: skip
        packed = pack(chunk, prefix, descriptor)
        sizes |= {"bytes": packed.bytes, "tensor_bytes": packed.tensor_bytes, "error": packed.error}
        return packed

    def fuse(
        self, tenant: str, system: str | None, payloads: Sequence[Payload], share: float, stored: str | None
    ) -> Generator[None, None, tuple[dict[str, Any], Packed]]:
        """One cache of several, in their order."""
        composable(self.model)
        began = time.perf_counter()
        prefix, segment = yield from self.prefix(tenant, system)
        chunks = [payload.chunk for payload in payloads]
        self._fits(len(prefix) + sum(len(chunk.token_ids) for chunk in chunks))
        whole = yield from merge(self.model, segment, chunks, share)
        sizes = {**self._sizes(prefix, whole.token_ids, stored), "seconds": time.perf_counter() - began}
        return sizes, self._packed(whole, prefix, sizes)

    # -- use ---------------------------------------------------------------------------------------------------------

    def refusal(self, payload: Payload, prefix: Sequence[int], ids: Sequence[int] | None) -> MemError | None:
        """Why a cache is not this request's; None when it is. `ids` are those of its texts, None where they are not known."""
        said = payload.descriptor
        for name, found, here in (
            ("model", said.get("model"), self.fingerprint), ("adapters", said.get("adapters"), self.marks()),
            ("dtype", said.get("dtype"), self.dtype_name), ("rope", said.get("rope"), self.rope),
            ("layers", (said.get("layers"), said.get("kv_heads"), said.get("head_dim")),
             (self.layers, self.kv_heads, self.head_dim)),
        ):  # fmt: skip
            if found != here:
                return MemModel(f"the cache was made with another {name}: {found}, not {here}", "Migrate the source again.")
        if tuple(prefix) != payload.prefix_ids:
            return MemModel(
                "the cache stands behind another prefix (system message or chat template)",
                'Use the same system message, or migrate again with params={"system": …}.',
            )
        if ids is not None and tuple(ids) != payload.chunk.token_ids:
            return MemModel("the cache holds other tokens than its sources' texts have", "Migrate the source again.")
        return None

    def attach(
        self, tenant: str, messages: Sequence[dict[str, str]], parts: Sequence[Part], share: float
    ) -> Generator[None, None, Begun]:
        """Everything up to the first token."""
        system = messages[0]["content"] if messages[0]["role"] == "system" else None
        rest = self.layout.rest(messages)
        prefix_ids = self.layout.prefix(system)
        total = len(prefix_ids) + sum(len(part.ids) for part in parts) + len(rest)
        self._fits(total + 1)
        caches = sum(part.payload is not None for part in parts)
        if not caches:
            ids = [*prefix_ids, *(number for part in parts for number in part.ids), *rest]
            cache = self._room(total + ROOM)
            logits = yield from self.prefill(ids, cache, 0)
            return Begun(logits, cache, total, 0, list(parts))
        _ids, segment = yield from self.prefix(tenant, system)
        first = parts[0].payload
        if caches == 1 and first is not None:
            done = [parts[0]._replace(how="attached"), *parts[1:]]
            segments = [segment, first.chunk.alone] if segment.tokens else [first.chunk.alone]
            at = segment.tokens + len(parts[0].ids)
            cache = past(segments, room=total - at + ROOM)
            after = [number for part in parts[1:] for number in part.ids]
            logits = yield from self.prefill([*after, *rest], cache, at)
            return Begun(logits, cache, total, at, done)
        composable(self.model)
        laid = [Text(tuple(part.ids)) if part.payload is None else part.payload.chunk for part in parts]
        composed = yield from compose(self.model, segment, laid, rest, share)
        hows = [
            part if part.payload is None else part._replace(how="attached" if number == 0 else "composed")
            for number, part in enumerate(parts)
        ]
        reused = segment.tokens + sum(len(part.ids) for part in parts if part.payload is not None) - composed.recomputed
        return Begun(composed.logits, past([composed.cache], room=ROOM), total, reused, hows)

    def answer(
        self, begun: Begun, options: Options, most: int, stops: Sequence[str], say: Callable[[str], None]
    ) -> Generator[None, None, dict[str, Any]]:
        """Decode until the model stops, a stop text comes, or there are `most` tokens. `say` is called once for each token."""
        sampler, writer = Sampler(options), Writer(self.tokenizer, stops)
        most = min(most, self.context - begun.tokens)
        logits, at, count, finish = begun.logits, begun.tokens, 0, "length"
        first = time.perf_counter()
        while True:
            if bool(torch.isnan(logits).any()):
                raise MemIO(
                    "the model made numbers that are not finite", "Use another dtype (--dtype float32), or another model."
                )
            token = sampler.choose(logits)
            count += 1
            if count == 1:
                first = time.perf_counter()
            if token in self._ends:
                finish = "stop"
                say("")
                break
            say(writer.add(token))
            if writer.stopped or count >= most:
                finish = "stop" if writer.stopped else "length"
                break
            logits = self._forward([token], begun.cache, at)
            at += 1
            yield
        say(writer.end())
        spent = time.perf_counter() - first
        return {
            "text": writer.text, "tokens_out": count, "finish": finish,
            "tokens_per_s": (count - 1) / spent if count > 1 and spent > 0 else 0.0,
        }  # fmt: skip
