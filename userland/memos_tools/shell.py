"""memsh: the shell of the MemOS kernel, for people and for scripts.

    memsh [--socket PATH] [--json] [-c 'COMMAND' | SCRIPT | WORD…]

One command per row of the syscall table, and a few words of its own: `ingest`, `set`, `echo`, `help`, `exit`. Without a
command it is interactive on a terminal, and reads a script from standard input otherwise.

- `set NAME VALUE` names a value; `NAME = command …` names a reply. `$NAME` is then the value, or the reply's cube id (a
  fork's namespace); `$NAME.offset`, `$NAME.report.receipt` and so on are the reply's other fields.
- A script stops at its first error, unless the line begins with `-`: then the error is shown and the script goes on.
- Replies go to standard output, errors to standard error as `ECONFLICT: detail. advice`.
- The exit status is 0 if and only if every command succeeded (those begun with `-` may fail), 130 after Ctrl-C.

The shell holds no state of its own but the variables; it connects when the first command needs the kernel.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, TextIO, cast

from pydantic import BaseModel
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from memos_client import Kernel, ingest
from memos_syscalls import messages as m
from memos_syscalls.errors import MemError, MemInvalid, MemProtocol, MemUnreachable
from memos_syscalls.table import Flag

from . import render
from .shell_args import COMMANDS, Command, split
from .shell_ingest import COMMAND as INGEST

RECENT_IDS_MAX: Final = 64
"""Cube ids that completion offers."""
INTERRUPTED: Final = 130
_NAME: Final = re.compile(r"[A-Za-z_]\w*")


class Connection(Protocol):
    """A kernel as the shell sees it: one method per syscall, found by name."""

    hello: m.SysHelloReply
    path: str

    def close(self) -> None: ...


class Shell:
    """Runs commands; every refusal is a `MemError`."""

    def __init__(self, connect: Callable[[], Connection], out: Console, err: Console, *, json: bool = False) -> None:
        self._connect = connect
        self._kernel: Connection | None = None
        self.out = out
        self.err = err
        self.json = json
        self.variables: dict[str, Any] = {}
        self.recent: list[str] = []
        self.ended = False
        self.commands: dict[str, Command] = {**COMMANDS, INGEST.word: INGEST}
        self.builtins: dict[str, tuple[Callable[[Sequence[str]], None], str, str]] = {
            "set": (self._set, "set NAME VALUE", "Name a value; $NAME stands for it from then on."),
            "echo": (self._echo, "echo WORD…", "Print words."),
            "help": (self._help, "help [COMMAND]", "List the commands, or explain one."),
            "exit": (self._exit, "exit", "Leave the shell or end the script."),
        }

    @property
    def kernel(self) -> Connection:
        if self._kernel is None:
            self._kernel = self._connect()
        return self._kernel

    def close(self) -> None:
        if self._kernel is not None:
            self._kernel.close()
            self._kernel = None

    def run_line(self, line: str) -> None:
        """One line of a script, without its `-`."""
        self.run_words(split(line, self.lookup))

    def run_words(self, words: Sequence[str]) -> None:
        """One command, already cut into words."""
        if not words:
            return
        name: str | None = None
        if len(words) > 1 and words[1] == "=":
            name, words = words[0], words[2:]
            if not _NAME.fullmatch(name) or not words:
                raise MemInvalid(f"'{name} =' needs a name and a command", "Write NAME = command …")
        word, rest = words[0], words[1:]
        if word in self.builtins:
            self.builtins[word][0](rest)
        elif word in self.commands:
            reply = self._call(self.commands[word], rest)
            if name is not None:
                self.variables[name] = reply
        else:
            raise MemInvalid(f"there is no command '{word}'", "`help` lists the commands.")

    def run_script(self, lines: Iterable[str]) -> bool:
        """All lines until the first error that counts; whether there was none."""
        for line in lines:
            text = line.strip()
            forgiven = text.startswith("-")
            try:
                self.run_line(text[1:] if forgiven else text)
            except MemError as error:
                self.complain(error)
                if not forgiven:
                    return False
            if self.ended:
                break
        return True

    def complain(self, error: MemError) -> None:
        self.out.file.flush()
        if self.err.is_terminal:
            self.err.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        else:
            self.err.file.write(f"{error}\n")
        self.err.file.flush()
        if isinstance(error, MemUnreachable):
            with contextlib.suppress(MemError, OSError):
                self.close()
            self._kernel = None

    def lookup(self, reference: str) -> str:
        """The text of `$NAME` or `$NAME.field`."""
        name, _, path = reference.partition(".")
        if name not in self.variables:
            raise MemInvalid(f"${name} is not set", "Use `set NAME VALUE` or `NAME = command …` first.")
        value: Any = self.variables[name]
        if isinstance(value, str):
            return value + (f".{path}" if path else "")
        value = render.plain_json(value)
        for step in path.split(".") if path else [next((f for f in ("cube_id", "namespace", "offset") if f in value), "")]:
            try:
                value = value[int(step)] if isinstance(value, list) else value[step]
            except (KeyError, IndexError, ValueError, TypeError) as error:
                raise MemInvalid(f"${reference} is not in that reply", "--json shows all fields of a reply.") from error
        return value if isinstance(value, str) else render.to_json(value)

    def emit(self, blocks: Sequence[render.Block], value: Any) -> None:
        """One command's output, in the form that was asked for."""
        if self.json:
            self.out.file.write(render.to_json(value) + "\n")
        else:
            render.print_blocks(self.out, blocks)
        self.out.file.flush()

    def _call(self, command: Command, words: Sequence[str]) -> m.Reply:
        if command is INGEST:
            reply = self._ingest(command, words)
        elif Flag.STREAM in command.call.flags:
            reply = self._follow(command, words)
        else:
            reply = self._system(command, command.parse(words))
        if Flag.STREAM not in command.call.flags:
            self._remember(reply)
            self.emit(render.blocks(reply), reply)
        return reply

    def _system(self, command: Command, request: m.Request) -> m.Reply:
        """One syscall. The two that are about the connection itself are the client library's, which made it."""
        if isinstance(request, m.SysHello):
            hello = self.kernel.hello
            if hello.abi != request.abi:
                raise MemProtocol(f"this connection speaks ABI {hello.abi}, not {request.abi}")
            return hello
        if Flag.SESSION in command.call.flags:
            raise MemInvalid("the shell has one call in progress at a time", "Press Ctrl-C to cancel it.")
        if isinstance(request, m.MemInfer) and request.stream:
            return self._say(_arguments(request))
        reply: m.Reply = getattr(self.kernel, command.call.name)(**_arguments(request))
        if isinstance(reply, m.MemMapReply):
            os.close(reply.fd)  # Nobody here looks into it; what it holds is told.
        return reply

    def _say(self, arguments: dict[str, Any]) -> m.Reply:
        """An answer's pieces as they come, then what there is to say about it."""
        whole: m.MemInferReply | None = None
        with cast("Kernel", self.kernel).mem_infer(**arguments) as pieces:
            for piece in pieces:
                whole = piece.reply or whole
                if not self.json:
                    self.out.file.write(piece.text)
                    self.out.file.flush()
        if whole is None:
            raise MemProtocol("the answer ended before it was whole")
        if self.json:
            return whole
        self.out.file.write("\n")
        return whole.model_copy(update={"text": ""})

    def _follow(self, command: Command, words: Sequence[str]) -> m.Reply:
        """Print a stream's items as they come, until Ctrl-C or `--count N`; the last item is the reply."""
        count, rest = _taken_count(words)
        request = command.parse(rest)
        last = m.Reply()
        stream: Iterator[m.Reply] = iter(getattr(self.kernel, command.call.name)(**_arguments(request)))
        try:
            while count is None or count > 0:
                item = next(stream, None)
                if item is None:
                    break
                self.emit(render.blocks(item), item)
                last, count = item, None if count is None else count - 1
        except KeyboardInterrupt:
            if count is not None:
                raise
        finally:
            close = getattr(stream, "close", None)
            if close is not None:
                close()
        return last

    def _ingest(self, command: Command, words: Sequence[str]) -> m.Reply:
        request = command.parse(words)
        assert isinstance(request, ingest.IngestRequest)
        kernel = cast(ingest.Ingestible, self.kernel)
        if not self.out.is_terminal:
            return ingest.ingest(kernel, request.file, request.format, request.namespace, extract=request.endpoint())
        columns = (TextColumn("ingest"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.out, transient=True) as bar:
            task = bar.add_task("ingest", total=None)

            def progress(done: int, total: int) -> None:
                bar.update(task, completed=done, total=total)

            return ingest.ingest(kernel, request.file, request.format, request.namespace, progress, extract=request.endpoint())

    def _remember(self, reply: m.Reply) -> None:
        ids = [getattr(reply, "cube_id", None)]
        for field in ("cubes", "hits", "items"):
            listed = getattr(reply, field, None)
            ids += [getattr(entry, "cube_id", None) for entry in listed] if isinstance(listed, list) else []
        fresh = [one for one in ids if isinstance(one, str)]
        self.recent = list(dict.fromkeys([*fresh, *self.recent]))[:RECENT_IDS_MAX]

    def _set(self, words: Sequence[str]) -> None:
        if len(words) != 2 or not _NAME.fullmatch(words[0]):
            raise MemInvalid("set takes a name and a value", "Quote a value of several words.")
        self.variables[words[0]] = words[1]

    def _echo(self, words: Sequence[str]) -> None:
        text = " ".join(words)
        self.emit([render.Line(text)], {"echo": text})

    def _exit(self, words: Sequence[str]) -> None:
        if words:
            raise MemInvalid("exit takes no words")
        self.ended = True

    def _help(self, words: Sequence[str]) -> None:
        if not words:
            rows = [(command.word, command.summary) for command in self.commands.values()]
            rows += [(word, summary) for word, (_, _, summary) in self.builtins.items()]
            advice = render.Line("`help COMMAND` explains one; NAME = command … names its reply, $NAME uses it.", "dim")
            self.emit([render.Rows(("command", "what it does"), rows), advice], {"commands": dict(rows)})
        elif words[0] in self.builtins:
            _, usage, summary = self.builtins[words[0]]
            self.emit([render.Line(usage, "bold"), render.Line(summary)], {"usage": usage, "summary": summary})
        elif words[0] in self.commands:
            self._explain(self.commands[words[0]])
        else:
            raise MemInvalid(f"there is no command '{words[0]}'", "`help` lists the commands.")

    def _explain(self, command: Command) -> None:
        about = " ".join((command.call.request.__doc__ or "").split())
        rows = [("--" + name.replace("_", "-"), command.describe(name)) for name in command.fields]
        if Flag.STREAM in command.call.flags:
            rows.append(("--count", "Stop after this many items; without it, Ctrl-C stops."))
        blocks: list[render.Block] = [
            render.Line(command.usage(), "bold"),
            render.Line(about),
            render.Rows(("option", "meaning"), rows),
            render.Line(f"example: {command.call.example}", "dim"),
        ]
        shown = {"usage": command.usage(), "summary": about, "options": dict(rows), "example": command.call.example}
        self.emit(blocks, shown)


def _arguments(request: BaseModel) -> dict[str, Any]:
    """The fields that were given, and no defaults: those are the kernel's to choose."""
    return {name: getattr(request, name) for name in type(request).model_fields if name in request.model_fields_set}


def _taken_count(words: Sequence[str]) -> tuple[int | None, list[str]]:
    rest, count = list(words), None
    for at, word in enumerate(rest):
        if word == "--count" or word.startswith("--count="):
            text = word.partition("=")[2] if "=" in word else "".join(rest[at + 1 : at + 2])
            if not text.isdigit():
                raise MemInvalid("--count needs a number")
            count = int(text)
            del rest[at : at + (1 if "=" in word else 2)]
            break
    return count, rest


def _script(path: str) -> TextIO:
    try:
        return sys.stdin if path == "-" else Path(path).open(encoding="utf-8")
    except OSError as error:
        detail = f"'{path}' is neither a command nor a script that can be read ({error.strerror})"
        raise MemInvalid(detail, "`memsh help` lists the commands.") from error


def _run(shell: Shell, options: argparse.Namespace) -> bool:
    words: list[str] = options.words
    if options.command is not None:
        return shell.run_script(options.command.splitlines())
    if not words and sys.stdin.isatty():
        # Imported late: completion and history cost a script's start more than its commands do.
        from . import shell_prompt

        return shell_prompt.converse(shell, options.socket)
    if not words or (len(words) == 1 and words[0] not in shell.commands and words[0] not in shell.builtins):
        with _script(words[0] if words else "-") as lines:
            return shell.run_script(lines)
    shell.run_words(words)
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """The `memsh` command; returns its exit status."""
    parser = argparse.ArgumentParser("memsh", description="The shell of the MemOS kernel. `memsh help` lists its commands.")
    parser.add_argument("--socket", help="the kernel's socket (default: $MEMOS_SOCKET, then the default path)")
    parser.add_argument("--json", action="store_true", help="one JSON line for each command")
    parser.add_argument("-c", dest="command", help="run this command, or several on lines of their own")
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="SCRIPT | WORD…", help="a script, or one command")
    options = parser.parse_args(argv)

    def connect() -> Connection:
        from memos_client import Kernel

        return Kernel.connect(options.socket)

    shell = Shell(connect, Console(file=sys.stdout), Console(file=sys.stderr), json=options.json)
    try:
        return 0 if _run(shell, options) else 1
    except MemError as error:
        shell.complain(error)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader went away; what is still buffered must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    finally:
        shell.close()


if __name__ == "__main__":
    sys.exit(main())
