"""Forged proofs: whatever is changed, swapped or passed off as something else, neither checker takes it.

Both checkers see every forgery: ours (memos_tools/prove.py) and the independent one (docs/verifier.py). The attacker has
every proof of two logs and may sign with a key of his own, but not with the log's.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.inside import Inside

from memos_kernel import crypto
from memos_kernel import events as ev
from memos_kernel.events import pack, unpack
from memos_tools import ctl, prove

VERIFIER: Final = Path(__file__).parents[2] / "docs" / "verifier.py"
Proof = dict[str, Any]


def independent() -> Callable[[Any, bytes], str]:
    spec = importlib.util.spec_from_file_location("verifier", VERIFIER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Callable[[Any, bytes], str] = module.check
    return found


CHECK: Final = independent()


class Proven(NamedTuple):
    """The proofs of one log, revealed, and its public key."""

    proofs: list[Proof]
    key: bytes
    receipt: bytes


def proven(folder: Path) -> Proven:
    with Inside(folder, rocks=True) as k:
        cubes = [k("mem_alloc", namespace="alice", content=f"content {n}", tags=["t"])["cube_id"] for n in range(5)]
        k("mem_write", cube_id=cubes[0], content="content 0, again " * 2000)
        k.reopen()
        cubes.append(k("mem_alloc", namespace="alice", content="under another checkpoint")["cube_id"])
        gone = k("mem_alloc", namespace="alice", content="gone")["cube_id"]
        receipt = k("mem_shred", cube_id=gone)["report"]["receipt"]
        key = k.kernel.keys.signer.public_key
    proofs: list[Proof] = []
    for subject in (f"{cubes[0]}@2", *(f"{cube}@1" for cube in cubes)):
        with contextlib.redirect_stdout(io.StringIO()) as said:
            assert ctl.main(["--json", "prove", str(folder), subject, "--reveal"]) == 0
        proofs.append(json.loads(said.getvalue()))
    return Proven(proofs, key, receipt)


LOGS: Final[dict[str, Proven]] = {}
"""Both logs by name, for tests that Hypothesis runs."""


@pytest.fixture(scope="module", autouse=True)
def logs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Proven]:
    LOGS.update({name: proven(tmp_path_factory.mktemp(name) / "data") for name in ("ours", "other")})
    return LOGS


def refused(proof: Any, key: bytes) -> None:
    """By both; ours says why, and neither is led astray by what it cannot read."""
    with pytest.raises(prove.Refused):
        prove.check(proof, key)
    with pytest.raises(Exception):  # noqa: B017  # Its main function takes any for a no.
        CHECK(proof, key)


def taken(proof: Proof, key: bytes) -> None:
    prove.check(proof, key)
    assert CHECK(proof, key).startswith("proven: ")


def places(value: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Every value in a structure, with the way to it."""
    if at:
        yield at, value
    if isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*at, name))


def put(proof: Proof, at: tuple[str | int, ...], value: Any) -> Proof:
    """A copy with another value at a place; without one, the place is gone."""
    changed: Any = copy.deepcopy(proof)
    inner = changed
    for name in at[:-1]:
        inner = inner[name]
    if value is GONE:
        del inner[at[-1]]
    else:
        inner[at[-1]] = value
    return changed if isinstance(changed, dict) else {}


GONE: Final = object()


