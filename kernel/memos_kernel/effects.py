"""Effects of records that are not state: the search indexes, kept in step with the log after each commit.

- Nothing here is waited for by a write: it is acknowledged when durable. `lexical_seq` says how far the words are,
  `dense_seq` how far the vectors; a search waits for the first (`wait_lexical`) and reports the second.
- Work goes through one queue in order of offset, in slices, in a thread. Everything is idempotent: what is known is
  skipped, so a restart may offer a record again.
- What is on disk is in `segments`; everything can be dropped and made again from the log.
- No failure ends a pump or keeps a search waiting: what cannot be indexed is left out and logged, `failed` says so.
- Threads work on a view that the loop took for them, and `close` waits for them.
- With an embedder its vectors' size is the index's: a caller's vector of another size gives way to the embedder's.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from memos_drivers.embed.client import EmbedClient, Encoded
from memos_drivers.plaintext.dense import Int8, quantised
from memos_drivers.plaintext.documents import Document
from memos_drivers.plaintext.index import PlaintextIndex
from memos_drivers.plaintext.searching import TokensOf
from memos_drivers.plaintext.sequences import Place, place_of
from memos_syscalls.errors import MemAgain, MemError, MemModel, MemNoModel, MemShredded

from . import events as ev
from . import lifecycle
from .decide import NewPayload
from .events import Damaged, Record
from .state import Cube, View
from .tokenrows import Key
from .vault import Opened, SealedContent, Vault

if TYPE_CHECKING:
    from .decide import Decision, Draft
    from .private import Private
    from .segments import Segments

log_ = logging.getLogger("memos.index")

OPS_PER_SLICE: Final = 2048
OPS_BEHIND_MAX: Final = 32_768
HELD_BYTES_MAX: Final = 32 << 20
"""Contents that the queue keeps; what comes on top is opened again when its turn comes."""
TEXT_CHARS_MAX: Final = 32_768
"""Characters of a content that are indexed; the rest is found through them."""
TEXT_BYTES_MAX: Final = 4 * TEXT_CHARS_MAX
"""No text of that many characters is longer."""
LULL_SECONDS: Final = 0.003
LAG_SECONDS_MAX: Final = 1.0
RETRY_SECONDS: Final = 5.0
EMBED_BATCH: Final = 32
FORK_SLICE: Final = 256
DENSE_PATIENCE_SECONDS: Final = 0.5
LEXICAL_PATIENCE_SECONDS: Final = 0.25

Op = tuple[str, int, Any]
"""`(kind, seq, argument)`: add a document, set a cube's live version, remove cubes, copy a fork's documents."""


class Fresh(NamedTuple):
    """What the index needs of a version that was just written, while it is still at hand."""

    text: bytes | None
    """The content's beginning; None when it is not indexed."""
    tags: tuple[str, ...]
    valid_from: int | None
    valid_to: int | None
    embedding: bytes | None
    place: Place | None

    @property
    def size(self) -> int:
        return len(self.text or b"") + len(self.embedding or b"") + sum(map(len, self.tags)) + 256


def text_of(beginning: bytes) -> str:
    """What is indexed of a content that begins so."""
    return beginning.decode(errors="ignore")[:TEXT_CHARS_MAX]


def indexed(private: Private) -> bool:
    """Whether a version is in the index at all: bytes are not, and compositions are found through their members."""
    return private.encoding == "text" and (private.recipe or {}).get("method") != "compose"


def document_of(cube: Cube, opened: Opened) -> Document | None:
    """What the index holds of a version; None when it holds nothing."""
    private = opened.private
    if not indexed(private):
        return None
    return Document(
        cube.cube_id, opened.version.version, opened.version.seq, cube.namespace,
        text_of(opened.content[:TEXT_BYTES_MAX]),
        tuple(private.tags), private.valid_from, private.valid_to, place_of(private.metadata),
    )  # fmt: skip


