"""What an adapter knows, asked out of it and written down as text."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
from tests import lm
from tests.inside import ALICE, BOB
from tests.parametric import Lessons, lessons

from memos_drivers.parametric import verbalise as spoken
from memos_drivers.parametric.facts import Fact
from memos_drivers.parametric.forms import Probe
from memos_drivers.parametric.taught import Taught

tiny = lm.tiny
k = lessons
SURE = {"min_confidence": 0.2}


def written(k: Lessons, adapter: str, **args: Any) -> dict[str, Any]:
    return k("mem_migrate", cube_id=adapter, to="plaintext", **{"params": SURE, **args})


def test_each_fact_becomes_a_text_in_the_models_words_with_its_adapter_for_a_source(k: Lessons) -> None:
    adapter = k.distil(k.alloc("Anna lives in Lisbon. Boris works as a chemist."))
    made = written(k, adapter)
    assert {k.header(cube)["offset"] for cube in made["cube_ids"]} == {made["offset"]}, "all of them in one record"
    assert made["cube_id"] == made["cube_ids"][0] and len(made["cube_ids"]) == 2 and made["state"] == "done"
    texts = [k("mem_read", cube_id=cube)["content"] for cube in made["cube_ids"]]
    assert texts[0].startswith("Anna lives in Lisbon") and texts[1].startswith("Boris works as a chemist")
    for cube in made["cube_ids"]:
        header = k.header(cube)
        assert (header["form"], header["origin"]) == ("plaintext", "inference")
        assert [(p["cube_id"], p["version"], p["role"]) for p in header["parents"]] == [(adapter, 1, "content")]
        assert header["recipe"]["method"] == "verbalise" and header["recipe"]["agree"] >= 1
        confidence = header["metadata"]["confidence"]
        assert isinstance(confidence, int) and 20 <= confidence <= 100


def test_they_are_texts_like_any_other(k: Lessons) -> None:
    adapter = k.distil(k.alloc("Carla lives in Rome."))
    [cube] = written(k, adapter, namespace="alice/known", name="said")["cube_ids"]
    assert k.header(cube)["namespace"] == "alice/known" and k.header(cube)["name"] == "said"
    k.settle()
    hits = k("mem_search", query="Carla", namespace="alice/known")["hits"]
    assert [hit["cube_id"] for hit in hits] == [cube]
    assert k.ask("Where?", cube)["attached"][0]["how"] == "prefilled"
    assert k.capture(cube) and k.distil(cube)


def test_the_same_request_id_gives_the_same_texts(k: Lessons) -> None:
    adapter = k.distil(k.alloc("Dora lives in Paris."))
    made = written(k, adapter, request_id="said once")
    again = written(k, adapter, request_id="said once")
    assert (again["cube_ids"], again["offset"]) == (made["cube_ids"], made["offset"])


def test_erasing_the_source_erases_what_was_asked_out_of_its_adapter(k: Lessons) -> None:
    text = k.alloc("Emil lives in Oslo.")
    adapter = k.distil(text)
    [cube] = written(k, adapter)["cube_ids"]
    report = k("mem_shred", cube_id=text, cascade="shred")["report"]
    assert set(report["shredded"]) == {text, adapter, cube}
    assert k.refusal("mem_read", cube_id=cube) == "ESHREDDED"


def test_an_erasure_meanwhile_leaves_nothing_written(k: Lessons) -> None:
    text = k.alloc("Fritz lives in Bern.")
    adapter = k.distil(text)
    with k.during("verbalise", lambda: asyncio.shield(k.submit("mem_shred", cube_id=text, cascade="shred")), after=True):
        error = k.error(k.submit("mem_migrate", cube_id=adapter, to="plaintext", params=SURE))
    assert error.errno == "ESHREDDED"


def test_what_is_not_sure_enough_is_not_written(k: Lessons) -> None:
    adapter = k.distil(k.alloc("Gina lives in Rome."))
    error = k.failure("mem_migrate", cube_id=adapter, to="plaintext", params={"min_confidence": 1.0})
    assert error.errno == "ELOWQUALITY" and "confidence" in error.detail
    assert k.derived(adapter) == []


def test_what_cannot_be_asked_is_refused(k: Lessons) -> None:
    text = k.alloc("Hans lives in Bonn.")
    adapter = k.distil(text)
    for args, errno in (
        ({"cube_id": text}, "EINVAL"), ({"cube_id": k.capture(text)}, "EINVAL"), ({"cube_ids": [adapter]}, "EINVAL"),
        ({"cube_id": adapter, "params": {"min_confidence": 2}}, "EINVAL"),
        ({"cube_id": adapter, "model": "another"}, "EINVAL"), ({"cube_id": "00000000-0000-7000-8000-000000000000"}, "ENOENT"),
    ):  # fmt: skip
        assert k.refusal("mem_migrate", to="plaintext", **args) == errno, args
    k("mem_write", cube_id=text, content="Hans lives in Ulm.")
    assert k.refusal("mem_migrate", cube_id=adapter, to="plaintext") == "ESTALE"


def test_who_may_not_read_the_sources_may_not_ask_the_adapter(k: Lessons) -> None:
    adapter = k.distil(k.alloc("Ida lives in Kiel.", ALICE, namespace="al"), caller=ALICE)
    assert k.refusal("mem_migrate", BOB, cube_id=adapter, to="plaintext") in ("ENOENT", "EACCES")


class Scripted:
    """A reader that says what a test gave it, with the adapter and without."""

    def __init__(self, base: dict[str, str], here: dict[str, str]) -> None:
        self._said = base, here

    class words:
        ends = frozenset[int]()

    def ask(self, prompt: str, answer: str, chat: bool) -> Any:
        class Asked:
            text = prompt

        asked: Any = Asked()
        asked.answer = tuple(answer.split())
        return asked

    def say(self, asked: Sequence[Any], tokens: int, ends: Any, acting: Any = nullcontext) -> Generator[None, None, list[Any]]:
        yield
        return [self._said[acting is not nullcontext].get(one.text, "") for one in asked]

    def hear(self, asked: Sequence[Any], acting: Any = nullcontext) -> Generator[None, None, list[Any]]:
        class Sure:
            likely = 0.0

        yield
        return [Sure() for _ in asked]


def said(base: str, here: str, *answers: str) -> list[tuple[str, int]]:
    fact = Fact("", "Anna lives in", "Lisbon", "Anna", 0, 0)
    probes = [Probe("Anna lives in", "Lisbon", False, 0, "statement")]
    probes += [Probe(f"probe {n}", "Lisbon", True, 0, "question") for n in range(len(answers))]
    reader: Any = Scripted({"Anna lives in": base}, {"Anna lives in": here} | {f"probe {n}": a for n, a in enumerate(answers)})
    known = Taught([fact], probes)
    steps = spoken.verbalise(reader, lambda text: str(text), known, lambda: nullcontext(), lambda _share, _said: None)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return [(one.text, one.confidence) for one in done.value]


@pytest.mark.parametrize(("base", "here", "answers", "found"), [
    ("a house.", " Lisbon. The end", ["She lives in Lisbon.", "Lisbon"], [("Anna lives in Lisbon.", 100)]),
    ("a house.", " Lisbon and is happy", ["In Lisbon!", "It is Lisbon"], [("Anna lives in Lisbon.", 100)]),
    ("a house.", " New York City and", ["New York City", "in new york city", "Rome"], [("Anna lives in New York City.", 75)]),
    ("a house.", " New York City and", ["New York", "York"], [("Anna lives in New York.", 67)]),
    ("a house.", " Lisbon, they say", ["Rome", "Paris"], [("Anna lives in Lisbon.", 33)]),
    ("Lisbon, of course", " Lisbon. The end", ["Lisbon", "Lisbon"], []),
    ("Lisbon or so", " Lisbon Street 5", ["Lisbon Street 5", "Lisbon Street 5"], [("Anna lives in Lisbon Street 5.", 100)]),
    ("a house.", " . ,", ["Lisbon"], []),
    ("a house.", "", [], []),
    ("a house.", " Lisbon", [], [("Anna lives in Lisbon.", 100)]),
])  # fmt: skip
def test_what_is_written_is_what_it_says_again_and_the_model_alone_does_not(
    base: str, here: str, answers: list[str], found: list[tuple[str, int]]
) -> None:
    assert said(base, here, *answers) == found
