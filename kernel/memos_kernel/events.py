"""What the log holds: events, records, frames and claims, as MessagePack arrays in a fixed field order.

1. record  `[fmt, seq, epoch, time, principal, syscall, request_mac|nil, note|nil, [event, …]]`
2. event   `[name, schema, [field, …], private|nil]`; private is `[private_id, ciphertext]`
3. frame   `[fmt, log_id, epoch, claim_id, first_seq, prev_hash, [record bytes, …], mac]`
4. claim   `[fmt, log_id, epoch, claim_id, known_head, public_key, genesis_hash|nil, signature]`

A structure is verified by hashing its stored bytes, never by encoding it again: a frame's MAC and a claim's signature
cover all bytes before their own element. `EVENTS` lists every event name with its newest schema; names are stable
strings. Decoding raises `Damaged` for anything that is not exactly of this form.

Fields of the events (all public):

- genesis 1: log_id, public_key, state_schema
- epoch.opened 1: claim_hash
- checkpoint 1: head_seq, head_hash, merkle_root, previous_checkpoint_hash, state_digest, state_schema, signature
- cube.allocated 1: cube_id, namespace, form, expires_at|nil, payload, slot, lineage
- cube.written 1: cube_id, version, expires_at|nil, payload, slot, lineage, restored_version|nil
- cube.state_changed 1: cube_id, version, state, action, slot|nil
- cube.pinned 1: cube_id, version, pinned, slot|nil
- cubes.expired 1: [[cube_id, version], …]
- cube.merged 1: fused_id, [[cube_id, version], …]
- cube.unmerged 1: fused_id, fused_version, [cube_id, …], slot|nil
- cube.superseded 1: [[older cube_id, version, newer cube_id, version], …]
- namespace.forked 1: source, target, at_seq, number of cubes, args_hash
- cubes.shredded 1: target_namespace|nil, [cube_id, …], [[old, new], …] (rebuilt), args_hash
- log.moved 1: home_id of the copy that goes on

payload is `[payload_id, content bytes, ciphertext digest, slot, inline ciphertext|nil]`, slot is `[epoch, n]`, lineage
is `[[cube_id, version, role], …]` with role 0 = content, 1 = context. In cubes.shredded the list names cubes outside
the target namespace only: an operation on a namespace names the namespace, not its cubes.
"""

from __future__ import annotations

import itertools
from typing import Any, Final, NamedTuple

import msgpack

from . import crypto

GENESIS: Final = "genesis"
EPOCH_OPENED: Final = "epoch.opened"
CHECKPOINT: Final = "checkpoint"
ALLOCATED: Final = "cube.allocated"
WRITTEN: Final = "cube.written"
STATE_CHANGED: Final = "cube.state_changed"
PINNED: Final = "cube.pinned"
EXPIRED: Final = "cubes.expired"
MERGED: Final = "cube.merged"
UNMERGED: Final = "cube.unmerged"
SUPERSEDED: Final = "cube.superseded"
FORKED: Final = "namespace.forked"
SHREDDED: Final = "cubes.shredded"
MOVED: Final = "log.moved"

EVENTS: Final[dict[str, int]] = {
    GENESIS: 1, EPOCH_OPENED: 1, CHECKPOINT: 1, ALLOCATED: 1, WRITTEN: 1, STATE_CHANGED: 1, PINNED: 1, EXPIRED: 1,
    MERGED: 1, UNMERGED: 1, SUPERSEDED: 1, FORKED: 1, SHREDDED: 1, MOVED: 1,
}  # fmt: skip
"""Event name → newest schema version."""

KERNEL_PRINCIPAL: Final = "kernel"
KERNEL_SYSCALL: Final = 0
"""Records that the kernel makes by itself (genesis, checkpoints, expiry) carry no syscall."""

_MAC_TAIL: Final = 2 + crypto.HASH_BYTES
_SIGNATURE_TAIL: Final = 2 + 64
_packer = msgpack.Packer(use_bin_type=True, autoreset=True)
pack = _packer.pack
"""The one encoder of stored structures."""


class Damaged(Exception):
    """Stored bytes are not what they must be; the message says what is wrong."""


def unpack(data: bytes) -> Any:
    try:
        return msgpack.unpackb(data, raw=False, use_list=True, strict_map_key=False)
    except (ValueError, msgpack.UnpackException, TypeError) as error:
        raise Damaged(f"not MessagePack: {type(error).__name__}") from error


class Slot(NamedTuple):
    """Address of a data key: made in `epoch`, the n-th of it."""

    epoch: int
    n: int


class Event(NamedTuple):
    name: str
    schema: int
    fields: tuple[Any, ...] | list[Any]
    private: tuple[bytes, bytes] | list[bytes] | None = None


