"""By when a compacted topic has really lost what a tombstone removed, from the settings of the topic and its brokers.

A message that a tombstone removed at T lies, until then, in a segment file that began before T. Kafka removes it in steps:

1. *roll*: the file must be closed. Kafka closes it on the first append later than `segment.ms` (or `max.compaction.lag.ms`
   if that is shorter) after the file's first message. Somebody must append: `nudge` of the key store does.
2. *lag*: a closed file whose first message is older than `max.compaction.lag.ms` is due for cleaning, whatever
   `min.cleanable.dirty.ratio` says.
3. *cleaner*: it looks for topics that are due every `log.cleaner.backoff.ms`, and takes a while.
4. *deletion*: the file as it was is renamed, and removed after `file.delete.delay.ms`.

So gone at T + max(roll + nudge, lag) + backoff + work + deletion, on every replica that is up and whose cleaner keeps up. A
broker that is down keeps its file until it is back, and no setting bounds that. A topic with `min.compaction.lag.ms` holds
its files back by that much more.
"""

from __future__ import annotations

from typing import Final

from .topics import Erasure

MS: Final = 1_000_000
NUDGE_MS: Final = 3_000
"""How long after a file may be closed somebody appends, at the latest."""
WORK_MS: Final = 5_000
"""What the cleaner gets for its work, and the broker's schedulers for their rounds."""
BACKOFF_MS_DEFAULT: Final = 15_000
"""Kafka's own default, taken for brokers that we may not ask."""


def roll_ms(erasure: Erasure) -> int:
    """How long after its first message a file takes appends."""
    return min(erasure.segment_ms, erasure.max_compaction_lag_ms)


def gone_by(tombstoned_at_ns: int, erasure: Erasure) -> int:
    """By when a message is in no file any more that was removed at a time of the topic's clock; nanoseconds."""
    due_ms = max(roll_ms(erasure) + NUDGE_MS, erasure.max_compaction_lag_ms)
    backoff_ms = BACKOFF_MS_DEFAULT if erasure.cleaner_backoff_ms is None else erasure.cleaner_backoff_ms
    return tombstoned_at_ns + (due_ms + backoff_ms + WORK_MS + erasure.file_delete_delay_ms) * MS
