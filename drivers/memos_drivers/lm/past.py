"""KV tensors of a run of tokens, and the cache that a model continues from.

`past(segments)` makes a transformers cache out of stored segments, one after another:
1. Before the first forward nothing is copied. The cache knows its length and points at the segments.
2. The first forward allocates once, for the segments, its own tokens and `room` more, and copies the segments in. Segments
   on another device or in another float type are moved by that same copy.
3. Later forwards append in place and get views, so that decoding does not copy the whole past for each token.

Segments are only ever read: whoever looks at a layer's tensors, or writes to them, has the cache's own copy. Segments hold
one sequence; a forward of several (beams, samples) gets each of them behind the same past.

`segment_of` copies a slice out of any cache of full attention, and `supported` refuses models whose caches are otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from memos_syscalls.errors import MemInvalid, MemModel

GROWTH: Final = 64
"""Tokens that a full buffer grows by, beside half of what it holds."""
TOKEN_DIM: Final = -2


class Segment(NamedTuple):
    """Keys and values of consecutive tokens, one tensor a layer, each [1, KV heads, tokens, head size].

    Keys are rotated to positions `start`, `start` + 1, …
    """

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]
    start: int

    @property
    def tokens(self) -> int:
        return int(self.keys[0].shape[-2])


class _Run:
    """Keys or values of one layer: parts that are only read, or a buffer that is filled up to `length`.

    - With a buffer there are no parts, and the first `length` tokens of the buffer are the run.
    - Without one, the parts in their order are the run, each row of it the same.
    """

    def __init__(self, parts: Sequence[torch.Tensor], room: int) -> None:
        self.parts = list(parts)
        self.room = room
        self.rows = max((int(part.shape[0]) for part in self.parts), default=1)
        self.length = sum(int(part.shape[TOKEN_DIM]) for part in self.parts)
        self.buffer: torch.Tensor | None = None

    def view(self) -> torch.Tensor | None:
        """The run as one tensor of the cache's own."""
        if self.buffer is None and self.parts:
            self._move(self.parts[0], self.rows, self.length + self.room)
        return None if self.buffer is None else self.buffer.narrow(TOKEN_DIM, 0, self.length)

    def append(self, new: torch.Tensor) -> torch.Tensor:
        tokens, rows = int(new.shape[TOKEN_DIM]), int(new.shape[0])
        end = self.length + tokens
        if torch.is_grad_enabled() and new.requires_grad:
            # What a gradient flows through must not be written over: a new tensor, as transformers' own cache makes.
            return self._joined(new)
        old = self.buffer
        if (
            old is None
            or old.shape[TOKEN_DIM] < end
            or old.shape[0] != rows
            or (old.device, old.dtype) != (new.device, new.dtype)
        ):
            spare = self.room if old is None else GROWTH + self.length // 2
            self._move(new, rows, end + spare)
        assert self.buffer is not None
        self.buffer.narrow(TOKEN_DIM, self.length, tokens).copy_(new)
        self.length = end
        return self.buffer.narrow(TOKEN_DIM, 0, end)

    def crop(self, tokens: int) -> None:
        """Forgets the last `tokens` tokens; their place in the buffer is used again."""
        self.length = max(self.length - tokens, 0)
        if self.buffer is None:
            left, kept = self.length, list[torch.Tensor]()
            for part in self.parts:
                kept.append(part.narrow(TOKEN_DIM, 0, min(left, int(part.shape[TOKEN_DIM]))))
                left -= int(kept[-1].shape[TOKEN_DIM])
            self.parts = kept

    def choose(self, rows: torch.Tensor) -> None:
        """The rows of the given numbers, in that order."""
        old = self.view()
        if old is None:
            return
        assert self.buffer is not None
        new = _empty(old, len(rows), int(self.buffer.shape[TOKEN_DIM]))
        torch.index_select(old.detach(), 0, rows.to(old.device), out=new.narrow(TOKEN_DIM, 0, self.length))
        self.buffer, self.rows = new, len(rows)

    def repeat(self, times: int) -> None:
        """Each row `times` times."""
        if self.buffer is None and self.rows == 1:
            self.rows = times
        else:
            self.choose(torch.arange(self.rows).repeat_interleave(times))

    def _joined(self, new: torch.Tensor) -> torch.Tensor:
        rows = int(new.shape[0])
        whole = [part.to(new.device, new.dtype).expand(rows, *part.shape[1:]) for part in self._parts(rows)]
        self.buffer, self.parts, self.rows = torch.cat([*whole, new], TOKEN_DIM), [], rows
        self.length = int(self.buffer.shape[TOKEN_DIM])
        return self.buffer

    def _parts(self, rows: int) -> list[torch.Tensor]:
        parts = self.parts if self.buffer is None else [self.buffer.narrow(TOKEN_DIM, 0, self.length)]
        if self.rows not in (1, rows):
            raise MemInvalid(f"the cache holds {self.rows} sequences and the input has {rows}")
        return parts

    def _move(self, like: torch.Tensor, rows: int, capacity: int) -> None:
        """Everything into a new buffer of the device and type of `like`."""
        buffer, at = _empty(like, rows, capacity), 0
        for part in self._parts(rows):
            tokens = int(part.shape[TOKEN_DIM])
            buffer.narrow(TOKEN_DIM, at, tokens).copy_(part.detach())
            at += tokens
        self.buffer, self.parts, self.rows = buffer, [], rows


def _empty(like: torch.Tensor, rows: int, capacity: int) -> torch.Tensor:
    # Made outside inference mode: a tensor made inside could not be written to outside.
    with torch.inference_mode(False):
        shape = (rows, int(like.shape[1]), capacity, int(like.shape[-1]))
        return torch.empty(shape, dtype=like.dtype, device=like.device)


class PastLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer of the cache. `keys` and `values` are its own tensors, made when somebody looks."""

    def __init__(self, keys: Sequence[torch.Tensor], values: Sequence[torch.Tensor], room: int) -> None:
        self._room = room
        super().__init__()  # type: ignore[no-untyped-call]
        self._keys, self._values = _Run(keys, room), _Run(values, room)
        self.dtype, self.device = keys[0].dtype, keys[0].device
        self.is_initialized = True
        self._used = False

    @property
    def keys(self) -> torch.Tensor | None:
        return self._keys.view()

    @keys.setter
    def keys(self, tensor: torch.Tensor | None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._keys = _Run([] if tensor is None else [tensor], self._room)

    @property
    def values(self) -> torch.Tensor | None:
        return self._values.view()

    @values.setter
    def values(self, tensor: torch.Tensor | None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._values = _Run([] if tensor is None else [tensor], self._room)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.lazy_initialization(key_states, value_states)
        self._used = True
        return self._keys.append(key_states), self._values.append(value_states)

    def get_seq_length(self) -> int:
        return self._keys.length

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove > 0:
            raise MemInvalid("a cache is cropped by a negative number, the number of tokens to remove")
        self._keys.crop(-tokens_to_remove)
        self._values.crop(-tokens_to_remove)

    def activate_past_recording(self) -> None:
        # Assisted decoding asks for this first of all, runs all ids again behind whatever the cache holds, and answers
        # something else without a word. Plain generation asks for it behind its first forward, which is right.
        if self._keys.length and not self._used:
            raise MemInvalid(
                "assisted decoding does not go on from a cache that is filled already",
                "Generate without prompt_lookup_num_tokens and without an assistant model.",
            )

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self._keys.choose(beam_idx)
        self._values.choose(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._keys.repeat(repeats)
        self._values.repeat(repeats)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        if indices.dtype == torch.bool:
            indices = indices.nonzero().flatten()
        self.reorder_cache(indices)


def past(segments: Sequence[Segment], *, room: int = 0) -> Cache:
    """A cache that holds the segments, which must follow one another from position 0."""
    at = 0
    for segment in segments:
        if segment.start != at:
            raise MemInvalid(f"a segment that was rotated to position {segment.start} stands at position {at}")
        if len(segment.keys) != len(segments[0].keys) or len(segment.values) != len(segment.keys):
            raise MemModel(f"a segment of {len(segment.keys)} layers follows one of {len(segments[0].keys)}")
        at += segment.tokens
    if not segments:
        return DynamicCache()
    layers: list[Any] = [
        PastLayer([one.keys[n] for one in segments], [one.values[n] for one in segments], room)
        for n in range(len(segments[0].keys))
    ]
    cache = DynamicCache()
    cache.layers = layers
    cache.layer_class_to_replicate = None
    return cache


def segment_of(cache: Cache, first: int, last: int) -> Segment:
    """A copy of the tokens `first` … `last` - 1 of a cache that holds one sequence from position 0."""
    if any(type(layer) not in (DynamicLayer, PastLayer) for layer in cache.layers):
        raise MemModel("the cache does not keep every token in plain tensors, so no part of it can be stored")
    if not 0 <= first <= last <= cache.get_seq_length():
        raise MemInvalid(f"tokens {first} to {last} of a cache that holds {cache.get_seq_length()}")
    keys, values = list[torch.Tensor](), list[torch.Tensor]()
    for layer in cache.layers:
        assert isinstance(layer, DynamicLayer)
        for tensor, found in ((layer.keys, keys), (layer.values, values)):
            assert isinstance(tensor, torch.Tensor)
            if tensor.shape[0] != 1:
                raise MemInvalid(f"the cache holds {tensor.shape[0]} sequences, not one")
            found.append(tensor.detach()[:, :, first:last].clone(memory_format=torch.contiguous_format))
    return Segment(tuple(keys), tuple(values), first)


def supported(config: Any) -> None:
    """Refuses a model whose KV cache is not one plain tensor of keys and one of values for each layer and all tokens."""
    text = config.get_text_config(decoder=True)
    what = None
    if getattr(config, "is_encoder_decoder", False):
        what = "is an encoder and a decoder"
    elif getattr(text, "kv_lora_rank", None):
        what = "compresses keys and values (multi-head latent attention)"
    elif "mrope_section" in (getattr(text, "rope_parameters", None) or {}):
        what = "has positions in several dimensions"
    elif (getattr(text, "rope_parameters", None) or {}).get("rope_type") == "longrope":
        # Beyond its original length all keys are of another table, those that were stored before among them.
        what = "turns all keys otherwise once a request is long (longrope)"
    elif getattr(config, "cache_implementation", None) not in (None, "dynamic"):
        what = f"asks for a cache of the kind {config.cache_implementation!r}"
    else:
        layers = DynamicCache(config=config).layers
        other = sorted({type(layer).__name__ for layer in layers if type(layer) is not DynamicLayer})
        if not layers:
            what = "has no attention layers"
        elif any("Sliding" in name for name in other):
            what = "sees only a window of its past (sliding-window attention)"
        elif other:
            what = f"keeps its past in layers of the kinds {', '.join(other)}"
    if what:
        raise MemModel(
            f"the model ({getattr(text, 'model_type', 'unknown')}) {what}; its KV caches cannot be stored",
            "Attach the memories as plaintext, or use a model with full attention in every layer.",
        )


def shape_of(config: Any) -> tuple[int, int, int]:
    """Layers, KV heads and head size of a model's cache."""
    text = config.get_text_config(decoder=True)
    heads = int(getattr(text, "num_key_value_heads", None) or text.num_attention_heads)
    size = int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    return int(text.num_hidden_layers), heads, size
