"""Documents that follow each other: the turns of a session, the passages of a text.

A *place* is a sequence and a position in it; at most one document stands at a place at a time, the live version of its cube.
Places are linked with those before and after them as they come, in any order: a turn that arrives late stands between its
neighbours at once, and nothing is indexed again for it. Positions may have gaps; the neighbour is the next one that exists.

Nothing is searched here: `around` says which documents stand beside which. One writer; a reader that holds an array keeps it
when it grows, and may see a link before the document behind it is live.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int32]
NONE: Final = -1
POSITION_MAX: Final = 2**31 - 1
NAME_CHARS_MAX: Final = 256


class Place(NamedTuple):
    """Where a document stands. `sequence` is a name within the namespace."""

    sequence: str
    position: int
    speaker: str = ""


def place_of(metadata: Mapping[str, Any]) -> Place | None:
    """The place that a cube's metadata name: `session` and `position`, of a `source` if there are several, and who spoke.

    What is not of these types is somebody's own use of the words, and no place.
    """
    session, position = metadata.get("session"), metadata.get("position")
    if type(session) not in (int, str) or type(position) is not int or not 0 <= position <= POSITION_MAX:
        return None
    source, speaker = metadata.get("source", ""), metadata.get("speaker", "")
    name = f"{source if type(source) is str else ''}\0{session}"
    return Place(name[:NAME_CHARS_MAX], position, speaker[:NAME_CHARS_MAX] if type(speaker) is str else "")


class _Sequence:
    """The positions of one sequence in order, and the places that they have."""

    __slots__ = ("places", "positions")

    def __init__(self) -> None:
        self.positions: list[int] = []
        self.places: list[int] = []


class Sequences:
    """Places 0, 1, 2 …: which come before and after each, and which document stands there now."""

    def __init__(self) -> None:
        self.count = 0
        self._before = np.full(1024, NONE, np.int32)
        self._after = np.full(1024, NONE, np.int32)
        self._now = np.full(1024, NONE, np.int32)
        self._known: dict[tuple[int, str], _Sequence] = {}

    def place(self, namespace: int, sequence: str, position: int) -> int:
        """The number of a place; links it when it is new."""
        known = self._known.setdefault((namespace, sequence), _Sequence())
        positions, places = known.positions, known.places
        at = len(positions) if not positions or positions[-1] < position else bisect_left(positions, position)
        if at < len(positions) and positions[at] == position:
            return places[at]
        number = self.count
        self._reserve(number + 1)
        if at:
            self._before[number], self._after[places[at - 1]] = places[at - 1], number
        if at < len(places):
            self._after[number], self._before[places[at]] = places[at], number
        positions.insert(at, position)
        places.insert(at, number)
        self.count = number + 1
        return number

    def stand(self, place: int, document: int) -> None:
        """This document stands at a place now."""
        self._now[place] = document

    def leave(self, place: int, document: int) -> None:
        """It does so no longer."""
        if self._now[place] == document:
            self._now[place] = NONE

    def around(self, places: Numbers, before: int, after: int) -> Numbers:
        """Documents that stand next to these places [n, before + after]: the nearest before, the one before that, …, then
        those after; NONE where there is none. A place of NONE has no neighbours."""
        now = self._now
        found = np.full((len(places), before + after), NONE, np.int32)
        for link, first, count in ((self._before, 0, before), (self._after, before, after)):
            at = places
            for step in range(count):
                at = np.where(at >= 0, link[at], NONE)
                found[:, first + step] = np.where(at >= 0, now[at], NONE)
        return found

    def _reserve(self, count: int) -> None:
        if count <= len(self._now):
            return
        room = max(count, len(self._now) * 3 // 2)
        for name in ("_before", "_after", "_now"):
            grown = np.full(room, NONE, np.int32)
            grown[: self.count] = getattr(self, name)[: self.count]
            setattr(self, name, grown)
