"""The asyncio client: `AsyncKernel`, many calls in flight on one Unix socket, under asyncio's loop or uvloop.

What callers may rely on:

1. Methods are those of `Kernel`, as coroutines; `mem_watch` gives an async iterator on a connection of its own.
2. Frames of one turn of the loop leave together; replies may come in any order and meet their call by its id.
3. A coroutine that is cancelled, or whose time is up, sends `sys_cancel` and forgets its id: a late reply is dropped
   and the other calls on the connection go on.
4. A connection that breaks fails its calls; each is then repeated or not by `_session.Retry`, over one new connection.

An `AsyncKernel` belongs to the loop that opened it.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections import deque
from collections.abc import Awaitable, Coroutine, Generator, Sequence
from typing import Any, Final, Generic, Self, TypeVar

from memos_syscalls.errors import MemError, MemUnreachable
from memos_syscalls.messages import SysHelloReply
from memos_syscalls.wire import STREAM_ITEM

from . import _spawn
from ._aiolink import Link, ask, open_link
from ._calls import AsyncCalls, AsyncStream
from ._session import (
    HELLO,
    Call,
    Message,
    R,
    Retry,
    close_all,
    conclude,
    default_path,
    enclose,
    expired,
    given,
    has_large,
    patience_s,
    settle,
    stream_broke,
)
from .sync import Kernel

K = TypeVar("K", bound="AsyncKernel")

_STREAM_READY_MAX: Final = 256
"""Items that wait for a slow consumer before the client stops reading; the kernel then holds the rest back."""


class Opening(Awaitable[K], Generic[K]):
    """A kernel on its way: `await` it, or use it in `async with`."""

    def __init__(self, opening: Coroutine[Any, Any, K]) -> None:
        self._opening = opening
        self._kernel: K | None = None

    def __await__(self) -> Generator[Any, None, K]:
        return self._opening.__await__()

    async def __aenter__(self) -> K:
        self._kernel = await self._opening
        return self._kernel

    async def __aexit__(self, *_: object) -> None:
        if self._kernel is not None:
            await self._kernel.close()


class AsyncKernel(AsyncCalls):
    """A MemOS kernel, as an asyncio client: `async with AsyncKernel.connect() as k`, or `k = await AsyncKernel.connect()`."""

    def __init__(self, path: str, daemon: _spawn.Daemon | None = None) -> None:
        self.path = path
        self.hello: SysHelloReply | None = None
        """What the kernel said of itself when the connection was made."""
        self._daemon = daemon
        self._closed = False
        self._link: Link | None = None
        self._connecting = asyncio.Lock()
        self._streams: weakref.WeakSet[AsyncWatch[Any]] = weakref.WeakSet()

    @classmethod
    def connect(cls, path: str | os.PathLike[str] | None = None) -> Opening[Self]:
        """A running kernel at `path`, at $MEMOS_SOCKET, or at the default path."""
        return Opening(cls(default_path() if path is None else os.fspath(path))._opened())

    @classmethod
    def spawn(
        cls,
        data_dir: str | os.PathLike[str] | None = None,
        *,
        args: Sequence[str] = (),
        wait_s: float = _spawn.START_SECONDS,
        **options: _spawn.Option,
    ) -> Opening[Self]:
        """A private memosd, as `Kernel.spawn` starts it, stopped by `close`."""

        def start() -> _spawn.Daemon:
            daemon = _spawn.Daemon(data_dir, args, options)
            daemon.wait_until(lambda: Kernel.connect(daemon.path).close(), wait_s)
            return daemon

        async def opening() -> Self:
            daemon = await asyncio.to_thread(start)
            return await cls(daemon.path, daemon)._opened()

        return Opening(opening())

    @property
    def daemon_pid(self) -> int | None:
        """The process that `spawn` started."""
        return None if self._daemon is None else self._daemon.pid

    async def close(self) -> None:
        """Closes the connection, and stops the kernel if `spawn` started it."""
        self._closed = True
        for stream in list(self._streams):
            await stream.aclose()
        if self._link is not None:
            self._link.fail(ConnectionAbortedError("this AsyncKernel was closed"))
        if self._daemon is not None:
            await asyncio.to_thread(self._daemon.stop)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _opened(self) -> Self:
        try:
            await self._connected(asyncio.get_running_loop().time() + patience_s({}))
        except TimeoutError as error:
            raise expired(HELLO, sent=False) from error
        except OSError as error:
            raise MemUnreachable(f"{self.path}: {error.strerror or error}") from error
        return self

    async def _call(self, call: Call[R], args: dict[str, Any]) -> R:
        args = given(args)
        fds = await _enclose_apart(args) if call.carries_content and has_large(args) else []
        try:
            message = await self._exchange(call, args, fds)
        finally:
            close_all(fds)
        if message.fd is not None and call.discloses:
            # Shielded, for the thread must run to close the descriptor.
            return await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, conclude, call, message))
        return conclude(call, message)

    async def _exchange(self, call: Call[Any], args: dict[str, Any], fds: Sequence[int]) -> Message:
        """One call's whole life on the wire, with its repeats."""
        loop = asyncio.get_running_loop()
        until = loop.time() + patience_s(args, call.deadline_ms)
        retry: Retry | None = None
        while True:
            sent = False
            try:
                link = self._link
                if link is None or link.broken is not None:
                    link = await self._connected(until)
                # A frame that is queued counts as sent: how much of it left is not followed.
                sent = True
                return await ask(link, call, args, fds, until)
            except TimeoutError as error:
                raise expired(call, sent or (retry is not None and retry.sent)) from error
            except OSError as error:
                retry = retry or Retry(call, args, until)
                await asyncio.sleep(self._after_break(retry, sent, error))
            except MemError as error:
                settle(error, call, retry)
                raise

    def _stream(self, call: Call[R], args: dict[str, Any]) -> AsyncStream[R]:
        stream = AsyncWatch(self.path, call, given(args))
        self._streams.add(stream)
        return stream

    async def _connected(self, until: float) -> Link:
        """The link, opened by whoever comes first."""
        async with self._connecting:
            if self._closed:
                raise MemUnreachable("this AsyncKernel is closed", "Make a new one with AsyncKernel.connect or spawn.")
            if self._link is None or self._link.broken is not None:
                self._link, self.hello = await open_link(self.path, until)
            return self._link

    def _after_break(self, retry: Retry, sent: bool, error: OSError) -> float:
        """How long to wait before the repeat of a call whose connection broke; raises where there is none."""
        end = self._daemon.obituary() if self._daemon is not None else None
        cause = ConnectionError(end or f"{self.path}: {error.strerror or error}")
        return retry.pause_s(sent=sent, now=asyncio.get_running_loop().time(), cause=cause, gone=end is not None)


