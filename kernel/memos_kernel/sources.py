"""What the model reads of a cube: the texts of its leaves, each with the cube and version that it came from.

Pure but for decryption: everything is read through the view and the vault that are handed in, so it runs in a thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from memos_syscalls import limits
from memos_syscalls.errors import MemInvalid, MemStale, MemTooLarge

from .events import Damaged
from .governance import Access, hidden, text_id
from .header import over, sources
from .state import CONTENT, Cube, Version, View
from .vault import Opened, Vault


class Leaf(NamedTuple):
    """One text, and the version that holds it."""

    cube: Cube
    version: int
    text: str
    when: int = 0
    """Event time, ns: since when it holds, or else when it was written."""


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


def found_at(view: View, cube: Cube, version: int) -> tuple[Version, bytes]:
    """A version that a cube has, with its private part, sealed."""
    found = view.version(cube, version)
    if found is None:
        raise Damaged(f"cube {cube.cube_id.hex()} has no version {version}")
    return found


def row_of(view: View, cube: Cube, version: int) -> Version:
    return found_at(view, cube, version)[0]


def row_at(access: Access, cube: Cube, version: int) -> Version:
    return row_of(access.view, cube, version)


def recipe_of(vault: Vault, view: View, cube: Cube, version: int) -> dict[str, Any]:
    """How a version was made; empty for one that nobody derived."""
    return vault.open_private(*found_at(view, cube, version)).recipe or {}


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
        return Texts([Leaf(cube, version, opened.content.decode(), _when(opened))], [])
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
    recipe = recipe_of(vault, access.view, cube, version)
    row = row_at(access, cube, version)
    read = [(source_id, at) for source_id, at, role in row.lineage if role == CONTENT]
    found: list[Leaf] = []
    if recipe.get("method") in ("compose", "fuse"):
        for source_id, at in read:
            found += cache_leaves(vault, access, member(access, source_id, cube), at)
        return found
    for source_id, at in read[: int(recipe.get("leaves", 0))]:
        source = member(access, source_id, cube)
        opened = opened_at(vault, access, source, at)
        found.append(Leaf(source, at, opened.content.decode(), _when(opened)))
    return found


def _when(opened: Opened) -> int:
    return opened.version.time if opened.private.valid_from is None else opened.private.valid_from


def newer_source(access: Access, cube: Cube, version: int) -> tuple[Cube, int] | None:
    """A `content` source that has a newer version than the one that was read, directly or through other caches, and the
    version that was read; None when there is none."""
    found = sources(access.view, row_at(access, cube, version))
    return next(((source, at) for source, at, role in found if role == CONTENT and source.version > at), None)


def expired_source(access: Access, cube: Cube, version: int, now: int) -> Cube | None:
    """A memory of which a cache still tells, though its life is over."""
    found = sources(access.view, row_at(access, cube, version))
    return next((source for source, _at, role in found if role == CONTENT and over(source, now)), None)
