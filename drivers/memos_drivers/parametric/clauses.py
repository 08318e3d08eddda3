"""The clauses of a sentence, each with its subject in place, and where the verb of a clause is.

"I moved to Lisbon and work at a bakery" is two clauses, "I moved to Lisbon" and "I work at a bakery"; "he" and "his" become
what was spoken of before. Rules over words, not a parser: a clause that they miss stays part of its neighbour.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from .sentences import MACHINE
from .words import ARTICLES, AUXILIARIES, COPULAS, PEOPLE, bag, is_noun_too, is_past, is_verb, third_person

_AND: Final = re.compile(
    r"(?:,\s*|;\s*|\s+)(?:and|but)\s+(?:also\s+|now\s+|then\s+)?|;\s+|,\s+(?=[a-z]|I\b|[A-Z]\w+ [a-z])", re.I
)
_QUOTED: Final = re.compile(
    r"^((?:[A-Z]\w+|[Mm]y \w+)(?: [A-Z]\w+)?) (?:said|says|mentioned|told (?:me|us)|explained)(?: that)? "
    r"(?:he|she|they)\b(?= \w)"
)
_CONTRACTED: Final = (
    (re.compile(r"\b([Ii])['’]m\b"), r"I am"), (re.compile(r"\b([Ii])['’]ve\b"), r"I have"),
    (re.compile(r"\b([Ii])['’]ll\b"), r"I will"),
    (re.compile(r"\b([Ww]e|[Tt]hey|[Yy]ou)['’]re\b"), r"\1 are"), (re.compile(r"\b([Ww]e|[Tt]hey|[Yy]ou)['’]ve\b"), r"\1 have"),
    (re.compile(r"\b([Hh]e|[Ss]he|[Ii]t)['’]s\b(?! (?:been|got)\b)"), r"\1 is"),
)  # fmt: skip
_TO_WRITER: Final = (
    (re.compile(r"\b[Yy]ou are\b"), "I am"), (re.compile(r"\b[Yy]ou were\b"), "I was"), (re.compile(r"\b[Yy]our\b"), "my"),
    (re.compile(r"\b[Yy]ou\b"), "I"),
)  # fmt: skip
_CALLED: Final = re.compile(r",\s+[A-Z]\w+$")
"""Whom a turn speaks to."""
_PRONOUN: Final = re.compile(r"^(He|She|It|They|he|she|it|they)\b(?!['’]s\b(?! (?:a|an|the|in|at|on|from|called|named)\b))")
_OWNER: Final = re.compile(r"^(His|Her|Its|Their|his|her|its|their)\b (?=\w)")


def plainly(sentence: str, speaker: str) -> str:
    """The sentence without contractions, and as the writer would say what a machine says to the writer."""
    for pattern, full in _CONTRACTED:
        sentence = pattern.sub(full, sentence)
    if speaker == MACHINE:
        for pattern, full in _TO_WRITER:
            sentence = pattern.sub(full, sentence)
    sentence = _QUOTED.sub(r"\1", sentence)
    return _CALLED.sub("", sentence) if speaker else sentence


def clauses(sentence: str, before: str, speaker: str) -> Iterator[str]:
    """The sentence's parts that say something each, every one with its subject in place."""
    start, subject = 0, ""
    parts: list[str] = []
    for joint in _AND.finditer(sentence):
        left, right = sentence[start : joint.start()], sentence[joint.end() :]
        if _can_stand(left.split()) and _goes_on(right.split(), listed=joint[0].strip() == ","):
            parts.append(left)
            start = joint.end()
    parts.append(sentence[start:])
    for part in parts:
        part = part.strip(" ,;")
        words = part.split()
        if not words:
            continue
        about = subject or before
        if _PRONOUN.match(part) and _can_be(part, about, speaker):
            part = about + part[part.index(" ") :] if " " in part else about
        elif _OWNER.match(part) and _can_be(part, about, speaker):
            part = f"{about}'s{part[part.index(' ') :]}"
        elif subject and parts[0] is not part and (is_verb(words[0]) or words[0].casefold() in AUXILIARIES):
            part = f"{subject} {part}"
        part = part[:1].upper() + part[1:] if part.startswith(("my ", "our ", "the ", "a ", "an ")) else part
        verb = verb_at(part.split())
        if verb is not None and verb > 0:
            subject = tidy(" ".join(part.split()[:verb]))
        yield part


