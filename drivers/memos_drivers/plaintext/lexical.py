"""The lexical half of retrieval: an in-memory SQLite FTS5 inverted index, read as sets of documents.

- FTS5 (contentless, `detail=none`, no column sizes) stems, folds and stores postings: 80 bytes a document of 350.
  It keeps no text. Its own `bm25()` costs 1 µs a posting and works per query; here the postings of a term are read
  once (0.1 µs each, without the GIL), kept (`postings`), and extended by what was added since. So every document gets
  a score, and any filter is exact.
- A term counts once a document (binary frequency; texts are short), weighted by idf and by length in characters.
- A caller's text never becomes FTS5 syntax: it is cut into words here, and each word is a quoted term.
- English stop words are dropped unless nothing else remains. Long queries keep their `TERMS_MAX` rarest terms; when
  these cost more than `POSTINGS_PER_QUERY_MAX`, the most frequent terms go first, and the rarest always stays.
- FTS5 takes a run of CJK characters for one word. Such runs are indexed as overlapping pairs plus the last character,
  and queried as pairs; a single character is queried as a prefix, and so finds every run that contains it.

All calls may come from any thread. Documents are numbered 0, 1, 2 … by the caller and cannot be removed: FTS5 keeps
traces, so the whole index is built again (`PlaintextIndex.needs_rebuild`).
"""

from __future__ import annotations

import re
import sqlite3
import threading
import unicodedata
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np

from .postings import FREQUENT, Postings

TERMS_MAX: Final = 24
TERMS_LOOKED_UP_MAX: Final = 256
POSTINGS_PER_QUERY_MAX: Final = 400_000
"""Entries; a frequent word counts as the most that a rare one could have."""
POSTINGS_CACHED_MAX: Final = 8_000_000
"""Bytes of all cached postings together."""
POSTINGS_CACHED_EACH: Final = 32
"""Or so many for each document, if that is more."""
STEMS_CACHED_MAX: Final = 8192

# Hangul, kana, Han and its extensions.
_CJK_RUN: Final = re.compile(
    "[\u1100-\u11ff\u3040-\u30ff\u3130-\u318f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff]+"
)
WORD: Final = re.compile(r"[^\W_]+")
STOP: Final = frozenset(
    """a about after again against all also am an and any are aren as at be because been before being below between both but
    by can cannot could couldn d did didn do does doesn doing don down during each few for from further had hadn has hasn
    have haven having he her here hers herself him himself his how i if in into is isn it its itself just ll m me more most
    mustn my myself no nor not now of off on once only or other our ours ourselves out over own re s same shan she should
    shouldn so some such t than that the their theirs them themselves then there these they this those through to too
    under until up ve very was wasn we were weren what when where which while who whom why will with won would wouldn you
    your yours yourself yourselves""".split()  # noqa: SIM905
)

def split_cjk(text: str) -> str:
    """The text in normal form C, with every CJK run replaced by its pairs and its last character."""
    if text.isascii():
        return text
    return _CJK_RUN.sub(_pairs, unicodedata.normalize("NFC", text))


def _pairs(run: re.Match[str]) -> str:
    chars = run.group()
    return f" {' '.join(a + b for a, b in pairwise(chars))} {chars[-1]} "


def query_words(query: str) -> list[str]:
    """The distinct words of a query, in order, without stop words unless there is nothing else."""
    folded = unicodedata.normalize("NFC", query).lower()
    words: list[str] = []
    for part in WORD.findall(folded):
        at = 0
        for run in _CJK_RUN.finditer(part):
            words.append(part[at : run.start()])
            chars = run.group()
            words += [a + b for a, b in pairwise(chars)] or [chars]
            at = run.end()
        words.append(part[at:])
    distinct = [word for word in dict.fromkeys(words) if word]
    return [word for word in distinct if word not in STOP] or distinct


