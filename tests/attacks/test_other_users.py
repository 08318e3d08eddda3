"""Callers under other user ids, with real sockets and real credentials: they see nothing of others, nor that it exists."""

from __future__ import annotations

import contextlib
import grp
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.outside import Daemon, Wire

from memos_syscalls.errors import MemError

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="OTHER USERS ARE NOT TESTED: to become another user takes root")
MALLORY, CAROL, OVERFLOW = 4321, 4322, 65534
NOWHERE = "018bcfe5-0000-7000-8000-000000000000"


def as_user(uid: int, work: Callable[[], Any], gid: int | None = None) -> Any:
    """What `work` returns in a child of this process that has become another user. The result travels as JSON."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(uid if gid is None else gid)
            os.setuid(uid)
            result = {"result": work()}
        except BaseException as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        os.write(writer, json.dumps(result).encode()[:60_000])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        answer = json.loads(file.read())
    os.waitpid(child, 0)
    if "error" in answer:
        raise AssertionError(answer["error"])
    return answer["result"]


def outcome(wire: Wire, name: str, /, **args: Any) -> dict[str, Any]:
    """The answer, or the whole error as it came over the wire."""
    try:
        return wire.call(name, **args)
    except MemError as error:
        return {"refused": error.errno, "said": error.to_wire()}


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """A kernel whose socket everybody may open, in a place that everybody can reach."""
    place = Path(tempfile.mkdtemp(prefix="memos-users-", dir="/tmp"))
    place.chmod(0o755)
    with Daemon(place / "data") as kernel:
        assert kernel.socket.stat().st_mode & 0o777 == 0o600
        kernel.socket.chmod(0o666)
        yield kernel
    shutil.rmtree(place)


@pytest.fixture
def secret(daemon: Daemon) -> str:
    """A cube of ours."""
    with Wire(daemon.socket) as wire:
        return str(
            wire.call("mem_alloc", namespace="alice/diary", content="secret words", name="secret", tags=["secret"])["cube_id"]
        )


def test_nobody_else_may_open_the_socket_as_it_is_made(daemon: Daemon) -> None:
    daemon.socket.chmod(0o600)
    with pytest.raises(AssertionError, match="PermissionError"):
        as_user(MALLORY, lambda: Wire(daemon.socket).last_id)


def test_nobody_else_may_look_into_the_data_directory(daemon: Daemon, secret: str) -> None:
    def look(path: Path) -> object:
        return sorted(os.listdir(path)) if path.is_dir() else path.read_bytes().hex()[:10]

    for path in [daemon.data, *daemon.data.rglob("*")]:
        with pytest.raises(AssertionError, match="PermissionError"):
            as_user(MALLORY, partial(look, path))


def test_a_group_may_be_let_in() -> None:
    group = grp.getgrgid(100) if any(g.gr_gid == 100 for g in grp.getgrall()) else grp.getgrall()[1]
    place = Path(tempfile.mkdtemp(prefix="memos-users-", dir="/tmp"))
    place.chmod(0o755)
    with Daemon(place / "data", "--group", group.gr_name) as kernel:
        stat = kernel.socket.stat()
        assert (stat.st_mode & 0o777, stat.st_gid) == (0o660, group.gr_gid)
        with pytest.raises(AssertionError, match="PermissionError"):
            as_user(MALLORY, lambda: Wire(kernel.socket).last_id)
        who = as_user(MALLORY, lambda: Wire(kernel.socket).call("sys_info")["principal"], group.gr_gid)
        assert who == f"uid:{MALLORY}"
    shutil.rmtree(place)


def test_a_stranger_cannot_tell_what_exists(daemon: Daemon, secret: str) -> None:
    """Every call that names a cube says the same of one that is there and of one that is not, but for the id."""

    def attempt() -> list[list[str]]:
        found: list[list[str]] = []
        with Wire(daemon.socket) as wire:
            for cube in (secret, NOWHERE):
                said: list[str] = []
                for name, args in (
                    ("mem_read", {}), ("mem_read", {"version": 1}), ("mem_read", {"at_offset": 2}), ("mem_stat", {}),
                    ("mem_history", {}), ("mem_diff", {"a": 1, "b": 1}), ("mem_write", {"content": "x"}),
                    ("mem_write", {"content": "x", "expect_version": 7}), ("mem_write", {"content": "x" * 600_000}),
                    ("mem_rollback", {"to_version": 1}), ("mem_rollback", {"to_version": 99}), ("mem_free", {}),
                    ("mem_freeze", {}), ("mem_thaw", {}), ("mem_archive", {}), ("mem_restore", {}), ("mem_unfuse", {}),
                    ("mem_shred", {}), ("mem_shred", {"cascade": "refuse"}),
                ):  # fmt: skip
                    said.append(json.dumps(outcome(wire, name, cube_id=cube, **args)).replace(cube, "ID"))
                related: tuple[tuple[str, dict[str, Any]], ...] = (
                    ("mem_compose", {"cube_ids": [cube], "namespace": "mine"}),
                    ("mem_fuse", {"cube_ids": [cube, NOWHERE[:-1] + "1"], "strategy": "merge"}),
                    ("mem_alloc", {"namespace": "mine", "content": "x", "parents": [cube]}),
                )
                for name, args in related:
                    said.append(json.dumps(outcome(wire, name, **args)).replace(cube, "ID"))
                found.append(said)
        return found

    there, absent = as_user(MALLORY, attempt)
    assert there == absent
    assert all('"refused": "EACCES"' in said for said in there), there
    with Wire(daemon.socket) as wire:
        assert wire.call("mem_read", cube_id=secret)["content"] == "secret words"
        assert len(wire.call("mem_history", cube_id=secret)["versions"]) == 1


def test_a_stranger_cannot_tell_which_namespaces_exist_by_reading(daemon: Daemon, secret: str) -> None:
    def attempt() -> list[list[str]]:
        with Wire(daemon.socket) as wire:
            return [
                [
                    json.dumps(outcome(wire, name, **args)).replace(namespace, "NAME")
                    for name, args in (
                        ("mem_list", {"namespace": namespace}), ("mem_list", {"namespace": namespace, "at_offset": 1}),
                        ("mem_search", {"query": "secret", "namespace": namespace}), ("mem_watch", {"namespace": namespace}),
                        ("mem_shred", {"namespace": namespace}), ("mem_fork", {"namespace": namespace, "to": "mine"}),
                    )
                ]
                for namespace in ("alice/diary", "nobody/diary")
            ]  # fmt: skip

    there, absent = as_user(MALLORY, attempt)
    assert there == absent
    assert all('"refused": "EACCES"' in said for said in there)


def test_a_stranger_finds_lists_counts_and_watches_nothing_of_others(daemon: Daemon, secret: str) -> None:
    def look() -> dict[str, Any]:
        with Wire(daemon.socket) as wire:
            own = wire.call("mem_alloc", namespace="mallory", content="secret plans")["cube_id"]
            found = {
                "own": own,
                "listed": [cube["cube_id"] for cube in wire.call("mem_list")["cubes"]],
                "found": [hit["cube_id"] for hit in wire.call("mem_search", query="secret", mode="lexical")["hits"]],
                "namespaces": list(wire.call("sys_stats")["cubes"]["namespaces"]),
                "calls": wire.call("sys_stats")["calls"],
                "log": list(wire.call("sys_info")["log"]),
                "admin": [outcome(wire, name)["refused"] for name in ("sys_snapshot", "sys_verify")],
                "watched": [],
            }
            wire.send(wire.request("mem_watch", from_offset=0))
            wire.sock.settimeout(0.5)
            with contextlib.suppress(TimeoutError):
                while True:
                    found["watched"] += [event.get("cube_id") for event in wire.receive()[2]["events"]]
            return found

    seen = as_user(MALLORY, look)
    assert seen["listed"] == seen["found"] == seen["watched"] == [seen["own"]]
    assert seen["namespaces"] == ["mallory"]
    assert seen["calls"] == {} and seen["log"] == ["kind"] and seen["admin"] == ["EACCES", "EACCES"]
    with Wire(daemon.socket) as wire:
        head = wire.call("mem_stat", cube_id=seen["own"])["header"]
        assert (head["owner"], head["actor"]) == (f"uid:{MALLORY}", f"uid:{MALLORY}")


def test_a_stranger_takes_no_place_in_the_namespaces_of_others(daemon: Daemon, secret: str) -> None:
    def attempt() -> list[str]:
        with Wire(daemon.socket) as wire:
            own = wire.call("mem_alloc", namespace="mallory", content="mine")["cube_id"]
            return [
                wire.refusal("mem_alloc", namespace="alice", content="x"),
                wire.refusal("mem_alloc", namespace="alice/diary", content="x"),
                wire.refusal("mem_alloc", namespace="alice/new", content="x"),
                wire.refusal(
                    "mem_alloc_many", items=[{"namespace": "mallory", "content": "x"}, {"namespace": "alice", "content": "x"}]
                ),
                wire.refusal("mem_compose", cube_ids=[own], namespace="alice"),
                wire.refusal("mem_fork", namespace="mallory", to="alice/fork"),
                wire.refusal("mem_fork", namespace="mallory", to="alice"),
            ]

    assert set(as_user(MALLORY, attempt)) == {"EACCES"}
    with Wire(daemon.socket) as wire:
        assert [cube["cube_id"] for cube in wire.call("mem_list", namespace="alice")["cubes"]] == [secret]
        assert len(wire.call("mem_list", namespace="mallory")["cubes"]) == 1


def test_two_strangers_are_strangers_to_each_other(daemon: Daemon) -> None:
    mine = as_user(MALLORY, lambda: Wire(daemon.socket).call("mem_alloc", namespace="m", content="mine", request_id="r"))
    theirs = as_user(CAROL, lambda: Wire(daemon.socket).call("mem_alloc", namespace="c", content="theirs", request_id="r"))
    assert mine["cube_id"] != theirs["cube_id"]
    assert as_user(CAROL, lambda: Wire(daemon.socket).refusal("mem_read", cube_id=mine["cube_id"])) == "EACCES"
    assert as_user(CAROL, lambda: Wire(daemon.socket).call("mem_read", cube_id=theirs["cube_id"])["content"]) == "theirs"


def test_the_overflow_user_is_refused(daemon: Daemon) -> None:
    def attempt() -> Any:
        with Wire(daemon.socket, hello=False) as wire:
            wire.send(wire.request("sys_hello", abi=1))
            return [answer[2]["errno"] for answer in wire.ends()]

    assert as_user(OVERFLOW, attempt) == ["EACCES"]


def test_keys_are_for_the_kernels_user_alone(daemon: Daemon) -> None:
    private = [daemon.data, daemon.data / "master.key", daemon.data / "keys", *(daemon.data / "keys").iterdir()]
    assert all(path.stat().st_mode & 0o077 == 0 for path in private)
