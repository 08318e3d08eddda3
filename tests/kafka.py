"""Real Apache Kafka brokers for tests: found, started, hurt and never left behind.

Where brokers come from, first match wins:
1. `MEMOS_TEST_KAFKA=host:port`: a broker that somebody runs. Tests that hurt brokers start their own as below, or skip.
2. `KAFKA_HOME`: a Kafka distribution (`bin/kafka-server-start.sh` and `bin/kafka-storage.sh`); needs Java on the PATH.
3. `../shared/kafka` beside the repository: likewise.

Without any, the tests skip and the summary says so in a line of its own; with `MEMOS_REQUIRE_KAFKA=1` they fail, and so does
a session that ran none of them.

Fixtures (tests that use one get the marker `kafka`):
- `kafka`: the bootstrap address of one broker that all tests share. Nobody hurts it.
- `topic`: a name nobody else uses. `create_topic` makes it, where the kernel does not.
- `cluster`: a factory of clusters of the test's own: `cluster(brokers=3, settings={…}, proxied=True)`. `clusters` is the
  same for a whole module.

Brokers are killed and their data is removed when the process that started them ends, however it ends: `guard.py`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

import pytest
from tests.proxy import Proxy, free_port

ROOT: Final = Path(__file__).parents[1]
RAM: Final = Path("/dev/shm")
START_SECONDS: Final = 90.0
STOP_SECONDS: Final = 60.0
STARTED: Final = b"Kafka Server started"
MEMORY: Final = "-Xms64m -Xmx384m"
JVM: Final = "-XX:+UseSerialGC -XX:TieredStopAtLevel=1"
"""Tests live for seconds: the collector and compiler that start fastest and leave the processors to the kernel."""


def home() -> Path | None:
    """The Kafka distribution that is configured, or lies beside the repository."""
    named = os.environ.get("KAFKA_HOME")
    beside = ROOT.parent / "shared" / "kafka"
    return Path(named) if named else beside if beside.is_dir() else None


def outside() -> str | None:
    """The broker that somebody else runs for us."""
    return os.environ.get("MEMOS_TEST_KAFKA") or None


def lacking(*, own: bool) -> str | None:
    """Why no broker can be had, or None; `own` asks for brokers that may be hurt."""
    try:
        import confluent_kafka  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError:
        return "confluent-kafka is not installed"
    if outside() and not own:
        return None
    place = home()
    if place is None:
        return "no broker of its own is configured" if outside() else "no Kafka is configured"
    for script in ("kafka-server-start.sh", "kafka-storage.sh"):
        if not (place / "bin" / script).is_file():
            return f"{place} has no bin/{script}"
    return None if shutil.which("java") else "there is no java on the PATH"


class Broker:
    """One broker process, its settings and its data."""

    def __init__(self, kafka_home: Path, directory: Path, properties: Mapping[str, object]) -> None:
        self.home = kafka_home
        self.directory = directory
        self.words = directory / "server.log"
        self.process: subprocess.Popen[bytes] | None = None
        directory.mkdir()
        (directory / "server.properties").write_text("".join(f"{key}={value}\n" for key, value in properties.items()))

    def run(self, script: str, *args: str) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ, "KAFKA_HEAP_OPTS": os.environ.get("KAFKA_HEAP_OPTS", MEMORY), "LOG_DIR": str(self.directory),
            "KAFKA_JVM_OPTS": JVM, "KAFKA_JVM_PERFORMANCE_OPTS": JVM,
        }  # fmt: skip
        if (talkative := self.home / "config" / "log4j2-server.yaml").is_file():
            environment["KAFKA_LOG4J"] = str(talkative)
        with open(self.words, "ab") as words:
            return subprocess.Popen(
                [str(self.home / "bin" / script), *args], env=environment, stdin=subprocess.DEVNULL, stdout=words, stderr=words,
                start_new_session=True, cwd=self.directory,
            )  # fmt: skip

    def format(self, cluster_id: str) -> subprocess.Popen[bytes]:
        return self.run("kafka-storage.sh", "format", "-t", cluster_id, "-c", str(self.directory / "server.properties"))

    def start(self) -> None:
        assert self.process is None or self.process.poll() is not None, "it runs"
        self._from = self.words.stat().st_size
        self.process = self.run("kafka-server-start.sh", str(self.directory / "server.properties"))
        # The guard reads it.
        (self.directory / "pid").write_text(str(self.process.pid))

    def ready(self) -> None:
        assert self.process is not None
        until = time.monotonic() + START_SECONDS
        while STARTED not in self.words.read_bytes()[self._from :]:
            if self.process.poll() is not None or time.monotonic() > until:
                status = self.process.poll()
                raise AssertionError(f"{self.directory.name} did not start (exit status {status}):\n{self.last_words()}")
            time.sleep(0.05)

    def last_words(self) -> str:
        return self.words.read_text(errors="replace")[-3000:]

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def end(self, number: int) -> None:
        assert self.process is not None
        self.signal(number)
        # A stopped process takes only a SIGKILL.
        self.signal(signal.SIGCONT)
        self.process.wait(STOP_SECONDS)


class Cluster:
    """Brokers of our own, numbered from 1. `with` kills them and removes what they stored.

    `bootstrap` names the brokers themselves. With `proxied`, `through` names a second listener of each that clients reach
    by `proxies[broker]` and by nothing else; brokers talk to each other directly. So one client can be cut off while another
    is not.
    """

    def __init__(self, kafka_home: Path) -> None:
        self.home = kafka_home
        self.directory = Path(tempfile.mkdtemp(prefix="memos-kafka-", dir=RAM if RAM.is_dir() else None))
        self.brokers: dict[int, Broker] = {}
        self.proxies: dict[int, Proxy] = {}
        self.bootstrap = ""
        self.through = ""
        guard = [sys.executable, "-I", str(Path(__file__).with_name("guard.py")), str(self.directory)]
        self._guard = subprocess.Popen(guard, stdin=subprocess.PIPE, start_new_session=True)

    def start(self, brokers: int = 1, settings: Mapping[str, object] | None = None, *, proxied: bool = False) -> Self:
        """Return when every broker has started."""
        nodes = range(1, brokers + 1)
        ports, controllers = {n: free_port() for n in nodes}, {n: free_port() for n in nodes}
        voters = ",".join(f"{n}@127.0.0.1:{port}" for n, port in controllers.items())
        self.bootstrap = ",".join(f"127.0.0.1:{port}" for port in ports.values())
        for n in nodes:
            listeners = {"PLAINTEXT": ports[n], "CONTROLLER": controllers[n]}
            advertised = {"PLAINTEXT": ports[n]}
            if proxied:
                listeners["PROXIED"] = free_port()
                self.proxies[n] = Proxy(("127.0.0.1", listeners["PROXIED"]))
                advertised["PROXIED"] = self.proxies[n].port
            folder = self.directory / f"broker-{n}"
            properties = {
                "node.id": n, "controller.quorum.voters": voters, "log.dirs": folder / "data", "listeners": _listed(listeners),
                "advertised.listeners": _listed(advertised), **_settings(brokers), **(settings or {}),
            }  # fmt: skip
            self.brokers[n] = Broker(self.home, folder, properties)
        self.through = ",".join(proxy.address for proxy in self.proxies.values())
        # By chance one in 64 would begin with a dash, and kafka-storage.sh would take it for an option.
        cluster_id = urlsafe_b64encode(b"M" + uuid.uuid4().bytes[1:]).rstrip(b"=").decode()
        for broker, formatting in [(broker, broker.format(cluster_id)) for broker in self.brokers.values()]:
            assert formatting.wait(START_SECONDS) == 0, f"kafka-storage.sh: {formatting.returncode}\n{broker.last_words()}"
        for broker in self.brokers.values():
            broker.start()
        for broker in self.brokers.values():
            broker.ready()
        return self

    def kill(self, broker: int) -> None:
        """SIGKILL: nothing is finished or said."""
        self.brokers[broker].end(signal.SIGKILL)

    def stop(self, broker: int) -> None:
        """SIGTERM: leadership is handed over first."""
        self.brokers[broker].end(signal.SIGTERM)

    def restart(self, broker: int) -> None:
        """Start a killed or stopped broker on its old data; return when it has started."""
        self.brokers[broker].start()
        self.brokers[broker].ready()

    def pause(self, broker: int) -> None:
        """SIGSTOP: connections stay, nothing answers."""
        process = self.brokers[broker].process
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        # A thread that is at work answers one more time before it stops.
        tasks = Path(f"/proc/{process.pid}/task")
        while any((task / "stat").read_text().rpartition(")")[2].split()[0] not in "TtZ" for task in tasks.iterdir()):
            time.sleep(0.01)

    def resume(self, broker: int) -> None:
        self.brokers[broker].signal(signal.SIGCONT)

    def close(self) -> None:
        for proxy in self.proxies.values():
            proxy.close()
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self._guard.wait(STOP_SECONDS)
        for broker in self.brokers.values():
            if broker.process is not None:
                broker.process.wait(STOP_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _listed(listeners: Mapping[str, int]) -> str:
    return ",".join(f"{name}://127.0.0.1:{port}" for name, port in listeners.items())


def _settings(brokers: int) -> dict[str, object]:
    """Those of a careful cluster; small, and quick to notice a dead broker and to clean."""
    replicas, enough = min(brokers, 3), 2 if brokers >= 3 else 1
    return {
        "process.roles": "broker,controller",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "default.replication.factor": replicas,
        "min.insync.replicas": enough,
        "offsets.topic.replication.factor": replicas,
        "offsets.topic.num.partitions": 4,
        "transaction.state.log.replication.factor": replicas,
        "transaction.state.log.min.isr": enough,
        "transaction.state.log.num.partitions": 4,
        "unclean.leader.election.enable": "false",
        "auto.create.topics.enable": "false",
        "group.initial.rebalance.delay.ms": 0,
        "broker.heartbeat.interval.ms": 500,
        "broker.session.timeout.ms": 3000,
        "num.network.threads": 2,
        "num.io.threads": 4,
        "log.cleaner.dedupe.buffer.size": 8 << 20,
        "log.cleaner.backoff.ms": 1000,
        "log.initial.task.delay.ms": 1000,
        "log.segment.delete.delay.ms": 1000,
    }


def create_topic(bootstrap: str, name: str, config: Mapping[str, str] | None = None, partitions: int = 1) -> None:
    """Make a topic with the brokers' replication; return when it takes messages."""
    from confluent_kafka.admin import AdminClient
    from confluent_kafka.cimpl import NewTopic

    admin = AdminClient({"bootstrap.servers": bootstrap})
    topic = NewTopic(name, num_partitions=partitions, replication_factor=-1, config=dict(config or {}))
    admin.create_topics([topic])[name].result(30)
    until = time.monotonic() + 30
    while True:
        made = admin.list_topics(timeout=30).topics.get(name)
        if made is not None and len(made.partitions) == partitions and all(p.leader >= 0 for p in made.partitions.values()):
            return
        assert time.monotonic() < until, f"topic {name} has no leader"
        time.sleep(0.05)


