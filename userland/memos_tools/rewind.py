"""replay: the log up to a point, with the view that follows from it, in a new directory.

- Frames are copied byte for byte; only a last frame that the point cuts in two is put together anew, which takes the key.
- With `--keys` the new directory gets a key store of its own, in which only the keys that its records name are alive and
  which remembers no newer checkpoint, so that `memosd --read-only` serves it. Erasing in one directory then does not erase in
  the other: the command says so.
- What was erased since stays erased: its keys are gone in the original, too.
- The directory appears under its name only when it is whole.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path
from typing import Final

from memos_drivers.stores.base import LOG, PAYLOAD, VIEW, Batch
from memos_drivers.stores.rocks import RocksStore
from memos_kernel import crypto
from memos_kernel import events as ev
from memos_kernel.events import Damaged, Slot
from memos_kernel.keystore import KeyStore, sync_directory
from memos_kernel.state import decode_version, shown, u64
from memos_kernel.verify import Offline, Progress

from . import offline
from .offline import Keys, Replayed
from .output import GOOD, Output, Trouble
from .render import Block, Line, Rows
from .repair import checkpoint_until, shortened, wind_back

PUTS_PER_BATCH: Final = 1024


def command(arguments: argparse.Namespace, out: Output) -> int:
    target: Path = arguments.into
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise Trouble(f"{target} exists and is not empty; name a new directory")
    with offline.opened(arguments.dir, Keys(arguments.key_file, arguments.no_keys), need_key=arguments.keys) as found:
        point = offline.resolve(found.log, arguments.to)
        _check_boundary(found, point)
        partial = target.with_name(target.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(mode=0o700, parents=True)
            made = _build(found, point, partial, out)
            if arguments.keys:
                _copy_keys(found, arguments, made, partial)
            sync_directory(partial)
            if target.exists():
                target.rmdir()
            os.rename(partial, target)
            sync_directory(target.absolute().parent)
        except Damaged as error:
            raise Trouble(f"the log cannot be replayed: {error}; run `memctl check {arguments.dir}`") from error
        except OSError as error:
            raise Trouble(f"cannot write {target}: {error}; free some space or name another place") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    digest = shown(made.digest).hex()
    data = {"offset": made.seq, "state_digest": digest, "into": str(target), "keys": arguments.keys}
    blocks: list[Block] = [
        Rows(("field", "value"), [("offset", str(made.seq)), ("state digest", digest), ("into", str(target))])
    ]
    if arguments.keys:
        key_file = arguments.key_file or arguments.dir / "master.key"
        blocks.append(Line(f"serve it: memosd --read-only --data-dir {target} --master-key-file {key_file} --accept-clock"))
        blocks.append(
            Line(
                "it has keys of its own: what you erase in the original later stays readable here until you delete it", "yellow"
            )
        )
    else:
        blocks.append(Line("it has no keys: memctl reads what is public; pass --keys to make one that memosd can serve", "dim"))
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


def _build(found: Offline, point: int, directory: Path, out: Output) -> Replayed:
    with out.progress("replaying", point + 1) as progress:
        made = offline.replayed(found.log, point, progress)
    store = RocksStore(directory / "db")
    try:
        with out.progress("writing", point + 1) as progress:
            if _copy_frames(found, point, store, progress) != made.hash:
                raise Damaged(f"the chain up to offset {point} is not the one that was replayed")
        pending = Batch()
        for family, rows in ((PAYLOAD, made.payloads), (VIEW, made.rows)):
            for key, value in rows.data.items():
                pending.put(family, key, value)
                if family == VIEW and key[:1] == b"v":
                    _copy_large(found, made, value, pending)
                if len(pending.puts) >= PUTS_PER_BATCH:
                    store.write(pending)
                    pending = Batch()
        store.write(pending)
        store.sync()
    finally:
        store.close()
    return made


def _copy_frames(found: Offline, point: int, store: RocksStore, progress: Progress) -> bytes:
    """Frames, times and claims up to the point; the hash that the copied chain ends with."""
    hash_, next_seq, epoch = crypto.ZERO_HASH, 0, 0
    for data in found.log.frames(0):
        frame = ev.decode_frame(data)
        if frame.first_seq > point:
            break
        if frame.first_seq != next_seq or frame.prev_hash != hash_:
            raise Damaged(f"the chain is broken at offset {next_seq}")
        if found.keys is not None and not ev.frame_mac_ok(found.keys.frame_mac, data):
            raise Damaged(f"the frame at offset {next_seq} has a wrong MAC")
        if frame.first_seq + len(frame.records) - 1 > point:
            assert found.keys is not None, "the boundary was checked"
            data = shortened(found.keys, frame, point)
            frame = ev.decode_frame(data)
        for raw in frame.records:
            hash_ = crypto.record_hash(hash_, raw)
        batch = Batch()
        batch.put(LOG, b"f" + u64(next_seq), data)
        batch.put(LOG, b"t" + u64(ev.decode_record(frame.records[0]).time), u64(next_seq))
        store.write(batch)
        next_seq, epoch = next_seq + len(frame.records), frame.epoch
        progress(next_seq)
    batch = Batch()
    for data in found.log.claims():
        claim = ev.decode_claim(data)
        if claim.epoch <= epoch:
            batch.put(LOG, b"c" + u64(claim.epoch), data)
    store.write(batch)
    return hash_


def _copy_large(found: Offline, made: Replayed, row: bytes, batch: Batch) -> None:
    """Payloads that stand beside the log, not in it."""
    version = decode_version(row)[0]
    if made.payloads.get(version.payload_id) is None:
        for key, value in found.store.live(PAYLOAD).scan(version.payload_id):
            batch.put(PAYLOAD, key, value)


def _copy_keys(found: Offline, arguments: argparse.Namespace, made: Replayed, directory: Path) -> None:
    """A key store of the new directory's own: the same keys, as far as its records name them."""
    assert found.keystore is not None, "keys were asked for"
    master = offline.master_key(arguments.dir, Keys(arguments.key_file))
    keys = directory / "keys"
    keys.mkdir(mode=0o700)
    seed, secret = found.keystore.secrets()
    KeyStore.create(keys, master, found.keystore.header.log_id, seed, secret, name="segments")
    fd = os.open(keys / "slots", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(found.keystore.path.read_bytes())
    copy = KeyStore(keys, master)
    try:
        wind_back(copy, checkpoint_until(found.log, made.seq), made.seq)
        named = {Slot(int.from_bytes(k[1:9], "big"), int.from_bytes(k[9:], "big")) for k, _v in made.rows.scan(b"k")}
        copy.destroy([slot for epoch in copy.epochs for slot in copy.live_slots(epoch) if slot not in named])
    finally:
        copy.close()
    sync_directory(keys)
