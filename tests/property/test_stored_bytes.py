"""Stored bytes, damaged in any way: decoding gives what was written or raises `Damaged`, and nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.inside import Inside

from memos_drivers.stores.memory import MemoryReader, MemoryStore
from memos_kernel import answers, crypto, masterkey, private, verify
from memos_kernel import events as ev
from memos_kernel.eventlog.base import records
from memos_kernel.eventlog.memory import MemoryLog
from memos_kernel.events import Damaged
from memos_kernel.keystore import KeyStore
from memos_kernel.private import Private
from memos_kernel.reducer import apply
from memos_kernel.state import Tables
from memos_kernel.upcast import current


class Log(dict[str, list[bytes]]):
    """Stored bytes by kind, shown short."""

    def __repr__(self) -> str:
        return "a log"


@pytest.fixture(scope="module")
def log() -> Log:
    """Frames, records and claims of a log with every event in it, and a receipt."""
    with Inside() as k:
        a = k("mem_alloc", namespace="alice", content="one", tags=["t"], metadata={"a": [1, {"b": 2}]}, ttl_s=5)["cube_id"]
        b = k("mem_alloc", namespace="alice", content="two")["cube_id"]
        c = k("mem_alloc", namespace="alice", content="three")["cube_id"]
        k("mem_write", cube_id=b, content="two again")
        k("mem_freeze", cube_id=b)
        k("mem_thaw", cube_id=b)
        k("mem_pin", cube_id=b)
        fused = k("mem_fuse", cube_ids=[b, c], strategy="merge")["cube_id"]
        k("mem_unfuse", cube_id=fused)
        k("mem_fork", namespace="alice", to="copy")
        for content in ("I live in Rome.", "I just moved to Oslo!"):
            k("mem_alloc", namespace="bob", content=content, check="conflict")
        receipt = k("mem_shred", cube_id=c)["report"]["receipt"]
        k.clock.advance(6)  # type: ignore[attr-defined]  # pyright: ignore
        k.tick()
        assert k.refusal("mem_read", cube_id=a) == "ENOENT"
        k.stop()
        k.config = dataclasses.replace(k.config, take_over=True)
        slots = KeyStore(k.paths.keys, masterkey.read(k.config.key_path) or b"")
        slots.update(home_id=bytes(16))
        slots.close()
        k.open()
        names = {event.name for _raw, record in records(k.log) for event in record.events}
        assert names == set(ev.EVENTS)
        return Log({
            "frame": list(k.log.frames(0)), "record": [raw for raw, _record in records(k.log)],
            "claim": list(k.log.claims()), "receipt": [receipt],
        })  # fmt: skip


DECODERS: dict[str, Callable[[bytes], Any]] = {
    "frame": ev.decode_frame, "record": ev.decode_record, "claim": ev.decode_claim, "receipt": answers.read_receipt,
}  # fmt: skip


def damage(data: bytes, draw: Callable[[Any], Any]) -> bytes:
    """Bytes changed, cut, doubled or exchanged at random."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        if not changed:
            break
        at = draw(st.integers(0, len(changed) - 1))
        match draw(st.integers(0, 3)):
            case 0:
                changed[at] = draw(st.integers(0, 255))
            case 1:
                del changed[at : at + draw(st.integers(1, 20))]
            case 2:
                changed[at:at] = draw(st.binary(min_size=1, max_size=8))
            case _:
                del changed[at:]
    return bytes(changed)


@pytest.mark.parametrize("kind", DECODERS)
def test_stored_bytes_decode_and_encode_to_themselves(kind: str, log: Log) -> None:
    for data in log[kind]:
        found = DECODERS[kind](data)
        # A receipt ends with its signature, and what it says of brokers, which this log has not, stands before that.
        stored = found[:-1] if isinstance(found, answers.Receipt) else found
        assert ev.pack(stored) == data


