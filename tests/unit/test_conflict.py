"""What two texts are to each other: a table of pairs written by hand, and what holds for any text.

A wrong contradiction costs more than a missed one: the table must have none, and may not miss more than is stated.
"""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memos_drivers.plaintext.claims import TEXT_CHARS_MAX
from memos_drivers.plaintext.conflict import STATEMENTS_MAX, Reading, Verdict, compare, cues, read

DUPLICATES = """
Alice lives in Berlin. | alice lives in berlin
I live in Berlin. | I'm living in Berlin now.
Biscuit is a beagle | Biscuit is a beagle.
The deadline is Friday. | The deadline is Friday!
- Bob works at Acme | Bob works at Acme
I really like sushi. | I like sushi
Carol has two cats. | Carol has 2 cats
The meeting is on Monday at 3 pm. | The meeting is on Monday at 3 pm
Dave is allergic to peanuts. | dave is allergic to peanuts
My wife's name is Anna. | My wife's name is Anna!
The server listens on port 8080. | The server listens on port 8080
Alice works at Acme and lives in Rome. | Alice works at Acme.
Alice: I live in Lisbon. | Alice lives in Lisbon.
"""
CONTRADICTIONS = """
Alice lives in Berlin. | Alice lives in Paris.
I live in Rome. | I just moved to Oslo!
I live in Rome, Italy. | I live in Oslo, Norway.
Bob works at Acme. | Bob now works at Globex.
I work for Google. | I started a new job at Netflix.
I work at a bakery. | I no longer work at a bakery.
Carol has two cats. | Carol has three cats now.
My phone number is 555-1234. | My phone number is 555-9876.
The meeting is on Monday. | The meeting was moved to Tuesday.
The meeting is at 3 pm. | The meeting is at 4 pm.
The deadline is March 3. | The deadline has been extended to March 10.
The deadline is 2026-03-03. | The deadline is 2026-03-10.
Alice's favourite colour is blue. | Alice's favorite color is green.
My favorite food is pizza. | My favourite food is ramen now.
Dave is 29 years old. | Dave is 30 years old.
Eve is single. | Eve got married.
I'm vegetarian. | I'm not vegetarian anymore.
Alice eats meat. | Alice no longer eats meat.
Bob smokes cigars. | Bob stopped smoking cigars.
I like sushi. | I don't like sushi.
I love horror movies. | I hate horror movies.
Alice lives in Paris. | Alice used to live in Paris.
Alice is dating Tom. | Alice broke up with Tom.
Bob's boss is Carla. | Bob's boss is Dmitri.
The rent is $1,200. | The rent went up to $1,350.
The capital of Kazakhstan is Astana. | The capital of Kazakhstan is Nur-Sultan.
The office is closed. | The office is open.
The feature flag is enabled. | The feature flag is disabled.
Alice's salary is 50000. | Alice's salary is 55,000.
Dave speaks French. | Dave does not speak French.
My password is hunter2. | My password was changed to swordfish.
I work as a nurse. | I work as a teacher.
Carol is allergic to peanuts. | Carol is not allergic to peanuts.
Alice: I live in Lisbon. | Alice: I moved to Porto last week.
The flight leaves at 9:30. | The flight leaves at 11:15.
The project's status is green. | The project's status is red.
The current version is 1.2. | The current version is 1.3.
I can swim well. | I can't swim well.
Bob's address is 12 Elm Street. | Bob's address is 40 Elm Street.
My dog's name is Rex. | My dog's name is Bello.
The ticket costs 20 euros. | The ticket costs 25 euros.
Tim is the CEO of Apple. | The CEO of Apple is John.
Omar plays for Chelsea. | Omar plays for Arsenal now.
"""
NEITHER = """
Alice lives in Berlin. | Bob lives in Paris.
Alice likes pizza. | Alice likes sushi.
I play the guitar. | I play the piano.
Alice lives in Berlin. | Alice lives in Germany.
Alice lives in Berlin. | Alice lives in Berlin, Germany.
I live in Rome, New York. | I live in Rome.
My boss is Ann, Bob or Carl. | My boss is Dmitri.
I work at Google. | I work at Google as an engineer.
Carol has two cats. | Carol has three dogs.
Carol has a cat. | Carol has a dog.
I went to Paris in May. | I went to Rome in June.
The car is red. | The car is fast.
Bob is a teacher. | Bob is a father.
I might move to Oslo. | I live in Berlin.
I live in Berlin. | I want to live in Oslo.
I live in Berlin. | If I lived in Oslo, I'd ski.
Do you live in Oslo? | I live in Berlin.
My sister lives in Oslo. | I live in Berlin.
My sister's favourite colour is blue. | My favourite colour is red.
I ran 5 km on Monday. | I ran 10 km on Tuesday.
Alice visited Berlin. | Alice visited Paris.
Alice's friend is Bob. | Alice's friend is Carol.
The meeting is on Monday. | The meeting is at 3 pm.
The design meeting is on Monday. | The budget meeting is on Tuesday.
Bob is not allergic to peanuts. | Bob is allergic to shellfish.
I don't eat red meat. | I eat meat.
I lived in Rome in 2010. | I live in Berlin.
Alice: I live in Lisbon. | Bob: I live in Porto.
Alice bought a red dress. | Alice bought a blue dress.
Thanks, that is great! | That is so great, thanks!
I didn't go to the gym today. | I went to the gym.
Bob works at Acme. | Bob works hard.
Bob works at Acme. | Bob works from home.
Bob speaks French. | Bob speaks German.
I moved to the next chapter. | I live in Berlin.
The price of the red one is 20. | The price of the blue one is 30.
My son is 5. | My daughter is 7.
Yoga class is on Mondays. | Yoga class is on Wednesdays.
My favorite movie is Alien. | My favorite book is Dune.
I have two brothers. | I have two sisters.
I own a Tesla. | I own a boat.
The shop opens at 9 am. | The shop closes at 6 pm.
Alice said Bob lives in Oslo. | Bob lives in Rome.
I moved to Rome in 2010. | I live in Berlin.
Alice works at Acme. | Alice works at Acme and lives in Rome.
I also work at the zoo. | I work at Acme.
Alice is tired. | Alice is not tired.
My appointment is on May 3 at 2 pm. | My other appointment is on May 4 at 2 pm.
My phone is a Pixel. | My phone is broken.
My room is big. | My room is messy.
My job is stressful. | My job is well paid.
My office is in Room 4. | My office is cold.
My address is wrong. | My address is 12 Elm Street.
assistant: You live in Paris. | I live in Rome.
"""


