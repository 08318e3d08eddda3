"""A and B of each module while they are trained.

A is [r, in] and B [out, r], in float32. Where usual directions are closed, A = A' · M (`usual`), and A' is what moves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch

from memos_drivers.parametric.adapter import Adapter, applied
from memos_drivers.parametric.setting import Spec
from memos_drivers.parametric.teacher import Student
from memos_drivers.parametric.usual import Closed
from memos_syscalls.errors import MemModel

Modules = dict[str, tuple[torch.Tensor, torch.Tensor]]


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
