"""The driver host's child: `python -m memos_drivers.host.child FD MODULE` serves one socket until it closes.

- The main thread works: it steps through all jobs that it was sent, round robin by who asked, so that a long one does
  not hold up the others. Background jobs get steps while no other job has any, and else so many that they take one part
  in BACKGROUND_SHARE of the time: what trains for minutes comes to its end beside users. After each step the main thread
  closes the jobs whose callers left.
- The reader thread takes messages. It runs controls itself, at once, and ends the process when the socket closes, even
  in the middle of a step: the kernel closed or died.
- What an operation raises becomes an answer: a `MemError` as it is, no memory as `EIO` after making room, all else as
  `EIO` with its type and text and a traceback on stderr. Other jobs go on.

The process holds decrypted memory: it leaves no core dump and dies with the kernel. It offers itself to the kernel's
out-of-memory killer first. What it prints goes to stderr. See `wire` for messages, `contract` for what MODULE gives.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from memos_drivers.lm.models import GET_TORCH
from memos_syscalls.errors import MemCanceled, MemError, MemIO, MemNoCall, MemNoModel

from . import wire
from .contract import Hosted, Steps
from .ring import Ring

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
NICE: Final = 10
BACKGROUND_SHARE: Final = 5
BACKGROUND_SECONDS: Final = 1.0
"""That other jobs have between two steps of background jobs, at least."""
OOM_SCORE: Final = 500
NO_CPU_MEMORY: Final = "DefaultCPUAllocator: can't allocate memory"
"""How torch says, in a plain RuntimeError, that the machine has no memory left."""


@dataclass(slots=True, eq=False)
class _Job:
    id: int
    op: str
    args: dict[str, Any]
    fds: list[int]
    who: str
    background: bool
    steps: Steps | None = None
    left: bool = False
    """Its caller no longer waits."""


class _Context:
    """See `contract.Context`."""

    __slots__ = ("_id", "_worker", "who")

    def __init__(self, worker: Worker, job: _Job) -> None:
        self._worker, self._id, self.who = worker, job.id, job.who

    def progress(self, share: float, message: str) -> None:
        self._worker.tell({"kind": "progress", "id": self._id, "share": float(share), "message": message})

    def item(self, item: dict[str, Any]) -> None:
        self._worker.tell({"kind": "item", "id": self._id, "item": item})


class Worker:
    """The jobs of one child. `_changed` guards the rings, `_jobs` and `_leaving`; `_sending` the socket's writing side."""

    def __init__(self, peer: socket.socket, inbox: wire.Inbox, hosted: Hosted, beat_seconds: float) -> None:
        self._peer, self._inbox, self._hosted, self._beat_seconds = peer, inbox, hosted, beat_seconds
        self._jobs: dict[int, _Job] = {}
        self._foreground: Ring[_Job] = Ring()
        self._background: Ring[_Job] = Ring()
        self._leaving: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._told = time.monotonic()
        self._last_background = 0.0
        """Seconds of the last step of a background job."""
        self._since_background = 0.0
        """Seconds of other steps since then."""

    def tell(self, body: dict[str, Any]) -> None:
        """Sends one message of the main thread, and so shows that it is alive."""
        self._send(wire.message(body), ())
        self._told = time.monotonic()

    def _send(self, data: bytes, fds: Sequence[int]) -> None:
        with self._sending:
            sent = wire.send(self._peer, data, fds)
            self._peer.sendall(memoryview(data)[sent:])

    # -- the reader thread -------------------------------------------------------------------------------------------

    def read(self) -> None:
        """Takes messages until the socket closes, then ends the process."""
        status = 1
        try:
            while self._receive():
                continue
            status = 0
        except ConnectionError:
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)

    def _receive(self) -> bool:
        """Whether the socket is open. Nothing of a message stays in a variable while the next one is awaited."""
        data, fds = wire.receive(self._peer)
        for message, passed in self._inbox.feed(data, fds):
            self._take(message, passed)
        return bool(data)

    def _take(self, message: dict[str, Any], fds: list[int]) -> None:
        kind = message["kind"]
        if kind == "job":
            job = _Job(message["id"], message["op"], message["args"], fds, message["who"], message["background"])
            with self._changed:
                self._jobs[job.id] = job
                self._ring(job).add(job.who, job)
                self._changed.notify()
        elif kind == "cancel":
            with self._changed:
                found = self._jobs.get(message["id"])
                if found is not None and not found.left:
                    found.left = True
                    # Otherwise it is in a step, and leaves after that.
                    if self._ring(found).remove(found.who, found):
                        self._leaving.append(found)
                        self._changed.notify()
        elif kind == "control":
            self._send(self._control(message["id"], message["name"], message["args"]), ())
        else:
            raise wire.Garbage(f"no message is a {kind!r}")

    def _control(self, control_id: int, name: str, args: dict[str, Any]) -> bytes:
        try:
            if name not in self._hosted.controls:
                raise MemNoCall(f"the driver host has no control {name!r}")
            return wire.message({"kind": "done", "id": control_id, "result": self._hosted.controls[name](args)})
        except Exception as error:
            return wire.message({"kind": "failed", "id": control_id, **wire.failure(as_error(error))})

    def _ring(self, job: _Job) -> Ring[_Job]:
        return self._background if job.background else self._foreground

    # -- the main thread ---------------------------------------------------------------------------------------------

    def work(self) -> None:
        """Steps through jobs for ever; the reader ends the process."""
        while True:
            with self._changed:
                while (job := self._next()) is None:
                    self._changed.wait()
            self._turn(job)
            # No text of a job that ended stays behind while the next one is awaited.
            del job

    def _turn(self, job: _Job) -> None:
        began = time.monotonic()
        if job.left:
            self._close(job)
        elif self._step(job):
            with self._changed:
                if job.left:
                    self._leaving.append(job)
                else:
                    self._ring(job).add(job.who, job)
        spent = time.monotonic() - began
        if job.background:
            self._last_background, self._since_background = spent, 0.0
        else:
            self._since_background += spent
        if time.monotonic() - self._told > self._beat_seconds:
            self.tell({"kind": "beat"})

    def _next(self) -> _Job | None:
        if self._leaving:
            return self._leaving.popleft()
        first, second = self._foreground, self._background
        if self._since_background > max(BACKGROUND_SECONDS, (BACKGROUND_SHARE - 1) * self._last_background):
            first, second = second, first
        return first.take() or second.take()

    def _step(self, job: _Job) -> bool:
        """Whether the job has more steps; if not, it was answered."""
        result: Any = None
        failed: MemError | None = None
        try:
            if job.steps is None:
                if job.op not in self._hosted.ops:
                    raise MemNoCall(f"the driver host has no operation {job.op!r}")
                job.steps = self._hosted.ops[job.op](_Context(self, job), job.args, job.fds)
            next(job.steps)
            return True
        except StopIteration as end:
            result = end.value
        except Exception as error:
            failed = as_error(error)
        # Here the error is gone, and with it the frames that held the memory that was short.
        job.steps = None
        if failed is not None and isinstance(failed, _NoMemory):
            make_room()
        if failed is None:
            failed = self._finish(job, result)
        if failed is not None:
            self._fail(job, failed)
        return False

    def _finish(self, job: _Job, result: Any) -> MemError | None:
        """Answers with a result, or says why it is none."""
        match result:
            case (dict() as body, list() as fds):
                try:
                    if len(fds) > wire.FDS_MAX:
                        return MemIO(f"the operation {job.op!r} returned more than {wire.FDS_MAX} descriptors")
                    data = wire.message({"kind": "done", "id": job.id, "result": body}, len(fds))
                except (MemError, TypeError, ValueError, OverflowError) as error:
                    return as_error(error)
                else:
                    self._answer(job, data, fds)
                    return None
                finally:
                    wire.close_all(fds)
            case _:
                return MemIO(f"the operation {job.op!r} did not return a map and a list of descriptors")

    def _close(self, job: _Job) -> None:
        try:
            if job.steps is not None:
                job.steps.close()
        except Exception:
            traceback.print_exc()
        job.steps = None
        self._fail(job, MemCanceled("the caller left"))

    def _fail(self, job: _Job, error: MemError) -> None:
        self._answer(job, wire.message({"kind": "failed", "id": job.id, **wire.failure(error)}), ())

    def _answer(self, job: _Job, data: bytes, fds: Sequence[int]) -> None:
        with self._changed:
            del self._jobs[job.id]
        wire.close_all(job.fds)
        self._send(data, fds)
        self._told = time.monotonic()


