"""Fusion of texts: pure functions from sources to one text. The same sources give the same bytes; no clock is read.

Contents are split into *statements* (lines, and sentences within a line). A statement is dropped only when another that
stays says the same:

- equal after folding: Unicode form KC, case, punctuation, spacing, list marks;
- or equal but for filler words (articles, "really", "just", …), in the same order;
- or, at five words and more, a contiguous part of a statement before it that is at most a quarter longer and adds no
  word that changes what is said ("if", "maybe", "said", …).

A statement that opens with a pronoun ("It is red.") leans on the last one before it in its source that does not. It is dropped
only for one that leans on the same (of "he" and "she": on a statement that begins with the same name), and where statements
are put in order it follows what it leans on.

Two statements that differ in a number, a negation or a capitalised name are never the same, and neither are two that
differ in one other word: it is better to keep one sentence too many than to lose a fact.

Strategies: `dedupe` (every distinct statement, in order of first sight), `merge` (the same, each with its sources, which
are listed at the end), `timeline` (by event time, else by creation, under dates in UTC), and `auto`, which is one of these:
`choice` says which, and why. `summary.py` has the one that leaves something out.
"""

from __future__ import annotations

import datetime as dt
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple


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
    """The result. `dropped` counts statements that another one stands for; `recipe` is what else there is to say of it,
    without a word of the sources."""

    text: str
    statements: tuple[Statement, ...]
    dropped: int
    recipe: Mapping[str, Any] = MappingProxyType({})


