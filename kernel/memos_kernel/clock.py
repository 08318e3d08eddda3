"""Time, behind a seam: the real clock, and one that a test or a simulation moves by hand."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    def now(self) -> int:
        """Nanoseconds UTC."""
        ...


class RealClock:
    def now(self) -> int:
        return time.time_ns()


class ManualClock:
    """Stands still until it is told otherwise; each reading may step it."""

    def __init__(self, start: int = 1_700_000_000_000_000_000, step: int = 0) -> None:
        self.time = start
        self.step = step

    def now(self) -> int:
        self.time += self.step
        return self.time

    def advance(self, seconds: float) -> None:
        self.time += int(seconds * 1_000_000_000)
