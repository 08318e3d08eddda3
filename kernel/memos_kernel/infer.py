"""mem_infer: the model answers with cubes attached.

Nothing is recorded: a model call is a use, not a mutation. It runs as a job, so that it ends when what it reads is erased;
its text stays nowhere. The first token's time is measured here, from the call's arrival.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from memos_syscalls import limits
from memos_syscalls.errors import MemTooLarge

from .attach import Wanted, adapter_part, cache_part, payload_bytes, wanted
from .events import Slot
from .governance import Access, text_id
from .jobs import Job, still_there
from .state import Cube
from .turn import Turn

if TYPE_CHECKING:
    from .dispatch import Kernel


def mem_infer(kernel: Kernel, turn: Turn, request: Any) -> None:
    _ = kernel.runtime.host  # refused now rather than by the job
    seconds = (request.deadline_ms or turn.syscall.deadline_ms) / 1000
    caller = turn.peer.caller
    job = kernel.runtime.jobs.launch("infer", caller, lambda job: _infer(kernel, turn, request, job), seconds, kept=False)
    kernel.spawn(kernel.runtime.jobs.follow(job, turn, lambda job: dict(job.result or {})), turn)


async def _infer(kernel: Kernel, turn: Turn, request: Any, job: Job) -> dict[str, Any]:
    host, caller = kernel.runtime.host, turn.peer.caller
    access = Access(kernel.frozen_view(), caller)
    found: list[Wanted] = []
    if request.cubes:
        said = "\n".join(message["content"] for message in _messages(request))
        found = await kernel.runtime.in_thread(caller.principal, wanted, kernel, access, request, said)
    job.reads, slots = reads_of(access, [(one.cube, one.version) for one in found])
    still_there(kernel, job.reads, slots)
    owner = next((access.view.owner(one.cube.namespace) for one in found), None)
    first_ns: list[int] = []

    def on_item(item: dict[str, Any]) -> None:
        if not first_ns:
            first_ns.append(time.perf_counter_ns())
        if request.stream and item.get("text"):
            turn.item({"text": item["text"]})

    if (caches := sum(len(one.caches) for one in found)) > limits.ATTACHED_CUBES_MAX:
        raise MemTooLarge(f"the cubes stand for {caches} caches; the limit is {limits.ATTACHED_CUBES_MAX}", "Fuse some.")
    acting = [(one.cube, one.version) for one in found if one.weight]
    size = payload_bytes(access, [*acting, *(pair for one in found for pair in one.caches)])
    with kernel.runtime.holding(caller.principal, size) as held:
        parts: list[dict[str, Any]] = []
        for at, one in enumerate(found):
            if one.texts is not None:
                how = "prefilled" if one.missed is None else "recomputed"
                parts.append({"kind": "text", "texts": one.texts, "how": how, "at": at})
            for cube, version in one.caches:
                parts.append({**await cache_part(kernel, access, cube, version, held), "at": at})
            if one.weight:
                parts.append({**await adapter_part(kernel, access, one, held), "at": at})
        asked = {
            "model": request.model, "tenant": owner or caller.principal, "messages": _messages(request), "parts": parts,
            "on_miss": request.on_miss, "recompute": request.recompute, "max_new_tokens": request.max_new_tokens,
            "temperature": request.temperature, "top_p": request.top_p, "top_k": request.top_k, "seed": request.seed,
            "stop": request.stop or [],
        }  # fmt: skip
        answer = (await host.run("infer", asked, held, who=caller.principal, on_item=on_item)).result
        # The device let some go meanwhile; to bring in one may drive out another. Each round adds what was missing.
        while missing := set(answer.get("missing", ())):
            kernel.runtime.resident -= missing
            for part in parts:
                if part["kind"] == "text" or part["fd"] is not None or part["key"] not in missing:
                    continue
                if part["kind"] == "adapter":
                    part |= await adapter_part(kernel, access, found[part["at"]], held, missing=True)
                else:
                    one, version = _named(found, part)
                    part |= await cache_part(kernel, access, one, version, held, missing=True)
            answer = (await host.run("infer", asked, held, who=caller.principal, on_item=on_item)).result
    kernel.runtime.resident = set(answer.pop("resident", ()))
    kernel.runtime.known[answer["model"]] = {"fingerprint": answer["fingerprint"]}
    for one in found:
        for cube, version in one.caches:
            if version == cube.version:
                kernel.renewals.used(cube.cube_id)
    reply = _reply(turn, found, answer, first_ns)
    if request.stream:
        turn.item({"text": "", "reply": reply})
    return reply


def _named(found: list[Wanted], part: dict[str, Any]) -> Any:
    return next((c, v) for c, v in found[part["at"]].caches if text_id(c.cube_id) == part["cube"])


def reads_of(access: Access, named: list[tuple[Cube, int]]) -> tuple[set[bytes], set[Slot]]:
    """Every cube whose content a call holds: what it names, and what that was made from; and the keys it is under."""
    queue = list(named)
    reads: set[bytes] = set()
    slots: set[Slot] = set()
    while queue:
        cube, version = queue.pop()
        reads.add(cube.cube_id)
        row = access.view.version(cube, version)
        if row is not None:
            slots.add(row[0].payload_slot)
        for source_id, at, _role in row[0].lineage if row is not None else ():
            source = access.view.cube(source_id)
            if source is not None and source_id not in reads:
                queue.append((source, at))
    return reads, slots


def _messages(request: Any) -> list[dict[str, str]]:
    if request.prompt is not None:
        return [{"role": "user", "content": request.prompt}]
    return [{"role": message.role, "content": message.content} for message in request.messages]


def _reply(turn: Turn, found: list[Wanted], answer: dict[str, Any], first_ns: list[int]) -> dict[str, Any]:
    hows: dict[int, list[tuple[str, int]]] = {}
    for part in answer["parts"]:
        hows.setdefault(part["at"], []).append((part["how"], part["tokens"]))
    attached = [
        {
            "cube_id": text_id(one.cube.cube_id), "version": one.version, "form": one.cube.form,
            "how": _how([how for how, _tokens in hows.get(at, [])]), "tokens": sum(tokens for _how, tokens in hows.get(at, [])),
            **({} if one.weight is None else {"how": "acted" if one.weight else "off", "weight": one.weight}),
        }
        for at, one in enumerate(found)
    ]  # fmt: skip
    first = first_ns[0] if first_ns else time.perf_counter_ns()
    return {
        "text": answer["text"], "model": answer["model"], "tokens_in": answer["tokens_in"],
        "tokens_reused": answer["tokens_reused"], "tokens_out": answer["tokens_out"], "finish": answer["finish"],
        "ttft_ms": (first - turn.started) / 1e6, "tokens_per_s": answer["tokens_per_s"], "attached": attached,
    }  # fmt: skip


def _how(hows: list[str]) -> str:
    """One word for a cube with several parts: what cost most."""
    return next((word for word in ("recomputed", "prefilled", "composed", "attached") if word in hows), "prefilled")
