"""Jobs: long work that a call started, and the calls that ask about it.

- A job belongs to the principal that began it, or for whom the kernel did; to anybody else it does not exist. It lives in
  this process alone: what it commits is in the log, the job itself is forgotten at a stop, and the oldest that are over when
  there are too many.
- Its work runs as one task with a deadline. `commit_begins` is called before a record of it goes to the log: from then on
  it can no more be cancelled, and callers who wait for it and give up learn that the outcome is unknown.
- A caller that waits (`follow`) takes the job with it when it goes away, unless others wait too, or the job was started
  to run by itself.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, Final

from memos_syscalls import limits
from memos_syscalls.errors import MemBusy, MemCanceled, MemError, MemFenced, MemIO, MemNotFound, MemShredded, MemTimeout

from . import lifecycle
from .events import Damaged, Slot
from .governance import Caller
from .turn import Turn

if TYPE_CHECKING:
    from .dispatch import Kernel

log_ = logging.getLogger("memos.kernel")

Work = Callable[["Job"], Coroutine[Any, Any, dict[str, Any]]]
OVER: Final = frozenset(("done", "failed", "canceled"))


class Job:
    """One piece of work, from its beginning until nobody remembers it."""

    def __init__(self, kind: str, caller: Caller, now: Callable[[], int], of: str | None = None) -> None:
        self.id = os.urandom(16).hex()
        self.kind = kind
        self.caller = caller
        self.of = of
        """Whom a job of the kernel's own is for: they may ask about it, and it counts against nobody."""
        self.state = "queued"
        self.progress = 0.0
        self.message = "waits for its turn"
        self.created_at = now()
        self.finished_at: int | None = None
        self.result: dict[str, Any] | None = None
        self.error: MemError | None = None
        self.reads: set[bytes] = set()
        """Cubes whose content it holds: when one is erased, it ends."""
        self.detached = False
        """Runs to its end though nobody waits."""
        self.task: asyncio.Task[None] | None = None
        self.followers: list[Turn] = []
        self.committing = False
        """Its record is on its way to the log."""
        self.deadline: asyncio.Timeout | None = None
        self._now = now
        self._until: float | None = None
        self._over = asyncio.Event()

    def report(self, progress: float, message: str) -> None:
        if self.state not in OVER:
            self.state, self.progress, self.message = "running", min(max(progress, self.progress), 1.0), message

    def commit_begins(self) -> None:
        """Its record is about to be decided. The deadline ends the wait of callers from here on, not the job: it would not
        know what became of the record."""
        self.committing = True
        for turn in self.followers:
            turn.appended = True
        if self.deadline is not None:
            self._until = self.deadline.when()
            self.deadline.reschedule(None)

    def commit_refused(self) -> None:
        """Nothing was recorded, and the work begins anew."""
        self.committing = False
        for turn in self.followers:
            turn.appended = False
        if self.deadline is not None:
            self.deadline.reschedule(self._until)

    def cancel(self, why: MemError | None = None) -> bool:
        """End it, unless its record is under way. What asked for it is answered with `why`."""
        if self.state in OVER or self.committing:
            return False
        self.conclude("canceled", error=why or MemCanceled(f"job {self.id} was cancelled"))
        if self.task is not None:
            self.task.cancel()
        return True

    def conclude(self, state: str, *, result: dict[str, Any] | None = None, error: MemError | None = None) -> None:
        if self.state in OVER:
            return
        if error is not None:
            # A new one: the frames of the one that was raised hold texts and payloads, and a job is remembered for long.
            error = type(error)(error.detail, error.advice, outcome=error.outcome)
        self.state, self.result, self.error, self.finished_at = state, result, error, self._now()
        self.message = state if error is None else error.detail
        if state == "done":
            self.progress = 1.0
        self._over.set()

    async def over(self) -> None:
        await self._over.wait()

    def reply(self) -> dict[str, Any]:
        error = self.error
        return {
            "job_id": self.id, "kind": self.kind, "state": self.state, "progress": round(self.progress, 4),
            "message": self.message, "created_at": self.created_at, "finished_at": self.finished_at, "result": self.result,
            "error": None if error is None else error.to_wire(),
        }  # fmt: skip


