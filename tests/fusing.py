"""Texts that were written by hand for fusions, with questions that they answer.

A group is what one would fuse: some sources, the day of each if it has one, and questions with the words that an answer must
hold. `redundant` groups say most things more than once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from memos_drivers.plaintext.fuse_text import FusedText, Source
from memos_drivers.plaintext.summary import tokens
from memos_drivers.table import TABLE

DAY_NS: Final = 86_400 * 10**9
CUBE: Final = "018bcfe5-6800-702d-8000-0012947{:05d}"
"""As long as a cube's id is."""


class Group(NamedTuple):
    name: str
    redundant: bool
    texts: tuple[str, ...]
    days: tuple[int | None, ...]
    questions: Mapping[str, str]

    def sources(self) -> list[Source]:
        pairs = enumerate(zip(self.texts, self.days, strict=True))
        return [
            Source(CUBE.format(place), 1, text, None if day is None else day * DAY_NS, None, place)
            for place, (text, day) in pairs
        ]


def group(
    name: str, texts: tuple[str, ...], questions: Mapping[str, str], *, redundant: bool, days: tuple[int, ...] = ()
) -> Group:
    return Group(name, redundant, texts, days or (None,) * len(texts), questions)


GROUPS: Final = (  # What they showed has changed the rules.
    group(
        "a new flat",
        (
            "Nadia moved into a flat at 14 Bellweather Street. The rent is 870 euros a month. Her "
            "landlord is Mr. Okafor.",
            "Reminder from the file: the rent is 870 euros a month. Nadia's landlord does not allow "
            "pets. Her landlord is Mr. Okafor.",
            "- Nadia moved into a flat at 14 Bellweather Street.\n- The rent is 870 euros a "
            "month.\n- The boiler was serviced in May.",
            "Nadia's landlord does not allow pets. The boiler was serviced in May! Nadia moved into "
            "a flat at 14 Bellweather Street.",
        ),
        {
            "Where does Nadia live?": "14 Bellweather Street", "What is the rent?": "870 euros",
            "Who is the landlord?": "Okafor",
            "Are pets allowed?": "not allow pets", "When was the boiler serviced?": "in May",
        },
        redundant=True,
    ),
    group(
        "a patient's chart",
        (
            "Tomas Lindqvist is allergic to penicillin. He takes 5 mg of ramipril every morning. "
            "His last check was on 3 April.",
            "Tomas Lindqvist is allergic to penicillin. He takes 5 mg of ramipril every morning. He never smoked.",
            "Tomas Lindqvist is really allergic to penicillin. His last check was on 3 April. His "
            "blood pressure was 128 over 82.",
        ),
        {
            "What is Tomas allergic to?": "penicillin", "What does he take?": "ramipril", "How much?": "5 mg",
            "When was his last check?": "3 April", "Did he smoke?": "never smoked",
            "What was his blood pressure?": "128 over 82",
        },
        redundant=True,
    ),
    group(
        "standing instructions",
        (
            "Always answer in British English. Never send invoices without asking. The fiscal year ends on 30 June.",
            "always answer in british english\nNever send invoices without asking.\nQuotes are valid for 45 days.",
            "The fiscal year ends on 30 June. Quotes are valid for 45 days. Always answer in British English.",
            "Never send invoices without asking. Always answer in British English. The fiscal year ends on 30 June.",
        ),
        {
            "Which English?": "British English", "What must not be sent unasked?": "invoices",
            "When does the year end?": "30 June",
            "How long are quotes valid?": "45 days",
        },
        redundant=True,
    ),
    group(
        "a dog, told again and again",
        (
            "Juniper: My dog Waffles is a whippet. Juniper: He was born in a barn near Ludlow. "
            "Juniper: He is afraid of thunder.",
            "Juniper: My dog Waffles is a whippet. Juniper: Waffles sleeps on the green sofa. "
            "Juniper: He is afraid of thunder.",
            "Juniper: Waffles sleeps on the green sofa. Juniper: The vet says that Waffles weighs "
            "13 kg. Juniper: My dog Waffles is a whippet.",
            "Juniper: The vet says that Waffles weighs 13 kg. Juniper: He was born in a barn near "
            "Ludlow. Juniper: He is afraid of thunder.",
        ),
        {
            "What breed is Waffles?": "whippet", "Where was he born?": "Ludlow", "What is he afraid of?": "thunder",
            "Where does he sleep?": "green sofa", "What does he weigh?": "13 kg",
        },
        redundant=True,
    ),
    group(
        "two people with the same trade",
        (
            "Ingrid lives in Bergen. She works as a carpenter. She has two sons.",
            "Ingrid lives in Bergen. She works as a carpenter. She has two sons. She sings in a choir.",
            "Radu lives in Cluj. He works as a carpenter. He plays the accordion.",
            "Radu lives in Cluj. He works as a carpenter. He plays the accordion. Ingrid lives in "
            "Bergen. She sings in a choir.",
        ),
        {
            "Where does Ingrid live?": "Ingrid lives in Bergen", "What is Ingrid?": "She works as a carpenter",
            "What is Radu?": "He works as a carpenter", "What does Radu play?": "accordion",
            "Where does Ingrid sing?": "choir",
            "How many sons has Ingrid?": "two sons",
        },
        redundant=True,
    ),
    group(
        "release notes, pasted twice",
        (
            "Version 4.2 drops support for Python 3.8. The cache is now 64 MB. The flag --fast was removed.",
            "# Notes\nVersion 4.2 drops support for Python 3.8.\nThe cache is now 64 MB.\nUploads "
            "over 2 GB are refused.",
            "Uploads over 2 GB are refused. The flag --fast was removed. The cache is now 64 MB.",
        ),
        {
            "Which Python is gone?": "3.8", "How large is the cache?": "64 MB", "Which flag is gone?": "--fast",
            "Which uploads are refused?": "2 GB",
        },
        redundant=True,
    ),
    group(
        "a project's year",
        (
            "The Halden bridge project began. Priya Raman leads it with a budget of 3.2 million.",
            "The first pier of the bridge was poured. Two workers were hurt when a crane tipped over.",
            "The budget was raised to 3.9 million. Priya Raman left, and Stig Moen took over.",
            "The Halden bridge opened to traffic. Stig Moen cut the ribbon with the mayor.",
        ),
        {
            "Who led it first?": "Priya Raman", "What was the first budget?": "3.2 million",
            "What was the budget raised to?": "3.9 million",
            "Who took over?": "Stig Moen", "What tipped over?": "crane", "Who cut the ribbon with Stig?": "the mayor",
        },
        redundant=False, days=(19_700, 19_790, 19_900, 20_060),
    ),
    group(
        "a journey",
        (
            "Left Trieste at dawn with Bea. The car broke down near Udine.",
            "A mechanic called Flavio repaired the alternator for 140 euros. We slept in Tarvisio.",
            "Crossed the Loibl pass in the rain. Bea lost her blue scarf in Klagenfurt.",
        ),
        {
            "Where did it begin?": "Trieste", "Who repaired the car?": "Flavio", "What was broken?": "alternator",
            "What did it cost?": "140 euros",
            "What did Bea lose?": "blue scarf", "Where did the car break down?": "Udine",
        },
        redundant=False, days=(20_100, 20_102, 20_104),
    ),
    group(
        "who likes what",
        (
            "Ewa likes gooseberry jam but hates marzipan. Ewa's sister Kasia bakes every Sunday.",
            "Kasia needs a new oven. The old oven only reaches 160 degrees.",
            "Ewa's birthday is on 9 November. Kasia wants to give her a pair of red gloves.",
        ),
        {
            "Which jam?": "gooseberry", "What does Ewa hate?": "marzipan", "Who bakes?": "Kasia bakes",
            "What is needed?": "new oven",
            "When is Ewa's birthday?": "9 November", "What will she get?": "red gloves",
        },
        redundant=False,
    ),
    group(
        "a cellar's inventory",
        (
            "Shelf A holds 12 jars of plum chutney. Shelf B holds 30 candles.",
            "Shelf C holds the camping stove. The spare key hangs behind the fuse box.",
            "The freezer stops at minus 18 degrees. It was bought from Dunmore's in 2019.",
        ),
        {
            "What is on shelf A?": "plum chutney", "How many candles are there?": "30 candles",
            "Where is the spare key?": "fuse box",
            "Where is the stove?": "Shelf C", "Who sold the freezer?": "Dunmore's", "How cold is it?": "minus 18",
        },
        redundant=False,
    ),
    group(
        "a chat between two friends",
        (
            "Hi! How are you? I am so glad to hear from you. Gwen: My brother Idris opened a bakery "
            "in Swansea. That is amazing! Wow.",
            "Gwen: My brother Idris opened a bakery in Swansea. Gwen: He gets up at 3 am. Oh no, "
            "that sounds hard! Haha, yes.",
            "Good morning! Gwen: Idris sold 400 loaves on Saturday. That is amazing! Have you tried "
            "one? Gwen: He gets up at 3 am.",
            "Gwen: Idris sold 400 loaves on Saturday. Gwen: The oven came from Denmark. So cool! "
            "Well, see you soon. Bye!",
        ),
        {
            "What did Idris open?": "bakery", "Where?": "Swansea", "When does he get up?": "3 am",
            "How many loaves did he sell?": "400 loaves",
            "Where did the oven come from?": "Denmark",
        },
        redundant=False,
    ),
    group(
        "support tickets about one fault",
        (
            "Hello team. The scanner in room 12 jams on A3 paper. It shows error E-77. Thank you very much in advance!",
            "Hello team. The scanner in room 12 jams on A3 paper. It shows error E-77. Restarting "
            "it does not help. Best wishes.",
            "Hello team. The scanner in room 12 jams on A3 paper. Restarting it does not help. The "
            "technician comes on 8 August. Thank you.",
        ),
        {
            "Which scanner?": "room 12", "On what paper?": "A3", "Which error?": "E-77",
            "Does restarting help?": "not help",
            "When does the technician come?": "8 August",
        },
        redundant=True,
    ),
)  # fmt: skip


