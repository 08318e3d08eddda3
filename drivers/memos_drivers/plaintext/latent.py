"""Vectors of single tokens, small enough to keep: 64 bytes each.

A model's states of a text's tokens are brought to 64 dimensions by one fixed matrix, scaled to length 1 and
rounded to int8. The matrix holds the directions in which states of ordinary English differ most; it was computed from the
texts that stand in this project (`python -m memos_drivers.embed.basis`), for one model alone, whose name stands beside it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Int8 = NDArray[np.int8]
WIDTH: Final = 64
SCALE: Final = 127 * 127
"""Of a product of two rows."""


class Tokens(NamedTuple):
    """A text's tokens: rows [n, 64], and where each stands in it, in characters."""

    rows: Int8
    spans: list[tuple[int, int]]


def rounded(states: NDArray[np.float32], basis: NDArray[np.float32]) -> Int8:
    """States [n, width] as rows [n, 64]; `basis` is [width, 64]."""
    small = states @ basis
    lengths = np.linalg.norm(small, axis=1, keepdims=True)
    rows: Int8 = np.rint(small * (127 / np.maximum(lengths, 1e-9))).astype(np.int8)
    return rows
