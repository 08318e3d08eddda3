"""KV caches of the kernel in your own process: a transformers model goes on behind a memory that it never prefills.

    past = load_past(kernel, cube_id, model=model, tokenizer=tokenizer)
    out = model.generate(**past.inputs("What breed is the dog?"), max_new_tokens=40)

What callers may rely on:

1. A cache is used only where it is right. Another model, dtype, adapter, RoPE setting or prefix, and token ids that differ from
   the sources' texts, raise `MemModel`; a cache that is older than its sources raises `MemStale`. With `version=` that version
   is read as it was, even if its sources have changed since.
2. `inputs` gives a fresh cache each time: generating twice, beam search and writing into a cache's tensors touch neither the
   other calls nor the stored cache. It copies nothing; the first forward copies the cache once, to the model's device.
3. The answer is that of a full prefill of `token_ids` and the suffix, which `inputs` returns in full, so that what looks at
   all ids (repetition penalties, prompt lookup) finds them. `generate` computes only what the cache lacks.

The keys and values before the memory (of the chat template's opening) are computed by your model, once for each prefix. Needs
`pip install 'memos-kernel[torch]'`. This module does not import itself with the rest of the package.

Adapters (`load_adapter`, `save_adapter`, `import_adapter`) are in hf_adapter.py. Load them before caches: a cache is of the
adapters that it was made under.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol
from weakref import WeakKeyDictionary

import torch
from transformers.cache_utils import Cache, DynamicCache

from memos_client.hf_adapter import adapter_payload as adapter_payload
from memos_client.hf_adapter import import_adapter as import_adapter
from memos_client.hf_adapter import load_adapter as load_adapter
from memos_client.hf_adapter import save_adapter as save_adapter
from memos_drivers.lm import payload
from memos_drivers.lm.fingerprint import adapters, fingerprint, rope_digest
from memos_drivers.lm.past import Segment, past, segment_of, shape_of, supported
from memos_drivers.lm.payload import Stored
from memos_drivers.lm.tokens import Message, TokenLayout
from memos_syscalls.errors import MemInvalid, MemModel, MemStale
from memos_syscalls.messages import CubeHeader, MemMapReply, MemReadReply, MemStatReply

ROOM: Final = 256
"""Tokens of an answer that a cache has room for before it grows."""
PREFIXES_MAX: Final = 16
RENEW: Final = "Make the cache again with `mem_migrate`, for the model that you use."

_prefixes: WeakKeyDictionary[Any, OrderedDict[tuple[Any, ...], Segment]] = WeakKeyDictionary()


class Cubes(Protocol):
    """What is needed of a `Kernel`."""

    def mem_stat(self, cube_id: str, *, version: int | None = None) -> MemStatReply: ...
    def mem_map(self, cube_id: str, *, version: int | None = None) -> MemMapReply: ...
    def mem_read(self, cube_id: str, *, version: int | None = None) -> MemReadReply: ...


class Past:
    """A cache that fits the model. `token_ids` are those of everything that it stands for, prefix and memory."""

    def __init__(
        self, header: CubeHeader, layout: TokenLayout, device: Any, prefix: Segment | None, stored: Stored, segment: Segment
    ) -> None:
        self.cube_id = header.cube_id
        self.version = header.version
        self.token_ids = [*stored.prefix_ids, *stored.token_ids]
        self._system: str | None = (header.recipe or {}).get("system")
        self._layout = layout
        self._device = device
        self._segments = [*([prefix] if prefix is not None else []), segment]

    def cache(self, room: int = ROOM) -> Cache:
        """A fresh cache of `token_ids`, with room for so many tokens more before it grows."""
        return past(self._segments, room=room)

    def inputs(self, suffix: str | Sequence[Message]) -> dict[str, Any]:
        """What `model.generate` takes to go on with a question, or with a conversation's messages."""
        ids = torch.tensor([[*self.token_ids, *self._rest(suffix)]], device=self._device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "past_key_values": self.cache()}

    def forward_inputs(self, suffix: str | Sequence[Message]) -> dict[str, Any]:
        """What a call of the model itself takes: the ids behind the cache, and their positions."""
        rest = self._rest(suffix)
        start, end = len(self.token_ids), len(self.token_ids) + len(rest)
        return {
            "input_ids": torch.tensor([rest], device=self._device),
            "attention_mask": torch.ones((1, end), dtype=torch.long, device=self._device),
            "position_ids": torch.arange(start, end, device=self._device)[None],
            "past_key_values": self.cache(),
        }

    def _rest(self, suffix: str | Sequence[Message]) -> list[int]:
        messages: Sequence[Message] = [{"role": "user", "content": suffix}] if isinstance(suffix, str) else suffix
        if messages and messages[0].get("role") == "system" and messages[0].get("content") != self._system:
            raise MemModel(
                f"the cache of cube {self.cube_id} stands behind another system message",
                "Leave the system message out, or capture the memory behind it: `params={'system': …}`.",
            )
        rest = self._layout.rest(messages)
        if not rest:
            # Transformers would take "no new ids" for "all of them".
            raise MemInvalid("there is nothing to go on with: the suffix has no tokens")
        return rest


