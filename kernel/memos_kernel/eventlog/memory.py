"""The in-memory log: the reference implementation, and the one that plays faults back on demand.

`faults` is a queue; each append takes one: None lets it through, `LOSE` raises and keeps nothing, `DOUBT` raises after
the frame was kept, which is what a caller sees when the acknowledgement is lost.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Iterator
from typing import Final

from memos_drivers.stores.base import Store

from .base import Append, last_at_or_before
from .embedded import OwnStore

LOSE: Final = "lose"
DOUBT: Final = "doubt"


class MemoryLog(OwnStore):
    """Frames in a list; view changes go to the store once the frame is kept."""

    kind = "memory"
    shared = False

    def __init__(self, store: Store) -> None:
        self._store = store
        self._firsts: list[int] = []
        self._times: list[int] = []
        self._frames: list[bytes] = []
        self._claims: list[bytes] = []
        self.faults: deque[str | None] = deque()

    def claims(self) -> Iterator[bytes]:
        yield from list(self._claims)

    def frames(self, from_seq: int = 0) -> Iterator[bytes]:
        at = max(0, bisect.bisect_right(self._firsts, from_seq) - 1)
        while at < len(self._frames):
            yield self._frames[at]
            at += 1

    def begin(self, append: Append) -> None:
        """Nothing is kept before `finish`."""

    def finish(self, append: Append) -> None:
        fault = self.faults.popleft() if self.faults else None
        if fault == LOSE:
            raise OSError("injected: the frame was lost")
        self._store.write(append.batch)
        if append.claim is not None:
            self._claims.append(append.claim[1])
        self._firsts.append(append.first_seq)
        self._times.append(append.first_time)
        self._frames.append(append.frame)
        if fault == DOUBT:
            raise OSError("injected: the acknowledgement was lost")

    def seq_at(self, time: int) -> int | None:
        at = bisect.bisect_right(self._times, time) - 1
        return None if at < 0 else last_at_or_before(self, self._firsts[at], time)

    def describe(self) -> dict[str, object]:
        return {"kind": self.kind, "frames": len(self._frames)}

    def close(self) -> None:
        """There is nothing to close."""
