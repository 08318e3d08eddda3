"""Everything derived from the log: rows in an ordered map, and the digest over them.

Invariants:

- a row changes only through `Tables.put`, which keeps the digest equal to the sum over all hashed rows
- rows hold public fields and ciphertext digests; nothing here can decrypt
- the digest is Σ SHAKE-128(row, 512 bytes) mod 2^4096, shown as its SHA-256

Keys, by first byte (rows marked * are in the digest):

- `c` cube_id → Cube*                            - `n` name → Namespace*
- `v` cube_id, version u32 → Version* + private ciphertext
- `l` namespace, 0, cube_id → nothing: cubes of a namespace in order of age
- `s` cube_id, seq u64 → state: the past of a cube's state
- `d` source, derived → nothing: lineage, downwards    - `g` source, fork → nothing
- `f` fused, source → nothing: what was merged into a fused cube
- `o` older, newer, older's version u32, newer's version u32 → seq u64: what a newer fact superseded
- `w` newer, older, newer's version u32, older's version u32 → seq u64: the same, from the newer one
- `e` expires_at u64, cube_id → nothing                - `k` epoch u64, n u64 → cube_id: slots that records name
- `r` request MAC → seq u64                            - `x` seq u64 → nothing: shred records
- `p` cube_id → nothing: cubes that are pinned          - `a` cube_id → nothing: adapters that are not erased
- `m` name → meta values (see `META_*`)

The scans that operations need are the only indexes; everything else is read by key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple, Protocol

import msgpack

from . import crypto
from .events import Slot, pack

SCHEMA: Final = 1
"""State schema: rows of another schema have digests that cannot be compared with these."""
_MODULUS_MASK: Final = (1 << 4096) - 1
DIGEST_BYTES: Final = 512
CONTENT, CONTEXT = 0, 1
"""Lineage roles."""

META_APPLIED: Final = b"mapplied"
"""`[seq, time, head hash, applied digest (512 bytes), epoch]` of the newest record in the view."""
META_CHECKPOINT: Final = b"mcheckpoint"
"""`[seq of the record, hash]` of the newest checkpoint."""
META_HOME: Final = b"mhome"
"""home_id of the copy that the newest log.moved names; beside it a row for every one that was named, `mhome` home_id → seq."""


class Cube(NamedTuple):
    fmt: int
    cube_id: bytes
    namespace: str
    form: str
    created_time: int
    created_seq: int
    version: int
    state: str
    changed_seq: int
    slot: Slot | None
    """Key of versions to come; None until a fork writes its first own version."""
    expires_at: int | None
    forked_from: tuple[bytes, int] | None
    """Source and its version; that version and those before it are read from the source."""
    merged_into: bytes | None


class Version(NamedTuple):
    fmt: int
    cube_id: bytes
    version: int
    seq: int
    time: int
    principal: str
    syscall: int
    expires_at: int | None
    payload_id: bytes
    payload_bytes: int
    payload_digest: bytes
    payload_slot: Slot
    private_id: bytes
    private_digest: bytes
    slot: Slot
    lineage: list[tuple[bytes, int, int]]
    restored_version: int | None


class Namespace(NamedTuple):
    fmt: int
    name: str
    owner: str
    created_time: int
    created_seq: int
    forked_from: tuple[str, int] | None


class Superseded(NamedTuple):
    """One version is outdated by another, since record `seq`."""

    older: bytes
    older_version: int
    newer: bytes
    newer_version: int
    seq: int


class Source(Protocol):
    """Where rows are read from: a store's reader, or a dictionary."""

    def get(self, key: bytes) -> bytes | None: ...

    def scan(self, prefix: bytes, start: bytes | None = None, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]: ...


_unpackb = msgpack.unpackb


def u64(value: int) -> bytes:
    return value.to_bytes(8, "big")


def _superseded(older: bytes, newer: bytes, versions: bytes, seq: bytes) -> Superseded:
    return Superseded(
        older, int.from_bytes(versions[:4], "big"), newer, int.from_bytes(versions[4:], "big"), int.from_bytes(seq, "big")
    )


def row_hash(row: bytes) -> int:
    return int.from_bytes(hashlib.shake_128(row).digest(DIGEST_BYTES), "little")


