"""replay: the log up to a point, with the view that follows from it, in a new directory.

- The log may be in a directory or a topic; the new directory's log is embedded in either case.
- Frames are copied byte for byte; only a last frame that the point cuts in two is put together anew, which takes the key.
- Rows go to the new directory as the records that make them do, so a log of any size takes the same memory.
- With the master key the new directory gets a key store of its own, in which only the keys that its records name are alive
  and which remembers no newer checkpoint, and a link to the master key's file: `memosd --read-only` serves it. Erasing in one
  directory then does not erase in the other: the command says so. With `--no-keys`, only what is public can be read there.
- What was erased since stays erased: its keys are gone in the original, too.
- The directory appears under its name only when it is whole.

`advance` takes a directory from any point to a later one; `bisect` goes through the past with it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from pathlib import Path
from typing import Final, NamedTuple

from memos_drivers.stores.base import LOG, PAYLOAD, VIEW, Batch, Store
from memos_drivers.stores.rocks import RocksStore
from memos_kernel import crypto, masterkey
from memos_kernel import events as ev
from memos_kernel.eventlog.embedded import SHARED
from memos_kernel.events import Checkpoint, Damaged, Slot, pack, unpack
from memos_kernel.keystore import KeyStore, sync_directory
from memos_kernel.offline import Offline
from memos_kernel.reducer import apply
from memos_kernel.state import DIGEST_BYTES, META_APPLIED, META_CHECKPOINT, Tables, View, decode_version, shown, u64
from memos_kernel.upcast import current
from memos_kernel.verify import Progress
from memos_syscalls import limits

from . import offline
from .logview import damage_named
from .offline import Keys
from .output import GOOD, Output, Trouble
from .render import Block, Line, Rows
from .repair import wind_back

PUTS_PER_BATCH: Final = 1024
PROGRESS_EVERY: Final = 256


class Reached(NamedTuple):
    """How far a directory that is being made has come: its newest record, the chain's hash and the state digest there."""

    seq: int = -1
    hash: bytes = crypto.ZERO_HASH
    digest: int = 0
    time: int = 0


