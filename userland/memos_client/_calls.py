"""Every syscall as a typed method. GENERATED from the table by `python -m memos_client._generate`: do not edit.

`Calls` and `AsyncCalls` know names and types only; `Kernel` and `AsyncKernel` give them a socket. An argument that is
left out, or None, takes the kernel's default.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from typing import Any, Final, Generic, Literal, Self, TypeVar, overload

from memos_syscalls import messages as m

from ._session import Call, R

T_co = TypeVar("T_co", covariant=True)


class Stream(Iterator[T_co], Generic[T_co]):
    """Items as the kernel sends them. Close it, or use it in a `with` block, to end the call."""

    @abstractmethod
    def close(self) -> None:
        """Ends the call; whoever waits for the next item gets StopIteration."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncStream(AsyncIterator[T_co], Generic[T_co]):
    """Items as the kernel sends them. Close it, or use it in an `async with` block, to end the call."""

    @abstractmethod
    async def aclose(self) -> None:
        """Ends the call; whoever waits for the next item gets StopAsyncIteration."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


_SYS_INFO: Final = Call("sys_info", m.SysInfoReply)
_SYS_STATS: Final = Call("sys_stats", m.SysStatsReply)
_SYS_SNAPSHOT: Final = Call("sys_snapshot", m.SysSnapshotReply)
_SYS_VERIFY: Final = Call("sys_verify", m.SysVerifyReply)
_SYS_PROMOTE: Final = Call("sys_promote", m.SysPromoteReply)
_MEM_ALLOC: Final = Call("mem_alloc", m.WrittenReply)
_MEM_ALLOC_MANY: Final = Call("mem_alloc_many", m.MemAllocManyReply)
_MEM_READ: Final = Call("mem_read", m.MemReadReply)
_MEM_STAT: Final = Call("mem_stat", m.MemStatReply)
_MEM_LIST: Final = Call("mem_list", m.MemListReply)
_MEM_WRITE: Final = Call("mem_write", m.WrittenReply)
_MEM_FREE: Final = Call("mem_free", m.StateReply)
_MEM_SEARCH: Final = Call("mem_search", m.MemSearchReply)
_MEM_COMPOSE: Final = Call("mem_compose", m.Mutated)
_MEM_FUSE: Final = Call("mem_fuse", m.MemFuseReply)
_MEM_UNFUSE: Final = Call("mem_unfuse", m.MemUnfuseReply)
_MEM_MIGRATE: Final = Call("mem_migrate", m.MemMigrateReply)
_MEM_HISTORY: Final = Call("mem_history", m.MemHistoryReply)
_MEM_DIFF: Final = Call("mem_diff", m.MemDiffReply)
_MEM_ROLLBACK: Final = Call("mem_rollback", m.Mutated)
_MEM_FORK: Final = Call("mem_fork", m.MemForkReply)
_MEM_FREEZE: Final = Call("mem_freeze", m.StateReply)
_MEM_THAW: Final = Call("mem_thaw", m.StateReply)
_MEM_ARCHIVE: Final = Call("mem_archive", m.StateReply)
_MEM_RESTORE: Final = Call("mem_restore", m.StateReply)
_MEM_PIN: Final = Call("mem_pin", m.StateReply)
_MEM_UNPIN: Final = Call("mem_unpin", m.StateReply)
_MEM_SHRED: Final = Call("mem_shred", m.MemShredReply)
_MEM_MAP: Final = Call("mem_map", m.MemMapReply)
_MEM_INFER: Final = Call("mem_infer", m.MemInferReply)
_MEM_INFER_ITEM: Final = Call("mem_infer", m.MemInferItem)
_MEM_WATCH: Final = Call("mem_watch", m.WatchItem)
_JOB_STATUS: Final = Call("job_status", m.JobReply)
_JOB_WAIT: Final = Call("job_wait", m.JobReply)
_JOB_CANCEL: Final = Call("job_cancel", m.JobReply)


class Calls(ABC):
    """The syscalls of a blocking client."""

    @abstractmethod
    def _call(self, call: Call[R], args: dict[str, Any]) -> R:
        """Sends one call and waits for its reply."""

    @abstractmethod
    def _stream(self, call: Call[R], args: dict[str, Any]) -> Stream[R]:
        """Starts a call that answers with items."""

    def sys_info(
        self,
        *,
        deadline_ms: int | None = None,
    ) -> m.SysInfoReply:
        """What this kernel is and where its log stands.

        deadline_ms: Milliseconds the caller will wait; 30000 when absent, 3600000 for calls that run a model.
        """
        return self._call(
            _SYS_INFO,
            {
                "deadline_ms": deadline_ms,
            },
        )

    def sys_stats(
        self,
        *,
        deadline_ms: int | None = None,
    ) -> m.SysStatsReply:
        """Counters and latency histograms.

        deadline_ms: Milliseconds the caller will wait; 30000 when absent, 3600000 for calls that run a model.
        """
        return self._call(
            _SYS_STATS,
            {
                "deadline_ms": deadline_ms,
            },
        )

    def sys_snapshot(
        self,
        *,
        deadline_ms: int | None = None,
    ) -> m.SysSnapshotReply:
        """Write a snapshot of the view (RocksDB checkpoint, position and digest). For the kernel's own uid.

        deadline_ms: Milliseconds the caller will wait; 30000 when absent, 3600000 for calls that run a model.
        """
        return self._call(
            _SYS_SNAPSHOT,
            {
                "deadline_ms": deadline_ms,
            },
        )

    def sys_verify(
        self,
        *,
        full: bool | None = None,
        deadline_ms: int | None = None,
    ) -> m.SysVerifyReply:
        """Check the log: chain, MACs, signatures; `full` also decrypts, replays and compares. For the kernel's own uid.

        deadline_ms: Milliseconds the caller will wait; 30000 when absent, 3600000 for calls that run a model.
        """
        return self._call(
            _SYS_VERIFY,
            {
                "full": full,
                "deadline_ms": deadline_ms,
            },
        )

    def sys_promote(
        self,
        *,
        deadline_ms: int | None = None,
    ) -> m.SysPromoteReply:
        """Make a standby the kernel that writes; whoever wrote before is fenced.

        deadline_ms: Milliseconds the caller will wait; 30000 when absent, 3600000 for calls that run a model.
        """
        return self._call(
            _SYS_PROMOTE,
            {
                "deadline_ms": deadline_ms,
            },
        )

    def mem_alloc(
        self,
        namespace: str,
        content: str | bytes,
        *,
        name: str | None = None,
        tags: Sequence[str] | None = None,
        semantic_type: str | None = None,
        origin: m.Origin | None = None,
        metadata: Mapping[str, Any] | None = None,
        valid_from: str | int | None = None,
        valid_to: str | int | None = None,
        ttl_s: int | None = None,
        priority: int | None = None,
        labels: Sequence[str] | None = None,
        embedding: Sequence[float] | None = None,
        form: Literal["plaintext", "parametric"] | None = None,
        parents: Sequence[str] | None = None,
        model: str | None = None,
        check: Literal["conflict"] | None = None,
        request_id: str | None = None,
        actor_note: str | None = None,
        deadline_ms: int | None = None,
    ) -> m.WrittenReply:
        """Make a cube. An adapter is checked against the model that it is for before it is kept.

        namespace: Where it lives; made on first use and then owned by the caller.
        content: Text or bytes, at most 1 MiB inline.
        name: A name; need not be unique.
        tags: Tags, for filters.
        semantic_type: fact, preference, event, task, document, message, …
        origin: Where the content comes from.
        metadata: Free map, at most 65536 bytes as MessagePack; no floats are hashed.
        valid_from: When the fact began to hold in the world.
        valid_to: When it ceased to hold.
        ttl_s: Seconds from now until the cube expires.
        priority: A number for the caller's own use; ranking does not look at it.
        labels: Sensitivity labels.
        embedding: The content's vector, if the caller has it.
        form: Memory form. parametric: the content is a LoRA adapter as safetensors (memos.lora/1).
        parents: Cubes that this one was made from; erasing one of them erases this too.
        model: With form parametric: which of the kernel's models the adapter is for; the first one if absent.
        check: conflict: first look for cubes of this namespace, and below, that say the same or the opposite. Texts over
            65536 bytes are not looked at. Which fact is newer is recorded; nothing is refused or deleted.
        request_id: Any text, unique per principal: the call is applied at most once, for the log's life.
        actor_note: Why; kept in the audit trail.
        deadline_ms: Milliseconds the caller will wait; 30000 when absent, 3600000 for calls that run a model.
        """
        return self._call(
            _MEM_ALLOC,
            {
                "namespace": namespace,
                "content": content,
                "name": name,
                "tags": tags,
                "semantic_type": semantic_type,
                "origin": origin,
                "metadata": metadata,
                "valid_from": valid_from,
                "valid_to": valid_to,
                "ttl_s": ttl_s,
                "priority": priority,
                "labels": labels,
                "embedding": embedding,
                "form": form,
                "parents": parents,
                "model": model,
                "check": check,
                "request_id": request_id,
                "actor_note": actor_note,
                "deadline_ms": deadline_ms,
            },
        )

    def mem_alloc_many(
        self,
        items: Sequence[m.NewCube | Mapping[str, Any]],
        *,
        request_id: str | None = None,
        actor_note: str | None = None,
        deadline_ms: int | None = None,
    ) -> m.MemAllocManyReply:
        """Make many cubes in one record: all or nothing.

        request_id: Any text, unique per principal: the call is applied at most once, for the log's life.
        actor_note: Why; kept in the audit trail.
        deadline_ms: Milliseconds the caller will wait; 30000 when absent, 3600000 for calls that run a model.
        """
        return self._call(
            _MEM_ALLOC_MANY,
            {
                "items": items,
                "request_id": request_id,
                "actor_note": actor_note,
                "deadline_ms": deadline_ms,
            },
        )

    def mem_read(
        self,
        cube_id: str,
        *,
        at_offset: int | None = None,
        at_time: str | int | None = None,
        version: int | None = None,
        parts: Sequence[Literal["header", "content"]] | None = None,
        deadline_ms: int | None = None,
    ) -> m.MemReadReply:
        """Read a cube's header and content.

        cube_id: The cube.
        at_offset: Answer as after the record with this offset.
        at_time: Answer as after the last record with time ≤ this (RFC 3339 or ns).
        version: This version instead of the newest.
        parts: What to return.
        deadline_ms: Milliseconds the caller will wait; 30000 when absent, 3600000 for calls that run a model.
        """
        return self._call(
            _MEM_READ,
            {
                "cube_id": cube_id,
                "at_offset": at_offset,
                "at_time": at_time,
                "version": version,
                "parts": parts,
                "deadline_ms": deadline_ms,
            },
        )

    def mem_stat(
        self,
        cube_id: str,
        *,
        at_offset: int | None = None,
        at_time: str | int | None = None,
        version: int | None = None,
        deadline_ms: int | None = None,
    ) -> m.MemStatReply:
        """Read a cube's header.

        cube_id: The cube.
        at_offset: Answer as after the record with this offset.
        at_time: Answer as after the last record with time ≤ this (RFC 3339 or ns).
        version: This version instead of the newest.
        deadline_ms: Milliseconds the caller will wait; 30000 when absent, 3600000 for calls that run a model.
        """
        return self._call(
            _MEM_STAT,
            {
                "cube_id": cube_id,
                "at_offset": at_offset,
                "at_time": at_time,
                "version": version,
                "deadline_ms": deadline_ms,
            },
        )

    def mem_list(
        self,
        namespace: str | None = None,
        *,
        at_offset: int | None = None,
        at_time: str | int | None = None,
        form: m.Form | None = None,
        state: m.State | None = None,
        tags: Sequence[str] | None = None,
        name: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
        deadline_ms: int | None = None,
    ) -> m.MemListReply:
        """List cubes, in order of namespace and age.

        namespace: This namespace and all below it.
        at_offset: Answer as after the record with this offset.
        at_time: Answer as after the last record with time ≤ this (RFC 3339 or ns).
        state: Only this state; without it, all but expired and shredded.
        tags: Cubes that carry all of these tags.
        name: Cubes of exactly this name.
        cursor: `next_cursor` of the last page.
        deadline_ms: Milliseconds the caller will wait; 30000 when absent, 3600000 for calls that run a model.
        """
        return self._call(
            _MEM_LIST,
            {
                "namespace": namespace,
                "at_offset": at_offset,
                "at_time": at_time,
                "form": form,
                "state": state,
                "tags": tags,
                "name": name,
                "limit": limit,
                "cursor": cursor,
                "deadline_ms": deadline_ms,
            },
        )

    def mem_write(
        self,
        cube_id: str,
        content: str | bytes | None = None,
        *,
        name: str | None = None,
        tags: Sequence[str] | None = None,
        semantic_type: str | None = None,
        origin: m.Origin | None = None,
        metadata: Mapping[str, Any] | None = None,
        valid_from: str | int | None = None,
        valid_to: str | int | None = None,
        ttl_s: int | None = None,
        priority: int | None = None,
        labels: Sequence[str] | None = None,
        embedding: Sequence[float] | None = None,
        check: Literal["conflict"] | None = None,
        expect_version: int | None = None,
        request_id: str | None = None,
        actor_note: str | None = None,
        deadline_ms: int | None = None,
    ) -> m.WrittenReply:
        """Make a new version. Fields that are not given stay as they were.

        cube_id: The cube.
        content: New content; without it the content stays.
        name: A name; need not be unique.
        tags: Tags, for filters.
        semantic_type: fact, preference, event, task, document, message, …
        origin: Where the content comes from.
        metadata: Free map, at most 65536 bytes as MessagePack; no floats are hashed.
        valid_from: When the fact began to hold in the world.
        valid_to: When it ceased to hold.
        ttl_s: Seconds from now until the cube expires.
        priority: A number for the caller's own use; ranking does not look at it.
        labels: Sensitivity labels.
        embedding: The content's vector, if the caller has it.
        check: conflict: first look for cubes of this namespace, and below, that say the same or the opposite. Texts over
            65536 bytes are not looked at. Which fact is newer is recorded; nothing is refused or deleted.
        expect_version: Refuse with ECONFLICT unless this is the cube's version.
        request_id: Any text, unique per principal: the call is applied at most once, for the log's life.
        actor_note: Why; kept in the audit trail.
        deadline_ms: Milliseconds the caller will wait; 30000 when absent, 3600000 for calls that run a model.
        """
        return self._call(
            _MEM_WRITE,
            {
                "cube_id": cube_id,
                "content": content,
                "name": name,
                "tags": tags,
                "semantic_type": semantic_type,
                "origin": origin,
                "metadata": metadata,
                "valid_from": valid_from,
                "valid_to": valid_to,
                "ttl_s": ttl_s,
                "priority": priority,
                "labels": labels,
                "embedding": embedding,
                "check": check,
                "expect_version": expect_version,
                "request_id": request_id,
                "actor_note": actor_note,
                "deadline_ms": deadline_ms,
            },
        )

    def mem_free(
        self,
        cube_id: str,
        *,
        expect_version: int | None = None,
        request_id: str | None = None,
        actor_note: str | None = None,
        deadline_ms: int | None = None,
    ) -> m.StateReply:
        """End a cube's life: it becomes `expired`, a tombstone whose past stays readable.

        cube_id: The cube.
        expect_version: Refuse with ECONFLICT unless this is the cube's version.
        request_id: Any text, unique per principal: the call is applied at most once, for the log's life.
        actor_note: Why; kept in the audit trail.
        deadline_ms: Milliseconds the caller will wait; 30000 when absent, 3600000 for calls that run a model.
        """
        return self._call(
            _MEM_FREE,
            {
                "cube_id": cube_id,
                "expect_version": expect_version,
                "request_id": request_id,
                "actor_note": actor_note,
                "deadline_ms": deadline_ms,
            },
        )

    def mem_search(
        self,
        query: str,
        namespace: str | None = None,
        *,
        at_offset: int | None = None,
        at_time: str | int | None = None,
        k: int | None = None,
        form: m.Form | None = None,
        tags: Sequence[str] | None = None,
        state: m.State | None = None,
        since: str | int | None = None,
        until: str | int | None = None,
        mode: Literal["hybrid", "dense", "lexical"] | None = None,
        explain: bool | None = None,
        query_embedding: Sequence[float] | None = None,
        budget_tokens: int | None = None,
        rerank: bool | None = None,
        without: Sequence[Literal["neighbours", "dense", "tokens", "signs", "names", "times", "recency"]] | None = None,
        deadline_ms: int | None = None,
    ) -> m.MemSearchReply:
        """Find cubes by meaning, by words, or by both.

        query: What to look for.
        namespace: This namespace and all below it.
        at_offset: Answer as after the record with this offset.
        at_time: Answer as after the last record with time ≤ this (RFC 3339 or ns).
        tags: Cubes that carry all of these tags.
        state: Only this state; without it generated, activated and frozen.
        since: Facts that still held at or after this event time.
        until: Facts that already held at or before this event time.
        explain: Say for each hit which retriever found it, at which rank, and why.
        query_embedding: The query's vector, if the caller has it.
        budget_tokens: Of the k best hits those that fit into so many tokens together (estimated), best first.
        rerank: Let the configured cross-encoder read the best texts and order them.
        without: Stages of the ranking to leave out, to see what each is good for.
        deadline_ms: Milliseconds the caller will wait; 30000 when absent, 3600000 for calls that run a model.
        """
        return self._call(
            _MEM_SEARCH,
            {
                "query": query,
                "namespace": namespace,
                "at_offset": at_offset,
                "at_time": at_time,
                "k": k,
                "form": form,
                "tags": tags,
                "state": state,
                "since": since,
                "until": until,
                "mode": mode,
                "explain": explain,
                "query_embedding": query_embedding,
                "budget_tokens": budget_tokens,
                "rerank": rerank,
                "without": without,
                "deadline_ms": deadline_ms,
            },
        )

    def mem_compose(
        self,
        cube_ids: Sequence[str],
        namespace: str,
        *,
        name: str | None = None,
        request_id: str | None = None,
        actor_note: str | None = None,
        deadline_ms: int | None = None,
    ) -> m.Mutated:
        """Make a cube that refers to others, in order; it reads as their contents joined by newlines.

        request_id: Any text, unique per principal: the call is applied at most once, for the log's life.
        actor_note: Why; kept in the audit trail.
        deadline_ms: Milliseconds the caller will wait; 30000 when absent, 3600000 for calls that run a model.
        """
        return self._call(
            _MEM_COMPOSE,
            {
                "cube_ids": cube_ids,
                "namespace": namespace,
                "name": name,
                "request_id": request_id,
                "actor_note": actor_note,
                "deadline_ms": deadline_ms,
            },
        )

    def mem_fuse(
        self,
        cube_ids: Sequence[str],
        strategy: m.FuseStrategy,
        namespace: str | None = None,
        *,
        params: Mapping[str, Any] | None = None,
        request_id: str | None = None,
        actor_note: str | None = None,
        deadline_ms: int | None = None,
    ) -> m.MemFuseReply:
        """Fuse cubes into one; the sources become `merged` and stay readable.

        strategy: dedupe: every distinct statement once; merge: the same, each with its source; timeline: by event time;
            summarise: the statements that say most, within a budget, shortened by a model if there is one; auto: dedupe,
            timeline or merge, by rule; kv: KV caches into one, keys rotated to their new places and a share of the tokens
            computed again; linear, cat, svd, ties, dare_linear, dare_ties, magnitude_prune: adapters into one, as peft
            merges them; distil: adapters and texts into one adapter, trained anew on all their texts.
        namespace: Where the fused cube lives; the first source's namespace if absent.
        params: name: name of the fused cube; with summarise budget_tokens, or ratio: share of the sources' tokens (0.5),
            and model: which one shortens, none for no model; with summarise and auto min_kept: share of the questions that
            the sources answer which the fused text must answer; with kv recompute: share of tokens, 0 to 1; of adapters
            weights: one number each, density: share that ties, dare and prune keep, seed, rank; with distil those of
            mem_migrate.
        request_id: Any text, unique per principal: the call is applied at most once, for the log's life.
        actor_note: Why; kept in the audit trail.
        deadline_ms: Milliseconds the caller will wait; 30000 when absent, 3600000 for calls that run a model.
        """
        return self._call(
            _MEM_FUSE,
            {
                "cube_ids": cube_ids,
                "strategy": strategy,
                "namespace": namespace,
                "params": params,
                "request_id": request_id,
                "actor_note": actor_note,
                "deadline_ms": deadline_ms,
            },
        )

    def mem_unfuse(
        self,
        cube_id: str,
        *,
        expect_version: int | None = None,
        request_id: str | None = None,
        actor_note: str | None = None,
        deadline_ms: int | None = None,
    ) -> m.MemUnfuseReply:
        """Undo a fuse: the sources are live again, the fused cube expires.

        cube_id: The cube.
        expect_version: Refuse with ECONFLICT unless this is the cube's version.
        request_id: Any text, unique per principal: the call is applied at most once, for the log's life.
        actor_note: Why; kept in the audit trail.
        deadline_ms: Milliseconds the caller will wait; 30000 when absent, 3600000 for calls that run a model.
        """
        return self._call(
            _MEM_UNFUSE,
            {
                "cube_id": cube_id,
                "expect_version": expect_version,
                "request_id": request_id,
                "actor_note": actor_note,
                "deadline_ms": deadline_ms,
            },
        )

    def mem_migrate(
        self,
        cube_id: str | None = None,
        namespace: str | None = None,
        *,
        cube_ids: Sequence[str] | None = None,
        to: m.Form | None = None,
        tier: m.Tier | None = None,
        model: str | None = None,
        name: str | None = None,
        params: Mapping[str, Any] | None = None,
        wait: bool | None = None,
        request_id: str | None = None,
        actor_note: str | None = None,
        deadline_ms: int | None = None,
    ) -> m.MemMigrateReply:
        """Make a derived cube in another form, or move a payload to another tier; the sources stay as they are.

        cube_id: The cube.
        namespace: Where the derived cube lives; the first source's if absent.
        cube_ids: Several cubes, in the order in which the model is to read them.
        to: activation: prefill the text and keep the KV cache; parametric: distil the text into a LoRA adapter; plaintext:
            ask an adapter what it knows and write it down.
        tier: Move a KV cache's payload: device and host are caches of what is on disk.
        model: Which of the kernel's models; the first one if absent.
        name: Name of the derived cube.
        params: system: system message that stands before the memory; stored: float32, float16, bfloat16 or int8;
            neighbours: how many older cubes of the namespace to capture it behind (for composing), or their ids; adapters:
            under which to capture. To parametric: seed, rank, steps; min_facts, min_efficacy, min_paraphrase, min_locality,
            max_kl: what it must reach; writer: model that words forms; on_change: keep, rebuild or shred when a source
            changes. To plaintext: min_confidence.
        wait: Answer when the derived cube is there; without it, as soon as the job is accepted.
        request_id: Any text, unique per principal: the call is applied at most once, for the log's life.
        actor_note: Why; kept in the audit trail.
        deadline_ms: Milliseconds the caller will wait; 30000 when absent, 3600000 for calls that run a model.
        """
        return self._call(
            _MEM_MIGRATE,
            {
                "cube_id": cube_id,
                "namespace": namespace,
                "cube_ids": cube_ids,
                "to": to,
                "tier": tier,
                "model": model,
                "name": name,
                "params": params,
                "wait": wait,
                "request_id": request_id,
                "actor_note": actor_note,
                "deadline_ms": deadline_ms,
            },
        )

    def mem_history(
        self,
        cube_id: str,
        *,
        deadline_ms: int | None = None,
    ) -> m.MemHistoryReply:
        """List a cube's versions, oldest first.

        deadline_ms: Milliseconds the caller will wait; 30000 when absent, 3600000 for calls that run a model.
        """
        return self._call(
            _MEM_HISTORY,
            {
                "cube_id": cube_id,
                "deadline_ms": deadline_ms,
            },
        )

    def mem_diff(
        self,
        cube_id: str,
        a: int,
        b: int,
        *,
        deadline_ms: int | None = None,
    ) -> m.MemDiffReply:
        """Compare two versions; of adapters by what the model says with either, where the kernel runs that model.

        deadline_ms: Milliseconds the caller will wait; 30000 when absent, 3600000 for calls that run a model.
        """
        return self._call(
            _MEM_DIFF,
            {
                "cube_id": cube_id,
                "a": a,
                "b": b,
                "deadline_ms": deadline_ms,
            },
        )

    def mem_rollback(
        self,
        cube_id: str,
        to_version: int,
        *,
        expect_version: int | None = None,
        request_id: str | None = None,
        actor_note: str | None = None,
        deadline_ms: int | None = None,
    ) -> m.Mutated:
        """Make a new version equal to an old one.

        cube_id: The cube.
        expect_version: Refuse with ECONFLICT unless this is the cube's version.
        request_id: Any text, unique per principal: the call is applied at most once, for the log's life.
        actor_note: Why; kept in the audit trail.
        deadline_ms: Milliseconds the caller will wait; 30000 when absent, 3600000 for calls that run a model.
        """
        return self._call(
            _MEM_ROLLBACK,
            {
                "cube_id": cube_id,
                "to_version": to_version,
                "expect_version": expect_version,
                "request_id": request_id,
                "actor_note": actor_note,
                "deadline_ms": deadline_ms,
            },
        )

    def mem_fork(
        self,
        namespace: str,
        to: str,
        *,
        at_offset: int | None = None,
        request_id: str | None = None,
        actor_note: str | None = None,
        deadline_ms: int | None = None,
    ) -> m.MemForkReply:
        """Copy a namespace, copy-on-write: the copy has new ids and its own future.

        at_offset: Fork the namespace as it was then.
        request_id: Any text, unique per principal: the call is applied at most once, for the log's life.
        actor_note: Why; kept in the audit trail.
        deadline_ms: Milliseconds the caller will wait; 30000 when absent, 3600000 for calls that run a model.
        """
        return self._call(
            _MEM_FORK,
            {
                "namespace": namespace,
                "to": to,
                "at_offset": at_offset,
                "request_id": request_id,
                "actor_note": actor_note,
                "deadline_ms": deadline_ms,
            },
        )

    def mem_freeze(
        self,
        cube_id: str,
        *,
        expect_version: int | None = None,
        request_id: str | None = None,
        actor_note: str | None = None,
        deadline_ms: int | None = None,
    ) -> m.StateReply:
        """Hold a cube: it refuses change and erasure and does not expire.

        cube_id: The cube.
        expect_version: Refuse with ECONFLICT unless this is the cube's version.
        request_id: Any text, unique per principal: the call is applied at most once, for the log's life.
        actor_note: Why; kept in the audit trail.
        deadline_ms: Milliseconds the caller will wait; 30000 when absent, 3600000 for calls that run a model.
        """
        return self._call(
            _MEM_FREEZE,
            {
                "cube_id": cube_id,
                "expect_version": expect_version,
                "request_id": request_id,
                "actor_note": actor_note,
                "deadline_ms": deadline_ms,
            },
        )

    def mem_thaw(
        self,
        cube_id: str,
        *,
        expect_version: int | None = None,
        request_id: str | None = None,
        actor_note: str | None = None,
        deadline_ms: int | None = None,
    ) -> m.StateReply:
        """End a hold.

        cube_id: The cube.
        expect_version: Refuse with ECONFLICT unless this is the cube's version.
        request_id: Any text, unique per principal: the call is applied at most once, for the log's life.
        actor_note: Why; kept in the audit trail.
        deadline_ms: Milliseconds the caller will wait; 30000 when absent, 3600000 for calls that run a model.
        """
        return self._call(
            _MEM_THAW,
            {
                "cube_id": cube_id,
                "expect_version": expect_version,
                "request_id": request_id,
                "actor_note": actor_note,
                "deadline_ms": deadline_ms,
            },
        )

    def mem_archive(
        self,
        cube_id: str,
        *,
        expect_version: int | None = None,
        request_id: str | None = None,
        actor_note: str | None = None,
        deadline_ms: int | None = None,
    ) -> m.StateReply:
        """Take a cube out of search; it stays readable and can come back.

        cube_id: The cube.
        expect_version: Refuse with ECONFLICT unless this is the cube's version.
        request_id: Any text, unique per principal: the call is applied at most once, for the log's life.
        actor_note: Why; kept in the audit trail.
        deadline_ms: Milliseconds the caller will wait; 30000 when absent, 3600000 for calls that run a model.
        """
        return self._call(
            _MEM_ARCHIVE,
            {
                "cube_id": cube_id,
                "expect_version": expect_version,
                "request_id": request_id,
                "actor_note": actor_note,
                "deadline_ms": deadline_ms,
            },
        )

    def mem_restore(
        self,
        cube_id: str,
        *,
        expect_version: int | None = None,
        request_id: str | None = None,
        actor_note: str | None = None,
        deadline_ms: int | None = None,
    ) -> m.StateReply:
        """Bring an archived cube back.

        cube_id: The cube.
        expect_version: Refuse with ECONFLICT unless this is the cube's version.
        request_id: Any text, unique per principal: the call is applied at most once, for the log's life.
        actor_note: Why; kept in the audit trail.
        deadline_ms: Milliseconds the caller will wait; 30000 when absent, 3600000 for calls that run a model.
        """
        return self._call(
            _MEM_RESTORE,
            {
                "cube_id": cube_id,
                "expect_version": expect_version,
                "request_id": request_id,
                "actor_note": actor_note,
                "deadline_ms": deadline_ms,
            },
        )

    def mem_pin(
        self,
        cube_id: str,
        *,
        expect_version: int | None = None,
        request_id: str | None = None,
        actor_note: str | None = None,
        deadline_ms: int | None = None,
    ) -> m.StateReply:
        """Keep a cube's payload in the upper tiers, whatever else wants the room; a pin outlives restarts.

        cube_id: The cube.
        expect_version: Refuse with ECONFLICT unless this is the cube's version.
        request_id: Any text, unique per principal: the call is applied at most once, for the log's life.
        actor_note: Why; kept in the audit trail.
        deadline_ms: Milliseconds the caller will wait; 30000 when absent, 3600000 for calls that run a model.
        """
        return self._call(
            _MEM_PIN,
            {
                "cube_id": cube_id,
                "expect_version": expect_version,
                "request_id": request_id,
                "actor_note": actor_note,
                "deadline_ms": deadline_ms,
            },
        )

    def mem_unpin(
        self,
        cube_id: str,
        *,
        expect_version: int | None = None,
        request_id: str | None = None,
        actor_note: str | None = None,
        deadline_ms: int | None = None,
    ) -> m.StateReply:
        """Let a cube's payload leave the upper tiers again.

        cube_id: The cube.
        expect_version: Refuse with ECONFLICT unless this is the cube's version.
        request_id: Any text, unique per principal: the call is applied at most once, for the log's life.
        actor_note: Why; kept in the audit trail.
        deadline_ms: Milliseconds the caller will wait; 30000 when absent, 3600000 for calls that run a model.
        """
        return self._call(
            _MEM_UNPIN,
            {
                "cube_id": cube_id,
                "expect_version": expect_version,
                "request_id": request_id,
                "actor_note": actor_note,
                "deadline_ms": deadline_ms,
            },
        )

    def mem_shred(
        self,
        cube_id: str | None = None,
        namespace: str | None = None,
        *,
        cascade: Literal["rebuild", "shred", "refuse"] | None = None,
        expect_version: int | None = None,
        request_id: str | None = None,
        actor_note: str | None = None,
        deadline_ms: int | None = None,
    ) -> m.MemShredReply:
        """Erase content for good, everywhere, and prove it.

        namespace: Every cube in this namespace and below it.
        cascade: Derived cubes: rebuild what is deterministic and shred the rest, shred all, or refuse if any.
        expect_version: With cube_id: refuse with ECONFLICT if not at this version.
        request_id: Any text, unique per principal: the call is applied at most once, for the log's life.
        actor_note: Why; kept in the audit trail.
        deadline_ms: Milliseconds the caller will wait; 30000 when absent, 3600000 for calls that run a model.
        """
        return self._call(
            _MEM_SHRED,
            {
                "cube_id": cube_id,
                "namespace": namespace,
                "cascade": cascade,
                "expect_version": expect_version,
                "request_id": request_id,
                "actor_note": actor_note,
                "deadline_ms": deadline_ms,
            },
        )

    def mem_map(
        self,
        cube_id: str,
        *,
        at_offset: int | None = None,
        at_time: str | int | None = None,
        version: int | None = None,
        deadline_ms: int | None = None,
    ) -> m.MemMapReply:
        """Map a payload: a descriptor of sealed memory that holds it, without a copy of your own.

        cube_id: The cube.
        at_offset: Answer as after the record with this offset.
        at_time: Answer as after the last record with time ≤ this (RFC 3339 or ns).
        version: This version instead of the newest.
        deadline_ms: Milliseconds the caller will wait; 30000 when absent, 3600000 for calls that run a model.
        """
        return self._call(
            _MEM_MAP,
            {
                "cube_id": cube_id,
                "at_offset": at_offset,
                "at_time": at_time,
                "version": version,
                "deadline_ms": deadline_ms,
            },
        )

    @overload
    def mem_infer(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[m.Message | Mapping[str, Any]] | None = None,
        cubes: Sequence[str | m.Attached | Mapping[str, Any]] | None = None,
        on_miss: Literal["refuse", "recompute"] | None = None,
        gate: Literal["subject", "always"] | None = None,
        allow_stale: bool | None = None,
        recompute: float | None = None,
        model: str | None = None,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
        stop: Sequence[str] | None = None,
        deadline_ms: int | None = None,
        stream: Literal[False] | None = None,
    ) -> m.MemInferReply: ...

    @overload
    def mem_infer(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[m.Message | Mapping[str, Any]] | None = None,
        cubes: Sequence[str | m.Attached | Mapping[str, Any]] | None = None,
        on_miss: Literal["refuse", "recompute"] | None = None,
        gate: Literal["subject", "always"] | None = None,
        allow_stale: bool | None = None,
        recompute: float | None = None,
        model: str | None = None,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
        stop: Sequence[str] | None = None,
        deadline_ms: int | None = None,
        stream: Literal[True],
    ) -> Stream[m.MemInferItem]: ...

    def mem_infer(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[m.Message | Mapping[str, Any]] | None = None,
        cubes: Sequence[str | m.Attached | Mapping[str, Any]] | None = None,
        on_miss: Literal["refuse", "recompute"] | None = None,
        gate: Literal["subject", "always"] | None = None,
        allow_stale: bool | None = None,
        recompute: float | None = None,
        model: str | None = None,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
        stop: Sequence[str] | None = None,
        deadline_ms: int | None = None,
        stream: bool | None = None,
    ) -> m.MemInferReply | Stream[m.MemInferItem]:
        """Let the model answer, with cubes attached: texts are read, KV caches are continued from, adapters act.

        prompt: What the user says.
        messages: A conversation instead of a prompt; a system message stands first.
        cubes: Cubes to put before the prompt, in this order: an id, or {cube_id, version, weight}.
        on_miss: When a cache is stale or another model's: refuse (ESTALE, EMODEL), or prefill its sources' text.
        gate: When an adapter acts: when the messages name a subject that it was made of, or always.
        allow_stale: Use an adapter though a source of it has changed since.
        recompute: With several caches: share of their tokens to compute again.
        model: Which of the kernel's models; the first one if absent.
        max_new_tokens: Tokens of the answer, at most.
        temperature: 0 takes the likeliest token each time.
        top_p: Choose among the likeliest that add up to this.
        top_k: Choose among so many; 0 for all.
        seed: The same seed gives the same text.
        stop: Texts at which to stop.
        stream: Send the text in pieces as it comes.
        deadline_ms: Milliseconds the caller will wait; 30000 when absent, 3600000 for calls that run a model.
        """
        args: dict[str, Any] = {
            "prompt": prompt,
            "messages": messages,
            "cubes": cubes,
            "on_miss": on_miss,
            "gate": gate,
            "allow_stale": allow_stale,
            "recompute": recompute,
            "model": model,
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "seed": seed,
            "stop": stop,
            "stream": stream,
            "deadline_ms": deadline_ms,
        }
        return self._stream(_MEM_INFER_ITEM, args) if stream else self._call(_MEM_INFER, args)

    def mem_watch(
        self,
        namespace: str | None = None,
        *,
        from_offset: int | None = None,
        events: Sequence[str] | None = None,
        deadline_ms: int | None = None,
    ) -> Stream[m.WatchItem]:
        """Follow the log: a stream of records that touch what the caller may read.

        namespace: This namespace and all below it.
        from_offset: First offset to deliver; without it, only what is new.
        events: Only these event names.
        deadline_ms: Milliseconds the caller will wait; 30000 when absent, 3600000 for calls that run a model.
        """
        return self._stream(
            _MEM_WATCH,
            {
                "namespace": namespace,
                "from_offset": from_offset,
                "events": events,
                "deadline_ms": deadline_ms,
            },
        )

    def job_status(
        self,
        job_id: str,
        *,
        deadline_ms: int | None = None,
    ) -> m.JobReply:
        """Where a job stands.

        job_id: The job.
        deadline_ms: Milliseconds the caller will wait; 30000 when absent, 3600000 for calls that run a model.
        """
        return self._call(
            _JOB_STATUS,
            {
                "job_id": job_id,
                "deadline_ms": deadline_ms,
            },
        )

    def job_wait(
        self,
        job_id: str,
        *,
        deadline_ms: int | None = None,
    ) -> m.JobReply:
        """Wait until a job is over.

        job_id: The job.
        deadline_ms: Milliseconds the caller will wait; 30000 when absent, 3600000 for calls that run a model.
        """
        return self._call(
            _JOB_WAIT,
            {
                "job_id": job_id,
                "deadline_ms": deadline_ms,
            },
        )

    def job_cancel(
        self,
        job_id: str,
        *,
        deadline_ms: int | None = None,
    ) -> m.JobReply:
        """Give a job up; what it has committed stays.

        job_id: The job.
        deadline_ms: Milliseconds the caller will wait; 30000 when absent, 3600000 for calls that run a model.
        """
        return self._call(
            _JOB_CANCEL,
            {
                "job_id": job_id,
                "deadline_ms": deadline_ms,
            },
        )


class AsyncCalls(ABC):
    """The syscalls of an asyncio client. Arguments are explained at the same names of `Calls`."""

    @abstractmethod
    async def _call(self, call: Call[R], args: dict[str, Any]) -> R:
        """Sends one call and waits for its reply."""

    @abstractmethod
    def _stream(self, call: Call[R], args: dict[str, Any]) -> AsyncStream[R]:
        """Starts a call that answers with items."""

    async def sys_info(
        self,
        *,
        deadline_ms: int | None = None,
    ) -> m.SysInfoReply:
        """What this kernel is and where its log stands."""
        return await self._call(
            _SYS_INFO,
            {
                "deadline_ms": deadline_ms,
            },
        )

    async def sys_stats(
        self,
        *,
        deadline_ms: int | None = None,
    ) -> m.SysStatsReply:
        """Counters and latency histograms."""
        return await self._call(
            _SYS_STATS,
            {
                "deadline_ms": deadline_ms,
            },
        )

    async def sys_snapshot(
        self,
        *,
        deadline_ms: int | None = None,
    ) -> m.SysSnapshotReply:
        """Write a snapshot of the view (RocksDB checkpoint, position and digest). For the kernel's own uid."""
        return await self._call(
            _SYS_SNAPSHOT,
            {
                "deadline_ms": deadline_ms,
            },
        )

    async def sys_verify(
        self,
        *,
        full: bool | None = None,
        deadline_ms: int | None = None,
    ) -> m.SysVerifyReply:
        """Check the log: chain, MACs, signatures; `full` also decrypts, replays and compares. For the kernel's own uid."""
        return await self._call(
            _SYS_VERIFY,
            {
                "full": full,
                "deadline_ms": deadline_ms,
            },
        )

    async def sys_promote(
        self,
        *,
        deadline_ms: int | None = None,
    ) -> m.SysPromoteReply:
        """Make a standby the kernel that writes; whoever wrote before is fenced."""
        return await self._call(
            _SYS_PROMOTE,
            {
                "deadline_ms": deadline_ms,
            },
        )

    async def mem_alloc(
        self,
        namespace: str,
        content: str | bytes,
        *,
        name: str | None = None,
        tags: Sequence[str] | None = None,
        semantic_type: str | None = None,
        origin: m.Origin | None = None,
        metadata: Mapping[str, Any] | None = None,
        valid_from: str | int | None = None,
        valid_to: str | int | None = None,
        ttl_s: int | None = None,
        priority: int | None = None,
        labels: Sequence[str] | None = None,
        embedding: Sequence[float] | None = None,
        form: Literal["plaintext", "parametric"] | None = None,
        parents: Sequence[str] | None = None,
        model: str | None = None,
        check: Literal["conflict"] | None = None,
        request_id: str | None = None,
        actor_note: str | None = None,
        deadline_ms: int | None = None,
    ) -> m.WrittenReply:
        """Make a cube. An adapter is checked against the model that it is for before it is kept."""
        return await self._call(
            _MEM_ALLOC,
            {
                "namespace": namespace,
                "content": content,
                "name": name,
                "tags": tags,
                "semantic_type": semantic_type,
                "origin": origin,
                "metadata": metadata,
                "valid_from": valid_from,
                "valid_to": valid_to,
                "ttl_s": ttl_s,
                "priority": priority,
                "labels": labels,
                "embedding": embedding,
                "form": form,
                "parents": parents,
                "model": model,
                "check": check,
                "request_id": request_id,
                "actor_note": actor_note,
                "deadline_ms": deadline_ms,
            },
        )

    async def mem_alloc_many(
        self,
        items: Sequence[m.NewCube | Mapping[str, Any]],
        *,
        request_id: str | None = None,
        actor_note: str | None = None,
        deadline_ms: int | None = None,
    ) -> m.MemAllocManyReply:
        """Make many cubes in one record: all or nothing."""
        return await self._call(
            _MEM_ALLOC_MANY,
            {
                "items": items,
                "request_id": request_id,
                "actor_note": actor_note,
                "deadline_ms": deadline_ms,
            },
        )

    async def mem_read(
        self,
        cube_id: str,
        *,
        at_offset: int | None = None,
        at_time: str | int | None = None,
        version: int | None = None,
        parts: Sequence[Literal["header", "content"]] | None = None,
        deadline_ms: int | None = None,
    ) -> m.MemReadReply:
        """Read a cube's header and content."""
        return await self._call(
            _MEM_READ,
            {
                "cube_id": cube_id,
                "at_offset": at_offset,
                "at_time": at_time,
                "version": version,
                "parts": parts,
                "deadline_ms": deadline_ms,
            },
        )

    async def mem_stat(
        self,
        cube_id: str,
        *,
        at_offset: int | None = None,
        at_time: str | int | None = None,
        version: int | None = None,
        deadline_ms: int | None = None,
    ) -> m.MemStatReply:
        """Read a cube's header."""
        return await self._call(
            _MEM_STAT,
            {
                "cube_id": cube_id,
                "at_offset": at_offset,
                "at_time": at_time,
                "version": version,
                "deadline_ms": deadline_ms,
            },
        )

    async def mem_list(
        self,
        namespace: str | None = None,
        *,
        at_offset: int | None = None,
        at_time: str | int | None = None,
        form: m.Form | None = None,
        state: m.State | None = None,
        tags: Sequence[str] | None = None,
        name: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
        deadline_ms: int | None = None,
    ) -> m.MemListReply:
        """List cubes, in order of namespace and age."""
        return await self._call(
            _MEM_LIST,
            {
                "namespace": namespace,
                "at_offset": at_offset,
                "at_time": at_time,
                "form": form,
                "state": state,
                "tags": tags,
                "name": name,
                "limit": limit,
                "cursor": cursor,
                "deadline_ms": deadline_ms,
            },
        )

    async def mem_write(
        self,
        cube_id: str,
        content: str | bytes | None = None,
        *,
        name: str | None = None,
        tags: Sequence[str] | None = None,
        semantic_type: str | None = None,
        origin: m.Origin | None = None,
        metadata: Mapping[str, Any] | None = None,
        valid_from: str | int | None = None,
        valid_to: str | int | None = None,
        ttl_s: int | None = None,
        priority: int | None = None,
        labels: Sequence[str] | None = None,
        embedding: Sequence[float] | None = None,
        check: Literal["conflict"] | None = None,
        expect_version: int | None = None,
        request_id: str | None = None,
        actor_note: str | None = None,
        deadline_ms: int | None = None,
    ) -> m.WrittenReply:
        """Make a new version. Fields that are not given stay as they were."""
        return await self._call(
            _MEM_WRITE,
            {
                "cube_id": cube_id,
                "content": content,
                "name": name,
                "tags": tags,
                "semantic_type": semantic_type,
                "origin": origin,
                "metadata": metadata,
                "valid_from": valid_from,
                "valid_to": valid_to,
                "ttl_s": ttl_s,
                "priority": priority,
                "labels": labels,
                "embedding": embedding,
                "check": check,
                "expect_version": expect_version,
                "request_id": request_id,
                "actor_note": actor_note,
                "deadline_ms": deadline_ms,
            },
        )

    async def mem_free(
        self,
        cube_id: str,
        *,
        expect_version: int | None = None,
        request_id: str | None = None,
        actor_note: str | None = None,
        deadline_ms: int | None = None,
    ) -> m.StateReply:
        """End a cube's life: it becomes `expired`, a tombstone whose past stays readable."""
        return await self._call(
            _MEM_FREE,
            {
                "cube_id": cube_id,
                "expect_version": expect_version,
                "request_id": request_id,
                "actor_note": actor_note,
                "deadline_ms": deadline_ms,
            },
        )

    async def mem_search(
        self,
        query: str,
        namespace: str | None = None,
        *,
        at_offset: int | None = None,
        at_time: str | int | None = None,
        k: int | None = None,
        form: m.Form | None = None,
        tags: Sequence[str] | None = None,
        state: m.State | None = None,
        since: str | int | None = None,
        until: str | int | None = None,
        mode: Literal["hybrid", "dense", "lexical"] | None = None,
        explain: bool | None = None,
        query_embedding: Sequence[float] | None = None,
        budget_tokens: int | None = None,
        rerank: bool | None = None,
        without: Sequence[Literal["neighbours", "dense", "tokens", "signs", "names", "times", "recency"]] | None = None,
        deadline_ms: int | None = None,
    ) -> m.MemSearchReply:
        """Find cubes by meaning, by words, or by both."""
        return await self._call(
            _MEM_SEARCH,
            {
                "query": query,
                "namespace": namespace,
                "at_offset": at_offset,
                "at_time": at_time,
                "k": k,
                "form": form,
                "tags": tags,
                "state": state,
                "since": since,
                "until": until,
                "mode": mode,
                "explain": explain,
                "query_embedding": query_embedding,
                "budget_tokens": budget_tokens,
                "rerank": rerank,
                "without": without,
                "deadline_ms": deadline_ms,
            },
        )

    async def mem_compose(
        self,
        cube_ids: Sequence[str],
        namespace: str,
        *,
        name: str | None = None,
        request_id: str | None = None,
        actor_note: str | None = None,
        deadline_ms: int | None = None,
    ) -> m.Mutated:
        """Make a cube that refers to others, in order; it reads as their contents joined by newlines."""
        return await self._call(
            _MEM_COMPOSE,
            {
                "cube_ids": cube_ids,
                "namespace": namespace,
                "name": name,
                "request_id": request_id,
                "actor_note": actor_note,
                "deadline_ms": deadline_ms,
            },
        )

    async def mem_fuse(
        self,
        cube_ids: Sequence[str],
        strategy: m.FuseStrategy,
        namespace: str | None = None,
        *,
        params: Mapping[str, Any] | None = None,
        request_id: str | None = None,
        actor_note: str | None = None,
        deadline_ms: int | None = None,
    ) -> m.MemFuseReply:
        """Fuse cubes into one; the sources become `merged` and stay readable."""
        return await self._call(
            _MEM_FUSE,
            {
                "cube_ids": cube_ids,
                "strategy": strategy,
                "namespace": namespace,
                "params": params,
                "request_id": request_id,
                "actor_note": actor_note,
                "deadline_ms": deadline_ms,
            },
        )

    async def mem_unfuse(
        self,
        cube_id: str,
        *,
        expect_version: int | None = None,
        request_id: str | None = None,
        actor_note: str | None = None,
        deadline_ms: int | None = None,
    ) -> m.MemUnfuseReply:
        """Undo a fuse: the sources are live again, the fused cube expires."""
        return await self._call(
            _MEM_UNFUSE,
            {
                "cube_id": cube_id,
                "expect_version": expect_version,
                "request_id": request_id,
                "actor_note": actor_note,
                "deadline_ms": deadline_ms,
            },
        )

    async def mem_migrate(
        self,
        cube_id: str | None = None,
        namespace: str | None = None,
        *,
        cube_ids: Sequence[str] | None = None,
        to: m.Form | None = None,
        tier: m.Tier | None = None,
        model: str | None = None,
        name: str | None = None,
        params: Mapping[str, Any] | None = None,
        wait: bool | None = None,
        request_id: str | None = None,
        actor_note: str | None = None,
        deadline_ms: int | None = None,
    ) -> m.MemMigrateReply:
        """Make a derived cube in another form, or move a payload to another tier; the sources stay as they are."""
        return await self._call(
            _MEM_MIGRATE,
            {
                "cube_id": cube_id,
                "namespace": namespace,
                "cube_ids": cube_ids,
                "to": to,
                "tier": tier,
                "model": model,
                "name": name,
                "params": params,
                "wait": wait,
                "request_id": request_id,
                "actor_note": actor_note,
                "deadline_ms": deadline_ms,
            },
        )

    async def mem_history(
        self,
        cube_id: str,
        *,
        deadline_ms: int | None = None,
    ) -> m.MemHistoryReply:
        """List a cube's versions, oldest first."""
        return await self._call(
            _MEM_HISTORY,
            {
                "cube_id": cube_id,
                "deadline_ms": deadline_ms,
            },
        )

    async def mem_diff(
        self,
        cube_id: str,
        a: int,
        b: int,
        *,
        deadline_ms: int | None = None,
    ) -> m.MemDiffReply:
        """Compare two versions; of adapters by what the model says with either, where the kernel runs that model."""
        return await self._call(
            _MEM_DIFF,
            {
                "cube_id": cube_id,
                "a": a,
                "b": b,
                "deadline_ms": deadline_ms,
            },
        )

    async def mem_rollback(
        self,
        cube_id: str,
        to_version: int,
        *,
        expect_version: int | None = None,
        request_id: str | None = None,
        actor_note: str | None = None,
        deadline_ms: int | None = None,
    ) -> m.Mutated:
        """Make a new version equal to an old one."""
        return await self._call(
            _MEM_ROLLBACK,
            {
                "cube_id": cube_id,
                "to_version": to_version,
                "expect_version": expect_version,
                "request_id": request_id,
                "actor_note": actor_note,
                "deadline_ms": deadline_ms,
            },
        )

    async def mem_fork(
        self,
        namespace: str,
        to: str,
        *,
        at_offset: int | None = None,
        request_id: str | None = None,
        actor_note: str | None = None,
        deadline_ms: int | None = None,
    ) -> m.MemForkReply:
        """Copy a namespace, copy-on-write: the copy has new ids and its own future."""
        return await self._call(
            _MEM_FORK,
            {
                "namespace": namespace,
                "to": to,
                "at_offset": at_offset,
                "request_id": request_id,
                "actor_note": actor_note,
                "deadline_ms": deadline_ms,
            },
        )

    async def mem_freeze(
        self,
        cube_id: str,
        *,
        expect_version: int | None = None,
        request_id: str | None = None,
        actor_note: str | None = None,
        deadline_ms: int | None = None,
    ) -> m.StateReply:
        """Hold a cube: it refuses change and erasure and does not expire."""
        return await self._call(
            _MEM_FREEZE,
            {
                "cube_id": cube_id,
                "expect_version": expect_version,
                "request_id": request_id,
                "actor_note": actor_note,
                "deadline_ms": deadline_ms,
            },
        )

    async def mem_thaw(
        self,
        cube_id: str,
        *,
        expect_version: int | None = None,
        request_id: str | None = None,
        actor_note: str | None = None,
        deadline_ms: int | None = None,
    ) -> m.StateReply:
        """End a hold."""
        return await self._call(
            _MEM_THAW,
            {
                "cube_id": cube_id,
                "expect_version": expect_version,
                "request_id": request_id,
                "actor_note": actor_note,
                "deadline_ms": deadline_ms,
            },
        )

    async def mem_archive(
        self,
        cube_id: str,
        *,
        expect_version: int | None = None,
        request_id: str | None = None,
        actor_note: str | None = None,
        deadline_ms: int | None = None,
    ) -> m.StateReply:
        """Take a cube out of search; it stays readable and can come back."""
        return await self._call(
            _MEM_ARCHIVE,
            {
                "cube_id": cube_id,
                "expect_version": expect_version,
                "request_id": request_id,
                "actor_note": actor_note,
                "deadline_ms": deadline_ms,
            },
        )

    async def mem_restore(
        self,
        cube_id: str,
        *,
        expect_version: int | None = None,
        request_id: str | None = None,
        actor_note: str | None = None,
        deadline_ms: int | None = None,
    ) -> m.StateReply:
        """Bring an archived cube back."""
        return await self._call(
            _MEM_RESTORE,
            {
                "cube_id": cube_id,
                "expect_version": expect_version,
                "request_id": request_id,
                "actor_note": actor_note,
                "deadline_ms": deadline_ms,
            },
        )

    async def mem_pin(
        self,
        cube_id: str,
        *,
        expect_version: int | None = None,
        request_id: str | None = None,
        actor_note: str | None = None,
        deadline_ms: int | None = None,
    ) -> m.StateReply:
        """Keep a cube's payload in the upper tiers, whatever else wants the room; a pin outlives restarts."""
        return await self._call(
            _MEM_PIN,
            {
                "cube_id": cube_id,
                "expect_version": expect_version,
                "request_id": request_id,
                "actor_note": actor_note,
                "deadline_ms": deadline_ms,
            },
        )

    async def mem_unpin(
        self,
        cube_id: str,
        *,
        expect_version: int | None = None,
        request_id: str | None = None,
        actor_note: str | None = None,
        deadline_ms: int | None = None,
    ) -> m.StateReply:
        """Let a cube's payload leave the upper tiers again."""
        return await self._call(
            _MEM_UNPIN,
            {
                "cube_id": cube_id,
                "expect_version": expect_version,
                "request_id": request_id,
                "actor_note": actor_note,
                "deadline_ms": deadline_ms,
            },
        )

    async def mem_shred(
        self,
        cube_id: str | None = None,
        namespace: str | None = None,
        *,
        cascade: Literal["rebuild", "shred", "refuse"] | None = None,
        expect_version: int | None = None,
        request_id: str | None = None,
        actor_note: str | None = None,
        deadline_ms: int | None = None,
    ) -> m.MemShredReply:
        """Erase content for good, everywhere, and prove it."""
        return await self._call(
            _MEM_SHRED,
            {
                "cube_id": cube_id,
                "namespace": namespace,
                "cascade": cascade,
                "expect_version": expect_version,
                "request_id": request_id,
                "actor_note": actor_note,
                "deadline_ms": deadline_ms,
            },
        )

    async def mem_map(
        self,
        cube_id: str,
        *,
        at_offset: int | None = None,
        at_time: str | int | None = None,
        version: int | None = None,
        deadline_ms: int | None = None,
    ) -> m.MemMapReply:
        """Map a payload: a descriptor of sealed memory that holds it, without a copy of your own."""
        return await self._call(
            _MEM_MAP,
            {
                "cube_id": cube_id,
                "at_offset": at_offset,
                "at_time": at_time,
                "version": version,
                "deadline_ms": deadline_ms,
            },
        )

    @overload
    def mem_infer(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[m.Message | Mapping[str, Any]] | None = None,
        cubes: Sequence[str | m.Attached | Mapping[str, Any]] | None = None,
        on_miss: Literal["refuse", "recompute"] | None = None,
        gate: Literal["subject", "always"] | None = None,
        allow_stale: bool | None = None,
        recompute: float | None = None,
        model: str | None = None,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
        stop: Sequence[str] | None = None,
        deadline_ms: int | None = None,
        stream: Literal[False] | None = None,
    ) -> Coroutine[Any, Any, m.MemInferReply]: ...

    @overload
    def mem_infer(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[m.Message | Mapping[str, Any]] | None = None,
        cubes: Sequence[str | m.Attached | Mapping[str, Any]] | None = None,
        on_miss: Literal["refuse", "recompute"] | None = None,
        gate: Literal["subject", "always"] | None = None,
        allow_stale: bool | None = None,
        recompute: float | None = None,
        model: str | None = None,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
        stop: Sequence[str] | None = None,
        deadline_ms: int | None = None,
        stream: Literal[True],
    ) -> AsyncStream[m.MemInferItem]: ...

    def mem_infer(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[m.Message | Mapping[str, Any]] | None = None,
        cubes: Sequence[str | m.Attached | Mapping[str, Any]] | None = None,
        on_miss: Literal["refuse", "recompute"] | None = None,
        gate: Literal["subject", "always"] | None = None,
        allow_stale: bool | None = None,
        recompute: float | None = None,
        model: str | None = None,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
        stop: Sequence[str] | None = None,
        deadline_ms: int | None = None,
        stream: bool | None = None,
    ) -> Coroutine[Any, Any, m.MemInferReply] | AsyncStream[m.MemInferItem]:
        """Let the model answer, with cubes attached: texts are read, KV caches are continued from, adapters act."""
        args: dict[str, Any] = {
            "prompt": prompt,
            "messages": messages,
            "cubes": cubes,
            "on_miss": on_miss,
            "gate": gate,
            "allow_stale": allow_stale,
            "recompute": recompute,
            "model": model,
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "seed": seed,
            "stop": stop,
            "stream": stream,
            "deadline_ms": deadline_ms,
        }
        return self._stream(_MEM_INFER_ITEM, args) if stream else self._call(_MEM_INFER, args)

    def mem_watch(
        self,
        namespace: str | None = None,
        *,
        from_offset: int | None = None,
        events: Sequence[str] | None = None,
        deadline_ms: int | None = None,
    ) -> AsyncStream[m.WatchItem]:
        """Follow the log: a stream of records that touch what the caller may read."""
        return self._stream(
            _MEM_WATCH,
            {
                "namespace": namespace,
                "from_offset": from_offset,
                "events": events,
                "deadline_ms": deadline_ms,
            },
        )

    async def job_status(
        self,
        job_id: str,
        *,
        deadline_ms: int | None = None,
    ) -> m.JobReply:
        """Where a job stands."""
        return await self._call(
            _JOB_STATUS,
            {
                "job_id": job_id,
                "deadline_ms": deadline_ms,
            },
        )

    async def job_wait(
        self,
        job_id: str,
        *,
        deadline_ms: int | None = None,
    ) -> m.JobReply:
        """Wait until a job is over."""
        return await self._call(
            _JOB_WAIT,
            {
                "job_id": job_id,
                "deadline_ms": deadline_ms,
            },
        )

    async def job_cancel(
        self,
        job_id: str,
        *,
        deadline_ms: int | None = None,
    ) -> m.JobReply:
        """Give a job up; what it has committed stays."""
        return await self._call(
            _JOB_CANCEL,
            {
                "job_id": job_id,
                "deadline_ms": deadline_ms,
            },
        )
