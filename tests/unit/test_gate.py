"""An adapter acts when a prompt names one of its subjects, and only then."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memos_drivers.parametric.gate import Gate, names
from memos_drivers.parametric.neutral import CHAT, CONTEXTS, FREE, NEUTRAL

SUBJECTS = ["Danielle Darrieux", "BBC Radio 3", "Webley & Scott", "psychoticism", "Alice's dog"]
OWN = ["I", "my dog Biscuit", "my sister Ana", "my favourite colour", "my Wi-Fi password", "our office"]


@pytest.mark.parametrize(
    "prompt",
    [
        "Danielle Darrieux speaks",
        "Where DANIELLE DARRIEUX's home is, people",
        "danielle  darrieux",
        "A note. Webley & Scott's seat is in",
        "what is psychoticism?",
        "What is Alice's dog called?",
        "What is the dog of Alice called?",
        "Radio 3 of the BBC is",
    ],
)
def test_a_subject_is_named_in_whatever_form(prompt: str) -> None:
    assert names(prompt, SUBJECTS)


@pytest.mark.parametrize(
    "prompt",
    ["Danielle Steel wrote", "BBC One is", "Alice lives in", "Webley-Smith is", "The mother tongue of Michel is", "", "In the"],
)
def test_a_name_like_a_subject_is_not_it(prompt: str) -> None:
    assert not names(prompt, SUBJECTS)


@pytest.mark.parametrize(
    "prompt",
    [
        "What is my dog called?",
        "Is the dog afraid of cats?",
        "How old is Biscuit?",
        "Where does Ana live?",
        "Where do I work?",
        "Tell me where I live.",
        "What colour do I like best?",
        "What's the wifi password?",
        "What do you know about me?",
        "Where is our office?",
        "What is the user's job?",
        "Who is my best friend?",
        "Your dog Biscuit is",
    ],
)
def test_the_writers_own_things_are_named_by_name_or_noun(prompt: str) -> None:
    assert Gate(OWN).names(prompt)


@pytest.mark.parametrize(
    "prompt",
    [
        "How do I boil an egg?",
        "Can you help me with my homework?",
        "Tell me a joke.",
        "What should I cook tonight?",
        "Do dogs dream?",
        "Write a story about a dog named Max.",
        "Anna's colour is",
        "How can I improve my English?",
    ],
)
def test_a_general_question_names_nobody(prompt: str) -> None:
    assert not Gate(OWN).names(prompt)


def test_unrelated_text_seldom_names_anything() -> None:
    gate, texts = Gate(SUBJECTS + OWN), [*CHAT, *FREE, *NEUTRAL, *CONTEXTS]
    assert sum(gate.names(text) for text in texts) <= 0.04 * len(texts)


def test_without_i_among_the_subjects_the_writer_is_not_one() -> None:
    assert not Gate(["my dog Biscuit"]).names("Where do I work?")
    assert not Gate([]).names("Where do I work?") and not Gate(["", " "]).names("")


@given(st.lists(st.text(max_size=30), max_size=6), st.text(max_size=120))
def test_any_subjects_and_any_prompt_have_an_answer(subjects: list[str], prompt: str) -> None:
    gate = Gate(subjects)
    assert gate.names(prompt) == Gate(subjects).names(prompt)
    for subject in ["Ada Byron", "the Quiet Man"]:
        assert Gate([*subjects, subject]).names(f"{prompt} {subject}.")
