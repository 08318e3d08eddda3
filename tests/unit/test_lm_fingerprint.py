"""Fingerprints: what changes them, what does not, and that adapters count by content and only while they work."""

from __future__ import annotations

import importlib
import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests import lm  # noqa: E402
from torch import nn  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from memos_drivers.lm.fingerprint import adapters, fingerprint, rope_digest, weights_digest  # noqa: E402
from memos_syscalls.errors import MemModel  # noqa: E402

tiny = lm.tiny
module: Any = importlib.import_module("memos_drivers.lm.fingerprint")


def load(path: Path, **options: Any) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(path, **options), AutoTokenizer.from_pretrained(path)


@pytest.fixture
def pair(tiny: Path) -> tuple[Any, Any]:
    return load(tiny)


def test_the_same_files_give_the_same_fingerprint(tiny: Path, pair: Any, tmp_path: Path) -> None:
    assert fingerprint(*pair) == fingerprint(*load(tiny))
    assert fingerprint(*pair).startswith("sha256:") and len(fingerprint(*pair)) == 71
    assert fingerprint(*load(lm.tiny_model(tmp_path / "again"))) == fingerprint(*pair)
    assert fingerprint(*load(lm.tiny_model(tmp_path / "other", seed=1))) != fingerprint(*pair)


def test_a_saved_and_reloaded_model_keeps_its_fingerprint(pair: Any, tmp_path: Path) -> None:
    for one in pair:
        one.save_pretrained(tmp_path)
    assert fingerprint(*load(tmp_path)) == fingerprint(*pair)


def test_every_part_changes_the_fingerprint(tiny: Path, pair: Any) -> None:
    model, tokenizer = pair
    seen = {fingerprint(model, tokenizer), fingerprint(*load(tiny, dtype=torch.bfloat16))}
    tokenizer.add_tokens(["bees"])
    seen.add(fingerprint(model, tokenizer))
    tokenizer.chat_template += " "
    seen.add(fingerprint(model, tokenizer))
    model.config.rms_norm_eps *= 2
    seen.add(fingerprint(model, tokenizer))
    model.config.rope_parameters = {**model.config.rope_parameters, "rope_theta": 500.0}
    seen.add(fingerprint(model, tokenizer))
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 3] += 1e-3
    seen.add(fingerprint(model, tokenizer))
    assert len(seen) == 7


def test_what_does_not_change_the_model_does_not_change_the_fingerprint(pair: Any) -> None:
    model, tokenizer = pair
    before = fingerprint(model, tokenizer)
    tokenizer.backend_tokenizer.enable_truncation(16)
    tokenizer.backend_tokenizer.enable_padding()
    tokenizer("a text", padding=True)
    model.config.use_cache = False
    model.train()
    assert fingerprint(model, tokenizer) == before


def test_weights_are_digested_once_until_one_is_replaced_or_written_to(pair: Any, monkeypatch: Any) -> None:
    model, _tokenizer = pair
    before, read, digest = weights_digest(model), list[str](), module._tensor_digest

    def counted(named: tuple[str, Any]) -> Any:
        read.append(named[0])
        return digest(named)

    monkeypatch.setattr(module, "_tensor_digest", counted)
    assert weights_digest(model) == before and read == []
    with torch.no_grad():
        model.model.norm.weight.add_(0)
    assert weights_digest(model) == before and len(read) == 20, "the tied head is read once"
    model.model.norm.weight = nn.Parameter(model.model.norm.weight + 1)
    assert (second := weights_digest(model)) != before
    model.model.layers[0].mlp.up_proj.weight.data += 1
    assert weights_digest(model) != second, "a write that autograd does not count"


