"""mem_fuse of adapters: several into one, by one of peft's merge methods, examined before it is kept.

    adapters, all of one model → merged in the host, on copies → asked the probes of every parent
        → stored, and committed with the parents at the versions that were read; they become `merged`

- What a parent was taught is told by its payload; the fused adapter's payload tells all of it. For each parent, the scores
  say how many of its probes it answers rightly itself, and how many of those the fused one still does. Fewer than
  `min_share` of them, for one parent, and nothing is committed (`ELOWQUALITY`, with the scores).
- It acts on the subjects of all its parents; always, if a parent always acts.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from memos_drivers.table import TABLE as DRIVERS
from memos_syscalls import limits
from memos_syscalls.errors import MemInvalid, MemModel

from .attach import Wanted, adapter_part, payload_bytes
from .decide import several
from .decide_migrate import Product
from .distil import LAYOUT
from .governance import Access, text_id
from .jobs import Job, still_there
from .products import close, commit, depth_of, key_of, params_of, parents_of, submit
from .sources import made_from, recipe_of
from .state import CONTENT
from .writes import Write

if TYPE_CHECKING:
    from .dispatch import Kernel

DRIVER: Final = DRIVERS["parametric"]
Weight = Annotated[float, Field(ge=-limits.ADAPTER_WEIGHT_MAX, le=limits.ADAPTER_WEIGHT_MAX, allow_inf_nan=False)]


class FuseParams(BaseModel):
    """`params` of a fusion of adapters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=limits.NAME_CHARS_MAX)] | None = None
    weights: Annotated[list[Weight], Field(min_length=1, max_length=limits.FUSE_SOURCES_MAX)] | None = None
    density: Annotated[float, Field(gt=0, le=1)] = 0.5
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    rank: Annotated[int, Field(ge=1, le=limits.ADAPTER_RANK_MAX)] | None = None
    min_share: Annotated[float, Field(ge=0, le=1)] = 0.5


def fuse_adapters(kernel: Kernel, write: Write) -> None:
    params, count = params_of(FuseParams, write.request.params), len(write.request.cube_ids)
    several(write.request.cube_ids)
    if params.weights is not None and len(params.weights) != count:
        raise MemInvalid(f"{count} cubes are named, and {len(params.weights)} weights", "Give one weight for each cube.")
    if params.weights is not None and not any(params.weights):
        raise MemInvalid("every weight is 0: nothing would be left", "Leave weights out for 1 each.")
    submit(kernel, write, "fuse", lambda job: _fuse(kernel, write, job, params), wait=True)


async def _fuse(kernel: Kernel, write: Write, job: Job, params: FuseParams) -> dict[str, Any]:
    request, caller = write.request, write.turn.peer.caller
    view = kernel.frozen_view()
    access = Access(view, caller)
    cubes = parents_of(
        kernel, access, request.cube_ids, DRIVER.form,
        lambda cube: MemInvalid(
            f"cube {text_id(cube.cube_id)} is {cube.form}; strategy {request.strategy} merges adapters",
            'Adapters and texts are fused with strategy "distil".',
        ),
    )  # fmt: skip
    namespace = access.target(request.namespace or cubes[0].namespace)
    job.reads = {cube.cube_id for cube in cubes}
    job.reads |= {source.cube_id for cube in cubes for source, _role in made_from(access, cube, cube.version)}
    still_there(kernel, job.reads)
    recipes = [recipe_of(kernel.vault, view, cube, cube.version) for cube in cubes]
    depth = depth_of(recipes, "adapter", 'Train one anew on all their texts: strategy "distil".')
    if len({recipe.get("model") for recipe in recipes}) > 1:
        raise MemModel("these adapters are for different models", 'Train one anew on all their texts: strategy "distil".')
    weights = params.weights or [1.0] * len(cubes)
    began = time.monotonic()
    size = payload_bytes(access, [(cube, cube.version) for cube in cubes])
    with kernel.runtime.holding(caller.principal, size) as held:
        parts = [
            await adapter_part(kernel, access, Wanted(cube, cube.version, None, [], None, weight), held, missing=True)
            for cube, weight in zip(cubes, weights, strict=True)
        ]
        asked = {
            "model": recipes[0].get("model_name"), "parts": parts, "strategy": request.strategy, "density": params.density,
            "seed": params.seed, "rank": params.rank, "min_share": params.min_share,
        }  # fmt: skip
        answer = await kernel.runtime.host.run(
            DRIVER.fuses[request.strategy], asked, held, who=caller.principal, on_progress=job.report
        )
    made = answer.result
    try:
        sources = [(cube.cube_id, cube.version, CONTENT) for cube in cubes]
        versions = [[text_id(source), at, role] for source, at, role in sources]
        tenant = view.owner(namespace) or caller.principal
        settings = [request.strategy, weights, params.density, params.seed, params.rank]
        known = [recipe.get("subjects") or [] for recipe in recipes]
        recipe = {
            "method": "fuse", "strategy": request.strategy, "depth": depth,
            "key": key_of("memos.lora", LAYOUT, [made["fingerprint"], tenant, namespace, settings, versions]),
            "model": made["fingerprint"], "model_name": made["model"], "dtype": made["dtype"], "layout": LAYOUT,
            "tenant": tenant, "digest": made["digest"], "rank": made["rank"], "alpha": made["alpha"],
            "targets": made["targets"], "weights": weights, "density": params.density, "seed": params.seed,
            "asked_rank": params.rank, "min_share": params.min_share, "facts": made["facts"], "probes": made["probes"],
            "subjects": sorted({one for some in known for one in some}) if all(known) else [],
            "scores": made["scores"], "train_seconds": time.monotonic() - began,
        }  # fmt: skip
        merged = [(cube.cube_id, cube.version) for cube in cubes]
        product = Product("parametric", namespace, params.name, sources, recipe, None, 0, merged)
        return await commit(kernel, write, job, product, answer, None)
    finally:
        close(answer)
