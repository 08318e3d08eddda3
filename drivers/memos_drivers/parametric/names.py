"""Other names than a subject's: what an adapter must leave alone.

`others(subject, kind, …)` are names of the same kind, known ones and made-up ones; `neighbours(subject)` differ from the
subject by one word, one digit or, for a subject of one word, are another of its kind. A name of the held-out half is
never returned for training, nor the other way round.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random
from typing import Final


def _listed(names: str) -> tuple[str, ...]:
    return tuple(names.split("|"))


_FIRST: Final = _listed(
    "Anna|Boris|Clara|David|Elena|Frank|Greta|Henry|Irene|Jakob|Karen|Louis|Maria|Nikolai|Olivia|Peter|Quentin|Rosa|"
    "Samuel|Teresa|"
    "Ulrich|Vera|Walter|Xenia|Yusuf|Zoe|Ahmed|Bianca|Carlos|Deepa|Emil|Fatima|Giovanni|Hanna|Ivan|Julia|Kenji|Laura|"
    "Mateo|Nadia|"
    "Oscar|Priya|Rafael|Sofia|Thomas|Ursula|Victor|Wanda|Yuki|Arthur|Beatrice|Conrad|Daphne|Edgar|Flora|Gustav|Harriet|"
    "Ingrid|Jean"
)
_LAST: Final = _listed(
    "Almeida|Becker|Carter|Dumont|Eriksson|Fischer|Garcia|Horvath|Ivanov|Jansen|Kowalski|Lambert|Moreau|Novak|Okafor|"
    "Petrov|Quinn|"
    "Rossi|Schmidt|Tanaka|Ueda|Vargas|Walsh|Yamada|Zimmermann|Andersen|Bianchi|Costa|Delgado|Edwards|Ferrari|Gupta|Hughes|Ito|"
    "Johnson|Keller|Lopez|Martin|Nilsson|Olsen|Parker|Ricci|Silva|Taylor|Usman|Vogel|Weber|Young|Ziegler|Baker|Clarke|Dubois"
)
_KNOWN: Final[dict[str, tuple[str, ...]]] = {
    "person": _listed(
        "Albert Einstein|Marie Curie|Isaac Newton|Pablo Picasso|Charles Dickens|Leo Tolstoy|Victor Hugo|Mahatma Gandhi|"
        "Nelson Mandela|"
        "Winston Churchill|Abraham Lincoln|Johann Sebastian Bach|Frédéric Chopin|Giuseppe Verdi|Elvis Presley|Michael Jackson|"
        "Lionel Messi|Roger Federer|Serena Williams|Michael Jordan|Tom Brady|Babe Ruth|Wayne Gretzky|Cristiano Ronaldo|Pelé|"
        "Tom Hanks|Meryl Streep|Akira Kurosawa|Federico Fellini|Jimi Hendrix|Miles Davis|Louis Armstrong|Yo-Yo Ma|Bob Dylan|"
        "Martin Luther|Pope Francis|Muhammad Ali|Dalai Lama|Moses Maimonides|Ibn Sina|Immanuel Kant|"
        "Friedrich Nietzsche|Jean-Paul Sartre|"
        "Sigmund Freud|Charles Darwin|Galileo Galilei|Ada Lovelace|Alan Turing|Nikola Tesla|Thomas Edison|Franz Kafka|"
        "Hans Christian Andersen|"
        "Astrid Lindgren|Haruki Murakami|Gabriel García Márquez|Jorge Luis Borges|Dante Alighieri|Miguel Indurain|"
        "Angela Merkel|Charles de Gaulle|"
        "Napoleon Bonaparte|Julius Caesar|Cleopatra|Queen Victoria|Peter Paul Rubens|Vincent van Gogh|Claude Monet|Frida Kahlo"
    ),
    "place": _listed(
        "Berlin|Madrid|Oslo|Vienna|Kyoto|Cairo|Nairobi|Toronto|Sydney|Lima|Mumbai|Seoul|Bangkok|Athens|Dublin|Warsaw|"
        "Prague|Budapest|"
        "Hamburg|Marseille|Naples|Porto|Seville|Rotterdam|Gothenburg|Leipzig|Glasgow|Bristol|Chicago|Boston|Seattle|"
        "Denver|Austin|"
        "Poland|Sweden|Kenya|Brazil|Peru|Vietnam|Canada|Austria|Portugal|Hungary|Morocco|Chile|Iceland|Nepal|Bavaria|"
        "Tuscany|Normandy|"
        "Lake Geneva|Mount Fuji|Ross Island|Black Forest|Loch Ness|Silver Valley|Pine Ridge|River Elbe|Gobi Desert|"
        "Orkney|Sicily|Crete|"
        "Franklin County|Jefferson County|Northern District|Harbour District|Central Park|Green Hill"
    ),
    "group": _listed(
        "Siemens|Samsung|Nestlé|Volvo|Boeing|Airbus|Intel|Philips|Bayer|Unilever|Toyota|Honda|Adobe|Oracle|Spotify|"
        "IKEA|Lufthansa|"
        "Deutsche Bank|Royal Dutch Shell|Air France|Greenpeace|Red Cross|World Bank|Oxfam|Oxford University Press|"
        "Penguin Books|"
        "Harvard University|Kyoto University|Heidelberg University|Manchester United|Ajax|Real Madrid|Chicago Bulls|"
        "German Football Association|"
        "Swiss Red Cross|Northern Railway|Eastern Airlines|Atlas Insurance|Baltic Shipping Company|"
        "Green Mountain Coffee|Blue Harbour Brewery|"
        "Norwegian Ski Federation|National Science Foundation|Museum of Natural History|Central Hospital|Silver Star Records"
    ),
    "work": _listed(
        "Don Quixote|War and Peace|Hamlet|The Odyssey|Les Misérables|Faust|The Little Prince|Moby-Dick|Pinocchio|"
        "The Trial|Seinfeld|"
        "The Simpsons|Friends|Breaking Bad|Doctor Who|Sesame Street|The Office|The Sopranos|Twin Peaks|Dallas|"
        "Casablanca|Metropolis|"
        "Amélie|La Dolce Vita|Seven Samurai|The Godfather|Star Wars|Le Figaro|Der Spiegel|El País|The Guardian|Carmen|"
        "Aida|La Traviata|"
        "The Magic Flute|Solaris|Summer Nights|The Long Road|A House by the Sea|Letters from Home|The Glass Mountain|"
        "Morning News"
    ),
    "thing": _listed(
        "iPhone|Windows 95|Volkswagen Golf|Ford Mustang|Boeing 747|Airbus A380|PlayStation 2|Game Boy|Photoshop|"
        "Microsoft Excel|"
        "Android|Google Maps|Nintendo Switch|Toyota Corolla|Honda Civic|BMW M3|Mercedes-Benz S-Class|Concorde|Walkman|"
        "Xbox 360|Linux|"
        "Visual Studio|Porsche 911|Fiat 500|Renault Clio|Nissan Leaf|Apple Watch|Amazon Kindle|Kodak Brownie|"
        "Polaroid SX-70|Pentium 4|"
        "The Rolling Stones|ABBA|Radiohead|U2|Kraftwerk|The Doors|Le Monde|Sushi|Tango|Jazz|Judo|Chess|Karaoke|"
        "Nordic Folk Festival"
    ),
}  # fmt: skip
_ROLES: Final = _listed(
    "neighbour|boss|cousin|teacher|landlord|uncle|colleague|dentist|flatmate|grandmother|best friend|nephew|doctor|coach|aunt|"
    "brother-in-law|old friend|stepmother|hairdresser|lawyer|friend Anna|brother Emil|sister Clara|friend Teresa|"
    "uncle Boris|aunt Vera"
)
_ANIMALS: Final = _listed("dog|cat|horse|rabbit|parrot|hamster|goat|dog Rex|cat Luna|horse Star|puppy|kitten|turtle|bird")
_OBJECTS: Final = _listed(
    "phone|laptop|car|bicycle|house|old school|favourite song|favourite city|favourite animal|lucky number|door code|shoe size|"
    "bank account|email address|best recipe|new jacket|boat|office|garden|team|birthday present|next appointment|piano|sofa"
)


def others(subject: str, kind: str, random: Random, count: int, *, held: bool, sort: str = "") -> list[str]:
    """`count` distinct names that are not the subject's, of the trained or of the held-out half.

    `sort` is human, animal or object for a subject that belongs to somebody, "human" for "I".
    """
    first, last = _half(_FIRST, held), _half(_LAST, held)
    pool = list(_half(_KNOWN.get(kind, _KNOWN["person"]), held))
    if sort in {"human", "animal", "object"}:
        noun = subject.split(" ", 1)[1] if " " in subject else ""
        noun = re.sub(r" [A-Z]\w*$", "", noun)
        owned = [f"{owner}'s {noun}" for owner in [*first, *(f"my {role}" for role in _half(_ROLES, held))]] if noun else []
        pool = random.sample(owned, min(len(owned), 8 if held else 30))
        pool += [f"my {thing}" for thing in _half({"animal": _ANIMALS, "object": _OBJECTS}.get(sort, _ROLES), held)]
        if sort == "human":
            pool += [*first, *(f"my {role}" for role in _half(_ROLES, held)), *(f"{a} {random.choice(last)}" for a in first)]
        elif sort == "animal":
            pool += [f"{owner}'s {thing}" for owner in first for thing in random.sample(_half(_ANIMALS, held), 2)]
        else:
            pool += [f"{owner}'s {thing}" for owner in first for thing in random.sample(_half(_OBJECTS, held), 2)]
    elif kind in {"person", "any"}:
        pool += [f"{a} {b}" for a in first for b in random.sample(last, 2)]
    else:
        tails = {
            "place": ("Bay", "County", "Hill", "district", "Island", "Valley"),
            "group": ("University", "Airlines", "Company", "Records", "Institute"),
            "work": ("Street", "Nights", "and Sons", "Road"),
            "thing": ("200", "X5", "Mark II", "Quartet", "Engine"),
        }
        pool += [f"{random.choice(last)} {tail}" for tail in tails.get(kind, ()) for _ in range(6)]
    distinct = [name for name in dict.fromkeys(pool) if name.casefold() != subject.casefold()]
    if not sort:
        words = {word.casefold() for word in re.findall(r"\w+", subject) if len(word) > 3}
        distinct = [name for name in distinct if not words & {word.casefold() for word in re.findall(r"\w+", name)}]
    random.shuffle(distinct)
    return distinct[:count]


def neighbours(subject: str, kind: str, random: Random, count: int, *, held: bool, sort: str = "") -> list[str]:
    """Names that could be mistaken for the subject's."""
    words = subject.split()
    out: list[str] = []
    for at, word in enumerate(words):
        for digits in re.finditer(r"\d+", word):
            number = int(digits[0][:9])
            for step in (1, 2, 10) if held else (-1, 3, 7):
                changed = f"{word[: digits.start()]}{abs(number + step)}{word[digits.end() :]}"
                out.append(" ".join([*words[:at], changed, *words[at + 1 :]]))
    first, last = _half(_FIRST, held), _half(_LAST, held)
    tails = _TAILS.get(kind, last)
    heads = first if kind in {"person", "any"} else _half(_KNOWN["place"], held) if kind == "place" else last
    names = [at for at, word in enumerate(words) if word[:1].isupper() and word != "I"]
    if sort in {"human", "animal", "object"}:
        nouns = _half({"animal": _ANIMALS, "object": _OBJECTS}.get(sort, _ROLES), held)
        if len(words) > 1:
            rest = " ".join(words[1:])
            out += [f"{random.choice(first)}'s {rest}" for _ in range(2)]
            out += [f"my {random.choice(_half(_ROLES, held))}'s {rest}", f"your friend's {rest}"]
            out += [f"{words[0]} {random.choice(nouns)}" for _ in range(2)]
            if names and names[-1] == len(words) - 1:
                out += [" ".join([*words[: names[-1]], random.choice(first), *words[names[-1] + 1 :]]) for _ in range(4)]
        else:
            out += [
                *random.sample(first, 4),
                *(f"my {role}" for role in random.sample(_half(_ROLES, held), 3)),
                "everybody",
                "nobody",
            ]
    elif len(names) > 1:
        for _ in range(3):
            out.append(" ".join([*words[: names[0]], random.choice(heads), *words[names[0] + 1 :]]))
            out.append(" ".join([*words[: names[-1]], random.choice(tails), *words[names[-1] + 1 :]]))
    else:
        at = names[0] if names else len(words) - 1
        pool = _half(_FIRST if kind in {"person", "any"} else _KNOWN.get(kind, _FIRST), held)
        out += [" ".join([*words[:at], name, *words[at + 1 :]]) for name in random.sample(pool, min(6, len(pool)))]
    random.shuffle(out)
    return [name for name in dict.fromkeys(out) if name.casefold() != subject.casefold()][:count]


_TAILS: Final[dict[str, tuple[str, ...]]] = {
    "place": ("Bay", "Hill", "Island", "County", "Valley", "Park", "Forest"),
    "group": ("Company", "Institute", "Union", "Records", "Airlines", "School"),
    "work": ("Street", "Story", "Nights", "Show", "Return", "House"),
    "thing": ("Plus", "Classic", "Sport", "Mini", "Max", "Pro"),
}


def _half(pool: Sequence[str], held: bool) -> list[str]:
    """Every fourth name is held out."""
    return [name for at, name in enumerate(pool) if (at % 4 == 3) is held]
