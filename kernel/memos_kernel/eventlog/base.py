"""What an event log promises (docs/events.md has the numbers), and what the kernel may ask of it.

- An append is two steps: `begin` (on the loop, quick) hands frame and view changes over, `finish` (in a thread) returns
  when they are durable. Between the two nobody may read what was appended; after an error in either the log must not
  be used again: the process ends, and a restart finds out what became of the frame.
- One append at a time. Frames come back from `frames` in order and byte for byte.
- Frame and view changes become durable together (embedded), or the frame first (a log elsewhere).
- A log that several kernels can reach (`SharedLog`) is claimed before it is written. It may turn out that another kernel
  took over (`Ended`), or that a frame's fate had to be settled by a new claim (`Renewed`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, runtime_checkable

from memos_drivers.stores.base import Batch

from ..events import Damaged, Frame, Record, decode_frame, decode_record


class Append(NamedTuple):
    """One group commit: the claim that opens the epoch (first frame only), the frame, and the view changes."""

    claim: tuple[int, bytes] | None
    frame: bytes
    first_seq: int
    first_time: int
    batch: Batch
    last_hash: bytes = b""
    claim_id: bytes = b""


class Ended(Exception):
    """This kernel may write no more; the message says why. `fenced`: another kernel took over."""

    def __init__(self, why: str, *, fenced: bool = False) -> None:
        super().__init__(why)
        self.fenced = fenced


class OutOfReach(Exception):
    """The log did not answer in time; the message says what to do."""


class Opened(NamedTuple):
    """An epoch that was won."""

    epoch: int
    claim_id: bytes
    claim: bytes


class Renewed(Exception):
    """An append failed and a new claim of ours settled its fate: `counted`, or it never will be."""

    def __init__(self, opened: Opened, counted: bool, why: str) -> None:
        super().__init__(why)
        self.opened = opened
        self.counted = counted


Sign = Callable[[int, bytes, bytes, int], bytes]
"""Makes a signed claim of `(epoch, claim_id, known head, its seq)`."""


class EventLog(Protocol):
    """A total order of frames."""

    kind: str
    shared: bool
    """Whether other kernels can reach it: then a claim may come some frames after the head that it knows, and may open an
    epoch in which nothing was written."""

    def claims(self) -> Iterator[bytes]:
        """Claims that counted, in order of epoch."""
        ...

    def frames(self, from_seq: int = 0) -> Iterator[bytes]:
        """Frames from the one that holds `from_seq` on."""
        ...

    def begin(self, append: Append) -> None: ...

    def finish(self, append: Append) -> None: ...

    def put_piece(self, key: bytes, piece: bytes) -> None:
        """Store a piece of a payload ahead of the record that names it. In any thread."""
        ...

    def sync_pieces(self) -> None:
        """Return when every piece that was put is durable. In any thread."""
        ...

    def drop_pieces(self, keys: list[bytes]) -> None:
        """Remove pieces that no record names and none will. In any thread."""
        ...

    def fresh(self, within: float = ...) -> bool:
        """Whether nobody can have replaced this kernel longer ago than `within` seconds."""
        ...

    @property
    def away(self) -> bool:
        """Whether the log is out of reach, so that an append waits for it."""
        ...

    def seq_at(self, time: int) -> int | None:
        """The last record with time ≤ `time`; None when there is none."""
        ...

    def describe(self) -> dict[str, object]: ...

    def close(self) -> None: ...


@runtime_checkable
class SharedLog(EventLog, Protocol):
    """A log that other kernels can reach, too."""

    on_counted: Callable[[], None]
    on_fresh: Callable[[], None]
    on_end: Callable[[str, bool], None]
    before_counted: Callable[[], None]

    def catch_up(self) -> None:
        """Read to the end of the log into the store. Raises `Ended` or `OutOfReach`."""
        ...

    def open_epoch(self, above: int, sign: Sign) -> Opened:
        """Claim the log in an epoch above `above`; what counted before it is in the store. Raises `Ended` or `OutOfReach`."""
        ...

    def check(self) -> None:
        """Raise `Ended` if this kernel was replaced."""
        ...

    @property
    def claimed(self) -> bool:
        """Whether a claim of ours is in force."""
        ...

    def follow(self) -> None:
        """Begin to read in a thread, for as long as the log is open."""
        ...

    def take_counted(self, batch: Batch, most: int) -> list[bytes]:
        """At most so many frames that counted since the last time; the rows that keep them go into `batch`."""
        ...

    def ask(self) -> None:
        """Find out whether this kernel still is the writer; `on_fresh` tells."""
        ...

    @property
    def doubtful(self) -> bool:
        """Whether a delivery failed and no claim has settled its fate yet."""
        ...

    def settle(self) -> None:
        """Settle it, when no append is under way. Raises `Renewed` or `Ended`."""
        ...

    def compare(self) -> list[tuple[int, str]]:
        """How what others can read differs from what is read here: offset, and what is wrong. In a thread."""
        ...


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


class Frames(Protocol):
    """Whatever has frames."""

    def frames(self, from_seq: int = 0) -> Iterator[bytes]: ...


def last_at_or_before(log: Frames, first_seq: int, time: int) -> int:
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