async def _enclose_apart(args: dict[str, Any]) -> list[int]:
    """`enclose` in a thread, for it copies up to 256 MiB. A cancelled caller leaves no descriptor behind."""
    enclosing = asyncio.get_running_loop().run_in_executor(None, enclose, args)
    try:
        return await asyncio.shield(enclosing)
    except asyncio.CancelledError:
        enclosing.add_done_callback(_disown)
        raise


def _disown(enclosing: asyncio.Future[list[int]]) -> None:
    if not enclosing.cancelled() and enclosing.exception() is None:
        close_all(enclosing.result())


class AsyncWatch(AsyncStream[R]):
    """The items of one streaming call. It starts when it is made, which needs a running loop."""

    def __init__(self, path: str, call: Call[R], args: dict[str, Any]) -> None:
        self._call = call
        self._args = args
        self._ready: deque[Message | Exception] = deque()
        self._more = asyncio.Event()
        self._closed = False
        self._link: Link | None = None
        self._start = asyncio.ensure_future(self._open(path))

    async def __anext__(self) -> R:
        await self._started()
        while not self._closed:
            if not self._ready:
                if self._link is not None:
                    self._link.resume()
                self._more.clear()
                await self._wait()
                continue
            message = self._ready.popleft()
            if isinstance(message, Exception):
                await self.aclose()
                raise message if isinstance(message, MemError) else stream_broke(message) from message
            if message.status == STREAM_ITEM:
                return conclude(self._call, message._replace(status=0))
            await self.aclose()
            if message.status:
                return conclude(self._call, message)  # Raises the kernel's error.
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self._closed = True
        self._more.set()
        if not self._start.done():
            self._start.cancel()
        elif not self._start.cancelled():
            self._start.exception()  # Whoever closes an unused stream does not care why it did not open.
        if self._link is not None:
            self._link.fail(ConnectionAbortedError("the stream was closed"))

    async def _open(self, path: str) -> None:
        loop = asyncio.get_running_loop()
        try:
            self._link, _ = await open_link(path, loop.time() + patience_s({}))
            self._link.start(self._call.number, self._args, (), self._tell)
        except TimeoutError as error:
            raise expired(self._call, sent=False) from error
        except OSError as error:
            raise MemUnreachable(f"{path}: {error.strerror or error}") from error

    async def _started(self) -> None:
        try:
            await asyncio.shield(self._start)
        except asyncio.CancelledError:
            if not self._closed:
                raise

    async def _wait(self) -> None:
        limit_s = patience_s(self._args) if "deadline_ms" in self._args else None
        try:
            async with asyncio.timeout(limit_s):
                await self._more.wait()
        except TimeoutError as error:
            await self.aclose()
            raise expired(self._call, sent=True) from error

    def _tell(self, message: Message | Exception) -> None:
        self._ready.append(message)
        self._more.set()
        if self._link is not None and len(self._ready) >= _STREAM_READY_MAX:
            self._link.pause()
