"""Form → driver. Nothing else knows which forms there are drivers for."""

from __future__ import annotations

from typing import Final

from .base import Driver
from .plaintext.fuse_text import STRATEGIES
from .plaintext.index import PlaintextIndex
from .plaintext.summary import summarise

MERGES: Final = ("linear", "cat", "svd", "ties", "dare_linear", "dare_ties", "magnitude_prune")
"""How adapters are merged, as peft names it."""
TABLE: Final[dict[str, Driver]] = {
    "plaintext": Driver(
        "plaintext",
        {**STRATEGIES, "summarise": summarise},
        frozenset(STRATEGIES),
        PlaintextIndex,
        captures={"parametric": "verbalise"},
    ),
    "activation": Driver("activation", captures={"plaintext": "capture"}, fuses={"kv": "fuse"}),
    "parametric": Driver("parametric", captures={"plaintext": "distil"}, fuses=dict.fromkeys(MERGES, "merge")),
}
