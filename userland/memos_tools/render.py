"""What memsh prints: a reply, as blocks, on a terminal or as plain text.

`blocks(call, reply)` turns a reply into lines, tables and contents; the two printers differ only in how they look. Plain
text is complete (nothing is cut to a width) and stable, for pipes and for the golden scripts; a terminal gets rich's tables
and colour. `to_json` is the third form: one line, bytes as `{"base64": …}`.

Times are RFC 3339 UTC with all nanoseconds; the shell takes them back so, to the nanosecond, as `--at-time`.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from memos_syscalls import messages as m


@dataclass(frozen=True, slots=True)
class Line:
    """One line."""

    text: str
    style: str = ""


@dataclass(frozen=True, slots=True)
class Rows:
    """A table; plain text pads its columns with two spaces between."""

    headers: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Body:
    """Content, verbatim; a title says what it is, on a terminal only."""

    text: str
    title: str = ""
    lexer: str = ""


Block = Line | Rows | Body

STATE_STYLES: Final = {
    "generated": "green", "activated": "bold green", "merged": "blue", "archived": "yellow", "frozen": "cyan",
    "expired": "dim", "shredded": "red",
}  # fmt: skip


def time_text(time: int | None) -> str:
    """Nanoseconds UTC as RFC 3339."""
    if time is None:
        return "-"
    seconds, rest = divmod(time, 10**9)
    try:
        moment = dt.datetime.fromtimestamp(seconds, dt.UTC)
    except (ValueError, OverflowError, OSError):
        return f"{time} ns"
    fraction = f".{rest:09d}" if rest else ""
    return f"{moment:%Y-%m-%dT%H:%M:%S}{fraction}Z"


def content_text(content: str | bytes | None) -> str:
    """Content as one can print it."""
    if isinstance(content, bytes):
        shown = content[:32].hex(" ")
        return f"<{len(content)} bytes: {shown}{' …' if len(content) > 32 else ''}>"
    return content or ""


def plain_json(value: Any) -> Any:
    """The same structure with bytes as `{"base64": …}` and models as maps."""
    if isinstance(value, BaseModel):
        return plain_json(value.model_dump())
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, dict):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    return value


def to_json(value: Any) -> str:
    return json.dumps(plain_json(value), ensure_ascii=False, separators=(", ", ": "))


def _short(text: str, size: int) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= size else flat[: size - 1] + "…"


def _pairs(values: dict[str, Any]) -> Rows:
    return Rows(("field", "value"), [(name, _value(value)) for name, value in values.items()])


def _value(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or "-"
    if isinstance(value, dict | list | bytes):
        return to_json(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _header(header: m.CubeHeader) -> Rows:
    shown: dict[str, Any] = {}
    times = {"created_at", "updated_at", "valid_from", "valid_to", "expires_at"}
    for name in m.CubeHeader.model_fields:
        value = getattr(header, name)
        if value in (None, [], {}, False) or (name == "priority" and value == 0) or (name == "encoding" and value == "text"):
            continue
        shown[name] = time_text(value) if name in times else ", ".join(value) if name in ("tags", "labels") else value
    return _pairs(shown)


def _read(reply: m.MemReadReply) -> list[Block]:
    title = f"{reply.cube_id} v{reply.version} {reply.state} offset {reply.offset}"
    blocks: list[Block] = [Line(title, STATE_STYLES.get(reply.state, ""))]
    if reply.content is not None:
        blocks.append(Body(content_text(reply.content), "content"))
    return blocks


def _list(reply: m.MemListReply) -> list[Block]:
    rows = [
        (c.cube_id, f"v{c.version}", c.state, c.namespace, c.name or "-", ",".join(c.tags) or "-", str(c.bytes))
        for c in reply.cubes
    ]
    blocks: list[Block] = []
    if rows:
        blocks.append(Rows(("cube", "version", "state", "namespace", "name", "tags", "bytes"), rows))
    noun = "cube" if len(rows) == 1 else "cubes"
    blocks.append(Line(f"{len(rows)} {noun}", "dim"))
    if reply.next_cursor:
        blocks.append(Line(f"more: --cursor {reply.next_cursor}", "dim"))
    return blocks


def _search(reply: m.MemSearchReply) -> list[Block]:
    rows = [
        (str(place), hit.cube_id, f"v{hit.version}", f"{hit.score:.4f}", hit.namespace, _short(content_text(hit.content), 160))
        for place, hit in enumerate(reply.hits, 1)
    ]
    headers = ("rank", "cube", "version", "score", "namespace", "content")
    blocks: list[Block] = [Rows(headers, rows) if rows else Line("no hits", "dim")]
    blocks += [Line(f"why {place}: {to_json(hit.why)}", "dim") for place, hit in enumerate(reply.hits, 1) if hit.why]
    if reply.partial:
        blocks.append(Line("partial: the dense index lags; vectors of newer cubes were not considered", "yellow"))
    return blocks


def _history(reply: m.MemHistoryReply) -> list[Block]:
    rows = [
        (f"v{v.version}", str(v.offset), time_text(v.time), v.actor, v.syscall, str(v.bytes), v.note or "-")
        for v in reply.versions
    ]
    return [Rows(("version", "offset", "time", "actor", "syscall", "bytes", "note"), rows)]


def _diff(reply: m.MemDiffReply) -> list[Block]:
    equal = Line("the contents are equal", "dim")
    blocks: list[Block] = [Body(reply.diff.rstrip("\n"), "content", "diff") if reply.diff else equal]
    blocks += [Line(f"{name}: {_value(pair[0])} -> {_value(pair[1])}") for name, pair in sorted(reply.header.items())]
    return blocks


def _shred(reply: m.MemShredReply) -> list[Block]:
    report = reply.report
    blocks: list[Block] = [Line(f"shredded {len(report.shredded)} at offset {reply.offset}", "red")]
    blocks += [Line(f"  gone {cube_id}") for cube_id in report.shredded]
    for rebuilt in report.rebuilt:
        job = f" by job {rebuilt.job_id}" if rebuilt.job_id else ""
        blocks.append(Line(f"  rebuilt {rebuilt.cube_id} in place of {rebuilt.replaces}{job}"))
    blocks += [Line(f"  fork {cube_id} lost its inherited versions") for cube_id in report.forks]
    blocks += [Line(f"  still mapped elsewhere: {name}", "yellow") for name in report.maps]
    blocks.append(Line(f"  receipt of {len(report.receipt)} bytes (--json prints it)", "dim"))
    return blocks


def _fuse(reply: m.MemFuseReply) -> list[Block]:
    return [_mutated(reply), *(Line(f"  from {s.cube_id} v{s.version}", "dim") for s in reply.sources)]


def _unfuse(reply: m.MemUnfuseReply) -> list[Block]:
    return [_mutated(reply), *(Line(f"  restored {cube_id}", "dim") for cube_id in reply.restored)]


def _alloc_many(reply: m.MemAllocManyReply) -> list[Block]:
    first = Line(f"{len(reply.items)} cubes at offset {reply.offset}", "green")
    return [first, *(Line(f"  {item.cube_id} v{item.version}") for item in reply.items)]


def _fork(reply: m.MemForkReply) -> list[Block]:
    return [Line(f"{reply.namespace}: {reply.cubes} cubes at offset {reply.offset}", "green")]


def _watch(item: m.WatchItem) -> list[Block]:
    blocks: list[Block] = [Line(f"{item.offset} {time_text(item.time)} {item.actor} {item.syscall}", "bold")]
    for event in item.events:
        parts = [event.event, event.cube_id, f"v{event.version}" if event.version else None, event.namespace, event.state]
        if event.pinned is not None:
            parts.append("pinned" if event.pinned else "unpinned")
        blocks.append(Line("  " + " ".join(part for part in parts if part), STATE_STYLES.get(event.state or "", "")))
    return blocks


def _map(reply: m.MemMapReply) -> list[Block]:
    title = f"{reply.cube_id} v{reply.version} {reply.form} {reply.bytes} bytes from {reply.tier}, offset {reply.offset}"
    blocks: list[Block] = [Line(title, "green")]
    if reply.layout is not None:
        found = reply.layout.tensors
        rows = [(t.name, t.dtype, "x".join(map(str, t.shape)) or "-", str(t.offset), str(t.bytes)) for t in found]
        blocks.append(Rows(("tensor", "dtype", "shape", "offset", "bytes"), rows))
        blocks += [Line(f"{name}: {text}", "dim") for name, text in sorted(reply.layout.metadata.items())]
    return blocks


def _verify(reply: m.SysVerifyReply) -> list[Block]:
    verdict = "ok" if reply.ok else "NOT OK"
    line = Line(f"{verdict}: {reply.records} records good up to offset {reply.offset}", "green" if reply.ok else "bold red")
    return [line, *(Line(f"  {problem}", "red") for problem in reply.problems)]


def _mutated(reply: m.Mutated) -> Line:
    return Line(f"{reply.cube_id} v{reply.version} at offset {reply.offset}", "green")


def _written(reply: m.WrittenReply) -> list[Block]:
    found = (("says the same as", reply.duplicates), ("supersedes", reply.supersedes), ("superseded by", reply.superseded_by))
    said = [f"  {how} {one.cube_id} v{one.version}" for how, items in found for one in items]
    return [_mutated(reply), *(Line(line, "yellow") for line in said)]


def _state(reply: m.StateReply) -> list[Block]:
    return [Line(f"{reply.cube_id} v{reply.version} {reply.state} at offset {reply.offset}", STATE_STYLES.get(reply.state, ""))]


def _infer(reply: m.MemInferReply) -> list[Block]:
    blocks: list[Block] = [Body(reply.text, "answer")] if reply.text else []
    for one in reply.attached:
        size = f"{one.tokens} tokens" if one.weight is None else f"weight {one.weight:g}"
        blocks.append(Line(f"{one.cube_id} v{one.version} {one.form}: {one.how}, {size}", "dim"))
    said = (
        f"{reply.model}: {reply.tokens_in} tokens in, {reply.tokens_reused} of them reused, {reply.tokens_out} out "
        f"({reply.finish}), first after {reply.ttft_ms:.0f} ms, then {reply.tokens_per_s:.1f} a second"
    )
    return [*blocks, Line(said, "dim")]


def _migrate(reply: m.MemMigrateReply) -> list[Block]:
    if reply.cube_id is None:
        return [Line(f"job {reply.job_id} {reply.state}", "yellow")]
    where = f"in tier {reply.tier}" if reply.tier is not None else "was there already" if reply.reused else "made"
    took = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in reply.timings.items())
    title = f"{reply.cube_id} v{reply.version} offset {reply.offset} {where}"
    blocks: list[Block] = [Line(f"{title} ({took})" if took else title, "green")]
    blocks += [Line(f"wrote {cube_id}", "green") for cube_id in reply.cube_ids]
    if reply.scores:
        blocks.append(Line("scores: " + ", ".join(f"{name} {_value(found)}" for name, found in reply.scores.items()), "dim"))
    blocks += [Line("left out: " + ", ".join(f"{n}: {_value(v)}" for n, v in one.items()), "yellow") for one in reply.dropped]
    return blocks


_RENDERERS: Final[dict[type[m.Reply], Callable[[Any], list[Block]]]] = {
    m.MemReadReply: _read,
    m.MemStatReply: lambda reply: [_header(reply.header)],
    m.MemListReply: _list,
    m.MemSearchReply: _search,
    m.MemHistoryReply: _history,
    m.MemDiffReply: _diff,
    m.MemShredReply: _shred,
    m.MemFuseReply: _fuse,
    m.MemUnfuseReply: _unfuse,
    m.MemAllocManyReply: _alloc_many,
    m.MemForkReply: _fork,
    m.WatchItem: _watch,
    m.MemMapReply: _map,
    m.SysVerifyReply: _verify,
    m.StateReply: _state,
    m.WrittenReply: _written,
    m.Mutated: lambda reply: [_mutated(reply)],
    m.MemInferReply: _infer,
    m.MemInferItem: lambda item: [Line(item.text or "-")],
    m.MemMigrateReply: _migrate,
}


def blocks(reply: m.Reply) -> list[Block]:
    """A reply as blocks; a kind of reply that has no renderer of its own is shown field by field."""
    for kind in type(reply).__mro__:
        if kind in _RENDERERS:
            return _RENDERERS[kind](reply)
    shown = reply.model_dump()
    return [_pairs(shown)] if shown else []


def print_plain(console: Console, what: Sequence[Block]) -> None:
    """Complete and stable; no colour, no cut lines."""
    for block in what:
        match block:
            case Line(text):
                _write(console, text)
            case Body(text):
                _write(console, text)
            case Rows(headers, rows):
                widths = [max(len(row[at]) for row in [headers, *rows]) for at in range(len(headers))]
                for row in [headers, *rows] if headers != ("field", "value") else rows:
                    _write(console, "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _write(console: Console, text: str) -> None:
    console.file.write(text + "\n")


def print_rich(console: Console, what: Sequence[Block]) -> None:
    """Tables and panels, in colour."""
    for block in what:
        match block:
            case Line(text, style):
                console.print(Text(text, style=style), soft_wrap=True)
            case Body(text, title, lexer):
                inner = Syntax(text, lexer, theme="ansi_dark", word_wrap=True) if lexer else Text(text)
                console.print(Panel(inner, title=escape(title), title_align="left", border_style="dim"))
            case Rows(headers, rows):
                table = Table(*headers, header_style="bold", border_style="dim", show_header=headers != ("field", "value"))
                for row in rows:
                    table.add_row(*(_cell(header, cell) for header, cell in zip(headers, row, strict=True)))
                console.print(table)


def _cell(header: str, cell: str) -> Text:
    style = STATE_STYLES.get(cell, "") if header == "state" else "dim" if header == "cube" else ""
    return Text(cell, style=style)


def print_blocks(console: Console, what: Sequence[Block]) -> None:
    """In the form that suits where the console writes to."""
    (print_rich if console.is_terminal else print_plain)(console, what)
