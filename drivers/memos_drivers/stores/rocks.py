"""The RocksDB store: one database, one column family per store family, large payloads in blob files.

`write` leaves the batch in the operating system's cache and `sync` flushes the write-ahead log: rocksdict holds the
GIL in the first (microseconds) and releases it in the second (a disk's time), so the caller runs `sync` in a thread.
A key or value never reaches RocksDB's own text logs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rocksdict import AccessType, BlockBasedOptions, Cache, Checkpoint, DBCompressionType, Options, Rdict, WriteBatch

from .base import FAMILIES, LOG, PAYLOAD, VIEW, Batch, Reader

BLOCK_CACHE_BYTES = 32 << 20
WRITE_BUFFER_BYTES = 4 << 20
BLOB_BYTES_MIN = 16 << 10


def _tuned(cache: Any, family: str) -> Any:
    options = Options(raw_mode=True)
    table = BlockBasedOptions()
    table.set_block_cache(cache)
    table.set_bloom_filter(10, False)
    options.set_block_based_table_factory(table)
    options.set_write_buffer_size(WRITE_BUFFER_BYTES)
    options.set_max_write_buffer_number(3)
    # What is large here is ciphertext, which does not compress.
    options.set_compression_type(DBCompressionType.lz4() if family == VIEW else DBCompressionType.none())
    if family in (PAYLOAD, LOG):
        options.set_enable_blob_files(True)
        options.set_min_blob_size(BLOB_BYTES_MIN)
        options.set_enable_blob_gc(True)
    return options


class RocksReader:
    """One column family, as of each call."""

    __slots__ = ("_family", "get")

    def __init__(self, family: Any) -> None:
        self._family = family
        self.get = family.get

    def scan(self, prefix: bytes, start: bytes | None = None, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        cursor = self._family.iter()
        if reverse:
            # A key of this prefix is followed by at most 64 bytes less than the next prefix.
            cursor.seek_for_prev(start if start is not None else prefix + b"\xff" * 64)
            step = cursor.prev
        else:
            cursor.seek(start if start is not None else prefix)
            step = cursor.next
        while cursor.valid():
            key = cursor.key()
            if not key.startswith(prefix):
                break
            yield key, cursor.value()
            step()
        cursor.status()


class RocksSnapshot:
    """One column family as of the moment this was made. Made by the thread that writes, so no write comes in between.

    rocksdict's own snapshots serve `get` from their moment but scan the present (Snapshot.iter drops its read options),
    so a cursor stands in: RocksDB pins what a cursor saw when it was made. Scans take turns at it, some rows at a time.
    """

    __slots__ = ("_cursor", "_lock", "_snapshot")

    def __init__(self, family: Any) -> None:
        self._snapshot = family.snapshot()
        self._cursor = family.iter()
        self._lock = threading.Lock()

    def get(self, key: bytes) -> bytes | None:
        try:
            value: bytes = self._snapshot[key]
        except Exception as error:
            # rocksdict's snapshots say "not there" with a bare Exception.
            if str(error) == "key not found":
                return None
            raise OSError(f"RocksDB could not read: {error}") from error
        return value

    def scan(self, prefix: bytes, start: bytes | None = None, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        last: bytes | None = None
        size = 4
        while True:
            rows = self._some(prefix, start, reverse, last, size)
            yield from rows
            if len(rows) < size:
                return
            last, size = rows[-1][0], min(2 * size, 256)

    def _some(
        self, prefix: bytes, start: bytes | None, reverse: bool, last: bytes | None, size: int
    ) -> list[tuple[bytes, bytes]]:
        rows: list[tuple[bytes, bytes]] = []
        with self._lock:
            cursor = self._cursor
            step = cursor.prev if reverse else cursor.next
            if last is not None:
                (cursor.seek_for_prev if reverse else cursor.seek)(last)
                # The cursor is pinned, so the last row is still there.
                step()
            elif reverse:
                cursor.seek_for_prev(start if start is not None else prefix + b"\xff" * 64)
            else:
                cursor.seek(start if start is not None else prefix)
            while len(rows) < size and cursor.valid():
                key = cursor.key()
                if not key.startswith(prefix):
                    break
                rows.append((key, cursor.value()))
                step()
            cursor.status()
        return rows


class RocksStore:
    """A database directory. Raises `OSError` when it cannot be opened; one process at a time may hold it for writing."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        cache = Cache(BLOCK_CACHE_BYTES)
        options = Options(raw_mode=True)
        options.create_if_missing(not read_only)
        options.create_missing_column_families(not read_only)
        options.set_max_background_jobs(2)
        options.set_max_total_wal_size(64 << 20)
        options.set_keep_log_file_num(2)
        options.set_max_open_files(512)
        families = {name: _tuned(cache, name) for name in FAMILIES}
        access = AccessType.read_only(False) if read_only else AccessType.read_write()
        try:
            self._db = Rdict(str(path), options, column_families=families, access_type=access)
        except Exception as error:
            raise OSError(f"RocksDB cannot open {path}: {error}") from error
        self._families = {name: self._db.get_column_family(name) for name in FAMILIES}
        self._handles = {name: self._db.get_column_family_handle(name) for name in FAMILIES}
        self._live = {name: RocksReader(family) for name, family in self._families.items()}

    def live(self, family: str) -> Reader:
        return self._live[family]

    def snapshot(self, family: str) -> Reader:
        return RocksSnapshot(self._families[family])

    def write(self, batch: Batch) -> None:
        raw = WriteBatch(raw_mode=True)
        handles = self._handles
        for family, key, value in batch.puts:
            if value is None:
                raw.delete(key, handles[family])
            else:
                raw.put(key, value, handles[family])
        try:
            self._db.write(raw)
        except Exception as error:
            raise OSError(f"RocksDB could not write: {error}") from error

    def sync(self) -> None:
        try:
            self._db.flush_wal(True)
        except Exception as error:
            raise OSError(f"RocksDB could not sync its log: {error}") from error

    def checkpoint(self, path: Path) -> None:
        try:
            Checkpoint(self._db).create_checkpoint(str(path))
        except Exception as error:
            raise OSError(f"RocksDB could not make a checkpoint at {path}: {error}") from error

    def describe(self) -> dict[str, object]:
        sizes: dict[str, object] = {"kind": "rocksdb"}
        for name, family in self._families.items():
            sizes[f"{name}_keys_estimate"] = family.property_int_value("rocksdb.estimate-num-keys")
            sizes[f"{name}_sst_bytes"] = family.property_int_value("rocksdb.total-sst-files-size")
        return sizes

    def close(self) -> None:
        # Children first: the database refuses to close while a family is open.
        self._live.clear()
        self._handles.clear()
        for family in self._families.values():
            family.close()
        self._families.clear()
        self._db.close()
