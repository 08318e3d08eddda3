"""A standby: follows the log of another kernel, serves reads at its position, and takes over when it is told to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.outside import Daemon, Machines, Wire

from memos_syscalls.errors import MemError

FENCED = 4


@pytest.fixture
def machines(tmp_path: Path, kafka: str, topic: str) -> Iterator[Machines]:
    with Machines(tmp_path, kafka, topic) as several:
        yield several


def until(seconds: float, what: Callable[[], bool]) -> float:
    """How long it took until it was so."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < seconds
        time.sleep(0.002)
    return time.monotonic() - began


def caught_up(standby: Wire, offset: int) -> float:
    return until(10, lambda: standby.call("sys_info")["head_offset"] >= offset)


def test_a_standby_answers_reads_says_its_lag_and_takes_no_write(machines: Machines) -> None:
    primary = machines.serve("a")
    with Wire(primary.socket) as wire:
        cube = wire.call("mem_alloc", namespace="n", content="before the standby")["cube_id"]
        standby = machines.serve("b", "--standby")
        with Wire(standby.socket) as other:
            assert other.call("mem_read", cube_id=cube)["content"] == "before the standby"
            lags: list[float] = []
            for n in range(10):
                offset = wire.call("mem_write", cube_id=cube, content=f"{n}" * 20_000)["offset"]
                lags.append(caught_up(other, offset))
                assert other.call("mem_read", cube_id=cube)["content"] == f"{n}" * 20_000
            print(f"a standby follows in {sorted(lags)[5] * 1000:.1f} ms, with the pieces of 20 kB")
            assert sorted(lags)[5] < 1
            info = other.call("sys_info")
            assert info["standby"] and info["read_only"] and info["log"]["lag"] == 0
            assert info["epoch"] == wire.call("sys_info")["epoch"]
            for name, args in (
                ("mem_alloc", {"namespace": "n", "content": "x"}), ("mem_write", {"cube_id": cube, "content": "x"}),
                ("mem_shred", {"cube_id": cube}), ("mem_free", {"cube_id": cube}),
            ):  # fmt: skip
                assert other.refusal(name, **args) == "EROFS"
            offset = wire.call("mem_alloc", namespace="n", content="the word cucumber")["offset"]
            caught_up(other, offset)
            until(5, lambda: len(other.call("mem_search", namespace="n", query="cucumber", mode="lexical")["hits"]) == 1)
            assert other.call("sys_verify", full=True)["ok"]
            until(5, lambda: same(wire, other))
        assert standby.stop() == 0
        wire.call("mem_write", cube_id=cube, content="nobody minds")
    assert primary.stop() == 0


def same(wire: Wire, other: Wire) -> bool:
    """Whether both stand at one head with one digest."""
    one, two = wire.call("sys_info"), other.call("sys_info")
    return bool(one["head_hash"] == two["head_hash"] and one["state_digest"] == two["state_digest"])


def test_a_standby_that_starts_behind_and_one_that_was_away_catch_up(machines: Machines) -> None:
    primary = machines.serve("a")
    with Wire(primary.socket) as wire:
        machines.serve("b", "--standby").stop()
        for n in range(100):
            wire.call("mem_alloc", namespace="n", content=f"{n}")
        with Wire(machines.serve("b", "--standby").socket) as again, Wire(machines.serve("c", "--standby").socket) as new:
            for n in range(100):
                wire.call("mem_alloc", namespace="n", content=f"{n}")
            until(10, lambda: same(wire, again) and same(wire, new))


def test_a_standby_is_promoted_in_place_and_fences_the_one_before(machines: Machines) -> None:
    primary, standby = machines.serve("a"), machines.serve("b", "--standby")
    with Wire(primary.socket) as wire, Wire(standby.socket) as other:
        first = wire.call("mem_alloc", namespace="n", content="x", request_id="r")
        caught_up(other, first["offset"])
        watch = other.request("mem_watch", namespace="n")
        other.send(watch)
        watching = other.last_id
        with Wire(standby.socket) as admin:
            began = time.monotonic()
            promoted = admin.call("sys_promote")
            cube = admin.call("mem_alloc", namespace="n", content="from the new one")["cube_id"]
            took = time.monotonic() - began
        print(f"promoted and written to in {took:.2f} s")
        assert took < 2
        assert primary.ended() == FENCED
        info = other_info(standby)
        assert not info["standby"] and not info["read_only"] and info["epoch"] == promoted["epoch"]
        with Wire(standby.socket) as admin:
            assert admin.call("mem_alloc", namespace="n", content="x", request_id="r") == first
            assert admin.call("mem_read", cube_id=cube)["content"] == "from the new one"
            assert admin.call("sys_promote")["epoch"] == promoted["epoch"], "it is, already"
            assert admin.call("sys_verify", full=True)["ok"]
        call_id, status, item = other.receive()
        assert call_id == watching and status, "who watched goes on watching"
        assert cube in str(item)
    with Wire(machines.serve("a", "--standby").socket) as back:
        until(10, lambda: not _refused(back, "mem_read", cube_id=cube))
        assert back.refusal("mem_alloc", namespace="n", content="x") == "EROFS"


def other_info(daemon: Daemon) -> dict[str, Any]:
    with Wire(daemon.socket) as wire:
        return wire.call("sys_info")


def _refused(wire: Wire, name: str, **args: Any) -> bool:
    try:
        wire.call(name, **args)
    except MemError:
        return True
    return False


def test_a_standby_s_directory_can_be_started_as_the_writer(machines: Machines) -> None:
    primary, standby = machines.serve("a"), machines.serve("b", "--standby")
    with Wire(primary.socket) as wire:
        cube = wire.call("mem_alloc", namespace="n", content="x")["cube_id"]
    primary.kill()
    with Wire(standby.socket) as other:
        until(10, lambda: not _refused(other, "mem_read", cube_id=cube))
        assert other.call("mem_read", cube_id=cube)["content"] == "x", "it serves reads while nobody writes"
    standby.stop()
    with Wire(machines.serve("b").socket) as wire:
        assert wire.call("mem_write", cube_id=cube, content="y")["version"] == 2
        assert wire.call("sys_verify", full=True)["ok"]
