"""Activation memory through a real kernel: first tokens, decoding, maps, captures, and reads beside a busy model.

    .venv/bin/python -m tests.bench.kv [--model NAME] [--threads N] [--only ttft,map,capture,reads] [--quick] [--out FILE]

One private kernel, one model, memories of invented sentences. Each number stands beside what it is compared with in the same
run, in turn: full prefill of the same tokens (the same text attached as plaintext), a bare forward pass at the same priority
and with as many threads (another process), a bare read and decryption of the same bytes, Redis. A first token's time is the
client's: from the call to the first item of its stream.

A cache is asked for from each tier: `device` (mapped by the driver host), `host` (in the kernel's memory, mapped anew), `disk`
(read and decrypted), and cold disk: the kernel was started anew, its model is loaded, and the page cache is dropped.
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import os
import statistics
import sys
import time
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy
from tests.bench import kv_bare as bare

from memos_client import Kernel
from memos_tools.bench_measure import NO_MODEL, TEXT, Measured, latencies, scratch, timed

if TYPE_CHECKING:
    from tests.bench.run import Run

QUESTION: Final = "Please tell me a long story about what happened on these days, and about all who were there."
SIZES: Final = {256: (3, 5, 9), 1024: (10, 3, 7), 4096: (35, 2, 7)}
"""Tokens: the target, and how often full prefill and each tier are asked."""
TIERS: Final = ("device", "host", "disk")
COLD: Final = (1024, 4096)
COLD_TIMES: Final = 10.0
STARTS: Final = 3
ANSWER: Final = 32
MAPPED_TOKENS: Final = 2176
"""As KV of the bundled model in float32 about 100 MB."""
PAIRS: Final = 3
DEADLINE_MS: Final = 600_000
BUSY_SECONDS: Final = 10.0


class Asked(NamedTuple):
    first: float
    """Seconds to the first token."""
    reply: Any


class Bench:
    """A kernel with its model loaded, and the bare model beside it."""

    def __init__(self, directory: Path, model: str, threads: int) -> None:
        self.directory = directory
        self._words = ["--model", model, "--host-threads", str(threads), "--dtype", "float32", *NO_MODEL]
        self.bare = bare.Model(model, threads)
        self.kernel = self._start()

    def _start(self) -> Kernel:
        kernel = Kernel.spawn(self.directory / "data", args=self._words)
        kernel.mem_infer("Hello.", max_new_tokens=1, deadline_ms=DEADLINE_MS)
        return kernel

    def restart(self) -> None:
        self.kernel.close()
        self.kernel = self._start()

    def close(self) -> None:
        self.kernel.close()
        self.bare.close()

    def memory(self, tokens: int, seed: int = 0) -> tuple[str, str]:
        """A plaintext cube of so many tokens, and its text."""
        text = self.bare.text(tokens, seed)
        return self.kernel.mem_alloc("bench", text).cube_id, text

    def capture(self, cube_id: str) -> str:
        made = self.kernel.mem_migrate(cube_id, to="activation", deadline_ms=DEADLINE_MS).cube_id
        assert made is not None
        return made

    def ask(self, cube_id: str, how: str, tokens: int = 1) -> Asked:
        """The question behind a cube, which must have been used as `how` says."""
        began = time.perf_counter()
        first: float | None = None
        reply: Any = None
        for item in self.kernel.mem_infer(
            QUESTION, cubes=[cube_id], max_new_tokens=tokens, stream=True, deadline_ms=DEADLINE_MS
        ):
            first = time.perf_counter() - began if first is None else first
            reply = item.reply
        assert first is not None and reply.attached[0].how == how, reply
        return Asked(first, reply)

    def move(self, cube_id: str, tier: Any) -> None:
        self.kernel.mem_migrate(cube_id, tier=tier)

    def forget_pages(self) -> str:
        """Nothing of the kernel's files is in the page cache any more; says how."""
        os.sync()
        with contextlib.suppress(OSError):
            Path("/proc/sys/vm/drop_caches").write_text("3")
            return "drop_caches"
        for path in self.directory.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return "fadvise"


# -- first tokens, decoding --------------------------------------------------------------------------------------------


