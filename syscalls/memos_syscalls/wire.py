"""Sans-I/O framing: bytes in, messages out, and back.

A frame is `u32 little-endian length` + that many bytes of MessagePack. Bodies:

1. request  `[id: u64, number: u16, args: map]`
2. reply    `[id, 0, result: map]` or `[id, errno: u16, error: map]`
3. item     `[id, 65535, item: map]`: one of many in a stream; a reply ends the stream

A `Splitter` refuses a length over the limit before it buffers a byte of the body, and bodies that are not
MessagePack or nest deeper than the limit. Refusals raise `MemProtocol` or `MemTooLarge`; the connection must then
be closed, for the stream has no place to resume. Descriptors travel beside the bytes; this module never sees them.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import msgpack

from . import limits
from .errors import MemProtocol, MemTooLarge

STREAM_ITEM: Final = 65535
_LENGTH: Final = struct.Struct("<I")
_U64_MAX: Final = 2**64 - 1
_packer = msgpack.Packer(use_bin_type=True, autoreset=True)


def pack(body: Any) -> bytes:
    """One frame around a body. Raises `MemTooLarge` when the body is over the limit."""
    data: bytes = _packer.pack(body)
    if len(data) > limits.FRAME_BYTES_MAX:
        raise MemTooLarge(f"a frame of {len(data)} bytes is over the limit of {limits.FRAME_BYTES_MAX}")
    return _LENGTH.pack(len(data)) + data


def pack_request(call_id: int, number: int, args: dict[str, Any]) -> bytes:
    return pack((call_id, number, args))


def pack_reply(call_id: int, result: dict[str, Any]) -> bytes:
    return pack((call_id, 0, result))


def pack_error(call_id: int, number: int, error: dict[str, object]) -> bytes:
    return pack((call_id, number, error))


def pack_item(call_id: int, item: dict[str, Any]) -> bytes:
    return pack((call_id, STREAM_ITEM, item))


class _Budget:
    """Counts what a large body unpacks to while it unpacks, so that a flood of tiny values ends early."""

    __slots__ = ("left",)

    def __init__(self, size: int) -> None:
        self.left = limits.WIRE_VALUES_MIN + size // limits.WIRE_BYTES_PER_VALUE

    def count(self, value: Any) -> Any:
        self.left -= len(value) + 1
        if self.left < 0:
            raise ValueError("more values than a body of this size may hold")
        return value


def unpack(body: bytes | memoryview) -> Any:
    """The structure in one body; hostile bytes raise `MemProtocol`."""
    try:
        if len(body) <= limits.WIRE_VALUES_MIN:
            return msgpack.unpackb(body, raw=False, strict_map_key=True, max_ext_len=0)
        count = _Budget(len(body)).count
        return msgpack.unpackb(
            body, raw=False, strict_map_key=True, max_ext_len=0, max_array_len=limits.EMBEDDING_DIMS_MAX,
            max_map_len=limits.EMBEDDING_DIMS_MAX, object_hook=count, list_hook=count,
        )  # fmt: skip
    except (ValueError, msgpack.UnpackException, TypeError, RecursionError, UnicodeDecodeError) as error:
        raise MemProtocol(f"the frame is not MessagePack, or not a request ({type(error).__name__})") from error


def _deep(value: Any, depth: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value
    nested = [v for v in inner if type(v) is dict or type(v) is list]
    return bool(nested) and (depth <= 1 or any(_deep(v, depth - 1) for v in nested))


def parse_request(body: bytes | memoryview) -> tuple[int, int, dict[str, Any]]:
    """`(id, number, args)` of a request body, or `MemProtocol`."""
    message = unpack(body)
    if type(message) is not list or len(message) != 3:
        raise MemProtocol("a request is an array of three: id, number, arguments")
    call_id, number, args = message
    if type(call_id) is not int or not 0 <= call_id <= _U64_MAX or type(number) is not int or not 0 <= number <= 0xFFFF:
        raise MemProtocol("a request's id is a u64 and its number a u16")
    if type(args) is not dict:
        raise MemProtocol("a request's arguments are a map")
    for value in args.values():
        if type(value) in (dict, list) and _deep(value, limits.WIRE_DEPTH_MAX):
            raise MemProtocol(f"arguments nest deeper than {limits.WIRE_DEPTH_MAX}")
    return call_id, number, args


def parse_reply(body: bytes | memoryview) -> tuple[int, int, dict[str, Any]]:
    """`(id, status, map)` of a reply or item body: status is 0, an errno, or `STREAM_ITEM`."""
    message = unpack(body)
    if type(message) is not list or len(message) != 3 or type(message[2]) is not dict:
        raise MemProtocol("a reply is an array of three: id, status, map")
    return message[0], message[1], message[2]


class Splitter:
    """Cuts a byte stream into frame bodies.

    Invariants: `_buffer` never holds a whole frame after `feed` returned; it never grows over one frame; a byte is
    copied a bounded number of times, however small the pieces are that it comes in.
    """

    __slots__ = ("_buffer", "_need")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._need = 4
        """Bytes that the buffer must reach before another look at it is worth while."""

    def feed(self, data: bytes) -> list[bytes]:
        """The bodies that `data` completes, in order."""
        whole: bytes | bytearray = data
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._need:
                return []
            whole = self._buffer
        bodies: list[bytes] = []
        at, end = 0, len(whole)
        self._need = 4
        while end - at >= 4:
            (length,) = _LENGTH.unpack_from(whole, at)
            if length > limits.FRAME_BYTES_MAX:
                raise MemTooLarge(f"a frame of {length} bytes is over the limit of {limits.FRAME_BYTES_MAX}")
            if end - at - 4 < length:
                self._need = 4 + length
                break
            bodies.append(bytes(whole[at + 4 : at + 4 + length]))
            at += 4 + length
        if whole is self._buffer:
            del self._buffer[:at]
        elif at < end:
            self._buffer += data[at:]
        return bodies

    @property
    def partial(self) -> bool:
        """Whether a frame has begun and not ended."""
        return bool(self._buffer)
