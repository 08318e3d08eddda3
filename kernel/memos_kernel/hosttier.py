"""The host tier: decrypted payloads in sealed memory of this machine, under a byte budget, ready to be passed on.

- `load` finds a payload here, or reads it from the store: piece by piece, off the loop, one load per payload however many
  ask, `LOADS` at a time. What was opened is checked by its tags; nothing that does not open comes in.
- A payload's descriptor lives as long as someone holds its `Memory`; the tier's own hold ends with eviction. Whoever passes
  it on passes a duplicate, so that nobody closes another's.
- What is under a destroyed key goes at once (`forget`), and a load that was under way does not bring it back.
- A pinned cube's newest payload is not evicted. The pin is a row of the state (`p`), asked for here, not a copy of it.

Everything but `_read` runs on the event loop.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Literal, NamedTuple

from memos_drivers.tensors import Layout
from memos_drivers.tiers import Put, Speed, Tier
from memos_syscalls import limits
from memos_syscalls.errors import MemAgain, MemError, MemInvalid, MemIO

from . import events as ev
from .decide import shredded
from .events import Damaged, Record, Slot
from .fds import is_sealed, sealed_pieces
from .governance import text_id
from .state import Cube, Version, View
from .vault import Vault

LOADS: Final = 2
"""Payloads that are read and decrypted at once."""
ASSUMED_BYTES_PER_SECOND: Final = 500 * limits.MIB
"""Until a load was measured."""
MEASURED_BYTES_MIN: Final = limits.MIB
"""Shorter loads say more about threads than about the disk."""
BUDGET_MAX: Final = 8 * limits.GIB


def budget_default() -> int:
    """A quarter of this machine's memory, within `BUDGET_MAX`."""
    return min(BUDGET_MAX, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4)


class Memory:
    """A descriptor of sealed memory that closes with its last holder."""

    __slots__ = ("fd", "layout")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.layout: Layout | None = None
        """Where its tensors lie, once somebody asked."""

    def __del__(self) -> None:
        os.close(self.fd)


class Held(NamedTuple):
    """A payload, and where it was found. Keep it until its descriptor is duplicated."""

    memory: Memory
    bytes: int
    found: Literal["host", "disk"]
    seconds: float
    """That the load took."""

    @property
    def fd(self) -> int:
        return self.memory.fd


class _Kept(NamedTuple):
    memory: Memory
    slot: Slot
    cubes: set[bytes]
    """That asked for it: a fork reads its source's payloads."""


class _Load:
    """A load under way, for everybody who waits for it."""

    __slots__ = ("given_up", "task", "waiting")

    def __init__(self) -> None:
        self.task: asyncio.Task[Memory]
        self.waiting = 0
        self.given_up = False
        """Nobody waits any more; the thread stops at the next piece."""


class GivenUp(Exception):
    """Nobody waits for this load."""


