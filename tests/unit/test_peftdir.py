"""peft directories: what peft loads from them computes what `applied` does, and is the adapter of the same digest."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
peft: Any = pytest.importorskip("peft")

from safetensors.torch import load_file, save_file  # noqa: E402
from tests import lm  # noqa: E402

from memos_drivers.lm.fingerprint import adapters  # noqa: E402
from memos_drivers.parametric.adapter import Adapter, applied  # noqa: E402
from memos_drivers.parametric.peftdir import CONFIG, WEIGHTS, read_peft, write_peft  # noqa: E402
from memos_syscalls.errors import MemInvalid, MemNotFound  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
tiny, load = lm.tiny, lm.loaded
IDS = torch.randint(5, 500, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model(tiny: Path) -> Any:
    return load(tiny)


def logits(model: Any, *those: Adapter) -> Any:
    with torch.no_grad(), applied(model, [(one, 1.0) for one in those]):
        return model(IDS).logits


def trained(tiny: Path, directory: Path, **config: Any) -> Any:
    """What peft makes of a configuration, with random numbers, saved by peft."""
    torch.manual_seed(5)
    made = peft.get_peft_model(load(tiny), peft.LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM", **config))
    made.eval().save_pretrained(directory)
    return made


MADE: list[dict[str, Any]] = [
    {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
    {"r": 8, "lora_alpha": 3, "target_modules": "all-linear", "lora_dropout": 0.3},
    {"r": 4, "lora_alpha": 16, "target_modules": ["up_proj"], "layers_to_transform": [1]},
    {"r": 6, "lora_alpha": 7, "target_modules": ["up_proj", "k_proj"], "use_rslora": True},
    {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"],
     "rank_pattern": {"up_proj": 7, "layers.1.self_attn.q_proj": 2}},
    {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"], "alpha_pattern": {"mlp.up_proj": 3}},
    {
        "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"], "use_rslora": True,
        "alpha_pattern": {"model.layers.0.mlp.up_proj": 2.5}, "rank_pattern": {"q_proj": 3},
    },
]  # fmt: skip


@pytest.mark.parametrize("config", MADE, ids=lambda config: "+".join(sorted(config)))
def test_what_peft_saved_computes_here_what_it_computes_there(
    tiny: Path, model: Any, tmp_path: Path, config: dict[str, Any]
) -> None:
    there = trained(tiny, tmp_path / "theirs", **config)
    read = read_peft(tmp_path / "theirs")
    adapter = Adapter(read.modules, read.alpha)
    with torch.no_grad():
        assert (logits(model, adapter) - there(IDS).logits).abs().max() < 1e-4
    if "rank_pattern" not in config and "alpha_pattern" not in config:
        assert adapters(there) == (adapter.digest,), "the same adapter to a cache, whoever loads it"
    write_peft(adapter, tmp_path / "ours", "some/model")
    back: Any = peft.PeftModel.from_pretrained(load(tiny), str(tmp_path / "ours")).eval()
    with torch.no_grad():
        assert (back(IDS).logits - logits(model, adapter)).abs().max() < 1e-5
    assert adapters(back) == (adapter.digest,)
    again = read_peft(tmp_path / "ours")
    assert Adapter(again.modules, again.alpha).digest == adapter.digest and again.rank == read.rank
    assert again.config["base_model_name_or_path"] == "some/model"


def test_half_precision_is_kept_and_is_the_same_adapter(tiny: Path, model: Any, tmp_path: Path) -> None:
    there = trained(tiny, tmp_path, r=4, target_modules=["up_proj"])
    save_file({name: one.half() for name, one in load_file(tmp_path / WEIGHTS).items()}, tmp_path / WEIGHTS)
    read = read_peft(tmp_path)
    assert {one.dtype for pair in read.modules.values() for one in pair} == {torch.float16}
    adapter = Adapter(read.modules, read.alpha)
    back = peft.PeftModel.from_pretrained(load(tiny), str(tmp_path))
    assert adapters(back) == (adapter.digest,) != adapters(there)
    write_peft(adapter, tmp_path / "again")
    assert Adapter(*read_peft(tmp_path / "again")[:2]).digest == adapter.digest


def test_a_directory_is_replaced_whole(model: Any, tmp_path: Path) -> None:
    one = Adapter({"x.y": (torch.ones(2, 4), torch.ones(4, 2))}, 4)
    other = Adapter({"x.z": (torch.ones(1, 4), torch.ones(4, 1))}, 0.3)
    write_peft(one, tmp_path / "deep" / "er")
    write_peft(other, tmp_path / "deep" / "er")
    assert sorted(os.listdir(tmp_path / "deep" / "er")) == [CONFIG, WEIGHTS]
    assert Adapter(*read_peft(tmp_path / "deep" / "er")[:2]).digest == other.digest


# -- what is refused ---------------------------------------------------------------------------------------------------


def directory(place: Path, tensors: dict[str, Any] | None = None, **config: Any) -> Path:
    given = {"x.lora_A": torch.ones(2, 8), "x.lora_B": torch.ones(8, 2)} if tensors is None else tensors
    place.mkdir(exist_ok=True)
    save_file({f"base_model.model.{name}.weight": one for name, one in given.items()}, place / WEIGHTS)
    told = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["x"], **config}
    (place / CONFIG).write_text(json.dumps(told))
    return place


def test_the_plain_one_is_read(tmp_path: Path) -> None:
    read = read_peft(directory(tmp_path))
    assert (list(read.modules), read.alpha, read.rank) == (["x"], 4.0, 2)


@pytest.mark.parametrize("config", [
    {"use_dora": True}, {"bias": "all"}, {"bias": "lora_only"}, {"bias": None}, {"modules_to_save": ["lm_head"]},
    {"fan_in_fan_out": True}, {"lora_bias": True}, {"layer_replication": [[0, 1]]}, {"trainable_token_indices": [3]},
    {"target_parameters": ["w"]}, {"use_qalora": True}, {"alora_invocation_tokens": [1]}, {"megatron_config": {"a": 1}},
    {"arrow_config": {"a": 1}}, {"kasa_config": {"a": 1}}, {"something_new": "on"}, {"init_lora_weights": "pissa"},
    {"init_lora_weights": "olora"}, {"init_lora_weights": "loftq"}, {"init_lora_weights": ["x"]}, {"peft_type": "IA3"},
    {"peft_type": None}, {"r": 3}, {"r": 0}, {"r": "2"}, {"r": True}, {"r": None}, {"lora_alpha": 0}, {"lora_alpha": -4},
    {"lora_alpha": 1e300}, {"lora_alpha": float("nan")}, {"lora_alpha": float("inf")}, {"lora_alpha": 1e8},
    {"rank_pattern": {"x": 3}}, {"rank_pattern": ["x"]}, {"rank_pattern": {"(x+)+": 2}}, {"alpha_pattern": {"x": None}},
], ids=repr)  # fmt: skip
def test_a_configuration_that_is_not_plain_lora_is_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(MemInvalid):
        read_peft(directory(tmp_path, **config))


@pytest.mark.parametrize("tensors", [
    {}, {"x.lora_A": torch.ones(2, 8)}, {"x.lora_B": torch.ones(8, 2)},
    {"x.lora_A": torch.ones(2, 8), "y.lora_B": torch.ones(8, 2)},
    {"x.lora_A": torch.ones(2, 8), "x.lora_B": torch.ones(8, 2), "x.lora_magnitude_vector": torch.ones(8)},
    {"x.lora_A": torch.ones(2, 8), "x.lora_B": torch.ones(8, 2), "x.lora_embedding_A": torch.ones(8)},
    {"x.lora_A": torch.ones(2, 8), "x.lora_B": torch.ones(8, 2), "lm_head": torch.ones(8)},
    {"x.lora_A": torch.ones(2, 8), "x.lora_B": torch.ones(8, 3)}, {"x.lora_A": torch.ones(2), "x.lora_B": torch.ones(8, 2)},
    {"x.lora_A": torch.ones(2, 8).double(), "x.lora_B": torch.ones(8, 2).double()},
    {"x.lora_A": torch.ones(2, 8).char(), "x.lora_B": torch.ones(8, 2).char()},
    {"x.lora_A": torch.ones(2, 8).half(), "x.lora_B": torch.ones(8, 2)},
], ids=lambda tensors: "+".join(tensors) or "none")  # fmt: skip
def test_tensors_that_are_no_pairs_of_matrices_are_refused(tmp_path: Path, tensors: dict[str, Any]) -> None:
    with pytest.raises(MemInvalid):
        read_peft(directory(tmp_path, tensors))


def test_pickled_weights_are_never_opened(tmp_path: Path) -> None:
    directory(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    ran = tmp_path / "ran"

    # Whoever unpickles this makes a directory.
    (tmp_path / "adapter_model.bin").write_bytes(f"cos\nmkdir\n(V{ran}\ntR.".encode())
    with pytest.raises(MemInvalid, match="can run code"):
        read_peft(tmp_path)
    (tmp_path / "adapter_model.bin").rename(tmp_path / WEIGHTS)
    with pytest.raises(MemInvalid, match="safetensors"):
        read_peft(tmp_path)
    assert not ran.exists()


def test_a_directory_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MemNotFound):
        read_peft(tmp_path / "nowhere")
    directory(tmp_path)
    for text in ("", "[1]", "{", "[" * 100_000, '{"peft_type": "LORA", "r": 1' + "0" * 5000 + "}"):
        (tmp_path / CONFIG).write_text(text)
        with pytest.raises(MemInvalid):
            read_peft(tmp_path)
    (tmp_path / CONFIG).unlink()
    os.mkfifo(tmp_path / CONFIG)
    with pytest.raises(MemInvalid, match="not a file"):
        read_peft(tmp_path)
