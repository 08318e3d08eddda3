"""The benchmarks' own arithmetic, and that every workload runs: on a few cubes, with no word on how fast."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memos_tools.bench import main
from memos_tools.bench_measure import latencies, ratio
from memos_tools.bench_sets import evidence_of


def test_percentiles_are_of_the_sorted_samples() -> None:
    row = latencies("call", [n * 1000 for n in reversed(range(1, 101))])
    assert (row.p50_us, row.p95_us, row.p99_us, row.count) == (51.0, 96.0, 100.0, 100)


def test_a_rate_counts_calls_over_the_wall_not_over_their_sum() -> None:
    assert latencies("call", [1_000_000_000] * 64, 2.0).per_s == 32


def test_a_ratio_is_the_median_of_the_blocks_so_one_noisy_block_does_not_count() -> None:
    assert ratio([[10, 10], [10, 10], [900, 900]], [[20, 20], [20, 20], [20, 20]]) == 0.5


def test_evidence_is_split_at_semicolons_and_spaces_and_ids_of_no_turn_are_left_out() -> None:
    question = {"evidence": ["D8:6; D9:17", "D1:1 D1:2", "D", "D99:1"]}
    assert evidence_of(question, frozenset(("D8:6", "D9:17", "D1:1", "D1:3"))) == {"D8:6", "D9:17", "D1:1"}
    assert evidence_of({}, frozenset(("D1:1",))) == frozenset()


@pytest.mark.parametrize(
    ("words", "first", "lines"),
    [
        (["read", "--blocks", "1", "--calls", "5"], "mem_read 300 B", 2),
        (["alloc", "--calls", "5", "--seconds", "0.1"], "mem_alloc 300 B, one client", 4),
        (["start", "--cubes", "50"], "build with mem_alloc_many", 6),
        (["replay", "--records", "50"], "replay into memory", 4),
        (["search", "--cubes", "50", "--queries", "5"], "build with vectors", 6),
    ],
)
def test_a_workload_answers_with_one_json_line(
    words: list[str], first: str, lines: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--json", "--dir", str(tmp_path)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["workload"] == words[0]
    assert answer["rows"][0]["name"] == first
    assert len(answer["rows"]) == lines
    assert not list(tmp_path.iterdir()), "nothing is left behind"
