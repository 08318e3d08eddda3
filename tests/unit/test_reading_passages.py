"""Long texts are cut into passages: nothing is lost, nothing doubled, and what belongs together stays together."""

from __future__ import annotations

import re
from unicodedata import combining

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memos_client import formats
from memos_client.formats import Turn
from memos_client.reading.blocks import blocks
from memos_client.reading.markdown import markdown
from memos_client.reading.passages import PASSAGE_CHARS_MAX, WHOLE_CHARS_MAX, passages
from memos_client.reading.turns import cut

PIECES = st.sampled_from([
    "word ", "Sentence one. ", "Wer? ", "# Title\n", "## Under it\n", "\n", "\n\n", "- item one\n", "  more of it\n", "```\n",
    "~~~py\n", "code(1)\n", "| a | b |\n", "---\n", "===\n", "1. first\n", "漢字。", "e\u0301", "👩\u200d👩\u200d👧", "🇧🇪",
    "x" * 30, "\t", "。", "\u2028", "date: 2023-05-08\n",
])  # fmt: skip
TEXTS = st.lists(PIECES, max_size=60).map("".join) | st.text(max_size=300)


def bare(text: str) -> str:
    return re.sub(r"\s", "", text)


@given(TEXTS, st.integers(8, 80))
@settings(max_examples=300, deadline=None)
def test_passages_hold_every_character_once_and_in_order(text: str, chars_max: int) -> None:
    for pieces in (passages(text, chars_max), [passage.text for passage in markdown(text, chars_max)]):
        assert bare("".join(pieces)) == bare(text)
        assert all(piece and piece == piece.strip() for piece in pieces)


@given(st.lists(st.sampled_from(["One two. ", "three, ", "vier ", "x" * 50, "。"]), max_size=80).map("".join))
@settings(max_examples=100, deadline=None)
def test_prose_is_never_longer_than_its_bound(text: str) -> None:
    assert all(len(piece) <= 40 for piece in passages(text, 40))


@given(TEXTS)
@settings(max_examples=100, deadline=None)
def test_blocks_stand_in_order_and_leave_out_only_white_space(text: str) -> None:
    at = 0
    for block in blocks(text):
        assert at <= block.start < block.end and not text[at : block.start].strip()
        at = block.end
    assert not text[at:].strip()


def test_a_long_paragraph_is_cut_at_ends_of_sentences() -> None:
    text = " ".join(f"Mr. Verhaegen said sentence number {n} of this talk." for n in range(100))
    pieces = passages(text)
    assert -(-len(text) // PASSAGE_CHARS_MAX) <= len(pieces) <= 6
    assert all(piece.endswith("talk.") and piece.startswith("Mr.") for piece in pieces)
    assert max(map(len, pieces)) - min(map(len, pieces)) < PASSAGE_CHARS_MAX // 2
    assert passages("short. Two.") == ["short. Two."] and passages(" \n ") == []


def test_a_word_without_end_is_cut_between_characters() -> None:
    for unit in ("e\u0301", "👩\u200d👩\u200d👧", "👍🏽"):
        for piece in passages(unit * 2000):
            assert not combining(piece[0]) and piece[0] not in "\u200d🏽" and not piece.endswith("\u200d")


def test_code_and_lists_stay_whole_up_to_a_bound() -> None:
    code = "```python\n" + "\n\n".join(f"x{n} = {n}. " for n in range(200)) + "\n```"
    listed = "\n".join(f"- thing {n}. And more.\n\n  of it" for n in range(60))
    text = f"Intro. {'word ' * 200}\n\n{code}\n\nBetween.\n\n{listed}\n\nAfter."
    assert code in passages(text) and any(listed in piece for piece in passages(text))
    huge = "```\n" + "line of code\n" * 2000 + "```"
    pieces = passages(huge)
    assert len(pieces) > 1 and max(map(len, pieces)) <= WHOLE_CHARS_MAX and all(p.endswith(("code", "```")) for p in pieces)


def test_headings_are_carried_as_context() -> None:
    text = (
        "# Guide\n\nHello.\n\n## Install\n\n" + "Run it now. " * 150 + "\n\n### On Linux #\nUse apt.\n\nUsage\n-----\nType it."
    )
    found = [(p.headings, p.context, p.text.split()[:3]) for p in markdown(text)]
    assert found == [
        (("Guide",), None, ["#", "Guide", "Hello."]),
        (("Guide", "Install"), "Guide", ["##", "Install", "Run"]),
        (("Guide", "Install"), "Guide > Install", ["Run", "it", "now."]),
        (("Guide", "Install", "On Linux"), "Guide > Install", ["###", "On", "Linux"]),
        (("Guide", "Usage"), "Guide", ["Usage", "-----", "Type"]),
    ]


def test_headings_in_code_and_of_any_size_do_no_harm() -> None:
    (one,) = markdown("# A\n```\n# no heading\n```")
    assert one.headings == ("A",) and one.is_code
    pieces = markdown("# " + "long " * 10_000 + "\ntext")
    assert max(len(p.text) for p in pieces) <= PASSAGE_CHARS_MAX + 400 and len(pieces[-1].headings[0]) <= 200


def test_dates_of_headings_and_front_matter_are_the_time_of_what_stands_under_them() -> None:
    text = "---\ntitle: x\ndate: 2023-01-02\n---\nA.\n# 8 May 2023\nB.\n## Later\nC.\n"
    text += "# 31 June 2023\nD.\n# Tuesday, May 9, 2023\nE."
    assert [str(p.date) for p in markdown(text)] == ["2023-01-02"] + ["2023-05-08"] * 2 + ["2023-01-02", "2023-05-09"]
    turns = formats.markdown(text.encode())
    assert turns[1].time == 1683504000 * 10**9 and turns[1].metadata == {"headings": ["8 May 2023"]}
    assert (turns[2].context, turns[2].kind) == ("8 May 2023", "document")


def test_passages_of_a_turn_are_places_of_their_own() -> None:
    long = "A sentence of the turn. " * 120
    turns = [
        Turn("a", 1, 1),
        Turn(long, 1, 2, speaker="Al", turn_id="D1:2", caption="a door"),
        Turn("b", 1, 3),
        Turn("c", 2, 1),
    ]
    read = list(cut(turns))
    assert [(t.session, t.position, t.part) for t in read] == [
        (1, 1, None), (1, 2, (1, 3)), (1, 3, (2, 3)), (1, 4, (3, 3)), (1, 5, None), (2, 1, None),
    ]  # fmt: skip
    assert [t.metadata.get("turn") for t in read] == [None, 2, 2, 2, 3, None]
    assert [t.caption for t in read[1:4]] == [None, None, "a door"] and {t.turn_id for t in read[1:4]} == {"D1:2"}
    captions = list(cut([Turn("", 1, 1, caption=long)]))
    assert bare("".join(t.caption or "" for t in captions)) == bare(long) and len(captions) == 3


@pytest.mark.parametrize(
    "text", ["#" * 5000, "- " * 3000, "`" * 9000, "|" * 9000, "\n" * 9000, "a" * 9000, "." * 9000, "> " * 5000]
)
def test_degenerate_texts_are_cut_too(text: str) -> None:
    assert bare("".join(passages(text))) == bare(text) == bare("".join(p.text for p in markdown(text)))
