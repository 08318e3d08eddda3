"""The sys_ calls, and the table of everything that appends nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from memos_drivers.table import TABLE as DRIVERS
from memos_syscalls import limits
from memos_syscalls.errors import MemAgain, MemInvalid, MemIO
from memos_syscalls.table import BY_NAME, BY_NUMBER, Flag

from . import __version__
from .diffs import mem_diff
from .eventlog.base import Ended, OutOfReach
from .mapping import mem_map
from .reads import later, mem_history, mem_list, mem_read, mem_stat, streaming
from .recovery import Refused
from .state import SCHEMA, shown
from .turn import Turn
from .watching import mem_watch

if TYPE_CHECKING:
    from .dispatch import Kernel


def sys_info(kernel: Kernel, turn: Turn, request: Any) -> None:
    durable, embed = kernel.durable, kernel.effects.embed
    info = embed.info if embed is not None else None
    models = (
        [] if info is None else [{"use": "embedding", "name": info.name, "dims": info.dims, "fingerprint": info.fingerprint}]
    )
    models += [{"use": "language", "name": name, **kernel.runtime.known.get(name, {})} for name in kernel.runtime.names]
    log: dict[str, object] = {"kind": kernel.log.kind}
    if turn.peer.caller.admin:
        log = {**kernel.log.describe(), "data_dir": kernel.data_dir}
    turn.answer({
        "abi": limits.ABI, "version": __version__, "log_id": kernel.keys.log_id.hex(), "epoch": kernel.chain.epoch,
        "head_offset": durable.seq, "head_hash": durable.hash.hex(), "state_digest": shown(durable.digest).hex(),
        "state_schema": SCHEMA, "log": log,
        "public_key": kernel.keys.signer.public_key.hex(), "drivers": list(DRIVERS), "models": models,
        "principal": turn.peer.caller.principal, "admin": turn.peer.caller.admin, "read_only": kernel.read_only,
        "standby": kernel.succession is not None and kernel.succession.standby,
    })  # fmt: skip


async def sys_stats(kernel: Kernel, turn: Turn, request: Any) -> dict[str, Any]:
    """Everything for the kernel's own user; others see their own cubes, and how far the indexes are."""
    caller, effects = turn.peer.caller, kernel.effects
    census = await kernel.census.of(caller)
    lexical: dict[str, Any] = {"indexed_offset": effects.lexical_seq, "loaded": effects.loaded}
    dense: dict[str, Any] = {"indexed_offset": effects.dense_seq, "dims": effects.index.dims}
    reply: dict[str, Any] = {
        "uptime_s": round(kernel.loop.time() - kernel.started, 3), "connections": 0, "calls": {}, "memory": {},
        "log": {"head_offset": kernel.durable.seq}, "indexes": {"lexical": lexical, "dense": dense}, "cubes": census,
    }  # fmt: skip
    if not caller.admin:
        return reply
    error = effects.embed_error
    lexical |= {"documents": effects.index.documents, "error": effects.failed}
    dense |= {"documents": effects.index.vectors, "error": None if error is None else error.detail}
    reply["connections"] = kernel.connections()
    reply["calls"] = {BY_NUMBER[n].name: h.report() for n, h in kernel.stats.items() if h.count}
    reply["log"] |= {
        "commits": kernel.commits, "records": kernel.committed_records,
        "records_per_commit": round(kernel.committed_records / max(1, kernel.commits), 2),
    }  # fmt: skip
    reply["jobs"] = kernel.runtime.jobs.stats()
    reply["host"] = await kernel.runtime.stats()
    if (device := reply["host"].pop("device", None)) is not None:
        reply.setdefault("tiers", {})["device"] = {**device, "prefix_bytes": reply["host"].pop("prefix_bytes")}
    reply.setdefault("tiers", {})["host"] = kernel.hosttier.stats()
    reply["memory"] = {"opened_bytes": kernel.vault.opened_bytes, "key_slots_ready": kernel.vault.free_slots}
    return reply


async def sys_snapshot(kernel: Kernel, turn: Turn, request: Any) -> dict[str, Any]:
    result: dict[str, Any] = await kernel.snapshots.make(kernel)
    return result


async def sys_promote(kernel: Kernel, turn: Turn, request: Any) -> dict[str, Any]:
    if kernel.succession is None:
        raise MemInvalid("this kernel writes its own log", "Standbys are started with --log kafka://… --standby.")
    try:
        await kernel.succession.promote()
    except OutOfReach as error:
        raise MemAgain(str(error)) from error
    except (Ended, Refused) as error:
        raise MemIO(str(error), "See the kernel's log.") from error
    return {"epoch": kernel.chain.epoch, "head_offset": kernel.durable.seq}


async def sys_verify(kernel: Kernel, turn: Turn, request: Any) -> dict[str, Any]:
    from .verify import verify_live

    try:
        return await asyncio.to_thread(verify_live, kernel, request.full)
    except (OutOfReach, Ended) as error:
        raise MemAgain(str(error)) from error


def sys_hello(kernel: Kernel, turn: Turn, request: Any) -> None:
    """The first hello is the server's business; here arrives the second."""
    raise MemInvalid("hello was said already on this connection", "Say it once.")


def sys_cancel(kernel: Kernel, turn: Turn, request: Any) -> None:
    turn.answer({"canceled": turn.peer.cancel(request.call)})


def register(kernel: Kernel) -> None:
    """Put every reading call into the kernel's table; a call without a handler fails here, at start."""
    from .finding import mem_search
    from .infer import mem_infer
    from .jobs import job_cancel, job_status, job_wait
    from .migrate import job_of

    handlers: dict[str, Callable[[Kernel, Turn, Any], None]] = {
        "mem_read": mem_read, "mem_stat": mem_stat, "mem_list": later(mem_list), "mem_history": later(mem_history),
        "mem_diff": mem_diff, "mem_search": later(mem_search), "mem_watch": streaming(mem_watch), "sys_info": sys_info,
        "sys_stats": later(sys_stats), "sys_snapshot": later(sys_snapshot), "sys_verify": later(sys_verify),
        "mem_infer": mem_infer, "job_status": job_status, "job_wait": job_wait, "job_cancel": job_cancel,
        "sys_cancel": sys_cancel, "sys_hello": sys_hello, "sys_promote": later(sys_promote),
        "mem_map": later(mem_map),
    }  # fmt: skip
    for call in BY_NAME.values():
        if not call.flags & Flag.WRITE:
            kernel.reads[call.number] = handlers.pop(call.name)
    assert not handlers, "every handler has a syscall"
    kernel.job_of = job_of
