"""The event log on Apache Kafka: one topic partition, one writer, and a mirror of what counted in the store.

Kafka is the log; the mirror (mirror.py) is what is read. Which messages count is counting.py's, who may acknowledge is
writer.py's; here are the threads and the clients around them.

- `catch_up` reads the topic to its end into the mirror; `open_epoch` claims it; then `begin` and `finish` append.
- One thread, the tail, reads the topic and feeds the writer. What counted waits in a queue until the one who owns the store
  takes it (`counted`), so that mirror and view change in one batch and in order.
- A frame's fate may turn out to be settled by a new claim of ours: `finish` says so with `Renewed`, and the caller goes on
  under the new epoch.
- `Ended` means that this process must not write any more: another kernel took over, or the topic is not what it was.
- A broker out of reach is not an error: `finish` waits, `away` says so.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka import Message as KafkaMessage

from memos_drivers.stores.base import PAYLOAD, Batch, Store
from memos_syscalls import limits

from .. import crypto
from ..chain import LogKeys
from ..events import Claim, Damaged, Frame, claim_signature_ok
from . import mirror
from .base import Append, Ended, Opened, OutOfReach, Renewed, Sign
from .counting import Counting, Verdict, decode
from .embedded import EmbeddedLog
from .link import Link
from .mirror import Counted, Origin
from .partition import NoTopic, Reader
from .payloadtopic import PayloadTopic
from .topics import id_now
from .writer import ENDED, Address, Message, Sent, Writer

log_ = logging.getLogger("memos.kafka")

BATCH_MESSAGES: Final = 512
POLL_SECONDS: Final = 0.25
CALM_SECONDS: Final = 0.05
START_SECONDS: Final = 30.0
LOOK_WAIT_MS: Final = 10
LOOK_SECONDS: Final = 10.0
PATIENT_LOOK_SECONDS: Final = 60.0
"""How long a leader may take to show what was visible before; a topic that ends before it lost its tail."""
CLAIM_TRIES: Final = 20
QUEUE_MAX: Final = 4096
"""Messages that counted and nobody took yet; a tail that is further ahead waits."""
FRESH_SECONDS: Final = 1.0
"""How old the proof may be that nobody has replaced us, when a read is answered."""
AWAY_SECONDS: Final = 0.5
ASK_SECONDS: Final = 2.0
"""How long an append may take before a broker is asked whether the topic is still there, and between two such questions."""
MISSING_TIMES: Final = 3
_LOST: Final = frozenset({KafkaError._AUTO_OFFSET_RESET, KafkaError._LOG_TRUNCATION, KafkaError.OFFSET_OUT_OF_RANGE})
_GONE: Final = frozenset({
    KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION, KafkaError.UNKNOWN_TOPIC_ID,
})  # fmt: skip


def boottime() -> float:
    """Seconds of a clock that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class KafkaLog(EmbeddedLog):
    """The writer's, or a standby's, end of a topic. `close` it."""

    kind = "kafka"
    shared = True

    def __init__(
        self, store: Store, link: Link, topic_id: str, keys: LogKeys, *, now: Callable[[], float] = boottime
    ) -> None:
        super().__init__(store)
        self.link = link
        self.now = now
        self.on_counted: Callable[[], None] = lambda: None
        """Called in the tail's thread when `counted` has something for a standby."""
        self.on_fresh: Callable[[], None] = lambda: None
        """Called in the tail's thread when `fresh_at` moved on."""
        self.on_end: Callable[[str, bool], None] = lambda _why, _fenced: None
        """Called in the tail's thread when the writer ended: why, and whether it was fenced."""
        self.before_counted: Callable[[], None] = lambda: None
        """Called in the tail's thread before `take_counted` gives a standby what counted."""
        self.voids = 0
        self.suspects = 0
        self._origin = Origin(keys.log_id, link.topic, topic_id)
        known = mirror.origin(self._reader)
        if known is not None and known != self._origin:
            raise Ended(
                f"this directory mirrors the topic {known.topic} ({known.topic_id}) of log {known.log_id.hex()[:16]}, not "
                f"{link.topic} ({topic_id}) of log {keys.log_id.hex()[:16]}: the topic was made anew, or is another. "
                "Name the right topic, or start on an empty directory"
            )
        if known is None and next(iter(self.frames()), None) is not None:
            raise Ended("this directory holds an embedded log: move it with `memctl copy`, or start with --log embedded")
        if known is None:
            batch = Batch()
            mirror.put_origin(batch, self._origin)
            store.write(batch)
        counting = Counting(keys.log_id, keys.signer.public_key, keys.frame_mac, mirror.standing(self._reader))
        self._writer = Writer(counting, mirror.newest(self._reader))
        self._changed = threading.Condition(threading.RLock())
        self._queue: deque[Counted] = deque()
        self._staged: list[Counted] = []
        """What counted, and may not be taken before it is known to stand where it did; by a standby, not before the keys and
        pieces that it names are there."""
        self._position = 0 if self._writer.last is None else self._writer.last.offset + 1
        self._high = self._position
        self._consumer: Consumer = link.consumer()
        self._consumer.assign([TopicPartition(link.topic, 0, self._position)])
        self._second: Consumer | None = None
        self._producer: Producer = link.producer()
        self.payloads = PayloadTopic(link)
        self._tail: threading.Thread | None = None
        self._closing = False
        self._sign: Sign | None = None
        self._opened: Opened | None = None
        self._claims: dict[bytes, Opened] = {}
        self._begun = 0.0
        self._asked_at = 0.0
        self._missing = 0
        self._complaint = ""

    # -- reading the topic -------------------------------------------------------------------------------------------

    @property
    def standing(self) -> tuple[int, bytes]:
        """Offset and hash of the newest record that counted, kept or not."""
        at = self._writer.counting.at
        return at.seq, at.hash

    @property
    def lag(self) -> int:
        """Messages that are in the topic and were not read yet, about."""
        return max(0, self._high - self._position)

    def _pump(self, timeout: float) -> None:
        """Take in what the consumer has, waiting for the first message at most `timeout` seconds."""
        if self._writer.look is not None:
            self._look()
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
            with self._changed:
                self._take_in(message)
            if self._writer.look is not None:
                self._look()
        if self._staged:
            self.read_payloads()
            self.before_counted()
            with self._changed:
                self._unstage()
        if moved:
            self._tell()

    def _take_in(self, message: KafkaMessage) -> None:
        writer = self._writer
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
        return self._tail is not None and self._writer.phase == "reading"

    def _unstage(self) -> None:
        """With the lock held. What may stand on a tail that was lost must not reach the mirror: a later start would take it
        for granted."""
        if self._writer.look is None and self._writer.phase != "broken":
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
        with self._changed:
            self._changed.notify_all()
            ended = self._writer.phase in ENDED
        self.on_fresh()
        if self._queue:
            self.on_counted()
        if ended and self._tail is not None:
            self.on_end(self._writer.why, self._writer.phase == "fenced")

    def _consumer_error(self, error: KafkaError, message: KafkaMessage) -> None:
        code = error.code()
        if code == KafkaError._PARTITION_EOF:
            self._position = max(self._position, message.offset() or 0)
            self._high = self._position
        elif code in _LOST:
            self._break(
                f"the topic {self.link.topic} does not reach offset {self._position} any more: "
                "its tail was lost, or it was replaced"
            )
        elif code in _GONE:
            self._break(f"the topic {self.link.topic} is gone: it was deleted")
        else:
            self._complain(f"reading topic {self.link.topic}: {error.str()}")

    def _break(self, why: str) -> None:
        with self._changed:
            self._writer.truncated(why)
        self._tell()

    def _complain(self, what: str) -> None:
        if what != self._complaint:
            self._complaint = what
            log_.warning("%s", what)

    def _look(self) -> None:
        """Read the newest accepted message again, where it was."""
        at = self._writer.look
        assert at is not None
        found = self._fetch(at)
        if self._closing:
            return
        with self._changed:
            self._writer.looked(found)
            if not self._following:
                self._unstage()
        self._tell()

    def _fetch(self, at: Address) -> Message | None:
        """The message at an address; None when there is none and none will come. Waits while it is not visible."""
        consumer = self._second = self._second or self.link.consumer(wait_ms=LOOK_WAIT_MS)
        where = TopicPartition(self.link.topic, 0, at.offset)
        until = self.now() + (LOOK_SECONDS if self._tail is None else PATIENT_LOOK_SECONDS)
        assigned = False
        while not self._closing:
            try:
                low, high = consumer.get_watermark_offsets(where, timeout=5, cached=False)
            except KafkaException as error:
                if error.args[0].code() in _GONE:
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
            if error_found.code() in _LOST or error_found.code() in _GONE:
                return None
        return None

    def catch_up(self) -> None:
        """Read the topic to its end into the mirror, and the payloads. Raises `Ended` or `OutOfReach`. With a tail of its own
        the log is there already."""
        if self._tail is None:
            self._read_to_end()
        self.read_payloads()

    def _read_to_end(self) -> None:
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
        while self._position < end or self._writer.look is not None:
            self._pump(POLL_SECONDS)
            self._raise_if_ended()
            self._keep_counted()
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

        def sink(key: bytes, value: bytes | None, offset: int) -> None:
            nonlocal batch, held
            batch.put(PAYLOAD, key, value)
            held += len(value or b"")
            if held > limits.FRAME_LOG_BYTES_MAX * 8:
                mirror.put_position(batch, offset + 1)
                self._store.write(batch)
                batch, held = Batch(), 0

        position = self.payloads.read_on(mirror.position(self._reader), sink)
        mirror.put_position(batch, position)
        self._store.write(batch)

    def _keep_counted(self) -> None:
        """Write what counted to the mirror, and nothing else: the view follows from it."""
        batch = Batch()
        for item in self._counted():
            mirror.put(batch, item)
        if batch.puts:
            self._store.write(batch)

    def _counted(self, most: int | None = None) -> list[Counted]:
        """What counted and was not taken yet, in order; whoever takes it keeps it."""
        with self._changed:
            found = [self._queue.popleft() for _ in range(min(len(self._queue), most or len(self._queue)))]
            self._changed.notify_all()
        return found

    def take_counted(self, batch: Batch, most: int) -> list[bytes]:
        frames: list[bytes] = []
        for item in self._counted(most):
            mirror.put(batch, item)
            if isinstance(item.message, Frame):
                frames.append(item.data)
        return frames

    def follow(self) -> None:
        """Begin to read in a thread of our own."""
        assert self._tail is None
        self._tail = threading.Thread(target=self._follow_in_thread, name="tail", daemon=True)
        self._tail.start()

    def _follow_in_thread(self) -> None:
        try:
            while not self._closing:
                self._pump(POLL_SECONDS)
                if self._writer.frame is None:
                    # Reports about a frame are for the thread that waits for them.
                    self._producer.poll(0)
                with self._changed:
                    if len(self._queue) > QUEUE_MAX:
                        self._changed.wait(POLL_SECONDS)
        except Exception as error:
            # Whatever it was: without the tail nothing may be acknowledged.
            log_.exception("reading the topic %s failed", self.link.topic)
            self._break(f"reading the topic {self.link.topic} failed: {error}")

    def _raise_if_ended(self) -> None:
        if self._writer.phase in ENDED:
            raise Ended(self._writer.why, fenced=self._writer.phase == "fenced")

    # -- claiming ----------------------------------------------------------------------------------------------------

    def open_epoch(self, above: int, sign: Sign) -> Opened:
        """Claim the topic in an epoch above `above`. Another starting kernel may come first: then again. Raises `Ended` or
        `OutOfReach`. Without a tail of its own, what counted before the claim is in the mirror afterwards."""
        self._sign = sign
        for _try in range(CLAIM_TRIES):
            if self._tail is None:
                self._read_to_end()
            self._claim(above)
            if not self._wait(lambda: self._writer.sure or self._writer.phase not in ("claiming", "open"), START_SECONDS):
                raise OutOfReach(
                    f"Kafka at {self.link.brokers} did not take our claim in {START_SECONDS:.0f} s; look at the broker"
                )
            self._raise_if_ended()
            if self._writer.phase == "open":
                if self._tail is None:
                    self._keep_counted()
                return self._won()
            if self._writer.phase == "doubt":
                log_.warning("the claim was not delivered: %s", self._writer.why)
                self._new_producer()
        raise OutOfReach(
            f"the topic {self.link.topic} could not be claimed in {CLAIM_TRIES} tries ({self._writer.why}); "
            "stop the other kernels that start on it"
        )

    def _claim(self, above: int) -> None:
        assert self._sign is not None
        with self._changed:
            at = self._writer.counting.at
            epoch, claim_id = 1 + max(above, at.epoch), os.urandom(crypto.ID_BYTES)
            data = self._sign(epoch, claim_id, at.hash, at.seq)
            self._claims[claim_id] = Opened(epoch, claim_id, data)
            self._produce(self._writer.claim(claim_id, data, self.now()))

    def _won(self) -> Opened:
        """The epoch that is ours now."""
        assert self._writer.claim_id is not None
        self._opened = self._claims.get(self._writer.claim_id, self._opened)
        assert self._opened is not None
        self._claims.clear()
        return self._opened

    def _new_producer(self) -> None:
        """Reports of the old one say nothing any more; what it still sends is void once the next claim counts."""
        old, self._producer = self._producer, self.link.producer()
        old.purge(blocking=False)
        old.poll(0)

    def _produce(self, sent: Sent) -> None:
        """Hand a message to the producer. With the lock held: messages leave in the order of their numbers."""

        def report(error: KafkaError | None, message: KafkaMessage) -> None:
            offset = message.offset()
            why = None if error is None else f"{error.name()}: {error.str()}"
            with self._changed:
                self._writer.delivered(sent.n, why, -1 if offset is None or offset < 0 else offset)
                self._changed.notify_all()

        try:
            self._producer.produce(self.link.topic, sent.data, partition=0, on_delivery=report)
        except (KafkaException, BufferError) as error:
            self._writer.failed(str(error))

    def _wait(self, done: Callable[[], bool], seconds: float) -> bool:
        """Wait until `done`, reading the topic meanwhile if nobody else does; False when time ran out."""
        until = self.now() + seconds
        while True:
            self._producer.poll(0)
            with self._changed:
                if done() or self._writer.phase in ENDED:
                    return True
                if self.now() > until or self._closing:
                    return False
                if self._tail is not None:
                    self._changed.wait(CALM_SECONDS)
                    continue
            self._pump(CALM_SECONDS)

    # -- appending ---------------------------------------------------------------------------------------------------

    def begin(self, append: Append) -> None:
        self._begun = self.now()
        with self._changed:
            if self._writer.phase == "open" and self._writer.claim_id == append.claim_id and not _pieces(append.batch):
                self._send(append)

    def _send(self, append: Append) -> None:
        self._produce(self._writer.send(append.frame, append.last_hash, self.now()))

    def finish(self, append: Append) -> None:
        """Return when the frame is acknowledged, and mirror and view hold it. Raises `Ended` or `Renewed`."""
        pieces = _pieces(append.batch)
        if pieces:
            self.payloads.put(pieces)
            self.payloads.wait()
        writer = self._writer
        while True:
            with self._changed:
                if writer.acknowledged:
                    break
                if writer.phase in ENDED:
                    raise Ended(writer.why, fenced=writer.phase == "fenced")
                if writer.lost:
                    writer.take()
                    raise Renewed(self._won(), False, "the broker did not take the frame")
                if writer.phase == "open" and writer.frame is None:
                    if writer.claim_id != append.claim_id:
                        raise Renewed(self._won(), False, "the epoch had to be opened anew")
                    self._send(append)
                doubt = writer.phase in ("doubt", "claiming")
                waiting = writer.frame_at is None
            if doubt:
                self._renew()
            elif not self._producer.poll(CALM_SECONDS) or waiting:
                if self.now() - self._begun > FRESH_SECONDS:
                    # Should the topic have lost its tail just before our frame, something later shows it.
                    self.ask()
                with self._changed:
                    if not (writer.acknowledged or writer.lost or writer.phase in (*ENDED, "doubt")):
                        self._changed.wait(CALM_SECONDS)
            if self._closing:
                raise Ended("the kernel is stopping")
            if self.now() > self._asked_at + ASK_SECONDS and self.now() > self._begun + ASK_SECONDS:
                self._look_for_topic()
        self._keep_own(append)
        self._begun = 0.0
        if writer.claim_id != append.claim_id:
            raise Renewed(self._won(), True, "the broker's answer was lost")

    def _look_for_topic(self) -> None:
        """A broker that is away comes back; a topic that was deleted does not. librdkafka waits for either."""
        found = id_now(self.link)
        self._asked_at = self.now()
        self._missing = self._missing + 1 if found == "" else 0
        if found and self._origin.topic_id and found != self._origin.topic_id:
            self._break(f"the topic {self.link.topic} is another one now: it was deleted and made anew")
        elif self._missing >= MISSING_TIMES:
            self._break(f"the topic {self.link.topic} is gone: it was deleted")

    def _keep_own(self, append: Append) -> None:
        """Mirror and view, in one batch."""
        with self._changed:
            self._writer.take()
            items = self._counted()
        batch = append.batch
        for item in items:
            mirror.put(batch, item)
        self._store.write(batch)

    def _renew(self) -> None:
        """Claim again, because the fate of something that we sent is open."""
        log_.warning("a message of ours was not delivered (%s): the epoch is opened anew", self._writer.why)
        self._look_for_topic()
        if self._writer.phase in ENDED:
            return
        self._new_producer()
        self._claim(0)
        self._wait(lambda: self._writer.sure or self._writer.phase not in ("claiming", "open"), START_SECONDS)
        if self._writer.phase == "doubt":
            time.sleep(AWAY_SECONDS)

    def put_piece(self, key: bytes, piece: bytes) -> None:
        self.payloads.put([(key, piece)])
        super().put_piece(key, piece)

    def sync_pieces(self) -> None:
        self.payloads.wait()

    def compare(self) -> list[tuple[int, str]]:
        """Read the topic again from its beginning, and compare it with the mirror up to what was kept when this began: offset
        and what is wrong there. In a thread; raises `OutOfReach` or `Ended`."""
        own = self._writer.counting
        counting = Counting(own.log_id, own.public_key, own.frame_mac)
        kept = self.frames()
        found: list[tuple[int, str]] = []
        end = mirror.standing(self._reader).seq
        reader = Reader(self.link, self.link.topic, batch=BATCH_MESSAGES)
        try:
            for message in reader.to_end():
                taken = message_of(message)
                verdict = counting.take(taken.data)
                if verdict.kind == "torn":
                    found.append((counting.at.seq + 1, f"the message at the topic's offset {taken.offset} {verdict.why}"))
                elif verdict.kind == "frame" and counting.at.seq <= end and next(kept, None) != taken.data:
                    found.append((counting.at.seq, f"the topic's message {taken.offset} is not the one in the mirror"))
                    break
                if found or counting.at.seq >= end:
                    break
        except NoTopic as error:
            found.append((0, str(error)))
        finally:
            reader.close()
        if not found and counting.at.seq < end:
            found.append((counting.at.seq + 1, f"the topic ends at offset {counting.at.seq}, the mirror at {end}"))
        return found

    # -- who is the writer -------------------------------------------------------------------------------------------

    def fresh(self, within: float = FRESH_SECONDS) -> bool:
        """Whether we know that nobody had replaced us `within` seconds ago."""
        return self._writer.sure and self.now() - self._writer.fresh_at <= within

    def ask(self) -> None:
        """Find out whether we still are the writer; `on_fresh` tells."""
        with self._changed:
            ping = self._writer.ping(self.now())
            if ping is not None:
                self._produce(ping)

    @property
    def doubtful(self) -> bool:
        return self._writer.phase == "doubt"

    def settle(self) -> None:
        while self._writer.phase in ("doubt", "claiming") and not self._closing:
            self._renew()
        self._raise_if_ended()
        if self._writer.phase == "open":
            raise Renewed(self._won(), False, "the epoch had to be opened anew")

    @property
    def away(self) -> bool:
        """Whether a frame has been under way for so long that Kafka must be out of reach."""
        return self._begun > 0 and self.now() - self._begun > AWAY_SECONDS

    def describe(self) -> dict[str, object]:
        last = self._writer.last
        return {
            "kind": self.kind, "topic": self.link.topic, "brokers": self.link.brokers, "topic_id": self._origin.topic_id,
            "topic_offset": -1 if last is None else last.offset, "lag": self.lag, "phase": self._writer.phase,
            "void_messages": self.voids, "suspect_messages": self.suspects,
        }  # fmt: skip

    def close(self) -> None:
        self._closing = True
        with self._changed:
            self._changed.notify_all()
        if self._tail is not None and self._tail is not threading.current_thread():
            self._tail.join()
        for consumer in (self._consumer, self._second):
            if consumer is not None:
                consumer.close()
        self.payloads.close()
        self._producer.purge()
        self._producer.flush(1)


def owner_of(link: Link) -> bytes | None:
    """The log that a records topic belongs to: that of its first claim. None for a topic that nobody claimed."""
    reader = Reader(link, link.topic, batch=BATCH_MESSAGES)
    try:
        for message in reader.to_end():
            data = message.value() or b""
            try:
                found = decode(data)
            except Damaged:
                continue
            if isinstance(found, Claim) and claim_signature_ok(found.public_key, data):
                return found.log_id
        return None
    finally:
        reader.close()


def message_of(message: KafkaMessage) -> Message:
    offset, epoch = message.offset(), message.leader_epoch()
    assert offset is not None, "a message that was read has an offset"
    return Message(offset, -1 if epoch is None else epoch, message.value() or b"")


def _pieces(batch: Batch) -> list[tuple[bytes, bytes]]:
    """Ciphertexts that are too large to stand in their record."""
    return [
        (key, value) for family, key, value in batch.puts
        if family == PAYLOAD and value is not None and len(value) > limits.PAYLOAD_INLINE_BYTES_MAX
    ]  # fmt: skip
