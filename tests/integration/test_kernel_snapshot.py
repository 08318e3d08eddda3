"""Snapshots under load: the label is what the snapshot holds, and it is made for everybody who asks."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
from tests.inside import Inside, replay

from memos_drivers.stores.base import VIEW
from memos_drivers.stores.rocks import RocksStore
from memos_kernel.eventlog.embedded import EmbeddedLog
from memos_kernel.state import View, shown


def holds(path: str) -> tuple[int, str]:
    """Offset and digest of what a snapshot's own view holds; its log gives the same."""
    store = RocksStore(Path(path) / "db", read_only=True)
    try:
        applied = View(store.live(VIEW)).applied()
        assert applied is not None
        digest = shown(int.from_bytes(applied[3], "little")).hex()
        assert replay(EmbeddedLog(store))[0] == digest
        return applied[0], digest
    finally:
        store.close()


async def under_load(k: Inside, snapshots: int) -> list[dict[str, Any]]:
    """Snapshots taken at odd moments of a stream of writes."""
    made: list[dict[str, Any]] = []
    writes: list[asyncio.Future[dict[str, Any]]] = []
    for number in range(snapshots):
        for _ in range(5):
            writes.append(k.submit("mem_alloc", namespace="a", content="x"))
        await asyncio.sleep(0.0004 * number)
        writes.append(k.submit("mem_alloc", namespace="a", content="x"))
        snapshot = k.submit("sys_snapshot")
        for _ in range(30):
            writes.append(k.submit("mem_alloc", namespace="a", content="x"))
            await asyncio.sleep(0)
        made.append(await snapshot)
    await asyncio.gather(*writes)
    return made


def test_a_snapshot_under_load_holds_what_its_label_says() -> None:
    with Inside(rocks=True) as k:
        made = k.loop.run_until_complete(asyncio.wait_for(under_load(k, 12), 60))
        for one in made:
            assert holds(one["path"]) == (one["offset"], one["state_digest"])
            described = json.loads((Path(one["path"]) / "snapshot.json").read_text())
            assert described == {"offset": one["offset"], "state_digest": one["state_digest"]}


def test_a_stream_of_writes_that_never_ends_does_not_keep_a_snapshot_waiting() -> None:
    with Inside(rocks=True) as k:

        async def run() -> None:
            snapshot = asyncio.ensure_future(k.submit("sys_snapshot"))
            while not snapshot.done():
                k.submit("mem_alloc", namespace="a", content="x")
                await asyncio.sleep(0)
            await snapshot

        k.loop.run_until_complete(asyncio.wait_for(run(), 20))


def test_who_asks_at_once_gets_the_same_and_a_leftover_is_in_nobodys_way() -> None:
    with Inside(rocks=True) as k:
        offset = k("mem_alloc", namespace="a", content="x")["offset"]
        (k.paths.snapshots / f"{offset:020d}.partial" / "db").mkdir(parents=True)

        async def both() -> list[dict[str, Any]]:
            return await asyncio.gather(*(k.submit("sys_snapshot") for _ in range(2)))

        one, two = k.loop.run_until_complete(both())
        assert one == two == k("sys_snapshot") and one["offset"] == offset
        assert [path.name for path in k.paths.snapshots.iterdir()] == [f"{offset:020d}"]
        assert holds(one["path"])[0] == offset


def test_a_snapshot_has_its_name_only_when_all_of_it_is_durable(monkeypatch: pytest.MonkeyPatch) -> None:
    with Inside(rocks=True) as k:
        k("mem_alloc", namespace="a", content="x")
        fsync, synced = os.fsync, list[str]()

        def seen(fd: int) -> None:
            synced.append(os.readlink(f"/proc/self/fd/{fd}"))
            fsync(fd)

        monkeypatch.setattr(os, "fsync", seen)
        path = k("sys_snapshot")["path"]
        monkeypatch.undo()
        at = synced.index(f"{path}.partial")
        assert f"{path}.partial/snapshot.json" in synced[:at]
        assert synced[at + 1 :] == [str(k.paths.snapshots), str(k.paths.root)]


def test_a_snapshot_that_fails_says_so_and_stops_nothing(k: Inside) -> None:
    k("mem_alloc", namespace="a", content="x")
    assert k.refusal("sys_snapshot") == "EIO", "a memory store has no files"
    assert list(k.paths.snapshots.iterdir()) == []
    k("mem_alloc", namespace="a", content="y")
    assert k.fatal == []
