"""Adapters made into one, as peft's `add_weighted_adapter` makes them, and measured against each other.

- `linear`, `ties`, `dare_linear`, `dare_ties`, `magnitude_prune` merge A with A and B with B, so that ranks must be equal.
- `cat` stacks them: the exact sum, of the sum of the ranks.
- `svd` is the best approximation of the exact sum of a given rank. It never makes a matrix of out × in.
- the others with `_svd` merge the whole products B·A, which they do make, one module at a time, and cut them to a rank.

Modules that only some adapters change are merged of those. The result has scale 1 (alpha = rank), rank `RANK_MAX` at most:
beyond it is recompressed. The same adapters, weights and seed give the same tensors.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Generator, Sequence
from typing import Final, Literal, NamedTuple

import torch

from memos_drivers.parametric.adapter import RANK_MAX, Adapter, Modules, not_finite
from memos_syscalls.errors import MemInvalid, MemLowQuality

DENSITY: Final = 0.5
EQUAL_RANKS: Final = ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")
METHODS: Final = (*EQUAL_RANKS, "cat", "svd", "ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd")
ADAPTERS_MAX: Final = 64
WEIGHT_MAX: Final = 1e4
SMALLER: Final = "Check the adapters, and use smaller weights."
Sign = Literal["total", "frequency"]
Pair = tuple[torch.Tensor, torch.Tensor]


class Fused(NamedTuple):
    """What came of it."""

    modules: dict[str, Pair]
    alpha: float
    rank: int


class Difference(NamedTuple):
    """One module of two adapters: Frobenius norms of what each adds to the weights, and of the difference of that."""

    module: str
    a: float
    b: float
    between: float


def fuse(
    adapters: Sequence[Adapter], method: str, weights: Sequence[float], *, density: float = DENSITY, seed: int = 0,
    rank: int | None = None, majority_sign: Sign = "total",
) -> Fused:  # fmt: skip
    """As `fusing`, in one go."""
    steps = fusing(adapters, method, weights, density=density, seed=seed, rank=rank, majority_sign=majority_sign)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            made: Fused = end.value
            return made


def fusing(
    adapters: Sequence[Adapter], method: str, weights: Sequence[float], *, density: float = DENSITY, seed: int = 0,
    rank: int | None = None, majority_sign: Sign = "total",
) -> Generator[None, None, Fused]:  # fmt: skip
    """The adapters made into one; stops after every module. `rank` is that of the result (svd: else the largest; otherwise a
    cap). Raises `MemInvalid` for what does not go together, `MemLowQuality` for a result that is not finite."""
    _check(adapters, method, weights, density, rank, majority_sign)
    made: dict[str, Pair] = {}
    state = torch.Generator().manual_seed(seed).get_state()
    ranks = [adapter.rank for adapter in adapters]
    wide = sum(ranks) if method == "cat" else (rank or max(ranks)) if method.endswith("svd") else ranks[0]
    for path in dict.fromkeys(path for adapter in adapters for path in adapter.modules):
        having = [
            (adapter, float(weight)) for adapter, weight in zip(adapters, weights, strict=True) if path in adapter.modules
        ]
        parts = [(_plain(adapter.modules[path]), adapter.scale, weight) for adapter, weight in having]
        if len({(pair[0].shape[1], pair[1].shape[0]) for pair, *_rest in parts}) > 1:
            raise MemInvalid(f"the adapters are for different models: {path[:200]} has other sizes in one than in another")
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            # peft's functions take their chances from the one generator of the process, which others use between two steps.
            torch.set_rng_state(state)
            made[path] = _padded(_merged(parts, method, density, wide, majority_sign), wide)
            state = torch.get_rng_state()
        yield
    most = min(rank or RANK_MAX, RANK_MAX, max(min(a.shape[1], b.shape[0]) for a, b in made.values()))
    if wide > most:
        for path, pair in made.items():
            made[path] = _cut(pair, most)
            yield
    if name := not_finite(made):
        raise MemLowQuality(f"the fused adapter has numbers that are not finite ({name[:200]})", SMALLER)
    return Fused(made, float(min(wide, most)), min(wide, most))


def recompress(modules: Modules, rank: int) -> dict[str, Pair]:
    """The best adapter of this rank for the same products: a thin decomposition, cut. Of lower ones, padded."""
    with torch.no_grad():
        return {path: _cut(_plain(pair), rank) for path, pair in modules.items()}


def difference(a: Adapter, b: Adapter) -> list[Difference]:
    """How far apart what they add is, module by module, for all that one of them changes; no product is made."""
    found: list[Difference] = []
    with torch.no_grad():
        for path in sorted({*a.modules, *b.modules}):
            here = [(*_plain(one.modules[path]), one.scale) for one in (a, b) if path in one.modules]
            of_a = _norm([(*_plain(a.modules[path]), a.scale)]) if path in a.modules else 0.0
            of_b = _norm([(*_plain(b.modules[path]), b.scale)]) if path in b.modules else 0.0
            if len(here) == 2:
                (a1, b1, scale1), (a2, b2, scale2) = here
                if (a1.shape[1], b1.shape[0]) != (a2.shape[1], b2.shape[0]):
                    raise MemInvalid(
                        f"the adapters are for different models: {path[:200]} has other sizes in one than in the other"
                    )
                same = scale1 == scale2 and torch.equal(a1, a2) and torch.equal(b1, b2)
                between = 0.0 if same else _norm([(a1, b1, scale1), (a2, b2, -scale2)])
            else:
                between = of_a + of_b
            found.append(Difference(path, of_a, of_b, between))
    return found


def _check(
    adapters: Sequence[Adapter], method: str, weights: Sequence[float], density: float, rank: int | None, majority_sign: str
) -> None:
    if method not in METHODS:
        raise MemInvalid(f"there is no method {method!r:.40} to fuse adapters; there are {', '.join(METHODS)}")
    if not 1 <= len(adapters) <= ADAPTERS_MAX or len(weights) != len(adapters):
        raise MemInvalid(
            f"{len(adapters)} adapters and {len(weights)} weights: 1 to {ADAPTERS_MAX} adapters, a weight for each"
        )
    if not all(abs(weight) <= WEIGHT_MAX for weight in weights):
        raise MemInvalid(f"a weight is a number from -{WEIGHT_MAX:g} to {WEIGHT_MAX:g}")
    if not 0 < density <= 1:
        raise MemInvalid(f"density is the share of numbers that is kept, above 0 and at most 1, not {density}")
    if rank is not None and not 1 <= rank <= RANK_MAX:
        raise MemInvalid(f"a rank is from 1 to {RANK_MAX}, not {rank}")
    if majority_sign not in ("total", "frequency"):
        raise MemInvalid(f"majority_sign is 'total' or 'frequency', not {majority_sign!r:.40}")
    ranks = [adapter.rank for adapter in adapters]
    if method in EQUAL_RANKS and len(set(ranks)) > 1:
        raise MemInvalid(
            f"{method} needs adapters of one rank, and these are of {', '.join(map(str, ranks))}",
            "Fuse them with `cat` (exact, of the sum of the ranks) or `svd` (of a rank that you choose).",
        )


def _plain(pair: Pair) -> Pair:
    return pair[0].detach().cpu().float(), pair[1].detach().cpu().float()


def _merged(parts: list[tuple[Pair, float, float]], method: str, density: float, rank: int, sign: Sign) -> Pair:
    """Pairs, each with its scale and weight, as one pair."""
    if method in ("cat", "svd"):
        stacked = torch.cat([pair[0] * (weight * scale) for pair, scale, weight in parts])
        beside = torch.cat([pair[1] for pair, _scale, _weight in parts], dim=1)
        return _cut((stacked, beside), rank) if method == "svd" else (stacked, beside)
    if method.endswith("_svd"):
        products = [pair[1] @ pair[0] * scale for pair, scale, _weight in parts]
        whole = _merge(products, [weight for *_rest, weight in parts], method.removesuffix("_svd"), density, sign)
        left, values, right = _decomposed(whole)
        return right[:rank], left[:, :rank] * values[:rank]
    factors = [weight * scale for _pair, scale, weight in parts]
    # The sign goes to one side only: on both, it would be none.
    of_a = [math.copysign(math.sqrt(abs(factor)), factor) for factor in factors]
    of_b = [math.sqrt(abs(factor)) for factor in factors]
    a = _merge([pair[0] for pair, *_rest in parts], of_a, method, density, sign)
    return a, _merge([pair[1] for pair, *_rest in parts], of_b, method, density, sign)


def _merge(those: list[torch.Tensor], weights: list[float], method: str, density: float, sign: Sign) -> torch.Tensor:
    from peft.utils import merge_utils

    given = torch.tensor(weights)
    with warnings.catch_warnings():
        # A density of 1 keeps everything, and is told so each time.
        warnings.simplefilter("ignore", UserWarning)
        match method:
            case "linear":
                made = merge_utils.task_arithmetic(those, given)
            case "ties":
                made = merge_utils.ties(those, given, density, sign)
            case "dare_linear":
                made = merge_utils.dare_linear(those, given, density)
            case "dare_ties":
                made = merge_utils.dare_ties(those, given, density, sign)
            case _:
                assert method == "magnitude_prune", method
                made = merge_utils.magnitude_prune(those, given, density)
    assert isinstance(made, torch.Tensor)
    return made


def _decomposed(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if not matrix.isfinite().all():
        raise MemLowQuality("the sum of the adapters cannot be decomposed: it has numbers that are not finite", SMALLER)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left, values, right


def _padded(pair: Pair, rank: int) -> Pair:
    more = rank - pair[0].shape[0]
    a, b = torch.nn.functional.pad(pair[0], (0, 0, 0, more)), torch.nn.functional.pad(pair[1], (0, more))
    return a.contiguous(), b.contiguous()


def _cut(pair: Pair, rank: int) -> Pair:
    """The best pair of this rank for the same product. With B = QR and Aᵀ = Q'R', the product's singular values are those of
    R·R'ᵀ, which is of the pair's rank each way."""
    q_a, r_a = torch.linalg.qr(pair[0].t())
    q_b, r_b = torch.linalg.qr(pair[1])
    left, values, right = _decomposed(r_b @ r_a.t())
    a, b = right[:rank] @ q_a.t(), q_b @ (left[:, :rank] * values[:rank])
    return _padded((a, b), rank)


def _norm(parts: list[tuple[torch.Tensor, torch.Tensor, float]]) -> float:
    """Of the sum of scale·B·A: through products of rank × rank only. In float64, for differences of what is nearly the same."""
    a = torch.cat([one.double() for one, _b, _scale in parts])
    b = torch.cat([one.double() * scale for _a, one, scale in parts], dim=1)
    return math.sqrt(max(0.0, float(((b.t() @ b) * (a @ a.t())).sum())))
