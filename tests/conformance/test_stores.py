"""Every byte store under `memos_drivers/stores`, bound to the suite; one that is not bound fails."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import ClassVar

from tests.conformance.stores import StoreSuite

import memos_drivers.stores
from memos_drivers.stores.base import Store
from memos_drivers.stores.memory import MemoryStore
from memos_drivers.stores.rocks import RocksStore


class TestMemoryStore(StoreSuite):
    implementation: ClassVar[type[object]] = MemoryStore
    durable: ClassVar[bool] = False

    def make(self, path: Path) -> Store:
        return MemoryStore()


class TestRocksStore(StoreSuite):
    implementation: ClassVar[type[object]] = RocksStore
    durable: ClassVar[bool] = True

    def make(self, path: Path) -> Store:
        return RocksStore(path)


def test_every_store_passes_the_suite() -> None:
    found: set[type[object]] = set()
    for path in Path(memos_drivers.stores.__file__ or "").parent.glob("*.py"):
        module = importlib.import_module(f"memos_drivers.stores.{path.stem}")
        for _name, kind in inspect.getmembers(module, inspect.isclass):
            if all(callable(getattr(kind, part, None)) for part in ("live", "snapshot", "write", "sync")) and kind is not Store:
                found.add(kind)
    assert found == {suite.implementation for suite in StoreSuite.__subclasses__()}
