"""Errors as they cross the socket, and what the kernel may conclude from them."""

from __future__ import annotations

import pytest

from memos_syscalls import errors
from memos_syscalls.errors import ERRORS, MemError, MemIO, from_wire


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.errno)
@pytest.mark.parametrize("outcome", ["none", "unknown"])
def test_an_error_crosses_the_wire_whole(kind: type[MemError], outcome: errors.Outcome) -> None:
    error = kind("what happened", "do this", outcome=outcome)
    found = from_wire(kind.number, error.to_wire())
    assert type(found) is kind
    assert (found.detail, found.advice, found.outcome) == ("what happened", "do this", outcome)
    assert found.to_wire() == error.to_wire()


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.errno)
def test_an_error_says_its_name_what_happened_and_what_to_do(kind: type[MemError]) -> None:
    text = str(kind("this happened"))
    assert text == f"{kind.errno}: this happened. {kind.default_advice}"
    assert "outcome unknown" in str(kind("this happened", outcome="unknown"))


def test_an_errno_of_a_newer_kernel_is_an_error_of_the_device() -> None:
    found = from_wire(4242, {"errno": "ENEW", "detail": "something new", "outcome": "unknown"})
    assert type(found) is MemIO and found.detail == "something new" and found.outcome == "unknown"


@pytest.mark.parametrize("body", [{}, {"detail": None}, {"outcome": 7}, {"advice": ["x"]}, {"detail": 3, "advice": 4}])
def test_a_strange_error_map_is_still_an_error(body: dict[str, object]) -> None:
    error = from_wire(22, body)
    assert error.errno == "EINVAL" and error.outcome == "none" and str(error)


def test_what_can_be_repeated_depends_on_the_world_and_not_on_the_state() -> None:
    """A refusal that every replay would repeat cannot be cured by asking again."""
    for kind in ERRORS:
        assert not (kind.retryable and kind.deterministic), kind


def test_no_error_shadows_a_builtin() -> None:
    import builtins

    assert not [kind for kind in ERRORS if hasattr(builtins, kind.__name__)]
