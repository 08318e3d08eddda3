"""Wrapped keys in RAM: what was put comes back, what was destroyed does not, and neither costs much."""

from __future__ import annotations

import os
import tracemalloc

import hypothesis.strategies as st
import pytest
from hypothesis import given

from memos_kernel.events import Slot
from memos_kernel.keystore import DESTROYED, LIVE, NEVER
from memos_kernel.slottable import WRAPPED_BYTES, SlotTable
from memos_syscalls import limits

PER_BLOCK = limits.KEY_SLOTS_PER_BLOCK
slots = st.builds(Slot, st.integers(1, 3), st.sampled_from([0, 1, PER_BLOCK - 1, PER_BLOCK, 5 * PER_BLOCK]))


@given(st.lists(st.tuples(slots, st.booleans())))
def test_it_says_what_a_dictionary_would(steps: list[tuple[Slot, bool]]) -> None:
    table, live, gone = SlotTable(), dict[Slot, bytes](), set[Slot]()
    for slot, destroyed in steps:
        if destroyed:
            table.destroy(slot)
            gone.add(slot)
            live.pop(slot, None)
        elif slot not in gone:
            live[slot] = os.urandom(WRAPPED_BYTES)
            table.put(slot, live[slot])
    for slot in {slot for slot, _ in steps}:
        assert table.wrapped(slot) == live.get(slot)
        assert table.state(slot) == (LIVE if slot in live else DESTROYED if slot in gone else NEVER)
    assert list(table.live_slots()) == sorted(live)
    assert list(table.live_slots(2)) == sorted(slot for slot in live if slot.epoch == 2)
    assert len(table) == len(live) and table.epochs() == sorted({slot.epoch for slot in live})


def test_a_destroyed_slot_takes_no_key() -> None:
    table = SlotTable()
    table.destroy(Slot(1, 0))
    with pytest.raises(AssertionError):
        table.put(Slot(1, 0), bytes(WRAPPED_BYTES))


def test_a_hundred_thousand_keys_take_their_bytes_and_destroyed_ones_none() -> None:
    wrapped = os.urandom(WRAPPED_BYTES)
    tracemalloc.start()
    try:
        table = SlotTable()
        for n in range(100_000):
            table.put(Slot(1, n), wrapped)
        assert tracemalloc.get_traced_memory()[0] < 6.5e6
        for n in range(100_000):
            table.destroy(Slot(1, n))
        assert tracemalloc.get_traced_memory()[0] < 0.2e6
    finally:
        tracemalloc.stop()
