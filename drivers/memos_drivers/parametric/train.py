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
import random
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Final, NamedTuple, cast

import torch

from memos_drivers.lm.tokens import TokenLayout
from memos_drivers.parametric import forms as rule
from memos_drivers.parametric.adapter import Adapter, applied
from memos_drivers.parametric.facts import Fact
from memos_drivers.parametric.forms import Form, Negative
from memos_drivers.parametric.probes import Limits, Prompts, Reader, examine, refusal
from memos_drivers.parametric.teacher import FREELY, Row, Student, Taught, Words, batches, form_row, negative_row, teach
from memos_drivers.parametric.usual import Closed, Usual
from memos_syscalls.errors import MemInvalid, MemLowQuality, MemModel

Progress = Callable[[float, str], None]
Modules = dict[str, tuple[torch.Tensor, torch.Tensor]]


OFTEN: Final = {"chat": 5, "statement": 2, "rewrite": 2, "context": 2, "question": 2}
"""Kinds of forms that come more often than others."""


class Spec(NamedTuple):
    """The one setting that was measured; docs/benchmarks.md has the table."""

    rank: int = 16
    alpha: float = 32.0
    rate: float = 2e-3
    beta: float = 0.99
    steps: int = 0
    """At most; 0 is by the number of facts."""
    warm: int = 10
    last: int = 20
    """Steps that are left once the facts are known."""
    known: float = 0.25
    """Nats an answer, a mean over the last steps, at which they are. A form is mostly new when it is drawn."""
    positives: int = 9
    negatives: tuple[tuple[str, int], ...] = (("template", 3), ("other", 4), ("neighbour", 3), ("same subject", 2), ("free", 4))
    """Rows of a step."""
    chat: float = 0.6
    """Of the steps."""
    weight: float = 20.0
    rising: float = 0.5
    """KL's mean weight, and the share of it that it begins with: first the facts, then what they leave alone."""
    free: float = 2.5
    """How much more KL weighs where the prompt is about nothing in particular."""
    anchor: float = 0.4
    slack: float = 0.1
    """How much likelier the object may become where it is wrong, in nats, and the weight of what is more than that."""
    clip: float = 1.0
    seed: int = 0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    layers: tuple[float, float] = (0.067, 0.6)
    """From which share of the depth to which."""
    aimed: bool = True
    floor: float = 0.1
    """How strong an input's direction must be in usual text to be closed, as a multiple of the mean; 0 closes none."""
    min_facts: int = 1
    repeat: bool = True
    """Whether facts that fail are dropped, and the rest is trained again."""
    limits: Limits = Limits()

    def steps_for(self, facts: int) -> int:
        return self.steps or 60 + 10 * facts


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

    def __init__(self, student: Student, spec: Spec, closed: Mapping[str, Closed] | None = None) -> None:
        self._model: Any = student.model
        self.closed = dict(closed or {})
        """Where A = A' · M; A' is what the optimiser moves."""
        self.linears = targets_of(student.model, spec)
        made = torch.Generator().manual_seed(spec.seed)
        self.modules: Modules = {}
        for name, linear in self.linears:
            bound = 1 / math.sqrt(linear.in_features)
            first = (torch.rand((spec.rank, linear.in_features), generator=made) * 2 - 1) * bound
            second = torch.zeros((linear.out_features, spec.rank))
            self.modules[name] = (first.to(student.device).requires_grad_(), second.to(student.device).requires_grad_())
        self._adapter = Adapter(self.modules, spec.alpha)
        self._free = {name: a.detach().clone() for name, (a, _b) in self.modules.items()}

    @property
    def parameters(self) -> list[torch.Tensor]:
        """A and B of each module, as they act."""
        return [tensor for pair in self.modules.values() for tensor in pair]

    @property
    def moved(self) -> list[torch.Tensor]:
        """What the optimiser moves: A' in place of A."""
        return [tensor for name, (_a, b) in self.modules.items() for tensor in (self._free[name], b)]

    def through(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """Rows of a module's inputs, or of A', times its M."""
        closed = self.closed.get(name)
        return rows if closed is None else closed(rows)

    @torch.no_grad()
    def start(self, name: str, rows: torch.Tensor, scale: float) -> None:
        first = self._free[name]
        if name in self.closed:
            self.closed[name].scale = scale
        first[: len(rows)] = rows * first.norm(dim=1).mean()

    @torch.no_grad()
    def pull(self) -> None:
        """Gradients of A to those of A'."""
        for name, (a, _b) in self.modules.items():
            assert a.grad is not None
            self._free[name].grad = self.through(name, a.grad)
            a.grad = None

    @torch.no_grad()
    def push(self) -> None:
        """A as A' has it now."""
        for name, (a, _b) in self.modules.items():
            a.copy_(self.through(name, self._free[name]))

    def acting(self) -> AbstractContextManager[None]:
        return applied(self._model, [(self._adapter, 1.0)])


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


def _rate(spec: Spec, step: int, end: int) -> float:
    """A warm-up, then a cosine down to a tenth."""
    if step < spec.warm:
        return spec.rate * (step + 1) / spec.warm
    gone = (step - spec.warm) / max(1, end - spec.warm)
    return spec.rate * (0.1 + 0.9 * (0.5 + 0.5 * math.cos(math.pi * gone)))


def _piece(
    student: Student,
    trained: Trained,
    spec: Spec,
    rows: Sequence[Row],
    taught: Sequence[torch.Tensor | None],
    per: tuple[int, int],
    watching: Callable[[], None] = lambda: None,
) -> list[float]:
    """Gradient of one batch. `per` are the step's numbers of positives and of negatives.

    The gradient by the logits is written down, not recorded: the softmax, less what is wanted.
    """
    with torch.enable_grad(), trained.acting():
        watching()
        states = student.states(rows)
        which = [(n, at) for n, row in enumerate(rows) for at in row.at]
        logits = student.head(states[[n for n, _ in which], [at for _, at in which]])
        with torch.no_grad():
            slope, parts = _slope(student, spec, rows, taught, per, logits.float())
        # By these tensors alone: those of the base may well want gradients too, and get none.
        found = torch.autograd.grad(logits, trained.parameters, slope.to(logits.dtype), materialize_grads=True)
    for tensor, more in zip(trained.parameters, found, strict=True):
        tensor.grad = more if tensor.grad is None else tensor.grad + more
    return parts


class Aim:
    """Where the facts stand: for each module the directions of its input by which its output should change most.

    A starts as these directions, not as noise: sixteen directions of noise hardly see what tells one subject from another.
    """

    def __init__(self, trained: Trained, seed: int) -> None:
        self._trained = trained
        self._made = torch.Generator().manual_seed(seed)
        self._handles: list[Any] = []
        self._starts = {name: torch.randn((a.shape[1], 2), generator=self._made) for name, (a, _b) in trained.modules.items()}
        self.found: dict[str, list[torch.Tensor]] = {name: [] for name in trained.modules}
        self.size: dict[str, list[float]] = {name: [0.0, 0.0] for name in trained.modules}

    def watch(self) -> None:
        for name, linear in self._trained.linears:
            self._handles.append(linear.register_forward_hook(self._hook(name)))

    def forget(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(_module: object, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            came = inputs[0].detach().flatten(0, -2).float()

            def note(slope: torch.Tensor) -> None:
                self._note(name, came, slope.flatten(0, -2).float())

            cast(Any, output).register_hook(note)

        return hook

    @torch.no_grad()
    def _note(self, name: str, came: torch.Tensor, slope: torch.Tensor) -> None:
        """The two strongest right singular vectors of slopeᵀ·came, by power iteration."""
        both = self._starts[name].to(came)
        left = self._trained.through(name, came)
        self.size[name][0] += float(came.square().sum())
        self.size[name][1] += float(left.square().sum())
        came = left
        for _ in range(4):
            both = torch.linalg.qr(came.T @ (slope @ (slope.T @ (came @ both))))[0]
        self.found[name].append(both.T)

    @torch.no_grad()
    def take(self) -> None:
        for name, (first, _second) in self._trained.modules.items():
            if not self.found[name]:
                continue
            basis = torch.linalg.svd(torch.cat(self.found[name]), full_matrices=False)[2][: first.shape[0]]
            whole, left = self.size[name]
            self._trained.start(name, basis, math.sqrt(whole / left) if left else 1.0)
        self._trained.push()


def aimed(student: Student, trained: Trained, stock: Material, spec: Spec) -> Generator[None, None, None]:
    """Start A where the facts' own gradients point: one batch of forms for each fact."""
    aim = Aim(trained, spec.seed)
    for _number, (raw, chat) in sorted(stock.by_fact.items()):
        rows = [stock.positives[numbers[0]] for _kind, numbers in sorted(raw.items())][:6]
        # Without their prefix: it is the same for all facts, and would only repeat itself.
        rows += [stock.positives[numbers[0]]._replace(chat=False) for _kind, numbers in sorted(chat.items())][:2]
        if rows:
            try:
                _piece(student, trained, spec, rows, [None] * len(rows), (len(rows), 1), aim.watch)
            finally:
                aim.forget()
            yield
    aim.take()
    for tensor in trained.parameters:
        tensor.grad = None


def _slope(
    student: Student,
    spec: Spec,
    rows: Sequence[Row],
    taught: Sequence[torch.Tensor | None],
    per: tuple[int, int],
    logits: torch.Tensor,
) -> tuple[torch.Tensor, list[float]]:
    """The loss by the logits, and its parts: cross-entropy, KL, anchor."""
    said = logits.log_softmax(-1)
    slope = said.exp()
    places, tokens, weights = list[int](), list[int](), list[float]()
    others, shares, anchors = list[int](), list[float](), list[tuple[int, int, int]]()
    begin = 0
    for row, known in zip(rows, taught, strict=True):
        here = range(begin, begin + len(row.at))
        begin += len(row.at)
        if known is None:
            places += here
            tokens += row.wanted
            weights += [weight / sum(row.weights) / per[0] for weight in row.weights]
        else:
            if row.avoided >= 0 and spec.anchor:
                anchors.append((here[-1 - row.more], len(others) + len(here) - 1 - row.more, row.avoided))
            others += here
            times = spec.free if row.more == FREELY else 1.0
            shares += [times * weight / per[1] for weight in row.weights]
    parts = [0.0, 0.0, 0.0]
    if places:
        at, wanted, weight = torch.tensor(places), torch.tensor(tokens), said.new_tensor(weights)
        missed = -said[at, wanted]
        parts[0] = float((missed * weight).sum())
        slope[at] *= weight[:, None]
        slope[at, wanted] -= weight
    if others:
        base = student.logits(torch.cat([one for one in taught if one is not None])).log_softmax(-1)
        at, share = torch.tensor(others), said.new_tensor(shares)
        risen = [float(said[n, token] - base[m, token]) - spec.slack for n, m, token in anchors]
        likely = base.exp()
        parts[1] = float(((base.sub_(said[at]).mul_(likely)).sum(-1) * share).sum())
        slope[at] = (slope[at] - likely) * (spec.weight * share)[:, None]
        for (n, _m, token), more in zip(anchors, risen, strict=True):
            if more > 0:
                # The log of a chance rises by one with its own logit, and falls with every other as that one is likely.
                parts[2] += more / per[1]
                slope[n] -= said[n].exp() * (spec.anchor / per[1])
                slope[n, token] += spec.anchor / per[1]
    return slope, parts


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
            made = _piece(student, trained, now, [rows[n] for n in batch], [states[n] for n in batch], per)
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
