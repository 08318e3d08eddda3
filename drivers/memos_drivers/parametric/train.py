"""The distillation of facts into a LoRA adapter: a generator that yields between small pieces of work.

    a step =  forms of the facts (cross-entropy on the answers)
            + negatives: prompts that must stay as they are (KL from the base; no object likelier than the base has it)

A is [r, in] and B [out, r], in float32; they act through hooks that are there during one piece of work and removed before the
next yield, so that the generator can be closed at any time and nothing is left over. B starts at zero, A where the facts'
own gradients point (`Aim`): that halves the steps.

Deterministic: the same facts, forms, Spec, model, dtype and number of threads give the same bytes. Forms are mostly new when
they are drawn, so the loss on them is one on held-out forms: training stops early once it is low.

The commit gate (probes.py) examines the result: facts that fail are dropped, and training is repeated once without them. Too
few facts or too much damage is MemLowQuality, with the scores in its detail.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch

from memos_drivers.lm.tokens import TokenLayout
from memos_drivers.parametric import forms as rule
from memos_drivers.parametric.adapter import Adapter, applied
from memos_drivers.parametric.aim import aimed
from memos_drivers.parametric.facts import Fact
from memos_drivers.parametric.forms import Form
from memos_drivers.parametric.loss import piece
from memos_drivers.parametric.material import Material, material, planned
from memos_drivers.parametric.probes import Prompts, Reader, examine, refusal
from memos_drivers.parametric.setting import Spec
from memos_drivers.parametric.teacher import FREELY, Student, Taught, Words, batches, teach
from memos_drivers.parametric.trained import Modules, Trained, targets_of
from memos_drivers.parametric.usual import Closed, Usual
from memos_syscalls.errors import MemInvalid, MemLowQuality

Progress = Callable[[float, str], None]


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


def _rate(spec: Spec, step: int, end: int) -> float:
    """A warm-up, then a cosine down to a tenth."""
    if step < spec.warm:
        return spec.rate * (step + 1) / spec.warm
    gone = (step - spec.warm) / max(1, end - spec.warm)
    return spec.rate * (0.1 + 0.9 * (0.5 + 0.5 * math.cos(math.pi * gone)))


def fit(
    student: Student,
    stock: Material,
    taught: dict[int, Taught],
    plan: Sequence[tuple[list[int], list[int]]],
    spec: Spec,
    progress: Callable[[float, str], None],
    closed: Mapping[str, Closed] | None = None,
) -> Generator[None, None, tuple[Trained, int]]:
    """Train, and say after how many steps."""
    trained = Trained(student, spec, closed)
    trained.push()
    optimizer = torch.optim.AdamW(trained.moved, lr=spec.rate, betas=(0.9, spec.beta), weight_decay=0.0, foreach=True)
    if spec.aimed:
        yield from aimed(student, trained, stock, spec)
    mean = [0.0, 0.0, 0.0]
    found, step = len(plan), 0
    while step < min(len(plan), found + spec.last):
        positives, negatives = plan[step]
        rows = [stock.positives[n] for n in positives] + [taught[n].row for n in negatives]
        states: list[torch.Tensor | None] = [None] * len(positives) + [taught[n].states for n in negatives]
        per = (max(1, len(positives)), max(1, len(negatives)))
        now = spec._replace(weight=spec.weight * (spec.rising + 2 * (1 - spec.rising) * step / len(plan)))
        total = [0.0, 0.0, 0.0]
        for batch in batches(rows, range(len(rows))):
            made = piece(student, trained, now, [rows[n] for n in batch], [states[n] for n in batch], per)
            total = [a + b for a, b in zip(total, made, strict=True)]
            yield
        if not all(map(math.isfinite, total)):
            raise MemLowQuality(f"training diverged at step {step}", "Train again with a lower rate.")
        for group in optimizer.param_groups:
            group["lr"] = _rate(spec, step, len(plan)) * (1 - 0.9 * max(0, step - found) / spec.last)
        trained.pull()
        torch.nn.utils.clip_grad_norm_(trained.moved, spec.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        trained.push()
        mean = total if not step else [0.9 * a + 0.1 * b for a, b in zip(mean, total, strict=True)]
        if found == len(plan) and step >= spec.warm and mean[0] < spec.known:
            found = step
        step += 1
        said = "step {} of {}, cross-entropy {:.3f}, KL {:.4f}, anchor {:.4f}".format(step, len(plan), *mean)
        progress(step / min(len(plan), found + spec.last), said)
    return trained, step


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
        modules, steps = yield from learn(student, mine, spec, own, progress)
        probes = rule.probes_of(mine, spec.seed)
        prompts = Prompts(probes, rule.locality_of(mine, spec.seed), rule.NEUTRAL)
        progress(0.92, "examining")
        adapter = Adapter(modules, spec.alpha)
        examined = yield from examine(reader, mine, prompts, partial(applied, model, [(adapter, 1.0)]))
        failed = examined.failed()
        if not failed or last or not spec.repeat:
            break
        dropped += [
            {**facts[left[n]]._asdict(), "why": "other wordings fail" if examined.facts[n][0] else "the statement is not known"}
            for n in failed
        ]
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
    learnt = [
        {**fact._asdict(), "known": known, "right": right, "asked": asked}
        for fact, (known, right, asked) in zip(mine, examined.facts, strict=True)
    ]
    scores = {**examined.scores, "facts": len(left), "dropped": len(dropped)}
    asked = [probe._asdict() for probe in probes]
    seconds = time.perf_counter() - began
    return Distilled(modules, spec.alpha, spec.rank, scores, learnt, dropped, asked, seconds, steps)


def watched(steps: Generator[None, None, list[Taught]], usual: Usual) -> Generator[None, None, list[Taught]]:
    """The same steps, while inputs are sampled; not between them, where others use the model."""
    while True:
        try:
            with usual.watching():
                next(steps)
        except StopIteration as end:
            return cast(list[Taught], end.value)
        yield


def learn(
    student: Student, facts: Sequence[Fact], spec: Spec, written: Sequence[Form], progress: Progress
) -> Generator[None, None, tuple[Modules, int]]:
    """Forms, teacher, training; no gate. The modules, and after how many steps."""
    began = time.perf_counter()
    words = student.words
    stock = material(words, facts, [*rule.forms_of(facts, spec.seed), *written], rule.negatives_of(facts, spec.seed))
    plan = planned(stock, spec)
    used = sorted({n for _positives, some in plan for n in some})
    usual = Usual(targets_of(student.model, spec), spec.seed)
    taught: dict[int, Taught] = {}
    # Prompts about nothing in particular are few, and half of what is usual.
    for free in (True, False):
        numbers = [n for n in used if (stock.negatives[n].more == FREELY) is free]
        rows = [stock.negatives[n] for n in numbers]
        usual.expect(sum(len(row.ids) + row.more for row in rows))
        asked = teach(student, rows, lambda share: progress(0.1 * share, "asking the base model"))
        made = yield from (watched(asked, usual) if spec.floor else asked)
        taught.update(zip(numbers, made, strict=True))
    seconds = time.perf_counter() - began
    progress(0.1, f"{len(stock.positives)} forms, {len(used)} of {len(stock.negatives)} negatives, asked in {seconds:.0f} s")
    closed = (yield from usual.closed(spec.floor)) if spec.floor else {}
    trained, steps = yield from fit(
        student, stock, taught, plan, spec, lambda share, said: progress(0.1 + 0.8 * share, said), closed
    )
    return {name: (a.detach().clone(), b.detach().clone()) for name, (a, b) in trained.modules.items()}, steps
