"""Turns become cubes in bounded batches whose request ids make a second run a repeat."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from memos_client.formats import Turn
from memos_client.ingest import BATCH_BYTES_MAX, BATCH_ITEMS_MAX, batches_of, cube_of, guess_format, ingest
from memos_syscalls import messages as m
from memos_syscalls.errors import MemInvalid, MemTooLarge


class Stub:
    """Keeps the first answer to each request id, as a kernel does."""

    def __init__(self, dies_after: int | None = None) -> None:
        self.answers: dict[str, m.MemAllocManyReply] = {}
        self.head = 3
        self.dies_after = dies_after

    def sys_info(self) -> m.SysInfoReply:
        return m.SysInfoReply(
            abi=1, version="0", log_id="", epoch=1, head_offset=self.head, head_hash="", state_digest="", state_schema=1,
            log={}, public_key="", drivers=[], models=[], principal="uid:0", admin=True,
        )  # fmt: skip

    def mem_alloc_many(
        self, items: Sequence[m.NewCube | Mapping[str, Any]], *, request_id: str | None = None
    ) -> m.MemAllocManyReply:
        assert request_id is not None
        if request_id not in self.answers:
            if self.dies_after is not None and len(self.answers) >= self.dies_after:
                raise ConnectionError
            self.head += 1
            self.answers[request_id] = m.MemAllocManyReply(items=[], offset=self.head)
        return self.answers[request_id]

    def mem_list(
        self, namespace: str | None = None, *, tags: Sequence[str] | None = None, limit: int | None = None,
        cursor: str | None = None,
    ) -> m.MemListReply:  # fmt: skip
        raise AssertionError("only asked for when facts are wanted")


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    path = tmp_path / "talk.json"
    turns = [{"speaker": "Al", "text": f"turn {n}", "photo": "a door" if n == 5 else None} for n in range(300)]
    path.write_text(json.dumps({"sessions": [{"date": "2023-05-08T13:56:00Z", "turns": turns}]}))
    return path


def test_a_turn_becomes_a_cube_with_its_place_in_the_metadata() -> None:
    turn = Turn("look", 2, 7, speaker="Al", turn_id="D2:7", caption="a door", time=5, tags=("x",), metadata={"n": 1})
    cube = cube_of(turn, "a/b", "f.json")
    assert cube.content == "Al: look [photo: a door]"
    assert (cube.name, cube.semantic_type, cube.origin, cube.valid_from) == ("D2:7", "message", "import", 5)
    assert cube.tags == ["session_2", "Al", "x"]
    assert cube.metadata == {"n": 1, "session": 2, "position": 7, "dia_id": "D2:7", "source": "f.json", "speaker": "Al"}


def test_a_second_run_adds_nothing(talk: Path) -> None:
    kernel, steps = Stub(), list[tuple[int, int]]()
    first = ingest(kernel, talk, "chat-json", "a", lambda done, total: steps.append((done, total)))
    again = ingest(kernel, talk, None, "a")
    assert (first.turns, first.new, first.batches, first.sessions, first.offset) == (300, 300, 3, 1, 6)
    assert (again.turns, again.new, again.offset) == (300, 0, 6)
    assert steps == [(128, 300), (256, 300), (300, 300)]
    assert ingest(kernel, talk, None, "other").new == 300


def test_a_run_that_was_cut_off_goes_on(talk: Path) -> None:
    kernel = Stub(dies_after=1)
    with pytest.raises(ConnectionError):
        ingest(kernel, talk, None, "a")
    kernel.dies_after = None
    assert ingest(kernel, talk, None, "a").new == 300 - BATCH_ITEMS_MAX


def test_batches_are_bounded_in_items_and_bytes() -> None:
    cubes = [cube_of(Turn("x" * 50_000, 1, n), "a", "f") for n in range(30)]
    sizes = [len(batch) for batch in batches_of(cubes)]
    assert sum(sizes) == 30 and max(sizes) == BATCH_BYTES_MAX // 50_200
    assert [len(batch) for batch in batches_of([cube_of(Turn("x", 1, n), "a", "f") for n in range(129)])] == [128, 1]


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(MemTooLarge):
        cube_of(Turn("x" * (BATCH_BYTES_MAX + 1), 1, 1), "a", "f")
    with pytest.raises(MemInvalid):
        cube_of(Turn("x", 1, 1), "a//b", "f")
    with pytest.raises(MemInvalid):
        ingest(Stub(), tmp_path / "none", None, "a")
    with pytest.raises(MemInvalid):
        ingest(Stub(), tmp_path, "csv", "a")


def test_formats_are_guessed(tmp_path: Path) -> None:
    for name, data, format in (("a.jsonl", "", "jsonl"), ("a.txt", "", "text"), ("a.json", "[]", "chat-json"),
                               ("a.md", "", "markdown"), ("b.json", '{"session_1": []}', "locomo")):  # fmt: skip
        (tmp_path / name).write_text(data)
        assert guess_format(tmp_path / name) == format
