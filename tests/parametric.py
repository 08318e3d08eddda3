"""Kernels that distil with a tiny model, for tests of parametric memory: `Lessons`, a `Model` that makes adapters.

    with Lessons(tiny, tmp_path) as k:
        anna = k.alloc("Anna's dog is called Biscuit.")
        adapter = k.distil(anna)
        assert k.says("Anna's dog is called", adapter) == "Biscuit"

The driver host is the real one but for the training: `tests.quick` teaches the tiny model by rote, in a second.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from unittest import mock

import pytest
from tests.activation import Model
from tests.inside import ADMIN
from tests.quick import asks

from memos_drivers.host.client import Host
from memos_kernel import boot
from memos_kernel.governance import Caller

QUICK: Final[dict[str, Any]] = {"steps": 30, "rank": 8}
"""Params of a distillation that a test can wait for."""
DOG, DOG_IS = "Anna's dog is called Biscuit.", "Anna's dog is called"
CITY, CITY_IS = "Boris lives in Lisbon.", "Boris lives in"
ROOT: Final = Path(__file__).parent.parent


class Lessons(Model):
    """A kernel with the tiny model, and adapters."""

    def open(self) -> None:
        # The host begins with the first call that needs it; what it imports, it finds by then.
        os.environ["PYTHONPATH"] = str(ROOT)
        with mock.patch.object(boot, "Host", functools.partial(Host, module="tests.quick")):
            super().open()

    def learnt(
        self, *cubes: str, caller: Caller = ADMIN, name: str | None = None, wait: bool | None = None, **params: Any
    ) -> dict[str, Any]:
        """The reply of a distillation of these cubes."""
        which: dict[str, Any] = {"cube_id": cubes[0]} if len(cubes) == 1 else {"cube_ids": list(cubes)}
        return self("mem_migrate", caller, **which, to="parametric", name=name, wait=wait, params={**QUICK, **params})

    def distil(self, *cubes: str, caller: Caller = ADMIN, name: str | None = None, **params: Any) -> str:
        """The id of the adapter."""
        return str(self.learnt(*cubes, caller=caller, name=name, **params)["cube_id"])

    def says(self, prompt: str, *cubes: Any, caller: Caller = ADMIN, **args: Any) -> str:
        """How the model goes on behind the beginning of a statement, with these adapters."""
        return str(self.ask(asks(prompt), *cubes, caller=caller, **args)["text"]).strip()


@pytest.fixture(scope="module")
def lessons(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lessons]:
    """A kernel for a module's tests, which must be whole after them; the module gives it its own name."""
    with Lessons(tiny, tmp_path_factory.mktemp("cache")) as kernel:
        yield kernel
        kernel.sound()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a module's kernels convert their model, once."""
    return tmp_path_factory.mktemp("cache")
