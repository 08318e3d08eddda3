"""The asyncio side of the embedder: a queue, and a child process that does the work.

- `embed` answers with one unit vector for each text, in order. Queries go before documents; a query waits for at most
  one batch of documents (`BATCH_TEXTS_MAX`, `BATCH_CHARS_MAX`).
- The child starts with the first call, and again, after a growing pause, when it dies. A text whose batch died is sent
  again by itself, so that one bad text cannot take others with it; after `ATTEMPTS_MAX` its caller gets `MemIO`.
- Missing packages are `MemNoModel` for every call, without another start.
- `close` ends the child, and every waiting call with `MemIO`. A cancelled call leaves the queue.

Framing: see `child`. This module imports no model runtime.
"""

from __future__ import annotations

import asyncio
import enum
import socket
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final, NamedTuple

import msgpack
import numpy as np
from numpy.typing import NDArray

from memos_drivers.plaintext.latent import WIDTH, Tokens
from memos_syscalls.errors import BY_NAME, MemError, MemIO, MemNoModel

from .child import HEADER_BYTES_MAX, LENGTH, message

Floats = NDArray[np.float32]
BATCH_TEXTS_MAX: Final = 32
BATCH_CHARS_MAX: Final = 1024
"""About 0.1 s of work, for that is how long a query may have to wait; four times as much gains a tenth of throughput."""
TEXT_CHARS_MAX: Final = 8192
"""More than the model's window holds; the rest would only travel."""
ATTEMPTS_MAX: Final = 3
BACKOFF_SECONDS: Final = (0.1, 0.5, 2.0, 10.0)
ANSWER_SECONDS_MAX: Final = 120
START_SECONDS_MAX: Final = 60
STOP_SECONDS_MAX: Final = 2
MINILM: Final[Mapping[str, Any]] = {"kind": "minilm"}


class Priority(enum.IntEnum):
    QUERY = 0
    DOCUMENT = 1


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Which model makes the vectors."""

    name: str
    dims: int
    fingerprint: str


class Encoded(NamedTuple):
    """A text's unit vector, and its tokens if the model shows them."""

    vector: Floats
    tokens: Tokens | None


Pair = tuple[str, str]
"""A question and a text, for a cross-encoder."""


def _clipped(text: str | Pair) -> str | Pair:
    return text[:TEXT_CHARS_MAX] if isinstance(text, str) else (text[0][:TEXT_CHARS_MAX], text[1][:TEXT_CHARS_MAX])


@dataclass(slots=True, eq=False)
class _Text:
    text: str | Pair
    done: asyncio.Future[Encoded]
    attempts: int = 0


@dataclass(slots=True)
class _Child:
    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    info: ModelInfo


class _ChildDied(Exception):
    """The child closed its socket, kept silent too long, or spoke nonsense."""


