"""Which copy of a log may be written: what records and key stores say of homes, and in which order messages are copied."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from memos_drivers.stores.base import LOG, Batch
from memos_drivers.stores.memory import MemoryReader, MemoryStore
from memos_kernel import crypto
from memos_kernel import events as ev
from memos_kernel.eventlog.embedded import SHARED, EmbeddedLog
from memos_kernel.events import Damaged, Event, Record, Slot
from memos_kernel.keystore import SLOTS_AT, Header, KeyStore, pack_header, unpack_header
from memos_kernel.recovery import elsewhere, moved
from memos_kernel.reducer import apply
from memos_kernel.state import META_HOME, Tables, View, u64
from memos_syscalls import limits
from memos_tools.copytarget import messages, put_keys

MASTER, LOG_ID, SEED, SECRET = b"m" * 32, b"l" * 16, b"s" * 32, b"x" * 32
A, B = b"a" * 16, b"b" * 16


def view_after(*homes: bytes) -> View:
    source = MemoryReader()
    tables = Tables(source, 0)
    for seq, home in enumerate(homes):
        apply(tables, Record(1, seq, 1, seq + 1, "kernel", 0, None, None, [Event(ev.MOVED, 1, [home])]))
    changes, _payloads = tables.take()
    assert tables.digest == 0, "where a log is written is no part of its state"
    for key, value in changes.items():
        source.put(key, value)
    return View(source)


def keystore(path: Path, home: bytes | None) -> KeyStore:
    KeyStore.create(path, MASTER, LOG_ID, SEED, SECRET)
    made = KeyStore(path, MASTER)
    if home is not None:
        made.update(home_id=home)
        made.close()
        made = KeyStore(path, MASTER)
    return made


@pytest.mark.parametrize("wrong", [[], [b"short"], ["a" * 16], [A, B], [None]])
def test_a_home_that_is_none_is_damage(wrong: list[object]) -> None:
    tables = Tables(MemoryReader(), 0)
    with pytest.raises(Damaged):
        apply(tables, Record(1, 0, 1, 1, "kernel", 0, None, None, [Event(ev.MOVED, 1, wrong)]))


@pytest.mark.parametrize(
    ("homes", "mine", "why"),
    [
        ([], None, None),
        ([A], A, None),
        ([A, B], B, None),
        ([A, B, A], A, None),
        ([A], None, "moved to its copy"),
        ([A, B], A, "moved to its copy"),
        ([A, B], None, "moved to its copy"),
        ([], A, "may still be written elsewhere"),
        ([A], B, "may still be written elsewhere"),
    ],
)
def test_a_log_is_written_where_its_newest_record_says(
    tmp_path: Path, homes: list[bytes], mine: bytes | None, why: str | None
) -> None:
    keys = keystore(tmp_path, mine)
    found = elsewhere(view_after(*homes), keys)
    assert (found is None) if why is None else (found is not None and why in found)
    keys.close()


def test_a_take_over_is_said_once(tmp_path: Path) -> None:
    keys = keystore(tmp_path, B)
    assert [event for events in moved(view_after(A), keys) for event in events] == [Event(ev.MOVED, 1, [B])]
    assert moved(view_after(A, B), keys) == []
    keys.close()


def test_the_newest_home_is_a_row_and_every_one_has_its_own() -> None:
    view = view_after(A, B)
    assert view.get(META_HOME) == B
    assert [view.get(META_HOME + home) for home in (A, B)] == [u64(0), u64(1)]


def test_a_header_of_an_older_kernel_has_no_home(tmp_path: Path) -> None:
    keys = keystore(tmp_path, None)
    header = keys.header
    old = pack_header(header)
    body = ev.pack(tuple(header)[: len(Header._fields) - 1])
    rest = len(body).to_bytes(4, "little") + body
    assert unpack_header((crypto.sha256(rest) + rest).ljust(len(old), b"\0")) == header
    keys.update(epoch=3, home_id=A)
    keys.update(shred_seq=9)
    assert (keys.header.epoch, keys.header.shred_seq, keys.header.home_id) == (3, 9, A), "what is not given stays"
    keys.close()


def test_adopted_keys_open_and_those_beside_them_are_gone(tmp_path: Path) -> None:
    keys = keystore(tmp_path, A)
    far = limits.KEY_SLOTS_PER_BLOCK + 7
    wanted = {Slot(2, 5): os.urandom(32), Slot(2, far): os.urandom(32), Slot(7, 0): os.urandom(32)}
    assert put_keys(keys, wanted.items()) == 3
    assert {slot: keys.key(slot) for slot in wanted} == wanted
    keys.close()
    keys = KeyStore(tmp_path, MASTER)
    assert keys.epochs == [2, 7] and keys.highest_epoch == 7
    assert {slot for epoch in keys.epochs for slot in keys.live_slots(epoch)} == set(wanted)
    before = keys.path.stat().st_size
    assert put_keys(keys, [(slot, key) for slot, key in wanted.items() if slot.epoch == 2]) == 2
    assert keys.key(Slot(7, 0)) is None, "what was erased at the source since is erased here"
    assert keys.path.stat().st_size == before, "a block is made once"
    assert not any(key in keys.path.read_bytes()[SLOTS_AT:] for key in wanted.values()), "wrapped"
    keys.close()


def test_a_claim_comes_before_its_frames_and_after_all_older_ones() -> None:
    store, signer = MemoryStore(), crypto.Signer(SEED)
    batch = Batch()

    def claim(epoch: int) -> bytes:
        data = ev.encode_claim(signer, LOG_ID, epoch, bytes([epoch]) * 16, bytes(32), None)
        batch.put(LOG, b"c" + u64(epoch), data)
        return data

    def frame(epoch: int, first: int) -> bytes:
        raw = ev.encode_record(Record(1, first, epoch, first + 1, "kernel", 0, None, None, []))
        data = ev.encode_frame(SECRET, LOG_ID, epoch, bytes([epoch]) * 16, first, bytes(32), [raw])
        batch.put(LOG, b"f" + u64(first), data)
        return data

    # Epochs 2 and 9 are empty, 3 to 4 were never claimed.
    expected = [claim(1), frame(1, 0), frame(1, 1), claim(2), claim(5), frame(5, 2), claim(9)]
    store.write(batch)
    log = EmbeddedLog(store)
    assert list(messages(log)) == expected
    assert list(messages(log, 0, 1)) == expected[2:]
    assert list(messages(log, 1, 5)) == expected[5:]
    assert list(messages(log, 2, 9)) == []
    assert not log.shared
    batch = Batch()
    batch.put(LOG, SHARED, b"")
    store.write(batch)
    assert EmbeddedLog(store).shared
