"""An adapter that is trained behind M hardly acts on what usual text lives on, and fully on the rest."""

from __future__ import annotations

import pytest
import torch
from tests.steps import done

from memos_drivers.parametric.usual import SAMPLES_MAX, Closed, Usual

Layers = list[tuple[str, torch.nn.Linear]]


def layers(width: int = 12) -> Layers:
    return [(name, torch.nn.Linear(width, 4, bias=False)) for name in ("k", "o", "q")]


def seen(linears: Layers, rows: torch.Tensor, other: torch.Tensor, seed: int = 0) -> dict[str, Closed]:
    usual = Usual(linears, seed)
    usual.expect(len(rows))
    by_name = dict(linears)
    with usual.watching():
        # q and k are given the same tensor, as in attention; o another one.
        for name, given in (("q", rows), ("k", rows), ("o", other)):
            by_name[name](given)
    return done(usual.closed(0.1))


def test_usual_directions_are_nearly_closed_and_others_stay_whole() -> None:
    made = torch.Generator().manual_seed(1)
    usual = torch.randn((400, 12), generator=made)
    usual[:, 3:] = 0
    closed = seen(layers(), usual, torch.randn((400, 12), generator=made))["q"]
    eye = torch.eye(12)
    assert (closed(eye[:3]).norm(dim=1) < 0.2).all()
    assert torch.allclose(closed(eye[3:]), eye[3:], atol=1e-4)


def test_layers_side_by_side_share_what_they_saw_and_scale_by_themselves() -> None:
    made = torch.Generator().manual_seed(2)
    found = seen(layers(), torch.randn((50, 12), generator=made), torch.randn((50, 12), generator=made))
    assert found["q"].directions is found["k"].directions and found["o"].directions is not found["q"].directions
    found["q"].scale = 3.0
    rows = torch.randn((2, 12), generator=made)
    assert torch.allclose(found["q"](rows), 3 * found["k"](rows))


def test_m_is_symmetric_so_gradients_take_the_same_way() -> None:
    made = torch.Generator().manual_seed(3)
    closed = seen(layers(), torch.randn((60, 12), generator=made), torch.randn((60, 12), generator=made))["o"]
    m = closed(torch.eye(12))
    assert torch.allclose(m, m.T, atol=1e-5)
    free, wanted = torch.randn((2, 12), generator=made, requires_grad=True), torch.randn((2, 12), generator=made)
    (slope,) = torch.autograd.grad((closed(free) * wanted).sum(), free)
    assert torch.allclose(slope, closed(wanted), atol=1e-5)


def test_the_same_text_and_seed_close_the_same_and_samples_are_bounded() -> None:
    rows = torch.randn((3 * SAMPLES_MAX, 12), generator=torch.Generator().manual_seed(4))
    one, two = (seen(layers(), rows, rows)["q"] for _ in range(2))
    assert torch.equal(one.directions, two.directions) and torch.equal(one.taken, two.taken)
    usual = Usual(linears := layers(), 0)
    usual.expect(len(rows))
    with usual.watching():
        linears[0][1](rows)
    kept = sum(len(some) for some in usual._seen["k"])  # pyright: ignore[reportPrivateUsage]
    assert 0.3 * SAMPLES_MAX < kept < 0.7 * SAMPLES_MAX


def test_there_is_a_pause_behind_every_decomposition() -> None:
    linears = layers()
    usual = Usual(linears, 0)
    with usual.watching():
        for _name, linear in linears:
            linear(torch.randn((20, 12)))
    assert len(list(usual.closed(0.1))) == len(linears), "one for each that saw an input of its own"


def test_nothing_is_watched_afterwards_not_even_behind_an_error() -> None:
    linears = layers()
    usual = Usual(linears, 0)
    with pytest.raises(RuntimeError), usual.watching():
        raise RuntimeError("a job is cancelled")
    assert not any(linear._forward_pre_hooks for _name, linear in linears)  # pyright: ignore[reportPrivateUsage]
