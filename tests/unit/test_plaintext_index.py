"""The plaintext index finds what the filters allow, all of it, and nothing that was removed."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memos_drivers.plaintext import segment
from memos_drivers.plaintext.dense import DenseIndex, quantised
from memos_drivers.plaintext.documents import Document
from memos_drivers.plaintext.index import PlaintextIndex
from memos_drivers.plaintext.lexical import LexicalIndex, query_words
from memos_drivers.plaintext.postings import Postings
from memos_drivers.plaintext.searching import Hit, SearchQuery
from memos_drivers.plaintext.sequences import POSITION_MAX, Place
from memos_syscalls.errors import MemInvalid, MemModel


def cube(number: int) -> bytes:
    return uuid.uuid5(uuid.NAMESPACE_OID, str(number)).bytes


def doc(
    number: int, text: str, namespace: str = "alice", version: int = 1, tags: tuple[str, ...] = (),
    valid_from: int | None = None, valid_to: int | None = None,
) -> Document:  # fmt: skip
    return Document(cube(number), version, number, namespace, text, tags, valid_from, valid_to)


def filled(*documents: Document, vectors: np.ndarray[tuple[int, int], np.dtype[np.int8]] | None = None) -> PlaintextIndex:
    index = PlaintextIndex()
    index.add(documents, vectors)
    for document in documents:
        index.set_live(document.cube_id, document.version)
    return index


def ids(hits: Sequence[Hit]) -> list[bytes]:
    return [hit.cube_id for hit in hits]


def anyone(cube_id: bytes, version: int) -> bool:
    return True


def found(index: PlaintextIndex, text: str, **fields: Any) -> set[bytes]:
    query = replace(SearchQuery(text, k=100), **fields)
    return set(ids(index.search(query, anyone)))


def test_words_are_stemmed_folded_and_ranked() -> None:
    index = filled(doc(1, "Biscuit is a beagle"), doc(2, "Beagles café, beagles and more dogs of all kinds"), doc(3, "a cat"))
    assert ids(index.search(SearchQuery("BEAGLE", mode="lexical"), anyone)) == [cube(1), cube(2)]
    assert found(index, "cafe") == {cube(2)}


HOSTILE = ['"', "dog OR", "text:dog", "dog*", "NEAR(dog cat)", "^dog", "dog\0", "a" * 9000, "(", "-dog", "'; --"]


@pytest.mark.parametrize("query", HOSTILE)
def test_a_query_is_never_syntax(query: str) -> None:
    index = filled(doc(1, "my dog"), doc(2, "text"))
    assert found(index, query) <= {cube(1), cube(2)}


@given(st.text(max_size=60), st.text(max_size=200))
@settings(max_examples=100, deadline=None)
def test_any_text_can_be_indexed_and_asked(query: str, text: str) -> None:
    index = filled(doc(1, text), doc(2, "other words"))
    index.search(SearchQuery(query, explain=True), anyone)
    index.close()


def test_stop_words_count_only_when_there_is_nothing_else() -> None:
    assert query_words("What is the dog's name?") == ["dog", "name"]
    assert query_words("to be or not to be") == ["to", "be", "or", "not"]


def test_cjk_text_is_found_by_pairs_and_by_single_characters() -> None:
    index = filled(doc(1, "我喜欢喝绿茶"), doc(2, "他养了一只狗"), doc(3, "東京タワー in Tokyo"))
    assert found(index, "绿茶") == {cube(1)}
    assert found(index, "狗") == {cube(2)}
    assert found(index, "喜") == {cube(1)}
    assert found(index, "タワー") == {cube(3)}


def listed(postings: Postings) -> list[int]:
    return [number for number in range(postings.upto) if postings.holds(number)]


def holding(index: LexicalIndex, query: str) -> list[int]:
    return sorted({number for _word, postings in index.terms(query)[0] for number in listed(postings)})


def test_postings_that_are_cached_see_later_documents() -> None:
    index = LexicalIndex()
    index.add(["a dog", "a cat"])
    assert holding(index, "dog") == [0]
    index.add(["dogs", "birds"])
    assert holding(index, "dog") == [0, 2]
    found = {word: listed(postings) for word, postings in index.terms("big dogs and cats")[0]}
    assert found == {"dogs": [0, 2], "cats": [1]}


def test_frequent_terms_are_left_out_unless_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memos_drivers.plaintext.lexical.POSTINGS_PER_QUERY_MAX", 2)
    index = filled(*(doc(n, "common words" + (" rare" if n == 7 else "")) for n in range(50)))
    terms, pruned = index._lexical.terms("common rare")  # pyright: ignore[reportPrivateUsage]
    assert pruned and [(word, listed(postings)) for word, postings in terms] == [("rare", [7])]
    hits = index.search(SearchQuery("common rare", k=20), anyone)
    assert len(hits) == 20 and hits[0].cube_id == cube(7)


def test_namespaces_tags_and_event_time_filter_exactly() -> None:
    index = filled(
        doc(1, "dog", "alice/chat"),
        doc(2, "dog", "alice/chatter", tags=("pets", "old")),
        doc(3, "dog", "bob", tags=("pets",), valid_from=100, valid_to=200),
        doc(4, "dog", "bob/x", valid_from=300),
    )
    assert found(index, "dog", scopes=["alice/chat"]) == {cube(1)}
    assert found(index, "dog", scopes=["alice", "bob/x"]) == {cube(1), cube(2), cube(4)}
    assert found(index, "dog", scopes=[]) == found(index, "dog", scopes=["carol"]) == set()
    assert found(index, "dog", tags=["pets"]) == {cube(2), cube(3)}
    assert found(index, "dog", tags=["pets", "old"]) == {cube(2)}
    assert found(index, "dog", tags=["none"]) == set()
    assert found(index, "dog", since=201) == {cube(1), cube(2), cube(4)}
    assert found(index, "dog", until=99) == {cube(1), cube(2)}
    assert found(index, "dog", since=150, until=150) == {cube(1), cube(2), cube(3)}


def test_only_the_live_version_is_found_now_and_check_decides_in_the_past() -> None:
    index = filled(doc(1, "old dog"), doc(1, "new dog", version=2))
    hits = index.search(SearchQuery("dog"), anyone)
    assert [(hit.cube_id, hit.version) for hit in hits] == [(cube(1), 2)]
    past = index.search(SearchQuery("dog", past=True), lambda cube_id, version: version == 1)
    assert [(hit.cube_id, hit.version) for hit in past] == [(cube(1), 1)]
    assert index.set_live(cube(1), None)
    assert not found(index, "dog")
    assert index.set_live(cube(1), 1)
    assert [hit.version for hit in index.search(SearchQuery("dog"), anyone)] == [1]
    assert not index.set_live(cube(1), 9)
    assert not found(index, "dog")


def test_a_search_deepens_until_k_candidates_pass() -> None:
    rng = np.random.default_rng(1)
    vectors = rng.integers(-127, 128, (3000, 8)).astype(np.int8)
    index = filled(*(doc(n, f"dog number {n}") for n in range(3000)), vectors=vectors)
    allowed = {cube(n) for n in range(0, 3000, 250)}
    for mode in ("hybrid", "dense", "lexical"):
        query = SearchQuery("dog", rng.normal(size=8), k=12, mode=mode)
        assert set(ids(index.search(query, lambda cube_id, _: cube_id in allowed))) == allowed


def test_ties_stand_in_order_of_cube_id() -> None:
    index = filled(*(doc(n, "dog") for n in range(300)))
    assert ids(index.search(SearchQuery("dog", k=5), anyone)) == sorted(cube(n) for n in range(300))[:5]


def test_hybrid_search_unions_both_retrievers_and_explains() -> None:
    index = filled(doc(1, "a beagle"), doc(2, "nothing of it"), doc(3, "beagle"), doc(4, "nor this"))
    for number, vector in ((2, [1.0, 0.0]), (1, [0.9, 0.3]), (4, [-1.0, 0.0])):
        index.set_vector(cube(number), 1, vector)
    hits = index.search(SearchQuery("beagles", [1.0, 0.0], explain=True), anyone)
    assert set(ids(hits)) == {cube(1), cube(2), cube(3), cube(4)} and hits[0].cube_id == cube(1)
    why = {hit.cube_id: hit.why or {} for hit in hits}
    assert why[cube(2)]["dense"]["rank"] == 1 and why[cube(2)]["dense"]["cosine"] == pytest.approx(1.0, abs=0.01)
    assert "lexical" not in why[cube(2)] and why[cube(3)]["lexical"]["terms"] == ["beagles"]
    z = [why[cube(1)][retriever]["z"] for retriever in ("lexical", "dense")]
    assert why[cube(1)]["score"] == hits[0].score == pytest.approx(sum(z), abs=1e-5)
    assert index.search(SearchQuery("", None), anyone) == []
    assert index.search(SearchQuery("beagle"), anyone)[0].why is None


def test_a_removed_cube_is_gone_from_every_search() -> None:
    index = filled(doc(1, "dog"), doc(1, "dog", version=2), doc(2, "dog"))
    for number, version in ((1, 1), (1, 2), (2, 1)):
        assert index.set_vector(cube(number), version, [1.0, 2.0])
    index.remove([cube(1)])
    assert (index.documents, index.vectors, index.missing_vectors()) == (1, 1, [])
    assert found(index, "dog", vector=[1.0, 2.0]) == found(index, "dog", vector=[1.0, 2.0], past=True) == {cube(2)}
    assert not index.set_vector(cube(1), 2, [1.0, 2.0])
    assert not index.packed_vectors([(cube(1), 2)]).any()
    assert not index.needs_rebuild


def test_many_removals_ask_for_a_rebuild() -> None:
    index = filled(*(doc(n, "dog") for n in range(1100)))
    index.remove([cube(n) for n in range(1025)])
    assert index.needs_rebuild


def test_documents_without_vectors_are_listed_live_first() -> None:
    index = filled(doc(1, "a"), doc(1, "b", version=2), doc(2, "c"))
    index.set_vector(cube(2), 1, [1, 0])
    assert index.missing_vectors() == [(cube(1), 2), (cube(1), 1)]
    assert index.missing_vectors(1) == [(cube(1), 2)]


def test_adding_a_document_again_changes_nothing() -> None:
    index = filled(doc(1, "dog"))
    index.add([doc(1, "dog"), doc(2, "dog"), doc(2, "dog")])
    assert index.documents == 2


def test_vectors_without_direction_are_refused() -> None:
    index = filled(doc(1, "dog"), doc(2, "cat"))
    for refused in ([0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0]):
        with pytest.raises(MemInvalid):
            index.set_vector(cube(2), 1, refused)
        with pytest.raises(MemInvalid):
            index.search(SearchQuery("dog", refused), anyone)
    matrix = DenseIndex()
    matrix.put(0, np.ones((1, 2), np.int8))
    with pytest.raises(MemModel):
        matrix.put(0, np.ones((1, 3), np.int8))


def test_vectors_of_different_sizes_live_beside_each_other() -> None:
    index = filled(*(doc(n, f"dog {n}") for n in range(1, 41)))
    for n in range(1, 41):
        assert index.set_vector(cube(n), 1, [1.0] * (n % 4 + 1))
    assert (index.vectors, index.missing_vectors()) == (40, [])
    for size in range(1, 5):
        hits = index.search(SearchQuery("", [1.0] * size, k=50, mode="dense"), anyone)
        assert set(ids(hits)) == {cube(n) for n in range(1, 41) if n % 4 + 1 == size}
    assert index.search(SearchQuery("", [1.0] * 5, mode="dense"), anyone) == []
    assert found(index, "dog", vector=[1.0] * 5, k=50) == {cube(n) for n in range(1, 41)}
    assert index.sizes([(cube(n), 1) for n in range(1, 6)]) == [2, 3, 4, 1, 2]
    # A document that gets a vector of another size leaves no trace in the first matrix.
    assert index.set_vector(cube(1), 1, [1.0, 1.0, 1.0])
    assert cube(1) not in found(index, "", vector=[1.0, 1.0], k=50) and index.vectors == 40
    index.remove([cube(2)])
    assert cube(2) not in found(index, "", vector=[1.0] * 3, k=50, past=True)


def test_a_fixed_size_leaves_others_out_and_their_documents_wait_again() -> None:
    index = filled(doc(1, "a"), doc(2, "b"), doc(3, "c"))
    index.set_vector(cube(1), 1, [1.0])
    index.set_vector(cube(2), 1, [1.0, 0.0])
    index.fix_dims(2)
    assert (index.dims, index.vectors, index.missing_vectors()) == (2, 1, [(cube(1), 1), (cube(3), 1)])
    assert not index.set_vector(cube(1), 1, [1.0]) and index.set_vector(cube(1), 1, [0.0, 1.0])
    index.add([doc(4, "d")], np.ones((1, 7), np.int8))
    index.give_up_vector(cube(3), 1)
    assert index.missing_vectors() == [(cube(4), 1)] and index.oldest_missing() is not None
    assert found(index, "", vector=[1.0]) == set()
    index.set_vector(cube(3), 1, [1.0, 1.0])
    assert index.vectors == 3


def test_ranks_and_scores_rest_on_the_searched_namespaces_alone() -> None:
    def hits() -> list[Hit]:
        query = SearchQuery("the dog barks", [1.0, 0.0], scopes=["alice"], explain=True)
        return index.search(query, anyone)

    mine = [doc(1, "a dog"), doc(2, "it barks and barks"), doc(3, "a cat")]
    index = filled(*mine)
    for number in (1, 2, 3):
        index.set_vector(cube(number), 1, [1.0, float(number)])
    before = hits()
    others = [doc(n, "the dog of somebody else", namespace="bob") for n in range(10, 200)]
    index.add(others)
    for other in others:
        index.set_live(other.cube_id, 1)
    assert hits() == before


def test_int8_cosines_are_close_and_the_same_for_few_rows_and_all() -> None:
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(2000, 64))
    dense = DenseIndex()
    dense.put(0, np.stack([quantised(vector) for vector in vectors]))
    query = rng.normal(size=64)
    exact = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    every = dense.cosines(query, np.arange(2000))
    assert np.abs(every - exact).max() < 0.01
    few = np.array([3, 500, 1999])
    assert np.array_equal(dense.cosines(query, few), every[few])


def test_searches_run_beside_a_writer() -> None:
    index = filled(*(doc(n, f"dog {n}") for n in range(500)), vectors=np.ones((500, 16), np.int8))
    failures: list[BaseException] = []
    stop = threading.Event()

    def read() -> None:
        try:
            while not stop.is_set():
                assert len(index.search(SearchQuery("dog", [1.0] * 16, k=5, explain=True), anyone)) == 5
        except BaseException as error:
            failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for start in range(500, 3000, 50):
        index.add([doc(n, f"dog {n}") for n in range(start, start + 50)], np.ones((50, 16), np.int8))
        index.set_live(cube(start), 1)
        index.remove([cube(start - 400)])
    stop.set()
    for reader in readers:
        reader.join()
    assert not failures


TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30)
DOCUMENTS = st.lists(
    st.builds(
        Document, st.binary(min_size=16, max_size=16), st.integers(1, 2**32 - 1), st.integers(0, 2**63 - 1), TEXT, TEXT,
        st.lists(TEXT, max_size=3).map(tuple), st.none() | st.integers(-(2**63), 2**63 - 1),
        st.none() | st.integers(-(2**63), 2**63 - 1), st.none() | st.builds(Place, TEXT, st.integers(0, POSITION_MAX), TEXT),
    ),
    max_size=8,
)  # fmt: skip


@given(DOCUMENTS, st.integers(0, 5), st.booleans())
@settings(max_examples=100, deadline=None)
def test_a_segment_gives_back_what_was_packed(documents: list[Document], dims: int, deflate: bool) -> None:
    vectors = np.arange(len(documents) * dims).astype(np.int8).reshape(len(documents), dims) if dims else None
    read, rows = segment.unpack(segment.pack(documents, vectors, deflate=deflate))
    assert read == documents
    assert (rows is None) == (vectors is None) and (rows is None or np.array_equal(rows, vectors))  # type: ignore[arg-type]


def test_a_damaged_segment_is_refused() -> None:
    data = segment.pack([doc(n, "some text", tags=("a",)) for n in range(3)], np.ones((3, 4), np.int8))
    for at in range(len(data)):
        with pytest.raises(ValueError):
            segment.unpack(data[:at])
        with pytest.raises(ValueError):
            segment.unpack(data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :])
    with pytest.raises(ValueError):
        segment.unpack(data + b"\0")


def test_a_segment_refuses_too_many_cubes() -> None:
    with pytest.raises(ValueError):
        segment.pack([doc(n, "") for n in range(4097)])


def test_an_index_is_rebuilt_from_its_segments() -> None:
    documents = [doc(n, f"dog {n}", tags=("t",)) for n in range(10)]
    index = filled(*documents)
    for n in range(0, 10, 2):
        index.set_vector(cube(n), 1, [1.0, float(n)])
    vectors = index.packed_vectors([(d.cube_id, d.version) for d in documents])
    again = PlaintextIndex()
    again.add(*segment.unpack(segment.pack(documents, vectors)))
    for n in range(10):
        again.set_live(cube(n), 1)
    assert (again.documents, again.vectors) == (10, 5)
    query = SearchQuery("dog 3", [1.0, 3.0])
    assert again.search(query, anyone) == index.search(query, anyone)
