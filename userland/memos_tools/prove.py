"""prove: that the log's signer committed to a version of a cube, in a file that a stranger can check without us.

A proof holds the stored bytes of the record that made the version, its place under the next signed checkpoint and the
checkpoint's own signed bytes. `check` needs the proof and a public key from a source that one trusts, and nothing else;
docs/verifier.py does the same in a hundred lines of its own, and docs/proofs.md says byte by byte what is proven and
what is not.

- Whatever a proof says in words (cube, version, offset, time, who, payload) is compared with the signed bytes.
- With `--reveal` it also carries the ciphertext, the plaintext and a *disclosure*: `[1, "memos disclosure", log_id,
  record_hash, cube_id, version, H(content), H(private part)]`, signed by the log's key. No key leaves the key store.
- A version that no checkpoint covers yet is not proven, and the command says so (exit status 1).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Final, NamedTuple

from memos_drivers.stores.base import VIEW
from memos_kernel import crypto, private
from memos_kernel import events as ev
from memos_kernel.eventlog.base import EventLog
from memos_kernel.events import Checkpoint, Damaged, pack, unpack
from memos_kernel.governance import raw_id, text_id
from memos_kernel.offline import Offline
from memos_kernel.state import META_APPLIED, Version, View
from memos_kernel.upcast import current
from memos_syscalls import limits
from memos_syscalls.errors import MemError

from . import offline
from .logview import private_fields
from .offline import Item
from .output import BAD, GOOD, Output, Trouble
from .render import Block, Line, Rows, content_text, time_text

KIND: Final = "memos proof"
CHECKPOINT: Final = "memos checkpoint"
DISCLOSURE: Final = "memos disclosure"
_WORDS: Final = frozenset({
    "kind", "format", "cube_id", "version", "offset", "time", "principal", "payload", "log_id", "public_key", "record",
    "prev_hash", "path", "checkpoint", "signature",
})  # fmt: skip
_PAYLOAD: Final = frozenset(("id", "bytes", "digest"))
_REVEALED: Final = frozenset(("ciphertext", "content", "private", "statement", "signature"))


class Refused(Exception):
    """The proof does not hold; the message says why."""


class Checked(NamedTuple):
    """What a proof that holds proves."""

    cube_id: bytes
    version: int
    offset: int
    time: int
    principal: str
    checkpoint: int
    """Offset that the checkpoint signs."""
    revealed: bool


# -- making ------------------------------------------------------------------------------------------------------------


def command(arguments: argparse.Namespace, out: Output) -> int:
    if arguments.check is not None:
        return _check(arguments, out)
    if arguments.source is None or arguments.subject is None:
        raise Trouble("name a data directory and CUBE@VERSION, or a proof with --check")
    cube_id, version = _subject(arguments.subject)
    keys = offline.keys_of(arguments)
    with offline.opened(arguments.source, keys, out, need_key=arguments.reveal) as found:
        view = View(found.store.live(VIEW))
        if view.get(META_APPLIED) is None:
            view = offline.replayed(found.log, None).view
        row, sealed = _version(view, cube_id, version)
        item = offline.item_at(found.log, row.seq)
        if item is None:
            raise Trouble(f"the log does not hold offset {row.seq}, which made this version; run `memctl verify`")
        window = window_of(found.log, row.seq)
        if window is None:
            what = f"version {version} is unproven yet: no signed checkpoint covers offset {row.seq}"
            advice = "wait a second, or stop the kernel: both make it sign one; `memctl snapshot` too"
            out.show({"proven": False, "offset": row.seq, "problem": f"{what}; {advice}"}, Line(f"{what}; {advice}", "yellow"))
            return BAD
        key = found.keys.signer.public_key if found.keys else view.get(b"mpublic_key")
        proof = proof_json(item, row, window, key or b"")
        if arguments.reveal:
            proof["revealed"] = revealed(found, item, row, sealed)
    try:
        check(proof, key or b"")
    except Refused as error:
        raise Trouble(f"the log does not bear out this version: {error}; run `memctl verify`") from error
    _deliver(proof, arguments.out, out, text_id(cube_id) if row.cube_id != cube_id else None)
    return GOOD


def _subject(text: str) -> tuple[bytes, int]:
    cube, _, version = text.partition("@")
    try:
        found = raw_id(cube), int(version)
    except (ValueError, MemError):
        found = b"", 0
    if len(found[0]) != crypto.ID_BYTES or not 1 <= found[1] < 2**32:
        raise Trouble(f"{text} does not name a version; write CUBE@VERSION, such as {text_id(bytes(16))}@1")
    return found


def _version(view: View, cube_id: bytes, version: int) -> tuple[Version, bytes]:
    cube = view.cube(cube_id)
    if cube is None:
        raise Trouble(f"there never was a cube {text_id(cube_id)}; `memctl log tail` shows ids")
    found = view.version(cube, version) if version <= cube.version else None
    if found is None:
        raise Trouble(f"cube {text_id(cube_id)} has no version {version}; its newest is {cube.version}")
    return found


class Window(NamedTuple):
    """The records under one checkpoint, and the place of one of them."""

    leaves: list[bytes]
    at: int
    log_id: bytes
    checkpoint: Checkpoint


def window_of(log: EventLog, seq: int) -> Window | None:
    """The leaves of the tree that record `seq` is in; None when no checkpoint covers it yet."""
    back = limits.CHECKPOINT_RECORDS + 2
    while True:
        start = max(0, seq - back)
        leaves: list[bytes] = []
        first = 0 if start == 0 else None
        for item in offline.walk(log, start):
            checkpoint = _checkpoint(item)
            if checkpoint is not None and item.seq > seq:
                if first is None:
                    break
                return Window(leaves, seq - first, item.frame.log_id, checkpoint)
            if checkpoint is not None:
                leaves, first = [], item.seq
            leaves.append(item.hash)
        else:
            return None
        # The checkpoint before lies farther back.
        back *= 2


def _checkpoint(item: Item) -> Checkpoint | None:
    if ev.CHECKPOINT.encode() not in item.raw:
        return None
    return next((Checkpoint(*event.fields) for event in item.record().events if event.name == ev.CHECKPOINT), None)


def proof_json(item: Item, row: Version, window: Window, public_key: bytes) -> dict[str, Any]:
    record = item.record()
    path = [["left" if left else "right", hash_.hex()] for left, hash_ in crypto.merkle_path(window.leaves, window.at)]
    return {
        "kind": KIND, "format": crypto.FORMAT,
        "cube_id": text_id(row.cube_id), "version": row.version,
        "offset": item.seq, "time": record.time, "principal": record.principal,
        "payload": {"id": row.payload_id.hex(), "bytes": row.payload_bytes, "digest": row.payload_digest.hex()},
        "log_id": window.log_id.hex(), "public_key": public_key.hex(),
        "record": item.raw.hex(), "prev_hash": item.prev.hex(), "path": path,
        "checkpoint": window.checkpoint.signed_bytes(window.log_id).hex(), "signature": window.checkpoint.signature.hex(),
    }  # fmt: skip


def revealed(found: Offline, item: Item, row: Version, sealed: bytes) -> dict[str, Any]:
    """Ciphertext, plaintext, and the signer's word that the one opens to the other."""
    if found.keys is None or found.vault is None:
        raise Trouble("--reveal needs the keys: name a directory with a key store, or pass --key-file")
    try:
        # What stands in the record need not stand in the view as well.
        made = (one for event in item.record().events if (one := _made(event)))
        inline = next((one[2][4] for one in made if one[:2] == (row.cube_id, row.version)), None)
        pieces = found.vault.sealed_payload(row) if inline is None else [inline]
        content = found.vault.open_payload(row, pieces)
        part = private.encode(found.vault.open_private(row, sealed))
    except MemError as error:
        raise Trouble("this version was erased: nobody can reveal it; leave out --reveal to prove its record") from error
    statement = pack(
        (
            crypto.FORMAT, DISCLOSURE, found.keys.log_id, item.hash, row.cube_id, row.version,
            crypto.sha256(content), crypto.sha256(part),
        )
    )  # fmt: skip
    parts = {
        "ciphertext": b"".join(pieces), "content": content, "private": part, "statement": statement,
        "signature": found.keys.signer.sign(statement),
    }  # fmt: skip
    return {name: value.hex() for name, value in parts.items()}


