"""Single calls that were found to go wrong, or easily could: each must be answered, and rightly."""

from __future__ import annotations

import math

import pytest
from tests.inside import ALICE, BOB, Inside, replay

from memos_syscalls import limits


def test_a_large_write_to_a_shredded_cube_is_refused(k: Inside) -> None:
    cube = k("mem_alloc", namespace="alice", content="small")["cube_id"]
    k("mem_shred", cube_id=cube)
    assert k.refusal("mem_write", cube_id=cube, content="x" * (limits.PAYLOAD_CHUNK_BYTES + 1)) == "ESHREDDED"
    assert k.refusal("mem_write", ALICE, cube_id=cube, content="x" * (limits.PAYLOAD_CHUNK_BYTES + 1)) == "EACCES"
    assert k.fatal == []


def test_large_content_reads_back(k: Inside) -> None:
    for size in (
        limits.PAYLOAD_INLINE_BYTES_MAX,
        limits.PAYLOAD_CHUNK_BYTES,
        limits.PAYLOAD_CHUNK_BYTES + 1,
        limits.CONTENT_INLINE_BYTES_MAX,
    ):
        content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
        cube = k("mem_alloc", namespace="alice", content=content)["cube_id"]
        assert k("mem_read", cube_id=cube)["content"] == content
        k("mem_write", cube_id=cube, content=content[::-1])
        assert k("mem_read", cube_id=cube)["content"] == content[::-1]
        assert k("mem_read", cube_id=cube, version=1)["content"] == content
    k.crash()
    assert k("mem_read", cube_id=cube, version=1)["content"] == content


def test_a_second_hello_is_answered(k: Inside) -> None:
    assert k.refusal("sys_hello", abi=1) in ("EINVAL", "EPROTO", "ENOSYS")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, 1e300])
def test_a_strange_vector_stops_no_search(k: Inside, value: float) -> None:
    good = k("mem_alloc", namespace="alice", content="Biscuit the beagle", embedding=[1.0, 0.0, 0.0, 0.0])["cube_id"]
    try:
        k("mem_alloc", namespace="alice", content="odd one", embedding=[value] * 4)
    except Exception as error:
        assert "EINVAL" in str(error)
    k("mem_alloc", namespace="alice", content="short one", embedding=[1.0])
    later = k("mem_alloc", namespace="alice", content="Biscuit the whippet")["cube_id"]
    hits = k("mem_search", query="Biscuit", mode="lexical")["hits"]
    assert {hit["cube_id"] for hit in hits} == {good, later}
    try:
        hits = k("mem_search", query="", query_embedding=[value] * 4)["hits"]
    except Exception as error:
        assert "EINVAL" in str(error) or "EMODEL" in str(error)
    hits = k("mem_search", query="", mode="dense", query_embedding=[1.0, 0.0, 0.0, 0.0])["hits"]
    assert hits[0]["cube_id"] == good


def test_a_repeated_request_id_that_names_another_namespace_is_refused_also_after_the_shred(k: Inside) -> None:
    first = k("mem_alloc", namespace="alice", content="one", request_id="r1")
    assert k("mem_alloc", namespace="alice", content="one", request_id="r1") == first
    assert k.refusal("mem_alloc", namespace="alice", content="two", request_id="r1") == "EINVAL"
    assert k.refusal("mem_alloc", namespace="bob", content="one", request_id="r1") == "EINVAL"
    k("mem_shred", cube_id=first["cube_id"])
    assert k("mem_alloc", namespace="alice", content="one", request_id="r1") == first
    assert k.refusal("mem_alloc", namespace="bob", content="one", request_id="r1") == "EINVAL"


def test_a_request_id_belongs_to_its_principal(k: Inside) -> None:
    a = k("mem_alloc", ALICE, namespace="alice", content="one", request_id="r1")
    b = k("mem_alloc", BOB, namespace="bob", content="two", request_id="r1")
    assert a["cube_id"] != b["cube_id"]


def test_the_reply_to_a_repeated_shred_waits_until_the_key_is_gone(k: Inside) -> None:
    cube = k("mem_alloc", namespace="alice", content="one")["cube_id"]
    slot = k.kernel.tables.cube(bytes.fromhex(cube.replace("-", "")))
    assert slot is not None and slot.slot is not None
    k.submit("mem_shred", cube_id=cube, request_id="r")
    again = k.submit("mem_shred", cube_id=cube, request_id="r")
    k.wait(again)
    assert k.keystores[0].key(slot.slot) is None


