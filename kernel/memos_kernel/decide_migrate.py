"""The decision that commits what a job made: a derived cube, or a new version of one. The rules of decide.py hold here too.

The job read its sources at certain versions. If any of them has changed since, what it made is of the past: nothing is
committed (`ECONFLICT`), and when one was erased, what was made of it must not come to be (`ESHREDDED`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from memos_syscalls.errors import MemConflict, MemNotFound, MemShredded

from . import events as ev
from . import lifecycle
from .decide import Call, Decision, Draft, NewPayload, new_cube, version_of
from .governance import Access, hidden, text_id
from .header import has_expired, is_stale
from .private import Private
from .state import Cube, Tables


class Product(NamedTuple):
    """What a job made, but for its content."""

    form: str
    namespace: str
    name: str | None
    sources: list[tuple[bytes, int, int]]
    """Lineage: cube, version, role; what it was made from, in order, then what it stood behind."""
    recipe: dict[str, Any]
    target: bytes | None
    """The cube that gets a new version; None to make one."""
    target_version: int
    """Its version when the job began."""
    merged: list[tuple[bytes, int]]
    """Cubes that become `merged`, with the versions that were read: sources, or what was made from the same sources."""


class Fusion(NamedTuple):
    """What a job made of several texts, but for its content; decide_shape.py commits it."""

    name: str | None
    sources: list[tuple[bytes, int]]
    """The texts that become `merged`, with the versions that were read."""
    through: list[tuple[bytes, int]]
    """What compositions among them referred to."""
    recipe: dict[str, Any]


class Statement(NamedTuple):
    """One text that a job wrote, but for its content."""

    metadata: dict[str, Any]
    recipe: dict[str, Any]


class Statements(NamedTuple):
    """Texts that a job wrote: a cube each, all of them in one record."""

    namespace: str
    name: str | None
    sources: list[tuple[bytes, int, int]]
    items: list[Statement]


def still_readable(access: Access, call: Call, source_id: bytes, at: int) -> tuple[Cube, str]:
    """A version that a job read, with the cube's state: whoever asked may still read it, and it is not erased."""
    cube = access.view.cube(source_id)
    if cube is None or not access.sees(cube.namespace):
        raise hidden(call.caller, f"cube {text_id(source_id)}")
    state = lifecycle.effective(cube.state, cube.expires_at, call.now)
    if state == lifecycle.SHREDDED or not call.opener.alive(cube, at):
        raise MemShredded(f"cube {text_id(source_id)} was shredded while the job ran")
    return cube, state


def check_sources(tables: Tables, access: Access, call: Call, sources: Iterable[tuple[bytes, int]]) -> None:
    """Refuse what a job made when a version that it read is not the newest any more."""
    for source_id, at in sources:
        cube, state = still_readable(access, call, source_id, at)
        if state == lifecycle.EXPIRED:
            raise lifecycle.refusal(text_id(source_id), state, "use")
        if cube.version != at:
            raise MemConflict(
                f"cube {text_id(source_id)} is at version {cube.version} now; the job read version {at}", "Ask for it again."
            )
        if cube.form != "plaintext":
            row = version_of(tables, cube, at)
            if is_stale(tables, row) or has_expired(tables, row, call.now):
                what = f"what cube {text_id(source_id)} was made from"
                raise MemConflict(f"{what} has changed while the job ran", "Capture it again.")


def _target(tables: Tables, call: Call, product: Product) -> Cube:
    assert product.target is not None, "asked of a product that has one"
    cube = tables.cube(product.target)
    if cube is None:
        raise MemNotFound(f"no cube {text_id(product.target)}")
    state = lifecycle.effective(cube.state, cube.expires_at, call.now)
    lifecycle.require(text_id(product.target), state, "write")
    if cube.version != product.target_version:
        raise MemConflict(f"cube {text_id(product.target)} got version {cube.version} while the job ran", "Ask for it again.")
    return cube


def decide_product(tables: Tables, call: Call) -> Decision:
    """Commit `call.product` with the content `call.contents[0]`, or with one for each of its items."""
    access, product = Access(tables, call.caller), call.product
    access.target(product.namespace)
    check_sources(tables, access, call, [(source_id, at) for source_id, at, _role in product.sources])
    if isinstance(product, Statements):
        return _statements(call, product)
    check_sources(tables, access, call, product.merged)
    private = Private(
        call.args_hash, name=product.name, origin="migration", encoding="bytes", recipe=product.recipe,
        note=call.request.actor_note,
    )  # fmt: skip
    content = call.contents[0]
    if product.target is not None:
        cube = _target(tables, call, product)
        slot = cube.slot or call.fresh.slot()
        payload = NewPayload(content, slot)
        fields = [cube.cube_id, cube.version + 1, cube.expires_at, payload, slot, product.sources, None]
        return Decision([Draft(ev.WRITTEN, fields, private, slot)])
    cube_id, draft = new_cube(
        call, product.namespace, content, private, lineage=product.sources, form=product.form
    )
    drafts = [draft]
    if product.merged:
        for source_id, _at in product.merged:
            source = tables.cube(source_id)
            if source is not None:
                lifecycle.require(text_id(source_id), source.state, "merge")
        drafts.append(Draft(ev.MERGED, [cube_id, [list(one) for one in product.merged]]))
    return Decision(drafts)


def _statements(call: Call, product: Statements) -> Decision:
    drafts: list[Draft] = []
    for content, item in zip(call.contents, product.items, strict=True):
        private = Private(
            call.args_hash, name=product.name, origin="inference", metadata=item.metadata, recipe=item.recipe,
            note=call.request.actor_note,
        )  # fmt: skip
        drafts.append(new_cube(call, product.namespace, content, private, lineage=product.sources)[1])
    return Decision(drafts)
