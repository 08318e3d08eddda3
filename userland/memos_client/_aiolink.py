"""One connection of the asyncio client: a non-blocking socket that the loop watches, and the calls in flight on it.

Plain `add_reader` and `add_writer` with `recvmsg` and `sendmsg`, for asyncio's streams carry no descriptors; works the
same under uvloop. Knows nothing of repeats: a link that breaks stays broken, and tells every call in flight why.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from memos_syscalls.errors import MemError
from memos_syscalls.messages import SysHelloReply
from memos_syscalls.wire import STREAM_ITEM

from ._session import CANCEL, HELLO, HELLO_ARGS, RECEIVE_BYTES, Call, Message, Session, close_all, conclude
from .sync import ANCILLARY_BYTES, descriptors, rights

_JOIN_FRAMES_MAX: Final = 64


class Link:
    """One connected socket with its session, its outgoing frames and the callbacks of the calls in flight.

    Invariants: `_reading` and `_writing` say what the loop watches; once `broken` is set, nothing is watched and every
    call in flight has been told.
    """

    def __init__(self, path: str) -> None:
        self.session = Session()
        self.broken: Exception | None = None
        self._loop = asyncio.get_running_loop()
        self._calls: dict[int, Callable[[Message | Exception], None]] = {}
        self._outbox: deque[tuple[bytes | memoryview, list[int]]] = deque()
        self._reading = self._writing = self._flushing = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.connect(path)  # A Unix socket connects at once or not at all.
        except BaseException:
            self._socket.close()
            raise
        self.resume()

    def start(self, number: int, args: dict[str, Any], fds: Sequence[int], tell: Callable[[Message | Exception], None]) -> int:
        """Queues a call; `tell` gets each of its messages, or the error that broke the connection."""
        call_id, frame = self.session.request(number, args)
        if self.broken is not None:
            raise ConnectionResetError(str(self.broken))
        self._calls[call_id] = tell
        self._outbox.append((frame, [os.dup(fd) for fd in fds]))
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)
        return call_id

    def forget(self, call_id: int) -> None:
        """A call's caller no longer waits."""
        self._calls.pop(call_id, None)

    def cancel(self, call_id: int) -> None:
        """Forgets a call and tells the kernel so; its answer interests nobody."""
        if self._calls.pop(call_id, None) is not None and self.broken is None:
            self.forget(self.start(CANCEL.number, {"call": call_id}, (), lambda _: None))

    def pause(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._socket.fileno())

    def resume(self) -> None:
        if not self._reading and self.broken is None:
            self._reading = True
            self._loop.add_reader(self._socket.fileno(), self._receive)

    def fail(self, error: Exception) -> None:
        """Closes the connection and tells every call in flight."""
        if self.broken is not None:
            return
        self.pause()
        self._await_room(False)
        self.broken = error
        self._socket.close()
        self.session.close()
        while self._outbox:
            close_all(self._outbox.popleft()[1])
        calls, self._calls = self._calls, {}
        for tell in calls.values():  # Each gets an error of its own, for each call's outcome differs.
            tell(type(error)(error.detail, error.advice, outcome=error.outcome) if isinstance(error, MemError) else error)

    def _receive(self) -> None:
        try:
            data, ancillary, _, _ = self._socket.recvmsg(RECEIVE_BYTES, ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
            if not data:
                raise ConnectionResetError("the kernel closed the connection")
            messages = self.session.receive(data, descriptors(ancillary) if ancillary else ())
        except (BlockingIOError, InterruptedError):
            return
        except (OSError, MemError) as error:
            self.fail(error)
            return
        for message in messages:
            tell = self._calls.get(message.call_id)
            if tell is None:
                message.drop()
            else:
                if message.status != STREAM_ITEM:
                    del self._calls[message.call_id]
                tell(message)

    def _flush(self) -> None:
        self._flushing = False
        try:
            while self._outbox:
                self._send_some()
        except BlockingIOError:
            self._await_room(True)
        except OSError as error:
            self.fail(error)
        else:
            self._await_room(False)

    def _send_some(self) -> None:
        """Sends the first frame with its descriptors, or the first few frames that have none, as far as there is room."""
        outbox = self._outbox
        frames, fds = [outbox[0][0]], outbox[0][1]
        if not fds:
            for frame, others in itertools.islice(outbox, 1, _JOIN_FRAMES_MAX):
                if others:
                    break
                frames.append(frame)
        count = self._socket.sendmsg(frames, rights(fds) if fds else ())
        close_all(fds)
        for frame in frames:
            outbox.popleft()
            if count < len(frame):
                outbox.appendleft((memoryview(frame)[count:], []))
                return
            count -= len(frame)

    def _await_room(self, wanted: bool) -> None:
        if wanted == self._writing or self.broken is not None:
            return
        self._writing = wanted
        if wanted:
            self._loop.add_writer(self._socket.fileno(), self._flush)
        else:
            self._loop.remove_writer(self._socket.fileno())


async def ask(link: Link, call: Call[Any], args: dict[str, Any], fds: Sequence[int], until: float) -> Message:
    """One call over one link: its reply, `TimeoutError`, or the error that broke the link."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Message] = loop.create_future()

    def tell(result: Message | Exception) -> None:
        if not future.done():
            if isinstance(result, Message):
                future.set_result(result)
            else:
                future.set_exception(result)
        elif isinstance(result, Message):
            result.drop()

    call_id = link.start(call.number, args, fds, tell)
    timer = loop.call_at(until, tell, TimeoutError())
    try:
        return await future
    except TimeoutError:
        link.cancel(call_id)
        raise
    except asyncio.CancelledError:
        if future.done() and not future.cancelled() and future.exception() is None:
            future.result().drop()  # The reply and the cancellation came in the same turn.
        link.cancel(call_id)
        raise
    finally:
        timer.cancel()


async def open_link(path: str, until: float) -> tuple[Link, SysHelloReply]:
    link = Link(path)
    try:
        return link, conclude(HELLO, await ask(link, HELLO, HELLO_ARGS, (), until))
    except BaseException as error:
        link.fail(ConnectionAbortedError(str(error)))
        raise
