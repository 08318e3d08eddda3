"""The seam between the kernel and the bytes on disk.

A store holds named *families*, each an ordered map from bytes to bytes.

- A batch is applied wholly or not at all, in the order of its puts; `write` makes it visible, `sync` makes everything
  that was written durable. Between the two a crash may lose the batch, never a part of it.
- A reader sees the store as of one moment: `snapshot()` as of now for ever, `live()` as of each call.
- `scan` yields keys in ascending order (descending with `reverse`), from `start` inclusive, within `prefix`.
- Errors of the device are `OSError`; a store that has raised one from `write` or `sync` must not be used again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

VIEW: Final = "view"
LOG: Final = "log"
PAYLOAD: Final = "payload"
INDEX: Final = "index"
FAMILIES: Final = (VIEW, LOG, PAYLOAD, INDEX)


class Batch:
    """Changes to apply together: `(family, key, value)`, where a value of None deletes."""

    __slots__ = ("puts",)

    def __init__(self) -> None:
        self.puts: list[tuple[str, bytes, bytes | None]] = []

    def put(self, family: str, key: bytes, value: bytes | None) -> None:
        self.puts.append((family, key, value))


class Reader(Protocol):
    """One family as of one moment."""

    def get(self, key: bytes) -> bytes | None: ...

    def scan(self, prefix: bytes, start: bytes | None = None, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]: ...


class Store(Protocol):
    """All families of one data directory."""

    def live(self, family: str) -> Reader: ...

    def snapshot(self, family: str) -> Reader: ...

    def write(self, batch: Batch) -> None: ...

    def sync(self) -> None: ...

    def checkpoint(self, path: Path) -> None:
        """A copy of the whole store as of now, in a new directory."""
        ...

    def describe(self) -> dict[str, object]: ...

    def close(self) -> None: ...
