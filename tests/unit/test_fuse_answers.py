"""A fused text answers what its sources answer, and on texts that repeat themselves in fewer words."""

from __future__ import annotations

import pytest
from tests.fusing import GROUPS, HELD_OUT, Group, answered, measured, table
from tests.tidy.product import ROOT

from memos_drivers.plaintext.fuse_probe import kept_share, questions
from memos_drivers.plaintext.summary import tokens
from memos_drivers.table import TABLE

STRATEGIES = sorted(TABLE["plaintext"].strategies)


def test_there_are_enough_of_them_and_their_sources_answer_them() -> None:
    assert sum(len(group.texts) for group in HELD_OUT) >= 30
    for group in (*HELD_OUT, *GROUPS):
        assert answered("\n".join(group.texts), group) == list(group.questions), group.name


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("group", (*HELD_OUT, *GROUPS), ids=lambda group: str(group.name))
def test_a_fused_text_answers_what_its_sources_answer(group: Group, strategy: str) -> None:
    row = measured(group, strategy)
    assert len(row.lost) <= (strategy == "summarise" and not group.redundant), row.lost
    size, chars = sum(map(tokens, group.texts)), sum(map(len, group.texts))
    if strategy in ("dedupe", "summarise"):
        assert row.tokens <= size
    if group.redundant and strategy in ("dedupe", "summarise", "auto"):
        assert row.tokens <= 0.65 * size and row.chars <= 0.65 * chars


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_probe_made_by_rule_agrees(strategy: str) -> None:
    for group in (*HELD_OUT, *GROUPS):
        sources = group.sources()
        asked = questions(sources)
        fused = TABLE["plaintext"].strategies[strategy](sources)
        assert len(asked) >= 3
        assert kept_share(asked, [one.text for one in fused.statements]).kept >= 0.8 * len(asked), group.name


def test_the_tables_in_the_documentation_are_these() -> None:
    page = (ROOT / "docs" / "fusion.md").read_text(encoding="utf-8")
    assert table(HELD_OUT) in page and table(GROUPS) in page
