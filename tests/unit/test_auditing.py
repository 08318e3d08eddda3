"""Counting without the MAC key: whatever strangers add, it hands out what counting with the key counts, and nothing else."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memos_kernel import crypto
from memos_kernel import events as ev
from memos_kernel.chain import Chain, LogKeys
from memos_kernel.eventlog import auditing
from memos_kernel.eventlog.auditing import Finding, Proven, PublicCounting
from memos_kernel.eventlog.counting import KNOWN_HEADS_MAX, Counting, Verdict, encode_ping
from memos_kernel.eventlog.writer import Message
from memos_kernel.events import Event, Frame, decode_frame
from memos_kernel.recovery import opening, signer_of

KEYS = LogKeys.derive(bytes(range(16)), bytes(range(32)), bytes(range(1, 33)))
OTHERS = LogKeys.derive(bytes(range(16)), bytes(range(2, 34)), bytes(range(3, 35)))
NOTHING = ev.Record(1, 0, 0, 0, "uid:0", 7, None, None, [Event(ev.EXPIRED, 1, [[]])])
NOBODY = b"a key that nobody has" + bytes(11)


class Kernel:
    """One epoch's writer, as far as it may know."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain

    def frame(self, n: int, *, signed: bool = False, before: list[list[Event]] | None = None) -> bytes:
        """The next frame: what opens the epoch, some records, and a checkpoint somewhere among them."""
        chain = self.chain
        first, prev = chain.seq + 1, chain.hash
        records: list[bytes] = []
        for at in range(n + (1 if signed else 0) + len(before or ())):
            time = chain.next_time(chain.seq)
            opens = (before or [])[at : at + 1]
            if signed and at == len(before or ()) + n // 2:
                records.append(chain.checkpoint(bytes(32), time)[0].data)
                continue
            events = opens[0] if opens else [Event(ev.STATE_CHANGED, 1, [bytes(16), 1, "frozen", "freeze", [1, at]])]
            sealed = chain.record(time, "uid:1", 7, None, None, events)
            chain.push(sealed)
            records.append(sealed.data)
        return chain.frame(first, prev, records)


