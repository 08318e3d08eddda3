"""Where a log on Kafka lies, which settings are the log's own, and that no message shows a setting's value."""

from __future__ import annotations

import logging

import pytest

from memos_kernel.eventlog.link import PROTOCOL, BadLink, Link

SECRET = "hunter2hunter2"


@pytest.mark.parametrize(
    ("url", "brokers", "topic"),
    [
        ("kafka://localhost:9092/memos", "localhost:9092", "memos"),
        ("kafka://a:1,b.example.org:2,10.0.0.1:3/my.log-1_x", "a:1,b.example.org:2,10.0.0.1:3", "my.log-1_x"),
        ("kafka://[::1]:9092/t", "[::1]:9092", "t"),
        ("kafka://h:1/" + "t" * 200, "h:1", "t" * 200),
    ],
)
def test_an_address_names_brokers_and_a_topic(url: str, brokers: str, topic: str) -> None:
    link = Link.parse(url)
    assert (link.brokers, link.topic, link.payloads, link.keys) == (brokers, topic, f"{topic}.payloads", f"{topic}.keys")


@pytest.mark.parametrize(
    "url",
    [
        "", "kafka", "kafka://", "kafka://h:1", "kafka://h:1/", "kafka:///t", "kafka://h/t", "kafka://h:1,/t", "kafka://h:1/t/u",
        "kafka://h:1/t u", "kafka://h:1/" + "t" * 201, "kafka://h:1/t\n", "http://h:1/t", "kafka://h:1 /t", "kafka://h:x/t",
        "kafka://h:1/tö", "KAFKA://h:1/t",
    ],
)  # fmt: skip
def test_another_address_is_refused(url: str) -> None:
    with pytest.raises(BadLink, match="is not of the form kafka://HOST:PORT"):
        Link.parse(url)


@pytest.mark.parametrize("topic", [".", "..", "memos.keys", "memos.payloads"])
def test_a_topic_is_not_called_what_kafka_or_another_log_calls_its_own(topic: str) -> None:
    with pytest.raises(BadLink, match="cannot be called"):
        Link.parse(f"kafka://h:1/{topic}")


def test_a_password_in_the_address_is_refused_and_not_shown() -> None:
    with pytest.raises(BadLink) as error:
        Link.parse(f"kafka://me:{SECRET}@h:1/t")
    assert SECRET not in str(error.value)


@pytest.mark.parametrize("name", sorted(PROTOCOL))
def test_settings_that_carry_the_protocol_are_the_log_s_own(name: str) -> None:
    with pytest.raises(BadLink, match="is the log's own") as error:
        Link.parse("kafka://h:1/t", {name: SECRET})
    assert name in str(error.value) and SECRET not in str(error.value)


def test_it_is_shown_without_its_settings() -> None:
    link = Link.parse("kafka://h:1/t", {"sasl.password": SECRET})
    assert f"{link} {link!r} {[link]}" == "Link(h:1/t) Link(h:1/t) [Link(h:1/t)]"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("security.protocol", SECRET, '"security.protocol"'), ("no.such.setting", SECRET, '"no.such.setting"'),
        ("sasl.mechanism", SECRET, "mechanism"), ("socket.timeout.ms", SECRET, '"socket.timeout.ms"'),
        ("ssl.ca.pem", SECRET, "ssl.ca.pem"), ("stats_cb", SECRET, "stats_cb"),
        ("security.protocol", "ab", '"security.protocol"'),
    ],
)  # fmt: skip
def test_what_the_library_refuses_is_said_by_its_name_alone(name: str, value: str, says: str) -> None:
    pytest.importorskip("confluent_kafka")
    options = {"security.protocol": "ssl" if name == "ssl.ca.pem" else "sasl_plaintext", name: value}
    link = Link.parse("kafka://127.0.0.1:1/t", options)
    for make in (link.producer, link.consumer, link.admin):
        with pytest.raises(BadLink) as error:
            make()
        assert says in str(error.value) and f'"{value}"' not in str(error.value) and SECRET not in str(error.value)
        assert error.value.__context__ is None


def test_words_of_others_are_shown_without_our_values() -> None:
    link = Link.parse("kafka://h:1/t", {"a": SECRET, "b": "ssl", "c": "pw", "d": ""})
    assert link.scrubbed(f"x{SECRET}y: ssl.ca.location pw, (ssl).") == "x…y: ssl.ca.location …, (…)."


def test_the_library_is_heard_once_on_what_it_says_with_every_attempt(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("memos.kafka.library")
    words = "FAIL [rdkafka#producer-%d] 127.0.0.1:%d: Connection refused (after %dms in state CONNECT%s)"
    for client, port, ms, more in ((1, 9, 0, ""), (2, 9, 4, ", 3 identical error(s) suppressed"), (3, 8, 0, "")):
        log.error(words, client, port, ms, more)
    assert [":9:" in record.getMessage() for record in caplog.records] == [True, False]
