"""English words that reading by rule needs: verbs and their forms, function words, dates, what a person can own.

Data and look-ups only. A verb that is missing here makes a rule less sharp, never wrong about what is kept: the object
then comes from a preposition, a copula or the sentence's end.
"""

from __future__ import annotations

import re
from typing import Final


def bag(words: str) -> frozenset[str]:
    return frozenset(words.split())


ARTICLES: Final = frozenset({"a", "an", "the"})
COPULAS: Final = bag("is are was were am be been being")
AUXILIARIES: Final = bag("has have had do does did will would can could may might must shall should")
PREPOSITIONS: Final = bag(
    "in on at by of for from to with into within near about as under over through between against during since until around "
    "after before towards toward onto via alongside behind beside below above across"
)
LINKS: Final = COPULAS | PREPOSITIONS | {"called", "named", "titled", "nicknamed", "'s"}
"""After the last of these stands the object."""
ADVERBS: Final = bag(
    "also just still never always often now usually sometimes ever even once professionally originally currently finally"
)
GREETINGS: Final = bag(
    "hi hello hey thanks thank you wow ok okay yes yeah no sure great cool bye goodbye cheers congrats congratulations welcome "
    "please sorry right exactly absolutely agreed nice awesome good morning evening night luck sounds so much very really"
)
_MONTH: Final = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sep(?:t(?:ember)?)?|oct(?:ober)?|"
    r"nov(?:ember)?|dec(?:ember)?)\.?"
)
DATES: Final = (
    r"(?:" + _MONTH + r" \d{1,2}(?:st|nd|rd|th)?,? \d{4}|\d{1,2}(?:st|nd|rd|th)?(?: of)? " + _MONTH + r",? \d{4}|"
    r"\d{1,2}(?:st|nd|rd|th)?(?: of)? " + _MONTH + r"|" + _MONTH + r" \d{1,2}(?:st|nd|rd|th)?|" + _MONTH + r",? \d{4}|"
    + _MONTH + r"|\d{4}-\d{2}(?:-\d{2})?|(?:1[0-9]|20)\d{2}s?|"
    r"(?:mon|tues|wednes|thurs|fri|satur|sun)days?(?: (?:morning|afternoon|evening|night)s?)?|"
    r"(?:spring|summer|autumn|winter)(?: (?:of )?\d{4})?|"
    r"\d{1,2}(?::\d{2})? ?(?:am|pm|a\.m|p\.m|o['’]clock)|\d{1,2}:\d{2}|noon|midnight)"
)  # fmt: skip
_DATE: Final = re.compile(r"^(?:(?:early|late|mid|about|the|in|on|at) )?" + DATES + r"$", re.I)

