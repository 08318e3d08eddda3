"""What the kernel asks of a memory form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .plaintext.fuse_text import FusedText, Source
from .plaintext.index import PlaintextIndex


@dataclass(frozen=True, slots=True)
class Driver:
    """One form. A deterministic strategy can be run again from the recipe, with the same bytes as result."""

    form: str
    strategies: Mapping[str, Callable[[Sequence[Source]], FusedText]]
    deterministic: frozenset[str]
    index: Callable[[], PlaintextIndex]

    def __post_init__(self) -> None:
        assert self.deterministic <= self.strategies.keys(), "only strategies of the form can be deterministic"
