"""How candidates are ranked: words and vectors of each document and of those beside it, and what kind of sentence it is.

    score = z(B) + z(M) + 0.8 · first person - 0.8 · only asks + 1.2 · in time
            + 0.7 · z(X) + 0.7 · z(Y), for the best of these

- B, BM25: a term counts in a document once, and a share of it for each neighbour that has it. A question about a turn is often
  worded like the turn before it. How long a document is counts with its neighbours, too. The name of a speaker counts twice,
  and not for neighbours.
- M, the cosine of the query with the sum of a document's vector and shares of its neighbours'.
- X and Y, late interaction of the query's tokens with a document's own, and with its own and those of four beside it.
- Shares fall with distance, and with the length of both: what is long stands for itself.
- z is how many standard deviations above the mean of all candidates; what a retriever knows nothing of has a z of 0.
- In time is a document whose event time lies within the days that the query names.
- When the query asks how something stands now, those that are nearly as good as the best stand in order of event time,
  newest first (`recent`): what was said last is what holds.
- The signs (`signs`) count for documents that stand in a sequence: in talk, who asks rarely has the answer.

Every statistic is one of the candidates' own scope, so nobody learns from a rank or a score what others keep. Weights were
found by ablation on conversations (docs/retrieval.md); a document without neighbours is ranked by plain BM25 and cosine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numkong
import numpy as np
from numpy.typing import NDArray

from .dense import Int8
from .latent import SCALE, Tokens
from .lexical import STOP, WORD, query_words
from .postings import Postings, blocks, packed

Floats = NDArray[np.float32]
Numbers = NDArray[np.int32]

K1: Final = 0.9
B: Final = 0.6
BEFORE: Final = (0.6, 0.36, 0.22, 0.13)
AFTER: Final = (0.4, 0.24, 0.14, 0.09)
"""Shares of a neighbour's words, by distance."""
DENSE_BEFORE: Final = (0.7, 0.4)
DENSE_AFTER: Final = (0.5, 0.3)
"""Of its vector."""
DENSE_COLUMNS: Final = (*range(len(DENSE_BEFORE)), *range(len(BEFORE), len(BEFORE) + len(DENSE_AFTER)))
WHOLE_WORDS: Final = 25
"""A document of so many words or fewer takes and gives whole shares."""
DENSE_WEIGHT: Final = 1.0
FIRST_PERSON_WEIGHT: Final = 0.8
ASKS_WEIGHT: Final = 0.8
IN_TIME_WEIGHT: Final = 1.2
LATE_POOL: Final = 50
"""Documents whose tokens are compared."""
LATE_BESIDE: Final = 2
LATE_WEIGHT: Final = 0.7
STOP_WEIGHT: Final = 1.5
RECENT_POOL: Final = 10
"""Documents that stand in order of time when a query asks for the present."""
RECENT_SHARE: Final = 0.6
"""Of the best one's score that they have at least: all of them are about what is asked."""


class Beside(NamedTuple):
    """Neighbours of n candidates: document numbers [n, 8] (NONE for none), and how much of each counts, 0 for none."""

    documents: Numbers
    close: Floats

    def shares(self, weights: Sequence[float], columns: Sequence[int]) -> Floats:
        return self.close[:, list(columns)] * np.asarray(weights, np.float32)


def beside(documents: Numbers, own_words: NDArray[np.uint16], words: NDArray[np.uint16]) -> Beside:
    """`words` is the column of all documents' lengths."""
    there = documents >= 0
    theirs = np.where(there, words[np.maximum(documents, 0)], 1)
    near = np.minimum(1, WHOLE_WORDS / theirs) * np.minimum(1, WHOLE_WORDS / own_words)[:, None]
    return Beside(documents, np.where(there, near, 0).astype(np.float32))


class Term(NamedTuple):
    """A word of the query: the documents that have it, and what it is worth in this scope."""

    word: str
    postings: Postings
    idf: float
    spreads: bool = True
    """Whether it counts for those beside; the name of a speaker, which stands at every turn, does not."""


def worth(
    terms: Sequence[tuple[str, Postings]], mask: NDArray[np.bool_], everything: bool, speakers: frozenset[str]
) -> list[Term]:
    """The terms with their idf among the documents of a mask. One that none of them has may stand beside them."""
    names = {word for name in speakers for word in query_words(name)}
    count = len(mask) if everything else int(np.count_nonzero(mask))
    bits = packed(mask)
    found: list[Term] = []
    for word, postings in terms:
        known = postings.first(len(mask))
        having = known.having if everything else known.within(mask, bits)
        idf = float(np.log1p((count - having + 0.5) / (having + 0.5)))
        found.append(Term(word, known, idf, word not in names))
    return found


def alone(
    terms: Sequence[Term], mask: NDArray[np.bool_], among: NDArray[np.intp] | None, words: NDArray[np.uint16], average: float
) -> Floats:
    """BM25 of each document of a mask by its own words, 0 for one that has none of them; `among` names them if they are few."""
    scores = np.zeros(len(words), np.float32)
    for term in terms:
        term.postings.weigh(scores, np.float32(term.idf * (K1 + 1)), among, mask)
    for part in [among] if among is not None else (slice(*ends) for ends in blocks(len(words))):
        scores[part] /= np.float32(1 + K1 * (1 - B)) + np.float32(K1 * B / average) * words[part].astype(np.float32)
        if among is None:
            scores[part] *= mask[part]
    return scores