_REGULAR: Final = bag(
    "accept adopt admire adore agree aim allow announce answer appear apply appoint arrive ask assign attach attend "
    "avoid award "
    "back bake base belong book borrow bottle call camp cancel carry cause celebrate change check choose clean climb "
    "close coach "
    "collect commute compete complete compose consider contain continue cook cost count cover cross cycle cure dance decide "
    "declare dedicate deliver depend describe design destroy develop die direct discover dislike divorce donate dream dress "
    "earn edit elect email employ enjoy enter enrol establish exercise expect expire explain explore face fear feature film "
    "finish fish fix follow form formulate found garden graduate grow guess guide handle happen hate head headquarter "
    "help hike "
    "hire hope host hunt import include inherit inspire install intend invent invest invite jog join juggle jump kill knit "
    "label last laugh launch learn like link list live locate look love lower manage manufacture march mark marry master match "
    "mention miss move name need nominate notice observe offer open operate order organise organize originate own paint park "
    "partner pass perform phone pick plan plant play plot practice practise prefer premiere prepare present print produce "
    "promise propose publish pull push raise reach realise realize receive recommend record reduce reflect refuse register "
    "release relocate remain remember rename rent repair replace report represent require research reside restore "
    "retire return "
    "review row rule sail save score seem serve settle share shop show sign skate ski smoke snack sound specialise specialize "
    "sponsor stand star start stay stop store stream study succumb suffer suggest support surf surround swap talk taste tend "
    "thank tour train translate travel treat trust try turn tutor type understand use visit volunteer vote wait walk want "
    "watch water weigh whistle wish wonder work worship wrap debut air own collapse occur relate translate weave"
)
_IRREGULAR: Final = {
    "be": "was been", "become": "became become", "begin": "began begun", "break": "broke broken", "bring": "brought brought",
    "build": "built built", "buy": "bought bought", "catch": "caught caught", "come": "came come", "cut": "cut cut",
    "do": "did done", "draw": "drew drawn", "drink": "drank drunk", "drive": "drove driven", "eat": "ate eaten",
    "fall": "fell fallen", "feed": "fed fed", "feel": "felt felt", "fight": "fought fought", "find": "found found",
    "fly": "flew flown", "forget": "forgot forgotten", "get": "got gotten", "give": "gave given", "go": "went gone",
    "grow": "grew grown", "have": "had had", "hear": "heard heard", "hide": "hid hidden", "hit": "hit hit", "hold": "held held",
    "hurt": "hurt hurt", "keep": "kept kept", "know": "knew known", "lead": "led led", "leave": "left left",
    "lend": "lent lent", "lose": "lost lost", "make": "made made", "mean": "meant meant", "meet": "met met", "pay": "paid paid",
    "put": "put put", "quit": "quit quit", "read": "read read", "ride": "rode ridden", "ring": "rang rung", "run": "ran run",
    "say": "said said", "see": "saw seen", "sell": "sold sold", "send": "sent sent", "set": "set set", "sing": "sang sung",
    "sit": "sat sat", "sleep": "slept slept", "speak": "spoke spoken", "spend": "spent spent", "stand": "stood stood",
    "swim": "swam swum", "take": "took taken", "teach": "taught taught", "tell": "told told", "think": "thought thought",
    "understand": "understood understood", "wake": "woke woken",
    "wear": "wore worn", "win": "won won", "write": "wrote written",
    "choose": "chose chosen", "shoot": "shot shot", "grind": "ground ground", "bear": "bore born",
}  # fmt: skip
_VOWELS: Final = "aeiou"


def _s(base: str) -> str:
    if base in {"have", "do", "be"}:
        return {"have": "has", "do": "does", "be": "is"}[base]
    if base.endswith("y") and base[-2:-1] not in _VOWELS:
        return base[:-1] + "ies"
    return base + ("es" if base.endswith(("s", "x", "z", "ch", "sh", "o")) else "s")


def _ed(base: str) -> str:
    if base.endswith("e"):
        return base + "d"
    if base.endswith("y") and base[-2:-1] not in _VOWELS:
        return base[:-1] + "ied"
    doubled = re.search(r"^[^aeiou]*[aeiou][bdgmnprt]$", base) or base in {
        "refer",
        "prefer",
        "equip",
        "enrol",
        "cancel",
        "travel",
    }
    return base + (base[-1] if doubled and base not in {"air"} else "") + "ed"


_BASE_OF: Final[dict[str, str]] = {}
"""Every finite form, with its infinitive."""
_PAST: Final[set[str]] = set()
for _base in sorted(_REGULAR):
    for _form in (_base, _s(_base), _ed(_base), _base + "ed"):
        _BASE_OF.setdefault(_form, _base)
    _PAST.update((_ed(_base), _base + "ed"))
for _base, _forms in _IRREGULAR.items():
    _past, _participle = _forms.split()
    for _form in (_base, _s(_base), _past):
        _BASE_OF[_form] = _base
    _PAST.add(_past)
_NOUNS_TOO: Final = bag(
    "back base book cause change coach cost cover cross dream face film form garden guide head help hope host label "
    "last like link "
    "list look mark master match name need order park partner plan plant plot present print report research review row "
    "rule score "
    "share shop show sign sound stand star start stop store stream support surf talk taste tour train treat trust turn "
    "tutor type "
    "use visit vote wait walk watch water wish wonder work camp water phone air record ski skate dance fish hike dress garden "
    "count march may set cut hit run ride read play fall drink fight ring bear means found"
)


