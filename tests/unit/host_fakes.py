"""What the driver host's tests run in the child: operations that wait, stream, hang, die and pass descriptors. No torch."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from memos_drivers.host import wire
from memos_drivers.host.contract import Context, Control, Op, Steps
from memos_syscalls.errors import MemModel, MemNoModel

ASKED: list[str] = []
"""Every step of `counted`, by its name, in the order of the steps."""
CLOSED: list[str] = []
GO = threading.Event()


def echo(_context: Context, args: dict[str, Any], _fds: list[int]) -> Steps:
    yield from ()
    return {"echo": args}, []


def counted(context: Context, args: dict[str, Any], _fds: list[int]) -> Steps:
    """Takes so many steps; with `wait`, the first one waits for the control `go`."""
    if args.get("wait"):
        GO.wait()
    try:
        for at in range(args["steps"]):
            ASKED.append(args["name"])
            context.progress(at / args["steps"], f"step {at}")
            yield
    finally:
        CLOSED.append(args["name"])
    return {"asked": list(ASKED)}, []


def endless(context: Context, args: dict[str, Any], _fds: list[int]) -> Steps:
    try:
        while True:
            time.sleep(0.001)
            if args.get("stream"):
                context.item({})
            yield
    finally:
        CLOSED.append(context.who)


def streamed(context: Context, args: dict[str, Any], _fds: list[int]) -> Steps:
    for at in range(args["items"]):
        context.item({"at": at})
        if at == args.get("die_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        yield
    return {}, []


def hang(_context: Context, args: dict[str, Any], _fds: list[int]) -> Steps:
    once(args)
    if "once" not in args or not second(args):
        time.sleep(600)
    yield
    return {}, []


def once(args: dict[str, Any]) -> None:
    """Notes, outside this process, that an operation began."""
    if "once" in args:
        with Path(args["once"]).open("a", encoding="utf-8") as file:
            file.write("x")


def second(args: dict[str, Any]) -> bool:
    return len(Path(args["once"]).read_text(encoding="utf-8")) > 1


def die(_context: Context, args: dict[str, Any], _fds: list[int]) -> Steps:
    """Kills the child; with `once`, only the first time."""
    once(args)
    if "once" not in args or not second(args):
        if "status" in args:
            os._exit(args["status"])
        os.kill(os.getpid(), signal.SIGKILL)
    yield
    return {"second": True}, []


def swap(_context: Context, args: dict[str, Any], fds: list[int]) -> Steps:
    """Each descriptor's content, in capitals, in another descriptor."""
    answers: list[int] = []
    for fd in fds:
        size = os.fstat(fd).st_size
        answer = os.memfd_create("answer", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.write(answer, os.pread(fd, size, 0).upper())
        answers.append(answer)
        yield
    if args.get("wait"):
        GO.wait()
    return {"open": len(os.listdir("/proc/self/fd"))}, answers


def fail(_context: Context, args: dict[str, Any], _fds: list[int]) -> Steps:
    yield
    match args["how"]:
        case "memory":
            raise MemoryError
        case "torch memory":
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        case "typed":
            raise MemModel("another tokenizer", "Use the first one.")
        case "value":
            raise ValueError("seven is not prime enough")
        case "long":
            raise MemModel("x" * (5 << 20))
        case "surrogate":
            raise KeyError("\udc80")
        case "surrogate typed":
            raise MemModel("\udc80")
        case "result":
            return {"object": object()}, []
        case "nothing":
            return None  # type: ignore[return-value]
        case _:
            return {}, [os.dup(0) for _ in range(wire.FDS_MAX + 1)]


def babble(_context: Context, args: dict[str, Any], _fds: list[int]) -> Steps:
    """Breaks the protocol on the child's own socket."""
    fd = int(sys.argv[1])
    with socket.socket(fileno=os.dup(fd)) as peer:
        match args["how"]:
            case "length":
                peer.sendall(b"\xff\xff\xff\x7f")
            case "bytes":
                peer.sendall(b"\x04\0\0\0\xc1\xc1\xc1\xc1")
            case "list":
                peer.sendall(b"\x01\0\0\0\x90")
            case "nest":
                peer.sendall((1 << 20).to_bytes(4, "little") + b"\x91" * (1 << 20))
            case "flood":
                many = 1 << 20
                peer.sendall((many + 5).to_bytes(4, "little") + b"\xdd" + many.to_bytes(4, "big") + b"\x90" * many)
            case "id":
                peer.sendall(wire.message({"kind": "done", "id": 10**6, "result": {}}))
            case "kind":
                peer.sendall(wire.message({"kind": "gossip", "id": args["id"]}))
            case "result":
                peer.sendall(wire.message({"kind": "done", "id": args["id"], "result": 7}))
            case "few":
                wire.send(peer, wire.message({"kind": "done", "id": args["id"], "result": {}}, 2), [0])
            case "many":
                wire.send(peer, wire.message({"kind": "beat"}), [0, 0])
            case "item":
                wire.send(peer, wire.message({"kind": "item", "id": args["id"], "item": {}}, 1), [0])
            case "heap":
                wire.send(peer, wire.message({"kind": "beat"}), [0] * 20)
            case _:
                wire.send(peer, wire.message({"kind": "beat"}, 4)[:-1], [0] * 4)
                os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)
    yield
    return {}, []


