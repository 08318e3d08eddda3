"""The kernel on Kafka beside a bare client of the same broker and beside the embedded log, in one run.

Broker, kernel and load share the machine's processors, so each load also says what share of a processor each of them used.
The broker is a throw-away one with the settings that its distribution gives it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, Final

from confluent_kafka import Producer

from memos_client import AsyncKernel, Kernel
from memos_drivers.stores.rocks import RocksStore
from memos_kernel.masterkey import read as read_key
from memos_kernel.state import Tables
from memos_kernel.topicoffline import open_topic
from memos_kernel.verify import replay
from memos_tools.bench_calls import NAMESPACE, alloc_function
from memos_tools.bench_measure import TEXT, Measured, alternate, flat, in_flight, latencies, private, ratio, scratch

BESIDE: Final = Path(__file__).parents[3] / "shared" / "kafka"
TICKS: Final = os.sysconf("SC_CLK_TCK")
CONNECTIONS: Final = 16
TAKEOVERS: Final = 5


@contextlib.contextmanager
def broker(parent: Path | None) -> Generator[tuple[str, int] | None]:
    """A broker's address and process; None when there is no Kafka."""
    home = Path(os.environ.get("KAFKA_HOME") or BESIDE)
    tool = home / "bin" / "kafka-cluster"
    if not tool.is_file() or shutil.which("java") is None:
        yield None
        return
    with scratch(parent) as path:
        for left in (2, 1, 0):
            done = subprocess.run([str(tool), "start", "--dir", str(path / "c")], capture_output=True, text=True, check=False)
            if done.returncode == 0:
                break
            shutil.rmtree(path / "c", ignore_errors=True)
            if not left:
                raise RuntimeError(f"no broker: {done.stderr}")
        address = _bootstrap(tool, path / "c")
        pid = int(next((path / "c").rglob("pid*")).read_text())
        try:
            yield address, pid
        finally:
            subprocess.run([str(tool), "stop", "--dir", str(path / "c")], capture_output=True, check=False)


def _bootstrap(tool: Path, directory: Path) -> str:
    done = subprocess.run([str(tool), "bootstrap", "--dir", str(directory)], capture_output=True, text=True, check=True)
    return done.stdout.split()[-1]


class Bare:
    """confluent-kafka by itself: idempotent, acks=all, linger 0."""

    def __init__(self, brokers: str, topic: str) -> None:
        self._topic = topic
        self._value = TEXT.encode()
        self._producer = Producer({
            "bootstrap.servers": brokers, "enable.idempotence": True, "acks": "all", "linger.ms": 0,
        })  # fmt: skip

    def one(self) -> None:
        delivered: list[object] = []
        self._producer.produce(self._topic, self._value, on_delivery=lambda error, _message: delivered.append(error))
        while not delivered:
            self._producer.poll(1)
        assert delivered == [None]

    def loop(self, flight: int, seconds: float) -> float:
        """Messages a second with so many in flight."""
        under_way = done = 0

        def delivered(error: object, _message: object) -> None:
            nonlocal under_way, done
            assert error is None
            under_way -= 1
            done += 1

        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            while under_way < flight:
                self._producer.produce(self._topic, self._value, on_delivery=delivered)
                under_way += 1
            self._producer.poll(0.01)
        took = time.perf_counter() - began
        self._producer.flush()
        return done / took


async def allocs(path: str, flight: int, seconds: float) -> float:
    """Allocs a second with so many in flight, over some connections."""
    async with contextlib.AsyncExitStack() as stack:
        kernels = [await stack.enter_async_context(AsyncKernel.connect(path)) for _ in range(min(CONNECTIONS, flight))]

        def calling(kernel: AsyncKernel) -> Callable[[], Any]:
            return lambda: kernel.mem_alloc(NAMESPACE, TEXT)

        calls = [calling(kernels[n % len(kernels)]) for n in range(flight)]
        samples, took = await in_flight(calls, seconds)
        return len(samples) / took


def rate_of(path: str, flight: int, seconds: float) -> float:
    return asyncio.run(allocs(path, flight, seconds))


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def sharing(pids: dict[str, int], load: Callable[[], float]) -> tuple[float, str]:
    """What a load gave, and the share of a processor that each process used meanwhile."""
    before = {name: processor_seconds(pid) for name, pid in pids.items()}
    began = time.perf_counter()
    found = load()
    took = time.perf_counter() - began
    shares = [f"{name} {(processor_seconds(pid) - before[name]) / took:.2f}" for name, pid in pids.items()]
    return found, ", ".join(shares)


def kafka(run: Any) -> None:
    with broker(run.parent) as found:
        if found is None:
            run.missing("the kernel on Kafka", "Apache Kafka")
            return
        brokers, pid = found
        arguments = ("--embedder", "none", "--log-level", "error", "--log")
        with private(run.parent, (*arguments, f"kafka://{brokers}/bench")) as ours, private(run.parent) as embedded:
            _create(brokers, "bare")
            bare = Bare(brokers, "bare")
            bare.loop(64, 3)  # The broker's compiler warms up.
            asyncio.run(allocs(ours.path, 64, 3 * run.scale))
            _one(run, ours, embedded, bare)
            _many(run, ours, embedded, bare, pid)
        _replay(run, brokers)
        _takeover(run, brokers)


def _create(brokers: str, topic: str) -> None:
    from confluent_kafka.admin import AdminClient
    from confluent_kafka.cimpl import NewTopic

    admin = AdminClient({"bootstrap.servers": brokers})
    for future in admin.create_topics([NewTopic(topic, 1, 1)]).values():
        future.result(30)


