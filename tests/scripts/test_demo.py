"""The demonstration is a test: every claim it makes is checked while it runs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

DEMO_SECONDS_MAX = 300
TRAINING_SECONDS_MAX = 3600


@pytest.mark.skipif("MEMOS_TRAIN" not in os.environ, reason="trains for minutes; `make train` does it")
def test_every_claim_of_the_whole_demonstration_holds(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "memos_tools.demo", "--keep", str(tmp_path / "demo")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TRAINING_SECONDS_MAX, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the adapter's history" in done.stdout


def test_every_claim_of_the_demonstration_holds(tmp_path: Path) -> None:
    began = time.monotonic()
    command = [sys.executable, "-m", "memos_tools.demo", "--fast", "--keep", str(tmp_path / "demo")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * DEMO_SECONDS_MAX, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "What you saw" in done.stdout
    assert time.monotonic() - began < DEMO_SECONDS_MAX
