"""What the kernel asks of a memory form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .plaintext.fuse_text import FusedText
from .plaintext.index import PlaintextIndex


@dataclass(frozen=True, slots=True)
class Driver:
    """One form. A deterministic strategy can be run again from the recipe, with the same bytes as result."""

    form: str
    strategies: Mapping[str, Callable[..., FusedText]] = field(default_factory=dict)
    """Fusions that need no model: of sources, and of settings by their names."""
    deterministic: frozenset[str] = frozenset()
    index: Callable[[], PlaintextIndex] | None = None
    captures: Mapping[str, str] = field(default_factory=dict)
    """Form that a cube of this form can be made from → operation of the driver host that does it."""
    fuses: Mapping[str, str] = field(default_factory=dict)
    """Fusion strategy that needs a model → operation of the driver host."""

    def __post_init__(self) -> None:
        assert self.deterministic <= self.strategies.keys(), "only strategies of the form can be deterministic"
        assert not self.strategies.keys() & self.fuses.keys(), "a strategy needs a model or it does not"
