"""No cache is used that is not of the present: writes, rollbacks, expiry, neighbours, caches made of caches, and races."""

from __future__ import annotations

from typing import Any

import pytest
from tests import activation, lm
from tests.activation import BEES, CHESS, KETTLE, Model

from memos_kernel.clock import ManualClock
from memos_syscalls.errors import MemError

tiny = lm.tiny
k = activation.sound_kernel
QUESTION = "Who keeps bees?"


def is_stale(k: Model, cache: Any, *, text: str) -> None:
    """Refused with ESTALE; recomputed from `text` when the caller says so."""
    error = k.failure("mem_infer", **k.question(QUESTION, cache))
    assert error.errno == "ESTALE" and "recompute" in str(error.advice)
    answer = k.ask(QUESTION, cache, on_miss="recompute")
    assert [one["how"] for one in answer["attached"]] == ["recomputed"] and answer["tokens_reused"] == 0
    assert answer["text"] == k.ask(QUESTION, text)["text"]


def test_a_write_makes_the_cache_stale_and_the_next_capture_is_its_next_version(k: Model) -> None:
    text = k.alloc(BEES)
    cache = k.capture(text)
    before = k.ask(QUESTION, cache)
    assert not k.header(cache)["stale"]
    k("mem_write", cube_id=text, content=BEES + "The bees moved to Porto.")
    assert k.header(cache)["stale"]
    is_stale(k, cache, text=text)
    again = k.migrated(text)
    assert (again["cube_id"], again["version"], again["reused"]) == (cache, 2, False)
    assert not k.header(cache)["stale"] and k.header(cache, 1)["stale"]
    assert k.ask(QUESTION, cache)["text"] == k.ask(QUESTION, text)["text"]
    past = k.ask(QUESTION, {"cube_id": cache, "version": 1})
    assert past["text"] == before["text"] and past["attached"][0]["how"] == "attached"
    assert past["text"] == k.ask(QUESTION, {"cube_id": text, "version": 1})["text"]
    assert k.migrated(text)["reused"] is True


def test_a_rollback_makes_the_cache_stale_though_the_text_is_one_that_was_captured(k: Model) -> None:
    text = k.alloc(BEES + "1")
    k("mem_write", cube_id=text, content=CHESS)
    cache = k.capture(text)
    k("mem_rollback", cube_id=text, to_version=1)
    is_stale(k, cache, text=text)
    again = k.migrated(text)
    assert (again["cube_id"], again["version"]) == (cache, 2)
    assert k.ask(QUESTION, cache)["text"] == k.ask(QUESTION, text)["text"]


def test_a_new_header_is_a_new_version_and_a_stale_cache(k: Model) -> None:
    """Whatever gives the source a version: nobody has to know which of them touch the text."""
    text = k.alloc(BEES + "2")
    cache = k.capture(text)
    version = k("mem_write", cube_id=text, content=BEES + "2")["version"]
    assert version == 2
    is_stale(k, cache, text=text)


def test_a_changed_neighbour_flags_the_cache_and_refuses_nothing(k: Model) -> None:
    space = "neighbours"
    older, text = (k.alloc(content, namespace=space) for content in (CHESS, BEES))
    cache = k.capture(text, params={"neighbours": 1})
    assert [(p["cube_id"], p["role"]) for p in k.header(cache)["parents"]] == [(text, "content"), (older, "context")]
    before = k.ask(QUESTION, cache)
    k("mem_write", cube_id=older, content=KETTLE)
    header = k.header(cache)
    assert header["renewable"] and not header["stale"]
    assert k.ask(QUESTION, cache)["text"] == before["text"]
    again = k.migrated(text, params={"neighbours": 1})
    assert (again["cube_id"], again["version"], again["reused"]) == (cache, 2, False)
    assert not k.header(cache).get("renewable")


def test_caches_made_of_caches_are_stale_when_a_text_far_below_has_changed(k: Model) -> None:
    one, two, three = (k.alloc(content) for content in (BEES + "3", CHESS + "3", KETTLE + "3"))
    caches = [k.capture(text) for text in (one, two)]
    fused = k("mem_fuse", cube_ids=caches, strategy="kv")["cube_id"]
    third = k.capture(three)
    composed = k("mem_compose", cube_ids=[fused, third], namespace="alice")["cube_id"]
    outer = k("mem_compose", cube_ids=[composed], namespace="alice")["cube_id"]
    for cache in (fused, composed, outer):
        assert k.ask(QUESTION, cache)["tokens_reused"]
    k("mem_write", cube_id=two, content=CHESS + "changed")
    for cache in (fused, composed, outer):
        assert k.header(cache)["stale"], cache
        assert k.failure("mem_infer", **k.question(QUESTION, cache)).errno == "ESTALE"
    for cache, texts in ((fused, [one, two]), (outer, [one, two, three])):
        answer = k.ask(QUESTION, cache, on_miss="recompute")
        assert answer["text"] == k.ask(QUESTION, *texts)["text"] and answer["attached"][0]["how"] == "recomputed"
    assert k.failure("mem_fuse", cube_ids=[fused, third], strategy="kv").errno == "ESTALE"
    assert k.ask(QUESTION, third)["tokens_reused"], "the others are fresh"


def test_a_composition_of_texts_that_was_captured_is_stale_when_a_member_changes(k: Model) -> None:
    one, two = k.alloc(BEES + "4"), k.alloc(CHESS + "4")
    composed = k("mem_compose", cube_ids=[one, two], namespace="alice")["cube_id"]
    cache = k.capture(composed)
    k("mem_write", cube_id=two, content=KETTLE)
    assert k.failure("mem_infer", **k.question(QUESTION, cache)).errno == "ESTALE"
    assert k.failure("mem_migrate", cube_id=composed, to="activation").errno == "ESTALE"


