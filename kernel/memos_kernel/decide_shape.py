"""Decisions that relate cubes: compose, fuse, fork, shred. The rules of decide.py hold here too.

A shred erases the target and every cube that read it, directly or not, in either role. With `cascade="rebuild"` a cube
that a deterministic recipe made (fuse, compose), and that nobody wrote to since, gets a successor in the same record:
a new id, a new key, the recipe less the erased sources.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from memos_drivers.plaintext.fuse_text import Source
from memos_syscalls import limits
from memos_syscalls import messages as m
from memos_syscalls.errors import MemExists, MemFrozen, MemInvalid, MemShredded, MemTooLarge

from . import events as ev
from . import lifecycle
from .decide import DECISIONS, Call, Decision, Draft, live_cube, new_cube, version_of
from .governance import Access, text_id
from .private import Private
from .reducer import fork_of, shred_targets
from .state import CONTENT, Cube, Tables

Strategy = Callable[[list[Source]], str]
"""A deterministic text fusion: sources in order → the fused text."""


def distinct(access: Access, call: Call, texts: Iterable[str]) -> list[Cube]:
    """The named cubes, in order, each once."""
    texts = list(texts)
    if len(set(texts)) != len(texts):
        raise MemInvalid("cube_ids names a cube twice")
    return [live_cube(access, text, call.now) for text in texts]


def decide_compose(tables: Tables, call: Call) -> Decision:
    access, request = Access(tables, call.caller), call.request
    members = distinct(access, call, request.cube_ids)
    access.target(request.namespace)
    encodings = {call.opener.private(cube, cube.version).encoding for cube in members}
    private = Private(
        call.args_hash, name=request.name, origin="fusion", recipe={"method": "compose"}, note=request.actor_note,
        encoding="text" if encodings == {"text"} else "bytes",
    )  # fmt: skip
    lineage = [(cube.cube_id, cube.version, CONTENT) for cube in members]
    return Decision([new_cube(call, request.namespace, b"", private, lineage=lineage)[1]])


def whole_content(tables: Tables, call: Call, cube: Cube, version: int) -> bytes:
    """A version's content; a composition's is its members', joined by newlines."""
    if (call.opener.private(cube, version).recipe or {}).get("method") != "compose":
        return call.opener.content(cube, version)
    parts: list[bytes] = []
    for source_id, at, _role in version_of(tables, cube, version).lineage:
        source = tables.cube(source_id)
        if source is None:
            raise MemInvalid(f"a member of composition {text_id(cube.cube_id)} is not there")
        parts.append(whole_content(tables, call, source, at))
    return b"\n".join(parts)


def fuse_source(tables: Tables, call: Call, cube: Cube, version: int, created_at: int) -> Source:
    private = call.opener.private(cube, version)
    if private.encoding != "text":
        raise MemInvalid(f"cube {text_id(cube.cube_id)} holds bytes; only text can be fused")
    content = whole_content(tables, call, cube, version)
    return Source(text_id(cube.cube_id), version, content.decode(), private.valid_from, private.name, created_at)


def _fused(call: Call, strategy: Strategy, sources: list[Source]) -> bytes:
    content = strategy(sources).encode()
    if len(content) > limits.CONTENT_INLINE_BYTES_MAX:
        raise MemTooLarge(f"the fused text has {len(content)} bytes; the limit is {limits.CONTENT_INLINE_BYTES_MAX}")
    return content


def _merge_tags(privates: list[Private]) -> list[str]:
    return list(dict.fromkeys(tag for private in privates for tag in private.tags))[: limits.TAGS_MAX]


