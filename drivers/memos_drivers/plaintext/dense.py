"""The dense half of retrieval: int8 vectors in growable matrices, one for each size, scanned exactly by SIMD kernels.

- A vector is scaled so that its largest component is ±127 and rounded. The cosine divides by the length of the rounded
  row, so no scale is stored. Measured on 2,760 conversation turns and 999 questions (MiniLM, 384): the cosine errs by
  0.0005 (rms), 0.0036 at most; 99.6 % of the ten nearest by float32 stay (one scale of 127 for all rows: 97.1 %).
- Vectors of different sizes live beside each other and never meet: a query scans the matrix of its own size. So nobody's
  vector keeps another's out. With a fixed size (an embedder's) vectors of all other sizes are left out instead.
- `cosines` scores every row (100,000 rows of 384 in 2 ms on one thread), or only the rows that a filter left.
- `nearest` answers the best rows alone. In a scope of `CODES_FROM` rows or more it first ranks by binary codes, one bit
  for the sign of each component, in memory only (48 bytes for a row of 384), and scores the best `CANDIDATES_MIN` of
  them exactly; below, it scores all. Centring and rotating before taking signs gained nothing, so a code depends on its
  row alone. What it misses and what it saves: tests/bench/scale.py, and docs/benchmarks.md.
- One writer and several readers: growth replaces a matrix, and a reader keeps the one it began with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numkong
import numpy as np
from numpy.typing import NDArray

from memos_syscalls.errors import MemInvalid, MemModel

Int8 = NDArray[np.int8]
Floats = NDArray[np.float32]
Numbers = NDArray[np.intp]
Mask = NDArray[np.bool_]
Rows = NDArray[np.intp] | NDArray[np.int32]
Vector = NDArray[np.floating] | list[float] | tuple[float, ...]
Codes = NDArray[np.uint64]
Distances = NDArray[np.uint16]
CODES_FROM: Final = 131_072
"""Rows in scope from which binary codes are faster than exact cosines, where the scope is most of the matrix."""
CODES_SPAN: Final = 25
"""In a scope of scattered rows codes are faster when all rows up to its last are at most so many times as many."""
CANDIDATES_MIN: Final = 8192
CANDIDATES_EACH: Final = 8
"""Rows that are scored exactly for each that is wanted, when that is more than `CANDIDATES_MIN`."""
_BLOCK_ROWS: Final = 16_384
"""A block's codes and counts stay in the processor's second cache."""
_SAMPLE: Final = 16_384
_GIVEN_UP: Final = 2**16 - 1
_OUTSIDE: Final = 2**15
"""A distance that no row has: vectors have at most 8,192 components."""


def quantised(vector: Vector) -> Int8:
    """One int8 row for a vector of any length. Raises `MemInvalid` when it has no direction."""
    floats = np.asarray(vector, np.float64).reshape(-1)
    peak = float(np.abs(floats).max(initial=0.0))
    if not np.isfinite(peak) or peak < 1e-30:
        raise MemInvalid("an embedding is made of finite numbers, and not only of zeros")
    return np.rint(floats * (127.0 / peak)).astype(np.int8)


def codes_of(block: Int8) -> Codes:
    """The signs of quantised rows as words of 64 bits, one row of words for each 64 components."""
    bits = np.packbits(block > 0, axis=1)
    width = -(-bits.shape[1] // 8) * 8
    padded = np.zeros((len(block), width), np.uint8)
    padded[:, : bits.shape[1]] = bits
    return np.ascontiguousarray(padded.view(np.uint64).T)


def distances(codes: Codes, query: Codes, end: int) -> Distances:
    """In how many signs the first `end` rows differ from the query's."""
    out = np.zeros(end, np.uint16)
    words = np.empty(min(end, _BLOCK_ROWS), np.uint64)
    counts, sums = np.empty(len(words), np.uint8), np.empty(len(words), np.uint8)
    for begin in range(0, end, _BLOCK_ROWS):
        size = min(_BLOCK_ROWS, end - begin)
        word, count, total = words[:size], counts[:size], sums[:size]
        block = out[begin : begin + size]
        # Three counts of at most 64 fit a byte, and bytes are added fastest.
        for first in range(0, len(codes), 3):
            for at in range(first, min(first + 3, len(codes))):
                np.bitwise_xor(codes[at, begin : begin + size], query[at, 0], out=word)
                np.bitwise_count(word, out=total if at == first else count)
                if at > first:
                    np.add(total, count, out=total)
            np.add(block, total, out=block)
    return out


