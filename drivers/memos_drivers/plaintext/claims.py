"""What a text claims of its subjects, as far as one claim can rule out another: read by rule, without a model.

A claim is (subject, relation, object, whether it is denied). Two kinds:

- of a *slot*: a relation that has one object at a time (where somebody lives, a deadline, how many cats). `slot` says which,
  `kind` how its objects are compared;
- of a *state*: any sentence in the present tense, kept word for word without its negation, so that "Alice eats meat" and
  "Alice no longer eats meat" meet.

"I" and "my" are the speaker's, by name where the name is known. Left out on purpose, because they claim nothing for sure of
the present: questions, wishes, plans, conditions, hearsay, what a machine says to a writer, and the past tense, but for
changes ("moved to", "used to", "quit"). A sentence that no rule reads claims nothing: better a missed claim than a wrong one.

The same text gives the same claims. No text makes it raise.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from memos_drivers.parametric.clauses import as_told_by, clauses, plainly, tidy
from memos_drivers.parametric.sentences import MACHINE, sentences
from memos_drivers.parametric.words import bag

from .fuse_text import meaning
from .slots import (
    ATTRIBUTE,
    ATTRIBUTE_OF,
    ATTRIBUTE_THE,
    DAYS,
    ENDED,
    FAVOURITE,
    HOLDER,
    NUMBER_SLOTS,
    NUMERAL,
    PARTNERS,
    PEOPLE_SLOTS,
    PLACE_SLOTS,
    PLAIN_SLOTS,
    SLOTS,
    WHEN,
    Kind,
)  # fmt: skip

TEXT_CHARS_MAX: Final = 4000
"""What is read of a text: a longer one is a document, and documents do not rule each other out by a sentence."""
STATEMENTS_READ: Final = 64
SENTENCE_CHARS_MAX: Final = 400
"""Of a longer sentence nothing is taken apart."""
REPEATED_CHARS_MIN: Final = 14
"""Letters of the words that count in a statement worth calling a repetition: "That's awesome" is none."""
WRITER: Final = "Writer"
"""Who says "I" when nobody knows the name."""


class Claim(NamedTuple):
    subject: str
    """Folded."""
    relation: str
    object: str
    """As it was said."""
    kind: Kind | None
    """How objects of this relation are compared; None for a state."""
    denied: bool


class Reading(NamedTuple):
    """A text, read."""

    said: frozenset[tuple[str, ...]]
    """Its statements, folded. Empty when it also asks something, or says nothing but a cheer: it repeats nothing then."""
    claims: tuple[Claim, ...]
    statements: int


def read(text: str, speaker: str = "") -> Reading:
    """What a text says. `speaker` is who says it, where the text itself does not tell."""
    if len(text) > TEXT_CHARS_MAX:
        return Reading(frozenset([tuple(text.casefold().split())]), (), STATEMENTS_READ)
    said: set[tuple[str, ...]] = set()
    claims: list[Claim] = []
    count, asks = 0, False
    for sentence, by in sentences(text):
        count += 1
        who = by or speaker
        asks = asks or sentence.endswith("?") or count > STATEMENTS_READ
        if asks and count > STATEMENTS_READ:
            break
        machine = who.casefold() == MACHINE
        plain = _LEAD.sub("", plainly(_plain_negation(sentence.rstrip(" .!…")), "" if machine else who))
        whole = machine or len(sentence) > SENTENCE_CHARS_MAX
        told = [plain] if whole else [_told(clause, who or WRITER) for clause in clauses(plain, "", who)]
        if core := meaning(" ; ".join(told)).core:
            said.add((MACHINE, *core) if machine else core)
        if not whole and not sentence.endswith("?") and not _UNSURE.search(sentence):
            for clause in told:
                claims += _claims(clause)
    repeatable = not asks and any(sum(map(len, core)) >= REPEATED_CHARS_MIN for core in said)
    return Reading(frozenset(said if repeatable else ()), tuple(dict.fromkeys(claims)), count)


# From a sentence to clauses in the third person.

_LEAD: Final = re.compile(
    r"^(?:(?:and|but|so|also|well|yeah|yes|no|oh|wow|hey|hi|hello|actually|anyway|by the way|btw|fyi|update|correction|"
    r"note|"
    r"as of (?:today|now)|these days|nowadays|currently|right now|at the moment|today|recently|lately|finally|good "
    r"news)[,:!]+\s+"
    r"|(?:and|but|so|now|currently|these days|nowadays)\s+)+",
    re.I,
)
_UNSURE: Final = re.compile(
    r"\b(?:if|unless|would|could|might|may(?=\s[a-z])|maybe|perhaps|should|will|won['’]t|shall|probably|possibly|"
    r"supposedly|"
    r"apparently|reportedly|likely|almost|nearly|going to|gonna|plans?|planning|planned|hop(?:es?|ing|ed)|wish(?:es|"
    r"ed)?|wants?|"
    r"wanted|considering|considered|consider|thinking|thinks?|thought|dream(?:s|ing|ed)?|imagine|pretend(?:s|ing)?|"
    r"suppose[ds]?|"
    r"guess|heard|rumou?rs?|said|says|claims?|claimed|told|believes?|wonder(?:s|ing)?|remember(?:s|ed)?|joked|lied|"
    r"never mind|"
    r"as a (?:child|kid|boy|girl)|years? ago|months? ago|back then|originally|previously|formerly|at first|tomorrow|"
    r"[’']ll|next (?:week|month|year|summer|winter|spring|fall|autumn)|sometimes|also|too|another|second|as well|"
    r"part-?time|freelanc\w+|either|or|like to|love to)\b|[’']d\b|[\"“”]",
    re.I,
)
_NEGATIONS: Final = (
    (re.compile(r"\bcan['’]t\b|\bcannot\b", re.I), "can not"), (re.compile(r"\bwon['’]t\b", re.I), "will not"),
    (re.compile(r"\b(\w+)n['’]t\b", re.I), r"\1 not"), (re.compile(r"\b(\w+['’]s) (not|no longer)\b"), r"\1 \2"),
)  # fmt: skip
_NO_LONGER: Final = re.compile(r"\b(I|[Ww]e|[Tt]hey|[Yy]ou)\s+(?:no longer|never)\s+(\w+)")
_ANYMORE: Final = re.compile(r"\s+any ?(?:more|longer)$", re.I)


def _plain_negation(sentence: str) -> str:
    for pattern, full in _NEGATIONS:
        sentence = pattern.sub(full, sentence)
    return _NO_LONGER.sub(r"\1 do not \2", _ANYMORE.sub("", sentence))


def _told(clause: str, name: str) -> str:
    """A clause in the third person, without what says only that it is so now."""
    clause = as_told_by(_AM.sub("I am", clause), name)
    while True:
        shorter = tidy(_NOW.sub(" ", _TAIL.sub("", clause)))
        if shorter == clause:
            return clause
        clause = shorter


_AM: Final = re.compile(r"\b[Ii]['’]?m\b")
_NOW: Final = re.compile(
    r"\s(?:now|currently|just|recently|finally|actually|already|still|officially|really|presently|happily|even|only|"
    r"also)\s", re.I
)
_TAIL: Final = re.compile(
    r",?\s+(?:now|currently|again|instead|today|yesterday|these days|nowadays|at the moment|at present|right now|for "
    r"now|already|"
    r"(?:earlier )?this (?:week|month|year|morning|spring|summer|autumn|fall|winter)|last (?:week|month|night|weekend)|"
    r"(?:since|as of|effective) .{3,24})$",
    re.I,
)

# Claims of slots.


def _claims(clause: str) -> Iterator[Claim]:
    """The claims of a clause in the third person."""
    for pattern, relation, kind in ENDED:
        if (found := pattern.match(clause)) is not None and (claim := _checked(found, relation, kind, denied=True)) is not None:
            yield claim
    plain, denied = _without_negation(clause)
    if not (_PAST_TIME.search(plain) and " moved" in plain):
        for pattern, relation, kind in SLOTS:
            if (found := pattern.match(plain)) is not None and (claim := _checked(found, relation, kind, denied=denied)):
                yield claim
        for pattern in (HOLDER, ATTRIBUTE, ATTRIBUTE_OF, ATTRIBUTE_THE, FAVOURITE):
            if (found := pattern.match(plain)) is not None:
                if (claim := _attribute(found, denied=denied)) is not None:
                    yield claim
                break
    if (state := _state(plain, denied=denied)) is not None:
        yield state


_PAST_TIME: Final = re.compile(r"\b(?:in|since|around|by) (?:\w+ )?(?:19|20)\d\d\b|\bago\b|\bwhen\b|\bback in\b|"
                               r"\bafter\b|\bbefore\b", re.I)
_USED_TO: Final = re.compile(r"^(.{1,60}?) used to (?:be )?(.+)$", re.I)
_STOPPED: Final = re.compile(r"^(.{1,60}?) (?:has )?(?:stopped|quit|gave up|given up) (\w{3,}ing)\b(.*)$", re.I)
_NOT: Final = re.compile(r"\b(is|are|has|have|can|does|do) (?:not|no longer)(?: longer)?\b(?! only)|\bno longer\b|"
                         r"\bnever\b", re.I)


def _without_negation(clause: str) -> tuple[str, bool]:
    """The clause as if it were not denied, and whether it is."""
    if (found := _USED_TO.match(clause)) is not None:
        was = re.match(r"^used to be\b", clause[len(found[1]) + 1 :], re.I)
        return (f"{found[1]} is {found[2]}" if was else f"{found[1]} {_finite(found[2])}"), True
    if (found := _STOPPED.match(clause)) is not None:
        return f"{found[1]} is {found[2]}{found[3]}", True
    found = _NOT.search(clause)
    if found is None:
        return clause, False
    before, after = clause[: found.start()], clause[found.end() :].strip()
    helper = (found[1] or "").casefold()
    if helper in {"does", "do"} or (not helper and found[0].casefold() != "never"):
        after = _finite(after)
    elif helper:
        after = f"{found[1]} {after}"
    return tidy(f"{before} {after}"), True


def _finite(rest: str) -> str:
    """The base form that a sentence goes on with after "does not", as it stands without it: "live in" → "lives in"."""
    verb, _space, tail = rest.partition(" ")
    low = verb.casefold()
    if low in {"have", "has"}:
        verb = "has"
    elif low.endswith(("s", "sh", "ch", "x", "z", "o")) and not low.endswith("ss"):
        verb = verb if low.endswith("s") else f"{verb}es"
    elif low.endswith("ss"):
        verb = f"{verb}es"
    elif low.endswith("y") and low[-2:-1] not in "aeiou":
        verb = f"{verb[:-1]}ies"
    else:
        verb = f"{verb}s"
    return f"{verb} {tail}".strip()


_VAGUE_SUBJECT: Final = bag(
    "it this that these those there he she they we you who which what someone somebody everyone everybody nobody "
    "anyone people "
    "thing things here one ones his her their its our your"
)
_MANY: Final = re.compile(r"\b(?:and|or|as well as|both|various|several|many|etc|plus|also|too|part-?time|weekends?)\b|"
                          r"[&/;]|, (?!\d{4}|(?-i:[A-Z]))", re.I)


def _subject(text: str) -> str | None:
    words = [word for word in re.findall(r"[\w'’-]+", text.casefold()) if word not in {"the", "a", "an", "new", "current", "s"}]
    if not words or len(words) > 6 or words[0] in _VAGUE_SUBJECT or any(word in _SUBORDINATE for word in words):
        return None
    return " ".join(words)


_SUBORDINATE: Final = bag("who which that because when while as if whether where how than but since though although not")


def _checked(found: re.Match[str], relation: str, kind: Kind, *, denied: bool) -> Claim | None:
    """A slot's claim, unless its object is none that could be the only one."""
    groups = found.groupdict()
    subject, said = _subject(groups["s"]), tidy(groups["o"])
    if subject is None or not said or (kind != "time" and _MANY.search(said)) or _clause_like(said):
        return None
    if kind in {"place", "name"} and not _is_named(said, article=relation == "works at"):
        return None
    if relation == "works at" and said.casefold().split()[0] in {"home", "night", "least", "hours", "days", "years", "months"}:
        return None
    if kind == "time" and (WHEN.search(said) is None or re.search(rf"{DAYS}s\b", said)):
        return None
    noun = groups.get("n")
    if noun is not None:
        relation = relation.format(n=_singular(noun.casefold().strip()))
    return Claim(subject, relation, said, kind, denied)


