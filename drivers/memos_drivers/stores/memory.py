"""The reference store: dictionaries, for tests, replay and simulation. Durable only as long as the process."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from pathlib import Path

from .base import FAMILIES, Batch, Reader


class MemoryReader:
    """A dictionary with ordered scans; keys are sorted on the first scan after a change."""

    __slots__ = ("_keys", "data")

    def __init__(self, data: dict[bytes, bytes] | None = None) -> None:
        self.data = {} if data is None else data
        self._keys: list[bytes] | None = None

    def get(self, key: bytes) -> bytes | None:
        return self.data.get(key)

    def put(self, key: bytes, value: bytes | None) -> None:
        if value is None:
            if self.data.pop(key, None) is not None:
                self._keys = None
        else:
            if key not in self.data:
                self._keys = None
            self.data[key] = value

    def scan(self, prefix: bytes, start: bytes | None = None, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        if self._keys is None:
            self._keys = sorted(self.data)
        keys = self._keys
        if reverse:
            at = len(keys) - 1
            if start is not None:
                at = bisect.bisect_right(keys, start) - 1
            else:
                while at >= 0 and not keys[at].startswith(prefix) and keys[at] > prefix:
                    at -= 1
            step = -1
        else:
            at = bisect.bisect_left(keys, start if start is not None else prefix)
            step = 1
        while 0 <= at < len(keys) and keys[at].startswith(prefix):
            key = keys[at]
            if key in self.data:
                yield key, self.data[key]
            at += step


class MemoryStore:
    """Families as dictionaries. `fail_next` makes the next write or sync raise, for fault tests."""

    def __init__(self) -> None:
        self.families = {name: MemoryReader() for name in FAMILIES}
        self.fail_next: OSError | None = None

    def _fail(self) -> None:
        if self.fail_next is not None:
            error, self.fail_next = self.fail_next, None
            raise error

    def live(self, family: str) -> MemoryReader:
        return self.families[family]

    def snapshot(self, family: str) -> Reader:
        return MemoryReader(dict(self.families[family].data))

    def write(self, batch: Batch) -> None:
        self._fail()
        for family, key, value in batch.puts:
            self.families[family].put(key, value)

    def sync(self) -> None:
        self._fail()

    def checkpoint(self, path: Path) -> None:
        raise OSError("a memory store has no files to check out")

    def describe(self) -> dict[str, object]:
        return {"kind": "memory", **{f"{name}_keys": len(reader.data) for name, reader in self.families.items()}}

    def close(self) -> None:
        """Nothing to release."""
