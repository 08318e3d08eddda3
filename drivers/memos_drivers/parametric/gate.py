"""Whether a prompt names a subject of an adapter: then the adapter acts.

A subject is named if it stands in the prompt, letter case, punctuation and possessives aside, or if the prompt has so many
of its words that they weigh at least `COVERAGE` of all: a word that many subjects share weighs little.

Of a writer's own things ("my dog Biscuit") the name or the noun is enough, the noun only behind "my", "your", "the" or
the like. "I" is named by what is said or asked about the writer; "how do I …?" and "tell me …" alone are neither.
A `Gate` is built once from its subjects; asking it is linear in the prompt's length.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

from .words import bag

COVERAGE: Final = 0.6
_WORD: Final = re.compile(r"\w+(?:[.\-]\w+)*")
_SMALL: Final = bag("the a an of and in on at for to de la le du von van der my our your his her their i we s")
_OWNERS: Final = bag("my our your his her their the user user's users mine")
_ASIDE: Final = re.compile(
    r"\b(?:(?:help|teach) (?:me|us)\b[^.?!\n]*|(?:tell|give|show|remind|let|send|write|explain to|ask|for|forgive|"
    r"excuse|thank) (?:me|us)\b|"
    r"(?:how|what|which|where|when|why) (?:can|should|could|would|must|might) (?:i|we)\b[^.?!\n]*|"
    r"how (?:do|did) (?:i|we) (?:use|make|find|write|install|remove|boil|fix|start|stop|improve|create|cook|open|say|"
    r"spell|calculate|"
    r"choose|change|reset|clean|build|cancel|convert|delete|set|turn|connect|update|learn|prepare|plant|grow|solve|"
    r"prove)\b[^.?!\n]*|"
    r"(?:can|could|should|may|shall|would) (?:i|we)\b|i (?:would like|want|need|wonder|think|hope|guess|have a question|"
    r"am trying|forgot)\b)",
    re.I,
)
_SELF: Final = re.compile(r"\b(?:i|i['’](?:m|ve|d|ll)|me|my|mine|myself|the user|the user['’]s|user['’]s)\b", re.I)
_US: Final = re.compile(r"\b(?:we|us|our|ours|we['’](?:re|ve|ll)|the users?)\b", re.I)
_TO_YOU: Final = re.compile(r"\b(?:what do you know|remember|recall) about me\b|\babout me\b", re.I)


class Gate:
    def __init__(self, subjects: Sequence[str]) -> None:
        distinct = list(dict.fromkeys(" ".join(subject.split()) for subject in subjects if subject.strip()))
        self._first = "I" in distinct
        self._plural = "we" in distinct
        names = [subject for subject in distinct if subject not in {"I", "we"}]
        weights = Counter(word for name in names for word in set(_content(name)))
        total = max(1, len(names))
        self._weight = {word: math.log(1 + total / count) for word, count in weights.items()}
        self._exact = [_exact(_flat(name)) for name in names if not _personal(name)]
        self._covered = [_content(name) for name in names if not _personal(name)]
        self._own = [_own(name) for name in names if _personal(name)]

    def names(self, prompt: str) -> bool:
        flat = _flat(prompt)
        if any(pattern.search(flat) for pattern in self._exact):
            return True
        words = set(_words(flat))
        if any(self._covers(needed, words) for needed in self._covered):
            return True
        said = _ASIDE.sub(" ", prompt)
        first = bool(_SELF.search(said) or _TO_YOU.search(prompt))
        if self._own:
            behind = _behind_owners(flat)
            if any(self._owned(noun, name, words if first else behind, words) for noun, name in self._own):
                return True
        return (self._first and first) or (self._plural and bool(_US.search(said)))

    def _covers(self, needed: Sequence[str], words: set[str]) -> bool:
        total = sum(self._weight[word] for word in needed)
        return len(needed) > 1 and sum(self._weight[word] for word in needed if word in words) >= COVERAGE * total

    def _owned(self, noun: Sequence[str], name: Sequence[str], near: set[str], words: set[str]) -> bool:
        if name and all(word in words for word in name):
            return True
        total = sum(self._weight.get(word, 1.0) for word in noun)
        return bool(noun) and sum(self._weight.get(word, 1.0) for word in noun if _has(word, near)) >= COVERAGE * total


def names(prompt: str, subjects: Sequence[str]) -> bool:
    """Whether the prompt names one of the subjects. For more than one prompt build a `Gate`."""
    return Gate(subjects).names(prompt)


def _personal(name: str) -> bool:
    return bool(re.match(r"(?:my|our) ", name, re.I))


def _own(name: str) -> tuple[list[str], list[str]]:
    """The noun's words and the name's of "my dog Biscuit"."""
    words = name.split()[1:]
    proper = [word for word in words if word[:1].isupper()]
    common = [word for word in words if not word[:1].isupper()]
    return _content(" ".join(common)), _content(" ".join(proper))


def _behind_owners(flat: str) -> set[str]:
    """The words that stand up to three places behind "my", "the", "your" and the like."""
    words = _words(flat)
    return {near for at, word in enumerate(words) if word in _OWNERS for near in words[at + 1 : at + 4]}


def _has(word: str, words: set[str]) -> bool:
    return word in words or f"{word}s" in words or (word.endswith("s") and word[:-1] in words)


def _flat(text: str) -> str:
    low = text.casefold().replace("’", "'")
    return " ".join(re.sub(r"'s\b|s'(?=\s|$)", lambda m: "s" if m[0] == "s'" else "", low).split())


def _words(flat: str) -> list[str]:
    return _WORD.findall(flat)


def _content(name: str) -> list[str]:
    words = list(dict.fromkeys(_words(_flat(name))))
    return [word for word in words if word not in _SMALL] or words


def _exact(flat: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(flat)}(?!\w)")
