"""mem_search: what the index proposes, checked against durable state and the caller's rights, then opened.

The last word on every candidate is `visible`: it sees the cube's row as reads do. So a hit is never a version that was
replaced, hidden, expired or erased, however far the index lags behind.

Ranks and scores rest on statistics of the namespaces that are searched, so nobody learns from them what others keep.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from memos_dates.expressions import expressions
from memos_dates.moments import resolve
from memos_drivers.embed.client import Priority
from memos_drivers.plaintext.documents import ancestors
from memos_drivers.plaintext.latent import Tokens
from memos_drivers.plaintext.searching import Hit, SearchQuery
from memos_drivers.plaintext.signs import without_names
from memos_syscalls import limits
from memos_syscalls.errors import MemError, MemModel, MemNoModel

from . import lifecycle
from .events import Damaged
from .governance import Access, text_id
from .header import header
from .longreads import Breath
from .reads import Point, point_of
from .reranking import POOL, reranked
from .state import View
from .supersession import shown, superseded
from .turn import Turn
from .vault import Opened

if TYPE_CHECKING:
    from .dispatch import Kernel


log_ = logging.getLogger("memos.index")
NS: Final = 10**9


def visible(
    view: View, access: Access, point: Point, *, form: str | None = None, state: str | None = None
) -> Callable[[bytes, int], bool]:
    """The check of one candidate: rights, form, state and expiry, as of the moment that is asked for."""
    states = lifecycle.SEARCHABLE if state is None else frozenset((state,))

    def check(cube_id: bytes, version: int) -> bool:
        cube = view.cube(cube_id)
        if cube is None or cube.state == lifecycle.SHREDDED or not access.sees(cube.namespace):
            return False
        if form is not None and cube.form != form:
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


def spans(query: str, now: int) -> list[tuple[int, int]]:
    """The days that a query names ("last Tuesday", "in May 2023"), seen from a moment: their begin, and the begin of the day
    behind them, in ns UTC."""
    midnight, day = dt.time(tzinfo=dt.UTC), dt.timedelta(days=1)
    found: list[tuple[int, int]] = []
    try:
        today = dt.datetime.fromtimestamp(now // NS, dt.UTC).date()
        for one in expressions(query):
            if (days := resolve(one, today)) is not None:
                begin, end = dt.datetime.combine(days[0], midnight), dt.datetime.combine(days[1] + day, midnight)
                found.append((int(begin.timestamp()) * NS, int(end.timestamp()) * NS))
    except (OverflowError, ValueError, OSError):
        return []  # Seen from a moment that no calendar has.
    return [(begin, end) for begin, end in found if -(2**63) < begin < end < 2**63]


class Asked(NamedTuple):
    """What a model made of a query: its vector and its tokens; `missing` when one should have made them and could not."""

    vector: Any
    tokens: Tokens | None = None
    missing: bool = False


async def ask(kernel: Kernel, request: Any, names: frozenset[str]) -> Asked:
    """The vector of the query less these names, unless it came with the request, and the query's tokens."""
    embed = kernel.effects.embed
    vector = None
    if request.query_embedding is not None:
        info = embed.info if embed is not None else None
        if info is not None and len(request.query_embedding) != info.dims:
            raise MemModel(f"an embedding of {len(request.query_embedding)} numbers does not fit vectors of {info.dims}")
        vector = np.asarray(request.query_embedding, np.float32)
    # Who brings a vector asks no model for anything.
    if vector is not None or request.mode == "lexical" or not request.query.strip():
        return Asked(vector)
    if embed is None:
        if request.mode == "dense":
            raise MemNoModel("no embedding model is configured")
        return Asked(None)
    bare = without_names(request.query, names)
    try:
        found = await embed.encode(list(dict.fromkeys((bare, request.query))), Priority.QUERY)
    except MemError:
        if request.mode == "dense":
            raise
        # Words alone still answer; the reply says that it is partial.
        return Asked(None, missing=True)
    return Asked(found[0].vector, found[-1].tokens)


async def open_hit(kernel: Kernel, view: View, cube_id: bytes, version: int) -> Opened | None:
    """A hit's version; long contents that are not in RAM are opened off the loop."""
    if (opened := kernel.vault.cached(cube_id, version)) is not None:
        return opened
    cube = view.cube(cube_id)
    assert cube is not None, "a candidate that passed the check has a row"
    found = view.version(cube, version)
    if found is not None and found[0].payload_bytes <= limits.PAYLOAD_INLINE_BYTES_MAX:
        return kernel.vault.open(view, cube, version)
    return await asyncio.to_thread(kernel.vault.open, view, cube, version)


def clip(opened: Opened) -> tuple[str | bytes, bool]:
    """`(content, clipped)`: what a hit carries of a content; `mem_read` has all of it."""
    content = opened.content[: limits.HIT_BYTES_MAX]
    clipped = len(content) < len(opened.content)
    return (content.decode(errors="ignore") if opened.private.encoding == "text" else content), clipped


class Ranked(NamedTuple):
    """A hit, and the hit that it is there for: what it outdates, if the search did not find it itself."""

    hit: Hit
    instead: bytes | None = None


