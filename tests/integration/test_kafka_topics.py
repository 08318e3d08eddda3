"""The topics of a log on a real broker: made right, refused when they would lose data, and mended by the commands shown."""

from __future__ import annotations

import re
import shlex
import subprocess
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.kafka import Cluster, StartCluster, create_topic, home
from tests.proxy import free_port

from memos_kernel.eventlog.link import Link
from memos_kernel.eventlog.topics import SETTINGS, BadTopic, Topic, Unreachable, doubts, ensure, faults

api: Any = pytest.importorskip("confluent_kafka.admin")
PASSWORD = "hunter2hunter2"


def at(address: str, topic: str, options: Mapping[str, str] | None = None) -> Link:
    return Link.parse(f"kafka://{address}/{topic}", options)


def described(address: str, topic: str) -> dict[str, str]:
    resource, admin = api.ConfigResource(api.ResourceType.TOPIC, topic), api.AdminClient({"bootstrap.servers": address})
    (future,) = admin.describe_configs([resource]).values()
    return {name: entry.value for name, entry in future.result(30).items()}


def alter(address: str, topic: str, settings: Mapping[str, str]) -> None:
    entries = [
        api.ConfigEntry(name, value, incremental_operation=api.AlterConfigOpType.SET) for name, value in settings.items()
    ]
    resource = api.ConfigResource(api.ResourceType.TOPIC, topic, incremental_configs=entries)
    admin = api.AdminClient({"bootstrap.servers": address})
    (future,) = admin.incremental_alter_configs([resource]).values()
    future.result(30)