def shown(total: int) -> bytes:
    """A state digest as people see and sign it."""
    return crypto.sha256(total.to_bytes(DIGEST_BYTES, "little"))


def decode_cube(data: bytes) -> Cube:
    raw = _unpackb(data)
    if raw[9] is not None:
        raw[9] = Slot(*raw[9])
    if raw[11] is not None:
        raw[11] = tuple(raw[11])
    return Cube(*raw)


def decode_version(data: bytes) -> tuple[Version, bytes]:
    """`(row, private ciphertext)` of a stored version."""
    row, private = _unpackb(data)
    raw = _unpackb(row)
    raw[11] = Slot(*raw[11])
    raw[14] = Slot(*raw[14])
    return Version(*raw), private


def decode_namespace(data: bytes) -> Namespace:
    raw = _unpackb(data)
    if raw[5] is not None:
        raw[5] = tuple(raw[5])
    return Namespace(*raw)


class View:
    """Typed reads of the rows in a source. Cheap: makes no copies and keeps nothing."""

    __slots__ = ("get", "scan")

    def __init__(self, source: Source) -> None:
        self.get = source.get
        self.scan = source.scan

    def cube(self, cube_id: bytes) -> Cube | None:
        data = self.get(b"c" + cube_id)
        return None if data is None else decode_cube(data)

    def own_version(self, cube_id: bytes, version: int) -> tuple[Version, bytes] | None:
        data = self.get(b"v" + cube_id + version.to_bytes(4, "big"))
        return None if data is None else decode_version(data)

    def version(self, cube: Cube, version: int) -> tuple[Version, bytes] | None:
        """A version of a cube, followed through forks."""
        while cube.forked_from is not None and version <= cube.forked_from[1]:
            source = self.cube(cube.forked_from[0])
            if source is None:
                return None
            cube = source
        return self.own_version(cube.cube_id, version)

    def version_at(self, cube: Cube, seq: int) -> int | None:
        """The newest version that a cube had after record `seq`; None when it did not exist yet."""
        if cube.created_seq > seq:
            return None
        low = cube.forked_from[1] if cube.forked_from else 1
        high = cube.version
        while low < high:
            middle = (low + high + 1) // 2
            found = self.version(cube, middle)
            if found is not None and found[0].seq <= seq:
                low = middle
            else:
                high = middle - 1
        return low

    def state_at(self, cube: Cube, seq: int) -> str:
        """The recorded state after record `seq`."""
        if cube.changed_seq <= seq:
            return cube.state
        for _key, value in self.scan(b"s" + cube.cube_id, b"s" + cube.cube_id + u64(seq), reverse=True):
            return value.decode()
        return "generated"

    def pinned(self, cube_id: bytes) -> bool:
        """Whether a cube's payload is to stay in the upper tiers."""
        return self.get(b"p" + cube_id) is not None

    def namespace(self, name: str) -> Namespace | None:
        data = self.get(b"n" + name.encode())
        return None if data is None else decode_namespace(data)

    def owner(self, name: str) -> str | None:
        """Who owns a namespace: the owner of the nearest ancestor that exists, itself included."""
        while name:
            found = self.namespace(name)
            if found is not None:
                return found.owner
            name = name.rpartition("/")[0]
        return None

    def namespaces(self, prefix: str | None = None) -> Iterator[Namespace]:
        """Namespaces at or below a prefix (all without one), in order of name."""
        head = b"n" + (prefix or "").encode()
        for key, value in self.scan(head):
            if prefix is None or len(key) == len(head) or key[len(head) : len(head) + 1] == b"/":
                yield decode_namespace(value)

    def cubes_in(self, namespace: str, after: bytes | None = None) -> Iterator[bytes]:
        """Ids of the cubes of exactly one namespace, oldest first."""
        head = b"l" + namespace.encode() + b"\0"
        for key, _value in self.scan(head, head + after + b"\0" if after else None):
            yield key[len(head) :]

    def cubes_below(self, prefix: str) -> Iterator[bytes]:
        for namespace in self.namespaces(prefix):
            yield from self.cubes_in(namespace.name)

    def derived(self, source: bytes) -> Iterator[bytes]:
        """Cubes of which some version names this cube as a source."""
        for key, _value in self.scan(b"d" + source):
            yield key[17:]

    def adapters(self) -> Iterator[bytes]:
        """Ids of all cubes of the parametric form that are not erased."""
        for key, _value in self.scan(b"a"):
            yield key[1:]

    def forks(self, source: bytes) -> Iterator[bytes]:
        for key, _value in self.scan(b"g" + source):
            yield key[17:]

    def merged(self, fused: bytes) -> Iterator[Cube]:
        """Cubes that a fused cube stands for: those that are still `merged`."""
        for key, _value in self.scan(b"f" + fused):
            cube = self.cube(key[17:])
            if cube is not None and cube.state == "merged" and cube.merged_into == fused:
                yield cube

    def superseding(self, older: bytes) -> Iterator[Superseded]:
        """What was recorded to supersede a cube, whatever became of either since."""
        for key, value in self.scan(b"o" + older):
            yield _superseded(key[1:17], key[17:33], key[33:], value)

    def supersedes(self, newer: bytes) -> Iterator[Superseded]:
        """What a cube was recorded to supersede."""
        for key, value in self.scan(b"w" + newer):
            yield _superseded(key[17:33], key[1:17], key[37:] + key[33:37], value)

    def heirs(self, cube_ids: Iterable[bytes]) -> dict[bytes, int]:
        """Forks of these cubes, at any remove: fork → the newest version that it inherits from one of them."""
        found: dict[bytes, int] = {}
        queue: list[tuple[bytes, int]] = [(cube_id, 2**32) for cube_id in cube_ids]
        while queue:
            source, newest = queue.pop()
            for fork_id in self.forks(source):
                fork = self.cube(fork_id)
                if fork is None or fork.forked_from is None:
                    continue
                inherited = min(newest, fork.forked_from[1])
                if found.get(fork_id, 0) < inherited:
                    found[fork_id] = inherited
                    queue.append((fork_id, inherited))
        return found

    def request(self, mac: bytes) -> int | None:
        data = self.get(b"r" + mac)
        return None if data is None else int.from_bytes(data, "big")

    def shreds_after(self, seq: int) -> Iterator[int]:
        for key, _value in self.scan(b"x", b"x" + u64(seq + 1)):
            yield int.from_bytes(key[1:], "big")

    def due(self, now: int) -> Iterator[bytes]:
        """Cubes whose life has run out by `now` and is not yet recorded as such (frozen ones included)."""
        for key, _value in self.scan(b"e"):
            if int.from_bytes(key[1:9], "big") > now:
                return
            yield key[9:]

    def applied(self) -> list[Any] | None:
        """`[seq, time, head hash, digest sum, epoch]`, or None for an empty view."""
        data = self.get(META_APPLIED)
        return None if data is None else list(_unpackb(data))


