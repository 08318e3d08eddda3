"""Fusion of texts that leaves something out: the statements that say most, whole, within a budget of tokens.

    plan       distinct statements, in the order in which they should be taken, whatever the budget is
    chosen     those of them that fit a budget
    completed  the same, with what no question may be without
    composed   the text, in order of first sight; some perhaps in a shorter form
    accepts    whether a shorter form of a statement, by a model say, may stand for it

- Nothing is written that no source says: a statement is there as it stood, or as words of its own in their order, with
  every number, name and negation, no verb missing (but of relative clauses), and every fact that facts.py finds.
- What comes first adds most that is new for its length. Names, numbers and negations weigh more than other words, words that
  many statements share more than those of one, and the beginning of a source a little more than the rest.
- A statement that leans on another (fuse_text.py) is taken together with it, or not at all.
- A budget that was asked for holds, but for a single statement: a summary of something is not empty. Without one, the aim is
  half of what the sources have, and more where a question that they answer (fuse_probe.py) would be lost otherwise.
- The same sources and settings give the same bytes. Nothing here runs a model or reads a clock.
"""

from __future__ import annotations

import heapq
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple

from memos_drivers.parametric.words import ARTICLES, AUXILIARIES, COPULAS, GREETINGS, PREPOSITIONS, bag, is_verb

from .fuse_probe import Question, answering, kept_share, questions
from .fuse_text import CHANGING, FusedText, Meaning, Source, Statement, collect, meaning, statements

RATIO_DEFAULT: Final = 0.5
GUARD_WEIGHT: Final = 3.0
UNIT: Final = 1000
"""Of a weight."""
FIRST_BONUS: Final = 1.1
LENGTH_POWER: Final = 0.5
"""How much length counts against a statement: 0 not at all, 1 what it adds for each token."""
_EMPTY: Final = (
    ARTICLES
    | PREPOSITIONS
    | COPULAS
    | AUXILIARIES
    | GREETINGS
    | bag("and or but i you he she it we they my your his her its our their")
)
_TURNING: Final = CHANGING | bag(
    "refuse refused refuses deny denied denies fail failed fails avoid avoided doubt doubts instead former formerly fake"
)
_RELATIVE: Final = bag("who whose which where")
_PIECE: Final = re.compile(r"\w+|[^\w\s]")


def tokens(text: str) -> int:
    """About how many tokens a model reads, by rule: no model's own count, and the same everywhere."""
    return sum(
        1 + (len(piece) - 1) // 8 if piece.isascii() else 1 + (len(piece.encode()) - 1) // 4 for piece in _PIECE.findall(text)
    )


class Plan(NamedTuple):
    """The distinct statements of some sources, and which matter most."""

    statements: tuple[Statement, ...]
    """In order of first sight."""
    dropped: int
    order: tuple[int, ...]
    """Places of the statements that say something, the one to be taken first at the beginning."""
    anchors: Mapping[int, int]
    """Place of a statement → place of the one that it leans on, which stands before it."""
    tokens: int
    """Of the sources."""


def plan(sources: Sequence[Source]) -> Plan:
    """What to take first. Each statement is weighed by what it adds to those before it."""
    kept = collect(sources)
    places = kept.order()
    now_at = {place: number for number, place in enumerate(places)}
    said = tuple(kept.statement(place) for place in places)
    items = [_items(kept.meanings[place]) for place in places]
    shared = Counter(
        item for some, place in zip(items, places, strict=True) for item in some for _said in range(kept.counts[place])
    )
    # Whole numbers: their sums do not depend on the order of a set.
    weights = {item: round(UNIT * (GUARD_WEIGHT if item[0] else 1.0) * (1 + math.log(count))) for item, count in shared.items()}
    first = {one.sources[0]: place for place, one in reversed(list(enumerate(said)))}
    factor = [
        (FIRST_BONUS if first[one.sources[0]] == place else 1.0) / math.pow(max(1, tokens(one.text)), LENGTH_POWER)
        for place, one in enumerate(said)
    ]
    added = [sum(weights[item] for item in some) for some in items]
    holders: dict[tuple[bool, str], list[int]] = {}
    for place, some in enumerate(items):
        for item in some:
            holders.setdefault(item, []).append(place)
    # What a statement adds only falls as others are taken, so its last known worth is a bound.
    queue = [(-factor[place] * added[place], place) for place in range(len(items))]
    heapq.heapify(queue)
    order: list[int] = []
    while queue:
        _bound, place = heapq.heappop(queue)
        now = (-factor[place] * added[place], place)
        if queue and now > queue[0]:
            heapq.heappush(queue, now)
            continue
        if added[place]:
            order.append(place)
        for item in items[place]:
            for other in holders.pop(item, ()):
                added[other] -= weights[item]
    anchors = {now_at[place]: now_at[anchor] for place, anchor in enumerate(kept.anchors) if anchor is not None}
    return Plan(said, kept.dropped, tuple(order), anchors, sum(tokens(source.text) for source in sources))


