"""The damage table: each way in which stored bytes can go wrong is found, at start or by verify, and named with its offset.

A log of several epochs, frames and checkpoints is written and closed; one thing is damaged; then the kernel is started,
and `verify` is run. What a start must refuse is in `REFUSED_AT_START`; everything must be found by verify.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.inside import Inside

from memos_drivers.stores.base import LOG, PAYLOAD, VIEW, Batch
from memos_drivers.stores.rocks import RocksStore
from memos_kernel import events as ev
from memos_kernel import verify
from memos_kernel.boot import Refused
from memos_kernel.keystore import HEADER_BYTES, SLOT_BYTES, SLOTS_AT
from memos_kernel.offline import open_offline
from memos_kernel.state import u64


class Written(NamedTuple):
    """What was written: its directory, one cube's id per kind, and offsets to aim at."""

    path: Path
    small: str
    large: str
    offset: int
    head: int


def write(path: Path, rounds: int = 3) -> Written:
    with Inside(path, rocks=True) as k:
        small = k("mem_alloc", namespace="alice", content="a small one")
        large = k("mem_alloc", namespace="alice", content="x" * 100_000)
        for n in range(rounds):
            k("mem_write", cube_id=small["cube_id"], content=f"version {n}")
            k.reopen()
            for m in range(5):
                k("mem_alloc", namespace=f"n{n}", content=f"{m}")
        head = k.kernel.durable.seq
    return Written(path, small["cube_id"], large["cube_id"], small["offset"], head)


def frames(store: RocksStore) -> dict[int, bytes]:
    return {ev.decode_frame(value).first_seq: value for _key, value in store.live(LOG).scan(b"f")}


def change(written: Written, work: Callable[[RocksStore, Batch], int | None]) -> int | None:
    """Change the database behind the kernel's back; returns what `work` says the offset of the damage is."""
    store = RocksStore(written.path / "db")
    try:
        batch = Batch()
        offset = work(store, batch)
        store.write(batch)
        store.sync()
        return offset
    finally:
        store.close()


def flipped(data: bytes, at: int | None = None) -> bytes:
    at = len(data) // 2 if at is None else at
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


# -- kinds of damage: each returns the offset at which verify must name it, or None when the offset is not one of the log's


def bit_flip(written: Written) -> int | None:
    def work(store: RocksStore, batch: Batch) -> int:
        first = sorted(frames(store))[3]
        batch.put(LOG, b"f" + u64(first), flipped(frames(store)[first]))
        return first

    return change(written, work)


def bit_flip_in_the_last_frame(written: Written) -> int | None:
    def work(store: RocksStore, batch: Batch) -> int:
        first = max(frames(store))
        batch.put(LOG, b"f" + u64(first), flipped(frames(store)[first]))
        return first

    return change(written, work)


def deleted_frame(written: Written) -> int | None:
    def work(store: RocksStore, batch: Batch) -> int:
        first = sorted(frames(store))[4]
        batch.put(LOG, b"f" + u64(first), None)
        return first

    return change(written, work)


def deleted_beginning(written: Written) -> int | None:
    def work(store: RocksStore, batch: Batch) -> int:
        for first in sorted(frames(store))[:2]:
            batch.put(LOG, b"f" + u64(first), None)
        return 0

    return change(written, work)


def swapped_frames(written: Written) -> int | None:
    def work(store: RocksStore, batch: Batch) -> int:
        found = frames(store)
        one, two = sorted(found)[3:5]
        batch.put(LOG, b"f" + u64(one), found[two])
        batch.put(LOG, b"f" + u64(two), found[one])
        return one

    return change(written, work)


def cut_tail(written: Written) -> int | None:
    def work(store: RocksStore, batch: Batch) -> int:
        lost = sorted(frames(store))[-3:]
        for first in lost:
            batch.put(LOG, b"f" + u64(first), None)
        return lost[0]

    return change(written, work)


def missing_claim(written: Written) -> int | None:
    def work(store: RocksStore, batch: Batch) -> int:
        key, claim = list(store.live(LOG).scan(b"c"))[1]
        batch.put(LOG, key, None)
        opened = ev.decode_claim(claim).claim_id
        return min(first for first, data in frames(store).items() if ev.decode_frame(data).claim_id == opened)

    return change(written, work)


