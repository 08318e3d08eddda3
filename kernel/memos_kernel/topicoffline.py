"""A log on Kafka opened to be read, from the topics alone: what an auditor has on an empty machine.

The topic is read to its end into a directory that goes when it is closed, so that whatever reads a log reads this one.

- with the master key: the keys come from the keys topic, and what counts is what bears the right MAC (counting.py)
- without: what counts is what signed checkpoints prove (auditing.py), with the public key that the caller trusts, or else the
  one that the topic names itself; the log ends before the first record that none proves

Nothing is written to Kafka. Disk: as much as the topic holds.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from memos_drivers.stores.base import LOG, PAYLOAD, VIEW, Batch
from memos_drivers.stores.rocks import RocksStore
from memos_syscalls import limits

from . import masterkey
from .chain import LogKeys
from .eventlog import mirror
from .eventlog.auditing import PublicCounting
from .eventlog.base import Ended, OutOfReach
from .eventlog.counting import Counting
from .eventlog.link import BadLink, Link
from .eventlog.mirror import Counted, MirrorLog, Origin
from .eventlog.partition import NoTopic, Reader
from .eventlog.payloadtopic import PayloadTopic
from .eventlog.tail import first_claim, message_of, owner_of
from .eventlog.writer import Address, Message
from .events import Claim, Damaged, Frame, Slot
from .offline import Oddity, Offline
from .state import Tables
from .topickeys import ManyRoots, NoRoot, TopicKeys
from .verify import replay

Progress = Callable[[int], None]
TROUBLES: Final = (BadLink, Ended, OutOfReach, NoTopic, NoRoot, ManyRoots)
"""What opening a topic may raise besides `WrongKey`; each says what to do."""
BATCH_MESSAGES: Final = 1024
BATCH_BYTES: Final = 8 * limits.MIB
ODDITIES_MAX: Final = 100
NOWHERE: Final = -1
"""Offset of what is not at one."""
_PIECE: Final = b"m"
"""Row of the log family: key of a piece → its offset in the topic of large contents."""
_UNFIT: Final = (Damaged, TypeError, ValueError, LookupError, AttributeError)
"""What records that this log's kernel did not write may lead to."""


class TopicOffline(Offline):
    """An `Offline` whose directory is its own to remove."""

    is_topic = True

    def __init__(self, link: Link, url: str, path: Path, store: RocksStore) -> None:
        super().__init__(url, path, store, MirrorLog(store))
        self.link = link
        self._topic_keys: TopicKeys | None = None
        self._reader: Reader | None = None
        self._take: Callable[[Message], Iterable[Counted]] = lambda _message: ()

    def open_keys(self, keys: TopicKeys) -> None:
        self._topic_keys = keys
        self.use(keys)

    def start(self, take: Callable[[Message], Iterable[Counted]], progress: Progress | None) -> None:
        """Read what is there, and keep what `take` says of each message."""
        self._take = take
        self._reader = Reader(self.link, self.link.topic, batch=BATCH_MESSAGES)
        keep(self, self._counted(progress))

    def read_on(self) -> None:
        keep(self, self._counted(None))

    def _counted(self, progress: Progress | None) -> Iterator[Counted]:
        assert self._reader is not None
        for number, message in enumerate(self._reader.to_end(), 1):
            yield from self._take(message_of(message))
            if progress is not None and number % BATCH_MESSAGES == 0:
                progress(number)

    def piece_offset(self, key: bytes) -> int | None:
        data = self.store.live(LOG).get(_PIECE + key)
        return None if data is None else int.from_bytes(data, "big")

    def remains(self, slots: Iterable[Slot]) -> list[tuple[Slot, int]]:
        assert self._topic_keys is not None, "needs the keys"
        return [(one.slot, one.offset) for one in self._topic_keys.remains(slots)]

    def odd(self, oddity: Oddity) -> None:
        self.counts[oddity.kind] += 1
        if self.counts[oddity.kind] <= ODDITIES_MAX:
            self.oddities.append(oddity)

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
        super().close()
        shutil.rmtree(self.path, ignore_errors=True)


