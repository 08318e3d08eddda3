"""memctl on the past of a directory: grep, points, replay, diff, bisect and audit, and that each names a damaged frame."""

from __future__ import annotations

import csv
import io
import json
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from rich.console import Console
from tests.inside import ADMIN, ALICE, BOB, Inside

from memos_client import Kernel
from memos_drivers.stores.base import LOG, Batch
from memos_drivers.stores.rocks import RocksStore
from memos_kernel.clock import ManualClock
from memos_syscalls.errors import MemReadOnly, MemShredded
from memos_tools import ctl, output

MEMCTL = f"{shlex.quote(sys.executable)} -m memos_tools.ctl"
BIG = "x" * 60_000
HOUR = 3600


class Made(NamedTuple):
    """A stopped directory, and where in its log things happened."""

    path: Path
    ids: dict[str, str]
    at: dict[str, int]
    times: dict[str, int]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    path = tmp_path_factory.mktemp("past") / "data"
    ids: dict[str, str] = {}
    at: dict[str, int] = {}
    times: dict[str, int] = {}
    clock = ManualClock(time.time_ns() - 5 * HOUR * 10**9, step=1000)
    with Inside(path, rocks=True, clock=clock) as k:

        def do(word: str, call: str, caller: Any, /, **args: Any) -> dict[str, Any]:
            clock.advance(60)
            answer = k(call, caller, **args)
            at[word], times[word] = answer["offset"], clock.time
            return answer

        def cube(word: str, caller: Any = ALICE, namespace: str = "alice/chat", **args: Any) -> None:
            ids[word] = do(word, "mem_alloc", caller, namespace=namespace, **args)["cube_id"]

        cube("biscuit", content="Biscuit is a dachshund", name="dog", tags=["pets"])
        cube("tea", content="likes tea")
        cube("poem", content="one\ntwo\nthree")
        cube("bob", BOB, "bob", content="Bob's own")
        cube("big", content=BIG)
        do("tea2", "mem_write", ALICE, cube_id=ids["tea"], content="likes coffee", actor_note="changed her mind")
        do("poem2", "mem_write", ADMIN, cube_id=ids["poem"], content="one\n2\nthree\nfour")
        do("frozen", "mem_freeze", BOB, cube_id=ids["bob"])
        do("fork", "mem_fork", ALICE, namespace="alice/chat", to="what-if")
        cube("brief", ADMIN, "alice/chat", content="gone soon", ttl_s=100)
        clock.advance(200)
        k.tick()
        do("shred", "mem_shred", ALICE, cube_id=ids["biscuit"], actor_note="asked to")
        cube("allergy", content="allergic to nuts")
        cube("last", content="the last word")
    return Made(path, ids, at, times)


@pytest.fixture
def memctl(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Any]]:
    """Runs memctl with --json; its exit status and its answers."""

    def run(*words: object) -> tuple[int, Any]:
        capsys.readouterr()
        status = ctl.main(["--json", *(str(word) for word in words)])
        captured = capsys.readouterr()
        return status, [json.loads(line) for line in (captured.out or captured.err).splitlines()]

    return run


