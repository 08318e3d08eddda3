"""What is no text is refused with what to do; what is odd text is read; nothing is half read."""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from memos_client import formats
from memos_client.ingest import ingest
from memos_syscalls import messages as m
from memos_syscalls.errors import MemError, MemInvalid, MemTooLarge
from memos_syscalls.limits import METADATA_BYTES_MAX


class Recorder:
    """Takes every batch, and keeps what it was given."""

    def __init__(self) -> None:
        self.cubes: list[m.NewCube] = []

    def sys_info(self) -> m.SysInfoReply:
        return m.SysInfoReply(
            abi=1, version="0", log_id="", epoch=1, head_offset=0, head_hash="", state_digest="", state_schema=1,
            log={}, public_key="", drivers=[], models=[], principal="uid:0", admin=True,
        )  # fmt: skip

    def mem_alloc_many(
        self, items: Sequence[m.NewCube | Mapping[str, Any]], *, request_id: str | None = None
    ) -> m.MemAllocManyReply:
        self.cubes += [m.NewCube.model_validate(item) for item in items]
        return m.MemAllocManyReply(items=[], offset=len(self.cubes))

    def mem_list(
        self, namespace: str | None = None, *, tags: Sequence[str] | None = None, limit: int | None = None,
        cursor: str | None = None,
    ) -> m.MemListReply:  # fmt: skip
        return m.MemListReply(cubes=[])


def tarred() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w"):
        out.write(b"name\0\0\0")
    return out.getvalue()


@pytest.mark.parametrize("format", ["text", "markdown", "jsonl", "chat-json", "locomo"])
@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"%PDF-1.7 and so on", "a PDF"),
        (b"PK\x03\x04rest", "office document"),
        (b"\x89PNG\r\n", "a picture"),
        (b"\x1f\x8b\x08", "compressed"),
        ("hello".encode("utf-16"), "UTF-16"),
        ("hello".encode("utf-16-le"), "binary data"),
        (tarred(), "binary data"),
        (zlib.compress(b"hello " * 50), "not UTF-8"),
        (b"\x01\x02\x03 text", "binary data"),
        (b"ok\xff", "not UTF-8"),
    ],
)
def test_binary_files_are_refused_with_what_to_do(format: formats.Format, data: bytes, part: str) -> None:
    with pytest.raises(MemInvalid) as caught:
        formats.PARSERS[format](data)
    assert part in caught.value.detail and len(caught.value.advice) > 10


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    for name, text in (("a.txt", ""), ("b.md", " \n\n"), ("c.json", "[]"), ("d.jsonl", "\n"), ("e.json", '[{"role": "x"}]')):
        (tmp_path / name).write_text(text)
        with pytest.raises(MemInvalid) as caught:
            ingest(Recorder(), tmp_path / name, None, "a")
        assert name in caught.value.detail


MIB = 2**20


@pytest.mark.parametrize(
    "unit", ["word and more. ", "x", "漢字。", "👩\u200d👩\u200d👧 ", "- item\n", "# heading\n", "\n\n", "`"]
)
def test_large_files_are_read_whole(tmp_path: Path, unit: str) -> None:
    size = 10 * MIB if unit.startswith("word") else MIB // 8
    text = "begin " + unit * (size // len(unit.encode())) + " end"
    for name in ("a.txt", "a.md")[: 1 if size > MIB else 2]:
        (tmp_path / name).write_text(text, encoding="utf-8")
        kernel = Recorder()
        ingest(kernel, tmp_path / name, None, "a")
        said = "".join(str(cube.content) for cube in kernel.cubes)
        assert said.startswith("begin") and said.endswith("end")
        assert max(len(str(cube.content)) for cube in kernel.cubes) < 10_000


def test_a_file_over_the_limit_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memos_client.ingest.FILE_BYTES_MAX", 10)
    (tmp_path / "a.txt").write_text("more than ten bytes")
    with pytest.raises(MemTooLarge):
        ingest(Recorder(), tmp_path / "a.txt", None, "a")


@pytest.mark.parametrize(
    "last",
    [
        {"text": "x", "metadata": {"a": "b" * METADATA_BYTES_MAX}},
        {"text": "x", "metadata": {"a": 10**30}},
        {"text": "x", "metadata": "none"},
        {"text": "x", "timestamp": "31 June 2023"},
        {"text": "x", "timestamp": 10**300},
        {"text": "x", "timestamp": float("inf")},
        {"text": "x", "timestamp": float("nan")},
        {"text": "x", "session": 10**30},
        {"text": 5},
        {"text": "x", "tags": ["t" * 5000]},
        {"text": "x", "tags": [f"t{n}" for n in range(500)]},
    ],
)
def test_an_error_in_the_last_line_leaves_no_cube(tmp_path: Path, last: dict[str, Any]) -> None:
    path, kernel = tmp_path / "a.jsonl", Recorder()
    path.write_text("\n".join([json.dumps({"text": f"turn {n}"}) for n in range(300)] + [json.dumps(last)]))
    with pytest.raises(MemError):
        ingest(kernel, path, None, "a")
    assert kernel.cubes == []


def test_deep_metadata_leaves_no_cube(tmp_path: Path) -> None:
    path, kernel = tmp_path / "a.jsonl", Recorder()
    path.write_text('{"text": "x", "metadata": {"a": ' + "[" * 200 + "]" * 200 + "}}")
    with pytest.raises(MemInvalid):
        ingest(kernel, path, None, "a")
    assert kernel.cubes == []


def test_halves_of_surrogate_pairs_and_odd_lines_are_read(tmp_path: Path) -> None:
    path, kernel = tmp_path / "a.jsonl", Recorder()
    path.write_bytes(
        '{"text": "cut \\ud83d off, whole \\ud83d\\ude42", "speaker": "\\udc00"}\r\n{"text": "a\u2028b\u0085c"}\n'.encode()
    )
    ingest(kernel, path, None, "a")
    assert [cube.content for cube in kernel.cubes] == ["\ufffd: cut \ufffd off, whole 🙂", "a\u2028b\u0085c"]


def test_sessions_may_be_interleaved_and_named(tmp_path: Path) -> None:
    lines = [
        {"text": "a", "session": "red"},
        {"text": "b", "session": 2},
        {"text": "c", "session": "red"},
        {"text": "d", "session": 0},
    ]
    path, kernel = tmp_path / "a.jsonl", Recorder()
    path.write_text("\n".join(map(json.dumps, lines)))
    assert ingest(kernel, path, None, "a").sessions == 3
    places = [(cube.metadata or {}) for cube in kernel.cubes]
    assert [(at["session"], at["position"]) for at in places] == [("red", 1), (2, 1), ("red", 2), (0, 1)]
