"""The writer's end of the chain: where the log stands, and the frame that comes next. Pure but for the signing key.

A `Chain` numbers records, gives each its time and hash, keeps the leaves of the open Merkle window and knows when a
checkpoint is due. What it hands out must be appended, in order; there is no undo.
"""

from __future__ import annotations

from typing import NamedTuple

from memos_syscalls import limits

from . import crypto
from . import events as ev
from .events import Checkpoint, Event, Record
from .state import SCHEMA


class LogKeys(NamedTuple):
    """What the log secret and the signing seed give."""

    log_id: bytes
    signer: crypto.Signer
    frame_mac: bytes
    request_mac: bytes

    @staticmethod
    def derive(log_id: bytes, seed: bytes, secret: bytes) -> LogKeys:
        return LogKeys(
            log_id, crypto.Signer(seed), crypto.subkey(secret, b"memos frame mac"), crypto.subkey(secret, b"memos request mac")
        )

    def request(self, principal: str, request_id: str) -> bytes:
        """What the log keeps of a request id."""
        return crypto.mac(self.request_mac, principal.encode() + b"\0" + request_id.encode())


class Sealed(NamedTuple):
    """A record with its place in the chain."""

    record: Record
    data: bytes
    hash: bytes


class Chain:
    """Head of the log as decided, durable or not."""

    def __init__(self, keys: LogKeys, epoch: int, claim_id: bytes, seq: int, head_hash: bytes, time: int) -> None:
        self.keys = keys
        self.epoch = epoch
        self.claim_id = claim_id
        self.seq = seq
        """Offset of the newest record; -1 for an empty log."""
        self.hash = head_hash
        self.time = time
        self.window: list[bytes] = []
        """Record hashes since the previous checkpoint, that checkpoint's own included."""
        self.uncovered = 0
        """Records that no checkpoint covers, checkpoints not counted."""
        self.previous_checkpoint = crypto.ZERO_HASH

    def next_time(self, now: int) -> int:
        return max(now, self.time + 1)

    def fits(self, data: bytes) -> bool:
        return len(data) <= limits.RECORD_BYTES_MAX

    def record(
        self, time: int, principal: str, syscall: int, request_mac: bytes | None, note: str | None, events: list[Event]
    ) -> Sealed:
        """The next record, not yet counted: `push` it when it is to stay."""
        record = Record(crypto.FORMAT, self.seq + 1, self.epoch, time, principal, syscall, request_mac, note, events)
        data = ev.encode_record(record)
        return Sealed(record, data, crypto.record_hash(self.hash, data))

    def push(self, sealed: Sealed, *, checkpoint: bool = False) -> None:
        record = sealed.record
        assert record.seq == self.seq + 1 and record.epoch == self.epoch, "a record goes onto the chain that it was made on"
        self.seq, self.hash, self.time = sealed.record.seq, sealed.hash, sealed.record.time
        if checkpoint:
            self.window, self.uncovered = [], 0
        else:
            self.uncovered += 1
        self.window.append(sealed.hash)

    @property
    def checkpoint_due(self) -> bool:
        return self.uncovered >= limits.CHECKPOINT_RECORDS

    def checkpoint(self, state_digest: bytes, time: int) -> tuple[Sealed, Checkpoint]:
        """A signed checkpoint over everything up to the head; counts it as pushed."""
        unsigned = Checkpoint(
            self.seq, self.hash, crypto.merkle_root(self.window), self.previous_checkpoint, state_digest, SCHEMA, b""
        )
        signed = unsigned._replace(signature=self.keys.signer.sign(unsigned.signed_bytes(self.keys.log_id)))
        event = Event(ev.CHECKPOINT, 1, list(signed))
        sealed = self.record(time, ev.KERNEL_PRINCIPAL, ev.KERNEL_SYSCALL, None, None, [event])
        self.push(sealed, checkpoint=True)
        self.previous_checkpoint = signed.hash(self.keys.log_id)
        return sealed, signed

    def frame(self, first_seq: int, prev_hash: bytes, records: list[bytes]) -> bytes:
        return ev.encode_frame(self.keys.frame_mac, self.keys.log_id, self.epoch, self.claim_id, first_seq, prev_hash, records)
