"""One connection's wire without its socket: arguments become frames, frames become replies. Both clients stand on it.

What callers may rely on:

1. Call ids start at 1 and are never used twice in a `Session`; a new connection takes a new `Session`, so a reply
   that comes late can never be taken for the reply to another call.
2. Content over `limits.CONTENT_INLINE_BYTES_MAX` leaves as a sealed memfd (`enclose`), and comes back as one.
3. A frame that names `fd` carries one descriptor; descriptors arrive no later than the end of their frame, in order.
4. `Retry` alone decides whether a broken call is repeated: reads, mutations with a request id, and calls whose frame
   did not leave whole. Every other mutation ends as `outcome="unknown"`.

Requests are not validated here, for the kernel does that; replies are, by the table's models.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, Final, Generic, NamedTuple, TypeVar, cast

import msgpack
from pydantic import BaseModel, ValidationError

from memos_syscalls import limits, wire
from memos_syscalls.errors import (
    MemError,
    MemInvalid,
    MemIO,
    MemProtocol,
    MemTimeout,
    MemTooLarge,
    MemUnreachable,
    Outcome,
    from_wire,
)
from memos_syscalls.messages import MemMapReply, Reply, SysCancelReply, SysHelloReply
from memos_syscalls.table import BY_NAME, Flag

R = TypeVar("R", bound=Reply)

RECEIVE_BYTES: Final = 64 * limits.KIB
GRACE_S: Final = 1.0
"""How much longer than the deadline the client waits, so that the kernel's own answer to it can still arrive."""
RETRY_PAUSES_S: Final = (0.0, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0)
"""Pauses before each repeat; together long enough for a kernel to be restarted."""
REPEAT_ADVICE: Final = "Look whether it happened; give such calls a `request_id`, and the client repeats them safely."
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
_LENGTH: Final = struct.Struct("<I")


def default_path() -> str:
    """Where a kernel listens unless told otherwise: $MEMOS_SOCKET, or memos.sock in the user's runtime directory."""
    if path := os.environ.get("MEMOS_SOCKET"):
        return path
    return os.path.join(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}", "memos.sock")


class Call(Generic[R]):
    """A row of the table as the client needs it, with the type of its replies (or stream items)."""

    __slots__ = ("carries_content", "deadline_ms", "discloses", "mutates", "name", "number", "quick", "repeatable", "validate")

    def __init__(self, name: str, reply: type[R]) -> None:
        row = BY_NAME[name]
        assert reply in (row.item, row.reply), "the generated calls are older than the table"
        self.name = name
        self.number = row.number
        self.deadline_ms = row.deadline_ms
        self.repeatable = Flag.READ in row.flags
        self.mutates = not self.repeatable
        self.quick = self.repeatable and Flag.LONG not in row.flags  # The answer is there before a sleeper would be.
        self.carries_content = not row.request.model_fields.keys().isdisjoint(("content", "items"))
        self.discloses = "content" in reply.model_fields
        """Its reply's descriptor is a content to be read; another's is the caller's own."""
        # One Python frame less than `model_validate`, on the path of every call.
        self.validate = reply.__pydantic_validator__.validate_python


HELLO: Final = Call("sys_hello", SysHelloReply)
HELLO_ARGS: Final[dict[str, Any]] = {"abi": limits.ABI}
CANCEL: Final = Call("sys_cancel", SysCancelReply)


class Message(NamedTuple):
    """One frame from the kernel. Who takes it owns `fd`."""

    call_id: int
    status: int
    body: dict[str, Any]
    fd: int | None

    def drop(self) -> None:
        """For a message that nobody waits for any more."""
        if self.fd is not None:
            os.close(self.fd)