@pytest.mark.parametrize("kind", DECODERS)
@settings(max_examples=150)
@given(data=st.data())
def test_damaged_bytes_decode_or_are_called_damaged(kind: str, log: Log, data: st.DataObject) -> None:
    changed = damage(data.draw(st.sampled_from(log[kind])), data.draw)
    try:
        DECODERS[kind](changed)
    except Damaged as error:
        assert str(error)


@pytest.mark.parametrize("kind", DECODERS)
@given(data=st.binary(max_size=300))
def test_any_bytes_decode_or_are_called_damaged(kind: str, data: bytes) -> None:
    try:
        DECODERS[kind](data)
    except Damaged as error:
        assert str(error)


@settings(max_examples=150)
@given(data=st.data())
def test_a_damaged_record_applies_or_is_called_damaged(log: Log, data: st.DataObject) -> None:
    """A record that decodes but means nothing must not pass as anything but damage."""
    at = data.draw(st.integers(0, len(log["record"]) - 1))
    tables = Tables(MemoryReader(), 0)
    for raw in log["record"][:at]:
        apply(tables, current(ev.decode_record(raw)))
    changed = damage(log["record"][at], data.draw)
    try:
        apply(tables, current(ev.decode_record(changed)))
    except Damaged as error:
        assert str(error)


WRONG: tuple[Any, ...] = (None, 7, "text", b"x", [], [[]], [[1, 2, 3]], -1)


def test_an_event_with_a_field_of_a_wrong_kind_is_called_damaged_or_changes_as_it_says(log: Log) -> None:
    for at, raw in enumerate(log["record"]):
        record = ev.decode_record(raw)
        for event_at, event in enumerate(record.events):
            for field_at in range(len(event.fields)):
                for wrong in WRONG:
                    fields = [wrong if n == field_at else field for n, field in enumerate(event.fields)]
                    events = [event._replace(fields=fields) if n == event_at else e for n, e in enumerate(record.events)]
                    tables = Tables(MemoryReader(), 0)
                    for earlier in log["record"][:at]:
                        apply(tables, current(ev.decode_record(earlier)))
                    try:
                        apply(tables, current(record._replace(events=events)))
                    except Damaged as error:
                        assert str(error)


class Stored(MemoryLog):
    """A log of given frames and claims, as they lie on a disk that somebody else wrote to."""

    def __init__(self, frames: list[bytes], claims: list[bytes]) -> None:
        super().__init__(MemoryStore())
        self._frames, self._firsts, self._claims = frames, list(range(len(frames))), claims


@pytest.fixture(scope="module")
def kernel() -> Iterator[Inside]:
    with Inside() as k:
        cubes = [k("mem_alloc", namespace="alice", content=f"{n}")["cube_id"] for n in range(6)]
        for cube in cubes:
            k("mem_write", cube_id=cube, content="again")
        k("mem_shred", cube_id=cubes[-1])
        k.reopen()
        yield k


@settings(max_examples=100)
@given(data=st.data())
def test_verify_finds_whatever_was_changed_and_never_fails_itself(kernel: Inside, data: st.DataObject) -> None:
    frames, claims = list(kernel.log.frames(0)), list(kernel.log.claims())
    at = data.draw(st.integers(0, len(frames) - 1))
    whole = ev.decode_frame(frames[at])
    if data.draw(st.booleans()):
        frames[at] = damage(frames[at], data.draw)
    else:
        # A frame that decodes, with a record that somebody made up.
        raws = list(whole.records)
        place = data.draw(st.integers(0, len(raws) - 1))
        raws[place] = damage(raws[place], data.draw)
        frames[at] = ev.pack(whole._replace(records=raws))
    keys, changed = kernel.kernel.keys, frames[at] != list(kernel.log.frames(0))[at]
    log = Stored(frames, claims)
    full = verify.verify_full(kernel.store, log, keys, kernel.kernel.vault)
    assert full.ok != changed
    assert all(problem.what and problem.advice for problem in full.problems)
    if changed:
        assert full.problems[0].offset <= whole.first_seq + len(whole.records)
    # Without the MAC key the records after the newest checkpoint are unproven; reading them must still not fail.
    verify.verify_log(log, public_key=keys.signer.public_key, frame_mac=None)


