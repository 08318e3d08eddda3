"""LoRA adapters: what they hold, how a model runs with them for a while, and their payload.

`with applied(model, [(adapter, weight), …]):` adds Σ weight · scale · B·A·x to what the named linear layers give.

- The model's modules and weights are never touched: hooks are registered and removed. Outside, and with no adapters, the model
  runs the same code as ever, and gives the same bits.
- Tensors that are trained get their gradients. Where nothing is recorded (`no_grad`, `inference_mode`), tensors are brought to
  the model's dtype and device once, and several adapters are stacked: two small products a layer.
- A second `applied` inside one, with or without adapters, raises `MemBusy`.

Payload `memos.lora/1`: a safetensors file, its tensors sorted by name.
1. `__metadata__` {"memos": descriptor as JSON}: format, base (fingerprint of the model, "" if unknown), rank, alpha, targets,
   layers, modules, and what else the maker wrote down
2. `base_model.model.<module>.lora_A.weight` [rank, in] and `….lora_B.weight` [out, rank]: F32, F16 or BF16, as peft names them
3. `memos.facts` U8 [n], may be absent: JSON text of what the adapter was taught

The digest is that of `lm.fingerprint.adapters` for the same adapter loaded with peft, which computes in float32.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import re
import weakref
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, cast

import torch
from torch import nn
from torch.nn import functional

from memos_drivers import tensors
from memos_drivers.lm.fingerprint import adapter_digest
from memos_drivers.lm.payload import sealed
from memos_syscalls.errors import MemBusy, MemError, MemInvalid, MemModel
from memos_syscalls.limits import ADAPTER_RANK_MAX, TENSOR_BYTES_MAX

FORMAT: Final = "memos.lora/1"
RANK_MAX: Final = ADAPTER_RANK_MAX
ALPHA_MAX: Final = 1e6
MODULES_MAX: Final = 16_384
HEADER_BYTES_MAX: Final = 16 * 1024 * 1024
FACTS_BYTES_MAX: Final = 16 * 1024 * 1024
READY_MAX: Final = 2
"""Sets of adapters that one keeps stacked, with itself at the head."""
PREFIX: Final = "base_model.model."
FACTS: Final = "memos.facts"
TORCH: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NAMES: Final = {dtype: name for name, dtype in TORCH.items()}
_TENSOR: Final = re.compile(rf"{re.escape(PREFIX)}(.+)\.lora_([AB])\.weight", re.DOTALL)
_LAYER: Final = re.compile(r"(?:^|\.)(\d+)\.")
AGAIN: Final = "Make the adapter again for this model, or use the model that it was made for."

Modules = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
"""By the module's path in the model: A [rank, in] and B [out, rank]."""

_busy: weakref.WeakSet[nn.Module] = weakref.WeakSet()


class Part(NamedTuple):
    """One pair of matrices and the number that their product is taken by."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float


class Ready(NamedTuple):
    """What adapters add, per module, for one model's dtype and device."""

    model: weakref.ref[nn.Module]
    adapters: tuple[tuple[weakref.ref[Adapter], float], ...]
    parts: Mapping[str, Part]