def go(args: dict[str, Any]) -> dict[str, Any]:
    GO.set()
    return args


def closed(_args: dict[str, Any]) -> dict[str, Any]:
    return {"closed": list(CLOSED)}


def fds_open(_args: dict[str, Any]) -> dict[str, Any]:
    return {"open": len(os.listdir("/proc/self/fd"))}


def slow(_args: dict[str, Any]) -> dict[str, Any]:
    time.sleep(0.2)
    return {}


def stuck(_args: dict[str, Any]) -> dict[str, Any]:
    time.sleep(600)
    return {}


def refuse(_args: dict[str, Any]) -> dict[str, Any]:
    raise MemModel("not this one")


def self_view(_context: Context, _args: dict[str, Any], _fds: list[int]) -> Steps:
    """How the child protects itself."""
    libc = ctypes.CDLL(None)
    signal_number = ctypes.c_int(0)
    libc.prctl(2, ctypes.byref(signal_number))
    yield
    view = {
        "dumpable": libc.prctl(3, 0, 0, 0, 0), "parent_death": signal_number.value, "nice": os.nice(0),
        "policy": os.sched_getscheduler(0), "threads": os.environ.get("OMP_NUM_THREADS"),
        "oom": Path("/proc/self/oom_score_adj").read_text(encoding="ascii").strip(),
    }  # fmt: skip
    return view, []


class Fakes:
    ops: dict[str, Op] = {  # noqa: RUF012
        op.__name__: op for op in (echo, counted, endless, streamed, hang, die, swap, fail, babble, self_view)
    }
    controls: dict[str, Control] = {  # noqa: RUF012
        control.__name__: control for control in (go, closed, fds_open, slow, stuck, refuse)
    }

    def __init__(self, name: str) -> None:
        self.name = name

    def describe(self) -> dict[str, Any]:
        return {"name": self.name}


def open_host(spec: dict[str, Any]) -> Fakes:
    if "needs" in spec and not Path(spec["needs"]).exists():
        raise MemNoModel("no model is installed", "Install one.")
    if "die_at_start" in spec:
        with Path(spec["die_at_start"]).open("a", encoding="utf-8") as file:
            file.write("x")
        if len(Path(spec["die_at_start"]).read_text(encoding="utf-8")) <= spec["deaths"]:
            os._exit(7)
    if spec.get("slow_start"):
        time.sleep(600)
    print("what a library prints must not reach the kernel's output")
    return Fakes(str(spec.get("name", "fake")))
