"""verify and anchor: that a log is whole, that nothing was cut off its end, and that an erasure happened.

- `verify` walks the log once, and compares every ciphertext with what its record commits to; with the master key it also
  checks MACs, the log's own public key and the checkpoint that the key store remembers. Without it, chain and signatures are
  checked against `--public-key`, or against the key that the log itself names, which finds damage but not a log that somebody
  made anew from its first record. `--report` keeps what it found in a file (report.py).
- an *anchor* is the newest signed checkpoint as JSON, kept elsewhere: it finds a log that was cut back or rewritten.
- a *receipt* is what mem_shred answered: signed by the log's key, it names a record; that record, the keys and the index
  segments are looked up.
"""

from __future__ import annotations

import argparse
import base64
import json
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

from memos_drivers.stores.base import INDEX, PAYLOAD, VIEW
from memos_kernel import crypto, lifecycle
from memos_kernel import events as ev
from memos_kernel.answers import Receipt, read_receipt, shredded_by
from memos_kernel.eventlog.base import EventLog
from memos_kernel.events import Checkpoint, Damaged, Slot, unpack
from memos_kernel.governance import text_id
from memos_kernel.keystore import Keys as Keystore
from memos_kernel.offline import Offline
from memos_kernel.state import META_CHECKPOINT, View, decode_version
from memos_kernel.verify import Problem, Progress, Report, verify_full, verify_log

from . import offline, report
from .commitments import Commitments
from .offline import Keys
from .output import BAD, GOOD, Output, Trouble
from .render import Block, Line

KIND: Final = "memos anchor"
RACE_TRIES: Final = 5
RACE_SECONDS: Final = 0.2
NOWHERE: Final = -1
"""Offset of a problem that is not at one."""
_HEX: Final = ("head_hash", "merkle_root", "previous", "state_digest", "signature")


class Anchor(NamedTuple):
    """A signed checkpoint with what it takes to check it."""

    log_id: bytes
    public_key: bytes
    checkpoint: Checkpoint


class Wanted(NamedTuple):
    """What a verification compares the log with."""

    public_key: bytes | None
    anchor: Anchor | None
    receipt: bytes | None
    full: bool
    report: Path | None


# -- verify ------------------------------------------------------------------------------------------------------------


def verify(arguments: argparse.Namespace, out: Output) -> int:
    if arguments.check_report is not None:
        if arguments.public_key is None:
            raise Trouble("--check-report needs --public-key HEX, from a source that you trust")
        return report.check(arguments.check_report, _hex(arguments.public_key, 32, "--public-key"), out)
    if arguments.socket is not None:
        if arguments.report is not None:
            raise Trouble("a running kernel's answer is not a report; name its data directory instead of --socket")
        return _verify_live(arguments, out)
    if arguments.source is None:
        raise Trouble("name a data directory, or a kernel with --socket")
    given = _hex(arguments.public_key, 32, "--public-key") if arguments.public_key else None
    anchor = read_anchor(arguments.anchor) if arguments.anchor else None
    receipt = receipt_bytes(arguments.receipt) if arguments.receipt else None
    source, keys = arguments.source, Keys(arguments.key_file, arguments.no_keys)
    for left in reversed(range(RACE_TRIES)):
        with offline.opened(source, keys, need_key=arguments.full, public_key=given) as found:
            newest = found.keystore.newest_checkpoint if found.keystore else None
            if newest is not None and newest.head_seq > offline_head(found) and offline.holder(found.path) and left:
                # A live kernel signed it between our opening of the log and of the key store.
                time.sleep(RACE_SECONDS)
                continue
            return _verify(found, Wanted(given, anchor, receipt, arguments.full, arguments.report), newest, out)
    raise AssertionError("the last try returns")


def offline_head(found: Offline) -> int:
    try:
        return offline.head(found.log)
    except Damaged:
        return -1