def smoothed(terms: Sequence[Term], candidates: NDArray[np.intp], near: Beside, words: NDArray[np.uint16]) -> Floats:
    """BM25 of candidates by their own words and those beside them."""
    share = near.shares((*BEFORE, *AFTER), range(len(BEFORE) + len(AFTER)))
    around = np.maximum(near.documents, 0)
    lengths = words[candidates] + (words[around] * share).sum(1)
    norm = np.float32(K1) * (1 - B + B * lengths / max(1.0, float(lengths.mean()) if len(lengths) else 1.0))
    scores = np.zeros(len(candidates), np.float32)
    scratch = np.zeros(len(words), np.bool_)
    for term in terms:
        often = term.postings.at(candidates, scratch).astype(np.float32)
        if term.spreads:
            often += np.einsum("ij,ij->i", term.postings.at(around, scratch).astype(np.float32), share)
        else:
            often *= 2
        scores += np.float32(term.idf * (K1 + 1)) * often / (often + norm)
    return scores


class Asked(NamedTuple):
    """A query's tokens: rows [n, 64], and how much each weighs."""

    rows: Int8
    weights: Floats


def weighed(tokens: Tokens, query: str, terms: Sequence[Term], documents: int, names: frozenset[str]) -> Asked:
    """A token weighs as much as the word that it stands in: a rare one much, a stop word little, a speaker's name nothing."""
    idf = {term.word: term.idf for term in terms}
    unseen = float(np.log1p(documents * 2.0 + 1))
    silent = {word for name in names for word in query_words(name)}
    weights = np.zeros(len(tokens.spans), np.float32)
    words = [(found.start(), found.end(), found.group()) for found in WORD.finditer(query.lower())]
    for at, (begin, end) in enumerate(tokens.spans):
        word = next((word for first, last, word in words if first <= begin and end <= last), None)
        if word is not None and word not in silent:
            weights[at] = STOP_WEIGHT if word in STOP else idf.get(word, unseen)
    return Asked(tokens.rows, weights / max(float(weights.sum()), 1e-6))


def late(asked: Asked, tokens: Sequence[Int8 | None], groups: Sequence[Sequence[int]]) -> tuple[Floats, Floats]:
    """Late interaction (ColBERT, arXiv:2004.12832): the weighted mean, over the query's tokens, of the largest product with
    a token of a document. A group names places in `tokens`: a document and those beside it. For each group what the document
    alone and what all of it reach; NaN where tokens are missing."""
    having = [at for at, rows in enumerate(tokens) if rows is not None and len(rows)]
    own, around = np.full(len(groups), np.nan, np.float32), np.full(len(groups), np.nan, np.float32)
    if not having:
        return own, around
    flat = np.concatenate([rows for rows in tokens if rows is not None and len(rows)])
    begins = np.cumsum([0, *(len(rows) for rows in tokens if rows is not None and len(rows))])[:-1]
    products = np.asarray(numkong.cdist(asked.rows, flat, "dot", threads=1))
    # One row more, of those who have no tokens.
    best = np.full((len(tokens) + 1, len(asked.rows)), -np.inf, np.float32)
    best[having] = np.maximum.reduceat(products, begins, axis=1).T / SCALE
    widest = max(map(len, groups))
    padded = np.asarray([[*group, *[len(tokens)] * (widest - len(group))] for group in groups])
    for found, reached in ((own, best[padded[:, 0]]), (around, best[padded].max(1))):
        known = np.isfinite(reached).all(1)
        found[known] = reached[known] @ asked.weights
    return own, around


def in_time(times: NDArray[np.int64], spans: Sequence[tuple[int, int]]) -> NDArray[np.bool_]:
    """Which event times lie within one of these spans, whose ends do not belong to them."""
    found = np.zeros(len(times), np.bool_)
    for begin, end in spans:
        found |= (times >= begin) & (times < end)
    return found


def recent(order: NDArray[np.intp], score: Floats, times: NDArray[np.int64]) -> NDArray[np.intp]:
    """An order with the newest first of those that are nearly as good as the best; they share their scores out anew.

    `times` are event times by document, the smallest integer where there is none; such a document keeps its place.
    """
    best = order[:RECENT_POOL]
    best = best[(score[best] >= RECENT_SHARE * score[best[0]]) & (times[best] > np.iinfo(np.int64).min)] if len(best) else best
    if len(best) < 2 or score[best[0]] <= 0:
        return order
    places = np.flatnonzero(np.isin(order, best))
    newest = best[np.argsort(-times[best], kind="stable")]
    values = score[order[places]]
    order = order.copy()
    order[places] = newest
    score[newest] = values
    return order


def deviations(scores: Floats, known: NDArray[np.bool_] | None = None) -> Floats:
    """z of each score among those that are known; 0 for the others, and where all are alike."""
    among = scores if known is None else scores[known]
    spread = float(among.std()) if len(among) else 0.0
    if spread < 1e-9:
        return np.zeros(len(scores), np.float32)
    z = (scores - among.mean()) / spread
    return np.asarray(z if known is None else np.where(known, z, 0), np.float32)
