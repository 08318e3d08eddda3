"""The suite that every event log passes: guarantees L1 to L10 of docs/events.md, on a real kernel over the log.

A class that binds it says how a kernel is started on a new log (`kernel`), how bytes that somebody changed become a log again
(`rewritten`), what another machine gets of a stopped kernel (`new_machine`), and how the next append is made to fail:
`lose` keeps nothing of it, `doubt` keeps it and loses the acknowledgement.

- A log of the kernel's own (`OwnLogSuite`): damage is in the log, and verify finds it; a failed append ends the process.
- A log that others can reach (`shared`): damage does not count and so never gets into the log, which may be found to be too
  short; a failed append is settled by a new claim, and the process goes on.
"""

from __future__ import annotations

import abc
import itertools
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any, ClassVar, NamedTuple

import pytest
from tests.inside import ADMIN, ALICE, BOB, Inside, replay

from memos_drivers.stores.base import FAMILIES, PAYLOAD, Batch, Reader, Store
from memos_drivers.stores.memory import MemoryReader, MemoryStore
from memos_drivers.stores.rocks import RocksStore
from memos_kernel import boot, crypto, upcast, verify
from memos_kernel import events as ev
from memos_kernel.chain import Chain, LogKeys
from memos_kernel.eventlog.base import Append, EventLog, record_at, records
from memos_kernel.keystore import Keys, lock_directory
from memos_kernel.state import Tables, shown
from memos_syscalls.errors import MemError

CANARY = "zyzzyva-canary"
NAMES = {
    "genesis", "epoch.opened", "checkpoint", "cube.allocated", "cube.written", "cube.state_changed", "cube.pinned",
    "cubes.expired", "cube.merged", "cube.unmerged", "cube.superseded", "namespace.forked", "cubes.shredded", "log.moved",
}  # fmt: skip
"""Written into logs that must stay readable: a name may be added here, none may go or change."""


