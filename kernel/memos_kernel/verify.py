"""verify: is this log what the kernel wrote, whole and in order, and is the view what the log says?

`verify_log` walks the stored bytes once and checks, for each offset:

- frames: MAC (with the key), log id, claim in force, first_seq = head + 1, prev_hash = head
- records: dense seq, epoch, time that only grows, hash chain
- claims: log id, signature, epoch, known head, genesis; each opens an epoch, whose first record carries the claim's hash
- genesis: first, once; checkpoints: signature, head, Merkle root over the window, previous checkpoint
- anchor: a signed checkpoint remembered elsewhere must stand at its offset

`verify_full` also replays into an empty state, compares every checkpoint's digest and every row of the view, and opens
every payload and private part whose key is alive (verify_view.py). Problems come in order of offset, each with what to
do; the walk goes on after one where that makes sense. Reads only; runs in any thread, beside a kernel at work too: the
view is taken as of one moment, and compared where the log was at that moment.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from memos_drivers.stores.base import PAYLOAD, VIEW, Batch, Store
from memos_drivers.stores.memory import MemoryReader

from . import crypto, verify_view
from . import events as ev
from .chain import LogKeys
from .eventlog.base import EventLog, SharedLog
from .eventlog.counting import KNOWN_HEADS_MAX
from .events import Checkpoint, Damaged, pack
from .reducer import apply
from .state import DIGEST_BYTES, META_APPLIED, SCHEMA, Tables, shown
from .upcast import current
from .vault import Vault
from .verify_view import RESTORE

if TYPE_CHECKING:
    from .dispatch import Kernel

Progress = Callable[[int], None]
Each = Callable[[bytes, ev.Record, bytes], None]
"""Takes a record on the way: its bytes, itself and its hash."""
PROBLEMS_MAX: Final = 100
PROGRESS_EVERY: Final = 4096
OF_THE_LOG: Final = frozenset({ev.GENESIS, ev.EPOCH_OPENED, ev.CHECKPOINT})
"""Events about the log itself; each is a record of its own."""


class Problem(NamedTuple):
    """One finding: at which offset, what is wrong, what to do."""

    offset: int
    what: str
    advice: str = RESTORE


class Report(NamedTuple):
    """What a verification found. `offset` is the last record before the first problem, or the head."""

    ok: bool
    records: int
    offset: int
    problems: list[Problem]
    checkpoints: int
    head_hash: bytes
    digest: bytes | None
    """State digest of the replay; None when nothing was replayed."""
    claims: int
    """Claims that frames name."""
    digests: int
    """Checkpoints whose state digest was compared with a replay's."""


