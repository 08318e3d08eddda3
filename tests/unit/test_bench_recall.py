"""What recall is measured on and how it is counted, with conversations made up here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memos_tools.bench import main
from memos_tools.bench_recall import Answer, interval, recall_of, recalls, tokens_in, variants
from memos_tools.bench_sets import Question, files_of, locomo_set, longmemeval_set, session_time

TALK: dict[str, Any] = {
    "conversation": {
        "speaker_a": "Ana",
        "speaker_b": "Ben",
        "session_1_date_time": "1:56 pm on 8 May, 2023",
        "session_1": [
            {"speaker": "Ana", "dia_id": "D1:1", "text": "I adopted a greyhound called Comet."},
            {"speaker": "Ben", "dia_id": "D1:2", "text": "Lovely! My tomatoes are ripe."},
        ],
        "session_2_date_time": "9:10 am on 1 June, 2023",
        "session_2": [{"speaker": "Ben", "dia_id": "D2:1", "text": "We sailed to Elba on Saturday."}],
    },
    "qa": [
        {"question": "What is the greyhound called?", "evidence": ["D1:1"], "category": 4, "answer": "Comet"},
        {"question": "Comet and Elba?", "evidence": ["D1:1; D2:1"], "category": 1, "answer": "both"},
        {"question": "Nobody said it?", "evidence": [], "category": 5},
        {"question": "Where is nowhere?", "evidence": ["D9:9"], "category": 3},
    ],
}


def memories() -> list[dict[str, Any]]:
    """One question whose answer changed, one that did not, one that nobody answered; they share a session."""

    def turn(content: str, answer: bool = False) -> dict[str, Any]:
        return {"role": "user", "content": content, "has_answer": answer}

    early = [turn("Hello."), turn("I own three bikes.", True)]
    late = [turn("I own four bikes now.", True), turn("Goodbye.")]
    both = {
        "haystack_session_ids": ["s_late", "s_early"],
        "haystack_dates": ["2023/10/10 (Tue) 23:08", "2023/02/22 (Wed) 08:13"],
        "haystack_sessions": [late, early],
    }
    plain = [turn("Hello."), turn("I own three bikes.")]
    one = {"haystack_session_ids": ["s_early"], "haystack_dates": ["2023/02/22 (Wed) 08:13"]}
    return [
        {"question": "How many bikes do I own?", "question_type": "knowledge-update", **both},
        {"question": "Which bikes?", "question_type": "single-session-user", **one, "haystack_sessions": [early]},
        {"question": "Which boats?", "question_type": "single-session-user", **one, "haystack_sessions": [plain]},
    ]


def locomo_file(folder: Path) -> Path:
    path = folder / "conv-1.json"
    path.write_text(json.dumps(TALK))
    return path


def longmemeval_file(folder: Path) -> Path:
    path = folder / "oracle-3.json"
    path.write_text(json.dumps(memories()))
    return path


def answer(found: str, evidence: str, kind: str = "single-hop", namespace: str = "locomo/a") -> Answer:
    question = Question("?", kind, namespace, frozenset(evidence.split()))
    return Answer(question, tuple(found.split()), (10,) * len(found.split()), 1000)


def test_only_questions_with_evidence_that_names_a_turn_are_asked(tmp_path: Path) -> None:
    found = locomo_set([locomo_file(tmp_path)])
    assert [(q.text, q.kind, q.namespace, set(q.evidence)) for q in found.questions] == [
        ("What is the greyhound called?", "single-hop", "locomo/conv-1", {"D1:1"}),
        ("Comet and Elba?", "multi-hop", "locomo/conv-1", {"D1:1", "D2:1"}),
    ]


def test_sessions_are_pooled_once_each_in_the_order_of_their_dates(tmp_path: Path) -> None:
    found = longmemeval_set([longmemeval_file(tmp_path)])
    assert [source.name for source in found.sources] == ["s_early.json", "s_late.json"]
    first = json.loads(found.sources[0].data)["sessions"][0]
    assert first["date"] == "2023-02-22T08:13:00+00:00"
    assert [turn["id"] for turn in first["turns"]] == ["s_early:1", "s_early:2"]
    assert b"has_answer" not in found.sources[0].data
    assert [set(q.evidence) for q in found.questions] == [{"s_early:2", "s_late:1"}, {"s_early:2"}]


def test_of_a_changed_answer_the_newest_turn_is_current_in_whatever_order_the_sessions_stand(tmp_path: Path) -> None:
    (update,) = longmemeval_set([longmemeval_file(tmp_path)]).updates
    assert (set(update.evidence), set(update.outdated)) == ({"s_late:1"}, {"s_early:2"})


def test_a_session_date_is_utc() -> None:
    assert session_time("2023/02/22 (Wed) 08:13") == "2023-02-22T08:13:00+00:00"
    with pytest.raises(ValueError, match="day"):
        session_time("2023/02/31 (Fri) 08:13")


def test_files_lie_in_the_folder_of_their_set_or_in_the_folder_itself(tmp_path: Path) -> None:
    assert files_of("locomo", tmp_path) == []
    flat = locomo_file(tmp_path)
    assert files_of("locomo", tmp_path) == [flat]
    (tmp_path / "locomo").mkdir()
    assert files_of("locomo", tmp_path) == [flat]
    nested = locomo_file(tmp_path / "locomo")
    assert files_of("locomo", tmp_path) == [nested]


def test_recall_is_the_mean_share_of_the_evidence_and_a_turn_counts_once() -> None:
    answers = [answer("a x x b", "a b"), answer("x x x x x c", "c"), answer("x", "d")]
    found = recall_of("all", answers)
    assert found.at[5] == pytest.approx(1 / 3)
    assert found.at[10] == pytest.approx(2 / 3)
    assert found.low[10] <= found.at[10] <= found.high[10]
    assert found.tokens[5] == pytest.approx((40 + 50 + 10) / 3)
    assert found.row().more["at_5"] == 0.3333


def test_groups_are_conversations_where_there_are_several_and_kinds_of_question() -> None:
    one = [answer("a", "a"), answer("x", "a", "temporal")]
    assert [(found.name, found.at[5]) for found in recalls(one)] == [("all", 0.5), ("single-hop", 1.0), ("temporal", 0.0)]
    two = [*one, answer("b", "b", namespace="locomo/b")]
    names = [found.name for found in recalls(two)]
    assert names == ["all", "conversation a", "conversation b", "single-hop", "temporal"]


def test_passages_of_a_turn_take_a_place_each_and_are_counted_as_one_turn_too() -> None:
    passages = [answer("x x x x x a", "a")]
    hits, turns, *_ = recalls(passages)
    assert (hits.name, hits.at[5], turns.name, turns.at[5]) == ("all", 0.0, "all, k distinct turns", 1.0)
    assert turns.tokens[5] == 60


def test_an_interval_holds_the_mean_is_narrower_with_more_values_and_always_the_same() -> None:
    few, many = interval([0.0, 1.0] * 10), interval([0.0, 1.0] * 200)
    assert few[0] < many[0] < 0.5 < many[1] < few[1]
    assert interval([0.0, 1.0] * 10) == few
    assert interval([1.0] * 5) == (1.0, 1.0)


def test_tokens_are_counted_of_words() -> None:
    assert tokens_in("one two three four five six seven eight nine ten") == 13
    assert tokens_in(b"") == 0


def test_every_way_to_search_has_a_name_of_its_own() -> None:
    names = [name for name, _ in variants()]
    assert names[0] == "all stages"
    assert len(set(names)) == len(names)


def words_only(workload: str, folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> list[dict[str, Any]]:
    words = [workload, "--data", str(folder), "--dir", str(folder / "scratch"), "--embedder", "none", "--json", *more]
    assert main(words) == 0
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["rows"]
    return rows


def test_the_kernel_is_asked_about_conversations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    locomo_file(tmp_path)
    rows = {row["name"]: row for row in words_only("locomo", tmp_path, capsys)}
    assert rows["locomo: ingest"]["count"] == 3
    assert rows["recall, all"]["at_5"] == 1.0
    assert rows["recall, multi-hop"]["count"] == 1


def test_the_kernel_is_asked_about_what_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    longmemeval_file(tmp_path)
    rows = {row["name"]: row for row in words_only("longmemeval", tmp_path, capsys)}
    assert rows["recall, all"]["at_5"] == 1.0
    found = rows["knowledge updates"]
    assert found["both_found"] == found["outdated_with_at_time"] == found["outdated_with_until"] == 1.0


def test_without_data_it_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no conv-\*\.json in .*--data"):
        main(["locomo", "--data", str(tmp_path)])


def test_a_table_shows_shares_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    locomo_file(tmp_path)
    assert main(["locomo", "--data", str(tmp_path), "--embedder", "none"]) == 0
    assert "recall, multi-hop" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["[]", "{", '{"conversation": {"session_1": 3}, "qa": []}', '{"qa": []}'])
def test_a_file_that_is_no_conversation_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "conv-1.json").write_text(content)
    with pytest.raises(SystemExit, match=r"conv-1.json: not all in the format of locomo"):
        main(["locomo", "--data", str(tmp_path), "--embedder", "none"])
