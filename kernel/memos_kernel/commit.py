"""The commit that many calls share: records that were decided become one frame, durable, answered.

- `push` applies a decided record on top of the pending state and queues it. Everything queued goes to the log as one
  frame; one frame is under way at a time, and its callers are answered when the log says durable.
- Disk work runs in one thread, the flusher, in order: syncs, key slots, the destruction of keys.
- `tables` is the state with everything decided; `view` is what is durable, and what reads see: while a frame is under
  way it is a snapshot from before it.
- An error in append or apply stops the kernel (`fatal`). The only caller of `EventLog.begin` and `finish`.
- With a log that others can reach, `succession` decides what follows when an append is settled by a new claim.

Runs on the event loop, but for what `in_thread` is given.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from memos_drivers.stores.base import PAYLOAD, VIEW, Batch, Store
from memos_syscalls import limits
from memos_syscalls.errors import MemError, MemFenced, MemIO

from . import answers
from . import events as ev
from .chain import Chain, LogKeys, Sealed
from .clock import Clock
from .decide import Decision
from .effects import Effects
from .eventlog.base import Append, Ended, EventLog, OutOfReach, Renewed
from .events import Checkpoint, Record, Slot, pack
from .hosttier import HostTier
from .mapping import Maps
from .reducer import apply
from .state import DIGEST_BYTES, META_APPLIED, Tables, View, shown
from .turn import Turn
from .vault import Vault

if TYPE_CHECKING:
    from .evolve import Evolution
    from .runtime import Runtime
    from .succession import Succession

log_ = logging.getLogger("memos.kernel")

LOW_SLOTS: Final = limits.KEY_SLOTS_PER_BLOCK
BUSY_SECONDS: Final = 0.003
STOPPING: Final = "the kernel is stopping"


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


class Commits:
    """State, log and keys of one running kernel, and the way from a decision to durable."""

    def __init__(
        self, *, clock: Clock, store: Store, log: EventLog, keys: LogKeys, vault: Vault, chain: Chain, digest: int,
        effects: Effects, on_fatal: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.clock = clock
        self.store = store
        self.log = log
        self.keys = keys
        self.vault = vault
        self.chain = chain
        self.effects = effects
        self.hosttier: HostTier
        """Payloads in memory; set by who assembles the kernel."""
        self.maps = Maps()
        self.on_fatal = on_fatal
        self.tables = Tables(store.live(VIEW), digest)
        self._live_view = View(store.live(VIEW))
        self.view = self._live_view
        """Durable state: what reads see."""
        self.durable = Durable(chain.seq, chain.hash, digest, chain.time)
        self.commits = 0
        self.committed_records = 0
        self.stopped: str | None = None
        """Why nothing more is accepted; None while the kernel works."""
        self.claim: tuple[int, bytes] | None = None
        """The claim that opens this epoch, until its first frame carries it."""
        self.renewing = False
        """A new epoch is being opened after a failed append: nothing is decided before it is."""
        self.gate_closed = False
        """A long write has the tables to itself."""
        self.line: deque[tuple[Turn | None, Callable[[], None]]] = deque()
        """What waits for the gate, or for its turn, in order; with the call that it is of."""
        self.carrying: dict[int, list[Callable[[], None]]] = {}
        """Shreds whose keys are being destroyed, with the repeats that wait for them."""
        self.fenced = False
        """Another kernel took over."""
        self.succession: Succession | None = None
        """What a log that others can reach asks of its kernel; None for a log of our own."""
        self.go_on: Callable[[], None] = lambda: None
        """Let what waits in line go on."""
        self.cork: Callable[[], None] = lambda: None
        """Hold replies back, so that those to one connection leave in one send; `uncork` lets them go."""
        self.uncork: Callable[[], None] = lambda: None
        self.tasks: set[asyncio.Task[Any]] = set()
        self.runtime: Runtime
        """What runs models; given by who assembles the kernel."""
        self.evolution: Evolution
        """Adapters that follow their sources; given like it."""
        self.loop = asyncio.get_running_loop()
        self._queue: deque[Entry] = deque()
        self._under_way: list[Entry] = []
        """Records of the frame that the log has not acknowledged yet."""
        self._committing = False
        self._last_commit = 0.0
        self._barriers: deque[tuple[int, int, Callable[[], None], Callable[[MemError], None] | None]] = deque()
        """From which offset on, which offset was asked for, what then, and what if it is lost."""
        self._drained: set[asyncio.Future[None]] = set()
        self._after_renewal: list[Callable[[], None]] = []
        self._refilling = False
        self._wanted_slots = LOW_SLOTS
        self._watchers: set[asyncio.Event] = set()
        self._checkpoint_timer: asyncio.TimerHandle | None = None
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._flusher = threading.Thread(target=self._flush_in_thread, name="flusher", daemon=True)
        self._flusher.start()

    async def end_flusher(self) -> None:
        """Let the flusher finish what it was given, and end."""
        self._jobs.put(None)
        await asyncio.to_thread(self._flusher.join)

    async def drained(self) -> None:
        """Return when everything decided so far is durable; raises `OSError` when the kernel stops first."""
        while self.renewing or self.durable.seq < self.chain.seq:
            if self.ended_for_good:
                raise OSError(self.stopped)
            waiter: asyncio.Future[None] = self.loop.create_future()
            self._drained.add(waiter)

            def wake(waiter: asyncio.Future[None] = waiter) -> None:
                if not waiter.done():
                    waiter.set_result(None)

            if self.renewing:
                self._after_renewal.append(wake)
            else:
                self.when_durable(self.chain.seq, wake)
            try:
                await waiter
            finally:
                self._drained.discard(waiter)

    def fatal(self, what: str, error: BaseException) -> None:
        """An append or apply went wrong: say so and end. Callers learn that their outcome is unknown when we close."""
        named = f"{what}: {type(error).__name__}: {error}"
        self._stop(f"{what}: {error}", f"{named}. The kernel stops; restart it, nothing acknowledged is lost")

    def _stop(self, why: str, said: str) -> None:
        if not self.ended_for_good:
            self.stopped = why
            log_.critical("%s", said)
            self.on_fatal(self.stopped)
            for waiter in self._drained:
                if not waiter.done():
                    waiter.set_exception(OSError(self.stopped))

    def spawn(self, coroutine: Any, turn: Turn | None = None) -> asyncio.Task[Any]:
        task = self.loop.create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        if turn is not None:
            turn.cancel = task
        return task

    # -- from a decision to the queue ------------------------------------------------------------------------------------

    def append_own(self, events: list[ev.Event], decision: Decision | None = None) -> None:
        """A record that the kernel makes by itself."""
        time = self.chain.next_time(self.clock.now())
        sealed = self.chain.record(time, ev.KERNEL_PRINCIPAL, ev.KERNEL_SYSCALL, None, None, events)
        self.push(sealed, None, decision)

    def push(self, sealed: Sealed, turn: Turn | None, decision: Decision | None) -> None:
        """Apply a sealed record on top of the pending state and queue it for the log."""
        try:
            apply(self.tables, sealed.record)
        except Exception as error:
            self.fatal(f"applying record {sealed.record.seq} failed", error)
            raise MemFenced("the kernel stops", outcome="unknown") from error
        self.enqueue(sealed, turn, decision)

    def enqueue(
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
                self.checkpoint_now()
            elif self._checkpoint_timer is None:
                self._checkpoint_timer = self.loop.call_later(limits.CHECKPOINT_SECONDS * 0.9, self._checkpoint_tick)
        if not self._committing:
            self._committing = True
            self.loop.call_soon(self._commit)

    def _checkpoint_tick(self) -> None:
        self._checkpoint_timer = None
        if self.stopped is None:
            if self.gated:
                self.line.append((None, self.checkpoint_now))
            else:
                self.checkpoint_now()

    def checkpoint_now(self) -> None:
        """Sign the head, if anything since the last checkpoint is not covered."""
        if not self.chain.uncovered:
            return
        time = self.chain.next_time(self.clock.now())
        sealed, checkpoint = self.chain.checkpoint(shown(self.tables.digest), time)
        apply(self.tables, sealed.record)
        self.enqueue(sealed, None, None, checkpoint)

    # -- from the queue to the log ---------------------------------------------------------------------------------------

    def _commit(self) -> None:
        """Hand as many queued records as fit one frame to the log."""
        if not self._queue or self.ended_for_good:
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
        if first.record.seq != self.durable.seq + 1 or first.record.epoch != self.chain.epoch:
            self.fatal("a frame was made", AssertionError(f"record {first.record.seq} does not continue {self.durable.seq}"))
            return
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
        append = Append(self.claim, frame, first.record.seq, first.record.time, batch, last.hash, self.chain.claim_id)
        self.claim = None
        # Until the frame is durable, reads see the state before it.
        self.view = View(self.store.snapshot(VIEW))
        try:
            self.log.begin(append)
        except Exception as error:
            self.fatal(f"appending at offset {first.record.seq} failed", error)
            return
        where = Durable(record.seq, last.hash, digest, record.time)
        self._under_way = entries
        self.in_thread(lambda: self.log.finish(append), lambda error: self._committed(entries, where, error))

    def _committed(self, entries: list[Entry], where: Durable, error: BaseException | None) -> None:
        if self.ended_for_good:
            return
        self._under_way = []
        self.renewing = isinstance(error, Renewed) and self.succession is not None
        if isinstance(error, Renewed) and error.counted:
            queued = list(self._queue)
            self._queue.clear()
            self._settle_or_stop(entries, where)
            self.append_failed(queued, error)
        elif error is not None:
            queued = list(self._queue)
            self._queue.clear()
            self._committing = False
            self.append_failed([*entries, *queued], error)
        else:
            self._settle_or_stop(entries, where)

    def _settle_or_stop(self, entries: list[Entry], where: Durable) -> None:
        try:
            self._settle(entries, where)
        except Exception as defect:
            # The log has the records; whoever waits for them learns it after the restart.
            self.fatal(f"what follows offset {where.seq} failed", defect)

    def append_failed(self, entries: list[Entry], error: BaseException) -> None:
        """The log did not acknowledge these records, or it is not known."""
        self.view = self._live_view
        if isinstance(error, Renewed) and self.succession is not None:
            log_.warning("the log is written in epoch %d from now on: %s", error.opened.epoch, error)
            self.succession.renewed(entries, error)
            return
        self._under_way = entries
        if isinstance(error, Ended):
            self.ended(str(error), error.fenced)
        else:
            self.fatal("the log could not make records durable", error)

    def ended(self, why: str, fenced: bool) -> None:
        """This kernel may write no more. Those who wait do not learn that their call failed: it may have gone through."""
        if self.ended_for_good:
            return
        self.fenced = fenced
        advice = "Repeat it with the same request id."
        unknown = MemFenced(why, outcome="unknown") if fenced else MemIO(why, advice, outcome="unknown")
        for entry in (*self._under_way, *self._queue):
            if entry.turn is not None:
                entry.turn.fail(unknown)
        if fenced:
            said = f"this kernel was replaced: {why}. It stops; nothing acknowledged is lost, the other kernel has it"
        else:
            said = (
                f"the log cannot be written any more: {why}. The kernel stops. Its directory holds every record that it "
                "acknowledged: keep it until the log is whole again"
            )
        self._stop(why, said)

    def undecided(self, why: MemError, kept_seq: int) -> None:
        """A renewal is over, and records after `kept_seq` are lost: what rested on one of them must be asked again; whoever
        only waits until nothing is under way waits for the epoch's first records too."""
        self.renewing = False
        barriers, self._barriers = self._barriers, deque()
        for _seq, wanted, then, lost in barriers:
            if lost is not None and wanted > kept_seq:
                lost(why)
            else:
                self.when_durable(self.chain.seq, then)
        waiting, self._after_renewal = self._after_renewal, []
        for wake in waiting:
            wake()
        self.go_on()

    def _settle(self, entries: list[Entry], where: Durable) -> None:
        """The frame is durable: let reads see it, answer its callers, begin its effects."""
        self.view = self._live_view
        self.durable = where
        self.commits += 1
        self._last_commit = self.loop.time()
        self.committed_records += len(entries)
        for entry in entries:
            self.tables.settle(entry.changes)
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
                turn.answer(answers.answer(self.view, record, entry.sealed.hash, self.keys) | turn.also)
            self.effects.committed(record, entry.decision)
            self.hosttier.committed(record)
            self.evolution.committed(record)
        if checkpoint is not None:
            newest = checkpoint
            self.in_thread(lambda: self.vault.keystore.update(checkpoint=newest), self._key_store_written)
        while self._barriers and self._barriers[0][0] <= where.seq and not self.renewing:
            self._barriers.popleft()[2]()
        self.uncork()
        self.news()
        if self._queue:
            self._commit()
        else:
            self._committing = False
        if self.line:
            self.go_on()

    def news(self) -> None:
        """Wake those who follow the log."""
        for watcher in self._watchers:
            watcher.set()

    def _key_store_written(self, error: BaseException | None) -> None:
        if error is not None:
            self.fatal("writing the key store failed", error)

    def _carry_out(self, record: Record, entry: Entry) -> None:
        """The shred record is durable: find what it erased, destroy the keys, then answer. The walks are off the loop."""
        view = self.frozen_view()
        self.carrying[record.seq] = []
        found: list[tuple[list[bytes], list[Slot], dict[bytes, int]]] = []
        reply: list[dict[str, Any]] = []
        blind: list[Callable[[], None]] = []
        payloads: list[list[bytes]] = []

        def find() -> None:
            gone = answers.shredded_by(view, record)
            found.append((gone, shred_slots(view, gone), answers.shred_heirs(view, record, gone)))
            payloads.append(tensor_payloads(view, gone))

        def forget(error: BaseException | None) -> None:
            if error is not None:
                self.fatal("a shred could not be carried out", error)
                return
            gone, slots, heirs = found[0]
            self.vault.forget(set(gone), set(slots))
            self.hosttier.forget(slots)
            self.maps.erased(record.seq, slots)
            held = self.runtime.erased(set(gone), payloads[0], set(heirs))
            blind.append(self.effects.shredded(gone, heirs, None if self.succession is None else record.seq))
            if held:
                self.spawn(drop_then_destroy())
            else:
                self.in_thread(destroy, done)

        async def drop_then_destroy() -> None:
            """Whatever a device holds of it goes first, then the keys."""
            try:
                await self.runtime.drop(payloads[0], erased=True)
            except Exception as error:
                # The host ends with this process, and what it holds with it; the next start erases.
                self.fatal("a shred could not be carried out on the device", error)
            else:
                self.in_thread(destroy, done)

        def destroy() -> None:
            self.vault.destroy(found[0][1])
            blind[0]()
            self.vault.keystore.update(shred_seq=record.seq)
            if entry.turn is not None:
                reply.append(answers.answer(view, record, entry.sealed.hash, self.keys, self.erased_by_now()))

        def done(error: BaseException | None) -> None:
            if error is not None:
                self.fatal("destroying keys failed", error)
                return
            if entry.turn is not None:
                reply[0]["report"]["maps"] = self.maps.of_shred(record.seq)
                self.evolution.fill(record)
                self.evolution.name_jobs(reply[0]["report"])
                entry.turn.answer(reply[0])
            for waiting in self.carrying.pop(record.seq):
                waiting()

        self.in_thread(find, forget)

    def erased_by_now(self) -> answers.Erasure | None:
        """What a receipt says of keys that were destroyed up to now."""
        now = self.clock.now()
        gone_by = self.vault.keystore.gone_by(now)
        return None if gone_by is None else answers.Erasure(now, gone_by)

    def tend_keys(self, tidy: bool = False) -> None:
        """Let copies of destroyed keys go away in time; with `tidy`, destroy again what others brought back."""
        keystore = self.vault.keystore

        def work() -> None:
            keystore.nudge()
            if tidy:
                try:
                    keystore.tidy()
                except OutOfReach as error:
                    # Another time; what is destroyed is destroyed.
                    log_.warning("the key store was not looked through: %s", error)

        self.in_thread(work, self._key_store_written)

    # -- the flusher -----------------------------------------------------------------------------------------------------

    def in_thread(self, work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
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

    async def refilled(self, wanted: int) -> None:
        """Return when one more block of key slots is ready, or the kernel stops. Blocks are made by the flusher alone."""
        self._wanted_slots = max(self._wanted_slots, wanted)
        self.refill()
        waiter: asyncio.Future[None] = self.loop.create_future()
        self.in_thread(lambda: None, lambda _error: None if waiter.done() else waiter.set_result(None))
        await waiter

    def refill(self) -> None:
        """Prepare another block of key slots, off the loop."""
        if self._refilling or self.stopped is not None:
            return
        self._refilling = True

        def done(error: BaseException | None) -> None:
            self._refilling = False
            if error is not None:
                self.fatal("making key slots failed", error)
            elif self.vault.free_slots < self._wanted_slots:
                self.refill()
            else:
                self._wanted_slots = LOW_SLOTS

        self.in_thread(self.vault.prepare, done)

    # -- waiting ---------------------------------------------------------------------------------------------------------

    @property
    def ended_for_good(self) -> bool:
        """Whether nothing is written any more; a kernel that is stopping still is."""
        return self.stopped not in (None, STOPPING)

    @property
    def gated(self) -> bool:
        """Whether nothing may be decided now but by who closed the gate."""
        return self.gate_closed or self.renewing

    @property
    def committing(self) -> bool:
        """Whether a frame is under way."""
        return self._committing

    @property
    def busy(self) -> bool:
        """Whether a commit is under way, or was a moment ago."""
        return self._committing or self.loop.time() - self._last_commit < BUSY_SECONDS

    def thaw(self) -> None:
        """Reads see what is there now; the store was written while they had another view."""
        self.view = self._live_view

    def frozen_view(self) -> View:
        """Durable state as of now, for work that takes longer than a turn of the loop. Made on the loop, used anywhere."""
        view = self.view
        return View(self.store.snapshot(VIEW)) if view is self._live_view else view

    def when_durable(self, seq: int, then: Callable[[], None], lost: Callable[[MemError], None] | None = None) -> None:
        """Run `then` when record `seq` is durable; at once when it is. Calls must come with non-decreasing offsets, or
        wait a little longer than they need. Should the record never become durable, `lost` learns why; without it, `then`
        runs when nothing is under way any more."""
        if seq <= self.durable.seq:
            then()
            return
        wanted = seq
        if self._barriers and self._barriers[-1][0] > seq:
            seq = self._barriers[-1][0]
        self._barriers.append((seq, wanted, then, lost))

    def watch(self) -> asyncio.Event:
        """An event that is set after every commit, until `unwatch`."""
        event = asyncio.Event()
        self._watchers.add(event)
        return event

    def unwatch(self, event: asyncio.Event) -> None:
        self._watchers.discard(event)


def shred_slots(view: View, cube_ids: list[bytes]) -> list[Slot]:
    """The keys that die with these cubes."""
    cubes = [view.cube(cube_id) for cube_id in cube_ids]
    return [cube.slot for cube in cubes if cube is not None and cube.slot is not None]


def tensor_payloads(view: View, cube_ids: list[bytes]) -> list[bytes]:
    """Payload ids of every version of those cubes that hold tensors: what tiers know them by."""
    found: list[bytes] = []
    for cube_id in cube_ids:
        cube = view.cube(cube_id)
        if cube is None or cube.form == "plaintext":
            continue
        rows = (view.version(cube, number) for number in range(1, cube.version + 1))
        found += [row[0].payload_id for row in rows if row is not None]
    return found


def damaged(error: BaseException) -> MemError:
    return MemIO(str(error), "Run `memctl verify` on the data directory; restore from a backup what it names.")
