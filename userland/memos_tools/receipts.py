"""Receipts of erasures: that what one says happened, and that nothing of it can be opened any more.

A receipt is what mem_shred answered: signed by the log's key, it names a record. That record, the keys and the index segments
are looked up; where the keys are on brokers, also whether a wrapped copy is in one of their files past its time.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from memos_drivers.stores.base import INDEX, VIEW
from memos_kernel import events as ev
from memos_kernel import lifecycle
from memos_kernel.answers import Receipt, read_receipt, shredded_by
from memos_kernel.events import Damaged, Slot, unpack
from memos_kernel.governance import text_id
from memos_kernel.keystore import Keys as Keystore
from memos_kernel.offline import Offline
from memos_kernel.state import View, decode_version
from memos_kernel.verify import Problem

from . import offline
from .output import Trouble
from .render import Block, Line, time_text

NOWHERE: Final = -1
"""Offset of a problem that is not at one."""


def read(path: Path) -> bytes:
    """A receipt from a file: as bytes, in hexadecimal or base64, or inside the JSON that memsh prints."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Trouble(f"cannot read the receipt: {error}") from error
    if data[:1] >= b"\x80":
        return data
    text = data.decode(errors="replace").strip()
    try:
        found: Any = json.loads(text)
    except ValueError:
        found = text
    while isinstance(found, dict):
        found = next((found[name] for name in ("report", "receipt", "base64") if name in found), None)
    for decode in (bytes.fromhex, base64.b64decode):
        try:
            return decode(found)
        except (ValueError, TypeError):
            continue
    raise Trouble(f"{path} holds no receipt: give the bytes that mem_shred answered, or the JSON line of `memsh --json shred`")


def lines(receipt: Receipt, left: int) -> Iterator[Block]:
    what = f"the receipt holds: {len(receipt.cubes)} cubes erased at offset {receipt.seq}, their keys are gone"
    yield Line(what, "green")
    if left:
        assert receipt.erasure is not None
        by = time_text(receipt.erasure.gone_by)
        yield Line(f"{left} wrapped copies of them are still in files of the brokers; they will be gone by {by}", "yellow")


def problems(
    found: Offline, data: bytes, public_key: bytes | None
) -> tuple[Receipt | None, list[Problem], int]:
    """Whether what a receipt says happened, and is still so; and how many wrapped keys are on brokers still, in good time."""
    receipt, problems = _said_problems(found, data, public_key)
    if receipt is None or problems:
        return receipt, problems, 0
    return receipt, *_remains(found, View(found.store.live(VIEW)), receipt)


def _said_problems(found: Offline, data: bytes, public_key: bytes | None) -> tuple[Receipt | None, list[Problem]]:
    """Whether the log says what a receipt says."""
    forged = "Do not accept it; ask for the one that the kernel answered."
    try:
        receipt = read_receipt(data)
    except Damaged as error:
        return None, [Problem(NOWHERE, f"the receipt is not genuine: {error}", forged)]
    view = View(found.store.live(VIEW))
    at = receipt.seq
    if receipt.log_id != view.get(b"mlog_id"):
        return receipt, [Problem(NOWHERE, "the receipt is of another log", "Check it against the directory that it came from.")]
    if receipt.public_key != (public_key or view.get(b"mpublic_key")):
        return receipt, [Problem(NOWHERE, "the receipt is signed by another key than this log's", forged)]
    item = offline.item_at(found.log, at)
    if item is None or item.hash != receipt.record_hash:
        what = (
            "the log does not hold the record of the receipt"
            if item is None
            else "the receipt names another record than the log holds"
        )
        return receipt, [Problem(at, what, "The log was cut back or rewritten after the erasure: restore it, and erase again.")]
    record = item.record()
    if not any(event.name == ev.SHREDDED for event in record.events):
        return receipt, [Problem(at, "the receipt's record is not an erasure", forged)]
    if shredded_by(view, record) != receipt.cubes:
        return receipt, [Problem(at, "the view does not list the receipt's cubes as erased there", "Run `memctl check`.")]
    return receipt, []


def _remains(found: Offline, view: View, receipt: Receipt) -> tuple[list[Problem], int]:
    """What of the erased cubes could still be opened, and how many keys are still in files of brokers that may be there yet."""
    if found.keystore is None:
        return [Problem(receipt.seq, "the receipt's keys were not looked up", "Pass the master key (--key-file).")], 0
    problems: list[Problem] = []
    restart = "Start the kernel: it finishes every erasure before it serves."
    index = found.store.live(INDEX)
    every: set[Slot] = set()
    for cube_id in receipt.cubes:
        cube = view.cube(cube_id)
        slots = {cube.slot} if cube is not None and cube.slot is not None else set[Slot]()
        slots |= {decode_version(row)[0].slot for _key, row in view.scan(b"v" + cube_id)}
        every |= slots
        name = text_id(cube_id)
        if cube is None or cube.state != lifecycle.SHREDDED:
            problems.append(Problem(receipt.seq, f"cube {name} of the receipt is not erased", "Run `memctl check`."))
        if any(_holds_key(found.keystore, slot) for slot in slots):
            problems.append(Problem(receipt.seq, f"a key of cube {name} of the receipt still exists", restart))
        for key, _value in index.scan(b"i" + cube_id):
            segment = index.get(b"g" + key[17:])
            if found.segment_keys and segment is not None and _holds_key(found.segment_keys, Slot(*unpack(segment)[:2])):
                number = int.from_bytes(key[17:], "big")
                problems.append(Problem(receipt.seq, f"index segment {number} still lists cube {name} of the receipt", restart))
    left = found.remains(every)
    if left and (receipt.erasure is None or receipt.erasure.gone_by < time.time_ns()):
        by = ""
        if receipt.erasure is not None:
            by = f", though the receipt said that it would be gone by {time_text(receipt.erasure.gone_by)}"
        advice = "Let a kernel run on the topic: what it appends lets the brokers erase. Are all up, with their log cleaners?"
        for slot, at in left:
            what = f"the wrapped key {slot.epoch}.{slot.n} is still at offset {at} of the keys topic{by}"
            problems.append(Problem(receipt.seq, what, advice))
        return problems, 0
    return problems, len(left)


def _holds_key(keystore: Keystore, slot: Slot) -> bool:
    try:
        return keystore.key(slot) is not None
    except Damaged:
        # What is there opens nothing, but it was not overwritten either.
        return True
