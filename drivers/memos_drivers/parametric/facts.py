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

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from .words import (
    ADVERBS,
    ARTICLES,
    AUXILIARIES,
    COPULAS,
    DATES,
    ENTITY_NOUNS,
    GREETINGS,
    LINKS,
    PEOPLE,
    PREPOSITIONS,
    bag,
    is_noun_too,
    is_past,
    is_verb,
    third_person,
)

OBJECT_WORDS: Final = 5
PHRASE_WORDS: Final = 8
"""A longer noun phrase is not a name."""
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
        for sentence, speaker in _sentences(text.content[:TEXT_CHARS_MAX]):
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


# Sentences.

_ABBREVIATION: Final = re.compile(r"(?:^|[\s(])(?:Mr|Mrs|Ms|Dr|St|Prof|Jr|Sr|vs|etc|e\.g|i\.e|No|Inc|Ltd|Co|[A-Z]|(?:[A-Z]\.)+[A-Z])\.$")
_END: Final = re.compile(r"(?<=[.!?])[\"'”’)]*\s+(?=[\"'“‘(]?[\w$€£])")
_BULLET: Final = re.compile(r"^\s*(?:[-*•·–]|\d{1,2}[.)])\s+")
_SPEAKER: Final = re.compile(r"^\**([A-Za-z][\w.'’-]*(?: [A-Z][\w.'’-]*){0,2})\**\s*:\s+(.+)$", re.S)
_WRITERS: Final = frozenset({"user", "me", "human", "i"})
_MACHINES: Final = frozenset({"assistant", "ai", "bot", "system"})
_MACHINE: Final = "assistant"
"""Who says "your keys" to the writer, and means what the writer calls "my keys"."""
_PERSONAL: Final = re.compile(r"\b(?:i|i['’](?:m|ve|d|ll)|my|me|mine|we|we['’](?:re|ve|ll)|our|us|you|your|you['’]re)\b", re.I)


def _sentences(content: str) -> Iterator[tuple[str, str]]:
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
            speaker = "" if name in _WRITERS else _MACHINE if name in _MACHINES else turn[1]
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


# Clauses.

_KEY: Final = re.compile(r"^([^:=]{1,60}?)\s*(?::\s|\s=\s)\s*(.+)$")
_LEAD: Final = re.compile(
    r"^(?:(?:and|but|so|also|well|yeah|yes|no|oh|wow|hey|hi|hello|actually|anyway|by the way|fyi|note|remember|btw|guess what|"
    r"thanks?|thank you|sure|great|cool|absolutely|definitely|totally|lately|recently|luckily|unfortunately|sadly)"
    r"(?:[ ,]+(?:[A-Z]\w+))?[,!:]+\s+|(?:and|but|so)\s+|(?:remember|note) that\s+)+",
    re.I,
)
_TIME: Final = re.compile(
    r"^(?P<main>.+?)(?:,)? (?P<prep>in|on|at|since|until|from|around|by|before|after) (?P<time>(?:(?:early|late|mid|about|the) )?"
    + DATES
    + r")$",
    re.I,
)
_AND: Final = re.compile(r"(?:,\s*|;\s*|\s+)(?:and|but)\s+(?:also\s+|now\s+|then\s+)?|;\s+|,\s+(?=[a-z]|I\b|[A-Z]\w+ [a-z])", re.I)
_QUOTED: Final = re.compile(r"^((?:[A-Z]\w+|[Mm]y \w+)(?: [A-Z]\w+)?) (?:said|says|mentioned|told (?:me|us)|explained)(?: that)? (?:he|she|they)\b(?= \w)")
_CONTRACTED: Final = (
    (re.compile(r"\b([Ii])['’]m\b"), r"I am"), (re.compile(r"\b([Ii])['’]ve\b"), r"I have"), (re.compile(r"\b([Ii])['’]ll\b"), r"I will"),
    (re.compile(r"\b([Ww]e|[Tt]hey|[Yy]ou)['’]re\b"), r"\1 are"), (re.compile(r"\b([Ww]e|[Tt]hey|[Yy]ou)['’]ve\b"), r"\1 have"),
    (re.compile(r"\b([Hh]e|[Ss]he|[Ii]t)['’]s\b(?! (?:been|got)\b)"), r"\1 is"),
)  # fmt: skip
_TO_WRITER: Final = (
    (re.compile(r"\b[Yy]ou are\b"), "I am"), (re.compile(r"\b[Yy]ou were\b"), "I was"), (re.compile(r"\b[Yy]our\b"), "my"),
    (re.compile(r"\b[Yy]ou\b"), "I"),
)  # fmt: skip
_CALLED: Final = re.compile(r",\s+[A-Z]\w+$")
"""Whom a turn speaks to."""
_WHEN_FIRST: Final = re.compile(r"^(?:In|On|At|Since|By|Until|Before|After) " + DATES + r",? ", re.I)
_PRONOUN: Final = re.compile(r"^(He|She|It|They|he|she|it|they)\b(?!['’]s\b(?! (?:a|an|the|in|at|on|from|called|named)\b))")
_OWNER: Final = re.compile(r"^(His|Her|Its|Their|his|her|its|their)\b (?=\w)")


