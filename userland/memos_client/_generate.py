"""Writes `_calls.py`, the typed methods of both clients, from the table: `python -m memos_client._generate [--check]`.

Rules: `query`, `prompt`, ids, `items`, `namespace`, `to` and `content` come first, in that order, and may be given by position;
then the other required arguments; all others are keyword-only and None when absent, which means the kernel's default.
`fd` and `encoding` are the library's business and are left out. Docstrings are the models' descriptions.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from memos_syscalls import messages as m
from memos_syscalls.table import TABLE, Flag, Syscall

TARGET: Final = Path(__file__).with_name("_calls.py")
COLUMNS: Final = 116
POSITIONAL: Final = ("query", "prompt", "cube_id", "cube_ids", "items", "strategy", "namespace", "to", "content")
OFTEN: Final = ("prompt", "cube_id", "namespace", "content")
"""By position though not required."""
HIDDEN: Final = frozenset({"fd", "encoding"})
LAST: Final = ("expect_version", "request_id", "actor_note", "deadline_ms")
ALIASES: Final = {m.Form: "m.Form", m.State: "m.State", m.Origin: "m.Origin", m.Tier: "m.Tier"}

HEAD: Final = '''\
"""Every syscall as a typed method. GENERATED from the table by `python -m memos_client._generate`: do not edit.

`Calls` and `AsyncCalls` know names and types only; `Kernel` and `AsyncKernel` give them a socket. An argument that is
left out, or None, takes the kernel's default.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from typing import Any, Final, Generic, Literal, Self, TypeVar, overload

from memos_syscalls import messages as m

from ._session import Call, R

T_co = TypeVar("T_co", covariant=True)


class Stream(Iterator[T_co], Generic[T_co]):
    """Items as the kernel sends them. Close it, or use it in a `with` block, to end the call."""

    @abstractmethod
    def close(self) -> None:
        """Ends the call; whoever waits for the next item gets StopIteration."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncStream(AsyncIterator[T_co], Generic[T_co]):
    """Items as the kernel sends them. Close it, or use it in an `async with` block, to end the call."""

    @abstractmethod
    async def aclose(self) -> None:
        """Ends the call; whoever waits for the next item gets StopAsyncIteration."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


'''

SYNC_CLASS: Final = '''class Calls(ABC):
    """The syscalls of a blocking client."""

    @abstractmethod
    def _call(self, call: Call[R], args: dict[str, Any]) -> R:
        """Sends one call and waits for its reply."""

    @abstractmethod
    def _stream(self, call: Call[R], args: dict[str, Any]) -> Stream[R]:
        """Starts a call that answers with items."""
'''

ASYNC_CLASS: Final = '''class AsyncCalls(ABC):
    """The syscalls of an asyncio client. Arguments are explained at the same names of `Calls`."""

    @abstractmethod
    async def _call(self, call: Call[R], args: dict[str, Any]) -> R:
        """Sends one call and waits for its reply."""

    @abstractmethod
    def _stream(self, call: Call[R], args: dict[str, Any]) -> AsyncStream[R]:
        """Starts a call that answers with items."""