# -- fixtures ------------------------------------------------------------------------------------------------------------


class StartCluster(Protocol):
    """What the fixtures `cluster` and `clusters` are."""

    def __call__(self, brokers: int = 1, settings: Mapping[str, object] | None = None, *, proxied: bool = False) -> Cluster: ...


def _started() -> Iterator[StartCluster]:
    place = home()
    assert place is not None, lacking(own=True)
    with contextlib.ExitStack() as all_of_them:

        def start(brokers: int = 1, settings: Mapping[str, object] | None = None, *, proxied: bool = False) -> Cluster:
            return all_of_them.enter_context(Cluster(place)).start(brokers, settings, proxied=proxied)

        yield start


@pytest.fixture(scope="session")
def kafka() -> Iterator[str]:
    """The bootstrap address of a broker that all tests share."""
    place = home()
    if (address := outside()) is not None:
        yield address
    else:
        assert place is not None
        with Cluster(place) as cluster:
            yield cluster.start().bootstrap


@pytest.fixture
def topic(kafka: str) -> Iterator[str]:
    """A name of a topic that nobody else uses; on a broker that is not ours, it and its companions are removed."""
    name = f"memos-test-{uuid.uuid4().hex[:12]}"
    yield name
    if outside() is not None:
        from confluent_kafka.admin import AdminClient

        admin = AdminClient({"bootstrap.servers": kafka})
        mine = [made for made in admin.list_topics(timeout=30).topics if made.startswith(name)]
        for done in admin.delete_topics(mine).values() if mine else ():
            done.result(30)