PART_WORDS_MIN: Final = 5
PART_SHARE_MIN: Final = 0.8
REPEATED_SHARE_MIN: Final = 0.5
"""Of all statements: those that are said again or were said before, when `auto` takes sources for duplicates."""
WORD_CHARS_MAX: Final = 64
"""How far back an abbreviation is looked for."""
DAY_NS: Final = 86_400 * 1_000_000_000
_ABBREVIATIONS: Final = frozenset(
    "mr mrs ms dr prof st sr jr vs etc e.g i.e a.m p.m u.s u.k no fig vol pp ca cf al inc ltd co dept est approx".split()  # noqa: SIM905
)
_FILLERS: Final = frozenset("a an the really very just also quite so well oh um then actually basically that and".split())  # noqa: SIM905
CHANGING: Final = frozenset(
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
_PRONOUNS: Final = frozenset("he she it they him them his her hers its their theirs this that these those".split())  # noqa: SIM905
_PERSONS: Final = frozenset("he she him his her hers".split())  # noqa: SIM905
_BEFORE_PRONOUNS: Final = frozenset("and but so then also later now because".split())  # noqa: SIM905
# The end of a sentence: its mark, closing quotes or brackets, then space; CJK marks need no space.
_END: Final = re.compile(r"(?<![.!?…])[.!?…]++[\"'”’»)\]]*+(?=\s)|[。！？]+[」』”）]*")
_QUOTES: Final = "\"'”’»"
_MARK: Final = re.compile(r"^(?:[-*•+]\s+|\d{1,3}[.)]\s+|#+\s+|>\s+)")
# A signed number, a word or number with marks inside it, or one symbol that can matter ($, %, #, <).
_WORD: Final = re.compile(
    r"(?<![^\s(])[-−–+]\d[^\W_]*(?:[.,:/][^\W_]+)*|[^\W_]+(?:['’.,:/@+-][^\W_]+)*"
    r"|[^\w\s.,;:!?…'\"“”’‘«»()\[\]{}\-–—*`。！？、，]"
)
_SOLID: Final = re.compile(r"\S")
_OPEN_END: Final = re.compile(r"[\w.]+$")


def statements(text: str) -> Iterator[str]:
    """The statements of a text, in order, without surrounding space."""
    for line in text.splitlines():
        yield from _sentences(line.strip())


def _sentences(line: str) -> Iterator[str]:
    # Quotes keep their sentences together, if the line closes what it opens.
    paired = line.count('"') % 2 == 0 and line.count("“") == line.count("”")
    begin = counted = straight = opened = 0
    for end in _END.finditer(line):
        straight += line.count('"', counted, end.end())
        opened += line.count("“", counted, end.end()) - line.count("”", counted, end.end())
        counted = end.end()
        if paired and (straight % 2 or opened > 0):
            continue
        # He said "Stop." and left.
        if end.group()[-1] in _QUOTES and (after := _SOLID.search(line, end.end())) and after.group().islower():
            continue
        if end.group().startswith(".") and _abbreviated(line[max(begin, end.start() - WORD_CHARS_MAX) : end.start()]):
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


class Meaning(NamedTuple):
    """What two statements are compared by. They say the same when `core` and `guards` are equal."""

    words: tuple[str, ...]
    """Folded, in order."""
    core: tuple[str, ...]
    """The same without fillers."""
    guards: frozenset[str]
    """Numbers, negations and capitalised names, folded: no statement stands for one that differs in any."""


def meaning(statement: str) -> Meaning:
    """The folding: pure, and the same for the same text in other Unicode forms, case, spacing or list marks."""
    folded = unicodedata.normalize("NFKC", _MARK.sub("", statement)).replace("’", "'")
    raw = _WORD.findall(folded)
    words = tuple(word.casefold() for word in raw)
    guards = {word for word in words if any(ch.isnumeric() for ch in word) or word in _NEGATIONS or word.endswith("n't")}
    for place, word in enumerate(raw):
        if word[0].isupper() and not (place == 0 and words[0] in _OPENERS) and words[place] != "i":
            guards.add(words[place])
    return Meaning(words, tuple(word for word in words if word not in _FILLERS), frozenset(guards))


def _pronoun(said: Meaning) -> str | None:
    """What a statement opens with, if that is a pronoun: what it is about, another one says."""
    first = next((word for word in said.words if word not in _BEFORE_PRONOUNS), "").partition("'")[0]
    return first if first in _PRONOUNS else None


def _name(said: Meaning) -> str | None:
    """The first name in a statement."""
    names = (word for word in said.words if word in said.guards and word[0].isalpha() and word not in _NEGATIONS)
    first = next(names, None)
    return None if first is None else first.removesuffix("'s")


def _is_part(part: Meaning, whole: Meaning) -> bool:
    """Whether `whole` says all that `part` says, in one piece, and nothing that changes it."""
    size = len(part.core)
    if size < PART_WORDS_MIN or size < PART_SHARE_MIN * len(whole.core) or part.guards != whole.guards:
        return False
    for at in range(len(whole.core) - size + 1):
        if whole.core[at : at + size] == part.core:
            rest = whole.core[:at] + whole.core[at + size :]
            return not any(word in CHANGING for word in rest)
    return False


class Kept:
    """The distinct statements so far, in order of first sight, found by their words rather than one by one."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.sources: list[list[int]] = []
        self.counts: list[int] = []
        """How often each is said."""
        self.anchors: list[int | None] = []
        """Places of the statements that they lean on; None for one that stands by itself, or begins its source."""
        self.meanings: list[Meaning] = []
        self.dropped = 0
        self._leans: list[int | str | None] = []
        self._same: dict[object, int] = {}
        self._by_run: dict[tuple[str, ...], list[int]] = {}

    def read(self, text: str, source: int) -> Iterator[int]:
        """Takes in the statements of a source; the places of those that are new."""
        anchor: int | None = None
        person: str | None = None
        for statement in statements(text):
            said = meaning(statement)
            pronoun = _pronoun(said)
            if pronoun is None:
                place, new = self._add(statement, said, None, None, source)
                anchor, person = place, _name(said) or person
            else:
                on = person if person is not None and pronoun in _PERSONS else anchor
                place, new = self._add(statement, said, anchor, on, source)
            if new:
                yield place

    def _add(self, text: str, said: Meaning, anchor: int | None, on: int | str | None, source: int) -> tuple[int, bool]:
        # A statement of punctuation or fillers alone is only equal to itself.
        exact: object = (said.words if said.core else text, on)
        close: object = ((said.core, said.guards) if said.core else text, on)
        at = self._same.get(exact, self._same.get(close))
        if at is None:
            runs = said.core[:PART_WORDS_MIN]
            near = self._by_run.get(runs, ())
            at = next((k for k in near if self._leans[k] == on and _is_part(said, self.meanings[k])), None)
        if at is not None:
            self.dropped += 1
            self.counts[at] += 1
            if source not in self.sources[at]:
                self.sources[at].append(source)
            return at, False
        place = len(self.texts)
        self._same.setdefault(exact, place)
        self._same.setdefault(close, place)
        core = said.core
        for start in range(len(core) - PART_WORDS_MIN + 1):
            found = self._by_run.setdefault(core[start : start + PART_WORDS_MIN], [])
            if not found or found[-1] != place:
                found.append(place)
        self.texts.append(text)
        self.sources.append([source])
        self.counts.append(1)
        self.anchors.append(anchor)
        self._leans.append(on)
        self.meanings.append(said)
        return place, True

    def order(self) -> list[int]:
        """Places in order of first sight, but for those that lean: they follow what they lean on."""
        heads = [place if anchor is None else anchor for place, anchor in enumerate(self.anchors)]
        return sorted(range(len(heads)), key=lambda place: (heads[place], place))

    def statement(self, place: int) -> Statement:
        return Statement(self.texts[place], tuple(self.sources[place]))

    def result(self, text: str, order: Sequence[int]) -> FusedText:
        return FusedText(text, tuple(self.statement(place) for place in order), self.dropped)


def collect(sources: Sequence[Source]) -> Kept:
    """Every distinct statement of the sources."""
    kept = Kept()
    for place, source in enumerate(sources):
        for _new in kept.read(source.text, place):
            continue
    return kept


def dedupe(sources: Sequence[Source]) -> FusedText:
    """Every distinct statement once, one a line."""
    kept = collect(sources)
    order = kept.order()
    return kept.result("\n".join(kept.texts[place] for place in order), order)


def merge(sources: Sequence[Source]) -> FusedText:
    """Every distinct statement once, with the numbers of the sources that say it, and the list of sources."""
    kept = collect(sources)
    order = kept.order()
    lines = [f"{kept.texts[at]} {''.join(f'[{place + 1}]' for place in kept.sources[at])}" for at in order]
    named = [f"[{place}] {_title(source)}" for place, source in enumerate(sources, 1)]
    return kept.result("\n".join([*lines, "", "Sources:", *named]), order)


def timeline(sources: Sequence[Source]) -> FusedText:
    """Every distinct statement once, at its earliest time, under dates."""
    order = sorted(range(len(sources)), key=lambda place: (_time(sources[place]), place))
    kept = Kept()
    lines: list[str] = []
    last = ""
    for place in order:
        date = _date(_time(sources[place]))
        for new in kept.read(sources[place].text, place):
            if date != last:
                lines += ["", f"## {date}"] if lines else [f"## {date}"]
                last = date
            lines.append(kept.texts[new])
    return kept.result("\n".join(lines), range(len(kept.texts)))


def choice(sources: Sequence[Source]) -> str:
    """What `auto` does: `dedupe` when most statements are said more than once; else `timeline` when every source has an
    event time, and these lie more than a day apart; else `merge`, unless naming the sources takes more than it saves."""
    kept = collect(sources)
    said = len(kept.texts) + kept.dropped
    repeated = kept.dropped + sum(count > 1 for count in kept.counts)
    if repeated > REPEATED_SHARE_MIN * said:
        return "dedupe"
    times = [source.valid_from for source in sources if source.valid_from is not None]
    if times and len(times) == len(sources) and max(times) - min(times) > DAY_NS:
        return "timeline"
    return "merge" if len(merge(sources).text) <= sum(len(source.text) for source in sources) else "dedupe"


def auto(sources: Sequence[Source]) -> FusedText:
    """By the strategy that fits; the recipe names it."""
    chosen = choice(sources)
    return _PLAIN[chosen](sources)._replace(recipe={"chosen": chosen})


def _title(source: Source) -> str:
    name = f" ({source.name})" if source.name else ""
    return f"cube {source.cube_id}@{source.version}{name}"


def _time(source: Source) -> int:
    return source.created_at if source.valid_from is None else source.valid_from


def _date(time_ns: int) -> str:
    moment = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=time_ns // 1_000_000_000)
    return moment.date().isoformat()


_PLAIN: Final[Mapping[str, Callable[[Sequence[Source]], FusedText]]] = MappingProxyType(
    {"dedupe": dedupe, "merge": merge, "timeline": timeline}
)
STRATEGIES: Final[Mapping[str, Callable[[Sequence[Source]], FusedText]]] = MappingProxyType({**_PLAIN, "auto": auto})
