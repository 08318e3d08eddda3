"""Imports point one way: syscalls ← drivers ← kernel, syscalls ← userland. What decides and applies imports no world."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tests.tidy.product import PACKAGES, Module, imports, modules

MAY_IMPORT = {
    "memos_syscalls": set[str](),
    "memos_dates": set[str](),
    "memos_drivers": {"memos_syscalls"},
    "memos_kernel": {"memos_syscalls", "memos_dates", "memos_drivers"},
    "memos_client": {"memos_syscalls", "memos_dates"},
    "memos_tools": {"memos_syscalls", "memos_client"},
}
TOOLS_MAY_IMPORT = (
    *(f"memos_kernel.{name}" for name in (
        "events", "state", "reducer", "upcast", "eventlog", "keystore", "masterkey", "crypto", "chain", "private", "answers",
        "vault", "verify", "governance", "lifecycle", "offline", "topicoffline", "topickeys", "config", "moving",
    )),
    "memos_drivers.stores", "memos_drivers.lm",
)  # fmt: skip
"""Offline tools read the log with the kernel's own code: these modules, and those below them, and nothing else."""

CLIENT_MAY_IMPORT = {
    "memos_client.hf": ("memos_drivers.lm",), "memos_client.hf_adapter": ("memos_drivers.lm", "memos_drivers.parametric"),
}  # fmt: skip
"""A model inside the caller's own process is recognised, and its cache built, with the driver's code."""

PURE = (
    *sorted(path.stem for path in PACKAGES["memos_kernel"].glob("decide*.py")),
    "reducer", "governance", "lifecycle", "state", "events", "header", "answers", "private", "supersession", "upcast",
)  # fmt: skip
PURE_MAY_USE = {*PURE, "crypto", "chain"}
"""Of the kernel's modules; the two others are pure but for a signing key that they are given."""
WORLD = {
    "time", "random", "uuid", "os", "asyncio", "socket", "secrets", "datetime", "threading", "subprocess", "rocksdict",
    "pathlib", "io", "tempfile", "queue", "concurrent", "logging", "uvloop",
}  # fmt: skip

KNOWN = {module.name for module in modules()}


def test_every_package_has_a_place_in_the_layers() -> None:
    assert set(PACKAGES) == set(MAY_IMPORT)


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_imports_only_point_down(package: str) -> None:
    allowed = MAY_IMPORT[package] | {package}
    wrong: list[str] = []
    for module in modules():
        if module.name.partition(".")[0] != package:
            continue
        for node, name in imports(module):
            top = name.partition(".")[0]
            if top not in MAY_IMPORT or top in allowed or (package == "memos_tools" and name not in KNOWN):
                continue
            if package == "memos_tools" and any(name == one or name.startswith(one + ".") for one in TOOLS_MAY_IMPORT):
                continue
            if name.startswith(CLIENT_MAY_IMPORT.get(module.name, ("-",))):
                continue
            if name == "memos_drivers" and module.name in CLIENT_MAY_IMPORT:
                # `from memos_drivers import tensors`: the module itself comes as its own name.
                continue
            if package == "memos_tools" and name in ("memos_kernel", "memos_drivers"):
                # `from memos_kernel import events`: the module itself comes as its own name.
                continue
            wrong.append(f"{module.at(node)}: {package} may not import {name}")
    assert wrong == []


def test_nothing_of_the_product_imports_its_tests() -> None:
    assert [m.at(node) for m in modules() for node, name in imports(m) if name.partition(".")[0] in ("tests", "pytest")] == []


def kernel_module(name: str) -> Module:
    return next(module for module in modules() if module.name == f"memos_kernel.{name}")


@pytest.mark.parametrize("name", PURE)
def test_what_decides_and_applies_sees_no_clock_no_chance_and_no_device(name: str) -> None:
    module = kernel_module(name)
    wrong = [f"{module.at(node)}: {used}" for node, used in imports(module) if used.partition(".")[0] in WORLD]
    for node, used in imports(module):
        top, _, rest = used.partition(".")
        if top == "memos_kernel" and used in KNOWN and rest and rest.partition(".")[0] not in PURE_MAY_USE:
            wrong.append(f"{module.at(node)}: {used} is not pure")
    assert wrong == []


LOADED = "import {module}, sys; print(*sorted({{n.partition('.')[0] for n in sys.modules}} & {unwanted!r}))"


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("memos_kernel.__main__", {"torch", "onnxruntime", "transformers", "tokenizers", "memos_client", "memos_tools"}),
        ("memos_client", {"rocksdict", "torch", "numpy", "cryptography", "memos_kernel", "memos_drivers", "memos_tools"}),
        ("memos_syscalls.table", {"memos_kernel", "memos_client", "memos_drivers", "numpy", "cryptography"}),
    ],
)
def test_a_program_loads_nothing_that_it_does_not_need(module: str, unwanted: set[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED.format(module=module, unwanted=unwanted)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.split() == []
