"""mem_diff of adapters: how far each module moved, and what is answered otherwise."""

from __future__ import annotations

import dataclasses

from tests import lm
from tests.inside import ALICE, BOB
from tests.parametric import CITY, CITY_IS, DOG, Lessons, lessons
from tests.quick import asks

tiny = lm.tiny
k = lessons


def two_versions(k: Lessons) -> str:
    dog, city = k.alloc(DOG), k.alloc(CITY)
    adapter = k.distil(dog, city)
    k("mem_write", cube_id=city, content="Boris lives in Madrid.")
    assert k.learnt(dog, city)["version"] == 2
    return adapter


def test_a_diff_names_modules_that_moved_and_probes_that_are_answered_otherwise(k: Lessons) -> None:
    adapter = two_versions(k)
    found = k.wait(k.submit("mem_diff", cube_id=adapter, a=1, b=2), 60)
    assert len(found["modules"]) == 6 and all(one["difference"] > 0 < one["a"] for one in found["modules"])
    answers = {one["prompt"]: (one["a"], one["b"]) for one in found["probes"]}
    was, now = answers[asks(CITY_IS)]
    assert was.startswith("Lisbon") and now.startswith("Madrid")
    lines = found["diff"].splitlines()
    assert lines[:2] == ["--- version 1", "+++ version 2"]
    assert any(line.startswith(f"-{asks(CITY_IS)} → Lisbon") for line in lines)
    assert any(line.startswith("-model.layers.0.mlp.down_proj: ") for line in lines)
    assert found["header"]["recipe"][0]["digest"] != found["header"]["recipe"][1]["digest"]


def test_a_version_and_its_restored_copy_do_not_differ(k: Lessons) -> None:
    adapter = two_versions(k)
    k("mem_rollback", cube_id=adapter, to_version=1)
    found = k("mem_diff", cube_id=adapter, a=1, b=3)
    assert (found["diff"], found.get("modules", []), found.get("probes", [])) == ("", [], [])


def test_a_diff_is_refused_to_who_may_not_read_a_source(k: Lessons) -> None:
    hers = k.alloc(DOG, ALICE, namespace="hers")
    adapter = k.distil(hers, caller=ALICE)
    assert k.failure("mem_diff", BOB, cube_id=adapter, a=1, b=1).errno == "EACCES"


def test_a_diff_of_what_is_shredded_meanwhile_ends(k: Lessons) -> None:
    adapter = two_versions(k)
    source = k.header(adapter)["parents"][0]["cube_id"]
    with k.during("diff", lambda: k.submit("mem_shred", cube_id=source, cascade="shred")):
        error = k.failure("mem_diff", cube_id=adapter, a=1, b=2)
    assert error.errno == "ESHREDDED"


def test_without_the_model_the_header_is_compared_and_the_diff_says_so(k: Lessons) -> None:
    adapter = two_versions(k)
    k.stop()
    config, k.config = k.config, dataclasses.replace(k.config, model=())
    k.open()
    found = k("mem_diff", cube_id=adapter, a=1, b=2)
    assert "a kernel that runs models tells more" in found["diff"] and "recipe" in found["header"]
    k.stop()
    k.config = config
    k.open()


def test_a_pending_version_is_said_to_be_one(k: Lessons) -> None:
    dog, city = k.alloc(DOG), k.alloc(CITY)
    adapter = k.distil(dog, city)
    [made] = k("mem_shred", cube_id=dog)["report"]["rebuilt"]
    assert made["replaces"] == adapter
    k.wait(k.submit("job_wait", job_id=made["job_id"]), 60)
    assert "still to be trained" in k("mem_diff", cube_id=made["cube_id"], a=1, b=2)["diff"]