def _attribute(found: re.Match[str], *, denied: bool) -> Claim | None:
    name, said = _singular(found["n"].casefold()), tidy(found["o"])
    name = re.sub(r"^(?:current|new) ", "", name)
    name = name.replace("favourite", "favorite").replace("colour", "color").replace("e-mail", "email")
    subject = _subject(found["s"] or "the")
    if subject is None and found.re is ATTRIBUTE_THE and found["s"].strip().casefold() in {"", "new", "current"}:
        subject = "the"
    if subject is None or not said or _MANY.search(said) or _clause_like(said) or len(said.split()) > 7:
        return None
    last = name.split()[-1]
    kind: Kind = "text"
    if WHEN.search(said) is not None:
        kind = "time"
    elif last in NUMBER_SLOTS or re.match(rf"^{NUMERAL}\b", said, re.I):
        kind = "number"
        if re.search(r"\d", said) is None and re.match(rf"^{NUMERAL}\b", said, re.I) is None:
            return None
    elif last in PLACE_SLOTS:
        kind = "place"
    plain = kind != "text" or last in PEOPLE_SLOTS | PLAIN_SLOTS or name.startswith("favorite ")
    if not plain and re.search(r"[A-Z]|^(?:an?|the)\s", said) is None:
        return None
    if last in {"phone", "telephone", "mobile", "number"} and re.search(r"\d", said) is None:
        return None
    if last in PEOPLE_SLOTS or kind == "place":
        if not said[:1].isupper():
            return None
        kind = "place" if kind == "place" else "name"
    relation = {"phone": "phone number", "telephone": "phone number", "mobile": "phone number", "profession": "works as",
                "occupation": "works as", "job": "works as", "home": "lives in", "home city": "lives in",
                "employer": "works at"}.get(name, name)  # fmt: skip
    if last in PARTNERS:
        relation = "partner"
    if relation in {"works as", "email address"}:
        said = re.sub(r"^(?:an?|the)\s+", "", said)
    return Claim(subject, relation.replace("email address", "email"), said, kind, denied)


