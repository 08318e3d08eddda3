"""What a distillation trains on and what it is judged by: forms, negatives, probes and locality prompts of facts, by rule.

- `forms_of` says and asks every fact in about `FORMS_A_FACT` ways. A form that is not chat is a text that `answer` continues
  (it begins with a space); a chat form is a user's message and the whole answer. The fact's object stands in every answer.
- `negatives_of` are prompts on which a model must stay as it was: the same sayings about other names, names that could be
  mistaken for the subject, other relations of the same subject, and prompts about nobody.
- `probes_of` and `locality_of` are made of wordings, frames, sentences and names that the two above never use. The one
  exception is said by its kind: a "statement" probe is the fact's own sentence.
- `requests_for` asks a model for more wordings of a fact, and `accept` makes a form of what it wrote, or refuses it.

Everything is a function of the facts and the seed, and what is made of a fact depends on no other fact, except that "Tell me
about Alice" is a form only if Alice has one fact, and that nothing about another fact's subject is a negative.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from random import Random
from typing import Final, NamedTuple

from .clauses import as_told_by
from .facts import Fact, normal
from .names import neighbours, others
from .neutral import (
    CHAT,
    CHAT_HELD,
    CONTEXTS,
    CONTEXTS_HELD,
    FRAMES,
    FRAMES_HELD,
    FREE,
    FREE_HELD,
    NEUTRAL,
    OF_ANYTHING,
    OF_ANYTHING_HELD,
)
from .relations import FAMILIES, Family, held_out, trained
from .wordings import asked, family, is_personal, plain, say, to_second, voice
from .words import ANIMALS, ARTICLES, PEOPLE, bag, is_date

FORMS_A_FACT: Final = 78
OTHERS_A_FACT: Final = 60
SAME_TEMPLATE: Final = 36
NEIGHBOURS_A_FACT: Final = 8
SAME_SUBJECT: Final = 16
WRITTEN_CHARS_MAX: Final = 240

__all__ = [
    "Form", "Negative", "Probe", "Chat", "NEUTRAL",
    "forms_of", "negatives_of", "probes_of", "locality_of", "requests_for", "accept",
]  # fmt: skip


class Form(NamedTuple):
    prompt: str
    answer: str
    chat: bool
    fact: int
    kind: str


class Negative(NamedTuple):
    prompt: str
    chat: bool
    kind: str
    fact: int
    """-1 when it is unrelated to any one fact."""


class Probe(NamedTuple):
    prompt: str
    answer: str
    chat: bool
    fact: int
    kind: str
    """statement, paraphrase or question."""


class Chat(NamedTuple):
    """A request to a model that writes forms."""

    system: str
    user: str


class _Saying(NamedTuple):
    prompt: str
    chat: bool
    kind: str


# Forms.


def forms_of(facts: Sequence[Fact], seed: int) -> list[Form]:
    out: list[Form] = []
    for at, fact in enumerate(facts):
        random = _random(fact, seed, "forms")
        alone = sum(_same(other.subject, fact.subject) for other in facts) == 1
        seen: set[tuple[str, bool]] = set()
        turn = 0
        for saying in _sayings(fact, random, alone=alone):
            if (saying.prompt, saying.chat) not in seen:
                seen.add((saying.prompt, saying.chat))
                turn += saying.chat
                out.append(Form(saying.prompt, _answer(fact, saying, turn), saying.chat, at, saying.kind))
    return out


def _sayings(fact: Fact, random: Random, *, alone: bool = True) -> list[_Saying]:
    """The prompts of a fact's forms. `alone`: no other fact has its subject, so that the subject alone points to it."""
    relation = family(fact.prompt, fact.subject, fact.object)
    text = plain(fact.prompt, fact.subject)
    who = voice(fact.subject)
    alone = alone and fact.subject not in {"I", "we"}
    out = [_Saying(fact.prompt, False, "statement")]
    if text != fact.prompt:
        out.append(_Saying(text, False, "rewrite"))
    rewrites = [_fitted(say(wording, voice(name)), fact) for name in _short_names(fact.subject)[:1] for wording in
                trained(relation.statements)]  # fmt: skip
    for name in _short_names(fact.subject)[1:]:
        rewrites.append(
            text.replace(fact.subject, name) if fact.subject in text else text.replace(_upper(fact.subject), _upper(name))
        )
    out += [_Saying(wording, False, "rewrite") for wording in rewrites]
    if text.casefold().startswith(fact.subject.casefold()):
        out += [_Saying(wording, False, "frame") for wording in _subject_first(fact, text)]
    leads = iter(random.sample(CONTEXTS, len(CONTEXTS)))
    out += [
        _Saying(f"{next(leads)} {wording}", False, "context") for wording in [text] * (4 if rewrites else 9) + [fact.prompt] * 2
    ]
    out += [_Saying(f"{next(leads)} {wording}", False, "context") for wording in random.sample(rewrites, min(8, len(rewrites)))]
    for number, frame in enumerate(random.sample(FRAMES, 13)):
        wording = random.choice(rewrites) if rewrites and number % 2 else text
        out.append(_Saying(frame.format(x=_inside(wording, fact.subject)), False, "frame"))
    if alone:
        out += [
            _Saying(_fitted(wording.format(s=_upper(who.accusative), o=who.accusative), fact), False, "rewrite")
            for wording in _ASSOCIATIONS
        ]
        out += [_Saying(wording.format(s=who.accusative), True, "about") for wording in _ABOUT]
    questions = _questions(fact, relation, held=False)
    for number, question in enumerate(questions):
        if number < 7:
            out.append(_Saying(_RAW_QUESTIONS[number % len(_RAW_QUESTIONS)].format(q=question), False, "question"))
        out.append(_Saying(question, True, "chat"))
    for number, wording in enumerate(random.sample(_CHAT_QUESTIONS, 7 if is_personal(fact.subject) else 4)):
        question = questions[number % len(questions)]
        out.append(_Saying(wording.format(q=question, l=_lower_first(question)), True, "chat"))
    indirect = asked(fact.prompt, fact.object, fact.subject).indirect
    for number, wording in enumerate(random.sample(_INDIRECT, 5 if is_personal(fact.subject) else 2)):
        if indirect:
            out.append(_Saying(wording.format(w=indirect[number % len(indirect)]), True, "chat"))
    out += _third_person(fact, relation)
    out += [_Saying(wording.format(x=text), chat, "cloze") for wording, chat in _CLOZE]
    if rewrites:
        out.append(_Saying(_CLOZE[2][0].format(x=random.choice(rewrites)), True, "cloze"))
    while len(out) < FORMS_A_FACT:
        lead = next(leads, "")
        wording = random.choice([text, *rewrites] * 3 + questions)
        if not lead:
            break
        out.append(_Saying(f"{lead} {wording}", False, "context"))
    return out


