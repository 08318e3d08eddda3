"""Fusion of texts: pure functions from sources to one text. The same sources give the same bytes; no clock is read.

Contents are split into *statements* (lines, and sentences within a line). A statement is dropped only when another that
stays says the same:

- equal after folding: Unicode form KC, case, punctuation, spacing, list marks;
- or equal but for filler words (articles, "really", "just", …), in the same order;
- or, at five words and more, a contiguous part of a statement before it that is at most a quarter longer and adds no
  word that changes what is said ("if", "maybe", "said", …).

Two statements that differ in a number, a negation or a capitalised name are never the same, and neither are two that
differ in one other word: it is better to keep one sentence too many than to lose a fact.

Strategies: `dedupe` (every distinct statement, in order of first sight), `merge` (the same, each with its sources, which
are listed at the end), `timeline` (by event time, else by creation, under dates in UTC).
"""

from __future__ import annotations

import datetime as dt
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple


class Source(NamedTuple):
    """One version that is fused. Times are ns UTC."""

    cube_id: str
    version: int
    text: str
    valid_from: int | None = None
    name: str | None = None
    created_at: int = 0


class Statement(NamedTuple):
    """One statement, as it first stood, and the places in the list of sources that say it."""

    text: str
    sources: tuple[int, ...]


class FusedText(NamedTuple):
    """The result. `dropped` counts statements that another one stands for."""

    text: str
    statements: tuple[Statement, ...]
    dropped: int


PART_WORDS_MIN: Final = 5
PART_SHARE_MIN: Final = 0.8
_ABBREVIATIONS: Final = frozenset(
    "mr mrs ms dr prof st sr jr vs etc e.g i.e a.m p.m u.s u.k no fig vol pp ca cf al inc ltd co dept est approx".split()  # noqa: SIM905
)
_FILLERS: Final = frozenset("a an the really very just also quite so well oh um then actually basically that and".split())  # noqa: SIM905
_CHANGING: Final = frozenset(
    """if unless maybe perhaps might may could would should said says told thinks thought believes hopes wants until before
    except but although though or whether used once almost nearly only""".split()  # noqa: SIM905
)
_NEGATIONS: Final = frozenset(
    "not no never none nobody nothing neither nor cannot without nowhere hardly barely stopped".split()  # noqa: SIM905
)
_OPENERS: Final = frozenset(
    """a an the i he she it we you they this that these those my his her its our your their there here in on at by for to of
    from with and but or so if when while as after before since until because what who where which how why is are was were
    do does did have has had will would can could should may might not no yes oh well then also just""".split()  # noqa: SIM905
)
# The end of a sentence: its mark, closing quotes or brackets, then space; CJK marks need no space.
_END: Final = re.compile(r"[.!?…]+[\"'”’»)\]]*(?=\s)|[。！？]+[」』”）]*")
_QUOTES: Final = "\"'”’»"
_MARK: Final = re.compile(r"^(?:[-*•+]\s+|\d{1,3}[.)]\s+|#+\s+|>\s+)")
# A signed number, a word or number with marks inside it, or one symbol that can matter ($, %, #, <).
_WORD: Final = re.compile(
    r"(?<![^\s(])[-−–+]\d[^\W_]*(?:[.,:/][^\W_]+)*|[^\W_]+(?:['’.,:/@+-][^\W_]+)*"
    r"|[^\w\s.,;:!?…'\"“”’‘«»()\[\]{}\-–—*`。！？、，]"
)
_OPEN_END: Final = re.compile(r"[\w.]+$")


def statements(text: str) -> Iterator[str]:
    """The statements of a text, in order, without surrounding space."""
    for line in text.splitlines():
        yield from _sentences(line.strip())


def _sentences(line: str) -> Iterator[str]:
    # Quotes keep their sentences together, if the line closes what it opens.
    paired = line.count('"') % 2 == 0 and line.count("“") == line.count("”")
    begin = 0
    for end in _END.finditer(line):
        before = line[: end.end()]
        if paired and (before.count('"') % 2 or before.count("“") > before.count("”")):
            continue
        # He said "Stop." and left.
        if end.group()[-1] in _QUOTES and line[end.end() :].lstrip()[:1].islower():
            continue
        if end.group().startswith(".") and _abbreviated(line[begin : end.start()]):
            continue
        if statement := line[begin : end.end()].strip():
            yield statement
            begin = end.end()
    if statement := line[begin:].strip():
        yield statement


def _abbreviated(before: str) -> bool:
    """Whether a full stop after this text belongs to an abbreviation, an initial, or the mark of a list."""
    word = _OPEN_END.search(before)
    if word is None:
        return False
    last = word.group()
    return last.lower() in _ABBREVIATIONS or (len(last) == 1 and last.isupper()) or (word.start() == 0 and last.isdigit())


class _Meaning(NamedTuple):
    """What two statements are compared by."""

    words: tuple[str, ...]
    core: tuple[str, ...]
    guards: frozenset[str]


