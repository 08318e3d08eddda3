"""Effects of records that are not state: the search indexes, kept in step with the log after each commit.

- Nothing here is waited for by a write: it is acknowledged when durable. `lexical_seq` says how far the words are,
  `dense_seq` how far the vectors; a search waits for the first (`wait_lexical`) and reports the second.
- Work goes through one queue in order of offset, in slices, in a thread. Everything is idempotent: what is known is
  skipped, so a restart may offer a record again.
- What is on disk is in `segments`; everything can be dropped and made again from the log.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from memos_drivers.embed.client import EmbedClient
from memos_drivers.plaintext.documents import Document
from memos_drivers.plaintext.index import PlaintextIndex
from memos_syscalls.errors import MemError, MemNoModel, MemShredded

from . import events as ev
from . import lifecycle
from .decide import NewPayload
from .events import Damaged, Record
from .private import Private
from .state import Cube, View
from .vault import Opened, SealedContent, Vault

if TYPE_CHECKING:
    from .decide import Decision, Draft
    from .segments import Segments

log_ = logging.getLogger("memos.index")

OPS_PER_SLICE: Final = 2048
OPS_BEHIND_MAX: Final = 32_768
HELD_BYTES_MAX: Final = 32 << 20
LULL_SECONDS: Final = 0.003
LAG_SECONDS_MAX: Final = 1.0
TEXT_CHARS_MAX: Final = 32_768
"""Characters of a content that are indexed; the rest is found through them."""
EMBED_BATCH: Final = 32
FORK_SLICE: Final = 256
DENSE_PATIENCE_SECONDS: Final = 0.5
LEXICAL_PATIENCE_SECONDS: Final = 0.25

Op = tuple[str, int, Any]
"""`(kind, seq, argument)`: add a document, set a cube's live version, remove cubes, copy a fork's documents."""


def document_of(cube: Cube, opened: Opened) -> Document | None:
    """What the index holds of a version; None for bytes and for compositions, which are found through their members."""
    private = opened.private
    if private.encoding != "text" or (private.recipe or {}).get("method") == "compose":
        return None
    return Document(
        cube.cube_id, opened.version.version, opened.version.seq, cube.namespace,
        opened.content[: 4 * TEXT_CHARS_MAX].decode(errors="ignore")[:TEXT_CHARS_MAX],
        tuple(private.tags), private.valid_from, private.valid_to,
    )  # fmt: skip


def live_version(cube: Cube) -> int | None:
    return cube.version if cube.state in lifecycle.SEARCHABLE else None


class Effects:
    """The indexes' queue and pumps."""

    def __init__(
        self, vault: Vault, segments: Segments, view: Callable[[], View], embed: EmbedClient | None, busy: Callable[[], bool]
    ) -> None:
        self._busy = busy
        self.index = PlaintextIndex()
        self.embed = embed
        self.lexical_seq = -1
        self.offered_seq = -1
        self.embed_error: MemError | None = None
        self._vault = vault
        self._segments = segments
        self._view = view
        self._ops: deque[Op] = deque()
        self._held_bytes = 0
        """Contents in the queue, counted since it was last empty."""
        self._wake = asyncio.Event()
        self._wake_dense = asyncio.Event()
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.loaded = False
        self._closed = False

    # -- offering ----------------------------------------------------------------------------------------------------

    def committed(self, record: Record, decision: Decision | None) -> None:
        """A record became durable. `decision`, when there is one, saves decrypting what was just encrypted."""
        seq = record.seq
        for at, event in enumerate(record.events):
            draft = decision.drafts[at] if decision is not None else None
            for op in self._ops_of(seq, event, draft):
                self._ops.append(op)
        self.offered_seq = seq
        self._wake.set()

    def _ops_of(self, seq: int, event: ev.Event, draft: Any) -> list[Op]:
        match event.name:
            case ev.ALLOCATED | ev.WRITTEN:
                cube_id = event.fields[0]
                version = 1 if event.name == ev.ALLOCATED else event.fields[1]
                payload = event.fields[4 if event.name == ev.ALLOCATED else 3]
                content, private = self._at_hand(draft)
                return [("add", seq, (cube_id, version, payload[1], content, private))]
            case ev.STATE_CHANGED:
                return [("live", seq, event.fields[0])]
            case ev.EXPIRED:
                return [("live", seq, cube_id) for cube_id, _version in event.fields[0]]
            case ev.MERGED:
                return [("live", seq, cube_id) for cube_id, _version in event.fields[1]]
            case ev.UNMERGED:
                return [("live", seq, cube_id) for cube_id in [event.fields[0], *event.fields[2]]]
            case ev.FORKED:
                return [("fork", seq, event.fields[1])]
            case ev.SHREDDED:
                return [("shred", seq, event.fields[0])]
            case _:
                return []

    def _at_hand(self, draft: Draft | None) -> tuple[bytes | None, Private | None]:
        """Content and private part of a fresh version, unless the queue holds so much already that they are better
        opened again when their turn comes."""
        if draft is None or draft.private is None or self._held_bytes > HELD_BYTES_MAX:
            return None, None
        for field in draft.fields:
            if type(field) is NewPayload and not isinstance(field.content, SealedContent):
                self._held_bytes += len(field.content)
                return field.content, draft.private
        return None, None

    def shredded(self, cube_ids: list[bytes], heirs: dict[bytes, int]) -> Callable[[], None]:
        """Forget erased cubes, and what forks inherited from them; returns the disk work that blinds the segments which
        list either, for the flusher."""
        self._ops.append(("remove", self.offered_seq, [*cube_ids, *heirs]))
        view = self._view()
        for fork_id, newest in heirs.items():
            fork = view.cube(fork_id)
            for version in range(newest + 1, fork.version + 1 if fork is not None else 0):
                found = view.version(fork, version) if fork is not None else None
                if found is not None:
                    self._ops.append(("add", found[0].seq, (fork_id, version, 0, None, None)))
        self._wake.set()
        return lambda: self._segments.blind(cube_ids, heirs)

    # -- waiting -----------------------------------------------------------------------------------------------------

    @property
    def dense_seq(self) -> int:
        """Every document up to this offset has its vector."""
        oldest = self.index.oldest_missing()
        return self.lexical_seq if oldest is None else min(self.lexical_seq, oldest - 1)

    @property
    def dense_behind(self) -> bool:
        return self.index.oldest_missing() is not None

    async def wait_dense(self) -> None:
        """Give a short backlog of vectors a moment; a long one is not worth waiting for."""
        until = asyncio.get_running_loop().time() + DENSE_PATIENCE_SECONDS
        while self.embed is not None and self.embed_error is None and asyncio.get_running_loop().time() < until:
            if not 0 < len(self.index.missing_vectors(EMBED_BATCH)) < EMBED_BATCH:
                return
            await asyncio.sleep(0.01)

    async def wait_lexical(self, seq: int) -> None:
        """Return when the words of every record up to `seq` are indexed."""
        if self.lexical_seq >= seq:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((seq, waiter))
        await waiter

    async def wait_lexical_briefly(self, seq: int) -> None:
        """The same for writes of others, but only for a moment: under steady load the index is always a little behind."""
        if self.lexical_seq < seq:
            try:
                await asyncio.wait_for(self.wait_lexical(seq), LEXICAL_PATIENCE_SECONDS)
            except TimeoutError:
                log_.debug("a search goes on with words up to offset %d of %d", self.lexical_seq, seq)

    def _advance(self, seq: int) -> None:
        self.lexical_seq = max(self.lexical_seq, seq)
        ready = [w for s, w in self._waiters if s <= self.lexical_seq]
        self._waiters = [(s, w) for s, w in self._waiters if s > self.lexical_seq]
        for waiter in ready:
            if not waiter.done():
                waiter.set_result(None)

    # -- pumps -------------------------------------------------------------------------------------------------------

    def start(self, head_seq: int) -> None:
        """Load what is stored, then follow the log. `head_seq` is where the view stands."""
        self.offered_seq = max(self.offered_seq, head_seq)
        self._tasks = [asyncio.create_task(self._pump(head_seq)), asyncio.create_task(self._pump_dense())]
        if self.embed is not None:
            self._tasks.append(asyncio.create_task(self._warm_up(self.embed)))

    async def _warm_up(self, embed: EmbedClient) -> None:
        """Start the embedder before the first search needs it."""
        try:
            await embed.embed(["warm"])
        except MemError as error:
            self.embed_error = error
            log_.warning("no embedder, searches use words alone: %s", error)

    async def _pump(self, head_seq: int) -> None:
        await asyncio.to_thread(self._segments.load, self.index, self._view())
        self.loaded = True
        self._advance(head_seq)
        self._wake_dense.set()
        while True:
            while self._ops:
                await self._lull()
                ops = [self._ops.popleft() for _ in range(min(OPS_PER_SLICE, len(self._ops)))]
                if not self._ops:
                    self._held_bytes = 0
                target = self.offered_seq if not self._ops else max(self.lexical_seq, ops[-1][1] - 1)
                await asyncio.to_thread(self._apply_in_thread, ops)
                self._advance(target)
                self._wake_dense.set()
            self._advance(self.offered_seq)
            if self.index.needs_rebuild:
                await asyncio.to_thread(self._rebuild_in_thread)
            if self._segments.due:
                await asyncio.to_thread(self._segments.seal, self.index, self._view())
            if not self._ops:
                self._wake.clear()
                await self._wake.wait()

    async def _lull(self) -> None:
        """Writers come first, and words are cheaper in batches: wait until no commit came for a moment, unless a search
        waits for the index, much has come in, or the oldest of it has waited long enough."""
        loop = asyncio.get_running_loop()
        until = loop.time() + LAG_SECONDS_MAX
        while self._busy() and not self._waiters and len(self._ops) < OPS_BEHIND_MAX and loop.time() < until:  # noqa: ASYNC110
            await asyncio.sleep(LULL_SECONDS)

    def _rebuild_in_thread(self) -> None:
        """A new index without the traces that removed documents leave in the old one."""
        fresh = PlaintextIndex()
        self._segments.load(fresh, self._view())
        old, self.index = self.index, fresh
        old.close()

    def _apply_in_thread(self, ops: list[Op]) -> None:
        view = self._view()
        fresh: list[Document] = []
        vectors: list[tuple[bytes, int, bytes]] = []
        touched: dict[bytes, None] = {}

        def flush() -> None:
            self.index.add(fresh)
            self._segments.added([(d.cube_id, d.version) for d in fresh])
            fresh.clear()
            for cube_id, version, raw in vectors:
                self._set_vector(cube_id, version, np.frombuffer(raw, "<f4"))
            vectors.clear()
            for cube_id in touched:
                cube = view.cube(cube_id)
                self.index.set_live(cube_id, None if cube is None else live_version(cube))
            touched.clear()

        for kind, seq, argument in ops:
            if kind == "add":
                cube_id, version, _bytes, content, private = argument
                touched[cube_id] = None
                document, raw = self._document(view, seq, cube_id, version, content, private)
                if document is not None:
                    fresh.append(document)
                    if raw is not None:
                        vectors.append((cube_id, version, raw))
            elif kind == "live":
                touched[argument] = None
            elif kind == "remove":
                flush()
                self.index.remove(argument)
                self._segments.removed(argument)
            elif kind == "fork":
                flush()
                self._copy_fork(view, seq, argument)
            elif kind == "shred":
                # Sources of erased fusions are live again.
                flush()
                self._revive(view, seq)
        flush()

    def _document(
        self, view: View, seq: int, cube_id: bytes, version: int, content: bytes | None, private: Any
    ) -> tuple[Document | None, bytes | None]:
        cube = view.cube(cube_id)
        if cube is None or cube.state == lifecycle.SHREDDED:
            return None, None
        if content is None or private is None:
            try:
                opened = self._vault.open(view, cube, version)
            except MemShredded:
                return None, None
            if opened is None:
                raise Damaged(f"cube {cube_id.hex()} has no version {version}")
            return document_of(cube, opened), opened.private.embedding
        if private.encoding != "text" or (private.recipe or {}).get("method") == "compose":
            return None, None
        text = bytes(content[: 4 * TEXT_CHARS_MAX]).decode(errors="ignore")[:TEXT_CHARS_MAX]
        tags = tuple(private.tags)
        return Document(
            cube_id, version, seq, cube.namespace, text, tags, private.valid_from, private.valid_to
        ), private.embedding

    def _copy_fork(self, view: View, seq: int, target: str) -> None:
        fresh: list[Document] = []
        for cube_id in view.cubes_below(target):
            cube = view.cube(cube_id)
            if cube is None or cube.created_seq != seq or cube.forked_from is None:
                continue
            version = cube.forked_from[1]
            document, raw = self._document(view, seq, cube_id, version, None, None)
            if document is None:
                continue
            fresh.append(document._replace(cube_id=cube_id, seq=seq))
            if len(fresh) >= FORK_SLICE:
                self._add_fork(view, fresh)
            if raw is None:
                source = self._segments.vector(view, cube.forked_from[0], version)
                if source is not None:
                    self._add_fork(view, fresh)
                    self._set_vector(cube_id, version, source)
        self._add_fork(view, fresh)

    def _add_fork(self, view: View, fresh: list[Document]) -> None:
        self.index.add(fresh)
        self._segments.added([(d.cube_id, d.version) for d in fresh])
        for document in fresh:
            cube = view.cube(document.cube_id)
            self.index.set_live(document.cube_id, None if cube is None else live_version(cube))
        fresh.clear()

    def _revive(self, view: View, seq: int) -> None:
        for cube_id in self._segments.merged_sources(view, seq):
            cube = view.cube(cube_id)
            if cube is not None:
                self.index.set_live(cube_id, live_version(cube))

    def _set_vector(self, cube_id: bytes, version: int, vector: Any) -> None:
        try:
            if self.index.set_vector(cube_id, version, vector):
                self._segments.keep_vector(self._view(), self.index, cube_id, version)
        except MemError as error:
            # A caller's vector of another size is theirs alone: the document stays findable by its words.
            log_.warning("vector of cube %s is left out: %s", cube_id.hex(), error.detail)

    async def _pump_dense(self) -> None:
        """Give every document a vector, newest state first, in small batches."""
        while True:
            await self._wake_dense.wait()
            self._wake_dense.clear()
            if self.embed is None:
                continue
            while self.loaded and (missing := self.index.missing_vectors(EMBED_BATCH)):
                texts, keys = await asyncio.to_thread(self._texts_in_thread, missing)
                if not keys:
                    break
                try:
                    vectors = await self.embed.embed(texts)
                    self.embed_error = None
                except MemNoModel as error:
                    self.embed_error = error
                    return
                except MemError as error:
                    self.embed_error = error
                    await asyncio.sleep(5)
                    continue
                await asyncio.to_thread(self._vectors_in_thread, keys, vectors)

    def _texts_in_thread(self, missing: list[tuple[bytes, int]]) -> tuple[list[str], list[tuple[bytes, int]]]:
        view = self._view()
        texts: list[str] = []
        keys: list[tuple[bytes, int]] = []
        for cube_id, version in missing:
            document, _raw = self._document(view, 0, cube_id, version, None, None)
            if document is not None:
                texts.append(document.text)
                keys.append((cube_id, version))
            else:
                self.index.remove([cube_id])
        return texts, keys

    def _vectors_in_thread(self, keys: list[tuple[bytes, int]], vectors: Any) -> None:
        for (cube_id, version), vector in zip(keys, vectors, strict=True):
            self._set_vector(cube_id, version, vector)

    async def close(self) -> None:
        """Stop the pumps and store what is not stored yet."""
        for task in self._tasks:
            task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                log_.error("an index pump failed: %s", result)
        if self.loaded and not self._ops:
            await asyncio.to_thread(self._segments.seal, self.index, self._view(), True)
        if self.embed is not None:
            await self.embed.close()
        self.index.close()
