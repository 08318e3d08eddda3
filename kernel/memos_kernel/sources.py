"""What the model reads of a cube: the texts of its leaves, each with the cube and version that it came from.

Pure but for decryption: everything is read through the view and the vault that are handed in, so it runs in a thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from memos_syscalls import limits
from memos_syscalls.errors import MemInvalid, MemStale, MemTooLarge

from . import lifecycle
from .events import Damaged
from .governance import Access, hidden, text_id
from .state import CONTENT, Cube, Version
from .vault import Opened, Vault


class Leaf(NamedTuple):
    """One text, and the version that holds it."""

    cube: Cube
    version: int
    text: str


class Texts(NamedTuple):
    """The leaves of a cube in order, and the compositions on the way to them."""

    leaves: list[Leaf]
    through: list[tuple[bytes, int]]

    @property
    def bytes(self) -> int:
        return sum(len(leaf.text.encode()) for leaf in self.leaves)


def opened_at(vault: Vault, access: Access, cube: Cube, version: int) -> Opened:
    opened = vault.open(access.view, cube, version)
    if opened is None:
        raise Damaged(f"cube {cube.cube_id.hex()} has no version {version}")
    return opened


def row_at(access: Access, cube: Cube, version: int) -> Version:
    found = access.view.version(cube, version)
    if found is None:
        raise Damaged(f"cube {cube.cube_id.hex()} has no version {version}")
    return found[0]


def live(cube: Cube, now: int, action: str = "use") -> None:
    """Refuse a cube that has expired or was erased."""
    state = lifecycle.effective(cube.state, cube.expires_at, now)
    if state in (lifecycle.EXPIRED, lifecycle.SHREDDED):
        raise lifecycle.refusal(text_id(cube.cube_id), state, action)


def member(access: Access, source_id: bytes, of: Cube) -> Cube:
    """A source of a derived cube: who uses the one needs a right to the other."""
    source = access.view.cube(source_id)
    if source is None or not access.sees(source.namespace):
        raise hidden(access.caller, f"source of cube {text_id(of.cube_id)}")
    return source


def made_from(access: Access, cube: Cube, version: int) -> Iterator[tuple[Cube, int]]:
    """Every source of a cache with its role, directly or through other caches; refuses whoever may not read one of them."""
    for source_id, at, role in row_at(access, cube, version).lineage:
        source = member(access, source_id, cube)
        yield source, role
        if source.form != "plaintext":
            yield from made_from(access, source, at)


def check_sources(access: Access, cube: Cube, version: int) -> None:
    """What a cube was made from leaves traces in tensors: who may not read all of it gets none of them."""
    if cube.form != "plaintext":
        for _source, _role in made_from(access, cube, version):
            continue


def texts_of(vault: Vault, access: Access, cube: Cube, version: int, *, current: bool) -> Texts:
    """The texts of a plaintext cube. With `current`, a composition whose members have newer versions is refused."""
    row = row_at(access, cube, version)
    if row.payload_bytes > limits.CAPTURE_BYTES_MAX:
        raise MemTooLarge(
            f"cube {text_id(cube.cube_id)} has {row.payload_bytes} bytes; a model reads at most {limits.CAPTURE_BYTES_MAX}"
        )
    opened = opened_at(vault, access, cube, version)
    if (opened.private.recipe or {}).get("method") != "compose":
        if opened.private.encoding != "text":
            raise MemInvalid(f"cube {text_id(cube.cube_id)} holds bytes; a model reads text")
        return Texts([Leaf(cube, version, opened.content.decode())], [])
    leaves: list[Leaf] = []
    through = [(cube.cube_id, version)]
    for source_id, at, _role in opened.version.lineage:
        source = member(access, source_id, cube)
        if current and source.version != at:
            raise MemStale(
                f"composition {text_id(cube.cube_id)} refers to version {at} of cube {text_id(source_id)}, "
                f"which is at version {source.version}", "Compose it again.",
            )  # fmt: skip
        found = texts_of(vault, access, source, at, current=current)
        leaves += found.leaves
        through += found.through
    return Texts(leaves, through)


def cache_leaves(vault: Vault, access: Access, cube: Cube, version: int) -> list[Leaf]:
    """The texts that a KV cache holds, in order: those of its own sources, or of the caches that were fused into it."""
    opened_recipe = vault.open_private(*_found(access, cube, version)).recipe or {}
    row = row_at(access, cube, version)
    sources = [(source_id, at) for source_id, at, role in row.lineage if role == CONTENT]
    found: list[Leaf] = []
    if opened_recipe.get("method") in ("compose", "fuse"):
        for source_id, at in sources:
            found += cache_leaves(vault, access, member(access, source_id, cube), at)
        return found
    for source_id, at in sources[: int(opened_recipe.get("leaves", 0))]:
        source = member(access, source_id, cube)
        opened = opened_at(vault, access, source, at)
        found.append(Leaf(source, at, opened.content.decode()))
    return found


def _found(access: Access, cube: Cube, version: int) -> tuple[Version, bytes]:
    found = access.view.version(cube, version)
    if found is None:
        raise Damaged(f"cube {cube.cube_id.hex()} has no version {version}")
    return found


def newer_source(access: Access, cube: Cube, version: int) -> tuple[Cube, int] | None:
    """A `content` source that has a newer version than the one that was read, directly or through other caches, and the
    version that was read; None when there is none."""
    for source_id, at, role in row_at(access, cube, version).lineage:
        source = access.view.cube(source_id)
        if role != CONTENT or source is None:
            continue
        if source.version > at:
            return source, at
        if source.form != "plaintext" and (deeper := newer_source(access, source, at)) is not None:
            return deeper
    return None
