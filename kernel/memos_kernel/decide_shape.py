"""Decisions that relate cubes: compose, fuse, fork. The rules of decide.py hold here too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from memos_drivers.plaintext.fuse_text import FusedText, Source
from memos_syscalls import limits
from memos_syscalls.errors import MemExists, MemInvalid, MemTooLarge

from . import events as ev
from . import lifecycle
from .decide import Call, Decision, Draft, live_cube, new_cube, several, version_of
from .decide_migrate import Fusion, check_sources, decide_product, still_readable
from .governance import Access, hidden, text_id
from .private import Private
from .reducer import fork_of
from .state import CONTENT, Cube, Tables

Strategy = Callable[[list[Source], Mapping[str, Any]], FusedText]
"""A text fusion by rule: sources in order, and the settings that its recipe names, → the fused text."""


def distinct(access: Access, call: Call, texts: Iterable[str]) -> list[Cube]:
    """The named cubes, in order, each once."""
    texts = list(texts)
    if len(set(texts)) != len(texts):
        raise MemInvalid("cube_ids names a cube twice")
    return [live_cube(access, text, call.now) for text in texts]


class Measure(NamedTuple):
    """How much a member of a composition reads as."""

    bytes: int
    leaves: int
    depth: int
    text: bool


def measure(private: Private, payload_bytes: int) -> Measure:
    recipe = private.recipe or {}
    if recipe.get("method") == "compose":
        return Measure(recipe["bytes"], recipe["leaves"], recipe["depth"], private.encoding == "text")
    return Measure(payload_bytes, 1, 0, private.encoding == "text")


def composition(members: list[Measure]) -> tuple[dict[str, Any], str]:
    """`(recipe, encoding)` of a composition; refuses one that could not be read."""
    size = sum(member.bytes for member in members) + len(members) - 1
    leaves, depth = sum(member.leaves for member in members), 1 + max(member.depth for member in members)
    if size > limits.COMPOSED_BYTES_MAX or leaves > limits.COMPOSED_LEAVES_MAX or depth > limits.COMPOSED_DEPTH_MAX:
        raise MemTooLarge(
            f"the composition would read as {size} bytes of {leaves} cubes, {depth} deep; the limits are "
            f"{limits.COMPOSED_BYTES_MAX}, {limits.COMPOSED_LEAVES_MAX} and {limits.COMPOSED_DEPTH_MAX}",
            "Compose fewer or smaller cubes.",
        )
    recipe = {"method": "compose", "bytes": size, "leaves": leaves, "depth": depth}
    return recipe, "text" if all(member.text for member in members) else "bytes"


def decide_compose(tables: Tables, call: Call) -> Decision:
    access, request = Access(tables, call.caller), call.request
    members = distinct(access, call, request.cube_ids)
    access.target(request.namespace)
    if (forms := {cube.form for cube in members}) != {"plaintext"}:
        return _compose_caches(call, members, forms)
    measures = [
        measure(call.opener.private(cube, cube.version), version_of(tables, cube, cube.version).payload_bytes)
        for cube in members
    ]
    recipe, encoding = composition(measures)
    private = Private(
        call.args_hash, name=request.name, origin="fusion", recipe=recipe, note=request.actor_note, encoding=encoding
    )
    lineage = [(cube.cube_id, cube.version, CONTENT) for cube in members]
    return Decision([new_cube(call, request.namespace, b"", private, lineage=lineage)[1]])


def _compose_caches(call: Call, members: list[Cube], forms: set[str]) -> Decision:
    """A composition of KV caches: what the model continues from, one behind the other; it cannot be read as text."""
    if forms != {"activation"}:
        raise MemInvalid(
            f"a composition has members of one form, not {' and '.join(sorted(forms))}",
            "Attach texts and caches side by side with mem_infer.",
        )
    request = call.request
    measures = [measure(call.opener.private(cube, cube.version), 0) for cube in members]
    leaves, depth = sum(member.leaves for member in measures), 1 + max(member.depth for member in measures)
    if leaves > limits.ATTACHED_CUBES_MAX or depth > limits.COMPOSED_DEPTH_MAX:
        raise MemTooLarge(
            f"the composition would stand for {leaves} caches, {depth} deep; the limits are {limits.ATTACHED_CUBES_MAX} and "
            f"{limits.COMPOSED_DEPTH_MAX}", 'Compose fewer, or fuse some: mem_fuse(strategy="kv").',
        )  # fmt: skip
    recipe = {"method": "compose", "bytes": 0, "leaves": leaves, "depth": depth}
    private = Private(
        call.args_hash, name=request.name, origin="fusion", recipe=recipe, note=request.actor_note, encoding="bytes"
    )
    lineage = [(cube.cube_id, cube.version, CONTENT) for cube in members]
    return Decision([new_cube(call, request.namespace, b"", private, lineage=lineage, form="activation")[1]])


def whole_content(tables: Tables, call: Call, cube: Cube, version: int, access: Access | None) -> bytes:
    """A version's content; a composition's is its members', joined by newlines. With `access`, members that its caller
    may not read are refused like cubes that are not there."""
    if (call.opener.private(cube, version).recipe or {}).get("method") != "compose":
        return call.opener.content(cube, version)
    parts: list[bytes] = []
    for source_id, at, _role in version_of(tables, cube, version).lineage:
        source = tables.cube(source_id)
        if source is None or (access is not None and not access.sees(source.namespace)):
            raise hidden(call.caller, f"member of composition {text_id(cube.cube_id)}")
        parts.append(whole_content(tables, call, source, at, access))
    return b"\n".join(parts)


def fuse_source(tables: Tables, call: Call, cube: Cube, version: int, access: Access | None) -> Source:
    private = call.opener.private(cube, version)
    if private.encoding != "text":
        raise MemInvalid(f"cube {text_id(cube.cube_id)} holds bytes; only text can be fused")
    content = whole_content(tables, call, cube, version, access)
    return Source(text_id(cube.cube_id), version, content.decode(), private.valid_from, private.name, cube.created_time)


def fused_bytes(fused: FusedText) -> bytes:
    content = fused.text.encode()
    if len(content) > limits.PAYLOAD_CHUNK_BYTES:
        raise MemTooLarge(f"the fused text has {len(content)} bytes; the limit is {limits.PAYLOAD_CHUNK_BYTES}")
    return content


def merge_tags(privates: list[Private]) -> list[str]:
    return list(dict.fromkeys(tag for private in privates for tag in private.tags))[: limits.TAGS_MAX]


def _name(params: dict[str, Any] | None) -> str | None:
    given = dict(params or {})
    name = given.pop("name", None)
    if given or not (name is None or (isinstance(name, str) and 0 < len(name) <= limits.NAME_CHARS_MAX)):
        raise MemInvalid("params knows one key, name: a text of at most 512 characters")
    return name


def decide_fuse(strategies: dict[str, Strategy]) -> Callable[[Tables, Call], Decision]:
    def decide(tables: Tables, call: Call) -> Decision:
        if call.product is not None and not isinstance(call.product, Fusion):
            return decide_product(tables, call)
        access, request = Access(tables, call.caller), call.request
        cubes = distinct(access, call, request.cube_ids)
        several(cubes)
        for cube in cubes:
            lifecycle.require(text_id(cube.cube_id), cube.state, "merge")
        namespace = access.target(request.namespace or cubes[0].namespace)
        if isinstance(product := call.product, Fusion):
            check_sources(tables, access, call, product.sources)
            for source_id, at in product.through:
                still_readable(access, call, source_id, at)
            name, recipe, content = product.name, product.recipe, call.contents[0]
        else:
            name, recipe = _name(request.params), {"method": "fuse", "strategy": request.strategy}
            sources = [fuse_source(tables, call, cube, cube.version, access) for cube in cubes]
            content = fused_bytes(strategies[request.strategy](sources, {}))
        privates = [call.opener.private(cube, cube.version) for cube in cubes]
        private = Private(
            call.args_hash, name=name, origin="fusion", note=request.actor_note, tags=merge_tags(privates),
            valid_from=min((p.valid_from for p in privates if p.valid_from is not None), default=None), recipe=recipe,
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
            if count > limits.FORK_CUBES_MAX:
                raise MemTooLarge(f"namespace {source} has more than {limits.FORK_CUBES_MAX} cubes", "Fork a part of it.")
    return Decision([Draft(ev.FORKED, [source, request.to, at, count, call.args_hash])], request.actor_note)
