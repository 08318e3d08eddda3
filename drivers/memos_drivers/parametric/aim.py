"""Where A begins: not as noise, but where the facts' own gradients point."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from typing import Any, cast

import torch

from memos_drivers.parametric.loss import piece
from memos_drivers.parametric.material import Material
from memos_drivers.parametric.setting import Spec
from memos_drivers.parametric.teacher import Student
from memos_drivers.parametric.trained import Trained


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
                piece(student, trained, spec, rows, [None] * len(rows), (len(rows), 1), aim.watch)
            finally:
                aim.forget()
            yield
    aim.take()
    for tensor in trained.parameters:
        tensor.grad = None
