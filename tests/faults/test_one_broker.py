"""One broker that fails, or forbids: callers wait up to their deadline and are told the truth, and calls go on afterwards.

All tests share a broker; the kernel reaches it through a proxy, with a password and with rights. MEMOS_FAULT_SECONDS says how
long faults last; from ten seconds on, all of them are tried.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.faults.admin import GUARDED, LOGIN, Admin
from tests.faults.load import FAULT_SECONDS
from tests.faults.scene import RECOVERY_SECONDS, THOROUGH, Scene
from tests.kafka import Cluster, StartCluster

PREFIX = "memos-"
WHOLE_BYTES = 1048588


@pytest.fixture(scope="module")
def broker(clusters: StartCluster) -> Cluster:
    started = clusters(proxied=True, settings=GUARDED)
    Admin(started).grant_all(PREFIX)
    return started


@pytest.fixture
def admin(broker: Cluster) -> Admin:
    return Admin(broker)


@pytest.fixture
def scene(broker: Cluster, tmp_path: Path) -> Iterator[Scene]:
    """A kernel with a topic of its own, and 30 calls done."""
    with Scene(tmp_path, broker.through, direct=broker.bootstrap, options=LOGIN) as found:
        yield found
    # Whatever the test came to.
    broker.proxies[1].heal()


def kill(broker: Cluster) -> None:
    broker.kill(1)
    time.sleep(FAULT_SECONDS)
    broker.restart(1)


def stop(broker: Cluster) -> None:
    broker.stop(1)
    time.sleep(FAULT_SECONDS)
    broker.restart(1)


def pause(broker: Cluster) -> None:
    broker.pause(1)
    time.sleep(FAULT_SECONDS)
    broker.resume(1)


def cut(broker: Cluster) -> None:
    broker.proxies[1].cut()
    time.sleep(FAULT_SECONDS)
    broker.proxies[1].heal()


def stall(broker: Cluster) -> None:
    broker.proxies[1].stall()
    time.sleep(FAULT_SECONDS)
    broker.proxies[1].heal()


def lose_answers(broker: Cluster) -> None:
    """What was sent arrives; that it did, nobody hears."""
    until = time.monotonic() + FAULT_SECONDS
    while time.monotonic() < until:
        broker.proxies[1].stall(requests=False)
        time.sleep(0.2)
        broker.proxies[1].cut()
        broker.proxies[1].heal()
        time.sleep(0.8)


def slow(broker: Cluster) -> None:
    broker.proxies[1].slow(bytes_per_second=100_000, delay_ms=100)
    time.sleep(FAULT_SECONDS)
    broker.proxies[1].heal()


SOME = [pause, lose_answers]
ALL = [*SOME, kill, stop, cut, stall, slow]


@pytest.mark.parametrize("fault", ALL if THOROUGH else SOME)
def test_calls_wait_and_go_on(broker: Cluster, scene: Scene, fault: object) -> None:
    assert callable(fault)
    load = scene.load
    with load.running():
        load.goes_on(RECOVERY_SECONDS)
        fault(broker)
        load.goes_on(RECOVERY_SECONDS)
    scene.runs()
    scene.only_waited()
    if fault is not slow and fault is not lose_answers:
        assert ("ETIMEDOUT", "unknown") in load.errors(), "who had sent something and waited too long does not know"
        assert ("EAGAIN", "none") in load.errors(), "who could send nothing knows that"
        assert load.read_errors["EAGAIN"], "a kernel that is cut off does not answer with yesterday's state"
    scene.sound()


@pytest.mark.skipif(not THOROUGH, reason="runs in `make crash`")
def test_a_kernel_that_is_stopped_or_started_without_its_broker_says_so(broker: Cluster, scene: Scene) -> None:
    load = scene.load
    proxy = broker.proxies[1]
    with load.running():
        load.goes_on(RECOVERY_SECONDS)
        proxy.cut()
        # Long enough that calls stand in line.
        time.sleep(5)
        began = time.monotonic()
        status = scene.daemon.stop()
        assert time.monotonic() - began < 20
    assert status == 0, scene.daemon.said()
    assert "the end of the log was not signed: the log is out of reach" in scene.daemon.said()
    began = time.monotonic()
    assert scene.refused() == 1
    assert time.monotonic() - began < 45
    assert "no broker at" in scene.said_last(), scene.said_last()
    proxy.heal()
    scene.again().ready()
    scene.sound()


RIGHTS = [("", "WRITE"), ("", "READ"), (".payloads", "WRITE"), (".keys", "WRITE")]


@pytest.mark.parametrize(("which", "right"), RIGHTS if THOROUGH else RIGHTS[:1])
def test_a_right_that_is_taken_away_is_waited_for(admin: Admin, scene: Scene, which: str, right: str) -> None:
    load, topic = scene.load, scene.topic + which
    with load.running():
        load.goes_on(RECOVERY_SECONDS)
        admin.revoke(topic, right)
        time.sleep(FAULT_SECONDS)
        scene.runs()
        admin.grant_again(topic, right)
        load.goes_on(RECOVERY_SECONDS)
    scene.runs()
    scene.only_waited()
    assert "authorization failed" in scene.daemon.said(), "the operator is told"
    scene.sound()


@pytest.mark.skipif(not THOROUGH, reason="runs in `make crash`")
@pytest.mark.parametrize("size", [100, 3000])
def test_messages_that_become_too_large_are_refused_until_they_fit_again(admin: Admin, scene: Scene, size: int) -> None:
    """Below a claim's size nothing passes; above it, small frames do."""
    load = scene.load
    with load.running():
        load.goes_on(RECOVERY_SECONDS)
        for topic in (scene.topic, f"{scene.topic}.payloads"):
            admin.set(topic, max_message_bytes=size)
        time.sleep(FAULT_SECONDS)
        scene.runs()
        for topic in (scene.topic, f"{scene.topic}.payloads"):
            admin.set(topic, max_message_bytes=WHOLE_BYTES)
        load.goes_on(RECOVERY_SECONDS)
    scene.runs()
    scene.only_waited()
    assert "Message size too large" in scene.daemon.said(), "the operator is told"
    scene.sound()


@pytest.mark.parametrize("which", ["", ".keys", ".payloads"] if THOROUGH else [""])
def test_a_topic_that_is_deleted_ends_the_kernel_and_is_not_made_anew(admin: Admin, scene: Scene, which: str) -> None:
    load = scene.load
    with load.running():
        load.goes_on(RECOVERY_SECONDS)
        admin.delete(scene.topic + which)
        status = scene.ended(90)
    assert status == 3, scene.daemon.said()
    load.honest()
    assert scene.topic + which in scene.said_last(), scene.said_last()
    assert scene.refused() == 1
    says = scene.said_last()
    assert f"the topic {scene.topic}{which} is missing" in says and "lost" in says and "Restore it" in says


@pytest.mark.skipif(not THOROUGH, reason="runs in `make crash`")
def test_a_topic_that_is_made_anew_under_the_same_name_is_noticed(admin: Admin, scene: Scene) -> None:
    load = scene.load
    with load.running():
        load.goes_on(RECOVERY_SECONDS)
        admin.delete(scene.topic)
        time.sleep(1)
        admin.make(scene.topic, [1], retention_ms=-1, unclean_leader_election_enable="false")
        status = scene.ended(90)
    assert status == 3, scene.daemon.said()
    load.honest()
    assert scene.refused() == 1
    assert scene.topic in scene.said_last()
