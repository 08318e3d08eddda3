"""verify's second half: the stored view against the one that a replay gives, and every ciphertext against its key.

- The view is read as of one moment (`still`), so a kernel that goes on writing is neither skipped nor accused.
- `compare` takes every row that the log gives, of every kind, and what the view says of itself: where it stands.
- `open_everything` opens what its keys open. A key may go while it works: that is right when the live view says by then
  that its cube was shredded, and a shred whose keys still live is right while the kernel is carrying it out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from memos_drivers.stores.base import VIEW, Reader, Store
from memos_syscalls.errors import MemError

from . import crypto, lifecycle
from . import events as ev
from .events import Damaged, Slot
from .state import (
    DIGEST_BYTES,
    META_APPLIED,
    META_CHECKPOINT,
    Cube,
    Tables,
    View,
    decode_cube,
    decode_namespace,
    decode_version,
)  # fmt: skip
from .vault import Vault

Say = Callable[[int, str, str], None]
"""Takes a problem: offset, what is wrong, what to do."""
PROGRESS_EVERY: Final = 4096
RESTORE: Final = (
    "Restore the data directory from a backup made before the damage; `memctl check` shows what is good up to here."
)
REPAIR: Final = "Run `memctl check --repair`: it makes the view again from the log."
KINDS: Final = {
    b"c": "cube", b"v": "version", b"n": "namespace", b"l": "listing", b"s": "past state", b"d": "lineage", b"g": "fork",
    b"f": "fusion", b"o": "supersession", b"w": "superseding", b"e": "expiry", b"k": "key slot", b"r": "request id",
    b"x": "erasure", b"p": "pin", b"a": "adapter", b"m": "meta",
}  # fmt: skip


class Applied(NamedTuple):
    """Where a view says that it stands."""

    seq: int
    time: int
    hash: bytes
    digest: bytes
    epoch: int


def still(store: Store) -> Reader:
    """The view as of one moment. Taken beside the thread that writes, a snapshot's `get` and `scan` may be of two moments,
    so it is taken again until they agree."""
    while True:
        view = store.snapshot(VIEW)
        scanned = next((value for _key, value in view.scan(META_APPLIED)), None)
        if scanned == view.get(META_APPLIED):
            return view


def applied(view: Reader) -> Applied | None:
    """Where the view stands; None when it is empty or does not tell."""
    try:
        found: Any = ev.unpack(view.get(META_APPLIED) or b"")
    except Damaged:
        return None
    if type(found) is not list or [type(field) for field in found] != [int, int, bytes, bytes, int]:
        return None
    return Applied(*found)


def compare(stored: Reader, applied: Applied, tables: Tables, at: tuple[ev.Record, bytes], say: Say) -> None:
    """The stored view's rows against the replay's, which is at record `at` (with its hash): by row, so that a changed one
    is named."""
    record, hash_ = at
    overlay = tables.overlay
    wanted = overlay.get
    seen = 0
    for key, value in stored.scan(b""):
        expected = wanted(key)
        if expected == value:
            seen += 1
        elif expected is not None:
            seen += 1
            say(_made_at(tables, key, expected), f"{_named(key)} of the view is not what the log says", REPAIR)
        elif key != META_APPLIED:
            say(record.seq, f"{_named(key)} of the view is in no record of the log", REPAIR)
    if seen < sum(value is not None for value in overlay.values()):
        for key, expected in overlay.items():
            if expected is not None and stored.get(key) is None:
                say(_made_at(tables, key, expected), f"{_named(key)} of the view is missing", REPAIR)
    if applied.digest != tables.digest.to_bytes(DIGEST_BYTES, "little"):
        say(record.seq, "the digest that the view carries is not the one that the log gives", REPAIR)
    if (applied.time, applied.hash, applied.epoch) != (record.time, hash_, record.epoch):
        say(record.seq, f"the view was made from another record than the one at offset {record.seq}", REPAIR)


def _named(key: bytes) -> str:
    return f"the {KINDS.get(key[:1], 'unknown')} row {key.hex()}"


def _made_at(tables: Tables, key: bytes, value: bytes) -> int:
    """The record that a row of the replay comes from, or that made the cube it is about."""
    match key[:1]:
        case b"c":
            return decode_cube(value).changed_seq
        case b"v":
            return decode_version(value)[0].seq
        case b"n":
            return decode_namespace(value).created_seq
        case b"r" | b"o" | b"w":
            return int.from_bytes(value, "big")
        case b"x":
            return int.from_bytes(key[1:], "big")
        case b"s":
            return int.from_bytes(key[17:], "big")
        case b"m":
            return int(ev.unpack(value)[0]) if key == META_CHECKPOINT else 0
        case b"k":
            cube = tables.cube(value)
        case b"f":
            cube = tables.cube(key[1:17])
        case _:
            cube = tables.cube(key[-16:])
    return 0 if cube is None else cube.created_seq


def open_everything(
    store: Store, tables: Tables, vault: Vault, say: Say, progress: Callable[[int], None] | None, *, live: bool
) -> None:
    """Every private part and payload must match its digest, and open when its key is alive and its cube not erased."""
    count = 0
    for key, value in tables.overlay.items():
        if key[:1] != b"v" or value is None:
            continue
        count += 1
        if progress is not None and count % PROGRESS_EVERY == 0:
            progress(count)
        row, private = decode_version(value)
        data = tables.overlay.get(b"c" + row.cube_id)
        cube = None if data is None else decode_cube(data)
        try:
            if crypto.sha256(private) != row.private_digest:
                say(row.seq, f"the private part of the record at offset {row.seq} is not the one it was signed with", RESTORE)
            pieces = vault.sealed_payload(row)
            if crypto.sha256(pieces[0] if len(pieces) == 1 else b"".join(pieces)) != row.payload_digest:
                say(row.seq, f"the payload of the record at offset {row.seq} is not the one it was signed with", RESTORE)
                continue
            if cube is None or cube.state == lifecycle.SHREDDED:
                if vault.alive(row.slot) and not (live and _under_way(vault, cube, row.slot)):
                    say(
                        row.seq, f"a key of the cube erased after offset {row.seq} still exists",
                        "Start the kernel: it finishes erasures.",
                    )  # fmt: skip
                continue
            vault.open_private(row, private)
            if row.payload_slot == row.slot or vault.alive(row.payload_slot):
                vault.open_payload(row, pieces)
        except MemError:
            # A payload's key may be another cube's, and is judged there.
            if not vault.alive(row.slot) and not (live and _erased_since(store, row.cube_id)):
                say(
                    row.seq, f"the key of the record at offset {row.seq} is gone, though nothing erased it",
                    "Restore the key store from its backup.",
                )  # fmt: skip
        except Damaged as error:
            if not (live and _erased_since(store, row.cube_id)):
                say(row.seq, str(error), RESTORE)


def _under_way(vault: Vault, cube: Cube | None, slot: Slot) -> bool:
    """Whether the kernel is destroying a key just now, or has since it was looked at."""
    carried_out = vault.keystore.header.shred_seq
    return (cube is not None and carried_out < cube.changed_seq) or not vault.alive(slot)


def _erased_since(store: Store, cube_id: bytes) -> bool:
    """Whether a cube that was alive in the replay is shredded by now."""
    cube = View(store.live(VIEW)).cube(cube_id)
    return cube is not None and cube.state == lifecycle.SHREDDED
