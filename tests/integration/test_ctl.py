"""memctl on a real directory: what it says of a good one, and that it names every damage with its offset."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from memos_client import Kernel
from memos_drivers.stores.base import INDEX, LOG, PAYLOAD, VIEW, Batch
from memos_drivers.stores.rocks import RocksStore
from memos_kernel import events as ev
from memos_kernel.keystore import SLOTS_AT
from memos_kernel.state import u64
from memos_syscalls.errors import MemShredded
from memos_tools import ctl

BIG = "x" * 700_000


class Made(NamedTuple):
    """A stopped directory, and what happened in it."""

    path: Path
    ids: list[str]
    fused: str
    big: str
    receipt: bytes
    second_receipt: bytes
    old_slots: bytes
    digest: str
    head: int
    public_key: str


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """About thirty operations of every kind, in two epochs."""
    path = tmp_path_factory.mktemp("ctl") / "data"
    with Kernel.spawn(path, embedder="none") as k:
        ids = [k.mem_alloc("alice/chat", f"fact number {i}", tags=["t"]).cube_id for i in range(6)]
        k.mem_write(ids[0], "newer", actor_note="better")
        k.mem_write(ids[0], "newest")
        k.mem_rollback(ids[0], 1)
        k.mem_freeze(ids[1])
        k.mem_thaw(ids[1], actor_note="again")
        k.mem_archive(ids[2])
        k.mem_restore(ids[2])
        big = k.mem_alloc("alice/docs", BIG, name="big").cube_id
        k.mem_alloc("alice/docs", "y" * 40_000)
        k.mem_fork("alice", "what-if")
        fused = k.mem_fuse([ids[3], ids[4]], "merge", actor_note="same thing").cube_id
    old_slots = (path / "keys" / "slots").read_bytes()
    with Kernel.spawn(path, embedder="none") as k:
        k.mem_unfuse(fused)
        again = k.mem_fuse([ids[3], ids[4]], "merge").cube_id
        receipt = k.mem_shred(again, actor_note="asked to").report.receipt
        k.mem_free(ids[5])
        k.mem_alloc_many([{"namespace": "bob", "content": f"b{i}"} for i in range(5)])
        second = k.mem_shred(ids[0]).report.receipt
    with Kernel.spawn(path, embedder="none", read_only=True) as k:
        info = k.sys_info()
    return Made(path, ids, again, big, receipt, second, old_slots, info.state_digest, info.head_offset, info.public_key)


@pytest.fixture
def copy(made: Made, tmp_path: Path) -> Path:
    """The directory again, for one test to damage."""
    return shutil.copytree(made.path, tmp_path / "copy", ignore=shutil.ignore_patterns("memos.sock", "lock"))


@pytest.fixture
def memctl(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Any]]:
    """Runs memctl; its exit status and its answer. Several answers come as a list."""

    def run(*words: object) -> tuple[int, Any]:
        capsys.readouterr()
        status = ctl.main(["--json", *(str(word) for word in words)])
        captured = capsys.readouterr()
        answers = [json.loads(line) for line in (captured.out or captured.err).splitlines()]
        return status, answers[0] if len(answers) == 1 else answers

    return run


Memctl = Callable[..., tuple[int, Any]]


class Edit:
    """The rows of a stopped directory's database, to change as a vandal would."""

    def __init__(self, path: Path) -> None:
        self.store = RocksStore(path / "db")
        self.log = self.store.live(LOG)

    def __enter__(self) -> Edit:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.store.sync()
        self.store.close()

    def put(self, family: str, key: bytes, value: bytes | None) -> None:
        batch = Batch()
        batch.put(family, key, value)
        self.store.write(batch)

    def frames(self) -> Iterator[tuple[bytes, bytes]]:
        return iter(list(self.log.scan(b"f")))

    def frame(self, seq: int) -> tuple[bytes, bytes]:
        """Key and bytes of the frame that holds an offset."""
        return [(key, data) for key, data in self.frames() if int.from_bytes(key[1:], "big") <= seq][-1]


def first_problem(answer: Any) -> tuple[int, str]:
    return answer["problems"][0]["offset"], answer["problems"][0]["what"]


