"""The writer's end of the chain: numbers, times, hashes, and when a checkpoint is due."""

from __future__ import annotations

from memos_kernel import crypto
from memos_kernel import events as ev
from memos_kernel.chain import Chain, LogKeys, Sealed
from memos_kernel.events import Event
from memos_syscalls import limits

KEYS = LogKeys.derive(b"l" * 16, b"s" * 32, b"x" * 32)


def chain() -> Chain:
    return Chain(KEYS, 1, b"c" * 16, -1, crypto.ZERO_HASH, 0)


def add(c: Chain, time: int = 0) -> Sealed:
    sealed = c.record(c.next_time(time), "uid:1", 16, None, None, [Event(ev.EXPIRED, 1, [[]])])
    c.push(sealed)
    return sealed


def test_records_are_numbered_and_chained_and_time_never_goes_back() -> None:
    c = chain()
    times = [add(c, time).record.time for time in (100, 50, 101, 101, 500, 0)]
    assert times == [100, 101, 102, 103, 500, 501]
    assert c.seq == 5


def test_a_record_counts_when_it_is_pushed() -> None:
    c = chain()
    first = c.record(1, "uid:1", 16, None, None, [])
    assert c.seq == -1 and c.record(1, "uid:1", 16, None, None, []) == first
    c.push(first)
    assert (c.seq, c.hash) == (0, crypto.record_hash(crypto.ZERO_HASH, first.data))


def test_a_checkpoint_is_due_after_1024_records_and_covers_them_all() -> None:
    c = chain()
    for number in range(1, limits.CHECKPOINT_RECORDS + 1):
        assert not c.checkpoint_due
        add(c)
        assert c.uncovered == number
    assert c.checkpoint_due
    leaves = list(c.window)
    head = (c.seq, c.hash)
    sealed, checkpoint = c.checkpoint(b"d" * 32, c.next_time(0))
    assert len(leaves) == limits.CHECKPOINT_RECORDS == 1024
    assert (checkpoint.head_seq, checkpoint.head_hash) == head
    assert checkpoint.merkle_root == crypto.merkle_root(leaves)
    assert checkpoint.previous == crypto.ZERO_HASH and checkpoint.state_digest == b"d" * 32
    assert crypto.verify_signature(KEYS.signer.public_key, checkpoint.signature, checkpoint.signed_bytes(KEYS.log_id))
    assert not c.checkpoint_due and c.uncovered == 0
    assert c.window == [sealed.hash], "the next window begins with the checkpoint itself"
    assert ev.Checkpoint(*ev.decode_record(sealed.data).events[0].fields) == checkpoint
    add(c)
    assert c.checkpoint(b"e" * 32, c.next_time(0))[1].previous == checkpoint.hash(KEYS.log_id)


def test_the_secret_s_keys_are_apart_and_request_ids_are_their_principal_s() -> None:
    assert len({KEYS.frame_mac, KEYS.request_mac, b"x" * 32}) == 3
    macs = {KEYS.request(who, what) for who in ("uid:1", "uid:11") for what in ("r", "1r", "")}
    assert len(macs) == 6 and KEYS.request("uid:1", "r") == KEYS.request("uid:1", "r")


def test_a_full_record_fits_and_one_byte_more_does_not() -> None:
    c = chain()
    assert c.fits(bytes(limits.RECORD_BYTES_MAX)) and not c.fits(bytes(limits.RECORD_BYTES_MAX + 1))