class Session:
    """Ids, packing and splitting for one connection. Not thread-safe."""

    __slots__ = ("_fds", "_last_id", "_pack", "_splitter")

    def __init__(self) -> None:
        self._last_id = 0
        self._pack = msgpack.Packer(use_bin_type=True, autoreset=True, default=_plain).pack
        self._splitter = wire.Splitter()
        self._fds: deque[int] = deque()

    def request(self, number: int, args: dict[str, Any]) -> tuple[int, bytes]:
        """The id and the frame of a new call. Refusals leave the session as it was."""
        call_id = self._last_id + 1
        try:
            body: bytes = self._pack((call_id, number, args))
        except (ValueError, OverflowError) as error:
            raise MemInvalid(f"an argument cannot be sent: {error}") from error
        if len(body) > limits.FRAME_BYTES_MAX:
            raise MemTooLarge(f"a frame of {len(body)} bytes is over the limit of {limits.FRAME_BYTES_MAX}")
        self._last_id = call_id
        return call_id, _LENGTH.pack(len(body)) + body

    def receive(self, data: bytes, fds: Iterable[int] = ()) -> list[Message]:
        """The messages that `data` completes. After `MemProtocol` or `MemTooLarge` the connection must be closed."""
        self._fds.extend(fds)
        messages: list[Message] = []
        refusal: MemError | None = None
        try:
            for body in self._splitter.feed(data):
                call_id, status, result = wire.parse_reply(body)
                fd = None
                if result.get("fd") is not None:
                    if not self._fds:
                        raise MemProtocol("a reply names a descriptor and brings none")
                    fd = self._fds.popleft()
                messages.append(Message(call_id, status, result, fd))
                if call_id == 0 and status:
                    refusal = from_wire(status, result)  # About the connection, not about a call.
                    break
        except MemError as error:
            error.outcome = "unknown"  # Ours, not the kernel's: whatever it did stands.
            refusal = error
        if refusal is not None:
            for message in messages:
                message.drop()
            raise refusal
        return messages

    def close(self) -> None:
        """Closes descriptors whose frames never came."""
        while self._fds:
            os.close(self._fds.popleft())


def given(args: dict[str, Any]) -> dict[str, Any]:
    """The arguments that were given; absent ones do not travel."""
    return {name: value for name, value in args.items() if value is not None}


def patience_s(args: Mapping[str, Any], deadline_ms_default: int = limits.DEADLINE_MS_DEFAULT) -> float:
    """How long to wait for the reply."""
    deadline_ms = args.get("deadline_ms")
    if deadline_ms is None or not isinstance(deadline_ms, int):
        return deadline_ms_default / 1000 + GRACE_S
    return max(deadline_ms, 0) / 1000 + GRACE_S


def conclude(call: Call[R], message: Message) -> R:
    """The reply, or the kernel's error raised."""
    _, status, body, fd = message
    if status:
        message.drop()
        raise from_wire(status, body)
    if fd is not None and call.discloses:
        body["content"] = _disclose(fd, body)
        fd = None
    if "fd" in body:
        body["fd"] = fd
    try:
        return cast(R, call.validate(body))
    except ValidationError as error:
        if fd is not None:
            os.close(fd)
        what = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False)[:3])
        outcome: Outcome = "unknown" if call.mutates else "none"
        raise MemProtocol(f"the reply to {call.name} does not fit its model ({what})", outcome=outcome) from error


def expired(call: Call[Any], sent: bool) -> MemTimeout:
    """The error for a call whose time is up."""
    return MemTimeout(f"no reply to {call.name} in time", outcome="unknown" if sent and call.mutates else "none")


def stream_broke(cause: Exception) -> MemUnreachable:
    """The error for a stream whose connection ended before it did."""
    return MemUnreachable(f"the stream broke: {cause}", "Watch again with `from_offset`, one after the last item's offset.")


class Retry:
    """What to do when a call's connection broke; one for each call in trouble."""

    def __init__(self, call: Call[Any], args: Mapping[str, Any], until: float) -> None:
        self._call = call
        self._repeatable = call.repeatable or "request_id" in args
        self._until = until
        self._pauses: Iterator[float] = iter(RETRY_PAUSES_S)
        self.sent = False

    def pause_s(self, *, sent: bool, now: float, cause: Exception, gone: bool) -> float:
        """How long to wait before the repeat. Raises when there must be none, or none is left.

        `sent` says that the whole frame left; a part of one is never executed. `gone` says that no kernel will come back.
        """
        self.sent |= sent
        outcome: Outcome = "unknown" if self.sent and self._call.mutates else "none"
        if sent and not self._repeatable:
            detail = f"the connection broke before the reply to {self._call.name}"
            raise MemIO(detail, REPEAT_ADVICE, outcome=outcome) from cause
        pause = None if gone else next(self._pauses, None)
        if pause is None or now + pause >= self._until:
            raise MemUnreachable(str(cause), outcome=outcome) from cause
        return pause


def settle(error: MemError, call: Call[Any], retry: Retry | None) -> None:
    """Sets the outcome of an error that ends a call: a read has none, and an earlier attempt may have happened."""
    if call.repeatable:
        error.outcome = "none"
    elif retry is not None and retry.sent:
        error.outcome = "unknown"


# Content as descriptors ----------------------------------------------------------------------------------------------


def _is_large(content: object) -> bool:
    if isinstance(content, str):  # UTF-8 takes one to four bytes a character; only a middle range must be encoded to know.
        limit = limits.CONTENT_INLINE_BYTES_MAX
        return len(content) > limit or (len(content) * 4 > limit and len(content.encode("utf-8", "surrogatepass")) > limit)
    return isinstance(content, (bytes, bytearray, memoryview)) and memoryview(content).nbytes > limits.CONTENT_INLINE_BYTES_MAX


