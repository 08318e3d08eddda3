"""copy: a log moves from a data directory to topics of Kafka, back, or from one to another of a kind.

Claims and frames that count are copied verbatim, and with them the keys and large contents that records name, so that the
copy is the same log under the same master key. Then the source ends with a signed log.moved record that names the copy,
and only the copy may be written. With `--no-close` there is no such record: what was copied opens read-only.

The order, so that at any moment there is one place that may be written, whatever breaks off:

1. a kernel in this process opens the source in a new epoch; nobody else writes there from now on
2. the target gets a home_id, then keys, large contents, claims and frames
3. the source gets log.moved with that home_id and a checkpoint, in one frame: it is closed
4. the target gets what is still missing, log.moved last: it is open

Broken off before 3, the source goes on as before. Broken off after, the same command finishes the copy. In the end both logs
are replayed and their digests compared.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from memos_drivers.stores.base import PAYLOAD, VIEW, Store
from memos_drivers.stores.rocks import RocksStore
from memos_kernel import crypto, lifecycle, masterkey, moving
from memos_kernel.config import BadConfig, Config, kafka_settings
from memos_kernel.eventlog.base import EventLog
from memos_kernel.eventlog.embedded import EmbeddedLog
from memos_kernel.eventlog.link import SCHEME, Link
from memos_kernel.eventlog.topics import BadTopic, Unreachable
from memos_kernel.events import Slot
from memos_kernel.keystore import Keys as KeysOf
from memos_kernel.keystore import WrongKey
from memos_kernel.state import META_HOME, View, decode_version, shown
from memos_syscalls import limits

from . import offline
from .copytarget import DirectoryTarget, Secrets, Target, TopicTarget, messages, put_keys
from .offline import Keys, environment_kept
from .output import BAD, GOOD, Output, Trouble
from .render import Block, Line, Rows

SEALING_BYTES: Final = crypto.NONCE_BYTES + crypto.TAG_BYTES
AGAIN: Final = "the same command goes on where this one stopped"


class Source(NamedTuple):
    """A log that is read, with its keys."""

    store: Store
    log: EventLog
    keystore: KeysOf

    @property
    def view(self) -> View:
        return View(self.store.live(VIEW))


class Made(NamedTuple):
    """What became of it."""

    head: int
    source_digest: str
    copy_digest: str
    home_id: bytes
    closed: bool
    keys: int
    missing: int
    """Pieces of contents that the source lacks, too."""


def command(arguments: argparse.Namespace, out: Output) -> int:
    source: str = arguments.source
    target: str = arguments.target
    keys = Keys(arguments.key_file)
    troubles = _troubles(source, target)
    try:
        made = _copy(source, target, keys, out, close=not arguments.no_close)
    except troubles as error:
        raise Trouble(str(error)) from error
    good = made.source_digest == made.copy_digest
    data = {
        "source": source, "copy": target, "head_offset": made.head, "source_digest": made.source_digest,
        "copy_digest": made.copy_digest, "equal": good, "home_id": made.home_id.hex(), "closed": made.closed, "keys": made.keys,
    }  # fmt: skip
    rows = [
        ("head offset", str(made.head)), ("source digest", made.source_digest), ("copy digest", made.copy_digest),
        ("keys", str(made.keys)),
    ]  # fmt: skip
    out.show(data, Rows(("field", "value"), rows), *_advice(source, target, keys, made))
    return GOOD if good else BAD


def _troubles(*places: str) -> tuple[type[Exception], ...]:
    """What opening them may raise; each says what to do. Only topics need Kafka's library."""
    found = (moving.Refused, WrongKey, masterkey.NoKey, BadConfig)
    if not any(place.startswith(SCHEME) for place in places):
        return found
    try:
        from memos_kernel.topicoffline import TROUBLES
    except ModuleNotFoundError as error:
        raise Trouble(f"copying topics needs {error.name}: install memos-kernel[kafka]") from error
    return (*found, *TROUBLES, BadTopic, Unreachable)


