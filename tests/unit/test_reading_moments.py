"""Expressions of time become days and intervals of the calendar; what only looks like one does not."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memos_dates import moments
from memos_dates.moments import times, whole_date

MONDAY = dt.date(2023, 5, 8)

RIGHT = [
    ("I went yesterday.", "yesterday", "2023-05-07", ""),
    ("The day before yesterday it rained", "The day before yesterday", "2023-05-06", ""),
    ("See you tomorrow!", "tomorrow", "2023-05-09", ""),
    ("tomorrow's gonna be great", "tomorrow", "2023-05-09", ""),
    ("We ate there last night", "last night", "2023-05-07", ""),
    ("this morning", "this morning", "2023-05-08", ""),
    ("I met her last Tuesday", "last Tuesday", "2023-05-02", ""),
    ("last Fri - it was powerful", "last Fri", "2023-05-05", ""),
    ("last Monday", "last Monday", "2023-05-01", ""),
    ("this past Friday", "this past Friday", "2023-05-05", ""),
    ("next Friday", "next Friday", "2023-05-12", ""),
    ("this coming Monday", "this coming Monday", "2023-05-15", ""),
    ("this Friday", "this Friday", "2023-05-12", ""),
    ("Sunday school was fun last Sunday", "last Sunday", "2023-05-07", ""),
    ("two weeks ago we met", "two weeks ago", "2023-04-21", "2023-04-27"),
    ("about 3 days ago", "3 days ago", "2023-05-05", ""),
    ("a couple of days ago", "a couple of days ago", "2023-05-06", ""),
    ("two weekends ago", "two weekends ago", "2023-04-29", "2023-04-30"),
    ("three months ago", "three months ago", "2023-02-01", "2023-02-28"),
    ("six years ago", "six years ago", "2017-01-01", "2017-12-31"),
    ("a week from now", "a week from now", "2023-05-12", "2023-05-18"),
    ("I'll be back in two weeks", "in two weeks", "2023-05-19", "2023-05-25"),
    ("last week was hard", "last week", "2023-05-01", "2023-05-07"),
    ("this week's been long", "this week", "2023-05-08", "2023-05-14"),
    ("next month I'm leaving", "next month", "2023-06-01", "2023-06-30"),
    ("We moved last year.", "last year", "2022-01-01", "2022-12-31"),
    ("last weekend", "last weekend", "2023-05-06", "2023-05-07"),
    ("this weekend", "this weekend", "2023-05-13", "2023-05-14"),
    ("next weekend", "next weekend", "2023-05-20", "2023-05-21"),
    ("We went in March.", "March", "2023-03-01", "2023-03-31"),
    ("I'll go in March.", "March", "2024-03-01", "2024-03-31"),
    ("It was in November.", "November", "2022-11-01", "2022-11-30"),
    ("in May", "May", "2023-05-01", "2023-05-31"),
    ("last August", "last August", "2022-08-01", "2022-08-31"),
    ("next March", "next March", "2024-03-01", "2024-03-31"),
    ("on May 20 there is a race", "May 20", "2023-05-20", ""),
    ("December 25th was great", "December 25th", "2022-12-25", ""),
    ("the 8th of May 2021", "the 8th of May 2021", "2021-05-08", ""),
    ("on Feb. 3, 2021, at noon", "Feb. 3, 2021", "2021-02-03", ""),
    ("on February 29", "February 29", "2024-02-29", ""),
    ("29 February 2024", "29 February 2024", "2024-02-29", ""),
    ("since June 2019", "June 2019", "2019-06-01", "2019-06-30"),
    ("I was born in 1985.", "1985", "1985-01-01", "1985-12-31"),
    ("due 2023-06-01.", "2023-06-01", "2023-06-01", ""),
    ("2023/04/11 (Tue) 07:47", "2023/04/11", "2023-04-11", ""),
]

WRONG = [
    "you may 8 times out of ten", "May I come in?", "March 5 miles a day", "we march 3 abreast", "the second time",
    "just a second", "Sunday school", "last Sunday school class", "next Sunday Times", "on Tuesday", "the 15th",
    "the last week of school", "the last year of college", "over the last week", "today's youth", "last year's model",
    "I did it in two weeks", "it took 3 days", "in 2000 cases", "2019 people", "one or two weeks ago",
    "a year and a half ago", "a while ago", "long ago", "the other day", "June Carter sang", "in June Carter's house",
    "in April's room", "at last", "next time", "last one", "this one", "once a month", "for two years", "5/8/2023",
    "version 2023.1", "31 June 2023", "on 30 February", "February 30th, 2023", "2023-02-30", "2023-13-01", "29 February 2023",
    "1999 years ago", "room 2023", "a@2023-05-08.example", "http://x.example/2023-05-08/", "tomorrowland", "Marching in",
    "week month year day", "", " ", "🙂 昨日",
]  # fmt: skip


@pytest.mark.parametrize(("text", "expression", "begin", "end"), RIGHT, ids=[row[0] for row in RIGHT])
def test_what_was_said_on_a_monday(text: str, expression: str, begin: str, end: str) -> None:
    assert times(text, MONDAY) == [(expression, begin, end or begin)]


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_time_or_a_day_that_does_not_exist(text: str) -> None:
    assert times(text, MONDAY) == []


def test_without_a_day_only_what_names_its_year_is_resolved() -> None:
    assert times("yesterday, in March, on May 8, two weeks ago, next week", None) == []
    assert times("on May 8, 2023 and in March 2022", None) == [
        ("May 8, 2023", "2023-05-08", "2023-05-08"), ("March 2022", "2022-03-01", "2022-03-31"),
    ]  # fmt: skip


def test_the_ends_of_the_calendar_are_no_answer() -> None:
    assert times("last year, 999 years ago, yesterday", dt.date.min) == []
    assert times("I'll be there in 999 years; next week; tomorrow", dt.date.max) == []


def test_answers_are_bounded_each_once_and_the_same_on_every_day_of_reading() -> None:
    assert len(times(" ".join(f"2023-05-{n:02d}" for n in range(1, 31)), None)) == moments.TIMES_MAX
    assert times("yesterday and yesterday", MONDAY) == [("yesterday", "2023-05-07", "2023-05-07")]


def test_a_whole_date_is_nothing_but_a_date() -> None:
    assert whole_date("Tuesday, May 9, 2023") == whole_date("2023-05-09") == whole_date(" 9 May 2023 ") == dt.date(2023, 5, 9)
    assert [whole_date(text) for text in ("yesterday", "9 May", "On 9 May 2023", "31 June 2023", "", "x" * 500)] == [None] * 6


WORDS = st.sampled_from([
    "last", "next", "this", "past", "coming", "in", "the", "of", "ago", "from now", "May", "March", "Feb", "february", "Sunday",
    "Fri", "weekend", "week", "year", "months", "days", "2023", "1999", "30", "31st", "2", "two", "a couple of", "yesterday",
    "999", "2023-02-29", "8", ",", "-",
    "will", "went", ".", "\n", "’s", "tonight", "the day after", "tomorrow", "١٢", "²",
])  # fmt: skip


@given(st.lists(WORDS, max_size=14).map(" ".join), st.none() | st.dates())
@settings(max_examples=500, deadline=None)
def test_whatever_is_written_answers_are_days_in_order(text: str, said: dt.date | None) -> None:
    for expression, begin, end in times(text, said):
        assert " ".join(expression.split()) == expression and dt.date.fromisoformat(begin) <= dt.date.fromisoformat(end)
