"""Pieces of payloads too large for their record: a compacted topic beside the log's, key → ciphertext.

- A key is a payload_id, or payload_id ‖ index u32 BE for a piece of a chunked payload. No key is used twice, so a piece
  never changes; the topic is compacted so that a tombstone removes an orphan.
- `put` and `wait`: what was put is in the topic when `wait` returns, and only then may a record name it. At most 16 MiB are
  under way. Any thread may do either; `close` ends them with `Ended`.
- `read_on` reads from where the caller was to the end, with little memory whatever the topic holds.
- Sizes, digests and whether anything names a piece are the caller's to check: everybody who may write the topic can put
  anything here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Final

from .base import Ended
from .link import Link
from .partition import Appender, Reader, Receipt

Sink = Callable[[bytes, bytes | None, int], None]
"""Gets a piece's key, its ciphertext or None for one that was removed, and its offset in the topic."""
BATCH_MESSAGES: Final = 16


class PayloadTopic:
    """Both ends of the topic `link.payloads`; clients are made when first used. `close` it."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._appender: Appender | None = None
        self._reader: Reader | None = None
        self._lock = threading.Lock()
        self._closed = False

    @property
    def end(self) -> int:
        """The offset after the newest piece that was put; 0 when none was."""
        return 0 if self._appender is None else self._appender.end

    def put(self, pieces: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Send pieces, waiting while too much is under way. Raises `Ended`."""
        appender, receipt = self._appending(), Receipt()
        for key, piece in pieces:
            appender.send(key, piece, receipt)

    def wait(self) -> None:
        """Return when all that was put is in the topic. Raises `Ended`."""
        if self._appender is not None:
            self._appender.wait()

    def tombstone(self, keys: Iterable[bytes]) -> None:
        """Remove pieces that nothing names; returns when the topic has it. They are gone when it is compacted."""
        self.put((key, None) for key in keys)
        self.wait()

    def read_on(self, from_offset: int, sink: Sink) -> int:
        """Hand everything from an offset to the end to `sink`; returns the next offset. Raises as `Reader`.

        One thread at a time. Messages without a key are not pieces and are left out.
        """
        if self._reader is None:
            self._reader = Reader(self._link, self._link.payloads, from_offset, batch=BATCH_MESSAGES)
        elif self._reader.next != from_offset:
            self._reader.seek(from_offset)
        for message in self._reader.to_end():
            key = message.key()
            if key is not None:
                sink(key, message.value(), (message.offset() or 0))
        return self._reader.next

    def _appending(self) -> Appender:
        with self._lock:
            if self._closed:
                raise Ended(f"the topic {self._link.payloads} was closed")
            if self._appender is None:
                self._appender = Appender(self._link, self._link.payloads)
            return self._appender

    def close(self) -> None:
        """End who waits, and read no more."""
        with self._lock:
            self._closed = True
        for end in (self._appender, self._reader):
            if end is not None:
                end.close()
