"""Descriptors from clients: what cannot be mapped is refused in words, not with an exception of the machine's."""

from __future__ import annotations

import mmap
import os

import pytest

from memos_kernel import fds
from memos_syscalls.errors import MemInvalid, MemIO


def test_sealed_memory_is_mapped_as_it_is() -> None:
    for content in (b"", b"x", b"x" * 100_000):
        fd = fds.sealed_memfd(content)
        assert bytes(fds.mapped(fd)) == content
        os.close(fd)


def test_what_is_not_sealed_is_refused() -> None:
    fd = os.memfd_create("loose")
    with pytest.raises(MemInvalid):
        fds.mapped(fd)
    os.close(fd)
    with pytest.raises(MemInvalid):
        fds.mapped(fd)


@pytest.mark.parametrize("error", [OSError(12, "Cannot allocate memory"), ValueError("mmap length is too large")])
def test_a_mapping_that_the_machine_refuses_is_an_error_of_the_call(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    fd = fds.sealed_memfd(b"content")

    def refuses(*_args: object, **_more: object) -> None:
        raise error

    monkeypatch.setattr(mmap, "mmap", refuses)
    with pytest.raises(MemIO, match=str(error.args[-1])):
        fds.mapped(fd)
    os.close(fd)
