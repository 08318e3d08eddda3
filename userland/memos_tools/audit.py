"""audit: everything that ever happened to a cube or in a namespace, from the log.

One line per record and cube: offset, time, who, which call, what it did, version, state after it, note. Changes that a
record made without naming the cube are found too: a namespace that was forked or erased, a source that came back because
its fusion was erased. Of an erased cube everything public stays; its notes read "(erased)".
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from memos_drivers.stores.base import VIEW
from memos_kernel import events as ev
from memos_kernel.eventlog.base import EventLog
from memos_kernel.events import Damaged, Event, Record
from memos_kernel.governance import raw_id, text_id
from memos_kernel.private import Private
from memos_kernel.state import Cube, View
from memos_kernel.upcast import current
from memos_kernel.vault import Vault
from memos_kernel.verify import Progress

from . import offline
from .logview import opened_private, syscall_name
from .offline import Keys
from .output import BAD, GOOD, Output, Trouble
from .render import Block, Line, Rows, time_text

_READ: Final = "read by "
_FORKED: Final = ev.FORKED.encode()
_UUID: Final = re.compile(r"[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}")


class Entry(NamedTuple):
    """One thing that happened to one cube."""

    offset: int
    time: str
    actor: str
    syscall: str
    cube: str
    what: str
    version: int | None
    state: str | None
    note: str | None


def command(arguments: argparse.Namespace, out: Output) -> int:
    with offline.opened(arguments.dir, Keys(arguments.key_file, arguments.no_keys)) as found:
        view = View(found.store.live(VIEW))
        cubes, namespace = _subject(view, arguments.subject)
        entries: list[Entry] = []
        damage: str | None = None
        total = offline.head(found.log) + 1
        with out.progress("reading the log", total) as progress:
            try:
                entries = list(_entries(found.log, view, found.vault, cubes, namespace is None, progress))
            except Damaged as error:
                damage = f"{error}; run `memctl check {arguments.dir}`"
        blocks: list[Block] = [Line(text) for text in _heads(cubes, namespace)]
        many = namespace is not None
        headers = ("offset", "time", "actor", "syscall", *(("cube",) if many else ()), "what", "version", "state", "note")
        rows = [tuple(_cells(entry, many)) for entry in entries]
        blocks.append(Rows(headers, rows))
        if damage is not None:
            blocks.append(Line(f"the log cannot be read to its end: {damage}", "bold red"))
        data: dict[str, Any] = {
            "subject": arguments.subject,
            "cubes": {text_id(cube.cube_id): {"state": cube.state, "version": cube.version} for cube in cubes.values()},
            "entries": [entry._asdict() for entry in entries], "damage": damage,
        }  # fmt: skip
        out.show(data, *blocks)
        return GOOD if damage is None else BAD


def _cells(entry: Entry, many: bool) -> Iterator[str]:
    for name, value in entry._asdict().items():
        if name == "cube" and not many:
            continue
        yield f"v{value}" if name == "version" and value is not None else "-" if value is None else str(value)


def _subject(view: View, text: str) -> tuple[dict[bytes, Cube], str | None]:
    if _UUID.fullmatch(text):
        cube = view.cube(raw_id(text))
        if cube is None:
            raise Trouble(f"there never was a cube {text}; `memctl log tail` shows ids")
        return {cube.cube_id: cube}, None
    if view.namespace(text) is None:
        raise Trouble(f"{text} is neither a cube id nor a namespace that ever was")
    found = (view.cube(cube_id) for cube_id in view.cubes_below(text))
    return {cube.cube_id: cube for cube in found if cube is not None}, text


def _heads(cubes: dict[bytes, Cube], namespace: str | None) -> Iterator[str]:
    if namespace is not None:
        erased = sum(cube.state == "shredded" for cube in cubes.values())
        yield f"namespace {namespace}: {len(cubes)} cubes, {erased} erased"
        return
    for cube in cubes.values():
        state = f"erased at offset {cube.changed_seq}" if cube.state == "shredded" else cube.state
        origin = f", forked from {text_id(cube.forked_from[0])}@{cube.forked_from[1]}" if cube.forked_from else ""
        yield f"cube {text_id(cube.cube_id)} in {cube.namespace}: {state}, version {cube.version}{origin}"


def _entries(
    log: EventLog, view: View, vault: Vault | None, cubes: dict[bytes, Cube], single: bool, progress: Progress
) -> Iterator[Entry]:
    states: dict[int, dict[bytes, str]] = {}
    for cube_id in cubes:
        for key, value in view.scan(b"s" + cube_id):
            states.setdefault(int.from_bytes(key[17:], "big"), {})[cube_id] = value.decode()
    made: dict[int, list[bytes]] = {}
    for cube in cubes.values():
        made.setdefault(cube.created_seq, []).append(cube.cube_id)
    only = next(iter(cubes)) if single else None
    for item in offline.walk(log):
        if item.seq % 4096 == 0:
            progress(item.seq)
        changed = states.get(item.seq, {})
        # Most records are about other cubes: their bytes say so, without decoding them.
        if only is not None and not changed and item.seq not in made and only not in item.raw and _FORKED not in item.raw:
            continue
        record = current(item.record())
        seen: set[bytes] = set()
        merged = {source for event in record.events if event.name == ev.MERGED for source, _version in event.fields[1]}
        for event in record.events:
            for cube_id, what, version in _touched(event, cubes):
                if what.startswith(_READ) and cube_id in merged:
                    continue
                if what.startswith(_READ):
                    yield _entry(record, cube_id, what, version, None, None)
                    continue
                seen.add(cube_id)
                # A cube's first state stands at its birth only once it has changed.
                state = changed.get(cube_id) or ("generated" if event.name == ev.ALLOCATED else None)
                yield _entry(record, cube_id, what, version, state, _note(record, event, view, vault))
            if event.name == ev.FORKED:
                for cube_id in _copied(event, record, cubes):
                    yield _entry(record, cube_id, f"copied by the fork to {event.fields[1]}", None, None, record.note)
        for cube_id in made.get(item.seq, []):
            if cube_id not in seen:
                seen.add(cube_id)
                origin = cubes[cube_id].forked_from
                what = f"forked from {text_id(origin[0])}" if origin else "made"
                yield _entry(record, cube_id, what, origin[1] if origin else 1, changed.get(cube_id, "generated"), record.note)
        for cube_id in sorted(changed.keys() - seen):
            what = "erased with its namespace" if changed[cube_id] == "shredded" else "changed by what happened to another cube"
            yield _entry(record, cube_id, what, None, changed[cube_id], record.note)


def _entry(record: Record, cube_id: bytes, what: str, version: int | None, state: str | None, note: str | None) -> Entry:
    return Entry(
        record.seq, time_text(record.time), record.principal, syscall_name(record.syscall), text_id(cube_id), what, version,
        state, note,
    )  # fmt: skip


def _note(record: Record, event: Event, view: View, vault: Vault | None) -> str | None:
    """Why it was done: public with an erasure, otherwise in the private part of the event or of the record's first one."""
    sealed = event if event.private is not None else next((e for e in record.events if e.private is not None), None)
    if record.note is not None or sealed is None:
        return record.note
    if vault is None:
        return "(no key)"
    private = opened_private(sealed, view, vault)
    return private.note if isinstance(private, Private) else private


