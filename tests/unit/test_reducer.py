"""apply: the same record on the same rows gives the same rows, and a record that does not fit is damage."""

from __future__ import annotations

from typing import Any

import pytest
from tests.inside import ALICE, Inside

from memos_drivers.stores.memory import MemoryReader
from memos_kernel import crypto
from memos_kernel import events as ev
from memos_kernel.eventlog.base import records
from memos_kernel.events import Damaged, Event, Record
from memos_kernel.reducer import RULES, apply, derived_id
from memos_kernel.state import Cube, Superseded, Tables

A, B, F = b"a" * 16, b"b" * 16, b"f" * 16
PRIVATE = [b"i" * 16, b"ciphertext"]


def record(seq: int, *events: Event, principal: str = "uid:1", mac: bytes | None = None) -> Record:
    return Record(1, seq, 1, 1000 * (seq + 1), principal, 16, mac, None, list(events))


def payload(content: bytes = b"sealed", slot: tuple[int, int] = (1, 0)) -> list[Any]:
    return [b"p" * 16, len(content), crypto.sha256(content), slot, content]


def allocated(cube_id: bytes, namespace: str = "n", expires_at: int | None = None, lineage: list[Any] | None = None) -> Event:
    slot = [1, cube_id[0]]
    return Event(ev.ALLOCATED, 1, [cube_id, namespace, "plaintext", expires_at, payload(), slot, lineage or []], PRIVATE)


def written(cube_id: bytes, version: int) -> Event:
    return Event(ev.WRITTEN, 1, [cube_id, version, None, payload(), [1, cube_id[0]], [], None], PRIVATE)


def world(*made: Record) -> Tables:
    tables = Tables(MemoryReader(), 0)
    for one in made:
        apply(tables, one)
    return tables


def cube(tables: Tables, cube_id: bytes) -> Cube:
    found = tables.cube(cube_id)
    assert found is not None
    return found


def test_every_event_has_exactly_one_rule() -> None:
    assert RULES.keys() == ev.EVENTS.keys()


@pytest.mark.parametrize(
    ("name", "event"),
    [
        ("an unknown event", Event("cube.teleported", 1, [])),
        ("a write to nothing", written(B, 2)),
        ("a version that skips one", written(A, 3)),
        ("a version that stands already", written(A, 1)),
        ("a state of nothing", Event(ev.STATE_CHANGED, 1, [B, 1, "frozen", "freeze", None])),
        ("the end of nothing", Event(ev.EXPIRED, 1, [[[B, 1]]])),
        ("a merger of nothing", Event(ev.MERGED, 1, [A, [[B, 1]]])),
        ("a fact of nothing outdated", Event(ev.SUPERSEDED, 1, [[[B, 1, A, 1]]])),
        ("a version outdated that is none", Event(ev.SUPERSEDED, 1, [[[A, 2, A, 1]]])),
        ("an undone merger of nothing", Event(ev.UNMERGED, 1, [A, 1, [B], None])),
    ],
)
def test_a_record_that_does_not_fit_is_damage_and_says_which(name: str, event: Event) -> None:
    tables = world(record(0, allocated(A)))
    with pytest.raises(Damaged, match="record 7"):
        apply(tables, record(7, event))


def test_apply_gives_the_same_rows_every_time(k: Inside) -> None:
    """A real log, applied twice, the second time onto rows that were written out and read back after each record."""
    ids = [k("mem_alloc", ALICE, namespace="alice/a", content=f"{n}", ttl_s=3600 if n else None)["cube_id"] for n in range(4)]
    k("mem_fuse", ALICE, cube_ids=ids[:2], strategy="merge")
    k("mem_write", ALICE, cube_id=ids[2], content="x")
    k("mem_fork", ALICE, namespace="alice", to="copy")
    k("mem_shred", ALICE, cube_id=ids[0])
    one, source = Tables(MemoryReader(), 0), MemoryReader()
    two = Tables(source, 0)
    for _raw, made in records(k.log):
        apply(one, made)
        apply(two, made)
        changes, _payloads = two.take()
        for key, value in changes.items():
            source.put(key, value)
        two.settle(changes)
        assert one.digest == two.digest
    assert sorted((key, value) for key, value in one.overlay.items() if value is not None) == list(two.scan(b""))


def test_the_first_cube_makes_its_namespaces_for_its_principal() -> None:
    tables = world(record(0, allocated(A, "x/y/z")), record(1, allocated(B, "x/y/w"), principal="uid:2"))
    assert [(n.name, n.owner) for n in tables.namespaces()] == [
        ("x", "uid:1"), ("x/y", "uid:1"), ("x/y/w", "uid:1"), ("x/y/z", "uid:1"),
    ]  # fmt: skip


def test_a_cube_s_past_states_are_kept() -> None:
    tables = world(
        record(0, allocated(A)), record(1, written(A, 2)),
        record(2, Event(ev.STATE_CHANGED, 1, [A, 2, "frozen", "freeze", None])),
        record(3, Event(ev.STATE_CHANGED, 1, [A, 2, "activated", "thaw", None])), record(4, written(A, 3)),
    )  # fmt: skip
    states = [tables.state_at(cube(tables, A), seq) for seq in range(5)]
    assert states == ["generated", "activated", "frozen", "activated", "activated"]


