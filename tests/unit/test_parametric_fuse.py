"""Adapters made into one: by merging their tensors, or by training one anew on everybody's texts."""

from __future__ import annotations

from typing import Any

import pytest
from tests import lm
from tests.inside import ADMIN, ALICE, BOB
from tests.parametric import Lessons, lessons

from memos_drivers.table import MERGES
from memos_syscalls import limits

tiny = lm.tiny
k = lessons
ANNA, BORIS = "Anna lives in Lisbon.", "Boris works as a chemist."


def fused(k: Lessons, *cubes: str, strategy: str = "cat", **params: Any) -> dict[str, Any]:
    return k("mem_fuse", cube_ids=list(cubes), strategy=strategy, params=params)


def pair(k: Lessons, **params: Any) -> tuple[list[str], list[str]]:
    """Two texts, and an adapter of each."""
    texts = [k.alloc(ANNA), k.alloc(BORIS)]
    return texts, [k.distil(text, **params) for text in texts]


def test_a_fused_adapter_knows_what_its_parents_know_and_unfusing_gives_them_back(k: Lessons) -> None:
    text = k.alloc(ANNA)
    twins = [k.distil(text)]
    content = k("mem_map", cube_id=twins[0])["content"]
    twins.append(k("mem_alloc", namespace="alice", form="parametric", content=content)["cube_id"])
    before = [k.says("Anna lives in", twin) for twin in twins]
    assert before[0] == before[1] and before[0].startswith("Lisbon")
    made = fused(k, *twins, strategy="cat", name="both", weights=[0.5, 0.5], seed=7)
    assert made["sources"] == [{"cube_id": twin, "version": 1} for twin in twins]
    header = k.header(made["cube_id"])
    assert header["form"] == "parametric" and header["name"] == "both" and header["bytes"] > 0
    assert [(p["cube_id"], p["version"], p["role"]) for p in header["parents"]] == [(twin, 1, "content") for twin in twins]
    recipe = header["recipe"]
    assert {name: recipe[name] for name in ("method", "strategy", "weights", "density", "seed", "rank", "depth")} == {
        "method": "fuse", "strategy": "cat", "weights": [0.5, 0.5], "density": 0.5, "seed": 7, "rank": 16, "depth": 1,
    }  # fmt: skip
    assert [(row["probes"], row["right"], row["kept"]) for row in recipe["scores"]["parents"]] == [(2, 2, 2)] * 2
    assert recipe["scores"]["share"] == 1 and recipe["digest"].startswith("sha256:")
    assert {k.header(twin)["state"] for twin in twins} == {"merged"}
    assert {k.header(twin)["merged_into"] for twin in twins} == {made["cube_id"]}
    assert k.header(text)["state"] == "generated", "the text stays as it is"
    assert k.says("Anna lives in", made["cube_id"]).startswith("Lisbon")
    assert sorted(k("mem_unfuse", cube_id=made["cube_id"])["restored"]) == sorted(twins)
    assert [k.says("Anna lives in", twin) for twin in twins] == before


def test_a_fused_adapter_acts_on_the_subjects_of_all_its_parents(k: Lessons) -> None:
    _texts, parents = pair(k)
    cube = fused(k, *parents, min_share=0)["cube_id"]
    recipe = k.header(cube)["recipe"]
    assert recipe["subjects"] == ["Anna", "Boris"] and recipe["facts"] == 2 and recipe["probes"] == 4
    for prompt, how in (("Where is Anna?", "acted"), ("Where is Boris?", "acted"), ("Where is Carla?", "off")):
        assert k.ask(prompt, cube)["attached"][0]["how"] == how


def test_the_same_seed_makes_the_same_bytes_and_every_strategy_an_adapter(k: Lessons) -> None:
    _texts, parents = pair(k)
    found: dict[str, set[str]] = {}
    for strategy in (*MERGES, "dare_linear"):
        cube = fused(k, *parents, strategy=strategy, min_share=0, seed=3, weights=[0.5, 0.5])["cube_id"]
        found.setdefault(strategy, set()).add(k.header(cube)["recipe"]["digest"])
        k("mem_unfuse", cube_id=cube)
    assert [len(digests) for digests in found.values()] == [1] * len(MERGES)


