"""What memctl makes of its arguments, and of events."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from memos_drivers.stores.memory import MemoryStore
from memos_kernel import events as ev
from memos_kernel.eventlog.base import EventLog
from memos_kernel.eventlog.embedded import EmbeddedLog
from memos_kernel.events import Event, Frame, Slot
from memos_tools import logview, offline, receipts
from memos_tools.ctl import main, parser
from memos_tools.output import Trouble
from memos_tools.render import time_text


def test_every_event_of_the_catalogue_has_names_for_its_fields() -> None:
    assert logview.FIELDS.keys() == ev.EVENTS.keys()


def test_a_time_is_read_back_to_the_nanosecond() -> None:
    for time in (0, 1, 999, 1_000, 1_790_000_000_123_456_789, 1_790_000_000_000_000_000):
        assert offline.nanoseconds(time_text(time)) == time
    assert offline.nanoseconds("2026-01-31T10:30:00+01:00") == offline.nanoseconds("2026-01-31T09:30:00Z")
    for wrong in ("yesterday", "2026-01-31T10:30:00", "-1"):
        with pytest.raises(Trouble, match="neither an offset nor a time"):
            offline.nanoseconds(wrong)


def test_a_hash_that_two_records_begin_with_is_refused_with_their_offsets(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = [bytes.fromhex(f"aabbccdd{n:056x}") for n in (0, 1, 0x10 << 216)]
    frame = Frame(1, bytes(16), 1, bytes(16), 0, bytes(32), [b"", b"", b""], bytes(32))
    items = [offline.Item(n, b"", one, b"", frame, 0) for n, one in enumerate(hashes)]

    def walk(log: EventLog) -> Iterator[offline.Item]:
        return iter(items)

    def head(log: EventLog) -> int:
        return 2

    monkeypatch.setattr(offline, "walk", walk)
    monkeypatch.setattr(offline, "head", head)
    log = EmbeddedLog(MemoryStore())
    with pytest.raises(Trouble, match="offsets 0, 1, 2 all begin with aabbccdd; give more digits"):
        offline.resolve(log, "aabbccdd")
    assert offline.resolve(log, "hash:aabbccdd10") == 2
    assert offline.resolve(log, "2") == 2


def test_a_point_is_what_follows_the_last_at_sign(tmp_path: Path) -> None:
    odd = tmp_path / "me@home"
    odd.mkdir()
    assert offline.source_and_point(str(odd)) == (str(odd), None)
    assert offline.source_and_point(f"{odd}@12") == (str(odd), "12")
    assert offline.source_and_point("data") == ("data", None)


def test_public_fields_are_shown_as_callers_write_them() -> None:
    cube = bytes(range(16))
    payload = [b"\xaa" * 16, 5, b"\xbb" * 32, Slot(3, 7), None]
    shown = logview.named(Event(ev.ALLOCATED, 1, [cube, "alice", "plaintext", None, payload, [3, 7], [[cube, 2, 0]]]))
    assert shown["cube_id"] == "00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert (shown["slot"], shown["payload"]["slot"], shown["payload"]["inline_bytes"]) == ("3.7", "3.7", None)
    assert shown["lineage"] == ["00010203-0405-0607-0809-0a0b0c0d0e0f@2 content"]
    forked = logview.named(Event(ev.FORKED, 1, ["a", "b", 4, 9, bytes(32)]))
    assert (forked["at_seq"], forked["cubes"]) == (4, 9)


@pytest.mark.parametrize("form", ["raw", "hex", "base64", "shell", "nested"])
def test_a_receipt_is_read_in_every_form_that_it_is_handed_out_in(tmp_path: Path, form: str) -> None:
    raw = b"\x99\x01" + bytes(range(100))
    text = base64.b64encode(raw).decode()
    texts = {
        "hex": raw.hex(), "base64": text, "shell": json.dumps({"receipt": {"base64": text}}),
        "nested": json.dumps({"report": {"receipt": {"base64": text}}}),
    }  # fmt: skip
    path = tmp_path / "receipt"
    path.write_bytes(raw if form == "raw" else texts[form].encode())
    assert receipts.read(path) == raw


def test_a_file_that_holds_no_receipt_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "receipt"
    path.write_text('{"something": "else"}')
    with pytest.raises(Trouble, match="holds no receipt"):
        receipts.read(path)


def test_json_may_be_asked_for_before_or_after_the_command(tmp_path: Path) -> None:
    for words in (["--json", "verify", "d"], ["verify", "--json", "d"]):
        assert parser().parse_args(words).json is True
    assert parser().parse_args(["verify", "d"]).json is False
    assert parser().parse_args(["log", "tail", "--json", "d"]).json is True


def test_an_error_says_what_to_do(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["verify", str(tmp_path)]) == 2
    assert "name the data directory" in capsys.readouterr().err
    assert main(["--json", "verify", str(tmp_path)]) == 2
    assert "name the data directory" in json.loads(capsys.readouterr().err)["error"]