class Partition:
    """A topic being written to, by kernels and strangers, with what counts in it."""

    def __init__(self, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.messages: list[bytes] = []
        self.counting = Counting(KEYS.log_id, KEYS.signer.public_key, KEYS.frame_mac)
        self.counted: list[tuple[int, Verdict]] = []
        self.claims = 0
        self.heads: list[tuple[int, bytes]] = [(-1, crypto.ZERO_HASH)]
        self.kernel: Kernel | None = None
        self.old: list[Kernel] = []

    def put(self, data: bytes) -> Verdict:
        verdict = self.counting.take(data)
        if verdict.kind in ("claim", "frame"):
            self.counted.append((len(self.messages), verdict))
            if verdict.kind == "frame":
                self.heads.append((self.counting.at.seq, self.counting.at.hash))
        self.messages.append(data)
        return verdict

    def claim(self, *, lag: int = 0, ahead: int = 1) -> Verdict:
        """A kernel that knows a head of some frames ago claims the log; if that counts it is the writer from now on."""
        self.claims += 1
        claim_id = self.claims.to_bytes(16, "big")
        at = self.counting.at
        seq, head = self.heads[max(0, len(self.heads) - 1 - lag)]
        epoch = max(1, at.epoch + ahead)
        data = signer_of(KEYS)(epoch, claim_id, head, seq)
        verdict = self.put(data)
        if verdict.kind == "claim":
            if self.kernel is not None:
                self.old.append(self.kernel)
            before = self.kernel.chain if self.kernel is not None else None
            chain = Chain(KEYS, epoch, claim_id, at.seq, at.hash, at.seq)
            if before is not None:
                chain.previous_checkpoint = before.previous_checkpoint
            self.kernel = Kernel(chain)
            self.opens: list[list[Event]] | None = opening(KEYS, at.seq, data)
        return verdict

    def write(self, n: int = 1, *, signed: bool = False) -> Verdict:
        assert self.kernel is not None
        before, self.opens = self.opens, None
        verdict = self.put(self.kernel.frame(n, signed=signed, before=before))
        assert verdict.kind == "frame", verdict
        return verdict

    def late(self, *, signed: bool) -> None:
        """A kernel that was replaced finishes what it was about to do."""
        if self.old:
            self.put(self.random.choice(self.old).frame(1, signed=signed))

    # -- strangers ---------------------------------------------------------------------------------------------------

    def frames(self) -> list[Frame]:
        found: list[Frame] = []
        for data in self.messages:
            try:
                found.append(decode_frame(data))
            except ev.Damaged:
                continue
        return found

    def forge(self, kind: str) -> None:
        """What somebody can do who reads everything and has no key."""
        pick, at = self.random.choice, self.counting.at
        epoch, claim_id = at.epoch, at.claim_id or bytes(16)
        head = pick((at.hash, pick(self.heads)[1]))
        seq = next(seq for seq, hash_ in self.heads if hash_ == head)
        frames = self.frames()
        made: list[bytes] = []

        def frame(first: int, prev: bytes, records: list[bytes], of: tuple[int, bytes] = (epoch, claim_id)) -> None:
            made.append(ev.encode_frame(NOBODY, KEYS.log_id, of[0], of[1], first, prev, records))

        match kind:
            case "extend":
                record = ev.Record(1, seq + 1, epoch, seq + 2, "uid:0", 7, None, None, [Event(ev.EXPIRED, 1, [[]])])
                frame(seq + 1, head, [ev.encode_record(record)])
            case "longer" if frames:
                real = pick(frames[-4:])
                frame(real.first_seq, real.prev_hash, [*real.records, more(real)], (real.epoch, real.claim_id))
            case "shorter" if frames:
                real = pick(frames[-4:])
                frame(real.first_seq, real.prev_hash, real.records[:-1], (real.epoch, real.claim_id))
            case "split" if frames:
                real = pick(frames[-4:])
                hash_ = real.prev_hash
                for n, raw in enumerate(real.records, real.first_seq):
                    frame(n, hash_, [raw], (real.epoch, real.claim_id))
                    hash_ = crypto.record_hash(hash_, raw)
            case "joined" if len(frames) > 1:
                one, two = pick(list(pairwise(frames[-5:])))
                frame(one.first_seq, one.prev_hash, [*one.records, *two.records], (one.epoch, one.claim_id))
            case "checkpoint" if frames:
                real = pick(frames)
                frame(real.first_seq, real.prev_hash, real.records)
                frame(seq + 1, head, real.records)
            case "envelope" if frames:
                # A signed checkpoint in a record of his own making, under the claim that is in force.
                record = NOTHING
                for real in frames:
                    hash_ = real.prev_hash
                    for raw in real.records:
                        with contextlib.suppress(ev.Damaged):
                            record = ev.decode_record(raw)
                        if record.events[0].name == ev.CHECKPOINT:
                            frame(record.seq, hash_, [ev.encode_record(record._replace(epoch=epoch))])
                        hash_ = crypto.record_hash(hash_, raw)
            case "misshapen":
                for fields in ([], [1, 2, 3, 4, 5, 6, 7], [0, head, head, head, head, 0, b""]):
                    event = Event(ev.CHECKPOINT, 1, fields)
                    record = ev.Record(1, seq + 1, epoch, 1, "kernel", 0, None, None, [event])
                    frame(seq + 1, head, [ev.encode_record(record)])
            case "flipped" if self.messages:
                flipped = bytearray(pick(self.messages) or b"x")
                flipped[self.random.randrange(len(flipped))] ^= 1 << self.random.randrange(8)
                made.append(bytes(flipped))
            case "again" if self.messages:
                made.append(pick(self.messages))
            case "on top" if frames:
                # Goes on from a frame that is not the kernel's.
                last = pick(frames[-3:])
                hash_ = last.prev_hash
                for raw in last.records:
                    hash_ = crypto.record_hash(hash_, raw)
                frame(last.first_seq + len(last.records), hash_, [more(last)], (last.epoch, last.claim_id))
            case "claim":
                made.append(signer_of(OTHERS)(epoch + 1, self.random.randbytes(16), head, seq))
            case "ping":
                made.append(encode_ping(NOBODY, KEYS.log_id, epoch, claim_id, 1))
            case _:
                made.append(self.random.randbytes(self.random.randint(0, 60)))
        for data in made:
            self.put(data)


def more(frame: Frame) -> bytes:
    """A record that nobody wrote, to follow a frame's."""
    seq = frame.first_seq + len(frame.records)
    return ev.encode_record(ev.Record(1, seq, frame.epoch, seq + 2, "uid:0", 7, None, None, [Event(ev.EXPIRED, 1, [[]])]))


FORGERIES = (
    "extend", "longer", "shorter", "split", "joined", "checkpoint", "envelope", "misshapen", "flipped", "again", "on top",
    "claim", "ping", "garbage",
)  # fmt: skip


def public(messages: list[bytes]) -> tuple[list[Proven], list[Proven], list[Finding], PublicCounting]:
    """What is proven, the rest, and what does not count."""
    counting = PublicCounting(KEYS.log_id, KEYS.signer.public_key)
    proven: list[Proven] = []
    for offset, data in enumerate(messages):
        proven += counting.take(Message(offset, 0, data))
    rest = counting.rest()
    return proven, rest, counting.findings(), counting


def signed(frame: Frame) -> bool:
    return any(ev.decode_record(raw).events[0].name == ev.CHECKPOINT for raw in frame.records)


def certain(p: Partition) -> list[int]:
    """Offsets of what counts, up to the frame before that with the newest checkpoint."""
    frames = [at for at, (_offset, verdict) in enumerate(p.counted) if isinstance(verdict.message, Frame)]
    last = max((n for n, at in enumerate(frames) if signed(_frame(p.counted[at][1]))), default=0)
    return [offset for offset, _verdict in p.counted[: frames[last - 1] + 1]] if last else []


def _frame(verdict: Verdict) -> Frame:
    assert isinstance(verdict.message, Frame)
    return verdict.message


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(1, 3), st.booleans()),
        st.tuples(st.just("claim"), st.integers(0, 3), st.integers(0, 2)),
        st.tuples(st.just("late"), st.just(0), st.booleans()),
        st.tuples(st.sampled_from(FORGERIES), st.just(0), st.just(False)),
        st.tuples(st.sampled_from(FORGERIES), st.just(0), st.just(False)),
    ),
    max_size=40,
)  # fmt: skip


