"""Who may do what: owners, admins, strangers, and that what is hidden looks like what is not there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.inside import ADMIN, ALICE, BOB, Inside

from memos_drivers.stores.memory import MemoryReader
from memos_kernel.events import Slot
from memos_kernel.governance import Access, Caller, may, raw_id, text_id
from memos_kernel.state import Cube, Namespace, Tables
from memos_syscalls.errors import MemDenied, MemError, MemNotFound

CUBE = b"c" * 16


def access(caller: Caller) -> Access:
    tables = Tables(MemoryReader(), 0)
    for name, owner in (("alice", ALICE.principal), ("alice/notes", ALICE.principal), ("bob", BOB.principal)):
        tables.put_namespace(Namespace(1, name, owner, 1, 1, None))
    cube = Cube(1, CUBE, "alice/notes", "plaintext", 1, 1, 1, "generated", 1, Slot(1, 0), None, None, None)
    tables.put_cube(cube, new=True)
    return Access(tables, caller)


@pytest.mark.parametrize(
    ("caller", "owner", "allowed"),
    [(ADMIN, None, True), (ADMIN, "uid:1001", True), (ALICE, "uid:1001", True), (ALICE, "uid:1002", False),
     (ALICE, None, False), (ALICE, "", False), (Caller("", False), "", True), (Caller("uid:100", False), "uid:1001", False)],
)  # fmt: skip
def test_the_rule_itself(caller: Caller, owner: str | None, allowed: bool) -> None:
    assert may(caller, owner) is allowed


def failure(work: object) -> MemError:
    assert callable(work)
    with pytest.raises(MemError) as error:
        work()
    return error.value


def test_to_strangers_what_is_hidden_and_what_is_not_there_look_the_same() -> None:
    bob, there, nowhere = access(BOB), text_id(CUBE), text_id(b"x" * 16)
    hidden, missing = failure(lambda: bob.cube(there)), failure(lambda: bob.cube(nowhere))
    assert type(hidden) is type(missing) is MemDenied
    assert hidden.detail.replace(there, "ID") == missing.detail.replace(nowhere, "ID") and hidden.advice == missing.advice
    named, unnamed = failure(lambda: bob.namespace("alice")), failure(lambda: bob.namespace("nobody"))
    assert named.detail.replace("alice", "N") == unnamed.detail.replace("nobody", "N") and type(named) is type(unnamed)


def test_an_admin_is_told_what_is_not_there() -> None:
    admin = access(ADMIN)
    assert admin.cube(text_id(CUBE)).cube_id == CUBE and admin.namespace("alice/notes") == "alice/notes"
    assert type(failure(lambda: admin.cube(text_id(b"x" * 16)))) is MemNotFound
    assert type(failure(lambda: admin.namespace("nobody"))) is MemNotFound


def test_an_owner_owns_what_is_below_and_nothing_beside() -> None:
    alice = access(ALICE)
    assert [alice.sees(name) for name in ("alice", "alice/notes", "alice/new", "alicex", "bob", "new")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip
    assert alice.cube(text_id(CUBE)).namespace == "alice/notes"


def test_what_nobody_owns_may_be_made_by_anyone() -> None:
    bob = access(BOB)
    assert bob.target("new") == "new" and bob.target("bob/x") == "bob/x"
    assert type(failure(lambda: bob.target("alice/new"))) is MemDenied
    assert access(ADMIN).target("alice/new") == "alice/new"


def test_a_search_without_scopes_is_over_one_s_own() -> None:
    assert access(ADMIN).scopes() is None
    assert access(ALICE).scopes() == ["alice"] and access(Caller("uid:9", False)).scopes() == []


@given(st.binary(min_size=16, max_size=16))
def test_an_id_is_written_and_read_back(cube_id: bytes) -> None:
    import uuid

    assert raw_id(text_id(cube_id)) == cube_id and text_id(cube_id) == str(uuid.UUID(bytes=cube_id))


def test_no_call_lets_a_stranger_at_a_cube(k: Inside) -> None:
    """Every call that takes an id, asked by a stranger, about a cube of another's and about none: the same refusal."""
    cube = k("mem_alloc", ALICE, namespace="alice", content="secret")["cube_id"]
    other = k("mem_alloc", ALICE, namespace="alice", content="secret 2")["cube_id"]
    nowhere = "01890000-0000-7000-8000-000000000000"
    mine = k("mem_alloc", BOB, namespace="bob", content="own")["cube_id"]
    digest = k.digest

    def asked(target: str) -> list[str]:
        return [
            k.refusal(name, BOB, cube_id=target, **more)
            for name, more in (
                ("mem_read", {}), ("mem_stat", {}), ("mem_write", {"content": "x"}), ("mem_free", {}), ("mem_history", {}),
                ("mem_diff", {"a": 1, "b": 1}), ("mem_rollback", {"to_version": 1}), ("mem_freeze", {}), ("mem_thaw", {}),
                ("mem_archive", {}), ("mem_restore", {}), ("mem_unfuse", {}), ("mem_shred", {}), ("mem_read", {"version": 9}),
                ("mem_read", {"at_offset": 0}), ("mem_write", {"content": "x", "expect_version": 9}),
            )
        ] + [
            k.refusal("mem_fuse", BOB, cube_ids=[mine, target], strategy="merge"),
            k.refusal("mem_compose", BOB, cube_ids=[mine, target], namespace="bob"),
            k.refusal("mem_alloc", BOB, namespace="bob", content="x", parents=[target]),
        ]  # fmt: skip

    assert asked(cube) == asked(nowhere) == asked(other)
    assert set(asked(cube)) == {"EACCES"}
    for call, args in (("mem_alloc", {"namespace": "alice/x", "content": "x"}), ("mem_fork", {"namespace": "alice", "to": "b"}),
                       ("mem_fork", {"namespace": "bob", "to": "alice/x"}), ("mem_shred", {"namespace": "alice"})):  # fmt: skip
        assert k.refusal(call, BOB, **args) == "EACCES"
    assert k.digest == digest
    assert [one["cube_id"] for one in k("mem_list", BOB)["cubes"]] == [mine]
    assert [hit["cube_id"] for hit in k("mem_search", BOB, query="secret own", mode="lexical")["hits"]] in ([mine], [])
