"""The mirror of a topic: what counted in it, in the store, laid out as the embedded log lays it out.

So whatever reads a log reads this one at the speed of the disk, and a machine that knows the topic up to some message
goes on from there. Rows of the log family beside those of embedded.py (`f`, `c`, `t`):

- `a` first_seq u64 → `[offset, leader epoch, last seq, last hash]`: where a frame stands in the topic, and the head after it
- `b` epoch u64 → `[offset, leader epoch, seq, hash]`: where a claim stands, and the head at which it opened its epoch
- `z` → `[offset, leader epoch, SHA-256]`: the newest message kept
- `o` → `[log_id, topic, topic's id]`: which topic this is a mirror of
- `p` → next offset of the payload topic to read

Rows are written in the order in which their messages counted, `z` in the same batch: a crash loses a tail, never a middle.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

from memos_drivers.stores.base import LOG, Batch, Reader

from .. import crypto
from ..events import Claim, Frame, decode_claim, decode_record, pack, unpack
from ..state import u64
from .counting import KNOWN_HEADS_MAX, Standing
from .embedded import EmbeddedLog
from .writer import Address

_NEWEST: Final = b"z"
_ORIGIN: Final = b"o"
_POSITION: Final = b"p"


class MirrorLog(EmbeddedLog):
    """What was mirrored, read like any log; nothing is appended to it."""

    kind = "kafka"
    shared = True


class Origin(NamedTuple):
    """Which topic a directory mirrors. The broker gives a topic that was deleted and made again another id."""

    log_id: bytes
    topic: str
    topic_id: str


class Counted(NamedTuple):
    """A claim or frame that counted, and the head after it."""

    address: Address
    data: bytes
    message: Claim | Frame
    seq: int
    hash: bytes


def put(batch: Batch, item: Counted) -> None:
    """The rows of one message that counted."""
    at = item.address
    where: bytes = pack((at.offset, at.leader_epoch, item.seq, item.hash))
    if isinstance(item.message, Claim):
        epoch = u64(item.message.epoch)
        batch.put(LOG, b"c" + epoch, item.data)
        batch.put(LOG, b"b" + epoch, where)
    else:
        first = u64(item.message.first_seq)
        batch.put(LOG, b"f" + first, item.data)
        batch.put(LOG, b"t" + u64(decode_record(item.message.records[0]).time), first)
        batch.put(LOG, b"a" + first, where)
    batch.put(LOG, _NEWEST, pack(tuple(at)))


def put_origin(batch: Batch, origin: Origin) -> None:
    batch.put(LOG, _ORIGIN, pack(tuple(origin)))


def put_position(batch: Batch, offset: int) -> None:
    batch.put(LOG, _POSITION, pack(offset))


def origin(reader: Reader) -> Origin | None:
    """Which topic this is a mirror of; None for a log of its own."""
    data = reader.get(_ORIGIN)
    return None if data is None else Origin(*unpack(data))


def position(reader: Reader) -> int:
    """The next offset of the payload topic to read."""
    data = reader.get(_POSITION)
    return 0 if data is None else int(unpack(data))


def newest(reader: Reader) -> Address | None:
    data = reader.get(_NEWEST)
    return None if data is None else Address(*unpack(data))


def standing(reader: Reader) -> Standing:
    """Where counting goes on: as it was after the newest message kept."""
    at = Standing(heads=deque(maxlen=KNOWN_HEADS_MAX))
    begun, begun_hash = -1, crypto.ZERO_HASH
    for key, data in reader.scan(b"c"):
        claim = decode_claim(data)
        at.epoch, at.claim_id = claim.epoch, claim.claim_id
        at.claim_ids.add(claim.claim_id)
        _offset, _leader, begun, begun_hash = unpack(reader.get(b"b" + key[1:]) or pack((0, -1, -1, crypto.ZERO_HASH)))
    ends: list[bytes] = []
    for _key, where in reader.scan(b"a", reverse=True):
        _offset, _leader, seq, hash_ = unpack(where)
        if not ends:
            at.seq, at.hash = seq, hash_
        if seq <= begun or len(ends) == KNOWN_HEADS_MAX:
            break
        ends.append(hash_)
    at.heads.append(begun_hash)
    at.heads.extend(reversed(ends))
    if not at.claim_ids:
        at.heads.clear()
        at.heads.append(crypto.ZERO_HASH)
    return at
