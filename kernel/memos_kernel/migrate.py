"""mem_migrate and the fusion of KV caches: from a call to a job of the driver host to a record.

    sources and their texts → token counts and digests from the host → the key of what is wanted
        → a cache of exactly that is there: answer with it
        → else capture (or fuse) in the host → store the payload → commit with every source at the version that was read

- The *key* names everything a cache depends on: model weights and tokenizer (their fingerprint), adapters' content, dtype,
  stored dtype, layout, RoPE parameters, tenant, namespace, sources with versions, the prefix before the memory, the token
  ids, neighbours with versions. The *binding* is the key less what changes when a source gets a new version: a cube with
  the same binding gets a new version instead of a new cube beside it.
- Two jobs with one binding run one after the other, so the second finds what the first made: one work, two answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from memos_drivers.host.client import Answer
from memos_drivers.table import TABLE as DRIVERS
from memos_syscalls import limits
from memos_syscalls import messages as m
from memos_syscalls.errors import MemAgain, MemConflict, MemError, MemInvalid, MemIO, MemModel, MemTooLarge

from . import crypto, lifecycle
from .decide import live, live_cube
from .decide_migrate import Product
from .events import pack
from .fds import is_sealed
from .governance import Access, raw_id, text_id
from .jobs import Job, Own, Work, still_there
from .mapping import read_layout
from .sources import Texts, newer_source, recipe_of, row_at, texts_of
from .state import CONTENT, CONTEXT, Cube, Version, View
from .stats import Histogram
from .turn import Turn
from .writes import Write, invalid

if TYPE_CHECKING:
    from .dispatch import Kernel

DRIVER: Final = DRIVERS["activation"]
LAYOUT: Final = 1
"""Of the payload; see docs/activation.md."""
ATTEMPTS: Final = 2
"""Times that a job begins anew when a source changed under it and its caller named no version."""


class Params(BaseModel):
    """`params` of a migration to a KV cache."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    system: Annotated[str, Field(max_length=limits.PROMPT_CHARS_MAX)] | None = None
    stored: Literal["float32", "float16", "bfloat16", "int8"] | None = None
    neighbours: (
        Annotated[int, Field(ge=0, le=limits.NEIGHBOURS_MAX)]
        | Annotated[list[m.CubeId], Field(max_length=limits.NEIGHBOURS_MAX)]
    ) = 0


