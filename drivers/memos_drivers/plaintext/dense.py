"""The dense half of retrieval: int8 vectors in one growable matrix, scanned exactly by SIMD kernels.

- A vector is scaled so that its largest component is ±127 and rounded. The cosine divides by the length of the rounded
  row, so no scale is stored. Measured on 2,760 conversation turns and 999 questions (MiniLM, 384): the cosine errs by
  0.0005 (rms), 0.0036 at most; 99.6 % of the ten nearest by float32 stay (one scale of 127 for all rows: 97.1 %).
- The first vector fixes the dimensions; a vector of another size is refused with `MemModel`.
- `cosines` scores every row (100,000 rows of 384 in 2 ms on one thread), or only the rows that a filter left.
- One writer and several readers: growth replaces the matrix, and a reader keeps the one it began with.
"""

from __future__ import annotations

import numkong
import numpy as np
from numpy.typing import NDArray

from memos_syscalls.errors import MemInvalid, MemModel

Int8 = NDArray[np.int8]
Floats = NDArray[np.float32]


def quantised(vector: NDArray[np.floating] | list[float] | tuple[float, ...]) -> Int8:
    """One int8 row for a vector of any length. Raises `MemInvalid` when it has no direction."""
    floats = np.asarray(vector, np.float64).reshape(-1)
    peak = float(np.abs(floats).max(initial=0.0))
    if not np.isfinite(peak) or peak < 1e-30:
        raise MemInvalid("an embedding is made of finite numbers, and not only of zeros")
    return np.rint(floats * (127.0 / peak)).astype(np.int8)


class DenseIndex:
    """Rows 0, 1, 2 …; a row without a vector is zero and has no cosine."""

    def __init__(self) -> None:
        self._rows: Int8 = np.zeros((0, 0), np.int8)
        self._inverse: Floats = np.zeros(0, np.float32)
        self.vectors = 0

    @property
    def dims(self) -> int:
        """Components of a vector; 0 before the first one."""
        return int(self._rows.shape[1])

    def check_dims(self, dims: int) -> None:
        """Refuses vectors that cannot be compared with those of this index."""
        if self.dims and dims != self.dims:
            raise MemModel(f"an embedding of {dims} numbers does not fit an index of {self.dims}")

    def put(self, first: int, block: Int8) -> None:
        """Takes over quantised rows `first`, `first` + 1, …; zero rows stay without a vector."""
        self.check_dims(block.shape[1])
        end = first + len(block)
        if not self.dims or end > len(self._rows):
            room = max(1024, end, len(self._rows) + len(self._rows) // 2)
            # Fresh zero pages cost no memory until they are written.
            rows, inverse = np.zeros((room, block.shape[1]), np.int8), np.zeros(room, np.float32)
            rows[: len(self._rows)], inverse[: len(self._rows)] = self._rows.reshape(-1, block.shape[1]), self._inverse
            self._rows, self._inverse = rows, inverse
        square = np.einsum("ij,ij->i", block, block, dtype=np.int32).astype(np.float32)
        inverse = np.divide(1.0, np.sqrt(square), out=np.zeros(len(block), np.float32), where=square > 0)
        self.vectors += int(np.count_nonzero(inverse)) - int(np.count_nonzero(self._inverse[first:end]))
        self._rows[first:end] = block
        self._inverse[first:end] = inverse

    def set(self, number: int, vector: NDArray[np.floating] | list[float] | tuple[float, ...]) -> None:
        """Gives a row its vector."""
        self.put(number, quantised(vector).reshape(1, -1))

    def clear(self, number: int) -> None:
        """Overwrites a row with zeros."""
        if number < len(self._rows):
            self.vectors -= bool(self._inverse[number])
            self._inverse[number] = 0
            self._rows[number] = 0

    def present(self, count: int) -> NDArray[np.bool_]:
        """Which of the first `count` rows have a vector."""
        has = np.zeros(count, np.bool_)
        inverse = self._inverse[:count]
        has[: len(inverse)] = inverse != 0
        return has

    def take(self, numbers: NDArray[np.intp]) -> Int8:
        """Copies of quantised rows; zero rows where there is no vector (or the number is negative)."""
        block = np.zeros((len(numbers), self.dims), np.int8)
        inside = (numbers >= 0) & (numbers < len(self._rows))
        block[inside] = self._rows[numbers[inside]]
        return block

    def cosines(self, vector: NDArray[np.floating] | list[float] | tuple[float, ...], numbers: NDArray[np.intp]) -> Floats:
        """The cosine of each of these rows, all of which have a vector, with the query's vector."""
        query = quantised(vector).reshape(1, -1)
        self.check_dims(query.shape[1])
        inverse, rows = self._inverse, self._rows
        length = float(np.sqrt(np.einsum("ij,ij->", query, query, dtype=np.int32)))
        if not len(numbers):
            return np.zeros(0, np.float32)
        end = int(numbers[-1]) + 1
        if len(numbers) * 4 < end:
            dots = np.asarray(numkong.cdist(rows[numbers], query, "dot", threads=1)).reshape(-1)
        else:
            dots = np.asarray(numkong.cdist(rows[:end], query, "dot", threads=1)).reshape(-1)[numbers]
        return (dots.astype(np.float32) * inverse[numbers]) / np.float32(length)