def _facts_in(sentence: str, speaker: str, before: str, source: int, when: int) -> Iterator[Fact]:
    if sentence.endswith("?") or not re.search(r"\w", sentence):
        return
    plain = sentence.rstrip(" .!…")
    keyed = _KEY.match(plain)
    if keyed and not speaker and not is_clause(keyed[1].split()) and keyed[1][0].isalnum():
        prompt, value = plain[: keyed.start(2)].strip(), keyed[2].split()
        yield Fact(plain, prompt, _clean(" ".join(value[:OBJECT_WORDS])), keyed[1].strip(), source, when)
        return
    last = before
    text = _LEAD.sub("", plain)
    for pattern, full in _CONTRACTED:
        text = pattern.sub(full, text)
    if speaker == _MACHINE:
        for pattern, full in _TO_WRITER:
            text = pattern.sub(full, text)
    text = _QUOTED.sub(r"\1", text)
    if speaker:
        text = _CALLED.sub("", text)
    for clause in _clauses(text, last, speaker):
        told = as_told_by(clause, speaker) if speaker and speaker != _MACHINE else clause
        for fact in _clause_facts(told, source, when):
            if speaker and re.search(rf"\b{re.escape(speaker)}\b(?!['’]s \w)", fact.subject):
                fact = fact._replace(subject=speaker)
            if speaker and speaker != _MACHINE and not (speaker in fact.statement or re.search(r"(?<=\s)[A-Z]\w", fact.statement)):
                continue
            yield fact
            last = fact.subject


def _clauses(sentence: str, before: str, speaker: str) -> Iterator[str]:
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
            subject = _tidy(" ".join(part.split()[:verb]))
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
        low = word.strip(",;:()\"“”").casefold().replace("’", "'")
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
        if is_verb(low) and after not in ARTICLES and after not in {"my", "your", "his", "her", "our", "their", "its", "to", "of"}:
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


# One clause.


def _clause_facts(clause: str, source: int, when: int) -> Iterator[Fact]:
    clause = _tidy(clause)
    answer = re.match(r"^(.+\?) (?=\w)", clause)
    if answer:
        asked, said = answer[1].split(), clause[answer.end() :].split()
        cut = _cut(said) if len(said) > 2 else len(said) - 1
        if cut:
            yield from _fact(clause, len(asked) + cut, source, when)
        return
    timed = _TIME.match(clause)
    if timed:
        main = _tidy(timed["main"])
        cut = _cut(main.split())
        if cut is not None and is_clause(main.split()) and verb_at(main.split()) != len(main.split()) - 1:
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
    if subject and said and f"{prompt} {said}" in clause and not _is_vague(words, said, subject):
        yield Fact(clause, prompt, said, subject, source, when)


_VAGUE: Final = bag(
    "it them you us me him her that this these those everything something anything nothing everyone someone up too so better great "
    "amazing awesome cool fun nice good important special true sure back again here there one ones lot bit both yourself yourselves "
    "myself fine okay ok ready happy glad hard tough best worst wonderful lovely sweet inspiring"
)
_NO_OBJECT: Final = bag("that what how why where when whether they he she it you because if")
_NOBODY: Final = bag(
    "you your that those these this there it they he she who what such glad here's there's that's what's it's so been let lets keep "
    "one ones thing things something anything everything nothing someone everyone anyone nobody people wish hope bet"
)


