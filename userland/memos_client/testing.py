"""A fresh private kernel for other people's tests: real, empty, gone afterwards. Works under any test runner.

from memos_client.testing import kernel

with kernel() as k:
    assert k.mem_list("alice").cubes == []
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncGenerator, Generator, Sequence

from ._spawn import START_SECONDS, Option
from .aio import AsyncKernel
from .sync import Kernel


@contextlib.contextmanager
def kernel(*, args: Sequence[str] = (), wait_s: float = START_SECONDS, **options: Option) -> Generator[Kernel]:
    """A `Kernel` on a new memosd with these options, in a temporary directory."""
    with (
        tempfile.TemporaryDirectory(prefix="memos-test-") as folder,
        Kernel.spawn(folder, args=args, wait_s=wait_s, **options) as k,
    ):
        yield k


@contextlib.asynccontextmanager
async def async_kernel(
    *, args: Sequence[str] = (), wait_s: float = START_SECONDS, **options: Option
) -> AsyncGenerator[AsyncKernel]:
    """An `AsyncKernel` on a new memosd with these options, in a temporary directory."""
    with tempfile.TemporaryDirectory(prefix="memos-test-") as folder:
        async with AsyncKernel.spawn(folder, args=args, wait_s=wait_s, **options) as k:
            yield k
