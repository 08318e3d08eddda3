"""Those who map to harm: other people's cubes, descriptors that nobody asked for, replies that are never read."""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import resource
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.inside import ADMIN, ALICE, BOB, Inside, Peer
from tests.outside import Daemon, Wire

from memos_client import Kernel
from memos_kernel import mapping
from memos_kernel.server import OUTBOX_FDS_MAX
from memos_syscalls import limits
from memos_syscalls.errors import MemBusy
from memos_syscalls.table import BY_NAME

NO_SUCH = "01890000-0000-7000-8000-000000000000"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("maps") / "data", "--model", "none") as daemon:
        yield daemon


def descriptors(pid: int) -> int:
    """Descriptors of a process, less those of the database, which opens and closes files as it likes."""
    found = 0
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found += "/data/db/" not in os.readlink(f"/proc/{pid}/fd/{name}")
    return found


def settled(pid: int, most: int) -> int:
    """The descriptors of a process, once they are few enough or two seconds went by."""
    until = time.monotonic() + 2
    while (count := descriptors(pid)) > most and time.monotonic() < until:
        time.sleep(0.02)
    return count


def lives(daemon: Daemon, cube: str) -> None:
    with Kernel.connect(daemon.socket) as k:
        os.close(k.mem_map(cube).fd)


def test_others_cubes_cannot_be_mapped_or_pinned(k: Inside) -> None:
    """Refused as a read is, whatever version is asked for."""
    cube = k("mem_alloc", ALICE, namespace="alice", content="hers")["cube_id"]
    assert k("mem_map", ALICE, cube_id=cube)["content"] == b"hers"
    assert k("mem_map", ADMIN, cube_id=cube)["content"] == b"hers"
    for args in ({}, {"version": 1}, {"version": 7}, {"at_offset": 0}):
        assert k.refusal("mem_map", BOB, cube_id=cube, **args) == k.refusal("mem_read", BOB, cube_id=cube, **args) == "EACCES"
        assert k.refusal("mem_map", BOB, cube_id=NO_SUCH, **args) == "EACCES", "no other answer tells that it is there"
    for call in ("mem_pin", "mem_unpin"):
        assert k.refusal(call, BOB, cube_id=cube) == "EACCES"
    k("mem_shred", ALICE, cube_id=cube)
    assert k.refusal("mem_map", BOB, cube_id=cube) == "EACCES"
    assert k.refusal("mem_map", ALICE, cube_id=cube) == "ESHREDDED"