def _verify(found: Offline, wanted: Wanted, newest: Checkpoint | None, out: Output) -> int:
    given = wanted.public_key
    own = found.keys.signer.public_key if found.keys else None
    began = time.perf_counter()
    extra: list[Problem] = []
    if given is not None and own is not None and given != own:
        extra.append(Problem(NOWHERE, "the key store's signing key is not the one given", "Ask who gave you the public key."))
    commitments = Commitments(found.store.live(PAYLOAD))
    with out.progress("verifying", max(0, offline_head(found) + 1)) as progress:
        if wanted.full:
            assert found.keys is not None and found.vault is not None
            result = verify_full(found.store, found.log, found.keys, found.vault, progress, anchor=newest, also=commitments.see)
        else:
            mac = found.keys.frame_mac if found.keys else None
            result = verify_log(
                found.log, public_key=given or own, frame_mac=mac, anchor=newest, progress=progress, also=commitments.see
            )
    seconds = time.perf_counter() - began
    if wanted.anchor is not None:
        extra += anchor_problems(found.log, wanted.anchor)
    receipt: Receipt | None = None
    wrong: list[Problem] = []
    if wanted.receipt is not None:
        receipt, wrong = receipt_problems(found, wanted.receipt, given or own)
        extra += wrong
    known = {problem.offset for problem in result.problems}
    extra += [problem for problem in commitments.problems if not wanted.full or problem.offset not in known]
    problems = [*result.problems, *extra]
    data: dict[str, Any] = {
        "ok": not problems, "records": result.records, "offset": result.offset, "head_hash": result.head_hash.hex(),
        "claims": result.claims, "checkpoints": result.checkpoints, "digests": result.digests, "payloads": commitments.checked,
        "state_digest": result.digest.hex() if result.digest else None,
        "macs_checked": found.keys is not None, "full": wanted.full, "seconds": round(seconds, 3),
        "problems": [problem._asdict() for problem in problems],
    }  # fmt: skip
    blocks: list[Block] = [_verdict(result, problems, seconds)]
    blocks += problem_lines(problems)
    if receipt is not None:
        data["receipt"] = {"offset": receipt.seq, "cubes": [text_id(cube_id) for cube_id in receipt.cubes]}
        if not wrong:
            count = len(receipt.cubes)
            blocks.append(
                Line(f"the receipt holds: {count} cubes erased at offset {receipt.seq}, their keys are gone", "green")
            )
    if found.keys is None:
        blocks.append(Line("without the master key, MACs and the key store were not checked (--key-file)", "yellow"))
        if given is None:
            blocks.append(
                Line("signatures were checked against the key that the log itself names; pass --public-key", "yellow")
            )
    if wanted.report is not None:
        blocks.append(_write_report(found, wanted, data))
    out.show(data, *blocks)
    return BAD if problems else GOOD


def _write_report(found: Offline, wanted: Wanted, data: dict[str, Any]) -> Line:
    assert wanted.report is not None
    about = {
        "source": str(found.path), "anchor": wanted.anchor.checkpoint.head_seq if wanted.anchor else None,
        "public_key_given": wanted.public_key.hex() if wanted.public_key else None,
    }  # fmt: skip
    log_id = found.keys.log_id if found.keys else View(found.store.live(VIEW)).get(b"mlog_id")
    # No floats in anything that is signed.
    report.write(wanted.report, {**about, **data, "seconds": str(data["seconds"])}, log_id, found.keys)
    if found.keys is None:
        return Line(f"report written to {wanted.report}, unsigned: that needs the master key (--key-file)", "yellow")
    return Line(f"report written to {wanted.report}, signed by the log's key", "green")


def _verdict(result: Report, problems: list[Problem], seconds: float) -> Line:
    speed = f", {result.records / seconds:,.0f} records/s" if seconds > 1 else ""
    if not problems:
        return Line(
            f"ok: {result.records} records, {result.checkpoints} signed checkpoints, head {result.offset}{speed}", "green"
        )
    where = f"good up to offset {result.offset}" if result.problems else "the log itself is good"
    return Line(f"NOT OK: {len(problems)} problems, {where}{speed}", "bold red")


def problem_lines(problems: list[Problem]) -> list[Block]:
    lines: list[Block] = []
    for problem in problems:
        where = "" if problem.offset == NOWHERE else f"offset {problem.offset}: "
        lines.append(Line(f"  {where}{problem.what}", "red"))
        lines.append(Line(f"    {problem.advice}", "dim"))
    return lines


def _verify_live(arguments: argparse.Namespace, out: Output) -> int:
    from memos_client import Kernel

    with Kernel.connect(arguments.socket) as kernel:
        reply = kernel.sys_verify(full=arguments.full)
    style = "green" if reply.ok else "bold red"
    blocks: list[Block] = [Line(f"{'ok' if reply.ok else 'NOT OK'}: {reply.records} records, good up to {reply.offset}", style)]
    out.show(reply, *blocks, *(Line(f"  {problem}", "red") for problem in reply.problems))
    return GOOD if reply.ok else BAD


# -- receipts ----------------------------------------------------------------------------------------------------------


