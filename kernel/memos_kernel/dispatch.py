"""call(): the one path of every syscall, and the commit that many calls share.

    decode → look up → authorise → decide → append → apply → effects → reply

Contract:

- Everything here runs on the event loop, one call at a time, but for what is named `_in_thread`. A long decision closes
  the gate: other writes wait for it in order, reads go on.
- `decide` sees the view and every record decided before, durable or not (`tables`); reads see durable state only
  (`view`). An answer that rests on a record which is not durable yet waits for it: a reply, and a refusal too.
- All records that are ready go to the log as one frame; its callers are answered when the log says durable. One frame
  is under way at a time.
- An error in append or apply is not an answer: the kernel stops (`fatal`), and a restart finds out. A bad request never
  stops it.
- The only caller of `EventLog.begin` and `finish`.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from memos_drivers.stores.base import PAYLOAD, VIEW, Batch, Store
from memos_syscalls import limits
from memos_syscalls import messages as m
from memos_syscalls.errors import (
    MemAgain,
    MemDenied,
    MemError,
    MemFenced,
    MemInvalid,
    MemIO,
    MemNoCall,
    MemNoSpace,
    MemReadOnly,
    MemTooLarge,
)  # fmt: skip
from memos_syscalls.table import BY_NUMBER, TABLE, Flag

from . import answers, crypto
from . import events as ev
from .chain import Chain, LogKeys, Sealed
from .clock import Clock
from .decide import Call, Decision, decide_expired
from .decide_shape import Decisions
from .effects import Effects
from .eventlog.base import Append, EventLog, record_at
from .events import Checkpoint, Damaged, Record, Slot, pack
from .private import args_hash
from .reducer import apply
from .snapshot import Snapshots
from .state import DIGEST_BYTES, META_APPLIED, Tables, View, cube_id_of, shown
from .stats import Histogram
from .turn import Peer, Turn
from .vault import OutOfSlots, SealedContent, Vault, ViewOpener

log_ = logging.getLogger("memos.kernel")

WRITES: Final = frozenset(call.number for call in TABLE if call.flags & Flag.WRITE)
ADMINS: Final = frozenset(call.number for call in TABLE if call.flags & Flag.ADMIN)
STREAMS: Final = frozenset(call.number for call in TABLE if call.flags & Flag.STREAM)
LONGS: Final = frozenset(call.number for call in TABLE if call.flags & Flag.LONG)
LOW_SLOTS: Final = limits.KEY_SLOTS_PER_BLOCK
LONG_ITEMS: Final = 48
"""Decisions over more items than this run in a thread, so that no turn of the loop grows long."""
BUSY_SECONDS: Final = 0.003
EXPIRIES_PER_RECORD: Final = 1024


class Durable(NamedTuple):
    """Where the log durably stands."""

    seq: int
    hash: bytes
    digest: int
    time: int


class Entry(NamedTuple):
    """A decided record on its way to the log."""

    sealed: Sealed
    changes: dict[bytes, bytes | None]
    payloads: list[tuple[bytes, bytes]]
    digest: int
    turn: Turn | None
    decision: Decision | None
    checkpoint: Checkpoint | None


class Fresh:
    """Ids for one decision: cube ids of the record's time, slots from the vault."""

    __slots__ = ("_given", "_made", "_time", "_vault")

    def __init__(self, vault: Vault, time: int, given: Slot | None = None) -> None:
        self._vault = vault
        self._time = time
        self._given = given
        self._made = -1

    def cube_id(self) -> bytes:
        self._made += 1
        return cube_id_of(self._time, self._made, int.from_bytes(self._vault.randoms.take(5), "big"))

    def slot(self) -> Slot:
        if self._given is not None:
            slot, self._given = self._given, None
            return slot
        return self._vault.take_slot()


