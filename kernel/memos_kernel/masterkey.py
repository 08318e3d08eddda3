"""The master key: 32 bytes, from `MEMOS_MASTER_KEY` (64 hex digits) or a file of mode 0600.

It wraps everything in the key store and is never logged. The variable is removed from the environment once read. A
missing or wrong key is refused with advice; a new one is made only for a data directory that holds nothing yet. Its file
appears whole or not at all, and is durable with its name before anything is wrapped by it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from . import crypto
from .keystore import sync_directory

VARIABLE = "MEMOS_MASTER_KEY"


class NoKey(Exception):
    """No usable master key; the message says what to do."""


def parse(text: str, where: str) -> bytes:
    try:
        key = bytes.fromhex(text.strip())
    except ValueError as error:
        raise NoKey(f"the master key in {where} is not hexadecimal") from error
    if len(key) != crypto.KEY_BYTES:
        raise NoKey(f"the master key in {where} has {len(key)} bytes; it must have {crypto.KEY_BYTES} (64 hex digits)")
    return key


def read(path: Path, *, new: bool = False) -> bytes | None:
    """The key from the environment or from the file; None when there is neither. Raises `NoKey`.

    With `new`, for a data directory that holds nothing yet, an empty file is none: it is what a crash left of one.
    """
    given = os.environ.pop(VARIABLE, None)
    if given is not None:
        return parse(given, VARIABLE)
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    if new and stat.S_ISREG(found.st_mode) and found.st_size == 0:
        return None
    mode = found.st_mode
    if stat.S_IMODE(mode) & 0o077:
        raise NoKey(f"{path} can be read by others (mode {stat.S_IMODE(mode):o}); run: chmod 600 {path}")
    return parse(path.read_text(encoding="ascii"), str(path))


def create(path: Path) -> bytes:
    """A new key in a new file, durable. Refuses to overwrite one (`FileExistsError`), but for an empty file."""
    if path.exists() and path.stat().st_size:
        raise FileExistsError(f"{path} exists")
    key = os.urandom(crypto.KEY_BYTES)
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, key.hex().encode() + b"\n")
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(partial, path)
    sync_directory(path.parent)
    return key
