"""Named interleavings, step by step: what goes wrong, in which order, and what each kernel may say then.

`acknowledged`: callers hear yes. `lost`: callers hear no, for certain. Neither: they hear nothing, or "unknown" when the
kernel ends.
"""

from __future__ import annotations

from tests.sim.byhand import KEYS, OTHER, Hand, Topic, claim, counting, frame

from memos_kernel.eventlog.counting import Counting
from memos_kernel.events import encode_frame


def test_the_frame_of_a_dead_kernel_that_lands_before_the_next_claim_counts() -> None:
    topic = Topic()
    dead = Hand(topic, "dead").opens()
    late = dead.sends("a")
    heir = Hand(topic, "heir")
    heir.read()
    claimed = heir.claims()
    topic.put(late.data)
    heir.lands(claimed)
    assert heir.writer.sure
    heir.writes("b")
    assert topic.records() == ["a", "b"]


def test_the_frame_of_a_dead_kernel_that_lands_after_the_next_claim_is_void() -> None:
    topic = Topic()
    dead = Hand(topic, "dead").opens()
    late = dead.sends("a")
    heir = Hand(topic, "heir").opens()
    topic.put(late.data)
    heir.writes("b")
    topic.put(late.data)
    assert [v.kind for v in heir.read()] == ["void"] and heir.phase == "open"
    assert topic.records() == ["b"]


def test_of_two_claimants_at_once_the_first_in_the_partition_wins_and_the_other_may_try_again() -> None:
    topic = Topic()
    one, two = Hand(topic, "one"), Hand(topic, "two")
    first, second = one.claims(), two.claims()
    topic.put(second.data)
    topic.put(first.data)
    one.confirm(first, 1)
    two.confirm(second, 0)
    one.read()
    two.read()
    assert (one.phase, two.phase) == ("reading", "open")
    two.writes("a")
    one.opens()
    assert one.writer.counting.at.epoch == 2
    two.read()
    assert two.phase == "fenced" and "epoch 2" in two.writer.why
    one.writes("b")
    assert topic.records() == ["a", "b"]


def test_a_running_kernel_whose_claim_loses_does_not_try_again() -> None:
    topic = Topic()
    one = Hand(topic, "one").opens()
    one.fail(one.sends("a"))
    again = one.claims()
    Hand(topic, "two").opens()
    topic.put(again.data)
    one.read()
    assert one.phase == "fenced" and not one.writer.acknowledged and not one.writer.lost


def test_a_retry_after_a_leader_change_that_reports_no_offset_is_acknowledged_once_the_frame_was_seen_again() -> None:
    topic = Topic()
    kernel = Hand(topic, "k").opens()
    sent = kernel.sends("a")
    topic.put(sent.data)
    kernel.read()
    assert not kernel.writer.acknowledged, "the reply is lost with the leader"
    topic.new_leader()
    kernel.writer.delivered(sent.n, None, -1)
    assert not kernel.writer.acknowledged and kernel.writer.look is not None
    kernel.look()
    assert kernel.writer.acknowledged
    kernel.writer.take()
    kernel.writes("b")
    assert topic.records() == ["a", "b"]


def test_a_frame_accepted_before_a_leader_change_and_confirmed_elsewhere_after_it_is_not_acknowledged() -> None:
    """A leader that is alone shows what it has; its successor has the claim of another kernel there, and takes our retry."""
    topic = Topic()
    kernel = Hand(topic, "k").opens()
    sent = kernel.sends("a")
    topic.put(sent.data)
    kernel.read()
    topic.new_leader(keep=1)
    Hand(topic, "other").opens()
    kernel.confirm(sent, topic.put(sent.data))
    assert kernel.phase == "broken" and not kernel.writer.acknowledged
    assert topic.records() == []


def test_a_look_that_was_not_asked_for_after_the_confirmation_confirms_nothing() -> None:
    topic = Topic()
    kernel = Hand(topic, "k").opens()
    sent = kernel.sends("a")
    topic.put(sent.data)
    kernel.read()
    topic.new_leader()
    topic.put(kernel.pings().data)
    kernel.read()
    assert kernel.writer.look is None and not kernel.writer.acknowledged


