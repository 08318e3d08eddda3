"""Old events rise one step at a time, and only what `apply` sees does."""

from __future__ import annotations

import pytest

from memos_kernel import upcast
from memos_kernel.events import EVENTS, Damaged, Event, Record

NEWEST = {"a": 4, "b": 1}
STEPS: dict[tuple[str, int], upcast.Step] = {
    ("a", 1): lambda fields: [*fields, "to 2"],
    ("a", 2): lambda fields: ["to 3", *fields],
    ("a", 3): lambda fields: fields[1:],
}


def record(*events: Event) -> Record:
    return Record(1, 0, 1, 1, "uid:1", 0, None, None, list(events))


@pytest.mark.parametrize(("schema", "fields"), [(1, ["x", "to 2"]), (2, ["x"]), (3, []), (4, ["x"])])
def test_each_schema_takes_exactly_the_steps_that_are_left(schema: int, fields: list[str]) -> None:
    old = Event("a", schema, ["x"], (b"id", b"private"))
    (new,) = upcast.current(record(old), STEPS, NEWEST).events
    assert new == Event("a", 4, fields, (b"id", b"private"))
    assert old.fields == ["x"], "the stored event stays as it was read"


def test_a_record_that_is_current_is_not_copied() -> None:
    new = record(Event("a", 4, []), Event("b", 1, []))
    assert upcast.current(new, STEPS, NEWEST) is new


def test_events_of_one_record_rise_each_for_itself() -> None:
    mixed = record(Event("b", 1, ["same"]), Event("a", 2, ["x"]))
    assert list(upcast.current(mixed, STEPS, NEWEST).events) == [Event("b", 1, ["same"]), Event("a", 4, ["x"])]


@pytest.mark.parametrize("event", [Event("a", 5, []), Event("unheard-of", 1, [])])
def test_an_event_of_a_newer_kernel_is_damage_that_says_upgrade(event: Event) -> None:
    with pytest.raises(Damaged, match=r"newer kernel; upgrade"):
        upcast.current(record(event), STEPS, NEWEST)


def test_every_schema_below_the_newest_has_its_step() -> None:
    assert set(upcast.STEPS) == {(name, schema) for name, newest in EVENTS.items() for schema in range(1, newest)}
