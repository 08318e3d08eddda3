"""check="conflict": what a new content repeats or contradicts, found before its write is decided.

    read the text → search its namespace and below → compare → decide, unless a cube that counts has changed meanwhile

- Candidates are live texts that the caller may read; nothing else influences what is found. The search is the ordinary one,
  by meaning and words, and by words again for each fact that the text states. Who says it is the cube's `speaker`.
- Of two that exclude each other the newer by event time (`valid_from`, else when its content was written) supersedes the
  other, which may be the new one. That pair is recorded with the write; duplicates are told, and recorded nowhere: that two
  cubes say the same would outlive the erasure of one.
- Checked writes to one root namespace take turns, so that each sees the one before. One that finds its candidates changed when
  it comes to the decision looks again, `TRIES` times at most.
- Who does not ask for a check pays nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from weakref import WeakValueDictionary

from memos_drivers.embed.client import Priority
from memos_drivers.plaintext.conflict import Reading, compare, cues, read
from memos_drivers.plaintext.searching import SearchQuery
from memos_syscalls import limits
from memos_syscalls import messages as m
from memos_syscalls.errors import MemCanceled, MemConflict, MemError

from .commit import damaged
from .events import Damaged
from .finding import visible
from .governance import Access
from .longreads import LongReads
from .reads import present
from .state import Cube, View
from .supersession import Checked, Of, named

if TYPE_CHECKING:
    from .dispatch import Kernel
    from .writes import Write

log_ = logging.getLogger("memos.kernel")

CANDIDATES: Final = 20
CUES_MAX: Final = 4
QUERY_CHARS: Final = 2000
TRIES: Final = 4
SPEAKER: Final = "speaker"
"""Key of the metadata that says who speaks."""


class New(NamedTuple):
    """What is about to be written."""

    reading: Reading
    namespace: str
    cube_id: bytes | None
    """Of a write: the cube, which does not contradict itself."""
    since: int
    """From when on it holds in the world, ns."""


def check(kernel: Kernel, write: Write) -> None:
    """Begin a checked write; it is decided like any other when the check is over."""
    kernel.checks.submit(write)


class Checks:
    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._line = LongReads(kernel.spawn)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def submit(self, write: Write) -> None:
        if sum(map(len, write.contents)) > limits.CHECK_BYTES_MAX:
            self._kernel.admit(write)
        else:
            self._line.submit(write.turn, lambda: self._checked(write))

    async def _checked(self, write: Write) -> None:
        """Check, then let the write into the line, again if need be; over when the call is."""
        kernel, turn = self._kernel, write.turn
        over: asyncio.Future[None] = kernel.loop.create_future()
        turn.after = lambda: None if over.done() else over.set_result(None)
        try:
            async with self._turn_of(self._namespace(write)):
                for _ in range(TRIES):
                    write.checked = await self._found(write)
                    turn.also = {"duplicates": named(list(write.checked.duplicates))} if write.checked.duplicates else {}
                    changed: asyncio.Future[None] = kernel.loop.create_future()
                    write.check_again = _settle(changed)
                    kernel.admit(write)
                    await asyncio.wait((over, changed), return_when=asyncio.FIRST_COMPLETED)
                    if over.done():
                        return
                turn.fail(MemConflict("cubes that say the same or the opposite kept changing", "Try again."))
        except MemError as error:
            turn.fail(error)
        except Damaged as error:
            turn.fail(damaged(error))
        except asyncio.CancelledError:
            turn.fail(MemCanceled("the call was cancelled"))
            raise
        except Exception as error:
            kernel.unexpected(turn, error)

    def _turn_of(self, namespace: str) -> asyncio.Lock:
        root = namespace.partition("/")[0]
        lock = self._turns.get(root)
        if lock is None:
            lock = self._turns[root] = asyncio.Lock()
        return lock

    def _namespace(self, write: Write) -> str:
        access = Access(self._kernel.tables, write.turn.peer.caller)
        if isinstance(write.request, m.MemWrite):
            return access.cube(write.request.cube_id).namespace
        return access.target(write.request.namespace)

    async def _found(self, write: Write) -> Checked:
        """What the content of a write repeats and contradicts now."""
        kernel = self._kernel
        effects = kernel.effects
        # Its own earlier writes, and those of whoever had the turn before it, are durable: they are to be seen.
        await effects.wait_lexical(kernel.durable.seq if effects.loaded else max(kernel.opened_at, kernel.durable.seq))
        view = kernel.frozen_view()
        new, text = await effects.in_thread(self._read_in_thread, view, write)
        scope = view.namespace(new.namespace)
        if scope is None or not (new.reading.said or new.reading.claims):
            return Checked()
        vector: Any = None
        if effects.embed is not None:
            try:
                vector = (await effects.embed.embed([text[:QUERY_CHARS]], Priority.QUERY))[0]
            except MemError as error:
                log_.info("a check for conflicts goes by words alone: %s", error)
        readable = visible(view, Access(view, write.turn.peer.caller), present(kernel), form="plaintext")

        def candidate(cube_id: bytes, version: int) -> bool:
            return cube_id != new.cube_id and readable(cube_id, version)

        queries = [SearchQuery(text=text[:QUERY_CHARS], vector=vector, k=CANDIDATES, scopes=[new.namespace])]
        queries += [
            SearchQuery(text=words, k=CANDIDATES, mode="lexical", scopes=[new.namespace])
            for words in cues(new.reading)[:CUES_MAX]
        ]
        keys: dict[Of, None] = {}
        for query in queries:
            hits = await effects.in_thread(effects.index.search, query, candidate)
            keys |= {(hit.cube_id, hit.version): None for hit in hits}
        checked: Checked = await effects.in_thread(self._compare_in_thread, view, new, list(keys))
        return checked

    def _read_in_thread(self, view: View, write: Write) -> tuple[New, str]:
        """The new content, read, and what is known of it from the version before."""
        kernel, request = self._kernel, write.request
        text = bytes(write.contents[0]).decode(errors="ignore") if write.contents else ""
        metadata, since, cube_id = request.metadata, request.valid_from, None
        if isinstance(request, m.MemWrite):
            cube = Access(view, write.turn.peer.caller).cube(request.cube_id)
            cube_id, old = cube.cube_id, kernel.vault.private(view, cube, cube.version)
            if old is not None:
                metadata = metadata if "metadata" in request.model_fields_set else old.metadata
                since = since if "valid_from" in request.model_fields_set else old.valid_from
            namespace = cube.namespace
        else:
            namespace = request.namespace
        since = kernel.clock.now() if since is None else since
        return New(read(text, _speaker(metadata)), namespace, cube_id, since), text

    def _compare_in_thread(self, view: View, new: New, keys: list[Of]) -> Checked:
        older: list[Of] = []
        newer: list[Of] = []
        duplicates: list[Of] = []
        for cube_id, version in keys:
            cube = view.cube(cube_id)
            found = None if cube is None else view.version(cube, version)
            if cube is None or found is None or found[0].payload_bytes > limits.CHECK_BYTES_MAX:
                continue
            try:
                opened = self._kernel.vault.open(view, cube, version)
            except (MemError, Damaged) as error:
                # Erased meanwhile, or damaged: a search leaves it out, too.
                log_.info("a check for conflicts leaves out cube %s: %s", cube_id.hex(), error)
                continue
            if opened is None or opened.private.encoding != "text":
                continue
            verdict = compare(new.reading, read(opened.content.decode(), _speaker(opened.private.metadata)))
            if verdict == "duplicate":
                duplicates.append((cube_id, version))
            elif verdict == "contradiction":
                since = opened.private.valid_from
                since = _written(view, cube, version) if since is None else since
                (older if since <= new.since else newer).append((cube_id, version))
        return Checked(tuple(older), tuple(newer), tuple(duplicates))


def _written(view: View, cube: Cube, version: int) -> int:
    """When the content of a version was first written: a write to the header alone does not make a fact newer."""
    row = view.version(cube, version)
    assert row is not None, "it was just opened"
    while version > 1 and (before := view.version(cube, version - 1)) is not None:
        if before[0].payload_id != row[0].payload_id:
            break
        row, version = before, version - 1
    return row[0].time


def _speaker(metadata: dict[str, Any] | None) -> str:
    said = (metadata or {}).get(SPEAKER)
    return said if isinstance(said, str) else ""


def _settle(future: asyncio.Future[None]) -> Callable[[], None]:
    return lambda: None if future.done() else future.set_result(None)
