"""Counters and latency histograms, cheap enough for every call.

A histogram has 8 buckets per power of two of microseconds, so a percentile is right within 9 %.
"""

from __future__ import annotations

from typing import Any


class Histogram:
    __slots__ = ("buckets", "count", "errors", "max_ns")

    def __init__(self) -> None:
        self.buckets: dict[int, int] = {}
        self.count = 0
        self.errors = 0
        self.max_ns = 0

    def add(self, ns: int, error: bool) -> None:
        self.count += 1
        if error:
            self.errors += 1
        if ns > self.max_ns:
            self.max_ns = ns
        bits = ns.bit_length()
        # The power of two, and the three bits below it.
        bucket = bits << 3 | (ns >> (bits - 4) & 7 if bits > 3 else 0)
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1

    def percentile(self, share: float) -> float:
        """Microseconds under which this share of the calls stayed (upper edge of its bucket)."""
        wanted, seen = self.count * share, 0
        for bucket in sorted(self.buckets):
            seen += self.buckets[bucket]
            if seen >= wanted:
                bits, step = bucket >> 3, bucket & 7
                return (1 << max(bits - 1, 0)) * (1 + (step + 1) / 8) / 1000
        return 0.0

    def report(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "errors": self.errors,
            "p50_us": round(self.percentile(0.5), 1),
            "p99_us": round(self.percentile(0.99), 1),
            "max_us": round(self.max_ns / 1000, 1),
        }