def is_verb(word: str) -> bool:
    """Whether it is a finite form. A base form that is a noun as well counts as a verb: callers look at what stands before."""
    return word.strip(',;:()"“”').casefold() in _BASE_OF


def is_noun_too(word: str) -> bool:
    return word.casefold() in _NOUNS_TOO or word.casefold().rstrip("s") in _NOUNS_TOO


def base_of(verb: str) -> str:
    """ "moved" → "move"; an unknown word loses a regular ending."""
    low = verb.casefold()
    if low in _BASE_OF:
        return _BASE_OF[low]
    if low.endswith(("ies", "ied")):
        return low[:-3] + "y"
    if low.endswith("ed"):
        return low[:-2]
    return low[:-1] if low.endswith("s") and not low.endswith("ss") else low


def is_past(verb: str) -> bool:
    low = verb.casefold()
    return low in _PAST or (low.endswith("ed") and low not in _BASE_OF)


def with_s(base: str) -> str:
    """ "relax" → "relaxes"."""
    return _s(base)


def third_person(verb: str) -> str:
    """ "work" → "works"; what is not a known base form in the present stays."""
    low = verb.casefold()
    fixed = {"am": "is", "have": "has", "do": "does", "don't": "doesn't", "don’t": "doesn’t", "haven't": "hasn't"}
    if low in fixed:
        return fixed[low]
    return _s(low) if _BASE_OF.get(low) == low and low not in _PAST else verb


def is_date(text: str) -> bool:
    return bool(_DATE.match(text.strip()))


def is_number(text: str) -> bool:
    return bool(
        re.match(r"^[$€£]?\d[\d.,:]*%?(?: \w+){0,2}$", text)
        or re.match(
            r"^(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|forty|fifty)\b", text, re.I
        )
    )


PEOPLE: Final = bag(
    "sister brother mother father mom mum dad wife husband partner boyfriend girlfriend son daughter child kid kids "
    "children uncle "
    "aunt cousin niece nephew grandmother grandfather grandma grandpa friend roommate flatmate neighbour neighbor boss "
    "colleague "
    "manager teacher doctor dentist landlord therapist coach fiancé fiancee mother-in-law father-in-law"
)
ANIMALS: Final = bag("dog cat pet horse hamster rabbit parrot bird fish puppy kitten turtle goat cow pony guinea")
CLASSES: Final = bag(
    "position sport language religion city country continent genre instrument role title name profession "
    "occupation job capital "
    "town village state owner creator author founder club team band book film company firm school university street airline "
    "restaurant magazine newspaper song group"
)
"""Nouns that stand before a name and say what it is of: "the continent Africa"."""
ENTITY_NOUNS: Final = (
    PEOPLE
    | ANIMALS
    | bag(
        "car bike bicycle motorcycle van boat house flat apartment home garden phone laptop computer guitar piano "
        "violin company team band school office shop bakery wedding birthday anniversary"
    )
)
"""What an owner's name stands before when the thing itself is meant: "Alice's dog"."""


_JOB: Final = re.compile(
    r"^(?:[\w-]+ ){0,3}(?:nurse|cook|chef|judge|pilot|guide|poet|coach|vet|clerk|maid|priest|athlete|architect|pianist|"
    r"\w{2,}(?:er|or|ist|ian|ologist|ant|smith|man|woman|ress|keeper|maker|yer))$"
)
_NO_JOB: Final = re.compile(
    r"(?:vegetarian|sister|brother|mother|father|retriever|spaniel|shepherd|terrier|setter|pointer|cancer|number|computer|fan|"
    r"(?:amer|ital|austral|can|hungar|norweg|roman|brazil|ind|russ|german|asi)\w*an)$",
    re.I,
)


def is_job(text: str) -> bool:
    return bool(_JOB.match(text)) and not _NO_JOB.search(text) and not is_number(text)
