"""The index of the plaintext form: words and vectors of documents, searched together.

- A document is one version of a cube. `set_live` says which version searches in the present find; older versions stay
  for searches in the past.
- `search` is a page of its own (`searching`).
- A query's vector meets the vectors of its own size; `fix_dims` leaves one size, an embedder's, and drops the others.
- One lock guards the columns while they change. A search holds it only to take its mask; scoring runs outside. `add`
  holds it for the columns alone; writing words takes a lock of its own, for which searches by words wait.
- `remove` forgets a cube at once for every search and zeroes its vector. FTS5 keeps traces until the index is built
  again: `needs_rebuild`.

The index keeps no texts and writes no files; `segment` packs documents for storage.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final

import numpy as np

from .blending import Lengths
from .dense import Int8, Vector, Vectors, quantised
from .documents import NONE, Document, Documents
from .lexical import LexicalIndex
from .searching import Check, Hit, Parts, Search, SearchQuery
from .signs import dated

REMOVED_MIN: Final = 1024
REMOVED_SHARE: Final = 0.1


class PlaintextIndex:
    """Documents, their words and their vectors."""

    def __init__(self, dims: int = 0) -> None:
        self._lock = threading.Lock()
        self._adding = threading.Lock()
        self._docs = Documents()
        self._lexical = LexicalIndex()
        self._vectors = Vectors(dims)
        self._lengths = Lengths()

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
            self._lexical.add([dated(document.text, document.valid_from) for document in documents])
            with self._lock:
                first = self._docs.append(documents)
                self._vectors.reserve(self._docs.count)
                if vectors is not None and vectors.shape[1]:
                    self._vectors.put(first, vectors)

    def set_vector(self, cube_id: bytes, version: int, vector: Vector) -> bool:
        """Gives a document its vector; False when the document is not here (removed meanwhile), or the size not taken."""
        return bool(self.set_vectors([(cube_id, version)], [quantised(vector)]))

    def set_vectors(self, keys: Sequence[tuple[bytes, int]], rows: Sequence[Int8]) -> list[tuple[bytes, int]]:
        """Gives documents their quantised vectors. Answers which took one: the others are not here (removed meanwhile), or
        the size is not taken."""
        by_size: dict[int, dict[int, int]] = {}
        with self._lock:
            for at, (key, row) in enumerate(zip(keys, rows, strict=True)):
                number = self._docs.find(*key)
                if number is not None and self._vectors.takes(len(row)):
                    by_size.setdefault(len(row), {})[number] = at
            for places in by_size.values():
                self._vectors.set(list(places), np.stack([rows[at] for at in places.values()]))
                for number in places:
                    self._lengths.forget(number)
        return [keys[at] for places in by_size.values() for at in places.values()]

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

    def speakers(self, scopes: Sequence[str] | None) -> frozenset[str]:
        """Who speaks in these namespaces; nobody when they are many."""
        with self._lock:
            return self._docs.speakers(scopes)

    def search(self, query: SearchQuery, check: Check) -> list[Hit]:
        """The best k documents that pass the filters and `check`, best first."""
        return Search(Parts(self._lock, self._docs, self._lexical, self._vectors, self._lengths), query).run(check)
