"""Time expressions against the day on which they were said: days and intervals of the calendar.

An answer is the first and the last day of what is meant, in ISO form, both included; one day is the same twice. How wide it is
follows the words: "yesterday" is a day, "two weeks ago" the seven days around the day two weeks before, "last week" Monday
to Sunday, "in March" and "three months ago" a month, "six years ago" a year. Days that do not exist are no answer.

Nothing here knows a clock, a place or a locale: the same words and the same day of speaking give the same days everywhere.
"""

from __future__ import annotations

import datetime as dt
import functools
import re
from typing import Final

from .expressions import MONTHS, WEEKDAYS, Expression, expressions

TIMES_MAX: Final = 16
"""Of one turn or passage; those after it are left out."""

Time = tuple[str, str, str]
"""The expression, the first day, the last day."""
Days = tuple[dt.date, dt.date]

_NEAR: Final = {
    "the day before yesterday": -2, "yesterday": -1, "last night": -1, "today": 0, "tonight": 0, "this morning": 0,
    "this afternoon": 0, "this evening": 0, "tomorrow": 1, "the day after tomorrow": 2,
}  # fmt: skip
_WHOLE: Final = re.compile(r"(?:[A-Za-z]{3,9}, )?(.{6,32})")
_HAS_YEAR: Final = re.compile(r"\b(?:19|20)\d\d$")


def times(text: str, said: dt.date | None) -> list[Time]:
    """What a text says about time. Without the day on which it was said, only what names its own year."""
    found: list[Time] = []
    for one in expressions(text):
        days = resolve(one, said)
        if days is not None:
            entry = (one.text, days[0].isoformat(), days[1].isoformat())
            if entry not in found:
                found.append(entry)
            if len(found) == TIMES_MAX:
                break
    return found


def whole_date(text: str) -> dt.date | None:
    """The day of a text that is nothing but a date with its year, such as a heading."""
    found = _WHOLE.fullmatch(text.strip())
    if found is None:
        return None
    inside = list(expressions(found[1]))
    if len(inside) != 1 or inside[0].text != " ".join(found[1].split()) or inside[0].sort not in ("iso", "date"):
        return None
    days = resolve(inside[0], None)
    return days[0] if days else None


@functools.lru_cache(maxsize=16_384)
def resolve(one: Expression, said: dt.date | None) -> Days | None:
    """The days that an expression means; None where it means none that exists."""
    try:
        if one.sort in ("iso", "date", "month_year", "year"):
            return _dated(one, said)
        return None if said is None else _relative(one, said)
    except (OverflowError, ValueError):
        return None  # Before the year 1, after 9999, or a day that its month does not have.


def _dated(one: Expression, said: dt.date | None) -> Days | None:
    if one.sort == "year":
        return year_of(dt.date(int(one.text), 1, 1))
    if one.sort == "iso":
        year, month, day = (int(part) for part in re.split("[-/]", one.text))
        return _one(dt.date(year, month, day))
    if one.sort == "month_year":
        return month_of(dt.date(int(one.text[-4:]), _month_of(one.text), 1))
    day = next(int(digits) for digits in re.findall(r"\d+", one.text))
    month = _month_of(one.text)
    if _HAS_YEAR.search(one.text):
        return _one(_real(int(one.text[-4:]), month, day))
    if said is None:
        return None
    return _one(_nearest([_real(year, month, day) for year in (said.year - 1, said.year, said.year + 1)], one, said))


def _month_of(text: str) -> int:
    """The number of the month that a text names, in full or by its first letters."""
    words = (word[:3] for word in re.findall(r"[a-z]{3,}", text.lower()) if word != "the")
    return next(n for word in words for n, name in enumerate(MONTHS, 1) if name.startswith(word))


def _real(year: int, month: int, day: int) -> dt.date | None:
    """A day of the calendar; None for one that its month does not have that year."""
    try:
        return dt.date(year, month, day)
    except ValueError:
        return None


def _nearest(days: list[dt.date | None], one: Expression, said: dt.date) -> dt.date | None:
    """Of a date's places in three years, the one that the sentence means: by its direction, else the nearest."""
    there = [day for day in days if day is not None]
    if one.direction == "past":
        there = [day for day in there if day <= said]
    elif one.direction == "future":
        there = [day for day in there if day >= said]
    return min(there, key=lambda day: abs((day - said).days), default=None)


def _relative(one: Expression, said: dt.date) -> Days | None:
    words = one.text.lower()
    step = 1 if "next" in words or "coming" in words else -1 if "last" in words or "past" in words else 0
    match one.sort:
        case "near":
            return _one(said + dt.timedelta(days=_NEAR[words]))
        case "ago" | "ahead":
            return _counted(one, said)
        case "weekday":
            named = next(n for n, name in enumerate(WEEKDAYS) if name.startswith(words.split()[-1][:3]))
            return _one(_weekday(named, step, said))
        case "weekend":
            return _weekend(step, said)
        case "month":
            number = MONTHS.index(words.split()[-1]) + 1
            years = [said.year - 1, said.year, said.year + 1]
            if step and number == said.month:
                years = [said.year + step]
            elif one.direction == "past" or one.direction == "future":
                ahead = one.direction == "future"
                years = [said.year + ((number < said.month) if ahead else -(number > said.month))]
            return month_of(min((dt.date(year, number, 15) for year in years), key=lambda day: abs((day - said).days)))
        case _:
            return _span(words.split()[-1], step, said)


def _span(unit: str, step: int, said: dt.date) -> Days:
    """The week, month or year that lies so many steps from the day of speaking."""
    if unit == "week":
        monday = said + dt.timedelta(days=7 * step - said.weekday())
        return monday, monday + dt.timedelta(days=6)
    if unit == "month":
        months = said.year * 12 + said.month - 1 + step
        return month_of(dt.date(months // 12, months % 12 + 1, 1))
    return year_of(dt.date(said.year + step, 1, 1))


def _counted(one: Expression, said: dt.date) -> Days:
    step = -one.count if one.sort == "ago" else one.count
    match one.unit:
        case "day":
            day = said + dt.timedelta(days=step)
            return day, day
        case "week":
            day = said + dt.timedelta(days=7 * step)
            return day - dt.timedelta(days=3), day + dt.timedelta(days=3)
        case "weekend":
            return _weekend(step, said)
        case _:
            return _span(one.unit, step, said)


def _weekday(wanted: int, step: int, said: dt.date) -> dt.date:
    """The nearest such day before or after the day of speaking, never that day itself; "this" may be that day."""
    if step < 0:
        return said - dt.timedelta(days=(said.weekday() - wanted - 1) % 7 + 1)
    if step > 0:
        return said + dt.timedelta(days=(wanted - said.weekday() - 1) % 7 + 1)
    return said + dt.timedelta(days=(wanted - said.weekday()) % 7)


def _weekend(step: int, said: dt.date) -> Days:
    """Saturday and Sunday: the last that is over, the one of this week, the one of the next."""
    monday = said - dt.timedelta(days=said.weekday())
    saturday = monday + dt.timedelta(days=5 + 7 * step)
    return saturday, saturday + dt.timedelta(days=1)


def month_of(day: dt.date) -> Days:
    first = day.replace(day=1)
    return first, (first + dt.timedelta(days=31)).replace(day=1) - dt.timedelta(days=1)


def year_of(day: dt.date) -> Days:
    return day.replace(month=1, day=1), day.replace(month=12, day=31)


def _one(day: dt.date | None) -> Days | None:
    return None if day is None else (day, day)
