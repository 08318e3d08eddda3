"""Orphans: pieces of large contents that no record names, because the kernel that stored them did not come to the record.

They are ciphertext under keys that were destroyed when the next epoch began, so they harm nobody but the disk. Collected are
those that an earlier epoch stored: what was there when this one began, so a content that is being stored now is never taken
for one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from memos_drivers.stores.base import Reader
from memos_syscalls import limits

from . import crypto
from .state import View, decode_version

CHUNK_KEY_BYTES: Final = crypto.ID_BYTES + 4


def pieces(payloads: Reader) -> Iterator[tuple[bytes, bytes]]:
    """Payload id and key of every piece that was stored ahead of its record."""
    for key, sealed in payloads.scan(b""):
        if len(key) == CHUNK_KEY_BYTES or len(sealed) > limits.PAYLOAD_INLINE_BYTES_MAX:
            yield key[: crypto.ID_BYTES], key


def orphans(payloads: Reader, view: View) -> list[bytes]:
    """Keys of pieces that no version names. `payloads` is as of the epoch's beginning, `view` of any time after."""
    found: dict[bytes, list[bytes]] = {}
    for payload_id, key in pieces(payloads):
        found.setdefault(payload_id, []).append(key)
    if found:
        for _key, row in view.scan(b"v"):
            found.pop(decode_version(row)[0].payload_id, None)
    return [key for keys in found.values() for key in keys]
