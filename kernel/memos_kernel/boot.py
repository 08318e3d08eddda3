"""Boot, as an annotated list: from a configuration to a kernel that serves.

Each refusal is a `Refused` whose message says what to do. Nothing is written before every check has passed, but for a
new data directory. Order matters: keys before log, log before view, erasures redone before anyone is served.
"""

from __future__ import annotations

import asyncio
import ctypes
import dataclasses
import grp
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from memos_drivers.embed.client import EmbedClient
from memos_drivers.host.client import Host
from memos_drivers.plaintext.fuse_text import FusedText, Source
from memos_drivers.stores.base import PAYLOAD, VIEW, Store
from memos_drivers.stores.rocks import RocksStore
from memos_drivers.table import TABLE as DRIVERS
from memos_syscalls import limits

from . import crypto, masterkey, system
from . import events as ev
from .chain import LogKeys
from .clock import Clock, RealClock
from .config import Config
from .decide_shape import Strategy
from .decide_shred import decisions
from .dispatch import Kernel
from .effects import Effects
from .eventlog.base import Ended, EventLog, OutOfReach, SharedLog
from .eventlog.embedded import EmbeddedLog
from .events import Damaged
from .hosttier import HostTier, budget_default
from .keystore import Keys, KeyStore, Unusable, WrongKey, lock_directory, sync_directory
from .recovery import Refused as Refused
from .recovery import (
    blind_missed,
    chain_at,
    check_clock,
    destroy_unnamed,
    elsewhere,
    moved,
    new_home,
    opening,
    recover,
    redo_shreds,
    signer_of,
)
from .segments import Segments
from .server import Server
from .snapshot import Snapshots
from .state import View
from .succession import Succession
from .vault import Vault

log_ = logging.getLogger("memos.boot")

PR_SET_DUMPABLE: Final = 4
TIDY_SECONDS: Final = 30
GPU: Final = Path("/dev/nvidiactl")
"""Where there is one, the driver host is not the processors' main load, and does not yield to others."""


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
    keystore: Keys
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


class Parts(NamedTuple):
    """What a kernel is assembled from."""

    store: RocksStore
    log: EventLog
    keystore: Keys
    segment_keys: KeyStore


def open_parts(config: Config) -> Parts:
    """What the configuration names; the caller holds the directory's lock. Raises `Refused`."""
    paths = Paths(config.data_dir)
    return _open_topic(config, paths) if config.link is not None else _open_directory(config, paths)


def _open_directory(config: Config, paths: Paths) -> Parts:
    """The embedded log: everything is in the directory."""
    keystore, segment_keys, fresh = open_keys(paths, config.key_path, read_only=config.read_only)
    store = RocksStore(paths.db, read_only=config.read_only)  # log, view, payloads, index segments
    log = EmbeddedLog(store)
    if not fresh and keystore.newest_checkpoint is not None and next(iter(log.frames(0)), None) is None:
        raise Refused(f"the log in {paths.db} is empty, but the key store remembers one; restore it from a backup")
    return Parts(store, log, keystore, segment_keys)


def _open_topic(config: Config, paths: Paths) -> Parts:
    """The log on Kafka: topics and their keys there, mirror and view here."""
    from .topicboot import open_topic

    return Parts(*open_topic(config, paths.root))


def strategies() -> dict[str, Strategy]:
    """The plaintext driver's fusion strategies, as decide wants them."""

    def adapt(fuse: Callable[..., Any]) -> Strategy:
        def run(sources: list[Source], settings: Mapping[str, Any]) -> FusedText:
            fused: FusedText = fuse(sources, **settings)
            return fused

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


def reranker(config: Config) -> EmbedClient | None:
    """The cross-encoder's process; it starts with the first search that asks for it."""
    return EmbedClient({"kind": "cross-encoder", "path": str(config.reranker)}) if config.reranker is not None else None


def driver_host(config: Config) -> Host | None:
    """The process that will run models; it starts with the first call that needs it."""
    if not config.model:
        return None
    return Host({
        "models": list(config.model), "cache": str(config.model_cache_path), "device": config.device, "dtype": config.dtype,
        "threads": config.host_threads, "device_tier_mb": config.device_tier_mb,
        "yields": config.device == "cpu" or (config.device == "auto" and not GPU.exists()),
    })  # fmt: skip


