"""Request and reply models of every syscall (pydantic v2).

Requests refuse unknown fields; replies ignore them, so that an older client understands a newer kernel. Times are
int64 nanoseconds UTC in replies; requests also take RFC 3339 text. Sizes are bytes. Ids are lower-case UUID text.
"""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from . import limits

Form = Literal["plaintext", "activation", "parametric"]
State = Literal["generated", "activated", "merged", "archived", "frozen", "expired", "shredded"]
Origin = Literal["user_input", "inference", "retrieval", "fine_tuning", "fusion", "migration", "import"]


def nanoseconds(value: object) -> object:
    """RFC 3339 text or integer nanoseconds → int64 nanoseconds UTC. Text without an offset is refused."""
    if not isinstance(value, str):
        return value
    try:
        moment = dt.datetime.fromisoformat(value.replace("Z", "+00:00"))
    except ValueError as error:
        raise ValueError("a time is RFC 3339 text with an offset, or integer nanoseconds UTC") from error
    if moment.tzinfo is None:
        raise ValueError("a time needs an offset, for example 2026-01-31T09:30:00Z")
    whole = moment.replace(microsecond=0)
    return int(whole.timestamp()) * 1_000_000_000 + moment.microsecond * 1000


@functools.lru_cache(maxsize=4096)
def _namespace(value: str) -> str:
    parts = value.split("/")
    if len(parts) > limits.NAMESPACE_DEPTH_MAX:
        raise ValueError(f"a namespace has at most {limits.NAMESPACE_DEPTH_MAX} parts")
    if any(not part or part != part.strip() or part in (".", "..") or not part.isprintable() for part in parts):
        raise ValueError("a namespace is printable words joined by single slashes, such as alice/chat/2026")
    if len(value.encode()) > limits.NAMESPACE_BYTES_MAX:
        raise ValueError(f"a namespace has at most {limits.NAMESPACE_BYTES_MAX} bytes")
    return value


_UUID = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
CubeId = Annotated[str, StringConstraints(pattern=_UUID)]
Namespace = Annotated[str, StringConstraints(min_length=1), AfterValidator(_namespace)]
TimeNs = Annotated[int, BeforeValidator(nanoseconds), Field(ge=-(2**63), le=2**63 - 1)]
Offset = Annotated[int, Field(ge=0, le=2**63 - 1)]
VersionNo = Annotated[int, Field(ge=1, le=2**32 - 1)]
Tag = Annotated[str, StringConstraints(min_length=1, max_length=limits.TAG_CHARS_MAX)]
Tags = Annotated[list[Tag], Field(max_length=limits.TAGS_MAX)]
Labels = Annotated[list[Tag], Field(max_length=limits.LABELS_MAX)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=limits.NAME_CHARS_MAX)]
Component = Annotated[float, Field(ge=-3e38, le=3e38, allow_inf_nan=False)]
Embedding = Annotated[list[Component], Field(min_length=1, max_length=limits.EMBEDDING_DIMS_MAX)]
DeadlineMs = Annotated[int, Field(ge=1, le=limits.DEADLINE_MS_MAX)]


