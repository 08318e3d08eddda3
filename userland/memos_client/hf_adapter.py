"""Adapters of the kernel in your own process: a transformers model knows what a LoRA cube was taught.

    name = load_adapter(kernel, cube_id, model=model, tokenizer=tokenizer)
    out = model.generate(**inputs)

What callers may rely on:

1. An adapter is used only where it fits. One that was made for another model or tokenizer, or changes modules that the model
   has not, raises `MemModel`; one that is older than its sources raises `MemStale`, unless `version=` or `allow_stale=True`
   says that it is wanted. The model is as it was when anything is refused.
2. It joins the adapters that are active in the model, and is frozen; what was trained there is trained on. The base's weights
   are not touched: calls of peft and transformers (`set_adapter`, `disable_adapters`, …) know it by the name that is returned.
3. Its tensors are those of the mapped payload where device and dtype allow: nothing is copied, nothing stored is written to.

`save_adapter` writes a cube as a peft directory; `import_adapter` makes a cube of one, and `adapter_payload` what
`mem_alloc(form="parametric")` takes.
Needs `pip install 'memos-kernel[torch]'` and peft. This module does not import itself with the rest of the package.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import torch

from memos_drivers.lm.fingerprint import fingerprint
from memos_drivers.parametric.adapter import Adapter, pack, refusal, unpack
from memos_drivers.parametric.peftdir import read_peft, write_peft
from memos_syscalls.errors import MemInvalid, MemModel, MemStale
from memos_syscalls.messages import CubeHeader, MemMapReply, MemStatReply, Mutated

NAME_CHARS_MAX: Final = 100
IMPORT_DEADLINE_MS: Final = 600_000
"""The first call to a model waits for it to be loaded."""
RENEW: Final = "Make the adapter again with `mem_migrate`, for the model that you use."
_NAME: Final = re.compile(r"[A-Za-z0-9_-]+")


class Adapters(Protocol):
    """What is needed of a `Kernel`."""

    def mem_stat(self, cube_id: str, *, version: int | None = None) -> MemStatReply: ...
    def mem_map(self, cube_id: str, *, version: int | None = None) -> MemMapReply: ...


class Importer(Protocol):
    """What an import needs of a `Kernel`."""

    def mem_alloc(
        self, namespace: str, content: str | bytes, *, form: Literal["plaintext", "parametric"] | None = None,
        name: str | None = None, tags: Sequence[str] | None = None, parents: Sequence[str] | None = None,
        model: str | None = None, request_id: str | None = None, deadline_ms: int | None = None,
    ) -> Mutated: ...  # fmt: skip


def load_adapter(
    kernel: Adapters, cube: str, *, model: Any, tokenizer: Any, version: int | None = None, name: str | None = None,
    allow_stale: bool = False,
) -> str:  # fmt: skip
    """Puts the adapter of this cube into the model, plain or wrapped by peft, and returns its name there."""
    header, adapter = _read(kernel, cube, version, allow_stale)
    name = name or f"memos_{header.cube_id}_{header.version}".replace(".", "_")
    # Peft mistakes a part of its own prefix for that prefix.
    if not _NAME.fullmatch(name) or len(name) > NAME_CHARS_MAX or name in "lora_":
        raise MemInvalid(f"{name[:NAME_CHARS_MAX]!r} is no name for an adapter: letters, digits, _ and -")
    if name in (getattr(model, "peft_config", None) or {}):
        raise MemInvalid(f"the model has an adapter {name!r} already", "Delete that one, or name this one: `name=`.")
    error = refusal(adapter, model, fingerprint(model, tokenizer))
    if error is not None:
        raise error
    _inject(model, adapter, name)
    return name


def save_adapter(
    kernel: Adapters, cube: str, directory: Path | str, *, version: int | None = None, base_model_name: str = "",
    allow_stale: bool = False,
) -> None:  # fmt: skip
    """Writes the adapter of this cube as a peft directory, in the clear."""
    _header, adapter = _read(kernel, cube, version, allow_stale)
    write_peft(adapter, directory, base_model_name)


def adapter_payload(directory: Path | str, *, base_fingerprint: str = "") -> int:
    """A peft directory as a payload in sealed memory, for `mem_alloc(form="parametric", fd=…)`. The caller closes it.

    `base_fingerprint` says which model it is for; without it the kernel only checks that it fits the model there.
    """
    read = read_peft(directory)
    return pack(read.modules, read.alpha, {"base": base_fingerprint}).fd


def import_adapter(
    kernel: Importer, directory: Path | str, *, namespace: str, name: str | None = None, tags: Sequence[str] | None = None,
    parents: Sequence[str] | None = None, model: str | None = None, base_fingerprint: str = "", request_id: str | None = None,
    deadline_ms: int = IMPORT_DEADLINE_MS,
) -> str:  # fmt: skip
    """Makes a cube of a peft directory and returns its id. `model` names the kernel's model that it is for, its first one if
    absent; the kernel refuses what does not fit it."""
    fd = adapter_payload(directory, base_fingerprint=base_fingerprint)
    try:
        content = os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)
    return kernel.mem_alloc(
        namespace, content, form="parametric", name=name, tags=tags, parents=parents, model=model, request_id=request_id,
        deadline_ms=deadline_ms,
    ).cube_id  # fmt: skip


def _read(kernel: Adapters, cube: str, version: int | None, allow_stale: bool) -> tuple[CubeHeader, Adapter]:
    header = kernel.mem_stat(cube, version=version).header
    if header.form != "parametric":
        raise MemInvalid(f"cube {cube} is {header.form}, not an adapter", "Make one of it with `mem_migrate`.")
    if header.stale and version is None and not allow_stale:
        raise MemStale(f"the adapter of cube {cube} is older than its sources", f"{RENEW} Or say `allow_stale=True`.")
    mapped = kernel.mem_map(cube, version=header.version)
    try:
        return header, unpack(mapped.fd)
    finally:
        os.close(mapped.fd)


def _inject(model: Any, adapter: Adapter, name: str) -> None:
    """Puts it into the model with peft, from these very tensors, and makes it active beside those that are."""
    from peft import LoraConfig, PeftModel, inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    alpha: Any = int(adapter.alpha) if adapter.alpha.is_integer() else adapter.alpha
    config = LoraConfig(
        r=adapter.rank, lora_alpha=alpha, inference_mode=True, task_type="CAUSAL_LM",
        # As text it is matched whole; of a list, ends of paths are.
        target_modules="|".join(map(re.escape, sorted(adapter.modules))),
    )  # fmt: skip
    wrapped = isinstance(model, PeftModel)
    if wrapped and model.peft_type != config.peft_type:
        raise MemModel(
            f"peft wraps the model for {model.peft_type}, which does not go with LoRA", "Load it into the model inside."
        )
    active = {id(layer): list(layer.active_adapters) for layer in model.modules() if isinstance(layer, BaseTunerLayer)}
    trained = {id(one): one.requires_grad for one in model.parameters()}
    if wrapped:
        model.add_adapter(name, config, low_cpu_mem_usage=True)
    else:
        inject_adapter_in_model(config, model, name, low_cpu_mem_usage=True)
        # So transformers knows that its own calls for adapters have something to act on.
        model._hf_peft_config_loaded = True
    base: Any = model.get_base_model() if wrapped else model
    for path, pair in adapter.modules.items():
        tuned: Any = base.get_submodule(path)
        for side, tensor in zip((tuned.lora_A, tuned.lora_B), pair, strict=True):
            # In float32, as peft keeps adapters. Its own function takes them through the base's dtype, which loses bits.
            placed = tensor.to(tuned.base_layer.weight.device, torch.float32)
            side[name].weight = torch.nn.Parameter(placed, requires_grad=False)
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            own = [name] if name in getattr(layer, "lora_A", ()) else []
            layer.set_adapter([*active.get(id(layer), ()), *own], inference_mode=True)
    for one in model.parameters():
        one.requires_grad_(trained.get(id(one), False))
