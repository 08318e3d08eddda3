"""The shell's `ingest`: parsed and explained like a syscall though it is none: it is many `mem_alloc_many`."""

from __future__ import annotations

from typing import Final

from memos_client.ingest import IngestRequest, IngestSummary
from memos_syscalls.table import Flag, Syscall

from .shell_args import Command

COMMAND: Final = Command(
    Syscall(0, "mem_ingest", IngestRequest, IngestSummary, Flag.WRITE, 1, "ingest talk.json --namespace alice/chat")
)
