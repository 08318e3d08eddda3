"""A private memosd: started, watched until it answers, stopped. Both clients' `spawn` stand on it.

- The socket lies in the data directory, or in a private temporary one where that path is too long for a socket.
- Without a data directory the memory is temporary: it goes when the kernel stops.
- The kernel gets its own session, so Ctrl-C reaches the program alone, which then stops the kernel in order.
- A kernel that its program forgets is stopped when the object is collected, or at exit; a forked child never stops it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Final

from memos_syscalls import limits
from memos_syscalls.errors import MemBusy, MemInvalid, MemIO, MemUnreachable

Option = str | int | float | bool | Path | None

START_SECONDS: Final = 30.0
"""How long a kernel may take to replay its log and answer."""
STOP_SECONDS: Final = 10.0
"""How long after SIGTERM it is killed."""
_POLL_S: Final = 0.01
_SOCKET_PATH_BYTES_MAX: Final = 107
_TAIL_BYTES: Final = 4 * limits.KIB


class Daemon:
    """One running memosd of ours."""

    def __init__(self, data_dir: str | os.PathLike[str] | None, args: Sequence[str], options: dict[str, Option]) -> None:
        with contextlib.ExitStack() as scratch:
            if data_dir is None:
                data_dir = _scratch_dir(scratch, "memos-data-")
            try:
                Path(data_dir).mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise MemInvalid(f"data_dir cannot be made: {error}") from error
            self.path = os.path.join(os.path.abspath(data_dir), "memos.sock")
            if len(os.fsencode(self.path)) > _SOCKET_PATH_BYTES_MAX:
                self.path = os.path.join(_scratch_dir(scratch, "memos-"), "memos.sock")
            if _answers(self.path):
                raise MemBusy(
                    f"a kernel already runs on {data_dir}", f"Use Kernel.connect({self.path!r}), or stop that kernel."
                )
            command = [sys.executable, "-m", "memos_kernel", "--data-dir", os.fspath(data_dir), "--socket", self.path]
            self._stderr: IO[bytes] = scratch.enter_context(tempfile.TemporaryFile(prefix="memosd-stderr-"))
            self._process = subprocess.Popen(
                [*command, *flags(options), *args],
                stdin=subprocess.DEVNULL,
                stdout=self._stderr,
                stderr=self._stderr,
                start_new_session=True,
            )
            self._stop = weakref.finalize(self, _stop, self._process, os.getpid(), scratch.pop_all())

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> None:
        """SIGTERM, a wait, then SIGKILL; a second call does nothing."""
        self._stop()

    def wait_until(self, answers: Callable[[], object], wait_s: float) -> None:
        """Returns when `answers` no longer raises `MemUnreachable`; otherwise stops the process and raises `MemIO`."""
        until = time.monotonic() + wait_s
        try:
            while True:
                if (why := self.obituary()) is not None:
                    raise MemIO(why, "See its last words above; `memosd --check` tests the settings.")
                try:
                    answers()
                    return
                except MemUnreachable:
                    if time.monotonic() >= until:
                        raise MemIO(f"memosd did not answer within {wait_s:g} s: {self._tail()}") from None
                time.sleep(_POLL_S)
        except BaseException:
            self.stop()
            raise

    def obituary(self) -> str | None:
        """How the process ended and its last words; None while it lives."""
        status = self._process.poll()
        return None if status is None else f"memosd ended with status {status}: {self._tail()}"

    def _tail(self) -> str:
        if self._stderr.closed:
            return "(stopped)"
        size = os.fstat(self._stderr.fileno()).st_size
        text = os.pread(self._stderr.fileno(), _TAIL_BYTES, max(size - _TAIL_BYTES, 0)).decode(errors="replace").strip()
        return text or "(it said nothing)"


def flags(options: dict[str, Option]) -> list[str]:
    """`log="embedded"` → `--log embedded`; True is a bare flag; False and None are left out."""
    words: list[str] = []
    for name, value in options.items():
        if value is None or value is False:
            continue
        words.append("--" + name.replace("_", "-"))
        if value is not True:
            words.append(str(value))
    return words


def _scratch_dir(scratch: contextlib.ExitStack, prefix: str) -> str:
    room = _SOCKET_PATH_BYTES_MAX - len(prefix) - len("/12345678/memos.sock")
    parent = tempfile.gettempdir()
    path = tempfile.mkdtemp(prefix=prefix, dir=parent if len(os.fsencode(parent)) <= room else "/tmp")
    scratch.callback(shutil.rmtree, path, ignore_errors=True)
    return path


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0


def _stop(process: subprocess.Popen[bytes], owner: int, scratch: contextlib.ExitStack) -> None:
    if os.getpid() != owner:
        return
    with scratch:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
