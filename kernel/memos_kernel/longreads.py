"""Reads that take more than a moment: few at a time, and by turns, so that nobody starves the others.

- At most `PER_PEER` of one connection and `TOTAL` of all run at once; the rest wait in line at their connection, and
  connections take turns.
- `Breath` cuts the work of one read into slices by time: `await breath()` costs nothing until the slice is used up.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final

from memos_syscalls.errors import MemCanceled

from .turn import Peer, Turn

PER_PEER: Final = 2
TOTAL: Final = 8
SLICE_SECONDS: Final = 0.0005

Work = Callable[[], Coroutine[Any, Any, None]]


class Breath:
    """Lets others have the loop when this slice has lasted long enough."""

    __slots__ = ("_began",)

    def __init__(self) -> None:
        self._began = time.perf_counter()

    async def __call__(self) -> None:
        if time.perf_counter() - self._began > SLICE_SECONDS:
            await asyncio.sleep(0)
            self._began = time.perf_counter()


class Queued:
    """A read in line; cancelling it takes it out."""

    __slots__ = ("turn", "work")

    def __init__(self, turn: Turn, work: Work) -> None:
        self.turn = turn
        self.work = work

    def cancel(self) -> None:
        self.turn.fail(MemCanceled("the call was cancelled"))


class LongReads:
    """The line."""

    def __init__(self, spawn: Callable[[Any, Turn], asyncio.Task[None]]) -> None:
        self._spawn = spawn
        self._waiting: dict[Peer, deque[Queued]] = {}
        self._running: dict[Peer, int] = {}
        self._total = 0

    def submit(self, turn: Turn, work: Work) -> None:
        """Run the work now, or when it is its turn."""
        queued = Queued(turn, work)
        turn.cancel = queued
        self._waiting.setdefault(turn.peer, deque()).append(queued)
        self._next()

    def _next(self) -> None:
        while self._total < TOTAL:
            peer = next((p for p in self._waiting if self._running.get(p, 0) < PER_PEER), None)
            if peer is None:
                return
            line = self._waiting.pop(peer)
            queued = line.popleft()
            if line:
                # Behind the others: connections take turns.
                self._waiting[peer] = line
            if queued.turn.finished:
                continue
            self._running[peer] = self._running.get(peer, 0) + 1
            self._total += 1
            task = self._spawn(queued.work(), queued.turn)
            task.add_done_callback(functools.partial(self._done, peer))

    def _done(self, peer: Peer, _task: asyncio.Task[None]) -> None:
        self._total -= 1
        self._running[peer] -= 1
        if not self._running[peer]:
            del self._running[peer]
        self._next()