class Jobs:
    """Every job that this kernel knows of."""

    def __init__(self, spawn: Callable[[Any], asyncio.Task[None]], now: Callable[[], int]) -> None:
        self._spawn = spawn
        self._now = now
        self._jobs: dict[str, Job] = {}

    def launch(
        self, kind: str, caller: Caller, work: Work, seconds: float, *, kept: bool = True, of: str | None = None
    ) -> Job:
        """Start a job; `MemBusy` when its principal has too many. One that is not `kept` is forgotten when it is over."""
        mine = sum(job.state not in OVER and job.caller.principal == caller.principal for job in self._jobs.values())
        if mine >= limits.JOBS_PER_PRINCIPAL_MAX and of is None:
            raise MemBusy(f"{caller.principal} has {mine} jobs in progress", "Wait for one of them with job_wait.")
        job = Job(kind, caller, self._now, of)
        self._jobs[job.id] = job
        self._forget_some(caller)
        job.task = self._spawn(self._run(job, work, seconds))
        if not kept:
            job.task.add_done_callback(lambda _task: self._jobs.pop(job.id, None))
        return job

    async def _run(self, job: Job, work: Work, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds) as job.deadline:
                result = await work(job)
        except MemError as error:
            job.conclude("failed", error=error)
        except TimeoutError:
            job.conclude("failed", error=MemTimeout(f"the {job.kind} took longer than its deadline"))
        except asyncio.CancelledError:
            # By the kernel's end, it may be: what became of a record that was under way, the next kernel tells.
            why = MemCanceled(f"job {job.id} was cancelled", outcome="unknown" if job.committing else "none")
            job.conclude("canceled", error=why)
            raise
        except OSError as error:
            job.conclude("failed", error=MemIO(f"the {job.kind} failed: {error.strerror or error}"))
        except Damaged as error:
            job.conclude("failed", error=MemIO(str(error), "Run `memctl verify` on the data directory."))
        except Exception as error:
            log_.error("a %s failed unexpectedly", job.kind, exc_info=error)
            job.conclude("failed", error=MemIO(f"the kernel failed inside a {job.kind}: {type(error).__name__}"))
        else:
            job.conclude("done", result=result)

    def _forget_some(self, caller: Caller) -> None:
        over = [job.id for job in self._jobs.values() if job.state in OVER and job.caller.principal == caller.principal]
        for job_id in over[: -limits.JOBS_KEPT_MAX]:
            del self._jobs[job_id]

    def find(self, caller: Caller, job_id: str) -> Job:
        job = self._jobs.get(job_id)
        if job is None or not (caller.admin or caller.principal in (job.caller.principal, job.of)):
            raise MemNotFound(f"no job {job_id}", "Jobs are forgotten at a stop; what they committed is in the log.")
        return job

    async def follow(self, job: Job, turn: Turn, answer: Callable[[Job], dict[str, Any]]) -> None:
        """Answer a call when a job is over, with what became of it."""
        job.followers.append(turn)
        turn.appended = job.committing
        try:
            await job.over()
        except asyncio.CancelledError:
            job.followers.remove(turn)
            if not job.followers and not job.detached:
                job.cancel()
            turn.fail(MemCanceled("the call was cancelled"))
            raise
        job.followers.remove(turn)
        turn.appended = False
        if job.error is not None:
            kind = type(job.error)
            turn.fail(kind(job.error.detail, job.error.advice, outcome=job.error.outcome))
        else:
            turn.answer(answer(job))

    def erased(self, cube_ids: set[bytes], why: MemError) -> bool:
        """End every job that holds content of these cubes; whether there was one."""
        holds = [job for job in self._jobs.values() if job.state not in OVER and job.reads & cube_ids]
        for job in holds:
            job.cancel(why)
        return bool(holds)

    def stats(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for job in self._jobs.values():
            found[job.state] = found.get(job.state, 0) + 1
        return found

    def stop(self) -> None:
        for job in list(self._jobs.values()):
            job.cancel(MemFenced("the kernel stopped before the job was over", "Ask for it again."))


class Own:
    """The peer of a write that a job makes: the answer is the job's."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.last_write = -1
        self.pending_writes = 0
        self.answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    def send_reply(self, call_id: int, result: dict[str, Any], fds: list[int] | None = None) -> None:
        if not self.answer.done():
            self.answer.set_result(result)

    def send_error(self, call_id: int, error: MemError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)

    def send_item(self, call_id: int, item: dict[str, Any]) -> None:
        """Writes stream nothing."""

    def cancel(self, call_id: int) -> bool:
        return False

    async def writable(self) -> None:
        """It always is."""

    def done(self, call_id: int) -> None:
        """Nobody counts its calls."""


def still_there(kernel: Kernel, cube_ids: set[bytes], slots: Iterable[Slot] = ()) -> None:
    """Asked after `Job.reads` is known: what was erased while it was found out ended no job. `slots` are keys that its
    content is under: a fork's may be its source's."""
    if any(kernel.vault.is_destroyed(slot) for slot in slots):
        raise MemShredded("what the job read was shredded")
    for cube_id in cube_ids:
        cube = kernel.view.cube(cube_id)
        if cube is not None and cube.state == lifecycle.SHREDDED:
            raise MemShredded("a cube that the job read was shredded")


def job_status(kernel: Kernel, turn: Turn, request: Any) -> None:
    turn.answer(kernel.runtime.jobs.find(turn.peer.caller, request.job_id).reply())


def job_wait(kernel: Kernel, turn: Turn, request: Any) -> None:
    """Answers when the job is over, whatever became of it; waiting does not tie the job to the caller."""
    job = kernel.runtime.jobs.find(turn.peer.caller, request.job_id)

    async def wait() -> None:
        try:
            await job.over()
        except asyncio.CancelledError:
            turn.fail(MemCanceled("the call was cancelled"))
            raise
        turn.answer(job.reply())

    kernel.spawn(wait(), turn)


def job_cancel(kernel: Kernel, turn: Turn, request: Any) -> None:
    job = kernel.runtime.jobs.find(turn.peer.caller, request.job_id)
    job.cancel()
    turn.answer(job.reply())