def _one(run: Any, ours: Kernel, embedded: Kernel, bare: Bare) -> None:
    functions = {"kafka": alloc_function(ours), "bare": bare.one, "embedded": alloc_function(embedded)}
    samples = alternate(functions, run.times(30), 50)
    for name, what in (("kafka", "mem_alloc 300 B on Kafka, one client"), ("bare", "bare produce 300 B, acks=all")):
        run.rows.append(latencies(what, flat(samples[name])))
    p50 = {name: f"{statistics.median(flat(found)) / 1000:.0f} µs" for name, found in samples.items()}
    run.at_most(
        "mem_alloc on Kafka, one client, p50", p50["kafka"], f"bare produce {p50['bare']}",
        ratio(samples["kafka"], samples["bare"]), 4, "× bare",
    )  # fmt: skip
    run.rows.append(latencies("mem_alloc 300 B embedded, one client, beside", flat(samples["embedded"])))


def _many(run: Any, ours: Kernel, embedded: Kernel, bare: Bare, broker_pid: int) -> None:
    seconds = max(1.0, 3 * run.scale)
    kernel_pid = ours.daemon_pid or 0
    for flight, least in ((64, 0.25), (1024, 0.15)):
        rates: dict[str, list[float]] = {"kafka": [], "bare": [], "embedded": []}
        used = ""
        for _ in range(3):
            rate, used = sharing(
                {"broker": broker_pid, "kernel": kernel_pid, "load": os.getpid()},
                functools.partial(rate_of, ours.path, flight, seconds),
            )  # fmt: skip
            rates["kafka"].append(rate)
            rates["bare"].append(bare.loop(flight, seconds))
            rates["embedded"].append(asyncio.run(allocs(embedded.path, flight, seconds)))
        for name, got in rates.items():
            run.rows.append(
                Measured(f"{name}, {flight} in flight", 3, per_s=round(statistics.median(got), 1),
                         more={"processors": used} if name == "kafka" else {})
            )  # fmt: skip
        shown = {name: f"{statistics.median(got):,.0f}/s" for name, got in rates.items()}
        for peer, share in (("bare", least), ("embedded", 0.7)):
            measured = statistics.median(a / b for a, b in zip(rates["kafka"], rates[peer], strict=True))
            run.at_least(
                f"mem_alloc on Kafka, {flight} in flight", shown["kafka"], f"{peer} {shown[peer]}", round(measured, 3), share,
                f"× {peer}",
            )  # fmt: skip


def _replay(run: Any, brokers: str) -> None:
    """As many records from the topic and from an embedded log, each into a new view on disk; the topic's are mirrored, too."""
    count = run.times(20_000)
    arguments = ("--embedder", "none", "--log-level", "error")
    with scratch(run.parent) as path:
        rates: dict[str, list[float]] = {"kafka": [], "embedded": []}
        for name, more in (("kafka", ("--log", f"kafka://{brokers}/replayed")), ("embedded", ())):
            with Kernel.spawn(path / name, args=(*arguments, *more)) as kernel:
                while kernel.sys_info().head_offset < count:
                    asyncio.run(allocs(kernel.path, 64, 1))
        from memos_kernel.offline import open_offline

        for number in range(3):
            began = time.perf_counter()
            rocks = RocksStore(path / f"view{number}")
            with open_offline(path / "embedded") as found:
                head, _hash, _digest = replay(found.log, None, Tables(rocks.live("view"), 0), rocks.write)
                rates["embedded"].append((head + 1) / (time.perf_counter() - began))
            rocks.close()
            master = read_key(path / "kafka" / "master.key")
            began = time.perf_counter()
            with open_topic(f"kafka://{brokers}/replayed", master=master) as found:
                # It is replayed into a view of its own as it is opened.
                head = _head(found.log)
                rates["kafka"].append((head + 1) / (time.perf_counter() - began))
        for name, got in rates.items():
            run.rows.append(Measured(f"replay, {name}", count, per_s=round(statistics.median(got), 1)))
        measured = statistics.median(a / b for a, b in zip(rates["kafka"], rates["embedded"], strict=True))
        shown = {name: f"{statistics.median(got):,.0f}/s" for name, got in rates.items()}
        run.at_least(
            "replay from Kafka", shown["kafka"], f"embedded {shown['embedded']}", round(measured, 3), 0.8, "× embedded"
        )


def _head(log: Any) -> int:
    from memos_kernel.events import decode_frame

    for data in log.frames(2**64 - 1):
        frame = decode_frame(data)
        return frame.first_seq + len(frame.records) - 1
    return -1


def _takeover(run: Any, brokers: str) -> None:
    """From the primary's death to the standby's first acknowledged write."""
    took: list[float] = []
    arguments = ["--embedder", "none", "--log-level", "error", "--log", f"kafka://{brokers}/takeover"]
    with scratch(run.parent) as path:
        first = Kernel.spawn(path / "k0", args=arguments)
        key = str(path / "k0" / "master.key")
        asyncio.run(allocs(first.path, 64, 2))
        for number in range(1, run.times(TAKEOVERS) + 1):
            second = Kernel.spawn(path / f"k{number}", args=[*arguments, "--standby", "--master-key-file", key])
            asyncio.run(allocs(first.path, 64, 0.5))
            os.kill(first.daemon_pid or 0, signal.SIGKILL)
            began = time.perf_counter()
            second.sys_promote()
            second.mem_alloc(NAMESPACE, TEXT)
            took.append(time.perf_counter() - began)
            with contextlib.suppress(Exception):
                first.close()
            first = second
        first.close()
    worst = max(took)
    run.rows.append(latencies("takeover by a warm standby", [int(s * 1e9) for s in took]))
    run.at_most("takeover by a warm standby, worst", f"{worst:.2f} s", "", round(worst, 3), 2, "s")


if __name__ == "__main__":
    sys.exit("run it with: tests/bench/run.py --only kafka")