class Adapter:
    """An adapter of one rank and scale. Raises `MemInvalid` when it contradicts itself.

    Its tensors do not change, unless they require a gradient.
    """

    def __init__(
        self,
        modules: Modules,
        alpha: float,
        descriptor: Mapping[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.rank = _rank(modules)
        if type(alpha) not in (int, float) or not 0 < alpha <= ALPHA_MAX:
            raise MemInvalid(f"alpha of an adapter is above 0 and at most {ALPHA_MAX:g}, not {alpha!r:.40}")
        self.modules = dict(modules)
        self.alpha = float(alpha)
        self.scale = self.alpha / self.rank
        self.descriptor = {**(descriptor or {}), **_described(self.modules, self.alpha, self.rank)}
        self.facts = dict(facts or {})
        self.bytes = sum(a.nbytes + b.nbytes for a, b in self.modules.values())
        self.trained = any(tensor.requires_grad for pair in self.modules.values() for tensor in pair)
        self._digest = ""
        self.ready: OrderedDict[tuple[int, ...], Ready] = OrderedDict()

    @property
    def digest(self) -> str:
        """By content. Read all bytes once; of tensors that are trained, each time."""
        if self._digest and not self.trained:
            return self._digest
        self._digest = digest_of(self.modules, self.scale)
        return self._digest

    def forget(self) -> None:
        """Let go of what it was stacked with: that holds the numbers of others, which may be erased. From any thread."""
        self.ready = OrderedDict()

    @property
    def base(self) -> str:
        """Fingerprint of the model that it was made for, "" if nobody knows."""
        return str(self.descriptor.get("base", ""))


class Packed(NamedTuple):
    """A payload in sealed memory; the caller closes it."""

    fd: int
    bytes: int
    digest: str


# -- at work -----------------------------------------------------------------------------------------------------------


@contextmanager
def applied(model: nn.Module, adapters: Sequence[tuple[Adapter, float]]) -> Generator[None, None, None]:
    """The model with the weighted sum of these adapters, inside the block. Raises `MemModel` for one that does not fit."""
    if model in _busy:
        raise MemBusy("the model runs with adapters already")
    handles: list[Any] = []
    _busy.add(model)
    try:
        for module, hook in _hooks(model, adapters) if adapters else ():
            handles.append(module.register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()
        _busy.discard(model)


def _hooks(model: nn.Module, adapters: Sequence[tuple[Adapter, float]]) -> Iterator[tuple[nn.Module, Callable[..., Any]]]:
    if any(adapter.trained for adapter, _weight in adapters):
        parts: dict[str, list[Part]] = {}
        for adapter, weight in adapters:
            for path, (a, b) in adapter.modules.items():
                parts.setdefault(path, []).append(Part(a, b, adapter.scale * weight))
        for path, several in parts.items():
            yield linear_of(model, path), _adding(several)
        return
    for path, part in _ready(model, adapters).items():
        # Looked at when it was made ready.
        yield getattr(found := _child(model, path), "base_layer", found), _adding([part])


def _adding(parts: Sequence[Part]) -> Callable[..., Any]:
    def add(module: nn.Module, given: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = given[0]
        if not torch.is_grad_enabled() and output.is_contiguous() and all(p.a.dtype == x.dtype == output.dtype for p in parts):
            # Nobody else has seen the output yet.
            rows = output.view(-1, output.shape[-1])
            for a, b, scale in parts:
                rows.addmm_(functional.linear(x.reshape(-1, x.shape[-1]), a), b.t(), alpha=scale)
            return output
        for a, b, scale in parts:
            output = output + functional.linear(functional.linear(x.to(a.dtype), a) * scale, b).to(output.dtype)
        return output

    return add


def _ready(model: nn.Module, adapters: Sequence[tuple[Adapter, float]]) -> Mapping[str, Part]:
    """The adapters stacked for the model: [A₁; A₂; …] and [w₁s₁B₁, w₂s₂B₂, …]. Kept with the first of them."""
    kept = adapters[0][0].ready
    key = (id(model), *(id(adapter) for adapter, _weight in adapters))
    asked = [(adapter, float(weight)) for adapter, weight in adapters]
    found = kept.get(key)
    if found and found.model() is model and [(ref(), weight) for ref, weight in found.adapters] == asked:
        kept.move_to_end(key)
        return found.parts
    parts: dict[str, list[Part]] = {}
    for adapter, weight in asked:
        for path, (a, b) in adapter.modules.items():
            place = linear_of(model, path).weight
            dtype = place.dtype if place.dtype.is_floating_point else a.dtype
            parts.setdefault(path, []).append(
                Part(a.detach().to(place.device, dtype), b.detach().to(place.device, dtype), adapter.scale * weight)
            )
    joined = {path: several[0] if len(several) == 1 else _stacked(several) for path, several in parts.items()}
    kept[key] = Ready(weakref.ref(model), tuple((weakref.ref(adapter), weight) for adapter, weight in asked), joined)
    while len(kept) > READY_MAX:
        kept.popitem(last=False)
    return joined


def _stacked(parts: Sequence[Part]) -> Part:
    return Part(torch.cat([part.a for part in parts]), torch.cat([part.b * part.scale for part in parts], dim=1), 1.0)


# -- whether it fits ---------------------------------------------------------------------------------------------------


def refusal(adapter: Adapter, model: nn.Module, fingerprint: str) -> MemError | None:
    """Why the adapter cannot be used with this model, if it cannot. Reads all numbers of the adapter once."""
    if adapter.base not in ("", fingerprint):
        return MemModel(f"the adapter was made for another model: {adapter.base[:80]}, and here is {fingerprint}", AGAIN)
    for path, (a, b) in adapter.modules.items():
        try:
            place = linear_of(model, path)
        except MemModel as error:
            return error
        if (a.shape[1], b.shape[0]) != (place.in_features, place.out_features):
            return MemModel(
                f"the adapter's {path[:200]} is for {a.shape[1]} inputs and {b.shape[0]} outputs; the model's has "
                f"{place.in_features} and {place.out_features}",
                AGAIN,
            )
    name = not_finite(adapter.modules)
    return MemInvalid(f"the adapter holds numbers that are not finite ({name[:200]})", "Make it again.") if name else None


def linear_of(model: Any, path: str) -> nn.Linear:
    """The linear layer of this path, within whatever peft stands around it. Raises `MemModel`."""
    module = _child(model, path)
    if module is None:
        raise MemModel(f"the model has no module {path[:200]!r}, which the adapter changes", AGAIN)
    if module is _output_of(model) or isinstance(module, nn.Embedding):
        raise MemModel(
            f"the adapter changes the model's embedding ({path[:200]}), which is often input and output at once", AGAIN
        )
    module = getattr(module, "base_layer", module)
    if not isinstance(module, nn.Linear):
        raise MemModel(f"the adapter changes {path[:200]}, a {type(module).__name__} and no linear layer", AGAIN)
    return module


def _child(model: Any, path: str) -> Any:
    module: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    for name in path.split("."):
        # Children only: properties of a model can be other names of its modules, and do what they like.
        module = None if module is None else module._modules.get(name)
    return module


def _output_of(model: Any) -> Any:
    return model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None


def not_finite(modules: Modules) -> str:
    """The first tensor with a number that is none, or infinite; "" if all are numbers."""
    for path, pair in modules.items():
        for side, tensor in zip("AB", pair, strict=True):
            # A NaN would be the least and the greatest.
            if not all(math.isfinite(float(end)) for end in tensor.detach().aminmax()):
                return f"{path}.lora_{side}"
    return ""


def _rank(modules: Modules) -> int:
    """The one rank of all; refuses what contradicts itself, whatever the model."""
    if not 0 < len(modules) <= MODULES_MAX:
        raise MemInvalid(f"an adapter changes 1 to {MODULES_MAX} modules, not {len(modules)}")
    ranks: set[int] = set()
    useful = 0
    for path, (a, b) in modules.items():
        check_pair(path, (a, b))
        ranks.add(a.shape[0])
        useful = max(useful, min(a.shape[1], b.shape[0]))
    if len(ranks) > 1:
        raise MemInvalid(
            f"the adapter's modules are of different ranks: {sorted(ranks)[:16]}", "Pad them with zeros to one rank."
        )
    rank = ranks.pop()
    if rank > min(RANK_MAX, useful):
        raise MemInvalid(
            f"the adapter is of rank {rank}; at most {min(RANK_MAX, useful)} makes sense here", "Recompress it to a lower rank."
        )
    return rank


def check_pair(path: str, pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Raises `MemInvalid` for what is no pair of matrices [rank, in] and [out, rank]."""
    a, b = pair
    if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1] or not a.numel() or not b.numel():
        raise MemInvalid(f"{path[:200]} has A {list(a.shape)[:8]} and B {list(b.shape)[:8]}, not [rank, in] and [out, rank]")
    if a.shape[0] > RANK_MAX:
        raise MemInvalid(f"{path[:200]} is of rank {a.shape[0]}; the limit is {RANK_MAX}", "Recompress it to a lower rank.")
    if a.dtype not in _NAMES or b.dtype != a.dtype:
        raise MemInvalid(f"{path[:200]} is of dtype {a.dtype} and {b.dtype}; known are {', '.join(map(str, _NAMES))}")


# -- as bytes ----------------------------------------------------------------------------------------------------------


def digest_of(modules: Modules, scale: float) -> str:
    """What `lm.fingerprint.adapters` says of the adapter once peft has loaded it."""
    return adapter_digest(
        sorted(
            (
                (f"{path}.lora_{side}.weight", repr(scale), one.float())
                for path, pair in modules.items()
                for side, one in zip("AB", pair, strict=True)
            ),
            key=first,
        )
    )


def first(item: tuple[Any, ...]) -> Any:
    """What named things are sorted by."""
    return item[0]


def _described(modules: Modules, alpha: float, rank: int) -> dict[str, Any]:
    """What a descriptor says of its tensors."""
    layers = {int(found[1]) for path in modules if (found := _LAYER.search(path)) and len(found[1]) <= 6}
    return {
        "format": FORMAT, "rank": rank, "alpha": alpha, "modules": len(modules), "layers": sorted(layers),
        "targets": sorted({path.rpartition(".")[2] for path in modules}),
    }  # fmt: skip


def pack(
    modules: Modules, alpha: float, descriptor: Mapping[str, Any] | None = None, facts: Mapping[str, Any] | None = None
) -> Packed:
    """The adapter in a sealed memfd. The descriptor needs no more than `base`; what is known from the tensors is filled in.

    Raises `MemInvalid` for an adapter that contradicts itself or holds what is no number.
    """
    adapter = Adapter(modules, alpha, descriptor)
    if name := not_finite(modules):
        raise MemInvalid(f"the adapter holds numbers that are not finite ({name[:200]})")
    kept = [
        (f"{PREFIX}{path}.lora_{side}.weight", tensor)
        for path, pair in modules.items()
        for side, tensor in zip("AB", pair, strict=True)
    ]
    if facts:
        text = json.dumps(facts, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) > FACTS_BYTES_MAX:
            raise MemInvalid(f"the facts take {len(text)} bytes; the limit is {FACTS_BYTES_MAX}")
        kept.append((FACTS, torch.frombuffer(bytearray(text), dtype=torch.uint8)))
    kept.sort(key=first)
    fd, layout = sealed("memos-lora", kept, {"memos": json.dumps({"base": "", **adapter.descriptor}, sort_keys=True)})
    return Packed(fd, layout.size, adapter.digest)


def unpack(fd: int, device: torch.device | None = None) -> Adapter:
    """The adapter in a descriptor, which may be closed then. Raises `MemInvalid` for bytes that are none.

    On a CPU its tensors lie where the payload lies, mapped privately.
    """
    size = os.fstat(fd).st_size
    if not 0 < size <= TENSOR_BYTES_MAX:
        raise MemInvalid(f"a payload of {size} bytes is no adapter")
    memory = mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    layout = tensors.parse(memoryview(memory), size, header_bytes_max=HEADER_BYTES_MAX)
    told = _descriptor(layout.metadata)
    listed = {info.name: info for info in layout.tensors}
    facts = listed.pop(FACTS, None)
    modules = paired({name: _mapped(memory, info) for name, info in listed.items()})
    adapter = Adapter(modules, told["alpha"], told, _facts(memory, facts))
    for field, found in adapter.descriptor.items():
        if field in ("rank", "alpha", "modules") and (type(told.get(field)) is bool or told.get(field) != found):
            raise MemInvalid(f"the adapter's descriptor says {field} {told.get(field)!r:.40}, and its tensors {found}")
        if field in ("targets", "layers") and field in told and told[field] != found:
            raise MemInvalid(f"the adapter's descriptor and its tensors differ in {field}")
    if device is None or device.type == "cpu":
        return adapter
    moved = {path: (a.to(device), b.to(device)) for path, (a, b) in modules.items()}
    return Adapter(moved, adapter.alpha, told, adapter.facts)


def paired(named: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Tensors by module, from peft's names for them. Raises `MemInvalid` for other names, and for A without B."""
    sides: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in named.items():
        found = _TENSOR.fullmatch(name)
        if not found:
            raise MemInvalid(
                f"tensor {name[:200]!r} is not of a LoRA adapter of linear layers",
                "Such a tensor is named base_model.model.<module>.lora_A.weight or ….lora_B.weight.",
            )
        sides.setdefault(found[1], {})[found[2]] = tensor
    for path, pair in sides.items():
        if len(pair) != 2:
            raise MemInvalid(f"{path[:200]} has lora_{next(iter(pair))} alone")
    return {path: (pair["A"], pair["B"]) for path, pair in sides.items()}


def _descriptor(metadata: Mapping[str, str]) -> dict[str, Any]:
    told = json_object(metadata.get("memos", ""), "the adapter's descriptor")
    if told.get("format") != FORMAT:
        raise MemInvalid(f"the payload is no adapter of this kernel: its format is {told.get('format')!r:.40}, not {FORMAT}")
    if type(told.get("base", "")) is not str or type(told.get("alpha")) not in (int, float):
        raise MemInvalid("the adapter's descriptor has no number alpha, or a base that is no text")
    return told


def _facts(memory: mmap.mmap, info: tensors.TensorInfo | None) -> dict[str, Any]:
    if info is None:
        return {}
    if info.dtype != "U8" or len(info.shape) != 1 or info.bytes > FACTS_BYTES_MAX:
        raise MemInvalid(f"{FACTS} is {info.dtype} {list(info.shape)[:8]}, not U8 [n] of at most {FACTS_BYTES_MAX} bytes")
    return json_object(memory[info.offset : info.offset + info.bytes], f"the adapter's {FACTS}")


def json_object(text: str | bytes | bytearray, what: str) -> dict[str, Any]:
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MemInvalid(f"{what} is not JSON: {str(error)[:100]}") from None
    if type(found) is not dict:
        raise MemInvalid(f"{what} is not an object of JSON")
    return cast("dict[str, Any]", found)


def _mapped(memory: mmap.mmap, info: tensors.TensorInfo) -> torch.Tensor:
    dtype = TORCH.get(info.dtype)
    if dtype is None:
        raise MemInvalid(f"tensor {info.name[:200]!r} is {info.dtype}; an adapter's are {', '.join(TORCH)}")
    return tensor_at(memory, info, dtype)


def tensor_at(memory: mmap.mmap | bytearray, info: tensors.TensorInfo, dtype: torch.dtype) -> torch.Tensor:
    """A tensor in writable memory, at its place if it can be read there."""
    if not info.bytes:
        return torch.empty(info.shape, dtype=dtype)
    place: Any = memory
    offset = info.offset
    if offset % dtype.itemsize:
        place, offset = bytearray(memory[offset : offset + info.bytes]), 0
    return torch.frombuffer(place, dtype=dtype, count=info.bytes // dtype.itemsize, offset=offset).view(info.shape)
