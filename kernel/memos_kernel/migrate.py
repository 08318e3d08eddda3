"""Which write becomes which job, and moving payloads between tiers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from memos_drivers.table import TABLE as DRIVERS
from memos_syscalls import messages as m
from memos_syscalls.errors import MemInvalid

from .attach import Wanted, adapter_part, cache_part
from .capture import capture
from .checking import check
from .decide import live_cube
from .distil import distil, fuse_anew
from .fuseadapters import fuse_adapters
from .fusecaches import fuse_caches
from .fusetexts import fuse_texts
from .governance import Access
from .importing import import_adapter
from .jobs import Job
from .products import submit, usable
from .sources import recipe_of, row_at
from .verbalise import verbalise
from .writes import Write

if TYPE_CHECKING:
    from .dispatch import Kernel

Launch = Callable[["Kernel", Write], None]


def job_of(request: Any) -> Launch | None:
    """What begins the job of a write; None when it is decided at once."""
    if isinstance(request, m.MemMigrate):
        return _MIGRATIONS["tier" if request.to is None else request.to]
    if isinstance(request, m.MemFuse):
        return _FUSIONS.get(request.strategy)
    if isinstance(request, (m.MemAlloc, m.MemWrite)) and request.check is not None:
        return check
    if isinstance(request, m.MemAlloc) and request.form != "plaintext":
        return import_adapter
    return None


def move(kernel: Kernel, write: Write) -> None:
    submit(kernel, write, "move", lambda job: _move(kernel, write, job), wait=write.request.wait)


async def _move(kernel: Kernel, write: Write, job: Job) -> dict[str, Any]:
    """Bring a payload into a tier, or let it go to the disk, where it always is."""
    request, caller = write.request, write.turn.peer.caller
    access = Access(kernel.frozen_view(), caller)
    cube = live_cube(access, request.cube_id, kernel.clock.now())
    if cube.form == "plaintext":
        raise MemInvalid(f"cube {request.cube_id} is plaintext: its payload has no tiers", "Migrate it to activation first.")
    row, recipe = row_at(access, cube, cube.version), recipe_of(kernel.vault, access.view, cube, cube.version)
    if recipe.get("method") == "compose":
        raise MemInvalid(f"cube {request.cube_id} refers to caches and holds none", "Move its members.")
    job.reads = {cube.cube_id}
    began = time.monotonic()
    held: list[int] = []
    try:
        if request.tier == "disk":
            await kernel.runtime.drop([row.payload_id])
            kernel.hosttier.drop([row.payload_id])
        else:
            if cube.form == "parametric":
                usable(access, cube)
                part = await adapter_part(kernel, access, Wanted(cube, cube.version, None, [], None, 1.0), held, missing=True)
            else:
                part = await cache_part(kernel, access, cube, cube.version, held, needed=True)
            if request.tier == "device":
                asked = {"model": recipe.get("model_name"), "parts": [part]}
                await kernel.runtime.host.run("load", asked, held, who=caller.principal, on_progress=job.report)
            else:
                await kernel.runtime.drop([row.payload_id])
    finally:
        for fd in held:
            os.close(fd)
    return {
        "cube_id": request.cube_id, "version": cube.version, "offset": row.seq, "job_id": job.id, "state": "done",
        "tier": request.tier, "timings": {"whole": time.monotonic() - began},
    }  # fmt: skip


_MIGRATIONS: Final[dict[str, Launch]] = {
    "tier": move, "activation": capture, "parametric": distil, "plaintext": verbalise,
}  # fmt: skip
_FUSIONS: Final[dict[str, Launch]] = {
    **dict.fromkeys(DRIVERS["activation"].fuses, fuse_caches), **dict.fromkeys(DRIVERS["parametric"].fuses, fuse_adapters),
    "distil": fuse_anew, "auto": fuse_texts, "summarise": fuse_texts,
}  # fmt: skip
