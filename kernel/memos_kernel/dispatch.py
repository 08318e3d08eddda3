"""call(): the one path of every syscall.

    decode → look up → authorise → decide → append → apply → effects → reply

- Everything here runs on the event loop, one call at a time, but for what is named `_in_thread`. A long decision closes
  the gate and has the tables to itself: other writes wait for it in order, reads go on.
- `decide` sees the view and every record decided before, durable or not (`tables`); reads see durable state only
  (`view`). An answer that rests on a record which is not durable yet waits for it: a reply, and a refusal too.
- A call can be cancelled, or run out of time, until its record is being applied; from then on it goes through, and an
  early answer says that the outcome is unknown.
- A bad request never stops the kernel; a defect of ours is answered with `EIO`, and stops it if state was being changed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, Final

from pydantic import ValidationError

from memos_drivers.host.client import Host
from memos_drivers.stores.base import Reader, Store
from memos_syscalls import limits
from memos_syscalls import messages as m
from memos_syscalls.errors import (
    MemAgain,
    MemCanceled,
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
from .census import Census
from .chain import Chain, LogKeys, Sealed
from .checking import Checks
from .clock import Clock
from .commit import LOW_SLOTS, STOPPING, Commits, damaged
from .decide import Call, Decision, decide_expired
from .decide_shred import Decisions
from .effects import Effects
from .eventlog.base import EventLog, record_at
from .events import Damaged, Record, Slot
from .evolve import Evolution
from .governance import raw_id
from .jobs import Jobs
from .longreads import LongReads
from .orphans import orphans
from .reducer import apply
from .renewal import Renewals
from .runtime import Runtime
from .snapshot import Snapshots
from .state import Cube
from .stats import Histogram
from .turn import Peer, Turn
from .vault import OutOfSlots, SealedContent, Vault, ViewOpener
from .writes import Abandoned, Fresh, Write, check_text, contents_are_text, contents_of, invalid

log_ = logging.getLogger("memos.kernel")

WRITES: Final = frozenset(call.number for call in TABLE if call.flags & Flag.WRITE)
ADMINS: Final = frozenset(call.number for call in TABLE if call.flags & Flag.ADMIN)
STREAMS: Final = frozenset(call.number for call in TABLE if call.flags & Flag.STREAM)
LONGS: Final = frozenset(call.number for call in TABLE if call.flags & Flag.LONG)
SPARE_SLOTS: Final = 8
"""Key slots that a decision may need beside one for each content."""
WRITES_SECONDS: Final = 0.001
"""Share of a turn of the loop that decisions may take."""
OF_CUBES: Final = frozenset(call.number for call in TABLE if call.name.startswith("mem_"))
LONG_ITEMS: Final = 48
LONG_BYTES: Final = limits.PAYLOAD_CHUNK_BYTES // 2
"""Decisions over more items or longer contents run in a thread, so that no turn of the loop grows long."""
EXPIRIES_PER_RECORD: Final = 128
STOP_SECONDS: Final = 10
LINE_SEEN: Final = 16
"""Writes in line from which on those that were given up are looked for."""


class Kernel(Commits):
    """One running kernel: `call`, and everything a call needs."""

    def __init__(
        self, *, clock: Clock, store: Store, log: EventLog, keys: LogKeys, vault: Vault, chain: Chain, digest: int,
        decisions: Decisions, effects: Effects, read_only: bool, on_fatal: Callable[[str], None], snapshots: Snapshots,
        host: Host | None = None, models: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        super().__init__(
            clock=clock, store=store, log=log, keys=keys, vault=vault, chain=chain, digest=digest, effects=effects,
            on_fatal=on_fatal,
        )  # fmt: skip
        self.decisions = decisions
        self.read_only = read_only
        self.closed: str | None = None
        """Why this copy of the log may not be written, though its kernel was not started read-only."""
        self.snapshots = snapshots
        self.job_of: Callable[[Any], Callable[[Kernel, Write], None] | None] = lambda request: None
        """What begins the job of a write that a driver must prepare; None for a write that is decided at once."""
        self.runtime = Runtime(Jobs(self.spawn, clock.now), host, models)
        self.renewals = Renewals(self)
        self.checks = Checks(self)
        self.census = Census(self)
        self.evolution = Evolution(self)
        self.opener = ViewOpener(vault, self.tables)
        self.stats = {call.number: Histogram() for call in TABLE}
        self.disk_full = False
        self.room: Callable[[], int] = lambda: 2**62
        """Bytes that may be written before the disk's reserve is touched."""
        self.reads: dict[int, Callable[[Kernel, Turn, Any], None]] = {}
        """Handlers of calls that append nothing, by number; see reads.py."""
        self.owners: dict[str, str | None] = {}
        """Owners of namespaces that exist; an owner never changes."""
        self.started = self.loop.time()
        self.opened_at = chain.seq
        """Offset at which this kernel began to serve."""
        self.connections: Callable[[], int] = lambda: 0
        self.data_dir = ""
        """For who asks where the log is."""
        self.long_reads = LongReads(self.spawn)
        self.large_writes = LongReads(self.spawn)
        self.go_on = self._go_on
        self._line_seen = LINE_SEEN
        self._turn_until = 0.0
        self._going_on = False
        self._timers: list[asyncio.TimerHandle] = []

    # -- life --------------------------------------------------------------------------------------------------------

    async def start(self, claim: tuple[int, bytes] | None, opening: list[list[ev.Event]]) -> None:
        """Make the claim and the epoch's first records durable, and begin to work."""
        if self.read_only:
            return
        self.claim = claim
        for events in opening:
            self.append_own(events)
        await self.drained()
        self.opened_at = self.durable.seq
        self.refill()
        self.evolution.start()

    async def stop(self) -> None:
        """Finish what was accepted, sign the end of the log, and release everything."""
        for timer in self._timers:
            timer.cancel()
        if self.stopped is None and not self.read_only:
            until = self.loop.time() + STOP_SECONDS
            while (self.gated or self.line) and not self.log.away and self.loop.time() < until:  # noqa: ASYNC110  # Once in a life.
                await asyncio.sleep(0.01)
            self.stopped = STOPPING
            if not self.renewing:
                self.checkpoint_now()
            try:
                await asyncio.wait_for(self.drained(), STOP_SECONDS)
            except (OSError, TimeoutError) as error:
                log_.error("the end of the log was not signed: %s", str(error) or "the log is out of reach")
        await self.runtime.close()
        await self.effects.close()
        for task in list(self.tasks):
            task.cancel()
        self.hosttier.close()
        if self.succession is not None:
            # What waits for a log, or for keys, out of reach gives up; that is no failure.
            self.stopped = "the kernel stopped"
            closing = asyncio.to_thread(self.log.close), asyncio.to_thread(self.vault.keystore.close)
            if self.read_only:
                # A standby's tail may be waiting for keys.
                await asyncio.gather(*closing)
            else:
                # A writer's last words go to the key store.
                for close in closing:
                    await close
        await self.end_flusher()

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

        def work() -> None:
            nonlocal request
            request = syscall.request.model_validate(args)
            if number in ADMINS and not peer.caller.admin:
                raise MemDenied(f"{syscall.name} is for the kernel's own user")
            if number in WRITES:
                self._write(Write(turn, request, args), contents)
            elif peer.pending_writes and peer.last_write > self.durable.seq:
                # Read your writes: what this connection wrote before comes first.
                self.when_durable(peer.last_write, lambda: self._guarded(turn, read_when_sure))
            else:
                read_when_sure()

        def read_when_sure() -> None:
            if self.succession is not None and number in OF_CUBES:
                self.succession.when_sure(turn, lambda: self._guarded(turn, read))
            else:
                read()

        def read() -> None:
            self.reads[number](self, turn, request)

        self._guarded(turn, work)
        if turn.finished:
            return None
        if turn.timer is None:
            wait_ms = syscall.deadline_ms if request is None else request.deadline_ms or syscall.deadline_ms
            if number not in STREAMS:
                turn.timer = self.loop.call_later(wait_ms / 1000, turn.expire)
        return turn

    def _guarded(self, turn: Turn, work: Callable[[], None]) -> None:
        """Go on with a call that had to wait; whatever is raised is its answer."""
        if turn.finished:
            return
        try:
            work()
        except ValidationError as error:
            turn.fail(invalid(error))
        except MemError as error:
            self._refuse(turn, error, turn.syscall.number in WRITES)
        except Damaged as error:
            turn.fail(damaged(error))
        except Exception as error:
            self.unexpected(turn, error)

    def unexpected(self, turn: Turn, error: BaseException) -> None:
        """A defect of ours: the caller gets an answer, the log a trace; if state was being changed, the kernel stops."""
        log_.error("%s failed unexpectedly", turn.syscall.name, exc_info=error)
        if turn.appended or (self.tables.changes and not self.gated):
            self.fatal(f"{turn.syscall.name} failed while it changed the state", error)
        turn.fail(
            MemIO(f"the kernel failed inside {turn.syscall.name}: {type(error).__name__}", "Report this with the kernel's log.")
        )

    def _refuse(self, turn: Turn, error: MemError, write: bool) -> None:
        if write and self.durable.seq < self.chain.seq:
            self.when_durable(self.chain.seq, lambda: turn.fail(error), turn.fail)
        else:
            turn.fail(error)

    # -- writes ------------------------------------------------------------------------------------------------------

    def _write(self, write: Write, mapped: list[memoryview]) -> None:
        if self.stopped is not None:
            raise MemAgain(self.stopped)
        if self.read_only:
            standby = self.succession is not None and self.succession.standby
            why = "this kernel is a standby" if standby else "this kernel was started read-only"
            raise MemReadOnly(self.closed or why)
        if write.turn.syscall.name not in ("mem_free", "mem_shred"):
            self._refuse_when_full()
        write.contents = contents_of(write.request, mapped)
        if (launch := self.job_of(write.request)) is not None:
            self._begin_job(write, lambda: launch(self, write))
            return
        self._admit(write)

    def _admit(self, write: Write) -> None:
        if isinstance(write.request, (m.MemAlloc, m.MemWrite)) and any(crypto.is_chunked(len(c)) for c in write.contents):
            self.large_writes.submit(write.turn, lambda: self._write_large(write))
            return
        self._wait_in_line(write)

    def admit(self, write: Write) -> None:
        """Let a write that had to be prepared take its place in the line; whatever refuses it is its answer."""
        self._guarded(write.turn, lambda: self._admit(write))

    def _refuse_when_full(self) -> None:
        if self.disk_full:
            raise MemNoSpace("the disk that holds the data directory is nearly full")

    def _begin_job(self, write: Write, launch: Callable[[], None]) -> None:
        """A job reads before it writes, and may answer from what it read: it sees what its connection wrote before, and
        begins where a read would be answered."""
        turn = write.turn

        def go() -> None:
            if self.succession is None:
                self.once(write, launch)
            else:
                self.succession.when_sure(turn, lambda: self._guarded(turn, lambda: self.once(write, launch)))

        if turn.peer.pending_writes and turn.peer.last_write > self.durable.seq:
            self.when_durable(turn.peer.last_write, lambda: self._guarded(turn, go))
        else:
            go()

    def _wait_in_line(self, write: Write) -> None:
        """Decide now, or when those that came before have been decided."""
        if self.log.away:
            # What is decided now could only wait behind a frame that the log does not take.
            write.turn.waits = "the log is out of reach; nothing was sent"
        elif not (self.line or self.gated or self._turn_is_spent()):
            self._write_now(write)
            return
        self._forget_finished()
        self.line.append((write.turn, lambda: self._guarded(write.turn, lambda: self._write_now(write))))
        self._go_on()

    def _forget_finished(self) -> None:
        """While the log is away callers give up, and come again: what they sent must not pile up."""
        if self.log.away and len(self.line) >= self._line_seen:
            self.line = deque(entry for entry in self.line if entry[0] is None or not entry[0].finished)
            self._line_seen = max(LINE_SEEN, 2 * len(self.line))

    def _turn_is_spent(self) -> bool:
        """Whether writes had their share of this turn of the loop; reads are served whatever writes there are."""
        now = perf_counter()
        if not self._turn_until:
            self._turn_until = now + WRITES_SECONDS
            self.loop.call_soon(self._end_turn)
        return now > self._turn_until

    def _end_turn(self) -> None:
        self._turn_until = 0.0

    def _go_on(self) -> None:
        if not self._going_on and not self.gated and not self.log.away:
            self._going_on = True
            self.loop.call_soon(self._next_in_line)

    def _next_in_line(self) -> None:
        """Writes that waited, for their share of a turn."""
        self._going_on = False
        until = perf_counter() + WRITES_SECONDS
        while self.line and not self.gated and perf_counter() < until:
            self.line.popleft()[1]()
        if self.line:
            self._go_on()

    def _write_now(self, write: Write) -> None:
        """Authorise, decide, append and apply, now or behind the gate."""
        self.once(write, lambda: self._decide_now(write))

    def once(self, write: Write, then: Callable[[], None]) -> None:
        """Go on with a write, unless its request id made a record already: then that record is the answer."""
        request, caller = write.request, write.turn.peer.caller
        if request.request_id is not None:
            write.mac = self.keys.request(caller.principal, request.request_id)
            if (seq := self.tables.request(write.mac)) is not None:
                self.when_durable(seq, lambda: self._repeat(write, seq), write.turn.fail)
                return
        then()

    def _decide_now(self, write: Write) -> None:
        if write.checked is not None and not write.checked.holds(self.tables):
            write.check_again()
            return
        if self.vault.free_slots < len(write.contents) + SPARE_SLOTS or self._is_long(write):
            self._begin_long(write)
            return
        if self.vault.free_slots < LOW_SLOTS:
            self.refill()
        time = self.chain.next_time(self.clock.now())
        try:
            fresh = Fresh(self.vault, time, write.slot)
            decision = self.decisions[type(write.request)](self.tables, self._decidable(write, time, fresh))
            sealed = self._seal(write, decision, time)
        except OutOfSlots:
            self.vault.given_up()
            self._begin_long(write)
            return
        except Exception:
            self.vault.given_up()
            raise
        self.vault.kept()
        self.push(sealed, write.turn, decision)

    def _decidable(self, write: Write, time: int, fresh: Fresh, contents: list[Any] | None = None) -> Call:
        if write.reserved is not None and write.reserved.epoch != self.vault.epoch:
            raise MemAgain("the log began a new epoch while the content was being stored")
        return Call(
            write.request, write.turn.peer.caller, self.chain.seq + 1, time, fresh, self.opener, write.args_hash(),
            write.contents if contents is None else contents, write.product, write.checked,
        )  # fmt: skip

    def _seal(self, write: Write, decision: Decision, time: int) -> Sealed:
        stored: list[tuple[bytes, bytes]] = []
        events = self.vault.seal(decision.drafts, stored)
        turn = write.turn
        sealed = self.chain.record(time, turn.peer.caller.principal, turn.syscall.number, write.mac, decision.note, events)
        if not self.chain.fits(sealed.data):
            raise MemTooLarge(
                f"the call makes a record of {len(sealed.data)} bytes; the limit is {limits.RECORD_BYTES_MAX}",
                "Send fewer items in one call.",
            )
        self.tables.payloads.extend(stored)
        return sealed

    def _is_long(self, write: Write) -> bool:
        """Whether a write might hold the loop for more than a moment."""
        if write.turn.syscall.name == "mem_shred" and write.request.cube_id is not None:
            cube_id = raw_id(write.request.cube_id)
            return any(True for of in (self.tables.derived, self.tables.forks) for _ in of(cube_id))
        if write.product is not None:
            return False
        if write.turn.syscall.number in LONGS or len(write.contents) > LONG_ITEMS:
            return True
        return any(len(content) > LONG_BYTES for content in write.contents if not isinstance(content, SealedContent))

    # -- long writes -------------------------------------------------------------------------------------------------

    def _begin_long(self, write: Write) -> None:
        """Close the gate and give a write the tables to itself."""
        self.gate_closed = True
        write.turn.cancel = Abandoned(write.turn)
        self.spawn(self._write_long(write))

    async def _write_long(self, write: Write) -> None:
        """A write whose decision takes long, or that needs more slots, or whose content is stored beforehand."""
        turn = write.turn
        try:
            await self.drained()
            decision, sealed = await self._decide_long(write)
            if turn.finished or self.stopped is not None:
                self._drop()
                turn.fail(MemAgain(self.stopped or "the call was given up"))
                return
            self.vault.kept()
            turn.appended = True
            await asyncio.to_thread(apply, self.tables, sealed.record)
            self.enqueue(sealed, turn, decision)
        except MemError as error:
            self._drop()
            turn.fail(error)
        except OSError as error:
            self._drop()
            if self.stopped is None:
                self.unexpected(turn, error)
            else:
                # It was not decided: nothing of it is in the log.
                turn.fail(MemFenced(self.stopped) if self.fenced else MemAgain(self.stopped))
        except Exception as error:
            self.unexpected(turn, error)
            self._drop()
        finally:
            self.gate_closed = False
            self._go_on()

    async def _decide_long(self, write: Write) -> tuple[Decision, Sealed]:
        """Decide and seal in a thread; a decision that needs more slots than are ready is made again with more."""
        needed = max(len(write.contents) + SPARE_SLOTS, LOW_SLOTS)
        while True:
            while self.vault.free_slots < needed and self.stopped is None:
                await self.refilled(needed)
            time = self.chain.next_time(self.clock.now())

            def in_thread(time: int = time) -> tuple[Decision, Sealed]:
                fresh = Fresh(self.vault, time, write.slot)
                decision = self.decisions[type(write.request)](self.tables, self._decidable(write, time, fresh))
                return decision, self._seal(write, decision, time)

            try:
                return await asyncio.to_thread(in_thread)
            except OutOfSlots:
                self._drop()
                needed *= 2

    # -- what jobs made ----------------------------------------------------------------------------------------------

    async def own_write(self, write: Write) -> dict[str, Any]:
        """Decide what the kernel writes by itself like any other write, and return its answer; raises what refuses it."""
        answer: asyncio.Future[dict[str, Any]] = write.turn.peer.answer  # type: ignore[attr-defined]
        if self.stopped is not None or self.read_only:
            raise MemAgain(self.stopped or "this kernel writes no more")
        self._guarded(write.turn, lambda: self._wait_in_line(write))
        return await answer

    async def commit_product(
        self, write: Write, contents: Sequence[bytes | memoryview], target: Cube | None
    ) -> dict[str, Any]:
        """Store what a job made, decide it like any other write, and return its answer; raises what refuses it. `write` has
        a peer of its own, whose answer this is. `target` is the cube that gets a new version."""
        answer: asyncio.Future[dict[str, Any]] = write.turn.peer.answer  # type: ignore[attr-defined]
        if self.stopped is not None or self.read_only:
            raise MemAgain(self.stopped or "this kernel writes no more")
        self._refuse_when_full()
        if len(contents) == 1 and crypto.is_chunked(len(contents[0])):
            write.contents = list(contents)
            await self._write_large(write, None if target is None else target.slot)
        else:
            write.contents = [bytes(content) for content in contents]
            self._guarded(write.turn, lambda: self._wait_in_line(write))
        return await answer

    # -- large contents ----------------------------------------------------------------------------------------------

    async def _write_large(self, write: Write, slot: Slot | None = None) -> None:
        """Content over one chunk is checked, sealed and stored before its write takes its place in the line."""
        turn, content = write.turn, write.contents[0]
        stored: list[bytes] = []
        reserved: Slot | None = None
        try:
            if len(content) > self.room():
                raise MemNoSpace(f"a content of {len(content)} bytes does not fit what is free on the disk, less the reserve")
            await asyncio.to_thread(write.args_hash)
            if write.product is None and contents_are_text(write.request):
                await asyncio.to_thread(check_text, content)
            while not self.vault.free_slots and self.stopped is None:
                await self.refilled(LOW_SLOTS)
            slot = slot or self._slot_of(write.request)
            if slot is None:
                slot = reserved = self.vault.reserve_slot()
            self._try(write, slot)
            sealed = await asyncio.to_thread(self._store_large_in_thread, content, slot, stored)
            if turn.finished:
                raise MemCanceled("the call was given up")
            write.contents, write.slot, write.reserved = [sealed], slot, reserved
            turn.on_end = lambda: self._end_large(write, stored, reserved)
            self._guarded(turn, lambda: self._wait_in_line(write))
        except MemError as error:
            self._end_large(write, stored, reserved)
            self._refuse(turn, error, True)
        except asyncio.CancelledError:
            self._end_large(write, stored, reserved)
            turn.fail(MemCanceled("the call was cancelled"))
            raise
        except Exception as error:
            self._end_large(write, stored, reserved)
            self.unexpected(turn, error)

    def _try(self, write: Write, slot: Slot) -> None:
        """Refuse now rather than after the content was stored: a decision has no effects, so it can be tried."""
        time = self.chain.next_time(self.clock.now())
        self.decisions[type(write.request)](self.tables, self._decidable(write, time, Fresh(self.vault, time, slot), [b""]))
        self.vault.given_up()

    def _end_large(self, write: Write, stored: list[bytes], reserved: Slot | None) -> None:
        """The write did not come to a record: what was stored for it goes, and its slot is free again."""
        if write.turn.appended:
            return
        keys = list(stored)
        stored.clear()
        if keys:
            self.in_thread(lambda: self.log.drop_pieces(keys), self._key_store_written)
        if reserved is not None and write.product is not None and keys:
            # What a job made of memories dies with its key: pieces that are deleted stay in the database's files for a while.
            self.in_thread(lambda: self.vault.destroy([reserved]), self._key_store_written)
        elif reserved is not None:
            self.vault.release(reserved)

    async def collect(self, payloads: Reader) -> None:
        """Remove what earlier epochs stored and no record names. `payloads` is as of the beginning of this epoch."""
        try:
            keys: list[bytes] = await self.effects.in_thread(orphans, payloads, self.frozen_view())
        except MemAgain:
            return  # The kernel is stopping already; the next one looks again.
        if keys:
            log_.info("removing %d pieces of contents that never came to a record", len(keys))
            self.in_thread(lambda: self.log.drop_pieces(keys), self._key_store_written)

    def _drop(self) -> None:
        """Forget what a decision made that was not applied."""
        self.tables.payloads.clear()
        self.vault.given_up()

    def _slot_of(self, request: Any) -> Slot | None:
        """The slot that a cube's content goes under; None when it has none yet."""
        cube = self.tables.cube(raw_id(request.cube_id)) if isinstance(request, m.MemWrite) else None
        return cube.slot if cube is not None else None

    def _store_large_in_thread(self, content: Any, slot: Slot, stored: list[bytes]) -> SealedContent:
        """Chunks are durable before the record that names them."""

        def store(key: bytes, chunk: bytes) -> None:
            self.log.put_piece(key, chunk)
            stored.append(key)

        sealed = self.vault.seal_large(memoryview(content), slot, store)
        self.log.sync_pieces()
        return sealed

    # -- answers that exist already -----------------------------------------------------------------------------------

    def owner(self, namespace: str) -> str | None:
        """Who owns a namespace that exists."""
        known = self.owners.get(namespace)
        if known is None:
            known = self.owners[namespace] = self.view.owner(namespace)
        return known

    def _repeat(self, write: Write, seq: int) -> None:
        """Answer a repeated request id from the record it made; a shred's only when the keys are gone."""
        if seq in self.carrying:
            self.carrying[seq].append(lambda: self._repeat(write, seq))
            return
        self._guarded(write.turn, lambda: self._repeat_now(write, seq))

    def _repeat_now(self, write: Write, seq: int) -> None:
        found = record_at(self.log, seq)
        if found is None:
            raise Damaged(f"the log has no record {seq}, which a request id names")
        data, record, frame = found
        if record.syscall != write.turn.syscall.number or not self._same(record, write):
            raise MemInvalid("this request id was used for another call", "Use a new request id for a new call.")
        prev = frame.prev_hash
        for raw in frame.records[: seq - frame.first_seq]:
            prev = crypto.record_hash(prev, raw)
        erasure = self.erased_by_now() if write.turn.syscall.name == "mem_shred" else None
        reply = answers.answer(self.view, record, crypto.record_hash(prev, data), self.keys, erasure)
        if write.turn.syscall.name == "mem_shred":
            reply["report"]["maps"] = self.maps.of_shred(seq)
            self.evolution.name_jobs(reply["report"])
        write.turn.answer(reply)

    def _same(self, record: Record, write: Write) -> bool:
        """Whether a record was made by a call with these arguments (after a shred, as far as that is public)."""
        for event in record.events:
            if event.name in (ev.FORKED, ev.SHREDDED):
                return bool(event.fields[-1] == write.args_hash())
            if event.private is None:
                continue
            if event.name in (ev.ALLOCATED, ev.WRITTEN):
                slot = Slot(*event.fields[5 if event.name == ev.ALLOCATED else 4])
            elif (cube := self.view.cube(event.fields[0])) is not None and cube.slot is not None:
                slot = cube.slot
            else:
                continue
            opened = self.vault.open_sealed_private(slot, *event.private)
            if opened is not None:
                return opened.args_hash == write.args_hash()
        return answers.names_target(record, write.args)

    # -- ticks -------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Once a second: record the lives that ran out."""
        if self.stopped is not None or self.read_only or self.gated:
            return
        decision = decide_expired(self.tables, self.clock.now(), EXPIRIES_PER_RECORD)
        if decision is not None:
            self.append_own(self.vault.seal(decision.drafts, []), decision)

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
