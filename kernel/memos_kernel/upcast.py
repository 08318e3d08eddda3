"""Old events brought to the newest schema, one step at a time.

`STEPS[(name, schema)]` turns the fields of an event of that schema into those of the next. A stored record is never
rewritten: hashes cover the bytes as they were written, and only what `apply` sees is upcast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from .events import EVENTS, Damaged, Event, Record

Step = Callable[[list[Any]], list[Any]]
STEPS: Final[dict[tuple[str, int], Step]] = {}
"""No event has changed its schema yet; a test walks a synthetic chain through this table."""


def current(record: Record, steps: dict[tuple[str, int], Step] = STEPS, newest: dict[str, int] = EVENTS) -> Record:
    """The record with every event at its newest schema. An event from a newer kernel raises `Damaged`."""
    if all(newest.get(event.name) == event.schema for event in record.events):
        return record
    return record._replace(events=[_event(event, steps, newest) for event in record.events])


def _event(event: Event, steps: dict[tuple[str, int], Step], newest: dict[str, int]) -> Event:
    target = newest.get(event.name)
    if target is None or event.schema > target:
        raise Damaged(f"event {event.name} schema {event.schema} is from a newer kernel; upgrade before opening this log")
    fields, schema = list(event.fields), event.schema
    while schema < target:
        step = steps.get((event.name, schema))
        if step is None:
            raise Damaged(f"event {event.name} schema {schema} is one that no kernel ever wrote")
        fields = step(fields)
        schema += 1
    return Event(event.name, schema, fields, event.private)
