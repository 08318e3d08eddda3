"""Random bytes from the operating system, drawn in blocks.

A call into the kernel for every nonce costs more than the encryption, and lets another thread take the interpreter.
Bytes are handed out once; nothing is seeded and nothing is derived.
"""

from __future__ import annotations

import os
from typing import Final

BLOCK_BYTES: Final = 16 * 1024


class Randoms:
    """Not thread-safe: each thread that needs random bytes has its own, or takes turns under a lock."""

    __slots__ = ("_at", "_block")

    def __init__(self) -> None:
        self._block = b""
        self._at = 0

    def take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._block):
            self._block, self._at, end = os.urandom(BLOCK_BYTES), 0, count
        taken = self._block[self._at : end]
        self._at = end
        return taken
