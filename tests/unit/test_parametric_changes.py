"""What becomes of an adapter when a text that it was taught changes, and when the adapter itself is taken back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import lm, parametric
from tests.parametric import CITY, CITY_IS, DOG, DOG_IS, Lessons

from memos_kernel import events as ev
from memos_kernel import evolve
from memos_kernel.clock import RealClock
from memos_kernel.eventlog.base import records
from memos_kernel.governance import text_id

tiny, cache = lm.tiny, parametric.cache


@pytest.fixture(scope="module")
def k(tiny: Path, cache: Path) -> Iterator[Lessons]:
    with Lessons(tiny, cache, clock=RealClock()) as kernel:
        yield kernel
        kernel.sound()


def until_version(k: Lessons, adapter: str, version: int) -> None:
    for _ in range(600):
        if k.header(adapter)["version"] >= version:
            return
        k.run(0.1)
    raise AssertionError(f"{adapter} has no version {version}")


def shreds(k: Lessons) -> Iterator[tuple[str, list[str], str | None]]:
    for _raw, record in records(k.log):
        for event in record.events:
            if event.name == ev.SHREDDED:
                yield record.principal, [text_id(cube_id) for cube_id in event.fields[1]], record.note


def idle(k: Lessons, seconds: float = evolve.LEISURE_SECONDS + 0.5) -> None:
    k.run(seconds)


def test_an_adapter_that_is_kept_is_stale_and_refused_unless_the_call_allows_it(k: Lessons) -> None:
    city = k.alloc(CITY)
    adapter = k.distil(city)
    k("mem_write", cube_id=city, content="Boris lives in Madrid.")
    idle(k)
    header = k.header(adapter)
    assert (header["version"], header["stale"], header["recipe"]["on_change"]) == (1, True, "keep")
    assert k.failure("mem_infer", **k.question("?", adapter)).errno == "ESTALE"
    assert k.says(CITY_IS, adapter, allow_stale=True).startswith("Lisbon")


def test_an_adapter_that_is_rebuilt_says_what_its_source_says_now(k: Lessons) -> None:
    dog, city = k.alloc(DOG), k.alloc(CITY)
    adapter = k.distil(dog, city, on_change="rebuild")
    k("mem_write", cube_id=city, content="Boris lives in Madrid.")
    until_version(k, adapter, 2)
    header = k.header(adapter)
    assert not header["stale"] and header["actor"] == "kernel" and header["recipe"]["on_change"] == "rebuild"
    assert k.says(CITY_IS, adapter).startswith("Madrid") and k.says(DOG_IS, adapter).startswith("Biscuit")
    k("mem_rollback", cube_id=city, to_version=1)
    until_version(k, adapter, 3)
    assert k.says(CITY_IS, adapter).startswith("Lisbon"), "a rollback of the source is a change too"


def test_a_burst_of_writes_costs_one_training(k: Lessons) -> None:
    city = k.alloc(CITY)
    adapter = k.distil(city, on_change="rebuild")
    with k.during("distil", lambda: None) as asked:
        for place in ("Madrid", "Rome", "Oslo", "Paris", "Berlin"):
            k("mem_write", cube_id=city, content=f"Boris lives in {place}.")
            k.run(0.05)
        until_version(k, adapter, 2)
        idle(k)
    assert asked.count("distil") == 1 and k.header(adapter)["version"] == 2
    assert k.says(CITY_IS, adapter).startswith("Berlin")


def test_an_adapter_that_is_shredded_goes_with_the_change_and_the_record_says_why(k: Lessons) -> None:
    dog, city = k.alloc(DOG), k.alloc(CITY)
    adapter = k.distil(dog, city, on_change="shred")
    k("mem_write", cube_id=city, tags=["moved"])
    idle(k)
    assert k.header(adapter)["state"] != "shredded", "tags alone say nothing else"
    k("mem_write", cube_id=city, content="Boris lives in Madrid.")
    for _ in range(100):
        if k.header(adapter)["state"] == "shredded":
            break
        k.run(0.1)
    assert k.failure("mem_infer", **k.question("?", adapter)).errno == "ESHREDDED"
    assert k.header(city)["state"] == "activated" and k.header(dog)["state"] == "generated"
    [(who, why)] = [(by, note) for by, gone, note in shreds(k) if adapter in gone]
    assert who == "kernel" and why is not None and "sources changed" in why


def test_a_rebuild_that_fails_leaves_the_adapter_stale(k: Lessons, caplog: pytest.LogCaptureFixture) -> None:
    dog, city = k.alloc(DOG), k.alloc(CITY)
    adapter = k.distil(dog, city, on_change="rebuild")
    k("mem_write", cube_id=city, content="Boris is unlearnable.")
    for _ in range(100):
        if f"adapter {adapter} stays stale" in caplog.text:
            break
        k.run(0.1)
    header = k.header(adapter)
    assert (header["version"], header["stale"], header["state"]) == (1, True, "generated")
    k("mem_write", cube_id=city, content="Boris lives in Madrid.")
    until_version(k, adapter, 2)
    assert k.says(CITY_IS, adapter).startswith("Madrid"), "the next change is another chance"


def test_the_policy_of_an_adapter_can_be_changed_and_stays_where_a_call_names_none(k: Lessons) -> None:
    city = k.alloc(CITY)
    adapter = k.distil(city, on_change="rebuild")
    assert k.learnt(city)["reused"] and k.header(adapter)["recipe"]["on_change"] == "rebuild"
    again = k.learnt(city, on_change="keep")
    assert (again["cube_id"], again["version"]) == (adapter, 2) and k.header(adapter)["recipe"]["on_change"] == "keep"


def test_an_adapter_that_was_taken_back_answers_as_it_did_then(k: Lessons) -> None:
    city = k.alloc(CITY)
    adapter = k.distil(city)
    k("mem_write", cube_id=city, content="Boris lives in Madrid.")
    learnt = k.learnt(city)
    assert (learnt["cube_id"], learnt["version"]) == (adapter, 2)
    was, now = k.says(CITY_IS, {"cube_id": adapter, "version": 1}), k.says(CITY_IS, adapter)
    assert was.startswith("Lisbon") and now.startswith("Madrid")
    assert k("mem_rollback", cube_id=adapter, to_version=1)["version"] == 3
    assert k.failure("mem_infer", **k.question("?", adapter)).errno == "ESTALE", "its source is newer"
    assert k.says(CITY_IS, adapter, allow_stale=True) == was
    assert k.says(CITY_IS, {"cube_id": adapter, "version": 3}) == was
    assert k.says(CITY_IS, {"cube_id": adapter, "version": 2}) == now
    assert k.header(adapter)["recipe"]["digest"] == k.header(adapter, 1)["recipe"]["digest"]


def test_an_adapter_that_was_taken_back_stays_so_until_its_source_changes_again(k: Lessons) -> None:
    city = k.alloc(CITY)
    adapter = k.distil(city, on_change="rebuild")
    k("mem_write", cube_id=city, content="Boris lives in Madrid.")
    until_version(k, adapter, 2)
    k("mem_rollback", cube_id=adapter, to_version=1)
    k.reopen()
    idle(k)
    assert k.header(adapter)["version"] == 3 and k.header(adapter)["stale"]
    k("mem_write", cube_id=city, content="Boris lives in Rome.")
    until_version(k, adapter, 4)
    assert k.says(CITY_IS, adapter).startswith("Rome")


def test_what_changed_before_a_restart_is_followed_after_it(tiny: Path, cache: Path) -> None:
    with Lessons(tiny, cache) as k:
        city, car = k.alloc(CITY), k.alloc("Clara drives a tractor.")
        kept, gone = k.distil(city, on_change="rebuild"), k.distil(car, on_change="shred")
        k("mem_write", cube_id=city, content="Boris lives in Madrid.")
        k("mem_write", cube_id=car, content="Clara drives a tram.")
        k.reopen()
        until_version(k, kept, 2)
        for _ in range(50):
            if k.header(gone)["state"] == "shredded":
                break
            k.run(0.1)
        assert k.header(gone)["state"] == "shredded"
        assert k.says(CITY_IS, kept).startswith("Madrid")
        k.sound()


def test_only_a_write_to_what_an_adapter_read_is_followed(k: Lessons) -> None:
    city, other = k.alloc(CITY), k.alloc("Clara drives a tractor.")
    k.distil(city)
    idle(k)
    k("mem_write", cube_id=other, content="Clara drives a tram.")
    assert not k.kernel.evolution.busy
    k("mem_write", cube_id=city, content="Boris lives in Madrid.")
    assert k.kernel.evolution.busy
    idle(k)
    assert not k.kernel.evolution.busy