def pairs(table: str, verdict: Verdict | None) -> list[tuple[str, str, Verdict | None]]:
    found: list[tuple[str, str, Verdict | None]] = []
    for line in table.strip().splitlines():
        old, new = line.split(" | ")
        found.append((old, new, verdict))
    return found


TABLE = [*pairs(DUPLICATES, "duplicate"), *pairs(CONTRADICTIONS, "contradiction"), *pairs(NEITHER, None)]


@pytest.mark.parametrize(("old", "new", "wanted"), TABLE)
def test_a_pair_is_what_it_is(old: str, new: str, wanted: Verdict | None) -> None:
    assert compare(read(new), read(old)) == wanted
    assert (compare(read(old), read(new)) == "contradiction") == (wanted == "contradiction"), "which came first does not matter"


def test_statements_of_different_pairs_contradict_as_rarely_as_they_should() -> None:
    """Every text of the table against every other: what contradicts is about the same subject and relation."""
    texts = list(dict.fromkeys(text for old, new, _ in TABLE for text in (old, new)))
    readings = {text: read(text) for text in texts}
    found = {
        frozenset((one, other))
        for one in texts for other in texts if compare(readings[one], readings[other]) == "contradiction"
    }  # fmt: skip
    written = {frozenset((old, new)) for old, new, wanted in TABLE if wanted == "contradiction"}
    for pair in found - written:
        one, other = (readings[text].claims for text in pair)
        assert {(claim.subject, claim.relation) for claim in one} & {(claim.subject, claim.relation) for claim in other}
    assert written <= found


def test_who_speaks_is_who_is_spoken_of() -> None:
    assert compare(read("I live in Oslo.", "Alice"), read("Alice lives in Rome.")) == "contradiction"
    assert compare(read("I live in Oslo.", "Alice"), read("I live in Rome.", "Bob")) is None
    assert compare(read("I live in Rome.", "Bob"), read("Bob lives in Rome.")) == "duplicate"
    assert compare(read("I live in Rome.", "Bob"), read("I live in Rome.", "Carol")) is None


def test_a_page_is_not_contradicted_by_a_sentence() -> None:
    page = "\n".join(["I live in Rome.", *(f"Day {day} was long and hot." for day in range(STATEMENTS_MAX))])
    assert compare(read("I live in Oslo."), read(page)) is None
    assert compare(read("I live in Rome."), read(page)) == "duplicate", "but it may have said so"
    long = "I live in Rome. " * TEXT_CHARS_MAX
    assert compare(read(long), read(long.upper())) == "duplicate"
    assert compare(read(long + "x"), read(long)) is None


def test_what_it_is_found_by() -> None:
    assert cues(read("I just moved to Oslo!")) == ["lives lived live moved home"]
    assert cues(read("Alice: I work at Acme now.")) == ["alice works work job employer"]
    assert cues(read("Nice weather!")) == []


WORDS = """I you Alice Bob's the a not no longer lives works is has moved to in at Rome Oslo Acme three 3 pm May Monday and but
, . ? ! favorite color blue never used stopped smoking if : - 😀 ä 中文"""
words = st.sampled_from([*WORDS.split(), "\n"])


@given(st.lists(words, max_size=40).map(" ".join) | st.text(max_size=200), st.lists(words, max_size=40).map(" ".join))
def test_any_text_can_be_read_and_never_contradicts_itself(one: str, other: str) -> None:
    first, second = read(one), read(other)
    assert first == read(one)
    assert compare(first, first) in ("duplicate", None)
    assert (compare(first, second) == "contradiction") == (compare(second, first) == "contradiction")


@pytest.mark.parametrize(
    "text", ["a, ", "I ", "the meeting is ", "a and b ", "never ", "x's ", "A: ", "is\u00a0", "is on Monday to "]
)
def test_no_text_takes_long(text: str) -> None:
    whole = (text * TEXT_CHARS_MAX)[:TEXT_CHARS_MAX]
    began = time.process_time()
    assert isinstance(read(whole), Reading)
    assert time.process_time() - began < 1
