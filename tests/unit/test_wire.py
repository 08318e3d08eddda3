"""Framing: bytes in, messages out, whatever the pieces they come in; hostile bytes are refused before they cost anything."""

from __future__ import annotations

import time
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memos_syscalls import limits, wire
from memos_syscalls.errors import MemProtocol, MemTooLarge


def packed(value: object) -> bytes:
    data: Any = msgpack.packb(value)
    return bytes(data)


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=10,
)  # fmt: skip
arguments = st.dictionaries(st.text(max_size=8), plain, max_size=5)


@given(st.integers(0, 2**64 - 1), st.integers(0, 65535), arguments)
def test_a_request_is_read_as_it_was_sent(call_id: int, number: int, args: dict[str, Any]) -> None:
    (body,) = wire.Splitter().feed(wire.pack_request(call_id, number, args))
    assert wire.parse_request(body) == (call_id, number, args)


@given(st.integers(0, 2**64 - 1), arguments)
def test_replies_errors_and_items_are_told_apart(call_id: int, body: dict[str, Any]) -> None:
    stream = wire.pack_reply(call_id, body) + wire.pack_error(call_id, 22, body) + wire.pack_item(call_id, body)
    found = [wire.parse_reply(one) for one in wire.Splitter().feed(stream)]
    assert found == [(call_id, 0, body), (call_id, 22, body), (call_id, wire.STREAM_ITEM, body)]


@given(st.lists(st.binary(max_size=40), max_size=6), st.lists(st.integers(1, 30), max_size=40))
def test_frames_do_not_depend_on_the_pieces_they_come_in(bodies: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(len(body).to_bytes(4, "little") + body for body in bodies)
    splitter, found, at = wire.Splitter(), list[bytes](), 0
    for cut in cuts:
        found += splitter.feed(stream[at : at + cut])
        at += cut
    found += splitter.feed(stream[at:])
    assert found == bodies and not splitter.partial


def test_a_partial_frame_is_known_as_one() -> None:
    splitter = wire.Splitter()
    data = wire.pack_request(1, 2, {})
    for at in range(len(data) - 1):
        assert splitter.feed(data[at : at + 1]) == [] and splitter.partial
    assert len(splitter.feed(data[-1:])) == 1 and not splitter.partial


def test_a_length_over_the_limit_is_refused_before_its_body_comes() -> None:
    splitter = wire.Splitter()
    assert splitter.feed((limits.FRAME_BYTES_MAX + 1).to_bytes(4, "little")[:3]) == []
    with pytest.raises(MemTooLarge):
        splitter.feed((limits.FRAME_BYTES_MAX + 1).to_bytes(4, "little")[3:])


def test_a_frame_at_the_limit_is_taken_also_in_drips() -> None:
    """A byte is copied a bounded number of times: one-byte pieces at the end of a large frame cost next to nothing."""
    body = bytes(limits.FRAME_BYTES_MAX)
    splitter = wire.Splitter()
    assert splitter.feed(len(body).to_bytes(4, "little") + body[:-20_000]) == []
    began = time.perf_counter()
    for _ in range(19_999):
        assert splitter.feed(b"\0") == []
    assert time.perf_counter() - began < 2, "copying the buffer for each piece would take minutes"
    assert splitter.feed(b"\0") == [body]


def test_a_body_over_the_limit_is_not_sent() -> None:
    with pytest.raises(MemTooLarge):
        wire.pack(bytes(limits.FRAME_BYTES_MAX))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_a_protocol_error(body: bytes) -> None:
    try:
        call_id, number, args = wire.parse_request(body)
    except MemProtocol as error:
        assert error.advice
    else:
        assert 0 <= call_id < 2**64 and 0 <= number < 2**16 and isinstance(args, dict)


@pytest.mark.parametrize(
    "message",
    [
        [], [1, 2], [1, 2, {}, 4], {"id": 1}, [-1, 2, {}], [2**64 - 1, 70_000, {}], ["1", 2, {}], [1, "2", {}], [1, 2, []],
        [1, 2, None], [True, 2, {}], [1, True, {}], [1.0, 2, {}], 7, None, [1, 2, {1: 2}],
        [1, 2, {"a": msgpack.ExtType(1, b"x")}], [1, 2, {"a": msgpack.Timestamp(1)}],
    ],
)  # fmt: skip
def test_what_is_not_id_number_and_map_is_refused(message: object) -> None:
    with pytest.raises(MemProtocol):
        wire.parse_request(packed(message))


LYING = [b"", b"\xc1", b"\x93\x01", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x93\x01\x02\x80\x00"]


@pytest.mark.parametrize("body", LYING)
def test_lying_lengths_and_trailing_bytes_are_refused(body: bytes) -> None:
    with pytest.raises(MemProtocol):
        wire.parse_request(body)


@pytest.mark.parametrize("inner", ["list", "map"])
def test_nesting_has_its_limit(inner: str) -> None:
    def nested(depth: int) -> Any:
        value: Any = 1
        for _ in range(depth):
            value = [value] if inner == "list" else {"k": value}
        return value

    wire.parse_request(packed([1, 2, {"a": nested(limits.WIRE_DEPTH_MAX)}]))
    for depth in (limits.WIRE_DEPTH_MAX + 1, 400):
        with pytest.raises(MemProtocol):
            wire.parse_request(packed([1, 2, {"a": nested(depth)}]))
    with pytest.raises(MemProtocol):
        wire.parse_request(b"\x93\x01\x02\x81\xa1a" + b"\x91" * 100_000 + b"\x01")


def test_text_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(MemProtocol):
        wire.parse_request(b"\x93\x01\x02\x81\xa1a\xa1\xff")
