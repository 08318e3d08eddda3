"""The turns of a file, read: cut into passages, with their times, names and types.

`read` gives the same for the same file, and for a file that grew the same as far as it went before. A turn that is cut
stays one turn: its passages have its id, its speaker and its time, follow each other in the session, and say which part
they are.

Metadata that is added: `times` (lists of expression, first day, last day), `entities`, `part` (`[2, 3]`: the second of
three), and `turn`, the place of the whole turn, where cutting earlier turns of its session moved it. What the file's own
metadata says under these names is left as it is.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterable, Iterator
from typing import Any, Final

from memos_dates.moments import times

from ..formats import Turn
from .kinds import kind
from .names import Names
from .passages import passages

_NS: Final = 10**9


def read(turns: Iterable[Turn]) -> list[Turn]:
    """Every turn or its passages, in order, with what is known of them by rule."""
    names = Names()
    return [_known(turn, names) for turn in cut(turns)]


def cut(turns: Iterable[Turn]) -> Iterator[Turn]:
    """Long turns as passages; positions count passages, so each place in a session is one passage."""
    added: dict[int | str, int] = {}
    for turn in turns:
        if turn.kind is not None:
            yield turn  # A document's passages come cut.
            continue
        before = added.get(turn.session, 0)
        texts, captions = passages(turn.text) or [""], passages(turn.caption or "")
        # A caption belongs to the last thing said; what does not fit beside it goes on by itself.
        pairs: list[tuple[str, str | None]] = [(text, None) for text in texts]
        pairs[-1] = (texts[-1], captions[0] if captions else None)
        pairs += [("", more) for more in captions[1:]]
        metadata = {**turn.metadata, "turn": turn.position} if before or len(pairs) > 1 else turn.metadata
        for number, (text, caption) in enumerate(pairs):
            yield dataclasses.replace(
                turn, text=text, caption=caption, position=turn.position + before + number, metadata=metadata,
                part=(number + 1, len(pairs)) if len(pairs) > 1 else None,
            )  # fmt: skip
        added[turn.session] = before + len(pairs) - 1


def said_on(time: int | None) -> dt.date | None:
    """The day of a time, in UTC; None where the calendar does not have it."""
    if time is None:
        return None
    try:
        return dt.datetime.fromtimestamp(time // _NS, dt.UTC).date()
    except (OverflowError, ValueError, OSError):
        return None


def _known(turn: Turn, names: Names) -> Turn:
    said = said_on(turn.time)
    found = times(turn.text, said)
    names.know(turn.speaker)
    entities = names.of(turn.text)
    added: dict[str, Any] = {}
    if found:
        added["times"] = [list(entry) for entry in found]
    if entities:
        added["entities"] = entities
    return dataclasses.replace(
        turn,
        kind=turn.kind or kind(turn.text, turn.speaker, found, said),
        metadata={**added, **turn.metadata} if added else turn.metadata,
    )
