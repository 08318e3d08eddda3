"""Form → driver. Nothing else knows which forms there are drivers for."""

from __future__ import annotations

from typing import Final

from .base import Driver
from .plaintext.fuse_text import STRATEGIES
from .plaintext.index import PlaintextIndex

TABLE: Final[dict[str, Driver]] = {
    "plaintext": Driver("plaintext", STRATEGIES, frozenset(STRATEGIES), PlaintextIndex),
    "activation": Driver("activation", captures={"plaintext": "capture"}, fuses={"kv": "fuse"}),
}
