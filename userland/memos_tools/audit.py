"""audit: who did what, when, under which right, with what before and after, and why; from the log.

One entry per record and cube. Changes that a record made without naming the cube are found too: a namespace that was forked
or erased, a source that came back because its fusion was erased. Of an erased cube everything public stays; its notes read
"(erased)".

The log holds no verdicts. The right is what governance must have found, from what the log does hold:

1. `kernel itself`: the kernel did it (the end of a life, an adapter trained again, a cache renewed).
2. `owner of NS`: the actor owned NS, the nearest namespace that existed then; owners never change.
3. `first in NS`: nobody owned NS or anything above it; who makes a namespace owns it.
4. `admin`: anything else, which only the kernel's own user may do.

`table` shows entries for people; `jsonl` and `csv` write each as it is found, so that a log of any size takes the same memory.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from memos_drivers.stores.base import VIEW
from memos_kernel import events as ev
from memos_kernel.events import Damaged, Event, Record
from memos_kernel.governance import raw_id, text_id
from memos_kernel.offline import Offline
from memos_kernel.private import Private
from memos_kernel.state import Cube, View
from memos_kernel.upcast import current

from . import offline
from .contentdiff import change_of
from .loggrep import UUID, below
from .logview import damage_named, opened_private, span, syscall_name
from .output import BAD, GOOD, Output, Trouble
from .render import Block, Line, Rows, time_text, to_json

FORMATS: Final = ("table", "jsonl", "csv")
PROGRESS_EVERY: Final = 4096
_READ: Final = "read by "
Touched = tuple[bytes, str, int | None]
"""A cube that a record touched, what happened to it, and the version that it is about."""


class Stand(NamedTuple):
    """Where a cube stood before or after a record."""

    version: int
    state: str
    namespace: str
    digest: str
    """Of the version's ciphertext."""


class Entry(NamedTuple):
    """One thing that happened to one cube."""

    offset: int
    time: str
    actor: str
    right: str
    syscall: str
    cube: str
    what: str
    version: int | None
    state: str | None
    """The new state, where it changed."""
    before: Stand | None
    after: Stand | None
    change: str | None
    """Of the content, when it changed and the key is there."""
    note: str | None

    def as_json(self) -> dict[str, Any]:
        stands = {name: stand and stand._asdict() for name, stand in (("before", self.before), ("after", self.after))}
        return self._asdict() | stands


class Subject(NamedTuple):
    """Whose past is wanted: one cube's, a namespace's with all below it, or everybody's."""

    cube: Cube | None
    namespace: str | None

    def holds(self, cube: Cube) -> bool:
        return cube.cube_id == self.cube.cube_id if self.cube is not None else below(cube.namespace, self.namespace)


def command(arguments: argparse.Namespace, out: Output) -> int:
    source: str = arguments.source
    with offline.opened(source, offline.keys_of(arguments), out) as found:
        with damage_named(found.log, source):
            first, last = span(found.log, arguments.first, arguments.last)
        view = View(found.store.live(VIEW))
        subject = _subject(view, arguments.subject)
        walk = _Walk(found, view, subject, first, last, out)
        if arguments.format != "table":
            with damage_named(found.log, source):
                _stream(walk, arguments.format, out)
            return GOOD
        entries: list[Entry] = []
        damage: str | None = None
        try:
            with damage_named(found.log, source):
                entries.extend(walk.entries())
        except Trouble as error:
            # What was found before the damage is worth seeing.
            damage = str(error)
        cubes = [cube for one in sorted({entry.cube for entry in entries}) if (cube := view.cube(raw_id(one))) is not None]
    blocks: list[Block] = [Line(text) for text in _heads(subject, cubes)]
    blocks.append(_table(entries, many=subject.cube is None))
    if damage is not None:
        blocks.append(Line(damage, "bold red"))
    data: dict[str, Any] = {
        "subject": arguments.subject,
        "cubes": {text_id(cube.cube_id): {"state": cube.state, "version": cube.version} for cube in cubes},
        "entries": [entry.as_json() for entry in entries], "damage": damage,
    }  # fmt: skip
    out.show(data, *blocks)
    return GOOD if damage is None else BAD


def _subject(view: View, text: str | None) -> Subject:
    if text is None:
        return Subject(None, None)
    if UUID.fullmatch(text.lower()):
        cube = view.cube(raw_id(text))
        if cube is None:
            raise Trouble(f"there never was a cube {text}; `memctl log tail` shows ids")
        return Subject(cube, None)
    if view.namespace(text) is None:
        raise Trouble(f"{text} is neither a cube id nor a namespace that ever was; `memctl audit` without it shows everything")
    return Subject(None, text)


# -- what is shown -----------------------------------------------------------------------------------------------------