class Faulty:
    """A store whose next write or sync fails."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.next: str | None = None
        self.live = store.live
        self.snapshot = store.snapshot
        self.checkpoint = store.checkpoint
        self.describe = store.describe
        self.close = store.close

    def _fault(self, where: str) -> None:
        if self.next == where:
            self.next = None
            raise OSError(f"injected: the {where} failed")

    def write(self, batch: Batch) -> None:
        self._fault("write")
        self._store.write(batch)

    def sync(self) -> None:
        self._store.sync()
        self._fault("sync")


class Material(NamedTuple):
    """A log of several epochs as bytes, to be changed and written into a new log of the same kind."""

    frames: list[bytes]
    claims: list[bytes]
    keys: LogKeys
    anchor: ev.Checkpoint

    def verified(self, log: EventLog, *, key: bool = True, anchor: bool = False) -> verify.Report:
        return verify.verify_log(
            log, public_key=self.keys.signer.public_key, frame_mac=self.keys.frame_mac if key else None,
            anchor=self.anchor if anchor else None,
        )  # fmt: skip


def resealed(data: bytes, keys: LogKeys, *, records: list[bytes] | None = None, first: int | None = None) -> bytes:
    """A frame with other records or another first offset, with a MAC that is right: the forgery of one who has the key."""
    frame = ev.decode_frame(data)
    return ev.encode_frame(
        keys.frame_mac, frame.log_id, frame.epoch, frame.claim_id, frame.first_seq if first is None else first, frame.prev_hash,
        frame.records if records is None else records,
    )  # fmt: skip


def regrouped(frames: list[bytes], keys: LogKeys) -> list[bytes]:
    """The same records in frames of four, but the first of each epoch: what comes together is a matter of time."""
    made: list[bytes] = []
    head = crypto.ZERO_HASH
    epochs = itertools.groupby(map(ev.decode_frame, frames), lambda frame: (frame.epoch, frame.claim_id))
    seq = 0
    for (epoch, claim_id), group in epochs:
        raws = [raw for frame in group for raw in frame.records]
        for held in [raws[:1], *(raws[at : at + 4] for at in range(1, len(raws), 4))]:
            made.append(ev.encode_frame(keys.frame_mac, keys.log_id, epoch, claim_id, seq, head, held))
            for raw in held:
                head = crypto.record_hash(head, raw)
            seq += len(held)
    return made


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


MATERIAL: dict[type[object], Material] = {}
Rewrite = Callable[[list[bytes], list[bytes]], EventLog]


class EventLogSuite(abc.ABC):
    """Bind it as `class TestName(EventLogSuite)`."""

    implementation: ClassVar[type[object]]
    shared: ClassVar[bool] = False

    @abc.abstractmethod
    def kernel(self) -> Inside:
        """A kernel on a new log."""

    @abc.abstractmethod
    def fail(self, log: EventLog, kind: str) -> None:
        """Make the next append fail: `lose` or `doubt`."""

    @abc.abstractmethod
    def rewritten(self, store: Store, frames: list[bytes], claims: list[bytes], keys: LogKeys) -> EventLog:
        """A new log of these frames and of the claims that they are under, as it reads when somebody wrote them."""

    @abc.abstractmethod
    def new_machine(self, k: Inside, directory: Path) -> Inside:
        """A kernel on what another machine gets of a stopped one: log, payload log, key store and master key."""

    def elsewhere(self, k: Inside) -> list[bytes]:
        """What the log keeps outside the store."""
        return []

    def found(self, log: EventLog, written: Material, report: verify.Report, first: int, last: int) -> None:
        """A change was found: between these offsets."""
        assert not report.ok
        assert first <= report.problems[0].offset <= last
        assert report.problems[0].what and report.problems[0].advice

    def store(self, path: Path) -> Store:
        return MemoryStore()

    @pytest.fixture
    def k(self) -> Iterator[Inside]:
        with self.kernel() as kernel:
            yield kernel

    def live_a_little(self, k: Inside) -> dict[int, str]:
        """Something of every event, over three epochs; the digest after each offset at which the log stood."""
        digests: dict[int, str] = {}

        def note() -> None:
            digests[k.kernel.chain.seq] = k.digest

        made = [k("mem_alloc", ALICE, namespace="alice/notes", content=f"{CANARY} {n}")["cube_id"] for n in range(6)]
        note()
        k("mem_write", ALICE, cube_id=made[0], content="x" * 40_000, tags=["tag"])
        note()
        fused = k("mem_fuse", ALICE, cube_ids=made[1:3], strategy="merge")["cube_id"]
        note()
        k("mem_unfuse", ALICE, cube_id=fused)
        for content in ("I live in Rome.", "I just moved to Oslo!"):
            k("mem_alloc", ALICE, namespace="alice/homes", content=content, check="conflict")
        note()
        k.reopen()
        note()
        for call, cube in (
            ("mem_freeze", 3), ("mem_thaw", 3), ("mem_archive", 3), ("mem_restore", 3), ("mem_pin", 3), ("mem_free", 4),
        ):  # fmt: skip
            k(call, ALICE, cube_id=made[cube])
            note()
        k("mem_fork", ALICE, namespace="alice/notes", to="alice/fork")
        note()
        k("mem_rollback", ALICE, cube_id=made[0], to_version=1)
        note()
        k("mem_shred", ALICE, cube_id=made[5])
        note()
        k.reopen()
        note()
        k("mem_alloc", BOB, namespace="bob", content="short", ttl_s=1)
        assert isinstance(k.clock.now(), int)
        note()
        k.run(0)
        return digests

    @pytest.fixture
    def written(self) -> Material:
        """Four epochs, frames of one and of four records. Made once for each kind of log."""
        kind = type(self)
        if kind not in MATERIAL:
            with self.kernel() as k:
                for n in range(3):
                    futures = [k.submit("mem_alloc", namespace="n", content=f"{n}{m}", request_id=f"{n}{m}") for m in range(4)]
                    for future in futures:
                        k.wait(future)
                    k.reopen()
                anchor = k.kernel.vault.keystore.newest_checkpoint
                assert anchor is not None
                keys = k.kernel.keys
                MATERIAL[kind] = Material(regrouped(list(k.log.frames()), keys), list(k.log.claims()), keys, anchor)
        return MATERIAL[kind]

    @pytest.fixture
    def again(self, tmp_path: Path, written: Material) -> Iterator[Rewrite]:
        """Writes frames into a new log of this kind."""
        stores: list[Store] = []

        def rewrite(frames: list[bytes], claims: list[bytes]) -> EventLog:
            stores.append(self.store(tmp_path / f"again{len(stores)}"))
            return self.rewritten(stores[-1], frames, claims, written.keys)

        yield rewrite
        for store in stores:
            store.close()

    # -- L1 ----------------------------------------------------------------------------------------------------------

    def test_l1_offsets_are_dense_and_times_grow(self, k: Inside) -> None:
        self.live_a_little(k)
        found = [record for _raw, record in records(k.log)]
        assert [record.seq for record in found] == list(range(len(found)))
        assert all(a.time < b.time and a.epoch <= b.epoch for a, b in itertools.pairwise(found))
        head = crypto.ZERO_HASH
        for data in k.log.frames():
            frame = ev.decode_frame(data)
            assert frame.prev_hash == head
            for raw in frame.records:
                head = crypto.record_hash(head, raw)
        assert head == k.kernel.chain.hash

    def test_l1_a_log_can_be_read_from_any_offset(self, k: Inside) -> None:
        futures = [k.submit("mem_alloc", namespace="n", content=f"{n}") for n in range(40)]
        for future in futures:
            k.wait(future)
        whole = list(records(k.log))
        assert any(len(ev.decode_frame(data).records) > 1 for data in k.log.frames()), "some frame holds several records"
        for seq in range(len(whole)):
            assert list(records(k.log, seq)) == whole[seq:]
            found = record_at(k.log, seq)
            assert found is not None and found[:2] == whole[seq]
        assert list(records(k.log, len(whole))) == [] and record_at(k.log, len(whole)) is None

    # -- L2 ----------------------------------------------------------------------------------------------------------

    def test_l2_what_was_acknowledged_is_there_after_a_restart(self, k: Inside) -> None:
        made = [k("mem_alloc", namespace="n", content=f"{n}" * 9000)["cube_id"] for n in range(8)]
        before = list(k.log.frames())
        k.crash()
        assert list(k.log.frames())[: len(before)] == before
        assert [k("mem_read", cube_id=cube)["content"] for cube in made] == [f"{n}" * 9000 for n in range(8)]

    @pytest.mark.parametrize("kind", ["lose", "doubt"])
    def test_l2_a_frame_is_wholly_there_or_wholly_not(
        self, k: Inside, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # A captured message would hold the error, which holds the kernel, which holds the database open.
        monkeypatch.setattr(logging.getLogger("memos.kernel"), "disabled", True)
        kept = k("mem_alloc", namespace="n", content="kept")["cube_id"]
        k.run(0.01)
        first = k.kernel.durable.seq + 1
        self.fail(k.log, kind)
        asked = [{"namespace": "n", "content": f"{n}", "request_id": f"r{n}"} for n in range(20)]
        calls = [k.submit("mem_alloc", **args) for args in asked]
        told: dict[int, dict[str, Any]] = {}
        held: list[int] = []
        if self.shared:
            for n, call in enumerate(calls):
                try:
                    told[n] = k.wait(call)
                except MemError as error:
                    assert (error.errno, error.outcome) == ("EAGAIN", "none")
            assert k.fatal == []
            assert (0 in told) == (kind == "doubt"), "the first was in the frame"
            k.tick()
            opened = [record.events[0].name == ev.EPOCH_OPENED for _raw, record in records(k.log, first)]
            assert opened.index(True) == (0 if kind == "lose" else len(ev.decode_frame(next(k.log.frames(first))).records))
        else:
            until = monotonic() + 10
            while not k.fatal and monotonic() < until:
                k.run(0.05)
            assert not any(call.done() for call in calls), "nobody is told what nobody knows"
            assert len(k.fatal) == 1
            k.crash()
            k.fatal.clear()
            held = [len(ev.decode_frame(data).records) for data in k.log.frames(first)]
            assert len(held) == (1 if kind == "lose" else 2), "only the new epoch's opening, or the whole frame before it"

        def contents() -> list[str]:
            listed = k("mem_list", namespace="n", limit=100)["cubes"]
            return sorted(k("mem_read", cube_id=cube["cube_id"])["content"] for cube in listed)

        there = list(told) if self.shared else list(range(sum(held[:-1])))
        assert contents() == sorted(["kept", *map(str, there)])
        assert k("mem_read", cube_id=kept)["content"] == "kept"
        assert replay(k.log) == (k.digest, k.rows())
        assert k("sys_verify", full=True)["ok"]
        answers = [k("mem_alloc", **args) for args in asked]
        assert all(answers[n] == answer for n, answer in told.items()), "a repeat gets the first answer"
        assert contents() == sorted(["kept", *(f"{n}" for n in range(20))]), "and happens once"

    # -- L3 ----------------------------------------------------------------------------------------------------------

    def test_l3_a_directory_has_one_kernel(self, tmp_path: Path) -> None:
        lock = lock_directory(tmp_path)
        with pytest.raises(BlockingIOError):
            lock_directory(tmp_path)
        os.close(lock)
        os.close(lock_directory(tmp_path))

    def test_l3_every_start_claims_a_newer_epoch(self, k: Inside) -> None:
        for _ in range(3):
            k("mem_alloc", namespace="n", content="x")
            k.reopen()
        claims = [ev.decode_claim(data) for data in k.log.claims()]
        assert [claim.epoch for claim in claims] == [1, 2, 3, 4]
        assert len({claim.claim_id for claim in claims}) == 4
        assert all(ev.claim_signature_ok(k.kernel.keys.signer.public_key, data) for data in k.log.claims())
        opened = [(r.epoch, r.events[0].fields[0]) for _raw, r in records(k.log) if r.events[0].name == ev.EPOCH_OPENED]
        assert opened == [(claim.epoch, crypto.sha256(data)) for claim, data in zip(claims, k.log.claims(), strict=True)]

    def test_l3_a_writer_of_an_older_epoch_is_found(self, written: Material, again: Rewrite) -> None:
        """A kernel that was replaced, and did not notice, appends one more frame."""
        frames = list(written.frames)
        old, head = ev.decode_frame(frames[2]), ev.decode_frame(frames[-1])
        hash_ = head.prev_hash
        for raw in head.records:
            hash_ = crypto.record_hash(hash_, raw)
        last = ev.decode_record(head.records[-1])
        late = Chain(written.keys, old.epoch, old.claim_id, last.seq, hash_, last.time)
        sealed = late.record(late.next_time(0), "uid:0", 16, None, None, [ev.Event(ev.EXPIRED, 1, [[]])])
        frames.append(late.frame(sealed.record.seq, hash_, [sealed.data]))
        log = again(frames, written.claims)
        self.found(log, written, written.verified(log), sealed.record.seq, sealed.record.seq)

    # -- L4 ----------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("key", [True, False], ids=["with the MAC key", "with the public key alone"])
    def test_l4_an_untouched_log_verifies(self, written: Material, again: Rewrite, key: bool) -> None:
        log = again(written.frames, written.claims)
        assert list(log.frames()) == written.frames and list(log.claims()) == written.claims
        report = written.verified(log, key=key, anchor=True)
        assert report.ok and report.problems == [] and report.offset >= 15

    @pytest.mark.parametrize("key", [True, False], ids=["with the MAC key", "with the public key alone"])
    @pytest.mark.parametrize("damage", ["edit", "insert", "delete", "delete a record", "swap", "swap records"])
    def test_l4_whoever_changes_the_past_is_found(self, written: Material, again: Rewrite, damage: str, key: bool) -> None:
        """Even one who can make MACs. Nothing but signatures and hashes is left to find it with `key` false."""
        keys, frames = written.keys, list(written.frames)
        at = next(n for n, data in enumerate(frames) if len(ev.decode_frame(data).records) == 4)
        frame = ev.decode_frame(frames[at])
        match damage:
            case "edit":
                record = ev.decode_record(frame.records[1])
                other = ev.encode_record(record._replace(principal="uid:666"))
                frames[at] = resealed(frames[at], keys, records=[frame.records[0], other, *frame.records[2:]])
            case "insert":
                record = ev.decode_record(frame.records[3])
                extra = ev.encode_record(record._replace(seq=record.seq + 1, time=record.time + 1))
                frames[at] = resealed(frames[at], keys, records=[*frame.records, extra])
            case "delete":
                del frames[at]
            case "delete a record":
                frames[at] = resealed(frames[at], keys, records=frame.records[:-1])
            case "swap":
                a, b = frames[at], frames[at + 1]
                frames[at] = resealed(b, keys, first=frame.first_seq)
                frames[at + 1] = resealed(a, keys, first=frame.first_seq + len(ev.decode_frame(b).records))
            case _:
                frames[at] = resealed(frames[at], keys, records=[frame.records[n] for n in (1, 0, 2, 3)])
        log = again(frames, written.claims)
        self.found(log, written, written.verified(log, key=key, anchor=self.shared), frame.first_seq, frame.first_seq + 5)

    def test_l4_every_byte_of_a_frame_is_covered(self, written: Material, again: Rewrite) -> None:
        frames = written.frames
        data = frames[-1]
        for at in range(len(data)):
            try:
                ev.decode_record(ev.decode_frame(flipped(data, at)).records[0])
            except (ev.Damaged, IndexError):
                continue  # Frames that cannot be read are the damage table's.
            report = written.verified(again([*frames[:-1], flipped(data, at)], written.claims))
            assert not report.ok, f"byte {at} of the frame is not covered"

    def test_l4_a_tail_that_was_cut_off_is_found_by_an_anchor(self, written: Material, again: Rewrite) -> None:
        frames, seq = written.frames, written.anchor.head_seq
        holds = next(n for n, data in enumerate(frames) if ev.decode_frame(data).first_seq > seq) - 1
        short = again(frames[:holds], written.claims)
        assert written.verified(short).ok, "what is left is whole in itself"
        report = written.verified(short, anchor=True)
        assert not report.ok and "cut back" in report.problems[-1].what

    # -- L5 ----------------------------------------------------------------------------------------------------------

    def bytes_of(self, k: Inside) -> bytes:
        parts = [*k.log.frames(), *k.log.claims(), *self.elsewhere(k)]
        for family in FAMILIES:
            parts += [key + value for key, value in k.store.live(family).scan(b"")]
        return b"\0".join(parts)

    def test_l5_the_log_holds_no_plaintext(self, k: Inside) -> None:
        cube = k(
            "mem_alloc", namespace="n", content=f"{CANARY} content", name=f"{CANARY} name", tags=[f"{CANARY} tag"],
            labels=[f"{CANARY} label"], metadata={f"{CANARY} key": f"{CANARY} value"}, semantic_type=f"{CANARY} type",
            actor_note=f"{CANARY} note", request_id=f"{CANARY} request",
        )["cube_id"]  # fmt: skip
        large = k("mem_alloc", namespace="n", content=f"{CANARY} large " * 40_000)["cube_id"]
        k("mem_write", cube_id=cube, content=f"{CANARY} second", actor_note=f"{CANARY} why")
        k("mem_fuse", cube_ids=[cube, k("mem_alloc", namespace="n", content=CANARY)["cube_id"]], strategy="merge",
          params={"name": CANARY})  # fmt: skip
        k("mem_free", cube_id=large, actor_note=f"{CANARY} why")
        k.reopen()
        held = self.bytes_of(k)
        assert b"uid:0" in held, "what is public can be read"
        assert CANARY.encode() not in held
        assert CANARY.encode().hex().encode() not in held

    def test_l5_an_erasure_changes_no_byte_of_the_past(self, k: Inside) -> None:
        cube = k("mem_alloc", namespace="n", content=CANARY)["cube_id"]
        before = list(k.log.frames())
        digest = {seq: replay(k.log, seq)[0] for seq in range(k.kernel.durable.seq + 1)}
        k("mem_shred", cube_id=cube)
        assert list(k.log.frames())[: len(before)] == before
        assert {seq: replay(k.log, seq)[0] for seq in digest} == digest
        assert k("sys_verify", full=True)["ok"]
        assert k.refusal("mem_read", cube_id=cube, version=1) == "ESHREDDED"
        k.reopen()
        assert k("sys_verify", full=True)["ok"]

    # -- L6 ----------------------------------------------------------------------------------------------------------

    def test_l6_names_of_events_are_for_ever(self, k: Inside) -> None:
        assert set(ev.EVENTS) >= NAMES
        self.live_a_little(k)
        k.run(0)
        written = {(event.name, event.schema) for _raw, record in records(k.log) for event in record.events}
        assert {name for name, _schema in written} >= NAMES - {ev.EXPIRED, ev.MOVED}
        assert all(1 <= schema <= ev.EVENTS[name] for name, schema in written)

    @pytest.mark.parametrize("event", [("cube.allocated", 99), ("cube.teleported", 1)])
    def test_l6_an_event_from_a_newer_kernel_is_refused_at_start(self, k: Inside, event: tuple[str, int]) -> None:
        """It may mean anything; a kernel that skipped it would show a state that never was."""
        k("mem_alloc", namespace="n", content="x")
        k.run(0.01)
        chain = k.kernel.chain
        sealed = chain.record(chain.next_time(0), "uid:0", 16, None, None, [ev.Event(*event, [])])
        frame = chain.frame(sealed.record.seq, chain.hash, [sealed.data])
        append = Append(None, frame, sealed.record.seq, sealed.record.time, Batch(), sealed.hash, chain.claim_id)
        k.log.begin(append)
        k.log.finish(append)
        k.abandon()
        with pytest.raises(boot.Refused, match=r"newer kernel"):
            k.open()

    def test_l6_old_events_are_brought_up_step_by_step(self, k: Inside) -> None:
        """A synthetic history of one event: two steps, over records of this log; stored bytes stay as they are."""
        k("mem_alloc", namespace="n", content="x")
        steps: dict[tuple[str, int], upcast.Step] = {
            ("cube.allocated", 1): lambda fields: [*fields, "two"],
            ("cube.allocated", 2): lambda fields: [*fields, "three"],
        }
        newest = {**ev.EVENTS, "cube.allocated": 3}
        for raw, record in records(k.log):
            risen = upcast.current(record, steps, newest)
            assert ev.encode_record(record) == raw
            for old, new in zip(record.events, risen.events, strict=True):
                if old.name == "cube.allocated":
                    assert (new.schema, new.fields, new.private) == (3, [*old.fields, "two", "three"], old.private)
                else:
                    assert new == old

    # -- L7 ----------------------------------------------------------------------------------------------------------

    def test_l7_live_and_replayed_state_are_one_at_every_offset(self, k: Inside) -> None:
        live = self.live_a_little(k)
        for seq in range(k.kernel.durable.seq + 1):
            digest, rows = replay(k.log, seq)
            whole = Tables(MemoryReader(), 0)
            assert shown(verify.replay(k.log, seq, whole)[2]).hex() == digest
            if seq in live:
                assert live[seq] == digest, f"offset {seq}"
            resumed = Tables(MemoryReader(rows), whole.digest)
            assert resumed.digest == whole.digest
        assert replay(k.log) == (k.digest, k.rows())

    def test_l7_checkpoints_sign_the_digest_that_a_replay_gives(self, k: Inside) -> None:
        self.live_a_little(k)
        k.reopen()
        signed = [ev.Checkpoint(*r.events[0].fields) for _raw, r in records(k.log) if r.events[0].name == ev.CHECKPOINT]
        assert len(signed) >= 3
        for checkpoint in signed:
            assert replay(k.log, checkpoint.head_seq)[0] == checkpoint.state_digest.hex()

    def test_l7_a_replay_needs_no_key(self, k: Inside) -> None:
        """Every content key is destroyed; the log still gives the same state."""
        self.live_a_little(k)
        destroy_all(k.kernel.vault.keystore)
        assert replay(k.log) == (k.digest, k.rows())

    # -- L9 ----------------------------------------------------------------------------------------------------------

    def test_l9_a_request_happens_once_for_the_log_s_life(self, k: Inside) -> None:
        def allocate() -> dict[str, object]:
            return k("mem_alloc", ALICE, namespace="alice", content="x", request_id="r1")

        first = allocate()
        head = k.kernel.durable.seq
        assert allocate() == first and k.kernel.durable.seq == head
        k("mem_write", ALICE, cube_id=first["cube_id"], content="later")
        assert allocate() == first, "the first answer, not today's"
        k.reopen()
        assert allocate() == first
        k.crash()
        assert allocate() == first
        assert k.refusal("mem_alloc", ALICE, namespace="alice", content="y", request_id="r1") == "EINVAL"
        other = k("mem_alloc", BOB, namespace="bob", content="x", request_id="r1")
        assert other["cube_id"] != first["cube_id"], "another principal's id is another id"
        assert len(k("mem_list", ALICE)["cubes"]) == 1

    def test_l9_repeats_in_flight_are_one(self, k: Inside) -> None:
        calls = [k.submit("mem_alloc", namespace="n", content="x", request_id="same") for _ in range(10)]
        answers = [k.wait(call) for call in calls]
        assert all(answer == answers[0] for answer in answers)
        assert len(k("mem_list", namespace="n")["cubes"]) == 1

    def test_l9_a_refusal_is_not_remembered(self, k: Inside) -> None:
        assert k.refusal("mem_fork", namespace="n", to="m", request_id="r") == "ENOENT"
        k("mem_alloc", namespace="n", content="x")
        assert k("mem_fork", namespace="n", to="m", request_id="r")["cubes"] == 1

    # -- L10 ---------------------------------------------------------------------------------------------------------

    def everything(self, k: Inside) -> dict[str, Any]:
        """What a caller can learn of every cube; for some that is how it is refused."""

        def told(name: str, cube_id: str) -> Any:
            try:
                return k(name, ADMIN, cube_id=cube_id)
            except MemError as error:
                return error.errno

        listed = k("mem_list", ADMIN, limit=1000)["cubes"]
        return {
            cube["cube_id"]: [cube, *(told(name, cube["cube_id"]) for name in ("mem_read", "mem_stat", "mem_history"))]
            for cube in listed
        }

    def test_l10_a_new_machine_rebuilds_everything_that_was_not_shredded(self, k: Inside, tmp_path: Path) -> None:
        self.live_a_little(k)
        large = "large " * 150_000
        for content in ("x" * 17_000, large):
            k("mem_alloc", namespace="n", content=content)
        gone = k("mem_alloc", namespace="n", content=f"{CANARY} gone")["cube_id"]
        k("mem_shred", cube_id=gone)
        before, head, state = self.everything(k), k.kernel.durable.seq, (k.digest, k.rows())
        assert len(before) >= 6
        k.stop()
        with self.new_machine(k, tmp_path / "new") as new:
            assert self.everything(new) == before
            assert replay(new.log, head) == state
            assert replay(new.log) == (new.digest, new.rows())
            assert new.refusal("mem_read", cube_id=gone) == "ESHREDDED"
            assert new("sys_verify", full=True)["ok"]
            new.settle()
            hits = new("mem_search", namespace="n", query="large", mode="lexical")["hits"]
            assert len(hits) == 1, "what was searched for is found again"
            rows = new.rows()
            destroy_all(new.kernel.vault.keystore)
            assert replay(new.log) == (new.digest, rows), "without the keys everything but content"

    # -- reading by time ---------------------------------------------------------------------------------------------

    def test_a_time_names_the_last_record_that_is_not_younger(self, k: Inside) -> None:
        for future in [k.submit("mem_alloc", namespace="n", content=f"{n}") for n in range(10)]:
            k.wait(future)
        k.reopen()
        times = {record.seq: record.time for _raw, record in records(k.log)}
        for seq, time in times.items():
            assert k.log.seq_at(time) == seq
            assert k.log.seq_at(time - 1) == (seq - 1 if seq else None)
            assert k.log.seq_at(time + 1) == (seq + 1 if times.get(seq + 1) == time + 1 else seq)
        assert k.log.seq_at(0) is None and k.log.seq_at(-1) is None and k.log.seq_at(-(2**63)) is None
        assert k.log.seq_at(2**63 - 1) == len(times) - 1

    def test_an_empty_log_has_nothing_at_any_time(self, again: Rewrite) -> None:
        log = again([], [])
        assert list(log.frames()) == list(log.claims()) == []
        assert log.seq_at(2**63 - 1) is None and log.seq_at(0) is None
        assert isinstance(log.describe()["kind"], str)


def destroy_all(keystore: Keys) -> None:
    """Every content key is gone."""
    keystore.destroy([slot for epoch in keystore.epochs for slot in keystore.live_slots(epoch)])


class OwnLogSuite(EventLogSuite):
    """A log that is the kernel's own: says how it is made over a store (`log_of`), and whether that is RocksDB (`rocks`)."""

    rocks: ClassVar[bool]

    @abc.abstractmethod
    def log_of(self, store: Store) -> EventLog: ...

    def kernel(self) -> Inside:
        return Inside(rocks=self.rocks, log_of=self.log_of)

    def store(self, path: Path) -> Store:
        return RocksStore(path) if self.rocks else MemoryStore()

    def rewritten(self, store: Store, frames: list[bytes], claims: list[bytes], keys: LogKeys) -> EventLog:
        """As a kernel would have written them."""
        log = self.log_of(store)
        self.fill(log, frames, claims)
        return log

    def fill(self, log: EventLog, frames: list[bytes], claims: list[bytes]) -> None:
        opening = {claim.claim_id: (claim.epoch, data) for data in claims for claim in [ev.decode_claim(data)]}
        for data in frames:
            frame = ev.decode_frame(data)
            time = ev.decode_record(frame.records[0]).time
            append = Append(opening.pop(frame.claim_id, None), data, frame.first_seq, time, Batch())
            log.begin(append)
            log.finish(append)

    def new_machine(self, k: Inside, directory: Path) -> Inside:
        """From a copy of the directory, without the view and the index."""
        directory.mkdir()
        shutil.copytree(k.paths.keys, directory / "keys")
        shutil.copy(k.config.key_path, directory)
        old = RocksStore(k.paths.db) if self.rocks else k.store
        log = self.log_of(old) if self.rocks else k.log
        new = Inside(directory, rocks=self.rocks, log_of=self.log_of, start=False)
        store = RocksStore(new.paths.db) if self.rocks else new.store
        self.fill(self.log_of(store) if self.rocks else new.log, list(log.frames()), list(log.claims()))
        batch = Batch()
        for key, value in old.live(PAYLOAD).scan(b""):
            batch.put(PAYLOAD, key, value)
        store.write(batch)
        if self.rocks:
            old.close()
            store.close()
        new.open()
        return new


__all__ = ["EventLogSuite", "Faulty", "OwnLogSuite", "Reader"]
