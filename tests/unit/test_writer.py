"""The writer's state machine: what it asks for, when, and what it refuses. Whole stories are in sim/test_interleavings.py."""

from __future__ import annotations

import pytest
from tests.sim.byhand import Hand, Topic, claim, claim_id, counting

from memos_kernel.eventlog.writer import Address, Message, Writer


@pytest.fixture
def topic() -> Topic:
    return Topic()


@pytest.fixture
def kernel(topic: Topic) -> Hand:
    """A kernel that has won its claim."""
    return Hand(topic, "k").opens()


def test_a_writer_begins_by_reading_and_may_neither_send_nor_ask() -> None:
    writer = Writer(counting())
    assert writer.phase == "reading" and writer.look is None and not writer.sure
    assert writer.ping(0.0) is None
    with pytest.raises(AssertionError, match="no frame while reading"):
        writer.send(b"", b"", 0.0)


def test_a_writer_with_a_past_first_looks_at_its_end(topic: Topic, kernel: Hand) -> None:
    kernel.writes("a")
    again = Hand(topic, "k", mirror=kernel)
    assert again.writer.look == Address.of(topic.log[-1]) == kernel.writer.last


def test_a_claim_is_sure_when_it_was_read_and_confirmed(topic: Topic) -> None:
    for confirmed_first in (False, True):
        kernel = Hand(topic, f"k{confirmed_first}")
        kernel.read()
        claimed = kernel.claims()
        offset = topic.put(claimed.data)
        if confirmed_first:
            kernel.confirm(claimed, offset)
        else:
            kernel.read()
        assert not kernel.writer.sure
        kernel.read()
        kernel.confirm(claimed, offset)
        assert kernel.writer.sure and kernel.phase == "open"


def test_one_frame_at_a_time(kernel: Hand) -> None:
    kernel.sends("a")
    with pytest.raises(AssertionError):
        kernel.sends("b")


def test_a_frame_is_acknowledged_when_it_was_read_and_confirmed_in_whatever_order(topic: Topic, kernel: Hand) -> None:
    for confirmed_first in (False, True):
        sent = kernel.sends("a")
        offset = topic.put(sent.data)
        assert not kernel.writer.acknowledged
        if confirmed_first:
            kernel.confirm(sent, offset)
        else:
            kernel.read()
        assert not kernel.writer.acknowledged
        kernel.read()
        kernel.confirm(sent, offset)
        assert kernel.writer.acknowledged and kernel.writer.take() == sent
        assert kernel.writer.frame is None and not kernel.writer.acknowledged


def test_the_confirmation_of_a_later_message_confirms_a_frame_that_still_stands(topic: Topic, kernel: Hand) -> None:
    sent = kernel.sends("a")
    topic.put(sent.data)
    kernel.read()
    ping = kernel.pings()
    kernel.writer.delivered(ping.n, None, topic.put(ping.data))
    assert kernel.writer.look == Address.of(topic.log[1]) and not kernel.writer.acknowledged
    kernel.look()
    assert kernel.writer.acknowledged


def test_a_message_under_another_leader_epoch_makes_it_look_at_the_one_before(topic: Topic, kernel: Hand) -> None:
    topic.put(b"junk")
    kernel.read()
    topic.new_leader()
    kernel.writer.arrived(Message(2, topic.leader_epoch, b"more junk"))
    assert kernel.writer.look == Address.of(topic.log[1])
    kernel.writer.looked(topic.log[1])
    assert kernel.writer.look is None and kernel.phase == "open"


def test_a_leader_change_is_looked_at_even_while_a_frame_is_weighed(topic: Topic, kernel: Hand) -> None:
    sent = kernel.sends("a")
    topic.put(sent.data)
    topic.put(b"junk")
    kernel.read()
    kernel.writer.delivered(sent.n, None, -1)
    assert kernel.writer.look == Address.of(topic.log[1])
    kernel.writer.arrived(Message(3, 1, b"junk of another leader"))
    assert kernel.writer.look == Address.of(topic.log[2])
    kernel.writer.looked(topic.log[2])
    assert kernel.writer.look == Address.of(topic.log[1]) and not kernel.writer.acknowledged
    kernel.writer.looked(topic.log[1])
    assert kernel.writer.acknowledged


@pytest.mark.parametrize("found", [None, b"something else"])
def test_a_look_that_finds_nothing_or_something_else_ends_the_writer(topic: Topic, kernel: Hand, found: bytes | None) -> None:
    topic.new_leader()
    kernel.writer.arrived(Message(1, topic.leader_epoch, b"junk"))
    kernel.writer.looked(None if found is None else Message(0, 0, found))
    assert kernel.phase == "broken" and "offset 0" in kernel.writer.why


