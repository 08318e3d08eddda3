"""`memosd`: read the configuration, boot, serve until SIGTERM or SIGINT, stop cleanly.

Exit status: 0 after a clean stop, 1 when the kernel refused to start (the reason is on stderr), 3 when it stopped
itself because an append or apply failed, 4 when another kernel took over its log: do not start it again by itself, or
the two would take the log from each other for ever.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys

import uvloop

from .boot import boot
from .config import BadConfig, Config, load, parser
from .recovery import Refused

FATAL_STATUS = 3
FENCED_STATUS = 4


async def serve(config: Config) -> int:
    stopping = asyncio.Event()
    fatal: list[str] = []

    def on_fatal(why: str) -> None:
        fatal.append(why)
        stopping.set()

    running = await boot(config, on_fatal)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    logging.getLogger("memos").info(
        "serving %s on %s, epoch %d, head %d",
        config.data_dir,
        config.socket,
        running.kernel.chain.epoch,
        running.kernel.durable.seq,
    )
    await stopping.wait()
    if fatal:
        # Nothing more may be written or answered: callers see the connection close and know that they do not know.
        sys.stderr.flush()
        os._exit(FENCED_STATUS if running.kernel.fenced else FATAL_STATUS)
    await running.stop()
    if running.kernel.fenced:
        return FENCED_STATUS
    return FATAL_STATUS if fatal else 0


def main() -> None:
    arguments = parser().parse_args()
    try:
        config = load(arguments, dict(os.environ))
    except BadConfig as error:
        sys.exit(f"memosd: {error}")
    logging.basicConfig(
        level=config.log_level.upper(), format="%(asctime)s %(name)s %(levelname)s %(message)s", stream=sys.stderr
    )
    if arguments.check:
        print(f"memosd: the configuration is good: {config.data_dir}, {config.socket}, log {config.log}")
        return
    # The flusher must get the interpreter back soon after a sync, or every commit would wait 5 ms for its turn.
    sys.setswitchinterval(0.0005)
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    try:
        status = uvloop.run(serve(config))
    except Refused as error:
        print(f"memosd: {error}", file=sys.stderr)
        sys.exit(FENCED_STATUS if error.fenced else 1)
    except OSError as error:
        sys.exit(f"memosd: {error}")
    sys.exit(status)


if __name__ == "__main__":
    main()
