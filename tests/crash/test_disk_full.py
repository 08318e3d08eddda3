"""A full disk: writes are refused with ENOSPC while reads, free and shred go on, and nothing acknowledged is lost."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.outside import Daemon, Wire

from memos_syscalls.errors import MemError

MIB = 1 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 96 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"THE FULL DISK IS NOT TESTED: a small file system needs root and mount ({done.stderr.strip()})")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def wait_for(wire: Wire, errno: str | None) -> None:
    """Until writes are refused like this, or accepted."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            wire.call("mem_alloc", namespace="probe", content="probe")
            found = None
        except MemError as error:
            found = error.errno
        if found == errno:
            return
        time.sleep(0.1)
    raise AssertionError(f"writes never became {errno or 'possible'}")


def test_a_nearly_full_disk_refuses_writes_until_there_is_space_and_loses_nothing(small_disk: Path) -> None:
    with Daemon(small_disk / "data", "--disk-reserve-mb", "16") as daemon, Wire(daemon.socket) as wire:
        kept = {wire.call("mem_alloc", namespace="alice", content=f"kept {n}")["cube_id"]: f"kept {n}" for n in range(20)}
        freed = wire.call("mem_alloc", namespace="alice", content="to be freed")["cube_id"]
        erased = wire.call("mem_alloc", namespace="alice", content="to be erased")["cube_id"]
        space = os.statvfs(small_disk)
        filler = small_disk / "filler"
        filler.write_bytes(bytes(max(space.f_bavail * space.f_frsize - 8 * MIB, 0)))
        wait_for(wire, "ENOSPC")
        for name, args in (
            ("mem_write", {"cube_id": freed, "content": "x"}), ("mem_fork", {"namespace": "alice", "to": "b"}),
            ("mem_alloc_many", {"items": [{"namespace": "a", "content": "x"}]}),
        ):  # fmt: skip
            assert wire.refusal(name, **args) == "ENOSPC"
        assert wire.call("mem_free", cube_id=freed)["state"] == "expired"
        assert wire.call("mem_shred", cube_id=erased)["report"]["shredded"] == [erased]
        assert [wire.call("mem_read", cube_id=cube)["content"] for cube in kept] == list(kept.values())
        assert wire.call("mem_search", query="kept")["hits"]
        filler.unlink()
        wait_for(wire, None)
        wire.call("mem_write", cube_id=next(iter(kept)), content="kept 0")
        daemon.kill()
        with Daemon(small_disk / "data", "--disk-reserve-mb", "16") as again, Wire(again.socket) as after:
            assert [after.call("mem_read", cube_id=cube)["content"] for cube in kept] == list(kept.values())
            assert after.refusal("mem_read", cube_id=erased) == "ESHREDDED"
            assert after.call("sys_verify", full=True)["ok"]


def test_a_disk_that_fills_to_the_last_byte_stops_the_kernel_and_loses_nothing(small_disk: Path) -> None:
    """No reserve is kept here, so a write meets the end of the disk itself."""
    acknowledged: dict[str, str] = {}
    with Daemon(small_disk / "data", "--disk-reserve-mb", "0") as daemon:
        with Wire(daemon.socket) as wire:
            try:
                for n in range(2000):
                    content = f"{n} " + "x" * 200_000
                    acknowledged[wire.call("mem_alloc", namespace="alice", content=content)["cube_id"]] = content
            except (MemError, OSError) as error:
                refusal = error
            else:
                raise AssertionError("the disk never filled")
        if not isinstance(refusal, MemError):
            assert daemon.ended() == 3, daemon.said()
            assert "restart it" in daemon.said()
        daemon.kill()
    assert acknowledged
    subprocess.run(["mount", "-o", "remount,size=256m", str(small_disk)], check=True)
    with Daemon(small_disk / "data", "--disk-reserve-mb", "16") as daemon, Wire(daemon.socket) as wire:
        for cube, content in acknowledged.items():
            assert wire.call("mem_read", cube_id=cube)["content"] == content
        wire.call("mem_alloc", namespace="alice", content="goes on")
        report = wire.call("sys_verify", full=True)
        assert report["ok"], report["problems"]
