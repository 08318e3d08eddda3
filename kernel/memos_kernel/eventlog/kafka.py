"""The event log on Apache Kafka: one topic partition, one writer, and a mirror of what counted in the store.

Kafka is the log; the mirror (mirror.py) is what is read. Which messages count is counting.py's, who may acknowledge is
writer.py's, tail.py reads; here is what is sent.

- `catch_up` reads the topic to its end into the mirror; `open_epoch` claims it; then `begin` and `finish` append.
- A frame's fate may turn out to be settled by a new claim of ours: `finish` says so with `Renewed`, and the caller goes on
  under the new epoch.
- `Ended` means that this process must not write any more: another kernel took over, or the topic is not what it was.
- A broker out of reach is not an error: `finish` waits, `away` says so.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka import Message as KafkaMessage

from memos_drivers.stores.base import PAYLOAD, Batch, Store
from memos_syscalls import limits

from .. import crypto
from ..chain import LogKeys
from ..events import Frame
from . import mirror, topics
from .base import Append, Ended, Opened, OutOfReach, Renewed, Sign
from .counting import Counting
from .embedded import StoredFrames, StoredPieces
from .link import Link
from .mirror import Origin
from .partition import NoTopic, Reader
from .payloadtopic import PayloadTopic
from .tail import BATCH_MESSAGES, CALM_SECONDS, START_SECONDS, Tail, message_of
from .writer import ENDED, Sent

log_ = logging.getLogger("memos.kafka")

CLAIM_TRIES: Final = 20
FRESH_SECONDS: Final = 1.0
"""How old the proof may be that nobody has replaced us, when a read is answered."""
AWAY_SECONDS: Final = 0.5
ASK_SECONDS: Final = 2.0
"""How long an append may take before a broker is asked whether the topic is still there, and between two such questions."""
LOOKS: Final = 3
UNSEEN_SECONDS: Final = 10.0
"""How long what the broker confirmed may take to arrive."""


def boottime() -> float:
    """Seconds of a clock that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class KafkaLog(StoredPieces, StoredFrames):
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
        """Called by the tail when `take_counted` has something for a standby."""
        self.on_fresh: Callable[[], None] = lambda: None
        """Called by the tail when the writer may be fresher."""
        self.on_end: Callable[[str, bool], None] = lambda _why, _fenced: None
        """Called by the tail when the writer ended: why, and whether it was fenced."""
        self.before_counted: Callable[[], None] = lambda: None
        """Called by the tail before `take_counted` gives a standby what counted."""
        self._origin = Origin(keys.log_id, link.topic, topic_id)
        self._check_origin()
        self.payloads = PayloadTopic(link)
        self.tail = Tail(self, store, link, keys, self.payloads, now)
        self._writer = self.tail.writer
        self._changed = self.tail.changed
        self._producer: Producer = link.producer()
        self._admin: Any = None
        """One for all questions: futures keep their client, and its threads, until the collector comes by."""
        self._sign: Sign | None = None
        self._opened: Opened | None = None
        self._claims: dict[bytes, Opened] = {}
        self._noted_end = 0
        self._begun = 0.0
        self._asked_at = 0.0
        self._missing = 0
        self._short = 0

    def _check_origin(self) -> None:
        """Refuse a directory that holds something else; a new one is marked."""
        own, known = self._origin, mirror.origin(self._reader)
        if known is not None and known != own:
            raise Ended(
                f"this directory mirrors the topic {known.topic} ({known.topic_id}) of log {known.log_id.hex()[:16]}, not "
                f"{own.topic} ({own.topic_id}) of log {own.log_id.hex()[:16]}: the topic was made anew, or is another. "
                "Name the right topic, or start on an empty directory"
            )
        if known is None and next(iter(self.frames()), None) is not None:
            raise Ended("this directory holds an embedded log: move it with `memctl copy`, or start with --log embedded")
        if known is None:
            batch = Batch()
            mirror.put_origin(batch, own)
            self._store.write(batch)

    # -- reading -----------------------------------------------------------------------------------------------------

    def catch_up(self) -> None:
        """Read the topic to its end into the mirror, and the payloads. Raises `Ended` or `OutOfReach`. With a tail of its own
        the log is there already."""
        if not self.tail.runs:
            self.tail.read_to_end()
        self.tail.read_payloads()

    def take_counted(self, batch: Batch, most: int) -> list[bytes]:
        frames: list[bytes] = []
        for item in self.tail.counted(most):
            mirror.put(batch, item)
            if isinstance(item.message, Frame):
                frames.append(item.data)
        return frames

    def check(self) -> None:
        self.tail.raise_if_ended()

    @property
    def claimed(self) -> bool:
        return self._writer.claim_id is not None and self._writer.phase not in ENDED

    def follow(self) -> None:
        self.tail.follow()

    def between_reads(self) -> None:
        if self._writer.frame is None:
            # Reports about a frame are for the thread that waits for them.
            self._producer.poll(0)

    def drop_pieces(self, keys: list[bytes]) -> None:
        self.payloads.tombstone(keys)
        super().drop_pieces(keys)

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

    # -- claiming ----------------------------------------------------------------------------------------------------

    def open_epoch(self, above: int, sign: Sign) -> Opened:
        """Claim the topic in an epoch above `above`. Another starting kernel may come first: then again. Raises `Ended` or
        `OutOfReach`. Without a tail of its own, what counted before the claim is in the mirror afterwards."""
        self._sign = sign
        for _try in range(CLAIM_TRIES):
            if not self.tail.runs:
                self.tail.read_to_end()
            if self._writer.phase != "open":
                # Else a claim that an earlier try gave up waiting for counts by now.
                self._claim(above)
            if not self._wait(lambda: self._writer.sure or self._writer.phase not in ("claiming", "open"), START_SECONDS):
                self._new_producer()
                raise OutOfReach(
                    f"Kafka at {self.link.brokers} did not take our claim in {START_SECONDS:.0f} s; look at the broker"
                )
            self.tail.raise_if_ended()
            if self._writer.phase == "open":
                if not self.tail.runs:
                    self.tail.keep_counted()
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
                if self.now() > until or self.tail.closing:
                    return False
                if self.tail.runs:
                    self._changed.wait(CALM_SECONDS)
                    continue
            self.tail.pump(CALM_SECONDS)

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
            elif not self._polled() or waiting:
                if self.now() - self._begun > FRESH_SECONDS:
                    # Should the topic have lost its tail just before our frame, something later shows it.
                    self.ask()
                with self._changed:
                    if not (writer.acknowledged or writer.lost or writer.phase in (*ENDED, "doubt")):
                        self._changed.wait(CALM_SECONDS)
            if self.tail.closing:
                raise Ended("the kernel is stopping")
            if self.now() > self._asked_at + ASK_SECONDS and self.now() > self._begun + ASK_SECONDS:
                self._look_for_topic()
        self._keep_own(append)
        self._begun = 0.0
        if writer.claim_id != append.claim_id:
            raise Renewed(self._won(), True, "the broker's answer was lost")

    def _polled(self) -> int:
        """Serve delivery reports for a moment. A producer that can go on no more says so by raising."""
        try:
            return self._producer.poll(CALM_SECONDS)
        except KafkaException as error:
            with self._changed:
                self._writer.failed(str(error.args[0]))
            return 0

    def _look_for_topic(self) -> None:
        """A broker that is away comes back; a topic that was deleted or cut back does not. librdkafka waits for either."""
        self._admin = self._admin or self.link.admin()
        found = topics.now(self._admin, self.link)
        self._asked_at = self.now()
        if found is None:
            return
        topic, known, read = self.link.topic, self._origin.topic_id, self.tail.position
        self._missing = self._missing + 1 if not found.topic_id else 0
        self._short = self._short + 1 if 0 <= found.end < read else 0
        if found.topic_id and known and found.topic_id != known:
            self.tail.end(f"the topic {topic} is another one now: it was deleted and made anew")
        elif self._missing >= LOOKS:
            self.tail.end(f"the topic {topic} is gone: it was deleted")
        elif self._short >= LOOKS:
            self.tail.end(f"the topic {topic} ends at {found.end}, before what was read: it lost its tail, or was replaced")

    def _keep_own(self, append: Append) -> None:
        """Mirror and view, in one batch."""
        with self._changed:
            self._writer.take()
            items = self.tail.counted()
        batch = append.batch
        for item in items:
            mirror.put(batch, item)
        if self.payloads.end > self._noted_end:
            # What others put there while we write, no record of ours names.
            self._noted_end = self.payloads.end
            mirror.put_position(batch, self._noted_end)
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
    # -- who is the writer -------------------------------------------------------------------------------------------

    def fresh(self, within: float = FRESH_SECONDS) -> bool:
        """Whether we know that nobody had replaced us `within` seconds ago."""
        return self._writer.sure and self.now() - self._writer.fresh_at <= within

    def ask(self) -> None:
        """Find out whether we still are the writer; `on_fresh` tells."""
        with self._changed:
            self._writer.give_up_unseen(self.now() - UNSEEN_SECONDS)
            ping = self._writer.ping(self.now())
            if ping is not None:
                self._produce(ping)

    @property
    def doubtful(self) -> bool:
        return self._writer.phase == "doubt"

    def settle(self) -> None:
        while self._writer.phase in ("doubt", "claiming") and not self.tail.closing:
            self._renew()
        self.tail.raise_if_ended()
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
            "topic_offset": -1 if last is None else last.offset, "lag": self.tail.lag, "phase": self._writer.phase,
            "void_messages": self.tail.voids, "suspect_messages": self.tail.suspects,
        }  # fmt: skip

    def close(self) -> None:
        self.tail.closing = True
        self.payloads.close()
        self.tail.close()
        self._producer.purge()
        self._producer.flush(1)


def _pieces(batch: Batch) -> list[tuple[bytes, bytes]]:
    """Ciphertexts that are too large to stand in their record."""
    return [
        (key, value) for family, key, value in batch.puts
        if family == PAYLOAD and value is not None and len(value) > limits.PAYLOAD_INLINE_BYTES_MAX
    ]  # fmt: skip
