"""Hostile clients: whatever they send, or fail to read, the kernel lives and others are served."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.outside import Daemon, Wire, packed

from memos_kernel.fds import sealed_memfd
from memos_syscalls import limits, wire
from memos_syscalls.errors import MemProtocol, MemTooLarge
from memos_syscalls.table import BY_NAME, TABLE, Flag

PROTOCOL = MemProtocol.number


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One kernel for all attacks of this file: it must survive them one after the other."""
    with Daemon(tmp_path_factory.mktemp("attacks") / "data") as kernel:
        with Wire(kernel.socket) as wire:
            wire.call("mem_alloc", namespace="alice", content="kept", name="kept")
        yield kernel
        assert "Traceback" not in kernel.said(), kernel.said()
        assert kernel.stop() == 0


@pytest.fixture(autouse=True)
def others_are_served(daemon: Daemon) -> Iterator[Wire]:
    """A connection that is open all through the attack, and works after it."""
    with Wire(daemon.socket) as bystander:
        yield bystander
        assert daemon.process.poll() is None, daemon.said()
        assert bystander.call("mem_list", name="kept")["cubes"][0]["namespace"] == "alice"
        made = bystander.call("mem_alloc", namespace="bystander", content="and written")
        assert bystander.call("mem_read", cube_id=made["cube_id"])["content"] == "and written"


def frame(body: bytes) -> bytes:
    return struct.pack("<I", len(body)) + body


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


