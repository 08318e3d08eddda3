"""The indexes of a real kernel: what damage, a failing disk, strange vectors and a stop in the middle do to searches."""

# pyright: reportPrivateUsage=false
from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from tests.inside import Inside

from memos_drivers.embed.client import Encoded, ModelInfo, Priority
from memos_drivers.plaintext.index import PlaintextIndex
from memos_drivers.plaintext.latent import WIDTH, Tokens
from memos_drivers.stores.base import INDEX, PAYLOAD, Batch
from memos_kernel import effects as effects_module
from memos_kernel import segments as segments_module
from memos_kernel.effects import Effects
from memos_kernel.finding import spans
from memos_kernel.segments import Segments
from memos_syscalls import limits

LONG = "q" * (limits.PAYLOAD_INLINE_BYTES_MAX + 100)


class Embedder:
    """Vectors of four numbers, without a child process."""

    def __init__(self) -> None:
        self.info: ModelInfo | None = None
        self.texts: list[str] = []
        self.error: Exception | None = None

    async def embed(self, texts: Sequence[str], priority: Priority = Priority.DOCUMENT) -> Any:
        return np.stack([one.vector for one in await self.encode(texts, priority)])

    async def encode(self, texts: Sequence[str], priority: Priority = Priority.DOCUMENT) -> list[Encoded]:
        await asyncio.sleep(0)
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        self.info = ModelInfo("four", 4, "f")
        self.texts += texts
        return [Encoded(np.asarray([1.0, len(text), 0.5, 0.25], np.float32), self.tokens(text)) for text in texts]

    @staticmethod
    def tokens(text: str) -> Tokens:
        """One for each word, that says which letter it begins with."""
        words = list(re.finditer(r"\w+", text.lower()))
        rows = np.zeros((len(words), WIDTH), np.int8)
        rows[range(len(words)), [ord(word.group()[0]) % WIDTH for word in words]] = 127
        return Tokens(rows, [(word.start(), word.end()) for word in words])

    async def close(self) -> None:
        """Nothing runs."""


@pytest.fixture
def k() -> Any:
    with Inside() as inside:
        yield inside


def ids(answer: dict[str, Any]) -> set[str]:
    return {hit["cube_id"] for hit in answer["hits"]}


def with_embedder(k: Inside, embed: Any) -> None:
    """Give the running kernel an embedder."""
    kernel = k.kernel
    kernel.effects.embed = embed

    async def begin() -> None:
        kernel.effects._tasks.append(asyncio.create_task(kernel.effects._warm_up(embed)))
        kernel.effects._tasks.append(asyncio.create_task(kernel.effects._pump_dense()))
        kernel.effects._wake_dense.set()

    k.loop.run_until_complete(begin())