@pytest.fixture
def cluster() -> Iterator[StartCluster]:
    """Starts clusters that the test may hurt; they end with it."""
    yield from _started()


@pytest.fixture(scope="module")
def clusters() -> Iterator[StartCluster]:
    """Starts clusters that end with the module."""
    yield from _started()


# -- what the session says about it --------------------------------------------------------------------------------------

OK, FAILED, NO_TESTS = pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED


def required() -> bool:
    return os.environ.get("MEMOS_REQUIRE_KAFKA", "") not in ("", "0")


def _need(item: pytest.Item, *, own: bool) -> None:
    why = lacking(own=own)
    if why is None:
        return
    item.user_properties.append((MISSED, why))
    if required():
        pytest.fail(f"Kafka is required here, but {why}", pytrace=False)
    pytest.skip(f"{why}; set KAFKA_HOME" + ("" if own else " or MEMOS_TEST_KAFKA"))


RAN, MISSED = "kafka ran", "kafka missed"


class Witness:
    """The pytest plugin that marks tests of Kafka, counts those that ran, and says loudly when they did not.

    Reports carry the counts, so that they are right also when several processes run the tests.
    """

    def __init__(self) -> None:
        self.ran = 0
        self.missed: dict[str, int] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            if {"kafka", "cluster", "clusters"}.intersection(getattr(item, "fixturenames", ())):
                item.add_marker("kafka")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Every test so marked is asked for here, each by itself: a failed session fixture would count once."""
        if item.get_closest_marker("kafka") is not None:
            used = set[str](getattr(item, "fixturenames", ()))
            own = "kafka" not in used or bool(used & {"cluster", "clusters"})
            _need(item, own=own)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if report.when == "call" and not report.skipped and item.get_closest_marker("kafka") is not None:
            report.user_properties.append((RAN, ""))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "setup":
            for name, why in report.user_properties:
                if name == MISSED:
                    self.missed[str(why)] = self.missed.get(str(why), 0) + 1
        elif report.when == "call":
            self.ran += any(name == RAN for name, _ in report.user_properties)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        worker = hasattr(session.config, "workerinput")
        if required() and not worker and not self.ran and session.exitstatus in (OK, NO_TESTS):
            session.exitstatus = FAILED

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for why, count in self.missed.items():
            some = f"{count} " if self.ran else ""
            terminalreporter.write_line(
                f"{some}KAFKA TESTS DID NOT RUN: {why} (set KAFKA_HOME or MEMOS_TEST_KAFKA)", red=True, bold=True
            )
        if required() and not self.ran:
            terminalreporter.write_line("NO KAFKA TEST RAN, and MEMOS_REQUIRE_KAFKA asks for them: failed", red=True, bold=True)
