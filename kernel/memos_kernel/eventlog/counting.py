"""Which messages of a partition count: the one rule that every reader of a topic applies, in order of the partition.

Anybody who may write to the topic can put messages there, and a kernel that was replaced may still do so without knowing.
So being in the partition means nothing; what counts is decided by the messages before it alone, and therefore the same
for every reader:

- a *claim* counts if it is signed by the log's key for this log, its epoch is above the current one, its id was not seen
  before, and the head that it knows is one of the `KNOWN_HEADS_MAX` newest frame ends of the current epoch, or the
  head at which that epoch began
- a *frame* counts if its MAC is right, its claim is the current one, and it continues the head
- a *ping* counts if its MAC is right and its claim is the current one; it changes nothing
- everything else is void, and *suspect* if no kernel of this log can have put it there: what is forged or cannot be read
- a frame that only this log's kernel can have made, but that does not follow from what is before it, is *torn* off: its
  claim, or records before it, were changed, removed or lost. Nothing may be appended to such a topic

Pure. A ping is `[fmt, log_id, epoch, claim_id, n, mac]`, with the MAC over all bytes before it, as in a frame.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from .. import crypto
from ..events import (
    Claim,
    Damaged,
    Frame,
    claim_signature_ok,
    decode_claim,
    decode_frame,
    frame_mac_ok,
    pack,
    unpack,
)  # fmt: skip

KNOWN_HEADS_MAX: Final = 4096
"""How far a claim may lag behind the head. A claimant has read the claim before its own, so its head is of that epoch."""


class Ping(NamedTuple):
    """A message that proves, when it comes back, that its sender still is the writer."""

    fmt: int
    log_id: bytes
    epoch: int
    claim_id: bytes
    n: int
    mac: bytes


def encode_ping(mac_key: bytes, log_id: bytes, epoch: int, claim_id: bytes, n: int) -> bytes:
    body: bytes = pack((crypto.FORMAT, log_id, epoch, claim_id, n, bytes(crypto.HASH_BYTES)))[: -crypto.HASH_BYTES]
    return body + crypto.mac(mac_key, body[:-2])


def decode(data: bytes) -> Claim | Frame | Ping:
    """A message of a records topic; raises `Damaged` for anything else. Form tells the three kinds apart."""
    raw: Any = unpack(data)
    if type(raw) is list and len(raw) == len(Ping._fields):
        if [type(e) for e in raw] != [int, bytes, int, bytes, int, bytes] or raw[0] != crypto.FORMAT or len(raw[5]) != 32:
            raise Damaged("not a ping of format 1")
        return Ping(*raw)
    if type(raw) is list and len(raw) == len(Frame._fields) and type(raw[6]) is list:
        return decode_frame(data)
    return decode_claim(data)


Kind = Literal["claim", "frame", "ping", "void", "suspect", "torn", "foreign"]


class Verdict(NamedTuple):
    """What a message is. `why` says it for those that do not count."""

    kind: Kind
    message: Claim | Frame | Ping | None
    why: str = ""

    @property
    def counts(self) -> bool:
        return self.kind in ("claim", "frame", "ping")


@dataclass(slots=True)
class Standing:
    """Where the counting stands: everything that the verdict over the next message depends on."""

    epoch: int = 0
    claim_id: bytes | None = None
    seq: int = -1
    hash: bytes = crypto.ZERO_HASH
    heads: deque[bytes] = field(default_factory=lambda: deque([crypto.ZERO_HASH], KNOWN_HEADS_MAX))
    """Frame ends of the current epoch, newest last, and the head at which it began."""
    claim_ids: set[bytes] = field(default_factory=set)


class Counting:
    """The rule, for a reader who has the MAC key."""

    def __init__(self, log_id: bytes, public_key: bytes, frame_mac: bytes, standing: Standing | None = None) -> None:
        self.log_id = log_id
        self.public_key = public_key
        self.frame_mac = frame_mac
        self.at = standing or Standing()

    def take(self, data: bytes, own: tuple[bytes, bytes] | None = None) -> Verdict:
        """Judge the next message, and move on if it counts. `own` is a frame of the reader's with the hash of its last
        record, so that it need not be checked again."""
        try:
            message = decode(data)
        except Damaged as error:
            return Verdict("suspect", None, str(error))
        if message.log_id != self.log_id:
            # The first to claim a topic has it; what others put into ours is theirs to explain.
            kind: Kind = "foreign" if isinstance(message, Claim) and self.at.claim_id is None else "suspect"
            return Verdict(kind, message, f"belongs to the log {message.log_id.hex()[:16]}")
        if isinstance(message, Frame):
            return self._frame(data, message, own)
        if isinstance(message, Ping):
            return self._ping(data, message)
        return self._claim(data, message)

    def _claim(self, data: bytes, claim: Claim) -> Verdict:
        at = self.at
        if claim.public_key != self.public_key or not claim_signature_ok(self.public_key, data):
            return Verdict("suspect", claim, "is a claim that the log's key did not sign")
        if claim.claim_id in at.claim_ids:
            return Verdict("void", claim, f"repeats the claim of epoch {claim.epoch}")
        if claim.epoch <= at.epoch:
            return Verdict("void", claim, f"claims epoch {claim.epoch}, which {at.epoch} has overtaken")
        if claim.known_head not in at.heads:
            return Verdict("void", claim, f"claims epoch {claim.epoch} after another head than this log's")
        at.epoch, at.claim_id = claim.epoch, claim.claim_id
        at.claim_ids.add(claim.claim_id)
        at.heads.clear()
        at.heads.append(at.hash)
        return Verdict("claim", claim)

    def _frame(self, data: bytes, frame: Frame, own: tuple[bytes, bytes] | None) -> Verdict:
        at = self.at
        mine = own is not None and own[0] == data
        if not mine and not frame_mac_ok(self.frame_mac, data):
            return Verdict("suspect", frame, "is a frame that this log's kernel did not write")
        if frame.claim_id != at.claim_id:
            if frame.claim_id in at.claim_ids:
                return Verdict("void", frame, f"is a late frame of epoch {frame.epoch}")
            return Verdict("torn", frame, f"holds records from {frame.first_seq} on, under a claim that is not there")
        if frame.epoch != at.epoch:
            return Verdict("suspect", frame, f"is a frame of epoch {frame.epoch} under the claim of {at.epoch}")
        if frame.first_seq <= at.seq:
            return Verdict("void", frame, f"repeats records from {frame.first_seq} on")
        if frame.first_seq > at.seq + 1 or frame.prev_hash != at.hash:
            return Verdict("torn", frame, f"holds records from {frame.first_seq} on, which do not follow record {at.seq}")
        if not frame.records:
            return Verdict("suspect", frame, "is a frame without records")
        hash_ = at.hash
        if own is not None and mine:
            hash_ = own[1]
        else:
            for raw in frame.records:
                hash_ = crypto.record_hash(hash_, raw)
        at.seq, at.hash = at.seq + len(frame.records), hash_
        at.heads.append(hash_)
        return Verdict("frame", frame)

    def _ping(self, data: bytes, ping: Ping) -> Verdict:
        if not frame_mac_ok(self.frame_mac, data):
            return Verdict("suspect", ping, "is a ping that this log's kernel did not write")
        if ping.claim_id != self.at.claim_id or ping.epoch != self.at.epoch:
            return Verdict("void", ping, f"is a late ping of epoch {ping.epoch}")
        return Verdict("ping", ping)
