"""Benchmarks of search: latency over many cubes, and recall of evidence in LoCoMo conversations.

The latency corpus is made up: words by Zipf's law with a head of stop words, vectors in clusters, so that word lists are
as long and neighbours as crowded as in real text. Vectors are handed in, so no model's time is measured.

Recall takes turns as the unit and only questions with evidence; ids that name no turn are left out. It is retrieval
only: whether an answer can be made from the hits is another question.
"""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from memos_client import Kernel
from memos_client.ingest import ingest

from .bench_measure import NO_MODEL, Measured, build, latencies, private, rate, settle

DIMS: Final = 384
CLUSTERS: Final = 1000
WORDS: Final = 30_000
STOP_WORDS: Final = 60
"""The most frequent words, which a question holds too."""
BATCH: Final = 256
NAMESPACES: Final = 100
SEED: Final = 20261123
CUTS: Final = (5, 10, 20, 50)
_IDS: Final = re.compile(r"[;\s,]+")


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


# -- recall ------------------------------------------------------------------------------------------------------------


def evidence_of(question: dict[str, Any], turns: frozenset[str]) -> frozenset[str]:
    """The turns that a question's evidence names."""
    named = question.get("evidence") or []
    return frozenset(turn for text in named for turn in _IDS.split(str(text)) if turn in turns)


def locomo(parent: Path | None, files: Sequence[Path], wait_s: float, args: Sequence[str]) -> list[Measured]:
    """Evidence recall at 5, 10, 20 and 50: overall, by conversation, by category."""
    with private(parent, ("--log-level", "error", *args)) as kernel:
        began = time.perf_counter()
        turns = 0
        for file in files:
            turns += ingest(kernel, file, "locomo", f"locomo/{file.stem}").turns
        rows = [rate("ingest", turns, time.perf_counter() - began)]
        waited = settle(kernel, "dense", kernel.sys_info().head_offset, wait_s)
        rows.append(Measured("vectors ready after the ingest", turns, more={"seconds": round(waited, 1)}))
        recalls: dict[str, list[list[float]]] = defaultdict(list)
        samples: list[int] = []
        for file in files:
            _ask(kernel, file, recalls, samples)
    rows.append(latencies("mem_search k=50, vector of the question included", samples))
    for name in sorted(recalls, key=lambda n: (n != "all", n)):
        of_name = recalls[name]
        means = [round(sum(column) / len(of_name), 4) for column in zip(*of_name, strict=True)]
        rows.append(
            Measured(
                f"recall, {name}", len(of_name), more={f"at_{cut}": mean for cut, mean in zip(CUTS, means, strict=True)}
            )
        )
    return rows


def _ask(kernel: Kernel, file: Path, recalls: dict[str, list[list[float]]], samples: list[int]) -> None:
    namespace = f"locomo/{file.stem}"
    names = _names(kernel, namespace)
    known = frozenset(names.values())
    for question in json.loads(file.read_bytes())["qa"]:
        wanted = evidence_of(question, known)
        if not wanted:
            continue
        began = time.perf_counter_ns()
        hits = kernel.mem_search(question["question"], namespace=namespace, k=max(CUTS))
        samples.append(time.perf_counter_ns() - began)
        found = [names[hit.cube_id] for hit in hits]
        recall = [len(wanted & set(found[:cut])) / len(wanted) for cut in CUTS]
        for name in ("all", f"conversation {file.stem}", f"category {question.get('category')}"):
            recalls[name].append(recall)


def _names(kernel: Kernel, namespace: str) -> dict[str, str]:
    """Cube id → the turn's id in the file."""
    names: dict[str, str] = {}
    cursor: str | None = None
    while True:
        page = kernel.mem_list(namespace=namespace, limit=1000, cursor=cursor)
        names |= {cube.cube_id: cube.name or "" for cube in page}
        if (cursor := page.next_cursor) is None:
            return names
