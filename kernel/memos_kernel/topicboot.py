"""Opening a log on Kafka: its topics, its key store, and the directory that mirrors it.

- The master key is the directory's (a file, or the environment). A log that exists needs the key that it was made with.
- The directory holds no data key: those are in the keys topic. Keys of index segments stay here, since the segments do.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from memos_drivers.stores.rocks import RocksStore

from . import crypto, masterkey
from .chain import LogKeys
from .config import Config
from .eventlog.base import Ended, OutOfReach
from .eventlog.kafka import KafkaLog
from .eventlog.link import BadLink, Link
from .eventlog.tail import owner_of
from .eventlog.topics import BadTopic, Erasure, Unreachable, ensure
from .events import Damaged
from .keystore import HEADER_BYTES, KeyStore, WrongKey, sync_directory, unpack_header
from .recovery import Refused
from .topickeys import ManyRoots, NoRoot, TopicKeys

log_ = logging.getLogger("memos.boot")

SEGMENTS = "segments"


def open_topic(config: Config, root: Path) -> tuple[RocksStore, KafkaLog, TopicKeys, KeyStore]:
    """Store, log, key store and segment keys of a log on Kafka. Raises `Refused`."""
    link = config.link
    assert link is not None, "the configuration names a topic"
    try:
        ids = ensure(link, create=not config.no_create_topics)
        master, keystore = _open_keys(config, link, root, ids.erasure)
        log_id = keystore.header.log_id
        segment_keys = _segment_keys(root, master, log_id)
        store = RocksStore(root / "db")
        log = KafkaLog(store, link, ids.records, LogKeys.derive(log_id, *keystore.secrets()))
    except WrongKey as error:
        raise Refused(f"{error}: the log was made with another one. Use the key that made it") from error
    except (BadLink, BadTopic, Unreachable, OutOfReach, NoRoot, ManyRoots, masterkey.NoKey, Ended, Damaged) as error:
        raise Refused(str(error)) from error
    return store, log, keystore, segment_keys


def _open_keys(config: Config, link: Link, root: Path, erasure: Erasure) -> tuple[bytes, TopicKeys]:
    """Master key and key store. A new log gets its root, and a master key if there is none."""
    log_id = owner_of(link)
    fresh = log_id is None and not (root / "db").exists()
    # Nobody has claimed the topic: a start that did not come to it may have left a root, and a directory that belongs to it.
    wanted = log_id if log_id is not None else _begun(root)
    master = masterkey.read(config.key_path, new=fresh)
    if master is None:
        if not fresh:
            raise masterkey.NoKey(
                f"no master key: {config.key_path} does not exist and {masterkey.VARIABLE} is not set, and the topic "
                f"{link.topic} holds a log. Bring the key that made it; a new key could read nothing"
            )
        master = masterkey.create(config.key_path)
        log_.info("made a master key at %s; keep a copy elsewhere, without it nothing can be read", config.key_path)
    try:
        return master, TopicKeys(link, master, log_id=wanted, erasure=erasure)
    except (NoRoot, ManyRoots):
        if log_id is not None:
            raise
        # Nobody has claimed the topic yet: whatever roots there are belong to kernels that did not come to it.
        return master, TopicKeys(link, master, log_id=TopicKeys.create(link, master), erasure=erasure)


def _begun(root: Path) -> bytes | None:
    """The log that a directory belongs to, when a start made it and got no further."""
    try:
        with open(root / "keys" / SEGMENTS, "rb") as file:
            header = unpack_header(file.read(HEADER_BYTES))
    except FileNotFoundError:
        return None
    return None if header is None else header.log_id


def _segment_keys(root: Path, master: bytes, log_id: bytes) -> KeyStore:
    """Keys of the index segments that this directory holds; they die with it."""
    keys = root / "keys"
    if not (keys / SEGMENTS).exists():
        keys.mkdir(mode=0o700, exist_ok=True)
        # The header's secrets are of no use here: the log's are in its own key store.
        KeyStore.create(keys, master, log_id, os.urandom(crypto.KEY_BYTES), os.urandom(crypto.KEY_BYTES), name=SEGMENTS)
        sync_directory(root)
    found = KeyStore(keys, master, name=SEGMENTS)
    if found.header.log_id != log_id:
        found.close()
        raise Refused(
            f"{root} belongs to log {found.header.log_id.hex()}, the topic to {log_id.hex()}. Name the topic that it mirrors, "
            "or start on another directory: what this one holds of its own log, that log's topic has too"
        )
    return found
