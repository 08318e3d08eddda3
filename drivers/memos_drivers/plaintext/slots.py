"""The relations that have one object at a time, and the sentences that state them: tables of patterns, nothing else.

Every pattern matches a whole clause in the third person and without a negation (`claims` makes it so). Group `s` is the
subject, `o` the object; `n`, where there is one, is part of the relation's name, for which `{n}` stands.
"""

from __future__ import annotations

import re
from typing import Final, Literal

from memos_drivers.parametric.words import bag

Kind = Literal["place", "name", "number", "time", "class", "text"]
"""How objects of a relation are compared."""

_WHO: Final = r"(?P<s>[^,;:]{1,60}?)"
_O: Final = r"(?P<o>.{1,60})"
DAYS: Final = r"(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day"
_MONTHS: Final = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sep(?:t(?:ember)?)?|Oct(?:ober)?|"
    r"Nov(?:ember)?|Dec(?:ember)?)"
)
WHEN: Final = re.compile(
    rf"\b(?:{DAYS}\b|{_MONTHS}\b(?! [a-z])|\d{{1,2}}(?::\d\d)?\s*(?:am|pm|a\.m|p\.m|o'clock)\b|\d{{1,2}}:\d\d\b|noon\b|"
    rf"midnight\b|"
    r"\d{4}-\d\d-\d\d|(?:19|20)\d\d\b)"
)
_UNITS: Final = """no one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen"""
_TENS: Final = "twenty thirty forty fifty sixty seventy eighty ninety"
NUMBERS: Final[dict[str, str]] = {word: str(value) for value, word in enumerate(_UNITS.split())} | {
    word: str(10 * value) for value, word in enumerate(_TENS.split(), 2)
}
NUMERAL: Final = rf"(?:[$€£]?\d[\d.,]*(?:%|k|m|bn)?|{'|'.join(NUMBERS)})"
_CHANGED: Final = (
    r"(?:is|are|became|(?:was|were|has been|have been|is being|got|has|have)?\s?(?:changed|moved|updated|raised|"
    r"lowered|reduced|"
    r"increased|cut|set|pushed|pushed back|brought forward|postponed|rescheduled|delayed|extended|shifted|switched|"
    r"risen|rose|"
    r"dropped|fell|fallen|grew|grown|went up|gone up|renamed)(?: back| up| down| out| again)?(?: from .{1,40}?)? (?:to|"
    r"until|till)|"
    r"(?:was|has been|is)? ?(?:scheduled|planned|set|due|booked|fixed|slated)(?: for)?)"
)
_ATTRIBUTES: Final = (
    r"name|nickname|address|phone(?: number)?|telephone(?: number)?|mobile(?: number)?|number|e-?mail(?: address)?|"
    r"birthday|birth date|"
    r"date of birth|age|height|weight|shoe size|size|salary|rent|price|cost|budget|deadline|due date|password|pin|"
    r"passcode|code|"
    r"user ?name|login|job title|title|boss|manager|supervisor|doctor|dentist|therapist|landlord|landlady|accountant|"
    r"lawyer|"
    r"hometown|home town|home city|home|colou?r|capital|population|version|status|location|venue|room|office|seat|gate|"
    r"blood type|"
    r"limit|rate|date|start date|end date|time|start time|eta|temperature|capacity|target|quota|host|port|owner|ceo|"
    r"cto|cfo|chair|"
    r"president|mayor|captain|coach|head|lead|leader|headquarters|time ?zone|nationality|native language|wife|husband|"
    r"spouse|"
    r"girlfriend|boyfriend|fianc[ée]e?|current \w+|default \w+|main \w+|maximum \w+|minimum \w+|max \w+|min \w+|"
    r"primary \w+|(?:mother|native) tongue|(?:official |original |native )?language|(?:official )?religion|genre|"
    r"favou?rite(?: \w+){1,3}|opening hours|password hint|profession|occupation|job|employer|diet|surname|last name|"
    r"first name|middle name|speed limit|interest rate|discount|balance|score|rank|ranking|priority|theme|bank|flight "
    r"number"
)
PEOPLE_SLOTS: Final = bag(
    "boss manager supervisor doctor dentist therapist landlord landlady accountant lawyer owner ceo cto cfo chair "
    "president mayor "
    "captain coach head lead leader wife husband spouse girlfriend boyfriend fiance fiancé fiancee fiancée"
)
PARTNERS: Final = bag("wife husband spouse girlfriend boyfriend fiance fiancé fiancee fiancée")
NUMBER_SLOTS: Final = bag("age height weight size salary rent price cost budget population limit rate capacity target "
                          "discount")
PLAIN_SLOTS: Final = bag(
    "nickname color colour password pin passcode code status capital blood type language tongue religion genre theme priority "
    "food movie film book song drink animal season sport team band game dish meal fruit subject show artist author actor"
)
"""Attributes whose object may be any word: "her status is green". Of the others an object has a name, a number or an
article in it: "my room is big" says not which room."""
PLACE_SLOTS: Final = bag("hometown home headquarters location capital")


def _whole(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"^{pattern}$", re.I)


