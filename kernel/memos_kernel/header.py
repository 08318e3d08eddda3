"""A version as callers see it: rows and private part → the header map of the ABI. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from . import lifecycle
from .governance import text_id
from .private import Private
from .state import CONTENT, CONTEXT, Cube, Version, View

ROLES = ("content", "context")


def header(
    view: View, cube: Cube, version: Version, private: Private | None, *, state: str, now: int, owner: str | None
) -> dict[str, Any]:
    """The header of one version; without the private part (erased) only what is public."""
    result: dict[str, Any] = {
        "cube_id": text_id(cube.cube_id),
        "version": version.version,
        "form": cube.form,
        "namespace": cube.namespace,
        "state": lifecycle.effective(state, version.expires_at, now),
        "owner": owner or "",
        "created_at": cube.created_time,
        "updated_at": version.time,
        "offset": version.seq,
        "actor": version.principal,
        "bytes": version.payload_bytes,
    }
    # What is not set is left out: both ends save the work of carrying it.
    if version.expires_at is not None:
        result["expires_at"] = version.expires_at
    if version.lineage:
        result["parents"] = [
            {"cube_id": text_id(source), "version": at, "role": ROLES[role]} for source, at, role in version.lineage
        ]
        result["stale"] = is_stale(view, version) or (cube.form != "plaintext" and has_expired(view, version, now))
        if is_renewable(view, version):
            result["renewable"] = True
    if view.pinned(cube.cube_id):
        result["pinned"] = True
    if cube.forked_from is not None:
        result["forked_from"] = {"cube_id": text_id(cube.forked_from[0]), "version": cube.forked_from[1]}
    if cube.merged_into is not None:
        result["merged_into"] = text_id(cube.merged_into)
    if private is not None:
        for name, value, unset in (
            ("name", private.name, None), ("tags", private.tags, []), ("semantic_type", private.semantic_type, None),
            ("origin", private.origin, "user_input"), ("metadata", private.metadata, {}),
            ("valid_from", private.valid_from, None), ("valid_to", private.valid_to, None), ("priority", private.priority, 0),
            ("labels", private.labels, []), ("encoding", private.encoding, "text"), ("recipe", private.recipe, None),
        ):  # fmt: skip
            if value != unset:
                result[name] = value
        if private.embedding is not None:
            result["has_embedding"] = True
    return result


def is_stale(view: View, version: Version) -> bool:
    """Whether a `content` source has a newer version than the one that was read, directly or through caches."""
    return _has_newer(view, version, CONTENT)


def is_renewable(view: View, version: Version) -> bool:
    """Whether a `context` source has a newer version than the one that it was made behind."""
    return _has_newer(view, version, CONTEXT)


def has_expired(view: View, version: Version, now: int) -> bool:
    """Whether the life of a `content` source is over."""
    return any(role == CONTENT and over(source, now) for source, _at, role in sources(view, version))


def over(cube: Cube, now: int) -> bool:
    """Whether a cube's life has run out."""
    return lifecycle.effective(cube.state, cube.expires_at, now) == lifecycle.EXPIRED


def _has_newer(view: View, version: Version, wanted: int) -> bool:
    """Whether a source of one role has a newer version than the one that was read."""
    return any(role == wanted and source.version > at for source, at, role in sources(view, version))


def sources(view: View, version: Version) -> Iterator[tuple[Cube, int, int]]:
    """What was read, directly or through caches: what those were made from may have changed though they did not. Each source
    comes once, however many ways lead to it; what a cache was made from comes right behind it."""
    queue, seen = version.lineage[::-1], set(map(tuple, version.lineage))
    while queue:
        source, at, role = queue.pop()
        cube = view.cube(source)
        if cube is None:
            continue
        yield cube, at, role
        through = cube.form != "plaintext" and role == CONTENT
        if through and (found := view.version(cube, at)) is not None:
            queue += [one for one in reversed(found[0].lineage) if tuple(one) not in seen]
            seen.update(map(tuple, found[0].lineage))
