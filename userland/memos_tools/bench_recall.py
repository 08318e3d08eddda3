"""Benchmarks of recall: does mem_search bring back the turns that a question was made from?

Recall at k is the mean, over questions, of the share of a question's evidence among the first k hits. A hit is what
mem_search returns: where a long turn was read as several passages, each of them takes a place. Intervals are 95 %,
by drawing questions anew. Tokens are words × 1.3. All of this is retrieval only: whether an answer can be made from
the hits is another question. What is asked and what counts as evidence: `bench_sets`.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from memos_client import CubeHeader, Kernel, MemNoModel, SearchHit
from memos_syscalls.messages import SEARCH_STAGES

from .bench_measure import Measured, latencies, private, rate, settle
from .bench_sets import Question, RecallSet, locomo_set

CUTS: Final = (5, 10, 20, 50)
TOKENS_PER_WORD: Final = 1.3
DRAWS: Final = 1000
SEED: Final = 20261123
Embed = Callable[[str], Sequence[float]]


@dataclass(frozen=True)
class Answer:
    """What one question brought back."""

    question: Question
    found: tuple[str, ...]
    tokens: tuple[int, ...]
    """Of each hit."""
    ns: int

    def of_turns(self) -> Answer:
        """The same with each turn once, which holds the tokens of all its passages."""
        tokens: dict[str, int] = {}
        for key, count in zip(self.found, self.tokens, strict=True):
            tokens[key] = tokens.get(key, 0) + count
        return Answer(self.question, tuple(tokens), tuple(tokens.values()), self.ns)

    def recall(self, cut: int) -> float:
        return len(self.question.evidence & set(self.found[:cut])) / len(self.question.evidence)


# -- asking ------------------------------------------------------------------------------------------------------------


def fill(kernel: Kernel, recall_set: RecallSet, wait_s: float) -> list[Measured]:
    """Ingest a set, and wait until its vectors are there. What is there already costs nothing."""
    began = time.perf_counter()
    turns = 0
    with tempfile.TemporaryDirectory(prefix="memos-bench-") as folder:
        for source in recall_set.sources:
            path = Path(folder) / source.name
            path.write_bytes(source.data)
            turns += kernel.ingest(path, source.namespace, source.format).turns
    rows = [rate(f"{recall_set.name}: ingest", turns, time.perf_counter() - began)]
    settle(kernel, "lexical", kernel.sys_info().head_offset, wait_s)
    waited = settle(kernel, "dense", kernel.sys_info().head_offset, wait_s) if _embeds(kernel) else 0.0
    rows.append(Measured(f"{recall_set.name}: vectors ready after the ingest", turns, more={"seconds": round(waited, 1)}))
    return rows


def _embeds(kernel: Kernel) -> bool:
    """Whether vectors will ever come; the question also starts the model."""
    try:
        kernel.mem_search("ready", k=1, mode="dense")
    except MemNoModel:
        return False
    return True


def key_of(header: CubeHeader) -> str:
    """The turn that a cube was made from, as its file calls it."""
    return str(header.metadata.get("dia_id") or header.name or header.cube_id)


def tokens_in(content: str | bytes) -> int:
    """About as many as a model's tokenizer makes of English."""
    words = len(content.split())
    return round(words * TOKENS_PER_WORD)


def ask(
    kernel: Kernel, questions: Iterable[Question], options: Mapping[str, Any] | None = None, embed: Embed | None = None
) -> list[Answer]:
    """Each question once, by a blocking client, with further arguments for mem_search; with vectors from `embed` if given."""
    answers: list[Answer] = []
    for question in questions:
        more = dict(options or {})
        if embed is not None:
            more["query_embedding"] = embed(question.text)
        began = time.perf_counter_ns()
        hits: Sequence[SearchHit] = kernel.mem_search(question.text, namespace=question.namespace, k=max(CUTS), **more).hits
        ns = time.perf_counter_ns() - began
        found = tuple(key_of(hit.header) for hit in hits if hit.header is not None)
        answers.append(Answer(question, found, tuple(tokens_in(hit.content) for hit in hits), ns))
    return answers


def variants() -> list[tuple[str, dict[str, Any]]]:
    """Ways to search whose recall is compared: all stages, one left out at a time, one added at a time, one retriever alone."""
    found: list[tuple[str, dict[str, Any]]] = [("all stages", {})]
    found += [(f"without {stage}", {"without": [stage]}) for stage in SEARCH_STAGES]
    for count in range(len(SEARCH_STAGES)):
        added = "no stages" if count == 0 else "only " + ", ".join(SEARCH_STAGES[:count])
        found.append((added, {"without": list(SEARCH_STAGES[count:])}))
    return [*found, ("words alone (mode lexical)", {"mode": "lexical"}), ("vectors alone (mode dense)", {"mode": "dense"})]


# -- what it comes to --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recall:
    """The recall of some questions at each cut, with intervals, and the tokens that so many hits hold."""

    name: str
    count: int
    at: Mapping[int, float]
    low: Mapping[int, float] = field(default_factory=dict[int, float])
    high: Mapping[int, float] = field(default_factory=dict[int, float])
    tokens: Mapping[int, float] = field(default_factory=dict[int, float])

    def row(self) -> Measured:
        more: dict[str, Any] = {f"at_{cut}": round(value, 4) for cut, value in self.at.items()}
        for cut in self.low:
            more[f"interval_{cut}"] = [round(self.low[cut], 4), round(self.high[cut], 4)]
        more |= {f"tokens_{cut}": round(value) for cut, value in self.tokens.items()}
        return Measured(f"recall, {self.name}", self.count, more=more)