class Request(BaseModel):
    """Base of requests."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    deadline_ms: DeadlineMs | None = Field(
        None, description=f"Milliseconds the caller will wait; {limits.DEADLINE_MS_DEFAULT} when absent."
    )


class Reply(BaseModel):
    """Base of replies."""

    model_config = ConfigDict(extra="ignore", frozen=True, defer_build=True)


class Past(Request):
    """Reads that can look at the past; at most one of the fields."""

    at_offset: Offset | None = Field(None, description="Answer as after the record with this offset.")
    at_time: TimeNs | None = Field(None, description="Answer as after the last record with time ≤ this (RFC 3339 or ns).")

    @model_validator(mode="after")
    def _one_point(self) -> Past:
        if self.at_offset is not None and self.at_time is not None:
            raise ValueError("give at_offset or at_time, not both")
        return self


class CubeRead(Past):
    """Reads of one cube."""

    cube_id: CubeId = Field(description="The cube.")
    version: VersionNo | None = Field(None, description="This version instead of the newest.")

    @model_validator(mode="after")
    def _one_version(self) -> CubeRead:
        if self.version is not None and (self.at_offset is not None or self.at_time is not None):
            raise ValueError("give version or a point in the past, not both")
        return self


class Mutation(Request):
    """Calls that append to the log."""

    request_id: Annotated[str, StringConstraints(min_length=1, max_length=limits.REQUEST_ID_CHARS_MAX)] | None = Field(
        None, description="Any text, unique per principal: the call is applied at most once, for the log's life."
    )
    actor_note: Annotated[str, StringConstraints(max_length=limits.NOTE_CHARS_MAX)] | None = Field(
        None, description="Why; kept in the audit trail."
    )


class CubeMutation(Mutation):
    """Mutations of one cube."""

    cube_id: CubeId = Field(description="The cube.")
    expect_version: VersionNo | None = Field(None, description="Refuse with ECONFLICT unless this is the cube's version.")


class Mutated(Reply):
    """What every mutation answers."""

    cube_id: str = Field(description="The cube that was made or changed.")
    version: int = Field(description="Its newest version.")
    offset: int = Field(description="Offset of the record in the log.")


class CubeHeader(Reply):
    """The header of one version: descriptive, governance and behavioural groups."""

    cube_id: str
    version: int
    form: Form
    namespace: str
    state: State
    owner: str = Field(description="Principal that owns the namespace.")
    created_at: int = Field(description="Time of version 1, ns.")
    updated_at: int = Field(description="Time of this version, ns.")
    offset: int = Field(description="Record that made this version.")
    actor: str = Field(description="Principal that made this version.")
    name: str | None = None
    tags: list[str] = Field(default_factory=list[str])
    semantic_type: str | None = None
    origin: str = "user_input"
    metadata: dict[str, Any] = Field(default_factory=dict[str, Any])
    valid_from: int | None = Field(None, description="When the fact began to hold in the world, ns.")
    valid_to: int | None = Field(None, description="When it ceased to hold, ns.")
    priority: int = 0
    labels: list[str] = Field(default_factory=list[str], description="Sensitivity labels.")
    expires_at: int | None = Field(None, description="End of its life, ns.")
    bytes: int = Field(description="Content size.")
    encoding: Literal["text", "bytes"] = "text"
    parents: list[dict[str, Any]] = Field(
        default_factory=list[dict[str, Any]], description="Lineage: cube_id, version and role (content or context)."
    )
    stale: bool = Field(False, description="A `content` source has a newer version than the one this was made from.")
    recipe: dict[str, Any] | None = Field(None, description="How a derived cube was made.")
    forked_from: dict[str, Any] | None = Field(None, description="Source cube_id and version of a fork.")
    merged_into: str | None = Field(None, description="The fused cube that stands for this one.")
    has_embedding: bool = Field(False, description="The caller supplied a vector.")


class HeaderFields(Request):
    """Header fields that alloc and write share."""

    name: Name | None = Field(None, description="A name; need not be unique.")
    tags: Tags | None = Field(None, description="Tags, for filters.")
    semantic_type: Tag | None = Field(None, description="fact, preference, event, task, document, message, …")
    origin: Origin | None = Field(None, description="Where the content comes from.")
    metadata: dict[str, Any] | None = Field(
        None, description=f"Free map, at most {limits.METADATA_BYTES_MAX} bytes as MessagePack; no floats are hashed."
    )
    valid_from: TimeNs | None = Field(None, description="When the fact began to hold in the world.")
    valid_to: TimeNs | None = Field(None, description="When it ceased to hold.")
    ttl_s: Annotated[int, Field(ge=1, le=limits.TTL_SECONDS_MAX)] | None = Field(
        None, description="Seconds from now until the cube expires."
    )
    priority: Annotated[int, Field(ge=-limits.PRIORITY_MAX, le=limits.PRIORITY_MAX)] | None = Field(
        None, description="A number for the caller's own use; ranking does not look at it."
    )
    labels: Labels | None = Field(None, description="Sensitivity labels.")
    embedding: Embedding | None = Field(None, description="The content's vector, if the caller has it.")

    @model_validator(mode="after")
    def _interval(self) -> HeaderFields:
        if self.valid_from is not None and self.valid_to is not None and self.valid_to < self.valid_from:
            raise ValueError("valid_to is before valid_from")
        return self


class NewCube(HeaderFields):
    """One cube to be made."""

    namespace: Namespace = Field(description="Where it lives; made on first use and then owned by the caller.")
    content: str | bytes | None = Field(None, description="Text or bytes, at most 1 MiB inline.")
    fd: Annotated[int, Field(ge=0, lt=limits.FDS_PER_FRAME_MAX)] | None = Field(
        None, description="Place among the frame's descriptors of a sealed memfd with larger content (the client does this)."
    )
    encoding: Literal["text", "bytes"] | None = Field(None, description="What the descriptor holds; text by default.")
    form: Literal["plaintext"] = Field("plaintext", description="Memory form.")
    parents: Annotated[list[CubeId], Field(max_length=limits.PARENTS_MAX)] | None = Field(
        None, description="Cubes that this one was made from; erasing one of them erases this too."
    )

    @model_validator(mode="after")
    def _one_content(self) -> NewCube:
        if (self.content is None) == (self.fd is None):
            raise ValueError("give content, or fd for content over 1 MiB")
        return self


class MemAlloc(NewCube, Mutation):
    """Make a cube."""


class MemAllocMany(Mutation):
    """Make many cubes in one record: all or nothing."""

    items: Annotated[list[NewCube], Field(min_length=1, max_length=limits.ALLOC_MANY_ITEMS_MAX)]


class AllocatedItem(Reply):
    cube_id: str
    version: int


class MemAllocManyReply(Reply):
    items: list[AllocatedItem]
    offset: int


class MemRead(CubeRead):
    """Read a cube's header and content."""

    parts: tuple[Literal["header", "content"], ...] = Field(("header", "content"), description="What to return.")


