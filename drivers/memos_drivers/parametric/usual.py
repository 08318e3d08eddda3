"""What a model's linear layers usually see, and how an adapter is kept from seeing it.

A row of A acts on every input alike. What text that must stay as it was makes of a layer's input lies mostly along few
directions, and a step along those changes everything. So A is not trained itself but A' with A = A' · M,

    M = V · diag(1 / sqrt(1 + c / floor)) · Vᵀ + (I - V · Vᵀ),

where V are the directions of sampled usual inputs and c how strong they are, as a multiple of their mean. Directions that usual
text does not use stay whole, and those that it lives on are nearly closed. That is steepest descent in the measure of what
changes elsewhere; editing in the null space of usual keys (AlphaEdit, arXiv:2410.02355) is its limit for a small floor.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch

SAMPLES_MAX: Final = 1024
"""Inputs a layer that are kept."""


class Closed:
    """M of one layer, as what it takes away: V [width, n] and shares [n]."""

    def __init__(self, directions: torch.Tensor, taken: torch.Tensor) -> None:
        self.directions, self.taken = directions, taken
        self.scale = 1.0

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows [n, width] times M. M is symmetric: gradients take the same way."""
        left = rows - ((rows @ self.directions) * self.taken) @ self.directions.T
        return left * self.scale


class Usual:
    """Inputs of linear layers, sampled while the base runs over text that must stay."""

    def __init__(self, linears: Sequence[tuple[str, torch.nn.Linear]], seed: int) -> None:
        self._linears = linears
        self._share = 1.0
        self._made = torch.Generator().manual_seed(seed)
        self._seen: dict[str, list[torch.Tensor]] = {name: [] for name, _linear in linears}
        self._same: dict[str, str] = {}
        self._now: tuple[Any, str, torch.Tensor] | None = None

    def expect(self, tokens: int) -> None:
        """So many tokens come next; half of all that is kept is taken from among them."""
        self._share = min(1.0, SAMPLES_MAX / 2 / max(1, tokens))

    @contextmanager
    def watching(self) -> Generator[None, None, None]:
        handles = [linear.register_forward_pre_hook(self._hook(name)) for name, linear in self._linears]
        try:
            yield
        finally:
            self._now = None
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Any:
        def hook(_module: object, inputs: tuple[torch.Tensor, ...]) -> None:
            # Layers side by side are given the same tensor: one sample serves them all.
            if self._now is not None and self._now[0] is inputs[0]:
                self._same[name] = self._now[1]
                return
            rows = inputs[0].detach().flatten(0, -2)
            chosen = torch.rand(len(rows), generator=self._made) < self._share
            kept = rows[chosen.to(rows.device)].float()
            self._now = (inputs[0], name, kept)
            self._seen[name].append(kept)

        return hook

    def closed(self, floor: float) -> Generator[None, None, dict[str, Closed]]:
        """M of each layer; yields behind every decomposition, since others wait for the thread meanwhile."""
        found: dict[str, Closed] = {}
        for name, _linear in self._linears:
            if name not in self._same:
                found[name] = _closed(torch.cat(self._seen[name]), floor)
                yield
        for name, same in self._same.items():
            found[name] = Closed(found[same].directions, found[same].taken)
        return found


@torch.no_grad()
def _closed(rows: torch.Tensor, floor: float) -> Closed:
    rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-6) * rows.shape[1] ** 0.5
    strong, directions = torch.linalg.eigh(rows.T @ rows / len(rows))
    kept = strong > 1e-4
    strong, directions = strong[kept], directions[:, kept]
    return Closed(directions, 1 - (1 + strong / floor).rsqrt())
