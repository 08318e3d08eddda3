"""A summary holds what its sources say and nothing else, within its budget; what a model shortens is examined."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memos_drivers.plaintext.fuse_probe import CHARS_MAX, kept_share, questions
from memos_drivers.plaintext.fuse_text import Source, statements
from memos_drivers.plaintext.summary import accepts, budget, chosen, composed, form_of, plan, summarise, tokens

WORDS = st.sampled_from(
    ["Alice", "Bob", "the", "dog", "not", "2", "likes", "red", "She", "It", ". ", "! ", "\n", "- ", "你好。", "Hi", "Wow", "ß"]
)  # fmt: skip
TEXTS = st.lists(st.lists(WORDS, max_size=25).map(" ".join) | st.text(max_size=40), min_size=1, max_size=4)


def sources(*texts: str) -> list[Source]:
    return [Source(str(place), 1, text) for place, text in enumerate(texts)]


@given(TEXTS, st.one_of(st.none(), st.integers(1, 40)))
@settings(max_examples=150, deadline=None)
def test_each_line_is_a_statement_of_a_source_and_the_budget_holds(texts: list[str], most: int | None) -> None:
    fused = summarise(sources(*texts), budget_tokens=most)
    assert summarise(sources(*texts), budget_tokens=most) == fused
    assert {one.text for one in fused.statements} <= {one for text in texts for one in statements(text)}
    assert most is None or len(fused.statements) <= 1 or tokens(fused.text) <= most
    assert bool(fused.statements) == any(list(statements(text)) for text in texts)


def test_what_is_new_comes_before_what_is_said_already_and_small_talk_never() -> None:
    given_sources = sources(
        "Hi there! Bea sold the boat in Genoa for 900 euros. Thank you so much! So the boat was sold by Bea.",
        "Good morning. The boat was sold. Kim took the engine to Rapallo. Wow!",
    )
    made = plan(given_sources)
    first = [made.statements[place].text for place in made.order[:2]]
    assert set(first) == {"Bea sold the boat in Genoa for 900 euros.", "Kim took the engine to Rapallo."}
    assert not {"Thank you so much!", "Wow!", "Good morning."} & {made.statements[place].text for place in made.order}


def test_a_pronoun_comes_with_what_it_stands_for() -> None:
    made = plan(sources("Something dull happened in the old garden then. It cost Maria 4500 euros and 37 cents."))
    assert chosen(made, tokens("It cost Maria 4500 euros and 37 cents."), {}) == (0,), "alone it would say nothing"
    assert chosen(made, made.tokens, {}) == (0, 1)


def test_without_a_budget_no_question_is_lost_and_with_one_some_are() -> None:
    given_sources = sources("Anna lives in Lisbon. Boris works as a chemist.", "Carla plays the harp. Dan keeps bees.")
    asked = questions(given_sources)
    assert len(asked) == 4
    assert kept_share(asked, [one.text for one in summarise(given_sources).statements]).lost == []
    short = summarise(given_sources, ratio=0.5)
    assert tokens(short.text) <= budget(plan(given_sources), None, 0.5)
    share = kept_share(asked, [one.text for one in short.statements])
    assert (share.kept, len(share.lost)) == (2, 2)


LONG = (
    "After many weeks of looking around in the whole city, Maria finally rented a small flat on Rua das Flores for 870 euros."
)


@pytest.mark.parametrize(
    ("statement", "shorter", "expected"),
    [
        (LONG, "Maria finally rented a small flat on Rua das Flores for 870 euros.", True),
        (LONG, "Maria rented a flat on Rua das Flores for 870 euros.", True),
        (LONG, "Maria finally rented a small flat on Rua das Flores for 780 euros.", False),
        (LONG, "Maria finally rented a small flat for 870 euros.", False),
        (LONG, "Maria finally bought a small flat on Rua das Flores for 870 euros.", False),
        (LONG, "Maria a small flat on Rua das Flores for 870 euros.", False),
        (LONG, LONG, False),
        (LONG, "After many weeks. Maria finally rented a small flat on Rua das Flores for 870 euros.", False),
        ("Bea, who was born in Rome, paints.", "Bea, born in Rome, paints.", True),
        (LONG, "", False),
        ("Bob, as everybody knows, beat Alice in the final.", "Alice beat Bob.", False),
        ("He said that the old car is red.", "The old car is red.", False),
        ("Tom does not eat the very old fish.", "Tom does eat the old fish.", False),
        ("Only Tom eats the very old fish.", "Tom eats the very old fish.", False),
        ("Tom refused to eat the very old fish.", "Tom to eat the fish.", False),
        ("The quite long meeting starts at 3 if it rains.", "The meeting starts at 3.", False),
    ],
)
def test_a_shorter_form_stands_only_if_it_says_the_same(statement: str, shorter: str, expected: bool) -> None:
    assert accepts(statement, shorter) is expected


@pytest.mark.parametrize(
    ("said", "form"),
    [('\n "Tom left."\nmore', "Tom left."), ("**Tom left.**", "Tom left."), ("", ""), ('He said "no".', 'He said "no".')],
)
def test_what_a_model_offers_is_its_first_line(said: str, form: str) -> None:
    assert form_of(said) == form


def test_accepted_forms_make_room() -> None:
    made = plan(sources(LONG, "Her cat is called Mimi. The cellar is damp."))
    most = tokens(LONG) + 4
    place = next(place for place, one in enumerate(made.statements) if one.text == LONG)
    form = "Maria rented a flat on Rua das Flores for 870 euros."
    without = composed(made, chosen(made, most, {}), {})
    shorter = composed(made, chosen(made, most, {place: form}), {place: form})
    assert len(shorter.statements) > len(without.statements)
    assert shorter.statements[0].text == form and shorter.recipe["shortened"] == [0] and without.recipe["shortened"] == []


def test_only_the_beginning_of_very_long_sources_is_asked_about() -> None:
    filler = "Nothing of note was said. " * (CHARS_MAX // 26)
    assert len(questions(sources("Anna lives in Lisbon. " + filler, "Boris lives in Paris."))) < 4


@pytest.mark.parametrize("unit", ["J. ", ".", "a, ", "She is. ", "1. ", '" ', "x", "你好", "!)"])
def test_hostile_texts_are_summarised_in_time(unit: str) -> None:
    text = (unit * 100_000)[:100_000]
    began = time.process_time()
    summarise(sources(text, "Anna lives in Rome."))
    assert time.process_time() - began < 10