class MemReadReply(Reply):
    cube_id: str
    version: int
    form: Form
    state: State
    offset: int = Field(description="Record that made this version.")
    header: CubeHeader | None = None
    content: str | bytes | None = None
    fd: int | None = Field(None, description="Place among the frame's descriptors of content over 1 MiB.")
    encoding: Literal["text", "bytes"] | None = Field(None, description="What the descriptor holds.")


class MemStat(CubeRead):
    """Read a cube's header."""


class MemStatReply(Reply):
    header: CubeHeader


class MemList(Past):
    """List cubes, in order of namespace and age."""

    namespace: Namespace | None = Field(None, description="This namespace and all below it.")
    form: Form | None = None
    state: State | None = Field(None, description="Only this state; without it, all but expired and shredded.")
    tags: Tags | None = Field(None, description="Cubes that carry all of these tags.")
    name: Name | None = Field(None, description="Cubes of exactly this name.")
    limit: Annotated[int, Field(ge=1, le=limits.LIST_ITEMS_MAX)] = limits.LIST_ITEMS_DEFAULT
    cursor: Annotated[str, StringConstraints(max_length=2048)] | None = Field(
        None, description="`next_cursor` of the last page."
    )


class MemListReply(Reply):
    """Also the sequence of its cubes: iterate it, index it, take its length."""

    cubes: list[CubeHeader]
    next_cursor: str | None = None

    def __iter__(self) -> Iterator[CubeHeader]:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return iter(self.cubes)

    def __len__(self) -> int:
        return len(self.cubes)

    def __getitem__(self, place: int) -> CubeHeader:
        return self.cubes[place]


class MemWrite(HeaderFields, CubeMutation):
    """Make a new version. Fields that are not given stay as they were."""

    content: str | bytes | None = Field(None, description="New content; without it the content stays.")
    fd: Annotated[int, Field(ge=0, lt=limits.FDS_PER_FRAME_MAX)] | None = Field(
        None, description="Larger content, as in mem_alloc."
    )
    encoding: Literal["text", "bytes"] | None = None

    @model_validator(mode="after")
    def _some_change(self) -> MemWrite:
        if self.content is not None and self.fd is not None:
            raise ValueError("give content or fd, not both")
        if not (self.model_fields_set - {"cube_id", "request_id", "expect_version", "deadline_ms", "actor_note", "encoding"}):
            raise ValueError("a write changes the content or at least one header field")
        return self


class MemFree(CubeMutation):
    """End a cube's life: it becomes `expired`, a tombstone whose past stays readable."""


class MemSearch(Past):
    """Find cubes by meaning, by words, or by both."""

    query: Annotated[str, StringConstraints(max_length=limits.QUERY_CHARS_MAX)] = Field(description="What to look for.")
    namespace: Namespace | None = Field(None, description="This namespace and all below it.")
    k: Annotated[int, Field(ge=1, le=limits.SEARCH_HITS_MAX)] = limits.SEARCH_HITS_DEFAULT
    form: Form | None = None
    tags: Tags | None = Field(None, description="Cubes that carry all of these tags.")
    state: State | None = Field(None, description="Only this state; without it generated, activated and frozen.")
    since: TimeNs | None = Field(None, description="Facts that still held at or after this event time.")
    until: TimeNs | None = Field(None, description="Facts that already held at or before this event time.")
    mode: Literal["hybrid", "dense", "lexical"] = "hybrid"
    explain: bool = Field(False, description="Say for each hit which retriever found it, at which rank, and why.")
    query_embedding: Embedding | None = Field(None, description="The query's vector, if the caller has it.")