HELD_OUT: Final = (
    group(
        "a band's diary",
        (
            "The Tin Herons rehearse on Wednesdays. Their drummer is Yusuf Adebayo. The van needs new brakes.",
            "The Tin Herons rehearse on Wednesdays. The van needs new brakes! The first gig is on 21 June.",
            "The first gig is on 21 June. Their drummer is Yusuf Adebayo. The Tin Herons rehearse on Wednesdays.",
        ),
        {
            "When do they rehearse?": "Wednesdays", "Who drums?": "Yusuf Adebayo",
            "What does the van need?": "new brakes",
            "When is the first gig?": "21 June",
        },
        redundant=True,
    ),
    group(
        "a recipe that was copied",
        (
            "Soak 250 g of chickpeas overnight. Roast the cumin. Add two lemons at the end.",
            "1. Soak 250 g of chickpeas overnight.\n2. Roast the cumin.\n3. Do not add salt before they are soft.",
            "* Roast the cumin.\n* Add two lemons at the end.\n* Do not add salt before they are "
            "soft.\n* Soak 250 g of chickpeas overnight.",
        ),
        {
            "What is soaked?": "chickpeas", "How much?": "250 g", "What is roasted?": "cumin",
            "How many lemons?": "two lemons",
            "When may salt be added?": "Do not add salt before",
        },
        redundant=True,
    ),
    group(
        "notes on a colleague",
        (
            "Meera Joshi joined the billing team in 2021. She reports to Pavel. She is on leave until 2 September.",
            "Meera Joshi joined the billing team in 2021. She reports to Pavel. Her desk is on the fourth floor.",
            "Pavel leads the billing team. He is colour-blind. Meera Joshi joined the billing team "
            "in 2021. She reports to Pavel.",
            "Meera Joshi is on leave. Her desk is on the fourth floor. He is colour-blind.",
        ),
        {
            "When did Meera join?": "2021", "Whom does she report to?": "She reports to Pavel",
            "Until when is she away?": "2 September",
            "Where is her desk?": "fourth floor", "Who is colour-blind?": "colour-blind",
            "Who leads the team?": "Pavel leads",
        },
        redundant=True,
    ),
    group(
        "alerts from a machine room",
        (
            "Host kestrel-3 ran out of disk space. The backup job was stopped. Nobody was paged.",
            "host kestrel-3 ran out of disk space\nThe backup job was stopped.\nHost kestrel-4 took over at 02:17.",
            "Host kestrel-4 took over at 02:17. Nobody was paged. The backup job was stopped. Log "
            "rotation had been off since 11 May.",
            "Host kestrel-3 ran out of disk space. Nobody was paged. Log rotation had been off since 11 May.",
        ),
        {
            "Which host was full?": "kestrel-3", "What was stopped?": "backup job",
            "Who was paged?": "Nobody was paged",
            "Which host took over?": "kestrel-4", "When?": "02:17", "Since when was rotation off?": "11 May",
        },
        redundant=True,
    ),
    group(
        "a neighbour who repeats himself",
        (
            "Well, as I said, the bins are emptied on Tuesdays. Mrs. Falk feeds the cats. Nice weather today!",
            "The bins are emptied on Tuesdays, you know. Mrs. Falk feeds the cats. The lift will be "
            "repaired in October. Bye now!",
            "Mrs. Falk feeds the cats. The lift will be repaired in October. Good evening! The code "
            "of the gate is 4471.",
            "The code of the gate is 4471. The bins are emptied on Tuesdays. Mrs. Falk really feeds the cats. So long!",
        ),
        {
            "When are the bins emptied?": "Tuesdays", "Who feeds the cats?": "Mrs. Falk",
            "When is the lift repaired?": "October",
            "What is the code?": "4471",
        },
        redundant=True,
    ),
    group(
        "a house that changed hands",
        (
            "Edmund Vane bought the mill for 12,000 pounds. The roof leaked.",
            "Edmund Vane sold the mill to his cousin Clara. A storm took the east chimney.",
            "Clara Vane turned the mill into a school with 40 pupils. She hired Mr. Abbot to teach Latin.",
            "The school closed after a fire. The mill has been empty since.",
        ),
        {
            "Who bought the mill?": "Edmund Vane bought", "For how much?": "12,000 pounds",
            "To whom was it sold?": "Clara",
            "What did the storm take?": "east chimney", "How many pupils were there?": "40 pupils",
            "Who taught Latin?": "Mr. Abbot",
            "Why did the school close?": "fire",
        },
        redundant=False, days=(-30_000, -25_000, -24_000, -20_000),
    ),
    group(
        "a gardener's log",
        (
            "Sowed broad beans in bed 4. The nights are still cold.",
            "The beans in bed 4 are up. Slugs ate all of the lettuce.",
            "Picked 3 kg of beans. Gave half of them to Oluchi.",
        ),
        {
            "Which bed?": "bed 4", "What was sown?": "broad beans", "What ate the lettuce?": "Slugs",
            "How many beans were picked?": "3 kg",
            "Who got half of them?": "Oluchi",
        },
        redundant=False, days=(20_200, 20_215, 20_290),
    ),
    group(
        "what the children said",
        (
            "Mia: I got a new bike for my birthday! Dad: It is yellow, isn't it? Mia: Yes, and it has seven gears.",
            "Leo: My tooth fell out at school. Dad: Which one? Leo: The left front one. I put it in a matchbox.",
            "Mia: We are going to Aunt Sybil on Sunday. Leo: She has a trampoline. Dad: Take your helmets.",
        ),
        {
            "What did Mia get?": "new bike", "What colour is it?": "yellow", "How many gears has it?": "seven gears",
            "Where is Leo's tooth?": "matchbox", "Whom do they visit?": "Aunt Sybil",
            "What does she have?": "trampoline",
        },
        redundant=False,
    ),
    group(
        "minutes of a board",
        (
            "The board approved the accounts for 2023. Mr. Ruiz abstained. The auditor is replaced by Lund & Partners.",
            "The dividend is 1.40 per share. It will be paid on 15 May. No bonus is paid this year.",
            "Ms. Tan asked about the plant in Kaunas. It will not be sold before 2026. The next meeting is in Riga.",
        ),
        {
            "Which accounts?": "2023", "Who abstained?": "Mr. Ruiz", "Who audits now?": "Lund & Partners",
            "What is the dividend?": "1.40",
            "When is it paid?": "15 May", "Is a bonus paid?": "No bonus",
            "When may the plant be sold?": "not be sold before 2026",
            "Where is the next meeting?": "Riga",
        },
        redundant=False,
    ),
)  # fmt: skip
"""Written after the rules were settled; docs/fusion.md says what the measurement changed."""