class HostTier:
    def __init__(
        self, vault: Vault, view: Callable[[], View], budget_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._vault = vault
        self._view = view
        self._clock = clock
        self._tier: Tier[bytes, _Kept] = Tier(budget_bytes, self._left)
        self._of_cube: dict[bytes, set[bytes]] = {}
        """Payloads that are here, by cube."""
        self._loads: dict[bytes, _Load] = {}
        self._turns = asyncio.Semaphore(LOADS)
        self._closed = False
        self.speed = Speed(ASSUMED_BYTES_PER_SECOND)

    # -- asking --------------------------------------------------------------------------------------------------------

    async def load(self, cube: Cube, row: Version) -> Held:
        """A version's payload; raises `MemShredded`, `Damaged`, `MemAgain` for an adapter that is still to be trained, or
        `MemIO` when there is no memory for it."""
        began = self._clock()
        self._refuse_destroyed(row)
        if cube.form == "parametric" and not row.payload_bytes:
            raise MemAgain(f"cube {text_id(cube.cube_id)} is still being trained", "Wait for its job, then ask again.")
        kept = self._tier.get(row.payload_id, began)
        if kept is not None:
            if cube.cube_id not in kept.cubes:
                self._named(row.payload_id, kept, cube.cube_id)
            return Held(kept.memory, row.payload_bytes, "host", 0.0)
        if self._closed:
            raise MemAgain("the kernel is stopping")
        load = self._loads.get(row.payload_id)
        if load is None:
            load = self._loads[row.payload_id] = _Load()
            load.task = asyncio.create_task(self._load(cube, row, load))
            load.task.add_done_callback(lambda _task: self._ended(row.payload_id, load))
        load.waiting += 1
        try:
            memory = await asyncio.shield(load.task)
        finally:
            load.waiting -= 1
            if not load.waiting and not load.task.done():
                load.given_up = True
                load.task.cancel()
                self._ended(row.payload_id, load)
        self._refuse_destroyed(row)
        kept = self._tier.peek(row.payload_id)
        if kept is not None and cube.cube_id not in kept.cubes:
            self._named(row.payload_id, kept, cube.cube_id)
        return Held(memory, row.payload_bytes, "disk", self._clock() - began)

    def seconds_to_load(self, row: Version) -> float:
        """How long `load` will take, as far as can be told."""
        return 0.0 if row.payload_id in self._tier else self.speed.seconds(row.payload_bytes)

    def stats(self) -> dict[str, Any]:
        return {
            **self._tier.stats(), "loading": len(self._loads), "load_bytes_per_s": round(self.speed.bytes_per_second),
        }  # fmt: skip

    # -- changing ------------------------------------------------------------------------------------------------------

    def put(self, row: Version, fd: int, seconds_saved: float) -> Put:
        """Take in a payload that is in sealed memory already. The descriptor is the tier's from here on, come what may."""
        memory = Memory(fd)
        if not is_sealed(fd) or os.fstat(fd).st_size != row.payload_bytes:
            raise MemInvalid("a payload for the host tier is sealed memory of its version's size")
        self._refuse_destroyed(row)
        return self._admit(row, memory, row.cube_id, seconds_saved)

    def forget(self, slots: Iterable[Slot]) -> None:
        """Let go of everything under these keys; the vault must have forgotten them before."""
        gone = set(slots)
        self._tier.drop([key for key in self._tier if (kept := self._tier.peek(key)) is not None and kept.slot in gone])

    def drop(self, payload_ids: Iterable[bytes]) -> None:
        """Let go of payloads, pinned or not; they stay on disk."""
        self._tier.drop(payload_ids)

    def committed(self, record: Record) -> None:
        """A record is durable: what it pins or unpins, by name or by a new version, is looked at again."""
        if not self._of_cube:
            return
        for event in record.events:
            if event.name in (ev.PINNED, ev.WRITTEN, ev.STATE_CHANGED, ev.UNMERGED):
                self._review(event.fields[0])
            elif event.name == ev.EXPIRED:
                for cube_id, _version in event.fields[0]:
                    self._review(cube_id)

    def close(self) -> None:
        """Give up what is being loaded and let go of everything."""
        self._closed = True
        self._tier.budget_bytes = -1  # nothing comes in any more
        for load in self._loads.values():
            load.given_up = True
            load.task.cancel()
        self._tier.drop(list(self._tier))

    # -- loading -------------------------------------------------------------------------------------------------------

    async def _load(self, cube: Cube, row: Version, load: _Load) -> Memory:
        async with self._turns:
            began = self._clock()
            memory = await asyncio.to_thread(self._read, row, load)
            seconds = self._clock() - began
        if row.payload_bytes >= MEASURED_BYTES_MIN:
            self.speed.saw(row.payload_bytes, seconds)
        self._refuse_destroyed(row)
        self._admit(row, memory, cube.cube_id, self._prefill_seconds(cube, row))
        return memory

    def _read(self, row: Version, load: _Load) -> Memory:
        """Read, decrypt and seal, in a thread."""

        def pieces() -> Iterator[memoryview]:
            for piece in self._vault.open_pieces(row):
                if load.given_up:
                    raise GivenUp
                yield piece

        try:
            return Memory(sealed_pieces(pieces()))
        except OSError as error:
            named = f"the payload of version {row.version} of cube {row.cube_id.hex()}"
            raise MemIO(f"{named} could not be brought into memory: {error}", "Try again when there is more room.") from error

    def _ended(self, payload_id: bytes, load: _Load) -> None:
        if self._loads.get(payload_id) is load:
            del self._loads[payload_id]

    def _refuse_destroyed(self, row: Version) -> None:
        if self._vault.is_destroyed(row.payload_slot):
            raise shredded(row.cube_id)

    def _prefill_seconds(self, cube: Cube, row: Version) -> float:
        """What the payload cost to make, when a model made it."""
        opened = self._vault.cached(cube.cube_id, row.version)
        try:
            if opened is not None:
                recipe = opened.private.recipe
            else:
                found = self._view().version(cube, row.version)
                recipe = None if found is None else self._vault.open_private(*found).recipe
        except (MemError, Damaged):
            # Erased, or damaged where this load did not look; what it cost is not known then.
            return 0.0
        seconds = (recipe or {}).get("prefill_seconds", 0.0)
        return float(seconds) if isinstance(seconds, (int, float)) else 0.0

    # -- keeping -------------------------------------------------------------------------------------------------------

    def _admit(self, row: Version, memory: Memory, cube_id: bytes, prefill_seconds: float) -> Put:
        kept, size = _Kept(memory, row.payload_slot, {cube_id}), row.payload_bytes
        # What no model made leaves in the order of its last use: measured, each would be worth what the disk was up to then.
        load_seconds = self.speed.seconds(size) if prefill_seconds > 0 else size / ASSUMED_BYTES_PER_SECOND
        outcome = self._tier.put(
            row.payload_id, kept, size, now=self._clock(), prefill_seconds=prefill_seconds, load_seconds=load_seconds,
            pinned=self._is_pinned(row.payload_id, kept),
        )  # fmt: skip
        if outcome == "kept":
            self._of_cube.setdefault(cube_id, set()).add(row.payload_id)
        return outcome

    def _named(self, payload_id: bytes, kept: _Kept, cube_id: bytes) -> None:
        """Another cube reads this payload."""
        kept.cubes.add(cube_id)
        self._of_cube.setdefault(cube_id, set()).add(payload_id)
        self._tier.pin(payload_id, self._is_pinned(payload_id, kept))

    def _left(self, payload_id: bytes, kept: _Kept) -> None:
        for cube_id in kept.cubes:
            payloads = self._of_cube[cube_id]
            payloads.discard(payload_id)
            if not payloads:
                del self._of_cube[cube_id]

    def _review(self, cube_id: bytes) -> None:
        for payload_id in self._of_cube.get(cube_id, ()):
            kept = self._tier.peek(payload_id)
            if kept is not None:
                self._tier.pin(payload_id, self._is_pinned(payload_id, kept))

    def _is_pinned(self, payload_id: bytes, kept: _Kept) -> bool:
        """Whether a cube that is pinned reads this now."""
        view = self._view()
        for cube_id in kept.cubes:
            if view.pinned(cube_id) and (cube := view.cube(cube_id)) is not None:
                found = view.version(cube, cube.version)
                if found is not None and found[0].payload_id == payload_id:
                    return True
        return False
