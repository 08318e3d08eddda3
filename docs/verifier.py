"""Checks one MemOS proof: `python verifier.py PROOF.json PUBLIC_KEY_HEX`. One line; exit status 0 if it holds, else 1.

It needs Python and the `cryptography` package, and nothing of MemOS. Take the public key from a source that you trust,
never from the proof. docs/proofs.md says byte by byte what is checked here, what that proves, and what it does not.
"""

import json
import sys
import uuid
from hashlib import sha256
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

NAMES = "checkpoint cube_id format kind log_id offset path payload prev_hash principal public_key record signature time version"
SIZES = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4, 0xDC: 2, 0xDD: 4}


def unpack(data: bytes, at: int = 0) -> tuple[Any, int]:
    """The MessagePack value at a place, and the place after it. No maps, floats or negative numbers: a log has none."""
    tag, at = data[at], at + 1
    if tag < 0x80 or tag in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}.get(tag, tag), at
    size = 0 if 0x90 <= tag < 0xC0 else SIZES[tag]
    number, at = (int.from_bytes(data[at : at + size], "big") if size else tag & (31 if tag >= 0xA0 else 15)), at + size
    if 0xCC <= tag <= 0xCF:
        return number, at
    if 0xA0 <= tag < 0xDC:
        part = data[at : at + number]
        return (part if 0xC4 <= tag <= 0xC6 else part.decode()), at + number
    items: list[Any] = []
    for _ in range(number):
        item, at = unpack(data, at)
        items.append(item)
    return items, at


def fields_of(data: bytes, count: int, start: list[Any]) -> list[Any]:
    fields, end = unpack(data)
    need(type(fields) is list and len(fields) == count and end == len(data), "a structure has another form or length")
    need(fields[: len(start)] == start, "a structure is of another kind or log, or about something else")
    return [*fields]


def need(holds: bool, why: str) -> None:
    if not holds:
        raise ValueError(why)


def raw(text: str, size: int | None = None) -> bytes:
    data = bytes.fromhex(text)
    need(data.hex() == text and len(data) == (len(data) if size is None else size), "a field has a wrong size or form")
    return data


def check(proof: dict[str, Any], key: bytes) -> str:
    """What the proof proves; raises when it does not hold."""
    need(" ".join(sorted({*proof} - {"revealed"})) == NAMES and len(proof["payload"]) == 3, "a field is missing or too much")
    numbers = [proof["format"], proof["version"], proof["offset"], proof["time"], proof["payload"]["bytes"]]
    need({type(n) for n in numbers} == {int} and isinstance(proof["path"], list), "a number or the path is no such thing")
    need([proof["kind"], proof["format"]] == ["memos proof", 1], "it is not a memos proof of format 1")
    need(raw(proof["public_key"], 32) == key, "it names another public key")
    log_id, public = raw(proof["log_id"], 16), Ed25519PublicKey.from_public_bytes(key)
    public.verify(raw(proof["signature"], 64), raw(proof["checkpoint"]))
    checkpoint = fields_of(raw(proof["checkpoint"]), 9, [1, "memos checkpoint", log_id])
    record_hash = sha256(raw(proof["prev_hash"], 32) + sha256(raw(proof["record"])).digest()).digest()
    node = sha256(b"\0" + record_hash).digest()
    for side, neighbour in proof["path"]:
        node = sha256(b"\1" + {"left": raw(neighbour, 32) + node, "right": node + raw(neighbour, 32)}[side]).digest()
    need(node == checkpoint[5], "the path does not lead from the record to the checkpoint's Merkle root")
    _, seq, _, time, principal, _, _, _, events = fields_of(raw(proof["record"]), 9, [1])
    need([proof["offset"], proof["time"], proof["principal"]] == [seq, time, principal], "offset, time or principal differs")
    need(seq <= checkpoint[3], "the record is younger than the checkpoint")
    cube, payload = uuid.UUID(proof["cube_id"]), list[Any]()
    for name, schema, fields, _ in events:
        if [name, schema, *fields[:1]] == ["cube.allocated", 1, cube.bytes] and proof["version"] == 1:
            payload = fields[4]
        elif [name, schema, *fields[:2]] == ["cube.written", 1, cube.bytes, proof["version"]]:
            payload = fields[3]
    need(len(payload) == 5 and str(cube) == proof["cube_id"], "the record does not make this version")
    said = [raw(proof["payload"]["id"], 16), proof["payload"]["bytes"], raw(proof["payload"]["digest"], 32)]
    need(said == payload[:3], "the record commits to another payload")
    line = f"proven: {cube}@{proof['version']} was made at offset {seq}, time {time} ns, by {principal}"
    if "revealed" in proof:
        parts = {name: raw(text) for name, text in proof["revealed"].items()}
        need(set(parts) == {"ciphertext", "content", "private", "statement", "signature"}, "the revealed fields are others")
        public.verify(parts["signature"], parts["statement"])
        need([len(parts["content"]), sha256(parts["ciphertext"]).digest()] == said[1:], "the ciphertext is not the record's")
        hashes = [sha256(parts[name]).digest() for name in ("content", "private")]
        fields_of(parts["statement"], 8, [1, "memos disclosure", log_id, record_hash, cube.bytes, proof["version"], *hashes])
        line += f"; its signer says that it holds the {said[1]} bytes with SHA-256 {hashes[0].hex()}"
    return line


if __name__ == "__main__":
    try:
        with open(sys.argv[1], encoding="utf-8") as file:
            print(check(json.load(file), bytes.fromhex(sys.argv[2])))
    except Exception as error:
        sys.exit(f"NOT PROVEN: {error!r}")
