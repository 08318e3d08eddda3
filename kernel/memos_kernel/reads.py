"""Calls that append nothing and look at cubes: read, stat, list, history. Search is in finding.py, diff in diffs.py.

Each handler takes `(kernel, turn, request)` and either answers at once or starts a task that will. Reads see durable
state. The past is exactly what was live then, with today's rights; what was erased is `ESHREDDED` at every offset.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from memos_syscalls import limits
from memos_syscalls.errors import MemCanceled, MemError, MemInvalid, MemIO, MemNotFound
from memos_syscalls.table import BY_NUMBER

from . import lifecycle
from .decide import shredded
from .eventlog.base import records
from .events import Damaged
from .governance import Access, raw_id, text_id
from .header import header
from .longreads import Breath
from .sources import check_sources
from .state import Cube, Version, View
from .supersession import shown
from .turn import Turn
from .vault import Opened

if TYPE_CHECKING:
    from .dispatch import Kernel


class Point(NamedTuple):
    """A moment to read at: after record `seq`, at time `now`. `past` is False for the present."""

    seq: int
    now: int
    past: bool

    @property
    def upto(self) -> int | None:
        """The record after which it reads, for what tells the past from the present by None."""
        return self.seq if self.past else None


def present(kernel: Kernel) -> Point:
    return Point(kernel.durable.seq, kernel.clock.now(), False)


def point_of(kernel: Kernel, request: Any) -> Point:
    """The moment that a request asks for."""
    if request.at_offset is not None:
        if request.at_offset > kernel.durable.seq:
            raise MemNotFound(f"offset {request.at_offset} is beyond the head, {kernel.durable.seq}")
        return Point(request.at_offset, record_time(kernel, request.at_offset), True)
    if request.at_time is not None:
        seq = kernel.log.seq_at(min(request.at_time, 2**63 - 1))
        return Point(-1 if seq is None else min(seq, kernel.durable.seq), request.at_time, True)
    return present(kernel)


def record_time(kernel: Kernel, seq: int) -> int:
    for _raw, record in records(kernel.log, seq):
        return record.time
    raise Damaged(f"the log has no record {seq}")


class Found(NamedTuple):
    cube: Cube
    version: int
    state: str
    """Recorded state at that moment."""
    now: int
    seq: int | None = None
    """The record after which it is read; None for the present."""


def locate(kernel: Kernel, access: Access, request: Any) -> Found:
    """The version that a request names, in the state that holds for the moment it asks for."""
    cube = access.cube(request.cube_id)
    if request.version is not None:
        if request.version > cube.version:
            raise MemNotFound(f"cube {request.cube_id} has no version {request.version}; the newest is {cube.version}")
        return Found(cube, request.version, cube.state, kernel.clock.now())
    if request.at_offset is None and request.at_time is None:
        return Found(cube, cube.version, cube.state, kernel.clock.now())
    point = point_of(kernel, request)
    version = access.view.version_at(cube, point.seq)
    if version is None:
        raise MemNotFound(f"cube {request.cube_id} did not exist then")
    state = cube.state if cube.state == lifecycle.SHREDDED else access.view.state_at(cube, point.seq)
    return Found(cube, version, state, point.now, point.seq)


def composed(kernel: Kernel, access: Access, cube: Cube, opened: Opened) -> bytes:
    """A composition's content: its members', joined by newlines."""
    parts: list[bytes] = []
    for source_id, at, _role in opened.version.lineage:
        source = access.view.cube(source_id)
        if source is None or not access.sees(source.namespace):
            raise MemNotFound(f"a member of composition {text_id(cube.cube_id)} is not there, or not yours")
        member = kernel.vault.open(access.view, source, at)
        if member is None:
            raise Damaged(f"cube {source_id.hex()} has no version {at}")
        is_composed = (member.private.recipe or {}).get("method") == "compose"
        parts.append(composed(kernel, access, source, member) if is_composed else member.content)
    return b"\n".join(parts)


def mem_read(kernel: Kernel, turn: Turn, request: Any) -> None:
    view = kernel.view
    access = Access(view, turn.peer.caller)
    found = locate(kernel, access, request)
    cube, version, state, now, _seq = found
    past = request.version is not None or request.at_offset is not None or request.at_time is not None
    if state == lifecycle.SHREDDED:
        raise lifecycle.refusal(request.cube_id, state, "read")
    opened = kernel.vault.cached(cube.cube_id, version)
    row = opened.version if opened is not None else _row(view, cube, version)
    effective = lifecycle.effective(state, row.expires_at, now)
    if effective == lifecycle.EXPIRED and not (past and request.version is not None):
        raise lifecycle.refusal(request.cube_id, effective, "read")
    if "content" in request.parts:
        check_sources(access, cube, version)
    if cube.form != "plaintext" and "content" in request.parts and row.payload_bytes > limits.CONTENT_INLINE_BYTES_MAX:
        raise MemInvalid(
            f"cube {request.cube_id} holds {row.payload_bytes} bytes of tensors", 'Use mem_map, or pass parts=["header"].'
        )
    if row.payload_bytes > limits.PAYLOAD_CHUNK_BYTES and "content" in request.parts:
        kernel.long_reads.submit(turn, lambda: answering(kernel, turn, _read_large(kernel, turn, access, found, request)))
        return
    if opened is None and "content" not in request.parts:
        turn.answer(_read_reply(kernel, access, found, headed(kernel, view, cube, version), request, effective))
        return
    if opened is None:
        opened = kernel.vault.open(view, cube, version)
        assert opened is not None, "the row was just read"
    if "content" in request.parts and (opened.private.recipe or {}).get("method") == "compose":
        if cube.form != "plaintext":
            raise MemInvalid(f"cube {request.cube_id} stands for caches: it has no content", 'Pass parts=["header"].')
        work = opened
        kernel.long_reads.submit(
            turn, lambda: answering(kernel, turn, _read_composition(kernel, access, found, work, request, effective))
        )
        return
    turn.answer(_read_reply(kernel, access, found, opened, request, effective))


def _row(view: View, cube: Cube, version: int) -> Version:
    found = view.version(cube, version)
    if found is None:
        raise Damaged(f"cube {cube.cube_id.hex()} has no version {version}")
    return found[0]


def headed(kernel: Kernel, view: View, cube: Cube, version: int) -> Opened:
    """A version for who asks for its header alone: whatever its size, its content stays on the disk."""
    found = view.version(cube, version)
    if found is None:
        raise Damaged(f"cube {cube.cube_id.hex()} has no version {version}")
    if not kernel.vault.alive(found[0].payload_slot):
        raise shredded(found[0].cube_id)
    return Opened(found[0], kernel.vault.open_private(*found), b"")


def _read_reply(kernel: Kernel, access: Access, found: Found, opened: Opened, request: Any, effective: str) -> dict[str, Any]:
    cube = found.cube
    reply: dict[str, Any] = {
        "cube_id": request.cube_id, "version": found.version, "form": cube.form, "state": effective,
        "offset": opened.version.seq,
    }  # fmt: skip
    if "header" in request.parts:
        reply["header"] = header(
            access.view, cube, opened.version, opened.private, state=effective, now=found.now,
            owner=kernel.owner(cube.namespace),
        ) | shown(access.view, cube, found.version, found.now, found.seq)  # fmt: skip
    if "content" in request.parts:
        reply["content"] = opened.content.decode() if opened.private.encoding == "text" else opened.content
    return reply


async def _read_composition(
    kernel: Kernel, access: Access, found: Found, opened: Opened, request: Any, effective: str
) -> dict[str, Any]:
    own = Access(kernel.frozen_view(), access.caller)
    whole = await asyncio.to_thread(composed, kernel, own, found.cube, opened)
    return _read_reply(kernel, access, found, opened._replace(content=whole), request, effective)


async def _read_large(kernel: Kernel, turn: Turn, access: Access, found: Found, request: Any) -> dict[str, Any] | None:
    """Content over one chunk is opened off the loop; over 1 MiB it leaves as a sealed memfd."""
    opened = await asyncio.to_thread(kernel.vault.open, access.view, found.cube, found.version)
    if opened is None:
        raise Damaged(f"cube {found.cube.cube_id.hex()} has no version {found.version}")
    effective = lifecycle.effective(found.state, opened.version.expires_at, found.now)
    reply = _read_reply(kernel, access, found, opened._replace(content=b""), request, effective)
    content = opened.content
    if len(content) <= limits.CONTENT_INLINE_BYTES_MAX:
        reply["content"] = content.decode() if opened.private.encoding == "text" else content
        return reply
    from .fds import sealed_memfd

    del reply["content"]
    reply |= {"fd": 0, "encoding": opened.private.encoding}
    turn.answer(reply, [await asyncio.to_thread(sealed_memfd, content)])
    return None


async def answering(kernel: Kernel, turn: Turn, work: Coroutine[Any, Any, dict[str, Any] | None]) -> None:
    """Run a read's task and turn whatever comes of it into the answer."""
    try:
        result = await work
        if result is not None:
            turn.answer(result)
    except MemError as error:
        turn.fail(error)
    except Damaged as error:
        turn.fail(MemIO(str(error), "Run `memctl verify` on the data directory."))
    except Exception as error:
        kernel.unexpected(turn, error)
    except asyncio.CancelledError:
        turn.fail(MemCanceled("the call was cancelled"))
        raise


