"""The socket between the kernel and a driver host: messages with descriptors, the same in both directions.

A message is `u32 little-endian length` + that many bytes of a MessagePack map with `kind`; `fds`, if not 0, counts the
descriptors that travel beside its first byte. In order of a connection's life:

1. kernel → host, first: `spec {spec, beat}`
2. host → kernel: `ready {info}`, or `refused {errno, detail, advice}` and exit
3. kernel → host: `job {id, op, args, who, background}`, `cancel {id}`, `control {id, name, args}`
4. host → kernel: `item {id, item}`, `progress {id, share, message}`, `beat {}` (a step ended, at most every `beat`
   seconds); then once for each job and control `done {id, result}` or `failed {id, errno, detail, advice}`

An `Inbox` refuses what is too long, no such map, or has other descriptors than it announces. After a refusal
the connection must be closed, for the stream has no place to resume; no descriptor stays open.
"""

from __future__ import annotations

import array
import os
import socket
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgpack

from memos_syscalls import limits
from memos_syscalls.errors import MemError, MemTooLarge
from memos_syscalls.wire import Splitter

FDS_MAX: Final = limits.ATTACHED_CUBES_MAX
"""With one message: a call may bring a payload for each cube that it names."""
RECEIVE_BYTES: Final = 64 * limits.KIB
ERROR_CHARS_MAX: Final = 2000
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(array.array("i").itemsize * FDS_MAX)
_CONTAINERS_MIN: Final = 4096
_BYTES_PER_CONTAINER: Final = 64
"""A message of n bytes holds at most _CONTAINERS_MIN + n / _BYTES_PER_CONTAINER maps and lists. They are what can take far
more memory than bytes on the wire; long lists of numbers (token ids) are let through."""


class Garbage(Exception):
    """The peer does not speak this protocol."""


def message(body: dict[str, Any], fds: int = 0) -> bytes:
    """The bytes of one message that goes with this many descriptors. `TypeError` or `ValueError` for what MessagePack
    cannot say, `MemTooLarge` for what is over the limit."""
    data = bytes(msgpack.packb({**body, "fds": fds} if fds else body, use_bin_type=True) or b"")
    if len(data) > limits.FRAME_BYTES_MAX:
        raise MemTooLarge(
            f"a message of {len(data)} bytes to or from the driver host is over the limit of {limits.FRAME_BYTES_MAX}",
            "Pass large content as a descriptor.",
        )
    return len(data).to_bytes(4, "little") + data


def failure(error: MemError) -> dict[str, str]:
    """The fields that carry an error; they always fit a message."""
    return {"errno": error.errno, "detail": _text(error.detail), "advice": _text(error.advice)}


def _text(text: str) -> str:
    return text[:ERROR_CHARS_MAX].encode("utf-8", "replace").decode()


def _unpack(body: bytes) -> dict[str, Any]:
    left = _CONTAINERS_MIN + len(body) // _BYTES_PER_CONTAINER

    def count(value: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError("more maps and lists than a message of this size may hold")
        return value

    try:
        value = msgpack.unpackb(body, raw=False, strict_map_key=True, max_ext_len=0, object_hook=count, list_hook=count)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise Garbage(f"a message is not MessagePack ({type(error).__name__})") from error
    if type(value) is not dict or type(value.get("kind")) is not str:
        raise Garbage("a message is not a map with a kind")
    return value


class Inbox:
    """Puts messages and their descriptors together.

    Invariants: what `feed` returned belongs to the caller, descriptors included; what it holds belongs to a message
    that has begun. Descriptors come with their message's first byte, so they are never behind its last.
    """

    def __init__(self) -> None:
        self._splitter = Splitter()
        self._fds: deque[int] = deque()

    def feed(self, data: bytes, fds: Iterable[int]) -> list[tuple[dict[str, Any], list[int]]]:
        """The messages that `data` completes, in order."""
        self._fds.extend(fds)
        messages: list[tuple[dict[str, Any], list[int]]] = []
        try:
            for body in self._splitter.feed(data):
                value = _unpack(body)
                count = value.pop("fds", 0)
                if type(count) is not int or not 0 <= count <= min(FDS_MAX, len(self._fds)):
                    raise Garbage("a message came with fewer descriptors than it announces")
                messages.append((value, [self._fds.popleft() for _ in range(count)]))
            if len(self._fds) > (FDS_MAX if self._splitter.partial else 0):
                raise Garbage("more descriptors came than were announced")
        except (Garbage, MemError) as error:
            for _, taken in messages:
                close_all(taken)
            self.close()
            raise error if isinstance(error, Garbage) else Garbage(error.detail) from error
        return messages

    def close(self) -> None:
        """Closes the descriptors that wait for the rest of their message."""
        while self._fds:
            os.close(self._fds.popleft())


def receive(peer: socket.socket) -> tuple[bytes, list[int]]:
    """What one `recvmsg` gives; no bytes means that the peer closed."""
    data, ancillary, flags, _ = peer.recvmsg(RECEIVE_BYTES, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, raw in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(raw[: len(raw) - len(raw) % fds.itemsize])
    if flags & socket.MSG_CTRUNC:
        close_all(fds)
        raise Garbage(f"more than {FDS_MAX} descriptors came at once")
    return data, list(fds)


def send(peer: socket.socket, data: bytes | memoryview, fds: Sequence[int]) -> int:
    """One `sendmsg`: how many bytes went out. The descriptors go with the first of them."""
    return peer.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else [])


def close_all(fds: Iterable[int]) -> None:
    """Closes descriptors that this process owns."""
    for fd in fds:
        os.close(fd)
