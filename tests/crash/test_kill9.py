"""kill -9 under load: what was acknowledged is there, what was not is there wholly or not at all.

Several writers pipeline calls over bare connections; each call has a request id, and each acknowledgement is written to a
file of ours, synced, before it counts. At a random moment the kernel is killed. After the restart every call whose
answer did not come is looked up and then repeated under its id, and must agree with what was found.
MEMOS_CRASH_ROUNDS sets how often.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest
from tests.inside import replay
from tests.outside import Daemon, Wire

from memos_kernel.offline import open_offline
from memos_syscalls.errors import MemError

ROUNDS = int(os.environ.get("MEMOS_CRASH_ROUNDS", "6"))
WRITERS = 4
PIPELINE = 6


@dataclass
class Call:
    name: str
    args: dict[str, Any]
    answer: dict[str, Any] | None = None


class Acks:
    """Acknowledgements, kept outside the kernel: on disk before they count."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "ab")  # noqa: SIM115
        self._lock = threading.Lock()
        self.count = 0

    def keep(self, call: Call) -> None:
        line = json.dumps([call.args["request_id"], call.answer], default=repr).encode()
        with self._lock:
            self._file.write(line + b"\n")
            self._file.flush()
            os.fdatasync(self._file.fileno())
            self.count += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._file.close()


@dataclass
class Writer:
    """One stream of calls, and what it knows of its cubes: the calls that touched each, in order."""

    number: int
    random: random.Random
    calls: int = 0
    cubes: dict[str, list[Call]] = field(default_factory=dict[str, list[Call]])
    batches: list[Call] = field(default_factory=list[Call])
    pending: list[Call] = field(default_factory=list[Call])

    def next(self) -> Call:
        self.calls += 1
        rid = f"w{self.number}-{self.calls}"
        kind = self.random.random()
        busy = {call.args.get("cube_id") for call in self.pending}
        free = [i for i, calls in self.cubes.items() if i not in busy and calls[-1].name != "mem_shred"]
        size = self.random.choice([10, 100, 3000, 20_000, 40_000])
        content = f"{rid} " + self.random.choice("abc") * size
        if kind < 0.45 or not free:
            return Call("mem_alloc", {"namespace": f"n{self.number}", "content": content, "name": rid, "request_id": rid})
        if kind < 0.60:
            items = [{"namespace": f"n{self.number}", "content": f"{rid} {n}", "name": rid} for n in range(3)]
            return Call("mem_alloc_many", {"items": items, "request_id": rid})
        cube_id = self.random.choice(free)
        if kind < 0.92:
            return Call("mem_write", {"cube_id": cube_id, "content": content, "request_id": rid})
        return Call("mem_shred", {"cube_id": cube_id, "request_id": rid})

    def done(self, call: Call, answer: dict[str, Any]) -> None:
        call.answer = answer
        if call.name == "mem_alloc":
            self.cubes[answer["cube_id"]] = [call]
        elif call.name == "mem_alloc_many":
            self.batches.append(call)
        else:
            self.cubes[call.args["cube_id"]].append(call)

    def run(self, daemon: Daemon, acks: Acks) -> None:
        """Until the kernel is gone."""
        try:
            with Wire(daemon.socket) as wire:
                flying: dict[int, Call] = {}
                while True:
                    while len(flying) < PIPELINE:
                        call = self.next()
                        self.pending.append(call)
                        frame = wire.request(call.name, **call.args)
                        flying[wire.last_id] = call
                        wire.send(frame)
                    call_id, status, body = wire.receive()
                    assert status == 0, f"{flying[call_id]}: {body}"
                    call = flying.pop(call_id)
                    self.done(call, body)
                    acks.keep(call)
                    self.pending.remove(call)
        except OSError:
            return


def read(wire: Wire, cube_id: str, version: int | None = None) -> object:
    try:
        return wire.call("mem_read", cube_id=cube_id, version=version)["content"]
    except MemError as error:
        return error.errno


def check_acknowledged(wire: Wire, writer: Writer) -> None:
    for cube_id, calls in writer.cubes.items():
        if calls[-1].name == "mem_shred":
            assert read(wire, cube_id) == "ESHREDDED"
            continue
        undecided = [call for call in writer.pending if call.args.get("cube_id") == cube_id]
        if not undecided:
            assert read(wire, cube_id) == calls[-1].args["content"]
        elif undecided[0].name == "mem_write":
            assert read(wire, cube_id) in (calls[-1].args["content"], undecided[0].args["content"])
            assert read(wire, cube_id, len(calls)) == calls[-1].args["content"]
        else:
            assert read(wire, cube_id) in (calls[-1].args["content"], "ESHREDDED")
    for call in writer.batches:
        assert call.answer is not None
        assert [read(wire, item["cube_id"]) for item in call.answer["items"]] == [i["content"] for i in call.args["items"]]


def settle(wire: Wire, writer: Writer) -> int:
    """Look each unanswered call up, repeat it, and compare; returns how many had happened."""
    happened = 0
    for call in writer.pending:
        rid = call.args["request_id"]
        there = wire.call("mem_list", namespace=f"n{writer.number}", name=rid, limit=10)["cubes"] if writer.cubes else []
        head = wire.call("sys_info")["head_offset"]
        answer = wire.call(call.name, **call.args)
        assert wire.call(call.name, **call.args) == answer, "a repeat gets the one answer"
        happened += answer["offset"] <= head
        if call.name == "mem_alloc":
            assert [h["cube_id"] for h in there] in ([], [answer["cube_id"]])
            assert bool(there) == (answer["offset"] <= head)
        elif call.name == "mem_alloc_many":
            assert len(there) in (0, 3), "all or nothing"
            assert bool(there) == (answer["offset"] <= head)
        writer.done(call, answer)
    writer.pending.clear()
    return happened


@pytest.mark.slow
def test_what_was_acknowledged_survives_kill_9_and_the_rest_is_whole_or_absent(tmp_path: Path) -> None:
    seed = int(os.environ.get("MEMOS_CRASH_SEED", "0")) or random.randrange(2**32)
    print(f"MEMOS_CRASH_SEED={seed}")
    chance = random.Random(seed)
    with Acks(tmp_path / "acks") as acks:
        writers = [Writer(n, random.Random(seed + n)) for n in range(WRITERS)]
        with Daemon(tmp_path / "data") as daemon, Wire(daemon.socket) as wire:
            # Everybody's namespace exists before the first kill.
            for n in range(WRITERS):
                wire.call("mem_alloc", namespace=f"n{n}", content="first")
            daemon.stop()
        for _round in range(ROUNDS):
            with Daemon(tmp_path / "data") as daemon:
                threads = [threading.Thread(target=writer.run, args=(daemon, acks)) for writer in writers]
                for thread in threads:
                    thread.start()
                time.sleep(chance.uniform(0.02, 0.6))
                daemon.kill()
                for thread in threads:
                    thread.join()
            with Daemon(tmp_path / "data") as daemon, Wire(daemon.socket) as wire:
                digest = wire.call("sys_info")["state_digest"]
                for writer in writers:
                    check_acknowledged(wire, writer)
                assert wire.call("sys_info")["state_digest"] == digest, "reads change nothing"
                for writer in writers:
                    settle(wire, writer)
                    check_acknowledged(wire, writer)
                report = wire.call("sys_verify", full=True)
                assert report["ok"], report["problems"]
                digest = wire.call("sys_info")["state_digest"]
                assert daemon.stop() == 0, daemon.said()
            with open_offline(tmp_path / "data") as offline:
                assert replay(offline.log)[0] == digest
        assert acks.count > ROUNDS, "the writers got somewhere"