# -- a good directory --------------------------------------------------------------------------------------------------


def test_a_good_directory_verifies_with_and_without_keys(made: Made, memctl: Memctl) -> None:
    status, answer = memctl("verify", made.path)
    assert (status, answer["offset"], answer["records"]) == (0, made.head, made.head + 1)
    status, answer = memctl("verify", made.path, "--no-keys", "--public-key", made.public_key)
    assert (status, answer["ok"], answer["macs_checked"]) == (0, True, False)
    status, answer = memctl("verify", made.path, "--full")
    assert (status, answer["problems"]) == (0, [])
    assert answer["state_digest"] == made.digest


def test_digest_by_replay_is_what_the_kernel_said(made: Made, memctl: Memctl) -> None:
    head_hash = memctl("verify", made.path)[1]["head_hash"]
    same = {"offset": made.head, "hash": head_hash, "state_digest": made.digest, "view_agrees": True}
    assert memctl("digest", made.path) == (0, same)
    status, then = memctl("digest", f"{made.path}@5")
    assert status == 0 and then["offset"] == 5 and then["state_digest"] != made.digest
    assert memctl("digest", made.path, "--at", "5")[1] == then


def test_log_show_decrypts_with_the_key_and_says_what_was_erased(made: Made, memctl: Memctl) -> None:
    status, shown = memctl("log", "show", made.path, 3)
    event = shown["events"][0]
    assert (status, event["event"], event["cube_id"], event["content"]) == (0, "cube.allocated", made.ids[1], "fact number 1")
    assert event["private"]["tags"] == ["t"]
    erased = memctl("log", "show", made.path, 2)[1]["events"][0]
    assert (erased["private"], erased["content"]) == ("(erased)", "(erased)")
    public = memctl("log", "show", made.path, 3, "--no-keys")[1]["events"][0]
    assert "content" not in public and public["private"].endswith("of ciphertext")
    by_time = memctl("log", "show", made.path, shown["time"])[1]
    assert by_time["offset"] == 3 and by_time["prev_hash"] == memctl("log", "show", made.path, 2)[1]["hash"]


def test_log_tail_shows_the_newest_records(made: Made, memctl: Memctl) -> None:
    status, records = memctl("log", "tail", made.path, "-n", 4)
    assert status == 0
    assert [record["offset"] for record in records] == list(range(made.head - 3, made.head + 1))


def test_audit_of_an_erased_cube_keeps_what_is_public(made: Made, memctl: Memctl) -> None:
    status, answer = memctl("audit", made.path, made.ids[0])
    assert status == 0
    done = [(e["what"], e["state"]) for e in answer["entries"]]
    assert done == [
        ("made", "generated"), ("written", "activated"), ("written", None), ("brought back version 1", None),
        ("copied by the fork to what-if", None), ("erased", "shredded"),
    ]  # fmt: skip
    assert answer["entries"][1]["note"] == "(erased)"


def test_audit_shows_notes_and_changes_that_came_from_elsewhere(made: Made, memctl: Memctl) -> None:
    entries = memctl("audit", made.path, made.ids[3])[1]["entries"]
    assert [e["state"] for e in entries] == ["generated", None, "merged", "activated", "merged", "activated"]
    assert entries[2]["note"] == "same thing"
    assert (entries[-1]["syscall"], entries[-1]["note"]) == ("mem_shred", "asked to")
    assert memctl("audit", made.path, made.ids[1])[1]["entries"][2]["note"] == "again"
    whole = memctl("audit", made.path, "alice/chat")[1]
    assert set(made.ids) <= whole["cubes"].keys()
    assert memctl("audit", made.path, "nobody")[0] == 2


def test_diff_names_what_changed_between_two_points(made: Made, memctl: Memctl) -> None:
    assert memctl("diff", made.path, f"{made.path}@{made.head}")[0] == 0
    status, answer = memctl("diff", f"{made.path}@7", made.path)
    assert (status, answer["removed"], answer["namespaces_removed"]) == (1, [], [])
    assert "what-if" in answer["namespaces_added"] and made.big in [c["cube_id"] for c in answer["added"]]
    changed = {c["cube_id"]: c for c in answer["changed"]}
    assert changed[made.ids[0]]["version"] == [1, 4] and changed[made.ids[0]]["state"] == ["generated", "shredded"]


