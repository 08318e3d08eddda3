"""Other ways to say and to ask what a statement says, by rule.

`family(prompt, subject)` finds which kind of relation a statement states, and `say` puts a subject into one of its wordings.
`asked(prompt, object, subject)` makes questions out of any statement, and `plain(prompt, subject)` makes "X, developed by" a
sentence. `to_second` turns what a writer says ("I moved") into what is said to them ("You moved").
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, NamedTuple

from .clauses import verb_at
from .relations import FAMILIES, NO_FAMILY, Family
from .words import (
    ANIMALS,
    ARTICLES,
    AUXILIARIES,
    CLASSES,
    COPULAS,
    PEOPLE,
    PREPOSITIONS,
    bag,
    base_of,
    is_date,
    is_job,
    is_number,
    is_past,
    with_s,
)

_BY_NAME: Final = {each.name: each for each in reversed(FAMILIES)}


@lru_cache(maxsize=4096)
def family(prompt: str, subject: str, target: str = "") -> Family:
    """The first family whose pattern fits what the prompt says beside its subject, or else all of it."""
    rest = " ".join(re.sub(re.escape(subject), " ", prompt, count=1, flags=re.I).split())
    is_a = re.fullmatch(r"(?:['’]m|am|is|was) an?", rest)
    if is_a and set(subject.casefold().split()) & ANIMALS:
        return _BY_NAME["breed"]
    if is_a and is_job(target):
        return _BY_NAME["occupation"]
    if rest in {"is", "was"} and target[:1].isupper() and set(re.split(r"\W+", subject.casefold())) & PEOPLE:
        return _BY_NAME["name"]
    bare = re.sub(r" (?:a|an|the)$", "", rest)
    whole = prompt if subject[:3].casefold() in {"my ", "our"} else ""
    for text in filter(None, (rest, bare, whole)):
        for each in FAMILIES:
            if each.pattern.search(text):
                return each
    return NO_FAMILY


class Voice(NamedTuple):
    """A subject, ready for a wording."""

    nominative: str
    accusative: str
    possessive: str
    plain: bool
    """Verbs have no ending after it: "I", "we", "you"."""


def voice(subject: str, to: str = "first") -> Voice:
    """`to`: "first" as the writer says it, "second" as it is said to the writer, "third" as it is said about them."""
    if subject in {"I", "we"}:
        one = subject == "I"
        if to == "second":
            return Voice("you", "you", "your", True)
        if to == "third":
            return Voice("the user", "the user", "the user's", False)
        return Voice("I", "me", "my", True) if one else Voice("we", "us", "our", True)
    name = subject
    if re.match(r"(?:my|our) ", subject, re.I) and to != "first":
        name = re.sub(r"^(?:my|our) ", "your " if to == "second" else "the user's ", subject, flags=re.I)
    return Voice(name, name, f"{name}'" if name.endswith("s'") else f"{name}'s", False)


_BE: Final = {"I": "am", "we": "are", "you": "are"}
_VERB: Final = re.compile(r"\[(\w+)\]")
_DO: Final = re.compile(r"\b(does|is|was|has) \{s\}")


def say(wording: str, who: Voice) -> str:
    """The wording with this subject, capitalised."""

    def agree(match: re.Match[str]) -> str:
        base = match[1]
        if base == "be":
            return _BE.get(who.nominative, "is")
        return base if who.plain else with_s(base)

    def helper(match: re.Match[str]) -> str:
        plain = {
            "does": "do",
            "is": _BE.get(who.nominative, "is"),
            "was": "was" if who.nominative == "I" else "were",
            "has": "have",
        }
        return f"{plain[match[1]] if who.plain else match[1]} {{s}}"

    text = _VERB.sub(agree, _DO.sub(helper, wording))
    if who.plain:
        text = re.sub(r"\{s\} (is|was|has|does|runs|lies|lines|belongs)\b", lambda m: f"{{s}} {_plain_form(m[1], who)}", text)
        text = re.sub(r"\b(of|to|for|about|by|with|around|between|after|like|that gave) \{s\}", r"\1 {o}", text)
    text = text.replace("{s}", who.nominative).replace("{p}", who.possessive).replace("{o}", who.accusative)
    return text[:1].upper() + text[1:]


def _plain_form(verb: str, who: Voice) -> str:
    if verb == "is":
        return _BE[who.nominative]
    if verb == "was":
        return "was" if who.nominative == "I" else "were"
    return {"has": "have", "does": "do"}.get(verb, base_of(verb))


# Statements.

_RELATIVE: Final = (
    (re.compile(r"^(.+?), (?:who|which|that) (.+)$"), r"\1 \2"),
    (re.compile(r"^(.+?), whose (.+)$"), r"\1's \2"),
    (re.compile(r"^(.+?), (in|from|at|on|by|near)$"), r"\1 is \2"),
    (re.compile(r"^(.+?), ((?:a|an|the)\b.*|speaker of|native in|product of|citizen of)$"), r"\1 is \2"),
    (re.compile(r"^(.+?), (\w+(?:ed|wn|de|lt|un|lt) (?:in|by|at|on|from|for|after))$"), r"\1 was \2"),
    (re.compile(r"^(.+?), ((?:play|perform|speak|work|hold|liv)ing\b.*)$"), r"\1 is \2"),
    (re.compile(r"^(.+?), (located|situated|based|headquartered)( \w+)$"), r"\1 is \2\3"),
)


def plain(prompt: str, subject: str) -> str:
    """ "X, developed by" as "X was developed by"; other prompts as they are."""
    if not prompt.casefold().startswith(subject.casefold()):
        return prompt
    rest = prompt[len(subject) :]
    for pattern, text in _RELATIVE:
        found = pattern.match("S" + rest)
        if found:
            return subject + found.expand(text)[1:]
    return prompt


_SECOND: Final = (
    (re.compile(r"\b(?:I|i)['’]m\b|\b(?:I|i) am\b"), "you are"),
    (re.compile(r"\b(?:I|i) was\b"), "you were"),
    (re.compile(r"\bam I\b"), "are you"),
    (re.compile(r"\bwas I\b"), "were you"),
    (re.compile(r"\b(?:I|i|[Ww]e)(?=['’](?:ve|d|ll|re)\b)"), "you"),
    (re.compile(r"\b(?:I|i|[Ww]e)\b(?!['’.])"), "you"),
    (re.compile(r"\b(?:[Mm]y|[Oo]ur)\b"), "your"),
    (re.compile(r"\b(?:mine|ours)\b"), "yours"),
    (re.compile(r"\b(?:me|us)\b"), "you"),
    (re.compile(r"\bmyself\b"), "yourself"),
)


def is_personal(subject: str) -> bool:
    return subject in {"I", "we"} or bool(re.match(r"(?:my|our) ", subject, re.I))


def to_second(text: str) -> str:
    for pattern, new in _SECOND:
        text = pattern.sub(new, text)
    return text[:1].upper() + text[1:]


# Questions out of any statement.

_PLACE: Final = bag("in at from to into near within on under behind below above beside inside")


class Asked(NamedTuple):
    direct: list[str]
    """Questions, the best first; there is always one."""
    indirect: list[str]
    """The same as parts of a sentence: "where I work"."""


def asked(prompt: str, target: str, subject: str) -> Asked:
    """Questions that the statement answers."""
    own = re.match(r"^((?:What|Which|Where|Who|When|How)\b[^?]*\?)", prompt)
    if own:
        return Asked([own[1]], [])
    keyed = re.match(r"^(.+?)\s*[:=]$", prompt)
    if keyed:
        return Asked(
            [f"What is the {_lower(keyed[1])}?", f"What does it say under {keyed[1]}?"], [f"what the {_lower(keyed[1])} is"]
        )
    text = plain(prompt, subject)
    words = text.split()
    at = verb_at(words)
    if at is None or at == 0:
        return Asked([f"What comes after this: {text}?"], [])
    noun, verb, rest = " ".join(words[:at]), words[at], words[at + 1 :]
    verb, noun, rest = _untie(noun, verb, rest)
    best = re.fullmatch(r"(?:My|my|Our|our) favou?rite (.+)", noun)
    if best and verb.casefold() in COPULAS and not rest:
        who = "we" if noun[:1] in "Oo" else "I"
        which = [f"Which {best[1]} do {who} prefer?", f"What is the {best[1]} that {who} like most?"]
        return Asked([f"What is {_lower(noun)}?", *which], [f"what {_lower(noun)} is", f"which {best[1]} {who} prefer"])
    kind = ""
    if rest and rest[-1] in CLASSES:
        # "I support the football club": "Which football club do I support?"
        start = max((at for at, word in enumerate(rest) if word in ARTICLES), default=len(rest) - 2) + 1
        kind, rest = " ".join(rest[start:]), rest[:start]
    while rest and rest[-1].casefold() in ARTICLES:
        rest.pop()
    noun = _lower(noun) if not noun.startswith("I ") and noun != "I" else noun
    last = rest[-1].casefold() if rest else ""
    heads = [(f"Which {kind}", True)] if kind else _heads(target, last)
    if last in {"on", "in", "at"} and re.fullmatch(r"(?:[a-z-]+ )+[a-z-]+", target):
        heads.append((f"{last.capitalize()} which {target.split()[-1]}", False))
    elif last not in {"as", "to"} and re.fullmatch(r"[a-z-]+ [a-z-]+", target):
        heads.append((f"Which {target.split()[-1]}", True))
    if subject in {"I", "we"} and not rest and verb.casefold() in COPULAS:
        heads = [("What", True), ("Who or what", True)]
    direct: list[str] = []
    indirect: list[str] = []
    for head, strands in heads:
        tail = rest if strands else rest[:-1]
        direct.append(_question(head, noun, verb, tail))
        late = verb.casefold() in COPULAS and not tail
        indirect.append(" ".join([_lower_wh(head), noun, verb, *tail] if not late else [_lower_wh(head), noun, verb]))
    return Asked(direct, indirect)


def _lower_wh(head: str) -> str:
    return head[:1].lower() + head[1:]


def _untie(noun: str, verb: str, rest: list[str]) -> tuple[str, str, list[str]]:
    """Contractions: "I'm" is "I" and "am"."""
    low = verb.casefold().replace("’", "'")
    for end, full in (("'m", "am"), ("'re", "are"), ("'ve", "have"), ("'d", "would"), ("'ll", "will"), ("'s", "is")):
        if low.endswith(end):
            return full, f"{noun} {verb[: -len(end)]}".strip(), rest
    return verb, noun, rest


def _heads(target: str, last: str) -> list[tuple[str, bool]]:
    """Question words with whether the statement's last preposition stays behind."""
    prep = last in PREPOSITIONS
    if is_date(target):
        year = re.fullmatch(r"\d{4}", target)
        return [("When", not prep), ("In which year" if year else "On which date", not prep)]
    if prep and last in _PLACE:
        if target[:1].isupper():
            return [("Where", last in {"from", "to"}), ("Which place", True)]
        return [("Where", last in {"from", "to"}), ("What", True)]
    if prep and last in {"by", "with", "for"}:
        return [("Who", True), ("What", True)]
    if is_number(target):
        return [("What", True), ("Which number", True)]
    if last in {"named", "called"}:
        return [("What", True)]
    return [("What", True)]


def _question(head: str, noun: str, verb: str, rest: list[str]) -> str:
    low = verb.casefold()
    perfect = low in {"has", "have", "had"} and bool(rest) and bool(re.search(r"(?:ed|en|wn|ne|ght|pt|lt|ade)$", rest[0]))
    if low in COPULAS or low.endswith("n't") or low in AUXILIARIES - {"has", "have", "had"} or perfect:
        words = [head, low, noun, *rest]
    else:
        plain_one = noun in {"I", "we", "you", "they"}
        words = [head, "did" if is_past(low) else "do" if plain_one else "does", noun, base_of(low), *rest]
    return " ".join(words) + "?"


def _lower(text: str) -> str:
    first = text.split(" ", 1)[0]
    low = first.casefold()
    if low in ARTICLES or low in PREPOSITIONS or low in {"my", "our", "his", "her", "its", "their", "this", "that", "we"}:
        return low + text[len(first) :]
    return text
