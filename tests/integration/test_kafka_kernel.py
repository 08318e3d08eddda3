"""memosd on a real Kafka topic: one log whoever starts, one writer whoever wakes up, and one true answer for each call."""

from __future__ import annotations

import asyncio
import mmap
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.test_eventlogs import FaultyProducer
from tests.inside import Inside
from tests.kafka import Cluster, StartCluster
from tests.outside import Daemon, Machines, Wire

from memos_client import Kernel
from memos_kernel.eventlog.base import records
from memos_kernel.eventlog.counting import decode
from memos_kernel.eventlog.kafka import KafkaLog
from memos_kernel.eventlog.link import Link
from memos_kernel.eventlog.partition import Reader
from memos_kernel.events import Claim, Frame
from memos_kernel.fds import sealed_memfd
from memos_syscalls import limits
from memos_syscalls.errors import MemError, from_wire

SECRET = "zyzzyva-secret-zyzzyva"
FENCED, REFUSED = 4, 1


@pytest.fixture
def machines(tmp_path: Path, kafka: str, topic: str) -> Iterator[Machines]:
    with Machines(tmp_path, kafka, topic) as several:
        yield several


def messages(url: str) -> list[bytes]:
    """Everything in a log's records topic."""
    link = Link.parse(url)
    reader = Reader(link, link.topic, batch=1000)
    try:
        return [message.value() or b"" for message in reader.to_end()]
    finally:
        reader.close()


def info(daemon: Daemon) -> dict[str, Any]:
    with Wire(daemon.socket) as wire:
        return wire.call("sys_info")


def contents(wire: Wire, namespace: str) -> list[str]:
    """The contents of a namespace's cubes, in order."""
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = wire.call("mem_list", namespace=namespace, cursor=cursor)
        found += [wire.call("mem_read", cube_id=cube["cube_id"])["content"] for cube in page["cubes"]]
        cursor = page.get("next_cursor")
        if cursor is None:
            return sorted(found)


class Stream:
    """Calls that go on until the kernel is gone: what was answered, and how what was not came back."""

    def __init__(self, daemon: Daemon, namespace: str) -> None:
        self.answers: dict[str, dict[str, Any]] = {}
        self.errors: list[MemError] = []
        self.asked: list[str] = []
        self.namespace = namespace
        self._daemon = daemon
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def args(self, rid: str) -> dict[str, Any]:
        return {"namespace": self.namespace, "content": rid, "request_id": rid}

    def _run(self) -> None:
        flying: dict[int, str] = {}
        try:
            with Wire(self._daemon.socket) as wire:
                while True:
                    while len(flying) < 8:
                        rid = f"{self.namespace}-{len(self.asked)}"
                        frame = wire.request("mem_alloc", **self.args(rid))
                        flying[wire.last_id] = rid
                        self.asked.append(rid)
                        wire.send(frame)
                    call_id, status, body = wire.receive()
                    rid = flying.pop(call_id)
                    if status:
                        self.errors.append(from_wire(status, body))
                    else:
                        self.answers[rid] = body
        except OSError:
            return

    def end(self) -> None:
        self._thread.join(30)
        assert not self._thread.is_alive()


def test_two_kernels_that_begin_one_topic_at_once_make_one_log(machines: Machines) -> None:
    both = [machines.start("a"), machines.start("b")]
    until = time.monotonic() + 40
    while all(daemon.process.poll() is None for daemon in both) and time.monotonic() < until:
        time.sleep(0.05)
    (survivor,) = (daemon for daemon in both if daemon.process.poll() is None)
    (other,) = (daemon for daemon in both if daemon is not survivor)
    assert other.process.returncode in (FENCED, REFUSED), other.said()
    with Wire(survivor.ready().socket) as wire:
        wire.call("mem_alloc", namespace="n", content="x")
        assert wire.call("sys_verify", full=True)["ok"]
        log_id = wire.call("sys_info")["log_id"]
    found = [decode(data) for data in messages(machines.url)]
    assert {message.log_id.hex() for message in found if isinstance(message, Frame)} == {log_id}
    firsts = [message.first_seq for message in found if isinstance(message, Frame)]
    assert firsts[0] == 0 and firsts == sorted(firsts)