def load_past(kernel: Cubes, cube: str, *, model: Any, tokenizer: Any, version: int | None = None) -> Past:
    """The KV cache of this cube, checked against the model, its tokenizer and the cache's sources."""
    header = kernel.mem_stat(cube, version=version).header
    if header.form != "activation":
        raise MemInvalid(f"cube {cube} is {header.form}, not a KV cache", "Make one of it with `mem_migrate`.")
    if (header.recipe or {}).get("method") == "compose":
        raise MemInvalid(f"cube {cube} refers to caches and holds none", "Load one of them, or fuse them: `strategy='kv'`.")
    if header.stale and version is None:
        raise MemStale(f"the cache of cube {cube} is older than its sources", RENEW)
    supported(model.config)
    layout = TokenLayout(tokenizer)
    stored, segment = _read(kernel.mem_map(cube, version=header.version), model)
    print_of_model = fingerprint(model, tokenizer)
    active = adapters(model)
    _check(cube, model, stored.descriptor, print_of_model, active)
    if stored.prefix_ids != layout.prefix((header.recipe or {}).get("system")):
        raise MemModel(f"the cache of cube {cube} stands behind another prefix than the chat template's", RENEW)
    if stored.token_ids != [number for text in _texts(kernel, header) for number in layout.memory(text)]:
        raise MemModel(f"the cache of cube {cube} holds other token ids than its sources' texts have", RENEW)
    prefix = _prefix(model, stored.prefix_ids, (print_of_model, active))
    return Past(header, layout, next(model.parameters()).device, prefix, stored, segment)


def _check(cube: str, model: Any, descriptor: Mapping[str, Any], print_of_model: str, active: Sequence[str]) -> None:
    """Refuses a cache that depends on anything that is otherwise here."""
    layers, heads, size = shape_of(model.config)
    here: dict[str, tuple[str, Any]] = {
        "model": ("another model or tokenizer", print_of_model),
        "dtype": ("another dtype", str(next(model.parameters()).dtype).removeprefix("torch.")),
        "adapters": ("other adapters", sorted(active)),
        "rope": ("another RoPE setting", rope_digest(model)),
        "layers": ("another number of layers", layers),
        "kv_heads": ("another number of KV heads", heads),
        "head_dim": ("another head size", size),
    }
    for field, (what, wanted) in here.items():
        found = descriptor.get(field)
        if (sorted(map(str, found)) if field == "adapters" and isinstance(found, list) else found) != wanted:
            raise MemModel(f"the cache of cube {cube} was made with {what}: {found}, and here is {wanted}", RENEW)


def _texts(kernel: Cubes, header: CubeHeader) -> list[str]:
    """The texts that a cache was made of, in order, at the versions that it was made of."""
    recipe = header.recipe or {}
    parents = [(str(one["cube_id"]), int(one["version"])) for one in header.parents if one["role"] == "content"]
    if recipe.get("method") in ("fuse", "compose"):
        return [text for cube, at in parents for text in _texts(kernel, kernel.mem_stat(cube, version=at).header)]
    texts: list[str] = []
    # Behind the texts themselves stand the compositions that led to them.
    for cube, at in parents[: int(recipe.get("leaves", len(parents)))]:
        content = kernel.mem_read(cube, version=at).content
        if not isinstance(content, str):
            raise MemModel(f"cube {cube}, a source of the cache, holds no text", RENEW)
        texts.append(content)
    return texts


def _read(reply: MemMapReply, model: Any) -> tuple[Stored, Segment]:
    """The payload in a descriptor, which is closed, and its keys and values, in a private mapping of the same memory. What
    has to be dequantised goes to the model's device and dtype once."""
    try:
        # Not through the reply's layout: what is used is what these very bytes say, checked.
        stored = payload.read(reply.fd, reply.bytes)
        first = next(model.parameters())
        packed = stored.descriptor["stored"] == "int8"
        return stored, stored.segment(device=first.device, dtype=first.dtype) if packed else stored.segment()
    except payload.NOT_A_PAYLOAD as error:
        raise MemModel(f"the payload of cube {reply.cube_id} is no KV cache: {error!r}", RENEW) from error
    except OSError as error:
        raise MemModel(f"the payload of cube {reply.cube_id} cannot be mapped: {error}", RENEW) from error
    finally:
        os.close(reply.fd)


def _prefix(model: Any, ids: Sequence[int], state: tuple[Any, ...]) -> Segment | None:
    """Keys and values of the prefix, computed once for each state of the model."""
    if not ids:
        return None
    kept = _prefixes.setdefault(model, OrderedDict())
    key = (*state, str(next(model.parameters()).device), tuple(ids))
    if key not in kept:
        cache, training = DynamicCache(), model.training
        model.eval()
        try:
            with torch.no_grad():
                model(input_ids=torch.tensor([list(ids)], device=next(model.parameters()).device), past_key_values=cache)
        finally:
            model.train(training)
        kept[key] = segment_of(cache, 0, len(ids))
        while len(kept) > PREFIXES_MAX:
            kept.popitem(last=False)
    kept.move_to_end(key)
    return kept[key]