SLOTS: Final[tuple[tuple[re.Pattern[str], str, Kind], ...]] = (
    (_whole(rf"{_WHO} (?:has been |is )?(?:lives|living|resides|residing|based|located) (?:in|at) {_O}"), "lives in", "place"),
    (_whole(rf"{_WHO} (?:has )?(?:moved|relocated)(?: back)?(?: from [^,]{{1,30}}?)? to {_O}"), "lives in", "place"),
    (_whole(rf"{_WHO} (?:has been |is )?(?:works|working|employed) (?:at|for|by) {_O}"), "works at", "name"),
    (
        _whole(
            rf"{_WHO} (?:has )?(?:started|began|begun|got|took|landed|accepted)(?: working| work| (?:a|the|his|her|a "
            rf"new|the new) "
            rf"(?:job|position|role|post))? (?:at|with|for) {_O}"
        ),
        "works at", "name",
    ),
    (_whole(rf"{_WHO} (?:has been |is )?(?:plays|playing) for {_O}"), "plays for", "name"),
    (_whole(rf"{_WHO} (?:has been |is )?(?:works|working|employed) as (?:an?|the) {_O}"), "works as", "text"),
    (_whole(rf"{_WHO} (?:is|turned|has turned) (?P<o>\d{{1,3}})(?: years old| years of age)?"), "age", "number"),
    (_whole(rf"{_WHO} is (?P<o>(?:\w+-)?\w+ years) old"), "age", "number"),
    (_whole(rf"{_WHO} (?:is|got|has got) (?:happily )?(?P<o>single|married|divorced|engaged|widowed|separated)(?: to "
            rf"[^,]+)?"),
     "marital status", "class"),
    (_whole(rf"{_WHO} (?:is|got) (?:married|engaged) to {_O}"), "partner", "name"),
    (_whole(rf"{_WHO} (?:is )?(?:dating|in a relationship with) {_O}"), "partner", "name"),
    (_whole(rf"{_WHO} (?:is|became|went|has become|has gone)(?: an?)? (?P<o>vegan|vegetarian|pescatarian|omnivore|"
            rf"carnivore)"),
     "diet", "class"),
    (_whole(rf"{_WHO} (?:has|have|owns|own|keeps) (?:got )?(?:only |about |exactly |around )?(?P<o>{NUMERAL}) "
            rf"(?P<n>[a-z][a-z' -]{{1,30}})"),
     "number of {n}", "number"),
    (_whole(rf"(?:there (?:is|are)) (?P<o>{NUMERAL}) (?P<n>[a-z][a-z' -]{{1,30}} (?:in|on|at) (?P<s>.{{2,40}}))"),
     "number of {n}", "number"),
    (_whole(rf"{_WHO} (?P<n>costs|weighs|earns|pays|contains|holds|seats|charges|takes|measures) (?:about |around |"
            rf"only )?(?P<o>{NUMERAL}\b.{{0,30}})"),
     "{n}", "number"),
    (_whole(rf"{_WHO} is (?:about |around )?(?P<o>{NUMERAL} ?[a-z]+) (?P<n>tall|long|wide|deep|heavy|high|away|thick)"),
     "{n}", "number"),
    (_whole(rf"{_WHO} (?:is|was) (?:located|situated|headquartered) in {_O}"), "located in", "place"),
    (_whole(rf"{_WHO} (?:was )?(?P<n>born|founded|established|originated|died) (?:in|at) {_O}"), "{n} in", "place"),
    (_whole(rf"{_WHO} (?:was |is )?(?P<n>born|founded|established|released|died|due|launched) (?:in|on) {_O}"),
     "{n} on", "time"),
    (_whole(rf"{_WHO} (?:was|is) (?P<n>created|developed|written|directed|produced|invented|designed|founded|composed|"
            rf"painted) by {_O}"),
     "{n} by", "name"),
    (_whole(rf"(?P<s>(?:the|writer's|[\w]+['’]s) .{{1,40}}?) (?P<n>opens|closes|starts|ends|begins|leaves|departs|"
            rf"arrives|expires|lands) "
           rf"(?:on |at |in |by )?{_O}"), "{n}", "time"),
    (_whole(rf"(?P<s>(?:the|[\w]+['’]s) .{{1,40}}?) {_CHANGED} (?:on |at |for |by |in )?{_O}"), "is on", "time"),
)  # fmt: skip
ATTRIBUTE: Final = _whole(
    rf"(?P<s>[\w][\w .'’-]{{0,40}}?)(?:['’]s?) (?:new |current )?(?P<n>{_ATTRIBUTES}) (?:{_CHANGED}|is called) (?:in |"
    rf"at |on |for )?{_O}"
)
ATTRIBUTE_OF: Final = _whole(
    rf"the (?:new |current )?(?P<n>{_ATTRIBUTES}) (?:of|for|in) (?P<s>.{{2,40}}?) {_CHANGED} (?:in |at |on |for )?{_O}"
)
ATTRIBUTE_THE: Final = _whole(
    rf"the (?P<s>(?:[\w-]+ ){{0,3}})(?:new |current )?(?P<n>{_ATTRIBUTES}) {_CHANGED} (?:in |at |on |for )?{_O}"
)
HOLDER: Final = _whole(
    r"(?P<o>[^,]{2,40}?) is the (?:new |current )?(?P<n>ceo|cto|cfo|president|mayor|captain|coach|chair) of (?P<s>.{2,40})"
)
FAVOURITE: Final = _whole(r"(?P<o>.{2,40}) is (?P<s>\w+)['’]s (?:new |current )?(?P<n>favou?rite(?: \w+){1,2})")
ENDED: Final[tuple[tuple[re.Pattern[str], str, Kind], ...]] = (
    (_whole(rf"{_WHO} (?:has )?(?:quit|left|resigned from|lost) (?:\w+['’]s|the|his|her|their) (?:job|position|role|"
            rf"post) (?:at|with) {_O}"),
     "works at", "name"),
    (_whole(rf"{_WHO} (?:was|got|has been) (?:fired|laid off|let go) (?:from|by) {_O}"), "works at", "name"),
    (_whole(rf"{_WHO} (?:has )?(?:moved (?:out of|away from)) {_O}"), "lives in", "place"),
    (_whole(rf"{_WHO} (?:has )?(?:broke up with|broken up with|split up with|divorced) {_O}"), "partner", "name"),
)  # fmt: skip