class FuseParams(BaseModel):
    """`params` of a fusion of KV caches."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=limits.NAME_CHARS_MAX)] | None = None
    recompute: Annotated[float, Field(ge=0, le=1)] = limits.RECOMPUTE_PERCENT_DEFAULT / 100


def params_of(kind: type[Any], given: dict[str, Any] | None) -> Any:
    try:
        return kind.model_validate(given or {})
    except ValidationError as error:
        raise MemInvalid(f"params: {invalid(error).detail}") from error


class Plan(NamedTuple):
    """What a capture will read."""

    namespace: str
    tenant: str
    texts: list[str]
    sources: list[tuple[bytes, int, int]]
    """Lineage: leaves in order, compositions, neighbours."""
    leaves: int
    neighbours: list[str]
    """Texts before the memory, for a capture in context."""


def job_of(request: Any) -> Callable[[Kernel, Write], None] | None:
    """What begins the job of a write; None when it is decided at once."""
    if isinstance(request, m.MemMigrate):
        return mem_migrate
    if isinstance(request, m.MemFuse) and request.strategy in DRIVER.fuses:
        return fuse_caches
    return None


def mem_migrate(kernel: Kernel, write: Write) -> None:
    request = write.request
    if request.tier is not None:
        _submit(kernel, write, "move", lambda job: _move(kernel, write, job), wait=request.wait)
        return
    params = params_of(Params, request.params)
    _submit(kernel, write, "capture", lambda job: _capture(kernel, write, job, params), wait=request.wait)


def fuse_caches(kernel: Kernel, write: Write) -> None:
    params = params_of(FuseParams, write.request.params)
    if len(write.request.cube_ids) < 2:
        raise MemInvalid("fusing takes at least two cubes")
    _submit(kernel, write, "fuse", lambda job: _fuse(kernel, write, job, params), wait=True)


def _submit(kernel: Kernel, write: Write, kind: str, work: Work, *, wait: bool) -> None:
    """Begin a job, or join the one that the same request id began."""
    turn = write.turn
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


# -- sources -------------------------------------------------------------------------------------------------------------


def _plan(kernel: Kernel, view: View, request: Any, caller: Any, params: Params) -> Plan:
    """Everything a capture reads, opened. For a thread."""
    access = Access(view, caller)
    now = kernel.clock.now()
    named = [request.cube_id] if request.cube_id is not None else list(request.cube_ids)
    if len(set(named)) != len(named):
        raise MemInvalid("cube_ids names a cube twice")
    found: list[Texts] = []
    size = 0
    for text in named:
        cube = live_cube(access, text, now)
        if cube.form not in DRIVER.captures:
            raise MemInvalid(
                f"cube {text} is {cube.form}: only text can be captured", 'Fuse caches with mem_fuse(strategy="kv").'
            )
        found.append(texts_of(kernel.vault, access, cube, cube.version, current=True))
        size += found[-1].bytes
        if size > limits.CAPTURE_BYTES_MAX:
            raise MemTooLarge(f"the memories have more than {limits.CAPTURE_BYTES_MAX} bytes of text")
    leaves = [leaf for texts in found for leaf in texts.leaves]
    ids = [leaf.cube.cube_id for leaf in leaves]
    if len(set(ids)) != len(ids):
        raise MemInvalid("a memory stands in the cache twice", "Name each memory once, directly or in one composition.")
    for leaf in leaves:
        live(leaf.cube, now)
    namespace = access.target(request.namespace or access.cube(named[0]).namespace)
    through = [pair for texts in found for pair in texts.through]
    neighbours = _neighbours(kernel, access, leaves[0].cube, set(ids), params, now)
    sources = [(leaf.cube.cube_id, leaf.version, CONTENT) for leaf in leaves]
    sources += [(cube_id, at, CONTENT) for cube_id, at in through]
    sources += [(cube.cube_id, cube.version, CONTEXT) for cube, _text in neighbours]
    tenant = view.owner(namespace) or caller.principal
    return Plan(namespace, tenant, [leaf.text for leaf in leaves], sources, len(leaves), [text for _cube, text in neighbours])


def _neighbours(
    kernel: Kernel, access: Access, first: Cube, taken: set[bytes], params: Params, now: int
) -> list[tuple[Cube, str]]:
    """Memories that a capture stands behind: those named, or the nearest older ones of the namespace, oldest first; where
    there are not enough, the nearest younger ones before them."""
    wanted = params.neighbours
    found: list[tuple[Cube, str]] = []

    def text_of(cube: Cube) -> str | None:
        row = access.view.version(cube, cube.version)
        if row is None or row[0].payload_bytes > limits.CAPTURE_BYTES_MAX // 8:
            return None
        opened = kernel.vault.open(access.view, cube, cube.version)
        if opened is None or opened.private.encoding != "text" or opened.private.recipe is not None:
            return None
        return opened.content.decode()

    if isinstance(wanted, list):
        if len(set(wanted)) != len(wanted):
            raise MemInvalid("neighbours names a cube twice")
        for name in wanted:
            cube = access.cube(name)
            live(cube, now)
            text = text_of(cube) if cube.form == "plaintext" and cube.cube_id not in taken else None
            if text is None:
                raise MemInvalid(f"cube {name} cannot stand before this memory", "Name other memories of plain text.")
            found.append((cube, text))
        return found
    head = b"l" + first.namespace.encode() + b"\0"
    for reverse in (True, False):
        for key, _value in access.view.scan(head, head + first.cube_id, reverse=reverse):
            if len(found) >= wanted:
                break
            cube_id = key[len(head) :]
            other = None if cube_id in taken else access.view.cube(cube_id)
            if other is None or other.form != "plaintext" or other.state not in lifecycle.SEARCHABLE:
                continue
            if lifecycle.effective(other.state, other.expires_at, now) == lifecycle.EXPIRED:
                continue
            if (text := text_of(other)) is not None:
                found.insert(0, (other, text))
                taken = {*taken, cube_id}
    return found


def _key(parts: list[Any]) -> str:
    return crypto.sha256(pack(["memos.kv", LAYOUT, *parts])).hex()


def _derived(kernel: Kernel, view: View, plan: Plan, binding: str) -> tuple[Cube, Version, dict[str, Any]] | None:
    """The cube with this binding, its newest version and recipe. For a thread."""
    for cube_id in view.derived(plan.sources[0][0]):
        cube = view.cube(cube_id)
        if cube is None or cube.form != "activation" or cube.namespace != plan.namespace or cube.slot is None:
            continue
        if cube.state not in lifecycle.SEARCHABLE or "write" not in lifecycle.TRANSITIONS[cube.state]:
            continue
        if lifecycle.effective(cube.state, cube.expires_at, kernel.clock.now()) == lifecycle.EXPIRED:
            continue
        row = view.version(cube, cube.version)
        if row is None:
            continue
        recipe = kernel.vault.open_private(*row).recipe or {}
        if recipe.get("binding") == binding:
            return cube, row[0], recipe
    return None


# -- jobs ----------------------------------------------------------------------------------------------------------------


def capture_job(kernel: Kernel, write: Write, seconds: float, *, background: bool) -> Job:
    """A capture that runs by itself."""
    params = params_of(Params, write.request.params)
    caller = write.turn.peer.caller
    return kernel.runtime.jobs.launch("capture", caller, lambda job: _capture(kernel, write, job, params, background), seconds)


async def _capture(
    kernel: Kernel, write: Write, job: Job, params: Params, background: bool = False
) -> dict[str, Any]:
    """Prefill the sources' text and keep the cache."""
    attempt = 0
    while True:
        try:
            return await _capture_once(kernel, write, job, params, background)
        except MemConflict:
            # What was made is of the past. The caller asked for the present.
            attempt += 1
            if attempt == ATTEMPTS:
                raise
            job.commit_refused()


