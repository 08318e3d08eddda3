"""The kernel's side of a driver host: a fair queue, and a child process that is kept running while there is work.

- `run` answers with what the operation returned, or raises its error. Jobs go round robin by `who`, background jobs behind
  all others but for a share of the time that the child gives them. At most `active` foreground jobs are with the child (of
  one principal one less, so that another need not wait for it), and one background job.
- The child starts with the first call. When it dies, speaks garbage, or keeps silent while it has work, it is killed;
  each of its jobs is run again once if it may be (`repeatable`, and nothing was streamed), else fails with `MemIO`. Of
  jobs that are run again the child gets one at a time, so that one bad job does not take the same others with it twice.
- A refusal at start (no model) is the answer to all who wait; the next call tries again. So is the third death at start.
- A deadline or a cancellation ends the call at once; its job is cancelled at its next step, or the child is killed.
- `control` is answered beside the work. After it nothing that it was to erase is left in a child: it was done, or the
  child is gone, or it raised.
- No descriptor leaks: the caller keeps those of its request open until `run` returns and closes those of the answer.

The work is done in `child`; this module imports no model runtime. It belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from memos_syscalls import limits
from memos_syscalls.errors import MemBusy, MemError, MemInvalid, MemIO, MemTimeout

from . import wire
from .link import Died, Link, as_error, opened
from .ring import Ring

WAITING_MAX: Final = 512
WAITING_PER_WHO_MAX: Final = 64
WAITING_BYTES_MAX: Final = 64 * limits.MIB
ACTIVE_DEFAULT: Final = 4
SILENCE_SECONDS_DEFAULT: Final = 120.0
START_SECONDS_DEFAULT: Final = 300.0
CONTROL_SECONDS_DEFAULT: Final = 2.0
PAUSE_SECONDS: Final = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Between a death and the next start, for the first, second, … death in a row."""
START_DEATHS_MAX: Final = 3
CHECK_SECONDS_MAX: Final = 1.0
LET_GO_SECONDS_DEFAULT: Final = 10.0
LET_GO_LOOK_SECONDS: Final = 0.005
_TRY_AGAIN: Final = "Try again; the driver host starts anew by itself."

log_ = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """What an operation returned; who has it closes the descriptors."""

    result: dict[str, Any]
    fds: list[int]


@dataclass(slots=True, eq=False)
class _Job:
    id: int
    frame: bytes
    fds: tuple[int, ...]
    who: str
    background: bool
    repeatable: bool
    on_item: Callable[[dict[str, Any]], None] | None
    on_progress: Callable[[float, str], None] | None
    done: asyncio.Future[Answer]
    again: bool = False
    """It saw a child die."""
    streamed: bool = False
    let_go_by: float | None = None
    """When the child must have answered, for its caller left."""

    def fail(self, error: MemError) -> None:
        if not self.done.done():
            self.done.set_exception(error)


