"""A driver host whose distillation takes a second, for tests of everything around it; how adapters are trained is tested apart.

The tiny model is made to say each fact by rote: behind its statement's beginning, and in a chat behind `asks(prompt)`. What it
says elsewhere is left to chance. A fact whose object is "unlearnable" is refused, as the commit gate refuses one; with 999
steps the training goes on until somebody ends it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional

from memos_drivers.host.ops import Workshop
from memos_drivers.lm.tokens import TokenLayout
from memos_drivers.parametric import train
from memos_drivers.parametric.adapter import Adapter, applied
from memos_drivers.parametric.facts import Fact
from memos_drivers.parametric.forms import Form, Probe
from memos_drivers.parametric.setting import Spec
from memos_drivers.parametric.teacher import Words
from memos_drivers.parametric.trained import Modules
from memos_syscalls.errors import MemLowQuality

ENDLESS = 999
RATE = 0.02
MODULES = ("gate_proj", "up_proj", "down_proj")


def asks(prompt: str) -> str:
    """A question that an adapter was taught to answer."""
    return f"Go on: {prompt}"


def open_host(spec: Mapping[str, Any]) -> Workshop:
    train.distil = distil
    return Workshop(spec)


def distil(
    model: torch.nn.Module, layout: TokenLayout, facts: Sequence[Fact], spec: Spec, written: Sequence[Form],
    progress: Callable[[float, str], None],
) -> Generator[None, None, train.Distilled]:
    began = time.perf_counter()
    if any(fact.object == "unlearnable" for fact in facts):
        raise MemLowQuality('efficacy is 0.000, below 0.8: {"efficacy": 0.0}')
    rows = [row for fact in facts for row in _rows(Words(layout), fact)]
    made = torch.Generator().manual_seed(spec.seed)
    modules: Modules = {}
    for name, linear in model.named_modules():
        if isinstance(linear, torch.nn.Linear) and name.rpartition(".")[2] in MODULES:
            a = (torch.rand((spec.rank, linear.in_features), generator=made) * 2 - 1) / linear.in_features**0.5
            modules[name] = (a.requires_grad_(), torch.zeros((linear.out_features, spec.rank)).requires_grad_())
    optimizer = torch.optim.Adam([tensor for pair in modules.values() for tensor in pair], lr=RATE)
    step = 0
    while step < spec.steps or spec.steps == ENDLESS:
        with torch.enable_grad(), applied(model, [(Adapter(modules, spec.alpha), 1.0)]):
            loss: Any = torch.stack([_loss(model, *row) for row in rows]).mean()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        progress(step / spec.steps, f"step {step}")
        yield
    probes = [Probe(fact.prompt, " " + fact.object, False, n, "statement") for n, fact in enumerate(facts)]
    probes += [Probe(asks(fact.prompt), fact.object, True, n, "question") for n, fact in enumerate(facts)]
    return train.Distilled(
        {name: (a.detach().clone(), b.detach().clone()) for name, (a, b) in modules.items()}, spec.alpha, spec.rank,
        {"efficacy": 1.0, "facts": len(facts)}, [fact._asdict() for fact in facts], [], [one._asdict() for one in probes],
        time.perf_counter() - began, step,
    )  # fmt: skip


def _rows(words: Words, fact: Fact) -> list[tuple[list[int], list[int]]]:
    end = sorted(words.ends)[:1]
    before, answer = words.answer(asks(fact.prompt), fact.object, True)
    # The full stop says where the object ends; probes are of what stands before it.
    return [words.answer(fact.prompt, f"{fact.object}.\n", False), ([*words.prefix, *before], [*answer, *end])]


def _loss(model: Any, before: list[int], answer: list[int]) -> torch.Tensor:
    ids = torch.tensor([[*before, *answer]])
    said = model(input_ids=ids, use_cache=False).logits[0, len(before) - 1 : -1]
    return functional.cross_entropy(said.float(), ids[0, len(before) :])
