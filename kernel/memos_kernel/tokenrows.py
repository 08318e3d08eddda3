"""Vectors of tokens on disk: one row for each version that has any, for the last stage of a search.

    b"t" · cube id · u32 version → [slot of the content's key, the rows [n, 64] int8 sealed under it]

They are some 2 KB a document, so they stay on disk; those that searches looked at last are kept in memory, up to
`CACHED_BYTES_MAX`. A shred destroys the key, drops the rows and what is cached. A fork's versions read those of the cube
that it was forked from, while that is there. A document without tokens is ranked without them.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from memos_drivers.plaintext.latent import WIDTH, Int8
from memos_drivers.stores.base import INDEX, Batch

from . import lifecycle
from .events import Damaged, Slot, pack, unpack
from .state import View

if TYPE_CHECKING:
    from .vault import Vault

CACHED_BYTES_MAX: Final = 64 << 20
PREFIX: Final = b"t"

Key = tuple[bytes, int]
"""A version of a cube."""


def _part(cube_id: bytes, version: int) -> bytes:
    return PREFIX + cube_id + version.to_bytes(4, "big")


class TokenRows:
    """Where tokens are kept; calls may come from any thread."""

    def __init__(self, store: Any, rows: Any, vault: Vault) -> None:
        self._store, self._rows, self._vault = store, rows, vault
        self._lock = threading.Lock()
        self._cached: OrderedDict[Key, Int8] = OrderedDict()
        self._bytes = 0
        self._erasures = 0

    def keep(self, view: View, items: Iterable[tuple[bytes, int, Int8]]) -> None:
        """Store tokens under their contents' keys; none for a cube whose key is gone."""
        batch = Batch()
        for cube_id, version, rows in items:
            cube = view.cube(cube_id)
            found = view.version(cube, version) if cube is not None else None
            if found is None or not len(rows):
                continue
            part, slot = _part(cube_id, version), found[0].payload_slot
            sealed = self._vault.seal_vector(slot, part, rows.tobytes())
            if sealed is not None:
                batch.put(INDEX, part, pack((*slot, sealed)))
            with self._lock:
                self._drop((cube_id, version))
        self._store.write(batch)

    def read(self, view: View, keys: Sequence[Key]) -> list[Int8 | None]:
        """The tokens of these versions, None for one that has none or is erased."""
        found: list[Int8 | None] = []
        for key in keys:
            with self._lock:
                if key in self._cached:
                    self._cached.move_to_end(key)
                    found.append(self._cached[key])
                    continue
                erasures = self._erasures
            rows = self._open(view, *key)
            found.append(rows)
            with self._lock:
                # What was opened just before its key was destroyed must not stay.
                if rows is not None and self._erasures == erasures:
                    self._drop(key)
                    self._cached[key] = rows
                    self._bytes += rows.nbytes
                while self._bytes > CACHED_BYTES_MAX:
                    self._drop(next(iter(self._cached)))
        return found

    def forget(self, cube_ids: Collection[bytes]) -> None:
        """Cubes were erased, keys and all: nothing of them stays in memory."""
        gone = set(cube_ids)
        with self._lock:
            self._erasures += 1
            for key in [key for key in self._cached if key[0] in gone]:
                self._drop(key)

    def listed(self, cube_id: bytes, newest: int | None) -> list[bytes]:
        """The rows of a cube's versions up to one, of all if None; to be deleted."""
        rows = (key for key, _value in self._rows.scan(PREFIX + cube_id))
        return [key for key in rows if newest is None or int.from_bytes(key[17:21], "big") <= newest]

    def _open(self, view: View, cube_id: bytes, version: int) -> Int8 | None:
        cube = view.cube(cube_id)
        if cube is None or cube.state == lifecycle.SHREDDED:
            return None
        part = _part(cube_id, version)
        data = self._rows.get(part)
        if data is None:
            inherited = cube.forked_from is not None and version <= cube.forked_from[1]
            return self._open(view, cube.forked_from[0], version) if inherited and cube.forked_from is not None else None
        epoch, n, sealed = unpack(data)
        try:
            raw = self._vault.open_vector(Slot(epoch, n), part, sealed)
        except Damaged:
            # A search goes on with the other stages.
            return None
        return None if raw is None else np.frombuffer(raw, np.int8).reshape(-1, WIDTH)

    def _drop(self, key: Key) -> None:
        if (rows := self._cached.pop(key, None)) is not None:
            self._bytes -= rows.nbytes
