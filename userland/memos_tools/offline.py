"""A log as memctl sees it: a directory opened read-only beside a kernel, or taken for itself when none runs, a topic, a kernel.

- A source is a data directory, `kafka://HOST:PORT/TOPIC`, or the Unix socket of a running kernel, which says where its log is.
- `opened` never writes and needs no lock; a live directory is seen as of the moment it was opened, and so is a topic.
- `taken` holds the single-writer lock, so no kernel can start meanwhile; it refuses while one runs.
- A point is an offset, an RFC 3339 time (then the last record with a time at or before it), or the beginning of a record's
  hash: at least 8 hexadecimal digits with a letter among them, or `hash:` and any 8.
- `walk` trusts nothing that it reads but does not verify either: hashes follow from each frame's own `prev_hash`.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import re
import stat
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from memos_drivers.stores.base import PAYLOAD, VIEW, Batch
from memos_drivers.stores.memory import MemoryReader, MemoryStore
from memos_drivers.stores.rocks import RocksStore
from memos_kernel import crypto, masterkey
from memos_kernel import events as ev
from memos_kernel.chain import LogKeys
from memos_kernel.config import BadConfig, kafka_settings
from memos_kernel.eventlog.base import EventLog, OutOfReach
from memos_kernel.eventlog.embedded import EmbeddedLog
from memos_kernel.eventlog.link import SCHEME
from memos_kernel.events import Damaged
from memos_kernel.keystore import KeyStore, WrongKey, lock_directory
from memos_kernel.offline import Offline, open_offline
from memos_kernel.state import Tables, View
from memos_kernel.verify import Progress, replay
from memos_syscalls import messages as m

from .output import Output, Trouble

SEQ_MAX: Final = 2**64 - 1
OPEN_TRIES: Final = 3
"""A live kernel may delete a file while it is being opened."""
_FINE: Final = re.compile(r"(.*\.\d{6})(\d{1,3})(Z|[+-]\d\d:\d\d)")
"""RFC 3339 with more digits than microseconds, as memctl prints it."""
_HEXADECIMAL: Final = re.compile(r"[0-9]*[a-f][0-9a-f]*")
"""Hexadecimal digits with a letter among them: no offset and no time, so the beginning of a record's hash."""


class Keys(NamedTuple):
    """The options about keys that every command has."""

    file: Path | None = None
    none: bool = False
    public: bytes | None = None
    """The log's public key, from somebody the caller trusts: for a topic without the master key."""


class Item(NamedTuple):
    """A stored record with its place in the chain."""

    seq: int
    raw: bytes
    hash: bytes
    prev: bytes
    frame: ev.Frame
    frame_bytes: int

    def record(self) -> ev.Record:
        return ev.decode_record(self.raw)


def check_directory(path: Path) -> None:
    if not path.is_dir():
        raise Trouble(f"{path} is not a directory; name the data directory that memosd was started with (--data-dir)")
    if not (path / "db" / "CURRENT").exists():
        raise Trouble(f"{path} holds no memory (there is no {path / 'db'}); name the data directory of a kernel or a snapshot")


@contextlib.contextmanager
def environment_kept() -> Generator[None]:
    """Reading the master key takes it from the environment; a command may open more than one directory."""
    kept = os.environ.get(masterkey.VARIABLE)
    try:
        yield
    finally:
        if kept is not None:
            os.environ[masterkey.VARIABLE] = kept


def keys_of(arguments: argparse.Namespace) -> Keys:
    """The keys that a command line names."""
    public: str | None = getattr(arguments, "public_key", None)
    given = None if public is None else from_hex(public, crypto.KEY_BYTES, "--public-key")
    return Keys(arguments.key_file, arguments.no_keys, given)


def from_hex(text: str, size: int, name: str) -> bytes:
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != size:
        raise Trouble(f"{name} takes {size * 2} hexadecimal digits")
    return value


@contextlib.contextmanager
def opened(
    source: str | Path, keys: Keys = Keys(), out: Output | None = None, *, need_key: bool = False, log_only: bool = False,  # noqa: B008  # A constant.
) -> Generator[Offline]:  # fmt: skip
    """A source, to be read; reading a topic shows its progress on `out`. `log_only`: nothing is to be decrypted, so a
    directory's keys stay shut; those of a topic tell what counts in it."""
    with _open(str(source), keys, out, need_key, log_only) as found:
        yield found


def _open(source: str, keys: Keys, out: Output | None, need_key: bool, log_only: bool) -> Offline:
    source = place_of(source)
    with environment_kept():
        if source.startswith(SCHEME):
            return _open_topic(source, keys, out, need_key)
        return _open_directory(Path(source), Keys(none=True) if log_only else keys, need_key)


def place_of(source: str) -> str:
    """Where a source's log is: its directory or topic."""
    return _log_of(Path(source)) if is_socket(source) else source


def is_socket(source: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(source).st_mode)
    except OSError:
        return False


