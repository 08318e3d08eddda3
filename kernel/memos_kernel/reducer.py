"""apply: the one place where records change state.

Rule 1. `apply(tables, record)` is a function of its arguments: no clock, no random source, no I/O, no keys.
Rule 2. It never refuses. What may not happen was refused by `decide`; a record that does not fit the state is damage,
        and raises `Damaged`, which stops whoever applies it.
Rule 3. Whatever it derives (namespaces, forked ids, expiry) it derives from the record alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from . import crypto, lifecycle
from . import events as ev
from .events import Damaged, Event, Record, Slot, pack
from .state import (
    META_CHECKPOINT,
    META_HOME,
    Cube,
    Namespace,
    Superseded,
    Tables,
    Version,
    cube_id_of,
    decode_cube,
    parts_of,
    u64,
)  # fmt: skip


def apply(tables: Tables, record: Record) -> None:
    """Change the tables as the record says. The caller keeps `META_APPLIED`, which is about the log, not the state."""
    for event in record.events:
        rule = RULES.get(event.name)
        if rule is None:
            raise Damaged(f"record {record.seq} holds an event that this kernel does not know: {event.name}")
        try:
            rule(tables, record, event)
        except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError) as error:
            raise Damaged(f"record {record.seq} holds a {event.name} that makes no sense ({type(error).__name__})") from error
    if record.request_mac is not None:
        tables.put(b"r" + record.request_mac, u64(record.seq))


def _cube(tables: Tables, record: Record, cube_id: bytes) -> Cube:
    data = tables.get(b"c" + cube_id)
    if data is None:
        raise Damaged(f"record {record.seq} changes cube {cube_id.hex()}, which does not exist")
    return decode_cube(data)


def _set_state(tables: Tables, record: Record, cube: Cube, state: str, **fields: Any) -> Cube:
    """Put a cube with a new state, and remember the old one under the record that ended it."""
    if state != cube.state:
        tables.put(b"s" + cube.cube_id + u64(record.seq), state.encode())
        if cube.changed_seq == cube.created_seq:
            # The first change: the past needs the state that the cube was born with.
            tables.put(b"s" + cube.cube_id + u64(cube.created_seq), cube.state.encode())
        if state in (lifecycle.EXPIRED, lifecycle.SHREDDED) and tables.pinned(cube.cube_id):
            tables.put(b"p" + cube.cube_id, None)
    cube = cube._replace(state=state, changed_seq=record.seq if state != cube.state else cube.changed_seq, **fields)
    tables.put_cube(cube)
    return cube


def _watch_expiry(tables: Tables, cube_id: bytes, old: int | None, new: int | None) -> None:
    if old != new:
        if old is not None:
            tables.put(b"e" + u64(old) + cube_id, None)
        if new is not None:
            tables.put(b"e" + u64(new) + cube_id, b"")


def _ensure_namespaces(tables: Tables, record: Record, name: str, forked_from: tuple[str, int] | None = None) -> None:
    if tables.namespace_owner(name) is not None:
        return
    owner = tables.owner(name) or record.principal
    for part in parts_of(name):
        if tables.get(b"n" + part.encode()) is None:
            origin = forked_from if part == name else None
            tables.put_namespace(Namespace(crypto.FORMAT, part, owner, record.time, record.seq, origin))


def _add_version(
    tables: Tables, record: Record, event: Event, cube_id: bytes, version: int, expires_at: int | None,
    payload: list[Any], slot: Slot, lineage: list[list[Any]], restored: int | None,
) -> None:  # fmt: skip
    private_id, private = event.private or (b"", b"")
    payload_id, size, digest, payload_slot, inline = payload
    tables.put_version(
        Version(
            crypto.FORMAT, cube_id, version, record.seq, record.time, record.principal, record.syscall, expires_at,
            payload_id, size, digest, Slot(*payload_slot), private_id, crypto.sha256(private), slot,
            [(source, at, role) for source, at, role in lineage], restored,
        ),
        private,
    )  # fmt: skip
    if inline is not None:
        tables.payloads.append((payload_id, inline))
    for source, _at, _role in lineage:
        tables.put(b"d" + source + cube_id, b"")


def apply_allocated(tables: Tables, record: Record, event: Event) -> None:
    cube_id, namespace, form, expires_at, payload, raw_slot, lineage = event.fields
    slot = Slot(*raw_slot)
    _ensure_namespaces(tables, record, namespace)
    tables.put_cube(
        Cube(
            crypto.FORMAT, cube_id, namespace, form, record.time, record.seq, 1, lifecycle.GENERATED, record.seq, slot,
            expires_at, None, None,
        ),
        new=True,
    )  # fmt: skip
    _add_version(tables, record, event, cube_id, 1, expires_at, payload, slot, lineage, None)
    tables.put(b"l" + namespace.encode() + b"\0" + cube_id, b"")
    tables.put(b"k" + u64(slot.epoch) + u64(slot.n), cube_id)
    if form == "parametric":
        tables.put(b"a" + cube_id, b"")
    if expires_at is not None:
        tables.put(b"e" + u64(expires_at) + cube_id, b"")


def apply_written(tables: Tables, record: Record, event: Event) -> None:
    cube_id, version, expires_at, payload, raw_slot, lineage, restored = event.fields
    cube, slot = _cube(tables, record, cube_id), Slot(*raw_slot)
    if version != cube.version + 1:
        raise Damaged(f"record {record.seq} writes version {version} of a cube at version {cube.version}")
    _add_version(tables, record, event, cube_id, version, expires_at, payload, slot, lineage, restored)
    if cube.slot != slot:
        tables.put(b"k" + u64(slot.epoch) + u64(slot.n), cube_id)
    _watch_expiry(tables, cube_id, cube.expires_at, expires_at)
    _set_state(tables, record, cube, lifecycle.ACTIVATED, version=version, expires_at=expires_at, slot=slot)


def _own_slot(tables: Tables, cube: Cube, raw: list[int] | None) -> Cube:
    """A fork that had no key of its own gets one with the first private part that is written for it."""
    if raw is None or cube.slot is not None:
        return cube
    slot = Slot(*raw)
    tables.put(b"k" + u64(slot.epoch) + u64(slot.n), cube.cube_id)
    return cube._replace(slot=slot)


def apply_state_changed(tables: Tables, record: Record, event: Event) -> None:
    cube_id, _version, state, _action, slot = event.fields
    cube = _own_slot(tables, _cube(tables, record, cube_id), slot)
    expires_at = None if state == lifecycle.EXPIRED else cube.expires_at
    if state == lifecycle.EXPIRED:
        _watch_expiry(tables, cube_id, cube.expires_at, None)
    _set_state(tables, record, cube, state, expires_at=expires_at)


def apply_pinned(tables: Tables, record: Record, event: Event) -> None:
    """Where payloads are cached is no memory: pins are not in the digest."""
    cube_id, _version, pinned, slot = event.fields
    if type(pinned) is not bool:
        raise Damaged(f"record {record.seq} pins a cube neither way")
    cube = _cube(tables, record, cube_id)
    owning = _own_slot(tables, cube, slot)
    if owning is not cube:
        tables.put_cube(owning)
    if pinned != tables.pinned(cube_id):
        tables.put(b"p" + cube_id, b"" if pinned else None)


def apply_expired(tables: Tables, record: Record, event: Event) -> None:
    for cube_id, _version in event.fields[0]:
        cube = _cube(tables, record, cube_id)
        _watch_expiry(tables, cube_id, cube.expires_at, None)
        _set_state(tables, record, cube, lifecycle.EXPIRED)


def apply_merged(tables: Tables, record: Record, event: Event) -> None:
    fused_id, sources = event.fields
    for source_id, _version in sources:
        tables.put(b"f" + fused_id + source_id, b"")
        _set_state(tables, record, _cube(tables, record, source_id), lifecycle.MERGED, merged_into=fused_id)


def apply_unmerged(tables: Tables, record: Record, event: Event) -> None:
    fused_id, _version, sources, slot = event.fields
    for source_id in sources:
        _set_state(tables, record, _cube(tables, record, source_id), lifecycle.ACTIVATED, merged_into=None)
    fused = _own_slot(tables, _cube(tables, record, fused_id), slot)
    _watch_expiry(tables, fused_id, fused.expires_at, None)
    _set_state(tables, record, fused, lifecycle.EXPIRED, expires_at=None)


def apply_superseded(tables: Tables, record: Record, event: Event) -> None:
    """Which of the two holds at a moment is read from both, see supersession.py; here it is only noted."""
    for older_id, older_version, newer_id, newer_version in event.fields[0]:
        for cube_id, version in ((older_id, older_version), (newer_id, newer_version)):
            if not 1 <= version <= _cube(tables, record, cube_id).version:
                raise Damaged(f"record {record.seq} names version {version} of cube {cube_id.hex()}, which has none")
        tables.put_superseded(Superseded(older_id, older_version, newer_id, newer_version, record.seq))


def derived_id(record_time: int, seq: int, order: int, source: bytes) -> bytes:
    """The id of a forked cube: a UUIDv7 of the record's time, in the order of the sources."""
    return cube_id_of(record_time, order, int.from_bytes(crypto.sha256(b"memos fork" + u64(seq) + source)[:5], "big"))


