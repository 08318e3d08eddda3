"""Retrieval through a real kernel, stage by stage and beside its peers: recall, tokens, milliseconds, what changed.

    .venv/bin/python -m tests.bench.retrieval [--data DIR] [--peers PREFIX] [--keep DIR] [--out FILE] [--svg FILE]

One private kernel with its default embedder takes both sets of `memos_tools.bench_sets`; `mem_search` is asked with all
stages, with stages left out, and by one retriever alone. Peers get the very texts that the kernel holds and vectors of the
same embedder (tests/bench/peer_recall.py; recall_peers.sh makes their environments); one that is not there is named.

`--keep` keeps the kernel's directory and the peers' vectors for the next run, which then embeds only what is new.
Nothing here fails on a number. Times are a blocking client's; the embedding of a query is also timed apart.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from tests.bench.retrieval_plot import plot

from memos_client import Kernel
from memos_drivers.embed.model import load
from memos_tools.bench import machine
from memos_tools.bench_measure import Measured, latencies, scratch
from memos_tools.bench_recall import (
    CUTS,
    Answer,
    Recall,
    ask,
    fill,
    headers_of,
    key_of,
    recall_of,
    recalls,
    tokens_in,
    updates,
    variants,
)
from memos_tools.bench_sets import LOADERS, Question, RecallSet, files_of

HERE: Final = Path(__file__).parent
DATA: Final = HERE.parents[2] / "shared" / "data"
PEERS: Final = {"bm25s": "words", "lancedb": "words and vectors", "mem0": "vectors", "memoryos": "vectors"}
"""Peer → what it ranks by."""
WAIT_S: Final = 3600
PEER_S: Final = 900
SHARES: Final = ("updates", "current above outdated", "both found", "outdated with at_time", "outdated with until")


class Vectors:
    """The default embedder in this process, each text once; what was embedded before may come from a file."""

    def __init__(self, file: Path | None) -> None:
        self._model = load({"kind": "minilm"})
        self._file = file
        self._known: dict[str, list[float]] = {}
        if file is not None and file.is_file():
            kept = json.loads(file.read_text(encoding="utf-8"))
            self._known = kept["vectors"] if kept["fingerprint"] == self._model.fingerprint else {}

    def of(self, texts: Sequence[str]) -> list[list[float]]:
        missing = sorted({text for text in texts if text not in self._known})
        if missing:
            for text, vector in zip(missing, self._model.embed(missing), strict=True):
                self._known[text] = [round(float(number), 7) for number in vector]
            if self._file is not None:
                self._file.write_text(json.dumps({"fingerprint": self._model.fingerprint, "vectors": self._known}))
        return [self._known[text] for text in texts]

    def timed(self, texts: Iterable[str]) -> list[int]:
        """Nanoseconds of one text at a time."""
        spent: list[int] = []
        for text in texts:
            began = time.perf_counter_ns()
            self._model.embed([text])
            spent.append(time.perf_counter_ns() - began)
        return spent


def units_of(kernel: Kernel, asked: Sequence[Question]) -> list[dict[str, Any]]:
    """The texts that the kernel holds, as it holds them."""
    found: list[dict[str, Any]] = []
    for namespace in dict.fromkeys(question.namespace for question in asked):
        for header in headers_of(kernel, namespace):
            content = kernel.mem_read(header.cube_id).content
            assert isinstance(content, str)
            found.append({"key": header.cube_id, "group": namespace, "text": content, "turn": key_of(header)})
    return found


def peer(
    name: str, prefix: str, given: Path, asked: Sequence[Question], held: dict[str, tuple[str, int]], parent: Path | None
) -> tuple[list[Answer], str]:
    """What a peer brings back, and its version with what it took; or nothing, and why. `held`: key → turn and tokens."""
    python = Path(f"{prefix}-{name}") / "bin" / "python"
    if not python.is_file():
        return [], f"no {python}: make it with tests/bench/recall_peers.sh"
    with scratch(parent) as folder:
        out = folder / "out.json"
        words = [str(python), str(HERE / "peer_recall.py"), name, str(given), str(out), str(folder)]
        try:
            done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=PEER_S)
        except subprocess.TimeoutExpired:
            return [], f"not done after {PEER_S} s"
        if not out.is_file():
            # What libraries complain about while they are taken down says nothing of the cause.
            said = done.stderr.partition("Exception ignored in")[0].strip().splitlines()
            return [], (said or [f"it ended with {done.returncode} and said nothing"])[-1][:200]
        found = json.loads(out.read_text(encoding="utf-8"))
    answers = [
        Answer(question, tuple(held[key][0] for key in keys), tuple(held[key][1] for key in keys), ns)
        for question, keys, ns in zip(asked, found["ranked"], found["ns"], strict=True)
    ]
    return answers, f"{found['version']}, built in {found['build_s']:.1f} s"


class Run:
    """What was measured of one set, as rows by chapter."""

    def __init__(self, options: argparse.Namespace, kernel: Kernel, vectors: Vectors) -> None:
        self._options = options
        self._kernel = kernel
        self._vectors = vectors
        self.chapters: dict[str, list[Measured]] = defaultdict(list)

    def whole(self, recall_set: RecallSet) -> None:
        asked = recall_set.questions
        self.chapters["times"] += fill(self._kernel, recall_set, WAIT_S)
        self._vectors.of([question.text for question in asked])
        ask(self._kernel, asked[:20])
        answers = ask(self._kernel, asked)
        self.chapters["recall"] += [found.row() for found in recalls(answers)]
        given = ask(self._kernel, asked, embed=lambda text: self._vectors.of([text])[0])
        self.chapters["times"] += [
            latencies("mem_search, k = 50", [answer.ns for answer in answers]),
            latencies("the same, the question's vector given", [answer.ns for answer in given]),
            latencies("embedding of a question, in this process", self._vectors.timed(q.text for q in asked[:200])),
        ]
        if recall_set.updates:
            self.chapters["updates"] += updates(self._kernel, recall_set.updates)

    def ablation(self, recall_set: RecallSet) -> None:
        for name, options in variants():
            answers = ask(self._kernel, recall_set.questions, options)
            self.chapters["ablation"].append(timed_row(recall_of(name, answers, (10,)), answers))

    def peers(self, recall_set: RecallSet) -> None:
        asked = recall_set.questions
        units = units_of(self._kernel, asked)
        held = {unit["key"]: (unit["turn"], tokens_in(unit["text"])) for unit in units}
        for unit, vector in zip(units, self._vectors.of([unit["text"] for unit in units]), strict=True):
            unit["vector"] = vector
        questions = [{"text": q.text, "group": q.namespace, "vector": self._vectors.of([q.text])[0]} for q in asked]
        with scratch(self._options.dir) as folder:
            given = (self._options.keep or folder) / f"given-{recall_set.name}.json"
            given.write_text(json.dumps({"units": units, "questions": questions}), encoding="utf-8")
            for name, by in PEERS.items():
                answers, note = peer(name, self._options.peers, given, asked, held, self._options.dir)
                if not answers:
                    print(f"{name} is left out: {note}", file=sys.stderr)
                    self.chapters["left out"].append(Measured(name, 0, more={"why": note}))
                    continue
                row = timed_row(recall_of(f"{name} ({by})", answers, (10,)), answers)
                self.chapters["peers"].append(Measured(row.name, row.count, more={**row.more, "note": note}))


def timed_row(found: Recall, answers: Sequence[Answer]) -> Measured:
    """Recall with the median of the milliseconds."""
    row = found.row()
    middle = latencies("", [answer.ns for answer in answers]).p50_us or 0
    return Measured(row.name.removeprefix("recall, "), row.count, more={**row.more, "p50_ms": round(middle / 1000, 2)})


# -- tables ------------------------------------------------------------------------------------------------------------


def recall_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "| what | questions | @5 | @10 (95 %) | @20 | @50 | tokens @10 | tokens @20 | p50 ms |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        shares = [f"{row[f'at_{cut}']:.3f}" for cut in CUTS]
        if "interval_10" in row:
            shares[1] += f" ({row['interval_10'][0]:.3f}–{row['interval_10'][1]:.3f})"
        name = row["name"].removeprefix("recall, ")
        tokens = f"{row['tokens_10']} | {row['tokens_20']}"
        lines.append(f"| {name} | {row['count']} | {' | '.join(shares)} | {tokens} | {row.get('p50_ms', '')} |")
    return lines


def times_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = ["| what | count | p50 ms | p95 ms | per s | seconds |", "|---|---|---|---|---|---|"]
    for row in rows:
        low, high = (f"{row[name] / 1000:.2f}" if name in row else "" for name in ("p50_us", "p95_us"))
        lines.append(f"| {row['name']} | {row['count']} | {low} | {high} | {row.get('per_s', '')} | {row.get('seconds', '')} |")
    return lines


def updates_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [f"| {' | '.join(SHARES)} |", "|---|---|---|---|---|"]
    keys = ("count", "current_above", "both_found", "outdated_with_at_time", "outdated_with_until")
    return [*lines, *(f"| {' | '.join(str(row[key]) for key in keys)} |" for row in rows)]


TABLES: Final[dict[str, tuple[str, Callable[[Sequence[dict[str, Any]]], list[str]]]]] = {
    "recall": ("mem_search", recall_table), "ablation": ("by stages", recall_table), "peers": ("peers", recall_table),
    "updates": ("facts that changed", updates_table), "times": ("times", times_table),
}  # fmt: skip


def page(found: dict[str, Any]) -> str:
    """Everything as Markdown."""
    m = found["machine"]
    lines = [f"{m['time'][:10]}, commit `{found['commit']}`: {m['processor']}, {m['cores']} cores, load before {m['load_1m']}."]
    for name, chapters in found["sets"].items():
        for chapter, rows in chapters.items():
            if chapter in TABLES:
                title, table = TABLES[chapter]
                lines += ["", f"**{name}: {title}**", "", *table(rows)]
            else:
                lines += ["", *(f"{name}: {row['name']} is left out: {row['why']}" for row in rows)]
    return "\n".join(lines) + "\n"


def main() -> None:
    p = argparse.ArgumentParser(description="Recall of mem_search by stages, beside its peers.")
    p.add_argument("--data", type=Path, default=DATA, help="folder with one folder a set")
    p.add_argument(
        "--peers", default=".cache/bench-peers", help="prefix of the peers' environments (default: .cache/bench-peers)"
    )
    p.add_argument("--only", default=",".join(LOADERS), help="sets, separated by commas")
    p.add_argument("--skip", default="", help="leave out whole, ablation or peers; what OUT.json holds of them stays")
    p.add_argument("--keep", type=Path, help="keep the kernel's data and the vectors here")
    p.add_argument("--dir", type=Path, help="where other data lies meanwhile")
    p.add_argument("--out", type=Path, default=Path(".cache/retrieval"), help="writes OUT.json and OUT.md")
    p.add_argument("--svg", type=Path, help="writes the plot")
    options = p.parse_args()
    out: Path = options.out.with_suffix(".json")
    # An end from outside must not leave the kernel behind.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(143))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False)
    found: dict[str, Any] = {"commit": commit.stdout.strip() or "unknown", "machine": machine(), "sets": {}}
    kept: dict[str, Any] = json.loads(out.read_text())["sets"] if options.skip and out.is_file() else {}
    with contextlib.ExitStack() as stack:
        folder: Path = options.keep or stack.enter_context(scratch(options.dir))
        folder.mkdir(parents=True, exist_ok=True)
        vectors = Vectors(options.keep and folder / "vectors.json")
        kernel = stack.enter_context(Kernel.spawn(folder / "data", args=("--log-level", "error")))
        for name in options.only.split(","):
            files = files_of(name, options.data)
            if not files:
                print(f"{name} is left out: no {LOADERS[name][0]} in {options.data.name}", file=sys.stderr)
                continue
            run = Run(options, kernel, vectors)
            chapters: dict[str, Any] = kept.get(name, {})
            recall_set = LOADERS[name][1](files)
            for chapter in (run.whole, run.ablation, run.peers):
                if chapter.__name__ in options.skip.split(","):
                    continue
                print(f"{name}: {chapter.__name__} …", file=sys.stderr, flush=True)
                chapter(recall_set)
                chapters |= {key: [row.to_json() for row in rows] for key, rows in run.chapters.items()}
                found["sets"][name] = {key: chapters[key] for key in (*TABLES, "left out") if key in chapters}
                # After each chapter, so that what was measured survives what comes next.
                out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
                options.out.with_suffix(".md").write_text(page(found))
    print(page(found))
    if options.svg is not None and "locomo" in found["sets"]:
        options.svg.write_text(plot(found["sets"]["locomo"]), encoding="utf-8")


if __name__ == "__main__":
    main()
