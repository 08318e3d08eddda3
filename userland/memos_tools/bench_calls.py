"""Benchmarks of single calls: reads, durable allocs, and both under load.

`read_functions` and `alloc_functions` are also what tests/bench/run.py sets beside its peers, block by block.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from memos_client import AsyncKernel, Kernel
from memos_syscalls import limits, wire
from memos_syscalls.table import BY_NAME

from .bench_measure import TEXT, Measured, alternate, flat, in_flight, latencies, private, timed

NAMESPACE: Final = "bench"
CUBES: Final = 1000
FLIGHT: Final = 64
FLOOD_CALLS: Final = 512
GARBAGE_BYTES: Final = 4096


def read_functions(kernel: Kernel) -> dict[str, Callable[[], object]]:
    """`mem_read` and `mem_stat` of 300 B cubes, one after the other through a thousand of them."""
    made = kernel.mem_alloc_many([{"namespace": NAMESPACE, "content": TEXT} for _ in range(CUBES)])
    ids = [item.cube_id for item in made.items]
    at = {"read": 0, "stat": 0}

    def following(name: str) -> str:
        at[name] = (at[name] + 1) % CUBES
        return ids[at[name]]

    return {
        "mem_read 300 B": lambda: kernel.mem_read(following("read")),
        "mem_stat": lambda: kernel.mem_stat(following("stat")),
    }


def read(parent: Path | None, blocks: int, per_block: int) -> list[Measured]:
    """One blocking client."""
    with private(parent) as kernel:
        found = alternate(read_functions(kernel), blocks, per_block)
    return [latencies(name, flat(samples)) for name, samples in found.items()]


def alloc_function(kernel: Kernel) -> Callable[[], object]:
    return lambda: kernel.mem_alloc(NAMESPACE, TEXT)


async def alloc_one_connection(path: str, seconds: float) -> tuple[list[int], float]:
    """64 allocs in flight on one connection."""
    async with AsyncKernel.connect(path) as kernel:
        return await in_flight([lambda: kernel.mem_alloc(NAMESPACE, TEXT)] * FLIGHT, seconds)


async def alloc_many_connections(path: str, seconds: float) -> tuple[list[int], float]:
    """64 connections with one alloc in flight each."""
    async with contextlib.AsyncExitStack() as stack:
        kernels = [await stack.enter_async_context(AsyncKernel.connect(path)) for _ in range(FLIGHT)]
        return await in_flight([_alloc(kernel) for kernel in kernels], seconds)


def _alloc(kernel: AsyncKernel) -> Callable[[], Awaitable[object]]:
    return lambda: kernel.mem_alloc(NAMESPACE, TEXT)


def alloc(parent: Path | None, calls: int, seconds: float) -> list[Measured]:
    """Durable allocs: one client, 64 in flight on one connection, 64 connections."""
    with private(parent) as kernel:
        timed(alloc_function(kernel), CUBES // 10)
        rows = [latencies("mem_alloc 300 B, one client", timed(alloc_function(kernel), calls))]
        for name, work in (
            (f"mem_alloc 300 B, {FLIGHT} in flight, one connection", alloc_one_connection),
            (f"mem_alloc 300 B, {FLIGHT} connections", alloc_many_connections),
        ):
            samples, wall_s = asyncio.run(work(kernel.path, seconds))
            rows.append(latencies(name, samples, wall_s))
        log = kernel.sys_stats().log
        return [*rows, Measured("records in one commit, mean", log["commits"], more={"value": log["records_per_commit"]})]


# -- under load ------------------------------------------------------------------------------------------------------


def write_load(path: str, seconds: float) -> None:
    """64 writers, as a process of their own."""
    asyncio.run(alloc_many_connections(path, seconds))


def hostile(path: str, seconds: float) -> None:
    """A client that means harm: floods of calls whose replies it never reads, frames that lie, connections that say nothing."""
    end = time.monotonic() + seconds
    hello = wire.pack_request(1, BY_NAME["sys_hello"].number, {"abi": limits.ABI})
    flood = b"".join(
        wire.pack_request(call, number, args)
        for call in range(2, FLOOD_CALLS, 2)
        for number, args in (
            (BY_NAME["mem_list"].number, {"limit": limits.LIST_ITEMS_MAX}),
            (BY_NAME["mem_alloc"].number, {"namespace": "flood", "content": "x" * 300, "surprise": 1}),
        )
    )
    idle: list[socket.socket] = []
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            idle.append(_opened(path, b""))
        if len(idle) > FLIGHT:
            idle.pop(0).close()
        with contextlib.suppress(OSError), _opened(path, hello) as victim:
            # Replies are never read: the kernel must stop reading from us, not from others.
            for _ in range(4):
                victim.sendall(flood)
        with contextlib.suppress(OSError), _opened(path, hello) as liar:
            liar.sendall(os.urandom(GARBAGE_BYTES))
    for connection in idle:
        connection.close()


def _opened(path: str, first: bytes) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(0.2)
    connection.connect(path)
    connection.sendall(first)
    return connection


def mixed(parent: Path | None, seconds: float) -> list[Measured]:
    """Reads of one connection: alone, beside 64 writers, beside a hostile client, beside both."""
    rows: list[Measured] = []
    processes = multiprocessing.get_context("spawn")
    with private(parent) as kernel:
        reading = read_functions(kernel)["mem_read 300 B"]
        loads: dict[str, list[Any]] = {
            "alone": [],
            f"beside {FLIGHT} writers": [write_load],
            "beside a hostile client": [hostile],
            f"beside {FLIGHT} writers and a hostile client": [write_load, hostile],
        }
        for name, targets in loads.items():
            running = [processes.Process(target=target, args=(kernel.path, seconds + 2), daemon=True) for target in targets]
            for process in running:
                process.start()
            time.sleep(1.5)  # The load has started.
            samples: list[int] = []
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                samples += timed(reading, 20)
                time.sleep(0.002)
            rows.append(latencies(f"mem_read {name}", samples, max_us=round(max(samples) / 1000, 1)))
            for process in running:
                process.join(30)
                if process.is_alive():
                    process.kill()
    return rows
