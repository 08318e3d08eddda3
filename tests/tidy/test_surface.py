"""The surface is whole: every call, event and error has all that belongs to it, and the pages say the same."""

from __future__ import annotations

import errno
import io
import re
import shlex
from typing import Any

import pytest
from rich.console import Console
from tests.inside import Inside
from tests.tidy.product import ROOT

from memos_client import Kernel
from memos_kernel import events as ev
from memos_kernel.reducer import RULES
from memos_syscalls import errors, limits
from memos_syscalls.table import TABLE, Flag, Syscall
from memos_tools import docgen
from memos_tools.shell import Shell

UUIDS = {
    "$JOB": "0192f0c100007000800000000000000a", "$ID2": "0192f0c1-0000-7000-8000-000000000002",
    "$ID": "0192f0c1-0000-7000-8000-000000000001",
}  # fmt: skip


def name_of(call: Syscall) -> str:
    return call.name


def no_kernel() -> Kernel:
    raise AssertionError("parsing needs no kernel")


def test_every_call_has_its_code() -> None:
    with Inside() as k:
        for call in TABLE:
            decided = call.request in k.kernel.decisions
            assert decided == bool(call.flags & Flag.WRITE), f"{call.name}: a call that writes has a decision, no other has"
            assert (call.number in k.kernel.reads) != decided, f"{call.name}: a call has one handler"


@pytest.mark.parametrize("call", TABLE, ids=name_of)
def test_every_call_and_every_field_is_described(call: Syscall) -> None:
    assert len((call.request.__doc__ or "").split()) >= 3, f"{call.request.__name__} needs a docstring"
    assert call.request.__doc__ != (call.request.__mro__[1].__doc__ or ""), f"{call.request.__name__} inherits its docstring"
    for model in (call.request, call.reply, *([call.item] if call.item else [])):
        for name, kind, _default, text in docgen.fields(model):
            assert kind, f"{model.__name__}.{name} has no type on the page"
            assert len(text) > 3 and text[0].isprintable() and text[-1] in ".…", f"{model.__name__}.{name}: {text!r}"


@pytest.mark.parametrize("call", TABLE, ids=name_of)
def test_every_example_is_a_command_that_the_shell_takes(call: Syscall) -> None:
    quiet = Console(file=io.StringIO())
    text = call.example
    for variable, value in UUIDS.items():
        text = text.replace(variable, value)
    shell = Shell(no_kernel, quiet, quiet)
    word, *_rest = text.split(" ", 1)
    assert word == call.command
    arguments: Any = shell.commands[word].parse(shlex.split(text)[1:])
    assert arguments is not None


def test_numbers_of_calls_are_in_order_and_leave_0_to_the_kernel() -> None:
    numbers = [call.number for call in TABLE]
    assert numbers == sorted(numbers) and numbers[0] > ev.KERNEL_SYSCALL
    assert all(1 <= call.since <= limits.ABI for call in TABLE)


def test_every_event_has_a_rule_a_form_and_a_place_on_the_page() -> None:
    page = (ROOT / "docs" / "events.md").read_text(encoding="utf-8")
    for name, schema in ev.EVENTS.items():
        assert name in RULES
        assert f"| `{name}` | {schema} |" in page, f"docs/events.md lacks {name} {schema}"
        assert f"\n- {name} {schema}: " in (ev.__doc__ or ""), f"events.py does not say what {name} {schema} holds"


def test_the_set_of_errors_is_closed() -> None:
    """Every subclass is in the list: no module makes an error of its own."""

    def below(kind: type[errors.MemError]) -> set[type[errors.MemError]]:
        return {kind}.union(*(below(sub) for sub in kind.__subclasses__()))

    assert below(errors.MemError) - {errors.MemError} == set(errors.ERRORS)


@pytest.mark.parametrize("kind", errors.ERRORS, ids=lambda kind: kind.errno)
def test_every_error_says_what_it_means_and_what_to_do(kind: type[errors.MemError]) -> None:
    assert kind.meaning.endswith(".") and kind.default_advice.endswith(".")
    assert f"{kind.__name__} {kind.errno}" in (errors.__doc__ or ""), "the tree at the head of errors.py draws every class"
    if (number := getattr(errno, kind.errno, None)) is not None:
        assert kind.number == number, "a name that POSIX has keeps its number"
    else:
        assert kind.number > 1000, "our own numbers stay clear of the system's"


def test_the_page_of_errors_has_their_numbers() -> None:
    page = (ROOT / "docs" / "syscalls.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| `(E[A-Z]+)` \| (\d+) \| `(\w+)` \|", page, re.M)
    assert [(name, int(number), kind) for name, number, kind in shown] == [
        (kind.errno, kind.number, kind.__name__) for kind in errors.ERRORS
    ]
