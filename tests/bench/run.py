"""Everything in one run: our workloads beside their peers, as JSON and as a Markdown table.

    .venv/bin/python tests/bench/run.py --peers DIR [--only read,alloc,…] [--quick] [--locomo DIR] [--out FILE] [--docs PAGE]

Blocks of ours and of a peer's follow each other in one process, and ratios are taken block by block: what else the machine
does meets both alike. A peer that is not installed is left out and named as such. Nothing here fails on a number.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import functools
import importlib
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memos_tools.bench import machine
from memos_tools.bench_calls import (
    FLIGHT,
    alloc_function,
    alloc_many_connections,
    alloc_one_connection,
    mixed,
    read_functions,
)
from memos_tools.bench_disk import replays, start
from memos_tools.bench_measure import (
    TEXT,
    Measured,
    alternate,
    flat,
    in_flight,
    latencies,
    private,
    ratio,
    scratch,
    timed,
)
from memos_tools.bench_recall import locomo
from memos_tools.bench_search import search

HERE = Path(__file__).parent
MARKS = ("<!-- measured -->", "<!-- /measured -->")
LOCOMO = HERE.parents[2] / "shared" / "data" / "locomo"


@dataclass
class Goal:
    """One line of the table: what was wanted, what was measured, beside whom."""

    what: str
    ours: str
    peer: str
    measured: float | None
    """The number that the target is about."""
    target: str
    met: bool | None


class Run:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self.parent: Path | None = arguments.dir
        self.peers: Path | None = arguments.peers
        self.scale = 0.2 if arguments.quick else 1.0
        self.locomo: Path = arguments.locomo
        self.rows: list[Measured] = []
        self.goals: list[Goal] = []
        if self.peers is not None:
            # After our own paths: what both have is ours.
            sys.path.extend(str(path) for path in self.peers.glob("lib/python3*/site-packages"))

    def times(self, count: int) -> int:
        return max(3, int(count * self.scale))

    def at_most(self, what: str, ours: str, peer: str, measured: float, most: float, unit: str) -> None:
        self.goals.append(Goal(what, ours, peer, measured, f"≤ {most:g} {unit}", measured <= most))

    def at_least(self, what: str, ours: str, peer: str, measured: float, least: float, unit: str) -> None:
        self.goals.append(Goal(what, ours, peer, measured, f"≥ {least:g} {unit}", measured >= least))

    def beside(self, what: str, ours: str, peer: str, measured: float, unit: str) -> None:
        """A comparison without a target."""
        self.goals.append(Goal(what, ours, peer, measured, f"({unit})", None))

    def missing(self, what: str, peer: str) -> None:
        self.goals.append(Goal(what, "", f"{peer}: not installed", None, "", None))

    # -- read ----------------------------------------------------------------------------------------------------------

    def read(self) -> None:
        with contextlib.ExitStack() as stack:
            kernel = stack.enter_context(private(self.parent))
            functions = dict(read_functions(kernel))
            ours = list(functions)
            redis = stack.enter_context(redis_server(self.parent))
            client = module("redis") if redis else None
            if redis and client is not None:
                connection = client.Redis(unix_socket_path=redis)
                connection.set("key", TEXT)
                functions["redis-py GET 300 B"] = lambda: connection.get("key")
            found = alternate(functions, self.times(60), 200)
            self.rows += [latencies(name, flat(samples)) for name, samples in found.items()]
            for name in ours:
                if "redis-py GET 300 B" not in found:
                    self.missing(name, "redis-py")
                    continue
                theirs = found["redis-py GET 300 B"]
                self.at_most(
                    name, p50(found[name]), f"redis-py GET {p50(theirs)}", ratio(found[name], theirs), 0.8, "× redis-py"
                )

    # -- alloc ---------------------------------------------------------------------------------------------------------

    def alloc(self) -> None:
        with contextlib.ExitStack() as stack:
            kernel = stack.enter_context(private(self.parent))
            put, close = rocks(stack.enter_context(scratch(self.parent)))
            found = alternate({"alloc": alloc_function(kernel), "put": put}, self.times(40), 50)
            close()
            self.rows.append(latencies("mem_alloc 300 B, one client", flat(found["alloc"])))
            self.rows.append(latencies("RocksDB put 300 B, fsync", flat(found["put"])))
            share = ratio(found["alloc"], found["put"])
            self.at_most("mem_alloc, one client", p50(found["alloc"]), f"RocksDB put {p50(found['put'])}", share, 2.5, "× put")
            self._flight(kernel.path, stack.enter_context(redis_server(self.parent)))
            self._serial(kernel)

    def _flight(self, path: str, redis: str | None) -> None:
        """64 in flight: rates of ours and of Redis in turn, three times over."""
        seconds = max(1.0, 3 * self.scale)
        loads: dict[str, Callable[[], float]] = {
            f"mem_alloc, {FLIGHT} in flight, one connection": lambda: per_s(asyncio.run(alloc_one_connection(path, seconds))),
            f"mem_alloc, {FLIGHT} connections": lambda: per_s(asyncio.run(alloc_many_connections(path, seconds))),
        }
        ours = list(loads)
        peers: list[str] = []
        if redis is not None:
            peers.append(f"redis-benchmark -c {FLIGHT} SET")
            loads[peers[-1]] = lambda: redis_benchmark(redis, self.times(60_000))
            if (aio := module("redis.asyncio")) is not None:
                peers.append(f"redis-py asyncio, {FLIGHT} in flight, SET")
                loads[peers[-1]] = lambda: per_s(asyncio.run(redis_asyncio(aio, redis, seconds)))
        rates: dict[str, list[float]] = {name: [] for name in loads}
        for _ in range(3):
            for name, load in loads.items():
                rates[name].append(load())
        for name, found in rates.items():
            self.rows.append(Measured(name, len(found), per_s=round(statistics.median(found), 1)))
        for name in ours:
            for peer in peers:
                share = statistics.median(a / b for a, b in zip(rates[name], rates[peer], strict=True))
                self.at_least(name, shown(rates[name]), f"{peer} {shown(rates[peer])}", round(share, 3), 0.25, "× Redis")
        if not peers:
            self.missing(ours[0], "redis")

    def _serial(self, kernel: Any) -> None:
        """Peers that take one write at a time, between two of our rates with 64 in flight on one connection."""
        for name, script, count, least in (
            ("mem0ai add, infer=False", "peer_mem0.py", 400, 20),
            ("eventsourcing on SQLite, save", "peer_eventsourcing.py", 2000, 10),
        ):
            # Ours before and after theirs: the machine may have become another meanwhile.
            rates = [per_s(asyncio.run(alloc_one_connection(kernel.path, 2)))]
            with scratch(self.parent) as path:
                answer = self._peer(script, str(path), str(self.times(count)))
            if answer is None:
                self.missing(f"mem_alloc, {FLIGHT} in flight", name)
                continue
            rates.append(per_s(asyncio.run(alloc_one_connection(kernel.path, 2))))
            best = statistics.mean(rates)
            one = latencies("", timed(alloc_function(kernel), self.times(1000))).per_s or 0
            theirs = answer.pop("per_s")
            more = {key: round(value, 1) for key, value in answer.items()} | {"ours_one_client_per_s": one}
            self.rows.append(Measured(name, self.times(count), per_s=round(theirs, 1), more=more))
            ours = f"{best:,.0f}/s (one client {one:,.0f}/s)"
            share = round(best / theirs, 2)
            what, unit = f"mem_alloc, {FLIGHT} in flight", f"× {name.split()[0]}"
            self.at_least(what, ours, f"{name} {theirs:,.0f}/s", share, least, unit)

    def _peer(self, script: str, *words: str) -> dict[str, float] | None:
        if self.peers is None:
            return None
        done = subprocess.run(
            [str(self.peers / "bin" / "python"), str(HERE / script), *words], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            print(f"{script}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
            return None
        found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
        return found

    # -- the rest ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        rows = {row.name: row for row in start(self.parent, self.times(100_000))}
        self.rows += rows.values()
        for name in ("start after a clean stop", "start after kill -9"):
            more = rows[name].more
            self.at_most(f"{name}: first mem_read", f"{more['first_read_s']} s", "", more["first_read_s"], 1, "s")
            self.at_most(f"{name}: first lexical search", f"{more['first_search_s']} s", "", more["first_search_s"], 3, "s")
        memory = rows["resident bytes per cube, no vectors"].more
        for name, value in memory.items():
            self.at_most(f"resident bytes per cube, {name.replace('_', ' ')}", f"{value} B", "", value, 2048, "B")

    def replay(self) -> None:
        least = {"replay into memory": 40_000, "replay into RocksDB": 40_000, "verify": 100_000, "verify --full": 20_000}
        for row in replays(self.parent, self.times(50_000), None):
            self.rows.append(row)
            self.at_least(row.name, f"{row.per_s:,.0f}/s", "", row.per_s or 0, least[row.name], "records/s")

    def search(self) -> None:
        for row in search(self.parent, self.times(100_000), self.times(300)):
            self.rows.append(row)
            if row.p50_us is not None:
                self.at_most(f"{row.name}, p50", f"{row.p50_us / 1000:.2f} ms", "", round(row.p50_us / 1000, 2), 10, "ms")

    def mixed(self) -> None:
        for row in mixed(self.parent, max(3.0, 10 * self.scale)):
            self.rows.append(row)
            if row.p99_us is not None:
                self.at_most(f"{row.name}, p99", f"{row.p99_us / 1000:.2f} ms", "", round(row.p99_us / 1000, 2), 5, "ms")

    def recall(self) -> None:
        files = sorted(self.locomo.glob("conv-*.json"))
        if not files:
            self.goals.append(Goal("LoCoMo evidence recall @10", "", f"no data in {self.locomo.name}", None, "≥ 0.57", None))
            return
        for row in locomo(self.parent, files, 3600, ("--embedder", "minilm")):
            self.rows.append(row)
            if row.name == "recall, all":
                self.at_least("LoCoMo evidence recall @10", str(row.more["at_10"]), "", row.more["at_10"], 0.57, "")


# -- peers -------------------------------------------------------------------------------------------------------------


def module(name: str) -> Any:
    """A peer's module, or None."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