class EmbedClient:
    """Embeds texts in a child process."""

    def __init__(self, spec: Mapping[str, Any] = MINILM) -> None:
        self._spec = dict(spec)
        self._queues: tuple[deque[_Text], deque[_Text]] = (deque(), deque())
        self._wake = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._child: _Child | None = None
        self._refusal: MemError | None = None
        self._failures = 0
        self._calls = 0
        self._closed = False
        self.info: ModelInfo | None = None
        """Set by the child's first start."""

    @property
    def pid(self) -> int | None:
        """The child's process id while it runs."""
        return self._child.process.pid if self._child else None

    async def embed(self, texts: Sequence[str], priority: Priority = Priority.DOCUMENT) -> Floats:
        """One row for each text."""
        found = await self.encode(texts, priority)
        if not found:
            return np.zeros((0, self.info.dims if self.info else 0), np.float32)
        return np.stack([one.vector for one in found])

    async def compare(self, query: str, texts: Sequence[str]) -> list[float]:
        """How well each text answers the query, by a cross-encoder: the larger the better."""
        found = await self.encode([(query, text) for text in texts], Priority.QUERY)
        return [float(one.vector[0]) for one in found]

    async def encode(self, texts: Sequence[str | Pair], priority: Priority = Priority.DOCUMENT) -> list[Encoded]:
        """Vectors and tokens of each text."""
        if self._refusal is not None:
            raise type(self._refusal)(self._refusal.detail)
        if self._closed:
            raise MemIO("the embedder is closed")
        if not texts:
            return []
        loop = asyncio.get_running_loop()
        items = [_Text(_clipped(text), loop.create_future()) for text in texts]
        self._queues[priority].extend(items)
        self._wake.set()
        if self._worker is None:
            self._worker = loop.create_task(self._work())
        try:
            found = await asyncio.gather(*(item.done for item in items))
        finally:
            for item in items:
                # One failure or a cancellation ends the call; no other text of it is worth sending.
                if not item.done.cancel() and not item.done.cancelled():
                    item.done.exception()
        return list(found)

    async def close(self) -> None:
        """Ends the child and all waiting calls."""
        self._closed = True
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        await self._stop()
        self._fail_all(MemIO("the embedder was closed"))

    async def _work(self) -> None:
        while True:
            batch = self._take()
            if not batch:
                self._wake.clear()
                await self._wake.wait()
                continue
            try:
                child = self._child or await self._start()
                rows = await self._ask(child, [item.text for item in batch])
            except _ChildDied as death:
                await self._stop()
                self._retry(batch, str(death))
                pause = BACKOFF_SECONDS[min(self._failures, len(BACKOFF_SECONDS) - 1)]
                self._failures += 1
                await asyncio.sleep(pause)
            except MemNoModel as error:
                self._refusal = error
                await self._stop()
                self._fail(batch, error)
                self._fail_all(error)
            except MemError as error:
                self._fail(batch, error)
            except asyncio.CancelledError:
                self._fail(batch, MemIO("the embedder was closed"))
                raise
            else:
                self._failures = 0
                for item, row in zip(batch, rows, strict=True):
                    if not item.done.done():
                        item.done.set_result(row)

    def _take(self) -> list[_Text]:
        """The next batch: of one priority, bounded; a text that saw the child die goes alone."""
        for queue in self._queues:
            batch: list[_Text] = []
            chars = 0
            while queue and len(batch) < BATCH_TEXTS_MAX:
                item = queue[0]
                if item.done.done():
                    queue.popleft()
                    continue
                chars += len(item.text) if isinstance(item.text, str) else sum(map(len, item.text))
                if batch and (chars > BATCH_CHARS_MAX or item.attempts):
                    break
                batch.append(queue.popleft())
                if item.attempts:
                    break
            if batch:
                return batch
        return []

    def _retry(self, batch: list[_Text], why: str) -> None:
        for item in reversed(batch):
            item.attempts += 1
            if item.attempts >= ATTEMPTS_MAX:
                self._fail([item], MemIO(f"the embedder failed {ATTEMPTS_MAX} times: {why}"))
            elif not item.done.done():
                self._queues[Priority.QUERY].appendleft(item)

    @staticmethod
    def _fail(items: Sequence[_Text], error: MemError) -> None:
        for item in items:
            if not item.done.done():
                item.done.set_exception(type(error)(error.detail))

    def _fail_all(self, error: MemError) -> None:
        for queue in self._queues:
            self._fail(list(queue), error)
            queue.clear()

    async def _start(self) -> _Child:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "memos_drivers.embed.child", str(theirs.fileno()),
                    pass_fds=(theirs.fileno(),), stdin=asyncio.subprocess.DEVNULL,
                )  # fmt: skip
            except asyncio.CancelledError:
                ours.close()
                raise
            except OSError as error:
                ours.close()
                raise _ChildDied(f"it did not start ({type(error).__name__})") from error
        reader, writer = await asyncio.open_connection(sock=ours)
        self._child = child = _Child(process, reader, writer, ModelInfo("", 0, ""))
        header, _ = await self._exchange(child, message({"spec": self._spec}), START_SECONDS_MAX)
        try:
            if "errno" in header:
                # It ended by itself after this.
                await self._stop()
                raise BY_NAME.get(str(header["errno"]), MemIO)(str(header.get("detail", "")))
            child.info = ModelInfo(str(header["name"]), int(header["dims"]), str(header["fingerprint"]))
        except KeyError as error:
            raise _ChildDied("it introduced itself without a name") from error
        self.info = child.info
        return child

    async def _ask(self, child: _Child, texts: list[str | Pair]) -> list[Encoded]:
        self._calls += 1
        header, raw = await self._exchange(child, message({"id": self._calls, "texts": texts}), ANSWER_SECONDS_MAX)
        if header.get("id") != self._calls:
            raise _ChildDied("it answered another question")
        if "errno" in header:
            raise BY_NAME.get(str(header["errno"]), MemIO)(str(header.get("detail", "")))
        rows, dims = int(header.get("rows", 0)), int(header.get("dims", 0))
        spans: list[list[tuple[int, int]]] | None = header.get("spans")
        shown = sum(map(len, spans)) * WIDTH if spans is not None else 0
        if rows != len(texts) or len(raw) != rows * dims * 4 + shown or (spans is not None and len(spans) != rows):
            raise _ChildDied("its answer has another size than the question")
        vectors = np.frombuffer(raw, "<f4", rows * dims).reshape(rows, dims).astype(np.float32, copy=False)
        if spans is None:
            return [Encoded(vector, None) for vector in vectors]
        small = np.frombuffer(raw, np.int8, offset=rows * dims * 4).reshape(-1, WIDTH)
        ends = list(accumulate(map(len, spans)))
        return [
            Encoded(vector, Tokens(small[end - len(places) : end], [(int(a), int(b)) for a, b in places]))
            for vector, places, end in zip(vectors, spans, ends, strict=True)
        ]

    @staticmethod
    async def _exchange(child: _Child, data: bytes, seconds: float) -> tuple[dict[str, Any], bytes]:
        try:
            async with asyncio.timeout(seconds):
                child.writer.write(data)
                await child.writer.drain()
                size = int(LENGTH.unpack(await child.reader.readexactly(LENGTH.size))[0])
                if size > HEADER_BYTES_MAX:
                    raise _ChildDied("its answer is too long")
                header: dict[str, Any] = dict(msgpack.unpackb(await child.reader.readexactly(size), raw=False))
                extra = int(header.get("bytes", 0))
                if not 0 <= extra <= HEADER_BYTES_MAX:
                    raise _ChildDied("its answer is too long")
                return header, await child.reader.readexactly(extra)
        except TimeoutError as error:
            raise _ChildDied(f"it kept silent for {seconds} s") from error
        except (OSError, EOFError, ValueError, TypeError) as error:
            raise _ChildDied(f"its socket failed ({type(error).__name__})") from error

    async def _stop(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.writer.close()
        try:
            async with asyncio.timeout(STOP_SECONDS_MAX):
                await child.process.wait()
        except TimeoutError:
            child.process.kill()
            await child.process.wait()
