"""A log on Kafka opened to be read, from the topics alone: what an auditor has on an empty machine.

The topic is read to its end into a directory that goes when it is closed, so that whatever reads a log reads this one.

- with the master key: the keys come from the keys topic, and what counts is what bears the right MAC (counting.py)
- without: what counts is what signed checkpoints prove (auditing.py), with the public key that the caller trusts, or else the
  one that the topic names itself

Nothing is written to Kafka. Disk: as much as the topic holds.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from memos_drivers.stores.base import PAYLOAD, VIEW, Batch
from memos_drivers.stores.rocks import RocksStore
from memos_syscalls import limits

from . import masterkey
from .eventlog import mirror
from .eventlog.auditing import Proven, PublicCounting
from .eventlog.base import Ended, OutOfReach
from .eventlog.counting import Counting
from .eventlog.link import BadLink, Link
from .eventlog.mirror import Counted, MirrorLog, Origin
from .eventlog.partition import NoTopic, Reader
from .eventlog.payloadtopic import PayloadTopic
from .eventlog.tail import message_of, owner_of
from .eventlog.writer import Address, Message
from .events import Claim, Damaged, Frame
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


class TopicOffline(Offline):
    """An `Offline` whose directory is its own to remove."""

    is_topic = True

    def close(self) -> None:
        super().close()
        shutil.rmtree(self.path, ignore_errors=True)


def open_topic(
    url: str, options: Mapping[str, str] | None = None, *, master: bytes | None = None, public_key: bytes | None = None,
    progress: Progress | None = None,
) -> TopicOffline:  # fmt: skip
    """Read a log from Kafka. Raises one of `TROUBLES`, or `WrongKey`."""
    link = Link.parse(url, options)
    path = Path(tempfile.mkdtemp(prefix="memos-topic-"))
    try:
        store = RocksStore(path / "db")
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    found = TopicOffline(url, path, store, MirrorLog(store))
    found.is_topic = True
    try:
        if master is not None:
            found.use(TopicKeys(link, master, log_id=owner_of(link), read_only=True))
        _read(found, link, public_key, progress)
        _read_payloads(found, link)
        # The view that follows from it; a record that does not fit what is before it is for verify to name.
        replay(found.log, None, Tables(store.live(VIEW), 0), store.write)
    except Damaged as error:
        found.oddities.append(Oddity(-1, str(error), True))
    except BaseException:
        found.close()
        raise
    return found


def _messages(link: Link) -> Iterator[Message]:
    reader = Reader(link, link.topic, batch=BATCH_MESSAGES)
    try:
        for message in reader.to_end():
            yield message_of(message)
    finally:
        reader.close()


def _read(found: TopicOffline, link: Link, public_key: bytes | None, progress: Progress | None) -> None:
    keys = found.keys
    counted = _by_mac(found, link) if keys is not None else _by_signature(found, link, public_key)
    batch, held = Batch(), 0
    for number, item in enumerate(counted):
        if number == 0 and isinstance(item.message, Claim):
            mirror.put_origin(batch, Origin(item.message.log_id, link.topic, ""))
        mirror.put(batch, item)
        held += len(item.data)
        if held > BATCH_BYTES:
            found.store.write(batch)
            batch, held = Batch(), 0
        if progress is not None:
            progress(item.seq + 1)
    found.store.write(batch)


def _by_mac(found: TopicOffline, link: Link) -> Iterator[Counted]:
    keys = found.keys
    assert keys is not None
    counting = Counting(keys.log_id, keys.signer.public_key, keys.frame_mac)
    for message in _messages(link):
        verdict = counting.take(message.data)
        at = counting.at
        if verdict.kind in ("suspect", "torn", "foreign"):
            _odd(found, Oddity(message.offset, verdict.why, verdict.kind == "torn"))
        elif verdict.counts and isinstance(verdict.message, Claim | Frame):
            yield Counted(Address.of(message), message.data, verdict.message, at.seq, at.hash)


def _by_signature(found: TopicOffline, link: Link, public_key: bytes | None) -> Iterator[Counted]:
    counting = PublicCounting(public_key=public_key)
    proven = -1
    for message in _messages(link):
        for item in counting.take(message):
            proven = item.seq
            yield _kept(item)
    for item in counting.rest():
        if isinstance(item.message, Frame) and found.unproven is None:
            found.unproven = proven + 1
        yield _kept(item)
    for offset, what in counting.problems:
        _odd(found, Oddity(offset, what, "follow" in what))


def _kept(item: Proven) -> Counted:
    return Counted(*item)


def _odd(found: TopicOffline, oddity: Oddity) -> None:
    found.odd += 1
    if len(found.oddities) < ODDITIES_MAX:
        found.oddities.append(oddity)


def _read_payloads(found: TopicOffline, link: Link) -> None:
    """Pieces of large contents; what a message says of itself is checked when it is read."""
    batch, held = Batch(), 0

    def sink(key: bytes, value: bytes | None, _offset: int) -> None:
        nonlocal batch, held
        batch.put(PAYLOAD, key, value)
        held += len(value or b"")
        if held > BATCH_BYTES:
            found.store.write(batch)
            batch, held = Batch(), 0

    topic = PayloadTopic(link)
    try:
        topic.read_on(0, sink)
    finally:
        topic.close()
    found.store.write(batch)


def master_key(key_file: Path | None) -> bytes | None:
    """The master key from a file that is named, or from the environment."""
    return masterkey.read(key_file or Path("/nonexistent"))