async def assemble(
    config: Config, *, store: Store, log: EventLog, keystore: Keys, segment_keys: KeyStore, clock: Clock,
    on_fatal: Callable[[str], None], embed: EmbedClient | None,
) -> Kernel:  # fmt: skip
    """A kernel on the given parts, recovered and in its new epoch; whoever called serves it. Raises `Refused`."""
    seed, secret = keystore.secrets()
    keys = LogKeys.derive(keystore.header.log_id, seed, secret)
    shared = log if isinstance(log, SharedLog) else None
    try:
        if shared is not None:
            await asyncio.to_thread(shared.catch_up)
            await asyncio.to_thread(keystore.refresh)
        head = recover(store, log, keys, keystore, read_only=config.read_only)
    except Damaged as error:
        raise Refused(f"the log is damaged: {error}. Run `memctl check` on the directory") from error
    except (Ended, OutOfReach, Unusable) as error:
        raise Refused(str(error)) from error
    if not config.accept_clock:
        check_clock(clock, head.seq, head.time)
    closed = None if config.take_over else elsewhere(View(store.live(VIEW)), keystore)
    if closed is not None:
        log_.warning("%s: it is opened read-only. To write here nevertheless, pass --take-over", closed)
        if shared is None:
            config, embed = dataclasses.replace(config, read_only=True), None

    # The epoch: above every one that the log, the claims and the key store know of. A shared log gives it when it is claimed.
    claims = [ev.decode_claim(data).epoch for data in log.claims()]
    epoch = 1 + max([head.epoch, keystore.highest_epoch, *claims])
    vault = Vault(keystore, epoch, keys.log_id, store.live(PAYLOAD))
    segment_epoch = epoch if shared is None else 1 + segment_keys.highest_epoch
    segments = Segments(store, segment_keys, segment_epoch, vault, log, keys.log_id, read_only=config.read_only)
    if not config.read_only:
        view = View(store.live(VIEW))
        segments.destroy_unnamed()
        if shared is not None:
            blind_missed(view, log, segments)
        if config.rebuild_indexes:
            segments.drop()
        if shared is None:
            redo_shreds(view, log, keystore, segments)  # what was erased is erased before anyone asks
            destroy_unnamed(view, keystore)
            keystore.update(epoch=epoch, home_id=new_home(view, keystore))

    claim_id = os.urandom(crypto.ID_BYTES)
    effects = Effects(vault, segments, lambda: kernel.frozen_view(), embed, lambda: kernel.busy)
    kernel = Kernel(
        clock=clock, store=store, log=log, keys=keys, vault=vault, chain=chain_at(keys, head, epoch, claim_id),
        digest=head.digest, decisions=decisions(strategies()), effects=effects,
        read_only=config.read_only or shared is not None, on_fatal=on_fatal,
        snapshots=Snapshots(store, config.data_dir / "snapshots"), host=driver_host(config), models=config.model,
    )  # fmt: skip
    effects.reranker = reranker(config)
    kernel.closed = closed
    budget = budget_default() if config.host_tier_mb is None else config.host_tier_mb * limits.MIB
    kernel.hosttier = HostTier(vault, lambda: kernel.view, budget)
    system.register(kernel)
    if shared is not None:
        await _succeed(config, kernel, shared, segments)
    elif not config.read_only:
        claim = signer_of(keys)(epoch, claim_id, head.hash, head.seq)
        first = opening(keys, head.seq, claim) + moved(View(store.live(VIEW)), keystore)
        await kernel.start((epoch, claim), first)  # claim and epoch.opened are durable now
    effects.start(kernel.durable.seq)  # indexes load while calls are answered already
    if not kernel.read_only:
        kernel.spawn(kernel.collect(store.snapshot(PAYLOAD)))
    return kernel


async def _succeed(config: Config, kernel: Kernel, log: SharedLog, segments: Segments) -> None:
    """Follow a log that others can reach, and take it over unless this is to be a standby."""
    kernel.succession = Succession(
        kernel, log, segments, isolated_reads=config.reads_when_isolated, take_over=config.take_over,
        accept_clock=config.accept_clock,
    )  # fmt: skip
    log.follow()
    if not config.standby and kernel.closed is None:
        try:
            await kernel.succession.promote()
        except (Ended, OutOfReach) as error:
            raise Refused(str(error), fenced=kernel.fenced) from error


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
    store, log, keystore, segment_keys = open_parts(config)
    kernel = await assemble(
        config, store=store, log=log, keystore=keystore, segment_keys=segment_keys, clock=clock or RealClock(),
        on_fatal=on_fatal, embed=None if config.read_only else embedder(config),
    )  # fmt: skip
    server = Server(kernel, config.socket, group)
    kernel.data_dir = str(paths.root)
    kernel.connections = lambda: len(server.connections)
    reserve = config.disk_reserve_mb * limits.MIB

    def room() -> int:
        free = os.statvfs(paths.root)
        return free.f_bavail * free.f_frsize - reserve

    def watch_disk() -> None:
        kernel.disk_full = room() < 0

    kernel.room = room
    watch_disk()
    kernel.every(0.5, watch_disk)
    kernel.every(1, kernel.tick)
    if kernel.succession is not None:
        kernel.every(1, lambda: None if kernel.read_only or kernel.log.away else kernel.tend_keys())
        kernel.every(TIDY_SECONDS, lambda: None if kernel.read_only or kernel.log.away else kernel.tend_keys(tidy=True))
    config.socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    server.listen()
    return Running(kernel, server, keystore, segment_keys, store, lock)
