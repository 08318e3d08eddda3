"""The decision of a shred: what it takes with it, and what is made again without it. The rules of decide.py hold here too.

A shred erases the target and every cube that read it, directly or not, in either role, also by way of a fork that
shares its content. With `cascade="rebuild"` a cube that a deterministic recipe made (fuse, compose), and that nobody
wrote to since, gets a successor in the same record: a new id, a new key, the recipe less the erased sources.

An adapter's successor is empty: a version without content, whose recipe says `pending`, until a job has trained it on the
texts that are left. So is that of a fusion of adapters: it is distilled from what its parents were distilled from. What was
trained elsewhere, or holds such a part, has no texts and no successor.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from memos_drivers.plaintext.fuse_text import Source
from memos_syscalls import limits
from memos_syscalls import messages as m
from memos_syscalls.errors import MemConflict, MemError, MemFrozen, MemInvalid

from . import events as ev
from . import lifecycle
from .decide import DECISIONS, Call, Decision, Draft, new_cube, version_of
from .decide_migrate import decide_product
from .decide_shape import (
    Measure,
    Strategy,
    composition,
    decide_compose,
    decide_fork,
    decide_fuse,
    fuse_source,
    fused_bytes,
    measure,
    merge_tags,
    whole_content,
)  # fmt: skip
from .events import Damaged, Slot
from .governance import Access, text_id
from .header import over
from .private import Private
from .reducer import shred_targets
from .state import CONTENT, Cube, Tables

SMALL_BYTES: Final = 1024
"""What a cube's header adds to a record, about."""


class Made(NamedTuple):
    """A successor. `whole` gives what it reads as: a composition stores nothing of its own."""

    new_id: bytes
    draft: Draft
    private: Private
    measure: Measure
    whole: Callable[[], bytes]
    stored: int
    """Bytes that it adds to the record, about."""


class Erasure:
    """The cubes that a shred erases, and the keys that die with them."""

    def __init__(self, tables: Tables, roots: list[Cube]) -> None:
        self._tables = tables
        self.roots = roots
        self.erased = {cube.cube_id: cube for cube in roots}
        self.derived = self._closure()
        """Cubes made from the roots; sources before what was made from them."""
        self.dead = {cube.slot for cube in self.erased.values() if cube.slot is not None}

    def _closure(self) -> list[Cube]:
        found: list[Cube] = []
        queue = list(self.roots)
        while queue:
            source = queue.pop()
            for cube_id in self._readers(source):
                cube = self._tables.cube(cube_id)
                if cube is not None and cube_id not in self.erased and cube.state != lifecycle.SHREDDED:
                    self.erased[cube_id] = cube
                    found.append(cube)
                    queue.append(cube)
        # A derived cube is younger than what it read.
        return sorted(found, key=lambda cube: (cube.created_seq, cube.cube_id))

    def _readers(self, source: Cube) -> set[bytes]:
        """Cubes that read a cube, or a version of one of its forks whose content is under the same key."""
        readers = set(self._tables.derived(source.cube_id))
        if source.slot is not None:
            for fork_id in self._tables.heirs([source.cube_id]):
                readers |= {i for i in self._tables.derived(fork_id) if self._reads_under(i, fork_id, source.slot)}
        return readers

    def _reads_under(self, reader: bytes, fork_id: bytes, slot: Slot) -> bool:
        cube, fork = self._tables.cube(reader), self._tables.cube(fork_id)
        if cube is None or fork is None:
            return False
        for number in range(1, cube.version + 1):
            for source, at, _role in version_of(self._tables, cube, number).lineage:
                if source == fork_id and version_of(self._tables, fork, at).payload_slot == slot:
                    return True
        return False

    def takes(self, cube: Cube, version: int) -> bool:
        """Whether a version's content goes with this erasure."""
        return cube.cube_id in self.erased or version_of(self._tables, cube, version).payload_slot in self.dead