def has_large(args: Mapping[str, Any]) -> bool:
    """Whether `enclose` would make a descriptor."""
    return any(_is_large(_get(cube, "content")) for cube in (args, *_items(args)))


def enclose(args: dict[str, Any]) -> list[int]:
    """Moves contents over the inline limit out of `args` into sealed memfds. The caller closes them.

    Raises `MemTooLarge` for content over its limit or for more such contents than a frame has descriptors.
    """
    if not has_large(args):
        return []
    fds: list[int] = []
    try:
        if _is_large(args.get("content")):
            _enclose_one(args, fds)
        if "items" in args:
            args["items"] = items = [_plain(i) if isinstance(i, BaseModel) else dict(i) for i in _items(args)]
            for item in items:
                if _is_large(item.get("content")):
                    _enclose_one(item, fds)
    except BaseException:
        close_all(fds)
        raise
    return fds


def close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def _items(args: Mapping[str, Any]) -> Sequence[Any]:
    items = args.get("items")
    return cast("Sequence[Any]", items) if isinstance(items, (list, tuple)) else ()


def _get(cube: object, name: str) -> object:
    return cast("Mapping[str, object]", cube).get(name) if isinstance(cube, Mapping) else getattr(cube, name, None)


def _enclose_one(cube: dict[str, Any], fds: list[int]) -> None:
    content = cube.pop("content")
    if len(fds) == limits.FDS_PER_FRAME_MAX:
        raise MemTooLarge(f"one call carries at most {limits.FDS_PER_FRAME_MAX} contents over the inline limit")
    try:
        data = memoryview(content.encode() if isinstance(content, str) else content).cast("B")
    except UnicodeEncodeError as error:
        raise MemInvalid(f"content is not valid Unicode: {error}") from error
    if data.nbytes > limits.CONTENT_BYTES_MAX:
        raise MemTooLarge(f"content of {data.nbytes} bytes is over the limit of {limits.CONTENT_BYTES_MAX}")
    try:
        fd = os.memfd_create("memos-content", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        cube["fd"], cube["encoding"] = len(fds), "text" if isinstance(content, str) else "bytes"
        fds.append(fd)
        at = 0
        while at < data.nbytes:
            at += os.write(fd, data[at:])
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except OSError as error:
        raise MemIO(f"the content found no room in a memfd: {error}") from error


def _disclose(fd: int, body: Mapping[str, Any]) -> str | bytes:
    """The content behind a reply's descriptor. Reads by position: the descriptor's own is shared with the kernel."""
    try:
        size, at = os.fstat(fd).st_size, 0
        data = bytearray(size)
        while at < size and (count := os.preadv(fd, [memoryview(data)[at:]], at)):
            at += count
    except OSError as error:
        raise MemIO(f"the content's descriptor cannot be read: {error}") from error
    finally:
        os.close(fd)
    if at != size:
        raise MemIO(f"the content's descriptor ends at byte {at} of {size}")
    encoding = body.get("encoding") or cast("dict[str, Any]", body.get("header") or {}).get("encoding", "bytes")
    try:
        return data.decode() if encoding == "text" else bytes(data)
    except UnicodeDecodeError as error:
        raise MemProtocol(f"content marked as text is not UTF-8: {error}") from error


def open_map(reply: MemMapReply) -> mmap.mmap:
    """What `mem_map` answered, as memory that can be read; closes the descriptor. Sealed memory cannot be mapped for writing:
    who needs to write maps `reply.fd` itself, privately. An empty payload cannot be mapped (`MemInvalid`)."""
    try:
        if not reply.bytes:
            raise MemInvalid("an empty payload cannot be mapped", "Look at `reply.bytes` first.")
        return mmap.mmap(reply.fd, reply.bytes, prot=mmap.PROT_READ)
    except (OSError, ValueError) as error:
        raise MemIO(f"the payload cannot be mapped: {error}") from error
    finally:
        os.close(reply.fd)


def _plain(value: Any) -> Any:
    """What MessagePack has no word for: models, arrays, other mappings and sequences."""
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_unset=True, exclude_none=True)
    if callable(tolist := getattr(value, "tolist", None)):  # numpy and torch, which this library does not import
        return tolist()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (Sequence, Set)):
        return list(cast("Iterable[Any]", value))
    if isinstance(value, int):
        raise OverflowError(f"{value} needs more than 64 bits")
    raise TypeError(f"a {type(value).__name__} cannot be sent to the kernel")
