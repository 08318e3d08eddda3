"""A cache of a real kernel, continued from in this process: `memos_client.hf.load_past` over a socket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tests.lm import tiny_model

from memos_client import Kernel, MemModel, MemShredded, MemStale, open_map
from memos_client.hf import load_past
from memos_drivers.lm import models

TEXT = "Anna moved to Lisbon in the spring and keeps bees on the roof. " * 6
QUESTION = "Where does Anna live?"


class Scene(NamedTuple):
    kernel: Kernel
    model: Any
    tokenizer: Any


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("past")
    path, cache = tiny_model(directory / "tiny"), directory / "models"
    loaded = models.load(str(path), cache_dir=cache)
    with Kernel.spawn(directory / "data", embedder="none", model=path, model_cache=cache, host_threads=1) as kernel:
        yield Scene(kernel, loaded.model, loaded.tokenizer)


def captured(scene: Scene, text: str = TEXT, **args: Any) -> tuple[str, str]:
    source = scene.kernel.mem_alloc("alice", text).cube_id
    cache = scene.kernel.mem_migrate(source, to="activation", **args).cube_id
    assert cache is not None
    return source, cache


def test_generating_behind_a_cache_says_what_the_kernel_says_of_the_text(scene: Scene) -> None:
    source, cache = captured(scene)
    past = load_past(scene.kernel, cache, model=scene.model, tokenizer=scene.tokenizer)
    inputs = past.inputs(QUESTION)
    out = scene.model.generate(**inputs, max_new_tokens=24, do_sample=False)
    said = scene.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    full = scene.kernel.mem_infer(QUESTION, cubes=[source], max_new_tokens=24)
    assert said == full.text and inputs["input_ids"].shape[1] == full.tokens_in


def test_logits_behind_a_cache_are_those_of_one_forward(scene: Scene) -> None:
    _source, cache = captured(scene)
    past = load_past(scene.kernel, cache, model=scene.model, tokenizer=scene.tokenizer)
    with torch.inference_mode():
        behind = scene.model(**past.forward_inputs(QUESTION)).logits[0, -1]
        whole = scene.model(input_ids=past.inputs(QUESTION)["input_ids"]).logits[0, -1]
    assert float((behind - whole).abs().max()) <= 1e-3


def test_what_a_caller_does_to_a_cache_does_not_reach_the_payload(scene: Scene) -> None:
    _source, cache = captured(scene)
    before = bytes(open_map(scene.kernel.mem_map(cache)))
    past = load_past(scene.kernel, cache, model=scene.model, tokenizer=scene.tokenizer)
    first = scene.model.generate(**past.inputs(QUESTION), max_new_tokens=8, do_sample=False)
    scribbled: Any = past.cache()
    scribbled.layers[0].keys.zero_()
    beams = scene.model.generate(**past.inputs(QUESTION), max_new_tokens=8, do_sample=False, num_beams=3)
    again = scene.model.generate(**past.inputs(QUESTION), max_new_tokens=8, do_sample=False)
    assert torch.equal(first, again) and beams.shape[0] == 1
    assert bytes(open_map(scene.kernel.mem_map(cache))) == before


def test_the_payload_says_what_it_was_made_with(scene: Scene) -> None:
    _source, cache = captured(scene, params={"stored": "int8"})
    reply = scene.kernel.mem_map(cache)
    assert reply.layout is not None
    descriptor = json.loads(reply.layout.metadata["memos"])
    recipe = scene.kernel.mem_stat(cache).header.recipe or {}
    assert descriptor["stored"] == "int8" and descriptor["model"] == recipe["model"] and recipe["stored_error"] > 0
    with open_map(reply):
        past = load_past(scene.kernel, cache, model=scene.model, tokenizer=scene.tokenizer)
    assert len(past.token_ids) == recipe["start"] + recipe["tokens"]


def test_a_cache_of_another_system_message_or_model_or_age_is_refused(scene: Scene, tmp_path: Path) -> None:
    source, cache = captured(scene, params={"system": "You are terse."})
    load = load_past(scene.kernel, cache, model=scene.model, tokenizer=scene.tokenizer)
    with pytest.raises(MemModel):
        load.inputs([{"role": "system", "content": "You are verbose."}, {"role": "user", "content": QUESTION}])
    other = models.load(str(tiny_model(tmp_path / "other", seed=1)), cache_dir=tmp_path / "models")
    with pytest.raises(MemModel):
        load_past(scene.kernel, cache, model=other.model, tokenizer=other.tokenizer)
    scene.kernel.mem_write(source, content="Anna moved to Porto.")
    with pytest.raises(MemStale):
        load_past(scene.kernel, cache, model=scene.model, tokenizer=scene.tokenizer)
    assert load_past(scene.kernel, cache, model=scene.model, tokenizer=scene.tokenizer, version=1).token_ids == load.token_ids
    scene.kernel.mem_shred(source)
    with pytest.raises(MemShredded):
        load_past(scene.kernel, cache, model=scene.model, tokenizer=scene.tokenizer, version=1)
