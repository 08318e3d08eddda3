"""The documentation runs: blocks, commands, links, quoted messages, generated pages and tables.

- Every ```python block of README.md, docs/ and the layers' pages is executed, each page in a directory of its own.
- A ```sh block's lines that begin with memosd, memsh or memctl are parsed by the programs' own parsers; `make` targets exist.
- `<!-- no-run: reason -->` above a block leaves it out (never Python); `<!-- run: name -->` runs it against a kernel here.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from rich.console import Console

from memos_client import Kernel
from memos_kernel import config
from memos_kernel.events import EVENTS
from memos_kernel.lifecycle import TRANSITIONS
from memos_tools import ctl, docgen
from memos_tools.shell import Shell

ROOT = Path(__file__).parents[2]
PAGES = sorted([
    *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"),
    *(ROOT / layer / "README.md" for layer in ("syscalls", "drivers", "kernel", "userland")),
    ROOT / "userland" / "memos_client" / "README.md",
])  # fmt: skip
MARK = re.compile(r"<!-- (run|no-run): ?(.*?) -->")
PROGRAMS = ("memosd", "memsh", "memctl")


class Block(NamedTuple):
    page: Path
    line: int
    language: str
    text: str
    mark: str
    """`run`, `no-run` or nothing."""
    word: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    at = 0
    while at < len(lines):
        if lines[at].startswith("```"):
            end = lines.index("```", at + 1)
            found = MARK.fullmatch(lines[at - 1]) if at else None
            text = "\n".join(lines[at + 1 : end]) + "\n"
            yield Block(page, at + 1, lines[at][3:], text, found[1] if found else "", found[2] if found else "")
            at = end
        at += 1


BLOCKS = [block for page in PAGES for block in blocks(page)]
PYTHON = [block for block in BLOCKS if block.language == "python"]
SHELL = [block for block in BLOCKS if block.language == "sh" and block.mark != "no-run"]


def where(block: Block) -> str:
    return block.where


@pytest.mark.parametrize("block", PYTHON, ids=where)
def test_every_python_block_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not block.mark, f"{block.where}: Python blocks are never left out"
    monkeypatch.chdir(tmp_path)
    source = "\n" * block.line + block.text
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(source, str(block.page), "exec"), {"__name__": "__docs__"})  # noqa: S102  # Our own pages.


def commands(block: Block) -> Iterator[list[str]]:
    for line in block.text.splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words.pop(0)
        if words and words[0] in (*PROGRAMS, "make"):
            yield [word for word in words if word != "&"]


def parses(words: list[str]) -> None:
    """Raises, or exits, when a program would not take these words."""
    program, *rest = words
    if program == "memosd":
        config.parser().parse_args(rest)
    elif program == "memctl" and rest[:1] != ["bench"]:
        ctl.parser().parse_args(rest)
    elif program == "memsh" and ">" in rest:
        parses([program, *rest[: rest.index(">")]])
    elif program == "memsh" and rest:
        quiet = Console(file=io.StringIO())
        command = Shell(_no_kernel, quiet, quiet).commands[rest[0]]
        command.parse(rest[1:])


def _no_kernel() -> Any:
    raise AssertionError("parsing needs no kernel")


@pytest.mark.parametrize("block", SHELL, ids=where)
def test_every_command_parses(block: Block) -> None:
    for words in commands(block):
        if words[0] == "make":
            makefile = ROOT / "Makefile"
            assert re.search(rf"^{words[1]}\b.*:", makefile.read_text(), re.M), f"{block.where}: no target {words[1]}"
            continue
        try:
            parses(words)
        except SystemExit as error:
            assert error.code in (0, None), f"{block.where}: {' '.join(words)}"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Kernel, Path]]:
    folder = tmp_path_factory.mktemp("docs")
    with Kernel.spawn(folder / "data") as kernel:
        yield kernel, folder / "data"


def runnable(word: str) -> Block:
    return next(block for block in BLOCKS if block.mark == "run" and block.word == word)


def test_every_run_block_is_run_by_a_test() -> None:
    assert sorted(block.word for block in BLOCKS if block.mark == "run") == ["backup", "memsh"]


def test_the_shell_session_of_the_readme_runs(served: tuple[Kernel, Path]) -> None:
    out, err = io.StringIO(), io.StringIO()
    shell = Shell(lambda: served[0], Console(file=out), Console(file=err))
    assert shell.run_script(runnable("memsh").text.splitlines()), err.getvalue()
    assert "ok: " in out.getvalue()


def test_a_backup_made_as_the_page_says_can_be_started(served: tuple[Kernel, Path], tmp_path: Path) -> None:
    kernel, data = served
    kept = kernel.mem_alloc("backup", "kept")
    backup = tmp_path / "backup"
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    names = {"DATA": str(data), "BACKUP": str(backup), "MEMOS_SOCKET": str(data / "memos.sock"), "PATH": path}
    done = subprocess.run(
        ["sh", "-ec", runnable("backup").text],
        env={**os.environ, **names},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    late = kernel.mem_alloc("backup", "later")
    with Kernel.spawn(backup, embedder="none") as restored:
        assert restored.mem_read(kept.cube_id).content == "kept"
        assert late.cube_id not in [cube.cube_id for cube in restored.mem_list("backup")]
        assert restored.sys_verify(full=True).ok


def test_the_generated_page_is_current() -> None:
    assert (ROOT / docgen.OUTPUT).read_text(encoding="utf-8") == docgen.document(), "run: python -m memos_tools.docgen"


def rows(page: str, heading: str) -> list[list[str]]:
    """Cells of the first table under a heading."""
    text = (ROOT / page).read_text(encoding="utf-8")
    section = text[text.index(f"\n## {heading}\n") + 1 :]
    table = re.search(r"(?:^\|.*\n)+", section, re.M)
    assert table is not None
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[0].splitlines()[2:]]


def test_the_lifecycle_table_is_the_code_s() -> None:
    shown = [tuple(cell.strip(" |") for cell in row) for row in rows("docs/architecture.md", "Lifecycle")]
    assert shown == [(state, action, after) for state, ways in TRANSITIONS.items() for action, after in ways.items()]


def test_the_event_table_is_the_code_s() -> None:
    assert {row[0].strip("`| "): int(row[1]) for row in rows("docs/events.md", "Events")} == EVENTS


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_resolve(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{page.relative_to(ROOT)} links to {target}"
        assert not anchor or anchor in anchors(found), f"{page.relative_to(ROOT)}: {target} has no such heading"


def test_every_kernel_module_has_its_place_on_the_map() -> None:
    text = (ROOT / "docs" / "README.md").read_text() + (ROOT / "docs" / "architecture.md").read_text()
    modules = [path.name for path in (ROOT / "kernel" / "memos_kernel").rglob("*.py") if path.name != "__init__.py"]
    assert [name for name in modules if name not in text] == []


def test_every_file_that_the_pages_name_exists() -> None:
    """`module.py` in a page, or a path under one of the source roots or tests/."""
    names = {path.name for path in ROOT.glob("*/**/*.py") if ".venv" not in path.parts}
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        for name in re.findall(r"`([\w/]+\.py)`", text):
            assert Path(name).name in names, f"{page.relative_to(ROOT)} names {name}"
        for path in re.findall(r"`(tests/[\w/.]+)`", text):
            assert (ROOT / path).exists(), f"{page.relative_to(ROOT)} names {path}"


def sentences() -> list[str]:
    """Every string of the kernel, the drivers and the ABI; what is filled in later is a NUL."""
    found: list[str] = []
    for package in (ROOT / "kernel", ROOT / "syscalls", ROOT / "drivers"):
        for path in package.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    found.append("".join(str(v.value) if isinstance(v, ast.Constant) else "\0" for v in node.values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return found


def test_every_message_that_operators_look_up_is_in_the_code() -> None:
    known = [re.sub(r"%\w", "\0", text) for text in sentences()]
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    symptoms = re.findall(r"^\| `([^`]+)` \|", text, re.M)
    assert len(symptoms) > 40
    for symptom in symptoms:
        for piece in symptom.split("…"):
            words = piece.strip(" .;:()")
            assert len(words) < 8 or any(words in one for one in known), f"operations.md quotes '{symptom}': no '{words}'"


def test_decisions_are_one_page_each() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [page.name[:4] for page in pages] == [f"{n:04d}" for n in range(1, len(pages) + 1)]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 40
        assert all(f"**{part}.**" in text for part in ("Context", "Choice", "Price")), page.name
