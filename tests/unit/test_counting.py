"""Which messages count: each sentence of the rule, and what holds for any sequence of messages."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.sim.byhand import KEYS, OTHER, Topic, claim, claim_id, counting, frame
from tests.sim.kernel import copied

from memos_kernel import crypto
from memos_kernel.eventlog.counting import KNOWN_HEADS_MAX, Counting, Ping, decode, encode_ping
from memos_kernel.events import Claim, Damaged, Frame, encode_frame


def opened(epoch: int = 1, name: str = "first") -> Counting:
    """A reader who has read a claim."""
    reader = counting()
    assert reader.take(claim(epoch, name)).kind == "claim"
    return reader


def grown(*records: str) -> Counting:
    """A reader who has read a claim and one frame for each record."""
    reader = opened()
    for record in records:
        assert reader.take(frame(reader.at, [record])[0]).kind == "frame"
    return reader


def test_form_tells_the_three_kinds_of_message_apart() -> None:
    ping = encode_ping(KEYS.frame_mac, KEYS.log_id, 3, claim_id("x"), 7)
    assert isinstance(decode(ping), Ping) and decode(ping)[2:5] == (3, claim_id("x"), 7)
    assert isinstance(decode(claim(1, "x")), Claim)
    assert isinstance(decode(frame(opened().at, ["a"])[0]), Frame)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x90", b"junk", b"\xdd\xff\xff\xff\xff", bytes(100)])
def test_what_cannot_be_read_is_suspect_and_changes_nothing(data: bytes) -> None:
    with pytest.raises(Damaged):
        decode(data)
    reader = grown("a")
    before = copied(reader.at)
    assert reader.take(data).kind == "suspect" and reader.at == before


def test_a_claim_counts_if_its_epoch_is_above_the_current_one_and_it_knows_the_head() -> None:
    reader = grown("a")
    assert reader.take(claim(5, "second", reader.at.hash)).kind == "claim"
    assert (reader.at.epoch, reader.at.claim_id) == (5, claim_id("second"))


def test_a_claim_may_know_any_head_of_the_current_epoch_and_the_one_before_it() -> None:
    heads = grown("a", "b").at.heads
    for known in heads:
        assert grown("a", "b").take(claim(2, "second", known)).kind == "claim"
    reader = grown("a", "b")
    reader.take(claim(2, "second", reader.at.hash))
    assert reader.take(claim(3, "third", heads[1])).kind == "void", "a head of the epoch before"


def test_a_claim_that_lags_too_far_behind_is_void() -> None:
    reader = opened()
    begin = reader.at.hash
    for n in range(KNOWN_HEADS_MAX - 1):
        reader.take(frame(reader.at, [str(n)])[0])
    assert begin in reader.at.heads
    reader.take(frame(reader.at, ["last"])[0])
    assert len(reader.at.heads) == KNOWN_HEADS_MAX
    assert reader.take(claim(2, "second", begin)).kind == "void"
    assert reader.take(claim(2, "second", reader.at.heads[0])).kind == "claim"


def test_a_claim_that_is_repeated_overtaken_or_knows_another_head_is_void() -> None:
    reader = grown("a")
    head = reader.at.hash
    for late in (claim(1, "first"), claim(1, "other", head), claim(0, "older", head), claim(2, "lost", bytes([1] * 32))):
        assert reader.take(late).kind == "void"
    assert reader.at.epoch == 1


def test_a_claim_that_another_key_signed_is_suspect() -> None:
    reader = grown("a")
    assert reader.take(claim(2, "thief", reader.at.hash, KEYS._replace(signer=OTHER.signer))).kind == "suspect"
    good = claim(2, "second", reader.at.hash)
    for at in range(len(good)):
        assert not reader.take(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]).counts
    assert reader.take(good).kind == "claim"


def test_the_first_claim_of_another_log_is_foreign_and_any_later_one_suspect() -> None:
    foreign = claim(1, "theirs", keys=OTHER)
    assert counting().take(foreign).kind == "foreign"
    assert opened().take(foreign).kind == "suspect"


def test_a_frame_counts_if_it_continues_the_head_under_the_current_claim() -> None:
    reader = opened()
    data, last = frame(reader.at, ["a", "b"])
    assert reader.take(data).kind == "frame"
    assert (reader.at.seq, reader.at.hash, reader.at.heads[-1]) == (1, last, last)


def test_a_frame_of_the_readers_own_counts_without_being_checked_again() -> None:
    reader = opened()
    data, last = frame(reader.at, ["a"])
    assert reader.take(data, (data, last)).kind == "frame" and reader.at.hash == last
    other, _last = frame(reader.at, ["b"], KEYS._replace(frame_mac=b"guess" * 6))
    assert reader.take(other, (data, last)).kind == "suspect", "own is who has the same bytes"


def test_a_frame_that_is_repeated_or_late_is_void() -> None:
    reader = grown("a")
    again = frame(opened().at, ["a"])[0]
    late = frame(reader.at, ["b"])[0]
    assert reader.take(again).kind == "void"
    reader.take(claim(2, "second", reader.at.hash))
    assert reader.take(late).kind == "void"


def test_a_frame_that_does_not_follow_from_what_is_there_is_torn() -> None:
    ahead = frame(grown("a", "b").at, ["c"])[0]
    assert grown("a").take(ahead).kind == "torn"
    elsewhere = frame(grown("x").at, ["c"])[0]
    assert grown("a").take(elsewhere).kind == "torn"
    unclaimed = frame(opened(1, "other").at, ["c"])[0]
    assert opened().take(unclaimed).kind == "torn"


def test_a_frame_without_records_or_of_another_epoch_than_its_claim_is_suspect() -> None:
    at = grown("a").at
    for epoch, records in ((1, list[bytes]()), (9, [b"b"])):
        data = encode_frame(KEYS.frame_mac, KEYS.log_id, epoch, at.claim_id or b"", at.seq + 1, at.hash, records)
        assert grown("a").take(data).kind == "suspect"


def test_every_changed_bit_of_a_frame_makes_it_not_count() -> None:
    reader = grown("a")
    data = frame(reader.at, ["b"])[0]
    for at in range(len(data)):
        for bit in range(8):
            assert not reader.take(data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]).counts
    assert reader.take(data).kind == "frame"


def test_a_ping_counts_under_the_current_claim_and_changes_nothing() -> None:
    reader = grown("a")
    before = copied(reader.at)
    assert reader.take(encode_ping(KEYS.frame_mac, KEYS.log_id, 1, claim_id("first"), 1)).kind == "ping"
    for epoch, name in ((2, "first"), (1, "other")):
        assert reader.take(encode_ping(KEYS.frame_mac, KEYS.log_id, epoch, claim_id(name), 1)).kind == "void"
    assert reader.take(encode_ping(b"guess" * 6, KEYS.log_id, 1, claim_id("first"), 1)).kind == "suspect"
    assert reader.at == before


def history(seed: int) -> Topic:
    """A partition as kernels that know of each other, kernels that do not, and strangers make it."""
    rng, topic, reader = random.Random(seed), Topic(), counting()
    for n in range(rng.randrange(2, 40)):
        at = reader.at
        stale = counting(at=copied(at))
        match rng.randrange(8):
            case 0 | 1:
                data = claim(at.epoch + rng.randrange(3), f"c{rng.randrange(30)}", rng.choice([*at.heads, crypto.ZERO_HASH]))
            case 2 | 3 | 4:
                data = frame(stale.at, [f"r{n}.{i}" for i in range(rng.randrange(1, 3))])[0]
            case 5:
                data = encode_ping(KEYS.frame_mac, KEYS.log_id, at.epoch, at.claim_id or bytes(16), n)
            case 6:
                data = rng.choice(topic.log).data if topic.log else b""
            case _:
                data = rng.randbytes(rng.randrange(50))
        topic.put(data)
        reader.take(data)
    return topic


@given(st.integers(0, 2**32), st.data())
def test_whoever_goes_on_from_anywhere_judges_as_one_who_reads_from_the_beginning(seed: int, data: st.DataObject) -> None:
    topic, reader = history(seed), counting()
    at = data.draw(st.integers(0, len(topic.log)))
    kinds = topic.audit()
    for message in topic.log[:at]:
        reader.take(message.data)
    resumed = counting(at=copied(reader.at))
    assert [resumed.take(message.data).kind for message in topic.log[at:]] == kinds[at:]


@given(st.integers(0, 2**32), st.data())
def test_what_is_added_later_changes_no_verdict_and_copies_count_for_nothing(seed: int, data: st.DataObject) -> None:
    """Neither do copies: of claims and frames, wherever somebody puts them. (A ping may be copied; it changes nothing.)"""
    topic = history(seed)
    before, records = topic.audit(), topic.records()
    at = data.draw(st.integers(0, len(topic.log) - 1))
    kind = before[at]
    topic.put(topic.log[at].data)
    assert topic.audit()[:-1] == before
    assert topic.records() == records
    if kind in ("claim", "frame"):
        assert topic.audit()[-1] == "void"