def interval(values: Sequence[float], draws: int = DRAWS) -> tuple[float, float]:
    """The middle 95 % of the means of as many values, drawn with replacement; always the same for the same values."""
    draw = random.Random(SEED)
    means = sorted(sum(draw.choices(values, k=len(values))) / len(values) for _ in range(draws))
    return means[int(draws * 0.025)], means[int(draws * 0.975)]


def recall_of(name: str, answers: Sequence[Answer], intervals: Sequence[int] = CUTS) -> Recall:
    """Over these answers, of which there is at least one."""
    by_cut = {cut: [answer.recall(cut) for answer in answers] for cut in CUTS}
    spans = {cut: interval(by_cut[cut]) for cut in intervals}
    return Recall(
        name,
        len(answers),
        {cut: sum(values) / len(values) for cut, values in by_cut.items()},
        {cut: span[0] for cut, span in spans.items()},
        {cut: span[1] for cut, span in spans.items()},
        {cut: sum(sum(answer.tokens[:cut]) for answer in answers) / len(answers) for cut in CUTS},
    )


def recalls(answers: Sequence[Answer]) -> list[Recall]:
    """Over all, then by namespace where there are several, then by kind of question.

    Where hits are passages of turns, also over all with k counting distinct turns.
    """
    groups: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        groups[f"conversation {answer.question.namespace.rpartition('/')[2]}"].append(answer)
    if len(groups) == 1:
        groups.clear()
    kinds: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        kinds[answer.question.kind].append(answer)
    named = [*sorted(groups.items()), *sorted(kinds.items())]
    turns = [answer.of_turns() for answer in answers]
    if any(len(turn.found) < len(answer.found) for turn, answer in zip(turns, answers, strict=True)):
        named.insert(0, ("all, k distinct turns", turns))
    return [recall_of("all", answers), *(recall_of(name, of_name) for name, of_name in named)]


def updates(kernel: Kernel, asked: Sequence[Question]) -> list[Measured]:
    """Of facts that changed: is the current one above the outdated one, and is the outdated one there in the past?

    The past is asked for in both of its senses: `at_time` just before the current fact was recorded, `until` just before
    it began to hold. There the outdated fact has to be among the first 10 hits, and the current one not at all.
    """
    headers = {key_of(header): header for space in {q.namespace for q in asked} for header in headers_of(kernel, space)}
    above = both = 0
    past = {"at_time": 0, "until": 0}
    for question in asked:
        found = ask(kernel, [question])[0].found
        above += _first(found, question.evidence) < _first(found, question.outdated)
        both += bool(question.evidence & set(found)) and bool(question.outdated & set(found))
        current = [headers[key] for key in question.evidence if key in headers]
        moments = {
            "at_time": min(header.created_at for header in current) - 1,
            "until": min(header.valid_from or 0 for header in current) - 1,
        }
        for how, moment in moments.items():
            then = ask(kernel, [question], {how: moment})[0].found
            past[how] += bool(question.outdated & set(then[:10])) and not question.evidence & set(then)
    count = max(1, len(asked))
    shares = {"current_above": above / count, "both_found": both / count}
    shares |= {f"outdated_with_{how}": good / count for how, good in past.items()}
    return [Measured("knowledge updates", len(asked), more={name: round(share, 4) for name, share in shares.items()})]


def _first(found: Sequence[str], wanted: frozenset[str]) -> int:
    """The best place of any of the wanted; behind everything where there is none."""
    return next((place for place, key in enumerate(found) if key in wanted), len(found))


def headers_of(kernel: Kernel, namespace: str) -> Generator[CubeHeader]:
    cursor: str | None = None
    while True:
        page = kernel.mem_list(namespace=namespace, limit=1000, cursor=cursor)
        yield from page
        if (cursor := page.next_cursor) is None:
            return


# -- the workloads -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def kernel_for(parent: Path | None, socket: Path | None, args: Sequence[str]) -> Generator[Kernel]:
    """A running kernel, or one of the benchmark's own."""
    if socket is None:
        with private(parent, ("--log-level", "error", *args)) as kernel:
            yield kernel
    else:
        with Kernel.connect(socket) as kernel:
            yield kernel


def measure(kernel: Kernel, recall_set: RecallSet, wait_s: float, ablate: bool = False) -> list[Measured]:
    """Ingest, ask, and say what came back."""
    rows = fill(kernel, recall_set, wait_s)
    answers = ask(kernel, recall_set.questions)
    rows.append(latencies("mem_search k=50, vector of the question included", [answer.ns for answer in answers]))
    rows += [found.row() for found in recalls(answers)]
    if recall_set.updates:
        rows += updates(kernel, recall_set.updates)
    if ablate:
        rows += [recall_of(name, ask(kernel, recall_set.questions, more), ()).row() for name, more in variants()[1:]]
    return rows


def locomo(parent: Path | None, files: Sequence[Path], wait_s: float, args: Sequence[str]) -> list[Measured]:
    """Evidence recall in LoCoMo conversations, with a kernel of the benchmark's own."""
    with kernel_for(parent, None, args) as kernel:
        return measure(kernel, locomo_set(files), wait_s)
