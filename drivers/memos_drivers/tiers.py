"""A tier of memory: entries under a byte budget, the least worth keeping leave first. No torch, no clock, no I/O.

What an entry is worth. A hit saves a prefill and costs a loading; what no model made (`prefill_seconds` 0) saves its loading
from the tier below. Worth fades by half with every `HALF_LIFE` seconds without use, and is counted per byte:

    worth = max(prefill_seconds - load_seconds, load_seconds) / bytes * 2 ** (-age / HALF_LIFE)

Two entries fade alike, so their order changes only when one is used. It is kept as `rank = log2(worth now) + now / HALF_LIFE`,
which needs no clock to compare; entries of one kind leave in the order of their last use, as with LRU.

Invariants:

- the bytes of all entries are within the budget, and `stats` says what they are
- a pinned entry leaves only when it is dropped or put again; pins that leave no room make `put` refuse, and evict nothing
- `on_evict` is called once with whatever leaves: evicted, dropped or replaced, after it has left
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Generic, Literal, TypeVar

K = TypeVar("K")
V = TypeVar("V")

HALF_LIFE: Final = 600.0
"""Seconds without use after which an entry is worth half."""
LEAST_SECONDS: Final = 1e-6
SPARE_RANKS: Final = 64

Put = Literal["kept", "too large", "pins in the way"]
"""What became of an entry; the last two were not let in."""


def worth_loading(load_seconds: float, prefill_seconds: float) -> bool:
    """Whether loading beats computing again; what no model made (0) can only be loaded."""
    return prefill_seconds <= 0 or load_seconds < prefill_seconds


def rank(prefill_seconds: float, load_seconds: float, size: int, used: float) -> float:
    """The place of an entry among others, last used at `used`: the least leaves first."""
    worth = max(prefill_seconds - load_seconds, load_seconds, LEAST_SECONDS)
    return math.log2(worth / max(size, 1)) + used / HALF_LIFE


class Speed:
    """Bytes per second as observed, newer observations weighing more."""

    __slots__ = ("_weight", "bytes_per_second")

    def __init__(self, bytes_per_second: float, weight: float = 0.2) -> None:
        self.bytes_per_second = bytes_per_second
        """Assumed until the first observation."""
        self._weight = weight

    def saw(self, size: int, seconds: float) -> None:
        """One transfer; those too short to measure say nothing."""
        if size > 0 and seconds > 0:
            self.bytes_per_second += self._weight * (size / seconds - self.bytes_per_second)

    def seconds(self, size: int) -> float:
        """How long a transfer of this many bytes will take."""
        return size / self.bytes_per_second


class _Entry(Generic[V]):
    __slots__ = ("load_seconds", "pinned", "prefill_seconds", "rank", "size", "value")

    def __init__(self, value: V, size: int, prefill_seconds: float, load_seconds: float, pinned: bool, now: float) -> None:
        self.value = value
        self.size = size
        self.prefill_seconds = prefill_seconds
        self.load_seconds = load_seconds
        self.pinned = pinned
        self.rank = rank(prefill_seconds, load_seconds, size, now)


class Tier(Generic[K, V]):
    """The entries. Times are the caller's seconds, from any beginning."""

    def __init__(self, budget_bytes: int, on_evict: Callable[[K, V], None] | None = None) -> None:
        self.budget_bytes = budget_bytes
        self._on_evict = on_evict
        self._entries: dict[K, _Entry[V]] = {}
        self._ranks: list[tuple[float, int, K]] = []
        """A heap of ranks, with what was overtaken by later ones still in it."""
        self._count = 0
        self.bytes = 0
        self.pinned_bytes = 0
        self._hits = self._misses = self._evictions = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[K]:
        return iter(list(self._entries))

    def __contains__(self, key: K) -> bool:
        return key in self._entries

    def get(self, key: K, now: float) -> V | None:
        """An entry that is used now; counts as hit or miss."""
        entry = self._entries.get(key)
        if entry is None:
            self._misses += 1
            return None
        self._hits += 1
        entry.rank = rank(entry.prefill_seconds, entry.load_seconds, entry.size, now)
        self._note(key, entry)
        return entry.value

    def peek(self, key: K) -> V | None:
        """An entry, not counted as used."""
        entry = self._entries.get(key)
        return None if entry is None else entry.value

    def put(
        self, key: K, value: V, size: int, *, now: float, prefill_seconds: float = 0.0, load_seconds: float = 0.0,
        pinned: bool = False,
    ) -> Put:  # fmt: skip
        """Let an entry in, in place of one of the same key, and whatever is worth least out. One that is not let in is left
        to the caller; one of the same key stays as it was then."""
        old = self._entries.get(key)
        if size > self.budget_bytes:
            return "too large"
        if self.pinned_bytes - (old.size if old is not None and old.pinned else 0) + size > self.budget_bytes:
            return "pins in the way"
        if old is not None:
            self._leave(key)
        while self.bytes + size > self.budget_bytes:
            self._leave(self._least())
            self._evictions += 1
        entry = self._entries[key] = _Entry(value, size, prefill_seconds, load_seconds, pinned, now)
        self.bytes += size
        self.pinned_bytes += size if pinned else 0
        self._note(key, entry)
        return "kept"

    def pin(self, key: K, pinned: bool = True) -> None:
        """Pin an entry, or let it go again; one that is not here is nobody's business."""
        entry = self._entries.get(key)
        if entry is not None and entry.pinned != pinned:
            entry.pinned = pinned
            self.pinned_bytes += entry.size if pinned else -entry.size
            self._note(key, entry)

    def drop(self, keys: Iterable[K]) -> None:
        """Take entries out, pinned or not."""
        for key in list(keys):
            if key in self._entries:
                self._leave(key)

    def stats(self) -> dict[str, int]:
        return {
            "budget": self.budget_bytes, "bytes": self.bytes, "entries": len(self._entries), "pinned": self.pinned_bytes,
            "hits": self._hits, "misses": self._misses, "evictions": self._evictions,
        }  # fmt: skip

    def _note(self, key: K, entry: _Entry[V]) -> None:
        """Put an entry's rank into the heap; pinned ones are not looked for there."""
        if entry.pinned:
            return
        self._count += 1
        heapq.heappush(self._ranks, (entry.rank, self._count, key))
        if len(self._ranks) > 2 * len(self._entries) + SPARE_RANKS:
            self._ranks = [(e.rank, at, k) for at, (k, e) in enumerate(self._entries.items()) if not e.pinned]
            heapq.heapify(self._ranks)

    def _least(self) -> K:
        """The entry to leave next. There is one: what is pinned was seen to leave room."""
        while True:
            found, _count, key = heapq.heappop(self._ranks)
            entry = self._entries.get(key)
            if entry is not None and not entry.pinned and entry.rank == found:
                return key

    def _leave(self, key: K) -> None:
        entry = self._entries.pop(key)
        self.bytes -= entry.size
        self.pinned_bytes -= entry.size if entry.pinned else 0
        if self._on_evict is not None:
            self._on_evict(key, entry.value)
