"""Request and reply models of every syscall (pydantic v2).

Requests refuse unknown fields; replies ignore them, so that an older client understands a newer kernel. Times are
int64 nanoseconds UTC in replies; requests also take RFC 3339 text. Sizes are bytes. Ids are lower-case UUID text.
"""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal, get_args

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
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=limits.NAME_CHARS_MAX)]
Component = Annotated[float, Field(ge=-3e38, le=3e38, allow_inf_nan=False)]
Embedding = Annotated[list[Component], Field(min_length=1, max_length=limits.EMBEDDING_DIMS_MAX)]
DeadlineMs = Annotated[int, Field(ge=1, le=limits.DEADLINE_MS_MAX)]


class Request(BaseModel):
    """Base of requests."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    deadline_ms: DeadlineMs | None = Field(
        None,
        description=f"Milliseconds the caller will wait; {limits.DEADLINE_MS_DEFAULT} when absent, "
        f"{limits.JOB_DEADLINE_MS_DEFAULT} for calls that run a model.",
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


class AllocatedItem(Reply):
    cube_id: str
    version: int


class WrittenReply(Mutated):
    """What a new content answers. The lists are there when a check for conflicts was asked for and found something."""

    duplicates: list[AllocatedItem] = Field(
        default_factory=lambda: list[AllocatedItem](), description="Cubes that say the same already."
    )
    supersedes: list[AllocatedItem] = Field(
        default_factory=lambda: list[AllocatedItem](), description="Cubes whose fact this one outdates."
    )
    superseded_by: list[AllocatedItem] = Field(
        default_factory=lambda: list[AllocatedItem](), description="Cubes whose fact is newer than this one, by event time."
    )


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
    renewable: bool = Field(False, description="A `context` source has a newer version: right, and renewed at leisure.")
    pinned: bool = Field(False, description="Its payload stays in the upper tiers.")
    recipe: dict[str, Any] | None = Field(None, description="How a derived cube was made.")
    forked_from: dict[str, Any] | None = Field(None, description="Source cube_id and version of a fork.")
    supersedes: list[dict[str, Any]] = Field(
        default_factory=list[dict[str, Any]], description="Older facts that this version outdates: cube_id and version."
    )
    superseded_by: list[dict[str, Any]] = Field(
        default_factory=list[dict[str, Any]],
        description="Newer facts that outdate this version, each from its valid_from on: cube_id and version.",
    )
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
    form: Literal["plaintext", "parametric"] = Field(
        "plaintext", description="Memory form. parametric: the content is a LoRA adapter as safetensors (memos.lora/1)."
    )
    parents: Annotated[list[CubeId], Field(max_length=limits.PARENTS_MAX)] | None = Field(
        None, description="Cubes that this one was made from; erasing one of them erases this too."
    )

    @model_validator(mode="after")
    def _one_content(self) -> NewCube:
        if (self.content is None) == (self.fd is None):
            raise ValueError("give content, or fd for content over 1 MiB")
        return self


Check = Literal["conflict"]
CHECK: Any = Field(
    None,
    description="conflict: first look for cubes of this namespace, and below, that say the same or the opposite. Texts over "
    f"{limits.CHECK_BYTES_MAX} bytes are not looked at. Which fact is newer is recorded; nothing is refused or deleted.",
)


def _is_text(item: NewCube | MemWrite) -> bool:
    """Whether a new cube or version has a content, and that is text."""
    if isinstance(item, NewCube) and item.form != "plaintext":
        return False
    return isinstance(item.content, str) or (item.fd is not None and item.encoding != "bytes")


class MemAlloc(NewCube, Mutation):
    """Make a cube. An adapter is checked against the model that it is for before it is kept."""

    model: ModelName | None = Field(
        None, description="With form parametric: which of the kernel's models the adapter is for; the first one if absent."
    )
    check: Check | None = CHECK

    @model_validator(mode="after")
    def _tensors(self) -> MemAlloc:
        if self.form == "plaintext" and self.model is not None:
            raise ValueError("model goes with form parametric")
        if self.form == "parametric" and (isinstance(self.content, str) or self.encoding == "text"):
            raise ValueError("an adapter is bytes: give content as bytes, or fd with encoding bytes")
        if self.form == "parametric" and self.embedding is not None:
            raise ValueError("an adapter has no embedding")
        if self.check is not None and not _is_text(self):
            raise ValueError("check looks for conflicts between texts")
        return self


class MemAllocMany(Mutation):
    """Make many cubes in one record: all or nothing."""

    items: Annotated[list[NewCube], Field(min_length=1, max_length=limits.ALLOC_MANY_ITEMS_MAX)]

    @model_validator(mode="after")
    def _texts(self) -> MemAllocMany:
        if any(item.form != "plaintext" for item in self.items):
            raise ValueError("adapters are made one by one, with mem_alloc")
        return self


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
    check: Check | None = CHECK

    @model_validator(mode="after")
    def _some_change(self) -> MemWrite:
        if self.content is not None and self.fd is not None:
            raise ValueError("give content or fd, not both")
        beside = {"cube_id", "request_id", "expect_version", "deadline_ms", "actor_note", "encoding", "check"}
        if not (self.model_fields_set - beside):
            raise ValueError("a write changes the content or at least one header field")
        if self.check is not None and not _is_text(self):
            raise ValueError("check goes with a new content that is text")
        return self


class MemFree(CubeMutation):
    """End a cube's life: it becomes `expired`, a tombstone whose past stays readable."""