def test_limits_hold_for_each_connection_and_each_principal(k: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAPS_PER_CONNECTION_MAX", 3)
    cubes = [k("mem_alloc", ALICE, namespace="alice", content=f"{n}" * 100)["cube_id"] for n in range(4)]
    for cube in cubes[:3] * 2:
        k("mem_map", ALICE, cube_id=cube)
    assert k.refusal("mem_map", ALICE, cube_id=cubes[3]) == "EBUSY"
    k("mem_map", ADMIN, cube_id=cubes[3])
    monkeypatch.setattr(limits, "MAPS_PER_CONNECTION_MAX", 100)
    monkeypatch.setattr(limits, "MAPPED_BYTES_PER_PRINCIPAL_MAX", 399)
    assert k.refusal("mem_map", ALICE, cube_id=cubes[3]) == "EBUSY"
    maps = k.kernel.maps
    view = k.kernel.view
    cube = next(view.cube(i) for i in view.cubes_below("alice"))
    assert cube is not None
    found = view.version(cube, 1)
    assert found is not None
    # Another connection of the same principal: its bytes count too, until it closes.
    monkeypatch.setattr(limits, "MAPPED_BYTES_PER_PRINCIPAL_MAX", 400)
    another = Peer(ALICE)
    maps.lend(another, cube, found[0])
    assert k.refusal("mem_map", ALICE, cube_id=cubes[3]) == "EBUSY"
    maps.closed(another)
    k("mem_map", ALICE, cube_id=cubes[3])
    maps.closed(another)
    with pytest.raises(MemBusy):
        maps.lend(Peer(ALICE), cube, found[0])


def test_what_is_remembered_for_reports_is_bounded(k: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapping, "REMEMBERED_MAX", 5)
    monkeypatch.setattr(mapping, "PER_KEY_MAX", 2)
    cubes = [k("mem_alloc", ALICE, namespace="alice", content=f"{n}")["cube_id"] for n in range(7)]
    for cube in cubes:
        k("mem_map", ALICE, cube_id=cube)
    reports = [k("mem_shred", ALICE, cube_id=cube)["report"]["maps"] for cube in cubes]
    assert [len(report) for report in reports] == [0, 0, 1, 1, 1, 1, 1]
    cube = k("mem_alloc", ALICE, namespace="alice", content="1")["cube_id"]
    for text in "234":
        k("mem_write", ALICE, cube_id=cube, content=text)
    for version in (1, 2, 3, 4):
        k("mem_map", ALICE, cube_id=cube, version=version)
    assert k("mem_shred", ALICE, cube_id=cube)["report"]["maps"] == [
        f"{ALICE.principal}: version {n} of {cube}" for n in (3, 4)
    ]


def test_descriptors_that_no_call_asked_for_are_closed(daemon: Daemon) -> None:
    with Wire(daemon.socket) as wire, tempfile.TemporaryFile() as file:
        cube = wire.call("mem_alloc", namespace="alice", content="x")["cube_id"]
        lives(daemon, cube)
        before = descriptors(daemon.process.pid)
        read, write = os.pipe()
        for fds in ([file.fileno()], [read, write], [wire.sock.fileno()]):
            wire.send(wire.request("mem_map", cube_id=cube), fds)
            wire.answer(wire.last_id)
            wire.send(wire.request("mem_read", cube_id=cube), fds)
            wire.answer(wire.last_id)
            assert wire.refusal("mem_map", cube_id=cube, fd=0) == "EINVAL"
        os.close(read)
        os.close(write)
        assert settled(daemon.process.pid, before) <= before
    lives(daemon, cube)


def test_a_map_given_back_as_content_is_content(daemon: Daemon) -> None:
    """A sealed descriptor of the kernel's own is as good as any; the same one in two calls is two contents."""
    data = os.urandom(2 * limits.MIB)
    with Kernel.connect(daemon.socket) as k, Wire(daemon.socket) as wire:
        cube = k.mem_alloc("alice", data).cube_id
        fd = k.mem_map(cube).fd
        for _ in range(2):
            wire.send(wire.request("mem_alloc", namespace="alice", fd=0, encoding="bytes"), [fd])
            again = wire.answer(wire.last_id)["cube_id"]
            assert k.mem_read(again).content == data
        os.close(fd)


def test_a_client_that_never_reads_stops_being_read(daemon: Daemon) -> None:
    pid = daemon.process.pid
    with Kernel.connect(daemon.socket) as k:
        cube = k.mem_alloc("alice", b"x" * 100_000).cube_id
        os.close(k.mem_map(cube).fd)
    before = descriptors(pid)
    deaf = Wire(daemon.socket)
    deaf.sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        for _ in range(20_000):
            deaf.sock.send(deaf.request("mem_map", cube_id=cube))
    time.sleep(0.3)
    assert descriptors(pid) <= before + OUTBOX_FDS_MAX + limits.LONG_PER_CONNECTION_MAX + 8
    lives(daemon, cube)
    deaf.close()
    assert settled(pid, before + 16) <= before + 16


def test_those_who_leave_early_leave_nothing(daemon: Daemon) -> None:
    pid = daemon.process.pid
    with Kernel.connect(daemon.socket) as k:
        large = k.mem_alloc("alice", os.urandom(16 * limits.MIB)).cube_id
        os.close(k.mem_map(large).fd)
        stats = k.sys_stats().tiers["host"]
        before = descriptors(pid)
        for _ in range(30):
            wire = Wire(daemon.socket)
            for _ in range(5):
                wire.send(wire.request("mem_map", cube_id=large))
            wire.close()
        # The database opens and closes files meanwhile; 150 maps that leaked would be many more.
        assert settled(pid, before + 16) <= before + 16
        assert k.sys_stats().tiers["host"]["entries"] == stats["entries"]
    lives(daemon, large)


def test_a_load_whose_caller_left_or_ran_out_of_time_is_given_up(tmp_path: Path) -> None:
    with Daemon(tmp_path / "data", "--model", "none") as daemon, Kernel.connect(daemon.socket) as k:
        large = k.mem_alloc("alice", os.urandom(64 * limits.MIB)).cube_id
        pid = daemon.process.pid
        before = descriptors(pid)
        wire = Wire(daemon.socket)
        wire.send(wire.request("mem_map", cube_id=large))
        time.sleep(0.01)
        wire.close()
        with Wire(daemon.socket) as hurried:
            hurried.send(hurried.request("mem_map", cube_id=large, deadline_ms=1))
            _call_id, status, _body = hurried.receive()
            assert status
            hurried.send(hurried.request("mem_map", cube_id=large))
            canceled = hurried.last_id
            assert hurried.call("sys_cancel", call=canceled)["canceled"] in (True, False)
        assert settled(pid, before + 1) <= before + 1
        lives(daemon, large)


def test_a_reader_without_room_for_descriptors_harms_itself(daemon: Daemon) -> None:
    """A client that is out of descriptors gets a frame without one; the kernel keeps none either."""
    with Kernel.connect(daemon.socket) as k:
        cube = k.mem_alloc("alice", "x").cube_id
    lives(daemon, cube)
    pid = daemon.process.pid
    before = descriptors(pid)
    with Wire(daemon.socket) as wire:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wire.send(wire.request("mem_map", cube_id=cube))
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1, hard))
        try:
            _data, ancillary, _flags, _address = wire.sock.recvmsg(65536, 256)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for _level, _kind, payload in ancillary:
            for fd in array.array("i", payload[: len(payload) // 4 * 4]):
                os.close(fd)
    assert settled(pid, before + 16) <= before + 16
    lives(daemon, cube)


def test_a_map_while_its_cube_is_shredded_is_one_or_the_other(k: Inside) -> None:
    """Whatever comes first; afterwards the tier holds nothing of it."""
    for delay in (0, 1, 3, 10):
        cube = k("mem_alloc", ALICE, namespace="alice", content="x" * 400_000)["cube_id"]
        peer = Peer(ALICE)

        async def race(cube: str = cube, delay: int = delay, peer: Peer = peer) -> object:
            loop = asyncio.get_running_loop()
            calls: list[asyncio.Future[dict[str, object]]] = []
            for call_id, name in ((1, "mem_map"), (2, "mem_shred")):
                future: asyncio.Future[dict[str, object]] = loop.create_future()
                peer.waiting[call_id] = future
                calls.append(future)
                turn = k.kernel.call(peer, call_id, BY_NAME[name].number, {"cube_id": cube}, [])
                if turn is not None:
                    peer.turns[call_id] = turn
                for _ in range(delay):
                    await asyncio.sleep(0)
            return await asyncio.gather(*calls, return_exceptions=True)

        found = k.loop.run_until_complete(race())
        assert isinstance(found, list)
        assert isinstance(found[0], dict) or found[0].errno in ("ESHREDDED", "EIO")
        assert isinstance(found[1], dict)
        assert k.refusal("mem_map", ALICE, cube_id=cube) == "ESHREDDED"
        assert k.kernel.hosttier.stats()["entries"] == 0


def test_a_socket_that_is_closed_for_reading_is_a_closed_one(daemon: Daemon) -> None:
    with Kernel.connect(daemon.socket) as k:
        cube = k.mem_alloc("alice", b"y" * 1000).cube_id
    lives(daemon, cube)
    before = descriptors(daemon.process.pid)
    wire = Wire(daemon.socket)
    wire.send(wire.request("mem_map", cube_id=cube))
    wire.sock.shutdown(socket.SHUT_RD)
    with contextlib.suppress(OSError):
        for _ in range(50):
            wire.send(wire.request("mem_map", cube_id=cube))
    wire.close()
    assert settled(daemon.process.pid, before) <= before
    lives(daemon, cube)
