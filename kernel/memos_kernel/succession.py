"""A kernel on a log that others can reach: it follows, takes over, is replaced, and proves that it was not.

- A *standby* applies what the writer appends and serves reads at its position. `promote` makes it the writer: claim, apply
  what came before the claim, finish what the one before left undone, open the epoch.
- A writer answers a read only when it knows that nobody had replaced it a second ago: then it was not paused, or cut off,
  while another kernel went on. It asks by a ping; until that comes back the read waits.
- When a delivery failed, a new claim settled what became of it (`renewed`): callers whose records never counted are told so,
  and the kernel goes on in the new epoch from what is durable.
- Whoever is replaced stops; those who wait learn that their outcome is unknown.

Everything here runs on the event loop but for what is named `_in_thread`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from memos_drivers.stores.base import PAYLOAD, VIEW, Batch
from memos_syscalls import limits
from memos_syscalls.errors import MemAgain

from . import answers, crypto
from . import events as ev
from .commit import Durable, Entry, shred_slots, tensor_payloads
from .eventlog.base import Ended, Opened, OutOfReach, Renewed, SharedLog
from .events import Record, Slot
from .recovery import (
    Head,
    Refused,
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
    write_applied,
)
from .reducer import apply
from .state import View
from .turn import Turn
from .upcast import current

if TYPE_CHECKING:
    from .dispatch import Kernel
    from .segments import Segments

log_ = logging.getLogger("memos.kernel")

FRAMES_PER_TURN: Final = 8
BYTES_PER_TURN: Final = 16 * limits.KIB
ASK_SECONDS: Final = 0.5
"""A proof that is older is renewed while it still holds."""
AGAIN_SECONDS: Final = 1.0
UNSURE: Final = "the log does not answer, so this kernel cannot know whether another one took over"


class Succession:
    def __init__(
        self, kernel: Kernel, log: SharedLog, segments: Segments, *, isolated_reads: bool, take_over: bool = False,
        accept_clock: bool = False,
    ) -> None:  # fmt: skip
        self.kernel = kernel
        self.log = log
        self._accept_clock = accept_clock
        self.standby = True
        self._segments = segments
        self._isolated_reads = isolated_reads
        self._take_over = take_over
        self._scheduled = False
        self._applying = asyncio.Lock()
        self._asking: asyncio.TimerHandle | None = None
        self._unsure: deque[tuple[Turn, Callable[[], None]]] = deque()
        self._promotion: asyncio.Task[None] | None = None
        self._settling = False
        loop = kernel.loop

        def on_loop(work: Callable[[], None]) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(work)

        log.on_counted = lambda: on_loop(self._schedule) if self.standby else None
        log.on_fresh = lambda: on_loop(self._freshened) if self._unsure or (self.standby and log.claimed) else None
        log.on_end = lambda why, fenced: on_loop(lambda: kernel.ended(why, fenced))
        log.before_counted = self._prepare_in_thread

    # -- following ---------------------------------------------------------------------------------------------------

    def _prepare_in_thread(self) -> None:
        """Before a standby applies what counted: the keys and pieces that it may name."""
        self.kernel.vault.keystore.refresh()

    @property
    def promoting(self) -> bool:
        return self._promotion is not None and not self._promotion.done()

    def _schedule(self) -> None:
        if not self._scheduled and not self.promoting:
            self._scheduled = True
            self.kernel.spawn(self._follow())

    async def _follow(self) -> None:
        try:
            # A promotion applies the rest itself, in its own time.
            while self.standby and self.kernel.stopped is None and not self.promoting and await self._apply_some():
                pass
        finally:
            self._scheduled = False

    async def _apply_some(self) -> bool:
        """Apply some of what counted, mirror and view in one batch; False when there was nothing. What is large is applied in
        a thread: reads go on with the state before it. One at a time."""
        async with self._applying:
            batch = Batch()
            frames = self.log.take_counted(batch, FRAMES_PER_TURN)
            if not batch.puts:
                return False
            kernel = self.kernel
            try:
                if sum(map(len, frames)) <= BYTES_PER_TURN:
                    found = self._apply(frames, batch)
                else:
                    kernel.view = kernel.frozen_view()
                    found = await asyncio.to_thread(self._apply, frames, batch)
                    kernel.thaw()
                await self._follow_up(found)
            except Exception as error:
                kernel.fatal("applying what the log holds failed", error)
                return False
            return True

    def _apply(self, frames: list[bytes], batch: Batch) -> list[tuple[Record, bytes]]:
        """Records with their hashes. On the loop, or in a thread while reads have another view."""
        kernel = self.kernel
        found: list[tuple[Record, bytes]] = []
        hash_ = kernel.durable.hash
        for data in frames:
            for raw in ev.decode_frame(data).records:
                record = current(ev.decode_record(raw))
                hash_ = crypto.record_hash(hash_, raw)
                apply(kernel.tables, record)
                found.append((record, hash_))
        write_applied(kernel.store, kernel.tables, batch, found[-1] if found else None)
        return found

    async def _follow_up(self, found: list[tuple[Record, bytes]]) -> None:
        """What follows from applied records, on the loop."""
        kernel = self.kernel
        if found:
            last, hash_ = found[-1]
            kernel.durable = Durable(last.seq, hash_, kernel.tables.digest, last.time)
            chain = kernel.chain
            chain.seq, chain.hash, chain.time, chain.epoch = last.seq, hash_, last.time, last.epoch
        for record, _hash in found:
            kernel.effects.committed(record, None)
            kernel.hosttier.committed(record)
            if any(event.name == ev.SHREDDED for event in record.events):
                await self._forget(record)
        kernel.news()
        await asyncio.sleep(0)

    async def _forget(self, record: Record) -> None:
        """The writer destroys the keys; here go the copies, and the index that lists what was erased."""
        kernel = self.kernel
        view = kernel.frozen_view()

        def find() -> tuple[list[bytes], set[Slot], dict[bytes, int], list[bytes]]:
            gone = answers.shredded_by(view, record)
            heirs = answers.shred_heirs(view, record, gone)
            return gone, set(shred_slots(view, gone)), heirs, tensor_payloads(view, gone)

        gone, slots, heirs, payloads = await asyncio.to_thread(find)
        kernel.vault.forget(set(gone), slots)
        kernel.hosttier.forget(slots)
        if kernel.runtime.erased(set(gone), payloads, set(heirs)):
            await kernel.runtime.drop(payloads, erased=True)
        blind = kernel.effects.shredded(gone, heirs, record.seq)
        kernel.in_thread(blind, lambda error: None if error is None else kernel.fatal("blinding the index failed", error))

    # -- taking over -------------------------------------------------------------------------------------------------

    async def promote(self) -> None:
        """Become the writer; the epoch's first records are durable then. Raises `Ended`, `OutOfReach` or `Refused`.

        A caller who goes away, or runs out of time, leaves it to itself: half a promotion would leave the log to nobody.
        """
        if self._promotion is None or self._promotion.done():
            self._promotion = self.kernel.loop.create_task(self._promote())
        await asyncio.shield(self._promotion)

    async def _promote(self) -> None:
        if not self.standby:
            return
        kernel = self.kernel
        self._see_that_it_is_here()
        if not self._accept_clock:
            check_clock(kernel.clock, kernel.durable.seq, kernel.durable.time)
        try:
            opened = await asyncio.to_thread(
                self.log.open_epoch, kernel.vault.keystore.highest_epoch, signer_of(kernel.keys)
            )
            # What came before the claim is applied when the keys and pieces that it names are here.
            await asyncio.to_thread(self.log.catch_up)
            await asyncio.to_thread(kernel.vault.keystore.refresh)
            while await self._apply_some():
                pass
            head = await asyncio.to_thread(self._finish_in_thread, opened)
        except OutOfReach:
            self._try_again_if_claimed()
            raise
        if kernel.stopped is not None:
            raise Ended(kernel.stopped, fenced=kernel.fenced)
        self.standby = False
        self._begin(head, opened)
        try:
            await kernel.drained()
        except OSError as error:
            raise Ended(str(error), fenced=kernel.fenced) from error
        kernel.opened_at = kernel.durable.seq
        kernel.spawn(kernel.collect(kernel.store.snapshot(PAYLOAD)))
        kernel.evolution.start()

    def _try_again_if_claimed(self) -> None:
        """A claim that we gave up waiting for may count all the same. Then the one before us is gone, and nobody else comes."""

        def again() -> None:
            if self.standby and self.kernel.stopped is None:
                if self.log.claimed:
                    self.kernel.spawn(self._promote_or_say())
                else:
                    self._try_again_if_claimed()

        self.kernel.loop.call_later(AGAIN_SECONDS, again)

    async def _promote_or_say(self) -> None:
        try:
            await self.promote()
        except OutOfReach as error:
            log_.warning("the log was claimed, but cannot be opened yet: %s", error)
        except (Ended, Refused) as error:
            self.kernel.ended(str(error), self.kernel.fenced)
        except Exception as error:
            self.kernel.fatal("taking over failed", error)

    def _finish_in_thread(self, opened: Opened, *, anew: bool = False) -> Head:
        """Between a claim and the first record after it: see that the view stands at the head, and that what was erased is.
        `anew`: after an epoch of our own, in which nobody else wrote; only its own unused keys are to go."""
        kernel = self.kernel
        keystore = kernel.vault.keystore
        if not anew:
            self.log.catch_up()
            keystore.tidy()
        self.log.check()
        head = recover(kernel.store, self.log, kernel.keys, keystore, read_only=False)
        view = View(kernel.store.live(VIEW))
        blind_missed(view, self.log, self._segments)
        redo_shreds(view, self.log, keystore, self._segments)
        destroy_unnamed(view, keystore, below=opened.epoch, above=kernel.vault.epoch - 1 if anew else -1)
        self._see_that_it_is_here()
        keystore.update(epoch=opened.epoch, home_id=new_home(view, keystore))
        return head

    def _see_that_it_is_here(self) -> None:
        """Before a claim, and again when nobody else can append any more: a log that moved is not written here."""
        why = elsewhere(View(self.kernel.store.live(VIEW)), self.kernel.vault.keystore)
        if why is not None and not self._take_over:
            raise Ended(f"{why}. To write here nevertheless, start with --take-over")

    def _begin(self, head: Head, opened: Opened) -> None:
        """Go on from what is durable, in a new epoch."""
        kernel = self.kernel
        kernel.tables.reset(head.digest)
        kernel.durable = Durable(head.seq, head.hash, head.digest, head.time)
        kernel.chain = chain_at(kernel.keys, head, opened.epoch, opened.claim_id)
        kernel.vault.begin_epoch(opened.epoch)
        kernel.owners.clear()
        kernel.read_only, kernel.closed = False, None
        first = opening(kernel.keys, head.seq, opened.claim) + moved(View(kernel.store.live(VIEW)), kernel.vault.keystore)
        for events in first:
            kernel.append_own(events)
        kernel.refill()

    # -- going on after a failed delivery ----------------------------------------------------------------------------

    def renewed(self, lost: list[Entry], error: Renewed) -> None:
        """A new claim of ours counts, and these records never will: open the epoch, and tell their callers."""
        kernel = self.kernel
        kernel.renewing = True
        why = MemAgain(f"the log did not take the record ({error}); nothing of it was kept")
        head: list[Head] = []

        def work() -> None:
            # A broker that goes away once more is no reason to end.
            while kernel.stopped is None:
                try:
                    head.append(self._finish_in_thread(error.opened, anew=True))
                    return
                except OutOfReach as away:
                    log_.warning("the new epoch waits: %s", away)
            raise Ended(kernel.stopped)

        def done(failed: BaseException | None) -> None:
            if failed is not None:
                kernel.fatal("opening a new epoch failed", failed)
                return
            self._begin(head[0], error.opened)
            for entry in lost:
                if entry.turn is not None:
                    entry.turn.appended = False
                    entry.turn.peer.pending_writes -= 1
                    entry.turn.fail(why)
            kernel.undecided(why, head[0].seq)

        kernel.in_thread(work, done)

    # -- being sure --------------------------------------------------------------------------------------------------

    def when_sure(self, turn: Turn, then: Callable[[], None]) -> None:
        """Run `then` when it is known that nobody had replaced this kernel a moment ago."""
        if self.standby or self._isolated_reads or self.log.fresh(ASK_SECONDS):
            then()
        elif self.log.fresh():
            self._ask()
            then()
        else:
            turn.waits = UNSURE
            while self._unsure and self._unsure[0][0].finished:
                self._unsure.popleft()
            self._unsure.append((turn, then))
            self._ask()
            self._ask_again_later()

    def _ask_again_later(self) -> None:
        """An answer may be lost on its way: who waits is asked for again and again."""
        if self._asking is None:
            self._asking = self.kernel.loop.call_later(ASK_SECONDS, self._ask_again)

    def _ask_again(self) -> None:
        self._asking = None
        self._freshened()
        if self._unsure and self.kernel.stopped is None:
            self._ask_again_later()

    def _ask(self) -> None:
        if self.log.doubtful and not (self._settling or self.kernel.committing or self.kernel.gated):
            # Nobody writes, so nobody settles what became of the last message.
            self._settling = True
            self.kernel.in_thread(self.log.settle, self._settled)
        else:
            self.log.ask()

    def _settled(self, error: BaseException | None) -> None:
        self._settling = False
        if error is not None and not self.kernel.committing and not self.kernel.gated:
            # Otherwise the append that is under way, or about to be, learns it by itself.
            self.kernel.append_failed([], error)

    def _freshened(self) -> None:
        if self.standby and self.log.claimed and not self.promoting:
            self.kernel.spawn(self._promote_or_say())
        while self._unsure and self.log.fresh():
            turn, then = self._unsure.popleft()
            turn.waits = None
            then()
        while self._unsure and self._unsure[0][0].finished:
            self._unsure.popleft()
        if self._unsure:
            self._ask()