class SearchHit(Reply):
    cube_id: str
    version: int
    score: float
    content: str | bytes
    namespace: str
    clipped: bool = Field(False, description="The content is longer than a hit carries; mem_read has all of it.")
    header: CubeHeader | None = None
    why: dict[str, Any] | None = None


class MemSearchReply(Reply):
    """Also the sequence of its hits: iterate it, index it, take its length."""

    hits: list[SearchHit]
    partial: bool = Field(False, description="The dense index lags; vectors of newer cubes were not considered.")

    def __iter__(self) -> Iterator[SearchHit]:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return iter(self.hits)

    def __len__(self) -> int:
        return len(self.hits)

    def __getitem__(self, place: int) -> SearchHit:
        return self.hits[place]


class MemHistory(Request):
    """List a cube's versions, oldest first."""

    cube_id: CubeId


class VersionInfo(Reply):
    version: int
    offset: int
    time: int
    actor: str
    syscall: str
    note: str | None = None
    form: Form
    bytes: int


class MemHistoryReply(Reply):
    """Also the sequence of its versions: iterate it, index it, take its length."""

    versions: list[VersionInfo]

    def __iter__(self) -> Iterator[VersionInfo]:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return iter(self.versions)

    def __len__(self) -> int:
        return len(self.versions)

    def __getitem__(self, place: int) -> VersionInfo:
        return self.versions[place]


class MemDiff(Request):
    """Compare two versions."""

    cube_id: CubeId
    a: VersionNo
    b: VersionNo


class MemDiffReply(Reply):
    diff: str = Field(description="Unified diff of the contents; empty when equal.")
    header: dict[str, Any] = Field(description="Changed header fields: name → [old, new].")


class MemRollback(CubeMutation):
    """Make a new version equal to an old one."""

    to_version: VersionNo


class MemFork(Mutation):
    """Copy a namespace, copy-on-write: the copy has new ids and its own future."""

    namespace: Namespace
    to: Namespace
    at_offset: Offset | None = Field(None, description="Fork the namespace as it was then.")


class MemForkReply(Reply):
    namespace: str
    cubes: int = Field(description="Cubes in the new namespace.")
    offset: int


class MemCompose(Mutation):
    """Make a cube that refers to others, in order; it reads as their contents joined by newlines."""

    cube_ids: Annotated[list[CubeId], Field(min_length=1, max_length=limits.FUSE_SOURCES_MAX)]
    namespace: Namespace
    name: Name | None = None


class MemFuse(Mutation):
    """Fuse cubes into one; the sources become `merged` and stay readable."""

    cube_ids: Annotated[list[CubeId], Field(min_length=1, max_length=limits.FUSE_SOURCES_MAX)]
    strategy: Literal["dedupe", "merge", "timeline"] = Field(
        description="dedupe: every distinct statement once; merge: the same, each with its source; timeline: by event time."
    )
    namespace: Namespace | None = Field(None, description="Where the fused cube lives; the first source's namespace if absent.")
    params: dict[str, Any] | None = Field(None, description="name: name of the fused cube.")


class MemFuseReply(Mutated):
    sources: list[AllocatedItem] = Field(description="The sources, with the versions that were fused.")


class MemUnfuse(CubeMutation):
    """Undo a fuse: the sources are live again, the fused cube expires."""


class MemUnfuseReply(Mutated):
    restored: list[str]


class StateReply(Mutated):
    state: State


class MemFreeze(CubeMutation):
    """Hold a cube: it refuses change and erasure and does not expire."""


class MemThaw(CubeMutation):
    """End a hold."""


class MemArchive(CubeMutation):
    """Take a cube out of search; it stays readable and can come back."""


class MemRestore(CubeMutation):
    """Bring an archived cube back."""


