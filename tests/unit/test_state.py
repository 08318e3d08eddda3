"""Rows and their digest: a sum that does not depend on order or on the way, scans over overlays, ids that sort by age."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memos_drivers.stores.memory import MemoryReader
from memos_kernel import state
from memos_kernel.events import Slot, pack
from memos_kernel.state import Cube, Namespace, Tables, Version, cube_id_of, row_hash

CUBE = Cube(1, b"c" * 16, "n", "plaintext", 5, 5, 1, "generated", 5, Slot(1, 0), None, None, None)


def cube(name: bytes, **fields: Any) -> Cube:
    return CUBE._replace(cube_id=name.ljust(16, b"."), **fields)


def version(number: int, seq: int, of: bytes = CUBE.cube_id) -> Version:
    return Version(1, of, number, seq, seq, "uid:1", 16, None, b"p" * 16, 3, b"d" * 32, Slot(1, 0), b"i" * 16, b"e" * 32,
                   Slot(1, 0), [], None)  # fmt: skip


def tables(source: MemoryReader | None = None, digest: int = 0) -> Tables:
    return Tables(source or MemoryReader(), digest)


def from_scratch(t: Tables) -> int:
    """The digest by its definition: the sum over all hashed rows."""
    total: int = 0
    for table in (b"c", b"n"):
        total += sum(row_hash(table + value) for _key, value in t.scan(table))
    total += sum(row_hash(b"v" + pack(row)) for row in all_versions(t))
    return total % 2**4096


def all_versions(t: Tables) -> list[Version]:
    return [state.decode_version(value)[0] for _key, value in t.scan(b"v")]


def test_the_digest_is_the_sum_over_the_rows() -> None:
    t = tables()
    assert t.digest == 0
    t.put_cube(CUBE, new=True)
    t.put_namespace(Namespace(1, "n", "uid:1", 5, 5, None))
    for number in (1, 2, 3):
        t.put_version(version(number, 5 + number), b"private")
    t.put_cube(CUBE._replace(version=3, state="activated"))
    assert t.digest == from_scratch(t) != 0


def test_a_row_that_changes_and_changes_back_leaves_no_trace() -> None:
    t = tables()
    t.put_cube(CUBE, new=True)
    before = t.digest
    t.put_cube(CUBE._replace(state="frozen"))
    assert t.digest != before
    t.put_cube(CUBE)
    assert t.digest == before


@given(st.permutations(range(8)))
def test_the_digest_does_not_depend_on_the_order_of_making(order: list[int]) -> None:
    made = [cube(bytes([n])) for n in range(8)]
    one, other = tables(), tables()
    for n in range(8):
        one.put_cube(made[n], new=True)
        other.put_cube(made[order[n]], new=True)
    assert one.digest == other.digest


def test_the_digest_covers_every_field_of_every_row() -> None:
    for name in CUBE._fields:
        value: Any = {"slot": Slot(9, 9), "fmt": 2, "forked_from": (b"s" * 16, 1)}.get(name, b"z" * 16)
        one, other = tables(), tables()
        one.put_cube(CUBE, new=True)
        other.put_cube(CUBE._replace(**{name: value}), new=True)
        assert one.digest != other.digest, name


def test_a_row_counts_in_its_table() -> None:
    """The same bytes as a cube and as a namespace are two different rows."""
    assert row_hash(b"c" + b"row") != row_hash(b"n" + b"row")


def test_what_is_not_state_is_not_in_the_digest() -> None:
    t = tables()
    for key in (b"lx\0y", b"sx", b"dx", b"gx", b"fx", b"ex", b"kx", b"rx", b"xx", b"mx"):
        t.put(key, b"value")
    assert t.digest == 0


def test_a_private_ciphertext_is_covered_by_its_digest_only() -> None:
    """So a view without ciphertexts has the same digest."""
    one, other = tables(), tables()
    one.put_version(version(1, 5), b"ciphertext")
    other.put_version(version(1, 5), b"")
    assert one.digest == other.digest


# -- the overlay -------------------------------------------------------------------------------------------------------

keys = st.binary(max_size=3).map(lambda b: bytes(x % 3 for x in b))
rows = st.binary(min_size=1, max_size=3).map(lambda b: bytes(x % 3 for x in b))
changes = st.dictionaries(rows, st.none() | st.binary(max_size=2), max_size=12)


bases = st.dictionaries(rows, st.binary(max_size=2), max_size=12)


@settings(max_examples=300)
@given(bases, st.lists(changes, max_size=3), keys, st.none() | keys, st.booleans())
def test_reads_through_an_overlay_are_reads_of_one_map(
    base: dict[bytes, bytes], layers: list[dict[bytes, bytes | None]], prefix: bytes, start: bytes | None, reverse: bool
) -> None:
    t = tables(MemoryReader(dict(base)))
    model = dict(base)
    for layer in layers:
        for key, value in layer.items():
            t.put(key, value)
            if value is None:
                model.pop(key, None)
            else:
                model[key] = value
    assert {key: t.get(key) for key in {*base, *model}} == {key: model.get(key) for key in {*base, *model}}
    if start is not None:
        start = prefix + start
    rows = sorted(((k, v) for k, v in model.items() if k.startswith(prefix)), reverse=reverse)
    if start is not None:
        rows = [row for row in rows if (row[0] <= start if reverse else row[0] >= start)]
    assert list(t.scan(prefix, start, reverse)) == rows


@given(st.dictionaries(rows, st.binary(max_size=2), max_size=8), st.lists(changes, min_size=1, max_size=5))
def test_settling_changes_in_order_shows_the_same_rows_throughout(
    base: dict[bytes, bytes], layers: list[dict[bytes, bytes | None]]
) -> None:
    """As commits do: batches become durable behind decisions that go on, and no moment shows anything else."""
    source = MemoryReader(dict(base))
    t = tables(source)
    model: dict[bytes, bytes] = dict(base)
    taken: list[dict[bytes, bytes | None]] = []
    for layer in layers:
        for key, value in layer.items():
            t.put(key, value)
            if value is None:
                model.pop(key, None)
            else:
                model[key] = value
        taken.append(t.take()[0])
    expected = sorted(model.items())
    for batch in taken:
        assert list(t.scan(b"")) == expected
        for key, value in batch.items():
            source.put(key, value)
        assert list(t.scan(b"")) == expected
        t.settle(batch)
    assert list(t.scan(b"")) == expected and t.overlay == {}


# -- ids ---------------------------------------------------------------------------------------------------------------


def test_ids_sort_by_the_record_s_time_and_then_by_order_within_it() -> None:
    rng = random.Random(1)
    moments = sorted({rng.randrange(10**18, 2 * 10**18) // 1000 * 1000 for _ in range(200)})
    ids = [cube_id_of(time, order, rng.getrandbits(64)) for time in moments for order in range(5)]
    assert ids == sorted(ids) and len(set(ids)) == len(ids)


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**24 - 1), st.integers(0, 2**80))
def test_an_id_is_a_uuid_of_version_7_with_the_time_in_front(time: int, order: int, tail: int) -> None:
    import uuid

    made = uuid.UUID(bytes=cube_id_of(time, order, tail))
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert made.int >> 80 == time // 1_000_000


# -- views -------------------------------------------------------------------------------------------------------------


def forked(t: Tables, source: Cube, name: bytes, at: int) -> Cube:
    made = cube(name, forked_from=(source.cube_id, at), version=at, slot=None)
    t.put_cube(made, new=True)
    t.put(b"g" + source.cube_id + made.cube_id, b"")
    return made


def test_heirs_are_forks_of_forks_as_far_as_they_inherit() -> None:
    t = tables()
    root = cube(b"root", version=9)
    t.put_cube(root, new=True)
    a = forked(t, root, b"a", 5)
    b = forked(t, a, b"b", 8)  # inherits a's own versions 6 to 8 too
    c = forked(t, b, b"c", 3)
    forked(t, cube(b"stranger"), b"d", 1)
    assert t.heirs([root.cube_id]) == {a.cube_id: 5, b.cube_id: 5, c.cube_id: 3}
    assert t.heirs([a.cube_id]) == {b.cube_id: 8, c.cube_id: 3}
    assert t.heirs([b.cube_id, root.cube_id]) == {a.cube_id: 5, b.cube_id: 5, c.cube_id: 3}
    assert t.heirs([c.cube_id]) == t.heirs([]) == {}


def test_versions_are_read_through_forks_and_own_ones_first() -> None:
    t = tables()
    source = CUBE._replace(version=2)
    t.put_cube(source, new=True)
    for number in (1, 2):
        t.put_version(version(number, 5 + number), b"")
    fork = forked(t, source, b"f", 2)._replace(version=3)
    t.put_version(version(3, 20, fork.cube_id), b"")
    found = [t.version(fork, number) for number in (1, 2, 3, 4)]
    assert [None if one is None else (one[0].cube_id, one[0].version) for one in found] == [
        (source.cube_id, 1), (source.cube_id, 2), (fork.cube_id, 3), None,
    ]  # fmt: skip


@pytest.mark.parametrize("newest", [1, 2, 3, 7, 8])
def test_the_version_at_an_offset_is_the_last_one_written_by_then(newest: int) -> None:
    t = tables()
    one = CUBE._replace(version=newest, created_seq=10)
    t.put_cube(one, new=True)
    for number in range(1, newest + 1):
        t.put_version(version(number, 10 * number), b"")
    assert t.version_at(one, 9) is None
    for seq in range(10, 10 * newest + 15):
        assert t.version_at(one, seq) == min(seq // 10, newest)


def test_a_namespace_s_owner_is_its_nearest_ancestor_s() -> None:
    t = tables()
    for name, owner in (("a", "uid:1"), ("a/b/c", "uid:2")):
        t.put_namespace(Namespace(1, name, owner, 1, 1, None))
    owners = {name: t.owner(name) for name in ("a", "a/b", "a/b/c", "a/b/c/d", "ab", "b")}
    assert owners == {"a": "uid:1", "a/b": "uid:1", "a/b/c": "uid:2", "a/b/c/d": "uid:2", "ab": None, "b": None}


def test_namespaces_at_or_below_a_name_are_whole_words() -> None:
    t = tables()
    names = ["a", "a b", "a-b", "a/b", "a/b/c", "a0", "ab", "b"]
    for name in names:
        t.put_namespace(Namespace(1, name, "uid:1", 1, 1, None))
    assert [n.name for n in t.namespaces("a")] == ["a", "a/b", "a/b/c"]
    assert [n.name for n in t.namespaces("a/b")] == ["a/b", "a/b/c"]
    assert sorted(n.name for n in t.namespaces()) == sorted(names)
