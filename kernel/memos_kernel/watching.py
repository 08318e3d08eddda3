"""mem_watch: the log as its reader may see it, from an offset on, for as long as somebody listens.

Every event passes the same check as a read; an event about many cubes (ended, outdated, erased) is told cube by cube.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from memos_syscalls import limits
from memos_syscalls.table import BY_NUMBER

from .eventlog.base import records
from .events import EXPIRED, MERGED, PINNED, SHREDDED, STATE_CHANGED, SUPERSEDED, UNMERGED, WRITTEN, Event, Record
from .governance import Access, text_id
from .longreads import Breath
from .turn import Turn

if TYPE_CHECKING:
    from .dispatch import Kernel


def _seen(kernel: Kernel, access: Access, event: Event, request: Any) -> dict[str, Any] | None:
    """What a watcher is told of an event; None for what it may not see or did not ask for."""
    if request.events is not None and event.name not in request.events:
        return None
    item: dict[str, Any] = {"event": event.name}
    namespace: str = ""
    match event.name:
        case "cube.allocated":
            item |= {"cube_id": text_id(event.fields[0]), "version": 1, "namespace": event.fields[1]}
            namespace = event.fields[1]
        case "namespace.forked":
            namespace = item["namespace"] = event.fields[1]
        case "cubes.shredded" if event.fields[0] is not None:
            namespace = item["namespace"] = event.fields[0]
        case _ if event.name in (WRITTEN, STATE_CHANGED, PINNED, EXPIRED, MERGED, UNMERGED, SUPERSEDED, SHREDDED):
            first: Any = event.fields[0]
            if event.name == SHREDDED:
                first = event.fields[1][0]
            elif event.name in (EXPIRED, SUPERSEDED):
                first = first[0][0]
            cube = access.view.cube(first)
            if cube is None:
                return None
            namespace = cube.namespace
            item |= {"cube_id": text_id(first), "namespace": namespace}
            if event.name in (WRITTEN, STATE_CHANGED, PINNED, UNMERGED):
                item["version"] = event.fields[1]
            if event.name == SUPERSEDED:
                item["version"] = event.fields[0][0][1]
            if event.name == STATE_CHANGED:
                item["state"] = event.fields[2]
            if event.name == PINNED:
                item["pinned"] = event.fields[2]
        case _:
            return None
    wanted = request.namespace
    if wanted is not None and namespace != wanted and not namespace.startswith(wanted + "/"):
        return None
    return item if access.sees(namespace) else None


def _single(record: Record) -> Iterator[Event]:
    """Events with one cube each: a tick that ends many lives is told cube by cube."""
    for event in record.events:
        if event.name in (EXPIRED, SUPERSEDED):
            for pair in event.fields[0]:
                yield event._replace(fields=[[pair]])
        elif event.name == SHREDDED and event.fields[0] is None:
            for cube_id in event.fields[1]:
                yield event._replace(fields=[None, [cube_id], [], b""])
        else:
            yield event


async def mem_watch(kernel: Kernel, turn: Turn, request: Any) -> dict[str, Any] | None:
    if request.namespace is not None:
        Access(kernel.view, turn.peer.caller).namespace(request.namespace)
    at = kernel.durable.seq + 1 if request.from_offset is None else request.from_offset
    news = kernel.watch()
    try:
        while not turn.finished:
            sent = 0
            breath = Breath()
            head = kernel.durable.seq
            if at <= head:
                for _raw, record in records(kernel.log, at):
                    if record.seq > head or sent >= limits.WATCH_ITEMS_PER_TURN_MAX:
                        break
                    at = record.seq + 1
                    sent += 1
                    await breath()
                    access = Access(kernel.view, turn.peer.caller)
                    events = [item for event in _single(record) if (item := _seen(kernel, access, event, request))]
                    if events:
                        call = BY_NUMBER.get(record.syscall)
                        turn.item({
                            "offset": record.seq, "time": record.time, "actor": record.principal,
                            "syscall": call.name if call else "kernel", "events": events,
                        })  # fmt: skip
            await turn.peer.writable()
            if at > kernel.durable.seq:
                news.clear()
                await news.wait()
        return None
    finally:
        kernel.unwatch(news)
