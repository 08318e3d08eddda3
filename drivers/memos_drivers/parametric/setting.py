"""How an adapter is trained: one setting for all."""

from __future__ import annotations

from typing import NamedTuple

from memos_drivers.parametric.probes import Limits


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
