"""A log moves between directories and topics: it stays the same log, and there is one place where it may be written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from memos_client import Kernel
from memos_drivers.stores.base import LOG, PAYLOAD
from memos_drivers.stores.rocks import RocksStore
from memos_kernel import events as ev
from memos_kernel.eventlog import mirror
from memos_syscalls.errors import MemError, MemReadOnly, MemShredded
from memos_tools import copy, ctl

BIG = bytes(range(256)) * 4096
MIDDLE = "m" * 40_000


class Made(NamedTuple):
    """A stopped directory, and what is in it."""

    path: Path
    kept: str
    big: str
    middle: str
    forked: str
    erased: str


def fill(path: Path) -> Made:
    with Kernel.spawn(path, embedder="none") as k:
        kept = k.mem_alloc("alice/chat", "first", request_id="r1").cube_id
        k.mem_write(kept, "second")
        big = k.mem_alloc("alice/docs", BIG).cube_id
        middle = k.mem_alloc("alice/docs", MIDDLE).cube_id
        erased = k.mem_alloc("alice/secrets", "s" * 30_000).cube_id
        k.mem_fork("alice/docs", "what-if")
        (forked,) = (c.cube_id for c in k.mem_list("what-if") if k.mem_read(c.cube_id).content == BIG)
        k.mem_shred(erased)
    with Kernel.spawn(path, embedder="none") as k:
        k.mem_alloc("bob", "of the second epoch")
    return Made(path, kept, big, middle, forked, erased)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return fill(tmp_path_factory.mktemp("copy") / "data")


@pytest.fixture
def made(original: Made, tmp_path: Path) -> Made:
    """The directory again, for one test to move."""
    path = shutil.copytree(original.path, tmp_path / "data", ignore=shutil.ignore_patterns("memos.sock", "lock"))
    return original._replace(path=path)


@pytest.fixture
def memctl(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def run(*words: str | Path) -> tuple[int, str]:
        capfd.readouterr()
        status = ctl.main([str(word) for word in words])
        found = capfd.readouterr()
        return status, found.out + found.err

    return run


Run = Callable[..., tuple[int, str]]


def copied(memctl: Run, *words: str | Path) -> dict[str, Any]:
    status, text = memctl("--json", "copy", *words)
    assert status == 0, text
    (answer,) = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert answer["equal"] and answer["source_digest"] == answer["copy_digest"]
    return dict(answer)


def check(k: Kernel, made: Made) -> None:
    assert k.mem_read(made.kept).content == "second" and k.mem_read(made.kept, version=1).content == "first"
    assert k.mem_read(made.big).content == BIG and k.mem_read(made.forked).content == BIG
    assert k.mem_read(made.middle).content == MIDDLE
    with pytest.raises(MemShredded):
        k.mem_read(made.erased)


def check_writable(k: Kernel, made: Made) -> None:
    check(k, made)
    head = k.sys_info().head_offset
    assert k.mem_alloc("alice/chat", "first", request_id="r1").cube_id == made.kept, "a call is answered once"
    assert k.sys_info().head_offset in (head, head + 1), "nothing but a checkpoint was appended"
    k.mem_alloc("bob", "at the new place")


def refused(k: Kernel, why: str) -> None:
    assert k.sys_info().read_only
    with pytest.raises(MemReadOnly, match=why):
        k.mem_alloc("bob", "must not be")


def ends_signed(path: Path) -> None:
    """The last two records are log.moved and the checkpoint that covers it, in one frame."""
    store = RocksStore(path / "db", read_only=True)
    try:
        frames = [data for _key, data in store.live(LOG).scan(b"f")]
    finally:
        store.close()
    records = [ev.decode_record(raw) for raw in ev.decode_frame(frames[-1]).records]
    assert [record.events[0].name for record in records] == [ev.MOVED, ev.CHECKPOINT]


# -- from directory to directory -----------------------------------------------------------------------------------------


def test_a_log_moves_to_a_new_directory_and_is_closed_where_it_was(made: Made, tmp_path: Path, memctl: Run) -> None:
    target = tmp_path / "moved"
    answer = copied(memctl, made.path, target)
    assert answer["closed"] and not (tmp_path / "moved.partial").exists()
    ends_signed(made.path)
    with Kernel.spawn(target, embedder="none") as k:
        check_writable(k, made)
    with Kernel.spawn(made.path, embedder="none") as k:
        check(k, made)
        refused(k, "moved to its copy")
    for path in (made.path, target):
        status, text = memctl("verify", "--full", path)
        assert status == 0, text
    # Every stored ciphertext is the same.
    pieces = []
    for path in (made.path, target):
        store = RocksStore(path / "db", read_only=True)
        pieces.append(dict(store.live(PAYLOAD).scan(b"")))
        store.close()
    assert pieces[0].items() <= pieces[1].items()


def test_erased_keys_are_not_copied(made: Made, tmp_path: Path, memctl: Run) -> None:
    copied(memctl, made.path, tmp_path / "moved")
    slots = (tmp_path / "moved" / "keys" / "slots").read_bytes()
    live = [at for at in range(16_384, len(slots), 128) if slots[at] == 1]
    assert len(live) == 4, "kept, big, middle, and bob's; the erased one's is gone, and so is what was made in advance"
    original = (made.path / "keys" / "slots").read_bytes()
    assert all(slots[at + 32 : at + 92] not in original for at in live), "wrapped anew"


def test_a_closed_log_is_copied_nowhere_else_but_as_a_backup(made: Made, tmp_path: Path, memctl: Run) -> None:
    copied(memctl, made.path, tmp_path / "moved")
    status, text = memctl("copy", made.path, tmp_path / "other")
    assert status == 2 and "moved already" in text and not (tmp_path / "other").exists()
    assert not copied(memctl, "--no-close", made.path, tmp_path / "backup")["closed"]
    status, text = memctl("copy", tmp_path / "backup", tmp_path / "other")
    assert status == 2 and "--no-close" in text


def test_a_copy_without_the_record_opens_read_only_unless_taken_over(made: Made, tmp_path: Path, memctl: Run) -> None:
    backup = tmp_path / "backup"
    with Kernel.spawn(made.path, embedder="none") as source:
        assert not copied(memctl, "--no-close", made.path, backup)["closed"]
        source.mem_alloc("bob", "the source goes on")
    with Kernel.spawn(backup, embedder="none") as k:
        check(k, made)
        refused(k, "may still be written elsewhere")
    with Kernel.spawn(backup, embedder="none", take_over=True) as k:
        check_writable(k, made)
    with Kernel.spawn(backup, embedder="none") as k:
        assert not k.sys_info().read_only, "it is at home now"
    status, text = memctl("--json", "log", "tail", "-n", "30", backup)
    assert status == 0 and text.count(ev.MOVED) == 1, text
    with Kernel.spawn(made.path, embedder="none") as k:
        assert not k.sys_info().read_only, "nobody closed the source"


def test_a_log_that_moved_can_be_taken_back_by_force(made: Made, tmp_path: Path, memctl: Run) -> None:
    copied(memctl, made.path, tmp_path / "moved")
    with Kernel.spawn(made.path, embedder="none", take_over=True) as k:
        check_writable(k, made)
    with Kernel.spawn(made.path, embedder="none") as k:
        assert not k.sys_info().read_only
    status, text = memctl("verify", "--full", made.path)
    assert status == 0, text


def test_what_cannot_be_copied_is_refused_and_nothing_is_closed(
    made: Made, tmp_path: Path, memctl: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.key"
    other.write_text("00" * 32)
    other.chmod(0o600)
    status, text = memctl("copy", "--key-file", other, made.path, tmp_path / "moved")
    assert status == 2 and "master key" in text
    full = tmp_path / "full"
    full.mkdir()
    (full / "something").touch()
    for close in ((), ("--no-close",)):
        status, text = memctl("copy", *close, made.path, full)
        assert status == 2 and "not empty" in text
    status, text = memctl("copy", tmp_path / "nothing", tmp_path / "moved")
    assert status == 2 and "not a directory" in text
    with Kernel.spawn(made.path, embedder="none") as k:
        status, text = memctl("copy", made.path, tmp_path / "moved")
        assert status == 2 and "stop it first" in text
        check_writable(k, made)


def test_a_key_from_the_environment_serves_for_both_and_is_not_written(
    made: Made, tmp_path: Path, memctl: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = (made.path / "master.key").read_text().strip()
    (made.path / "master.key").unlink()
    monkeypatch.setenv("MEMOS_MASTER_KEY", key)
    copied(memctl, made.path, tmp_path / "moved")
    assert os.environ["MEMOS_MASTER_KEY"] == key and not (tmp_path / "moved" / "master.key").exists()
    with Kernel.spawn(tmp_path / "moved", embedder="none") as k:
        check_writable(k, made)


# -- broken off ----------------------------------------------------------------------------------------------------------

CHILD = """
import os, signal, sys
from memos_tools import copy, copytarget, ctl
step, words = sys.argv[1], sys.argv[2:]