def _heads(subject: Subject, cubes: list[Cube]) -> Iterator[str]:
    if subject.cube is None:
        erased = sum(cube.state == "shredded" for cube in cubes)
        where = f"namespace {subject.namespace}" if subject.namespace is not None else "all namespaces"
        yield f"{where}: {len(cubes)} cubes, {erased} erased"
        return
    cube = subject.cube
    state = f"erased at offset {cube.changed_seq}" if cube.state == "shredded" else cube.state
    origin = f", forked from {text_id(cube.forked_from[0])}@{cube.forked_from[1]}" if cube.forked_from else ""
    yield f"cube {text_id(cube.cube_id)} in {cube.namespace}: {state}, version {cube.version}{origin}"


def _table(entries: list[Entry], many: bool) -> Rows:
    headers = ("offset", "time", "actor", "right", "syscall", *(("cube",) if many else ()), "what", "before", "after", "change",
               "note")  # fmt: skip
    rows = [
        (
            str(entry.offset), entry.time, entry.actor, entry.right, entry.syscall, *((entry.cube,) if many else ()),
            entry.what, _stand(entry.before), _stand(entry.after), entry.change or "-", entry.note or "-",
        )
        for entry in entries
    ]  # fmt: skip
    return Rows(headers, rows)


def _stand(stand: Stand | None) -> str:
    return "-" if stand is None else f"v{stand.version} {stand.state}"


def _stream(walk: _Walk, form: str, out: Output) -> None:
    """An entry a line, as it is found."""
    file = out.out.file
    if form == "jsonl":
        for entry in walk.entries():
            file.write(to_json(entry.as_json()) + "\n")
        return
    plain = [name for name in Entry._fields if name not in ("before", "after")]
    stands = [f"{when}_{name}" for when in ("before", "after") for name in Stand._fields]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*plain, *stands])
    for entry in walk.entries():
        fields = entry._asdict()
        cells = [fields[name] for name in plain]
        for stand in (entry.before, entry.after):
            cells += list(stand) if stand is not None else [None] * len(Stand._fields)
        writer.writerow(cells)


# -- what happened -----------------------------------------------------------------------------------------------------