class _Rebuild:
    """Makes successors, in order: those of sources first."""

    def __init__(self, tables: Tables, call: Call, erasure: Erasure, strategies: dict[str, Strategy]) -> None:
        self._tables = tables
        self._call = call
        self._erasure = erasure
        self._strategies = strategies
        self.made: dict[bytes, Made] = {}

    def successor(self, cube: Cube) -> Made | None:
        """The cube that replaces an erased one; None when its recipe cannot be repeated without what is erased, or only by
        running a model."""
        if cube.form == "parametric":
            return self._adapter(cube)
        if cube.form != "plaintext":
            return None
        try:
            private = self._call.opener.private(cube, cube.version)
        except (MemError, Damaged):
            return None
        recipe = private.recipe or {}
        if recipe.get("method") == "compose":
            return self._composition(cube, private)
        return self._fusion(cube, private, recipe) if recipe.get("method") == "fuse" else None

    def _adapter(self, cube: Cube) -> Made | None:
        if lifecycle.effective(cube.state, cube.expires_at, self._call.now) == lifecycle.EXPIRED:
            return None
        try:
            private = self._call.opener.private(cube, cube.version)
            found = self._lesson(cube, cube.version)
        except (MemError, Damaged):
            return None
        if found is None or not found[1]:
            return None
        old, texts = found
        # What was trained says much of what is erased: of the old recipe nothing stays but its settings.
        recipe = {
            "method": "distil", "pending": True, "model_name": old.get("model_name"), "params": old.get("params") or {},
            "on_change": old.get("on_change") or "keep", "leaves": len(texts), "asked": [text_id(source) for source in texts],
        }  # fmt: skip
        private = private._replace(args_hash=self._call.args_hash, note=None, recipe=recipe, embedding=None)
        lineage = [(source, at, CONTENT) for source, at in texts.items()]
        new_id, draft = new_cube(
            self._call, cube.namespace, b"", private, expires_at=cube.expires_at, lineage=lineage, form=cube.form
        )
        return Made(new_id, draft, private, measure(private, 0), lambda: b"", SMALL_BYTES + 64 * len(texts))

    def _lesson(self, cube: Cube, version: int) -> tuple[dict[str, Any], dict[bytes, int]] | None:
        """`(recipe, texts)`: how an adapter was distilled, and what is left of the texts that it was made from, or those that
        were fused into it; None for one that was made in another way."""
        recipe = self._call.opener.private(cube, version).recipe or {}
        lineage = version_of(self._tables, cube, version).lineage
        content = [(source_id, at) for source_id, at, role in lineage if role == CONTENT]
        texts: dict[bytes, int] = {}
        if recipe.get("method") == "distil":
            for source_id, at in content[: int(recipe.get("leaves", 0))]:
                made, source = self.made.get(source_id), self._live(source_id, at)
                if made is not None:
                    texts[made.new_id] = 1
                elif source is not None and not over(source, self._call.now):
                    texts[source_id] = at
            return recipe, texts
        settings: dict[str, Any] | None = None
        for source_id, at in content if recipe.get("method") == "fuse" else ():
            parent = self._tables.cube(source_id)
            if parent is None or parent.state == lifecycle.SHREDDED or parent in self._erasure.roots:
                continue
            if (found := self._lesson(parent, at)) is None:
                return None
            settings = settings or found[0]
            texts.update(found[1])
        return None if settings is None else (settings, texts)

    def _live(self, source_id: bytes, at: int) -> Cube | None:
        """A source that outlives the erasure, content and all."""
        source = self._tables.cube(source_id)
        if source is None or source.state == lifecycle.SHREDDED or self._erasure.takes(source, at):
            return None
        return source if self._call.opener.alive(source, at) else None

    def _composition(self, cube: Cube, private: Private) -> Made | None:
        lineage: list[tuple[bytes, int, int]] = []
        measures: list[Measure] = []
        wholes: list[Callable[[], bytes]] = []
        for source_id, at, role in version_of(self._tables, cube, cube.version).lineage:
            made = self.made.get(source_id)
            if made is not None:
                lineage.append((made.new_id, 1, role))
                measures.append(made.measure)
                wholes.append(made.whole)
            elif (source := self._live(source_id, at)) is not None:
                lineage.append((source_id, at, role))
                size = version_of(self._tables, source, at).payload_bytes
                measures.append(measure(self._call.opener.private(source, at), size))
                wholes.append(functools.partial(whole_content, self._tables, self._call, source, at, None))
        if not lineage:
            return None
        recipe, encoding = composition(measures)
        private = private._replace(args_hash=self._call.args_hash, note=None, recipe=recipe, encoding=encoding)
        new_id, draft = new_cube(self._call, cube.namespace, b"", private, expires_at=cube.expires_at, lineage=lineage)
        return Made(new_id, draft, private, measure(private, 0), lambda: b"\n".join(whole() for whole in wholes), SMALL_BYTES)

    def _fusion(self, cube: Cube, private: Private, recipe: dict[str, Any]) -> Made | None:
        call = self._call
        lineage: list[tuple[bytes, int, int]] = []
        sources: list[Source] = []
        tags: list[Private] = []
        for source_id, at, role in version_of(self._tables, cube, cube.version).lineage:
            made, source = self.made.get(source_id), self._live(source_id, at)
            try:
                if made is not None:
                    text = made.whole().decode()
                    sources.append(Source(text_id(made.new_id), 1, text, made.private.valid_from, made.private.name, call.now))
                    tags.append(made.private)
                elif source is not None:
                    sources.append(fuse_source(self._tables, call, source, at, None))
                    tags.append(call.opener.private(source, at))
                else:
                    continue
            except (MemError, Damaged, UnicodeDecodeError):
                # What cannot be read any more must not hold up the erasure: it is left out.
                continue
            lineage.append((source_id if made is None else made.new_id, at if made is None else 1, role))
        if not lineage:
            return None
        # By rule, whatever made the old one: of its recipe nothing stays but the settings.
        strategy, settings = recipe["strategy"], recipe.get("settings") or {}
        fused = self._strategies[strategy](sources, settings)
        content = fused_bytes(fused)
        anew = {"method": "fuse", "strategy": strategy, **fused.recipe, **({"settings": settings} if settings else {})}
        private = private._replace(
            args_hash=call.args_hash, embedding=None, note=None, tags=merge_tags(tags), recipe=anew,
            valid_from=min((s.valid_from for s in sources if s.valid_from is not None), default=None),
        )  # fmt: skip
        new_id, draft = new_cube(call, cube.namespace, content, private, expires_at=cube.expires_at, lineage=lineage)
        stored = SMALL_BYTES + (len(content) if len(content) <= limits.PAYLOAD_INLINE_BYTES_MAX else 0)
        return Made(new_id, draft, private, measure(private, len(content)), lambda: content, stored)