def newest_first(
    hits: Sequence[Hit], newer: Callable[[bytes, int], bytes | None], now: Callable[[bytes], int | None]
) -> list[Ranked]:
    """The hits with each outdated one behind what outdates it, at the place of the better of the two.

    `newer` names the cube that outdates a version, `now` the version of a cube that may be found, None if none may. What
    outdates a hit and was not found comes all the same: who asks for a fact wants the one that holds.
    """
    found = {hit.cube_id: hit for hit in hits}
    placed: dict[bytes, Ranked] = {}

    def place(hit: Hit, instead: bytes | None, above: frozenset[bytes]) -> None:
        if hit.cube_id in placed or hit.cube_id in above:
            return
        by = newer(hit.cube_id, hit.version)
        if by is not None and by in found:
            place(found[by], None, above | {hit.cube_id})
        elif by is not None and (version := now(by)) is not None:
            place(Hit(by, version, hit.score, None), hit.cube_id, above | {hit.cube_id})
        placed.setdefault(hit.cube_id, Ranked(hit, instead))

    for hit in hits:
        place(hit, None, frozenset())
    return list(placed.values())


def tokens_of(content: bytes) -> int:
    """About how many tokens a model makes of a text: one for four bytes of English, one and a half for a character that takes
    three. Bytes that are no text count the same."""
    return -(-len(content) // 4) if content.isascii() else -(-len(content) // 3)


async def mem_search(kernel: Kernel, turn: Turn, request: Any) -> dict[str, Any]:
    own = Access(kernel.view, turn.peer.caller)
    scopes = own.scopes() if request.namespace is None else [own.namespace(request.namespace)]
    if scopes == []:
        return {"hits": [], "partial": False} | ({} if request.budget_tokens is None else {"tokens": 0})
    point = point_of(kernel, request)
    effects = kernel.effects
    reranker = effects.reranker
    if request.rerank and reranker is None:
        raise MemNoModel("no reranker is configured", "Start the kernel with --reranker DIRECTORY, or search without rerank.")
    await effects.wait_lexical(max(turn.peer.last_write, 0) if effects.loaded else kernel.opened_at)
    await effects.wait_lexical_briefly(kernel.durable.seq)
    without: frozenset[str] = frozenset(request.without or ())
    names = effects.index.speakers(scopes) if "names" not in without else frozenset[str]()
    asked = await ask(kernel, request, names)
    if asked.vector is not None:
        await effects.wait_dense()
    view = kernel.frozen_view()
    access = Access(view, turn.peer.caller)
    index = effects.index
    query = SearchQuery(
        text=request.query, vector=asked.vector, k=max(request.k, POOL) if request.rerank else request.k, mode=request.mode,
        scopes=scopes, tags=request.tags or (),
        since=request.since, until=request.until, past=point.past or request.state is not None,
        upto=point.upto, explain=request.explain, without=without,
        tokens=asked.tokens, tokens_of=effects.tokens_of(view),
        spans=[] if "times" in without else spans(request.query, point.now),
    )  # fmt: skip
    check = visible(view, access, point, form=request.form, state=request.state)

    def newer(cube_id: bytes, version: int) -> bytes | None:
        cube = view.cube(cube_id)
        return None if cube is None else superseded(view, kernel.vault.private, cube, version, point.now, point.upto)

    def now(cube_id: bytes) -> int | None:
        cube = view.cube(cube_id)
        if cube is None or (scopes is not None and set(scopes).isdisjoint(ancestors(cube.namespace))):
            return None
        version = view.version_at(cube, point.seq) if point.past else cube.version
        return version if version is not None and check(cube_id, version) else None

    def ordered(hits: Sequence[Hit]) -> list[Ranked]:
        return newest_first(hits, newer, now)[: request.k]

    unranked = False
    if reranker is not None and request.rerank:
        read = partial(open_hit, kernel, view)
        best = await effects.in_thread(index.search, query, check)
        best, ranked = await reranked(reranker, request.query, best, lambda hit: read(hit.cube_id, hit.version))
        unranked = not ranked
        found = await effects.in_thread(ordered, best)
    else:
        found = await effects.in_thread(lambda: ordered(index.search(query, check)))
    damaged = False
    spent = 0
    hits: list[dict[str, Any]] = []
    breath = Breath()
    for hit, instead in found:
        await breath()
        cube = view.cube(hit.cube_id)
        assert cube is not None, "a candidate that passed the check has a row"
        try:
            opened = await open_hit(kernel, view, hit.cube_id, hit.version)
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
        if request.budget_tokens is not None:
            cost = tokens_of(opened.content)
            # A hit too long for what is left does not end the list: a shorter one behind it may fit.
            if spent + cost > request.budget_tokens:
                continue
            spent += cost
        head = header(
            view, cube, opened.version, opened.private, state=view.state_at(cube, point.seq) if point.past else cube.state,
            now=point.now, owner=kernel.owner(cube.namespace),
        ) | shown(view, cube, hit.version, point.now, point.upto)  # fmt: skip
        item: dict[str, Any] = {
            "cube_id": text_id(hit.cube_id), "version": hit.version, "score": float(hit.score), "namespace": cube.namespace,
            "content": content, "header": head,
        }  # fmt: skip
        if clipped:
            item["clipped"] = True
        if instead is not None and request.explain:
            item["why"] = {"score": hit.score, "instead of": text_id(instead)}
        elif hit.why is not None:
            item["why"] = hit.why
        hits.append(item)
    dense_wanted = request.mode != "lexical"
    reply = {"hits": hits, "partial": damaged or unranked or (dense_wanted and (asked.missing or effects.dense_behind))}
    return reply if request.budget_tokens is None else reply | {"tokens": spent}