def test_two_writers_who_expect_one_version_do_not_both_win(k: Inside) -> None:
    cube = k("mem_alloc", namespace="alice", content="one")["cube_id"]
    calls = [k.submit("mem_write", cube_id=cube, content=f"by {n}", expect_version=1) for n in range(8)]
    outcomes: list[str] = []
    for call in calls:
        try:
            outcomes.append(f"version {k.wait(call)['version']}")
        except Exception as error:
            outcomes.append(str(error)[:9])
    assert outcomes == ["version 2", *["ECONFLICT"] * 7]


def test_a_read_on_the_same_connection_sees_the_write_before_it(k: Inside) -> None:
    cube = k("mem_alloc", namespace="alice", content="one")["cube_id"]
    for n in range(20):
        k.submit("mem_write", cube_id=cube, content=f"n{n}")
        assert k.wait(k.submit("mem_read", cube_id=cube))["content"] == f"n{n}"


def test_keys_that_no_record_names_do_not_outlive_their_epoch(k: Inside) -> None:
    cubes = [k("mem_alloc", namespace="alice", content=f"{n}")["cube_id"] for n in range(5)]
    k("mem_shred", cube_id=cubes[-1])
    k.crash()
    assert len(list(k.keystores[0].live_slots(1))) == 4
    k("mem_alloc", namespace="alice", content="more")
    k.crash()
    assert len(list(k.keystores[0].live_slots(1))) == 4
    assert len(list(k.keystores[0].live_slots(2))) == 1


def test_a_life_that_runs_out_is_over_before_the_tick_and_stays_over_after(k: Inside) -> None:
    cube = k("mem_alloc", namespace="alice", content="short", ttl_s=5)["cube_id"]
    held = k("mem_alloc", namespace="alice", content="held", ttl_s=5)["cube_id"]
    k("mem_freeze", cube_id=held)
    k.clock.advance(6)  # type: ignore[attr-defined]  # pyright: ignore
    assert k.refusal("mem_read", cube_id=cube) == "ENOENT"
    before = k.digest
    assert k.refusal("mem_write", cube_id=cube, content="x") == "ENOENT"
    assert k.digest == before
    k.tick()
    assert k.digest != before
    assert k("mem_read", cube_id=cube, version=1)["content"] == "short"
    assert k("mem_read", cube_id=held)["content"] == "held"
    k("mem_thaw", cube_id=held)
    assert k.refusal("mem_read", cube_id=held) == "ENOENT"
    k.reopen()
    assert replay(k.log) == (k.digest, k.rows())


def test_many_cubes_in_one_call_are_all_made_or_none(k: Inside) -> None:
    k("mem_alloc", BOB, namespace="bob", content="mine")
    before = k.digest
    items = [{"namespace": "alice", "content": "a"}, {"namespace": "bob", "content": "b"}]
    assert k.refusal("mem_alloc_many", ALICE, items=items) == "EACCES"
    assert k.digest == before
    answer = k("mem_alloc_many", ALICE, items=[{"namespace": "alice", "content": f"{n}"} for n in range(1024)])
    assert len(answer["items"]) == 1024
    found = k("mem_list", ALICE, limit=1000)
    assert len(found["cubes"]) == 1000
    assert len(k("mem_list", ALICE, limit=1000, cursor=found["next_cursor"])["cubes"]) == 24
    k.crash()
    assert replay(k.log) == (k.digest, k.rows())


def test_a_repeat_of_many_gets_the_first_answer(k: Inside) -> None:
    items = [{"namespace": "alice", "content": f"{n}"} for n in range(3)]
    first = k("mem_alloc_many", items=items, request_id="r")
    assert k("mem_alloc_many", items=items, request_id="r") == first
    assert k.refusal("mem_alloc_many", items=items[:2], request_id="r") == "EINVAL"


def test_key_blocks_made_at_the_same_time_do_not_overwrite_each_other(k: Inside) -> None:
    """Right after a start the first block is still being made when long writes ask for more."""
    k.crash()
    made = [k.submit("mem_alloc", namespace="alice", content=f"{n}") for n in range(200)]
    cubes = [k.wait(future)["cube_id"] for future in made]
    many = [{"namespace": "alice", "content": f"{n}"} for n in range(1024)]
    batches = [k.submit("mem_alloc_many", items=many) for _ in range(4)]
    cubes += [item["cube_id"] for batch in batches for item in k.wait(batch)["items"]]
    k.crash()
    assert [k("mem_read", cube_id=cube)["content"] for cube in cubes] == [str(n) for n in [*range(200), *list(range(1024)) * 4]]
