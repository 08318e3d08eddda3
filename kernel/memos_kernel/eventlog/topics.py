"""The three topics of a log on Kafka: made with the settings that keep it, and refused with those that would lose it.

`TOPIC` holds the records for ever, `TOPIC.payloads` the large contents, `TOPIC.keys` the keys, compacted so that an erased
key leaves the brokers' disks within seconds. Kafka's defaults would delete records after a week, so every start looks. A
log begins with all three topics; one that is missing beside data is a loss that nobody may paper over.

Every refusal carries the command that mends it; none carries a setting of ours. Every call is bounded in time.
"""

from __future__ import annotations

import concurrent.futures
import importlib
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from .link import GROUP, Link, log_

if TYPE_CHECKING:
    from confluent_kafka import KafkaError

K = TypeVar("K")
REPLICAS: Final = 3
ERASE_MS_MAX: Final = 10_000
MESSAGE_BYTES_MIN: Final = 1 << 20
"""A frame has up to 768 KiB and a piece of a payload 512 KiB; the rest is room for what Kafka puts around them."""
_TRY_SECONDS: Final = 4.0
"""A broker that is paused or gone answers nothing: another one is asked after this long."""
_ONCE_SECONDS: Final = 3.0
_KEPT: Final = {"unclean.leader.election.enable": "false", "max.message.bytes": "1048588"}
SETTINGS: Final[Mapping[str, Mapping[str, str]]] = {
    "records": {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1", **_KEPT},
    # Pieces have unique keys, so compaction keeps them all; a tombstone collects an orphan.
    "payloads": {"cleanup.policy": "compact", **_KEPT},
    "keys": {
        "cleanup.policy": "compact", "segment.ms": str(ERASE_MS_MAX), "max.compaction.lag.ms": str(ERASE_MS_MAX),
        "min.cleanable.dirty.ratio": "0.01", "file.delete.delay.ms": "1000",
        # How long a reader may take from a key to its tombstone, which says nothing but a number.
        "delete.retention.ms": "600000", **_KEPT,
    },
}  # fmt: skip
_LOST: Final = {
    "records": "the records are lost",
    "payloads": "contents above 16 KiB are lost",
    "keys": "the keys are lost, and nothing private can be read without them",
}


class BadTopic(Exception):
    """A topic is missing, forbidden, or set so that it would lose data; the message says what to do."""


class Unreachable(Exception):
    """No broker answered in time, or none lets us in; the message says what to look at."""


class Erasure(NamedTuple):
    """What decides when an erased key has left the brokers' disks.

    The segment that is being written to is never cleaned, and only an append closes it: after a tombstone, something else must
    be written to the topic once `segment_ms` has passed, or the key stays for as long as nothing is.
    """

    segment_ms: int
    max_compaction_lag_ms: int
    delete_retention_ms: int
    file_delete_delay_ms: int
    cleaner_backoff_ms: int | None
    """The longest of the brokers that hold the keys; None when we may not ask them."""


class TopicIds(NamedTuple):
    records: str
    payloads: str
    keys: str
    erasure: Erasure
    warnings: tuple[str, ...] = ()


class Topic(NamedTuple):
    """A topic as the brokers describe it. `start` and `end` are the offsets of its first message and after its last."""

    role: str
    name: str
    id: str
    partitions: int
    replicas: tuple[int, ...]
    in_sync: tuple[int, ...]
    config: Mapping[str, str] = {}
    start: int = 0
    end: int = 0


def ensure(link: Link, *, create: bool = True, timeout: float = 30) -> TopicIds:
    """The log's topics, made when all are missing or empty. Raises `BadTopic`, `Unreachable` or `BadLink`."""
    asking = _Asking(link, timeout)
    found = asking.topics()
    if 0 < len(found) < len(SETTINGS):
        # A broker that hears of new topics late may know some of them only.
        time.sleep(0.5)
        found = asking.topics()
    if missing := [role for role in SETTINGS if role not in found]:
        held = [topic.name for topic in found.values() if topic.end > 0]
        if held:
            raise BadTopic(
                f"the topic {', '.join(_name(link, role) for role in missing)} is missing, but {', '.join(held)} holds data: "
                f"{'; '.join(_LOST[role] for role in missing)}. Restore it; for a new log, choose another topic name"
            )
        replicas = min(REPLICAS, asking.brokers())
        commands = "\n".join(f"  {_create_command(link, role, replicas)}" for role in missing)
        if not create:
            raise BadTopic(f"{', '.join(_name(link, role) for role in missing)} is missing; make it:\n{commands}")
        asking.create(missing, replicas, commands)
        found = asking.made()
    found = asking.configured(found)
    if wrong := [fault for topic in found.values() for fault in faults(link, topic)]:
        raise BadTopic("\n".join(wrong))
    warnings = [warning for topic in found.values() for warning in doubts(link, topic)]
    settings = found["keys"].config
    backoff, cleaner_runs = asking.cleaner(found["keys"].in_sync)
    if not cleaner_runs:
        raise BadTopic(
            f"the brokers never clean {link.keys}, so no key would ever be erased: "
            "set log.cleaner.enable=true in their server.properties"
        )
    for warning in warnings:
        log_.warning("%s", warning)
    erasure = Erasure(
        int(settings["segment.ms"]), int(settings["max.compaction.lag.ms"]), int(settings["delete.retention.ms"]),
        int(settings["file.delete.delay.ms"]), backoff,
    )  # fmt: skip
    return TopicIds(found["records"].id, found["payloads"].id, found["keys"].id, erasure, tuple(warnings))


# -- judging -------------------------------------------------------------------------------------------------------------


class Now(NamedTuple):
    """The records topic as a broker knows it now: its id, "" when there is none, and where it ends."""

    topic_id: str
    end: int = -1


def now(client: Any, link: Link, timeout: float = _ONCE_SECONDS) -> Now | None:
    """What an admin client is told that knows nothing of what was read before; None when nobody could be asked."""
    from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartition

    specs = importlib.import_module("confluent_kafka.admin").OffsetSpec
    where = TopicPartition(link.topic, 0)
    try:
        described = client.describe_topics(TopicCollection([link.topic]), request_timeout=timeout)[link.topic]
        topic_id = _id(described.result(timeout + 1).topic_id)
        ends = client.list_offsets({where: specs.latest()}, request_timeout=timeout)
        return Now(topic_id, int(ends[where].result(timeout + 1).offset))
    except KafkaException as error:
        return Now("") if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART else None
    except concurrent.futures.TimeoutError:
        return None


def faults(link: Link, topic: Topic) -> list[str]:
    """Why this topic must not be used, each with its remedy."""
    wrong: list[str] = []
    if topic.partitions != 1:
        wrong.append(
            f"the topic {topic.name} has {topic.partitions} partitions; a log has 1, and Kafka cannot take partitions away. "
            + (
                "Choose another topic name"
                if topic.end
                else f"It is empty. Choose another topic name, or remove it:\n  "
                f"{_tool(link, 'kafka-topics.sh')} --delete --topic {topic.name}"
            )
        )
    mend: dict[str, str] = {}
    for name, (must, why) in _demands(topic).items():
        mend[name] = SETTINGS[topic.role][name]
        shown = topic.config.get(name) or "not set"
        wrong.append(f"the topic {topic.name}: {name} is {shown}, and must be {must}: {why}")
    if mend:
        change = ",".join(f"{name}={value}" for name, value in mend.items())
        wrong.append(
            f"  {_tool(link, 'kafka-configs.sh')} --alter --entity-type topics --entity-name {topic.name} --add-config {change}"
        )
    return wrong


def _demands(topic: Topic) -> dict[str, tuple[str, str]]:
    """Settings that are wrong: what each must be, and why."""
    policy = {word.strip() for word in topic.config.get("cleanup.policy", "").split(",")}
    wrong: dict[str, tuple[str, str]] = {}
    if topic.role == "records":
        if "compact" in policy:
            wrong["cleanup.policy"] = "delete", "compaction would remove records"
        for name in ("retention.ms", "retention.bytes"):
            if topic.config.get(name) != "-1":
                wrong[name] = "-1", "Kafka would delete the log's beginning"
    elif topic.role == "payloads":
        limited = any(topic.config.get(name) != "-1" for name in ("retention.ms", "retention.bytes"))
        if "delete" in policy and limited:
            wrong["cleanup.policy"] = "compact", "Kafka would delete old contents"
    else:
        if policy != {"compact"}:
            wrong["cleanup.policy"] = "compact", "keys live for ever until they are erased"
        for name in ("segment.ms", "max.compaction.lag.ms"):
            if not 0 < _number(topic, name) <= ERASE_MS_MAX:
                wrong[name] = f"at most {ERASE_MS_MAX}", "an erased key would stay on the brokers' disks"
    if topic.config.get("unclean.leader.election.enable") != "false":
        wrong["unclean.leader.election.enable"] = "false", "a broker that lags could lead and drop what was acknowledged"
    if _number(topic, "max.message.bytes") < MESSAGE_BYTES_MIN:
        wrong["max.message.bytes"] = f"at least {MESSAGE_BYTES_MIN}", "a full frame would be refused"
    return wrong


def doubts(link: Link, topic: Topic) -> list[str]:
    """What an operator should know, though it may be meant."""
    replicas, enough = len(topic.replicas), _number(topic, "min.insync.replicas")
    alter = f"{_tool(link, 'kafka-configs.sh')} --alter --entity-type topics --entity-name {topic.name} --add-config"
    said: list[str] = []
    if replicas == 1:
        said.append(f"the topic {topic.name} has one replica: what its broker loses is lost")
    elif enough <= 1:
        said.append(
            f"the topic {topic.name} has {replicas} replicas and min.insync.replicas=1: what one broker alone confirmed can be "
            f"lost with it" + (f"; mend it: {alter} min.insync.replicas=2" if replicas >= REPLICAS else "")
        )
    elif enough >= replicas:
        said.append(
            f"the topic {topic.name} has {replicas} replicas and min.insync.replicas={enough}: one broker down stops all writes"
            + (f"; mend it: {alter} min.insync.replicas={replicas - 1}" if replicas >= REPLICAS else "")
        )
    if topic.role == "records" and topic.start > 0:
        said.append(
            f"the topic {topic.name} begins at offset {topic.start}: earlier messages were deleted, and only a kernel that has "
            "read them already can go on"
        )
    if topic.role == "payloads" and "compact" not in topic.config.get("cleanup.policy", ""):
        said.append(f"the topic {topic.name} is not compacted: space of orphans is never freed; {alter} cleanup.policy=compact")
    return said


def _number(topic: Topic, name: str) -> int:
    try:
        return int(topic.config.get(name, ""))
    except ValueError:
        # Brokers of before Kafka 2.3 do not know every setting.
        return -1


def _name(link: Link, role: str) -> str:
    return {"records": link.topic, "payloads": link.payloads, "keys": link.keys}[role]


def _settings(role: str, replicas: int) -> dict[str, str]:
    return {**SETTINGS[role], "min.insync.replicas": "2" if replicas >= REPLICAS else "1"}


def _tool(link: Link, script: str) -> str:
    """The start of a command; a tool reads its own file of secrets."""
    secured = any(name.startswith(("security.", "sasl.", "ssl.")) for name in link.options)
    return f"{script} --bootstrap-server {link.brokers}" + (" --command-config client.properties" if secured else "")


def _create_command(link: Link, role: str, replicas: int) -> str:
    settings = " ".join(f"--config {name}={value}" for name, value in _settings(role, replicas).items())
    return (
        f"{_tool(link, 'kafka-topics.sh')} --create --topic {_name(link, role)} --partitions 1 --replication-factor {replicas} "
        + settings
    )


def _grant(link: Link) -> str:
    operations = " ".join(f"--operation {name}" for name in ("Create", "Describe", "DescribeConfigs", "Read", "Write"))
    add = f"{_tool(link, 'kafka-acls.sh')} --add --allow-principal User:NAME"
    # No group is used, but the client library asks for its coordinator and complains when it may not.
    return (
        f"  {add} {operations} --topic {link.topic} --resource-pattern-type prefixed\n  {add} --operation Read --group {GROUP}"
    )


# -- asking --------------------------------------------------------------------------------------------------------------


class _Asking:
    """An admin client with a deadline: every question is answered by then, or `Unreachable`."""

    def __init__(self, link: Link, timeout: float) -> None:
        from confluent_kafka import KafkaError

        self._link, self._timeout = link, timeout
        self._until = time.monotonic() + timeout
        self._last: KafkaError | None = None
        self._client: Any = link.admin(self._heard)
        # Taken as untyped: the library does not declare what it exports here.
        self._api: Any = importlib.import_module("confluent_kafka.admin")
        self._passing = frozenset({
            KafkaError._TIMED_OUT, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._RESOLVE,
            KafkaError.REQUEST_TIMED_OUT, KafkaError.BROKER_NOT_AVAILABLE, KafkaError.NETWORK_EXCEPTION,
            KafkaError.FENCED_LEADER_EPOCH, KafkaError.UNKNOWN_LEADER_EPOCH,
            KafkaError.NOT_CONTROLLER, KafkaError.LEADER_NOT_AVAILABLE, KafkaError.NOT_LEADER_FOR_PARTITION,
        })  # fmt: skip

    def topics(self) -> dict[str, Topic]:
        """Those that exist, with their offsets."""
        from confluent_kafka import KafkaError, TopicCollection, TopicPartition

        specs = self._api.OffsetSpec
        names = {_name(self._link, role): role for role in SETTINGS}
        answers = self._ask(lambda wait: self._client.describe_topics(TopicCollection(list(names)), request_timeout=wait))
        found: dict[str, Topic] = {}
        for name, answer in answers.items():
            if isinstance(answer, KafkaError):
                if answer.code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise self._refused(answer, f"describe the topic {name}")
                continue
            first = answer.partitions[0]
            found[names[name]] = Topic(
                names[name], name, _id(answer.topic_id), len(answer.partitions),
                tuple(node.id for node in first.replicas), tuple(node.id for node in first.isr),
            )  # fmt: skip
        for bound, spec in (("start", specs.earliest()), ("end", specs.latest())):
            wanted = {TopicPartition(t.name, p): spec for t in found.values() for p in range(t.partitions)}
            for partition, answer in self._ask(self._offsets(wanted), KafkaError.UNKNOWN_TOPIC_OR_PART).items():
                if isinstance(answer, KafkaError):
                    raise self._refused(answer, f"look into the topic {partition.topic}")
                topic = found[names[partition.topic]]
                if answer.offset > getattr(topic, bound):
                    found[topic.role] = topic._replace(**{bound: answer.offset})
        return found

    def _offsets(self, wanted: dict[Any, Any]) -> Callable[[float], Mapping[Any, Future[Any]]]:
        return lambda wait: self._client.list_offsets(wanted, request_timeout=wait) if wanted else {}

    def brokers(self) -> int:
        (answer,) = self._ask(lambda wait: {"cluster": self._client.describe_cluster(request_timeout=wait)}).values()
        return len(answer.nodes)

    def create(self, roles: list[str], replicas: int, commands: str) -> None:
        from confluent_kafka import KafkaError

        new = [self._api.NewTopic(_name(self._link, role), 1, replicas, config=_settings(role, replicas)) for role in roles]
        answers = self._ask(lambda wait: self._client.create_topics(new, operation_timeout=wait, request_timeout=wait))
        for name, answer in answers.items():
            if not isinstance(answer, KafkaError):
                log_.info("made the topic %s", name)
            elif answer.code() != KafkaError.TOPIC_ALREADY_EXISTS:
                error = self._refused(answer, f"create the topic {name}")
                raise BadTopic(f"{error}\nOr let somebody who may make the topics:\n{commands}")
            # Else another kernel that starts on this log was faster.

    def made(self) -> dict[str, Topic]:
        """The topics just made: brokers hear of them one after another."""
        while True:
            found = self.topics()
            if len(found) == len(SETTINGS):
                return found
            self._pause()

    def configured(self, found: dict[str, Topic]) -> dict[str, Topic]:
        from confluent_kafka import KafkaError

        asked = [self._api.ConfigResource(self._api.ResourceType.TOPIC, topic.name) for topic in found.values()]
        answers = self._ask(
            lambda wait: self._client.describe_configs(asked, request_timeout=wait), KafkaError.UNKNOWN_TOPIC_OR_PART
        )
        configs: dict[str, dict[str, str]] = {}
        for resource, answer in answers.items():
            if isinstance(answer, KafkaError):
                raise self._refused(answer, f"read the settings of the topic {resource.name}")
            configs[resource.name] = {name: entry.value or "" for name, entry in answer.items()}
        return {role: topic._replace(config=configs[topic.name]) for role, topic in found.items()}

    def cleaner(self, brokers: tuple[int, ...]) -> tuple[int | None, bool]:
        """The longest pause between two looks of these brokers' log cleaners, if they tell, and whether all of them run."""
        from confluent_kafka import KafkaError

        def ask(wait: float) -> dict[int, Future[Any]]:
            # The client takes one broker a call.
            kind = self._api.ResourceType.BROKER
            asked = [self._api.ConfigResource(kind, str(broker)) for broker in brokers]
            replies = [self._client.describe_configs([resource], request_timeout=wait) for resource in asked]
            return {at: future for at, reply in enumerate(replies) for future in reply.values()}

        backoffs: list[int | None] = []
        runs = True
        for answer in self._ask(ask, once=True).values():
            settings: dict[str, Any] = {} if isinstance(answer, KafkaError) else answer
            pause, on = settings.get("log.cleaner.backoff.ms"), settings.get("log.cleaner.enable")
            backoffs.append(int(pause.value) if pause else None)
            runs = runs and not (on and on.value == "false")
        known = [backoff for backoff in backoffs if backoff is not None]
        return max(known) if known and len(known) == len(backoffs) else None, runs

    # How a question is put.

    def _ask(self, call: Callable[[float], Mapping[K, Future[Any]]], *also: int, once: bool = False) -> dict[K, Any]:
        """Each answer, or the broker's error. Errors that may pass (and `also`) are asked again until the deadline.

        With `once`, what is not answered soon is an error that the caller can do without.
        """
        from confluent_kafka import KafkaException

        while True:
            wait = min(_ONCE_SECONDS if once else _TRY_SECONDS, max(self._until - time.monotonic(), 0.05))
            try:
                futures = call(wait)
                self._finish(list(futures.values()), wait + 1)
                answers = {key: _answer(future) for key, future in futures.items()}
            except KafkaException as error:
                # The client refused to ask.
                raise self._refused(error.args[0], "ask the broker") from None
            failed = [a for a in answers.values() if _code(a) in self._passing or _code(a) in also]
            if once or not failed:
                return answers
            self._last = failed[0] if self._last is None else self._last
            self._pause()
            # A client keeps asking the broker that it took for the controller, though that one be dead. A new one asks around.
            self._client = self._link.admin(self._heard)

    def _finish(self, futures: list[Future[Any]], wait: float) -> None:
        until = time.monotonic() + wait
        waiting = set(futures)
        while waiting:
            waiting = concurrent.futures.wait(waiting, 0.05).not_done
            self._client.poll(0)
            if self._last is not None and self._last.code() == self._last._AUTHENTICATION:
                raise self._unreachable()
            if waiting and time.monotonic() > until:
                raise self._unreachable()

    def _pause(self) -> None:
        if time.monotonic() + 0.1 > self._until:
            raise self._unreachable()
        time.sleep(0.1)

    def _heard(self, error: KafkaError) -> None:
        if error.code() != error._ALL_BROKERS_DOWN or self._last is None:
            self._last = error

    def _unreachable(self) -> Unreachable:
        said = f": {self._link.scrubbed(self._last.str())}" if self._last is not None else ""
        where = self._link.brokers
        if self._last is not None and self._last.code() == self._last._AUTHENTICATION:
            return Unreachable(f"the broker at {where} does not let us in{said}. Check the sasl.* settings of --kafka-config")
        return Unreachable(
            f"no broker at {where} gave an answer within {self._timeout:g} s{said}. Check that it runs, that the port is its "
            "listener for clients, that its advertised.listeners can be reached from here, and that security.protocol fits"
        )

    def _refused(self, error: KafkaError, what: str) -> BadTopic:
        said = self._link.scrubbed(error.str())
        if error.code() in (error.TOPIC_AUTHORIZATION_FAILED, error.CLUSTER_AUTHORIZATION_FAILED):
            return BadTopic(f"not allowed to {what} ({said}). The kernel's principal needs:\n{_grant(self._link)}")
        return BadTopic(f"cannot {what}: {said}")


def _id(uuid: object) -> str:
    """As Kafka's tools show it; the library writes another alphabet."""
    return str(uuid).replace("+", "-").replace("/", "_")


def _answer(future: Future[Any]) -> Any:
    from confluent_kafka import KafkaException

    try:
        return future.result(0)
    except KafkaException as error:
        return error.args[0]


def _code(answer: object) -> int | None:
    from confluent_kafka import KafkaError

    return answer.code() if isinstance(answer, KafkaError) else None
