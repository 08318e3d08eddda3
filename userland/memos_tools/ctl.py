"""memctl: looks into a data directory, proves what is in it, and mends what can be mended.

    memctl [--json] COMMAND …

Most commands open the directory read-only, beside a running kernel or without one; those that change files (`check
--repair`, `check --truncate-to`, `rekey`) refuse while a kernel runs. Exit status: 0 good, 1 problems were found (or, for
`diff`, the states differ), 2 the command or the directory cannot be used. Every message ends with what to do.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from memos_kernel.events import Damaged
from memos_syscalls.errors import MemError

from . import audit, doctor, logview, proof, rekey, repair, rewind, statediff
from .output import GOOD, UNUSABLE, Output, Trouble
from .render import Rows, to_json

INTERRUPTED = 130
Command = Callable[[argparse.Namespace, Output], int]


def _subcommands(parser: argparse.ArgumentParser, what: str) -> Callable[..., argparse.ArgumentParser]:
    commands = parser.add_subparsers(title=what, required=True, metavar="COMMAND")

    def add(name: str, run: Command | None, text: str, *, keys: bool = False, no_keys: bool = False) -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
        # Before and after the command's name; the one that is not given must not undo the other.
        command.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="one JSON line per answer")
        if run is not None:
            command.set_defaults(run=run)
        command.set_defaults(key_file=None, no_keys=False)
        if keys:
            command.add_argument("--key-file", type=Path, help="the master key (default: DIR/master.key, or MEMOS_MASTER_KEY)")
        if keys and no_keys:
            command.add_argument("--no-keys", action="store_true", help="do without the master key: show what is public")
        return command

    return add


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("memctl", description="Look into, verify and mend the data directory of a MemOS kernel.")
    p.add_argument("--json", action="store_true", help="one JSON line per answer")
    add = _subcommands(p, "commands")

    log = _subcommands(add("log", None, "read the log's records"), "log commands")
    c = log("tail", logview.tail, "the newest records", keys=True)
    c.add_argument("dir", type=Path, metavar="DIR")
    c.add_argument("-n", type=_count, default=10, help="how many records (default: 10)")
    c.add_argument("--follow", "-f", action="store_true", help="go on as the kernel writes")
    c = log(
        "show", logview.show, "one record, decoded, its private parts decrypted when the key is there", keys=True, no_keys=True
    )
    c.add_argument("dir", type=Path, metavar="DIR")
    c.add_argument("offset", metavar="OFFSET", help="an offset, or a time: the last record at or before it")

    c = add("audit", audit.command, "who did what and when to a cube or in a namespace", keys=True, no_keys=True)
    c.add_argument("dir", type=Path, metavar="DIR")
    c.add_argument("subject", metavar="CUBE_OR_NAMESPACE")

    c = add("verify", proof.verify, "chain, MACs, signatures, checkpoints, anchor, receipts", keys=True, no_keys=True)
    c.add_argument("dir", type=Path, metavar="DIR", nargs="?")
    c.add_argument("--socket", type=Path, help="ask a running kernel instead")
    c.add_argument("--full", action="store_true", help="also decrypt everything, replay, and compare with the view")
    c.add_argument("--receipt", type=Path, metavar="FILE", help="check that an erasure happened and holds")
    c.add_argument("--public-key", metavar="HEX", help="the log's public key, from a source that you trust")
    c.add_argument("--anchor", type=Path, metavar="FILE", help="a signed checkpoint that was kept elsewhere")

    c = add(
        "check", repair.command, "how far the log is good and whether the view agrees; mends on demand", keys=True, no_keys=True
    )
    c.add_argument("dir", type=Path, metavar="DIR")
    c.add_argument("--repair", action="store_true", help="make a wrong view again from a good log")
    c.add_argument("--truncate-to", type=int, metavar="OFFSET", help="give up every record after OFFSET")
    c.add_argument("--yes", action="store_true", help="do not ask")

    c = add("replay", rewind.command, "the log up to a point, and its view, in a new directory", keys=True, no_keys=True)
    c.add_argument("dir", type=Path, metavar="DIR")
    c.add_argument("--to", required=True, metavar="OFFSET|TIME", help="the last record to keep")
    c.add_argument("--into", required=True, type=Path, metavar="NEWDIR")
    c.add_argument("--keys", action="store_true", help="with a key store of its own, so that memosd --read-only serves it")

    c = add("diff", statediff.diff, "how the states at two points differ")
    c.add_argument("a", metavar="A", help="DIR, DIR@OFFSET or DIR@TIME")
    c.add_argument("b", metavar="B")

    c = add("digest", statediff.digest, "the state digest, by replaying the log")
    c.add_argument("source", metavar="DIR", help="DIR, DIR@OFFSET or DIR@TIME")
    c.add_argument("--at", metavar="OFFSET|TIME")

    c = add("snapshot", _snapshot, "have a running kernel write a snapshot")
    c.add_argument("--socket", type=Path, required=True)

    c = add("anchor", proof.anchor, "export the newest signed checkpoint, or check the log against an exported one")
    c.add_argument("dir", type=Path, metavar="DIR")
    which = c.add_mutually_exclusive_group()
    which.add_argument("--out", type=Path, metavar="FILE")
    which.add_argument("--check", type=Path, metavar="FILE")

    c = add("rekey", rekey.command, "rewrap all keys under a new master key", keys=True)
    c.add_argument("dir", type=Path, metavar="DIR")
    c.add_argument("--new-key-file", type=Path, required=True, metavar="FILE", help="made when it does not exist")

    c = add("doctor", doctor.command, "look for what is wrong with this machine, directory or kernel", keys=True)
    c.add_argument("dir", type=Path, metavar="DIR", nargs="?")
    c.add_argument("--socket", type=Path)

    add("bench", None, "measure a kernel: `memctl bench --help`")
    return p


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