MALFORMED = {
    "nothing": frame(b""),
    "not MessagePack": frame(b"\xc1"),
    "trailing bytes": frame(packed([1, 2, {}]) + b"\x00"),
    "cut short": frame(packed([1, 2, {"a": "b"}])[:-1]),
    "a map": frame(packed({})),
    "two": frame(packed([1, 2])),
    "four": frame(packed([1, 2, {}, 4])),
    "negative id": frame(packed([-1, 2, {}])),
    "text id": frame(packed(["1", 2, {}])),
    "true id": frame(packed([True, 2, {}])),
    "large number": frame(packed([1, 1 << 16, {}])),
    "float number": frame(packed([1, 2.0, {}])),
    "arguments are a list": frame(packed([1, 2, []])),
    "integer keys": frame(packed([1, 2, {1: 2}])),
    "depth 30": frame(packed([1, 16, {"metadata": nested(30)}])),
    "depth 100000": frame(b"\x93\x01\x10\x81\xa1a" + b"\x91" * 100_000 + b"\x01"),
    "a lying array": frame(b"\xdd\xff\xff\xff\xff"),
    "a lying text": frame(b"\x93\x01\x02\xdb\xff\xff\xff\xff"),
    "an extension": frame(b"\x93\x01\x02\x81\xa1a\xc7\x04\x05abcd"),
    "not UTF-8": frame(b"\x93\x01\x02\x81\xa1a\xa2\xff\xfe"),
    "HTTP": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" + b"x" * 64,
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
@pytest.mark.parametrize("greeted", [False, True])
def test_a_malformed_frame_is_answered_under_id_0_and_the_connection_closes(daemon: Daemon, data: bytes, greeted: bool) -> None:
    with Wire(daemon.socket, hello=greeted) as wire:
        wire.send(data)
        answers = wire.ends()
    assert len(answers) == 1
    call_id, status, error = answers[0]
    assert call_id == 0 and status in (PROTOCOL, MemTooLarge.number)
    assert error["detail"] and error["advice"]


@pytest.mark.parametrize("length", [limits.FRAME_BYTES_MAX + 1, 1 << 31, 0xFFFFFFFF])
def test_a_lying_length_is_refused_before_a_byte_of_the_body_is_kept(daemon: Daemon, length: int) -> None:
    with Wire(daemon.socket) as wire:
        wire.send(struct.pack("<I", length) + b"x" * 100)
        assert [(a[0], a[1]) for a in wire.ends()] == [(0, MemTooLarge.number)]


def test_the_largest_frame_is_served(daemon: Daemon) -> None:
    with Wire(daemon.socket) as wire:
        body = packed([1, BY_NAME["sys_info"].number, {"x": b"x" * (limits.FRAME_BYTES_MAX - 64)}])
        wire.send(frame(body))
        call_id, status, error = wire.receive()
        assert (call_id, error["errno"]) == (1, "EINVAL") and status
        assert wire.call("sys_info")["abi"] == limits.ABI


def test_the_first_call_must_be_hello_in_a_spoken_abi(daemon: Daemon) -> None:
    for args in ({"abi": 2}, {"abi": 0}, {}, {"abi": "1"}, {"abi": True}, {"abi": 1, "token": "stolen"}):
        with Wire(daemon.socket, hello=False) as wire:
            wire.send(wire.request("sys_hello", **args))
            assert wire.ends()[0][1] != 0
    with Wire(daemon.socket, hello=False) as wire:
        wire.send(wire.request("sys_info"))
        assert wire.ends()[0][2]["errno"] == "EPROTO"


def test_unknown_calls_and_arguments_are_refused_and_the_connection_goes_on(daemon: Daemon) -> None:
    with Wire(daemon.socket) as wire:
        for number in (0, 15, 999, 65535):
            wire.send(wire_request(1000 + number, number, {}))
            assert wire.receive()[2]["errno"] == "ENOSYS"
        assert wire.refusal("sys_hello", abi=1) == "EINVAL"
        assert wire.refusal("sys_info", surprise=1) == "EINVAL"
        assert wire.call("sys_info")["abi"] == limits.ABI


def wire_request(call_id: int, number: int, args: dict[str, Any]) -> bytes:
    return wire.pack_request(call_id, number, args)


def junk(chance: random.Random, depth: int = 0) -> Any:
    """A value that no schema expects."""
    kinds = 12 if depth < 3 else 9
    match chance.randrange(kinds):
        case 0:
            return None
        case 1:
            return chance.choice([True, False])
        case 2:
            return chance.choice([0, -1, 1, 2**31, 2**32, 2**63, 2**64 - 1, -(2**63), chance.randrange(1 << 20)])
        case 3:
            return chance.choice([0.0, -0.0, float("nan"), float("inf"), 1e300, 1.5])
        case 4:
            return chance.choice(["", "x", "alice", "a/b", "a//b", "/", "..", "\0", "é" * 300, "x" * 5000, "1" * 36])
        case 5:
            return bytes(chance.randrange(256) for _ in range(chance.randrange(40)))
        case 6:
            return chance.choice(
                ["018bcfe5-6800-733b-8000-000996285666", "018BCFE5-6800-733B-8000-000996285666", "018bcfe5" * 4]
            )
        case 7:
            return chance.choice(
                ["2026-01-01T00:00:00Z", "2026-13-01", "9999-12-31T23:59:59+00:00", "0001-01-01T00:00:00+14:00"]
            )
        case 8:
            return chance.choice(["plaintext", "lexical", "dense", "rebuild", "merge", "timeline", "expired", "header"])
        case 9:
            return [junk(chance, depth + 1) for _ in range(chance.randrange(5))]
        case 10:
            return {str(junk(chance, 9))[:20]: junk(chance, depth + 1) for _ in range(chance.randrange(4))}
        case _:
            return {chance.choice(["namespace", "content", "cube_id", "fd", b"raw"]): junk(chance, depth + 1)}


def test_random_arguments_for_every_call_are_answered(daemon: Daemon) -> None:
    seed = int(os.environ.get("MEMOS_FUZZ_SEED", "0")) or random.randrange(2**32)
    print(f"MEMOS_FUZZ_SEED={seed}")
    chance = random.Random(seed)
    calls = [call for call in TABLE if call.name not in ("mem_watch", "sys_snapshot", "mem_shred")]
    with Wire(daemon.socket) as wire:
        known = wire.call("mem_alloc", namespace="fuzz", content="known")["cube_id"]
        for n in range(3000):
            call = chance.choice(calls)
            fields = list(call.request.model_fields)
            args: dict[Any, Any] = {name: junk(chance) for name in fields if chance.random() < 0.4}
            if "cube_id" in fields and chance.random() < 0.7:
                args["cube_id"] = known
            if "namespace" in fields and chance.random() < 0.5:
                args["namespace"] = chance.choice(["fuzz", "fuzz/a", "other"])
            if "content" in fields and chance.random() < 0.5:
                args["content"] = "text"
            args.pop("deadline_ms", None)
            if Flag.JOB in call.flags:  # such a call may load a model first, and its own deadline is ten minutes
                args["deadline_ms"] = 2000
            wire.send(wire_request(10 + n, call.number, args))
            call_id, status, body = wire.receive()
            assert call_id == 10 + n
            assert not status or body["errno"] != "EIO", (call.name, args, body)
        assert wire.call("sys_verify", full=True)["ok"]


def test_random_bytes_never_harm(daemon: Daemon) -> None:
    chance = random.Random(7)
    for _ in range(200):
        with Wire(daemon.socket, hello=chance.random() < 0.5) as wire:
            body = bytearray(wire_request(5, chance.choice(TABLE).number, {"namespace": "a", "content": "x", "k": 1}))
            for _ in range(chance.randrange(1, 6)):
                body[chance.randrange(4, len(body))] = chance.randrange(256)
            try:
                wire.send(bytes(body))
                wire.sock.settimeout(0.01)
                wire.receive()
            except OSError:
                continue


def test_half_a_frame_and_silence_holds_nobody_up(daemon: Daemon, others_are_served: Wire) -> None:
    halves = [Wire(daemon.socket) for _ in range(20)]
    for half in halves:
        half.send(half.request("sys_info")[:-1])
    strangers = [Wire(daemon.socket, hello=False) for _ in range(20)]
    assert others_are_served.call("sys_info")["abi"] == 1
    for connection in [*halves, *strangers]:
        connection.close()


def test_a_frame_sent_byte_by_byte_is_served(daemon: Daemon) -> None:
    with Wire(daemon.socket) as wire:
        for byte in wire.request("mem_list", name="kept"):
            wire.send(bytes([byte]))
        assert wire.answer(wire.last_id)["cubes"]


def test_one_who_drips_the_end_of_a_large_frame_costs_little(daemon: Daemon, others_are_served: Wire) -> None:
    with Wire(daemon.socket) as wire:
        body = packed([1, BY_NAME["sys_info"].number, {"x": b"x" * (limits.FRAME_BYTES_MAX - 64)}])
        data = frame(body)
        wire.send(data[:-3000])
        before = sum(os.times()[:2]), cpu_seconds(daemon)
        for byte in data[-3000:]:
            wire.send(bytes([byte]))
        assert wire.receive()[2]["errno"] == "EINVAL"
        # 3,000 copies of 4 MiB would be 12 GiB: well over a second.
        assert cpu_seconds(daemon) - before[1] < 1


def cpu_seconds(daemon: Daemon) -> float:
    fields = Path(f"/proc/{daemon.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_client_that_never_reads_does_not_fill_the_kernels_memory(daemon: Daemon, others_are_served: Wire) -> None:
    big = others_are_served.call("mem_alloc", namespace="big", content="x" * 900_000)["cube_id"]
    middle = others_are_served.call("mem_alloc", namespace="big", content="x" * 300_000)["cube_id"]
    before = daemon.resident_mb()
    for cube in (big, middle):
        with Wire(daemon.socket, seconds=1) as wire:
            try:
                for _ in range(1024):
                    wire.send(wire.request("mem_read", cube_id=cube))
            except TimeoutError:
                pass  # The kernel stopped reading, as it should.
            for _ in range(20):
                assert others_are_served.call("sys_info")["abi"] == 1
            assert daemon.resident_mb() - before < 200


def test_a_thousand_connections_are_served_and_let_go(daemon: Daemon, others_are_served: Wire) -> None:
    many = [Wire(daemon.socket) for _ in range(1000)]
    for one in many:
        one.send(one.request("mem_list", name="kept"))
    for one in many:
        assert one.answer(one.last_id)["cubes"]
        one.close()
    assert others_are_served.call("sys_stats")["connections"] < 1000


def test_a_flood_on_one_connection_is_answered_in_full(daemon: Daemon, others_are_served: Wire) -> None:
    with Wire(daemon.socket) as wire:
        count = 5000
        data = b"".join(wire.request("sys_info") for _ in range(count))
        wire.send(data)
        assert others_are_served.call("sys_info")["abi"] == 1
        assert sorted(wire.receive()[0] for _ in range(count)) == list(range(2, count + 2))


def test_a_thousand_calls_in_flight_and_a_close_leave_nothing_behind(daemon: Daemon, others_are_served: Wire) -> None:
    for name, args in (
        ("mem_alloc", {"namespace": "gone", "content": "x" * 2000}), ("mem_list", {}), ("mem_search", {"query": "kept"}),
        ("mem_watch", {"from_offset": 0}),
    ):  # fmt: skip
        with Wire(daemon.socket) as wire:
            wire.send(b"".join(wire.request(name, **args) for _ in range(limits.INFLIGHT_PER_CONNECTION_MAX)))
    assert others_are_served.call("sys_verify", full=False)["ok"]
    left = others_are_served.call("mem_list", namespace="gone", limit=1000)["cubes"]
    assert len({cube["cube_id"] for cube in left}) == len(left) <= limits.INFLIGHT_PER_CONNECTION_MAX


def test_a_call_id_that_is_in_use_closes_the_connection_and_one_that_is_free_again_does_not(daemon: Daemon) -> None:
    with Wire(daemon.socket) as wire:
        for _ in range(50):
            wire.send(wire_request(9, BY_NAME["mem_list"].number, {"name": "kept"}))
            assert wire.receive()[0] == 9
        wire.send(wire_request(9, BY_NAME["mem_alloc"].number, {"namespace": "same", "content": "x"}) * 50)
        answers = wire.ends()
        assert [answer[:2] for answer in answers if answer[0] != 9] == [(0, PROTOCOL)]


# -- descriptors -----------------------------------------------------------------------------------------------------


def open_descriptors(daemon: Daemon) -> int:
    return len(os.listdir(f"/proc/{daemon.process.pid}/fd"))


def test_a_descriptor_that_is_not_a_sealed_memfd_is_refused(daemon: Daemon) -> None:
    pipe = os.pipe()
    unsealed = os.memfd_create("unsealed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(unsealed, b"content")
    with Wire(daemon.socket) as wire, tempfile.TemporaryFile() as file, socket.socket() as sock:
        file.write(b"content")
        file.flush()
        for fd in (
            file.fileno(),
            unsealed,
            sock.fileno(),
            pipe[0],
            os.open("/dev/zero", os.O_RDONLY),
            os.open("/", os.O_RDONLY),
        ):
            wire.send(wire.request("mem_alloc", namespace="fds", fd=0), [fd])
            _id, _status, error = wire.receive()
            assert error["errno"] == "EINVAL", error
    for fd in (*pipe, unsealed):
        os.close(fd)


def test_descriptors_that_nobody_named_or_that_are_missing_do_no_harm(daemon: Daemon) -> None:
    good = sealed_memfd(b"good content")
    with Wire(daemon.socket) as wire:
        before = open_descriptors(daemon)
        for _ in range(50):
            wire.send(wire.request("sys_info"), [good, good, good, good])
            wire.receive()
        wire.send(wire.request("mem_alloc", namespace="fds", fd=0))
        assert wire.receive()[2]["errno"] == "EINVAL"
        for fd in (3, 4, -1, 2**40, "0", None, 1.5):
            wire.send(wire.request("mem_alloc", namespace="fds", fd=fd), [good])
            assert wire.receive()[2]["errno"] == "EINVAL"
        wire.send(wire.request("mem_alloc", namespace="fds", fd=0), [good])
        cube = wire.answer(wire.last_id)["cube_id"]
        assert wire.call("mem_read", cube_id=cube)["content"] == "good content"
        assert open_descriptors(daemon) <= before + 1
    os.close(good)


def test_too_many_descriptors_close_the_connection_and_leak_none(daemon: Daemon, others_are_served: Wire) -> None:
    others_are_served.call("sys_info")
    before = open_descriptors(daemon)
    good = sealed_memfd(b"good content")
    for count in (60, 250):
        with Wire(daemon.socket) as wire:
            # The kernel may hang up while we still send.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                wire.send(wire.request("sys_info")[:5], [good] * count)
            assert [answer[1] for answer in wire.ends()] == [PROTOCOL]
    with Wire(daemon.socket) as wire:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            wire.send(struct.pack("<I", 100), [good] * 4)
            for _ in range(10):
                wire.send(b"\x00", [good] * 4)
        wire.ends()
    os.close(good)
    others_are_served.call("sys_info")
    assert open_descriptors(daemon) <= before


def test_large_content_travels_both_ways_by_descriptor(daemon: Daemon) -> None:
    content = random.Random(1).randbytes(5 * limits.MIB)
    fd = sealed_memfd(content)
    with Wire(daemon.socket) as wire:
        wire.send(wire.request("mem_alloc", namespace="fds", fd=0, encoding="bytes"), [fd])
        cube = wire.answer(wire.last_id)["cube_id"]
        wire.send(wire.request("mem_read", cube_id=cube))
        _data, ancillary, _flags, _address = wire.sock.recvmsg(1 << 16, 64)
        (got,) = struct.unpack("i", ancillary[0][2])
        assert os.pread(got, len(content) + 1, 0) == content
        with pytest.raises(OSError):
            os.pwrite(got, b"x", 0)
        os.close(got)
    os.close(fd)