def _deliver(proof: dict[str, Any], to: Path | None, out: Output, fork: str | None) -> None:
    text = json.dumps(proof, indent=2)
    if to is None:
        out.show(proof, Line(text))
        return
    try:
        to.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise Trouble(f"cannot write the proof: {error}") from error
    blocks: list[Block] = []
    if fork is not None:
        blocks.append(Line(f"{fork} inherited this version: the proof is of the record that made it", "yellow"))
    what = f"{proof['cube_id']}@{proof['version']}, made at offset {proof['offset']}"
    blocks.append(Line(f"proof of {what}, written to {to}", "green"))
    blocks.append(Line(f"check it with: memctl prove --check {to} --public-key HEX", "dim"))
    out.show(proof, *blocks)


# -- checking ----------------------------------------------------------------------------------------------------------


def check(proof: Any, public_key: bytes) -> Checked:
    """What a proof proves of the log whose key this is; raises `Refused`."""
    if type(proof) is not dict or (proof.get("kind"), proof.get("format")) != (KIND, crypto.FORMAT):
        raise Refused("it is not a memos proof of format 1")
    payload = proof.get("payload")
    if {*proof} - {"revealed"} != {*_WORDS} or type(payload) is not dict or {*payload} != {*_PAYLOAD}:
        raise Refused("a field is missing, or there is one too many")
    numbers = [proof["format"], proof["version"], proof["offset"], proof["time"], payload["bytes"]]
    if any(type(number) is not int for number in numbers):
        # JSON's true and 1.0 are equal to 1, and say something else.
        raise Refused("a number is not a whole number")
    if _bytes(proof["public_key"], crypto.KEY_BYTES) != public_key:
        raise Refused("it names another public key than the one given")
    log_id = _bytes(proof["log_id"], crypto.ID_BYTES)
    checkpoint = _signed(_bytes(proof["checkpoint"]), _bytes(proof["signature"]), CHECKPOINT, 9, log_id, public_key)
    raw, prev = _bytes(proof["record"]), _bytes(proof["prev_hash"], crypto.HASH_BYTES)
    hash_ = crypto.record_hash(prev, raw)
    if crypto.merkle_climb(hash_, _path(proof["path"])) != checkpoint[5]:
        raise Refused("the record is not under the checkpoint: its path leads to another root")
    try:
        record = current(ev.decode_record(raw))
        made = next(one for event in record.events if (one := _made(event)) and one[:2] == _named(proof))
    except (Damaged, StopIteration) as error:
        raise Refused("the record does not make the version that the proof names") from error
    said = [proof["offset"], proof["time"], proof["principal"]]
    if said != [record.seq, record.time, record.principal]:
        raise Refused("the record's offset, time or principal is another than the proof says")
    if record.seq > checkpoint[3]:
        raise Refused("the record is younger than the checkpoint")
    payload_id, size, digest, _slot, _inline = made[2]
    if (payload["id"], payload["bytes"], payload["digest"]) != (payload_id.hex(), size, digest.hex()):
        raise Refused("the record commits to another payload than the proof says")
    if "revealed" in proof:
        _check_revealed(proof["revealed"], (size, digest), [log_id, hash_, made[0], made[1]], public_key)
    return Checked(made[0], made[1], record.seq, record.time, record.principal, checkpoint[3], "revealed" in proof)


