"""Writes docs/syscalls.md from the table, the models, the errors and the limits: `python -m memos_tools.docgen [--check]`.

`document()` is pure and its answer depends on memos_syscalls alone, so the file is current if and only if the two are
equal. `--check` writes nothing and exits with 1 when they differ; `--output FILE` names another file. A test calls the same.

Every field is shown with its type, its bounds and its unit; a model that several calls share stands once, under Types.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, StringConstraints
from pydantic.fields import FieldInfo

from memos_syscalls import limits
from memos_syscalls import messages as m
from memos_syscalls.errors import ERRORS
from memos_syscalls.table import TABLE, Flag, Syscall

OUTPUT: Final = Path("docs") / "syscalls.md"

GROUPS: Final[tuple[tuple[int, str], ...]] = (
    (1, "The kernel itself"), (16, "Cubes"), (32, "Finding"), (48, "Shaping"), (64, "Time"), (80, "Keeping and erasing"),
    (112, "Following"),
)  # fmt: skip
"""First number of each group, and its heading."""

KINDS: Final[tuple[tuple[Any, str, str], ...]] = (
    (m.CubeId, "cube id", "A UUIDv7 as 36 lower-case characters."),
    (
        m.Namespace, "namespace",
        f"Printable words joined by single slashes, such as `alice/chat/2026`: at most {limits.NAMESPACE_DEPTH_MAX} words and "
        f"{limits.NAMESPACE_BYTES_MAX} bytes. No word is `.` or `..`, or begins or ends with a blank.",
    ),
    (m.TimeNs, "time", "Nanoseconds UTC since 1970 as an integer, or RFC 3339 text with an offset. Replies have integers."),
    (m.Offset, "offset", "A record's place in the log: 0, 1, 2 …"),
    (m.VersionNo, "version", "A version number: 1, 2, 3 …"),
    (m.Tag, "word", f"Text of 1 to {limits.TAG_CHARS_MAX} characters."),
    (m.Tags, "tags", f"A list of at most {limits.TAGS_MAX} words."),
    (m.Labels, "labels", f"A list of at most {limits.LABELS_MAX} words."),
    (m.Name, "name", f"Text of 1 to {limits.NAME_CHARS_MAX} characters."),
    (m.Embedding, "vector", f"A list of 1 to {limits.EMBEDDING_DIMS_MAX} numbers, not all zero."),
    (m.DeadlineMs, "milliseconds", f"1 to {limits.DEADLINE_MS_MAX}."),
    (m.Form, "form", "One of " + ", ".join(f"`{form}`" for form in get_args(m.Form)) + ". Only `plaintext` has a driver."),
    (m.State, "state", "One of " + ", ".join(f"`{state}`" for state in get_args(m.State)) + "."),
    (m.Origin, "origin", "One of " + ", ".join(f"`{origin}`" for origin in get_args(m.Origin)) + "."),
)  # fmt: skip
"""Aliases of messages.py, with the word and the sentence that the page has for each."""

_PLAIN: Final[dict[Any, str]] = {
    str: "text", bytes: "bytes", int: "integer", float: "number", bool: "true or false", Any: "any value",
}  # fmt: skip
PLAIN_FIELDS: Final[dict[str, str]] = {
    "MemDiff.a": "The older version, or any other.", "MemDiff.b": "The version it is compared with.",
    "MemList.form": "Only this form.", "MemSearch.form": "Only this form.", "MemList.limit": "Cubes on a page.",
    "MemSearch.k": "Hits to return at most.", "MemSearch.mode": "Both retrievers, vectors alone, or words alone.",
    "MemWrite.encoding": "What the descriptor holds; text by default.", "MemAllocMany.items": "The cubes to make.",
    "MemAllocManyReply.items": "The cubes that were made, in this order.", "MemCompose.namespace": "Where the new cube lives.",
    "MemCompose.cube_ids": "The members, in order, each once.", "MemFuse.cube_ids": "The sources, at least two, each once.",
    "MemFork.namespace": "The namespace to copy, with all below it.", "MemFork.to": "The new namespace; it must not exist.",
    "MemRollback.to_version": "The version to return to.", "MemShred.cube_id": "The cube to erase; give this or a namespace.",
    "MemShredReply.cube_id": "The erased cube, when one was named.", "MemForkReply.namespace": "The new namespace.",
    "SysVerify.full": "Also replay, compare and decrypt.", "SysHello.abi": "The ABI's number, 1.",
    "SysInfoReply.version": "The kernel's release.", "SysStatsReply.log": "Head, commits, records and records per commit.",
    "SysStatsReply.memory": "Bytes of decrypted versions kept, key slots ready.", "WatchItem.events": "What the record did.",
    "abi": "The ABI's number.", "actor": "Principal that made it.", "admin": "Whether the caller is the kernel's own uid.",
    "bytes": "Content size.", "canceled": "False when the call was over, or its record was on its way.",
    "connections": "Open connections.", "content": "The content: text, or bytes.", "cube_id": "The cube.", "cubes": "The page.",
    "drivers": "Memory forms that have a driver.", "encoding": "Whether the content is text or bytes.",
    "epoch": "Number of kernel starts that wrote to this log.", "event": "Name of the event; docs/events.md lists them.",
    "form": "The memory form.", "head_hash": "Hash of the newest record, hexadecimal.",
    "head_offset": "Offset of the newest durable record.", "header": "The header.", "hits": "The found versions, best first.",
    "log_id": "The log's random id, hexadecimal.", "metadata": "Free map.", "models": "Embedding model, once it has started.",
    "name": "Its name.", "namespace": "Where it lives.", "next_cursor": "Pass it as `cursor` for the next page.",
    "note": "The `actor_note`; gone when the cube's key is.", "offset": "Offset of the record.",
    "ok": "Whether nothing is wrong.", "origin": "Where the content comes from.", "path": "Directory of the snapshot.",
    "principal": "Who the caller is to the kernel.",
    "priority": "The caller's own number.", "problems": "What is wrong and what to do.",
    "public_key": "The log's Ed25519 key, hexadecimal.", "read_only": "Whether the kernel appends nothing.",
    "rebuilt": "Successors of erased derived cubes.", "records": "Records that were checked.",
    "replaces": "The erased cube that it replaces.", "report": "What was erased.",
    "restored": "The sources that are live again.", "score": "Larger is better; only comparable within one search.",
    "semantic_type": "fact, preference, event, task, document, message, …", "server": "Name and release of the kernel.",
    "shredded": "Cubes that were erased, derived ones included.", "state": "Its state.",
    "state_digest": "Digest of the state, hexadecimal.", "state_schema": "Schema of the rows under the digest.",
    "syscall": "The call that made it.", "tags": "Its tags.", "time": "Time of the record, ns.",
    "uptime_s": "Seconds since the start.", "version": "Its version.", "versions": "Oldest first.",
    "why": "With `explain`: ranks and scores of each retriever.",
}  # fmt: skip
"""What the page says of fields whose models say nothing, by `Model.field` or `field`; a model's own words come first."""

