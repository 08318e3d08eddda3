"""decide: what a mutating syscall would do, as drafts of events, or a refusal.

Rule 1. A decision is a function of `(tables, call)`: the view with everything decided before, the request, the record's
        time, and ids handed in as `fresh`. No clock, no random source, no I/O; what must be read to decide (a source's
        content, say) is opened by an argument.
Rule 2. A refusal is a `MemError` that is deterministic, and leaves the tables as they were.
Rule 3. A decision holds plaintext; `seal` turns it into ciphertext. Nothing else sees both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol

from memos_syscalls import limits
from memos_syscalls import messages as m
from memos_syscalls.errors import MemConflict, MemInvalid, MemNotFound, MemShredded, MemTooLarge

from . import events as ev
from . import lifecycle
from .events import Slot, pack
from .governance import Access, Caller, text_id
from .private import Private
from .state import CONTENT, Cube, Tables, Version
from .supersession import Checked


class Fresh(Protocol):
    """Ids and key slots handed to a decision."""

    def cube_id(self) -> bytes: ...

    def slot(self) -> Slot: ...


class Opener(Protocol):
    """Decrypts versions for a decision, those that are not durable yet included."""

    def private(self, cube: Cube, version: int) -> Private:
        """The private header; raises `MemShredded` when its key is gone."""
        ...

    def content(self, cube: Cube, version: int) -> bytes: ...

    def alive(self, cube: Cube, version: int) -> bool:
        """Whether the keys of a version's private part and content exist."""
        ...


class Call(NamedTuple):
    """One mutating call, decoded and with everything a decision may depend on."""

    request: Any
    caller: Caller
    seq: int
    """Offset of the record to come."""
    now: int
    """Its time."""
    fresh: Fresh
    opener: Opener
    args_hash: bytes
    contents: list[bytes]
    """Contents that travelled with the call: one, or one per item; or the one that a job made."""
    product: Any = None
    """What a job made for the call, but for its content; see decide_migrate."""
    checked: Checked | None = None
    """What a check for conflicts found, if the call asked for one."""


class NewPayload(NamedTuple):
    """Content still to be sealed under a slot's key."""

    content: bytes
    slot: Slot


class Draft(NamedTuple):
    """An event before sealing: a `NewPayload` may stand where the payload goes, `private` is plaintext."""

    name: str
    fields: list[Any]
    private: Private | None = None
    slot: Slot | None = None
    """Key of the private part."""


class Decision(NamedTuple):
    """Drafts of one record. `note` is public: only for shreds and for records without a cube."""

    drafts: list[Draft]
    note: str | None = None


def float32_bytes(values: list[float]) -> bytes:
    """A vector as stored; one that float32 cannot hold is refused."""
    import struct  # Rarely needed: most vectors come from the embedder, not from callers.

    try:
        return struct.pack(f"<{len(values)}f", *values)
    except OverflowError as error:
        raise MemInvalid("a number in the embedding does not fit float32") from error


def _private_of(request: Any, call: Call, encoding: str) -> Private:
    metadata = request.metadata or {}
    if metadata and len(pack(metadata)) > limits.METADATA_BYTES_MAX:
        raise MemTooLarge(f"metadata is over {limits.METADATA_BYTES_MAX} bytes")
    return Private(
        call.args_hash, request.name, request.tags or [], request.semantic_type, request.origin or "user_input", metadata,
        request.valid_from, request.valid_to, request.priority or 0, request.labels or [], encoding,
        None if request.embedding is None else float32_bytes(request.embedding), None,
        getattr(call.request, "actor_note", None),
    )  # fmt: skip


def expires(now: int, ttl_s: int | None) -> int | None:
    return None if ttl_s is None else now + ttl_s * 1_000_000_000


def encoding_of(request: Any) -> str:
    """Whether the content of a request is text or bytes."""
    if request.content is None:
        return request.encoding or "text"
    return "text" if isinstance(request.content, str) else "bytes"


def new_cube(
    call: Call, namespace: str, content: bytes, private: Private, *, expires_at: int | None = None,
    lineage: list[tuple[bytes, int, int]] | None = None, form: str = "plaintext",
) -> tuple[bytes, Draft]:  # fmt: skip
    """`(cube_id, draft)` of a cube to be made."""
    cube_id, slot = call.fresh.cube_id(), call.fresh.slot()
    fields = [cube_id, namespace, form, expires_at, NewPayload(content, slot), slot, lineage or []]
    return cube_id, Draft(ev.ALLOCATED, fields, private, slot)


def _alloc(access: Access, call: Call, item: Any, content: bytes) -> Draft:
    access.target(item.namespace)
    parents = [live_cube(access, text, call.now) for text in item.parents or []]
    private = _private_of(item, call, encoding_of(item))
    if item.form != "plaintext":
        # A job checked the tensors, and put them as they are kept.
        private = private._replace(encoding="bytes", origin=item.origin or "import", recipe=call.product.recipe)
    return new_cube(
        call, item.namespace, content, private, expires_at=expires(call.now, item.ttl_s),
        lineage=[(p.cube_id, p.version, CONTENT) for p in parents], form=item.form,
    )[1]  # fmt: skip


