"""Facts in LoRA adapters: how well they are known, and what else changed.

    .venv/bin/python -m tests.bench.lora OUT [--model NAME] [--sets counterfact:0,1,2,3,4 personal] [--choose] [--systems …]

Each set is 20 facts and one adapter. `counterfact:K` takes items of ../shared/data that no setting was chosen on (odd ones;
even ones with --choose); `personal` asks questions of our own (lora_personal.json) in chat. Facts are found in the bare
statements by the product's own rules; test paraphrases, locality prompts and questions are never trained on.

Systems: `base`; `right`, `all`, `bm25` (the right fact, all facts, or the three that BM25 finds, as text in the
context); `bare` (next-token LoRA on the statements); `ours`; `gated` (ours, where the prompt names a subject). Every set's
answers are a JSON file in OUT, kept when it is there; the table over all files in OUT is printed at the end.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from tests.steps import done

from memos_drivers.lm.models import load
from memos_drivers.lm.tokens import TokenLayout
from memos_drivers.parametric import train
from memos_drivers.parametric.adapter import Adapter, applied
from memos_drivers.parametric.facts import Fact, Text, facts_of
from memos_drivers.parametric.forms import Form, forms_of
from memos_drivers.parametric.gate import Gate
from memos_drivers.parametric.material import Material, planned
from memos_drivers.parametric.probes import Ask, Heard, Reader
from memos_drivers.parametric.setting import Spec
from memos_drivers.parametric.teacher import Row, Student, Words
from memos_drivers.parametric.trained import Modules

DATA: Final = Path(__file__).parents[3] / "shared" / "data"
PERSONAL: Final = Path(__file__).with_name("lora_personal.json")
FACTS: Final = 20
ANSWER_TOKENS: Final = 24
SYSTEMS: Final = ("base", "right", "all", "bm25", "bare", "ours", "gated")
OTHERS: Final = (
    ("born", "{} was born in the city of"), ("language", "The language that {} uses every day is"),
    ("work", "For a living, {} is employed as a"), ("country", "The country in which one finds {} is"),
    ("friend", "One of the best friends of {} was"), ("colour", "The colour that goes best with {} is"),
)  # fmt: skip
"""Other relations of a subject. Those that share a word with the statement's own relation are not asked."""
ALIKE: Final = {
    "born": r"born|birth|native|citizen|from|origin|creat|found|city|located|died|death|capital",
    "language": r"language|tongue|speak|speech|native|wrote|written",
    "work": r"work|job|profession|occupation|employ|career|play|position|expert|speciali|field|domain",
    "country": r"countr|located|citizen|nation|continent|belong|capital|from|origin|creat|found|develop|produc|find|situated",
    "friend": r"friend|named|called", "colour": r"colou?r",
}  # fmt: skip


class Item(NamedTuple):
    """One fact to be learnt, and what is asked about it."""

    statement: str
    prompt: str
    new: str
    subject: str
    rephrased: str
    true: str
    near: str
    near_true: str
    answers: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()


def counterfact(number: int, choose: bool) -> list[Item]:
    """The number-th sample of 20; samples do not overlap."""
    everything = json.loads((DATA / "counterfact" / "counterfact-2000.json").read_text("utf-8"))
    half = everything[0 if choose else 1 :: 2]
    random.Random(7).shuffle(half)
    return [
        Item(
            f"{one['prompt']} {one['target_new']}.", one["prompt"], one["target_new"], one["subject"], one["rephrase_prompt"],
            one["ground_truth"], one["locality_prompt"], one["locality_ground_truth"],
        )
        for one in half[FACTS * number : FACTS * (number + 1)]
    ]  # fmt: skip


def personal(choose: bool) -> list[Item]:
    found = json.loads(PERSONAL.read_text("utf-8"))["choose" if choose else "final"]["facts"]
    return [
        Item(one["text"], "", one["answers"][0], "", "", "", "", "", tuple(one["answers"]), tuple(one["questions"]))
        for one in found
    ]  # fmt: skip


