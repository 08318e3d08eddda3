"""From a call to a job to a record: what every migration and every fusion in the driver host has in common.

    submit    begin a job, or join the one that the same request id began
    commit    what the host made: stored, decided with every source at the version that was read, kept at hand
    record    the same for what has no payload to keep at hand
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pydantic import ValidationError

from memos_drivers.host.client import Answer
from memos_syscalls import limits
from memos_syscalls.errors import MemAgain, MemConflict, MemError, MemInvalid, MemIO, MemTooLarge

from . import crypto, lifecycle
from .attach import stale
from .decide import live
from .decide_migrate import Fusion, Product, Statements
from .events import pack
from .fds import is_sealed
from .governance import Access, raw_id, text_id
from .jobs import Job, Own, Work
from .mapping import read_layout
from .private import Private
from .sources import check_sources, newer_source, row_at
from .state import Cube, Version, View
from .stats import Histogram
from .turn import Turn
from .writes import Write, invalid

if TYPE_CHECKING:
    from .dispatch import Kernel

ATTEMPTS: Final = 2
"""Times that a job begins anew when a source changed under it and its caller named no version."""


def params_of(kind: type[Any], given: dict[str, Any] | None) -> Any:
    try:
        return kind.model_validate(given or {})
    except ValidationError as error:
        raise MemInvalid(f"params: {invalid(error).detail}") from error


def submit(kernel: Kernel, write: Write, kind: str, work: Work, *, wait: bool, model: bool = True) -> None:
    """Begin a job, or join the one that the same request id began. `model`: it cannot do without."""
    turn = write.turn
    if model:
        _ = kernel.runtime.host  # refused now rather than by the job
    known = kernel.runtime.by_mac.get(write.mac) if write.mac is not None else None
    if known is not None:
        job, args_hash = known
        if args_hash != write.args_hash():
            raise MemInvalid("this request id was used for another call", "Use a new request id for a new call.")
    else:
        seconds = (write.request.deadline_ms or turn.syscall.deadline_ms) / 1000
        job = kernel.runtime.jobs.launch(kind, turn.peer.caller, work, seconds)
        if write.mac is not None:
            kernel.runtime.remember(job, write.mac, write.args_hash())
    if not wait:
        job.detached = True
        turn.answer({"job_id": job.id, "state": job.state, "cube_id": None, "version": None, "offset": None})
        return
    kernel.spawn(kernel.runtime.jobs.follow(job, turn, lambda job: dict(job.result or {})), turn)


def key_of(kind: str, layout: int, parts: list[Any]) -> str:
    """A digest of everything that a product depends on."""
    return crypto.sha256(pack([kind, layout, *parts])).hex()


class Known(NamedTuple):
    """A product that is there already."""

    cube: Cube
    row: Version
    private: Private

    @property
    def recipe(self) -> dict[str, Any]:
        return self.private.recipe or {}


def known_by(kernel: Kernel, view: View, form: str, namespace: str, source: bytes, binding: str) -> Known | None:
    """The cube made from this source with this binding, at its newest version, if it takes another one. For a thread."""
    now = kernel.clock.now()
    for cube_id in view.derived(source):
        cube = view.cube(cube_id)
        if cube is None or cube.form != form or cube.namespace != namespace or cube.slot is None:
            continue
        state = lifecycle.effective(cube.state, cube.expires_at, now)
        if state not in lifecycle.SEARCHABLE or "write" not in lifecycle.TRANSITIONS[state]:
            continue
        found = newest(kernel, view, cube)
        if found is not None and found.recipe.get("binding") == binding:
            return found
    return None


def newest(kernel: Kernel, view: View, cube: Cube) -> Known | None:
    found = view.version(cube, cube.version)
    return None if found is None else Known(cube, found[0], kernel.vault.open_private(*found))


def reused(known: Known, job: Job) -> dict[str, Any]:
    """The answer of a job that found what it was to make."""
    return {
        "cube_id": text_id(known.cube.cube_id), "version": known.row.version, "offset": known.row.seq, "reused": True,
        "state": "done", "job_id": job.id,
    }  # fmt: skip


def next_version(
    form: str, namespace: str, name: str | None, sources: list[tuple[bytes, int, int]], recipe: dict[str, Any],
    known: Known | None,
) -> Product:  # fmt: skip
    """A product that becomes the next version of what is there, under its name unless it gets another; or else a cube."""
    if known is None:
        return Product(form, namespace, name, sources, recipe, None, 0, [])
    return Product(
        form, namespace, name or known.private.name, sources, recipe, known.cube.cube_id, known.cube.version, []
    )  # fmt: skip


async def of_the_present(job: Job, once: Callable[[], Coroutine[Any, Any, dict[str, Any]]]) -> dict[str, Any]:
    """Work that begins anew when a source changed under it: what was made is of the past, and its caller asked for now."""
    attempt = 0
    while True:
        try:
            return await once()
        except MemConflict:
            attempt += 1
            if attempt == ATTEMPTS:
                raise
            job.commit_refused()


async def commit(
    kernel: Kernel, write: Write, job: Job, product: Product, answer: Answer, target: Cube | None
) -> dict[str, Any]:
    """The payload that the host made, stored and recorded; its descriptor becomes the host tier's."""
    if len(answer.fds) != 1:
        raise MemIO(f"the driver host made {len(answer.fds)} payloads instead of one")
    fd = answer.fds[0]
    content = await asyncio.to_thread(payload, fd)
    done = await record(kernel, write, job, product, [content], target)
    cube = kernel.view.cube(raw_id(done["cube_id"]))
    row = kernel.view.version(cube, done["version"]) if cube is not None else None
    if row is not None:
        # It is in the log: that it cannot be kept at hand (erased already, no descriptors left) is no failure of the job.
        with contextlib.suppress(MemError, OSError):
            seconds = product.recipe.get("prefill_seconds", product.recipe.get("train_seconds", 0.0))
            kernel.hosttier.put(row[0], os.dup(fd), float(seconds))
    return done


