"""The blocking client: `Kernel`, over one Unix socket, safe to share between threads.

What callers may rely on:

1. A call returns the reply or raises a `MemError`; wrong Python arguments raise `TypeError` as for any function.
2. A connection that breaks is opened again by the call that finds it broken; `_session.Retry` says what is repeated.
3. A call waits no longer than its deadline plus `GRACE_S`. After a timeout, or an interrupt such as Ctrl-C, the
   connection is dropped, so a late reply meets nobody.
4. `mem_watch` has a connection of its own; other calls go on meanwhile.

One call at a time is in flight: threads that share a `Kernel` take turns. For many at once use `AsyncKernel`.
"""

from __future__ import annotations

import array
import os
import socket
import struct
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, Self, TypeAlias

from memos_syscalls import limits
from memos_syscalls.errors import MemError, MemUnreachable
from memos_syscalls.messages import SysHelloReply
from memos_syscalls.wire import STREAM_ITEM

from . import _spawn
from ._calls import Calls, Stream
from ._session import (
    HELLO,
    HELLO_ARGS,
    RECEIVE_BYTES,
    Call,
    Message,
    R,
    Retry,
    Session,
    close_all,
    conclude,
    default_path,
    enclose,
    expired,
    given,
    patience_s,
    settle,
    stream_broke,
)
from .ingest import Endpoint, IngestSummary, Progress, ingest

ANCILLARY_BYTES: Final = socket.CMSG_SPACE(array.array("i").itemsize * limits.FDS_PER_FRAME_MAX)
LOOK_S: Final = 100e-6
"""How long a quick read looks for its answer before it sleeps."""
LOOKS_LEFT_OUT: Final = 8
_LOOKING: Final = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
_Received: TypeAlias = tuple[bytes, list[tuple[int, int, bytes]], int, Any]
_TIMEVAL: Final = struct.Struct("@ll")
_FOREVER_S: Final = 0.0
_TIMEOUT_S_MIN: Final = 0.001
"""A zero timeval would mean no limit."""


def descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors that came with a `recvmsg`."""
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return fds.tolist()


def rights(fds: Sequence[int]) -> list[tuple[int, int, array.array[int]]]:
    """The ancillary data that carries `fds`."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]