def neutral() -> list[str]:
    return list(json.loads(PERSONAL.read_text("utf-8"))["neutral"])


def bm25(texts: Sequence[str], query: str, count: int = 3) -> list[str]:
    """The texts that share the rarest words with the query, best first."""
    split = [re.findall(r"\w+", text.lower()) for text in texts]
    mean = sum(map(len, split)) / len(split)
    seen = Counter(word for words in split for word in set(words))

    def score(words: list[str]) -> float:
        found, total = Counter(words), 0.0
        for word in set(re.findall(r"\w+", query.lower())):
            rare = math.log(1 + (len(split) - seen[word] + 0.5) / (seen[word] + 0.5))
            total += rare * found[word] * 2.2 / (found[word] + 1.2 * (0.25 + 0.75 * len(words) / mean))
        return total

    order = sorted(range(len(texts)), key=lambda n: (-score(split[n]), n))
    return [texts[n] for n in order[:count]]


class Lab:
    """A model, and what can be asked of it under a system."""

    def __init__(self, name: str, gate: bool = True) -> None:
        self.gate = gate
        cache = Path(f"/tmp/memos-models-{__import__('os').getuid()}")
        loaded = load(name, cache_dir=cache, dtype="float32")
        self.model: Any = loaded.model
        self.tokenizer: Any = loaded.tokenizer
        self.layout = TokenLayout(loaded.tokenizer)
        self.words = Words(self.layout)
        self.reader = Reader(loaded.model, self.words)
        ends = {loaded.tokenizer.eos_token_id, *loaded.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])}
        self.ends = frozenset(int(end) for end in ends if end is not None)

    def raw(self, context: Sequence[str], prompt: str, answer: str) -> Ask:
        ids, wanted = self.words.answer(prompt, answer, False)
        before = [token for text in context for token in self.layout.memory(text)]
        return Ask(tuple([*self.words.lead, *before] if before else ()), tuple(ids), tuple(wanted))

    def chat(self, context: Sequence[str], question: str) -> Ask:
        before = [token for text in context for token in self.layout.memory(text)]
        return Ask((*self.words.prefix, *before), tuple(self.words.chat(question)), ())

    def contains(self, ids: Sequence[int], answers: Sequence[str]) -> bool:
        said = self.tokenizer.decode(list(ids)).lower()
        return any(answer.lower() in said for answer in answers)


class System(NamedTuple):
    """What stands in the context for an item and a prompt, and when an adapter acts."""

    name: str
    context: Callable[[Item, str], list[str]]
    acting: Callable[[], AbstractContextManager[None]]
    open: Callable[[str], bool]


def _others(item: Item) -> list[str]:
    relation = item.prompt.replace(item.subject, " ").lower()
    return [form.format(item.subject) for name, form in OTHERS if not re.search(ALIKE[name], relation)][:3]


