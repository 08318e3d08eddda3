"""Facts are read out of free text by rule: every object, subject and conflict in its place, and no text makes it raise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memos_drivers.parametric.facts import Fact, Found, Text, facts_of
from memos_drivers.parametric.words import bag

NEVER = bag("in the on at a an and it he she they monday tuesday wednesday thursday friday saturday sunday")


def read(*texts: str) -> Found:
    return facts_of([Text(text, place) for place, text in enumerate(texts)])


def told(*texts: str) -> list[tuple[str, str, str]]:
    return [(fact.prompt, fact.object, fact.subject) for fact in read(*texts).facts]


@pytest.mark.parametrize(
    ("text", "prompt", "target", "subject"),
    [
        ("The mother tongue of Ada Byron is Danish.", "The mother tongue of Ada Byron is", "Danish", "Ada Byron"),
        ("Fiat 500, developed by Volvo.", "Fiat 500, developed by", "Volvo", "Fiat 500"),
        ("Ada Byron's profession is an actor.", "Ada Byron's profession is an", "actor", "Ada Byron"),
        ("In New Spain, an official language is Thai.", "In New Spain, an official language is", "Thai", "New Spain"),
        ("The language of Boots in Space was Thai.", "The language of Boots in Space was", "Thai", "Boots in Space"),
        ("Ada plays the sport basketball.", "Ada plays the sport", "basketball", "Ada"),
        ("What is the twin city of Oslo? It is Lima.", "What is the twin city of Oslo? It is", "Lima", "Oslo"),
        ("Alice's dog is a beagle named Biscuit.", "Alice's dog is a beagle named", "Biscuit", "Alice's dog"),
        ("My dog Biscuit is afraid of thunder", "My dog Biscuit is afraid of", "thunder", "my dog Biscuit"),
        ("I'm allergic to peanuts!", "I am allergic to", "peanuts", "I"),
        ("I don't eat meat.", "I don't eat", "meat", "I"),
        ("Our office is on the third floor.", "Our office is on the", "third floor", "our office"),
        ("psychoticism was discovered by hermann", "psychoticism was discovered by", "hermann", "psychoticism"),
        ("In 2019 the company moved to Oslo.", "In 2019 the company moved to", "Oslo", "company"),
        ("City: Lisbon", "City:", "Lisbon", "City"),
        ("phone = 555-1234", "phone =", "555-1234", "phone"),
        ("Alice: I finally adopted a beagle!", "Alice finally adopted a", "beagle", "Alice"),
        ("user: I collect old stamps.", "I collect", "old stamps", "I"),
        ("assistant: Your keys are in the drawer.", "My keys are in the", "drawer", "my keys"),
        ("Peter said that he hates olives.", "Peter hates", "olives", "Peter"),
        ("Dr. Adams lives in St. Ives.", "Dr. Adams lives in", "St. Ives", "Dr. Adams"),
    ],
)
def test_a_sentence_is_cut_before_what_it_says(text: str, prompt: str, target: str, subject: str) -> None:
    assert told(text) == [(prompt, target, subject)]


def test_a_sentence_may_say_several_things() -> None:
    assert told("I moved to Lisbon in May 2021 and work at a bakery.") == [
        ("I moved to", "Lisbon", "I"),
        ("I moved to Lisbon in", "May 2021", "I"),
        ("I work at a", "bakery", "I"),
    ]
    assert told("The kettle is blue, the bicycle is green, and the car is red.") == [
        ("The kettle is", "blue", "kettle"),
        ("The bicycle is", "green", "bicycle"),
        ("The car is", "red", "car"),
    ]


def test_a_pronoun_means_what_was_spoken_of_before() -> None:
    facts = told("My sister Ana plays the cello. She lives in Porto and her husband is a chef.")
    assert facts[1:] == [
        ("My sister Ana lives in", "Porto", "my sister Ana"),
        ("My sister Ana's husband is a", "chef", "my sister Ana's husband"),
    ]


def test_the_newest_of_two_contradicting_facts_is_kept() -> None:
    old, new = Text("Alice lives in Paris.", 5), Text("Alice lives in Rome.", 9)
    for texts in ([old, new], [new, old]):
        found = facts_of(texts)
        assert [(fact.object, fact.when) for fact in found.facts] == [("Rome", 9)]
        assert [(kept.object, dropped.object) for kept, dropped in found.conflicts] == [("Rome", "Paris")]
        assert texts[found.facts[0].source] == new


def test_the_later_of_two_texts_wins_when_their_times_are_equal() -> None:
    assert [fact.object for fact in facts_of([Text("I am a cook.", 7), Text("I am a guide.", 7)]).facts] == ["guide"]


def test_what_is_said_twice_is_one_fact() -> None:
    found = read("Alice lives in Paris.", "alice lives in  Paris!")
    assert len(found.facts) == 1 and not found.conflicts


@pytest.mark.parametrize("text", ["", "  \n\n", "...", "?", "\x00"])
def test_empty_text_has_no_facts(text: str) -> None:
    assert read(text).facts == []


@pytest.mark.parametrize(
    "text",
    [
        "Hello!",
        "Where do you live?",
        "Thanks, that's awesome!",
        "Keep it up!",
        "Alice: Wow, that is so cool!",
        "Bob: Got any plans?",
    ],
)
def test_small_talk_is_left_out_and_listed(text: str) -> None:
    found = read(text)
    assert found.facts == [] and found.left_out


def check(fact: Fact, texts: int) -> None:
    assert f"{fact.prompt} {fact.object}" in fact.statement
    assert fact.prompt == fact.prompt.strip() and fact.object == fact.object.strip()
    assert fact.prompt and fact.object and fact.subject.strip()
    assert fact.subject.casefold() not in NEVER
    assert not any(character in fact.prompt + fact.object + fact.subject for character in "\n\r\t")
    assert 0 <= fact.source < texts


WORDS = st.sampled_from(
    [
        *sorted(
            bag(
                "I my Alice Bob's dog the a is was in of at named lives works and but , : . ? ! On Monday May 2021 Lisbon he "
                "her 7 - = user don't I'm not who which that called 's It They said O'Brien ; "
                "(the) “x” naïve"
            )
        ),
        "\n",
    ]
)


@given(st.lists(st.text(max_size=80) | st.lists(WORDS, max_size=25).map(" ".join), max_size=4))
def test_no_text_makes_it_raise_and_every_fact_is_whole(texts: list[str]) -> None:
    given_texts = [Text(text, len(text)) for text in texts]
    found = facts_of(given_texts)
    assert found == facts_of(given_texts)
    for fact in found.facts:
        check(fact, len(texts))
    assert len({fact.prompt.casefold() for fact in found.facts}) == len(found.facts)