def _touched(event: Event, cubes: dict[bytes, Cube]) -> Iterator[tuple[bytes, str, int | None]]:
    """Cubes of ours that an event names: `(cube, what happened, version)`."""
    f = event.fields
    pairs: list[tuple[bytes, str, int | None]] = []
    match event.name:
        case ev.ALLOCATED:
            pairs = [(f[0], "made", 1), *_sources(f[6], f[0])]
        case ev.WRITTEN:
            pairs = [(f[0], f"brought back version {f[6]}" if f[6] else "written", f[1]), *_sources(f[5], f[0])]
        case ev.STATE_CHANGED:
            pairs = [(f[0], f[3], f[1])]
        case ev.EXPIRED:
            pairs = [(cube_id, "expired", version) for cube_id, version in f[0]]
        case ev.MERGED:
            pairs = [(source, f"merged into {text_id(f[0])}", version) for source, version in f[1]]
        case ev.UNMERGED:
            pairs = [(f[0], "fusion undone", f[1]), *((one, f"back from {text_id(f[0])}", None) for one in f[2])]
        case ev.SHREDDED:
            rebuilt = dict(f[2])
            pairs = [
                (one, f"erased, made anew as {text_id(rebuilt[one])}" if one in rebuilt else "erased", None) for one in f[1]
            ]
        case _:
            pass
    yield from (pair for pair in pairs if pair[0] in cubes)


def _copied(event: Event, record: Record, cubes: dict[bytes, Cube]) -> Iterator[bytes]:
    """Cubes of ours that a fork took along: those of its source namespace that existed at its point."""
    source, _target, at_seq, _count, _hash = event.fields
    for cube in cubes.values():
        inside = cube.namespace == source or cube.namespace.startswith(source + "/")
        if inside and cube.created_seq <= at_seq and (cube.state != "shredded" or cube.changed_seq > record.seq):
            yield cube.cube_id


def _sources(lineage: list[Any], derived: bytes) -> Iterator[tuple[bytes, str, int | None]]:
    for source, version, _role in lineage:
        if source != derived:
            yield source, f"{_READ}{text_id(derived)}", version
