"""Recovery: from what is stored to a view that stands where its log stands, and the beginning of a new epoch.

- `recover` checks the log's end, replays what the view lacks, and refuses a log that was cut back or exchanged
- `redo_shreds` and `destroy_unnamed` finish what a crash left: erased is erased before anyone is served
- `elsewhere` knows the copy of a log that may go on: the one whose home_id its newest log.moved record names
- `opening` is what every epoch begins with

Each refusal is a `Refused` whose message says what to do.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import NamedTuple

from memos_drivers.stores.base import PAYLOAD, VIEW, Batch, Store
from memos_syscalls import limits

from . import crypto, lifecycle
from . import events as ev
from .chain import Chain, LogKeys
from .clock import Clock
from .commit import shred_slots
from .eventlog.base import EventLog, Sign, records
from .events import Event, pack
from .keystore import Keys
from .reducer import apply
from .segments import Segments
from .state import DIGEST_BYTES, META_APPLIED, META_CHECKPOINT, META_HOME, SCHEMA, Tables, View, u64
from .upcast import current

log_ = logging.getLogger("memos.boot")


class Refused(Exception):
    """The kernel will not start like this; the message says why and what to do. `fenced`: another one came first."""

    def __init__(self, why: str, *, fenced: bool = False) -> None:
        super().__init__(why)
        self.fenced = fenced


class Head(NamedTuple):
    """Where log and view stand, after the view caught up."""

    seq: int
    hash: bytes
    time: int
    epoch: int
    digest: int
    window: list[bytes]
    uncovered: int
    previous_checkpoint: bytes


def recover(store: Store, log: EventLog, keys: LogKeys, keystore: Keys, *, read_only: bool) -> Head:
    """Check the log's end, replay what the view lacks, and refuse a log that was cut back or exchanged."""
    view = View(store.live(VIEW))
    applied = view.applied()
    seq, time, head_hash, epoch, digest = -1, 0, crypto.ZERO_HASH, 0, 0
    if applied is not None:
        seq, time, head_hash, raw_digest, epoch = applied
        digest = int.from_bytes(raw_digest, "little")
        if view.get(b"mlog_id") != keys.log_id:
            raise Refused("the view belongs to another log than the key store; put back the directory that they came from")
        schema = int.from_bytes(view.get(b"mschema") or b"\x01", "big")
        if schema > SCHEMA:
            raise Refused(f"the view has state schema {schema}; this kernel knows {SCHEMA}: use the newer kernel that wrote it")
    tables = Tables(store.live(VIEW), digest)
    window: list[bytes] = []
    uncovered = 0
    start, previous = 0, crypto.ZERO_HASH
    raw_checkpoint = view.get(META_CHECKPOINT)
    if raw_checkpoint is not None:
        start, previous = ev.unpack(raw_checkpoint)
    chain_hash: bytes | None = None
    log_head = -1
    for data in log.frames(start):
        frame = ev.decode_frame(data)
        if not ev.frame_mac_ok(keys.frame_mac, data) or frame.log_id != keys.log_id:
            raise Refused(f"the frame at offset {frame.first_seq} is not this log's own: run `memctl check` on the directory")
        hash_ = frame.prev_hash
        missing: list[tuple[ev.Record, bytes]] = []
        if chain_hash is not None and hash_ != chain_hash:
            raise Refused(f"the chain is broken at offset {frame.first_seq}: run `memctl check` on the directory")
        for at, raw in enumerate(frame.records):
            record_seq = frame.first_seq + at
            hash_ = crypto.record_hash(hash_, raw)
            log_head = record_seq
            if record_seq < start:
                continue
            record = ev.decode_record(raw)
            if record.seq > seq:
                if read_only:
                    raise Refused("the view is behind its log; start once without --read-only to let it catch up")
                missing.append((record, hash_))
                seq, time, head_hash, epoch = record.seq, record.time, hash_, record.epoch
            if record.events and record.events[0].name == ev.CHECKPOINT:
                window, uncovered = [], 0
                previous = ev.Checkpoint(*record.events[0].fields).hash(keys.log_id)
            else:
                uncovered += 1
            window.append(hash_)
        if missing:
            _replay_frame(store, tables, missing)
        chain_hash = hash_
    if applied is not None and log_head < applied[0]:
        raise Refused(
            f"the view stands at offset {applied[0]} but the log ends at {log_head}: its tail is gone. "
            "Restore the data directory from a backup"
        )
    if chain_hash is not None and chain_hash != head_hash:
        raise Refused(f"the log's head {chain_hash.hex()[:16]} is not the one that the view was made from; run `memctl check`")
    _compare_with_anchor(keystore, log, seq)
    return Head(seq, head_hash, time, epoch, tables.digest, window, uncovered, previous)


