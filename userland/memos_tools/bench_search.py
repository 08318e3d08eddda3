"""Benchmark of search: latency over many cubes. What it finds is measured by `bench_recall`.

The corpus is made up: words by Zipf's law with a head of stop words, vectors in clusters, so that word lists are
as long and neighbours as crowded as in real text. Vectors are handed in, so no model's time is measured.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

from memos_client import Kernel

from .bench_measure import NO_MODEL, Measured, build, latencies, private, rate, settle

DIMS: Final = 384
CLUSTERS: Final = 1000
WORDS: Final = 30_000
STOP_WORDS: Final = 60
"""The most frequent words, which a question holds too."""
BATCH: Final = 256
NAMESPACES: Final = 100
SEED: Final = 20261123


class Corpus:
    """Texts, vectors and queries from a seed."""

    def __init__(self, cubes: int) -> None:
        import numpy as np  # Only this benchmark needs it.

        self._np = np
        self._random = np.random.default_rng(SEED)
        ranks = np.arange(1, WORDS + 1)
        shares = 1 / (ranks + 2.7) ** 1.07  # Zipf-Mandelbrot
        self._cumulative = np.cumsum(shares / shares.sum())
        self._words = [_word(rank) for rank in range(WORDS)]
        self._centres = self._random.normal(size=(CLUSTERS, DIMS)).astype("f4")
        sizes = 1 / np.arange(1, CLUSTERS + 1) ** 0.7
        self._cluster = self._random.choice(CLUSTERS, size=cubes, p=sizes / sizes.sum())

    def item(self, place: int) -> dict[str, Any]:
        """One cube of about 300 B."""
        chosen = self._np.searchsorted(self._cumulative, self._random.random(52))
        text = " ".join(self._words[min(rank, WORDS - 1)] for rank in chosen)[:300]
        return {
            "namespace": f"bench/{place % NAMESPACES}",
            "content": text,
            "embedding": self._near(self._centres[self._cluster[place]], 0.6),
        }

    def query(self) -> tuple[str, list[float]]:
        """A question of stop words and rarer ones, and a vector near some cluster."""
        draw = self._random
        common = [self._words[int(rank)] for rank in draw.integers(0, STOP_WORDS, 3)]
        rare = [self._words[int(rank)] for rank in (10 ** draw.uniform(2, 4.4, 4)).astype(int)]
        words = [*common, *rare]
        draw.shuffle(words)
        return " ".join(words), self._near(self._centres[int(draw.integers(CLUSTERS))], 0.6)

    def _near(self, centre: Any, noise: float) -> list[float]:
        vector = centre + noise * self._random.normal(size=DIMS).astype("f4")
        return [float(x) for x in vector / self._np.linalg.norm(vector)]


def _word(rank: int) -> str:
    """A pronounceable word, short where it is frequent."""
    syllables = ("ba", "ke", "di", "lo", "mu", "na", "pe", "ri", "so", "tu", "va", "ze")
    word, rest = "", rank
    while True:
        word += syllables[rest % 12]
        rest //= 12
        if rest == 0:
            return word + ("n" if rank % 3 == 0 else "")


def search(parent: Path | None, cubes: int, queries: int) -> list[Measured]:
    """End to end from a blocking client, k = 10."""
    corpus = Corpus(cubes)
    with private(parent, NO_MODEL) as kernel:
        rows = [rate("build with vectors", cubes, build(kernel, corpus.item, cubes, BATCH))]
        head = kernel.sys_info().head_offset
        waited = settle(kernel, "lexical", head) + settle(kernel, "dense", head)
        rows.append(Measured("indexed after the build", cubes, more={"seconds": round(waited, 3)}))
        for name, mode, namespace in (
            ("hybrid", "hybrid", None),
            ("lexical", "lexical", None),
            ("dense", "dense", None),
            ("hybrid, one namespace of 100", "hybrid", "bench/7"),
        ):
            rows.append(_queries(kernel, corpus, name, mode, namespace, queries))
        return rows


def _queries(kernel: Kernel, corpus: Corpus, name: str, mode: Any, namespace: str | None, count: int) -> Measured:
    samples: list[int] = []
    hits = 0
    for place in range(count + 20):
        words, vector = corpus.query()
        began = time.perf_counter_ns()
        given = None if mode == "lexical" else vector
        reply = kernel.mem_search(words, namespace=namespace, k=10, mode=mode, query_embedding=given)
        if place >= 20:
            samples.append(time.perf_counter_ns() - began)
            hits += len(reply)
    return latencies(f"mem_search {name}", samples, hits=round(hits / count, 2))