class _Walk:
    """The state of one walk along the chain."""

    def __init__(self, public_key: bytes | None, frame_mac: bytes | None, shared: bool) -> None:
        self.public_key = public_key
        self.frame_mac = frame_mac
        self.log_id: bytes | None = None
        self.seq = -1
        self.hash = crypto.ZERO_HASH
        self.time = 0
        self.epoch = 0
        self.claim_id: bytes | None = None
        self.shared = shared
        """Whether others could append between the reading of the head and the claim."""
        self.heads: deque[bytes] = deque([crypto.ZERO_HASH], KNOWN_HEADS_MAX)
        """Frame ends of the epoch, and the head at which it began."""
        self.expect_open: bytes | None = None
        self.opened: set[bytes] = set()
        """Ids of the claims that frames named."""
        self.genesis_hash: bytes | None = None
        self.window: list[bytes] = []
        self.previous = crypto.ZERO_HASH
        self.checkpoints = 0
        self.digests = 0
        self.records = 0
        self.first_bad: int | None = None
        self.problems: list[Problem] = []

    def problem(self, offset: int, what: str, advice: str = RESTORE) -> None:
        self.first_bad = offset if self.first_bad is None else min(self.first_bad, offset)
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(Problem(offset, what, advice))

    # -- claims ------------------------------------------------------------------------------------------------------

    def claim(self, claims: dict[bytes, tuple[bytes, ev.Claim]], frame: ev.Frame) -> None:
        """A frame of another claim than the one in force opens an epoch."""
        found = claims.get(frame.claim_id)
        offset = frame.first_seq
        if found is None:
            self.problem(offset, f"the frame at offset {offset} names a claim that the log does not hold")
        else:
            data, claim = found
            if claim.log_id != self.log_id:
                self.problem(offset, f"the claim of epoch {claim.epoch} belongs to another log")
            key = self.public_key or claim.public_key
            if claim.public_key != key or not ev.claim_signature_ok(key, data):
                self.problem(offset, f"the claim of epoch {claim.epoch} is not signed by this log's key: the log was rewritten")
            if claim.epoch != frame.epoch or claim.epoch <= self.epoch:
                self.problem(offset, f"the claim of epoch {claim.epoch} does not follow epoch {self.epoch}")
            if claim.known_head != self.hash and not (self.shared and claim.known_head in self.heads):
                self.problem(
                    offset, f"the claim of epoch {claim.epoch} does not name the head before it: records are missing or changed"
                )
            if (claim.genesis_hash is None) == (offset == 0):
                self.problem(offset, f"the claim of epoch {claim.epoch} and the log's beginning contradict each other")
            self.public_key, self.genesis_hash = key, claim.genesis_hash
            self.expect_open = crypto.sha256(data)
            self.opened.add(frame.claim_id)
            self.heads.clear()
            self.heads.append(self.hash)
        self.claim_id, self.epoch = frame.claim_id, frame.epoch

    # -- frames ------------------------------------------------------------------------------------------------------

    def frame(self, data: bytes, claims: dict[bytes, tuple[bytes, ev.Claim]]) -> list[tuple[bytes, ev.Record, bytes]]:
        """`(bytes, record, hash)` of each record of a frame that can be read."""
        frame = ev.decode_frame(data)
        first = frame.first_seq
        if self.log_id is None:
            self.log_id = frame.log_id
        elif frame.log_id != self.log_id:
            self.problem(first, f"the frame at offset {first} belongs to another log")
        if self.frame_mac is not None and not ev.frame_mac_ok(self.frame_mac, data):
            self.problem(
                first, f"the frame at offset {first} was changed, or was not written by this log's kernel (its MAC is wrong)"
            )
        if first != self.seq + 1:
            what = (
                f"records {self.seq + 1} to {first - 1} are missing" if first > self.seq + 1 else f"offset {first} stands twice"
            )
            self.problem(min(first, self.seq + 1), what)
        if frame.prev_hash != self.hash:
            self.problem(first, f"the chain is broken before offset {first}: a record before it was changed, removed or moved")
        if frame.claim_id != self.claim_id:
            self.claim(claims, frame)
        elif frame.epoch != self.epoch:
            self.problem(first, f"the frame at offset {first} is of epoch {frame.epoch}, its claim of {self.epoch}")
        self.seq, self.hash = first - 1, frame.prev_hash
        found = [self.record(raw) for raw in frame.records]
        self.heads.append(self.hash)
        return found

    def record(self, raw: bytes) -> tuple[bytes, ev.Record, bytes]:
        offset = self.seq + 1
        hash_ = crypto.record_hash(self.hash, raw)
        record = ev.decode_record(raw)
        if record.seq != offset:
            self.problem(offset, f"the record at offset {offset} says that it is number {record.seq}")
        if record.epoch != self.epoch:
            self.problem(offset, f"the record at offset {offset} is of epoch {record.epoch}, its frame of {self.epoch}")
        if record.time <= self.time:
            self.problem(offset, f"the record at offset {offset} is not younger than the one before it")
        if self.expect_open is not None or offset == 0:
            self._beginning(offset, record)
        for event in record.events:
            if event.name in OF_THE_LOG:
                self._of_the_log(offset, event, record)
        self.window.append(hash_)
        self.seq, self.hash, self.time = offset, hash_, record.time
        self.records += 1
        return raw, record, hash_

    def _beginning(self, offset: int, record: ev.Record) -> None:
        """What the log and each epoch must begin with."""
        name = record.events[0].name if record.events else ""
        if offset == 0:
            if name != ev.GENESIS:
                self.problem(0, "the log does not begin with its genesis: its beginning was removed")
        elif name != ev.EPOCH_OPENED:
            self.problem(offset, f"the first record of epoch {record.epoch}, at offset {offset}, is not epoch.opened")
            self.expect_open = None

    def _of_the_log(self, offset: int, event: ev.Event, record: ev.Record) -> None:
        if len(record.events) != 1:
            self.problem(offset, f"the {event.name} at offset {offset} shares its record with other events")
        if event.name == ev.GENESIS:
            log_id, public_key, _schema = event.fields
            if offset != 0:
                self.problem(offset, f"offset {offset} is a second genesis")
            if (self.public_key is not None and public_key != self.public_key) or log_id != self.log_id:
                self.problem(offset, "the genesis names another key or log: the log was rewritten with a new chain")
            if self.genesis_hash not in (None, crypto.sha256(pack([list(e) for e in record.events]))):
                self.problem(offset, "the genesis is not the one that the first claim was signed for")
            self.public_key = self.public_key or public_key
        elif event.name == ev.EPOCH_OPENED:
            if self.expect_open is None or event.fields[0] != self.expect_open:
                self.problem(offset, f"epoch.opened at offset {offset} does not carry its claim's hash")
            self.expect_open = None
        elif event.name == ev.CHECKPOINT:
            self._checkpoint(offset, Checkpoint(*event.fields))

    def _checkpoint(self, offset: int, found: Checkpoint) -> None:
        log_id = self.log_id or b""
        if self.public_key is None or not crypto.verify_signature(self.public_key, found.signature, found.signed_bytes(log_id)):
            self.problem(offset, f"the checkpoint at offset {offset} is not signed by this log's key")
        if (found.head_seq, found.head_hash) != (self.seq, self.hash):
            self.problem(offset, f"the checkpoint at offset {offset} signs another head: records before it were changed")
        if found.merkle_root != crypto.merkle_root(self.window):
            self.problem(offset, f"the checkpoint at offset {offset} has another Merkle root than the records it covers")
        if found.previous != self.previous:
            self.problem(
                offset, f"the checkpoint at offset {offset} does not follow the one before it: a checkpoint is missing"
            )
        self.previous = found.hash(log_id)
        self.window = []
        self.checkpoints += 1

    def report(self, digest: bytes | None = None) -> Report:
        ok = not self.problems
        problems = sorted(self.problems, key=lambda p: p.offset)
        offset = self.seq if self.first_bad is None else self.first_bad - 1
        return Report(ok, self.records, offset, problems, self.checkpoints, self.hash, digest, len(self.opened), self.digests)


