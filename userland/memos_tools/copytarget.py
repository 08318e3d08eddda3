"""Where `memctl copy` writes to: a new data directory, or empty topics.

- A target has a home_id, durable before its first record: until a record of the log names it, kernels open the target
  read-only, whatever of the log it holds (recovery.py)
- Messages get here in the order in which they count and only if they do; a target begun earlier goes on where it stands
- Keys and pieces are durable before a record that names them is sent

A directory is made beside its name, as NAME.partial, and gets the name when it is whole.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from memos_drivers.stores.base import LOG, PAYLOAD, VIEW, Batch
from memos_drivers.stores.rocks import RocksStore
from memos_kernel import crypto
from memos_kernel import events as ev
from memos_kernel.chain import LogKeys
from memos_kernel.eventlog.base import EventLog
from memos_kernel.eventlog.counting import Counting
from memos_kernel.eventlog.embedded import SHARED, EmbeddedLog
from memos_kernel.events import Checkpoint, Claim, Slot
from memos_kernel.keystore import KeyStore, lock_directory, sync_directory
from memos_kernel.state import Tables, u64
from memos_kernel.verify import replay
from memos_syscalls import limits

from .output import Trouble

if TYPE_CHECKING:
    from memos_kernel.eventlog.link import Link
    from memos_kernel.eventlog.payloadtopic import PayloadTopic
    from memos_kernel.topickeys import TopicKeys

BATCH_BYTES: Final = 8 * limits.MIB


class Secrets(NamedTuple):
    """What makes a copy the same log: its id, signing seed and log secret, and the master key that wraps them."""

    master: bytes
    log_id: bytes
    seed: bytes
    secret: bytes

    def counting(self) -> Counting:
        keys = LogKeys.derive(self.log_id, self.seed, self.secret)
        return Counting(keys.log_id, keys.signer.public_key, keys.frame_mac)


class AdoptingKeys(Protocol):
    """A key store that can take over keys."""

    @property
    def epochs(self) -> list[int]: ...

    def key(self, slot: Slot) -> bytes | None: ...

    def adopt(self, keys: Iterable[tuple[Slot, bytes]]) -> None: ...

    def destroy(self, slots: list[Slot]) -> None: ...

    def live_slots(self, epoch: int) -> Iterator[Slot]: ...

    def update(
        self, *, shred_seq: int | None = None, checkpoint: Checkpoint | None = None, epoch: int | None = None,
        home_id: bytes | None = None,
    ) -> None: ...  # fmt: skip


class Target(Protocol):
    """`close` it."""

    home_id: bytes
    counting: Counting
    """Where the target stands."""

    @property
    def keystore(self) -> AdoptingKeys: ...

    def has_piece(self, key: bytes) -> bool: ...

    def put_piece(self, key: bytes, piece: bytes) -> None: ...

    def sync_pieces(self) -> None: ...

    def append(self, messages: Iterable[bytes]) -> None:
        """Take messages of the log over; durable on return."""
        ...

    def complete(self) -> None:
        """All is there."""
        ...

    def close(self) -> None: ...


def messages(log: EventLog, after_seq: int = -1, after_epoch: int = 0) -> Iterator[bytes]:
    """Claims and frames in an order in which they count: a claim comes before its epoch's frames, and after all older ones."""
    claims = [(claim.epoch, data) for data in log.claims() if (claim := ev.decode_claim(data)).epoch > after_epoch]
    claims.sort(reverse=True)
    for data in log.frames(after_seq + 1):
        frame = ev.decode_frame(data)
        if frame.first_seq <= after_seq:
            continue
        while claims and claims[-1][0] <= frame.epoch:
            yield claims.pop()[1]
        yield data
    while claims:
        yield claims.pop()[1]


def counted(counting: Counting, found: Iterable[bytes]) -> Iterator[tuple[bytes, Claim | ev.Frame]]:
    """Messages with what they are; refuses one that does not count."""
    for data in found:
        verdict = counting.take(data)
        if verdict.kind not in ("claim", "frame") or not isinstance(verdict.message, Claim | ev.Frame):
            raise Trouble(f"a message of the source's log {verdict.why}; run `memctl verify` on the source, nothing was closed")
        yield data, verdict.message