def decide_fuse(strategies: dict[str, Strategy]) -> Callable[[Tables, Call], Decision]:
    def decide(tables: Tables, call: Call) -> Decision:
        access, request = Access(tables, call.caller), call.request
        cubes = distinct(access, call, request.cube_ids)
        if len(cubes) < 2:
            raise MemInvalid("fusing takes at least two cubes")
        for cube in cubes:
            if "merge" not in lifecycle.TRANSITIONS[cube.state]:
                raise lifecycle.refusal(text_id(cube.cube_id), cube.state, "merge")
        namespace = access.target(request.namespace or cubes[0].namespace)
        params = dict(request.params or {})
        name = params.pop("name", None)
        if params or not (name is None or (isinstance(name, str) and 0 < len(name) <= limits.NAME_CHARS_MAX)):
            raise MemInvalid("params knows one key, name: a text of at most 512 characters")
        sources = [fuse_source(tables, call, cube, cube.version, cube.created_time) for cube in cubes]
        content = _fused(call, strategies[request.strategy], sources)
        private = Private(
            call.args_hash, name=name, origin="fusion", note=request.actor_note,
            tags=_merge_tags([call.opener.private(cube, cube.version) for cube in cubes]),
            valid_from=min((s.valid_from for s in sources if s.valid_from is not None), default=None),
            recipe={"method": "fuse", "strategy": request.strategy},
        )  # fmt: skip
        lineage = [(cube.cube_id, cube.version, CONTENT) for cube in cubes]
        fused_id, draft = new_cube(call, namespace, content, private, lineage=lineage)
        merged = Draft(ev.MERGED, [fused_id, [[cube.cube_id, cube.version] for cube in cubes]])
        return Decision([draft, merged])

    return decide


def decide_fork(tables: Tables, call: Call) -> Decision:
    access, request = Access(tables, call.caller), call.request
    source = access.namespace(request.namespace)
    access.target(request.to)
    if tables.namespace(request.to) is not None:
        raise MemExists(f"namespace {request.to} exists")
    if request.to.startswith(source + "/"):
        raise MemInvalid("a namespace cannot be forked into itself")
    head = call.seq
    at = head - 1 if request.at_offset is None else request.at_offset
    if at >= head:
        raise MemInvalid(f"at_offset {at} is beyond the head, {head - 1}")
    record = ev.Record(1, head, 0, call.now, call.caller.principal, 0, None, None, ())
    for below in tables.namespaces(source):
        copy = request.to + below.name[len(source) :]
        if len(copy.encode()) > limits.NAMESPACE_BYTES_MAX or copy.count("/") >= limits.NAMESPACE_DEPTH_MAX:
            raise MemInvalid(f"the copy of namespace {below.name} would have too long a name", "Fork to a shorter name.")
    count = 0
    for cube_id in tables.cubes_below(source):
        cube = tables.cube(cube_id)
        if cube is not None and fork_of(tables, cube, at, record) is not None:
            count += 1
    return Decision([Draft(ev.FORKED, [source, request.to, at, count, call.args_hash])], request.actor_note)


def closure(tables: Tables, roots: list[Cube]) -> list[Cube]:
    """Cubes that read one of the roots, directly or not, or a version that a fork inherits from one; sources first."""
    found: dict[bytes, Cube] = {}
    known = {cube.cube_id for cube in roots}
    queue = [cube.cube_id for cube in roots]
    while queue:
        source = queue.pop()
        readers = list(tables.derived(source))
        for fork_id, inherited in tables.heirs([source]).items():
            readers += [cube_id for cube_id in tables.derived(fork_id) if _reads(tables, cube_id, fork_id, inherited)]
        for cube_id in readers:
            if cube_id not in known and (cube := tables.cube(cube_id)) is not None and cube.state != lifecycle.SHREDDED:
                known.add(cube_id)
                found[cube_id] = cube
                queue.append(cube_id)
    # A derived cube is younger than what it read, and ids begin with their time of making.
    return sorted(found.values(), key=lambda cube: (cube.created_seq, cube.cube_id))


def _reads(tables: Tables, cube_id: bytes, source: bytes, newest: int) -> bool:
    """Whether some version of a cube was made from `source` at `newest` or before."""
    cube = tables.cube(cube_id)
    if cube is None:
        return False
    lineages = [version_of(tables, cube, number).lineage for number in range(1, cube.version + 1)]
    return any(of == source and at <= newest for lineage in lineages for of, at, _role in lineage)