SearchStage = Literal["neighbours", "dense", "tokens", "signs", "names", "times", "recency"]
SEARCH_STAGES: Final[tuple[SearchStage, ...]] = get_args(SearchStage)
"""Stages of mem_search's ranking that can be left out."""


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
    budget_tokens: Annotated[int, Field(ge=1, le=limits.BUDGET_TOKENS_MAX)] | None = Field(
        None, description="Of the k best hits those that fit into so many tokens together (estimated), best first."
    )
    rerank: bool = Field(False, description="Let the configured cross-encoder read the best texts and order them.")
    without: Annotated[list[SearchStage], Field(max_length=len(SEARCH_STAGES))] | None = Field(
        None, description="Stages of the ranking to leave out, to see what each is good for."
    )


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
    tokens: int | None = Field(None, description="With budget_tokens: how many tokens the hits have together, estimated.")

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
    """Compare two versions; of adapters by what the model says with either, where the kernel runs that model."""

    cube_id: CubeId
    a: VersionNo
    b: VersionNo


class ModuleDiff(Reply):
    """How far one module of an adapter moved; Frobenius norms of the weight deltas."""

    module: str = Field(description="Path of the module in the model.")
    a: float = Field(description="Norm in version a; 0 where it has no such module.")
    b: float = Field(description="Norm in version b.")
    difference: float = Field(description="Norm of the difference.")


class ProbeDiff(Reply):
    """What the model answers to one probe under either version."""

    prompt: str = Field(description="The probe.")
    a: str = Field(description="Answer under version a.")
    b: str = Field(description="Answer under version b.")


class MemDiffReply(Reply):
    diff: str = Field(description="Unified diff of the contents; empty when equal. Of adapters: lines for modules and answers.")
    header: dict[str, Any] = Field(description="Changed header fields: name → [old, new].")
    modules: list[ModuleDiff] = Field(default_factory=list[ModuleDiff], description="Of adapters: each module that differs.")
    probes: list[ProbeDiff] = Field(
        default_factory=list[ProbeDiff], description="Of adapters: their probes that are answered otherwise."
    )


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


FuseStrategy = Literal[
    "dedupe", "merge", "timeline", "summarise", "auto", "kv",
    "linear", "cat", "svd", "ties", "dare_linear", "dare_ties", "magnitude_prune", "distil",
]  # fmt: skip


