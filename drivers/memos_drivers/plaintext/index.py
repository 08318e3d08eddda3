"""The index of the plaintext form: words and vectors of documents, searched together.

- A document is one version of a cube. `set_live` says which version searches in the present find; older versions stay
  for searches in the past.
- Filters (namespaces, tags, event time, liveness) are one mask, and both retrievers score every document, so a filtered
  search finds k documents when k exist.
- `check(cube_id, version)` has the last word on each candidate before it gets a rank: what the caller may not see
  neither appears nor takes a rank. It must answer False for cubes it does not know (one may be removed meanwhile).
  Each retriever deepens until k candidates pass or none is left.
- A query's vector meets the vectors of its own size; `fix_dims` leaves one size, an embedder's, and drops the others.
- Candidates of both retrievers are unioned, then ranked by RRF; ties stand in order of cube id.
- One lock guards the columns while they change. A search holds it only to take its mask; scoring runs outside. `add`
  holds it for the columns alone (1 µs a document); writing words takes a lock of its own, for which searches by words wait.
- `remove` forgets a cube at once for every search and zeroes its vector. FTS5 keeps traces until the index is built
  again: `needs_rebuild`.

The index keeps no texts and writes no files; `segment` packs documents for storage.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .dense import Int8, Vector, Vectors, quantised
from .documents import NONE, Document, Documents, Mask
from .fusion import rrf
from .lexical import LexicalIndex

Mode = Literal["hybrid", "dense", "lexical"]
Check = Callable[[bytes, int], bool]
DEEPEN: Final = 4
REMOVED_MIN: Final = 1024
REMOVED_SHARE: Final = 0.1
LEXICAL_WEIGHT: Final = 1.0
DENSE_WEIGHT: Final = 0.7


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """What to find. `scopes`: namespaces, each with all below it; None for all. `past`: all versions are candidates.
    `scores`: whether an explanation may show lexical scores, which rest on statistics of all documents, of any owner."""

    text: str
    vector: Vector | None = None
    k: int = 10
    mode: Mode = "hybrid"
    scopes: Sequence[str] | None = None
    tags: Sequence[str] = ()
    since: int | None = None
    until: int | None = None
    past: bool = False
    pool: int = 50
    explain: bool = False
    scores: bool = True


class Hit(NamedTuple):
    """One found version. `score` is the fused score; larger is better, and only comparable within one search."""

    cube_id: bytes
    version: int
    score: float
    why: dict[str, Any] | None


class _Ranking(NamedTuple):
    numbers: list[int]
    scores: dict[int, float]


class PlaintextIndex:
    """Documents, their words and their vectors."""

    def __init__(self, dims: int = 0) -> None:
        self._lock = threading.Lock()
        self._adding = threading.Lock()
        self._docs = Documents()
        self._lexical = LexicalIndex()
        self._vectors = Vectors(dims)

    def close(self) -> None:
        self._lexical.close()

    @property
    def documents(self) -> int:
        """Documents that were not removed."""
        return self._docs.count - self._docs.removed

    @property
    def vectors(self) -> int:
        with self._lock:
            return self._vectors.count

    @property
    def dims(self) -> int:
        """Components of a vector, if they are fixed, or of most vectors; 0 before the first."""
        with self._lock:
            return self._vectors.dims

    @property
    def fixed_dims(self) -> int:
        """The only size of vectors that this index takes; 0 for any."""
        return self._vectors.fixed

    def fix_dims(self, dims: int) -> None:
        """Takes vectors of this size alone from now on; documents with others wait for a vector again."""
        with self._lock:
            self._vectors.fix(dims)

    @property
    def needs_rebuild(self) -> bool:
        """Whether so much was removed that a new index should be built from what is left."""
        return self._docs.removed > max(REMOVED_MIN, REMOVED_SHARE * self._docs.count)

    def add(self, documents: Sequence[Document], vectors: Int8 | None = None) -> None:
        """Indexes documents, none of them live yet; those known already are skipped. A zero row is no vector, and
        neither is one of a size that is not taken."""
        with self._adding:
            fresh: dict[tuple[bytes, int], int] = {}
            with self._lock:
                for at, document in enumerate(documents):
                    key = (document.cube_id, document.version)
                    if key not in fresh and self._docs.find(*key) is None:
                        fresh[key] = at
            if len(fresh) < len(documents):
                documents = [documents[at] for at in fresh.values()]
                vectors = vectors[list(fresh.values())] if vectors is not None else None
            if not documents:
                return
            # The words first: a document that a search can see has its postings.
            self._lexical.add([document.text for document in documents])
            with self._lock:
                first = self._docs.append(documents)
                self._vectors.reserve(self._docs.count)
                if vectors is not None and vectors.shape[1]:
                    self._vectors.put(first, vectors)

    def set_vector(self, cube_id: bytes, version: int, vector: Vector) -> bool:
        """Gives a document its vector; False when the document is not here (removed meanwhile), or the size not taken."""
        with self._lock:
            number = self._docs.find(cube_id, version)
            return number is not None and self._vectors.set(number, vector)

    def give_up_vector(self, cube_id: bytes, version: int) -> None:
        """No vector is to be had for a document: `missing_vectors` names it no longer."""
        with self._lock:
            number = self._docs.find(cube_id, version)
            if number is not None:
                self._vectors.give_up(number)

    def set_live(self, cube_id: bytes, version: int | None) -> bool:
        """Makes one version, or none, the one that searches in the present find; False when it is not here."""
        with self._lock:
            return self._docs.set_live(cube_id, version)

    def remove(self, cube_ids: Sequence[bytes]) -> None:
        """Forgets cubes: every version, in every search."""
        with self._lock:
            for cube_id in cube_ids:
                for number in self._docs.remove(cube_id):
                    self._vectors.clear(number)

    def missing_vectors(self, limit: int | None = None) -> list[tuple[bytes, int]]:
        """Documents without a vector, the live ones first, then by age."""
        with self._lock:
            docs = self._docs
            missing = self._vectors.missing(docs.count) & ~docs.column("removed")
            live = docs.column("live")
            numbers = np.concatenate((np.flatnonzero(missing & live), np.flatnonzero(missing & ~live)))
            return [docs.key(int(number)) for number in numbers[:limit]]

    def oldest_missing(self) -> int | None:
        """The log record of the oldest document that has no vector; None when all have one."""
        with self._lock:
            docs = self._docs
            missing = self._vectors.missing(docs.count) & ~docs.column("removed")
            return int(docs.column("seq")[missing].min()) if missing.any() else None

    def sizes(self, keys: Sequence[tuple[bytes, int]]) -> list[int]:
        """For each document how many components its vector has; 0 for none."""
        with self._lock:
            numbers = [self._docs.find(*key) for key in keys]
            return [0 if number is None else self._vectors.size(number) for number in numbers]

    def packed_vectors(self, keys: Sequence[tuple[bytes, int]], size: int | None = None) -> Int8:
        """The quantised vectors of documents, for `segment.pack`; zero rows for those without one of this size."""
        with self._lock:
            numbers = [self._docs.find(*key) for key in keys]
            return self._vectors.take(
                np.asarray([NONE if number is None else number for number in numbers], np.intp),
                self._vectors.dims if size is None else size,
            )

    def search(self, query: SearchQuery, check: Check) -> list[Hit]:
        """The best k documents that pass the filters and `check`, best first."""
        with self._lock:
            mask = self._docs.mask(
                past=query.past, scopes=query.scopes, tags=query.tags, since=query.since, until=query.until
            )
            selected = None
            if query.vector is not None and query.mode != "lexical":
                selected = self._vectors.select(mask, len(quantised(query.vector)))
        verdicts: dict[int, bool] = {}

        def passes(number: int) -> bool:
            if number not in verdicts:
                verdicts[number] = check(*self._docs.key(number))
            return verdicts[number]

        lexical = dense = _Ranking([], {})
        every_term = False
        if query.mode != "dense" and query.text.strip():
            lexical, every_term = self._lexical_ranking(query, mask, passes)
        if query.vector is not None and selected is not None:
            matrix, numbers, rows = selected
            dense = self._ranking(matrix.cosines(query.vector, rows), numbers, query, passes)
        if not dense.numbers or not lexical.numbers:
            only = lexical if lexical.numbers else dense
            fused = rrf([only.numbers])
        else:
            fused = rrf([lexical.numbers, dense.numbers], [LEXICAL_WEIGHT, DENSE_WEIGHT])
        keys = {number: self._docs.key(number) for number in fused}
        best = sorted(fused, key=lambda number: (-fused[number], keys[number]))[: query.k]
        why = self._why(query, best, lexical, dense, fused, every_term) if query.explain else {}
        return [Hit(*keys[number], fused[number], why.get(number)) for number in best]

    def _lexical_ranking(
        self, query: SearchQuery, mask: Mask, passes: Callable[[int], bool]
    ) -> tuple[_Ranking, bool]:
        """The lexical candidates, and whether frequent terms had to be taken in to find k of them."""
        ranking = _Ranking([], {})
        for every_term in (False, True):
            scores, pruned = self._lexical.scores(query.text, every_term=every_term)
            # Documents that came after the mask was taken have no place in it.
            scores = scores[: len(mask)]
            numbers = np.flatnonzero(mask[: len(scores)] & (scores > 0))
            ranking = self._ranking(scores[numbers], numbers, query, passes)
            if not pruned or len(ranking.numbers) >= query.k:
                return ranking, every_term
        return ranking, True

    def _ranking(
        self, scores: NDArray[np.float32], numbers: NDArray[np.intp], query: SearchQuery, passes: Callable[[int], bool]
    ) -> _Ranking:
        """The first `pool` of these documents that pass, and more depth until k pass or the documents are used up."""
        depth = max(query.pool, query.k)
        kept = _Ranking([], {})
        for at in self._best_first(scores, numbers, depth):
            number = int(numbers[at])
            if passes(number):
                kept.numbers.append(number)
                kept.scores[number] = float(scores[at])
            depth -= 1
            if depth <= 0 and len(kept.numbers) >= query.k:
                break
        return kept

    def _best_first(self, scores: NDArray[np.float32], numbers: NDArray[np.intp], depth: int) -> Iterator[int]:
        """Places in `scores`, best first, equal scores by cube id; sorted no deeper than they are taken."""
        hi, lo = self._docs.column("hi"), self._docs.column("lo")
        done, bound = 0, np.float32(np.inf)
        while done < len(scores):
            deep = min(depth, len(scores))
            lowest = np.partition(scores, len(scores) - deep)[len(scores) - deep]
            places = np.flatnonzero((scores >= lowest) & (scores < bound))
            chosen = numbers[places]
            yield from places[np.lexsort((lo[chosen], hi[chosen], -scores[places]))].tolist()
            done += len(places)
            bound = lowest
            depth = max(depth, done) * DEEPEN

    def _why(
        self, query: SearchQuery, best: list[int], lexical: _Ranking, dense: _Ranking, fused: dict[int, float], every: bool
    ) -> dict[int, dict[str, Any]]:
        """For each hit, which retriever found it, at which rank, and by which words."""
        words = self._lexical.matched(query.text, best, every_term=every) if lexical.numbers else {}
        ranks = [{number: rank for rank, number in enumerate(r.numbers, 1)} for r in (lexical, dense)]
        explained: dict[int, dict[str, Any]] = {}
        for number in best:
            why: dict[str, Any] = {"fusion": {"rrf": fused[number]}}
            if number in ranks[0]:
                score = {"score": lexical.scores[number]} if query.scores else {}
                why["lexical"] = {"rank": ranks[0][number], **score, "terms": words[number]}
            if number in ranks[1]:
                why["dense"] = {"rank": ranks[1][number], "cosine": dense.scores[number]}
            explained[number] = why
        return explained