def rewritten_view_row(written: Written) -> int | None:
    def work(store: RocksStore, batch: Batch) -> int:
        key = b"v" + bytes.fromhex(written.small.replace("-", "")) + (1).to_bytes(4, "big")
        other = store.live(VIEW).get(key[:-1] + b"\2")
        assert other is not None
        batch.put(VIEW, key, other)
        return written.offset

    return change(written, work)


def removed_view_row(written: Written) -> int | None:
    def work(store: RocksStore, batch: Batch) -> int:
        batch.put(VIEW, b"v" + bytes.fromhex(written.small.replace("-", "")) + (1).to_bytes(4, "big"), None)
        return written.offset

    return change(written, work)


def damaged_payload(written: Written) -> int | None:
    def work(store: RocksStore, batch: Batch) -> int:
        key, value = max(store.live(PAYLOAD).scan(b""), key=lambda item: len(item[1]))
        batch.put(PAYLOAD, key, flipped(value))
        return written.offset + 1

    return change(written, work)


def missing_payload(written: Written) -> int | None:
    def work(store: RocksStore, batch: Batch) -> int:
        key, _value = max(store.live(PAYLOAD).scan(b""), key=lambda item: len(item[1]))
        batch.put(PAYLOAD, key, None)
        return written.offset + 1

    return change(written, work)


def damaged_key_slot(written: Written) -> int | None:
    overwrite(written.path / "keys" / "slots", SLOTS_AT + 40, b"\xaa" * 8)
    return written.offset


def exchanged_key_slots(written: Written) -> int | None:
    with open(written.path / "keys" / "slots", "r+b") as file:
        slots = [os.pread(file.fileno(), SLOT_BYTES, SLOTS_AT + n * SLOT_BYTES) for n in (0, 1)]
        os.pwrite(file.fileno(), slots[1] + slots[0], SLOTS_AT)
    return written.offset


