"""mem_search: what the index proposes, checked against durable state and the caller's rights, then opened.

The last word on every candidate is `visible`: it sees the cube's row as reads do. So a hit is never a version that was
replaced, hidden, expired or erased, however far the index lags behind.

Ranks rest on statistics of all documents, whoever owns them; the scores that would show those are for admins.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from memos_drivers.embed.client import Priority
from memos_drivers.plaintext.index import SearchQuery
from memos_syscalls import limits
from memos_syscalls.errors import MemError, MemModel, MemNoModel

from . import lifecycle
from .events import Damaged
from .governance import Access, text_id
from .header import header
from .longreads import Breath
from .reads import Point, point_of
from .state import Cube, View
from .turn import Turn
from .vault import Opened

if TYPE_CHECKING:
    from .dispatch import Kernel


log_ = logging.getLogger("memos.index")


def visible(view: View, access: Access, point: Point, request: Any) -> Callable[[bytes, int], bool]:
    """The check of one candidate: rights, form, state and expiry, as of the moment that is asked for."""
    states = lifecycle.SEARCHABLE if request.state is None else frozenset((request.state,))

    def check(cube_id: bytes, version: int) -> bool:
        cube = view.cube(cube_id)
        if cube is None or cube.state == lifecycle.SHREDDED or not access.sees(cube.namespace):
            return False
        if request.form is not None and cube.form != request.form:
            return False
        if not point.past:
            return version == cube.version and lifecycle.effective(cube.state, cube.expires_at, point.now) in states
        if view.version_at(cube, point.seq) != version:
            return False
        found = view.version(cube, version)
        if found is None:
            return False
        return lifecycle.effective(view.state_at(cube, point.seq), found[0].expires_at, point.now) in states

    return check


async def query_vector(kernel: Kernel, request: Any) -> tuple[Any, bool]:
    """`(vector, missing)`: the query's vector, or whether a model should have made one and could not."""
    embed = kernel.effects.embed
    if request.query_embedding is not None:
        info = embed.info if embed is not None else None
        if info is not None and len(request.query_embedding) != info.dims:
            raise MemModel(f"an embedding of {len(request.query_embedding)} numbers does not fit vectors of {info.dims}")
        return np.asarray(request.query_embedding, np.float32), False
    if request.mode == "lexical" or not request.query.strip():
        return None, False
    if embed is None:
        if request.mode == "dense":
            raise MemNoModel("no embedding model is configured")
        return None, False
    try:
        return (await embed.embed([request.query], Priority.QUERY))[0], False
    except MemError:
        if request.mode == "dense":
            raise
        # Words alone still answer; the reply says that it is partial.
        return None, True


async def open_hit(kernel: Kernel, view: View, cube: Cube, version: int) -> Opened | None:
    """A hit's version; long contents are opened off the loop."""
    found = view.version(cube, version)
    if found is not None and found[0].payload_bytes <= limits.PAYLOAD_INLINE_BYTES_MAX:
        return kernel.vault.open(view, cube, version)
    return await asyncio.to_thread(kernel.vault.open, view, cube, version)


def clip(opened: Opened) -> tuple[str | bytes, bool]:
    """`(content, clipped)`: what a hit carries of a content; `mem_read` has all of it."""
    content = opened.content[: limits.HIT_BYTES_MAX]
    clipped = len(content) < len(opened.content)
    return (content.decode(errors="ignore") if opened.private.encoding == "text" else content), clipped


async def mem_search(kernel: Kernel, turn: Turn, request: Any) -> dict[str, Any]:
    own = Access(kernel.view, turn.peer.caller)
    scopes = own.scopes() if request.namespace is None else [own.namespace(request.namespace)]
    if scopes == []:
        return {"hits": [], "partial": False}
    point = point_of(kernel, request)
    effects = kernel.effects
    await effects.wait_lexical(max(turn.peer.last_write, 0) if effects.loaded else kernel.opened_at)
    await effects.wait_lexical_briefly(kernel.durable.seq)
    vector, missing = await query_vector(kernel, request)
    if vector is not None:
        await effects.wait_dense()
    view = kernel.frozen_view()
    access = Access(view, turn.peer.caller)
    index = effects.index
    query = SearchQuery(
        text=request.query, vector=vector, k=request.k, mode=request.mode, scopes=scopes, tags=request.tags or (),
        since=request.since, until=request.until, past=point.past or request.state is not None, explain=request.explain,
        scores=turn.peer.caller.admin,
    )  # fmt: skip
    found = await effects.in_thread(index.search, query, visible(view, access, point, request))
    damaged = False
    hits: list[dict[str, Any]] = []
    breath = Breath()
    for hit in found:
        await breath()
        cube = view.cube(hit.cube_id)
        assert cube is not None, "a candidate that passed the check has a row"
        try:
            # In a thread unless it is in RAM: contents may be long.
            opened = kernel.vault.cached(cube.cube_id, hit.version) or await open_hit(kernel, view, cube, hit.version)
        except MemError:
            # Erased between the search and here.
            continue
        except Damaged as error:
            # One damaged hit must not take the others with it.
            log_.error("a hit is left out: %s", error)
            damaged = True
            continue
        if opened is None:
            continue
        content, clipped = clip(opened)
        head = header(
            view, cube, opened.version, opened.private, state=view.state_at(cube, point.seq) if point.past else cube.state,
            now=point.now, owner=kernel.owner(cube.namespace),
        )  # fmt: skip
        item: dict[str, Any] = {
            "cube_id": text_id(hit.cube_id), "version": hit.version, "score": float(hit.score), "namespace": cube.namespace,
            "content": content, "header": head,
        }  # fmt: skip
        if clipped:
            item["clipped"] = True
        if hit.why is not None:
            item["why"] = hit.why
        hits.append(item)
    dense_wanted = request.mode != "lexical"
    return {"hits": hits, "partial": damaged or (dense_wanted and (missing or effects.dense_behind))}
