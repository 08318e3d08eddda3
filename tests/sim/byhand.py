"""A topic and kernels on it that move only when a test says so: for interleavings told step by step.

`Topic` is what the leader has; `Hand` is a kernel's writer with a consumer and one producer. `hand.read()` feeds it what is
in the topic, looking first wherever it wants to look. Nothing is delivered, confirmed or repeated by itself.
"""

from __future__ import annotations

from collections.abc import Iterable

from tests.sim.kernel import LOG_ID, copied

from memos_kernel import crypto
from memos_kernel.chain import LogKeys
from memos_kernel.eventlog.counting import Counting, Standing, Verdict
from memos_kernel.eventlog.writer import ENDED, Address, Message, Sent, Writer
from memos_kernel.events import Frame, encode_claim, encode_frame

KEYS = LogKeys.derive(LOG_ID, b"seed" * 8, b"secret" * 6)
OTHER = LogKeys.derive(b"some other's log", b"else" * 8, b"wholly" * 6)


def counting(keys: LogKeys = KEYS, at: Standing | None = None) -> Counting:
    return Counting(keys.log_id, keys.signer.public_key, keys.frame_mac, at)


def claim(epoch: int, name: str, known_head: bytes = crypto.ZERO_HASH, keys: LogKeys = KEYS) -> bytes:
    return encode_claim(keys.signer, keys.log_id, epoch, claim_id(name), known_head, None)


def claim_id(name: str) -> bytes:
    return name.encode().ljust(crypto.ID_BYTES, b".")


def frame(at: Standing, records: Iterable[str], keys: LogKeys = KEYS) -> tuple[bytes, bytes]:
    """The frame that continues where a reader stands, and the hash of its last record."""
    raws, last = [r.encode() for r in records], at.hash
    for raw in raws:
        last = crypto.record_hash(last, raw)
    return encode_frame(keys.frame_mac, keys.log_id, at.epoch, at.claim_id or b"", at.seq + 1, at.hash, raws), last


class Topic:
    def __init__(self) -> None:
        self.log: list[Message] = []
        self.leader_epoch = 0

    def put(self, data: bytes) -> int:
        self.log.append(Message(len(self.log), self.leader_epoch, data))
        return len(self.log) - 1

    def new_leader(self, *, keep: int | None = None) -> None:
        """Another leader, who has only the first `keep` messages."""
        self.leader_epoch += 1
        del self.log[len(self.log) if keep is None else keep :]

    def audit(self) -> list[str]:
        """What each message is to one who reads from the beginning."""
        reader = counting()
        return [reader.take(message.data).kind for message in self.log]

    def records(self) -> list[str]:
        """The records that count."""
        reader, found = counting(), list[str]()
        for message in self.log:
            verdict = reader.take(message.data)
            if verdict.kind == "frame" and isinstance(verdict.message, Frame):
                found += [raw.decode() for raw in verdict.message.records]
        return found


class Hand:
    """A kernel, moved by hand. Its clock is `now`."""

    def __init__(self, topic: Topic, name: str, mirror: Hand | None = None) -> None:
        self.topic = topic
        self.name = name
        self.now = 0.0
        kept: Writer | None = mirror.writer if mirror is not None else None
        self.writer: Writer = Writer(counting(at=copied(kept.counting.at) if kept else None), kept.last if kept else None)
        self.position = kept.last.offset + 1 if kept is not None and kept.last is not None else 0
        self._claims = 0

    @property
    def phase(self) -> str:
        return self.writer.phase

    def look(self) -> None:
        """Look, for as long as there is something to look at."""
        while self.writer.look is not None and self.phase not in ENDED:
            at: Address = self.writer.look
            self.writer.looked(self.topic.log[at.offset] if at.offset < len(self.topic.log) else None)

    def read(self) -> list[Verdict]:
        """Read to the end; the verdicts over what was read."""
        found: list[Verdict] = []
        self.look()
        while self.position < len(self.topic.log) and self.phase not in ENDED:
            found.append(self.writer.arrived(self.topic.log[self.position]))
            self.position += 1
            self.look()
        return found

    def claims(self, epoch: int | None = None) -> Sent:
        """Begin to claim; the message is on no wire yet."""
        self._claims += 1
        at, name = self.writer.counting.at, f"{self.name}{self._claims}"
        return self.writer.claim(claim_id(name), claim(epoch or at.epoch + 1, name, at.hash), self.now)

    def sends(self, *records: str) -> Sent:
        """Begin to send a frame; the message is on no wire yet."""
        data, last = frame(self.writer.counting.at, records)
        return self.writer.send(data, last, self.now)

    def pings(self) -> Sent:
        sent = self.writer.ping(self.now)
        assert sent is not None
        return sent

    def confirm(self, sent: Sent, offset: int = -1) -> None:
        self.writer.delivered(sent.n, None, offset)
        self.look()

    def fail(self, sent: Sent, error: str = "TOPIC_AUTHORIZATION_FAILED") -> None:
        self.writer.delivered(sent.n, error)

    def lands(self, sent: Sent) -> None:
        """The message lands, is confirmed, and is read."""
        offset = self.topic.put(sent.data)
        self.confirm(sent, offset)
        self.read()

    def opens(self) -> Hand:
        """Read, claim and win."""
        self.read()
        self.lands(self.claims())
        assert self.writer.sure, f"{self.name} is {self.phase}: {self.writer.why}"
        return self

    def writes(self, *records: str) -> None:
        """Write a frame, with nothing in the way."""
        self.lands(self.sends(*records))
        assert self.writer.acknowledged
        self.writer.take()

    def may_answer_reads(self) -> bool:
        return self.phase not in ENDED and self.now - self.writer.fresh_at <= 1.0