class Tables(View):
    """Rows with changes on top. `apply` writes here; `take` hands the changes over.

    `overlay` shows every change that is not yet durable, of this record and of those before it; `changes` holds those
    since the last `take`.
    """

    __slots__ = ("_base_get", "_base_scan", "_held", "_keys", "_owners", "changes", "digest", "overlay", "payloads")

    def __init__(self, source: Source, digest: int) -> None:
        self._base_get = source.get
        self._base_scan = source.scan
        self.overlay: dict[bytes, bytes | None] = {}
        self.changes: dict[bytes, bytes | None] = {}
        self.payloads: list[tuple[bytes, bytes]] = []
        """Inline payload ciphertexts, by payload id."""
        self.digest = digest
        self._keys: tuple[dict[bytes, None], ...] = tuple({} for _ in range(256))
        """Keys of the overlay by their first byte: a scan looks at those of its own table."""
        self._held: dict[bytes, int] = {}
        """How many batches of changes that were taken and not settled hold a key."""
        self._owners: dict[str, str] = {}
        """Owners of namespaces that exist: they neither go away nor change hands."""
        self.get = self._get
        self.scan = self._scan

    def reset(self, digest: int) -> None:
        """Forget every change that is not in the source."""
        for held in (self.overlay, self.changes, self.payloads, self._held, self._owners):
            held.clear()
        for keys in self._keys:
            keys.clear()
        self.digest = digest

    def _get(self, key: bytes) -> bytes | None:
        try:
            return self.overlay[key]
        except KeyError:
            return self._base_get(key)

    def _scan(self, prefix: bytes, start: bytes | None = None, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        known = self._keys[prefix[0]] if prefix else self.overlay
        fresh = [key for key in known if key.startswith(prefix)]
        if not fresh:
            yield from self._base_scan(prefix, start, reverse)
            return
        if start is not None:
            fresh = [key for key in fresh if (key <= start if reverse else key >= start)]
        fresh.sort(reverse=not reverse)
        for key, value in self._base_scan(prefix, start, reverse):
            while fresh and (fresh[-1] > key if reverse else fresh[-1] < key):
                changed = fresh.pop()
                if (new := self.overlay[changed]) is not None:
                    yield changed, new
            if fresh and fresh[-1] == key:
                changed = fresh.pop()
                if (new := self.overlay[changed]) is not None:
                    yield changed, new
            else:
                yield key, value
        while fresh:
            changed = fresh.pop()
            if (new := self.overlay[changed]) is not None:
                yield changed, new

    def namespace_owner(self, name: str) -> str | None:
        """Who owns a namespace that exists; None when it does not."""
        known = self._owners.get(name)
        if known is None and (found := self.namespace(name)) is not None:
            known = self._owners[name] = found.owner
        return known

    def owner(self, name: str) -> str | None:
        known = self._owners.get(name)
        return super().owner(name) if known is None else known

    def put(self, key: bytes, value: bytes | None) -> None:
        """Set or delete a row that is not in the digest."""
        self.overlay[key] = value
        self._keys[key[0]][key] = None
        self.changes[key] = value

    def _put_hashed(self, key: bytes, value: bytes, row: bytes, old_row: bytes | None) -> None:
        table = key[:1]
        total = self.digest + row_hash(table + row)
        if old_row is not None:
            total -= row_hash(table + old_row)
        self.digest = total & _MODULUS_MASK
        self.put(key, value)

    def put_cube(self, cube: Cube, *, new: bool = False) -> None:
        key = b"c" + cube.cube_id
        row = pack(cube)
        self._put_hashed(key, row, row, None if new else self.get(key))

    def put_version(self, version: Version, private: bytes) -> None:
        """Versions are only ever added."""
        row = pack(version)
        key = b"v" + version.cube_id + version.version.to_bytes(4, "big")
        self._put_hashed(key, pack((row, private)), row, None)

    def put_superseded(self, one: Superseded) -> None:
        older, newer = one.older_version.to_bytes(4, "big"), one.newer_version.to_bytes(4, "big")
        self.put(b"o" + one.older + one.newer + older + newer, u64(one.seq))
        self.put(b"w" + one.newer + one.older + newer + older, u64(one.seq))

    def put_namespace(self, namespace: Namespace) -> None:
        row = pack(namespace)
        self._put_hashed(b"n" + namespace.name.encode(), row, row, None)

    def take(self) -> tuple[dict[bytes, bytes | None], list[tuple[bytes, bytes]]]:
        """Changes and payloads since the last take; the overlay keeps showing them until `settle`."""
        taken = self.changes, self.payloads
        self.changes, self.payloads = {}, []
        for key in taken[0]:
            self._held[key] = self._held.get(key, 0) + 1
        return taken

    def settle(self, changes: dict[bytes, bytes | None]) -> None:
        """These changes are durable in the source now; stop overlaying those that nothing newer covers."""
        for key in changes:
            held = self._held[key] - 1
            if held:
                self._held[key] = held
                continue
            del self._held[key]
            if key not in self.changes:
                self.overlay.pop(key, None)
                self._keys[key[0]].pop(key, None)


def cube_id_of(time: int, order: int, tail: int) -> bytes:
    """A UUIDv7 (RFC 9562, method 3): time of the record to 244 ns, then the order within the record, then 38 free bits.

    So ids sort by age, also those that one record makes.
    """
    ms, rest = divmod(time, 1_000_000)
    fraction = rest * 4096 // 1_000_000
    bits = ms << 80 | 7 << 76 | fraction << 64 | 2 << 62 | (order & 0xFFFFFF) << 38 | (tail & 0x3F_FFFF_FFFF)
    return bits.to_bytes(16, "big")


def parts_of(namespace: str) -> list[str]:
    """A namespace and its ancestors, root first."""
    parts = namespace.split("/")
    return ["/".join(parts[: i + 1]) for i in range(len(parts))]
