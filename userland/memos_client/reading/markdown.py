"""Markdown into passages that know the headings they stand under.

A heading begins a passage and is part of its text; the passages after it under the same heading carry the heading as context.
Headings that follow one another without text between them begin one passage together. A heading that is a date, or `date:` in
front matter, is the time of what stands under it, until a heading of the same or a higher level.
"""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass
from typing import Final

from memos_dates.moments import whole_date

from .blocks import Block, blocks
from .passages import PASSAGE_CHARS_MAX, Span, pieces

HEADING_CHARS_MAX: Final = 400
"""Headings up to this size stay with what follows them, even where that fills a passage by itself."""
_FRONT_DATE: Final = re.compile(r"^date:[ \t]*[\"']?(\d{4}-\d\d-\d\d)\b", re.MULTILINE | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Passage:
    """Text as it stands in the file; `context` has those of `headings` that the text does not hold itself."""

    text: str
    headings: tuple[str, ...]
    context: str | None
    is_code: bool
    date: dt.date | None


def markdown(text: str, chars_max: int = PASSAGE_CHARS_MAX) -> list[Passage]:
    """The passages of a file, in order."""
    reader = _Reader(text, chars_max)
    for block in blocks(text):
        reader.take(block)
    reader.close()
    return reader.passages


class _Reader:
    """Goes through the blocks with the passage that was begun, and the headings that it stands under."""

    def __init__(self, text: str, chars_max: int) -> None:
        self.passages: list[Passage] = []
        self._text = text
        self._chars_max = chars_max
        self._path: list[tuple[int, str, dt.date | None]] = []
        self._date: dt.date | None = None
        self._begun: Span | None = None
        self._own: set[str] = set()
        """Titles of the headings inside the passage that was begun."""
        self._has_text = False
        self._shapes: set[str] = set()

    def take(self, block: Block) -> None:
        if block.shape == "heading":
            if self._has_text:
                self.close()
            self._path = [entry for entry in self._path if entry[0] < block.level]
            self._path.append((block.level, block.title, whole_date(block.title)))
        if block.shape == "front":
            self._date = _front_date(self._text[block.start : block.end])
        for span in pieces(self._text, block, self._chars_max):
            self._take_piece(block, span)

    def _take_piece(self, block: Block, span: Span) -> None:
        if self._begun is not None and span[1] - self._begun[0] > self._chars_max:
            start, end = self._begun
            if self._has_text or end - start > HEADING_CHARS_MAX:
                self.close()
        self._begun = (span[0] if self._begun is None else self._begun[0], span[1])
        if block.shape == "heading":
            self._own.add(block.title)
        else:
            self._has_text = True
            self._shapes.add(block.shape)

    def close(self) -> None:
        if self._begun is None:
            return
        titles = [title for _level, title, _date in self._path]
        context = " > ".join(title for title in titles if title not in self._own)
        dates = [date for _level, _title, date in self._path if date is not None]
        self.passages.append(
            Passage(
                self._text[self._begun[0] : self._begun[1]],
                tuple(titles),
                context or None,
                self._shapes == {"code"},
                dates[-1] if dates else self._date,
            )
        )
        self._begun, self._own, self._has_text, self._shapes = None, set(), False, set()


def _front_date(text: str) -> dt.date | None:
    found = _FRONT_DATE.search(text)
    return whole_date(found[1]) if found else None