async def _capture_once(
    kernel: Kernel, write: Write, job: Job, params: Params, background: bool
) -> dict[str, Any]:
    request, caller, host = write.request, write.turn.peer.caller, kernel.runtime.host
    began = time.monotonic()
    view = kernel.frozen_view()
    plan = await kernel.runtime.in_thread(caller.principal, _plan, kernel, view, request, caller, params)
    job.reads = {source for source, _at, _role in plan.sources}
    still_there(kernel, job.reads)
    asked = {
        "model": request.model, "tenant": plan.tenant, "system": params.system, "texts": plan.texts,
        "neighbours": plan.neighbours, "stored": params.stored,
    }  # fmt: skip
    who, report = caller.principal, job.report
    sizes = (await host.run("tokens", asked, who=who, background=background, on_progress=report)).result
    kernel.runtime.known[sizes["model"]] = {"fingerprint": sizes["fingerprint"]}
    ids = [text_id(source) for source, _at, role in plan.sources if role == CONTENT]
    wanted = params.neighbours if isinstance(params.neighbours, int) else list(params.neighbours)
    common = [sizes["fingerprint"], sizes["adapters"], sizes["dtype"], sizes["stored"], sizes["rope"], plan.tenant]
    binding = _key([*common, plan.namespace, sizes["prefix"], ids, wanted])
    versions = [[text_id(source), at, role] for source, at, role in plan.sources]
    key = _key([*common, plan.namespace, sizes["prefix"], versions, sizes["digest"]])
    async with kernel.runtime.one_at_a_time(binding):
        known = await kernel.runtime.in_thread(caller.principal, _derived, kernel, kernel.frozen_view(), plan, binding)
        if known is not None and known[2].get("key") == key:
            cube, row, _recipe = known
            return {
                "cube_id": text_id(cube.cube_id), "version": row.version, "offset": row.seq, "reused": True, "state": "done",
                "job_id": job.id,
            }  # fmt: skip
        if background and known is None:
            raise MemInvalid("the cache that was to be renewed takes no new version any more")
        queued = time.monotonic()
        answer = await host.run(DRIVER.captures["plaintext"], asked, who=who, background=background, on_progress=report)
        made = answer.result
        try:
            if made["digest"] != sizes["digest"] or made["fingerprint"] != sizes["fingerprint"]:
                raise MemAgain("the model changed while the cache was being made")
            recipe = {
                "method": "prefill", "key": key, "binding": binding, "model": made["fingerprint"], "model_name": made["model"],
                "adapters": made["adapters"], "dtype": made["dtype"], "stored": made["stored"], "rope": made["rope"],
                "layout": LAYOUT, "tenant": plan.tenant, "prefix": made["prefix"], "system": params.system,
                "start": made["start"], "tokens": made["tokens"], "tokens_digest": made["digest"], "leaves": plan.leaves,
                "neighbours": len(plan.neighbours), "prefill_seconds": made["seconds"], "stored_error": made["error"],
                "asked": [request.cube_id] if request.cube_id is not None else list(request.cube_ids), "beside": wanted,
            }  # fmt: skip
            name = request.name or (_name(kernel, known) if known is not None else None)
            product = Product(
                "activation", plan.namespace, name, plan.sources, recipe, None if known is None else known[0].cube_id,
                0 if known is None else known[0].version, [],
            )  # fmt: skip
            done = await _commit(kernel, write, job, product, answer, None if known is None else known[0])
        finally:
            close(answer)
    timings = {"queued": queued - began, "prefill": made["seconds"], "whole": time.monotonic() - began}
    return {**done, "job_id": job.id, "state": "done", "timings": timings}