def until(k: Inside, true: Any, seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        k.run(0.01)


def damage(k: Inside) -> None:
    """Every long payload is gone."""
    batch = Batch()
    for key, value in k.store.live(PAYLOAD).scan(b""):
        if len(value) > limits.PAYLOAD_INLINE_BYTES_MAX:
            batch.put(PAYLOAD, key, None)
    k.store.write(batch)
    k.kernel.vault._opened.clear()


# -- failures --------------------------------------------------------------------------------------------------------


def test_a_damaged_payload_is_left_out_and_searches_go_on(k: Inside, caplog: pytest.LogCaptureFixture) -> None:
    k("mem_alloc", namespace="a", content=LONG)
    fine = k("mem_alloc", namespace="b", content="fine words")["cube_id"]
    k.settle()
    damage(k)
    k("mem_fork", namespace="a", to="f")
    for _ in range(2):
        assert ids(k("mem_search", query="fine", deadline_ms=3000)) == {fine}
    later = k("mem_alloc", namespace="b", content="fine as well")["cube_id"]
    assert ids(k("mem_search", query="fine")) == {fine, later}
    assert k.kernel.effects.failed is not None
    assert len([r for r in caplog.records if "not indexed" in r.getMessage()]) == 1


def test_a_damaged_hit_takes_no_other_hit_with_it(k: Inside) -> None:
    k("mem_alloc", namespace="a", content="beagle " + LONG)
    fine = k("mem_alloc", namespace="a", content="a beagle")["cube_id"]
    k.settle()
    damage(k)
    found = k("mem_search", query="beagle", mode="lexical")
    assert ids(found) == {fine} and found["partial"]


def test_what_fails_in_a_slice_fails_alone(k: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    first = k("mem_alloc", namespace="a", content="beagle one")["cube_id"]
    k.settle()
    real = Effects._document

    def broken(self: Effects, view: Any, seq: int, cube_id: bytes, version: int, fresh: Any) -> Any:
        if fresh is not None and fresh.text == b"beagle bad":
            raise ZeroDivisionError("a bug")
        return real(self, view, seq, cube_id, version, fresh)

    monkeypatch.setattr(Effects, "_document", broken)
    k("mem_alloc_many", items=[{"namespace": "a", "content": f"beagle {w}"} for w in ("bad", "good", "fair")])
    assert len(ids(k("mem_search", query="beagle", deadline_ms=3000))) == 3
    assert "ZeroDivision" not in (k.kernel.effects.failed or "") and "record" in (k.kernel.effects.failed or "")
    monkeypatch.undo()
    k.reopen()
    # What could not be indexed was not stored as indexed.
    found = ids(k("mem_search", query="beagle"))
    assert len(found) == 4 and first in found


def test_a_disk_that_refuses_index_rows_stops_only_the_storing(k: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SEGMENT_CUBES_MAX", 4)
    monkeypatch.setattr(segments_module, "UNSEALED_MAX", 4)
    real = k.store.write

    def refuse(batch: Batch) -> None:
        if any(family == INDEX for family, _key, _value in batch.puts):
            raise OSError(28, "No space left on device")
        real(batch)

    monkeypatch.setattr(k.store, "write", refuse)
    for n in range(6):
        k("mem_alloc", namespace="a", content=f"beagle {n}", embedding=[1.0, float(n)])
        k.settle()
    k.run(0.05)
    assert len(ids(k("mem_search", query="beagle", k=20))) == 6
    assert "No space" in (k.kernel.effects.failed or "") and not list(k.store.live(INDEX).scan(b"g"))
    k("mem_alloc", namespace="a", content="beagle seven")
    assert len(ids(k("mem_search", query="beagle", k=20))) == 7
    monkeypatch.setattr(k.store, "write", real)
    k.kernel.effects._segments._paused_until = 0.0
    k("mem_alloc", namespace="a", content="beagle eight")
    k.settle()
    until(k, lambda: list(k.store.live(INDEX).scan(b"g")))
    assert k.kernel.effects.failed is None


def test_a_load_that_fails_keeps_no_search_waiting(k: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    old = k("mem_alloc", namespace="a", content="beagle one")["cube_id"]
    k.stop()

    def broken(self: Segments, index: PlaintextIndex, view: Any) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Segments, "_load", broken)
        k.open()
        new = k("mem_alloc", namespace="a", content="beagle two")["cube_id"]
        assert ids(k("mem_search", query="beagle", deadline_ms=3000)) == {new}
        assert "Input/output error" in (k.kernel.effects.failed or "")
        k.stop()
    k.open()
    assert ids(k("mem_search", query="beagle")) == {old, new}


def test_the_vector_pump_survives_an_unexpected_error(k: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effects_module, "RETRY_SECONDS", 0.01)
    embed = Embedder()
    with_embedder(k, embed)
    until(k, lambda: embed.info is not None)
    embed.error = ZeroDivisionError("a bug")
    k("mem_alloc", namespace="a", content="beagle")
    until(k, lambda: k.kernel.effects.index.vectors == 1)
    assert "a bug" in (k.kernel.effects.failed or "")


# -- vectors of several sizes ----------------------------------------------------------------------------------------


def test_an_embedder_fixes_the_size_and_makes_what_does_not_fit(k: Inside) -> None:
    odd = k("mem_alloc", namespace="a", content="beagle", embedding=[1.0])["cube_id"]
    good = k("mem_alloc", namespace="a", content="whippet", embedding=[0.0, 0.0, 0.0, 1.0])["cube_id"]
    k.settle()
    embed = Embedder()
    with_embedder(k, embed)
    until(k, lambda: k.kernel.effects.index.fixed_dims == 4 and k.kernel.effects.index.vectors == 2)
    assert k.kernel.effects.index.dims == 4 and embed.texts == ["warm", "beagle"]
    late = k("mem_alloc", namespace="a", content="poodle", embedding=[1.0, 2.0])["cube_id"]
    until(k, lambda: k.kernel.effects.index.vectors == 3)
    hits = k("mem_search", query="", mode="dense", query_embedding=[0.0, 0.0, 0.0, 1.0])["hits"]
    assert hits[0]["cube_id"] == good and {hit["cube_id"] for hit in hits} == {odd, good, late}
    assert k.refusal("mem_search", query="", mode="dense", query_embedding=[1.0]) == "EMODEL"
    # After a restart what was embedded is taken from the store.
    k.reopen()
    again = Embedder()
    with_embedder(k, again)
    until(k, lambda: k.kernel.effects.index.fixed_dims == 4 and k.kernel.effects.index.vectors == 3)
    assert again.texts == ["warm"]


def test_vectors_of_all_sizes_are_stored_and_loaded(k: Inside) -> None:
    made = [k("mem_alloc", namespace="a", content=f"c{n}", embedding=[1.0] * (n % 3 + 1))["cube_id"] for n in range(9)]
    none = k("mem_alloc", namespace="a", content="no vector")["cube_id"]
    for restart in (k.reopen, k.reopen, k.crash):
        restart()
        k.settle()
        for size in (1, 2, 3):
            found = k("mem_search", query="", mode="dense", query_embedding=[1.0] * size)
            assert ids(found) == {cube for n, cube in enumerate(made) if n % 3 + 1 == size}
        assert ids(k("mem_search", query="vector", mode="lexical")) == {none}


def test_a_fork_keeps_the_vectors_that_callers_gave(k: Inside) -> None:
    k("mem_alloc", namespace="a", content="one", embedding=[1.0, 0.0])
    k("mem_fork", namespace="a", to="b")
    for restart in (k.settle, k.reopen):
        restart()
        assert len(k("mem_search", namespace="b", query="", mode="dense", query_embedding=[1.0, 0.0])["hits"]) == 1


# -- segments --------------------------------------------------------------------------------------------------------


def rows(k: Inside, prefix: bytes) -> list[bytes]:
    return [key for key, _value in k.store.live(INDEX).scan(prefix)]


def test_a_blinded_segment_leaves_no_row_and_its_number_is_never_used_again(k: Inside) -> None:
    gone = k("mem_alloc", namespace="a", content="secret beagle")["cube_id"]
    kept = k("mem_alloc", namespace="a", content="other beagle")["cube_id"]
    k.settle()
    k.reopen()
    first = rows(k, b"g")
    assert len(first) == len(rows(k, b"k")) == 1 and len(rows(k, b"i")) == 2
    k("mem_shred", cube_id=gone)
    assert not rows(k, b"g") and not rows(k, b"i") and not rows(k, b"k") and len(rows(k, b"u")) == 1
    k.settle()
    k.reopen()
    second = rows(k, b"g")
    assert len(second) == 1 and second != first and len(rows(k, b"i")) == 1
    assert ids(k("mem_search", query="beagle")) == {kept}


def test_keys_of_blinded_segments_that_come_back_are_destroyed(k: Inside) -> None:
    gone = k("mem_alloc", namespace="a", content="secret beagle")["cube_id"]
    k("mem_alloc", namespace="a", content="other beagle")
    k.settle()
    k.reopen()
    slots = k.paths.keys / "segments"
    before = slots.read_bytes()
    k("mem_shred", cube_id=gone)
    k.settle()
    k.reopen()
    k.stop()
    newer = slots.read_bytes()
    slots.write_bytes(before + newer[len(before) :])
    k.open()
    segments = k.kernel.effects._segments
    segments.destroy_unnamed()
    named = {(int.from_bytes(key[1:9], "big"), int.from_bytes(key[9:], "big")) for key in rows(k, b"k")}
    live = {tuple(slot) for epoch in segments._keys.epochs for slot in segments._keys.live_slots(epoch)}
    assert live == named & live and len(live) <= 1
    assert len(ids(k("mem_search", query="beagle"))) == 1


def test_a_damaged_segment_is_made_again_once(k: Inside) -> None:
    made = {k("mem_alloc", namespace="a", content=f"beagle {n}")["cube_id"] for n in range(3)}
    k.settle()
    k.stop()
    (key,) = rows(k, b"g")
    data = k.store.live(INDEX).get(key) or b""
    batch = Batch()
    batch.put(INDEX, key, data[:-1] + bytes([data[-1] ^ 1]))
    k.store.write(batch)
    k.open()
    assert ids(k("mem_search", query="beagle")) == made
    k.settle()
    assert key not in rows(k, b"g") and len(rows(k, b"u")) == 3 and not rows(k, b"i")
    k.reopen()
    assert ids(k("mem_search", query="beagle")) == made
    assert len(rows(k, b"g")) == 1 and not rows(k, b"u") and len(rows(k, b"i")) == 3


# -- threads ---------------------------------------------------------------------------------------------------------


def test_a_stop_waits_for_work_under_way_and_nothing_is_sealed_twice(k: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SEGMENT_CUBES_MAX", 4)
    monkeypatch.setattr(segments_module, "UNSEALED_MAX", 4)
    entered = threading.Event()
    running, most = [0], [0]
    real = Segments._seal_some

    def slow(self: Segments, index: PlaintextIndex, view: Any, keys: Any) -> bool:
        running[0] += 1
        most[0] = max(most[0], running[0])
        entered.set()
        time.sleep(0.3)
        try:
            return real(self, index, view, keys)
        finally:
            running[0] -= 1

    monkeypatch.setattr(Segments, "_seal_some", slow)
    for n in range(6):
        k("mem_alloc", namespace="a", content=f"beagle {n}")
    k.settle()
    until(k, entered.is_set)
    k.reopen()
    assert most == [1] and running == [0] and len(rows(k, b"g")) == 2
    assert len(ids(k("mem_search", query="beagle", k=20))) == 6


def test_a_rebuild_closes_no_index_that_a_search_uses(k: Inside) -> None:
    k("mem_alloc", namespace="a", content="beagle")
    k.settle()
    effects = k.kernel.effects
    old = effects.index

    async def rebuild() -> None:
        assert await effects._work("building", effects._rebuild_in_thread)

    k.loop.run_until_complete(rebuild())
    assert effects.index is not old and effects.index.documents == 1
    assert old.search(effects_query(), lambda _cube, _version: True)


def effects_query() -> Any:
    from memos_drivers.plaintext.searching import SearchQuery

    return SearchQuery("beagle")


def test_threads_take_no_view_of_their_own(k: Inside) -> None:
    effects, threads = k.kernel.effects, set[int]()
    real = effects._view

    def view() -> Any:
        threads.add(threading.get_ident())
        return real()

    effects._view = view
    embed = Embedder()
    with_embedder(k, embed)
    cube = k("mem_alloc", namespace="a", content="beagle", embedding=[1.0, 0.0, 0.0, 0.0])["cube_id"]
    k("mem_alloc", namespace="a", content="whippet")
    k("mem_fork", namespace="a", to="b")
    k("mem_shred", cube_id=cube)
    k.settle()
    until(k, lambda: effects.index.oldest_missing() is None)
    k.reopen()
    assert threads == {threading.get_ident()}


def test_the_queue_holds_a_bounded_amount_and_counts_it_exactly(k: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effects_module, "HELD_BYTES_MAX", 1 << 20)
    effects = k.kernel.effects
    hold = asyncio.Event()

    async def lull() -> None:
        await hold.wait()

    monkeypatch.setattr(effects, "_lull", lull)
    for n in range(40):
        k("mem_alloc", namespace="a", content=f"beagle {n} " + "word " * 40_000)
    at_hand = [op[2][2] for op in effects._ops if op[0] == "add" and op[2][2] is not None]
    assert effects._held_bytes == sum(fresh.size for fresh in at_hand) < (1 << 20) + effects_module.TEXT_BYTES_MAX + 4096
    assert all(len(fresh.text) <= effects_module.TEXT_BYTES_MAX for fresh in at_hand) and len(at_hand) < 20
    hold.set()
    k.settle()
    assert effects._held_bytes == 0
    assert len(ids(k("mem_search", query="beagle", k=50))) == 40


def test_tokens_are_kept_encrypted_and_go_with_their_cube(k: Inside) -> None:
    with_embedder(k, Embedder())
    made = [k("mem_alloc", namespace="a", content=text)["cube_id"] for text in ("zebra day", "apple day", "quiet day")]
    fork = k("mem_fork", namespace="a", to="b")["cubes"]
    until(k, lambda: len(rows(k, b"t")) >= 3)

    def tokens(query: str, namespace: str = "a") -> dict[str, float]:
        hits = k("mem_search", query=query, namespace=namespace, explain=True)["hits"]
        return {hit["content"]: hit["why"].get("tokens", 0.0) for hit in hits}

    for again in (k.settle, k.reopen):
        again()
        if k.kernel.effects.embed is None:
            with_embedder(k, Embedder())
            k.settle()
        found = tokens("zebra")
        assert found["zebra day"] > 0.99 and found["apple day"] == 0
        assert fork == 3 and tokens("zebra", "b")["zebra day"] > 0.99, "a fork reads the tokens of its source"
        hits = k("mem_search", query="zebra", namespace="a", explain=True, without=["tokens"])["hits"]
        assert hits and not any("tokens" in hit["why"] for hit in hits)
    store = k.kernel.effects._segments.tokens
    held = bytes(store._rows.get(rows(k, b"t")[0]))
    assert bytes(30) not in held, "rows of zeros and one peak would show through"
    k("mem_shred", cube_id=made[0])
    k.settle()
    assert not [key for key in rows(k, b"t") if key[1:17].hex() == made[0].replace("-", "")]
    assert not [key for key, _version in store._cached if key.hex() == made[0].replace("-", "")]
    assert "zebra day" not in tokens("zebra")


def test_a_budget_takes_the_best_that_fit(k: Inside) -> None:
    for text in ("dog " * 2, "dog " * 400, "dog " * 4):
        k("mem_alloc", namespace="a", content=text)
    k.settle()
    answer = k("mem_search", query="dog", namespace="a", budget_tokens=20)
    assert sorted(len(hit["content"]) for hit in answer["hits"]) == [8, 16] and answer["tokens"] == 6
    nothing = k("mem_search", query="dog", namespace="a", budget_tokens=1)
    assert nothing["hits"] == [] and nothing["tokens"] == 0
    assert "tokens" not in k("mem_search", query="dog", namespace="a")


def test_words_of_time_in_a_query_are_days_of_the_calendar_seen_from_its_moment(k: Inside) -> None:
    day, made = 86_400 * 10**9, list[dict[str, Any]]()
    now = k.clock.now()
    for n in range(5):
        made.append(k("mem_alloc", namespace="a", content=f"I had soup, number {n}.", valid_from=now - n * day))
    k.settle()

    def first(query: str, **args: Any) -> int:
        hits = k("mem_search", query=query, namespace="a", **args)["hits"]
        return [one["cube_id"] for one in made].index(hits[0]["cube_id"])

    assert first("What soup did I have yesterday?") == 1
    assert first("What soup did I have two days ago?") == first("What soup did I have the day before yesterday?") == 2
    assert first("What soup did I have two days ago?", without=["times"]) == first("What soup did I have?")
    assert spans("yesterday", now)[0][1] == now // day * day
    assert spans("in 1999", now) == [(915_148_800 * 10**9, 946_684_800 * 10**9)]
    assert spans("soup", now) == spans("yesterday", 2**200) == spans("12000 years ago", now) == []
    assert spans("in January 1600", now) == [], "no event time is that old"


def test_what_is_outdated_stands_behind_what_outdates_it_and_before_it_in_the_past(k: Inside) -> None:
    old = k("mem_alloc", namespace="a", content="I live in Rome.", check="conflict")
    for n in range(5):
        k("mem_alloc", namespace="a", content=f"Somebody else may live in Rome, number {n}.")
    new = k("mem_alloc", namespace="a", content="I just moved to Oslo!", check="conflict")
    k.settle()

    def order(**args: Any) -> list[str]:
        hits = k("mem_search", query="live in Rome", namespace="a", **args)["hits"]
        return [hit["cube_id"] for hit in hits]

    now = order(k=10)
    assert now.index(new["cube_id"]) == now.index(old["cube_id"]) - 1, "though none of its words was asked for"
    assert new["cube_id"] in order(k=1) or old["cube_id"] not in order(k=1)
    hit = next(hit for hit in k("mem_search", query="live in Rome", namespace="a")["hits"] if hit["cube_id"] == old["cube_id"])
    assert hit["header"]["superseded_by"][0]["cube_id"] == new["cube_id"]
    before = order(at_offset=new["offset"] - 1)
    assert old["cube_id"] in before and new["cube_id"] not in before
