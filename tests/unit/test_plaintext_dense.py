"""The dense matrix: the nearest rows by binary codes against the nearest by cosine."""

from __future__ import annotations

import numpy as np
import pytest

from memos_drivers.plaintext import dense
from memos_drivers.plaintext.dense import (
    CODES_FROM,
    DenseIndex,
    Floats,
    Int8,
    Rows,
    Vectors,
    closest,
    codes_of,
    distances,
    largest,
)
from memos_syscalls.errors import MemModel

DIMS = 100
ROWS = CODES_FROM + 5_000


def crowd(count: int, dims: int = DIMS) -> Int8:
    """Vectors in clusters, as texts about the same things are."""
    rng = np.random.default_rng(5)
    about = rng.standard_normal((300, dims), np.float32)
    vectors = about[rng.integers(0, 300, count)] + 0.7 * rng.standard_normal((count, dims), np.float32)
    rows: Int8 = np.rint(vectors * (127 / np.abs(vectors).max(1, keepdims=True))).astype(np.int8)
    return rows


@pytest.fixture(scope="module")
def block() -> Int8:
    return crowd(ROWS)


@pytest.fixture(scope="module")
def queries(block: Int8) -> Floats:
    return block[::997].astype(np.float32)


@pytest.fixture(scope="module")
def index(block: Int8) -> DenseIndex:
    """Filled below the size at which codes begin, across it, and after it."""
    index = DenseIndex()
    for begin in range(0, ROWS, 30_000):
        index.put(begin, block[begin : begin + 30_000])
    return index


def exact(index: DenseIndex, query: Floats, rows: Rows, count: int) -> list[int]:
    return [int(place) for place in np.argsort(-index.cosines(query, rows), kind="stable")[:count]]


def test_distances_count_differing_signs_of_any_size() -> None:
    for dims in (1, 7, 64, 65, 384, 1024):
        block = crowd(300, dims)
        signs = block > 0
        assert np.array_equal(distances(codes_of(block), codes_of(block[:1]), 300), (signs != signs[0]).sum(1))


