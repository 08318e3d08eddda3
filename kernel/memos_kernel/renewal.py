"""Captures that stand behind neighbours which have changed are made again at leisure.

Such a cache is still right: it holds its own sources as they are, and only what stood before them is of the past
(`renewable` in its header). When a call used one, it is noted here, and captured again with the neighbours of now, as a new
version, once the driver host has had nothing to do for a moment. The record is the kernel's own. What cannot be renewed
stays as it is, and is said in the log. So does, without a word, what takes no new version (frozen, archived, merged), and what
a composition or a fusion names: these would be stale.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from memos_syscalls import messages as m
from memos_syscalls.errors import MemError, MemNoModel
from memos_syscalls.table import BY_NAME

from . import events as ev
from . import lifecycle
from .capture import capture_job
from .governance import Caller, text_id
from .header import is_renewable, is_stale
from .jobs import Own
from .sources import recipe_of
from .state import Cube
from .stats import Histogram
from .turn import Turn
from .writes import Write

if TYPE_CHECKING:
    from .dispatch import Kernel

log_ = logging.getLogger("memos.kernel")

LEISURE_SECONDS: Final = 1.0
RENEW_SECONDS_MAX: Final = 3600.0
READERS_MAX: Final = 64
"""Cubes made from a cache that are looked at; one with more is left as it is."""
KERNEL: Final = Caller(ev.KERNEL_PRINCIPAL, True)


class Renewals:
    """Caches to be captured again, in the order in which they were used."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._wanted: dict[bytes, None] = {}
        self._working = False

    def used(self, cube_id: bytes) -> None:
        """A call continued from this cache."""
        if self._due(cube_id) and not self._kernel.read_only:
            self._wanted[cube_id] = None
            if not self._working:
                self._working = True
                self._kernel.spawn(self._work())

    def _due(self, cube_id: bytes) -> bool:
        view = self._kernel.view
        cube = view.cube(cube_id)
        found = view.version(cube, cube.version) if cube is not None else None
        if cube is None or found is None or cube.slot is None or not is_renewable(view, found[0]) or is_stale(view, found[0]):
            return False
        state = lifecycle.effective(cube.state, cube.expires_at, self._kernel.clock.now())
        if state not in lifecycle.SEARCHABLE or "write" not in lifecycle.TRANSITIONS[state]:
            return False
        return not self._is_read(cube)

    def _is_read(self, cube: Cube) -> bool:
        """Whether a composition or a fusion names this very version: a newer one would make that stale."""
        view = self._kernel.view
        for count, reader_id in enumerate(view.derived(cube.cube_id)):
            reader = view.cube(reader_id)
            found = view.version(reader, reader.version) if reader is not None else None
            lineage = found[0].lineage if found is not None else []
            read = any((source, at) == (cube.cube_id, cube.version) for source, at, _role in lineage)
            if count >= READERS_MAX or (reader is not None and reader.state != lifecycle.SHREDDED and read):
                return True
        return False

    async def _work(self) -> None:
        try:
            while self._wanted and self._kernel.stopped is None:
                await asyncio.sleep(LEISURE_SECONDS)
                host = self._kernel.runtime.host.stats()
                if host["running"] or host["waiting"]:
                    continue
                cube_id = next(iter(self._wanted))
                del self._wanted[cube_id]
                if self._due(cube_id):
                    await self._renew(cube_id)
        finally:
            self._working = False

    async def _renew(self, cube_id: bytes) -> None:
        try:
            write = self._write(cube_id)
            job = capture_job(self._kernel, write, RENEW_SECONDS_MAX, background=True)
        except (MemError, KeyError) as error:
            log_.info("cache %s is not renewed: %s", text_id(cube_id), error)
            return
        job.detached = True
        await job.over()
        if job.error is not None and not isinstance(job.error, MemNoModel):
            log_.info("cache %s was not renewed: %s", text_id(cube_id), job.error)

    def _write(self, cube_id: bytes) -> Write:
        """The call that made it, made again by the kernel."""
        view = self._kernel.view
        cube = view.cube(cube_id)
        assert cube is not None, "it was there a moment ago"
        recipe = recipe_of(self._kernel.vault, view, cube, cube.version)
        given: dict[str, Any] = {name: recipe[name] for name in ("system", "stored") if recipe.get(name) is not None}
        given["adapters"] = recipe.get("under", [])
        args = {
            "cube_ids": recipe["asked"], "to": "activation", "model": recipe["model_name"], "namespace": cube.namespace,
            "params": {**given, "neighbours": recipe["beside"]}, "actor_note": "its neighbours changed",
        }  # fmt: skip
        syscall = BY_NAME["mem_migrate"]
        return Write(Turn(Own(KERNEL), 0, syscall, Histogram()), m.MemMigrate.model_validate(args), args)
