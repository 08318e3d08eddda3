"""The plot of docs/retrieval.md: recall at k of mem_search, of its stages and of its peers, from tests/bench/retrieval.py.

python -m tests.bench.retrieval_plot RESULTS.json docs/retrieval.svg
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.bench.svg import rule, sheet, text

CUTS: Final = (5, 10, 20, 50)
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 440, 56, 330, 44, 44
TITLE: Final = "Evidence recall at k, LoCoMo, turns as the unit"
OURS: Final = "#2f5d8a"
STAGE: Final = "#9bb0c4"
PEERS: Final = ("#b0413e", "#c98b2f", "#3f7d5a", "#7a4f93", "#8a6d3b")
LABEL: Final = 15
"""Pixels that a label takes."""


class Line(NamedTuple):
    name: str
    values: tuple[float, ...]
    colour: str
    wide: float
    dashes: str


def lines_of(chapters: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Line]:
    """Ours, its stages added one by one, one retriever alone, and the peers."""
    found: list[Line] = []
    for row in chapters.get("ablation", ()):
        name = str(row["name"])
        if name == "all stages":
            found.append(_line(row, "mem_search", OURS, 3, ""))
        elif not name.startswith("without"):
            found.append(_line(row, name, STAGE, 1.5, "4 3"))
    for place, row in enumerate(chapters.get("peers", ())):
        found.append(_line(row, str(row["name"]), PEERS[place % len(PEERS)], 1.8, ""))
    return found


def _line(row: Mapping[str, Any], name: str, colour: str, wide: float, dashes: str) -> Line:
    return Line(name, tuple(float(row[f"at_{cut}"]) for cut in CUTS), colour, wide, dashes)


def across(cut: int) -> float:
    """The axis of k is logarithmic."""
    low, high = math.log(CUTS[0]), math.log(CUTS[-1])
    return LEFT + (math.log(cut) - low) / (high - low) * (WIDTH - LEFT - RIGHT)


def spread(wanted: Sequence[float], gap: float, top: float, floor: float) -> list[float]:
    """Places for labels, near the wanted ones, in their order, none nearer to another than `gap` where there is room."""
    order = sorted(range(len(wanted)), key=lambda at: wanted[at])
    placed = [0.0] * len(wanted)
    last = top - gap
    for at in order:
        last = placed[at] = max(wanted[at], last + gap)
    last = floor + gap
    for at in reversed(order):
        last = placed[at] = min(placed[at], last - gap)
    return placed


def plot(chapters: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    lines = lines_of(chapters)
    low = math.floor(min((min(line.values) for line in lines), default=0) * 10) / 10
    floor = HEIGHT - BOTTOM

    def down(value: float) -> float:
        return floor - (value - low) / (1 - low) * (floor - TOP)

    parts = [text(LEFT, 24, TITLE, size=14)]
    for tenth in range(round(low * 10), 11):
        y = down(tenth / 10)
        parts.append(rule(LEFT, WIDTH - RIGHT, y))
        parts.append(text(LEFT - 8, y + 4, f"{tenth / 10:.1f}", anchor="end"))
    for cut in CUTS:
        parts.append(text(across(cut), floor + 20, f"@{cut}", anchor="middle"))
    labels = spread([down(line.values[-1]) for line in lines], LABEL, TOP, floor)
    # What is ours is drawn last, over the others.
    for line, y in sorted(zip(lines, labels, strict=True), key=lambda pair: pair[0].wide):
        points = " ".join(f"{across(cut):.1f},{down(value):.1f}" for cut, value in zip(CUTS, line.values, strict=True))
        dashes = f' stroke-dasharray="{line.dashes}"' if line.dashes else ""
        parts.append(f'<polyline points="{points}" fill="none" stroke="{line.colour}" stroke-width="{line.wide}"{dashes}/>')
        end = WIDTH - RIGHT
        joint = f"{end},{down(line.values[-1]):.1f} {end + 12},{y:.1f}"
        parts.append(f'<polyline points="{joint}" fill="none" stroke="{line.colour}" stroke-width="0.7"/>')
        parts.append(text(end + 16, y + 4, f"{line.name}  {line.values[1]:.2f} @10", size=11, colour=line.colour))
    return sheet(WIDTH, HEIGHT, parts)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw recall at k.")
    parser.add_argument("results", type=Path)
    parser.add_argument("svg", type=Path)
    options = parser.parse_args()
    found = json.loads(options.results.read_text(encoding="utf-8"))
    options.svg.write_text(plot(found["sets"]["locomo"]), encoding="utf-8")


if __name__ == "__main__":
    main()
