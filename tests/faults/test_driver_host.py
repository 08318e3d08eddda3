"""A driver host that dies, hangs, lies or lacks everything: a typed error, nothing half committed, and the kernel goes on."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests import lm
from tests.activation import BEES, CHESS, Model

from memos_drivers.host.client import Host
from memos_syscalls.errors import MemError

tiny = lm.tiny
QUESTION = "Who keeps bees?"
LONG = BEES * 12


@pytest.fixture(scope="module")
def k(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with Model(tiny, tmp_path_factory.mktemp("cache")) as kernel:
        kernel.ask(QUESTION)
        yield kernel
        kernel.sound()


def reads_go_on(k: Model, cube: str) -> None:
    began = time.monotonic()
    assert k("mem_read", cube_id=cube)["content"]
    assert time.monotonic() - began < 1


# -- it dies -----------------------------------------------------------------------------------------------------------


def test_a_host_that_is_killed_during_a_capture_is_started_again_and_so_is_the_capture(k: Model) -> None:
    text = k.alloc(LONG)
    deaths = k.host.stats()["deaths"]
    call = k.submit("mem_migrate", cube_id=text, to="activation")
    while not k.host.stats()["running"]:
        k.run(0.002)
    k.kill_host()
    reads_go_on(k, text)
    made = k.wait(call, 90)
    assert k.host.stats()["deaths"] == deaths + 1
    assert len(k.derived(text)) == 1
    assert k.ask(QUESTION, made["cube_id"])["text"] == k.ask(QUESTION, text)["text"]


def test_a_host_that_is_killed_once_the_answer_streams_is_not_asked_again(k: Model) -> None:
    """The caller has read what was said; it would hear it twice."""
    cache = k.capture(k.alloc(BEES))
    call = k.submit("mem_infer", **k.question(QUESTION, cache, max_new_tokens=3500, stream=True))
    items = next(iter(k.peers.values())).items
    items.clear()
    while not items:
        k.run(0.005)
    k.kill_host()
    error = k.error(call)
    assert (error.errno, error.outcome) == ("EIO", "none")
    assert k.ask(QUESTION, cache, max_new_tokens=4)["text"]


def test_a_device_that_was_lost_with_the_host_is_filled_again(k: Model) -> None:
    """The kernel believes that the payload is there; the new host says that it is not."""
    cache = k.capture(k.alloc(CHESS))
    before = k.ask(QUESTION, cache)
    assert k.row(cache).payload_id in k.kernel.runtime.resident
    k.kill_host()
    k.run(0.2)
    after = k.ask(QUESTION, cache)
    assert after["text"] == before["text"] and after["tokens_reused"] == before["tokens_reused"]
    k.kill_host()
    k.run(0.2)
    assert k("mem_migrate", cube_id=cache, tier="device")["tier"] == "device"
    assert k.tiers["device"]["entries"] == 1


def test_a_host_that_hangs_is_killed_and_its_work_is_done_by_the_next(k: Model) -> None:
    text = k.alloc(LONG + "hangs")
    patience, k.host._silence_seconds = k.host._silence_seconds, 1.0  # pyright: ignore[reportPrivateUsage]
    k.host._check_seconds = 0.25  # pyright: ignore[reportPrivateUsage]
    try:
        pid = k.stop_host()
        call = k.submit("mem_migrate", cube_id=text, to="activation", deadline_ms=400)
        reads_go_on(k, text)
        assert k.error(call).errno == "ETIMEDOUT", "the caller waits for no host"
        call = k.submit("mem_migrate", cube_id=text, to="activation")
        # A start of a busy machine may be silent for longer than the one second that is enough here.
        while k.host.pid == pid:
            k.run(0.05)
        k.host._silence_seconds = patience  # pyright: ignore[reportPrivateUsage]
        assert k.wait(call, 90)["cube_id"]
    finally:
        k.host._silence_seconds = patience  # pyright: ignore[reportPrivateUsage]
    assert len(k.derived(text)) == 1


# -- it fails ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bad(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Model, Path]]:
    """A kernel whose host fails on demand, and the file that says how."""
    said = tmp_path_factory.mktemp("bad") / "how"
    said.write_text("")
    os.environ |= {"MEMOS_BAD_HOST": str(said), "PYTHONPATH": str(Path(__file__).parents[2])}
    with Model(tiny, tmp_path_factory.mktemp("cache")) as kernel:
        host = kernel.host
        kernel.kernel.runtime._host = Host(host._spec, module="tests.faults.bad_host")  # pyright: ignore[reportPrivateUsage]
        kernel.ask(QUESTION, max_new_tokens=1)
        yield kernel, said
        said.write_text("")
        kernel.sound()
    del os.environ["MEMOS_BAD_HOST"], os.environ["PYTHONPATH"]


@pytest.mark.parametrize(("how", "word"), [
    ("memory", "memory"), ("nonsense", "ZeroDivisionError"), ("empty", "payload"), ("unsealed", "cannot be kept"),
    ("two", "2 payloads"), ("nothing", "0 payloads"),
])  # fmt: skip
def test_a_capture_that_fails_is_an_error_and_commits_nothing(bad: tuple[Model, Path], how: str, word: str) -> None:
    k, said = bad
    text = k.alloc(BEES + how)
    pid = k.host.pid
    said.write_text(f"capture {how}\n")
    error = k.failure("mem_migrate", cube_id=text, to="activation")
    assert (error.errno, error.outcome) == ("EIO", "none") and word in error.detail
    assert k.derived(text) == []
    reads_go_on(k, text)
    said.write_text("")
    assert k.host.pid == pid, "nothing died of it"
    assert k.capture(text)


@pytest.mark.parametrize("op", ["infer", "load", "fuse", "tokens"])
def test_no_memory_for_an_operation_is_its_error_alone(bad: tuple[Model, Path], op: str) -> None:
    k, said = bad
    one, two = (k.capture(k.alloc(content + op)) for content in (BEES, CHESS))
    said.write_text(f"{op} memory\n")
    error = {
        "infer": lambda: k.failure("mem_infer", **k.question(QUESTION, one)),
        "load": lambda: k.failure("mem_migrate", cube_id=one, tier="device"),
        "fuse": lambda: k.failure("mem_fuse", cube_ids=[one, two], strategy="kv"),
        "tokens": lambda: k.failure("mem_migrate", cube_id=k.alloc(op), to="activation"),
    }[op]()
    assert error.errno == "EIO" and "memory" in error.detail
    said.write_text("")
    assert {k.header(cache)["state"] for cache in (one, two)} == {"generated"}
    assert k.ask(QUESTION, one)["tokens_reused"]


def test_a_capture_that_kills_every_host_is_given_up_and_others_are_served(bad: tuple[Model, Path]) -> None:
    k, said = bad
    text = k.alloc(BEES + "deadly")
    said.write_text("capture die\n")
    error = k.failure("mem_migrate", cube_id=text, to="activation")
    assert error.errno == "EIO" and k.derived(text) == []
    said.write_text("")
    assert k.ask(QUESTION)["text"]
    assert k.capture(text)


def test_a_disk_that_is_nearly_full_takes_no_cache(bad: tuple[Model, Path]) -> None:
    k, _said = bad
    text, cache = k.alloc(BEES + "full"), k.capture(k.alloc(CHESS + "full"))

    def fill() -> None:
        k.kernel.disk_full = True

    with k.during("capture", fill, after=True):
        error = k.failure("mem_migrate", cube_id=text, to="activation")
    assert (error.errno, error.outcome) == ("ENOSPC", "none") and k.derived(text) == []
    assert k.failure("mem_migrate", cube_id=text, to="activation").errno == "ENOSPC"
    assert k.ask(QUESTION, cache)["tokens_reused"], "what is there is used"
    k.kernel.disk_full = False
    assert k.capture(text)


# -- it lacks a model --------------------------------------------------------------------------------------------------


def model_without(tiny: Path, place: Path, what: str) -> Path:
    model = place / "model"
    shutil.copytree(tiny, model)
    weights = model / "model.safetensors"
    match what:
        case "directory":
            shutil.rmtree(model)
        case "weights":
            weights.unlink()
        case "end":
            weights.write_bytes(weights.read_bytes()[:-4096])
        case "head":
            weights.write_bytes(b"\xff" * 8 + weights.read_bytes()[8:])
        case "tensor":
            from safetensors.torch import load_file, save_file

            tensors = load_file(weights)
            del tensors["model.layers.1.mlp.down_proj.weight"]
            save_file(tensors, weights, {"format": "pt"})
        case "safety":
            import torch

            weights.unlink()
            torch.save({}, model / "pytorch_model.bin")
        case "config":
            (model / "config.json").write_text("{")
        case "tokenizer":
            (model / "tokenizer.json").unlink()
        case "numbers":
            from safetensors.torch import load_file, save_file

            tensors = load_file(weights)
            tensors["model.layers.0.self_attn.k_proj.weight"][:] = float("nan")
            save_file(tensors, weights, {"format": "pt"})
        case _:
            raise AssertionError(what)
    return model


@pytest.mark.parametrize(("what", "errno"), [
    ("directory", "ENOMODEL"), ("weights", "EMODEL"), ("end", "EMODEL"), ("head", "EMODEL"), ("tensor", "EMODEL"),
    ("safety", "EMODEL"), ("config", "EMODEL"), ("tokenizer", "EMODEL"),
])  # fmt: skip
def test_a_model_that_is_not_whole_is_refused_with_words(tiny: Path, tmp_path: Path, what: str, errno: str) -> None:
    model = str(model_without(tiny, tmp_path, what))
    found = refusal_of(tmp_path, model)
    assert found.errno == errno, found
    assert found.advice and "model" in str(found)


def refusal_of(place: Path, model: str) -> MemError:
    """What loading says, in this process."""
    from memos_drivers.lm import models

    try:
        models.load(model, cache_dir=place / "cache", device="cpu", dtype="auto")
    except MemError as error:
        return error
    raise AssertionError(f"{model} was loaded")


def test_a_kernel_without_its_model_says_how_to_get_one_and_serves_everything_else(tiny: Path, tmp_path: Path) -> None:
    with Model(tmp_path / "nowhere", tmp_path / "cache") as k:
        text = k.alloc(BEES)
        for _ in range(2):
            for error in (k.failure("mem_migrate", cube_id=text, to="activation"), k.failure("mem_infer", **k.question("?"))):
                assert error.errno == "ENOMODEL" and error.advice
        reads_go_on(k, text)
        assert k.derived(text) == []


def test_a_kernel_that_runs_no_models_says_so(tmp_path: Path) -> None:
    with Model(tmp_path, tmp_path, model=()) as k:
        text = k.alloc(BEES)
        calls: list[tuple[str, dict[str, Any]]] = [
            ("mem_migrate", {"cube_id": text, "to": "activation"}), ("mem_infer", {"prompt": "?"}),
            ("mem_migrate", {"cube_id": text, "tier": "host"}),
        ]  # fmt: skip
        for name, args in calls:
            error = k.failure(name, **args)
            assert error.errno == "ENOMODEL" and "--model" in str(error.advice)
        assert "host" in k("sys_stats")
        k.sound()


def test_without_torch_the_kernel_serves_and_says_what_is_missing(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shim").mkdir()
    (tmp_path / "shim/torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "shim"))
    with Model(tiny, tmp_path / "cache") as k:
        text = k.alloc(BEES)
        error = k.failure("mem_migrate", cube_id=text, to="activation")
        assert error.errno == "ENOMODEL" and "torch" in str(error)
        reads_go_on(k, text)


def test_numbers_that_are_not_finite_are_not_kept_and_not_spoken(tiny: Path, tmp_path: Path) -> None:
    with Model(model_without(tiny, tmp_path, "numbers"), tmp_path / "cache") as k:
        text = k.alloc(BEES)
        error = k.failure("mem_migrate", cube_id=text, to="activation")
        assert error.errno == "EIO" and "not finite" in error.detail
        assert k.derived(text) == []
        for more in ({}, {"temperature": 1.0, "seed": 1}):
            error = k.failure("mem_infer", **k.question(QUESTION, text, **more))
            assert error.errno == "EIO" and "not finite" in error.detail
        k.sound()


def test_a_host_that_dies_while_it_loads_its_model_is_started_again(tiny: Path, tmp_path: Path) -> None:
    with Model(tiny, tmp_path / "cache") as k:
        call = k.submit("mem_infer", **k.question(QUESTION))
        until = time.monotonic() + 60
        while k.host.pid is None and time.monotonic() < until:
            k.run(0.005)
        k.kill_host()
        assert k.wait(call, 90)["text"]
        assert k.host.stats()["deaths"] == 1
