"""What a model call reads of the cubes it names: texts to prefill, and payloads of KV caches to continue from.

A *part* is what the driver host gets of one cube: `{kind: "text", texts, how}`, `{kind: "kv", key, fd, texts}`, where
`fd` is a place among the call's descriptors, and `texts` are what the cache was made from: the host tokenises them again and
compares; or `{kind: "adapter", key, fd, weight}`. An adapter whose subjects the messages do not name is not loaded at all.
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from memos_drivers.parametric.gate import Gate
from memos_drivers.tiers import worth_loading
from memos_syscalls import limits
from memos_syscalls.errors import MemAgain, MemError, MemInvalid, MemModel, MemNotFound, MemStale, MemTooLarge

from . import lifecycle
from .decide import live
from .governance import Access, text_id
from .sources import cache_leaves, check_sources, expired_source, member, newer_source, recipe_of, row_at, texts_of
from .state import CONTENT, Cube
from .vault import Vault

if TYPE_CHECKING:
    from .dispatch import Kernel


class Wanted(NamedTuple):
    """One cube that a call names, as far as it is known without the driver host."""

    cube: Cube
    version: int
    texts: list[str] | None
    """To be prefilled; None for caches."""
    caches: list[tuple[Cube, int]]
    missed: MemError | None
    """Why its caches are no use."""
    weight: float | None = None
    """Of an adapter: how much of it; 0 when the messages name none of its subjects. None for what is no adapter."""


def stale(
    cube: Cube, newer: tuple[Cube, int], advice: str = 'Migrate the source again, or pass on_miss="recompute".'
) -> MemStale:
    source, at = newer
    return MemStale(
        f"cube {text_id(cube.cube_id)} was made from version {at} of cube {text_id(source.cube_id)}, "
        f"which is at version {source.version}",
        advice,
    )


def caches_of(vault: Vault, access: Access, cube: Cube, version: int) -> list[tuple[Cube, int]]:
    """The caches that a cube of the activation form stands for: itself, or the members of a composition."""
    if recipe_of(vault, access.view, cube, version).get("method") != "compose":
        return [(cube, version)]
    found: list[tuple[Cube, int]] = []
    for source_id, at, role in row_at(access, cube, version).lineage:
        if role == CONTENT:
            found += caches_of(vault, access, member(access, source_id, cube), at)
    return found


def wanted(kernel: Kernel, access: Access, request: Any, prompt: str) -> list[Wanted]:
    """The cubes that a call names, opened. `prompt` is all that the messages say. For a thread."""
    now = kernel.clock.now()
    recompute = request.on_miss == "recompute"
    result: list[Wanted] = []
    size = 0
    for one in request.cubes:
        text, at, weight = (one, None, None) if isinstance(one, str) else (one.cube_id, one.version, one.weight)
        cube = access.cube(text)
        if at is None or cube.state == lifecycle.SHREDDED:
            live(cube, now)
        version = cube.version if at is None else at
        if version > cube.version:
            raise MemNotFound(f"cube {text} has no version {version}; the newest is {cube.version}")
        if weight is not None and cube.form != "parametric":
            raise MemInvalid(f"cube {text} is {cube.form}; only an adapter has a weight")
        if cube.form == "plaintext":
            texts = texts_of(kernel.vault, access, cube, version, current=False)
            size += texts.bytes
            if size > limits.CAPTURE_BYTES_MAX:
                raise MemTooLarge(f"the cubes have more than {limits.CAPTURE_BYTES_MAX} bytes of text", "Attach fewer.")
            result.append(Wanted(cube, version, [leaf.text for leaf in texts.leaves], [], None))
        elif cube.form == "activation":
            result.append(_cache(kernel, access, cube, version, pinned=at is not None, recompute=recompute))
        else:
            found = _adapter(kernel, access, cube, version, request, pinned=at is not None)
            if found.weight is not None:
                acts = request.gate == "always" or _acts(kernel, access, cube, version, prompt)
                found = found._replace(weight=(1.0 if weight is None else weight) if acts else 0.0)
            result.append(found)
    weights = iter(capped([one.weight for one in result if one.weight]))
    return [one._replace(weight=next(weights)) if one.weight else one for one in result]


def capped(weights: list[float]) -> list[float]:
    """Weights of the adapters that act together, in any order: scaled down when they add up to too much."""
    if len(weights) > limits.ADAPTERS_PER_CALL_MAX:
        raise MemTooLarge(f"{len(weights)} adapters would act; the limit is {limits.ADAPTERS_PER_CALL_MAX}", "Fuse some.")
    whole = math.fsum(weights)
    return [weight * min(1.0, limits.ADAPTER_WEIGHT_MAX / whole) for weight in weights] if weights else []


def _adapter(kernel: Kernel, access: Access, cube: Cube, version: int, request: Any, *, pinned: bool) -> Wanted:
    """An adapter, or the texts that it was made from when its sources have changed and the call wants those instead."""
    check_sources(access, cube, version)
    if row_at(access, cube, version).payload_bytes == 0:
        raise MemAgain(f"cube {text_id(cube.cube_id)} is still being trained", "Wait for its job, then ask again.")
    missed: MemError | None = None
    newer = None if pinned else newer_source(access, cube, version)
    if newer is not None:
        missed = stale(cube, newer, 'Migrate the sources again, or pass allow_stale=True or on_miss="recompute".')
    elif (gone := expired_source(access, cube, version, kernel.clock.now())) is not None:
        missed = MemStale(f"cube {text_id(cube.cube_id)} was made from cube {text_id(gone.cube_id)}, which has expired")
    if missed is None or request.allow_stale:
        return Wanted(cube, version, None, [], None, 1.0)
    texts: list[str] = []
    if request.on_miss == "recompute":
        texts = _present_texts(kernel, access, cube, version, pinned=pinned)
    if not texts:
        # An adapter from elsewhere has no texts.
        raise missed
    return Wanted(cube, version, texts, [], missed)


def _acts(kernel: Kernel, access: Access, cube: Cube, version: int, prompt: str) -> bool:
    """Whether the messages name what an adapter was made of; one of unknown subjects always acts."""
    subjects = recipe_of(kernel.vault, access.view, cube, version).get("subjects") or []
    return not subjects or Gate(subjects).names(prompt)


def _cache(kernel: Kernel, access: Access, cube: Cube, version: int, *, pinned: bool, recompute: bool) -> Wanted:
    """A cache, or why it is of no use. Who names a version asks for the past, and gets it."""
    check_sources(access, cube, version)
    missed: MemError | None = None
    newer = None if pinned else newer_source(access, cube, version)
    if newer is not None:
        missed = stale(cube, newer)
    elif (gone := expired_source(access, cube, version, kernel.clock.now())) is not None:
        missed = MemStale(f"cube {text_id(cube.cube_id)} was made from cube {text_id(gone.cube_id)}, which has expired")
    caches = caches_of(kernel.vault, access, cube, version)
    for one, at in caches:
        if recipe_of(kernel.vault, access.view, one, at).get("tenant") != access.view.owner(one.namespace):
            missed = MemModel(f"cache {text_id(one.cube_id)} was made for another owner", "Capture it again here.")
    if missed is None:
        return Wanted(cube, version, None, caches, None)
    if not recompute:
        raise missed
    return Wanted(cube, version, _present_texts(kernel, access, cube, version, pinned=pinned), [], missed)


def _present_texts(kernel: Kernel, access: Access, cube: Cube, version: int, *, pinned: bool) -> list[str]:
    """What a derived cube was made from, as it is now, or as it was when the call names a version."""
    texts: list[str] = []
    leaves = cache_leaves(kernel.vault, access, cube, version)
    if cube.form == "parametric":
        # Adapters that were fused may have been made from the same memory.
        leaves = list({leaf.cube.cube_id: leaf for leaf in leaves}.values())
    for leaf in leaves:
        source = leaf.cube
        live(source, kernel.clock.now())
        at = leaf.version if pinned else source.version
        texts += [found.text for found in texts_of(kernel.vault, access, source, at, current=False).leaves]
    return texts


def payload_bytes(access: Access, caches: list[tuple[Cube, int]]) -> int:
    """Bytes that a call holds of these caches."""
    rows = (access.view.version(cube, version) for cube, version in caches)
    return sum(row[0].payload_bytes for row in rows if row is not None)


async def cache_part(
    kernel: Kernel, access: Access, cube: Cube, version: int, held: list[int], *, missing: bool = False,
    needed: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """What the host needs of one cache. A descriptor of its payload is added to `held`, whose owner closes it, unless the
    host has the payload and did not say that it is `missing`; when loading it would take longer than making it, its texts
    alone are sent. Where the payload itself is `needed`, its descriptor is always there."""
    row, recipe = row_at(access, cube, version), recipe_of(kernel.vault, access.view, cube, version)
    leaves = await kernel.runtime.in_thread(access.caller.principal, cache_leaves, kernel.vault, access, cube, version)
    texts = [leaf.text for leaf in leaves]
    part: dict[str, Any] = {
        "kind": "kv", "key": row.payload_id, "fd": None, "texts": texts, "cube": text_id(cube.cube_id),
    }  # fmt: skip
    if row.payload_id in kernel.runtime.resident and not (missing or needed):
        return part
    seconds = kernel.hosttier.seconds_to_load(row)
    if not needed and recipe.get("method") == "prefill" and not worth_loading(seconds, float(recipe.get("prefill_seconds", 0))):
        return {"kind": "text", "texts": texts, "how": "recomputed", "cube": text_id(cube.cube_id)}
    payload = await kernel.hosttier.load(cube, row)
    part["fd"] = len(held)
    held.append(os.dup(payload.fd))
    return part


async def adapter_part(
    kernel: Kernel, access: Access, one: Wanted, held: list[int], *, missing: bool = False
) -> dict[str, Any]:
    """What the host needs of one adapter; its descriptor as in `cache_part`."""
    row = row_at(access, one.cube, one.version)
    part: dict[str, Any] = {
        "kind": "adapter", "key": row.payload_id, "fd": None, "weight": one.weight, "cube": text_id(one.cube.cube_id),
    }  # fmt: skip
    if row.payload_id not in kernel.runtime.resident or missing:
        payload = await kernel.hosttier.load(one.cube, row)
        part["fd"] = len(held)
        held.append(os.dup(payload.fd))
    return part