def decide_alloc(tables: Tables, call: Call) -> Decision:
    draft = _alloc(Access(tables, call.caller), call, call.request, call.contents[0])
    return Decision([draft, *_superseded(call, draft.fields[0], 1)])


def _superseded(call: Call, cube_id: bytes, version: int) -> list[Draft]:
    """What a check found that the new content outdates, or is outdated by."""
    pairs = [] if call.checked is None else call.checked.pairs(cube_id, version)
    return [Draft(ev.SUPERSEDED, [pairs])] if pairs else []


def decide_alloc_many(tables: Tables, call: Call) -> Decision:
    access = Access(tables, call.caller)
    owners: set[str] = set()
    for item in call.request.items:
        # Two items may make the same new namespace; who may make it is asked once.
        if item.namespace not in owners:
            access.target(item.namespace)
            owners.add(item.namespace)
    return Decision(
        [_alloc(access, call, item, content) for item, content in zip(call.request.items, call.contents, strict=True)]
    )


def several(cubes: Sequence[Any]) -> None:
    """Refuse to fuse what needs no fusing."""
    if len(cubes) < 2:
        raise MemInvalid("fusing takes at least two cubes")


def live_cube(access: Access, text: str, now: int, action: str = "use") -> Cube:
    """A cube that the caller may use as a source now: neither expired nor shredded."""
    cube = access.cube(text)
    live(cube, now, action)
    return cube


def live(cube: Cube, now: int, action: str = "use") -> None:
    """Refuse a cube that has expired or was erased."""
    state = lifecycle.effective(cube.state, cube.expires_at, now)
    if state in (lifecycle.EXPIRED, lifecycle.SHREDDED):
        raise lifecycle.refusal(text_id(cube.cube_id), state, action)


def checked(access: Access, call: Call, action: str) -> tuple[Cube, str]:
    """The cube that a mutation names and its next state, after `expect_version` and the lifecycle agree."""
    request = call.request
    cube = access.cube(request.cube_id)
    state = lifecycle.effective(cube.state, cube.expires_at, call.now)
    if request.expect_version is not None and request.expect_version != cube.version and state != lifecycle.SHREDDED:
        raise MemConflict(f"cube {request.cube_id} is at version {cube.version}, not {request.expect_version}")
    target = lifecycle.TRANSITIONS[state].get(action)
    if target is None:
        raise lifecycle.refusal(request.cube_id, state, action)
    return cube, target


def version_of(tables: Tables, cube: Cube, version: int) -> Version:
    found = tables.version(cube, version)
    if found is None:
        raise MemNotFound(f"cube {text_id(cube.cube_id)} has no version {version}")
    return found[0]


def payload_ref(version: Version) -> list[Any]:
    """The payload of an existing version, named again."""
    return [version.payload_id, version.payload_bytes, version.payload_digest, version.payload_slot, None]


def decide_write(tables: Tables, call: Call) -> Decision:
    request = call.request
    cube, _state = checked(Access(tables, call.caller), call, "write")
    base = version_of(tables, cube, cube.version)
    if call.contents and cube.form != "plaintext":
        raise MemInvalid(
            f"cube {request.cube_id} is {cube.form}: its content is made by a model", "Write to its source, then migrate again."
        )
    try:
        old = call.opener.private(cube, cube.version)
    except MemShredded:
        # A fork whose inherited version was erased with its source: it can begin anew, with content of its own.
        if not call.contents:
            raise
        old = Private(call.args_hash)
    given = request.model_fields_set
    changes: dict[str, Any] = {
        name: getattr(request, name) for name in ("name", "semantic_type", "valid_from", "valid_to") if name in given
    }
    for name, empty in (("tags", []), ("labels", []), ("metadata", {}), ("priority", 0), ("origin", "user_input")):
        if name in given:
            value = getattr(request, name)
            changes[name] = empty if value is None else value
    if len(pack(changes.get("metadata", {}))) > limits.METADATA_BYTES_MAX:
        raise MemTooLarge(f"metadata is over {limits.METADATA_BYTES_MAX} bytes")
    private = old._replace(args_hash=call.args_hash, note=request.actor_note, **changes)
    if private.valid_from is not None and private.valid_to is not None and private.valid_to < private.valid_from:
        raise MemInvalid("valid_to is before valid_from")
    slot = cube.slot or call.fresh.slot()
    payload: Any = payload_ref(base)
    lineage = base.lineage
    if call.contents:
        # New content is no longer what the recipe made.
        payload, lineage = NewPayload(call.contents[0], slot), []
        private = private._replace(encoding=encoding_of(request), embedding=None, recipe=None)
    elif base.payload_slot != slot:
        # A vector says much of a content; the content's key is not ours, so neither is the vector.
        private = private._replace(embedding=None)
    if request.embedding is not None:
        private = private._replace(embedding=float32_bytes(request.embedding))
    expires_at = expires(call.now, request.ttl_s) if "ttl_s" in given else cube.expires_at
    fields = [cube.cube_id, cube.version + 1, expires_at, payload, slot, lineage, None]
    return Decision([Draft(ev.WRITTEN, fields, private, slot), *_superseded(call, cube.cube_id, cube.version + 1)])


