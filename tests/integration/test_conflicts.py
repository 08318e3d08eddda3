"""check="conflict": what a new fact outdates, from which moment on, and what becomes of it when either is changed or erased."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from tests.inside import ADMIN, ALICE, BOB, Inside, replay

from memos_kernel import events as ev
from memos_kernel.checking import TRIES
from memos_kernel.eventlog.base import records
from memos_kernel.governance import raw_id
from memos_kernel.supersession import superseded
from memos_syscalls import limits

YEAR = 365 * 86_400 * 10**9


@pytest.fixture
def k() -> Iterator[Inside]:
    with Inside() as kernel:
        yield kernel


def tell(k: Inside, content: str, **args: Any) -> dict[str, Any]:
    args = {"namespace": "a", "check": "conflict"} | args
    return k("mem_alloc", args.pop("caller", ADMIN), content=content, **args)


def ids(found: list[dict[str, Any]]) -> list[str]:
    return [one["cube_id"] for one in found]


def by(k: Inside, cube_id: str, at: int | None = None, now: int | None = None) -> str | None:
    """What outdates a cube, now or as after a record, at this moment of the world."""
    kernel, view = k.kernel, k.kernel.view
    cube = view.cube(raw_id(cube_id))
    assert cube is not None
    version = cube.version if at is None else view.version_at(cube, at)
    assert version is not None
    moment = kernel.clock.now() if now is None else now
    found = superseded(view, kernel.vault.private, cube, version, moment, at)
    return None if found is None else found.hex()


def raw(cube_id: str) -> str:
    return cube_id.replace("-", "")


def header(k: Inside, cube_id: str, **args: Any) -> dict[str, Any]:
    head: dict[str, Any] = k("mem_stat", cube_id=cube_id, **args)["header"]
    return head


def move(k: Inside) -> tuple[dict[str, Any], dict[str, Any]]:
    """Rome, then Oslo."""
    return tell(k, "I live in Rome."), tell(k, "I just moved to Oslo!")


def test_a_newer_fact_supersedes_and_nothing_is_deleted(k: Inside) -> None:
    rome, oslo = move(k)
    assert "supersedes" not in rome and "duplicates" not in oslo
    assert oslo["supersedes"] == [{"cube_id": rome["cube_id"], "version": 1}] and "superseded_by" not in oslo
    assert header(k, rome["cube_id"])["superseded_by"] == [{"cube_id": oslo["cube_id"], "version": 1}]
    assert header(k, oslo["cube_id"])["supersedes"] == [{"cube_id": rome["cube_id"], "version": 1}]
    assert k("mem_read", cube_id=rome["cube_id"])["header"]["superseded_by"]
    assert k("mem_read", cube_id=rome["cube_id"])["content"] == "I live in Rome."
    assert by(k, rome["cube_id"]) == raw(oslo["cube_id"]) and by(k, oslo["cube_id"]) is None
    listed = {cube["cube_id"]: cube for cube in k("mem_list", namespace="a")["cubes"]}
    assert "superseded_by" in listed[rome["cube_id"]]


def test_before_the_record_the_old_fact_holds(k: Inside) -> None:
    rome, oslo = move(k)
    assert by(k, rome["cube_id"], at=rome["offset"]) is None
    assert by(k, rome["cube_id"], at=oslo["offset"]) == raw(oslo["cube_id"])
    assert "superseded_by" not in header(k, rome["cube_id"], at_offset=rome["offset"])
    assert "superseded_by" in header(k, rome["cube_id"], at_offset=oslo["offset"])
    past = k("mem_list", namespace="a", at_offset=rome["offset"])["cubes"]
    assert ids(past) == [rome["cube_id"]] and "superseded_by" not in past[0]


def test_without_a_check_nothing_is_looked_for(k: Inside) -> None:
    rome = k("mem_alloc", namespace="a", content="I live in Rome.")
    assert set(k("mem_alloc", namespace="a", content="I live in Oslo.")) == {"cube_id", "version", "offset"}
    assert by(k, rome["cube_id"]) is None


def test_a_duplicate_is_told_and_made(k: Inside) -> None:
    first = tell(k, "Bob works at Acme.")
    again = tell(k, "bob works at  acme", namespace="a")
    assert ids(again["duplicates"]) == [first["cube_id"]] and again["cube_id"] != first["cube_id"]
    assert k("mem_read", cube_id=again["cube_id"])["content"] == "bob works at  acme"
    recorded = [event.name for _raw, record in records(k.log, again["offset"]) for event in record.events]
    assert recorded == [ev.ALLOCATED], "that two cubes say the same is recorded nowhere"


def test_the_order_is_that_of_event_time(k: Inside) -> None:
    new = tell(k, "I live in Oslo.", valid_from="2024-01-01T00:00:00Z")
    old = tell(k, "I live in Rome.", valid_from="2019-01-01T00:00:00Z")
    assert ids(old["superseded_by"]) == [new["cube_id"]] and "supersedes" not in old
    assert by(k, old["cube_id"], now=2**62) == raw(new["cube_id"]) and by(k, new["cube_id"], now=2**62) is None


def test_a_fact_of_the_future_does_not_count_yet_and_one_that_ended_no_more(k: Inside) -> None:
    now = k.clock.now()
    rome = tell(k, "I live in Rome.")
    oslo = tell(k, "I live in Oslo.", valid_from=now + YEAR, valid_to=now + 2 * YEAR)
    assert ids(oslo["supersedes"]) == [rome["cube_id"]]
    assert by(k, rome["cube_id"], now=now + YEAR // 2) is None
    assert by(k, rome["cube_id"], now=now + 3 * YEAR // 2) == raw(oslo["cube_id"])
    assert by(k, rome["cube_id"], now=now + 3 * YEAR) is None


def test_a_write_is_checked_against_others_and_not_against_itself(k: Inside) -> None:
    rome = tell(k, "I live in Rome.", name="home")
    elsewhere = tell(k, "I live in Rome!", namespace="b")
    note = k("mem_alloc", namespace="a", content="Something else.")
    again = k("mem_write", cube_id=rome["cube_id"], content="I live in Oslo.", check="conflict")
    assert set(again) == {"cube_id", "version", "offset"}
    wrote = k("mem_write", cube_id=note["cube_id"], content="I live in Bergen.", check="conflict")
    assert wrote["supersedes"] == [{"cube_id": rome["cube_id"], "version": 2}] and wrote["version"] == 2
    assert by(k, elsewhere["cube_id"]) is None
    assert "supersedes" not in header(k, note["cube_id"], version=1)


def test_only_what_still_says_it_counts(k: Inside) -> None:
    rome, oslo = move(k)
    k("mem_write", cube_id=oslo["cube_id"], tags=["home"])
    assert by(k, rome["cube_id"]) == raw(oslo["cube_id"]), "the header alone changed"
    wrote = k("mem_write", cube_id=oslo["cube_id"], content="I like Oslo.")
    assert by(k, rome["cube_id"]) is None and "superseded_by" not in header(k, rome["cube_id"])
    assert by(k, rome["cube_id"], at=wrote["offset"] - 1) == raw(oslo["cube_id"])
    k("mem_rollback", cube_id=oslo["cube_id"], to_version=1)
    assert by(k, rome["cube_id"]) == raw(oslo["cube_id"])
    k("mem_write", cube_id=rome["cube_id"], content="I like Rome.")
    assert by(k, rome["cube_id"]) is None and "supersedes" in header(k, oslo["cube_id"])
    k("mem_rollback", cube_id=rome["cube_id"], to_version=1)
    assert by(k, rome["cube_id"]) == raw(oslo["cube_id"])


def test_whoever_comes_back_is_current_again(k: Inside) -> None:
    rome, oslo = move(k)
    back = k("mem_write", cube_id=rome["cube_id"], content="I moved back to Rome!", check="conflict")
    assert ids(back["supersedes"]) == [oslo["cube_id"]]
    assert by(k, rome["cube_id"]) is None and by(k, oslo["cube_id"]) == raw(rome["cube_id"])


def test_an_ended_life_outdates_nothing(k: Inside) -> None:
    rome, oslo = move(k)
    k("mem_archive", cube_id=oslo["cube_id"])
    assert by(k, rome["cube_id"]) == raw(oslo["cube_id"]), "what is put aside is still true"
    k("mem_free", cube_id=oslo["cube_id"])
    assert by(k, rome["cube_id"]) is None and "superseded_by" not in header(k, rome["cube_id"])


def test_a_fusion_stands_for_what_it_took_in(k: Inside) -> None:
    rome, oslo = move(k)
    more = k("mem_alloc", namespace="a", content="Oslo is cold.")
    fused = k("mem_fuse", cube_ids=[oslo["cube_id"], more["cube_id"]], strategy="merge")
    assert by(k, rome["cube_id"]) == raw(fused["cube_id"])


def test_a_shred_of_either_leaves_no_trace_of_it(k: Inside) -> None:
    rome, oslo = move(k)
    k("mem_shred", cube_id=oslo["cube_id"])
    assert by(k, rome["cube_id"]) is None
    assert "superseded_by" not in header(k, rome["cube_id"]) and "supersedes" not in header(k, oslo["cube_id"])
    bergen = tell(k, "I moved to Bergen!", request_id="once")
    assert ids(bergen["supersedes"]) == [rome["cube_id"]]
    k("mem_shred", cube_id=rome["cube_id"])
    assert "supersedes" not in header(k, bergen["cube_id"]) and "superseded_by" not in header(k, rome["cube_id"])
    again = tell(k, "I moved to Bergen!", request_id="once")
    assert again["cube_id"] == bergen["cube_id"] and "supersedes" not in again
    assert "supersedes" not in tell(k, "I moved to Trondheim!") or by(k, bergen["cube_id"]) is not None


def test_a_fork_takes_along_what_was_recorded_between_its_cubes(k: Inside) -> None:
    rome, oslo = move(k)
    k("mem_fork", namespace="a", to="now")
    k("mem_fork", namespace="a", to="then", at_offset=rome["offset"])
    copies = {cube["forked_from"]["cube_id"]: cube["cube_id"] for cube in k("mem_list", namespace="now")["cubes"]}
    assert by(k, copies[rome["cube_id"]]) == raw(copies[oslo["cube_id"]])
    assert header(k, copies[oslo["cube_id"]])["supersedes"] == [{"cube_id": copies[rome["cube_id"]], "version": 1}]
    (then,) = k("mem_list", namespace="then")["cubes"]
    assert "superseded_by" not in then and by(k, then["cube_id"]) is None
    k("mem_write", cube_id=copies[oslo["cube_id"]], content="Something else.")
    assert by(k, copies[rome["cube_id"]]) is None and by(k, rome["cube_id"]) == raw(oslo["cube_id"])
    k("mem_shred", cube_id=oslo["cube_id"])
    assert by(k, rome["cube_id"]) is None


def test_what_is_recorded_survives_a_restart_and_a_replay(k: Inside) -> None:
    rome, oslo = move(k)
    k("mem_fork", namespace="a", to="b")
    k.reopen()
    assert by(k, rome["cube_id"]) == raw(oslo["cube_id"])
    digest, rows = replay(k.log)
    assert digest == k.digest
    assert {key: value for key, value in rows.items() if key[:1] in b"ow"} == {
        key: value for key, value in k.rows().items() if key[:1] in b"ow"
    }
    k.crash()
    assert by(k, rome["cube_id"]) == raw(oslo["cube_id"])


def test_what_the_caller_may_not_read_does_not_count(k: Inside) -> None:
    theirs = tell(k, "I live in Rome.", namespace="alice", caller=ALICE)
    assert set(tell(k, "I live in Oslo.", namespace="bob", caller=BOB)) == {"cube_id", "version", "offset"}
    assert k.refusal("mem_alloc", BOB, namespace="alice/x", content="I live in Oslo.", check="conflict") == "EACCES"
    assert k.refusal("mem_write", BOB, cube_id=theirs["cube_id"], content="I live in Oslo.", check="conflict") == "EACCES"
    below = tell(k, "I live in Oslo.", namespace="alice", caller=ALICE)
    assert ids(below["supersedes"]) == [theirs["cube_id"]]


def test_a_namespace_is_checked_with_all_below_it_and_nothing_beside(k: Inside) -> None:
    below, beside = tell(k, "I live in Rome.", namespace="a/b"), tell(k, "I live in Rome.", namespace="ab")
    assert ids(tell(k, "I live in Oslo.", namespace="a")["supersedes"]) == [below["cube_id"]]
    assert by(k, beside["cube_id"]) is None
    assert "supersedes" not in tell(k, "I live in Bergen.", namespace="a/c"), "what is above is somebody else's context"


def test_the_speaker_is_in_the_metadata(k: Inside) -> None:
    alice = tell(k, "I live in Rome.", metadata={"speaker": "Alice"})
    bob = tell(k, "I live in Oslo.", metadata={"speaker": "Bob"})
    assert "supersedes" not in bob
    assert ids(tell(k, "Alice lives in Bergen.")["supersedes"]) == [alice["cube_id"]]
    assert ids(tell(k, "I live in Turku.", metadata={"speaker": "Bob"})["supersedes"]) == [bob["cube_id"]]
    assert set(tell(k, "I live in Lima.", metadata={"speaker": 7})) == {"cube_id", "version", "offset"}


def test_a_repeated_request_gets_the_first_answer_but_for_duplicates(k: Inside) -> None:
    rome = tell(k, "I live in Rome.", request_id="r1")
    oslo = tell(k, "I live in Oslo.", request_id="r2")
    assert tell(k, "I live in Oslo.", request_id="r2") == oslo
    k.reopen()
    assert tell(k, "I live in Oslo.", request_id="r2") == oslo
    assert k.refusal("mem_alloc", namespace="a", content="I live in Oslo.", request_id="r2") == "EINVAL"
    assert tell(k, "I live in Rome.", request_id="r1") == rome


def test_a_candidate_that_changes_before_the_decision_is_looked_at_again(k: Inside) -> None:
    rome = tell(k, "I live in Rome.")
    found, times = k.kernel.checks._found, 0  # pyright: ignore[reportPrivateUsage]

    async def changing(write: Any) -> Any:
        nonlocal times
        times += 1
        checked = await found(write)
        if times <= until:
            await k.submit("mem_write", cube_id=rome["cube_id"], content="I live in Rome" + "!" * times)
        return checked

    k.kernel.checks._found = changing  # type: ignore[method-assign]  # pyright: ignore[reportPrivateUsage]
    until = 1
    oslo = tell(k, "I live in Oslo.")
    assert times == 2 and oslo["supersedes"] == [{"cube_id": rome["cube_id"], "version": 2}]
    times, until = 0, TRIES
    assert k.refusal("mem_alloc", namespace="a", content="I live in Lima.", check="conflict") == "ECONFLICT"
    assert times == TRIES


def test_checked_writes_that_come_together_see_each_other(k: Inside) -> None:
    places = ["Rome", "Oslo", "Bergen", "Lima"]
    futures = [k.submit("mem_alloc", namespace="a", content=f"I live in {place}.", check="conflict") for place in places]
    replies = [k.wait(future) for future in futures]
    replies.sort(key=lambda reply: reply["offset"])
    for at, reply in enumerate(replies):
        assert sorted(ids(reply.get("supersedes", []))) == sorted(ids(replies[:at]))
    assert [by(k, reply["cube_id"]) is None for reply in replies] == [False, False, False, True]


def test_a_call_that_is_given_up_frees_its_turn(k: Inside) -> None:
    async def endless(write: Any) -> Any:
        await asyncio.sleep(60)

    found = k.kernel.checks._found  # pyright: ignore[reportPrivateUsage]
    k.kernel.checks._found = endless  # type: ignore[method-assign]  # pyright: ignore[reportPrivateUsage]
    assert k.refusal("mem_alloc", namespace="a", content="I live in Rome.", check="conflict", deadline_ms=50) == "ETIMEDOUT"
    k.kernel.checks._found = found  # type: ignore[method-assign]  # pyright: ignore[reportPrivateUsage]
    assert tell(k, "I live in Rome.")["version"] == 1


@pytest.mark.parametrize(
    "args",
    [{"content": b"\x00\xff"}, {"content": "x", "check": "novelty"}, {"content": b"x", "form": "parametric"}],
)
def test_what_cannot_be_checked_is_refused(k: Inside, args: dict[str, Any]) -> None:
    assert k.refusal("mem_alloc", **({"namespace": "a", "check": "conflict"} | args)) == "EINVAL"


def test_a_write_without_a_text_has_nothing_to_check(k: Inside) -> None:
    cube = tell(k, "I live in Rome.")["cube_id"]
    assert k.refusal("mem_write", cube_id=cube, tags=["x"], check="conflict") == "EINVAL"
    assert k.refusal("mem_write", cube_id=cube, check="conflict") == "EINVAL"
    assert k.refusal("mem_write", cube_id=cube, content="x", check="conflict", expect_version=7) == "ECONFLICT"


@pytest.mark.parametrize("content", ["", " ", "?", "\u200d😀", "x" * (limits.CHECK_BYTES_MAX + 1), "I live in Rome. " * 4000])
def test_texts_that_state_nothing_are_written_as_they_are(k: Inside, content: str) -> None:
    tell(k, "I live in Rome.")
    assert set(tell(k, content)) == {"cube_id", "version", "offset"}


def test_watchers_are_told_which_cube_was_outdated(k: Inside) -> None:
    rome, oslo = move(k)
    watch = k.submit("mem_watch", namespace="a", events=["cube.superseded"], from_offset=0)
    watch.add_done_callback(asyncio.Future.exception)
    k.run(0.1)
    (item,) = k.peer(ADMIN).items
    assert item["offset"] == oslo["offset"]
    assert item["events"] == [{"event": "cube.superseded", "cube_id": rome["cube_id"], "namespace": "a", "version": 1}]
