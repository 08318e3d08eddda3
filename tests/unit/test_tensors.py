"""The safetensors format: ours and the package's agree, and nothing hostile gets further than `MemInvalid`."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memos_drivers.tensors import DTYPE_BYTES, HEADER_BYTES_MAX, Layout, parse, plan
from memos_syscalls.errors import MemInvalid

CACHE = [
    ("k.0", "F32", (2, 3, 4)), ("v.0", "BF16", (2, 3, 4)), ("empty", "F16", (0, 7)), ("one", "I64", ()), ("ids", "I64", (3,)),
]  # fmt: skip


def file_of(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(begin: int = 0, end: int = 4, dtype: object = "F32", shape: object = (1,)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def refusal(data: bytes, size: int | None = None) -> str:
    with pytest.raises(MemInvalid) as caught:
        parse(data, size)
    return caught.value.detail


def test_what_is_planned_is_found_again() -> None:
    head, layout = plan(CACHE, {"memos": "{}", "ü": "→"})
    assert len(head) % 64 == 0
    assert parse(head + bytes(layout.size - len(head))) == layout
    assert parse(memoryview(head), layout.size) == layout
    assert [(t.name, t.dtype, t.shape) for t in layout.tensors] == CACHE
    assert layout.tensors[0].offset == len(head)
    assert layout.tensors[-1].offset + layout.tensors[-1].bytes == layout.size
    assert plan([], {})[1] == Layout((), {}, 64)


def test_the_package_reads_ours_and_we_read_its() -> None:
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    tensors = {
        "k.0": torch.arange(24.0).reshape(2, 3, 4),
        "ids": torch.arange(5),
        "none": torch.zeros(0, 3, dtype=torch.bfloat16),
    }
    theirs: bytes = safetensors.save(tensors, {"memos": "x"})
    found = parse(theirs)
    assert found.metadata == {"memos": "x"}
    for info in found.tensors:
        assert tuple(tensors[info.name].shape) == info.shape
        assert theirs[info.offset : info.offset + info.bytes] == tensors[info.name].view(-1).view(torch.uint8).numpy().tobytes()
    names = [("k.0", "F32", (2, 3, 4)), ("ids", "I64", (5,)), ("none", "BF16", (0, 3))]
    head, _layout = plan(names, {"memos": "x"})
    again = safetensors.load(
        head + b"".join(tensors[name].view(-1).view(torch.uint8).numpy().tobytes() for name, _d, _s in names)
    )
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("dtype", DTYPE_BYTES)
def test_every_dtype_is_one_of_the_package(dtype: str) -> None:
    rust = pytest.importorskip("safetensors")
    head, layout = plan([("t", dtype, (3,))], {})
    ((_name, found),) = rust.deserialize(head + bytes(layout.size - len(head)))
    assert (found["dtype"], found["shape"], len(found["data"])) == (dtype, [3], 3 * DTYPE_BYTES[dtype])


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "too few"),
        (b"1234567", "too few"),
        (file_of(b"{}", length=3), "claims 3 bytes, and 2 are there"),
        (file_of(b"{}", length=HEADER_BYTES_MAX + 1), "limit"),
        (file_of(b"{}", length=2**64 - 1), "limit"),
        (file_of(b""), "begin with {"),
        (file_of(b" {}"), "begin with {"),
        (file_of(b"[]"), "begin with {"),
        (file_of(b"{"), "not JSON"),
        (file_of(b"{}x"), "not JSON"),
        (file_of(b'{"\xff":1}'), "not UTF-8"),
        (file_of(b'{"a":' * 100_000), "not JSON"),
        (file_of(b'{"a":' + b"9" * 5000 + b"}"), "not JSON"),
        (file_of(b'{"a":NaN}'), "NaN"),
        (file_of(b'{"a":1,"a":1}'), "given twice"),
        (file_of(b'{"t":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)), "given twice"),
        (file_of(b'{"__metadata__":{"a":"1","a":"2"}}'), "given twice"),
        (file_of({"__metadata__": {"a": 1}}), "metadata"),
        (file_of({"__metadata__": ["a"]}), "metadata"),
        (file_of(b'{"__metadata__":{"a":"\\ud800"}}'), "metadata"),
        (file_of(b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)), "not Unicode"),
        (file_of({"t": 1}), "is not described"),
        (file_of({"t": {"dtype": "F32", "shape": [1]}}), "is not described"),
        (file_of({"t": entry() | {"more": 1}}, bytes(4)), "is not described"),
        (file_of({"t": entry(dtype=1)}, bytes(4)), "is not text"),
        (file_of({"t": entry(dtype="F31")}, bytes(4)), "dtype 'F31'"),
        (file_of({"t": entry(dtype="f32")}, bytes(4)), "dtype 'f32'"),
        (file_of({"t": entry(shape=[-1])}, bytes(4)), "whole numbers"),
        (file_of({"t": entry(shape=[1.0])}, bytes(4)), "whole numbers"),
        (file_of({"t": entry(shape=[True])}, bytes(4)), "whole numbers"),
        (file_of({"t": entry(shape="1")}, bytes(4)), "whole numbers"),
        (file_of({"t": entry(shape=[2**63])}, bytes(4)), "whole numbers"),
        (file_of({"t": entry(shape=[2**62, 2])}, bytes(4)), "no memory holds"),
        (file_of({"t": entry(shape=[2**32, 2**32, 0], end=0)}), "no memory holds"),
        (file_of({"t": entry(shape=[2])}, bytes(4)), "8 bytes, and has 4"),
        (file_of({"t": entry(-4, 0)}, bytes(4)), "beginning and an end"),
        (file_of({"t": entry(4, 0)}, bytes(4)), "beginning and an end"),
        (file_of({"t": entry() | {"data_offsets": [0, 4, 8]}}, bytes(4)), "beginning and an end"),
        (file_of({"t": entry()}, bytes(3)), "tensors end"),
        (file_of({"t": entry()}, bytes(5)), "tensors end"),
        (file_of({}, b"x"), "tensors end"),
        (file_of({"t": entry(4, 8)}, bytes(8)), "hole or an overlap"),
        (file_of({"t": entry(), "u": entry()}, bytes(4)), "hole or an overlap"),
        (file_of({"t": entry(), "u": entry(2, 6)}, bytes(6)), "hole or an overlap"),
        (file_of({"t": entry(), "u": entry(8, 12)}, bytes(12)), "hole or an overlap"),
    ],
)
def test_what_lies_is_refused_and_told_why(data: bytes, why: str) -> None:
    assert why in refusal(data)


def test_a_file_that_was_cut_is_refused() -> None:
    head, layout = plan(CACHE, {"memos": "x"})
    whole = head + bytes(layout.size - len(head))
    for size in range(len(whole)):
        refusal(whole[:size])
        refusal(head, size)
    refusal(whole + b"\0")


def test_a_smaller_header_may_be_asked_for() -> None:
    head, layout = plan(CACHE, {})
    with pytest.raises(MemInvalid, match="limit is 10"):
        parse(head, layout.size, header_bytes_max=10)


@pytest.mark.parametrize(
    "tensors",
    [
        [("a", "F32", (1,)), ("a", "F32", (1,))], [("__metadata__", "F32", (1,))], [("a", "F4", (2,))], [("a", "F32", (-1,))],
        [("a", "F32", (2**40, 2**40))], [("\ud800", "F32", (1,))],
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_not_planned(tensors: list[tuple[str, str, tuple[int, ...]]]) -> None:
    with pytest.raises(MemInvalid):
        plan(tensors, {"m": "x"})


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
planned = st.lists(
    st.tuples(names.filter(lambda name: name != "__metadata__"), st.sampled_from(sorted(DTYPE_BYTES)), shapes),
    max_size=6, unique_by=lambda tensor: tensor[0],
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(planned, st.dictionaries(names, names, max_size=3))
def test_any_plan_is_accepted_by_both(tensors: list[tuple[str, str, tuple[int, ...]]], metadata: dict[str, str]) -> None:
    head, layout = plan(tensors, metadata)
    whole = head + bytes(layout.size - len(head))
    found = parse(whole)
    # Empty tensors that begin where another does may change places.
    assert sorted(found.tensors) == sorted(layout.tensors)
    assert (found.metadata, found.size) == (metadata, len(whole))
    theirs: Any = pytest.importorskip("safetensors").deserialize(whole)
    assert {name: (e["dtype"], tuple(e["shape"])) for name, e in theirs} == {t.name: (t.dtype, t.shape) for t in layout.tensors}


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["F32", "I8", 0, 4, 8]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "t", ""]), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(names, anything, max_size=4), st.integers(0, 64))
def test_no_header_breaks_it(header: dict[str, Any], data: int) -> None:
    try:
        found = parse(file_of(header, bytes(data)))
    except MemInvalid:
        return
    assert sum(tensor.bytes for tensor in found.tensors) == data


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_mutation_breaks_it_and_what_passes_the_package_passes(data: st.DataObject) -> None:
    head, layout = plan(CACHE, {"memos": "x"})
    whole = bytearray(head + bytes(layout.size - len(head)))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(head) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = parse(bytes(whole))
    except MemInvalid:
        return
    theirs: Any = pytest.importorskip("safetensors").deserialize(bytes(whole))
    assert {name for name, _entry in theirs} == {tensor.name for tensor in found.tensors}
