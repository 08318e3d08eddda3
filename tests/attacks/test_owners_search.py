"""What one owner's searches may learn of another's memories, or lose through them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.inside import ADMIN, ALICE, BOB, Inside


@pytest.fixture
def k() -> Iterator[Inside]:
    with Inside() as inside:
        yield inside


def test_an_explanation_does_not_change_with_what_others_write(k: Inside) -> None:
    k("mem_alloc", BOB, namespace="bob", content="zebra one", embedding=[1.0, 0.0])
    for n in range(5):
        k("mem_alloc", BOB, namespace="bob", content=f"other {n}")
    k.settle()

    def why(caller: Any) -> Any:
        return k("mem_search", caller, query="zebra", namespace="bob", explain=True, query_embedding=[1.0, 0.0])["hits"]

    before = why(BOB)
    assert before[0]["why"]["lexical"]["terms"] == ["zebra"] and before[0]["why"]["dense"]["rank"] == 1
    k("mem_alloc", ALICE, namespace="alice", content="my zebra plan")
    k.settle()
    assert why(BOB) == before == why(ADMIN), "statistics are of the searched namespace, whoever asks"


def test_nobodys_vector_keeps_anothers_out(k: Inside) -> None:
    k("mem_alloc", BOB, namespace="bob", content="x", embedding=[1.0])
    k.settle()
    mine = k("mem_alloc", ALICE, namespace="alice", content="y", embedding=[1.0, 0.5])["cube_id"]
    k.settle()
    for restart in (k.settle, k.reopen):
        restart()
        found = k("mem_search", ALICE, query="", mode="dense", query_embedding=[1.0, 2.0])["hits"]
        assert [hit["cube_id"] for hit in found] == [mine]
        # And no size tells what others have: one that nobody uses answers as one that somebody does.
        for size in (1, 3):
            assert k("mem_search", ALICE, query="", mode="dense", query_embedding=[1.0] * size)["hits"] == []