def apply_forked(tables: Tables, record: Record, event: Event) -> None:
    """One row per cube; versions stay where they are and are read through `forked_from`."""
    source, target, at_seq, _count, _args_hash = event.fields
    sources = [name.name for name in tables.namespaces(source)]
    members = [(name, cube_id) for name in sources for cube_id in tables.cubes_in(name)]
    _ensure_namespaces(tables, record, target, (source, at_seq))
    copies: list[Cube] = []
    for name, cube_id in members:
        cube = _cube(tables, record, cube_id)
        if (copy := fork_of(tables, cube, at_seq, record, len(copies))) is not None:
            copies.append(copy._replace(namespace=target + name[len(source) :]))
    made = {copy.forked_from[0]: copy.cube_id for copy in copies if copy.forked_from}
    for copy in copies:
        if copy.state == lifecycle.MERGED:
            into = made.get(copy.merged_into) if copy.merged_into else None
            state = lifecycle.ACTIVATED if into is None else lifecycle.MERGED
            copy = copy._replace(state=state, merged_into=into)
            if into is not None:
                tables.put(b"f" + into + copy.cube_id, b"")
        elif copy.merged_into is not None:
            copy = copy._replace(merged_into=None)
        _ensure_namespaces(tables, record, copy.namespace)
        tables.put_cube(copy, new=True)
        tables.put(b"l" + copy.namespace.encode() + b"\0" + copy.cube_id, b"")
        if copy.state != lifecycle.GENERATED:
            tables.put(b"s" + copy.cube_id + u64(record.seq), copy.state.encode())
        if copy.form == "parametric":
            tables.put(b"a" + copy.cube_id, b"")
        if copy.forked_from:
            tables.put(b"g" + copy.forked_from[0] + copy.cube_id, b"")
        if copy.expires_at is not None:
            tables.put(b"e" + u64(copy.expires_at) + copy.cube_id, b"")
    if next(iter(tables.scan(b"o")), None) is not None:
        _copy_superseded(tables, record, at_seq, copies)


