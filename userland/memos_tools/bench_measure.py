"""How benchmarks measure: latencies of calls, blocks that alternate, and the kernel a benchmark runs against.

- A `Measured` is one line of a result: percentiles in microseconds, a rate, and whatever else the line says.
- `alternate` runs short blocks of several functions in turn, so that what else the machine does meets all of them alike;
  ratios are taken block by block, and the median of those is what counts.
- `private` is a kernel of the benchmark's own, on a directory that goes when it ends. The directory lies where `--dir`
  says: a durable write is as fast as the disk under it.

Nothing here judges: targets stand in docs/benchmarks.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from memos_client import Kernel

TEXT: Final = ("Alice's dog is a beagle named Biscuit; she walks him along the river before breakfast. " * 4)[:300]
"""A content of 300 bytes."""
NO_MODEL: Final = ("--embedder", "none", "--log-level", "error")
WARM_CALLS: Final = 200
WARM_SHARE: Final = 3
"""Calls at the start of each block that are not counted: caches and processors wake up."""


@dataclass(frozen=True)
class Measured:
    """One line of a result. Latencies are microseconds; what does not apply is None."""

    name: str
    count: int
    p50_us: float | None = None
    p95_us: float | None = None
    p99_us: float | None = None
    per_s: float | None = None
    more: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def to_json(self) -> dict[str, Any]:
        found = {name: value for name, value in asdict(self).items() if value is not None and name != "more"}
        return found | dict(self.more)


def latencies(name: str, samples_ns: Sequence[int], wall_s: float | None = None, **more: Any) -> Measured:
    """Percentiles of samples; the rate is calls over `wall_s`, or over the samples' sum."""
    ordered = sorted(samples_ns)
    seconds = wall_s if wall_s is not None else sum(ordered) / 1e9

    def at(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))] / 1000, 1)

    return Measured(name, len(ordered), at(0.5), at(0.95), at(0.99), round(len(ordered) / seconds, 1), more)


def rate(name: str, count: int, seconds: float, **more: Any) -> Measured:
    return Measured(name, count, per_s=round(count / seconds, 1), more={"seconds": round(seconds, 3), **more})


def timed(call: Callable[[], object], times: int) -> list[int]:
    """Nanoseconds of each of `times` calls."""
    clock = time.perf_counter_ns
    samples: list[int] = []
    for _ in range(times):
        began = clock()
        call()
        samples.append(clock() - began)
    return samples


def alternate(functions: Mapping[str, Callable[[], object]], blocks: int, per_block: int) -> dict[str, list[list[int]]]:
    """Samples of each function, block by block, the functions in turn."""
    found: dict[str, list[list[int]]] = {name: [] for name in functions}
    for call in functions.values():
        timed(call, WARM_CALLS)
    for _ in range(blocks):
        for name, call in functions.items():
            timed(call, WARM_SHARE)
            found[name].append(timed(call, per_block))
    return found


def flat(blocks: Sequence[Sequence[int]]) -> list[int]:
    return [sample for block in blocks for sample in block]


def ratio(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> float:
    """Median over the blocks of our block's median to theirs."""
    return round(
        statistics.median(statistics.median(a) / statistics.median(b) for a, b in zip(ours, theirs, strict=True)), 3
    )


async def in_flight(calls: Sequence[Callable[[], Awaitable[object]]], seconds: float) -> tuple[list[int], float]:
    """Each of `calls` over and over for `seconds`, all at the same time; `(samples, wall seconds)`."""
    clock = time.perf_counter_ns
    samples: list[int] = []
    end = clock() + int(seconds * 1e9)

    async def repeat(call: Callable[[], Awaitable[object]]) -> None:
        while (began := clock()) < end:
            await call()
            samples.append(clock() - began)

    began = time.perf_counter()
    await asyncio.gather(*(repeat(call) for call in calls))
    return samples, time.perf_counter() - began


@contextlib.contextmanager
def scratch(parent: Path | None) -> Generator[Path]:
    """A directory for the time of a benchmark."""
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    path = Path(tempfile.mkdtemp(prefix="memos-bench-", dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def private(parent: Path | None, args: Sequence[str] = NO_MODEL) -> Generator[Kernel]:
    """A kernel of the benchmark's own."""
    with scratch(parent) as path, Kernel.spawn(path / "data", args=args) as kernel:
        yield kernel


def rss_bytes(pid: int) -> int:
    """Resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def build(kernel: Kernel, items: Callable[[int], Mapping[str, Any]], count: int, batch: int) -> float:
    """Make `count` cubes, `batch` in a record; the seconds it took."""
    began = time.perf_counter()
    for first in range(0, count, batch):
        kernel.mem_alloc_many([items(place) for place in range(first, min(first + batch, count))])
    return time.perf_counter() - began


def settle(kernel: Kernel, index: str, head: int, wait_s: float = 3600) -> float:
    """Wait until an index has everything up to `head`; the seconds it took. Raises `TimeoutError`."""
    began = time.perf_counter()
    while kernel.sys_stats(deadline_ms=600_000).indexes[index]["indexed_offset"] < head:
        if time.perf_counter() - began > wait_s:
            raise TimeoutError(f"the {index} index is not at offset {head} after {wait_s:.0f} s")
        time.sleep(0.1)
    return time.perf_counter() - began
