"""The distillation of facts into a LoRA adapter: a generator that yields between small pieces of work.

    steps of    positives (forms of the facts: cross-entropy on the answers)
              + negatives (prompts that must stay as they are: KL from the base, and no object where the base has none)

A is [r, in] and B [out, r], in float32; they act through hooks that are there during one piece of work and removed before the
next yield, so that the generator can be closed at any time and nothing is left over.

Deterministic: the same facts, forms, Spec, model and number of threads give the same bytes. The rate is constant after a short
warm-up and falls to a tenth over the last `cool` steps, which begin early once the held-out forms are known (`known`), so that
easy facts take fewer steps. The commit gate (probes.py) examines the result: facts that fail are dropped, and training
is repeated once without them; too few facts or too much damage is MemLowQuality, with the scores in its detail.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch

from memos_drivers.lm.tokens import TokenLayout
from memos_drivers.parametric import forms as rule
from memos_drivers.parametric.adapter import Adapter, applied
from memos_drivers.parametric.facts import Fact
from memos_drivers.parametric.forms import Form, Negative
from memos_drivers.parametric.probes import Limits, Prompts, Reader, examine, refusal
from memos_drivers.parametric.teacher import CONTINUED, Row, Student, Taught, Words, batches, form_row, negative_row, teach
from memos_syscalls.errors import MemInvalid, MemLowQuality, MemModel

Progress = Callable[[float, str], None]
Modules = dict[str, tuple[torch.Tensor, torch.Tensor]]


class Spec(NamedTuple):
    """The one setting that was measured; docs/parametric.md has the table."""

    rank: int = 16
    alpha: float = 16.0
    rate: float = 1e-3
    faster: float = 1.0
    beta: float = 0.999
    enough: float = 0.0
    steps: int = 220
    warm: int = 10
    cool: int = 60
    positives: int = 10
    negatives: tuple[tuple[str, int], ...] = (
        ("template", 7), ("other", 5), ("neighbour", 7), ("same subject", 2), ("free", 1), ("chat", 1),
    )  # fmt: skip
    chat: float = 0.2
    weight: float = 6.0
    anchor: float = 0.5
    slack: float = 0.1
    clip: float = 1.0
    seed: int = 0
    targets: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    layers: tuple[float, float] = (0.067, 0.6)
    average: int = 0
    min_facts: int = 1
    repeat: bool = True
    limits: Limits = Limits()


class Distilled(NamedTuple):
    modules: Modules
    alpha: float
    rank: int
    scores: dict[str, Any]
    facts: list[dict[str, Any]]
    dropped: list[dict[str, Any]]
    probes: list[dict[str, Any]]
    seconds: float
    steps: int


def targets_of(model: Any, spec: Spec) -> list[tuple[str, torch.nn.Linear]]:
    """The modules that an adapter of this Spec acts on, by name."""
    count = int(model.config.get_text_config(decoder=True).num_hidden_layers)
    first, end = round(spec.layers[0] * count), max(1, round(spec.layers[1] * count))
    chosen: list[tuple[str, torch.nn.Linear]] = []
    for name, module in model.named_modules():
        parts = name.split(".")
        number = next((int(part) for part in parts if part.isdecimal()), -1)
        if parts[-1] in spec.targets and isinstance(module, torch.nn.Linear) and first <= number < end:
            chosen.append((name, module))
    if not chosen:
        raise MemModel(f"the model has no modules called {', '.join(spec.targets)}", "Name other targets in the params.")
    return sorted(chosen, key=lambda pair: pair[0])


class Trained:
    """A and B of each module while they are trained."""

    def __init__(self, student: Student, spec: Spec) -> None:
        self.scale = spec.alpha / spec.rank
        self._linears = targets_of(student.model, spec)
        made = torch.Generator().manual_seed(spec.seed)
        self.modules: Modules = {}
        for name, linear in self._linears:
            bound = 1 / math.sqrt(linear.in_features)
            first = (torch.rand((spec.rank, linear.in_features), generator=made) * 2 - 1) * bound
            second = torch.zeros((linear.out_features, spec.rank))
            self.modules[name] = (first.to(student.device).requires_grad_(), second.to(student.device).requires_grad_())

    @property
    def parameters(self) -> list[torch.Tensor]:
        return [tensor for pair in self.modules.values() for tensor in pair]

    @contextmanager
    def acting(self) -> Iterator[None]:
        handles = [linear.register_forward_hook(self._hook(*self.modules[name])) for name, linear in self._linears]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, first: torch.Tensor, second: torch.Tensor) -> Callable[..., torch.Tensor]:
        def hook(_module: object, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            delta = (inputs[0].float() @ first.T) @ second.T
            return output + (delta * self.scale).to(output.dtype)

        return hook


class Material(NamedTuple):
    """Rows: forms by fact (raw, chat), negatives by kind, all of them taught."""

    positives: list[Row]
    by_fact: dict[int, tuple[list[int], list[int]]]
    negatives: list[Row]
    by_kind: dict[str, tuple[list[int], list[int]]]


def material(words: Words, facts: Sequence[Fact], forms: Sequence[Form], negatives: Sequence[Negative]) -> Material:
    positives: list[Row] = []
    by_fact: dict[int, tuple[list[int], list[int]]] = {number: ([], []) for number in range(len(facts))}
    for form in forms:
        if (row := form_row(words, form, facts[form.fact])) is not None:
            by_fact[form.fact][form.chat].append(len(positives))
            positives.append(row)
    others: list[Row] = []
    by_kind: dict[str, tuple[list[int], list[int]]] = {}
    for negative in negatives:
        if (row := negative_row(words, negative, facts)) is not None:
            by_kind.setdefault(negative.kind, ([], []))[negative.chat].append(len(others))
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


def planned(stock: Material, spec: Spec) -> list[tuple[list[int], list[int]]]:
    """Which positives and negatives each step has."""
    made = random.Random(spec.seed)
    facts = Deck([number for number, pair in sorted(stock.by_fact.items()) if pair[0] or pair[1]], made)
    forms = {n: (Deck(raw, made), Deck(chat, made)) for n, (raw, chat) in sorted(stock.by_fact.items())}
    kinds = {kind: (Deck(raw, made), Deck(chat, made)) for kind, (raw, chat) in sorted(stock.by_kind.items())}

    def one(pair: tuple[Deck, Deck]) -> int:
        chat = made.random() < spec.chat
        return (pair[chat] or pair[not chat]).draw()

    plan: list[tuple[list[int], list[int]]] = []
    for _ in range(spec.steps):
        positives = [one(forms[facts.draw()]) for _ in range(spec.positives)] if facts else []
        negatives = [one(kinds[kind]) for kind, count in spec.negatives if kind in kinds for _ in range(count)]
        plan.append((positives, negatives))
    return plan


def _rate(spec: Spec, step: int, end: int) -> float:
    if step < spec.warm:
        return spec.rate * (step + 1) / spec.warm
    left = end - step
    if left > spec.cool:
        return spec.rate
    return spec.rate * (0.1 + 0.9 * (0.5 - 0.5 * math.cos(math.pi * left / (spec.cool + 1))))


def _piece(student: Student, trained: Trained, spec: Spec, rows: Sequence[Row], taught: Sequence[torch.Tensor | None], per: tuple[int, int]) -> list[float]:
    """Gradient of one batch. `per` are the step's numbers of positives and of negatives."""
    with torch.enable_grad(), trained.acting():
        states = student.states(rows)
        which = [(n, at) for n, row in enumerate(rows) for at in row.at]
        picked = states[[n for n, _ in which], [at for _, at in which]]
        said = student.logits(picked).log_softmax(-1)
        loss = said.new_zeros(())
        parts = [0.0, 0.0, 0.0]
        begin = 0
        for row, known in zip(rows, taught, strict=True):
            mine = said[begin : begin + len(row.at)]
            begin += len(row.at)
            if known is None:
                weights = mine.new_tensor(row.weights)
                wanted = mine.gather(1, torch.tensor(row.wanted, device=mine.device)[:, None])[:, 0]
                own = ((-wanted - spec.enough).clamp(min=0) * weights).sum() / weights.sum() / per[0]
                loss, parts[0] = loss + own, parts[0] + own.detach().item()
                continue
            with torch.no_grad():
                base = student.logits(known).log_softmax(-1)
            apart = (base.exp() * (base - mine)).sum(-1).mean() / per[1]
            loss, parts[1] = loss + spec.weight * apart, parts[1] + apart.detach().item()
            if row.avoided >= 0 and spec.anchor:
                here = len(row.at) - 1 - CONTINUED
                risen = (mine[here, row.avoided] - base[here, row.avoided] - spec.slack).clamp(min=0) / per[1]
                loss, parts[2] = loss + spec.anchor * risen, parts[2] + risen.detach().item()
        loss.backward()
        return parts


