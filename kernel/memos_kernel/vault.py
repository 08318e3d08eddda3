"""Keys at work: seals drafts into events, opens versions, hands out prepared slots, destroys keys.

- A slot that is handed out is durable already, so an alloc pays no second fsync; `prepare` refills in blocks.
- `opened` keeps decrypted versions in RAM under a byte budget. Versions never change, so an entry is right for ever;
  `forget` drops what a shred erased.
- One lock guards the caches, so that index and long-write threads may open and seal beside the loop.
- Ids and nonces are random for every encryption attempt. Nothing here writes a log line.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import NamedTuple, cast

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from memos_drivers.stores.base import Reader
from memos_syscalls import limits
from memos_syscalls.errors import MemShredded

from . import crypto, private
from .decide import Draft, NewPayload, shredded
from .events import Damaged, Event, Slot
from .keystore import Keys
from .private import Private
from .randoms import Randoms
from .state import Cube, Version, View

KEYRING_MAX = 8192


class OutOfSlots(Exception):
    """No prepared slot is left; prepare a block and decide again."""


class Opened(NamedTuple):
    """A decrypted version."""

    version: Version
    private: Private
    content: bytes
    size: int = 0
    """Bytes that it takes in RAM, about."""


class SealedContent(NamedTuple):
    """Large content that was sealed and stored before its record."""

    payload: list[object]
    slot: Slot


class Vault:
    def __init__(self, keystore: Keys, epoch: int, log_id: bytes, payloads: Reader) -> None:
        self.keystore = keystore
        self.epoch = epoch
        self.log_id = log_id
        self._payloads = payloads
        self._lock = threading.Lock()
        self.randoms = Randoms()
        self._next_block = 0
        self._free: deque[tuple[Slot, bytes]] = deque()
        self._keyring: OrderedDict[Slot, bytes] = OrderedDict()
        self._taken: list[tuple[Slot, bytes]] = []
        """Slots, and below payloads, of the decision that is being made."""
        self._sealed: list[bytes] = []
        self._destroyed: set[Slot] = set()
        """Slots that this process destroyed: a thread that read one just before must not bring it back."""
        self.pending_payloads: dict[bytes, bytes] = {}
        """Sealed payloads that are not durable yet."""
        self._opened: OrderedDict[tuple[bytes, int], Opened] = OrderedDict()
        self.opened_bytes = 0

    # -- slots -------------------------------------------------------------------------------------------------------

    @property
    def free_slots(self) -> int:
        return len(self._free)

    def prepare(self) -> None:
        """Make one more block of slots durable. Blocks on the disk: run it in a thread, one at a time."""
        with self._lock:
            epoch, block = self.epoch, self._next_block
            self._next_block += 1
        made = self.keystore.prepare(epoch, block)
        with self._lock:
            # An epoch that ended meanwhile uses its slots no more.
            if epoch == self.epoch:
                self._free.extend(made)

    def begin_epoch(self, epoch: int) -> None:
        """Slots of the epoch before that are not used yet never will be: they were destroyed."""
        with self._lock:
            # Together: a block of the new epoch must not be made twice.
            self.epoch = epoch
            self._next_block = 0
            self._free.clear()
            for slot in [slot for slot in self._keyring if not self.keystore.present(slot)]:
                del self._keyring[slot]
        self._taken.clear()
        self._sealed.clear()
        self.pending_payloads.clear()

    def take_slot(self) -> Slot:
        if not self._free:
            raise OutOfSlots
        slot, key = self._free.popleft()
        self._remember(slot, key)
        self._taken.append((slot, key))
        return slot

    def reserve_slot(self) -> Slot:
        """A slot for content that is stored before its decision; `release` it if there is none."""
        slot = self.take_slot()
        self._taken.pop()
        return slot

    def release(self, slot: Slot) -> None:
        """Take back a reserved slot that nothing names; one of an epoch that ended was destroyed with it."""
        key = self._key(slot)
        if key is not None and slot.epoch == self.epoch:
            self._free.appendleft((slot, key))

    def kept(self) -> None:
        """The decision that was being made goes into a record."""
        self._taken.clear()
        self._sealed.clear()

    def given_up(self) -> None:
        """The decision that was being made is dropped: its slots are free again, its ciphertext is forgotten."""
        self._free.extendleft(taken for taken in reversed(self._taken) if taken[0].epoch == self.epoch)
        for payload_id in self._sealed:
            self.pending_payloads.pop(payload_id, None)
        self.kept()

    def is_destroyed(self, slot: Slot) -> bool:
        """Whether this process destroyed a key, or is about to: true from the moment the shred is durable."""
        return slot in self._destroyed

    def _remember(self, slot: Slot, key: bytes) -> None:
        with self._lock:
            if slot not in self._destroyed:
                self._keyring[slot] = key
                if len(self._keyring) > KEYRING_MAX:
                    self._keyring.popitem(last=False)

    def _key(self, slot: Slot) -> bytes | None:
        """A data key; None when it was destroyed."""
        key = self._keyring.get(slot)
        if key is None and slot not in self._destroyed:
            key = self.keystore.key(slot)
            if key is not None:
                self._remember(slot, key)
        return key

    def destroy(self, slots: list[Slot]) -> None:
        """Forget keys here and on disk; returns when that is durable."""
        with self._lock:
            self._destroyed.update(slots)
            for slot in slots:
                self._keyring.pop(slot, None)
        self.keystore.destroy(slots)

    # -- sealing -----------------------------------------------------------------------------------------------------

    def seal(self, drafts: list[Draft], stored: list[tuple[bytes, bytes]]) -> list[Event]:
        """Events of a decision. Payloads too large to stand in the record are added to `stored` as key and ciphertext."""
        return [self._seal_one(draft, stored) for draft in drafts]

    def _seal_one(self, draft: Draft, stored: list[tuple[bytes, bytes]]) -> Event:
        fields = draft.fields
        for at, value in enumerate(fields):
            if type(value) is NewPayload:
                fields = list(fields)
                fields[at] = self._seal_payload(value, stored)
                break
        if draft.private is None or draft.slot is None:
            return Event(draft.name, 1, fields)
        key = self._key(draft.slot)
        if key is None:
            raise shredded(draft.fields[0])
        random = self.randoms.take(crypto.ID_BYTES + crypto.NONCE_BYTES)
        private_id, nonce = random[:16], random[16:]
        sealed = crypto.wrap(AESGCM(key), nonce, private.encode(draft.private), crypto.aad_of(self.log_id, private_id))
        return Event(draft.name, 1, fields, (private_id, sealed))

    def _seal_payload(self, new: NewPayload, stored: list[tuple[bytes, bytes]]) -> list[object]:
        content = cast("bytes | SealedContent", new.content)
        if isinstance(content, SealedContent):
            assert content.slot == new.slot, "large content is sealed under the slot that its cube uses"
            return content.payload
        assert not crypto.is_chunked(len(content)), "content over one chunk is sealed and stored before its record"
        key = self._key(new.slot)
        assert key is not None, "a slot that was just taken has its key"
        random = self.randoms.take(crypto.ID_BYTES + crypto.NONCE_BYTES)
        payload_id, nonce = random[:16], random[16:]
        sealed = crypto.wrap(AESGCM(key), nonce, content, crypto.aad_of(self.log_id, payload_id))
        self.pending_payloads[payload_id] = sealed
        self._sealed.append(payload_id)
        inline: bytes | None = sealed
        if len(sealed) > limits.PAYLOAD_INLINE_BYTES_MAX:
            stored.append((payload_id, sealed))
            inline = None
        return [payload_id, len(content), crypto.sha256(sealed), new.slot, inline]

    def seal_large(self, content: memoryview, slot: Slot, write: Callable[[bytes, bytes], None]) -> SealedContent:
        """Seal content over one chunk, handing each ciphertext chunk to `write`. For a thread."""
        key = self._key(slot)
        if key is None:
            raise MemShredded("the cube was shredded")
        payload_id = os.urandom(crypto.ID_BYTES)
        size, step = len(content), limits.PAYLOAD_CHUNK_BYTES
        pieces = (bytes(content[at : at + step]) for at in range(0, size, step))
        digest = hashlib.sha256()
        for index, chunk in enumerate(crypto.seal_chunks(key, self.log_id, payload_id, pieces)):
            digest.update(chunk)
            write(payload_id + index.to_bytes(4, "big"), chunk)
        return SealedContent([payload_id, size, digest.digest(), slot, None], slot)

    def seal_vector(self, slot: Slot, part: bytes, raw: bytes) -> bytes | None:
        """A vector under a cube's key; None when the key is gone."""
        key = self._key(slot)
        if key is None:
            return None
        return crypto.wrap(AESGCM(key), os.urandom(crypto.NONCE_BYTES), raw, crypto.aad_of(self.log_id, b"vector" + part))

    def open_vector(self, slot: Slot, part: bytes, sealed: bytes) -> bytes | None:
        key = self._key(slot)
        if key is None:
            return None
        try:
            return crypto.unwrap(AESGCM(key), sealed, crypto.aad_of(self.log_id, b"vector" + part))
        except crypto.Undecryptable as error:
            raise Damaged(f"a stored vector does not open: {error}") from error

    # -- opening -----------------------------------------------------------------------------------------------------

    def open_private(self, version: Version, sealed: bytes) -> Private:
        """The private part of a version; raises `MemShredded` when its key is gone, `Damaged` when the bytes are wrong."""
        key = self._key(version.slot)
        if key is None:
            raise shredded(version.cube_id)
        return private.decode(self._unwrap(AESGCM(key), sealed, version.private_id, version))

    def open_sealed_private(self, slot: Slot, private_id: bytes, sealed: bytes) -> Private | None:
        """A private part by its address; None when its key is gone."""
        key = self._key(slot)
        if key is None:
            return None
        try:
            return private.decode(crypto.unwrap(AESGCM(key), sealed, crypto.aad_of(self.log_id, private_id)))
        except crypto.Undecryptable as error:
            raise Damaged(f"a private part under key {slot.epoch}.{slot.n} does not open: {error}") from error

    def _unwrap(self, cipher: AESGCM, sealed: bytes, part_id: bytes, version: Version) -> bytes:
        try:
            return crypto.unwrap(cipher, sealed, crypto.aad_of(self.log_id, part_id))
        except crypto.Undecryptable as error:
            raise Damaged(f"version {version.version} of cube {version.cube_id.hex()} does not open: {error}") from error

    def sealed_payload(self, version: Version) -> list[bytes]:
        """Ciphertext of a payload, in one piece or in chunks; raises `Damaged` when it is not there."""
        return list(self._sealed_pieces(version))

    def _sealed_pieces(self, version: Version) -> Iterator[bytes]:
        payload_id, size = version.payload_id, version.payload_bytes
        keys = [payload_id]
        if crypto.is_chunked(size):
            count = -(-size // limits.PAYLOAD_CHUNK_BYTES)
            keys = [payload_id + index.to_bytes(4, "big") for index in range(count)]
        for key in keys:
            piece = self.pending_payloads.get(key) or self._payloads.get(key)
            if piece is None:
                raise Damaged(f"the payload of version {version.version} of cube {version.cube_id.hex()} is missing")
            yield piece

    def alive(self, slot: Slot) -> bool:
        """Whether a key still exists: in the key store, not only in memory."""
        return slot not in self._destroyed and self.keystore.present(slot)

    def open_content(self, version: Version) -> bytes:
        return self.open_payload(version, self.sealed_payload(version))

    def open_payload(self, version: Version, pieces: list[bytes]) -> bytes:
        """The content in a payload's ciphertext; raises `MemShredded` or `Damaged`."""
        key = self._key(version.payload_slot)
        if key is None:
            raise shredded(version.cube_id)
        if not crypto.is_chunked(version.payload_bytes):
            return self._unwrap(AESGCM(key), pieces[0], version.payload_id, version)
        try:
            return crypto.open_chunks(key, self.log_id, version.payload_id, pieces)
        except crypto.Undecryptable as error:
            raise Damaged(f"version {version.version} of cube {version.cube_id.hex()} does not open: {error}") from error

    def open_pieces(self, version: Version) -> Iterator[memoryview]:
        """The content piece by piece, each in the buffer that the next one overwrites; one piece of ciphertext is held at a
        time. Raises `MemShredded`, also when the key is destroyed meanwhile, or `Damaged`. For a thread."""
        key = self._key(version.payload_slot)
        if key is None:
            raise shredded(version.cube_id)
        try:
            pieces = self._sealed_pieces(version)
            for piece in crypto.open_pieces(key, self.log_id, version.payload_id, version.payload_bytes, pieces):
                if version.payload_slot in self._destroyed:
                    raise shredded(version.cube_id)
                yield piece
        except crypto.Undecryptable as error:
            raise Damaged(f"version {version.version} of cube {version.cube_id.hex()} does not open: {error}") from error

    def cached(self, cube_id: bytes, version: int) -> Opened | None:
        """A version that was opened lately, without looking at the disk."""
        opened = self._opened.get((cube_id, version))
        return None if opened is None or self._is_gone(opened.version) else opened

    def _is_gone(self, version: Version) -> bool:
        return version.payload_slot in self._destroyed or version.slot in self._destroyed

    def open(self, view: View, cube: Cube, version: int) -> Opened | None:
        """A version, decrypted; None when the cube has no such version. Raises as the two above."""
        opened = self.cached(cube.cube_id, version)
        if opened is not None:
            return opened
        found = view.version(cube, version)
        if found is None:
            return None
        row, sealed = found
        content = self.open_content(row)
        opened = Opened(row, self.open_private(row, sealed), content, len(content) + 4 * len(sealed) + 1024)
        self.keep((cube.cube_id, version), opened)
        return opened

    def private(self, view: View, cube: Cube, version: int) -> Private | None:
        """The private part of a version alone; None when it was erased, or when there is none."""
        opened = self.cached(cube.cube_id, version)
        if opened is not None:
            return opened.private
        found = view.version(cube, version)
        try:
            return None if found is None else self.open_private(*found)
        except MemShredded:
            return None

    def keep(self, key: tuple[bytes, int], opened: Opened) -> None:
        """Remember a decrypted version."""
        if opened.size > limits.DECODED_CACHE_BYTES // 16:
            return
        with self._lock:
            if key in self._opened or self._is_gone(opened.version):
                return
            self._opened[key] = opened
            self.opened_bytes += opened.size
            while self.opened_bytes > limits.DECODED_CACHE_BYTES:
                _key, old = self._opened.popitem(last=False)
                self.opened_bytes -= old.size

    def forget(self, cube_ids: set[bytes], slots: set[Slot]) -> None:
        """Drop decrypted versions of these cubes, and of any cube (a fork) whose content these keys sealed."""
        with self._lock:
            self._destroyed |= slots
            for slot in slots:
                self._keyring.pop(slot, None)
            for key in [k for k, o in self._opened.items() if k[0] in cube_ids or self._is_gone(o.version)]:
                self.opened_bytes -= self._opened.pop(key).size


class ViewOpener:
    """What decisions use to open versions, the ones that are not durable yet included."""

    def __init__(self, vault: Vault, view: View) -> None:
        self._vault = vault
        self._view = view

    def _open(self, cube: Cube, version: int) -> Opened:
        opened = self._vault.open(self._view, cube, version)
        if opened is None:
            raise Damaged(f"cube {cube.cube_id.hex()} has no version {version}")
        return opened

    def private(self, cube: Cube, version: int) -> Private:
        found = self._view.version(cube, version)
        if found is None:
            raise Damaged(f"cube {cube.cube_id.hex()} has no version {version}")
        return self._vault.open_private(*found)

    def content(self, cube: Cube, version: int) -> bytes:
        return self._open(cube, version).content

    def alive(self, cube: Cube, version: int) -> bool:
        found = self._view.version(cube, version)
        return found is not None and self._vault.alive(found[0].slot) and self._vault.alive(found[0].payload_slot)
