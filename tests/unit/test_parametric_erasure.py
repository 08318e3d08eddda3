"""Shredding a memory shreds every adapter that was taught it, and everything fused from those; what is left is taught again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests import lm, parametric
from tests.inside import ALICE, BOB
from tests.parametric import CITY, CITY_IS, DOG, DOG_IS, Lessons

from memos_kernel.clock import RealClock
from memos_kernel.config import Config
from memos_kernel.governance import raw_id

tiny, cache = lm.tiny, parametric.cache


@pytest.fixture(scope="module")
def k(tiny: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lessons]:
    data = tmp_path_factory.mktemp("data") / "data"
    with Lessons(tiny, cache, data, rocks=True, clock=RealClock()) as kernel:
        yield kernel
        kernel.sound()


def tensors_of(k: Lessons, adapter: str, version: int | None = None) -> bytes:
    content = k("mem_map", cube_id=adapter, version=version)["content"]
    assert isinstance(content, bytes)
    return content


def runs_of(payload: bytes) -> list[bytes]:
    """Places of an adapter's payload: numbers of no pattern."""
    return [payload[at : at + 24] for at in range(4096, len(payload) - 4096, len(payload) // 7)]


def files_with(root: Path, words: list[bytes]) -> list[str]:
    return [f"{path.name}: {word[:8].hex()}" for path in root.rglob("*") if path.is_file() for word in words
            if word in path.read_bytes()]  # fmt: skip


def rebuilt(report: dict[str, Any], adapter: str) -> dict[str, Any]:
    made: dict[str, Any]
    [made] = [one for one in report["rebuilt"] if one["replaces"] == adapter]
    return made


def test_a_shred_reaches_every_version_of_an_adapter_on_every_tier(k: Lessons) -> None:
    dog, city = k.alloc(DOG), k.alloc(CITY)
    adapter = k.distil(dog, city)
    k("mem_write", cube_id=city, content="Boris lives in Madrid.")
    assert k.learnt(dog, city)["version"] == 2
    assert k.says(DOG_IS, adapter).startswith("Biscuit")
    payloads = [tensors_of(k, adapter, version) for version in (1, 2)]
    rows = {k.row(adapter, version).payload_id for version in (1, 2)}
    assert rows & k.kernel.runtime.resident
    before = k.tiers
    report = k("mem_shred", cube_id=dog, cascade="shred")["report"]
    assert adapter in report["shredded"] and report["rebuilt"] == []
    after = k.tiers
    assert after["device"]["bytes"] < before["device"]["bytes"] and after["host"]["bytes"] < before["host"]["bytes"]
    assert not rows & k.kernel.runtime.resident
    for version in (1, 2, None):
        for name in ("mem_map", "mem_read"):
            assert k.failure(name, cube_id=adapter, version=version).errno == "ESHREDDED"
    assert k.failure("mem_infer", **k.question(DOG_IS, {"cube_id": adapter, "version": 1})).errno == "ESHREDDED"
    assert files_with(k.paths.root, [word for payload in payloads for word in runs_of(payload)]) == []


def test_with_rebuild_a_new_adapter_under_a_new_key_knows_the_rest_and_answers_the_erased_as_the_base_does(k: Lessons) -> None:
    dog, city = k.alloc(DOG), k.alloc(CITY)
    adapter = k.distil(dog, city, name="about them", seed=7)
    old = k.row(adapter)
    assert k.says(DOG_IS, adapter).startswith("Biscuit")
    made = rebuilt(k("mem_shred", cube_id=dog)["report"], adapter)
    new = made["cube_id"]
    assert new != adapter and k.row(new, 1).payload_bytes == 0 and k.row(new, 1).slot != old.slot
    pending = k.header(new, 1)
    assert pending["recipe"]["pending"] and "Biscuit" not in str(pending) and "Anna" not in str(pending)
    done = k("job_wait", job_id=made["job_id"])
    assert done["state"] == "done", done
    assert (done["result"]["cube_id"], done["result"]["version"]) == (new, 2)
    assert k.says(CITY_IS, new).startswith("Lisbon")
    for gate in ("subject", "always"):
        assert "Biscuit" not in k.says(DOG_IS, new, gate=gate)
    assert k.says(DOG_IS, new) == k.says(DOG_IS), "the gate knows the erased subject no more"
    header = k.header(new)
    assert header["name"] == "about them" and header["recipe"]["params"]["seed"] == 7
    assert [parent["cube_id"] for parent in header["parents"]] == [city]
    assert header["recipe"]["subjects"] == ["Boris"]


def test_a_rebuilt_adapter_is_the_one_that_its_remaining_sources_alone_make(k: Lessons) -> None:
    dog, city = k.alloc(DOG, namespace="one"), k.alloc(CITY, namespace="one")
    adapter = k.distil(dog, city)
    made = rebuilt(k("mem_shred", cube_id=dog)["report"], adapter)
    k("job_wait", job_id=made["job_id"])
    again = k.learnt(city)
    assert (again["cube_id"], again["reused"]) == (made["cube_id"], True), "asking for it finds it"
    other = k.distil(k.alloc(CITY, namespace="two"))
    assert k.header(other)["recipe"]["digest"] == k.header(made["cube_id"])["recipe"]["digest"]


def test_an_adapter_of_an_erased_source_alone_has_no_successor(k: Lessons) -> None:
    dog = k.alloc(DOG)
    adapter = k.distil(dog)
    report = k("mem_shred", cube_id=dog)["report"]
    assert adapter in report["shredded"] and report["rebuilt"] == []


def test_what_was_fused_from_adapters_is_distilled_from_the_texts_that_are_left(k: Lessons) -> None:
    dog, city, car = k.alloc(DOG), k.alloc(CITY), k.alloc("Clara drives a tractor.")
    first, second = k.distil(dog, city), k.distil(car)
    fused = k("mem_fuse", cube_ids=[first, second], strategy="cat", params={"min_share": 0})["cube_id"]
    report = k("mem_shred", cube_id=dog)["report"]
    assert {first, fused} <= set(report["shredded"]) and second not in report["shredded"]
    made, anew = rebuilt(report, first), rebuilt(report, fused)
    for one in (made, anew):
        assert k("job_wait", job_id=one["job_id"])["state"] == "done"
    assert {parent["cube_id"] for parent in k.header(anew["cube_id"])["parents"]} == {city, car}
    assert k.header(second)["merged_into"] == anew["cube_id"]
    assert k.says(CITY_IS, anew["cube_id"]).startswith("Lisbon")
    assert k.says("Clara drives a", anew["cube_id"]).startswith("tractor")
    assert "Biscuit" not in k.says(DOG_IS, anew["cube_id"], gate="always")


def test_an_adapter_of_a_fused_text_is_taught_the_text_that_replaces_it(k: Lessons) -> None:
    dog, city = k.alloc(DOG), k.alloc(CITY)
    text = k("mem_fuse", cube_ids=[dog, city], strategy="merge")["cube_id"]
    adapter = k.distil(text)
    report = k("mem_shred", cube_id=dog)["report"]
    made = rebuilt(report, adapter)
    assert k("job_wait", job_id=made["job_id"])["state"] == "done"
    assert [one["cube_id"] for one in k.header(made["cube_id"])["parents"]] == [rebuilt(report, text)["cube_id"]]
    assert k.says(CITY_IS, made["cube_id"]).startswith("Lisbon")


def test_a_pending_adapter_says_that_it_is_one(k: Lessons) -> None:
    dog, city = k.alloc(DOG), k.alloc(CITY)
    adapter = k.distil(dog, city, steps=60)
    with k.during("distil", lambda: None):
        new = rebuilt(k("mem_shred", cube_id=dog)["report"], adapter)
        cube = new["cube_id"]
        assert k.failure("mem_infer", **k.question("?", cube)).errno == "EAGAIN"
        for name, args in (
            ("mem_map", {}), ("mem_migrate", {"tier": "device"}), ("mem_migrate", {"to": "plaintext"}),
        ):  # fmt: skip
            error = k.failure(name, cube_id=cube, **args)
            assert error.errno == "EAGAIN", (name, args, error)
    assert k("job_wait", job_id=new["job_id"])["state"] == "done"


def test_a_repeated_shred_names_the_same_job(k: Lessons) -> None:
    dog, city = k.alloc(DOG), k.alloc(CITY)
    adapter = k.distil(dog, city)
    first = k("mem_shred", cube_id=dog, request_id="again")["report"]
    assert k("mem_shred", cube_id=dog, request_id="again")["report"]["rebuilt"] == first["rebuilt"]
    assert k("job_wait", job_id=rebuilt(first, adapter)["job_id"])["state"] == "done"


def test_the_job_of_a_rebuild_is_the_owners(k: Lessons) -> None:
    texts = [k.alloc(text, ALICE, namespace="hers") for text in (DOG, CITY)]
    adapter = k.distil(*texts, caller=ALICE)
    made = rebuilt(k("mem_shred", ALICE, cube_id=texts[0])["report"], adapter)
    assert k("job_wait", ALICE, job_id=made["job_id"])["state"] == "done"
    assert k.failure("job_status", BOB, job_id=made["job_id"]).errno in ("ENOENT", "EACCES")
    history = k("mem_history", ALICE, cube_id=made["cube_id"])["versions"]
    assert [(one["actor"], one["syscall"]) for one in history] == [("uid:1001", "mem_shred"), ("kernel", "mem_migrate")]


def test_a_rebuild_of_which_nothing_comes_is_freed_and_says_why(k: Lessons) -> None:
    dog, other = k.alloc(DOG), k.alloc(CITY)
    adapter = k.distil(dog, other)
    k("mem_write", cube_id=other, content="Boris is unlearnable.")
    made = rebuilt(k("mem_shred", cube_id=dog)["report"], adapter)
    done = k("job_wait", job_id=made["job_id"])
    assert done["state"] == "failed" and done["error"]["errno"] == "ELOWQUALITY"
    assert k.header(made["cube_id"])["state"] == "expired"


def test_a_rebuild_that_is_cancelled_is_freed(k: Lessons) -> None:
    dog, other = k.alloc(DOG), k.alloc(CITY)
    adapter = k.distil(dog, other)
    with k.during("distil", lambda: None) as asked:
        made = rebuilt(k("mem_shred", cube_id=dog)["report"], adapter)
        k("job_cancel", job_id=made["job_id"])
        k.run(0.2)
    assert k.header(made["cube_id"])["state"] == "expired", asked


@pytest.mark.parametrize("after", [False, True])
def test_a_distillation_of_what_is_shredded_meanwhile_ends_and_commits_nothing(k: Lessons, after: bool) -> None:
    dog, city = k.alloc(DOG), k.alloc(CITY)
    with k.during("distil", lambda: k.submit("mem_shred", cube_id=dog), after=after):
        error = k.failure("mem_migrate", cube_ids=[dog, city], to="parametric", params={"steps": 30, "rank": 8})
    assert (error.errno, error.outcome) == ("ESHREDDED", "none")
    assert k.derived(city) == []


def test_a_shred_in_the_midst_of_training_ends_it_and_the_host_goes_on(k: Lessons) -> None:
    dog, city = k.alloc(DOG), k.alloc(CITY)
    job = k.learnt(dog, city, wait=False, steps=999)["job_id"]
    while k("job_status", job_id=job)["progress"] < 0.001:
        k.run(0.05)
    pid = k.host.pid
    k("mem_shred", cube_id=dog)
    assert k("job_status", job_id=job)["error"]["errno"] == "ESHREDDED"
    assert k.derived(city) == [] and k.host.pid == pid
    assert k.says(CITY_IS) == k.says(CITY_IS)


def test_a_source_that_goes_while_a_rebuild_runs_takes_it_along_and_the_rest_begins_anew(k: Lessons) -> None:
    texts = [k.alloc(text) for text in (DOG, CITY, "Clara drives a tractor.")]
    adapter = k.distil(*texts)
    first = rebuilt(k("mem_shred", cube_id=texts[0])["report"], adapter)
    second = rebuilt(k("mem_shred", cube_id=texts[1])["report"], first["cube_id"])
    done = k("job_wait", job_id=second["job_id"])
    assert done["state"] == "done"
    assert k("job_status", job_id=first["job_id"])["error"]["errno"] == "ESHREDDED"
    assert k.says("Clara drives a", second["cube_id"]).startswith("tractor")
    assert raw_id(second["cube_id"]) in k.kernel.view.adapters()


def test_a_restart_finds_pending_adapters_and_trains_them(tiny: Path, cache: Path) -> None:
    with Lessons(tiny, cache) as k:
        dog, city = k.alloc(DOG), k.alloc(CITY)
        adapter = k.distil(dog, city)
        made = rebuilt(k("mem_shred", cube_id=dog)["report"], adapter)
        k.reopen()
        assert k.header(made["cube_id"])["version"] == 1
        wait_for(k, made["cube_id"])
        assert k.says(CITY_IS, made["cube_id"]).startswith("Lisbon")
        k.sound()


def test_a_kernel_without_a_model_shreds_and_one_with_it_trains(tiny: Path, cache: Path) -> None:
    with Lessons(tiny, cache) as k:
        dog, city = k.alloc(DOG), k.alloc(CITY)
        adapter = k.distil(dog, city)
        with_model = k.config
        k.stop()
        k.config = without(k)
        k.open()
        made = rebuilt(k("mem_shred", cube_id=dog)["report"], adapter)
        assert made["job_id"] is None and k.header(made["cube_id"])["recipe"]["pending"]
        assert k.failure("mem_read", cube_id=adapter).errno == "ESHREDDED"
        k.stop()
        k.config = with_model
        k.open()
        wait_for(k, made["cube_id"])
        assert k.says(CITY_IS, made["cube_id"]).startswith("Lisbon")
        k.sound()


def test_a_host_that_dies_in_a_rebuild_is_started_again_and_the_rebuild_with_it(k: Lessons) -> None:
    dog, city = k.alloc(DOG), k.alloc(CITY)
    adapter = k.distil(dog, city)
    with k.during("distil", lambda: k.loop.call_later(0.5, k.kill_host)):
        made = rebuilt(k("mem_shred", cube_id=dog)["report"], adapter)
        assert k("job_wait", job_id=made["job_id"])["state"] == "done"
    assert k.says(CITY_IS, made["cube_id"]).startswith("Lisbon")


def without(k: Lessons) -> Config:
    return dataclasses.replace(k.config, model=())


def wait_for(k: Lessons, adapter: str, version: int = 2) -> None:
    for _ in range(600):
        if k.header(adapter)["version"] >= version:
            return
        k.run(0.1)
    raise AssertionError(f"{adapter} has no version {version}")
