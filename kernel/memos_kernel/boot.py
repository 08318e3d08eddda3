"""Boot, as an annotated list: from a configuration to a kernel that serves.

Each refusal is a `Refused` whose message says what to do. Nothing is written before every check has passed, but for a
new data directory. Order matters: keys before log, log before view, erasures redone before anyone is served.
"""

from __future__ import annotations

import ctypes
import grp
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from memos_drivers.embed.client import EmbedClient
from memos_drivers.plaintext.fuse_text import Source
from memos_drivers.stores.base import PAYLOAD, VIEW, Batch, Store
from memos_drivers.stores.rocks import RocksStore
from memos_drivers.table import TABLE as DRIVERS
from memos_syscalls import limits

from . import crypto, masterkey, system
from . import events as ev
from .chain import Chain, LogKeys
from .clock import Clock, RealClock
from .commit import shred_slots
from .config import Config
from .decide_shape import Strategy
from .decide_shred import decisions
from .dispatch import Kernel
from .effects import Effects
from .eventlog.base import EventLog, records
from .eventlog.embedded import EmbeddedLog
from .events import Damaged, Event, pack
from .keystore import KeyStore, WrongKey, lock_directory, sync_directory
from .segments import Segments
from .server import Server
from .snapshot import Snapshots
from .state import DIGEST_BYTES, META_APPLIED, META_CHECKPOINT, SCHEMA, Tables, View, u64
from .upcast import current
from .vault import Vault

log_ = logging.getLogger("memos.boot")

PR_SET_DUMPABLE: Final = 4


class Refused(Exception):
    """The kernel will not start like this; the message says why and what to do."""


class Paths(NamedTuple):
    """What lies where in a data directory."""

    root: Path

    @property
    def db(self) -> Path:
        return self.root / "db"

    @property
    def keys(self) -> Path:
        return self.root / "keys"

    @property
    def snapshots(self) -> Path:
        return self.root / "snapshots"


class Running(NamedTuple):
    """A kernel with what must be closed after it."""

    kernel: Kernel
    server: Server
    keystore: KeyStore
    segment_keys: KeyStore
    store: RocksStore
    lock: int

    async def stop(self) -> None:
        self.server.close()
        await self.kernel.stop()
        self.keystore.close()
        self.segment_keys.close()
        self.store.close()
        os.close(self.lock)


