"""Conversation and text files, read into turns.

Five formats, each a pure function from bytes to a list of `Turn`, in the file's order:

- `locomo`: `{"conversation": {"session_1": [{speaker, dia_id, text, blip_caption?}], "session_1_date_time": "1:56 pm on
  8 May, 2023", …}}`, or the inner map alone; dates are taken as UTC.
- `chat-json`: a list of `{role, content, timestamp?}`, `{"messages": [...]}`, or `{"sessions": [{"date", "turns": [...]}]}`
  whose turns also take `speaker`, `text` and `photo`.
- `jsonl`: one object a line with `content` or `text`; `speaker`, `role`, `session`, `timestamp`, `id`, `tags` and
  `metadata` are used where they are there.
- `text`: paragraphs, parted by blank lines; long ones are cut at ends of sentences.
- `markdown`: passages under their headings (`reading.markdown`).

A file that is not what it claims to be is `MemInvalid`, with the place. So is what is no text: bytes that are not UTF-8, or
hold NULs or many control characters. Half of a surrogate pair, which JSON can say and UTF-8 cannot, becomes U+FFFD. Empty
turns are left out; a turn's position is its place in its session in the file, so it does not move when an empty turn is
filled later.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeGuard

from memos_syscalls.errors import MemInvalid
from memos_syscalls.messages import nanoseconds

from .reading.kinds import Kind
from .reading.markdown import markdown as markdown_passages
from .reading.passages import passages

Format = Literal["locomo", "chat-json", "jsonl", "text", "markdown"]

_LOCOMO_DATE: Final = re.compile(r"(\d{1,2}):(\d{2})\s*(am|pm)\s+on\s+(\d{1,2})\s+([A-Za-z]+),?\s+(\d{4})", re.IGNORECASE)
_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MILLISECONDS_FROM: Final = 10**11
"""A bare number from here on is milliseconds since 1970: as seconds it would be the year 5138."""
_NANOSECONDS_FROM: Final = 10**16

_EXTRACT: Final = "Extract its text first, and ingest that."
_NO_TEXT: Final = (
    (b"%PDF", "a PDF", _EXTRACT), (b"PK\x03\x04", "an archive or an office document", _EXTRACT),
    (b"\x1f\x8b", "compressed", "Unpack it first."),
    (b"\x89PNG", "a picture", _EXTRACT), (b"\xff\xd8\xff", "a picture", _EXTRACT), (b"GIF8", "a picture", _EXTRACT),
    (b"SQLite format 3", "a database", _EXTRACT), (b"\x7fELF", "a program", "Name a text file."),
    (b"\xff\xfe", "UTF-16", "Convert it to UTF-8 first."), (b"\xfe\xff", "UTF-16", "Convert it to UTF-8 first."),
)  # fmt: skip
"""First bytes of what is often taken for text."""
_CONTROLS: Final = bytes([*range(1, 7), *range(14, 27), *range(28, 32), 127])
_CONTROLS_SHARE_INVERSE: Final = 50
"""Text has fewer control characters than one in so many."""
_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")


@dataclass(frozen=True, slots=True)
class Turn:
    """One thing that was said, or one passage. `time` is nanoseconds UTC, `context` the headings that a passage stands under.

    `kind` is set where the format knows it: such a turn is not cut any more. `part` is set by whoever cuts a turn.
    """

    text: str
    session: int | str
    position: int
    speaker: str | None = None
    turn_id: str | None = None
    caption: str | None = None
    time: int | None = None
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    context: str | None = None
    kind: Kind | None = None
    part: tuple[int, int] | None = None


def event_time(value: object) -> int | None:
    """Nanoseconds UTC of RFC 3339 text, a date, a LoCoMo date, or seconds/milliseconds/nanoseconds since 1970."""
    if value is None or value == "":
        return None
    if isinstance(value, bool):
        raise MemInvalid(f"{value!r} is not a time")
    if isinstance(value, int | float):
        scale = 1 if abs(value) >= _NANOSECONDS_FROM else 10**6 if abs(value) >= _MILLISECONDS_FROM else 10**9
        try:
            return int(value * scale)
        except (OverflowError, ValueError) as error:
            raise MemInvalid(f"{value!r} is not a time") from error
    text = str(value).strip()
    if found := _LOCOMO_DATE.search(text):
        hour, minute, half, day, month, year = found.groups()
        named = month[:3].lower()
        if named in _MONTHS and 1 <= int(hour) <= 12:
            clock = int(hour) % 12 + (12 if half.lower() == "pm" else 0)
            try:
                moment = dt.datetime(int(year), _MONTHS.index(named) + 1, int(day), clock, int(minute), tzinfo=dt.UTC)
            except ValueError as error:
                raise MemInvalid(f"{text!r} is not a date ({error})") from error
            return int(moment.timestamp()) * 10**9
    try:
        moment = dt.datetime.fromisoformat(text.replace("Z", "+00:00"))
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=dt.UTC)
        time = nanoseconds(moment.isoformat())
    except ValueError as error:
        raise MemInvalid(f"{text!r} is not a time", "Use RFC 3339, such as 2026-01-31T09:30:00Z.") from error
    assert isinstance(time, int)
    return time


def locomo(data: bytes) -> list[Turn]:
    """Sessions in the order of their numbers."""
    root = _object(_parsed(data), "the file")
    talk = _object(root.get("conversation", root), "conversation")
    numbers = sorted(int(found[1]) for key in talk if (found := re.fullmatch(r"session_(\d+)", key)))
    if not numbers:
        raise MemInvalid("no session_1, session_2, … in the file", "Is it a LoCoMo file?")
    turns: list[Turn] = []
    for number in numbers:
        time = event_time(talk.get(f"session_{number}_date_time"))
        turns.extend(_session(talk[f"session_{number}"], number, time, f"session_{number}"))
    return turns


def chat_json(data: bytes) -> list[Turn]:
    """A list of messages is one session; `sessions` are numbered from 1."""
    root = _parsed(data)
    if _is_list(root):
        return list(_session(root, 1, None, "the list"))
    outer = _object(root, "the file")
    if "messages" in outer:
        return list(_session(outer["messages"], 1, event_time(outer.get("date")), "messages"))
    sessions = outer.get("sessions")
    if not _is_list(sessions):
        raise MemInvalid("neither a list of messages, nor `messages`, nor `sessions`", "See `help ingest` for the formats.")
    turns: list[Turn] = []
    for number, session in enumerate(sessions, 1):
        inner = _object(session, f"sessions[{number - 1}]")
        listed = inner.get("turns", inner.get("messages"))
        turns.extend(_session(listed, number, event_time(inner.get("date")), f"sessions[{number - 1}]"))
    return turns


def jsonl(data: bytes) -> list[Turn]:
    """One object a line; blank lines are skipped. Sessions may be interleaved, and named by numbers or by text."""
    turns: list[Turn] = []
    said: dict[int | str, int] = {}
    # Not `splitlines`: JSON may hold U+2028 and its like unescaped.
    for number, line in enumerate(_text(data).split("\n"), 1):
        if line.strip():
            entry = _object(_parsed(line.encode(), f"line {number}"), f"line {number}")
            named = entry.get("session")
            session = named if isinstance(named, str | int) and not isinstance(named, bool) and named != "" else 1
            said[session] = position = said.get(session, 0) + 1
            if turn := _turn(entry, session, position, None, f"line {number}"):
                turns.append(turn)
    return turns


def text(data: bytes) -> list[Turn]:
    """Paragraphs; line breaks inside one are kept."""
    paragraphs = re.split(r"\n[ \t]*\n", _text(data).replace("\r\n", "\n"))
    pieces = (piece for paragraph in paragraphs for piece in passages(paragraph))
    return [Turn(piece, 1, position, kind="document") for position, piece in enumerate(pieces, 1)]


def markdown(data: bytes) -> list[Turn]:
    """Passages, each with the path of its headings in the metadata."""
    turns: list[Turn] = []
    for position, passage in enumerate(markdown_passages(_text(data).replace("\r\n", "\n")), 1):
        day = passage.date
        time = None if day is None else int(dt.datetime(day.year, day.month, day.day, tzinfo=dt.UTC).timestamp()) * 10**9
        metadata = {"headings": list(passage.headings)} if passage.headings else {}
        kind: Kind = "code" if passage.is_code else "document"
        turns.append(Turn(passage.text, 1, position, time=time, metadata=metadata, context=passage.context, kind=kind))
    return turns


PARSERS: Final[dict[Format, Callable[[bytes], list[Turn]]]] = {
    "locomo": locomo,
    "chat-json": chat_json,
    "jsonl": jsonl,
    "text": text,
    "markdown": markdown,
}


def _session(listed: object, number: int, time: int | None, where: str) -> Iterator[Turn]:
    if not _is_list(listed):
        raise MemInvalid(f"{where} is not a list of turns")
    for position, entry in enumerate(listed, 1):
        place = f"{where}[{position - 1}]"
        if turn := _turn(_object(entry, place), number, position, time, place):
            yield turn


def _turn(entry: dict[str, Any], session: int | str, position: int, time: int | None, where: str) -> Turn | None:
    words = _words(entry.get("text", entry.get("content")), where)
    caption = entry.get("blip_caption") or entry.get("photo") or entry.get("caption")
    if not words.strip() and not caption:
        return None
    speaker = entry.get("speaker") or entry.get("role")
    tags = entry.get("tags")
    metadata = entry.get("metadata")
    turn_id = entry.get("dia_id") or entry.get("id")
    stamp = entry.get("timestamp", entry.get("date"))
    return Turn(
        text=words.strip(),
        session=session,
        position=position,
        speaker=str(speaker) if speaker else None,
        turn_id=str(turn_id) if turn_id else None,
        caption=str(caption).strip() if caption else None,
        time=time if stamp is None else event_time(stamp),
        tags=tuple(str(tag) for tag in tags) if _is_list(tags) else (),
        metadata=_object(metadata, f"{where}.metadata") if metadata is not None else {},
    )


def _words(value: object, where: str) -> str:
    """Plain text, or the text parts of a list of content parts."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if _is_list(value):
        parts = [_object(part, where) for part in value]
        return "\n".join(str(part["text"]) for part in parts if part.get("type", "text") == "text" and "text" in part)
    raise MemInvalid(f"{where} has neither text nor a list of parts as its content")


