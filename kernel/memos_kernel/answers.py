"""The answer to a mutation, rebuilt from its record: the same for the first caller and for one who repeats.

Pure: `answer(view, record, record_hash, signer)` reads only what the record says and what the view keeps of it. A
repeated request id therefore gets the first answer, also after a restart and after later changes.

A shred's receipt is MessagePack `[fmt, "memos shred", log_id, seq, record_hash, time, [cube_id, …], public_key,
signature]`, signed over the encoding of all fields before the signature as an array of eight. Where wrapped keys lie on
brokers, `destroyed_at, gone_by` come before the signature: when the keys had been tombstoned, and by when no copy of them is
left at the latest, both in ns.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from memos_syscalls.table import BY_NUMBER

from . import crypto, lifecycle
from . import events as ev
from .chain import LogKeys
from .events import Damaged, Event, Record, pack, unpack
from .governance import raw_id, text_id
from .state import View
from .supersession import named

SECOND: Final = 1_000_000_000


class Receipt(NamedTuple):
    fmt: int
    kind: str
    log_id: bytes
    seq: int
    record_hash: bytes
    time: int
    cubes: list[bytes]
    public_key: bytes
    signature: bytes
    erasure: Erasure | None = None


class Erasure(NamedTuple):
    """When wrapped keys had been tombstoned, and by when no copy is left on any broker; ns."""

    destroyed_at: int
    gone_by: int


def make_receipt(
    keys: LogKeys, record: Record, record_hash: bytes, cubes: list[bytes], erasure: Erasure | None = None
) -> bytes:
    unsigned = (
        crypto.FORMAT, "memos shred", keys.log_id, record.seq, record_hash, record.time, cubes, keys.signer.public_key,
        *(erasure or ()),
    )  # fmt: skip
    data: bytes = pack((*unsigned, keys.signer.sign(pack(unsigned))))
    return data


def read_receipt(data: bytes) -> Receipt:
    """The receipt in these bytes, its signature checked against its own public key; raises `Damaged`."""
    raw = unpack(data)
    if type(raw) is not list or len(raw) not in (9, 11) or raw[0] != crypto.FORMAT or raw[1] != "memos shred":
        raise Damaged("not a receipt of a shred")
    types = [int, str, bytes, int, bytes, int, list, bytes, *[int] * (len(raw) - 9), bytes]
    if [type(field) for field in raw] != types or any(type(cube) is not bytes for cube in raw[6]):
        raise Damaged("a field of the receipt is not of its type")
    if not crypto.verify_signature(raw[7], raw[-1], pack(tuple(raw[:-1]))):
        raise Damaged("the receipt's signature is wrong")
    erasure = Erasure(*raw[8:10]) if len(raw) == 11 else None
    return Receipt._make([*raw[:8], raw[-1], erasure])


def answer(
    view: View, record: Record, record_hash: bytes, keys: LogKeys, erasure: Erasure | None = None
) -> dict[str, Any]:
    """The reply of the call that made this record."""
    call = BY_NUMBER[record.syscall].name
    event = record.events[0]
    if call == "mem_alloc_many":
        return {"items": [{"cube_id": text_id(e.fields[0]), "version": 1} for e in record.events], "offset": record.seq}
    if call == "mem_fork":
        return {"namespace": event.fields[1], "cubes": event.fields[3], "offset": record.seq}
    if call == "mem_shred":
        return _shred(view, record, record_hash, keys, erasure)
    reply: dict[str, Any] = {"cube_id": text_id(event.fields[0]), "version": 1, "offset": record.seq}
    if event.name in (ev.WRITTEN, ev.STATE_CHANGED, ev.PINNED, ev.UNMERGED):
        reply["version"] = event.fields[1]
    if (more := next((e for e in record.events if e.name == ev.SUPERSEDED), None)) is not None:
        reply |= _superseded(view, event.fields[0], more)
    if event.name == ev.STATE_CHANGED:
        reply["state"] = event.fields[2]
    if event.name == ev.PINNED and (cube := view.cube(event.fields[0])) is not None:
        reply["state"] = view.state_at(cube, record.seq)
    if call == "mem_fuse":
        merged = record.events[1].fields[1]
        reply["sources"] = [{"cube_id": text_id(source), "version": version} for source, version in merged]
    if call == "mem_unfuse":
        reply["restored"] = [text_id(source) for source in event.fields[2]]
    if call == "mem_migrate" and event.name == ev.ALLOCATED and event.fields[2] == "plaintext":
        reply["cube_ids"] = [text_id(one.fields[0]) for one in record.events]
    return reply


def _superseded(view: View, made: bytes, event: Event) -> dict[str, Any]:
    """What the content that was written supersedes, and what supersedes it; an erased cube is not named any more."""
    alive = [pair for pair in event.fields[0] if all(_is_alive(view, cube_id) for cube_id in pair[::2])]
    older = [(one, at) for one, at, newer, _then in alive if newer == made]
    newer = [(one, at) for older, _at, one, at in alive if older == made]
    return {name: named(found) for name, found in (("supersedes", older), ("superseded_by", newer)) if found}


def _is_alive(view: View, cube_id: bytes) -> bool:
    cube = view.cube(cube_id)
    return cube is not None and cube.state != lifecycle.SHREDDED


def shredded_by(view: View, record: Record) -> list[bytes]:
    """Ids of the cubes that a shred record erased, in order of making."""
    namespace, named, _rebuilt, _hash = next(e for e in record.events if e.name == ev.SHREDDED).fields
    ids = list(dict.fromkeys([*(view.cubes_below(namespace) if namespace is not None else ()), *named]))
    cubes = [cube for cube_id in ids if (cube := view.cube(cube_id)) is not None]
    return sorted(cube.cube_id for cube in cubes if cube.state == "shredded" and cube.changed_seq == record.seq)


def shred_heirs(view: View, record: Record, gone: list[bytes]) -> dict[bytes, int]:
    """Forks that lose inherited versions with these cubes: fork → the newest version that it loses."""
    erased = set(gone)
    return {
        fork: newest
        for fork, newest in view.heirs(gone).items()
        if fork not in erased and (cube := view.cube(fork)) is not None and cube.created_seq < record.seq
    }


def _shred(
    view: View, record: Record, record_hash: bytes, keys: LogKeys, erasure: Erasure | None
) -> dict[str, Any]:
    event = next(e for e in record.events if e.name == ev.SHREDDED)
    gone = shredded_by(view, record)
    forks = [text_id(fork) for fork in sorted(shred_heirs(view, record, gone))]
    report = {
        "shredded": [text_id(cube_id) for cube_id in gone],
        "rebuilt": [{"cube_id": text_id(new), "job_id": None, "replaces": text_id(old)} for old, new in event.fields[2]],
        "forks": forks,
        "maps": [],
        "receipt": make_receipt(keys, record, record_hash, gone, erasure),
        "keys_gone_by": None if erasure is None else erasure.gone_by,
    }
    target = event.fields[0]
    return {"report": report, "offset": record.seq, "cube_id": text_id(event.fields[1][0]) if target is None else None}


def names_target(record: Record, args: dict[str, Any]) -> bool:
    """Whether a request with these arguments could have made this record, as far as that is public: what a repeated
    request can be compared with when the private part is gone."""
    # Through the model, which reads a number in text, say, as decide saw it.
    args = BY_NUMBER[record.syscall].request.model_validate(args).model_dump()
    items: list[dict[str, Any]] | None = args.get("items")
    if items is not None:
        return len(items) == len(record.events) and all(
            _names_alloc(record, event, item) for event, item in zip(record.events, items, strict=True)
        )
    event = record.events[0]
    if BY_NUMBER[record.syscall].name == "mem_migrate":
        return _names_sources(event, args)
    match event.name:
        case ev.ALLOCATED:
            merged = next((e.fields[1] for e in record.events if e.name == ev.MERGED), None)
            sources = event.fields[6] if merged is None else merged
            cube_ids: list[str] | None = args.get("cube_ids")
            if cube_ids is not None:
                named, made = [raw_id(text) for text in cube_ids], [source[0] for source in sources]
                # Of what was trained anew on the texts behind them, adapters alone are merged.
                if made != named and not (event.fields[2] == "parametric" and set(made) <= set(named)):
                    return False
            return _names_alloc(record, event, args)
        case ev.WRITTEN:
            ttl_s = args.get("ttl_s")
            if ttl_s is not None and event.fields[2] != record.time + ttl_s * SECOND:
                return False
            return bool(event.fields[0] == raw_id(args["cube_id"]) and event.fields[6] == args.get("to_version"))
        case ev.STATE_CHANGED | ev.PINNED | ev.UNMERGED:
            return bool(event.fields[0] == raw_id(args["cube_id"]))
        case _:
            # Forks and shreds carry the hash of their arguments in public.
            return False


def _names_sources(event: Event, args: dict[str, Any]) -> bool:
    """Whether a derived cube was made from cubes that these arguments name, and where they say."""
    named = {raw_id(text) for text in [args.get("cube_id"), *(args.get("cube_ids") or [])] if text is not None}
    allocated = event.name == ev.ALLOCATED
    lineage = event.fields[6 if allocated else 5]
    return named <= {source[0] for source in lineage} and (not allocated or args.get("namespace") in (None, event.fields[1]))


def _names_alloc(record: Record, event: Event, args: dict[str, Any]) -> bool:
    """Whether a cube was made where, from what and for as long as these arguments say."""
    if event.name != ev.ALLOCATED:
        return False
    _cube_id, namespace, _form, expires_at, _payload, _slot, lineage = event.fields
    parents, ttl_s = args.get("parents"), args.get("ttl_s")
    if args.get("cube_ids") is None and [source[0] for source in lineage] != [raw_id(text) for text in parents or []]:
        return False
    if expires_at != (None if ttl_s is None else record.time + ttl_s * SECOND):
        return False
    # A fusion goes into its first source's namespace when it names none.
    return bool(args.get("namespace") in (None, namespace))
