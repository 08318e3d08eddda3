"""One partition of a topic that goes beside the log's own: append and be sure, read to the end and know that it is.

- `Appender`: what was sent is tried until the broker has it, for ever; `wait` returns then, and not before. At most so many
  bytes are under way, so that large things flow with little memory. Any thread may send and wait. What a broker refuses is
  sent again in a while: a right that was taken away may come back. A topic that is gone, and `close`, end every waiter with
  `Ended`. So messages may come twice, and out of order: keys make that harmless here.
- `Reader`: hands out messages in order, those of foreign open transactions included. One thread at a time. A broker that
  does not answer is `OutOfReach`; a topic that is not there `NoTopic`; one that lost what was read `Ended`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from memos_syscalls import limits

from .base import Ended, OutOfReach
from .link import Link, log_

UNCONFIRMED_BYTES_MAX: Final = 16 * limits.MIB
AT_ONCE: Final = 1024
PER_MESSAGE_BYTES: Final = 128
"""What a message costs beside its key and value, about."""
POLL_SECONDS: Final = 0.1
RETRY_SECONDS: Final = 0.05
AGAIN_SECONDS: Final = 0.5
"""How long what a broker refused waits until it is sent again."""
SLICE_SECONDS: Final = 0.01
"""How long a batch waits to become full. librdkafka waits for that even when the first messages are there."""
SILENCE_SECONDS: Final = 30.0
"""A broker that has not answered, or sent what it has, for this long is out of reach."""
BEHIND_SECONDS: Final = 10.0
"""How long a broker that just became leader may know less of the end than was read before."""
FETCH_WAIT_MS: Final = "5"
BEGINNING: Final = 0
MS: Final = 1_000_000
"""Kafka's times are milliseconds; ours are nanoseconds."""

_NOT_THERE: Final = frozenset({
    KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION, KafkaError.UNKNOWN_TOPIC_ID,
})  # fmt: skip
_LOST: Final = frozenset({KafkaError._AUTO_OFFSET_RESET, KafkaError._LOG_TRUNCATION, KafkaError.OFFSET_OUT_OF_RANGE})
_FORBIDDEN: Final = frozenset({
    KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError._AUTHENTICATION,
})  # fmt: skip


class NoTopic(OutOfReach):
    """The topic is not there; the message says which."""


class Receipt:
    """What became of some messages: how many are not confirmed, and the newest time that the topic gave to one."""

    __slots__ = ("at_ns", "left")

    def __init__(self) -> None:
        self.left = 0
        self.at_ns = 0


