"""What the suites share: nothing but haste."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def quick_collections() -> Iterator[None]:
    """A database is closed by collecting what holds it; all that is there before the first test need not be looked at."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