def _advice(source: str, target: str, keys: Keys, made: Made) -> Iterator[Block]:
    if made.source_digest != made.copy_digest:
        yield Line("the copy has another state than its source: do not use it, and run `memctl verify` on both", "red")
        return
    if made.missing:
        yield Line(f"{made.missing} pieces of large contents were missing in the source: run `memctl verify` on it", "yellow")
    key = keys.file or (Path(source) / "master.key" if not source.startswith(SCHEME) else Path("FILE"))
    words = "memosd" if made.closed else "memosd --take-over"
    if target.startswith(SCHEME):
        yield Line(f"go on: {words} --data-dir NEWDIR --log {target} --master-key-file {key}")
    else:
        yield Line(f"go on: {words} --data-dir {target}")
    if made.closed:
        yield Line(
            "the source is closed, and still has its keys: what you erase in the copy can be read there until you delete it"
        )
        return
    yield Line("the source may go on, so the copy opens read-only; --take-over makes two logs of one", "yellow")


def _copy(source: str, target: str, keys: Keys, out: Output, *, close: bool) -> Made:
    if close:
        with _taken(source, keys) as (config, parts), contextlib.ExitStack() as closing:
            found = Source(parts.store, parts.log, parts.keystore)
            secrets = _secrets(found, source, keys)

            carrying: list[_Carrying] = []

            def copied(moved: bool) -> bytes:
                into = closing.enter_context(_target(target, secrets, found, only_home=moved))
                carrying.append(_Carrying(found, into, out))
                carrying[0].all()
                return into.home_id

            try:
                asyncio.run(moving.close(config, parts, copied))
            except moving.NotClosed as error:
                raise Trouble(f"the source was not closed: {error}; {AGAIN}") from error
            carrying[0].log()
            return _finished(carrying[0], target, secrets, keys, source)
    with offline.opened(source, keys, need_key=True) as opened:
        assert opened.keystore is not None, "it was asked for"
        found = Source(opened.store, opened.log, opened.keystore)
        secrets = _secrets(found, source, keys)
        with _target(target, secrets, found, only_home=False) as into:
            carry = _Carrying(found, into, out)
            carry.all()
            return _finished(carry, target, secrets, keys, source)


# -- the source --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _taken(source: str, keys: Keys) -> Generator[tuple[Config, moving.Parts]]:
    """The parts of a kernel on the source, with nobody else's hands on them."""
    with contextlib.ExitStack() as closing:
        if source.startswith(SCHEME):
            config = _topic_source(source, keys, Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="memos-copy-"))))
        else:
            path = Path(source)
            offline.check_directory(path)
            if not (path / "keys" / "slots").exists():
                raise Trouble(f"{path} holds no keys of its log: if it mirrors a topic, name that, kafka://HOST:PORT/TOPIC")
            config = Config(path, path / "unused.sock", embedder="none", master_key_file=keys.file, accept_clock=True)
            closing.enter_context(offline.locked(path))
        with environment_kept():
            parts = closing.enter_context(moving.opened(config))
        yield config, parts


def _topic_source(source: str, keys: Keys, scratch: Path) -> Config:
    from memos_kernel.eventlog.tail import owner_of

    options = _options()
    if owner_of(Link.parse(source, options)) is None:
        raise Trouble(f"{source} holds no log; name the topic of a kernel that has run")
    return Config(
        scratch, scratch / "unused.sock", log=source, embedder="none", master_key_file=keys.file, accept_clock=True,
        kafka=options, no_create_topics=True,
    )  # fmt: skip


def _options() -> dict[str, str]:
    given = os.environ.get("MEMOS_KAFKA_CONFIG")
    return kafka_settings(Path(given)) if given else {}


def _secrets(found: Source, source: str, keys: Keys) -> Secrets:
    with environment_kept():
        master = masterkey.read(keys.file or Path(source) / "master.key")
    if master is None:
        raise Trouble(f"no master key for {source}: pass --key-file, or set {masterkey.VARIABLE}")
    seed, secret = found.keystore.secrets()
    return Secrets(master, found.keystore.header.log_id, seed, secret)


# -- the target --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _target(target: str, secrets: Secrets, found: Source, *, only_home: bool) -> Generator[Target]:
    home, own = found.view.get(META_HOME), found.keystore.header.home_id
    into: Target
    if target.startswith(SCHEME):
        into = TopicTarget(Link.parse(target, _options()), secrets, home=home, own=own, only_home=only_home)
    else:
        into = DirectoryTarget(Path(target), secrets, home=home, only_home=only_home, shared=found.log.shared)
    try:
        yield into
    finally:
        into.close()