class Appender:
    """Appends to one partition. `close` it."""

    def __init__(self, link: Link, topic: str, *, unconfirmed_bytes_max: int = UNCONFIRMED_BYTES_MAX) -> None:
        self.topic = topic
        self._link = link
        self._producer = link.producer()
        self._again: list[tuple[bytes, bytes | None, Callable[[KafkaError | None, Message], None]]] = []
        """What a broker refused, to be sent again."""
        self._broken = False
        self.end = 0
        """The offset after the newest message that is confirmed; 0 when none is."""
        self._closing = False
        self._told = ""
        self._max = unconfirmed_bytes_max
        self._changed = threading.Condition()
        self._under_way = 0
        self._open: set[Receipt] = set()
        self._why = ""
        self._thread = threading.Thread(target=self._poll, name=f"append {topic}", daemon=True)
        self._thread.start()

    def send(self, key: bytes, value: bytes | None, receipt: Receipt) -> None:
        """Hand a message over; waits while too much is under way. Raises `Ended`."""
        self._send([(key, value)], receipt)

    def send_all(self, messages: Sequence[tuple[bytes, bytes | None]], receipt: Receipt) -> None:
        """Hand small messages over, many at a time: several times faster than one by one. Raises `Ended`."""
        for at in range(0, len(messages), AT_ONCE):
            self._send(messages[at : at + AT_ONCE], receipt)

    def _send(self, messages: Sequence[tuple[bytes, bytes | None]], receipt: Receipt) -> None:
        size = sum(len(key) + len(value or b"") + PER_MESSAGE_BYTES for key, value in messages)
        count = left = len(messages)
        with self._changed:
            while not self._why and self._under_way and self._under_way + size > self._max:
                self._changed.wait()
            self._raise_if_ended()
            self._under_way += size
            receipt.left += left
            self._open.add(receipt)

        def delivered(error: KafkaError | None, message: Message) -> None:
            # One thread runs these: ours, and after it the one that closes.
            # It names itself, so only the collector frees it: it must not hold the messages.
            nonlocal left
            if error is not None:
                self._refused(error)
                if not self._why:
                    self._again.append((message.key() or b"", message.value(), delivered))
                return
            left -= 1
            if left:
                return
            with self._changed:
                self._under_way -= size
                receipt.left -= count
                receipt.at_ns = max(receipt.at_ns, message.timestamp()[1] * MS)
                self.end = max(self.end, (message.offset() or -1) + 1)
                if receipt.left == 0:
                    self._open.discard(receipt)
                if receipt.left == 0 or self._under_way <= self._max // 2:
                    self._changed.notify_all()

        waiting: list[dict[str, Any]] = [{"key": key, "value": value} for key, value in messages]
        while waiting:
            self._producer.produce_batch(self.topic, waiting, partition=0, on_delivery=delivered)
            waiting = [message for message in waiting if "_error" in message]
            for message in waiting:
                error: KafkaError = message.pop("_error")
                if error.code() != KafkaError._QUEUE_FULL:
                    self._refused(error)
            with self._changed:
                self._raise_if_ended()
                if waiting:
                    # The client's own queue is full; the thread empties it.
                    self._changed.wait(RETRY_SECONDS)

    def wait(self, receipt: Receipt | None = None, seconds: float | None = None) -> bool:
        """Return when these messages, or all that were sent before, are confirmed; false if `seconds` went by first.
        Raises `Ended`."""
        until = None if seconds is None else time.monotonic() + seconds
        with self._changed:
            waited_for = list(self._open) if receipt is None else [receipt]
            while any(one.left for one in waited_for):
                self._raise_if_ended()
                self._changed.wait(None if until is None else until - time.monotonic())
                if until is not None and time.monotonic() > until:
                    return False
            return True

    @property
    def is_full(self) -> bool:
        """Whether `send` might wait."""
        return self._under_way > self._max // 2

    def _poll(self) -> None:
        """The thread that runs delivery reports, and sends again what was refused."""
        again_at = 0.0
        while not self._why:
            self._producer.poll(POLL_SECONDS)
            if not self._again:
                again_at = time.monotonic() + AGAIN_SECONDS
            elif time.monotonic() > again_at:
                again, self._again = self._again, []
                if self._broken:
                    # A producer that gave up once takes nothing any more; what it has not told of yet, it tells now.
                    self._producer.purge()
                    while len(self._producer):
                        self._producer.poll(POLL_SECONDS)
                    again += self._again
                    self._again = []
                    self._producer, self._broken = self._link.producer(), False
                for key, value, delivered in again:
                    try:
                        self._producer.produce(self.topic, value, key, partition=0, on_delivery=delivered)
                    except (BufferError, KafkaException) as error:
                        self._again.append((key, value, delivered))
                        log_.debug("topic %s: %s", self.topic, error)

    def _refused(self, error: KafkaError) -> None:
        what = f"topic {self.topic} does not take a message: {error.str()}"
        if error.code() in _NOT_THERE or self._closing:
            self._end(f"{what}. Look at the broker, then start again")
            return
        self._broken = self._broken or error.fatal() or error.code() == KafkaError._FATAL
        if what != self._told:
            self._told = what
            log_.warning("%s; it is sent again until it does", what)

    def _end(self, why: str) -> None:
        with self._changed:
            self._why = self._why or why
            self._changed.notify_all()

    def _raise_if_ended(self) -> None:
        if self._why:
            raise Ended(self._why)

    def close(self) -> None:
        """Give up what is not confirmed, and end who waits for it."""
        self._closing = True
        self._end(f"appending to topic {self.topic} was ended")
        self._thread.join()
        self._producer.purge()
        self._producer.flush(1)