def edits(lab: Lab, system: System, items: Sequence[Item]) -> dict[str, Any]:
    """CounterFact's measures of one system, item by item; first tokens are compared with the base's afterwards."""
    groups: dict[str, list[tuple[Item, str, str]]] = {
        "efficacy": [(i, i.prompt, i.new) for i in items], "efficacy_true": [(i, i.prompt, i.true) for i in items],
        "para": [(i, i.rephrased, i.new) for i in items], "para_true": [(i, i.rephrased, i.true) for i in items],
        "near": [(i, i.near, i.new) for i in items], "near_true": [(i, i.near, i.near_true) for i in items],
        "others": [(i, prompt, i.new) for i in items for prompt in _others(i)],
    }  # fmt: skip
    flat = [(name, item, prompt, wanted) for name, rows in groups.items() for item, prompt, wanted in rows]
    on, off = list[tuple[int, Ask]](), list[tuple[int, Ask]]()
    for number, (_name, item, prompt, wanted) in enumerate(flat):
        ask = lab.raw(system.context(item, prompt), prompt, wanted)
        (on if system.open(prompt) else off).append((number, ask))
    heard: dict[int, Heard] = {}
    for side, acting in ((on, system.acting), (off, nullcontext)):
        found = done(lab.reader.hear([ask for _n, ask in side], acting)) if side else []
        heard.update(zip([n for n, _ask in side], found, strict=True))
    by: dict[str, list[Heard]] = {name: [] for name in groups}
    for number, (name, *_rest) in enumerate(flat):
        by[name].append(heard[number])
    closed = [not system.open(item.rephrased) for item in items]
    return {
        "efficacy_g": [h.greedy for h in by["efficacy"]],
        "efficacy_P": [a.likely > b.likely for a, b in zip(by["efficacy"], by["efficacy_true"], strict=True)],
        "paraphrase_g": [h.greedy for h in by["para"]],
        "paraphrase_P": [a.likely > b.likely for a, b in zip(by["para"], by["para_true"], strict=True)],
        "locality_P": [b.likely > a.likely for a, b in zip(by["near"], by["near_true"], strict=True)],
        "near_first": [h.first for h in by["near"]], "near_is_new": [h.greedy for h in by["near"]],
        "others_first": [h.first for h in by["others"]], "wrongly_off": closed,
    }  # fmt: skip


def questions(lab: Lab, system: System, items: Sequence[Item]) -> dict[str, Any]:
    """Personal questions of one system, in chat."""
    flat = [(item, question) for item in items for question in item.questions]
    on, off = list[int](), list[int]()
    asked = [lab.chat(system.context(item, question), question) for item, question in flat]
    for number, (_item, question) in enumerate(flat):
        (on if system.open(question) else off).append(number)
    said: dict[int, list[int]] = {}
    for side, acting in ((on, system.acting), (off, nullcontext)):
        found = done(lab.reader.say([asked[n] for n in side], ANSWER_TOKENS, lab.ends, acting)) if side else []
        said.update(zip(side, found, strict=True))
    others = [[a for other in items if other is not item for a in other.answers] for item, _question in flat]
    right = [lab.contains(said[n], item.answers) for n, (item, _q) in enumerate(flat)]
    return {
        "question": right,
        "other_answer": [not right[n] and lab.contains(said[n], others[n]) for n in range(len(flat))],
        "wrongly_off_q": [not system.open(question) for _item, question in flat],
        "said": [lab.tokenizer.decode(said[n]) for n in range(len(flat))],
    }


def _always(_prompt: str) -> bool:
    return True


def _plain(text: str) -> str:
    return re.sub(r"\W+", " ", text.lower()).strip()


def run_set(
    lab: Lab, name: str, choose: bool, systems: Sequence[str], spec: Spec, file: Path, say: Callable[[str], None]
) -> None:
    """The systems of one set that are not in its file yet, each written as soon as it is measured."""
    kind, _, number = name.partition(":")
    items = counterfact(int(number), choose) if kind == "counterfact" else personal(choose)
    statements = [item.statement for item in items]
    facts = facts_of([Text(text) for text in statements]).facts
    result: dict[str, Any] = {"set": name, "kind": kind, "choose": choose, "spec": spec._asdict(), "systems": {}}
    if file.exists():
        result = json.loads(file.read_text("utf-8"))
    result["facts"] = [fact._asdict() for fact in facts]
    contexts: dict[str, Callable[[Item, str], list[str]]] = {
        "right": lambda item, _prompt: [item.statement], "all": lambda _item, _prompt: statements,
        "bm25": lambda _item, prompt: bm25(statements, prompt),
    }  # fmt: skip
    measure = edits if kind == "counterfact" else questions
    adapters: dict[str, Any] = {}
    trained = {_plain(form.prompt) for form in forms_of(facts, spec.seed)}
    result["seen"] = [_plain(question) in trained for item in items for question in item.questions]
    for system in (one for one in systems if one not in result["systems"]):
        began = time.perf_counter()
        acting: Callable[[], AbstractContextManager[None]] = nullcontext
        opened: Callable[[str], bool] = _always
        source = "ours" if system == "gated" else system
        if source in ("ours", "bare"):
            if source not in adapters:
                adapters[source] = _trained(lab, facts, spec, source, say)
            acting = adapters[source]["acting"]
            if system == "gated":
                gate = Gate([fact.subject for fact in facts])
                opened = gate.names
        context = contexts.get(system, lambda _item, _prompt: [])
        measured = measure(lab, System(system, context, acting, opened), items)
        if source in adapters:
            measured |= adapters[source]["said"]
            if system != "gated":
                measured["kl"] = done(lab.reader.apart(neutral(), acting))
                result.setdefault("kl", {})[system] = measured["kl"]
        elif kind == "counterfact" and system == "base":
            measured["kl"] = 0.0
        measured["eval_seconds"] = time.perf_counter() - began
        result["systems"][system] = measured
        file.write_text(json.dumps(result, ensure_ascii=False, indent=1), "utf-8")
        say(f"{name} {system}: {short(result, system)}")


