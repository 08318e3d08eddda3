"""Benchmarks of what is on the disk: how a kernel starts on it, and how fast its log can be replayed and verified."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any, Final

from memos_client import Kernel, MemError
from memos_drivers.stores.base import Batch
from memos_drivers.stores.memory import MemoryStore
from memos_drivers.stores.rocks import RocksStore
from memos_kernel.offline import open_offline
from memos_kernel.state import Tables
from memos_kernel.verify import replay, verify_full, verify_log

from .bench_calls import CUBES, NAMESPACE, alloc_one_connection
from .bench_measure import NO_MODEL, TEXT, Measured, build, rate, rss_bytes, scratch, settle

BATCH: Final = 1024
DRAIN_S: Final = 0.2


def _item(place: int) -> dict[str, Any]:
    """300 B, each with a word of its own."""
    return {"namespace": f"{NAMESPACE}/{place % 100}", "content": f"cube{place:07d} {TEXT}"[:300]}


def _start(name: str, data: Path, wanted: str, word: str) -> tuple[Kernel, Measured]:
    """Start a kernel and take the times from nothing to the first read and to the first search."""
    began = time.perf_counter()
    kernel = Kernel.spawn(data, args=NO_MODEL)
    answered = time.perf_counter() - began
    kernel.mem_read(wanted)
    first_read = time.perf_counter() - began
    hits = kernel.mem_search(word, mode="lexical", k=1)
    first_search = time.perf_counter() - began
    more = {
        "answers_s": round(answered, 3),
        "first_read_s": round(first_read, 3),
        "first_search_s": round(first_search, 3),
        "search_found": len(hits) == 1 and hits[0].cube_id == wanted,
    }
    return kernel, Measured(name, 1, more=more)


def start(parent: Path | None, cubes: int) -> list[Measured]:
    """`cubes` of 300 B: build, stop, start; kill -9, start; memory for each cube without vectors."""
    with scratch(parent) as path:
        data = path / "data"
        kernel = Kernel.spawn(data, args=NO_MODEL)
        kernel.mem_alloc(NAMESPACE, TEXT)
        empty = rss_bytes(kernel.daemon_pid or 0)
        seconds = build(kernel, _item, cubes, BATCH)
        rows = [rate("build with mem_alloc_many", cubes, seconds)]
        head = kernel.sys_info().head_offset
        rows.append(rate("words indexed after the build", cubes, seconds + settle(kernel, "lexical", head)))
        word = f"cube{cubes // 2:07d}"
        wanted = kernel.mem_search(word, mode="lexical", k=1)[0].cube_id
        grown = rss_bytes(kernel.daemon_pid or 0) - empty
        began = time.perf_counter()
        kernel.close()
        rows.append(Measured("clean stop", 1, more={"seconds": round(time.perf_counter() - began, 3)}))
        kernel, found = _start("start after a clean stop", data, wanted, word)
        rows.append(found)
        restarted = rss_bytes(kernel.daemon_pid or 0) - empty
        for _ in range(CUBES):
            kernel.mem_alloc(NAMESPACE, TEXT)
        os.kill(kernel.daemon_pid or 0, signal.SIGKILL)
        kernel.close()
        kernel, found = _start("start after kill -9", data, wanted, word)
        kernel.close()
        per_cube = {"after_build": round(grown / cubes), "after_start": round(restarted / cubes)}
        return [*rows, found, Measured("resident bytes per cube, no vectors", cubes, more=per_cube)]


def replays(parent: Path | None, records: int, directory: Path | None) -> list[Measured]:
    """Records a second of a replay into a new state, and of both verifications."""
    with scratch(parent) as path:
        if directory is None:
            directory = path / "data"
            _record(directory, records)
        with open_offline(directory, need_key=True) as found:
            assert found.keys is not None and found.vault is not None, "need_key brings both"
            head = -1
            rows: list[Measured] = []
            memory = MemoryStore()
            rocks = RocksStore(path / "replayed")
            for name, write, reader in (
                ("replay into memory", memory.write, memory.live("view")),
                ("replay into RocksDB", rocks.write, rocks.live("view")),
            ):
                began = time.perf_counter()
                head, _hash, digest = replay(found.log, None, Tables(reader, 0), _checked(write))
                rows.append(rate(name, head + 1, time.perf_counter() - began, digest=f"{digest % 2**64:016x}"))
            rocks.close()
            began = time.perf_counter()
            report = verify_log(
                found.log, public_key=found.keys.signer.public_key, frame_mac=found.keys.frame_mac, anchor=None
            )
            rows.append(rate("verify", report.records, time.perf_counter() - began, ok=report.ok))
            began = time.perf_counter()
            full = verify_full(found.store, found.log, found.keys, found.vault)
            return [*rows, rate("verify --full", full.records, time.perf_counter() - began, ok=full.ok)]


def _checked(write: Any) -> Any:
    def checked(batch: Batch) -> None:
        write(batch)

    return checked


def _record(directory: Path, records: int) -> None:
    """A log of about so many records, one alloc each."""
    with Kernel.spawn(directory, args=NO_MODEL) as kernel:
        while (left := records - kernel.sys_info().head_offset) > 0:
            try:
                asyncio.run(alloc_one_connection(kernel.path, min(2.0, max(DRAIN_S, left / 4000))))
            except MemError as error:
                raise RuntimeError(f"the log could not be made: {error}") from error
