"""diff and digest: what the state was at two points, and how the two differ.

A point is `SOURCE` (its head) or `SOURCE@POINT`. The state at a point comes from a replay of the log, so it rests on nothing
but the log; the head's digest is also compared with the view's. Permissions are what the log knows of them: who owns a
namespace. There are no other grants to compare.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from memos_drivers.stores.base import VIEW
from memos_kernel.governance import text_id
from memos_kernel.state import Cube, View, decode_cube, shown

from . import offline
from .logview import damage_named
from .offline import Keys, Replayed
from .output import BAD, GOOD, Output, Trouble
from .render import Block, Line, Rows, time_text


def state_of(source: str, point: str | None, keys: Keys, out: Output) -> tuple[Replayed, list[Any] | None]:
    """The state at a point, and where the view stands."""
    with offline.opened(source, keys, out, log_only=True) as found, damage_named(found.log, source):
        to_seq = offline.head(found.log) if point is None else offline.resolve(found.log, point)
        if to_seq < 0:
            raise Trouble(f"the log in {source} holds no record; name the directory of a kernel that has run")
        with out.progress(f"replaying {source}", to_seq + 1) as progress:
            return offline.replayed(found.log, to_seq, progress), View(found.store.live(VIEW)).applied()


def digest(arguments: argparse.Namespace, out: Output) -> int:
    source, at = offline.source_and_point(arguments.source)
    point = arguments.at or at
    keys = offline.keys_of(arguments)
    state, applied = state_of(source, point, keys, out)
    data: dict[str, Any] = {"offset": state.seq, "hash": state.hash.hex(), "state_digest": shown(state.digest).hex()}
    rows = [(name, str(value)) for name, value in data.items()]
    blocks: list[Block] = [Rows(("field", "value"), rows)]
    if point is None:
        same = applied is None or applied[0] != state.seq or int.from_bytes(applied[3], "little") == state.digest
        data["view_agrees"] = same
        if not same:
            blocks.append(Line(f"the view has another digest: run `memctl check {source}`", "bold red"))
            out.show(data, *blocks)
            return BAD
    out.show(data, *blocks)
    return GOOD


def diff(arguments: argparse.Namespace, out: Output) -> int:
    """Exit status 1 means that the states differ, as with diff(1)."""
    keys = offline.keys_of(arguments)
    a, _applied = state_of(*offline.source_and_point(arguments.a), keys, out)
    b, _applied = state_of(*offline.source_and_point(arguments.b), keys, out)
    if a.view.get(b"mlog_id") != b.view.get(b"mlog_id"):
        out.err.print("memctl: these are two different logs: every cube will differ", style="yellow", markup=False)
    added, removed, changed = _cubes(a.view, b.view)
    owners_a, owners_b = ({n.name: n.owner for n in one.view.namespaces()} for one in (a, b))
    data: dict[str, Any] = {
        "a": {"offset": a.seq, "state_digest": shown(a.digest).hex()},
        "b": {"offset": b.seq, "state_digest": shown(b.digest).hex()},
        "equal": a.digest == b.digest,
        "namespaces_added": sorted(owners_b.keys() - owners_a.keys()),
        "namespaces_removed": sorted(owners_a.keys() - owners_b.keys()),
        "owners": {
            name: [owners_a.get(name), owners_b.get(name)]
            for name in sorted(owners_a.keys() | owners_b.keys()) if owners_a.get(name) != owners_b.get(name)
        },
        "added": [_brief(cube) for cube in added], "removed": [_brief(cube) for cube in removed],
        "changed": [_change(old, new) for old, new in changed if old.namespace == new.namespace],
        "moved": [_change(old, new) for old, new in changed if old.namespace != new.namespace],
    }  # fmt: skip
    out.show(data, *_blocks(data))
    return GOOD if a.digest == b.digest else BAD


def _cubes(a: View, b: View) -> tuple[list[Cube], list[Cube], list[tuple[Cube, Cube]]]:
    """Cubes only in b, only in a, and in both but different. Both scans are in order of id."""
    added: list[Cube] = []
    removed: list[Cube] = []
    changed: list[tuple[Cube, Cube]] = []
    left, right = a.scan(b"c"), b.scan(b"c")
    old, new = next(left, None), next(right, None)
    while old is not None or new is not None:
        if new is None or (old is not None and old[0] < new[0]):
            assert old is not None
            removed.append(decode_cube(old[1]))
            old = next(left, None)
        elif old is None or new[0] < old[0]:
            added.append(decode_cube(new[1]))
            new = next(right, None)
        else:
            if old[1] != new[1]:
                changed.append((decode_cube(old[1]), decode_cube(new[1])))
            old, new = next(left, None), next(right, None)
    return added, removed, changed


def _brief(cube: Cube) -> dict[str, Any]:
    return {
        "cube_id": text_id(cube.cube_id), "namespace": cube.namespace, "version": cube.version, "state": cube.state,
        "expires_at": cube.expires_at,
    }  # fmt: skip


def _change(old: Cube, new: Cube) -> dict[str, Any]:
    return {
        "cube_id": text_id(new.cube_id), "namespace": new.namespace, "moved_from": old.namespace, "changed_at": new.changed_seq,
        "version": [old.version, new.version], "state": [old.state, new.state], "expires_at": [old.expires_at, new.expires_at],
    }  # fmt: skip


def _blocks(data: dict[str, Any]) -> Iterator[Block]:
    if data["equal"]:
        yield Line(f"the states are equal: {data['a']['state_digest']}", "green")
        return
    rows: list[tuple[str, ...]] = []
    for name, pair in data["owners"].items():
        sign = "+" if pair[0] is None else "-" if pair[1] is None else "~"
        rows.append((sign, name, "namespace", "", "", "", _arrow([one for one in pair if one is not None])))
    for sign, key in (("+", "added"), ("-", "removed")):
        for c in data[key]:
            expires = time_text(c["expires_at"]) if c["expires_at"] is not None else ""
            rows.append((sign, c["namespace"], c["cube_id"], f"v{c['version']}", c["state"], expires, ""))
    for sign, key in ((">", "moved"), ("~", "changed")):
        for c in data[key]:
            where = _arrow([c["moved_from"], c["namespace"]])
            expires = _arrow([time_text(time) for time in c["expires_at"]]) if any(c["expires_at"]) else ""
            rows.append((sign, where, c["cube_id"], _arrow(c["version"], "v"), _arrow(c["state"]), expires, ""))
    if rows:
        yield Rows(("", "namespace", "cube", "version", "state", "expires", "owner"), rows)
    counts = ", ".join(f"{len(data[key])} {key}" for key in ("added", "changed", "moved", "removed"))
    yield Line(f"offset {data['a']['offset']} to {data['b']['offset']}: {counts}", "bold")
    yield Line("permissions are the owners of namespaces; this log knows no other grants", "dim")


def _arrow(pair: list[Any], mark: str = "") -> str:
    old, new = pair[0], pair[-1]
    return f"{mark}{new}" if old == new else f"{mark}{old} -> {mark}{new}"
