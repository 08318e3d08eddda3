"""How a kernel reaches Apache Kafka: where, which topics, and the settings of its producers and consumers.

Any librdkafka setting may be given (SASL, TLS, timeouts) but those in `PROTOCOL`, on which the promises of the log rest.
Settings are secrets: nothing here puts their values into a message or a log line. The Kafka library is imported only when
a client is made, so that a kernel with an embedded log starts without it.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

if TYPE_CHECKING:
    from confluent_kafka import Consumer, KafkaError, Producer
    from confluent_kafka.admin import AdminClient

Client = TypeVar("Client")
log_ = logging.getLogger("memos.kafka")
_QUIET_SECONDS: Final = 30.0


class _Repeats(logging.Filter):
    """Lets a message through once in a while: librdkafka says with every attempt, 20 a second, that a broker is away."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        text = _VARYING.sub("", record.getMessage())
        if now - self._said.get(text, -_QUIET_SECONDS) < _QUIET_SECONDS:
            return False
        if len(self._said) > 1000:
            self._said.clear()
        self._said[text] = now
        return True


_VARYING: Final = re.compile(r"\[rdkafka#[^]]*\]|\(after \d+ms.*")
_librdkafka = logging.getLogger("memos.kafka.library")
_librdkafka.addFilter(_Repeats())

SCHEME: Final = "kafka://"
GROUP: Final = "memos"
"""The library wants a name; nothing is committed under it."""
FORM: Final = f"{SCHEME}HOST:PORT[,HOST:PORT…]/TOPIC"
_BROKER: Final = r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}"
_URL: Final = re.compile(rf"kafka://(?P<brokers>{_BROKER}(?:,{_BROKER})*)/(?P<topic>[A-Za-z0-9._-]{{1,200}})")
_COMPANIONS: Final = (".payloads", ".keys")
PRODUCER: Final[dict[str, Any]] = {
    "enable.idempotence": True, "acks": "all", "linger.ms": 0, "message.timeout.ms": 0,
    "max.in.flight.requests.per.connection": 5, "compression.type": "none",
}  # fmt: skip
"""A message is tried until it is there or can never be: no timeout may leave its fate open behind our back."""
CONSUMER: Final[dict[str, Any]] = {
    "isolation.level": "read_uncommitted", "auto.offset.reset": "error", "enable.auto.commit": False,
    "enable.auto.offset.store": False, "enable.partition.eof": True, "fetch.min.bytes": 1,
}  # fmt: skip
"""A foreign open transaction must not block us, and a lost position must not pass unnoticed."""
PROTOCOL: Final = frozenset({
    *PRODUCER, *CONSUMER, "bootstrap.servers", "group.id", "transactional.id", "client.rack", "delivery.timeout.ms",
    "metadata.broker.list", "request.required.acks", "queue.buffering.max.ms", "partitioner", "enable.gapless.guarantee",
    "max.in.flight", "message.max.bytes", "compression.codec", "allow.auto.create.topics", "logger", "error_cb",
})  # fmt: skip
"""Settings that carry the protocol; the log's own."""
_SHARED: Final[dict[str, Any]] = {
    "reconnect.backoff.ms": 50, "reconnect.backoff.max.ms": 1000, "allow.auto.create.topics": False,
    "topic.metadata.refresh.fast.interval.ms": 100, "topic.metadata.propagation.max.ms": 5000, "socket.nagle.disable": True,
}  # fmt: skip
_READING: Final[dict[str, Any]] = {
    "fetch.error.backoff.ms": 50, "queued.max.messages.kbytes": 16_384, "group.id": GROUP,
    "fetch.queue.backoff.ms": 10,
}  # fmt: skip
FETCH_WAIT_MS: Final = 100


class BadLink(Exception):
    """A Kafka setting is wrong; the message says which and what it may be."""


class Link(NamedTuple):
    """A log's place in Kafka. Make it with `parse`."""

    brokers: str
    topic: str
    options: Mapping[str, str]

    @staticmethod
    def parse(url: str, options: Mapping[str, str] | None = None) -> Link:
        """`kafka://HOST:PORT[,HOST:PORT…]/TOPIC`; raises `BadLink`."""
        if "@" in url:
            # Not shown: what stands before the sign is a password.
            raise BadLink(f"a Kafka address is of the form {FORM}; names and passwords go into the file of --kafka-config")
        found = _URL.fullmatch(url)
        if found is None:
            raise BadLink(f"{url!r} is not of the form {FORM}")
        topic = found["topic"]
        if topic in (".", "..") or topic.endswith(_COMPANIONS):
            raise BadLink(f"a log's topic cannot be called {topic!r}: Kafka, or another log beside it, has a use for that name")
        given = dict(options or {})
        for name in given:
            if name in PROTOCOL:
                raise BadLink(f"the Kafka setting {name} is the log's own and cannot be changed; leave it out")
        return Link(found["brokers"], found["topic"], given)

    @property
    def payloads(self) -> str:
        return f"{self.topic}.payloads"

    @property
    def keys(self) -> str:
        return f"{self.topic}.keys"

    def __repr__(self) -> str:
        return f"Link({self.brokers}/{self.topic})"

    def _config(self, *own: Mapping[str, Any]) -> dict[str, Any]:
        config: dict[str, Any] = {"bootstrap.servers": self.brokers, "logger": _librdkafka, **_SHARED}
        for settings in own:
            config |= settings
        return config

    def producer(self) -> Producer:
        from confluent_kafka import Producer as Kind

        return self._client(Kind, self._config(self.options, PRODUCER))

    def consumer(self, wait_ms: int = FETCH_WAIT_MS) -> Consumer:
        """`wait_ms`: how long a broker holds a fetch that finds nothing new; whatever else is asked of it waits behind."""
        from confluent_kafka import Consumer as Kind

        return self._client(Kind, self._config({"fetch.wait.max.ms": wait_ms}, _READING, self.options, CONSUMER))

    def admin(self, on_error: Callable[[KafkaError], None] | None = None) -> AdminClient:
        """`on_error` hears, inside the client's `poll`, why brokers cannot be reached."""
        from confluent_kafka.admin import AdminClient as Kind

        own = {} if on_error is None else {"error_cb": on_error}
        return self._client(Kind, self._config(self.options, own))

    def scrubbed(self, text: str) -> str:
        """A library's words without the values of our settings: any of them may be a secret."""
        for value in sorted(filter(None, self.options.values()), key=len, reverse=True):
            # A short one (`ssl`) is a part of words, and of the settings' own names.
            pattern = rf"(?<!\w)(?<!\w\.){re.escape(value)}(?!\.?\w)" if len(value) < 8 else re.escape(value)
            text = re.sub(pattern, "…", text)
        return text

    def _client(self, kind: Callable[[dict[str, Any]], Client], config: dict[str, Any]) -> Client:
        from confluent_kafka import KafkaException

        try:
            return kind(config)
        except KafkaException as error:
            text: str = error.args[0].str()
        except (TypeError, ValueError) as error:
            text = str(error)
        # librdkafka names the setting and quotes its value; not even the traceback may carry that.
        raise BadLink(f"Kafka does not take these settings: {self.scrubbed(text.strip())}")
