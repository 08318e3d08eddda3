"""Three brokers of which some fail: another one leads and nothing is lost. Where something is lost, it is noticed and refused.

All tests share the cluster, and find it whole. MEMOS_FAULT_SECONDS says how long faults last; from ten seconds on, all of
them are tried.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.faults.admin import Admin
from tests.faults.load import FAULT_SECONDS
from tests.faults.scene import RECOVERY_SECONDS, THOROUGH, Scene
from tests.kafka import Cluster, StartCluster

BROKERS = {1, 2, 3}


@pytest.fixture(scope="module")
def shared(clusters: StartCluster) -> Cluster:
    return clusters(3)


@pytest.fixture
def three(shared: Cluster) -> Cluster:
    """The cluster; what the test before left dead is started again."""
    dead = [broker for broker in shared.brokers.values() if broker.process is None or broker.process.poll() is not None]
    for broker in dead:
        broker.start()
    for broker in dead:
        broker.ready()
    return shared


@pytest.fixture
def admin(three: Cluster) -> Admin:
    return Admin(three)


@pytest.fixture
def scene(three: Cluster, admin: Admin, tmp_path: Path) -> Iterator[Scene]:
    with Scene(tmp_path, three.bootstrap) as found:
        for topic in found.topics:
            admin.synced(topic, sorted(BROKERS))
        yield found


# -- changes of leaders --------------------------------------------------------------------------------------------------


def killed(three: Cluster, admin: Admin, topic: str) -> None:
    leader = admin.leader(topic)
    three.kill(leader)
    admin.led(topic, *(BROKERS - {leader}))
    time.sleep(FAULT_SECONDS)


def stopped(three: Cluster, admin: Admin, topic: str) -> None:
    leader = admin.leader(topic)
    three.stop(leader)
    admin.led(topic, *(BROKERS - {leader}))
    time.sleep(FAULT_SECONDS)


def paused(three: Cluster, admin: Admin, topic: str) -> None:
    """The old leader wakes up and does not know that it is one no more."""
    leader = admin.leader(topic)
    three.pause(leader)
    try:
        admin.led(topic, *(BROKERS - {leader}))
        time.sleep(FAULT_SECONDS)
    finally:
        three.resume(leader)


def elected(three: Cluster, admin: Admin, topic: str) -> None:
    """Nobody dies when the first replica is asked to lead again."""
    leader = admin.leader(topic)
    three.stop(leader)
    admin.led(topic, *(BROKERS - {leader}))
    three.restart(leader)
    admin.synced(topic, sorted(BROKERS))
    admin.elect_preferred(topic)
    admin.led(topic, leader)


@pytest.mark.parametrize("change", [killed, stopped, paused, elected] if THOROUGH else [killed])
def test_calls_go_on_under_another_leader(
    three: Cluster, admin: Admin, scene: Scene, change: Callable[[Cluster, Admin, str], None]
) -> None:
    load = scene.load
    with load.running():
        load.goes_on(RECOVERY_SECONDS)
        change(three, admin, scene.topic)
        load.goes_on(RECOVERY_SECONDS)
    scene.runs()
    scene.only_waited()
    scene.sound()


@pytest.mark.skipif(not THOROUGH, reason="runs in `make crash`")
def test_leaders_that_change_all_the_time_lose_nothing(three: Cluster, admin: Admin, scene: Scene) -> None:
    load = scene.load
    with load.running():
        for number in (1, 2, 3):
            load.goes_on(RECOVERY_SECONDS)
            three.kill(number)
            load.goes_on(RECOVERY_SECONDS)
            three.restart(number)
            for topic in scene.topics:
                admin.synced(topic, sorted(BROKERS))
        load.goes_on(RECOVERY_SECONDS)
    scene.runs()
    scene.only_waited()
    scene.sound()


@pytest.mark.skipif(not THOROUGH, reason="runs in `make crash`")
def test_one_broker_of_three_takes_nothing_and_calls_wait_for_the_others(three: Cluster, admin: Admin, scene: Scene) -> None:
    load = scene.load
    with load.running():
        load.goes_on(RECOVERY_SECONDS)
        others = BROKERS - {admin.leader(scene.topic)}
        for number in others:
            three.kill(number)
        time.sleep(3)
        acknowledged = load.acknowledged()
        time.sleep(FAULT_SECONDS)
        assert load.acknowledged() == acknowledged, "one replica is not enough"
        for number in others:
            three.brokers[number].start()
        for number in others:
            three.brokers[number].ready()
        load.goes_on(RECOVERY_SECONDS)
    scene.runs()
    scene.only_waited()
    scene.sound()


# -- a tail that is lost -------------------------------------------------------------------------------------------------


@pytest.fixture
def exposed(three: Cluster, admin: Admin, tmp_path: Path) -> Iterator[Scene]:
    """A log whose records stand on brokers 1 and 2, of which 1 leads; the rest is out of danger on broker 3."""
    topic = f"memos-{uuid.uuid4().hex[:12]}"
    settings: dict[str, object] = {"min_insync_replicas": 1, "unclean_leader_election_enable": "false"}
    admin.make(topic, [1, 2], retention_ms=-1, **settings)
    admin.make(f"{topic}.payloads", [3], cleanup_policy="compact", **settings)
    admin.make(
        f"{topic}.keys", [3], cleanup_policy="compact", segment_ms=10_000, max_compaction_lag_ms=10_000,
        min_cleanable_dirty_ratio=0.01, file_delete_delay_ms=1000, delete_retention_ms=600_000, **settings,
    )  # fmt: skip
    with Scene(tmp_path, three.bootstrap, topic=topic) as found:
        yield found


@pytest.mark.parametrize("running", [True, False] if THOROUGH else [True])
def test_a_tail_that_an_unclean_election_loses_is_noticed_and_refused(
    three: Cluster, admin: Admin, exposed: Scene, running: bool
) -> None:
    topic, load = exposed.topic, exposed.load
    with load.running():
        load.goes_on(RECOVERY_SECONDS)
        three.kill(2)
        admin.synced(topic, [1])
        # What comes now, broker 2 never hears of; a checkpoint is among it.
        load.goes_on(RECOVERY_SECONDS)
        time.sleep(1.5)
        admin.set(topic, unclean_leader_election_enable="true")
        if running:
            three.kill(1)
            three.restart(2)
            admin.led(topic, 2)
            assert exposed.ended() == 3, exposed.daemon.said()
    if running:
        assert "its tail was lost" in exposed.said_last()
    else:
        assert exposed.daemon.stop() == 0
        three.kill(1)
        three.restart(2)
        admin.led(topic, 2)
    load.honest()
    assert exposed.refused() == 1
    assert "unclean.leader.election.enable is true, and must be false" in exposed.said_last()
    admin.set(topic, unclean_leader_election_enable="false")
    assert exposed.refused() == 1, "the directory remembers what the topic lost"
    assert "Traceback" not in exposed.said_last() and topic in exposed.said_last(), exposed.said_last()
    assert exposed.refused("another") == 1, "the keys remember a checkpoint that the topic lost"
    assert "the log was cut back" in exposed.said_last(), exposed.said_last()
