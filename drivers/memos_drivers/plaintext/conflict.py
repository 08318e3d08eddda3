"""Whether two texts say the same, or cannot both be true now: rules over what `claims` reads in them. Pure, without a model.

`compare(new, old)` is symmetric in what rules what out; which of the two holds is for who knows their times.

- *duplicate*: every statement of the new text stands in the old one after folding (speaker, person, case, filler words), or
  all that both claim are the same slots with the same objects.
- *contradiction*: a claim of each has the same subject and relation, and
  either the objects of a slot exclude each other (two numbers, two dates, two cities, two names, two of a class),
  or one denies what the other affirms. A text of more than `STATEMENTS_MAX` statements is never contradicted: one
  sentence does not rule out a page.

Objects that may well be the same, one said more precisely ("Berlin" and "Berlin, Germany", "a nurse" and "a night nurse"),
exclude nothing; neither do a city and a country, or relations that have many objects (hobbies, likes, friends). A wrong
contradiction is worse than a missed one: what is not sure is `None`.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final, Literal

from memos_drivers.parametric.words import bag

from .claims import WRITER, Claim, Reading, read
from .slots import NUMBERS, Kind

__all__ = ["Reading", "Verdict", "compare", "cues", "read"]

Verdict = Literal["duplicate", "contradiction"]
STATEMENTS_MAX: Final = 4


def compare(new: Reading, old: Reading) -> Verdict | None:
    """What the new text is to the old one; None when both may stand."""
    if new.said and new.said <= old.said:
        return "duplicate"
    slots = [claim for claim in new.claims if claim.kind is not None]
    same = [claim for claim in slots if any(_agree(claim, other) for other in old.claims)]
    if new.statements <= STATEMENTS_MAX and old.statements <= STATEMENTS_MAX:
        by_slot: dict[tuple[str, str], list[Claim]] = {}
        for claim in old.claims:
            by_slot.setdefault((claim.subject, claim.relation), []).append(claim)
        for claim in new.claims:
            against = by_slot.get((claim.subject, claim.relation), [])
            # A text that says both, "moved from Rome to Oslo", contradicts neither.
            if any(_exclude(claim, other) for other in against) and not any(_agree(claim, other) for other in against):
                return "contradiction"
    if slots and len(same) == len(slots) and new.statements == old.statements == 1:
        theirs = [claim for claim in old.claims if claim.kind is not None]
        if all(_equal(claim.object, other.object) for claim, other in zip(slots, theirs, strict=False)):
            return "duplicate"
    return None


_CUES: Final = {
    "lives in": "lives lived live moved home", "works at": "works work job employer", "works as": "works work job",
    "partner": "married engaged dating wife husband", "marital status": "married single engaged divorced",
    "diet": "vegetarian vegan", "age": "years old turned", "is on": "",
}  # fmt: skip


def cues(reading: Reading) -> list[str]:
    """Words by which texts are found that may speak of the same: one query for each slot, however it was put."""
    found = {
        f"{claim.subject.removeprefix(WRITER.casefold())} {_CUES.get(claim.relation, claim.relation)}".strip()
        for claim in reading.claims if claim.kind is not None
    }  # fmt: skip
    return sorted(found)


def _agree(one: Claim, other: Claim) -> bool:
    return (one.subject, one.relation, one.denied) == (other.subject, other.relation, other.denied) and _equal(
        one.object, other.object
    )


def _exclude(one: Claim, other: Claim) -> bool:
    """Whether two claims of the same subject and relation cannot both hold."""
    if one.denied and other.denied:
        return False
    if one.denied or other.denied:
        # What is denied must be all of what is affirmed: who does not eat red meat may eat meat.
        affirmed, denied = (other, one) if one.denied else (one, other)
        wanted, said = _words(denied.object), _words(affirmed.object)
        return bool(wanted) and (wanted == said or (one.kind is not None and wanted <= said))
    return one.kind is not None and one.kind == other.kind and _differ(one.kind, one.object, other.object)


def _differ(kind: Kind, one: str, other: str) -> bool:
    """Whether two objects of a slot cannot both be its object."""
    if _equal(one, other):
        return False
    if kind == "time":
        return _times_differ(one, other)
    mine, theirs = _words(one), _words(other)
    if kind == "class":
        return True
    numbers = [sorted(word for word in words if word[:1].isdigit()) for words in (mine, theirs)]
    if kind == "number":
        rest = [{word for word in words if not word[:1].isdigit()} for words in (mine, theirs)]
        return all(numbers) and numbers[0] != numbers[1] and rest[0] == rest[1]
    if mine <= theirs or theirs <= mine:
        return False
    if kind == "place" and _is_land(mine) != _is_land(theirs):
        return False
    if numbers[0] != numbers[1] and all(numbers):
        return True
    # "mushroom pizza" and "pizza with mushrooms", "Ann Smith" and "Dr. Smith": what shares a word may be the same.
    return not any(_alike(a, b) for a in mine for b in theirs)


def _alike(one: str, other: str) -> bool:
    """Whether two words may be forms of each other, or one short for the other."""
    return one == other or (min(len(one), len(other)) >= 4 and (one.startswith(other[:4]) and one[-1:] == other[-1:])) or (
        min(len(one), len(other)) >= 3 and (one.startswith(other) or other.startswith(one))
    )  # fmt: skip


def _equal(one: str, other: str) -> bool:
    return bool(_words(one)) and _words(one) == _words(other)


_FILLERS: Final = bag("a an the of at in on for to about around only exactly city now s with by is its his her their")
_CLOCK: Final = re.compile(r"\b(\d{1,2})(?::(\d\d))?\s*(am|pm|a\.m\.?|p\.m\.?|o'clock)?(?!\S*\d)\b", re.I)


def _words(text: str) -> frozenset[str]:
    """What of an object counts, folded."""
    folded = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    folded = re.sub(r"(?<=\d),(?=\d{3}\b)", "", folded)
    folded = re.sub(r"[$€£]\s?(\d)", r"\1", folded)
    folded = re.sub(r"(?<=\d)k\b", "000", folded)
    words = (word.strip(".,:;!'-").removesuffix("'s") for word in re.findall(r"[\w@.,:'+/#-]+", folded))
    return frozenset(NUMBERS.get(word) or word for word in words if word and word not in _FILLERS)


# Times.

_WEEKDAYS: Final = bag("monday tuesday wednesday thursday friday saturday sunday")
_MONTHS: Final = "jan feb mar apr may jun jul aug sep oct nov dec".split()  # noqa: SIM905


def _times_differ(one: str, other: str) -> bool:
    """Whether two times have a part in common that differs: both a weekday, both a date, both a time of day."""
    mine, theirs = _time_parts(one), _time_parts(other)
    return any(mine[part] != theirs[part] for part in mine.keys() & theirs.keys())


def _time_parts(text: str) -> dict[str, object]:
    folded = text.casefold()
    parts: dict[str, object] = {}
    words = re.findall(r"[a-z]+", folded)
    for word in words:
        if word in _WEEKDAYS:
            parts["weekday"] = word
        elif word[:3] in _MONTHS and (len(word) == 3 or word in _FULL_MONTHS):
            parts["month"] = word[:3]
    if (iso := re.search(r"\b(\d{4})-(\d\d)-(\d\d)", folded)) is not None:
        parts |= {"year": int(iso[1]), "month": _MONTHS[min(max(int(iso[2]), 1), 12) - 1], "day": int(iso[3])}
        folded = folded.replace(iso[0], " ")
    if (year := re.search(r"\b(19|20)\d\d\b", folded)) is not None:
        parts["year"] = int(year[0])
        folded = folded.replace(year[0], " ")
    if "month" in parts and "day" not in parts and (day := re.search(r"\b(\d{1,2})(?:st|nd|rd|th)?\b(?!:| ?[ap]\.?m)", folded)):
        parts["day"] = int(day[1])
        folded = folded[: day.start()] + " " + folded[day.end() :]
    clock = re.search(r"\b(\d{1,2})(?::(\d\d))?\s*([ap])?\.?m?\b", folded)
    if "noon" in words or "midnight" in words:
        parts["minutes"] = 720 if "noon" in words else 0
    elif clock is not None:
        half = {"p": 720, "a": 0, None: None}[clock[3]]
        minutes = int(clock[1]) % 12 * 60 + int(clock[2] or 0)
        if half is None:
            # "3" may be in the morning or in the afternoon: it differs from what is neither.
            parts["dial"] = minutes
            if int(clock[1]) > 12:
                parts["minutes"] = minutes + 720
        else:
            parts |= {"minutes": minutes + half, "dial": minutes}
    return parts


_FULL_MONTHS: Final = bag(
    "january february march april may june july august september sept october november december"
)

# Places: a country holds its cities, so they exclude nothing.

_LANDS: Final = bag(
    "afghanistan albania algeria andorra angola argentina armenia australia austria azerbaijan bahamas bahrain "
    "bangladesh barbados "
    "belarus belgium belize benin bhutan bolivia bosnia botswana brazil brunei bulgaria burundi cambodia cameroon "
    "canada chad chile "
    "china colombia congo croatia cuba cyprus czechia denmark dominica ecuador egypt england eritrea estonia eswatini "
    "ethiopia fiji "
    "finland france gabon gambia georgia germany ghana greece grenada guatemala guinea guyana haiti honduras hungary "
    "iceland india "
    "indonesia iran iraq ireland israel italy jamaica japan jordan kazakhstan kenya kosovo kuwait kyrgyzstan laos "
    "latvia lebanon "
    "lesotho liberia libya liechtenstein lithuania luxembourg madagascar malawi malaysia maldives mali malta "
    "mauritania mauritius "
    "mexico moldova monaco mongolia montenegro morocco mozambique myanmar namibia nepal netherlands holland nicaragua "
    "niger nigeria "
    "norway oman pakistan palestine panama paraguay peru philippines poland portugal qatar romania russia rwanda samoa "
    "scotland "
    "senegal serbia seychelles singapore slovakia slovenia somalia spain sudan suriname sweden switzerland syria "
    "taiwan tajikistan "
    "tanzania thailand togo tunisia turkey türkiye turkmenistan uganda ukraine uruguay usa us uk uzbekistan vatican "
    "venezuela vietnam "
    "wales yemen zambia zimbabwe europe asia africa america oceania scandinavia balkans britain states kingdom zealand "
    "korea arabia "
    "alabama alaska arizona arkansas california colorado connecticut delaware florida hawaii idaho illinois indiana "
    "iowa kansas "
    "kentucky louisiana maine maryland massachusetts michigan minnesota mississippi missouri montana nebraska nevada "
    "ohio oklahoma "
    "oregon pennsylvania tennessee texas utah vermont virginia wisconsin wyoming dakota carolina jersey hampshire "
    "bavaria tuscany "
    "catalonia andalusia provence normandy ontario quebec queensland tasmania island coast countryside suburbs city "
    "town village "
    "downtown apartment house flat region county valley bay area north south east west district neighborhood "
    "neighbourhood street road "
    "avenue building dorm campus"
)
"""Also what lies in a city, or around one: it says where on another scale."""


def _is_land(words: frozenset[str]) -> bool:
    return any(word in _LANDS for word in words)
