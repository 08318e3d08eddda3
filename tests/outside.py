"""memosd as a process of its own, and a bare connection to it: for tests that kill, starve or lie.

`Daemon` starts memosd in a process group of its own; what it says goes to a file beside the data. `Machines` are several
that share a log on Kafka and nothing else. `Wire` speaks frames without the client library's care: no repeats, no checks,
any bytes.
"""

from __future__ import annotations

import array
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgpack

from memos_kernel import masterkey
from memos_syscalls import limits, wire
from memos_syscalls.errors import MemError, from_wire
from memos_syscalls.table import BY_NAME

START_SECONDS: Final = 30.0
HELLO: Final = BY_NAME["sys_hello"].number


_packer = msgpack.Packer(use_bin_type=True)


def packed(value: Any) -> bytes:
    """MessagePack of anything, sensible or not."""
    data: bytes = _packer.pack(value)
    return data


class Daemon:
    """One memosd on one data directory. `with` ends it with SIGKILL if it still runs."""

    def __init__(self, data: Path, *args: str, environment: dict[str, str] | None = None) -> None:
        self.data = data
        self.socket = data.parent / f"{data.name}.sock"
        self.words = data.parent / f"{data.name}.stderr"
        data.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "memos_kernel", "--data-dir", str(data), "--socket", str(self.socket)]
        with open(self.words, "ab") as stderr:
            self.process = subprocess.Popen(
                [*command, "--embedder", "none", *args], stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr,
                env={**os.environ, **(environment or {})}, start_new_session=True,
            )  # fmt: skip

    def ready(self) -> Self:
        """Return when the socket answers."""
        until = time.monotonic() + START_SECONDS
        while self.process.poll() is None and time.monotonic() < until:
            try:
                with Wire(self.socket):
                    return self
            except OSError:
                time.sleep(0.01)
        raise AssertionError(f"memosd is not ready (status {self.process.poll()}): {self.said()}")

    def said(self) -> str:
        return self.words.read_text(errors="replace")

    def kill(self) -> None:
        """SIGKILL to the whole group, as a power cut would end it."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        self.process.terminate()
        return self.process.wait(START_SECONDS)

    def ended(self) -> int:
        """Wait for it to end by itself."""
        return self.process.wait(START_SECONDS)

    def pause(self) -> None:
        """SIGSTOP: it keeps everything and does nothing, as on a machine that sleeps."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.killpg(self.process.pid, signal.SIGCONT)

    def highest_mb(self) -> float:
        """The most memory that the process had at once, in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024

    def resident_mb(self) -> float:
        """Memory of the process, in MiB."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / limits.MIB

    def __enter__(self) -> Self:
        return self.ready()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()


class Machines:
    """Kernels on one log: each has a directory of its own, and all have the same master key. `with` ends those that run."""

    def __init__(self, root: Path, address: str, topic: str) -> None:
        self.root = root
        self.url = f"kafka://{address}/{topic}"
        root.mkdir(parents=True, exist_ok=True)
        self.key = root / "master.key"
        masterkey.create(self.key)
        self._started: list[Daemon] = []

    def start(self, name: str, *args: str, url: str | None = None) -> Daemon:
        """Begin to start one; it may be refused."""
        where = ("--log", url or self.url, "--master-key-file", str(self.key))
        daemon = Daemon(self.root / name, *where, *args)
        self._started.append(daemon)
        return daemon

    def serve(self, name: str, *args: str) -> Daemon:
        """Start one; return when it answers."""
        return self.start(name, *args).ready()

    def wipe(self, name: str) -> None:
        """The machine is lost, and another gets its name."""
        shutil.rmtree(self.root / name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for daemon in self._started:
            daemon.kill()


class Wire:
    """A connection. `call` waits for its own answer; `send` and `frames` do as they are told."""

    def __init__(self, path: Path, *, hello: bool = True, seconds: float = 20) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(seconds)
        self._splitter = wire.Splitter()
        self._ready: list[tuple[int, int, dict[str, Any]]] = []
        self.last_id = 0
        try:
            self.sock.connect(str(path))
            if hello:
                self.call("sys_hello", abi=limits.ABI)
        except BaseException:
            self.sock.close()
            raise

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        if fds:
            sent = self.sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
            data = data[sent:]
        self.sock.sendall(data)

    def request(self, name: str, /, **args: Any) -> bytes:
        """The frame of the next call; its id is `last_id`."""
        self.last_id += 1
        return wire.pack_request(self.last_id, BY_NAME[name].number, {k: v for k, v in args.items() if v is not None})

    def receive(self) -> tuple[int, int, dict[str, Any]]:
        """The next answer, of whatever call; raises `ConnectionResetError` when the kernel closed."""
        while not self._ready:
            data = self.sock.recv(1 << 18)
            if not data:
                raise ConnectionResetError("the kernel closed the connection")
            self._ready += [wire.parse_reply(body) for body in self._splitter.feed(data)]
        return self._ready.pop(0)

    def answer(self, call_id: int) -> dict[str, Any]:
        """The answer of one call; others are dropped."""
        while True:
            found, status, body = self.receive()
            if found == call_id and status != wire.STREAM_ITEM:
                if status:
                    raise from_wire(status, body)
                return body

    def call(self, name: str, /, **args: Any) -> dict[str, Any]:
        self.send(self.request(name, **args))
        return self.answer(self.last_id)

    def refusal(self, name: str, /, **args: Any) -> str:
        try:
            result = self.call(name, **args)
        except MemError as error:
            return error.errno
        raise AssertionError(f"{name} was not refused: {str(result)[:200]}")

    def ends(self) -> list[tuple[int, int, dict[str, Any]]]:
        """Everything that comes until the kernel closes the connection."""
        found: list[tuple[int, int, dict[str, Any]]] = []
        try:
            while True:
                found.append(self.receive())
        except (ConnectionResetError, BrokenPipeError):
            return found

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