def _trained(lab: Lab, facts: Sequence[Fact], spec: Spec, source: str, say: Callable[[str], None]) -> dict[str, Any]:
    began = time.perf_counter()
    last = [0.0]

    def progress(share: float, what: str) -> None:
        if time.perf_counter() - last[0] > 30:
            last[0] = time.perf_counter()
            say(f"  {source} {share:.2f} {what} after {last[0] - began:.0f} s")

    if source == "bare":
        modules, alpha, steps = bare(lab, facts)
        scores: dict[str, Any] = {}
        dropped: list[Any] = []
    elif not lab.gate:
        student = Student(lab.model, lab.words)
        modules, steps = done(train.learn(student, facts, spec, [], progress))
        alpha, scores, dropped = spec.alpha, {}, []
    else:
        made = done(train.distil(lab.model, lab.layout, facts, spec, [], progress))
        modules, alpha, scores, dropped, steps = made.modules, made.alpha, made.scores, made.dropped, made.steps
    said = {"seconds": time.perf_counter() - began, "scores": scores, "dropped": dropped, "steps": steps}
    adapter = Adapter(modules, alpha)
    return {"acting": lambda: applied(lab.model, [(adapter, 1.0)]), "said": said}


def bare(lab: Lab, facts: Sequence[Fact]) -> tuple[Modules, float, int]:
    """Next-token training on the statements and nothing else: what one would do first."""
    spec = Spec(rate=8e-4, steps=30, positives=10, negatives=(), chat=0.0, alpha=32.0, aimed=False, known=0.0)
    student = Student(lab.model, lab.words)
    forms = [Form("", fact.statement, False, number, "bare") for number, fact in enumerate(facts)]
    positives = list[Row]()
    for form in forms:
        ids = (*lab.words.lead, *lab.words.text(form.answer))
        positives.append(Row(ids, False, tuple(range(len(ids) - 1)), ids[1:], (1.0,) * (len(ids) - 1), -1))
    stock = Material(positives, {n: ({"bare": [n]}, {}) for n in range(len(forms))}, [], {})
    trained, steps = done(train.fit(student, stock, {}, planned(stock, spec), spec, lambda _share, _said: None))
    modules = {name: (a.detach(), b.detach()) for name, (a, b) in trained.modules.items()}
    return modules, spec.alpha, steps


# -- numbers ----------------------------------------------------------------------------------------------------------