def test_a_look_that_finds_the_same_bytes_of_another_leader_ends_the_writer(topic: Topic, kernel: Hand) -> None:
    topic.new_leader()
    kernel.writer.arrived(Message(1, 1, b"junk"))
    kernel.writer.looked(topic.log[0]._replace(leader_epoch=1))
    assert kernel.phase == "broken"


def test_nothing_is_fresh_until_the_look_is_over(topic: Topic, kernel: Hand) -> None:
    kernel.now = 8.0
    ping = kernel.pings()
    topic.new_leader()
    topic.put(ping.data)
    kernel.writer.arrived(topic.log[1])
    assert kernel.writer.fresh_at == 0.0
    kernel.look()
    assert kernel.writer.fresh_at == 8.0


def test_fresh_is_as_of_the_beginning_of_the_sending(topic: Topic, kernel: Hand) -> None:
    kernel.now = 3.0
    ping = kernel.pings()
    kernel.now = 9.0
    kernel.lands(ping)
    assert kernel.writer.fresh_at == 3.0
    sent = kernel.sends("a")
    kernel.now = 11.0
    kernel.lands(sent)
    assert kernel.writer.fresh_at == 9.0


def test_one_ping_at_a_time_and_each_is_another(kernel: Hand) -> None:
    ping = kernel.pings()
    assert kernel.writer.ping(1.0) is None
    kernel.lands(ping)
    assert kernel.pings().data != ping.data


def test_a_failed_delivery_puts_the_writer_in_doubt_and_the_next_claim_takes_it_out(kernel: Hand) -> None:
    kernel.fail(kernel.pings(), "the broker says no")
    assert kernel.phase == "doubt" and kernel.writer.why == "the broker says no" and kernel.writer.ping(0.0) is None
    kernel.lands(kernel.claims())
    assert kernel.writer.sure


def test_failures_of_an_earlier_producer_say_nothing_any_more(kernel: Hand) -> None:
    sent = kernel.sends("a")
    kernel.fail(sent)
    kernel.lands(kernel.claims())
    kernel.fail(sent)
    assert kernel.phase == "open"


def test_a_producer_that_fails_as_a_whole_puts_the_writer_in_doubt(kernel: Hand) -> None:
    kernel.writer.failed("fatal")
    assert kernel.phase == "doubt"


def test_nothing_is_acknowledged_or_lost_while_claiming(topic: Topic, kernel: Hand) -> None:
    sent = kernel.sends("a")
    topic.put(sent.data)
    kernel.fail(sent)
    claimed = kernel.claims()
    kernel.read()
    kernel.confirm(claimed)
    assert kernel.phase == "claiming" and not kernel.writer.acknowledged and not kernel.writer.lost


def test_a_lost_claim_sends_a_starting_kernel_back_to_reading(topic: Topic) -> None:
    kernel = Hand(topic, "k")
    claimed = kernel.claims()
    topic.put(claim(1, "other"))
    topic.put(claimed.data)
    kernel.read()
    assert kernel.phase == "reading" and "overtaken" in kernel.writer.why


def test_a_claim_of_another_kernel_fences_a_writer_but_not_a_reader(topic: Topic, kernel: Hand) -> None:
    standby = Hand(topic, "standby")
    standby.read()
    topic.put(claim(2, "other", kernel.writer.counting.at.hash))
    kernel.read()
    standby.read()
    assert kernel.phase == "fenced" and "epoch 2" in kernel.writer.why
    assert standby.phase == "reading" and standby.writer.counting.at.claim_id == claim_id("other")


def test_what_was_accepted_and_confirmed_before_the_fence_is_acknowledged_after_it(topic: Topic, kernel: Hand) -> None:
    sent = kernel.sends("a")
    offset = topic.put(sent.data)
    topic.put(claim(2, "other", kernel.writer.counting.at.hash))
    kernel.read()
    assert kernel.phase == "fenced" and not kernel.writer.acknowledged
    kernel.confirm(sent, offset)
    assert kernel.writer.acknowledged


def test_the_end_is_the_end(kernel: Hand) -> None:
    kernel.writer.truncated("the topic is gone")
    kernel.writer.truncated("again")
    assert kernel.phase == "broken" and kernel.writer.why == "the topic is gone"
    with pytest.raises(AssertionError, match="no claim while broken"):
        kernel.claims()
