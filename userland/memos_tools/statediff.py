"""diff and digest: what the state was at two points, and how the two differ.

A point is `DIR` (its head) or `DIR@OFFSET` or `DIR@TIME`. The state at a point comes from a replay of the log, so it rests
on nothing but the log; the head's digest is also compared with the view's.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memos_drivers.stores.base import VIEW
from memos_kernel.events import Damaged
from memos_kernel.governance import text_id
from memos_kernel.state import Cube, View, decode_cube, shown

from . import offline
from .offline import Keys, Replayed
from .output import BAD, GOOD, Output, Trouble
from .render import Block, Line, Rows


def state_of(path: Path, point: str | None, out: Output) -> Replayed:
    with offline.opened(path, Keys(none=True)) as found:
        to_seq = offline.head(found.log) if point is None else offline.resolve(found.log, point)
        if to_seq < 0:
            raise Trouble(f"the log in {path} holds no record")
        with out.progress(f"replaying {path}", to_seq + 1) as progress:
            try:
                return offline.replayed(found.log, to_seq, progress)
            except Damaged as error:
                raise Trouble(f"{path} cannot be replayed: {error}; run `memctl check {path}`") from error


def digest(arguments: argparse.Namespace, out: Output) -> int:
    path, at = offline.source_and_point(str(arguments.source))
    point = arguments.at or at
    state = state_of(path, point, out)
    data: dict[str, Any] = {"offset": state.seq, "hash": state.hash.hex(), "state_digest": shown(state.digest).hex()}
    rows = [(name, str(value)) for name, value in data.items()]
    blocks: list[Block] = [Rows(("field", "value"), rows)]
    if point is None:
        with offline.opened(path, Keys(none=True)) as found:
            applied = View(found.store.live(VIEW)).applied()
        same = applied is None or applied[0] != state.seq or int.from_bytes(applied[3], "little") == state.digest
        data["view_agrees"] = same
        if not same:
            blocks.append(Line(f"the view has another digest: run `memctl check {path}`", "bold red"))
            out.show(data, *blocks)
            return BAD
    out.show(data, *blocks)
    return GOOD


def diff(arguments: argparse.Namespace, out: Output) -> int:
    """Exit status 1 means that the states differ, as with diff(1)."""
    a = state_of(*offline.source_and_point(arguments.a), out)
    b = state_of(*offline.source_and_point(arguments.b), out)
    if a.view.get(b"mlog_id") != b.view.get(b"mlog_id"):
        out.err.print("memctl: these are two different logs: every cube will differ", style="yellow", markup=False)
    added, removed, changed = _cubes(a.view, b.view)
    names_a, names_b = ({n.name for n in one.view.namespaces()} for one in (a, b))
    data: dict[str, Any] = {
        "a": {"offset": a.seq, "state_digest": shown(a.digest).hex()},
        "b": {"offset": b.seq, "state_digest": shown(b.digest).hex()},
        "equal": a.digest == b.digest,
        "namespaces_added": sorted(names_b - names_a), "namespaces_removed": sorted(names_a - names_b),
        "added": [_brief(cube) for cube in added], "removed": [_brief(cube) for cube in removed],
        "changed": [_change(old, new) for old, new in changed],
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
    return {"cube_id": text_id(cube.cube_id), "namespace": cube.namespace, "version": cube.version, "state": cube.state}


def _change(old: Cube, new: Cube) -> dict[str, Any]:
    return {
        "cube_id": text_id(new.cube_id), "namespace": new.namespace, "version": [old.version, new.version],
        "state": [old.state, new.state], "expires_at": [old.expires_at, new.expires_at],
    }  # fmt: skip


def _blocks(data: dict[str, Any]) -> Iterator[Block]:
    if data["equal"]:
        yield Line(f"the states are equal: {data['a']['state_digest']}", "green")
        return
    rows: list[tuple[str, ...]] = [("+", name, "namespace", "", "") for name in data["namespaces_added"]]
    rows += [("-", name, "namespace", "", "") for name in data["namespaces_removed"]]
    for sign, key in (("+", "added"), ("-", "removed")):
        rows += [(sign, c["namespace"], c["cube_id"], f"v{c['version']}", c["state"]) for c in data[key]]
    for c in data["changed"]:
        rows.append(("~", c["namespace"], c["cube_id"], _arrow(c["version"], "v"), _arrow(c["state"])))
    if rows:
        yield Rows(("", "namespace", "cube", "version", "state"), rows)
    counts = ", ".join(f"{len(data[key])} {key}" for key in ("added", "changed", "removed"))
    yield Line(f"offset {data['a']['offset']} to {data['b']['offset']}: {counts}", "bold")


def _arrow(pair: list[Any], mark: str = "") -> str:
    old, new = pair
    return f"{mark}{new}" if old == new else f"{mark}{old} -> {mark}{new}"
