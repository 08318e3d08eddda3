"""Payload commitments: every ciphertext that is kept, against the digest that its record signs for. Needs no key.

Ciphertext stands in the record, or in the store beside the log, in one piece or in pieces of one chunk each; after an
erasure it is still there, unreadable, and must still match. Copies of inline ciphertext belong to the view, which `verify
--full` compares. Whether a ciphertext opens, and to what, only who has the keys can say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

from memos_drivers.stores.base import Reader
from memos_kernel import crypto
from memos_kernel import events as ev
from memos_kernel.events import Damaged, Event, Record
from memos_kernel.upcast import current
from memos_kernel.verify import PROBLEMS_MAX, Problem
from memos_syscalls import limits


def payload_of(event: Event) -> list[Any] | None:
    """The payload that an event commits to."""
    return event.fields[4] if event.name == ev.ALLOCATED else event.fields[3] if event.name == ev.WRITTEN else None


class Commitments:
    """Looks at one record after the other."""

    def __init__(self, payloads: Reader, piece_offset: Callable[[bytes], int | None]) -> None:
        """`piece_offset` says where a piece stands in the topic of large contents, if it is from one."""
        self._payloads = payloads
        self._piece_offset = piece_offset
        self.checked = 0
        self.problems: list[Problem] = []

    def see(self, _raw: bytes, record: Record, _hash: bytes) -> None:
        try:
            wrong = [what for event in current(record).events if (what := self._wrong(event))]
        except (Damaged, TypeError, ValueError, IndexError, AttributeError) as error:
            wrong = [f"cannot be read ({type(error).__name__})"]
        about = f"a payload of the record at offset {record.seq}"
        room = PROBLEMS_MAX - len(self.problems)
        self.problems += [Problem(record.seq, f"{about} {what}") for what in wrong[:room]]

    def _wrong(self, event: Event) -> str | None:
        payload = payload_of(event)
        if payload is None:
            return None
        payload_id, size, digest, _slot, inline = payload
        self.checked += 1
        found = hashlib.sha256()
        keys = [] if inline is not None else list(self._keys(payload_id, size))
        for piece in [inline] if inline is not None else map(self._payloads.get, keys):
            if piece is None:
                return f"is missing{self._where(keys)}"
            found.update(piece)
        return None if found.digest() == digest else f"is not the ciphertext that the record was signed with{self._where(keys)}"

    def _where(self, keys: list[bytes]) -> str:
        """Where its pieces stand in their topic; empty for those that do not stand in one."""
        offsets = [str(offset) for key in keys if (offset := self._piece_offset(key)) is not None]
        return f" (pieces at offsets {', '.join(offsets)} of the topic of large contents)" if offsets else ""

    def _keys(self, payload_id: bytes, size: int) -> Iterator[bytes]:
        if not crypto.is_chunked(size):
            yield payload_id
            return
        for index in range(-(-size // limits.PAYLOAD_CHUNK_BYTES)):
            yield payload_id + index.to_bytes(4, "big")
