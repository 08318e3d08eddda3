"""An adapter's knowledge in its model's words: what it says of its facts that the model without it does not.

    each fact's statement is begun; the model with the adapter goes on    → the words that might be known
    the fact's other probes are answered                                  → how many answers hold these words
    the model without the adapter goes on                                 → the same words are its own, and left out

The model may go on and on. What counts is the longest beginning of what it says that half of the answers hold which hold its
first word; without such an answer, the first clause as it stands. Confidence, in percent, is the share of all probes that
agree (the statement among them) times the mean probability of the tokens that are written down.

`right` tells of each probe whether it is answered with its fact's object.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Generator, Sequence
from contextlib import nullcontext
from typing import Final, NamedTuple

from memos_drivers.parametric.facts import Fact
from memos_drivers.parametric.forms import Probe
from memos_drivers.parametric.probes import ANSWER_TOKENS, Acting, Reader
from memos_drivers.parametric.taught import Taught
from memos_drivers.parametric.teacher import joined

SAID_TOKENS: Final = 24
SAID_WORDS_MAX: Final = 12
_WORD: Final = re.compile(r"\w+(?:['’.-]\w+)*")
_CLAUSE: Final = re.compile(r"[\n;:!?]|[.,](?=\s|$)")
Decode = Callable[[Sequence[int]], str]


class Said(NamedTuple):
    """One statement: its text, how sure the adapter is of it, and how many of its probes agree."""

    text: str
    confidence: int
    probes: int
    agree: int


def verbalise(
    reader: Reader, decode: Decode, known: Taught, acting: Acting, progress: Callable[[float, str], None]
) -> Generator[None, None, list[Said]]:
    """Statements, in the order of the facts."""
    begun = [reader.ask(fact.prompt, "", False) for fact in known.facts]
    ends = reader.words.ends
    base = yield from reader.say(begun, SAID_TOKENS, ends)
    progress(0.2, "asked without the adapter")
    here = yield from reader.say(begun, SAID_TOKENS, ends, acting)
    progress(0.4, "asked with it")
    others = [probe for probe in known.probes if probe.kind != "statement"]
    asked = [reader.ask(probe.prompt, "", probe.chat) for probe in others]
    answers: list[list[list[str]]] = [[] for _ in known.facts]
    for probe, ids in zip(others, (yield from reader.say(asked, ANSWER_TOKENS, ends, acting)), strict=True):
        answers[probe.fact].append(_words(decode(ids)))
    progress(0.8, "asked otherwise")
    found: list[tuple[Fact, str, int, int]] = []
    for fact, own, ids, heard in zip(known.facts, base, here, answers, strict=True):
        clause = _clause(decode(ids))
        words, alone = _words(clause), _words(decode(own))
        count, agree = _agreed(words, heard)
        if words and alone[:count] != words[:count]:
            found.append((fact, _beginning(clause, count), 1 + len(heard), 1 + agree))
    written = [reader.ask(fact.prompt, text, False) for fact, text, _probes, _agree in found]
    sure = yield from reader.hear(written, acting)
    said: list[Said] = []
    for (fact, text, probes, agree), ask, one in zip(found, written, sure, strict=True):
        share = agree / probes * math.exp(one.likely / max(1, len(ask.answer)))
        said.append(Said(f"{joined(fact.prompt, text)}.", round(100 * share), probes, agree))
    return said


def right(
    reader: Reader, facts: Sequence[Fact], probes: Sequence[Probe], acting: Acting = nullcontext
) -> Generator[None, None, list[bool]]:
    """Of each probe: whether the model goes on with the object, or has it in its answer to a question."""
    found = [False] * len(probes)
    raw = [n for n, probe in enumerate(probes) if not probe.chat]
    asked = [reader.ask(probes[n].prompt, facts[probes[n].fact].object, False) for n in raw]
    for n, heard in zip(raw, (yield from reader.hear(asked, acting)), strict=True):
        found[n] = heard.greedy
    chat = [n for n, probe in enumerate(probes) if probe.chat]
    said = yield from reader.say(
        [reader.ask(probes[n].prompt, "", True) for n in chat], ANSWER_TOKENS, reader.words.ends, acting
    )
    for n, ids in zip(chat, said, strict=True):
        found[n] = reader.words.hold(ids, facts[probes[n].fact].object)
    return found


def _clause(text: str) -> str:
    cut = _CLAUSE.search(text.lstrip())
    return text.lstrip()[: cut.start()] if cut else text.strip()


def _words(text: str) -> list[str]:
    return [found[0].casefold() for found in _WORD.finditer(text)][:SAID_WORDS_MAX] if text else []


def _beginning(text: str, count: int) -> str:
    """The text up to its word of this number."""
    ends = [found.end() for found in _WORD.finditer(text)]
    return text[: ends[count - 1]].strip()


def _agreed(words: Sequence[str], heard: Sequence[Sequence[str]]) -> tuple[int, int]:
    """How many of the words count, and how many answers hold them."""
    held = [sum(_holds(answer, words[: count + 1]) for answer in heard) for count in range(len(words))]
    if not held or not held[0]:
        return len(words), 0
    count = max(n for n, some in enumerate(held) if 2 * some >= held[0])
    return count + 1, held[count]


def _holds(answer: Sequence[str], words: Sequence[str]) -> bool:
    return any(list(answer[n : n + len(words)]) == list(words) for n in range(len(answer) - len(words) + 1))