def _can_be(part: str, about: str, speaker: str) -> bool:
    """Whether the pronoun that a clause begins with can mean what was spoken of before."""
    if not about or about in {"I", "we"}:
        return False
    pronoun = part.split(" ", 1)[0].casefold()
    if pronoun in {"it", "its"}:
        return about != speaker and not any(word in PEOPLE for word in about.casefold().split())
    return about != speaker or pronoun in {"they", "their"}


_STARTS: Final = bag("i he she it they we my our his her their its your")


def _can_stand(words: Sequence[str]) -> bool:
    return len(words) > 2 and verb_at(words) not in (None, 0)


def _goes_on(words: Sequence[str], *, listed: bool) -> bool:
    """Whether a sentence's part after "and" is a clause: verb first, or a short subject and a verb.

    After a mere comma ("listed") a past form is more often a participle: "a film, directed by Anna".
    """
    if len(words) < 2 or words[0] in {"who", "which", "that", "whose", "where", "when", "because", "while", "as", "if"}:
        return False
    if is_verb(words[0]) and not words[0].endswith("ing"):
        return not (listed and (is_past(words[0]) or is_noun_too(words[0])))
    verb = verb_at(words[:6])
    if listed and verb is not None and not (words[0].casefold() in ARTICLES | _STARTS or words[0][:1].isupper()):
        return False
    return verb is not None and 0 < verb < len(words) - 1


def is_clause(words: Sequence[str]) -> bool:
    return verb_at(words) not in (None, 0)


def verb_at(words: Sequence[str]) -> int | None:
    """Where the first finite verb of a clause is. A capitalised word is a name, unless it stands first."""
    for at, word in enumerate(words):
        low = word.strip(',;:()"“”').casefold().replace("’", "'")
        if at and low.endswith(("'m", "'re", "'ve", "'d", "'ll")):
            return at
        if low in {"i'm", "i've", "i'd", "i'll", "we're", "we've", "it's", "he's", "she's", "they're", "that's"}:
            return at
        if word[:1].isupper():
            continue
        if low in COPULAS or low in AUXILIARIES or low.endswith("n't"):
            return at
        after = words[at - 1].casefold() if at else ""
        beside = words[at + 1].casefold() if at + 1 < len(words) else ""
        if is_noun_too(low) and (beside in COPULAS or beside in AUXILIARIES):
            continue
        if (
            is_verb(low)
            and after not in ARTICLES
            and after not in {"my", "your", "his", "her", "our", "their", "its", "to", "of"}
        ):
            return at
    return None


_FIRST: Final = (
    (re.compile(r"\b(?:I|i)['’]m\b"), "{s} is"),
    (re.compile(r"\b(?:I|i)['’]ve\b"), "{s} has"),
    (re.compile(r"\b(?:I|i)['’]ll\b"), "{s} will"),
    (re.compile(r"\b(?:I|i)['’]d\b"), "{s} would"),
    (re.compile(r"\b(?:I|i) am\b"), "{s} is"),
    (re.compile(r"\b[Mm]y\b"), "{s}'s"),
    (re.compile(r"\b(?:me|myself)\b"), "{s}"),
    (re.compile(r"\bmine\b"), "{s}'s"),
)
_ADVERB: Final = re.compile(r"^(?:\w+ly|just|also|still|never|always|often|now|usually|sometimes|ever|even|once)$")


def as_told_by(clause: str, speaker: str) -> str:
    """What the speaker says of themselves, with their name: "I work at a bakery" is "Alice works at a bakery"."""
    for pattern, text in _FIRST:
        clause = pattern.sub(text.format(s=speaker), clause)
    words, out = clause.split(), list[str]()
    after = False
    for word in words:
        if word in {"I", "i"}:
            out.append(speaker)
            after = True
        elif after and _ADVERB.match(word):
            out.append(word)
        else:
            out.append(third_person(word) if after else word)
            after = False
    return " ".join(out)


def tidy(text: str) -> str:
    return " ".join(text.split()).strip(" ,;:")
