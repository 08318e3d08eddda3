"""The key store of a log on Kafka: the compacted topic `link.keys`, and no copy of it on disk.

Messages, key → value:

- `r` log_id → MessagePack `[fmt, log_id, wrapping_key_id, wrapped signing seed, wrapped log secret]`: the root. Kernels that
  begin at once make one each; the records topic decides whose log it is, so the caller names the log_id.
- `h` log_id, epoch u64 BE → MessagePack `[fmt, generation, log_id, last shred seq carried out, newest signed checkpoint|nil,
  epoch, home_id|nil]` ‖ MAC under a subkey of the log secret: the header as that epoch's kernel knows it; old ones lack the
  last field. The log_id is in the key because a kernel that lost the race for an empty topic may write one before it knows.
- `s` epoch u64 BE, n u64 BE → format u8, wrapping-key id, nonce ‖ wrapped key ‖ tag: a slot; AAD as in the flat file
- a tombstone is a destroyed slot, or a header that a newer epoch's replaced

Invariants:

- what is known is the highest of what any header says, and the home_id of the newest epoch's: a paused kernel that wakes up
  winds nothing back
- a slot, a header and a tombstone are confirmed by the broker before `prepare`, `update` and `destroy` return; they wait for
  as long as it takes, and `close` ends them with `Ended`
- a key that appears after its tombstone is not alive; `revived` names it, to be destroyed again. A tombstone that was itself
  compacted away is not remembered here: the caller compares live slots with the view
- what others write here changes nothing: a header without its MAC, and a second value for a slot that does not unwrap, are
  counted in `strangers`. Who may write the topic can still destroy keys: that is what the right to write means

The topic keeps a destroyed key until it is compacted: compaction.py says by when, `nudge` makes sure, `remains` looks.
"""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from confluent_kafka import Message

from memos_syscalls import limits

from . import crypto
from .eventlog import compaction
from .eventlog.base import Ended, OutOfReach
from .eventlog.link import Link, log_
from .eventlog.partition import MS, Appender, NoTopic, Reader, Receipt
from .eventlog.topics import ERASE_MS_MAX, Erasure
from .events import Checkpoint, Damaged, Slot, pack, unpack
from .keystore import DESTROYED, LIVE, Header, Unusable, WrongKey, wrapping_cipher, wrapping_key_id
from .slottable import WRAPPED_BYTES, SlotTable

ROOT, HEADER, SLOT = b"r", b"h", b"s"
SLOT_KEY: Final = struct.Struct(">cQQ")
HEADER_KEY: Final = struct.Struct(">c16sQ")
SLOT_VALUE: Final = struct.Struct(f">B8s{WRAPPED_BYTES}s")
BATCH_MESSAGES: Final = 4096
CREATE_SECONDS: Final = 30.0
NUDGE_LATE_SECONDS: Final = 0.2
NUDGE_EVERY_SECONDS: Final = 0.9
ERASURE_DEFAULT: Final = Erasure(ERASE_MS_MAX, ERASE_MS_MAX, 600_000, 60_000, None)
"""For a caller that did not ask the brokers: what a topic must have, or Kafka's own."""
_EPOCH_MAX: Final = 2**63
_ROOT_FORM: Final = (int, bytes, bytes, bytes, bytes)
_HEADER_FORM: Final = (int, int, bytes, int, int)
_HEADER_FIELDS_OLD: Final = 6
"""Of a header from before logs could move."""
_CHECKPOINT_FORM: Final = (int, bytes, bytes, bytes, bytes, int, bytes)


class NoRoot(Unusable):
    """The topic holds no root of the log that was asked for, or of any."""


class ManyRoots(Unusable):
    """The topic holds several roots that the master key opens; the caller must say which log it means."""

    def __init__(self, topic: str, log_ids: list[bytes]) -> None:
        super().__init__(f"the topic {topic} holds the keys of {len(log_ids)} logs: {', '.join(one.hex() for one in log_ids)}")
        self.log_ids = log_ids


class Remains(NamedTuple):
    """A destroyed key that can still be read: where it stands in the topic, and since when."""

    slot: Slot
    offset: int
    time: int


class _Root(NamedTuple):
    wrapping_key_id: bytes
    wrapped_seed: bytes
    wrapped_secret: bytes
    seed: bytes
    secret: bytes