def _log_of(socket: Path) -> str:
    """Where a running kernel's log is."""
    from memos_client import Kernel

    with Kernel.connect(socket) as kernel:
        log = kernel.sys_info().log
    if log["kind"] == "kafka" and "brokers" in log:
        return f"{SCHEME}{log['brokers']}/{log['topic']}"
    if "data_dir" in log:
        return str(log["data_dir"])
    raise Trouble(f"the kernel at {socket} tells only its own user where its log is; name the directory or topic")


def _open_topic(source: str, keys: Keys, out: Output | None, need_key: bool) -> Offline:
    try:
        from memos_kernel import topicoffline
    except ModuleNotFoundError as error:
        raise Trouble(f"reading a topic needs {error.name}: install memos-kernel[kafka]") from error
    if keys.none and need_key:
        raise Trouble("this needs the keys; leave out --no-keys")
    if keys.file is not None and not keys.file.exists():
        raise Trouble(f"the key file {keys.file} does not exist; --key-file names the file that memosd uses")
    try:
        master = None if keys.none else topicoffline.master_key(keys.file)
        if master is None and need_key:
            raise Trouble(f"no master key for {source}: pass --key-file, or set {masterkey.VARIABLE}")
        options = kafka_options()
        with out.progress("reading the topic", None) if out is not None else contextlib.nullcontext() as progress:
            return topicoffline.open_topic(source, options, master=master, public_key=keys.public, progress=progress)
    except WrongKey as error:
        raise Trouble(f"{error}; or pass --no-keys to see what is public") from error
    except (BadConfig, masterkey.NoKey, *topicoffline.TROUBLES) as error:
        raise Trouble(str(error)) from error


def kafka_options() -> dict[str, str]:
    """Settings for reaching Kafka, from the file that `MEMOS_KAFKA_CONFIG` names. Raises `BadConfig`."""
    given = os.environ.get("MEMOS_KAFKA_CONFIG")
    return kafka_settings(Path(given)) if given else {}


def read_on(found: Offline) -> bool:
    """Take in what a topic got since it was opened; false if Kafka does not answer now."""
    from memos_kernel import topicoffline

    try:
        found.read_on()
    except OutOfReach:
        return False
    except topicoffline.TROUBLES as error:
        raise Trouble(str(error)) from error
    return True


def _open_directory(path: Path, keys: Keys, need_key: bool) -> Offline:
    check_directory(path)
    key_file = keys.file
    if keys.none:
        if need_key:
            raise Trouble("this needs the keys; leave out --no-keys")
        os.environ.pop(masterkey.VARIABLE, None)
        key_file = path / "no-key"
    elif key_file is not None and not key_file.exists():
        raise Trouble(f"the key file {key_file} does not exist; --key-file names the file that memosd uses")
    elif not (path / "keys" / "slots").exists() and not need_key:
        # A snapshot, a mirror or a replay without keys: there is nothing that a master key could open.
        key_file = path / "no-key"
        os.environ.pop(masterkey.VARIABLE, None)
    for left in reversed(range(OPEN_TRIES)):
        try:
            return open_offline(path, key_file, need_key)
        except (masterkey.NoKey, WrongKey) as error:
            raise Trouble(f"{error}; or pass --no-keys to see what is public") from error
        except Damaged as error:
            raise Trouble(f"the key store cannot be read: {error}; or pass --no-keys") from error
        except OSError as error:
            if left == 0:
                raise Trouble(f"cannot open {path}: {error}; if a kernel writes there, try again") from error
    raise AssertionError("the last try returns or raises")


class Taken(NamedTuple):
    """A data directory open for writing, with the lock held."""

    path: Path
    store: RocksStore
    log: EmbeddedLog
    keys: LogKeys | None
    keystore: KeyStore | None
    segment_keys: KeyStore | None


@contextlib.contextmanager
def locked(path: Path) -> Generator[None]:
    """The single-writer lock of a directory; refused while a kernel holds it."""
    try:
        lock = lock_directory(path)
    except BlockingIOError:
        raise Trouble(
            f"a kernel (pid {holder(path)}) has {path} open; stop it first: this changes files that it uses"
        ) from None
    try:
        yield
    finally:
        os.close(lock)


@contextlib.contextmanager
def taken(path: Path, keys: Keys) -> Generator[Taken]:
    """A stopped data directory for writing. Without a key, `keys` and the key stores are None."""
    check_directory(path)
    with locked(path), contextlib.ExitStack() as closing:
        log_keys, slots, segments = None, None, None
        if not keys.none:
            try:
                with environment_kept():
                    master = masterkey.read(keys.file or path / "master.key")
                if master is not None:
                    slots = KeyStore(path / "keys", master)
                    closing.callback(slots.close)
                    segments = KeyStore(path / "keys", master, name="segments")
                    closing.callback(segments.close)
                    log_keys = LogKeys.derive(slots.header.log_id, *slots.secrets())
            except (masterkey.NoKey, WrongKey, Damaged, OSError) as error:
                raise Trouble(f"{error}; use the key that made {path} (--key-file)") from error
        try:
            store = RocksStore(path / "db")
        except OSError as error:
            raise Trouble(f"{error}; see `memctl doctor {path}`") from error
        closing.callback(store.close)
        yield Taken(path, store, EmbeddedLog(store), log_keys, slots, segments)