class _Walk:
    """The log from one offset to another, seen with one subject in mind."""

    def __init__(self, found: Offline, view: View, subject: Subject, first: int, last: int, out: Output) -> None:
        self.found = found
        self.view = view
        self.subject = subject
        self.first = first
        self.last = last
        self.out = out

    def entries(self) -> Iterator[Entry]:
        """Entries in the log's order. Raises `Damaged`."""
        cube = self.subject.cube
        changed = self._offsets_of(cube) if cube is not None else set[int]()
        with self.out.progress("reading the log", self.last + 1) as progress:
            for item in offline.walk(self.found.log, self.first):
                if item.seq > self.last:
                    return
                if item.seq % PROGRESS_EVERY == 0:
                    progress(item.seq)
                # Most records are about other cubes: their bytes say so, without decoding them.
                if cube is not None and item.seq not in changed and cube.cube_id not in item.raw and b"forked" not in item.raw:
                    continue
                yield from self._of(current(item.record()))

    def _offsets_of(self, cube: Cube) -> set[int]:
        """Records that changed a cube's state, and the one that made it."""
        return {cube.created_seq, *(int.from_bytes(key[17:], "big") for key, _value in self.view.scan(b"s" + cube.cube_id))}

    def _of(self, record: Record) -> Iterator[Entry]:
        merged = {source for event in record.events if event.name == ev.MERGED for source, _version in event.fields[1]}
        for event in record.events:
            for cube_id, what, version in self._touched(record, event):
                cube = self.view.cube(cube_id)
                if cube is None:
                    raise Damaged(f"record {record.seq} names cube {text_id(cube_id)}, which the view does not hold")
                if not self.subject.holds(cube) or (what.startswith(_READ) and cube_id in merged):
                    continue
                yield self._entry(record, event, cube, what, version)

    def _entry(self, record: Record, event: Event, cube: Cube, what: str, version: int | None) -> Entry:
        read = what.startswith(_READ)
        before = None if read else self._stand_after(cube, record.seq - 1)
        after = None if read else self._stand_after(cube, record.seq)
        state = after.state if after is not None and (before is None or before.state != after.state) else None
        change: str | None = None
        if self.found.vault is not None and after is not None and (before is None or before.version != after.version):
            change = change_of(self.view, self.found.vault, cube, before and before.version, after.version)
        return Entry(
            record.seq, time_text(record.time), record.principal, right(self.view, record, cube.namespace),
            syscall_name(record.syscall), text_id(cube.cube_id), what, version, state, before, after, change,
            None if read else self._note(record, event),
        )  # fmt: skip

    def _stand_after(self, cube: Cube, seq: int) -> Stand | None:
        version = self.view.version_at(cube, seq)
        if version is None:
            return None
        found = self.view.version(cube, version)
        digest = "" if found is None else found[0].payload_digest.hex()
        return Stand(version, self.view.state_at(cube, seq), cube.namespace, digest)

    def _note(self, record: Record, event: Event) -> str | None:
        """Why it was done: public with an erasure, otherwise in the private part of the event or of the record's first one."""
        sealed = event if event.private is not None else next((e for e in record.events if e.private is not None), None)
        if record.note is not None or sealed is None:
            return record.note
        if self.found.vault is None:
            return "(no key)"
        private = opened_private(sealed, self.view, self.found.vault)
        return private.note if isinstance(private, Private) else private

    def _touched(self, record: Record, event: Event) -> Iterator[Touched]:
        """Every cube that an event touches, named or not."""
        f = event.fields
        match event.name:
            case ev.ALLOCATED:
                yield f[0], _made(record, f[2], f[4][1]), 1
                yield from _sources(f[6], f[0])
            case ev.WRITTEN:
                yield f[0], f"brought back version {f[6]}" if f[6] else self._written(record, f[0], f[3][1]), f[1]
                yield from _sources(f[5], f[0])
            case ev.STATE_CHANGED:
                yield f[0], f[3], f[1]
            case ev.PINNED:
                yield f[0], "pinned" if f[2] else "unpinned", f[1]
            case ev.EXPIRED:
                yield from ((cube_id, "expired", version) for cube_id, version in f[0])
            case ev.MERGED:
                yield from ((source, f"merged into {text_id(f[0])}", version) for source, version in f[1])
            case ev.UNMERGED:
                yield f[0], "fusion undone", f[1]
                yield from ((one, f"back from {text_id(f[0])}", None) for one in f[2])
            case ev.SUPERSEDED:
                yield from ((older, f"superseded by {text_id(newer)}", at) for older, at, newer, _then in f[0])
            case ev.FORKED:
                yield from self._copied(record, event)
            case ev.SHREDDED:
                yield from self._erased(record, event)
            case _:
                pass

    def _written(self, record: Record, cube_id: bytes, size: int) -> str:
        cube = self.view.cube(cube_id)
        if cube is None or cube.form != "parametric" or syscall_name(record.syscall) != "mem_migrate":
            return "written"
        return f"trained: adapter of {size} bytes"

    def _copied(self, record: Record, event: Event) -> Iterator[Touched]:
        """Each cube that a fork took along, and its copy."""
        for cube_id in self.view.cubes_below(event.fields[1]):
            copy = self.view.cube(cube_id)
            if copy is not None and copy.created_seq == record.seq and copy.forked_from is not None:
                source, version = copy.forked_from
                yield source, f"copied by the fork to {event.fields[1]}", None
                yield cube_id, f"forked from {text_id(source)}", version

    def _erased(self, record: Record, event: Event) -> Iterator[Touched]:
        """The cubes that a shred names, those of its namespace, and those that came back because their fusion went."""
        namespace, named, rebuilt, _hash = event.fields
        replaced = dict(rebuilt)
        for cube_id in named:
            what = f"erased, made anew as {text_id(replaced[cube_id])}" if cube_id in replaced else "erased"
            yield cube_id, what, None
            yield from self._freed(record, cube_id, replaced.get(cube_id))
        for cube_id in self.view.cubes_below(namespace) if namespace is not None else ():
            cube = self.view.cube(cube_id)
            if cube is not None and cube.state == "shredded" and cube.changed_seq == record.seq and cube_id not in named:
                yield cube_id, "erased with its namespace", None
                yield from self._freed(record, cube_id, replaced.get(cube_id))

    def _freed(self, record: Record, fused: bytes, into: bytes | None) -> Iterator[Touched]:
        for key, _value in self.view.scan(b"f" + fused):
            source = self.view.cube(key[17:])
            if source is None or self.view.state_at(source, record.seq - 1) != "merged":
                continue
            if into is not None:
                yield source.cube_id, f"merged into {text_id(into)}, in place of {text_id(fused)}", None
            elif self.view.state_at(source, record.seq) == "activated":
                yield source.cube_id, f"back, because {text_id(fused)} was erased", None


def right(view: View, record: Record, namespace: str) -> str:
    """The right under which a record's actor could do something in a namespace, from what is public."""
    if record.principal == ev.KERNEL_PRINCIPAL:
        return "kernel itself"
    name = namespace
    while name:
        found = view.namespace(name)
        if found is not None and found.created_seq < record.seq:
            return f"owner of {name}" if found.owner == record.principal else "admin"
        name = name.rpartition("/")[0]
    return f"first in {namespace}"


def _made(record: Record, form: str, size: int) -> str:
    """How a cube came to be, as far as that is public."""
    if form != "parametric":
        return "made"
    if not size:
        return "made empty: an adapter that is to be trained"
    how = {"mem_fuse": "fused", "mem_alloc": "imported"}.get(syscall_name(record.syscall), "trained")
    return f"{how}: adapter of {size} bytes"


def _sources(lineage: list[Any], derived: bytes) -> Iterator[Touched]:
    for source, version, _role in lineage:
        if source != derived:
            yield source, f"{_READ}{text_id(derived)}", version
