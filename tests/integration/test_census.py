"""What sys_stats counts: exactly while that is quick, and not all the time where it is not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.inside import ADMIN, ALICE, Inside

from memos_kernel import census
from memos_kernel.state import View


@pytest.fixture
def k() -> Any:
    with Inside() as inside:
        yield inside


def test_a_count_that_is_quick_is_of_this_moment(k: Inside) -> None:
    for n in range(3):
        made = k("mem_alloc", namespace="a", content="x" * n)
        cubes = k("sys_stats")["cubes"]
        assert cubes["namespaces"]["a"] == {"cubes": n + 1, "bytes": n * (n + 1) // 2}
        assert cubes["forms"] == {"plaintext": n + 1} and cubes["as_of_offset"] == made["offset"]


def test_a_long_count_is_given_again_and_names_nothing_that_is_gone(k: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(census, "BRIEF_SECONDS", 0.0)
    monkeypatch.setattr(census, "AGAIN", 10**9)
    k("mem_alloc", namespace="a", content="x")
    other = k("mem_alloc", ALICE, namespace="alice", content="y")
    first = k("sys_stats", ADMIN)["cubes"]
    k("mem_alloc", namespace="a", content="z")
    assert k("sys_stats", ADMIN)["cubes"] == first
    assert list(k("sys_stats", ALICE)["cubes"]["namespaces"]) == ["alice"], "a count belongs to its caller"
    assert k("sys_stats", ALICE)["cubes"]["as_of_offset"] > other["offset"]

    def gone(_view: View, _name: str) -> None:
        """No namespace is there."""

    monkeypatch.setattr(View, "namespace", gone)
    assert k("sys_stats", ADMIN)["cubes"]["namespaces"] == {}


def test_who_asks_during_a_count_gets_it_and_who_gives_up_does_not_end_it(k: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(census, "BRIEF_SECONDS", 0.0)
    k("mem_alloc", namespace="a", content="x")
    counted: list[int] = []
    plain = census._counted  # pyright: ignore[reportPrivateUsage]

    def slow(view: Any, access: Any) -> dict[str, Any]:
        counted.append(1)
        return plain(view, access)

    monkeypatch.setattr(census, "_counted", slow)

    async def ask() -> list[Any]:
        of = k.kernel.census.of
        quitter = asyncio.ensure_future(of(ADMIN))
        others = [asyncio.ensure_future(of(ADMIN)) for _ in range(3)]
        await asyncio.sleep(0)
        quitter.cancel()
        return list(await asyncio.gather(*others))

    found = k.loop.run_until_complete(ask())
    assert len(counted) == 1 and found[0] == found[1] == found[2]
    assert found[0]["forms"] == {"plaintext": 1}
