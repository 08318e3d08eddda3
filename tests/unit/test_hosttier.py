"""The host tier beside a real vault: one load for many, callers who leave, keys that go while a load is under way, pins."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.inside import ALICE, Inside

from memos_drivers.tensors import plan
from memos_kernel.decide import Call, new_cube
from memos_kernel.events import Damaged
from memos_kernel.fds import is_sealed, sealed_memfd
from memos_kernel.governance import raw_id, text_id
from memos_kernel.hosttier import HostTier, Memory
from memos_kernel.private import Private
from memos_kernel.state import Cube, Version
from memos_kernel.writes import Fresh
from memos_syscalls import limits
from memos_syscalls.errors import MemAgain, MemInvalid, MemIO, MemShredded

BIG = limits.PAYLOAD_CHUNK_BYTES + 5


def memfds() -> int:
    gc.collect()
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            found += "memfd:memos" in os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
    return found


def memfds_left(count: int) -> int:
    """How many there are; what is over this count has a moment to go: a worker thread may still hold its last result."""
    end = time.monotonic() + 5
    while (found := memfds()) > count and time.monotonic() < end:
        time.sleep(0.01)
    return found


def held_by(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


class Gate:
    """Reads of payloads wait until it opens."""

    def __init__(self, k: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.reads = 0
        vault = k.kernel.vault
        pieces = vault.open_pieces

        def waiting(version: Version) -> Iterator[memoryview]:
            self.reads += 1
            self.open.wait(10)
            yield from pieces(version)

        monkeypatch.setattr(vault, "open_pieces", waiting)


def alloc(k: Inside, content: bytes, **more: Any) -> tuple[Cube, Version]:
    return row_of(k, k("mem_alloc", ALICE, namespace="alice", content=content, **more)["cube_id"])


def row_of(k: Inside, cube_id: str, version: int | None = None) -> tuple[Cube, Version]:
    view = k.kernel.view
    cube = view.cube(raw_id(cube_id))
    assert cube is not None
    found = view.version(cube, version or cube.version)
    assert found is not None
    return cube, found[0]


def tier_of(k: Inside, budget: int = 10 * limits.MIB, clock: Any = None) -> HostTier:
    tier = HostTier(k.kernel.vault, lambda: k.kernel.view, budget, *([clock] if clock else []))
    k.kernel.hosttier = tier
    return tier


def activation(k: Inside, content: bytes, **recipe: Any) -> str:
    """A cube of tensors, as a driver would have made it."""
    kernel = k.kernel
    alloc(k, b"the namespace is hers")

    async def make() -> str:
        time = kernel.chain.next_time(kernel.clock.now())
        stored: list[bytes] = []
        slot = kernel.vault.reserve_slot()
        large: Any = content
        if len(content) > limits.PAYLOAD_CHUNK_BYTES:
            large = kernel._store_large_in_thread(content, slot, stored)  # pyright: ignore[reportPrivateUsage]
        call = Call(None, ALICE, kernel.chain.seq + 1, time, Fresh(kernel.vault, time, slot), kernel.opener, b"h" * 32, [])
        private = Private(b"h" * 32, recipe=recipe or None, encoding="bytes")
        cube_id, draft = new_cube(call, "alice", large, private, form="activation")
        inline: list[tuple[bytes, bytes]] = []
        events = kernel.vault.seal([draft], inline)
        kernel.vault.kept()
        kernel.tables.payloads.extend(inline)
        kernel.append_own(events, None)
        await kernel.drained()
        return text_id(cube_id)

    return k.loop.run_until_complete(make())


def test_many_callers_share_one_load(k: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    content = os.urandom(BIG)
    cube, row = alloc(k, content)
    tier, gate = tier_of(k), Gate(k, monkeypatch)

    async def go() -> None:
        loads = [asyncio.ensure_future(tier.load(cube, row)) for _ in range(10)]
        await asyncio.sleep(0.01)
        assert tier.stats()["loading"] == 1
        gate.open.set()
        held = await asyncio.gather(*loads)
        assert gate.reads == 1 and {h.found for h in held} == {"disk"}
        assert len({h.fd for h in held}) == 1 and held_by(held[0].fd) == content and is_sealed(held[0].fd)
        assert (await tier.load(cube, row)).found == "host"
        assert tier.seconds_to_load(row) == 0.0

    k.loop.run_until_complete(go())
    assert (tier.stats()["hits"], tier.stats()["misses"]) == (1, 10)


def test_few_loads_run_at_once(k: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [alloc(k, os.urandom(1000)) for _ in range(5)]
    tier, gate = tier_of(k), Gate(k, monkeypatch)

    async def go() -> None:
        loads = [asyncio.ensure_future(tier.load(*one)) for one in made]
        await asyncio.sleep(0.05)
        assert gate.reads == 2
        gate.open.set()
        await asyncio.gather(*loads)

    k.loop.run_until_complete(go())
    assert gate.reads == 5


def test_a_caller_who_leaves_takes_nothing_from_the_others(k: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    content = os.urandom(BIG)
    cube, row = alloc(k, content)
    before = memfds()
    tier, gate = tier_of(k), Gate(k, monkeypatch)

    async def go() -> None:
        one, two = (asyncio.ensure_future(tier.load(cube, row)) for _ in range(2))
        await asyncio.sleep(0.01)
        one.cancel()
        await asyncio.sleep(0.01)
        gate.open.set()
        held = await two
        assert one.cancelled() and gate.reads == 1
        assert held_by(held.fd) == content

    k.loop.run_until_complete(go())
    tier.close()
    assert memfds_left(before) == before


def test_a_load_that_nobody_waits_for_is_given_up_and_can_be_asked_for_again(
    k: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    cube, row = alloc(k, os.urandom(BIG))
    before = memfds()
    tier, gate = tier_of(k), Gate(k, monkeypatch)

    async def go() -> None:
        one = asyncio.ensure_future(tier.load(cube, row))
        await asyncio.sleep(0.01)
        one.cancel()
        await asyncio.gather(one, return_exceptions=True)
        assert tier.stats()["loading"] == 0
        two = asyncio.ensure_future(tier.load(cube, row))
        await asyncio.sleep(0.01)
        gate.open.set()
        assert (await two).found == "disk"

    k.loop.run_until_complete(go())
    assert gate.reads == 2
    tier.drop([row.payload_id])
    assert memfds_left(before) == before


def test_a_key_that_goes_while_its_payload_is_loaded_takes_it_along(k: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    made = k("mem_alloc", ALICE, namespace="alice", content=os.urandom(BIG))["cube_id"]
    cube, row = row_of(k, made)
    before = memfds()
    tier, gate = tier_of(k), Gate(k, monkeypatch)
    load = k.loop.create_task(tier.load(cube, row))
    k.loop.run_until_complete(asyncio.sleep(0.01))
    k("mem_shred", ALICE, cube_id=made)
    gate.open.set()
    with pytest.raises(MemShredded):
        k.loop.run_until_complete(load)
    assert tier.stats()["entries"] == 0
    with pytest.raises(MemShredded):
        k.loop.run_until_complete(tier.load(cube, row))
    with pytest.raises(MemShredded):
        tier.put(row, sealed_memfd(bytes(row.payload_bytes)), 1.0)
    del load
    assert memfds_left(before) == before


def test_what_is_in_use_outlives_its_place_in_the_tier(k: Inside) -> None:
    content = os.urandom(1000)
    cube, row = alloc(k, content)
    before = memfds()
    tier = tier_of(k)
    held = k.loop.run_until_complete(tier.load(cube, row))
    tier.drop([row.payload_id])
    assert held_by(held.fd) == content
    del held
    assert memfds_left(before) == before


def test_only_sealed_memory_of_the_right_size_is_taken_in(k: Inside) -> None:
    content = os.urandom(1000)
    cube, row = alloc(k, content)
    before = memfds()
    tier = tier_of(k)
    for fd in (sealed_memfd(content[1:]), os.memfd_create("memos", os.MFD_ALLOW_SEALING), os.open("/", os.O_RDONLY)):
        with pytest.raises(MemInvalid):
            tier.put(row, fd, 0.0)
        with pytest.raises(OSError):
            os.fstat(fd)
    assert memfds_left(before) == before
    assert tier.put(row, sealed_memfd(content), 3.0) == "kept"
    assert k.loop.run_until_complete(tier.load(cube, row)).found == "host"


def test_what_cost_a_prefill_stays_longer_than_text(k: Inside) -> None:
    """The recipe says what it cost."""
    header, layout = plan([("k.0", "U8", (400_000,))], {})
    cache = header + bytes(layout.size - len(header))
    now = [0.0]
    tier = tier_of(k, 1_000_000, lambda: now[0])
    made = activation(k, cache, method="prefill", prefill_seconds=30.0)
    texts = [alloc(k, os.urandom(400_000)) for _ in range(3)]
    k.loop.run_until_complete(tier.load(*row_of(k, made)))
    for text in texts:
        now[0] += 1
        k.loop.run_until_complete(tier.load(*text))
    assert tier.seconds_to_load(row_of(k, made)[1]) == 0.0
    assert [tier.seconds_to_load(row) > 0 for _cube, row in texts] == [True, True, False]


def test_a_failure_is_everybodys_and_is_forgotten(k: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    cube, row = alloc(k, os.urandom(BIG))
    tier = tier_of(k)
    broken: list[BaseException] = [OSError("no room"), Damaged("it does not open")]

    def failing(version: Version) -> Iterator[memoryview]:
        yield memoryview(b"x")
        raise broken[0]

    before = memfds()
    for kind in (MemIO, Damaged):
        with monkeypatch.context() as patch:
            patch.setattr(k.kernel.vault, "open_pieces", failing)

            async def go(kind: type[BaseException] = kind) -> None:
                results = await asyncio.gather(*(tier.load(cube, row) for _ in range(3)), return_exceptions=True)
                assert [type(result) for result in results] == [kind] * 3

            k.loop.run_until_complete(go())
        del broken[0]
    assert memfds_left(before) == before
    assert k.loop.run_until_complete(tier.load(cube, row)).found == "disk"


def test_a_closed_tier_lets_everything_go(k: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    before = memfds()
    made = [alloc(k, os.urandom(BIG)) for _ in range(2)]
    tier = tier_of(k)
    k.loop.run_until_complete(tier.load(*made[0]))
    gate = Gate(k, monkeypatch)

    async def go() -> None:
        load = asyncio.ensure_future(tier.load(*made[1]))
        await asyncio.sleep(0.01)
        tier.close()
        gate.open.set()
        with pytest.raises(asyncio.CancelledError):
            await load
        with pytest.raises(MemAgain):
            await tier.load(*made[0])
        assert tier.put(made[0][1], sealed_memfd(bytes(BIG)), 0.0) == "too large"
        await asyncio.sleep(0.05)

    k.loop.run_until_complete(go())
    assert memfds_left(before) == before


def test_a_pin_holds_the_newest_payload_only(k: Inside) -> None:
    tier = tier_of(k, 1000)
    made = k("mem_alloc", ALICE, namespace="alice", content=b"1" * 400)["cube_id"]
    k.loop.run_until_complete(tier.load(*row_of(k, made)))
    k("mem_pin", ALICE, cube_id=made)
    assert tier.stats()["pinned"] == 400
    k("mem_write", ALICE, cube_id=made, content=b"2" * 500)
    assert tier.stats()["pinned"] == 0
    k.loop.run_until_complete(tier.load(*row_of(k, made)))
    assert tier.stats()["pinned"] == 500
    for _ in range(3):
        k.loop.run_until_complete(tier.load(*alloc(k, os.urandom(450))))
    assert tier.seconds_to_load(row_of(k, made)[1]) == 0.0
    refused = alloc(k, os.urandom(501))
    assert k.loop.run_until_complete(tier.load(*refused)).bytes == 501
    assert tier.seconds_to_load(refused[1]) > 0
    k("mem_unpin", ALICE, cube_id=made)
    k.loop.run_until_complete(tier.load(*refused))
    assert tier.stats()["pinned"] == 0 and tier.seconds_to_load(refused[1]) == 0.0
    k("mem_pin", ALICE, cube_id=made)
    k.loop.run_until_complete(tier.load(*row_of(k, made)))
    k("mem_free", ALICE, cube_id=made)
    assert tier.stats()["pinned"] == 0


def test_a_forks_pin_holds_its_sources_payload(k: Inside) -> None:
    tier = tier_of(k, 1000)
    made = k("mem_alloc", ALICE, namespace="alice", content=b"1" * 400)["cube_id"]
    k("mem_fork", ALICE, namespace="alice", to="copy")
    copy = k("mem_list", ALICE, namespace="copy")["cubes"][0]["cube_id"]
    k("mem_pin", ALICE, cube_id=copy)
    k.loop.run_until_complete(tier.load(*row_of(k, made)))
    assert tier.stats()["pinned"] == 0
    assert k.loop.run_until_complete(tier.load(*row_of(k, copy))).found == "host"
    assert tier.stats()["pinned"] == 400
    k("mem_write", ALICE, cube_id=copy, content="its own")
    assert tier.stats()["pinned"] == 0


def test_tensors_are_mapped_with_their_layout_and_read_only_when_small(k: Inside) -> None:
    header, layout = plan([("k.0", "F32", (2, 3)), ("ids", "I64", (4,))], {"memos": "{}"})
    small = header + os.urandom(layout.size - len(header))
    made = activation(k, small, method="prefill")
    reply = k("mem_map", ALICE, cube_id=made)
    assert (reply["form"], reply["encoding"], reply["content"]) == ("activation", "bytes", small)
    assert reply["layout"]["metadata"] == {"memos": "{}"}
    assert [tuple(t.values()) for t in reply["layout"]["tensors"]] == [
        ("k.0", "F32", [2, 3], layout.tensors[0].offset, 24), ("ids", "I64", [4], layout.tensors[1].offset, 32),
    ]  # fmt: skip
    assert k("mem_read", ALICE, cube_id=made)["content"] == small
    header, layout = plan([("k.0", "U8", (2 * limits.MIB,))], {})
    large = activation(k, header + bytes(layout.size - len(header)))
    assert k.refusal("mem_read", ALICE, cube_id=large) == "EINVAL"
    assert k("mem_read", ALICE, cube_id=large, parts=["header"])["header"]["bytes"] == layout.size
    assert k("mem_map", ALICE, cube_id=large)["layout"]["tensors"][0]["bytes"] == 2 * limits.MIB
    wrong = activation(k, b"these are no tensors at all")
    assert k.refusal("mem_map", ALICE, cube_id=wrong) == "EIO"
    assert k.fatal == []


def test_a_descriptor_closes_with_its_last_holder() -> None:
    memory = Memory(sealed_memfd(b"x"))
    fd, again = memory.fd, memory
    del memory
    assert held_by(fd) == b"x"
    del again
    with pytest.raises(OSError):
        os.fstat(fd)
