"""Contents that are not text, or claim to be and are not: every call is answered, and the kernel lives."""

from __future__ import annotations

import mmap

from tests.inside import Inside

from memos_kernel.fds import sealed_memfd
from memos_syscalls import limits
from memos_syscalls.errors import MemError

NOT_TEXT = b"\xff\xfe\x00 not text"


def view_of(content: bytes) -> memoryview:
    """A mapped descriptor, as the server hands it to a call."""
    return memoryview(mmap.mmap(sealed_memfd(content), len(content), prot=mmap.PROT_READ))


def outcome(k: Inside, name: str, **args: object) -> object:
    """The answer, or the errno."""
    try:
        return k(name, **args)
    except MemError as error:
        return error.errno


def test_a_composition_of_bytes_is_answered(k: Inside) -> None:
    member = k("mem_alloc", namespace="alice", content=NOT_TEXT)["cube_id"]
    text = k("mem_alloc", namespace="alice", content="text")["cube_id"]
    made = outcome(k, "mem_compose", cube_ids=[member, text], namespace="alice")
    if made != "EINVAL":
        assert isinstance(made, dict)
        assert k("mem_read", cube_id=made["cube_id"])["content"] == NOT_TEXT + b"\ntext"
        k("mem_diff", cube_id=made["cube_id"], a=1, b=1)
    assert k.fatal == []


def test_a_composition_whose_member_is_bytes_cannot_be_fused_and_says_so(k: Inside) -> None:
    member = k("mem_alloc", namespace="alice", content=NOT_TEXT)["cube_id"]
    made = outcome(k, "mem_compose", cube_ids=[member], namespace="alice")
    if isinstance(made, dict):
        text = k("mem_alloc", namespace="alice", content="text")["cube_id"]
        assert k.refusal("mem_fuse", cube_ids=[made["cube_id"], text], strategy="dedupe") == "EINVAL"
    assert k.fatal == []


def test_bytes_that_claim_to_be_text_are_refused(k: Inside) -> None:
    for size in (100, limits.PAYLOAD_CHUNK_BYTES + 1, 2 * limits.MIB):
        content = NOT_TEXT + b"x" * size
        assert k.refusal("mem_alloc", namespace="alice", fd=0, _contents=[view_of(content)]) == "EINVAL"
        made = k("mem_alloc", namespace="alice", fd=0, encoding="bytes", _contents=[view_of(content)])
        assert k("mem_read", cube_id=made["cube_id"])["content"] == content
        assert k.refusal("mem_write", cube_id=made["cube_id"], fd=0, encoding="text", _contents=[view_of(content)]) == "EINVAL"
    assert k.fatal == []


def test_text_that_came_by_descriptor_is_text(k: Inside) -> None:
    content = "Straße ".encode() * 100_000
    made = k("mem_alloc", namespace="alice", fd=0, _contents=[view_of(content)])["cube_id"]
    assert k("mem_read", cube_id=made)["content"] == content.decode() or k("mem_read", cube_id=made)["content"] == content
    short = k("mem_alloc", namespace="alice", fd=0, _contents=[view_of(b"short")])["cube_id"]
    assert k("mem_read", cube_id=short)["content"] == "short"


def test_an_empty_content_is_a_content(k: Inside) -> None:
    for content in ("", b""):
        cube = k("mem_alloc", namespace="alice", content=content)["cube_id"]
        k.crash()
        assert k("mem_read", cube_id=cube)["content"] == content


def test_metadata_comes_back_as_it_was_given(k: Inside) -> None:
    metadata = {"a": [1, 2.5, None, True, {"b": "c"}], "n": 2**63, "raw": b"\xff", "": "empty key"}
    cube = k("mem_alloc", namespace="alice", content="x", metadata=metadata, request_id="r")
    assert k("mem_stat", cube_id=cube["cube_id"])["header"]["metadata"] == metadata
    again = {key: metadata[key] for key in reversed(metadata)}
    assert k("mem_alloc", namespace="alice", content="x", metadata=again, request_id="r") == cube
    assert k.refusal("mem_alloc", namespace="alice", content="x", metadata={"m": "x" * limits.METADATA_BYTES_MAX}) == "EMSGSIZE"