def _singular(noun: str) -> str:
    first, space, rest = noun.partition(" ")
    words = noun if space and not rest.startswith(("in ", "on ", "at ")) else first
    if words.endswith("s") and not words.endswith(("ss", "us", "is")) and words == first and first not in {"costs", "weighs"}:
        first = f"{first[:-3]}y" if first.endswith("ies") else first[:-1]
    return f"{first}{space}{rest}" if words == first else noun.removesuffix("s")


def _clause_like(said: str) -> bool:
    words = said.casefold().split()
    return len(words) > 8 or any(word in _RELATIVE for word in words) or words[0] in _NO_OBJECT


_RELATIVE: Final = bag("who which that because when while where whose than but though although until so if whether "
                       "like unless")
_NO_OBJECT: Final = bag("it them this these those something anything everything nothing not very too so getting being "
                        "similar what how")


def _is_named(said: str, *, article: bool) -> bool:
    """Whether an object is a name, or (for a workplace) a thing with its article."""
    words = said.split()
    if words[0].casefold() in {"a", "an", "the"} and len(words) > 1:
        return article or words[1][:1].isupper()
    return words[0][:1].isupper()


# Claims of states: word for word, in the present tense.

_OPPOSITES: Final = {
    "dislikes": "likes", "hates": "likes", "closed": "open", "dead": "alive", "disabled": "enabled", "unavailable": "available",
    "forbidden": "allowed", "inactive": "active", "private": "public", "unfinished": "finished", "invalid": "valid",
    "unemployed": "employed", "offline": "online", "unlocked": "locked", "unhappy": "happy", "broken": "working",
    "unsafe": "safe", "empty": "full", "left-handed": "right-handed", "sick": "healthy", "incorrect": "correct",
    "false": "true",
}  # fmt: skip
_SAME: Final = {"loves": "likes", "enjoys": "likes", "adores": "likes", "owns": "has", "doesnt": "not", "kids": "children"}
_STATE_FILLERS: Final = bag(
    "a an the really very just quite so at all currently now still also much any some to be been being currently "
    "already actually only even s"
)
_PRESENT: Final = bag("is are has can owns likes loves hates")
_NOT_STATE: Final = bag("there here it this that these those we you they he she let please thanks thank")
_FLEETING: Final = bag("going coming getting looking feeling trying waiting running doing making taking tired busy "
                       "hungry sure ready back")
