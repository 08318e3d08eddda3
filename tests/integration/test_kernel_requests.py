"""Repeated request ids: the first answer for the same call, EINVAL for another one, also when the content is erased.

After a shred the private part cannot be compared; what is public can: cubes, namespaces, counts, versions, lives.
"""

from __future__ import annotations

from typing import Any

import pytest
from tests.inside import Inside


def alloc(k: Inside, content: str, **args: Any) -> str:
    cube_id: str = k("mem_alloc", namespace="alice", content=content, **args)["cube_id"]
    return cube_id


def is_remembered(k: Inside, name: str, args: dict[str, Any], others: list[dict[str, Any]]) -> None:
    """The call's first answer stands, before and after its cubes are shredded; the others are refused."""
    first = k(name, request_id="r", **args)
    made = [item["cube_id"] for item in first["items"]] if "items" in first else [first["cube_id"]]
    for _when in ("before", "after"):
        assert k(name, request_id="r", **args) == first
        for other in others:
            assert k.refusal(name, request_id="r", **{**args, **other}) == "EINVAL", other
        for cube_id in made:
            if k("mem_stat", cube_id=cube_id)["header"]["state"] != "shredded":
                k("mem_shred", cube_id=cube_id)
    assert k.fatal == []


def test_many_cubes(k: Inside) -> None:
    items = [{"namespace": "alice", "content": "one"}, {"namespace": "bob", "content": "two"}]
    others = [items[:1], [*items, items[0]], items[::-1], [items[0], {**items[1], "namespace": "carol"}]]
    is_remembered(k, "mem_alloc_many", {"items": items}, [{"items": other} for other in others])


def test_parents_and_life(k: Inside) -> None:
    a, b = alloc(k, "a"), alloc(k, "b")
    args = {"namespace": "alice", "content": "x", "parents": [a], "ttl_s": 1000}
    is_remembered(
        k, "mem_alloc", args, [{"parents": [b]}, {"parents": [a, b]}, {"parents": None}, {"ttl_s": 7}, {"ttl_s": None}]
    )


@pytest.mark.parametrize("name", ["mem_fuse", "mem_compose"])
def test_what_is_made_of_others(k: Inside, name: str) -> None:
    a, b, c = alloc(k, "a"), alloc(k, "b"), alloc(k, "c")
    args: dict[str, Any] = {"cube_ids": [a, b], "namespace": "alice"}
    if name == "mem_fuse":
        args["strategy"] = "merge"
    others = [{"cube_ids": other} for other in ([b, a], [a, c], [a], [a, b, c])]
    is_remembered(k, name, args, [*others, {"namespace": "bob"}])


def test_a_fusion_that_names_no_namespace(k: Inside) -> None:
    a, b = alloc(k, "a"), alloc(k, "b")
    is_remembered(k, "mem_fuse", {"cube_ids": [a, b], "strategy": "merge"}, [{"cube_ids": [b, a]}])


def test_writes_and_rollbacks(k: Inside) -> None:
    one, other = alloc(k, "1"), alloc(k, "1")
    for cube_id in (one, other):
        k("mem_write", cube_id=cube_id, content="2")
        k("mem_write", cube_id=cube_id, content="3")
    is_remembered(k, "mem_rollback", {"cube_id": one, "to_version": 1}, [{"to_version": 2}, {"cube_id": other}])


def test_a_write(k: Inside) -> None:
    one, other = alloc(k, "1"), alloc(k, "1")
    args = {"cube_id": one, "content": "2", "ttl_s": 1000}
    is_remembered(k, "mem_write", args, [{"cube_id": other}, {"ttl_s": 2000}])


def test_a_state(k: Inside) -> None:
    one, other = alloc(k, "1"), alloc(k, "1")
    is_remembered(k, "mem_archive", {"cube_id": one}, [{"cube_id": other}])