class Kernel:
    """State, log and keys of one running kernel, and `call`."""

    def __init__(
        self, *, clock: Clock, store: Store, log: EventLog, keys: LogKeys, vault: Vault, chain: Chain, digest: int,
        decisions: Decisions, effects: Effects, read_only: bool, on_fatal: Callable[[str], None], snapshots: Snapshots,
    ) -> None:  # fmt: skip
        self.clock = clock
        self.store = store
        self.log = log
        self.keys = keys
        self.vault = vault
        self.chain = chain
        self.decisions = decisions
        self.effects = effects
        self.read_only = read_only
        self.on_fatal = on_fatal
        self.tables = Tables(store.live(VIEW), digest)
        self.opener = ViewOpener(vault, self.tables)
        self._live_view = View(store.live(VIEW))
        self.view = self._live_view
        """Durable state: what reads see."""
        self.durable = Durable(chain.seq, chain.hash, digest, chain.time)
        self.stats = {call.number: Histogram() for call in TABLE}
        self.commits = 0
        self.committed_records = 0
        self.disk_full = False
        self.stopped: str | None = None
        self.claim: tuple[int, bytes] | None = None
        """The claim that opens this epoch, until its first frame carries it."""
        self.reads: dict[int, Callable[[Kernel, Turn, Any], None]] = {}
        """Handlers of calls that append nothing, by number; see reads.py."""
        self._queue: deque[Entry] = deque()
        self._committing = False
        self._last_commit = 0.0
        self._barriers: deque[tuple[int, Callable[[], None]]] = deque()
        self._gate: deque[Callable[[], None]] | None = None
        self._refilling = False
        self._carrying: dict[int, list[Callable[[], None]]] = {}
        """Shreds whose keys are being destroyed, with the repeats that wait for them."""
        self._watchers: set[asyncio.Event] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: list[asyncio.TimerHandle] = []
        self._checkpoint_timer: asyncio.TimerHandle | None = None
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._flusher: threading.Thread | None = None
        self.loop = asyncio.get_running_loop()
        self.started = self.loop.time()
        self.opened_at = chain.seq
        """Offset at which this kernel began to serve."""
        self.connections: Callable[[], int] = lambda: 0
        self.snapshots = snapshots
        self.cork: Callable[[], None] = lambda: None
        """Hold replies back, so that those to one connection leave in one send; `uncork` lets them go."""
        self.uncork: Callable[[], None] = lambda: None
        self.owners: dict[str, str | None] = {}
        """Owners of namespaces that exist; an owner never changes."""

    # -- life --------------------------------------------------------------------------------------------------------

    async def start(self, claim: tuple[int, bytes] | None, opening: list[list[ev.Event]]) -> None:
        """Make the claim and the epoch's first records durable, and begin to work."""
        self._flusher = threading.Thread(target=self._flush_in_thread, name="flusher", daemon=True)
        self._flusher.start()
        if self.read_only:
            return
        self.claim = claim
        for events in opening:
            self._append_own(events)
        await self.drained()
        self.opened_at = self.durable.seq
        self._refill()

    def _append_own(self, events: list[ev.Event], decision: Decision | None = None) -> None:
        """A record that the kernel makes by itself."""
        time = self.chain.next_time(self.clock.now())
        sealed = self.chain.record(time, ev.KERNEL_PRINCIPAL, ev.KERNEL_SYSCALL, None, None, events)
        self._push(sealed, None, decision)

    async def drained(self) -> None:
        """Return when everything decided so far is durable."""
        if self.durable.seq < self.chain.seq:
            waiter: asyncio.Future[None] = self.loop.create_future()
            self.when_durable(self.chain.seq, lambda: None if waiter.done() else waiter.set_result(None))
            await waiter

    async def stop(self) -> None:
        """Finish what was accepted, sign the end of the log, and release everything."""
        for timer in self._timers:
            timer.cancel()
        if self.stopped is None and not self.read_only:
            while self._gate is not None:  # noqa: ASYNC110  # Once in a life; an event would be one more thing to keep right.
                await asyncio.sleep(0.01)
            self.stopped = "the kernel is stopping"
            self._checkpoint_now()
            await self.drained()
        await self.effects.close()
        for task in list(self._tasks):
            task.cancel()
        self._jobs.put(None)
        if self._flusher is not None:
            await asyncio.to_thread(self._flusher.join)

    def fatal(self, what: str, error: BaseException) -> None:
        """An append or apply went wrong: say so and end. Callers learn that their outcome is unknown when we close."""
        if self.stopped is None:
            self.stopped = f"{what}: {error}"
            log_.critical(
                "%s: %s: %s. The kernel stops; restart it, nothing acknowledged is lost", what, type(error).__name__, error
            )
            self.on_fatal(self.stopped)

    def spawn(self, coroutine: Any, turn: Turn | None = None) -> asyncio.Task[None]:
        task = self.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if turn is not None:
            turn.cancel = task
        return task

    # -- call --------------------------------------------------------------------------------------------------------

    def call(self, peer: Peer, call_id: int, number: int, args: dict[str, Any], contents: list[memoryview]) -> Turn | None:
        """Run one syscall. `contents` are the mapped descriptors that came with it. Returns the turn unless it is over."""
        syscall = BY_NUMBER.get(number)
        if syscall is None:
            peer.send_error(call_id, MemNoCall(f"no syscall has number {number}"))
            peer.done(call_id)
            return None
        turn = Turn(peer, call_id, syscall, self.stats[number])
        request: Any = None
        try:
            request = syscall.request.model_validate(args)
            if number in ADMINS and not peer.caller.admin:
                raise answers_denied(syscall.name)
            if number in WRITES:
                self._write(turn, request, args, contents)
            elif peer.pending_writes and peer.last_write > self.durable.seq:
                # Read your writes: what this connection wrote before comes first.
                self.when_durable(peer.last_write, lambda: self._guarded(turn, request))
            else:
                self.reads[number](self, turn, request)
        except ValidationError as error:
            turn.fail(invalid(error))
        except MemError as error:
            self._refuse(turn, error, number in WRITES)
        except Damaged as error:
            turn.fail(damaged(error))
        except Exception as error:
            self.unexpected(turn, error)
        if turn.finished:
            return None
        if turn.timer is None:
            wait_ms = limits.DEADLINE_MS_DEFAULT if request is None else request.deadline_ms or limits.DEADLINE_MS_DEFAULT
            if number not in STREAMS:
                turn.timer = self.loop.call_later(wait_ms / 1000, turn.expire)
        return turn

    def _guarded(self, turn: Turn, request: Any) -> None:
        """A read that had to wait for its turn."""
        if turn.finished:
            return
        try:
            self.reads[turn.syscall.number](self, turn, request)
        except MemError as error:
            turn.fail(error)
        except Damaged as error:
            turn.fail(damaged(error))
        except Exception as error:
            self.unexpected(turn, error)

    def unexpected(self, turn: Turn, error: BaseException) -> None:
        """A defect of ours: the caller gets an answer, the log a trace; if state was being changed, the kernel stops."""
        log_.error("%s failed unexpectedly", turn.syscall.name, exc_info=error)
        if self.tables.changes or self.tables.payloads:
            self.fatal(f"{turn.syscall.name} failed while it changed the state", error)
        turn.fail(
            MemIO(f"the kernel failed inside {turn.syscall.name}: {type(error).__name__}", "Report this with the kernel's log.")
        )

    def _refuse(self, turn: Turn, error: MemError, write: bool) -> None:
        if write and self.durable.seq < self.chain.seq:
            self.when_durable(self.chain.seq, lambda: turn.fail(error))
        else:
            turn.fail(error)

    # -- writes ------------------------------------------------------------------------------------------------------

    def _write(self, turn: Turn, request: Any, args: dict[str, Any], mapped: list[memoryview]) -> None:
        if self.stopped is not None:
            raise MemAgain(self.stopped, outcome="none")
        if self.read_only:
            raise MemReadOnly("this kernel was started read-only")
        if self.disk_full and turn.syscall.name not in ("mem_free", "mem_shred"):
            raise MemNoSpace("the disk that holds the data directory is nearly full")
        raw = contents_of(request, mapped)
        digest = args_hash(turn.syscall.number, args, joined(raw))
        if self._gate is not None:
            self._gate.append(lambda: self._regated(turn, request, args, raw, digest))
            return
        self._write_now(turn, request, args, raw, digest)

    def _regated(self, turn: Turn, request: Any, args: dict[str, Any], raw: list[Any], digest: bytes) -> None:
        if turn.finished:
            return
        try:
            self._write_now(turn, request, args, raw, digest)
        except MemError as error:
            self._refuse(turn, error, True)
        except Damaged as error:
            turn.fail(damaged(error))
        except Exception as error:
            self.unexpected(turn, error)

    def _write_now(self, turn: Turn, request: Any, args: dict[str, Any], raw: list[Any], digest: bytes) -> None:
        """Authorise, decide, append and apply, now or behind the gate."""
        caller = turn.peer.caller
        mac = None if request.request_id is None else self.keys.request(caller.principal, request.request_id)
        if mac is not None and (seq := self.tables.request(mac)) is not None:
            self.when_durable(seq, lambda: self._repeat(turn, seq, digest, args))
            return
        decide = self.decisions[type(request)]
        needed = len(raw) + 8
        if self.vault.free_slots < needed or is_long(turn, request, raw):
            self._close_gate(self._write_long(turn, request, decide, mac, raw, digest), turn)
            return
        if self.vault.free_slots < LOW_SLOTS:
            self._refill()
        time = self.chain.next_time(self.clock.now())
        fresh = Fresh(self.vault, time)
        call = Call(request, caller, self.chain.seq + 1, time, fresh, self.opener, digest, raw)
        try:
            decision = decide(self.tables, call)
            sealed = self._seal(turn, decision, mac, time)
        except OutOfSlots:
            self._close_gate(self._write_long(turn, request, decide, mac, raw, digest), turn)
            return
        self._push(sealed, turn, decision)

    def _seal(self, turn: Turn, decision: Decision, mac: bytes | None, time: int) -> Sealed:
        stored: list[tuple[bytes, bytes]] = []
        events = self.vault.seal(decision.drafts, stored)
        sealed = self.chain.record(time, turn.peer.caller.principal, turn.syscall.number, mac, decision.note, events)
        if not self.chain.fits(sealed.data):
            raise MemTooLarge(
                f"the call makes a record of {len(sealed.data)} bytes; the limit is {limits.RECORD_BYTES_MAX}",
                "Send fewer items in one call.",
            )
        self.tables.payloads.extend(stored)
        return sealed

    def _push(self, sealed: Sealed, turn: Turn | None, decision: Decision | None) -> None:
        """Apply a sealed record on top of the pending state and queue it for the log."""
        try:
            apply(self.tables, sealed.record)
        except Exception as error:
            self.fatal(f"applying record {sealed.record.seq} failed", error)
            raise MemFenced("the kernel stops", outcome="unknown") from error
        self._enqueue(sealed, turn, decision)

    def _enqueue(
        self, sealed: Sealed, turn: Turn | None, decision: Decision | None, checkpoint: Checkpoint | None = None
    ) -> None:
        if checkpoint is None:
            self.chain.push(sealed)
        changes, payloads = self.tables.take()
        self._queue.append(Entry(sealed, changes, payloads, self.tables.digest, turn, decision, checkpoint))
        if turn is not None:
            turn.appended = True
            turn.peer.last_write = sealed.record.seq
            turn.peer.pending_writes += 1
        if checkpoint is None:
            if self.chain.checkpoint_due:
                self._checkpoint_now()
            elif self._checkpoint_timer is None:
                self._checkpoint_timer = self.loop.call_later(limits.CHECKPOINT_SECONDS * 0.9, self._checkpoint_tick)
        if not self._committing:
            self._committing = True
            self.loop.call_soon(self._commit)

    def _checkpoint_tick(self) -> None:
        self._checkpoint_timer = None
        if self.stopped is None:
            if self._gate is not None:
                self._gate.append(self._checkpoint_now)
            else:
                self._checkpoint_now()

    def _checkpoint_now(self) -> None:
        """Sign the head, if anything since the last checkpoint is not covered."""
        if not self.chain.uncovered:
            return
        time = self.chain.next_time(self.clock.now())
        sealed, checkpoint = self.chain.checkpoint(shown(self.tables.digest), time)
        apply(self.tables, sealed.record)
        self._enqueue(sealed, None, None, checkpoint)

    # -- long writes -------------------------------------------------------------------------------------------------

    def _close_gate(self, work: Any, turn: Turn) -> None:
        self._gate = deque()
        self.spawn(work, turn)

    async def _write_long(
        self, turn: Turn, request: Any, decide: Any, mac: bytes | None, raw: list[Any], digest: bytes
    ) -> None:
        """A write whose decision takes long, or that needs more slots, or whose content is stored beforehand."""
        try:
            await self.drained()
            while self.vault.free_slots < max(len(raw) + 8, LOW_SLOTS):
                await self._refilled()
            time = self.chain.next_time(self.clock.now())
            given: Slot | None = None
            contents = list(raw)
            if len(contents) == 1 and crypto.is_chunked(len(contents[0])):
                given = self._slot_for(request)
                # Refused now rather than after its content was stored: a decision has no effects, so it can be tried.
                dry = Fresh(self.vault, time, given)
                decide(self.tables, Call(request, turn.peer.caller, self.chain.seq + 1, time, dry, self.opener, digest, [b""]))
                contents[0] = await asyncio.to_thread(self._store_large_in_thread, contents[0], given)
            call = Call(
                request,
                turn.peer.caller,
                self.chain.seq + 1,
                time,
                Fresh(self.vault, time, given),
                self.opener,
                digest,
                contents,
            )
            decision, sealed = await asyncio.to_thread(self._decide_in_thread, turn, decide, call, mac)
            if turn.finished:
                # Cancelled or too late: nothing was appended, and nothing will be.
                self._drop()
                return
            await asyncio.to_thread(apply, self.tables, sealed.record)
            self._enqueue(sealed, turn, decision)
        except MemError as error:
            self._drop()
            turn.fail(error)
        except OutOfSlots:
            self._drop()
            turn.fail(MemAgain("the call needs more keys than are prepared"))
        except asyncio.CancelledError:
            if self.tables.changes:
                self.fatal("a long write was cut off while it was applied", RuntimeError("cancelled"))
            self._drop()
            raise
        except (Damaged, OSError) as error:
            if self.tables.changes:
                self.fatal("a long write failed while it was applied", error)
            self._drop()
            turn.fail(damaged(error))
        except Exception as error:
            self.unexpected(turn, error)
            self._drop()
        finally:
            waiting, self._gate = self._gate or deque(), None
            while waiting:
                if self._gate is not None:
                    self._gate.extend(waiting)
                    break
                waiting.popleft()()

    def _drop(self) -> None:
        """Forget payloads of a decision that was not applied."""
        self.tables.payloads.clear()

    def _decide_in_thread(self, turn: Turn, decide: Any, call: Call, mac: bytes | None) -> tuple[Decision, Sealed]:
        decision = decide(self.tables, call)
        return decision, self._seal(turn, decision, mac, call.now)

    def _slot_for(self, request: Any) -> Slot:
        """The slot that a cube's large content goes under: its own, or a fresh one."""
        from .governance import raw_id

        cube_id = getattr(request, "cube_id", None)
        cube = self.tables.cube(raw_id(cube_id)) if cube_id is not None else None
        return cube.slot if cube is not None and cube.slot is not None else self.vault.take_slot()

    def _store_large_in_thread(self, content: Any, slot: Slot) -> SealedContent:
        """Chunks are durable before the record that names them."""

        def write(key: bytes, chunk: bytes) -> None:
            batch = Batch()
            batch.put(PAYLOAD, key, chunk)
            self.store.write(batch)

        sealed = self.vault.seal_large(memoryview(content), slot, write)
        self.store.sync()
        return sealed

    async def _refilled(self) -> None:
        """Return when one more block of key slots is ready, or the kernel stops. Blocks are made by the flusher alone."""
        self._refill()
        waiter: asyncio.Future[None] = self.loop.create_future()
        self._in_thread(lambda: None, lambda _error: None if waiter.done() else waiter.set_result(None))
        await waiter

    def _refill(self) -> None:
        """Prepare another block of key slots, off the loop."""
        if self._refilling or self.stopped is not None:
            return
        self._refilling = True

        def done(error: BaseException | None) -> None:
            self._refilling = False
            if error is not None:
                self.fatal("making key slots failed", error)
            elif self.vault.free_slots < LOW_SLOTS:
                self._refill()

        self._in_thread(self.vault.prepare, done)

    # -- commit ------------------------------------------------------------------------------------------------------

    def _in_thread(self, work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        """Run disk work in the flusher, in order; `done` runs on the loop."""

        def job() -> None:
            error: BaseException | None = None
            try:
                work()
            except Exception as caught:
                error = caught
            self.loop.call_soon_threadsafe(done, error)

        self._jobs.put(job)

    def _flush_in_thread(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _commit(self) -> None:
        """Hand as many queued records as fit one frame to the log."""
        if not self._queue or self.stopped not in (None, "the kernel is stopping"):
            self._committing = False
            return
        entries: list[Entry] = []
        size = limits.FRAME_LOG_OVERHEAD_BYTES_MAX
        while self._queue:
            size += len(self._queue[0].sealed.data) + 5
            if entries and size > limits.FRAME_LOG_BYTES_MAX:
                break
            entries.append(self._queue.popleft())
        first, last = entries[0].sealed, entries[-1].sealed
        batch = Batch()
        puts = batch.puts
        merged: dict[bytes, bytes | None] = {}
        for entry in entries:
            merged.update(entry.changes)
            puts.extend((PAYLOAD, key, sealed) for key, sealed in entry.payloads)
        puts.extend((VIEW, key, value) for key, value in merged.items())
        digest = entries[-1].digest
        record = last.record
        applied = (record.seq, record.time, last.hash, digest.to_bytes(DIGEST_BYTES, "little"), self.chain.epoch)
        puts.append((VIEW, META_APPLIED, pack(applied)))
        frame = self.chain.frame(first.record.seq, self.durable.hash, [e.sealed.data for e in entries])
        append = Append(self.claim, frame, first.record.seq, first.record.time, batch)
        self.claim = None
        # Until the frame is durable, reads see the state before it.
        self.view = View(self.store.snapshot(VIEW))
        try:
            self.log.begin(append)
        except Exception as error:
            self.fatal(f"appending at offset {first.record.seq} failed", error)
            return
        where = Durable(record.seq, last.hash, digest, record.time)
        self._in_thread(lambda: self.log.finish(append), lambda error: self._committed(entries, merged, where, error))

    def _committed(
        self, entries: list[Entry], changes: dict[bytes, bytes | None], where: Durable, error: BaseException | None
    ) -> None:
        if error is not None:
            self.fatal(f"the log could not make offset {where.seq} durable", error)
            return
        self.view = self._live_view
        self.durable = where
        self.commits += 1
        self._last_commit = self.loop.time()
        self.committed_records += len(entries)
        self.tables.settle(changes)
        pending = self.vault.pending_payloads
        if pending:
            for entry in entries:
                for key, _sealed in entry.payloads:
                    pending.pop(key, None)
        checkpoint: Checkpoint | None = None
        self.cork()
        for entry in entries:
            checkpoint = entry.checkpoint or checkpoint
            record, turn = entry.sealed.record, entry.turn
            if turn is not None:
                turn.peer.pending_writes -= 1
            if turn is not None and turn.syscall.name == "mem_shred":
                self._carry_out(record, entry)
            elif turn is not None:
                turn.answer(answers.answer(self.view, record, entry.sealed.hash, self.keys))
            self.effects.committed(record, entry.decision)
        if checkpoint is not None:
            newest = checkpoint
            self._in_thread(lambda: self.vault.keystore.update(checkpoint=newest), self._key_store_written)
        while self._barriers and self._barriers[0][0] <= where.seq:
            self._barriers.popleft()[1]()
        self.uncork()
        for watcher in self._watchers:
            watcher.set()
        if self._queue:
            self._commit()
        else:
            self._committing = False

    def _key_store_written(self, error: BaseException | None) -> None:
        if error is not None:
            self.fatal("writing the key store failed", error)

    def _carry_out(self, record: Record, entry: Entry) -> None:
        """The shred record is durable: destroy the keys, then answer."""
        gone = answers.shredded_by(self.view, record)
        slots = shred_slots(self.view, gone)
        self.vault.forget(set(gone), set(slots))
        blind = self.effects.shredded(gone, answers.shred_heirs(self.view, record, gone))
        self._carrying[record.seq] = []

        def work() -> None:
            self.vault.destroy(slots)
            blind()
            self.vault.keystore.update(shred_seq=record.seq)

        def done(error: BaseException | None) -> None:
            if error is not None:
                self.fatal("destroying keys failed", error)
                return
            if entry.turn is not None:
                entry.turn.answer(answers.answer(self.view, record, entry.sealed.hash, self.keys))
            for waiting in self._carrying.pop(record.seq):
                waiting()

        self._in_thread(work, done)

    # -- waiting -----------------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether a commit is under way, or was a moment ago."""
        return self._committing or self.loop.time() - self._last_commit < BUSY_SECONDS

    def frozen_view(self) -> View:
        """Durable state as of now, for work that takes longer than a turn of the loop. From any thread."""
        view = self.view
        return View(self.store.snapshot(VIEW)) if view is self._live_view else view

    def owner(self, namespace: str) -> str | None:
        """Who owns a namespace that exists."""
        known = self.owners.get(namespace)
        if known is None:
            known = self.owners[namespace] = self.view.owner(namespace)
        return known

    def when_durable(self, seq: int, then: Callable[[], None]) -> None:
        """Run `then` when record `seq` is durable; at once when it is. Calls must come with non-decreasing offsets, or
        wait a little longer than they need."""
        if seq <= self.durable.seq:
            then()
            return
        if self._barriers and self._barriers[-1][0] > seq:
            seq = self._barriers[-1][0]
        self._barriers.append((seq, then))

    def watch(self) -> asyncio.Event:
        """An event that is set after every commit, until `unwatch`."""
        event = asyncio.Event()
        self._watchers.add(event)
        return event

    def unwatch(self, event: asyncio.Event) -> None:
        self._watchers.discard(event)

    def _repeat(self, turn: Turn, seq: int, digest: bytes, args: dict[str, Any]) -> None:
        """Answer a repeated request id from the record it made; a shred's only when the keys are gone."""
        if seq in self._carrying:
            self._carrying[seq].append(lambda: self._repeat(turn, seq, digest, args))
            return
        try:
            found = record_at(self.log, seq)
            if found is None:
                raise Damaged(f"the log has no record {seq}, which a request id names")
            data, record, frame = found
            if record.syscall != turn.syscall.number or not self._same(record, digest, args):
                raise MemInvalid("this request id was used for another call", "Use a new request id for a new call.")
            prev = frame.prev_hash
            for raw in frame.records[: seq - frame.first_seq]:
                prev = crypto.record_hash(prev, raw)
            turn.answer(answers.answer(self.view, record, crypto.record_hash(prev, data), self.keys))
        except MemError as error:
            turn.fail(error)
        except Damaged as error:
            turn.fail(damaged(error))

    def _same(self, record: Record, digest: bytes, args: dict[str, Any]) -> bool:
        """Whether a record was made by a call with these arguments (after a shred, as far as that is public)."""
        for event in record.events:
            if event.name in (ev.FORKED, ev.SHREDDED):
                return bool(event.fields[-1] == digest)
            if event.private is None:
                continue
            found = self.view.cube(event.fields[0])
            slot = (
                Slot(*event.fields[{ev.ALLOCATED: 5, ev.WRITTEN: 4}[event.name]])
                if event.name in (ev.ALLOCATED, ev.WRITTEN)
                else (found.slot if found else None)
            )
            opened = None if slot is None else self.vault.open_sealed_private(slot, *event.private)
            if opened is not None:
                return opened.args_hash == digest
        return answers.names_target(record, args)

    # -- ticks -------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Once a second: record the lives that ran out."""
        if self.stopped is not None or self.read_only or self._gate is not None:
            return
        decision = decide_expired(self.tables, self.clock.now(), EXPIRIES_PER_RECORD)
        if decision is not None:
            self._append_own(self.vault.seal(decision.drafts, []), decision)

    def every(self, seconds: float, work: Callable[[], None]) -> None:
        """Run `work` on the loop every so often until the kernel stops."""

        def run() -> None:
            if self.stopped is None:
                work()
                self._timers[:] = [
                    self.loop.call_later(seconds, run),
                    *(t for t in self._timers if not t.cancelled() and t.when() > self.loop.time()),
                ]

        self._timers.append(self.loop.call_later(seconds, run))


def shred_slots(view: View, cube_ids: list[bytes]) -> list[Slot]:
    """The keys that die with these cubes."""
    cubes = [view.cube(cube_id) for cube_id in cube_ids]
    return [cube.slot for cube in cubes if cube is not None and cube.slot is not None]


def contents_of(request: Any, mapped: list[memoryview]) -> list[Any]:
    """The contents of a call as bytes, or as the mapped descriptors that hold them."""
    if isinstance(request, m.MemAllocMany):
        items: list[Any] = list(request.items)
    elif isinstance(request, (m.MemAlloc, m.MemWrite)):
        items = [request]
    else:
        return []
    found: list[Any] = []
    for item in items:
        content, fd = item.content, item.fd
        if content is not None:
            found.append(content.encode() if isinstance(content, str) else content)
        elif fd is not None:
            if fd >= len(mapped):
                raise MemInvalid(f"fd names descriptor {fd}, but {len(mapped)} came with the call")
            if len(mapped[fd]) > limits.CONTENT_BYTES_MAX:
                raise MemTooLarge(f"content of {len(mapped[fd])} bytes is over the limit of {limits.CONTENT_BYTES_MAX}")
            found.append(mapped[fd])
        else:
            continue
        if fd is None and len(found[-1]) > limits.CONTENT_INLINE_BYTES_MAX:
            raise MemTooLarge(f"inline content of {len(found[-1])} bytes is over {limits.CONTENT_INLINE_BYTES_MAX}")
    return found


def joined(contents: list[Any]) -> bytes | None:
    """What H(arguments) covers of the contents."""
    if not contents:
        return None
    return bytes(contents[0]) if len(contents) == 1 else b"".join(crypto.sha256(content) for content in contents)


def is_long(turn: Turn, request: Any, contents: list[Any]) -> bool:
    """Whether a write might hold the loop for more than a moment."""
    if turn.syscall.number in LONGS and not (turn.syscall.name == "mem_shred" and request.cube_id is not None):
        return turn.syscall.name != "mem_fuse" or len(request.cube_ids) > LONG_ITEMS
    if len(contents) > LONG_ITEMS:
        return True
    return any(len(content) > limits.PAYLOAD_CHUNK_BYTES // 2 for content in contents)


def invalid(error: ValidationError) -> MemInvalid:
    """The first problems of a request, in words."""
    said = [
        f"{'.'.join(str(p) for p in e['loc']) or 'request'}: {e['msg'].removeprefix('Value error, ')}"
        for e in error.errors()[:3]
    ]
    return MemInvalid("; ".join(said))


def damaged(error: BaseException) -> MemError:
    return MemIO(str(error), "Run `memctl verify` on the data directory; restore from a backup what it names.")


def answers_denied(name: str) -> MemError:
    return MemDenied(f"{name} is for the kernel's own user")


__all__ = ["Durable", "Kernel", "shred_slots"]