class _NoMemory(MemIO):
    """The device, or the machine, has no memory left for this."""


def as_error(error: Exception) -> MemError:
    """What the caller is told; what nobody foresaw is shown whole on stderr."""
    if isinstance(error, MemError):
        return error
    no_memory: tuple[type[BaseException], ...] = (MemoryError,)
    torch = sys.modules.get("torch")
    if torch is not None:
        no_memory = (MemoryError, torch.OutOfMemoryError)
    if isinstance(error, no_memory) or NO_CPU_MEMORY in str(error):
        return _NoMemory(
            "out of memory on the device", "Use a shorter context, a smaller model, or wait until other calls have ended."
        )
    traceback.print_exception(error)
    text = str(error)
    return MemIO(f"the driver host failed: {type(error).__name__}{': ' if text else ''}{text[:500]}")


def make_room() -> None:
    """Gives back what nothing refers to any more."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def protect() -> None:
    """No core dump and no ptrace of this process, and no life after its parent's."""
    with contextlib.suppress(OSError):
        # Before it becomes undumpable, for then this file is root's. A refusal only makes the choice less good.
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE), encoding="ascii")
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((PR_SET_PDEATHSIG, int(signal.SIGKILL)), (PR_SET_DUMPABLE, 0)):
        if libc.prctl(option, value, 0, 0, 0) != 0:
            print(f"driver host: prctl {option} failed: errno {ctypes.get_errno()}", file=sys.stderr)


