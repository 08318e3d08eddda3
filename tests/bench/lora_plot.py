"""The plot of docs/parametric.md: what adapters know, and what stays as it was, from the files of tests/bench/lora.py.

python -m tests.bench.lora_plot FOLDER docs/parametric.svg
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tests.bench.lora import flags, wilson
from tests.bench.svg import rule, sheet, text

SYSTEMS: Final = (
    ("base", "base", "#bbbbbb"), ("right", "the right fact as text", "#8fb08c"), ("all", "all 20 facts as text", "#c98b2f"),
    ("bare", "next-token LoRA", "#b0413e"), ("ours", "adapter, always", "#2f5d8a"),
    ("gated", "adapter, behind its gate", "#6fa3d8"),
)  # fmt: skip
MEASURES: Final = (
    ("counterfact", "efficacy_g", "the fact, greedy"), ("counterfact", "paraphrase_P", "paraphrase P"),
    ("counterfact", "locality_P", "locality P"), ("counterfact", "same1", "first token unchanged"),
    ("counterfact", "others", "subject’s other relations"), ("personal", "question", "personal questions"),
)  # fmt: skip
TITLE: Final = "Facts in adapters of SmolLM2-135M, sets that no setting was chosen on; percent with 95 % intervals"
WIDTH, HEIGHT, LEFT, TOP, FLOOR = 900, 400, 44, 44, 320
BAR: Final = 18


def shares(results: Sequence[dict[str, Any]], kind: str, system: str, measure: str) -> list[bool]:
    """Every yes and no of a measure, over all sets that have the system."""
    having = [one for one in results if one["kind"] == kind and system in one["systems"]]
    return [value for one in having for value in flags(one, system).get(measure, [])]


def down(percent: float) -> float:
    return FLOOR - percent / 100 * (FLOOR - TOP)


def plot(results: Sequence[dict[str, Any]]) -> str:
    parts = [text(LEFT, 24, TITLE, size=14)]
    for percent in range(0, 101, 20):
        parts.append(rule(LEFT, WIDTH - 12, down(percent)))
        parts.append(text(LEFT - 6, down(percent) + 4, str(percent), anchor="end"))
    each = (WIDTH - LEFT - 12) / len(MEASURES)
    for group, (kind, measure, name) in enumerate(MEASURES):
        middle = LEFT + each * (group + 0.5)
        parts.append(text(middle, FLOOR + 18, name, anchor="middle", size=11))
        left = middle - BAR * len(SYSTEMS) / 2
        for place, (system, _label, colour) in enumerate(SYSTEMS):
            values = shares(results, kind, system, measure)
            if not values:
                continue
            x, top = left + BAR * place, down(100 * sum(values) / len(values))
            low, high = (down(100 * end) for end in wilson(sum(values), len(values)))
            parts.append(f'<rect x="{x:.1f}" y="{top:.1f}" width="{BAR - 3}" height="{FLOOR - top:.1f}" fill="{colour}"/>')
            at = x + (BAR - 3) / 2
            parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="#333" stroke-width="1"/>')
    for place, (_system, label, colour) in enumerate(SYSTEMS):
        x, y = LEFT + (place % 3) * 280, FLOOR + 44 + 20 * (place // 3)
        parts.append(f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{colour}"/>')
        parts.append(text(x + 18, y, label))
    return sheet(WIDTH, HEIGHT, parts)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw what adapters know.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("svg", type=Path)
    options = parser.parse_args()
    results = [json.loads(file.read_text("utf-8")) for file in sorted(options.folder.glob("*.json"))]
    options.svg.write_text(plot(results), encoding="utf-8")


if __name__ == "__main__":
    main()
