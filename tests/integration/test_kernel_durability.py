"""Between a decision and its durability: reads see what is durable, answers wait, and order holds."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.inside import ADMIN, ALICE, Inside

from memos_drivers.stores.base import Store
from memos_kernel.eventlog.base import Append
from memos_kernel.eventlog.embedded import EmbeddedLog
from memos_syscalls.errors import MemError


class HeldLog(EmbeddedLog):
    """The embedded log with a disk that takes as long as the test says."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.disk = threading.Event()
        self.disk.set()

    def finish(self, append: Append) -> None:
        assert self.disk.wait(20), "the test never let the disk go on"
        super().finish(append)


@pytest.fixture(params=["memory", "rocks"])
def k(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Inside]:
    with Inside(tmp_path / "data", rocks=request.param == "rocks", log_of=HeldLog) as kernel:
        yield kernel


def hold(k: Inside) -> None:
    assert isinstance(k.log, HeldLog)
    # Whatever the kernel itself had under way is done first.
    k.run(0.05)
    k.log.disk.clear()


def let_go(k: Inside) -> None:
    assert isinstance(k.log, HeldLog)
    k.log.disk.set()


def seen(k: Inside) -> dict[str, Any]:
    """What another connection reads now."""
    found: dict[str, Any] = {"listed": sorted(c["name"] for c in k("mem_list", ADMIN, namespace="alice")["cubes"])}
    found["all"] = sorted(c["name"] for c in k("mem_list", ADMIN)["cubes"])
    found["hits"] = len(k("mem_search", ADMIN, query="word", mode="lexical")["hits"])
    found["namespaces"] = sorted(k("sys_stats", ADMIN)["cubes"]["namespaces"])
    found["head"] = k("sys_info", ADMIN)["head_offset"]
    found["digest"] = k("sys_info", ADMIN)["state_digest"]
    return found


def test_reads_see_nothing_that_is_not_durable(k: Inside) -> None:
    first = k("mem_alloc", ALICE, namespace="alice", content="a word", name="first")["cube_id"]
    k("mem_alloc", ALICE, namespace="alice", content="a word", name="second")
    k.settle()
    hold(k)
    before = seen(k)
    history = k("mem_history", ADMIN, cube_id=first)
    calls = [
        k.submit("mem_alloc", ALICE, namespace="alice", content="a word", name="third"),
        k.submit("mem_write", ALICE, cube_id=first, content="another word", name="changed"),
        k.submit("mem_fork", ALICE, namespace="alice", to="copy"),
        k.submit("mem_free", ALICE, cube_id=first),
    ]
    k.run(0.1)
    assert not any(call.done() for call in calls), "nobody is answered before the disk has it"
    assert seen(k) == before
    assert k("mem_read", ADMIN, cube_id=first)["content"] == "a word"
    assert k("mem_stat", ADMIN, cube_id=first)["header"]["state"] == "generated"
    assert k("mem_history", ADMIN, cube_id=first) == history
    let_go(k)
    for call in calls:
        k.wait(call)
    k.settle()
    after = seen(k)
    assert after["all"] == ["changed", "second", "second", "third", "third"]
    assert after["listed"] == ["second", "third"]
    assert after["digest"] != before["digest"] and "copy" in after["namespaces"]
    assert k.refusal("mem_read", ADMIN, cube_id=first) == "ENOENT"


def test_a_refusal_that_rests_on_what_is_not_durable_waits_for_it(k: Inside) -> None:
    cube = k("mem_alloc", ALICE, namespace="alice", content="one")["cube_id"]
    hold(k)
    write = k.submit("mem_write", ALICE, cube_id=cube, content="two", expect_version=1)
    late = k.submit("mem_write", ADMIN, cube_id=cube, content="three", expect_version=1)
    repeat = k.submit("mem_alloc", ALICE, namespace="alice", content="x", request_id="r")
    again = k.submit("mem_alloc", ALICE, namespace="alice", content="x", request_id="r")
    other = k.submit("mem_alloc", ALICE, namespace="alice", content="y", request_id="r")
    k.run(0.1)
    assert not any(call.done() for call in (write, late, repeat, again, other))
    let_go(k)
    assert k.wait(write)["version"] == 2
    with pytest.raises(MemError, match="ECONFLICT"):
        k.wait(late)
    assert k.wait(repeat) == k.wait(again)
    with pytest.raises(MemError, match="EINVAL"):
        k.wait(other)


def test_a_read_after_a_write_on_one_connection_waits_and_on_another_does_not(k: Inside) -> None:
    cube = k("mem_alloc", ALICE, namespace="alice", content="one")["cube_id"]
    hold(k)
    write = k.submit("mem_write", ALICE, cube_id=cube, content="two")
    own = k.submit("mem_read", ALICE, cube_id=cube)
    others = k.submit("mem_read", ADMIN, cube_id=cube)
    assert k.wait(others)["content"] == "one"
    k.run(0.05)
    assert not write.done() and not own.done()
    let_go(k)
    assert k.wait(own)["content"] == "two"


def test_a_deadline_that_passes_while_the_disk_is_slow_says_that_the_outcome_is_unknown(k: Inside) -> None:
    k("mem_alloc", ALICE, namespace="alice", content="one")
    hold(k)
    slow = k.submit("mem_alloc", ALICE, namespace="alice", content="two", deadline_ms=50, request_id="r")
    with pytest.raises(MemError) as caught:
        k.wait(slow)
    assert (caught.value.errno, caught.value.outcome) == ("ETIMEDOUT", "unknown")
    let_go(k)
    answer = k("mem_alloc", ALICE, namespace="alice", content="two", request_id="r")
    assert len(k("mem_list", ALICE)["cubes"]) == 2
    assert k("mem_read", ALICE, cube_id=answer["cube_id"])["content"] == "two"


def test_calls_that_wait_for_the_disk_leave_as_few_frames(k: Inside) -> None:
    k("mem_alloc", ALICE, namespace="alice", content="one")
    hold(k)
    commits = k.kernel.commits
    calls = [k.submit("mem_alloc", ALICE, namespace="alice", content=f"{n}") for n in range(200)]
    k.run(0.1)
    let_go(k)
    offsets = [k.wait(call)["offset"] for call in calls]
    assert offsets == sorted(offsets) and len(set(offsets)) == 200
    assert k.kernel.commits - commits <= 6


def test_a_watcher_is_told_each_record_once_in_order_and_only_when_durable(k: Inside) -> None:
    start = k("sys_info")["head_offset"] + 1
    watch = k.submit("mem_watch", ADMIN, from_offset=start)
    items = k.peer(ADMIN).items
    hold(k)
    calls = [k.submit("mem_alloc", ALICE, namespace="alice", content=f"{n}") for n in range(20)]
    k.run(0.1)
    assert items == []
    let_go(k)
    made = [k.wait(call)["cube_id"] for call in calls]
    k.run(0.2)
    told = [event["cube_id"] for item in items for event in item["events"]]
    assert told == made
    assert [item["offset"] for item in items] == sorted({item["offset"] for item in items})
    assert not watch.done()


def test_a_stop_finishes_what_was_accepted(k: Inside) -> None:
    hold(k)
    call = k.submit("mem_alloc", ALICE, namespace="alice", content="accepted")
    k.run(0.05)
    threading.Timer(0.2, lambda: let_go(k)).start()
    k.reopen()
    assert isinstance(call, asyncio.Future)
    assert [k("mem_read", ALICE, cube_id=c["cube_id"])["content"] for c in k("mem_list", ALICE)["cubes"]] == ["accepted"]