class MemFuse(Mutation):
    """Fuse cubes into one; the sources become `merged` and stay readable."""

    cube_ids: Annotated[list[CubeId], Field(min_length=1, max_length=limits.FUSE_SOURCES_MAX)]
    strategy: FuseStrategy = Field(
        description="dedupe: every distinct statement once; merge: the same, each with its source; timeline: by event time; "
        "summarise: the statements that say most, within a budget, shortened by a model if there is one; "
        "auto: dedupe, timeline or merge, by rule; "
        "kv: KV caches into one, keys rotated to their new places and a share of the tokens computed again; "
        "linear, cat, svd, ties, dare_linear, dare_ties, magnitude_prune: adapters into one, as peft merges them; "
        "distil: adapters and texts into one adapter, trained anew on all their texts."
    )
    namespace: Namespace | None = Field(None, description="Where the fused cube lives; the first source's namespace if absent.")
    params: dict[str, Any] | None = Field(
        None,
        description="name: name of the fused cube; with summarise budget_tokens, or ratio: share of the sources' tokens (0.5), "
        "and model: which one shortens, none for no model; with summarise and auto min_kept: share of the questions that the "
        "sources answer which the fused text must answer; with kv recompute: share of tokens, 0 to 1; of adapters weights: one "
        "number each, density: share that ties, dare and prune keep, seed, rank; with distil those of mem_migrate.",
    )


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


class MemPin(CubeMutation):
    """Keep a cube's payload in the upper tiers, whatever else wants the room; a pin outlives restarts."""


class MemUnpin(CubeMutation):
    """Let a cube's payload leave the upper tiers again."""


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
    maps: list[str] = Field(
        description="Mapped payloads that outlive the shred in other processes, as far as the kernel that runs handed them out."
    )
    receipt: bytes = Field(description="Signed receipt; `memctl verify --receipt FILE` checks it.")
    keys_gone_by: int | None = Field(
        default=None,
        description="With keys on Kafka: when the last wrapped copy of them has left the brokers, in ns, at the latest.",
    )


class MemShredReply(Reply):
    report: ShredReport
    cube_id: str | None = None
    offset: int


Tier = Literal["device", "host", "disk"]


class MemMigrate(Mutation):
    """Make a derived cube in another form, or move a payload to another tier; the sources stay as they are."""

    cube_id: CubeId | None = Field(None, description="The cube.")
    cube_ids: Annotated[list[CubeId], Field(min_length=1, max_length=limits.ATTACHED_CUBES_MAX)] | None = Field(
        None, description="Several cubes, in the order in which the model is to read them."
    )
    to: Literal["activation", "parametric", "plaintext"] | None = Field(
        None,
        description="activation: prefill the text and keep the KV cache; parametric: distil the text into a LoRA adapter; "
        "plaintext: ask an adapter what it knows and write it down.",
    )
    tier: Tier | None = Field(None, description="Move a KV cache's payload: device and host are caches of what is on disk.")
    model: ModelName | None = Field(None, description="Which of the kernel's models; the first one if absent.")
    namespace: Namespace | None = Field(None, description="Where the derived cube lives; the first source's if absent.")
    name: Name | None = Field(None, description="Name of the derived cube.")
    params: dict[str, Any] | None = Field(
        None,
        description="system: system message that stands before the memory; stored: float32, float16, bfloat16 or int8; "
        "neighbours: how many older cubes of the namespace to capture it behind (for composing), or their ids; "
        "adapters: under which to capture. To parametric: seed, rank, steps; min_facts, min_efficacy, min_paraphrase, "
        "min_locality, max_kl: what it must reach; writer: model that words forms; on_change: keep, rebuild or shred when a "
        "source changes. To plaintext: min_confidence.",
    )
    wait: bool = Field(True, description="Answer when the derived cube is there; without it, as soon as the job is accepted.")

    @model_validator(mode="after")
    def _one_way(self) -> MemMigrate:
        if (self.cube_id is None) == (self.cube_ids is None):
            raise ValueError("give cube_id or cube_ids")
        if (self.to is None) == (self.tier is None):
            raise ValueError("give to or tier")
        if self.tier is not None and (self.cube_id is None or self.model_fields_set & {"model", "namespace", "name", "params"}):
            raise ValueError("a tier takes one cube_id and nothing of what makes a derived cube")
        return self


