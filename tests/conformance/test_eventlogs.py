"""Every event log under `memos_kernel/eventlog`, bound to the suite. L8: one that is not bound fails."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import ClassVar

from tests.conformance.eventlogs import EventLogSuite, Faulty

import memos_kernel.eventlog
from memos_drivers.stores.base import Store
from memos_kernel.eventlog.base import EventLog
from memos_kernel.eventlog.embedded import EmbeddedLog
from memos_kernel.eventlog.memory import DOUBT, LOSE, MemoryLog


class EmbeddedSuite(EventLogSuite):
    """The embedded log, whose appends fail when its store does."""

    implementation: ClassVar[type[object]] = EmbeddedLog
    stores: dict[EventLog, Faulty]

    def log_of(self, store: Store) -> EventLog:
        faulty = Faulty(store)
        log = EmbeddedLog(faulty)
        self.faulty = faulty
        return log

    def fail(self, log: EventLog, kind: str) -> None:
        self.faulty.next = "write" if kind == "lose" else "sync"


class TestEmbeddedLogInMemory(EmbeddedSuite):
    rocks: ClassVar[bool] = False


class TestEmbeddedLogInRocksDB(EmbeddedSuite):
    rocks: ClassVar[bool] = True


class TestMemoryLog(EventLogSuite):
    implementation: ClassVar[type[object]] = MemoryLog
    rocks: ClassVar[bool] = False

    def log_of(self, store: Store) -> EventLog:
        return MemoryLog(store)

    def fail(self, log: EventLog, kind: str) -> None:
        assert isinstance(log, MemoryLog)
        log.faults.append(LOSE if kind == "lose" else DOUBT)


def test_l8_every_log_passes_the_suite() -> None:
    found: set[type[object]] = set()
    for path in Path(memos_kernel.eventlog.__file__ or "").parent.glob("*.py"):
        module = importlib.import_module(f"memos_kernel.eventlog.{path.stem}")
        for _name, kind in inspect.getmembers(module, inspect.isclass):
            if all(callable(getattr(kind, part, None)) for part in ("begin", "finish")) and kind is not EventLog:
                found.add(kind)
    bound = {TestEmbeddedLogInMemory, TestEmbeddedLogInRocksDB, TestMemoryLog}
    assert found == {suite.implementation for suite in bound}