def _roots(tables: Tables, call: Call) -> tuple[list[Cube], str | None]:
    access, request = Access(tables, call.caller), call.request
    if request.cube_id is not None:
        cube = access.cube(request.cube_id)
        if cube.state == lifecycle.SHREDDED:
            raise lifecycle.refusal(request.cube_id, cube.state, "shred")
        if request.expect_version is not None and request.expect_version != cube.version:
            raise MemConflict(f"cube {request.cube_id} is at version {cube.version}, not {request.expect_version}")
        return [cube], None
    namespace = access.namespace(request.namespace)
    roots = shred_targets(tables, ev.Event(ev.SHREDDED, 1, [namespace, [], [], b""]))
    if not roots:
        raise MemInvalid(f"namespace {namespace} holds nothing that is not erased already")
    return roots, namespace


def decide_shred(strategies: dict[str, Strategy]) -> Callable[[Tables, Call], Decision]:
    def decide(tables: Tables, call: Call) -> Decision:
        request = call.request
        roots, namespace = _roots(tables, call)
        erasure = Erasure(tables, roots)
        derived = erasure.derived
        if derived and request.cascade == "refuse":
            yours = [cube for cube in derived if Access(tables, call.caller).sees(cube.namespace)]
            first = f", first cube {text_id(yours[0].cube_id)}" if yours else ""
            raise MemInvalid(
                f"made from what would be erased: {len(derived)} in number{first}",
                'Shred them first, or pass cascade="rebuild" or "shred".',
            )
        access = Access(tables, call.caller)
        heirs = (tables.cube(fork_id) for fork_id in tables.heirs(erasure.erased))
        for cube in [*roots, *derived, *(fork for fork in heirs if fork is not None)]:
            if cube.state == lifecycle.FROZEN:
                whose = f"cube {text_id(cube.cube_id)}" if access.sees(cube.namespace) else "a cube of somebody else's"
                raise MemFrozen(f"{whose} is frozen and would lose content")
        rebuild = _Rebuild(tables, call, erasure, strategies)
        if request.cascade == "rebuild":
            held = 0
            for cube in derived:
                if len(rebuild.made) >= limits.REBUILD_CUBES_MAX or held > limits.REBUILD_BYTES_MAX:
                    break
                inside = namespace is not None and (cube.namespace + "/").startswith(namespace + "/")
                if not inside and (made := rebuild.successor(cube)) is not None:
                    rebuild.made[cube.cube_id] = made
                    held += made.stored
        named = [cube.cube_id for cube in (derived if namespace is not None else [*roots, *derived])]
        rebuilt = [[old, made.new_id] for old, made in rebuild.made.items()]
        shred = Draft(ev.SHREDDED, [namespace, named, rebuilt, call.args_hash])
        return Decision([*(made.draft for made in rebuild.made.values()), shred], request.actor_note)

    return decide


Decisions = dict[type[m.Request], Callable[[Tables, Call], Decision]]


def decisions(strategies: dict[str, Strategy]) -> Decisions:
    """Every decision by request model, with the driver's fusion strategies plugged in."""
    return {
        **DECISIONS,
        m.MemCompose: decide_compose,
        m.MemFuse: decide_fuse(strategies),
        m.MemFork: decide_fork,
        m.MemShred: decide_shred(strategies),
        m.MemMigrate: decide_product,
    }