class MemMigrateReply(Reply):
    cube_id: str | None = Field(None, description="The derived cube; none while its job runs.")
    version: int | None = None
    offset: int | None = Field(None, description="Record that made this version; none while the job runs.")
    job_id: str | None = Field(None, description="The job; none when the answer was rebuilt from the record.")
    state: str = Field("done", description="queued, running, done, failed or canceled.")
    reused: bool = Field(False, description="What is made of exactly these sources was there already.")
    cube_ids: list[str] = Field(default_factory=list[str], description="To plaintext: the cubes that were written.")
    scores: dict[str, Any] = Field(default_factory=dict[str, Any], description="To parametric: what its probes said.")
    dropped: list[dict[str, Any]] = Field(
        default_factory=list[dict[str, Any]], description="To parametric: facts that were left out, and why."
    )
    tier: Tier | None = Field(None, description="Where the payload was moved to.")
    timings: dict[str, float] = Field(default_factory=dict[str, float], description="Seconds: queued, prefill, train, whole.")


class MapTensor(Reply):
    """Where one tensor lies."""

    name: str = Field(description="The tensor.")
    dtype: str = Field(description="As safetensors names it: F32, F16, BF16, I8, I64, …")
    shape: list[int] = Field(description="Elements in each dimension.")
    offset: int = Field(description="Of its first byte in the descriptor.")
    bytes: int = Field(description="Bytes of the tensor.")


class MapLayout(Reply):
    """What tensors a payload holds."""

    tensors: list[MapTensor] = Field(description="In the order in which they lie.")
    metadata: dict[str, str] = Field(default_factory=dict[str, str], description="What the file says of itself.")


class MemMap(CubeRead):
    """Map a payload: a descriptor of sealed memory that holds it, without a copy of your own."""


class MemMapReply(Reply):
    cube_id: str
    version: int
    form: Form
    offset: int = Field(description="Record that made this version.")
    bytes: int
    fd: int = Field(description="The descriptor; whoever called owns it, and closes it.")
    tier: Tier = Field(description="Where the payload was found: host, or disk, from where it had to be read and decrypted.")
    encoding: Literal["text", "bytes"] = "bytes"
    layout: MapLayout | None = Field(None, description="Where which tensor lies; none when the payload holds no tensors.")


