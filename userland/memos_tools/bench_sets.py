"""The sets that recall is measured on: files to ingest, and questions about them with the turns that hold the answers.

- LoCoMo: one conversation a file and a namespace each. Questions without evidence do not count; evidence strings may
  hold several ids; ids that name no turn are left out.
- LongMemEval: the sessions of all questions, pooled into one namespace and read in the order of their dates, one
  source each. The unit is a turn; the evidence is the turns that are marked `has_answer`.

Nothing of these sets lies in the repository: their licences vary.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

CATEGORIES: Final = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop", 5: "adversarial"}
"""What LoCoMo's numbers stand for."""
UPDATE: Final = "knowledge-update"
"""LongMemEval's type of question whose answer changed from one session to a later one."""
_IDS: Final = re.compile(r"[;\s,]+")
_SESSION: Final = re.compile(r"session_\d+")


@dataclass(frozen=True)
class Question:
    """What is asked, where, and which turns hold the answer."""

    text: str
    kind: str
    namespace: str
    evidence: frozenset[str]
    outdated: frozenset[str] = frozenset()
    """Turns that held the answer until those of `evidence` were said; both are evidence of a knowledge update."""


@dataclass(frozen=True)
class Source:
    """A file to ingest."""

    name: str
    format: str
    namespace: str
    data: bytes


@dataclass(frozen=True)
class RecallSet:
    """Files, in the order in which they are read, and questions about them."""

    name: str
    sources: Sequence[Source]
    questions: Sequence[Question]
    updates: Sequence[Question] = ()
    """The questions whose answer changed: `evidence` is current, `outdated` is not."""


def evidence_of(question: Mapping[str, Any], turns: frozenset[str]) -> frozenset[str]:
    """The turns that a question's evidence names."""
    named = question.get("evidence") or []
    return frozenset(turn for text in named for turn in _IDS.split(str(text)) if turn in turns)


def locomo_set(files: Sequence[Path], root: str = "locomo") -> RecallSet:
    """Conversations in LoCoMo's format."""
    sources: list[Source] = []
    questions: list[Question] = []
    for file in files:
        data = file.read_bytes()
        whole = json.loads(data)
        talk: dict[str, Any] = whole["conversation"]
        sessions = [turns for name, turns in talk.items() if _SESSION.fullmatch(name)]
        known = frozenset(str(turn["dia_id"]) for turns in sessions for turn in turns)
        namespace = f"{root}/{file.stem}"
        sources.append(Source(file.name, "locomo", namespace, data))
        for asked in whole["qa"]:
            if wanted := evidence_of(asked, known):
                kind = CATEGORIES.get(asked.get("category"), f"category {asked.get('category')}")
                questions.append(Question(asked["question"], kind, namespace, wanted))
    return RecallSet("locomo", sources, questions)


def session_time(text: str) -> str:
    """RFC 3339 of a date such as `2023/04/11 (Tue) 07:47`, taken as UTC."""
    day, _, rest = text.partition(" ")
    clock = rest.rpartition(" ")[2] or "00:00"
    return dt.datetime.strptime(f"{day} {clock}", "%Y/%m/%d %H:%M").replace(tzinfo=dt.UTC).isoformat()


def longmemeval_set(files: Sequence[Path], namespace: str = "longmemeval") -> RecallSet:
    """All sessions in one haystack; a session that several questions share is there once."""
    sessions: dict[str, tuple[str, list[dict[str, Any]]]] = {}
    questions: list[Question] = []
    updates: list[Question] = []
    for asked in (asked for file in files for asked in json.loads(file.read_bytes())):
        answers: list[tuple[str, frozenset[str]]] = []
        listed = zip(asked["haystack_session_ids"], asked["haystack_dates"], asked["haystack_sessions"], strict=True)
        for name, date, turns in listed:
            sessions[name] = (session_time(date), turns)
            marked = frozenset(f"{name}:{place}" for place, turn in enumerate(turns, 1) if turn.get("has_answer"))
            if marked:
                answers.append((session_time(date), marked))
        if not answers:
            continue
        kind = asked["question_type"]
        questions.append(Question(asked["question"], kind, namespace, frozenset().union(*(marked for _, marked in answers))))
        if kind == UPDATE and len(answers) > 1:
            *old, (_, current) = sorted(answers, key=lambda answer: answer[0])
            outdated = frozenset[str]().union(*(marked for _, marked in old))
            updates.append(Question(asked["question"], kind, namespace, current, outdated))
    ordered = sorted(sessions.items(), key=lambda item: (item[1][0], item[0]))
    return RecallSet("longmemeval", [_session(namespace, name, *of) for name, of in ordered], questions, updates)


def _session(namespace: str, name: str, date: str, turns: list[dict[str, Any]]) -> Source:
    listed = [
        {"role": turn["role"], "content": turn["content"], "id": f"{name}:{place}"} for place, turn in enumerate(turns, 1)
    ]
    text = json.dumps({"sessions": [{"date": date, "turns": listed}]}, ensure_ascii=False)
    return Source(f"{name}.json", "chat-json", namespace, text.encode())


LOADERS: Final[dict[str, tuple[str, Callable[[Sequence[Path]], RecallSet]]]] = {
    "locomo": ("conv-*.json", locomo_set), "longmemeval": ("oracle-*.json", longmemeval_set),
}  # fmt: skip
"""Set → how its files are called, and what reads them."""


def files_of(name: str, data: Path) -> list[Path]:
    """The files of a set below a folder with one folder a set, or in that folder itself."""
    pattern, _ = LOADERS[name]
    return sorted((data / name).glob(pattern)) or sorted(data.glob(pattern))
