"""What a thief of the disk finds: nothing in clear, and after a shred nothing at all, not even with today's keys."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from tests.inside import Inside

from memos_drivers.plaintext import segment
from memos_drivers.stores.base import INDEX
from memos_drivers.stores.rocks import RocksStore
from memos_kernel import crypto, verify
from memos_kernel.answers import read_receipt
from memos_kernel.events import Slot, unpack
from memos_kernel.governance import raw_id
from memos_kernel.offline import open_offline
from memos_kernel.state import View, u64
from memos_syscalls.errors import MemShredded

SENTINEL = "xyzzyplugh"
FILLER = " and some more words" * 40


def files_with(path: Path, needle: str) -> list[str]:
    """Files below a directory that hold a text, in any of the encodings a leak could have."""
    found: list[str] = []
    for file in sorted(path.rglob("*")):
        if file.is_file():
            data = file.read_bytes()
            if needle.encode() in data or needle.encode("utf-16-le") in data or needle.encode().hex().encode() in data:
                found.append(str(file.relative_to(path)))
    return found


def fill(k: Inside) -> str:
    """A cube whose every private part holds the sentinel, and others around it."""
    for n in range(50):
        k("mem_alloc", namespace="alice", content=f"unrelated {n}" + FILLER)
    cube = k(
        "mem_alloc", namespace="alice", content=f"The word is {SENTINEL}.{FILLER}", name=f"name {SENTINEL}", tags=[SENTINEL],
        metadata={SENTINEL: SENTINEL}, labels=[SENTINEL], semantic_type=SENTINEL, actor_note=f"because {SENTINEL}",
        request_id=f"request {SENTINEL}",
    )["cube_id"]  # fmt: skip
    k("mem_write", cube_id=cube, content=f"{SENTINEL} " * 3000)
    k("mem_write", cube_id=cube, content=f"{SENTINEL} " * 80_000)
    k("mem_freeze", cube_id=cube, actor_note=SENTINEL)
    k("mem_thaw", cube_id=cube)
    assert k("mem_search", query=SENTINEL, mode="lexical")["hits"]
    text: str = cube
    return text


def compacted(k: Inside) -> None:
    """Make the database write everything out as it would in time."""
    store = k.store
    assert isinstance(store, RocksStore)
    for family in store._families.values():  # pyright: ignore[reportPrivateUsage]
        family.flush()
        family.compact_range(None, None)


def test_nothing_private_is_in_clear_on_disk(tmp_path: Path) -> None:
    with Inside(tmp_path, rocks=True) as k:
        cube = fill(k)
        assert files_with(tmp_path, SENTINEL) == []
        k("sys_snapshot")
        k.reopen()
        compacted(k)
        assert files_with(tmp_path, SENTINEL) == []
        k("mem_shred", cube_id=cube)
        k.reopen()
        compacted(k)
        k("sys_snapshot")
    assert files_with(tmp_path, SENTINEL) == []
    assert len(list((tmp_path / "snapshots").iterdir())) == 2


def segments(path: Path) -> Iterator[str]:
    """The texts in every index segment that the keys beside it still open."""
    with open_offline(path) as offline:
        assert offline.segment_keys is not None and offline.keys is not None
        for key, value in offline.store.live(INDEX).scan(b"g"):
            epoch, n, sealed = unpack(value)
            found = offline.segment_keys.key(Slot(epoch, n))
            if found is not None:
                number = int.from_bytes(key[1:], "big")
                plain = crypto.unwrap(AESGCM(found), sealed, crypto.aad_of(offline.keys.log_id, u64(number)))
                yield from (document.text for document in segment.unpack(plain)[0])


def versions_that_open(path: Path, cube_id: str) -> list[int]:
    with open_offline(path) as offline:
        assert offline.vault is not None
        view, opened = View(offline.store.live("view")), list[int]()
        cube = view.cube(raw_id(cube_id))
        assert cube is not None
        for number in range(1, cube.version + 1):
            found = view.version(cube, number)
            assert found is not None
            try:
                offline.vault.open_content(found[0])
                opened.append(number)
            except MemShredded:
                continue
        return opened


def test_a_copy_made_before_a_shred_opens_with_the_keys_of_before_and_not_with_those_of_after(tmp_path: Path) -> None:
    live, before = tmp_path / "live", tmp_path / "before"
    with Inside(live, rocks=True) as k:
        cube = fill(k)
        k("mem_fork", namespace="alice", to="copy")
        k("sys_snapshot")
    assert any(SENTINEL in text for text in segments(live))
    shutil.copytree(live, before)
    assert versions_that_open(before, cube) == [1, 2, 3]
    with Inside(live, rocks=True) as k:
        answer = k("mem_shred", cube_id=cube)
        receipt = read_receipt(answer["report"]["receipt"])
        assert receipt.seq == answer["offset"] and receipt.cubes == [raw_id(cube)]
        assert receipt.public_key == k.kernel.keys.signer.public_key
        assert k("mem_search", query=SENTINEL, mode="lexical")["hits"] == []
        k.crash()
        assert k("mem_search", query=SENTINEL, mode="lexical")["hits"] == []
    assert not any(SENTINEL in text for text in segments(live))
    assert any("unrelated" in text for text in segments(live))
    # The thief has the old database and its snapshots, and everything that exists today.
    stolen = tmp_path / "stolen"
    shutil.copytree(before, stolen)
    for name in ("keys", "master.key"):
        source, target = live / name, stolen / name
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    assert versions_that_open(stolen, cube) == []
    assert not any(SENTINEL in text for text in segments(stolen))
    snapshot = next((stolen / "snapshots").iterdir())
    shutil.rmtree(stolen / "db")
    shutil.copytree(snapshot / "db", stolen / "db")
    assert versions_that_open(stolen, cube) == []
    assert not any(SENTINEL in text for text in segments(stolen))
    with open_offline(live) as offline:
        assert offline.keys is not None and offline.vault is not None
        report = verify.verify_full(offline.store, offline.log, offline.keys, offline.vault)
        assert report.ok, report.problems


def test_a_shred_also_blinds_segments_that_list_a_fork_of_the_cube(tmp_path: Path) -> None:
    with Inside(tmp_path, rocks=True) as k:
        cube = k("mem_alloc", namespace="alice", content=f"The word is {SENTINEL}.")["cube_id"]
        k.reopen()
        k("mem_fork", namespace="alice", to="copy")
        k("mem_fork", namespace="copy", to="copy2")
        k.reopen()
        k("mem_shred", cube_id=cube)
        assert k("mem_search", query=SENTINEL, mode="lexical")["hits"] == []
        index = k.kernel.effects.index
        assert index.documents == 0
    assert not any(SENTINEL in text for text in segments(tmp_path))


def test_an_old_key_store_does_not_bring_back_what_was_shredded_since(tmp_path: Path) -> None:
    live = tmp_path / "live"
    with Inside(live, rocks=True) as k:
        cube = fill(k)
    shutil.copytree(live / "keys", tmp_path / "old-keys")
    with Inside(live, rocks=True) as k:
        k("mem_shred", cube_id=cube)
    shutil.rmtree(live / "keys")
    shutil.copytree(tmp_path / "old-keys", live / "keys")
    with Inside(live, rocks=True) as k:
        assert k.refusal("mem_read", cube_id=cube) == "ESHREDDED"
        slot = k.kernel.view.own_version(raw_id(cube), 1)
        assert slot is not None and k.keystores[0].key(slot[0].slot) is None
    assert versions_that_open(live, cube) == []
    assert not any(SENTINEL in text for text in segments(live))


def test_a_shred_that_a_crash_cut_short_is_finished_at_the_next_start(tmp_path: Path) -> None:
    """The record is durable, the key still there: as after a crash between the two."""
    live = tmp_path / "live"
    with Inside(live, rocks=True) as k:
        cube = fill(k)
    shutil.copytree(live / "keys", tmp_path / "keys")
    with Inside(live, rocks=True) as k:
        k("mem_shred", cube_id=cube)
        k.abandon()
    shutil.rmtree(live / "keys")
    shutil.copytree(tmp_path / "keys", live / "keys")
    assert versions_that_open(live, cube) == [1, 2, 3]
    with Inside(live, rocks=True) as k:
        assert k.keystores[0].header.shred_seq >= 0
    assert versions_that_open(live, cube) == []
