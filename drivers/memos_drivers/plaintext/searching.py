"""One search of a plaintext index: what it may find, what is proposed, how that is ranked, and why.

- Filters (namespaces, tags, event time, liveness) are one mask, and both retrievers score every document in it, so a
  filtered search finds k documents when k exist.
- Retrievers propose *candidates*: all documents of a small scope; of a large one the best of each, and those beside the
  very best. Candidates are ranked together (`ranking`), with the documents beside them in their sequences; ties stand in
  order of cube id. Statistics are those of the scope.
- `check(cube_id, version)` has the last word on each before it becomes a hit. It must answer False for cubes it does not
  know (one may be removed meanwhile). The search deepens until k pass or none is left.

The index's lock is held to take the scope only; scoring runs outside.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import ranking
from .blending import Lengths, blended
from .dense import Int8, Numbers, Reach, Vector, Vectors, largest, quantised
from .documents import NONE, Documents, Mask
from .latent import Tokens
from .lexical import LexicalIndex
from .ranking import Term
from .signs import ASKS, FIRST_PERSON, asks_for_the_present

Mode = Literal["hybrid", "dense", "lexical"]
Check = Callable[[bytes, int], bool]
TokensOf = Callable[[Sequence[tuple[bytes, int]]], Sequence[Int8 | None]]
WHOLE_SCOPE: Final = 4096
"""A scope of so many documents is ranked whole; of a larger one what the retrievers propose."""
POOL: Final = 1024
"""Documents that each retriever proposes."""
BESIDE_POOL: Final = 128
"""Of these the best bring those beside them."""
SCATTERED: Final = 8
DEEPEN: Final = 8


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """What to find. `scopes`: namespaces, each with all below it; None for all. `past`: all versions are candidates, and
    documents of records after `upto` stand beside none. `without`: stages that are left out."""

    text: str
    vector: Vector | None = None
    k: int = 10
    mode: Mode = "hybrid"
    scopes: Sequence[str] | None = None
    tags: Sequence[str] = ()
    since: int | None = None
    until: int | None = None
    past: bool = False
    upto: int | None = None
    explain: bool = False
    spans: Sequence[tuple[int, int]] = ()
    """Of event time that the query names, in ns; the end of a span does not belong to it."""
    without: frozenset[str] = frozenset()
    tokens: Tokens | None = None
    tokens_of: TokensOf | None = None
    """The query's tokens, and where those of documents are to be had: None for each that has none."""


class Hit(NamedTuple):
    """One found version. `score` is larger for the better, and only comparable within one search."""

    cube_id: bytes
    version: int
    score: float
    why: dict[str, Any] | None


@dataclass
class _Scope:
    """What a search may find, as it stood when it began: columns, and the vectors of the query's size."""

    mask: Mask
    count: int
    speakers: frozenset[str]
    place: NDArray[np.int32]
    words: NDArray[np.uint16]
    signs: NDArray[np.uint8]
    seq: NDArray[np.int64]
    times: NDArray[np.int64]
    vectors: Reach | None
    cosines: NDArray[np.float32]
    has: NDArray[np.bool_]
    size: int

    @property
    def everything(self) -> bool:
        return self.count == len(self.mask)

    @property
    def small(self) -> bool:
        """Whether its documents are better looked at one by one than all documents with them."""
        return self.count * SCATTERED <= len(self.mask)

    @cached_property
    def numbers(self) -> Numbers:
        return np.flatnonzero(self.mask)

    def words_each(self) -> float:
        """Words of a document, on average."""
        if self.small:
            return float(self.words[self.numbers].mean())
        return int((self.words if self.everything else self.words * self.mask).sum(dtype=np.int64)) / max(1, self.count)


class _Ranked(NamedTuple):
    """Candidates, best first, with what each stage gave them; `whole` when there are no others."""

    documents: list[int]
    scores: list[float]
    stages: dict[str, NDArray[Any]]
    terms: list[Term]
    whole: bool


class Parts(NamedTuple):
    """Of the index: its lock, and what it guards."""

    lock: threading.Lock
    documents: Documents
    lexical: LexicalIndex
    vectors: Vectors
    lengths: Lengths


