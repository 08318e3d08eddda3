"""`verify --full` against the view: no row of any kind can be taken, changed or added unseen, and a kernel at work beside
it is not accused of what it did meanwhile. Also the rules about claims and epochs that damage alone does not break.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from tests.inside import ADMIN, Inside

from memos_drivers.stores.base import LOG, VIEW, Batch
from memos_kernel import crypto, verify
from memos_kernel import events as ev
from memos_kernel.decide_migrate import Product
from memos_kernel.events import pack
from memos_kernel.governance import raw_id
from memos_kernel.jobs import Own
from memos_kernel.state import CONTENT, DIGEST_BYTES, META_APPLIED, u64
from memos_kernel.stats import Histogram
from memos_kernel.turn import Turn
from memos_kernel.verify_view import KINDS
from memos_kernel.writes import Write
from memos_syscalls.table import BY_NAME


def put(k: Inside, family: str, key: bytes, value: bytes | None) -> None:
    batch = Batch()
    batch.put(family, key, value)
    k.store.write(batch)


def full(k: Inside) -> verify.Report:
    kernel = k.kernel
    return verify.verify_full(kernel.store, kernel.log, kernel.keys, kernel.vault)


def adapter(k: Inside, source: str) -> None:
    """A cube as a training makes it, without a model."""
    args = {"cube_id": source, "to": "parametric"}
    product = Product("parametric", "a", None, [(raw_id(source), 1, CONTENT)], {"method": "distil"}, None, 0, [])

    async def commit() -> None:
        turn = Turn(Own(ADMIN), 0, BY_NAME["mem_migrate"], Histogram())
        write = Write(turn, turn.syscall.request.model_validate(args), args).made(turn, product)
        await k.kernel.commit_product(write, [b"tensors"], None)

    k.loop.run_until_complete(commit())


@pytest.fixture(scope="module")
def rich() -> Iterator[Inside]:
    """A kernel whose view has rows of every kind. Tests put back what they change."""
    with Inside() as k:
        a = k("mem_alloc", namespace="a", content="x", request_id="r1", ttl_s=1000)["cube_id"]
        b = k("mem_alloc", namespace="a", content="y", parents=[a])["cube_id"]
        c, d = (k("mem_alloc", namespace="a", content=text)["cube_id"] for text in "cd")
        k("mem_fuse", cube_ids=[c, d], strategy="merge")
        for place in ("Rome", "Oslo"):
            k("mem_alloc", namespace="a", content=f"I live in {place}.", check="conflict")
        k("mem_freeze", cube_id=b)
        k("mem_pin", cube_id=b)
        k("mem_fork", namespace="a", to="b")
        k("mem_shred", cube_id=k("mem_alloc", namespace="a", content="z")["cube_id"])
        adapter(k, a)
        k.reopen()
        assert full(k).ok
        yield k


@pytest.mark.parametrize("kind", KINDS, ids=KINDS.values())
@pytest.mark.parametrize("how", ["missing", "changed", "added"])
def test_a_row_of_any_kind_is_named(rich: Inside, kind: bytes, how: str) -> None:
    rows = {key: value for key, value in rich.rows().items() if key[:1] == kind}
    assert rows, "the view has rows of this kind"
    for key, value in rows.items():
        if how == "added":
            key, value = key[:-1] + bytes([key[-1] ^ 1]), value
            if key in rows:
                continue
            put(rich, VIEW, key, value)
        else:
            put(rich, VIEW, key, None if how == "missing" else value + b"\0")
        try:
            report = full(rich)
        finally:
            put(rich, VIEW, key, rows.get(key))
        assert not report.ok
        found = [problem for problem in report.problems if key.hex() in problem.what]
        assert len(found) == 1, report.problems
        assert f"the {KINDS[kind]} row" in found[0].what and "repair" in found[0].advice
        assert 0 <= found[0].offset <= rich.kernel.durable.seq
    assert full(rich).ok


def test_where_a_row_comes_from_is_said(rich: Inside) -> None:
    made = rich("mem_alloc", namespace="a", content="one more", request_id="r9")
    raw = bytes.fromhex(made["cube_id"].replace("-", ""))
    rows = [row for row in rich.rows().items() if raw in row[0] + row[1] or row[1] == u64(made["offset"])]
    assert {key[:1] for key, _value in rows} == {b"r", b"l", b"k", b"v", b"c"}
    for key, value in rows:
        put(rich, VIEW, key, None)
        assert full(rich).problems[0].offset == made["offset"]
        put(rich, VIEW, key, value)


APPLIED = {"seq": 0, "time": 1, "head": 2, "digest": 3, "epoch": 4}


@pytest.mark.parametrize("field", APPLIED)
def test_a_view_that_lies_about_where_it_stands_is_found(rich: Inside, field: str) -> None:
    whole = rich.store.live(VIEW).get(META_APPLIED)
    assert whole is not None
    for change in (1, -1):
        row = ev.unpack(whole)
        value = row[APPLIED[field]]
        row[APPLIED[field]] = bytes(len(value)) if isinstance(value, bytes) else value + change
        for data in (pack(row), pack(row[:4]), b"\xc1"):
            put(rich, VIEW, META_APPLIED, data)
            assert not full(rich).ok
    put(rich, VIEW, META_APPLIED, whole)
    assert full(rich).ok
    assert len(ev.unpack(whole)[3]) == DIGEST_BYTES


# -- beside a kernel at work -------------------------------------------------------------------------------------------


def test_a_kernel_at_work_is_compared_and_not_accused() -> None:
    with Inside(rocks=True) as k:
        ids: list[str] = []
        for _ in range(15):
            made = k("mem_alloc_many", items=[{"namespace": "a", "content": "c"}] * 100)
            ids += [item["cube_id"] for item in made["items"]]
        k.run(0.2)

        async def beside_work() -> list[verify.Report]:
            reports: list[verify.Report] = []
            kernel = k.kernel
            for _ in range(4):
                running = asyncio.ensure_future(
                    asyncio.to_thread(verify.verify_full, kernel.store, kernel.log, kernel.keys, kernel.vault, live=True)
                )
                while not running.done():
                    await k.submit("mem_write", cube_id=ids[0], content="d")
                    for at in (-1, 1):
                        # What the walk meets last, and first.
                        await k.submit("mem_shred", cube_id=ids.pop(at))
                    await asyncio.sleep(0.002)
                reports.append(await running)
            return reports

        reports = k.loop.run_until_complete(asyncio.wait_for(beside_work(), 60))
        assert [report.problems for report in reports] == [[]] * 4
        assert all(report.ok and report.digest for report in reports)
        # A row that is missing is found, work or no work.
        key = next(key for key in k.rows() if key[:1] == b"k")
        put(k, VIEW, key, None)
        reports = k.loop.run_until_complete(asyncio.wait_for(beside_work(), 60))
        assert all("key slot row" in report.problems[0].what for report in reports)


def test_a_key_that_is_gone_though_nothing_erased_it_is_found_beside_work(k: Inside) -> None:
    cube = k("mem_alloc", namespace="a", content="x")
    row = k.kernel.tables.own_version(bytes.fromhex(cube["cube_id"].replace("-", "")), 1)
    assert row is not None
    k.kernel.vault.destroy([row[0].slot])
    report = k("sys_verify", full=True)
    assert not report["ok"] and f"offset {cube['offset']}" in report["problems"][0]


# -- claims and epochs -------------------------------------------------------------------------------------------------


class Forger:
    """Whoever holds all keys of a log and writes one frame to it that no kernel would."""

    def __init__(self, k: Inside) -> None:
        self.k = k
        self.keys = k.kernel.keys
        self.epoch = k.kernel.chain.epoch
        self.claim_id = k.kernel.chain.claim_id
        last = ev.decode_frame(list(k.log.frames())[-1])
        self.seq, self.hash = last.first_seq, last.prev_hash
        for raw in last.records:
            self.seq, self.hash, self.time = self.seq + 1, crypto.record_hash(self.hash, raw), ev.decode_record(raw).time

    def claim(self, log_id: bytes, *, genesis: bytes | None = None) -> bytes:
        self.epoch, self.claim_id = self.epoch + 1, b"c" * 16
        claim = ev.encode_claim(self.keys.signer, log_id, self.epoch, self.claim_id, self.hash, genesis)
        put(self.k, LOG, b"c" + u64(self.epoch), claim)
        return claim

    def frame(self, *records: list[ev.Event]) -> int:
        """Append records; returns the first one's offset."""
        made = [
            ev.encode_record(ev.Record(1, self.seq + n, self.epoch, self.time + 1 + n, "kernel", 0, None, None, events))
            for n, events in enumerate(records)
        ]
        data = ev.encode_frame(
            self.keys.frame_mac, self.keys.log_id, self.epoch, self.claim_id, self.seq, self.hash, made
        )  # fmt: skip
        put(self.k, LOG, b"f" + u64(self.seq), data)
        return self.seq

    def problems(self) -> list[verify.Problem]:
        return verify.verify_log(self.k.log, public_key=None, frame_mac=self.keys.frame_mac).problems


