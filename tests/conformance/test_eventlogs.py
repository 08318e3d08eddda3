"""Every event log under `memos_kernel/eventlog`, bound to the suite. L8: one that is not bound fails."""

from __future__ import annotations

import importlib
import inspect
import shutil
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from confluent_kafka import OFFSET_INVALID, KafkaError, Producer
from tests.conformance.eventlogs import EventLogSuite, Faulty, Material, OwnLogSuite, flipped
from tests.inside import Inside

import memos_kernel.eventlog
from memos_drivers.stores.base import Store
from memos_drivers.stores.memory import MemoryStore
from memos_kernel import events as ev
from memos_kernel import verify
from memos_kernel.chain import LogKeys
from memos_kernel.eventlog.base import Ended, EventLog
from memos_kernel.eventlog.counting import decode
from memos_kernel.eventlog.embedded import EmbeddedLog
from memos_kernel.eventlog.kafka import KafkaLog
from memos_kernel.eventlog.link import Link
from memos_kernel.eventlog.memory import DOUBT, LOSE, MemoryLog
from memos_kernel.eventlog.partition import Reader
from memos_kernel.eventlog.topics import ensure


class EmbeddedSuite(OwnLogSuite):
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

    def test_l4_every_byte_of_a_frame_is_covered(self, written: Material, again: Any) -> None:
        pytest.skip("the bytes are the same ones")


class TestMemoryLog(OwnLogSuite):
    implementation: ClassVar[type[object]] = MemoryLog
    rocks: ClassVar[bool] = False

    def log_of(self, store: Store) -> EventLog:
        return MemoryLog(store)

    def fail(self, log: EventLog, kind: str) -> None:
        assert isinstance(log, MemoryLog)
        log.faults.append(LOSE if kind == "lose" else DOUBT)


class Unplaced:
    """The message of a report that names no place in the topic."""

    def offset(self) -> int:
        return OFFSET_INVALID


class FaultyProducer:
    """A producer whose next frame is reported to have failed: it was not sent, or it was."""

    def __init__(self, producer: Producer, *, sent: bool) -> None:
        self._producer = producer
        self._sent = sent
        self._used = False
        self._reports: deque[Callable[[], None]] = deque()

    def produce(self, topic: str, data: bytes, partition: int, on_delivery: Callable[[KafkaError | None, Any], None]) -> None:
        if self._used or not isinstance(decode(data), ev.Frame):
            self._producer.produce(topic, data, partition=partition, on_delivery=on_delivery)
            return
        self._used = True
        if self._sent:
            self._producer.produce(topic, data, partition=partition)
            self._producer.flush(20)
        self._reports.append(lambda: on_delivery(KafkaError(KafkaError._MSG_TIMED_OUT, "injected"), Unplaced()))

    def poll(self, timeout: float) -> int:
        while self._reports:
            self._reports.popleft()()
        return self._producer.poll(timeout)

    def purge(self, **how: bool) -> None:
        self._producer.purge(**how)

    def flush(self, timeout: float) -> int:
        return self._producer.flush(timeout)


class TestKafkaLog(EventLogSuite):
    """The log on a real broker. Whoever may write its topic can put anything there: it does not count."""

    implementation: ClassVar[type[object]] = KafkaLog
    shared: ClassVar[bool] = True

    @pytest.fixture(autouse=True)
    def broker(self, kafka: str, topic: str) -> None:
        self.address, self.name, self.made = kafka, topic, 0

    def url(self) -> str:
        self.made += 1
        return f"kafka://{self.address}/{self.name}-{self.made}"

    def kernel(self) -> Inside:
        return Inside(log=self.url())

    def fail(self, log: EventLog, kind: str) -> None:
        assert isinstance(log, KafkaLog)
        real = log._producer  # pyright: ignore[reportPrivateUsage]
        log._producer = FaultyProducer(real, sent=kind == "doubt")  # type: ignore[assignment]  # pyright: ignore

    def rewritten(self, store: Store, frames: list[bytes], claims: list[bytes], keys: LogKeys) -> EventLog:
        """Messages that anybody wrote, each claim before its first frame."""
        opening = {ev.decode_claim(data).claim_id: data for data in claims}
        messages: list[bytes] = []
        for data in frames:
            claim = opening.pop(_claim_id(data), None)
            messages += [data] if claim is None else [claim, data]
        link = Link.parse(self.url())
        ids = ensure(link)
        producer = link.producer()
        for data in messages:
            producer.produce(link.topic, data, partition=0)
        assert producer.flush(20) == 0
        log = KafkaLog(store, link, ids.records, keys)
        self.refused: str | None = None
        try:
            log.catch_up()
        except Ended as error:
            self.refused = str(error)
        log.close()
        return log

    def new_machine(self, k: Inside, directory: Path) -> Inside:
        """An empty directory with the master key; all else is on the broker."""
        directory.mkdir()
        shutil.copy(k.config.key_path, directory)
        return Inside(directory, log=k.config.log)

    def elsewhere(self, k: Inside) -> list[bytes]:
        link = k.config.link
        assert link is not None
        found: list[bytes] = []
        for topic in (link.topic, link.payloads, link.keys):
            reader = Reader(link, topic, batch=1000)
            found += [(message.key() or b"") + (message.value() or b"") for message in reader.to_end()]
            reader.close()
        assert len(found) > 256
        return found

    def found(self, log: EventLog, written: Material, report: verify.Report, first: int, last: int) -> None:
        """What was written later changes nothing; what is missing or changed before others ends whoever reads on."""
        assert isinstance(log, KafkaLog)
        held = list(log.frames())
        if held == written.frames:
            assert log.tail.voids and self.refused is None and report.ok
            return
        assert self.refused is not None and "changed, removed or lost" in self.refused
        # One who has the MAC key may have the last word, and no more.
        assert held[:-1] == written.frames[: max(0, len(held) - 1)]
        assert not report.ok and "cut back" in report.problems[-1].what

    def test_l4_every_byte_of_a_frame_is_covered(self, written: Material, again: Any) -> None:
        """Every frame that differs from the true one in a bit stands before it, and none counts."""
        *frames, last = written.frames
        others = [flipped(last, at) for at in range(len(last))]
        log = self.rewritten(MemoryStore(), [*frames, *others, last], written.claims, written.keys)
        assert isinstance(log, KafkaLog)
        assert list(log.frames()) == written.frames and log.tail.voids == len(others)
        assert written.verified(log, anchor=True).ok


def _claim_id(data: bytes) -> bytes:
    """The claim that a frame is under; nothing for one that cannot be read."""
    try:
        return ev.decode_frame(data).claim_id
    except ev.Damaged:
        return b""


def test_l8_every_log_passes_the_suite() -> None:
    found: set[type[object]] = set()
    for path in Path(memos_kernel.eventlog.__file__ or "").parent.glob("*.py"):
        module = importlib.import_module(f"memos_kernel.eventlog.{path.stem}")
        for _name, kind in inspect.getmembers(module, inspect.isclass):
            if "finish" in vars(kind) and kind is not EventLog:
                found.add(kind)
    bound: set[type[EventLogSuite]] = {TestEmbeddedLogInMemory, TestEmbeddedLogInRocksDB, TestMemoryLog, TestKafkaLog}
    assert found == {suite.implementation for suite in bound}