def _bytes(text: Any, size: int | None = None) -> bytes:
    try:
        data = bytes.fromhex(text)
    except (TypeError, ValueError):
        raise Refused("a field is not hexadecimal") from None
    # One form only, so that no two files hold the same proof.
    if data.hex() != text or (size is not None and len(data) != size):
        raise Refused("a field is not of its size, or not in lower case")
    return data


def _path(steps: Any) -> list[tuple[bool, bytes]]:
    if type(steps) is not list or any(type(s) is not list or len(s) != 2 or s[0] not in ("left", "right") for s in steps):
        raise Refused("the path is not a list of sides and hashes")
    return [(side == "left", _bytes(hash_, crypto.HASH_BYTES)) for side, hash_ in steps]


def _signed(data: bytes, signature: bytes, kind: str, count: int, log_id: bytes, public_key: bytes) -> list[Any]:
    """The fields of signed bytes."""
    if not crypto.verify_signature(public_key, signature, data):
        raise Refused(f"the signature over the {kind.removeprefix('memos ')} is wrong")
    try:
        fields = unpack(data)
    except Damaged as error:
        raise Refused(f"what is signed is {error}") from error
    if type(fields) is not list or len(fields) != count or fields[:3] != [crypto.FORMAT, kind, log_id]:
        raise Refused(f"what is signed is not a {kind.removeprefix('memos ')} of this log")
    return fields