def _copy_superseded(tables: Tables, record: Record, at_seq: int, copies: list[Cube]) -> None:
    """What superseded what among the cubes that a fork took along, as of then."""
    made = {copy.forked_from: copy.cube_id for copy in copies}
    taken = {source[0]: source[1] for source in made if source is not None}
    for source_id, version in taken.items():
        for one in list(tables.superseding(source_id)):
            newest = taken.get(one.newer, 0)
            if one.seq <= at_seq and one.older_version <= version and one.newer_version <= newest:
                older, newer = made[(source_id, version)], made[(one.newer, newest)]
                tables.put_superseded(one._replace(older=older, newer=newer, seq=record.seq))


def fork_of(tables: Tables, cube: Cube, at_seq: int, record: Record, order: int = 0) -> Cube | None:
    """The copy of one cube as it was after `at_seq`, or None when it was not alive then or is erased now."""
    if cube.state == lifecycle.SHREDDED or (version := tables.version_at(cube, at_seq)) is None:
        return None
    found = tables.version(cube, version)
    if found is None:
        raise Damaged(f"cube {cube.cube_id.hex()} has no version {version}")
    expires_at = found[0].expires_at
    state = lifecycle.effective(tables.state_at(cube, at_seq), expires_at, record.time)
    if state in (lifecycle.EXPIRED, lifecycle.SHREDDED):
        return None
    # A hold is on the original; its copy is free.
    state = lifecycle.ACTIVATED if state == lifecycle.FROZEN else state
    return Cube(
        crypto.FORMAT, derived_id(record.time, record.seq, order, cube.cube_id), cube.namespace, cube.form, record.time,
        record.seq, version, state, record.seq, None, expires_at, (cube.cube_id, version), cube.merged_into,
    )  # fmt: skip


