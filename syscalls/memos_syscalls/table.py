"""The one table of syscalls. Nothing else knows the list.

Client stubs, shell commands, docs/syscalls.md and the kernel's dispatch are derived from it. To add a call: a
request and a reply model in messages.py, a line here, a handler in the kernel, and `make docs`.

Numbers are for ever: a number is never used again for another call.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from . import limits
from . import messages as m


class Flag(enum.Flag):
    """What kind of call it is."""

    READ = enum.auto()
    WRITE = enum.auto()
    LONG = enum.auto()
    """May take seconds; runs in slices or off the loop."""
    STREAM = enum.auto()
    """Answers with items before its reply."""
    ADMIN = enum.auto()
    """Only for the kernel's own uid."""
    SESSION = enum.auto()
    """About the connection itself."""
    JOB = enum.auto()
    """May run a model: its caller waits `limits.JOB_DEADLINE_MS_DEFAULT` unless it names a deadline."""


@dataclass(frozen=True, slots=True)
class Syscall:
    """One row: a stable number and name, the models, the flags, the ABI version that brought it, an example for the shell."""

    number: int
    name: str
    request: type[m.Request]
    reply: type[m.Reply]
    flags: Flag
    since: int
    example: str
    item: type[m.Reply] | None = None

    @property
    def deadline_ms(self) -> int:
        """How long it may take when its caller names no deadline."""
        return limits.JOB_DEADLINE_MS_DEFAULT if Flag.JOB in self.flags else limits.DEADLINE_MS_DEFAULT

    @property
    def command(self) -> str:
        """The shell's word for it: the name without `mem_`, and `sys_` calls whole but for the underscore."""
        group, _, rest = self.name.partition("_")
        return rest.replace("_", "-") if group == "mem" else f"{group}-{rest}"


_READ, _WRITE, _LONG, _ADMIN, _JOB = Flag.READ, Flag.WRITE, Flag.LONG, Flag.ADMIN, Flag.JOB

TABLE: Final[tuple[Syscall, ...]] = (
    Syscall(1, "sys_hello", m.SysHello, m.SysHelloReply, Flag.SESSION, 1, "sys-hello --abi 1"),
    Syscall(2, "sys_info", m.SysInfo, m.SysInfoReply, _READ, 1, "sys-info"),
    Syscall(3, "sys_stats", m.SysStats, m.SysStatsReply, _READ, 1, "sys-stats"),
    Syscall(4, "sys_snapshot", m.SysSnapshot, m.SysSnapshotReply, _LONG | _ADMIN, 1, "sys-snapshot"),
    Syscall(5, "sys_verify", m.SysVerify, m.SysVerifyReply, _READ | _LONG | _ADMIN, 1, "sys-verify --full"),
    Syscall(6, "sys_cancel", m.SysCancel, m.SysCancelReply, Flag.SESSION, 1, "sys-cancel 7"),
    Syscall(7, "sys_promote", m.SysPromote, m.SysPromoteReply, _LONG | _ADMIN, 1, "sys-promote"),
    Syscall(16, "mem_alloc", m.MemAlloc, m.WrittenReply, _WRITE, 1,
            "alloc --namespace alice 'Biscuit is a beagle' --tags pets"),
    Syscall(17, "mem_alloc_many", m.MemAllocMany, m.MemAllocManyReply, _WRITE, 1,
            """alloc-many '[{"namespace": "alice", "content": "Biscuit is a beagle"}]'"""),
    Syscall(18, "mem_read", m.MemRead, m.MemReadReply, _READ, 1, "read $ID --version 1"),
    Syscall(19, "mem_stat", m.MemStat, m.MemStatReply, _READ, 1, "stat $ID"),
    Syscall(20, "mem_list", m.MemList, m.MemListReply, _READ | _LONG, 1, "list --namespace alice --tags pets"),
    Syscall(21, "mem_write", m.MemWrite, m.WrittenReply, _WRITE, 1,
            "write $ID --content 'Biscuit is a whippet' --expect-version 1"),
    Syscall(22, "mem_free", m.MemFree, m.StateReply, _WRITE, 1, "free $ID"),
    Syscall(32, "mem_search", m.MemSearch, m.MemSearchReply, _READ | _LONG, 1,
            "search 'what breed is the dog?' --namespace alice --k 5"),
    Syscall(48, "mem_compose", m.MemCompose, m.Mutated, _WRITE, 1, "compose $ID $ID2 --namespace alice"),
    Syscall(49, "mem_fuse", m.MemFuse, m.MemFuseReply, _WRITE | _LONG | _JOB, 1, "fuse $ID $ID2 --strategy merge"),
    Syscall(50, "mem_unfuse", m.MemUnfuse, m.MemUnfuseReply, _WRITE, 1, "unfuse $ID"),
    Syscall(51, "mem_migrate", m.MemMigrate, m.MemMigrateReply, _WRITE | _LONG | _JOB, 1, "migrate $ID --to activation"),
    Syscall(64, "mem_history", m.MemHistory, m.MemHistoryReply, _READ, 1, "history $ID"),
    Syscall(65, "mem_diff", m.MemDiff, m.MemDiffReply, _READ | _LONG | _JOB, 1, "diff $ID 1 2"),
    Syscall(66, "mem_rollback", m.MemRollback, m.Mutated, _WRITE, 1, "rollback $ID 1"),
    Syscall(67, "mem_fork", m.MemFork, m.MemForkReply, _WRITE | _LONG, 1, "fork alice alice-what-if"),
    Syscall(80, "mem_freeze", m.MemFreeze, m.StateReply, _WRITE, 1, "freeze $ID"),
    Syscall(81, "mem_thaw", m.MemThaw, m.StateReply, _WRITE, 1, "thaw $ID"),
    Syscall(82, "mem_archive", m.MemArchive, m.StateReply, _WRITE, 1, "archive $ID"),
    Syscall(83, "mem_restore", m.MemRestore, m.StateReply, _WRITE, 1, "restore $ID"),
    Syscall(84, "mem_pin", m.MemPin, m.StateReply, _WRITE, 1, "pin $ID"),
    Syscall(85, "mem_unpin", m.MemUnpin, m.StateReply, _WRITE, 1, "unpin $ID"),
    Syscall(86, "mem_shred", m.MemShred, m.MemShredReply, _WRITE | _LONG, 1, "shred $ID"),
    Syscall(96, "mem_map", m.MemMap, m.MemMapReply, _READ | _LONG, 1, "map $ID"),
    Syscall(98, "mem_infer", m.MemInfer, m.MemInferReply, _READ | _LONG | _JOB, 1,
            "infer 'What breed is the dog?' $ID --max-new-tokens 16", m.MemInferItem),
    Syscall(112, "mem_watch", m.MemWatch, m.Reply, _READ | Flag.STREAM, 1,
            "watch --namespace alice --from-offset 0", m.WatchItem),
    Syscall(120, "job_status", m.JobStatus, m.JobReply, _READ, 1, "job-status $JOB"),
    Syscall(121, "job_wait", m.JobWait, m.JobReply, _READ | _LONG | _JOB, 1, "job-wait $JOB"),
    Syscall(122, "job_cancel", m.JobCancel, m.JobReply, _READ, 1, "job-cancel $JOB"),
)  # fmt: skip

BY_NUMBER: Final[dict[int, Syscall]] = {call.number: call for call in TABLE}
BY_NAME: Final[dict[str, Syscall]] = {call.name: call for call in TABLE}
assert len(BY_NUMBER) == len(BY_NAME) == len(TABLE), "syscall numbers and names are unique"