class TopicKeys:
    """Fulfils `keystore.Keys`. `prepare`, `update` and `destroy` may run in different threads, and `key` beside them."""

    def __init__(
        self, link: Link, master: bytes, *, log_id: bytes | None = None, read_only: bool = False,
        erasure: Erasure = ERASURE_DEFAULT,
    ) -> None:  # fmt: skip
        """Read the topic to its end. Raises `NoRoot`, `ManyRoots`, `WrongKey`, `OutOfReach` or `Ended`."""
        self.link = link
        self.read_only = read_only
        self.strangers = 0
        """Messages that nobody with the master key wrote, or that are no longer understood."""
        self.revived: set[Slot] = set()
        """Slots whose key was seen after their tombstone."""
        self.tombstoned_at: int | None = None
        """The topic's time of the newest tombstone, in nanoseconds."""
        self._kek = wrapping_cipher(master)
        self._key_id = wrapping_key_id(master)
        self._lock = threading.RLock()
        self._table = SlotTable()
        self._reading = self._table
        """Where what is read goes: another table while all of the topic is read again."""
        self._refreshing = threading.Lock()
        self._own_epoch: int | None = None
        """The epoch in which this kernel writes; None for a reader and for a standby."""
        self._going: set[Slot] = set()
        """Slots whose tombstone was sent and is not confirmed."""
        self._wanted = log_id
        self._roots: dict[bytes, _Root] = {}
        self._shut: bytes | None = None
        """A log whose root this master key does not open."""
        self._waiting: list[tuple[bytes, bytes | None]] = []
        """Headers, and second values of slots, that came before their root."""
        self._root: _Root | None = None
        self._aad = b""
        self._header_key = b""
        self._public_key = b""
        self._header_epochs: set[int] = set()
        self._home_from = (0, 0)
        """Epoch and generation of the header that the home_id is from."""
        self.header = Header(crypto.FORMAT, 0, b"", self._key_id, b"", b"", -1, None, 0)
        self._nudge_at: float | None = None
        """When the file with the oldest tombstones that are still in an open one may be closed."""
        self._nudge_until = 0.0
        """The same of the newest tombstones."""
        self._erasure = erasure
        self._appender: Appender | None = None
        self._reader: Reader | None = None
        self._next = 0
        self._read_at = 0.0
        self._closed = False
        try:
            if not read_only:
                # A producer takes a while to become ready.
                self._appending()
            self.refresh()
        except BaseException:
            self.close()
            raise

    @staticmethod
    def create(link: Link, master: bytes, of: tuple[bytes, bytes, bytes] | None = None) -> bytes:
        """A new root, with fresh secrets or those of a log that is copied, `(log_id, seed, secret)`; returns the log_id.
        Raises `OutOfReach` or `Ended`."""
        log_id, seed, secret = of or (os.urandom(crypto.ID_BYTES), os.urandom(crypto.KEY_BYTES), os.urandom(crypto.KEY_BYTES))
        kek, aad = wrapping_cipher(master), crypto.aad_of(log_id, b"")
        root = pack((
            crypto.FORMAT, log_id, wrapping_key_id(master),
            crypto.wrap(kek, os.urandom(crypto.NONCE_BYTES), seed, aad + b"signing seed"),
            crypto.wrap(kek, os.urandom(crypto.NONCE_BYTES), secret, aad + b"log secret"),
        ))  # fmt: skip
        appender, receipt = Appender(link, link.keys), Receipt()
        try:
            appender.send(ROOT + log_id, root, receipt)
            if not appender.wait(receipt, CREATE_SECONDS):
                raise OutOfReach(f"Kafka at {link.brokers} did not take a root for topic {link.keys}; look at the broker")
        finally:
            appender.close()
        return log_id

    # -- reading the topic -------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Read on to the end of the topic; quick when nothing is new. Raises as the constructor."""
        with self._refreshing:
            self._refresh()

    def _refresh(self) -> None:
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        if self._reader is None:
            self._reader = Reader(self.link, self.link.keys, self._next, batch=BATCH_MESSAGES)
        if self._next > 0 and now - self._read_at > self._erasure.delete_retention_ms / 2000:
            # Tombstones may have come and been compacted away meanwhile. Until all is read again, what is known stays.
            self._reading = SlotTable()
            self._reader.seek(0)
        try:
            for message in self._reader.to_end():
                self._take(message)
        except NoTopic as error:
            if self._next > 0:
                # It was there: a broker that has just started may not know it yet.
                raise
            raise NoRoot(str(error)) from None
        except BaseException:
            if self._reading is not self._table:
                # Half of it is of no use.
                self._reading = self._table
                self._reader.seek(self._next)
            raise
        with self._lock:
            self._table = self._reading
        self._next, self._read_at = self._reader.next, now
        self._settle()
        if self._own_epoch is not None:
            # A writer knows the rest: nobody else's slots are its own.
            self._reader.close()
            self._reader = None

    def _take(self, message: Message) -> None:
        key, value = message.key(), message.value()
        if key is None:
            self.strangers += 1
        elif len(key) == SLOT_KEY.size and key[:1] == SLOT:
            with self._lock:
                self._take_slot(key, value, message)
        elif len(key) == HEADER_KEY.size and key[:1] == HEADER:
            self._take_header(key, value)
        elif len(key) == 1 + crypto.ID_BYTES and key[:1] == ROOT:
            self._take_root(key[1:], value)
        else:
            self.strangers += 1

    def _take_root(self, log_id: bytes, value: bytes | None) -> None:
        if self._wanted not in (None, log_id):
            return
        if value is None:
            self._roots.pop(log_id, None)
            return
        raw = _fields(value, _ROOT_FORM)
        if raw is None or raw[1] != log_id:
            self.strangers += 1
            return
        aad = crypto.aad_of(log_id, b"")
        try:
            seed = crypto.unwrap(self._kek, raw[3], aad + b"signing seed")
            secret = crypto.unwrap(self._kek, raw[4], aad + b"log secret")
        except crypto.Undecryptable:
            self._shut = log_id
            return
        first = not self._roots
        self._roots[log_id] = _Root(raw[2], raw[3], raw[4], seed, secret)
        if first:
            self._use(log_id)

    def _use(self, log_id: bytes) -> None:
        """Take this log's root; what waited for it can be judged now."""
        root = self._root = self._roots[log_id]
        self._aad = crypto.aad_of(log_id, b"")
        self._header_key = crypto.subkey(root.secret, b"memos key store header")
        self._public_key = crypto.Signer(root.seed).public_key
        self.header = self.header._replace(
            log_id=log_id, wrapping_key_id=root.wrapping_key_id, wrapped_seed=root.wrapped_seed,
            wrapped_secret=root.wrapped_secret,
        )  # fmt: skip
        waiting, self._waiting = self._waiting, []
        for key, value in waiting:
            if key[:1] == HEADER:
                self._take_header(key, value)
            else:
                self._take_slot(key, value, None)

    def _settle(self) -> None:
        """At the end of the topic there must be one root."""
        topic = self.link.keys
        if len(self._roots) > 1:
            raise ManyRoots(topic, sorted(self._roots))
        if not self._roots and self._shut is not None:
            raise WrongKey(f"the master key does not open the keys of log {self._shut.hex()} in topic {topic}")
        if not self._roots:
            of = "a log" if self._wanted is None else f"log {self._wanted.hex()}"
            raise NoRoot(f"the topic {topic} holds no keys of {of}")
        if self._root not in self._roots.values():
            # It was wrapped anew.
            self._use(next(iter(self._roots)))

    def _take_header(self, key: bytes, value: bytes | None) -> None:
        if self._root is None:
            self._waiting.append((key, value))
            return
        _kind, log_id, epoch = HEADER_KEY.unpack(key)
        if log_id != self.header.log_id:
            return
        if value is None:
            self._header_epochs.discard(epoch)
            return
        body, mac = value[: -crypto.HASH_BYTES], value[-crypto.HASH_BYTES :]
        if not crypto.mac_equal(crypto.mac(self._header_key, body), mac):
            self.strangers += 1
            return
        raw = unpack(body)
        if type(raw) is not list or len(raw) not in (_HEADER_FIELDS_OLD, _HEADER_FIELDS_OLD + 1):
            self.strangers += 1
            return
        if tuple(type(raw[at]) for at in (0, 1, 2, 3, 5)) != _HEADER_FORM or raw[0] != crypto.FORMAT or raw[5] != epoch:
            self.strangers += 1
            return
        self._header_epochs.add(epoch)
        with self._lock:
            self._know(raw[1], raw[3], raw[4], epoch)
            if len(raw) > _HEADER_FIELDS_OLD and (epoch, raw[1]) >= self._home_from:
                self._home_from = epoch, raw[1]
                self.header = self.header._replace(home_id=raw[6])

    def _know(self, generation: int, shred_seq: int, checkpoint: Any, epoch: int) -> None:
        """Add what a header says to what is known."""
        known = self.header
        self.header = known._replace(
            generation=max(known.generation, generation), shred_seq=max(known.shred_seq, shred_seq),
            checkpoint=known.checkpoint if checkpoint is None else self._newer(known.checkpoint, checkpoint),
            epoch=max(known.epoch, epoch),
        )  # fmt: skip

    def _newer(self, known: Any, other: Any) -> Any:
        """The newer of two checkpoints, if it is this log's."""
        fields = tuple(other)
        if tuple(map(type, fields)) != _CHECKPOINT_FORM:
            return known
        checkpoint = Checkpoint(*fields)
        if known is not None and known[0] >= checkpoint.head_seq:
            return known
        signed = checkpoint.signed_bytes(self.header.log_id)
        return fields if crypto.verify_signature(self._public_key, checkpoint.signature, signed) else known

    def _take_slot(self, key: bytes, value: bytes | None, message: Message | None) -> None:
        _kind, epoch, n = SLOT_KEY.unpack(key)
        slot = Slot(epoch, n)
        if value is None:
            self._reading.destroy(slot)
            self.revived.discard(slot)
            if message is not None:
                self._tombstoned(message.timestamp()[1] * MS)
            return
        if len(value) != SLOT_VALUE.size or value[0] != crypto.FORMAT or epoch >= _EPOCH_MAX:
            self.strangers += 1
            return
        table = self._reading
        wrapped, state = value[-WRAPPED_BYTES:], table.state(slot)
        if state == DESTROYED:
            self.revived.add(slot)
        elif (state == LIVE and table.wrapped(slot) != wrapped) or not table.has_block(slot):
            # A second value counts, and a block is begun, only if the master key wrapped it.
            if self._root is None and state == LIVE:
                self._waiting.append((key, value))
            elif self._root is None or self._opens(slot, wrapped):
                table.put(slot, wrapped)
            else:
                self.strangers += 1
        elif state != LIVE:
            table.put(slot, wrapped)

    def _opens(self, slot: Slot, wrapped: bytes) -> bool:
        try:
            crypto.unwrap(self._kek, wrapped, self._slot_aad(slot))
        except crypto.Undecryptable:
            return False
        return True

    # -- the header --------------------------------------------------------------------------------------------------

    def secrets(self) -> tuple[bytes, bytes]:
        """`(signing seed, log secret)`."""
        assert self._root is not None
        return self._root.seed, self._root.secret

    def update(
        self, *, shred_seq: int | None = None, checkpoint: Checkpoint | None = None, epoch: int | None = None,
        home_id: bytes | None = None,
    ) -> None:  # fmt: skip
        """Write the header again; what is known only grows. A new epoch's header replaces those of older ones."""
        with self._lock:
            generation = self.header.generation + 1
            self._own_epoch = epoch if epoch is not None else self._own_epoch
            self._know(generation, -1 if shred_seq is None else shred_seq, checkpoint, 0 if epoch is None else epoch)
            if home_id is not None:
                self.header = self.header._replace(home_id=home_id)
            self._home_from = self.header.epoch, generation
            receipt = self._send_header()
            mine = self._epoch_of_header
            older = [one for one in self._header_epochs if one < mine]
        appender = self._appending()
        appender.wait(receipt)
        appender.send_all([(HEADER_KEY.pack(HEADER, self.header.log_id, one), None) for one in older], receipt)
        appender.wait(receipt)
        with self._lock:
            self._header_epochs.difference_update(older)

    @property
    def _epoch_of_header(self) -> int:
        """Under which epoch we write: our own, also when another kernel has a later one by now."""
        return self.header.epoch if self._own_epoch is None else self._own_epoch

    def _send_header(self) -> Receipt:
        header, epoch, receipt = self.header, self._epoch_of_header, Receipt()
        body: bytes = pack((
            header.fmt, header.generation, header.log_id, header.shred_seq, header.checkpoint, epoch, header.home_id,
        ))  # fmt: skip
        key = HEADER_KEY.pack(HEADER, header.log_id, epoch)
        self._appending().send(key, body + crypto.mac(self._header_key, body), receipt)
        self._header_epochs.add(epoch)
        return receipt

    @property
    def newest_checkpoint(self) -> Checkpoint | None:
        """The newest signed checkpoint that this key store remembers: finds a log that was cut back."""
        fields: Any = self.header.checkpoint
        return Checkpoint(*fields) if fields else None

    # -- slots -------------------------------------------------------------------------------------------------------

    @property
    def epochs(self) -> list[int]:
        """Epochs with live slots, of which one unwraps: nobody else can add an epoch."""
        with self._lock:
            return [epoch for epoch in self._table.epochs() if self._is_ours(epoch)]

    def _is_ours(self, epoch: int) -> bool:
        for slot in self._table.live_slots(epoch):
            wrapped = self._table.wrapped(slot)
            if wrapped is not None and self._opens(slot, wrapped):
                return True
        return False

    @property
    def highest_epoch(self) -> int:
        return max([self.header.epoch, *self.epochs])

    def prepare(self, epoch: int, block: int) -> list[tuple[Slot, bytes]]:
        """Make one block of slots with fresh keys. Only for an epoch whose claim counted: no other kernel has it then."""
        first = block * limits.KEY_SLOTS_PER_BLOCK
        random = os.urandom(limits.KEY_SLOTS_PER_BLOCK * crypto.KEY_BYTES)
        keys = [
            (Slot(epoch, first + index), random[index * crypto.KEY_BYTES : (index + 1) * crypto.KEY_BYTES])
            for index in range(limits.KEY_SLOTS_PER_BLOCK)
        ]
        assert not self.present(keys[0][0]), "a second key for a slot would shut what the first one sealed"
        self.adopt(keys)
        return keys

    def adopt(self, keys: Iterable[tuple[Slot, bytes]]) -> None:
        """Wrap and keep data keys; returns when they are in the topic."""
        appender, receipt = self._appending(), Receipt()
        keys = list(keys)
        nonces = memoryview(os.urandom(len(keys) * crypto.NONCE_BYTES))
        made: list[tuple[Slot, bytes]] = []
        for at, (slot, key) in enumerate(keys):
            nonce = bytes(nonces[at * crypto.NONCE_BYTES : (at + 1) * crypto.NONCE_BYTES])
            made.append((slot, crypto.wrap(self._kek, nonce, key, self._slot_aad(slot))))
        messages = [
            (SLOT_KEY.pack(SLOT, *slot), SLOT_VALUE.pack(crypto.FORMAT, self._key_id, wrapped)) for slot, wrapped in made
        ]
        appender.send_all(messages, receipt)
        appender.wait(receipt)
        with self._lock:
            for slot, wrapped in made:
                self._table.put(slot, wrapped)

    def _slot_aad(self, slot: Slot) -> bytes:
        return self._aad + slot.epoch.to_bytes(8, "big") + slot.n.to_bytes(8, "big")

    def key(self, slot: Slot) -> bytes | None:
        """The data key, or None when it was destroyed or never made. A slot that does not unwrap raises `Damaged`."""
        with self._lock:
            wrapped = self._table.wrapped(slot)
        if wrapped is None:
            return None
        try:
            return crypto.unwrap(self._kek, wrapped, self._slot_aad(slot))
        except crypto.Undecryptable as error:
            raise Damaged(
                f"key slot {slot.epoch}.{slot.n} in topic {self.link.keys} does not unwrap: somebody else wrote it; "
                "find out who may write the topic, and restore it from a backup"
            ) from error

    def present(self, slot: Slot) -> bool:
        with self._lock:
            return self._table.state(slot) == LIVE

    def destroy(self, slots: list[Slot]) -> None:
        """Remove keys; returns when every tombstone is confirmed. Idempotent."""
        with self._lock:
            again = self._going | self.revived
            gone = [slot for slot in slots if slot in again or self._table.state(slot) != DESTROYED]
            self._going.update(gone)
            for slot in gone:
                self._table.destroy(slot)
        if not gone:
            return
        appender, receipt = self._appending(), Receipt()
        appender.send_all([(SLOT_KEY.pack(SLOT, *slot), None) for slot in gone], receipt)
        appender.wait(receipt)
        with self._lock:
            self._going.difference_update(gone)
            self.revived.difference_update(gone)
            self._tombstoned(receipt.at_ns)

    def live_slots(self, epoch: int) -> Iterator[Slot]:
        """Slots of an epoch that still hold a key."""
        return self._table.live_slots(epoch)

    def all_live_slots(self) -> Iterator[Slot]:
        """Slots of every epoch that still hold a key, in order."""
        return self._table.live_slots()

    def __len__(self) -> int:
        """How many slots hold a key."""
        with self._lock:
            return len(self._table)

    # -- until it is gone --------------------------------------------------------------------------------------------

    def gone_by(self, destroyed_at: int) -> int:
        """By when a key destroyed at a time of the topic's clock is in no file of a broker that is up; nanoseconds."""
        return compaction.gone_by(destroyed_at, self._erasure)

    def _tombstoned(self, at_ns: int) -> None:
        self.tombstoned_at = max(self.tombstoned_at or 0, at_ns)
        self._nudge_until = time.monotonic() + compaction.roll_ms(self._erasure) / 1000 + NUDGE_LATE_SECONDS
        if self._nudge_at is None:
            self._nudge_at = self._nudge_until

    def tidy(self) -> None:
        """Destroy again what came back after its tombstone. Waits for the broker; to be called every now and then. Raises
        `Ended` or `OutOfReach`."""
        self.refresh()
        if self.revived:
            log_.warning("%d destroyed keys came back into topic %s; they go again", len(self.revived), self.link.keys)
            self.destroy(list(self.revived))

    def nudge(self) -> bool:
        """Append the header again once a file with tombstones may be closed: Kafka closes it only then, and compacts only
        closed files. To be called every second; does not wait. Returns whether it appended. Raises `Ended`."""
        now = time.monotonic()
        if self._nudge_at is None or now < self._nudge_at or self.read_only or self._closed or self._appending().is_full:
            return False
        with self._lock:
            # Until the newest tombstone is old enough there may be one in a file that was too young this time.
            self._nudge_at = None if now >= self._nudge_until else now + NUDGE_EVERY_SECONDS
            self._send_header()
        return True

    def remains(self, slots: Iterable[Slot]) -> list[Remains]:
        """Which of these keys can still be read from the topic, wherever in it: a rescan from its first message."""
        wanted = set(slots)
        found: list[Remains] = []
        reader = Reader(self.link, self.link.keys, batch=BATCH_MESSAGES)
        try:
            for message in reader.to_end():
                key, value = message.key(), message.value()
                if key is None or value is None or len(key) != SLOT_KEY.size or key[:1] != SLOT:
                    continue
                _kind, epoch, n = SLOT_KEY.unpack(key)
                slot = Slot(epoch, n)
                if slot in wanted and self._opens(slot, value[-WRAPPED_BYTES:]):
                    found.append(Remains(slot, message.offset() or 0, message.timestamp()[1] * MS))
        finally:
            reader.close()
        return found

    # -- writing -----------------------------------------------------------------------------------------------------

    def _appending(self) -> Appender:
        assert not self.read_only, "this key store was opened to be read"
        with self._lock:
            if self._closed:
                raise Ended(f"the key store in topic {self.link.keys} was closed")
            if self._appender is None:
                self._appender = Appender(self.link, self.link.keys)
            return self._appender

    def close(self) -> None:
        """End who waits for the broker, and read no more. Once is enough."""
        # Without the lock: who holds it may be waiting for the broker.
        if self._closed:
            return
        self._closed = True
        for end in (self._appender, self._reader):
            if end is not None:
                end.close()


def _fields(data: bytes, form: tuple[type, ...]) -> list[Any] | None:
    """The fields of a stored array of format 1; None when it is not one."""
    try:
        raw = unpack(data)
    except Damaged:
        return None
    return raw if type(raw) is list and tuple(map(type, raw)) == form and raw[0] == crypto.FORMAT else None
