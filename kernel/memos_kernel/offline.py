"""A log opened to be read: a data directory, beside a running kernel or without one.

With the master key its keys are at hand; without, what is public. A directory that mirrors a topic has its keys in Kafka, so
there the topic is to be named (topicoffline.py). Nothing is written.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from memos_drivers.stores.base import LOG, PAYLOAD
from memos_drivers.stores.rocks import RocksStore

from . import masterkey
from .chain import LogKeys
from .eventlog import mirror
from .eventlog.embedded import EmbeddedLog
from .keystore import Keys, KeyStore
from .vault import Vault


class Oddity(NamedTuple):
    """A message of a topic that does not count, and was not merely late: where, what it is, whether it proves a loss."""

    topic_offset: int
    what: str
    torn: bool


class Offline(AbstractContextManager["Offline"]):
    """`keystore`, `keys` and `vault` are None without the master key."""

    def __init__(self, source: str, path: Path, store: RocksStore, log: EmbeddedLog) -> None:
        self.source = source
        self.path = path
        """Where log and view are; for a topic, a directory that goes when this is closed."""
        self.store = store
        self.log = log
        self.keystore: Keys | None = None
        self.segment_keys: KeyStore | None = None
        self.keys: LogKeys | None = None
        self.vault: Vault | None = None
        self.oddities: list[Oddity] = []
        """What in a topic does not count; the first of them."""
        self.odd = 0
        """How many there are."""
        self.unproven: int | None = None
        """First offset that no signed checkpoint covers, when the log was read without its keys."""
        self.is_topic = False

    def use(self, keystore: Keys) -> None:
        """Read with these keys; raises `keystore.WrongKey`."""
        self.keystore = keystore
        self.keys = LogKeys.derive(keystore.header.log_id, *keystore.secrets())
        self.vault = Vault(keystore, keystore.header.epoch, self.keys.log_id, self.store.live(PAYLOAD))

    def close(self) -> None:
        for opened in (self.keystore, self.segment_keys):
            if opened is not None:
                opened.close()
        self.store.close()

    def __exit__(self, *_exc: object) -> None:
        self.close()


def open_offline(data_dir: Path, key_file: Path | None = None, need_key: bool = False) -> Offline:
    """Open a data directory read-only. Raises `OSError`, `masterkey.NoKey` or `keystore.WrongKey`, each saying what to do."""
    store = RocksStore(data_dir / "db", read_only=True)
    mirrored = mirror.origin(store.live(LOG)) is not None
    found = Offline(str(data_dir), data_dir, store, mirror.MirrorLog(store) if mirrored else EmbeddedLog(store))
    try:
        if mirrored:
            if need_key:
                raise masterkey.NoKey(f"{data_dir} mirrors a topic, and its keys are in Kafka: name the topic, kafka://…")
            return found
        master = masterkey.read(key_file or data_dir / "master.key")
        if master is None and need_key:
            raise masterkey.NoKey(f"no master key for {data_dir}: pass --key-file, or set {masterkey.VARIABLE}")
        if master is not None:
            found.segment_keys = KeyStore(data_dir / "keys", master, read_only=True, name="segments")
            found.use(KeyStore(data_dir / "keys", master, read_only=True))
    except BaseException:
        found.close()
        raise
    return found
