"""The master key: 32 bytes, from `MEMOS_MASTER_KEY` (64 hex digits) or a file of mode 0600.

It wraps everything in the key store and is never logged. The variable is removed from the environment once read. A
missing or wrong key is refused with advice; a new one is made only for a data directory that holds nothing yet.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from . import crypto

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


def read(path: Path) -> bytes | None:
    """The key from the environment or from the file; None when there is neither. Raises `NoKey`."""
    given = os.environ.pop(VARIABLE, None)
    if given is not None:
        return parse(given, VARIABLE)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_IMODE(mode) & 0o077:
        raise NoKey(f"{path} can be read by others (mode {stat.S_IMODE(mode):o}); run: chmod 600 {path}")
    return parse(path.read_text(encoding="ascii"), str(path))


def create(path: Path) -> bytes:
    """A new key in a new file, durable."""
    key = os.urandom(crypto.KEY_BYTES)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, key.hex().encode() + b"\n")
        os.fsync(fd)
    finally:
        os.close(fd)
    return key
