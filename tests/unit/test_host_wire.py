"""Messages with descriptors between the kernel and a driver host, and turns by owner."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from memos_drivers.host import wire
from memos_drivers.host.ring import Ring
from memos_syscalls.errors import MemTooLarge

# What the tests pass around: a file of their own, so that no other thread's descriptors are counted with it.
PASSED = os.memfd_create("passed")


def still_open() -> int:
    def is_ours(fd: str) -> bool:
        try:
            return os.path.samestat(os.stat(int(fd)), os.fstat(PASSED))
        except OSError:  # closed since it was listed
            return False

    return sum(is_ours(fd) for fd in os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def _no_leak() -> Iterator[None]:  # pyright: ignore[reportUnusedFunction]
    yield
    assert still_open() == 1


def copies(count: int) -> list[int]:
    return [os.dup(PASSED) for _ in range(count)]


def test_messages_come_whole_whatever_the_pieces_are() -> None:
    sent: list[dict[str, Any]] = [{"kind": "job", "id": n, "args": {"ids": list(range(n * 100))}} for n in range(60)]
    data = b"".join(wire.message(body) for body in sent)
    for size in (1, 7, 4096, len(data)):
        inbox = wire.Inbox()
        got = [body for at in range(0, len(data), size) for body in inbox.feed(data[at : at + size], ())]
        assert got == [(body, []) for body in sent]


def test_descriptors_stay_with_their_messages_over_a_socket() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        counts = [0, 2, 0, 1, 4, 0, 0, 3]
        for at, count in enumerate(counts):
            fds = copies(count)
            data = wire.message({"kind": "x", "at": at, "fill": "y" * 3000}, count)
            sent = wire.send(ours, data, fds)
            assert sent == len(data)
            wire.close_all(fds)
        ours.shutdown(socket.SHUT_WR)
        inbox = wire.Inbox()
        got: list[tuple[int, int]] = []
        while True:
            data, passed = wire.receive(theirs)
            if not data:
                break
            for body, fds in inbox.feed(data, passed):
                got.append((body["at"], len(fds)))
                wire.close_all(fds)
        assert got == list(enumerate(counts))


@pytest.mark.parametrize("data", [
    b"\xff\xff\xff\xff", b"\x01\0\0\0\xc1", b"\x00\0\0\0", b"\x01\0\0\0\x01", b"\x01\0\0\0\x80", b"\x03\0\0\0\x81\x01\x02",
    wire.message({"kind": 7}), wire.message({"kind": "x", "fds": True}), wire.message({"kind": "x", "fds": -1}),
    wire.message({"kind": "x"}, 1), wire.message({"kind": "x", "fds": 2**63}), wire.message({"kind": "x", "l": [[]] * 9999}),
    wire.message({"kind": "x"})[:-1] + b"\xff",
])  # fmt: skip
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(wire.Garbage):
        wire.Inbox().feed(data, ())


def test_a_refusal_closes_every_descriptor() -> None:
    good = wire.message({"kind": "x"}, 2)
    for data, fds in ((good + b"\x01\0\0\0\xc1", 2), (good, 3), (good + good, 3), (good[:-1], wire.FDS_MAX + 1)):
        with pytest.raises(wire.Garbage):
            wire.Inbox().feed(data, copies(fds))
    inbox = wire.Inbox()
    assert inbox.feed(good[:-1], copies(2)) == []
    inbox.close()


def test_a_long_list_of_numbers_is_let_through_and_an_endless_one_is_not_sent() -> None:
    ids = list(range(700_000))
    [(body, _)] = wire.Inbox().feed(wire.message({"kind": "x", "ids": ids}), ())
    assert body["ids"] == ids
    with pytest.raises(MemTooLarge):
        wire.message({"kind": "x", "ids": list(range(10**6, 2 * 10**6))})


def test_an_owner_of_many_things_gets_no_more_turns_than_an_owner_of_one() -> None:
    ring: Ring[str] = Ring()
    for thing in ("a1", "a2", "a3", "b1"):
        ring.add(thing[0], thing)
    turns: list[str] = []
    for _ in range(8):
        taken = ring.take()
        assert taken is not None
        turns.append(taken)
        ring.add(taken[0], taken)
    assert turns == ["a1", "b1", "a2", "b1", "a3", "b1", "a1", "b1"]
    assert (len(ring), ring.count("a"), ring.count("c")) == (4, 3, 0)


def test_a_ring_gives_only_what_may_be_and_forgets_what_is_removed() -> None:
    ring: Ring[str] = Ring()
    for thing in ("a1", "b1", "b2"):
        ring.add(thing[0], thing)
    assert ring.take(lambda thing: thing[0] != "a") == "b1"
    assert ring.take(lambda _: False) is None
    ring.add_first("b", "b0")
    assert ring.remove("a", "a1") and not ring.remove("a", "a1") and not ring.remove("b", "b9")
    assert list(ring) == ["b0", "b2"] and ring.clear() == ["b0", "b2"] and len(ring) == 0 and ring.take() is None
