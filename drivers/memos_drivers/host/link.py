"""One running child of the driver host, seen from the kernel's event loop: its process and its socket.

`add_reader` and `add_writer` with `recvmsg` and `sendmsg`, for asyncio's streams carry no descriptors; works the same under
uvloop. A link fails once (`failed` says why: the child ended, closed its socket, spoke garbage, or was given up) and
tells nothing after that. `end` then makes sure that the process, and what it started, is gone. Knows no jobs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from memos_syscalls.errors import BY_NAME, MemError, MemIO

from . import wire

Hear = Callable[[dict[str, Any], list[int]], None]
"""Told of each message; owns its descriptors. Raises `wire.Garbage` for what the child must not say."""
EXIT_SECONDS: Final = 1.0
"""How long a child that closed its socket has to end by itself, so that its exit status can be told."""
DRAIN_RECEIPTS_MAX: Final = 1024
CLOSED: Final = "it ended"


class Died(Exception):
    """The child failed before it was ready."""


class Link:
    """See the module. `opened` makes one."""

    def __init__(self, sock: socket.socket, process: asyncio.subprocess.Process, hear: Hear) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock, self._process, self._hear = sock, process, hear
        self._inbox = wire.Inbox()
        self._outbox: deque[tuple[memoryview, list[int]]] = deque()
        self._writing = False
        self.failed: asyncio.Future[str] = self._loop.create_future()
        """Why the child is given up, once it is."""
        self.ended = asyncio.Event()
        """Set when nothing of the child is left."""
        self.how = ""
        """How it ended, once it did."""
        sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self._receive)
        self._waiter = self._loop.create_task(process.wait())
        self._waiter.add_done_callback(self._exited)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Queues a message; its descriptors are copied. `OSError` when this process has no room for the copies."""
        copies: list[int] = []
        try:
            for fd in fds:
                copies.append(os.dup(fd))
        except OSError:
            wire.close_all(copies)
            raise
        self._outbox.append((memoryview(data), copies))
        if not self._writing:
            self._flush()

    def fail(self, why: str) -> None:
        """Gives the child up."""
        if self.failed.done():
            return
        self.failed.set_result(why)
        self._loop.remove_reader(self._sock.fileno())
        if self._writing:
            self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        self._inbox.close()
        while self._outbox:
            wire.close_all(self._outbox.popleft()[1])

    async def end(self) -> str:
        """Kills what is left, and says how the process ended."""
        self.fail("it was ended")
        if self.ended.is_set():
            return self.how
        if not self._waiter.done() and self.failed.result() == CLOSED:
            await asyncio.wait({self._waiter}, timeout=EXIT_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            # The child leads a process group of its own.
            os.killpg(self._process.pid, signal.SIGKILL)
        status = await asyncio.shield(self._waiter)
        self.how = f"exit status {status}" if status >= 0 else f"signal {_name(-status)}"
        self.ended.set()
        return self.how

    def _exited(self, _waiter: asyncio.Task[int]) -> None:
        """What the child said last still counts."""
        for _ in range(DRAIN_RECEIPTS_MAX):
            if self.failed.done() or not self._receive():
                break
        self.fail(CLOSED)

    def _receive(self) -> bool:
        """Whether there was something to receive."""
        try:
            data, fds = wire.receive(self._sock)
            if not data:
                self.fail(CLOSED)
                return False
            messages = self._inbox.feed(data, fds)
        except (BlockingIOError, InterruptedError):
            return False
        except wire.Garbage as error:
            self.fail(f"it spoke garbage: {error}")
            return False
        except OSError as error:
            self.fail(f"its socket failed: {error.strerror}")
            return False
        for message, passed in messages:
            if self.failed.done():
                wire.close_all(passed)
                continue
            try:
                self._hear(message, passed)
            except wire.Garbage as error:
                self.fail(f"it spoke garbage: {error}")
        return True

    def _flush(self) -> None:
        try:
            while self._outbox:
                data, fds = self._outbox[0]
                sent = wire.send(self._sock, data, fds)
                self._outbox.popleft()
                wire.close_all(fds)
                if sent < len(data):
                    self._outbox.appendleft((data[sent:], []))
        except (BlockingIOError, InterruptedError):
            self._await_room(True)
        except OSError:
            # What the child said last may still wait to be read; the reader sees the end after it.
            self._await_room(False)
        else:
            self._await_room(False)

    def _await_room(self, wanted: bool) -> None:
        if wanted != self._writing:
            self._writing = wanted
            if wanted:
                self._loop.add_writer(self._sock.fileno(), self._flush)
            else:
                self._loop.remove_writer(self._sock.fileno())


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def as_error(message: Mapping[str, Any]) -> MemError:
    """The error in a message."""
    kind = BY_NAME.get(str(message.get("errno")), MemIO)
    return kind(str(message.get("detail", "")), str(message.get("advice") or "") or None)


async def opened(module: str, spec: Mapping[str, Any], beat: float, seconds: float, hear: Hear) -> tuple[Link, dict[str, Any]]:
    """A child that is ready, and what it says of itself. `Died`, or the `MemError` with which it refused."""
    first: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    def listen(message: dict[str, Any], fds: list[int]) -> None:
        if first.done():
            hear(message, fds)
            return
        wire.close_all(fds)
        if fds or message["kind"] not in ("ready", "refused") or (message["kind"] == "ready" and not _is_map(message, "info")):
            raise wire.Garbage("its first message is no introduction")
        first.set_result(message)

    link = await _spawned(module, listen)
    try:
        link.send(wire.message({"kind": "spec", "spec": dict(spec), "beat": beat}))
        either: set[asyncio.Future[Any]] = {first, link.failed}
        await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if not first.done():
            why = link.failed.result() if link.failed.done() else f"it was not ready after {seconds:g} s"
            how = await link.end()
            raise Died(f"{why} ({how})")
        if first.result()["kind"] == "refused":
            raise as_error(first.result())
        return link, first.result()["info"]
    except BaseException:
        await asyncio.shield(link.end())
        raise


async def _spawned(module: str, hear: Hear) -> Link:
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "memos_drivers.host.child", str(theirs.fileno()), module,
                pass_fds=(theirs.fileno(),), stdin=asyncio.subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        return Link(ours, process, hear)
    except OSError as error:
        ours.close()
        raise Died(f"it could not be started ({error.strerror})") from error
    except BaseException:
        ours.close()
        raise


def _is_map(message: Mapping[str, Any], key: str) -> bool:
    return type(message.get(key)) is dict
