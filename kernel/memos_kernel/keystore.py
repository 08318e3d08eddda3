"""The key store of the embedded log: a flat file of fixed-size slots, in a directory of its own.

Invariants:

- a data key exists on disk only wrapped (AES-256-GCM under a key derived from the master key, AAD log_id ‖ slot)
- a slot is durable before it is handed out, and is used by the epoch that made it only
- a destroyed slot keeps its address and its state; where its key was are zeros, overwritten in place and fsynced
- the header exists twice, written in turn, each with its own SHA-256: a torn write leaves the other

File `slots`: two headers of 8 KiB, then slots of 128 bytes:

1. state u8 (0 never made, 1 live, 2 destroyed), format u8, 6 zero bytes
2. epoch u64 LE, n u64 LE
3. wrapping-key id, 8 bytes
4. nonce ‖ wrapped key ‖ tag, 60 bytes
5. zeros to 128

Header: SHA-256 of the rest ‖ u32 LE length ‖ MessagePack `[fmt, generation, log_id, wrapping_key_id, wrapped signing
seed, wrapped log secret, last shred seq carried out, newest signed checkpoint|nil, highest epoch, home_id|nil]`. The home_id
says which copy of its log this is; a log that was never copied has none, and headers of older kernels lack the field.

Index segments have keys in a second file of the same form, `segments`, with no header of its own use.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from memos_syscalls import limits

from . import crypto
from .events import Checkpoint, Damaged, Slot, pack, unpack

SLOT_BYTES: Final = 128
HEADER_BYTES: Final = 8192
SLOTS_AT: Final = 2 * HEADER_BYTES
NEVER, LIVE, DESTROYED = 0, 1, 2
SLOT: Final = struct.Struct("<BB6xQQ8s60s36x")
assert SLOT.size == SLOT_BYTES
_WRAPPED: Final = crypto.NONCE_BYTES + crypto.KEY_BYTES + crypto.TAG_BYTES


class Unusable(Exception):
    """A key store is not there, or is not the one that is wanted; the message says what to do."""


class WrongKey(Exception):
    """The master key does not open this key store."""


class Header(NamedTuple):
    fmt: int
    generation: int
    log_id: bytes
    wrapping_key_id: bytes
    wrapped_seed: bytes
    wrapped_secret: bytes
    shred_seq: int
    checkpoint: tuple[object, ...] | list[object] | None
    epoch: int
    home_id: bytes | None = None


class Keys(Protocol):
    """A log's key store, wherever it is kept. What `prepare`, `update` and `destroy` did is durable when they return."""

    @property
    def header(self) -> Header: ...

    def secrets(self) -> tuple[bytes, bytes]: ...

    def update(
        self, *, shred_seq: int | None = None, checkpoint: Checkpoint | None = None, epoch: int | None = None,
        home_id: bytes | None = None,
    ) -> None: ...  # fmt: skip

    @property
    def newest_checkpoint(self) -> Checkpoint | None: ...

    @property
    def highest_epoch(self) -> int: ...

    @property
    def epochs(self) -> list[int]: ...

    def prepare(self, epoch: int, block: int) -> list[tuple[Slot, bytes]]: ...

    def key(self, slot: Slot) -> bytes | None: ...

    def present(self, slot: Slot) -> bool:
        """Whether a slot holds a key."""
        ...

    def destroy(self, slots: list[Slot]) -> None: ...

    def live_slots(self, epoch: int) -> Iterator[Slot]: ...

    def refresh(self) -> None:
        """Learn what another kernel changed since; in any thread."""
        ...

    def gone_by(self, destroyed_at: int) -> int | None:
        """By when no wrapped copy is left of what was destroyed at a time, at the latest, in ns; None for at once."""
        ...

    def nudge(self) -> bool:
        """Do what makes copies of destroyed keys go away in time; to be called every second. Does not wait."""
        ...

    def tidy(self) -> None:
        """Destroy again what others brought back; to be called every now and then, in a thread."""
        ...

    def close(self) -> None: ...


def wrapping_key_id(master: bytes) -> bytes:
    return crypto.subkey(master, b"memos wrapping key id")[:8]


def wrapping_cipher(master: bytes) -> AESGCM:
    return AESGCM(crypto.subkey(master, b"memos wrapping key"))


