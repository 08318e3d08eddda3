"""Kernels that run a tiny model, for tests of activation memory: `Model`, a kernel inside this process with a driver host.

    with Model(tiny, tmp_path) as k:
        anna = k.alloc("Anna keeps bees.")
        kv = k.capture(anna)
        assert k.ask("Who keeps bees?", kv)["text"] == k.ask("Who keeps bees?", anna)["text"]

The driver host is the real one, a process with torch. `during(op)` calls a function in this process as soon as the kernel asks
the host for that operation, and so places what happens between two steps of a job.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, Final

import pytest
from tests.inside import ADMIN, Inside

from memos_drivers.host.client import Answer, Host
from memos_kernel.governance import Caller, raw_id
from memos_kernel.state import Cube, Version
from memos_syscalls.errors import MemError

SECONDS: Final = 90
"""That a call may take, the host's start and a busy machine included."""
BEES: Final = "Anna moved to Lisbon in the spring and keeps bees on the roof. " * 12
CHESS: Final = "Boris plays chess on Thursdays with his sister. " * 8
KETTLE: Final = "The kettle is blue, the bicycle is green, and the car was sold last year. " * 6


class Model(Inside):
    """A kernel with the tiny model."""

    def __init__(self, path: Path, cache: Path, directory: Path | None = None, **settings: Any) -> None:
        given: dict[str, Any] = {"model": (str(path),), "model_cache": cache, "host_threads": 1, **settings}
        super().__init__(directory, **given)

    # -- calls -------------------------------------------------------------------------------------------------------

    def __call__(self, name: str, caller: Caller = ADMIN, /, **args: Any) -> dict[str, Any]:
        return self.wait(self.submit(name, caller, **args), SECONDS)

    def alloc(self, content: str, caller: Caller = ADMIN, *, namespace: str = "alice", **args: Any) -> str:
        return str(self("mem_alloc", caller, namespace=namespace, content=content, **args)["cube_id"])

    def migrated(self, *cubes: str, caller: Caller = ADMIN, **args: Any) -> dict[str, Any]:
        which = {"cube_id": cubes[0]} if len(cubes) == 1 else {"cube_ids": list(cubes)}
        return {"reused": False, **self("mem_migrate", caller, **which, to="activation", **args)}

    def capture(self, *cubes: str, caller: Caller = ADMIN, **args: Any) -> str:
        """The id of the cache."""
        return str(self.migrated(*cubes, caller=caller, **args)["cube_id"])

    def ask(self, prompt: str | None, *cubes: Any, caller: Caller = ADMIN, **args: Any) -> dict[str, Any]:
        return self("mem_infer", caller, **self.question(prompt, *cubes, **args))

    @staticmethod
    def question(prompt: str | None, *cubes: Any, **args: Any) -> dict[str, Any]:
        return {"prompt": prompt, "cubes": list(cubes), "max_new_tokens": 12, **args}

    def failure(self, name: str, caller: Caller = ADMIN, /, **args: Any) -> MemError:
        """The error of a call that must fail."""
        return self.error(self.submit(name, caller, **args))

    def error(self, future: asyncio.Future[dict[str, Any]]) -> MemError:
        """What a call that was submitted failed with."""
        try:
            result = self.wait(future, SECONDS)
        except MemError as error:
            assert error.detail and error.advice, "an error says what happened and what to do"
            return error
        raise AssertionError(f"it was not refused: {result}")

    # -- what is there ------------------------------------------------------------------------------------------------

    def row(self, cube_id: str, version: int | None = None) -> Version:
        cube: Cube | None = self.kernel.view.cube(raw_id(cube_id))
        assert cube is not None
        found = self.kernel.view.version(cube, version or cube.version)
        assert found is not None
        return found[0]

    def header(self, cube_id: str, version: int | None = None) -> dict[str, Any]:
        found: dict[str, Any] = self("mem_stat", cube_id=cube_id, version=version)["header"]
        return found

    def derived(self, cube_id: str) -> list[bytes]:
        """Cubes that were made from this one."""
        return list(self.kernel.tables.derived(raw_id(cube_id)))

    @property
    def host(self) -> Host:
        return self.kernel.runtime.host

    @property
    def tiers(self) -> dict[str, Any]:
        found: dict[str, Any] = self("sys_stats")["tiers"]
        return found

    def sound(self) -> None:
        """The whole log, view and payloads verify."""
        found = self("sys_verify", full=True)
        assert found["ok"], found["problems"]

    # -- what happens meanwhile ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def during(self, op: str, then: Callable[[], Any], *, times: int = 1, after: bool = False) -> Generator[list[str]]:
        """Calls `then` when the kernel asks the host for this operation, or when it has the answer; awaits what it returns.
        Gives the operations that were asked for."""
        host: Any = self.host
        asked, run = list[str](), self.host.run

        async def watched(name: str, *args: Any, **more: Any) -> Answer:
            nonlocal times
            asked.append(name)
            now = name == op and times > 0
            times -= now
            if now and not after:
                await _awaited(then())
            answer = await run(name, *args, **more)
            if now and after:
                await _awaited(then())
            return answer

        host.run = watched
        try:
            yield asked
        finally:
            host.run = run

    def kill_host(self) -> None:
        """SIGKILL to the driver host."""
        assert self.host.pid is not None
        os.kill(self.host.pid, signal.SIGKILL)

    def stop_host(self) -> int:
        """SIGSTOP to the driver host: it hangs. Returns its process id."""
        pid = self.host.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        while "State:\tT" not in Path(f"/proc/{pid}/status").read_text():
            time.sleep(0.01)
        return pid


async def _awaited(value: Any) -> None:
    if asyncio.isfuture(value):
        with contextlib.suppress(MemError):
            await value
    elif asyncio.iscoroutine(value):
        await value


@pytest.fixture(scope="module")
def sound_kernel(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Model]:
    """A kernel for a module's tests, which must be whole after them; the module gives it its own name."""
    with Model(tiny, tmp_path_factory.mktemp("cache")) as kernel:
        yield kernel
        kernel.sound()
