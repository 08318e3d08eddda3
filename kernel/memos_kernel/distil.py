"""Adapters from text: what a distillation reads, what it depends on, and the job that makes it.

    sources and their texts → the key of what is wanted → an adapter of exactly that is there: answer with it
        → else train and examine in the host → store the payload → commit with every source at the version that was read

- The *key* names everything an adapter depends on: the model's fingerprint, dtype, tenant, namespace, parameters with the
  seed, and the sources with their versions. The *binding* is the key less the versions: a cube with the same binding gets a
  new version instead of a new cube beside it.
- What is asked of an adapter, and what of its sources it does not hold, is in its recipe, which is private like a content.
- Training keeps nothing on disk. A host that dies is started again, and the training with it: the same texts, parameters
  and number of threads make the same bytes.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from memos_drivers.table import TABLE as DRIVERS
from memos_syscalls import limits
from memos_syscalls import messages as m
from memos_syscalls.errors import MemAgain, MemInvalid, MemTooLarge

from .attach import stale
from .decide import live, live_cube, several
from .governance import Access, text_id
from .jobs import Job, still_there
from .products import (
    Known,
    close,
    commit,
    distinct,
    key_of,
    known_by,
    mergeable,
    newest,
    next_version,
    of_the_present,
    params_of,
    reused,
    submit,
)  # fmt: skip
from .sources import Leaf, cache_leaves, check_sources, newer_source, recipe_of, texts_of
from .state import CONTENT, Cube, View
from .writes import Write

if TYPE_CHECKING:
    from .dispatch import Kernel

DRIVER: Final = DRIVERS["parametric"]
LAYOUT: Final = 1
"""Of the payload; see docs/parametric.md."""


class Params(BaseModel):
    """`params` of a distillation. What is None is the driver's default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    rank: Annotated[int, Field(ge=1, le=limits.ADAPTER_RANK_MAX)] | None = None
    steps: Annotated[int, Field(ge=1, le=limits.DISTIL_STEPS_MAX)] | None = None
    min_facts: Annotated[int, Field(ge=1, le=limits.DISTIL_FACTS_MAX)] = 1
    max_kl: Annotated[float, Field(gt=0, le=100)] | None = None
    min_locality: Annotated[float, Field(ge=0, le=1)] | None = None
    min_efficacy: Annotated[float, Field(ge=0, le=1)] | None = None
    min_paraphrase: Annotated[float, Field(ge=0, le=1)] | None = None
    writer: m.ModelName | None = None
    on_change: Literal["keep", "rebuild", "shred"] | None = None
    """None: as it is in the adapter that is there, keep in a new one."""


class Fusion(NamedTuple):
    """A distillation that makes one adapter of adapters and texts: the adapters among them become `merged`."""

    name: str | None


class Plan(NamedTuple):
    """What a distillation will read."""

    namespace: str
    tenant: str
    texts: list[dict[str, Any]]
    """Content and event time of each."""
    sources: list[tuple[bytes, int, int]]
    """Lineage: leaves in order, then compositions."""
    leaves: int


def distil(kernel: Kernel, write: Write) -> None:
    """mem_migrate(to="parametric")."""
    params = params_of(Params, write.request.params)
    submit(kernel, write, "distil", lambda job: _distil(kernel, write, job, params), wait=write.request.wait)


async def distil_again(kernel: Kernel, write: Write, job: Job, target: bytes) -> dict[str, Any]:
    """The work of a job of the kernel's own: the next version of that cube, whatever its binding."""
    return await _distil(kernel, write, job, params_of(Params, write.request.params), target)


def fuse_anew(kernel: Kernel, write: Write) -> None:
    """mem_fuse(strategy="distil"): across forms, by training on everybody's texts."""
    given = dict(write.request.params or {})
    name = given.pop("name", None)
    if name is not None and not (isinstance(name, str) and 0 < len(name) <= limits.NAME_CHARS_MAX):
        raise MemInvalid(f"name is a text of at most {limits.NAME_CHARS_MAX} characters")
    params = params_of(Params, given)
    several(write.request.cube_ids)
    submit(kernel, write, "fuse", lambda job: _distil(kernel, write, job, params, fusion=Fusion(name)), wait=True)


