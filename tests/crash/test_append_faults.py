"""A fault in an append or apply stops the kernel: no answer is sent that may be untrue, and a restart finds the truth."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from tests.inside import Inside, replay

from memos_drivers.stores.base import Store
from memos_drivers.stores.memory import MemoryStore
from memos_kernel.eventlog.base import EventLog
from memos_kernel.eventlog.memory import DOUBT, LOSE, MemoryLog
from memos_syscalls.errors import MemError


def memory_log(k: Inside) -> MemoryLog:
    assert isinstance(k.log, MemoryLog)
    return k.log


def silence(k: Inside, future: asyncio.Future[dict[str, object]]) -> bool:
    """Whether a call has no answer although the kernel had time for one."""
    k.run(0.05)
    return not future.done()


@pytest.mark.parametrize("fault", [LOSE, DOUBT])
def test_an_append_that_fails_stops_the_kernel_and_answers_nobody(fault: str) -> None:
    with Inside(log_of=MemoryLog) as k:
        before = k("mem_alloc", namespace="alice", content="before")["cube_id"]
        memory_log(k).faults.append(fault)
        calls = [k.submit("mem_alloc", namespace="alice", content=f"{n}", request_id=f"r{n}") for n in range(3)]
        assert [silence(k, call) for call in calls] == [True] * 3
        assert len(k.fatal) == 1 and "injected" in k.fatal[0]
        refused = k.submit("mem_alloc", namespace="alice", content="after")
        k.run(0.05)
        error = refused.exception() if refused.done() else None
        assert error is None or (isinstance(error, MemError) and error.errno in ("EAGAIN", "EFENCED", "EIO"))
        k.crash()
        k.fatal.clear()
        assert k("mem_read", cube_id=before)["content"] == "before"
        kept = [c["cube_id"] for c in k("mem_list", namespace="alice")["cubes"]]
        # The frame that failed held as many of the three as one turn of the loop decided.
        assert len(kept) == 1 if fault == LOSE else 2 <= len(kept) <= 4
        answers = [k("mem_alloc", namespace="alice", content=f"{n}", request_id=f"r{n}") for n in range(3)]
        assert [k("mem_read", cube_id=a["cube_id"])["content"] for a in answers] == ["0", "1", "2"]
        after = [c["cube_id"] for c in k("mem_list", namespace="alice")["cubes"]]
        assert len(after) == 4, "a repeat after a doubt makes nothing twice"
        if fault == DOUBT:
            assert set(kept) - {before} <= {a["cube_id"] for a in answers}
        assert replay(k.log) == (k.digest, k.rows())


@pytest.mark.parametrize("fault", [LOSE, DOUBT])
def test_a_shred_whose_append_fails_keeps_the_key_until_a_restart_finds_the_record(fault: str) -> None:
    with Inside(log_of=MemoryLog) as k:
        cube = k("mem_alloc", namespace="alice", content="text")["cube_id"]
        memory_log(k).faults.append(fault)
        assert silence(k, k.submit("mem_shred", cube_id=cube))
        k.crash()
        k.fatal.clear()
        if fault == LOSE:
            assert k("mem_read", cube_id=cube)["content"] == "text"
        else:
            assert k.refusal("mem_read", cube_id=cube) == "ESHREDDED"


def fail_in_store(k: Inside) -> None:
    assert isinstance(k.store, MemoryStore)
    k.store.fail_next = OSError("injected: the disk failed")


def fail_in_log(k: Inside) -> None:
    memory_log(k).faults.append(LOSE)


def memory(store: Store) -> EventLog:
    return MemoryLog(store)


@pytest.mark.parametrize("where", [fail_in_store, fail_in_log])
@pytest.mark.parametrize("call", ["mem_alloc", "mem_alloc_many", "mem_alloc_large", "mem_fork", "mem_shred"])
def test_whatever_the_call_a_failing_disk_stops_the_kernel_and_loses_nothing_acknowledged(
    where: Callable[[Inside], None], call: str
) -> None:
    with Inside(log_of=memory) as k:
        cube = k("mem_alloc", namespace="alice", content="kept")["cube_id"]
        k.run(0.05)
        where(k)
        arguments: dict[str, dict[str, Any]] = {
            "mem_alloc": {"namespace": "alice", "content": "x"},
            "mem_alloc_many": {"items": [{"namespace": "alice", "content": f"{n}"} for n in range(100)]},
            "mem_alloc_large": {"namespace": "alice", "content": "x" * 900_000},
            "mem_fork": {"namespace": "alice", "to": "copy"},
            "mem_shred": {"cube_id": cube, "cascade": "shred"},
        }
        future = k.submit("mem_alloc" if call == "mem_alloc_large" else call, **arguments[call])
        k.run(0.3)
        if future.done():
            # Large content is stored before its record: that failure is an error of the call alone, and nothing happened.
            error = future.exception()
            assert call == "mem_alloc_large" and isinstance(error, MemError) and error.outcome == "none"
        else:
            assert len(k.fatal) == 1
        k.crash()
        k.fatal.clear()
        assert [c["cube_id"] for c in k("mem_list")["cubes"]] == [cube]
        assert k("mem_read", cube_id=cube)["content"] == "kept"
        assert replay(k.log) == (k.digest, k.rows())


def test_a_kernel_that_cannot_append_its_opening_does_not_start() -> None:
    with Inside(log_of=MemoryLog) as k:
        k("mem_alloc", namespace="alice", content="kept")
        k.abandon()
        memory_log(k).faults.append(LOSE)
        with pytest.raises(Exception) as refused:
            k.open()
        assert not isinstance(refused.value, TimeoutError), "it says so rather than hang"
        k.open()
        assert len(k("mem_list")["cubes"]) == 1
