"""Proofs and signed reports: what `memctl prove` makes holds for us and for a verifier that has none of our code."""

from __future__ import annotations

import ast
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.inside import Inside

from memos_drivers.stores.base import PAYLOAD, VIEW, Batch
from memos_drivers.stores.rocks import RocksStore
from memos_kernel import crypto
from memos_kernel import events as ev
from memos_kernel.governance import raw_id
from memos_kernel.state import View
from memos_syscalls import limits
from memos_tools import ctl, offline, prove

VERIFIER = Path(__file__).parents[2] / "docs" / "verifier.py"
BIG = "y" * 40_000
HUGE = "z" * 700_000


def verifier() -> Callable[[Any, bytes], str]:
    """`check` of docs/verifier.py."""
    spec = importlib.util.spec_from_file_location("verifier", VERIFIER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Callable[[Any, bytes], str] = module.check
    return found


class Made(NamedTuple):
    """A stopped directory, and what is in it."""

    path: Path
    versions: dict[str, str]
    """`CUBE@VERSION` → content."""
    many: list[str]
    fork: str
    erased: str
    key: str
    data_keys: list[bytes]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Versions of every making, in four epochs of which two ended in a crash, under several checkpoints."""
    path = tmp_path_factory.mktemp("prove") / "data"
    with Inside(path, rocks=True) as k:
        one = k("mem_alloc", namespace="alice", content="first", tags=["t"], name="fact")["cube_id"]
        k("mem_write", cube_id=one, content=BIG)
        k("mem_rollback", cube_id=one, to_version=1)
        k("mem_rollback", cube_id=one, to_version=2)
        k.crash()
        k("mem_freeze", cube_id=one)
        huge = k("mem_alloc", namespace="alice", content=HUGE)["cube_id"]
        items = [{"namespace": "bob", "content": f"b{i}"} for i in range(7)]
        many = [item["cube_id"] for item in k("mem_alloc_many", items=items)["items"]]
        k.reopen()
        k("mem_fork", namespace="alice", to="what-if")
        fork = k("mem_list", namespace="what-if")["cubes"][0]["cube_id"]
        fused = k("mem_fuse", cube_ids=[many[0], many[1]], strategy="merge")["cube_id"]
        fused_text = k("mem_read", cube_id=fused)["content"]
        k.crash()
        erased = k("mem_alloc", namespace="carol", content="to be erased")["cube_id"]
        k("mem_shred", cube_id=erased)
        key = k.kernel.keys.signer.public_key.hex()
        view, store = View(k.kernel.tables), k.kernel.vault.keystore
        slots = [cube.slot for one_id in (one, huge, fused) if (cube := view.cube(raw_id(one_id)))]
        keys = [data for slot in slots if slot and (data := store.key(slot))]
    versions = {f"{one}@1": "first", f"{one}@2": BIG, f"{one}@3": "first", f"{one}@4": BIG, f"{huge}@1": HUGE}
    versions |= {f"{cube}@1": f"b{i}" for i, cube in enumerate(many)} | {f"{fused}@1": fused_text}
    return Made(path, versions, many, fork, erased, key, keys)


@pytest.fixture
def memctl(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Any]]:
    def run(*words: object) -> tuple[int, Any]:
        capsys.readouterr()
        status = ctl.main(["--json", *(str(word) for word in words)])
        captured = capsys.readouterr()
        return status, json.loads(captured.out or captured.err)

    return run


Memctl = Callable[..., tuple[int, Any]]


def test_every_way_to_make_a_version_can_be_proven_to_a_stranger(made: Made, memctl: Memctl, tmp_path: Path) -> None:
    check, public = verifier(), bytes.fromhex(made.key)
    file = tmp_path / "proof.json"
    for subject, content in made.versions.items():
        for reveal in ((), ("--reveal",)):
            status, proof = memctl("prove", made.path, subject, "--out", file, *reveal)
            assert status == 0 and json.loads(file.read_text()) == proof
            assert f"{proof['cube_id']}@{proof['version']}" == subject
            assert check(proof, public).startswith(f"proven: {subject} was made at offset {proof['offset']}")
            status, answer = memctl("prove", "--check", file, "--public-key", made.key)
            assert (status, answer["offset"], answer["revealed"]) == (0, proof["offset"], bool(reveal))
            if reveal:
                assert answer["content"] == content
    assert memctl("prove", made.path, next(iter(made.versions)), "--reveal")[1] == proof_of(made, next(iter(made.versions)))


def proof_of(made: Made, subject: str) -> dict[str, Any]:
    """The proof of a version, revealed, made again: nothing in it is left to chance."""
    cube_id, version = subject.split("@")
    with offline.opened(made.path) as found:
        view = View(found.store.live(VIEW))
        cube = view.cube(raw_id(cube_id))
        assert cube is not None and found.keys is not None
        stored = view.version(cube, int(version))
        assert stored is not None
        item, window = offline.item_at(found.log, stored[0].seq), prove.window_of(found.log, stored[0].seq)
        assert item is not None and window is not None
        proof = prove.proof_json(item, stored[0], window, found.keys.signer.public_key)
        return proof | {"revealed": prove.revealed(found, item, *stored)}


def test_every_record_has_its_path_to_the_next_checkpoint(made: Made) -> None:
    with offline.opened(made.path) as found:
        items = list(offline.walk(found.log))
        for item in items[:-1]:
            window = prove.window_of(found.log, item.seq)
            assert window is not None and window.checkpoint.head_seq >= item.seq
            path = crypto.merkle_path(window.leaves, window.at)
            assert crypto.merkle_climb(item.hash, path) == window.checkpoint.merkle_root
        assert prove.window_of(found.log, items[-1].seq) is None, "the last checkpoint covers everything but itself"


def test_the_checkpoint_before_may_lie_far_back(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    with offline.opened(made.path) as found:
        seqs = range(offline.head(found.log))
        far = [prove.window_of(found.log, seq) for seq in seqs]
        monkeypatch.setattr(limits, "CHECKPOINT_RECORDS", -1)
        assert [prove.window_of(found.log, seq) for seq in seqs] == far


def test_the_verifier_is_one_page_and_runs_alone(made: Made, memctl: Memctl, tmp_path: Path) -> None:
    source = VERIFIER.read_text()
    assert len(source.splitlines()) <= 100
    names = {n.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import) for n in node.names}
    names |= {node.module or "." for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= {*sys.stdlib_module_names, "cryptography"}
    file = tmp_path / "proof.json"
    memctl("prove", made.path, made.many[3] + "@1", "--out", file)
    shutil.copy(VERIFIER, tmp_path / "verifier.py")

    def run(*words: str) -> tuple[int, str]:
        command = [sys.executable, "-I", "verifier.py", *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
        return done.returncode, done.stdout + done.stderr

    status, said = run("proof.json", made.key)
    assert status == 0 and said.startswith(f"proven: {made.many[3]}@1") and said.count("\n") == 1
    for words in (("proof.json", "00" * 32), ("proof.json", "zz"), ("none.json", made.key), ("proof.json",)):
        status, said = run(*words)
        assert status == 1 and said.startswith("NOT PROVEN: ") and said.count("\n") == 1


def test_an_inherited_version_is_proven_by_the_record_that_made_it(made: Made, memctl: Memctl) -> None:
    status, proof = memctl("prove", made.path, f"{made.fork}@1")
    assert status == 0 and f"{proof['cube_id']}@1" in made.versions and proof["cube_id"] != made.fork


def test_an_erased_version_is_proven_but_cannot_be_revealed(made: Made, memctl: Memctl) -> None:
    status, proof = memctl("prove", made.path, f"{made.erased}@1")
    assert status == 0 and verifier()(proof, bytes.fromhex(made.key))
    status, answer = memctl("prove", made.path, f"{made.erased}@1", "--reveal")
    assert status == 2 and "erased" in answer["error"]


def test_a_proof_needs_no_key_and_holds_none(made: Made, memctl: Memctl) -> None:
    subject = next(iter(made.versions))
    plain = memctl("prove", made.path, subject)[1]
    assert memctl("prove", made.path, subject, "--no-keys") == (0, plain)
    assert memctl("prove", made.path, subject, "--no-keys", "--reveal")[0] == 2
    text = json.dumps(memctl("prove", made.path, subject, "--reveal")[1])
    assert len(made.data_keys) == 3 and not any(key.hex() in text for key in made.data_keys)


def test_what_no_checkpoint_covers_is_unproven_yet(memctl: Memctl, tmp_path: Path) -> None:
    path = tmp_path / "data"
    with Inside(path, rocks=True) as k:
        old = k("mem_alloc", namespace="alice", content="old")["cube_id"]
        k.reopen()
        new = k("mem_alloc", namespace="alice", content="new")["cube_id"]
        k.abandon()
    assert memctl("prove", path, f"{old}@1")[0] == 0
    status, answer = memctl("prove", path, f"{new}@1")
    assert (status, answer["proven"]) == (1, False) and "unproven yet" in answer["problem"]
    with Inside(path, rocks=True):
        """A start and a stop: the kernel signs what it finds."""
    assert memctl("prove", path, f"{new}@1")[0] == 0


@pytest.mark.parametrize("subject", ["nonsense", "@1", "{one}", "{one}@", "{one}@0", "{one}@99", "{one}@x", "{other}@1"])
def test_what_is_no_version_is_refused_with_advice(made: Made, memctl: Memctl, subject: str) -> None:
    subject = subject.format(one=made.many[0], other="018bcfe5-0000-7000-8000-000000000000")
    status, answer = memctl("prove", made.path, subject)
    assert status == 2 and answer["error"]


def test_a_check_needs_a_key_from_elsewhere(made: Made, memctl: Memctl, tmp_path: Path) -> None:
    file = tmp_path / "proof.json"
    memctl("prove", made.path, made.many[0] + "@1", "--out", file)
    assert memctl("prove", "--check", file)[0] == 2
    assert memctl("prove", "--check", file, "--public-key", "xyz")[0] == 2
    assert memctl("prove", "--check", tmp_path / "none", "--public-key", made.key)[0] == 2
    assert memctl("prove", "--check", file, "--public-key", "00" * 32)[0] == 1
    assert memctl("prove", made.path)[0] == 2


def test_a_log_without_a_view_gives_the_same_proofs(made: Made, memctl: Memctl, copy: Path) -> None:
    store = RocksStore(copy / "db")
    batch = Batch()
    for family, least in ((VIEW, 0), (PAYLOAD, limits.PAYLOAD_INLINE_BYTES_MAX + 1)):
        for key, value in list(store.live(family).scan(b"")):
            if family == VIEW or len(value) < least:
                batch.put(family, key, None)
    store.write(batch)
    store.sync()
    store.close()
    for subject in list(made.versions)[:2]:
        assert memctl("prove", copy, subject, "--reveal") == memctl("prove", made.path, subject, "--reveal")


# -- payload commitments -----------------------------------------------------------------------------------------------


@pytest.fixture
def copy(made: Made, tmp_path: Path) -> Path:
    return shutil.copytree(made.path, tmp_path / "copy", ignore=shutil.ignore_patterns("lock"))


def put_payload(path: Path, pick: Callable[[bytes, bytes], bool], change: Callable[[bytes], bytes | None]) -> int:
    """Change the stored pieces that `pick` names; how many."""
    store = RocksStore(path / "db")
    picked = [(key, value) for key, value in store.live(PAYLOAD).scan(b"") if pick(key, value)]
    batch = Batch()
    for key, value in picked:
        batch.put(PAYLOAD, key, change(value))
    store.write(batch)
    store.sync()
    store.close()
    return len(picked)


def test_a_good_directory_s_payloads_are_all_compared(made: Made, memctl: Memctl) -> None:
    for words in ((), ("--no-keys", "--public-key", made.key), ("--full",)):
        status, answer = memctl("verify", made.path, *words)
        assert (status, answer["payloads"], answer["claims"]) == (0, len(made.versions) + 1, 4)
        assert answer["digests"] == (answer["checkpoints"] if "--full" in words else 0)


CHANGES: dict[str, Callable[[bytes], bytes | None]] = {
    "changed": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "lost": lambda _data: None,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("least", [20_000, 524_288], ids=["one piece", "a chunk"])
def test_a_stored_payload_that_is_wrong_is_found_without_any_key(
    memctl: Memctl, copy: Path, least: int, change: Callable[[bytes], bytes | None]
) -> None:
    picked = put_payload(copy, lambda _key, value: least <= len(value) < 20 * least, change)
    assert picked
    status, answer = memctl("verify", copy, "--no-keys")
    whats = [problem["what"] for problem in answer["problems"]]
    assert status == 1 and whats and all(what.startswith("a payload of the record at offset ") for what in whats)


# -- reports -----------------------------------------------------------------------------------------------------------


def test_a_report_is_signed_and_says_what_was_checked(made: Made, memctl: Memctl, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    status, answer = memctl("verify", made.path, "--full", "--report", file)
    report = json.loads(file.read_text())
    assert status == 0 and {name: report[name] for name in answer if name != "seconds"} == {
        name: value for name, value in answer.items() if name != "seconds"
    }
    assert (report["kind"], report["public_key"]) == ("memos verify report", made.key)
    status, checked = memctl("verify", "--check-report", file, "--public-key", made.key)
    assert (status, checked["genuine"], checked["ok"]) == (0, True, True)
    assert memctl("verify", "--check-report", file, "--public-key", "00" * 32)[0] == 1
    assert memctl("verify", "--check-report", file)[0] == 2


def test_no_field_of_a_report_can_be_changed(made: Made, memctl: Memctl, tmp_path: Path) -> None:
    file, changed = tmp_path / "report.json", tmp_path / "changed.json"
    memctl("verify", made.path, "--report", file)
    report = json.loads(file.read_text())
    for name, value in report.items():
        other = not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else [{"offset": 1}]
        for forged in ({**report, name: other}, {n: v for n, v in report.items() if n != name}):
            changed.write_text(json.dumps(forged))
            assert memctl("verify", "--check-report", changed, "--public-key", made.key)[0] in (1, 2), name
    changed.write_text(json.dumps({**report, "more": 1}))
    assert memctl("verify", "--check-report", changed, "--public-key", made.key)[0] == 1


def test_a_report_of_damage_is_signed_too(made: Made, memctl: Memctl, copy: Path, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    put_payload(copy, lambda _key, value: len(value) > 20_000, lambda _data: None)
    assert memctl("verify", copy, "--report", file)[0] == 1
    status, checked = memctl("verify", "--check-report", file, "--public-key", made.key)
    assert (status, checked["genuine"], checked["ok"]) == (1, True, False) and checked["problems"]


def test_without_the_master_key_a_report_is_unsigned_and_not_taken(made: Made, memctl: Memctl, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    assert memctl("verify", made.path, "--no-keys", "--report", file)[0] == 0
    assert json.loads(file.read_text())["signature"] is None
    status, answer = memctl("verify", "--check-report", file, "--public-key", made.key)
    assert status == 1 and "not signed" in answer["problem"]


def test_the_page_names_every_field(made: Made, memctl: Memctl, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    memctl("verify", made.path, "--report", file)
    proof = memctl("prove", made.path, made.many[0] + "@1", "--reveal")[1]
    page = (VERIFIER.parent / "proofs.md").read_text(encoding="utf-8")
    names = {*proof, *proof["payload"], *proof["revealed"], *json.loads(file.read_text())} - {"seconds"}
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []


def test_what_the_log_s_key_signs_begins_with_its_kind(made: Made, memctl: Memctl, tmp_path: Path) -> None:
    """So no signature can be passed off as one over something else."""
    file = tmp_path / "report.json"
    memctl("verify", made.path, "--report", file)
    body = json.loads(file.read_text())
    del body["signature"]
    proof = memctl("prove", made.path, made.many[0] + "@1", "--reveal")[1]
    with offline.opened(made.path) as found:
        claim = next(iter(found.log.claims()))[: -crypto.HASH_BYTES * 2 - 2]
    begin = {bytes.fromhex(proof["checkpoint"])[:19], bytes.fromhex(proof["revealed"]["statement"])[:19], claim[:19]}
    begin |= {ev.pack((1, "memos verify report"))[1:20], ev.pack((1, "memos shred"))[1:20]}
    assert len(begin) == 5
