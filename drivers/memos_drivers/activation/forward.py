"""A forward pass over chosen tokens at chosen positions, against keys and values that may be written over.

The pass is that of the Llama family of Hugging Face (Llama, Mistral, Qwen2, Qwen3, SmolLM2), built of the model's own modules,
so adapters and quantised linear layers are in it. What is different: the tokens need not be consecutive, and a layer first
writes their keys and values into a whole request's tensors and then attends over these; a token sees every position up to its
own. `supported` refuses all other models; sliding windows among them.

The whole request's tensors are a `Segment` from position 0 (`blank` makes one, zeroed: a position that is masked out must
still be a number). `prefill` computes consecutive tokens, a block at a time, and yields between blocks, so that other work may
run meanwhile.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Final, cast

import torch
from torch import nn
from torch.nn import functional

from memos_drivers.activation.rotate import Rotary, rotate
from memos_drivers.lm.past import Segment
from memos_syscalls.errors import MemModel

FAMILIES: Final = frozenset({"llama", "mistral", "qwen2", "qwen3"})
BLOCK: Final = 256
"""Tokens that run without a pause."""


@dataclass(frozen=True)
class Layer:
    """One decoder layer's modules."""

    norm_in: nn.Module
    q: nn.Module
    k: nn.Module
    v: nn.Module
    o: nn.Module
    q_norm: nn.Module | None
    k_norm: nn.Module | None
    norm_mlp: nn.Module
    mlp: nn.Module


@dataclass(frozen=True)
class Stack:
    """A model taken apart: embedding, layers, last norm, head."""

    embed: nn.Module
    layers: tuple[Layer, ...]
    norm: nn.Module
    head: nn.Module
    rotary: Rotary
    kv_heads: int
    head_dim: int
    scale: float
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True)
class Places:
    """Where a pass's tokens stand: positions, the rotary table there, and what each may see of the first `length` positions."""

    positions: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    mask: torch.Tensor

    @property
    def length(self) -> int:
        return int(self.mask.shape[-1])

    def without(self, first: int) -> Places:
        """The same without the first so many tokens."""
        return Places(self.positions[first:], self.cos[first:], self.sin[first:], self.mask[first:])


def supported(model: nn.Module) -> None:
    """Raise `MemModel` unless this module can run the model."""
    taken_apart(model)


def taken_apart(model: nn.Module) -> Stack:
    """The model's parts, or `MemModel` with what does not fit."""
    unwrapped = getattr(model, "get_base_model", None)
    base = cast(nn.Module, unwrapped()) if callable(unwrapped) else model
    config = getattr(base, "config", None)
    family = str(getattr(config, "model_type", type(base).__name__))
    if family not in FAMILIES:
        raise MemModel(f"caches of a {family} model cannot be composed", f"Use one of: {', '.join(sorted(FAMILIES))}.")
    kinds = cast(Sequence[str], getattr(config, "layer_types", None) or ())
    if any(kind != "full_attention" for kind in kinds) or (not kinds and getattr(config, "sliding_window", None) is not None):
        raise MemModel(
            "caches of a model with a sliding window cannot be composed", "Turn the window off, or use another model."
        )
    inner = _part(base, "model")
    blocks = [_layer(block) for block in cast(nn.ModuleList, _part(inner, "layers"))]
    first = _part(cast(nn.ModuleList, _part(inner, "layers"))[0], "self_attn")
    head_dim = int(cast(int, first.head_dim))
    embed = _part(inner, "embed_tokens")
    weight = cast(torch.Tensor, embed.weight)
    return Stack(
        embed=embed,
        layers=tuple(blocks),
        norm=_part(inner, "norm"),
        head=_part(base, "lm_head"),
        rotary=Rotary.of(_part(inner, "rotary_emb"), head_dim),
        kv_heads=int(cast(int, getattr(config, "num_key_value_heads", 0))),
        head_dim=head_dim,
        scale=float(cast(float, first.scaling)),
        dtype=weight.dtype,
        device=weight.device,
    )


def _part(module: nn.Module, name: str) -> nn.Module:
    part = getattr(module, name, None)
    if not isinstance(part, nn.Module):
        raise MemModel(f"the model has no part named {name}")
    return part


