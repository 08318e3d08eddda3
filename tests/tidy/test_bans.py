"""What this code never does. Each ban names the file and line that breaks it."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.tidy.product import ROOT, imports, modules

UNSAFE = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle"}
"""Formats whose reading runs code."""
VAGUE = re.compile(r"(Manager|Helper|Util|Utils)s?$|^Base$|^Common")
VAGUE_FILES = {"common", "utils", "util", "helpers", "helper", "manager", "misc"}


def test_nothing_reads_a_format_that_can_run_code() -> None:
    assert [f"{m.at(node)}: {name}" for m in modules() for node, name in imports(m) if name.partition(".")[0] in UNSAFE] == []


def calls() -> Iterator[tuple[str, str, str]]:
    """(module, place, what is called) of every call in the product: `eval`, `torch.load`, `.begin`."""
    for module in modules():
        for node in module.nodes():
            if isinstance(node, ast.Call):
                if isinstance(node.func, ast.Name):
                    yield module.name, module.at(node), node.func.id
                elif isinstance(node.func, ast.Attribute):
                    owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
                    yield module.name, module.at(node), f"{owner}.{node.func.attr}"


def test_nothing_runs_text_as_code() -> None:
    banned = {"eval", "exec", "compile", "__import__", "torch.load", "builtins.eval", "builtins.exec", "os.system"}
    assert [f"{place}: {what}" for _module, place, what in calls() if what in banned] == []


def test_only_commit_appends_to_the_log() -> None:
    found = {(module, what.rpartition(".")[2]) for module, _place, what in calls()}
    found = {(module, what) for module, what in found if what in ("begin", "finish")}
    assert found == {("memos_kernel.commit", "begin"), ("memos_kernel.commit", "finish")}


def does_nothing(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Pass) or (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))


def test_no_error_is_swallowed() -> None:
    wrong: list[str] = []
    for module in modules():
        for node in module.nodes():
            if not isinstance(node, ast.ExceptHandler):
                continue
            if node.type is None:
                wrong.append(f"{module.at(node)}: a bare except; name what is expected")
            if all(does_nothing(statement) for statement in node.body):
                wrong.append(f"{module.at(node)}: an error is dropped; handle it, or let it rise")
    assert wrong == []


def test_every_module_says_in_one_sentence_what_it_is() -> None:
    wrong: list[str] = []
    for module in modules():
        first = (ast.get_docstring(module.tree) or "").split("\n")[0]
        if len(first.split()) < 3 or first[-1] not in ".?!:":
            wrong.append(f"{module.path.relative_to(ROOT)}: {first!r}")
    assert wrong == []


def test_nothing_is_named_for_what_it_is_not() -> None:
    wrong = [str(m.path.relative_to(ROOT)) for m in modules() if m.path.stem.lower() in VAGUE_FILES]
    for module in modules():
        for node in module.nodes():
            if isinstance(node, ast.ClassDef) and VAGUE.search(node.name):
                wrong.append(f"{module.at(node)}: class {node.name}")
    assert wrong == []


def test_nothing_pretends() -> None:
    """No placeholder and no unfinished work: what is not built is not there."""
    words = re.compile(r"placeholder|\bTO" r"DO\b|\bFIX" r"ME\b|\bXX" r"X\b|NotImplementedError|not (yet )?implemented", re.I)
    wrong: list[str] = []
    for module in modules():
        name, lines = module.path.relative_to(ROOT), module.path.read_text(encoding="utf-8").splitlines()
        wrong += [f"{name}:{n}: {line.strip()}" for n, line in enumerate(lines, 1) if words.search(line)]
    assert wrong == []


def files() -> list[Path]:
    """What the repository holds."""
    if (ROOT / ".git").exists():
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30
        ).stdout.splitlines()
        paths = [ROOT / name for name in listed]
    else:
        paths = [path for path in ROOT.rglob("*") if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)]
    return [path for path in paths if path.is_file() and "__pycache__" not in path.parts]


MACHINE = re.compile("(?<![\\w./$}])/(wor" "k|hom" "e|roo" "t|User" "s|mn" "t)/[\\w.]+")
SCRATCH = re.compile("(?<![\\w./$}])/tm" "p/")
FOREIGN = re.compile(
    "issue" " #|py" "pi\\.org|python" "hosted|huggingface" "\\.co|index" "-url|proxy\\.go" "lang|registry\\.np" "mjs", re.I
)


@pytest.mark.parametrize("what", ["machine", "scratch", "foreign"])
def test_no_file_tells_where_it_was_written(what: str) -> None:
    """No absolute path of one machine, no tracker, no package registry. Scratch paths are the tests' alone."""
    pattern = {"machine": MACHINE, "scratch": SCRATCH, "foreign": FOREIGN}[what]
    wrong: list[str] = []
    for path in files():
        name = path.relative_to(ROOT)
        if what == "scratch" and name.parts[0] == "tests":
            continue
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        wrong += [f"{name}:{n}: {line.strip()[:100]}" for n, line in enumerate(lines, 1) if pattern.search(line)]
    assert wrong == []