def ttft(run: Run, bench: Bench) -> None:
    quick = run.scale < 1
    caches: dict[int, str] = {}
    fulls: dict[int, float] = {}
    for tokens, (target, full_times, times) in SIZES.items():
        if quick and tokens > 1024:
            continue
        plain, _text = bench.memory(tokens)
        cache = caches[tokens] = bench.capture(plain)
        bench.ask(cache, "attached")
        found: dict[str, list[Asked]] = {tier: [] for tier in (*TIERS, "full")}
        answer = ANSWER if tokens >= 1024 else 1
        speeds: list[tuple[float, float]] = []
        for number in range(2 if quick else times):
            for tier in TIERS:
                bench.move(cache, tier)
                found[tier].append(bench.ask(cache, "attached"))
            if number < (1 if quick else full_times):
                # Decoding behind the cache before and after: the machine may have become another meanwhile.
                beside = [bench.ask(cache, "attached", answer)]
                found["full"].append(bench.ask(plain, "prefilled", answer))
                beside.append(bench.ask(cache, "attached", answer))
                alike = {one.reply.text for one in (*beside, found["full"][-1])}
                assert len(alike) == 1, alike
                speeds.append((statistics.mean(one.reply.tokens_per_s for one in beside), found["full"][-1].reply.tokens_per_s))
        full = fulls[tokens] = statistics.median(one.first for one in found["full"])
        run.rows.append(_row(f"first token, {tokens} tokens, full prefill", found["full"]))
        for tier in TIERS:
            run.rows.append(_row(f"first token, {tokens} tokens, {tier}", found[tier]))
            ours = statistics.median(one.first for one in found[tier])
            what = f"first token, memory of {tokens} tokens, {tier}{' warm' if tier == 'disk' else ''}"
            if tier == "host":
                run.at_least(what, _ms(ours), f"full prefill {_s(full)}", round(full / ours, 1), target, "× sooner")
            else:
                _say(run, what, _ms(ours), f"full prefill {_s(full)}", round(full / ours, 1))
        if answer > 1:
            _decode(run, tokens, speeds)
    _cold(run, bench, caches, fulls)


def _decode(run: Run, tokens: int, pairs: list[tuple[float, float]]) -> None:
    """Speed behind the first token, beside what the same answer took after full prefill."""
    share = statistics.median(a / b for a, b in pairs)
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    what = f"decoding {ANSWER} tokens behind {tokens}"
    run.rows.append(Measured(what, len(pairs), per_s=ours, more={"after_full_per_s": theirs}))
    run.at_least(what, f"{ours:.1f}/s", f"after full prefill {theirs:.1f}/s", round(share, 3), 0.95, "×")


def _cold(run: Run, bench: Bench, caches: dict[int, str], fulls: dict[int, float]) -> None:
    """Each start of the kernel gives one sample for each size."""
    found: dict[int, list[Asked]] = {tokens: [] for tokens in COLD if tokens in caches}
    how = ""
    for _ in range(1 if run.scale < 1 else STARTS):
        bench.restart()
        # The prefix's own keys and values are made once for each start.
        bench.ask(caches[256], "attached")
        for tokens in found:
            how = bench.forget_pages()
            found[tokens].append(bench.ask(caches[tokens], "attached"))
    for tokens, samples in found.items():
        row = _row(f"first token, {tokens} tokens, cold disk", samples)
        run.rows.append(Measured(row.name, row.count, row.p50_us, row.p95_us, row.p99_us, more={"pages": how}))
        ours = statistics.median(one.first for one in samples)
        what, peer = f"first token, memory of {tokens} tokens, disk cold", f"full prefill {_s(fulls[tokens])}"
        if tokens == max(COLD):
            run.at_least(what, _ms(ours), peer, round(fulls[tokens] / ours, 1), COLD_TIMES, "× sooner")
        else:
            _say(run, what, _ms(ours), peer, round(fulls[tokens] / ours, 1))


# -- capture and maps --------------------------------------------------------------------------------------------------


def capture(run: Run, bench: Bench) -> None:
    """Captures beside bare forward passes over the same tokens, in turn."""
    tokens = 512 if run.scale < 1 else MAPPED_TOKENS
    pairs: list[tuple[float, float]] = []
    before = _bytes_under(bench.directory / "data")
    size, cache = 0, ""
    for seed in range(1 if run.scale < 1 else PAIRS):
        plain, text = bench.memory(tokens, 100 + seed)
        theirs = bench.bare.prefill_seconds(text)
        began = time.perf_counter()
        cache = bench.capture(plain)
        pairs.append((time.perf_counter() - began, theirs))
        size += mapped_bytes(bench.kernel, cache)
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    share = round(statistics.median(a / b for a, b in pairs), 3)
    run.rows.append(Measured(f"capture, {tokens} tokens", len(pairs), more={
        "seconds": ours, "bare_seconds": theirs, "stored_bytes": size,
        "disk_bytes": _bytes_under(bench.directory / "data") - before,
    }))  # fmt: skip
    run.at_most(f"capture of {tokens} tokens", _s(ours), f"bare prefill {_s(theirs)}", share, 1.15, "× bare")
    reply = bench.kernel.mem_map(cache)
    os.close(reply.fd)
    assert reply.layout is not None
    bare_bytes = sum(tensor.bytes for tensor in reply.layout.tensors if tensor.name[0] in "kv")
    more = round(100 * (reply.bytes / bare_bytes - 1), 3)
    run.at_most("stored bytes over the tensors'", f"{reply.bytes:,} B", f"tensors {bare_bytes:,} B", more, 1, "%")


