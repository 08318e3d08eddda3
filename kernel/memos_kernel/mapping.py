"""mem_map: a payload's descriptor for whoever may read it, and a record of who was handed one.

- What is handed out is a duplicate of the host tier's descriptor: memory sealed against writing, growing and shrinking.
- A connection may have `MAPS_PER_CONNECTION_MAX` different payloads, and a principal's connections
  `MAPPED_BYTES_PER_PRINCIPAL_MAX` bytes of them. The kernel does not see a client close a descriptor, so they count until the
  connection closes.
- Who was handed a map is remembered for the shred report while the kernel runs, by the key that its payload is under: a map
  is memory that the client has, and outlives the key. The last `REMEMBERED_MAX` keys that were mapped are remembered.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from memos_drivers import tensors
from memos_syscalls import limits
from memos_syscalls.errors import MemBusy, MemInvalid, MemIO

from . import lifecycle
from .events import Damaged, Slot
from .governance import Access, text_id
from .hosttier import Held
from .reads import locate
from .sources import check_sources
from .state import Cube, Version
from .turn import Peer, Turn

if TYPE_CHECKING:
    from .dispatch import Kernel

LAYOUT_BYTES_MAX: Final = limits.MIB
"""Largest header of tensors that is read out; the layout goes into a reply."""
REMEMBERED_MAX: Final = 65_536
PER_KEY_MAX: Final = 256
TOLD_MAX: Final = 1024
COUNTED: Final = "Close what you mapped and this connection, and open another: maps count until their connection closes."


class Maps:
    """What was handed out."""

    def __init__(self) -> None:
        self._of_peer: dict[Peer, dict[bytes, int]] = {}
        """Payloads of each connection, with their bytes."""
        self._bytes: dict[str, int] = {}
        self._handed: OrderedDict[Slot, dict[tuple[str, bytes, int], None]] = OrderedDict()
        self._told: OrderedDict[int, list[str]] = OrderedDict()
        """What shreds reported, by record: who repeats one is told the same."""

    def check(self, peer: Peer, row: Version) -> None:
        """Refuse a map that would be one too many."""
        mine = self._of_peer.get(peer, {})
        if row.payload_id in mine:
            return
        if len(mine) >= limits.MAPS_PER_CONNECTION_MAX:
            raise MemBusy(f"this connection has mapped {len(mine)} payloads", COUNTED)
        principal = peer.caller.principal
        if self._bytes.get(principal, 0) + row.payload_bytes > limits.MAPPED_BYTES_PER_PRINCIPAL_MAX:
            raise MemBusy(f"{principal} has mapped {self._bytes[principal]} bytes", COUNTED)

    def lend(self, peer: Peer, cube: Cube, row: Version) -> None:
        """Count a map that is handed out, and remember to whom."""
        self.check(peer, row)
        mine = self._of_peer.setdefault(peer, {})
        if row.payload_id not in mine:
            mine[row.payload_id] = row.payload_bytes
            principal = peer.caller.principal
            self._bytes[principal] = self._bytes.get(principal, 0) + row.payload_bytes
        pid = getattr(peer, "pid", None)  # Only a socket knows it.
        who = peer.caller.principal if pid is None else f"{peer.caller.principal} pid {pid}"
        holders = self._handed.setdefault(row.payload_slot, {})
        self._handed.move_to_end(row.payload_slot)
        holders[who, cube.cube_id, row.version] = None
        if len(holders) > PER_KEY_MAX:
            del holders[next(iter(holders))]
        if len(self._handed) > REMEMBERED_MAX:
            self._handed.popitem(last=False)

    def closed(self, peer: Peer) -> None:
        """A connection is over; what it mapped is its own business, and counts no more."""
        mine = self._of_peer.pop(peer, None)
        if mine is not None:
            principal = peer.caller.principal
            self._bytes[principal] -= sum(mine.values())
            if not self._bytes[principal]:
                del self._bytes[principal]

    def erased(self, seq: int, slots: Iterable[Slot]) -> None:
        """The shred of record `seq` destroys these keys; who was handed what is under them goes into its report."""
        lines = [
            f"{who}: version {version} of {text_id(cube_id)}"
            for slot in slots
            for who, cube_id, version in self._handed.pop(slot, ())
        ]
        if lines:
            self._told[seq] = lines
            if len(self._told) > TOLD_MAX:
                self._told.popitem(last=False)

    def of_shred(self, seq: int) -> list[str]:
        """Who was handed a map of what this shred erased."""
        return self._told.get(seq, [])


async def mem_map(kernel: Kernel, turn: Turn, request: Any) -> None:
    access = Access(kernel.view, turn.peer.caller)
    cube, number, state, now, _seq = locate(kernel, access, request)
    if state == lifecycle.SHREDDED:
        raise lifecycle.refusal(request.cube_id, state, "map")
    found = access.view.version(cube, number)
    if found is None:
        raise Damaged(f"cube {cube.cube_id.hex()} has no version {number}")
    row, sealed = found
    effective = lifecycle.effective(state, row.expires_at, now)
    if effective == lifecycle.EXPIRED and request.version is None:
        raise lifecycle.refusal(request.cube_id, effective, "map")
    check_sources(access, cube, number)
    opened = kernel.vault.cached(cube.cube_id, number)
    private = opened.private if opened is not None else kernel.vault.open_private(row, sealed)
    if (private.recipe or {}).get("method") == "compose":
        raise MemInvalid(
            f"cube {request.cube_id} is a composition: it has no payload of its own", "Map its members, or read it."
        )
    kernel.maps.check(turn.peer, row)
    held = await kernel.hosttier.load(cube, row)
    layout = None if cube.form == "plaintext" else await _layout(cube, held)
    if turn.finished:
        return
    reply: dict[str, Any] = {
        "cube_id": request.cube_id, "version": number, "form": cube.form, "offset": row.seq, "bytes": held.bytes, "fd": 0,
        "tier": held.found, "encoding": private.encoding if cube.form == "plaintext" else "bytes", "layout": layout,
    }  # fmt: skip
    kernel.maps.lend(turn.peer, cube, row)
    turn.answer(reply, [os.dup(held.fd)])


async def _layout(cube: Cube, held: Held) -> dict[str, Any]:
    """Where the tensors of a payload lie; read once for as long as it stays in memory."""
    memory = held.memory
    if memory.layout is None:
        try:
            memory.layout = await asyncio.to_thread(read_layout, held.fd, held.bytes)
        except MemInvalid as error:
            raise MemIO(f"the payload of cube {text_id(cube.cube_id)} does not hold tensors: {error.detail}") from error
    return {
        "tensors": [
            {"name": t.name, "dtype": t.dtype, "shape": list(t.shape), "offset": t.offset, "bytes": t.bytes}
            for t in memory.layout.tensors
        ],
        "metadata": memory.layout.metadata,
    }


def read_layout(fd: int, size: int) -> tensors.Layout:
    """The layout of the safetensors file in a descriptor; raises `MemInvalid`."""
    length = int.from_bytes(os.pread(fd, 8, 0), "little")
    head = os.pread(fd, 8 + min(length, LAYOUT_BYTES_MAX), 0)
    return tensors.parse(head, size, header_bytes_max=LAYOUT_BYTES_MAX)
