"""A kernel of the simulation: the real `Writer` and `Counting`, with the log's input and output as events of the world.

It does what eventlog/kafka.py does around them: reads in order, looks before it feeds more, keeps what counts in a mirror,
claims, sends one frame at a time with all requests that wait, pings, and answers callers.

- Nothing reaches the mirror, the state or a caller while a look is pending, or after it failed.
- The door opens once the claim is confirmed, not when it is accepted: what is visible may not be committed.
- A mirror may lose its newest rows in a crash, never its middle.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from tests.sim.partition import Entry

from memos_kernel import crypto
from memos_kernel.eventlog.counting import Counting, Standing
from memos_kernel.eventlog.writer import ENDED, Address, Message, Sent, Writer
from memos_kernel.events import Frame, encode_claim, encode_frame, pack, unpack

if TYPE_CHECKING:
    from tests.sim.world import World

LOG_ID: Final = b"the log of these"
SIGNER: Final = crypto.Signer(b"seed" * 8)
MAC_KEY: Final = b"mac " * 8
FRESH_SECONDS: Final = 1.0
LOOK_SECONDS: Final = 10.0
CLAIM_SECONDS: Final = 6.0
MISSED_SECONDS: Final = 8.0
READ_SECONDS: Final = 3.0
FRAME_REQUESTS_MAX: Final = 8

Mode = Literal["claim", "standby"]
Answer = Literal["yes", "no", "unknown", "not here"]


def requests(frame: Frame) -> list[str]:
    """The request ids that a frame's records carry."""
    return [unpack(raw)[1] for raw in frame.records]


def copied(at: Standing) -> Standing:
    return Standing(at.epoch, at.claim_id, at.seq, at.hash, at.heads.copy(), at.claim_ids.copy())


@dataclass(slots=True)
class Done:
    """A request in the log: its record's offset and hash, and the message that holds it."""

    seq: int
    hash: bytes
    entry: Entry


@dataclass(slots=True)
class State:
    """What the log says, by the kernel that applies it."""

    done: dict[str, Done] = field(default_factory=dict[str, Done])
    hashes: list[bytes] = field(default_factory=list[bytes])

    def apply(self, frame: Frame, entry: Entry) -> None:
        hash_ = frame.prev_hash
        for raw in frame.records:
            hash_ = crypto.record_hash(hash_, raw)
            self.done[unpack(raw)[1]] = Done(len(self.hashes), hash_, entry)
            self.hashes.append(hash_)


@dataclass(slots=True)
class Mirror:
    """What a kernel's disk holds."""

    rows: list[tuple[Message, Entry, Standing]] = field(default_factory=list[tuple[Message, Entry, Standing]])

    def state(self) -> State:
        state = State()
        for message, entry, _standing in self.rows:
            raw = unpack(message.data)
            if type(raw[6]) is list:
                state.apply(Frame(*raw), entry)
        return state


class Producer:
    """An idempotent producer: tries again until the partition answers, or until it is given up."""

    def __init__(self, world: World, kernel: Kernel, pid: int) -> None:
        self.world = world
        self.kernel = kernel
        self.pid = pid
        self.closed = False
        self.failed = ""
        self._sent: list[Sent] = []
        self._reported: set[int] = set()
        self._landed: set[Entry] = set()

    def send(self, sent: Sent) -> None:
        n = len(self._sent)
        self._sent.append(sent)
        if self.failed:
            self.world.later(0.001, self._report, n, sent, self.failed, -1)
        else:
            self._try(n, sent, 0)

    def _try(self, n: int, sent: Sent, tries: int) -> None:
        """Put a request on the wire. It may arrive long after its producer has gone."""
        if self.closed or self.failed or n in self._reported:
            return
        self.world.later(self.world.request_delay(), self._land, n, sent)
        self.world.later(0.3 + 0.2 * min(tries, 5), self._try, n, sent, tries + 1)

    def _land(self, n: int, sent: Sent) -> None:
        world = self.world
        if world.drops_request():
            return
        if world.now < world.denied_until:
            self._fail("TOPIC_AUTHORIZATION_FAILED")
            return
        found = world.partition.append(sent.data, self.pid, n, settled=n - 1 in self._reported)
        if found == "gap":
            if world.gap_is_fatal(self.pid, n):
                self._fail("OUT_OF_ORDER_SEQUENCE_NUMBER")
            return
        if not isinstance(found, Entry):
            return
        offset = world.partition.log.index(found)
        world.note(f"{self.kernel} n={sent.n} stands at {offset}")
        if found in self._landed:
            # The broker need not remember where a repeated message stands.
            offset = world.random.choice((offset, -1))
        self._landed.add(found)
        if world.fails_though_landed():
            self._fail("_MSG_TIMED_OUT")
        elif not world.drops_reply():
            world.when_committed(found, lambda: world.later(world.wire_delay(), self._report, n, sent, None, offset))

    def _fail(self, error: str) -> None:
        """A fatal error ends an idempotent producer: everything that it has not reported fails."""
        if self.failed:
            return
        self.failed = error
        for n, sent in enumerate(self._sent):
            if n not in self._reported:
                self.world.later(self.world.wire_delay(), self._report, n, sent, error, -1)

    def _report(self, n: int, sent: Sent, error: str | None, offset: int) -> None:
        if self.closed or n in self._reported or (self.failed and error is None):
            return
        self._reported.add(n)
        self.world.deliver(self.kernel, self.kernel.on_report, sent.n, error, offset)


