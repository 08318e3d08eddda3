"""One call in progress: who asked, how long they wait, and the one answer that they get."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from memos_syscalls.errors import MemAgain, MemError, MemTimeout, MemTooLarge, Outcome
from memos_syscalls.table import Syscall

from .governance import Caller


class Peer(Protocol):
    """A connection, as far as a call knows it."""

    caller: Caller
    last_write: int
    """Offset of the newest record that this connection wrote; reads on it wait for that."""
    pending_writes: int

    def send_reply(self, call_id: int, result: dict[str, Any], fds: list[int] | None = None) -> None: ...

    def send_error(self, call_id: int, error: MemError) -> None: ...

    def send_item(self, call_id: int, item: dict[str, Any]) -> None: ...

    def cancel(self, call_id: int) -> bool:
        """Cancel another call of this connection; False when it is too late."""
        ...

    async def writable(self) -> None:
        """Return when the peer has read enough to be sent more."""
        ...

    def done(self, call_id: int) -> None:
        """The call has its answer; another may come in."""
        ...


class Turn:
    """Answers exactly once; whatever comes later is dropped."""

    __slots__ = (
        "after", "also", "appended", "call_id", "cancel", "finished", "long", "mapped", "mappings", "on_end", "peer", "size",
        "started", "stats", "syscall", "timer", "waits",
    )  # fmt: skip

    def __init__(self, peer: Peer, call_id: int, syscall: Syscall, stats: Any) -> None:
        self.peer = peer
        self.call_id = call_id
        self.syscall = syscall
        self.stats = stats
        self.started = time.perf_counter_ns()
        self.finished = False
        self.appended = False
        """A record of this call is on its way: from here on its outcome may be unknown."""
        self.long = False
        """Counted by its connection among the calls that run as tasks."""
        self.after: Callable[[], None] | None = None
        """Called when it is over, however it ended."""
        self.also: dict[str, Any] = {}
        """What its answer says beside what its record does."""
        self.size = 0
        """Bytes of the request, as its connection counts them."""
        self.mappings = 0
        self.mapped = 0
        """Bytes of the descriptors that came with it."""
        self.on_end: Callable[[], None] | None = None
        """Clears away what was made for the call, if it ends without a record."""
        self.cancel: Any = None
        """Task to cancel when the caller goes away or says so."""
        self.timer: Any = None
        self.waits: str | None = None
        """What outside the kernel it waits for, before anything of it was done."""

    def answer(self, result: dict[str, Any], fds: list[int] | None = None) -> None:
        if not self.finished:
            self._finish(False)
            try:
                self.peer.send_reply(self.call_id, result, fds)
            except MemTooLarge as error:
                outcome: Outcome = "unknown" if self.appended else "none"
                advice = "It is done; ask for what you need of it in parts." if self.appended else "Ask for fewer items."
                self.peer.send_error(
                    self.call_id, MemTooLarge(f"the answer is too large: {error.detail}", advice, outcome=outcome)
                )

    def fail(self, error: MemError) -> None:
        if not self.finished:
            self._finish(True)
            self.peer.send_error(self.call_id, error)

    def item(self, item: dict[str, Any]) -> None:
        if not self.finished:
            self.peer.send_item(self.call_id, item)

    def expire(self) -> None:
        """The deadline passed."""
        if not self.finished:
            if self.waits is not None and not self.appended:
                self.fail(MemAgain(self.waits))
                return
            outcome: Outcome = "unknown" if self.appended else "none"
            self.fail(MemTimeout(f"{self.syscall.name} took longer than its deadline", outcome=outcome))
            if self.cancel is not None:
                self.cancel.cancel()

    def _finish(self, error: bool) -> None:
        self.finished = True
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.on_end is not None and not self.appended:
            self.on_end()
        if self.after is not None:
            self.after()
        self.stats.add(time.perf_counter_ns() - self.started, error)
        self.peer.done(self.call_id)
