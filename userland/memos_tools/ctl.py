"""memctl: looks into a data directory, proves what is in it, and mends what can be mended.

    memctl [--json] COMMAND …

Most commands open the directory read-only, beside a running kernel or without one; those that change files (`check
--repair`, `check --truncate-to`, `rekey`) refuse while a kernel runs. Exit status: 0 good, 1 problems were found (for `diff`,
the states differ; for `log grep` and `bisect`, nothing was found), 2 the command or the directory cannot be used. Every
message ends with what to do.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from memos_kernel.events import Damaged
from memos_syscalls.errors import MemError

from . import audit, bisect, copy, doctor, loggrep, logview, models_cmd, proof, prove, rekey, repair, rewind, statediff
from .output import GOOD, UNUSABLE, Output, Trouble
from .render import Rows, to_json

INTERRUPTED = 130
TERMINATED = 143
SOURCE = "a data directory, kafka://HOST:PORT/TOPIC, or the socket of a running kernel"
POINT = "an offset, a time (the last record at or before it), or a record's hash (its first 8 digits or more)"
Command = Callable[[argparse.Namespace, Output], int]


def _subcommands(parser: argparse.ArgumentParser, what: str) -> Callable[..., argparse.ArgumentParser]:
    commands = parser.add_subparsers(title=what, required=True, metavar="COMMAND")

    def add(name: str, run: Command | None, text: str, *, keys: bool = False, no_keys: bool = False) -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
        # Before and after the command's name; the one that is not given must not undo the other.
        command.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="one JSON line per answer")
        if run is not None:
            command.set_defaults(run=run)
        command.set_defaults(key_file=None, no_keys=False, public_key=None)
        if keys:
            command.add_argument("--key-file", type=Path, help="the master key (default: DIR/master.key, or MEMOS_MASTER_KEY)")
        if keys and no_keys:
            command.add_argument("--no-keys", action="store_true", help="do without the master key: show what is public")
            command.add_argument("--public-key", metavar="HEX", help="the log's public key, from a source that you trust")
        return command

    return add


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("memctl", description="Look into, verify and mend the data directory of a MemOS kernel.")
    p.add_argument("--json", action="store_true", help="one JSON line per answer")
    add = _subcommands(p, "commands")

    log = _subcommands(add("log", None, "read the log's records"), "log commands")
    c = log("tail", logview.tail, "the newest records", keys=True, no_keys=True)
    c.add_argument("source", metavar="SOURCE", help=SOURCE)
    c.add_argument("-n", type=_count, default=10, help="how many records (default: 10)")
    c.add_argument("--follow", "-f", action="store_true", help="go on as the kernel writes")
    c = log(
        "show", logview.show, "one record, decoded, its private parts decrypted when the key is there", keys=True, no_keys=True
    )
    c.add_argument("source", metavar="SOURCE", help=SOURCE)
    c.add_argument("point", metavar="POINT", help=POINT)
    c = log(
        "grep", loggrep.command, "records that match a pattern and filters, as `log show` shows them", keys=True, no_keys=True
    )
    c.add_argument("source", metavar="SOURCE", help=SOURCE)
    c.add_argument("pattern", metavar="PATTERN", nargs="?", help="a regular expression; none: the filters decide alone")
    c.add_argument("--ignore-case", "-i", action="store_true")
    c.add_argument("--actor", metavar="WHO", help="records of this principal, such as uid:1000 or kernel")
    c.add_argument("--event", metavar="NAME", help="records with this event, such as cube.written")
    c.add_argument("--syscall", metavar="NAME", help="records of this call, such as mem_write")
    c.add_argument("--cube", metavar="ID", help="records that name this cube")
    c.add_argument("--namespace", metavar="NS", help="records about this namespace, those below it, and their cubes")
    c.add_argument("-n", type=_count, metavar="COUNT", help="stop after this many records")
    _range(c)

    c = add("audit", audit.command, "who did what, when and under which right, with before and after", keys=True, no_keys=True)
    c.add_argument("source", metavar="SOURCE", help=SOURCE)
    c.add_argument("subject", metavar="CUBE_OR_NAMESPACE", nargs="?", help="default: everything that the log holds")
    c.add_argument("--format", choices=audit.FORMATS, default="table", help="a line per entry (default: table)")
    _range(c)

    c = add("verify", proof.verify, "chain, MACs, signatures, checkpoints, payloads, anchor, receipts", keys=True, no_keys=True)
    c.add_argument("source", metavar="SOURCE", nargs="?", help=SOURCE)
    c.add_argument("--socket", type=Path, help="ask a running kernel instead")
    c.add_argument("--full", action="store_true", help="also decrypt everything, replay, and compare with the view")
    c.add_argument("--receipt", type=Path, metavar="FILE", help="check that an erasure happened and holds")
    c.add_argument("--anchor", type=Path, metavar="FILE", help="a signed checkpoint that was kept elsewhere")
    c.add_argument("--report", type=Path, metavar="FILE", help="write what was found to a file, signed when the key is there")
    c.add_argument("--check-report", type=Path, metavar="FILE", help="check such a file instead; needs --public-key")

    c = add(
        "check", repair.command, "how far the log is good and whether the view agrees; mends on demand", keys=True, no_keys=True
    )
    c.add_argument("dir", type=Path, metavar="DIR")
    c.add_argument("--repair", action="store_true", help="make a wrong view again from a good log")
    c.add_argument("--truncate-to", type=int, metavar="OFFSET", help="give up every record after OFFSET")
    c.add_argument("--yes", action="store_true", help="do not ask")

    c = add("replay", rewind.command, "the log up to a point, and its view, in a new directory", keys=True, no_keys=True)
    c.add_argument("source", metavar="SOURCE", help=SOURCE)
    c.add_argument("--to", required=True, metavar="POINT", help=f"the last record to keep: {POINT}")
    c.add_argument("--into", required=True, type=Path, metavar="NEWDIR")
    c.add_argument(
        "--keys", action="store_true", help="fail without a master key: the new directory must be one that memosd serves"
    )

    c = add("diff", statediff.diff, "how the states at two points differ", keys=True, no_keys=True)
    c.add_argument("a", metavar="A", help="SOURCE or SOURCE@POINT")
    c.add_argument("b", metavar="B")

    c = add("digest", statediff.digest, "the state digest, by replaying the log", keys=True, no_keys=True)
    c.add_argument("source", metavar="SOURCE", help="SOURCE or SOURCE@POINT")
    c.add_argument("--at", metavar="POINT", help=POINT)

    c = add("bisect", bisect.command, "the first record after which a command says yes to the state", keys=True, no_keys=True)
    c.add_argument("source", metavar="SOURCE", help=SOURCE)
    c.add_argument(
        "--cmd", required=True, metavar="COMMAND", help="exit status 0: yes; 125, 126, 127 or above: give up; else: no"
    )
    _range(c)

    c = add("snapshot", _snapshot, "have a running kernel write a snapshot")
    c.add_argument("--socket", type=Path, required=True)

    c = add(
        "anchor",
        proof.anchor,
        "export the newest signed checkpoint, or check the log against an exported one",
        keys=True,
        no_keys=True,
    )
    c.add_argument("source", metavar="SOURCE", help=SOURCE)
    which = c.add_mutually_exclusive_group()
    which.add_argument("--out", type=Path, metavar="FILE")
    which.add_argument("--check", type=Path, metavar="FILE")

    c = add("prove", prove.command, "make a proof of one version that anyone can check, or check one", keys=True, no_keys=True)
    c.add_argument("source", metavar="SOURCE", nargs="?", help=SOURCE)
    c.add_argument("subject", metavar="CUBE@VERSION", nargs="?")
    c.add_argument("--out", type=Path, metavar="FILE")
    c.add_argument("--reveal", action="store_true", help="with the content, which the log's key then signs for")
    c.add_argument("--check", type=Path, metavar="FILE", help="check a proof instead; needs --public-key and nothing else")

    c = add("copy", copy.command, "move a log: from a data directory to Kafka, back, or to another place", keys=True)
    c.add_argument("source", metavar="SOURCE", help="a data directory without a running kernel, or kafka://HOST:PORT/TOPIC")
    c.add_argument("target", metavar="DEST", help="a new directory, or kafka:// with empty topics, which are made when missing")
    c.add_argument("--no-close", action="store_true", help="a backup: the source goes on, and the copy opens read-only")

    c = add("rekey", rekey.command, "rewrap all keys under a new master key", keys=True)
    c.add_argument("dir", type=Path, metavar="DIR")
    c.add_argument("--new-key-file", type=Path, required=True, metavar="FILE", help="made when it does not exist")

    c = add("doctor", doctor.command, "look for what is wrong with this machine, directory or kernel", keys=True)
    c.add_argument("dir", metavar="SOURCE", nargs="?", help="a data directory, or kafka://HOST:PORT/TOPIC")
    c.add_argument("--socket", type=Path)

    c = add("models", models_cmd.command, "list the language models that this machine has")
    c.add_argument("models", metavar="MODEL", nargs="*", help="also this one: a directory, a .gguf file, or a repository's id")
    c.add_argument("--cache-dir", type=Path, metavar="DIR", help="where converted models lie (default: ~/.cache/memos/models)")

    add("bench", None, "measure a kernel: `memctl bench --help`")
    return p


def _range(command: argparse.ArgumentParser) -> None:
    command.add_argument("--from", dest="first", metavar="POINT", help="the first record to look at")
    command.add_argument("--to", dest="last", metavar="POINT", help="the last record to look at")


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _snapshot(arguments: argparse.Namespace, out: Output) -> int:
    from memos_client import Kernel

    with Kernel.connect(arguments.socket) as kernel:
        reply = kernel.sys_snapshot()
    out.show(reply, Rows(("field", "value"), [(name, str(value)) for name, value in reply.model_dump().items()]))
    return GOOD


def _bench(argv: Sequence[str]) -> int:
    # Measuring is a program of its own, with imports of its own: only who asks for it pays for them.
    main: Callable[[Sequence[str]], int] = importlib.import_module("memos_tools.bench").main
    return main(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """The `memctl` command; returns its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        # What is read of a topic lies in a temporary directory: whoever ends us ends that, too.
        signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(TERMINATED))
    if words[:1] == ["bench"]:
        return _bench(words[1:])
    arguments = parser().parse_args(words)
    out = Output(Console(file=sys.stdout), Console(file=sys.stderr), json=arguments.json)
    try:
        status: int = arguments.run(arguments, out)
    except (Trouble, MemError) as error:
        return _complain(out, error)
    except Damaged as error:
        return _complain(out, f"stored bytes are damaged: {error}; run `memctl check` on the directory")
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            # The reader went away; what is still buffered must not raise again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return UNUSABLE
        return _complain(out, f"{error}; see `memctl doctor`")
    except KeyboardInterrupt:
        return INTERRUPTED
    return status


def _complain(out: Output, error: Any) -> int:
    """One error, where errors go; for machines in the form that answers have."""
    out.err.file.write((to_json({"error": str(error)}) if out.json else f"memctl: {error}") + "\n")
    return UNUSABLE


if __name__ == "__main__":
    sys.exit(main())