def closest(scores: Distances, count: int) -> Numbers:
    """Places of at least `count` smallest scores, and of few more, ascending."""
    if count >= len(scores):
        return np.arange(len(scores))
    stride = max(1, len(scores) // _SAMPLE)
    bound = int(np.searchsorted(np.cumsum(np.bincount(scores[::stride])), -(-count // stride)))
    places = np.flatnonzero(scores <= bound)
    if len(places) < count:
        # The sample misled. To count all is slower, and always right.
        bound = int(np.searchsorted(np.cumsum(np.bincount(scores)), count))
        return np.flatnonzero(scores <= bound)
    exact = int(np.searchsorted(np.cumsum(np.bincount(scores[places])), count))
    return places if exact >= bound else places[scores[places] <= exact]


def largest(scores: Floats, count: int) -> Numbers:
    """Places of the `count` largest scores and of those that equal the last of them, ascending: `np.argpartition` for
    many, in a tenth of the time."""
    if count >= len(scores):
        return np.arange(len(scores))
    if count <= 0:
        return np.zeros(0, np.intp)
    places: Numbers | None = None
    stride = len(scores) // _SAMPLE
    if stride > 1:
        # A bound that a few more than wanted pass, most likely.
        sample = scores[::stride]
        rank = min(len(sample), 2 * count // stride + 8)
        places = np.flatnonzero(scores >= np.partition(sample, len(sample) - rank)[len(sample) - rank])
        if len(places) < count:
            places = None
    some = scores if places is None else scores[places]
    kept = np.flatnonzero(some >= np.partition(some, len(some) - count)[len(some) - count])
    return kept if places is None else places[kept]


class DenseIndex:
    """The matrix of one size. Rows 0, 1, 2 …; a row without a vector is zero and has no cosine."""

    def __init__(self) -> None:
        self._rows: Int8 = np.zeros((0, 0), np.int8)
        self._inverse: Floats = np.zeros(0, np.float32)
        # None until there are CODES_FROM rows.
        self._codes: Codes | None = None
        self.count = 0
        """Rows in use."""
        self.vectors = 0

    @property
    def dims(self) -> int:
        """Components of a vector; 0 before the first one."""
        return int(self._rows.shape[1])

    def check_dims(self, dims: int) -> None:
        """Refuses vectors that cannot be compared with those of this matrix."""
        if self.dims and dims != self.dims:
            raise MemModel(f"an embedding of {dims} numbers does not fit a matrix of {self.dims}")

    def put(self, first: int, block: Int8) -> None:
        """Takes over quantised rows `first`, `first` + 1, …; zero rows stay without a vector."""
        self.check_dims(block.shape[1])
        end = first + len(block)
        if not self.dims or end > len(self._rows):
            # Small at first, for a size that only one vector has.
            room = max(16, end, len(self._rows) + len(self._rows) // 2)
            # Fresh zero pages cost no memory until they are written.
            rows, inverse = np.zeros((room, block.shape[1]), np.int8), np.zeros(room, np.float32)
            rows[: len(self._rows)], inverse[: len(self._rows)] = self._rows.reshape(-1, block.shape[1]), self._inverse
            self._rows, self._inverse = rows, inverse
        square = np.einsum("ij,ij->i", block, block, dtype=np.int32).astype(np.float32)
        inverse = np.divide(1.0, np.sqrt(square), out=np.zeros(len(block), np.float32), where=square > 0)
        self.vectors += int(np.count_nonzero(inverse)) - int(np.count_nonzero(self._inverse[first:end]))
        self._rows[first:end] = block
        self._inverse[first:end] = inverse
        self.count = max(self.count, end)
        self._put_codes(first, block)

    def clear(self, row: int) -> None:
        """Overwrites a row with zeros."""
        self.vectors -= bool(self._inverse[row])
        self._inverse[row] = 0
        self._rows[row] = 0
        if self._codes is not None:
            self._codes[:, row] = 0

    def _put_codes(self, first: int, block: Int8) -> None:
        if self.count < CODES_FROM:
            return
        codes = self._codes
        if codes is None or codes.shape[1] < len(self._rows):
            grown = np.zeros((-(-self.dims // 64), len(self._rows)), np.uint64)
            if codes is None:
                for begin in range(0, self.count, _BLOCK_ROWS):
                    end = min(begin + _BLOCK_ROWS, self.count)
                    grown[:, begin:end] = codes_of(self._rows[begin:end])
            else:
                grown[:, : codes.shape[1]] = codes
            codes = self._codes = grown
        codes[:, first : first + len(block)] = codes_of(block)

    def take(self, rows: Rows) -> Int8:
        """Copies of quantised rows."""
        taken: Int8 = self._rows[rows]
        return taken

    def cosines(self, vector: Vector, rows: Rows) -> Floats:
        """The cosine of each of these rows with the query's vector; 0 for a row without a vector."""
        query = quantised(vector).reshape(1, -1)
        self.check_dims(query.shape[1])
        inverse, matrix = self._inverse, self._rows
        length = float(np.sqrt(np.einsum("ij,ij->", query, query, dtype=np.int32)))
        if not len(rows):
            return np.zeros(0, np.float32)
        end = int(rows.max()) + 1
        if len(rows) * 4 < end:
            dots = np.asarray(numkong.cdist(matrix[rows], query, "dot", threads=1)).reshape(-1)
        else:
            dots = np.asarray(numkong.cdist(matrix[:end], query, "dot", threads=1)).reshape(-1)[rows]
        return (dots.astype(np.float32) * inverse[rows]) / np.float32(length)

    def nearest(self, vector: Vector, rows: Rows, count: int) -> tuple[Numbers, Floats]:
        """Places in `rows` of the `count` rows with the largest cosines, best first and then by place, and these
        cosines. Exact for few rows, and where much of them is wanted; else nearly so (above)."""
        candidates = _candidates(count)
        codes = self._codes
        places: Numbers | None = None
        if codes is not None and len(rows) >= 8 * candidates:
            query = quantised(vector).reshape(1, -1)
            self.check_dims(query.shape[1])
            end = int(rows.max()) + 1
            few = CODES_FROM if len(rows) * 4 >= end else end // CODES_SPAN
            # A row that came after the codes were taken over has none.
            if len(rows) >= few and end <= codes.shape[1]:
                places = closest(distances(codes, codes_of(query), end)[rows], candidates)
        best, cosines = self._best(vector, rows if places is None else rows[places], count)
        return (best if places is None else places[best]), cosines

    def nearest_inside(self, vector: Vector, inside: Mask | None, end: int, count: int) -> tuple[Numbers, Floats]:
        """`nearest` among the first `end` rows, in a scope that is most of them: a mask of rows, None for all. Rows without a
        vector do not count."""
        candidates = _candidates(count)
        codes = self._codes
        if codes is None or not CODES_FROM <= end <= codes.shape[1]:
            rows = np.flatnonzero(self._inverse[:end] if inside is None else (self._inverse[:end] > 0) & inside)
        else:
            query = quantised(vector).reshape(1, -1)
            self.check_dims(query.shape[1])
            far = distances(codes, codes_of(query), end)
            if inside is not None:
                far[~inside] = _OUTSIDE
            rows = closest(far, candidates)
            rows = rows[(far[rows] < _OUTSIDE) & (self._inverse[rows] > 0)]
        best, cosines = self._best(vector, rows, count)
        return rows[best], cosines

    def _best(self, vector: Vector, rows: Rows, count: int) -> tuple[Numbers, Floats]:
        """Places in `rows` of those with the largest cosines, best first and then by place, and these cosines."""
        scores = self.cosines(vector, rows)
        best = largest(scores, count)
        best = best[np.argsort(-scores[best], kind="stable")[:count]]
        return best, scores[best]


def _candidates(count: int) -> int:
    return max(CANDIDATES_MIN, CANDIDATES_EACH * count)


class Reach(NamedTuple):
    """The vectors of one size among the documents of a scope: their matrix, the document of each row, and for each document
    its row, and whether it is one of them."""

    matrix: DenseIndex
    documents: NDArray[np.int32]
    rows: NDArray[np.int32]
    there: Mask
    having: int

    def nearest(self, vector: Vector, count: int) -> tuple[Numbers, Floats]:
        """The documents with the largest cosines, best first, and these cosines."""
        if self.having * 4 >= len(self.documents):
            inside = None if self.having == len(self.documents) else self.there[self.documents]
            rows, cosines = self.matrix.nearest_inside(vector, inside, len(self.documents), count)
            return self.documents[rows].astype(np.intp), cosines
        numbers = np.flatnonzero(self.there)
        places, cosines = self.matrix.nearest(vector, self.rows[numbers], count)
        return numbers[places], cosines


class Vectors:
    """The vectors of documents 0, 1, 2 …: for each its size, and its row in the matrix of that size."""

    def __init__(self, fixed: int = 0) -> None:
        self.fixed = fixed
        """The only size that is taken; 0 for any."""
        self._sizes = np.zeros(1024, np.uint16)
        self._rows = np.zeros(1024, np.int32)
        self._matrices: dict[int, DenseIndex] = {}
        self._documents: dict[int, NDArray[np.int32]] = {}
        """Of each matrix's rows the documents."""

    @property
    def count(self) -> int:
        """Documents with a vector."""
        return sum(matrix.vectors for matrix in self._matrices.values())

    @property
    def dims(self) -> int:
        """The fixed size, or the one that most vectors have; 0 before the first vector."""
        return self.fixed or max(self._matrices, key=lambda size: self._matrices[size].vectors, default=0)

    def fix(self, size: int) -> None:
        """From now on only this size: vectors of others are dropped."""
        self.fixed = size
        for other in [other for other in self._matrices if other != size]:
            del self._matrices[other], self._documents[other]
            self._sizes[self._sizes == other] = 0

    def reserve(self, count: int) -> None:
        """Room for documents up to this number."""
        if count > len(self._sizes):
            room = max(count, len(self._sizes) * 3 // 2)
            sizes, rows = np.zeros(room, np.uint16), np.zeros(room, np.int32)
            sizes[: len(self._sizes)], rows[: len(self._rows)] = self._sizes, self._rows
            self._sizes, self._rows = sizes, rows

    def put(self, first: int, block: Int8) -> None:
        """Takes over quantised rows for documents `first`, `first` + 1, … that have none; zero rows are no vectors."""
        has = np.flatnonzero(block.any(axis=1))
        if len(has) and self.takes(block.shape[1]):
            self._append(first + has, block[has])

    def takes(self, size: int) -> bool:
        return not self.fixed or size == self.fixed

    def _append(self, numbers: Numbers, block: Int8) -> None:
        """Rows of documents that have none of this size, behind those that are there."""
        size = block.shape[1]
        matrix = self._matrices.setdefault(size, DenseIndex())
        at, end = matrix.count, matrix.count + len(numbers)
        matrix.put(at, block)
        self._sizes[numbers] = size
        self._rows[numbers] = np.arange(at, end)
        documents = self._documents.get(size, np.zeros(0, np.int32))
        if end > len(documents):
            grown = np.zeros(max(16, end, len(documents) * 3 // 2), np.int32)
            grown[: len(documents)] = documents
            documents = self._documents[size] = grown
        documents[at:end] = numbers

    def set(self, numbers: Sequence[int], block: Int8) -> None:
        """Gives documents their vectors, quantised rows of a size that is taken; each document once."""
        size = block.shape[1]
        places = np.asarray(numbers, np.intp)
        held = self._sizes[places]
        for at in np.flatnonzero((held > 0) & (held != _GIVEN_UP)).tolist():
            if held[at] == size:
                self._matrices[size].put(int(self._rows[places[at]]), block[at : at + 1])
            else:
                self.clear(int(places[at]))
        rest = held != size
        if rest.any():
            self._append(places[rest], block[rest])

    def clear(self, number: int) -> None:
        """Overwrites a document's vector with zeros."""
        matrix = self._matrices.get(int(self._sizes[number]))
        if matrix is not None:
            matrix.clear(int(self._rows[number]))
        self._sizes[number] = 0

    def give_up(self, number: int) -> None:
        """No vector is to be had for a document that has none: it is missing no longer."""
        if not self._sizes[number]:
            self._sizes[number] = _GIVEN_UP

    def missing(self, count: int) -> NDArray[np.bool_]:
        """Which of the first `count` documents still wait for a vector."""
        mask: NDArray[np.bool_] = self._sizes[:count] == 0
        return mask

    def reach(self, mask: Mask, size: int) -> Reach | None:
        """The vectors of a size among the documents of a mask."""
        matrix = self._matrices.get(size)
        if matrix is None:
            return None
        there = (self._sizes[: len(mask)] == size) & mask
        return Reach(matrix, self._documents[size][: matrix.count], self._rows, there, int(np.count_nonzero(there)))

    def among(self, numbers: Numbers, size: int) -> tuple[DenseIndex, Numbers, Rows] | None:
        """Of these documents those that have a vector of this size: its matrix, their numbers, their rows."""
        matrix = self._matrices.get(size)
        if matrix is None:
            return None
        numbers = numbers[self._sizes[numbers] == size]
        return matrix, numbers, self._rows[numbers]

    def size(self, number: int) -> int:
        """How many components a document's vector has; 0 without one."""
        size = int(self._sizes[number])
        return 0 if size == _GIVEN_UP else size

    def take(self, numbers: Numbers, size: int) -> Int8:
        """Copies of quantised rows of one size; zero rows where there is none (or the number is negative)."""
        block = np.zeros((len(numbers), size), np.int8)
        inside = numbers >= 0
        inside[inside] = self._sizes[numbers[inside]] == size
        if size and inside.any():
            block[inside] = self._matrices[size].take(self._rows[numbers[inside]])
        return block