_COMMON: Final[tuple[tuple[type[m.Request], str], ...]] = (
    (m.Request, "Every call"), (m.Past, "Calls that can look at the past"), (m.Mutation, "Calls that append to the log"),
)  # fmt: skip
"""Bases whose fields are described once, the widest first."""


def kind(annotation: Any) -> str:
    """The words for a type: `cube id`, `list of 1 to 64 words`, `integer, 1 to 1000`."""
    for alias, word, _meaning in KINDS:
        if annotation is alias:
            return word
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kind(args[0]) + _bounds(args[0], args[1:])
    if origin in (Union, types.UnionType):
        return " or ".join(kind(arg) for arg in args if arg is not type(None))
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in args)
    if origin is list:
        return f"list of {kind(args[0])}"
    if origin is tuple:
        return f"list of {kind(args[0])}"
    if origin is dict:
        return "map"
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    raise AssertionError(f"docgen has no words for {annotation!r}")


def _bounds(base: Any, metadata: tuple[Any, ...]) -> str:
    low: Any = None
    high: Any = None
    sized = base is str or get_origin(base) is list
    for item in metadata:
        for rule in item.metadata if isinstance(item, FieldInfo) else (item,):
            if isinstance(rule, StringConstraints):
                low, high = rule.min_length, rule.max_length
            low = getattr(rule, "ge", getattr(rule, "min_length", low))
            high = getattr(rule, "le", getattr(rule, "max_length", high))
            if (over := getattr(rule, "lt", None)) is not None:
                high = over - 1
    unit = (" characters" if base is str else " items") if sized else ""
    if low is None and high is None:
        return ""
    if high is None:
        return f", at least {low}{unit}"
    return f", at most {high}{unit}" if low is None else f", {low} to {high}{unit}"


