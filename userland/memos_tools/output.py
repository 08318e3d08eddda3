"""Where memctl's answers go: blocks for people, one JSON line per answer for machines.

- `show` is the only way to standard output; with `--json` the blocks are left out, without it the data is.
- Progress goes to standard error, on a terminal only, and never with `--json`.
- `Trouble` is an error of use or of opening (exit status 2); its text ends with what to do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from . import render
from .render import Block

GOOD, BAD, UNUSABLE = 0, 1, 2
"""Exit statuses: all is well, problems were found, the command or the directory cannot be used."""


class Trouble(Exception):
    """The command cannot be carried out; the message says why and what to do."""


def _nowhere(_done: int) -> None:
    """Progress that nobody watches."""


class Output:
    """Standard output and error of one command."""

    def __init__(self, out: Console, err: Console, *, json: bool = False) -> None:
        self.out = out
        self.err = err
        self.json = json

    def show(self, data: Any, *blocks: Block) -> None:
        if self.json:
            self.out.file.write(render.to_json(data) + "\n")
        else:
            render.print_blocks(self.out, blocks)
        self.out.file.flush()

    @contextlib.contextmanager
    def progress(self, title: str, total: int | None) -> Generator[Callable[[int], None]]:
        """A function that takes how many records are done."""
        if self.json or not self.err.is_terminal:
            yield _nowhere
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.err, transient=True) as bar:
            task = bar.add_task(title, total=total)
            yield lambda done: bar.update(task, completed=done)

    def confirm(self, question: str, word: str) -> bool:
        """Whether the user types exactly this word; no terminal means no."""
        if not self.err.is_terminal:
            return False
        self.err.print(question, end=" ", markup=False)
        return input().strip() == word
