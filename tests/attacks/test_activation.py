"""What a cache must never be used for: another model, tokenizer, dtype, rotation, prefix, adapter or owner, one changed token.

Each is tried alone: everything else is the same as when the cache was made.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import lm
from tests.activation import BEES, CHESS, KETTLE, Model
from tests.inside import ADMIN, ALICE, BOB
from tests.steps import done

from memos_drivers.activation.engine import Begun, Engine, Part
from memos_drivers.activation.kv import Payload, pack, unpack
from memos_drivers.lm import models
from memos_syscalls.errors import MemModel

tiny = lm.tiny
TENANT = "uid:1001"
MESSAGES = [{"role": "user", "content": "Who keeps bees?"}]
CPU = torch.device("cpu")


def engine(directory: Path, cache: Path, dtype: str = "float32") -> Engine:
    return Engine(models.load(str(directory), cache_dir=cache, device="cpu", dtype=dtype))


def captured(made: Engine, *texts: str, stored: str | None = None, system: str | None = None) -> Payload:
    _sizes, packed = done(made.capture(system, texts, [], stored, lambda share, said: None))
    try:
        return unpack(packed.fd, made.device, made.dtype)
    finally:
        os.close(packed.fd)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def made(tiny: Path, cache: Path) -> Engine:
    return engine(tiny, cache)


@pytest.fixture(scope="module")
def payload(made: Engine) -> Payload:
    return captured(made, BEES)


def refused(here: Engine, payload: Payload, text: str = BEES, system: str | None = None) -> str | None:
    """Which of the things that it depends on keeps the cache from being used, by the words of the refusal."""
    error = here.refusal(payload, here.layout.prefix(system), here.memory_ids([text]))
    assert error is None or error.errno == "EMODEL"
    return None if error is None else error.detail


# -- how near it is ----------------------------------------------------------------------------------------------------


def logits(here: Engine, parts: list[Part]) -> torch.Tensor:
    begun: Begun = done(here.attach(TENANT, MESSAGES, parts, 0.15))
    return begun.logits.float()


@pytest.mark.parametrize(("dtype", "stored", "most"), [
    ("float32", None, 1e-3), ("float32", "float16", 0.02), ("float32", "bfloat16", 0.1), ("float32", "int8", 0.2),
    ("bfloat16", None, 0.15),
])  # fmt: skip
def test_logits_behind_a_cache_are_those_of_a_full_prefill(
    tiny: Path, cache: Path, dtype: str, stored: str | None, most: float
) -> None:
    """The bounds of what is stored smaller are of this model, whose logits have a standard deviation of 1.6; what was seen
    is .000002, .006, .029, .048 and .031."""
    here = engine(tiny, cache, dtype)
    for text in (BEES, CHESS * 4, KETTLE + BEES * 5):
        ids = here.memory_ids([text])
        full = logits(here, [Part(0, ids, "prefilled", None)])
        found = logits(here, [Part(0, ids, "attached", captured(here, text, stored=stored))])
        assert float((found - full).abs().max()) <= most


# -- one thing at a time -----------------------------------------------------------------------------------------------


def test_the_cache_is_used_where_nothing_changed(made: Engine, payload: Payload, tiny: Path, cache: Path) -> None:
    assert refused(made, payload) is None
    assert refused(engine(tiny, cache), payload) is None


def test_another_models_weights(payload: Payload, tmp_path: Path) -> None:
    other = engine(lm.tiny_model(tmp_path / "other", seed=1), tmp_path / "cache")
    assert "model" in (refused(other, payload) or "")


def test_one_number_of_the_weights(payload: Payload, tiny: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny, tmp_path / "other")
    tensors = load_file(tmp_path / "other/model.safetensors")
    tensors["model.norm.weight"][3] += 1e-6
    save_file(tensors, tmp_path / "other/model.safetensors", {"format": "pt"})
    assert "model" in (refused(engine(tmp_path / "other", tmp_path / "cache"), payload) or "")


def test_another_dtype(payload: Payload, tiny: Path, cache: Path) -> None:
    assert refused(engine(tiny, cache, "bfloat16"), payload)


def test_the_same_fingerprint_in_another_dtype(made: Engine, payload: Payload) -> None:
    lying = payload._replace(descriptor={**payload.descriptor, "dtype": "bfloat16"})
    assert "dtype" in (refused(made, lying) or "")


def test_another_rotation(payload: Payload, tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "other")
    file = tmp_path / "other/config.json"
    config = json.loads(file.read_text())
    (config.get("rope_parameters") or config)["rope_theta"] = 500.0
    file.write_text(json.dumps(config))
    other = engine(tmp_path / "other", tmp_path / "cache")
    assert other.rope != payload.descriptor["rope"]
    assert refused(other, payload)
    assert "rope" in (refused(other, payload._replace(descriptor={**payload.descriptor, "model": other.fingerprint})) or "")


def test_another_chat_template(payload: Payload, tmp_path: Path) -> None:
    for number, template in enumerate((
        lm.TEMPLATE.replace(lm.DEFAULT_SYSTEM, "You are a tiny mouse."), lm.TEMPLATE.replace("assistant\n", "assistant:\n")
    )):  # fmt: skip
        other = engine(lm.tiny_model(tmp_path / f"other{number}", template=template), tmp_path / "cache")
        assert refused(other, payload), "what stands behind the memory is part of the model, too"


def test_another_tokenizer(payload: Payload, tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "other")
    file = tmp_path / "other/tokenizer.json"
    words = json.loads(file.read_text())
    merges = words["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]
    file.write_text(json.dumps(words))
    assert "model" in (refused(engine(tmp_path / "other", tmp_path / "cache"), payload) or "")


def test_another_system_message(made: Engine, payload: Payload) -> None:
    assert "prefix" in (refused(made, payload, system="You are a tiny model!") or "")
    assert "prefix" in (refused(made, captured(made, BEES, system="Be brief.")) or "")
    assert refused(made, captured(made, BEES, system="Be brief."), system="Be brief.") is None


def test_one_token(made: Engine, payload: Payload) -> None:
    for at in (0, len(payload.chunk.token_ids) // 2, -1):
        ids = list(payload.chunk.token_ids)
        ids[at] ^= 1
        changed = payload._replace(chunk=dataclasses.replace(payload.chunk, token_ids=tuple(ids))) if dataclasses.is_dataclass(
            payload.chunk) else payload._replace(chunk=payload.chunk._replace(token_ids=tuple(ids)))  # fmt: skip
        assert "tokens" in (refused(made, changed) or "")
    for text in (BEES + "x", BEES[:-2], "x" + BEES, BEES.replace("Anna", "Anne")):
        assert "tokens" in (refused(made, payload, text) or "")


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_adapter_and_another_one_of_the_same_name(payload: Payload, tiny: Path, tmp_path: Path) -> None:
    import peft

    kinds: list[Engine] = []
    for seed in (1, 2):
        here = engine(tiny, tmp_path / "cache")
        torch.manual_seed(seed)
        config = peft.LoraConfig(r=2, target_modules=["k_proj"], init_lora_weights=False)
        here.model = peft.get_peft_model(here.model, config, adapter_name="same").eval()
        kinds.append(here)
    one, two = kinds
    assert one.fingerprint == two.fingerprint == payload.descriptor["model"]
    assert "adapters" in (refused(one, payload) or ""), "made without one, used with one"
    own = captured(one, BEES)
    assert refused(one, own) is None
    assert "adapters" in (refused(two, own) or ""), "the same name, other bytes"
    with one.model.disable_adapter():
        assert "adapters" in (refused(one, own) or ""), "made with one, used without"
        assert refused(one, payload) is None
    model: Any = one.model
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "lora_B" in name)[0, 0] += 1
    assert "adapters" in (refused(one, own) or ""), "trained on since"


@pytest.mark.parametrize("change", [
    {"format": "memos.kv/2"}, {"tokens": 3}, {"start": 1}, {"layers": 1}, {"layers": 3}, {"kv_heads": 4}, {"head_dim": 8},
    {"stored": "int8"}, {"stored": "bfloat16"}, {"stored": "float64"}, {"layers": "two"}, {"layers": -1},
])  # fmt: skip
def test_a_descriptor_that_lies(made: Engine, payload: Payload, change: dict[str, Any]) -> None:
    packed = pack(payload.chunk, list(payload.prefix_ids), payload.descriptor)
    try:
        whole = os.pread(packed.fd, packed.bytes, 0)
    finally:
        os.close(packed.fd)
    length = int.from_bytes(whole[:8], "little")
    head = json.loads(whole[8 : 8 + length])
    head["__metadata__"]["memos"] = json.dumps({**payload.descriptor, **change})
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    fd = os.memfd_create("lying")
    try:
        os.write(fd, len(text).to_bytes(8, "little") + text + whole[8 + length :])
        with pytest.raises(MemModel):
            lying = unpack(fd, CPU, made.dtype)
            error = made.refusal(lying, lying.prefix_ids, None)
            assert error is not None, "neither the payload nor its use was refused"
            raise error
    finally:
        os.close(fd)


# -- through the kernel ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def k(tiny: Path, cache: Path) -> Iterator[Model]:
    with Model(tiny, cache) as kernel:
        yield kernel
        kernel.sound()


QUESTION = "Who keeps bees?"


def hidden(k: Model, cube: str, *more: str) -> None:
    """Bob gets nothing of a cube: not to read, map, use, derive from or move."""
    for name, args in (
        ("mem_infer", k.question(QUESTION, cube)), ("mem_infer", k.question(QUESTION, *more, cube, on_miss="recompute")),
        ("mem_map", {"cube_id": cube}), ("mem_migrate", {"cube_id": cube, "to": "activation"}),
        ("mem_migrate", {"cube_id": cube, "tier": "device"}), ("mem_migrate", {"cube_ids": [*more, cube], "to": "activation"}),
        ("mem_fuse", {"cube_ids": [*more, cube], "strategy": "kv"}),
        ("mem_compose", {"cube_ids": [*more, cube], "namespace": "bob"}),
    ):  # fmt: skip
        if name != "mem_fuse" or more:
            assert k.failure(name, BOB, **args).errno == "EACCES", (name, args)


def test_another_owner_gets_nothing_of_a_cache(k: Model) -> None:
    hers = k.alloc(BEES, ALICE, namespace="hers")
    cache = k.capture(hers, caller=ALICE)
    his = k.alloc(CHESS, BOB, namespace="bob")
    for cube in (hers, cache):
        hidden(k, cube, his)
    assert k.failure("mem_migrate", BOB, cube_id=his, to="activation", namespace="hers").errno == "EACCES"
    assert k.failure("mem_migrate", BOB, cube_id=his, to="activation", params={"neighbours": [hers]}).errno == "EACCES"


def test_the_same_text_of_two_owners_is_two_caches(k: Model) -> None:
    hers, his = k.alloc(KETTLE, ALICE, namespace="hers"), k.alloc(KETTLE, BOB, namespace="bob")
    caches = [k.capture(hers, caller=ALICE), k.capture(his, caller=BOB)]
    recipes = [k.header(cache)["recipe"] for cache in caches]
    assert recipes[0]["key"] != recipes[1]["key"] and recipes[0]["tokens_digest"] == recipes[1]["tokens_digest"]


@pytest.mark.parametrize("way", ["content", "context", "fused", "composed", "composed context"])
def test_who_may_not_read_what_a_cache_was_made_from_may_not_use_it(k: Model, way: str) -> None:
    """An admin made it for Bob, of a memory of Alice."""
    hers, his = k.alloc(BEES + way, ALICE, namespace="hers"), k.alloc(CHESS + way, BOB, namespace="bob")
    if way == "content":
        cube = k.capture(his, hers, namespace="bob")
    elif way == "context":
        cube = k.capture(his, namespace="bob", params={"neighbours": [hers]})
    else:
        neighbours = {"neighbours": [hers]} if way == "composed context" else None
        own = k.capture(his, namespace="bob", params=neighbours)
        other = k.capture(k.alloc(KETTLE + way, BOB, namespace="bob"), caller=BOB)
        if way == "composed context":
            cube = k("mem_compose", namespace="bob", cube_ids=[own, other])["cube_id"]
        else:
            alien = k.capture(hers, namespace="bob")
            name = {"fused": "mem_fuse", "composed": "mem_compose"}[way]
            more = {"strategy": "kv"} if way == "fused" else {}
            cube = k(name, namespace="bob", cube_ids=[own, alien, other], **more)["cube_id"]
    for on_miss in ("refuse", "recompute"):
        error = k.failure("mem_infer", BOB, **k.question(QUESTION, cube, on_miss=on_miss))
        assert error.errno == "EACCES" and hers not in str(error)
    assert k.failure("mem_map", BOB, cube_id=cube).errno == "EACCES"
    assert k.failure("mem_read", BOB, cube_id=cube).errno == "EACCES"
    assert k("mem_stat", BOB, cube_id=cube)["header"]["form"] == "activation"
    assert k.ask(QUESTION, cube, caller=ADMIN)["text"]


def test_a_change_of_the_kernels_settings_is_noticed(k: Model, tiny: Path, tmp_path: Path) -> None:
    """The daemon is started again with another dtype, and with another model under its name."""
    text = k.alloc(BEES + "settings")
    cache = k.capture(text)
    config = k.config
    for change in ({"dtype": "bfloat16"}, {"model": (str(lm.tiny_model(tmp_path / "other", seed=3)),)}):
        k.stop()
        k.config = dataclasses.replace(config, **change)
        k.open()
        assert k.failure("mem_infer", **k.question(QUESTION, cache)).errno == "EMODEL"
        answer = k.ask(QUESTION, cache, on_miss="recompute")
        assert answer["text"] == k.ask(QUESTION, text)["text"] and answer["attached"][0]["how"] == "recomputed"
        other = k.migrated(text)
        assert other["cube_id"] != cache and not other["reused"]
        assert k.ask(QUESTION, other["cube_id"])["text"] == k.ask(QUESTION, text)["text"]
    k.stop()
    k.config = config
    k.open()
    assert k.migrated(text)["cube_id"] == cache and k.ask(QUESTION, cache)["tokens_reused"]
