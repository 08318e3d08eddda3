"""Names, addresses and links in a text, by rule.

- A name is a run of capitalised words inside a sentence ("Golden Gate Bridge", "Bank of America", "LGBTQ"). At the
  beginning of a sentence a word is capitalised anyway: there it is a name only if the file used it as one before, and not
  in lower case.
- Function words, days, months, greetings and "I" are no names. Text that capitalises nearly everything (titles, shouting)
  says nothing by its capitals, and gives no names.
- E-mail addresses and web addresses are taken as they stand.

What is found depends on what stands earlier in the same file and never on what comes later, so that a file that grew reads
the same as far as it went before.
"""

from __future__ import annotations

import re
from typing import Final

ENTITIES_MAX: Final = 32
"""Of one turn or passage; those after it are left out."""
ENTITY_CHARS_MAX: Final = 120
LINK_CHARS_MAX: Final = 512
WORDS_REMEMBERED_MAX: Final = 50_000

_LINK: Final = re.compile(r"(?:https?://|www\.)[^\s<>\"'`\[\](){}|\\]+", re.IGNORECASE)
_MAIL: Final = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63})+")
_TOKEN: Final = re.compile(r"[^\W\d_][^\W_]*(?:['’.&-][^\W\d_][^\W_]*)*|[.!?:;…\n\"“”(){}\[\]*#>|/]+|[^\s]", re.UNICODE)
_TITLES: Final = frozenset(("mr", "mrs", "ms", "dr", "prof", "st"))
_JOINING: Final = frozenset(("of", "the", "de", "la", "van", "von", "der", "del"))
_NO_NAMES: Final = frozenset(" ".join((
    "i a an the and or but so if then as at by for from in into of off on onto out over to up with without this that",
    "these those he she it we you they me him her us them my your his its our their mine yours who whom whose which what",
    "when where why how is am are was were be been being do does did done have has had will would shall should can could",
    "may might must not no yes yeah yep nope ok okay oh ah wow haha lol hey hi hello hiya thanks thank please sorry well",
    "also just very really too than there here now soon later today tonight tomorrow yesterday monday tuesday wednesday",
    "thursday friday saturday sunday mon tues tue wed weds thu thur thurs fri sat sun january february march april june",
    "july august september october november december jan feb mar apr jun jul aug sep sept oct nov dec tv pm ps btw fyi",
    "omg asap diy faq good great nice congrats congratulations merry happy mom dad mum mama papa grandma grandpa sir",
    "madam let lets like sounds any some all both each every one two three first second last next god it's i'm i've i'd",
    "i'll that's don't let's what's there's we're you're they're he's she's can't won't didn't doesn't isn't aren't",
    "couldn't wouldn't",
)).split())  # fmt: skip
_OF_I: Final = frozenset(("I", "I'", "I’"))
_BREAKS: Final = frozenset('.!?:;…\n"“”(){}[]*#>|/')
_TITLE_CASE_SHARE: Final = 0.65


class Names:
    """What one file has named so far. `of` is called once for each turn, in order."""

    def __init__(self) -> None:
        self._named: set[str] = set()
        self._lower: set[str] = set()

    def know(self, speaker: str | None) -> None:
        """A speaker's name is a name, and so is its first word."""
        if speaker and speaker[0].isupper():
            self._named.update((speaker, speaker.split()[0]))

    def of(self, text: str) -> list[str]:
        """The names and addresses of a text, each once, in order."""
        found: dict[str, None] = {}
        if "://" in text or "www." in text or "@" in text:
            for pattern in (_LINK, _MAIL):
                for match in pattern.finditer(text):
                    found[match[0].rstrip(".,;:!?'’*_")[:LINK_CHARS_MAX]] = None
                text = pattern.sub(" . ", text)
        for name in self._names(text):
            found[name[:ENTITY_CHARS_MAX]] = None
        return list(found)[:ENTITIES_MAX]

    def _names(self, text: str) -> list[str]:
        tokens = _TOKEN.findall(text)
        words = [token for token in tokens if token[0].isalpha()]
        capitals = sum(1 for word in words if word[0].isupper() and word[:2] not in _OF_I)
        remembers = len(self._lower) < WORDS_REMEMBERED_MAX
        if capitals > 3 and capitals > _TITLE_CASE_SHARE * len(words):
            return []
        if remembers:
            self._lower.update(word for word in words if word[0].islower())
        if not capitals:
            return []
        names: list[str] = []
        run: list[str] = []
        joining: list[str] = []
        begins, before = True, ""
        for token in [*tokens, "."]:
            first = token[0]
            if first.isupper():
                word = token.removesuffix("'s").removesuffix("’s")
                if self._is_name(word, begins):
                    run += [*joining, word] if run else [word]
                    if word != token:
                        self._close(names, run)
                else:
                    self._close(names, run)
                joining, begins, before = [], False, token.lower()
            elif not first.isalpha():
                if run:
                    self._close(names, run)
                    joining = []
                begins = begins or (first in _BREAKS and not (token == "." and before in _TITLES))
                before = ""
            else:
                if run and token in _JOINING and len(joining) < 2:
                    joining.append(token)
                elif run:
                    self._close(names, run)
                    joining = []
                begins, before = False, ""
        return names

    def _is_name(self, word: str, begins: bool) -> bool:
        lower = word.lower()
        if len(word) < 2 or lower in _TITLES or lower.replace("’", "'") in _NO_NAMES:
            return False
        if begins:
            return word in self._named and lower not in self._lower
        return not (len(word) > 3 and word.isupper() and lower in self._lower)

    def _close(self, names: list[str], run: list[str]) -> None:
        if run and run != ["New"]:
            names.append(" ".join(run))
            if len(self._named) < WORDS_REMEMBERED_MAX:
                self._named.update((names[-1], run[0]))
        run.clear()
