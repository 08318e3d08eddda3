"""Snapshots: a checkpoint of the whole store, with position and digest, in `snapshots/<offset>`.

A snapshot holds log, view and payloads as ciphertext, and no key: it opens only beside today's key store, so what was
shredded since is gone from it too.

It is taken between two commits, in the turn of the loop in which one became durable and before the next begins: so it
holds nothing that a crash could still undo, and its label, read from the view in that turn, is what it holds.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memos_drivers.stores.base import VIEW, Store
from memos_syscalls.errors import MemAgain, MemIO

from .keystore import sync_directory
from .state import View, shown

if TYPE_CHECKING:
    from .dispatch import Kernel


class Snapshots:
    def __init__(self, store: Store, directory: Path) -> None:
        self._store = store
        self._directory = directory
        self._finishing: dict[int, asyncio.Future[dict[str, Any]]] = {}
        """Snapshots that are being made durable, by offset: who asks again meanwhile gets the same."""

    async def make(self, kernel: Kernel) -> dict[str, Any]:
        """A snapshot of everything decided so far, and perhaps of a little more."""
        if kernel.stopped is not None:
            raise MemAgain(kernel.stopped)
        begun: asyncio.Future[asyncio.Future[dict[str, Any]]] = kernel.loop.create_future()

        def begin() -> None:
            if begun.done():
                return
            try:
                begun.set_result(self._begin(kernel.loop))
            except Exception as error:
                # The commit that calls this must not fail over it.
                begun.set_exception(error)

        # Barriers are passed before the next frame is begun.
        kernel.when_durable(kernel.chain.seq, begin)
        try:
            # A caller who goes away leaves the finishing to itself.
            return dict(await asyncio.shield(await begun))
        except OSError as error:
            raise MemIO(f"the snapshot failed: {error}") from error

    def _begin(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[dict[str, Any]]:
        """Take the checkpoint, on the loop, so that no frame can begin meanwhile; RocksDB only makes hard links."""
        applied = View(self._store.live(VIEW)).applied()
        assert applied is not None, "a kernel that serves has made its first records durable"
        seq, digest = int(applied[0]), int.from_bytes(applied[3], "little")
        if seq in self._finishing:
            return self._finishing[seq]
        path, partial = self._directory / f"{seq:020d}", self._directory / f"{seq:020d}.partial"
        answer = {"offset": seq, "state_digest": shown(digest).hex(), "path": str(path)}
        if path.exists():
            done: asyncio.Future[dict[str, Any]] = loop.create_future()
            done.set_result(answer)
            return done
        self._directory.mkdir(mode=0o700, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(mode=0o700)
            self._store.checkpoint(partial / "db")
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        finishing = self._finishing[seq] = loop.create_task(asyncio.to_thread(_finish_in_thread, partial, path, answer))
        finishing.add_done_callback(lambda _done: self._finishing.pop(seq))
        return finishing


def _finish_in_thread(partial: Path, path: Path, answer: dict[str, Any]) -> dict[str, Any]:
    """Describe a checkpoint, and give it its name when all of it is durable."""
    described = {name: value for name, value in answer.items() if name != "path"}
    try:
        with open(partial / "snapshot.json", "w", encoding="utf-8") as file:
            json.dump(described, file)
            file.flush()
            os.fsync(file.fileno())
        sync_directory(partial)
        os.rename(partial, path)
        sync_directory(path.parent)
        sync_directory(path.parent.parent)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return answer
