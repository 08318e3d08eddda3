"""Descriptors that cross the socket: memfds, sealed so that neither side can pull the memory away under the other."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterable
from typing import Final

from memos_syscalls import limits
from memos_syscalls.errors import MemInvalid, MemIO, MemTooLarge

_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def sealed_memfd(content: bytes) -> int:
    """A descriptor of sealed memory with this content; the caller closes it."""
    return sealed_pieces((memoryview(content),))


def sealed_pieces(pieces: Iterable[memoryview]) -> int:
    """The same, of a content that comes in pieces. They are written, not mapped: a page that is written costs no fault, and
    memory that runs out is an error instead of a signal."""
    fd = os.memfd_create("memos", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        for piece in pieces:
            at = 0
            while at < len(piece):
                at += os.write(fd, piece[at:])
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return fd


def is_sealed(fd: int) -> bool:
    """Whether a descriptor is a memfd sealed against shrinking, growing and writing."""
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS == _SEALS
    except OSError:
        return False


def mapped(fd: int) -> memoryview:
    """The bytes of a descriptor: mapped when it is sealed; anything else is refused, for a file that shrinks under a
    mapping would kill the process."""
    if not is_sealed(fd):
        raise MemInvalid(
            "a descriptor must be a memfd sealed against shrink, grow and write", "Let the client library make it."
        )
    try:
        size = os.fstat(fd).st_size
        if size > limits.CONTENT_BYTES_MAX:
            raise MemTooLarge(f"content of {size} bytes is over the limit of {limits.CONTENT_BYTES_MAX}")
        return memoryview(mmap.mmap(fd, size, prot=mmap.PROT_READ) if size else b"")
    except (OSError, ValueError) as error:
        # The process has only so many mappings, and the machine only so much address space.
        raise MemIO(f"a descriptor could not be mapped: {error}", "Wait for other calls to end, then try again.") from error