class _Link:
    """One connected socket with its session.

    The socket stays blocking and the time limit is the kernel's (SO_RCVTIMEO): Python's own timeouts would add a poll
    to every receive.
    """

    __slots__ = ("_alone", "_limit_s", "_looks_left_out", "_socket", "session")

    def __init__(self, path: str, limit_s: float) -> None:
        self.session = Session()
        self._alone = len(os.sched_getaffinity(0)) == 1
        self._looks_left_out = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._limit_s = -1.0
        try:
            self.limit(limit_s)
            self._socket.connect(path)
        except BaseException:
            self._socket.close()
            raise

    def limit(self, seconds: float) -> None:
        """Makes each send and receive raise BlockingIOError after `seconds`."""
        if seconds != self._limit_s:
            whole = int(seconds)
            timeval = _TIMEVAL.pack(whole, int((seconds - whole) * 1e6))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
            self._limit_s = seconds

    def send(self, frame: bytes, fds: Sequence[int]) -> None:
        if not fds:
            self._socket.sendall(frame)
            return
        count = self._socket.sendmsg([frame], rights(fds))
        if count < len(frame):
            self._socket.sendall(memoryview(frame)[count:])

    def receive(self, soon: bool = False) -> list[Message]:
        """What one receive brings, which may be no whole message. `soon` says that it is worth a look before sleeping."""
        found = self._look() if soon and not self._alone else None
        data, ancillary, _, _ = found or self._socket.recvmsg(RECEIVE_BYTES, ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
        if not data:
            raise ConnectionResetError("the kernel closed the connection")
        return self.session.receive(data, descriptors(ancillary) if ancillary else ())

    def _look(self) -> _Received | None:
        """What arrives within `LOOK_S`, without sleeping.

        To be woken by another processor takes longer than the kernel takes for most reads. A look that finds nothing
        costs processor time for nothing, so the next few are left out. It does not yield: a busy neighbour would keep
        the processor for milliseconds.
        """
        if self._looks_left_out:
            self._looks_left_out -= 1
            return None
        until = time.perf_counter() + LOOK_S
        while True:
            try:
                return self._socket.recvmsg(RECEIVE_BYTES, ANCILLARY_BYTES, _LOOKING)
            except BlockingIOError:
                if time.perf_counter() > until:
                    self._looks_left_out = LOOKS_LEFT_OUT
                    return None

    def receive_until(self, call_id: int, until: float, soon: bool = False) -> Message:
        """The reply to a call; anything else is dropped."""
        found: Message | None = None
        while True:
            for message in self.receive(soon):
                if message.call_id == call_id and found is None:
                    found = message
                else:
                    message.drop()
            if found is not None:
                return found
            self.limit(max(until - time.monotonic(), _TIMEOUT_S_MIN))

    def hello(self, until: float) -> SysHelloReply:
        call_id, frame = self.session.request(HELLO.number, HELLO_ARGS)
        self.send(frame, ())
        return conclude(HELLO, self.receive_until(call_id, until))

    def interrupt(self) -> None:
        """Wakes a thread that waits in `receive`."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # The other side closed first.

    def close(self) -> None:
        self._socket.close()
        self.session.close()


def _open(path: str, until: float) -> tuple[_Link, SysHelloReply]:
    link = _Link(path, max(until - time.monotonic(), _TIMEOUT_S_MIN))
    try:
        return link, link.hello(until)
    except BaseException:
        link.close()
        raise


class Kernel(Calls):
    """A MemOS kernel, as a blocking client. Make one with `connect` or `spawn`; use it in a `with` block, or close it."""

    def __init__(self, path: str, daemon: _spawn.Daemon | None = None) -> None:
        self.path = path
        self.hello: SysHelloReply
        """What the kernel said of itself when the connection was made."""
        self._daemon = daemon
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._closed = False
        self._link: _Link | None = None
        try:
            self._connect(time.monotonic() + patience_s({}))
        except BlockingIOError as error:
            raise expired(HELLO, sent=False) from error
        except OSError as error:
            raise MemUnreachable(f"{path}: {error.strerror or error}") from error

    @classmethod
    def connect(cls, path: str | os.PathLike[str] | None = None) -> Self:
        """A running kernel at `path`, at $MEMOS_SOCKET, or at the default path."""
        return cls(default_path() if path is None else os.fspath(path))

    @classmethod
    def spawn(
        cls,
        data_dir: str | os.PathLike[str] | None = None,
        *,
        args: Sequence[str] = (),
        wait_s: float = _spawn.START_SECONDS,
        **options: _spawn.Option,
    ) -> Self:
        """A private memosd on `data_dir` (or on a temporary one), stopped by `close`.

        Options become its command-line options (`log="embedded"` is `--log embedded`); `args` are added as they are.
        """
        daemon = _spawn.Daemon(data_dir, args, options)
        made: list[Self] = []
        daemon.wait_until(lambda: made.append(cls(daemon.path, daemon)), wait_s)
        return made[0]

    @property
    def daemon_pid(self) -> int | None:
        """The process that `spawn` started."""
        return None if self._daemon is None else self._daemon.pid

    def ingest(
        self, path: str | os.PathLike[str], namespace: str, format: str | None = None, progress: Progress | None = None,
        *, extract: Endpoint | None = None,
    ) -> IngestSummary:  # fmt: skip
        """Turns a file of conversation or text into cubes, in batches; running it twice adds nothing (see `ingest`)."""
        return ingest(self, os.fspath(path), format, namespace, progress, extract=extract)

    def close(self) -> None:
        """Closes the connection, and stops the kernel if `spawn` started it."""
        self._closed = True
        if self._link is not None:
            self._link.interrupt()  # A call of another thread ends now.
        with self._lock:
            self._drop()
        if self._daemon is not None:
            self._daemon.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, call: Call[R], args: dict[str, Any]) -> R:
        args = given(args)
        if self._pid != os.getpid():
            self._adopt()
        fds = enclose(args) if call.carries_content else ()
        try:
            with self._lock:
                message = self._exchange(call, args, fds)
        finally:
            close_all(fds)
        return conclude(call, message)

    def _exchange(self, call: Call[Any], args: dict[str, Any], fds: Sequence[int]) -> Message:
        """One call's whole life on the wire, with its repeats."""
        patience = patience_s(args, call.deadline_ms)
        until = time.monotonic() + patience
        retry: Retry | None = None
        while True:
            began = sent = False
            try:
                link = self._link or self._connect(until)
                call_id, frame = link.session.request(call.number, args)
                link.limit(patience)
                began = True
                link.send(frame, fds)
                sent = True
                return link.receive_until(call_id, until, call.quick)
            except BlockingIOError as error:
                self._drop()
                raise expired(call, sent or (retry is not None and retry.sent)) from error
            except OSError as error:
                self._drop()
                retry = retry or Retry(call, args, until)
                pause_s = self._after_break(retry, sent, error)
                time.sleep(pause_s)
            except BaseException as error:
                if began:
                    self._drop()
                if isinstance(error, MemError):
                    settle(error, call, retry)
                raise

    def _stream(self, call: Call[R], args: dict[str, Any]) -> Stream[R]:
        try:
            return Watch(self.path, call, given(args))
        except OSError as error:
            raise MemUnreachable(f"{self.path}: {error}") from error

    def _connect(self, until: float) -> _Link:
        if self._closed:
            raise MemUnreachable("this Kernel is closed", "Make a new one with Kernel.connect or Kernel.spawn.")
        self._link, self.hello = _open(self.path, until)
        return self._link

    def _drop(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def _after_break(self, retry: Retry, sent: bool, error: OSError) -> float:
        """How long to wait before the repeat of a call whose connection broke; raises where there is none."""
        end = self._daemon.obituary() if self._daemon is not None else None
        cause = ConnectionError(end or f"{self.path}: {error.strerror or error}")
        return retry.pause_s(sent=sent, now=time.monotonic(), cause=cause, gone=end is not None)

    def _adopt(self) -> None:
        """In a forked child: leaves the parent's connection and lock alone and starts with its own."""
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._drop()


class Watch(Stream[R]):
    """The items of one streaming call, on a connection of its own. `close` may be called by another thread."""

    def __init__(self, path: str, call: Call[R], args: dict[str, Any]) -> None:
        self._call = call
        self._ready: deque[Message] = deque()
        self._closed = False
        self._receiving = threading.Lock()
        self._link, _ = _open(path, time.monotonic() + patience_s({}))
        try:
            _, frame = self._link.session.request(call.number, args)
            self._link.send(frame, ())
            self._link.limit(patience_s(args) if "deadline_ms" in args else _FOREVER_S)
        except BaseException:
            self._link.close()
            raise
        weakref.finalize(self, self._link.close)  # For `for item in k.mem_watch(): ... break`.

    def __next__(self) -> R:
        while not self._closed:
            if not self._ready:
                self._receive()
                continue
            message = self._ready.popleft()
            if message.status == STREAM_ITEM:
                return conclude(self._call, message._replace(status=0))
            self.close()
            if message.status:
                return conclude(self._call, message)  # Raises the kernel's error.
        raise StopIteration

    def close(self) -> None:
        self._closed = True
        self._link.interrupt()
        with self._receiving:  # A descriptor must not be closed under a thread that waits on it.
            self._link.close()

    def _receive(self) -> None:
        try:
            with self._receiving:
                self._ready.extend(self._link.receive())
        except BlockingIOError as error:
            self.close()
            raise expired(self._call, sent=True) from error
        except OSError as error:
            if not self._closed:
                self.close()
                raise stream_broke(error) from error