def overwrite(path: Path, at: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


KINDS: tuple[Callable[[Written], int | None], ...] = (
    bit_flip, bit_flip_in_the_last_frame, deleted_frame, deleted_beginning, swapped_frames, cut_tail, missing_claim,
    rewritten_view_row, removed_view_row, damaged_payload, missing_payload, damaged_key_slot, exchanged_key_slots,
)  # fmt: skip
REFUSED_AT_START = (bit_flip_in_the_last_frame, cut_tail)
FOUND_BY_THE_LOG_ALONE = (bit_flip, bit_flip_in_the_last_frame, deleted_frame, deleted_beginning, swapped_frames, missing_claim)


def test_what_is_whole_verifies(tmp_path: Path) -> None:
    written = write(tmp_path / "data")
    with open_offline(written.path) as offline:
        report = verify.verify_log(offline.log, public_key=None, frame_mac=None)
        assert report.ok and report.offset == report.records - 1 > written.head
        assert offline.keys is not None and offline.vault is not None
        full = verify.verify_full(offline.store, offline.log, offline.keys, offline.vault)
        assert full.ok and full.problems == []


@pytest.mark.parametrize("damage", KINDS, ids=lambda kind: kind.__name__)
def test_damage_is_found_and_named(damage: Callable[[Written], int | None], tmp_path: Path) -> None:
    written = write(tmp_path / "data")
    offset = damage(written)
    with open_offline(written.path) as offline:
        assert offline.keys is not None and offline.vault is not None and offline.keystore is not None
        anchor = offline.keystore.newest_checkpoint
        report = verify.verify_full(offline.store, offline.log, offline.keys, offline.vault, anchor=anchor)
        assert not report.ok
        first = report.problems[0]
        assert first.offset == offset, report.problems
        assert first.advice
        assert report.offset == offset - 1 if offset else report.offset <= 0
        alone = verify.verify_log(offline.log, public_key=offline.keys.signer.public_key, frame_mac=None, anchor=None)
        assert alone.ok != (damage in FOUND_BY_THE_LOG_ALONE)
    if damage in REFUSED_AT_START:
        with pytest.raises(Refused, match=r"memctl|backup"), Inside(written.path, rocks=True):
            pass


@pytest.mark.parametrize("damage", [damaged_payload, missing_payload, damaged_key_slot, exchanged_key_slots])
def test_damaged_content_is_an_error_of_its_own_cube_and_of_no_other(
    damage: Callable[[Written], int | None], tmp_path: Path
) -> None:
    written = write(tmp_path / "data")
    damage(written)
    with Inside(written.path, rocks=True) as k:
        bad = [written.large]
        if damage in (damaged_key_slot, exchanged_key_slots):
            bad = [written.small] if damage is damaged_key_slot else [written.small, written.large]
        assert {k.refusal("mem_read", cube_id=cube_id) for cube_id in bad} == {"EIO"}
        good = [c["cube_id"] for c in k("mem_list", namespace="n0")["cubes"]]
        assert [k("mem_read", cube_id=c)["content"] for c in good] == list("01234")
        assert k.fatal == []


def test_a_log_that_was_cut_back_to_an_earlier_clean_stop_is_refused(tmp_path: Path) -> None:
    written = write(tmp_path / "data", 1)
    shutil.copytree(written.path / "db", tmp_path / "old")
    with Inside(written.path, rocks=True) as k:
        k("mem_alloc", namespace="alice", content="later")
    shutil.rmtree(written.path / "db")
    shutil.copytree(tmp_path / "old", written.path / "db")
    with pytest.raises(Refused, match="cut back"), Inside(written.path, rocks=True):
        pass
    with open_offline(written.path) as offline:
        assert offline.keys is not None and offline.keystore is not None
        report = verify.verify_log(
            offline.log, public_key=offline.keys.signer.public_key, frame_mac=offline.keys.frame_mac,
            anchor=offline.keystore.newest_checkpoint,
        )  # fmt: skip
        assert not report.ok and "cut back" in report.problems[0].what


def test_another_logs_database_is_refused(tmp_path: Path) -> None:
    ours, theirs = write(tmp_path / "ours", 1), write(tmp_path / "theirs", 3)
    shutil.rmtree(ours.path / "db")
    shutil.copytree(theirs.path / "db", ours.path / "db")
    with pytest.raises(Refused), Inside(ours.path, rocks=True):
        pass
    with open_offline(ours.path) as offline:
        assert offline.keys is not None
        report = verify.verify_log(offline.log, public_key=offline.keys.signer.public_key, frame_mac=offline.keys.frame_mac)
        assert not report.ok and report.problems[0].offset == 0


def test_an_emptied_database_is_refused(tmp_path: Path) -> None:
    written = write(tmp_path / "data", 1)
    shutil.rmtree(written.path / "db")
    with pytest.raises(Refused), Inside(written.path, rocks=True):
        pass


def test_one_damaged_header_of_the_key_store_is_made_good_by_the_other(tmp_path: Path) -> None:
    written = write(tmp_path / "data", 1)
    for copy in (0, 1):
        path = tmp_path / f"copy{copy}"
        shutil.copytree(written.path, path)
        overwrite(path / "keys" / "slots", copy * HEADER_BYTES + 50, b"\xff" * 8)
        with Inside(path, rocks=True) as k:
            assert k("mem_read", cube_id=written.small)["content"] == "version 0"
    overwrite(written.path / "keys" / "slots", 50, b"\xff" * 8)
    overwrite(written.path / "keys" / "slots", HEADER_BYTES + 50, b"\xff" * 8)
    with pytest.raises(Refused, match="backup"), Inside(written.path, rocks=True):
        pass


def test_a_cut_key_store_is_named_and_opens_nothing_it_lost(tmp_path: Path) -> None:
    written = write(tmp_path / "data", 1)
    os.truncate(written.path / "keys" / "slots", SLOTS_AT)
    with open_offline(written.path) as offline:
        assert offline.keys is not None and offline.vault is not None
        report = verify.verify_full(offline.store, offline.log, offline.keys, offline.vault)
        assert not report.ok and report.problems[0].offset == written.offset


def test_a_view_that_was_lost_is_made_again_from_the_log(tmp_path: Path) -> None:
    written = write(tmp_path / "data", 1)
    with Inside(written.path, rocks=True) as k:
        digest = k.digest

    def work(store: RocksStore, batch: Batch) -> None:
        for key, _value in store.live(VIEW).scan(b""):
            batch.put(VIEW, key, None)

    change(written, work)
    with Inside(written.path, rocks=True) as k:
        assert k.digest == digest
        assert k("mem_read", cube_id=written.small)["content"] == "version 0"