def not_dumpable() -> None:
    """Keys are in this process's memory: no core dumps, no ptrace by the same uid."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        log_.warning("the kernel could not make itself undumpable: errno %d", ctypes.get_errno())


def open_keys(paths: Paths, config_key: Path, *, read_only: bool) -> tuple[KeyStore, KeyStore, bool]:
    """Master key and key stores; `(slots, segment slots, new)`. Makes them for an empty directory only."""
    fresh = not paths.db.exists() and not paths.keys.exists()
    try:
        master = masterkey.read(config_key, new=fresh)
    except masterkey.NoKey as error:
        raise Refused(str(error)) from error
    if fresh:
        if read_only:
            raise Refused(f"{paths.root} holds no memory to read; start without --read-only to make one")
        if master is None:
            master = masterkey.create(config_key)
            log_.info("made a master key at %s; keep a copy elsewhere, without it nothing can be read", config_key)
        log_id, seed, secret = os.urandom(crypto.ID_BYTES), os.urandom(crypto.KEY_BYTES), os.urandom(crypto.KEY_BYTES)
        partial = paths.root / "keys.partial"
        partial.mkdir(mode=0o700, exist_ok=True)
        for leftover in partial.iterdir():
            leftover.unlink()
        KeyStore.create(partial, master, log_id, seed, secret, name="segments")
        KeyStore.create(partial, master, log_id, seed, secret)
        os.rename(partial, paths.keys)
        sync_directory(paths.root)
    elif master is None:
        raise Refused(
            f"no master key: {config_key} does not exist and {masterkey.VARIABLE} is not set. "
            f"Restore the key file from its backup, or set {masterkey.VARIABLE}; a new key could read nothing"
        )
    if not (paths.keys / "slots").exists():
        raise Refused(f"{paths.keys} is missing though {paths.db} is there; restore the key store from its backup")
    try:
        keystore = KeyStore(paths.keys, master, read_only=read_only)
        segment_keys = KeyStore(paths.keys, master, read_only=read_only, name="segments")
        keystore.secrets()
    except WrongKey as error:
        raise Refused(f"{error}: it was made with another one. Use the key that made {paths.root}") from error
    except Damaged as error:
        raise Refused(str(error)) from error
    return keystore, segment_keys, fresh


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


def recover(store: Store, log: EventLog, keys: LogKeys, keystore: KeyStore, *, read_only: bool) -> Head:
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
                _replay_one(store, tables, record, hash_)
                seq, time, head_hash, epoch = record.seq, record.time, hash_, record.epoch
            if record.events and record.events[0].name == ev.CHECKPOINT:
                window, uncovered = [], 0
                previous = ev.Checkpoint(*record.events[0].fields).hash(keys.log_id)
            else:
                uncovered += 1
            window.append(hash_)
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


def _replay_one(store: Store, tables: Tables, record: ev.Record, hash_: bytes) -> None:
    from .reducer import apply

    apply(tables, current(record))
    changes, payloads = tables.take()
    batch = Batch()
    for key, value in changes.items():
        batch.put(VIEW, key, value)
    for key, value in payloads:
        batch.put(PAYLOAD, key, value)
    digest = tables.digest.to_bytes(DIGEST_BYTES, "little")
    batch.put(VIEW, META_APPLIED, pack((record.seq, record.time, hash_, digest, record.epoch)))
    store.write(batch)
    tables.settle(changes)


def _compare_with_anchor(keystore: KeyStore, log: EventLog, head: int) -> None:
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


def check_clock(config: Config, clock: Clock, head: Head) -> None:
    behind = head.time - clock.now()
    if config.accept_clock or head.seq < 0:
        return
    if behind > limits.CLOCK_BEHIND_SECONDS_MAX * 1_000_000_000:
        raise Refused(f"the clock is {behind // 10**9} s behind the newest record; set it right, or pass --accept-clock")
    if -behind > limits.CLOCK_AHEAD_SECONDS_MAX * 1_000_000_000:
        raise Refused(
            f"the clock is {-behind // 10**9 // 86400} days ahead of the newest record; set it right, or pass --accept-clock"
        )


def redo_shreds(view: View, log: EventLog, keystore: KeyStore, segments: Segments) -> None:
    """Carry out every shred that the key store has not confirmed: after a crash, or when an old key store came back."""
    from .answers import shred_heirs, shredded_by

    for seq in list(view.shreds_after(keystore.header.shred_seq)):
        for _raw, record in records(log, seq):
            gone = shredded_by(view, record)
            keystore.destroy(shred_slots(view, gone))
            segments.blind(gone, shred_heirs(view, record, gone))
            keystore.update(shred_seq=seq)
            break


def destroy_unnamed(view: View, keystore: KeyStore) -> None:
    """Slots that no record names were made for writes that never happened; they must not outlive their epoch."""
    for epoch in keystore.epochs:
        if epoch <= keystore.header.epoch - 1 and epoch != max(keystore.epochs):
            continue
        head = b"k" + u64(epoch)
        named = {int.from_bytes(key[9:], "big") for key, _value in view.scan(head)}
        unnamed = [slot for slot in keystore.live_slots(epoch) if slot.n not in named]
        if unnamed:
            keystore.destroy(unnamed)


def strategies() -> dict[str, Strategy]:
    """The plaintext driver's fusion strategies, as decide wants them."""

    def adapt(fuse: Callable[..., Any]) -> Strategy:
        def run(sources: list[Source]) -> str:
            return str(fuse(sources).text)

        return run

    return {name: adapt(fuse) for name, fuse in DRIVERS["plaintext"].strategies.items()}


def embedder(config: Config) -> EmbedClient | None:
    if config.embedder == "none":
        return None
    if config.embedder == "minilm":
        return EmbedClient()
    return EmbedClient(
        {"kind": "http", "url": config.embedder, "model": config.embedder_model, "key_env": config.embedder_key_env}
    )


