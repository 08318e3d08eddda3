"""Which fact is outdated by which: what `cube.superseded` recorded, read at a moment. Pure, but for opening event times.

- What is recorded is about two contents. A version that says something else (a write, a rollback) neither outdates nor is
  outdated; one that says the same again (a write to the header, a rollback to it, a fork) does, and is.
- The newer one counts from its record on, and in the world from its `valid_from` until its `valid_to`. Once it has expired or
  was erased, what it superseded holds again.
- Nothing is written when any of that changes: it is read. So the past, replay and forks need no rule of their own, but that a
  fork copies what was recorded between two cubes that it takes along.

Nobody below a namespace owns less than who owns it, so whoever sees the older cube of a pair may see the newer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from . import lifecycle
from .events import Damaged
from .governance import text_id
from .private import Private
from .state import Cube, Superseded, Tables, View

Of = tuple[bytes, int]
"""A cube and one of its versions."""
Privates = Callable[[View, Cube, int], Private | None]
"""Opens the private part of a version; None when it was erased."""


class Checked(NamedTuple):
    """What a check found among the cubes that its caller may read, and at which versions."""

    older: tuple[Of, ...] = ()
    """What the new content supersedes."""
    newer: tuple[Of, ...] = ()
    """What supersedes the new content from the start."""
    duplicates: tuple[Of, ...] = ()

    def holds(self, tables: Tables) -> bool:
        """Whether each of them still is what was looked at."""
        for cube_id, version in (*self.older, *self.newer, *self.duplicates):
            cube = tables.cube(cube_id)
            if cube is None or cube.version != version or cube.state not in lifecycle.SEARCHABLE:
                return False
        return True

    def pairs(self, cube_id: bytes, version: int) -> list[list[Any]]:
        """The fields of the event, once the new content has its cube: `[older, version, newer, version]` each."""
        return [
            *([older, at, cube_id, version] for older, at in self.older),
            *([cube_id, version, newer, at] for newer, at in self.newer),
        ]


def superseded(
    view: View, privates: Privates, cube: Cube, version: int, now: int, seq: int | None = None
) -> bytes | None:
    """The cube that outdates a version, and None for what holds. `seq`: as after that record, None for the present; `now`: at
    which moment of the world. For a fact with no pair recorded it costs one look into the view."""
    for _one, newer, at in _newer(view, cube, version, now, seq):
        if _valid(view, privates, newer, at, now):
            merged = seq is None and newer.state == lifecycle.MERGED
            return newer.merged_into if merged and newer.merged_into is not None else newer.cube_id
    return None


def shown(view: View, cube: Cube, version: int, now: int, seq: int | None = None) -> dict[str, Any]:
    """What a header says of it: `supersedes` and `superseded_by`, left out when empty."""
    result: dict[str, Any] = {}
    older = [(one.older, one.older_version) for one in _older(view, cube, version, seq)]
    newer = [(one.newer, one.newer_version) for one, _cube, _at in _newer(view, cube, version, now, seq)]
    for name, found in (("supersedes", older), ("superseded_by", newer)):
        if found:
            result[name] = named(found)
    return result


def named(found: list[Of]) -> list[dict[str, Any]]:
    """Cubes and versions as callers are told of them, each cube once, with its newest version."""
    return [{"cube_id": text_id(cube_id), "version": version} for cube_id, version in sorted(dict(sorted(found)).items())]


def _newer(view: View, cube: Cube, version: int, now: int, seq: int | None) -> Iterator[tuple[Superseded, Cube, int]]:
    """Pairs that outdate a version, whose newer cube is alive and still says it; with that cube and its version then."""
    for one in view.superseding(cube.cube_id):
        if (seq is not None and one.seq > seq) or not _same(view, cube, one.older_version, version):
            continue
        newer = view.cube(one.newer)
        if newer is None or newer.state == lifecycle.SHREDDED:
            continue
        at = newer.version if seq is None else view.version_at(newer, seq)
        if at is None or not _same(view, newer, one.newer_version, at):
            continue
        found = view.version(newer, at)
        state = newer.state if seq is None else view.state_at(newer, seq)
        if found is not None and lifecycle.effective(state, found[0].expires_at, now) != lifecycle.EXPIRED:
            yield one, newer, at


def _older(view: View, cube: Cube, version: int, seq: int | None) -> Iterator[Superseded]:
    """Pairs in which a version is the newer one. An erased cube is not named any more."""
    for one in view.supersedes(cube.cube_id):
        if (seq is None or one.seq <= seq) and _same(view, cube, one.newer_version, version):
            older = view.cube(one.older)
            if older is not None and older.state != lifecycle.SHREDDED:
                yield one


def _same(view: View, cube: Cube, one: int, other: int) -> bool:
    """Whether two versions of a cube have the same content."""
    if one == other:
        return True
    rows = view.version(cube, one), view.version(cube, other)
    return rows[0] is not None and rows[1] is not None and rows[0][0].payload_id == rows[1][0].payload_id


def _valid(view: View, privates: Privates, cube: Cube, version: int, now: int) -> bool:
    """Whether a fact holds in the world at a moment, as far as it says. What cannot be read outdates nothing: who reads it is
    told what is wrong with it."""
    try:
        private = privates(view, cube, version)
    except Damaged:
        return False
    if private is None or (private.valid_from is not None and now < private.valid_from):
        return False
    return private.valid_to is None or now < private.valid_to
