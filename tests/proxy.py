"""A TCP proxy in front of one broker: the network, with a switch.

    with Proxy(("127.0.0.1", 9092)) as proxy:
        client_of(proxy.address)
        proxy.stall()

- `cut` resets every connection and refuses new ones; bytes under way are lost.
- `stall` accepts and answers nothing: bytes under way wait, also a client's farewell. `heal` delivers them, `cut` loses
  them. One direction alone is the lost answer: `stall(requests=False)` lets requests through, then `cut` drops what the
  broker said to them.
- `slow` delays each byte by a time and limits how many pass in a second, in each direction of each connection.
- `heal` ends all of it.

The port stays the proxy's for good. It is below the range from which systems take ports of outgoing connections, so that
nothing else gets it while the proxy refuses. Everything runs in a thread of its own; the calls return when done.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Final, Self

CHUNK: Final = 64 * 1024
CHUNKS_UNDER_WAY: Final = 64
RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER that makes closing a reset."""
_given: Final = set[int]()


def free_port() -> int:
    """A port on 127.0.0.1 that nobody listens on, that no outgoing connection is given, and that was not given before."""
    while True:
        port = random.randrange(20_000, 32_000)
        if port in _given:
            continue
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", port))
            _given.add(port)
            return port


class Proxy:
    """The proxy of one target. `with` ends it."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.bytes_forwarded = 0
        self.connections_ended = 0
        self._delay_seconds = 0.0
        self._bytes_per_second: float | None = None
        self._server: asyncio.Server | None = None
        self._pairs: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}
        self._one_at_a_time = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._requests = asyncio.Event()
        self._answers = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy {self.port}", daemon=True)
        self._thread.start()
        self.heal()

    # -- the switch --------------------------------------------------------------------------------------------------

    def cut(self) -> None:
        self._do(self._cut())

    def stall(self, *, requests: bool = True, answers: bool = True) -> None:
        self._do(self._gates(not requests, not answers))

    def slow(self, bytes_per_second: float | None = None, delay_ms: float = 0) -> None:
        self._bytes_per_second, self._delay_seconds = bytes_per_second, delay_ms / 1000

    def heal(self) -> None:
        self.slow()
        self._do(self._gates(True, True))
        self._do(self._listen())

    def close(self) -> None:
        if not self._loop.is_closed():
            self.cut()
            # Who was accepted during the cut is aborted a turn later, and closed in the one after.
            self._do(asyncio.sleep(0.05))
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # -- in the thread -----------------------------------------------------------------------------------------------

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        with self._one_at_a_time:
            asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _gates(self, requests: bool, answers: bool) -> None:
        for gate, is_open in ((self._requests, requests), (self._answers, answers)):
            if is_open:
                gate.set()
            else:
                gate.clear()

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, reuse_address=True)

    async def _cut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        pairs = list(self._pairs)
        for pair in pairs:
            pair.cancel()
        await asyncio.gather(*pairs, return_exceptions=True)
        # Sockets close in the turn after the one that aborts them.
        for _turn in range(2):
            await asyncio.sleep(0)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None:
            # Accepted before the cut, called back after it.
            writer.transport.abort()
            return
        # A task of our own: the one that asyncio made for this callback would report its cancellation as an error.
        pair = self._loop.create_task(self._pair(reader, writer))
        self._pairs[pair] = [writer]
        pair.add_done_callback(self._reset)

    async def _pair(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mine = asyncio.current_task()
        assert mine is not None
        try:
            far_reader, far_writer = await asyncio.open_connection(*self.target)
            self._pairs[mine].append(far_writer)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._forward(reader, far_writer, self._requests))
                both.create_task(self._forward(far_reader, writer, self._answers))
        except* OSError:
            # One end is gone, or the target is down; the other end learns it by the reset that follows.
            self.connections_ended += 1

    async def _forward(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, gate: asyncio.Event) -> None:
        """Reading and writing apart, so that a delay holds each chunk back and does not add up over them."""
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(CHUNKS_UNDER_WAY)

        async def read() -> None:
            free_at = 0.0
            while True:
                data = await source.read(CHUNK)
                free_at = max(free_at, time.monotonic())
                if self._bytes_per_second is not None:
                    free_at += len(data) / self._bytes_per_second
                await under_way.put((free_at + self._delay_seconds, data))
                if not data:
                    return

        async def write() -> None:
            while True:
                due, data = await under_way.get()
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                await gate.wait()
                if not data:
                    raise ConnectionResetError
                sink.write(data)
                await sink.drain()
                self.bytes_forwarded += len(data)

        async with asyncio.TaskGroup() as halves:
            halves.create_task(read())
            halves.create_task(write())

    def _reset(self, pair: asyncio.Task[None]) -> None:
        for writer in self._pairs.pop(pair):
            sock: socket.socket | None = writer.get_extra_info("socket")
            if sock is not None and sock.fileno() >= 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()
        if not pair.cancelled() and (error := pair.exception()) is not None:
            self._loop.call_exception_handler({"message": "a proxied connection failed", "exception": error})