def _replay_frame(store: Store, tables: Tables, found: list[tuple[ev.Record, bytes]]) -> None:
    """Records of one frame, in one batch."""
    for record, _hash in found:
        apply(tables, current(record))
    write_applied(store, tables, Batch(), found[-1])


def write_applied(store: Store, tables: Tables, batch: Batch, last: tuple[ev.Record, bytes] | None) -> None:
    """Write what was applied since the last time, with what `batch` holds already. `last`: the newest record applied, with its
    hash; None when there was none."""
    changes, payloads = tables.take()
    batch.puts.extend((VIEW, key, value) for key, value in changes.items())
    batch.puts.extend((PAYLOAD, key, value) for key, value in payloads)
    if last is not None:
        record, hash_ = last
        digest = tables.digest.to_bytes(DIGEST_BYTES, "little")
        batch.put(VIEW, META_APPLIED, pack((record.seq, record.time, hash_, digest, record.epoch)))
    store.write(batch)
    tables.settle(changes)


def _compare_with_anchor(keystore: Keys, log: EventLog, head: int) -> None:
    """The key store remembers the newest checkpoint that was signed: a log that does not reach it was cut back."""
    newest = keystore.newest_checkpoint
    if newest is None:
        return
    if newest.head_seq > head:
        raise Refused(
            f"the log ends at offset {head}, but the key store remembers a signed checkpoint of offset {newest.head_seq}: "
            "the log was cut back or replaced. Restore it from a backup; nothing was changed"
        )
    for data in log.frames(newest.head_seq):
        frame = ev.decode_frame(data)
        hash_ = frame.prev_hash
        for raw in frame.records[: newest.head_seq - frame.first_seq + 1]:
            hash_ = crypto.record_hash(hash_, raw)
        if hash_ != newest.head_hash:
            raise Refused(
                f"offset {newest.head_seq} of the log is not the record that this kernel signed: the log was rewritten. "
                "Restore it from a backup; nothing was changed"
            )
        return


def elsewhere(view: View, keystore: Keys) -> str | None:
    """Why nothing may be appended to this copy of the log; None when it is the one that goes on.

    A copy has a home_id of its own before it gets its first record; the source's last record names it.
    """
    home, mine = view.get(META_HOME), keystore.header.home_id
    if home == mine:
        return None
    if home is not None and (mine is None or view.get(META_HOME + mine) is not None):
        return f"this log moved to its copy {home.hex()} and is closed here"
    return "this is a copy of a log that may still be written elsewhere: its source did not end with a record that names it"


def new_home(view: View, keystore: Keys) -> bytes | None:
    """The home that a key store gets whose log is taken over from elsewhere; None when the log is at home."""
    return None if elsewhere(view, keystore) is None else os.urandom(crypto.ID_BYTES)


def check_clock(clock: Clock, seq: int, time: int) -> None:
    """Refuse to write after record `seq` with a clock that disagrees with its time."""
    behind = time - clock.now()
    if seq < 0:
        return
    if behind > limits.CLOCK_BEHIND_SECONDS_MAX * 1_000_000_000:
        raise Refused(f"the clock is {behind // 10**9} s behind the newest record; set it right, or pass --accept-clock")
    if -behind > limits.CLOCK_AHEAD_SECONDS_MAX * 1_000_000_000:
        raise Refused(
            f"the clock is {-behind // 10**9 // 86400} days ahead of the newest record; set it right, or pass --accept-clock"
        )


