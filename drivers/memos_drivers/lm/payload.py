"""A stored KV cache as bytes in memory: what the driver host reads, and a model in the caller's own process.

It is a safetensors file. Its `__metadata__` holds one text, `memos`: the descriptor as JSON: format, model fingerprint,
adapters' digests, compute dtype, stored dtype, layers, KV heads, head size, RoPE digest, start, tokens. Tensors, in this order:

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
import mmap
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import torch

from memos_drivers import tensors
from memos_drivers.lm.past import Segment
from memos_syscalls.errors import MemInvalid

FORMAT: Final = "memos.kv/1"
STORED: Final = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "I8"}
TORCH: Final = {
    "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I8": torch.int8, "I64": torch.int64,
}  # fmt: skip
SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
NOT_A_PAYLOAD: Final = (MemInvalid, KeyError, ValueError, TypeError, AttributeError)
"""What `read` and `Stored.segment` raise for bytes that are no such file, or that contradict themselves."""


class Stored(NamedTuple):
    """A payload, checked for what its descriptor says but for the keys and values, which `segment` checks."""

    descriptor: dict[str, Any]
    tensors: Mapping[str, torch.Tensor]
    prefix_ids: list[int]
    token_ids: list[int]

    def segment(
        self, key: str = "k", value: str = "v", *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> Segment:
        """Keys and values, at their place and in their type unless others are named; int8 becomes numbers again."""
        shape = (int(self.descriptor["kv_heads"]), len(self.token_ids), int(self.descriptor["head_dim"]))
        stored = TORCH[STORED[self.descriptor["stored"]]]
        sides: list[tuple[torch.Tensor, ...]] = []
        for side in (key, value):
            whole: list[torch.Tensor] = []
            for number in range(int(self.descriptor["layers"])):
                tensor = self.tensors[f"{side}.{number}"]
                if tuple(tensor.shape) != shape or tensor.dtype != stored:
                    raise ValueError(f"{side}.{number} is {tensor.dtype} {tuple(tensor.shape)}, not {stored} {shape}")
                tensor = tensor.to(device=device)
                if stored == torch.int8:
                    tensor = tensor.float() * self.tensors[f"{side}.{number}.scale"].to(device=device)
                whole.append(tensor.to(dtype=dtype or tensor.dtype).unsqueeze(0))
            sides.append(tuple(whole))
        return Segment(sides[0], sides[1], len(self.prefix_ids))


def read(fd: int, size: int) -> Stored:
    """The payload in a descriptor, which may be closed then. Raises `OSError` when it cannot be mapped."""
    memory = mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    layout = tensors.parse(memoryview(memory), size)
    descriptor: dict[str, Any] = json.loads(layout.metadata["memos"])
    if descriptor["format"] != FORMAT:
        raise ValueError(f"its format is {descriptor['format']!r}")
    found = {info.name: _tensor(memory, info) for info in layout.tensors}
    prefix, ids = found["prefix_ids"].tolist(), found["token_ids"].tolist()
    start, tokens = int(descriptor["start"]), int(descriptor["tokens"])
    if len(ids) != tokens or len(prefix) != start:
        raise ValueError(f"it has {len(ids)} token ids for {tokens} tokens, and {len(prefix)} before them, not {start}")
    return Stored(descriptor, found, prefix, ids)


def sealed(label: str, kept: Sequence[tuple[str, torch.Tensor]], metadata: Mapping[str, str]) -> tuple[int, tensors.Layout]:
    """A safetensors file of these tensors, in their order, in a sealed memfd; the caller closes it."""
    names = {**{dtype: name for name, dtype in TORCH.items()}, torch.uint8: "U8"}
    head, layout = tensors.plan([(name, names[tensor.dtype], tuple(tensor.shape)) for name, tensor in kept], metadata)
    fd = os.memfd_create(label, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        # Written, not mapped: a page that is written costs no fault.
        with open(fd, "wb", closefd=False) as file:
            file.write(head)
            for _name, tensor in kept:
                file.write(raw(tensor))
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd, layout


def raw(tensor: torch.Tensor) -> Any:
    """Its bytes, row by row."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()


def _tensor(memory: mmap.mmap, info: tensors.TensorInfo) -> torch.Tensor:
    dtype = TORCH[info.dtype]
    if not info.bytes:
        return torch.empty(info.shape, dtype=dtype)
    return torch.frombuffer(memory, dtype=dtype, count=info.bytes // dtype.itemsize, offset=info.offset).view(info.shape)
