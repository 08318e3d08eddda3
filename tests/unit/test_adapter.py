"""Adapters: a model under them computes what peft computes, and outside it is the model that it was, bit by bit."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests import lm  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from memos_drivers.parametric.adapter import Adapter, applied, pack, refusal, unpack  # noqa: E402
from memos_syscalls.errors import MemBusy, MemError, MemInvalid, MemModel  # noqa: E402

tiny = lm.tiny
TARGETS = ("q_proj", "k_proj", "gate_proj", "up_proj", "down_proj")
IDS = torch.randint(5, 500, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model(tiny: Path) -> Any:
    made: Any = AutoModelForCausalLM.from_pretrained(tiny)
    return made.eval()


def modules(model: Any, seed: int, rank: int = 4, targets: tuple[str, ...] = TARGETS, layers: tuple[int, ...] = (0, 1)) -> Any:
    """Random pairs for these layers, in the order of the model."""
    chance = torch.Generator().manual_seed(seed)
    return {
        path: (
            torch.randn(rank, layer.in_features, generator=chance) * 0.2,
            torch.randn(layer.out_features, rank, generator=chance) * 0.2,
        )
        for path, layer in model.named_modules()
        if path.rpartition(".")[2] in targets and int(path.split(".")[2]) in layers
    }


def logits(model: Any, *adapters: tuple[Adapter, float]) -> Any:
    with torch.inference_mode(), applied(model, adapters):
        return model(IDS).logits


def dense(model: Any, *adapters: tuple[Adapter, float]) -> Any:
    """The same with the products added to copies of the weights."""
    changed = dict(model.named_parameters())
    for adapter, weight in adapters:
        for path, (a, b) in adapter.modules.items():
            changed[f"{path}.weight"] = changed[f"{path}.weight"] + weight * adapter.scale * (b.float() @ a.float())
    with torch.no_grad():
        return torch.func.functional_call(model, changed, (IDS,)).logits


def hooks(model: Any) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


# -- at work -----------------------------------------------------------------------------------------------------------


def test_adapters_add_the_weighted_sum_of_their_products(model: Any) -> None:
    one, two, three = (
        Adapter(modules(model, 1), 8), Adapter(modules(model, 2, 7, ("q_proj", "up_proj")), 3.5),
        Adapter(modules(model, 3, 2, ("down_proj",), (1,)), 2),
    )  # fmt: skip
    plain = logits(model)
    for those in ([(one, 1.0)], [(one, -0.5)], [(one, 0.7), (two, 0.3), (three, -1.0)], [(two, 1.0), (two, 1.0)]):
        for _again in range(2):
            assert (logits(model, *those) - plain).abs().max() > 0.1
            assert (logits(model, *those) - dense(model, *those)).abs().max() < 1e-4
    other = logits(model, (one, 0.3), (two, 0.7), (three, -1.0))
    assert (other - dense(model, (one, 0.3), (two, 0.7), (three, -1.0))).abs().max() < 1e-4, "not the stack of other weights"


def test_outside_the_model_gives_the_same_bits(model: Any) -> None:
    with torch.inference_mode():
        plain = model(IDS).logits
        logits(model, (Adapter(modules(model, 1), 8), 1.0))
        assert torch.equal(model(IDS).logits, plain) and torch.equal(logits(model), plain)
    assert hooks(model) == 0


def test_everything_is_restored_when_the_body_raises_or_its_generator_is_closed(model: Any) -> None:
    adapter = Adapter(modules(model, 1), 8)
    with pytest.raises(ZeroDivisionError), applied(model, [(adapter, 1.0)]):
        assert hooks(model) == len(adapter.modules)
        raise ZeroDivisionError
    assert hooks(model) == 0

    def steps() -> Generator[None, None, None]:
        with applied(model, [(adapter, 1.0)]):
            yield

    running = steps()
    next(running)
    assert hooks(model) == len(adapter.modules)
    running.close()
    assert hooks(model) == 0
    lost = Adapter({**adapter.modules, "model.layers.9.mlp.up_proj": adapter.modules["model.layers.0.mlp.up_proj"]}, 8)
    with pytest.raises(MemModel, match=r"layers\.9"), applied(model, [(lost, 1.0)]):
        pass
    assert hooks(model) == 0
    logits(model, (adapter, 1.0))


def test_a_second_use_inside_the_first_is_refused(model: Any) -> None:
    adapter = Adapter(modules(model, 1), 8)
    with applied(model, [(adapter, 1.0)]):
        for inner in ([(adapter, 1.0)], []):
            with pytest.raises(MemBusy), applied(model, inner):
                pass
        assert hooks(model) == len(adapter.modules)
    assert hooks(model) == 0


def test_what_is_trained_gets_its_gradients_and_the_base_none(model: Any) -> None:
    pairs = {path: (a.requires_grad_(), b.requires_grad_()) for path, (a, b) in modules(model, 1).items()}
    adapter = Adapter(pairs, 8)
    wanted = {
        path: (a.detach().clone().requires_grad_(), b.detach().clone().requires_grad_()) for path, (a, b) in pairs.items()
    }
    model.requires_grad_(False)
    try:
        with applied(model, [(adapter, 0.5)]):
            model(IDS).logits.square().mean().backward()
        changed = dict(model.named_parameters())
        for path, (a, b) in wanted.items():
            changed[f"{path}.weight"] = changed[f"{path}.weight"] + 0.5 * adapter.scale * (b @ a)
        torch.func.functional_call(model, changed, (IDS,)).logits.square().mean().backward()
        for path, pair in pairs.items():
            for got, want in zip(pair, wanted[path], strict=True):
                assert got.grad is not None and want.grad is not None
                assert torch.allclose(got.grad, want.grad, rtol=1e-3, atol=1e-4 * float(want.grad.abs().max()))
        assert all(one.grad is None for one in model.parameters())
        before = logits(model, (adapter, 1.0))
        digest = adapter.digest
        with torch.no_grad():
            next(iter(pairs.values()))[1].add_(1.0)
        assert not torch.equal(logits(model, (adapter, 1.0)), before), "a step of training is seen at once"
        assert adapter.digest != digest
    finally:
        model.requires_grad_(True)


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
def test_a_model_of_another_dtype_computes_in_its_own(tiny: Path, model: Any, stored: str) -> None:
    small: Any = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.bfloat16)
    small.eval()
    of = {path: (a.to(getattr(torch, stored)), b.to(getattr(torch, stored))) for path, (a, b) in modules(model, 1).items()}
    adapter = Adapter(of, 4)
    for those in ([(adapter, 1.0)], [(adapter, 0.5), (adapter, 0.5)]):
        got = logits(small, *those)
        assert got.dtype == torch.bfloat16
        assert (got.float() - dense(model, (adapter, 1.0))).abs().mean() < 0.15
    assert (logits(model, (adapter, 1.0)) - dense(model, (adapter, 1.0))).abs().max() < 1e-4
    assert len(adapter.ready) == 2, "few stacks are kept"


# -- as bytes ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def closing() -> Iterator[Callable[[int], int]]:
    fds: list[int] = []

    def keep(fd: int) -> int:
        fds.append(fd)
        return fd

    yield keep
    for fd in fds:
        os.close(fd)


def test_a_payload_reads_back_as_it_was(model: Any, closing: Callable[[int], int]) -> None:
    given = modules(model, 1)
    facts = {"facts": [{"subject": "Anna’s dog"}], "probes": []}
    packed = pack(given, 8, {"base": "sha256:1", "seed": 7}, facts)
    fd = closing(packed.fd)
    assert os.fstat(fd).st_size == packed.bytes and fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE
    adapter = unpack(fd)
    assert adapter.digest == packed.digest == Adapter(given, 8).digest
    assert (adapter.base, adapter.rank, adapter.alpha, adapter.scale, adapter.facts) == ("sha256:1", 4, 8.0, 2.0, facts)
    assert adapter.descriptor["layers"] == [0, 1] and adapter.descriptor["targets"] == sorted(TARGETS)
    assert adapter.descriptor["seed"] == 7 and adapter.descriptor["modules"] == len(given)
    assert list(adapter.modules) == sorted(given), "in one order, whoever made it"
    for path, pair in given.items():
        assert all(torch.equal(one, two) for one, two in zip(pair, adapter.modules[path], strict=True))
    again = pack(dict(reversed(given.items())), 8, {"base": "sha256:1", "seed": 7}, facts)
    assert os.pread(closing(again.fd), again.bytes, 0) == os.pread(fd, packed.bytes, 0), "the same adapter is the same bytes"


def test_tensors_lie_in_the_payload_and_writing_to_them_does_not_reach_it(model: Any, closing: Callable[[int], int]) -> None:
    packed = pack(modules(model, 1), 8)
    before = os.pread(closing(packed.fd), packed.bytes, 0)
    adapter = unpack(packed.fd)
    places = sorted((one.data_ptr(), one.nbytes) for pair in adapter.modules.values() for one in pair)
    assert places[-1][0] - places[0][0] < packed.bytes, "in one mapping"
    for pair in adapter.modules.values():
        pair[0].zero_()
    assert os.pread(packed.fd, packed.bytes, 0) == before
    assert unpack(packed.fd).digest == packed.digest


def test_the_digest_is_of_content_scale_and_place(model: Any) -> None:
    given = modules(model, 1)
    digest = Adapter(given, 8).digest
    assert Adapter(dict(reversed(given.items())), 8.0).digest == digest
    path, (a, b) = next(iter(given.items()))
    assert Adapter({**given, path: (a, b + 1e-6)}, 8).digest != digest
    assert Adapter(given, 9).digest != digest
    moved = {name.replace("layers.0", "layers.7"): pair for name, pair in given.items()}
    assert Adapter(moved, 8).digest != digest
    halved = {path: (a.bfloat16(), b.bfloat16()) for path, (a, b) in given.items()}
    whole = {path: (a.float(), b.float()) for path, (a, b) in halved.items()}
    assert Adapter(halved, 8).digest == Adapter(whole, 8).digest, "of the numbers, as peft keeps them"


# -- what does not fit -------------------------------------------------------------------------------------------------

BASE = "sha256:base"
PATH = "model.layers.0.mlp.up_proj"


def why(model: Any, given: Any, base: str = BASE) -> MemError | None:
    return refusal(Adapter(given, 4, {"base": base}), model, BASE)


def test_an_adapter_that_fits_is_not_refused(model: Any) -> None:
    assert why(model, modules(model, 1)) is None
    assert why(model, modules(model, 1), "") is None, "nobody knows what it was made for, and it fits"


@pytest.mark.parametrize(("path", "into", "out", "words"), [
    ("model.layers.2.mlp.up_proj", 64, 128, "no module 'model.layers.2.mlp.up_proj'"),
    ("model.layers.0.mlp.no_proj", 64, 128, "no module"),
    ("base_model.layers.0.mlp.up_proj", 64, 128, "no module"),
    ("model.layers.0.mlp.up_proj.weight", 64, 128, "no module"),
    (" ", 64, 128, "no module"),
    ("..", 64, 128, "no module"),
    (PATH, 128, 64, "is for 128 inputs and 64 outputs; the model's has 64 and 128"),
    (PATH, 63, 128, "63 inputs"),
    ("model.layers.0.mlp", 64, 128, "a LlamaMLP and no linear layer"),
    ("model.norm", 64, 64, "no linear layer"),
    ("lm_head", 64, 512, "embedding"),
    ("model.embed_tokens", 512, 64, "embedding"),
])  # fmt: skip
def test_an_adapter_for_modules_that_the_model_has_not_is_refused(
    model: Any, path: str, into: int, out: int, words: str
) -> None:
    error = why(model, {path: (torch.ones(4, into), torch.ones(out, 4))})
    assert isinstance(error, MemModel) and words in error.detail


def test_an_adapter_of_another_model_is_refused(model: Any) -> None:
    error = why(model, modules(model, 1), "sha256:other")
    assert isinstance(error, MemModel) and "another model: sha256:other" in error.detail


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_numbers_that_are_not_finite_are_refused(model: Any, number: float, dtype: str) -> None:
    given = {path: tuple(one.to(getattr(torch, dtype)) for one in pair) for path, pair in modules(model, 1).items()}
    given[PATH][1][3, 2] = number
    error = why(model, given)
    assert isinstance(error, MemInvalid) and f"{PATH}.lora_B" in error.detail
    with pytest.raises(MemInvalid, match="not finite"):
        pack(given, 4)


ONES = torch.ones


@pytest.mark.parametrize(("given", "words"), [
    ({}, "1 to 16384 modules"),
    ({"x": (ONES(4, 8), ONES(8, 3))}, "not [rank, in]"),
    ({"x": (ONES(0, 8), ONES(8, 0))}, "not [rank, in]"),
    ({"x": (ONES(4, 0), ONES(8, 4))}, "not [rank, in]"),
    ({"x": (ONES(4), ONES(8, 4))}, "not [rank, in]"),
    ({"x": (ONES(1, 4, 8), ONES(8, 4))}, "not [rank, in]"),
    ({"x": (ONES(257, 999), ONES(999, 257))}, "the limit is 256"),
    ({"x": (ONES(9, 8), ONES(8, 9))}, "at most 8 makes sense"),
    ({"x": (ONES(4, 8), ONES(8, 4)), "y": (ONES(2, 8), ONES(8, 2))}, "different ranks: [2, 4]"),
    ({"x": (ONES(4, 8).double(), ONES(8, 4).double())}, "float64"),
    ({"x": (ONES(4, 8), ONES(8, 4).half())}, "dtype"),
])  # fmt: skip
def test_an_adapter_that_contradicts_itself_is_refused(given: Any, words: str) -> None:
    with pytest.raises(MemInvalid) as refused:
        Adapter(given, 4)
    assert words in refused.value.detail


@pytest.mark.parametrize("alpha", [0, -1.0, float("nan"), float("inf"), 1e7, True, "8", None, 10**400])
def test_an_alpha_that_is_no_measure_is_refused(alpha: Any) -> None:
    with pytest.raises(MemInvalid, match="alpha"):
        Adapter({"x": (ONES(4, 8), ONES(8, 4))}, alpha)


def test_facts_that_are_no_json_do_not_begin_a_payload() -> None:
    with pytest.raises(MemInvalid, match="facts"):
        pack({"x": (ONES(4, 8), ONES(8, 4))}, 4, {}, {"facts": "x" * (16 * 1024 * 1024)})
    fd = pack({"x": (ONES(4, 8), ONES(8, 4))}, 4, {"note": "é"}).fd
    try:
        assert json.dumps(unpack(fd).descriptor["note"]) == '"\\u00e9"'
    finally:
        os.close(fd)