class Reader:
    """Reads one partition from an offset on. `close` it."""

    def __init__(self, link: Link, topic: str, from_offset: int = BEGINNING, *, batch: int) -> None:
        self.topic = topic
        self._brokers = link.brokers
        self._at = TopicPartition(topic, 0)
        self._batch = batch
        # Between reads nothing is fetched, and a fetch that waits would hold back the question where the end is.
        self._consumer = link._replace(options={"fetch.wait.max.ms": FETCH_WAIT_MS, **link.options}).consumer()
        self._busy = threading.Lock()
        self._closing = False
        self.seek(from_offset)

    def seek(self, offset: int) -> None:
        """Go on from an offset; from the beginning means from the first message that is still there."""
        self.next = offset
        self._from_beginning = offset == BEGINNING

    def to_end(self) -> Iterator[Message]:
        """Messages up to the end that the topic has now. Raises `OutOfReach`, `NoTopic` or `Ended`.

        Who breaks off gets the message that it broke off at again.
        """
        with self._busy:
            end = self._end()
            if self.next >= end:
                return
            self._consumer.assign([TopicPartition(self.topic, 0, self.next)])
            try:
                yield from self._up_to(end)
            finally:
                self._consumer.unassign()

    def _up_to(self, end: int) -> Iterator[Message]:
        heard = time.monotonic()
        while self.next < end:
            for message in self._consumer.consume(self._batch, SLICE_SECONDS):
                heard = time.monotonic()
                error = message.error()
                if error is None:
                    yield message
                    self.next = (message.offset() or 0) + 1
                elif error.code() == KafkaError._PARTITION_EOF:
                    # Behind the last message may be places that hold none: a transaction's marker, what was compacted.
                    self.next = max(self.next, message.offset() or 0)
                else:
                    self._refuse(error)
            self._raise_if_closing()
            if time.monotonic() - heard > SILENCE_SECONDS:
                raise OutOfReach(
                    f"Kafka at {self._brokers} sends nothing of topic {self.topic} from offset {self.next} on; "
                    "look at the broker's log"
                )

    def _end(self) -> int:
        """Where the topic ends. A broker that just became the leader may first name an end before what was read already."""
        began = time.monotonic()
        while True:
            self._raise_if_closing()
            waited = time.monotonic() - began
            try:
                low, high = self._consumer.get_watermark_offsets(self._at, timeout=SILENCE_SECONDS / 6)
            except KafkaException as caught:
                error: KafkaError = caught.args[0]
                self._refuse(error)
                if waited > SILENCE_SECONDS:
                    raise OutOfReach(
                        f"Kafka at {self._brokers} does not answer: {error.str()}; check the address, or start the broker"
                    ) from None
            else:
                if self._from_beginning:
                    self._from_beginning = False
                    self.next = low
                if low <= self.next <= high:
                    return high
                if low > self.next or waited > BEHIND_SECONDS:
                    raise Ended(
                        f"the topic {self.topic} holds offsets {low} to {high}, but was read up to {self.next} before: "
                        "it lost messages, or was made anew. Restore it from a backup"
                    )
            time.sleep(RETRY_SECONDS)

    def _refuse(self, error: KafkaError) -> None:
        """Raise for what will not get better by itself."""
        if error.code() in _NOT_THERE:
            raise NoTopic(f"Kafka at {self._brokers} has no topic {self.topic}")
        if error.code() in _LOST:
            raise Ended(f"the topic {self.topic} lost what was at offset {self.next}: {error.str()}. Restore it from a backup")
        if error.code() in _FORBIDDEN:
            raise OutOfReach(f"Kafka does not let us read topic {self.topic}: {error.str()}; ask who runs it for the right")
        log_.warning("reading topic %s: %s", self.topic, error.str())

    def _raise_if_closing(self) -> None:
        if self._closing:
            raise Ended(f"reading topic {self.topic} was ended")

    def close(self) -> None:
        """End a read that another thread is in, and the client."""
        self._closing = True
        with self._busy:
            self._consumer.close()
