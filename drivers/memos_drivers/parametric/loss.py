"""The loss of one batch: cross-entropy on the answers of forms, KL from the base elsewhere, and an anchor on the objects.

The gradient by the logits is written down, not recorded: the softmax, less what is wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from memos_drivers.parametric.setting import Spec
from memos_drivers.parametric.teacher import FREELY, Row, Student
from memos_drivers.parametric.trained import Trained


def piece(
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
            slope, parts = slope_of(student, spec, rows, taught, per, logits.float())
        # By these tensors alone: those of the base may well want gradients too, and get none.
        found = torch.autograd.grad(logits, trained.parameters, slope.to(logits.dtype), materialize_grads=True)
    for tensor, more in zip(trained.parameters, found, strict=True):
        tensor.grad = more if tensor.grad is None else tensor.grad + more
    return parts


def slope_of(
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
