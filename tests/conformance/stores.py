"""The suite that every byte store passes: what `memos_drivers/stores/base.py` promises, one test for each promise.

A class that binds it says how a store is made (`make`), and whether it outlives the process (`durable`).
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from memos_drivers.stores.base import FAMILIES, LOG, PAYLOAD, VIEW, Batch, Reader, Store

KEYS = [b"", b"a", b"a\x00", b"a\x00\xff", b"a\xff", b"a\xff\xff", b"ab", b"b", b"b\x00", b"\xff", b"\xff\xff"]
Row = tuple[bytes, bytes]


def batch(*puts: tuple[str, bytes, bytes | None]) -> Batch:
    made = Batch()
    for put in puts:
        made.put(*put)
    return made


class StoreSuite(abc.ABC):
    """Bind it as `class TestName(StoreSuite)`."""

    implementation: ClassVar[type[object]]
    durable: ClassVar[bool]

    @abc.abstractmethod
    def make(self, path: Path) -> Store:
        """A store at a path: new, or what lies there."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        store = self.make(tmp_path / "db")
        yield store
        store.close()

    def filled(self, store: Store) -> dict[bytes, bytes]:
        rows = {key: b"=" + key for key in KEYS if key}
        store.write(batch(*((VIEW, key, value) for key, value in rows.items())))
        return rows

    def test_what_was_written_is_read(self, store: Store) -> None:
        store.write(batch((VIEW, b"k", b"v")))
        assert store.live(VIEW).get(b"k") == b"v"
        assert store.live(VIEW).get(b"other") is None

    def test_families_do_not_see_each_other(self, store: Store) -> None:
        store.write(batch(*((family, b"k", family.encode()) for family in FAMILIES)))
        assert [store.live(family).get(b"k") for family in FAMILIES] == [family.encode() for family in FAMILIES]
        store.write(batch((LOG, b"k", None)))
        assert list(store.live(LOG).scan(b"")) == [] and list(store.live(VIEW).scan(b"")) == [(b"k", b"view")]

    def test_a_value_may_be_empty_and_is_not_missing(self, store: Store) -> None:
        store.write(batch((VIEW, b"k", b"")))
        for reader in (store.live(VIEW), store.snapshot(VIEW)):
            assert reader.get(b"k") == b"" and list(reader.scan(b"")) == [(b"k", b"")]

    @pytest.mark.parametrize("family", FAMILIES)
    def test_a_value_may_have_a_mebibyte(self, store: Store, family: str) -> None:
        value = bytes(range(256)) * 4096
        store.write(batch((family, b"k", value)))
        store.sync()
        assert store.live(family).get(b"k") == value
        assert store.snapshot(family).get(b"k") == value
        assert list(store.live(family).scan(b"k")) == [(b"k", value)]

    def test_a_batch_is_applied_in_order_and_deletes(self, store: Store) -> None:
        store.write(batch((VIEW, b"a", b"1"), (VIEW, b"a", b"2"), (VIEW, b"b", b"1"), (VIEW, b"b", None), (VIEW, b"c", None),
                          (VIEW, b"c", b"3")))  # fmt: skip
        assert list(store.live(VIEW).scan(b"")) == [(b"a", b"2"), (b"c", b"3")]

    def test_deleting_what_is_not_there_does_nothing(self, store: Store) -> None:
        store.write(batch((VIEW, b"a", None)))
        assert list(store.live(VIEW).scan(b"")) == []

    def test_an_empty_batch_is_a_batch(self, store: Store) -> None:
        store.write(Batch())
        store.sync()
        assert all(list(store.live(family).scan(b"")) == [] for family in FAMILIES)

    @pytest.mark.parametrize("reverse", [False, True])
    @pytest.mark.parametrize("kind", ["live", "snapshot"])
    def test_scans_are_in_order_within_prefix_and_from_start(self, store: Store, kind: str, reverse: bool) -> None:
        """Against a sorted list: every prefix with every start in it, the start being there or not."""
        rows = self.filled(store)
        reader: Reader = store.live(VIEW) if kind == "live" else store.snapshot(VIEW)
        for prefix in KEYS:
            ordered = sorted((row for row in rows.items() if row[0].startswith(prefix)), reverse=reverse)
            assert list(reader.scan(prefix, None, reverse)) == ordered, prefix
            for start in (prefix + more for more in (b"", b"\x00", b"\x00\x01", b"b", b"\xff", b"\xff\xff")):
                expected = [row for row in ordered if (row[0] <= start if reverse else row[0] >= start)]
                if reverse and start == prefix and expected == []:
                    # Nothing of a prefix is below the prefix itself.
                    assert prefix not in rows
                assert list(reader.scan(prefix, start, reverse)) == expected, (prefix, start)

    def test_a_scan_can_be_left_early_and_taken_up_again(self, store: Store) -> None:
        self.filled(store)
        reader = store.live(VIEW)
        first = next(reader.scan(b"a"))
        rest = list(reader.scan(b"a", first[0] + b"\x00"))
        assert [first, *rest] == list(reader.scan(b"a"))

    def test_a_snapshot_shows_one_moment_for_ever(self, store: Store) -> None:
        store.write(batch((VIEW, b"a", b"1"), (VIEW, b"b", b"1")))
        snapshot = store.snapshot(VIEW)
        store.write(batch((VIEW, b"a", b"2"), (VIEW, b"b", None), (VIEW, b"c", b"2")))
        assert [snapshot.get(key) for key in (b"a", b"b", b"c")] == [b"1", b"1", None]
        assert list(snapshot.scan(b"")) == [(b"a", b"1"), (b"b", b"1")]
        assert list(snapshot.scan(b"", None, True)) == [(b"b", b"1"), (b"a", b"1")]
        live = store.live(VIEW)
        assert [live.get(key) for key in (b"a", b"b", b"c")] == [b"2", None, b"2"]
        del snapshot

    def test_a_live_reader_sees_every_later_write(self, store: Store) -> None:
        live = store.live(VIEW)
        for n in range(3):
            store.write(batch((VIEW, b"k%d" % n, b"")))
            assert len(list(live.scan(b"k"))) == n + 1

    def test_it_says_what_it_is(self, store: Store) -> None:
        assert isinstance(store.describe()["kind"], str)

    def test_what_was_synced_is_there_after_reopening(self, tmp_path: Path) -> None:
        if not self.durable:
            pytest.skip("lives as long as its process")
        path = tmp_path / "db"
        store = self.make(path)
        large = b"x" * (1 << 20)
        store.write(batch((VIEW, b"k", b"v"), (VIEW, b"gone", b"v"), (PAYLOAD, b"p", large), (LOG, b"f", b"frame")))
        store.write(batch((VIEW, b"gone", None)))
        store.sync()
        store.close()
        again = self.make(path)
        assert list(again.live(VIEW).scan(b"")) == [(b"k", b"v")]
        assert again.live(PAYLOAD).get(b"p") == large and again.live(LOG).get(b"f") == b"frame"
        again.close()

    def test_a_checkpoint_is_a_whole_copy_of_that_moment(self, tmp_path: Path) -> None:
        if not self.durable:
            pytest.skip("has no files")
        store = self.make(tmp_path / "db")
        store.write(batch((VIEW, b"k", b"1"), (LOG, b"k", b"1")))
        store.checkpoint(tmp_path / "copy")
        store.write(batch((VIEW, b"k", b"2")))
        store.close()
        copy = self.make(tmp_path / "copy")
        assert (copy.live(VIEW).get(b"k"), copy.live(LOG).get(b"k")) == (b"1", b"1")
        copy.close()

    def test_a_second_writer_is_refused(self, tmp_path: Path) -> None:
        if not self.durable:
            pytest.skip("nobody else can reach it")
        store = self.make(tmp_path / "db")
        with pytest.raises(OSError, match="cannot open"):
            self.make(tmp_path / "db")
        store.close()