class Row(NamedTuple):
    """What one strategy made of one group."""

    chars: int
    tokens: int
    answered: int
    lost: list[str]
    fused: FusedText


def answered(text: str, those: Group) -> list[str]:
    """The questions whose answer stands in a text."""
    found = {answer: re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.I) for answer in those.questions.values()}
    return [question for question, answer in those.questions.items() if found[answer]]


def measured(those: Group, strategy: str) -> Row:
    fused = TABLE["plaintext"].strategies[strategy](those.sources())
    kept = answered(fused.text, those)
    return Row(len(fused.text), tokens(fused.text), len(kept), [one for one in those.questions if one not in kept], fused)


def table(groups: Sequence[Group]) -> str:
    """The measurement, in Markdown: tokens and answers of each strategy for each group."""
    strategies = ("dedupe", "merge", "timeline", "auto", "summarise")
    lines = [
        f"| group | sources | tokens | questions | {' | '.join(strategies)} |",
        "|---|--:|--:|--:|" + "--:|" * len(strategies),
    ]
    for those in groups:
        rows = [measured(those, strategy) for strategy in strategies]
        cells = [f"{row.tokens} t, {row.answered}" for row in rows]
        size = sum(map(tokens, those.texts))
        name = f"{those.name}{'' if those.redundant else ' ¹'}"
        lines.append(f"| {name} | {len(those.texts)} | {size} | {len(those.questions)} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(f"{table(HELD_OUT)}\n\n{table(GROUPS)}")