class Record(NamedTuple):
    fmt: int
    seq: int
    epoch: int
    time: int
    principal: str
    syscall: int
    request_mac: bytes | None
    note: str | None
    events: tuple[Event, ...] | list[Event]


class Frame(NamedTuple):
    fmt: int
    log_id: bytes
    epoch: int
    claim_id: bytes
    first_seq: int
    prev_hash: bytes
    records: list[bytes]
    mac: bytes


class Claim(NamedTuple):
    fmt: int
    log_id: bytes
    epoch: int
    claim_id: bytes
    known_head: bytes
    public_key: bytes
    genesis_hash: bytes | None
    signature: bytes


def _kinds(*each: tuple[type, ...]) -> frozenset[tuple[type, ...]]:
    """Every row of types that an array may have."""
    return frozenset(itertools.product(*each))


_NONE: Final = type(None)
_RECORD: Final = _kinds((int,), (int,), (int,), (int,), (str,), (int,), (bytes, _NONE), (str, _NONE), (list,))
_EVENT: Final = _kinds((str,), (int,), (list,), (list, _NONE))
_PRIVATE: Final = _kinds((bytes,), (bytes,))
_FRAME: Final = _kinds((int,), (bytes,), (int,), (bytes,), (int,), (bytes,), (list,), (bytes,))
_CLAIM: Final = _kinds((int,), (bytes,), (int,), (bytes,), (bytes,), (bytes,), (bytes, _NONE), (bytes,))


def _fits(raw: Any, kinds: frozenset[tuple[type, ...]]) -> bool:
    """Whether a decoded array has exactly these kinds of elements."""
    return type(raw) is list and tuple(map(type, raw)) in kinds


def encode_record(record: Record) -> bytes:
    data: bytes = pack(record)
    return data


def decode_record(data: bytes) -> Record:
    """The record in stored bytes, as it was written; `upcast.current` brings its events to the newest schemas."""
    raw = unpack(data)
    if not _fits(raw, _RECORD) or raw[0] != crypto.FORMAT:
        raise Damaged("not a record of format 1")
    events: list[Event] = []
    for item in raw[8]:
        if not _fits(item, _EVENT) or (item[3] is not None and not _fits(item[3], _PRIVATE)):
            raise Damaged("a record holds something that is not an event")
        events.append(Event(*item))
    raw[8] = events
    return Record(*raw)


def encode_frame(
    mac_key: bytes, log_id: bytes, epoch: int, claim_id: bytes, first_seq: int, prev_hash: bytes, records: list[bytes]
) -> bytes:
    body = pack((crypto.FORMAT, log_id, epoch, claim_id, first_seq, prev_hash, records, bytes(crypto.HASH_BYTES)))
    head: bytes = body[: -crypto.HASH_BYTES]
    return head + crypto.mac(mac_key, head[:-2])


def decode_frame(data: bytes) -> Frame:
    raw = unpack(data)
    if not _fits(raw, _FRAME) or raw[0] != crypto.FORMAT:
        raise Damaged("not a frame of format 1")
    if any(type(r) is not bytes for r in raw[6]) or len(raw[7]) != crypto.HASH_BYTES:
        raise Damaged("a frame's records or MAC are not bytes")
    return Frame(*raw)


def frame_mac_ok(mac_key: bytes, data: bytes) -> bool:
    return crypto.mac_equal(crypto.mac(mac_key, data[:-_MAC_TAIL]), data[-crypto.HASH_BYTES :])


def encode_claim(
    signer: crypto.Signer, log_id: bytes, epoch: int, claim_id: bytes, known_head: bytes, genesis_hash: bytes | None
) -> bytes:
    body = pack((crypto.FORMAT, log_id, epoch, claim_id, known_head, signer.public_key, genesis_hash, bytes(64)))
    head: bytes = body[:-64]
    return head + signer.sign(head[:-2])


def decode_claim(data: bytes) -> Claim:
    raw = unpack(data)
    if not _fits(raw, _CLAIM) or raw[0] != crypto.FORMAT or len(raw[7]) != 64:
        raise Damaged("not a claim of format 1")
    return Claim(*raw)


def claim_signature_ok(public_key: bytes, data: bytes) -> bool:
    return crypto.verify_signature(public_key, data[-64:], data[:-_SIGNATURE_TAIL])


class Checkpoint(NamedTuple):
    """The fields of a checkpoint event."""

    head_seq: int
    head_hash: bytes
    merkle_root: bytes
    previous: bytes
    state_digest: bytes
    state_schema: int
    signature: bytes

    def signed_bytes(self, log_id: bytes) -> bytes:
        data: bytes = pack((crypto.FORMAT, "memos checkpoint", log_id, *self[:6]))
        return data

    def hash(self, log_id: bytes) -> bytes:
        """How the next checkpoint names this one."""
        return crypto.sha256(self.signed_bytes(log_id) + self.signature)
