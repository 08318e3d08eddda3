"""Calls that go on while things break, and what became of each: acknowledged, refused, or not known.

    load = Load(daemon.socket)
    with load.running():
        ...                                 # break something
    load.settle(wire)                       # repeat some of what is not known, under the same request id
    load.check(wire)                        # nothing lost, nothing doubled, nothing half

Every call has a request id and a content that no other call has. Those who write wait for each answer; half of them wait
only a short time. A reader reads what was acknowledged: it may be kept waiting and told so, but must never be told an
untruth. An answer that comes later than the caller's deadline, or not at all, is a fault of the kernel's (`late`).
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tests.outside import Wire

from memos_syscalls.errors import MemError

SHORT_MS: Final = 1500
LONG_MS: Final = 120_000
LATE_SECONDS: Final = 3.0
"""How much later than its deadline an answer may come: the machine has other work."""
PAUSE_SECONDS: Final = 0.01
SIZES: Final = (10, 10, 10, 300, 3000, 20_000, 60_000)
"""Inline contents, and such as go to the topic of payloads."""
SPOT_CHECKS: Final = 150
PAGE: Final = 1000


class Call:
    """One mem_alloc and what is known of it."""

    __slots__ = ("answer", "args", "error", "namespace", "rid", "waited")

    def __init__(self, namespace: str, rid: str, content: str) -> None:
        self.namespace, self.rid = namespace, rid
        self.args: dict[str, Any] = {"namespace": namespace, "name": rid, "content": content, "request_id": rid}
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

    # -- at work -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
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
            size = self._random.choice(SIZES)
            call = Call(f"load{writer}", rid, f"{rid} " + "x" * size)
            self.calls.append(call)
            return call

    def _write(self, writer: int) -> None:
        deadline_ms = SHORT_MS if writer % 2 else LONG_MS
        while not self._ending.is_set():
            try:
                # Longer than any deadline: who waits that long was forgotten.
                with Wire(self.socket, seconds=deadline_ms / 1000 + 10) as wire:
                    while not self._ending.is_set():
                        self._ask(wire, self._next(writer), deadline_ms)
                        time.sleep(PAUSE_SECONDS)
            except OSError:
                # The kernel is gone, or never answered; who it was said so. There may be another one soon.
                self._ending.wait(0.1)

    def _ask(self, wire: Wire, call: Call, deadline_ms: int) -> None:
        began = time.monotonic()
        try:
            call.answer = wire.call("mem_alloc", **call.args, deadline_ms=deadline_ms)
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
            known = [call for call in self.calls if call.answer is not None]
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
            if error.errno not in ("EAGAIN", "EFENCED"):
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
        return f"{self.acknowledged()} acknowledged of {len(self.calls)}, errors {dict(self.errors())}, reads {dict(self.read_errors)}"

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
            answer = wire.call("mem_alloc", **call.args)
            assert wire.call("mem_alloc", **call.args) == answer, "a repeat gets the one answer"
            assert call.answer in (None, answer), f"{call.rid} was acknowledged as {call.answer}, and now is {answer}"
            call.answer = answer

    def check(self, wire: Wire) -> None:
        """What was acknowledged is there once, what was refused is not, and the rest is wholly there or not at all."""
        there: dict[tuple[str, str], list[str]] = {}
        for namespace in sorted({call.namespace for call in self.calls}):
            for cube in _listed(wire, namespace):
                there.setdefault((namespace, cube["name"]), []).append(cube["cube_id"])
        doubled = {key: ids for key, ids in there.items() if len(ids) > 1}
        assert doubled == {}, f"made twice: {doubled}"
        for call in self.calls:
            ids = there.pop((call.namespace, call.rid), [])
            if call.answer is not None:
                assert ids == [call.answer["cube_id"]], f"{call.rid} was acknowledged, and there is {ids}"
            elif call.refused:
                assert ids == [], f"{call.rid} was refused ({call.error}), and is there"
        assert there == {}, f"nobody asked for {there}"
        known = [call for call in self.calls if call.answer is not None]
        for call in known[-SPOT_CHECKS:] + self._random.sample(known, min(len(known), SPOT_CHECKS)):
            assert call.answer is not None
            assert wire.call("mem_read", cube_id=call.answer["cube_id"])["content"] == call.args["content"], call.rid


def _listed(wire: Wire, namespace: str) -> Iterator[dict[str, Any]]:
    cursor: str | None = None
    while True:
        page = wire.call("mem_list", namespace=namespace, limit=PAGE, cursor=cursor)
        yield from page["cubes"]
        cursor = page.get("next_cursor")
        if cursor is None:
            return
