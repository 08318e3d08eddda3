"""What runs models for a kernel: the driver host, the jobs that use it, and what is known of both.

One for each kernel. Everything here lives on the event loop, and none of it is state: after a restart all of it is made anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any, Final, TypeVar

from memos_drivers.host.client import Host
from memos_syscalls import limits
from memos_syscalls.errors import MemAgain, MemBusy, MemNoModel, MemShredded, MemTooLarge

from .jobs import Job, Jobs

T = TypeVar("T")
TRIM_SECONDS_MAX: Final = 10.0
ERASE_SECONDS_MAX: Final = 5.0
"""A host that takes longer to let go of what is erased is killed."""
READS_PER_PRINCIPAL: Final = 2


class Runtime:
    def __init__(self, jobs: Jobs, host: Host | None, names: tuple[str, ...]) -> None:
        self.jobs = jobs
        self.names = names
        """Language models of the configuration, the first one the default."""
        self.known: dict[str, dict[str, Any]] = {}
        """What the host said of models that it loaded, by name."""
        self.resident: set[bytes] = set()
        """Payloads that the host had on its device when it answered last."""
        self.by_mac: dict[bytes, tuple[Job, bytes]] = {}
        """Jobs in progress by the request id that began them, with H(arguments)."""
        self._host = host
        self._held: dict[str, int] = {}
        self._reading: dict[str, asyncio.Semaphore] = {}
        self._bindings: dict[str, tuple[asyncio.Lock, int]] = {}

    @property
    def host(self) -> Host:
        if self._host is None:
            raise MemNoModel("this kernel runs no models", "Start memosd with --model smollm2, or with another model.")
        return self._host

    @contextlib.asynccontextmanager
    async def one_at_a_time(self, binding: str) -> AsyncGenerator[None]:
        """Captures of the same thing run one after the other, so that the second finds what the first made."""
        lock, waiting = self._bindings.get(binding) or (asyncio.Lock(), 0)
        self._bindings[binding] = (lock, waiting + 1)
        try:
            async with lock:
                yield
        finally:
            lock, waiting = self._bindings[binding]
            if waiting == 1:
                del self._bindings[binding]
            else:
                self._bindings[binding] = (lock, waiting - 1)

    @contextlib.contextmanager
    def holding(self, who: str, size: int) -> Generator[list[int]]:
        """A call of theirs holds so many bytes of payloads; `MemBusy` when their calls hold too many. Gives a list for the
        payloads' descriptors, which are closed at the end."""
        if size > limits.TENSOR_BYTES_MAX:
            # All of them are in memory at once, whatever the tiers' budgets are.
            raise MemTooLarge(f"the caches have {size} bytes; a call holds at most {limits.TENSOR_BYTES_MAX}", "Attach fewer.")
        held = self._held.get(who, 0)
        if held + size > limits.MAPPED_BYTES_PER_PRINCIPAL_MAX:
            raise MemBusy(f"calls of {who} hold {held} bytes of caches already")
        self._held[who] = held + size
        fds: list[int] = []
        try:
            yield fds
        finally:
            # A call that holds nothing may end after the last one that does.
            left = self._held.pop(who, 0) - size
            if left:
                self._held[who] = left
            for fd in fds:
                os.close(fd)

    async def in_thread(self, who: str, work: Callable[..., T], *args: Any, **named: Any) -> T:
        """Reading and decrypting for a call, beside few others of the same principal: threads are for everybody."""
        turns = self._reading.setdefault(who, asyncio.Semaphore(READS_PER_PRINCIPAL))
        async with turns:
            return await asyncio.to_thread(work, *args, **named)

    def remember(self, job: Job, mac: bytes, args_hash: bytes) -> None:
        """The same request id finds this job while it runs."""
        self.by_mac[mac] = (job, args_hash)
        assert job.task is not None, "a job that began has a task"
        job.task.add_done_callback(lambda _task: self.by_mac.pop(mac, None))

    def erased(self, cube_ids: set[bytes], payload_ids: list[bytes], fork_ids: set[bytes]) -> bool:
        """Cubes were erased, and with them versions that forks inherited: jobs that hold their content end. Whether `drop`
        has something to do."""
        ended = self.jobs.erased(cube_ids, MemShredded("a cube that the job read was shredded"))
        # A fork's own versions are whole; which of them the job read, the next one finds out.
        ended |= self.jobs.erased(fork_ids, MemAgain("what a fork inherited was shredded, and the job read that fork"))
        self.resident -= set(payload_ids)
        return bool(ended or payload_ids)

    async def drop(self, payload_ids: list[bytes], *, erased: bool = False) -> None:
        """Return when no device holds these payloads any more."""
        self.resident -= set(payload_ids)
        if self._host is not None:
            # Only what is erased is worth the life of a host that is slow to answer.
            await self._host.control("drop", {"keys": payload_ids, "erased": erased}, ERASE_SECONDS_MAX, must=erased)
            if erased:
                # What ended holds its texts and payloads until the step under way is over.
                await self._host.let_go()
                await self._host.control("trim", {}, TRIM_SECONDS_MAX)

    async def stats(self) -> dict[str, Any]:
        """Of the host, and under `device` of its tier when it runs."""
        if self._host is None:
            return {}
        found = await self._host.control("stats", {}, 2.0, must=False)
        return {**self._host.stats(), **(found or {})}

    async def close(self) -> None:
        self.jobs.stop()
        if self._host is not None:
            await self._host.close()