@pytest.fixture
def plain(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs memctl as people do; its exit status and what it printed."""

    def run(*words: object) -> tuple[int, str]:
        capsys.readouterr()
        status = ctl.main([str(word) for word in words])
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return run


Memctl = Callable[..., tuple[int, Any]]
Plain = Callable[..., tuple[int, str]]


# -- log grep ----------------------------------------------------------------------------------------------------------


def offsets(answers: list[dict[str, Any]]) -> list[int]:
    return [one["offset"] for one in answers]


def test_grep_finds_what_was_written_when_the_key_is_there(made: Made, memctl: Memctl) -> None:
    status, found = memctl("log", "grep", made.path, "coffee$")
    assert (status, offsets(found)) == (0, [made.at["tea2"]])
    assert found[0]["events"][0]["content"] == "likes coffee"
    assert found[0]["events"][0]["private"]["note"] == "changed her mind"
    assert offsets(memctl("log", "grep", made.path, "changed her mind")[1]) == [made.at["tea2"]]
    assert memctl("log", "grep", made.path, "coffee$", "--no-keys")[0] == 1
    assert memctl("log", "grep", made.path, "COFFEE")[0] == 1
    assert memctl("log", "grep", made.path, "COFFEE", "-i")[0] == 0
    assert memctl("log", "grep", made.path, "dachshund")[0] == 1, "it was erased"
    assert memctl("log", "grep", made.path, f"^cube_id +{made.ids['bob']}$", "-n", 1)[0] == 0, "public fields are searched too"


def test_grep_filters_by_who_what_and_about_what(made: Made, memctl: Memctl) -> None:
    def grep(*words: object) -> list[int]:
        status, found = memctl("log", "grep", made.path, *words)
        assert status == (0 if found else 1)
        return offsets(found)

    assert grep("--actor", "uid:1002") == [made.at["bob"], made.at["frozen"]]
    assert grep("--event", "cube.written") == [made.at["tea2"], made.at["poem2"]]
    assert grep("--syscall", "mem_fork") == [made.at["fork"]]
    assert len(grep("--syscall", "-", "--event", "cubes.expired")) == 1
    assert grep("--cube", made.ids["tea"]) == [made.at["tea"], made.at["tea2"]]
    assert grep("--namespace", "bob") == [made.at["bob"], made.at["frozen"]]
    assert {made.at["fork"], made.at["shred"], made.at["tea2"]} <= set(grep("--namespace", "alice"))
    assert grep("--namespace", "alice/chat/deeper") == [made.at["fork"]], "what is done above is done to it"
    assert grep("likes", "--actor", "uid:1001", "--event", "cube.allocated") == [made.at["tea"]]
    assert grep("--namespace", "alic") == []
    assert grep("likes", "-n", 1) == [made.at["tea"]]
    assert grep("likes", "--from", made.at["tea2"]) == [made.at["tea2"]]
    assert grep("likes", "--to", made.at["tea2"] - 1) == [made.at["tea"]]


def test_grep_prints_the_lines_that_match(made: Made, plain: Plain) -> None:
    status, text = plain("log", "grep", made.path, "coffee")
    first, second = text.splitlines()
    assert status == 0 and first.startswith(f"{made.at['tea2']}  ") and "mem_write" in first
    assert second.strip() == "content likes coffee"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["("], "not a regular expression"), ([], "name a PATTERN"), (["--event", "cube.eaten"], "the events are genesis"),
        (["--syscall", "mem_eat"], "no syscall mem_eat"), (["--cube", "tea"], "not a cube id"),
        (["x", "--from", "999999"], "beyond the head"), (["x", "--from", "3", "--to", "2"], "must not be the later"),
    ],
)  # fmt: skip
def test_grep_says_what_is_wrong_with_its_arguments(made: Made, plain: Plain, words: list[str], says: str) -> None:
    status, text = plain("log", "grep", made.path, *words)
    assert status == 2 and says in text


# -- points ------------------------------------------------------------------------------------------------------------


def test_a_record_s_hash_is_a_point_like_an_offset_or_a_time(made: Made, memctl: Memctl) -> None:
    record = memctl("log", "show", made.path, made.at["tea2"])[1][0]
    assert memctl("log", "show", made.path, f"hash:{record['hash'][:8]}")[1][0] == record
    assert memctl("log", "show", made.path, f"hash:{record['hash'].upper()}")[1][0] == record
    assert memctl("log", "show", made.path, record["hash"])[1][0] == record, "64 digits hold a letter"
    assert memctl("log", "show", made.path, record["time"])[1][0] == record
    at = f"{made.path}@hash:{record['hash'][:16]}"
    assert memctl("digest", at)[1][0]["offset"] == made.at["tea2"]


@pytest.mark.parametrize(
    ("point", "says"),
    [
        ("hash:00000000", "no record's hash begins with"), ("hash:abc", "8 to 64 hexadecimal digits"),
        ("abc", "8 to 64 hexadecimal digits"), ("hash:wrong-digits", "8 to 64 hexadecimal digits"),
        ("123456789", "beyond the head"), ("soon", "neither an offset nor a time"), ("²", "neither an offset nor a time"),
        ("1999-01-01T00:00:00Z", "nothing from before"),
    ],
)  # fmt: skip
def test_a_point_that_names_nothing_is_refused_with_advice(made: Made, plain: Plain, point: str, says: str) -> None:
    for words in (("log", "show", made.path, point), ("replay", made.path, "--to", point, "--into", made.path.parent / "new")):
        status, text = plain(*words)
        assert status == 2 and says in text, words


# -- replay ------------------------------------------------------------------------------------------------------------


def test_a_replay_is_served_read_only_as_it_was_then(made: Made, memctl: Memctl, tmp_path: Path) -> None:
    then = tmp_path / "then"
    status, answers = memctl("replay", made.path, "--to", made.at["tea2"] - 1, "--into", then)
    assert status == 0 and answers[0]["keys"] is True
    assert answers[0]["state_digest"] == memctl("digest", f"{made.path}@{made.at['tea2'] - 1}")[1][0]["state_digest"]
    assert (then / "master.key").is_symlink()
    assert memctl("verify", then)[0] == 0 and memctl("check", then)[0] == 0
    with Kernel.spawn(then, embedder="none", read_only=True) as k:
        assert k.mem_read(made.ids["tea"]).content == "likes tea"
        assert k.mem_read(made.ids["big"]).content == BIG
        with pytest.raises(MemShredded):
            k.mem_read(made.ids["biscuit"])
        with pytest.raises(MemReadOnly):
            k.mem_write(made.ids["tea"], "no")
    assert memctl("replay", then, "--to", made.at["tea"], "--into", tmp_path / "again")[0] == 0, "a replay can be replayed"


def test_a_replay_without_keys_holds_what_is_public(made: Made, memctl: Memctl, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    status, answers = memctl("replay", made.path, "--to", made.at["fork"], "--into", bare, "--no-keys")
    assert status == 0 and answers[0]["keys"] is False and not (bare / "keys").exists() and not (bare / "master.key").exists()
    assert memctl("verify", bare)[0] == 0
    assert memctl("replay", made.path, "--to", made.at["fork"], "--into", tmp_path / "x", "--no-keys", "--keys")[0] == 2


def test_progress_is_for_terminals(made: Made) -> None:
    for terminal, json_wanted, shown in ((True, False, True), (False, False, False), (True, True, False)):
        err = io.StringIO()
        out = output.Output(Console(file=io.StringIO()), Console(file=err, force_terminal=terminal), json=json_wanted)
        with out.progress("replaying", 10) as progress:
            progress(7)
        assert ("7/10" in err.getvalue()) is shown


# -- diff --------------------------------------------------------------------------------------------------------------


def test_diff_tells_added_changed_and_owners_apart(made: Made, memctl: Memctl, plain: Plain) -> None:
    a, b = f"{made.path}@{made.at['poem']}", f"{made.path}@{made.at['brief']}"
    status, answers = memctl("diff", a, b)
    answer = answers[0]
    assert status == 1 and answer["removed"] == [] and answer["moved"] == []
    assert answer["owners"] == {"bob": [None, "uid:1002"], "what-if": [None, "uid:1001"]}
    assert {c["cube_id"]: c["version"] for c in answer["changed"]} == {made.ids["tea"]: [1, 2], made.ids["poem"]: [1, 2]}
    assert {made.ids["bob"], made.ids["big"], made.ids["brief"]} <= {c["cube_id"] for c in answer["added"]}
    later = memctl("diff", b, made.path)[1][0]
    states = {c["cube_id"]: c["state"] for c in later["changed"]}
    assert states[made.ids["brief"]] == ["generated", "expired"]
    assert states[made.ids["biscuit"]] == ["generated", "shredded"]
    assert [c["cube_id"] for c in memctl("diff", b, a)[1][0]["added"]] == []
    assert "this log knows no other grants" in plain("diff", a, b)[1]
    assert memctl("diff", a, a)[0] == 0


# -- bisect ------------------------------------------------------------------------------------------------------------


def scratch_left() -> set[str]:
    return {path.name for path in Path(tempfile.gettempdir()).glob("memos-bisect-*")}


def test_bisect_finds_the_first_record_at_which_the_state_says_yes(made: Made, memctl: Memctl, plain: Plain) -> None:
    before = scratch_left()
    status, answers = memctl("bisect", made.path, "--cmd", 'grep -q "allergic to nuts" "$MEMOS_BISECT_STATE"')
    answer = answers[0]
    assert (status, answer["found"], answer["offset"]) == (0, True, made.at["allergy"])
    assert answer["record"]["events"][0]["content"] == "allergic to nuts" and answer["runs"] < 10
    assert memctl("log", "show", made.path, made.at["allergy"])[1][0] == answer["record"]
    shredded = f'grep {made.ids["biscuit"]} "$MEMOS_BISECT_STATE" | grep -q shredded'
    assert memctl("bisect", made.path, "--cmd", shredded, "--from", made.at["fork"])[1][0]["offset"] == made.at["shred"]
    status, text = plain("bisect", made.path, "--cmd", f'test "$MEMOS_BISECT_OFFSET" -ge {made.at["fork"]}')
    assert status == 0 and f"offset {made.at['fork']}: the command says yes for the first time" in text
    # Genesis and the first epoch share a frame: without the key it is cut all the same.
    second = 'test "$MEMOS_BISECT_OFFSET" -ge 1 && test -d "$MEMOS_BISECT_DIR/db"'
    assert memctl("bisect", made.path, "--no-keys", "--cmd", second)[1][0]["offset"] == 1
    assert scratch_left() == before


def test_bisect_gives_the_state_as_json_lines(made: Made, memctl: Memctl, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    at = made.at["tea2"]
    for words in ((), ("--no-keys",)):
        command = f'cp "$MEMOS_BISECT_STATE" {kept}'
        assert memctl("bisect", made.path, "--cmd", command, "--from", at, "--to", at, *words)[0] == 0
        cubes = {cube["cube_id"]: cube for cube in map(json.loads, kept.read_text().splitlines())}
        tea = cubes[made.ids["tea"]]
        public = {"namespace": "alice/chat", "version": 2, "state": "activated", "form": "plaintext", "expires_at": None}
        assert tea.items() >= public.items()
        if words:
            assert "content" not in tea
        else:
            assert (tea["content"], tea["tags"], len(cubes[made.ids["big"]]["content"])) == ("likes coffee", [], 1000)
            assert cubes[made.ids["biscuit"]]["erased"] is True and cubes[made.ids["biscuit"]]["content"] is None
        assert len(cubes) == 5


def test_bisect_gives_a_directory_that_memctl_and_memosd_can_open(made: Made, memctl: Memctl) -> None:
    wanted = memctl("digest", f"{made.path}@{made.at['frozen']}")[1][0]["state_digest"]
    # A command that spoils its directory spoils nothing else.
    command = (
        f'{MEMCTL} verify "$MEMOS_BISECT_DIR" >/dev/null || exit 125; '
        f'{MEMCTL} digest "$MEMOS_BISECT_DIR" > "$MEMOS_BISECT_DIR/out"; s=$(cat "$MEMOS_BISECT_DIR/out"); '
        f'rm -rf "$MEMOS_BISECT_DIR"/db/*; case "$s" in *{wanted}*) exit 0;; *) exit 1;; esac'
    )
    first, last = made.at["frozen"] - 2, made.at["frozen"]
    status, answers = memctl("bisect", made.path, "--cmd", command, "--from", first, "--to", last)
    assert (status, answers[0]["offset"]) == (0, made.at["frozen"])
    assert memctl("verify", made.path)[0] == 0, "the original did not change"


def test_bisect_says_when_there_is_nothing_to_find_or_no_telling(made: Made, memctl: Memctl, plain: Plain) -> None:
    status, answers = memctl("bisect", made.path, "--cmd", "false")
    assert status == 1 and answers[0]["found"] is False and answers[0]["runs"] == 2
    status, answers = memctl("bisect", made.path, "--cmd", "true", "--from", 4)
    assert status == 0 and answers[0]["offset"] == 4 and answers[0]["at_first"] is True
    for command, says in (
        ("exit 125", "ended with exit status 125"), ("exit 200", "exit status 200"), ("kill -9 $$", "signal 9"),
        ("no-such-program", "exit status 127"),
    ):  # fmt: skip
        status, text = plain("bisect", made.path, "--cmd", command, "--from", 4)
        assert status == 2 and says in text and "at offset 4" in text
    assert plain("bisect", made.path, "--cmd", "true", "--from", 5, "--to", 4)[0] == 2
    with pytest.raises(SystemExit):
        ctl.main(["bisect", str(made.path)])


# -- audit -------------------------------------------------------------------------------------------------------------


def audited(memctl: Memctl, *words: object) -> list[dict[str, Any]]:
    status, answers = memctl("audit", *words)
    assert status == 0
    entries: list[dict[str, Any]] = answers[0]["entries"]
    return entries


def test_audit_names_the_right_under_which_it_was_done(made: Made, memctl: Memctl) -> None:
    rights = {entry["offset"]: entry["right"] for entry in audited(memctl, made.path)}
    assert rights[made.at["biscuit"]] == "first in alice/chat"
    assert rights[made.at["tea2"]] == "owner of alice/chat"
    assert rights[made.at["poem2"]] == "admin" and rights[made.at["brief"]] == "admin"
    assert rights[made.at["frozen"]] == "owner of bob"
    expired = [entry for entry in audited(memctl, made.path, made.ids["brief"]) if entry["what"] == "expired"]
    assert [(entry["right"], entry["actor"], entry["syscall"]) for entry in expired] == [("kernel itself", "kernel", "-")]


def test_audit_shows_what_was_before_and_after(made: Made, memctl: Memctl) -> None:
    made_, written, copied = audited(memctl, made.path, made.ids["tea"])
    assert made_["before"] is None and made_["after"]["version"] == 1 and made_["change"] == "+ 'likes tea'"
    assert (written["before"]["version"], written["after"]["version"]) == (1, 2)
    assert (written["before"]["state"], written["after"]["state"], written["state"]) == ("generated", "activated", "activated")
    assert written["before"]["digest"] != written["after"]["digest"] and written["after"]["namespace"] == "alice/chat"
    assert (written["change"], written["note"]) == ("'likes tea' -> 'likes coffee'", "changed her mind")
    assert copied["before"] == copied["after"] and copied["state"] is None
    assert audited(memctl, made.path, made.ids["poem"])[1]["change"] == "+2 -1 lines"
    gone = audited(memctl, made.path, made.ids["biscuit"])
    assert gone[0]["change"] == "(erased)" and gone[-1]["note"] == "asked to"
    public = audited(memctl, made.path, made.ids["tea"], "--no-keys")[1]
    assert (public["change"], public["note"]) == (None, "(no key)")
    assert audited(memctl, made.path, made.ids["big"])[0]["change"] == "+ 60000 characters"


def test_audit_writes_tables_json_lines_and_csv(made: Made, plain: Plain) -> None:
    status, text = plain("audit", made.path, "alice", "--format", "jsonl")
    lines = [json.loads(line) for line in text.splitlines()]
    assert status == 0 and [line["offset"] for line in lines][:2] == [made.at["biscuit"], made.at["tea"]]
    rows = list(csv.DictReader(io.StringIO(plain("audit", made.path, "alice", "--format", "csv")[1])))
    assert [int(row["offset"]) for row in rows] == [line["offset"] for line in lines]
    written = next(row for row in rows if row["what"] == "written")
    assert (written["right"], written["before_version"], written["after_state"]) == ("owner of alice/chat", "1", "activated")
    assert written["note"] == "changed her mind"
    table = plain("audit", made.path, "alice", "--format", "table")[1]
    assert table.splitlines()[0].startswith("namespace alice: ") and "v1 generated" in table and "owner of alice/chat" in table


def test_audit_looks_at_a_part_of_the_log(made: Made, memctl: Memctl) -> None:
    part = audited(memctl, made.path, "--from", made.at["tea2"], "--to", made.at["frozen"])
    assert [entry["offset"] for entry in part] == [made.at["tea2"], made.at["poem2"], made.at["frozen"]]
    everything = audited(memctl, made.path)
    copies = [entry for entry in everything if entry["what"].startswith("forked from ")]
    assert len(copies) == 4 and all(entry["before"] is None for entry in copies)
    assert memctl("audit", made.path, "nobody")[0] == 2


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["log", "tail", "-n", "100"], ["log", "grep", "zzz"], ["audit"], ["audit", "--format", "csv"], ["digest"],
        ["replay", "--to", "12", "--into", "new"], ["bisect", "--cmd", "false"], ["log", "show", "8"],
        ["log", "show", "hash:12345678"],
    ],
    ids=lambda words: "-".join(words[:3]),
)  # fmt: skip
def test_every_command_names_the_offset_of_a_damaged_frame(
    made: Made, plain: Plain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    copy = shutil.copytree(made.path, tmp_path / "copy", ignore=shutil.ignore_patterns("lock"))
    store = RocksStore(copy / "db")
    batch = Batch()
    key = next(key for key, _value in store.live(LOG).scan(b"f") if int.from_bytes(key[1:], "big") == 8)
    batch.put(LOG, key, b"\xc1 garbage")
    store.write(batch)
    store.sync()
    store.close()
    command = words[:2] if words[0] == "log" else words[:1]
    status, text = plain(*command, copy, *words[len(command) :])
    assert status in (1, 2) and "offset 8" in text and "memctl check" in text
    assert not (tmp_path / "new").exists()
