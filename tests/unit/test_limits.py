"""Bounds: all in one file, with their units, related to each other, and kept at their edges."""

from __future__ import annotations

import ast
import inspect

import pytest
from pydantic import ValidationError
from tests.inside import Inside

from memos_syscalls import limits
from memos_syscalls import messages as m

NAMED = {name: value for name, value in vars(limits).items() if name.isupper()}

@pytest.mark.parametrize("name", sorted(set(NAMED) - {"KIB", "MIB", "GIB", "ABI"}))
def test_a_limit_is_a_whole_number_above_zero(name: str) -> None:
    assert type(NAMED[name]) is int and NAMED[name] > 0


def test_relations_between_limits_are_asserted_where_they_stand() -> None:
    asserts = [node for node in ast.parse(inspect.getsource(limits)).body if isinstance(node, ast.Assert)]
    assert len(asserts) >= 10
    for node in asserts:
        names = {n.id for n in ast.walk(node.test) if isinstance(n, ast.Name)}
        assert names <= set(NAMED)


@pytest.mark.parametrize(
    ("field", "edge", "over"),
    [
        ("namespace", "/".join(["a"] * limits.NAMESPACE_DEPTH_MAX), "/".join(["a"] * (limits.NAMESPACE_DEPTH_MAX + 1))),
        ("namespace", "n" * limits.NAMESPACE_BYTES_MAX, "n" * (limits.NAMESPACE_BYTES_MAX + 1)),
        ("namespace", "é" * (limits.NAMESPACE_BYTES_MAX // 2), "é" * (limits.NAMESPACE_BYTES_MAX // 2) + "n"),
        ("tags", ["t"] * limits.TAGS_MAX, ["t"] * (limits.TAGS_MAX + 1)),
        ("tags", ["t" * limits.TAG_CHARS_MAX], ["t" * (limits.TAG_CHARS_MAX + 1)]),
        ("labels", ["t"] * limits.LABELS_MAX, ["t"] * (limits.LABELS_MAX + 1)),
        ("name", "n" * limits.NAME_CHARS_MAX, "n" * (limits.NAME_CHARS_MAX + 1)),
        ("actor_note", "n" * limits.NOTE_CHARS_MAX, "n" * (limits.NOTE_CHARS_MAX + 1)),
        ("request_id", "n" * limits.REQUEST_ID_CHARS_MAX, "n" * (limits.REQUEST_ID_CHARS_MAX + 1)),
        ("ttl_s", limits.TTL_SECONDS_MAX, limits.TTL_SECONDS_MAX + 1),
        ("embedding", [0.5] * limits.EMBEDDING_DIMS_MAX, [0.5] * (limits.EMBEDDING_DIMS_MAX + 1)),
        ("deadline_ms", limits.DEADLINE_MS_MAX, limits.DEADLINE_MS_MAX + 1),
    ],
)
def test_a_request_at_the_limit_is_taken_and_one_over_it_refused(field: str, edge: object, over: object) -> None:
    given: dict[str, object] = {"namespace": "n", "content": "x"}
    m.MemAlloc.model_validate({**given, field: edge})
    with pytest.raises(ValidationError):
        m.MemAlloc.model_validate({**given, field: over})


NO_NAMESPACE = ["", "/", "a/", "/a", "a//b", " a", "a ", "a/ b", ".", "..", "a/../b", "a\nb", "a\x00", "a/\u200b"]


@pytest.mark.parametrize("wrong", NO_NAMESPACE)
def test_a_namespace_is_printable_words_between_single_slashes(wrong: str) -> None:
    with pytest.raises(ValidationError):
        m.MemAlloc.model_validate({"namespace": wrong, "content": "x"})


def test_content_and_metadata_are_kept_at_their_limits_and_refused_over_them(k: Inside) -> None:
    content = "x" * limits.CONTENT_INLINE_BYTES_MAX
    cube = k("mem_alloc", namespace="n", content=content)["cube_id"]
    assert k("mem_read", cube_id=cube)["content"] in (content, content.encode())
    assert k.refusal("mem_alloc", namespace="n", content=content + "x") == "EMSGSIZE"
    full = {"k": "v" * (limits.METADATA_BYTES_MAX - 6)}
    cube = k("mem_alloc", namespace="n", content="x", metadata=full)["cube_id"]
    assert k("mem_stat", cube_id=cube)["header"]["metadata"] == full
    assert k.refusal("mem_alloc", namespace="n", content="x", metadata={"k": full["k"] + "v"}) == "EMSGSIZE"


def test_a_payload_at_every_boundary_of_its_storage_is_read_back(k: Inside) -> None:
    """In the record, beside it, and in chunks: one byte under, at and over each boundary."""
    for edge in (limits.PAYLOAD_INLINE_BYTES_MAX - 28, limits.PAYLOAD_INLINE_BYTES_MAX, limits.PAYLOAD_CHUNK_BYTES):
        for size in (edge - 1, edge, edge + 1):
            made = k("mem_alloc", namespace="n", content="y" * size)["cube_id"]
            content = k("mem_read", cube_id=made)["content"]
            assert len(content) == size and set(content) <= {"y", ord("y")}
    k.reopen()
    assert k("sys_verify", full=True)["ok"]