def opened(claim: bytes) -> ev.Event:
    return ev.Event(ev.EPOCH_OPENED, 1, [crypto.sha256(claim)])


EXPIRED = ev.Event(ev.EXPIRED, 1, [[]])


@pytest.fixture
def forger(k: Inside) -> Forger:
    k("mem_alloc", namespace="a", content="x")
    return Forger(k)


def test_a_new_epoch_as_the_kernel_makes_it_is_good(forger: Forger) -> None:
    forger.frame([opened(forger.claim(forger.keys.log_id))], [EXPIRED])
    assert forger.problems() == []


def test_a_claim_of_another_log_is_found(forger: Forger) -> None:
    at = forger.frame([opened(forger.claim(b"another log 1234"))])
    assert [(p.offset, "belongs to another log" in p.what) for p in forger.problems()] == [(at, True)]


def test_a_claim_that_names_a_second_genesis_is_found(forger: Forger) -> None:
    at = forger.frame([opened(forger.claim(forger.keys.log_id, genesis=b"g" * 32))])
    assert [(p.offset, "beginning" in p.what) for p in forger.problems()] == [(at, True)]


def test_an_epoch_that_does_not_begin_with_its_opening_is_found(forger: Forger) -> None:
    claim = forger.claim(forger.keys.log_id)
    at = forger.frame([EXPIRED], [opened(claim)])
    assert forger.problems()[0].offset == at and "not epoch.opened" in forger.problems()[0].what


def test_a_claim_that_no_frame_follows_is_found(forger: Forger) -> None:
    forger.claim(forger.keys.log_id)
    assert [(p.offset, "cut back" in p.what) for p in forger.problems()] == [(forger.seq, True)]


def test_what_hides_behind_another_event_is_found(forger: Forger) -> None:
    checkpoint = ev.Event(ev.CHECKPOINT, 1, [0, bytes(32), bytes(32), bytes(32), bytes(32), 1, bytes(64)])
    for hidden in (checkpoint, ev.Event(ev.GENESIS, 1, [forger.keys.log_id, b"", 1]), opened(b"")):
        at = forger.frame([EXPIRED, hidden])
        found = forger.problems()
        assert found and {p.offset for p in found} == {at} and any(hidden.name in p.what for p in found)
