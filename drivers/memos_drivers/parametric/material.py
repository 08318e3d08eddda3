"""What a training draws from: rows of forms and of negatives, and which of them each step has."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final, NamedTuple

from memos_drivers.parametric.facts import Fact
from memos_drivers.parametric.forms import Form, Negative
from memos_drivers.parametric.setting import Spec
from memos_drivers.parametric.teacher import Row, Words, form_row, negative_row

OFTEN: Final = {"chat": 5, "statement": 2, "rewrite": 2, "context": 2, "question": 2}
"""Kinds of forms that come more often than others."""


Kinds = dict[str, list[int]]


class Material(NamedTuple):
    """Rows of forms and of negatives, and their numbers: of each fact's forms by kind, raw and chat; of negatives by kind."""

    positives: list[Row]
    by_fact: dict[int, tuple[Kinds, Kinds]]
    negatives: list[Row]
    by_kind: dict[str, tuple[list[int], list[int]]]


def material(words: Words, facts: Sequence[Fact], forms: Sequence[Form], negatives: Sequence[Negative]) -> Material:
    positives: list[Row] = []
    by_fact: dict[int, tuple[Kinds, Kinds]] = {number: ({}, {}) for number in range(len(facts))}
    for form in forms:
        if (row := form_row(words, form, facts[form.fact])) is not None:
            by_fact[form.fact][form.chat].setdefault(form.kind, []).append(len(positives))
            positives.append(row)
    others: list[Row] = []
    by_kind: dict[str, tuple[list[int], list[int]]] = {}
    for negative in negatives:
        if (row := negative_row(words, negative, facts)) is not None:
            kind = "free" if negative.fact < 0 else negative.kind
            by_kind.setdefault(kind, ([], []))[negative.chat].append(len(others))
            others.append(row)
    return Material(positives, by_fact, others, by_kind)


class Deck:
    """Numbers in a shuffled order, again and again."""

    def __init__(self, numbers: Sequence[int], made: random.Random) -> None:
        self._numbers, self._made, self._left = list(numbers), made, list[int]()

    def __bool__(self) -> bool:
        return bool(self._numbers)

    def draw(self) -> int:
        if not self._left:
            self._left = self._numbers.copy()
            self._made.shuffle(self._left)
        return self._left.pop()


class Forms:
    """One fact's forms of one side: kinds in turn, and within a kind one form after another."""

    def __init__(self, kinds: Kinds, made: random.Random) -> None:
        named = sorted(kinds.items())
        self._kinds = Deck([n for n, (kind, _numbers) in enumerate(named) for _ in range(OFTEN.get(kind, 1))], made)
        self._decks = [Deck(numbers, made) for _kind, numbers in named]

    def __bool__(self) -> bool:
        return bool(self._decks)

    def draw(self) -> int:
        return self._decks[self._kinds.draw()].draw()


def planned(stock: Material, spec: Spec) -> list[tuple[list[int], list[int]]]:
    """Which positives and negatives each step has. A step is all raw or all chat, because rows of chat share a prefix."""
    made = random.Random(spec.seed)
    facts = Deck([number for number, pair in sorted(stock.by_fact.items()) if pair[0] or pair[1]], made)
    forms = {n: (Forms(raw, made), Forms(chat, made)) for n, (raw, chat) in sorted(stock.by_fact.items())}
    kinds = {kind: (Deck(raw, made), Deck(chat, made)) for kind, (raw, chat) in sorted(stock.by_kind.items())}
    plan: list[tuple[list[int], list[int]]] = []
    owed = 0.0
    for _ in range(spec.steps_for(len(stock.by_fact))):
        owed += spec.chat
        chat = owed >= 1
        owed -= chat
        mine = [forms[facts.draw()] for _ in range(spec.positives)] if facts else []
        positives = [(pair[chat] or pair[not chat]).draw() for pair in mine]
        drawn = [kinds[kind] for kind, count in spec.negatives if kind in kinds for _ in range(count)]
        negatives = [(pair[chat] or pair[not chat]).draw() for pair in drawn]
        plan.append((positives, negatives))
    return plan