def others(value: Any) -> Iterator[Any]:
    """Values that could stand in a value's place."""
    yield from (GONE, None, [], {}, "", "00", -1, 0.5, [value], {"a": value})
    if isinstance(value, str):
        yield from (value + "00", value[:-2], value[2:], " " + value, value + "é", value.upper())
        for place in {0, len(value) // 3, len(value) // 2, len(value) - 1}:
            yield value[:place] + ("0" if value[place] != "0" else "1") + value[place + 1 :]
        yield from ("left", "right") if value in ("left", "right") else ()
    if isinstance(value, int):
        yield from (value + 1, value - 1, -value, float(value), str(value), value + 2**64, value == 1)
    if isinstance(value, list):
        yield from (value[:-1], value[1:], [*value, *value], value[::-1], value[1:] + value[:1], tuple(value))
    if isinstance(value, dict):
        yield from ({**value, "more": 1}, list(value), list(value.items()))


def same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and a == b


def test_every_proof_is_taken_as_it_was_made(logs: dict[str, Proven]) -> None:
    for log in logs.values():
        for proof in log.proofs:
            taken(proof, log.key)
            taken({name: value for name, value in proof.items() if name != "revealed"}, log.key)


@pytest.mark.parametrize("which", [0, 1, 6])
def test_no_field_can_be_changed(logs: dict[str, Proven], which: int) -> None:
    proof, tried = logs["ours"].proofs[which], 0
    for at, value in places(proof):
        for other in others(value):
            # What is not revealed is not claimed; and a tuple of Python is a list of JSON.
            if same(other, value) or (other is GONE and at == ("revealed",)) or isinstance(other, tuple):
                continue
            refused(put(proof, at, other), logs["ours"].key)
            tried += 1
    refused({**proof, "more": 1}, logs["ours"].key)
    assert tried > 300


@given(st.data())
def test_no_bit_can_be_flipped(data: st.DataObject) -> None:
    log = LOGS["ours"]
    proof = data.draw(st.sampled_from(log.proofs))
    at, value = data.draw(st.sampled_from([(at, v) for at, v in places(proof) if isinstance(v, str) and is_hex(v)]))
    raw = bytearray.fromhex(value)
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    refused(put(proof, at, raw.hex()), log.key)


def is_hex(text: str) -> bool:
    try:
        return len(bytes.fromhex(text)) > 4
    except ValueError:
        return False


def test_a_proof_of_another_log_proves_nothing_here(logs: dict[str, Proven]) -> None:
    ours, other = logs["ours"], logs["other"]
    for proof in other.proofs:
        refused(proof, ours.key)
        for name in ("public_key", "log_id"):
            refused({**proof, name: ours.proofs[0][name]}, ours.key)
        refused({**proof, "public_key": ours.proofs[0]["public_key"], "log_id": ours.proofs[0]["log_id"]}, ours.key)


@pytest.mark.parametrize("parts", [
    ("path",), ("record",), ("record", "prev_hash"), ("path", "prev_hash"), ("checkpoint",), ("checkpoint", "signature"),
    ("cube_id",), ("cube_id", "version"), ("payload",), ("offset", "time"), ("revealed",), ("record", "revealed"),
    ("record", "prev_hash", "cube_id", "version", "offset", "time", "payload", "revealed"),
])  # fmt: skip
def test_parts_of_one_proof_do_not_fit_another(logs: dict[str, Proven], parts: tuple[str, ...]) -> None:
    for source in (logs["ours"].proofs, logs["other"].proofs):
        for one in logs["ours"].proofs:
            for two in source:
                swapped = one | {name: two[name] for name in parts}
                if swapped != one:
                    refused(swapped, logs["ours"].key)


@pytest.mark.parametrize("part", ["ciphertext", "content", "private", "statement", "signature"])
def test_parts_of_one_disclosure_do_not_fit_another(logs: dict[str, Proven], part: str) -> None:
    for one in logs["ours"].proofs:
        for two in logs["ours"].proofs:
            if one["revealed"][part] != two["revealed"][part]:
                refused(one | {"revealed": one["revealed"] | {part: two["revealed"][part]}}, logs["ours"].key)


def climbed(proof: Proof, steps: int) -> tuple[bytes, bytes]:
    """The two halves of the inner node that a proof's path reaches after some steps."""
    raw = bytes.fromhex(proof["record"])
    node = crypto.sha256(b"\0" + crypto.record_hash(bytes.fromhex(proof["prev_hash"]), raw))
    halves = (b"", b"")
    for side, neighbour in proof["path"][:steps]:
        other = bytes.fromhex(neighbour)
        halves = (other, node) if side == "left" else (node, other)
        node = crypto.sha256(b"\1" + halves[0] + halves[1])
    return halves


def test_an_inner_node_cannot_pass_for_a_record(logs: dict[str, Proven]) -> None:
    """Without the first byte of leaf and node, the two halves of an inner node would be `prev_hash` and the hash of a record,
    or be the record themselves, and the rest of the path would bear them out."""
    proof = logs["ours"].proofs[0]
    for steps in range(1, len(proof["path"]) + 1):
        left, right = climbed(proof, steps)
        rest = {"path": proof["path"][steps:]}
        for prev, record in (
            (left, right), (left, bytes.fromhex(proof["record"])), (right, left + right), (bytes(32), b"\1" + left + right),
            (left, b"\0" + right), (b"", left + right), (b"\1" + left, right),
        ):  # fmt: skip
            refused(proof | rest | {"prev_hash": prev.hex(), "record": record.hex()}, logs["ours"].key)
        refused(proof | rest, logs["ours"].key)


def test_a_leaf_cannot_be_had_from_bytes_cut_elsewhere(logs: dict[str, Proven]) -> None:
    """`prev_hash ‖ H(record)` is 64 bytes however they are cut, so a `prev_hash` of another length is refused."""
    proof = logs["ours"].proofs[1]
    digest = crypto.sha256(bytes.fromhex(proof["record"]))
    prev = bytes.fromhex(proof["prev_hash"])
    for cut in (0, 16, 31, 33, 64):
        joined = prev + digest
        refused(proof | {"prev_hash": joined[:cut].hex(), "record": joined[cut:].hex()}, logs["ours"].key)


MALLORY: Final = crypto.Signer(b"m" * 32)


def forged(proof: Proof, signer: crypto.Signer) -> Proof:
    """A record of Mallory's own making under a checkpoint that he signed: whole and consistent in itself."""
    cube_id, log_id = bytes(16), bytes.fromhex(proof["log_id"])
    payload = [bytes(16), 3, crypto.sha256(b"ciphertext"), [1, 0], None]
    event = ev.Event(ev.ALLOCATED, 1, [cube_id, "alice", "plaintext", None, payload, [1, 0], []])
    record = ev.encode_record(ev.Record(1, 5, 1, 7, "uid:0", 1, None, None, [event]))
    hash_ = crypto.record_hash(bytes(32), record)
    checkpoint = ev.Checkpoint(5, hash_, crypto.merkle_root([hash_]), bytes(32), bytes(32), 1, b"")
    signed = checkpoint.signed_bytes(log_id)
    statement = pack((1, "memos disclosure", log_id, hash_, cube_id, 1, crypto.sha256(b"lie"), crypto.sha256(b"")))
    return {
        "kind": "memos proof", "format": 1, "cube_id": "00000000-0000-0000-0000-000000000000", "version": 1, "offset": 5,
        "time": 7, "principal": "uid:0", "log_id": log_id.hex(), "public_key": signer.public_key.hex(),
        "payload": {"id": payload[0].hex(), "bytes": 3, "digest": payload[2].hex()},  # type: ignore[attr-defined]
        "record": record.hex(), "prev_hash": bytes(32).hex(), "path": [], "checkpoint": signed.hex(),
        "signature": signer.sign(signed).hex(),
        "revealed": {
            "ciphertext": b"ciphertext".hex(), "content": b"lie".hex(), "private": "", "statement": statement.hex(),
            "signature": signer.sign(statement).hex(),
        },
    }  # fmt: skip


def test_who_signs_with_another_key_is_refused(logs: dict[str, Proven]) -> None:
    ours = logs["ours"]
    proof = forged(ours.proofs[0], MALLORY)
    taken(proof, MALLORY.public_key)
    refused(proof, ours.key)
    refused(proof | {"public_key": ours.key.hex()}, ours.key)
    # His disclosure in an honest proof, and his checkpoint over honest records.
    for one in ours.proofs:
        statement = unpack(bytes.fromhex(one["revealed"]["statement"]))
        statement[6] = crypto.sha256(lie := b"x" * one["payload"]["bytes"])
        lied = {"content": lie.hex(), "statement": pack(statement).hex(), "signature": MALLORY.sign(pack(statement)).hex()}
        refused(one | {"revealed": one["revealed"] | lied}, ours.key)
        refused(one | {"signature": MALLORY.sign(bytes.fromhex(one["checkpoint"])).hex()}, ours.key)


def test_weak_public_keys_make_no_proof_hold(logs: dict[str, Proven]) -> None:
    """A key of small order would take one signature for many messages; nobody should be talked into it, nor does it help."""
    proof = logs["ours"].proofs[0]
    for weak in (bytes(32), b"\1" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f"):
        for signature in (weak + bytes(32), bytes(64), b"\1" + bytes(63)):
            refused(proof | {"public_key": weak.hex(), "signature": signature.hex()}, logs["ours"].key)
    for short in (b"", bytes(31), bytes(33)):
        refused(proof | {"public_key": short.hex()}, short)


def test_what_the_key_signed_elsewhere_is_no_checkpoint_and_no_disclosure(logs: dict[str, Proven]) -> None:
    """Receipts, checkpoints and disclosures are signed by one key; each begins with its kind."""
    ours = logs["ours"]
    receipt = unpack(ours.receipt)
    genuine = [(pack(tuple(receipt[:8])), receipt[8])]
    for one in ours.proofs:
        genuine.append((bytes.fromhex(one["checkpoint"]), bytes.fromhex(one["signature"])))
        genuine.append((bytes.fromhex(one["revealed"]["statement"]), bytes.fromhex(one["revealed"]["signature"])))
    for data, signature in genuine:
        assert crypto.verify_signature(ours.key, signature, data)
        pair = {"statement": data.hex(), "signature": signature.hex()}
        for one in ours.proofs:
            if data.hex() != one["revealed"]["statement"]:
                refused(one | {"revealed": one["revealed"] | pair}, ours.key)
            if data.hex() != one["checkpoint"]:
                refused(one | {"checkpoint": data.hex(), "signature": signature.hex()}, ours.key)


DEEP: Final = b"\x91" * 100_000


@pytest.mark.parametrize("proof", [
    None, [], "proof", 1, {}, {"kind": "memos proof"}, {"kind": "memos proof", "format": 1},
    [{"kind": "memos proof", "format": 1}], {"kind": "memos anchor", "format": 1},
], ids=repr)  # fmt: skip
def test_what_is_no_proof_is_refused(logs: dict[str, Proven], proof: Any) -> None:
    refused(proof, logs["ours"].key)


@pytest.mark.parametrize("raw", [
    DEEP, b"\xdd\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xffx", b"\x81\x01\x01", b"\xc1", b"", b"\xca\0\0\0\0",
])  # fmt: skip
def test_malformed_bytes_are_refused_by_who_signs_for_them_too(logs: dict[str, Proven], raw: bytes) -> None:
    """Even with the attacker's own key as the trusted one, neither checker hangs, swells or falls over."""
    proof = forged(logs["ours"].proofs[0], MALLORY)
    refused(proof | {"checkpoint": raw.hex(), "signature": MALLORY.sign(raw).hex()}, MALLORY.public_key)
    hash_ = crypto.record_hash(bytes(32), raw)
    checkpoint = ev.Checkpoint(5, hash_, crypto.merkle_root([hash_]), bytes(32), bytes(32), 1, b"")
    signed = checkpoint.signed_bytes(bytes.fromhex(proof["log_id"]))
    under = {"record": raw.hex(), "checkpoint": signed.hex(), "signature": MALLORY.sign(signed).hex()}
    refused(proof | under, MALLORY.public_key)


def test_files_that_are_no_json_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], logs: dict[str, Proven]) -> None:
    file = tmp_path / "proof.json"
    for text in (b"", b"{", b"\xff\xfe", b"[" * 200_000, b'{"kind": NaN}', b"9" * 5000):
        file.write_bytes(text)
        assert ctl.main(["prove", "--check", str(file), "--public-key", logs["ours"].key.hex()]) in (1, 2)
        assert "proof" in (said := "".join(capsys.readouterr())) and "Traceback" not in said
