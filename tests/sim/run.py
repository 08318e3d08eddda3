"""Many seeds of the simulation, on all processors: `python -m tests.sim.run`. With `--seed N` one of them, and its trace."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Final

from tests.sim.oracle import Violation
from tests.sim.world import World

BATCH_SEEDS: Final = 50
FAILURES_MAX: Final = 10


def live(seeds: range) -> tuple[int, int, list[str]]:
    """How much was acknowledged in some worlds, how often they lost data, and what did not hold."""
    acknowledged, losses, failures = 0, 0, list[str]()
    for seed in seeds:
        world = World(seed)
        try:
            world.run()
        except Violation as violation:
            failures.append(str(violation))
        acknowledged += world.oracle.acknowledgements
        losses += len(world.partition.pasts)
    return acknowledged, losses, failures


def one(seed: int) -> int:
    world = World(seed, keep=True)
    try:
        world.run()
    except Violation as violation:
        print(*(world.lines or []), violation, sep="\n")
        return 1
    print(*(world.lines or []), sep="\n")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.sim.run", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10_000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="this one only, with its trace")
    given = parser.parse_args()
    if given.seed is not None:
        return one(given.seed)
    begun = time.monotonic()
    end = given.first + given.seeds
    batches = [range(at, min(at + BATCH_SEEDS, end)) for at in range(given.first, end, BATCH_SEEDS)]
    acknowledged, losses, failures = 0, 0, list[str]()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for more, lost, failed in pool.map(live, batches):
            acknowledged, losses = acknowledged + more, losses + lost
            for failure in itertools.islice(failed, max(0, FAILURES_MAX - len(failures))):
                print(failure, flush=True)
            failures += failed
    print(
        f"{given.seeds} seeds in {time.monotonic() - begun:.0f} s: {acknowledged} requests acknowledged, "
        f"{losses} losses of visible data, {len(failures)} violations"
    )
    if failures:
        print("see one again: python -m tests.sim.run --seed N")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