class Attached(Request):
    """A cube to put before the prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    cube_id: CubeId = Field(description="The cube.")
    version: VersionNo | None = Field(None, description="This version; of a cache, though its sources changed since.")
    weight: Annotated[float, Field(gt=0, le=limits.ADAPTER_WEIGHT_MAX)] | None = Field(
        default=None, description="Of an adapter: how much of it; 1 if absent."
    )


class Message(Request):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"] = Field(description="Who speaks.")
    content: Annotated[str, StringConstraints(max_length=limits.PROMPT_CHARS_MAX)] = Field(description="What is said.")


class MemInfer(Request):
    """Let the model answer, with cubes attached: texts are read, KV caches are continued from, adapters act."""

    prompt: Annotated[str, StringConstraints(min_length=1, max_length=limits.PROMPT_CHARS_MAX)] | None = Field(
        None, description="What the user says."
    )
    messages: Annotated[list[Message], Field(min_length=1, max_length=limits.MESSAGES_MAX)] | None = Field(
        None, description="A conversation instead of a prompt; a system message stands first."
    )
    cubes: Annotated[list[CubeId | Attached], Field(max_length=limits.ATTACHED_CUBES_MAX)] | None = Field(
        None, description="Cubes to put before the prompt, in this order: an id, or {cube_id, version, weight}."
    )
    on_miss: Literal["refuse", "recompute"] = Field(
        "refuse", description="When a cache is stale or another model's: refuse (ESTALE, EMODEL), or prefill its sources' text."
    )
    gate: Literal["subject", "always"] = Field(
        "subject", description="When an adapter acts: when the messages name a subject that it was made of, or always."
    )
    allow_stale: bool = Field(False, description="Use an adapter though a source of it has changed since.")
    recompute: Annotated[float, Field(ge=0, le=1)] = Field(
        limits.RECOMPUTE_PERCENT_DEFAULT / 100, description="With several caches: share of their tokens to compute again."
    )
    model: ModelName | None = Field(None, description="Which of the kernel's models; the first one if absent.")
    max_new_tokens: Annotated[int, Field(ge=1, le=limits.NEW_TOKENS_MAX)] = Field(
        limits.NEW_TOKENS_DEFAULT, description="Tokens of the answer, at most."
    )
    temperature: Annotated[float, Field(ge=0, le=100)] = Field(0.0, description="0 takes the likeliest token each time.")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="Choose among the likeliest that add up to this.")
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] = Field(0, description="Choose among so many; 0 for all.")
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = Field(None, description="The same seed gives the same text.")
    stop: Annotated[list[Annotated[str, StringConstraints(min_length=1, max_length=256)]], Field(max_length=16)] | None = Field(
        None, description="Texts at which to stop."
    )
    stream: bool = Field(False, description="Send the text in pieces as it comes.")

    @model_validator(mode="after")
    def _one_prompt(self) -> MemInfer:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give prompt or messages")
        if 0 < self.temperature < 0.001:
            raise ValueError("a temperature is 0, or at least 0.001")
        if self.messages is not None:
            roles = [message.role for message in self.messages]
            if "system" in roles[1:]:
                raise ValueError("a system message stands first")
            if [role for role in roles if role != "system"][:1] != ["user"] or roles[-1] != "user":
                raise ValueError("a conversation begins and ends with the user")
        return self


class AttachedCube(Reply):
    """A cube that stood before the prompt."""

    cube_id: str
    version: int
    form: Form
    how: str = Field(
        description="prefilled (text), attached (a cache as it is), composed (moved), recomputed (its cache was no use); "
        "of an adapter: acted, or off (the messages name none of its subjects)."
    )
    tokens: int = Field(description="Tokens that it takes.")
    weight: float | None = Field(default=None, description="Of an adapter: how much of it acted; 0 when it was off.")


class MemInferReply(Reply):
    text: str = Field(description="What the model said.")
    model: str = Field(description="Which model.")
    tokens_in: int = Field(description="Tokens before the answer.")
    tokens_reused: int = Field(description="Of those, tokens whose keys and values came from caches.")
    tokens_out: int = Field(description="Tokens of the answer, the one that ended it included.")
    finish: Literal["stop", "length"] = Field(description="Why it ended: by itself or at a stop text, or at the limit.")
    ttft_ms: float = Field(description="From the call's arrival to the first token.")
    tokens_per_s: float = Field(description="Of the answer after its first token; 0 when there is only one.")
    attached: list[AttachedCube] = Field(description="The cubes, in order, and how each was used.")


class MemInferItem(Reply):
    """A piece of an answer."""

    text: str = Field(description="The next piece.")
    reply: MemInferReply | None = Field(None, description="With the last item: everything.")


JobId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]


class JobStatus(Request):
    """Where a job stands."""

    job_id: JobId = Field(description="The job.")


class JobWait(Request):
    """Wait until a job is over."""

    job_id: JobId = Field(description="The job.")


class JobCancel(Request):
    """Give a job up; what it has committed stays."""

    job_id: JobId = Field(description="The job.")


class JobReply(Reply):
    """A job, as it stands."""

    job_id: str = Field(description="The job.")
    kind: str = Field(description="capture, distil, fuse, move, import, verbalise, diff or infer.")
    state: Literal["queued", "running", "done", "failed", "canceled"]
    progress: float = Field(description="0 to 1.")
    message: str = Field(description="What it is doing, or why it failed.")
    created_at: int = Field(description="When it began, ns.")
    finished_at: int | None = Field(None, description="When it was over, ns.")
    result: dict[str, Any] | None = Field(None, description="What the call that began it answers.")
    error: dict[str, Any] | None = Field(None, description="errno, detail, advice, retryable, outcome.")


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
    pinned: bool | None = Field(default=None, description="Of a pin: set or taken away.")


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
    cubes: dict[str, Any] = Field(
        description="Cubes and content bytes per form, state and namespace the caller may see, as of the record as_of_offset."
    )
    tiers: dict[str, dict[str, Any]] = Field(
        default_factory=dict[str, dict[str, Any]], description="Per upper tier: budget, bytes, entries, hits, evictions."
    )
    host: dict[str, Any] = Field(default_factory=dict[str, Any], description="The driver host: starts, deaths, queue.")
    jobs: dict[str, int] = Field(default_factory=dict[str, int], description="Jobs by state.")
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
