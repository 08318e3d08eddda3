"""A log opened to be read: a data directory, beside a running kernel or without one.

With the master key its keys are at hand; without, what is public. A directory that mirrors a topic has its keys in Kafka, so
there the topic is to be named (topicoffline.py). Nothing is written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from memos_drivers.stores.base import LOG, PAYLOAD
from memos_drivers.stores.rocks import RocksStore

from . import masterkey
from .chain import LogKeys
from .eventlog import mirror
from .eventlog.counting import Kind
from .eventlog.embedded import EmbeddedLog
from .events import Slot, unpack
from .keystore import Keys, KeyStore
from .state import u64
from .vault import Vault


class Oddity(NamedTuple):
    """A message of a topic that does not count: where it is, which record it is about, what kind it is (see counting.py), and
    why. `torn` ones prove that records are missing or changed; anybody may have put others there, and late ones are usual."""

    topic_offset: int
    offset: int
    kind: Kind
    what: str

    @property
    def torn(self) -> bool:
        return self.kind == "torn"


class Offline(AbstractContextManager["Offline"]):
    """`keystore`, `keys` and `vault` are None without the master key."""

    is_topic = False

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
        """What in a topic does not count; the first of each kind."""
        self.counts: Counter[Kind] = Counter()
        """How many of each kind there are."""
        self.view_problem: str | None = None
        """Why the view of a topic ends before its log does."""
        self.unproven: int | None = None
        """First offset that no signed checkpoint covers, when a topic was read without its keys: the log ends before it."""

    def use(self, keystore: Keys) -> None:
        """Read with these keys; raises `keystore.WrongKey`."""
        self.keystore = keystore
        self.keys = LogKeys.derive(keystore.header.log_id, *keystore.secrets())
        self.vault = Vault(keystore, keystore.header.epoch, self.keys.log_id, self.store.live(PAYLOAD))

    def topic_offset(self, seq: int) -> int | None:
        """Where in its topic a record's frame stands; None in a log of its own."""
        rows = self.store.live(LOG)
        for _key, where in rows.scan(b"a", b"a" + u64(seq), reverse=True) if self.is_topic else ():
            offset, _leader_epoch, last_seq, _hash = unpack(where)
            return int(offset) if seq <= last_seq else None
        return None

    def piece_offset(self, key: bytes) -> int | None:
        """Where in the topic of large contents a piece stands; None in a log of its own, and for one that is not there."""
        return None

    def read_on(self) -> None:
        """Take in what a topic got since. Raises as `open_topic`."""

    def remains(self, slots: Iterable[Slot]) -> list[tuple[Slot, int]]:
        """Which of these destroyed keys are still on a broker, and where in the keys topic; needs the keys."""
        return []

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