def receipt_bytes(path: Path) -> bytes:
    """A receipt from a file: as bytes, in hexadecimal or base64, or inside the JSON that memsh prints."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Trouble(f"cannot read the receipt: {error}") from error
    if data[:1] >= b"\x80":
        return data
    text = data.decode(errors="replace").strip()
    try:
        found: Any = json.loads(text)
    except ValueError:
        found = text
    while isinstance(found, dict):
        found = next((found[name] for name in ("report", "receipt", "base64") if name in found), None)
    for decode in (bytes.fromhex, base64.b64decode):
        try:
            return decode(found)
        except (ValueError, TypeError):
            continue
    raise Trouble(f"{path} holds no receipt: give the bytes that mem_shred answered, or the JSON line of `memsh --json shred`")


def receipt_problems(found: Offline, data: bytes, public_key: bytes | None) -> tuple[Receipt | None, list[Problem]]:
    """Whether what a receipt says happened, and is still so."""
    forged = "Do not accept it; ask for the one that the kernel answered."
    try:
        receipt = read_receipt(data)
    except Damaged as error:
        return None, [Problem(NOWHERE, f"the receipt is not genuine: {error}", forged)]
    view = View(found.store.live(VIEW))
    at = receipt.seq
    if receipt.log_id != view.get(b"mlog_id"):
        return receipt, [Problem(NOWHERE, "the receipt is of another log", "Check it against the directory that it came from.")]
    if receipt.public_key != (public_key or view.get(b"mpublic_key")):
        return receipt, [Problem(NOWHERE, "the receipt is signed by another key than this log's", forged)]
    item = offline.item_at(found.log, at)
    if item is None or item.hash != receipt.record_hash:
        what = (
            "the log does not hold the record of the receipt"
            if item is None
            else "the receipt names another record than the log holds"
        )
        return receipt, [Problem(at, what, "The log was cut back or rewritten after the erasure: restore it, and erase again.")]
    record = item.record()
    if not any(event.name == ev.SHREDDED for event in record.events):
        return receipt, [Problem(at, "the receipt's record is not an erasure", forged)]
    if shredded_by(view, record) != receipt.cubes:
        return receipt, [Problem(at, "the view does not list the receipt's cubes as erased there", "Run `memctl check`.")]
    return receipt, _remains(found, view, receipt)


def _remains(found: Offline, view: View, receipt: Receipt) -> list[Problem]:
    """What of the erased cubes could still be opened."""
    if found.keystore is None or found.segment_keys is None:
        return [Problem(receipt.seq, "the receipt's keys were not looked up", "Pass the master key (--key-file).")]
    problems: list[Problem] = []
    restart = "Start the kernel: it finishes every erasure before it serves."
    index = found.store.live(INDEX)
    for cube_id in receipt.cubes:
        cube = view.cube(cube_id)
        slots = {cube.slot} if cube is not None and cube.slot is not None else set[Slot]()
        slots |= {decode_version(row)[0].slot for _key, row in view.scan(b"v" + cube_id)}
        name = text_id(cube_id)
        if cube is None or cube.state != lifecycle.SHREDDED:
            problems.append(Problem(receipt.seq, f"cube {name} of the receipt is not erased", "Run `memctl check`."))
        if any(_holds_key(found.keystore, slot) for slot in slots):
            problems.append(Problem(receipt.seq, f"a key of cube {name} of the receipt still exists", restart))
        for key, _value in index.scan(b"i" + cube_id):
            segment = index.get(b"g" + key[17:])
            if segment is not None and _holds_key(found.segment_keys, Slot(*unpack(segment)[:2])):
                number = int.from_bytes(key[17:], "big")
                problems.append(Problem(receipt.seq, f"index segment {number} still lists cube {name} of the receipt", restart))
    return problems


def _holds_key(keystore: Keystore, slot: Slot) -> bool:
    try:
        return keystore.key(slot) is not None
    except Damaged:
        # What is there opens nothing, but it was not overwritten either.
        return True


# -- anchors -----------------------------------------------------------------------------------------------------------


def newest_checkpoint(log: EventLog, view: View) -> Checkpoint | None:
    """The newest signed checkpoint in the log: where the view says, or found by walking."""
    stored = view.get(META_CHECKPOINT)
    start = unpack(stored)[0] if stored is not None else 0
    newest: Checkpoint | None = None
    for item in offline.walk(log, start):
        if ev.CHECKPOINT.encode() in item.raw:
            for event in item.record().events:
                if event.name == ev.CHECKPOINT:
                    newest = Checkpoint(*event.fields)
    return newest


def anchor_json(anchor: Anchor) -> dict[str, Any]:
    fields: dict[str, Any] = anchor.checkpoint._asdict()
    return {
        "kind": KIND, "format": crypto.FORMAT, "log_id": anchor.log_id.hex(), "public_key": anchor.public_key.hex(),
        "checkpoint": {name: value.hex() if name in _HEX else value for name, value in fields.items()},
    }  # fmt: skip


def read_anchor(path: Path) -> Anchor:
    """An anchor file, its signature checked."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["kind"] != KIND or raw["format"] != crypto.FORMAT:
            raise ValueError("it is of another kind or format")
        fields: dict[str, Any] = {
            name: bytes.fromhex(value) if name in _HEX else int(value) for name, value in raw["checkpoint"].items()
        }
        anchor = Anchor(bytes.fromhex(raw["log_id"]), bytes.fromhex(raw["public_key"]), Checkpoint(**fields))
    except OSError as error:
        raise Trouble(f"cannot read the anchor: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Trouble(f"{path} is not an anchor ({error}); make one with `memctl anchor DIR --out {path}`") from error
    checkpoint = anchor.checkpoint
    if not crypto.verify_signature(anchor.public_key, checkpoint.signature, checkpoint.signed_bytes(anchor.log_id)):
        raise Trouble(f"the signature of the anchor {path} is wrong: the file was changed")
    return anchor


def anchor_problems(log: EventLog, anchor: Anchor, progress: Progress | None = None) -> list[Problem]:
    """Whether the log still holds what was signed; walks the chain from the first record."""
    advice = "Restore the data directory from a backup; the anchor says what was there."
    wanted = anchor.checkpoint
    hash_, next_seq = crypto.ZERO_HASH, 0
    try:
        for data in log.frames(0):
            frame = ev.decode_frame(data)
            if frame.log_id != anchor.log_id:
                return [Problem(frame.first_seq, "this is another log than the anchor's", "Compare it with its own anchor.")]
            if frame.first_seq != next_seq or frame.prev_hash != hash_:
                return [Problem(frame.first_seq, "the chain is broken here, before the anchor", advice)]
            for raw in frame.records:
                hash_ = crypto.record_hash(hash_, raw)
                if next_seq == wanted.head_seq:
                    if hash_ != wanted.head_hash:
                        what = "this is not the record that the anchor signed: the log was rewritten"
                        return [Problem(next_seq, what, advice)]
                    return []
                next_seq += 1
            if progress is not None:
                progress(next_seq)
    except Damaged as error:
        return [Problem(next_seq, f"the frame cannot be read: {error}", advice)]
    return [
        Problem(
            next_seq, f"the log ends at {next_seq - 1}, the anchor signed offset {wanted.head_seq}: it was cut back", advice
        )
    ]


def anchor(arguments: argparse.Namespace, out: Output) -> int:
    with offline.opened(arguments.source, Keys(none=True)) as found:
        view = View(found.store.live(VIEW))
        if arguments.check is not None:
            kept = read_anchor(arguments.check)
            with out.progress("walking the chain", kept.checkpoint.head_seq + 1) as progress:
                problems = anchor_problems(found.log, kept, progress)
            at = kept.checkpoint.head_seq
            good = Line(f"ok: the log holds offset {at} as it was signed, and everything before it", "green")
            data = {"ok": not problems, "offset": at, "problems": [problem._asdict() for problem in problems]}
            out.show(data, *(problem_lines(problems) or [good]))
            return BAD if problems else GOOD
        try:
            newest = newest_checkpoint(found.log, view)
        except Damaged as error:
            raise Trouble(f"the log cannot be read: {error}; run `memctl check {arguments.source}`") from error
        log_id, public_key = view.get(b"mlog_id"), view.get(b"mpublic_key")
        if newest is None or log_id is None or public_key is None:
            raise Trouble(
                "the log holds no signed checkpoint yet; the kernel signs one a second after a write, and when it stops"
            )
        data = anchor_json(Anchor(log_id, public_key, newest))
    if arguments.out is None:
        out.show(data, Line(json.dumps(data, indent=2)))
    else:
        try:
            arguments.out.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise Trouble(f"cannot write the anchor: {error}") from error
        out.show(
            data, Line(f"anchor of offset {newest.head_seq} written to {arguments.out}; keep it on another machine", "green")
        )
    return GOOD


def _hex(text: str, size: int, name: str) -> bytes:
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != size:
        raise Trouble(f"{name} takes {size * 2} hexadecimal digits")
    return value
