"""Every legal transition of a cube's state, in one table that the code walks and docs/architecture.md shows.

Rule 1. An action that is not in the table for a state is refused; `refusal` says how.
Rule 2. `shredded` has no way out.
Rule 3. A frozen cube can only be thawed.
"""

from __future__ import annotations

from typing import Final

from memos_syscalls.errors import MemError, MemFrozen, MemInvalid, MemNotFound, MemShredded

GENERATED, ACTIVATED, MERGED = "generated", "activated", "merged"
ARCHIVED, FROZEN, EXPIRED, SHREDDED = "archived", "frozen", "expired", "shredded"

TRANSITIONS: Final[dict[str, dict[str, str]]] = {
    GENERATED: {
        "write": ACTIVATED, "rollback": ACTIVATED, "free": EXPIRED, "expire": EXPIRED, "freeze": FROZEN,
        "archive": ARCHIVED, "merge": MERGED, "shred": SHREDDED,
    },
    ACTIVATED: {
        "write": ACTIVATED, "rollback": ACTIVATED, "free": EXPIRED, "expire": EXPIRED, "freeze": FROZEN,
        "archive": ARCHIVED, "merge": MERGED, "shred": SHREDDED,
    },
    MERGED: {"unmerge": ACTIVATED, "free": EXPIRED, "expire": EXPIRED, "shred": SHREDDED},
    ARCHIVED: {"restore": ACTIVATED, "free": EXPIRED, "expire": EXPIRED, "shred": SHREDDED},
    FROZEN: {"thaw": ACTIVATED},
    EXPIRED: {"shred": SHREDDED},
    SHREDDED: {},
}  # fmt: skip
"""State → action → next state."""

SEARCHABLE: Final = frozenset((GENERATED, ACTIVATED, FROZEN))
"""States that a search finds unless it names a state."""

LISTED: Final = frozenset((GENERATED, ACTIVATED, MERGED, ARCHIVED, FROZEN))
"""States that a listing shows unless it names a state."""

_INSTEAD: Final = {
    (MERGED, "write"): "Write to the fused cube, or undo the fusion with mem_unfuse",
    (ARCHIVED, "write"): "Bring it back with mem_restore first",
    (ARCHIVED, "freeze"): "Bring it back with mem_restore first",
}


def effective(state: str, expires_at: int | None, now: int) -> str:
    """The state at a time: a life that has run out counts as expired before a tick records it. A hold stops the clock."""
    if expires_at is not None and expires_at <= now and "expire" in TRANSITIONS[state]:
        return EXPIRED
    return state


def require(cube: str, state: str, action: str) -> None:
    """Refuse an action that is not legal in a state."""
    if action not in TRANSITIONS[state]:
        raise refusal(cube, state, action)


def refusal(cube: str, state: str, action: str) -> MemError:
    """Why an action is not legal in a state, and what to do."""
    if state == SHREDDED:
        return MemShredded(f"cube {cube} was shredded")
    if state == EXPIRED:
        return MemNotFound(f"cube {cube} has expired", "Its past stays readable: pass version, at_offset or at_time.")
    if state == FROZEN:
        return MemFrozen(f"cube {cube} is frozen")
    return MemInvalid(f"cube {cube} is {state}: {action} is not possible", _INSTEAD.get((state, action)))