def _name(kernel: Kernel, known: tuple[Cube, Version, dict[str, Any]]) -> str | None:
    cube, row, _recipe = known
    found = kernel.view.version(cube, row.version)
    return None if found is None else kernel.vault.open_private(*found).name


async def _commit(
    kernel: Kernel, write: Write, job: Job, product: Product, answer: Answer, target: Cube | None
) -> dict[str, Any]:
    """The payload that the host made, stored and recorded; its descriptor becomes the host tier's."""
    if len(answer.fds) != 1:
        raise MemIO(f"the driver host made {len(answer.fds)} payloads instead of one")
    fd = answer.fds[0]
    content = await asyncio.to_thread(payload, fd)
    job.report(0.95, "storing the cache")
    peer = Own(write.turn.peer.caller)
    own = Write(Turn(peer, 0, write.turn.syscall, Histogram()), write.request, write.args)
    own.product, own.mac = product, write.mac
    job.commit_begins()
    done = await kernel.commit_product(own, content, target)
    cube = kernel.view.cube(raw_id(done["cube_id"]))
    row = kernel.view.version(cube, done["version"]) if cube is not None else None
    if row is not None:
        # It is in the log: that it cannot be kept at hand (erased already, no descriptors left) is no failure of the job.
        with contextlib.suppress(MemError, OSError):
            kernel.hosttier.put(row[0], os.dup(fd), float(product.recipe.get("prefill_seconds", 0.0)))
    return done


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


