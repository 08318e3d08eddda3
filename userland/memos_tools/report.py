"""The report of a verification as a file: what was checked, what was found, signed by the log's own key when it is at hand.

A report is JSON. Its signature covers the MessagePack array `[1, "memos verify report", log_id, public_key, H(body)]`, where
body is the report without `signature`, as JSON with sorted keys, no spaces and only ASCII characters. A signature says that
somebody who held the log's keys ran this verification and that the file was not changed since; whoever does not trust the
holder of the keys verifies the log, not the report. Without the master key a report is written unsigned.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Final

from memos_kernel import __version__, crypto
from memos_kernel.chain import LogKeys
from memos_kernel.events import pack

from .output import BAD, GOOD, Output, Trouble
from .render import Line, time_text

KIND: Final = "memos verify report"


def write(path: Path, found: dict[str, Any], log_id: bytes | None, keys: LogKeys | None) -> None:
    body: dict[str, Any] = {
        "kind": KIND, "format": crypto.FORMAT, "verifier": f"memctl {__version__}", "time": time.time_ns(),
        "log_id": log_id.hex() if log_id else None, "public_key": keys.signer.public_key.hex() if keys else None, **found,
    }  # fmt: skip
    signature = keys.signer.sign(_signed_bytes(body)).hex() if keys else None
    try:
        path.write_text(json.dumps(body | {"signature": signature}, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise Trouble(f"cannot write the report: {error}") from error


def _signed_bytes(body: dict[str, Any]) -> bytes:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()
    ids = [bytes.fromhex(body["log_id"] or ""), bytes.fromhex(body["public_key"])]
    data: bytes = pack((crypto.FORMAT, KIND, *ids, crypto.sha256(canonical)))
    return data


def check(path: Path, public_key: bytes, out: Output) -> int:
    """Whether a report is what the log's key signed; what it found is shown either way."""
    try:
        report: Any = json.loads(path.read_text(encoding="utf-8"))
        if (report["kind"], report["format"]) != (KIND, crypto.FORMAT):
            raise ValueError("it is of another kind or format")
        body = {name: value for name, value in report.items() if name != "signature"}
        verdict, offset, when = bool(report["ok"]), int(report["offset"]), time_text(int(report["time"]))
        problem = _problem(body, report["signature"], public_key)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Trouble(f"cannot read the report {path}: {error}; make one with `memctl verify DIR --report {path}`") from error
    if problem is not None:
        out.show({"ok": False, "problem": problem}, Line(f"NOT GENUINE: {problem}", "bold red"))
        return BAD
    said = f"{'ok' if verdict else 'NOT OK'}, good up to offset {offset}, {report.get('checkpoints')} signed checkpoints"
    out.show(body | {"genuine": True}, Line(f"genuine: at {when} the log's key signed: {said}", "green" if verdict else "red"))
    return GOOD if verdict else BAD


def _problem(body: dict[str, Any], signature: str | None, public_key: bytes) -> str | None:
    if signature is None:
        return "the report is not signed: it was made without the master key; verify the log itself"
    if body["public_key"] != public_key.hex():
        return "the report names another public key than the one given; ask whose log it is about"
    if not crypto.verify_signature(public_key, bytes.fromhex(signature), _signed_bytes(body)):
        return "the signature is wrong: the report was changed, or another key signed it"
    return None