def master_key(path: Path, keys: Keys) -> bytes:
    """The master key of a directory."""
    try:
        with environment_kept():
            master = masterkey.read(keys.file or path / "master.key")
    except (masterkey.NoKey, OSError) as error:
        raise Trouble(str(error)) from error
    if master is None:
        raise Trouble(f"no master key for {path}: pass --key-file FILE, or set {masterkey.VARIABLE}")
    return master


def holder(path: Path) -> int | None:
    """The process that has a directory open for writing; None when nobody has."""
    try:
        fd = os.open(path / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(fd, 32, 0).decode(errors="replace").strip()
        return int(text) if text.isdigit() else 0
    finally:
        os.close(fd)
    return None


# -- reading the log ---------------------------------------------------------------------------------------------------


def head(log: EventLog) -> int:
    """Offset of the newest record; -1 for an empty log."""
    for data in log.frames(SEQ_MAX):
        frame = ev.decode_frame(data)
        return frame.first_seq + len(frame.records) - 1
    return -1


def walk(log: EventLog, from_seq: int = 0) -> Iterator[Item]:
    """Records from `from_seq` on. Raises `Damaged` at a frame that cannot be read."""
    for data in log.frames(from_seq):
        frame = ev.decode_frame(data)
        hash_ = frame.prev_hash
        for seq, raw in enumerate(frame.records, frame.first_seq):
            prev, hash_ = hash_, crypto.record_hash(hash_, raw)
            if seq >= from_seq:
                yield Item(seq, raw, hash_, prev, frame, len(data))


def item_at(log: EventLog, seq: int) -> Item | None:
    for item in walk(log, seq):
        return item if item.seq == seq else None
    return None


def nanoseconds(text: str) -> int:
    """RFC 3339 as nanoseconds, with up to nine digits after the second."""
    extra = 0
    if found := _FINE.fullmatch(text):
        text, extra = found[1] + found[3], int(found[2].ljust(3, "0"))
    try:
        whole = m.nanoseconds(text)
    except ValueError as error:
        raise Trouble(f"{text!r} is neither an offset nor a time: {error}") from error
    assert isinstance(whole, int)
    return whole + extra


def resolve(log: EventLog, point: str) -> int:
    """The offset that a point names."""
    newest = head(log)
    if point.isascii() and point.isdigit():
        if int(point) > newest:
            raise Trouble(f"offset {point} is beyond the head, {newest}; name one from 0 to {newest}")
        return int(point)
    if point.startswith("hash:") or _HEXADECIMAL.fullmatch(point.lower()):
        digits = point.removeprefix("hash:").lower()
        if not re.fullmatch(r"[0-9a-f]{8,64}", digits):
            raise Trouble(f"{digits!r} is not the beginning of a record's hash; give 8 to 64 hexadecimal digits of it")
        found = [item.seq for item in walk(log) if item.hash.hex().startswith(digits)]
        if not found:
            raise Trouble(f"no record's hash begins with {digits}; `memctl log show` and `memctl log tail --json` show them")
        if len(found) > 1:
            raise Trouble(f"the hashes of offsets {', '.join(map(str, found[:5]))} all begin with {digits}; give more digits")
        return found[0]
    try:
        time = nanoseconds(point)
    except Trouble as error:
        raise Trouble(f"{error}; nor 8 hexadecimal digits or more of a record's hash") from error
    seq = log.seq_at(time)
    if seq is None:
        raise Trouble(f"the log holds nothing from before {point}; its first record is younger")
    return seq


def source_and_point(text: str) -> tuple[str, str | None]:
    """`SOURCE@POINT` or `SOURCE`. A directory or socket whose own name holds an @ is taken whole."""
    if Path(text).exists() or "@" not in text:
        return text, None
    source, _, point = text.rpartition("@")
    return source, point


# -- replaying ---------------------------------------------------------------------------------------------------------


class Replayed(NamedTuple):
    """State made from the log alone."""

    seq: int
    hash: bytes
    digest: int
    rows: MemoryReader
    payloads: MemoryReader

    @property
    def view(self) -> View:
        return View(self.rows)


def replayed(log: EventLog, to_seq: int | None, progress: Progress | None = None) -> Replayed:
    """The state after record `to_seq` (the head when None), in dictionaries. Raises `Damaged`."""
    store = MemoryStore()
    rows, payloads = store.live(VIEW), store.live(PAYLOAD)
    tables = Tables(rows, 0)
    seq, hash_, digest = replay(log, to_seq, tables, store.write, progress)
    return Replayed(seq, hash_, digest, rows, payloads)


def write_all(store: RocksStore, puts: list[tuple[str, bytes, bytes | None]]) -> None:
    """One batch, durable."""
    batch = Batch()
    batch.puts = puts
    store.write(batch)
    store.sync()