@contextlib.contextmanager
def redis_server(parent: Path | None) -> Generator[str | None]:
    """A Redis that fsyncs every write, on a Unix socket; None when there is none."""
    if shutil.which("redis-server") is None:
        yield None
        return
    with scratch(parent) as path:
        socket = str(path / "redis.sock")
        words = ["--port", "0", "--unixsocket", socket, "--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        process = subprocess.Popen(["redis-server", "--dir", str(path), *words], stdout=subprocess.DEVNULL)
        try:
            while not os.path.exists(socket):
                time.sleep(0.02)
            yield socket
        finally:
            process.terminate()
            process.wait()


def redis_benchmark(socket: str, count: int) -> float:
    """SETs a second of 300 B by Redis's own client, written in C."""
    words = ["-s", socket, "-c", str(FLIGHT), "-n", str(count), "-d", "300", "-t", "set", "-r", "100000", "--csv"]
    done = subprocess.run(["redis-benchmark", *words], capture_output=True, text=True, check=True)
    rows: list[dict[str, str]] = list(csv.DictReader(io.StringIO(done.stdout)))
    return float(rows[0]["rps"])


async def redis_asyncio(aio: Any, socket: str, seconds: float) -> tuple[list[int], float]:
    """64 SETs in flight from one Python process."""
    client = aio.Redis(unix_socket_path=socket, max_connections=FLIGHT)
    try:
        return await in_flight([functools.partial(client.set, f"key{place}", TEXT) for place in range(FLIGHT)], seconds)
    finally:
        await client.aclose()


def rocks(path: Path) -> tuple[Callable[[], object], Callable[[], object]]:
    """`(put, close)`: a bare RocksDB put of 300 B that returns after its fsync."""
    library = importlib.import_module("rocksdict")
    database = library.Rdict(str(path / "rocks"), library.Options(raw_mode=True))
    durable = library.WriteOptions()
    durable.sync = True
    value = TEXT.encode()
    return lambda: database.put(os.urandom(16), value, write_opt=durable), database.close


def per_s(found: tuple[list[int], float]) -> float:
    samples, seconds = found
    return len(samples) / seconds


def p50(blocks: list[list[int]]) -> str:
    return f"{statistics.median(flat(blocks)) / 1000:.0f} µs"


def shown(rates: Iterable[float]) -> str:
    return f"{statistics.median(rates):,.0f}/s"


# -- the table ---------------------------------------------------------------------------------------------------------


def table(goals: Iterable[Goal]) -> str:
    lines = ["| what | ours | peer, same run | measured | target | met |", "|---|---|---|---|---|---|"]
    for goal in goals:
        measured = "" if goal.measured is None else f"{goal.measured:,g}"
        met = {True: "yes", False: "**no**", None: "not run" if goal.measured is None else ""}[goal.met]
        lines.append(f"| {goal.what} | {goal.ours} | {goal.peer} | {measured} | {goal.target} | {met} |")
    return "\n".join(lines)


def kv(run: Run) -> None:
    """Activation memory; also `python -m tests.bench.kv`."""
    sys.path.append(str(HERE.parents[1]))
    importlib.import_module("tests.bench.kv").kv(run)


WORKLOADS: dict[str, Callable[[Run], None]] = {
    "read": Run.read, "alloc": Run.alloc, "mixed": Run.mixed, "start": Run.start, "replay": Run.replay,
    "search": Run.search, "locomo": Run.recall, "kafka": lambda run: importlib.import_module("kafka_loads").kafka(run),
    "kv": lambda run: kv(run),
}  # fmt: skip


def into_page(page: Path, text: str) -> None:
    """Put the table where the page marks its place."""
    before, _, rest = page.read_text(encoding="utf-8").partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    assert after, f"{page} has no place for the table: {MARKS[0]} … {MARKS[1]}"
    page.write_text(f"{before}{MARKS[0]}\n{text}{MARKS[1]}{after}", encoding="utf-8")


def headline(found: dict[str, Any]) -> str:
    """When, which commit, on what."""
    m = found["machine"]
    return (
        f"{m['time'][:10]}, commit `{found['commit']}`: {m['processor']}, {m['cores']} cores, {m['memory_gib']} GiB, "
        f"Linux {m['system']}, Python {m['python']}; load before the run {m['load_1m']}.\n\n"
    )


def common(p: argparse.ArgumentParser, out: str) -> None:
    """What every way to run workloads takes."""
    p.add_argument("--peers", type=Path, help="the environment that peers.sh made")
    p.add_argument("--quick", action="store_true", help="a fifth of everything: to see that it runs")
    p.add_argument("--dir", type=Path, help="where the data lies meanwhile")
    p.add_argument("--locomo", type=Path, default=LOCOMO, help="folder with conv-*.json")
    p.add_argument("--out", type=Path, default=Path(out), help=f"writes OUT.json and OUT.md (default: {out})")
    p.add_argument("--docs", type=Path, help="a page whose marked place takes the table")


def measure(arguments: argparse.Namespace, workloads: Mapping[str, Callable[[Run], None]]) -> None:
    """Run workloads, and write what they found."""
    run = Run(arguments)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False)
    found: dict[str, Any] = {"commit": commit.stdout.strip() or "unknown", "machine": machine()}
    text = ""
    for name, workload in workloads.items():
        print(f"{name} …", file=sys.stderr, flush=True)
        workload(run)
        found |= {"goals": [vars(goal) for goal in run.goals], "rows": [row.to_json() for row in run.rows]}
        # After each workload, so that what was measured survives what comes next.
        arguments.out.with_suffix(".json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        text = headline(found) + table(run.goals) + "\n"
        arguments.out.with_suffix(".md").write_text(text)
    print(text)
    if arguments.docs is not None:
        into_page(arguments.docs, text)


def main() -> None:
    p = argparse.ArgumentParser(description="Run the benchmarks beside their peers.")
    p.add_argument("--only", default=",".join(WORKLOADS), help="workloads, separated by commas")
    common(p, "bench")
    arguments = p.parse_args()
    measure(arguments, {name: WORKLOADS[name] for name in arguments.only.split(",")})


if __name__ == "__main__":
    main()
