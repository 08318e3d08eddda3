"""Replies as people read them: complete as plain text, and all of them renderable on a terminal."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from pydantic import BaseModel
from rich.console import Console

from memos_syscalls import messages as m
from memos_syscalls.table import TABLE
from memos_tools import render

ID = "01920000-0000-7000-8000-000000000001"
HEADER: dict[str, Any] = {
    "cube_id": ID, "version": 2, "form": "plaintext", "namespace": "a/b", "state": "frozen", "owner": "uid:7", "offset": 9,
    "created_at": 10**18, "updated_at": 10**18 + 123456789, "actor": "uid:7", "bytes": 5, "tags": ["x", "y"], "name": "n",
}  # fmt: skip
REPLIES: dict[type[BaseModel], dict[str, Any]] = {
    m.Mutated: {"cube_id": ID, "version": 2, "offset": 9},
    m.WrittenReply: {"cube_id": ID, "version": 2, "offset": 9, "supersedes": [{"cube_id": ID, "version": 1}]},
    m.StateReply: {"cube_id": ID, "version": 2, "offset": 9, "state": "frozen"},
    m.MemReadReply: {**HEADER, "content": "two\nlines [bold]", "header": HEADER},
    m.MemStatReply: {"header": HEADER},
    m.MemListReply: {"cubes": [HEADER], "next_cursor": "c1"},
    m.MemSearchReply: {
        "hits": [{"cube_id": ID, "version": 2, "score": 0.5, "content": "hit", "namespace": "a", "why": {"lexical_rank": 1}}],
        "partial": True,
    },
    m.MemHistoryReply: {
        "versions": [{"version": 1, "offset": 9, "time": 10**18, "actor": "uid:7", "syscall": "mem_alloc", "form": "plaintext",
                      "bytes": 5, "note": "why"}],
    },
    m.MemDiffReply: {"diff": "--- 1\n+++ 2\n-a\n+b\n", "header": {"tags": [["x"], ["y"]]}, "modules": [
        {"module": "model.layers.0.mlp.up_proj", "a": 1.5, "b": 2.0, "difference": 0.5}],
        "probes": [{"prompt": "Who?", "a": "Anna", "b": "Boris"}]},
    m.MemForkReply: {"namespace": "b", "cubes": 3, "offset": 9},
    m.MemFuseReply: {"cube_id": ID, "version": 1, "offset": 9, "sources": [{"cube_id": ID, "version": 2}]},
    m.MemMigrateReply: {"cube_id": ID, "version": 1, "offset": 9, "job_id": "j1", "timings": {"prefill": 0.5}, "cube_ids": [ID],
                        "scores": {"efficacy": 1.0}, "dropped": [{"statement": "x", "why": "y"}]},
    m.MemMapReply: {
        "cube_id": ID, "version": 1, "form": "activation", "offset": 9, "bytes": 72, "fd": 0, "tier": "host",
        "layout": {
            "tensors": [{"name": "k.0", "dtype": "F32", "shape": [1, 2], "offset": 64, "bytes": 8}], "metadata": {"a": "b"},
        },
    },
    m.MemInferItem: {"text": "Hi"},
    m.MemInferReply: {
        "text": "Hi", "model": "smollm2", "tokens_in": 30, "tokens_reused": 20, "tokens_out": 1, "finish": "stop",
        "ttft_ms": 9.5, "tokens_per_s": 0.0,
        "attached": [{"cube_id": ID, "version": 1, "form": "activation", "how": "attached", "tokens": 10},
                     {"cube_id": ID, "version": 1, "form": "parametric", "how": "acted", "tokens": 0, "weight": 1.0}],
    },
    m.JobReply: {
        "job_id": "j1", "kind": "capture", "state": "failed", "progress": 0.5, "message": "x", "created_at": 10**18,
        "finished_at": 10**18, "error": {"errno": "EIO", "detail": "x", "advice": "y"},
    },
    m.MemUnfuseReply: {"cube_id": ID, "version": 2, "offset": 9, "restored": [ID]},
    m.MemAllocManyReply: {"items": [{"cube_id": ID, "version": 1}], "offset": 9},
    m.MemShredReply: {
        "report": {"shredded": [ID], "rebuilt": [{"cube_id": ID, "job_id": "j1", "replaces": ID}], "forks": [ID], "maps": ["m"],
                   "receipt": b"\x00\xff"},
        "offset": 9,
    },
    m.WatchItem: {"offset": 9, "time": 10**18, "actor": "uid:7", "syscall": "mem_free", "events": [{"event": "CubeFreed"}]},
    m.SysVerifyReply: {"ok": False, "offset": 9, "records": 10, "problems": ["record 10 is not chained"]},
    m.SysHelloReply: {"abi": 1, "principal": "uid:7", "server": "memosd", "log_id": "ab"},
    m.SysCancelReply: {"canceled": True},
    m.SysPromoteReply: {"epoch": 3, "head_offset": 9},
    m.SysSnapshotReply: {"offset": 9, "state_digest": "ab", "path": "/x"},
    m.SysStatsReply: {"uptime_s": 1.5, "connections": 1, "calls": {}, "log": {}, "indexes": {}, "cubes": {}, "memory": {}},
    m.SysInfoReply: {
        "abi": 1, "version": "0", "log_id": "ab", "epoch": 1, "head_offset": 9, "head_hash": "cd", "state_digest": "ef",
        "state_schema": 1, "log": {"kind": "embedded"}, "public_key": "ab", "drivers": ["plaintext"], "models": [],
        "principal": "uid:7", "admin": True,
    },
}  # fmt: skip
ALL = {model for call in TABLE for model in (call.item or call.reply, call.reply) if model is not m.Reply}
SHOWN = sorted(ALL, key=lambda model: model.__name__)


@pytest.mark.parametrize("model", SHOWN, ids=lambda model: model.__name__)
def test_every_reply_of_the_table_is_shown_in_all_three_forms(model: type[m.Reply]) -> None:
    reply = model.model_validate(REPLIES[model])
    plain, fine = io.StringIO(), io.StringIO()
    render.print_blocks(Console(file=plain), render.blocks(reply))
    render.print_blocks(Console(file=fine, force_terminal=True, width=120), render.blocks(reply))
    assert plain.getvalue().strip() and "\x1b" not in plain.getvalue() and fine.getvalue().strip()
    line = render.to_json(reply)
    assert "\n" not in line and set(json.loads(line)) == set(model.model_fields)


def test_plain_text_is_never_cut_and_markup_is_only_text() -> None:
    reply = m.MemReadReply.model_validate({**HEADER, "content": "[red]" + "long " * 100})
    out = io.StringIO()
    render.print_blocks(Console(file=out, width=20), render.blocks(reply))
    assert out.getvalue().splitlines()[1] == "[red]" + "long " * 100


@pytest.mark.parametrize(
    ("time", "text"),
    [
        (None, "-"),
        (0, "1970-01-01T00:00:00Z"),
        (-1, "1969-12-31T23:59:59.999999999Z"),
        (2**63 - 1, "2262-04-11T23:47:16.854775807Z"),
    ],
)
def test_times_are_rfc_3339_to_the_nanosecond(time: int | None, text: str) -> None:
    assert render.time_text(time) == text


def test_bytes_are_shown_by_their_first_ones() -> None:
    assert render.content_text(bytes(range(3))) == "<3 bytes: 00 01 02>"
    assert render.content_text(bytes(99)).endswith("…>")
