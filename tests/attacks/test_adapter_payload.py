"""Payloads of adapters from strangers: each is an adapter that fits, or a typed refusal; nothing else comes of it.

Outcomes: what is no safetensors file, contradicts itself or says what its tensors do not is `EINVAL`; what another model is
needed for is `EMODEL`. Nothing is allocated for lengths that lie.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import lm
from transformers import AutoModelForCausalLM

from memos_drivers import tensors
from memos_drivers.parametric.adapter import FORMAT, PREFIX, Adapter, applied, pack, refusal, unpack
from memos_syscalls.errors import MemError, MemInvalid, MemModel

tiny = lm.tiny
PATH = "model.layers.0.mlp.up_proj"
A, B = f"{PREFIX}{PATH}.lora_A.weight", f"{PREFIX}{PATH}.lora_B.weight"
TOLD = {"format": FORMAT, "base": "", "rank": 2, "alpha": 4.0, "targets": ["up_proj"], "layers": [0], "modules": 1}
GOOD: list[tuple[str, str, tuple[int, ...]]] = [(A, "F32", (2, 64)), (B, "F32", (128, 2))]
IDS = torch.arange(5, 15)[None]


@pytest.fixture(scope="module")
def model(tiny: Path) -> Any:
    made: Any = AutoModelForCausalLM.from_pretrained(tiny)
    return made.eval()


def made(listed: Sequence[tuple[str, str, tuple[int, ...]]] | None = None, told: Any = TOLD, fill: bytes = b"\0") -> bytes:
    metadata = {} if told is None else {"memos": told if isinstance(told, str) else json.dumps(told)}
    head, layout = tensors.plan(GOOD if listed is None else listed, metadata)
    return head + fill * (layout.size - len(head))


def tried(model: Any, data: bytes) -> Adapter | MemError:
    """An adapter that runs, or the refusal."""
    fd = os.memfd_create("hostile", os.MFD_CLOEXEC)
    try:
        os.write(fd, data)
        adapter = unpack(fd)
    except MemError as error:
        return error
    finally:
        os.close(fd)
    refused = refusal(adapter, model, "sha256:here")
    if refused is None:
        with torch.inference_mode(), applied(model, [(adapter, 1.0)]):
            assert model(IDS).logits.shape == (1, 10, 512)
        assert adapter.digest.startswith("sha256:")
    return refused or adapter


def test_the_good_one_is_taken(model: Any) -> None:
    assert isinstance(tried(model, made()), Adapter)
    least = {"format": FORMAT, "rank": 2, "alpha": 4, "modules": 1}
    assert isinstance(tried(model, made(told=least)), Adapter)


@pytest.mark.parametrize("told", [
    None, "", "{", "[]", "null", "[" * 50_000, "{}", {**TOLD, "format": "memos.lora/2"}, {**TOLD, "format": None},
    {**TOLD, "rank": 3}, {**TOLD, "rank": "2"}, {**TOLD, "rank": True}, {**TOLD, "rank": None}, {**TOLD, "alpha": "4"},
    {**TOLD, "alpha": 0}, {**TOLD, "alpha": -1}, {**TOLD, "alpha": None}, {**TOLD, "alpha": True}, {**TOLD, "alpha": [4]},
    json.dumps(TOLD).replace("4.0", "NaN"), json.dumps(TOLD).replace("4.0", "1e999"),
    json.dumps(TOLD).replace("4.0", "9" * 400), json.dumps(TOLD).replace("4.0", "9" * 9999),
    {**TOLD, "modules": 2}, {**TOLD, "modules": True}, {**TOLD, "targets": ["q_proj"]}, {**TOLD, "targets": "up_proj"},
    {**TOLD, "layers": [1]}, {**TOLD, "layers": None}, {**TOLD, "base": 7}, {**TOLD, "base": None},
    {key: value for key, value in TOLD.items() if key != "rank"}, {key: value for key, value in TOLD.items() if key != "alpha"},
], ids=lambda told: repr(told)[:60])  # fmt: skip
def test_a_descriptor_that_lies_is_refused(model: Any, told: Any) -> None:
    assert isinstance(tried(model, made(told=told)), MemInvalid)


@pytest.mark.parametrize("listed", [
    [], GOOD[:1], GOOD[1:], [*GOOD, ("memos.kv", "F32", (1,))], [*GOOD, (f"{PREFIX}x.lora_A.weight", "F32", (2, 64))],
    [*GOOD, (f"{PREFIX}x.lora_magnitude_vector.weight", "F32", (2,))], [*GOOD, (f"{PREFIX}x.lora_embedding_A", "F32", (2,))],
    [*GOOD, (f"{PREFIX}.lora_A.weight", "F32", (2,))], [(A.replace(PREFIX, ""), *GOOD[0][1:]), GOOD[1]],
    [(A, "F64", (2, 64)), (B, "F64", (128, 2))], [(A, "I8", (2, 64)), (B, "I8", (128, 2))], [(A, "F16", (2, 64)), GOOD[1]],
    [(A, "F32", (2, 64, 1)), GOOD[1]], [(A, "F32", (128,)), GOOD[1]], [(A, "F32", ()), (B, "F32", ())],
    [(A, "F32", (3, 64)), GOOD[1]], [(A, "F32", (0, 64)), (B, "F32", (128, 0))], [(A, "F32", (2, 0)), GOOD[1]],
    [*GOOD, ("memos.facts", "I8", (3,))], [*GOOD, ("memos.facts", "U8", (3, 1))], [*GOOD, ("memos.facts", "U8", (0,))],
    [*GOOD, ("memos.facts", "U8", (3,))],
], ids=lambda listed: ",".join(f"{name[-14:]}{kind}{shape}" for name, kind, shape in listed[-2:]) or "none")  # fmt: skip
def test_tensors_that_are_no_adapter_are_refused(model: Any, listed: Any) -> None:
    assert isinstance(tried(model, made(listed)), MemInvalid)


@pytest.mark.parametrize("path", [
    "lm_head", "model.embed_tokens", "model.norm", "model", "model.layers", "model.layers.0.mlp.act_fn",
    "model.layers.-1.mlp.up_proj",
    "model.layers.00.mlp.up_proj", "__class__", "_modules", "model.layers.0.mlp.up_proj.weight", "config", "..", "\x00",
    "a" * 5000,
    "base_model.layers.0.mlp.up_proj", "model.layers.\u0660.mlp.up_proj", "model.layers.0.mlp.up_proj\n",
])  # fmt: skip
def test_a_path_to_what_is_no_linear_layer_is_another_models(model: Any, path: str) -> None:
    listed = [(f"{PREFIX}{path}.lora_{side}.weight", kind, shape) for side, (_n, kind, shape) in zip("AB", GOOD, strict=True)]
    told = {key: value for key, value in TOLD.items() if key not in ("targets", "layers")}
    found = tried(model, made(listed, told))
    assert isinstance(found, MemModel) and len(found.detail) < 500


def test_sizes_and_numbers_that_do_not_fit_are_refused(model: Any) -> None:
    wide = [(A, "F32", (2, 65)), GOOD[1]]
    assert isinstance(tried(model, made(wide)), MemModel)
    assert isinstance(tried(model, made(told={**TOLD, "base": "sha256:there"})), MemModel)
    assert isinstance(tried(model, made(fill=b"\xff")), MemInvalid), "not numbers"
    deep = [(A, "F32", (300, 64)), (B, "F32", (128, 300))]
    assert isinstance(tried(model, made(deep, {**TOLD, "rank": 300})), MemInvalid)
    high = [(A, "F32", (65, 64)), (B, "F32", (128, 65))]
    assert isinstance(tried(model, made(high, {**TOLD, "rank": 65})), MemInvalid), "more than its sizes can use"
    mixed = [
        *GOOD,
        *((name.replace("up", "gate"), kind, shape) for name, kind, shape in ((A, "F32", (1, 64)), (B, "F32", (128, 1)))),
    ]
    assert isinstance(tried(model, made(mixed, {**TOLD, "modules": 2})), MemInvalid)


def test_lengths_that_lie_cost_nothing(model: Any) -> None:
    data = made()
    for length in (0, 1, 2**24 + 1, 2**40, 2**63, 2**64 - 1):
        assert isinstance(tried(model, struct.pack("<Q", length) + data[8:]), MemInvalid)
    text = data[8:].replace(b"[128,2]", b"[999999999,2]")
    assert isinstance(tried(model, data[:8] + text), MemInvalid)
    for end in (0, 1, 8, 100, len(data) - 1):
        assert isinstance(tried(model, data[:end]), MemInvalid)
    assert isinstance(tried(model, data + b"\0"), MemInvalid)


def test_tensors_at_odd_places_are_read_right(model: Any) -> None:
    """Other writers align nothing: what cannot be read where it lies is copied."""
    header = {
        "__metadata__": {"memos": json.dumps({**TOLD, "modules": 1})},
        "memos.facts": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        A: {"dtype": "F32", "shape": [2, 64], "data_offsets": [3, 515]},
        B: {"dtype": "F32", "shape": [128, 2], "data_offsets": [515, 1539]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    numbers = torch.arange(384, dtype=torch.float32)
    raw: Any = numbers.numpy()
    found = tried(model, struct.pack("<Q", len(text)) + text + b"{ }" + raw.tobytes())
    assert isinstance(found, Adapter)
    assert torch.equal(torch.cat([one.reshape(-1) for one in found.modules[PATH]]), numbers)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_damage_is_refused_or_is_an_adapter(model: Any, data: Any) -> None:
    packed = pack({PATH: (torch.ones(2, 64), torch.ones(128, 2))}, 4, {"base": ""}, {"facts": [{"a": 1}]})
    try:
        raw = bytearray(os.pread(packed.fd, packed.bytes, 0))
    finally:
        os.close(packed.fd)
    header = 8 + struct.unpack_from("<Q", raw)[0]
    for _count in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, header - 1) | st.integers(0, len(raw) - 1))
        match data.draw(st.sampled_from(("byte", "text", "cut", "more"))):
            case "byte":
                raw[at] = data.draw(st.integers(0, 255))
            case "text":
                word = data.draw(st.sampled_from((b'"', b"}", b"9", b"-", b"\\u0000", b"null", b"[]", b"F64", b"_B", b"1e400")))
                raw[at : at + len(word)] = word
            case "cut":
                del raw[at : at + data.draw(st.integers(1, 64))]
            case _:
                raw[at:at] = data.draw(st.binary(max_size=16))
        if len(raw) < header:
            break
    tried(model, bytes(raw))


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(st.sampled_from(sorted(TOLD)), st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=5,
    ))
)  # fmt: skip
def test_any_descriptor_is_refused_or_is_an_adapter(model: Any, changes: dict[str, Any]) -> None:
    tried(model, made(told={**TOLD, **changes}))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_refused(model: Any, data: bytes) -> None:
    assert isinstance(tried(model, data), MemInvalid)
    assert isinstance(tried(model, struct.pack("<Q", len(data)) + data), MemInvalid)