def _layer(block: nn.Module) -> Layer:
    attention = _part(block, "self_attn")
    return Layer(
        norm_in=_part(block, "input_layernorm"),
        q=_part(attention, "q_proj"),
        k=_part(attention, "k_proj"),
        v=_part(attention, "v_proj"),
        o=_part(attention, "o_proj"),
        q_norm=cast("nn.Module | None", getattr(attention, "q_norm", None)),
        k_norm=cast("nn.Module | None", getattr(attention, "k_norm", None)),
        norm_mlp=_part(block, "post_attention_layernorm"),
        mlp=_part(block, "mlp"),
    )


def blank(stack: Stack, tokens: int) -> Segment:
    """Zeroed keys and values for a request of `tokens` positions."""
    shape = (1, stack.kv_heads, tokens, stack.head_dim)

    def zeros() -> tuple[torch.Tensor, ...]:
        return tuple(torch.zeros(shape, dtype=stack.dtype, device=stack.device) for _ in stack.layers)

    return Segment(zeros(), zeros(), 0)


def cut(segment: Segment, begin: int, end: int) -> Segment:
    """A view of the tokens `begin` … `end` - 1 of a segment, counted from its first."""
    keys = tuple(k[:, :, begin:end] for k in segment.keys)
    return Segment(keys, tuple(v[:, :, begin:end] for v in segment.values), segment.start + begin)


def embedded(stack: Stack, ids: Sequence[int]) -> torch.Tensor:
    """[1, tokens, width]: what the first layer sees."""
    return cast(torch.Tensor, stack.embed(torch.tensor([list(ids)], dtype=torch.long, device=stack.device)))


def logits_of(stack: Stack, hidden: torch.Tensor) -> torch.Tensor:
    """Logits for what comes after each of the given last-layer states."""
    return cast(torch.Tensor, stack.head(stack.norm(hidden)))


def places(stack: Stack, positions: torch.Tensor, length: int) -> Places:
    """Places of tokens that attend over the first `length` positions."""
    where = positions.to(stack.device)
    cos, sin = stack.rotary.table(where, stack.dtype)
    later = torch.arange(length, device=stack.device)[None] > where[:, None]
    mask = torch.zeros(later.shape, dtype=stack.dtype, device=stack.device).masked_fill_(later, float("-inf"))
    return Places(where, cos, sin, mask)


def written(
    stack: Stack, number: int, hidden: torch.Tensor, at: Places, cache: Segment
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Write the tokens' keys and values of a layer into the cache; their queries, and all keys and values up to `at.length`."""
    layer = stack.layers[number]
    normed = layer.norm_in(hidden)
    shape = (1, hidden.shape[1], -1, stack.head_dim)
    q, k, v = layer.q(normed).view(shape), layer.k(normed).view(shape), layer.v(normed).view(shape)
    if layer.q_norm is not None and layer.k_norm is not None:
        q, k = layer.q_norm(q), layer.k_norm(k)
    query = rotate(q.transpose(1, 2), at.cos, at.sin)
    keys, values = cache.keys[number], cache.values[number]
    keys.index_copy_(2, at.positions, rotate(k.transpose(1, 2), at.cos, at.sin))
    values.index_copy_(2, at.positions, v.transpose(1, 2))
    return query, keys[:, :, : at.length], values[:, :, : at.length]


def finished(stack: Stack, number: int, hidden: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """The layer's output, from its input and what its heads [1, heads, tokens, D] gathered."""
    layer = stack.layers[number]
    after = hidden + layer.o(seen.transpose(1, 2).reshape(1, hidden.shape[1], -1))
    return cast(torch.Tensor, after + layer.mlp(layer.norm_mlp(after)))


def step(stack: Stack, number: int, hidden: torch.Tensor, at: Places, cache: Segment) -> torch.Tensor:
    """One layer of a pass."""
    query, keys, values = written(stack, number, hidden, at, cache)
    seen = functional.scaled_dot_product_attention(query, keys, values, attn_mask=at.mask, scale=stack.scale, enable_gqa=True)
    return finished(stack, number, hidden, seen)


@torch.no_grad()
def prefill(stack: Stack, ids: Sequence[int], cache: Segment, begin: int) -> Generator[None, None, torch.Tensor]:
    """Compute consecutive tokens from position `begin` on, into the cache; the last block's states [1, tokens, width]."""
    hidden = torch.empty(0)
    for offset in range(0, len(ids), BLOCK):
        block = ids[offset : offset + BLOCK]
        first = begin + offset
        at = places(stack, torch.arange(first, first + len(block)), first + len(block))
        hidden = embedded(stack, block)
        for number in range(len(stack.layers)):
            hidden = step(stack, number, hidden, at, cache)
        yield
    return hidden
