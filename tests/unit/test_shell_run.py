"""The shell around its commands: variables, scripts, output and exit status, on a stub in place of a kernel."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console

from memos_syscalls import messages as m
from memos_syscalls.errors import MemConflict, MemInvalid, MemUnreachable
from memos_syscalls.messages import FuseStrategy
from memos_tools.shell import Shell, main
from memos_tools.shell_prompt import Completions, converse

ID = "01920000-0000-7000-8000-000000000001"


class Stub:
    """Answers as a kernel might, and remembers what it was asked."""

    hello = m.SysHelloReply(abi=1, principal="uid:7", server="stub", log_id="ab" * 16)
    path = "/run/stub.sock"

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.closed = False

    def close(self) -> None:
        self.closed = True

    def mem_alloc(self, **args: Any) -> m.Mutated:
        self.calls.append(("mem_alloc", args))
        return m.Mutated(cube_id=ID, version=1, offset=17)

    def mem_write(self, **args: Any) -> m.Mutated:
        raise MemConflict("the cube is at version 2, not 1")

    def mem_read(self, **args: Any) -> m.MemReadReply:
        self.calls.append(("mem_read", args))
        reply = {"cube_id": ID, "version": 1, "form": "plaintext", "state": "generated", "offset": 17, "content": b"\x00\xff"}
        return m.MemReadReply.model_validate(reply)

    def mem_watch(self, **args: Any) -> Iterator[m.WatchItem]:
        for offset in range(3, 100):
            event = m.WatchEvent(event="cube_allocated", cube_id=ID, version=1, namespace="a")
            yield m.WatchItem(offset=offset, time=10**18, actor="uid:7", syscall="mem_alloc", events=[event])


def run(script: str, *, json: bool = False, terminal: bool = False) -> tuple[bool, str, str, Stub]:
    kernel, out, err = Stub(), io.StringIO(), io.StringIO()
    out_console = Console(file=out, force_terminal=terminal, width=100)
    shell = Shell(lambda: kernel, out_console, Console(file=err), json=json)
    good = shell.run_script(script.splitlines())
    return good, out.getvalue(), err.getvalue(), kernel


def test_a_reply_is_named_and_its_fields_are_used() -> None:
    script = "a = alloc --namespace alice hi\nread $a\nlast = read $a --at-offset $a.offset\necho $last.state"
    good, out, err, kernel = run(script)
    assert (good, err) == (True, "")
    assert kernel.calls[1:] == [("mem_read", {"cube_id": ID}), ("mem_read", {"cube_id": ID, "at_offset": 17})]
    assert out.splitlines()[0] == f"{ID} v1 at offset 17"
    assert out.splitlines()[-1] == "generated"


def test_a_script_stops_at_its_first_error() -> None:
    good, out, err, _ = run("write $a x\necho not reached")
    assert (good, out) == (False, "")
    assert err == "EINVAL: $a is not set. Use `set NAME VALUE` or `NAME = command …` first.\n"


def test_a_dash_forgives_an_error_and_shows_it() -> None:
    good, out, err, _ = run(f"- write {ID} x --expect-version 1\necho reached")
    assert (good, out) == (True, "reached\n")
    assert err == "ECONFLICT: the cube is at version 2, not 1. Read the cube again and decide on its present version.\n"


def test_json_is_one_line_for_each_command_with_bytes_in_base64() -> None:
    _, out, _, _ = run(f"read {ID}\necho hi\nhelp read", json=True)
    read, echo, explained = (json.loads(line) for line in out.splitlines())
    assert read["content"] == {"base64": "AP8="} and read["version"] == 1
    assert echo == {"echo": "hi"} and "--at-time" in explained["options"]


def test_watch_ends_after_its_count() -> None:
    good, out, _, _ = run("w = watch --count 2\necho $w.offset")
    assert good
    assert [line.split()[0] for line in out.splitlines() if not line.startswith(" ")] == ["3", "4", "4"]


def test_hello_is_what_the_connection_agreed_on() -> None:
    good, out, err, _ = run("sys-hello --abi 1\n- sys-hello --abi 2\n- sys-cancel 4")
    assert good and "uid:7" in out
    assert err.startswith("EPROTO: this connection speaks ABI 1, not 2.") and "EINVAL" in err


def test_a_terminal_gets_colour_and_a_pipe_does_not() -> None:
    assert "\x1b[" in run(f"read {ID}", terminal=True)[1]
    assert "\x1b[" not in run(f"read {ID}")[1]


def test_help_needs_no_kernel() -> None:
    def refuse() -> Stub:
        raise MemUnreachable("nobody there")

    out = io.StringIO()
    shell = Shell(refuse, Console(file=out), Console(file=io.StringIO()))
    assert shell.run_script(["help", "help alloc", "help ingest", "help set", "exit", "never reached"])
    assert "alloc NAMESPACE [CONTENT] [options]" in out.getvalue() and "mem_" not in out.getvalue().split("option")[0]
    with pytest.raises(MemInvalid):
        shell.run_line("help nonsense")


def test_completion_offers_commands_options_choices_and_recent_cubes() -> None:
    shell = Shell(Stub, Console(file=io.StringIO()), Console(file=io.StringIO()))
    shell.run_line("a = alloc --namespace alice hi")

    def offered(text: str) -> set[str]:
        return {c.text for c in Completions(shell).get_completions(Document(text), CompleteEvent())}

    assert {"alloc", "alloc-many", "ingest"} >= offered("al") | offered("ing") >= {"alloc", "ingest"}
    assert "--expect-version" in offered("write x --ex")
    assert offered("fuse x --strategy ") == set(get_args(FuseStrategy))
    assert offered("x = read 0192") == {ID} and offered("read $") == {"$a"}


def test_the_prompt_runs_lines_until_the_end_and_keeps_a_private_history(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MEMSH_HISTORY", str(tmp_path / "state" / "history"))
    out, err = io.StringIO(), io.StringIO()
    shell = Shell(Stub, Console(file=out), Console(file=err))
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        keys.send_text("echo one\nnonsense\necho two\nexit\n")
        assert converse(shell, None) is False
    assert out.getvalue() == "one\ntwo\n" and "no command 'nonsense'" in err.getvalue()
    assert (tmp_path / "state" / "history").stat().st_mode & 0o777 == 0o600


def test_the_exit_status_tells_success(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["help"]) == 0
    assert main(["-c", "set x 1\necho $x"]) == 0
    assert main(["--socket", str(tmp_path / "none.sock"), "sys-info"]) == 1
    assert main([str(tmp_path / "no-script")]) == 1
    (tmp_path / "script").write_text("# two lines\necho one\necho two\n")
    assert main([str(tmp_path / "script")]) == 0
    captured = capsys.readouterr()
    assert captured.out.endswith("1\none\ntwo\n") and "ECONNREFUSED" in captured.err