async def _fuse(kernel: Kernel, write: Write, job: Job, params: FuseParams) -> dict[str, Any]:
    """One cache out of several."""
    from .attach import cache_part, caches_of, payload_bytes

    request, caller, host = write.request, write.turn.peer.caller, kernel.runtime.host
    view = kernel.frozen_view()
    access = Access(view, caller)
    if len(set(request.cube_ids)) != len(request.cube_ids):
        raise MemInvalid("cube_ids names a cube twice")
    cubes = [access.cube(text) for text in request.cube_ids]
    for cube in cubes:
        if cube.form != "activation":
            raise MemInvalid(f'cube {text_id(cube.cube_id)} is {cube.form}; strategy "kv" fuses KV caches')
        live(cube, kernel.clock.now())
        if "merge" not in lifecycle.TRANSITIONS[cube.state]:
            raise lifecycle.refusal(text_id(cube.cube_id), cube.state, "merge")
        if (newer := newer_source(access, cube, cube.version)) is not None:
            from .attach import stale

            raise stale(cube, newer)
    namespace = access.target(request.namespace or cubes[0].namespace)
    members = [member for cube in cubes for member in caches_of(kernel.vault, access, cube, cube.version)]
    job.reads = {cube.cube_id for cube, _at in members} | {cube.cube_id for cube in cubes}
    still_there(kernel, job.reads)
    recipes = [recipe_of(kernel.vault, view, cube, at) for cube, at in members]
    depth = 1 + max(int(recipe.get("depth", 0)) for recipe in recipes)
    if depth > limits.COMPOSED_DEPTH_MAX:
        raise MemTooLarge(f"the cache would be fused {depth} times over; the limit is {limits.COMPOSED_DEPTH_MAX}")
    held: list[int] = []
    size = payload_bytes(access, members)
    kernel.runtime.hold(caller.principal, size)
    try:
        parts = [await cache_part(kernel, access, cube, at, held, needed=True) for cube, at in members]
        owners = [view.owner(cube.namespace) for cube, _at in members]
        if [recipe.get("tenant") for recipe in recipes] != owners:
            raise MemModel("one of these caches was made for another owner", "Capture it again here.")
        if len({(r.get("model"), r.get("prefix"), r.get("dtype")) for r in recipes}) > 1:
            raise MemModel("these caches are of different models, prefixes or dtypes", "Capture them alike first.")
        first = recipes[0]
        tenant = view.owner(namespace) or caller.principal
        asked = {
            "model": first.get("model_name"), "tenant": tenant, "system": first.get("system"), "parts": parts,
            "recompute": params.recompute, "stored": first.get("stored"),
        }  # fmt: skip
        answer = await host.run(DRIVER.fuses[request.strategy], asked, held, who=caller.principal, on_progress=job.report)
    finally:
        kernel.runtime.release(caller.principal, size)
        for fd in held:
            os.close(fd)
    made = answer.result
    try:
        sources = [(cube.cube_id, cube.version, CONTENT) for cube in cubes]
        versions = [[text_id(source), at, role] for source, at, role in sources]
        recipe = {
            "method": "fuse", "strategy": request.strategy, "depth": depth,
            "key": _key([made["fingerprint"], made["digest"], tenant, versions]),
            "model": made["fingerprint"], "model_name": made["model"], "adapters": made["adapters"], "dtype": made["dtype"],
            "stored": made["stored"], "rope": made["rope"], "layout": LAYOUT, "tenant": tenant, "prefix": made["prefix"],
            "system": first.get("system"), "start": made["start"], "tokens": made["tokens"], "tokens_digest": made["digest"],
            "recompute": params.recompute, "prefill_seconds": sum(float(r.get("prefill_seconds", 0)) for r in recipes),
        }  # fmt: skip
        merged = [cube.cube_id for cube in cubes]
        product = Product("activation", namespace, params.name, sources, recipe, None, 0, merged)
        return await _commit(kernel, write, job, product, answer, None)
    finally:
        close(answer)


async def _move(kernel: Kernel, write: Write, job: Job) -> dict[str, Any]:
    """Bring a payload into a tier, or let it go to the disk, where it always is."""
    from .attach import cache_part

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