def flags(result: dict[str, Any], system: str) -> dict[str, list[bool]]:
    """Every measure of a system as yes and no, item by item."""
    mine, base = result["systems"][system], result["systems"].get("base")
    keys = ("efficacy_g", "efficacy_P", "paraphrase_g", "paraphrase_P", "locality_P", "question", "other_answer")
    found = {key: mine[key] for key in keys if key in mine}
    if "question" in found:
        # A question that the rules also thought of was trained on, and does not count.
        found = {key: [v for v, seen in zip(values, result["seen"], strict=True) if not seen] for key, values in found.items()}
    if system == "gated":
        found |= {key: mine[key] for key in ("wrongly_off", "wrongly_off_q") if key in mine}
    if base and "near_first" in mine:
        found["same1"] = [a == b for a, b in zip(mine["near_first"], base["near_first"], strict=True)]
        found["leak"] = [a and not b for a, b in zip(mine["near_is_new"], base["near_is_new"], strict=True)]
        found["others"] = [a == b for a, b in zip(mine["others_first"], base["others_first"], strict=True)]
    return found


def wilson(right: int, count: int) -> tuple[float, float]:
    """95 % interval of a share."""
    if not count:
        return 0.0, 1.0
    z, p = 1.96, right / count
    middle = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def short(result: dict[str, Any], system: str) -> str:
    parts = [f"{key} {100 * sum(v) / max(1, len(v)):.0f}" for key, v in flags(result, system).items()]
    mine = result["systems"][system]
    return " ".join([*parts, *(f"{key} {mine[key]:.4g}" for key in ("kl", "seconds", "steps") if key in mine)])


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown: one table for edits, one for questions; shares with their 95 % intervals."""
    lines: list[str] = []
    edit = ("efficacy_g", "efficacy_P", "paraphrase_g", "paraphrase_P", "locality_P", "same1", "leak", "others", "wrongly_off")
    columns = {"counterfact": edit, "personal": ("question", "other_answer", "wrongly_off_q")}
    for kind, keys in columns.items():
        of_kind = [result for result in results if result["kind"] == kind]
        if not of_kind:
            continue
        lines += [f"| {kind} | {' | '.join(keys)} | KL | s |", "|---" * (len(keys) + 3) + "|"]
        for system in SYSTEMS:
            having = [result for result in of_kind if system in result["systems"]]
            if not having:
                continue
            merged: dict[str, list[bool]] = {}
            for result in having:
                for key, values in flags(result, system).items():
                    merged.setdefault(key, []).extend(values)
            cells: list[str] = []
            for key in keys:
                values = merged.get(key, [])
                low, high = wilson(sum(values), len(values))
                cells.append(f"{100 * sum(values) / len(values):.1f} [{100 * low:.0f}–{100 * high:.0f}]" if values else "–")
            for key, form in (("kl", "{:.4f}"), ("seconds", "{:.0f}")):
                numbers = [r["systems"][system][key] for r in having if key in r["systems"][system]]
                cells.append(form.format(sum(numbers) / len(numbers)) if numbers else "–")
            lines.append(f"| {system} (n={len(having)} sets) | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    p = argparse.ArgumentParser(description="Measure distilled adapters.")
    p.add_argument("out", type=Path)
    p.add_argument("--model", default="smollm2")
    p.add_argument("--sets", nargs="*", default=[*(f"counterfact:{n}" for n in range(5)), "personal"])
    p.add_argument("--systems", default=",".join(SYSTEMS))
    p.add_argument("--choose", action="store_true", help="samples for choosing settings, not for reporting")
    p.add_argument("--no-gate", action="store_true", help="no commit gate: nothing is examined, dropped or repeated")
    p.add_argument("--spec", default="{}", help="fields of the Spec, as JSON")
    p.add_argument("--threads", type=int, default=1)
    arguments = p.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(arguments.spec).items()}
    spec = Spec(**given)
    systems = arguments.systems.split(",")
    lab: Lab | None = None
    for name in arguments.sets:
        lab = lab or Lab(arguments.model, not arguments.no_gate)
        file = arguments.out / f"{name.replace(':', '-')}.json"
        run_set(lab, name, arguments.choose, systems, spec, file, lambda text: print(text, file=sys.stderr, flush=True))
    print(table([json.loads(file.read_text("utf-8")) for file in sorted(arguments.out.glob("*.json"))]))


if __name__ == "__main__":
    main()