@given(st.integers(0, 2**16), STEPS)
def test_it_hands_out_what_the_key_would_count_up_to_the_newest_checkpoint(
    seed: int, steps: list[tuple[str, int, Any]]
) -> None:
    p = Partition(seed)
    p.claim()
    p.write()
    for step, n, how in steps:
        if step == "write":
            p.write(n, signed=how)
        elif step == "claim":
            p.claim(lag=n, ahead=how)
        elif step == "late":
            p.late(signed=how)
        else:
            p.forge(step)
    proven, rest, findings, _counting = public(p.messages)
    everything = [offset for offset, _verdict in p.counted]
    mine, least = [one.address.offset for one in proven], certain(p)
    # More than that may be certain: a copy of a checkpoint that came too late still signs the head before it.
    assert mine == everything[: len(mine)]
    assert mine[: len(least)] == least
    # What is handed out is told as the key would tell it: which record follows, and the head there.
    counting = Counting(KEYS.log_id, KEYS.signer.public_key, KEYS.frame_mac)
    ends: dict[int, tuple[int, bytes]] = {}
    for offset, data in enumerate(p.messages):
        counting.take(data)
        ends[offset] = (counting.at.seq, counting.at.hash)
    assert all((one.seq, one.hash) == ends[one.address.offset] for one in proven)
    # On a topic where nothing is missing, nothing is said to be.
    assert [one for one in findings if one.kind == "torn"] == []
    if not any(step in FORGERIES for step, _n, _how in steps):
        assert mine == least
        with_rest = [one.address.offset for one in proven + rest]
        assert with_rest == everything[: len(with_rest)]
        assert all(one.kind == "void" for one in findings)


def written(frames: int = 12, every: int = 3) -> Partition:
    """One epoch after the other, of a few frames each, with checkpoints."""
    p = Partition()
    for n in range(frames):
        if n % 5 == 0:
            p.claim()
        p.write(2, signed=n % every == every - 1)
    return p


