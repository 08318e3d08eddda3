"""The documents of a plaintext index: one number each, and their filterable fields in growable numpy columns.

- A document is one version of a cube. Numbers are given in the order of arrival and never used again.
- At most one version of a cube is live. `newest` finds a cube's newest document, `older` links it to those before.
- 67 bytes of columns a document, and one entry of one dict a cube. Texts are not kept.
- Documents that have a place in a sequence are linked with those beside them (`sequences`), while they are live.
- Namespaces and sets of tags are interned; filters become one mask over a column of small integers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .sequences import Place, Sequences
from .signs import length, signs

Mask = NDArray[np.bool_]
NONE: Final = -1
SPEAKERS_MAX: Final = 8
"""In more company than this a name says much about who is meant."""
_MIN, _MAX = -(2**63), 2**63 - 1


class Document(NamedTuple):
    """One version of a cube, as it is indexed. `seq` is the log record that made it; times are ns."""

    cube_id: bytes
    version: int
    seq: int
    namespace: str
    text: str
    tags: tuple[str, ...] = ()
    valid_from: int | None = None
    valid_to: int | None = None
    place: Place | None = None


_COLUMNS: Final[dict[str, tuple[type[np.generic] | np.dtype[np.uint64], int]]] = {
    "hi": (np.uint64, 0), "lo": (np.uint64, 0), "version": (np.uint32, 0), "seq": (np.int64, 0),
    "valid_from": (np.int64, _MIN), "valid_to": (np.int64, _MAX), "namespace": (np.int32, 0), "tags": (np.int32, 0),
    "older": (np.int32, NONE), "live": (np.bool_, 0), "removed": (np.bool_, 0),
    "place": (np.int32, NONE), "words": (np.uint16, 1), "signs": (np.uint8, 0),
}  # fmt: skip


class Interned:
    """Small numbers for values, and for each key of a value the numbers of all values that have the key."""

    def __init__(self) -> None:
        self._numbers: dict[object, int] = {}
        self._by_key: dict[str, list[int]] = {}

    def number(self, value: object, keys: Sequence[str]) -> int:
        known = self._numbers.get(value)
        if known is None:
            known = self._numbers[value] = len(self._numbers)
            for key in keys:
                self._by_key.setdefault(key, []).append(known)
        return known

    def any_of(self, keys: Sequence[str]) -> Mask:
        """For each number: has its value one of the keys?"""
        mask = np.zeros(len(self._numbers), np.bool_)
        for key in keys:
            mask[self._by_key.get(key, [])] = True
        return mask


def ancestors(namespace: str) -> list[str]:
    """A namespace and all above it: a, a/b, a/b/c."""
    parts = namespace.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]


class Documents:
    """The columns. One writer; a reader that holds a column keeps it when it grows."""

    def __init__(self) -> None:
        self.count = 0
        self.removed = 0
        self._columns = {name: np.full(1024, fill, kind) for name, (kind, fill) in _COLUMNS.items()}
        self._newest: dict[bytes, int] = {}
        self._namespaces = Interned()
        self._tag_sets = Interned()
        self._speakers: dict[str, set[str]] = {}
        self.sequences = Sequences()

    def column(self, name: str) -> NDArray[Any]:
        """One column of the documents so far."""
        return self._columns[name][: self.count]

    def append(self, documents: Sequence[Document]) -> int:
        """Adds documents that are not known yet; returns the number of the first."""
        first, end = self.count, self.count + len(documents)
        columns = self._columns
        if end > len(columns["hi"]):
            for name, (kind, fill) in _COLUMNS.items():
                grown = np.full(max(end, len(columns[name]) * 3 // 2), fill, kind)
                grown[:first] = columns[name][:first]
                columns[name] = grown
        ids = np.frombuffer(b"".join(document.cube_id for document in documents), ">u8").reshape(-1, 2)
        columns["hi"][first:end], columns["lo"][first:end] = ids[:, 0], ids[:, 1]
        columns["version"][first:end] = [document.version for document in documents]
        columns["seq"][first:end] = [document.seq for document in documents]
        columns["valid_from"][first:end] = [_MIN if d.valid_from is None else d.valid_from for d in documents]
        columns["valid_to"][first:end] = [_MAX if d.valid_to is None else d.valid_to for d in documents]
        namespaces, tag_sets, older = self._namespaces, self._tag_sets, columns["older"]
        columns["namespace"][first:end] = [namespaces.number(d.namespace, ancestors(d.namespace)) for d in documents]
        columns["tags"][first:end] = [tag_sets.number(frozenset(d.tags), d.tags) for d in documents]
        columns["words"][first:end] = [length(d.text) for d in documents]
        columns["signs"][first:end] = [signs(d.text) for d in documents]
        for number, document in enumerate(documents, first):
            if (place := document.place) is not None:
                space = int(columns["namespace"][number])
                columns["place"][number] = self.sequences.place(space, place.sequence, place.position)
                for scope in ["", *ancestors(document.namespace)] if place.speaker else []:
                    known = self._speakers.setdefault(scope, set())
                    if len(known) <= SPEAKERS_MAX:
                        known.add(place.speaker)
            before = self._newest.get(document.cube_id)
            if before is not None:
                older[number] = before
            self._newest[document.cube_id] = number
        self.count = end
        return first

    def versions(self, cube_id: bytes) -> Iterator[int]:
        """The documents of a cube, newest first."""
        number = self._newest.get(cube_id, NONE)
        while number != NONE:
            yield number
            number = int(self._columns["older"][number])

    def find(self, cube_id: bytes, version: int) -> int | None:
        """The number of one version of a cube."""
        versions = self._columns["version"]
        return next((number for number in self.versions(cube_id) if versions[number] == version), None)

    def set_live(self, cube_id: bytes, version: int | None) -> bool:
        """Makes one version, or none, the live one; False when that version is not here."""
        live, versions = self._columns["live"], self._columns["version"]
        found, unset = version is None, False
        for number in self.versions(cube_id):
            if versions[number] == version:
                found = True
                unset = unset or bool(live[number])
                live[number] = True
                if (place := int(self._columns["place"][number])) != NONE:
                    self.sequences.stand(place, number)
            elif live[number]:
                live[number] = False
                unset = True
                if (place := int(self._columns["place"][number])) != NONE:
                    self.sequences.leave(place, number)
            if found and unset:
                break
        return found

    def remove(self, cube_id: bytes) -> list[int]:
        """Forgets a cube; returns the numbers that its versions had."""
        numbers = list(self.versions(cube_id))
        self._newest.pop(cube_id, None)
        for number in numbers:
            if (place := int(self._columns["place"][number])) != NONE:
                self.sequences.leave(place, number)
            for name, (_, fill) in _COLUMNS.items():
                self._columns[name][number] = fill
            self._columns["removed"][number] = True
        self.removed += len(numbers)
        return numbers

    def speakers(self, scopes: Sequence[str] | None) -> frozenset[str]:
        """Who speaks in these namespaces; nobody when they are so many that a name tells them apart."""
        names = {name for scope in ([""] if scopes is None else scopes) for name in self._speakers.get(scope, ())}
        return frozenset(names) if len(names) <= SPEAKERS_MAX else frozenset()

    def key(self, number: int) -> tuple[bytes, int]:
        """The cube and version of a document."""
        columns = self._columns
        cube_id = int(columns["hi"][number]).to_bytes(8, "big") + int(columns["lo"][number]).to_bytes(8, "big")
        return cube_id, int(columns["version"][number])

    def mask(
        self, *, past: bool, scopes: Sequence[str] | None, tags: Sequence[str], since: int | None, until: int | None
    ) -> Mask:
        """Which documents a search may find at all."""
        mask: Mask = ~self.column("removed") if past else self.column("live").copy()
        if scopes is not None:
            mask &= self._namespaces.any_of(scopes)[self.column("namespace")]
        for tag in dict.fromkeys(tags):
            mask &= self._tag_sets.any_of([tag])[self.column("tags")]
        if since is not None:
            mask &= self.column("valid_to") >= np.int64(since)
        if until is not None:
            mask &= self.column("valid_from") <= np.int64(until)
        return mask