def fields(model: type[BaseModel], skip: frozenset[str] = frozenset()) -> Iterator[tuple[str, str, str, str]]:
    """`(name, type, default, description)` of each field, in the order in which they are declared."""
    hints = get_type_hints(model, include_extras=True)
    for name, info in model.model_fields.items():
        if name in skip:
            continue
        default = "required" if info.is_required() else ""
        if not info.is_required() and info.default_factory is None and info.default not in (None, ""):
            default = f"`{_value(info.default)}`"
        yield name, kind(hints[name]), default, info.description or _plain_field(model, name)


def _plain_field(model: type[BaseModel], name: str) -> str:
    for owner in model.__mro__:
        if (text := PLAIN_FIELDS.get(f"{owner.__name__}.{name}")) is not None:
            return text
    return PLAIN_FIELDS[name]


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def _table(headers: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    lines = ["| " + " | ".join(headers) + " |", "|" + "---|" * len(headers)]
    return [*lines, *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows), ""]


def _sentence(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split())


def _request(model: type[m.Request]) -> list[str]:
    shared = [base for base, _heading in _COMMON if base in model.__mro__]
    known = frozenset(name for base in shared for name in base.model_fields)
    rows = [(f"`{n}`", k, d, text) for n, k, d, text in fields(model, known)]
    rows.sort(key=lambda row: row[2] != "required")
    common = ", ".join(f"`{name}`" for base in reversed(shared) for name in base.model_fields if name in known)
    common = ", ".join(dict.fromkeys(common.split(", ")))
    lines = _table(("argument", "type", "default", "meaning"), rows) if rows else []
    return [*lines, f"Also: {common} ([common arguments](#common-arguments)).", ""]


def _reply(model: type[m.Reply], what: str = "Reply") -> list[str]:
    rows = [(f"`{n}`", k, text) for n, k, _default, text in fields(model)]
    return [f"{what}:", "", *_table(("field", "type", "meaning"), rows)] if rows else [f"{what}: an empty map.", ""]


def _call(call: Syscall) -> list[str]:
    flags = ", ".join(flag.name.lower() for flag in Flag if flag in call.flags and flag.name)
    lines = [
        f"### {call.name}", "", f"Number {call.number}, {flags}, since ABI {call.since}. {_sentence(call.request)}", "",
        *_request(call.request),
    ]  # fmt: skip
    if call.item is not None:
        lines += _reply(call.item, "Each item")
    lines += _reply(call.reply)
    return [*lines, f"Shell: `{call.example}`", ""]


def _named_models() -> list[type[BaseModel]]:
    """Models that fields of requests and replies name, each once, in order of first sight."""
    found: dict[type[BaseModel], None] = {}

    def visit(annotation: Any) -> None:
        if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
            if annotation not in found:
                found[annotation] = None
                inside(annotation)
            return
        for arg in get_args(annotation):
            visit(arg)

    def inside(model: type[BaseModel]) -> None:
        for hint in get_type_hints(model, include_extras=True).values():
            visit(hint)

    for call in TABLE:
        for model in (call.request, call.reply, call.item):
            if model is not None:
                inside(model)
    return list(found)


