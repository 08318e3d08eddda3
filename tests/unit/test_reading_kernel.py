"""A real kernel takes what was read: turns, passages, and facts that are erased with their turns."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path

import pytest
from tests.unit.test_reading_facts import Server

from memos_client import Kernel
from memos_client.ingest import Endpoint, IngestFacts
from memos_client.reading.extraction import REFUSED
from memos_client.testing import kernel as fresh
from memos_syscalls.errors import MemError


@pytest.fixture
def server() -> Generator[Server]:
    one = Server()
    yield one
    one.close()


def test_facts_stand_on_their_turns_and_are_erased_with_them(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    texts = ["the soup has celery", "I went to Ghent yesterday", "Some long story. " * 200]
    path.write_text("\n".join(json.dumps({"text": text, "speaker": "Maya", "timestamp": "2023-05-08"}) for text in texts))
    endpoint = Endpoint(server.url, "m")
    with fresh(embedder="none") as k:
        made = k.ingest(path, "maya", extract=endpoint)
        assert isinstance(made, IngestFacts) and (made.turns, made.new, made.facts, made.times) == (5, 5, 1, 1)
        assert made.offset == k.sys_info().head_offset
        again = k.ingest(path, "maya", extract=endpoint)
        assert isinstance(again, IngestFacts) and (again.new, again.facts, again.new_facts) == (0, 1, 0)
        assert k.sys_info().head_offset == made.offset and len(server.asked) == 1
        turn, ghent, *parts, fact = k.mem_list("maya")
        assert [entry["cube_id"] for entry in fact.parents] == [turn.cube_id] and fact.origin == "inference"
        assert ghent.metadata["times"] == [["yesterday", "2023-05-07", "2023-05-07"]]
        assert [part.metadata["part"] for part in parts] == [[1, 3], [2, 3], [3, 3]]
        k.mem_shred(turn.cube_id)
        with pytest.raises(MemError):
            k.mem_read(fact.cube_id)
        _not_made_again(k, path, endpoint)


def _not_made_again(k: Kernel, path: Path, endpoint: Endpoint) -> None:
    head = k.sys_info().head_offset
    again = k.ingest(path, "maya", extract=endpoint)
    assert isinstance(again, IngestFacts) and (again.new, again.facts) == (0, 0) and again.without_facts == {REFUSED: 5}
    assert k.sys_info().head_offset == head
