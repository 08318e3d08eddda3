"""What a start must refuse, each with a message that says what to do; and that a refused start changes nothing."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
from tests.inside import Inside
from tests.outside import Daemon, Wire

from memos_kernel.boot import Refused
from memos_kernel.clock import ManualClock

DAY = 86_400


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with one cube, its kernel stopped."""
    with Inside(tmp_path / "data", rocks=True) as k:
        k("mem_alloc", namespace="alice", content="kept")
    return tmp_path / "data"


def refused(path: Path, match: str, *args: str, environment: dict[str, str] | None = None) -> None:
    """memosd ends at once, with status 1 and these words; afterwards everything is as before."""
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file() and file.parent == path / "keys"}
    (path.parent / f"{path.name}.stderr").unlink(missing_ok=True)
    daemon = Daemon(path, *args, environment=environment)
    assert daemon.ended() == 1, daemon.said()
    said = daemon.said()
    assert said.startswith("memosd: ") and match in said, said
    assert "Traceback" not in said
    assert all(file.read_bytes() == content for file, content in before.items())


def served(path: Path, *args: str, environment: dict[str, str] | None = None) -> None:
    """memosd serves what the fixture wrote."""
    with Daemon(path, "--accept-clock", *args, environment=environment) as daemon, Wire(daemon.socket) as wire:
        cubes = wire.call("mem_list")["cubes"]
        assert [wire.call("mem_read", cube_id=cube["cube_id"])["content"] for cube in cubes] == ["kept"]
        assert daemon.stop() == 0


def test_a_second_kernel_on_the_directory_is_refused_and_the_first_goes_on(data: Path) -> None:
    with Daemon(data, "--accept-clock") as daemon, Wire(daemon.socket) as wire:
        second = Daemon(data, "--socket", str(data.parent / "other.sock"), "--accept-clock")
        assert second.ended() == 1
        assert f"another kernel (pid {daemon.process.pid})" in daemon.said()
        wire.call("mem_alloc", namespace="alice", content="still here")


def test_a_second_kernel_on_the_socket_is_refused_and_a_stale_socket_is_replaced(data: Path, tmp_path: Path) -> None:
    with Daemon(data, "--accept-clock") as daemon:
        second = Daemon(tmp_path / "second", "--socket", str(daemon.socket))
        assert second.ended() == 1
        assert "another kernel answers at" in second.said()
        daemon.kill()
        assert daemon.socket.exists()
    served(data)


def test_a_missing_master_key_is_refused_and_no_new_one_is_made(data: Path) -> None:
    os.rename(data / "master.key", data.parent / "saved")
    refused(data, "no master key", "--accept-clock")
    assert not (data / "master.key").exists()
    served(data, "--master-key-file", str(data.parent / "saved"))


def test_another_master_key_is_refused(data: Path) -> None:
    (data / "master.key").write_text("00" * 32)
    refused(data, "master key does not open", "--accept-clock")


@pytest.mark.parametrize("text", ["", "zz" * 32, "00" * 31, "00" * 33])
def test_a_malformed_master_key_is_refused(data: Path, text: str) -> None:
    (data / "master.key").write_text(text)
    refused(data, "the master key in", "--accept-clock")


def test_a_master_key_that_others_can_read_is_refused(data: Path) -> None:
    for mode in (0o640, 0o604, 0o666):
        (data / "master.key").chmod(mode)
        refused(data, "chmod 600", "--accept-clock")


def test_the_master_key_may_come_from_the_environment_and_does_not_stay_there(data: Path) -> None:
    key = (data / "master.key").read_text().strip()
    (data / "master.key").unlink()
    with Daemon(data, "--accept-clock", environment={"MEMOS_MASTER_KEY": key}) as daemon, Wire(daemon.socket) as wire:
        assert len(wire.call("mem_list")["cubes"]) == 1
        daemon.stop()
        assert key not in daemon.said()
    refused(data, "does not open", "--accept-clock", environment={"MEMOS_MASTER_KEY": "11" * 32})