def test_a_claim_accepted_before_a_leader_change_and_confirmed_elsewhere_after_it_settles_nothing() -> None:
    topic = Topic()
    kernel = Hand(topic, "k").opens()
    late = kernel.sends("a")
    kernel.fail(late, "_MSG_TIMED_OUT")
    again = kernel.claims()
    topic.put(again.data)
    kernel.read()
    topic.new_leader(keep=1)
    topic.put(late.data)
    offset = topic.put(again.data)
    assert topic.audit() == ["claim", "frame", "claim"]
    kernel.confirm(again, offset)
    assert not kernel.writer.lost and kernel.phase == "broken"


def test_a_paused_kernel_that_wakes_up_after_a_takeover_writes_nothing() -> None:
    topic = Topic()
    paused = Hand(topic, "paused").opens()
    heir = Hand(topic, "heir").opens()
    heir.writes("b")
    paused.now = 60.0
    sent = paused.sends("a")
    offset = topic.put(sent.data)
    paused.confirm(sent, offset)
    assert not paused.writer.acknowledged, "confirmed by the broker, but not read yet"
    paused.read()
    assert paused.phase == "fenced" and not paused.writer.acknowledged and not paused.writer.lost
    assert topic.records() == ["b"]


def test_a_paused_kernel_that_wakes_up_after_a_takeover_answers_no_read() -> None:
    topic = Topic()
    paused = Hand(topic, "paused").opens()
    assert paused.may_answer_reads()
    heir = Hand(topic, "heir").opens()
    heir.writes("b")
    paused.now = 60.0
    assert not paused.may_answer_reads()
    ping = paused.pings()
    offset = topic.put(ping.data)
    paused.confirm(ping, offset)
    assert not paused.may_answer_reads(), "the broker's confirmation says nothing about who writes"
    paused.read()
    assert paused.phase == "fenced" and topic.audit()[-1] == "void"


def test_what_a_kernel_asked_before_its_pause_makes_nothing_fresh_after_it() -> None:
    topic = Topic()
    kernel = Hand(topic, "k").opens()
    kernel.now = 10.0
    ping = kernel.pings()
    topic.put(ping.data)
    kernel.now = 70.0
    kernel.read()
    assert kernel.writer.fresh_at == 10.0 and not kernel.may_answer_reads()


def test_a_lost_and_refilled_tail_ends_a_running_kernel() -> None:
    topic = Topic()
    kernel = Hand(topic, "k").opens()
    kernel.writes("a")
    topic.new_leader(keep=1)
    topic.put(b"something else")
    sent = kernel.sends("b")
    kernel.confirm(sent, topic.put(sent.data))
    kernel.read()
    assert kernel.phase == "broken" and "lost its tail" in kernel.writer.why and not kernel.writer.acknowledged


def test_a_lost_and_refilled_tail_ends_a_kernel_that_starts_from_its_mirror() -> None:
    topic = Topic()
    before = Hand(topic, "before").opens()
    before.writes("a")
    for refill in (b"something else", None):
        topic.new_leader(keep=1)
        if refill is not None:
            topic.put(refill)
        start = Hand(topic, "start", mirror=before)
        start.read()
        assert start.phase == "broken"


def test_a_lost_tail_that_somebody_puts_back_but_for_its_beginning_is_noticed() -> None:
    topic = Topic()
    kernel = Hand(topic, "k").opens()
    kernel.writes("a")
    kernel.writes("b")
    copy = topic.log[2].data
    topic.new_leader(keep=1)
    topic.put(b"something else")
    topic.put(copy)
    topic.put(kernel.pings().data)
    kernel.read()
    assert kernel.phase == "broken", "the same bytes at the same place, but another leader put them there"


def test_a_copied_ping_does_not_hide_that_the_leader_lost_something() -> None:
    topic = Topic()
    kernel = Hand(topic, "k").opens()
    ping = kernel.pings()
    kernel.lands(ping)
    kernel.writes("a")
    topic.new_leader(keep=2)
    topic.put(b"something else")
    topic.put(ping.data)
    kernel.read()
    assert kernel.phase == "broken"


