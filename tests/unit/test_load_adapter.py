"""`memos_client.hf_adapter`: a stored adapter works in the caller's own model, or nothing there is changed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
peft: Any = pytest.importorskip("peft")

from tests import lm  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

from memos_client.hf import adapter_payload, load_adapter, save_adapter  # noqa: E402
from memos_drivers.lm.fingerprint import adapters, fingerprint  # noqa: E402
from memos_drivers.parametric.adapter import Adapter, applied, pack, unpack  # noqa: E402
from memos_syscalls import messages as m  # noqa: E402
from memos_syscalls.errors import MemError, MemInvalid, MemModel, MemStale  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
tiny, load = lm.tiny, lm.loaded
CUBE = "lora-cube"
TARGETS = ("q_proj", "up_proj", "down_proj")
IDS = torch.randint(5, 500, (2, 12), generator=torch.Generator().manual_seed(0))


class Shelf:
    """A kernel of adapters, by cube, over payloads in sealed memory."""

    def __init__(self) -> None:
        self.fds: dict[str, int] = {}
        self.maps: list[int] = []
        self.stale, self.form = False, "parametric"

    def put(self, cube: str, fd: int) -> None:
        self.fds[cube] = fd

    def mem_stat(self, cube_id: str, *, version: int | None = None) -> m.MemStatReply:
        header = {
            "cube_id": cube_id, "version": version or 3, "form": self.form, "namespace": "a", "state": "generated",
            "owner": "u", "created_at": 1, "updated_at": 1, "offset": 1, "actor": "u", "bytes": 1, "stale": self.stale,
        }  # fmt: skip
        return m.MemStatReply.model_validate({"header": header})

    def mem_map(self, cube_id: str, *, version: int | None = None) -> m.MemMapReply:
        fd = os.dup(self.fds[cube_id])
        self.maps.append(fd)
        told = {"version": version or 3, "form": self.form, "offset": 1, "bytes": os.fstat(fd).st_size, "fd": fd}
        return m.MemMapReply.model_validate({"cube_id": cube_id, "tier": "host", **told})


@pytest.fixture
def model(tiny: Path) -> Any:
    return load(tiny)


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny)


def modules(model: Any, seed: int, rank: int = 4, targets: tuple[str, ...] = TARGETS) -> Any:
    chance = torch.Generator().manual_seed(seed)
    return {
        path: (
            torch.randn(rank, layer.in_features, generator=chance) * 0.2,
            torch.randn(layer.out_features, rank, generator=chance) * 0.2,
        )
        for path, layer in model.named_modules()
        if path.rpartition(".")[2] in targets and isinstance(layer, torch.nn.Linear)
    }


@pytest.fixture
def shelf(tiny: Path, tokenizer: Any) -> Iterator[Shelf]:
    made, plain = Shelf(), load(tiny)
    base = fingerprint(plain, tokenizer)
    made.put(CUBE, pack(modules(plain, 1), 8, {"base": base}).fd)
    made.put("other", pack(modules(plain, 2, 3, ("up_proj", "v_proj")), 5, {"base": ""}).fd)
    data = {cube: os.pread(fd, os.fstat(fd).st_size, 0) for cube, fd in made.fds.items()}
    yield made
    for cube, fd in made.fds.items():
        assert cube not in data or os.pread(fd, os.fstat(fd).st_size, 0) == data[cube], "what is stored was written to"
        os.close(fd)


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model(IDS).logits


def wanted(tiny: Path, *those: Adapter) -> Any:
    plain = load(tiny)
    with torch.no_grad(), applied(plain, [(one, 1.0) for one in those]):
        return plain(IDS).logits


def test_a_plain_model_computes_as_the_driver_host_does(tiny: Path, model: Any, tokenizer: Any, shelf: Shelf) -> None:
    plain, base = logits(model), fingerprint(model, tokenizer)
    adapter, other = unpack(shelf.fds[CUBE]), unpack(shelf.fds["other"])
    name = load_adapter(shelf, CUBE, model=model, tokenizer=tokenizer)
    assert name == f"memos_{CUBE}_3"
    assert (logits(model) - wanted(tiny, adapter)).abs().max() < 1e-5
    assert adapters(model) == (adapter.digest,) and fingerprint(model, tokenizer) == base
    second = load_adapter(shelf, "other", model=model, tokenizer=tokenizer, name="second")
    assert (logits(model) - wanted(tiny, adapter, other)).abs().max() < 1e-4, "they add up"
    assert adapters(model) == tuple(sorted((adapter.digest, other.digest)))
    model.set_adapter(second)
    assert (logits(model) - wanted(tiny, other)).abs().max() < 1e-5
    model.disable_adapters()
    assert torch.equal(logits(model), plain)
    model.enable_adapters()
    model.delete_adapter(second)
    model.set_adapter(name)
    assert (logits(model) - wanted(tiny, adapter)).abs().max() < 1e-5


def test_a_model_in_peft_keeps_what_it_has(tiny: Path, model: Any, tokenizer: Any, shelf: Shelf) -> None:
    torch.manual_seed(3)
    config = peft.LoraConfig(r=2, target_modules=["up_proj", "o_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    wrapped: Any = peft.get_peft_model(model, config).eval()
    own = {name: one.detach().clone() for name, one in wrapped.named_parameters()}
    trained = {name for name, one in wrapped.named_parameters() if one.requires_grad}
    before = logits(wrapped)
    adapter = unpack(shelf.fds[CUBE])
    name = load_adapter(shelf, CUBE, model=wrapped, tokenizer=tokenizer)
    with applied(wrapped.get_base_model(), []):
        both = logits(wrapped)
    assert set(adapters(wrapped)) > {adapter.digest} and len(adapters(wrapped)) == 2
    found = dict(wrapped.named_parameters())
    assert all(torch.equal(found[path], one) for path, one in own.items() if path in found)
    assert {path for path, one in found.items() if one.requires_grad} == trained
    wrapped.set_adapter(name)
    assert (logits(wrapped) - wanted(tiny, adapter)).abs().max() < 1e-5
    wrapped.set_adapter("default")
    assert (logits(wrapped) - before).abs().max() < 1e-6 < (both - before).abs().max()


def test_the_base_can_go_on_being_trained_and_the_adapter_is_frozen(model: Any, tokenizer: Any, shelf: Shelf) -> None:
    model.model.norm.weight.requires_grad_(False)
    load_adapter(shelf, CUBE, model=model, tokenizer=tokenizer)
    for path, one in model.named_parameters():
        assert one.requires_grad == ("lora_" not in path and path != "model.norm.weight"), path


def closed(fds: list[int]) -> bool:
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    return True


def test_tensors_are_those_of_the_payload(model: Any, tokenizer: Any, shelf: Shelf) -> None:
    load_adapter(shelf, CUBE, model=model, tokenizer=tokenizer)
    assert closed(shelf.maps)
    places = sorted(one.data_ptr() for path, one in model.named_parameters() if "lora_" in path)
    assert places[-1] - places[0] < os.fstat(shelf.fds[CUBE]).st_size, "in one mapping"
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.lora_A[f"memos_{CUBE}_3"].weight.zero_()


def test_half_precision_works_in_a_half_precision_model(tiny: Path, tokenizer: Any, shelf: Shelf) -> None:
    small = load(tiny, dtype=torch.bfloat16)
    halves = {path: (a.bfloat16(), b.bfloat16()) for path, (a, b) in modules(small, 4).items()}
    shelf.put("half", pack(halves, 8, {"base": fingerprint(small, tokenizer)}).fd)
    load_adapter(shelf, "half", model=small, tokenizer=tokenizer)
    adapter = unpack(shelf.fds["half"])
    assert adapters(small) == (adapter.digest,)
    again = load(tiny, dtype=torch.bfloat16)
    with torch.no_grad(), applied(again, [(adapter, 1.0)]):
        assert (again(IDS).logits.float() - logits(small).float()).abs().mean() < 0.1


def test_export_and_import_are_the_same_adapter(tiny: Path, tokenizer: Any, shelf: Shelf, tmp_path: Path) -> None:
    save_adapter(shelf, CUBE, tmp_path, base_model_name="tiny")
    outside: Any = peft.PeftModel.from_pretrained(load(tiny), str(tmp_path))
    assert adapters(outside) == (unpack(shelf.fds[CUBE]).digest,)
    shelf.put("back", adapter_payload(tmp_path, base_fingerprint="sha256:it"))
    back = unpack(shelf.fds["back"])
    assert back.digest == unpack(shelf.fds[CUBE]).digest and back.base == "sha256:it"


# -- what is refused ---------------------------------------------------------------------------------------------------


def refused(
    shelf: Shelf, kind: type[MemError], words: str, model: Any, tokenizer: Any, cube: str = CUBE, **options: Any
) -> None:
    before = {name: type(module) for name, module in model.named_modules()}
    with pytest.raises(kind, match=words):
        load_adapter(shelf, cube, model=model, tokenizer=tokenizer, **options)
    assert closed(shelf.maps[-1:])
    assert {name: type(module) for name, module in model.named_modules()} == before


def test_what_is_stale_is_refused_unless_it_is_wanted(model: Any, tokenizer: Any, shelf: Shelf, tmp_path: Path) -> None:
    shelf.stale = True
    refused(shelf, MemStale, "older than its sources", model, tokenizer)
    with pytest.raises(MemStale):
        save_adapter(shelf, CUBE, tmp_path)
    save_adapter(shelf, CUBE, tmp_path, version=2)
    assert load_adapter(shelf, CUBE, model=model, tokenizer=tokenizer, version=2) == f"memos_{CUBE}_2"
    load_adapter(shelf, CUBE, model=model, tokenizer=tokenizer, allow_stale=True)


def test_what_does_not_fit_is_refused(tmp_path: Path, model: Any, tokenizer: Any, shelf: Shelf) -> None:
    refused(shelf, MemModel, "another model", load(lm.tiny_model(tmp_path / "o", seed=9)), tokenizer)
    other = AutoTokenizer.from_pretrained(lm.tiny_model(tmp_path / "t", template="{{ messages[0]['content'] }}"))
    refused(shelf, MemModel, "another model", model, other)
    refused(shelf, MemModel, "outputs", load(lm.tiny_model(tmp_path / "w", intermediate_size=160)), tokenizer, "other")
    shelf.put("deep", pack({"model.layers.5.mlp.up_proj": (torch.ones(2, 64), torch.ones(128, 2))}, 2).fd)
    refused(shelf, MemModel, "layers.5", model, tokenizer, "deep")
    shelf.put("bytes", os.memfd_create("x"))
    os.write(shelf.fds["bytes"], b"\x00" * 64)
    refused(shelf, MemInvalid, "safetensors", model, tokenizer, "bytes")
    shelf.form = "activation"
    refused(shelf, MemInvalid, "not an adapter", model, tokenizer)


def test_a_merged_model_is_another_model(model: Any, tokenizer: Any, shelf: Shelf) -> None:
    wrapped: Any = peft.get_peft_model(model, peft.LoraConfig(target_modules=["up_proj"], init_lora_weights=False))
    wrapped.merge_adapter()
    refused(shelf, MemModel, "another model", wrapped, tokenizer)


def test_names_are_checked_and_used_once(model: Any, tokenizer: Any, shelf: Shelf) -> None:
    for name in ("a.b", "", " ", "lora", "x" * 101, "é"):
        if name:
            refused(shelf, MemInvalid, "no name", model, tokenizer, name=name)
    load_adapter(shelf, CUBE, model=model, tokenizer=tokenizer, name="a-1_B")
    refused(shelf, MemInvalid, "already", model, tokenizer, name="a-1_B")


def test_a_model_in_another_kind_of_peft_is_refused(model: Any, tokenizer: Any, shelf: Shelf) -> None:
    config = peft.IA3Config(target_modules=["up_proj"], feedforward_modules=["up_proj"], task_type="CAUSAL_LM")
    refused(shelf, MemModel, "does not go with LoRA", peft.get_peft_model(model, config), tokenizer)
