"""log grep: the records that pass every filter given and, with a pattern, in whose text it is found.

- The text of a record is what `log show` prints, one `field value` a line, private parts and contents decrypted when the
  key is there; the pattern is a regular expression that may match anywhere in it (`^` and `$` at each line).
- Records come one at a time, in the log's order, and none is kept: a log of any size takes the same memory.
- Exit status: 0 something was found, 1 nothing was, 2 the command cannot be carried out; as grep(1).
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from memos_drivers.stores.base import VIEW
from memos_kernel import events as ev
from memos_kernel.events import Event, Record
from memos_kernel.governance import raw_id
from memos_kernel.offline import Offline
from memos_kernel.state import View
from memos_kernel.upcast import current
from memos_syscalls.table import BY_NAME

from . import offline
from .logview import FIELDS, damage_named, revealed, sections, span, syscall_name, targets
from .offline import Item
from .output import BAD, GOOD, Output, Trouble
from .render import Line

UUID = re.compile(r"[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}")
"""A cube's id, with or without its hyphens."""


class Filters(NamedTuple):
    """What a record must be; None lets everything through."""

    actor: str | None
    event: str | None
    syscall: str | None
    cube: bytes | None
    namespace: str | None

    def pass_raw(self, raw: bytes) -> bool:
        """Whether stored bytes may pass at all: a name or an id that is not in them need not be decoded."""
        wanted = (self.actor and self.actor.encode(), self.event and self.event.encode(), self.cube)
        return all(one in raw for one in wanted if one)

    def passes(self, record: Record, view: View) -> bool:
        if self.actor is not None and record.principal != self.actor:
            return False
        if self.syscall is not None and syscall_name(record.syscall) != self.syscall:
            return False
        events = [event for event in record.events if self.event in (None, event.name)]
        if self.cube is not None:
            events = [event for event in events if self.cube in cubes_of(event)]
        if self.namespace is not None:
            events = [event for event in events if self._inside(event, view)]
        return bool(events)

    def _inside(self, event: Event, view: View) -> bool:
        named = list(namespaces_of(event))
        if event.name in (ev.FORKED, ev.SHREDDED) and any(below(self.namespace or "", name) for name in named):
            # What is done to a namespace is done to those below it.
            return True
        named += [cube.namespace for one in cubes_of(event) if (cube := view.cube(one)) is not None]
        return any(below(name, self.namespace) for name in named)


def below(name: str, namespace: str | None) -> bool:
    """Whether a namespace is the given one or lies in it; None holds all."""
    return namespace is None or name == namespace or name.startswith(namespace + "/")


def namespaces_of(event: Event) -> Iterator[str]:
    """Namespaces that an event names."""
    for name, value in zip(FIELDS[event.name], event.fields, strict=True):
        if isinstance(value, str) and (name in ("namespace", "target_namespace") or event.name == ev.FORKED):
            yield value


def cubes_of(event: Event) -> set[bytes]:
    """Cubes that an event names, sources included."""
    found: set[bytes] = set()
    for name, value in zip(FIELDS[event.name], event.fields, strict=True):
        if name in ("cube_id", "fused_id"):
            found.add(value)
        elif name in ("cubes", "sources", "lineage", "rebuilt") and isinstance(value, list):
            for one in value:
                parts = one if isinstance(one, list) else [one]
                found.update(part for part in parts if isinstance(part, bytes))
    return found


def command(arguments: argparse.Namespace, out: Output) -> int:
    pattern, filters = _pattern(arguments), _filters(arguments)
    keys = offline.keys_of(arguments)
    shown = 0
    with offline.opened(arguments.source, keys, out) as found, damage_named(found.log, arguments.source):
        first, last = span(found.log, arguments.first, arguments.last)
        for data in _matching(found, first, last, filters, pattern):
            _show(data, pattern, out)
            shown += 1
            if shown == arguments.n:
                break
    return GOOD if shown else BAD


def _pattern(arguments: argparse.Namespace) -> re.Pattern[str] | None:
    if arguments.pattern is None:
        if not any((arguments.actor, arguments.event, arguments.syscall, arguments.cube, arguments.namespace)):
            raise Trouble("name a PATTERN, or a filter such as --actor or --event; `memctl log tail` shows everything")
        return None
    try:
        return re.compile(arguments.pattern, re.MULTILINE | (re.IGNORECASE if arguments.ignore_case else 0))
    except re.error as error:
        raise Trouble(
            f"{arguments.pattern!r} is not a regular expression: {error}; put \\ before signs to take them as they are"
        ) from error


def _filters(arguments: argparse.Namespace) -> Filters:
    if arguments.event is not None and arguments.event not in FIELDS:
        raise Trouble(f"there is no event {arguments.event}; the events are {', '.join(FIELDS)}")
    if arguments.syscall not in (None, "-") and arguments.syscall not in BY_NAME:
        raise Trouble(f"there is no syscall {arguments.syscall}; `memsh help` lists them, - is the kernel's own records")
    cube: bytes | None = None
    if arguments.cube is not None:
        if not UUID.fullmatch(arguments.cube.lower()):
            raise Trouble(f"{arguments.cube!r} is not a cube id, which is a UUID; `memctl log tail` shows ids")
        cube = raw_id(arguments.cube)
    return Filters(arguments.actor, arguments.event, arguments.syscall, cube, arguments.namespace)


def _matching(
    found: Offline, first: int, last: int, filters: Filters, pattern: re.Pattern[str] | None
) -> Iterator[dict[str, Any]]:
    view = View(found.store.live(VIEW))
    for item in offline.walk(found.log, first):
        if item.seq > last:
            return
        if not filters.pass_raw(item.raw) or not filters.passes(current(item.record()), view):
            continue
        data = revealed(item, found)
        if pattern is None or pattern.search(text_of(data)):
            yield data | {"about": _about(item)}


def text_of(data: dict[str, Any]) -> str:
    """A record as text, one `field value` a line."""
    return "\n".join(f"{name} {value}" for section in sections(data) for name, value in section)


def _about(item: Item) -> list[str]:
    return [f"{event.name} {targets(event)}".strip() for event in current(item.record()).events]


def _show(data: dict[str, Any], pattern: re.Pattern[str] | None, out: Output) -> None:
    """One line for the record, then the lines in which the pattern was found."""
    about = data.pop("about")
    head = f"{data['offset']}  {data['time']}  {data['actor']}  {data['syscall']}  {', '.join(about)}"
    lines = [line for line in text_of(data).splitlines() if pattern.search(line)] if pattern is not None else []
    out.show(data, Line(head, "bold" if lines else ""), *(Line(f"    {line}") for line in lines))