TAMPERED: dict[str, Callable[[list[bytes]], Any]] = {
    "a record is edited": lambda m: m.__setitem__(4, m[4].replace(b"frozen", b"frozem")),
    "a frame is removed": lambda m: m.pop(4),
    "two frames change places": lambda m: m.insert(4, m.pop(5)),
    "the second claim is removed": lambda m: m.pop(6),
    "the first message is removed": lambda m: m.pop(0),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_a_torn_log_is_told_where_it_is_torn(what: str) -> None:
    p = written()
    messages = list(p.messages)
    TAMPERED[what](messages)
    with_key = Counting(KEYS.log_id, KEYS.signer.public_key, KEYS.frame_mac)
    verdicts = [with_key.take(data) for data in messages]
    torn = next(at for at, verdict in enumerate(verdicts) if verdict.kind == "torn")
    proven, _rest, findings, _counting = public(messages)
    mine = [one for one in findings if one.kind == "torn"]
    assert mine[0].offset == torn
    # All after it is torn off, and nothing else is odd but what was put into its place.
    suspect = {at for at, verdict in enumerate(verdicts) if verdict.kind == "suspect"}
    assert {one.offset for one in findings if one.kind == "suspect"} <= suspect
    missing = {"a record is edited": 9, "a frame is removed": 9, "two frames change places": 9,
               "the second claim is removed": 13, "the first message is removed": 0}  # fmt: skip
    assert mine[0].seq == missing[what], (mine, [v.why for v in verdicts])
    counts = {at for at, verdict in enumerate(verdicts) if verdict.kind in ("claim", "frame")}
    assert {one.address.offset for one in proven} <= counts


def test_what_a_stranger_adds_is_not_called_torn() -> None:
    p = written()
    frame = Frame(1, KEYS.log_id, 9, bytes(16), 90, bytes(32), [], b"")
    loose = ev.encode_frame(NOBODY, KEYS.log_id, 9, bytes(16), 90, bytes(32), [more(frame)])
    proven, _rest, findings, _counting = public([*p.messages[:4], loose, *p.messages[4:]])
    assert [(one.offset, one.kind) for one in findings] == [(4, "suspect")]
    assert len(proven) == len(certain(p))


def test_the_newest_checkpoint_covers_what_is_before_it_and_itself() -> None:
    p = written(3)
    _proven, _rest, _findings, counting = public(p.messages)
    # The third frame holds a record, its checkpoint, and a record that nothing covers yet.
    assert counting.unproven == 6
    p = Partition()
    p.claim()
    p.write()
    p.write(0, signed=True)
    proven, rest, _findings, counting = public(p.messages)
    assert (counting.unproven, len(proven), len(rest)) == (None, 2, 1)


def test_two_ways_to_go_on_are_both_refused_until_one_is_signed() -> None:
    p = Partition()
    p.claim()
    p.write()
    p.write(0, signed=True)
    real = p.frames()[-1]
    p.put(ev.encode_frame(NOBODY, KEYS.log_id, 1, real.claim_id, real.first_seq, real.prev_hash, [*real.records, more(real)]))
    proven, rest, findings, counting = public(p.messages)
    assert (len(proven), rest, counting.unproven) == (2, [], 3)
    assert [one.kind for one in findings] == ["suspect"] * 2
    p.write(1, signed=True)
    assert len(public(p.messages)[0]) == 3
    assert public(p.messages)[3].forged == 1


def test_an_epoch_longer_than_a_claim_may_lag() -> None:
    p = Partition()
    p.claim()
    for n in range(KNOWN_HEADS_MAX + 4):
        p.write(signed=n % 500 == 499)
    assert p.claim(lag=KNOWN_HEADS_MAX).kind == "void"
    assert p.claim(lag=KNOWN_HEADS_MAX - 1).kind == "claim"
    p.write()
    p.write(signed=True)
    proven, rest, findings, _counting = public(p.messages)
    assert [one.address.offset for one in proven] == certain(p)
    assert (findings, rest) == ([], [])


def test_a_flood_of_frames_that_nothing_signs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auditing, "PENDING_MAX", 20)
    p = Partition(3)
    p.claim()
    p.write()
    for n in range(30):
        record = ev.Record(1, 3, 1, 9 + n, "uid:0", 7, None, None, [Event(ev.EXPIRED, 1, [[]])])
        claim_id, head = p.counting.at.claim_id or b"", p.counting.at.hash
        p.put(ev.encode_frame(NOBODY, KEYS.log_id, 1, claim_id, 3, head, [ev.encode_record(record)]))
    with pytest.raises(ev.Damaged, match="somebody floods it"):
        public(p.messages)
