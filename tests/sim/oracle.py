"""What must hold in the simulated world, judged as an auditor judges: by `Counting` over the partition, from its beginning.

1. What was acknowledged was committed then, and is in the auditor's chain where it was read; only a partition that lost
   committed messages may have lost it
2. A frame whose callers were told that it is lost is in no chain in which the claim stands by which that was known
3. No request is in a chain twice
4. Every mirror is a beginning of a chain, and the mirror of a kernel that goes on is a beginning of today's
5. A read shows whatever anybody had acknowledged one second before it began
6. Once faults stop, one kernel is open, and writes are acknowledged again, unless what was lost tore the log; a
   kernel calls its topic broken only if the partition lost something
7. Whoever goes on from a mirror judges as one who reads from the beginning
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.sim.kernel import FRESH_SECONDS, LOG_ID, MAC_KEY, SIGNER, Done, Kernel, State, copied
from tests.sim.partition import Entry

from memos_kernel import crypto
from memos_kernel.eventlog.counting import Counting, Standing
from memos_kernel.events import Frame, unpack

if TYPE_CHECKING:
    from tests.sim.world import World

ROOT = Path(__file__).parents[2]


class Violation(AssertionError):
    """A rule did not hold. The message says which, and how to see it again."""

    def __init__(self, world: World, rule: str, what: str) -> None:
        at = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
        commit = at.stdout.strip() or "no commit"
        super().__init__(f"seed {world.seed} at {commit}, {world.now:.3f} s: {rule}: {what}")
        self.rule = rule


class Acknowledged(NamedTuple):
    time: float
    seq: int
    hash: bytes
    entry: Entry
    by: str


class Audit:
    """A log as an auditor counts it."""

    def __init__(self, log: list[Entry]) -> None:
        counting = Counting(LOG_ID, SIGNER.public_key, MAC_KEY)
        self.kinds: dict[Entry, str] = {}
        self.standings: list[Standing] = []
        self.hashes: list[bytes] = []
        self.requests: list[str] = []
        self.entries: list[Entry] = []
        for entry in log:
            verdict = counting.take(entry.data)
            self.kinds[entry] = verdict.kind
            if verdict.kind == "frame":
                assert isinstance(verdict.message, Frame)
                hash_ = verdict.message.prev_hash
                for raw in verdict.message.records:
                    hash_ = crypto.record_hash(hash_, raw)
                    self.hashes.append(hash_)
                    self.entries.append(entry)
                    self.requests.append(unpack(raw)[1])
            self.standings.append(copied(counting.at))


class Oracle:
    def __init__(self, world: World) -> None:
        self.world = world
        self.acknowledgements = 0
        self._acks: list[Acknowledged] = []
        self._lost: list[tuple[str, bytes, Entry]] = []

    def _fail(self, rule: str, what: str) -> None:
        raise Violation(self.world, rule, what)

    def standing(self) -> Standing:
        """Where an auditor stands now."""
        counting = Counting(LOG_ID, SIGNER.public_key, MAC_KEY)
        for entry in self.world.partition.visible:
            counting.take(entry.data)
        return counting.at

    # -- as it happens -------------------------------------------------------------------------------------------------

    def acknowledged(self, kernel: Kernel, done: Done) -> None:
        self.acknowledgements += 1
        self._acks.append(Acknowledged(self.world.now, done.seq, done.hash, done.entry, str(kernel)))
        if not self._committed(done.entry):
            self._fail("acknowledged is committed", f"{kernel} acknowledged offset {done.seq}, which too few replicas have")

    def torn(self) -> bool:
        """Whether something in the log follows from what is not there any more, so that nobody may write to it."""
        return "torn" in Audit(self.world.partition.visible).kinds.values()

    def _committed(self, entry: Entry) -> bool:
        """Whether enough replicas had these bytes: here, or where the producer put them again after a loss."""
        if entry.committed:
            return True
        part = self.world.partition
        return any(e.committed and e.data == entry.data for log in (*part.pasts, part.visible) for e in log)

    def told_lost(self, kernel: Kernel, frame: bytes, claim: Entry | None) -> None:
        if claim is None or not claim.committed:
            self._fail("lost is lost", f"{kernel} says so without a committed claim")
            return
        self._lost.append((str(kernel), frame, claim))

    def read(self, kernel: Kernel, state: State, begun: float) -> None:
        until = begun - FRESH_SECONDS
        newest = None
        for ack in reversed(self._acks):
            if ack.time <= until and not ack.entry.lost:
                newest = ack
                break
        if newest is not None and (len(state.hashes) <= newest.seq or state.hashes[newest.seq] != newest.hash):
            self._fail("reads are fresh", f"{kernel} read {len(state.hashes)} records, not offset {newest.seq} by {newest.by}")

    def ended(self, kernel: Kernel) -> None:
        if kernel.writer.phase == "broken" and not self.world.partition.pasts:
            self._fail("broken is broken", f"{kernel}: {kernel.writer.why}")

    # -- at the end ----------------------------------------------------------------------------------------------------

    def judge(self, acknowledged_before: int) -> None:
        world = self.world
        if len(world.writers()) > 1:
            self._fail("one kernel writes", f"{[str(k) for k in world.writers()]} are open although all is well")
        today = Audit(world.partition.visible)
        torn = "torn" in today.kinds.values()
        if torn and not world.partition.pasts:
            self._fail("torn is lost", "a frame follows from nothing although nothing was lost")
        if not torn and self.acknowledgements <= acknowledged_before:
            self._fail("writes go on", "nobody acknowledges anything although all is well")
        audits = [*(Audit(past) for past in world.partition.pasts), today]
        chains = {hash_ for audit in audits for hash_ in audit.hashes}
        for ack in self._acks:
            if today.hashes[ack.seq : ack.seq + 1] == [ack.hash]:
                continue
            counted = [a.entries[ack.seq] for a in audits if a.hashes[ack.seq : ack.seq + 1] == [ack.hash]]
            if not any(entry.lost and entry.committed for entry in counted):
                self._fail("acknowledged is in the chain", f"offset {ack.seq} by {ack.by} was not lost, and does not count")
        for audit in audits:
            if len(set(audit.requests)) != len(audit.requests):
                self._fail("nothing is doubled", "a request is in the log twice")
            frames = {entry.data for entry, kind in audit.kinds.items() if kind == "frame"}
            for name, frame, claim in self._lost:
                if claim in audit.kinds and frame in frames:
                    self._fail("lost is lost", f"{name} said so of a frame that counts")
        for slot, mirror in enumerate(world.mirrors):
            hashes = mirror.state().hashes
            if any(hash_ not in chains for hash_ in hashes):
                self._fail("mirrors are the log", f"the mirror of kernel {slot} holds what no auditor counts")
            kernel = world.slots[slot]
            if kernel in world.writers() and hashes != today.hashes[: len(hashes)]:
                self._fail("mirrors are the log", f"{kernel} goes on with a mirror that is not the log's")
        self._resume(today)

    def _resume(self, audit: Audit) -> None:
        log = self.world.partition.visible
        for at in range(0, len(log), 1 + len(log) // 4):
            counting = Counting(LOG_ID, SIGNER.public_key, MAC_KEY, copied(audit.standings[at]))
            for entry in log[at + 1 :]:
                if counting.take(entry.data).kind != audit.kinds[entry]:
                    self._fail("all readers agree", f"one who begins after message {at} does not")
