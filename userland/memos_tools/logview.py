"""log tail and log show: records as people read them.

`FIELDS` names the fields of every event of the catalogue (a test compares it with `events.EVENTS`). Ids of cubes are shown
as callers write them, other ids and digests in hexadecimal. Private parts and contents are decrypted when the master key is
there; erased ones say so. A frame that cannot be read ends a command with its offset.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Final

from memos_drivers.stores.base import VIEW
from memos_kernel import events as ev
from memos_kernel.eventlog.base import EventLog
from memos_kernel.events import Damaged, Slot
from memos_kernel.governance import text_id
from memos_kernel.offline import Offline
from memos_kernel.private import Private
from memos_kernel.state import View
from memos_kernel.upcast import current
from memos_kernel.vault import Vault
from memos_syscalls.errors import MemError
from memos_syscalls.table import BY_NUMBER

from . import offline
from .offline import Item
from .output import BAD, GOOD, Output, Trouble
from .render import Block, Line, Rows, time_text, to_json

FOLLOW_SECONDS: Final = 0.5
FIELDS: Final[dict[str, tuple[str, ...]]] = {
    ev.GENESIS: ("log_id", "public_key", "state_schema"),
    ev.EPOCH_OPENED: ("claim_hash",),
    ev.CHECKPOINT: (
        "head_seq", "head_hash", "merkle_root", "previous_checkpoint_hash", "state_digest", "state_schema", "signature",
    ),
    ev.ALLOCATED: ("cube_id", "namespace", "form", "expires_at", "payload", "slot", "lineage"),
    ev.WRITTEN: ("cube_id", "version", "expires_at", "payload", "slot", "lineage", "restored_version"),
    ev.STATE_CHANGED: ("cube_id", "version", "state", "action", "slot"),
    ev.PINNED: ("cube_id", "version", "pinned", "slot"),
    ev.EXPIRED: ("cubes",),
    ev.MERGED: ("fused_id", "sources"),
    ev.UNMERGED: ("fused_id", "fused_version", "sources", "slot"),
    ev.SUPERSEDED: ("superseded",),
    ev.FORKED: ("source", "target", "at_seq", "cubes", "args_hash"),
    ev.SHREDDED: ("target_namespace", "cubes", "rebuilt", "args_hash"),
    ev.MOVED: ("home_id",),
}  # fmt: skip
_CUBES: Final = frozenset(("cube_id", "fused_id"))


def syscall_name(number: int) -> str:
    """A call's name; the kernel's own records carry none."""
    call = BY_NUMBER.get(number)
    return call.name if call is not None else "-" if number == ev.KERNEL_SYSCALL else f"syscall {number}"


def named(event: ev.Event) -> dict[str, Any]:
    """An event's public fields by name, in a form for people. Slots are `epoch.n`, versions `cube@version`."""
    return {name: _public(event.name, name, value) for name, value in zip(FIELDS[event.name], event.fields, strict=True)}


def _public(event: str, name: str, value: Any) -> Any:
    if value is None or (event == ev.FORKED and name == "cubes"):
        return value
    if name in _CUBES:
        return text_id(value)
    match name:
        case "expires_at":
            return time_text(value)
        case "slot":
            return f"{value[0]}.{value[1]}"
        case "payload":
            payload_id, size, digest, slot, inline = value
            stored = {"id": payload_id.hex(), "bytes": size, "digest": digest.hex(), "slot": f"{slot[0]}.{slot[1]}"}
            return stored | {"inline_bytes": None if inline is None else len(inline)}
        case "lineage":
            return [f"{text_id(source)}@{version} {'context' if role else 'content'}" for source, version, role in value]
        case "rebuilt":
            return [f"{text_id(old)} as {text_id(new)}" for old, new in value]
        case "superseded":
            return [f"{text_id(older)}@{at} by {text_id(newer)}@{then}" for older, at, newer, then in value]
        case "cubes" | "sources":
            return [text_id(one) if isinstance(one, bytes) else f"{text_id(one[0])}@{one[1]}" for one in value]
        case _:
            return value.hex() if isinstance(value, bytes) else value