def successor(
    tables: Tables, call: Call, cube: Cube, erased: set[bytes], lost: dict[bytes, int],
    made: dict[bytes, tuple[bytes, bytes, Private]], strategies: dict[str, Strategy],
) -> tuple[bytes, Draft, bytes, Private] | None:  # fmt: skip
    """The cube that replaces an erased derived one, or None when its recipe cannot be repeated without the source.

    `made` holds the successors so far: erased id → (new id, what it reads as, private). `lost`: what forks lose, as in
    `View.heirs`.
    """
    version = version_of(tables, cube, cube.version)
    private = call.opener.private(cube, cube.version)
    recipe = private.recipe or {}
    if recipe.get("method") not in ("fuse", "compose"):
        return None
    composing = recipe["method"] == "compose"
    sources: list[Source] = []
    parts: list[bytes] = []
    tags: list[Private] = []
    lineage: list[tuple[bytes, int, int]] = []
    for source_id, at, role in version.lineage:
        if source_id in made:
            new_id, content, new_private = made[source_id]
            lineage.append((new_id, 1, role))
            parts.append(content)
            tags.append(new_private)
            if not composing:
                sources.append(Source(text_id(new_id), 1, content.decode(), new_private.valid_from, new_private.name, call.now))
        elif source_id not in erased and at > lost.get(source_id, 0):
            source = tables.cube(source_id)
            if source is None or source.state == lifecycle.SHREDDED:
                continue
            try:
                # A member whose inherited content is gone is left out.
                part = whole_content(tables, call, source, at)
                tags.append(call.opener.private(source, at))
            except MemShredded:
                continue
            lineage.append((source_id, at, role))
            parts.append(part)
            if not composing:
                sources.append(fuse_source(tables, call, source, at, source.created_time))
    if not lineage:
        return None
    # A composition stores nothing of its own; whoever was made from it needs what it reads as.
    whole = b"\n".join(parts) if composing else _fused(call, strategies[recipe["strategy"]], sources)
    content = b"" if composing else whole
    valid_from = private.valid_from
    if not composing:
        valid_from = min((s.valid_from for s in sources if s.valid_from is not None), default=None)
    private = private._replace(
        args_hash=call.args_hash, valid_from=valid_from, embedding=None, note=None,
        tags=private.tags if composing else _merge_tags(tags),
    )  # fmt: skip
    new_id, draft = new_cube(call, cube.namespace, content, private, expires_at=cube.expires_at, lineage=lineage)
    return new_id, draft, whole, private


def decide_shred(strategies: dict[str, Strategy]) -> Callable[[Tables, Call], Decision]:
    def decide(tables: Tables, call: Call) -> Decision:
        access, request = Access(tables, call.caller), call.request
        if request.cube_id is not None:
            cube = access.cube(request.cube_id)
            if cube.state == lifecycle.SHREDDED:
                raise lifecycle.refusal(request.cube_id, cube.state, "shred")
            roots, namespace = [cube], None
        else:
            namespace = access.namespace(request.namespace)
            roots = shred_targets(tables, ev.Event(ev.SHREDDED, 1, [namespace, [], [], b""]))
            if not roots:
                raise MemInvalid(f"namespace {namespace} holds nothing that is not erased already")
        derived = closure(tables, roots)
        if derived and request.cascade == "refuse":
            raise MemInvalid(
                f"made from what would be erased: {len(derived)} in number, first cube {text_id(derived[0].cube_id)}",
                'Shred them first, or pass cascade="rebuild" or "shred".',
            )
        for cube in [*roots, *derived]:
            if cube.state == lifecycle.FROZEN:
                raise MemFrozen(f"cube {text_id(cube.cube_id)} is frozen and would be erased")
        erased = {cube.cube_id for cube in [*roots, *derived]}
        lost = tables.heirs(erased)
        made: dict[bytes, tuple[bytes, bytes, Private]] = {}
        drafts: list[Draft] = []
        if request.cascade == "rebuild":
            for cube in derived:
                if namespace is not None and (cube.namespace == namespace or cube.namespace.startswith(namespace + "/")):
                    continue
                if (new := successor(tables, call, cube, erased, lost, made, strategies)) is not None:
                    made[cube.cube_id] = (new[0], new[2], new[3])
                    drafts.append(new[1])
        named = [cube.cube_id for cube in [*roots, *derived]] if namespace is None else [cube.cube_id for cube in derived]
        rebuilt = [[old, new[0]] for old, new in made.items()]
        drafts.append(Draft(ev.SHREDDED, [namespace, named, rebuilt, call.args_hash]))
        return Decision(drafts, request.actor_note)

    return decide


def decisions(strategies: dict[str, Strategy]) -> dict[type[m.Request], Callable[[Tables, Call], Decision]]:
    """Every decision by request model, with the driver's fusion strategies plugged in."""
    return {
        **DECISIONS,
        m.MemCompose: decide_compose,
        m.MemFuse: decide_fuse(strategies),
        m.MemFork: decide_fork,
        m.MemShred: decide_shred(strategies),
    }


Decisions = dict[type[m.Request], Callable[[Tables, Call], Decision]]
__all__: Final[list[Any]] = ["Decisions", "Source", "Strategy", "decisions"]
