"""The sentences of a text, and who says each: prose, lists, and turns of a dialogue.

A line "Alice: …" is a turn if what follows reads like speech; "City: Lisbon" is not. A question that is answered at once
("What is the twin city of Lyon? It is Manila.") stays one sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

_ABBREVIATION: Final = re.compile(
    r"(?:^|[\s(])(?:Mr|Mrs|Ms|Dr|St|Prof|Jr|Sr|vs|etc|e\.g|i\.e|No|Inc|Ltd|Co|[A-Z]|(?:[A-Z]\.)+[A-Z])\.$"
)
_END: Final = re.compile(r"(?<=[.!?])[\"'”’)]*\s+(?=[\"'“‘(]?[\w$€£])")
_BULLET: Final = re.compile(r"^\s*(?:[-*•·–]|\d{1,2}[.)])\s+")
_SPEAKER: Final = re.compile(r"^\**([A-Za-z][\w.'’-]*(?: [A-Z][\w.'’-]*){0,2})\**\s*:\s+(.+)$", re.S)
_WRITERS: Final = frozenset({"user", "me", "human", "i"})
_MACHINES: Final = frozenset({"assistant", "ai", "bot", "system"})
MACHINE: Final = "assistant"
"""Who says "your keys" to the writer, and means what the writer calls "my keys"."""
_PERSONAL: Final = re.compile(r"\b(?:i|i['’](?:m|ve|d|ll)|my|me|mine|we|we['’](?:re|ve|ll)|our|us|you|your|you['’]re)\b", re.I)


def sentences(content: str) -> Iterator[tuple[str, str]]:
    """Every sentence with who says it ("" if that is the writer, or not known)."""
    speaker = ""
    for raw in content.splitlines():
        line = " ".join(_BULLET.sub("", raw).split())
        if not line:
            speaker = ""
            continue
        turn = _SPEAKER.match(line)
        if turn and _is_turn(turn[1], turn[2]):
            name = turn[1].casefold()
            speaker = "" if name in _WRITERS else MACHINE if name in _MACHINES else turn[1]
            line = turn[2]
        waiting = ""
        for sentence in _split(line):
            if waiting:
                # "What is the twin city of Lyon? It is Manila." says one thing.
                if re.match(r"(?:It|They|He|She)\s", sentence):
                    sentence, waiting = f"{waiting} {sentence}", ""
                else:
                    yield waiting, speaker
                    waiting = ""
            if sentence.endswith("?"):
                waiting = sentence
            else:
                yield sentence, speaker
        if waiting:
            yield waiting, speaker


def _is_turn(name: str, said: str) -> bool:
    if name.casefold() in _WRITERS | _MACHINES:
        return True
    if not name[0].isupper():
        return False
    return bool(_PERSONAL.search(said)) or said[-1] in "!?" or (len(said.split()) > 3 and said[-1] in ".!?")


def _split(line: str) -> Iterator[str]:
    start = 0
    for end in _END.finditer(line):
        if not _ABBREVIATION.search(line[start : end.start()]):
            yield line[start : end.start()].strip()
            start = end.end()
    if line[start:].strip():
        yield line[start:].strip()
