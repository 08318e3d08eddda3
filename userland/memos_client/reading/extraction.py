"""Asks an endpoint for the facts of turns that are stored already, and stores what is kept of its answers.

Turns are safe before the first question: whatever the endpoint does, they stay, and the outcome says how many of them no
fact stands for, and why. A window whose facts are there already is not asked about again, so a second run adds nothing; one
that failed is asked again. After `FAILURES_MAX` failures in a row nothing more is asked: a dead endpoint costs that many
waits, not one for each window.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from memos_syscalls import messages as m
from memos_syscalls.errors import MemError
from memos_syscalls.limits import LIST_ITEMS_MAX

from ..formats import Turn
from .endpoint import Endpoint, EndpointFailed
from .facts import TAG, ask, fields, windows

FAILURES_MAX: Final = 3
NAMED_NONE: Final = "the model named no fact"
REFUSED: Final = "the kernel refused the facts: a turn was erased since, or they were made before and erased"


class Store(Protocol):
    """The two calls of a kernel that extraction needs."""

    def mem_alloc_many(
        self, items: Sequence[m.NewCube | Mapping[str, Any]], *, request_id: str | None = None
    ) -> m.MemAllocManyReply: ...

    def mem_list(
        self, namespace: str | None = None, *, tags: Sequence[str] | None = None, limit: int | None = None,
        cursor: str | None = None,
    ) -> m.MemListReply: ...  # fmt: skip


@dataclass(slots=True)
class Extraction:
    """What became of it: facts that are stored, those of them that are new, turns without one by reason, facts dropped by
    reason."""

    facts: int = 0
    new: int = 0
    offset: int = 0
    without: Counter[str] = field(default_factory=Counter[str])
    dropped: Counter[str] = field(default_factory=Counter[str])


def extract(
    kernel: Store, endpoint: Endpoint, key: str | None, turns: Sequence[Turn], ids: Sequence[str], namespace: str, source: str,
    head: int,
) -> Extraction:  # fmt: skip
    """Facts of `turns`, whose cubes are `ids`. Errors of the kernel that a repeat may mend are raised.

    What stands in a record up to `head` was made by an earlier run: where it is not listed, it was erased since.
    """
    assert len(turns) == len(ids)
    done = Extraction()
    known = _known(kernel, namespace)
    failures, failed = 0, ""
    for window in windows(turns):
        digest = window.digest(endpoint, namespace, source)
        if digest in known:
            there, named = known[digest]
            done.facts += there
            _count(done, len(window.turns) - named, NAMED_NONE)
            continue
        if failures >= FAILURES_MAX:
            _count(done, len(window.turns), f"not asked after {FAILURES_MAX} failures in a row ({failed})")
            continue
        try:
            facts, dropped = ask(endpoint, key, window)
        except EndpointFailed as error:
            failures, failed = failures + 1, str(error)
            _count(done, len(window.turns), failed)
            continue
        failures = 0
        done.dropped += dropped
        if not facts:
            _count(done, len(window.turns), NAMED_NONE)
            continue
        theirs = ids[window.start : window.start + len(window.turns)]
        items = [fields(fact, window, endpoint, digest, namespace, source, theirs) for fact in facts]
        if _store(kernel, done, items, digest, head):
            _count(done, len(window.turns) - len({place for fact in facts for place in fact.turns}), NAMED_NONE)
        else:
            _count(done, len(window.turns), REFUSED)
    return done


def _store(kernel: Store, done: Extraction, items: list[dict[str, Any]], digest: str, head: int) -> bool:
    """Whether the kernel took the facts of one window."""
    try:
        reply = kernel.mem_alloc_many(items, request_id=f"facts:{digest}")
    except MemError as error:
        if not error.deterministic:
            raise
        return False
    if reply.offset <= head:
        return False
    done.facts += len(items)
    done.new += len(items)
    done.offset = reply.offset
    return True


def _known(kernel: Store, namespace: str) -> dict[str, tuple[int, int]]:
    """Windows whose facts are there: how many facts, and how many turns they stand for."""
    facts: Counter[str] = Counter()
    turns: dict[str, set[str]] = {}
    cursor: str | None = None
    while True:
        try:
            page = kernel.mem_list(namespace, tags=[TAG], limit=LIST_ITEMS_MAX, cursor=cursor)
        except MemError as error:
            if error.errno == "ENOENT":
                return {}
            raise
        for cube in page.cubes:
            made = cube.metadata.get("extracted")
            if isinstance(made, dict) and isinstance(window := made.get("window"), str):
                facts[window] += 1
                turns.setdefault(window, set()).update(str(parent.get("cube_id")) for parent in cube.parents)
        cursor = page.next_cursor
        if cursor is None:
            return {window: (count, len(turns[window])) for window, count in facts.items()}


def _count(done: Extraction, turns: int, reason: str) -> None:
    if turns > 0:
        done.without[reason] += turns
