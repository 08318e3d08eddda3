"""Calls that go on while things break, and what became of each: acknowledged, refused, or not known.

    load = Load(daemon.socket)
    with load.running():
        ...                                 # break something
    load.settle(wire)                       # repeat some of what is not known, under the same request id
    load.check(wire)                        # nothing lost, nothing doubled, nothing half

Every call has a request id, and makes a cube with a content that no other has, or erases one. Those who write wait for each
answer; half of them wait only a short time. A reader reads what was acknowledged: it may be kept waiting and told so, but
must never be told an untruth. An answer that comes later than its deadline, or not at all, is a fault of the kernel's (`late`).
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Final

from tests.outside import Wire

from memos_syscalls.errors import MemError

FAULT_SECONDS: Final = int(os.environ.get("MEMOS_FAULT_SECONDS", "3"))
SHORT_MS: Final = 1500
LONG_MS: Final = 1000 * (FAULT_SECONDS + 50)
"""Longer than any fault."""
LATE_SECONDS: Final = 3.0
"""How much later than its deadline an answer may come: the machine has other work."""
PAUSE_SECONDS: Final = 0.01
SIZES: Final = (*[10] * 8, *[300, 3000] * 4, *[20_000, 60_000] * 3, 600_000)
"""Contents that stand in their record, such as go to the topic of payloads, and such as go there in pieces."""
SHREDS: Final = 0.1
SPOT_CHECKS: Final = 150
PAGE: Final = 1000


class Call:
    """One mem_alloc or mem_shred, and what is known of it."""

    __slots__ = ("answer", "args", "erasure", "error", "name", "rid", "waited")

    def __init__(self, name: str, rid: str, /, **args: Any) -> None:
        self.name, self.rid = name, rid
        self.args: dict[str, Any] = {"request_id": rid, **args}
        self.erasure: Call | None = None
        """The call that erases what this one made."""
        self.answer: dict[str, Any] | None = None
        self.error: MemError | OSError | None = None
        self.waited = 0.0

    @property
    def refused(self) -> bool:
        """The kernel said that nothing happened."""
        return isinstance(self.error, MemError) and self.error.outcome == "none"

    @property
    def unknown(self) -> bool:
        return self.answer is None and not self.refused


class Load:
    """Writers and a reader on one socket."""

    def __init__(self, socket: Path, writers: int = 4, seed: int = 0) -> None:
        self.socket = socket
        self.calls: list[Call] = []
        self.late: list[str] = []
        self.untrue: list[str] = []
        self.reads = 0
        self.read_errors: Counter[str] = Counter()
        self._writers = writers
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._numbers = 0
        self._made: dict[int, list[Call]] = {}
        """What each writer made and did not erase."""

    # -- at work -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def running(self) -> Generator[None, None, None]:
        """Calls go on within; afterwards all have their answer, or their kernel is gone."""
        self._ending.clear()
        threads = [threading.Thread(target=self._write, args=(n,), name=f"writer {n}") for n in range(self._writers)]
        threads.append(threading.Thread(target=self._read, name="reader"))
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._ending.set()
            for thread in threads:
                thread.join()

    def acknowledged(self) -> int:
        return sum(call.answer is not None for call in list(self.calls))

    def goes_on(self, seconds: float, calls: int = 20) -> float:
        """Return when so many more calls were acknowledged, with the seconds that it took."""
        began, before = time.monotonic(), self.acknowledged()
        while self.acknowledged() < before + calls:
            assert time.monotonic() < began + seconds, f"no {calls} acknowledgements in {seconds} s: {self}"
            time.sleep(0.02)
        return time.monotonic() - began

    def _next(self, writer: int) -> Call:
        with self._lock:
            self._numbers += 1
            rid = f"{writer}-{self._numbers}"
            made = self._made.setdefault(writer, [])
            if made and self._random.random() < SHREDS:
                gone = made.pop(self._random.randrange(len(made)))
                assert gone.answer is not None
                call = gone.erasure = Call("mem_shred", rid, cube_id=gone.answer["cube_id"])
            else:
                content = f"{rid} " + "x" * self._random.choice(SIZES)
                call = Call("mem_alloc", rid, namespace=f"load{writer}", name=rid, content=content)
            self.calls.append(call)
            return call

    def _write(self, writer: int) -> None:
        deadline_ms = SHORT_MS if writer % 2 else LONG_MS
        while not self._ending.is_set():
            try:
                # Longer than any deadline: who waits that long was forgotten.
                with Wire(self.socket, seconds=deadline_ms / 1000 + 10) as wire:
                    while not self._ending.is_set():
                        self._ask(wire, writer, deadline_ms)
                        time.sleep(PAUSE_SECONDS)
            except OSError:
                # The kernel is gone, or never answered; who it was said so. There may be another one soon.
                self._ending.wait(0.1)

    def _ask(self, wire: Wire, writer: int, deadline_ms: int) -> None:
        call = self._next(writer)
        began = time.monotonic()
        try:
            call.answer = wire.call(call.name, **call.args, deadline_ms=deadline_ms)
            if call.name == "mem_alloc":
                self._made[writer].append(call)
        except (MemError, OSError) as error:
            call.error = error
        call.waited = time.monotonic() - began
        if call.waited > deadline_ms / 1000 + LATE_SECONDS:
            self.late.append(f"{call.rid}: {call.answer or call.error!r} after {call.waited:.1f} s of {deadline_ms} ms")
        if isinstance(call.error, OSError):
            raise call.error

    def _read(self) -> None:
        chance = random.Random(1)
        while not self._ending.wait(PAUSE_SECONDS):
            known = [call for call in list(self.calls) if call.answer is not None and call.name == "mem_alloc"]
            if not known:
                continue
            try:
                with Wire(self.socket, seconds=SHORT_MS / 1000 + 10) as wire:
                    for call in chance.sample(known, min(len(known), 50)):
                        self._look(wire, call)
                        time.sleep(PAUSE_SECONDS)
                        if self._ending.is_set():
                            break
            except OSError:
                self._ending.wait(0.1)

    def _look(self, wire: Wire, call: Call) -> None:
        assert call.answer is not None
        began = time.monotonic()
        try:
            found = wire.call("mem_read", cube_id=call.answer["cube_id"], deadline_ms=SHORT_MS)
        except MemError as error:
            self.read_errors[error.errno] += 1
            if error.errno not in ("EAGAIN", "EFENCED") and not (error.errno == "ESHREDDED" and call.erasure is not None):
                self.untrue.append(f"{call.rid}: {error}")
        else:
            self.reads += 1
            if found["content"] != call.args["content"]:
                self.untrue.append(f"{call.rid}: {found['content'][:40]!r}")
        if time.monotonic() - began > SHORT_MS / 1000 + LATE_SECONDS:
            self.late.append(f"the read of {call.rid} after {time.monotonic() - began:.1f} s")

    # -- afterwards --------------------------------------------------------------------------------------------------

    def errors(self) -> Counter[tuple[str, str]]:
        """How often callers heard what: the error and its outcome."""
        return Counter(
            (error.errno, error.outcome) if isinstance(error, MemError) else (type(error).__name__, "unknown")
            for error in (call.error for call in self.calls)
            if error is not None
        )

    def __str__(self) -> str:
        heard = f"errors {dict(self.errors())}, reads {dict(self.read_errors)}"
        return f"{self.acknowledged()} acknowledged of {len(self.calls)}, {heard}"

    def honest(self) -> None:
        """Nobody was told an untruth, and nobody was forgotten."""
        assert self.untrue == [], self.untrue[:10]
        assert self.late == [], self.late[:10]

    def settle(self, wire: Wire) -> None:
        """Repeat half of what is open, some of what was refused and some of what was acknowledged: one true answer each."""
        unknown = [call for call in self.calls if call.unknown]
        refused = [call for call in self.calls if call.refused]
        done = [call for call in self.calls if call.answer is not None]
        repeated = unknown[::2] + refused[:20:3] + done[:: max(1, len(done) // 20)]
        for call in repeated:
            answer = wire.call(call.name, **call.args)
            assert told(wire.call(call.name, **call.args)) == told(answer), "a repeat gets the one answer"
            if call.answer is not None:
                assert told(call.answer) == told(answer), f"{call.rid} was acknowledged as {call.answer}, and now is {answer}"
            call.answer = answer

    def check(self, wire: Wire) -> None:
        """What was acknowledged is there once, what was refused is not, and the rest is wholly there or not at all."""
        made = [call for call in self.calls if call.name == "mem_alloc"]
        there: dict[str, list[str]] = {}
        for namespace in sorted({call.args["namespace"] for call in made}):
            for cube in _listed(wire, namespace):
                assert "name" in cube, f"the key of {cube} is not there"
                there.setdefault(cube["name"], []).append(cube["cube_id"])
        doubled = {rid: ids for rid, ids in there.items() if len(ids) > 1}
        assert doubled == {}, f"made twice: {doubled}"
        kept: list[Call] = []
        for call in made:
            ids, erasure = there.pop(call.rid, []), call.erasure
            if call.answer is None:
                assert ids == [] or not call.refused, f"{call.rid} was refused ({call.error}), and is there"
            elif erasure is not None and erasure.answer is not None:
                assert ids == [], f"{call.rid} was erased, and is there"
                assert _read(wire, call) == "ESHREDDED"
            elif erasure is None or erasure.refused or ids:
                assert ids == [call.answer["cube_id"]], f"{call.rid} was acknowledged, and there is {ids}"
                kept.append(call)
        assert there == {}, f"nobody asked for {there}"
        for call in kept[-SPOT_CHECKS:] + self._random.sample(kept, min(len(kept), SPOT_CHECKS)):
            assert _read(wire, call) == call.args["content"], call.rid


def told(answer: dict[str, Any]) -> dict[str, Any]:
    """What must be the same in each answer to one request: a report says how things stand when it is made."""
    return {name: value for name, value in answer.items() if name != "report"}


def _read(wire: Wire, call: Call) -> object:
    assert call.answer is not None
    try:
        return wire.call("mem_read", cube_id=call.answer["cube_id"])["content"]
    except MemError as error:
        return error.errno


def _listed(wire: Wire, namespace: str) -> Iterator[dict[str, Any]]:
    cursor: str | None = None
    while True:
        page = wire.call("mem_list", namespace=namespace, limit=PAGE, cursor=cursor)
        yield from page["cubes"]
        cursor = page.get("next_cursor")
        if cursor is None:
            return
