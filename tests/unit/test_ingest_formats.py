"""Each format becomes turns; what is not the format is refused with its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import memos_tools
from memos_client import formats
from memos_syscalls.errors import MemInvalid

DEMO = Path(memos_tools.__file__).parent / "data" / "conversation.json"
MAY_8 = 1683554160 * 10**9


def test_locomo_sessions_come_in_number_order_with_their_dates() -> None:
    talk = {
        "session_10": [{"speaker": "Bo", "dia_id": "D10:1", "text": "later"}],
        "session_2_date_time": "1:56 pm on 8 May, 2023",
        "session_2": [
            {"speaker": "Al", "dia_id": "D2:1", "text": "first", "blip_caption": "a red door"},
            {"speaker": "Bo", "dia_id": "D2:2", "text": " "},
        ],
        "session_3_date_time": "a date without a session",
    }
    for data in (talk, {"conversation": talk, "qa": []}):
        first, last = formats.locomo(json.dumps(data).encode())
        assert (first.text, first.caption, first.time) == ("first", "a red door", MAY_8)
        assert (first.turn_id, first.session) == ("D2:1", 2)
        assert (last.text, last.time, last.session) == ("later", None, 10)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("12:09 am on 13 September, 2023", 1694563740),
        ("12:30 pm on 1 January, 2023", 1672576200),
        ("2023-05-08", 1683504000),
        ("2023-05-08T13:56:00+00:00", 1683554160),
        ("2023-05-08T15:56:00+02:00", 1683554160),
        (1683554160, 1683554160),
        (1683554160000, 1683554160),
        (1683554160 * 10**9, 1683554160),
    ],
)
def test_event_times(value: object, seconds: int) -> None:
    assert formats.event_time(value) == seconds * 10**9


@pytest.mark.parametrize("value", ["yesterday", "25:00 pm on 8 May, 2023", "1:00 pm on 31 June, 2023", True])
def test_what_is_no_time_is_refused(value: object) -> None:
    with pytest.raises(MemInvalid):
        formats.event_time(value)


def test_chat_json_takes_its_three_shapes() -> None:
    message = {"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {}}]}
    for shape in ([message], {"messages": [message]}, {"sessions": [{"date": "2023-05-08", "turns": [message]}]}):
        (turn,) = formats.chat_json(json.dumps(shape).encode())
        assert (turn.speaker, turn.text, turn.session, turn.position) == ("user", "hi", 1, 1)


def test_jsonl_and_text() -> None:
    lines = b'{"content": "one", "id": "x", "tags": ["t"], "metadata": {"n": 1}}\n\n{"text": "two", "timestamp": 1683554160}\n'
    one, two = formats.jsonl(lines)
    assert (one.text, one.turn_id, one.tags, one.metadata, one.position) == ("one", "x", ("t",), {"n": 1}, 1)
    assert (two.text, two.time, two.position) == ("two", MAY_8, 2)
    assert [t.text for t in formats.text(b"a\nb\r\n\r\n \n c \n\n\n")] == ["a\nb", "c"]


@pytest.mark.parametrize(
    ("format", "data", "part"),
    [
        ("locomo", b"{}", "no session_1"),
        ("locomo", b'{"session_1": {}}', "session_1 is not a list"),
        ("chat-json", b'"x"', "not a JSON object"),
        ("chat-json", b'{"turns": []}', "neither"),
        ("chat-json", b'[{"role": "user", "content": 5}]', "the list[0]"),
        ("chat-json", b'[{"role": "user"', "not JSON"),
        ("chat-json", b"[" * 100_000, "not JSON"),
        ("jsonl", b'{"text": "a"}\nnonsense', "line 2"),
        ("text", b"ok\xff", "not UTF-8"),
    ],
)
def test_other_files_are_refused_with_their_place(format: formats.Format, data: bytes, part: str) -> None:
    with pytest.raises(MemInvalid) as caught:
        formats.PARSERS[format](data)
    assert part in caught.value.detail


def test_the_demo_conversation_is_what_the_demo_needs() -> None:
    turns = formats.chat_json(DEMO.read_bytes())
    assert len(turns) >= 220
    times = [turn.time for turn in turns if turn.time is not None]
    assert len(times) == len(turns) and times == sorted(times) and times[-1] - times[0] > 200 * 86_400 * 10**9
    assert sum("4471-KITE" in turn.text for turn in turns) == 2 and sum(turn.caption is not None for turn in turns) > 10
    assert len({turn.text for turn in turns}) == len(turns)
