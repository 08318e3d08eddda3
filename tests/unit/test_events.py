"""Stored bytes: what is written is read back, what is not exactly of the form is refused, MACs and signatures cover it all."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memos_kernel import crypto
from memos_kernel import events as ev
from memos_kernel.events import Damaged, Event, Record

KEY, LOG_ID, CLAIM_ID = bytes(32), b"l" * 16, b"c" * 16
SIGNER = crypto.Signer(b"s" * 32)
EVENT = Event("cubes.expired", 1, [[[b"i" * 16, 1]]], [b"p" * 16, b"c"])
RECORD = Record(1, 7, 2, 10**18, "uid:1000", 16, b"m" * 32, None, [EVENT])

scalars = st.none() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=20) | st.binary(max_size=40)
fields = st.lists(scalars | st.lists(scalars, max_size=3), max_size=6)
event = st.builds(Event, st.sampled_from(sorted(ev.EVENTS)), st.integers(1, 9), fields,
                  st.none() | st.lists(st.binary(max_size=20), min_size=2, max_size=2))  # fmt: skip
record = st.builds(
    Record, st.just(1), st.integers(0, 2**63), st.integers(1, 99), st.integers(0, 2**63 - 1), st.text(max_size=30),
    st.integers(0, 65535), st.none() | st.binary(min_size=32, max_size=32), st.none() | st.text(max_size=50),
    st.lists(event, max_size=4),
)  # fmt: skip


@given(record)
def test_a_record_is_read_back_as_it_was_written(made: Record) -> None:
    data = ev.encode_record(made)
    assert ev.decode_record(data) == made
    assert ev.encode_record(ev.decode_record(data)) == data


@given(st.binary(max_size=60))
def test_any_other_bytes_are_damage_and_nothing_else(data: bytes) -> None:
    for decode in (ev.decode_record, ev.decode_frame, ev.decode_claim):
        with pytest.raises(Damaged):
            decode(data)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_byte_of_a_record_never_crashes_its_reader(at: int, bits: int) -> None:
    data = bytearray(ev.encode_record(RECORD))
    data[at % len(data)] ^= bits
    try:
        ev.decode_record(bytes(data))
    except Damaged as error:
        assert str(error)


@pytest.mark.parametrize(
    "wrong",
    [
        (2, *RECORD[1:]), RECORD[:8], (*RECORD, 1), (*RECORD[:8], None), (*RECORD[:8], [["name", 1, []]]),
        (*RECORD[:8], [[1, 1, [], None]]), (*RECORD[:8], [["name", 1, "fields", None]]), {"fmt": 1},
    ],
    ids=["format", "short", "long", "no events", "short event", "name", "fields", "map"],
)  # fmt: skip
def test_what_is_not_exactly_a_record_is_refused(wrong: object) -> None:
    with pytest.raises(Damaged):
        ev.decode_record(ev.pack(wrong))


def frame(records: list[bytes]) -> bytes:
    return ev.encode_frame(KEY, LOG_ID, 1, CLAIM_ID, 0, crypto.ZERO_HASH, records)


def test_a_frame_s_mac_covers_every_byte_before_it() -> None:
    data = frame([ev.encode_record(RECORD)] * 2)
    assert ev.frame_mac_ok(KEY, data) and not ev.frame_mac_ok(b"x" * 32, data)
    assert ev.decode_frame(data).records == [ev.encode_record(RECORD)] * 2
    covered = len(data) - 2 - crypto.HASH_BYTES
    for at in [*range(covered), *range(len(data) - crypto.HASH_BYTES, len(data))]:
        assert not ev.frame_mac_ok(KEY, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]), at


@pytest.mark.parametrize("records", [[1], ["text"], [b"ok", None]])
def test_a_frame_holds_bytes_and_nothing_else(records: list[object]) -> None:
    with pytest.raises(Damaged):
        ev.decode_frame(ev.pack((1, LOG_ID, 1, CLAIM_ID, 0, crypto.ZERO_HASH, records, bytes(32))))


def test_a_claim_is_signed_over_every_byte_before_the_signature() -> None:
    data = ev.encode_claim(SIGNER, LOG_ID, 3, CLAIM_ID, crypto.ZERO_HASH, None)
    claim = ev.decode_claim(data)
    assert (claim.log_id, claim.epoch, claim.claim_id, claim.public_key) == (LOG_ID, 3, CLAIM_ID, SIGNER.public_key)
    assert ev.claim_signature_ok(SIGNER.public_key, data)
    assert not ev.claim_signature_ok(crypto.Signer(b"x" * 32).public_key, data)
    for at in [*range(len(data) - 66), *range(len(data) - 64, len(data))]:
        assert not ev.claim_signature_ok(SIGNER.public_key, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]), at


def test_a_checkpoint_is_named_by_what_it_signs_and_its_signature() -> None:
    made = ev.Checkpoint(5, b"h" * 32, b"m" * 32, b"p" * 32, b"d" * 32, 1, b"s" * 64)
    assert made.hash(LOG_ID) != made.hash(b"o" * 16)
    for name in made._fields:
        changed: Any = 6 if isinstance(getattr(made, name), int) else b"x" * 32
        other = made._replace(**{name: changed})
        assert other.hash(LOG_ID) != made.hash(LOG_ID), name
