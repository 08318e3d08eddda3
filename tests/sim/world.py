"""The world around the kernels: time, wire, brokers that fail, people who write and read, and one who attacks. From a seed.

`World(seed).run()` lives through half a minute of faults, heals everything, and wants to see a write acknowledged. Every random
choice comes from the seed and every event from one queue, so a seed gives the same trace, byte for byte. Which kinds of
fault a seed has is drawn first: runs with few kinds reach places that runs with all kinds do not.

What must hold is in oracle.py; a `Violation` names seed and rule.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from tests.sim.kernel import LOG_ID, LOOK_SECONDS, SIGNER, Answer, Done, Kernel, Mirror, Mode, Producer, State
from tests.sim.oracle import Oracle, Violation
from tests.sim.partition import REPLICAS, Entry, Partition

from memos_kernel.eventlog.counting import Ping, decode
from memos_kernel.eventlog.writer import Address, Message
from memos_kernel.events import Claim, Damaged, Frame, encode_claim, encode_frame

KERNELS: Final = 3
FAULTY_SECONDS: Final = 20.0
SETTLE_SECONDS: Final = 5.0
CALM_SECONDS: Final = 60.0
CALLERS: Final = 3
FETCH_MESSAGES_MAX: Final = 6
EVENTS_MAX: Final = 60_000

FAULTS: Final = (
    "slow wire", "late wire", "lost requests", "lost replies", "false failures", "denials", "followers", "elections", "unclean",
    "power", "pauses", "crashes", "takeovers", "standbys", "forgets", "copies", "forgeries", "refills", "wipes",
    "early views",
)  # fmt: skip


@dataclass(slots=True)
class Caller:
    """Somebody with one request at a time, who repeats it under the same id until it is answered."""

    n: int
    request: str = ""
    call: int = -1
    made: int = 0


class World:
    def __init__(
        self, seed: int, kernel_type: type[Kernel] = Kernel, *, faults: frozenset[str] | None = None, keep: bool = False
    ) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.kernel_type = kernel_type
        chosen = self.random.sample(FAULTS, self.random.randint(1, len(FAULTS)))
        self.faults = frozenset(chosen) if faults is None else faults
        self.now = 0.0
        self.denied_until = 0.0
        self.calm = False
        self.partition = Partition(strict="early views" not in self.faults)
        self.notices_divergence = self.random.random() < 0.5
        self.partition.on_change = self._changed
        self.oracle = Oracle(self)
        self.slots: list[Kernel | None] = [None] * KERNELS
        self.mirrors = [Mirror() for _ in range(KERNELS)]
        self.trace = hashlib.sha256()
        self.lines: list[str] | None = [] if keep else None
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._n = itertools.count()
        self._pids = itertools.count(1)
        self._calls = itertools.count(1)
        self._parked: list[tuple[Kernel, int, Entry | None]] = []
        self._uncommitted: list[tuple[Entry, Callable[[], None]]] = []
        self._gaps: dict[tuple[int, int], int] = {}
        self._callers = [Caller(n) for n in range(CALLERS)]
        self._open_calls: dict[int, Caller] = {}
        self._open_reads: dict[int, float] = {}
        self._attacker_n = 0
        self._attacker_pid = 0
        self._born = 0

    # -- time ----------------------------------------------------------------------------------------------------------

    def note(self, line: str) -> None:
        """A line of the trace."""
        line = f"{self.now:.4f} {line}"
        self.trace.update(line.encode() + b"\n")
        if self.lines is not None:
            self.lines.append(line)

    def later(self, seconds: float, what: Callable[..., None], *args: Any) -> None:
        heapq.heappush(self._heap, (self.now + seconds, next(self._n), what, args))

    def every(self, seconds: float, kernel: Kernel) -> None:
        def tick() -> None:
            if kernel.alive:
                self.deliver(kernel, kernel.on_tick)
                self.later(seconds, tick)

        self.later(seconds, tick)

    def deliver(self, kernel: Kernel, what: Callable[..., None], *args: Any) -> None:
        """Give an event to a process: now, when it wakes up, or never."""
        if not kernel.alive:
            return
        if kernel.paused:
            kernel.held.append((what, args))
        else:
            what(*args)

    def has(self, fault: str) -> bool:
        return not self.calm and fault in self.faults

    def chance(self, fault: str, p: float) -> bool:
        return self.has(fault) and self.random.random() < p

    # -- the wire ------------------------------------------------------------------------------------------------------

    def wire_delay(self) -> float:
        delay = self.random.uniform(0.001, 0.02)
        if self.chance("slow wire", 0.15):
            delay += self.random.uniform(0.05, 0.8)
        return delay

    def request_delay(self) -> float:
        """A message may be on its way for long, and outlive who sent it."""
        return self.wire_delay() + (self.random.uniform(1, 12) if self.chance("late wire", 0.05) else 0.0)

    def drops_request(self) -> bool:
        return self.chance("lost requests", 0.15)

    def drops_reply(self) -> bool:
        return self.chance("lost replies", 0.2)

    def fails_though_landed(self) -> bool:
        return self.chance("false failures", 0.05)

    def gap_is_fatal(self, pid: int, n: int) -> bool:
        """The broker never heard of the message before: after some tries the client sees that it never will."""
        self._gaps[pid, n] = self._gaps.get((pid, n), 0) + 1
        return self._gaps[pid, n] > 6

    def producer(self, kernel: Kernel) -> Producer:
        return Producer(self, kernel, next(self._pids))

    def when_committed(self, entry: Entry, then: Callable[[], None]) -> None:
        """A reply to acks=all. Whoever waits for a message that is lost waits for ever, and tries again."""
        if entry.committed and not entry.lost and len(self.partition.isr) >= 2:
            then()
        else:
            self._uncommitted.append((entry, then))

    def _changed(self) -> None:
        waiting, self._uncommitted = self._uncommitted, []
        for entry, then in waiting:
            if entry.committed and not entry.lost:
                then()
            elif not entry.lost:
                self._uncommitted.append((entry, then))
        parked, self._parked = self._parked, []
        for kernel, position, previous in parked:
            self.later(self.wire_delay(), self._fetch_lands, kernel, position, previous)

    def fetch(self, kernel: Kernel, position: int, previous: Entry | None) -> None:
        self.later(self.wire_delay(), self._fetch_lands, kernel, position, previous)

    def _fetch_lands(self, kernel: Kernel, position: int, previous: Entry | None) -> None:
        if not kernel.alive:
            return
        part = self.partition
        if part.leader is None:
            self._parked.append((kernel, position, previous))
            return
        error = None
        if position > len(part.log):
            error = "OFFSET_OUT_OF_RANGE"
        elif self.notices_divergence and previous is not None and part.log[position - 1].leader_epoch != previous.leader_epoch:
            error = "_LOG_TRUNCATION"
        elif position >= part.high and kernel.writer.phase != "reading":
            self._parked.append((kernel, position, previous))
            return
        end = min(part.high, position + FETCH_MESSAGES_MAX)
        found = [] if error else [(offset, part.log[offset]) for offset in range(position, end)]
        at_end = position + len(found) >= part.high
        # A reader who is at the end is answered after a while, so that it knows.
        wait = 0.05 if not found and error is None else 0.0
        self.later(wait + self.wire_delay(), self.deliver, kernel, kernel.on_fetched, found, at_end, error)

    def look(self, kernel: Kernel, at: Address) -> None:
        self.later(self.wire_delay(), self._look_lands, kernel, at, self.now + LOOK_SECONDS)

    def _look_lands(self, kernel: Kernel, at: Address, until: float) -> None:
        part = self.partition
        if not kernel.alive:
            return
        if part.leader is None:
            self.later(0.1, self._look_lands, kernel, at, until + 0.1)
        elif at.offset < part.high:
            entry = part.log[at.offset]
            found = Message(at.offset, entry.leader_epoch, entry.data)
            self.later(self.wire_delay(), self.deliver, kernel, kernel.on_looked, found)
        elif at.offset > len(part.log) or self.now > until:
            self.later(self.wire_delay(), self.deliver, kernel, kernel.on_looked, None)
        else:
            # What the leader has beyond its high watermark may be on its way to the others.
            self.later(0.1, self._look_lands, kernel, at, until)

    # -- people --------------------------------------------------------------------------------------------------------

    def _call(self, caller: Caller) -> None:
        """Make, or repeat, the caller's request at some kernel."""
        if not caller.request:
            caller.made += 1
            caller.request = f"{caller.n}.{caller.made}"
        call = caller.call = next(self._calls)
        kernel = self.random.choice(self.slots)
        if kernel is None or not kernel.alive:
            self.later(0.3, self._call, caller)
            return
        self._open_calls[call] = caller
        self.deliver(kernel, kernel.on_write, call, caller.request)
        self.later(4.0, self._give_up, call)

    def _give_up(self, call: int) -> None:
        caller = self._open_calls.pop(call, None)
        if caller is not None:
            self._call(caller)

    def answered(self, kernel: Kernel, call: int, answer: Answer, done: Done | None) -> None:
        caller = self._open_calls.pop(call, None)
        if answer == "yes":
            assert done is not None
            self.oracle.acknowledged(kernel, done)
        if caller is None:
            return
        self.note(f"{kernel} answers {caller.request} {answer}")
        if answer == "yes":
            caller.request = ""
        self.later(self.random.uniform(0.05, 0.6), self._call, caller)

    def told_lost(self, kernel: Kernel, frame: bytes, claim: Entry | None, wanted: list[str]) -> None:
        self.note(f"{kernel} says lost: {wanted}")
        self.oracle.told_lost(kernel, frame, claim)

    def _read(self) -> None:
        kernel = self.random.choice(self.slots)
        if kernel is not None and kernel.alive:
            call = next(self._calls)
            self._open_reads[call] = self.now
            self.deliver(kernel, kernel.on_read, call)
        self.later(self.random.uniform(0.1, 0.8), self._read)

    def read_answered(self, kernel: Kernel, call: int, state: State | None) -> None:
        begun = self._open_reads.pop(call)
        if state is not None:
            self.note(f"{kernel} reads {len(state.hashes)}")
            self.oracle.read(kernel, state, begun)

    # -- processes -----------------------------------------------------------------------------------------------------

    def start(self, slot: int, mode: Mode = "claim") -> None:
        kernel = self.slots[slot]
        if kernel is not None and kernel.alive:
            return
        self._born += 1
        name = f"k{slot}.{self._born}"
        self.note(f"{name} starts as {mode}")
        self.slots[slot] = self.kernel_type(self, name, self.mirrors[slot], mode)

    def writers(self) -> list[Kernel]:
        return [kernel for kernel in self.slots if kernel is not None and kernel.alive and kernel.open]

    def ended(self, kernel: Kernel) -> None:
        kernel.alive = False
        self.oracle.ended(kernel)
        slot = next(i for i, k in enumerate(self.slots) if k is kernel or k is None)
        self.later(self.random.uniform(0.5, 3), self._start_again, slot, kernel)

    def _start_again(self, slot: int, ended: Kernel) -> None:
        """An operator looks after a kernel that ended: one whose topic is not what it was gets an empty disk, sometimes."""
        if self.slots[slot] is not ended and self.slots[slot] is not None:
            return
        if ended.writer.phase == "broken" and (self.calm or self.chance("wipes", 0.5)):
            self.mirrors[slot] = Mirror()
            self.note(f"the disk of {ended} is wiped")
        if not any(k is not None and k.alive and k.mode == "claim" for k in self.slots):
            self.start(slot)
        elif self.chance("standbys", 0.5):
            self.start(slot, "standby")

    def crash(self, slot: int) -> None:
        kernel = self.slots[slot]
        if kernel is None or not kernel.alive:
            return
        kernel.alive = False
        rows = self.mirrors[slot].rows
        gone = min(len(rows), self.random.choice((0, 0, 1, 2, 5)))
        del rows[len(rows) - gone :]
        self.note(f"{kernel} crashes, its mirror loses {gone}")

    def pause(self, slot: int, seconds: float) -> None:
        kernel = self.slots[slot]
        if kernel is None or not kernel.alive or kernel.paused:
            return
        kernel.paused = True
        self.note(f"{kernel} is paused")
        self.later(seconds, self.wake, kernel)

    def wake(self, kernel: Kernel) -> None:
        if kernel.alive and kernel.paused:
            self.note(f"{kernel} wakes up")
            kernel.paused = False
            held: deque[Any] = kernel.held
            kernel.held = deque()
            while held and kernel.alive:
                what, args = held.popleft()
                what(*args)

    # -- what goes wrong -----------------------------------------------------------------------------------------------

    def _fault(self) -> None:
        if self.calm:
            return
        self.later(self.random.uniform(0.05, 1.2), self._fault)
        kinds = [k for k in FAULTS[5:] if k in self.faults]
        if not kinds:
            return
        kind = self.random.choice(kinds)
        slot = self.random.randrange(KERNELS)
        part, rng = self.partition, self.random
        match kind:
            case "denials":
                if rng.random() < 0.3:
                    self.denied_until = self.now + rng.uniform(0.2, 3)
            case "followers":
                part.out_of_sync(rng.randrange(REPLICAS))
            case "elections" | "unclean" | "forgets":
                self._broker_crashes(unclean=kind == "unclean")
                if kind == "forgets":
                    part.forget(len(part.visible) - rng.randrange(4))
            case "power":
                if rng.random() < 0.2:
                    self._power()
            case "pauses":
                self.pause(slot, rng.choice((0.3, 0.9, 1.5, 5.0)))
            case "crashes":
                self.crash(slot)
                self.later(rng.uniform(0.1, 4), self.start, slot)
            case "takeovers":
                self.start(slot)
            case "standbys":
                kernel = self.slots[slot]
                self.start(slot, "standby")
                if kernel is not None and kernel.mode == "standby" and rng.random() < 0.5:
                    self.deliver(kernel, kernel.on_promote)
            case "copies":
                self._attack_with_copy()
            case "forgeries":
                self._attack_with_forgery()
            case _:
                pass

    def _broker_crashes(self, *, unclean: bool) -> None:
        part, rng = self.partition, self.random
        if part.leader is None:
            return
        old = part.leader
        self.note(f"leader {old} crashes, in sync {sorted(part.isr)}")
        part.crash(old)
        self._uncommitted.clear()
        self.later(rng.uniform(0.5, 5), part.restart, old)
        self.later(rng.uniform(0.05, 1.5), self._elect, unclean)

    def _elect(self, unclean: bool) -> None:
        part = self.partition
        if part.leader is not None:
            return
        able = [r for r in range(REPLICAS) if part.replicas[r].alive and (r in part.isr or unclean)]
        outside = [r for r in able if r not in part.isr]
        if not able:
            self.later(0.5, self._elect, unclean)
            return
        before = len(part.pasts)
        part.elect(self.random.choice(outside or able))
        self.note(f"leader {part.leader} elected, epoch {part.epoch}, end {len(part.log)}, high {part.high}")
        if len(part.pasts) > before:
            self._refill()

    def _power(self) -> None:
        part = self.partition
        if part.leader is None:
            return
        before = len(part.pasts)
        self._uncommitted.clear()
        part.lose_power(self.random.randint(1, 5))
        self.note(f"power is lost, epoch {part.epoch}, end {len(part.log)}")
        if len(part.pasts) > before:
            self._refill()

    def _refill(self) -> None:
        """Somebody puts back what was lost, but for the oldest message."""
        if not self.chance("refills", 0.7):
            return
        past = self.partition.pasts[-1]
        lost = [e for e in past if e.lost]
        back = len(lost) if self.random.random() < 0.6 else self.random.randint(1, len(lost))
        for at, entry in enumerate(lost[:back]):
            self._attack(b"junk" if at == 0 else entry.data)

    def _attack(self, data: bytes) -> None:
        found = self.partition.append(data, -self._attacker_pid, self._attacker_n)
        if isinstance(found, Entry):
            self._attacker_n += 1
            self.note(f"attacker puts {hashlib.sha256(data).hexdigest()[:8]}")
        elif found == "gap":
            self._attacker_pid, self._attacker_n = self._attacker_pid + KERNELS * 1000, 0

    def _seen(self) -> list[Entry]:
        """All that an attacker may have read; none while the log is unclaimed, where a foreign claim would take it."""
        seen = [e for past in self.partition.pasts for e in past] + self.partition.visible
        return seen if len(self.partition.visible) > 3 else []

    def _attack_with_copy(self) -> None:
        seen = self._seen()
        if seen:
            recent = seen[-8:] if self.random.random() < 0.7 else seen
            self._attack(self.random.choice(recent).data)

    def _attack_with_forgery(self) -> None:
        seen = self._seen()
        if not seen:
            return
        data = self.random.choice(seen[-8:]).data or b"?"
        rng = self.random
        match rng.randrange(4):
            case 0:
                at = rng.randrange(len(data))
                data = data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
            case 1:
                data = rng.randbytes(rng.randrange(200))
            case _:
                data = self._resigned(data)
        self._attack(data)

    def _resigned(self, data: bytes) -> bytes:
        """A message that would be the next one, had its maker the keys."""
        at = self.oracle.standing()
        try:
            found = decode(data)
        except Damaged:
            return b""
        match found:
            case Frame():
                return encode_frame(b"guess" * 5, LOG_ID, at.epoch, at.claim_id or b"", at.seq + 1, at.hash, found.records)
            case Claim():
                return encode_claim(STRANGER, LOG_ID, at.epoch + 1, self.random.randbytes(16), at.hash, None)
            case Ping():
                return encode_claim(STRANGER, b"another log", at.epoch + 1, self.random.randbytes(16), at.hash, None)

    # -- a run ---------------------------------------------------------------------------------------------------------

    def _replicate(self, follower: int) -> None:
        slow = self.has("followers") and self.random.random() < 0.3
        self.later(self.random.uniform(0.5, 3) if slow else self.random.uniform(0.01, 0.08), self._replicate, follower)
        self.partition.replicate(follower)

    def _until(self, end: float) -> None:
        events = 0
        while self._heap and self._heap[0][0] <= end:
            self.now, _n, what, args = heapq.heappop(self._heap)
            what(*args)
            events += 1
            if events > EVENTS_MAX:
                raise Violation(self, "the world does not come to rest", "too many events")
        self.now = end

    def _heal(self) -> None:
        self.note("calm")
        self.calm, self.denied_until = True, 0.0
        part = self.partition
        for replica in range(REPLICAS):
            part.restart(replica)
        if part.leader is None:
            self._elect(not part.isr)
        for kernel in self.slots:
            if kernel is not None:
                self.wake(kernel)
        if not any(k is not None and k.alive and k.mode == "claim" for k in self.slots):
            self.later(1.0, self._start_first)

    def _start_first(self) -> None:
        for slot in range(KERNELS):
            kernel = self.slots[slot]
            if kernel is not None and kernel.alive and kernel.mode == "claim":
                return
        for slot, kernel in enumerate(self.slots):
            if kernel is None or not kernel.alive:
                self.start(slot)
                return
        kernel = self.slots[0]
        assert kernel is not None
        self.deliver(kernel, kernel.on_promote)

    def run(self) -> str:
        """Live and be judged; the trace's digest."""
        for follower in range(REPLICAS):
            self.later(0.01, self._replicate, follower)
        for caller in self._callers:
            self.later(1.0, self._call, caller)
        self.later(1.0, self._read)
        self.later(2.0, self._fault)
        self.start(0)
        self._until(FAULTY_SECONDS)
        self._heal()
        end = FAULTY_SECONDS + CALM_SECONDS
        self._until(FAULTY_SECONDS + SETTLE_SECONDS)
        before = self.oracle.acknowledgements
        while self.now < end and (self.oracle.acknowledgements < before + 3 or len(self.writers()) > 1):
            self._until(self.now + 1.0)
            if self.now > FAULTY_SECONDS + 3 * SETTLE_SECONDS and self.oracle.torn():
                break
        self.oracle.judge(before)
        return self.trace.hexdigest()


STRANGER: Final = type(SIGNER)(b"nobody's" * 4)