class Search:
    """A query on its way."""

    def __init__(self, parts: Parts, query: SearchQuery) -> None:
        self._lock, self._docs, self._lexical, self._vectors, self._lengths = parts
        self._query = query
        self._scope = self._taken(query)

    def run(self, check: Check) -> list[Hit]:
        """The best k documents that pass the filters and `check`, best first."""
        query = self._query
        verdicts: dict[int, bool] = {}

        def passes(number: int) -> bool:
            if number not in verdicts:
                verdicts[number] = check(*self._docs.key(number))
            return verdicts[number]

        pool, every_term = POOL, False
        while True:
            terms, pruned = self._terms(every_term)
            ranked = self._ranked(terms, max(pool, query.k))
            chosen: list[int] = []
            for at, number in enumerate(ranked.documents):
                if passes(number):
                    chosen.append(at)
                    if len(chosen) == query.k:
                        break
            if len(chosen) == query.k or (ranked.whole and not pruned):
                break
            if ranked.whole:
                every_term = True
            pool *= DEEPEN
        return [
            Hit(
                *self._docs.key(ranked.documents[at]), ranked.scores[at],
                self._why(ranked, at) if query.explain else None,
            )
            for at in chosen
        ]  # fmt: skip

    def _taken(self, query: SearchQuery) -> _Scope:
        """The scope, as it stands now."""
        with self._lock:
            docs = self._docs
            mask = docs.mask(
                past=query.past, scopes=query.scopes, tags=query.tags, since=query.since, until=query.until
            )
            size, vectors = 0, None
            if query.vector is not None and query.mode != "lexical" and "dense" not in query.without:
                size = len(quantised(query.vector))
                vectors = self._vectors.reach(mask, size)
            place, words, signs, seq, times = (
                docs.column(name) for name in ("place", "words", "signs", "seq", "valid_from")
            )  # fmt: skip
            speakers = docs.speakers(query.scopes)
        # They are computed for those that are looked at, once it is known which.
        cosines, has = np.zeros(len(mask), np.float32), np.zeros(len(mask), np.bool_)
        count = int(np.count_nonzero(mask))
        return _Scope(mask, count, speakers, place, words, signs, seq, times, vectors, cosines, has, size)

    def _terms(self, every_term: bool) -> tuple[list[Term], bool]:
        """The query's words in this scope, and whether frequent ones were left out."""
        query, scope = self._query, self._scope
        if query.mode == "dense" or not query.text.strip():
            return [], False
        found, pruned = self._lexical.terms(query.text, every_term=every_term)
        return ranking.worth(found, scope.mask, scope.everything, scope.speakers), pruned

    def _proposed(self, terms: list[Term], pool: int) -> tuple[Numbers, bool]:
        """Candidates, in order of number, and whether they are all that could be found."""
        query, scope = self._query, self._scope
        if scope.count <= max(WHOLE_SCOPE, pool):
            return scope.numbers, True
        best: list[Numbers] = []
        left = False
        lists: list[tuple[NDArray[np.float32], Numbers]] = []
        if terms:
            some = scope.numbers if scope.small else None
            words = ranking.alone(terms, scope.mask, some, scope.words, scope.words_each())
            mine = words if some is None else words[some]
            having = int(np.count_nonzero(mine))
            left |= having > pool
            places = np.flatnonzero(mine) if having <= pool else largest(mine, pool)[:pool]
            lists.append((words, places if some is None else some[places]))
        if scope.vectors is not None and query.vector is not None:
            numbers, cosines = scope.vectors.nearest(query.vector, pool)
            left |= scope.vectors.having > pool
            scope.cosines[numbers], scope.has[numbers] = cosines, True
            lists.append((scope.cosines, numbers))
        for scores, numbers in lists:
            best.append(numbers)
            if len(numbers):
                first = numbers[np.argsort(-scores[numbers], kind="stable")[:BESIDE_POOL]]
                around = self._around(first, len(ranking.BEFORE)).ravel()
                around = around[around >= 0]
                best.append(around[scope.mask[around]].astype(np.intp))
        return (np.unique(np.concatenate(best)) if best else np.zeros(0, np.intp)), not left

    def _ranked(self, terms: list[Term], pool: int) -> _Ranked:
        query, scope = self._query, self._scope
        candidates, whole = self._proposed(terms, pool)
        near = ranking.beside(
            self._beside(candidates, len(ranking.BEFORE)), scope.words[candidates], scope.words
        )
        stages: dict[str, NDArray[Any]] = {}
        found = np.zeros(len(candidates), np.bool_)
        score = np.zeros(len(candidates), np.float32)
        if terms:
            stages["bm25"] = ranking.smoothed(terms, candidates, near, scope.words)
            found |= stages["bm25"] > 0
            stages["bm25 z"] = ranking.deviations(stages["bm25"])
            score += stages["bm25 z"]
        if scope.vectors is not None and scope.vectors.having:
            self._cosines(candidates)
            self._cosines(np.unique(near.documents[:, list(ranking.DENSE_COLUMNS)]).astype(np.intp))
            stages["cosine"] = blended(
                self._lengths, candidates, near, scope.cosines, scope.has, scope.size,
                lambda numbers: self._vectors.take(numbers, scope.size),
            )  # fmt: skip
            has = scope.has[candidates]
            found |= has
            stages["cosine z"] = ranking.deviations(stages["cosine"], has)
            score += ranking.DENSE_WEIGHT * stages["cosine z"]
        only = stages.get("bm25") if "cosine" not in stages else stages["cosine"] if "bm25" not in stages else None
        if only is not None:
            score = only.copy()
        if query.mode == "hybrid" and "signs" not in query.without and only is None:
            signs = np.where(scope.place[candidates] >= 0, scope.signs[candidates], 0)
            stages["first person"] = (signs & FIRST_PERSON) > 0
            stages["asks"] = (signs & ASKS) > 0
            score += ranking.FIRST_PERSON_WEIGHT * stages["first person"] - ranking.ASKS_WEIGHT * stages["asks"]
        if query.spans and query.mode == "hybrid" and "times" not in query.without:
            stages["in time"] = ranking.in_time(scope.times[candidates], query.spans)
            spread = 1.0 if only is None else float(score.std()) or 1.0
            score += np.float32(ranking.IN_TIME_WEIGHT * spread) * stages["in time"]
        order = self._best_first(candidates, score)
        order = order[found[order]]
        if query.mode == "hybrid" and only is None and "tokens" not in query.without:
            order = self._late(terms, candidates, order, score, stages)
        if "recency" not in query.without and asks_for_the_present(query.text):
            order = ranking.recent(order, score, scope.times[candidates])
        stages = {name: values[order] for name, values in stages.items()}
        return _Ranked(candidates[order].tolist(), score[order].tolist(), stages, terms, whole)

    def _late(
        self, terms: list[Term], candidates: Numbers, order: Numbers, score: NDArray[np.float32],
        stages: dict[str, NDArray[Any]],
    ) -> Numbers:  # fmt: skip
        """The order with the best candidates ranked among each other by their tokens, too; `score` follows."""
        query, scope = self._query, self._scope
        if query.tokens is None or query.tokens_of is None or not len(order):
            return order
        best, rest = order[: ranking.LATE_POOL], order[ranking.LATE_POOL :]
        near = self._beside(candidates[best], ranking.LATE_BESIDE)
        groups = [
            [own, *(one for one in beside if one != NONE)]
            for own, beside in zip(candidates[best].tolist(), near.tolist(), strict=True)
        ]
        wanted = {number: at for at, number in enumerate(dict.fromkeys(number for group in groups for number in group))}
        tokens = query.tokens_of([self._docs.key(number) for number in wanted])
        asked = ranking.weighed(query.tokens, query.text, terms, scope.count, scope.speakers)
        reached = ranking.late(asked, tokens, [[wanted[number] for number in group] for group in groups])
        for name, values in zip(("tokens", "tokens beside"), reached, strict=True):
            stages[name] = np.zeros(len(score), np.float32)
            stages[name][best] = np.nan_to_num(values)
            score[best] += ranking.LATE_WEIGHT * ranking.deviations(values, ~np.isnan(values))
        if len(rest):
            score[rest] += min(0.0, float(score[best].min()) - float(score[rest].max()))
        return np.concatenate((best[self._best_first(candidates[best], score[best])], rest))

    def _best_first(self, documents: Numbers, scores: NDArray[np.float32]) -> Numbers:
        """Places in `documents`, best first, equal scores by cube id."""
        hi, lo = self._docs.column("hi"), self._docs.column("lo")
        return np.lexsort((lo[documents], hi[documents], -scores))

    def _around(self, documents: Numbers, far: int) -> NDArray[np.int32]:
        """Live documents that stand so far before and after these, and were there when the search began."""
        query, scope = self._query, self._scope
        place = scope.place[documents]
        if "neighbours" in query.without:
            place = np.full(len(documents), NONE, np.int32)
        around = self._docs.sequences.around(place, far, far)
        around[around >= len(scope.mask)] = NONE
        return around

    def _beside(self, documents: Numbers, far: int) -> NDArray[np.int32]:
        """Those of them that count: in the past, what was there then."""
        query, scope = self._query, self._scope
        around = self._around(documents, far)
        if query.upto is not None:
            around[scope.seq[np.maximum(around, 0)] > query.upto] = NONE
        return around

    def _cosines(self, documents: Numbers) -> None:
        """Cosines of documents that have none yet: in a large scope, and of neighbours that a filter hides."""
        query, scope = self._query, self._scope
        missing = documents[(documents >= 0) & ~scope.has[documents]]
        if not len(missing) or query.vector is None:
            return
        with self._lock:
            vectors = self._vectors.among(missing, scope.size)
        if vectors is not None:
            matrix, numbers, rows = vectors
            scope.cosines[numbers] = matrix.cosines(query.vector, rows)
            scope.has[numbers] = True

    def _why(self, ranked: _Ranked, at: int) -> dict[str, Any]:
        """What each stage found in a hit."""
        number, stages = ranked.documents[at], ranked.stages
        why: dict[str, Any] = {"score": ranked.scores[at]}
        for stage, name in (("bm25", "lexical"), ("cosine", "dense")):
            values = stages.get(stage)
            if values is None or values[at] == 0:
                continue
            rank = 1 + int(np.count_nonzero(values > values[at]))
            why[name] = {"rank": rank, stage: float(values[at]), "z": float(stages[f"{stage} z"][at])}
        if "lexical" in why:
            own = [term.word for term in ranked.terms if term.postings.holds(number)]
            why["lexical"] |= {"terms": own, "beside": not own}
        for name in ("tokens", "tokens beside"):
            if name in stages and stages[name][at]:
                why[name] = float(stages[name][at])
        signs = [name for name in ("first person", "asks", "in time") if name in stages and stages[name][at]]
        return why | ({"signs": signs} if signs else {})
