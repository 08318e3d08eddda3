"""A broker whose disk is full: it dies of that, calls wait, and go on when there is space again. Runs in `make crash`.

The disk is a small tmpfs. What Kafka itself must write to live (its metadata log) lies elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.faults.load import FAULT_SECONDS
from tests.faults.scene import RECOVERY_SECONDS, THOROUGH, Scene
from tests.kafka import StartCluster

LEFT_BYTES = 256 << 10


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"THE BROKER'S FULL DISK IS NOT TESTED: a small file system needs root and mount ({done.stderr.strip()})")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def fill(filler: Path) -> None:
    """Leave a quarter of a mebibyte at most: a few calls more."""
    # The broker takes some of it meanwhile, perhaps all.
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while (space := os.statvfs(filler)).f_bavail * space.f_frsize > LEFT_BYTES:
            file.write(bytes(LEFT_BYTES // 4))


@pytest.mark.skipif(not THOROUGH, reason="runs in `make crash`")
def test_a_broker_whose_disk_fills_loses_nothing_acknowledged(small_disk: Path, cluster: StartCluster, tmp_path: Path) -> None:
    broker = cluster(settings={"log.dirs": small_disk / "data", "metadata.log.dir": tmp_path / "metadata"})
    filler = small_disk / "filler"
    with Scene(tmp_path / "kernel", broker.bootstrap) as scene:
        load = scene.load
        with load.running():
            load.goes_on(RECOVERY_SECONDS)
            fill(filler)
            process = broker.brokers[1].process
            assert process is not None
            process.wait(RECOVERY_SECONDS)
            time.sleep(FAULT_SECONDS)
            scene.runs()
            filler.unlink()
            broker.restart(1)
            load.goes_on(RECOVERY_SECONDS)
        scene.runs()
        scene.only_waited()
        scene.sound()
