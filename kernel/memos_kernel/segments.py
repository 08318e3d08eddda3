"""Index segments on disk: encrypted, at most 4,096 cubes each, each under a key of its own.

Rows of the index family:

- `g` number u64 → `[slot epoch, slot n, ciphertext]`: one segment, packed by the driver
- `k` slot epoch u64, slot n u64 → number u64: the keys that segments are under; written and deleted with `g`
- `n` → u64: the next segment's number; none is used twice
- `i` cube_id, number u64 → nothing: which segments list a cube
- `u` cube_id, version u32 → nothing: documents whose segment was blinded and that wait for a new one
- `x` cube_id, version u32 → `[slot epoch, slot n, ciphertext]`: one int8 vector under its cube's own key
- `p` → offset up to which every document is in a segment or a `u` row

A shred destroys the key of every segment that lists the cube before it is answered. A segment is never written again:
its other documents get `u` rows and go into a new one, opened from the view, so that nothing erased is carried along.
A segment key that no `k` row names is destroyed at start.
None of this is needed for correctness of reads: without it the indexes are made from the log. So a disk that refuses a
row here stops the sealing for a while, and nothing else; only `blind` must succeed.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from memos_drivers.plaintext import segment as packing
from memos_drivers.plaintext.documents import Document
from memos_drivers.plaintext.index import PlaintextIndex
from memos_drivers.stores.base import INDEX, Batch, Store
from memos_syscalls import limits
from memos_syscalls.errors import MemShredded

from . import crypto, lifecycle, tokenrows
from . import events as ev
from .effects import document_of, live_version, rows_of
from .eventlog.base import EventLog, records
from .events import Damaged, Slot, pack, unpack
from .keystore import KeyStore
from .state import View, decode_cube, u64
from .tokenrows import Key, TokenRows
from .vault import Vault

log_ = logging.getLogger("memos.index")

UNSEALED_MAX: Final = 3 * limits.SEGMENT_CUBES_MAX
"""Documents that may wait for their vectors before they are sealed without."""
PAUSE_SECONDS: Final = 30.0
"""How long nothing is sealed after the disk refused."""
TOLD_MAX: Final = 10_000


def _slots(view: View, cube_id: bytes, version: int) -> tuple[Slot, ...]:
    """The keys that a version is under."""
    cube = view.cube(cube_id)
    found = view.version(cube, version) if cube is not None else None
    return (found[0].slot, found[0].payload_slot) if found is not None else ()


class Segments:
    """Owned by the effects' thread; `blind` runs in the flusher, and the lock is for that."""

    def __init__(
        self, store: Store, keys: KeyStore, epoch: int, vault: Vault, log: EventLog, log_id: bytes, *, read_only: bool = False
    ) -> None:
        self._read_only = read_only
        self._store = store
        self._rows = store.live(INDEX)
        self._keys = keys
        self._epoch = epoch
        self._vault = vault
        self._log = log
        self._log_id = log_id
        self.tokens = TokenRows(store, self._rows, vault)
        self._lock = threading.Lock()
        self._unsealed: dict[Key, None] = {}
        self._free: list[tuple[Slot, bytes]] = []
        self._block = 0
        self._sealing = threading.Lock()
        number = self._rows.get(b"n")
        self._number = 1 if number is None else int.from_bytes(number, "big")
        self._told: set[bytes] = set()
        self._paused_until = 0.0
        self._hold: int | None = None
        self.failed: str | None = None
        """Why nothing is sealed for a while."""
        self.count = 0

    # -- keeping count -----------------------------------------------------------------------------------------------

    def added(self, keys: list[Key]) -> None:
        with self._lock:
            self._unsealed.update(dict.fromkeys(keys))

    def removed(self, cube_ids: list[bytes]) -> None:
        gone = set(cube_ids)
        with self._lock:
            for key in [key for key in self._unsealed if key[0] in gone]:
                del self._unsealed[key]

    def left_out(self, cube_id: bytes, error: Exception) -> None:
        """Log that a cube cannot be indexed, once."""
        if cube_id not in self._told:
            if len(self._told) >= TOLD_MAX:
                self._told.clear()
            self._told.add(cube_id)
            log_.error("not indexed: cube %s: %s; run `memctl verify` on the data directory", cube_id.hex(), error)

    def hold(self, seq: int) -> None:
        """What the record at `seq` made may not be indexed, though it could be: the next start must look at it again."""
        self._hold = seq if self._hold is None else min(self._hold, seq)

    def _pause(self, error: OSError) -> None:
        self.failed = f"the disk refused an index row: {error}"
        self._paused_until = time.monotonic() + PAUSE_SECONDS
        log_.error("%s; searches go on, nothing of the index is stored for %d s", self.failed, PAUSE_SECONDS)

    @property
    def _writable(self) -> bool:
        return not self._read_only and time.monotonic() >= self._paused_until

    @property
    def due(self) -> bool:
        return len(self._unsealed) >= limits.SEGMENT_CUBES_MAX and self._writable

    # -- sealing -----------------------------------------------------------------------------------------------------

    def seal(self, index: PlaintextIndex, view: View, everything: bool = False) -> None:
        """Write full segments; with `everything` also a last one that is not full. Nothing for a read-only store."""
        if self._read_only:
            return
        with self._sealing:
            try:
                self._seal_all(index, view, everything)
            except OSError as error:
                self._pause(error)

    def _seal_all(self, index: PlaintextIndex, view: View, everything: bool) -> None:
        while len(self._unsealed) >= limits.SEGMENT_CUBES_MAX or (everything and self._unsealed):
            with self._lock:
                keys = list(self._unsealed)[: limits.SEGMENT_CUBES_MAX]
            if not everything and len(self._unsealed) < UNSEALED_MAX and not all(index.sizes(keys)):
                return
            if not self._seal_some(index, view, keys):
                return
            self.failed = None

    def _seal_some(self, index: PlaintextIndex, view: View, keys: list[Key]) -> bool:
        """Write these documents, in one segment for each size of vectors; False when a shred came in between."""
        documents: dict[int, list[Document]] = {}
        under: dict[Slot, None] = {}
        usual = index.dims
        for (cube_id, version), size in zip(keys, index.sizes(keys), strict=True):
            document = self._open(view, cube_id, version)
            if document is not None:
                documents.setdefault(size or usual, []).append(document)
                under.update(dict.fromkeys(_slots(view, cube_id, version)))
        batch = Batch()
        number = self._number
        slots: list[Slot] = []
        for size, group in documents.items():
            vectors = index.packed_vectors([(d.cube_id, d.version) for d in group], size)
            slots.append(self._put_segment(batch, number, group, vectors))
            number += 1
        for cube_id, version in keys:
            batch.put(INDEX, b"u" + cube_id + version.to_bytes(4, "big"), None)
        sealed_seq = max([self._sealed_seq(), *(d.seq for group in documents.values() for d in group)])
        if self._hold is not None:
            sealed_seq = min(sealed_seq, self._hold - 1)
        if sealed_seq >= 0:
            batch.put(INDEX, b"p", u64(sealed_seq))
        batch.put(INDEX, b"n", u64(number))
        with self._lock:
            if any(self._vault.is_destroyed(key_slot) for key_slot in under):
                # A shred came in between: these segments must not exist. The next try leaves out what is gone.
                self._keys.destroy(slots)
                return False
            self._store.write(batch)
            self._number = number
            self.count += len(slots)
            for known in keys:
                self._unsealed.pop(known, None)
        return True

    def _put_segment(self, batch: Batch, number: int, documents: list[Document], vectors: Any) -> Slot:
        slot, key = self._take_key()
        plain = packing.pack(documents, vectors if vectors.shape[1] else None)
        nonce = os.urandom(crypto.NONCE_BYTES)
        sealed = crypto.wrap(AESGCM(key), nonce, plain, crypto.aad_of(self._log_id, u64(number)))
        batch.put(INDEX, b"g" + u64(number), pack((*slot, sealed)))
        batch.put(INDEX, b"k" + u64(slot.epoch) + u64(slot.n), u64(number))
        for document in documents:
            batch.put(INDEX, b"i" + document.cube_id + u64(number), b"")
        return slot

    def _take_key(self) -> tuple[Slot, bytes]:
        if not self._free:
            self._free = self._keys.prepare(self._epoch, self._block)
            self._block += 1
        return self._free.pop(0)

    def _sealed_seq(self) -> int:
        data = self._rows.get(b"p")
        return -1 if data is None else int.from_bytes(data, "big")

    def _open(self, view: View, cube_id: bytes, version: int) -> Document | None:
        cube = view.cube(cube_id)
        if cube is None or cube.state == lifecycle.SHREDDED:
            return None
        try:
            opened = self._vault.open(view, cube, version)
        except MemShredded:
            return None
        except Damaged as error:
            self.left_out(cube_id, error)
            return None
        if opened is None:
            return None
        document = document_of(cube, opened)
        if document is not None and cube.forked_from is not None and version <= cube.forked_from[1]:
            document = document._replace(seq=cube.created_seq)
        return document

    # -- erasing -----------------------------------------------------------------------------------------------------

    @property
    def blinded_seq(self) -> int:
        """The newest shred to which the segments of this directory are blind; for a log that others can reach."""
        return self._keys.header.shred_seq

    def blinded(self, seq: int) -> None:
        """Note that the segments are blind to a shred and to all before it."""
        if not self._read_only and seq > self.blinded_seq:
            self._keys.update(shred_seq=seq)

    def blind(self, cube_ids: list[bytes], heirs: dict[bytes, int]) -> None:
        """Destroy the keys of all segments that list these cubes or their heirs (fork → the newest version that it
        loses), durably; then note what the segments held besides."""
        with self._lock:
            numbers = {
                int.from_bytes(key[17:], "big")
                for cube_id in (*cube_ids, *heirs)
                for key, _value in self._rows.scan(b"i" + cube_id)
            }
            slots: list[Slot] = []
            held: list[Key] = []
            batch = Batch()
            closed: set[int] = set()
            for number in sorted(numbers):
                data = self._rows.get(b"g" + u64(number))
                documents = [] if data is None else self._documents(number, data)[0]
                if data is not None:
                    slots.append(self._forget_segment(batch, number, data))
                if not documents:
                    closed.add(number)
                for document in documents:
                    held.append((document.cube_id, document.version))
                    batch.put(INDEX, b"i" + document.cube_id + u64(number), None)
            # Of a segment that does not open only the rows know what it lists: cut short while it was blinded, or damaged.
            for key in self._listing(closed):
                batch.put(INDEX, key, None)
            gone = set(cube_ids)
            if held:
                # Durable before the key is gone: or what lived in the segment would be lost to every search.
                rescued = Batch()
                for cube_id, version in held:
                    if cube_id not in gone and version > heirs.get(cube_id, 0):
                        rescued.put(INDEX, b"u" + cube_id + version.to_bytes(4, "big"), b"")
                        self._unsealed[cube_id, version] = None
                self._store.write(rescued)
                self._store.sync()
            self._keys.destroy(slots)
            for cube_id in (*cube_ids, *heirs):
                for key, _value in self._rows.scan(b"x" + cube_id):
                    if cube_id in gone or int.from_bytes(key[17:21], "big") <= heirs[cube_id]:
                        batch.put(INDEX, key, None)
                for key in self.tokens.listed(cube_id, None if cube_id in gone else heirs[cube_id]):
                    batch.put(INDEX, key, None)
            self._store.write(batch)
            self.tokens.forget((*cube_ids, *heirs))

    def _forget_segment(self, batch: Batch, number: int, data: bytes) -> Slot:
        """Delete what names a segment, but for its `i` rows; returns its key's slot."""
        epoch, n, _sealed = unpack(data)
        batch.put(INDEX, b"g" + u64(number), None)
        batch.put(INDEX, b"k" + u64(epoch) + u64(n), None)
        return Slot(epoch, n)

    def _listing(self, numbers: set[int]) -> list[bytes]:
        """The `i` rows of segments; looks at those of all."""
        return [key for key, _value in self._rows.scan(b"i") if int.from_bytes(key[17:], "big") in numbers] if numbers else []

    def destroy_unnamed(self) -> None:
        """Destroy the keys that no segment is under, durably: those prepared by kernels before this one, and those of
        blinded segments that came back with an old key store. To be called at start, after shreds were redone and before
        anything is sealed."""
        if self._read_only:
            return
        with self._lock:
            named = {(int.from_bytes(key[1:9], "big"), int.from_bytes(key[9:], "big")) for key, _v in self._rows.scan(b"k")}
            unnamed = [slot for epoch in self._keys.epochs for slot in self._keys.live_slots(epoch) if tuple(slot) not in named]
            if unnamed:
                self._keys.destroy(unnamed)

    # -- vectors -----------------------------------------------------------------------------------------------------

    def keep_vectors(self, view: View, index: PlaintextIndex, keys: Sequence[tuple[bytes, int]]) -> None:
        """Store vectors that were just set, each under its cube's key; none is stored for a cube whose key is gone."""
        if not self._writable or not keys:
            return
        batch = Batch()
        sizes = index.sizes(keys)
        for size in set(sizes) - {0}:
            mine = [key for key, one in zip(keys, sizes, strict=True) if one == size]
            for (cube_id, version), row in zip(mine, index.packed_vectors(mine, size), strict=True):
                cube = view.cube(cube_id)
                found = view.version(cube, version) if cube is not None else None
                if found is None or not row.any():
                    continue
                # Under the content's key, not the version's: a vector must go when its content goes.
                name = cube_id + version.to_bytes(4, "big")
                sealed = self._vault.seal_vector(found[0].payload_slot, name, row.tobytes())
                if sealed is not None:
                    batch.put(INDEX, b"x" + name, pack((*found[0].payload_slot, sealed)))
        if batch.puts:
            try:
                self._store.write(batch)
            except OSError as error:
                self._pause(error)

    def keep_tokens(self, view: View, items: list[tuple[bytes, int, Any]]) -> None:
        """Store the tokens of versions that got their vectors."""
        if self._writable:
            try:
                self.tokens.keep(view, items)
            except OSError as error:
                self._pause(error)

    def vector(self, view: View, cube_id: bytes, version: int) -> Any:
        """A stored vector; None when there is none that opens."""
        part = cube_id + version.to_bytes(4, "big")
        data = self._rows.get(b"x" + part)
        if data is None:
            return None
        epoch, n, sealed = unpack(data)
        try:
            raw = self._vault.open_vector(Slot(epoch, n), part, sealed)
        except Damaged as error:
            self.left_out(cube_id, error)
            return None
        return None if raw is None else np.frombuffer(raw, np.int8).astype(np.float32)

    # -- loading -----------------------------------------------------------------------------------------------------

    def load(self, index: PlaintextIndex, view: View) -> None:
        """Fill an empty index: from segments, then from rows and records that no segment covers."""
        try:
            self._load(index, view)
        except Exception:
            self.hold(self._sealed_seq() + 1)
            raise

    def _load(self, index: PlaintextIndex, view: View) -> None:
        sealed_seq = self._sealed_seq()
        edge: set[Key] = set()
        self.count = 0
        blind: set[int] = set()
        for key, data in self._rows.scan(b"g"):
            number = int.from_bytes(key[1:], "big")
            documents, vectors = self._documents(number, data)
            if not documents:
                blind.add(number)
            else:
                index.add(documents, vectors)
                self.count += 1
                edge.update((d.cube_id, d.version) for d in documents if d.seq >= sealed_seq)
        loose = [(key[1:17], int.from_bytes(key[17:21], "big")) for key, _value in self._rows.scan(b"u")]
        if blind:
            # Damaged, or cut short while it was blinded: what it listed is made again from the view.
            listing = self._listing(blind)
            cubes = {key[1:17] for key in listing}
            again = [(cube_id, version) for cube_id in cubes for version in self._versions(view, cube_id)]
            loose += again
            self._reopen(blind, listing, again)
        self._add_loose(index, view, loose)
        self._add_loose(index, view, (key for key in self._after(view, sealed_seq) if key not in edge))
        for _key, row in view.scan(b"c"):
            cube = decode_cube(row)
            if (live := live_version(cube)) is not None:
                index.set_live(cube.cube_id, live)

    def _documents(self, number: int, data: bytes) -> tuple[list[Document], Any]:
        epoch, n, sealed = unpack(data)
        try:
            key = self._keys.key(Slot(epoch, n))
            if key is None:
                return [], None
            plain = crypto.unwrap(AESGCM(key), sealed, crypto.aad_of(self._log_id, u64(number)))
            return packing.unpack(plain)
        except (crypto.Undecryptable, Damaged, ValueError) as error:
            log_.error("index segment %d is damaged (%s); what it listed is made again from the log", number, error)
            return [], None

    def _reopen(self, numbers: set[int], listing: list[bytes], keys: list[Key]) -> None:
        """Give up segments that do not open; their documents wait for a new one. A shred comes before or after it."""
        if not self._writable:
            return
        batch = Batch()
        for key in listing:
            batch.put(INDEX, key, None)
        for cube_id, version in keys:
            batch.put(INDEX, b"u" + cube_id + version.to_bytes(4, "big"), b"")
        with self._lock:
            found = [(number, self._rows.get(b"g" + u64(number))) for number in sorted(numbers)]
            slots = [self._forget_segment(batch, number, data) for number, data in found if data is not None]
            try:
                self._store.write(batch)
                # No row says any more what these list, so no later shred could find them.
                self._keys.destroy(slots)
            except OSError as error:
                self._pause(error)

    def _versions(self, view: View, cube_id: bytes) -> Iterator[int]:
        cube = view.cube(cube_id)
        if cube is not None:
            yield from range(cube.forked_from[1] if cube.forked_from else 1, cube.version + 1)

    def _after(self, view: View, seq: int) -> Iterator[Key]:
        """Versions that records from `seq` on made, as far as the view has them."""
        for _raw, record in records(self._log, max(seq, 0)):
            for event in record.events:
                if event.name == ev.ALLOCATED:
                    yield event.fields[0], 1
                elif event.name == ev.WRITTEN:
                    yield event.fields[0], event.fields[1]
                elif event.name == ev.FORKED:
                    for cube_id in view.cubes_below(event.fields[1]):
                        cube = view.cube(cube_id)
                        if cube is not None and cube.created_seq == record.seq and cube.forked_from is not None:
                            yield cube_id, cube.forked_from[1]

    def _add_loose(self, index: PlaintextIndex, view: View, keys: Any) -> None:
        batch: list[Document] = []
        vectors: list[tuple[Key, Any]] = []

        def flush() -> None:
            index.add(batch)
            self.added([(d.cube_id, d.version) for d in batch])
            index.set_vectors(*rows_of(vectors))
            batch.clear()
            vectors.clear()

        for cube_id, version in keys:
            try:
                document = self._open(view, cube_id, version)
            except OSError as error:
                self.left_out(cube_id, error)
                self.hold(self._sealed_seq() + 1)
                continue
            if document is None:
                continue
            batch.append(document)
            vector = self.vector(view, cube_id, version)
            if vector is None:
                vector = self._given(view, cube_id, version)
            if vector is not None:
                vectors.append(((cube_id, version), vector))
            if len(batch) >= 512:
                flush()
        flush()

    def _given(self, view: View, cube_id: bytes, version: int) -> Any:
        """The vector that a caller gave; None when there is none, or no more."""
        cube = view.cube(cube_id)
        try:
            opened = None if cube is None else self._vault.open(view, cube, version)
        except (MemShredded, Damaged):
            return None
        raw = None if opened is None else opened.private.embedding
        return None if raw is None else np.frombuffer(raw, "<f4")

    def merged_sources(self, view: View, seq: int) -> list[bytes]:
        """Cubes that the shred at `seq` brought back or handed on: sources of what it erased."""
        found: list[bytes] = []
        for _raw, record in records(self._log, seq):
            if record.seq != seq:
                break
            from .answers import shredded_by

            for cube_id in shredded_by(view, record):
                cube = view.cube(cube_id)
                found += [key[17:] for key, _value in view.scan(b"f" + cube_id)] if cube else []
        return found

    def drop(self) -> None:
        """Forget everything on disk and its keys, so that the next load makes the indexes from the log. At start only."""
        batch = Batch()
        for prefix in (b"g", b"i", b"k", b"u", b"x", b"p", tokenrows.PREFIX):
            for key, _value in self._rows.scan(prefix):
                batch.put(INDEX, key, None)
        self._store.write(batch)
        self._store.sync()
        self.destroy_unnamed()
