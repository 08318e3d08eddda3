"""bisect: the first record after which a command says yes to the state, found by halving the log.

    memctl bisect DIR --cmd 'grep -q allergic "$MEMOS_BISECT_STATE"'

- The command is a shell command. Exit status 0 means yes; 125, 126 (cannot be executed), 127 (not found), 128 and above, or a
  death by a signal give up, as with `git bisect run`; any other status means no. Its output goes to standard error.
- It is taken to be monotone: once yes, yes for ever. Both ends are tried first; what lies between is trusted.
- It finds in its environment: `MEMOS_BISECT_OFFSET`, the point; `MEMOS_BISECT_STATE`, a file of JSON lines, one for each cube
  at that point (`cube_id, namespace, version, state, form, expires_at` and, with the key, `name, tags, content`);
  `MEMOS_BISECT_DIR`, a data directory of that point as `memctl replay` makes it, to open with memctl or `memosd --read-only`.
- Each directory grows out of the newest one that said no: every record is applied about twice in all, however often the
  command runs, and each version is decrypted once. Content is cut after `CONTENT_CHARACTERS`.
- Exit status: 0 found, 1 the command never said yes, 2 it cannot be told.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from memos_drivers.stores.base import VIEW
from memos_drivers.stores.rocks import RocksStore
from memos_kernel.events import Damaged
from memos_kernel.governance import text_id
from memos_kernel.offline import Offline
from memos_kernel.state import Cube, View, decode_cube
from memos_kernel.vault import Vault
from memos_syscalls.errors import MemShredded

from . import offline
from .logview import damage_named, record_blocks, revealed, span
from .output import BAD, GOOD, Output, Trouble
from .render import Line, plain_json, time_text
from .rewind import Reached, advance, give_keys

CONTENT_CHARACTERS: Final = 1000
SHOWN_MAX: Final = 65_536
"""Decrypted versions that are remembered between two points."""
GIVE_UP: Final = frozenset((125, 126, 127))
SIGNALS_FROM: Final = 128


def command(arguments: argparse.Namespace, out: Output) -> int:
    source: str = arguments.source
    keys = offline.keys_of(arguments)
    with offline.opened(source, keys, out) as found, damage_named(found.log, source):
        first, last = span(found.log, arguments.first, arguments.last)
        try:
            with tempfile.TemporaryDirectory(prefix="memos-bisect-") as scratch:
                search = Search(found, Path(scratch), arguments.cmd, arguments.key_file, out)
                try:
                    point = search.first_yes(first, last)
                finally:
                    search.close()
        except OSError as error:
            raise Trouble(f"{error}; TMPDIR names another place for the directories that bisect makes") from error
        if point is None:
            never = f"the command says no at offset {first} and at offset {last}; if it says yes in between, name such a --to"
            out.show({"found": False, "first": first, "last": last, "runs": search.runs}, Line(never, "yellow"))
            return BAD
        item = offline.item_at(found.log, point)
        assert item is not None, "its state was just made from it"
        record = revealed(item, found)
    at_once = point == first
    told = "says yes already at the first offset looked at" if at_once else "says yes for the first time"
    data = {"found": True, "offset": point, "at_first": at_once, "runs": search.runs, "record": record}
    out.show(data, Line(f"offset {point}: the command {told}", "bold green"), *record_blocks(record))
    return GOOD


class Past(NamedTuple):
    """A directory at a point of the log, open for writing."""

    directory: Path
    store: RocksStore
    reached: Reached

    @classmethod
    def beginning(cls, directory: Path) -> Self:
        directory.mkdir(mode=0o700)
        return cls(directory, RocksStore(directory / "db"), Reached())

    def copy(self, directory: Path) -> None:
        """The same database under another name; its files are shared until either side writes."""
        directory.mkdir(mode=0o700)
        self.store.checkpoint(directory / "db")

    def drop(self) -> None:
        self.store.close()
        shutil.rmtree(self.directory)


class Search:
    """Halves a log. `base` is the newest point that said no, or the log's beginning."""

    def __init__(self, found: Offline, scratch: Path, cmd: str, key_file: Path | None, out: Output) -> None:
        self.found = found
        self.scratch = scratch
        self.cmd = cmd
        self.key_file = key_file
        self.out = out
        self.runs = 0
        self.base = Past.beginning(scratch / "beginning")
        self._shown: dict[tuple[bytes, int], dict[str, Any]] = {}

    def close(self) -> None:
        self.base.drop()

    def first_yes(self, first: int, last: int) -> int | None:
        """The first offset from `first` to `last` at which the command says yes; None when it says no at the end."""
        if self._says_yes(first):
            return first
        if first == last or not self._says_yes(last):
            return None
        no, yes = first, last
        while yes - no > 1:
            middle = (no + yes) // 2
            if self._says_yes(middle):
                yes = middle
            else:
                no = middle
        return yes

    def _says_yes(self, seq: int) -> bool:
        grown = self._grown(seq)
        try:
            status = self._run(grown, seq)
        except BaseException:
            grown.drop()
            raise
        self.runs += 1
        if not self.out.json:
            word = "yes" if status == 0 else "no"
            self.out.err.print(f"offset {seq}: {word} (exit status {status})", style="dim", highlight=False)
        if status == 0:
            grown.drop()
        else:
            self.base.drop()
            self.base = grown
        return status == 0

    def _grown(self, seq: int) -> Past:
        """The directory of a point at or after the base's."""
        directory = self.scratch / f"grown-{seq}"
        self.base.copy(directory)
        store = RocksStore(directory / "db")
        try:
            with self.out.progress(f"replaying to offset {seq}", seq + 1) as progress:
                reached = advance(self.found, store, self.base.reached, seq, progress)
            store.sync()
        except BaseException:
            store.close()
            raise
        return Past(directory, store, reached)

    def _run(self, past: Past, seq: int) -> int:
        """The command's exit status at a point. It gets a copy of the directory: what it does there stays there."""
        given, state = self.scratch / "given", self.scratch / "state.jsonl"
        view = View(past.store.live(VIEW))
        with state.open("w", encoding="utf-8") as file:
            for cube in self._cubes(view):
                file.write(json.dumps(plain_json(cube), ensure_ascii=False) + "\n")
        past.copy(given)
        try:
            give_keys(self.found, self.key_file, view, seq, given)
            names = {"MEMOS_BISECT_DIR": str(given), "MEMOS_BISECT_STATE": str(state), "MEMOS_BISECT_OFFSET": str(seq)}
            # Standard output is for the answer.
            status = subprocess.run(
                self.cmd, shell=True, env={**os.environ, **names}, stdin=subprocess.DEVNULL, stdout=2, stderr=2, check=False
            ).returncode
        finally:
            shutil.rmtree(given)
        if status in GIVE_UP or status >= SIGNALS_FROM or status < 0:
            ended = f"was ended by signal {-status}" if status < 0 else f"ended with exit status {status}"
            raise Trouble(f"the command {ended} at offset {seq}; let it exit with 0 for yes and with 1 for no")
        return status

    # -- the state as JSON -------------------------------------------------------------------------------------------

    def _cubes(self, view: View) -> Iterator[dict[str, Any]]:
        for _key, row in view.scan(b"c"):
            cube = decode_cube(row)
            expires = None if cube.expires_at is None else time_text(cube.expires_at)
            public = {
                "cube_id": text_id(cube.cube_id), "namespace": cube.namespace, "version": cube.version, "state": cube.state,
                "form": cube.form, "expires_at": expires,
            }  # fmt: skip
            yield public | (self._private(cube, view, self.found.vault) if self.found.vault is not None else {})

    def _private(self, cube: Cube, view: View, vault: Vault) -> dict[str, Any]:
        """Name, tags and content of the version that a cube had; versions never change, so each is opened once."""
        shown = self._shown.get((cube.cube_id, cube.version))
        if shown is None:
            shown = opened(cube, view, vault)
            if len(self._shown) >= SHOWN_MAX:
                self._shown.clear()
            self._shown[cube.cube_id, cube.version] = shown
        return shown


def opened(cube: Cube, view: View, vault: Vault) -> dict[str, Any]:
    """The private fields of a cube's version. What was erased since has none, and says so."""
    found = view.version(cube, cube.version)
    if found is None:
        raise Damaged(f"cube {cube.cube_id.hex()} has no version {cube.version}")
    version, sealed = found
    try:
        private, content = vault.open_private(version, sealed), vault.open_content(version)
    except MemShredded:
        return {"name": None, "tags": [], "content": None, "erased": True}
    text: str | bytes | None
    try:
        text = content.decode()[:CONTENT_CHARACTERS]
    except UnicodeDecodeError:
        text = content[:CONTENT_CHARACTERS]
    return {"name": private.name, "tags": private.tags, "content": text}