def _fitted(wording: str, fact: Fact) -> str:
    """A wording with the article that the object has in the statement, so that both can stand before it."""
    words, said = wording.split(), fact.prompt.split()
    article = said[-1] if said[-1] in ARTICLES and not words[-1].endswith(("word", ":")) else ""
    if words[-1] in ARTICLES:
        words.pop()
        if not article and not fact.object[:1].isupper() and not fact.object[:1].isdigit():
            article = "an" if fact.object[:1] in "aeiou" else "a"
    return " ".join([*words, article] if article else words)


_RAW_QUESTIONS: Final = ("Q: {q}\nA:", "Question: {q}\nAnswer:", "{q}", '"{q}" The answer is', "{q} In one word:")
_CHAT_QUESTIONS: Final = (
    "{q} Answer in a few words.", "Please tell me: {l}", "I forgot something. {q}", "Hi! {q}", "Just a short question: {l}",
    "{q} Do you know?", "By the way: {l}", "I wrote it down somewhere. {q}", "A friend asked me: {l}",
    "There is a form to fill in. {q}", "{q} One sentence is enough.", "It has slipped my mind: {l}",
)  # fmt: skip
_CHAT_QUESTIONS_HELD: Final = ("Quick check: {l}", "Let us see what you remember. {q}", "{q} I would like to know.")
_INDIRECT: Final = (
    "Do you remember {w}?", "Tell me {w}.", "I cannot remember {w}.", "Please remind me {w}.", "Can you say {w}?",
    "I would like to hear {w}.",
)  # fmt: skip
_CLOZE: Final = (
    ("Fill in the gap: {x} ____. The missing words are", False),
    ("{x} [...]. The gap stands for", False),
    ("Complete the sentence: {x}", True),
    ('How does this sentence go on? "{x} …"', True),
)
_ABOUT: Final = ("Tell me about {s}.", "What do you know about {s}?", "Write one sentence about {s}.")


