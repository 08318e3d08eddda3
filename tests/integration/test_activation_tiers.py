"""Where payloads are: a device and a host memory too small for all, moves by hand, pins, and loading that would not pay."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests import lm
from tests.activation import BEES, Model

tiny = lm.tiny
QUESTION = "Who keeps bees?"
MEMORY = BEES * 5
"""Of 400 to 500 KB as a cache: two fit a tier of one MiB, three do not."""


@pytest.fixture(scope="module")
def k(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with Model(tiny, tmp_path_factory.mktemp("cache"), device_tier_mb=1, host_tier_mb=1) as kernel:
        yield kernel
        kernel.sound()


@pytest.fixture(scope="module")
def caches(k: Model) -> list[str]:
    made = [k.capture(k.alloc(f"{number}. {MEMORY}")) for number in range(4)]
    for cache in made:
        assert 300 << 10 < k.header(cache)["bytes"] < 600 << 10
    # However busy the machine is, none of them shall look cheaper to compute than to load.
    k.kernel.hosttier.speed.bytes_per_second = 1e12
    return made


def within(k: Model) -> dict[str, Any]:
    tiers = k.tiers
    for tier in ("device", "host"):
        assert tiers[tier]["bytes"] <= tiers[tier]["budget"] == 1 << 20
    return tiers


def test_tiers_keep_their_budgets_and_every_cache_answers(k: Model, caches: list[str]) -> None:
    texts = {cache: k.ask(QUESTION, cache)["text"] for cache in caches}
    for _ in range(2):
        for cache in reversed(caches):
            answer = k.ask(QUESTION, cache)
            assert answer["text"] == texts[cache] and answer["attached"][0]["how"] == "attached"
            within(k)
    tiers = within(k)
    assert tiers["device"]["evictions"] > 0 and tiers["host"]["evictions"] > 0
    assert tiers["device"]["prefix_bytes"] > 0


def test_more_caches_in_one_call_than_the_device_keeps_are_all_used(k: Model, caches: list[str]) -> None:
    """Each that comes in drives out another, also one that the kernel counted on."""
    for order in (caches, caches[::-1], caches[1:] + caches[:1]):
        answer = k.ask(QUESTION, *order)
        assert len(answer["attached"]) == 4 and answer["tokens_reused"] > 0
        assert {one["how"] for one in answer["attached"]} == {"attached", "composed"}
        within(k)


def test_what_the_kernel_takes_for_resident_and_is_not_is_brought_in(k: Model, caches: list[str]) -> None:
    before = k.ask(QUESTION, caches[0])
    k.kernel.runtime.resident |= {k.row(cache).payload_id for cache in caches}
    for cache in caches:
        assert k.ask(QUESTION, cache)["attached"][0]["how"] == "attached"
    k.kernel.runtime.resident |= {k.row(cache).payload_id for cache in caches}
    assert k.ask(QUESTION, *caches)["tokens_reused"]
    k.kernel.runtime.resident |= {k.row(cache).payload_id for cache in caches}
    assert k("mem_fuse", cube_ids=caches[:2], strategy="kv", params={"recompute": 0.0})["cube_id"]
    assert k.ask(QUESTION, caches[0])["text"] == before["text"]


def test_a_payload_moves_between_tiers_and_answers_the_same_from_each(k: Model, caches: list[str]) -> None:
    cache = caches[3]
    row = k.row(cache)
    texts: set[str] = set()
    for tier, on_device, in_memory in (("disk", False, False), ("host", False, True), ("device", True, True)):
        made = k("mem_migrate", cube_id=cache, tier=tier)
        assert (made["tier"], made["state"], made["version"]) == (tier, "done", 1)
        assert (row.payload_id in k.kernel.runtime.resident) == on_device or tier == "device"
        assert k("mem_map", cube_id=cache)["tier"] == ("host" if in_memory else "disk")
        texts.add(k.ask(QUESTION, cache)["text"])
    assert len(texts) == 1
    assert k("mem_migrate", cube_id=cache, tier="disk")["tier"] == "disk"
    assert k("mem_map", cube_id=cache)["tier"] == "disk" and k("mem_map", cube_id=cache)["tier"] == "host"


def test_a_pinned_payload_stays_in_memory(k: Model, caches: list[str]) -> None:
    pinned = caches[2]
    k("mem_pin", cube_id=pinned)
    k.ask(QUESTION, pinned)
    k("mem_migrate", cube_id=pinned, tier="host")
    for _ in range(2):
        for cache in caches:
            if cache != pinned:
                k("mem_map", cube_id=cache)
    assert k("mem_map", cube_id=pinned)["tier"] == "host"
    assert within(k)["host"]["pinned"] == k.header(pinned)["bytes"]
    k("mem_unpin", cube_id=pinned)
    assert within(k)["host"]["pinned"] == 0


def test_what_is_slower_to_load_than_to_compute_is_computed(k: Model, caches: list[str]) -> None:
    """A disk of a few bytes per second; a move by hand loads all the same, and a fusion does."""
    cache = caches[1]
    before = k.ask(QUESTION, cache)
    for one in caches[:2]:
        if k.header(one)["state"] == "merged":
            k("mem_unfuse", cube_id=k.header(one)["merged_into"])
    for one in caches:
        k("mem_migrate", cube_id=one, tier="disk")
    k.kernel.hosttier.speed.bytes_per_second = 10.0
    try:
        answer = k.ask(QUESTION, cache)
        assert answer["text"] == before["text"] and answer["attached"][0]["how"] == "recomputed"
        assert answer["tokens_reused"] == 0
        mixed = k.ask(QUESTION, *caches[1:3], recompute=1.0)
        assert {one["how"] for one in mixed["attached"]} == {"recomputed"}
        fused = k("mem_fuse", cube_ids=caches[1:3], strategy="kv")["cube_id"]
        assert k.ask(QUESTION, fused)["attached"][0]["how"] == "attached", "a fusion cannot be computed from its texts alone"
        assert k("mem_migrate", cube_id=caches[3], tier="device")["tier"] == "device"
        assert k.ask(QUESTION, caches[3])["attached"][0]["how"] == "attached"
    finally:
        k.kernel.hosttier.speed.bytes_per_second = 1e12


def test_a_payload_larger_than_a_tier_is_used_and_not_kept(k: Model) -> None:
    large = k.capture(k.alloc("Anna keeps bees on the roof in Lisbon. " * 320))
    assert k.header(large)["bytes"] > 1 << 20
    k("mem_migrate", cube_id=large, tier="disk")
    for _ in range(2):
        assert k.ask(QUESTION, large)["attached"][0]["how"] == "attached"
        within(k)
    assert k("mem_migrate", cube_id=large, tier="host")["state"] == "done"
    within(k)
