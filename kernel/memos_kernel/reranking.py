"""Reranking: a cross-encoder reads the query with each of the best texts, and these stand in its order.

It is asked for (`rerank`), for it costs some milliseconds a text. Its process is one of its own, like the embedder's. When it
fails, the order stays what it was and the reply is `partial`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from memos_drivers.embed.client import EmbedClient
from memos_drivers.plaintext.searching import Hit
from memos_syscalls.errors import MemError

from .events import Damaged
from .longreads import Breath
from .vault import Opened

log_ = logging.getLogger("memos.index")
POOL: Final = 20
"""Texts that are read."""
CHARS: Final = 2000
"""Of a text."""


async def reranked(
    model: EmbedClient, query: str, hits: Sequence[Hit], read: Callable[[Hit], Awaitable[Opened | None]]
) -> tuple[list[Hit], bool]:
    """The hits with the first `POOL` of them in the model's order, and whether it could say one. What cannot be read, because
    it is damaged or was erased meanwhile, stands behind these."""
    texts: list[tuple[Hit, str]] = []
    breath = Breath()
    for hit in hits[:POOL]:
        await breath()
        try:
            opened = await read(hit)
        except (MemError, Damaged):
            continue
        if opened is not None and opened.private.encoding == "text":
            texts.append((hit, opened.content[: 4 * CHARS].decode(errors="ignore")[:CHARS]))
    try:
        scores = await model.compare(query, [text for _hit, text in texts])
    except MemError as error:
        log_.warning("a search is not reranked: %s", error)
        return list(hits), False
    order = sorted(range(len(texts)), key=lambda at: (-scores[at], at))
    first = [_scored(texts[at][0], scores[at], place) for place, at in enumerate(order, 1)]
    known = {hit.cube_id for hit in first}
    rest = [hit for hit in hits if hit.cube_id not in known]
    # One scale: what was not read counts less than what was.
    drop = min(0.0, first[-1].score - max(hit.score for hit in rest)) if first and rest else 0.0
    return [*first, *(hit._replace(score=hit.score + drop) for hit in rest)], True


def _scored(hit: Hit, score: float, place: int) -> Hit:
    why = None if hit.why is None else {**hit.why, "score": score, "rerank": {"rank": place, "before": hit.why["score"]}}
    return hit._replace(score=score, why=why)
