"""An erasure with keys on Kafka: gone from every kernel and every machine, at once or by the time that the receipt says."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.outside import Machines, Wire

from memos_kernel import masterkey
from memos_kernel.eventlog.link import Link
from memos_kernel.events import Slot
from memos_kernel.topickeys import Remains, TopicKeys

CONTENT = "zyzzyva " * 5000


@pytest.fixture
def machines(tmp_path: Path, kafka: str, topic: str) -> Iterator[Machines]:
    with Machines(tmp_path, kafka, topic) as several:
        yield several


def test_what_is_shredded_cannot_be_read_on_a_standby_either(machines: Machines) -> None:
    primary, standby = machines.serve("a"), machines.serve("b", "--standby")
    with Wire(primary.socket) as wire, Wire(standby.socket) as other:
        made = [wire.call("mem_alloc", namespace="n", content=CONTENT + f"{n}") for n in range(3)]
        while other.call("sys_info")["head_offset"] < made[-1]["offset"]:
            time.sleep(0.01)
        # Now it has the keys and the plaintext in memory.
        for n, one in enumerate(made):
            assert other.call("mem_read", cube_id=one["cube_id"])["content"] == CONTENT + f"{n}"
        offset = wire.call("mem_shred", cube_id=made[0]["cube_id"])["offset"]
        until = time.monotonic() + 10
        while other.call("sys_info")["head_offset"] < offset:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert other.refusal("mem_read", cube_id=made[0]["cube_id"]) == "ESHREDDED"
        assert other.refusal("mem_read", cube_id=made[0]["cube_id"], version=1) == "ESHREDDED"
        assert other.call("mem_read", cube_id=made[1]["cube_id"])["content"] == CONTENT + "1"
        while len(other.call("mem_search", namespace="n", query="zyzzyva", mode="lexical")["hits"]) != 2:
            assert time.monotonic() < until, "the index forgets it, too"
            time.sleep(0.02)
        other.call("sys_promote")
        assert other.refusal("mem_read", cube_id=made[0]["cube_id"]) == "ESHREDDED"
        assert other.call("sys_verify", full=True)["ok"]


def test_no_copy_of_a_directory_brings_back_what_was_shredded(machines: Machines) -> None:
    first = machines.serve("a")
    with Wire(first.socket) as wire:
        gone = wire.call("mem_alloc", namespace="n", content=CONTENT)["cube_id"]
        kept = wire.call("mem_alloc", namespace="n", content="kept")["cube_id"]
    first.stop()
    shutil.copytree(machines.root / "a", machines.root / "copy")
    first = machines.serve("a")
    with Wire(first.socket) as wire:
        wire.call("mem_shred", cube_id=gone)
    first.stop()
    for name in ("copy", "empty"):
        with Wire(machines.serve(name).socket) as wire:
            assert wire.refusal("mem_read", cube_id=gone) == "ESHREDDED"
            assert wire.call("mem_read", cube_id=kept)["content"] == "kept"
            assert wire.call("sys_verify", full=True)["ok"]
    for path in machines.root.rglob("*"):
        assert not path.is_file() or b"zyzzyva" not in path.read_bytes(), path


def test_a_shred_that_a_killed_kernel_left_undone_is_done_before_anyone_is_served(machines: Machines) -> None:
    """Whoever takes over has the record, and carries it out."""
    first = machines.serve("a")
    with Wire(first.socket) as wire:
        gone = [wire.call("mem_alloc", namespace="n", content=f"{n}")["cube_id"] for n in range(30)]
        for cube in gone:
            wire.send(wire.request("mem_shred", cube_id=cube))
        wire.receive()
        first.kill()
    with Wire(machines.serve("b").socket) as wire:
        left = {cube["cube_id"] for cube in wire.call("mem_list", namespace="n", limit=100)["cubes"]}
        shredded = [cube for cube in gone if cube not in left]
        assert shredded
        for cube in shredded:
            assert wire.refusal("mem_read", cube_id=cube) == "ESHREDDED"
        assert wire.call("sys_verify", full=True)["ok"]
        log_id = bytes.fromhex(wire.call("sys_info")["log_id"])
    master = masterkey.read(machines.key)
    assert master is not None
    keys = TopicKeys(Link.parse(machines.url), master, log_id=log_id, read_only=True)
    try:
        live = {slot for epoch in keys.epochs for slot in keys.live_slots(epoch) if epoch == 1}
        assert len(live) == len(left), "of the first kernel's keys those live that something names"
    finally:
        keys.close()


@pytest.mark.slow
@pytest.mark.skipif("MEMOS_CRASH_ROUNDS" not in os.environ, reason="waits for the broker's cleaner; set MEMOS_CRASH_ROUNDS")
def test_a_receipt_says_by_when_the_last_copy_of_the_key_is_gone_and_it_is(machines: Machines) -> None:
    first = machines.serve("a")
    with Wire(first.socket) as wire:
        gone = wire.call("mem_alloc", namespace="n", content=CONTENT)["cube_id"]
        wire.call("mem_alloc", namespace="n", content="kept")
        by = wire.call("mem_shred", cube_id=gone)["report"]["keys_gone_by"] / 1e9
        assert 0 < by - time.time() < 120
        log_id = bytes.fromhex(wire.call("sys_info")["log_id"])
        # A cube's key is the first that was free, and the kernel goes on letting the broker clean up.
        slots = [Slot(1, n) for n in range(2)]
        assert len(remaining(machines, log_id, slots)) >= 1
        time.sleep(max(0.0, by - time.time()))
        assert len(remaining(machines, log_id, slots)) == 1


def remaining(machines: Machines, log_id: bytes, slots: list[Slot]) -> list[Remains]:
    """Which of these keys the topic still holds, live or destroyed."""
    master = masterkey.read(machines.key)
    assert master is not None
    keys = TopicKeys(Link.parse(machines.url), master, log_id=log_id, read_only=True)
    try:
        return keys.remains(slots)
    finally:
        keys.close()