def remedies(message: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The topics and settings of the `kafka-configs.sh` commands in a message."""
    for name, settings in re.findall(r"^ +kafka-configs\.sh .* --entity-name (\S+) --add-config (\S+)$", message, re.M):
        yield name, dict(pair.split("=") for pair in settings.split(","))


def write(link: Link, topic: str) -> None:
    producer = link.producer()
    producer.produce(topic, b"bytes", key=b"key")
    assert producer.flush(30) == 0


def refused(link: Link, **how: Any) -> str:
    with pytest.raises(BadTopic) as error:
        ensure(link, **how)
    return str(error.value)


def test_a_new_log_s_topics_are_made_with_settings_that_keep_it(kafka: str, topic: str) -> None:
    link = at(kafka, topic)
    made = ensure(link)
    for role, name in (("records", topic), ("payloads", f"{topic}.payloads"), ("keys", f"{topic}.keys")):
        found = described(kafka, name)
        assert {setting: found[setting] for setting in SETTINGS[role]} == dict(SETTINGS[role])
    assert len({made.records, made.payloads, made.keys}) == 3
    assert all(re.fullmatch(r"[\w-]{22}", uuid) for uuid in made[:3])
    assert made.erasure[:4] == (10_000, 10_000, 600_000, 1_000)
    assert made.erasure.cleaner_backoff_ms is not None
    write(link, topic)
    assert ensure(link, create=False) == made


def test_kernels_that_start_together_get_the_same_topics(kafka: str, topic: str) -> None:
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(ensure, [at(kafka, topic)] * 4))
    assert len(set(made)) == 1


def test_a_topic_made_again_is_another_one(kafka: str, topic: str) -> None:
    link = at(kafka, topic)
    before = ensure(link)
    admin = api.AdminClient({"bootstrap.servers": kafka})
    admin.delete_topics([link.keys])[link.keys].result(30)
    until = time.monotonic() + 20
    while True:
        after = ensure(link)
        if after.keys != before.keys:
            break
        assert time.monotonic() < until
        time.sleep(0.1)
    assert (after.records, after.payloads) == (before.records, before.payloads)


@pytest.mark.slow
def test_the_commands_shown_make_and_mend_the_topics(kafka: str, topic: str) -> None:
    place = home()
    if place is None or not all((place / "bin" / name).is_file() for name in ("kafka-topics.sh", "kafka-configs.sh")):
        pytest.skip("the distribution has no kafka-topics.sh and kafka-configs.sh")

    def run(message: str, count: int) -> None:
        commands = [line.strip() for line in message.splitlines() if line.startswith("  ")]
        assert len(commands) == count
        for command in commands:
            script, *words = shlex.split(command)
            subprocess.run([place / "bin" / script, *words], check=True, capture_output=True, timeout=60)

    link = at(kafka, topic)
    run(refused(link, create=False), 3)
    made = ensure(link, create=False)
    alter(kafka, topic, {"retention.ms": "604800000", "cleanup.policy": "compact,delete"})
    run(refused(link), 1)
    assert ensure(link) == made


@pytest.mark.parametrize("missing", ["", ".payloads", ".keys"])
def test_a_topic_that_is_missing_beside_data_is_a_loss(kafka: str, topic: str, missing: str) -> None:
    link = at(kafka, topic)
    for end, role in (("", "records"), (".payloads", "payloads"), (".keys", "keys")):
        if end != missing:
            create_topic(kafka, topic + end, SETTINGS[role])
    write(link, link.keys if missing == "" else topic)
    says = refused(link)
    assert f"the topic {topic}{missing} is missing, but {link.keys if missing == '' else topic} holds data" in says
    assert {"": "records", ".payloads": "16 KiB", ".keys": "the keys are lost, and nothing private"}[missing] in says
    assert refused(link, create=False) == says


def test_what_a_crash_left_of_a_beginning_is_completed(kafka: str, topic: str) -> None:
    create_topic(kafka, f"{topic}.keys", SETTINGS["keys"])
    assert f"{topic}, {topic}.payloads is missing" in refused(at(kafka, topic), create=False)
    assert ensure(at(kafka, topic)) == ensure(at(kafka, topic), create=False)


@pytest.mark.parametrize(
    ("end", "settings"),
    [
        ("", {"retention.ms": "604800000"}), ("", {"retention.bytes": "1000000"}), ("", {"cleanup.policy": "compact"}),
        ("", {"unclean.leader.election.enable": "true"}), ("", {"max.message.bytes": "1000000"}),
        (".payloads", {"cleanup.policy": "delete", "retention.ms": "1000"}), (".payloads", {"max.message.bytes": "600000"}),
        (".keys", {"cleanup.policy": "delete"}), (".keys", {"cleanup.policy": "compact,delete"}),
        (".keys", {"segment.ms": "10001"}), (".keys", {"max.compaction.lag.ms": "10001", "segment.ms": "20000"}),
    ],
)  # fmt: skip
def test_settings_that_lose_data_are_refused_with_what_mends_them(
    kafka: str, topic: str, end: str, settings: dict[str, str]
) -> None:
    link = at(kafka, topic)
    made = ensure(link)
    alter(kafka, topic + end, settings)
    says = refused(link)
    assert f"the topic {topic}{end}: {next(iter(settings))} is {next(iter(settings.values()))}, and must be" in says or (
        end == ".payloads" and f"the topic {topic}{end}: cleanup.policy is delete, and must be compact" in says
    )
    ((name, mend),) = remedies(says)
    assert name == topic + end
    alter(kafka, name, mend)
    assert ensure(link) == made


def test_kafka_s_own_settings_are_refused_whole(kafka: str, topic: str) -> None:
    for end in ("", ".payloads", ".keys"):
        create_topic(kafka, topic + end)
    says = refused(at(kafka, topic))
    assert {name: set(mend) for name, mend in remedies(says)} == {
        topic: {"retention.ms"}, f"{topic}.payloads": {"cleanup.policy"},
        f"{topic}.keys": {"cleanup.policy", "segment.ms", "max.compaction.lag.ms"},
    }  # fmt: skip


def test_a_log_has_one_partition(kafka: str, topic: str) -> None:
    link = at(kafka, topic)
    create_topic(kafka, topic, SETTINGS["records"], partitions=2)
    says = refused(link)
    assert f"the topic {topic} has 2 partitions; a log has 1" in says
    assert says.endswith(f"It is empty. Choose another topic name, or remove it:\n  kafka-topics.sh --bootstrap-server {kafka} "
                         f"--delete --topic {topic}")  # fmt: skip
    write(link, topic)
    says = refused(link)
    assert says.endswith("Choose another topic name") and "--delete" not in says


def test_records_that_were_deleted_do_not_pass_unsaid(kafka: str, topic: str) -> None:
    link = at(kafka, topic)
    ensure(link)
    for _ in range(3):
        write(link, topic)
    from confluent_kafka import TopicPartition

    admin = api.AdminClient({"bootstrap.servers": kafka})
    (future,) = admin.delete_records([TopicPartition(topic, 0, 2)]).values()
    future.result(30)
    assert any("begins at offset 2" in warning for warning in ensure(link).warnings)


def test_a_broker_out_of_reach_is_said_in_time(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    began = time.monotonic()
    with pytest.raises(Unreachable) as error:
        ensure(at(f"127.0.0.1:{port}", "memos", {"client.id": PASSWORD}), timeout=2)
    assert time.monotonic() - began < 4
    assert f"no broker at 127.0.0.1:{port} gave an answer within 2 s" in str(error.value)
    assert "Connection refused" in str(error.value) and "advertised.listeners" in str(error.value)
    # librdkafka says it with every attempt; we hear it once.
    assert len([record for record in caplog.records if "Connection refused" in record.getMessage()]) <= 1


# -- several brokers -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_three_brokers_hold_three_replicas_and_one_may_be_paused(cluster: StartCluster) -> None:
    three = cluster(3)
    link = at(three.bootstrap, "memos")
    made = ensure(link)
    assert made.warnings == () and described(three.bootstrap, "memos")["min.insync.replicas"] == "2"
    alter(three.bootstrap, "memos", {"min.insync.replicas": "3"})
    alter(three.bootstrap, "memos.keys", {"min.insync.replicas": "1"})
    stops, loses = ensure(link).warnings
    assert "the topic memos has 3 replicas and min.insync.replicas=3: one broker down stops all writes" in stops
    assert "the topic memos.keys has 3 replicas and min.insync.replicas=1: what one broker alone confirmed" in loses
    three.pause(1)
    began = time.monotonic()
    assert ensure(link).records == made.records
    assert time.monotonic() - began < 30
    three.kill(1)
    # Also a client that took the dead broker for the controller gets its answer.
    assert ensure(link)[:3] == made[:3]


# -- rights --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(clusters: StartCluster) -> Cluster:
    """A broker whose clients log in as `kernel`, who may do nothing; who comes by the inner door may do all."""
    module = "org.apache.kafka.common.security.plain.PlainLoginModule"
    return clusters(
        settings={
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,PROXIED:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT",
            "sasl.enabled.mechanisms": "PLAIN",
            "listener.name.proxied.plain.sasl.jaas.config": f'{module} required user_kernel="{PASSWORD}";',
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
        },
        proxied=True,
    )


def login(password: str) -> dict[str, str]:
    return {
        "security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN", "sasl.username": "kernel", "sasl.password": password,
    }  # fmt: skip


def grant(address: str, name: str, *operations: str, kind: str = "TOPIC") -> None:
    pattern = api.ResourcePatternType.PREFIXED if kind == "TOPIC" else api.ResourcePatternType.LITERAL
    allow = api.AclPermissionType.ALLOW
    names = {"DescribeConfigs": "DESCRIBE_CONFIGS"}
    acls = [
        api.AclBinding(
            api.ResourceType[kind], name, pattern, "User:kernel", "*", api.AclOperation[names.get(word, word.upper())], allow
        )
        for word in operations
    ]
    admin = api.AdminClient({"bootstrap.servers": address})
    for future in admin.create_acls(acls).values():
        future.result(30)


def test_a_wrong_password_is_said_at_once_and_not_shown(guarded: Cluster) -> None:
    began = time.monotonic()
    with pytest.raises(Unreachable) as error:
        ensure(at(guarded.through, "memos", login(f"{PASSWORD}?")))
    assert time.monotonic() - began < 15
    assert "does not let us in" in str(error.value) and "sasl.*" in str(error.value) and PASSWORD not in str(error.value)


def test_the_rights_shown_are_the_rights_needed(guarded: Cluster) -> None:
    link = at(guarded.through, "rights", login(PASSWORD))
    says = refused(link)
    assert "not allowed to describe the topic rights" in says and PASSWORD not in says
    shown, group = (line for line in says.splitlines() if "kafka-acls.sh" in line)
    assert group.endswith("--add --allow-principal User:NAME --operation Read --group memos")
    assert f"--bootstrap-server {guarded.through} --command-config client.properties" in shown
    assert "--topic rights --resource-pattern-type prefixed" in shown
    operations = re.findall(r"--operation (\w+)", shown)
    grant(guarded.bootstrap, "rights", *(name for name in operations if name not in ("Create", "DescribeConfigs")))
    says = refused(link)
    assert "not allowed to create the topic rights" in says and "kafka-topics.sh" in says and "--config retention.ms=-1" in says
    grant(guarded.bootstrap, "rights", "Create")
    assert "not allowed to read the settings of the topic rights" in refused(link)
    grant(guarded.bootstrap, "rights", *operations)
    made = ensure(link)
    assert made.erasure.cleaner_backoff_ms is None
    grant(guarded.bootstrap, "memos", "Read", kind="GROUP")
    for name in (link.topic, link.payloads, link.keys):
        write(link, name)
    consumer = link.consumer()
    from confluent_kafka import TopicPartition

    consumer.assign([TopicPartition("rights", 0, 0)])
    message = consumer.poll(30)
    assert message is not None and message.value() == b"bytes"
    while (message := consumer.poll(2)) is not None:
        assert (error := message.error()) is not None and error.code() == error._PARTITION_EOF, error
    consumer.close()


# -- judging alone -------------------------------------------------------------------------------------------------------


def settled(role: str, replicas: int = 3, **settings: str) -> Topic:
    config = {"retention.ms": "-1", "retention.bytes": "-1", "min.insync.replicas": "2", **SETTINGS[role]}
    config |= {name.replace("_", "."): value for name, value in settings.items()}
    return Topic(role, "t", "id", 1, tuple(range(replicas)), tuple(range(replicas)), config)


HERE = at("h:1", "t")


def test_what_ensure_makes_is_without_fault_or_doubt() -> None:
    for role in SETTINGS:
        assert faults(HERE, settled(role)) == [] and doubts(HERE, settled(role)) == []


def test_a_setting_that_the_broker_does_not_know_is_a_fault() -> None:
    topic = settled("keys")
    config = {name: value for name, value in topic.config.items() if name != "max.compaction.lag.ms"}
    assert "max.compaction.lag.ms is not set, and must be at most 10000" in faults(HERE, topic._replace(config=config))[0]


@pytest.mark.parametrize(
    ("topic", "says"),
    [
        (settled("records", 1, min_insync_replicas="1"), "one replica"),
        (settled("records", 2, min_insync_replicas="1"), "alone"),
        (settled("records", 2), "one broker down"), (settled("records", 3, min_insync_replicas="3"), "min.insync.replicas=2"),
        (settled("records", 3, min_insync_replicas="1"), "min.insync.replicas=2"),
        (settled("payloads", cleanup_policy="delete"), "not compacted"), (settled("records")._replace(start=7), "offset 7"),
    ],
)  # fmt: skip
def test_what_may_be_meant_is_only_said(topic: Topic, says: str) -> None:
    (doubt,) = doubts(HERE, topic)
    assert says in doubt and faults(HERE, topic) == []


def test_a_command_for_a_guarded_broker_names_a_file_of_secrets_and_shows_none() -> None:
    (_, command) = faults(at("h:1", "t", login(PASSWORD)), settled("records", retention_ms="1"))
    assert command == (
        "  kafka-configs.sh --bootstrap-server h:1 --command-config client.properties "
        "--alter --entity-type topics --entity-name t --add-config retention.ms=-1"
    )
