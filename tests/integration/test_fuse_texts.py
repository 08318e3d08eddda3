"""mem_fuse of texts as a job: what `auto` and `summarise` record, what a model may do, and that all of it is undone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.inside import ALICE, BOB, Inside

from memos_drivers.host.client import Answer
from memos_kernel.dispatch import Kernel
from memos_syscalls.errors import MemError, MemIO

TWICE = ("Maria lives in Porto. She works as a nurse.", "Maria lives in Porto. Pixel weighs 12 kg.", "Pixel weighs 12 kg.")
LONG = (
    "After many weeks of looking around in the whole city, Maria finally rented a small flat on Rua das Flores for 870 euros.",
    "The old and rather heavy kitchen table, which nobody had wanted for years, was sold to Radu for 45 euros on Monday.",
)
SHORT = "Maria rented a small flat on Rua das Flores for 870 euros."
DAY = 86_400 * 10**9


class Scripted:
    """A driver host that shortens as it is told."""

    def __init__(self, say: Callable[[str], str], *, fails: bool = False) -> None:
        self.asked: list[str] = []
        self._say = say
        self._fails = fails

    async def run(self, op: str, args: dict[str, Any], fds: list[int], *, who: str) -> Answer:
        assert (op, fds, args["temperature"]) == ("infer", [], 0.0)
        if self._fails:
            raise MemIO("the host died")
        statement = str(args["messages"][0]["content"]).rpartition("Sentence: ")[2].removesuffix("\nShort:")
        self.asked.append(statement)
        return Answer({"text": self._say(statement), "model": "scripted", "fingerprint": "f" * 64}, [])

    async def control(self, _name: str, _args: dict[str, Any], _seconds: float, *, must: bool = True) -> None:
        """It has nothing on a device."""

    async def let_go(self) -> None:
        """It holds nothing."""

    async def close(self) -> None:
        """It has no process."""


def alloc(k: Inside, *texts: str, caller: Any = None, **more: Any) -> list[str]:
    made = [{"namespace": "alice", "content": text, **more} for text in texts]
    return [str((k("mem_alloc", **one) if caller is None else k("mem_alloc", caller, **one))["cube_id"]) for one in made]


def read(k: Inside, cube: str) -> tuple[str, dict[str, Any]]:
    answer = k("mem_read", cube_id=cube)
    return answer["content"], answer["header"]


@pytest.fixture
def without_models(k: Inside, monkeypatch: pytest.MonkeyPatch) -> Inside:
    monkeypatch.setattr(k.kernel.runtime, "names", ())
    return k


def scripted(kernel: Kernel, monkeypatch: pytest.MonkeyPatch, host: Scripted) -> Scripted:
    monkeypatch.setattr(kernel.runtime, "names", ("scripted",))
    monkeypatch.setattr(kernel.runtime, "_host", host)
    return host


@pytest.mark.parametrize("strategy", ["auto", "summarise"])
def test_sources_become_merged_and_stay_readable_and_unfuse_restores_them(without_models: Inside, strategy: str) -> None:
    k = without_models
    cubes = alloc(k, *TWICE, tags=["t"], valid_from=DAY)
    made = k("mem_fuse", cube_ids=cubes, strategy=strategy, params={"name": "fused"})
    assert [(source["cube_id"], source["version"]) for source in made["sources"]] == [(cube, 1) for cube in cubes]
    text, header = read(k, made["cube_id"])
    assert text.splitlines() == ["Maria lives in Porto.", "She works as a nurse.", "Pixel weighs 12 kg."]
    assert (header["name"], header["origin"], header["tags"], header["valid_from"]) == ("fused", "fusion", ["t"], DAY)
    assert [(parent["cube_id"], parent["version"]) for parent in header["parents"]] == [(cube, 1) for cube in cubes]
    assert [read(k, cube)[1]["state"] for cube in cubes] == ["merged"] * 3
    assert [read(k, cube)[0] for cube in cubes] == list(TWICE)
    assert k("mem_unfuse", cube_id=made["cube_id"])["restored"] == cubes
    assert [read(k, cube)[1]["state"] for cube in cubes] == ["activated"] * 3
    again = k("mem_fuse", cube_ids=cubes, strategy=strategy)
    assert read(k, again["cube_id"])[0] == text, "the same sources give the same bytes"


def test_the_recipe_says_what_auto_chose_and_what_the_fused_text_answers(without_models: Inside) -> None:
    k = without_models
    made = k("mem_fuse", cube_ids=alloc(k, *TWICE), strategy="auto")
    scores = {"questions": 3, "kept": 1.0}
    assert read(k, made["cube_id"])[1]["recipe"] == {
        "method": "fuse", "strategy": "auto", "chosen": "dedupe", "scores": scores,
    }  # fmt: skip
    times = [alloc(k, text, valid_from=day * DAY)[0] for day, text in ((1, "Anna left."), (5, "Anna came back."))]
    later = read(k, k("mem_fuse", cube_ids=times, strategy="auto")["cube_id"])
    assert later[1]["recipe"]["chosen"] == "timeline" and later[0].startswith("## 1970-01-02\nAnna left.")


def test_a_summary_without_a_model_says_so_and_what_it_lost(without_models: Inside) -> None:
    k = without_models
    made = k("mem_fuse", cube_ids=alloc(k, *TWICE), strategy="summarise", params={"budget_tokens": 6})
    text, header = read(k, made["cube_id"])
    recipe = header["recipe"]
    assert (recipe["model"], recipe["why"], recipe["shortened"]) == (None, "this kernel runs no models", [])
    assert recipe["settings"] == {"budget_tokens": 6} and len(text.splitlines()) == recipe["taken"] == 1
    assert recipe["scores"]["kept"] < 1 and recipe["lost"]


def test_too_few_answers_and_nothing_is_committed(without_models: Inside) -> None:
    k = without_models
    cubes = alloc(k, *TWICE)
    before = k("sys_info")["head_offset"]
    args: dict[str, Any] = {"cube_ids": cubes, "strategy": "summarise"}
    assert k.refusal("mem_fuse", **args, params={"budget_tokens": 6, "min_kept": 0.9}) == "ELOWQUALITY"
    assert k.refusal("mem_fuse", **args, params={"budget_tokens": 1}) == "EMSGSIZE"
    assert k.refusal("mem_fuse", **args, params={"budget_tokens": 6, "ratio": 0.5}) == "EINVAL"
    assert k.refusal("mem_fuse", cube_ids=cubes, strategy="auto", params={"ratio": 0.5}) == "EINVAL"
    assert k.refusal("mem_fuse", cube_ids=[*cubes, cubes[0]], strategy="auto") == "EINVAL"
    assert k.refusal("mem_fuse", cube_ids=cubes[:1], strategy="auto") == "EINVAL"
    assert k.refusal("mem_fuse", cube_ids=[*cubes, *alloc_bytes(k)], strategy="summarise") == "EINVAL"
    assert k("sys_info")["head_offset"] == before + 1


def alloc_bytes(k: Inside) -> list[str]:
    return [str(k("mem_alloc", namespace="alice", content=b"\xff", encoding="bytes")["cube_id"])]


def test_another_user_fuses_nothing_of_ours(without_models: Inside) -> None:
    k = without_models
    cubes = alloc(k, *TWICE[:2], caller=ALICE)
    assert k.refusal("mem_fuse", BOB, cube_ids=cubes, strategy="auto") == k.refusal("mem_read", BOB, cube_id=cubes[0])
    assert k("mem_fuse", ALICE, cube_ids=cubes, strategy="auto")["version"] == 1


def test_the_same_request_id_gives_the_same_cube(without_models: Inside) -> None:
    k = without_models
    cubes = alloc(k, *TWICE)
    made = [k("mem_fuse", cube_ids=cubes, strategy="summarise", request_id="once")["cube_id"] for _ in range(2)]
    assert made[0] == made[1]
    assert k.refusal("mem_fuse", cube_ids=cubes, strategy="auto", request_id="once") == "EINVAL"


def test_members_of_a_composition_are_read_too(without_models: Inside) -> None:
    k = without_models
    composed = k("mem_compose", cube_ids=alloc(k, *TWICE[:2]), namespace="alice")["cube_id"]
    made = k("mem_fuse", cube_ids=[composed, *alloc(k, TWICE[2])], strategy="summarise")
    assert "She works as a nurse." in read(k, made["cube_id"])[0]


def test_what_a_model_shortens_stands_only_where_it_says_the_same(k: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    def say(statement: str) -> str:
        return f'"{SHORT}"\nSure!' if "Maria" in statement else "The table was sold to Radu for 54 euros on Monday."

    host = scripted(k.kernel, monkeypatch, Scripted(say))
    made = k("mem_fuse", cube_ids=alloc(k, *LONG), strategy="summarise")
    text, header = read(k, made["cube_id"])
    assert sorted(host.asked) == sorted(LONG)
    assert text.splitlines() == [SHORT, LONG[1]], "54 euros is what no source said"
    recipe = header["recipe"]
    assert (recipe["model"], recipe["model_name"], recipe["asked"], recipe["shortened"]) == ("f" * 64, "scripted", 2, [0])
    assert recipe["scores"]["kept"] == 1.0
    digest = k("sys_info")["state_digest"]
    k.reopen()
    assert (k("sys_info")["state_digest"], read(k, made["cube_id"])[0]) == (digest, text), "a replay asks no model"


def test_a_model_is_not_asked_for_what_fits(k: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    host = scripted(k.kernel, monkeypatch, Scripted(str))
    made = k("mem_fuse", cube_ids=alloc(k, *LONG), strategy="summarise", params={"ratio": 1.0})
    assert read(k, made["cube_id"])[1]["recipe"]["why"] == "every statement fits as it stands" and not host.asked
    unwanted = k("mem_fuse", cube_ids=alloc(k, *LONG), strategy="summarise", params={"model": "none"})
    assert read(k, unwanted["cube_id"])[1]["recipe"]["why"] == "the caller wanted no model" and not host.asked


def test_a_model_that_fails_leaves_a_summary_by_rule_unless_it_was_named(k: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(k.kernel, monkeypatch, Scripted(str, fails=True))
    cubes = alloc(k, *LONG)
    assert k.refusal("mem_fuse", cube_ids=cubes, strategy="summarise", params={"model": "scripted"}) == "EIO"
    text, header = read(k, k("mem_fuse", cube_ids=cubes, strategy="summarise")["cube_id"])
    assert header["recipe"]["why"] == "the model failed: EIO" and text.splitlines() == list(LONG)


def test_a_source_that_changes_meanwhile_is_read_again_and_one_that_is_erased_ends_the_job(
    k: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    cubes = alloc(k, *LONG)
    waiting: list[Any] = []

    def change(statement: str) -> str:
        if not waiting:
            waiting.append(k.submit("mem_write", cube_id=cubes[1], content="The cellar of the old house was dry in May. " * 2))
        return statement

    class Slow(Scripted):
        async def run(self, op: str, args: dict[str, Any], fds: list[int], *, who: str) -> Answer:
            answer = await super().run(op, args, fds, who=who)
            for future in waiting:
                await future
            return answer

    scripted(k.kernel, monkeypatch, Slow(change))
    text = read(k, k("mem_fuse", cube_ids=cubes, strategy="summarise")["cube_id"])[0]
    assert "cellar" in text and "Radu" not in text

    more = alloc(k, *LONG)
    waiting.clear()

    def erase(statement: str) -> str:
        if not waiting:
            waiting.append(k.submit("mem_shred", cube_id=more[1]))
        return statement

    scripted(k.kernel, monkeypatch, Slow(erase))
    with pytest.raises(MemError) as caught:
        k("mem_fuse", cube_ids=more, strategy="summarise")
    assert caught.value.errno == "ESHREDDED"
    assert read(k, more[0])[1]["state"] == "generated" and not k.fatal


@pytest.mark.parametrize("strategy", ["auto", "summarise"])
def test_a_shred_of_a_source_makes_the_fusion_anew_by_rule_without_a_word_of_it(
    k: Inside, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    scripted(k.kernel, monkeypatch, Scripted(lambda statement: SHORT if "Maria" in statement else statement))
    cubes = alloc(k, *LONG, "Pixel weighs 12 kg.")
    made = k("mem_fuse", cube_ids=cubes, strategy=strategy, params={"name": "n"})
    report = k("mem_shred", cube_id=cubes[1])["report"]
    assert [entry["replaces"] for entry in report["rebuilt"]] == [made["cube_id"]]
    text, header = read(k, report["rebuilt"][0]["cube_id"])
    assert text.splitlines()[0].rstrip("[] 1") == LONG[0] and "Radu" not in str((text, header))
    recipe = header["recipe"]
    assert (recipe["method"], recipe["strategy"]) == ("fuse", strategy) and not {"scores", "lost", "model"} & recipe.keys()
