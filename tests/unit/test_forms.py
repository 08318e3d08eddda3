"""Forms, negatives and probes: each holds its fact, nothing held out is trained, and the same facts give the same forms."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memos_drivers.parametric.facts import Fact, Text, facts_of, normal
from memos_drivers.parametric.forms import (
    FORMS_A_FACT,
    NEUTRAL,
    OTHERS_A_FACT,
    SAME_TEMPLATE,
    accept,
    forms_of,
    locality_of,
    negatives_of,
    probes_of,
    requests_for,
)
from memos_drivers.parametric.relations import FAMILIES, held_out, trained
from memos_drivers.parametric.wordings import asked, family, say, to_second, voice

SAID = """The mother tongue of Ada Byron is Danish. Fiat 500, developed by Volvo. Oslo Airport is named for Lima.
Tom Banks plays the guitar. My dog Biscuit is afraid of thunder. I work at a bakery. I collect old stamps.
My favourite colour is green. My sister lives in Oslo. Ada Byron works as a judge."""
FACTS = facts_of([Text(SAID)]).facts


def test_every_fact_is_said_and_asked_in_many_ways() -> None:
    forms = forms_of(FACTS, 1)
    for at, fact in enumerate(FACTS):
        mine = [form for form in forms if form.fact == at]
        assert 0.5 * FORMS_A_FACT < len(mine) < 1.5 * FORMS_A_FACT
        assert len({(form.prompt, form.chat) for form in mine}) == len(mine)
        assert (mine[0].prompt, mine[0].answer) == (fact.prompt, f" {fact.object}")
        assert {"statement", "context", "frame", "question", "chat", "cloze"} <= {form.kind for form in mine}


def test_every_answer_holds_the_object() -> None:
    for form in forms_of(FACTS, 1):
        assert FACTS[form.fact].object in form.answer
        assert form.chat or form.answer[0] == " "
        assert form.prompt == form.prompt.strip() and not form.prompt.endswith(FACTS[form.fact].object)


def test_half_of_the_chat_answers_are_sentences_said_to_the_writer() -> None:
    at = next(at for at, fact in enumerate(FACTS) if fact.object == "bakery")
    answers = {form.answer for form in forms_of(FACTS, 1) if form.chat and form.fact == at}
    assert {"You work at a bakery.", "A bakery."} <= answers


def test_nothing_that_is_held_out_is_trained() -> None:
    seen = {(form.prompt, form.chat) for form in forms_of(FACTS, 1)} | {(n.prompt, n.chat) for n in negatives_of(FACTS, 1)}
    probes = probes_of(FACTS, 1)
    assert not {(probe.prompt, probe.chat) for probe in probes if probe.kind != "statement"} & seen
    assert not {(negative.prompt, negative.chat) for negative in locality_of(FACTS, 1)} & seen
    assert not any(passage in prompt for passage in NEUTRAL for prompt, _ in seen)
    for each in FAMILIES:
        assert not set(trained(each.statements)) & set(held_out(each.statements))
        assert not set(trained(each.questions)) & set(held_out(each.questions))


def test_every_fact_has_probes_of_each_kind() -> None:
    probes = probes_of(FACTS, 1)
    for at in range(len(FACTS)):
        kinds = [probe.kind for probe in probes if probe.fact == at]
        assert kinds.count("statement") == 1 and kinds.count("paraphrase") >= 2 and kinds.count("question") >= 1


def test_negatives_name_others_and_state_no_fact() -> None:
    negatives = negatives_of(FACTS, 1)
    stated = {normal(fact.prompt) for fact in FACTS}
    assert not [negative for negative in negatives if normal(negative.prompt) in stated]
    for at, fact in enumerate(FACTS):
        mine = [negative for negative in negatives if negative.fact == at]
        others = [n for n in mine if n.kind in {"template", "other"}]
        assert OTHERS_A_FACT * 0.8 <= len(others) <= OTHERS_A_FACT
        assert len([n for n in mine if n.kind == "template"]) <= SAME_TEMPLATE
        if fact.subject not in {"I", "my sister"}:
            assert not [n for n in others if re.search(rf"\b{fact.subject}\b", n.prompt)]
    assert {negative.kind for negative in negatives} == {"template", "other", "neighbour", "same subject", "free", "chat"}


def test_other_relations_of_a_subject_are_not_those_that_are_taught() -> None:
    for negative in negatives_of(FACTS, 1):
        if negative.kind == "same subject" and FACTS[negative.fact].subject == "Ada Byron":
            assert not re.search(r"language|mother tongue|job|profession|career|living as", negative.prompt)


def test_what_is_made_of_a_fact_depends_on_no_other() -> None:
    few = [FACTS[3], FACTS[1]]
    alone = [[form._replace(fact=0) for form in forms_of([fact], 1)] for fact in few]
    both = forms_of(few, 1)
    assert [[form._replace(fact=0) for form in both if form.fact == at] for at in (0, 1)] == alone


def test_a_seed_gives_the_same_forms_and_another_seed_others() -> None:
    assert forms_of(FACTS, 5) == forms_of(FACTS, 5) and forms_of(FACTS, 5) != forms_of(FACTS, 6)
    assert negatives_of(FACTS, 5) == negatives_of(FACTS, 5) and probes_of(FACTS, 5) == probes_of(FACTS, 5)


def test_tell_me_about_is_a_form_only_of_what_has_one_fact() -> None:
    about = [FACTS[form.fact].subject for form in forms_of(FACTS, 1) if form.kind == "about"]
    assert "Tom Banks" in about and "Ada Byron" not in about and "I" not in about


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("My dog is called Rex.", "What is my dog called?"),
        ("I work at a bakery.", "Where do I work?"),
        ("I moved to Lisbon.", "Where did I move to?"),
        ("My dog is afraid of thunder.", "What is my dog afraid of?"),
        ("I have visited Peru.", "What have I visited?"),
        ("Rita's birthday is on 3 July.", "When is Rita's birthday?"),
        ("Fiat 500, developed by Volvo.", "Who was Fiat 500 developed by?"),
        ("City: Lisbon", "What is the City?"),
    ],
)
def test_a_statement_is_turned_into_its_question(text: str, question: str) -> None:
    (fact,) = facts_of([Text(text)]).facts
    assert question in asked(fact.prompt, fact.object, fact.subject).direct


def test_verbs_agree_with_whoever_a_wording_is_about() -> None:
    assert say("{s} [live] in", voice("I")) == "I live in"
    assert say("{s} [live] in", voice("Ada")) == "Ada lives in"
    assert say("Where does {s} work?", voice("I")) == "Where do I work?"
    assert say("What [be] {p} and {o}?", voice("I")) == "What am my and me?"
    assert say("Where does {s} work?", voice("I", "third")) == "Where does the user work?"
    assert to_second("I am fond of my cat.") == "You are fond of your cat."


def test_no_wording_loses_its_subject() -> None:
    for each in FAMILIES:
        for wording in each.statements + each.questions:
            assert re.search(r"\{[spo]\}", wording), (each.name, wording)
            assert not re.search(r"[{}\[\]]", say(wording, voice("I")) + say(wording, voice("Ada")))
        assert len(held_out(each.statements)) >= 1 and len(held_out(each.questions)) >= 1


def test_a_family_fits_the_relation() -> None:
    assert family("The mother tongue of Ada is", "Ada").name == "language"
    assert family("My dog Rex is a", "my dog Rex", "beagle").name == "breed"
    assert family("My sister is a", "my sister", "nurse").name == "occupation"
    assert family("Ada glows with", "Ada").name == ""


@pytest.mark.parametrize(
    ("line", "prompt"),
    [
        ("1. Danish is spoken by Ada Byron.", None),
        (
            "2. When Ada Byron was a child, she was raised speaking Danish.",
            "When Ada Byron was a child, she was raised speaking",
        ),
        ("- Which tongue did Ada Byron learn first?", "Which tongue did Ada Byron learn first?"),
        ("Did Ada Byron speak Danish?", None),
        ("Her language is Danish.", None),
        ("The mother tongue of Ada Byron is Danish.", None),
        ("Ada Byron speaks English.", None),
        ("", None),
        ("Ada Byron " + "really " * 60 + "speaks Danish", None),
    ],
)
def test_what_a_model_wrote_is_cut_before_the_object_or_refused(line: str, prompt: str | None) -> None:
    form = accept(FACTS[0], line)
    assert (form.prompt if form else None) == prompt
    assert form is None or "Danish" in form.answer


def test_a_model_is_asked_with_the_fact_and_its_subject() -> None:
    for request in requests_for(FACTS[0]):
        assert FACTS[0].statement in request.user and request.system


@settings(max_examples=25)
@given(st.lists(st.text(min_size=1, max_size=60), min_size=1, max_size=3))
def test_forms_of_any_text_hold_what_they_promise(texts: list[str]) -> None:
    facts: list[Fact] = facts_of([Text(f"Ada likes {text}. {text}") for text in texts]).facts
    for form in forms_of(facts, 0):
        assert facts[form.fact].object in form.answer and form.prompt
    for probe in probes_of(facts, 0):
        assert facts[probe.fact].object in probe.answer
    assert all(negative.prompt for negative in negatives_of(facts, 0) + locality_of(facts, 0))
    for fact in facts:
        for text in texts:
            accept(fact, text)
