"""Around a change of writer: what a renewed epoch, a promotion, a late kernel and an outage must not do.

Every test has its own topic on a real broker. What has to happen at one moment is made to: a producer between the log and the
broker fails or keeps a message, or the other kernel acts inside a step of this one.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest
from confluent_kafka import KafkaError, Producer
from tests.conformance.test_eventlogs import FaultyProducer
from tests.inside import ALICE, BOB, Inside

from memos_drivers.stores.rocks import RocksStore
from memos_kernel import events as ev
from memos_kernel import verify
from memos_kernel.clock import RealClock
from memos_kernel.dispatch import LINE_SEEN
from memos_kernel.eventlog import kafka as kafka_log
from memos_kernel.eventlog.base import Append, OutOfReach, records
from memos_kernel.eventlog.counting import decode
from memos_kernel.eventlog.kafka import KafkaLog
from memos_kernel.eventlog.link import Link
from memos_kernel.eventlog.payloadtopic import PayloadTopic, Sink
from memos_kernel.fds import sealed_memfd
from memos_kernel.governance import raw_id
from memos_kernel.keystore import Keys
from memos_kernel.recovery import Refused, destroy_unnamed, recover
from memos_kernel.state import View
from memos_kernel.topicboot import open_topic
from memos_kernel.topickeys import TopicKeys
from memos_syscalls.errors import MemError

RENEWING_SECONDS = 0.3
"""How long a renewal is made to take: as reading topics does."""


class Scene:
    """One topic, one master key, and kernels on directories of their own."""

    def __init__(self, root: Path, address: str, topic: str) -> None:
        self.root = root
        self.url = f"kafka://{address}/{topic}"
        self.key = root / "master.key"
        self.key.write_text("11" * 32 + "\n")
        self.key.chmod(0o600)
        self._kernels: list[Inside] = []

    def kernel(self, name: str, **settings: Any) -> Inside:
        made = Inside(self.root / name, log=self.url, master_key_file=self.key, clock=RealClock(), start=False, **settings)
        made.open()
        self._kernels.append(made)
        return made

    def close(self) -> None:
        for kernel in self._kernels:
            kernel.__exit__(AssertionError, None, None)


@pytest.fixture
def scene(tmp_path: Path, kafka: str, topic: str) -> Iterator[Scene]:
    made = Scene(tmp_path, kafka, topic)
    yield made
    made.close()


def log_of(k: Inside) -> KafkaLog:
    assert isinstance(k.log, KafkaLog)
    return k.log


def until(k: Inside, what: Callable[[], bool], seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come to be"
        k.run(0.02)


def outcome(k: Inside, call: asyncio.Future[dict[str, Any]]) -> dict[str, Any] | str:
    """The answer, or the errno."""
    try:
        return k.wait(call, 20)
    except MemError as error:
        assert error.errno != "EAGAIN" or error.outcome == "none"
        return error.errno


def whole(k: Inside) -> None:
    """The kernel goes on, and what it wrote can be read by others."""
    assert k.fatal == [] and k.kernel.stopped is None
    k("mem_alloc", namespace="later", content="later")
    report = verify.verify_log(k.log, public_key=None, frame_mac=k.kernel.keys.frame_mac)
    assert report.ok, report.problems
    assert k("sys_verify", full=True)["ok"]


# -- producers that do not do what they are told -----------------------------------------------------------------------


class Between(Protocol):
    def produce(self, topic: str, data: bytes, partition: int, on_delivery: Any) -> None: ...


Made = TypeVar("Made", bound=Between)


def put_between(k: Inside, make: Callable[[Producer], Made]) -> Made:
    """Put something between the log and its producer."""
    log = log_of(k)
    made = make(log._producer)  # pyright: ignore[reportPrivateUsage]
    log._producer = made  # type: ignore[assignment]  # pyright: ignore
    return made


class FaultyWhenTold(FaultyProducer):
    """Its failure is reported when `go` is set."""

    def __init__(self, producer: Producer, *, sent: bool) -> None:
        super().__init__(producer, sent=sent)
        self.go = threading.Event()

    def poll(self, timeout: float) -> int:
        return super().poll(timeout) if self.go.is_set() else self._producer.poll(timeout)


class Keeping:
    """Keeps messages of one kind back until `go` is set; `silent`: they go out at once, and no report comes before a purge."""

    def __init__(self, producer: Producer, kind: type, *, silent: bool = False) -> None:
        self._producer = producer
        self._kind = kind
        self._silent = silent
        self._lock = threading.Lock()
        self._kept: list[Callable[[], None]] = []
        self.go = threading.Event()
        self.seen = threading.Event()

    def produce(self, topic: str, data: bytes, partition: int, on_delivery: Callable[[KafkaError | None, Any], None]) -> None:
        if not isinstance(decode(data), self._kind):
            self._producer.produce(topic, data, partition=partition, on_delivery=on_delivery)
            return
        if self._silent:
            self._producer.produce(topic, data, partition=partition)
            self._producer.flush(20)

        def later() -> None:
            if self._silent:
                on_delivery(KafkaError(KafkaError._PURGE_INFLIGHT, "injected"), _Nowhere())
            else:
                self._producer.produce(topic, data, partition=partition, on_delivery=on_delivery)

        with self._lock:
            self._kept.append(later)
        self.seen.set()

    def poll(self, timeout: float) -> int:
        if self.go.is_set():
            with self._lock:
                kept, self._kept = self._kept, []
            for one in kept:
                one()
        return self._producer.poll(timeout)

    def purge(self, **how: bool) -> None:
        self.go.set()
        self._producer.purge(**how)

    def flush(self, timeout: float) -> int:
        return self._producer.flush(timeout)


class _Nowhere:
    def offset(self) -> int:
        return -1


# -- renewals ----------------------------------------------------------------------------------------------------------


def slow_renewal(k: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    check = log_of(k).check

    def slowly() -> None:
        time.sleep(RENEWING_SECONDS)
        check()

    monkeypatch.setattr(k.log, "check", slowly)


def test_a_slot_of_an_ended_epoch_is_never_used_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large write has a slot from before a renewal, and comes to its end after it."""
    k = scene.kernel("a")
    stored, go = threading.Event(), threading.Event()
    put_piece = log_of(k).put_piece

    def slowly(key: bytes, piece: bytes) -> None:
        stored.set()
        assert go.wait(20)
        put_piece(key, piece)

    monkeypatch.setattr(k.log, "put_piece", slowly)
    content = os.urandom(700_000)
    mapped = memoryview(mmap.mmap(sealed_memfd(content), len(content), prot=mmap.PROT_READ))
    large = k.submit("mem_alloc", namespace="n", fd=0, encoding="bytes", _contents=[mapped])
    until(k, stored.is_set)
    put_between(k, lambda real: FaultyProducer(real, sent=False))
    assert outcome(k, k.submit("mem_alloc", ALICE, namespace="m", content="lost")) == "EAGAIN"
    k("mem_alloc", namespace="n", content="after the renewal")
    go.set()
    assert outcome(k, large) == "EAGAIN"
    made = [k("mem_alloc", namespace="n", content=f"precious {n}")["cube_id"] for n in range(3)]
    for cube_id in made:
        cube = k.kernel.view.cube(raw_id(cube_id))
        assert cube is not None and cube.slot is not None and cube.slot.epoch == k.kernel.chain.epoch
    k.crash()
    assert [k("mem_read", cube_id=cube_id)["content"] for cube_id in made] == [f"precious {n}" for n in range(3)]


