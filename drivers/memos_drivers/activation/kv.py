"""KV payloads: a captured chunk as a safetensors file in sealed memory, and back.

The file's `__metadata__` holds one text, `memos`: the descriptor as JSON: format, model fingerprint, adapters' digests, compute
dtype, stored dtype, layers, KV heads, head size, RoPE digest, start, tokens. Tensors, in this order:

- `k.0 v.0 k.1 v.1 …` [KV heads, tokens, head size], stored dtype; keys are rotated to positions start, start + 1, …
- with neighbours also `kn.0 vn.0 …`, the same tokens as they read behind them
- `prefix_ids` I64 [start], `token_ids` I64 [tokens]
- with int8 a scale for each of the first two, `k.0.scale …` F32 [KV heads, tokens, 1]
- with neighbours `score` F32 [tokens]

The prefix's own keys and values are not in it. Tensors are mapped privately: a CPU that computes in the stored dtype reads
them where they lie, without a copy, and nobody's write reaches the payload.
"""

from __future__ import annotations

import fcntl
import json
import math
import mmap
import os
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import torch

from memos_drivers import tensors
from memos_drivers.activation.compose import Chunk
from memos_drivers.lm.past import Segment
from memos_syscalls.errors import MemInvalid, MemIO, MemModel

FORMAT: Final = "memos.kv/1"
STORED: Final = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "I8"}
TORCH: Final = {
    "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I8": torch.int8, "I64": torch.int64,
}  # fmt: skip
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


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
    names = {dtype: name for name, dtype in TORCH.items()}
    head, layout = tensors.plan(
        [(name, names[tensor.dtype], tuple(tensor.shape)) for name, tensor in kept], {"memos": json.dumps(descriptor)}
    )
    fd = os.memfd_create("memos-kv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        # Written, not mapped: a page that is written costs no fault.
        with open(fd, "wb", closefd=False) as file:
            file.write(head)
            for info, (_name, tensor) in zip(layout.tensors, kept, strict=True):
                if info.bytes:
                    plain: Any = tensor.contiguous().view(-1).view(torch.uint8).cpu().numpy()
                    file.seek(info.offset)
                    file.write(plain)
            file.truncate(layout.size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return Packed(fd, layout.size, sum(tensor.nbytes for _name, tensor in kept), worst)


def unpack(fd: int, device: torch.device, dtype: torch.dtype) -> Payload:
    """The chunk in a descriptor. Raises `MemModel` for what is no KV payload of this format."""
    size = os.fstat(fd).st_size
    memory = mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    try:
        layout = tensors.parse(memoryview(memory)[:size], size)
        descriptor = json.loads(layout.metadata["memos"])
        found = {info.name: _tensor(memory, info) for info in layout.tensors}
        return _payload(descriptor, found, device, dtype)
    except (MemInvalid, KeyError, ValueError, TypeError) as error:
        raise MemModel(f"the payload is no KV cache of this kernel: {error}", "Capture it again.") from error


def _tensor(memory: mmap.mmap, info: tensors.TensorInfo) -> torch.Tensor:
    if not info.bytes:
        return torch.empty(info.shape, dtype=TORCH[info.dtype])
    count = info.bytes // TORCH[info.dtype].itemsize
    return torch.frombuffer(memory, dtype=TORCH[info.dtype], count=count, offset=info.offset).view(info.shape)


def _payload(descriptor: dict[str, Any], found: dict[str, torch.Tensor], device: torch.device, dtype: torch.dtype) -> Payload:
    if descriptor["format"] != FORMAT:
        raise ValueError(f"its format is {descriptor['format']!r}")
    layers, start, tokens = int(descriptor["layers"]), int(descriptor["start"]), int(descriptor["tokens"])
    shape = (int(descriptor["kv_heads"]), tokens, int(descriptor["head_dim"]))
    stored = TORCH[STORED[descriptor["stored"]]]

    def segment(key: str, value: str) -> Segment:
        sides: list[tuple[torch.Tensor, ...]] = []
        for side in (key, value):
            whole: list[torch.Tensor] = []
            for number in range(layers):
                tensor = found[f"{side}.{number}"]
                if tuple(tensor.shape) != shape or tensor.dtype != stored:
                    raise ValueError(f"{side}.{number} is {tensor.dtype} {tuple(tensor.shape)}, not {stored} {shape}")
                if stored == torch.int8:
                    scale = found[f"{side}.{number}.scale"]
                    tensor = tensor.to(device, torch.float32) * scale.to(device)
                whole.append(tensor.to(device, dtype).unsqueeze(0))
            sides.append(tuple(whole))
        return Segment(sides[0], sides[1], start)

    ids, prefix = found["token_ids"].tolist(), found["prefix_ids"].tolist()
    if len(ids) != tokens or len(prefix) != start:
        raise ValueError(f"it has {len(ids)} token ids for {tokens} tokens, and {len(prefix)} before them, not {start}")
    near = segment("kn", "vn") if "kn.0" in found else None
    score = found["score"].to(device) if "score" in found else None
    chunk = Chunk(tuple(ids), segment("k", "v"), near, score)
    used = [*chunk.alone.keys, *chunk.alone.values, *(near.keys if near else ()), *(near.values if near else ())]
    return Payload(chunk, tuple(prefix), descriptor, sum(tensor.nbytes for tensor in used))
