"""The documents that hold a word: ascending numbers while they are few, one bit for every document once they are many.

A word in more than one document of `FREQUENT` takes less room as bits. Bits also meet a scope, or answer for single
documents, without a walk over all that hold the word: of a million documents 125 KB are looked at instead of a list of 800 KB.
What a word adds to a score does not depend on how it is kept.

A `Postings` never changes, so readers need no lock.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

FREQUENT: Final = 32
BLOCK: Final = 65_536
"""Documents whose scores stay in the processor's second cache; a multiple of 8."""

Bits = NDArray[np.uint8]
Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]
Numbers = NDArray[np.int32]
_NOBODY: Final = np.zeros(0, np.int32)


def packed(mask: Mask) -> Bits:
    """A bit for each document, as `Postings` keeps them."""
    return np.packbits(mask, bitorder="little")


def blocks(count: int) -> Iterator[tuple[int, int]]:
    """`(begin, end)` of documents that are scored together."""
    return ((begin, min(begin + BLOCK, count)) for begin in range(0, count, BLOCK))


class Postings(NamedTuple):
    """Which of the documents 0 … `upto` - 1 hold a word, in numbers or in bits; `having` do."""

    numbers: Numbers = _NOBODY
    bits: Bits | None = None
    having: int = 0
    upto: int = 0

    def extended(self, fresh: Numbers, upto: int) -> Postings:
        """The same with later documents that hold the word, ascending."""
        having = self.having + len(fresh)
        if self.bits is None and having * FREQUENT <= upto:
            return Postings(np.concatenate((self.numbers, fresh)) if self.having else fresh, None, having, upto)
        bits = np.zeros(-(-upto // 8), np.uint8)
        begin = 0
        if self.bits is None:
            fresh = np.concatenate((self.numbers, fresh))
        else:
            bits[: len(self.bits)] = self.bits
            begin = self.upto // 8 * 8
        marks = np.zeros(upto - begin, np.bool_)
        marks[fresh - begin] = True
        bits[begin // 8 :] |= packed(marks)
        return Postings(_NOBODY, bits, having, upto)

    @property
    def bytes(self) -> int:
        return self.numbers.nbytes if self.bits is None else self.bits.nbytes

    def first(self, count: int) -> Postings:
        """Of the first `count` documents alone."""
        if self.upto == count:
            return self
        if self.bits is None:
            numbers = self.numbers[: np.searchsorted(self.numbers, count)]
            return Postings(numbers, None, len(numbers), count)
        bits = self.bits[: -(-count // 8)].copy()
        if count % 8:
            bits[-1] &= (1 << count % 8) - 1
        return Postings(_NOBODY, bits, int(np.bitwise_count(bits).sum(dtype=np.int64)), count)

    def within(self, mask: Mask, bits: Bits) -> int:
        """How many stand in a scope, which is given in both ways."""
        if self.bits is None:
            return int(np.count_nonzero(mask[self.numbers]))
        return int(np.bitwise_count(self.bits & bits).sum(dtype=np.int64))

    def at(self, documents: NDArray[np.integer], scratch: Mask) -> Mask:
        """Whether each of these documents holds the word. `scratch` is a column of False, and is again afterwards."""
        if self.bits is not None:
            return _set(self.bits, documents)
        scratch[self.numbers] = True
        found: Mask = scratch[documents]
        scratch[self.numbers] = False
        return found

    def weigh(self, scores: Floats, weight: np.float32, among: NDArray[np.integer] | None, mask: Mask) -> None:
        """Add a weight to the scores of those that hold the word; only in a scope, where its documents are named in `among`,
        and in their mask."""
        if self.bits is None:
            scores[self.numbers if among is None else self.numbers[mask[self.numbers]]] += weight
        elif among is not None:
            scores[among[_set(self.bits, among)]] += weight
        else:
            for begin, end in blocks(len(scores)):
                hold = np.unpackbits(self.bits[begin // 8 : -(-end // 8)], count=end - begin, bitorder="little")
                scores[begin:end] += hold * weight

    def holds(self, document: int) -> bool:
        if self.bits is not None:
            return bool(self.bits[document >> 3] >> (document & 7) & 1)
        at = int(np.searchsorted(self.numbers, document))
        return at < len(self.numbers) and int(self.numbers[at]) == document


def _set(bits: Bits, documents: NDArray[np.integer]) -> Mask:
    found: Mask = (bits[documents >> 3] >> (documents & 7).astype(np.uint8) & 1).astype(np.bool_)
    return found