def test_closest_are_all_the_smallest() -> None:
    rng = np.random.default_rng(1)
    gaps = np.full(200_000, 400)
    gaps[1::20] = 3
    for numbers in (rng.integers(0, 300, 200_000), np.full(200_000, 7), np.arange(200_000) // 1000, gaps, np.arange(50)):
        scores = numbers.astype(np.uint16)
        for count in (0, 1, 40, 5_000):
            places = closest(scores, count)
            wanted = min(count, len(scores))
            assert len(places) >= wanted
            assert sorted(scores[places])[:wanted] == sorted(scores)[:wanted]
            if wanted:
                assert scores[places].max() == np.sort(scores)[wanted - 1]


def test_largest_are_all_that_equal_the_last() -> None:
    rng = np.random.default_rng(2)
    late = np.zeros(300_000, np.float32)
    late[1::4] = 1
    for scores in (rng.standard_normal(300_000, np.float32), np.repeat(rng.standard_normal(9, np.float32), 40_000), late):
        for count in (0, 1, 33, 2_000, 299_999, 400_000):
            wanted = min(count, len(scores))
            lowest = np.sort(scores)[len(scores) - wanted] if wanted else np.inf
            assert np.array_equal(largest(scores, count), np.flatnonzero(scores >= lowest))


def test_a_small_scope_is_exact(index: DenseIndex, queries: Floats) -> None:
    rows = np.arange(3, 20_000, 7)
    places, cosines = index.nearest(queries[3], rows, 20)
    assert places.tolist() == exact(index, queries[3], rows, 20)
    assert np.array_equal(cosines, index.cosines(queries[3], rows)[places])


def test_equal_cosines_stand_by_place() -> None:
    index = DenseIndex()
    index.put(0, np.repeat(crowd(2), 6, axis=0))
    query = crowd(2)[1].astype(np.float32)
    places, cosines = index.nearest(query, np.arange(12), 8)
    assert places.tolist() == [6, 7, 8, 9, 10, 11, 0, 1] and cosines[0] == pytest.approx(1)
    assert index.nearest(query, np.zeros(0, np.intp), 5)[0].tolist() == []
    assert index.nearest(query, np.arange(12), 0)[0].tolist() == []


@pytest.mark.parametrize("step", [1, 4])
def test_a_large_scope_finds_nearly_all(
    index: DenseIndex, queries: Floats, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense, "CODES_FROM", 16_000)
    monkeypatch.setattr(dense, "CANDIDATES_MIN", 2_000)
    rows = np.arange(0, ROWS, step)[::-1].astype(np.int32)
    found = 0
    for query in queries[:20]:
        places, cosines = index.nearest(query, rows, 10)
        assert np.array_equal(cosines, index.cosines(query, rows[places]))
        assert np.all(np.diff(cosines) <= 0)
        found += len(set(places.tolist()) & set(exact(index, query, rows, 10)))
    assert found >= 0.97 * 200


@pytest.mark.parametrize("codes_from", [16_000, 10**9])
def test_a_scope_that_is_most_of_the_rows_is_a_mask(
    index: DenseIndex, queries: Floats, codes_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense, "CODES_FROM", codes_from)
    monkeypatch.setattr(dense, "CANDIDATES_MIN", 2_000)
    inside = np.arange(ROWS) % 3 > 0
    found = 0
    for query in queries[:20]:
        for mask, rows in ((None, np.arange(ROWS)), (inside, np.flatnonzero(inside))):
            best, cosines = index.nearest_inside(query, mask, ROWS, 10)
            assert np.array_equal(cosines, index.cosines(query, best)) and np.all(np.diff(cosines) <= 0)
            assert set(best.tolist()) <= set(rows.tolist())
            found += len(set(best.tolist()) & {int(rows[at]) for at in exact(index, query, rows, 10)})
    assert found >= (0.97 if codes_from < ROWS else 1) * 400


def test_a_mask_of_few_rows_finds_them_all(index: DenseIndex, queries: Floats, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "CODES_FROM", 16_000)
    few = np.zeros(ROWS, np.bool_)
    few[[5, 500, 5000]] = True
    assert sorted(index.nearest_inside(queries[0], few, ROWS, 10)[0].tolist()) == [5, 500, 5000]


def test_documents_find_their_vectors_wherever_their_rows_are(block: Int8) -> None:
    vectors = Vectors()
    vectors.reserve(300)
    for number in (7, 3, 250):
        vectors.set([number], block[number : number + 1])
    vectors.put(100, block[100:110])
    mask = np.ones(300, np.bool_)
    for hidden, wanted in ((None, [3, 7, 100, 250]), (250, [3, 7, 100])):
        mask[hidden if hidden is not None else 299] = False
        reach = vectors.reach(mask, block.shape[1])
        assert reach is not None and reach.having == (13 if hidden is None else 12)
        assert sorted(int(reach.nearest(block[n].astype(np.float32), 1)[0][0]) for n in wanted) == wanted
    vectors.set([5, 3, 8], block[[105, 103, 108]])
    everyone = np.ones(300, np.bool_)
    again = vectors.reach(everyone, block.shape[1])
    assert again is not None and again.having == 15
    for number, vector in ((5, 105), (3, 103), (8, 108), (7, 7)):
        assert number in again.nearest(block[vector].astype(np.float32), 2)[0].tolist()
    vectors.clear(7)
    reach = vectors.reach(np.ones(300, np.bool_), block.shape[1])
    assert reach is not None and 7 not in reach.nearest(block[7].astype(np.float32), 300)[0].tolist()
    assert vectors.reach(mask, 5) is None


def test_codes_follow_their_rows(block: Int8) -> None:
    index = DenseIndex()
    index.put(0, block)
    query = block[11].astype(np.float32)
    rows = np.arange(ROWS)
    assert index.nearest(query, rows, 1)[0].tolist() == [11]
    index.clear(11)
    assert index.nearest(query, rows, 1)[0].tolist() != [11]
    index.put(77, block[11:12])
    assert index.nearest(query, rows, 1)[0].tolist() == [77]
    # Growth takes the codes along.
    index.put(ROWS, -block[11:12].repeat(ROWS, axis=0))
    more = np.arange(2 * ROWS)
    assert index.nearest(query, more, 1)[0].tolist() == [77]
    assert index.nearest(-query, more, 2)[0].tolist() == [ROWS, ROWS + 1]


def test_vectors_of_another_size_are_refused(index: DenseIndex) -> None:
    with pytest.raises(MemModel):
        index.nearest(np.ones(DIMS + 1), np.arange(ROWS), 3)