def mapped_bytes(kernel: Kernel, cube_id: str) -> int:
    reply = kernel.mem_map(cube_id)
    os.close(reply.fd)
    return reply.bytes


def maps(run: Run, bench: Bench) -> None:
    """A payload of 100 MB, from the call to its first byte, and all of it."""
    quick = run.scale < 1
    plain, _text = bench.memory(512 if quick else MAPPED_TOKENS, 100)
    cache = bench.capture(plain)
    with contextlib.ExitStack() as stack:
        _reply, whole = stack.enter_context(mapping(bench.kernel, cache))
        path = stack.enter_context(scratch(run.parent))
        (path / "file").write_bytes(whole)
        store = bare.Store(path / "rocks", memoryview(whole))
        stack.callback(store.close)
        size, first = f"{len(whole) / 1e6:.0f} MB", whole[0]

        def first_byte() -> None:
            with mapping(bench.kernel, cache) as (_reply, found):
                assert found[0] == first

        def from_disk() -> int:
            bench.move(cache, "disk")
            (found,) = timed(first_byte, 1)
            return found

        timed(first_byte, 5)
        host = timed(first_byte, 20 if quick else 100)
        run.rows.append(latencies(f"mem_map {size}, host tier", host))
        run.at_most(f"mem_map {size}, host tier, to the first byte", _ms(_mid(host)), "", round(_mid(host) * 1e3, 3), 2, "ms")
        rounds = 2 if quick else 5
        warm, bares = list[int](), list[int]()
        for _ in range(rounds + 1):
            bares += timed(store.read, 1)
            warm.append(from_disk())
        warm, bares = warm[1:], bares[1:]
        _beside(run, f"mem_map {size}, disk warm, to the first byte", warm, "bare read and decrypt", bares, 3)
        cold, bares = list[int](), list[int]()
        for _ in range(2 if quick else 3):
            bench.forget_pages()
            bares += timed(store.read, 1)
            bench.forget_pages()
            cold.append(from_disk())
        _beside(run, f"mem_map {size}, disk cold, to the first byte", cold, "bare read and decrypt", bares, None)
        _through(run, bench, cache, path / "file", f"reading {size} through")
        gets = stack.enter_context(bare.redis_gets(path, memoryview(whole)))
        if not gets:
            run.missing(f"mem_map {size}, host tier", "Redis")
        for name, get in gets.items():
            _beside(run, f"mem_map {size}, host tier, to the first byte", host, f"Redis GET by {name}", timed(get, 5), None)


@contextlib.contextmanager
def mapping(kernel: Kernel, cube_id: str) -> Generator[tuple[Any, mmap.mmap]]:
    """A cube's payload, mapped."""
    reply = kernel.mem_map(cube_id)
    try:
        found = mmap.mmap(reply.fd, reply.bytes, prot=mmap.PROT_READ)
    finally:
        os.close(reply.fd)
    try:
        yield reply, found
    finally:
        with contextlib.suppress(BufferError):
            found.close()


def _through(run: Run, bench: Bench, cache: str, path: Path, what: str) -> None:
    """Reading everything through a map and through an mmapped file. The first time pages are brought in one by one, or
    many at once where the file system keeps its cache in large pages; shared memory is in small ones unless its owner says
    otherwise (/sys/kernel/mm/transparent_hugepage/shmem_enabled)."""
    first: tuple[list[int], list[int]] = ([], [])
    again: tuple[list[int], list[int]] = ([], [])
    for _ in range(3 if run.scale < 1 else 11):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as found:
            first[1].extend(timed(lambda: total(found), 1))
            again[1].extend(timed(lambda: total(found), 1))
        with mapping(bench.kernel, cache) as (_reply, found):
            first[0].extend(timed(lambda: total(found), 1))
            again[0].extend(timed(lambda: total(found), 1))
    for when, (ours, theirs) in (("the first time", first), ("again", again)):
        _beside(run, f"{what}, {when}", ours, "an mmapped file", theirs, 1.1)


