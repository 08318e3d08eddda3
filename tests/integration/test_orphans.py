"""Pieces of large contents whose kernel ended before their record was made."""

from __future__ import annotations

import os

from tests.inside import Inside

from memos_drivers.stores.base import PAYLOAD, Batch
from memos_kernel.orphans import pieces
from memos_syscalls import limits

LARGE = "x" * (limits.PAYLOAD_CHUNK_BYTES + 100)


def stored(k: Inside) -> set[bytes]:
    return {key for _payload_id, key in pieces(k.store.live(PAYLOAD))}


def test_what_an_earlier_epoch_stored_and_no_record_names_is_removed() -> None:
    with Inside() as k:
        large = k("mem_alloc", namespace="n", content=LARGE)["cube_id"]
        middle = k("mem_alloc", namespace="n", content="y" * 20_000)["cube_id"]
        small = k("mem_alloc", namespace="n", content="z")["cube_id"]
        k("mem_write", cube_id=large, content="short now")
        k("mem_fork", namespace="n", to="fork")
        named = stored(k)
        assert len(named) == 3, "two chunks and one piece"
        batch = Batch()
        orphan = os.urandom(16)
        for key in (orphan + bytes(4), orphan + bytes(3) + b"\1", os.urandom(16)):
            batch.put(PAYLOAD, key, os.urandom(limits.PAYLOAD_INLINE_BYTES_MAX + 1))
        k.store.write(batch)
        k.crash()
        k.run(0.2)
        assert stored(k) == named
        assert k("mem_read", cube_id=large, version=1)["content"] == LARGE
        assert k("mem_read", cube_id=middle)["content"] == "y" * 20_000
        assert k("mem_read", cube_id=small)["content"] == "z"


def test_what_this_epoch_stores_is_left_alone() -> None:
    with Inside() as k:
        k.run(0.2)
        batch = Batch()
        batch.put(PAYLOAD, os.urandom(20), b"of a content that is being stored")
        k.store.write(batch)
        k("mem_alloc", namespace="n", content="x")
        k.run(0.2)
        assert len(stored(k)) == 1
