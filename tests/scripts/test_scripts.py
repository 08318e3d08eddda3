"""Golden transcripts: memsh commands, and under each what a real kernel answered.

A line that begins with `> ` is a command, one with `# ` a comment (a blank line stands before it); the other lines are
output, standard output and errors together. What differs from run to run is written as a placeholder: cube ids as `$ID1`,
`$ID2`, … in order of appearance, `<time>`, `<hash>`, `<offset>`, `<score>`, `<size>`, `<me>`; runs of blanks become
two blanks.

`MEMOS_BLESS=1 pytest tests/scripts` writes the answers of the present kernel into the files: read the difference before
you keep it. All scripts share one kernel, so each stays in a namespace of its own name. `$HERE` is this directory.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from tests.lm import tiny_model

from memos_client import Kernel
from memos_syscalls.errors import MemError
from memos_tools.shell import Shell

HERE = Path(__file__).parent
SCRIPTS = sorted(HERE.glob("*.txt"))

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_RULES = (
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3,9}Z"), "<time>"),
    (re.compile(r"\b[0-9a-f]{32,}\b"), "<hash>"),
    (re.compile(r"\boffset(:?)\s+\d+"), r"offset\1 <offset>"),
    (re.compile(r"^(v\d+\s+)\d+(\s+<time>)"), r"\1<offset>\2"),
    (re.compile(r"^\d+ <time>"), "<offset> <time>"),
    (re.compile(r"(\$ID\d+\s+v\d+\s+)\d+\.\d{4}\b"), r"\1<score>"),
    (re.compile(r"\bthe head, \d+"), "the head, <offset>"),
    (re.compile(r"--cursor \S+"), "--cursor <cursor>"),
    (re.compile(r"receipt of \d+ bytes"), "receipt of <size> bytes"),
    (re.compile(r"\buid:\d+"), "uid:<me>"),
    (re.compile(r"\S*/tiny\b"), "<model>"),
    (re.compile(r"first after \d+ ms, then \d+\.\d a second"), "first after <time>, then <speed>"),
    (re.compile(r"\((queued|whole) [^)]* s\)"), "(<timings>)"),
    (re.compile(r'"timings": \{[^}]*\}'), '"timings": <timings>'),
    (re.compile(r'"offset": \d+'), '"offset": <offset>'),
    (re.compile(r"\bpid \d+"), "pid <pid>"),
    (re.compile(r'("(prefill_seconds|stored_error)": )\d[\d.e-]*'), r"\1<measured>"),
    (re.compile(r"((created|finished)_at\s+)\d{19}"), r"\1<time>"),
    (re.compile(r"(?<=\S) {2,}"), "  "),
)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    directory = tmp_path_factory.mktemp("scripts")
    model = tiny_model(directory / "tiny")
    with Kernel.spawn(directory / "data", model=model, model_cache=directory / "models", host_threads=1) as kernel:
        yield kernel


class Placeholders:
    """Replaces what differs from run to run; ids keep their numbers through one script."""

    def __init__(self) -> None:
        self.ids: dict[str, str] = {}

    def stable(self, line: str) -> str:
        line = _UUID.sub(lambda found: self.ids.setdefault(found[0], f"$ID{len(self.ids) + 1}"), line)
        for pattern, placeholder in _RULES:
            line = pattern.sub(placeholder, line)
        return line.rstrip()


def transcript(kernel: Kernel, script: str) -> str:
    """The script's commands and comments, with fresh answers. A refusal that no `-` forgives fails the test."""
    out = io.StringIO()
    console = Console(file=out)
    shell = Shell(lambda: kernel, console, console)
    shell.variables["HERE"] = str(HERE)
    placeholders = Placeholders()
    lines: list[str] = []
    for line in script.splitlines():
        if line.startswith("# "):
            lines += [line] if not lines or lines[-1].startswith("# ") else ["", line]
        if not line.startswith("> "):
            continue
        lines.append(line)
        command = line[2:].strip()
        try:
            shell.run_line(command.removeprefix("-"))
        except MemError as error:
            if not command.startswith("-"):
                raise AssertionError(f"{line}\n{error}") from error
            shell.complain(error)
        else:
            if command.startswith("-"):
                raise AssertionError(f"{line}\nsucceeded; a line that begins with - shows a refusal here")
        lines += [placeholders.stable(answer) for answer in out.getvalue().splitlines()]
        out.seek(0)
        out.truncate()
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_the_kernel_answers_as_the_script_says(kernel: Kernel, path: Path) -> None:
    script = path.read_text()
    answered = transcript(kernel, script)
    if os.environ.get("MEMOS_BLESS"):
        path.write_text(answered)
    assert answered.splitlines() == (answered if os.environ.get("MEMOS_BLESS") else script).splitlines()


def test_a_changed_answer_is_noticed(kernel: Kernel) -> None:
    assert transcript(kernel, "> echo one\ntwo\n") == "> echo one\none\n"
    with pytest.raises(AssertionError, match="EINVAL"):
        transcript(kernel, "> read nonsense")
    with pytest.raises(AssertionError, match="succeeded"):
        transcript(kernel, "> - echo one")
