"""The Kafka harness keeps its word: brokers start, suffer and vanish; the proxy loses, holds and delays what it should."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.kafka import ROOT, Cluster, StartCluster, create_topic
from tests.proxy import Proxy

QUIET = {"log_level": 0}


def producer(bootstrap: str, **settings: Any) -> Any:
    from confluent_kafka import Producer

    return Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": 0, **QUIET, **settings})


def stored(bootstrap: str, topic: str, expected: int) -> list[bytes]:
    """Every value of the topic's only partition, in order; waits up to 30 s for as many as expected."""
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer(
        {"bootstrap.servers": bootstrap, "group.id": "t", "enable.auto.commit": False, "auto.offset.reset": "error", **QUIET}
    )
    until = time.monotonic() + 30
    try:
        while consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=30)[1] < expected:
            assert time.monotonic() < until, "messages are missing"
        consumer.assign([TopicPartition(topic, 0, 0)])
        values: list[bytes] = []
        while len(values) < expected and time.monotonic() < until:
            message = consumer.poll(1.0)
            if message is not None:
                assert message.error() is None, message.error()
                values.append(message.value() or b"")
        return values
    finally:
        consumer.close()


class Sent:
    """Messages with numbers for values, and what the delivery reports said."""

    def __init__(self, bootstrap: str, topic: str, **settings: Any) -> None:
        self.producer = producer(bootstrap, **settings)
        self.topic = topic
        self.count = 0
        self.delivered: list[int] = []
        self.failed: list[str] = []

    def send(self, count: int = 1) -> None:
        for _ in range(count):
            number = self.count

            def report(error: Any, _message: Any, number: int = number) -> None:
                if error is None:
                    self.delivered.append(number)
                else:
                    self.failed.append(str(error))

            self.producer.produce(self.topic, str(number).encode(), on_delivery=report)
            self.count += 1

    def wait(self, seconds: float = 30) -> int:
        """How many are still under way after that time, or earlier if none."""
        left: int = self.producer.flush(seconds)
        return left

    def all_there(self, bootstrap: str) -> None:
        assert self.wait() == 0 and self.failed == []
        assert self.delivered == list(range(self.count))
        assert stored(bootstrap, self.topic, self.count) == [str(n).encode() for n in range(self.count)]


def test_the_shared_broker_takes_messages(kafka: str, topic: str) -> None:
    create_topic(kafka, topic)
    sent = Sent(kafka, topic)
    sent.send(100)
    sent.all_there(kafka)


# -- through the proxy ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def proxied(clusters: StartCluster) -> Cluster:
    return clusters(proxied=True)


@pytest.fixture
def through(proxied: Cluster, request: pytest.FixtureRequest) -> Iterator[tuple[Proxy, Sent]]:
    """A producer that has delivered one message through the proxy, and knows the broker by it only."""
    proxy, name = proxied.proxies[1], f"t{abs(hash(request.node.name))}"
    create_topic(proxied.bootstrap, name)
    sent = Sent(proxied.through, name)
    before = proxy.bytes_forwarded
    sent.send()
    assert sent.wait() == 0 and proxy.bytes_forwarded > before
    yield proxy, sent
    proxy.heal()
    sent.wait()


def test_nothing_is_lost_by_a_cut(proxied: Cluster, through: tuple[Proxy, Sent]) -> None:
    proxy, sent = through
    sent.send(50)
    proxy.cut()
    sent.send(50)
    assert sent.wait(0.5) >= 50, "the producer has no other way"
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", proxy.port), 5):
        pass
    proxy.heal()
    sent.all_there(proxied.bootstrap)


def test_a_stalled_client_waits_while_others_go_on(proxied: Cluster, through: tuple[Proxy, Sent]) -> None:
    proxy, sent = through
    proxy.stall()
    sent.send(10)
    assert sent.wait(0.5) == 10
    direct = Sent(proxied.bootstrap, sent.topic)
    direct.send()
    assert direct.wait() == 0, "who does not use the proxy does not notice"
    proxy.heal()
    assert sent.wait() == 0 and sent.failed == []
    assert stored(proxied.bootstrap, sent.topic, 12) == [b"0", b"0", *(str(n).encode() for n in range(1, 11))]


def test_an_answer_alone_can_be_lost(proxied: Cluster, through: tuple[Proxy, Sent]) -> None:
    """The message is in the topic and its sender does not know; the idempotent repeat makes no second one."""
    proxy, sent = through
    proxy.stall(requests=False)
    sent.send()
    assert stored(proxied.bootstrap, sent.topic, 2) == [b"0", b"1"]
    assert sent.delivered == [0]
    proxy.cut()
    proxy.heal()
    sent.all_there(proxied.bootstrap)