'''


def spell(annotation: Any, metadata: tuple[Any, ...] = ()) -> str:
    """A model's annotation as a caller's type: constraints dropped, containers widened."""
    origin, args = get_origin(annotation), get_args(annotation)
    if any(getattr(extra, "func", None) is m.nanoseconds for extra in metadata):
        return "str | int"
    if annotation in ALIASES:
        return ALIASES[annotation]
    if origin is Annotated:
        return spell(args[0], args[1:])
    if origin in (Union, UnionType):
        return " | ".join(spell(a) for a in args if a is not NoneType)
    if annotation == m.FuseStrategy:
        return "m.FuseStrategy"
    if origin is Literal:
        return "Literal[{}]".format(", ".join(f'"{a}"' for a in args))
    if origin in (list, tuple):
        return f"Sequence[{spell(args[0])}]"
    if origin is dict:
        return "Mapping[{}]".format(", ".join(map(spell, args)))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"m.{annotation.__name__} | Mapping[str, Any]"
    return "Any" if annotation is Any else annotation.__name__


def is_required(call: Syscall, name: str, field: FieldInfo) -> bool:
    """Whether a caller must give it. `fd` is hidden, so a new cube's content is not optional."""
    return field.is_required() or (name == "content" and issubclass(call.request, m.NewCube))


def ordered(call: Syscall) -> list[tuple[str, FieldInfo, bool]]:
    """A call's visible fields in the order of its method: (name, field, required)."""
    fields = [(n, f, is_required(call, n, f)) for n, f in call.request.model_fields.items() if n not in HIDDEN]

    def place(entry: tuple[str, FieldInfo, bool]) -> tuple[int, int]:
        name, _, required = entry
        if name in LAST:
            return 3, LAST.index(name)
        if name in POSITIONAL and (required or name in OFTEN):
            return (0 if required else 1), POSITIONAL.index(name)
        return (0, len(POSITIONAL)) if required else (2, 0)

    return sorted(fields, key=place)


def signature(call: Syscall) -> list[str]:
    """The parameters after `self`."""
    lines: list[str] = []
    keyword_only = False
    for name, field, required in ordered(call):
        by_position = required or name in OFTEN
        if not by_position and not keyword_only:
            keyword_only = True
            lines.append("*")
        kind = spell(field.annotation, tuple(field.metadata))
        lines.append(f"{name}: {kind}" if required else f"{name}: {kind} | None = None")
    return lines


def docstring(call: Syscall, *, whole: bool) -> list[str]:
    summary = " ".join((call.request.__doc__ or "").split())
    described = [(n, f.description) for n, f, _ in ordered(call) if f.description]
    if not whole or not described:
        return [f'"""{summary}"""']
    lines = [f'"""{summary}', ""]
    for name, text in described:
        lines += textwrap.wrap(f"{name}: {text}", COLUMNS, subsequent_indent="    ")
    return [*lines, '"""']


def constant(call: Syscall) -> str:
    return f"_{call.name.upper()}"


def may_stream(call: Syscall) -> bool:
    """Whether its caller chooses between a reply and items, by `stream`."""
    return call.item is not None and Flag.STREAM not in call.flags


def chooser(call: Syscall, *, is_async: bool) -> str:
    """The method of a call that answers with a reply or, with `stream=True`, with items."""
    assert call.item is not None, "asked of calls that may stream"
    parameters = [p for p in signature(call) if not p.startswith("stream:")]
    names = [name for name, _, _ in ordered(call)]
    reply, stream = f"m.{call.reply.__name__}", f"{'AsyncStream' if is_async else 'Stream'}[m.{call.item.__name__}]"
    whole = f"Coroutine[Any, Any, {reply}]" if is_async else reply
    lines: list[str] = []
    for kind, returns in (("Literal[False] | None = None", whole), ("Literal[True]", stream)):
        lines += ["@overload", f"def {call.name}(", "    self,", *(f"    {p}," for p in parameters), f"    stream: {kind},"]
        lines += [f") -> {returns}: ...", ""]
    lines += [f"def {call.name}(", "    self,", *(f"    {p}," for p in parameters), "    stream: bool | None = None,"]
    lines += [f") -> {whole} | {stream}:", *(f"    {line}" if line else "" for line in docstring(call, whole=not is_async))]
    lines += ["    args: dict[str, Any] = {", *(f'        "{name}": {name},' for name in names), "    }"]
    lines += [f"    return self._stream({constant(call)}_ITEM, args) if stream else self._call({constant(call)}, args)"]
    return textwrap.indent("\n".join(lines) + "\n", "    ")


def method(call: Syscall, *, is_async: bool) -> str:
    """One method, as source."""
    if may_stream(call):
        return chooser(call, is_async=is_async)
    streams = Flag.STREAM in call.flags
    reply = f"m.{(call.item or call.reply).__name__}"
    returns = f"{'AsyncStream' if is_async else 'Stream'}[{reply}]" if streams else reply
    define, wait = ("async def", "await ") if is_async and not streams else ("def", "")
    names = [name for name, _, _ in ordered(call)]
    body = docstring(call, whole=not is_async)
    body.append(f"return {wait}self.{'_stream' if streams else '_call'}(")
    body += [f"    {constant(call)},", "    {", *(f'        "{name}": {name},' for name in names), "    },", ")"]
    head = [f"{define} {call.name}(", "    self,", *(f"    {p}," for p in signature(call)), f") -> {returns}:"]
    return textwrap.indent("\n".join([*head, *(f"    {line}" if line else "" for line in body)]) + "\n", "    ")


def generate() -> str:
    """The whole of `_calls.py`."""
    calls = [call for call in TABLE if Flag.SESSION not in call.flags]
    constants: list[str] = []
    for c in calls:
        kind = c.reply if may_stream(c) else c.item or c.reply
        constants.append(f'{constant(c)}: Final = Call("{c.name}", m.{kind.__name__})')
        if may_stream(c) and c.item is not None:
            constants.append(f'{constant(c)}_ITEM: Final = Call("{c.name}", m.{c.item.__name__})')
    sync = "\n".join([SYNC_CLASS, *(method(c, is_async=False) for c in calls)])
    coroutines = "\n".join([ASYNC_CLASS, *(method(c, is_async=True) for c in calls)])
    return HEAD + "\n".join(constants) + "\n\n\n" + sync + "\n\n" + coroutines


def main() -> int:
    parser = argparse.ArgumentParser(description="Write memos_client/_calls.py from the table.")
    parser.add_argument("--check", action="store_true", help="only say whether the file is current")
    source = generate()
    if parser.parse_args().check:
        current = TARGET.read_text() == source
        if not current:
            print(f"{TARGET.name} is not what the table says; run `python -m memos_client._generate`", file=sys.stderr)
        return 0 if current else 1
    TARGET.write_text(source)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
