"""Wrapped data keys in RAM, 61 bytes each: what a key store without a file of its own looks things up in.

- a slot is never made, live or destroyed; a destroyed one stays so, and where its key was are zeros
- slots lie in blocks of `KEY_SLOTS_PER_BLOCK`; a block without a live one costs a byte a slot

Knows no cipher and no device. Not thread-safe.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from memos_syscalls import limits

from . import crypto
from .events import Slot
from .keystore import DESTROYED, LIVE, NEVER

WRAPPED_BYTES: Final = crypto.NONCE_BYTES + crypto.KEY_BYTES + crypto.TAG_BYTES
_PER_BLOCK: Final = limits.KEY_SLOTS_PER_BLOCK
_ZEROS: Final = bytes(WRAPPED_BYTES)


class Block:
    __slots__ = ("live", "states", "wrapped")

    def __init__(self) -> None:
        self.states = bytearray(_PER_BLOCK)
        self.wrapped = bytearray()
        self.live = 0


class SlotTable:
    def __init__(self) -> None:
        self._blocks: dict[tuple[int, int], Block] = {}

    def state(self, slot: Slot) -> int:
        block = self._blocks.get((slot.epoch, slot.n // _PER_BLOCK))
        return NEVER if block is None else block.states[slot.n % _PER_BLOCK]

    def has_block(self, slot: Slot) -> bool:
        return (slot.epoch, slot.n // _PER_BLOCK) in self._blocks

    def put(self, slot: Slot, wrapped: bytes) -> None:
        """Make a slot live, or exchange what a live one holds."""
        assert len(wrapped) == WRAPPED_BYTES
        number, index = divmod(slot.n, _PER_BLOCK)
        block = self._blocks.get((slot.epoch, number))
        if block is None:
            block = self._blocks[slot.epoch, number] = Block()
        assert block.states[index] != DESTROYED, "a destroyed slot stays destroyed"
        if not block.wrapped:
            block.wrapped = bytearray(_PER_BLOCK * WRAPPED_BYTES)
        if block.states[index] == NEVER:
            block.states[index] = LIVE
            block.live += 1
        block.wrapped[index * WRAPPED_BYTES : (index + 1) * WRAPPED_BYTES] = wrapped

    def wrapped(self, slot: Slot) -> bytes | None:
        """The wrapped key of a live slot."""
        number, index = divmod(slot.n, _PER_BLOCK)
        block = self._blocks.get((slot.epoch, number))
        if block is None or block.states[index] != LIVE:
            return None
        return bytes(block.wrapped[index * WRAPPED_BYTES : (index + 1) * WRAPPED_BYTES])

    def destroy(self, slot: Slot) -> None:
        number, index = divmod(slot.n, _PER_BLOCK)
        block = self._blocks.get((slot.epoch, number))
        if block is None:
            block = self._blocks[slot.epoch, number] = Block()
        if block.states[index] == LIVE:
            block.wrapped[index * WRAPPED_BYTES : (index + 1) * WRAPPED_BYTES] = _ZEROS
            block.live -= 1
            if not block.live:
                block.wrapped = bytearray()
        block.states[index] = DESTROYED

    def live_slots(self, epoch: int | None = None) -> Iterator[Slot]:
        """Live slots of one epoch, or of all, in order. What is destroyed meanwhile may still be named."""
        for made_in, number in sorted(self._blocks):
            if epoch is None or made_in == epoch:
                states = bytes(self._blocks[made_in, number].states)
                for index, state in enumerate(states):
                    if state == LIVE:
                        yield Slot(made_in, number * _PER_BLOCK + index)

    def epochs(self) -> list[int]:
        """Epochs that have a live slot."""
        return sorted({epoch for (epoch, _number), block in self._blocks.items() if block.live})

    def __len__(self) -> int:
        """How many slots are live."""
        return sum(block.live for block in self._blocks.values())
