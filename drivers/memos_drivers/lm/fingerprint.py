"""What a model is, as digests: its weights, configuration and tokenizer; the adapters at work in it; its rotary embedding.

A digest is "sha256:" and 64 hexadecimal digits. `fingerprint` covers
1. the loaded tensors, sorted by name: (name, dtype, shape, bytes); tied tensors once, under the first of their names; adapters
   not, so that a model wrapped by peft has the fingerprint of the model inside;
2. the fields of the configuration that `CONFIG` lists, where the model has them;
3. the tokenizer, as canonical JSON of its tokenizer.json without padding and truncation, and its chat template.

`adapters` digests by content: the name of an adapter says nothing. An adapter that is inactive, disabled or merged into the
weights (which then have another fingerprint) is not listed.

Weights are digested once and remembered for the model object, until one of its tensors is replaced or written to, or an
adapter is merged. A write that autograd does not count (through `tensor.data`) is seen only where it changes one of the few
elements that are looked at. The tokenizer and the configuration are read each time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch
from torch import nn

from memos_syscalls.errors import MemModel

CONFIG: Final = (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings", "tie_word_embeddings", "hidden_act", "hidden_activation",
    "activation_function", "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "layernorm_epsilon",
    "rope_parameters", "rope_theta", "rope_scaling", "rope_local_base_freq", "partial_rotary_factor", "rotary_pct",
    "rotary_dim", "attention_bias", "mlp_bias", "layer_types", "sliding_window", "no_rope_layers", "qk_layernorm",
    "use_qk_norm",
    "attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling", "logit_scale", "clip_qkv",
    "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping", "use_parallel_residual", "parallel_attn",
    "alibi", "new_decoder_architecture", "num_experts", "num_local_experts", "num_experts_per_tok", "norm_topk_prob",
    "moe_intermediate_size", "shared_expert_intermediate_size", "decoder_sparse_step", "mlp_only_layers",
    "n_embd", "n_head", "n_layer", "n_positions", "n_inner", "scale_attn_weights", "scale_attn_by_inverse_layer_idx",
)  # fmt: skip
"""The fields that change what a model computes from the same tensors."""
CHUNK_BYTES: Final = 64 * 1024 * 1024
"""What is moved from a device at a time."""
THREADS_MAX: Final = 4
SAMPLE: Final = 8
"""Elements of each tensor that are looked at to see whether it was written to."""

_weights: WeakKeyDictionary[Any, tuple[Any, str]] = WeakKeyDictionary()
_adapters: WeakKeyDictionary[Any, tuple[Any, tuple[str, ...]]] = WeakKeyDictionary()


def fingerprint(model: Any, tokenizer: Any) -> str:
    """The digest by which this model and tokenizer are recognised, in this process and in others."""
    parts = (weights_digest(model), _config_digest(model.config), _tokenizer_digest(tokenizer))
    return _digest("memos.model/1", *parts)


def weights_digest(model: Any) -> str:
    """The digest of the loaded tensors alone."""
    tensors = _once(sorted(_own_tensors(model), key=lambda item: item[0]))
    marks = _marks(model, tensors)
    known = _weights.get(model)
    if known is None or known[0] != marks:
        with ThreadPoolExecutor(min(THREADS_MAX, os.cpu_count() or 1)) as threads:
            known = (marks, _digest("memos.weights/1", *threads.map(_tensor_digest, tensors)))
        _weights[model] = known
    return known[1]


def remember_weights(model: Any, digest: str) -> None:
    """Takes a digest that was computed before, from the same files in the same dtype."""
    tensors = _once(sorted(_own_tensors(model), key=lambda item: item[0]))
    _weights[model] = (_marks(model, tensors), digest)


def adapters(model: Any) -> tuple[str, ...]:
    """The digest of each adapter that is at work in the model, by content; () when there is none."""
    _refuse_prompts(model)
    found: dict[str, list[tuple[str, str, Any]]] = {}
    for path, layer in _tuned(model):
        for name in _active(layer):
            scaling: Any = getattr(layer, "scaling", None)
            scale = repr(float(scaling[name])) if isinstance(scaling, dict) and name in scaling else ""
            found.setdefault(name, []).extend((f"{path}.{own}", scale, tensor) for own, tensor in _adapter_tensors(layer, name))
    listed = {name: sorted(items, key=lambda item: item[0]) for name, items in found.items()}
    marks = [(name, path, scale, *_mark(t)) for name, items in sorted(listed.items()) for path, scale, t in items]
    known = _adapters.get(model)
    if known is None or known[0] != marks:
        known = (marks, tuple(sorted(adapter_digest(items) for items in listed.values())))
        _adapters[model] = known
    return known[1]


def adapter_digest(items: Iterable[tuple[str, str, torch.Tensor]]) -> str:
    """Of one adapter's tensors: path, scale as text, tensor; sorted by path."""
    return _digest("memos.adapter/1", *(_digest(scale, _tensor_digest((path, tensor))) for path, scale, tensor in items))


def rope_digest(model: Any) -> str:
    """The digest of what turns positions into rotations. Caches of models that differ in it do not fit each other."""
    parts: list[str] = []
    for path, module in sorted(_clean_modules(model), key=lambda item: item[0]):
        # Embeddings that adapt to long inputs keep what they began with.
        frequencies: Any = getattr(module, "original_inv_freq", None)
        if not isinstance(frequencies, torch.Tensor):
            frequencies = getattr(module, "inv_freq", None)
        if isinstance(frequencies, torch.Tensor):
            scaling = repr(float(getattr(module, "attention_scaling", 1.0)))
            parts += [path, scaling, _tensor_digest(("inv_freq", frequencies))]
    text = _text_config(model.config)
    fields = ("rope_parameters", "rope_theta", "rope_scaling", "partial_rotary_factor", "rotary_pct", "rotary_dim")
    return _digest("memos.rope/1", *parts, _canonical({name: getattr(text, name) for name in fields if hasattr(text, name)}))