def command(arguments: argparse.Namespace, out: Output) -> int:
    target: Path = arguments.into
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise Trouble(f"{target} exists and is not empty; name a new directory")
    if arguments.keys and arguments.no_keys:
        raise Trouble("--keys and --no-keys exclude each other; leave out one of them")
    source: str = arguments.source
    keys = offline.keys_of(arguments)
    with offline.opened(source, keys, out, need_key=arguments.keys) as found, damage_named(found.log, source):
        point = offline.resolve(found.log, arguments.to)
        if point < 0:
            raise Trouble(f"the log in {source} holds no record; name the directory of a kernel that has run")
        _check_boundary(found, point)
        with_keys = found.keystore is not None
        partial = target.with_name(target.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(mode=0o700, parents=True)
            made = _build(found, point, partial, arguments.key_file, out)
            sync_directory(partial)
            if target.exists():
                target.rmdir()
            os.rename(partial, target)
            sync_directory(target.absolute().parent)
        except OSError as error:
            raise Trouble(f"cannot write {target}: {error}; free some space or name another place") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    digest = shown(made.digest).hex()
    data = {"offset": made.seq, "state_digest": digest, "into": str(target), "keys": with_keys}
    blocks: list[Block] = [
        Rows(("field", "value"), [("offset", str(made.seq)), ("state digest", digest), ("into", str(target))])
    ]
    if with_keys:
        old = time.time_ns() - made.time > limits.CLOCK_AHEAD_SECONDS_MAX * 10**9
        blocks.append(Line(f"serve it: memosd --read-only --data-dir {target}" + (" --accept-clock" if old else "")))
        blocks.append(
            Line(
                "it has keys of its own: what you erase in the original later stays readable here until you delete it", "yellow"
            )
        )
    else:
        blocks.append(
            Line("it has no keys: memctl reads what is public; memosd needs a replay made with the master key", "dim")
        )
    out.show(data, *blocks)
    return GOOD


def _check_boundary(found: Offline, point: int) -> None:
    """A point inside a frame needs the key, because the shorter frame needs a new MAC."""
    frame = ev.decode_frame(next(iter(found.log.frames(point))))
    last = frame.first_seq + len(frame.records) - 1
    if last != point and found.keys is None:
        raise Trouble(
            f"offset {point} is inside a frame ({frame.first_seq} to {last}), which can be cut with the master key only: "
            f"pass --key-file, or name {frame.first_seq - 1} or {last}"
        )


def _build(found: Offline, point: int, directory: Path, key_file: Path | None, out: Output) -> Reached:
    store = RocksStore(directory / "db")
    try:
        if found.log.shared:
            # Its claims may lag behind the heads that they know, as those of a topic do.
            one = Batch()
            one.put(LOG, SHARED, b"")
            store.write(one)
        with out.progress("replaying", point + 1) as progress:
            made = advance(found, store, Reached(), point, progress)
        store.sync()
        give_keys(found, key_file, View(store.live(VIEW)), made.seq, directory)
    finally:
        store.close()
    return made


def advance(found: Offline, store: Store, at: Reached, point: int, progress: Progress) -> Reached:
    """Take a store whose log ends at `at` on to record `point`: frames, claims, rows and payloads. Raises `Damaged`.

    A frame that the point cuts in two is put together anew. Without the key its MAC is of no key at all; who must not
    leave such a frame behind checks the boundary first.
    """
    tables = Tables(store.live(VIEW), at.digest)
    batch, epoch = Batch(), 0
    for data in found.log.frames(at.seq + 1):
        frame = ev.decode_frame(data)
        if frame.first_seq > point:
            break
        if found.keys is not None and not ev.frame_mac_ok(found.keys.frame_mac, data):
            raise Damaged(f"the frame at offset {frame.first_seq} has a wrong MAC")
        hash_, epoch = frame.prev_hash, frame.epoch
        for raw in frame.records:
            record = ev.decode_record(raw)
            if record.seq > point:
                break
            if record.seq == at.seq + 1:
                if hash_ != at.hash:
                    raise Damaged(f"the chain is broken at offset {record.seq}")
                apply(tables, current(record))
                at = Reached(record.seq, crypto.record_hash(hash_, raw), tables.digest, record.time)
                if at.seq % PROGRESS_EVERY == 0:
                    progress(at.seq + 1)
            elif record.seq > at.seq:
                raise Damaged(f"records {at.seq + 1} to {record.seq - 1} are missing")
            hash_ = crypto.record_hash(hash_, raw)
        if frame.first_seq + len(frame.records) - 1 > point:
            data = _cut(found, frame, point)
        batch.put(LOG, b"f" + u64(frame.first_seq), data)
        batch.put(LOG, b"t" + u64(ev.decode_record(frame.records[0]).time), u64(frame.first_seq))
        digest = tables.digest.to_bytes(DIGEST_BYTES, "little")
        tables.put(META_APPLIED, pack((at.seq, at.time, at.hash, digest, frame.epoch)))
        if len(batch.puts) + len(tables.changes) >= PUTS_PER_BATCH:
            _write(found, store, tables, batch)
            batch = Batch()
    for data in found.log.claims():
        claim = ev.decode_claim(data)
        if claim.epoch <= epoch:
            batch.put(LOG, b"c" + u64(claim.epoch), data)
    _write(found, store, tables, batch)
    if at.seq < point:
        raise Damaged(f"the log ends at offset {at.seq}, before {point}")
    return at


def _cut(found: Offline, frame: ev.Frame, point: int) -> bytes:
    """The frame without its records after the point."""
    records = frame.records[: point - frame.first_seq + 1]
    mac_key = found.keys.frame_mac if found.keys is not None else b""
    return ev.encode_frame(mac_key, frame.log_id, frame.epoch, frame.claim_id, frame.first_seq, frame.prev_hash, records)


def _write(found: Offline, store: Store, tables: Tables, batch: Batch) -> None:
    """What was made since the last batch, with the payloads that stand beside the log."""
    changes, payloads = tables.take()
    inline = {payload_id for payload_id, _sealed in payloads}
    batch.puts += [(PAYLOAD, payload_id, sealed) for payload_id, sealed in payloads]
    batch.puts += [(VIEW, key, value) for key, value in changes.items()]
    have, source = store.live(PAYLOAD), found.store.live(PAYLOAD)
    for key, row in changes.items():
        if key[:1] != b"v" or row is None:
            continue
        payload_id = decode_version(row)[0].payload_id
        if payload_id not in inline and have.get(payload_id) is None:
            for piece_id, piece in source.scan(payload_id):
                # By itself: one payload may be larger than everything else in the batch.
                one = Batch()
                one.put(PAYLOAD, piece_id, piece)
                store.write(one)
    store.write(batch)
    tables.settle(changes)


def give_keys(found: Offline, key_file: Path | None, view: View, point: int, directory: Path) -> None:
    """A key store of the new directory's own: the same keys, as far as its records name them. Nothing without the key."""
    if found.keystore is None:
        return
    master = offline.master_key(found.path, Keys(key_file))
    keys = directory / "keys"
    keys.mkdir(mode=0o700)
    original = found.keystore
    seed, secret = original.secrets()
    KeyStore.create(keys, master, original.header.log_id, seed, secret, name="segments")
    if isinstance(original, KeyStore):
        fd = os.open(keys / "slots", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(original.path.read_bytes())
    else:
        KeyStore.create(keys, master, original.header.log_id, seed, secret)
    named = {Slot(int.from_bytes(k[1:9], "big"), int.from_bytes(k[9:], "big")) for k, _v in view.scan(b"k")}
    copy = KeyStore(keys, master)
    try:
        if not isinstance(original, KeyStore):
            header = original.header
            copy.adopt((slot, key) for slot in sorted(named) if (key := original.key(slot)) is not None)
            copy.update(shred_seq=header.shred_seq, epoch=header.epoch, home_id=header.home_id)
        wind_back(copy, newest_checkpoint(found, view), point)
        copy.destroy([slot for epoch in copy.epochs for slot in copy.live_slots(epoch) if slot not in named])
    finally:
        copy.close()
    sync_directory(keys)
    if masterkey.VARIABLE not in os.environ:
        # A link, not a copy: there is one master key to guard.
        (directory / "master.key").symlink_to((key_file or found.path / "master.key").resolve())


def newest_checkpoint(found: Offline, view: View) -> Checkpoint | None:
    """The newest checkpoint at the point that a view stands at."""
    row = view.get(META_CHECKPOINT)
    item = offline.item_at(found.log, unpack(row)[0]) if row is not None else None
    events = item.record().events if item is not None else []
    return next((Checkpoint(*event.fields) for event in events if event.name == ev.CHECKPOINT), None)
