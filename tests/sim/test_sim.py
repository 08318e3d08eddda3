"""The simulated world: some hundred seeds each time, the same seed the same run, and every wrong protocol found out.

`make sim` tries 10,000 seeds; `python -m tests.sim.run --seed N` shows one.
"""

from __future__ import annotations

import os
from itertools import count

import pytest
from tests.sim.mutants import MUTANTS, Mutant
from tests.sim.oracle import Violation
from tests.sim.run import live
from tests.sim.world import FAULTS, World

SEEDS = int(os.environ.get("MEMOS_SIM_SEEDS", "150"))
MUTANT_SEEDS_MAX = 400


def test_whatever_happens_the_rules_hold() -> None:
    acknowledged, losses, failures = live(range(SEEDS))
    assert failures == []
    assert acknowledged > SEEDS * 5, "the worlds are too hostile to show anything"
    assert losses > SEEDS // 10, "the worlds are too friendly to show anything"


def test_a_world_without_faults_acknowledges_everything_at_once() -> None:
    world = World(0, faults=frozenset())
    world.run()
    assert world.oracle.acknowledgements > 50 and not world.partition.pasts
    assert [kernel.name for kernel in world.writers()] == ["k0.1"]


def test_a_seed_gives_the_same_trace_byte_for_byte() -> None:
    for seed in (1, 2, 3):
        first, second = World(seed, keep=True), World(seed, keep=True)
        assert first.run() == second.run()
        assert first.lines == second.lines
    assert World(1).run() != World(2).run()


def test_a_violation_names_its_seed_commit_and_rule() -> None:
    text = str(Violation(World(77), "a rule", "was broken"))
    assert text.startswith("seed 77 at ") and text.endswith("a rule: was broken")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.kernel.__name__)
def test_the_simulation_tells_a_wrong_protocol_from_the_right_one(mutant: Mutant) -> None:
    assert mutant.faults <= set(FAULTS)
    for seed in count(mutant.first):
        assert seed < mutant.first + MUTANT_SEEDS_MAX, f"{mutant.kernel.__doc__} Nothing shows it"
        try:
            World(seed, mutant.kernel, faults=mutant.faults).run()
        except Violation:
            return