Reader = Callable[["Kernel", Turn, Any], Coroutine[Any, Any, dict[str, Any] | None]]


def later(work: Reader) -> Callable[[Kernel, Turn, Any], None]:
    """A handler that waits in the line of long reads."""

    def handler(kernel: Kernel, turn: Turn, request: Any) -> None:
        kernel.long_reads.submit(turn, lambda: answering(kernel, turn, work(kernel, turn, request)))

    return handler


def streaming(work: Reader) -> Callable[[Kernel, Turn, Any], None]:
    """A handler that runs as long as its caller listens."""

    def handler(kernel: Kernel, turn: Turn, request: Any) -> None:
        kernel.spawn(answering(kernel, turn, work(kernel, turn, request)), turn)

    return handler


def stat_of(kernel: Kernel, access: Access, found: Found) -> dict[str, Any]:
    """A header, also of a cube that has expired or was erased: then what is public of it."""
    cube = found.cube
    row = access.view.version(cube, found.version)
    if row is None:
        raise Damaged(f"cube {cube.cube_id.hex()} has no version {found.version}")
    private = None
    opened = kernel.vault.cached(cube.cube_id, found.version)
    if found.state == lifecycle.SHREDDED:
        private = None
    elif opened is not None:
        private = opened.private
    else:
        try:
            private = kernel.vault.open_private(*row)
        except MemError:
            # The version is inherited from a source that was erased: its public part is all there is.
            private = None
    owner = kernel.owner(cube.namespace)
    head = header(access.view, cube, row[0], private, state=found.state, now=found.now, owner=owner)
    return head if found.state == lifecycle.SHREDDED else head | shown(access.view, cube, found.version, found.now, found.seq)


