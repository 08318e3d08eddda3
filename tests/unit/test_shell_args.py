"""Words become requests, for every row of the table, and nonsense becomes EINVAL."""

from __future__ import annotations

from pathlib import Path

import pytest

from memos_syscalls.errors import MemInvalid
from memos_syscalls.table import TABLE, Syscall
from memos_tools.shell_args import COMMANDS, split

ID = "01920000-0000-7000-8000-000000000001"
ID2 = "01920000-0000-7000-8000-000000000002"
VARIABLES = {"JOB": "0192f0c100007000800000000000000a", "ID": ID, "ID2": ID2, "a.offset": "7"}


def words(line: str) -> list[str]:
    return split(line, VARIABLES.__getitem__)


def given(line: str) -> dict[str, object]:
    word, *rest = words(line)
    return COMMANDS[word].parse(rest).model_dump(exclude_unset=True)


@pytest.mark.parametrize("call", TABLE, ids=lambda call: call.name)
def test_every_example_of_the_table_parses(call: Syscall) -> None:
    word, *rest = words(call.example)
    assert word == call.command
    assert isinstance(COMMANDS[word].parse(rest), call.request)


@pytest.mark.parametrize("call", TABLE, ids=lambda call: call.name)
def test_every_field_but_descriptors_is_an_option_with_a_description(call: Syscall) -> None:
    command = COMMANDS[call.command]
    assert set(command.fields) == set(call.request.model_fields) - {"fd", "encoding"}
    assert command.summary and command.usage().startswith(call.command)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("echo 'a $ID' \"b $ID\" $ID", ["echo", "a $ID", f"b {ID}", ID]),
        ("echo ${ID}x $a.offset # a comment", ["echo", f"{ID}x", "7"]),
        ("echo a\\ b 'c'd \"\" # $none", ["echo", "a b", "cd", ""]),
        ('echo "say \\"hi\\" for \\$5" $5', ["echo", 'say "hi" for $5', "$5"]),
        ("   # only a comment", []),
    ],
)
def test_words_are_cut_as_a_posix_shell_cuts_them(line: str, expected: list[str]) -> None:
    lookup = VARIABLES | {"5": "$5"}
    assert split(line, lookup.__getitem__) == expected


def test_options_take_their_types_from_the_model() -> None:
    assert given("alloc --namespace=a --tags x,y --tags z --metadata '{\"n\": 1}' --ttl-s 5 hello") == {
        "namespace": "a", "tags": ["x", "y", "z"], "metadata": {"n": 1}, "ttl_s": 5, "content": "hello",
    }  # fmt: skip
    assert given("sys-verify --no-full") == {"full": False}
    assert given("search q --explain --query-embedding 0.5,1") == {"query": "q", "explain": True, "query_embedding": [0.5, 1.0]}
    assert given("read $ID --parts header") == {"cube_id": ID, "parts": ("header",)}
    assert given("alloc --namespace a -- --dashes") == {"namespace": "a", "content": "--dashes"}


def test_a_printed_time_comes_back_to_the_nanosecond() -> None:
    assert given("list --at-time 2026-01-31T09:30:00.123456789Z")["at_time"] == 1769851800123456789
    assert given("list --at-time 1769851800123456789")["at_time"] == 1769851800123456789
    assert given("list --at-time 2026-01-31T09:30:00Z")["at_time"] == 1769851800000000000


def test_content_comes_from_a_file_as_text_or_as_bytes(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("naïve")
    (tmp_path / "b").write_bytes(b"\xff\x00")
    assert given(f"alloc --namespace a @{tmp_path}/t")["content"] == "naïve"
    assert given(f"alloc --namespace a @{tmp_path}/b")["content"] == b"\xff\x00"
    assert given("alloc --namespace a @@home")["content"] == "@home"


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("read", "cube_id: Field required"),
        ("read not-an-id", "cube_id: not a cube id"),
        ("read $ID $ID2", "no place for the word"),
        ("read $ID --colour red", "no option --colour"),
        ("read $ID --version", "needs a value"),
        ("read $ID --version 1 --version 2", "given 2 times"),
        ("read $ID --version one", "version"),
        ("read $ID --version 1 --at-offset 2", "not both"),
        ("alloc --namespace a//b x", "namespace"),
        ("alloc --namespace a", "give content"),
        ("alloc --namespace a @/does/not/exist", "cannot read"),
        ("alloc-many '[{'", "not JSON"),
        ("alloc 'x", "single quote"),
        ('alloc "x', "double quote"),
        ("fuse $ID --strategy melt", "strategy"),
        ("list --at-time 2026-01-31T09:30:00", "offset"),
    ],
)
def test_what_makes_no_sense_is_einval_and_says_why(line: str, part: str) -> None:
    with pytest.raises(MemInvalid) as caught:
        given(line)
    assert part in caught.value.detail
