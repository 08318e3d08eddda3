"""The table of transitions is closed: every state, every action, every pair of them has one outcome."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memos_kernel import lifecycle
from memos_kernel.lifecycle import EXPIRED, FROZEN, SHREDDED, TRANSITIONS
from memos_syscalls import messages as m

ACTIONS = sorted({action for ways in TRANSITIONS.values() for action in ways})
NOW = 1000


def test_states_are_those_of_the_abi_and_every_target_is_one() -> None:
    assert set(TRANSITIONS) == set(get_args(m.State))
    assert {target for ways in TRANSITIONS.values() for target in ways.values()} <= set(TRANSITIONS)


def test_an_action_leads_to_one_state_wherever_it_is_legal() -> None:
    targets = {action: {ways[action] for ways in TRANSITIONS.values() if action in ways} for action in ACTIONS}
    assert all(len(found) == 1 for found in targets.values()), targets


def test_every_state_can_be_reached_from_the_first() -> None:
    reached, queue = {"generated"}, ["generated"]
    while queue:
        new = set(TRANSITIONS[queue.pop()].values()) - reached
        reached |= new
        queue += new
    assert reached == set(TRANSITIONS)


def test_nothing_leaves_an_erasure_and_only_a_thaw_leaves_a_hold() -> None:
    assert TRANSITIONS[SHREDDED] == {}
    assert TRANSITIONS[FROZEN] == {"thaw": "activated"}
    assert TRANSITIONS[EXPIRED] == {"shred": SHREDDED}


ILLEGAL = [(state, action) for state, action in itertools.product(TRANSITIONS, ACTIONS) if action not in TRANSITIONS[state]]


@pytest.mark.parametrize(("state", "action"), ILLEGAL)
def test_every_other_pair_is_refused_with_its_reason(state: str, action: str) -> None:
    error = lifecycle.refusal("the-cube", state, action)
    expected = {SHREDDED: "ESHREDDED", EXPIRED: "ENOENT", FROZEN: "EFROZEN"}.get(state, "EINVAL")
    assert error.errno == expected and error.deterministic
    assert "the-cube" in error.detail and error.advice


@given(st.sampled_from(sorted(TRANSITIONS)), st.none() | st.integers(0, 2 * NOW))
def test_a_life_that_ran_out_counts_as_expired_but_for_holds_and_erasures(state: str, expires_at: int | None) -> None:
    out = expires_at is not None and expires_at <= NOW
    shown = lifecycle.effective(state, expires_at, NOW)
    assert shown == (EXPIRED if out and state not in (FROZEN, SHREDDED, EXPIRED) else state)


def test_what_is_found_is_listed_and_what_is_gone_is_neither() -> None:
    assert lifecycle.SEARCHABLE < lifecycle.LISTED
    assert not lifecycle.LISTED & {EXPIRED, SHREDDED}