def test_a_standby_does_not_read_on_over_a_loss() -> None:
    topic = Topic()
    lost = Hand(topic, "lost").opens()
    lost.writes("a")
    heir = Hand(topic, "heir")
    heir.read()
    lost.writes("b")
    standby = Hand(topic, "standby")
    standby.read()
    topic.new_leader(keep=2)
    topic.put(b"something else")
    heir.position = 2
    heir.opens()
    heir.writes("c")
    standby.read()
    assert standby.phase == "broken"
    assert topic.records() == ["a", "c"]


def test_a_claim_that_took_the_place_of_void_messages_is_noticed() -> None:
    """Nothing that counted is lost; but where this kernel read junk, there is a claim now that it never saw."""
    topic = Topic()
    kernel = Hand(topic, "k").opens()
    topic.put(b"junk")
    kernel.read()
    topic.new_leader(keep=1)
    Hand(topic, "other").opens()
    topic.put(kernel.pings().data)
    kernel.read()
    assert kernel.phase == "broken"


def test_a_permission_revoked_in_mid_run_is_answered_by_no_once_a_new_claim_settles_it() -> None:
    topic = Topic()
    kernel = Hand(topic, "k").opens()
    kernel.fail(kernel.sends("a"), "TOPIC_AUTHORIZATION_FAILED")
    assert kernel.phase == "doubt" and not kernel.writer.lost, "it may land yet"
    denied = kernel.claims()
    kernel.fail(denied)
    assert kernel.phase == "doubt", "still no permission"
    kernel.lands(kernel.claims())
    assert kernel.writer.lost and not kernel.writer.acknowledged
    kernel.writer.take()
    kernel.writes("b")
    assert topic.records() == ["b"]


def test_a_frame_over_a_lowered_limit_that_had_landed_all_the_same_is_acknowledged() -> None:
    topic = Topic()
    kernel = Hand(topic, "k").opens()
    sent = kernel.sends("a")
    topic.put(sent.data)
    kernel.fail(sent, "MSG_SIZE_TOO_LARGE")
    claimed = kernel.claims()
    kernel.read()
    assert not kernel.writer.acknowledged, "read, but not confirmed"
    kernel.lands(claimed)
    assert kernel.writer.acknowledged and not kernel.writer.lost
    kernel.writer.take()
    topic.put(sent.data)
    kernel.writes("b")
    assert topic.records() == ["a", "b"]


def test_what_was_called_lost_never_counts_however_late_it_lands() -> None:
    topic = Topic()
    kernel = Hand(topic, "k").opens()
    sent = kernel.sends("a")
    kernel.fail(sent)
    kernel.lands(kernel.claims())
    assert kernel.writer.lost
    kernel.writer.take()
    topic.put(sent.data)
    kernel.writes("b")
    assert topic.records() == ["b"] and topic.audit() == ["claim", "claim", "void", "frame"]


def test_what_a_stranger_forges_or_copies_counts_for_nobody() -> None:
    topic = Topic()
    kernel = Hand(topic, "k").opens()
    kernel.writes("a")
    at = kernel.writer.counting.at
    genuine, _last = frame(at, ["forged"])
    for data, kind in (
        (encode_frame(b"guess" * 6, KEYS.log_id, at.epoch, at.claim_id or b"", at.seq + 1, at.hash, [b"forged"]), "suspect"),
        (genuine[:-1] + bytes([genuine[-1] ^ 1]), "suspect"),
        (claim(at.epoch + 1, "thief", at.hash, KEYS._replace(signer=OTHER.signer)), "suspect"),
        (claim(at.epoch + 1, "thief", at.hash, OTHER), "suspect"),
        (topic.log[0].data, "void"),
        (topic.log[1].data, "void"),
        (b"", "suspect"),
        (b"\xc1 not MessagePack", "suspect"),
    ):
        topic.put(data)
        assert [v.kind for v in kernel.read()] == [kind]
    kernel.writes("b")
    assert topic.records() == ["a", "b"] and kernel.phase == "open"


def test_a_copied_ping_makes_nothing_fresh() -> None:
    topic = Topic()
    kernel = Hand(topic, "k").opens()
    ping = kernel.pings()
    kernel.lands(ping)
    kernel.now = 5.0
    topic.put(ping.data)
    kernel.read()
    assert kernel.writer.fresh_at == 0.0 and not kernel.may_answer_reads()


