"""One partition of a topic as its brokers keep it: replicas, leader epochs, a high watermark, elections that lose data.

- Producers are idempotent: a batch (`pid`, `n`) stands in a leader's log at most once, and in order.
- Messages below the high watermark are visible. They are *committed* once the in-sync replicas were enough (`MIN_ISR`)
  while they were visible: then, and only then, a producer that asked for acks=all is answered. Unless `strict`, a leader
  that is alone in sync shows what it has not committed, as brokers before Kafka 4 do.
- A clean election loses nothing that was visible; an unclean one, or a loss of power on all replicas, may. What was visible
  and is lost is kept as a past of the partition in `pasts`, for whoever judges afterwards.

No time and no randomness of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

REPLICAS: Final = 3
MIN_ISR: Final = 2

Refusal = Literal["no leader", "gap", "not enough replicas"]


@dataclass(slots=True, eq=False)
class Entry:
    """A message in a log. Copies of one message on several replicas are the same object."""

    data: bytes
    leader_epoch: int
    pid: int
    n: int
    committed: bool = False
    lost: bool = False


@dataclass(slots=True, eq=False)
class Replica:
    log: list[Entry] = field(default_factory=list[Entry])
    alive: bool = True


class Partition:
    def __init__(self, *, strict: bool = True) -> None:
        self.replicas = [Replica() for _ in range(REPLICAS)]
        self.strict = strict
        self.leader: int | None = 0
        self.epoch = 0
        self.isr = set(range(REPLICAS))
        self.high = 0
        self.visible: list[Entry] = []
        """What consumers may have seen; longer than `high` while a new leader does not know yet how far that is."""
        self.pasts: list[list[Entry]] = []
        self.on_change: Callable[[], None] = lambda: None
        self._known: dict[int, int] = {}
        """How far the leader knows its followers to be."""

    # -- the log -----------------------------------------------------------------------------------------------------

    @property
    def log(self) -> list[Entry]:
        assert self.leader is not None
        return self.replicas[self.leader].log

    def append(self, data: bytes, pid: int, n: int, *, settled: bool = False) -> Entry | Refusal:
        """The n-th message of a producer, from 0; a repetition answers with the one that stands there already. A producer
        of whom nothing is left is taken at its word about what came before, if that was `settled`."""
        if self.leader is None:
            return "no leader"
        newest = -1
        for entry in reversed(self.log):
            if entry.pid == pid:
                if entry.n == n:
                    return entry
                newest = max(newest, entry.n)
        if n != newest + 1 and not (newest == -1 and settled):
            return "gap"
        if len(self.isr) < MIN_ISR and self.strict:
            return "not enough replicas"
        entry = Entry(data, self.epoch, pid, n)
        self.log.append(entry)
        self._advance()
        return entry

    def replicate(self, follower: int) -> None:
        """A follower fetches all that the leader has, after dropping what the leader has not."""
        replica = self.replicas[follower]
        if self.leader is None or follower == self.leader or not replica.alive:
            return
        common = _common(replica.log, self.log)
        if common == len(self.log) == len(replica.log) == self._known.get(follower) and follower in self.isr:
            return
        if common < len(replica.log) or common < len(self.log):
            replica.log[common:] = self.log[common:]
        self._known[follower] = len(replica.log)
        self.isr.add(follower)
        self._advance()

    def _advance(self) -> None:
        ends = [len(self.log) if r == self.leader else self._known.get(r, 0) for r in self.isr]
        high = min(ends)
        enough = len(self.isr) >= MIN_ISR
        if enough or not self.strict:
            self.high = max(self.high, high)
        for entry in self.log[len(self.visible) : self.high]:
            entry.lost = False
            self.visible.append(entry)
        if enough:
            for entry in reversed(self.log[: self.high]):
                if entry.committed:
                    break
                entry.committed = True
        self.on_change()

    # -- what happens to brokers ---------------------------------------------------------------------------------------

    def out_of_sync(self, follower: int) -> None:
        """The leader gives a slow follower up."""
        if follower != self.leader and self.leader is not None:
            self.isr.discard(follower)
            self._advance()

    def crash(self, replica: int) -> None:
        self.replicas[replica].alive = False
        if self.leader == replica:
            self.leader = None
            self.on_change()
        elif self.leader is not None:
            self.out_of_sync(replica)
        elif len(self.isr) > 1:
            self.isr.discard(replica)

    def restart(self, replica: int) -> None:
        self.replicas[replica].alive = True

    def elect(self, replica: int) -> None:
        """Make a living replica the leader; unclean if it was not in sync."""
        assert self.replicas[replica].alive
        clean = replica in self.isr
        self.leader = replica
        self.epoch += 1
        self.isr = {r for r in self.isr if self.replicas[r].alive} if clean else {replica}
        self._known = {}
        self._notice_loss()
        self.high = min(self.high, len(self.log), len(self.visible))
        self._advance()

    def forget(self, high: int) -> None:
        """A new leader has heard less of how far the others are than the old one had."""
        self.high = min(self.high, high)

    def lose_power(self, tail: int) -> None:
        """All replicas at once lose what their disks had not got: the newest `tail` messages."""
        keep = max(0, max(len(r.log) for r in self.replicas) - tail)
        for replica in self.replicas:
            del replica.log[keep:]
            replica.alive = True
        self.isr = set(range(REPLICAS))
        longest = max(range(REPLICAS), key=lambda r: len(self.replicas[r].log))
        for replica in self.replicas:
            replica.log[:] = self.replicas[longest].log
        self.elect(longest)

    def _notice_loss(self) -> None:
        common = _common(self.visible, self.log)
        if common == len(self.visible):
            return
        self.pasts.append(list(self.visible))
        for entry in self.visible[common:]:
            entry.lost = True
        # A replica that still has them may be elected later and bring them back.
        del self.visible[common:]

    @property
    def lost_committed(self) -> bool:
        return any(entry.committed and entry.lost for past in self.pasts for entry in past)


def _common(a: list[Entry], b: list[Entry]) -> int:
    """How long the common past of two logs is. The same entry at the same place has the same past."""
    at = min(len(a), len(b))
    while at and a[at - 1] is not b[at - 1]:
        at -= 1
    return at