def rows_of(vectors: Sequence[tuple[Key, Any]]) -> tuple[list[Key], list[Int8]]:
    """Vectors as the index keeps them, and whose they are; one that has no direction is left out."""
    keys: list[Key] = []
    rows: list[Int8] = []
    for key, vector in vectors:
        try:
            rows.append(quantised(vector))
            keys.append(key)
        except MemError as error:
            log_.warning("a vector of cube %s is left out: %s", key[0].hex(), error.detail)
    return keys, rows


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
        self.reranker: EmbedClient | None = None
        self.lexical_seq = -1
        self.offered_seq = -1
        self.embed_error: MemError | None = None
        self._vault = vault
        self._segments = segments
        self._view = view
        self._ops: deque[Op] = deque()
        self._held_bytes = 0
        """Size of what is at hand in the queue."""
        self._threads: set[asyncio.Future[Any]] = set()
        self._failed: str | None = None
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
                return [("add", seq, (cube_id, version, self._at_hand(draft)))]
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

    def _at_hand(self, draft: Draft | None) -> Fresh | None:
        """What the index needs of a fresh version, unless the queue holds so much already that it is better opened again
        when its turn comes."""
        if draft is None or draft.private is None or self._held_bytes > HELD_BYTES_MAX:
            return None
        for field in draft.fields:
            if type(field) is NewPayload and not isinstance(field.content, SealedContent):
                private = draft.private
                text = bytes(field.content[:TEXT_BYTES_MAX]) if indexed(private) else None
                fresh = Fresh(
                    text, tuple(private.tags), private.valid_from, private.valid_to, private.embedding,
                    place_of(private.metadata),
                )  # fmt: skip
                self._held_bytes += fresh.size
                return fresh
        return None

    def _take(self) -> list[Op]:
        """The next slice of the queue."""
        ops = [self._ops.popleft() for _ in range(min(OPS_PER_SLICE, len(self._ops)))]
        self._held_bytes -= sum(fresh.size for kind, _seq, op in ops if kind == "add" and (fresh := op[2]) is not None)
        return ops

    def shredded(
        self, cube_ids: list[bytes], heirs: dict[bytes, int], noted: int | None = None
    ) -> Callable[[], None]:
        """Forget erased cubes, and what forks inherited from them; returns the disk work that blinds the segments which
        list either, for the flusher."""
        self._ops.append(("remove", self.offered_seq, [*cube_ids, *heirs]))
        view = self._view()
        for fork_id, newest in heirs.items():
            fork = view.cube(fork_id)
            for version in range(newest + 1, fork.version + 1 if fork is not None else 0):
                found = view.version(fork, version) if fork is not None else None
                if found is not None:
                    self._ops.append(("add", found[0].seq, (fork_id, version, None)))
        self._wake.set()

        def blind() -> None:
            self._segments.blind(cube_ids, heirs)
            if noted is not None:
                self._segments.blinded(noted)

        return blind

    # -- failing -----------------------------------------------------------------------------------------------------

    @property
    def failed(self) -> str | None:
        """What went wrong last with the indexes, for statistics; None when they are whole and stored."""
        return self._failed or self._segments.failed

    def _note(self, what: str, error: Exception) -> None:
        self._failed = f"{what} failed: {error}"
        log_.error("%s", self._failed, exc_info=None if isinstance(error, (Damaged, MemError, OSError)) else error)

    async def in_thread(self, work: Callable[..., Any], *args: Any) -> Any:
        """Work on the indexes in a thread; `close` waits for it even when the caller was cancelled."""
        if self._closed:
            raise MemAgain("the kernel is stopping")
        future = asyncio.get_running_loop().run_in_executor(None, work, *args)
        self._threads.add(future)
        future.add_done_callback(self._threads.discard)
        return await asyncio.shield(future)

    async def _work(self, what: str, work: Callable[[View], Any]) -> bool:
        """Work of a pump on a view of now; False when it failed, which is noted."""
        try:
            await self.in_thread(work, self._view())
        except Exception as error:
            self._note(what, error)
            return False
        return True

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
        else:
            await self._learn_size(embed)

    async def _learn_size(self, embed: EmbedClient) -> None:
        """The embedder's size is the index's, from the moment it is known."""
        if embed.info is not None and embed.info.dims != self.index.fixed_dims:
            await self.in_thread(self.index.fix_dims, embed.info.dims)
            self._wake_dense.set()

    async def _pump(self, head_seq: int) -> None:
        await self._work("loading the indexes", lambda view: self._segments.load(self.index, view))
        self.loaded = True
        self._advance(head_seq)
        self._wake_dense.set()
        rebuild_at = 0.0
        while True:
            while self._ops:
                await self._lull()
                ops = self._take()
                target = self.offered_seq if not self._ops else max(self.lexical_seq, ops[-1][1] - 1)
                await self._work("indexing", functools.partial(self._apply_in_thread, ops))
                self._advance(target)
                self._wake_dense.set()
            self._advance(self.offered_seq)
            if self.index.needs_rebuild and rebuild_at <= asyncio.get_running_loop().time():
                await self._work("building the index again", self._rebuild_in_thread)
                rebuild_at = asyncio.get_running_loop().time() + RETRY_SECONDS
                self._wake_dense.set()
            if self._segments.due:
                await self._work("storing the indexes", lambda view: self._segments.seal(self.index, view))
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

    def _rebuild_in_thread(self, view: View) -> None:
        """A new index without the traces that removed documents leave in the old one."""
        fresh = PlaintextIndex(self.index.fixed_dims)
        self._segments.load(fresh, view)
        # A search may still use the old one: the last reference closes it.
        self.index = fresh
        self._failed = None

    def _apply_in_thread(self, ops: list[Op], view: View) -> None:
        """Apply a slice; when something in it fails, all that does not."""
        try:
            self._apply(ops, view)
        except Exception as error:
            if len(ops) > 1:
                for op in ops:
                    self._apply_in_thread([op], view)
                return
            self._note(f"indexing what record {ops[0][1]} changed", error)
            self._segments.hold(ops[0][1])

    def _apply(self, ops: list[Op], view: View) -> None:
        fresh: list[Document] = []
        vectors: list[tuple[Key, bytes]] = []
        touched: dict[bytes, None] = {}

        def flush() -> None:
            self.index.add(fresh)
            self._segments.added([(d.cube_id, d.version) for d in fresh])
            fresh.clear()
            self._set_vectors(view, self.index, [(key, np.frombuffer(raw, "<f4")) for key, raw in vectors])
            vectors.clear()
            for cube_id in touched:
                cube = view.cube(cube_id)
                self.index.set_live(cube_id, None if cube is None else live_version(cube))
            touched.clear()

        for kind, seq, argument in ops:
            if kind == "add":
                cube_id, version, at_hand = argument
                touched[cube_id] = None
                document, raw = self._document(view, seq, cube_id, version, at_hand)
                if document is not None:
                    fresh.append(document)
                    if raw is not None:
                        vectors.append(((cube_id, version), raw))
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
        self, view: View, seq: int, cube_id: bytes, version: int, fresh: Fresh | None
    ) -> tuple[Document | None, bytes | None]:
        """A version's document and the vector that came with it; nothing for what is erased or damaged."""
        cube = view.cube(cube_id)
        if cube is None or cube.state == lifecycle.SHREDDED:
            return None, None
        if fresh is None:
            try:
                opened = self._vault.open(view, cube, version)
            except MemShredded:
                return None, None
            except (Damaged, OSError) as error:
                self._left_out(seq, cube_id, error)
                return None, None
            if opened is None:
                self._left_out(seq, cube_id, Damaged(f"there is no version {version}"))
                return None, None
            return document_of(cube, opened), opened.private.embedding
        if fresh.text is None:
            return None, None
        text, namespace = text_of(fresh.text), cube.namespace
        return Document(
            cube_id, version, seq, namespace, text, fresh.tags, fresh.valid_from, fresh.valid_to, fresh.place
        ), fresh.embedding

    def _left_out(self, seq: int, cube_id: bytes, error: Exception) -> None:
        self._failed = f"a document was left out: {error}"
        self._segments.left_out(cube_id, error)
        if isinstance(error, OSError) and seq >= 0:
            self._segments.hold(seq)

    def _copy_fork(self, view: View, seq: int, target: str) -> None:
        fresh: list[Document] = []
        vectors: list[tuple[Key, Any]] = []
        for cube_id in view.cubes_below(target):
            cube = view.cube(cube_id)
            if cube is None or cube.created_seq != seq or cube.forked_from is None:
                continue
            version = cube.forked_from[1]
            document, raw = self._document(view, seq, cube_id, version, None)
            if document is None:
                continue
            fresh.append(document._replace(cube_id=cube_id, seq=seq))
            vector = self._segments.vector(view, cube.forked_from[0], version)
            if vector is None and raw is not None:
                vector = np.frombuffer(raw, "<f4")
            if vector is not None:
                vectors.append(((cube_id, version), vector))
            if len(fresh) >= FORK_SLICE:
                self._add_fork(view, fresh, vectors)
        self._add_fork(view, fresh, vectors)

    def _add_fork(self, view: View, fresh: list[Document], vectors: list[tuple[Key, Any]]) -> None:
        self.index.add(fresh)
        self._segments.added([(d.cube_id, d.version) for d in fresh])
        for document in fresh:
            cube = view.cube(document.cube_id)
            self.index.set_live(document.cube_id, None if cube is None else live_version(cube))
        self._set_vectors(view, self.index, vectors)
        fresh.clear()
        vectors.clear()

    def _revive(self, view: View, seq: int) -> None:
        for cube_id in self._segments.merged_sources(view, seq):
            cube = view.cube(cube_id)
            if cube is not None:
                self.index.set_live(cube_id, live_version(cube))

    def _set_vectors(self, view: View, index: PlaintextIndex, vectors: Sequence[tuple[Key, Any]]) -> set[Key]:
        """Give documents their vectors; which took one."""
        taken = index.set_vectors(*rows_of(vectors))
        self._segments.keep_vectors(view, index, taken)
        return set(taken)

    async def _pump_dense(self) -> None:
        """Give every document a vector, newest state first, in small batches."""
        while self.embed is not None:
            await self._wake_dense.wait()
            self._wake_dense.clear()
            try:
                while self.loaded and await self._embed_some(self.embed):
                    self.embed_error = None
                continue
            except MemNoModel as error:
                self.embed_error = error
                return
            except MemError as error:
                self.embed_error = error
            except Exception as error:
                self._note("giving documents their vectors", error)
            await asyncio.sleep(RETRY_SECONDS)
            self._wake_dense.set()

    async def _embed_some(self, embed: EmbedClient) -> bool:
        """One batch; False when no document waits for a vector."""
        index = self.index
        missing = index.missing_vectors(EMBED_BATCH)
        if not missing:
            return False
        texts, keys = await self.in_thread(self._texts_in_thread, self._view(), index, missing)
        if keys:
            found = await embed.encode(texts)
            await self._learn_size(embed)
            if embed.info is not None and (size := len(found[0].vector)) != embed.info.dims:
                raise MemModel(f"the embedder made vectors of {size} numbers instead of {embed.info.dims}")
            await self.in_thread(self._vectors_in_thread, self._view(), index, keys, found)
        return True

    def _texts_in_thread(
        self, view: View, index: PlaintextIndex, missing: list[tuple[bytes, int]]
    ) -> tuple[list[str], list[tuple[bytes, int]]]:
        """What is to be embedded of these: vectors that are stored are taken from there."""
        texts: list[str] = []
        keys: list[tuple[bytes, int]] = []
        for cube_id, version in missing:
            vector = self._segments.vector(view, cube_id, version)
            if vector is not None and index.set_vector(cube_id, version, vector):
                continue
            document, _raw = self._document(view, -1, cube_id, version, None)
            if document is not None:
                texts.append(document.text)
                keys.append((cube_id, version))
            else:
                index.give_up_vector(cube_id, version)
        return texts, keys

    def _vectors_in_thread(
        self, view: View, index: PlaintextIndex, keys: list[tuple[bytes, int]], found: list[Encoded]
    ) -> None:
        # The tokens first: a document that has its vector is not asked for again.
        self._segments.keep_tokens(
            view, [(*key, one.tokens.rows) for key, one in zip(keys, found, strict=True) if one.tokens is not None]
        )
        taken = self._set_vectors(view, index, [(key, one.vector) for key, one in zip(keys, found, strict=True)])
        for key in keys:
            if key not in taken:
                # Or it would be asked for again and again.
                index.give_up_vector(*key)

    def tokens_of(self, view: View) -> TokensOf:
        """Where a search on this view finds tokens."""
        return functools.partial(self._segments.tokens.read, view)

    async def close(self) -> None:
        """Stop the pumps, wait for what their threads do, and store what is not stored yet."""
        for task in self._tasks:
            task.cancel()
        for result in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(result, Exception):
                log_.error("an index pump failed: %s", result)
        await self._threads_done()
        if self.loaded and not self._ops:
            await self._work("storing the indexes", lambda view: self._segments.seal(self.index, view, True))
        self._closed = True
        await self._threads_done()
        for model in (self.embed, self.reranker):
            if model is not None:
                await model.close()
        self.index.close()

    async def _threads_done(self) -> None:
        while self._threads:
            await asyncio.gather(*self._threads, return_exceptions=True)