def test_a_second_kernel_takes_over_and_every_call_has_one_true_answer(machines: Machines) -> None:
    first = machines.serve("a")
    stream = Stream(first, "n")
    until = time.monotonic() + 20
    while len(stream.answers) < 50 and time.monotonic() < until:
        time.sleep(0.01)
    second = machines.serve("b")
    assert first.ended() == FENCED, first.said()
    stream.end()
    assert len(stream.answers) >= 50
    for error in stream.errors:
        assert (error.errno, error.outcome) == ("EFENCED", "unknown"), "nobody is told that a call failed"
    with Wire(second.socket) as wire:
        for rid in stream.asked:
            answer = wire.call("mem_alloc", **stream.args(rid))
            assert stream.answers.get(rid, answer) == answer
        assert contents(wire, "n") == sorted(stream.asked), "each happened once"
        assert wire.call("sys_verify", full=True)["ok"]


def test_a_kernel_that_was_paused_while_another_took_over_writes_nothing_and_answers_no_old_state(machines: Machines) -> None:
    first = machines.serve("a")
    with Wire(first.socket) as wire:
        cube = wire.call("mem_alloc", namespace="n", content="yesterday")["cube_id"]
        first.pause()
        # They wait in its socket until it wakes up.
        for name, args in [
            ("mem_read", {"cube_id": cube}), ("mem_write", {"cube_id": cube, "content": "from the past"}),
            ("mem_list", {"namespace": "n"}), ("mem_read", {"cube_id": cube}),
        ]:  # fmt: skip
            wire.send(wire.request(name, **args))
        second = machines.serve("b")
        with Wire(second.socket) as today:
            today.call("mem_write", cube_id=cube, content="today")
        # What it knew for sure when it was paused holds for a second.
        time.sleep(1.1)
        first.resume()
        for _call, status, body in wire.ends():
            assert status and from_wire(status, body).errno in ("EFENCED", "EAGAIN"), body
    assert first.ended() == FENCED
    with Wire(second.socket) as today:
        assert today.call("mem_read", cube_id=cube)["content"] == "today"
        assert today.call("mem_stat", cube_id=cube)["header"]["version"] == 2
        assert today.call("sys_verify", full=True)["ok"]


def test_what_others_write_into_the_topic_stops_and_changes_nothing(machines: Machines, kafka: str, topic: str) -> None:
    from confluent_kafka import Producer

    with Machines(machines.root / "foreign", kafka, f"{topic}-other") as others:
        with Wire(others.serve("a").socket) as wire:
            wire.call("mem_alloc", namespace="n", content="another log's")
        foreign = messages(others.url)
    kernel = machines.serve("a")
    with Wire(kernel.socket) as wire:
        for n in range(5):
            wire.call("mem_alloc", namespace="n", content=f"{n}")
        # The checkpoint that follows is not what is compared.
        time.sleep(1.2)
        before = wire.call("sys_info")
        own = messages(machines.url)
        claim = next(data for data in own if isinstance(decode(data), Claim))
        frame = next(data for data in own if isinstance(decode(data), Frame))
        garbage = [b"", b"\xc1", b"hello", os.urandom(5000), b"\x93\x01\x02\x03", b"\x98" * 8]
        forged = [frame[:-1] + bytes([frame[-1] ^ 1]), claim[:-1] + bytes([claim[-1] ^ 1])]
        producer = Producer({"bootstrap.servers": kafka})
        put = [*garbage, *forged, *foreign, *own]
        for data in put:
            producer.produce(topic, data, partition=0)
        assert producer.flush(20) == 0
        hanging = Producer({"bootstrap.servers": kafka, "transactional.id": f"{topic}-hangs", "transaction.timeout.ms": 60_000})
        hanging.init_transactions(20)
        hanging.begin_transaction()
        hanging.produce(topic, frame, partition=0)
        hanging.flush(20)
        began = time.monotonic()
        wire.call("mem_alloc", namespace="n", content="5")
        assert time.monotonic() - began < 5, "an open transaction holds nobody up"
        log = wire.call("sys_info")["log"]
        claims = sum(isinstance(decode(data), Claim) for data in own)
        suspects = len(garbage) + len(forged) + len(foreign)
        assert log["suspect_messages"] >= suspects and log["void_messages"] >= suspects + claims
        assert wire.call("sys_verify", full=True)["ok"]
        assert wire.call("sys_info")["head_offset"] >= before["head_offset"] + 1
        kernel.stop()
    with Wire(machines.serve("b").socket) as wire:
        assert contents(wire, "n") == [f"{n}" for n in range(6)]
        assert wire.call("sys_verify", full=True)["ok"]
    hanging.abort_transaction(20)