def open_topic(
    url: str, options: Mapping[str, str] | None = None, *, master: bytes | None = None, public_key: bytes | None = None,
    progress: Progress | None = None,
) -> TopicOffline:  # fmt: skip
    """Read a log from Kafka. `progress` hears how many messages were read. Raises one of `TROUBLES`, or `WrongKey`."""
    link = Link.parse(url, options)
    path = Path(tempfile.mkdtemp(prefix="memos-topic-"))
    try:
        store = RocksStore(path / "db")
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    found = TopicOffline(link, url, path, store)
    try:
        if master is not None:
            # Before the records: what the key store remembers must be in them.
            found.open_keys(TopicKeys(link, master, log_id=owner_of(link), read_only=True))
        if found.keys is not None:
            found.start(partial(_by_mac, found, _counting(found.keys)), progress)
        else:
            _by_signature(found, public_key, progress)
        _read_payloads(found)
        try:
            # The view that follows from it.
            replay(found.log, None, Tables(store.live(VIEW), 0), store.write)
        except _UNFIT as error:
            # Verify walks the log itself and names the record.
            found.view_problem = f"the view cannot be made from the records: {error}"
    except BaseException:
        found.close()
        raise
    return found


def keep(found: TopicOffline, counted: Iterable[Counted]) -> None:
    """Write what counts to the directory, as a kernel's mirror has it."""
    batch, held = Batch(), 0
    for item in counted:
        if not batch.puts and mirror.origin(found.store.live(LOG)) is None:
            mirror.put_origin(batch, Origin(item.message.log_id, found.link.topic, ""))
        mirror.put(batch, item)
        held += len(item.data)
        if held > BATCH_BYTES:
            found.store.write(batch)
            batch, held = Batch(), 0
    found.store.write(batch)


def _counting(keys: LogKeys) -> Counting:
    return Counting(keys.log_id, keys.signer.public_key, keys.frame_mac)


def _by_mac(found: TopicOffline, counting: Counting, message: Message) -> Iterator[Counted]:
    verdict = counting.take(message.data)
    at = counting.at
    if not verdict.counts:
        found.odd(Oddity(message.offset, at.seq + 1, verdict.kind, verdict.why))
    elif isinstance(verdict.message, Claim | Frame):
        yield Counted(Address.of(message), message.data, verdict.message, at.seq, at.hash)


def _by_signature(found: TopicOffline, public_key: bytes | None, progress: Progress | None) -> None:
    """Whose word it is: the key that is given, or that of the topic's first claim."""
    first = first_claim(found.link, public_key)
    if first is None:
        if public_key is not None and first_claim(found.link) is not None:
            what = "holds no claim of the public key that was given: the topic is another log's, or was rewritten"
            found.odd(Oddity(NOWHERE, 0, "torn", what))
        return
    counting = PublicCounting(first.log_id, first.public_key)

    def told() -> None:
        for finding in counting.findings():
            found.odd(Oddity(*finding))

    def take(message: Message) -> Iterator[Counted]:
        yield from (Counted(*item) for item in counting.take(message))
        told()

    try:
        found.start(take, progress)
    except Damaged as error:
        found.odd(Oddity(NOWHERE, counting.proven + 1, "suspect", str(error)))
    keep(found, (Counted(*item) for item in counting.rest()))
    told()
    found.unproven = counting.unproven


def _read_payloads(found: TopicOffline) -> None:
    """Pieces of large contents; what a message says of itself is checked when it is read."""
    batch, held = Batch(), 0

    def sink(key: bytes, value: bytes | None, offset: int) -> None:
        nonlocal batch, held
        batch.put(PAYLOAD, key, value)
        batch.put(LOG, _PIECE + key, offset.to_bytes(8, "big"))
        held += len(value or b"")
        if held > BATCH_BYTES:
            found.store.write(batch)
            batch, held = Batch(), 0

    topic = PayloadTopic(found.link)
    try:
        topic.read_on(0, sink)
    finally:
        topic.close()
    found.store.write(batch)


def master_key(key_file: Path | None) -> bytes | None:
    """The master key from a file that is named, or from the environment."""
    return masterkey.read(key_file or Path("/nonexistent"))
