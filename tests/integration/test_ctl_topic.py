"""memctl on a topic and on a live kernel's socket: every command that reads; with the keys, without, with the public key."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.outside import Daemon, Machines

from memos_client import Kernel
from memos_drivers.stores.base import LOG
from memos_drivers.stores.rocks import RocksStore
from memos_syscalls.errors import MemShredded
from memos_tools import ctl

BIG = "x" * 700_000
MIDDLE = "y" * 40_000


class Made(NamedTuple):
    """A topic that two kernels wrote, one after the other, and what happened in it."""

    machines: Machines
    ids: list[str]
    big: str
    fused: str
    receipt: bytes
    digest: str
    head: int
    public_key: str
    before_second: int
    """The first kernel's head."""

    @property
    def url(self) -> str:
        return self.machines.url

    @property
    def key(self) -> Path:
        return self.machines.key


@pytest.fixture(scope="module")
def made(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    with Machines(tmp_path_factory.mktemp("topic"), kafka, f"memos-test-{uuid.uuid4().hex[:12]}") as machines:
        first = machines.serve("one")
        with Kernel.connect(first.socket) as k:
            ids = [k.mem_alloc("alice/chat", f"fact number {i}", tags=["t"]).cube_id for i in range(5)]
            k.mem_write(ids[0], "newer", actor_note="better")
            k.mem_freeze(ids[1])
            big = k.mem_alloc("alice/docs", BIG, name="big").cube_id
            k.mem_alloc("alice/docs", MIDDLE)
            before_second = k.sys_info().head_offset
        assert first.stop() == 0
        second = machines.serve("two")
        with Kernel.connect(second.socket) as k:
            k.mem_fork("alice", "what-if")
            fused = k.mem_fuse([ids[2], ids[3]], "merge", actor_note="same thing").cube_id
            gone = k.mem_alloc("alice/chat", "to be erased").cube_id
            receipt = k.mem_shred(gone, actor_note="asked to").report.receipt
            k.mem_alloc_many([{"namespace": "bob", "content": f"b{i}"} for i in range(3)])
            info = k.sys_info()
        assert second.stop() == 0
        ids.append(gone)
        yield Made(
            machines, ids, big, fused, receipt, info.state_digest, info.head_offset, info.public_key, before_second
        )  # fmt: skip


Memctl = Callable[..., tuple[int, Any]]


@pytest.fixture
def memctl(capsys: pytest.CaptureFixture[str]) -> Memctl:
    """Runs memctl; its exit status and its answer. Several answers come as a list."""

    def run(*words: object) -> tuple[int, Any]:
        capsys.readouterr()
        status = ctl.main(["--json", *(str(word) for word in words)])
        captured = capsys.readouterr()
        answers = [json.loads(line) for line in (captured.out or captured.err).splitlines()]
        return status, answers[0] if len(answers) == 1 else answers

    return run


def test_verify(made: Made, memctl: Memctl) -> None:
    status, answer = memctl("verify", made.url, "--key-file", made.key)
    assert (status, answer["problems"], answer["macs_checked"]) == (0, [], True)
    assert answer["topic"] == {"void": 0, "suspect": 0, "foreign": 0, "torn": 0, "unproven": None, "messages": []}
    records = answer["records"]
    status, answer = memctl("verify", made.url, "--key-file", made.key, "--full")
    assert (status, answer["problems"], answer["records"]) == (0, [], records)
    for more in ([], ["--public-key", made.public_key]):
        status, answer = memctl("verify", made.url, "--no-keys", *more)
        assert (status, answer["records"], answer["macs_checked"], answer["topic"]["unproven"]) == (0, records, False, None)


def test_whose_word_it_is_is_said(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl.main(["verify", made.url, "--no-keys"]) == 0
    assert "the key that the log itself names; pass --public-key" in capsys.readouterr().out.replace("\n", " ")
    assert ctl.main(["verify", made.url, "--no-keys", "--public-key", made.public_key]) == 0
    assert "itself names" not in capsys.readouterr().out
    assert ctl.main(["verify", made.url, "--no-keys", "--public-key", "00" * 32]) == 1
    assert "holds no claim of the public key that was given" in capsys.readouterr().out.replace("\n", " ")


def test_keys_come_from_where_they_are_named(
    made: Made, memctl: Memctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # There is no directory to look for a key in.
    assert memctl("verify", made.url)[1]["macs_checked"] is False
    status, answer = memctl("verify", made.url, "--full")
    assert status == 2
    assert "no master key" in answer["error"]
    monkeypatch.setenv("MEMOS_MASTER_KEY", made.key.read_text().strip())
    assert memctl("verify", made.url)[1]["macs_checked"] is True
    # Reading it must not use it up.
    assert "MEMOS_MASTER_KEY" in os.environ
    monkeypatch.setenv("MEMOS_MASTER_KEY", "11" * 32)
    status, answer = memctl("verify", made.url)
    assert status == 2
    assert "--no-keys" in answer["error"]
    status, answer = memctl("verify", made.url, "--key-file", tmp_path / "none")
    assert status == 2
    assert "does not exist" in answer["error"]


def test_what_cannot_be_read_says_so(made: Made, memctl: Memctl) -> None:
    status, answer = memctl("verify", f"{made.url}-other", "--no-keys")
    assert status == 2
    assert "has no topic" in answer["error"]
    status, answer = memctl("verify", "kafka://nonsense", "--no-keys")
    assert status == 2
    assert "is not of the form" in answer["error"]


def test_log_and_audit(made: Made, memctl: Memctl) -> None:
    for keys in (["--key-file", made.key], ["--no-keys", "--public-key", made.public_key]):
        status, answers = memctl("log", "tail", made.url, "-n", 2000, *keys)
        assert (status, [answer["offset"] for answer in answers][:3]) == (0, [0, 1, 2])
    newest = answers[-1]["offset"]
    status, answer = memctl("log", "show", made.url, 2, "--key-file", made.key)
    assert (status, answer["events"][0]["content"]) == (0, "fact number 0")
    assert answer["events"][0]["private"]["tags"] == ["t"]
    status, answer = memctl("log", "show", made.url, f"hash:{answer['hash'][:12]}", "--no-keys")
    assert (status, answer["offset"]) == (0, 2)
    status, answer = memctl("log", "grep", made.url, "newer", "--key-file", made.key)
    assert (status, answer["syscall"]) == (0, "mem_write")
    assert memctl("log", "grep", made.url, "newer", "--no-keys")[0] == 1
    status, answers = memctl("audit", made.url, made.ids[0], "--key-file", made.key, "--format", "jsonl")
    assert (status, [entry["what"] for entry in answers][:2]) == (0, ["made", "written"])
    assert answers[1]["note"] == "better"
    status, answer = memctl("audit", made.url, made.ids[5], "--no-keys")
    assert [entry["note"] for entry in answer["entries"]][-1] == "asked to"
    assert newest >= made.head


def test_states(made: Made, memctl: Memctl, tmp_path: Path) -> None:
    status, answer = memctl("digest", made.url, "--key-file", made.key)
    assert (status, answer["view_agrees"], answer["state_digest"]) == (0, True, made.digest)
    status, answer = memctl("digest", f"{made.url}@{made.head}", "--no-keys")
    assert (status, answer["state_digest"]) == (0, made.digest)
    there = tmp_path / "there"
    assert memctl("replay", made.url, "--to", made.before_second, "--into", there, "--no-keys")[0] == 0
    status, answer = memctl("diff", f"{made.url}@{made.before_second}", there)
    assert (status, answer["equal"]) == (0, True)
    status, answer = memctl("diff", f"{made.url}@4", f"{there}@6", "--key-file", made.key)
    assert (status, len(answer["added"])) == (1, 2)
    wanted = 'grep -q newer "$MEMOS_BISECT_STATE"'
    status, answer = memctl("bisect", made.url, "--cmd", wanted, "--key-file", made.key)
    assert (status, answer["record"]["syscall"]) == (0, "mem_write")


def test_replay_makes_a_directory_that_is_served(made: Made, memctl: Memctl, tmp_path: Path) -> None:
    there = tmp_path / "there"
    status, _answer = memctl("replay", made.url, "--to", made.head, "--into", there, "--key-file", made.key, "--keys")
    assert status == 0
    store = RocksStore(there / "db", read_only=True)
    kinds = {key[:1] for key, _value in store.live(LOG).scan(b"")}
    store.close()
    assert kinds <= {b"f", b"c", b"t", b"s"}
    status, answer = memctl("verify", there, "--full")
    assert (status, answer["problems"]) == (0, [])
    with Daemon(there, "--read-only") as daemon, Kernel.connect(daemon.socket) as k:
        assert k.mem_read(made.ids[0]).content == "newer"
        assert k.mem_read(made.big).content == BIG
        with pytest.raises(MemShredded):
            k.mem_read(made.ids[5])
        info = k.sys_info()
        assert (info.state_digest, info.head_offset, info.log["kind"]) == (made.digest, made.head, "embedded")


def test_anchor_and_proof(made: Made, memctl: Memctl, tmp_path: Path) -> None:
    anchor, proven = tmp_path / "anchor.json", tmp_path / "proof.json"
    assert memctl("anchor", made.url, "--out", anchor)[0] == 0
    assert memctl("anchor", made.url, "--check", anchor, "--public-key", made.public_key)[0] == 0
    assert memctl("verify", made.url, "--anchor", anchor, "--key-file", made.key)[0] == 0
    for more in (["--reveal", "--key-file", made.key], ["--no-keys"]):
        assert memctl("prove", made.url, f"{made.ids[0]}@2", "--out", proven, *more)[0] == 0
        status, answer = memctl("prove", "--check", proven, "--public-key", made.public_key)
        assert (status, answer["version"]) == (0, 2)
    report = tmp_path / "report.json"
    assert memctl("verify", made.url, "--key-file", made.key, "--report", report)[0] == 0
    assert memctl("verify", "--check-report", report, "--public-key", made.public_key)[0] == 0
    assert json.loads(report.read_text())["source"] == made.url


def test_a_receipt(made: Made, memctl: Memctl, tmp_path: Path) -> None:
    receipt = tmp_path / "receipt"
    receipt.write_bytes(made.receipt)
    status, answer = memctl("verify", made.url, "--receipt", receipt, "--key-file", made.key)
    assert answer["receipt"]["cubes"] == [made.ids[5]]
    assert answer["receipt"]["gone_by"] is not None
    # Its key is gone, or has time left to go; or nobody has appended since, for no kernel runs.
    late = [problem["what"] for problem in answer["problems"]]
    assert status == (1 if late else 0)
    assert all("is still at offset" in what for what in late)
    status, answer = memctl("verify", made.url, "--receipt", receipt, "--no-keys")
    assert (status, "were not looked up" in answer["problems"][0]["what"]) == (1, True)


def test_doctor(made: Made, memctl: Memctl) -> None:
    status, findings = memctl("doctor", made.url, "--key-file", made.key)
    found = {finding["what"]: finding for finding in findings}
    assert status == 0, findings
    assert {found[name]["verdict"] for name in ("topics", "log", "view", "key store", "messages")} == {"ok"}


def test_progress_is_shown_on_a_terminal_only(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl.main(["digest", made.url, "--no-keys"]) == 0
    assert capsys.readouterr().err == ""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "memos_tools.ctl", "digest", made.url, "--no-keys"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs) as process:
        os.close(theirs)
        seen = b""
        # Reading from a terminal that nobody has open any more is an error.
        with contextlib.suppress(OSError):
            while True:
                seen += os.read(ours, 4096)
        assert process.wait() == 0
    os.close(ours)
    assert b"reading the topic" in seen


def test_a_live_kernel_and_one_who_follows(made: Made, memctl: Memctl) -> None:
    third = made.machines.serve("three")
    followers = [
        subprocess.Popen(
            [sys.executable, "-m", "memos_tools.ctl", "--json", "log", "tail", str(third.socket), "-f", "-n", "1", *keys],
            stdout=subprocess.PIPE, text=True,
        )
        for keys in (["--key-file", str(made.key)], ["--no-keys", "--public-key", made.public_key])
    ]  # fmt: skip
    try:
        for follower in followers:
            assert follower.stdout is not None
            assert json.loads(follower.stdout.readline())["offset"] > made.head
        with Kernel.connect(third.socket) as k:
            cube = k.mem_alloc("carol", "said while you watch").cube_id
            k.mem_write(cube, "and again")
            # Reads what is durable now, whether the checkpoint is there or not.
            status, answer = memctl("verify", third.socket, "--key-file", made.key)
            assert (status, answer["problems"]) == (0, [])
            status, answer = memctl("verify", third.socket, "--no-keys", "--public-key", made.public_key)
            assert (status, answer["problems"]) == (0, [])
            status, answer = memctl("log", "grep", third.socket, "while you watch", "--key-file", made.key)
            assert (status, answer["events"][0]["cube_id"]) == (0, cube)
            assert memctl("verify", "--socket", third.socket)[0] == 0
        # The checkpoint at the end is what the follower without keys waits for.
        assert third.stop() == 0
        for follower in followers:
            assert follower.stdout is not None
            for line in follower.stdout:
                if cube in line and '"version": 2' in line:
                    break
            else:
                raise AssertionError("it ended")
    finally:
        for follower in followers:
            follower.send_signal(signal.SIGINT)
            follower.communicate(timeout=20)