class MemShred(Mutation):
    """Erase content for good, everywhere, and prove it."""

    cube_id: CubeId | None = None
    namespace: Namespace | None = Field(None, description="Every cube in this namespace and below it.")
    expect_version: VersionNo | None = Field(None, description="With cube_id: refuse with ECONFLICT if not at this version.")
    cascade: Literal["rebuild", "shred", "refuse"] = Field(
        "rebuild", description="Derived cubes: rebuild what is deterministic and shred the rest, shred all, or refuse if any."
    )

    @model_validator(mode="after")
    def _one_target(self) -> MemShred:
        if (self.cube_id is None) == (self.namespace is None):
            raise ValueError("give cube_id or namespace")
        if self.namespace is not None and self.expect_version is not None:
            raise ValueError("expect_version goes with cube_id")
        return self


class RebuiltCube(Reply):
    cube_id: str = Field(description="The new cube, made from the remaining sources.")
    job_id: str | None = Field(None, description="The job that fills it; none when it is filled already.")
    replaces: str


class ShredReport(Reply):
    shredded: list[str]
    rebuilt: list[RebuiltCube]
    forks: list[str] = Field(description="Forked cubes whose inherited versions went with the content.")
    maps: list[str] = Field(description="Mapped payloads that outlive the shred in other processes.")
    receipt: bytes = Field(description="Signed receipt; `memctl verify --receipt FILE` checks it.")
    keys_gone_by: int | None = Field(
        default=None,
        description="With keys on Kafka: when the last wrapped copy of them has left the brokers, in ns, at the latest.",
    )


class MemShredReply(Reply):
    report: ShredReport
    cube_id: str | None = None
    offset: int


class MemWatch(Request):
    """Follow the log: a stream of records that touch what the caller may read."""

    from_offset: Offset | None = Field(None, description="First offset to deliver; without it, only what is new.")
    namespace: Namespace | None = Field(None, description="This namespace and all below it.")
    events: Annotated[list[str], Field(max_length=64)] | None = Field(None, description="Only these event names.")


class WatchEvent(Reply):
    event: str
    cube_id: str | None = None
    version: int | None = None
    namespace: str | None = None
    state: State | None = None


class WatchItem(Reply):
    offset: int
    time: int
    actor: str
    syscall: str
    events: list[WatchEvent]


class SysHello(Request):
    """Open a connection: the first call on it."""

    abi: Annotated[int, Field(ge=0, le=2**31)]
    token: Annotated[str, StringConstraints(max_length=4096)] | None = Field(None, description="Reserved for gateways.")


class SysHelloReply(Reply):
    abi: int
    principal: str
    server: str
    log_id: str


class SysInfo(Request):
    """What this kernel is and where its log stands."""


class SysInfoReply(Reply):
    abi: int
    version: str
    log_id: str
    epoch: int
    head_offset: int
    head_hash: str
    state_digest: str
    state_schema: int
    log: dict[str, Any] = Field(description="kind, and what this kind of log says of itself.")
    public_key: str
    drivers: list[str]
    models: list[dict[str, Any]]
    principal: str
    admin: bool
    read_only: bool = False
    standby: bool = Field(default=False, description="Follows another kernel's log; sys_promote makes it the one that writes.")


class SysPromote(Request):
    """Make a standby the kernel that writes; whoever wrote before is fenced."""


class SysPromoteReply(Reply):
    epoch: int = Field(description="The epoch in which this kernel writes.")
    head_offset: int


class SysStats(Request):
    """Counters and latency histograms."""


class SysStatsReply(Reply):
    uptime_s: float
    connections: int
    calls: dict[str, dict[str, Any]] = Field(description="Per syscall: count, errors, p50_us, p99_us, max_us.")
    log: dict[str, Any]
    indexes: dict[str, dict[str, Any]] = Field(description="Per index: indexed_offset, documents, and what it says of itself.")
    cubes: dict[str, Any] = Field(description="Cubes and content bytes per form, state and namespace the caller may see.")
    memory: dict[str, Any]


class SysSnapshot(Request):
    """Write a snapshot of the view (RocksDB checkpoint, position and digest). For the kernel's own uid."""


class SysSnapshotReply(Reply):
    offset: int
    state_digest: str
    path: str


class SysVerify(Request):
    """Check the log: chain, MACs, signatures; `full` also decrypts, replays and compares. For the kernel's own uid."""

    full: bool = False


class SysVerifyReply(Reply):
    ok: bool
    offset: int = Field(description="Last offset that was found good.")
    records: int
    problems: list[str]


class SysCancel(Request):
    """Cancel a call in progress on this connection; a write that was appended already goes through."""

    call: Annotated[int, Field(ge=0, le=2**64 - 1)] = Field(description="The id of the request to cancel.")


class SysCancelReply(Reply):
    canceled: bool
