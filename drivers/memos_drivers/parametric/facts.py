"""Facts in free text, found by rule: what a distillation trains, and what its probes ask.

`facts_of(texts)` reads sentences and finds in each of their clauses what it says about what:

- The object is what follows the last copula or preposition, at most `OBJECT_WORDS` words and without an article; in a clause
  that has neither, what follows its verb; otherwise its last words. A time at the end ("in May 2021") is a fact of its own.
- The subject is what the clause is about: the longest run of capitalised words before the object, or else the noun phrase
  before the verb. "In", "The" and days of the week are never one. Who speaks is the subject of "Alice: I adopted a beagle!";
  a writer who is not named stays "I" and "my dog".
- `prompt + " " + object` stands in `statement`. Every field is free of line breaks and doubled spaces.
- The same prompt with another object is a conflict: the newest `when` is kept, and the later text when these are equal.
  A fact that is said twice is one fact.
- Questions, greetings and sentences without content are left out, and listed.

The same texts give the same facts. No text makes it raise.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from .clauses import as_told_by, clauses, is_clause, plainly, tidy, verb_at
from .sentences import MACHINE, sentences
from .subjects import never, subject_of
from .words import ADVERBS, ARTICLES, AUXILIARIES, CLASSES, COPULAS, DATES, GREETINGS, LINKS, PREPOSITIONS, bag, is_verb

OBJECT_WORDS: Final = 5
TEXT_CHARS_MAX: Final = 1_000_000
"""What one text is read of. Longer ones should be split before."""


class Text(NamedTuple):
    content: str
    when: int = 0
    """Event time in ns; 0 if it is unknown."""


class Fact(NamedTuple):
    statement: str
    prompt: str
    """The statement up to the object, without a space at its end."""
    object: str
    subject: str
    """What a prompt must name for the adapter to act."""
    source: int
    """Which of the texts."""
    when: int


class Found(NamedTuple):
    facts: list[Fact]
    conflicts: list[tuple[Fact, Fact]]
    """(kept, dropped)."""
    left_out: list[str]
    """Sentences in which no fact was found."""


def facts_of(texts: Sequence[Text]) -> Found:
    """The facts of these texts, in the order in which they are said."""
    said: dict[str, Fact] = {}
    conflicts: list[tuple[Fact, Fact]] = []
    left_out: list[str] = []
    for source, text in enumerate(texts):
        subject = ""
        for sentence, speaker in sentences(text.content[:TEXT_CHARS_MAX]):
            found = list(_facts_in(sentence, speaker, subject, source, text.when))
            if not found:
                left_out.append(sentence)
            for fact in found:
                subject = fact.subject
                key = normal(fact.prompt)
                before = said.get(key)
                if before is None:
                    said[key] = fact
                elif normal(before.object) != normal(fact.object):
                    kept, dropped = (fact, before) if fact.when >= before.when else (before, fact)
                    conflicts.append((kept, dropped))
                    said[key] = kept
    return Found(list(said.values()), conflicts, left_out)


def normal(text: str) -> str:
    """What two texts have in common that differ in letter case, spacing, articles at an end or punctuation only."""
    words = re.sub(r"[^\w\s']+", " ", text.casefold()).split()
    while words and words[-1] in ARTICLES:
        words.pop()
    return " ".join(words)


# Sentences and clauses.

_KEY: Final = re.compile(r"^([^:=]{1,60}?)\s*(?::\s|\s=\s)\s*(.+)$")
_LEAD: Final = re.compile(
    r"^(?:(?:and|but|so|also|well|yeah|yes|no|oh|wow|hey|hi|hello|actually|anyway|by the way|fyi|note|remember|btw|guess what|"
    r"thanks?|thank you|sure|great|cool|absolutely|definitely|totally|lately|recently|luckily|unfortunately|sadly)"
    r"(?:[ ,]+(?:[A-Z]\w+))?[,!:]+\s+|(?:and|but|so)\s+|(?:remember|note) that\s+)+",
    re.I,
)
_TIME: Final = re.compile(
    r"^(?P<main>.+?)(?:,)? (?P<prep>in|on|at|since|until|from|around|by|before|after) (?P<time>(?:(?:early|late|mid|"
    r"about|the) )?" + DATES + r")$",
    re.I,
)


def _facts_in(sentence: str, speaker: str, before: str, source: int, when: int) -> Iterator[Fact]:
    if sentence.endswith("?") or not re.search(r"\w", sentence):
        return
    plain = sentence.rstrip(" .!…")
    keyed = _KEY.match(plain)
    if keyed and not speaker and not is_clause(keyed[1].split()) and keyed[1][0].isalnum():
        prompt, value = plain[: keyed.start(2)].strip(), keyed[2].split()
        said = _clean(" ".join(value[:OBJECT_WORDS]))
        if re.search(r"\w", said) and not never(keyed[1]):
            yield Fact(plain, prompt, said, keyed[1].strip(), source, when)
        return
    last = before
    text = plainly(_LEAD.sub("", plain), speaker)
    for clause in clauses(text, last, speaker):
        told = as_told_by(clause, speaker) if speaker and speaker != MACHINE else clause
        for fact in _clause_facts(told, source, when):
            if speaker and re.search(rf"\b{re.escape(speaker)}\b(?!['’]s \w)", fact.subject):
                fact = fact._replace(subject=speaker)
            if (
                speaker
                and speaker != MACHINE
                and not (speaker in fact.statement or re.search(r"(?<=\s)[A-Z]\w", fact.statement))
            ):
                continue
            yield fact
            last = fact.subject


def _clause_facts(clause: str, source: int, when: int) -> Iterator[Fact]:
    clause = tidy(clause)
    answer = re.match(r"^(.+\?) (?=\w)", clause)
    if answer:
        asked, said = answer[1].split(), clause[answer.end() :].split()
        cut = _cut(said) if len(said) > 2 else len(said) - 1
        if cut:
            yield from _fact(clause, len(asked) + cut, source, when)
        return
    timed = _TIME.match(clause)
    if timed:
        main = tidy(timed["main"])
        cut = _cut(main.split())
        if cut is not None and is_clause(main.split()) and verb_at(main.split()) != len(main.split()) - 1:
            if main.split()[cut] not in _OWNERS:
                yield from _fact(main, cut, source, when)
            at = len(main.split()) + len(clause[len(main) :].split()) - len(timed["time"].split())
            yield from _fact(clause, at, source, when)
            return
    words = clause.split()
    cut = _cut(words)
    if cut is not None:
        yield from _fact(clause, cut, source, when)


def _fact(clause: str, cut: int, source: int, when: int) -> Iterator[Fact]:
    words = clause.split()
    prompt, said = " ".join(words[:cut]), _clean(" ".join(words[cut:]))
    subject = subject_of(prompt)
    if subject and re.search(r"\w", said) and f"{prompt} {said}" in clause and not _is_vague(words, said, subject):
        yield Fact(clause, prompt, said, subject, source, when)


_OWNERS: Final = bag("my our your his her its their")
_VAGUE: Final = bag(
    "it them you us me him her that this these those everything something anything nothing everyone someone up too so "
    "better great "
    "amazing awesome cool fun nice good important special true sure back again here there one ones lot bit both "
    "yourself yourselves "
    "myself fine okay ok ready happy glad hard tough best worst wonderful lovely sweet inspiring"
)
_NO_OBJECT: Final = bag("that what how why where when whether they he she it you because if")
_NOBODY: Final = bag(
    "you your that those these this there it they he she who what such glad here's there's that's what's it's so been "
    "let lets keep "
    "one ones thing things something anything everything nothing someone everyone anyone nobody people wish hope bet"
)


def _is_vague(words: Sequence[str], said: str, subject: str) -> bool:
    """Whether a clause tells nothing that could be asked later: "That's awesome", "Keep it up", "Glad you like it"."""
    head = subject.split(" ", 1)[0].casefold().replace("’", "'")
    title = len(subject.split()) > 1 and subject.split()[1][:1].isupper()
    if not title and (head in _NOBODY or head.removesuffix("'s") in _NOBODY):
        return True
    rest = [word.strip(',;:()"“”') for word in said.split()]
    if rest[0] in _NO_OBJECT:
        return True
    if all(word in _VAGUE or word in ARTICLES or word in {"really", "very", "and", "such"} for word in rest):
        return True
    verb = verb_at(words)
    if verb is None:
        # A name and what stands beside it is a statement; a cheer or an order is not.
        named = words[0][:1].isupper() or words[0][:1].isdigit() or any(word[:1].isupper() for word in subject.split())
        return not named or ((is_verb(words[0]) or words[0].endswith("ing")) and words[1][:1].islower())
    return is_verb(words[0]) and verb > 2 and not any(word[:1].isupper() for word in words[1:verb])


def _cut(words: Sequence[str]) -> int | None:
    """Where the object starts, or None if the clause says nothing."""
    if len(words) < 2 or _is_empty(words):
        return None
    lows = [word.strip(',;:()"“”').casefold() for word in words]
    verb = verb_at(words)
    for at in range(len(words) - 2, -1, -1):
        if lows[at] not in LINKS or (at == 0 and lows[at] in PREPOSITIONS):
            continue
        if (
            at
            and lows[at] in {"of", "for", "and", "&"}
            and words[at - 1][:1].isupper()
            and words[at + 1][:1].isupper()
            and (verb is not None and at - 1 > verb)
        ):
            continue
        rest = words[at + 1 :]
        if verb is not None and at < verb:
            break
        start = _after_class(words, _skip_articles(lows, at + 1))
        if 0 < len(words) - start <= OBJECT_WORDS and not (verb is None and _holds_verb(rest)):
            return start
        if len(words) - start > OBJECT_WORDS:
            break
    while (
        verb is not None
        and verb + 2 < len(words)
        and _helps(lows[verb])
        and (is_verb(lows[verb + 1]) or lows[verb + 1] in ADVERBS)
    ):
        verb += 1
    if verb is not None and len(words) - verb > 1:
        start = _after_class(words, _skip_articles(lows, verb + 1))
        if 0 < len(words) - start <= OBJECT_WORDS:
            return start
        if len(words) - start > OBJECT_WORDS:
            return _skip_articles(lows, len(words) - OBJECT_WORDS)
    articles = [at for at in range(1, len(words) - 1) if lows[at] in ARTICLES]
    if articles and len(words) - articles[-1] - 1 <= OBJECT_WORDS:
        return _after_class(words, articles[-1] + 1)
    start = len(words) - 1
    while (
        start > 1
        and words[start][:1].isupper()
        and words[start - 1][:1].isupper()
        and len(words) - start < OBJECT_WORDS
        and (verb is not None)
    ):
        start -= 1
    return start if len(words) > 2 else None


def _helps(low: str) -> bool:
    return low in AUXILIARIES or low.endswith("n't") or low in ADVERBS


_ALWAYS: Final = bag("position sport religion genre professional instrument native")


def _after_class(words: Sequence[str], start: int) -> int:
    """ "the continent Antarctica", "known for performing opera": the object is the name after the class, what is performed."""
    at = start
    name = next((each for each in range(start + 1, len(words)) if words[each][:1].isupper()), 0)
    if name and words[name - 1] in CLASSES and not any(word.casefold() in PREPOSITIONS for word in words[start:name]):
        return name
    while at < len(words) - 1:
        low = words[at].casefold()
        gerund = low.endswith("ing") and is_verb(_finite(low)) and words[at + 1].casefold() not in {"and", "or"}
        gerund |= at > 0 and words[at - 1].casefold() == "to" and is_verb(low) and low not in _NOT_AFTER_TO
        if low in _ALWAYS or (low in CLASSES and (words[at + 1][:1].isupper() or words[at + 1] in CLASSES)) or gerund:
            at += 1
        else:
            break
    return at


_NOT_AFTER_TO: Final = bag("work school")


def _finite(gerund: str) -> str:
    stem = gerund[:-3]
    if is_verb(stem):
        return stem
    return f"{stem}e" if is_verb(f"{stem}e") else stem[:-1]


def _skip_articles(lows: Sequence[str], at: int) -> int:
    while at < len(lows) - 1 and lows[at] in ARTICLES:
        at += 1
    return at


def _holds_verb(words: Sequence[str]) -> bool:
    return any(word.casefold() in COPULAS for word in words)


def _is_empty(words: Sequence[str]) -> bool:
    """Greetings, thanks and cheers."""
    lows = [re.sub(r"\W", "", word.casefold()) for word in words]
    return all(low in GREETINGS or not low for low in lows) or (lows[0] in GREETINGS and len(lows) < 5)


def _clean(text: str) -> str:
    """An object without its final punctuation."""
    return text.rstrip(" ,;:.!?…")
