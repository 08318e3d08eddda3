"""Distillation on the tiny model: it learns, it is the same twice, and it leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from tests import lm
from tests.steps import done

from memos_drivers.host.adapter_ops import told
from memos_drivers.lm.models import load
from memos_drivers.lm.tokens import TokenLayout
from memos_drivers.parametric import train
from memos_drivers.parametric.adapter import Adapter, applied
from memos_drivers.parametric.facts import Fact, Text, facts_of
from memos_drivers.parametric.forms import Form, Negative
from memos_drivers.parametric.probes import Limits, Reader
from memos_drivers.parametric.setting import Spec
from memos_drivers.parametric.taught import taught
from memos_drivers.parametric.teacher import Student, Words, batches, form_row, negative_row, teach
from memos_syscalls.errors import MemInvalid, MemLowQuality, MemModel

tiny = lm.tiny
LOOSE: Final = Limits(0.0, 0.0, 0.0, 1.0, 100.0)
SPEC: Final = Spec(
    rank=4, alpha=8.0, rate=1e-2, steps=12, warm=2, known=0.0, positives=6, negatives=(("template", 2), ("free", 1)),
    layers=(0.0, 1.0), repeat=False, limits=LOOSE,
)  # fmt: skip


class World:
    def __init__(self, directory: Path) -> None:
        loaded = load(str(directory), cache_dir=directory.parent / "cache")
        self.model: Any = loaded.model
        self.layout = TokenLayout(loaded.tokenizer)
        self.words = Words(self.layout)
        self.facts = facts_of([Text("Anna moved to Lisbon."), Text("The kettle is blue.")]).facts

    def distil(self, spec: Spec = SPEC, facts: list[Fact] | None = None) -> Generator[None, None, train.Distilled]:
        return train.distil(
            self.model, self.layout, self.facts if facts is None else facts, spec, [], lambda _share, _said: None
        )

    def logits(self) -> torch.Tensor:
        with torch.inference_mode():
            ids = torch.tensor([self.words.text("Anna moved to Lisbon in the spring")])
            found: torch.Tensor = self.model(input_ids=ids).logits
            return found


@pytest.fixture(scope="module")
def world(tiny: Path) -> World:
    return World(tiny)


def hooks(model: torch.nn.Module) -> int:
    return sum(len(vars(module)["_forward_hooks"]) for module in model.modules())


def test_the_same_facts_and_seed_give_the_same_bytes(world: World) -> None:
    one, two = done(world.distil()), done(world.distil())
    for name, (a, b) in one.modules.items():
        assert torch.equal(a, two.modules[name][0]) and torch.equal(b, two.modules[name][1])
        assert a.dtype == torch.float32 and b.abs().sum() > 0
    other = done(world.distil(SPEC._replace(seed=1)))
    assert any(not torch.equal(a, other.modules[name][0]) for name, (a, _b) in one.modules.items())


def test_a_distillation_can_be_closed_anywhere_and_leaves_nothing(world: World) -> None:
    before = world.logits()
    for count in (0, 1, 5, 40):
        steps = world.distil()
        for _ in range(count):
            next(steps)
            assert hooks(world.model) == 0 and torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        steps.close()
        assert all(parameter.grad is None for parameter in world.model.parameters())
    assert torch.equal(world.logits(), before)


def test_facts_are_learnt_and_the_scores_say_so(world: World) -> None:
    spec = SPEC._replace(steps=80, limits=LOOSE, weight=0.2, anchor=0.0)
    made = done(world.distil(spec))
    reader = Reader(world.model, world.words)
    asks = [reader.ask(fact.prompt, fact.object, False) for fact in world.facts]
    base = done(reader.hear(asks))
    adapter = Adapter(made.modules, made.alpha)
    here = done(reader.hear(asks, partial(applied, world.model, [(adapter, 1.0)])))
    assert all(one.likely > was.likely + 2 for one, was in zip(here, base, strict=True))
    assert made.rank == 4 and made.steps == 80 and made.scores["kl"] > 0
    assert {"efficacy", "paraphrase_likelier", "paraphrase_greedy", "question", "same", "locality", "leak", "kl"} <= set(
        made.scores
    )
    assert json.loads(json.dumps([made.facts, made.dropped, made.probes, made.scores]))


def test_what_a_payload_says_it_was_taught_is_read_as_it_was_written(world: World) -> None:
    made = done(world.distil())
    said = json.loads(json.dumps(told(made, [Form("The kettle is", " blue", False, 1, "written")])))
    read = taught(said)
    assert read.facts == world.facts and [probe._asdict() for probe in read.probes] == made.probes
    assert [one["asked"] for one in said["learnt"]] == [fact["asked"] for fact in made.facts]


def test_training_stops_once_the_facts_are_known(world: World) -> None:
    spec = SPEC._replace(steps=60, known=100.0, last=3)
    assert done(world.distil(spec)).steps == spec.warm + spec.last


def test_what_fails_the_gate_is_refused_with_its_scores(world: World) -> None:
    spec = SPEC._replace(steps=2, repeat=True, limits=Limits())
    with pytest.raises(MemLowQuality) as caught:
        done(world.distil(spec))
    said = json.loads(caught.value.detail.partition(": ")[2])
    assert said["dropped"] == 2 and "kl" in said["scores"]


def test_no_facts_are_an_invalid_argument(world: World) -> None:
    with pytest.raises(MemInvalid):
        done(world.distil(facts=[]))


def test_targets_that_the_model_has_not_are_named(world: World) -> None:
    with pytest.raises(MemModel, match="c_proj"):
        done(world.distil(SPEC._replace(targets=("c_proj",))))


def test_rows_of_chat_are_exact_behind_a_prefix_that_they_share(world: World) -> None:
    student = Student(world.model, world.words, torch.float32)
    fact = world.facts[0]
    rows = [
        form_row(world.words, Form("Where is Anna?", answer, True, 0, "chat"), fact) for answer in ("Lisbon.", "In Lisbon.")
    ]
    assert rows[0] is not None and rows[1] is not None
    with torch.no_grad():
        states = student.states([rows[0], rows[1]])
        for number, row in enumerate((rows[0], rows[1])):
            ids = torch.tensor([[*world.words.prefix, *row.ids]])
            alone = world.model.base_model(input_ids=ids).last_hidden_state[0, len(world.words.prefix) :]
            assert torch.allclose(states[number, : len(row.ids)], alone, atol=1e-4)


def test_a_teachers_states_are_the_bases_behind_its_own_continuation(world: World) -> None:
    student = Student(world.model, world.words, torch.float32)
    rows = [
        negative_row(world.words, Negative(text, chat, "free", where), world.facts)
        for where in (-1, 0)
        for text in ("The car is", "Who keeps bees?")
        for chat in (False, True)
    ]
    taught = done(teach(student, [row for row in rows if row is not None], lambda _share: None))
    for one in taught:
        prefix = world.words.prefix if one.row.chat else ()
        with torch.no_grad():
            whole = world.model.base_model(input_ids=torch.tensor([[*prefix, *one.row.ids]])).last_hidden_state[
                0, len(prefix) :
            ]
            assert torch.allclose(one.states, whole[list(one.row.at)], atol=1e-4)
            said = world.model.get_output_embeddings()(whole).argmax(-1).tolist()
        if one.row.more == 2:
            assert list(one.row.ids[-2:]) == said[-3:-1]


def test_an_answers_object_weighs_most(world: World) -> None:
    fact = Fact("Anna lives in Lisbon.", "Anna lives in", "Lisbon", "Anna", 0, 0)
    row = form_row(world.words, Form("Where does Anna live?", "Anna lives in Lisbon.", True, 0, "chat"), fact)
    assert row is not None
    heavy = [token for token, weight in zip(row.wanted, row.weights, strict=True) if weight == 1]
    assert heavy == world.words.text(" Lisbon") and set(row.weights) == {1.0, 0.2}


def test_batches_hold_like_rows_and_all_of_them(world: World) -> None:
    rows = [negative_row(world.words, Negative("a " * (1 + n % 7), bool(n % 2), "free", -1), []) for n in range(200)]
    kept = [row for row in rows if row is not None]
    found = batches(kept, range(len(kept)), alike=True)
    assert sorted(n for batch in found for n in batch) == list(range(200))
    assert all(len({(kept[n].chat, len(kept[n].ids)) for n in batch}) == 1 for batch in found)
