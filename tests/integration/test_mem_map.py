"""mem_map over a real socket: what comes is the payload, sealed, and no descriptor stays behind on either side."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import mmap
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.outside import Daemon

from memos_client import AsyncKernel, Kernel, open_map
from memos_drivers.stores.base import PAYLOAD, Batch
from memos_drivers.stores.rocks import RocksStore
from memos_syscalls import limits
from memos_syscalls.errors import MemBusy, MemError, MemInvalid, MemIO, MemNotFound, MemShredded
from memos_syscalls.messages import MemMapReply

SIZES = (0, 1, 1024, limits.PAYLOAD_CHUNK_BYTES, limits.PAYLOAD_CHUNK_BYTES + 1, 600 * limits.KIB, 20 * limits.MIB)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("map") / "data", "--model", "none", "--host-tier-mb", "64") as daemon:
        yield daemon


@pytest.fixture
def k(daemon: Daemon) -> Iterator[Kernel]:
    with Kernel.connect(daemon.socket) as kernel:
        yield kernel


def alloc(k: Kernel, content: str | bytes) -> str:
    return k.mem_alloc("alice", content).cube_id


def taken(reply: MemMapReply) -> bytes:
    """What a reply's descriptor holds; closes it."""
    try:
        return os.pread(reply.fd, os.fstat(reply.fd).st_size, 0)
    finally:
        os.close(reply.fd)


def descriptors(pid: int) -> int:
    """Memory that a process holds by descriptor; its files and sockets are not counted."""
    found = 0
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found += "memfd:" in os.readlink(f"/proc/{pid}/fd/{name}")
    return found


def settled(pid: int, wanted: int) -> int:
    """The same, once it is as wanted, or a second went by: the kernel closes its duplicate after the reply has left."""
    until = time.monotonic() + 1
    while (count := descriptors(pid)) != wanted and time.monotonic() < until:
        time.sleep(0.01)
    return count


def test_every_size_comes_whole_from_the_disk_and_then_from_memory(k: Kernel) -> None:
    for size in SIZES:
        data = os.urandom(size)
        cube = alloc(k, data)
        first, second = k.mem_map(cube), k.mem_map(cube)
        assert (first.tier, second.tier) == ("disk", "host")
        assert (first.form, first.version, first.bytes, first.encoding) == ("plaintext", 1, size, "bytes")
        assert taken(first) == data == taken(second)


def test_text_says_that_it_is_text(k: Kernel) -> None:
    reply = k.mem_map(alloc(k, "Straße"))
    assert (reply.encoding, reply.bytes, reply.layout) == ("text", 7, None)
    with open_map(reply) as memory:
        assert memory[:].decode() == "Straße"
    with pytest.raises(OSError):
        os.fstat(reply.fd)


def test_an_empty_payload_has_a_descriptor_and_no_memory(k: Kernel) -> None:
    reply = k.mem_map(alloc(k, b""))
    with pytest.raises(MemInvalid):
        open_map(reply)
    with pytest.raises(OSError):
        os.fstat(reply.fd)


