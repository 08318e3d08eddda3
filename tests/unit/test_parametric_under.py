"""KV caches that were captured while adapters acted: continued from only where exactly the same ones act."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests import lm
from tests.activation import BEES, CHESS
from tests.parametric import Lessons, lessons

tiny = lm.tiny
k = lessons
NOBODY = "00000000-0000-7000-8000-000000000000"


@pytest.fixture(scope="module")
def adapters(k: Lessons) -> list[str]:
    return [k.distil(k.alloc(text)) for text in ("Anna lives in Lisbon.", "Boris works as a chemist.")]


def ask(k: Lessons, *cubes: Any, **args: Any) -> dict[str, Any]:
    return k.ask("Who keeps bees, Anna or Boris?", *cubes, max_new_tokens=32, **args)


def refused(k: Lessons, *cubes: Any, **args: Any) -> str:
    return k.refusal("mem_infer", **k.question("Who keeps bees, Anna or Boris?", *cubes, **args))


def how(reply: dict[str, Any]) -> list[str]:
    return [part["how"] for part in reply["attached"]]


def test_the_text_after_such_a_cache_is_that_of_a_prefill_under_the_adapter(k: Lessons, adapters: list[str]) -> None:
    text = k.alloc(BEES)
    plain = k.capture(text)
    cache = k.capture(text, params={"adapters": [adapters[0]]})
    assert cache != plain, "another cube than that of the model alone"
    full, found = ask(k, adapters[0], text), ask(k, adapters[0], cache)
    assert how(found) == ["acted", "attached"] and how(full) == ["acted", "prefilled"]
    assert found["text"] == full["text"] != ask(k, text)["text"]
    assert found["tokens_reused"] > 0 and found["tokens_in"] == full["tokens_in"]
    assert ask(k, plain)["text"] == ask(k, text)["text"], "and the model alone is as it was"


def test_several_with_weights_act_in_any_order(k: Lessons, adapters: list[str]) -> None:
    one, two = adapters
    text = k.alloc(CHESS)
    under: list[Any] = [{"cube_id": two, "weight": 0.7}, one]
    cache = k.capture(text, params={"adapters": under})
    recipe = k.header(cache)["recipe"]
    assert len(recipe["adapters"]) == 2 and recipe["adapters"] == sorted(recipe["adapters"])
    assert {(entry["cube_id"], entry["weight"]) for entry in recipe["under"]} == {(one, 1.0), (two, 0.7)}
    for order in (under, under[::-1]):
        found = ask(k, *order, cache)
        assert how(found) == ["acted", "acted", "attached"]
        assert found["text"] == ask(k, *order, text)["text"]
    again = k.migrated(text, params={"adapters": under[::-1]})
    assert again["reused"] and again["cube_id"] == cache


def test_weights_that_are_scaled_down_are_the_same_for_a_capture_and_a_call(k: Lessons, adapters: list[str]) -> None:
    text = k.alloc(CHESS + "Really.")
    heavy: list[Any] = [{"cube_id": cube, "weight": 3.3} for cube in adapters]
    cache = k.capture(text, params={"adapters": heavy})
    for order in (heavy, heavy[::-1]):
        assert how(ask(k, *order, cache)) == ["acted", "acted", "attached"]


def test_other_adapters_other_weights_and_none_do_not_continue_from_it(k: Lessons, adapters: list[str]) -> None:
    one, two = adapters
    text = k.alloc(BEES + "Truly.")
    cache, plain = k.capture(text, params={"adapters": [one]}), k.capture(text)
    cases: list[tuple[list[Any], dict[str, Any]]] = [
        ([cache], {}), ([two, cache], {}), ([one, two, cache], {}), ([{"cube_id": one, "weight": 0.5}, cache], {}),
        ([one, plain], {}),
    ]  # fmt: skip
    for cubes, args in cases:
        assert refused(k, *cubes, **args) == "EMODEL", cubes
        found = ask(k, *cubes, on_miss="recompute", **args)
        assert how(found)[-1] == "recomputed"
        assert found["text"] == ask(k, *cubes[:-1], text, **args)["text"]
    off = k.question("What is the time?", one, cache)
    assert k.refusal("mem_infer", **off) == "EMODEL", "the gate keeps the adapter off"
    assert k.ask("What is the time?", one, cache, gate="always")["attached"][1]["how"] == "attached"
    found = k.ask("What is the time?", one, cache, on_miss="recompute")
    assert how(found) == ["off", "recomputed"] and found["text"] == k.ask("What is the time?", text)["text"]


def test_an_adapter_is_a_source_of_the_cache_and_no_text_of_it(k: Lessons) -> None:
    lesson, text = k.alloc("Carla lives in Rome."), k.alloc(BEES + "Indeed.")
    adapter = k.distil(lesson)
    cache = k.capture(text, params={"adapters": [adapter]})
    assert [(p["cube_id"], p["role"]) for p in k.header(cache)["parents"]] == [(text, "content"), (adapter, "content")]
    assert k.header(cache)["recipe"]["leaves"] == 1
    assert k.distil(cache) != adapter, "distilled from a cache, an adapter learns its text"
    k("mem_write", cube_id=lesson, content="Carla lives in Bonn.")
    assert k.header(cache)["stale"], "the adapter's source is the cache's too"
    assert k.refusal("mem_infer", **k.question("Carla?", cache)) == "ESTALE"
    found = k.ask("Who?", cache, on_miss="recompute")
    assert found["text"] == k.ask("Who?", text)["text"]
    assert k.refusal("mem_migrate", cube_id=text, to="activation", params={"adapters": [adapter]}) == "ESTALE"
    assert k.distil(lesson) == adapter
    renewed = k.migrated(text, params={"adapters": [adapter]})
    assert (renewed["cube_id"], renewed["version"]) == (cache, 2), "a new version of the adapter makes one of the cache"
    report = k("mem_shred", cube_id=lesson, cascade="shred")["report"]
    assert set(report["shredded"]) == {lesson, adapter, cache}
    assert k.header(text)["state"] == "generated"


def test_neighbours_stand_before_a_capture_under_adapters_too(k: Lessons, adapters: list[str]) -> None:
    before, text = k.alloc(CHESS + "So they say."), k.alloc(BEES + "So they say.")
    caches = [k.capture(before, params={"adapters": adapters[:1]})]
    caches.append(k.capture(text, params={"adapters": adapters[:1], "neighbours": [before]}))
    found = ask(k, adapters[0], *caches, recompute=1.0)
    assert how(found) == ["acted", "attached", "composed"]
    assert found["text"] == ask(k, adapters[0], before, text)["text"]


def test_adapters_that_cannot_act_are_refused(k: Lessons, adapters: list[str]) -> None:
    text = k.alloc(BEES + "Quite.")
    for given, errno in (
        ([text], "EINVAL"), ([adapters[0]] * 2, "EINVAL"), ([NOBODY], "ENOENT"), ("all", "EINVAL"),
        ([{"cube_id": adapters[0], "weight": 0}], "EINVAL"), ([{"cube_id": adapters[0], "version": 1}], "EINVAL"),
    ):  # fmt: skip
        assert k.refusal("mem_migrate", cube_id=text, to="activation", params={"adapters": given}) == errno, given


def test_caches_under_adapters_are_not_fused_into_one(k: Lessons, adapters: list[str]) -> None:
    caches = [k.capture(k.alloc(text), params={"adapters": adapters[:1]}) for text in (BEES + "One.", CHESS + "Two.")]
    error = k.failure("mem_fuse", cube_ids=caches, strategy="kv")
    assert error.errno == "EMODEL" and "adapters" in error.detail


def test_it_survives_a_restart_and_the_tiers(tiny: Path, tmp_path: Path) -> None:
    with Lessons(tiny, tmp_path / "cache") as k:
        adapter, text = k.distil(k.alloc("Anna lives in Lisbon.")), k.alloc(BEES)
        cache = k.capture(text, params={"adapters": [adapter]})
        full = ask(k, adapter, text)["text"]
        for tier in ("disk", "host", "device"):
            k("mem_migrate", cube_id=cache, tier=tier)
            assert ask(k, adapter, cache)["text"] == full
        k.reopen()
        assert ask(k, adapter, cache)["text"] == full
        k.sound()
