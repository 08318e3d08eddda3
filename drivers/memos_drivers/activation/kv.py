"""KV payloads: a captured chunk as a safetensors file in sealed memory, and back.

What the file holds, and how it is read, is in lm/payload.py: a caller's own process reads it, too.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from memos_drivers.activation.compose import Chunk
from memos_drivers.lm import payload
from memos_drivers.lm.payload import STORED, TORCH
from memos_syscalls.errors import MemIO, MemModel


class Payload(NamedTuple):
    """What a payload holds, on the device that computes."""

    chunk: Chunk
    prefix_ids: tuple[int, ...]
    descriptor: dict[str, Any]
    bytes: int
    """That it takes on the device."""


class Packed(NamedTuple):
    """A payload in sealed memory. `error` is the largest difference that storing made, in units of the tensors' RMS."""

    fd: int
    bytes: int
    tensor_bytes: int
    error: float


def _named(chunk: Chunk) -> Iterator[tuple[str, torch.Tensor]]:
    for number, (keys, values) in enumerate(zip(chunk.alone.keys, chunk.alone.values, strict=True)):
        yield f"k.{number}", keys[0]
        yield f"v.{number}", values[0]
    if chunk.near is not None:
        for number, (keys, values) in enumerate(zip(chunk.near.keys, chunk.near.values, strict=True)):
            yield f"kn.{number}", keys[0]
            yield f"vn.{number}", values[0]


def _finite(tensor: torch.Tensor) -> bool:
    """Whether every number is: the least and the greatest are, for a NaN would be both."""
    return not tensor.numel() or all(math.isfinite(float(end)) for end in tensor.aminmax())


def pack(chunk: Chunk, prefix_ids: list[int], descriptor: dict[str, Any]) -> Packed:
    """The chunk in a sealed memfd; the caller closes it. Raises `MemIO` for numbers that are not finite."""
    stored = STORED[descriptor["stored"]]
    kept: list[tuple[str, torch.Tensor]] = []
    scales: list[tuple[str, torch.Tensor]] = []
    worst = 0.0
    for name, tensor in _named(chunk):
        if not _finite(tensor):
            raise MemIO(
                f"the model made numbers that are not finite ({name})", "Use another dtype (--dtype float32), or another model."
            )
        if stored == "I8":
            scale = (tensor.float().abs().amax(-1, keepdim=True) / 127).clamp_min(1e-12)
            whole = (tensor.float() / scale).round().clamp(-127, 127).to(torch.int8)
            kept.append((name, whole))
            scales.append((f"{name}.scale", scale))
            back = whole.float() * scale
        else:
            whole = tensor.to(TORCH[stored])
            kept.append((name, whole))
            back = whole.float()
        if whole.dtype != tensor.dtype:
            if not _finite(back):
                raise MemIO(f"{name} does not fit {descriptor['stored']}", "Store it as float32 or bfloat16.")
            rms = float(tensor.float().square().mean().sqrt())
            worst = max(worst, float((back - tensor.float()).abs().max()) / max(rms, 1e-12))
    kept.append(("prefix_ids", torch.tensor(prefix_ids, dtype=torch.int64)))
    kept.append(("token_ids", torch.tensor(chunk.token_ids, dtype=torch.int64)))
    kept += scales
    if chunk.score is not None:
        kept.append(("score", chunk.score.float()))
    fd, layout = payload.sealed("memos-kv", kept, {"memos": json.dumps(descriptor)})
    return Packed(fd, layout.size, sum(tensor.nbytes for _name, tensor in kept), worst)


def unpack(fd: int, device: torch.device, dtype: torch.dtype) -> Payload:
    """The chunk in a descriptor. Raises `MemModel` for what is no KV payload of this format."""
    try:
        stored = payload.read(fd, os.fstat(fd).st_size)
        alone = stored.segment(device=device, dtype=dtype)
        near = stored.segment("kn", "vn", device=device, dtype=dtype) if "kn.0" in stored.tensors else None
    except payload.NOT_A_PAYLOAD as error:
        raise MemModel(f"the payload is no KV cache of this kernel: {error}", "Capture it again.") from error
    score = stored.tensors["score"].to(device) if "score" in stored.tensors else None
    used = [*alone.keys, *alone.values, *(near.keys if near else ()), *(near.values if near else ())]
    chunk = Chunk(tuple(stored.token_ids), alone, near, score)
    return Payload(chunk, tuple(stored.prefix_ids), stored.descriptor, sum(tensor.nbytes for tensor in used))
