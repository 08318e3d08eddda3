"""The demonstration on Kafka is a test: every claim it makes is checked while it runs, and it leaves nothing behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

DEMO_SECONDS_MAX = 180
COMMAND = [sys.executable, "-m", "memos_tools.demo_kafka", "--fast"]


def run(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("MEMOS_KAFKA", "KAFKA_HOME")}
    return subprocess.run(
        COMMAND, env={**kept, "TMPDIR": str(tmp_path), **environment}, capture_output=True, text=True,
        timeout=2 * DEMO_SECONDS_MAX, check=False,
    )  # fmt: skip


def test_every_claim_of_the_demonstration_on_kafka_holds(kafka: str) -> None:
    from confluent_kafka.admin import AdminClient

    began = time.monotonic()
    # Sockets lie below it, and their paths must be short.
    with tempfile.TemporaryDirectory(prefix="memos-") as folder:
        done = run(Path(folder), MEMOS_KAFKA=kafka)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "What you saw" in done.stdout
        assert list(Path(folder).iterdir()) == []
    assert time.monotonic() - began < DEMO_SECONDS_MAX
    left = [name for name in AdminClient({"bootstrap.servers": kafka}).list_topics(timeout=30).topics if "memos-demo" in name]
    assert left == []


@pytest.mark.parametrize("environment", [{"KAFKA_HOME": "/nonexistent"}, {"MEMOS_KAFKA": "no address"}])
def test_without_a_broker_one_line_says_what_to_do(environment: dict[str, str], tmp_path: Path) -> None:
    done = run(tmp_path, **environment)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_compose_file_of_the_documentation_is_one() -> None:
    yaml = pytest.importorskip("yaml")
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.M | re.S)
    found = yaml.safe_load(text)
    (broker,) = found["services"].values()
    assert broker["image"].startswith("apache/kafka:")
    settings = broker["environment"]
    assert all(name.startswith("KAFKA_") for name in settings)
    listeners = {entry.partition("://")[0] for entry in settings["KAFKA_LISTENERS"].split(",")}
    assert listeners == {entry.partition(":")[0] for entry in settings["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(",")}
    assert {volume.partition(":")[0] for volume in broker["volumes"]} == set(found["volumes"])
    # What clients are told to come to is what is published, and what the page's commands name.
    host, port = settings["KAFKA_ADVERTISED_LISTENERS"].partition("://")[2].split(":")
    assert f"{host}:{port}:9092" in broker["ports"]
    assert f"--log kafka://{host}:{port}/memos" in page