def test_a_claim_of_ours_that_lands_after_our_second_claim_changes_nothing() -> None:
    topic = Topic()
    kernel = Hand(topic, "k")
    first = kernel.claims()
    kernel.fail(first, "_MSG_TIMED_OUT")
    kernel.lands(kernel.claims())
    assert kernel.writer.sure
    kernel.writes("a")
    topic.put(first.data)
    kernel.writes("b")
    assert kernel.phase == "open" and topic.records() == ["a", "b"]


def test_a_claim_of_ours_that_lands_before_our_second_claim_is_the_one_in_force() -> None:
    topic = Topic()
    kernel = Hand(topic, "k")
    first = kernel.claims()
    kernel.fail(first, "_MSG_TIMED_OUT")
    second = kernel.claims()
    topic.put(first.data)
    kernel.lands(second)
    assert topic.audit() == ["claim", "void"] and kernel.phase == "open"
    kernel.writes("a")
    assert topic.records() == ["a"]


def test_a_claim_that_came_although_its_delivery_failed_is_claimed_again() -> None:
    topic = Topic()
    kernel = Hand(topic, "k")
    claimed = kernel.claims()
    topic.put(claimed.data)
    kernel.fail(claimed, "_MSG_TIMED_OUT")
    kernel.read()
    assert kernel.phase == "doubt" and not kernel.writer.sure
    kernel.lands(kernel.claims())
    assert kernel.writer.sure and topic.audit() == ["claim", "claim"]


def test_a_starting_kernel_whose_failed_claim_never_lands_is_not_stuck_when_its_next_one_loses() -> None:
    topic = Topic()
    kernel = Hand(topic, "k")
    kernel.fail(kernel.claims())
    second = kernel.claims()
    Hand(topic, "other").opens()
    topic.put(second.data)
    kernel.read()
    assert kernel.phase == "reading"
    kernel.opens()


def test_a_frame_that_was_confirmed_and_lost_before_it_was_read_is_settled_by_a_claim() -> None:
    """No error comes, and nothing arrives: whoever waits too long for what was confirmed calls it failed."""
    topic = Topic()
    kernel = Hand(topic, "k").opens()
    sent = kernel.sends("a")
    kernel.confirm(sent, topic.put(sent.data))
    topic.new_leader(keep=1)
    kernel.writer.failed("what was confirmed does not arrive")
    kernel.lands(kernel.claims())
    assert kernel.writer.lost
    kernel.writer.take()
    kernel.writes("b")
    assert topic.records() == ["b"]


def test_a_topic_that_holds_another_log_is_left_alone() -> None:
    topic = Topic()
    topic.put(claim(1, "theirs", keys=OTHER))
    kernel = Hand(topic, "k")
    kernel.read()
    assert kernel.phase == "broken" and "another log" in kernel.writer.why


def test_of_two_logs_that_claim_an_empty_topic_the_first_has_it() -> None:
    topic = Topic()
    ours = Hand(topic, "ours")
    claimed = ours.claims()
    topic.put(claim(1, "theirs", keys=OTHER))
    topic.put(claimed.data)
    ours.read()
    assert ours.phase == "broken" and not ours.writer.sure
    theirs = counting(OTHER)
    assert [theirs.take(m.data).kind for m in topic.log] == ["claim", "suspect"]


def test_a_frame_whose_past_was_lost_tears_the_log_for_everybody() -> None:
    """What it holds was acknowledged: nobody may go on as if it had not been."""
    topic = Topic()
    kernel = Hand(topic, "k").opens()
    kernel.writes("a")
    kernel.writes("b")
    torn = topic.log[2].data
    topic.new_leader(keep=1)
    topic.put(torn)
    start = Hand(topic, "start")
    start.read()
    assert topic.audit() == ["claim", "torn"] and start.phase == "broken"


def test_a_mirror_that_is_behind_goes_on_from_where_it_is() -> None:
    topic = Topic()
    kernel = Hand(topic, "k").opens()
    behind = Hand(topic, "behind")
    behind.read()
    kernel.writes("a")
    kernel.writes("b")
    start = Hand(topic, "start", mirror=behind).opens()
    start.writes("c")
    fresh: Counting = counting()
    for message in topic.log:
        fresh.take(message.data)
    assert fresh.at == start.writer.counting.at and topic.records() == ["a", "b", "c"]
