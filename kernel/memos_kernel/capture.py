"""KV caches from text: what a capture reads, what it depends on, and the job that makes it.

    sources and their texts → token counts and digests from the host → the key of what is wanted
        → a cache of exactly that is there: answer with it
        → else capture in the host → store the payload → commit with every source at the version that was read

- A capture may run with adapters acting. Then the cache is theirs too: they are among its sources, and it is continued from
  only where exactly the same ones act, with the same weights.
- The *key* names everything a cache depends on: model weights and tokenizer (their fingerprint), adapters' content, dtype,
  stored dtype, layout, RoPE parameters, tenant, namespace, sources with versions, the prefix before the memory, the token
  ids, neighbours with versions. The *binding* is the key less what changes when a source gets a new version: a cube with
  the same binding gets a new version instead of a new cube beside it.
- Two jobs with one binding run one after the other, so the second finds what the first made: one work, two answers.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from memos_drivers.table import TABLE as DRIVERS
from memos_syscalls import limits
from memos_syscalls import messages as m
from memos_syscalls.errors import MemAgain, MemInvalid, MemTooLarge

from . import lifecycle
from .attach import Wanted, adapter_part, capped, payload_bytes
from .decide import live, live_cube
from .governance import Access, text_id
from .jobs import Job, still_there
from .products import close, commit, distinct, key_of, known_by, next_version, of_the_present, params_of, reused, submit, usable
from .sources import Texts, made_from, texts_of
from .state import CONTENT, CONTEXT, Cube, View
from .writes import Write

if TYPE_CHECKING:
    from .dispatch import Kernel

DRIVER: Final = DRIVERS["activation"]
LAYOUT: Final = 1
"""Of the payload; see docs/activation.md."""


class Params(BaseModel):
    """`params` of a migration to a KV cache."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    system: Annotated[str, Field(max_length=limits.PROMPT_CHARS_MAX)] | None = None
    stored: Literal["float32", "float16", "bfloat16", "int8"] | None = None
    neighbours: (
        Annotated[int, Field(ge=0, le=limits.NEIGHBOURS_MAX)]
        | Annotated[list[m.CubeId], Field(max_length=limits.NEIGHBOURS_MAX)]
    ) = 0
    adapters: Annotated[list[m.CubeId | m.Attached], Field(max_length=limits.ADAPTERS_PER_CALL_MAX)] = []


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
    adapters: list[Wanted]
    """That act meanwhile."""


def capture(kernel: Kernel, write: Write) -> None:
    """mem_migrate(to="activation")."""
    params = params_of(Params, write.request.params)
    submit(kernel, write, "capture", lambda job: _capture(kernel, write, job, params), wait=write.request.wait)


# -- sources -------------------------------------------------------------------------------------------------------------


def _plan(kernel: Kernel, view: View, request: Any, caller: Any, params: Params) -> Plan:
    """Everything a capture reads, opened. For a thread."""
    access = Access(view, caller)
    now = kernel.clock.now()
    named = [request.cube_id] if request.cube_id is not None else list(request.cube_ids)
    distinct(named)
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
    adapters = _adapters(access, params, now)
    sources += [(one.cube.cube_id, one.version, CONTENT) for one in adapters]
    texts = [leaf.text for leaf in leaves]
    return Plan(namespace, tenant, texts, sources, len(leaves), [text for _cube, text in neighbours], adapters)


def _adapters(access: Access, params: Params, now: int) -> list[Wanted]:
    """The adapters of a capture, by id; with weights as a call would have them."""
    asked: dict[str, float] = {}
    for one in params.adapters:
        name, weight = (one, None) if isinstance(one, str) else (one.cube_id, one.weight)
        if name in asked:
            raise MemInvalid(f"adapters names cube {name} twice")
        if not isinstance(one, str) and one.version is not None:
            raise MemInvalid("a capture is made under the newest version of an adapter", "Leave version out.")
        asked[name] = 1.0 if weight is None else weight
    found: list[Wanted] = []
    for name, weight in zip(sorted(asked), capped([asked[name] for name in sorted(asked)]), strict=True):
        cube = live_cube(access, name, now)
        if cube.form != "parametric":
            raise MemInvalid(f"cube {name} is {cube.form}, and no adapter")
        usable(access, cube)
        found.append(Wanted(cube, cube.version, None, [], None, weight))
    return found


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
    return await of_the_present(job, lambda: _capture_once(kernel, write, job, params, background))


