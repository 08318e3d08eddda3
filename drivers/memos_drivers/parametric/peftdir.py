"""A peft directory: `adapter_config.json` and `adapter_model.safetensors`, read and written without peft.

Read is what is plain LoRA of linear layers, with one scale and rank in the end:

- other ranks or alphas for some modules (`rank_pattern`, `alpha_pattern`) become one: what differs in scale goes into B, and
  lower ranks are padded with zeros
- rsLoRA's scale, alpha / √rank, becomes another alpha

Refused with `MemInvalid`: pickled weights, which can run code; DoRA and every other variant, biases, modules saved whole,
embeddings, initialisations that change the base's weights, and whatever else the configuration sets that is not known to be
without effect here. Nothing of it is guessed.

What `write_peft` wrote reads back as the same tensors, alpha and rank.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import torch

from memos_drivers import tensors
from memos_drivers.lm.payload import raw
from memos_drivers.parametric.adapter import (
    HEADER_BYTES_MAX,
    PREFIX,
    TORCH,
    Adapter,
    check_pair,
    first,
    json_object,
    paired,
    tensor_at,
)
from memos_syscalls.errors import MemInvalid, MemIO, MemNotFound
from memos_syscalls.limits import TENSOR_BYTES_MAX

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
CONFIG_BYTES_MAX: Final = 4 * 1024 * 1024
FIELD_MAX: Final = 1e9
PLAIN: Final = re.compile(r"[\w.]+")
"""A name in a pattern: its dots match any character for peft, which for names of modules is the same."""
HARMLESS: Final = frozenset((
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "r",
    "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern",
    "alpha_pattern", "use_rslora", "bias", "init_lora_weights", "megatron_core", "qalora_group_size", "eva_config",
    "ensure_weight_tying", "runtime_config",
))  # fmt: skip
"""What is read, and what has no effect on an adapter that is trained. Of all else, only what is not set is let in."""
INITIALISED: Final = (True, False, None, "gaussian", "eva", "orthogonal")
"""Ways to begin that leave the base's weights alone."""


class Read(NamedTuple):
    """An adapter as a directory holds it."""

    modules: dict[str, tuple[torch.Tensor, torch.Tensor]]
    alpha: float
    rank: int
    config: dict[str, Any]


def read_peft(directory: Path | str) -> Read:
    """The adapter in a directory. Raises `MemInvalid` for what is none, or another kind; `MemNotFound` where there is none."""
    place = Path(directory)
    config = _config(place)
    modules = paired(_weights(place))
    if not modules:
        raise MemInvalid(f"{WEIGHTS} holds no tensors")
    for path, pair in modules.items():
        check_pair(path, pair)
    rank = max(int(a.shape[0]) for a, _b in modules.values())
    scales = {path: _scale(config, path, pair) for path, pair in modules.items()}
    scale = next(iter(scales.values()))
    if len(set(scales.values())) > 1 or any(a.shape[0] != rank for a, _b in modules.values()):
        modules = {path: _folded(pair, scales[path] / scale, rank) for path, pair in modules.items()}
    alpha = _alpha(scale, rank)
    Adapter(modules, alpha)
    return Read(modules, alpha, rank, config)


