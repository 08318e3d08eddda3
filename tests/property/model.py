"""What the kernel must do, told with dictionaries: the model that the random calls are compared with.

Each method of `Model` that stands for a mutation returns the errno of the refusal that is due, or None after having
changed the model. It knows nothing of logs, rows or keys: erasure is the set `dead` of cubes whose key is gone.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from memos_drivers.plaintext.fuse_text import STRATEGIES, Source
from memos_kernel.governance import Caller
from memos_kernel.lifecycle import LISTED, SEARCHABLE, TRANSITIONS, effective

REFUSALS = {"shredded": "ESHREDDED", "expired": "ENOENT", "frozen": "EFROZEN"}


@dataclass(frozen=True)
class Ver:
    """One version. `key` and `header_key` are the cubes under whose keys its content and its header lie."""

    number: int
    content: str | bytes
    key: str
    header_key: str
    offset: int = -1
    expires_at: int | None = None
    name: str | None = None
    tags: tuple[str, ...] = ()
    priority: int = 0
    lineage: tuple[tuple[str, int], ...] = ()
    recipe: str | None = None
    """None, `compose`, or the strategy of a fusion."""
    raw: bool = False
    """A composition that had bytes in it when it was made: it reads as bytes ever after."""


@dataclass
class Cube:
    cube_id: str
    namespace: str
    versions: list[Ver]
    created: int
    state: str = "generated"
    expires_at: int | None = None
    forked_from: tuple[str, int] | None = None
    merged_into: str | None = None

    @property
    def live(self) -> Ver:
        return self.versions[-1]

    @property
    def own(self) -> list[Ver]:
        return self.versions[self.forked_from[1] :] if self.forked_from else self.versions


@dataclass(frozen=True)
class Then:
    """What was, after one offset: versions and recorded states, and the record's time."""

    time: int
    cubes: dict[str, tuple[int, str, str | None]]