def test_a_fused_adapter_that_forgot_what_a_parent_knows_is_not_kept(k: Lessons) -> None:
    _texts, parents = pair(k)
    error = k.failure("mem_fuse", cube_ids=parents, strategy="cat", params={"weights": [1, -1]})
    assert error.errno == "ELOWQUALITY" and '"parents"' in error.detail and '"kept"' in error.detail
    assert {k.header(parent)["state"] for parent in parents} == {"generated"}
    assert [k.derived(parent) for parent in parents] == [[], []]


def test_adapters_of_other_ranks_are_refused_by_name_of_what_takes_them(k: Lessons) -> None:
    text, other = k.alloc(ANNA), k.alloc(BORIS)
    parents = [k.distil(text, rank=4), k.distil(other, rank=8)]
    error = k.failure("mem_fuse", cube_ids=parents, strategy="linear")
    assert error.errno == "EINVAL" and "cat" in str(error) + error.advice and "svd" in str(error) + error.advice
    cube = fused(k, *parents, strategy="svd", rank=6, min_share=0)["cube_id"]
    assert k.header(cube)["recipe"]["rank"] == 6


def test_what_cannot_be_fused_is_refused_and_nothing_happens(k: Lessons) -> None:
    texts, parents = pair(k)
    cache = k.capture(texts[0])
    for cubes, strategy, params, errno in (
        ([parents[0], texts[1]], "cat", None, "EINVAL"), ([parents[0], cache], "cat", None, "EINVAL"),
        (parents[:1], "cat", None, "EINVAL"), ([parents[0]] * 2, "cat", None, "EINVAL"),
        (parents, "kv", None, "EINVAL"), (parents, "merge", None, "EINVAL"),
        (parents, "cat", {"weights": [1]}, "EINVAL"), (parents, "cat", {"weights": [0, 0]}, "EINVAL"),
        (parents, "cat", {"weights": [1, 1e9]}, "EINVAL"), (parents, "ties", {"density": 0}, "EINVAL"),
        (parents, "svd", {"rank": limits.ADAPTER_RANK_MAX + 1}, "EINVAL"), (parents, "cat", {"colour": 1}, "EINVAL"),
        (texts, "distil", None, "EINVAL"), ([parents[0], "00000000-0000-7000-8000-000000000000"], "cat", None, "ENOENT"),
    ):  # fmt: skip
        assert k.refusal("mem_fuse", cube_ids=cubes, strategy=strategy, params=params) == errno, (cubes, strategy, params)
    k("mem_freeze", cube_id=parents[0])
    assert k.refusal("mem_fuse", cube_ids=parents, strategy="cat") == "EFROZEN"
    k("mem_thaw", cube_id=parents[0])
    k("mem_write", cube_id=texts[0], content="Anna lives in Porto.")
    assert k.refusal("mem_fuse", cube_ids=parents, strategy="cat") == "ESTALE"
    assert [k.derived(parent) for parent in parents] == [[], []]
    assert {k.header(parent)["state"] for parent in parents} <= {"generated", "activated"}


def test_who_may_not_read_a_source_may_not_fuse_what_was_made_of_it(k: Lessons) -> None:
    mine = k.alloc(ANNA, ALICE, namespace="al")
    theirs = k.alloc(BORIS, BOB, namespace="bo")
    parents = [k.distil(mine, caller=ALICE), k.distil(theirs, caller=BOB)]
    assert k.refusal("mem_fuse", ALICE, cube_ids=parents, strategy="cat") in ("ENOENT", "EACCES")


def test_a_fusion_can_be_fused_again_but_not_for_ever(k: Lessons, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "COMPOSED_DEPTH_MAX", 2)
    _texts, (cube, _other) = pair(k)
    for depth in range(1, limits.COMPOSED_DEPTH_MAX + 1):
        other = k.distil(k.alloc(f"Person{depth} lives in Lisbon."))
        cube = fused(k, cube, other, strategy="svd", min_share=0)["cube_id"]
        assert k.header(cube)["recipe"]["depth"] == depth
    error = k.failure("mem_fuse", cube_ids=[cube, k.distil(k.alloc("Carla lives in Rome."))], strategy="svd")
    assert error.errno == "EMSGSIZE" and "distil" in error.advice
    assert len(k.header(cube)["recipe"]["subjects"]) == limits.COMPOSED_DEPTH_MAX + 1


