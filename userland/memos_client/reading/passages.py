"""Cutting long texts into passages of a bounded size, at the best place there is.

- Nothing is lost and nothing doubled: the passages, in order, hold every character of the text that is not white space, once.
- A text that fits is one passage, unchanged but for white space around it.
- Paragraphs are cut at the end of a sentence; where there is none at a line's end, a comma, a space, and only then inside a
  word, but never between a character and its accents or inside a joined emoji.
- Code, lists and tables stay whole up to `WHOLE_CHARS_MAX`, and are cut between lines beyond it.
- Blocks are gathered into a passage as long as they fit.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Final

from .blocks import Block, blocks

PASSAGE_CHARS_MAX: Final = 1200
"""About what the default embedder reads of a text (256 tokens)."""
WHOLE_CHARS_MAX: Final = 8192
"""Longest code, list or table that is kept whole."""
assert PASSAGE_CHARS_MAX <= WHOLE_CHARS_MAX

Span = tuple[int, int]

_STEPS_MAX: Final = 32
_SENTENCE: Final = re.compile(r"(?<![.!?…])[.!?…]++[\"'”’»)\]]*+(?=\s)|[。！？]++[」』”’]*+|\n[ \t]*\n")
_ABBREVIATED: Final = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|No|vs|e\.g|i\.e|etc|approx|[A-Z])\.$")
_CLAUSE: Final = re.compile(r"[;:,](?=\s)|[，；：、]|\s[–—-](?=\s)")
_JOINERS: Final = frozenset("\u200d\ufe0f\ufe0e\u20e3")


def passages(text: str, chars_max: int = PASSAGE_CHARS_MAX) -> list[str]:
    """A turn or a paragraph as passages."""
    if len(text) <= chars_max:
        whole = text.strip()
        return [whole] if whole else []
    return [text[start:end] for start, end in gather(text, blocks(text, headings=False), chars_max)]


def gather(text: str, found: list[Block], chars_max: int = PASSAGE_CHARS_MAX) -> Iterator[Span]:
    """Blocks put together into passages, and cut where one is too long by itself."""
    begun: Span | None = None
    for block in found:
        for start, end in pieces(text, block, chars_max):
            if begun is not None and end - begun[0] <= chars_max:
                begun = (begun[0], end)
                continue
            if begun is not None:
                yield begun
            begun = (start, end)
    if begun is not None:
        yield begun


def pieces(text: str, block: Block, chars_max: int = PASSAGE_CHARS_MAX) -> Iterator[Span]:
    """One block, whole if it may be, without the white space around it."""
    start, end = _stripped(text, block.start, block.end)
    prose = block.shape in ("paragraph", "heading", "front")
    if end - start <= (chars_max if prose else WHOLE_CHARS_MAX):
        if start < end:
            yield start, end
        return
    while (count := -(-(end - start) // chars_max)) > 1:
        # Passages of about one length: a rest of three words is worth less than it costs.
        limit = min(chars_max, (end - start) // count + chars_max // 16)
        at = _prose_cut(text, start, limit) if prose else _line_cut(text, start, limit)
        piece = _stripped(text, start, at)
        if piece[0] < piece[1]:
            yield piece
        start = _stripped(text, at, end)[0]
    if start < end:
        yield start, end


def sentence_ends(text: str, start: int, end: int) -> Iterator[int]:
    """Places after a sentence."""
    for found in _SENTENCE.finditer(text, start, end):
        if not _ABBREVIATED.search(text, max(start, found.end() - 8), found.end()):
            yield found.end()


def _prose_cut(text: str, start: int, limit: int) -> int:
    end = start + limit
    least = start + limit // 4
    best = 0
    for best in sentence_ends(text, start, end):  # noqa: B007  # The last one counts.
        pass
    if best > least:
        return best
    line = text.rfind("\n", least, end)
    if line > 0:
        return line
    clauses = [found.end() for found in _CLAUSE.finditer(text, least, end)]
    if clauses:
        return clauses[-1]
    for at in range(end, least, -1):
        if text[at - 1].isspace():
            return at
    return _hard_cut(text, end)


def _line_cut(text: str, start: int, limit: int) -> int:
    line = text.rfind("\n", start + limit // 4, start + limit)
    return line if line > 0 else _prose_cut(text, start, limit)


def _hard_cut(text: str, at: int) -> int:
    """Before `at`, not between a character and what belongs to it."""
    for back in range(_STEPS_MAX):
        here = at - back
        after, before = text[here], text[here - 1]
        joined = after in _JOINERS or before == "\u200d" or unicodedata.combining(after) or unicodedata.category(after) == "Mc"
        if not (joined or 0x1F3FB <= ord(after) <= 0x1F3FF or (_is_flag(before) and _is_flag(after))):
            return here
    return at


def _is_flag(char: str) -> bool:
    return 0x1F1E6 <= ord(char) <= 0x1F1FF


def _stripped(text: str, start: int, end: int) -> Span:
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end
