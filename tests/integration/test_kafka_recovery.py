"""A kernel's directory against its topic: lost, behind, ahead, or of another topic; and kill -9 under load."""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.crash.test_kill9 import WRITERS, Acks, Writer, check_acknowledged, settle
from tests.inside import replay
from tests.kafka import Cluster, StartCluster
from tests.outside import Daemon, Machines, Wire

from memos_drivers.stores.base import VIEW
from memos_drivers.stores.rocks import RocksStore
from memos_kernel.eventlog.embedded import EmbeddedLog
from memos_kernel.eventlog.link import Link
from memos_kernel.eventlog.partition import Reader

ROUNDS = int(os.environ.get("MEMOS_CRASH_ROUNDS", "2"))
REFUSED, FATAL = 1, 3
api: Any = pytest.importorskip("confluent_kafka.admin")


@pytest.fixture
def machines(tmp_path: Path, kafka: str, topic: str) -> Iterator[Machines]:
    with Machines(tmp_path, kafka, topic) as several:
        yield several


def fill(daemon: Daemon, count: int = 20) -> str:
    """Some of everything; returns a cube that holds 40 kB."""
    with Wire(daemon.socket) as wire:
        made = [wire.call("mem_alloc", namespace="n", content=f"{n}")["cube_id"] for n in range(count)]
        wire.call("mem_write", cube_id=made[0], content="x" * 40_000)
        wire.call("mem_shred", cube_id=made[1])
        wire.call("mem_free", cube_id=made[2])
        return str(made[0])


def ended(daemon: Daemon) -> tuple[int, str]:
    """Stop it; the head and the digest of what it left."""
    assert daemon.stop() == 0, daemon.said()
    store = RocksStore(daemon.data / "db", read_only=True)
    try:
        log = EmbeddedLog(store)
        digest, rows = replay(log)
        view = dict(store.live(VIEW).scan(b""))
        assert {key: view[key] for key in rows} == rows
        return sum(1 for _ in log.frames()), digest
    finally:
        store.close()


def replayed(daemon: Daemon) -> str:
    """The digest of a serving kernel, which a replay of its mirror gives, too."""
    with Wire(daemon.socket) as wire:
        assert wire.call("sys_verify", full=True)["ok"]
        return str(wire.call("sys_info")["state_digest"])


def delete(address: str, *topics: str) -> None:
    admin = api.AdminClient({"bootstrap.servers": address})
    for done in admin.delete_topics(list(topics)).values():
        done.result(30)


def end_of(link: Link) -> int:
    reader = Reader(link, link.topic, batch=1000)
    try:
        return sum(1 for _ in reader.to_end())
    finally:
        reader.close()


def refused(daemon: Daemon, *words: str) -> None:
    assert daemon.process.wait(60) == REFUSED, daemon.said()
    last = daemon.said().strip().splitlines()[-1]
    assert last.startswith("memosd: "), daemon.said()
    assert all(word in daemon.said() for word in words), daemon.said()


def test_an_empty_directory_becomes_what_was_lost(machines: Machines) -> None:
    first = machines.serve("a")
    cube = fill(first)
    _frames, digest = ended(first)
    shutil.rmtree(machines.root / "a")
    with Wire(machines.serve("a").socket) as wire:
        assert wire.call("mem_read", cube_id=cube)["content"] == "x" * 40_000
        assert wire.call("sys_verify", full=True)["ok"]
        head = wire.call("sys_info")["head_offset"]
    log = EmbeddedLog(RocksStore(machines.root / "a" / "db", read_only=True))
    digests = [replay(log, seq)[0] for seq in range(head - 2, head + 1)]
    assert digest in digests, "but for the opening of its own epoch"


def test_a_directory_that_is_behind_catches_up(machines: Machines) -> None:
    first = machines.serve("a")
    fill(first)
    ended(first)
    shutil.copytree(machines.root / "a", machines.root / "old")
    second = machines.serve("a")
    cube = fill(second)
    with Wire(second.socket) as wire:
        listed = wire.call("mem_list", namespace="n", limit=100)
        before = wire.call("mem_history", cube_id=cube)
    ended(second)
    with Wire(machines.serve("old").socket) as wire:
        assert wire.call("mem_list", namespace="n", limit=100) == listed
        assert wire.call("mem_history", cube_id=cube) == before
        assert wire.call("sys_verify", full=True)["ok"]


def test_a_directory_of_another_topic_is_refused_and_left_alone(machines: Machines, topic: str) -> None:
    first = machines.serve("a")
    cube = fill(first)
    before = ended(first)
    other = machines.start("b", url=f"{machines.url}-other").ready()
    fill(other, 3)
    ended(other)
    refused(machines.start("a", url=f"{machines.url}-other"), "belongs to")
    refused(machines.start("a", url=f"{machines.url}-new"))
    with Wire(machines.serve("a").socket) as wire:
        assert wire.call("mem_read", cube_id=cube)["content"] == "x" * 40_000
        assert wire.call("sys_info")["head_offset"] >= before[0]


def test_a_topic_that_was_deleted_or_made_anew_is_refused(machines: Machines, kafka: str, topic: str) -> None:
    first = machines.serve("a")
    fill(first, 4)
    ended(first)
    link = Link.parse(machines.url)
    delete(kafka, link.topic)
    refused(machines.start("a"), "missing", topic)
    delete(kafka, link.payloads, link.keys)
    refused(machines.start("a"), topic)
    store = RocksStore(machines.root / "a" / "db", read_only=True)
    assert len(list(EmbeddedLog(store).frames())) > 4, "what is here may be all that is left"
    store.close()