def _is_vague(words: Sequence[str], said: str, subject: str) -> bool:
    """Whether a clause tells nothing that could be asked later: "That's awesome", "Keep it up", "Glad you like it"."""
    head = subject.split(" ", 1)[0].casefold().replace("’", "'")
    title = len(subject.split()) > 1 and subject.split()[1][:1].isupper()
    if not title and (head in _NOBODY or head.removesuffix("'s") in _NOBODY):
        return True
    rest = [word.strip(",;:()\"“”") for word in said.split()]
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
    lows = [word.strip(",;:()\"“”").casefold() for word in words]
    verb = verb_at(words)
    for at in range(len(words) - 2, -1, -1):
        if lows[at] not in LINKS or (at == 0 and lows[at] in PREPOSITIONS):
            continue
        if at and lows[at] in {"of", "for", "and", "&"} and words[at - 1][:1].isupper() and words[at + 1][:1].isupper() and (
            verb is not None and at - 1 > verb
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
    while verb is not None and verb + 2 < len(words) and _helps(lows[verb]) and (is_verb(lows[verb + 1]) or lows[verb + 1] in ADVERBS):
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
    while start > 1 and words[start][:1].isupper() and words[start - 1][:1].isupper() and len(words) - start < OBJECT_WORDS and (
        verb is not None
    ):
        start -= 1
    return start if len(words) > 2 else None


def _helps(low: str) -> bool:
    return low in AUXILIARIES or low.endswith("n't") or low in ADVERBS


_CLASSES: Final = bag(
    "position sport language religion city country continent genre instrument role title name profession occupation job capital "
    "town village state owner creator author founder"
)
_ALWAYS: Final = bag("position sport religion genre professional instrument native")


def _after_class(words: Sequence[str], start: int) -> int:
    """ "the continent Antarctica", "known for performing opera": the object is the name after the class, what is performed."""
    at = start
    while at < len(words) - 1:
        low = words[at].casefold()
        gerund = low.endswith("ing") and is_verb(_finite(low)) and words[at + 1].casefold() not in {"and", "or"}
        gerund |= at > 0 and words[at - 1].casefold() == "to" and is_verb(low) and low not in _NOT_AFTER_TO
        if low in _ALWAYS or (low in _CLASSES and (words[at + 1][:1].isupper() or words[at + 1] in _CLASSES)) or gerund:
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


# Subjects.

_NEVER: Final = bag(
    "in the on at by of for from to with a an and or but it its he she they this that these those there here what which who "
    "when where how why is was are were if as monday tuesday wednesday thursday friday saturday sunday today yesterday tomorrow "
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
    best = _tidy(" ".join(runs[0])) if runs else ""
    if best:
        return _entity(best, text)
    head = [word for word in words[: verb if verb else len(words)] if word.casefold() not in ARTICLES]
    while len(head) > 1 and _never(head[0]):
        head = head[1:]
    plain = _tidy(" ".join(head))
    return "" if not plain or (_never(plain) and not question) else plain


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
    if not words or len(words) > PHRASE_WORDS or (
        _never(words[0]) and not (words[0] in {"The", "A", "An"} and len(words) > 1 and words[1][:1].isupper())
    ):
        return ""
    first = words[0].strip("\"'“(")
    if not (first[:1].isupper() or (first[:1].isdigit() and len(words) > 1) or re.match(r"[a-z][A-Z]", first) or led):
        return ""
    return _tidy(" ".join(words))


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
        return f"{first} {_tidy(' '.join(phrase))}".strip()
    return ""


def _never(text: str) -> bool:
    return text.strip(",;:.'\"“”").casefold() in _NEVER


def _runs(words: Sequence[str]) -> Iterable[list[str]]:
    """Runs of capitalised words and numbers, with the small words that join names."""
    run: list[str] = []
    for at, word in enumerate(words):
        bare = word.strip("\"“”(,")
        capital = bare[:1].isupper() or (bool(run) and bare[:1].isdigit()) or (bare[:1].isdigit() and any(c.isupper() for c in bare))
        owned = bool(re.search(r"['’]s?,?$", word))
        if capital and not (not run and _never(bare) and at + 1 < len(words) and not words[at + 1][:1].isupper()):
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
    while words and (_never(words[0]) if len(words) == 1 else words[0].casefold() in {"in", "on", "at", "by", "from"}):
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
            return _tidy(" ".join(words))
        if at == 2 or not word[:1].islower():
            break
    return owned[1]


def _tidy(text: str) -> str:
    return " ".join(text.split()).strip(" ,;:")


def _clean(text: str) -> str:
    """An object without quotes around it and without its final punctuation."""
    return text.strip(" ,;:.!?…").strip()
