"""Attacks on a log's topics by somebody who may write to them, or who runs the brokers: what is found, where, and by whom.

One history of two kernels is copied, message by message, into a topic for each attack, with one change. Asked are who holds the
master key, who holds the public key alone, and a kernel that starts on it.
"""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest
from tests.inside import Inside

from memos_drivers.stores.base import VIEW
from memos_kernel import crypto
from memos_kernel import events as ev
from memos_kernel.answers import read_receipt
from memos_kernel.boot import Refused
from memos_kernel.chain import LogKeys
from memos_kernel.clock import RealClock
from memos_kernel.eventlog.counting import decode
from memos_kernel.eventlog.link import Link
from memos_kernel.eventlog.partition import Reader
from memos_kernel.eventlog.topics import ensure
from memos_kernel.events import Claim, Event, Frame, Slot
from memos_kernel.keystore import wrapping_cipher, wrapping_key_id
from memos_kernel.state import View
from memos_kernel.topickeys import SLOT, SLOT_KEY, SLOT_VALUE, TopicKeys
from memos_tools import ctl, offline
from memos_tools.offline import Keys

if TYPE_CHECKING:
    from confluent_kafka import Producer

Messages = list[tuple[bytes | None, bytes | None]]
SEALED: Final = "z" * 40_000
"""Too large to stand in its record."""


class Copy(NamedTuple):
    """Three topics, as they are to be."""

    records: list[bytes]
    payloads: Messages
    keys: Messages

    def again(self) -> Copy:
        return Copy(list(self.records), list(self.payloads), list(self.keys))


class Original(NamedTuple):
    copy: Copy
    keys: LogKeys
    master: Path
    anchor: Path
    public_key: str
    receipt: bytes

    def frames(self) -> dict[int, Frame]:
        """Topic offset → frame."""
        return {at: found for at, data in enumerate(self.copy.records) if isinstance(found := decode(data), Frame)}

    def claims(self) -> list[int]:
        return [at for at, data in enumerate(self.copy.records) if isinstance(decode(data), Claim)]

    def frame(self) -> int:
        """Topic offset of a frame in the midst of the first epoch, before a checkpoint."""
        return self.claims()[0] + 4


def read(link: Link, topic: str) -> Messages:
    reader = Reader(link, topic, batch=1000)
    try:
        return [(message.key(), message.value()) for message in reader.to_end()]
    finally:
        reader.close()


def write(producer: Producer, topic: str, messages: Messages) -> None:
    producer.produce_batch(topic, [{"key": key, "value": value} for key, value in messages], partition=0)


def wanted(messages: Messages) -> Messages:
    """The keys topic without most of the slots that nothing uses: there are thousands."""
    slots = [SLOT_KEY.unpack(key) if key is not None and key[:1] == SLOT else None for key, _value in messages]
    return [message for slot, message in zip(slots, messages, strict=True) if slot is None or slot[2] < 32]


def history(url: str, directory: Path) -> tuple[LogKeys, bytes]:
    """A log, its keys, and the receipt of an erasure in it."""
    with Inside(directory, log=url, clock=RealClock()) as k:
        made = [k("mem_alloc", namespace="alice", content=f"fact number {n}")["cube_id"] for n in range(5)]
        for n in range(2):
            k("mem_alloc", namespace="alice", content=SEALED, name=f"large {n}")
        k("mem_free", cube_id=made[0])
        receipt = k("mem_shred", cube_id=made[4])["report"]["receipt"]
        k.reopen()
        for n in range(4):
            k("mem_write", cube_id=made[1], content=f"newer {n}")
        return k.kernel.keys, receipt