def _claims(log: EventLog, walk: _Walk) -> dict[bytes, tuple[bytes, ev.Claim]]:
    claims: dict[bytes, tuple[bytes, ev.Claim]] = {}
    for data in log.claims():
        try:
            claim = ev.decode_claim(data)
            claims[claim.claim_id] = (data, claim)
        except Damaged as error:
            walk.problem(0, f"a claim is damaged: {error}")
    return claims


def _walk(
    log: EventLog, walk: _Walk, anchor: Checkpoint | None, progress: Progress | None,
    each: Each | None = None,
) -> None:  # fmt: skip
    claims = _claims(log, walk)
    anchored = anchor is None
    for data in log.frames(0):
        expected = walk.seq + 1
        try:
            found = walk.frame(data, claims)
        except Damaged as error:
            walk.problem(expected, f"the frame at offset {expected} cannot be read: {error}")
            # Nothing says how many records it held; the next frame tells.
            continue
        for raw, record, hash_ in found:
            if anchor is not None and record.seq == anchor.head_seq:
                anchored = True
                if hash_ != anchor.head_hash:
                    walk.problem(
                        record.seq,
                        f"offset {record.seq} is not the record that was signed and kept elsewhere: the log was rewritten",
                    )
            if each is not None:
                each(raw, record, hash_)
        if progress is not None and walk.records // PROGRESS_EVERY != (walk.records - len(found)) // PROGRESS_EVERY:
            progress(walk.records)
    if walk.records == 0:
        walk.problem(0, "the log holds no record")
    if walk.expect_open is not None:
        walk.problem(walk.seq, "the newest epoch has no epoch.opened record")
    for claim_id, (_data, claim) in claims.items():
        if claim_id not in walk.opened and not walk.shared:
            walk.problem(walk.seq + 1, f"no frame follows the claim of epoch {claim.epoch}: the log was cut back")
    if anchor is not None and not anchored:
        walk.problem(
            walk.seq + 1,
            f"the log ends at offset {walk.seq}, but a signed checkpoint of offset {anchor.head_seq} is remembered: "
            "the log was cut back",
        )


def verify_log(
    log: EventLog, *, public_key: bytes | None, frame_mac: bytes | None, anchor: Checkpoint | None = None,
    progress: Progress | None = None, also: Each | None = None,
) -> Report:  # fmt: skip
    """Chain, MACs (with `frame_mac`), signatures, checkpoints, anchor. Needs no content key."""
    walk = _Walk(public_key, frame_mac, log.shared)
    _walk(log, walk, anchor, progress, also)
    return walk.report()