class DirectoryTarget:
    def __init__(self, path: Path, secrets: Secrets, *, home: bytes | None, only_home: bool, shared: bool) -> None:
        """`home` is the home_id that the source's log names: a directory begun with it is gone on with. With `only_home` none
        other will do. `shared`: the log was on Kafka."""
        self.path = path
        self.partial = path.with_name(path.name + ".partial")
        self.counting = secrets.counting()
        self._closing: list[RocksStore | KeyStore] = []
        if only_home and _home_of(path, secrets) == home:
            raise Trouble(f"{path} is what the source's log moved to, and it is complete; go on there")
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise Trouble(f"{path} exists and is not empty; name a new directory")
        known = _home_of(self.partial, secrets)
        if known is None or known != home:
            if only_home:
                raise Trouble(closed_for(f"{self.partial}"))
            shutil.rmtree(self.partial, ignore_errors=True)
            known = _begin_directory(self.partial, secrets)
        self.home_id = known
        try:
            self._lock = lock_directory(self.partial)
        except BlockingIOError:
            raise Trouble(f"another copy to {self.partial} is under way; wait for it") from None
        self.slots = KeyStore(self.partial / "keys", secrets.master)
        self._closing.append(self.slots)
        self.store = RocksStore(self.partial / "db")
        self._closing.append(self.store)
        if shared:
            one = Batch()
            one.put(LOG, SHARED, b"")
            self.store.write(one)
        self._pieces = self.store.live(PAYLOAD)
        for _ in counted(self.counting, messages(EmbeddedLog(self.store))):
            # What an earlier run brought here.
            pass

    @property
    def keystore(self) -> KeyStore:
        return self.slots

    def has_piece(self, key: bytes) -> bool:
        return self._pieces.get(key) is not None

    def put_piece(self, key: bytes, piece: bytes) -> None:
        one = Batch()
        one.put(PAYLOAD, key, piece)
        self.store.write(one)

    def sync_pieces(self) -> None:
        self.store.sync()

    def append(self, messages: Iterable[bytes]) -> None:
        batch, held = Batch(), 0
        for data, message in counted(self.counting, messages):
            if isinstance(message, Claim):
                batch.put(LOG, b"c" + u64(message.epoch), data)
            else:
                first = u64(message.first_seq)
                batch.put(LOG, b"f" + first, data)
                batch.put(LOG, b"t" + u64(ev.decode_record(message.records[0]).time), first)
            held += len(data)
            if held > BATCH_BYTES:
                self.store.write(batch)
                batch, held = Batch(), 0
        self.store.write(batch)
        self.store.sync()

    def complete(self) -> None:
        """Make the view, and give the directory its name."""
        old = [key for key, _value in self.store.live(VIEW).scan(b"")]
        for at in range(0, len(old), limits.KEY_SLOTS_PER_BLOCK):
            # A run that was broken off may have made some of it.
            batch = Batch()
            batch.puts = [(VIEW, key, None) for key in old[at : at + limits.KEY_SLOTS_PER_BLOCK]]
            self.store.write(batch)
        replay(EmbeddedLog(self.store), None, Tables(self.store.live(VIEW), 0), self.store.write)
        self.store.sync()
        self.close()
        if self.path.exists():
            self.path.rmdir()
        os.rename(self.partial, self.path)
        sync_directory(self.path.absolute().parent)

    def close(self) -> None:
        for opened in self._closing:
            opened.close()
        if self._closing:
            os.close(self._lock)
        self._closing.clear()


def closed_for(where: str) -> str:
    return f"the source's log moved already, and {where} is not what it moved to; go on there, or copy with --no-close"


def _home_of(directory: Path, secrets: Secrets) -> bytes | None:
    """The home_id of a copy that was begun there."""
    if not (directory / "keys" / "slots").exists():
        return None
    keystore = KeyStore(directory / "keys", secrets.master, read_only=True)
    try:
        return keystore.header.home_id if keystore.header.log_id == secrets.log_id else None
    finally:
        keystore.close()


def _begin_directory(directory: Path, secrets: Secrets) -> bytes:
    """An empty directory whose key store knows that it is a copy."""
    making = directory / "keys.partial"
    making.mkdir(mode=0o700, parents=True)
    directory.chmod(0o700)
    home = os.urandom(crypto.ID_BYTES)
    _master, *rest = secrets
    KeyStore.create(making, secrets.master, *rest, name="segments")
    KeyStore.create(making, secrets.master, *rest)
    keystore = KeyStore(making, secrets.master)
    keystore.update(home_id=home)
    keystore.close()
    os.rename(making, directory / "keys")
    sync_directory(directory)
    sync_directory(directory.absolute().parent)
    return home


