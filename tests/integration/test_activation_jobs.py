"""Jobs: who may see, wait for, cancel and repeat them; that they do a thing once, and end when they should."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests import lm
from tests.activation import BEES, CHESS, KETTLE, Model
from tests.inside import ADMIN, ALICE, BOB

from memos_kernel.jobs import Job
from memos_syscalls import limits

tiny = lm.tiny
QUESTION = "Who keeps bees?"
LONG = "Anna moved to Lisbon in the spring and keeps bees on the roof. " * 200


@pytest.fixture(scope="module")
def k(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with Model(tiny, tmp_path_factory.mktemp("cache")) as kernel:
        kernel.ask(QUESTION)  # the host starts and loads the model
        yield kernel
        kernel.sound()


def test_a_job_goes_on_without_its_caller_and_says_how_far_it_is(k: Model) -> None:
    text = k.alloc(LONG)
    begun = k("mem_migrate", cube_id=text, to="activation", wait=False)
    assert begun["state"] in ("queued", "running") and "cube_id" not in {n for n, v in begun.items() if v is not None}
    shares: list[float] = []
    while (now := k("job_status", job_id=begun["job_id"]))["state"] in ("queued", "running"):
        shares.append(now["progress"])
        k.run(0.005)
    assert shares == sorted(shares) and now["state"] == "done" and now["progress"] == 1.0
    assert now["result"]["cube_id"] and now["finished_at"] >= now["created_at"] and now["error"] is None
    assert k("job_wait", job_id=begun["job_id"]) == now, "who comes late is told the same"
    assert k("job_cancel", job_id=begun["job_id"]) == now, "what is over stays so"
    assert k.header(now["result"]["cube_id"])["form"] == "activation"


def test_progress_is_told_while_a_long_memory_is_read(k: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[float] = set()
    report = Job.report

    def reported(job: Job, share: float, message: str) -> None:
        seen.add(share)
        report(job, share, message)

    monkeypatch.setattr(Job, "report", reported)
    assert k.capture(k.alloc(LONG + "p"))
    assert len([share for share in seen if 0 < share < 1]) >= 3


def test_a_job_is_its_principals_own(k: Model) -> None:
    text = k.alloc(BEES, ALICE, namespace="hers")
    job = k("mem_migrate", ALICE, cube_id=text, to="activation", wait=False)["job_id"]
    for name in ("job_status", "job_wait", "job_cancel"):
        assert k.failure(name, BOB, job_id=job).errno == k.failure(name, BOB, job_id="0" * 32).errno == "ENOENT"
    assert k("job_wait", ALICE, job_id=job)["state"] == "done"
    assert k("job_status", ADMIN, job_id=job)["state"] == "done"
    for name in ("job_status", "job_wait"):
        assert k.failure(name, BOB, job_id=job).errno == "ENOENT"


@pytest.mark.parametrize("how", ["job_cancel", "sys_cancel", "deadline", "goes away"])
def test_a_capture_that_is_given_up_commits_nothing(k: Model, how: str) -> None:
    text = k.alloc(LONG + how)
    call = k.submit("mem_migrate", cube_id=text, to="activation", deadline_ms=150 if how == "deadline" else None)
    if how == "deadline":
        began = time.monotonic()
        error = k.error(call)
        assert (error.errno, error.outcome) == ("ETIMEDOUT", "none")
        assert time.monotonic() - began < 5
    else:
        peer = k.peer(ADMIN)
        while not (jobs := [job for job in k.kernel.runtime.jobs._jobs.values() if job.state == "running"]):  # pyright: ignore[reportPrivateUsage]
            k.run(0.005)
        if how == "job_cancel":
            assert k("job_cancel", job_id=jobs[-1].id)["state"] == "canceled"
        elif how == "sys_cancel":
            call_id = next(number for number, future in peer.waiting.items() if future is call)
            assert peer.cancel(call_id)
        else:
            # What the server does with the calls of a connection that closed.
            turn = next(turn for turn in peer.turns.values() if turn.syscall.name == "mem_migrate")
            turn.cancel.cancel()
        error = k.error(call)
        assert (error.errno, error.outcome) == ("ECANCELED", "none")
    until = time.monotonic() + 10
    while k.kernel.runtime.host.stats()["running"] and time.monotonic() < until:
        k.run(0.01)
    k.run(0.1)
    assert k.derived(text) == []
    assert k.capture(text), "the next one is not disturbed"


def test_one_of_two_who_wait_for_a_job_may_leave(k: Model) -> None:
    text = k.alloc(LONG + "two")
    args: dict[str, Any] = {"cube_id": text, "to": "activation", "request_id": "two wait"}
    first, second = k.submit("mem_migrate", **args), k.submit("mem_migrate", **args)
    k.run(0.05)
    peer = k.peer(ADMIN)
    call_id = next(number for number, future in peer.waiting.items() if future is first)
    assert peer.cancel(call_id)
    assert k.error(first).errno == "ECANCELED"
    assert k.wait(second, 60)["cube_id"]


def test_the_same_request_id_is_one_job_and_one_record(k: Model) -> None:
    text = k.alloc(BEES + "once")
    args: dict[str, Any] = {"cube_id": text, "to": "activation", "request_id": "once"}
    with k.during("capture", lambda: None) as asked:
        calls = [k.submit("mem_migrate", **args) for _ in range(3)]
        answers = [k.wait(call, 60) for call in calls]
    assert asked.count("capture") == 1
    assert len({(a["cube_id"], a["version"], a["offset"], a["job_id"]) for a in answers}) == 1
    again = k("mem_migrate", **args)
    first = tuple(answers[0][name] for name in ("cube_id", "version", "offset"))
    assert (again["cube_id"], again["version"], again["offset"]) == first
    assert k.failure("mem_migrate", **{**args, "name": "another"}).errno == "EINVAL"
    k.reopen()
    later = k("mem_migrate", **args)
    assert (later["cube_id"], later["version"], later["offset"]) == first
    assert len(k.derived(text)) == 1
    # After a change the old request id still names the old record, and asks for nothing new.
    k("mem_write", cube_id=text, content=CHESS)
    assert k("mem_migrate", **args)["version"] == 1


def test_a_request_id_whose_job_failed_may_be_used_again(k: Model) -> None:
    text = k.alloc(LONG + "again")
    args: dict[str, Any] = {"cube_id": text, "to": "activation", "request_id": "failed once"}
    error = k.failure("mem_migrate", **args, deadline_ms=50)
    assert error.errno == "ETIMEDOUT"
    assert k("mem_migrate", **args)["cube_id"]


def test_captures_of_the_same_at_once_are_one_work_and_as_many_answers(k: Model) -> None:
    text = k.alloc(BEES + "same")
    with k.during("capture", lambda: None) as asked:
        calls = [k.submit("mem_migrate", cube_id=text, to="activation") for _ in range(5)]
        answers = [k.wait(call, 60) for call in calls]
    assert asked.count("capture") == 1
    assert len({answer["cube_id"] for answer in answers}) == 1 == len(k.derived(text))
    assert sorted(answer.get("reused", False) for answer in answers) == [False, True, True, True, True]


def test_different_captures_of_one_text_do_not_wait_for_one_another_nor_mix(k: Model) -> None:
    text = k.alloc(BEES + "kinds")
    kinds = [{}, {"stored": "float16"}, {"stored": "int8"}, {"system": "Be brief."}]
    calls = [k.submit("mem_migrate", cube_id=text, to="activation", params=kind) for kind in kinds]
    assert len({k.wait(call, 60)["cube_id"] for call in calls}) == len(kinds)


def test_answers_go_on_beside_a_capture_and_reads_do_not_wait(k: Model) -> None:
    texts = [k.alloc(LONG + str(number)) for number in range(3)]
    captures = [k.submit("mem_migrate", ALICE if number else ADMIN, cube_id=text, to="activation") for number, text in
                enumerate(texts[:1])]  # fmt: skip
    began = time.monotonic()
    assert k.ask(QUESTION, max_new_tokens=4)["text"] is not None
    worst = 0.0
    while not captures[0].done() and time.monotonic() - began < 30:
        before = time.monotonic()
        k("mem_read", cube_id=texts[1])
        worst = max(worst, time.monotonic() - before)
    assert k.wait(captures[0], 60)["cube_id"]
    assert worst < 1.0


def test_who_begins_too_many_jobs_is_told_to_wait_and_others_are_not(k: Model) -> None:
    texts = [k.alloc(KETTLE + str(number), ALICE, namespace="hers") for number in range(2)]
    jobs = k.kernel.runtime.jobs
    calls = [
        k.submit("mem_migrate", ALICE, cube_id=texts[0], to="activation", wait=False, params={"system": f"Number {number}."})
        for number in range(limits.JOBS_PER_PRINCIPAL_MAX)
    ]
    begun = [k.wait(call)["job_id"] for call in calls]
    assert k.failure("mem_migrate", ALICE, cube_id=texts[1], to="activation").errno == "EBUSY"
    assert k.failure("mem_infer", ALICE, **k.question(QUESTION)).errno == "EBUSY"
    assert k.ask(QUESTION, caller=BOB, max_new_tokens=2)["tokens_out"] == 2
    for job in begun:
        k("job_cancel", ALICE, job_id=job)
    assert k.capture(texts[1], caller=ALICE)
    assert sum(jobs.stats().values()) <= limits.JOBS_KEPT_MAX


def test_a_commit_that_began_is_not_cut_short_by_the_deadline(k: Model) -> None:
    """Its caller is told in time that the outcome is unknown; the job itself says what became of it."""
    text = k.alloc(BEES + "late")
    kernel: Any = k.kernel
    commit = k.kernel.commit_product

    async def slowly(*args: Any) -> dict[str, Any]:
        await asyncio.sleep(0.6)
        return await commit(*args)

    kernel.commit_product = slowly
    try:
        call = k.submit("mem_migrate", cube_id=text, to="activation", deadline_ms=400)
        error = k.error(call)
        assert (error.errno, error.outcome) == ("ETIMEDOUT", "unknown")
        k.run(0.5)
    finally:
        kernel.commit_product = commit
    assert len(k.derived(text)) == 1
    assert k.migrated(text)["reused"]


def test_a_stop_ends_jobs_and_what_they_had_not_committed_is_not_there(k: Model) -> None:
    text = k.alloc(LONG + "stop")
    job = k("mem_migrate", cube_id=text, to="activation", wait=False)["job_id"]
    call = k.submit("mem_infer", **k.question(QUESTION, max_new_tokens=2000))
    k.run(0.05)
    began = time.monotonic()
    k.stop()
    assert time.monotonic() - began < 10
    assert call.done() and call.exception() is not None
    k.open()
    assert k.derived(text) == []
    assert k.failure("job_status", job_id=job).errno == "ENOENT"
    assert k.capture(text)