def write_peft(adapter: Adapter, directory: Path | str, base_model_name: str = "") -> None:
    """Writes the adapter into a directory, which is made; files of these names are replaced."""
    place = Path(directory)
    alpha = int(adapter.alpha) if adapter.alpha.is_integer() else adapter.alpha
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base_model_name or None,
        "inference_mode": True, "r": adapter.rank, "lora_alpha": alpha, "lora_dropout": 0.0, "bias": "none",
        "fan_in_fan_out": False, "init_lora_weights": True, "use_rslora": False, "use_dora": False, "modules_to_save": None,
        # Whole paths: a name like gate_proj may be in layers that the adapter leaves alone.
        "target_modules": sorted(adapter.modules),
    }  # fmt: skip
    kept = sorted(
        (
            (f"{PREFIX}{path}.lora_{side}.weight", one)
            for path, pair in adapter.modules.items()
            for side, one in zip("AB", pair, strict=True)
        ),
        key=first,
    )
    names = {dtype: name for name, dtype in TORCH.items()}
    head, _layout = tensors.plan([(name, names[one.dtype], tuple(one.shape)) for name, one in kept], {"format": "pt"})
    try:
        place.mkdir(parents=True, exist_ok=True)
        with (place / f".{WEIGHTS}").open("wb") as file:
            file.write(head)
            for _name, one in kept:
                file.write(raw(one))
        os.replace(place / f".{WEIGHTS}", place / WEIGHTS)
        # The configuration last: it says that the directory is whole.
        (place / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
    except OSError as error:
        raise MemIO(f"the adapter cannot be written to {place}: {error}") from error


def _config(place: Path) -> dict[str, Any]:
    config = json_object(_bytes(place, CONFIG, CONFIG_BYTES_MAX), CONFIG)
    if config.get("peft_type") != "LORA":
        raise MemInvalid(f"the adapter is of type {config.get('peft_type')!r:.40}; only LORA is known here")
    if config.get("bias", "none") != "none":
        raise MemInvalid(
            f"the adapter trains biases (bias={config['bias']!r:.40}), which is refused", "Train it with bias='none'."
        )
    begun = config.get("init_lora_weights", True)
    if type(begun) not in (bool, str, type(None)) or begun not in INITIALISED:
        raise MemInvalid(
            f"the adapter was begun with {begun!r:.40}, which changes the base's weights",
            "Convert it to plain LoRA (peft: `save_pretrained(path_initial_model_for_weight_conversion=…)`).",
        )
    for field, value in config.items():
        if field not in HARMLESS and value not in (None, False, 0, "", [], {}):
            raise MemInvalid(
                f"the adapter sets {field[:80]}={value!r:.80}, which is not plain LoRA", "Train a plain LoRA adapter."
            )
    return config


def _weights(place: Path) -> dict[str, torch.Tensor]:
    if not (place / WEIGHTS).exists() and any(place.glob("adapter_model.*")):
        raise MemInvalid(
            f"{place} holds weights that are not safetensors, and loading them can run code",
            "Save the adapter again with `safe_serialization=True`.",
        )
    data = _bytes(place, WEIGHTS, TENSOR_BYTES_MAX)
    layout = tensors.parse(memoryview(data), header_bytes_max=HEADER_BYTES_MAX)
    named: dict[str, torch.Tensor] = {}
    for info in layout.tensors:
        dtype = TORCH.get(info.dtype)
        if dtype is None:
            raise MemInvalid(f"tensor {info.name[:200]!r} is {info.dtype}; an adapter's are {', '.join(TORCH)}")
        named[info.name] = tensor_at(data, info, dtype)
    return named


def _bytes(place: Path, name: str, most: int) -> bytearray:
    try:
        # A pipe or a device would keep us waiting.
        with open(os.open(place / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode) or size > most:
                raise MemInvalid(f"{place / name} is not a file of at most {most} bytes")
            data = bytearray(size)
            return data[: file.readinto(data)]
    except FileNotFoundError:
        raise MemNotFound(f"{place} holds no {name}", "Name the directory of an adapter that peft saved.") from None
    except OSError as error:
        raise MemIO(f"{place / name} cannot be read: {error}") from error


def _scale(config: Mapping[str, Any], path: str, pair: tuple[torch.Tensor, torch.Tensor]) -> float:
    """What peft multiplies this module's product by."""
    rank = _number(config, "rank_pattern", "r", path)
    alpha = _number(config, "alpha_pattern", "lora_alpha", path)
    if rank != pair[0].shape[0]:
        raise MemInvalid(f"{path[:200]} is of rank {pair[0].shape[0]}, and the configuration says {rank:g}")
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    if not 0 < scale < math.inf:
        raise MemInvalid(f"{path[:200]} would be scaled by {scale}")
    return scale


def _number(config: Mapping[str, Any], pattern: str, field: str, path: str) -> float:
    """A number of the configuration as it holds for this module: the first pattern that fits its path, or the one for all."""
    found: Any = config.get(field)
    special: Any = config.get(pattern) or {}
    if type(special) is not dict:
        raise MemInvalid(f"{pattern} is not an object of JSON")
    for key, value in cast("dict[str, Any]", special).items():
        if _ends_in(path, key, pattern):
            found = value
            break
    if type(found) not in (int, float) or not 0 < found < FIELD_MAX:
        raise MemInvalid(f"{field} is {found!r:.40}, for {path[:200]}, and not a number above 0")
    return float(found)


def _ends_in(path: str, key: str, pattern: str) -> bool:
    """As peft matches, for names of modules; regular expressions of strangers can run for ever."""
    if not PLAIN.fullmatch(key):
        raise MemInvalid(f"{pattern} has a regular expression: {key[:80]!r}", "Name the modules in it.")
    return path == key or path.endswith("." + key)


def _folded(pair: tuple[torch.Tensor, torch.Tensor], factor: float, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The pair at this rank, with a factor in B."""
    a, b = pair[0].float(), pair[1].float() * factor
    more = rank - a.shape[0]
    return torch.nn.functional.pad(a, (0, 0, 0, more)), torch.nn.functional.pad(b, (0, more))


def _alpha(scale: float, rank: int) -> float:
    """The alpha whose quotient by the rank is this scale, to the last bit where there is one."""
    alpha = scale * rank
    near = (alpha, math.nextafter(alpha, 0), math.nextafter(alpha, math.inf), float(round(alpha)))
    return next((one for one in near if one / rank == scale), alpha)