def test_rope_digests_tell_rotations_apart(pair: Any, tmp_path: Path) -> None:
    plain = rope_digest(pair[0])
    slower, _ = load(lm.tiny_model(tmp_path / "theta", rope_parameters={"rope_type": "default", "rope_theta": 500.0}))
    scaled, _ = load(
        lm.tiny_model(tmp_path / "yarn", rope_parameters={"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0})
    )
    assert len({plain, rope_digest(slower), rope_digest(scaled)}) == 3
    assert rope_digest(load(lm.tiny_model(tmp_path / "seed", seed=1))[0]) == plain


def test_weights_that_are_not_loaded_are_refused(pair: Any) -> None:
    model, tokenizer = pair
    with pytest.raises(MemModel, match="has no bytes"):
        fingerprint(model.to("meta"), tokenizer)


class Tuned(nn.Module):
    """A linear layer with adapters around it, in the shape that peft gives them."""

    def __init__(self, layer: Any, rank: int = 2) -> None:
        super().__init__()
        self.base_layer = layer
        self.lora_A, self.lora_B = nn.ModuleDict(), nn.ModuleDict()
        self.scaling: dict[str, float] = {}
        self.active_adapters: list[str] = []
        self.merged_adapters: list[str] = []
        self.disable_adapters = False
        self.rank = rank

    def add(self, name: str, seed: int, scale: float = 2.0) -> None:
        made = torch.Generator().manual_seed(seed)
        for part, rows, columns in (
            (self.lora_A, self.rank, self.base_layer.in_features), (self.lora_B, self.base_layer.out_features, self.rank),
        ):  # fmt: skip
            part[name] = nn.Linear(columns, rows, bias=False)
            part[name].weight.data = torch.randn(rows, columns, generator=made)
        self.scaling[name], self.active_adapters = scale, [name]


def wrap(model: Any, number: int = 0) -> Tuned:
    attention = model.model.layers[number].self_attn
    attention.q_proj = Tuned(attention.q_proj)
    tuned: Tuned = attention.q_proj
    return tuned


def test_adapters_count_by_content_while_they_work(tiny: Path, pair: Any) -> None:
    model, tokenizer = pair
    base = fingerprint(model, tokenizer)
    assert adapters(model) == ()
    tuned = wrap(model)
    tuned.add("style", seed=1)
    first = adapters(model)
    assert len(first) == 1 and adapters(model) == first
    assert fingerprint(model, tokenizer) == base, "adapters are not part of the model"

    other, _ = load(tiny)
    wrap(other).add("style", seed=2)
    assert adapters(other) != first, "the same name, other bytes"
    third, _ = load(tiny)
    wrap(third).add("tone", seed=1)
    assert adapters(third) == first, "another name, the same bytes"
    elsewhere, _ = load(tiny)
    wrap(elsewhere, 1).add("style", seed=1)
    assert adapters(elsewhere) != first, "the same bytes at another layer"

    tuned.scaling["style"] = 1.0
    assert adapters(model) != first
    tuned.scaling["style"] = 2.0
    tuned.add("second", seed=2)
    assert adapters(model) == adapters(other)
    tuned.active_adapters = ["style", "second"]
    assert set(adapters(model)) == {*first, *adapters(other)}
    tuned.disable_adapters = True
    assert adapters(model) == ()
    tuned.disable_adapters, tuned.merged_adapters = False, ["second"]
    assert adapters(model) == first
    with torch.no_grad():
        tuned.lora_B["style"].weight[0, 0] += 1  # type: ignore[index,operator]
    assert adapters(model) != first


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
def test_peft_adapters_are_seen_and_the_model_inside_is_recognised(tiny: Path, pair: Any) -> None:
    peft: Any = importlib.import_module("peft")
    model, tokenizer = pair
    base, rope = fingerprint(model, tokenizer), rope_digest(model)
    warnings.filterwarnings("ignore", category=FutureWarning)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(1)
    wrapped = peft.get_peft_model(model, config)
    assert fingerprint(wrapped, tokenizer) == base and rope_digest(wrapped) == rope
    first = adapters(wrapped)
    assert len(first) == 1 and adapters(wrapped.get_base_model()) == first
    with wrapped.disable_adapter():
        assert adapters(wrapped) == ()
    torch.manual_seed(2)
    other = peft.get_peft_model(load(tiny)[0], config)
    assert adapters(other) != first
    torch.manual_seed(1)
    same = peft.get_peft_model(load(tiny)[0], config, adapter_name="another")
    assert adapters(same) == first
    wrapped.merge_adapter()
    assert adapters(wrapped) == () and fingerprint(wrapped, tokenizer) != base
    wrapped.unmerge_adapter()
    saved = peft.get_peft_model(load(tiny)[0], peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["norm"]))
    assert fingerprint(saved, tokenizer) == base and len(adapters(saved)) == 1
    prompted = peft.get_peft_model(load(tiny)[0], peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(MemModel, match="learned prompt"):
        adapters(prompted)


def test_the_digest_of_a_tokenizer_does_not_depend_on_the_order_of_its_fields(pair: Any) -> None:
    _model, tokenizer = pair
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    turned = dict(reversed(list(described.items())))
    assert module._canonical(turned) == module._canonical(described)