@pytest.mark.parametrize("schema", [-1, 0, 2, 2**63])
def test_an_event_of_a_schema_that_nobody_wrote_is_called_damaged(log: Log, schema: int) -> None:
    record = ev.decode_record(log["record"][0])
    changed = record._replace(events=[record.events[0]._replace(schema=schema)])
    with pytest.raises(Damaged, match="schema"):
        current(changed)


@given(st.data())
def test_a_changed_frame_fails_its_mac(data: st.DataObject) -> None:
    key = data.draw(st.binary(min_size=32, max_size=32))
    frame = ev.encode_frame(key, b"l" * 16, 1, b"c" * 16, 0, bytes(32), data.draw(st.lists(st.binary(max_size=50), max_size=4)))
    assert ev.frame_mac_ok(key, frame)
    at = data.draw(st.integers(0, len(frame) - 1))
    bit = 1 << data.draw(st.integers(0, 7))
    changed = frame[:at] + bytes([frame[at] ^ bit]) + frame[at + 1 :]
    # The two bytes that announce the MAC are not covered by it, but decoding insists on them.
    announces = len(frame) - 34 <= at < len(frame) - 32
    assert not ev.frame_mac_ok(key, changed) or announces
    if announces:
        with pytest.raises(Damaged):
            ev.decode_frame(changed)


privates = st.builds(
    Private,
    st.binary(min_size=32, max_size=32),
    name=st.none() | st.text(max_size=20),
    tags=st.lists(st.text(max_size=8), max_size=3),
    metadata=st.dictionaries(st.text(max_size=5), st.integers(0, 9) | st.floats(allow_nan=False), max_size=3),
    valid_from=st.none() | st.integers(-(2**63), 2**63 - 1),
    embedding=st.none() | st.binary(max_size=16),
    recipe=st.none(),
    priority=st.integers(-100, 100),
    valid_to=st.none(),
)


@given(privates)
def test_a_private_part_comes_out_as_it_went_in(part: Private) -> None:
    assert private.decode(private.encode(part)) == part


@given(st.binary(max_size=200))
def test_any_bytes_are_a_private_part_or_called_damaged(data: bytes) -> None:
    try:
        private.decode(data)
    except Damaged as error:
        assert str(error)


scalars = st.none() | st.booleans() | st.integers(-(2**31), 2**31) | st.floats(allow_nan=False) | st.text(max_size=8)
values = st.recursive(
    scalars | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(min_size=1, max_size=6), values, max_size=4), st.randoms())
def test_the_hash_of_arguments_does_not_depend_on_the_order_of_keys(args: dict[str, Any], chance: Any) -> None:
    def shuffled(value: Any) -> Any:
        if isinstance(value, dict):
            keys = list(value)
            chance.shuffle(keys)
            return {key: shuffled(value[key]) for key in keys}
        return [shuffled(item) for item in value] if isinstance(value, list) else value

    assert private.args_hash(16, args, None) == private.args_hash(16, shuffled(args), None)


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=3000), st.integers(1, 1000))
def test_chunks_open_in_order_and_whole_or_not_at_all(key: bytes, content: bytes, step: int) -> None:
    pieces = [content[at : at + step] for at in range(0, max(len(content), 1), step)]
    sealed = list(crypto.seal_chunks(key, b"l" * 16, b"p" * 16, pieces))
    assert crypto.open_chunks(key, b"l" * 16, b"p" * 16, sealed) == content
    for wrong in (sealed[:-1], sealed[::-1] if len(sealed) > 1 else [], [*sealed, sealed[-1]]):
        if wrong:
            with pytest.raises(crypto.Undecryptable):
                crypto.open_chunks(key, b"l" * 16, b"p" * 16, wrong)