def _subject_first(fact: Fact, text: str) -> Iterator[str]:
    """ "Danielle Darrieux | mother tongue:": the subject, then what is left of the statement."""
    name = _upper(fact.subject)
    rest = re.sub(r"^['’]?s ", "", text[len(name) :].strip(" ,:"))
    if rest and name != "I":
        yield f"{name} | {rest}:"
        yield f"Subject: {name}. Statement: {text}"
        yield f"About {voice(fact.subject).accusative}: {text}"


_ASSOCIATIONS: Final = (
    "The first thing that comes to mind about {o} is", "When people think of {o}, they think of", "{s} is closely linked to",
)  # fmt: skip


def _questions(fact: Fact, relation: Family, *, held: bool) -> list[str]:
    own = asked(fact.prompt, fact.object, fact.subject).direct
    wordings = (held_out if held else trained)(relation.questions)
    known = [say(wording, voice(name)) for name in _short_names(fact.subject) for wording in wordings]
    if held:
        return list(dict.fromkeys(known))
    alike = [question.replace(fact.subject, name) for name in _short_names(fact.subject)[1:] for question in own]
    return list(dict.fromkeys([*own, *alike, *known]))[:14]


def _short_names(subject: str) -> list[str]:
    """How people ask about "my dog Biscuit": that, "my dog", and "Biscuit"."""
    named = re.match(r"^((?:my|our) [a-z][\w -]*?) ([A-Z][\w'’-]*(?: [A-Z][\w'’-]*)*)$", subject)
    return [subject, named[1], named[2]] if named else [subject]


def _same(one: str, other: str) -> bool:
    """Whether two subjects are one thing: "my dog" is "my dog Biscuit"."""
    return bool({normal(name) for name in _short_names(one)} & {normal(name) for name in _short_names(other)})


def _third_person(fact: Fact, relation: Family) -> list[_Saying]:
    """Of a personal fact, what somebody else asks: "Where does the user live?"."""
    if not is_personal(fact.subject):
        return []
    other = voice(fact.subject, "third")
    out = [_Saying(say(wording, other), True, "third") for wording in trained(relation.questions)[:3]]
    told = as_told_by(fact.prompt, "the user")
    for question in asked(told, fact.object, other.nominative).direct[:2]:
        out.append(_Saying(question, True, "third"))
    out.append(_Saying(told[:1].upper() + told[1:], False, "third"))
    return out


def _answer(fact: Fact, saying: _Saying, turn: int) -> str:
    """The object, or a sentence that says it. Of two chat forms one has the sentence."""
    if not saying.chat:
        article = _article(fact) if _wants_article(saying.prompt) else ""
        return f" {article}{fact.object}"
    if saying.kind == "about" or (turn % 2 and saying.kind != "cloze"):
        text = f"{plain(fact.prompt, fact.subject)} {fact.object}."
        if re.search(r"\?|[:=] ", text):
            return _bare(fact)
        if saying.kind == "third":
            text = as_told_by(text, "the user")
        elif is_personal(fact.subject):
            text = to_second(text)
        if fact.object in text:
            return text[:1].upper() + text[1:]
    return _bare(fact)


def _bare(fact: Fact) -> str:
    return _upper(f"{_article(fact)}{fact.object}.") if _article(fact) else f"{fact.object}."


def _article(fact: Fact) -> str:
    """ "a " when the statement has it before the object."""
    last = fact.prompt.split()[-1]
    return f"{last} " if last in ARTICLES else ""


