"""The cosine of a query with documents and those beside them, without building a vector for each.

The sum of a document's unit vector and shares of its neighbours' has, as its product with the query, the same sum of their
cosines. Only its length needs the vectors themselves: it is computed once and kept with the neighbours that it was computed
with, so that a neighbour that comes late, gets its vector late, or goes away is noticed by comparison.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .dense import Int8
from .ranking import DENSE_AFTER, DENSE_BEFORE, DENSE_COLUMNS, Beside, Floats, Numbers
from .sequences import NONE

SLICE: Final = 512
"""Documents whose lengths are computed at once: some 4 MB of vectors."""
WIDTH: Final = len(DENSE_COLUMNS)


class Lengths:
    """Lengths of blended vectors, one size of vectors for all; kept for the documents that were asked for."""

    def __init__(self) -> None:
        self._size = 0
        self._with = np.zeros((0, WIDTH), np.int32)
        self._lengths = np.zeros(0, np.float32)

    def forget(self, document: int) -> None:
        """A document's own vector changed."""
        if document < len(self._lengths):
            self._lengths[document] = 0

    def of(
        self, candidates: NDArray[np.intp], others: Numbers, share: Floats, size: int, take: Callable[[NDArray[np.intp]], Int8]
    ) -> Floats:
        """The length of each candidate's sum; `others` are its neighbours that have vectors [n, 4], `share` what they add."""
        if size != self._size:
            self._size, self._lengths = size, np.zeros(0, np.float32)
        top = int(candidates.max(initial=-1)) + 1
        if top > len(self._lengths):
            room = max(top, len(self._lengths) * 3 // 2)
            kept, lengths = np.full((room, WIDTH), NONE, np.int32), np.zeros(room, np.float32)
            held = len(self._lengths)
            kept[:held], lengths[:held] = self._with[:held], self._lengths
            self._with, self._lengths = kept, lengths
        stale = np.flatnonzero((self._lengths[candidates] == 0) | (self._with[candidates] != others).any(1))
        for begin in range(0, len(stale), SLICE):
            some = stale[begin : begin + SLICE]
            whole = _unit(take(candidates[some]))
            for column in range(WIDTH):
                beside = np.flatnonzero(others[some, column] >= 0)
                if len(beside):
                    vectors = _unit(take(others[some[beside], column].astype(np.intp)))
                    whole[beside] += vectors * share[some[beside], column][:, None]
            self._lengths[candidates[some]] = np.maximum(np.linalg.norm(whole, axis=1), 1e-6)
            self._with[candidates[some]] = others[some]
        return self._lengths[candidates]


def _unit(rows: Int8) -> Floats:
    floats = rows.astype(np.float32)
    lengths = np.linalg.norm(floats, axis=1, keepdims=True)
    floats /= np.maximum(lengths, 1e-6)
    return floats


def blended(
    lengths: Lengths,
    candidates: NDArray[np.intp],
    near: Beside,
    cosines: Floats,
    has: NDArray[np.bool_],
    size: int,
    take: Callable[[NDArray[np.intp]], Int8],
) -> Floats:
    """The cosine of each candidate with its neighbours. `cosines` and `has` are columns: by document, and whether there is one.

    A candidate without a vector of its own gets 0.
    """
    share = near.shares((*DENSE_BEFORE, *DENSE_AFTER), DENSE_COLUMNS)
    others = near.documents[:, list(DENSE_COLUMNS)]
    others = np.where((others >= 0) & has[np.maximum(others, 0)] & (share > 0), others, NONE)
    share = np.where(others >= 0, share, 0).astype(np.float32)
    dots = cosines[candidates] + np.einsum("ij,ij->i", cosines[np.maximum(others, 0)], share)
    own = has[candidates]
    result = np.zeros(len(candidates), np.float32)
    if own.any():
        found = lengths.of(candidates[own], others[own], share[own], size, take)
        result[own] = dots[own] / found
    return result