def targets(event: ev.Event) -> str:
    """What an event is about, in a few words."""
    f = event.fields
    match event.name:
        case ev.ALLOCATED:
            return f"{text_id(f[0])} v1 in {f[1]}"
        case ev.WRITTEN:
            return f"{text_id(f[0])} v{f[1]}" + (f" (v{f[6]} again)" if f[6] else "")
        case ev.STATE_CHANGED:
            return f"{text_id(f[0])} v{f[1]} {f[2]}"
        case ev.PINNED:
            return f"{text_id(f[0])} v{f[1]} {'pinned' if f[2] else 'unpinned'}"
        case ev.MERGED:
            return f"{len(f[1])} into {text_id(f[0])}"
        case ev.UNMERGED:
            return f"{len(f[2])} out of {text_id(f[0])}"
        case ev.SUPERSEDED:
            return " ".join(f"{text_id(older)} by {text_id(newer)}" for older, _at, newer, _then in f[0])
        case ev.FORKED:
            return f"{f[0]} to {f[1]} as of {f[2]}, {f[3]} cubes"
        case ev.SHREDDED:
            return " ".join([f[0] or "", *(text_id(one) for one in f[1])]).strip()
        case ev.EXPIRED:
            return " ".join(text_id(one) for one, _version in f[0])
        case ev.CHECKPOINT:
            return f"of offset {f[0]}"
        case _:
            return ""


def slot_of(event: ev.Event, view: View) -> Slot | None:
    """The key that an event's private part is under: its own, or its cube's."""
    names = FIELDS[event.name]
    if "slot" in names and (raw := event.fields[names.index("slot")]) is not None:
        return Slot(*raw)
    if names[0] in _CUBES and (cube := view.cube(event.fields[0])) is not None:
        return cube.slot
    return None


def opened_private(event: ev.Event, view: View, vault: Vault) -> Private | str | None:
    """An event's private part; text says why it cannot be read."""
    if event.private is None:
        return None
    slot = slot_of(event, view)
    if slot is None:
        return "(its key is not known)"
    try:
        return vault.open_sealed_private(slot, *event.private) or "(erased)"
    except Damaged as error:
        return f"(damaged: {error})"


def opened_content(event: ev.Event, view: View, vault: Vault) -> str | bytes | None:
    """The content of a version that an event made; text in brackets says why it cannot be read."""
    if event.name not in (ev.ALLOCATED, ev.WRITTEN):
        return None
    found = view.own_version(event.fields[0], 1 if event.name == ev.ALLOCATED else event.fields[1])
    if found is None:
        return "(the view does not hold this version)"
    try:
        content = vault.open_content(found[0])
    except MemError:
        return "(erased)"
    except Damaged as error:
        return f"(damaged: {error})"
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content


# -- commands ----------------------------------------------------------------------------------------------------------


def tail(arguments: argparse.Namespace, out: Output) -> int:
    source = offline.place_of(arguments.source)
    keys = offline.keys_of(arguments)
    with offline.opened(source, keys, out, log_only=True) as found, damage_named(found.log, source):
        first = max(0, offline.head(found.log) - arguments.n + 1)
        at = _print_from(found, first, out)
        if found.unproven is not None and not out.json:
            what = f"records from {found.unproven} on are not covered by a signed checkpoint yet; the master key shows them"
            out.err.print(f"memctl: {what} (--key-file)", style="yellow", markup=False, highlight=False)
        path = found.path
        while arguments.follow and found.is_topic:
            time.sleep(FOLLOW_SECONDS)
            if offline.read_on(found):
                at = _print_from(found, at, out)
    while arguments.follow:
        mark = _mark(path)
        while _mark(path) == mark:
            time.sleep(FOLLOW_SECONDS)
        with offline.opened(source, keys, log_only=True) as found, damage_named(found.log, source):
            at = _print_from(found, at, out)
    return GOOD


def _mark(path: Path) -> tuple[tuple[str, int], ...]:
    """Changes when something was written: names and sizes of RocksDB's write-ahead logs."""
    sizes: list[tuple[str, int]] = []
    for file in (path / "db").glob("*.log"):
        try:
            sizes.append((file.name, file.stat().st_size))
        except FileNotFoundError:
            # It was archived while we looked: that is a change, too.
            sizes.append((file.name, -1))
    return tuple(sorted(sizes))


def _print_from(found: Offline, seq: int, out: Output) -> int:
    """Print records from `seq` on; the offset that comes next."""
    rows: list[tuple[str, ...]] = []
    for item in offline.walk(found.log, seq):
        record = current(item.record())
        if out.json:
            out.show(described(item))
        for event in record.events:
            who = (str(item.seq), time_text(record.time), record.principal, syscall_name(record.syscall))
            rows.append((*(who if event is record.events[0] else ("", "", "", "")), event.name, targets(event)))
        seq = item.seq + 1
    if rows and not out.json:
        out.show(None, Rows(("offset", "time", "actor", "syscall", "event", "about"), rows))
    return seq


@contextlib.contextmanager
def damage_named(log: EventLog, source: str) -> Generator[None]:
    """Whatever turns out to be damaged inside ends the command with the offset of the first frame that cannot be read."""
    try:
        yield
    except Damaged as error:
        at = first_unreadable(log)
        where = f"the log cannot be read at offset {at}" if at is not None else "stored bytes are damaged"
        raise Trouble(f"{where}: {error}; `memctl check {source}` says how far it is good") from error