def test_secrets_and_contents_are_not_in_what_the_kernel_says(tmp_path: Path) -> None:
    with Daemon(tmp_path / "data", "--log-level", "debug") as daemon, Wire(daemon.socket) as wire:
        cube = wire.call("mem_alloc", namespace="alice", content="xyzzy", name="xyzzy", actor_note="xyzzy")["cube_id"]
        wire.call("mem_search", query="xyzzy")
        assert wire.refusal("mem_write", cube_id=cube, content="xyzzy", expect_version=9) == "ECONFLICT"
        assert wire.refusal("mem_write", cube_id=cube, content=["xyzzy"]) == "EINVAL"
        wire.call("mem_shred", cube_id=cube)
        daemon.stop()
        key = (tmp_path / "data" / "master.key").read_text().strip()
        assert "xyzzy" not in daemon.said() and key not in daemon.said()


def test_a_missing_key_store_is_refused(data: Path) -> None:
    shutil.move(data / "keys", data.parent / "keys")
    refused(data, "backup", "--accept-clock")
    shutil.move(data.parent / "keys", data / "keys")
    served(data)


def test_a_clock_that_is_behind_is_refused_unless_accepted(tmp_path: Path) -> None:
    start = time.time_ns()
    with Inside(tmp_path / "data", rocks=True, clock=ManualClock(start + 2 * 3600 * 10**9)) as k:
        k("mem_alloc", namespace="alice", content="kept")
    refused(tmp_path / "data", "--accept-clock")
    served(tmp_path / "data")


def test_a_clock_that_is_far_ahead_is_refused_unless_accepted(tmp_path: Path) -> None:
    start = time.time_ns()
    with Inside(tmp_path / "data", rocks=True, clock=ManualClock(start - 400 * DAY * 10**9)) as k:
        k("mem_alloc", namespace="alice", content="kept")
    refused(tmp_path / "data", "--accept-clock")
    served(tmp_path / "data")


def test_a_clock_within_bounds_never_takes_record_times_back(tmp_path: Path) -> None:
    clock = ManualClock()
    with Inside(tmp_path / "data", rocks=True, clock=clock) as k:
        first = k("mem_alloc", namespace="alice", content="one")["cube_id"]
        clock.advance(-1800)
        second = k("mem_alloc", namespace="alice", content="two")["cube_id"]
        k.reopen()
        third = k("mem_alloc", namespace="alice", content="three")["cube_id"]
        times = [k("mem_stat", cube_id=c)["header"]["created_at"] for c in (first, second, third)]
        assert times == sorted(times) and len(set(times)) == 3
        clock.advance(-3600 * 5)
        with pytest.raises(Refused, match="accept-clock"):
            k.reopen()


def test_a_read_only_kernel_reads_and_refuses_writes(data: Path) -> None:
    with Daemon(data, "--read-only", "--accept-clock") as daemon, Wire(daemon.socket) as wire:
        head = wire.call("sys_info")["head_offset"]
        assert len(wire.call("mem_list")["cubes"]) == 1
        assert wire.refusal("mem_alloc", namespace="alice", content="x") == "EROFS"
        assert wire.call("mem_search", query="kept")["hits"]
        assert wire.call("sys_info")["head_offset"] == head
        assert daemon.stop() == 0, daemon.said()
    served(data)


def test_a_stop_signs_the_end_of_the_log(data: Path) -> None:
    with Daemon(data, "--accept-clock") as daemon, Wire(daemon.socket) as wire:
        offset = wire.call("mem_alloc", namespace="alice", content="last")["offset"]
        assert daemon.stop() == 0
    with Daemon(data) as daemon, Wire(daemon.socket) as wire:
        assert wire.call("sys_verify", full=True)["ok"]
        assert wire.call("sys_info")["head_offset"] >= offset + 2