class TopicTarget:
    def __init__(self, link: Link, secrets: Secrets, *, home: bytes | None, own: bytes | None, only_home: bool) -> None:
        """As `DirectoryTarget`; topics that hold the beginning of this log by a copy are gone on with in any case. `own` is the
        source's home_id."""
        from memos_kernel.eventlog.partition import Appender, Receipt
        from memos_kernel.eventlog.payloadtopic import PayloadTopic
        from memos_kernel.eventlog.tail import owner_of
        from memos_kernel.eventlog.topics import ensure

        self.link = link
        self._log_id = secrets.log_id
        self.counting = secrets.counting()
        self._receipt = Receipt
        self._closing: list[TopicKeys | PayloadTopic | Appender] = []
        ensure(link)
        owner = owner_of(link)
        self._refuse_strangers(owner, secrets)
        try:
            self.keys = self._open_keys(secrets, new=owner is None and not only_home)
            known = self.keys.header.home_id
            if owner is not None and known == own:
                raise Trouble(f"the topic {link.topic} holds this log itself, not a copy of it; name empty topics")
            if only_home and known != home:
                raise Trouble(closed_for(f"the topic {link.topic}"))
            if known is None:
                known = os.urandom(crypto.ID_BYTES)
                self.keys.update(home_id=known)
            self.home_id = known
            self._there: set[bytes] = set()
            self._payloads: PayloadTopic = PayloadTopic(link)
            self._closing.append(self._payloads)
            self._payloads.read_on(0, lambda key, _piece, _offset: self._there.add(key))
            self._appender = Appender(link, link.topic)
            self._closing.append(self._appender)
        except BaseException:
            self.close()
            raise

    def _refuse_strangers(self, owner: bytes | None, secrets: Secrets) -> None:
        """Read what an earlier run brought here; whatever else is in the topic is not ours to go on with."""
        from memos_kernel.eventlog.partition import Reader

        topic = self.link.topic
        if owner is not None and owner != secrets.log_id:
            raise Trouble(f"the topic {topic} holds another log, {owner.hex()}; name empty topics")
        reader = Reader(self.link, topic, batch=limits.KEY_SLOTS_PER_BLOCK)
        try:
            for message in reader.to_end():
                if owner is None:
                    raise Trouble(f"the topic {topic} is not empty, and no log is in it; name empty topics")
                self.counting.take(message.value() or b"")
        finally:
            reader.close()

    def _open_keys(self, secrets: Secrets, *, new: bool) -> TopicKeys:
        from memos_kernel.topickeys import NoRoot, TopicKeys

        try:
            keys = TopicKeys(self.link, secrets.master, log_id=secrets.log_id)
        except NoRoot:
            if not new:
                raise Trouble(closed_for(f"the topic {self.link.topic}")) from None
            TopicKeys.create(self.link, secrets.master, secrets[1:])
            keys = TopicKeys(self.link, secrets.master, log_id=secrets.log_id)
        self._closing.append(keys)
        return keys

    @property
    def keystore(self) -> TopicKeys:
        return self.keys

    def has_piece(self, key: bytes) -> bool:
        return key in self._there

    def put_piece(self, key: bytes, piece: bytes) -> None:
        self._payloads.put([(key, piece)])
        self._there.add(key)

    def sync_pieces(self) -> None:
        self._payloads.wait()

    def append(self, messages: Iterable[bytes]) -> None:
        from memos_kernel.eventlog.tail import owner_of

        receipt = self._receipt()
        for data, _message in counted(self.counting, messages):
            self._appender.send(b"", data, receipt)
        self._appender.wait(receipt)
        if owner_of(self.link) != self._log_id:
            raise Trouble(f"another kernel began a log in topic {self.link.topic} meanwhile; name empty topics")

    def complete(self) -> None:
        """Every message was confirmed."""

    def close(self) -> None:
        for opened in self._closing:
            opened.close()
        self._closing.clear()


def put_keys(keystore: AdoptingKeys, wanted: Iterable[tuple[Slot, bytes]]) -> int:
    """Bring a target's keys to exactly these; returns how many there are."""
    live: set[Slot] = set()
    fresh: list[tuple[Slot, bytes]] = []
    for slot, key in wanted:
        live.add(slot)
        if keystore.key(slot) is None:
            fresh.append((slot, key))
        if len(fresh) == limits.KEY_SLOTS_PER_BLOCK:
            keystore.adopt(fresh)
            fresh = []
    keystore.adopt(fresh)
    # What was erased at the source since an earlier run.
    gone = [slot for epoch in keystore.epochs for slot in keystore.live_slots(epoch) if slot not in live]
    keystore.destroy(gone)
    return len(live)