def dies(owner, name, before):
    real = getattr(owner, name)
    def wrapper(*args, **kwargs):
        if before:
            os.kill(os.getpid(), signal.SIGKILL)
        real(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(owner, name, wrapper)

if step == "keys":
    dies(copy, "put_keys", True)
elif step == "records":
    dies(copy._Carrying, "log", False)
elif step == "moved":
    from memos_kernel.dispatch import Kernel
    real = Kernel.stop
    async def stop(self):
        await self.drained()
        os.kill(os.getpid(), signal.SIGKILL)
    Kernel.stop = stop
elif step == "view":
    dies(copytarget, "replay", False)
elif step == "name":
    dies(copytarget.os, "rename", False)
elif step == "compare":
    dies(copy, "_digest_of", True)
sys.exit(ctl.main(words))
"""


def dying(step: str, *words: str | Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, step, "copy", *map(str, words)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == -signal.SIGKILL, (step, done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("step", ["keys", "records", "name"])
def test_killed_before_the_source_is_closed_it_goes_on_and_the_copy_begins_again(
    made: Made, tmp_path: Path, memctl: Run, step: str
) -> None:
    target = tmp_path / "moved"
    dying(step, made.path, target)
    assert not target.exists()
    with Kernel.spawn(made.path, embedder="none") as k:
        check_writable(k, made)
        k.mem_shred(made.middle)
    if step == "records":
        # What is there so far is no log that could be written.
        with Kernel.spawn(shutil.copytree(tmp_path / "moved.partial", tmp_path / "half"), embedder="none",
                          master_key_file=made.path / "master.key") as k:  # fmt: skip
            refused(k, "may still be written elsewhere")
    copied(memctl, made.path, target)
    with Kernel.spawn(target, embedder="none") as k, pytest.raises(MemShredded):
        k.mem_read(made.middle)


@pytest.mark.parametrize("step", ["moved", "view"])
def test_killed_after_the_source_is_closed_the_same_command_finishes(
    made: Made, tmp_path: Path, memctl: Run, step: str
) -> None:
    target = tmp_path / "moved"
    dying(step, made.path, target)
    with Kernel.spawn(made.path, embedder="none") as k:
        refused(k, "moved to its copy")
    status, text = memctl("copy", made.path, tmp_path / "other")
    assert status == 2 and "moved already" in text
    assert copied(memctl, made.path, target)["closed"]
    with Kernel.spawn(target, embedder="none") as k:
        check_writable(k, made)


def test_killed_when_all_is_done_the_same_command_says_so(made: Made, tmp_path: Path, memctl: Run) -> None:
    target = tmp_path / "moved"
    dying("compare", made.path, target)
    status, text = memctl("copy", made.path, target)
    assert status == 2 and "it is complete; go on there" in text
    with Kernel.spawn(target, embedder="none") as k:
        check_writable(k, made)


def test_a_copy_that_turns_out_different_is_reported(
    made: Made, tmp_path: Path, memctl: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_args: object) -> str:
        return "00" * 32

    monkeypatch.setattr(copy, "_digest_of", wrong)
    status, text = memctl("copy", made.path, tmp_path / "moved")
    assert status == 1 and "do not use it" in text


# -- to Kafka and back ---------------------------------------------------------------------------------------------------


def test_embedded_to_kafka_to_embedded(made: Made, tmp_path: Path, memctl: Run, kafka: str, topic: str) -> None:
    url, key = f"kafka://{kafka}/{topic}", made.path / "master.key"
    with Kernel.spawn(made.path, embedder="none") as k:
        digest = k.sys_info().state_digest
    assert copied(memctl, made.path, url)["copy_digest"] == digest
    ends_signed(made.path)
    with Kernel.spawn(made.path, embedder="none") as k:
        refused(k, "moved to its copy")
    with Kernel.spawn(tmp_path / "on-kafka", embedder="none", log=url, master_key_file=key) as k:
        assert k.sys_info().state_digest == digest
        check_writable(k, made)
        k.mem_shred(made.middle)
        later = k.mem_alloc("bob", BIG).cube_id
        digest = k.sys_info().state_digest
    status, text = memctl("copy", tmp_path / "on-kafka", tmp_path / "x")
    assert status == 2 and "name that, kafka://" in text, "a mirror is not the log"
    home = tmp_path / "home"
    assert copied(memctl, "--key-file", key, url, home)["copy_digest"] == digest
    store = RocksStore(home / "db", read_only=True)
    assert mirror.origin(store.live(LOG)) is None and not list(store.live(LOG).scan(b"a"))
    store.close()
    with Kernel.spawn(tmp_path / "on-kafka", embedder="none", log=url, master_key_file=key) as k:
        refused(k, "moved to its copy")
    with Kernel.spawn(home, embedder="none") as k:
        assert k.sys_info().state_digest == digest and k.mem_read(later).content == BIG
        assert k.mem_read(made.kept).content == "second"
        with pytest.raises(MemShredded):
            k.mem_read(made.middle)
        k.mem_alloc("bob", "at home again")
    status, text = memctl("check", home)
    assert status == 0, text
    for words in ((home,), ("--key-file", key, url)):
        status, text = memctl("verify", "--full", *words)
        assert status == 0, text


def test_topics_killed_half_way_are_finished(made: Made, tmp_path: Path, memctl: Run, kafka: str, topic: str) -> None:
    url, key = f"kafka://{kafka}/{topic}", made.path / "master.key"
    dying("keys", made.path, url)
    dying("records", made.path, url)
    with Kernel.spawn(tmp_path / "half", embedder="none", log=url, master_key_file=key) as k:
        refused(k, "may still be written elsewhere")
    with Kernel.spawn(made.path, embedder="none") as k:
        k.mem_shred(made.middle)
    dying("moved", made.path, url)
    with Kernel.spawn(made.path, embedder="none") as k:
        refused(k, "moved to its copy")
    assert copied(memctl, made.path, url)["closed"]
    with Kernel.spawn(tmp_path / "on-kafka", embedder="none", log=url, master_key_file=key) as k:
        k.mem_alloc("bob", "it goes on")
        public_key = k.sys_info().public_key
        with pytest.raises(MemShredded):
            k.mem_read(made.middle)
    status, text = memctl("copy", made.path, url)
    assert status == 2 and "go on there" in text
    status, text = memctl("verify", "--no-keys", "--public-key", public_key, url)
    assert status == 0, text


def test_topics_are_refused_that_hold_something_else(made: Made, tmp_path: Path, memctl: Run, kafka: str, topic: str) -> None:
    url, key = f"kafka://{kafka}/{topic}", made.path / "master.key"
    with Kernel.spawn(tmp_path / "other", embedder="none", log=url) as k:
        k.mem_alloc("bob", "another log")
    status, text = memctl("copy", made.path, url)
    assert status == 2 and "holds another log" in text
    status, text = memctl("copy", "--key-file", key, url, tmp_path / "x")
    assert status == 2 and "master key" in text
    status, text = memctl("copy", "--key-file", tmp_path / "other" / "master.key", url, url)
    assert status == 2 and "not a copy" in text
    with Kernel.spawn(tmp_path / "other", embedder="none", log=url) as k:
        k.mem_alloc("bob", "unharmed")


def test_a_backup_of_a_topic_while_it_is_written(tmp_path: Path, memctl: Run, kafka: str, topic: str) -> None:
    url, backup = f"kafka://{kafka}/{topic}", tmp_path / "backup"
    with Kernel.spawn(tmp_path / "data", embedder="none", log=url) as k:
        kept = k.mem_alloc("bob", BIG).cube_id
        assert not copied(memctl, "--no-close", "--key-file", tmp_path / "data" / "master.key", url, backup)["closed"]
        k.mem_alloc("bob", "it goes on")
    with Kernel.spawn(backup, embedder="none") as k:
        assert k.mem_read(kept).content == BIG
        refused(k, "may still be written elsewhere")


def test_a_kernel_that_writes_to_the_topic_is_replaced(tmp_path: Path, memctl: Run, kafka: str, topic: str) -> None:
    url, key = f"kafka://{kafka}/{topic}", tmp_path / "data" / "master.key"
    with Kernel.spawn(tmp_path / "data", embedder="none", log=url) as k:
        kept = k.mem_alloc("bob", "before").cube_id
        assert copied(memctl, "--key-file", key, url, tmp_path / "moved")["closed"]
        with pytest.raises(MemError):
            k.mem_alloc("bob", "not here any more")
    with Kernel.spawn(tmp_path / "moved", embedder="none") as k:
        assert k.mem_read(kept).content == "before"


def test_a_standby_does_not_take_over_a_log_that_moved(tmp_path: Path, memctl: Run, kafka: str, topic: str) -> None:
    url, key = f"kafka://{kafka}/{topic}", tmp_path / "data" / "master.key"
    with Kernel.spawn(tmp_path / "data", embedder="none", log=url) as k:
        k.mem_alloc("bob", "before")
    with Kernel.spawn(tmp_path / "second", embedder="none", log=url, standby=True, master_key_file=key) as standby:
        copied(memctl, "--key-file", key, url, tmp_path / "moved")
        with pytest.raises(MemError, match="moved to its copy"):
            standby.sys_promote()
        assert standby.sys_info().standby
    status, text = memctl("verify", "--full", "--key-file", key, url)
    assert status == 0, text


def test_from_topics_to_topics_killed_on_the_way(made: Made, tmp_path: Path, memctl: Run, kafka: str, topic: str) -> None:
    first, second, key = f"kafka://{kafka}/{topic}", f"kafka://{kafka}/{topic}-b", made.path / "master.key"
    copied(memctl, made.path, first)
    dying("records", "--key-file", key, first, second)
    with Kernel.spawn(tmp_path / "a", embedder="none", log=first, master_key_file=key) as k:
        check_writable(k, made)
    dying("moved", "--key-file", key, first, second)
    copied(memctl, "--key-file", key, first, second)
    with Kernel.spawn(tmp_path / "b", embedder="none", log=second, master_key_file=key) as k:
        check_writable(k, made)
    status, text = memctl("verify", "--full", "--key-file", key, second)
    assert status == 0, text


def test_back_to_topics_that_it_came_from(made: Made, tmp_path: Path, memctl: Run, kafka: str, topic: str) -> None:
    url, key = f"kafka://{kafka}/{topic}", made.path / "master.key"
    copied(memctl, made.path, url)
    copied(memctl, "--key-file", key, url, tmp_path / "home")
    with Kernel.spawn(tmp_path / "home", embedder="none") as k:
        k.mem_shred(made.middle)
        later = k.mem_alloc("bob", BIG).cube_id
    copied(memctl, tmp_path / "home", url)
    with Kernel.spawn(tmp_path / "on-kafka", embedder="none", log=url, master_key_file=key) as k:
        assert not k.sys_info().read_only and k.mem_read(later).content == BIG
        with pytest.raises(MemShredded):
            k.mem_read(made.middle)
    with Kernel.spawn(tmp_path / "home", embedder="none") as k:
        refused(k, "moved to its copy")


def test_taking_a_copy_over_on_kafka(made: Made, tmp_path: Path, memctl: Run, kafka: str, topic: str) -> None:
    url, key = f"kafka://{kafka}/{topic}", made.path / "master.key"
    assert not copied(memctl, "--no-close", made.path, url)["closed"]
    with Kernel.spawn(tmp_path / "a", embedder="none", log=url, master_key_file=key) as k:
        check(k, made)
        refused(k, "may still be written elsewhere")
    with Kernel.spawn(tmp_path / "a", embedder="none", log=url, master_key_file=key, take_over=True) as k:
        check_writable(k, made)
    with Kernel.spawn(tmp_path / "b", embedder="none", log=url, master_key_file=key) as k:
        assert not k.sys_info().read_only
        check_writable(k, made)
    status, text = memctl("copy", made.path, url)
    assert status == 2 and "other records" in text, "the two are different logs now"
