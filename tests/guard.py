"""What kills a test's brokers when the test is gone: `python guard.py DIRECTORY`, with a pipe for its input.

It waits for the end of the pipe. Only the process that started it holds the other end, so the end comes when that process
closes it or is no more, by Ctrl-C, SIGKILL or whatever else. Then it kills the process of every `broker-*/pid` in the
directory and removes the directory. It is a session of its own, so that no signal meant for the tests reaches it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path


def main(directory: Path) -> None:
    sys.stdin.buffer.read()
    for file in directory.glob("broker-*/pid"):
        pid = int(file.read_text())
        # A broker that ended long ago may have left its number to another process.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if str(file.parent).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
    # A dying broker may still write.
    for _attempt in range(50):
        shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            return
        time.sleep(0.1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
