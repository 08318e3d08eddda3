"""The embedded log: frames in a column family of the view's own database, so both change in one batch.

Keys of the log family: `f` first_seq u64 → frame; `c` epoch u64 → claim; `t` time u64 → first_seq of the frame whose
first record has that time; `s` → nothing, in a log that was copied from a topic. Durable when RocksDB's write-ahead log is
flushed to the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from memos_drivers.stores.base import LOG, PAYLOAD, Batch, Store

from ..state import u64
from .base import Append, last_at_or_before

SHARED: Final = b"s"


class StoredFrames:
    """Frames and claims in a store's log family, to be read."""

    shared = False

    def __init__(self, store: Store) -> None:
        self._store = store
        self._reader = store.live(LOG)
        # Claims of a log that was on Kafka may come some frames after the head that they know.
        self.shared = type(self).shared or self._reader.get(SHARED) is not None

    def claims(self) -> Iterator[bytes]:
        for _key, value in self._reader.scan(b"c"):
            yield value

    def frames(self, from_seq: int = 0) -> Iterator[bytes]:
        start = b"f" + u64(from_seq)
        for key, _value in self._reader.scan(b"f", start, reverse=True):
            start = key
            break
        for _key, value in self._reader.scan(b"f", start):
            yield value

    def seq_at(self, time: int) -> int | None:
        if time < 0:
            return None
        for _key, value in self._reader.scan(b"t", b"t" + u64(time), reverse=True):
            return last_at_or_before(self, int.from_bytes(value, "big"), time)
        return None


class StoredPieces:
    """Pieces of payloads in a store."""

    _store: Store

    def put_piece(self, key: bytes, piece: bytes) -> None:
        batch = Batch()
        batch.put(PAYLOAD, key, piece)
        self._store.write(batch)

    def sync_pieces(self) -> None:
        self._store.sync()

    def drop_pieces(self, keys: list[bytes]) -> None:
        batch = Batch()
        batch.puts = [(PAYLOAD, key, None) for key in keys]
        self._store.write(batch)


class OwnStore(StoredPieces):
    """What a log says whose store no other kernel can reach."""

    def fresh(self, within: float = 0) -> bool:
        """The directory's lock sees to that."""
        return True

    @property
    def away(self) -> bool:
        return False


class EmbeddedLog(OwnStore, StoredFrames):
    """Frames in a store. The store's owner holds the single-writer lock."""

    kind = "embedded"

    def begin(self, append: Append) -> None:
        batch = append.batch
        if append.claim is not None:
            batch.put(LOG, b"c" + u64(append.claim[0]), append.claim[1])
        batch.put(LOG, b"f" + u64(append.first_seq), append.frame)
        batch.put(LOG, b"t" + u64(append.first_time), u64(append.first_seq))
        self._store.write(batch)

    def finish(self, append: Append) -> None:
        self._store.sync()

    def describe(self) -> dict[str, object]:
        return {**self._store.describe(), "kind": self.kind}

    def close(self) -> None:
        """The store is its owner's to close."""
