"""Documents find those beside them, in whatever order they came, and no others."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memos_drivers.plaintext.documents import Document
from memos_drivers.plaintext.index import PlaintextIndex
from memos_drivers.plaintext.latent import Tokens
from memos_drivers.plaintext.searching import SearchQuery
from memos_drivers.plaintext.sequences import NONE, Place, Sequences, place_of
from memos_drivers.plaintext.signs import ASKS, FIRST_PERSON, asks_for_the_present, dated, length, signs, without_names


def cube(number: int) -> bytes:
    return uuid.uuid5(uuid.NAMESPACE_OID, str(number)).bytes


def turn(number: int, position: int, text: str, speaker: str = "Ann", session: str = "1", namespace: str = "a") -> Document:
    return Document(cube(number), 1, number, namespace, text, place=Place(session, position, speaker))


def filled(*documents: Document, index: PlaintextIndex | None = None) -> PlaintextIndex:
    index = index or PlaintextIndex()
    index.add(documents)
    for document in documents:
        index.set_live(document.cube_id, document.version)
    return index


def anyone(cube_id: bytes, version: int) -> bool:
    return True


def found(index: PlaintextIndex, text: str, **fields: Any) -> list[bytes]:
    return [hit.cube_id for hit in index.search(SearchQuery(text, **fields), anyone)]


STEPS = st.lists(st.tuples(st.sampled_from(["stand", "leave"]), st.integers(0, 2), st.integers(0, 9)), max_size=40)


@given(STEPS)
def test_neighbours_are_those_of_a_sorted_list(steps: list[tuple[str, int, int]]) -> None:
    sequences, model = Sequences(), dict[tuple[int, int], int]()
    places: dict[tuple[int, int], int] = {}
    for number, (step, sequence, position) in enumerate(steps):
        key = (sequence, position)
        places[key] = sequences.place(0, str(sequence), position)
        if step == "stand":
            sequences.stand(places[key], number)
            model[key] = number
        elif key in model:
            sequences.leave(places[key], model.pop(key))
    for (sequence, position), place in places.items():
        known = sorted(at for named, at in places if named == sequence)
        at = known.index(position)
        before = [model.get((sequence, p), NONE) for p in known[max(0, at - 2) : at][::-1]]
        after = [model.get((sequence, p), NONE) for p in known[at + 1 : at + 3]]
        wanted = [*before, *[NONE] * (2 - len(before)), *after, *[NONE] * (2 - len(after))]
        assert sequences.around(np.asarray([place], np.int32), 2, 2)[0].tolist() == wanted


def test_what_leaves_after_another_stands_there_does_not_take_it_along() -> None:
    sequences = Sequences()
    first, second = sequences.place(0, "s", 1), sequences.place(0, "s", 2)
    sequences.stand(second, 7)
    sequences.stand(second, 8)
    sequences.leave(second, 7)
    assert sequences.around(np.asarray([first], np.int32), 1, 1).tolist() == [[NONE, 8]]


@pytest.mark.parametrize(("metadata", "place"), [
    ({"session": 3, "position": 0, "speaker": "Ann", "source": "f"}, Place("f\x003", 0, "Ann")),
    ({"session": "x", "position": 2}, Place("\0x", 2, "")), ({"session": 3}, None), ({"position": 3}, None),
    ({"session": True, "position": 1}, None), ({"session": 1, "position": -1}, None), ({"session": 1, "position": 1.0}, None),
    ({"session": 1, "position": 1, "speaker": 7, "source": 8}, Place("\x001", 1, "")), ({}, None),
    ({"session": 1, "position": 2**31}, None),
])  # fmt: skip
def test_a_place_is_named_by_metadata_of_the_right_types(metadata: dict[str, Any], place: Place | None) -> None:
    assert place_of(metadata) == place


def test_a_turn_is_found_by_the_words_of_the_turn_before_it() -> None:
    answer, far = turn(2, 2, "Ben: It was Lisbon!", "Ben"), turn(9, 9, "Ben: It was Prague!", "Ben")
    asked, between = turn(1, 1, "Ann: Where did you spend the summer holiday?"), [turn(n, n, "Ann: hm") for n in range(3, 9)]
    index = filled(asked, answer, *between, far)
    order = found(index, "summer holiday")
    assert order[:2] == [cube(1), cube(2)] and cube(9) not in order
    assert found(index, "summer holiday", without=frozenset({"neighbours"})) == [cube(1)]
    other = turn(20, 2, "Ben: It was Oslo!", "Ben", session="2")
    assert cube(20) not in found(filled(other, index=index), "summer holiday"), "another session is nobody's neighbour"


def test_a_turn_that_comes_late_counts_at_once_and_one_that_goes_no_longer() -> None:
    index = filled(turn(2, 2, "Ben: Lisbon!"), turn(3, 3, "Ann: I see"))
    assert found(index, "holiday") == []
    filled(turn(1, 1, "Ann: Where was your holiday?"), index=index)
    assert cube(2) in found(index, "holiday")
    index.set_live(cube(1), None)
    assert found(index, "holiday") == []
    index.set_live(cube(1), 1)
    assert cube(2) in found(index, "holiday")
    index.remove([cube(1)])
    assert found(index, "holiday") == []


def test_a_neighbour_counts_though_a_filter_hides_it_but_not_from_after_the_moment_of_the_search() -> None:
    asked = turn(1, 1, "Ann: Where was your holiday?")._replace(tags=("question",))
    index = filled(asked, turn(2, 2, "Ben: Lisbon!")._replace(tags=("answer",)))
    assert found(index, "holiday", tags=["answer"]) == [cube(2)]
    assert found(index, "holiday", tags=["answer"], past=True, upto=0) == []
    assert found(index, "holiday", tags=["answer"], past=True, upto=1) == [cube(2)]


def test_vectors_beside_count_and_a_vector_that_comes_late_is_noticed() -> None:
    index = filled(turn(1, 1, "x"), turn(2, 2, "y"), turn(3, 9, "z", session="other"))
    for number, vector in ((2, [0.0, 1.0, 0.2]), (3, [0.0, 1.0, 0.2])):
        index.set_vector(cube(number), 1, vector)

    def cosines() -> dict[bytes, float]:
        hits = index.search(SearchQuery("", [1.0, 0.0, 0.0], mode="dense"), anyone)
        return {hit.cube_id: hit.score for hit in hits}

    alone = cosines()
    assert alone[cube(2)] == pytest.approx(alone[cube(3)], abs=1e-6)
    index.set_vector(cube(1), 1, [1.0, 0.0, 0.0])
    both = cosines()
    assert both[cube(2)] > alone[cube(2)] + 0.3 and both[cube(3)] == pytest.approx(alone[cube(3)], abs=1e-6)
    whole = np.asarray([0.0, 1.0, 0.2]) / np.linalg.norm([0.0, 1.0, 0.2]) + 0.7 * np.asarray([1.0, 0.0, 0.0])
    assert both[cube(2)] == pytest.approx(whole[0] / np.linalg.norm(whole), abs=0.01)
    index.set_live(cube(1), None)
    assert cosines()[cube(2)] == pytest.approx(alone[cube(2)], abs=1e-6)


def test_the_best_are_ranked_among_each_other_by_their_tokens() -> None:
    index = filled(turn(1, 1, "one dog"), turn(2, 5, "two dog", session="2"), turn(3, 5, "three dog", session="3"))
    for number in (1, 2, 3):
        index.set_vector(cube(number), 1, [1.0, number / 100])
    rows = {cube(1): [[1, 0]], cube(2): [[0, 127]], cube(3): None}

    def wide(small: list[list[int]]) -> Any:
        return np.pad(np.asarray(small, np.int8), ((0, 0), (0, 62)))

    def tokens_of(keys: Any) -> list[Any]:
        return [None if (small := rows[key]) is None else wide(small) for key, _version in keys]

    asked = Tokens(wide([[0, 127]]), [(0, 3)])
    query = SearchQuery("dog", [1.0, 0.0], tokens=asked, tokens_of=tokens_of, explain=True)
    hits = index.search(query, anyone)
    assert hits[0].cube_id == cube(2) and (hits[0].why or {})["tokens"] == pytest.approx(1.0, abs=0.01)
    assert len(hits) == 3 and "tokens" not in next(hit.why or {} for hit in hits if hit.cube_id == cube(3))


@pytest.mark.parametrize(("text", "wanted"), [
    ("Ann: I went there.", FIRST_PERSON), ("Ann: What did you do?", ASKS), ("Ann: Wow! What did you do?", ASKS),
    ("Ann: We left on Monday. Did you?", FIRST_PERSON), ("Ann: It rained all day. Did it stop?", 0), ("He left.", 0), ("", 0),
    ("I: no", 0), ("Ann: Look! [photo: my dog?]", 0), ("Ann: Iris is here", 0),
])  # fmt: skip
def test_signs_of_a_turn(text: str, wanted: int) -> None:
    assert signs(text) == wanted


def test_length_leaves_stop_words_out_and_is_never_nothing() -> None:
    assert (length("the dog and the cat"), length(""), length("the"), length("w " * 100_000)) == (2, 1, 1, 65_535)


@given(st.text(max_size=60), st.integers(-(2**70), 2**70) | st.none())
def test_any_text_and_time_can_be_looked_at(text: str, time: int | None) -> None:
    assert signs(text) in range(4) and length(text) >= 1 and dated(text, time).startswith(text)


def test_names_of_speakers_leave_the_query_unless_nothing_else_is_left() -> None:
    names = frozenset({"Ann", "Ben O'Hara"})
    assert without_names("What did Ann's dog eat at Ben O'Hara's?", names) == "What did dog eat at ?"
    assert without_names("Ann?", names) == "Ann?" and without_names("Anna left", names) == "Anna left"
    assert without_names("Ann", frozenset()) == "Ann"


def test_speakers_are_those_of_the_searched_namespaces_while_they_are_few() -> None:
    index = filled(turn(1, 1, "x", "Ann"), turn(2, 1, "x", "Ben", namespace="b"), turn(3, 1, "x", "Cid", namespace="b/c"))
    assert index.speakers(["a"]) == {"Ann"} and index.speakers(["b"]) == {"Ben", "Cid"} and index.speakers(["b/c"]) == {"Cid"}
    assert index.speakers(None) == {"Ann", "Ben", "Cid"}
    filled(*(turn(n, n, "x", f"S{n}") for n in range(10, 30)), index=index)
    assert index.speakers(["a"]) == frozenset()


def test_a_large_scope_finds_what_a_small_one_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    words = [f"w{n}" for n in range(60)]
    index = filled(*(turn(n, n % 40, " ".join(rng.choice(words, 6)), session=str(n // 40)) for n in range(800)))
    for n in range(800):
        index.set_vector(cube(n), 1, rng.normal(size=8))
    queries = [SearchQuery(" ".join(rng.choice(words, 3)), rng.normal(size=8), k=10) for _ in range(20)]
    whole = [{hit.cube_id for hit in index.search(query, anyone)} for query in queries]
    monkeypatch.setattr("memos_drivers.plaintext.searching.WHOLE_SCOPE", 10)
    monkeypatch.setattr("memos_drivers.plaintext.searching.POOL", 200)
    proposed = [{hit.cube_id for hit in index.search(query, anyone)} for query in queries]
    shared = sum(len(a & b) for a, b in zip(whole, proposed, strict=True)) / sum(map(len, whole))
    assert shared > 0.8
    everything = index.search(SearchQuery("w1", rng.normal(size=8), k=800), anyone)
    assert len(everything) == 800


@pytest.mark.parametrize(("query", "wanted"), [
    ("How many bikes do I currently own?", True), ("Where does Ann live now?", True), ("How many have I so far?", True),
    ("What is my latest score?", True), ("How long have my parents been here?", True), ("When did I buy the bike?", False),
    ("How many bikes did I own before the move?", False), ("Where did I live first?", False), ("What is a bike?", False),
    ("How many people came in May 2021?", False), ("Do you know Ann?", False),
])  # fmt: skip
def test_which_queries_ask_for_the_present(query: str, wanted: bool) -> None:
    assert asks_for_the_present(query) is wanted


def test_what_was_said_last_of_a_thing_comes_first_when_the_present_is_asked_for() -> None:
    texts = ["I own two bikes.", "I own three bikes now.", "I own a fourth bike, bikes are great.", "A bike shop opened."]
    days = (0, 3, 1, 2)
    told = [
        turn(n, 1, text, session=str(n))._replace(valid_from=10**18 + day * 10**14)
        for n, (text, day) in enumerate(zip(texts, days, strict=True))
    ]
    index = filled(*told)
    order = found(index, "How many bikes do I own now?")
    times = {document.cube_id: document.valid_from or 0 for document in told}
    strong = [times[one] for one in order[:3]]
    assert strong == sorted(strong, reverse=True)
    assert found(index, "How many bikes do I own now?", without=frozenset({"recency"})) != order
    hits = index.search(SearchQuery("How many bikes do I own now?"), anyone)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_what_happened_on_the_days_that_are_asked_for_comes_first_but_nothing_else_is_lost() -> None:
    names = ("red", "blue", "old")
    told = [Document(cube(n), 1, n, "a", f"I bought the {name} lamp.", valid_from=n * 100) for n, name in enumerate(names)]
    index = filled(*told)
    asked = SearchQuery("Which lamp did I buy?", spans=[(100, 200)], explain=True)
    hits = index.search(asked, anyone)
    assert hits[0].cube_id == told[1].cube_id and len(hits) == 3
    assert [(hit.why or {}).get("signs") for hit in hits] == [["in time"], None, None]
    without = index.search(replace(asked, without=frozenset({"times"})), anyone)
    assert len({hit.score for hit in without}) == 1
    assert len(index.search(SearchQuery("lamp", spans=[(500, 600)]), anyone)) == 3