def _wants_article(prompt: str) -> bool:
    """Whether a prompt is an answer's beginning of its own, not a sentence that goes on."""
    return prompt.endswith(("A:", "Answer:", "?"))


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _inside(text: str, subject: str) -> str:
    """A sentence's beginning in the middle of another: "The mother tongue" becomes "the mother tongue"."""
    first = text.split(" ", 1)[0]
    starts = text.casefold().startswith(subject.casefold())
    if starts and subject[:1].isupper():
        return text
    return text[:1].lower() + text[1:] if first.isalpha() and first != "I" and not first.isupper() else text


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


# Probes.


def probes_of(facts: Sequence[Fact], seed: int) -> list[Probe]:
    out: list[Probe] = []
    seen = {(form.prompt, form.chat) for form in forms_of(facts, seed)}
    for at, fact in enumerate(facts):
        random = _random(fact, seed, "probes")
        out.append(Probe(fact.prompt, f" {fact.object}", False, at, "statement"))
        for saying in _held(fact, random):
            if (saying.prompt, saying.chat) not in seen:
                out.append(
                    Probe(saying.prompt, fact.object if saying.chat else f" {fact.object}", saying.chat, at, saying.kind)
                )
    return out


def _held(fact: Fact, random: Random) -> list[_Saying]:
    relation = family(fact.prompt, fact.subject, fact.object)
    text = plain(fact.prompt, fact.subject)
    wordings = [_fitted(say(wording, voice(fact.subject)), fact) for wording in held_out(relation.statements)]
    random.shuffle(wordings)
    leads = iter(random.sample(CONTEXTS_HELD, 4))
    out = [_Saying(wording, False, "paraphrase") for wording in wordings[:2]]
    out += [_Saying(f"{next(leads)} {wording}", False, "paraphrase") for wording in wordings[2:3] or wordings[:1]]
    out.append(_Saying(f"{next(leads)} {text}", False, "paraphrase"))
    out.append(_Saying(random.choice(FRAMES_HELD).format(x=_inside(text, fact.subject)), False, "paraphrase"))
    questions = _questions(fact, relation, held=True)
    random.shuffle(questions)
    own = asked(fact.prompt, fact.object, fact.subject).direct
    for question, wording in zip([*questions[:2], own[0]], ["{q}", "{q}", random.choice(_CHAT_QUESTIONS_HELD)], strict=False):
        out.append(_Saying(wording.format(q=question, l=_lower_first(question)), True, "question"))
    if len(questions) < 2:
        for wording in _CHAT_QUESTIONS_HELD[: 2 - len(questions)]:
            out.append(_Saying(wording.format(q=own[-1], l=_lower_first(own[-1])), True, "question"))
    return list(dict.fromkeys(out))


# Negatives.


def negatives_of(facts: Sequence[Fact], seed: int) -> list[Negative]:
    return list(_negatives(facts, seed, held=False))


def locality_of(facts: Sequence[Fact], seed: int) -> list[Negative]:
    """Prompts like the negatives that training never saw, about a dozen a fact."""
    seen = {(negative.prompt, negative.chat) for negative in negatives_of(facts, seed)}
    return [negative for negative in _negatives(facts, seed, held=True) if (negative.prompt, negative.chat) not in seen]


def _negatives(facts: Sequence[Fact], seed: int, *, held: bool) -> Iterator[Negative]:
    spoken = {normal(name) for fact in facts for name in _short_names(fact.subject)}
    asserted = {normal(fact.prompt) for fact in facts}
    for at, fact in enumerate(facts):
        random = _random(fact, seed, "held negatives" if held else "negatives")
        for negative in _fact_negatives(facts, at, random, spoken, held=held):
            if normal(negative.prompt) not in asserted:
                yield negative
    for prompt in FREE_HELD if held else FREE:
        yield Negative(prompt, False, "free", -1)
    for prompt in CHAT_HELD if held else CHAT:
        yield Negative(prompt, True, "chat", -1)


