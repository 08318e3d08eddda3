"""A driver host whose operations fail as the file $MEMOS_BAD_HOST says: `OP HOW` a line. For test_driver_host.py.

HOW: `memory` (there is none), `nonsense` (a program's mistake), `die`, `hang`, `empty` (a payload that is none), `unsealed`
(a payload that could still change), `two` (payloads instead of one), `nothing` (none).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memos_drivers.host.contract import Context, Op, Steps
from memos_drivers.host.ops import Workshop


def open_host(spec: Mapping[str, Any]) -> Workshop:
    workshop = Workshop(spec)
    workshop.ops = {name: failing(name, op) for name, op in workshop.ops.items()}
    return workshop


def failing(name: str, op: Op) -> Op:
    def run(context: Context, args: dict[str, Any], fds: list[int]) -> Steps:
        words = dict(line.split() for line in Path(os.environ["MEMOS_BAD_HOST"]).read_text("utf-8").splitlines())
        how = words.get(name)
        if how == "memory":
            raise MemoryError
        if how == "nonsense":
            raise ZeroDivisionError("by nothing")
        if how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "hang":
            time.sleep(600)
        result, made = yield from op(context, args, fds)
        if how == "empty":
            return result, [memory(b"no tensors here", seal=True)]
        if how == "unsealed":
            return result, [memory(os.pread(made[0], os.fstat(made[0]).st_size, 0), seal=False)]
        if how == "two":
            return result, [made[0], os.dup(made[0])]
        if how == "nothing":
            return result, []
        return result, made

    return run


def memory(content: bytes, *, seal: bool) -> int:
    import fcntl

    fd = os.memfd_create("bad", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, content)
    if seal:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL)
    return fd