@pytest.fixture(scope="module")
def original(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Original:
    root = tmp_path_factory.mktemp("original")
    link = Link.parse(f"kafka://{kafka}/memos-test-{uuid.uuid4().hex[:12]}")
    url = f"kafka://{link.brokers}/{link.topic}"
    keys, receipt = history(url, root / "data")
    master, anchor = root / "data" / "master.key", root / "anchor.json"
    assert ctl.main(["--json", "anchor", url, "--key-file", str(master), "--out", str(anchor)]) == 0
    records = [value or b"" for _key, value in read(link, link.topic)]
    # A ping counts for the moment in which it is sent.
    records = [data for data in records if isinstance(decode(data), Claim | Frame)]
    copy = Copy(records, read(link, link.payloads), wanted(read(link, link.keys)))
    return Original(copy, keys, master, anchor, keys.signer.public_key.hex(), receipt)


@pytest.fixture(scope="module")
def stranger(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """Another log, whole, of somebody with keys of his own."""
    root = tmp_path_factory.mktemp("stranger")
    link = Link.parse(f"kafka://{kafka}/memos-test-{uuid.uuid4().hex[:12]}")
    history(f"kafka://{link.brokers}/{link.topic}", root / "data")
    records = [value or b"" for _key, value in read(link, link.topic)]
    return Copy(records, read(link, link.payloads), wanted(read(link, link.keys)))


class Expected(NamedTuple):
    """What is said of an attack. `at` is the topic's offset, `record` the log's; None where nothing can be said."""

    with_keys: tuple[int, int, str] | None = None
    """Problem: topic offset, record, and words of it."""
    public: tuple[int, int, str] | None = None
    odd: tuple[int, str] | None = None
    """What does not count and is no problem: topic offset and words."""
    refused: str | None = None
    """What a starting kernel says."""
    unproven: int | None = None
    """The first record that the public key says nothing about."""


Attack = Callable[[Original, Copy, Copy], Expected]
ATTACKS: dict[str, Attack] = {}


def attack(function: Attack) -> Attack:
    ATTACKS[function.__name__.replace("_", " ")] = function
    return function


@attack
def nothing_is_changed(_of: Original, _copy: Copy, _stranger: Copy) -> Expected:
    return Expected()


@attack
def a_byte_is_changed(of: Original, copy: Copy, _stranger: Copy) -> Expected:
    at = of.frame()
    frame = of.frames()[at]
    data = bytearray(copy.records[at])
    data[data.index(frame.records[0]) + len(frame.records[0]) // 2] ^= 1
    copy.records[at] = bytes(data)
    torn = (at + 1, frame.first_seq, "do not follow")
    return Expected(torn, torn, refused="offset " + str(at + 1))


@attack
def a_frame_is_removed(of: Original, copy: Copy, _stranger: Copy) -> Expected:
    at = of.frame()
    del copy.records[at]
    torn = (at, of.frames()[at].first_seq, "do not follow")
    return Expected(torn, torn, refused="offset " + str(at))


@attack
def two_frames_change_places(of: Original, copy: Copy, _stranger: Copy) -> Expected:
    at = of.frame()
    copy.records[at], copy.records[at + 1] = copy.records[at + 1], copy.records[at]
    torn = (at, of.frames()[at].first_seq, "do not follow")
    return Expected(torn, torn, refused="offset " + str(at))


@attack
def the_second_claim_is_removed(of: Original, copy: Copy, _stranger: Copy) -> Expected:
    at = of.claims()[1]
    del copy.records[at]
    first = of.frames()[at + 1].first_seq
    return Expected(
        (at, first, "under a claim that is not there"), (at, first, "under a claim that is not in force"),
        refused="offset " + str(at),
    )  # fmt: skip


@attack
def the_first_message_is_removed(_of: Original, copy: Copy, _stranger: Copy) -> Expected:
    del copy.records[0]
    return Expected((0, 0, "under a claim that is not there"), (0, 0, "under a claim"), refused="offset 0")


@attack
def the_end_is_cut_off(of: Original, copy: Copy, _stranger: Copy) -> Expected:
    """Only who remembers the end can know."""
    last = max(of.frames())
    del copy.records[last - 1 :]
    missing = of.frames()[last - 1].first_seq
    # With its checkpoint, the end of the second epoch has lost what proved it.
    unproven = of.frames()[of.claims()[1] + 1].first_seq
    return Expected((-1, missing, "cut back"), (-1, unproven, "cut back"), refused="cut back", unproven=unproven)


@attack
def a_stranger_goes_on_in_the_midst(of: Original, copy: Copy, _stranger: Copy) -> Expected:
    at = of.frame()
    frame = of.frames()[at]
    copy.records.insert(at, forged(frame, frame.records[0].replace(b"uid:0", b"uid:1")))
    return Expected(odd=(at, ""))


@attack
def a_stranger_goes_on_at_the_end(of: Original, copy: Copy, _stranger: Copy) -> Expected:
    last = of.frames()[max(of.frames())]
    hash_ = last.prev_hash
    for raw in last.records:
        hash_ = crypto.record_hash(hash_, raw)
    seq = last.first_seq + len(last.records)
    record = ev.Record(1, seq, last.epoch, 2**62, "uid:0", 7, None, None, [Event(ev.EXPIRED, 1, [[]])])
    copy.records.append(forged(last._replace(first_seq=seq, prev_hash=hash_), ev.encode_record(record)))
    # It may be the kernel's, for all that the public key says.
    return Expected(odd=(len(copy.records) - 1, ""), unproven=seq)


@attack
def an_old_frame_comes_again(of: Original, copy: Copy, _stranger: Copy) -> Expected:
    copy.records.insert(of.claims()[1] + 3, copy.records[of.frame()])
    return Expected(odd=(of.claims()[1] + 3, ""))


@attack
def anything_is_put_in(of: Original, copy: Copy, _stranger: Copy) -> Expected:
    copy.records.insert(of.frame(), b"")
    copy.records.insert(of.frame(), b"\xc1 not MessagePack")
    other = ev.encode_claim(crypto.Signer(bytes(32)), of.keys.log_id, 9, bytes(16), bytes(32), None)
    copy.records.insert(of.frame(), other)
    return Expected(odd=(of.frame(), "is a claim that the log's key did not sign"))


@attack
def a_true_frame_under_a_claim_that_never_was(of: Original, copy: Copy, _stranger: Copy) -> Expected:
    """Who holds the keys can tell that a kernel wrote it; who does not cannot."""
    frame = of.frames()[max(of.frames())]
    data = ev.encode_frame(
        of.keys.frame_mac, frame.log_id, 9, bytes(16), frame.first_seq, frame.prev_hash, frame.records
    )  # fmt: skip
    copy.records.append(data)
    at = len(copy.records) - 1
    return Expected((at, frame.first_seq + len(frame.records), "under a claim that is not there"), refused=f"offset {at}")


@attack
def pieces_of_contents_change_places(of: Original, copy: Copy, _stranger: Copy) -> Expected:
    pieces = copy.payloads
    pieces[0], pieces[1] = (pieces[0][0], pieces[1][1]), (pieces[1][0], pieces[0][1])
    named = next(
        seq for frame in of.frames().values() for seq, raw in enumerate(frame.records, frame.first_seq)
        if pieces[0][0] is not None and pieces[0][0] in raw
    )  # fmt: skip
    at = next(at for at, frame in of.frames().items() if frame.first_seq <= named < frame.first_seq + len(frame.records))
    wrong = (at, named, "(pieces at offsets 0 of the topic of large contents)")
    return Expected(wrong, wrong)


@attack
def all_of_it_is_written_anew(_of: Original, copy: Copy, stranger: Copy) -> Expected:
    """By somebody with keys of his own, who left our key store."""
    copy.records[:], copy.payloads[:] = stranger.records, stranger.payloads
    wrong = (-1, 0, "holds no claim of the public key")
    return Expected((-1, -1, "holds no keys of log"), wrong, refused="holds no keys of log")


@attack
def all_of_it_is_written_anew_with_its_keys(_of: Original, copy: Copy, stranger: Copy) -> Expected:
    copy.records[:], copy.payloads[:], copy.keys[:] = stranger.records, stranger.payloads, stranger.keys
    wrong = (-1, 0, "holds no claim of the public key")
    return Expected((-1, -1, "the master key does not open"), wrong, refused="the master key does not open")


def forged(frame: Frame, record: bytes) -> bytes:
    return ev.encode_frame(bytes(32), frame.log_id, frame.epoch, frame.claim_id, frame.first_seq, frame.prev_hash, [record])


class Tampered(NamedTuple):
    url: str
    expected: Expected


@pytest.fixture(scope="module")
def tampered(kafka: str, original: Original, stranger: Copy) -> dict[str, Tampered]:
    """Each attack, carried out in topics of its own."""

    def carry_out(one: Attack) -> Tampered:
        link = Link.parse(f"kafka://{kafka}/memos-test-{uuid.uuid4().hex[:12]}")
        ensure(link)
        copy = original.copy.again()
        expected = one(original, copy, stranger)
        write(producer, link.topic, [(None, data) for data in copy.records])
        write(producer, link.payloads, copy.payloads)
        write(producer, link.keys, copy.keys)
        return Tampered(f"kafka://{link.brokers}/{link.topic}", expected)

    producer = Link.parse(f"kafka://{kafka}/x").producer()
    with ThreadPoolExecutor(4) as pool:
        made = dict(zip(ATTACKS, pool.map(carry_out, ATTACKS.values()), strict=True))
    assert producer.flush(30) == 0
    return made


def verified(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    status = ctl.main(["--json", "verify", *map(str, words)])
    captured = capsys.readouterr()
    answer: dict[str, Any] = json.loads(captured.out or captured.err)
    return status, answer


def check(status: int, answer: dict[str, Any], problem: tuple[int, int, str] | None, odd: tuple[int, str] | None) -> None:
    """Whether an answer names what is wrong, where it is in the log and in the topic."""
    if problem is None:
        assert (status, answer["problems"]) == (0, [])
        messages = {one["topic_offset"]: one["what"] for one in answer["topic"]["messages"]}
        assert odd is None or odd[1] in messages[odd[0]], answer["topic"]
        assert odd is not None or messages == {}
        return
    at, record, words = problem
    if record < 0:
        assert status == 2
        assert words in answer["error"]
        return
    assert status == 1
    found = next((one for one in answer["problems"] if words in one["what"]), None)
    assert found is not None, answer
    assert found["offset"] == record, answer
    assert at < 0 or f"topic offset {at} " in found["what"] or found.get("topic_offset") == at, answer


@pytest.mark.parametrize("name", ATTACKS)
def test_who_has_the_keys_finds_it(
    name: str, tampered: dict[str, Tampered], original: Original, capsys: pytest.CaptureFixture[str]
) -> None:
    url, expected = tampered[name]
    check(*verified(capsys, url, "--key-file", original.master), expected.with_keys, expected.odd)


@pytest.mark.parametrize("name", ATTACKS)
def test_who_has_the_public_key_alone_finds_it(
    name: str, tampered: dict[str, Tampered], original: Original, capsys: pytest.CaptureFixture[str]
) -> None:
    url, expected = tampered[name]
    anchor = ("--anchor", original.anchor) if expected.public is not None else ()
    answer = verified(capsys, url, "--no-keys", "--public-key", original.public_key, *anchor)
    if expected.public is None or expected.unproven is not None:
        assert answer[1]["topic"]["unproven"] == expected.unproven
    alike = expected.with_keys is None and expected.unproven is None
    check(*answer, expected.public, expected.odd if alike else _same(answer[1]))


def _same(answer: dict[str, Any]) -> tuple[int, str] | None:
    """What is suspect to who has no keys, where who has them says that it is torn."""
    messages = answer.get("topic", {}).get("messages", [])
    return (messages[-1]["topic_offset"], "") if messages else None


@pytest.mark.parametrize("name", ATTACKS)
def test_a_kernel_that_starts_on_it(name: str, tampered: dict[str, Tampered], original: Original, tmp_path: Path) -> None:
    url, expected = tampered[name]
    refused = pytest.raises(Refused, match=expected.refused) if expected.refused is not None else contextlib.nullcontext()
    with refused, Inside(tmp_path / "data", log=url, clock=RealClock(), master_key_file=original.master) as k:
        listed = k("mem_list", namespace="alice", limit=100)["cubes"]
        assert len(listed) == 5
        k("mem_alloc", namespace="bob", content="it goes on")
        assert k("sys_verify")["ok"] is True


def test_an_erased_key_that_comes_back(
    kafka: str, original: Original, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody has kept a wrapped key, and puts it into the topic again: no kernel uses it, and verify says where it is."""
    link = Link.parse(f"kafka://{kafka}/memos-test-{uuid.uuid4().hex[:12]}")
    url, receipt = f"kafka://{link.brokers}/{link.topic}", tmp_path / "receipt"
    receipt.write_bytes(original.receipt)
    ensure(link)
    producer = link.producer()
    write(producer, link.topic, [(None, data) for data in original.copy.records])
    # Without what was erased, which the topic may or may not have lost by now.
    gone = {key for key, value in original.copy.keys if value is None}
    write(producer, link.keys, [(key, value) for key, value in original.copy.keys if key not in gone])
    assert producer.flush(30) == 0
    asked = (url, "--key-file", original.master, "--receipt", receipt)
    status, answer = verified(capsys, *asked)
    assert (answer["receipt"]["remains"], [one["what"] for one in answer["problems"] if "key" in one["what"]]) == (0, [])
    with offline.opened(url, Keys(original.master)) as found:
        cube = View(found.store.live(VIEW)).cube(read_receipt(original.receipt).cubes[0])
        assert cube is not None
        slot = cube.slot
        assert slot is not None
    keys = TopicKeys(link, bytes.fromhex(original.master.read_text()), log_id=original.keys.log_id)
    keys.adopt([(slot, bytes(32))])
    keys.destroy([slot])
    keys.close()
    status, answer = verified(capsys, *asked)
    # It was compacted away at once, or it is in a file that the receipt gives until its time.
    assert answer["receipt"]["remains"] in (0, 1)
    write(producer, link.keys, [(SLOT_KEY.pack(SLOT, *slot), _sealed(original, slot))])
    assert producer.flush(30) == 0
    monkeypatch.setattr(time, "time_ns", lambda: read_receipt(original.receipt).time + 3600 * 10**9)
    status, answer = verified(capsys, *asked)
    assert status == 1
    assert any("is still at offset" in one["what"] for one in answer["problems"]), answer


def _sealed(original: Original, slot: Slot) -> bytes:
    """A slot's message, of any key."""
    master = bytes.fromhex(original.master.read_text())
    aad = crypto.aad_of(original.keys.log_id, b"") + slot.epoch.to_bytes(8, "big") + slot.n.to_bytes(8, "big")
    wrapped = crypto.wrap(wrapping_cipher(master), bytes(crypto.NONCE_BYTES), bytes(32), aad)
    return SLOT_VALUE.pack(crypto.FORMAT, wrapping_key_id(master), wrapped)
