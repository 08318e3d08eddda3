"""Blocks of a text: paragraphs, lists, code, tables and headings, as places in it.

Blocks stand in the text's order, do not overlap, and leave out nothing but white space. The rules are those of Markdown that
show in its lines; chat turns follow them too, since models write Markdown.

- A fence (three or more backticks or tildes) runs to its like, or to the end of the text where it is never closed.
- A list runs over its items, their indented lines, and blank lines between them. A table is lines that begin with a bar.
- A heading is one to six `#` and a space, or one line underlined with `=` or `-`.
- Front matter is `---` in the first line, to the next `---`.
- Everything else between blank lines is a paragraph.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

Shape = Literal["paragraph", "list", "code", "table", "heading", "front"]

TITLE_CHARS_MAX: Final = 200

_FENCE: Final = re.compile(r" {0,3}(`{3,}|~{3,})")
_ITEM: Final = re.compile(r" {0,3}(?:[-*+•]|\d{1,9}[.)])[ \t]")
_HEADING: Final = re.compile(r" {0,3}(#{1,6})[ \t]+(\S.*)")
_UNDERLINE: Final = re.compile(r" {0,3}(=+|-{2,})[ \t]*$")


@dataclass(frozen=True, slots=True)
class Block:
    """`text[start:end]`; level and title are a heading's."""

    shape: Shape
    start: int
    end: int
    level: int = 0
    title: str = ""


class _Line(NamedTuple):
    start: int
    end: int
    text: str

    @property
    def is_blank(self) -> bool:
        return not self.text or self.text.isspace()

    @property
    def is_indented(self) -> bool:
        return self.text.startswith((" ", "\t"))


def blocks(text: str, *, headings: bool = True) -> list[Block]:
    """The blocks of a text. Without `headings` a line that begins with `#` is a line like any other, as in a chat."""
    lines = list(_lines(text))
    found: list[Block] = []
    at = 0
    if headings and lines and lines[0].text.rstrip() == "---":
        closing = next((n for n in range(1, len(lines)) if lines[n].text.rstrip() == "---"), None)
        if closing is not None:
            found.append(Block("front", 0, lines[closing].end))
            at = closing + 1
    while at < len(lines):
        if lines[at].is_blank:
            at += 1
            continue
        block, at = _block(lines, at, headings)
        found.append(block)
    return found


def _block(lines: list[_Line], at: int, headings: bool) -> tuple[Block, int]:
    """The block that begins in this line, and the line after it."""
    line = lines[at]
    if fence := _FENCE.match(line.text):
        mark, end = fence[1], at + 1
        while end < len(lines) and not _closes(lines[end].text, mark):
            end += 1
        last = min(end, len(lines) - 1)
        return Block("code", line.start, lines[last].end), last + 1
    if headings and (found := _HEADING.match(line.text)):
        return Block("heading", line.start, line.end, len(found[1]), title(found[2])), at + 1
    if _ITEM.match(line.text):
        last = _list_end(lines, at)
        return Block("list", line.start, lines[last].end), last + 1
    if line.text.lstrip().startswith("|"):
        last = at
        while last + 1 < len(lines) and lines[last + 1].text.lstrip().startswith("|"):
            last += 1
        return Block("table", line.start, lines[last].end), last + 1
    if headings and at + 1 < len(lines) and (below := _UNDERLINE.match(lines[at + 1].text)):
        return Block("heading", line.start, lines[at + 1].end, 1 if below[1][0] == "=" else 2, title(line.text)), at + 2
    last = at
    while last + 1 < len(lines) and not _parts(lines[last + 1], headings):
        last += 1
    return Block("paragraph", line.start, lines[last].end), last + 1


def title(text: str) -> str:
    """A heading's words, without closing marks, and not longer than a title is."""
    return text.strip().rstrip("#").strip()[:TITLE_CHARS_MAX]


def _closes(line: str, mark: str) -> bool:
    bare = line.strip()
    return len(bare) >= len(mark) and bare == mark[0] * len(bare)


def _parts(line: _Line, headings: bool) -> bool:
    """Whether a paragraph ends before this line."""
    return (
        line.is_blank or _FENCE.match(line.text) is not None or _ITEM.match(line.text) is not None
        or (headings and _HEADING.match(line.text) is not None)
    )  # fmt: skip


def _list_end(lines: list[_Line], at: int) -> int:
    last = at
    while last + 1 < len(lines):
        line = lines[last + 1]
        if line.is_blank:
            ahead = last + 2
            while ahead < len(lines) and lines[ahead].is_blank:
                ahead += 1
            if ahead >= len(lines) or not (lines[ahead].is_indented or _ITEM.match(lines[ahead].text)):
                return last
            last = ahead
        elif (_FENCE.match(line.text) and not line.is_indented) or _HEADING.match(line.text):
            return last
        else:
            last += 1
    return last


def _lines(text: str) -> Iterator[_Line]:
    start = 0
    while start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        yield _Line(start, end, text[start:end])
        start = end + 1
