"""What a fused text still answers of what its sources answered: questions made by rule, answers looked up by rule.

Facts of the sources (parametric/facts.py; also those that contradict a newer one) become questions. One is answered
when a single statement holds the fact's object and names its subject, word for word but for case and punctuation; "She works
there" names whom the same rules take "she" for, where it stands. Only questions that the sources answer in this sense count,
so that a fused text can answer all of them.

No model is asked: that the words are there is necessary for an answer, not sufficient.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from memos_drivers.parametric.facts import Fact, Text, facts_of
from memos_drivers.parametric.wordings import asked

from .fuse_text import Source, statements

CHARS_MAX: Final = 200_000
"""What is probed of all sources together, from their beginnings: the rest is not asked about."""
STATEMENT_CHARS_MAX: Final = 400
"""A longer one is not asked about: the rules for facts take more than linear time, and are for sentences."""
LINE_CHARS_MAX: Final = 4_000
_WORD: Final = re.compile(r"\w+(?:['’]\w+)?")


class Question(NamedTuple):
    question: str
    answer: str
    """What a statement must hold."""
    subject: str
    """What the same statement must name."""


class Share(NamedTuple):
    kept: int
    lost: list[Question]


def questions(sources: Sequence[Source]) -> list[Question]:
    """What the sources answer, in the order in which they do."""
    left = CHARS_MAX
    read: list[Text] = []
    for source in sources:
        text = source.text[:left]
        left -= len(text)
        read.append(Text(_readable(text), source.created_at if source.valid_from is None else source.valid_from))
    found: list[Question] = []
    for fact in _facts(read):
        direct = asked(fact.prompt, fact.object, fact.subject).direct
        found.append(Question(direct[0], fact.object, fact.subject))
    return list(dict.fromkeys(_answered(found, [one for text in read for one in _said(list(statements(text.content)))])))


def kept_share(those: Sequence[Question], said: Sequence[str]) -> Share:
    """How many of the questions these statements answer, and which they do not."""
    answered = set(_answered(those, _said(said)))
    return Share(len(answered & set(those)), [one for one in those if one not in answered])


def answering(those: Sequence[Question], said: Sequence[str], about: Sequence[str]) -> list[int]:
    """For each question the statement that would answer it: one that holds the answer, and names the subject if there is such a
    one, itself or in what it is `about`. The rules may put an answer in other words ("my" becomes "Mia's"): then the one that
    holds most of them."""
    lines, contexts = _Lines(said), _Lines(about)
    found: list[int] = []
    for one in those:
        where = lines.holding(one.answer) or lines.nearest(one.answer)
        found += [next((line for line in where if contexts.names(line, one.subject)), where[0])] if where else []
    return found


def _readable(text: str) -> str:
    """A text without statements that are too long; long lines end where their statements end."""
    lines: list[str] = []
    for line in text.splitlines():
        short = [one for one in statements(line) if len(one) <= STATEMENT_CHARS_MAX]
        lines.append((" " if len(line) <= LINE_CHARS_MAX else "\n").join(short))
    return "\n".join(lines)


def _facts(read: Sequence[Text]) -> list[Fact]:
    found = facts_of(read)
    return list(dict.fromkeys([*found.facts, *(fact for pair in found.conflicts for fact in pair)]))


def _said(those: Sequence[str]) -> list[str]:
    """Statements, and what the rules understand by them where they stand."""
    return [*those, *(fact.statement for fact in _facts([Text(_readable("\n".join(those)[:CHARS_MAX]))]))]


def _answered(those: Iterable[Question], said: Sequence[str]) -> list[Question]:
    lines = _Lines(said)
    return [one for one in those if any(lines.names(line, one.subject) for line in lines.holding(one.answer))]


class _Lines:
    """Statements, found by what they hold."""

    def __init__(self, said: Sequence[str]) -> None:
        self._words = [_words(statement) for statement in said]
        self._by_word: dict[str, list[int]] = {}
        for line, some in enumerate(self._words):
            for word in dict.fromkeys(some):
                self._by_word.setdefault(word, []).append(line)

    def holding(self, answer: str) -> list[int]:
        words = _words(answer)
        rarest = min((self._by_word.get(word, []) for word in words), key=len, default=[])
        return [line for line in rarest if _holds(self._words[line], words)]

    def nearest(self, answer: str) -> list[int]:
        counts = Counter(line for word in set(_words(answer)) for line in self._by_word.get(word, []))
        most = max(counts.values(), default=0)
        return sorted(line for line, count in counts.items() if count == most)

    def names(self, line: int, subject: str) -> bool:
        return _holds(self._words[line], _words(subject))


def _words(text: str) -> tuple[str, ...]:
    """Folded; a name stands for its possessive, and "I'm" for "I"."""
    return tuple(re.sub(r"['’](?:s|m|ve|d|ll|re)$", "", found[0].casefold()) for found in _WORD.finditer(text))


def _holds(words: Sequence[str], part: Sequence[str]) -> bool:
    size = len(part)
    return any(tuple(words[at : at + size]) == tuple(part) for at in range(len(words) - size + 1))
