"""How the plaintext form grows: up to a million documents in the index, and namespaces of every size in one kernel.

    .venv/bin/python tests/bench/scale.py vectors --rows 1000000       nearest rows: exact against codes, recall, ms
    .venv/bin/python tests/bench/scale.py index --rows 1000000         PlaintextIndex: build, bytes, where a search's time goes
    .venv/bin/python tests/bench/scale.py kernel --rows 100000         a kernel: build, stop, start, search by size of namespace

Texts are pairs of sentences from the conversations in `../shared/data`, so that words are as frequent as in talk; without
them they are made up by Zipf's law. A vector is that of a real sentence, plus .2 to .8 of another's, plus noise with the
covariance of real vectors: neighbours are as crowded as real ones and more numerous. Queries are vectors of sentences
that are in no mixture. Without the embedding model vectors are clusters around random centres, which the result says.

Each line of the answer is JSON. Times are of one thread: wall in ms, and the processor's own time beside it (`cpu`), which
another load on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from memos_client import Kernel
from memos_drivers.embed.model import MiniLM
from memos_drivers.plaintext.dense import DenseIndex, Int8
from memos_drivers.plaintext.documents import Document
from memos_drivers.plaintext.index import PlaintextIndex
from memos_drivers.plaintext.searching import SearchQuery
from memos_syscalls.errors import MemNoModel
from memos_tools.bench_measure import NO_MODEL, rss_bytes, scratch, settle
from memos_tools.bench_search import BATCH, Corpus

DATA: Final = Path(__file__).parents[3] / "shared" / "data"
DIMS: Final = 384
SENTENCES_MAX: Final = 2000
QUERIES: Final = 100
BLOCK: Final = 20_000
SIZES: Final = (1, 10, 100, 1_000, 10_000, 100_000)
Floats = NDArray[np.float32]


def say(what: str, **found: Any) -> None:
    print(json.dumps({"what": what, **found}), flush=True)


def times(call: Callable[[Any], object], arguments: Iterator[Any] | list[Any]) -> dict[str, float]:
    """Percentiles in ms of calls on each of the arguments."""
    wall: list[float] = []
    cpu: list[float] = []
    for argument in arguments:
        began, began_cpu = time.perf_counter(), time.thread_time()
        call(argument)
        cpu.append((time.thread_time() - began_cpu) * 1e3)
        wall.append((time.perf_counter() - began) * 1e3)
    return {
        "min_ms": round(min(wall), 2), "p50_ms": round(float(np.median(wall)), 2),
        "p95_ms": round(float(np.quantile(wall, 0.95)), 2), "cpu_p50_ms": round(float(np.median(cpu)), 2),
    }  # fmt: skip


class Crowd:
    """Texts and vectors without end, from a seed."""

    def __init__(self, seed: int = 11) -> None:
        self._random = np.random.default_rng(seed)
        self._made_up = Corpus(1)
        sentences = list(dict.fromkeys(_sentences()))
        self._random.shuffle(sentences)
        self.sentences = sentences or [str(self._made_up.item(0)["content"]) for _ in range(SENTENCES_MAX)]
        self.questions = self.sentences[:QUERIES]
        self.sentences = self.sentences[QUERIES:]
        self.kind = "mixed from real ones"
        self.queries, self._real = self._embedded()
        _, size, axes = np.linalg.svd(self._real - self._real.mean(0), full_matrices=False)
        self._colour = (axes * (size / np.sqrt(len(self._real)))[:, None]).astype(np.float32)

    def _embedded(self) -> tuple[Floats, Floats]:
        try:
            model = MiniLM()
        except MemNoModel:
            self.kind = "clusters around random centres"
            centres = self._random.standard_normal((1000, DIMS), np.float32)
            return centres[:QUERIES] + self._random.standard_normal((QUERIES, DIMS), np.float32), centres
        texts = [*self.questions, *self.sentences[:SENTENCES_MAX]]
        rows = np.concatenate([model.embed(texts[at : at + 64]) for at in range(0, len(texts), 64)])
        return rows[:QUERIES], rows[QUERIES:]

    def text(self) -> str:
        one, two = self._random.integers(len(self.sentences), size=2)
        return f"{self.sentences[one]} {self.sentences[two]}"

    def vectors(self, count: int) -> Floats:
        """Unit vectors."""
        draw, real = self._random, self._real
        noise = draw.standard_normal((count, len(self._colour)), np.float32) @ self._colour
        rows = real[draw.integers(len(real), size=count)] + noise * draw.uniform(0.2, 0.6, (count, 1)).astype(np.float32)
        rows += draw.uniform(0.2, 0.8, (count, 1)).astype(np.float32) * real[draw.integers(len(real), size=count)]
        unit: Floats = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return unit

    def blocks(self, count: int) -> Iterator[tuple[int, Int8]]:
        """Quantised vectors, `BLOCK` at a time, with the number of the first."""
        for first in range(0, count, BLOCK):
            rows = self.vectors(min(BLOCK, count - first))
            yield first, np.rint(rows * (127 / np.abs(rows).max(1, keepdims=True))).astype(np.int8)


def _sentences() -> Iterator[str]:
    for file in sorted(DATA.glob("locomo/conv-*.json")):
        conversation = json.loads(file.read_text())
        conversation = conversation.get("conversation", conversation)
        for session in conversation.values():
            for turn in session if isinstance(session, list) else ():
                if isinstance(turn, dict) and "text" in turn:
                    yield f"{turn.get('speaker', '')}: {turn['text']}"


def vectors(rows: int) -> None:
    """Exact nearest rows against those by codes, over all rows and over scattered ones."""
    crowd = Crowd()
    index = DenseIndex()
    spent = 0.0
    for first, block in crowd.blocks(rows):
        began = time.process_time()
        index.put(first, block)
        spent += time.process_time() - began
    say("put", rows=rows, vectors=crowd.kind, cpu_s=round(spent, 2), bytes_each=DIMS + 4 + DIMS // 8)
    random = np.random.default_rng(3)
    for share in (1.0, 0.5, 0.1, 0.02):
        scope = np.sort(random.choice(rows, int(rows * share), replace=False)).astype(np.int32)
        found: dict[str, list[set[int]]] = {"exact 10": [], "exact 50": [], "10": [], "50": []}

        def exact(query: Floats, scope: NDArray[np.int32] = scope, found: dict[str, list[set[int]]] = found) -> None:
            scores = index.cosines(query, scope)
            best = np.argpartition(-scores, min(50, len(scores) - 1))[:50]
            best = best[np.argsort(-scores[best], kind="stable")]
            found["exact 10"].append(set(best[:10].tolist()))
            found["exact 50"].append(set(best.tolist()))

        def nearest(query: Floats, scope: NDArray[np.int32] = scope, found: dict[str, list[set[int]]] = found) -> None:
            best = index.nearest(query, scope, 50)[0]
            found["10"].append(set(best[:10].tolist()))
            found["50"].append(set(best.tolist()))

        queries = list(crowd.queries)
        cost = {"exact": times(exact, queries), "nearest": times(nearest, queries)}
        recall: dict[str, float] = {}
        for k in ("10", "50"):
            shares = [len(a & b) / len(a) for a, b in zip(found[f"exact {k}"], found[k], strict=True)]
            recall[f"recall@{k}"] = round(float(np.mean(shares)), 4)
        say("nearest 50", rows=rows, scope=len(scope), **recall, **cost)


def index(rows: int) -> None:
    """One index with `rows` documents in 100 namespaces of one size: what a search spends where."""
    crowd = Crowd()
    empty = rss_bytes(os.getpid())
    built = PlaintextIndex(DIMS)
    spent = 0.0
    for first, block in crowd.blocks(rows):
        texts = [crowd.text() for _ in range(len(block))]
        ids = [number.to_bytes(16, "big") for number in range(first, first + len(block))]
        began = time.process_time()
        built.add(
            [Document(one, 1, at, f"n/{at % 100}", text) for at, (one, text) in enumerate(zip(ids, texts, strict=True), first)],
            block,
        )
        for one in ids:
            built.set_live(one, 1)
        spent += time.process_time() - began
    say("build", rows=rows, vectors=crowd.kind, cpu_s=round(spent, 1), rss_each=round((rss_bytes(os.getpid()) - empty) / rows))
    asked = [*zip(crowd.questions, crowd.queries, strict=True)]
    for name, scopes in (("all", None), ("1 namespace of 100", ["n/7"])):
        for mode in ("hybrid", "dense", "lexical"):
            def search(one: tuple[str, Floats], mode: Any = mode, scopes: Any = scopes) -> None:
                given = None if mode == "lexical" else one[1]
                built.search(SearchQuery(text=one[0], vector=given, mode=mode, scopes=scopes), _anything)

            search(asked[0])
            say(f"search {mode}, {name}", rows=rows, **times(search, asked[:40]))
    _stages(built, asked, rows)
    built.close()


def _anything(cube_id: bytes, version: int) -> bool:
    return True


def _stages(built: PlaintextIndex, asked: list[tuple[str, Floats]], rows: int) -> None:
    """The parts of a search alone; they are private, for only a benchmark calls them alone."""
    docs, words, vectors = built._docs, built._lexical, built._vectors  # pyright: ignore[reportPrivateUsage]
    mask = docs.mask(past=False, scopes=None, tags=(), since=None, until=None)
    reach = vectors.reach(mask, DIMS)
    if reach is None:
        raise SystemExit("the index has no vectors")
    places = reach.rows[: len(mask)]

    def remask(_: object) -> None:
        docs.mask(past=False, scopes=None, tags=(), since=None, until=None)

    def reselect(_: object) -> None:
        vectors.reach(mask, DIMS)

    say("mask", rows=rows, **times(remask, asked[:20]))
    say("vectors of the mask", rows=rows, **times(reselect, asked[:20]))
    say("cosines of all", rows=rows, **times(lambda one: reach.matrix.cosines(one[1], places), asked[:20]))
    say("nearest 200", rows=rows, **times(lambda one: reach.nearest(one[1], 200), asked[:20]))
    fresh = [f"{text} {other}" for (text, _), (other, _) in zip(asked[40:70], asked[70:100], strict=True)]
    say("postings, first time", rows=rows, **times(words.terms, fresh))
    say("postings, again", rows=rows, **times(words.terms, fresh[-3:] * 5))


def kernel(rows: int, parent: Path | None) -> None:
    """Namespaces of 1 to 100,000 cubes (as far as `rows` go) and the rest of the rows in others, in one kernel."""
    crowd = Crowd()
    sizes = [size for size in SIZES if sum(SIZES[: SIZES.index(size) + 1]) <= rows]
    names = [f"size/{size}" for size in sizes for _ in range(size)]
    names += [f"rest/{at % 1000}" for at in range(rows - len(names))]
    np.random.default_rng(1).shuffle(names)
    with scratch(parent) as path:
        running = Kernel.spawn(path / "data", args=NO_MODEL)
        empty = rss_bytes(running.daemon_pid or 0)
        spent = 0.0
        for first in range(0, rows, BATCH):
            part = names[first : first + BATCH]
            given = crowd.vectors(len(part))
            items = [
                {"namespace": name, "content": crowd.text(), "embedding": vector.tolist()}
                for name, vector in zip(part, given, strict=True)
            ]
            began = time.perf_counter()
            running.mem_alloc_many(items)
            spent += time.perf_counter() - began
        head = running.sys_info().head_offset
        waited = settle(running, "lexical", head) + settle(running, "dense", head)
        each = (rss_bytes(running.daemon_pid or 0) - empty) / rows
        say("kernel: build", rows=rows, seconds=round(spent, 1), index_wait_s=round(waited, 1), rss_each=round(each))
        _kernel_searches(running, crowd, sizes, rows)
        running.close()
        disk = sum(file.stat().st_size for file in (path / "data").rglob("*") if file.is_file())
        began = time.perf_counter()
        running = Kernel.spawn(path / "data", args=NO_MODEL)
        answered = time.perf_counter() - began
        running.mem_search(crowd.questions[0], namespace=f"size/{sizes[-1]}", query_embedding=crowd.queries[0].tolist())
        searched = time.perf_counter() - began
        say(
            "kernel: start after a clean stop", rows=rows, answers_s=round(answered, 2), first_search_s=round(searched, 2),
            rss_each=round((rss_bytes(running.daemon_pid or 0) - empty) / rows), disk_each=round(disk / rows),
        )  # fmt: skip
        running.close()


def _kernel_searches(running: Kernel, crowd: Crowd, sizes: list[int], rows: int) -> None:
    asked = [*zip(crowd.questions, crowd.queries.tolist(), strict=True)]
    for size, name in [*((size, f"size/{size}") for size in sizes), (rows, None)]:
        def search(one: tuple[str, list[float]], name: str | None = name) -> None:
            running.mem_search(one[0], namespace=name, k=10, query_embedding=one[1])

        search(asked[0])
        found = times(search, asked[1:41])
        # The processor's time is the client's here.
        del found["cpu_p50_ms"]
        say("kernel: mem_search hybrid", rows=rows, scope=size, **found)


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("what", choices=("vectors", "index", "kernel"))
    words.add_argument("--rows", type=int, default=100_000)
    words.add_argument("--dir", type=Path, default=None, help="where the kernel's data lie meanwhile")
    arguments = words.parse_args()
    match arguments.what:
        case "vectors":
            vectors(arguments.rows)
        case "index":
            index(arguments.rows)
        case _:
            kernel(arguments.rows, arguments.dir)
    return 0


if __name__ == "__main__":
    sys.exit(main())
