"""check: how far a stopped or live directory's log is good, whether its view is what the log says, and what can be mended.

- A wrong view, or inline payloads that are missing, are made again from a log that verifies: all changes in one batch.
- A damaged log is never mended silently. `--truncate-to OFFSET` gives up every record after that offset, and asks first.
- Before either, `repair-TIME/` gets a copy of the whole database (hard links where the file system has them). It holds
  ciphertext and no keys: what is erased later cannot be read from it either.
- Cutting also winds back what the key store remembers of the log, before the log is cut: a crash between the two loses nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from memos_drivers.stores.base import INDEX, LOG, PAYLOAD, VIEW, Store
from memos_kernel import events as ev
from memos_kernel.chain import LogKeys
from memos_kernel.eventlog.base import EventLog
from memos_kernel.events import Checkpoint, Damaged, Slot, unpack
from memos_kernel.keystore import Keys as Keystore
from memos_kernel.keystore import KeyStore
from memos_kernel.state import View, decode_cube, u64
from memos_kernel.verify import Problem, Report, verify_log

from . import offline
from .offline import Keys, Replayed, Taken
from .output import BAD, GOOD, Output, Trouble
from .proof import problem_lines
from .render import Block, Line

EXAMPLES_MAX: Final = 5
REBUILD: Final = "Run `memctl check --repair`: it makes the view again from the log."
Put = tuple[str, bytes, bytes | None]


class Found(NamedTuple):
    """What a check found. `differences` are the puts that make the view what the log says."""

    log: Report
    view: list[Problem]
    differences: list[Put]
    bad_frame: dict[str, Any] | None


def command(arguments: argparse.Namespace, out: Output) -> int:
    keys = Keys(arguments.key_file, arguments.no_keys)
    if not arguments.repair and arguments.truncate_to is None:
        with offline.opened(arguments.dir, keys) as found:
            keystore = found.keystore
            result = examine(found.store, found.log, found.keys, keystore, out)
            _show(arguments.dir, result, offline.holder(arguments.dir), out)
        return GOOD if result.log.ok and not result.view else BAD
    with offline.taken(arguments.dir, keys) as stopped:
        result = examine(stopped.store, stopped.log, stopped.keys, stopped.keystore, out)
        _show(arguments.dir, result, None, out)
        if arguments.truncate_to is not None:
            return _truncate(stopped, arguments.truncate_to, result, arguments.yes, out)
        return _rebuild(stopped, result, arguments.yes, out)


# -- finding -----------------------------------------------------------------------------------------------------------


def examine(store: Store, log: EventLog, keys: LogKeys | None, keystore: Keystore | None, out: Output) -> Found:
    total = _head_or_zero(log) + 1
    anchor = keystore.newest_checkpoint if keystore else None
    mac = keys.frame_mac if keys else None
    public_key = keys.signer.public_key if keys else None
    with out.progress("checking the log", total) as progress:
        report = verify_log(log, public_key=public_key, frame_mac=mac, anchor=anchor, progress=progress)
    if not report.ok:
        return Found(report, [], [], bad_frame(store, log, report.offset + 1))
    with out.progress("replaying", total) as progress:
        try:
            made = offline.replayed(log, report.offset, progress)
        except Damaged as error:
            what = f"the log verifies, but cannot be replayed: {error}"
            return Found(
                report, [Problem(report.offset, what, "Upgrade memctl, or report this with the sentence above.")], [], None
            )
    problems, puts = compare(store, made)
    return Found(report, problems, puts, None)


def _head_or_zero(log: EventLog) -> int:
    try:
        return max(0, offline.head(log))
    except Damaged:
        return 0


def bad_frame(store: Store, log: EventLog, seq: int) -> dict[str, Any] | None:
    """Where the first bad frame lies in the database; None when the log just ends there."""
    for data in log.frames(seq):
        for key, value in store.live(LOG).scan(b"f"):
            if value == data:
                return {"offset": int.from_bytes(key[1:], "big"), "key": key.hex(), "bytes": len(data)}
    return None


def compare(store: Store, made: Replayed) -> tuple[list[Problem], list[Put]]:
    """How the stored view and inline payloads differ from the replay, and the puts that mend it."""
    stored = store.live(VIEW)
    applied = View(stored).applied()
    if applied is not None and applied[0] > made.seq:
        # A live kernel went on meanwhile; rows of newer records are not comparable.
        return [], []
    puts: list[Put] = []
    names: list[str] = []
    wanted = dict(made.rows.data)
    for key, value in stored.scan(b""):
        new = wanted.pop(key, None)
        if new != value:
            puts.append((VIEW, key, new))
            names.append(f"row {shown_key(key)} {'is in no record' if new is None else 'is not what the log says'}")
    for key, value in wanted.items():
        puts.append((VIEW, key, value))
        names.append(f"row {shown_key(key)} is missing")
    behind = applied is None or applied[0] < made.seq
    if behind and puts:
        at = "empty" if applied is None else f"at offset {applied[0]}"
        names = [f"the view is {at}, the log at {made.seq}: a kernel catches up when it starts; other rows may be wrong too"]
    problems = [Problem(made.seq, name, REBUILD) for name in names[:EXAMPLES_MAX]]
    if len(names) > EXAMPLES_MAX:
        problems.append(Problem(made.seq, f"{len(names) - EXAMPLES_MAX} more rows of the view differ", REBUILD))
    payloads = store.live(PAYLOAD)
    lost = 0
    for key, value in made.payloads.data.items():
        if payloads.get(key) != value:
            puts.append((PAYLOAD, key, value))
            lost += 1
    if lost:
        problems.append(
            Problem(made.seq, f"{lost} payloads that stand in the log are missing or changed beside the view", REBUILD)
        )
    return problems, puts


def shown_key(key: bytes) -> str:
    return f"{key[:1].decode(errors='replace')}:{key[1:].hex()}"


def _show(path: Path, found: Found, live: int | None, out: Output) -> None:
    report = found.log
    data: dict[str, Any] = {
        "ok": report.ok and not found.view, "good_up_to": report.offset, "records": report.records,
        "first_bad_frame": found.bad_frame, "problems": [p._asdict() for p in [*report.problems, *found.view]],
    }  # fmt: skip
    if report.ok:
        blocks: list[Block] = [Line(f"the log is good up to its head, offset {report.offset}", "green")]
        blocks += problem_lines(found.view) or [Line("the view is what the log says", "green")]
    else:
        blocks = [
            Line(f"the log is good up to offset {report.offset}, and damaged after it", "bold red"),
            *problem_lines(report.problems),
        ]
        if found.bad_frame is not None:
            frame = found.bad_frame
            where = f"offset {frame['offset']}: {frame['bytes']} bytes under the log key {frame['key']}"
            blocks.append(Line(f"the first bad frame begins at {where}"))
        blocks.append(Line(f"to give up what comes after: memctl check {path} --truncate-to {report.offset}", "yellow"))
    if live is not None:
        blocks.append(Line(f"a kernel (pid {live}) is running here; this is how it was a moment ago", "dim"))
    out.show(data, *blocks)


# -- mending -----------------------------------------------------------------------------------------------------------


def _rebuild(stopped: Taken, found: Found, yes: bool, out: Output) -> int:
    if not found.log.ok:
        advice = f"restore a backup, or give up what follows with --truncate-to {found.log.offset}"
        out.err.print(f"memctl: the log itself is damaged; a view made from it would be wrong. {advice}", markup=False)
        return BAD
    if not found.view:
        out.show({"repaired": 0}, Line("nothing to repair"))
        return GOOD
    if not found.differences:
        return BAD
    if not (yes or out.confirm(f"Write {len(found.differences)} rows anew from the log? Type yes:", "yes")):
        raise Trouble("nothing was changed; pass --yes to repair without being asked")
    copy = _copy(stopped, {"why": "the view was made again from the log", "rows": len(found.differences)})
    offline.write_all(stopped.store, found.differences)
    left, _puts = compare(stopped.store, offline.replayed(stopped.log, None))
    if left:
        raise Trouble(f"the view is still wrong: {left[0].what}; the former database is in {copy}")
    done = Line(f"repaired: {len(found.differences)} rows made again; the former database is in {copy}", "green")
    out.show({"repaired": len(found.differences), "copy": str(copy)}, done)
    return GOOD


def _copy(stopped: Taken, facts: dict[str, Any]) -> Path:
    """The database as it is, in a new directory beside it."""
    path = stopped.path / time.strftime("repair-%Y%m%dT%H%M%SZ", time.gmtime())
    try:
        path.mkdir(mode=0o700)
        stopped.store.checkpoint(path / "db")
        (path / "repair.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise Trouble(f"nothing was changed: {path} cannot be written: {error}") from error
    return path


def _truncate(stopped: Taken, keep: int, found: Found, yes: bool, out: Output) -> int:
    newest = _head_or_zero(stopped.log)
    if stopped.keys is None or stopped.keystore is None or stopped.segment_keys is None:
        raise Trouble("cutting a log needs its keys: the key store remembers where the log ended. Pass --key-file")
    if keep > found.log.offset:
        raise Trouble(f"the log is good up to offset {found.log.offset} only; choose that or less")
    if keep < 1:
        raise Trouble("offsets 0 and 1 make the log; to begin anew, use a new directory")
    if keep == newest and found.log.ok:
        out.show({"removed": 0}, Line(f"the log ends at offset {newest} already"))
        return GOOD
    question = f"This gives up every record after offset {keep} for good. Type {keep} again:"
    if not (yes or out.confirm(question, str(keep))):
        raise Trouble("nothing was changed; type the offset again when asked, or pass --yes")
    made = offline.replayed(stopped.log, keep)
    cubes = (decode_cube(row) for _key, row in stopped.store.live(VIEW).scan(b"c"))
    erased = sum(cube.state == "shredded" and cube.created_seq <= keep < cube.changed_seq for cube in cubes)
    remembered = stopped.keystore.newest_checkpoint
    copy = _copy(stopped, {
        "why": f"the log was cut to offset {keep}", "good_up_to": found.log.offset,
        "remembered_head": remembered.head_seq if remembered else None,
        "remembered_hash": remembered.head_hash.hex() if remembered else None,
    })  # fmt: skip
    wind_back(stopped.keystore, checkpoint_until(stopped.log, keep), keep)
    puts, slots = _cut(stopped, stopped.keys, keep, made)
    offline.write_all(stopped.store, puts)
    # Segments of the index held versions that are gone; nothing else may open their copy.
    stopped.segment_keys.destroy(slots)
    report = verify_log(
        stopped.log, public_key=stopped.keys.signer.public_key, frame_mac=stopped.keys.frame_mac,
        anchor=stopped.keystore.newest_checkpoint,
    )  # fmt: skip
    if not report.ok:
        raise Trouble(f"the log that is left does not verify: {report.problems[0].what}; the former database is in {copy}")
    done = Line(f"cut: the log ends at offset {report.offset}; the former database is in {copy}", "green")
    lost = Line(f"{erased} cubes that were erased after it stay unreadable: their keys are gone", "yellow")
    out.show({"offset": report.offset, "copy": str(copy), "erased_since": erased}, done, *([lost] if erased else []))
    return GOOD


def _cut(stopped: Taken, keys: LogKeys, keep: int, made: Replayed) -> tuple[list[Put], list[Slot]]:
    """The puts that leave log and view at `keep` and the indexes empty, and the keys of the index segments."""
    log_rows, index = stopped.store.live(LOG), stopped.store.live(INDEX)
    puts: list[Put] = [(LOG, key, None) for key, _value in log_rows.scan(b"f", b"f" + u64(keep + 1))]
    puts += [(LOG, key, None) for key, value in log_rows.scan(b"t") if int.from_bytes(value, "big") > keep]
    last = next(iter(stopped.log.frames(keep)))
    frame = ev.decode_frame(last)
    shorter = shortened(keys, frame, keep)
    if shorter != last:
        puts.append((LOG, b"f" + u64(frame.first_seq), shorter))
    puts += [(LOG, key, None) for key, _value in log_rows.scan(b"c") if int.from_bytes(key[1:], "big") > frame.epoch]
    wanted = dict(made.rows.data)
    for key, value in stopped.store.live(VIEW).scan(b""):
        if (new := wanted.pop(key, None)) != value:
            puts.append((VIEW, key, new))
    puts += [(VIEW, key, value) for key, value in wanted.items()]
    puts += [(INDEX, key, None) for key, _value in index.scan(b"")]
    return puts, [Slot(*unpack(value)[:2]) for _key, value in index.scan(b"g")]


def shortened(keys: LogKeys, frame: ev.Frame, keep: int) -> bytes:
    """The frame without its records after `keep`, under a new MAC."""
    records = frame.records[: keep - frame.first_seq + 1]
    return ev.encode_frame(keys.frame_mac, frame.log_id, frame.epoch, frame.claim_id, frame.first_seq, frame.prev_hash, records)


def checkpoint_until(log: EventLog, keep: int) -> Checkpoint | None:
    """The newest checkpoint whose record is at or before `keep`."""
    newest: Checkpoint | None = None
    for item in _until(log, keep):
        if ev.CHECKPOINT.encode() in item.raw:
            for event in item.record().events:
                newest = Checkpoint(*event.fields) if event.name == ev.CHECKPOINT else newest
    return newest


def _until(log: EventLog, keep: int) -> Iterator[offline.Item]:
    for item in offline.walk(log):
        if item.seq > keep:
            return
        yield item


def wind_back(keystore: KeyStore, checkpoint: Checkpoint | None, keep: int) -> None:
    """Make a key store remember nothing of a log after `keep`; both copies of its header are written."""
    fields = tuple(checkpoint) if checkpoint is not None else None
    keystore.header = keystore.header._replace(checkpoint=fields, shred_seq=min(keystore.header.shred_seq, keep))
    keystore.update()
    keystore.update()