def _meaning(statement: str) -> _Meaning:
    folded = unicodedata.normalize("NFKC", _MARK.sub("", statement)).replace("’", "'")
    raw = _WORD.findall(folded)
    words = tuple(word.casefold() for word in raw)
    guards = {word for word in words if any(ch.isnumeric() for ch in word) or word in _NEGATIONS or word.endswith("n't")}
    for place, word in enumerate(raw):
        if word[0].isupper() and not (place == 0 and words[0] in _OPENERS) and words[place] != "i":
            guards.add(words[place])
    return _Meaning(words, tuple(word for word in words if word not in _FILLERS), frozenset(guards))


def _is_part(part: _Meaning, whole: _Meaning) -> bool:
    """Whether `whole` says all that `part` says, in one piece, and nothing that changes it."""
    size = len(part.core)
    if size < PART_WORDS_MIN or size < PART_SHARE_MIN * len(whole.core) or part.guards != whole.guards:
        return False
    for at in range(len(whole.core) - size + 1):
        if whole.core[at : at + size] == part.core:
            rest = whole.core[:at] + whole.core[at + size :]
            return not any(word in _CHANGING for word in rest)
    return False


class _Kept:
    """The distinct statements so far, in order, found by their words rather than one by one."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.sources: list[list[int]] = []
        self._meanings: list[_Meaning] = []
        self._same: dict[object, int] = {}
        self._by_run: dict[tuple[str, ...], list[int]] = {}
        self.dropped = 0

    def add(self, text: str, source: int) -> bool:
        """Takes a statement in, or adds the source to the one that stands for it; True when it is new."""
        meaning = _meaning(text)
        # A statement of punctuation or fillers alone is only equal to itself.
        exact: object = meaning.words if meaning.core else text
        close: object = (meaning.core, meaning.guards) if meaning.core else text
        at = self._same.get(exact, self._same.get(close))
        if at is None:
            runs = meaning.core[:PART_WORDS_MIN]
            at = next((k for k in self._by_run.get(runs, ()) if _is_part(meaning, self._meanings[k])), None)
        if at is not None:
            self.dropped += 1
            if source not in self.sources[at]:
                self.sources[at].append(source)
            return False
        place = len(self.texts)
        self._same.setdefault(exact, place)
        self._same.setdefault(close, place)
        core = meaning.core
        for start in range(len(core) - PART_WORDS_MIN + 1):
            found = self._by_run.setdefault(core[start : start + PART_WORDS_MIN], [])
            if not found or found[-1] != place:
                found.append(place)
        self.texts.append(text)
        self.sources.append([source])
        self._meanings.append(meaning)
        return True

    def result(self, text: str) -> FusedText:
        pairs = zip(self.texts, self.sources, strict=True)
        return FusedText(text, tuple(Statement(text, tuple(sources)) for text, sources in pairs), self.dropped)


def _collect(sources: Sequence[Source]) -> _Kept:
    kept = _Kept()
    for place, source in enumerate(sources):
        for statement in statements(source.text):
            kept.add(statement, place)
    return kept


def dedupe(sources: Sequence[Source]) -> FusedText:
    """Every distinct statement once, one a line."""
    kept = _collect(sources)
    return kept.result("\n".join(kept.texts))


def merge(sources: Sequence[Source]) -> FusedText:
    """Every distinct statement once, with the numbers of the sources that say it, and the list of sources."""
    kept = _collect(sources)
    lines = [
        f"{text} {''.join(f'[{place + 1}]' for place in places)}"
        for text, places in zip(kept.texts, kept.sources, strict=True)
    ]
    named = [f"[{place}] {_title(source)}" for place, source in enumerate(sources, 1)]
    return kept.result("\n".join([*lines, "", "Sources:", *named]))


def timeline(sources: Sequence[Source]) -> FusedText:
    """Every distinct statement once, at its earliest time, under dates."""
    order = sorted(range(len(sources)), key=lambda place: (_time(sources[place]), place))
    kept = _Kept()
    lines: list[str] = []
    last = ""
    for place in order:
        date = _date(_time(sources[place]))
        for statement in statements(sources[place].text):
            if kept.add(statement, place):
                if date != last:
                    lines += ["", f"## {date}"] if lines else [f"## {date}"]
                    last = date
                lines.append(statement)
    return kept.result("\n".join(lines))


def _title(source: Source) -> str:
    name = f" ({source.name})" if source.name else ""
    return f"cube {source.cube_id}@{source.version}{name}"


def _time(source: Source) -> int:
    return source.created_at if source.valid_from is None else source.valid_from


def _date(time_ns: int) -> str:
    moment = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=time_ns // 1_000_000_000)
    return moment.date().isoformat()


STRATEGIES: Final[Mapping[str, Callable[[Sequence[Source]], FusedText]]] = MappingProxyType(
    {"dedupe": dedupe, "merge": merge, "timeline": timeline}
)