class LexicalIndex:
    """Which of the documents 0 … `documents` - 1 contain which words."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._db = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        self._db.executescript(
            """PRAGMA journal_mode = OFF;
            CREATE VIRTUAL TABLE docs USING
                fts5(text, content='', columnsize=0, detail=none, tokenize='porter unicode61 remove_diacritics 2');
            CREATE VIRTUAL TABLE scratch USING fts5(word, content='', tokenize='porter unicode61 remove_diacritics 2');
            CREATE VIRTUAL TABLE stems USING fts5vocab(scratch, instance);"""
        )
        # The default of 1 MiB writes many small segments during a bulk load, only to merge them again.
        self._db.execute("INSERT INTO docs(docs, rank) VALUES ('hashsize', ?)", (16 * 1024 * 1024,))
        self._stems: dict[str, str | None] = {}
        self._postings: OrderedDict[str, Postings] = OrderedDict()
        self._cached = 0
        self._counts: dict[str, tuple[int, int]] = {}
        self.documents = 0

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def add(self, texts: Sequence[str]) -> None:
        """Index documents `documents`, `documents` + 1, …"""
        with self._lock:
            first, end = self.documents, self.documents + len(texts)
            # Wholly or not at all: commits, or rolls back what an exception cuts short.
            with self._db:
                self._db.execute("BEGIN")
                self._db.executemany(
                    "INSERT INTO docs(rowid, text) VALUES (?, ?)", zip(range(first, end), map(split_cjk, texts), strict=True)
                )
            self.documents = end

    def terms(self, query: str, *, every_term: bool = False) -> tuple[list[tuple[str, Postings]], bool]:
        """The query's words with the documents that contain each; whether frequent ones were left out."""
        with self._lock:
            return self._terms(query, every_term)

    def _terms(self, query: str, every_term: bool) -> tuple[list[tuple[str, Postings]], bool]:
        """Words and postings to score by; one word for each stem."""
        stems: dict[str, str] = {}
        for word in query_words(query)[:TERMS_LOOKED_UP_MAX]:
            stem = self._stem(word)
            if stem is not None:
                stems.setdefault(stem, word)
        words = list(stems.values())
        frequency = {word: self._frequency(word) for word in words}
        kept: list[str] = []
        total = 0
        for word in sorted((word for word in words if frequency[word]), key=lambda word: (frequency[word], word)):
            total += min(frequency[word], self.documents // FREQUENT + 1)
            if kept and not every_term and (len(kept) == TERMS_MAX or total > POSTINGS_PER_QUERY_MAX):
                break
            kept.append(word)
        pruned = len(kept) < sum(1 for word in words if frequency[word])
        chosen = set(kept)
        return [(word, self._read(word)) for word in words if word in chosen], pruned

    def _stem(self, word: str) -> str | None:
        """What FTS5 makes of a word; None where its Unicode tables see no word, or several."""
        if word in self._stems:
            return self._stems[word]
        self._db.execute("INSERT INTO scratch(rowid, word) VALUES (1, ?)", (word,))
        found = self._db.execute("SELECT term FROM stems").fetchall()
        self._db.execute("INSERT INTO scratch(scratch) VALUES ('delete-all')")
        if len(self._stems) >= STEMS_CACHED_MAX:
            self._stems.clear()
        self._stems[word] = str(found[0][0]) if len(found) == 1 else None
        return self._stems[word]

    @staticmethod
    def _match(word: str) -> str:
        """The FTS5 expression for one word; words hold no quotes."""
        return f'"{word}"*' if len(word) == 1 and _CJK_RUN.fullmatch(word) else f'"{word}"'

    def _frequency(self, word: str) -> int:
        """In how many documents a word stands; only bounds and ordering rest on it, so a cached count may lag."""
        if word in self._postings:
            return max(1, self._postings[word].having)
        count, upto = self._counts.get(word, (0, 0))
        # Counting walks the word's postings, so it is done anew only when an eighth more documents are here.
        if not count or self.documents > upto + upto // 8:
            row = self._db.execute("SELECT count(*) FROM docs WHERE docs MATCH ?", (self._match(word),)).fetchone()
            count = int(row[0])
            if len(self._counts) >= STEMS_CACHED_MAX:
                self._counts.clear()
            self._counts[word] = count, self.documents
        return count

    def _read(self, word: str) -> Postings:
        """The documents that contain a word."""
        postings = self._postings.pop(word, Postings())
        self._cached -= postings.bytes
        if postings.upto < self.documents:
            # One text of numbers is four times faster to take over than that many Python integers.
            row = self._db.execute(
                "SELECT group_concat(rowid) FROM docs WHERE docs MATCH ? AND rowid >= ?", (self._match(word), postings.upto)
            ).fetchone()
            fresh = np.fromstring(row[0] or "", dtype=np.int32, sep=",")
            postings = postings.extended(fresh, self.documents)
        self._postings[word] = postings
        self._cached += postings.bytes
        while self._cached > max(POSTINGS_CACHED_MAX, POSTINGS_CACHED_EACH * self.documents) and len(self._postings) > 1:
            self._cached -= self._postings.popitem(last=False)[1].bytes
        return postings