def merged_of(kernel: Kernel, view: View, named: list[str], caller: Any) -> list[tuple[Cube, int]]:
    """The adapters among these cubes, which a fusion takes the place of."""
    access = Access(view, caller)
    adapters = [cube for text in named if (cube := access.cube(text)).form == "parametric"]
    for cube in adapters:
        mergeable(kernel, access, cube)
    if not adapters:
        raise MemInvalid("no adapter is among these cubes", 'Distil texts with mem_migrate(to="parametric").')
    return [(cube, cube.version) for cube in adapters]


def leaves_of(kernel: Kernel, access: Access, cube: Cube) -> tuple[list[Leaf], list[tuple[bytes, int]]]:
    """The texts that a cube of any form was made from, as they are now, and the compositions on the way to them."""
    if cube.form == "plaintext":
        found = texts_of(kernel.vault, access, cube, cube.version, current=True)
        return found.leaves, found.through
    check_sources(access, cube, cube.version)
    if (newer := newer_source(access, cube, cube.version)) is not None:
        raise stale(cube, newer)
    leaves = cache_leaves(kernel.vault, access, cube, cube.version)
    if not leaves:
        raise MemInvalid(f"cube {text_id(cube.cube_id)} has no texts that it was made from", "Name texts to distil.")
    return leaves, []


def plan_of(kernel: Kernel, view: View, named: list[str], namespace: str | None, caller: Any) -> Plan:
    """Everything a distillation reads, opened. For a thread."""
    access = Access(view, caller)
    now = kernel.clock.now()
    distinct(named)
    leaves: dict[bytes, Leaf] = {}
    through: dict[bytes, int] = {}
    size = 0
    for text in named:
        cube = live_cube(access, text, now)
        found, passed = leaves_of(kernel, access, cube)
        for leaf in found:
            live(leaf.cube, now)
            # A memory that is reached in two ways is one memory.
            if leaf.cube.cube_id not in leaves:
                leaves[leaf.cube.cube_id] = leaf
                size += len(leaf.text.encode())
        through.update(passed)
        if size > limits.DISTIL_BYTES_MAX:
            raise MemTooLarge(
                f"the memories have more than {limits.DISTIL_BYTES_MAX} bytes of text", "Make several adapters of them."
            )
    target = access.target(namespace or access.cube(named[0]).namespace)
    sources = [(leaf.cube.cube_id, leaf.version, CONTENT) for leaf in leaves.values()]
    sources += [(cube_id, at, CONTENT) for cube_id, at in through.items()]
    tenant = view.owner(target) or caller.principal
    texts = [{"content": leaf.text, "when": leaf.when} for leaf in leaves.values()]
    return Plan(target, tenant, texts, sources, len(leaves))


async def _distil(
    kernel: Kernel, write: Write, job: Job, params: Params, target: bytes | None = None, fusion: Fusion | None = None
) -> dict[str, Any]:
    """Train on the sources' text and keep the adapter."""
    return await of_the_present(job, lambda: _distil_once(kernel, write, job, params, target, fusion))


