"""From a line of text to the arguments of a syscall, and from a syscall to its help.

Nothing here knows a single syscall: commands, positional arguments, options and types are read from the table's
request models when the shell starts.

- A line is cut into words as a POSIX shell would: single quotes keep everything, double quotes and bare words expand
  `$NAME`, a backslash keeps the next character, `#` at the start of a word begins a comment.
- Positional arguments are the model's required fields in order, then `cube_id` and `content` where they are optional.
  Every field is also an option; a field given as an option takes no positional word. A list takes all words that are left.
- Types: booleans are flags (`--full`, `--no-full`); lists come from repeated options or commas; maps and lists of maps
  are JSON; `content` is text, `@FILE`, or `-` for standard input (`@@` stands for a literal `@`).

Descriptors (`fd`) are left out: the client library makes them for large content. Refusals are `MemInvalid`, as from
the kernel, so that a script sees one kind of error.
"""

from __future__ import annotations

import json
import re
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from memos_syscalls import messages as m
from memos_syscalls.errors import MemInvalid
from memos_syscalls.table import TABLE, Syscall

HIDDEN: Final = frozenset({"fd", "encoding"})
TRAILING: Final = ("prompt", "cubes", "cube_id", "content")
Kind = Literal["flag", "list", "numbers", "json", "content", "integer", "text"]

_REFERENCE: Final = re.compile(r"\$(?:\{(\w+(?:\.\w+)*)\}|(\w+(?:\.\w+)*))")
_NANOSECONDS: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6})(\d{1,3})(Z|[+-]\d\d:\d\d)")
"""RFC 3339 with more digits than microseconds, as replies print it."""


def split(line: str, lookup: Callable[[str], str]) -> list[str]:
    """The words of one line; `lookup` gives a variable's text or raises `MemInvalid`."""
    words: list[str] = []
    word: list[str] | None = None
    at, end = 0, len(line)
    while at < end:
        char = line[at]
        if char in " \t\r\n":
            if word is not None:
                words.append("".join(word))
            word, at = None, at + 1
            continue
        if char == "#" and word is None:
            break
        word = [] if word is None else word
        if char == "'":
            close = line.find("'", at + 1)
            if close < 0:
                raise MemInvalid("a single quote is not closed")
            word.append(line[at + 1 : close])
            at = close + 1
        elif char == '"':
            text, at = _double_quoted(line, at + 1, lookup)
            word.append(text)
        elif char == "\\" and at + 1 < end:
            word.append(line[at + 1])
            at += 2
        else:
            text, at = _expand(line, at, lookup)
            word.append(text)
    if word is not None:
        words.append("".join(word))
    return words


def _double_quoted(line: str, at: int, lookup: Callable[[str], str]) -> tuple[str, int]:
    parts: list[str] = []
    while at < len(line):
        if line[at] == '"':
            return "".join(parts), at + 1
        if line[at] == "\\" and line[at + 1 : at + 2] in ('"', "\\", "$", "n"):
            parts.append("\n" if line[at + 1] == "n" else line[at + 1])
            at += 2
        else:
            text, at = _expand(line, at, lookup)
            parts.append(text)
    raise MemInvalid("a double quote is not closed")


def _expand(line: str, at: int, lookup: Callable[[str], str]) -> tuple[str, int]:
    found = _REFERENCE.match(line, at)
    if found is None:
        return line[at], at + 1
    return lookup(found[1] or found[2]), found.end()


def core(annotation: Any) -> Any:
    """An annotation without `Annotated` and `| None`."""
    while True:
        origin = get_origin(annotation)
        if origin is Annotated:
            annotation = get_args(annotation)[0]
        elif origin in (Union, types.UnionType):
            rest = [a for a in get_args(annotation) if a is not type(None)]
            if len(rest) != 1:
                return annotation
            annotation = rest[0]
        else:
            return annotation


def kind_of(annotation: Any) -> Kind:
    """How the words of an option become a value of this type."""
    plain = core(annotation)
    origin = get_origin(plain) or plain
    if origin is bool:
        return "flag"
    if origin in (Union, types.UnionType):
        return "content"
    if origin is dict:
        return "json"
    if origin in (list, tuple):
        item = core(get_args(plain)[0])
        if item is float:
            return "numbers"
        return "json" if isinstance(item, type) and issubclass(item, BaseModel) else "list"
    return "integer" if origin is int else "text"