def _own_tensors(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and stored buffers of the model itself, under the names that they have without adapters."""
    for path, module in _clean_modules(model):
        dropped: set[str] = getattr(module, "_non_persistent_buffers_set", set())
        buffers = ((name, tensor) for name, tensor in module.named_buffers(recurse=False) if name not in dropped)
        for name, tensor in (*module.named_parameters(recurse=False), *buffers):
            yield f"{path}.{name}" if path else name, tensor


def _clean_modules(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """Every module by path, as if nothing were wrapped: adapters stand around the layers that they change."""
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    waiting: list[tuple[str, nn.Module]] = [("", base)]
    while waiting:
        path, module = waiting.pop()
        inner: Any = getattr(module, "base_layer", None) or getattr(module, "original_module", None)
        if isinstance(inner, nn.Module):
            waiting.append((path, inner))
            continue
        yield path, module
        waiting += ((f"{path}.{name}" if path else name, child) for name, child in module.named_children())


def _tuned(model: Any) -> Iterator[tuple[str, Any]]:
    """Every layer that an adapter stands around, by the path that it has without adapters."""
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    for path, module in base.named_modules():
        wrapped = getattr(module, "base_layer", None) is not None or getattr(module, "original_module", None) is not None
        if wrapped and hasattr(module, "active_adapters"):
            yield path.replace(".base_layer", "").replace(".original_module", ""), module


def _active(layer: Any) -> list[str]:
    if getattr(layer, "disable_adapters", False):
        return []
    merged = set(getattr(layer, "merged_adapters", None) or ())
    return [name for name in layer.active_adapters if name not in merged]


def _adapter_tensors(layer: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """What the layer holds for one adapter: `lora_A.NAME.weight` as `lora_A.weight`."""
    for path, tensor in (*layer.named_parameters(), *layer.named_buffers()):
        parts = path.split(".")
        if parts[0] not in ("base_layer", "original_module") and name in parts:
            parts.remove(name)
            yield ".".join(parts), tensor


def _refuse_prompts(model: Any) -> None:
    if getattr(model, "peft_config", None) and getattr(model, "prompt_encoder", None):
        raise MemModel(
            "the model has a learned prompt, which stands before every input",
            "Disable it, or use adapters that change weights, such as LoRA.",
        )


def _once(tensors: list[tuple[str, torch.Tensor]]) -> list[tuple[str, torch.Tensor]]:
    """Without those that share their bytes with an earlier one."""
    seen: set[tuple[Any, ...]] = set()
    kept: list[tuple[str, torch.Tensor]] = []
    for name, tensor in tensors:
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.numel() == 0 or place not in seen:
            seen.add(place)
            kept.append((name, tensor))
    return kept


def _marks(model: Any, tensors: list[tuple[str, torch.Tensor]]) -> list[Any]:
    merged = [(path, tuple(getattr(layer, "merged_adapters", None) or ())) for path, layer in _tuned(model)]
    return [merged, *((name, *_mark(tensor)) for name, tensor in tensors)]


def _mark(tensor: torch.Tensor) -> tuple[int, int, str, tuple[int, ...]]:
    """What changes when a tensor is replaced or written to."""
    # Tensors made in inference mode count no writes, and writes through `data` are not counted: peft merges with them.
    version = -1 if tensor.is_inference() else tensor._version
    sample: tuple[int, ...] = ()
    if tensor.is_contiguous() and tensor.numel() and not tensor.is_meta:
        few = tensor.detach().reshape(-1)[:: max(1, tensor.numel() // SAMPLE)]
        sample = tuple(few.contiguous().view(torch.uint8).tolist())
    return tensor.data_ptr(), version, f"{tensor.dtype} {tuple(tensor.shape)}", sample


def _tensor_digest(named: tuple[str, torch.Tensor]) -> str:
    name, tensor = named
    if tensor.is_meta:
        raise MemModel(f"the weights are not loaded: {name} has no bytes", "Load the model wholly, without offloading.")
    shape = ",".join(map(str, tensor.shape))
    digest = hashlib.sha256(f"{name}\0{str(tensor.dtype).removeprefix('torch.')}\0{shape}\0".encode("utf-8", "surrogatepass"))
    with torch.inference_mode():
        # A copy only where the bytes are not already one after another.
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        for first in range(0, len(flat), CHUNK_BYTES):
            chunk: Any = flat[first : first + CHUNK_BYTES].cpu().numpy()
            digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


def _config_digest(config: Any) -> str:
    text = _text_config(config)
    return _digest("memos.config/1", _canonical({name: getattr(text, name) for name in CONFIG if hasattr(text, name)}))


def _text_config(config: Any) -> Any:
    return config.get_text_config(decoder=True)


def _tokenizer_digest(tokenizer: Any) -> str:
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise MemModel(
            f"the tokenizer ({type(tokenizer).__name__}) is not one that a tokenizer.json describes",
            "Use a model with a tokenizer.json beside its weights.",
        )
    described: dict[str, Any] = json.loads(backend.to_str())
    for passing in ("padding", "truncation"):
        described.pop(passing, None)
    template: Any = getattr(tokenizer, "chat_template", None)
    return _digest("memos.tokenizer/1", _canonical(described), _canonical([tokenizer.bos_token_id, template]))


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)


def _digest(*parts: str) -> str:
    """Of the parts one by one: no two lists of parts are the same bytes."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return f"sha256:{digest.hexdigest()}"
