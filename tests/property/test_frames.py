"""The wire, for any message and any cut of the stream: what goes in comes out; hostile bytes are refused."""

from __future__ import annotations

import struct
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.outside import packed

from memos_syscalls import limits, wire
from memos_syscalls.errors import MemError, MemProtocol, MemTooLarge, from_wire

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False),
    st.text(max_size=50),
    st.binary(max_size=50),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=20
)
arguments = st.dictionaries(st.text(max_size=10), values, max_size=5)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**16 - 1), arguments)
def test_a_request_comes_out_as_it_went_in(call_id: int, number: int, args: dict[str, Any]) -> None:
    (body,) = wire.Splitter().feed(wire.pack_request(call_id, number, args))
    assert wire.parse_request(body) == (call_id, number, args)


@given(st.integers(0, 2**64 - 1), arguments)
def test_replies_and_items_come_out_as_they_went_in(call_id: int, result: dict[str, Any]) -> None:
    stream = wire.pack_reply(call_id, result) + wire.pack_item(call_id, result)
    assert [wire.parse_reply(body) for body in wire.Splitter().feed(stream)] == [
        (call_id, 0, result), (call_id, wire.STREAM_ITEM, result),
    ]  # fmt: skip


@given(st.sampled_from([MemProtocol, MemTooLarge, MemError]), st.text(max_size=40), st.sampled_from(["none", "unknown"]))
def test_an_error_comes_out_as_it_went_in(kind: type[MemError], detail: str, outcome: Any) -> None:
    error = kind(detail, outcome=outcome)
    (body,) = wire.Splitter().feed(wire.pack_error(3, error.number, error.to_wire()))
    call_id, status, fields = wire.parse_reply(body)
    again = from_wire(status, fields)
    assert (call_id, again.errno, again.detail, again.outcome) == (3, error.errno, detail, outcome)


@given(st.lists(st.binary(max_size=300), max_size=12), st.data())
def test_however_the_stream_is_cut_the_same_frames_come_out(bodies: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(struct.pack("<I", len(body)) + body for body in bodies)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    splitter = wire.Splitter()
    found: list[bytes] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += [bytes(body) for body in splitter.feed(stream[start:end])]
        assert splitter.partial == (len(stream[:end]) != sum(4 + len(body) for body in found))
    assert found == bodies
    assert not splitter.partial


@given(st.lists(st.binary(max_size=40), max_size=5), st.integers(limits.FRAME_BYTES_MAX + 1, 2**32 - 1))
def test_a_length_over_the_limit_is_refused_wherever_it_stands(bodies: list[bytes], length: int) -> None:
    stream = b"".join(struct.pack("<I", len(body)) + body for body in bodies) + struct.pack("<I", length)
    splitter = wire.Splitter()
    try:
        for at in range(0, len(stream), 7):
            splitter.feed(stream[at : at + 7])
    except MemTooLarge:
        return
    raise AssertionError("the length was not refused")


@settings(max_examples=200)
@given(st.one_of(st.binary(max_size=200), values.map(packed), st.tuples(values, values, values).map(packed)))
def test_any_body_is_a_request_or_refused(body: bytes) -> None:
    try:
        call_id, number, args = wire.parse_request(body)
    except MemProtocol:
        return
    assert 0 <= call_id < 2**64 and 0 <= number < 2**16 and isinstance(args, dict)


def test_nesting_is_bounded_at_the_stated_depth() -> None:
    def nested(depth: int) -> Any:
        value: Any = 1
        for _ in range(depth):
            value = {"k": [value]} if depth % 2 else [value]
        return value

    wire.parse_request(packed([1, 2, {"x": nested(limits.WIRE_DEPTH_MAX // 2)}]))
    for depth in (limits.WIRE_DEPTH_MAX + 2, 400, 900):
        try:
            wire.parse_request(packed([1, 2, {"x": nested(depth)}]))
        except (MemProtocol, ValueError):
            continue
        raise AssertionError(f"depth {depth} was not refused")