@pytest.mark.parametrize("counted", [False, True], ids=["not counted", "counted"])
def test_a_long_write_behind_a_renewal_comes_after_it(scene: Scene, monkeypatch: pytest.MonkeyPatch, counted: bool) -> None:
    k = scene.kernel("a")
    k("mem_alloc", namespace="n", content="a")
    slow_renewal(k, monkeypatch)
    fault = put_between(k, lambda real: FaultyWhenTold(real, sent=counted))
    doubtful = k.submit("mem_alloc", ALICE, namespace="m", content="b")
    k.run(0.1)
    items = [{"namespace": "o", "content": f"x{n}"} for n in range(200)]
    long = k.submit("mem_alloc_many", BOB, items=items)
    k.run(0.1)
    assert k.kernel.gate_closed and not doubtful.done(), "it waits behind the frame"
    fault.go.set()
    first, second = outcome(k, doubtful), outcome(k, long)
    assert isinstance(first, dict) if counted else first == "EAGAIN"
    assert isinstance(second, dict) and len(second["items"]) == 200
    whole(k)
    epochs = {record.epoch for _raw, record in records(k.log) if len(record.events) >= 200}
    assert epochs == {k.kernel.chain.epoch} == {2}
    with_what_others_see = scene.kernel("b", standby=True)
    until(with_what_others_see, lambda: with_what_others_see.kernel.durable == k.kernel.durable)


