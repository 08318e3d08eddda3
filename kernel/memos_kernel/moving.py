"""The end of a log that moves: a kernel in this process opens it, lets everything be copied, and closes it.

- From `opened` on nobody else writes there: a directory is locked by its caller, whoever wrote to a topic is replaced
- The last frame holds log.moved, which names the copy, and the checkpoint that signs it: it is closed whole or not at all
- A log that had moved before stays as it is

The userland's `copy` does the copying; nothing else ends a log.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Callable, Generator

from . import events as ev
from .boot import Parts as Parts
from .boot import assemble, open_parts
from .clock import RealClock
from .config import Config
from .events import Event
from .recovery import Refused as Refused
from .state import META_HOME


class NotClosed(Exception):
    """The log was not closed, or it is not known; the message says why."""


@contextlib.contextmanager
def opened(config: Config) -> Generator[Parts]:
    """What the configuration names, open. Raises `Refused`."""
    parts = open_parts(config)
    try:
        yield parts
    finally:
        # Cursors of the kernel that ran keep a database open.
        gc.collect()
        for part in (parts.log, parts.keystore, parts.segment_keys, parts.store):
            part.close()


async def close(config: Config, parts: Parts, copied: Callable[[bool], bytes]) -> None:
    """Call `copied` when nobody else writes any more, in a thread; then close the log in favour of the home_id that it returns.

    It is told whether the log had moved before: then nothing is appended, and what it returns is not needed. Raises `Refused`
    or `NotClosed`.
    """
    kernel = await assemble(
        config, store=parts.store, log=parts.log, keystore=parts.keystore, segment_keys=parts.segment_keys,
        clock=RealClock(), on_fatal=lambda _why: None, embed=None,
    )  # fmt: skip
    try:
        closed = kernel.closed
        if closed is not None and kernel.view.get(META_HOME) in (None, parts.keystore.header.home_id):
            raise NotClosed(f"{closed}; copy it with --no-close, or take it over first")
        home_id = await asyncio.to_thread(copied, closed is not None)
        if closed is None:
            if kernel.stopped is not None:
                raise NotClosed(kernel.stopped)
            try:
                kernel.append_own([Event(ev.MOVED, ev.EVENTS[ev.MOVED], [home_id])])
                kernel.checkpoint_now()
                await kernel.drained()
            except OSError as error:
                raise NotClosed(str(error)) from error
    finally:
        await kernel.stop()
        # An error's traceback would keep it, and with it the database open.
        del kernel