def test_a_payload_of_hundred_megabytes_takes_bounded_memory_and_is_read_on_a_new_machine(machines: Machines) -> None:
    size, content = 110, "é" * (55 * limits.MIB)
    first = machines.serve("a")
    with Kernel.connect(first.socket) as kernel:
        before = first.highest_mb()
        cube = kernel.mem_alloc(namespace="n", content=content).cube_id
        # The caller's pages, mapped, and copies of them to be sealed and to be indexed; what is on its way is bounded.
        assert first.highest_mb() - before < 5 * size
        until = time.monotonic() + 20
        while first.resident_mb() - before > 0.9 * size:
            assert time.monotonic() < until, f"{first.resident_mb() - before:.0f} MB of it stay"
            time.sleep(0.1)
    assert first.stop() == 0
    second = machines.serve("b")
    # Without what is indexed by now, that is next to nothing.
    assert second.highest_mb() - before < 4 * size
    with Kernel.connect(second.socket) as kernel:
        assert kernel.mem_read(cube_id=cube).content == content


def test_after_a_failed_delivery_no_key_of_the_epoch_before_is_used(kafka: str, topic: str, tmp_path: Path) -> None:
    """Its free keys are destroyed then; whoever used one could read what it wrote, and nobody else."""
    url = f"kafka://{kafka}/{topic}"
    told: dict[str, str | bytes] = {}
    with Inside(tmp_path / "a", log=url) as k:
        for number in range(6):
            assert isinstance(k.log, KafkaLog)
            real = k.log._producer  # pyright: ignore[reportPrivateUsage]
            k.log._producer = FaultyProducer(real, sent=number % 2 == 1)  # type: ignore[assignment]  # pyright: ignore
            contents = [f"{number}.{n} " * (20 if n % 3 else 9000) for n in range(12)]
            large = [bytes([65 + number, 65 + n]) * 900_000 for n in range(2)]
            calls: list[tuple[str | bytes, asyncio.Future[dict[str, Any]]]] = []
            for n, text in enumerate(contents):
                calls.append((text, k.submit("mem_alloc", namespace="n", content=text)))
                if n in (0, 6):
                    whole = large[n // 6]
                    mapped = memoryview(mmap.mmap(sealed_memfd(whole), len(whole), prot=mmap.PROT_READ))
                    calls.append((whole, k.submit("mem_alloc", namespace="n", fd=0, encoding="bytes", _contents=[mapped])))
            for content, call in calls:
                try:
                    told[k.wait(call, 30)["cube_id"]] = content
                except MemError as error:
                    assert (error.errno, error.outcome) == ("EAGAIN", "none")
        epoch = k.kernel.chain.epoch
        assert epoch >= 7 and k.fatal == [] and told
        for _raw, record in records(k.log):
            for event in record.events:
                if event.name == "cube.allocated":
                    cube = k.kernel.view.cube(event.fields[0])
                    assert cube is not None and cube.slot is not None and cube.slot.epoch == record.epoch
    shutil.copy(tmp_path / "a" / "master.key", tmp_path)
    with Inside(tmp_path / "b", log=url, master_key_file=tmp_path / "master.key") as new:
        for cube_id, content in told.items():
            assert new("mem_read", cube_id=cube_id)["content"] == content


def test_a_setting_that_is_secret_is_never_said(machines: Machines, tmp_path: Path) -> None:
    settings = tmp_path / "client.properties"
    settings.touch(mode=0o600)
    settings.write_text(f"ssl.key.password={SECRET}\nclient.id=quiet\n")
    daemon = machines.serve("a", "--kafka-config", str(settings), "--log-level", "debug")
    with Wire(daemon.socket) as wire:
        wire.call("mem_alloc", namespace="n", content="x")
        assert SECRET not in str(wire.call("sys_info")) + str(wire.call("sys_stats"))
    assert daemon.stop() == 0
    wrong = [
        f"security.protocol=SASL_PLAINTEXT\nsasl.mechanism=PLAIN\nsasl.username=memos\nsasl.password={SECRET}\n",
        f"sasl.password={SECRET}\nsecurity.protocol={SECRET}\n",
        f"security.protocol=SSL\nssl.key.password={SECRET}\nssl.key.pem={SECRET}\n",
    ]
    started: list[Daemon] = []
    for at, text in enumerate(wrong):
        other = tmp_path / f"wrong{at}.properties"
        other.touch(mode=0o600)
        other.write_text(text)
        started.append(machines.start(f"wrong{at}", "--kafka-config", str(other), "--log-level", "debug"))
    for refused in started:
        assert refused.process.wait(60) == REFUSED
        assert SECRET not in refused.said()
        assert "memosd: " in refused.said()


# -- with a broker that goes away ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broker(clusters: StartCluster) -> Cluster:
    return clusters()


@pytest.fixture
def apart(tmp_path: Path, broker: Cluster, request: pytest.FixtureRequest) -> Iterator[Machines]:
    """Machines on a broker that may be paused."""
    with Machines(tmp_path, broker.bootstrap, f"t{abs(hash(request.node.name))}") as several:
        try:
            yield several
        finally:
            broker.resume(1)


def test_while_the_broker_is_away_reads_and_writes_wait_and_nothing_is_lost(apart: Machines, broker: Cluster) -> None:
    careful, careless = apart.serve("a"), None
    with Machines(apart.root / "second", broker.bootstrap, "isolated") as others:
        careless = others.serve("b", "--reads-when-isolated")
        with Wire(careful.socket) as wire, Wire(careless.socket) as other:
            cube = wire.call("mem_alloc", namespace="n", content="before")["cube_id"]
            cube2 = other.call("mem_alloc", namespace="n", content="before")["cube_id"]
            broker.pause(1)
            time.sleep(1.1)
            assert other.call("mem_read", cube_id=cube2)["content"] == "before"
            began = time.monotonic()
            assert wire.refusal("mem_read", cube_id=cube, deadline_ms=800) == "EAGAIN"
            assert 0.5 < time.monotonic() - began < 5, "it waited"
            frame = wire.request("mem_write", cube_id=cube, content="after", request_id="w")
            writing = wire.last_id
            wire.send(frame)
            reading = wire.request("mem_read", cube_id=cube, deadline_ms=20_000)
            wire.send(reading)
            broker.resume(1)
            # The write waits undecided behind what was under way; the read may be sure before that.
            answers = {found: body for found, _status, body in (wire.receive(), wire.receive())}
            assert answers[writing]["version"] == 2 and answers[wire.last_id]["content"] in ("before", "after")
            assert wire.call("mem_read", cube_id=cube)["content"] == "after"
            assert wire.call("mem_write", cube_id=cube, content="after", request_id="w")["version"] == 2


def test_a_stop_while_the_broker_is_away_ends_soon(apart: Machines, broker: Cluster) -> None:
    daemon = apart.serve("a")
    with Wire(daemon.socket) as wire:
        wire.call("mem_alloc", namespace="n", content="before")
        broker.pause(1)
        wire.send(wire.request("mem_alloc", namespace="n", content="during"))
        time.sleep(0.2)
        began = time.monotonic()
        assert daemon.stop() == 0, "nothing failed"
        assert time.monotonic() - began < 16
        # Nobody is told that it failed.
        assert all(status and from_wire(status, body).outcome == "unknown" for _id, status, body in wire.ends())
