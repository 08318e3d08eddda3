"""What a driver host runs: operations that work in steps, and controls that are answered at once.

`MODULE.open_host(spec)` gives a `Hosted`; it is called once, in the child, and may refuse with a `MemError`.

- An `Op` is a generator. Each `yield` ends a step: the place where others get their turn, and where it may be closed
  because its caller left (`GeneratorExit`). It returns its result and the descriptors that go with it; those are closed
  once they are sent, and those of the request when the operation ends.
- A control runs in another thread while a step may be under way, so it takes care of its own locks and returns soon.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Any, Protocol, TypeAlias


class Context(Protocol):
    """What a running operation sees of its caller."""

    @property
    def who(self) -> str:
        """Who asked."""
        ...

    def progress(self, share: float, message: str) -> None:
        """Tells the caller how far the work is, from 0 to 1."""
        ...

    def item(self, item: dict[str, Any]) -> None:
        """Streams one item to the caller. After the first one, the operation is not run again by itself."""
        ...


Steps: TypeAlias = Generator[None, None, tuple[dict[str, Any], list[int]]]
Op: TypeAlias = Callable[[Context, dict[str, Any], list[int]], Steps]
Control: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]


class Hosted(Protocol):
    """The work that one host can do."""

    @property
    def ops(self) -> Mapping[str, Op]:
        """The operations, by name."""
        ...

    @property
    def controls(self) -> Mapping[str, Control]:
        """The controls, by name."""
        ...

    def describe(self) -> dict[str, Any]:
        """What the host loaded; the kernel reads it as `Host.info`."""
        ...
