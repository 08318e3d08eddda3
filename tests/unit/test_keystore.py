"""The key store on a real disk: torn headers, damaged slots, erasure that stays, epochs side by side."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from tests.inside import Inside

from memos_kernel import crypto
from memos_kernel.events import Checkpoint, Damaged, Slot
from memos_kernel.keystore import DESTROYED, HEADER_BYTES, SLOT, SLOT_BYTES, SLOTS_AT, KeyStore, WrongKey
from memos_syscalls import limits

MASTER, LOG_ID, SEED, SECRET = b"m" * 32, b"l" * 16, b"s" * 32, b"x" * 32
PER_BLOCK = limits.KEY_SLOTS_PER_BLOCK
CHECKPOINT = Checkpoint(5, b"h" * 32, b"m" * 32, b"p" * 32, b"d" * 32, 1, b"s" * 64)


def made(path: Path) -> KeyStore:
    KeyStore.create(path, MASTER, LOG_ID, SEED, SECRET)
    return KeyStore(path, MASTER)


def again(store: KeyStore, master: bytes = MASTER, *, read_only: bool = False) -> KeyStore:
    store.close()
    return KeyStore(store.path.parent, master, read_only=read_only)


def overwrite(path: Path, at: int, data: bytes) -> None:
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, data, at)
    os.close(fd)


def test_secrets_and_keys_come_back(tmp_path: Path) -> None:
    store = made(tmp_path)
    keys = dict(store.prepare(1, 0))
    assert len(keys) == len(set(keys.values())) == PER_BLOCK
    store = again(store)
    assert store.secrets() == (SEED, SECRET)
    assert all(store.key(slot) == key for slot, key in keys.items())
    assert store.key(Slot(1, PER_BLOCK)) is None and store.key(Slot(2, 0)) is None
    store.close()


def test_an_existing_key_store_is_never_overwritten(tmp_path: Path) -> None:
    store = made(tmp_path)
    with pytest.raises(FileExistsError):
        KeyStore.create(tmp_path, MASTER, b"o" * 16, SEED, SECRET)
    assert again(store).header.log_id == LOG_ID


def test_another_master_key_opens_nothing(tmp_path: Path) -> None:
    store = made(tmp_path)
    with pytest.raises(WrongKey, match="does not open"):
        again(store, b"o" * 32)


def test_no_key_and_no_secret_is_on_disk_as_it_is(tmp_path: Path) -> None:
    store = made(tmp_path)
    keys = store.prepare(1, 0)
    data = store.path.read_bytes()
    assert not any(key in data for key in [SEED, SECRET, MASTER, *(key for _slot, key in keys)])
    assert store.path.stat().st_mode & 0o777 == 0o600
    store.close()


@pytest.mark.parametrize("length", [0, 1, 32, 40, 100, HEADER_BYTES])
def test_a_torn_header_leaves_the_one_before(tmp_path: Path, length: int) -> None:
    """Only `length` bytes of the newer header reached the disk; what was there before stands behind them."""
    store = made(tmp_path)
    store.update(epoch=1)
    before = store.path.read_bytes()
    store.update(shred_seq=77, checkpoint=CHECKPOINT, epoch=2)
    at = store.header.generation % 2 * HEADER_BYTES
    newer = store.path.read_bytes()[at : at + HEADER_BYTES]
    overwrite(store.path, at, newer[:length] + before[at + length : at + HEADER_BYTES])
    found = again(store)
    # What is left of a torn header is padding, once its contents are whole.
    whole = length >= len(newer.rstrip(b"\0"))
    assert (found.header.epoch, found.header.shred_seq) == ((2, 77) if whole else (1, -1))
    assert found.secrets() == (SEED, SECRET)
    found.update(epoch=3)
    assert again(found).header.epoch == 3


def test_two_damaged_headers_are_refused_with_advice(tmp_path: Path) -> None:
    store = made(tmp_path)
    for copy in (0, 1):
        overwrite(store.path, copy * HEADER_BYTES + 50, b"\xff\xff\xff")
    with pytest.raises(Damaged, match="restore the key store"):
        again(store)


def test_headers_are_written_in_turn_and_remember_everything(tmp_path: Path) -> None:
    store = made(tmp_path)
    for n in range(1, 6):
        store.update(epoch=n)
        store.update(shred_seq=n * 10)
    store.update(checkpoint=CHECKPOINT)
    found = again(store)
    assert (found.header.epoch, found.header.shred_seq, found.newest_checkpoint) == (5, 50, CHECKPOINT)
    found.close()


@pytest.mark.parametrize("at", [8, 16, 24, 32, 60, 90])
def test_a_damaged_slot_is_named_and_its_neighbours_stay(tmp_path: Path, at: int) -> None:
    store = made(tmp_path)
    keys = dict(store.prepare(1, 0))
    byte = store.path.read_bytes()[SLOTS_AT + 3 * SLOT_BYTES + at]
    overwrite(store.path, SLOTS_AT + 3 * SLOT_BYTES + at, bytes([byte ^ 1]))
    if at == 24:
        # The wrapping key's id is a hint for rekeying: it is under no seal, and nothing is read by it.
        assert store.key(Slot(1, 3)) == keys[Slot(1, 3)]
    else:
        with pytest.raises(Damaged, match=r"key slot 1\.3"):
            store.key(Slot(1, 3))
    assert store.key(Slot(1, 2)) == keys[Slot(1, 2)] and store.key(Slot(1, 4)) == keys[Slot(1, 4)]
    store.close()


def test_a_key_does_not_open_in_another_s_slot(tmp_path: Path) -> None:
    store = made(tmp_path)
    store.prepare(1, 0)
    data = store.path.read_bytes()
    moved = bytearray(data[SLOTS_AT : SLOTS_AT + SLOT_BYTES])
    moved[8:24] = data[SLOTS_AT + SLOT_BYTES + 8 : SLOTS_AT + SLOT_BYTES + 24]
    overwrite(store.path, SLOTS_AT + SLOT_BYTES, bytes(moved))
    with pytest.raises(Damaged):
        store.key(Slot(1, 1))
    store.close()


def test_destroying_overwrites_in_place_stays_and_can_be_repeated(tmp_path: Path) -> None:
    store = made(tmp_path)
    keys = dict(store.prepare(1, 0))
    wrapped = store.path.read_bytes()[SLOTS_AT + 5 * SLOT_BYTES :][:SLOT_BYTES]
    for _ in range(2):
        store.destroy([Slot(1, 5), Slot(1, 9), Slot(7, 7)])
    assert store.key(Slot(1, 5)) is None and store.key(Slot(1, 6)) == keys[Slot(1, 6)]
    data = store.path.read_bytes()
    assert len(data) == SLOTS_AT + PER_BLOCK * SLOT_BYTES, "in place: the file does not grow"
    assert wrapped[32:92] not in data
    state, _fmt, epoch, n, key_id, left = SLOT.unpack(data[SLOTS_AT + 5 * SLOT_BYTES :][:SLOT_BYTES])
    assert (state, epoch, n, key_id, left) == (DESTROYED, 1, 5, bytes(8), bytes(60))
    found = again(store)
    assert found.key(Slot(1, 5)) is None and found.key(Slot(1, 9)) is None
    assert set(found.live_slots(1)) == set(keys) - {Slot(1, 5), Slot(1, 9)}
    found.destroy([Slot(1, 5)])
    assert found.key(Slot(1, 5)) is None
    found.close()


def test_a_destroyed_key_is_synced_before_destroy_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = made(tmp_path)
    store.prepare(1, 0)
    calls: list[str] = []
    pwrite, fdatasync = os.pwrite, os.fdatasync

    def noted_write(fd: int, data: bytes, at: int) -> int:
        calls.append("write")
        return pwrite(fd, data, at)

    def noted_sync(fd: int) -> None:
        calls.append("sync")
        fdatasync(fd)

    monkeypatch.setattr(os, "pwrite", noted_write)
    monkeypatch.setattr(os, "fdatasync", noted_sync)
    store.destroy([Slot(1, 0), Slot(1, 1)])
    assert calls == ["write", "write", "sync"]
    calls.clear()
    store.prepare(1, 1)
    assert calls == ["write", "sync"], "a block is one write, and durable before it is handed out"
    monkeypatch.undo()
    store.close()


def test_slots_of_two_epochs_live_side_by_side(tmp_path: Path) -> None:
    store = made(tmp_path)
    one = dict(store.prepare(1, 0))
    two = dict(store.prepare(2, 0))
    more = dict(store.prepare(1, 1))
    store.destroy([Slot(1, 0)])
    found = again(store)
    assert found.epochs == [1, 2] and found.highest_epoch == 2
    assert found.key(Slot(1, 0)) is None and found.key(Slot(2, 0)) == two[Slot(2, 0)]
    assert found.key(Slot(1, PER_BLOCK)) == more[Slot(1, PER_BLOCK)]
    assert set(found.live_slots(1)) == {*one, *more} - {Slot(1, 0)} and set(found.live_slots(2)) == set(two)
    found.close()


def test_a_block_that_a_crash_cut_short_is_not_counted_and_written_over(tmp_path: Path) -> None:
    store = made(tmp_path)
    one = dict(store.prepare(1, 0))
    store.prepare(1, 1)
    os.truncate(store.path, SLOTS_AT + PER_BLOCK * SLOT_BYTES + 1000)
    found = again(store)
    assert found.key(Slot(1, PER_BLOCK)) is None
    two = dict(found.prepare(2, 0))
    found = again(found)
    assert all(found.key(slot) == key for slot, key in {**one, **two}.items())
    found.close()


def test_a_read_only_store_cannot_be_changed(tmp_path: Path) -> None:
    store = made(tmp_path)
    store.prepare(1, 0)
    before = store.path.read_bytes()
    reader = again(store, read_only=True)
    for change in (lambda: reader.destroy([Slot(1, 0)]), lambda: reader.update(epoch=9), lambda: reader.prepare(2, 0)):
        with pytest.raises(OSError):
            change()
    assert reader.path.read_bytes() == before
    reader.close()


def test_keys_are_read_while_a_block_is_made(tmp_path: Path) -> None:
    store = made(tmp_path)
    keys = dict(store.prepare(1, 0))
    wrong: list[Slot] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            wrong.extend(slot for slot in list(keys)[:50] if store.key(slot) != keys[slot])

    thread = threading.Thread(target=read)
    thread.start()
    for block in range(1, 6):
        store.prepare(1, block)
    done.set()
    thread.join()
    assert wrong == []
    store.close()


def test_many_large_writes_at_the_very_start_lose_no_key() -> None:
    """Blocks of slots are made by one thread only. Two at once would write to the same place, and keys would be lost."""
    with Inside() as k:
        for _ in range(2):
            calls = [k.submit("mem_alloc", namespace="n", content=f"{n}" * 600_000) for n in range(6)]
            items = [{"namespace": "n", "content": f"s{m}"} for m in range(400)]
            calls += [k.submit("mem_alloc_many", items=items) for _ in range(4)]
            for call in calls:
                k.wait(call, 30)
            k.reopen()
        cubes: list[str] = []
        page = k("mem_list", namespace="n", limit=1000)
        while True:
            cubes += [cube["cube_id"] for cube in page["cubes"]]
            if not page.get("next_cursor"):
                break
            page = k("mem_list", namespace="n", limit=1000, cursor=page["next_cursor"])
        assert len(cubes) == 2 * (6 + 1600)
        assert all(k("mem_read", cube_id=cube)["content"] for cube in cubes[::7])
        assert k("sys_verify", full=True)["ok"], "every private part and payload opens"
        stored = k.kernel.vault.keystore
        named = {Slot(int.from_bytes(key[1:9], "big"), int.from_bytes(key[9:], "big")) for key in k.rows() if key[:1] == b"k"}
        assert all(stored.key(slot) is not None for slot in named)
        assert crypto.KEY_BYTES == 32
