"""`memctl bench WORKLOAD`: measure a kernel of the benchmark's own, with a table for people or one JSON line for machines.

Every workload is a client program that anyone could have written: it starts a private kernel, calls it over its socket, and
removes it. Peers and targets are the business of tests/bench/run.py and docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from .bench_calls import alloc, mixed, read
from .bench_disk import replays, start
from .bench_measure import Measured
from .bench_recall import CUTS, kernel_for, measure
from .bench_search import search
from .bench_sets import LOADERS, files_of
from .render import Rows, print_blocks, to_json

Workload = Callable[[argparse.Namespace], list[Measured]]
DATA = Path("../shared/data")
"""Where sets of evaluation data lie by convention: beside the repository, never in it."""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("memctl bench", description="Measure a kernel of the benchmark's own.")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="one JSON line")
    common.add_argument("--dir", type=Path, help="where the data lies meanwhile (default: the temporary directory)")
    subcommands = p.add_subparsers(title="workloads", required=True, metavar="WORKLOAD", dest="workload")

    def add(name: str, run: Workload, text: str) -> argparse.ArgumentParser:
        command = subcommands.add_parser(name, help=text, description=text, parents=[common])
        command.set_defaults(run=run)
        return command

    c = add("read", lambda a: read(a.dir, a.blocks, a.calls), "mem_read and mem_stat of 300 B, one blocking client")
    c.add_argument("--blocks", type=int, default=50, help="blocks of calls (default: 50)")
    c.add_argument("--calls", type=int, default=200, help="calls in a block (default: 200)")
    c = add("alloc", lambda a: alloc(a.dir, a.calls, a.seconds), "durable mem_alloc of 300 B: one client, 64 in flight")
    c.add_argument("--calls", type=int, default=3000, help="calls of the one client (default: 3000)")
    c.add_argument("--seconds", type=float, default=5, help="seconds of each load with 64 in flight (default: 5)")
    c = add("start", lambda a: start(a.dir, a.cubes), "start on many cubes: first read, first search, memory")
    c.add_argument("--cubes", type=int, default=100_000, help="cubes of 300 B (default: 100000)")
    c = add("replay", lambda a: replays(a.dir, a.records, a.data_dir), "replay and verify a log, records a second")
    c.add_argument("--records", type=int, default=20_000, help="records of the log to make (default: 20000)")
    c.add_argument("--data-dir", type=Path, help="use this stopped data directory instead; it is not changed")
    c = add("search", lambda a: search(a.dir, a.cubes, a.queries), "mem_search over many cubes, vectors given")
    c.add_argument("--cubes", type=int, default=100_000, help="cubes with vectors (default: 100000)")
    c.add_argument("--queries", type=int, default=300, help="queries of each kind (default: 300)")
    for name, text in (
        ("locomo", "evidence recall in LoCoMo conversations, with the kernel's own embedder"),
        ("longmemeval", "evidence recall in pooled LongMemEval sessions, and whether what is current is found first"),
    ):
        c = add(name, _recall, text)
        c.add_argument("files", type=Path, nargs="*", metavar="FILE", help="files in that format (default: those in --data)")
        c.add_argument("--data", type=Path, default=DATA, help=f"folder with {name}/{LOADERS[name][0]} (default: {DATA})")
        c.add_argument("--socket", type=Path, help="measure this running kernel, which keeps the cubes; not one of its own")
        c.add_argument("--ablate", action="store_true", help="also with stages of the search left out")
        c.add_argument("--embedder", default="minilm", help="the kernel's --embedder (default: minilm)")
        c.add_argument("--wait-s", type=float, default=1800, help="longest wait for the vectors (default: 1800)")
    c = add("mixed", lambda a: mixed(a.dir, a.seconds), "mem_read beside 64 writers and a hostile client")
    c.add_argument("--seconds", type=float, default=10, help="seconds under each load (default: 10)")
    return p


def _recall(a: argparse.Namespace) -> list[Measured]:
    files: list[Path] = a.files or files_of(a.workload, a.data)
    if not files:
        raise SystemExit(f"memctl: no {LOADERS[a.workload][0]} in {a.data}; name the files, or their folder with --data")
    try:
        recall_set = LOADERS[a.workload][1](files)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        names = ", ".join(str(file) for file in files)
        raise SystemExit(f"memctl: {names}: not all in the format of {a.workload} ({error!r}); name other files") from error
    with kernel_for(a.dir, a.socket, ("--embedder", a.embedder)) as kernel:
        return measure(kernel, recall_set, a.wait_s, a.ablate)


def machine() -> dict[str, Any]:
    """What it ran on."""
    model = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": model, "cores": os.cpu_count(), "memory_gib": round(memory / 2**30, 1), "system": platform.release(),
        "python": platform.python_version(), "load_1m": round(os.getloadavg()[0], 2),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }  # fmt: skip


def _shown(row: Measured) -> tuple[str, ...]:
    def number(value: float | None) -> str:
        return "" if value is None else f"{value:,.1f}"

    more = " ".join(f"{name}={value}" for name, value in row.more.items())
    return row.name, str(row.count), number(row.p50_us), number(row.p95_us), number(row.p99_us), number(row.per_s), more


def _recalled(row: Measured) -> tuple[str, ...]:
    found = row.more
    low, high = found.get("interval_10", (None, None))
    shares = [f"{found[f'at_{cut}']:.3f}" for cut in CUTS]
    span = "" if low is None else f"{low:.3f}–{high:.3f}"
    return row.name, str(row.count), *shares[:2], span, *shares[2:], str(found["tokens_10"])


def main(argv: Sequence[str] | None = None) -> int:
    """The `memctl bench` command; returns its exit status."""
    arguments = parser().parse_args(argv)
    rows: list[Measured] = arguments.run(arguments)
    if arguments.json:
        print(to_json({"workload": arguments.workload, "machine": machine(), "rows": [row.to_json() for row in rows]}))
    else:
        columns = ("what", "count", "p50 µs", "p95 µs", "p99 µs", "per s", "")
        recalled = [row for row in rows if "at_10" in row.more]
        blocks = [Rows(columns, [_shown(row) for row in rows if row not in recalled])]
        if recalled:
            shares = ("recall", "questions", "@5", "@10", "95 % of @10", "@20", "@50", "tokens @10")
            blocks.append(Rows(shares, [_recalled(row) for row in recalled]))
        print_blocks(Console(), blocks)
    return 0