@dataclass
class Model:
    cubes: dict[str, Cube] = field(default_factory=dict[str, Cube])
    owners: dict[str, str] = field(default_factory=dict[str, str])
    dead: set[str] = field(default_factory=set[str])
    past: dict[int, Then] = field(default_factory=dict[int, Then])

    # -- who sees what -----------------------------------------------------------------------------------------------

    def owner(self, namespace: str) -> str | None:
        while namespace:
            if namespace in self.owners:
                return self.owners[namespace]
            namespace = namespace.rpartition("/")[0]
        return None

    def sees(self, caller: Caller, namespace: str) -> bool:
        return caller.admin or self.owner(namespace) == caller.principal

    def hidden(self, caller: Caller) -> str:
        return "ENOENT" if caller.admin else "EACCES"

    def cube_refusal(self, caller: Caller, cube_id: str) -> str | None:
        cube = self.cubes.get(cube_id)
        return None if cube is not None and self.sees(caller, cube.namespace) else self.hidden(caller)

    def namespace_refusal(self, caller: Caller, name: str) -> str | None:
        return None if name in self.owners and self.sees(caller, name) else self.hidden(caller)

    def target_refusal(self, caller: Caller, name: str) -> str | None:
        owner = self.owner(name)
        return None if owner is None or caller.admin or owner == caller.principal else "EACCES"

    def make_namespace(self, caller: Caller, name: str) -> None:
        if name in self.owners:
            return
        owner = self.owner(name) or caller.principal
        parts = name.split("/")
        for n in range(1, len(parts) + 1):
            self.owners.setdefault("/".join(parts[:n]), owner)

    # -- reading -----------------------------------------------------------------------------------------------------

    def state(self, cube: Cube, now: int) -> str:
        return effective(cube.state, cube.expires_at, now)

    def may_read(self, caller: Caller, ver: Ver) -> bool:
        """Whether a composition holds nothing that is hidden from the caller."""
        members = [(self.cubes[c], self.cubes[c].versions[v - 1]) for c, v in ver.lineage] if ver.recipe == "compose" else []
        return all(self.sees(caller, cube.namespace) and self.may_read(caller, member) for cube, member in members)

    def text(self, ver: Ver) -> str | bytes | None:
        """What a read of a version returns; None when it is erased."""
        if ver.key in self.dead or ver.header_key in self.dead:
            return None
        if ver.recipe != "compose":
            return ver.content
        parts = [self.text(self.cubes[c].versions[v - 1]) for c, v in ver.lineage]
        if any(part is None for part in parts):
            return None
        whole = b"\n".join(part if isinstance(part, bytes) else part.encode() for part in parts if part is not None)
        return whole if ver.raw else whole.decode()

    def read(
        self, caller: Caller, cube_id: str, now: int, version: int | None = None, at: int | None = None
    ) -> str | bytes | tuple[str]:
        """The content, or the errno in a tuple. The caller may see the cube."""
        cube = self.cubes[cube_id]
        state, number, when = cube.state, cube.live.number, now
        if version is not None:
            if version > number:
                return ("ENOENT",)
            number = version
        elif at is not None:
            if cube_id not in self.past[at].cubes:
                return ("ENOENT",)
            number, state, _into = self.past[at].cubes[cube_id]
            when = self.past[at].time
        if cube.state == "shredded":
            return ("ESHREDDED",)
        ver = cube.versions[number - 1]
        if effective(state, ver.expires_at, when) == "expired" and version is None:
            return ("ENOENT",)
        found = self.text(ver)
        if not self.may_read(caller, ver):
            return ("EACCES ESHREDDED",)
        return ("ESHREDDED",) if found is None else found

    def listed(self, caller: Caller, namespace: str | None, now: int, at: int | None, state: str | None) -> list[str]:
        found: list[str] = []
        for cube in self.cubes.values():
            if not self.within(cube.namespace, namespace) or not self.sees(caller, cube.namespace):
                continue
            recorded, ver, when = cube.state, cube.live, now
            if at is not None:
                if cube.cube_id not in self.past[at].cubes:
                    continue
                number, recorded, _into = self.past[at].cubes[cube.cube_id]
                ver, when = cube.versions[number - 1], self.past[at].time
                recorded = "shredded" if cube.state == "shredded" else recorded
            shown = effective(recorded, ver.expires_at, when)
            if shown == state or (state is None and shown in LISTED):
                found.append(cube.cube_id)
        return sorted(found)

    def findable(self, caller: Caller, word: str, namespace: str | None, now: int, at: int | None) -> list[tuple[str, int]]:
        """Cubes that a search for a word must find, and nothing else."""
        found: list[tuple[str, int]] = []
        for cube in self.cubes.values():
            if cube.state == "shredded" or not self.within(cube.namespace, namespace) or not self.sees(caller, cube.namespace):
                continue
            recorded, ver, when = cube.state, cube.live, now
            if at is not None:
                if cube.cube_id not in self.past[at].cubes:
                    continue
                number, recorded, _into = self.past[at].cubes[cube.cube_id]
                ver, when = cube.versions[number - 1], self.past[at].time
            text = self.text(ver)
            findable = effective(recorded, ver.expires_at, when) in SEARCHABLE and ver.recipe != "compose"
            if findable and isinstance(text, str) and word in text:
                found.append((cube.cube_id, ver.number))
        return sorted(found)

    @staticmethod
    def within(namespace: str, prefix: str | None) -> bool:
        return prefix is None or namespace == prefix or namespace.startswith(prefix + "/")

    # -- refusals of mutations ---------------------------------------------------------------------------------------

    def change_refusal(self, caller: Caller, cube_id: str, action: str, now: int, expect: int | None) -> str | None:
        """Why a lifecycle action on one cube is refused."""
        if (errno := self.cube_refusal(caller, cube_id)) is not None:
            return errno
        cube = self.cubes[cube_id]
        state = self.state(cube, now)
        if expect is not None and expect != cube.live.number and state != "shredded":
            return "ECONFLICT"
        if action not in TRANSITIONS[state]:
            return REFUSALS.get(state, "EINVAL")
        return None

    def unfuse_refusal(self, caller: Caller, cube_id: str, expect: int | None) -> str | None:
        if (errno := self.cube_refusal(caller, cube_id)) is not None:
            return errno
        cube = self.cubes[cube_id]
        if expect is not None and expect != cube.live.number and cube.state != "shredded":
            return "ECONFLICT"
        return REFUSALS[cube.state] if cube.state in ("shredded", "frozen") else None

    def sources_refusal(self, caller: Caller, cube_ids: list[str], now: int) -> str | None:
        """Why cubes cannot be read to make another."""
        if len(set(cube_ids)) != len(cube_ids):
            return "EINVAL"
        for cube_id in cube_ids:
            if (errno := self.cube_refusal(caller, cube_id)) is not None:
                return errno
            state = self.state(self.cubes[cube_id], now)
            if state in ("expired", "shredded"):
                return REFUSALS[state]
        return None

    # -- mutations ---------------------------------------------------------------------------------------------------

    def remember(self, offset: int, time: int) -> None:
        cubes = {c.cube_id: (c.live.number, c.state, c.merged_into) for c in self.cubes.values() if c.created <= offset}
        self.past[offset] = Then(time, cubes)

    def add(self, caller: Caller, cube_id: str, namespace: str, ver: Ver) -> Cube:
        self.make_namespace(caller, namespace)
        cube = self.cubes[cube_id] = Cube(cube_id, namespace, [ver], ver.offset, expires_at=ver.expires_at)
        return cube

    def written(self, cube_id: str, ver: Ver) -> None:
        cube = self.cubes[cube_id]
        cube.versions.append(ver)
        cube.state, cube.expires_at = "activated", ver.expires_at

    def fused_text(self, strategy: str, lineage: list[tuple[str, int]]) -> str:
        sources: list[Source] = []
        for cube_id, number in lineage:
            ver = self.cubes[cube_id].versions[number - 1]
            text = self.text(ver)
            assert isinstance(text, str)
            sources.append(Source(cube_id, number, text, None, ver.name))
        return STRATEGIES[strategy](sources).text

    def sources_of(self, fused: Cube) -> list[str]:
        return [c.cube_id for c in self.cubes.values() if c.state == "merged" and c.merged_into == fused.cube_id]

    def fork(self, caller: Caller, source: str, target: str, at: int | None, offset: int, now: int) -> dict[str, Cube]:
        """Copies by the id of what they copy, still without ids of their own."""
        copies: dict[str, Cube] = {}
        into_then: dict[str, str | None] = {}
        for cube in list(self.cubes.values()):
            if not self.within(cube.namespace, source) or cube.state == "shredded":
                continue
            number, state, into = cube.live.number, cube.state, cube.merged_into
            if at is not None:
                if cube.cube_id not in self.past[at].cubes:
                    continue
                number, state, into = self.past[at].cubes[cube.cube_id]
            ver = cube.versions[number - 1]
            state = effective(state, ver.expires_at, now)
            if state == "expired":
                continue
            state = "activated" if state == "frozen" else state
            into_then[cube.cube_id] = into if state == "merged" else None
            copies[cube.cube_id] = Cube(
                "", target + cube.namespace[len(source) :], list(cube.versions[:number]), offset, state, ver.expires_at,
                (cube.cube_id, number),
            )  # fmt: skip
        for source_id, copy in copies.items():
            if copy.state == "merged":
                copy.merged_into = into_then[source_id] if into_then[source_id] in copies else None
                copy.state = "merged" if copy.merged_into else "activated"
        self.make_namespace(caller, target)
        for copy in copies.values():
            self.make_namespace(caller, copy.namespace)
        return copies

    # -- erasure -----------------------------------------------------------------------------------------------------

    def closure(self, roots: list[str]) -> list[Cube]:
        """Cubes that read what is erased, directly or not, also through a fork that inherited it."""
        gone = set(roots)
        while True:
            more = {
                c.cube_id
                for c in self.cubes.values()
                if c.cube_id not in gone and c.state != "shredded"
                and any(s in gone or self.cubes[s].versions[v - 1].key in gone for ver in c.own for s, v in ver.lineage)
            }  # fmt: skip
            if not more:
                return sorted((self.cubes[i] for i in gone - set(roots)), key=lambda c: (c.created, c.cube_id))
            gone |= more

    def shred_refusal(self, roots: list[str], derived: list[Cube], cascade: str) -> str | None:
        if derived and cascade == "refuse":
            return "EINVAL"
        return "EFROZEN" if any(self.cubes[i].state == "frozen" for i in [*roots, *(d.cube_id for d in derived)]) else None

    def shred(self, roots: list[str], derived: list[Cube], rebuilt: dict[str, str], offset: int, now: int) -> None:
        """Erase; `rebuilt` is erased id → successor's id, as the kernel named them."""
        gone = [*roots, *(d.cube_id for d in derived)]
        for cube in derived:
            if cube.cube_id in rebuilt:
                new_id, live = rebuilt[cube.cube_id], cube.live
                lineage = [
                    (rebuilt[s], 1) if s in rebuilt else (s, v) for s, v in live.lineage if s in rebuilt or s not in gone
                ]
                content = "" if live.recipe == "compose" else self.fused_text(str(live.recipe), lineage)
                tags = tuple(dict.fromkeys(t for s, v in lineage for t in self.cubes[s].versions[v - 1].tags))
                self.cubes[new_id] = Cube(
                    new_id, cube.namespace,
                    [replace(live, number=1, content=content, key=new_id, header_key=new_id, offset=offset, tags=tags,
                             expires_at=cube.expires_at, lineage=tuple(lineage))],
                    offset, expires_at=cube.expires_at,
                )  # fmt: skip
        for cube_id in gone:
            cube = self.cubes[cube_id]
            cube.state, cube.expires_at = "shredded", None
            self.dead.add(cube_id)
        for cube in self.cubes.values():
            if cube.state == "merged" and cube.merged_into in gone:
                cube.merged_into = rebuilt.get(str(cube.merged_into))
                cube.state = "merged" if cube.merged_into else "activated"

    def rebuildable(self, cube: Cube, gone: set[str], roots: set[str]) -> bool:
        """Whether a recipe can be run again without what is erased (successors of derived cubes count as there)."""
        return cube.live.recipe is not None and any(
            s not in gone or (s not in roots and self.rebuildable(self.cubes[s], gone, roots)) for s, _v in cube.live.lineage
        )