def test_a_receipt_holds_and_a_forged_or_foreign_one_does_not(made: Made, memctl: Memctl, tmp_path: Path) -> None:
    good, forged = tmp_path / "receipt", tmp_path / "forged"
    good.write_bytes(made.receipt)
    forged.write_bytes(made.receipt[:60] + bytes([made.receipt[60] ^ 1]) + made.receipt[61:])
    status, answer = memctl("verify", made.path, "--receipt", good)
    assert (status, answer["receipt"]["cubes"]) == (0, [made.fused])
    good.write_text(json.dumps({"report": {"receipt": made.receipt.hex()}}))
    assert memctl("verify", made.path, "--receipt", good)[0] == 0
    status, answer = memctl("verify", made.path, "--receipt", forged)
    assert status == 1 and "not genuine" in first_problem(answer)[1]
    assert memctl("verify", made.path, "--receipt", tmp_path / "none")[0] == 2


def test_a_receipt_fails_when_an_old_key_store_came_back(made: Made, memctl: Memctl, copy: Path, tmp_path: Path) -> None:
    receipt = tmp_path / "receipt"
    receipt.write_bytes(made.second_receipt)
    assert memctl("verify", copy, "--receipt", receipt)[1]["receipt"]["cubes"] == [made.ids[0]]
    with open(copy / "keys" / "slots", "r+b") as file:
        file.seek(SLOTS_AT)
        file.write(made.old_slots[SLOTS_AT:])
    status, answer = memctl("verify", copy, "--receipt", receipt)
    assert status == 1 and "still exists" in first_problem(answer)[1]


# -- damage ------------------------------------------------------------------------------------------------------------