async def _distil_once(
    kernel: Kernel, write: Write, job: Job, params: Params, target: bytes | None, fusion: Fusion | None
) -> dict[str, Any]:
    request, caller, host = write.request, write.turn.peer.caller, kernel.runtime.host
    began = time.monotonic()
    named = [request.cube_id] if getattr(request, "cube_id", None) is not None else list(request.cube_ids)
    view = kernel.frozen_view()
    plan = await kernel.runtime.in_thread(caller.principal, plan_of, kernel, view, named, request.namespace, caller)
    job.reads = {source for source, _at, _role in plan.sources} | ({target} if target is not None else set())
    still_there(kernel, job.reads)
    who, report = caller.principal, job.report
    model = getattr(request, "model", None)
    merged: list[tuple[Cube, int]] = []
    if fusion is not None:
        merged = merged_of(kernel, view, named, caller)
        job.reads |= {cube.cube_id for cube, _at in merged}
        model = recipe_of(kernel.vault, view, *merged[0]).get("model_name")
    opened = (await host.run("open", {"model": model}, who=who, on_progress=report)).result
    kernel.runtime.known[opened["name"]] = {"fingerprint": opened["fingerprint"]}
    wanted = params.model_dump(exclude={"on_change"}, exclude_none=True)
    versions = [[text_id(source), at, role] for source, at, role in plan.sources]
    common = [opened["fingerprint"], opened["dtype"], plan.tenant, plan.namespace, sorted(wanted.items())]
    binding = key_of("memos.lora", LAYOUT, [*common, [name for name, _at, _role in versions]])
    key = key_of("memos.lora", LAYOUT, [*common, versions])
    async with kernel.runtime.one_at_a_time(binding):
        known: Known | None = None
        if fusion is None:
            known = await kernel.runtime.in_thread(caller.principal, _known, kernel, plan, binding, target)
        if known is not None and known.recipe.get("key") == key and params.on_change in (None, known.recipe.get("on_change")):
            told = {"scores": known.recipe.get("scores", {}), "dropped": known.recipe.get("dropped", [])}
            return {**reused(known, job), **told}
        queued = time.monotonic()
        asked = {"model": opened["name"], "tenant": plan.tenant, "texts": plan.texts, "params": wanted}
        # Minutes of work, beside which others have their turns.
        answer = await host.run(DRIVER.captures["plaintext"], asked, who=who, background=True, on_progress=report)
        made = answer.result
        try:
            if made["fingerprint"] != opened["fingerprint"]:
                raise MemAgain("the model changed while the adapter was being made")
            recipe = {
                "method": "distil", "key": key, "binding": binding, "model": made["fingerprint"], "model_name": made["model"],
                "dtype": made["dtype"], "layout": LAYOUT, "tenant": plan.tenant, "params": wanted, "digest": made["digest"],
                "rank": made["rank"], "alpha": made["alpha"], "targets": made["targets"], "leaves": plan.leaves,
                "facts": made["facts"], "subjects": made["subjects"], "probes": made["probes"], "scores": made["scores"],
                "dropped": made["dropped"], "conflicts": made["conflicts"], "left_out": made["left_out"],
                "written": made["written"], "train_seconds": made["seconds"], "steps": made["steps"], "asked": named,
                "on_change": params.on_change or (known.recipe.get("on_change") if known is not None else None) or "keep",
            }  # fmt: skip
            if fusion is None:
                known = await kernel.runtime.in_thread(caller.principal, _known, kernel, plan, binding, target)
            name = getattr(request, "name", None) if fusion is None else fusion.name
            product = next_version(DRIVER.form, plan.namespace, name, plan.sources, recipe, known)
            product = product._replace(merged=[(cube.cube_id, at) for cube, at in merged])
            done = await commit(kernel, write, job, product, answer, None if known is None else known.cube)
        finally:
            close(answer)
    timings = {"queued": queued - began, "train": made["seconds"], "whole": time.monotonic() - began}
    return {
        **done, "job_id": job.id, "state": "done", "timings": timings, "scores": made["scores"], "dropped": made["dropped"],
    }  # fmt: skip


def _known(kernel: Kernel, plan: Plan, binding: str, target: bytes | None) -> Known | None:
    view = kernel.frozen_view()
    if target is None:
        return known_by(kernel, view, DRIVER.form, plan.namespace, plan.sources[0][0], binding)
    cube = view.cube(target)
    found = None if cube is None else newest(kernel, view, cube)
    if found is None:
        raise MemInvalid(f"cube {text_id(target)} takes no adapter any more")
    return found
