"""mem_fuse(strategy="kv"): several KV caches into one, in their order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from memos_drivers.table import TABLE as DRIVERS
from memos_syscalls import limits
from memos_syscalls.errors import MemInvalid, MemModel

from .attach import cache_part, caches_of, payload_bytes
from .capture import LAYOUT
from .decide import several
from .decide_migrate import Product
from .governance import Access, text_id
from .jobs import Job, still_there
from .products import close, commit, depth_of, key_of, params_of, parents_of, submit
from .sources import recipe_of
from .state import CONTENT
from .writes import Write

if TYPE_CHECKING:
    from .dispatch import Kernel

DRIVER: Final = DRIVERS["activation"]


class FuseParams(BaseModel):
    """`params` of a fusion of KV caches."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=limits.NAME_CHARS_MAX)] | None = None
    recompute: Annotated[float, Field(ge=0, le=1)] = limits.RECOMPUTE_PERCENT_DEFAULT / 100


def fuse_caches(kernel: Kernel, write: Write) -> None:
    params = params_of(FuseParams, write.request.params)
    several(write.request.cube_ids)
    submit(kernel, write, "fuse", lambda job: _fuse(kernel, write, job, params), wait=True)


async def _fuse(kernel: Kernel, write: Write, job: Job, params: FuseParams) -> dict[str, Any]:
    """One cache out of several."""
    request, caller, host = write.request, write.turn.peer.caller, kernel.runtime.host
    view = kernel.frozen_view()
    access = Access(view, caller)
    cubes = parents_of(
        kernel, access, request.cube_ids, DRIVER.form,
        lambda cube: MemInvalid(f'cube {text_id(cube.cube_id)} is {cube.form}; strategy "kv" fuses KV caches'),
    )  # fmt: skip
    namespace = access.target(request.namespace or cubes[0].namespace)
    members = [member for cube in cubes for member in caches_of(kernel.vault, access, cube, cube.version)]
    job.reads = {cube.cube_id for cube, _at in members} | {cube.cube_id for cube in cubes}
    still_there(kernel, job.reads)
    recipes = [recipe_of(kernel.vault, view, cube, at) for cube, at in members]
    depth = depth_of(recipes, "cache")
    size = payload_bytes(access, members)
    with kernel.runtime.holding(caller.principal, size) as held:
        parts = [await cache_part(kernel, access, cube, at, held, needed=True) for cube, at in members]
        owners = [view.owner(cube.namespace) for cube, _at in members]
        if [recipe.get("tenant") for recipe in recipes] != owners:
            raise MemModel("one of these caches was made for another owner", "Capture it again here.")
        if len({(r.get("model"), r.get("prefix"), r.get("dtype")) for r in recipes}) > 1:
            raise MemModel("these caches are of different models, prefixes or dtypes", "Capture them alike first.")
        if any(recipe.get("adapters") for recipe in recipes):
            raise MemModel(
                "a cache that was captured under adapters cannot be fused", "Capture the texts together under these adapters."
            )
        first = recipes[0]
        tenant = view.owner(namespace) or caller.principal
        asked = {
            "model": first.get("model_name"), "tenant": tenant, "system": first.get("system"), "parts": parts,
            "recompute": params.recompute, "stored": first.get("stored"),
        }  # fmt: skip
        answer = await host.run(DRIVER.fuses[request.strategy], asked, held, who=caller.principal, on_progress=job.report)
    made = answer.result
    try:
        sources = [(cube.cube_id, cube.version, CONTENT) for cube in cubes]
        versions = [[text_id(source), at, role] for source, at, role in sources]
        recipe = {
            "method": "fuse", "strategy": request.strategy, "depth": depth,
            "key": key_of("memos.kv", LAYOUT, [made["fingerprint"], made["digest"], tenant, versions]),
            "model": made["fingerprint"], "model_name": made["model"], "adapters": made["adapters"], "dtype": made["dtype"],
            "stored": made["stored"], "rope": made["rope"], "layout": LAYOUT, "tenant": tenant, "prefix": made["prefix"],
            "system": first.get("system"), "start": made["start"], "tokens": made["tokens"], "tokens_digest": made["digest"],
            "recompute": params.recompute, "prefill_seconds": sum(float(r.get("prefill_seconds", 0)) for r in recipes),
        }  # fmt: skip
        merged = [(cube.cube_id, cube.version) for cube in cubes]
        product = Product("activation", namespace, params.name, sources, recipe, None, 0, merged)
        return await commit(kernel, write, job, product, answer, None)
    finally:
        close(answer)