def test_nobody_writes_to_what_others_read(k: Kernel) -> None:
    data = b"as it was" * 1000
    cube = alloc(k, data)
    reply = k.mem_map(cube)
    for attempt in (
        lambda: os.pwrite(reply.fd, b"x", 0), lambda: os.ftruncate(reply.fd, 1), lambda: os.ftruncate(reply.fd, 1 << 20),
        lambda: mmap.mmap(reply.fd, reply.bytes), lambda: fcntl.fcntl(reply.fd, fcntl.F_ADD_SEALS, 0),
    ):  # fmt: skip
        with pytest.raises(OSError):
            attempt()
    with mmap.mmap(reply.fd, reply.bytes, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as own:
        own[:5] = b"AS IT"
        assert own[:9] == b"AS IT was"
    assert taken(reply) == data == taken(k.mem_map(cube))


def test_the_past_is_mapped_as_it_is_read(k: Kernel) -> None:
    cube = k.mem_alloc("alice", "one")
    second = k.mem_write(cube.cube_id, "two")
    assert taken(k.mem_map(cube.cube_id)) == b"two"
    assert taken(k.mem_map(cube.cube_id, version=1)) == b"one"
    past = k.mem_map(cube.cube_id, at_offset=cube.offset)
    assert (past.version, past.offset, taken(past)) == (1, cube.offset, b"one")
    assert taken(k.mem_map(cube.cube_id, at_offset=second.offset)) == b"two"
    with pytest.raises(MemNotFound):
        k.mem_map(cube.cube_id, version=3)
    k.mem_free(cube.cube_id)
    with pytest.raises(MemNotFound):
        k.mem_map(cube.cube_id)
    assert taken(k.mem_map(cube.cube_id, version=2)) == b"two"


def test_a_fork_shares_the_memory_of_its_source(k: Kernel) -> None:
    data = os.urandom(1000)
    k.mem_alloc("original", data)
    k.mem_fork("original", "copy")
    source, copy = k.mem_list(namespace="original")[0].cube_id, k.mem_list(namespace="copy")[0].cube_id
    os.close(k.mem_map(source).fd)
    reply = k.mem_map(copy)
    assert (reply.tier, taken(reply)) == ("host", data)


def test_a_composition_has_nothing_of_its_own(k: Kernel) -> None:
    made = k.mem_compose([alloc(k, "a"), alloc(k, "b")], "alice")
    with pytest.raises(MemInvalid, match="Map its members"):
        k.mem_map(made.cube_id)


def test_what_was_shredded_is_gone_and_the_report_says_who_has_it(k: Kernel) -> None:
    cube, other = alloc(k, os.urandom(600_000)), alloc(k, "other")
    k.mem_write(cube, "two")
    for version in (1, 1, 2):
        os.close(k.mem_map(cube, version=version).fd)
    os.close(k.mem_map(other).fd)
    reply = k.mem_map(cube, version=1)
    before = k.sys_stats().tiers["host"]
    report = k.mem_shred(cube, request_id="once").report
    me = f"uid:{os.getuid()} pid {os.getpid()}"
    assert report.maps == [f"{me}: version 1 of {cube}", f"{me}: version 2 of {cube}"]
    assert k.mem_shred(cube, request_id="once").report.maps == report.maps
    for number in (None, 1, 2):
        with pytest.raises(MemShredded):
            k.mem_map(cube, version=number)
    after = k.sys_stats().tiers["host"]
    assert before["entries"] - after["entries"] == 2
    # What was handed out stays readable: it is the client's.
    assert len(taken(reply)) == 600_000
    assert k.mem_shred(alloc(k, "nobody looked")).report.maps == []


def test_a_budget_is_kept(k: Kernel) -> None:
    cubes = [alloc(k, os.urandom(20 * limits.MIB)) for _ in range(4)]
    for cube in cubes:
        os.close(k.mem_map(cube).fd)
    stats = k.sys_stats().tiers["host"]
    assert stats["bytes"] <= stats["budget"] == 64 * limits.MIB
    assert stats["evictions"] >= 1
    assert [k_map(k, cube) for cube in cubes[-2:]] == ["host", "host"]
    assert k_map(k, cubes[0]) == "disk"
    large = alloc(k, os.urandom(65 * limits.MIB))
    assert [k_map(k, large) for _ in range(2)] == ["disk", "disk"], "more than the tier holds is passed on all the same"


def k_map(k: Kernel, cube: str) -> str:
    reply = k.mem_map(cube)
    os.close(reply.fd)
    return reply.tier


def test_thousands_of_maps_leave_nothing_behind(k: Kernel, daemon: Daemon) -> None:
    pid = daemon.process.pid
    cubes = [alloc(k, f"{n}") for n in range(10)]
    for cube in cubes:
        os.close(k.mem_map(cube).fd)
    mine, theirs = descriptors(os.getpid()), settled(pid, 0)  # nothing is on its way
    for n in range(3000):
        os.close(k.mem_map(cubes[n % 10]).fd)
    assert descriptors(os.getpid()) == mine
    assert settled(pid, theirs) == theirs


def test_many_ask_at_once_and_it_is_loaded_once(k: Kernel, daemon: Daemon) -> None:
    data = os.urandom(8 * limits.MIB)
    cube = alloc(k, data)
    misses = k.sys_stats().tiers["host"]["evictions"]
    found: list[bytes] = []

    def ask() -> None:
        with Kernel.connect(daemon.socket) as own:
            found.append(taken(own.mem_map(cube)))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [data] * 8
    assert k.sys_stats().tiers["host"]["loading"] == 0
    assert k.sys_stats().tiers["host"]["evictions"] - misses <= 4


def test_both_clients_hand_the_descriptor_over(daemon: Daemon) -> None:
    async def go() -> None:
        async with AsyncKernel.connect(daemon.socket) as k:
            cube = (await k.mem_alloc("alice", b"x" * 2_000_000)).cube_id
            before = descriptors(os.getpid())
            replies = await asyncio.gather(*(k.mem_map(cube) for _ in range(20)))
            assert len({reply.fd for reply in replies}) == 20
            assert {len(taken(reply)) for reply in replies} == {2_000_000}
            for _ in range(20):
                task = asyncio.ensure_future(k.mem_map(cube))
                await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            assert (await k.mem_stat(cube)).header.bytes == 2_000_000
            with pytest.raises(MemError):
                await k.mem_map(cube, version=9)
            assert descriptors(os.getpid()) == before

    asyncio.run(go())


def test_a_connection_maps_so_many_payloads(k: Kernel, daemon: Daemon) -> None:
    made = [item.cube_id for item in k.mem_alloc_many([{"namespace": "many", "content": f"{n}"} for n in range(1024)]).items]
    made.append(alloc(k, "one more"))
    for cube in made[:-1]:
        os.close(k.mem_map(cube).fd)
    with pytest.raises(MemBusy, match="until their connection closes"):
        k.mem_map(made[-1])
    os.close(k.mem_map(made[0]).fd)
    with Kernel.connect(daemon.socket) as another:
        os.close(another.mem_map(made[-1]).fd)


def test_maps_outlive_the_kernel_and_it_begins_anew(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with Daemon(data, "--model", "none") as first, Kernel.connect(first.socket) as k:
        content = os.urandom(2_000_000)
        cube = alloc(k, content)
        held = k.mem_map(cube)
        assert first.stop() == 0
    assert taken(held) == content
    with Daemon(data, "--model", "none") as second, Kernel.connect(second.socket) as k:
        reply = k.mem_map(cube)
        assert (reply.tier, taken(reply)) == ("disk", content)
        # Maps of a kernel that is gone are not in the report: this one did not hand them out.
        assert k.mem_shred(cube).report.maps == [f"uid:{os.getuid()} pid {os.getpid()}: version 1 of {cube}"]


def test_a_payload_that_was_damaged_is_refused_by_name(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with Daemon(data, "--model", "none") as daemon, Kernel.connect(daemon.socket) as k:
        cube, good = alloc(k, os.urandom(2_000_000)), alloc(k, b"good" * 10_000)
        assert daemon.stop() == 0
    store = RocksStore(data / "db")
    key, sealed = next((key, value) for key, value in store.live(PAYLOAD).scan(b"") if len(value) > limits.PAYLOAD_CHUNK_BYTES)
    batch = Batch()
    batch.puts.append((PAYLOAD, key, sealed[:1000] + bytes([sealed[1000] ^ 1]) + sealed[1001:]))
    store.write(batch)
    store.close()
    with Daemon(data, "--model", "none") as daemon, Kernel.connect(daemon.socket) as k:
        before = descriptors(daemon.process.pid)
        for _ in range(3):
            with pytest.raises(MemIO, match=cube.replace("-", "")):
                k.mem_map(cube)
        assert taken(k.mem_map(good)) == b"good" * 10_000
        assert settled(daemon.process.pid, before + 1) == before + 1