def shred_targets(tables: Tables, event: Event) -> list[Cube]:
    """Every cube that a shred event erases: the target namespace's, then those it names."""
    namespace, named, _rebuilt, _args_hash = event.fields
    ids = [*tables.cubes_below(namespace)] if namespace is not None else []
    seen = set(ids)
    cubes = [tables.cube(cube_id) for cube_id in [*ids, *(i for i in named if i not in seen)]]
    return [cube for cube in cubes if cube is not None and cube.state != lifecycle.SHREDDED]


def apply_shredded(tables: Tables, record: Record, event: Event) -> None:
    replaced: dict[bytes, bytes] = dict(event.fields[2])
    targets = shred_targets(tables, event)
    gone = {cube.cube_id for cube in targets}
    for cube in targets:
        _watch_expiry(tables, cube.cube_id, cube.expires_at, None)
        _set_state(tables, record, cube, lifecycle.SHREDDED, expires_at=None)
        if cube.form == "parametric":
            tables.put(b"a" + cube.cube_id, None)
    # Sources whose fused cube is gone are live again, or belong to the cube that replaces it.
    for cube in targets:
        into = replaced.get(cube.cube_id)
        for source in list(tables.merged(cube.cube_id)):
            if source.cube_id in gone:
                continue
            if into is not None:
                tables.put(b"f" + into + source.cube_id, b"")
            _set_state(tables, record, source, lifecycle.MERGED if into else lifecycle.ACTIVATED, merged_into=into)
    tables.put(b"x" + u64(record.seq), b"")


def apply_checkpoint(tables: Tables, record: Record, event: Event) -> None:
    genesis = tables.get(b"mlog_id") or b""
    checkpoint = ev.Checkpoint(*event.fields)
    tables.put(META_CHECKPOINT, pack((record.seq, checkpoint.hash(genesis))))


def apply_genesis(tables: Tables, record: Record, event: Event) -> None:
    log_id, public_key, schema = event.fields
    tables.put(b"mschema", schema.to_bytes(4, "big"))
    tables.put(b"mlog_id", log_id)
    tables.put(b"mpublic_key", public_key)


def apply_moved(tables: Tables, record: Record, event: Event) -> None:
    (home_id,) = event.fields
    if type(home_id) is not bytes or len(home_id) != crypto.ID_BYTES:
        raise Damaged(f"record {record.seq} names a home that is none")
    tables.put(META_HOME, home_id)
    tables.put(META_HOME + home_id, u64(record.seq))


def apply_nothing(tables: Tables, record: Record, event: Event) -> None:
    """Epochs are the log's business, not the state's."""


RULES: Final[dict[str, Callable[[Tables, Record, Event], None]]] = {
    ev.GENESIS: apply_genesis,
    ev.EPOCH_OPENED: apply_nothing,
    ev.CHECKPOINT: apply_checkpoint,
    ev.ALLOCATED: apply_allocated,
    ev.WRITTEN: apply_written,
    ev.STATE_CHANGED: apply_state_changed,
    ev.PINNED: apply_pinned,
    ev.EXPIRED: apply_expired,
    ev.MERGED: apply_merged,
    ev.UNMERGED: apply_unmerged,
    ev.SUPERSEDED: apply_superseded,
    ev.FORKED: apply_forked,
    ev.SHREDDED: apply_shredded,
    ev.MOVED: apply_moved,
}
assert RULES.keys() == ev.EVENTS.keys(), "every event has a rule"
