"""Snapshots: a checkpoint of the whole store, with position and digest, in `snapshots/<offset>`.

A snapshot holds log, view and payloads as ciphertext, and no key: it opens only beside today's key store, so what was
shredded since is gone from it too.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memos_drivers.stores.base import Store
from memos_syscalls.errors import MemIO

from .state import shown

if TYPE_CHECKING:
    from .dispatch import Kernel


class Snapshots:
    def __init__(self, store: Store, directory: Path) -> None:
        self._store = store
        self._directory = directory

    async def make(self, kernel: Kernel) -> dict[str, Any]:
        """A snapshot of what is durable now; writes wait at the gate for the moment that RocksDB needs."""
        await kernel.drained()
        durable = kernel.durable
        path = self._directory / f"{durable.seq:020d}"
        answer = {"offset": durable.seq, "state_digest": shown(durable.digest).hex(), "path": str(path)}
        if path.exists():
            return answer
        partial = self._directory / f"{durable.seq:020d}.partial"
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            shutil.rmtree(partial, ignore_errors=True)
            # On the loop, so that no frame can begin in between; RocksDB only makes hard links.
            partial.mkdir(mode=0o700)
            self._store.checkpoint(partial / "db")
            await asyncio.to_thread(_finish, partial, path, answer)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise MemIO(f"the snapshot failed: {error}") from error
        return answer


def _finish(partial: Path, path: Path, answer: dict[str, Any]) -> None:
    described = {name: value for name, value in answer.items() if name != "path"}
    with open(partial / "snapshot.json", "w", encoding="utf-8") as file:
        json.dump(described, file)
        file.flush()
        os.fsync(file.fileno())
    os.rename(partial, path)