def test_an_edited_record_is_named_with_its_offset(made: Made, memctl: Memctl, copy: Path) -> None:
    with Edit(copy) as edit:
        key, data = edit.frame(9)
        at = data.rindex(bytes.fromhex(made.ids[0].replace("-", "")))
        edit.put(LOG, key, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    status, answer = memctl("verify", copy)
    assert (status, answer["offset"]) == (1, 8)
    assert first_problem(answer)[0] == 9 and "MAC" in first_problem(answer)[1]
    status, answer = memctl("verify", copy, "--no-keys")
    assert (status, answer["offset"]) == (1, 9) and "chain is broken before offset 10" in first_problem(answer)[1]
    status, answer = memctl("check", copy)
    assert (status, answer["good_up_to"], answer["first_bad_frame"]["offset"]) == (1, 8, 9)
    assert memctl("check", copy, "--repair", "--yes")[0] == 1


def test_garbage_in_place_of_a_frame_is_named(made: Made, memctl: Memctl, copy: Path) -> None:
    with Edit(copy) as edit:
        edit.put(LOG, edit.frame(6)[0], b"\xc1 garbage")
    for words in (("verify",), ("verify", "--no-keys"), ("check",)):
        status, answer = memctl(words[0], copy, *words[1:])
        assert status == 1 and first_problem(answer)[0] == 6, words
    assert memctl("log", "tail", copy, "-n", 100)[0] == 2
    assert memctl("digest", copy)[0] == 2
    assert memctl("audit", copy, made.ids[0])[0] == 1


def test_a_dropped_frame_is_named(memctl: Memctl, copy: Path) -> None:
    with Edit(copy) as edit:
        edit.put(LOG, edit.frame(7)[0], None)
    for words in ((), ("--no-keys",)):
        status, answer = memctl("verify", copy, *words)
        assert (status, answer["offset"]) == (1, 6) and first_problem(answer) == (7, "records 7 to 7 are missing")


def test_swapped_frames_are_named(memctl: Memctl, copy: Path) -> None:
    with Edit(copy) as edit:
        (key_a, a), (key_b, b) = edit.frame(4), edit.frame(5)
        edit.put(LOG, key_a, b)
        edit.put(LOG, key_b, a)
    status, answer = memctl("verify", copy)
    assert (status, answer["offset"]) == (1, 3) and first_problem(answer)[0] == 4


def cut_silently(copy: Path, keep: int) -> None:
    """Take away the frames after an offset, and the claims of the epochs that went with them."""
    with Edit(copy) as edit:
        epoch = 0
        for key, data in edit.frames():
            if int.from_bytes(key[1:], "big") > keep:
                edit.put(LOG, key, None)
            else:
                epoch = ev.decode_frame(data).epoch
        for key, _claim in list(edit.log.scan(b"c", b"c" + u64(epoch + 1))):
            edit.put(LOG, key, None)


def first_checkpoint(path: Path) -> int:
    """Offset of the first checkpoint's record."""
    with Edit(path) as edit:
        for _key, data in edit.frames():
            for raw in ev.decode_frame(data).records:
                record = ev.decode_record(raw)
                if record.events[0].name == ev.CHECKPOINT:
                    return record.seq
    raise AssertionError


def test_a_log_cut_back_to_a_checkpoint_is_found_by_the_key_store_or_an_anchor(
    made: Made, memctl: Memctl, copy: Path, tmp_path: Path
) -> None:
    anchor = tmp_path / "anchor.json"
    assert memctl("anchor", copy, "--out", anchor)[0] == 0
    assert memctl("anchor", copy, "--check", anchor)[0] == 0
    keep = first_checkpoint(copy)
    cut_silently(copy, keep)
    status, answer = memctl("verify", copy)
    assert status == 1 and first_problem(answer)[0] == keep + 1 and "cut back" in first_problem(answer)[1]
    assert memctl("verify", copy, "--no-keys")[0] == 0, "nothing but a memory of the head can find this"
    status, answer = memctl("verify", copy, "--no-keys", "--anchor", anchor)
    assert status == 1 and first_problem(answer)[0] == keep + 1 and "cut back" in first_problem(answer)[1]
    status, answer = memctl("anchor", copy, "--check", anchor)
    assert status == 1 and "cut back" in first_problem(answer)[1]
    found = [f for f in memctl("doctor", copy)[1] if f["verdict"] == "bad"]
    assert {f["what"] for f in found} == {"key store", "view"}


def test_a_log_replaced_by_another_is_found(made: Made, memctl: Memctl, copy: Path, tmp_path: Path) -> None:
    anchor = tmp_path / "anchor.json"
    memctl("anchor", copy, "--out", anchor)
    with Kernel.spawn(tmp_path / "other", embedder="none") as k:
        for i in range(made.head + 10):
            k.mem_alloc("alice", f"other {i}")
    shutil.rmtree(copy / "db")
    shutil.copytree(tmp_path / "other" / "db", copy / "db")
    for words in ((), ("--no-keys", "--public-key", made.public_key)):
        status, answer = memctl("verify", copy, *words)
        assert (status, answer["offset"], first_problem(answer)[0]) == (1, -1, 0)
    status, answer = memctl("anchor", copy, "--check", anchor)
    assert status == 1 and "another log" in first_problem(answer)[1]


def test_a_changed_anchor_or_a_wrong_key_is_refused(memctl: Memctl, copy: Path, tmp_path: Path) -> None:
    anchor = tmp_path / "anchor.json"
    memctl("anchor", copy, "--out", anchor)
    anchor.write_text(anchor.read_text().replace('"head_seq": ', '"head_seq": 1'))
    assert memctl("anchor", copy, "--check", anchor)[0] == 2
    wrong = tmp_path / "wrong.key"
    wrong.write_text("00" * 32)
    wrong.chmod(0o600)
    status, answer = memctl("verify", copy, "--key-file", wrong)
    assert status == 2 and "does not open" in answer["error"]


# -- mending -----------------------------------------------------------------------------------------------------------


def test_check_repairs_a_wrong_view_from_a_good_log(made: Made, memctl: Memctl, copy: Path) -> None:
    cube = b"c" + bytes.fromhex(made.ids[1].replace("-", ""))
    with Edit(copy) as edit:
        edit.put(VIEW, cube, None)
        edit.put(VIEW, b"n" + b"alice", b"nonsense")
        edit.put(VIEW, b"r" + bytes(32), u64(1))
        for key, _value in list(edit.store.live(PAYLOAD).scan(b""))[:1]:
            edit.put(PAYLOAD, key, b"nonsense")
    status, answer = memctl("check", copy)
    assert (status, answer["good_up_to"]) == (1, made.head)
    assert len(answer["problems"]) >= 3
    status, answer = memctl("check", copy, "--repair")
    assert status == 2, "without a terminal nobody said yes"
    status, answers = memctl("check", copy, "--repair", "--yes")
    assert status == 0 and answers[-1]["repaired"] >= 3
    assert (Path(answers[-1]["copy"]) / "db" / "CURRENT").exists()
    status, answer = memctl("check", copy)
    assert (status, answer["problems"]) == (0, [])
    with Kernel.spawn(copy, embedder="none") as k:
        assert k.mem_read(made.ids[1]).content == "fact number 1"


def test_cutting_a_damaged_log_is_explicit_and_leaves_a_kernel_that_starts(made: Made, memctl: Memctl, copy: Path) -> None:
    with Edit(copy) as edit:
        key, data = edit.frame(12)
        edit.put(LOG, key, data[:-1] + bytes([data[-1] ^ 1]))
    assert memctl("check", copy, "--truncate-to", 12, "--yes")[0] == 2, "12 is bad"
    assert memctl("check", copy, "--truncate-to", 11)[0] == 2, "nobody typed it again"
    assert memctl("check", copy)[1]["good_up_to"] == 11
    status, answers = memctl("check", copy, "--truncate-to", 11, "--yes")
    assert (status, answers[-1]["offset"], answers[-1]["erased_since"]) == (0, 11, 1)
    assert memctl("check", copy)[0] == 0
    status, answer = memctl("verify", copy, "--full")
    # What was erased after the cut has lost its key all the same.
    assert {p["what"].split(",")[-1].strip() for p in answer["problems"]} == {"though nothing erased it"}
    with Edit(copy) as edit:
        assert not list(edit.store.live(INDEX).scan(b""))
    with Kernel.spawn(copy, embedder="none") as k:
        assert k.mem_read(made.ids[1]).content == "fact number 1"
        with pytest.raises(MemShredded):
            k.mem_read(made.ids[0])
        k.mem_alloc("alice", "life goes on")
    assert memctl("verify", copy)[0] == 0


def test_a_replay_to_a_point_serves_what_was_there_then(made: Made, memctl: Memctl, tmp_path: Path) -> None:
    then = memctl("digest", made.path, "--at", 13)[1]["state_digest"]
    bare, full = tmp_path / "bare", tmp_path / "full"
    status, answer = memctl("replay", made.path, "--to", 13, "--into", bare)
    assert (status, answer["offset"], answer["state_digest"]) == (0, 13, then)
    assert memctl("verify", bare)[0] == 0 and memctl("digest", bare)[1]["state_digest"] == then
    assert memctl("replay", made.path, "--to", 13, "--into", bare)[0] == 2, "it exists"
    assert memctl("replay", made.path, "--to", made.head, "--into", tmp_path / "head")[1]["state_digest"] == made.digest
    assert memctl("replay", made.path, "--to", 15, "--into", full, "--keys")[0] == 0
    assert memctl("check", full, "--key-file", made.path / "master.key")[0] == 0
    with Kernel.spawn(full, embedder="none", read_only=True, master_key_file=made.path / "master.key") as k:
        assert k.sys_info().head_offset == 15
        assert k.mem_read(made.ids[3]).state == "generated"
        assert k.mem_read(made.big).content == BIG
        with pytest.raises(MemShredded):
            k.mem_read(made.ids[0])
    assert memctl("verify", made.path)[0] == 0, "the original did not change"


def test_a_replay_to_the_middle_of_a_frame_needs_the_key(memctl: Memctl, tmp_path: Path) -> None:
    path = tmp_path / "data"
    with Kernel.spawn(path, embedder="none"):
        pass
    with Edit(path) as edit:
        frame = ev.decode_frame(edit.frame(0)[1])
    assert len(frame.records) > 1, "genesis and epoch.opened are one commit"
    status, answer = memctl("replay", path, "--to", 0, "--into", tmp_path / "new", "--no-keys")
    assert status == 2 and "inside a frame" in answer["error"]
    assert memctl("replay", path, "--to", 0, "--into", tmp_path / "new")[0] == 0
    assert memctl("digest", tmp_path / "new")[1]["offset"] == 0


def test_rekey_changes_the_master_key_and_can_be_finished_after_a_crash(
    made: Made, memctl: Memctl, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = tmp_path / "new.key"
    writes = 0
    pwrite = os.pwrite

    def crash(fd: int, data: bytes, at: int) -> int:
        nonlocal writes
        writes += 1
        if writes > 500:
            raise KeyboardInterrupt
        return pwrite(fd, data, at)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", crash)
        assert ctl.main(["rekey", str(copy), "--new-key-file", str(new)]) == ctl.INTERRUPTED
    status, answer = memctl("rekey", copy, "--new-key-file", new)
    assert status == 0 and answer["rewrapped"] > 0
    assert memctl("verify", copy, "--full", "--key-file", new)[0] == 0
    assert memctl("verify", copy)[0] == 2, "the old key opens nothing any more"
    assert memctl("rekey", copy, "--new-key-file", new)[1]["rewrapped"] == 0
    with Kernel.spawn(copy, embedder="none", master_key_file=new) as k:
        assert k.mem_read(made.ids[1]).content == "fact number 1"
        assert k.mem_read(made.big).content == BIG


# -- beside a kernel ---------------------------------------------------------------------------------------------------


def test_a_live_directory_is_read_beside_its_kernel_and_not_changed(memctl: Memctl, tmp_path: Path) -> None:
    path = tmp_path / "data"
    with Kernel.spawn(path, embedder="none") as k:
        cube = k.mem_alloc("alice", "hello").cube_id
        assert memctl("verify", path)[0] == 0
        assert memctl("audit", path, cube)[1]["entries"][0]["what"] == "made"
        assert memctl("verify", "--socket", k.path)[1]["ok"]
        snapshot = memctl("snapshot", "--socket", k.path)[1]
        assert memctl("digest", snapshot["path"])[1]["state_digest"] == snapshot["state_digest"]
        assert all(f["verdict"] != "bad" for f in memctl("doctor", path, "--socket", k.path)[1])
        for words in (("check", path, "--repair", "--yes"), ("rekey", path, "--new-key-file", tmp_path / "k")):
            status, answer = memctl(*words)
            assert status == 2 and "stop it first" in answer["error"]
        assert not (tmp_path / "k").exists()


def test_log_tail_follows_a_live_kernel(tmp_path: Path) -> None:
    path = tmp_path / "data"
    with Kernel.spawn(path, embedder="none") as k:
        command = [sys.executable, "-m", "memos_tools.ctl", "--json", "log", "tail", str(path), "--follow", "-n", "1"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follower:
            assert follower.stdout is not None
            try:
                first = json.loads(follower.stdout.readline())["offset"]
                k.mem_alloc("alice", "seen")
                until = time.monotonic() + 10
                while time.monotonic() < until:
                    record = json.loads(follower.stdout.readline())
                    assert record["offset"] == first + 1
                    first += 1
                    if record["syscall"] == "mem_alloc":
                        break
                else:
                    raise AssertionError("the new record was not followed")
            finally:
                follower.terminate()


def test_what_cannot_be_opened_is_said_with_advice(memctl: Memctl, tmp_path: Path) -> None:
    for words in (("verify", tmp_path / "no"), ("verify", tmp_path), ("verify",), ("digest", tmp_path), ("doctor",)):
        status, answer = memctl(*words)
        assert status == 2 and answer["error"], words
    assert memctl("doctor", tmp_path / "no")[0] == 1
    with pytest.raises(SystemExit) as ended:
        ctl.main(["no-such-command"])
    assert ended.value.code == 2
