"""verify and anchor: that a log is whole, that nothing was cut off its end, and that an erasure happened.

- `verify` walks the log once, and compares every ciphertext with what its record commits to; with the master key it also
  checks MACs, the log's own public key and the checkpoint that the key store remembers. Without it, chain and signatures are
  checked against `--public-key`, or against the key that the log itself names, which finds damage but not a log that somebody
  made anew from its first record. `--report` keeps what it found in a file (report.py).
- an *anchor* is the newest signed checkpoint as JSON, kept elsewhere: it finds a log that was cut back or rewritten.
- a *receipt* is what mem_shred answered (receipts.py).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

from memos_drivers.stores.base import PAYLOAD, VIEW
from memos_kernel import crypto
from memos_kernel import events as ev
from memos_kernel.answers import Receipt
from memos_kernel.eventlog.base import EventLog
from memos_kernel.events import Checkpoint, Damaged, unpack
from memos_kernel.governance import text_id
from memos_kernel.offline import Offline
from memos_kernel.state import META_CHECKPOINT, View
from memos_kernel.verify import Problem, Progress, Report, verify_full, verify_log

from . import offline, receipts, report
from .commitments import Commitments
from .output import BAD, GOOD, Output, Trouble
from .receipts import NOWHERE
from .render import Block, Line, time_text

KIND: Final = "memos anchor"
RACE_TRIES: Final = 5
TORN_SHOWN: Final = 3
ODD_SHOWN: Final = 10
RACE_SECONDS: Final = 0.2
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
        return report.check(arguments.check_report, offline.from_hex(arguments.public_key, 32, "--public-key"), out)
    if arguments.socket is not None:
        if arguments.report is not None:
            raise Trouble("a running kernel's answer is not a report; name its data directory instead of --socket")
        return _verify_live(arguments, out)
    if arguments.source is None:
        raise Trouble("name a data directory, or a kernel with --socket")
    anchor = read_anchor(arguments.anchor) if arguments.anchor else None
    receipt = receipts.read(arguments.receipt) if arguments.receipt else None
    source, keys = arguments.source, offline.keys_of(arguments)
    for left in reversed(range(RACE_TRIES)):
        with offline.opened(source, keys, out, need_key=arguments.full) as found:
            newest = found.keystore.newest_checkpoint if found.keystore else None
            if newest is not None and newest.head_seq > offline_head(found) and offline.holder(found.path) and left:
                # A live kernel signed it between our opening of the log and of the key store.
                time.sleep(RACE_SECONDS)
                continue
            return _verify(found, Wanted(keys.public, anchor, receipt, arguments.full, arguments.report), newest, out)
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
    extra += torn_problems(found)
    commitments = Commitments(found.store.live(PAYLOAD), found.piece_offset)
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
    left = 0
    if wanted.receipt is not None:
        receipt, wrong, left = receipts.problems(found, wanted.receipt, given or own)
        extra += wrong
    known = {problem.offset for problem in result.problems}
    extra += [problem for problem in commitments.problems if not wanted.full or problem.offset not in known]
    problems = [*result.problems, *extra]
    data: dict[str, Any] = {
        "ok": not problems, "records": result.records, "offset": result.offset, "head_hash": result.head_hash.hex(),
        "claims": result.claims, "checkpoints": result.checkpoints, "digests": result.digests, "payloads": commitments.checked,
        "state_digest": result.digest.hex() if result.digest else None,
        "macs_checked": found.keys is not None, "full": wanted.full, "seconds": round(seconds, 3),
        "problems": [problem_json(found, problem) for problem in problems],
    }  # fmt: skip
    blocks: list[Block] = [_verdict(result, problems, seconds)]
    blocks += problem_lines(problems, found)
    if receipt is not None:
        cubes = [text_id(cube_id) for cube_id in receipt.cubes]
        gone_by = None if receipt.erasure is None else time_text(receipt.erasure.gone_by)
        data["receipt"] = {"offset": receipt.seq, "cubes": cubes, "gone_by": gone_by, "remains": left}
        if not wrong:
            blocks += receipts.lines(receipt, left)
    if found.is_topic:
        data["topic"] = _topic_json(found)
        blocks += _topic_lines(found)
    if found.keys is None:
        mirrored = found.log.kind == "kafka" and not found.is_topic
        where = "this directory mirrors a topic, which has the keys: name the topic" if mirrored else "--key-file"
        blocks.append(Line(f"without the master key, MACs and the key store were not checked ({where})", "yellow"))
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
        "source": found.source, "anchor": wanted.anchor.checkpoint.head_seq if wanted.anchor else None,
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


def problem_json(found: Offline, problem: Problem) -> dict[str, Any]:
    """With the offset of its frame in the topic, if it is in one."""
    at = None if problem.offset == NOWHERE else found.topic_offset(problem.offset)
    return problem._asdict() | ({} if at is None else {"topic_offset": at})


def problem_lines(problems: list[Problem], found: Offline | None = None) -> list[Block]:
    lines: list[Block] = []
    for problem in problems:
        at = None if found is None or problem.offset == NOWHERE else found.topic_offset(problem.offset)
        frame = "" if at is None else f" (in the topic's message {at})"
        where = "" if problem.offset == NOWHERE else f"offset {problem.offset}{frame}: "
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


# -- topics ------------------------------------------------------------------------------------------------------------


def torn_problems(found: Offline) -> list[Problem]:
    """Where messages of the topic prove that others are missing or changed. One gap leaves everything after it torn off."""
    advice = "Restore the topic from a backup; `memctl replay --to OFFSET --into DIR` saves what is whole."
    problems = [] if found.view_problem is None else [Problem(NOWHERE, found.view_problem, "Run `memctl verify --full`.")]
    torn = [one for one in found.oddities if one.torn]
    for one in torn[:TORN_SHOWN]:
        where = f"the message at topic offset {one.topic_offset}" if one.topic_offset >= 0 else "the topic"
        problems.append(Problem(one.offset, f"{where} {one.what}", advice))
    more = found.counts["torn"] - len(torn[:TORN_SHOWN])
    if more:
        problems.append(Problem(NOWHERE, f"{more} messages after them do not follow either", advice))
    return problems


def _topic_json(found: Offline) -> dict[str, Any]:
    messages = [one._asdict() for one in found.oddities]
    return {kind: found.counts[kind] for kind in ("void", "suspect", "foreign", "torn")} | {
        "unproven": found.unproven, "messages": messages,
    }  # fmt: skip


def _topic_lines(found: Offline) -> list[Block]:
    """What in a topic is worth knowing, and no problem: who may write to it can put anything there, and it does not count."""
    lines: list[Block] = []
    odd = [one for one in found.oddities if one.kind in ("suspect", "foreign")]
    for one in odd[:ODD_SHOWN]:
        where = f"the message at topic offset {one.topic_offset}" if one.topic_offset >= 0 else "the topic"
        lines.append(Line(f"  does not count: {where} {one.what}", "yellow"))
    more = found.counts["suspect"] + found.counts["foreign"] - len(odd[:ODD_SHOWN])
    if more > 0:
        lines.append(Line(f"  does not count: {more} more such messages (--json lists some)", "yellow"))
    if odd:
        lines.append(Line("  no kernel of this log wrote these; find out who may write to the topic", "dim"))
    late = [one for one in found.oddities if one.kind == "void"]
    for one in late[:ODD_SHOWN]:
        lines.append(Line(f"  does not count: the message at topic offset {one.topic_offset} {one.what}", "dim"))
    if found.counts["void"] > len(late[:ODD_SHOWN]):
        lines.append(Line(f"  does not count: {found.counts['void'] - ODD_SHOWN} more that came late or twice", "dim"))
    if found.unproven is not None:
        what = f"records from {found.unproven} on are not covered by a signed checkpoint yet"
        lines.append(Line(f"{what}: only the master key tells which they are, and they were left out", "yellow"))
    return lines


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
    with offline.opened(arguments.source, offline.keys_of(arguments), out, log_only=True) as found:
        view = View(found.store.live(VIEW))
        if arguments.check is not None:
            kept = read_anchor(arguments.check)
            with out.progress("walking the chain", kept.checkpoint.head_seq + 1) as progress:
                problems = [*torn_problems(found), *anchor_problems(found.log, kept, progress)]
            at = kept.checkpoint.head_seq
            good = Line(f"ok: the log holds offset {at} as it was signed, and everything before it", "green")
            data = {"ok": not problems, "offset": at, "problems": [problem_json(found, problem) for problem in problems]}
            out.show(data, *(problem_lines(problems, found) or [good]))
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