def fit(
    student: Student, stock: Material, taught: dict[int, Taught], plan: Sequence[tuple[list[int], list[int]]], spec: Spec,
    progress: Callable[[float, str], None],
) -> Generator[None, None, Trained]:
    """All steps."""
    trained = Trained(student, spec)
    optimizer = torch.optim.AdamW(
        [{"params": [pair[n] for pair in trained.modules.values()], "times": (1.0, spec.faster)[n]} for n in (0, 1)],
        lr=spec.rate, betas=(0.9, spec.beta), weight_decay=0.0, foreach=True,
    )  # fmt: skip
    averaged = [torch.zeros_like(tensor) for tensor in trained.parameters] if spec.average else []
    for step, (positives, negatives) in enumerate(plan):
        rows = [stock.positives[n] for n in positives] + [taught[n].row for n in negatives]
        states: list[torch.Tensor | None] = [None] * len(positives) + [taught[n].states for n in negatives]
        per = (max(1, len(positives)), max(1, len(negatives)))
        total = [0.0, 0.0, 0.0]
        for batch in batches(rows, range(len(rows))):
            made = _piece(student, trained, spec, [rows[n] for n in batch], [states[n] for n in batch], per)
            total = [a + b for a, b in zip(total, made, strict=True)]
            yield
        for group in optimizer.param_groups:
            group["lr"] = _rate(spec, step, len(plan)) * group["times"]
        torch.nn.utils.clip_grad_norm_(trained.parameters, spec.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        left = len(plan) - step - 1
        if left < spec.average:
            with torch.no_grad():
                for mean, tensor in zip(averaged, trained.parameters, strict=True):
                    mean.add_(tensor / spec.average)
        progress((step + 1) / len(plan), "step {} of {}, ce {:.3f}, kl {:.4f}, anchor {:.4f}".format(step + 1, len(plan), *total))
    if averaged:
        with torch.no_grad():
            for mean, tensor in zip(averaged, trained.parameters, strict=True):
                tensor.copy_(mean)
    return trained


def distil(
    model: torch.nn.Module, layout: TokenLayout, facts: Sequence[Fact], spec: Spec, written: Sequence[Form], progress: Progress
) -> Generator[None, None, Distilled]:
    """An adapter that knows these facts, examined. `written` are forms that a model wrote; raises `MemLowQuality`."""
    if not facts:
        raise MemInvalid("there is no fact in the sources", "Give sources that say something.")
    began = time.perf_counter()
    words = Words(layout)
    student, reader = Student(model, words), Reader(model, words)
    left = list(range(len(facts)))
    dropped: list[dict[str, Any]] = []
    for last in (False, True):
        mine = [facts[n] for n in left]
        own = [form._replace(fact=left.index(form.fact)) for form in written if form.fact in left]
        modules = yield from learn(student, mine, spec, own, progress)
        probes = rule.probes_of(mine, spec.seed)
        prompts = Prompts(probes, rule.locality_of(mine, spec.seed), rule.NEUTRAL)
        progress(0.92, "examining")
        adapter = Adapter(modules, spec.alpha)
        examined = yield from examine(reader, mine, prompts, partial(applied, model, [(adapter, 1.0)]))
        failed = examined.failed()
        if not failed or last or not spec.repeat:
            break
        dropped += [
            {**facts[left[n]]._asdict(), "why": "the statement is not known" if not examined.facts[n][0] else "other wordings fail"}
            for n in failed
        ]  # fmt: skip
        left = [n for k, n in enumerate(left) if k not in failed]
        if len(left) < max(1, spec.min_facts):
            break
        progress(0.1, f"training again without {len(failed)} facts")
    why = refusal(examined, spec.limits)
    if len(left) < max(1, spec.min_facts):
        why = f"{len(left)} facts are left, fewer than {max(1, spec.min_facts)}"
    if why:
        said = json.dumps({"scores": examined.scores, "facts": len(left), "dropped": len(dropped)}, sort_keys=True)
        raise MemLowQuality(f"{why}: {said}")
    return Distilled(
        modules, spec.alpha, spec.rank, {**examined.scores, "facts": len(left), "dropped": len(dropped)},
        [facts[n]._asdict() for n in left], dropped, [probe._asdict() for probe in probes], time.perf_counter() - began, spec.steps,
    )  # fmt: skip


def learn(
    student: Student, facts: Sequence[Fact], spec: Spec, written: Sequence[Form], progress: Progress
) -> Generator[None, None, Modules]:
    """Forms, teacher, training; no gate."""
    began = time.perf_counter()
    words = student.words
    stock = material(words, facts, [*rule.forms_of(facts, spec.seed), *written], rule.negatives_of(facts, spec.seed))
    plan = planned(stock, spec)
    used = sorted({n for _positives, some in plan for n in some})
    made = yield from teach(student, [stock.negatives[n] for n in used], lambda share: progress(0.1 * share, "asking the base model"))
    taught = dict(zip(used, made, strict=True))
    seconds = time.perf_counter() - began
    progress(0.1, f"{len(stock.positives)} forms, {len(used)} of {len(stock.negatives)} negatives, asked in {seconds:.0f} s")
    trained = yield from fit(student, stock, taught, plan, spec, lambda share, said: progress(0.1 + 0.8 * share, said))
    return {name: (a.detach().clone(), b.detach().clone()) for name, (a, b) in trained.modules.items()}
