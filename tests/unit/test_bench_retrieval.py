"""The tables and the plot of the retrieval benchmark, from results made up here, and what a peer is given."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from tests.bench.peer_recall import Known
from tests.bench.retrieval import page, peer, timed_row
from tests.bench.retrieval_plot import lines_of, plot, spread

from memos_tools.bench_recall import Answer, recall_of
from memos_tools.bench_sets import Question

QUESTIONS = [Question("who?", "single-hop", "a", frozenset(("k1",))), Question("when?", "temporal", "b", frozenset(("k2",)))]


def answers() -> list[Answer]:
    return [Answer(question, ("k1", "k3"), (7, 8), 2_000_000) for question in QUESTIONS]


def chapters() -> dict[str, list[dict[str, Any]]]:
    row = timed_row(recall_of("all stages", answers(), (10,)), answers()).to_json()
    named = [{**row, "name": name} for name in ("all stages", "without dense", "no stages", "words alone & <more>")]
    return {"ablation": named, "peers": [{**row, "name": "bm25s (words)"}]}


def test_a_row_says_recall_and_the_median_of_the_milliseconds() -> None:
    row = chapters()["ablation"][0]
    assert (row["name"], row["count"], row["at_10"], row["tokens_10"], row["p50_ms"]) == ("all stages", 2, 0.5, 15, 2.0)


def test_a_page_has_a_table_for_each_chapter_and_names_who_is_left_out() -> None:
    found = {
        "commit": "abc", "machine": {"time": "2026-01-01T00:00:00Z", "processor": "p", "cores": 2, "load_1m": 0.5},
        "sets": {"locomo": {**chapters(), "left out": [{"name": "mem0", "count": 0, "why": "not there"}]}},
    }  # fmt: skip
    text = page(found)
    assert "| all stages | 2 | 0.500 | 0.500 (0.000–1.000) | 0.500 | 0.500 | 15 | 15 | 2.0 |" in text
    assert "locomo: mem0 is left out: not there" in text


def test_the_plot_shows_ours_the_stages_that_are_added_and_the_peers() -> None:
    names = [line.name for line in lines_of(chapters())]
    assert names == ["mem_search", "no stages", "words alone & <more>", "bm25s (words)"]
    drawn = ET.fromstring(plot(chapters()))
    words = [element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert "words alone & <more>  0.50 @10" in words


def test_a_plot_of_nothing_is_still_a_plot() -> None:
    assert ET.fromstring(plot({})).tag.endswith("svg")


def test_labels_keep_their_order_and_their_distance() -> None:
    placed = spread([100, 101, 20, 102], 15, 0, 110)
    assert sorted(placed) == [placed[2], placed[0], placed[1], placed[3]]
    assert all(b - a >= 15 for a, b in zip(sorted(placed), sorted(placed)[1:], strict=False))
    assert max(placed) <= 110


def test_a_peer_that_is_not_there_is_left_out_with_the_reason(tmp_path: Path) -> None:
    found, why = peer("bm25s", str(tmp_path / "none"), tmp_path / "given.json", QUESTIONS, {}, tmp_path)
    assert found == []
    assert "recall_peers.sh" in why


def test_a_peer_that_fails_is_left_out_with_its_last_words(tmp_path: Path) -> None:
    folder = tmp_path / "peers-bm25s" / "bin"
    folder.mkdir(parents=True)
    (folder / "python").write_text("#!/bin/sh\necho no such library >&2\nexit 1\n")
    (folder / "python").chmod(0o700)
    found, why = peer("bm25s", str(tmp_path / "peers"), tmp_path / "given.json", QUESTIONS, {}, tmp_path)
    assert (found, why) == ([], "no such library")


def test_an_embedder_of_a_peer_gives_the_vectors_that_it_was_given() -> None:
    known = Known({"a": [1.0, 2.0], "b": [3.0, 4.0]})
    assert known.embed(" a ") == [1.0, 2.0]
    assert known.embed(["b", "a"]) == [[3.0, 4.0], [1.0, 2.0]]
    assert known.config.embedding_dims == 2


def test_the_plot_is_a_program(tmp_path: Path) -> None:
    results, svg = tmp_path / "found.json", tmp_path / "found.svg"
    results.write_text(json.dumps({"sets": {"locomo": chapters()}}))
    root = Path(__file__).parents[2]
    words = [sys.executable, "-m", "tests.bench.retrieval_plot", str(results), str(svg)]
    subprocess.run(words, cwd=root, check=True, timeout=60)
    assert svg.read_text().startswith("<svg")