def decide_rollback(tables: Tables, call: Call) -> Decision:
    request = call.request
    cube, _state = checked(Access(tables, call.caller), call, "rollback")
    if request.to_version > cube.version:
        raise MemNotFound(f"cube {request.cube_id} has no version {request.to_version}")
    base = version_of(tables, cube, request.to_version)
    private = call.opener.private(cube, request.to_version)
    slot = cube.slot or call.fresh.slot()
    private = private._replace(args_hash=call.args_hash, note=request.actor_note)
    if base.payload_slot != slot:
        private = private._replace(embedding=None)
    fields = [cube.cube_id, cube.version + 1, cube.expires_at, payload_ref(base), slot, base.lineage, request.to_version]
    return Decision([Draft(ev.WRITTEN, fields, private, slot)])


def _note_part(call: Call, cube: Cube) -> tuple[Private | None, Slot | None]:
    """H(arguments) and the note of a state change, and the key they go under: a fork that never wrote gets its own."""
    request = call.request
    if cube.slot is None and request.actor_note is None and request.request_id is None:
        return None, None
    return Private(call.args_hash, note=request.actor_note), cube.slot or call.fresh.slot()


def decide_state(action: str) -> Callable[[Tables, Call], Decision]:
    """The decision of a call that only moves a cube along the lifecycle."""

    def decide(tables: Tables, call: Call) -> Decision:
        cube, state = checked(Access(tables, call.caller), call, action)
        private, slot = _note_part(call, cube)
        return Decision([Draft(ev.STATE_CHANGED, [cube.cube_id, cube.version, state, action, slot], private, slot)])

    return decide


def decide_pin(pinned: bool) -> Callable[[Tables, Call], Decision]:
    """A pin is about where a payload is, not about the memory: a frozen cube may have one."""

    def decide(tables: Tables, call: Call) -> Decision:
        request = call.request
        cube = live_cube(Access(tables, call.caller), request.cube_id, call.now, "pin" if pinned else "unpin")
        if request.expect_version is not None and request.expect_version != cube.version:
            raise MemConflict(f"cube {request.cube_id} is at version {cube.version}, not {request.expect_version}")
        private, slot = _note_part(call, cube)
        return Decision([Draft(ev.PINNED, [cube.cube_id, cube.version, pinned, slot], private, slot)])

    return decide


def decide_unfuse(tables: Tables, call: Call) -> Decision:
    access = Access(tables, call.caller)
    cube = access.cube(call.request.cube_id)
    state = lifecycle.effective(cube.state, cube.expires_at, call.now)
    expected = call.request.expect_version
    if expected is not None and expected != cube.version and state != lifecycle.SHREDDED:
        raise MemConflict(f"cube {call.request.cube_id} is at version {cube.version}, not {expected}")
    if state in (lifecycle.SHREDDED, lifecycle.FROZEN):
        raise lifecycle.refusal(call.request.cube_id, state, "unfuse")
    sources = [source.cube_id for source in tables.merged(cube.cube_id)]
    if not sources:
        raise MemInvalid(
            f"cube {call.request.cube_id} stands for no merged cubes", "Only a cube made by mem_fuse can be unfused."
        )
    private, slot = _note_part(call, cube)
    return Decision([Draft(ev.UNMERGED, [cube.cube_id, cube.version, sources, slot], private, slot)])


def decide_expired(tables: Tables, now: int, most: int) -> Decision | None:
    """The kernel's tick: record the ends of lives that have run out."""
    ended: list[list[Any]] = []
    for cube_id in tables.due(now):
        cube = tables.cube(cube_id)
        if cube is not None and "expire" in lifecycle.TRANSITIONS[cube.state]:
            ended.append([cube_id, cube.version])
            if len(ended) == most:
                break
    return Decision([Draft(ev.EXPIRED, [ended])]) if ended else None


def shredded(cube_id: bytes) -> MemShredded:
    return MemShredded(f"cube {text_id(cube_id)} was shredded")


DECISIONS: Final[dict[type[m.Request], Callable[[Tables, Call], Decision]]] = {
    m.MemAlloc: decide_alloc,
    m.MemAllocMany: decide_alloc_many,
    m.MemWrite: decide_write,
    m.MemRollback: decide_rollback,
    m.MemFree: decide_state("free"),
    m.MemFreeze: decide_state("freeze"),
    m.MemThaw: decide_state("thaw"),
    m.MemArchive: decide_state("archive"),
    m.MemRestore: decide_state("restore"),
    m.MemPin: decide_pin(True),
    m.MemUnpin: decide_pin(False),
    m.MemUnfuse: decide_unfuse,
}
"""Decisions about cubes one by one; `decide_shape` adds those that relate cubes."""