async def assemble(
    config: Config, *, store: Store, log: EventLog, keystore: KeyStore, segment_keys: KeyStore, clock: Clock,
    on_fatal: Callable[[str], None], embed: EmbedClient | None,
) -> Kernel:  # fmt: skip
    """A kernel on the given parts, recovered and in its new epoch; whoever called serves it. Raises `Refused`."""
    seed, secret = keystore.secrets()
    keys = LogKeys.derive(keystore.header.log_id, seed, secret)
    try:
        head = recover(store, log, keys, keystore, read_only=config.read_only)
    except Damaged as error:
        raise Refused(f"the log is damaged: {error}. Run `memctl check` on the directory") from error
    check_clock(config, clock, head)

    # The epoch: above every one that the log, the claims and the key store know of.
    claims = [ev.decode_claim(data).epoch for data in log.claims()]
    epoch = 1 + max([head.epoch, keystore.highest_epoch, *claims])
    vault = Vault(keystore, epoch, keys.log_id, store.live(PAYLOAD))
    segments = Segments(store, segment_keys, epoch, vault, log, keys.log_id, read_only=config.read_only)
    if not config.read_only:
        view = View(store.live(VIEW))
        redo_shreds(view, log, keystore, segments)  # what was erased is erased before anyone asks
        destroy_unnamed(view, keystore)
        segments.destroy_unnamed()
        if config.rebuild_indexes:
            segments.drop()
        keystore.update(epoch=epoch)

    claim_id = os.urandom(crypto.ID_BYTES)
    chain = Chain(keys, epoch, claim_id, head.seq, head.hash, head.time)
    chain.window, chain.uncovered, chain.previous_checkpoint = head.window, head.uncovered, head.previous_checkpoint
    effects = Effects(vault, segments, lambda: kernel.frozen_view(), embed, lambda: kernel.busy)
    kernel = Kernel(
        clock=clock, store=store, log=log, keys=keys, vault=vault, chain=chain, digest=head.digest,
        decisions=decisions(strategies()), effects=effects, read_only=config.read_only, on_fatal=on_fatal,
        snapshots=Snapshots(store, config.data_dir / "snapshots"),
    )  # fmt: skip
    system.register(kernel)
    await kernel.start(*opening(kernel, head, epoch, claim_id))  # claim and epoch.opened are durable now
    effects.start(kernel.durable.seq)  # indexes load while calls are answered already
    return kernel


async def boot(config: Config, on_fatal: Callable[[str], None], clock: Clock | None = None) -> Running:
    """A serving kernel. Raises `Refused`, or `OSError` for what the machine refuses."""
    not_dumpable()  # keys stay in this process
    paths = Paths(config.data_dir)
    if not paths.root.exists():
        paths.root.mkdir(mode=0o700, parents=True)
        sync_directory(paths.root.parent)
    try:
        lock = lock_directory(paths.root)  # one kernel on one directory
    except BlockingIOError:
        holder = (paths.root / "lock").read_text() or "?"
        raise Refused(f"another kernel (pid {holder}) has {paths.root} open; stop it first, or connect to it") from None
    try:
        group = grp.getgrnam(config.group).gr_gid if config.group else None
    except KeyError:
        raise Refused(f"there is no group {config.group!r} on this machine; name one that exists with --group") from None
    keystore, segment_keys, fresh = open_keys(paths, config.key_path, read_only=config.read_only)
    store = RocksStore(paths.db, read_only=config.read_only)  # log, view, payloads, index segments
    log = EmbeddedLog(store)
    if not fresh and keystore.newest_checkpoint is not None and next(iter(log.frames(0)), None) is None:
        raise Refused(f"the log in {paths.db} is empty, but the key store remembers one; restore it from a backup")
    kernel = await assemble(
        config, store=store, log=log, keystore=keystore, segment_keys=segment_keys, clock=clock or RealClock(),
        on_fatal=on_fatal, embed=None if config.read_only else embedder(config),
    )  # fmt: skip
    server = Server(kernel, config.socket, group)
    kernel.connections = lambda: len(server.connections)
    reserve = config.disk_reserve_mb * limits.MIB

    def watch_disk() -> None:
        free = os.statvfs(paths.root)
        kernel.disk_full = free.f_bavail * free.f_frsize < reserve

    watch_disk()
    kernel.every(0.5, watch_disk)
    kernel.every(1, kernel.tick)
    config.socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    server.listen()
    return Running(kernel, server, keystore, segment_keys, store, lock)


def opening(kernel: Kernel, head: Head, epoch: int, claim_id: bytes) -> tuple[tuple[int, bytes] | None, list[list[Event]]]:
    """The claim, and the first records of the epoch: genesis for a new log, and epoch.opened with the claim's hash."""
    if kernel.read_only:
        return None, []
    keys, chain = kernel.keys, kernel.chain
    genesis = [Event(ev.GENESIS, 1, [keys.log_id, keys.signer.public_key, SCHEMA])]
    genesis_hash: bytes | None = None
    if head.seq < 0:
        genesis_hash = crypto.sha256(pack([list(e) for e in genesis]))
    claim = ev.encode_claim(keys.signer, keys.log_id, epoch, claim_id, chain.hash, genesis_hash)
    opened = [Event(ev.EPOCH_OPENED, 1, [crypto.sha256(claim)])]
    return (epoch, claim), [genesis, opened] if head.seq < 0 else [opened]