def yield_to_others() -> None:
    """Low priority where the system allows it; it is a courtesy, so refusal is no error. Not the lowest: on a machine whose
    processors are all busy, what has idle priority never runs."""
    with contextlib.suppress(OSError):
        os.nice(NICE)


def first_message(peer: socket.socket, inbox: wire.Inbox) -> dict[str, Any] | None:
    """The spec's message, or None when the kernel is gone. It sends nothing more before it is answered."""
    while True:
        data, fds = wire.receive(peer)
        if not data:
            return None
        for message, passed in inbox.feed(data, fds):
            wire.close_all(passed)
            return message


def serve(peer: socket.socket, module: str) -> None:
    """Opens the host that the first message describes, and works for it."""
    inbox = wire.Inbox()
    first = first_message(peer, inbox)
    if first is None:
        return
    spec: dict[str, Any] = first["spec"]
    if spec.get("threads"):
        # Before numpy and torch are imported: they read it once.
        for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ[variable] = str(int(spec["threads"]))
    if spec.get("yields"):
        yield_to_others()
    try:
        hosted: Hosted = importlib.import_module(module).open_host(spec)
        info = hosted.describe()
    except ModuleNotFoundError as error:
        lacking = MemNoModel(f"the package {error.name} is not installed", GET_TORCH)
        peer.sendall(wire.message({"kind": "refused", **wire.failure(lacking)}))
        return
    except MemError as error:
        peer.sendall(wire.message({"kind": "refused", **wire.failure(error)}))
        return
    worker = Worker(peer, inbox, hosted, float(first["beat"]))
    worker.tell({"kind": "ready", "info": info})
    threading.Thread(target=worker.read, name="reader", daemon=True).start()
    worker.work()


def main() -> None:
    protect()
    os.dup2(2, 1)
    fd, module = int(sys.argv[1]), sys.argv[2]
    os.set_inheritable(fd, False)
    # The kernel going away, even in the middle of an answer, is the normal end.
    with socket.socket(fileno=fd) as peer, contextlib.suppress(ConnectionError, KeyboardInterrupt):
        serve(peer, module)


if __name__ == "__main__":
    main()
