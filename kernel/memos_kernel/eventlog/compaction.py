"""By when a compacted topic has really lost what a tombstone removed, from the settings of the topic and its brokers.

A message that a tombstone removed at T lies, until then, in a segment file that began before T. Kafka removes it in steps:

1. *roll*: the file must be closed. Kafka closes it on the first append later than `segment.ms` (or `max.compaction.lag.ms`
   if that is shorter) after the file's first message. Somebody must append: `nudge` of the key store does.
2. *lag*: a closed file whose first message is older than `max.compaction.lag.ms` is due for cleaning, whatever
   `min.cleanable.dirty.ratio` says; `min.compaction.lag.ms` may hold it back for longer.
3. *cleaner*: it looks for due topics every `log.cleaner.backoff.ms`, and takes a while.
4. *deletion*: the file as it was is renamed, and removed after `file.delete.delay.ms`.

So gone at T + max(roll + nudge, lag) + backoff + work + deletion, on every replica that is up and whose cleaner keeps up. A
broker that is down keeps its file until it is back, and no setting bounds that.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import confluent_kafka.admin
from confluent_kafka import KafkaException

from .base import OutOfReach
from .link import Link, log_

MS: Final = 1_000_000
_ADMIN: Any = confluent_kafka.admin
"""Its names are not exported as type checkers want it."""
NUDGE_MS: Final = 2_000
"""How long after the roll is due somebody appends, at the latest."""
WORK_MS: Final = 5_000
"""What the cleaner gets for its work, and its schedulers for their rounds."""
BACKOFF_MS_DEFAULT: Final = 15_000
ANSWER_SECONDS: Final = 10.0


class Compaction(NamedTuple):
    """The settings that bound how long a removed message stays on disk."""

    segment_ms: int
    max_lag_ms: int
    min_lag_ms: int
    delete_delay_ms: int
    backoff_ms: int = BACKOFF_MS_DEFAULT

    @property
    def roll_ms(self) -> int:
        """How long after its first message a file takes appends."""
        return min(self.segment_ms, self.max_lag_ms)

    def gone_by(self, tombstoned_at_ns: int) -> int:
        """By when a message is in no file any more that was removed at a time of the topic's clock."""
        due_ms = max(self.roll_ms + NUDGE_MS, self.max_lag_ms, self.min_lag_ms)
        return tombstoned_at_ns + (due_ms + self.backoff_ms + WORK_MS + self.delete_delay_ms) * MS


def compaction_of(link: Link, topic: str) -> Compaction:
    """The settings of a topic as the brokers have them. Raises `OutOfReach`."""
    admin = link.admin()
    try:
        settings = _describe(admin, _ADMIN.ResourceType.TOPIC, topic)
        brokers = [str(broker) for broker in admin.list_topics(timeout=ANSWER_SECONDS).brokers]
    except KafkaException as error:
        raise OutOfReach(
            f"Kafka at {link.brokers} does not tell the settings of topic {topic}: {error.args[0].str()}; "
            "the kernel needs the right DESCRIBE_CONFIGS on it"
        ) from None
    backoff = BACKOFF_MS_DEFAULT
    try:
        backoff = max(int(_describe(admin, _ADMIN.ResourceType.BROKER, one)["log.cleaner.backoff.ms"]) for one in brokers)
    except (KafkaException, KeyError, ValueError) as error:
        log_.info("the brokers do not tell log.cleaner.backoff.ms (%s); taken as %d", type(error).__name__, backoff)
    return Compaction(
        int(settings["segment.ms"]), int(settings["max.compaction.lag.ms"]), int(settings["min.compaction.lag.ms"]),
        int(settings["file.delete.delay.ms"]), backoff,
    )  # fmt: skip


def _describe(admin: Any, kind: Any, name: str) -> dict[str, str]:
    resource = _ADMIN.ConfigResource(kind, name)
    found = admin.describe_configs([resource], request_timeout=ANSWER_SECONDS)[resource].result(ANSWER_SECONDS + 1)
    return {entry.name: entry.value for entry in found.values() if entry.value is not None}


