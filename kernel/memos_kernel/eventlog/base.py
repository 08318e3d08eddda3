"""What an event log promises (docs/events.md has the numbers), and what the kernel may ask of it.

- An append is two steps: `begin` (on the loop, quick) hands frame and view changes over, `finish` (in a thread) returns
  when they are durable. Between the two nobody may read what was appended; after an error in either the log must not
  be used again: the process ends, and a restart finds out what became of the frame.
- One append at a time. Frames come back from `frames` in order and byte for byte.
- Frame and view changes become durable together (embedded), or the frame first (a log elsewhere).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from memos_drivers.stores.base import Batch

from ..events import Damaged, Frame, Record, decode_frame, decode_record


class Append(NamedTuple):
    """One group commit: the claim that opens the epoch (first frame only), the frame, and the view changes."""

    claim: tuple[int, bytes] | None
    frame: bytes
    first_seq: int
    first_time: int
    batch: Batch


class EventLog(Protocol):
    """A total order of frames."""

    kind: str

    def claims(self) -> Iterator[bytes]:
        """Claims that counted, in order of epoch."""
        ...

    def frames(self, from_seq: int = 0) -> Iterator[bytes]:
        """Frames from the one that holds `from_seq` on."""
        ...

    def begin(self, append: Append) -> None: ...

    def finish(self, append: Append) -> None: ...

    def seq_at(self, time: int) -> int | None:
        """The last record with time ≤ `time`; None when there is none."""
        ...

    def describe(self) -> dict[str, object]: ...


def records(log: EventLog, from_seq: int = 0) -> Iterator[tuple[bytes, Record]]:
    """Records from `from_seq` on, with their stored bytes."""
    for data in log.frames(from_seq):
        frame = decode_frame(data)
        skip = max(0, from_seq - frame.first_seq)
        for raw in frame.records[skip:]:
            yield raw, decode_record(raw)


def record_at(log: EventLog, seq: int) -> tuple[bytes, Record, Frame] | None:
    """One record with its bytes and its frame."""
    for data in log.frames(seq):
        frame = decode_frame(data)
        at = seq - frame.first_seq
        if 0 <= at < len(frame.records):
            return frame.records[at], decode_record(frame.records[at]), frame
        break
    return None


def last_at_or_before(log: EventLog, first_seq: int, time: int) -> int:
    """The last record with time ≤ `time` within the frame that begins at `first_seq`, whose first record qualifies."""
    for data in log.frames(first_seq):
        frame = decode_frame(data)
        best = first_seq
        for raw in frame.records:
            record = decode_record(raw)
            if record.time > time:
                break
            best = record.seq
        return best
    raise Damaged(f"the log's time index names a frame that is not there, at offset {first_seq}")
