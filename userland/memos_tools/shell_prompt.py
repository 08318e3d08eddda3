"""The interactive side of memsh: a prompt with history, completion and a line that says where one is.

Completion offers commands, a command's options, the closed choices of an option, names of variables and the ids of
cubes that were seen lately. Ctrl-C ends the call or the line, Ctrl-D the shell. The history file holds the lines as
they were typed, contents included, with mode 0600; `MEMSH_HISTORY=` (empty) keeps none.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from memos_syscalls.errors import MemError

if TYPE_CHECKING:
    from .shell import Shell


class Completions(Completer):
    """What can stand at the cursor."""

    def __init__(self, shell: Shell) -> None:
        self.shell = shell

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        before = document.text_before_cursor
        words = before.split()
        current = "" if not words or before[-1:].isspace() else words.pop()
        for text, meaning in self.candidates(words, current):
            if text.startswith(current):
                yield Completion(text, start_position=-len(current), display_meta=meaning)

    def candidates(self, words: list[str], current: str) -> Iterable[tuple[str, str]]:
        """Everything that may follow these words, with a word on its meaning."""
        shell = self.shell
        if len(words) >= 2 and words[1] == "=":
            words = words[2:]
        if not words or words == ["help"]:
            yield from ((word, command.summary) for word, command in shell.commands.items())
            yield from ((word, summary) for word, (_, _, summary) in shell.builtins.items())
            return
        command = shell.commands.get(words[0])
        if current.startswith("$"):
            yield from (("$" + name, "variable") for name in shell.variables)
        elif current.startswith("-") and command is not None:
            yield from (("--" + name.replace("_", "-"), command.describe(name)) for name in command.fields)
        elif command is not None:
            option = words[-1].removeprefix("--").replace("-", "_")
            if words[-1].startswith("--") and option in command.fields and command.choices(option):
                yield from ((choice, "") for choice in command.choices(option))
            else:
                yield from ((cube_id, "cube") for cube_id in shell.recent)


def history() -> History:
    """The history file, made private before anything is written to it."""
    named = os.environ.get("MEMSH_HISTORY")
    if named == "":
        return InMemoryHistory()
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    path = Path(named) if named else state / "memos" / "memsh_history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))


def converse(shell: Shell, socket: str | None) -> bool:
    """Read and run lines until the end; whether all of them succeeded."""
    where, who = socket or "no kernel", "not connected"
    try:
        where = shell.kernel.path
        who = f"{shell.kernel.hello.principal}  log {shell.kernel.hello.log_id[:8]}"
    except MemError as error:
        shell.complain(error)
    session: PromptSession[str] = PromptSession(history=history(), completer=Completions(shell), complete_while_typing=False)
    good = True
    while not shell.ended:
        try:
            line = session.prompt("memsh> ", bottom_toolbar=f" {where}  {who}  `help` lists the commands ")
        except KeyboardInterrupt:
            continue
        except EOFError:
            break
        try:
            shell.run_line(line)
        except MemError as error:
            shell.complain(error)
            good = False
        except KeyboardInterrupt:
            shell.err.print("canceled", style="yellow")
            good = False
    return good
