"""mem_alloc(form="parametric"): an adapter that was trained elsewhere becomes a cube.

    bytes → a sealed copy, its layout checked → checked against the model in the host, and put as this kernel keeps adapters
        → stored, and recorded with the parents that the call names, at the versions that they have then

Nobody knows what it was taught, unless its payload says so (`memos.facts`): without subjects an adapter always acts.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from memos_drivers import tensors
from memos_syscalls import limits
from memos_syscalls.errors import MemError, MemInvalid, MemTooLarge

from . import crypto
from .decide import live_cube
from .decide_migrate import Product
from .distil import LAYOUT
from .fds import sealed_pieces
from .governance import Access
from .jobs import Job, still_there
from .mapping import LAYOUT_BYTES_MAX
from .products import close, commit, key_of, submit
from .writes import Write

if TYPE_CHECKING:
    from .dispatch import Kernel


def import_adapter(kernel: Kernel, write: Write) -> None:
    if not write.contents:
        raise MemInvalid("an adapter is its tensors: there is no content", "Give content as bytes, or fd.")
    size = len(write.contents[0])
    if size > limits.ADAPTER_BYTES_MAX:
        raise MemTooLarge(f"an adapter of {size} bytes is over the limit of {limits.ADAPTER_BYTES_MAX}")

    def go() -> None:
        submit(kernel, write, "import", lambda job: _import(kernel, write, job), wait=True)

    if not crypto.is_chunked(size):
        go()
        return

    async def hash_first() -> None:
        # Of so much content it takes a while, and everybody waits for the loop.
        await asyncio.to_thread(write.args_hash)
        try:
            go()
        except MemError as error:
            write.turn.fail(error)

    kernel.large_writes.submit(write.turn, hash_first)


async def _import(kernel: Kernel, write: Write, job: Job) -> dict[str, Any]:
    request, caller, content = write.request, write.turn.peer.caller, memoryview(write.contents[0])
    access = Access(kernel.frozen_view(), caller)
    namespace = access.target(request.namespace)
    parents = [live_cube(access, text, kernel.clock.now()) for text in request.parents or []]
    job.reads = {parent.cube_id for parent in parents}
    still_there(kernel, job.reads)
    # Read before anybody else does: a layout that lies is the caller's error, and no damage.
    tensors.parse(content, len(content), header_bytes_max=LAYOUT_BYTES_MAX)
    with kernel.runtime.holding(caller.principal, len(content)) as held:
        held.append(await asyncio.to_thread(sealed_pieces, [content]))
        answer = await kernel.runtime.host.run(
            "check", {"model": request.model}, held, who=caller.principal, on_progress=job.report
        )
    made = answer.result
    try:
        tenant = access.view.owner(namespace) or caller.principal
        kernel.runtime.known[made["model"]] = {"fingerprint": made["fingerprint"]}
        recipe = {
            "method": "import", "key": key_of("memos.lora", LAYOUT, [made["fingerprint"], made["digest"], tenant, namespace]),
            "model": made["fingerprint"], "model_name": made["model"], "dtype": made["dtype"], "layout": LAYOUT,
            "tenant": tenant, "digest": made["digest"], "rank": made["rank"], "alpha": made["alpha"],
            "targets": made["targets"], "leaves": 0, "facts": made["facts"], "subjects": made["subjects"],
            "probes": made["probes"],
        }  # fmt: skip
        product = Product("parametric", namespace, request.name, [], recipe, None, 0, [])
        return await commit(kernel, write, job, product, answer, None)
    finally:
        close(answer)