def _items(said: Meaning) -> frozenset[tuple[bool, str]]:
    """What a statement tells: words that mean something by themselves, and which of them are guards. What opens a statement
    is capitalised anyway, so it counts as a word only."""
    opening = said.words[0] if said.words and said.words[0].isalpha() and said.words.count(said.words[0]) == 1 else ""
    guards = said.guards - {opening}
    return frozenset((word in guards, word) for word in said.core if word in guards or word not in _EMPTY)


def budget(made: Plan, budget_tokens: int | None, ratio: float | None) -> int:
    """Tokens that a summary may have."""
    return budget_tokens or math.floor(made.tokens * (RATIO_DEFAULT if ratio is None else ratio))


def chosen(made: Plan, most: int, shorter: Mapping[int, str]) -> tuple[int, ...]:
    """Places of the statements that fit, taken by worth; in the order of the sources."""
    taken: set[int] = set()
    left = most

    def size(place: int) -> int:
        return tokens(shorter.get(place, made.statements[place].text))

    for place in made.order:
        wanted = {place, made.anchors.get(place, place)} - taken
        if wanted and (needed := sum(map(size, wanted))) <= left:
            taken |= wanted
            left -= needed
    if not taken and made.statements:
        alone = [place for place in made.order or range(len(made.statements)) if place not in made.anchors]
        taken.add(min(alone or range(len(made.statements)), key=lambda place: (size(place), place)))
    return tuple(sorted(taken))


def completed(made: Plan, places: Collection[int], asked: Sequence[Question]) -> tuple[int, ...]:
    """These places, and those of the statements without which a question would be lost."""
    taken = set(places)
    lost = kept_share(asked, [made.statements[place].text for place in sorted(taken)]).lost
    texts = [one.text for one in made.statements]
    about = [f"{texts[made.anchors[place]]} {text}" if place in made.anchors else text for place, text in enumerate(texts)]
    for place in answering(lost, texts, about):
        taken |= {place, made.anchors.get(place, place)}
    return tuple(sorted(taken))


def composed(made: Plan, places: Sequence[int], shorter: Mapping[int, str]) -> FusedText:
    """The summary; `shorter` has accepted forms of statements by their places. The recipe tells which of its lines they are."""
    said = tuple(Statement(shorter.get(place, made.statements[place].text), made.statements[place].sources) for place in places)
    text = "\n".join(one.text for one in said)
    recipe = {
        "statements": len(made.statements), "taken": len(said), "tokens": [made.tokens, tokens(text)],
        "shortened": [line for line, place in enumerate(places) if place in shorter],
    }  # fmt: skip
    return FusedText(text, said, made.dropped, recipe)


def summarise(sources: Sequence[Source], budget_tokens: int | None = None, ratio: float | None = None) -> FusedText:
    """The statements that say most. By rule alone."""
    made = plan(sources)
    places = chosen(made, budget(made, budget_tokens, ratio), {})
    if budget_tokens is None and ratio is None:
        places = completed(made, places, questions(sources))
    return composed(made, places, {})


def accepts(statement: str, shorter: str) -> bool:
    """Whether a shorter form says what the statement says, with some of its words left out: see the first lines."""
    whole, part = meaning(statement), meaning(shorter)
    if (
        not part.core
        or tokens(shorter) >= tokens(statement)
        or part.guards != whole.guards
        or len(list(statements(shorter))) != 1
    ):
        return False
    runs = _left_out(whole.words, part.words)
    return runs is not None and not any(map(_matters, runs)) and _keeps_facts(statement, shorter)


def form_of(said: str) -> str:
    """What a model offers as a shorter form: its first line, without quotes around it."""
    line = next((line.strip() for line in said.splitlines() if line.strip()), "")
    return line.strip('"“”*_ ') if line[:1] in '"“*_' else line


def _left_out(whole: Sequence[str], part: Sequence[str]) -> list[list[str]] | None:
    """The words that are missing, those that stood side by side together; None when the part is not made of the whole's words
    in their order."""
    runs: list[list[str]] = [[]]
    at = 0
    for word in whole:
        if at < len(part) and part[at] == word:
            at += 1
            runs.append([])
        else:
            runs[-1].append(word)
    return [run for run in runs if run] if at == len(part) else None


def _matters(run: Sequence[str]) -> bool:
    """Whether words may not be left out: those that turn what is said, and verbs, but for those of a relative clause."""
    if any(word in _TURNING or word.endswith("n't") for word in run):
        return True
    return run[0] not in _RELATIVE and any(word in COPULAS or word in AUXILIARIES or is_verb(word) for word in run)


def _keeps_facts(statement: str, shorter: str) -> bool:
    asked = questions([Source("", 1, statement)])
    return kept_share(asked, [shorter]).kept == len(asked)