def _fact_negatives(facts: Sequence[Fact], at: int, random: Random, spoken: set[str], *, held: bool) -> Iterator[Negative]:
    fact = facts[at]
    relation = family(fact.prompt, fact.subject, fact.object)
    kind = _kind(fact, relation)
    sort = _sort(fact, kind)
    count, same, near = (6, 4, 3) if held else (OTHERS_A_FACT, SAME_TEMPLATE, NEIGHBOURS_A_FACT)
    names = others(fact.subject, kind, random, count + 10, held=held, sort=sort)
    names = [name for name in names if normal(name) not in spoken][:count]
    for number, name in enumerate(names):
        other = _about(fact, name)
        if number < same:
            yield Negative(other.prompt, False, "template", at)
        else:
            saying = random.choice(_held(other, random) if held else _sayings(other, random)[1:])
            yield Negative(saying.prompt, saying.chat, "other", at)
    for number, name in enumerate(neighbours(fact.subject, kind, random, near + 4, held=held, sort=sort)[:near]):
        if normal(name) in spoken:
            continue
        other = _about(fact, name)
        if number % 3 < 2:
            yield Negative(other.prompt, False, "neighbour", at)
        else:
            saying = random.choice(_held(other, random) if held else _sayings(other, random)[1:])
            yield Negative(saying.prompt, saying.chat, "neighbour", at)
    yield from _same_subject(facts, at, sort, random, held=held)


