"""A real kernel inside the test process: no socket, any store and log, a clock that the test moves.

    with Inside(tmp_path) as k:
        made = k("mem_alloc", namespace="alice", content="Biscuit")

Everything is what `boot` uses but for the parts that are handed in. Calls go through `Kernel.call` with a peer of ours,
so a caller can be anybody. `reopen` stops and starts the kernel on the same parts; `crash` starts it again without a stop.
With `log="kafka://…"` the log and its keys are on a broker, and the directory mirrors them in a real database.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from memos_drivers.stores.base import VIEW, Store
from memos_drivers.stores.memory import MemoryReader, MemoryStore
from memos_drivers.stores.rocks import RocksStore
from memos_kernel import boot
from memos_kernel.clock import Clock, ManualClock
from memos_kernel.config import Config
from memos_kernel.dispatch import Kernel
from memos_kernel.eventlog.base import EventLog, records
from memos_kernel.eventlog.embedded import EmbeddedLog
from memos_kernel.governance import Caller
from memos_kernel.keystore import Keys
from memos_kernel.reducer import apply
from memos_kernel.state import META_APPLIED, Tables, shown
from memos_kernel.topicboot import open_topic
from memos_kernel.turn import Turn
from memos_kernel.upcast import current
from memos_syscalls.errors import MemError
from memos_syscalls.table import BY_NAME

ADMIN: Final = Caller("uid:0", True)
ALICE: Final = Caller("uid:1001", False)
BOB: Final = Caller("uid:1002", False)
RAM: Final = Path("/dev/shm")


def ram_directory() -> Path:
    """A scratch directory, in RAM where there is some."""
    return Path(tempfile.mkdtemp(prefix="memos-test-", dir=RAM if RAM.is_dir() else None))


class Peer:
    """A connection of one caller; each answer lands in the future of its call."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.last_write = -1
        self.pending_writes = 0
        self.waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.items: list[dict[str, Any]] = []
        self.turns: dict[int, Turn] = {}

    def send_reply(self, call_id: int, result: dict[str, Any], fds: list[int] | None = None) -> None:
        for at, fd in enumerate(fds or ()):
            if at == 0:
                result["content"] = os.pread(fd, os.fstat(fd).st_size, 0)
            os.close(fd)
        self._settle(call_id, result)

    def send_error(self, call_id: int, error: MemError) -> None:
        self._settle(call_id, error)

    def _settle(self, call_id: int, outcome: dict[str, Any] | MemError) -> None:
        future = self.waiting[call_id]
        assert not future.done(), "a call is answered once"
        if isinstance(outcome, MemError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    def send_item(self, call_id: int, item: dict[str, Any]) -> None:
        self.items.append(item)

    def cancel(self, call_id: int) -> bool:
        turn = self.turns.get(call_id)
        if turn is None or turn.finished or turn.cancel is None or turn.appended:
            return False
        turn.cancel.cancel()
        return True

    async def writable(self) -> None:
        """It always is."""

    def done(self, call_id: int) -> None:
        self.turns.pop(call_id, None)


class Inside:
    """A data directory's parts and the kernel that runs on them: in memory, or with `rocks` in a real database.

    `settings` are those of `Config`. With `log` among them, the parts are what `topicboot` makes of it.
    """

    def __init__(
        self, directory: Path | None = None, *, store: Store | None = None, rocks: bool = False, clock: Clock | None = None,
        log_of: Callable[[Store], EventLog] = EmbeddedLog, start: bool = True, **settings: Any,
    ) -> None:  # fmt: skip
        self._own = ram_directory() if directory is None else None
        self.paths = boot.Paths(directory or self._own or Path())
        self.config = dataclasses.replace(Config(self.paths.root, self.paths.root / "unused.sock", embedder="none"), **settings)
        self.clock = clock or ManualClock(step=1000)
        self.fatal: list[str] = []
        self.kernel: Kernel
        self.store: Store
        self.log: EventLog
        self.keystores: tuple[Keys, ...] = ()
        self._shared = self.config.link is not None
        self._rocks = rocks or self._shared
        self._database: RocksStore | None = None
        self._log_of = log_of
        self._call_id = 0
        self._open = False
        if not self._rocks:
            self.store = store or MemoryStore()
            self.log = log_of(self.store)
        if start:
            self.open()

    # -- life --------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Start the kernel; raises `Refused` as `boot` does."""
        self.loop = asyncio.new_event_loop()
        self.peers: dict[Caller, Peer] = {}
        self._open = True
        try:
            self.loop.run_until_complete(asyncio.wait_for(self._boot(), 60 if self._shared else 10))
        except BaseException:
            self._release()
            raise

    async def _boot(self) -> None:
        """`boot.boot`, with our store, log and clock."""
        self.paths.root.mkdir(parents=True, exist_ok=True)
        if not self._rocks and next(iter(self.log.frames(0)), None) is not None:
            # A key store is only made for a directory without a log.
            self.paths.db.mkdir(exist_ok=True)
        keystore: Keys
        if self._shared:
            self._database, self.log, keystore, segment_keys = open_topic(self.config, self.paths.root)
            self.store = self._database
        else:
            keystore, segment_keys, _new = boot.open_keys(self.paths, self.config.key_path, read_only=False)
        self.keystores = (keystore, segment_keys)
        if self._rocks and not self._shared:
            self.store = self._database = RocksStore(self.paths.db)
            self.log = self._log_of(self.store)
        self.kernel = await boot.assemble(
            self.config, store=self.store, log=self.log, keystore=keystore, segment_keys=segment_keys, clock=self.clock,
            on_fatal=self.fatal.append, embed=None,
        )  # fmt: skip

    def stop(self) -> None:
        self.loop.run_until_complete(self.kernel.stop())
        self._release()

    def reopen(self) -> None:
        self.stop()
        self.open()

    def abandon(self) -> None:
        """End as a crash ends: nothing is finished, signed or stored on the way out."""
        self.kernel.stopped = self.kernel.stopped or "abandoned"
        if self._shared:
            # Whoever waits for a broker in the flusher gives up.
            self.log.close()
            self.keystores[0].close()
        self.kernel._jobs.put(None)  # pyright: ignore[reportPrivateUsage]
        flusher = self.kernel._flusher  # pyright: ignore[reportPrivateUsage]
        assert flusher is not None
        # It must not write to descriptors that the next kernel gets.
        flusher.join()
        self._release()

    def crash(self) -> None:
        self.abandon()
        self.open()

    def _release(self) -> None:
        self._close_loop()
        if self._shared and "log" in self.__dict__:
            self.log.close()
        for keystore in self.keystores:
            keystore.close()
        self.keystores = ()
        if self._database is not None:
            # Snapshots and cursors keep a database open; they go with the kernel, and with the errors it answered.
            self.peers.clear()
            for part in ("kernel", "log", "store"):
                self.__dict__.pop(part, None)
            gc.collect()
            self._database.close()
            self._database = None
            gc.collect()
        self._open = False

    def _close_loop(self) -> None:
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self.loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._open:
            if self.kernel.stopped is None and kind is None:
                self.stop()
            else:
                self.abandon()
        if self._own is not None:
            shutil.rmtree(self._own, ignore_errors=True)

    # -- calls -------------------------------------------------------------------------------------------------------

    def peer(self, caller: Caller) -> Peer:
        return self.peers.setdefault(caller, Peer(caller))

    def submit(self, name: str, caller: Caller = ADMIN, /, **args: Any) -> asyncio.Future[dict[str, Any]]:
        """Begin a call; its answer is in the future. Arguments of None are left out, as clients do."""
        self._call_id += 1
        peer, call_id = self.peer(caller), self._call_id
        future: asyncio.Future[dict[str, Any]] = self.loop.create_future()
        peer.waiting[call_id] = future
        fds = args.pop("_contents", [])
        given = {key: value for key, value in args.items() if value is not None}

        def begin() -> None:
            turn = self.kernel.call(peer, call_id, BY_NAME[name].number, given, fds)
            if turn is not None:
                peer.turns[call_id] = turn

        self.loop.call_soon(begin)
        return future

    def __call__(self, name: str, caller: Caller = ADMIN, /, **args: Any) -> dict[str, Any]:
        """One call and its answer; raises its `MemError`."""
        return self.wait(self.submit(name, caller, **args))

    def wait(self, future: asyncio.Future[dict[str, Any]], seconds: float = 10) -> dict[str, Any]:
        return self.loop.run_until_complete(asyncio.wait_for(future, seconds))

    def refusal(self, name: str, caller: Caller = ADMIN, /, **args: Any) -> str:
        """The errno of a call that must be refused."""
        try:
            result = self(name, caller, **args)
        except MemError as error:
            assert error.detail and error.advice, "an error says what happened and what to do"
            return error.errno
        raise AssertionError(f"{name} was not refused: {result}")

    def run(self, seconds: float) -> None:
        """Let the kernel work by itself."""
        self.loop.run_until_complete(asyncio.sleep(seconds))

    def tick(self) -> None:
        """What the kernel does once a second."""
        self.loop.call_soon(self.kernel.tick)
        self.loop.run_until_complete(self._quiet())

    async def _quiet(self) -> None:
        await asyncio.sleep(0)
        await self.kernel.drained()

    def settle(self) -> None:
        """Return when the words of everything durable are indexed."""
        self.loop.run_until_complete(self.kernel.effects.wait_lexical(self.kernel.durable.seq))

    # -- what must hold ----------------------------------------------------------------------------------------------

    @property
    def digest(self) -> str:
        """The state digest of everything decided."""
        return shown(self.kernel.tables.digest).hex()

    def rows(self) -> dict[bytes, bytes]:
        """Every row of the view, but for where it stands."""
        return {key: value for key, value in self.store.live(VIEW).scan(b"") if key != META_APPLIED}


def replay(log: EventLog, until: int | None = None) -> tuple[str, dict[bytes, bytes]]:
    """Digest and rows that the log alone gives."""
    source = MemoryReader()
    tables = Tables(source, 0)
    for _raw, record in records(log):
        if until is not None and record.seq > until:
            break
        apply(tables, current(record))
        changes, _payloads = tables.take()
        for key, value in changes.items():
            source.put(key, value)
        tables.settle(changes)
    return shown(tables.digest).hex(), dict(source.data)