class Host:
    """Runs operations in a child process. See the module."""

    def __init__(
        self, spec: Mapping[str, Any], *, module: str = "memos_drivers.host.ops", active: int = ACTIVE_DEFAULT,
        silence_seconds: float = SILENCE_SECONDS_DEFAULT, start_seconds: float = START_SECONDS_DEFAULT,
    ) -> None:  # fmt: skip
        self._spec, self._module, self._active = dict(spec), module, max(1, active)
        self._silence_seconds, self._start_seconds = silence_seconds, start_seconds
        self._check_seconds = min(CHECK_SECONDS_MAX, silence_seconds / 4)
        self._ids = itertools.count(1)
        self._foreground: Ring[_Job] = Ring()
        self._background: Ring[_Job] = Ring()
        self._running: dict[int, _Job] = {}
        self._controls: dict[int, asyncio.Future[dict[str, Any] | None]] = {}
        self._keeper: asyncio.Task[None] | None = None
        self._link: Link | None = None
        self._checking: asyncio.TimerHandle | None = None
        self._heard = self._rest_until = 0.0
        self._deaths_in_row = self._start_deaths = 0
        self._starts = self._deaths = 0
        self._last_death: str | None = None
        self._closed = False
        self.info: dict[str, Any] | None = None
        """What the last child that became ready said of itself."""

    @property
    def pid(self) -> int | None:
        """The child's process id while one is ready."""
        return self._link.pid if self._link is not None and not self._link.ended.is_set() else None

    def stats(self) -> dict[str, Any]:
        """Numbers for `sys_stats`."""
        return {
            "starts": self._starts, "deaths": self._deaths, "running": len(self._running),
            "waiting": len(self._foreground) + len(self._background), "last_death": self._last_death,
        }  # fmt: skip

    async def run(
        self, op: str, args: Mapping[str, Any], fds: Sequence[int] = (), *, who: str, background: bool = False,
        seconds: float | None = None, on_item: Callable[[dict[str, Any]], None] | None = None,
        on_progress: Callable[[float, str], None] | None = None, repeatable: bool = True,
    ) -> Answer:  # fmt: skip
        """One operation. `MemBusy` when too many wait, `MemTimeout` after `seconds`, waiting included."""
        if self._closed:
            raise MemIO("the driver host is closed", "Repeat the call when the kernel runs again.")
        if len(fds) > wire.FDS_MAX:
            raise MemInvalid(f"an operation takes at most {wire.FDS_MAX} descriptors")
        if self.stats()["waiting"] >= WAITING_MAX:
            raise MemBusy(f"{WAITING_MAX} calls wait for the driver host already")
        if self._foreground.count(who) + self._background.count(who) >= WAITING_PER_WHO_MAX:
            raise MemBusy(f"{WAITING_PER_WHO_MAX} of your calls wait for the driver host already")
        loop, job_id = asyncio.get_running_loop(), next(self._ids)
        body = {"kind": "job", "id": job_id, "op": op, "args": dict(args), "who": who, "background": background}
        frame = wire.message(body, len(fds))
        if len(frame) + sum(len(job.frame) for job in (*self._foreground, *self._background)) > WAITING_BYTES_MAX:
            raise MemBusy(f"calls of {WAITING_BYTES_MAX} bytes wait for the driver host already")
        job = _Job(job_id, frame, tuple(fds), who, background, repeatable, on_item, on_progress, loop.create_future())
        timer = None if seconds is None else loop.call_later(seconds, job.fail, MemTimeout(f"{op} took over {seconds:g} s"))
        self._ring(job).add(who, job)
        self._pump()
        if self._keeper is None or self._keeper.done():
            self._keeper = loop.create_task(self._keep())
        try:
            return await job.done
        except asyncio.CancelledError:
            if job.done.done() and not job.done.cancelled() and job.done.exception() is None:
                wire.close_all(job.done.result().fds)  # The answer and the cancellation came in the same turn.
            raise
        finally:
            if timer is not None:
                timer.cancel()
            self._leave(job)

    async def control(
        self, name: str, args: Mapping[str, Any], seconds: float = CONTROL_SECONDS_DEFAULT, *, must: bool = True
    ) -> dict[str, Any] | None:
        """A control's answer, or None when there is no child, or none any more: one that does not answer is killed, unless it
        need not (`must`): then None, and the child, which may only be busy, goes on."""
        link = self._link
        if link is None:
            return None
        if link.failed.done():
            await link.ended.wait()
            return None
        control_id = next(self._ids)
        frame = wire.message({"kind": "control", "id": control_id, "name": name, "args": dict(args)})
        done: asyncio.Future[dict[str, Any] | None] = asyncio.get_running_loop().create_future()
        self._controls[control_id] = done
        link.send(frame)
        try:
            await asyncio.wait({done}, timeout=seconds)
        except asyncio.CancelledError:
            done.cancel()
            raise
        if not done.done() and not must:
            done.cancel()  # its answer, when it comes, is nobody's
            return None
        if not done.done():
            link.fail(f"it did not answer the control {name!r} within {seconds:g} s")
        # The keeper answers None once the child's process is gone.
        return await done

    async def let_go(self, seconds: float = LET_GO_SECONDS_DEFAULT) -> None:
        """Return when the child works on no call any more whose caller left; one that goes on too long is killed."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        await asyncio.sleep(0)  # who was cancelled in this turn leaves in the next
        left = [job.id for job in self._running.values() if job.let_go_by is not None]  # who leaves later is not waited for
        while any(job_id in self._running for job_id in left):
            link = self._link
            if link is not None and loop.time() > until:
                link.fail(f"it did not let go of what was erased within {seconds:g} s")
                await link.ended.wait()
                return
            await asyncio.sleep(LET_GO_LOOK_SECONDS)

    async def close(self) -> None:
        """Ends the child, and every call with `MemIO`."""
        self._closed = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        self._fail_waiting(MemIO("the driver host was closed", "Repeat the call when the kernel runs again."))

    # -- the queue ---------------------------------------------------------------------------------------------------

    def _ring(self, job: _Job) -> Ring[_Job]:
        return self._background if job.background else self._foreground

    def _pump(self) -> None:
        """Sends the child what it may have."""
        while self._link is not None and not self._link.failed.done() and (job := self._take()) is not None:
            loop = asyncio.get_running_loop()
            try:
                self._link.send(job.frame, job.fds)
            except OSError as error:
                job.fail(MemIO(f"the call's descriptors could not be passed on: {error.strerror}"))
                continue
            if not self._running:
                self._heard = loop.time()
            self._running[job.id] = job
            if self._checking is None:
                self._checking = loop.call_later(self._check_seconds, self._check)

    def _take(self) -> _Job | None:
        foreground = [job for job in self._running.values() if not job.background]
        again = any(job.again for job in self._running.values())
        found: _Job | None = None
        if len(foreground) < self._active:
            each = max(1, self._active - 1)
            found = self._foreground.take(
                lambda job: not (job.again and again) and sum(other.who == job.who for other in foreground) < each
            )
        if found is None and len(foreground) == len(self._running) < self._active:
            found = self._background.take(lambda job: not (job.again and again))
        return found

    def _leave(self, job: _Job) -> None:
        """Its caller is gone, with or without an answer."""
        if self._ring(job).remove(job.who, job) or job.id not in self._running or job.let_go_by is not None:
            return
        job.let_go_by = asyncio.get_running_loop().time() + self._silence_seconds
        if self._link is not None and not self._link.failed.done():
            self._link.send(wire.message({"kind": "cancel", "id": job.id}))

    def _fail_waiting(self, error: MemError) -> None:
        for job in [*self._foreground.clear(), *self._background.clear()]:
            job.fail(type(error)(error.detail, error.advice))

    # -- what the child says -----------------------------------------------------------------------------------------

    def _hear(self, message: dict[str, Any], fds: list[int]) -> None:
        kind, known = message["kind"], message.get("id")
        job = self._running.get(known) if type(known) is int else None
        if kind == "done" and job is not None and type(message.get("result")) is dict:
            self._settle(job)
            if job.done.done():
                wire.close_all(fds)
            else:
                job.done.set_result(Answer(message["result"], fds))
            return
        if fds:
            wire.close_all(fds)
            raise wire.Garbage("descriptors came with what is no answer")
        if kind == "beat":
            self._heard = asyncio.get_running_loop().time()
        elif job is not None:
            self._hear_of(job, message)
        elif kind in ("done", "failed") and type(known) is int and known in self._controls:
            self._hear_of_control(self._controls.pop(known), message)
        else:
            raise wire.Garbage(f"{kind[:32]!r} of what it was not asked")

    def _hear_of(self, job: _Job, message: dict[str, Any]) -> None:
        self._heard = asyncio.get_running_loop().time()
        match message:
            case {"kind": "failed", "errno": str()}:
                self._settle(job)
                job.fail(as_error(message))
            case {"kind": "item", "item": dict() as item}:
                job.streamed = True
                if job.on_item is not None and not job.done.done():
                    self._call_back(job, job.on_item, item)
            case {"kind": "progress", "share": float() as share, "message": str() as text}:
                if job.on_progress is not None and not job.done.done():
                    self._call_back(job, job.on_progress, share, text)
            case _:
                raise wire.Garbage("a message about a job is none of its kinds")

    @staticmethod
    def _hear_of_control(done: asyncio.Future[dict[str, Any] | None], message: dict[str, Any]) -> None:
        if done.done():
            return
        if message["kind"] == "failed":
            done.set_exception(as_error(message))
        elif type(message.get("result")) is dict:
            done.set_result(message["result"])
        else:
            done.set_result(None)
            raise wire.Garbage("a control's answer is no map")

    @staticmethod
    def _call_back(job: _Job, callback: Callable[..., None], *values: Any) -> None:
        """A caller's own mistake is the caller's; the others go on."""
        try:
            callback(*values)
        except Exception as error:
            job.done.set_exception(error)

    def _settle(self, job: _Job) -> None:
        """The child answered: its slot is free."""
        self._heard = asyncio.get_running_loop().time()
        self._deaths_in_row = 0
        del self._running[job.id]
        self._pump()

    # -- the child's life --------------------------------------------------------------------------------------------

    def _check(self) -> None:
        """Gives up a child that hangs."""
        self._checking = None
        if self._link is None or not self._running:
            return
        loop = asyncio.get_running_loop()
        now = loop.time()
        if now - self._heard > self._silence_seconds:
            self._link.fail(f"it kept silent for {self._silence_seconds:g} s")
        elif any(job.let_go_by is not None and job.let_go_by < now for job in self._running.values()):
            self._link.fail(f"it did not let go of a cancelled call for {self._silence_seconds:g} s")
        else:
            self._checking = loop.call_later(self._check_seconds, self._check)

    async def _keep(self) -> None:
        """Starts a child when work waits, and stays with it until it is gone."""
        try:
            while self._foreground or self._background:
                await asyncio.sleep(max(0.0, self._rest_until - asyncio.get_running_loop().time()))
                if await self._start():
                    await self._stay()
        except MemError as refusal:
            self._fail_waiting(refusal)
        except Exception as error:
            log_.exception("the driver host's keeper failed")
            self._fail_waiting(MemIO(f"the driver host cannot be kept running: {type(error).__name__}"))

    async def _start(self) -> bool:
        """Whether a child is ready. Raises what all who wait are told."""
        self._starts += 1
        try:
            self._link, self.info = await opened(
                self._module, self._spec, self._check_seconds, self._start_seconds, self._hear
            )
        except Died as death:
            self._died(f"at its start: {death}")
            self._start_deaths += 1
            if self._start_deaths >= START_DEATHS_MAX:
                self._start_deaths = 0
                raise MemIO(f"the driver host died {START_DEATHS_MAX} times at its start: {death}") from death
            return False
        self._start_deaths = 0
        return True

    async def _stay(self) -> None:
        """Until the child is gone and its jobs are put back or answered."""
        link = self._link
        assert link is not None
        closing = True
        try:
            self._pump()
            await asyncio.wait({link.failed})
            closing = False
        finally:
            how = await asyncio.shield(link.end())
            self._link = None
            if not closing:
                self._died(f"{link.failed.result()} ({how})")
            self._put_back("was closed" if closing else f"died: {self._last_death}")

    def _died(self, why: str) -> None:
        log_.warning("the driver host died: %s", why)
        self._deaths += 1
        self._last_death = why
        pause = PAUSE_SECONDS[min(self._deaths_in_row, len(PAUSE_SECONDS) - 1)]
        self._deaths_in_row += 1
        self._rest_until = asyncio.get_running_loop().time() + pause

    def _put_back(self, why: str) -> None:
        jobs, self._running = self._running, {}
        controls, self._controls = self._controls, {}
        for done in controls.values():
            if not done.done():
                done.set_result(None)
        for job in reversed(jobs.values()):
            if job.done.done():
                continue
            if job.again or job.streamed or not job.repeatable or self._closed:
                job.fail(MemIO(f"the driver host {why}", _TRY_AGAIN))
            else:
                job.again, job.let_go_by = True, None
                self._ring(job).add_first(job.who, job)