def total(content: mmap.mmap) -> int:
    """A sum over all the bytes."""
    return int(numpy.frombuffer(content, dtype=numpy.uint64, count=len(content) // 8).sum())


# -- reads beside ------------------------------------------------------------------------------------------------------


def reads(run: Run, bench: Bench) -> None:
    """`mem_read` of one client, alone and while the model prefills."""
    kernel = bench.kernel
    small = kernel.mem_alloc("bench", TEXT).cube_id
    calls = 500 if run.scale < 1 else 5000

    def read() -> object:
        return kernel.mem_read(small)

    timed(read, 200)
    _p99(run, "mem_read alone", latencies("mem_read alone", timed(read, calls)))
    plain, _text = bench.memory(1024 if run.scale < 1 else 4096, 200)
    job = kernel.mem_migrate(plain, to="activation", wait=False, deadline_ms=DEADLINE_MS).job_id
    assert job is not None
    while kernel.job_status(job).progress == 0:
        time.sleep(0.05)
    samples = list[int]()
    end = time.perf_counter() + BUSY_SECONDS
    while time.perf_counter() < end and kernel.job_status(job).progress < 0.9:
        samples += timed(read, 100)
    kernel.job_cancel(job)
    name = f"mem_read while {'1024' if run.scale < 1 else '4096'} tokens are prefilled"
    _p99(run, name, latencies(name, samples))


def _p99(run: Run, name: str, row: Measured) -> None:
    run.rows.append(row)
    assert row.p50_us is not None and row.p99_us is not None
    run.at_most(f"{name}, p99", f"p50 {row.p50_us / 1000:.2f} ms", "", round(row.p99_us / 1000, 2), 2, "ms")


# -- saying ------------------------------------------------------------------------------------------------------------


def _mid(samples: Iterable[int]) -> float:
    return statistics.median(samples) / 1e9


def _row(name: str, samples: list[Asked]) -> Measured:
    return latencies(
        name, [int(one.first * 1e9) for one in samples], tokens=samples[0].reply.tokens_in,
        kernel_ms=statistics.median(one.reply.ttft_ms for one in samples),
    )  # fmt: skip


def _say(run: Run, what: str, ours: str, peer: str, measured: float) -> None:
    """A line without a target."""
    run.beside(what, ours, peer, measured, "×")


def _beside(run: Run, what: str, ours: list[int], name: str, theirs: list[int], most: float | None) -> None:
    run.rows += [latencies(what, ours), latencies(f"{what}: {name}", theirs)]
    share = round(_mid(ours) / _mid(theirs), 3)
    if most is None:
        _say(run, what, _ms(_mid(ours)), f"{name} {_ms(_mid(theirs))}", share)
    else:
        run.at_most(what, _ms(_mid(ours)), f"{name} {_ms(_mid(theirs))}", share, most, "×")


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.{2 if seconds < 0.01 else 0}f} ms"


def _s(seconds: float) -> str:
    return f"{seconds:.2f} s"


def _bytes_under(path: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in path.rglob("*") if file.is_file())


PARTS: Final[dict[str, Callable[[Run, Bench], None]]] = {"ttft": ttft, "capture": capture, "map": maps, "reads": reads}


def kv(run: Run, model: str = "smollm2", threads: int = 2, only: Iterable[str] = PARTS) -> None:
    """Everything here, into the run's rows and goals."""
    with contextlib.ExitStack() as stack:
        bench = Bench(stack.enter_context(scratch(run.parent)), model, threads)
        stack.callback(bench.close)
        for name in only:
            began = time.perf_counter()
            PARTS[name](run, bench)
            print(f"kv: {name} took {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)


def main() -> None:
    from tests.bench import run as suite

    p = argparse.ArgumentParser(description="Measure activation memory.")
    p.add_argument("--model", default="smollm2", help="name or path of the language model (default: smollm2)")
    p.add_argument("--threads", type=int, default=2, help="of the model (default: 2)")
    p.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    suite.common(p, "bench-kv")
    arguments = p.parse_args()
    suite.measure(arguments, {"kv": lambda run: kv(run, arguments.model, arguments.threads, arguments.only.split(","))})


if __name__ == "__main__":
    main()