def _made(event: ev.Event) -> tuple[bytes, int, list[Any]] | None:
    """`(cube id, version, payload)` of an event that made a version."""
    if event.name == ev.ALLOCATED:
        return event.fields[0], 1, event.fields[4]
    return (event.fields[0], event.fields[1], event.fields[3]) if event.name == ev.WRITTEN else None


def _named(proof: dict[str, Any]) -> tuple[bytes, int]:
    cube_id, version = proof["cube_id"], proof["version"]
    if type(cube_id) is not str or len(cube_id) != 36:
        raise Refused("it does not name a cube and a version")
    raw = _bytes(cube_id.replace("-", ""), crypto.ID_BYTES)
    if text_id(raw) != cube_id:
        raise Refused("it does not name a cube and a version")
    return raw, version


def _check_revealed(revealed: Any, payload: tuple[int, bytes], about: list[Any], public_key: bytes) -> None:
    if type(revealed) is not dict or revealed.keys() != _REVEALED:
        raise Refused("what is revealed lacks a field, or has one too many")
    parts = {name: _bytes(value) for name, value in revealed.items()}
    if crypto.sha256(parts["ciphertext"]) != payload[1]:
        raise Refused("the ciphertext is not the one that the record commits to")
    if len(parts["content"]) != payload[0]:
        raise Refused("the content is not as long as the record says")
    said = _signed(parts["statement"], parts["signature"], DISCLOSURE, 8, about[0], public_key)
    if said[2:] != [*about, crypto.sha256(parts["content"]), crypto.sha256(parts["private"])]:
        raise Refused("the disclosure is about something else than what is revealed")


def _check(arguments: argparse.Namespace, out: Output) -> int:
    if arguments.public_key is None:
        raise Trouble("--check needs --public-key HEX, from a source that you trust: `memctl verify` and sys_info show it")
    try:
        public_key = bytes.fromhex(arguments.public_key)
    except ValueError:
        raise Trouble("--public-key takes 64 hexadecimal digits") from None
    try:
        proof: Any = json.loads(arguments.check.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise Trouble(f"cannot read the proof: {error}; name a file that `memctl prove --out` wrote") from error
    try:
        checked = check(proof, public_key)
    except Refused as error:
        out.show({"ok": False, "problem": str(error)}, Line(f"NOT PROVEN: {error}; do not rely on it", "bold red"))
        return BAD
    data: dict[str, Any] = {"ok": True, **checked._asdict(), "cube_id": text_id(checked.cube_id)}
    what = f"version {checked.version} of cube {text_id(checked.cube_id)} was made at offset {checked.offset}"
    when = f"{time_text(checked.time)} by {checked.principal}, under the checkpoint of offset {checked.checkpoint}"
    blocks: list[Block] = [Line(f"proven: {what}, {when}", "green")]
    if checked.revealed:
        data |= _opened(proof["revealed"])
        blocks.append(Line("the log's signer says that its ciphertext opens to this:", "dim"))
        blocks.append(Rows(("field", "value"), [(name, content_text(_shown(data[name]))) for name in ("private", "content")]))
    out.show(data, *blocks)
    return GOOD


def _opened(revealed: dict[str, str]) -> dict[str, Any]:
    content = bytes.fromhex(revealed["content"])
    try:
        shown: str | bytes = content.decode()
    except UnicodeDecodeError:
        shown = content
    try:
        part: Any = private_fields(private.decode(bytes.fromhex(revealed["private"])))
    except Damaged:
        part = "(not a private part of format 1)"
    return {"content": shown, "private": part}


def _shown(value: Any) -> str | bytes:
    return value if isinstance(value, str | bytes) else json.dumps(value, ensure_ascii=False, default=str)
