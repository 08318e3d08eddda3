"""Who holds a word, as numbers and as bits: both answer like a set."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memos_drivers.plaintext import postings as module
from memos_drivers.plaintext.postings import FREQUENT, Postings, packed


def grown(holders: set[int], ends: list[int]) -> Postings:
    """Postings to which documents came in several parts."""
    made = Postings()
    for begin, end in pairwise([0, *ends]):
        made = made.extended(np.asarray(sorted(n for n in holders if begin <= n < end), np.int32), end)
    return made


@st.composite
def cases(draw: st.DrawFn) -> tuple[set[int], list[int], int, set[int]]:
    ends = sorted(draw(st.sets(st.integers(1, 400), min_size=1, max_size=4)))
    everyone = st.integers(0, ends[-1] - 1)
    holders = draw(st.sets(everyone, max_size=6) | st.sets(everyone))
    return holders, ends, draw(st.integers(0, ends[-1])), draw(st.sets(everyone))


@given(cases())
def test_postings_answer_like_a_set_however_they_are_kept(case: tuple[set[int], list[int], int, set[int]]) -> None:
    holders, ends, seen, scope = case
    whole = grown(holders, ends)
    assert (whole.having, whole.upto) == (len(holders), ends[-1])
    part = whole.first(seen)
    holders = {n for n in holders if n < seen}
    scope = {n for n in scope if n < seen}
    mask = np.zeros(seen, np.bool_)
    mask[list(scope)] = True
    assert part.having == len(holders)
    assert {n for n in range(seen) if part.holds(n)} == holders
    assert part.within(mask, packed(mask)) == len(holders & scope)
    scratch = np.zeros(seen, np.bool_)
    asked = np.asarray([[n, (n * 7) % seen] for n in range(seen)], np.int32).reshape(-1, 2)
    assert part.at(asked, scratch).tolist() == [[n in holders for n in row] for row in asked.tolist()]
    assert not scratch.any(), "it is lent, not given"
    scores = np.zeros(seen, np.float32)
    part.weigh(scores, np.float32(2), None, mask)
    assert np.flatnonzero(scores).tolist() == sorted(holders) and set(scores.tolist()) <= {0, 2}
    some = np.zeros(seen, np.float32)
    part.weigh(some, np.float32(2), np.flatnonzero(mask), mask)
    assert np.flatnonzero(some).tolist() == sorted(holders & scope)


def test_a_word_becomes_bits_when_it_is_frequent_and_these_are_smaller() -> None:
    few = grown(set(range(0, 6400, FREQUENT)), [6400])
    more = grown(set(range(0, 6400, FREQUENT - 1)), [6400])
    assert few.bits is None and more.bits is not None
    assert more.bytes == 6400 // 8 <= few.bytes


def test_scores_of_many_documents_are_added_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 64)
    holders = {n for n in range(1000) if n % 3 == 0}
    scores = np.zeros(1000, np.float32)
    grown(holders, [500, 1000]).weigh(scores, np.float32(1.5), None, np.ones(1000, np.bool_))
    assert scores.tolist() == [1.5 if n in holders else 0 for n in range(1000)]
