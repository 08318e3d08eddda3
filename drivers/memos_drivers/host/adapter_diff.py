"""Two versions of an adapter compared: how far each module moved, and which probes are answered otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memos_drivers.host.contract import Op

if TYPE_CHECKING:
    from memos_drivers.host.ops import Workshop


def operations(shop: Workshop) -> dict[str, Op]:
    return {}