def mem_stat(kernel: Kernel, turn: Turn, request: Any) -> None:
    access = Access(kernel.view, turn.peer.caller)
    turn.answer({"header": stat_of(kernel, access, locate(kernel, access, request))})


def _cursor(namespace: str, cube_id: bytes) -> str:
    return base64.urlsafe_b64encode(cube_id + namespace.encode()).decode()


def _after(cursor: str | None) -> tuple[str, bytes] | None:
    if cursor is None:
        return None
    try:
        raw = base64.urlsafe_b64decode(cursor.encode())
        return raw[16:].decode(), raw[:16]
    except ValueError as error:
        raise MemInvalid("the cursor is not one of this kernel's", "Pass next_cursor of the last page as it is.") from error


def _walk(view: View, access: Access, namespace: str | None, after: tuple[str, bytes] | None) -> Iterator[bytes | None]:
    """Ids of the cubes to list; None for each namespace that is passed over, so that the caller can breathe."""
    for found in view.namespaces(namespace):
        if (after is not None and found.name < after[0]) or not access.sees(found.name):
            yield None
            continue
        yield from view.cubes_in(found.name, after[1] if after is not None and found.name == after[0] else None)


async def mem_list(kernel: Kernel, turn: Turn, request: Any) -> dict[str, Any]:
    view = kernel.frozen_view()
    access = Access(view, turn.peer.caller)
    if request.namespace is not None:
        access.namespace(request.namespace)
    point = point_of(kernel, request)
    wanted = set(request.tags or ())
    cubes: list[dict[str, Any]] = []
    breath = Breath()
    for cube_id in _walk(view, access, request.namespace, _after(request.cursor)):
        await breath()
        cube = None if cube_id is None else view.cube(cube_id)
        if cube is None or (request.form is not None and cube.form != request.form):
            continue
        version = view.version_at(cube, point.seq) if point.past else cube.version
        if version is None:
            continue
        recorded = view.state_at(cube, point.seq) if point.past and cube.state != lifecycle.SHREDDED else cube.state
        shown_header = stat_of(kernel, access, Found(cube, version, recorded, point.now, point.upto))
        state = shown_header["state"]
        if (state != request.state) if request.state is not None else state not in lifecycle.LISTED:
            continue
        if request.name is not None and shown_header.get("name") != request.name:
            continue
        if wanted and not wanted <= set(shown_header.get("tags", ())):
            continue
        if len(cubes) == request.limit:
            last = cubes[-1]
            return {"cubes": cubes, "next_cursor": _cursor(last["namespace"], raw_id(last["cube_id"]))}
        cubes.append(shown_header)
    return {"cubes": cubes, "next_cursor": None}


async def mem_history(kernel: Kernel, turn: Turn, request: Any) -> dict[str, Any]:
    access = Access(kernel.frozen_view(), turn.peer.caller)
    cube = access.cube(request.cube_id)
    versions: list[dict[str, Any]] = []
    breath = Breath()
    for number in range(max(1, cube.version - limits.HISTORY_VERSIONS_MAX + 1), cube.version + 1):
        await breath()
        found = access.view.version(cube, number)
        if found is None:
            continue
        row: Version = found[0]
        note = None
        if cube.state != lifecycle.SHREDDED:
            try:
                note = kernel.vault.open_private(*found).note
            except MemError:
                # Erased with the source of a fork; the rest of the line is public.
                note = None
        versions.append({
            "version": number, "offset": row.seq, "time": row.time, "actor": row.principal,
            "syscall": BY_NUMBER[row.syscall].name, "note": note, "form": cube.form, "bytes": row.payload_bytes,
        })  # fmt: skip
    return {"versions": versions}