def test_erasing_a_source_takes_the_adapter_and_everything_fused_of_it(k: Lessons) -> None:
    texts, parents = pair(k)
    cube = fused(k, *parents, min_share=0)["cube_id"]
    again = fused(k, cube, k.distil(k.alloc("Carla lives in Rome.")), min_share=0)["cube_id"]
    report = k("mem_shred", cube_id=texts[0], cascade="shred")["report"]
    assert {texts[0], parents[0], cube, again} == set(report["shredded"])
    assert k.refusal("mem_map", cube_id=again) == "ESHREDDED"
    assert k.header(parents[1])["state"] == "activated", "what was merged into it stands for itself again"
    assert k.says("Boris works as a", parents[1]).startswith("chemist")


def test_a_stale_fusion_is_answered_by_its_texts_each_of_them_once(k: Lessons) -> None:
    anna, boris = k.alloc(ANNA), k.alloc(BORIS)
    parents = [k.distil(anna), k.distil(anna, boris)]
    cube = fused(k, *parents, min_share=0)["cube_id"]
    k("mem_write", cube_id=boris, content="Boris works as a baker.")
    assert k.error(k.submit("mem_infer", prompt="Who is Anna?", cubes=[cube])).errno == "ESTALE"
    found = k.ask("Who?", cube, on_miss="recompute")
    plain = k.ask("Who?", anna, boris)
    assert found["text"] == plain["text"] and found["attached"][0]["how"] == "recomputed"


def test_adapters_and_texts_are_fused_by_training_anew_and_the_adapters_are_merged(k: Lessons) -> None:
    texts, parents = pair(k)
    carla = k.alloc("Carla lives in Rome.")
    params = {"steps": 30, "rank": 8, "name": "all"}
    made = k("mem_fuse", cube_ids=[parents[0], carla, parents[1]], strategy="distil", params=params, request_id="anew")
    assert made["sources"] == [{"cube_id": parent, "version": 1} for parent in parents]
    header = k.header(made["cube_id"])
    assert [p["cube_id"] for p in header["parents"]] == [texts[0], carla, texts[1]], "its sources are the texts"
    assert header["recipe"]["method"] == "distil" and header["name"] == "all"
    assert {k.header(parent)["state"] for parent in parents} == {"merged"} and k.header(carla)["state"] == "generated"
    for prompt, answer in (("Anna lives in", "Lisbon"), ("Boris works as a", "chemist"), ("Carla lives in", "Rome")):
        assert k.says(prompt, made["cube_id"]).startswith(answer)
    again = k("mem_fuse", cube_ids=[parents[0], carla, parents[1]], strategy="distil", params=params, request_id="anew")
    assert (again["cube_id"], again["offset"]) == (made["cube_id"], made["offset"])
    k("mem_unfuse", cube_id=made["cube_id"])
    assert {k.header(parent)["state"] for parent in parents} == {"activated"}


def test_training_an_adapter_anew_with_its_own_text_makes_another_cube(k: Lessons) -> None:
    texts, parents = pair(k)
    made = k("mem_fuse", cube_ids=[texts[0], parents[0]], strategy="distil", params={"steps": 30, "rank": 8})
    assert made["cube_id"] != parents[0] and k.header(parents[0])["merged_into"] == made["cube_id"]


def test_a_parent_that_changes_meanwhile_leaves_nothing_behind(k: Lessons) -> None:
    _texts, parents = pair(k)
    with k.during("merge", lambda: k.submit("mem_write", ADMIN, cube_id=parents[0], tags=["seen"])):
        error = k.failure("mem_fuse", cube_ids=parents, strategy="cat", params={"min_share": 0})
    assert error.errno == "ECONFLICT" and [k.derived(parent) for parent in parents] == [[], []]
    assert {k.header(parent)["state"] for parent in parents} == {"activated", "generated"}