def first_unreadable(log: EventLog) -> int | None:
    """Offset of the first record whose bytes do not decode; None when all do."""
    seq = 0
    try:
        for item in offline.walk(log):
            current(item.record())
            seq = item.seq + 1
    except Damaged:
        return seq
    return None


def span(log: EventLog, first: str | None, last: str | None) -> tuple[int, int]:
    """The offsets that `--from` and `--to` name; the whole log without them."""
    newest = offline.head(log)
    if newest < 0:
        raise Trouble("the log holds no record; name the directory of a kernel that has run")
    low = 0 if first is None else offline.resolve(log, first)
    high = newest if last is None else offline.resolve(log, last)
    if low > high:
        raise Trouble(f"--from is offset {low} and --to is offset {high}; --from must not be the later one")
    return low, high


def show(arguments: argparse.Namespace, out: Output) -> int:
    source: str = arguments.source
    keys = offline.keys_of(arguments)
    with offline.opened(source, keys, out) as found, damage_named(found.log, source):
        seq = offline.resolve(found.log, arguments.point)
        item = offline.item_at(found.log, seq)
        if item is None:
            raise Trouble(f"the log does not hold offset {seq}; run `memctl check {source}` to see what is missing")
        data = revealed(item, found)
        out.show(data, *record_blocks(data))
        mac = found.keys is None or ev.frame_mac_ok(found.keys.frame_mac, next(iter(found.log.frames(seq))))
    if not mac:
        out.show({"problem": "mac"}, Line("the MAC of this record's frame is wrong: run `memctl verify`", "bold red"))
        return BAD
    return GOOD


def revealed(item: Item, found: Offline) -> dict[str, Any]:
    """A record's envelope and fields, decrypted when the key is there."""
    data = described(item)
    if found.vault is None:
        return data
    view = View(found.store.live(VIEW))
    for event, fields in zip(current(item.record()).events, data["events"], strict=True):
        if event.private is not None:
            private = opened_private(event, view, found.vault)
            fields["private"] = private if not isinstance(private, Private) else private_fields(private)
        content = opened_content(event, view, found.vault)
        if content is not None:
            fields["content"] = content
    return data


def described(item: Item) -> dict[str, Any]:
    """A record's envelope and public fields."""
    record = item.record()
    return {
        "offset": item.seq, "time": time_text(record.time), "actor": record.principal,
        "syscall": syscall_name(record.syscall), "epoch": record.epoch, "note": record.note,
        "request": record.request_mac.hex() if record.request_mac else None,
        "hash": item.hash.hex(), "prev_hash": item.prev.hex(), "record_bytes": len(item.raw),
        "frame": {"first": item.frame.first_seq, "records": len(item.frame.records), "bytes": item.frame_bytes},
        "events": [
            {"event": event.name, "schema": event.schema, **named(event)}
            | ({"private": f"{len(event.private[1])} bytes of ciphertext"} if event.private else {})
            for event in current(record).events
        ],
    }  # fmt: skip


def private_fields(private: Private) -> dict[str, Any]:
    """What a private part says; what is at its default is left out, an embedding is counted."""
    shown: dict[str, Any] = {}
    for name, value in private._asdict().items():
        if value in (None, [], {}) or (name == "priority" and value == 0):
            continue
        if name == "args_hash":
            value = value.hex()
        elif name == "embedding":
            value = f"{len(value) // 4} dimensions"
        elif name in ("valid_from", "valid_to"):
            value = time_text(value)
        shown[name] = value
    return shown


def record_blocks(data: dict[str, Any]) -> list[Block]:
    """What `revealed` gives, for people: a table of the envelope, then one for each event."""
    envelope, *events = sections(data)
    blocks: list[Block] = [Rows(("field", "value"), envelope)]
    for event in events:
        blocks.append(Line(event[0][1], "bold"))
        blocks.append(Rows(("field", "value"), event[1:]))
    return blocks


def sections(data: dict[str, Any]) -> Iterator[list[tuple[str, str]]]:
    """The envelope's fields and values as text, then those of each event; the first of an event is its name."""
    yield [(name, _text(value)) for name, value in data.items() if name != "events" and value is not None]
    for event in data["events"]:
        flat = [(name, value) for name, value in event.items() if name not in ("private", "content")]
        private = event.get("private")
        if isinstance(private, dict):
            flat += [(f"private.{name}", value) for name, value in private.items()]
        elif private is not None:
            flat.append(("private", private))
        if "content" in event:
            flat.append(("content", event["content"]))
        yield [(name, _text(value)) for name, value in flat if value is not None]


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return ", ".join(value) or "-"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(one)}" for name, one in value.items() if one is not None)
    return to_json(value)