"""What is so for an hour: its denial is no change of a fact."""


def _state(plain: str, *, denied: bool) -> Claim | None:
    """A clause in the present tense as a claim that its own denial rules out."""
    found = re.findall(r"[\w$€£%][\w'’.,:/@%-]*", plain.casefold())
    words = [word.replace("’", "'").rstrip(".,:") for word in found]
    if not 3 <= len(words) <= 14 or words[0] in _NOT_STATE or any(word in _SUBORDINATE for word in words):
        return None
    verb = next((at for at, word in enumerate(words) if at and (word in _PRESENT or _present(word, words[at - 1]))), None)
    if verb is None or verb > 5 or any(word in _FLEETING for word in words):
        return None
    rest: list[str] = []
    for word in words[verb:]:
        word = _SAME.get(word) or word
        if word in _OPPOSITES:
            word, denied = _OPPOSITES[word], not denied
        if word not in _STATE_FILLERS and word not in {"is", "are"}:
            rest.append(_stem(word))
    subject = _subject(" ".join(words[:verb]))
    if subject is None or not rest or (len(rest) == 1 and rest[0] in {"has", "can", "do"}):
        return None
    return Claim(subject, "state", " ".join(rest), None, denied)


def _present(word: str, before: str) -> bool:
    """Whether a word looks like a verb in the third person: "speaks", and no possessive before it."""
    return (
        len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "'s")) and not before.endswith("'s")
        and before not in {"the", "a", "an", "of", "and"}
    )  # fmt: skip


def _stem(word: str) -> str:
    """What the forms of a verb or a noun have in common, roughly: "smokes", "smoking" → "smok"."""
    if any(ch.isdigit() for ch in word):
        return word
    for ending in ("ing", "es", "s", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            return word[: -len(ending)]
    return word