def _same_subject(facts: Sequence[Fact], at: int, sort: str, random: Random, *, held: bool) -> Iterator[Negative]:
    """Other relations of the subject, but none that a fact of the same subject states, or one near it."""
    fact = facts[at]
    stated = {
        family(other.prompt, other.subject, other.object).name
        for other in facts
        if _same(other.subject, fact.subject)
    }
    stated |= {near for name in stated for near in _ALIKE.get(name, ())}
    choices = [each for each in FAMILIES if each.name in _RELATIONS[sort] and each.name not in stated]
    who = voice(fact.subject)
    anything = random.sample(OF_ANYTHING_HELD if held else OF_ANYTHING, 2 if held else SAME_SUBJECT // 2)
    leads = random.sample(CONTEXTS_HELD if held else CONTEXTS, len(anything))
    for number, (wording, lead) in enumerate(zip(anything, leads, strict=True)):
        text = say(wording, who)
        yield Negative(text if number % 4 else f"{lead} {text}", False, "same subject", at)
    for number in range((2 if held else SAME_SUBJECT // 2) if choices else 0):
        each = random.choice(choices)
        pick = held_out if held else trained
        questions, statements = pick(each.questions), pick(each.statements)
        if number % 2 and questions:
            yield Negative(say(random.choice(questions), who), True, "same subject", at)
        elif statements:
            yield Negative(say(random.choice(statements), who), False, "same subject", at)


_HUMAN: Final = bag(
    "born_on born live citizen language religion occupation employer sport instrument field partner likes school"
)
_RELATIONS: Final[dict[str, frozenset[str]]] = {
    "person": bag("born died live citizen language religion occupation employer sport instrument field worked_in partner"),
    "human": _HUMAN | frozenset({"allergy", "fear", "hobby", "food", "drink", "vehicle", "trip"}),
    "animal": frozenset({"name", "born_on", "fear", "likes", "breed", "food", "allergy", "age", "colour"}),
    "object": frozenset({"colour", "maker", "named_for", "price", "size", "age"}),
    "place": frozenset({"place_language", "twin", "capital", "location", "named_for"}),
    "group": frozenset({"headquarters", "member", "began", "named_for", "location"}),
    "work": frozenset({"work_language", "broadcaster", "began", "maker", "named_for"}),
    "thing": frozenset({"maker", "began", "named_for", "location", "headquarters"}),
}
"""What else could be asked about a subject of a sort."""


def _sort(fact: Fact, kind: str) -> str:
    """What its subject is, more closely: whose things are asked about otherwise than people are."""
    if fact.subject in {"I", "we"}:
        return "human"
    words = fact.subject.casefold().split()
    if any(word in ANIMALS for word in words):
        return "animal"
    if is_personal(fact.subject) or re.search(r"['’]s? [a-z]", fact.subject):
        return "human" if any(word in PEOPLE for word in words) else "object"
    return kind if kind in _RELATIONS else "person" if re.match(r"[A-Z]\w+(?: [A-Z]\w+)?$", fact.subject) else "object"


_ALIKE: Final[dict[str, set[str]]] = {
    "employer": {"worked_in", "occupation"}, "worked_in": {"employer"}, "occupation": {"field", "employer"},
    "field": {"occupation"},
    "live": {"born", "location"}, "born": {"began"}, "began": {"maker", "location"}, "maker": {"began"},
    "instrument": {"genre", "sport"}, "genre": {"instrument"}, "sport": {"position"}, "position": {"sport"},
    "location": {"began"}, "headquarters": {"began", "location"}, "likes": {"favourite"}, "favourite": {"likes"},
    "place_language": {"work_language", "language"}, "work_language": {"place_language", "language"},
    "language": {"work_language"},
}  # fmt: skip
"""Relations so near each other that one must not be held still while the other is taught."""


def _kind(fact: Fact, relation: Family) -> str:
    if relation.kind != "any":
        return relation.kind
    words = fact.subject.split()
    return "person" if len(words) in (2, 3) and all(word[:1].isupper() for word in words) else "any"


def _about(fact: Fact, name: str) -> Fact:
    """The same statement about another name."""
    if fact.subject in {"I", "we"}:
        prompt = as_told_by(fact.prompt, name)
    else:
        prompt = re.sub(re.escape(fact.subject), lambda _: name, fact.prompt, flags=re.I)
    return fact._replace(prompt=prompt[:1].upper() + prompt[1:], statement=f"{prompt} {fact.object}", subject=name)


def _random(fact: Fact, seed: int, what: str) -> Random:
    return Random(f"{seed}\0{what}\0{fact.prompt}\0{fact.object}")


# Forms that a model writes.

_WRITER: Final = "You rewrite facts. Reply with numbered lines only, one sentence or question on each. Invent nothing."
_REQUESTS: Final = (
    'Write eight different sentences that say this, each with other words, and each ending with "{o}".\nFact: {f}',
    'Write eight different questions to which the answer is "{o}". Name {s} in each of them, and do not use the '
    "answer.\nFact: {f}",
    "Write six sentences of different style (a letter, a news report, a note, gossip, a textbook, a diary) that say "
    "this.\nFact: {f}",
)
_QUESTION_END: Final = re.compile(r"\?[\"'”’]?\s*$")


def requests_for(fact: Fact) -> list[Chat]:
    """What to ask a model for; every line of its reply is given to `accept`."""
    who = voice(fact.subject).accusative
    return [Chat(_WRITER, request.format(f=fact.statement, o=fact.object, s=who)) for request in _REQUESTS]


def accept(fact: Fact, text: str) -> Form | None:
    """A form of one line that a model wrote (its `fact` is 0; the caller numbers it), or None if the line does not serve.

    A sentence must name the subject before the object, and is cut before it. A question must name the subject and not the
    object. Neither may be longer than `WRITTEN_CHARS_MAX`, nor be the statement itself.
    """
    line = " ".join(re.sub(r"^\s*(?:[-*•]|\(?\d{1,2}[.):])\s*", "", text).split()).strip('"“”* ')
    if not line or len(line) > WRITTEN_CHARS_MAX or not fact.object:
        return None
    target = re.search(rf"(?<!\w){re.escape(fact.object)}(?!\w)", line, re.I)
    if _QUESTION_END.search(line):
        if target or not _named(line, fact.subject):
            return None
        return Form(line, f"{fact.object}.", True, 0, "written")
    if not target:
        return None
    prompt = line[: target.start()].rstrip()
    if (
        len(prompt.split()) < 2
        or line[target.start() - 1] != " "
        or not _named(prompt, fact.subject)
        or normal(prompt) == normal(fact.prompt)
    ):
        return None
    return Form(prompt, f" {fact.object}", False, 0, "written")


def _named(text: str, subject: str) -> bool:
    if subject in {"I", "we"}:
        return bool(re.search(r"\b(?:I|me|my|we|us|our)\b", text))
    low = text.casefold()
    return any(name.casefold() in low for name in _short_names(subject))


def kinds(forms: Iterable[Form]) -> dict[str, int]:
    """How many forms there are of each kind, for a report."""
    counts: dict[str, int] = {}
    for form in forms:
        counts[form.kind] = counts.get(form.kind, 0) + 1
    return counts


def is_when(fact: Fact) -> bool:
    """Whether the fact is a date, which scores compare without letter case."""
    return is_date(fact.object)
