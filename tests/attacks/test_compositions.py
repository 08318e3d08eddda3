"""Compositions that expand without end, or that show what their reader may not see."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.inside import ALICE, BOB, Inside
from tests.outside import Daemon, Wire

from memos_syscalls.errors import MemError

HIDDEN = ("ENOENT", "EACCES")


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    """A connection to a kernel of its own, which ends with the test whatever it is busy with."""
    with Daemon(tmp_path / "data") as daemon, Wire(daemon.socket, seconds=10) as connection:
        yield connection
        assert daemon.process.poll() is None, daemon.said()
        with Wire(daemon.socket, seconds=2) as other:
            assert other.call("sys_info")["abi"] == 1


def outcome(wire: Wire, name: str, /, **args: Any) -> dict[str, Any] | str:
    try:
        return wire.call(name, **args)
    except MemError as error:
        return error.errno


def compose(wire: Wire, members: list[str]) -> str | None:
    """A composition of these, or None when it is refused as too large."""
    made = outcome(wire, "mem_compose", cube_ids=members, namespace="a")
    if isinstance(made, str):
        assert made in ("EMSGSIZE", "EINVAL")
        return None
    return str(made["cube_id"])


def everything_is_answered(wire: Wire, cube: str, leaf: str) -> None:
    """Every call that would expand a composition is answered in time: with its text, or that it is too large."""
    other = wire.call("mem_alloc", namespace="a", content="other")["cube_id"]
    for name, args in (
        ("mem_read", {"cube_id": cube}),
        ("mem_stat", {"cube_id": cube}),
        ("mem_diff", {"cube_id": cube, "a": 1, "b": 1}),
        ("mem_search", {"query": "leaf"}),
        ("mem_fuse", {"cube_ids": [cube, other], "strategy": "dedupe"}),
        ("mem_shred", {"cube_id": leaf}),
    ):
        found = outcome(wire, name, **args)
        assert not isinstance(found, str) or found in ("EMSGSIZE", "EINVAL"), (name, found)


def test_compositions_that_double_at_each_level_are_bounded(wire: Wire) -> None:
    leaf = wire.call("mem_alloc", namespace="a", content="leaf")["cube_id"]
    pair = [leaf, wire.call("mem_alloc", namespace="a", content="leaf too")["cube_id"]]
    for _ in range(40):
        made = [compose(wire, pair), compose(wire, pair)]
        if made[0] is None or made[1] is None:
            break
        pair = [made[0], made[1]]
    everything_is_answered(wire, pair[0], leaf)


def test_a_long_chain_of_compositions_is_bounded(wire: Wire) -> None:
    leaf = last = wire.call("mem_alloc", namespace="a", content="leaf")["cube_id"]
    for _ in range(1200):
        made = compose(wire, [last])
        if made is None:
            break
        last = made
    everything_is_answered(wire, last, leaf)


def test_a_composition_of_many_large_cubes_is_bounded(wire: Wire) -> None:
    members = [wire.call("mem_alloc", namespace="a", content="x" * 1_000_000)["cube_id"] for _ in range(40)]
    made = compose(wire, members)
    if made is not None:
        everything_is_answered(wire, made, members[0])


def test_a_fusion_shows_no_member_that_its_maker_may_not_read() -> None:
    with Inside() as k:
        secret = k("mem_alloc", BOB, namespace="bob", content="The word is xyzzy.")["cube_id"]
        own = k("mem_alloc", ALICE, namespace="alice", content="Of her own.")["cube_id"]
        # Only the kernel's own user can put the one into the other's namespace.
        composed = k("mem_compose", cube_ids=[secret], namespace="alice")["cube_id"]
        assert k.refusal("mem_read", ALICE, cube_id=composed) in HIDDEN
        assert k.refusal("mem_diff", ALICE, cube_id=composed, a=1, b=1) in HIDDEN
        assert k.refusal("mem_fuse", ALICE, cube_ids=[composed, own], strategy="dedupe") in HIDDEN
        outer = k("mem_compose", ALICE, cube_ids=[composed, own], namespace="alice")["cube_id"]
        assert k.refusal("mem_read", ALICE, cube_id=outer) in HIDDEN
        k("mem_fork", ALICE, namespace="alice", to="alice-too")
        for cube in k("mem_list", ALICE, namespace="alice-too")["cubes"]:
            if cube["forked_from"]["cube_id"] in (composed, outer):
                assert k.refusal("mem_read", ALICE, cube_id=cube["cube_id"]) in HIDDEN
