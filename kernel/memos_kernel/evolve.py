"""Adapters follow their sources: those that a shred left empty are trained again, stale ones as their recipe says.

    pending    a version without content, which a shred put in place of an adapter: trained on the texts that are left, by a
               job that the shred's report names. A restart finds it and goes on.
    stale      `on_change` in the recipe: keep leaves it as it is (refused unless a call allows it); rebuild makes the next
               version from the texts as they are now; shred erases the adapter when a text says something else now.

- One is trained at a time, behind the calls of everybody else. Changes are followed once none came for a moment, so a burst of
  writes costs one training. The records are the kernel's own; the jobs are for the owner of the adapter's namespace.
- A pending adapter that cannot be made (nothing is left, or too little comes of it), or whose job is cancelled, is freed; its
  note says why. One that waits for a model, or failed too often, stays pending for the next start. A stale one whose training
  fails stays stale.
- Nothing here is state: what is to be done is read from the log's view. A version is due when a text that it read has
  changed since it was made; so an adapter that was rolled back stays as it is until the next change.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from memos_syscalls import messages as m
from memos_syscalls.errors import (
    MemAgain,
    MemBusy,
    MemCanceled,
    MemConflict,
    MemError,
    MemIO,
    MemNoModel,
    MemNoSpace,
    MemNotFound,
    MemShredded,
    MemTimeout,
)  # fmt: skip
from memos_syscalls.table import BY_NAME

from . import events as ev
from . import lifecycle
from .distil import distil_again
from .events import Damaged, Record
from .governance import Caller, text_id
from .header import over, sources
from .jobs import Job, Own, Work
from .sources import recipe_of, row_of
from .state import CONTENT, Cube, Version, View
from .stats import Histogram
from .turn import Turn
from .writes import Write

if TYPE_CHECKING:
    from .dispatch import Kernel

log_ = logging.getLogger("memos.kernel")

LEISURE_SECONDS: Final = 1.0
PATIENCE_SECONDS: Final = 60.0
"""A stream of writes holds up what follows from it no longer than this."""
TRAIN_SECONDS_MAX: Final = 24 * 3600.0
"""For a job, its turn included."""
PAUSES: Final = (1.0, 5.0, 20.0, 60.0, 300.0)
"""Between attempts at a pending adapter; after the last one it stays as it is."""
NOTE_CHARS: Final = 400
PASSING: Final = (MemAgain, MemBusy, MemConflict, MemIO, MemNoSpace, MemTimeout)
KERNEL: Final = Caller(ev.KERNEL_PRINCIPAL, True)


class Found(NamedTuple):
    """What a walk over all adapters found."""

    adapters: set[bytes]
    read: set[bytes]
    """What they were made from."""
    pending: list[bytes]
    stale: dict[bytes, str]
    """Those that are to be followed up, and how."""


class Evolution:
    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._adapters: set[bytes] = set()
        self._read: set[bytes] = set()
        """What adapters were made from: a write to anything else is nothing to look at."""
        self._loading = False
        self._changed: dict[bytes, None] = {}
        self._stale: dict[bytes, str] = {}
        self._changed_at = 0.0
        self._working = False
        self._one = asyncio.Lock()
        self._jobs: dict[bytes, str] = {}
        """Jobs that fill pending adapters."""

    @property
    def busy(self) -> bool:
        """Whether something is still to be followed."""
        return self._working or self._loading

    # -- what happened -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """The kernel writes from here on: find what an earlier one left undone."""
        if self._kernel.read_only or next(iter(self._kernel.view.adapters()), None) is None:
            return
        self._loading = True
        self._kernel.spawn(self._catch_up())

    async def _catch_up(self) -> None:
        try:
            found: Found = await self._kernel.effects.in_thread(self._look, self._kernel.frozen_view())
        except MemAgain:
            return  # The kernel is stopping already; the next one looks again.
        except (Damaged, OSError) as error:
            log_.error("adapters do not follow what changed before this start: %s", error)
            found = Found(set(self._kernel.view.adapters()), set(), [], {})
        self._adapters |= found.adapters
        self._read |= found.read
        self._loading = False
        for cube_id in found.pending:
            self._fill(cube_id)
        self._stale.update(found.stale)
        self._changed = {cube_id: None for cube_id in self._changed if cube_id in self._read}
        self._wake()

    def committed(self, record: Record) -> None:
        """A record is durable."""
        for event in record.events:
            if event.name == ev.WRITTEN:
                cube_id: bytes = event.fields[0]
                if cube_id in self._adapters:
                    self._read.update(source for source, _at, _role in event.fields[5])
                if self._loading or cube_id in self._read:
                    self._changed[cube_id] = None
                    self._wake()
            elif event.name == ev.ALLOCATED and event.fields[2] == "parametric":
                self._adapters.add(event.fields[0])
                self._read.update(source for source, _at, _role in event.fields[6])

    def fill(self, record: Record) -> None:
        """A shred was carried out: begin to train what it left empty."""
        for event in record.events:
            if event.name == ev.SHREDDED:
                for _old, new in event.fields[2]:
                    if new in self._adapters:
                        self._fill(new)

    def name_jobs(self, report: dict[str, Any]) -> None:
        """Name the jobs in a shred's report."""
        for made in report["rebuilt"]:
            made["job_id"] = self._jobs.get(bytes.fromhex(made["cube_id"].replace("-", "")))

    # -- what is to be done, read in a thread ------------------------------------------------------------------------

    def _look(self, view: View) -> Found:
        found = Found(set(), set(), [], {})
        for cube_id in view.adapters():
            cube = view.cube(cube_id)
            if cube is None:
                continue
            row = row_of(view, cube, cube.version)
            found.adapters.add(cube_id)
            found.read.update(source for source, _at, _role in row.lineage)
            if is_pending(cube, row, self._kernel.clock.now()):
                found.pending.append(cube_id)
            elif (policy := self._policy(view, cube, row)) is not None:
                found.stale[cube_id] = policy
        return found

    def _touched(self, view: View, changed: list[bytes]) -> dict[bytes, str]:
        """The adapters that these cubes went into, directly or through others, and that are to follow."""
        found: dict[bytes, str] = {}
        queue, seen = list(changed), set(changed)
        while queue:
            for cube_id in view.derived(queue.pop()):
                cube = None if cube_id in seen else view.cube(cube_id)
                seen.add(cube_id)
                if cube is None or cube.form != "parametric" or cube.state == lifecycle.SHREDDED:
                    continue
                queue.append(cube_id)
                if (policy := self._policy(view, cube, row_of(view, cube, cube.version))) is not None:
                    found[cube_id] = policy
        return found

    def _policy(self, view: View, cube: Cube, row: Version) -> str | None:
        """How a version follows what has changed since it was made; None when nothing is to be done."""
        state = lifecycle.effective(cube.state, cube.expires_at, self._kernel.clock.now())
        # A fork that nobody wrote to stays what it was forked for.
        if cube.slot is None or not row.payload_bytes or state in (lifecycle.EXPIRED, lifecycle.SHREDDED):
            return None
        newer = [(source, at) for source, at, role in sources(view, row) if role == CONTENT and source.version > at]
        newer = [(source, at) for source, at in newer if row_of(view, source, source.version).seq > row.seq]
        if not newer:
            return None
        try:
            policy = recipe_of(self._kernel.vault, view, cube, cube.version).get("on_change")
        except (MemShredded, Damaged) as error:
            log_.info("adapter %s does not follow its sources: %s", text_id(cube.cube_id), error)
            return None
        if policy == "rebuild" and "write" in lifecycle.TRANSITIONS[state]:
            return "rebuild"
        if policy == "shred" and any(_says_otherwise(view, source, at) for source, at in newer):
            return "shred"
        return None

    # -- following what changed --------------------------------------------------------------------------------------

    def _wake(self) -> None:
        loop = asyncio.get_running_loop()
        self._changed_at = loop.time()
        if not self._working and not self._loading and (self._changed or self._stale):
            self._working = True
            self._kernel.spawn(self._work())

    async def _work(self) -> None:
        kernel = self._kernel
        try:
            while (self._changed or self._stale) and kernel.stopped is None:
                await self._leisure()
                changed, self._changed = list(self._changed), {}
                if changed:
                    self._stale |= await kernel.effects.in_thread(self._touched, kernel.frozen_view(), changed)
                while self._stale and not self._changed and kernel.stopped is None:
                    cube_id = next(iter(self._stale))
                    policy = self._stale.pop(cube_id)
                    await (self._rebuild(cube_id) if policy == "rebuild" else self._shred(cube_id))
        except MemAgain:
            log_.debug("the kernel stops; what adapters are to follow, the next one finds")
        except (Damaged, OSError) as error:
            log_.error("adapters do not follow what changed: %s", error)
        finally:
            self._working = False

    async def _leisure(self) -> None:
        """Return when nothing that adapters were made from has changed for a moment."""
        loop = asyncio.get_running_loop()
        until = loop.time() + PATIENCE_SECONDS
        while (left := min(until, self._changed_at + LEISURE_SECONDS) - loop.time()) > 0:  # noqa: ASYNC110  # It moves.
            await asyncio.sleep(left)

    async def _rebuild(self, cube_id: bytes) -> None:
        """The next version of a stale adapter."""

        async def work(job: Job) -> dict[str, Any]:
            async with self._one:
                view = self._kernel.frozen_view()
                cube = view.cube(cube_id)
                row = None if cube is None else row_of(view, cube, cube.version)
                if cube is None or row is None or self._policy(view, cube, row) != "rebuild":
                    return {"cube_id": text_id(cube_id), "state": "done"}
                return await distil_again(self._kernel, self._lesson(view, cube, "a source changed"), job, cube_id)

        job = self._launch(cube_id, work)
        if job is not None:
            await job.over()
            if job.error is not None:
                log_.warning("adapter %s stays stale: %s", text_id(cube_id), job.error)

    async def _shred(self, cube_id: bytes) -> None:
        view = self._kernel.view
        cube = view.cube(cube_id)
        if cube is None or self._policy(view, cube, row_of(view, cube, cube.version)) != "shred":
            return
        note = "its sources changed, and its recipe says: shred"
        try:
            await self._kernel.own_write(_own("mem_shred", cube_id=text_id(cube_id), actor_note=note))
        except MemError as error:
            log_.warning("adapter %s was to go when its source changed, and is still there: %s", text_id(cube_id), error)

    # -- filling what is empty ---------------------------------------------------------------------------------------

    def _fill(self, cube_id: bytes) -> None:
        async def work(job: Job) -> dict[str, Any]:
            return await self._train(job, cube_id)

        job = self._launch(cube_id, work)
        if job is not None:
            self._jobs[cube_id] = job.id

    async def _train(self, job: Job, cube_id: bytes) -> dict[str, Any]:
        """The content of a pending adapter."""
        job.reads = {cube_id}
        try:
            for pause in (*PAUSES, None):
                try:
                    return await self._train_once(job, cube_id)
                except PASSING as error:
                    if job.committing:
                        job.commit_refused()
                    log_.warning("adapter %s is still to be trained: %s", text_id(cube_id), error)
                    if pause is None:
                        raise
                    job.report(0.0, f"tries again: {error.detail}")
                    await asyncio.sleep(pause)
        except MemNoModel as error:
            log_.warning("adapter %s waits for a kernel with its model: %s", text_id(cube_id), error)
            raise
        except (*PASSING, MemShredded):
            raise
        except MemError as error:
            await self._free(cube_id, f"it could not be trained again: {error.detail}")
            raise
        except asyncio.CancelledError:
            if type(job.error) is MemCanceled and self._kernel.stopped is None:
                self._kernel.spawn(self._free(cube_id, "the job that was to train it again was cancelled"))
            raise
        raise AssertionError("the last attempt returns or raises")

    async def _train_once(self, job: Job, cube_id: bytes) -> dict[str, Any]:
        async with self._one:
            view = self._kernel.frozen_view()
            cube = view.cube(cube_id)
            if cube is None or not is_pending(cube, row_of(view, cube, cube.version), self._kernel.clock.now()):
                raise MemShredded(f"cube {text_id(cube_id)} is not waiting for its content any more")
            write = self._lesson(view, cube, "trained again, without what was erased")
            return await distil_again(self._kernel, write, job, cube_id)

    async def _free(self, cube_id: bytes, why: str) -> None:
        """Nobody is to wait for ever for what does not come."""
        log_.warning("adapter %s is given up: %s", text_id(cube_id), why)
        try:
            await self._kernel.own_write(
                _own("mem_free", cube_id=text_id(cube_id), expect_version=1, actor_note=why[:NOTE_CHARS])
            )
        except MemError as error:
            log_.info("adapter %s was not freed: %s", text_id(cube_id), error)

    # -- common ------------------------------------------------------------------------------------------------------

    def _launch(self, cube_id: bytes, work: Work) -> Job | None:
        kernel = self._kernel
        cube = kernel.view.cube(cube_id)
        try:
            _ = kernel.runtime.host
        except MemNoModel as error:
            log_.warning("adapter %s waits for a kernel with its model: %s", text_id(cube_id), error)
            return None
        if cube is None:
            return None
        owner = kernel.view.owner(cube.namespace) or ""
        job = kernel.runtime.jobs.launch("distil", KERNEL, work, TRAIN_SECONDS_MAX, of=owner)
        job.detached = True
        return job

    def _lesson(self, view: View, cube: Cube, note: str) -> Write:
        """The distillation that made an adapter, asked for again by the kernel, of the texts that are there now."""
        row, recipe = row_of(view, cube, cube.version), recipe_of(self._kernel.vault, view, cube, cube.version)
        read = [source for source, _at, role in row.lineage if role == CONTENT][: int(recipe.get("leaves", 0))]
        now = self._kernel.clock.now()
        texts = [text_id(source) for source in read if (one := view.cube(source)) is not None and not over(one, now)]
        if recipe.get("method") != "distil" or not texts:
            raise MemNotFound(f"of the texts that adapter {text_id(cube.cube_id)} was made from, none is left")
        params = {**(recipe.get("params") or {}), "on_change": recipe.get("on_change") or "keep"}
        args: dict[str, Any] = {
            "cube_ids": texts, "to": "parametric", "model": recipe.get("model_name"), "namespace": cube.namespace,
            "params": params, "actor_note": note,
        }  # fmt: skip
        # Compositions may have stood for more texts than one call names.
        return Write(_turn("mem_migrate"), m.MemMigrate.model_construct(**args), args)


def is_pending(cube: Cube, row: Version, now: int) -> bool:
    """Whether a cube stands for an adapter that is still to be trained."""
    state = lifecycle.effective(cube.state, cube.expires_at, now)
    return cube.form == "parametric" and not row.payload_bytes and "write" in lifecycle.TRANSITIONS[state]


def _says_otherwise(view: View, source: Cube, at: int) -> bool:
    """Whether a newer version has another content: tags alone make none."""
    return row_of(view, source, at).payload_id != row_of(view, source, source.version).payload_id


def _turn(name: str) -> Turn:
    return Turn(Own(KERNEL), 0, BY_NAME[name], Histogram())


def _own(name: str, **args: Any) -> Write:
    return Write(_turn(name), BY_NAME[name].request.model_validate(args), args)