def test_expiry_is_watched_until_it_is_recorded_or_lifted() -> None:
    tables = world(record(0, allocated(A, expires_at=5)), record(1, allocated(B, expires_at=7)))
    assert list(tables.due(4)) == [] and list(tables.due(5)) == [A] and list(tables.due(9)) == [A, B]
    apply(tables, record(2, written(B, 2)))
    assert list(tables.due(9)) == [A]
    apply(tables, record(3, Event(ev.EXPIRED, 1, [[[A, 1]]])))
    assert list(tables.due(9)) == [] and cube(tables, A).state == "expired"


def test_mergers_are_undone_for_the_sources_that_are_named() -> None:
    tables = world(record(0, allocated(A)), record(1, allocated(B)),
                   record(2, allocated(F), Event(ev.MERGED, 1, [F, [[A, 1], [B, 1]]])))  # fmt: skip
    assert [one.cube_id for one in tables.merged(F)] == [A, B]
    apply(tables, record(3, Event(ev.UNMERGED, 1, [F, 1, [A, B], None])))
    assert [cube(tables, one).state for one in (A, B, F)] == ["activated", "activated", "expired"]
    assert list(tables.merged(F)) == [] and cube(tables, A).merged_into is None


def test_what_supersedes_what_is_found_from_both_ends() -> None:
    tables = world(record(0, allocated(A)), record(1, allocated(B), Event(ev.SUPERSEDED, 1, [[[A, 1, B, 1]]])))
    apply(tables, record(2, written(B, 2), Event(ev.SUPERSEDED, 1, [[[A, 1, B, 2]]])))
    pairs = [Superseded(A, 1, B, 1, 1), Superseded(A, 1, B, 2, 2)]
    assert list(tables.superseding(A)) == pairs == list(tables.supersedes(B))
    assert list(tables.superseding(B)) == [] == list(tables.supersedes(A))


def test_a_fork_takes_pairs_along_whose_cubes_it_takes_along() -> None:
    tables = world(record(0, allocated(A)), record(1, allocated(B), Event(ev.SUPERSEDED, 1, [[[A, 1, B, 1]]])),
                   record(2, written(B, 2), Event(ev.SUPERSEDED, 1, [[[A, 1, B, 2]]])))  # fmt: skip
    apply(tables, record(3, Event(ev.FORKED, 1, ["n", "both", 1, 2, b"h" * 32])))
    apply(tables, record(4, Event(ev.FORKED, 1, ["n", "one", 0, 1, b"h" * 32])))
    older, newer = tables.cubes_in("both")
    assert list(tables.superseding(older)) == [Superseded(older, 1, newer, 1, 3)], "as it was then"
    assert [list(tables.superseding(one)) for one in tables.cubes_in("one")] == [[]]


def test_an_erasure_keeps_rows_and_frees_sources() -> None:
    tables = world(record(0, allocated(A)), record(1, allocated(F, lineage=[[A, 1, 0]]), Event(ev.MERGED, 1, [F, [[A, 1]]])))
    apply(tables, record(2, Event(ev.SHREDDED, 1, [None, [F], [], b"h" * 32])))
    assert (cube(tables, F).state, cube(tables, A).state) == ("shredded", "activated")
    assert tables.own_version(F, 1) is not None, "the audit trail stays"
    assert list(tables.shreds_after(1)) == [2] and list(tables.shreds_after(2)) == []


def test_a_fork_s_ids_follow_from_the_record_alone() -> None:
    base = [record(0, allocated(A)), record(1, allocated(B))]
    fork = record(2, Event(ev.FORKED, 1, ["n", "m", 1, 2, b"h" * 32]))
    one, two = world(*base, fork), world(*base, fork)
    made = list(one.cubes_in("m"))
    assert made == list(two.cubes_in("m")) and len(made) == 2 and one.digest == two.digest
    assert made == [derived_id(fork.time, 2, order, source) for order, source in enumerate((A, B))]
    assert [tuple(cube(one, new).forked_from or ()) for new in made] == [(A, 1), (B, 1)]
    assert set(made) != set(world(*base, fork._replace(seq=3)).cubes_in("m"))


def test_a_fork_of_the_past_holds_what_lived_then() -> None:
    tables = world(record(0, allocated(A)), record(1, written(A, 2)), record(2, allocated(B)),
                   record(3, Event(ev.FORKED, 1, ["n", "m", 0, 1, b"h" * 32])))  # fmt: skip
    (new,) = tables.cubes_in("m")
    assert (cube(tables, new).version, *(cube(tables, new).forked_from or ())) == (1, A, 1)
    found = tables.version(cube(tables, new), 1)
    assert found is not None and found[0].cube_id == A


def test_a_request_id_is_kept_as_its_mac() -> None:
    tables = world(record(0, allocated(A), mac=b"m" * 32))
    assert tables.request(b"m" * 32) == 0 and tables.request(b"x" * 32) is None
