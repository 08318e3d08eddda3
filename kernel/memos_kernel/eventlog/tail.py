"""The tail of a topic: read in order, judged, and handed over in that order to whoever keeps it.

- `pump` takes in what the consumer has. It is called by whoever waits, or by a thread of its own after `follow`.
- When the writer wants to look at an address again, nothing more is read before that is done, and what counted meanwhile is
  not handed over: what may stand on a tail that was lost must not reach the mirror, where a later start would take it for
  granted.
- What counted waits in a queue until the one who owns the store takes it (`counted`), so that mirror and view change in one
  batch and in order.

The lock is `changed`; whoever changes the writer holds it, and notifies.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as KafkaMessage

from memos_drivers.stores.base import LOG, PAYLOAD, Batch, Store
from memos_syscalls import limits

from ..chain import LogKeys
from ..events import Claim, Damaged, Frame, claim_signature_ok
from . import mirror
from .base import Ended, OutOfReach
from .counting import Counting, Verdict, decode
from .link import Link
from .mirror import Counted
from .partition import Reader
from .payloadtopic import PayloadTopic
from .writer import ENDED, Address, Message, Writer

log_ = logging.getLogger("memos.kafka")

BATCH_MESSAGES: Final = 512
POLL_SECONDS: Final = 0.25
CALM_SECONDS: Final = 0.05
START_SECONDS: Final = 30.0
LOOK_WAIT_MS: Final = 10
LOOK_SECONDS: Final = 10.0
PATIENT_LOOK_SECONDS: Final = 60.0
"""How long a leader may take to show what was visible before; a topic that ends before it lost its tail."""
QUEUE_BYTES_MAX: Final = 8 * limits.MIB
"""Of messages that counted and nobody took yet; a tail that is further ahead waits."""
LOST: Final = frozenset({KafkaError._AUTO_OFFSET_RESET, KafkaError._LOG_TRUNCATION, KafkaError.OFFSET_OUT_OF_RANGE})
GONE: Final = frozenset({
    KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION, KafkaError.UNKNOWN_TOPIC_ID,
})  # fmt: skip


class Owner(Protocol):
    """Who is told, in the thread that reads."""

    on_counted: Callable[[], None]
    on_fresh: Callable[[], None]
    on_end: Callable[[str, bool], None]
    before_counted: Callable[[], None]

    def between_reads(self) -> None: ...


class Tail:
    """Reads one topic from where its mirror ends. `close` it."""

    def __init__(
        self, owner: Owner, store: Store, link: Link, keys: LogKeys, payloads: PayloadTopic, now: Callable[[], float]
    ) -> None:
        self.link = link
        self.now = now
        self.voids = 0
        self.suspects = 0
        self.changed = threading.Condition(threading.RLock())
        self.closing = False
        self._owner = owner
        self._store = store
        self._reader = store.live(LOG)
        self._payloads = payloads
        counting = Counting(keys.log_id, keys.signer.public_key, keys.frame_mac, mirror.standing(self._reader))
        self.writer = Writer(counting, mirror.newest(self._reader))
        self._queue: deque[Counted] = deque()
        self._staged: list[Counted] = []
        """What counted, and may not be taken before it is known to stand where it did; by a standby, not before the keys and
        pieces that it names are there."""
        self._position = 0 if self.writer.last is None else self.writer.last.offset + 1
        self._high = self._position
        self._consumer: Consumer = link.consumer()
        self._consumer.assign([TopicPartition(link.topic, 0, self._position)])
        self._second: Consumer | None = None
        self._thread: threading.Thread | None = None
        self._complaint = ""

    @property
    def runs(self) -> bool:
        """Whether a thread of its own reads."""
        return self._thread is not None

    @property
    def position(self) -> int:
        """The topic's offset after the newest message that was read."""
        return self._position

    @property
    def lag(self) -> int:
        """Messages that are in the topic and were not read yet, about."""
        return max(0, self._high - self._position)

    def pump(self, timeout: float) -> None:
        """Take in what the consumer has, waiting for the first message at most `timeout` seconds."""
        if self.writer.look is not None:
            self._look()
        if self._staged and self._following:
            if not self._prepared():
                time.sleep(CALM_SECONDS)
                return
            self._tell()
        first = self._consumer.poll(timeout)
        if first is None:
            return
        moved = False
        for message in (first, *self._consumer.consume(BATCH_MESSAGES, 0)):
            error = message.error()
            if error is not None:
                self._consumer_error(error, message)
                continue
            moved = True
            with self.changed:
                self._take_in(message)
            if self.writer.look is not None:
                self._look()
        if self._staged:
            if self._following and not self._prepared():
                return
            with self.changed:
                self._unstage()
        if moved:
            self._tell()

    def _prepared(self) -> bool:
        """Hand over what waits for the keys and pieces that it names, once they are here; a broker may keep us waiting."""
        try:
            self.read_payloads()
            self._owner.before_counted()
        except OutOfReach as error:
            self._complain(f"following topic {self.link.topic}: {error}")
            return False
        with self.changed:
            self._unstage()
        return True

    def _take_in(self, message: KafkaMessage) -> None:
        writer = self.writer
        found = message_of(message)
        verdict = writer.arrived(found)
        self._position = found.offset + 1
        if isinstance(verdict.message, Claim | Frame) and verdict.counts:
            at = writer.counting.at
            assert writer.last is not None
            item = Counted(writer.last, found.data, verdict.message, at.seq, at.hash)
            self._staged.append(item)
            if not self._following:
                self._unstage()
        elif not verdict.counts:
            self._void(verdict, found.offset)

    @property
    def _following(self) -> bool:
        return self._thread is not None and self.writer.phase == "reading"

    def _unstage(self) -> None:
        """With the lock held. What may stand on a tail that was lost must not reach the mirror: a later start would take it
        for granted."""
        if self.writer.look is None and self.writer.phase != "broken":
            self._queue.extend(self._staged)
            self._staged.clear()

    def _void(self, verdict: Verdict, offset: int) -> None:
        self.voids += 1
        if verdict.kind != "void":
            self.suspects += 1
            if self.suspects < 100:
                log_.warning("the message at offset %d of topic %s does not count: it %s", offset, self.link.topic, verdict.why)

    def _tell(self) -> None:
        """The writer may have moved on: whoever waits looks again."""
        with self.changed:
            self.changed.notify_all()
            ended = self.writer.phase in ENDED
        self._owner.on_fresh()
        if self._queue:
            self._owner.on_counted()
        if ended and self._thread is not None:
            self._owner.on_end(self.writer.why, self.writer.phase == "fenced")

    def _consumer_error(self, error: KafkaError, message: KafkaMessage) -> None:
        code = error.code()
        if code == KafkaError._PARTITION_EOF:
            self._position = max(self._position, message.offset() or 0)
            self._high = self._position
        elif code in LOST:
            self.end(
                f"the topic {self.link.topic} does not reach offset {self._position} any more: "
                "its tail was lost, or it was replaced"
            )
        elif code in GONE:
            self.end(f"the topic {self.link.topic} is gone: it was deleted")
        else:
            self._complain(f"reading topic {self.link.topic}: {error.str()}")

    def end(self, why: str) -> None:
        with self.changed:
            self.writer.truncated(why)
        self._tell()

    def _complain(self, what: str) -> None:
        if what != self._complaint:
            self._complaint = what
            log_.warning("%s", what)

    def _look(self) -> None:
        """Read the newest accepted message again, where it was."""
        at = self.writer.look
        assert at is not None
        found = self._fetch(at)
        if self.closing:
            return
        with self.changed:
            self.writer.looked(found)
            if not self._following:
                self._unstage()
        self._tell()

    def _fetch(self, at: Address) -> Message | None:
        """The message at an address; None when there is none and none will come. Waits while it is not visible."""
        consumer = self._second = self._second or self.link.consumer(wait_ms=LOOK_WAIT_MS)
        where = TopicPartition(self.link.topic, 0, at.offset)
        until = self.now() + (LOOK_SECONDS if self._thread is None else PATIENT_LOOK_SECONDS)
        assigned = False
        while not self.closing:
            try:
                low, high = consumer.get_watermark_offsets(where, timeout=5, cached=False)
            except KafkaException as error:
                if error.args[0].code() in GONE:
                    return None
                until = self.now() + PATIENT_LOOK_SECONDS
                self._complain(f"looking at topic {self.link.topic}: {error.args[0].str()}")
                time.sleep(CALM_SECONDS)
                continue
            self._high = high
            if at.offset < low:
                return None
            if at.offset >= high:
                # A new leader shows what its replicas have once they have told it; a tail that was lost does not come back.
                if self.now() > until:
                    return None
                time.sleep(CALM_SECONDS)
                continue
            if not assigned:
                consumer.assign([where])
                assigned = True
            message = consumer.poll(POLL_SECONDS)
            if message is None:
                continue
            error_found = message.error()
            if error_found is None:
                consumer.unassign()
                return message_of(message) if message.offset() == at.offset else None
            if error_found.code() in LOST or error_found.code() in GONE:
                return None
        return None

    def read_to_end(self) -> None:
        until = self.now() + START_SECONDS
        while True:
            try:
                _low, end = self._consumer.get_watermark_offsets(TopicPartition(self.link.topic, 0), timeout=5, cached=False)
                break
            except KafkaException as error:
                if self.now() > until:
                    raise OutOfReach(
                        f"Kafka at {self.link.brokers} does not answer: {error.args[0].str()}; "
                        "check the address, or start the broker"
                    ) from None
        self._high = end
        seen, seen_at = -1, self.now()
        while self._position < end or self.writer.look is not None:
            self.pump(POLL_SECONDS)
            self.raise_if_ended()
            self.keep_counted()
            if self._position != seen:
                seen, seen_at = self._position, self.now()
            elif self.now() - seen_at > START_SECONDS:
                raise OutOfReach(
                    f"Kafka at {self.link.brokers} sends nothing of topic {self.link.topic} after offset {self._position}; "
                    "look at the broker's log"
                )

    def read_payloads(self) -> None:
        """Take over the pieces of payloads that the topic has and the store has not."""
        batch = Batch()
        held = 0
        stored = self._store.live(PAYLOAD)

        def sink(key: bytes, value: bytes | None, offset: int) -> None:
            nonlocal batch, held
            if value is None or stored.get(key) is not None:
                # A piece never changes; what others write over it, or take away, is theirs. Orphans go with the next epoch.
                return
            batch.put(PAYLOAD, key, value)
            held += len(value)
            if held > limits.FRAME_LOG_BYTES_MAX * 8:
                mirror.put_position(batch, offset + 1)
                self._store.write(batch)
                batch, held = Batch(), 0

        position = self._payloads.read_on(mirror.position(self._reader), sink)
        mirror.put_position(batch, position)
        self._store.write(batch)

    def keep_counted(self) -> None:
        """Write what counted to the mirror, and nothing else: the view follows from it."""
        batch = Batch()
        for item in self.counted():
            mirror.put(batch, item)
        if batch.puts:
            self._store.write(batch)

    def counted(self, most: int | None = None) -> list[Counted]:
        """What counted and was not taken yet, in order; whoever takes it keeps it."""
        with self.changed:
            found = [self._queue.popleft() for _ in range(min(len(self._queue), most or len(self._queue)))]
            self.changed.notify_all()
        return found

    def follow(self) -> None:
        """Begin to read in a thread of our own."""
        assert self._thread is None
        self._thread = threading.Thread(target=self._follow_in_thread, name="tail", daemon=True)
        self._thread.start()

    def _follow_in_thread(self) -> None:
        try:
            while not self.closing:
                self.pump(POLL_SECONDS)
                self._owner.between_reads()
                with self.changed:
                    while self._following and not self.closing and sum(len(i.data) for i in self._queue) > QUEUE_BYTES_MAX:
                        self.changed.wait(POLL_SECONDS)
        except Exception as error:
            if self.closing:
                return
            # Whatever it was: without the tail nothing may be acknowledged.
            log_.exception("reading the topic %s failed", self.link.topic)
            self.end(f"reading the topic {self.link.topic} failed: {error}")

    def raise_if_ended(self) -> None:
        if self.writer.phase in ENDED:
            raise Ended(self.writer.why, fenced=self.writer.phase == "fenced")

    def close(self) -> None:
        self.closing = True
        with self.changed:
            self.changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        for consumer in (self._consumer, self._second):
            if consumer is not None:
                consumer.close()


def first_claim(link: Link, public_key: bytes | None = None) -> Claim | None:
    """The first claim in a topic that is signed by its own key, or by the one that is given."""
    reader = Reader(link, link.topic, batch=BATCH_MESSAGES)
    try:
        for message in reader.to_end():
            data = message.value() or b""
            try:
                claim = decode(data)
            except Damaged:
                continue
            if not isinstance(claim, Claim) or public_key not in (None, claim.public_key):
                continue
            if claim_signature_ok(claim.public_key, data):
                return claim
        return None
    finally:
        reader.close()


def owner_of(link: Link) -> bytes | None:
    """The log that a records topic belongs to: that of its first claim. None for a topic that nobody claimed."""
    claim = first_claim(link)
    return None if claim is None else claim.log_id


def message_of(message: KafkaMessage) -> Message:
    offset, epoch = message.offset(), message.leader_epoch()
    assert offset is not None, "a message that was read has an offset"
    return Message(offset, -1 if epoch is None else epoch, message.value() or b"")