async def record(
    kernel: Kernel, write: Write, job: Job, product: Product | Statements | Fusion, contents: Sequence[bytes | memoryview],
    target: Cube | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What a job made becomes one record, decided like any other write."""
    job.report(0.95, "storing it")
    own = write.made(Turn(Own(write.turn.peer.caller), 0, write.turn.syscall, Histogram()), product)
    job.commit_begins()
    return await kernel.commit_product(own, contents, target)


def distinct(named: Sequence[str]) -> None:
    if len(set(named)) != len(named):
        raise MemInvalid("cube_ids names a cube twice")


def parents_of(
    kernel: Kernel, access: Access, named: Sequence[str], form: str, refuse: Callable[[Cube], MemError]
) -> list[Cube]:
    """Derived cubes of one form that are to be merged; `refuse` says what is wrong with one of another form."""
    distinct(named)
    cubes = [access.cube(text) for text in named]
    for cube in cubes:
        if cube.form != form:
            raise refuse(cube)
        mergeable(kernel, access, cube)
    return cubes


def depth_of(recipes: Sequence[dict[str, Any]], what: str, advice: str | None = None) -> int:
    """How many times over something is fused that is made of products with these recipes."""
    depth = 1 + max(int(recipe.get("depth", 0)) for recipe in recipes)
    if depth > limits.COMPOSED_DEPTH_MAX:
        raise MemTooLarge(f"the {what} would be fused {depth} times over; the limit is {limits.COMPOSED_DEPTH_MAX}", advice)
    return depth


def mergeable(kernel: Kernel, access: Access, cube: Cube) -> None:
    """Refuse a derived cube that cannot be merged into another one now."""
    live(cube, kernel.clock.now())
    lifecycle.require(text_id(cube.cube_id), cube.state, "merge")
    usable(access, cube)


def usable(access: Access, cube: Cube) -> None:
    """Refuse a derived cube that its caller may not use, that holds nothing yet, or that is older than its sources."""
    check_sources(access, cube, cube.version)
    if cube.form == "parametric" and row_at(access, cube, cube.version).payload_bytes == 0:
        raise MemAgain(f"cube {text_id(cube.cube_id)} is still being trained", "Wait for its job, then ask again.")
    if (newer := newer_source(access, cube, cube.version)) is not None:
        raise stale(cube, newer, "Migrate the source again.")


def payload(fd: int) -> memoryview:
    """The tensors in a descriptor that the host sent, checked for what they claim to be. For a thread."""
    size = os.fstat(fd).st_size
    if not is_sealed(fd) or not 0 < size <= limits.TENSOR_BYTES_MAX:
        raise MemIO(f"the driver host sent a payload of {size} bytes that cannot be kept")
    content = memoryview(mmap.mmap(fd, size, prot=mmap.PROT_READ))
    try:
        read_layout(fd, size)
    except MemInvalid as error:
        raise MemIO(f"the driver host sent a payload that is none: {error.detail}") from error
    return content


def close(answer: Answer) -> None:
    for fd in answer.fds:
        os.close(fd)