class _Carrying:
    """From one source to one target; each part takes what is there already into account."""

    def __init__(self, found: Source, into: Target, out: Output) -> None:
        self.found = found
        self.into = into
        self.out = out
        self.keys = 0
        self.missing = 0

    def all(self) -> None:
        """What records name first, then the records."""
        self._check_beginning()
        self.missing = 0
        for key, piece in _pieces(self.found):
            if piece is None:
                self.missing += 1
            elif not self.into.has_piece(key):
                self.into.put_piece(key, piece)
        self.into.sync_pieces()
        self.keys = put_keys(self.into.keystore, _keys(self.found))
        self.log()

    def log(self) -> None:
        at = self.into.counting.at
        with self.out.progress("copying", offline.head(self.found.log) + 1) as progress:

            def told() -> Iterator[bytes]:
                for data in messages(self.found.log, at.seq, at.epoch):
                    yield data
                    progress(at.seq + 1)

            self.into.append(told())

    def _check_beginning(self) -> None:
        """What the target holds must be the beginning of what the source holds."""
        at = self.into.counting.at
        if at.seq < 0:
            return
        if at.seq > offline.head(self.found.log) and self.found.view.get(META_HOME) == self.into.home_id:
            raise Trouble("the copy is complete and was written to since; go on there")
        item = offline.item_at(self.found.log, at.seq)
        if item is None or item.hash != at.hash:
            raise Trouble("the target holds other records than the source: its log went on by itself; name a new one")


def _pieces(found: Source) -> Iterator[tuple[bytes, bytes | None]]:
    """Ciphertexts that stand beside the log and that records name, erased ones too; None for what the source lacks."""
    seen: set[bytes] = set()
    stored = found.store.live(PAYLOAD)
    for _key, row in found.view.scan(b"v"):
        version, _private = decode_version(row)
        payload_id = version.payload_id
        if version.payload_bytes + SEALING_BYTES <= limits.PAYLOAD_INLINE_BYTES_MAX or payload_id in seen:
            continue
        seen.add(payload_id)
        wanted = [payload_id]
        if crypto.is_chunked(version.payload_bytes):
            count = -(-version.payload_bytes // limits.PAYLOAD_CHUNK_BYTES)
            wanted = [payload_id + index.to_bytes(4, "big") for index in range(count)]
        for key in wanted:
            yield key, stored.get(key)


def _keys(found: Source) -> Iterator[tuple[Slot, bytes]]:
    """Keys that records name and that no record erased."""
    view = found.view
    for name, cube_id in view.scan(b"k"):
        cube = view.cube(cube_id)
        slot = Slot(int.from_bytes(name[1:9], "big"), int.from_bytes(name[9:], "big"))
        if cube is None or cube.state == lifecycle.SHREDDED:
            continue
        key = found.keystore.key(slot)
        if key is not None:
            yield slot, key


# -- the end -----------------------------------------------------------------------------------------------------------


def _finished(carry: _Carrying, target: str, secrets: Secrets, keys: Keys, source: str) -> Made:
    """Complete the target, and compare."""
    found, into = carry.found, carry.into
    header = found.keystore.header
    into.keystore.update(shred_seq=header.shred_seq, checkpoint=found.keystore.newest_checkpoint, epoch=header.epoch)
    at = into.counting.at
    if isinstance(into, DirectoryTarget):
        _give_master_key(into.partial, source, keys)
    into.complete()
    digest = shown(offline.replayed(found.log, at.seq).digest).hex()
    return Made(
        at.seq, digest, _digest_of(target, secrets, at.seq), into.home_id, _names(found, into), carry.keys, carry.missing
    )


def _names(found: Source, into: Target) -> bool:
    return found.view.get(META_HOME) == into.home_id


def _give_master_key(directory: Path, source: str, keys: Keys) -> None:
    """A copy of the file, not a link: who deletes the source must not lose the key."""
    if masterkey.VARIABLE in os.environ:
        return
    data = (keys.file or Path(source) / "master.key").read_bytes()
    fd = os.open(directory / "master.key", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _digest_of(target: str, secrets: Secrets, head: int) -> str:
    """The copy's digest, by replaying what it really holds."""
    if not target.startswith(SCHEME):
        store = RocksStore(Path(target) / "db", read_only=True)
        try:
            return shown(offline.replayed(EmbeddedLog(store), head).digest).hex()
        finally:
            store.close()
    from memos_kernel import topicoffline

    with topicoffline.open_topic(target, _options(), master=secrets.master) as opened:
        return shown(offline.replayed(opened.log, head).digest).hex()
