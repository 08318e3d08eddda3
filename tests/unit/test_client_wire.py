"""The client library against a small fake kernel that speaks the wire and does as each test says."""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import gc
import os
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import uvloop

from memos_client import (
    AsyncKernel,
    Kernel,
    MemConflict,
    MemInvalid,
    MemIO,
    MemNotFound,
    MemProtocol,
    MemTimeout,
    MemTooLarge,
    MemUnreachable,
)
from memos_client import _session as session  # pyright: ignore[reportPrivateUsage]
from memos_syscalls import limits, wire
from memos_syscalls.table import BY_NUMBER

CUBE = "01920000-0000-7000-8000-000000000000"
MUTATED = {"cube_id": CUBE, "version": 1, "offset": 17}
HELLO = {"abi": 1, "principal": "uid:1", "server": "fake", "log_id": "0" * 32}
LOOPS = pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])


def read_reply(content: object, **more: object) -> dict[str, Any]:
    return {"cube_id": CUBE, "version": 1, "form": "plaintext", "state": "activated", "offset": 17, "content": content, **more}


class Peer:
    """The fake's side of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def send(self, frame: bytes, fds: Sequence[int] = ()) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sent = self.sock.sendmsg([frame], rights)
        if sent < len(frame):  # To send nothing to who has read everything and gone is an error, too.
            self.sock.sendall(frame[sent:])

    def reply(self, call_id: int, result: dict[str, Any], fds: Sequence[int] = ()) -> None:
        self.send(wire.pack_reply(call_id, result), fds)

    def hang_up(self) -> None:
        self.sock.shutdown(socket.SHUT_RDWR)


Act = Callable[[Peer, int, str, dict[str, Any], list[int]], None]


class Fake:
    """A kernel that answers hello and leaves the rest to `act`; notes what was called."""

    def __init__(self, path: str, act: Act) -> None:
        self.path, self.act = path, act
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.connections = 0
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._peers: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._peers.append(sock)
            self._threads.append(threading.Thread(target=self._serve, args=(sock,)))
            self._threads[-1].start()

    def _serve(self, sock: socket.socket) -> None:
        splitter, peer, fds = wire.Splitter(), Peer(sock), list[int]()
        with contextlib.ExitStack() as exits:
            exits.enter_context(contextlib.suppress(OSError))
            exits.callback(lambda: session.close_all(fds))
            while True:
                data, ancillary, _, _ = sock.recvmsg(65536, 1024)
                if not data:
                    return
                for _, _, raw in ancillary:
                    fds += array.array("i", raw).tolist()
                for body in splitter.feed(data):
                    call_id, number, args = wire.parse_request(body)
                    name = BY_NUMBER[number].name
                    self.calls.append((name, args))
                    if name == "sys_hello":
                        peer.reply(call_id, HELLO)
                    else:
                        taken, fds = fds, []
                        try:
                            self.act(peer, call_id, name, args, taken)
                        finally:
                            session.close_all(taken)

    def names(self) -> list[str]:
        return [name for name, _ in self.calls if name != "sys_hello"]

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._peers:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for sock in self._peers:
            sock.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[Act], Fake]]:
    fakes: list[Fake] = []
    before = open_fds()

    def start(act: Act) -> Fake:
        fakes.append(Fake(str(tmp_path / "s"), act))
        return fakes[-1]

    yield start
    for fake in fakes:
        fake.close()
    gc.collect()
    assert open_fds() <= before, "a descriptor was left open"


def open_fds() -> set[str]:
    links = {f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")}
    found: set[str] = set()
    for link in links:
        with contextlib.suppress(OSError):
            found.add(f"{link} {os.readlink(link)}")
    return {line for line in found if "memfd" in line or "socket" in line}


def answer(result: dict[str, Any]) -> Act:
    return lambda peer, call_id, name, args, fds: peer.reply(call_id, result)


def silence(peer: Peer, call_id: int, name: str, args: dict[str, Any], fds: list[int]) -> None:
    """Reads the call and says nothing."""


def hang_up(peer: Peer, call_id: int, name: str, args: dict[str, Any], fds: list[int]) -> None:
    peer.hang_up()


def run(loop: Callable[[], asyncio.AbstractEventLoop], main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main)


# Arguments, replies, errors ------------------------------------------------------------------------------------------


def test_only_given_arguments_travel_and_the_reply_is_typed(serve: Callable[[Act], Fake]) -> None:
    fake = serve(answer(MUTATED))
    with Kernel.connect(fake.path) as k:
        assert k.hello.principal == "uid:1"
        reply = k.mem_alloc(namespace="alice", content="Biscuit", tags=("pets",))
        assert (reply.cube_id, reply.version, reply.offset) == (CUBE, 1, 17)
        k.mem_write(CUBE, content=b"\x00", expect_version=1, metadata={"a": [1, {"b": None}]})
        k.mem_rollback(CUBE, to_version=1)
    assert fake.calls == [
        ("sys_hello", {"abi": 1}),
        ("mem_alloc", {"namespace": "alice", "content": "Biscuit", "tags": ["pets"]}),
        ("mem_write", {"cube_id": CUBE, "content": b"\x00", "metadata": {"a": [1, {"b": None}]}, "expect_version": 1}),
        ("mem_rollback", {"cube_id": CUBE, "to_version": 1}),
    ]


def test_a_search_reply_is_the_sequence_of_its_hits(serve: Callable[[Act], Fake]) -> None:
    hit = {"cube_id": CUBE, "version": 2, "score": 0.5, "content": "x", "namespace": "alice"}
    fake = serve(answer({"hits": [hit, hit], "partial": True, "a_field_of_a_newer_kernel": 1}))
    with Kernel.connect(fake.path) as k:
        hits = k.mem_search("what breed is the dog?", namespace="alice", k=5)
        assert [h.score for h in hits] == [0.5, 0.5] and hits[0].version == 2 and len(hits) == 2 and hits.partial


def test_arguments_that_cannot_be_sent_leave_the_connection_as_it_was(
    serve: Callable[[Act], Fake],
) -> None:
    fake = serve(answer(MUTATED))
    with Kernel.connect(fake.path) as k:
        with pytest.raises(TypeError):
            k.mem_alloc("alice", "x", tagz=["a"])  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
        with pytest.raises(TypeError):
            k.mem_alloc("alice", "x", metadata={"o": object()})
        with pytest.raises(MemInvalid):
            k.mem_alloc("alice", "x", metadata={"n": 2**70})
        with pytest.raises(MemInvalid):
            k.mem_alloc("alice", "\ud800")
        with pytest.raises(MemTooLarge):
            k.mem_alloc("alice", "x", metadata={"n": "x" * (limits.FRAME_BYTES_MAX + 1)})
        assert k.mem_alloc("alice", "x").version == 1
    assert fake.connections == 1


def test_error_replies_become_their_exceptions(serve: Callable[[Act], Fake]) -> None:
    def act(peer: Peer, call_id: int, name: str, args: dict[str, Any], fds: list[int]) -> None:
        error = MemConflict("version is 3", "Read it again.") if name == "mem_write" else MemNotFound("no such cube")
        peer.send(wire.pack_error(call_id, error.number, error.to_wire()))

    with Kernel.connect(serve(act).path) as k:
        with pytest.raises(MemConflict) as caught:
            k.mem_write(CUBE, "x")
        assert (caught.value.detail, caught.value.advice, caught.value.outcome) == ("version is 3", "Read it again.", "none")
        with pytest.raises(MemNotFound):
            k.mem_read(CUBE)


def test_an_error_about_the_connection_reaches_the_call_in_flight(serve: Callable[[Act], Fake]) -> None:
    refusal = MemProtocol("not MessagePack")
    fake = serve(lambda peer, call_id, name, args, fds: peer.send(wire.pack_error(0, refusal.number, refusal.to_wire())))
    with Kernel.connect(fake.path) as k, pytest.raises(MemProtocol, match="not MessagePack"):
        k.mem_read(CUBE)


def test_a_reply_that_does_not_fit_its_model_is_a_protocol_error(serve: Callable[[Act], Fake]) -> None:
    with Kernel.connect(serve(answer({"version": 1})).path) as k:
        with pytest.raises(MemProtocol) as caught:
            k.mem_free(CUBE)
        assert caught.value.outcome == "unknown"


def test_no_kernel_is_unreachable_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    monkeypatch.setenv("MEMOS_SOCKET", str(tmp_path / "none"))
    with pytest.raises(MemUnreachable, match="none"):
        Kernel.connect()
    with pytest.raises(MemUnreachable):
        asyncio.run(_connect_async(str(tmp_path / "none")))
    assert time.monotonic() - began < 1
    monkeypatch.delenv("MEMOS_SOCKET")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/x")
    assert session.default_path() == "/run/x/memos.sock"


async def _connect_async(path: str) -> None:
    async with AsyncKernel.connect(path):
        raise AssertionError("nothing listens there")


# Contents as descriptors ---------------------------------------------------------------------------------------------

BIG = "é" * (limits.CONTENT_INLINE_BYTES_MAX // 2 + 1)


def test_large_content_leaves_as_a_sealed_memfd_and_small_content_inline(serve: Callable[[Act], Fake]) -> None:
    seen: list[tuple[dict[str, Any], list[bytes], list[int]]] = []

    def act(peer: Peer, call_id: int, name: str, args: dict[str, Any], fds: list[int]) -> None:
        contents = [os.pread(fd, os.fstat(fd).st_size, 0) for fd in fds]
        seen.append((args, contents, [fcntl.fcntl(fd, fcntl.F_GET_SEALS) for fd in fds]))
        peer.reply(call_id, {"items": [], "offset": 1} if name == "mem_alloc_many" else MUTATED)

    with Kernel.connect(serve(act).path) as k:
        k.mem_alloc("alice", BIG)
        k.mem_alloc("alice", "x" * limits.CONTENT_INLINE_BYTES_MAX)
        items: list[dict[str, Any]] = [{"namespace": "a", "content": "small"}, {"namespace": "a", "content": BIG.encode()}]
        k.mem_alloc_many(items)
        with pytest.raises(MemTooLarge):
            k.mem_alloc_many([{"namespace": "a", "content": BIG}] * (limits.FDS_PER_FRAME_MAX + 1))
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
    assert seen[0] == ({"namespace": "alice", "fd": 0, "encoding": "text"}, [BIG.encode()], [seals])
    assert seen[1][1] == [] and len(seen[1][0]["content"]) == limits.CONTENT_INLINE_BYTES_MAX
    assert seen[2][0]["items"] == [items[0], {"namespace": "a", "fd": 0, "encoding": "bytes"}]
    assert items[1]["content"] == BIG.encode(), "the caller's own argument stays as it was"


def by_descriptor(encoding: str) -> Act:
    def act(peer: Peer, call_id: int, name: str, args: dict[str, Any], fds: list[int]) -> None:
        fd = os.memfd_create("reply")
        try:
            os.write(fd, BIG.encode())
            peer.reply(call_id, read_reply(None, fd=0, encoding=encoding), [fd])
        finally:
            os.close(fd)

    return act


def test_content_behind_a_descriptor_is_read_and_the_descriptor_closed(serve: Callable[[Act], Fake]) -> None:
    with Kernel.connect(serve(by_descriptor("text")).path) as k:
        for _ in range(3):
            reply = k.mem_read(CUBE)
            assert reply.content == BIG and reply.fd is None


@LOOPS
def test_large_contents_cross_both_ways_under_asyncio(
    serve: Callable[[Act], Fake], loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    sizes: list[int] = []

    def act(peer: Peer, call_id: int, name: str, args: dict[str, Any], fds: list[int]) -> None:
        if name == "mem_alloc":
            sizes.append(os.fstat(fds[0]).st_size)
            peer.reply(call_id, MUTATED)
        else:
            by_descriptor("bytes")(peer, call_id, name, args, fds)

    async def main() -> None:
        async with AsyncKernel.connect(fake.path) as k:
            await asyncio.gather(*(k.mem_alloc("alice", BIG) for _ in range(4)))
            replies = await asyncio.gather(*(k.mem_read(CUBE) for _ in range(4)))
            assert [r.content for r in replies] == [BIG.encode()] * 4

    fake = serve(act)
    run(loop, main())
    assert sizes == [len(BIG.encode())] * 4


# Broken connections --------------------------------------------------------------------------------------------------


def hang_up_once(then: dict[str, Any]) -> Act:
    """Hangs up on the first call, after it came whole; answers the others."""
    broken: list[int] = []

    def act(peer: Peer, call_id: int, name: str, args: dict[str, Any], fds: list[int]) -> None:
        if broken:
            peer.reply(call_id, then)
        else:
            broken.append(call_id)
            peer.hang_up()

    return act


def test_a_read_in_flight_is_repeated_over_a_new_connection(serve: Callable[[Act], Fake]) -> None:
    fake = serve(hang_up_once(read_reply("x")))
    with Kernel.connect(fake.path) as k:
        assert k.mem_read(CUBE).content == "x"
    assert fake.names() == ["mem_read", "mem_read"] and fake.connections == 2


def test_a_mutation_in_flight_is_repeated_only_with_a_request_id(serve: Callable[[Act], Fake]) -> None:
    fake = serve(hang_up_once(MUTATED))
    with Kernel.connect(fake.path) as k:
        with pytest.raises(MemIO) as caught:
            k.mem_write(CUBE, "x")
        assert caught.value.outcome == "unknown" and "request_id" in caught.value.advice
        assert k.mem_write(CUBE, "x").version == 1, "the next call connects again"
    assert fake.names() == ["mem_write", "mem_write"]


def test_a_large_mutation_with_a_request_id_is_repeated_with_its_descriptor(serve: Callable[[Act], Fake]) -> None:
    fake = serve(hang_up_once(MUTATED))
    with Kernel.connect(fake.path) as k:
        assert k.mem_write(CUBE, BIG, request_id="r1").version == 1
    assert [args["request_id"] for name, args in fake.calls if name == "mem_write"] == ["r1", "r1"]


def test_a_kernel_that_was_restarted_while_idle_costs_no_error(serve: Callable[[Act], Fake], tmp_path: Path) -> None:
    fake = serve(answer(MUTATED))
    with Kernel.connect(fake.path) as k:
        fake.close()
        os.unlink(fake.path)
        timer = threading.Timer(0.1, lambda: serve(answer(MUTATED)))
        timer.start()
        assert k.mem_write(CUBE, "x").version == 1, "nothing of it had left, so it is safe to repeat"
        timer.join()


def test_a_kernel_that_stays_away_is_unreachable_within_the_deadline(serve: Callable[[Act], Fake]) -> None:
    fake = serve(answer(MUTATED))
    with Kernel.connect(fake.path) as k:
        fake.close()
        began = time.monotonic()
        with pytest.raises(MemUnreachable) as caught:
            k.mem_write(CUBE, "x", deadline_ms=1)
        assert caught.value.outcome == "none" and time.monotonic() - began < 2


def test_a_closed_kernel_says_so(serve: Callable[[Act], Fake]) -> None:
    k = Kernel.connect(serve(answer(MUTATED)).path)
    k.close()
    with pytest.raises(MemUnreachable, match="closed"):
        k.mem_read(CUBE)


# Deadlines -----------------------------------------------------------------------------------------------------------


def test_a_late_reply_never_meets_another_call(serve: Callable[[Act], Fake], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "GRACE_S", 0.05)

    def act(peer: Peer, call_id: int, name: str, args: dict[str, Any], fds: list[int]) -> None:
        if "version" in args:
            time.sleep(0.3)
        peer.reply(call_id, read_reply("late" if "version" in args else "new"))

    fake = serve(act)
    with Kernel.connect(fake.path) as k:
        with pytest.raises(MemTimeout) as caught:
            k.mem_read(CUBE, version=1, deadline_ms=50)
        assert caught.value.outcome == "none"
        assert k.mem_read(CUBE).content == "new"
    assert fake.connections == 2


def test_a_mutation_whose_time_is_up_has_an_unknown_outcome(
    serve: Callable[[Act], Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "GRACE_S", 0.05)
    with Kernel.connect(serve(silence).path) as k:
        with pytest.raises(MemTimeout) as caught:
            k.mem_free(CUBE, deadline_ms=20)
        assert caught.value.outcome == "unknown"


def test_a_reply_that_trickles_does_not_stretch_the_deadline(
    serve: Callable[[Act], Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "GRACE_S", 0.05)

    def act(peer: Peer, call_id: int, name: str, args: dict[str, Any], fds: list[int]) -> None:
        with contextlib.suppress(OSError):
            for byte in wire.pack_reply(call_id, read_reply("x" * 1000)):
                peer.sock.sendall(bytes([byte]))
                time.sleep(0.02)

    with Kernel.connect(serve(act).path) as k:
        began = time.monotonic()
        with pytest.raises(MemTimeout):
            k.mem_read(CUBE, deadline_ms=100)
        assert time.monotonic() - began < 1


# asyncio -------------------------------------------------------------------------------------------------------------


@LOOPS
def test_replies_out_of_order_meet_their_calls(
    serve: Callable[[Act], Fake], loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    waiting: list[tuple[int, int]] = []

    def act(peer: Peer, call_id: int, name: str, args: dict[str, Any], fds: list[int]) -> None:
        waiting.append((call_id, args["version"]))
        if len(waiting) == 200:
            for other, version in reversed(waiting):
                peer.reply(other, read_reply(str(version)))

    async def main() -> None:
        async with AsyncKernel.connect(fake.path) as k:
            replies = await asyncio.gather(*(k.mem_read(CUBE, version=v) for v in range(1, 201)))
            assert [r.content for r in replies] == [str(v) for v in range(1, 201)]

    fake = serve(act)
    run(loop, main())
    assert fake.connections == 1


@LOOPS
def test_a_cancelled_coroutine_sends_sys_cancel_and_the_others_go_on(
    serve: Callable[[Act], Fake], loop: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "GRACE_S", 0.05)
    held: list[int] = []
    arrived = threading.Event()

    def act(peer: Peer, call_id: int, name: str, args: dict[str, Any], fds: list[int]) -> None:
        if name == "sys_cancel":
            peer.reply(call_id, {"canceled": True})
            peer.reply(args["call"], read_reply("late"))
        elif "version" in args:
            held.append(call_id)
            arrived.set()
        else:
            peer.reply(call_id, read_reply("x"))

    async def main() -> None:
        async with AsyncKernel.connect(fake.path) as k:
            task = asyncio.ensure_future(k.mem_read(CUBE, version=1))
            await asyncio.to_thread(arrived.wait)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(MemTimeout):
                await k.mem_read(CUBE, version=2, deadline_ms=10)
            assert (await k.mem_read(CUBE)).content == "x"

    fake = serve(act)
    run(loop, main())
    assert [args["call"] for name, args in fake.calls if name == "sys_cancel"] == held and len(held) == 2
    assert fake.connections == 1


@LOOPS
def test_asyncio_calls_follow_the_same_rules_when_the_connection_breaks(
    serve: Callable[[Act], Fake], loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    broken: list[int] = []

    def act(peer: Peer, call_id: int, name: str, args: dict[str, Any], fds: list[int]) -> None:
        if broken:
            peer.reply(call_id, read_reply("x") if name == "mem_read" else MUTATED)
        elif name == "mem_write" and "request_id" not in args:
            broken.append(call_id)
            peer.hang_up()

    async def main() -> None:
        async with AsyncKernel.connect(fake.path) as k:
            read, kept, lost = await asyncio.gather(
                k.mem_read(CUBE), k.mem_write(CUBE, BIG, request_id="r"), k.mem_write(CUBE, BIG), return_exceptions=True
            )
            assert not isinstance(read, BaseException) and read.content == "x"
            assert not isinstance(kept, BaseException) and kept.version == 1
            assert isinstance(lost, MemIO) and lost.outcome == "unknown"

    fake = serve(act)
    run(loop, main())
    assert fake.connections == 2


@LOOPS
def test_a_kernel_that_does_not_read_gets_everything_when_it_does(
    serve: Callable[[Act], Fake], loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    def act(peer: Peer, call_id: int, name: str, args: dict[str, Any], fds: list[int]) -> None:
        if call_id == 2:
            time.sleep(0.2)
        peer.reply(call_id, {**MUTATED, "version": len(args["content"])})

    async def main() -> None:
        async with AsyncKernel.connect(fake.path) as k:
            replies = await asyncio.gather(*(k.mem_alloc("a", "x" * (100_000 + n)) for n in range(40)))
            assert [r.version for r in replies] == [100_000 + n for n in range(40)]

    fake = serve(act)
    run(loop, main())


# Streams -------------------------------------------------------------------------------------------------------------


def item(offset: int) -> dict[str, Any]:
    return {"offset": offset, "time": 1, "actor": "uid:1", "syscall": "mem_alloc", "events": [{"event": "CubeAllocated"}]}


def stream(count: int, *, ends: bool) -> Act:
    def act(peer: Peer, call_id: int, name: str, args: dict[str, Any], fds: list[int]) -> None:
        if name == "mem_watch":
            first = args.get("from_offset", 0)
            for offset in range(first, first + count):
                peer.send(wire.pack_item(call_id, item(offset)))
            if ends:
                peer.reply(call_id, {})
        else:
            peer.reply(call_id, read_reply("x"))

    return act


def test_a_watch_gives_items_while_other_calls_go_on(serve: Callable[[Act], Fake]) -> None:
    fake = serve(stream(3, ends=True))
    with Kernel.connect(fake.path) as k:
        offsets: list[int] = []
        for found in k.mem_watch(from_offset=5):
            offsets.append(found.offset)
            assert k.mem_read(CUBE).content == "x" and found.events[0].event == "CubeAllocated"
        assert offsets == [5, 6, 7]
    assert fake.connections == 2


def test_closing_a_watch_wakes_the_thread_that_waits_for_it(serve: Callable[[Act], Fake]) -> None:
    with Kernel.connect(serve(stream(2, ends=False)).path) as k, k.mem_watch() as watch:
        threading.Timer(0.1, watch.close).start()
        assert [found.offset for found in watch] == [0, 1]


def test_a_watch_that_is_left_is_closed_with_its_object(serve: Callable[[Act], Fake]) -> None:
    with Kernel.connect(serve(stream(5, ends=False)).path) as k:
        for found in k.mem_watch():
            if found.offset == 2:
                break


def test_a_watch_says_when_its_connection_broke(serve: Callable[[Act], Fake]) -> None:
    with Kernel.connect(serve(hang_up).path) as k, pytest.raises(MemUnreachable, match="from_offset"):
        next(k.mem_watch())


@LOOPS
def test_an_asyncio_watch_holds_back_a_fast_kernel_and_loses_nothing(
    serve: Callable[[Act], Fake], loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def main() -> None:
        async with AsyncKernel.connect(fake.path) as k:
            offsets: list[int] = []
            async for found in k.mem_watch(from_offset=7):
                if found.offset % 1000 == 0:
                    assert (await k.mem_read(CUBE)).content == "x"
                offsets.append(found.offset)
            assert offsets == list(range(7, 5007))
            async with k.mem_watch() as unused:
                assert (await anext(unused)).offset == 0
            k.mem_watch()

    fake = serve(stream(5000, ends=True))
    run(loop, main())


# Threads and forks ---------------------------------------------------------------------------------------------------


def test_threads_share_a_kernel(serve: Callable[[Act], Fake]) -> None:
    fake = serve(lambda peer, call_id, name, args, fds: peer.reply(call_id, read_reply(str(args["version"]))))
    wrong: list[int] = []
    with Kernel.connect(fake.path) as k:

        def work(start: int) -> None:
            wrong.extend(v for v in range(start, start + 100) if k.mem_read(CUBE, version=v).content != str(v))

        threads = [threading.Thread(target=work, args=(n * 1000 + 1,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == [] and fake.connections == 1
