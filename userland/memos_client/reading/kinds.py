"""Semantic types by rule: what sort of thing a turn says.

| type | rule, in this order |
|---|---|
| `code` | at least half of the text stands in fences |
| `document` | it comes from a document, not from a conversation |
| `question` | every sentence of more than two words asks |
| `preference` | "I like", "I prefer", "my favourite", "I can't stand" with a thing, not "I'd like to" or "I love it" |
| `plan` | first person, a word of intent, and a time that is not over |
| `event` | first person, a verb in the past, and a time that has begun |
| `fact` | what somebody says of themselves that stays: name, work, home, birth, family |
| `message` | everything else |

Rules are conservative: what they are not sure of is a `message`. An assistant's turns are `message`, `question` or `code`:
what a model says of itself is no fact about anybody.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence
from typing import Final, Literal

from memos_dates.moments import Time

Kind = Literal["message", "question", "preference", "plan", "event", "fact", "code", "document"]

ASSISTANTS: Final = frozenset(("assistant", "system", "tool", "model", "bot", "ai", "chatgpt", "claude", "gemini", "copilot"))

_FENCED: Final = re.compile(r"^ {0,3}(```|~~~).*?(?:^ {0,3}\1|\Z)", re.MULTILINE | re.DOTALL)
_SENTENCE: Final = re.compile(r"[^.!?…？。！\n]+[.!?…？。！]*")
_PREFERENCE: Final = re.compile(
    r"\b(?:I|we)\s+(?:really |absolutely |just |always |still |also |do |don['’]t |usually )*"
    r"(?:like|love|prefer|hate|enjoy|adore|dislike|can['’]t stand)\s+"
    r"(?!(?:it|that|this|those|these|you|your|how|what|when|the way|the idea|hearing|him|her|them|seeing you)\b"
    r"|to (?:hear|know|see|think|say)\b)\w"
    r"|\bmy (?:all-time |absolute )?fav(?:ou?rite)?s? \w",
    re.IGNORECASE,
)
_FIRST: Final = re.compile(r"\b(?:I|we)\b|\b(?:my|our)\b", re.IGNORECASE)
_GOING: Final = "starting|leaving|moving|flying|visiting|meeting|having|taking|hosting|getting|heading|going"
_INTENT: Final = re.compile(
    r"\b(?:I|we)(?:['’]ll| will| (?:am|are) (?:going to|planning)|['’](?:m|re) (?:gonna|planning)| (?:plan|hope|intend) to"
    rf"|['’](?:m|re) (?:{_GOING}))\b",
    re.IGNORECASE,
)
_PAST: Final = re.compile(
    r"\b(?:I|we)\s+(?:just |also |finally |recently |even |already |actually )*(?:was|were|had|did|went|got|came|saw|took|made"
    r"|met|gave|found|left|bought|won|lost|began|became|ran|read|wrote|sold|spent|told|drove|flew|ate|heard|felt|[a-z]{2,}ed)\b",
    re.IGNORECASE,
)
_FAMILY: Final = "wife|husband|partner|son|daughter|brother|sister|mother|father|mom|dad|boss|dog|cat"
_FACT: Final = re.compile(
    r"\bmy (?:full |first |last |middle )?name is\b|\b(?:I|we) (?:live|grew up|was born|were born) (?:in|at|on|near)\b"
    r"|\bI work (?:as|at|for)\b|\bI(?:['’]m| am) allergic to\b"
    r"|\bI(?:['’]m| am) (?:a|an) (?:[a-z]+(?:er|or|ist|ian|ant|ent)|nurse)\b"
    rf"|\bmy (?:{_FAMILY}|birthday|phone number|address|email|job)(?:['’]s name)? is\b",
    re.IGNORECASE,
)


def kind(text: str, speaker: str | None, times: Sequence[Time], said: dt.date | None) -> Kind:
    """The type of a turn."""
    if "```" in text or "~~~" in text:
        fenced = sum(found.end() - found.start() for found in _FENCED.finditer(text))
        if fenced * 2 >= len(text):
            return "code"
    if "?" in text or "？" in text:
        sentences = [part for part in _SENTENCE.findall(text) if len(part.split()) > 2 or part.endswith("？")]
        if sentences and all(part.endswith(("?", "？")) for part in sentences):
            return "question"
    if speaker is not None and speaker.lower() in ASSISTANTS:
        return "message"
    if _PREFERENCE.search(text):
        return "preference"
    if times and said is not None and _FIRST.search(text):
        day = said.isoformat()
        if any(end >= day for _text, _begin, end in times) and _INTENT.search(text):
            return "plan"
        if any(begin <= day for _text, begin, _end in times) and _PAST.search(text):
            return "event"
    return "fact" if _FACT.search(text) else "message"
