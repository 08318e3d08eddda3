"""mem_migrate(to="plaintext") of an adapter: what it knows beyond its model, asked out of it and written down.

    its probes, put to the model with it and without it → what it says again and again, and the model alone does not
        → a cube for each statement, in the model's own words, all in one record

Each has the adapter for its source, so it is erased with it and with what that was made from. How sure the adapter is of a
statement stands in its metadata as `confidence`, in percent: the share of the fact's probes whose answers agree, times the mean
probability of the words that were written down.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from memos_drivers.table import TABLE as DRIVERS
from memos_syscalls.errors import MemInvalid, MemLowQuality

from .attach import Wanted, adapter_part, payload_bytes
from .decide import live_cube
from .decide_migrate import Statement, Statements
from .governance import Access, text_id
from .jobs import Job, still_there
from .products import close, params_of, record, submit, usable
from .sources import made_from, recipe_of
from .state import CONTENT
from .writes import Write

if TYPE_CHECKING:
    from .dispatch import Kernel

DRIVER: Final = DRIVERS["plaintext"]


class Params(BaseModel):
    """`params` of writing down what an adapter knows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_confidence: Annotated[float, Field(ge=0, le=1)] = 0.5


def verbalise(kernel: Kernel, write: Write) -> None:
    params = params_of(Params, write.request.params)
    if write.request.cube_id is None:
        raise MemInvalid("one adapter at a time is asked what it knows", "Give cube_id.")
    submit(kernel, write, "verbalise", lambda job: _verbalise(kernel, write, job, params), wait=write.request.wait)


async def _verbalise(kernel: Kernel, write: Write, job: Job, params: Params) -> dict[str, Any]:
    request, caller = write.request, write.turn.peer.caller
    began = time.monotonic()
    access = Access(kernel.frozen_view(), caller)
    cube = live_cube(access, request.cube_id, kernel.clock.now())
    if cube.form not in DRIVER.captures:
        raise MemInvalid(
            f"cube {request.cube_id} is {cube.form}: only an adapter is asked what it knows", "Read its text with mem_read."
        )
    usable(access, cube)
    job.reads = {cube.cube_id, *(source.cube_id for source, _role in made_from(access, cube, cube.version))}
    still_there(kernel, job.reads)
    recipe = recipe_of(kernel.vault, access.view, cube, cube.version)
    if not recipe.get("probes"):
        raise MemInvalid(
            f"nobody knows what adapter {request.cube_id} was taught: it has no probes", "Distil one from texts instead."
        )
    if request.model is not None and request.model != recipe.get("model_name"):
        raise MemInvalid(f"the adapter is for model {recipe.get('model_name')}", "Leave model out.")
    namespace = access.target(request.namespace or cube.namespace)
    size = payload_bytes(access, [(cube, cube.version)])
    with kernel.runtime.holding(caller.principal, size) as held:
        wanted = Wanted(cube, cube.version, None, [], None, 1.0)
        part = await adapter_part(kernel, access, wanted, held, missing=True)
        asked = {"model": recipe.get("model_name"), "parts": [part]}
        op = DRIVER.captures[cube.form]
        answer = await kernel.runtime.host.run(op, asked, held, who=caller.principal, on_progress=job.report)
    close(answer)
    made = answer.result
    sure = [said for said in made["said"] if said["confidence"] >= 100 * params.min_confidence]
    if not sure:
        best = max((said["confidence"] for said in made["said"]), default=0)
        raise MemLowQuality(
            f"adapter {request.cube_id} says nothing that its model does not say too with confidence of "
            f"{params.min_confidence:g}; the best is {best / 100:g}",
            "Pass a lower min_confidence, or none of it.",
        )
    method = {
        "method": "verbalise", "model": made["fingerprint"], "model_name": made["model"], "adapter": text_id(cube.cube_id),
        "digest": recipe.get("digest"), "min_confidence": params.min_confidence,
    }  # fmt: skip
    items = [
        Statement({"confidence": said["confidence"]}, {**method, "probes": said["probes"], "agree": said["agree"]})
        for said in sure
    ]
    product = Statements(namespace, request.name, [(cube.cube_id, cube.version, CONTENT)], items)
    done = await record(kernel, write, job, product, [said["text"].encode() for said in sure])
    return {**done, "job_id": job.id, "state": "done", "timings": {"whole": time.monotonic() - began}}
