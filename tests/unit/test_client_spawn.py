"""`Kernel.spawn` and its asyncio twin, with a stand-in for memosd that answers hello and notes its end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
import time
from pathlib import Path

import pytest

from memos_client import AsyncKernel, Kernel, MemBusy, MemIO, MemUnreachable
from memos_client._spawn import flags

STAND_IN = """
    import pathlib, signal, socket, sys, time
    from memos_syscalls import wire
    word = lambda name: sys.argv[sys.argv.index(name) + 1]
    folder = pathlib.Path(word("--data-dir"))
    (folder / "argv").write_text(" ".join(sys.argv[1:]))
    if "--die" in sys.argv:
        sys.exit("memosd: the log is damaged at offset 7")
    def stop(*_):
        (folder / "stopped").touch()
        sys.exit(0)
    signal.signal(signal.SIGTERM, stop)
    time.sleep(0.1)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(word("--socket"))
    listener.listen()
    kept = []
    while True:
        sock, _ = listener.accept()
        kept.append(sock)
        data = sock.recv(65536)
        if data:
            call_id, _, _ = wire.parse_request(data[4:])
            sock.sendall(wire.pack_reply(call_id, {"abi": 1, "principal": "uid:1", "server": "stand-in", "log_id": ""}))
"""


@pytest.fixture(autouse=True)
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, python = tmp_path / "stand_in.py", tmp_path / "python"
    script.write_text(textwrap.dedent(STAND_IN))
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setattr(sys, "executable", str(python))


def test_a_spawned_kernel_gets_its_options_and_is_stopped_in_order(tmp_path: Path) -> None:
    data = tmp_path / "mem"
    with Kernel.spawn(data, args=["--extra"], log="embedded", check=False, model=None, no_sync=True) as k:
        assert k.hello.server == "stand-in" and k.path == str(data / "memos.sock")
        words = f"-m memos_kernel --data-dir {data} --socket {k.path} --log embedded --no-sync --extra"
        assert (data / "argv").read_text() == words
        with pytest.raises(MemBusy, match="already runs"):
            Kernel.spawn(data)
    assert (data / "stopped").exists()


def test_a_path_too_long_for_a_socket_gets_a_short_one_and_leaves_nothing(tmp_path: Path) -> None:
    data = tmp_path / ("long" * 30)
    with Kernel.spawn(data) as k:
        assert not k.path.startswith(str(data)) and os.path.exists(k.path)
    assert not os.path.exists(os.path.dirname(k.path)) and (data / "stopped").exists()


def test_a_kernel_without_a_data_directory_leaves_nothing() -> None:
    with Kernel.spawn() as k:
        folder = os.path.dirname(k.path)
        assert os.path.exists(folder)
    assert not os.path.exists(folder)


def test_a_kernel_that_ends_early_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(MemIO, match="the log is damaged at offset 7"):
        Kernel.spawn(tmp_path / "mem", args=["--die"])


def test_a_kernel_that_dies_later_is_unreachable_with_its_end(tmp_path: Path) -> None:
    with Kernel.spawn(tmp_path / "mem") as k:
        assert k.daemon_pid is not None
        os.kill(k.daemon_pid, signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(MemUnreachable, match="status -9"):
            k.sys_info()
        assert time.monotonic() - began < 1, "nobody starts it again, so nothing is repeated"


def test_asyncio_spawns_and_stops_too(tmp_path: Path) -> None:
    async def main() -> None:
        async with AsyncKernel.spawn(tmp_path / "mem") as k:
            assert k.hello is not None and k.hello.server == "stand-in"
        with pytest.raises(MemIO, match="damaged"):
            await AsyncKernel.spawn(tmp_path / "mem", args=["--die"])

    asyncio.run(main())
    assert (tmp_path / "mem" / "stopped").exists()


def test_options_become_flags() -> None:
    assert flags({"log": "embedded", "a_b": 1, "on": True, "off": False, "no": None}) == [
        "--log",
        "embedded",
        "--a-b",
        "1",
        "--on",
    ]