def _text(data: bytes) -> str:
    for magic, what, advice in _NO_TEXT:
        if data.startswith(magic):
            raise MemInvalid(f"the file is {what}, not text", advice)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MemInvalid(f"the file is not UTF-8 (byte {error.start})", "Convert it to UTF-8 first.") from error
    controls = len(data) - len(data.translate(None, _CONTROLS))
    if b"\0" in data or controls * _CONTROLS_SHARE_INVERSE > len(data):
        raise MemInvalid("the file holds binary data, not text", "Extract its text first, and ingest that.")
    return text


def _parsed(data: bytes, where: str = "the file") -> Any:
    text = _text(data)
    try:
        value = json.loads(text)
        return _paired(value) if _SURROGATE.search(text) else value
    except (ValueError, RecursionError) as error:
        raise MemInvalid(f"{where} is not JSON ({error})") from error


def _paired(value: Any) -> Any:
    """The same without halves of surrogate pairs."""
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if _is_list(value):
        return [_paired(item) for item in value]
    if isinstance(value, dict):
        return {_paired(key): _paired(item) for key, item in value.items()}
    return value


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise MemInvalid(f"{where} is not a JSON object")
    return {str(key): item for key, item in value.items()}


def _is_list(value: object) -> TypeGuard[list[Any]]:
    return isinstance(value, list)
