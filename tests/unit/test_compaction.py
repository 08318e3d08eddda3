"""By when an erased key is gone: each setting counts, and what is not known counts as Kafka's default."""

from __future__ import annotations

import pytest

from memos_kernel.eventlog.compaction import BACKOFF_MS_DEFAULT, MS, NUDGE_MS, WORK_MS, gone_by, roll_ms
from memos_kernel.eventlog.topics import Erasure

USUAL = Erasure(10_000, 10_000, 600_000, 1_000, 15_000)


def test_the_usual_settings_give_half_a_minute() -> None:
    assert gone_by(5 * MS, USUAL) == (5 + 10_000 + NUDGE_MS + 15_000 + WORK_MS + 1_000) * MS


@pytest.mark.parametrize("name", ["max_compaction_lag_ms", "file_delete_delay_ms", "cleaner_backoff_ms"])
def test_a_longer_setting_makes_it_later(name: str) -> None:
    assert gone_by(0, USUAL._replace(**{name: 60_000})) > gone_by(0, USUAL)


def test_the_shorter_of_two_closes_a_file() -> None:
    assert roll_ms(USUAL._replace(segment_ms=3_000)) == 3_000
    assert roll_ms(USUAL._replace(segment_ms=3_600_000)) == 10_000


def test_brokers_that_do_not_tell_are_taken_to_have_the_default() -> None:
    known = USUAL._replace(cleaner_backoff_ms=BACKOFF_MS_DEFAULT)
    assert gone_by(0, USUAL._replace(cleaner_backoff_ms=None)) == gone_by(0, known)