def replay(
    log: EventLog, to_seq: int | None, tables: Tables, write: Callable[[Batch], None] | None = None,
    progress: Progress | None = None,
) -> tuple[int, bytes, int]:  # fmt: skip
    """Apply the log to empty tables up to `to_seq`; `(seq, head hash, digest sum)` of where it ended.

    With `write`, changes go there in batches of one frame; without, they stay in `tables` as its overlay.
    """
    seq, head = -1, crypto.ZERO_HASH
    for data in log.frames(0):
        frame = ev.decode_frame(data)
        head = frame.prev_hash
        last: ev.Record | None = None
        for raw in frame.records:
            record = ev.decode_record(raw)
            if to_seq is not None and record.seq > to_seq:
                break
            apply(tables, current(record))
            seq, head, last = record.seq, crypto.record_hash(head, raw), record
            if progress is not None and seq % PROGRESS_EVERY == 0:
                progress(seq + 1)
        if last is not None:
            digest = tables.digest.to_bytes(DIGEST_BYTES, "little")
            tables.put(META_APPLIED, pack((last.seq, last.time, head, digest, last.epoch)))
        if write is None:
            tables.changes.clear()
            tables.payloads.clear()
        else:
            changes, payloads = tables.take()
            batch = Batch()
            batch.puts = [(VIEW, key, value) for key, value in changes.items()]
            batch.puts += [(PAYLOAD, key, value) for key, value in payloads]
            write(batch)
            tables.settle(changes)
        if to_seq is not None and seq >= to_seq:
            break
    return seq, head, tables.digest


class _Plain(MemoryReader):
    """An empty source under a replay's tables: every row is in the overlay."""


def verify_full(
    store: Store, log: EventLog, keys: LogKeys, vault: Vault, progress: Progress | None = None,
    anchor: Checkpoint | None = None, *, also: Each | None = None, live: bool = False,
) -> Report:  # fmt: skip
    """Everything that `verify_log` checks; then replay, compare, decrypt. `live`: a kernel in this process is at work."""
    walk = _Walk(keys.signer.public_key, keys.frame_mac, log.shared)
    tables = Tables(_Plain(), 0)
    view = verify_view.still(store)
    applied = verify_view.applied(view)
    stands = -1 if applied is None else applied.seq
    broken: list[Damaged] = []

    def each(raw: bytes, record: ev.Record, hash_: bytes) -> None:
        if also is not None:
            also(raw, record, hash_)
        if broken:
            return
        first = record.events[0] if record.events else None
        if first is not None and first.name == ev.CHECKPOINT:
            found = Checkpoint(*first.fields)
            walk.digests += found.state_schema == SCHEMA
            if found.state_schema == SCHEMA and found.state_digest != shown(tables.digest):
                walk.problem(record.seq, f"the checkpoint at offset {record.seq} signs another state than a replay gives")
        try:
            apply(tables, current(record))
        except Damaged as error:
            broken.append(error)
            walk.problem(record.seq, f"the record at offset {record.seq} does not fit the state before it: {error}")
        # The changes stay in the overlay; payload bytes are compared with the store, not kept.
        tables.payloads.clear()
        tables.changes.clear()
        if record.seq == stands and applied is not None and not broken:
            verify_view.compare(view, applied, tables, (record, hash_), walk.problem)

    _walk(log, walk, anchor, progress, each)
    if applied is None:
        empty = view.get(META_APPLIED) is None
        what = "the view is empty; start the kernel once and it is made again from the log"
        walk.problem(
            walk.seq, what if empty else "the row that says where the view stands is damaged",
            "Start memosd on it." if empty else verify_view.REPAIR,
        )  # fmt: skip
    elif stands > walk.seq:
        walk.problem(walk.seq + 1, f"the view stands at offset {stands}, but the log ends at {walk.seq}: its tail is gone")
    if not broken:
        verify_view.open_everything(
            store, tables, vault, walk.problem, None if progress is None else lambda n: progress(walk.records + n), live=live
        )
    return walk.report(shown(tables.digest))


def verify_live(kernel: Kernel, full: bool) -> dict[str, Any]:
    """`sys_verify`: what is durable now. Runs in a thread; raises as `SharedLog.compare`."""
    anchor = kernel.vault.keystore.newest_checkpoint
    if full:
        report = verify_full(kernel.store, kernel.log, kernel.keys, kernel.vault, anchor=anchor, live=True)
    else:
        report = verify_log(
            kernel.log, public_key=kernel.keys.signer.public_key, frame_mac=kernel.keys.frame_mac, anchor=anchor
        )
    problems = [f"offset {p.offset}: {p.what}. {p.advice}" for p in report.problems]
    if isinstance(kernel.log, SharedLog):
        # What is verified above is the mirror; others read the topic.
        advice = "Compare with `memctl verify` on the topic and on this directory, and restore what was changed"
        problems += [f"offset {at}: {what}. {advice}." for at, what in kernel.log.compare()]
    return {"ok": not problems, "offset": report.offset, "records": report.records, "problems": problems}
