"""mem_diff: what changed between two versions of a cube.

Texts are shown line by line; of caches it is told whether they differ. Of adapters the driver host tells how far each module
moved, and which of their probes the model answers otherwise, under either version alone. A kernel that does not run the
adapter's model has no answers, and one that runs no models has no norms either: the header is compared, and `diff` says so.
"""

from __future__ import annotations

import asyncio
import difflib
import os
from typing import TYPE_CHECKING, Any, Final

from memos_syscalls.errors import MemNoModel, MemNotFound

from . import lifecycle
from .governance import Access, text_id
from .header import header
from .infer import reads_of
from .jobs import Job, still_there
from .reads import answering, composed, headed
from .sources import check_sources, recipe_of, row_at
from .state import Cube
from .turn import Turn

if TYPE_CHECKING:
    from .dispatch import Kernel

DIFF_BYTES_MAX: Final = 256 * 1024
"""Larger texts are compared, not shown line by line: the work grows with the square of the lines."""
_NOT_COMPARED: Final = frozenset(("version", "updated_at", "offset", "actor", "state", "bytes", "stale"))


def mem_diff(kernel: Kernel, turn: Turn, request: Any) -> None:
    cube = Access(kernel.view, turn.peer.caller).cube(request.cube_id)
    if cube.form == "parametric":
        # It may wait for the model, and must not hold up other reads.
        kernel.spawn(answering(kernel, turn, _diff(kernel, turn, request)), turn)
    else:
        kernel.long_reads.submit(turn, lambda: answering(kernel, turn, _diff(kernel, turn, request)))


async def _diff(kernel: Kernel, turn: Turn, request: Any) -> dict[str, Any]:
    access = Access(kernel.frozen_view(), turn.peer.caller)
    cube = access.cube(request.cube_id)
    if cube.state == lifecycle.SHREDDED:
        raise lifecycle.refusal(request.cube_id, cube.state, "diff")
    sides: list[tuple[dict[str, Any], bytes, str]] = []
    tensors = cube.form != "plaintext"
    for number in (request.a, request.b):
        if number > cube.version:
            raise MemNotFound(f"cube {request.cube_id} has no version {number}; the newest is {cube.version}")
        opened = headed(kernel, access.view, cube, number) if tensors else kernel.vault.open(access.view, cube, number)
        assert opened is not None, "the cube has this version"
        head = header(access.view, cube, opened.version, opened.private, state=cube.state, now=kernel.clock.now(), owner=None)
        composition = not tensors and (opened.private.recipe or {}).get("method") == "compose"
        content = await asyncio.to_thread(composed, kernel, access, cube, opened) if composition else opened.content
        # Of tensors it is only told whether they are the same payload.
        sides.append((head, opened.version.payload_id if tensors else content, opened.private.encoding))
    (old, before, _), (new, after, _) = sides
    changed = {
        name: [old.get(name), new.get(name)]
        for name in sorted(old.keys() | new.keys())
        if name not in _NOT_COMPARED and old.get(name) != new.get(name)
    }
    names = f"version {request.a}", f"version {request.b}"
    if cube.form == "parametric" and before != after:
        return {**await _adapters(kernel, turn, request, access, cube, names), "header": changed}
    if tensors:
        diff = "" if before == after else f"Contents differ: {old['bytes']} and {new['bytes']} bytes of tensors\n"
    elif "bytes" in (sides[0][2], sides[1][2]) or max(len(before), len(after)) > DIFF_BYTES_MAX:
        diff = "" if before == after else f"Contents differ: {len(before)} and {len(after)} bytes\n"
    else:
        diff = await asyncio.to_thread(_unified, before.decode(), after.decode(), *names)
    return {"diff": diff, "header": changed}


def _unified(before: str, after: str, a: str, b: str) -> str:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), a, b, lineterm="")
    return "".join(f"{line}\n" for line in lines)


# -- adapters ----------------------------------------------------------------------------------------------------------


async def _adapters(
    kernel: Kernel, turn: Turn, request: Any, access: Access, cube: Cube, names: tuple[str, str]
) -> dict[str, Any]:
    """What the driver host finds, as a job: it ends when what it reads is erased."""
    versions = (request.a, request.b)
    for version in versions:
        check_sources(access, cube, version)
    sizes = [row_at(access, cube, version).payload_bytes for version in versions]
    differ = f"Contents differ: {sizes[0]} and {sizes[1]} bytes of tensors"
    if not all(sizes):
        return {"diff": f"{differ}; one of them is still to be trained\n"}
    seconds = (request.deadline_ms or turn.syscall.deadline_ms) / 1000
    try:
        _ = kernel.runtime.host
    except MemNoModel:
        return {"diff": f"{differ}; a kernel that runs models tells more\n"}
    job = kernel.runtime.jobs.launch(
        "diff", access.caller, lambda job: _asked(kernel, access, cube, versions, job), seconds, kept=False
    )
    try:
        await job.over()
    except asyncio.CancelledError:
        job.cancel()
        raise
    if job.error is not None:
        raise job.error
    found = job.result or {}
    modules = [dict(zip(("module", "a", "b", "difference"), one, strict=True)) for one in found["modules"]]
    probes = [dict(zip(("prompt", "a", "b"), one, strict=True)) for one in found["probes"]]
    sides: list[str] = []
    for side in ("a", "b"):
        lines = [f"{one['module']}: {one[side]:.4g}" for one in modules]
        sides.append("\n".join([*lines, *(f"{one['prompt']} → {one[side]}" for one in probes)]))
    diff = _unified(sides[0], sides[1], *names) or f"{differ}, which say the same\n"
    if found["why"] is not None:
        diff += f"No probes were asked: {found['why']}\n"
    return {"diff": diff, "modules": modules, "probes": probes}


async def _asked(kernel: Kernel, access: Access, cube: Cube, versions: tuple[int, int], job: Job) -> dict[str, Any]:
    job.reads, slots = reads_of(access, [(cube, version) for version in versions])
    still_there(kernel, job.reads, slots)
    who = access.caller.principal
    rows = [row_at(access, cube, version) for version in versions]
    size = sum(row.payload_bytes for row in rows)
    name = recipe_of(kernel.vault, access.view, cube, versions[1]).get("model_name")
    with kernel.runtime.holding(who, size) as held:
        parts: list[dict[str, Any]] = []
        for row in rows:
            payload = await kernel.hosttier.load(cube, row)
            parts.append({"kind": "adapter", "key": row.payload_id, "fd": len(held), "cube": text_id(cube.cube_id)})
            held.append(os.dup(payload.fd))
        asked = {"model": name if name in kernel.runtime.names else None, "parts": parts}
        return (await kernel.runtime.host.run("diff", asked, held, who=who, on_progress=job.report)).result
