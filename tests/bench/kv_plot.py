"""The plot of docs/benchmarks.md: times to the first token, from the results of tests/bench/kv.py.

    python -m tests.bench.kv_plot RESULTS.json docs/kv-first-token.svg
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any, Final

from tests.bench.svg import rule, sheet, text

HOWS: Final = (
    ("full prefill", "#b0413e"), ("cold disk", "#c98b2f"), ("disk", "#d9b44a"), ("host", "#3f7d5a"), ("device", "#2f5d8a"),
)  # fmt: skip
SIZES: Final = (256, 1024, 4096)
WIDTH, HEIGHT, LEFT, TOP, BOTTOM, BAR = 760, 360, 70, 40, 60, 30
TITLE: Final = "Seconds to the first token (20-token question behind a memory, through mem_infer)"
DECADES: Final = (-2, 2)
"""Of seconds: 10 ms to 100 s."""


def height(seconds: float) -> float:
    """Of a bar, in pixels; the axis is logarithmic."""
    low, high = DECADES
    return (math.log10(seconds) - low) / (high - low) * (HEIGHT - TOP - BOTTOM)


def plot(seconds: dict[tuple[int, str], float]) -> str:
    floor = HEIGHT - BOTTOM
    parts = [text(LEFT, 22, TITLE, size=14)]
    for decade in range(DECADES[0], DECADES[1] + 1):
        y = floor - height(10.0**decade)
        parts.append(rule(LEFT, WIDTH - 20, y))
        parts.append(text(LEFT - 8, y + 4, f"{10.0**decade:g} s", anchor="end"))
    span = (WIDTH - LEFT - 20) / len(SIZES)
    for group, tokens in enumerate(SIZES):
        shown = [(how, colour) for how, colour in HOWS if (tokens, how) in seconds]
        x = LEFT + span * group + (span - BAR * len(shown)) / 2
        for how, colour in shown:
            value = seconds[tokens, how]
            tall = height(value)
            parts.append(f'<rect x="{x:.1f}" y="{floor - tall:.1f}" width="{BAR - 3}" height="{tall:.1f}" fill="{colour}"/>')
            parts.append(text(x + BAR / 2, floor - tall - 4, f"{value:.2g}", anchor="middle", size=10))
            x += BAR
        parts.append(text(LEFT + span * (group + 0.5), floor + 18, f"{tokens:,} tokens", anchor="middle"))
    x = float(LEFT)
    for how, colour in HOWS:
        parts.append(f'<rect x="{x}" y="{HEIGHT - 24}" width="12" height="12" fill="{colour}"/>')
        parts.append(text(x + 17, HEIGHT - 14, how))
        x += 110
    return sheet(WIDTH, HEIGHT, parts)


def read(results: dict[str, Any]) -> dict[tuple[int, str], float]:
    found: dict[tuple[int, str], float] = {}
    for row in results["rows"]:
        words = str(row["name"]).split(", ")
        if words[0] == "first token" and row["p50_us"] is not None:
            found[int(words[1].split(" ")[0]), words[2]] = row["p50_us"] / 1e6
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw times to the first token.")
    parser.add_argument("results", type=Path)
    parser.add_argument("svg", type=Path)
    options = parser.parse_args()
    options.svg.write_text(plot(read(json.loads(options.results.read_text(encoding="utf-8")))), encoding="utf-8")


if __name__ == "__main__":
    main()