@pytest.mark.parametrize("op", ["tokens", "capture"])
def test_a_source_that_changes_under_a_capture_is_captured_again(k: Model, op: str) -> None:
    text = k.alloc(BEES + op)
    with k.during(op, lambda: k.submit("mem_write", cube_id=text, content=CHESS + op), after=True) as asked:
        made = k.migrated(text)
    assert asked.count("capture") == 2
    assert [(p["cube_id"], p["version"]) for p in k.header(made["cube_id"])["parents"]] == [(text, 2)]
    assert made["version"] == 1 and len(k.derived(text)) == 1
    assert k.ask(QUESTION, made["cube_id"])["text"] == k.ask(QUESTION, text)["text"]


def test_a_source_that_changes_again_and_again_is_a_conflict_and_nothing_is_made(k: Model) -> None:
    text = k.alloc(BEES + "5")
    with k.during("capture", lambda: k.submit("mem_write", cube_id=text, content=CHESS), times=9, after=True):
        error = k.failure("mem_migrate", cube_id=text, to="activation")
    assert error.errno == "ECONFLICT" and error.outcome == "none"
    assert k.derived(text) == []
    assert k.capture(text), "the next one finds its peace"


def test_a_source_that_changes_twice_can_still_be_cancelled_in_between(k: Model) -> None:
    """A refused record does not leave the job uncancellable."""
    text = k.alloc(BEES + "6")
    job = k("mem_migrate", cube_id=text, to="activation", wait=False)["job_id"]
    # The second attempt asks the host again; then it is cancelled.
    calls: list[int] = []

    def meddle() -> Any:
        calls.append(1)
        if len(calls) == 1:
            return k.submit("mem_write", cube_id=text, content=CHESS)
        return k.submit("job_cancel", job_id=job)

    with k.during("capture", meddle, times=2, after=True):
        over = k("job_wait", job_id=job)
    assert over["state"] == "canceled" and over["error"]["errno"] == "ECANCELED"
    assert k.derived(text) == []


def test_a_neighbour_that_changes_under_a_capture_is_read_again(k: Model) -> None:
    space = "moving"
    older, text = k.alloc(CHESS, namespace=space), k.alloc(BEES, namespace=space)
    with k.during("capture", lambda: k.submit("mem_write", cube_id=older, content=KETTLE), after=True):
        cache = k.capture(text, params={"neighbours": 1})
    assert [(p["cube_id"], p["version"]) for p in k.header(cache)["parents"]] == [(text, 1), (older, 2)]


@pytest.mark.parametrize("end", ["free", "time"])
def test_what_has_expired_is_not_read_from_a_cache(k: Model, end: str) -> None:
    text = k.alloc(BEES + end, ttl_s=60)
    cache = k.capture(text)
    assert k.ask(QUESTION, cache)["tokens_reused"]
    composed = k("mem_compose", cube_ids=[cache, k.capture(k.alloc(CHESS + end))], namespace="alice")["cube_id"]
    if end == "free":
        k("mem_free", cube_id=text)
    else:
        assert isinstance(k.clock, ManualClock)
        k.clock.advance(61)
    for one in (cache, composed):
        assert k.failure("mem_infer", **k.question(QUESTION, one)).errno == "ESTALE"
        assert k.failure("mem_infer", **k.question(QUESTION, one, on_miss="recompute")).errno == "ENOENT"
    assert k.failure("mem_migrate", cube_id=text, to="activation").errno == "ENOENT"
    k("mem_free", cube_id=cache)
    assert k.failure("mem_infer", **k.question(QUESTION, cache)).errno == "ENOENT"
    assert k.failure("mem_infer", **k.question(QUESTION, {"cube_id": cache, "version": 1})).errno == "ESTALE"
    assert k.ask(QUESTION, {"cube_id": text, "version": 1})["text"], "as text, the past stays readable"


def test_a_frozen_source_or_cache_is_used_and_not_replaced(k: Model) -> None:
    text = k.alloc(BEES + "7")
    cache = k.capture(text)
    k("mem_freeze", cube_id=cache)
    assert k.ask(QUESTION, cache)["tokens_reused"]
    k("mem_write", cube_id=text, content=CHESS + "7")
    second = k.capture(text)
    assert second != cache and k.header(cache)["version"] == 1, "what is frozen gets no version"
    k("mem_freeze", cube_id=text)
    assert k.ask(QUESTION, second)["tokens_reused"] and k.migrated(text)["reused"]
    assert k.ask(QUESTION, {"cube_id": cache, "version": 1})["attached"][0]["how"] == "attached"
    for cube in (text, cache):
        k("mem_thaw", cube_id=cube)


def test_an_archived_cache_is_used_by_name_and_another_one_is_made_for_its_source(k: Model) -> None:
    text = k.alloc(BEES + "8")
    cache = k.capture(text)
    k("mem_archive", cube_id=cache)
    assert k.ask(QUESTION, cache)["tokens_reused"]
    other = k.migrated(text)
    assert other["cube_id"] != cache and not other["reused"]


def test_a_restart_forgets_nothing_of_it(k: Model) -> None:
    fresh, changed = k.alloc(BEES + "9"), k.alloc(CHESS + "9")
    caches = [k.capture(fresh), k.capture(changed)]
    k("mem_write", cube_id=changed, content=KETTLE + "9")
    before = k.ask(QUESTION, caches[0])
    k.reopen()
    after = k.ask(QUESTION, caches[0])
    assert after["text"] == before["text"] and after["tokens_reused"] == before["tokens_reused"]
    assert k.migrated(fresh)["reused"]
    with pytest.raises(MemError, match="ESTALE"):
        k.ask(QUESTION, caches[1])
