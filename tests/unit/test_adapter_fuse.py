"""Fusion of adapters: what peft's own `add_weighted_adapter` makes, without its dense products, and what is refused."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
peft: Any = pytest.importorskip("peft")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from tests import lm  # noqa: E402

from memos_drivers.parametric.adapter import Adapter, applied  # noqa: E402
from memos_drivers.parametric.fuse import METHODS, difference, fuse, fusing, recompress  # noqa: E402
from memos_drivers.parametric.peftdir import write_peft  # noqa: E402
from memos_syscalls.errors import MemInvalid, MemLowQuality  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
tiny, load = lm.tiny, lm.loaded
TARGETS = ("q_proj", "up_proj", "down_proj")
IDS = torch.randint(5, 500, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model(tiny: Path) -> Any:
    return load(tiny)


def adapter(model: Any, seed: int, rank: int = 4, alpha: float = 8, targets: tuple[str, ...] = TARGETS) -> Adapter:
    chance = torch.Generator().manual_seed(seed)
    return Adapter(
        {
            path: (
                torch.randn(rank, layer.in_features, generator=chance) * 0.2,
                torch.randn(layer.out_features, rank, generator=chance) * 0.2,
            )
            for path, layer in model.named_modules()
            if path.rpartition(".")[2] in targets
        },
        alpha,
    )


def product(one: Any, path: str, scale: float) -> Any:
    return scale * (one.modules[path][1] @ one.modules[path][0])


def by_peft(
    tiny: Path, tmp_path: Path, those: list[Adapter], method: str, weights: list[float], **options: Any
) -> dict[str, Any]:
    """What peft adds to each weight after its own fusion."""
    for number, one in enumerate(those):
        write_peft(one, tmp_path / str(number))
    wrapped: Any = peft.PeftModel.from_pretrained(load(tiny), str(tmp_path / "0"), adapter_name="0")
    for number in range(1, len(those)):
        wrapped.load_adapter(str(tmp_path / str(number)), adapter_name=str(number))
    torch.manual_seed(7)
    # The new adapter's first numbers are taken from the same generator, and overwritten.
    inject = wrapped.base_model.inject_adapter

    def quietly(*given: Any, **named: Any) -> None:
        with torch.random.fork_rng(devices=[]):
            inject(*given, **named)

    wrapped.base_model.inject_adapter = quietly
    wrapped.add_weighted_adapter([str(number) for number in range(len(those))], weights, "fused", method, **options)
    return {
        path.removeprefix("base_model.model."): layer.get_delta_weight("fused").detach()
        for path, layer in wrapped.named_modules()
        if hasattr(layer, "lora_A") and "fused" in layer.lora_A
    }


@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.7, -0.4], [0.5, 0.3, 0.2]], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_fusion_is_that_of_peft(tiny: Path, model: Any, tmp_path: Path, method: str, weights: list[float]) -> None:
    those = [adapter(model, seed, 4, 8 + seed) for seed in range(len(weights))]
    options: dict[str, Any] = {} if method in ("linear", "cat", "svd") else {"density": 0.6}
    theirs = by_peft(tiny, tmp_path, those, method, weights, **options)
    fused = fuse(those, method, weights, density=0.6, seed=7)
    assert fused.rank == (4 * len(weights) if method == "cat" else 4) == fused.alpha
    assert fused.modules.keys() == theirs.keys()
    for path, whole in theirs.items():
        assert (product(fused, path, 1.0) - whole).abs().max() < 1e-5 * max(1.0, float(whole.abs().max())), path
    Adapter(fused.modules, fused.alpha)


@pytest.mark.parametrize("method", ["cat", "svd", "dare_ties_svd"])
def test_adapters_of_other_ranks_and_modules_are_fused_as_by_peft(tiny: Path, model: Any, tmp_path: Path, method: str) -> None:
    those = [adapter(model, 1, 6, 5, ("q_proj", "up_proj")), adapter(model, 2, 3, 9, ("up_proj", "down_proj"))]
    options: dict[str, Any] = {"density": 0.6} if method == "dare_ties_svd" else {}
    order = [path for path, _layer in model.named_modules()]
    theirs = by_peft(tiny, tmp_path, those, method, [1.0, -0.5], **options)
    fused = fuse(those, method, [1.0, -0.5], density=0.6, seed=7)
    assert fused.rank == (9 if method == "cat" else 6) and sorted(fused.modules, key=order.index) == list(theirs)
    if method != "dare_ties_svd":  # Whose chances peft takes in the order of the model, not of the adapters.
        for path, whole in theirs.items():
            assert (product(fused, path, 1.0) - whole).abs().max() < 1e-5 * float(whole.abs().max())


@pytest.mark.parametrize("method", ["linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"])
def test_ranks_that_differ_are_refused_with_what_to_do(model: Any, method: str) -> None:
    with pytest.raises(MemInvalid, match="of 4, 5") as refused:
        fuse([adapter(model, 1), adapter(model, 2, 5)], method, [1, 1])
    assert "`cat`" in refused.value.advice and "`svd`" in refused.value.advice


def test_cat_is_the_exact_sum_and_beyond_the_cap_the_best_of_that_rank(model: Any) -> None:
    those = [adapter(model, seed, 16, 8) for seed in range(5)]
    weights = [0.5, 1.0, -1.0, 0.25, 0.1]
    with torch.inference_mode():
        with applied(model, list(zip(those, weights, strict=True))):
            wanted = model(IDS).logits
        whole = fuse(those, "cat", weights)
        assert whole.rank == 64, "more than 64 inputs or outputs can use is left out"
        with applied(model, [(Adapter(whole.modules, whole.alpha), 1.0)]):
            assert (model(IDS).logits - wanted).abs().max() < 1e-3
    capped, best = fuse(those, "cat", weights, rank=10), fuse(those, "svd", weights, rank=10)
    assert capped.rank == best.rank == capped.alpha == 10
    for path in capped.modules:
        assert torch.allclose(product(capped, path, 1), product(best, path, 1), atol=1e-4)
        dense = sum(weight * product(one, path, one.scale) for one, weight in zip(those, weights, strict=True))
        left = torch.linalg.svdvals(dense)[10:].square().sum().sqrt()
        assert torch.allclose(torch.linalg.norm(dense - product(capped, path, 1)), left, rtol=1e-3)


def test_recompression_keeps_what_fits_and_pads_what_is_less(model: Any) -> None:
    one = adapter(model, 1, 4)
    for rank in (4, 9):
        made = recompress(one.modules, rank)
        for path, (a, b) in made.items():
            assert a.shape[0] == b.shape[1] == rank and torch.allclose(b @ a, product(one, path, 1), atol=1e-5)


def test_the_same_seed_is_the_same_adapter_whoever_else_takes_chances(model: Any) -> None:
    those = [adapter(model, 1), adapter(model, 2)]
    before = torch.get_rng_state()
    first = fuse(those, "dare_linear", [1, 1], seed=3)
    assert torch.equal(torch.get_rng_state(), before), "nobody else's chances are changed"
    steps = fusing(those, "dare_linear", [1, 1], seed=3)
    again: Any = None
    try:
        while True:
            next(steps)
            torch.rand(5)
    except StopIteration as end:
        again = end.value
    other = fuse(those, "dare_linear", [1, 1], seed=4)
    digest = Adapter(first.modules, first.alpha).digest
    assert Adapter(again.modules, again.alpha).digest == digest != Adapter(other.modules, other.alpha).digest


def test_what_makes_no_sense_is_refused(model: Any) -> None:
    one, two = adapter(model, 1), adapter(model, 2)
    path = next(iter(one.modules))
    other = Adapter({path: (torch.ones(4, 32), torch.ones(64, 4))}, 4)
    wrong: list[tuple[list[Adapter], str, list[float], dict[str, Any]]] = [
        ([one, two], "slerp", [1, 1], {}), ([], "cat", [], {}), ([one, two], "cat", [1], {}), ([one] * 65, "cat", [1] * 65, {}),
        ([one, two], "cat", [1, float("nan")], {}), ([one, two], "cat", [1, float("inf")], {}),
        ([one, two], "cat", [1, -1e5], {}),
        ([one, other], "cat", [1, 1], {}),
        ([one, two], "ties", [1, 1], {"density": 0}), ([one, two], "ties", [1, 1], {"density": 1.1}),
        ([one, two], "ties", [1, 1], {"density": float("nan")}), ([one, two], "svd", [1, 1], {"rank": 0}),
        ([one, two], "svd", [1, 1], {"rank": 257}), ([one, two], "ties", [1, 1], {"majority_sign": "most"}),
    ]  # fmt: skip
    for those, method, weights, options in wrong:
        with pytest.raises(MemInvalid):
            fuse(those, method, weights, **options)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("number", [3e38, float("nan"), float("inf")])
def test_a_result_that_is_not_finite_is_not_one(model: Any, method: str, number: float) -> None:
    one, two = adapter(model, 1, alpha=1e6), adapter(model, 2, alpha=1e6)
    for a, _b in two.modules.values():
        a[:, :] = number
    with pytest.raises(MemLowQuality, match="not finite"):
        fuse([one, two], method, [1e4, 1e4], density=0.9)


def test_density_of_one_keeps_all_and_weight_of_none_nothing(model: Any) -> None:
    one, two = adapter(model, 1), adapter(model, 2)
    full, linear = fuse([one, two], "dare_linear", [1, 1], density=1), fuse([one, two], "linear", [1, 1])
    none = fuse([one, two], "svd", [0, 0])
    for path in linear.modules:
        assert torch.equal(full.modules[path][0], linear.modules[path][0])
        assert product(none, path, 1).abs().max() == 0


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(1, 24), st.integers(1, 24), st.floats(0.01, 100), st.floats(0.01, 100),
    st.integers(0, 9),
)  # fmt: skip
def test_norms_are_those_of_the_products(
    first: int, second: int, inputs: int, outputs: int, one: float, two: float, seed: int
) -> None:
    chance = torch.Generator().manual_seed(seed)
    most = min(inputs, outputs)
    a, b = (
        Adapter({"x": (torch.randn(rank, inputs, generator=chance), torch.randn(outputs, rank, generator=chance))}, alpha)
        for rank, alpha in ((min(first, most), one), (min(second, most), two))
    )
    (found,) = difference(a, b)
    products = product(a, "x", a.scale).double(), product(b, "x", b.scale).double()
    for got, wanted in zip(found[1:], (*products, products[0] - products[1]), strict=True):
        assert got == pytest.approx(float(torch.linalg.norm(wanted)), rel=1e-4, abs=1e-5 * max(found[1], found[2]))


def test_an_adapter_is_no_distance_from_itself_and_a_module_of_one_counts_whole(model: Any) -> None:
    one, part = adapter(model, 1), adapter(model, 1, targets=("q_proj",))
    assert all(found.between == 0 < found.a == found.b for found in difference(one, adapter(model, 1)))
    found = {entry.module: entry for entry in difference(one, part)}
    assert found.keys() == one.modules.keys()
    assert all((entry.b == 0 and entry.between == entry.a) for path, entry in found.items() if path not in part.modules)
    with pytest.raises(MemInvalid, match="other sizes"):
        difference(one, Adapter({next(iter(one.modules)): (torch.ones(4, 32), torch.ones(64, 4))}, 4))


def test_twenty_megabytes_are_fused_in_a_second() -> None:
    """Far from the bound even on a machine that does other things: the dense way takes a minute."""
    shapes = {f"model.layers.{n}.mlp.{name}": size for n in range(30) for name, size in
              (("gate_proj", (576, 1536)), ("up_proj", (576, 1536)), ("down_proj", (1536, 576)))}  # fmt: skip
    those = [
        Adapter({path: (torch.randn(26, inputs), torch.randn(outputs, 26)) for path, (inputs, outputs) in shapes.items()}, 26)
        for _number in range(2)
    ]
    assert those[0].bytes > 19_000_000
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for method in ("linear", "cat", "svd"):
            begun = time.perf_counter()
            fuse(those, method, [1, 1])
            assert time.perf_counter() - begun < 5, method
    finally:
        torch.set_num_threads(threads)
