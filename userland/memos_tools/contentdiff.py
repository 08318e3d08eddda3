"""In a few words, how a version's content differs from the one before it. For people; `mem_diff` has the whole of it.

Short texts are quoted; longer ones are counted by lines, other bytes by their number. What was erased says so.
"""

from __future__ import annotations

import difflib
from typing import Final

from memos_kernel.events import Damaged
from memos_kernel.state import Cube, View
from memos_kernel.vault import Vault
from memos_syscalls.errors import MemShredded

QUOTED_CHARACTERS: Final = 40
COMPARED_LINES: Final = 2000
"""Comparing takes time that grows with the square of the lines."""
ERASED: Final = "(erased)"


def change_of(view: View, vault: Vault, cube: Cube, before: int | None, after: int) -> str:
    """The content of one version of a cube against an earlier one's; alone when there is none."""
    new = _content(view, vault, cube, after)
    old = _content(view, vault, cube, before) if before is not None else None
    if isinstance(new, str) and new == ERASED:
        return ERASED
    if old is None or old == ERASED:
        return f"+ {_brief(new)}"
    if old == new:
        return "same content"
    if not isinstance(old, str) or not isinstance(new, str):
        return f"{_brief(old)} -> {_brief(new)}"
    old_lines, new_lines = old.splitlines(), new.splitlines()
    if max(len(old_lines), len(new_lines)) <= 1 or max(len(old_lines), len(new_lines)) > COMPARED_LINES:
        return f"{_brief(old)} -> {_brief(new)}"
    signs = [line[0] for line in difflib.ndiff(old_lines, new_lines)]
    return f"+{signs.count('+')} -{signs.count('-')} lines"


def _content(view: View, vault: Vault, cube: Cube, version: int) -> str | bytes | None:
    """Text, or bytes that are none; None when the view does not hold the version."""
    found = view.version(cube, version)
    if found is None:
        return None
    try:
        content = vault.open_content(found[0])
    except MemShredded:
        return ERASED
    except Damaged as error:
        return f"(damaged: {error})"
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content


def _brief(content: str | bytes | None) -> str:
    if not isinstance(content, str):
        return f"{len(content or b'')} bytes"
    if "\n" in content or len(content) > QUOTED_CHARACTERS:
        lines = len(content.splitlines())
        return f"{len(content)} characters" + (f" in {lines} lines" if lines > 1 else "")
    return f"'{content}'"
