"""A tier against a model that is too simple to be wrong, and what its cost model prefers."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memos_drivers.tiers import HALF_LIFE, Speed, Tier, rank, worth_loading

KEYS = st.integers(0, 7)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), KEYS, st.integers(0, 60), st.sampled_from([0.0, 0.5, 2.0, 50.0]), st.booleans()),
        st.tuples(st.just("get"), KEYS),
        st.tuples(st.just("pin"), KEYS, st.booleans()),
        st.tuples(st.just("drop"), st.lists(KEYS, max_size=3)),
        st.tuples(st.just("wait"), st.sampled_from([0.0, 1.0, 300.0, 1e6])),
    ),
    max_size=60,
)


class Simple:
    """The same by looking at everything, every time: worth at this very moment, as the docstring of the module has it."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.held: dict[int, dict[str, Any]] = {}
        self.left: list[tuple[int, str]] = []
        self.evictions = self.hits = self.misses = 0

    def leave(self, key: int) -> None:
        self.left.append((key, self.held.pop(key)["value"]))

    def least(self) -> int:
        return min(
            (k for k, e in self.held.items() if not e["pinned"]),
            key=lambda k: (
                rank(self.held[k]["prefill"], 1.0, self.held[k]["size"], self.held[k]["used"]),
                self.held[k]["turn"],
            ),
        )

    def put(self, key: int, value: str, size: int, prefill: float, pinned: bool, now: float, turn: int) -> str:
        if size > self.budget:
            return "too large"
        if sum(e["size"] for k, e in self.held.items() if e["pinned"] and k != key) + size > self.budget:
            return "pins in the way"
        if key in self.held:
            self.leave(key)
        while sum(e["size"] for e in self.held.values()) + size > self.budget:
            self.leave(self.least())
            self.evictions += 1
        self.held[key] = {"value": value, "size": size, "prefill": prefill, "pinned": pinned, "used": now, "turn": turn}
        return "kept"


@settings(max_examples=300, deadline=None)
@given(STEPS)
def test_it_does_what_the_simple_model_does(steps: list[Any]) -> None:
    left: list[tuple[int, str]] = []
    tier: Tier[int, str] = Tier(100, lambda key, value: left.append((key, value)))
    model = Simple(100)
    now = 0.0
    for turn, step in enumerate(steps):
        now += 1e-3  # No two uses at the same moment: ties are nobody's promise.
        match step:
            case ("put", key, size, prefill, pinned):
                size = max(size, 1)
                value = f"{turn}"
                outcome = tier.put(key, value, size, now=now, prefill_seconds=prefill, load_seconds=1.0, pinned=pinned)
                assert outcome == model.put(key, value, size, prefill, pinned, now, turn)
            case ("get", key):
                held = model.held.get(key)
                assert tier.get(key, now) == (None if held is None else held["value"])
                if held is None:
                    model.misses += 1
                else:
                    model.hits += 1
                    held["used"], held["turn"] = now, turn
            case ("pin", key, pinned):
                tier.pin(key, pinned)
                if key in model.held:
                    model.held[key]["pinned"] = pinned
            case ("drop", keys):
                tier.drop(keys)
                for key in dict.fromkeys(keys):
                    if key in model.held:
                        model.leave(key)
            case ("wait", seconds):
                now += seconds
            case _:
                raise AssertionError(step)
        assert left == model.left
        assert tier.stats() == {
            "budget": 100, "bytes": sum(e["size"] for e in model.held.values()), "entries": len(model.held),
            "pinned": sum(e["size"] for e in model.held.values() if e["pinned"]), "hits": model.hits, "misses": model.misses,
            "evictions": model.evictions,
        }  # fmt: skip
        assert {key: tier.peek(key) for key in tier} == {key: e["value"] for key, e in model.held.items()}


@pytest.mark.parametrize(("prefill", "load", "worth"), [(8.0, 2.0, 6.0), (3.0, 2.0, 2.0), (0.0, 2.0, 2.0), (0.0, 0.0, 1e-6)])
def test_the_order_of_ranks_is_that_of_worth(prefill: float, load: float, worth: float) -> None:
    """Whatever the moment at which one looks."""
    for size, used, now in ((10, 0.0, 0.0), (1000, 50.0, 5000.0)):
        shown = worth / size * 2 ** (-(now - used) / HALF_LIFE)
        assert math.isclose(rank(prefill, load, size, used), math.log2(shown) + now / HALF_LIFE, abs_tol=1e-9)


def test_an_expensive_prefill_stays_and_fades() -> None:
    tier: Tier[str, str] = Tier(100)
    tier.put("dear", "", 50, now=0, prefill_seconds=64, load_seconds=1)
    tier.put("cheap", "", 50, now=1, prefill_seconds=2, load_seconds=1)
    tier.put("new", "", 50, now=2, prefill_seconds=2, load_seconds=1)
    assert set(tier) == {"dear", "new"}
    # Six half-lives (and a little) make 63 seconds less than one.
    tier.put("late", "", 50, now=3 + 6 * HALF_LIFE, prefill_seconds=2, load_seconds=1)
    assert set(tier) == {"dear", "late"}
    assert tier.get("dear", 4 + 6 * HALF_LIFE) == ""
    tier.put("later", "", 50, now=5 + 13 * HALF_LIFE, prefill_seconds=2, load_seconds=1)
    assert set(tier) == {"dear", "later"}


def test_pins_hold_and_say_so() -> None:
    left: list[str] = []
    tier: Tier[str, str] = Tier(100, lambda key, _value: left.append(key))
    assert tier.put("a", "", 60, now=0, pinned=True) == "kept"
    assert tier.put("b", "", 40, now=1) == "kept"
    assert tier.put("c", "", 50, now=2) == "pins in the way"
    assert left == []
    assert tier.put("d", "", 101, now=3) == "too large"
    assert tier.put("e", "", 40, now=4) == "kept"
    assert left == ["b"]
    tier.pin("a", False)
    assert tier.put("c", "", 50, now=5) == "kept"
    assert left == ["b", "a"]
    tier.pin("nobody")
    tier.drop(["c", "c", "nobody"])
    assert left == ["b", "a", "c"]


def test_a_tier_without_a_budget_keeps_nothing_but_emptiness() -> None:
    tier: Tier[str, str] = Tier(0)
    assert tier.put("a", "", 1, now=0) == "too large"
    assert tier.put("nothing", "", 0, now=0) == "kept"


def test_many_uses_do_not_pile_up() -> None:
    tier: Tier[int, None] = Tier(10)
    for key in range(10):
        tier.put(key, None, 1, now=0)
    for now in range(10_000):
        tier.get(now % 10, now)
        tier.pin(now % 10)
        tier.pin(now % 10, False)
    assert len(tier._ranks) < 200  # pyright: ignore[reportPrivateUsage]


def test_speed_follows_what_it_sees() -> None:
    speed = Speed(100.0, weight=0.5)
    assert speed.seconds(50) == 0.5
    speed.saw(300, 1.0)
    assert speed.bytes_per_second == 200.0
    speed.saw(0, 1.0)
    speed.saw(10, 0.0)
    assert speed.bytes_per_second == 200.0


def test_what_loads_slower_than_it_computes_is_not_loaded() -> None:
    assert worth_loading(1.0, 2.0)
    assert not worth_loading(2.0, 1.0)
    assert worth_loading(2.0, 0.0), "text is not computed"
