"""The generated methods match the table, read as ABI.md shows them, and the library stays light."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any, get_overloads, get_type_hints

import pytest

import memos_client
from memos_client import AsyncKernel, Kernel, Stream
from memos_client._generate import HIDDEN, TARGET, generate
from memos_syscalls import errors
from memos_syscalls import messages as m
from memos_syscalls.table import TABLE, Flag, Syscall

CALLS = [call for call in TABLE if Flag.SESSION not in call.flags]
PACKAGE = Path(memos_client.__file__).parent


def test_the_generated_file_is_what_the_table_says() -> None:
    assert TARGET.read_text() == generate(), "run `python -m memos_client._generate`"


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_both_clients_have_each_call_with_all_its_fields(call: Syscall) -> None:
    blocking, coroutine = getattr(Kernel, call.name), getattr(AsyncKernel, call.name)
    parameters = inspect.signature(blocking).parameters
    assert set(parameters) - {"self"} == set(call.request.model_fields) - HIDDEN
    assert inspect.signature(coroutine).parameters == parameters
    chooses = call.item is not None and Flag.STREAM not in call.flags  # a reply, or items with stream=True
    assert inspect.iscoroutinefunction(coroutine) == (Flag.STREAM not in call.flags and not chooses)
    for name, parameter in parameters.items():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            assert parameter.default is None, f"{name} is optional, so the kernel's default holds"
    if chooses:
        stream: Any = Stream
        assert [get_type_hints(one)["return"] for one in get_overloads(blocking)] == [call.reply, stream[call.item]]
    elif Flag.STREAM not in call.flags:
        assert get_type_hints(blocking)["return"] is call.reply
    assert inspect.getdoc(blocking)


def test_the_order_of_arguments_reads_naturally() -> None:
    def by_position(name: str) -> list[str]:
        parameters = inspect.signature(getattr(Kernel, name)).parameters.values()
        return [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD][1:]

    assert by_position("mem_alloc") == ["namespace", "content"]
    assert by_position("mem_write") == ["cube_id", "content"]
    assert by_position("mem_read") == ["cube_id"]
    assert by_position("mem_search") == ["query", "namespace"]
    assert by_position("mem_rollback") == ["cube_id", "to_version"]
    assert by_position("mem_fork") == ["namespace", "to"]
    assert by_position("mem_diff") == ["cube_id", "a", "b"]
    assert by_position("mem_shred") == ["cube_id", "namespace"]


def test_every_error_and_reply_is_exported() -> None:
    replies: set[type[m.Reply]] = {call.item or call.reply for call in TABLE} - {m.Reply, m.SysCancelReply}
    wanted = {"Kernel", "AsyncKernel", "MemError"} | {kind.__name__ for kind in errors.ERRORS}
    wanted |= {reply.__name__ for reply in replies}
    assert wanted <= set(memos_client.__all__)
    assert all(hasattr(memos_client, name) for name in memos_client.__all__)


def test_the_library_imports_only_its_own_the_abi_msgpack_pydantic_and_the_standard_library() -> None:
    allowed = {"memos_client", "memos_syscalls", "memos_dates", "msgpack", "pydantic"} | sys.stdlib_module_names
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name in ("hf.py", "hf_adapter.py"):
            continue  # It is for who has torch and transformers; tests/tidy names what it may import.
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    assert alias.name.partition(".")[0] in allowed, f"{path.name}:{node.lineno}: {alias.name}"
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                assert node.module.partition(".")[0] in allowed, f"{path.name}:{node.lineno}: {node.module}"


def test_importing_the_library_loads_no_store_no_kernel_and_no_arrays() -> None:
    heavy = {"rocksdict", "torch", "numpy", "uvloop", "memos_kernel", "memos_drivers"}
    code = f"import memos_client, memos_client.testing, sys; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
