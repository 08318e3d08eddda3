"""Long reads: few at a time, connections by turns, and whoever waits can leave."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

from tests.inside import ALICE, Inside, Peer

from memos_kernel.longreads import PER_PEER, SLICE_SECONDS, TOTAL, Breath, LongReads
from memos_kernel.stats import Histogram
from memos_kernel.turn import Turn
from memos_syscalls.errors import MemError
from memos_syscalls.table import BY_NAME


class Line:
    """The line, with works that last until they are told to end."""

    def __init__(self) -> None:
        self.reads = LongReads(self._spawn)
        self.began: list[tuple[int, int]] = []
        self.ends: dict[tuple[int, int], asyncio.Event] = {}
        self.peers: list[Peer] = []
        self.running = 0
        self.most = 0

    def _spawn(self, work: Coroutine[Any, Any, None], turn: Turn) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        turn.cancel = task
        return task

    def submit(self, peer: int, number: int) -> Turn:
        while len(self.peers) <= peer:
            self.peers.append(Peer(ALICE))
        who = self.peers[peer]
        who.waiting[number] = asyncio.get_running_loop().create_future()
        turn = Turn(who, number, BY_NAME["mem_list"], Histogram())
        end = self.ends[peer, number] = asyncio.Event()

        async def work() -> None:
            self.began.append((peer, number))
            self.running += 1
            self.most = max(self.most, self.running)
            try:
                await end.wait()
            finally:
                self.running -= 1
            turn.answer({})

        self.reads.submit(turn, work)
        return turn


async def settle() -> None:
    for _ in range(6):
        await asyncio.sleep(0)


def test_a_connection_runs_two_and_all_of_them_eight() -> None:
    async def scene() -> None:
        line = Line()
        for number in range(5):
            line.submit(0, number)
        await settle()
        assert line.began == [(0, 0), (0, 1)] and PER_PEER == 2
        for peer in range(1, 7):
            for number in range(3):
                line.submit(peer, number)
        await settle()
        assert line.running == TOTAL == 8
        while len(line.began) < 5 + 18 or line.running:
            for end in line.ends.values():
                end.set()
            await settle()
        assert line.most == TOTAL and len(set(line.began)) == 23

    asyncio.run(scene())


def test_connections_take_turns_whatever_the_length_of_their_lines() -> None:
    async def scene() -> None:
        line = Line()
        for number in range(50):
            line.submit(0, number)
        for peer in (1, 2):
            line.submit(peer, 0)
        await settle()
        assert set(line.began) == {(0, 0), (0, 1), (1, 0), (2, 0)}, "nobody waits behind another's fifty"
        for peer in (1, 2, 3, 4, 5):
            line.submit(peer, 1)
        await settle()
        assert line.running == TOTAL
        line.ends[0, 0].set()
        await settle()
        assert line.began[-1] in {(0, 2), (5, 1)}
        for end in line.ends.values():
            end.set()
        for _ in range(60):
            await settle()
        assert [number for peer, number in line.began if peer == 0] == list(range(50)), "one's own calls stay in order"

    asyncio.run(scene())


def test_who_waits_can_leave_and_costs_nothing() -> None:
    async def scene() -> None:
        line = Line()
        turns = [line.submit(0, number) for number in range(4)]
        await settle()
        turns[2].cancel.cancel()
        assert turns[2].finished
        error = line.peers[0].waiting[2].exception()
        assert isinstance(error, MemError) and error.errno == "ECANCELED"
        turns[0].cancel.cancel()
        await settle()
        assert line.began == [(0, 0), (0, 1), (0, 3)], "a cancelled one makes room, one that left is passed over"
        for end in line.ends.values():
            end.set()
        await settle()
        assert line.running == 0

    asyncio.run(scene())


def test_a_breath_lets_others_in_when_its_slice_is_over_and_not_before() -> None:
    async def scene() -> None:
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        breath = Breath()
        for _ in range(100):
            await breath()
            if time.perf_counter() - breath._began > SLICE_SECONDS / 2:  # pyright: ignore[reportPrivateUsage]
                break
        assert turns <= 1
        before = turns
        time.sleep(2 * SLICE_SECONDS)  # noqa: ASYNC251  # Work, as the loop sees it.
        await breath()
        assert turns > before
        task.cancel()

    asyncio.run(scene())


def test_a_kernel_answers_short_calls_while_many_long_ones_wait(k: Inside) -> None:
    for _ in range(3):
        k("mem_alloc_many", items=[{"namespace": "n", "content": f"{n}"} for n in range(500)])
    cube = k("mem_alloc", namespace="n", content="short")["cube_id"]
    long = [k.submit("mem_list", namespace="n", limit=1000) for _ in range(30)]
    began = time.perf_counter()
    assert k("mem_read", cube_id=cube)["content"] == "short"
    waited = time.perf_counter() - began
    assert sum(call.done() for call in long) < 30, f"the read waited {waited:.3f} s for all the listings"
    assert {len(k.wait(call)["cubes"]) for call in long} == {1000}
