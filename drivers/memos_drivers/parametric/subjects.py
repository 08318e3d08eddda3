"""What a prompt is about: the name, or the thing of somebody's, that a later prompt must name.

The longest run of capitalised words, with the small words that join names, if the noun phrase before the verb is not a name
as a whole; without a name that noun phrase itself. Of "Alice's dog" it is "Alice's dog", of "Alice's profession" it is
"Alice". "In", "The" and days of the week are never a subject.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Final

from .clauses import tidy, verb_at
from .words import ADVERBS, ARTICLES, DATES, ENTITY_NOUNS, PREPOSITIONS, bag, is_verb

PHRASE_WORDS: Final = 8
"""A longer noun phrase is not a name."""
_WHEN_FIRST: Final = re.compile(r"^(?:In|On|At|Since|By|Until|Before|After) " + DATES + r",? ", re.I)
_NEVER: Final = bag(
    "in the on at by of for from to with a an and or but it its he she they this that these those there here what which who "
    "when where how why is was are were if as monday tuesday wednesday thursday friday saturday sunday today yesterday "
    "tomorrow "
    "my your his her our their one so then"
)
_JOINS: Final = bag("of the de da di du del della des la le van von der den al el bin ibn & and y i for at")
_QUESTION: Final = re.compile(r"^(?:What|Which|Where|Who|When|How)\b[^?]*\?")
_ASKED: Final = re.compile(r"\b(?:does|do|did|is|was|are|were) (.+)$")
_OF: Final = re.compile(r"^(?:The|the|An?|an?) (?:[a-z][\w-]* )+?(?:of|in|for|by) (?=\S)")
_BREAK: Final = re.compile(r",\s+(?=(?:[a-z]|$))|\s+(?=(?:who|which|whose)\b)")


def subject_of(prompt: str) -> str:
    """What the prompt is about, or "" if nothing in it can be named."""
    question = _QUESTION.match(prompt)
    if question:
        asked = _ASKED.search(question[0].rstrip("?"))
        text = asked[1] if asked else question[0].rstrip("?")
        words = text.split()
        while len(words) > 1 and words[-1][:1].islower() and is_verb(words[-1]):
            words.pop()
        text = " ".join(words)
        phrase = text
    else:
        text = _WHEN_FIRST.sub("", prompt)
        words = text.split()
        phrase = ""
    verb = verb_at(words)
    mine = _own(words, verb)
    if mine:
        return mine
    named = _phrase(phrase or " ".join(words[: verb if verb else len(words)]))
    if named:
        return _entity(named, text)
    runs = sorted(_runs(words), key=lambda run: (-len(" ".join(run)), " ".join(run)))
    best = tidy(" ".join(runs[0])) if runs else ""
    if best:
        return _entity(best, text)
    head = [word for word in words[: verb if verb else len(words)] if word.casefold() not in ARTICLES]
    while len(head) > 1 and never(head[0]):
        head = head[1:]
    plain = tidy(" ".join(head))
    return "" if not plain or (never(plain) and not question) else plain


def _phrase(text: str) -> str:
    """The name that a noun phrase is: "The language of Puss in Boots" is "Puss in Boots"; "" if it is not a mere name."""
    led = re.match(r"^(?:In|For|At|On) (.+?), .+$", text)
    if led:
        text = led[1]
    text = _BREAK.split(text, maxsplit=1)[0]
    text = _OF.sub("", text, count=1)
    words = text.split()
    while len(words) > 1 and words[-1].casefold() in PREPOSITIONS | {"and", "owner", "label", "capital"} | ADVERBS:
        words.pop()
    if (
        not words
        or len(words) > PHRASE_WORDS
        or (never(words[0]) and not (words[0] in {"The", "A", "An"} and len(words) > 1 and words[1][:1].isupper()))
    ):
        return ""
    first = words[0].strip("\"'“(")
    if not (first[:1].isupper() or (first[:1].isdigit() and len(words) > 1) or re.match(r"[a-z][A-Z]", first) or led):
        return ""
    return tidy(" ".join(words))


def _own(words: Sequence[str], verb: int | None) -> str:
    """ "I", "we", "my dog Biscuit": what belongs to a writer who is not named."""
    first = words[0].casefold().replace("’", "'") if words else ""
    if first in {"i", "i'm", "i've", "i'd", "i'll"}:
        return "I"
    if first in {"we", "we're", "we've"}:
        return "we"
    if first in {"my", "our"} and len(words) > 1:
        end = verb if verb else len(words)
        phrase = list(words[1:end])
        while len(phrase) > 1 and phrase[-1].casefold() in PREPOSITIONS:
            phrase.pop()
        return f"{first} {tidy(' '.join(phrase))}".strip()
    return ""


def never(text: str) -> bool:
    return text.strip(",;:.'\"“”").casefold() in _NEVER


def _runs(words: Sequence[str]) -> Iterable[list[str]]:
    """Runs of capitalised words and numbers, with the small words that join names."""
    run: list[str] = []
    for at, word in enumerate(words):
        bare = word.strip('"“”(,')
        capital = (
            bare[:1].isupper() or (bool(run) and bare[:1].isdigit()) or (bare[:1].isdigit() and any(c.isupper() for c in bare))
        )
        owned = bool(re.search(r"['’]s?,?$", word))
        if capital and not (not run and never(bare) and at + 1 < len(words) and not words[at + 1][:1].isupper()):
            run.append(word)
            if owned and bare[:1].isupper() and not (at + 1 < len(words) and words[at + 1][:1].isupper()):
                yield _trim(run)
                run = []
        elif run and bare.casefold() in _JOINS and at + 1 < len(words) and words[at + 1][:1].isupper():
            run.append(word)
        elif run:
            yield _trim(run)
            run = []
        if run and word.endswith(",") and not (at + 1 < len(words) and words[at + 1][:1].isupper()):
            yield _trim(run)
            run = []
    if run:
        yield _trim(run)


def _trim(run: Sequence[str]) -> list[str]:
    words = list(run)
    while words and (never(words[0]) if len(words) == 1 else words[0].casefold() in {"in", "on", "at", "by", "from"}):
        words = words[1:]
    return words


def _entity(name: str, text: str) -> str:
    """ "Alice's dog Rex" where the owner's dog is meant, "Alice" for a mere property of hers."""
    whole = text[text.find(name) :] if name in text else name
    owned = re.match(r"^(.+?)(['’]s|(?<=s)['’]) (.+)$", whole)
    if not owned or len(owned[1]) > len(name):
        return re.sub(r"(?:['’]s|(?<=s)['’])$", "", name)
    rest = owned[3].split()
    if rest[0][:1].isupper() and "'" not in owned[3] and "’" not in owned[3]:
        return re.sub(r"['’]s$", "", name)
    words = [owned[1] + owned[2]]
    for at, word in enumerate(rest):
        if word.casefold() in ENTITY_NOUNS:
            words += rest[: at + 1]
            words += itertools.takewhile(lambda each: each[:1].isupper(), rest[at + 1 :])
            return tidy(" ".join(words))
        if at == 2 or not word[:1].islower():
            break
    return owned[1]