def test_one_frame_at_a_time_also_while_an_epoch_opens_slowly(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint timer and the tick come by while the first frame of the new epoch is under way."""
    k = scene.kernel("a")
    k("mem_alloc", namespace="n", content="a")
    log, under_way, most = log_of(k), [0], [0]
    begin, finish = log.begin, log.finish

    def begun(append: Append) -> None:
        under_way[0] += 1
        most[0] = max(most[0], under_way[0])
        begin(append)

    def finished(append: Append) -> None:
        try:
            if append.claim_id != first_claim:
                time.sleep(1.2)
            finish(append)
        finally:
            under_way[0] -= 1

    first_claim = k.kernel.chain.claim_id
    monkeypatch.setattr(log, "begin", begun)
    monkeypatch.setattr(log, "finish", finished)
    put_between(k, lambda real: FaultyProducer(real, sent=False))
    assert outcome(k, k.submit("mem_alloc", namespace="n", content="b")) == "EAGAIN"
    k.loop.call_later(0.3, k.kernel.tick)
    k.run(1.0)
    monkeypatch.undo()
    k.run(1.0)
    assert most[0] == 1
    whole(k)


def test_a_writer_reads_nothing_again_that_it_stored_itself(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither when it opens an epoch anew nor when it starts again, or both would take as long as its contents are large."""
    k = scene.kernel("a")
    made = [k("mem_alloc", namespace="n", content=f"{n}" * 20_000)["cube_id"] for n in range(3)]
    read: list[bytes] = []
    read_on = PayloadTopic.read_on

    def counted(payloads: PayloadTopic, from_offset: int, sink: Sink) -> int:
        def noting(key: bytes, piece: bytes | None, offset: int) -> None:
            read.append(key)
            sink(key, piece, offset)

        return read_on(payloads, from_offset, noting)

    monkeypatch.setattr(PayloadTopic, "read_on", counted)
    put_between(k, lambda real: FaultyProducer(real, sent=False))
    assert outcome(k, k.submit("mem_alloc", namespace="n", content="lost")) == "EAGAIN"
    k("mem_alloc", namespace="n", content="after the renewal")
    k.crash()
    assert read == []
    assert [k("mem_read", cube_id=cube_id)["content"] for cube_id in made] == [f"{n}" * 20_000 for n in range(3)]
    scene.kernel("b", standby=True)
    assert len(read) == 3, "who has nothing reads everything"


# -- who took over -----------------------------------------------------------------------------------------------------


def between_claim_and_opening(monkeypatch: pytest.MonkeyPatch, work: Callable[[], None]) -> None:
    """Run `work` once, in the thread of the next kernel whose claim counted, before it destroys or writes anything."""
    pending = [work]

    def first(*args: Any, **named: Any) -> Any:
        if pending:
            pending.pop()()
        return recover(*args, **named)

    monkeypatch.setattr("memos_kernel.succession.recover", first)


def test_a_replaced_kernel_destroys_nothing_of_the_next(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one renews its epoch, another takes over and acknowledges; the first one knows its keys, and goes on a little."""
    a, b = scene.kernel("a"), scene.kernel("b", standby=True)
    a("mem_alloc", namespace="n", content="x")
    keystore: Keys = a.keystores[0]
    assert isinstance(keystore, TopicKeys)
    made: list[str] = []

    def take_over() -> None:
        b("sys_promote")
        made.extend(b("mem_alloc", namespace="n", content=f"of the next {n}")["cube_id"] for n in range(3))
        keystore.refresh()

    between_claim_and_opening(monkeypatch, take_over)
    put_between(a, lambda real: FaultyProducer(real, sent=False))
    gone_on = threading.Event()

    def destroyed(view: View, keys: Keys, **which: Any) -> None:
        destroy_unnamed(view, keys, **which)
        if keys is keystore:
            gone_on.set()

    monkeypatch.setattr("memos_kernel.succession.destroy_unnamed", destroyed)
    lost = a.submit("mem_alloc", namespace="n", content="lost")
    until(a, gone_on.is_set)
    until(a, lambda: a.kernel.stopped is not None)
    assert a.kernel.fenced and len(made) == 3
    assert outcome(a, lost) in ("EAGAIN", "EFENCED")
    a.abandon()
    epoch = b.kernel.chain.epoch
    b.crash()
    assert [b("mem_read", cube_id=cube_id)["content"] for cube_id in made] == [f"of the next {n}" for n in range(3)]
    assert b.kernel.chain.epoch == epoch + 1


def test_of_two_kernels_started_at_once_one_serves_and_the_other_is_refused(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Inside] = []
    between_claim_and_opening(monkeypatch, lambda: started.append(scene.kernel("second")))
    began = time.monotonic()
    with pytest.raises(Refused) as refusal:
        scene.kernel("first")
    assert refusal.value.fenced and "another kernel" in str(refusal.value)
    assert time.monotonic() - began < 15, "it does not wait for what never comes"
    (second,) = started
    whole(second)


def test_a_promotion_whose_caller_gave_up_ends_with_a_writer(scene: Scene) -> None:
    """The claim counts in any case: the one before is gone then."""
    a, b = scene.kernel("a"), scene.kernel("b", standby=True)
    a("mem_alloc", namespace="n", content="x")
    claims = put_between(b, lambda real: Keeping(real, ev.Claim))
    call = b.submit("sys_promote", deadline_ms=100)
    assert outcome(b, call) == "ETIMEDOUT"
    until(b, claims.seen.is_set)
    claims.go.set()
    becomes_the_writer(b)
    until(a, lambda: a.kernel.stopped is not None)
    assert a.kernel.fenced


def test_a_promotion_whose_claim_arrived_without_a_word_ends_with_a_writer(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker is slow: the claim is reported lost when we stop waiting for it, and counts."""
    a, b = scene.kernel("a"), scene.kernel("b", standby=True)
    a("mem_alloc", namespace="n", content="x")
    put_between(b, lambda real: Keeping(real, ev.Claim, silent=True))
    with monkeypatch.context() as patience:
        patience.setattr(kafka_log, "START_SECONDS", 0.2)
        assert outcome(b, b.submit("sys_promote")) == "EAGAIN"
    becomes_the_writer(b)
    until(a, lambda: a.kernel.stopped is not None)
    assert a.kernel.fenced


def becomes_the_writer(k: Inside) -> None:
    """By itself."""
    assert k.kernel.succession is not None
    follower = k.kernel.succession
    until(k, lambda: not follower.standby and k.kernel.durable.seq >= k.kernel.opened_at > 0)
    whole(k)


def test_a_search_finds_everything_after_a_takeover(scene: Scene) -> None:
    """Also what the one before wrote while the claim was on its way, with pieces and keys of their own."""
    a, b = scene.kernel("a"), scene.kernel("b", standby=True)
    a("mem_alloc", namespace="n", content="the first walrus")
    until(b, lambda: b.kernel.durable == a.kernel.durable)
    claims = put_between(b, lambda real: Keeping(real, ev.Claim))
    promotion = b.submit("sys_promote")
    until(b, claims.seen.is_set)
    a("mem_alloc", namespace="n", content="a long walrus " + "w" * 20_000)
    # More than the block of keys that was there before.
    a("mem_alloc_many", items=[{"namespace": "n", "content": f"walrus {n}"} for n in range(1000)])
    a("mem_alloc_many", items=[{"namespace": "n", "content": f"seal {n}"} for n in range(60)])
    claims.go.set()
    b.wait(promotion, 20)
    for _ in range(2):
        b.settle()
        assert found(b, "walrus") == 1000
        assert found(b, "long") == 1 and found(b, "first") == 1 and found(b, "seal") == 60
        b.reopen()
    assert b("sys_verify", full=True)["ok"]


def found(k: Inside, word: str) -> int:
    """How many cubes a search for a word finds; 1,000 at most."""
    return len(k("mem_search", namespace="n", query=word, mode="lexical", k=1000)["hits"])


def test_a_directory_that_begun_and_did_not_claim_is_started_again(scene: Scene) -> None:
    """Two kernels began at once, each made a root, and both died before their claim."""
    k = Inside(scene.root / "a", log=scene.url, master_key_file=scene.key, clock=RealClock(), start=False)
    (scene.root / "a").mkdir()
    store, log, keystore, segment_keys = open_topic(k.config, scene.root / "a")
    own = keystore.header.log_id
    for part in (log, keystore, segment_keys, store):
        part.close()
    TopicKeys.create(Link.parse(scene.url), b"\x11" * 32)
    again = scene.kernel("a")
    assert again.kernel.keys.log_id == own
    whole(again)


# -- erasure -----------------------------------------------------------------------------------------------------------


def listed(k: Inside, word: str) -> int:
    """In how many documents of the directory's index segments a word can be read, with the keys that are here."""
    segments = k.kernel.effects._segments  # pyright: ignore[reportPrivateUsage]
    assert isinstance(k.store, RocksStore)
    count = 0
    for key, data in segments._rows.scan(b"g"):  # pyright: ignore[reportPrivateUsage]
        documents, _vectors = segments._documents(  # pyright: ignore[reportPrivateUsage]
            int.from_bytes(key[1:], "big"), data
        )
        count += sum(word in document.text for document in documents)
    return count


def test_a_directory_that_missed_a_shred_is_blind_to_it_after_its_start(scene: Scene) -> None:
    a = scene.kernel("a")
    gone = a("mem_alloc", namespace="n", content="zyzzyva")["cube_id"]
    a("mem_alloc", namespace="n", content="kept")
    for name in ("standby", "writer"):
        k = scene.kernel(name, standby=True)
        until(k, lambda k=k: k.kernel.durable == a.kernel.durable)  # type: ignore[misc]
        k.settle()
        k.reopen()
        assert listed(k, "zyzzyva") == 1
        k.stop()
    a("mem_shred", cube_id=gone)
    k = scene.kernel("standby", standby=True)
    until(k, lambda: k.kernel.durable == a.kernel.durable)
    k.settle()
    assert listed(k, "zyzzyva") == 0 and found(k, "kept") == 1, "as a standby"
    k("sys_promote")
    assert listed(k, "zyzzyva") == 0 and found(k, "kept") == 1, "promoted"
    k.stop()
    k = scene.kernel("writer")
    k.settle()
    assert listed(k, "zyzzyva") == 0 and found(k, "kept") == 1, "as the writer"


class Walked(dict[bytes, Any]):
    """Counts the keys that were walked over."""

    steps = 0

    def __iter__(self) -> Iterator[bytes]:
        for key in super().__iter__():
            Walked.steps += 1
            yield key


def test_the_work_of_shredding_a_namespace_grows_with_its_cubes_and_no_faster(tmp_path: Path) -> None:
    steps: dict[int, int] = {}
    for count in (250, 1000):
        with Inside(tmp_path / str(count), rocks=True) as k:
            k("mem_alloc_many", items=[{"namespace": "n", "content": f"{n}"} for n in range(count)])
            tables: Any = k.kernel.tables
            # One lookup by first byte, and everything at once.
            tables._keys = tuple(Walked() for _ in range(256))
            tables.overlay = Walked()
            Walked.steps = 0
            k.wait(k.submit("mem_shred", namespace="n"), 30)
            steps[count] = Walked.steps
            assert not k("mem_list", namespace="n")["cubes"]
    assert steps[1000] <= 6 * max(steps[250], 250), steps


# -- while the log is away ---------------------------------------------------------------------------------------------


def never(within: float = 0) -> bool:
    return False


def test_what_waits_in_line_does_not_grow_while_the_log_is_away(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers give up and come again, each time with its content."""
    k = scene.kernel("a")
    k("mem_alloc", namespace="n", content="a")
    assert k.kernel.succession is not None
    with monkeypatch.context() as outage:
        outage.setattr(KafkaLog, "away", True)
        outage.setattr(k.log, "fresh", never)
        outage.setattr(k.log, "ask", lambda: None)
        waiting: list[asyncio.Future[dict[str, Any]]] = []
        for n in range(6 * LINE_SEEN):
            waiting = [k.submit("mem_alloc", namespace="n", content=f"{n}" * 1000, deadline_ms=1),
                       k.submit("mem_list", namespace="n", deadline_ms=1)]  # fmt: skip
            assert [outcome(k, call) for call in waiting] == ["EAGAIN", "EAGAIN"]
        assert len(k.kernel.line) <= LINE_SEEN + 1
        assert len(k.kernel.succession._unsure) <= 2  # pyright: ignore[reportPrivateUsage]
    assert len(k("mem_list", namespace="n")["cubes"]) == 1
    whole(k)


def test_a_standby_outlives_a_broker_that_does_not_answer(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = scene.kernel("a"), scene.kernel("b", standby=True)
    a("mem_alloc", namespace="n", content="x")
    asked = [0]

    def away() -> None:
        asked[0] += 1
        raise OutOfReach("Kafka does not answer")

    with monkeypatch.context() as outage:
        outage.setattr(b.keystores[0], "refresh", away)
        a("mem_alloc", namespace="n", content="y")
        until(b, lambda: asked[0] > 2)
    until(b, lambda: b.kernel.durable == a.kernel.durable)
    assert b.kernel.stopped is None and len(b("mem_list", namespace="n")["cubes"]) == 2


def test_a_read_that_waited_for_its_own_write_is_proven_fresh_all_the_same(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the write was acknowledged proves only that nobody had replaced this kernel when it was sent."""
    k = scene.kernel("a")
    k("mem_alloc", namespace="n", content="a")
    frames = put_between(k, lambda real: Keeping(real, ev.Frame))
    write = k.submit("mem_alloc", namespace="n", content="b")
    until(k, frames.seen.is_set)
    read = k.submit("mem_list", namespace="n")
    k.run(0.1)
    with monkeypatch.context() as stale:
        stale.setattr(k.log, "fresh", never)
        frames.go.set()
        k.wait(write)
        k.run(0.3)
        assert not read.done(), "the write is answered, the read is not"
    assert len(k.wait(read)["cubes"]) == 2