class KeyStore:
    """Wrapped keys on disk. Not thread-safe: one owner at a time, `prepare` excepted (see there)."""

    def __init__(self, directory: Path, master: bytes, *, read_only: bool = False, name: str = "slots") -> None:
        self.path = directory / name
        self.read_only = read_only
        flags = os.O_RDONLY if read_only else os.O_RDWR
        self._fd = os.open(self.path, flags | os.O_CLOEXEC)
        self._kek = wrapping_cipher(master)
        self.header = self._read_header()
        if self.header.wrapping_key_id != wrapping_key_id(master):
            os.close(self._fd)
            raise WrongKey(f"the master key does not open {self.path}")
        self._aad = crypto.aad_of(self.header.log_id, b"")
        self._blocks: dict[tuple[int, int], int] = {}
        self._end = SLOTS_AT
        self._index_blocks()

    # -- making and opening ------------------------------------------------------------------------------------------

    @staticmethod
    def create(directory: Path, master: bytes, log_id: bytes, seed: bytes, secret: bytes, *, name: str = "slots") -> None:
        """A new, durable key store; refuses to overwrite one (`FileExistsError`)."""
        kek, aad = wrapping_cipher(master), crypto.aad_of(log_id, b"")
        header = Header(
            crypto.FORMAT, 1, log_id, wrapping_key_id(master),
            crypto.wrap(kek, os.urandom(12), seed, aad + b"signing seed"),
            crypto.wrap(kek, os.urandom(12), secret, aad + b"log secret"),
            -1, None, 0,
        )  # fmt: skip
        fd = os.open(directory / name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(fd, bytes(SLOTS_AT), 0)
            for copy in (0, 1):
                os.pwrite(fd, pack_header(header), copy * HEADER_BYTES)
            os.fsync(fd)
        finally:
            os.close(fd)
        sync_directory(directory)

    def _read_header(self) -> Header:
        found = [h for copy in (0, 1) if (h := unpack_header(os.pread(self._fd, HEADER_BYTES, copy * HEADER_BYTES)))]
        if not found:
            raise Damaged(f"both headers of {self.path} are damaged; restore the key store from its backup")
        return max(found, key=lambda h: h.generation)

    def secrets(self) -> tuple[bytes, bytes]:
        """`(signing seed, log secret)`; raises `WrongKey`."""
        try:
            return (
                crypto.unwrap(self._kek, self.header.wrapped_seed, self._aad + b"signing seed"),
                crypto.unwrap(self._kek, self.header.wrapped_secret, self._aad + b"log secret"),
            )
        except crypto.Undecryptable as error:
            raise WrongKey(f"the master key does not open {self.path}") from error

    def update(
        self, *, shred_seq: int | None = None, checkpoint: Checkpoint | None = None, epoch: int | None = None,
        home_id: bytes | None = None,
    ) -> None:  # fmt: skip
        """Write the header again, durably."""
        self.header = self.header._replace(
            generation=self.header.generation + 1,
            shred_seq=self.header.shred_seq if shred_seq is None else shred_seq,
            checkpoint=self.header.checkpoint if checkpoint is None else tuple(checkpoint),
            epoch=self.header.epoch if epoch is None else epoch,
            home_id=self.header.home_id if home_id is None else home_id,
        )
        os.pwrite(self._fd, pack_header(self.header), self.header.generation % 2 * HEADER_BYTES)
        os.fdatasync(self._fd)

    @property
    def newest_checkpoint(self) -> Checkpoint | None:
        """The newest signed checkpoint that this key store remembers: finds a log that was cut back."""
        fields: Any = self.header.checkpoint
        return Checkpoint(*fields) if fields else None

    # -- slots -------------------------------------------------------------------------------------------------------

    def _index_blocks(self) -> None:
        """Remember where each block of slots begins; a block that a crash cut short is not counted."""
        block_bytes = limits.KEY_SLOTS_PER_BLOCK * SLOT_BYTES
        size = os.fstat(self._fd).st_size
        at = SLOTS_AT
        while at + block_bytes <= size:
            _state, fmt, epoch, n, _key_id, _wrapped = SLOT.unpack(os.pread(self._fd, SLOT_BYTES, at))
            if fmt == crypto.FORMAT:
                self._blocks[epoch, n // limits.KEY_SLOTS_PER_BLOCK] = at
            at += block_bytes
        self._end = at

    @property
    def highest_epoch(self) -> int:
        return max([self.header.epoch, *(epoch for epoch, _ in self._blocks)])

    def prepare(self, epoch: int, block: int) -> list[tuple[Slot, bytes]]:
        """Make one durable block of slots with fresh keys. One thread at a time; `key` and `destroy` may run beside it."""
        keys: list[tuple[Slot, bytes]] = []
        out = bytearray()
        step = crypto.KEY_BYTES + crypto.NONCE_BYTES
        random = os.urandom(limits.KEY_SLOTS_PER_BLOCK * step)
        for index in range(limits.KEY_SLOTS_PER_BLOCK):
            n, at = block * limits.KEY_SLOTS_PER_BLOCK + index, index * step
            slot, key, nonce = Slot(epoch, n), random[at : at + crypto.KEY_BYTES], random[at + crypto.KEY_BYTES : at + step]
            wrapped = crypto.wrap(self._kek, nonce, key, self._slot_aad(slot))
            out += SLOT.pack(LIVE, crypto.FORMAT, epoch, n, self.header.wrapping_key_id, wrapped)
            keys.append((slot, key))
        start = self._end
        os.pwrite(self._fd, out, start)
        os.fdatasync(self._fd)
        self._end = start + len(out)
        self._blocks[epoch, block] = start
        return keys

    def adopt(self, keys: Iterable[tuple[Slot, bytes]]) -> None:
        """Wrap and keep data keys of a log that is copied here. Slots beside them that nothing names count as destroyed."""
        for slot, key in keys:
            block = slot.n // limits.KEY_SLOTS_PER_BLOCK
            if (slot.epoch, block) not in self._blocks:
                first = block * limits.KEY_SLOTS_PER_BLOCK
                numbers = range(first, first + limits.KEY_SLOTS_PER_BLOCK)
                gone = [SLOT.pack(DESTROYED, crypto.FORMAT, slot.epoch, n, bytes(8), bytes(_WRAPPED)) for n in numbers]
                os.pwrite(self._fd, b"".join(gone), self._end)
                self._blocks[slot.epoch, block] = self._end
                self._end += len(gone) * SLOT_BYTES
            at = self._at(slot)
            assert at is not None, "its block was just made"
            wrapped = crypto.wrap(self._kek, os.urandom(crypto.NONCE_BYTES), key, self._slot_aad(slot))
            os.pwrite(self._fd, SLOT.pack(LIVE, crypto.FORMAT, *slot, self.header.wrapping_key_id, wrapped), at)
        os.fdatasync(self._fd)

    def _slot_aad(self, slot: Slot) -> bytes:
        return self._aad + slot.epoch.to_bytes(8, "big") + slot.n.to_bytes(8, "big")

    def _at(self, slot: Slot) -> int | None:
        base = self._blocks.get((slot.epoch, slot.n // limits.KEY_SLOTS_PER_BLOCK))
        return None if base is None else base + slot.n % limits.KEY_SLOTS_PER_BLOCK * SLOT_BYTES

    def key(self, slot: Slot) -> bytes | None:
        """The data key, or None when it was destroyed or never made. A slot that does not unwrap raises `Damaged`."""
        at = self._at(slot)
        if at is None:
            return None
        state, _fmt, epoch, n, _key_id, wrapped = SLOT.unpack(os.pread(self._fd, SLOT_BYTES, at))
        if state != LIVE:
            return None
        if (epoch, n) != (slot.epoch, slot.n):
            raise Damaged(f"key slot {slot.epoch}.{slot.n} holds the name of another")
        try:
            return crypto.unwrap(self._kek, wrapped, self._slot_aad(slot))
        except crypto.Undecryptable as error:
            raise Damaged(f"key slot {slot.epoch}.{slot.n} does not unwrap; restore the key store from its backup") from error

    def present(self, slot: Slot) -> bool:
        at = self._at(slot)
        return at is not None and os.pread(self._fd, 1, at) == bytes([LIVE])

    def destroy(self, slots: list[Slot]) -> None:
        """Overwrite slots in place and make that durable. Idempotent."""
        for slot in slots:
            at = self._at(slot)
            if at is not None:
                gone = SLOT.pack(DESTROYED, crypto.FORMAT, slot.epoch, slot.n, bytes(8), bytes(_WRAPPED))
                os.pwrite(self._fd, gone, at)
        os.fdatasync(self._fd)

    def live_slots(self, epoch: int) -> Iterator[Slot]:
        """Slots of an epoch that still hold a key."""
        for made_in, block in sorted(self._blocks):
            if made_in == epoch:
                data = os.pread(self._fd, limits.KEY_SLOTS_PER_BLOCK * SLOT_BYTES, self._blocks[made_in, block])
                for state, _fmt, slot_epoch, n, _key_id, _wrapped in SLOT.iter_unpack(data):
                    if state == LIVE:
                        yield Slot(slot_epoch, n)

    @property
    def epochs(self) -> list[int]:
        return sorted({epoch for epoch, _ in self._blocks})

    def refresh(self) -> None:
        """The directory's lock keeps other kernels out."""

    def gone_by(self, destroyed_at: int) -> int | None:
        """Slots are overwritten in place."""
        return None

    def nudge(self) -> bool:
        return False

    def tidy(self) -> None:
        """Nobody else writes here."""

    def close(self) -> None:
        os.close(self._fd)


def pack_header(header: Header) -> bytes:
    body: bytes = pack(header)
    rest = len(body).to_bytes(4, "little") + body
    data = crypto.sha256(rest) + rest
    assert len(data) <= HEADER_BYTES
    return data + bytes(HEADER_BYTES - len(data))


def unpack_header(data: bytes) -> Header | None:
    if len(data) != HEADER_BYTES:
        return None
    length = int.from_bytes(data[32:36], "little")
    if length > HEADER_BYTES - 36 or crypto.sha256(data[32 : 36 + length]) != data[:32]:
        return None
    raw = unpack(data[36 : 36 + length])
    return Header(*raw) if raw[0] == crypto.FORMAT else None


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def lock_directory(path: Path) -> int:
    """Take the data directory's lock for this process; raises `BlockingIOError` when another kernel holds it."""
    fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise
    os.ftruncate(fd, 0)
    os.pwrite(fd, str(os.getpid()).encode(), 0)
    return fd
