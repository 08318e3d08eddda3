"""Time expressions of English in a text: where they stand, and of which sort they are.

Precise rather than greedy: what may be something else is not an expression. "may" the verb, "second" the ordinal, "Sunday
school", "the last week of school" and "in two weeks" as a duration are none; a bare weekday or a bare "the 15th" is none
either, since its direction is not known. Numbers like 5/8/2023 are taken only where day and month cannot be confused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

Sort = Literal["day", "near", "ago", "ahead", "weekday", "weekend", "span", "month", "date", "month_year", "year", "iso"]

EXPRESSION_CHARS_MAX: Final = 64

MONTHS: Final = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november", "december",
)  # fmt: skip
WEEKDAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
NUMBERS: Final = {
    "a": 1, "an": 1, "one": 1, "two": 2, "a couple of": 2, "couple of": 2, "a couple": 2, "three": 3, "four": 4, "five": 5,
    "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10, "eleven": 11, "twelve": 12, "fifteen": 15, "twenty": 20,
    "thirty": 30,
}  # fmt: skip

_MONTH: Final = "January|February|March|April|May|June|July|August|September|October|November|December"
_ANY_MONTH: Final = rf"(?:{_MONTH}|(?:Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\b\.?)"
_WEEKDAY: Final = (
    r"(?i:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)(?i:day)|(?:Mon|Tues?|Weds?|Thu(?:rs?)?|Fri|Sat|Sun)\b"
)  # fmt: skip
_COUNT: Final = "|".join(sorted((word.replace(" ", r"\s+") for word in NUMBERS), key=len, reverse=True))
_DAY: Final = r"(?:0?[1-9]|[12]\d|3[01])(?:st|nd|rd|th)?"
_YEAR: Final = r"(?:19|20)\d\d"
_AFTER_YEAR: Final = (
    r"(?=\s*(?:$|[.,;:!?)\n]|(?:and|but|or|when|while|where|which|that|i|we|he|she|they|it|the|my|our|to|at|for|with|after|before"
    r"|because|was|is|by|on|as|so|though|then)\b))"
)
_NOT_A_NAME: Final = r"(?!['’]s\b|\s+(?:[A-Z](?!\b)|school\b|roast\b|league\b|times\b|driver\b))"
_NOT_OWNING: Final = r"(?!['’]s\b(?!\s+(?:gonna|been|going)\b))"
_NOT_COUNTED: Final = r"(?!\s*(?:miles|km|kilomet|people|times|percent|years|hours|minutes|dollars))"
_NOT_A_RANGE: Final = r"(?<!or )(?<!to )(?<!half )(?<![-–.,\d])"
_NEAR: Final = (
    r"the\s+day\s+(?:before\s+yesterday|after\s+tomorrow)|yesterday|tomorrow|today|tonight|last\s+night"
    r"|this\s+(?:morning|afternoon|evening)"
)
_SIDE: Final = r"(?i:(?:this\s+)?(?:last|past|next|coming)|this)"


def _counted(name: str) -> str:
    return rf"(?P<{name}_count>(?i:{_COUNT})|\d{{1,3}})\s+(?P<{name}_unit>(?i:day|weekend|week|month|year))s?"


def _after(*words: str) -> str:
    """Directly after one of these words, which are no part of what is found."""
    return "(?:" + "|".join(rf"(?<=\b[{word[0].upper()}{word[0]}]{word[1:]})" for word in words) + ")"


_FORMS: Final = (
    rf"(?P<iso>(?<![\d./-]){_YEAR}[-/](?:0?[1-9]|1[0-2])[-/](?:0?[1-9]|[12]\d|3[01])(?![\d/-]))",
    rf"(?P<date>(?:[Tt]he\s+)?{_DAY}\s+(?:of\s+)?{_ANY_MONTH}(?![\w'’])(?:,?\s+(?:of\s+)?{_YEAR}(?!\d))?"
    rf"|{_ANY_MONTH}\s+(?:the\s+)?{_DAY}(?![\d\w:%$]|[.,]\d)(?:,?\s+{_YEAR}(?!\d))?{_NOT_COUNTED})",
    rf"(?P<month_year>{_ANY_MONTH},?\s+(?:of\s+)?{_YEAR}(?!\d))",
    rf"{_after('in ', 'during ', 'until ', 'early ', 'late ', 'mid-')}(?P<month>{_MONTH}){_NOT_A_NAME}(?!\w|\s+\d)",
    rf"(?P<dated_month>(?i:last|next|this|this past)\s+(?:{_MONTH})){_NOT_A_NAME}(?!\w|\s+\d)",
    rf"{_after('in ', 'since ', 'during ')}(?P<year>{_YEAR})(?![\d'’,]\d|['’]?s\b|\d){_AFTER_YEAR}",
    rf"(?P<near>(?i:{_NEAR})){_NOT_OWNING}",
    rf"{_NOT_A_RANGE}(?P<ago>{_counted('ago')}\s+(?i:ago))",
    rf"{_NOT_A_RANGE}(?P<ahead>(?i:in\s+)?{_counted('ahead')}(?:\s+(?i:from\s+(?:now|today)))?)(?!['’])",
    rf"(?P<weekday>{_SIDE}\s+(?:{_WEEKDAY}))(?!\w|\s+of\b){_NOT_A_NAME}",
    rf"(?P<weekend>{_SIDE}\s+(?i:weekend))(?!\w|\s+of\b)",
    rf"(?<!\bthe )(?<!\bThe )(?P<span>(?i:last|next|this)\s+(?i:week|month|year))(?!\w|\s+of\b|-){_NOT_OWNING}",
)
_BEGIN: Final = (
    rf"(?=\d|[JFMASOND][a-z]{{2}}|(?i:yesterday|to(?:day|morrow|night)\b|(?:the|last|past|next|coming|this|in|{_COUNT})\s))"
)
"""What every expression begins with: it spares the other patterns most words."""
_ANY: Final = re.compile(rf"(?<![\w@/]){_BEGIN}(?:" + "|".join(_FORMS) + r")(?!\w)")
_MAYBE: Final = re.compile(
    r"(?:day|night|row|ago|ning|oon|end|eek|onth|ear|now|last|next|this)s?\b|\b(?:19|20)\d\d"
    r"|\b(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)",
    re.IGNORECASE,
)
"""What every expression holds: most turns have none of it, and are not looked at further."""

_FUTURE: Final = re.compile(
    r"\b(?:will|won['’]t|shall|going to|gonna|plan(?:s|ning)?|upcoming|hope|hoping|soon|can['’]t wait|looking forward|scheduled"
    r"|starts?|due)\b|['’]ll\b",
    re.IGNORECASE,
)
_PAST: Final = re.compile(
    r"\b(?:was|were|had|did|went|got|came|saw|took|made|met|gave|found|left|bought|won|lost|began|became|started|[a-z]{3,}ed"
    r"|ago|last|since|been)\b",
    re.IGNORECASE,
)
_SENTENCE_END: Final = re.compile(r"[.!?\n]")


@dataclass(frozen=True, slots=True)
class Expression:
    """What stands in the text, with its number and unit where it has them; `direction` is that of its sentence."""

    text: str
    sort: Sort
    count: int = 0
    unit: str = ""
    direction: Literal["past", "future", ""] = ""


def expressions(text: str) -> Iterator[Expression]:
    """Those of a text, in order, none inside another."""
    if not _MAYBE.search(text):
        return
    for found in _ANY.finditer(text):
        sort = found.lastgroup or ""
        if one := _expression(text, found, sort):
            yield one


def _expression(text: str, found: re.Match[str], group: str) -> Expression | None:
    words = " ".join(found[0].split())
    if len(words) > EXPRESSION_CHARS_MAX:
        return None
    if group in ("ago", "ago_unit", "ago_count"):
        return Expression(words, "ago", _number(found["ago_count"]), found["ago_unit"].lower())
    if group in ("ahead", "ahead_unit", "ahead_count"):
        return _ahead(text, found, words)
    match group:
        case "iso" | "near" | "weekday" | "weekend" | "span" | "year" | "month_year":
            return Expression(words, group)
        case "dated_month":
            return Expression(words, "month", direction="future" if words.lower().startswith("next") else "past")
        case "month":
            return Expression(words, "month", direction=_direction(text, found))
        case _:
            return Expression(words, "date", direction=_direction(text, found))


def _ahead(text: str, found: re.Match[str], words: str) -> Expression | None:
    """ "in two weeks" is a date where its sentence looks ahead, and a duration else."""
    lower = words.lower()
    looks_ahead = lower.startswith("in ") and _direction(text, found) == "future"
    if not looks_ahead and not lower.endswith(("from now", "from today")):
        return None
    return Expression(words, "ahead", _number(found["ahead_count"]), found["ahead_unit"].lower())


def _direction(text: str, found: re.Match[str]) -> Literal["past", "future", ""]:
    begin = max((end.end() for end in _SENTENCE_END.finditer(text, max(0, found.start() - 120), found.start())), default=None)
    begin = max(0, found.start() - 120) if begin is None else begin
    end = _SENTENCE_END.search(text, found.end(), found.end() + 80)
    sentence = text[begin : end.start() if end else found.end() + 80]
    future, past = _FUTURE.search(sentence) is not None, _PAST.search(sentence) is not None
    return "" if future == past else "future" if future else "past"


def _number(text: str) -> int:
    words = " ".join(text.lower().split())
    return int(words) if words.isdigit() else NUMBERS[words]
