"""Fusion of texts keeps every fact, drops only repetition, and gives the same bytes again."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memos_drivers.plaintext import fuse_text
from memos_drivers.plaintext.fuse_text import STRATEGIES, Source, auto, choice, dedupe, merge, statements, timeline
from memos_drivers.table import TABLE

DAY = 86_400 * 10**9


def sources(*texts: str) -> list[Source]:
    return [Source(f"cube-{place}", 1, text, place * DAY, None, 0) for place, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dr. Smith paid 3.50 at 9.30 a.m. sharp. He left.", ["Dr. Smith paid 3.50 at 9.30 a.m. sharp.", "He left."]),
        ("See https://a.example/x.y?z=1 now. Then go!", ["See https://a.example/x.y?z=1 now.", "Then go!"]),
        ('She said "Stop. Go home." and left. Fine.', ['She said "Stop. Go home." and left.', "Fine."]),
        ("J. R. Tolkien wrote it.\n\n- one\n- two", ["J. R. Tolkien wrote it.", "- one", "- two"]),
        ("1. First point. More.", ["1. First point.", "More."]),
        ("我喜欢茶。他喜欢咖啡！", ["我喜欢茶。", "他喜欢咖啡！"]),
        ("", []),
    ],
)
def test_statements_end_where_sentences_end(text: str, expected: list[str]) -> None:
    assert list(statements(text)) == expected


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("Alice has 2 dogs.", "Alice has 3 dogs."),
        ("Alice likes tea.", "Alice does not like tea."),
        ("Alice can swim.", "Alice can't swim."),
        ("Alice likes tea.", "Bob likes tea."),
        ("Alice beat Bob.", "Bob beat Alice."),
        ("The car in the old garage is red today.", "The car in the old garage is blue today."),
        ("We go to the lake on the second weekend.", "We go to the lake on the second weekend if it rains."),
        ("It was -3 degrees outside.", "It was 3 degrees outside."),
        ("They gave the house to the US.", "They gave the house to us."),
        ("He writes C#.", "He writes C."),
        ("The price went from -3 to 5", "The price went from 5 to -3"),
    ],
)
def test_statements_that_differ_in_a_fact_both_stay(a: str, b: str) -> None:
    assert dedupe(sources(a, b)).dropped == 0
    assert dedupe(sources(b, a)).dropped == 0


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("Alice has a dog.", "alice  has a DOG"),
        ("Alice has the dog!", "- Alice really has a dog."),
        ("Alice’s dog is brown.", "Alice's dog is brown"),
        ("they walk along the river every single morning together", "they walk along the river every single morning"),
    ],
)
def test_a_repetition_is_dropped_and_its_source_kept(a: str, b: str) -> None:
    fused = dedupe(sources(a, b))
    assert (fused.text, fused.dropped, fused.statements[0].sources) == (a, 1, (0, 1))


def test_merge_names_the_sources_of_each_statement() -> None:
    fused = merge([Source("c1", 2, "A cat. A dog.", None, "pets", 5), Source("c2", 1, "a dog! A bird.", None, None, 6)])
    assert fused.text == "A cat. [1]\nA dog. [1][2]\nA bird. [2]\n\nSources:\n[1] cube c1@2 (pets)\n[2] cube c2@1"


def test_timeline_sorts_by_event_time_and_falls_back_to_creation() -> None:
    fused = timeline([Source("b", 1, "Later.", 3 * DAY), Source("a", 1, "First.", None, None, DAY), Source("c", 1, "Old.", -1)])
    assert fused.text == "## 1969-12-31\nOld.\n\n## 1970-01-02\nFirst.\n\n## 1970-01-04\nLater."


WORDS = st.sampled_from(
    ["Alice", "Bob", "the", "a", "dog", "cat", "not", "2", "3.5", "really", "likes", "red", '"', "“", "”", "Dr.", "e.g.", ".",
     "! ", "? ", "\n", "- ", "1. ", "。", "你好", "if", "old", "river", "J.", ")", "...", "İ", "ß"]
)  # fmt: skip
TEXTS = st.lists(st.lists(WORDS, max_size=25).map(" ".join) | st.text(max_size=40), min_size=1, max_size=4)


@given(TEXTS)
@settings(max_examples=150, deadline=None)
def test_every_statement_of_every_source_is_represented_and_credited(texts: list[str]) -> None:
    given_sources = sources(*texts)
    for strategy in STRATEGIES.values():
        fused = strategy(given_sources)
        assert strategy(given_sources) == fused
        assert len(fused.statements) + fused.dropped == sum(len(list(statements(text))) for text in texts)
        whole = set().union(*(fuse_text.meaning(kept.text).core for kept in fused.statements))
        for place, text in enumerate(texts):
            credited = [kept for kept in fused.statements if place in kept.sources]
            assert bool(credited) == bool(list(statements(text)))
            for statement in statements(text):
                assert set(fuse_text.meaning(statement).core) <= whole


@given(TEXTS)
@settings(max_examples=150, deadline=None)
def test_dedupe_of_its_own_result_changes_nothing(texts: list[str]) -> None:
    once = dedupe(sources(*texts))
    again = dedupe(sources(once.text))
    assert (again.text, again.dropped) == (once.text, 0)


LONG = "In the end nobody of us could say any more who had won. "


@pytest.mark.parametrize(
    ("texts", "days", "chosen"),
    [
        (("Anna has a dog. It barks.", "Anna has a dog. It barks.", "Anna left."), (0, 9, 20), "dedupe"),
        (("Anna has a dog.", "Anna moved to Porto."), (0, 2), "timeline"),
        (("Anna has a dog.", "Anna moved to Porto."), (0, 1), "dedupe"),
        (("Anna has a dog.", "Anna moved to Porto."), (0, None), "dedupe"),
        ((LONG * 3 + "Bo left early. Di slept. Al ran.", "Cy stayed until noon. Ed sang. Flo ate."), (None, None), "merge"),
    ],
)  # fmt: skip
def test_auto_chooses_by_rule_and_says_what(texts: tuple[str, ...], days: tuple[int | None, ...], chosen: str) -> None:
    given = [
        Source(str(place), 1, text, None if day is None else day * DAY)
        for place, (text, day) in enumerate(zip(texts, days, strict=True))
    ]
    fused = auto(given)
    assert (choice(given), dict(fused.recipe)) == (chosen, {"chosen": chosen})
    assert fused.text == STRATEGIES[chosen](given).text


def test_what_a_pronoun_says_stays_with_whom_it_is_said_of() -> None:
    maria, radu = "Maria came from Lisbon. She works as a nurse.", "Radu came from Cluj. She works as a nurse."
    assert dedupe(sources(maria, radu)).dropped == 0
    again = dedupe(sources("Maria came from Lisbon. Bo left.", maria, "Maria has a cat. She works as a nurse!"))
    assert again.text.splitlines() == ["Maria came from Lisbon.", "She works as a nurse.", "Bo left.", "Maria has a cat."]
    assert dedupe(sources("A car stood there. It was red.", "A house stood there. It was red.")).dropped == 0


def test_the_table_has_the_strategies_of_the_abi() -> None:
    assert set(TABLE["plaintext"].strategies) == {"dedupe", "merge", "timeline", "auto", "summarise"}
    assert TABLE["plaintext"].deterministic == {"dedupe", "merge", "timeline", "auto"}