class Kernel:
    """One process. Every `on_` is an event; the world holds events back while the process is paused."""

    writer_type: type[Writer] = Writer
    counting_type: type[Counting] = Counting
    waits_for_confirmation = True
    waits_for_looks = True

    def __init__(self, world: World, name: str, mirror: Mirror, mode: Mode) -> None:
        self.world = world
        self.name = name
        self.mirror = mirror
        self.mode: Mode = mode
        self.alive = True
        self.paused = False
        self.held: deque[tuple[object, ...]] = deque()
        standing = copied(mirror.rows[-1][2]) if mirror.rows else None
        last = Address.of(mirror.rows[-1][0]) if mirror.rows else None
        counting = self.counting_type(LOG_ID, SIGNER.public_key, MAC_KEY, standing)
        self.writer = self.writer_type(counting, last)
        self.state = mirror.state()
        self.open = False
        self.epoch = 0
        self._position = 0 if last is None else last.offset + 1
        self._previous: Entry | None = mirror.rows[-1][1] if mirror.rows else None
        self._buffer: deque[tuple[Message, Entry]] = deque()
        self._queue: list[tuple[Message, Entry, Standing]] = []
        self._at_end = False
        self._looking = False
        self._producer = world.producer(self)
        self._claim_since = 0.0
        self._confirmed = 0
        self._claim_entry: Entry | None = None
        self._frame_entry: Entry | None = None
        self._frame_since = 0.0
        self._frame_requests: list[str] = []
        self._waiting: dict[str, list[int]] = {}
        self._reads: list[tuple[int, float]] = []
        self._fetching = False
        world.every(0.25, self)
        self.advance()

    def __str__(self) -> str:
        return self.name

    # -- events --------------------------------------------------------------------------------------------------------

    def on_fetched(self, found: list[tuple[int, Entry]], at_end: bool, error: str | None) -> None:
        self._fetching = False
        if error is not None:
            self.writer.truncated(error)
        for offset, entry in found:
            self._buffer.append((Message(offset, entry.leader_epoch, entry.data), entry))
            self._position, self._previous = offset + 1, entry
        self._at_end = at_end
        self.advance()

    def on_looked(self, found: Message | None) -> None:
        self._looking = False
        if self.writer.look is not None:
            self.writer.looked(found)
        self.advance()

    def on_report(self, n: int, error: str | None, offset: int) -> None:
        if error is None:
            self._confirmed = max(self._confirmed, n)
        self.writer.delivered(n, error, offset)
        self.advance()

    def on_write(self, call: int, request: str) -> None:
        if not self.open:
            self.world.answered(self, call, "not here", None)
            return
        self._waiting.setdefault(request, []).append(call)
        self.advance()

    def on_read(self, call: int) -> None:
        if not self.open:
            self.world.read_answered(self, call, None)
            return
        self._reads.append((call, self.world.now))
        self.advance()

    def on_promote(self) -> None:
        self.mode = "claim"
        self.advance()

    def on_tick(self) -> None:
        now = self.world.now
        for call, begun in self._reads:
            if now - begun > READ_SECONDS:
                self.world.read_answered(self, call, None)
        self._reads = [(c, b) for c, b in self._reads if now - b <= READ_SECONDS]
        if self.open and self.writer.frame is not None and now - self._frame_since > 1.0:
            self._ping()
        frame = self.writer.frame if self._frame_entry is None else None
        if frame is not None and self._confirmed >= frame.n and now - self._frame_since > MISSED_SECONDS:
            # It was there, and was lost before we read it: no error comes, and nothing arrives. A claim settles it.
            self.writer.failed("what was confirmed does not arrive")
        if self.writer.phase == "claiming" and now - self._claim_since > CLAIM_SECONDS:
            self._claim_again()
        self.advance()

    # -- what follows from them ------------------------------------------------------------------------------------------

    def advance(self) -> None:
        """Go on as far as it goes without another event."""
        writer = self.writer
        while self._buffer and (writer.look is None or not self.waits_for_looks) and writer.phase not in ENDED:
            self._feed(*self._buffer.popleft())
        if writer.look is not None and not self._looking and writer.phase not in ENDED:
            self._looking = True
            self._look(writer.look)
        if writer.phase != "broken" and (writer.look is None or not self.waits_for_looks):
            self._settle()
        if writer.phase in ENDED:
            self._end()
            return
        if writer.look is None or not self.waits_for_looks:
            self._go_on()
        self._answer_reads()
        if not self._fetching and not self._buffer:
            self._fetching = True
            self.world.fetch(self, self._position, self._previous)

    def _feed(self, message: Message, entry: Entry) -> None:
        verdict = self.writer.arrived(message)
        self.world.note(f"{self} {message.offset}/{message.leader_epoch} {verdict.kind} {self.writer.phase} {verdict.why}")
        if verdict.kind in ("claim", "frame"):
            self._queue.append((message, entry, copied(self.writer.counting.at)))
            if self.writer.claim_id is not None and verdict.kind == "claim" and self.writer.phase == "open":
                self._claim_entry, self.epoch = entry, self.writer.counting.at.epoch
        if self.writer.frame is not None and message.data == self.writer.frame.data and verdict.counts:
            self._frame_entry = entry

    def _look(self, at: Address) -> None:
        self.world.look(self, at)

    def _settle(self) -> None:
        """What became of the frame under way; and what counted goes to the mirror, in order."""
        writer = self.writer
        if writer.acknowledged:
            frame = writer.take()
            self._keep(frame.data)
            entry = self._frame_entry
            assert entry is not None, f"{self} acknowledges what it has not read"
            for request in self._frame_requests:
                self._answer_write(request)
        elif writer.lost:
            frame = writer.take()
            self.world.told_lost(self, frame.data, self._claim_entry, self._frame_requests)
            for request in self._frame_requests:
                for call in self._waiting.pop(request, []):
                    self.world.answered(self, call, "no", None)
        elif writer.frame is not None:
            return
        if writer.phase not in ENDED:
            self._keep(None)

    def _keep(self, until: bytes | None) -> None:
        """Write what counted to mirror and state: all of it, or up to one frame."""
        while self._queue:
            row = self._queue.pop(0)
            self.mirror.rows.append(row)
            raw = unpack(row[0].data)
            if type(raw[6]) is list:
                self.state.apply(Frame(*raw), row[1])
            if row[0].data == until:
                return

    def _answer_write(self, request: str) -> None:
        done = self.state.done.get(request)
        for call in self._waiting.pop(request, []):
            self.world.answered(self, call, "yes", done)

    def _go_on(self) -> None:
        writer, world = self.writer, self.world
        if writer.phase == "reading" and self.mode == "claim" and self._at_end and not self._buffer:
            self._claim()
        elif writer.phase == "doubt":
            self._claim_again()
        elif writer.phase == "open":
            if not self.open and (writer.sure or not self.waits_for_confirmation):
                self.open = True
                world.note(f"{self} is open")
            if self.open and writer.frame is None:
                for request in [r for r in self._waiting if r in self.state.done]:
                    self._answer_write(request)
                if self._waiting:
                    self._send(list(self._waiting)[:FRAME_REQUESTS_MAX])

    def _claim_again(self) -> None:
        self._producer.closed = True
        self._producer = self.world.producer(self)
        self._claim()

    def _claim(self) -> None:
        at, world = self.writer.counting.at, self.world
        claim_id = world.random.randbytes(16)
        data = encode_claim(SIGNER, LOG_ID, at.epoch + 1, claim_id, at.hash, None)
        sent = self.writer.claim(claim_id, data, world.now)
        self._claim_since, self._at_end = world.now, False
        world.note(f"{self} claims epoch {at.epoch + 1} n={sent.n}")
        self._producer.send(sent)

    def _send(self, wanted: list[str]) -> None:
        at, writer = self.writer.counting.at, self.writer
        assert writer.claim_id is not None
        records: list[bytes] = [pack((at.seq + 1 + i, request, self.name)) for i, request in enumerate(wanted)]
        last = at.hash
        for raw in records:
            last = crypto.record_hash(last, raw)
        data = encode_frame(MAC_KEY, LOG_ID, at.epoch, writer.claim_id, at.seq + 1, at.hash, records)
        self._frame_requests, self._frame_entry, self._frame_since = wanted, None, self.world.now
        sent = writer.send(data, last, self.world.now)
        self.world.note(f"{self} sends frame {at.seq + 1} n={sent.n}")
        self._producer.send(sent)

    def _ping(self) -> None:
        sent = self.writer.ping(self.world.now)
        if sent is not None:
            self._producer.send(sent)

    def _answer_reads(self) -> None:
        if not self._reads or not self.open:
            return
        if self.world.now - self.writer.fresh_at <= FRESH_SECONDS:
            for call, _begun in self._reads:
                self.world.read_answered(self, call, self.state)
            self._reads.clear()
        else:
            self._ping()

    def _end(self) -> None:
        self.world.note(f"{self} ends {self.writer.phase}: {self.writer.why}")
        for calls in self._waiting.values():
            for call in calls:
                self.world.answered(self, call, "unknown", None)
        for call, _begun in self._reads:
            self.world.read_answered(self, call, None)
        self._producer.closed = True
        self.world.ended(self)
