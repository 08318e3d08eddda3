"""The driver host: a fair queue before a child that may hang, die or lie, and harms nobody else."""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from memos_drivers.host import client as host_client
from memos_drivers.host import wire
from memos_drivers.host.client import Answer, Host
from memos_syscalls.errors import (
    MemBusy,
    MemError,
    MemInvalid,
    MemIO,
    MemModel,
    MemNoCall,
    MemNoModel,
    MemTimeout,
    MemTooLarge,
)

uvloop.new_event_loop().close()
"""The first one opens descriptors that the process keeps."""
LONG = 60.0
"""Longer than anything here takes on a busy machine."""


def fds_open() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def _fakes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:  # pyright: ignore[reportUnusedFunction]
    """The fakes can be imported by the child, deaths cost no pause, and no descriptor is left at the end."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(host_client, "PAUSE_SECONDS", (0.01,))
    before = fds_open()
    yield
    assert fds_open() == before


@asynccontextmanager
async def hosted(spec: dict[str, Any] | None = None, **options: Any) -> AsyncGenerator[Host]:
    host = Host(spec or {}, module="host_fakes", **options)
    try:
        yield host
    finally:
        await host.close()
        assert host.pid is None


def play(scene: Callable[[], Awaitable[None]], *, loop: Callable[[], asyncio.AbstractEventLoop] | None = None) -> None:
    async def timed() -> None:
        async with asyncio.timeout(LONG):
            await scene()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(timed())


async def until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110
        await asyncio.sleep(0.005)


def running(job: asyncio.Task[Answer], host: Host, count: int = 1) -> Callable[[], bool]:
    return lambda: job.done() or host.stats()["running"] >= count


def sealed(content: bytes) -> int:
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, content)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
    return fd


@pytest.mark.parametrize("loop", [None, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_an_operation_answers_streams_and_passes_descriptors_on_both_loops(
    loop: Callable[[], asyncio.AbstractEventLoop] | None,
) -> None:
    async def scene() -> None:
        items: list[dict[str, Any]] = []
        shares: list[tuple[float, str]] = []
        async with hosted({"name": "first"}) as host:
            assert host.pid is None and host.info is None
            assert (await host.run("echo", {"text": "é"}, who="a")) == Answer({"echo": {"text": "é"}}, [])
            assert host.info == {"name": "first"} and host.pid is not None
            await host.run("streamed", {"items": 500}, who="a", on_item=items.append)
            assert items == [{"at": at} for at in range(500)]

            def on_progress(share: float, message: str) -> None:
                shares.append((share, message))

            await host.run("counted", {"steps": 2, "name": "x"}, who="a", on_progress=on_progress)
            assert shares == [(0.0, "step 0"), (0.5, "step 1")]
            fds = [sealed(b"one"), sealed(b"two")]
            answer = await host.run("swap", {}, fds, who="a")
            assert [os.pread(fd, 9, 0) for fd in answer.fds] == [b"ONE", b"TWO"]
            assert [os.get_inheritable(fd) for fd in answer.fds] == [False, False]
            for fd in (*fds, *answer.fds):
                os.close(fd)
            assert host.stats() == {"starts": 1, "deaths": 0, "running": 0, "waiting": 0, "last_death": None}

    play(scene, loop=loop)


def test_a_thousand_quick_calls_leave_no_descriptor_on_either_side() -> None:
    async def scene() -> None:
        async with hosted() as host:
            await host.run("echo", {}, who="a")
            first = await host.control("fds_open", {}, seconds=LONG)
            before = fds_open()
            content = sealed(b"text")
            for at in range(20):
                answers = await asyncio.gather(
                    *(host.run("swap", {}, [content] * (n % 5), who=str(n % 3)) for n in range(50 * at, 50 * at + 50))
                )
                for answer in answers:
                    for fd in answer.fds:
                        os.close(fd)
            os.close(content)
            assert fds_open() == before
            # The child closes what it passed on after the answer went out.
            while await host.control("fds_open", {}, seconds=LONG) != first:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            assert host.stats()["starts"] == 1

    play(scene)


def test_steps_go_round_by_principal_not_by_job() -> None:
    async def scene() -> None:
        async with hosted(active=5) as host:
            # The first holds the worker until all are there.
            gate = asyncio.create_task(host.run("counted", {"name": "gate", "steps": 1, "wait": True}, who="gate"))
            many = [
                asyncio.create_task(host.run("counted", {"name": f"many{n}", "steps": 6}, who="many")) for n in range(3)
            ]
            one = asyncio.create_task(host.run("counted", {"name": "one", "steps": 6}, who="one"))
            await until(running(one, host, 5))
            assert await host.control("go", {"x": 1}, seconds=LONG) == {"x": 1}
            asked = [name[:4] for name in (await one).result["asked"] if name != "gate"]
            await asyncio.gather(gate, *many)
            assert asked.count("one") == 6 and 5 <= asked.count("many") <= 7
            assert all(len(list(run)) == 1 for _, run in itertools.groupby(asked))

    play(scene)


def test_a_principals_jobs_leave_room_for_another_and_go_in_order() -> None:
    async def scene() -> None:
        async with hosted(active=2) as host:
            ended: list[str] = []

            async def one(name: str, who: str, **args: Any) -> None:
                await host.run("counted", {"name": name, "steps": 3, **args}, who=who)
                ended.append(name)

            tasks = [asyncio.create_task(one("a0", "a", wait=True))]
            tasks += [asyncio.create_task(one(f"a{n}", "a")) for n in range(1, 5)]
            tasks.append(asyncio.create_task(one("b0", "b")))
            await until(lambda: host.stats()["running"] == 2)
            assert host.stats()["waiting"] == 4
            await host.control("go", {}, seconds=LONG)
            await asyncio.gather(*tasks)
            assert [name for name in ended if name != "b0"] == ["a0", "a1", "a2", "a3", "a4"]
            assert ended.index("b0") <= 1

    play(scene)


def test_a_background_job_comes_to_its_end_beside_one_that_never_does() -> None:
    async def scene() -> None:
        async with hosted() as host:
            items: list[dict[str, Any]] = []
            never = asyncio.create_task(host.run("endless", {"stream": True}, who="a", on_item=items.append))
            await until(lambda: bool(items))
            behind = await host.run("counted", {"name": "behind", "steps": 3}, who="b", background=True, seconds=LONG)
            assert behind.result["asked"] == ["behind"] * 3
            assert not never.done()
            never.cancel()
            with pytest.raises(asyncio.CancelledError):
                await never

    play(scene)


def test_background_jobs_wait_while_others_have_steps() -> None:
    async def scene() -> None:
        async with hosted(active=5) as host:
            gate = asyncio.create_task(host.run("counted", {"name": "gate", "steps": 1, "wait": True}, who="a"))
            await until(running(gate, host))
            behind = [
                asyncio.create_task(host.run("counted", {"name": "behind", "steps": 5}, who="a", background=True))
                for _ in range(3)
            ]
            before = [asyncio.create_task(host.run("counted", {"name": "before", "steps": 5}, who=w)) for w in "bcd"]
            await until(lambda: host.stats()["running"] == 5)
            assert host.stats()["waiting"] == 2, "the child has one background job at a time"
            await host.control("go", {}, seconds=LONG)
            asked = (await asyncio.gather(*behind))[-1].result["asked"]
            await asyncio.gather(gate, *before)
            assert asked == ["gate", *["before"] * 15, *["behind"] * 15]

    play(scene)


def test_a_cancelled_call_is_closed_at_its_next_step() -> None:
    async def scene() -> None:
        async with hosted() as host:
            items: list[dict[str, Any]] = []
            job = asyncio.create_task(host.run("endless", {"stream": True}, who="left", on_item=items.append))
            behind = asyncio.create_task(host.run("endless", {}, who="behind", background=True))
            await until(lambda: host.stats()["running"] == 2 and bool(items))
            for task in (behind, job):
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            await until(lambda: host.stats()["running"] == 0)
            # One that never had a step has nothing to close.
            assert await host.control("closed", {}, seconds=LONG) == {"closed": ["left"]}
            assert host.stats()["deaths"] == 0

    play(scene)


def test_a_call_that_waits_can_leave() -> None:
    async def scene() -> None:
        async with hosted(active=1) as host:
            first = asyncio.create_task(host.run("endless", {}, who="a"))
            await until(running(first, host))
            with pytest.raises(MemTimeout):
                await host.run("echo", {}, who="a", seconds=0.02)
            second = asyncio.create_task(host.run("echo", {}, who="a"))
            await asyncio.sleep(0)
            second.cancel()
            await asyncio.gather(second, return_exceptions=True)
            assert host.stats()["waiting"] == 0
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)

    play(scene)


def test_a_deadline_ends_the_call_at_once_and_its_job_at_its_next_step() -> None:
    async def scene() -> None:
        async with hosted() as host:
            await host.run("echo", {}, who="a")
            items: list[dict[str, Any]] = []
            with pytest.raises(MemTimeout):
                await host.run("endless", {"stream": True}, who="late", seconds=0.5, on_item=items.append)
            await until(lambda: host.stats()["running"] == 0)
            if items:
                assert await host.control("closed", {}, seconds=LONG) == {"closed": ["late"]}

    play(scene)


def test_late_descriptors_are_closed() -> None:
    async def scene() -> None:
        async with hosted() as host:
            await host.run("echo", {}, who="a")
            content, before = sealed(b"text"), fds_open()
            with pytest.raises(MemTimeout):
                await host.run("swap", {"wait": True}, [content] * 4, who="a", seconds=0.05)
            await host.control("go", {}, seconds=LONG)
            await until(lambda: host.stats()["running"] == 0)
            assert fds_open() == before
            os.close(content)

    play(scene)


def test_a_step_that_hangs_costs_the_child_its_life_and_the_call_one_repeat(tmp_path: Path) -> None:
    async def scene() -> None:
        async with hosted(silence_seconds=0.5) as host:
            args = {"once": str(tmp_path / "once")}
            assert (await host.run("hang", args, who="a")).result == {}
            with pytest.raises(MemIO, match=r"kept silent for 0\.5 s"):
                await host.run("hang", {}, who="a", repeatable=False)
            assert (await host.run("echo", {}, who="b")).result == {"echo": {}}
            assert host.stats()["deaths"] == 2

    play(scene)


def test_a_hanging_call_that_was_left_is_killed_and_others_go_on() -> None:
    async def scene() -> None:
        async with hosted(silence_seconds=0.5) as host:
            await host.run("echo", {}, who="a")
            with pytest.raises(MemTimeout):
                await host.run("hang", {}, who="a", seconds=0.05)
            assert (await host.run("echo", {}, who="b")).result == {"echo": {}}
            assert host.stats()["deaths"] == 1

    play(scene)


def test_steps_are_a_sign_of_life() -> None:
    async def scene() -> None:
        async with hosted(silence_seconds=1.0) as host:
            await host.run("echo", {}, who="a")
            with pytest.raises(MemTimeout):
                await host.run("endless", {}, who="a", seconds=2.2)
            assert host.stats()["deaths"] == 0

    play(scene)


def test_a_killed_child_costs_a_repeatable_call_nothing(tmp_path: Path) -> None:
    async def scene() -> None:
        async with hosted() as host:
            await host.run("echo", {}, who="a")
            content = sealed(b"text")
            first, others = host.pid, [asyncio.create_task(host.run("swap", {}, [content], who="b")) for _ in range(8)]
            assert (await host.run("die", {"once": str(tmp_path / "once")}, who="a")).result == {"second": True}
            for other in others:
                [fd] = (await other).fds
                os.close(fd)
            os.close(content)
            assert host.pid != first
            assert host.stats()["deaths"] == 1 and "SIGKILL" in host.stats()["last_death"]

    play(scene)


def test_what_may_not_be_repeated_is_told_so() -> None:
    async def scene() -> None:
        async with hosted() as host:
            with pytest.raises(MemIO, match="SIGKILL"):
                await host.run("die", {}, who="a", repeatable=False)
            with pytest.raises(MemIO, match="exit status 9"):
                await host.run("die", {"status": 9}, who="a")
            items: list[dict[str, Any]] = []
            with pytest.raises(MemIO, match="died"):
                await host.run("streamed", {"items": 9, "die_at": 3}, who="a", on_item=items.append)
            assert items == [{"at": at} for at in range(4)]
            assert host.stats()["deaths"] == 4

    play(scene)


def test_a_bad_call_does_not_take_a_good_one_with_it_twice() -> None:
    async def scene() -> None:
        async with hosted() as host:
            gate = asyncio.create_task(host.run("counted", {"name": "gate", "steps": 1, "wait": True}, who="gate"))
            bad = asyncio.create_task(host.run("die", {}, who="bad"))
            good = asyncio.create_task(host.run("counted", {"name": "good", "steps": 50}, who="good"))
            await until(running(good, host, 3))
            await host.control("go", {}, seconds=LONG)
            with pytest.raises(MemIO):
                await bad
            # The gate may be run again as well; it is opened for whatever child there is.
            while not good.done() or not gate.done():
                await host.control("go", {}, seconds=LONG)
                await asyncio.sleep(0.01)
            assert good.result().result["asked"][-1] == "good" and gate.result().result

    play(scene)


@pytest.mark.parametrize(
    "how", ["length", "bytes", "list", "nest", "flood", "id", "kind", "result", "few", "many", "item", "heap", "half"]
)
def test_garbage_on_the_socket_ends_the_child_and_nothing_else(how: str) -> None:
    async def scene() -> None:
        async with hosted() as host:
            before = fds_open()
            with pytest.raises(MemIO, match="SIGKILL" if how == "half" else "garbage"):
                await host.run("babble", {"how": how, "id": 1}, who="a", repeatable=False)
            assert fds_open() == before
            assert (await host.run("echo", {}, who="a")).result == {"echo": {}}
            assert host.stats()["deaths"] == 1

    play(scene)


@pytest.mark.parametrize(
    ("how", "error", "text"),
    [
        ("memory", MemIO, "out of memory on the device"), ("torch memory", MemIO, "out of memory on the device"),
        ("typed", MemModel, "another tokenizer"), ("value", MemIO, "ValueError: seven is not prime enough"),
        ("long", MemModel, "x+"), ("surrogate", MemIO, r"KeyError: '\\udc80'"), ("surrogate typed", MemModel, r"\?"),
        ("result", MemIO, "TypeError"), ("nothing", MemIO, "did not return"), ("too many", MemIO, f"more than {wire.FDS_MAX}"),
    ],
)  # fmt: skip
def test_what_an_operation_raises_is_the_answer_and_the_child_goes_on(how: str, error: type[MemError], text: str) -> None:
    async def scene() -> None:
        async with hosted() as host:
            await host.run("echo", {}, who="a")
            before = await host.control("fds_open", {}, seconds=LONG)
            with pytest.raises(error, match=text) as caught:
                await host.run("fail", {"how": how}, [0], who="a")
            assert type(caught.value) is error and caught.value.advice
            assert await host.control("fds_open", {}, seconds=LONG) == before
            assert host.stats()["deaths"] == 0

    play(scene)


def test_calls_that_cannot_be_made_are_refused_before_they_are_queued() -> None:
    async def scene() -> None:
        async with hosted() as host:
            with pytest.raises(MemInvalid):
                await host.run("echo", {}, [0] * (wire.FDS_MAX + 1), who="a")
            with pytest.raises(MemTooLarge):
                await host.run("echo", {"text": "x" * (5 << 20)}, who="a")
            with pytest.raises(TypeError):
                await host.run("echo", {"x": object()}, who="a")
            assert host.stats()["starts"] == 0
            with pytest.raises(MemNoCall):
                await host.run("unheard", {}, who="a")

    play(scene)


def test_a_callers_own_mistake_in_a_callback_ends_its_call_alone() -> None:
    async def scene() -> None:
        async with hosted() as host:
            with pytest.raises(KeyError):
                await host.run("endless", {"stream": True}, who="a", on_item=lambda item: item["missing"])
            assert (await host.run("echo", {}, who="a")).result == {"echo": {}}
            await until(lambda: host.stats()["running"] == 0)

    play(scene)


def test_a_control_is_answered_during_a_long_step_and_a_stuck_one_costs_the_child_its_life() -> None:
    async def scene() -> None:
        async with hosted() as host:
            assert await host.control("closed", {}) is None, "no child runs, so nothing is in one"
            job = asyncio.create_task(host.run("hang", {}, who="a", repeatable=False))
            await until(lambda: host.pid is not None)
            assert await host.control("closed", {}, seconds=LONG) == {"closed": []}
            with pytest.raises(MemModel):
                await host.control("refuse", {}, seconds=LONG)
            with pytest.raises(MemNoCall):
                await host.control("unheard", {}, seconds=LONG)
            pid = host.pid
            assert pid is not None
            assert await host.control("slow", {}, seconds=0.01, must=False) is None
            assert await host.control("closed", {}, seconds=LONG) == {"closed": []}, "who only asked harms nobody"
            assert host.pid == pid
            assert await host.control("stuck", {}, seconds=0.1) is None
            assert not _alive(pid), "what was to be erased is in no process"
            with pytest.raises(MemIO, match="control 'stuck'"):
                await job

    play(scene)


def test_the_queue_is_bounded_for_one_and_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_client, "WAITING_MAX", 100)

    async def scene() -> None:
        async with hosted(active=1) as host:
            first = asyncio.create_task(host.run("counted", {"name": "gate", "steps": 1, "wait": True}, who="a"))
            await until(running(first, host))
            tasks = [asyncio.create_task(host.run("echo", {}, who="a")) for _ in range(64)]
            await asyncio.sleep(0)
            with pytest.raises(MemBusy, match="64 of your"):
                await host.run("echo", {}, who="a", background=True)
            tasks += [asyncio.create_task(host.run("echo", {}, who="b")) for _ in range(36)]
            await asyncio.sleep(0)
            with pytest.raises(MemBusy, match="100 calls"):
                await host.run("echo", {}, who="c")
            await host.control("go", {}, seconds=LONG)
            assert len(await asyncio.gather(first, *tasks)) == 101

    play(scene)


def test_a_refusal_at_start_is_the_answer_until_the_model_is_there(tmp_path: Path) -> None:
    async def scene() -> None:
        async with hosted({"needs": str(tmp_path / "model")}) as host:
            waiting = [asyncio.create_task(host.run("echo", {}, who=w)) for w in "ab"]
            for task in waiting:
                with pytest.raises(MemNoModel, match="no model is installed"):
                    await task
            (tmp_path / "model").touch()
            assert (await host.run("echo", {}, who="a")).result == {"echo": {}}

    play(scene)


def test_deaths_at_start_are_tried_again_and_bounded(tmp_path: Path) -> None:
    async def scene() -> None:
        async with hosted({"die_at_start": str(tmp_path / "a"), "deaths": 2}) as host:
            assert (await host.run("echo", {}, who="a")).result == {"echo": {}}
            assert host.stats()["starts"] == 3 and "exit status 7" in host.stats()["last_death"]
        async with hosted({"die_at_start": str(tmp_path / "b"), "deaths": 4}) as host:
            with pytest.raises(MemIO, match="3 times at its start"):
                await host.run("echo", {}, who="a")
            assert (await host.run("echo", {}, who="a")).result == {"echo": {}}
        async with hosted({"slow_start": True}, start_seconds=0.3) as host:
            with pytest.raises(MemIO, match=r"not ready after 0\.3 s"):
                await host.run("echo", {}, who="a")

    play(scene)


def test_a_child_that_cannot_be_started_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        for executable, text in (("/bin/false", "exit status 1"), ("/nonexistent", "No such file")):
            monkeypatch.setattr(sys, "executable", executable)
            async with hosted() as host:
                with pytest.raises(MemIO, match=text):
                    await host.run("echo", {}, who="a")

    play(scene)


@pytest.mark.parametrize("spec", [{}, {"slow_start": True}], ids=["running", "starting"])
def test_close_answers_who_waits_and_leaves_no_process(spec: dict[str, Any]) -> None:
    async def scene() -> None:
        host = Host(spec, module="host_fakes")
        tasks = [asyncio.create_task(host.run("hang", {}, who=str(n))) for n in range(8)]
        await until(lambda: host.stats()["starts"] == 1 and (bool(spec) or host.pid is not None))
        await asyncio.sleep(0.05)
        pid = host.pid
        await host.close()
        for task in tasks:
            with pytest.raises(MemIO, match="was closed"):
                await task
        with pytest.raises(MemIO):
            await host.run("echo", {}, who="a")
        assert pid is None or not _alive(pid)
        await host.close()

    play(scene)


def test_the_child_protects_what_it_holds_and_yields_when_told() -> None:
    async def scene() -> None:
        async with hosted({"yields": True, "threads": 3}) as host:
            view = (await host.run("self_view", {}, who="a")).result
            assert (view["dumpable"], view["parent_death"], view["threads"]) == (0, signal.SIGKILL, "3")
            assert (view["nice"], view["policy"]) == (10, os.SCHED_OTHER)
            assert int(view["oom"]) >= 500

    play(scene)


def test_the_child_dies_with_the_kernel() -> None:
    code = (
        "import asyncio, os, signal\n"
        "from memos_drivers.host.client import Host\n"
        "async def main():\n"
        "    host = Host({}, module='host_fakes')\n"
        "    task = asyncio.create_task(host.run('hang', {}, who='a'))\n"
        "    while host.pid is None: await asyncio.sleep(0.01)\n"
        "    print(host.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False, timeout=LONG).stdout
    end = time.monotonic() + LONG
    while _alive(int(shown)) and time.monotonic() < end:
        time.sleep(0.01)
    assert not _alive(int(shown))


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_the_kernels_side_imports_no_model_runtime() -> None:
    code = (
        "import sys, memos_drivers.host.client;"
        "print([m for m in ('torch', 'transformers', 'numpy', 'onnxruntime') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