@dataclass(frozen=True)
class Command:
    """One shell command, derived from a row of the table."""

    call: Syscall

    @property
    def word(self) -> str:
        return self.call.command

    @cached_property
    def fields(self) -> dict[str, FieldInfo]:
        return {name: info for name, info in self.call.request.model_fields.items() if name not in HIDDEN}

    @cached_property
    def kinds(self) -> dict[str, Kind]:
        return {name: kind_of(info.annotation) for name, info in self.fields.items()}

    @cached_property
    def positional(self) -> tuple[str, ...]:
        required = [name for name, info in self.fields.items() if info.is_required()]
        names = [*required, *(name for name in TRAILING if name in self.fields and name not in required)]
        lists = [at for at, name in enumerate(names) if self.kinds[name] == "list"]
        return tuple(names[: lists[0] + 1] if lists else names)

    @property
    def summary(self) -> str:
        return (self.call.request.__doc__ or "").strip().splitlines()[0]

    def parse(self, words: Sequence[str]) -> m.Request:
        """The request that these words ask for; anything that is wrong with them is `MemInvalid`."""
        given, loose = self._options(words)
        values: dict[str, Any] = {name: self._value(name, texts) for name, texts in given.items()}
        for name in self.positional:
            if name in values or not loose:
                continue
            taken = loose if self.kinds[name] == "list" else loose[:1]
            loose = loose[len(taken) :]
            values[name] = self._value(name, taken)
        if loose:
            raise MemInvalid(f"{self.word} has no place for the word '{loose[0]}'", f"`help {self.word}` shows its arguments.")
        try:
            return self.call.request.model_validate(values)
        except ValidationError as error:
            raise MemInvalid(complaint(error), f"`help {self.word}` shows its arguments.") from error

    def _options(self, words: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
        given: dict[str, list[str]] = {}
        loose: list[str] = []
        rest: Iterator[str] = iter(words)
        for word in rest:
            if word == "--":
                loose.extend(rest)
            elif not word.startswith("--"):
                loose.append(word)
            else:
                option, equals, text = word[2:].partition("=")
                name = option.replace("-", "_")
                negated = name.startswith("no_") and self.kinds.get(name[3:]) == "flag"
                name = name[3:] if negated else name
                if name not in self.fields:
                    raise MemInvalid(f"{self.word} has no option --{option}", f"`help {self.word}` shows its arguments.")
                if self.kinds[name] == "flag" and not equals:
                    text = "false" if negated else "true"
                elif not equals:
                    following = next(rest, None)
                    if following is None:
                        raise MemInvalid(f"--{option} needs a value")
                    text = following
                given.setdefault(name, []).append(text)
        return given, loose

    def _value(self, name: str, texts: Sequence[str]) -> Any:
        kind = self.kinds[name]
        if kind == "list":
            return [part for text in texts for part in text.split(",") if part]
        text = texts[-1]
        if len(texts) > 1:
            raise MemInvalid(f"--{name.replace('_', '-')} is given {len(texts)} times", "Give it once.")
        if kind == "content":
            return content(text)
        if kind == "json" or (kind == "numbers" and text.startswith("[")):
            return _json(name, text)
        if kind == "numbers":
            return text.split(",")
        return _integer(text) if kind == "integer" else text

    def usage(self) -> str:
        """One line: the command with its positional words."""
        words = [self.word]
        for name in self.positional:
            shown = name.upper() + ("…" if self.kinds[name] == "list" else "")
            words.append(shown if self.fields[name].is_required() else f"[{shown}]")
        for name, info in self.fields.items():
            if info.is_required() and name not in self.positional:
                words.append(f"--{name.replace('_', '-')} {name.upper()}")
        return " ".join([*words, "[options]"])

    def choices(self, name: str) -> tuple[str, ...]:
        """The words that an option accepts, where they are a closed set."""
        plain = core(self.fields[name].annotation)
        if get_origin(plain) in (list, tuple):
            plain = core(get_args(plain)[0])
        return tuple(str(choice) for choice in get_args(plain)) if get_origin(plain) is Literal else ()

    def describe(self, name: str) -> str:
        """What a field means, its choices and its default."""
        info = self.fields[name]
        parts = [info.description or ""]
        if choices := self.choices(name):
            parts.append("One of " + ", ".join(choices) + ".")
        if info.is_required():
            parts.append("Required.")
        elif info.default not in (None, False) and isinstance(info.default, str | int):
            parts.append(f"Default {info.default}.")
        return " ".join(part for part in parts if part)


COMMANDS: Final[dict[str, Command]] = {call.command: Command(call) for call in TABLE}


def content(text: str) -> str | bytes:
    """Content as it stands in a command: text, `@FILE`, `-` for standard input, `@@…` for a literal `@`."""
    if text.startswith("@@"):
        return text[1:]
    if text != "-" and not text.startswith("@"):
        return text
    try:
        data = sys.stdin.buffer.read() if text == "-" else Path(text[1:]).read_bytes()
    except OSError as error:
        advice = "Name a readable file, or write @@ for a literal @."
        raise MemInvalid(f"cannot read {text[1:]} ({error.strerror})", advice) from error
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def complaint(error: ValidationError) -> str:
    """Every problem that pydantic found, in one line."""
    problems: list[str] = []
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        where = ".".join(str(part) for part in problem["loc"])
        what = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "string_pattern_mismatch":
            what = "not a cube id, which is a UUID in lower case"  # The ABI has no other pattern.
        problems.append(f"{where}: {what}" if where else what)
    return "; ".join(problems)


def _integer(text: str) -> int | str:
    """Digits as a number, a time with nanoseconds as nanoseconds; anything else is left to the model to judge."""
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    if found := _NANOSECONDS.fullmatch(text):
        whole = m.nanoseconds(found[1] + found[3])
        assert isinstance(whole, int)
        return whole + int(found[2].ljust(3, "0"))
    return text


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise MemInvalid(f"{name} is not JSON ({error})", "Put JSON in single quotes, such as '{\"room\": 12}'.") from error
