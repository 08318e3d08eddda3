"""What can be seen of a text without understanding it: how long it is, who speaks in it, whether it only asks.

The signs are English ones; text in other languages has none, and is ranked by what else is known of it.
"""

from __future__ import annotations

import datetime as dt
import re
from typing import Final

from .lexical import STOP, WORD

FIRST_PERSON: Final = 1
ASKS: Final = 2
"""Bits of a document's signs."""
WORDS_MAX: Final = 2**16 - 1
_OWN: Final = re.compile(r"\b(?:i|i['’](?:m|ve|ll|d)|my|me|mine|we|we['’](?:re|ve|ll|d)|our|us)\b", re.IGNORECASE)
_SPEAKER: Final = re.compile(r"\A[^\n:]{1,64}: ")
_CAPTION: Final = re.compile(r"\[photo:[^\]]*\]?")
_SENTENCE: Final = re.compile(r"[^.!?]+[.!?]*")
_PRESENT: Final = re.compile(
    r"\b(?:current(?:ly)?|right now|now|nowadays|these days|at the moment|at present|still|latest|newest|so far"
    r"|most recent(?:ly)?|to date|by now|as of (?:now|today)|up to now|any ?more|any longer)\b"
    r"|\bhow (?:many|much|long|often|old|far|frequently)\b.*\b(?:do|does|have|has|am|is|are|can|'ve|'s)\b"
    r"|\bhow (?:many|often|frequently)\b",
    re.IGNORECASE | re.DOTALL,
)
_BYGONE: Final = re.compile(
    r"\b(?:when|first|firstly|initially|originally|at first|used to|before|earlier|previous(?:ly)?|former(?:ly)?|back then|once"
    r"|last (?:year|month|week|summer|winter|spring|autumn|fall|time)|yesterday|ago|in (?:19|20)\d\d|(?:19|20)\d\d"
    r"|(?:on|in|during|since|by|until) (?:january|february|march|april|may|june|july|august|september|october"
    r"|november|december))\b",
    re.IGNORECASE,
)
_SHORT: Final = 3
"""Words of a sentence that says nothing by itself: "Wow, Caroline!"."""
_SIGNS_CHARS_MAX: Final = 4096
"""Of a text that are looked at for signs: a longer one is not a turn."""
_MONTHS: Final = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December",
)  # fmt: skip


def length(text: str) -> int:
    """Words that are not stop words, at least 1."""
    return min(WORDS_MAX, max(1, sum(word not in STOP for word in WORD.findall(text.lower()))))


def signs(text: str) -> int:
    """FIRST_PERSON: somebody speaks of themselves. ASKS: every sentence of more than a few words is a question."""
    said = _CAPTION.sub("", _SPEAKER.sub("", text[:_SIGNS_CHARS_MAX]))
    found = FIRST_PERSON if _OWN.search(said) else 0
    sentences = [sentence.strip() for sentence in _SENTENCE.findall(said) if sentence.strip()]
    if sentences and sentences[-1].endswith("?"):
        telling = [one for one in sentences if not one.endswith("?") and len(WORD.findall(one)) > _SHORT]
        found |= 0 if telling else ASKS
    return found


def dated(text: str, time: int | None) -> str:
    """The text with the day, month and year of its time, so that these words find it. `time` is ns UTC."""
    if time is None:
        return text
    try:
        day = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=time // 1_000_000_000)
    except OverflowError:
        return text
    return f"{text}\n{day.day} {_MONTHS[day.month - 1]} {day.year}"


def asks_for_the_present(query: str) -> bool:
    """Whether a query asks how something stands: for what is so now, or for how much has come together by now.

    "How many bikes do I own?" is answered by who spoke last of bikes; "When did I buy it?" and "What did I own at first?"
    are not.
    """
    return bool(_PRESENT.search(query)) and not _BYGONE.search(query)


def without_names(query: str, names: frozenset[str]) -> str:
    """A query less the names of those who speak: every turn is by one of them, so a name's vector tells turns apart by
    nothing else. The query itself when nothing else is left."""
    if not names:
        return query
    alternatives = "|".join(re.escape(name) for name in sorted(names, key=lambda name: (-len(name), name)))
    left = re.sub(rf"(?<!\w)(?:{alternatives})(?:['’]s)?(?!\w)", "", query, flags=re.IGNORECASE)
    return " ".join(left.split()) if WORD.search(left) else query