async def _capture_once(
    kernel: Kernel, write: Write, job: Job, params: Params, background: bool
) -> dict[str, Any]:
    request, caller = write.request, write.turn.peer.caller
    view, who = kernel.frozen_view(), caller.principal
    access = Access(view, caller)
    plan = await kernel.runtime.in_thread(who, _plan, kernel, view, request, caller, params)
    job.reads = {source for source, _at, _role in plan.sources}
    for one in plan.adapters:
        job.reads |= {source.cube_id for source, _role in made_from(access, one.cube, one.version)}
    still_there(kernel, job.reads)
    size = payload_bytes(access, [(one.cube, one.version) for one in plan.adapters])
    with kernel.runtime.holding(who, size) as held:
        parts = [await adapter_part(kernel, access, one, held, missing=True) for one in plan.adapters]
        return await _capture_under(kernel, write, job, params, background, plan, parts, held)


async def _capture_under(
    kernel: Kernel, write: Write, job: Job, params: Params, background: bool, plan: Plan, parts: list[dict[str, Any]],
    held: list[int],
) -> dict[str, Any]:  # fmt: skip
    """With the adapters at hand: what the host needs of them, and their descriptors."""
    request, caller, host = write.request, write.turn.peer.caller, kernel.runtime.host
    began = time.monotonic()
    who, report = caller.principal, job.report
    asked = {
        "model": request.model, "tenant": plan.tenant, "system": params.system, "texts": plan.texts,
        "neighbours": plan.neighbours, "stored": params.stored, "parts": parts,
    }  # fmt: skip
    sizes = (await host.run("tokens", asked, held, who=who, background=background, on_progress=report)).result
    kernel.runtime.known[sizes["model"]] = {"fingerprint": sizes["fingerprint"]}
    ids = [text_id(source) for source, _at, role in plan.sources if role == CONTENT]
    wanted = params.neighbours if isinstance(params.neighbours, int) else list(params.neighbours)
    here = [sizes["dtype"], sizes["stored"], sizes["rope"], plan.tenant, plan.namespace, sizes["prefix"]]
    # An adapter that gets a new version makes a new version of the cache, as any source does.
    under = [[text_id(one.cube.cube_id), repr(one.weight)] for one in plan.adapters]
    binding = key_of("memos.kv", LAYOUT, [sizes["fingerprint"], under, *here, ids, wanted])
    versions = [[text_id(source), at, role] for source, at, role in plan.sources]
    key = key_of("memos.kv", LAYOUT, [sizes["fingerprint"], sizes["adapters"], *here, versions, sizes["digest"]])
    async with kernel.runtime.one_at_a_time(binding):
        known = await kernel.runtime.in_thread(
            who, known_by, kernel, kernel.frozen_view(), DRIVER.form, plan.namespace, plan.sources[0][0], binding
        )
        if known is not None and known.recipe.get("key") == key:
            return reused(known, job)
        if background and known is None:
            raise MemInvalid("the cache that was to be renewed takes no new version any more")
        queued = time.monotonic()
        op = DRIVER.captures["plaintext"]
        answer = await host.run(op, asked, held, who=who, background=background, on_progress=report)
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
                "under": [{"cube_id": text_id(one.cube.cube_id), "weight": one.weight} for one in plan.adapters],
            }  # fmt: skip
            product = next_version(DRIVER.form, plan.namespace, request.name, plan.sources, recipe, known)
            done = await commit(kernel, write, job, product, answer, None if known is None else known.cube)
        finally:
            close(answer)
    timings = {"queued": queued - began, "prefill": made["seconds"], "whole": time.monotonic() - began}
    return {**done, "job_id": job.id, "state": "done", "timings": timings}