def test_a_slow_line_delays_each_way_and_does_not_add_up(proxied: Cluster, through: tuple[Proxy, Sent]) -> None:
    proxy, sent = through
    proxy.slow(delay_ms=100)
    started = time.monotonic()
    sent.send()
    assert sent.wait() == 0 and time.monotonic() - started >= 0.2
    proxy.slow(bytes_per_second=100_000)
    started = time.monotonic()
    sent.producer.produce(sent.topic, bytes(100_000))
    assert sent.wait() == 0 and 0.8 < time.monotonic() - started < 5


def test_who_connects_to_a_proxy_without_a_target_is_reset(proxied: Cluster) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with Proxy(("127.0.0.1", unused.getsockname()[1])) as proxy:
            with pytest.raises(ConnectionResetError), socket.create_connection(("127.0.0.1", proxy.port), 5) as sock:
                sock.recv(1)
            assert proxy.connections_ended == 1


# -- hurting brokers -----------------------------------------------------------------------------------------------------


def test_a_killed_broker_comes_back_with_what_it_confirmed(cluster: StartCluster) -> None:
    ours = cluster()
    create_topic(ours.bootstrap, "t")
    sent = Sent(ours.bootstrap, "t")
    sent.send(10)
    assert sent.wait() == 0
    ours.kill(1)
    sent.send(10)
    assert sent.wait(0.5) == 10
    ours.restart(1)
    sent.all_there(ours.bootstrap)
    ours.pause(1)
    sent.send()
    assert sent.wait(0.5) == 1
    ours.resume(1)
    sent.all_there(ours.bootstrap)
    ours.stop(1)


@pytest.mark.slow
def test_three_brokers_go_on_without_one_and_wait_without_two(cluster: StartCluster) -> None:
    ours = cluster(brokers=3)
    create_topic(ours.bootstrap, "t")
    sent = Sent(ours.bootstrap, "t")
    sent.send(10)
    assert sent.wait() == 0
    ours.kill(1)
    sent.send(10)
    assert sent.wait() == 0, "two of three are enough"
    ours.kill(2)
    sent.send(10)
    assert sent.wait(1) == 10, "one of three is not"
    ours.restart(1)
    ours.restart(2)
    sent.all_there(ours.bootstrap)


# -- what the session says -----------------------------------------------------------------------------------------------


STARTS_AND_HANGS = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from tests.kafka import Cluster, home
cluster = Cluster(home()).start()
print(cluster.directory, cluster.brokers[1].process.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.kafka
def test_no_broker_outlives_the_process_that_started_it() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STARTS_AND_HANGS, str(ROOT)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as starter:
        assert starter.stdout is not None
        directory, pid = starter.stdout.readline().split()
        assert Path(f"/proc/{pid}").exists()
        starter.kill()
        starter.wait(30)
        until = time.monotonic() + 30
        while Path(directory).exists() or Path(f"/proc/{pid}").exists():
            assert time.monotonic() < until, "it is still there"
            time.sleep(0.05)


PROBE = "tests/integration/test_kafka_harness.py::test_the_shared_broker_takes_messages"


def session(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A run of pytest on a machine where no broker is to be had."""
    clean = {key: value for key, value in os.environ.items() if key not in ("MEMOS_TEST_KAFKA", "MEMOS_REQUIRE_KAFKA")}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *args],
        cwd=ROOT, env={**clean, "KAFKA_HOME": os.devnull, **environment}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_a_session_without_kafka_says_so_in_one_line() -> None:
    done = session(PROBE)
    assert done.returncode == 0, done.stdout
    said = [line for line in done.stdout.splitlines() if "KAFKA" in line and "DID NOT RUN" in line]
    assert said == [
        f"KAFKA TESTS DID NOT RUN: {os.devnull} has no bin/kafka-server-start.sh (set KAFKA_HOME or MEMOS_TEST_KAFKA)"
    ]


def test_a_session_that_must_have_kafka_fails_without() -> None:
    done = session(PROBE, MEMOS_REQUIRE_KAFKA="1")
    assert done.returncode == 1 and "Kafka is required here" in done.stdout


def test_a_session_that_must_have_kafka_fails_when_no_test_used_it() -> None:
    done = session("tests/unit/test_errors.py", MEMOS_REQUIRE_KAFKA="1")
    assert done.returncode == 1 and "NO KAFKA TEST RAN" in done.stdout


def test_calls_of_the_proxy_come_from_any_thread(proxied: Cluster) -> None:
    proxy = proxied.proxies[1]
    steps: list[Callable[[], None]] = [proxy.cut, proxy.stall, proxy.slow, proxy.heal]
    threads = [threading.Thread(target=step) for step in steps * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    proxy.heal()
    create_topic(proxied.through, "from-any-thread")