def redo_shreds(view: View, log: EventLog, keystore: Keys, segments: Segments) -> None:
    """Carry out every shred that the key store has not confirmed: after a crash, or when an old key store came back."""
    for seq, gone, heirs in _shreds_after(view, log, keystore.header.shred_seq):
        keystore.destroy(shred_slots(view, gone))
        segments.blind(gone, heirs)
        keystore.update(shred_seq=seq)


def _shreds_after(view: View, log: EventLog, seq: int) -> Iterator[tuple[int, list[bytes], dict[bytes, int]]]:
    """Shreds after record `seq`: the offset, the cubes that went, and the forks that lost versions with them."""
    from .answers import shred_heirs, shredded_by

    for at in list(view.shreds_after(seq)):
        for _raw, record in records(log, at):
            gone = shredded_by(view, record)
            yield at, gone, shred_heirs(view, record, gone)
            break


def blind_missed(view: View, log: EventLog, segments: Segments) -> None:
    """Blind the segments of this directory to what was shredded while no kernel ran on it."""
    newest = segments.blinded_seq
    for seq, gone, heirs in _shreds_after(view, log, newest):
        segments.blind(gone, heirs)
        newest = seq
    # Once for all.
    segments.blinded(newest)


def destroy_unnamed(view: View, keystore: Keys, *, below: int | None = None, above: int = -1) -> None:
    """Slots that no record names were made for writes that never happened; they must not outlive their epoch.

    `below`: others may write to the key store as well, so every epoch before this one (and after `above`) is looked at, and
    keys of erased cubes too. A later epoch is another kernel's, which took over.
    """
    for epoch in keystore.epochs:
        if below is not None and not above < epoch < below:
            continue
        if below is None and epoch <= keystore.header.epoch - 1 and epoch != max(keystore.epochs):
            continue
        named = {int.from_bytes(key[9:], "big"): cube_id for key, cube_id in view.scan(b"k" + u64(epoch))}
        dead = [
            slot
            for slot in keystore.live_slots(epoch)
            if slot.n not in named or (below is not None and _is_shredded(view, named[slot.n]))
        ]
        if dead:
            keystore.destroy(dead)


def _is_shredded(view: View, cube_id: bytes) -> bool:
    cube = view.cube(cube_id)
    return cube is not None and cube.state == lifecycle.SHREDDED


def chain_at(keys: LogKeys, head: Head, epoch: int, claim_id: bytes) -> Chain:
    """The writer's end of the chain, going on from `head`."""
    chain = Chain(keys, epoch, claim_id, head.seq, head.hash, head.time)
    chain.window, chain.uncovered, chain.previous_checkpoint = head.window, head.uncovered, head.previous_checkpoint
    return chain


def _genesis(keys: LogKeys) -> list[Event]:
    return [Event(ev.GENESIS, 1, [keys.log_id, keys.signer.public_key, SCHEMA])]


def signer_of(keys: LogKeys) -> Sign:
    """Makes the claim of an epoch: of a log that has no record yet, it carries the hash of the genesis to come."""

    def sign(epoch: int, claim_id: bytes, known_head: bytes, seq: int) -> bytes:
        genesis_hash = crypto.sha256(pack([list(e) for e in _genesis(keys)])) if seq < 0 else None
        return ev.encode_claim(keys.signer, keys.log_id, epoch, claim_id, known_head, genesis_hash)

    return sign


def opening(keys: LogKeys, seq: int, claim: bytes) -> list[list[Event]]:
    """The first records of an epoch: genesis for a new log, and epoch.opened with the claim's hash."""
    opened = [Event(ev.EPOCH_OPENED, 1, [crypto.sha256(claim)])]
    return [_genesis(keys), opened] if seq < 0 else [opened]


def moved(view: View, keystore: Keys) -> list[list[Event]]:
    """The record by which an epoch takes the log over, as its key store already says; none where the log is at home."""
    home = keystore.header.home_id
    return [] if home is None or home == view.get(META_HOME) else [[Event(ev.MOVED, 1, [home])]]