def test_a_topic_that_is_deleted_under_a_kernel_ends_it(machines: Machines, kafka: str, topic: str) -> None:
    first = machines.serve("a")
    fill(first, 3)
    with Wire(first.socket, seconds=60) as wire:
        delete(kafka, topic)
        wire.send(wire.request("mem_alloc", namespace="n", content="into nothing", request_id="r"))
        answers = wire.ends()
    assert first.process.wait(60) == FATAL, first.said()
    assert all(status for _id, status, _body in answers), "nothing was acknowledged"
    assert "gone" in first.said() or "deleted" in first.said(), first.said()


def test_records_that_are_deleted_from_a_topic_are_missed_by_a_new_machine(machines: Machines, kafka: str, topic: str) -> None:
    from confluent_kafka import TopicPartition

    first = machines.serve("a")
    cube = fill(first)
    admin = api.AdminClient({"bootstrap.servers": kafka})
    for done in admin.delete_records([TopicPartition(topic, 0, 5)]).values():
        done.result(30)
    with Wire(first.socket) as wire:
        wire.call("mem_alloc", namespace="n", content="goes on")
        assert wire.call("mem_read", cube_id=cube)["content"] == "x" * 40_000
    before = ended(first)
    refused(machines.start("new"), topic)
    again = machines.serve("a")
    with Wire(again.socket) as wire:
        assert wire.call("sys_info")["head_offset"] >= before[0], "who has read them can go on"
        assert wire.call("mem_read", cube_id=cube)["content"] == "x" * 40_000


# -- a broker that loses its tail --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broker(clusters: StartCluster) -> Cluster:
    return clusters()


def older(broker: Cluster, copy: Path) -> None:
    """Bring the broker's data of the copy back."""
    data = broker.brokers[1].directory / "data"
    shutil.rmtree(data)
    shutil.copytree(copy, data)


@pytest.fixture
def losing(tmp_path: Path, broker: Cluster) -> Iterator[Machines]:
    with Machines(tmp_path, broker.bootstrap, f"t{random.randrange(10**9)}") as several:
        yield several


@pytest.mark.slow
@pytest.mark.skipif("MEMOS_CRASH_ROUNDS" not in os.environ, reason="waits for what may still come; set MEMOS_CRASH_ROUNDS")
def test_a_topic_that_lost_its_tail_is_noticed_under_way_and_refused_at_a_start(
    losing: Machines, broker: Cluster, tmp_path: Path
) -> None:
    """The broker comes back with an older disk; whoever knows what was on the newer one writes nothing more."""
    first = losing.serve("a")
    fill(first)
    ended(first)
    data = broker.brokers[1].directory / "data"
    broker.stop(1)
    shutil.copytree(data, tmp_path / "then")
    broker.restart(1)
    second = losing.serve("a")
    cube = fill(second)
    broker.stop(1)
    shutil.copytree(data, tmp_path / "now")
    older(broker, tmp_path / "then")
    broker.restart(1)
    end = end_of(Link.parse(losing.url))
    with Wire(second.socket, seconds=60) as wire:
        wire.send(wire.request("mem_alloc", namespace="n", content="onto nothing"))
        answers = wire.ends()
    assert second.process.wait(60) == FATAL, second.said()
    assert all(status for _id, status, _body in answers), "nothing was acknowledged"
    refused(losing.start("a"), "lost its tail")
    assert end_of(Link.parse(losing.url)) <= end + 3, "nobody went on there"
    broker.stop(1)
    older(broker, tmp_path / "now")
    broker.restart(1)
    with Wire(losing.serve("a").socket) as wire:
        assert wire.call("mem_read", cube_id=cube)["content"] == "x" * 40_000
        assert wire.call("sys_verify", full=True)["ok"]


class _Undated(Wire):
    """A connection whose answers leave out what a receipt says of the time at which it was asked for."""

    def call(self, name: str, /, **args: Any) -> dict[str, Any]:
        answer = super().call(name, **args)
        if name == "mem_shred":
            for dated in ("receipt", "keys_gone_by"):
                answer["report"].pop(dated, None)
        return answer


# -- kill -9 -----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_was_acknowledged_survives_kill_9_on_any_machine_and_nothing_happens_twice(machines: Machines) -> None:
    """As tests/crash/test_kill9.py; every other time the directory is lost, too. MEMOS_CRASH_ROUNDS says how often."""
    seed = int(os.environ.get("MEMOS_CRASH_SEED", "0")) or random.randrange(2**32)
    print(f"MEMOS_CRASH_SEED={seed}")
    chance = random.Random(seed)
    with Acks(machines.root / "acks") as acks:
        writers = [Writer(n, random.Random(seed + n)) for n in range(WRITERS)]
        daemon = machines.serve("a")
        with Wire(daemon.socket) as wire:
            # Everybody's namespace exists before the first kill.
            for n in range(WRITERS):
                wire.call("mem_alloc", namespace=f"n{n}", content="first")
        for number in range(ROUNDS):
            threads = [threading.Thread(target=writer.run, args=(daemon, acks)) for writer in writers]
            for thread in threads:
                thread.start()
            time.sleep(chance.uniform(0.1, 1.0))
            daemon.kill()
            for thread in threads:
                thread.join()
            if number % 2:
                machines.wipe("a")
            daemon = machines.serve("a")
            with _Undated(daemon.socket, seconds=60) as wire:
                for writer in writers:
                    check_acknowledged(wire, writer)
                for writer in writers:
                    settle(wire, writer)
                    check_acknowledged(wire, writer)
                report = wire.call("sys_verify", full=True)
                assert report["ok"], report["problems"]
        assert acks.count > ROUNDS, "the writers got somewhere"
        ended(daemon)