def bounds() -> list[tuple[str, int, str]]:
    """`(name, value, description)` of every limit, read from limits.py in its order."""
    tree = ast.parse(inspect.getsource(limits))
    found: list[tuple[str, int, str]] = []
    for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        described = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and after.value.value
        text = " ".join(str(described or "").split())
        found.append((node.target.id, getattr(limits, node.target.id), text))
    return [row for row in found if row[0] not in ("KIB", "MIB", "GIB", "ABI")]


def _flag_meanings() -> list[str]:
    return [
        "`read` and `write` say whether a call appends to the log. `long` calls may take seconds and run in slices or off the",
        "event loop. `stream` calls answer with items before their reply. `admin` calls are for the kernel's own uid.",
        "`session` calls are about the connection itself.",
    ]


def document() -> str:
    """The whole page."""
    lines = [
        "# Syscalls", "",
        "Generated by `python -m memos_tools.docgen` from `syscalls/memos_syscalls`; do not edit. A test compares.", "",
        f"ABI {limits.ABI}, {len(TABLE)} calls. The wire is described in [syscalls/README.md](../syscalls/README.md).", "",
        *_flag_meanings(), "",
        *_table(
            ("number", "call", "what it does"),
            [(str(call.number), f"[{call.name}](#{call.name})", _sentence(call.request)) for call in TABLE],
        ),
        "## Common arguments", "",
    ]  # fmt: skip
    seen: frozenset[str] = frozenset()
    rows: list[tuple[str, ...]] = []
    for base, heading in _COMMON:
        for name, word, _default, text in fields(base, seen):
            rows.append((f"`{name}`", heading, word, text))
        seen |= frozenset(base.model_fields)
    lines += _table(("argument", "on", "type", "meaning"), rows)
    lines += ["## Kinds of value", "", *_table(("type", "meaning"), [(word, meaning) for _alias, word, meaning in KINDS])]
    starts = dict(GROUPS)
    for call in TABLE:
        if call.number in starts:
            lines += [f"## {starts[call.number]}", ""]
        lines += _call(call)
    lines += ["## Types", ""]
    for model in _named_models():
        # A base model's sentence is about something else.
        about = _sentence(model) if "__doc__" in vars(model) and model.__doc__ else ""
        lines += [f"### {model.__name__}", "", *([about, ""] if about else [])]
        rows = [(f"`{n}`", k, d, text) for n, k, d, text in fields(model, frozenset(m.Request.model_fields))]
        lines += _table(("field", "type", "default", "meaning"), rows)
    lines += [
        "## Errors", "",
        "Every error carries `errno`, `detail` (what happened), `advice` (what to do next), `retryable` (whether the same call",
        "can succeed later) and `outcome`: `none` when nothing happened, `unknown` when it may have happened. After `unknown`,",
        "repeat the call with the same `request_id`: the one true answer comes back.", "",
        *_table(
            ("errno", "number", "exception", "meaning", "retryable", "advice"),
            [
                (
                    f"`{e.errno}`", str(e.number), f"`{e.__name__}`", e.meaning, "yes" if e.retryable else "no",
                    e.default_advice,
                )
                for e in ERRORS
            ],
        ),
        "## Limits", "", "From `limits.py`; the unit is in the name.", "",
        *_table(("limit", "value", "what it bounds"), [(f"`{n}`", f"{value:,}", text) for n, value, text in bounds()]),
    ]  # fmt: skip
    return "\n".join(lines).rstrip() + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("docgen", description="Write docs/syscalls.md from the syscall table.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when the file is not current")
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"the file (default: {OUTPUT})")
    options = parser.parse_args(argv)
    text = document()
    if options.check:
        if not options.output.exists() or options.output.read_text(encoding="utf-8") != text:
            print(f"{options.output} is not current; run: python -m memos_tools.docgen", file=sys.stderr)
            return 1
        return 0
    options.output.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
