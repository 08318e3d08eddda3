"""Pins: who may, what they survive, where they show, and that they change no memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.inside import ALICE, Inside
from tests.outside import Daemon

from memos_client import Kernel
from memos_kernel import header as headers
from memos_kernel.clock import ManualClock
from memos_kernel.governance import raw_id
from memos_kernel.state import CONTENT, CONTEXT
from memos_syscalls import limits
from memos_syscalls.errors import MemNotFound, MemShredded
from memos_tools import ctl


def alloc(k: Inside, content: str = "x", **more: object) -> str:
    return str(k("mem_alloc", ALICE, namespace="alice", content=content, **more)["cube_id"])


def is_pinned(k: Inside, cube: str) -> bool:
    return bool(k("mem_stat", ALICE, cube_id=cube)["header"].get("pinned", False))


def test_a_pin_shows_and_changes_no_memory(k: Inside) -> None:
    cube = alloc(k)
    digest = k.digest
    before = k("mem_stat", ALICE, cube_id=cube)["header"]
    assert "pinned" not in before, "what is not so is not carried"
    reply = k("mem_pin", ALICE, cube_id=cube, expect_version=1)
    assert (reply["cube_id"], reply["version"], reply["state"]) == (cube, 1, "generated")
    assert k("mem_stat", ALICE, cube_id=cube)["header"] == {**before, "pinned": True}
    assert k("mem_list", ALICE, namespace="alice")["cubes"][0]["pinned"] is True
    assert k("mem_read", ALICE, cube_id=cube)["header"]["pinned"] is True
    assert k.digest == digest
    again = k("mem_pin", ALICE, cube_id=cube)
    assert again["offset"] == reply["offset"] + 1
    k("mem_unpin", ALICE, cube_id=cube)
    assert k("mem_stat", ALICE, cube_id=cube)["header"] == before
    k("mem_unpin", ALICE, cube_id=cube)
    assert k.digest == digest


def test_pins_outlive_restarts_and_replays(k: Inside) -> None:
    kept, freed, shredded, expired, let_go = alloc(k), alloc(k), alloc(k), alloc(k, ttl_s=5), alloc(k)
    for cube in (kept, freed, shredded, expired, let_go):
        k("mem_pin", ALICE, cube_id=cube)
    k("mem_freeze", ALICE, cube_id=kept)
    k("mem_unpin", ALICE, cube_id=let_go)
    k("mem_free", ALICE, cube_id=freed)
    k("mem_shred", ALICE, cube_id=shredded)
    assert isinstance(k.clock, ManualClock)
    k.clock.advance(6)
    k.kernel.tick()
    k.loop.run_until_complete(k.kernel.drained())
    for turn in (None, k.reopen, k.crash):
        if turn is not None:
            turn()
        rows = [key for key in k.rows() if key[:1] == b"p"]
        assert rows == [b"p" + bytes.fromhex(kept.replace("-", ""))]
        assert is_pinned(k, kept)
    assert k("sys_verify")["ok"]


def test_who_may_not(k: Inside) -> None:
    frozen, freed, shredded = alloc(k), alloc(k), alloc(k)
    k("mem_freeze", ALICE, cube_id=frozen)
    assert k("mem_pin", ALICE, cube_id=frozen)["state"] == "frozen"
    assert k("mem_unpin", ALICE, cube_id=frozen)["state"] == "frozen"
    k("mem_free", ALICE, cube_id=freed)
    k("mem_shred", ALICE, cube_id=shredded)
    for call in ("mem_pin", "mem_unpin"):
        assert k.refusal(call, ALICE, cube_id=freed) == "ENOENT"
        assert k.refusal(call, ALICE, cube_id=shredded) == "ESHREDDED"
        assert k.refusal(call, ALICE, cube_id=frozen, expect_version=2) == "ECONFLICT"


def test_a_repeat_gets_the_first_answer(k: Inside) -> None:
    cube = alloc(k)
    first = k("mem_pin", ALICE, cube_id=cube, request_id="r", actor_note="hot")
    k("mem_unpin", ALICE, cube_id=cube)
    k("mem_write", ALICE, cube_id=cube, content="y")
    assert k("mem_pin", ALICE, cube_id=cube, request_id="r", actor_note="hot") == first
    assert not is_pinned(k, cube), "it was not done again"
    assert k.refusal("mem_unpin", ALICE, cube_id=cube, request_id="r") == "EINVAL"
    assert k.refusal("mem_pin", ALICE, cube_id=alloc(k), request_id="r") == "EINVAL"
    k("mem_shred", ALICE, cube_id=cube)
    k.reopen()
    assert k("mem_pin", ALICE, cube_id=cube, request_id="r", actor_note="hot") == first


def test_a_fork_is_pinned_by_itself_and_with_a_key_of_its_own(k: Inside) -> None:
    source = alloc(k)
    k("mem_pin", ALICE, cube_id=source)
    k("mem_fork", ALICE, namespace="alice", to="copy")
    copy = k("mem_list", ALICE, namespace="copy")["cubes"][0]["cube_id"]
    assert not is_pinned(k, copy)
    k("mem_pin", ALICE, cube_id=copy)
    k("mem_pin", ALICE, cube_id=copy, actor_note="why, in private")
    k("mem_unpin", ALICE, cube_id=source)
    assert (is_pinned(k, source), is_pinned(k, copy)) == (False, True)
    k.crash()
    assert is_pinned(k, copy)
    assert k("sys_verify", full=True)["ok"]


def test_a_context_source_that_moved_on_makes_renewable_and_not_stale(k: Inside) -> None:
    source = alloc(k)
    k("mem_write", ALICE, cube_id=source, content="two")
    reader = alloc(k)
    view = k.kernel.view
    cube = view.cube(raw_id(reader))
    assert cube is not None
    found = view.version(cube, 1)
    assert found is not None
    for role, at, stale, renewable in ((CONTEXT, 1, False, True), (CONTEXT, 2, False, None), (CONTENT, 1, True, None)):
        row = found[0]._replace(lineage=[(raw_id(source), at, role)])
        shown = headers.header(view, cube, row, None, state="generated", now=0, owner=None)
        assert (shown["stale"], shown.get("renewable")) == (stale, renewable)


def test_watchers_auditors_and_checkers_know_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    with Daemon(data, "--model", "none") as daemon, Kernel.connect(daemon.socket) as k:
        made = k.mem_alloc("alice", "x" * 100)
        pinned = k.mem_pin(made.cube_id, actor_note="read every minute")
        with k.mem_watch(namespace="alice", from_offset=pinned.offset) as watch:
            item = next(watch)
        assert (item.syscall, item.events[0].event, item.events[0].cube_id) == ("mem_pin", "cube.pinned", made.cube_id)
        k.mem_unpin(made.cube_id)
        k.mem_pin(made.cube_id)
        assert k.sys_verify(full=True).ok
        with pytest.raises(MemNotFound):
            k.mem_pin("01890000-0000-7000-8000-000000000000")
        gone = k.mem_alloc("alice", "gone").cube_id
        k.mem_pin(gone)
        k.mem_shred(gone)
        with pytest.raises(MemShredded):
            k.mem_pin(gone)
        assert daemon.stop() == 0
    with Daemon(data, "--model", "none", "--host-tier-mb", "1") as daemon, Kernel.connect(daemon.socket) as k:
        assert k.mem_stat(made.cube_id).header.pinned
        assert k.sys_stats().tiers["host"]["budget"] == limits.MIB
        assert daemon.stop() == 0
    for words, said in (
        (["audit", str(data), made.cube_id], "read every minute"), (["audit", str(data), made.cube_id], "unpinned"),
        (["log", "show", str(data), str(pinned.offset)], "cube.pinned"), (["check", str(data)], ""),
        (["verify", str(data)], ""),
    ):  # fmt: skip
        assert ctl.main(words) == 0, words
        assert said in capsys.readouterr().out, words
