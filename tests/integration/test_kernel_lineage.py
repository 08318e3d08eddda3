"""Cubes that were made from others: fork, compose, fuse, unfuse, and what a shred does to all of them."""

from __future__ import annotations

from typing import Any

from tests.inside import Inside


def alloc(k: Inside, content: str | bytes, namespace: str = "alice", **more: Any) -> str:
    cube_id: str = k("mem_alloc", namespace=namespace, content=content, **more)["cube_id"]
    return cube_id


def fork(k: Inside, source: str, target: str) -> dict[str, str]:
    """Fork a namespace; returns source id → copy's id."""
    k("mem_fork", namespace=source, to=target)
    copies = k("mem_list", namespace=target, limit=1000)["cubes"]
    merged = k("mem_list", namespace=target, limit=1000, state="merged")["cubes"]
    return {cube["forked_from"]["cube_id"]: cube["cube_id"] for cube in [*copies, *merged]}


def state(k: Inside, cube_id: str) -> str:
    found: str = k("mem_stat", cube_id=cube_id)["header"]["state"]
    return found


def content(k: Inside, cube_id: str, **more: Any) -> str:
    found: str = k("mem_read", cube_id=cube_id, **more)["content"]
    return found


def test_a_shred_reaches_what_was_made_from_a_forks_inherited_version(k: Inside) -> None:
    secret = alloc(k, "The secret word is xyzzy.")
    other = alloc(k, "Biscuit likes long walks.")
    copies = fork(k, "alice", "copy")
    fused = k("mem_fuse", cube_ids=[copies[secret], copies[other]], strategy="dedupe")["cube_id"]
    assert "xyzzy" in content(k, fused)
    k("mem_shred", cube_id=secret)
    assert k.refusal("mem_read", cube_id=copies[secret]) == "ESHREDDED"
    assert k.refusal("mem_read", cube_id=fused) == "ESHREDDED"
    assert k("mem_search", query="xyzzy", mode="lexical")["hits"] == []


def test_an_erased_source_of_a_fork_does_not_hold_up_the_erasure_of_another(k: Inside) -> None:
    first, second = alloc(k, "One fact."), alloc(k, "Another thing.", "bob")
    copies = fork(k, "alice", "copy")
    k("mem_fuse", cube_ids=[copies[first], second], strategy="dedupe")
    k("mem_shred", cube_id=first)
    k("mem_shred", cube_id=second)
    assert state(k, second) == "shredded"


def test_sources_of_a_fused_cube_that_was_written_over_come_back_when_it_is_shredded(k: Inside) -> None:
    sources = [alloc(k, "One fact."), alloc(k, "Another thing.")]
    fused = k("mem_fuse", cube_ids=sources, strategy="dedupe")["cube_id"]
    k("mem_write", cube_id=fused, content="written by hand")
    k("mem_shred", cube_id=fused)
    assert [state(k, cube) for cube in sources] == ["activated", "activated"]


def test_unfuse_does_not_bring_back_a_source_that_was_freed(k: Inside) -> None:
    sources = [alloc(k, "One fact."), alloc(k, "Another thing.")]
    fused = k("mem_fuse", cube_ids=sources, strategy="dedupe")["cube_id"]
    k("mem_free", cube_id=sources[0])
    answer = k("mem_unfuse", cube_id=fused)
    assert answer["restored"] == sources[1:]
    assert [state(k, cube) for cube in sources] == ["expired", "activated"]


def test_a_shred_of_a_fused_cube_does_not_bring_back_a_source_that_was_freed(k: Inside) -> None:
    sources = [alloc(k, "One fact."), alloc(k, "Another thing.")]
    fused = k("mem_fuse", cube_ids=sources, strategy="dedupe")["cube_id"]
    k("mem_free", cube_id=sources[0])
    k("mem_shred", cube_id=fused)
    assert [state(k, cube) for cube in sources] == ["expired", "activated"]


def test_a_cube_rebuilt_without_a_source_keeps_none_of_its_tags(k: Inside) -> None:
    sources = [alloc(k, "One fact.", tags=["xyzzy", "both"]), alloc(k, "Another thing.", tags=["both", "other"])]
    fused = k("mem_fuse", cube_ids=sources, strategy="dedupe")["cube_id"]
    report = k("mem_shred", cube_id=sources[0])["report"]
    assert [entry["replaces"] for entry in report["rebuilt"]] == [fused]
    rebuilt = k("mem_read", cube_id=report["rebuilt"][0]["cube_id"])
    assert rebuilt["header"]["tags"] == ["both", "other"]
    assert rebuilt["content"] == "Another thing."


def test_a_fused_composition_holds_its_members_text(k: Inside) -> None:
    members = [alloc(k, "One fact."), alloc(k, "Another thing.")]
    composed = k("mem_compose", cube_ids=members, namespace="alice")["cube_id"]
    third = alloc(k, "A third matter.")
    fused = k("mem_fuse", cube_ids=[composed, third], strategy="dedupe")["cube_id"]
    assert content(k, fused).splitlines() == ["One fact.", "Another thing.", "A third matter."]


def test_a_diff_of_a_composition_compares_what_reads_return(k: Inside) -> None:
    member = alloc(k, "One fact.")
    composed = k("mem_compose", cube_ids=[member], namespace="alice")["cube_id"]
    k("mem_write", cube_id=composed, content="written over")
    assert "-One fact." in k("mem_diff", cube_id=composed, a=1, b=2)["diff"]


def test_a_fused_cube_in_a_fork_can_be_unfused_there(k: Inside) -> None:
    sources = [alloc(k, "One fact."), alloc(k, "Another thing.")]
    fused = k("mem_fuse", cube_ids=sources, strategy="dedupe")["cube_id"]
    copies = fork(k, "alice", "copy")
    assert [state(k, copies[cube]) for cube in sources] == ["merged", "merged"]
    answer = k("mem_unfuse", cube_id=copies[fused])
    assert set(answer["restored"]) == {copies[cube] for cube in sources}
    assert [state(k, cube) for cube in sources] == ["merged", "merged"]
    assert [state(k, copies[cube]) for cube in sources] == ["activated", "activated"]


def test_shredding_a_fused_cube_in_a_fork_frees_its_sources_there(k: Inside) -> None:
    sources = [alloc(k, "One fact."), alloc(k, "Another thing.")]
    fused = k("mem_fuse", cube_ids=sources, strategy="dedupe")["cube_id"]
    copies = fork(k, "alice", "copy")
    k("mem_shred", cube_id=copies[fused])
    assert [state(k, copies[cube]) for cube in sources] == ["activated", "activated"]
    assert state(k, fused) != "shredded"


def test_a_fork_makes_no_namespace_that_calls_cannot_name(k: Inside) -> None:
    deep = "/".join(["a"] * 16)
    alloc(k, "deep", deep)
    assert k.refusal("mem_fork", namespace="a", to="b/c") == "EINVAL"


def test_shredding_a_fork_leaves_the_source(k: Inside) -> None:
    source = alloc(k, "One fact.")
    copies = fork(k, "alice", "copy")
    k("mem_write", cube_id=copies[source], content="another")
    k("mem_shred", cube_id=copies[source])
    assert content(k, source) == "One fact."
    assert k.refusal("mem_read", cube_id=copies[source], version=1) == "ESHREDDED"


def test_shredding_the_source_takes_the_inherited_versions_of_its_forks_and_leaves_their_own(k: Inside) -> None:
    source = alloc(k, "One fact.")
    copies = fork(k, "alice", "copy")
    k("mem_write", cube_id=copies[source], content="its own")
    report = k("mem_shred", cube_id=source)["report"]
    assert report["forks"] == [copies[source]]
    assert content(k, copies[source]) == "its own"
    assert k.refusal("mem_read", cube_id=copies[source], version=1) == "ESHREDDED"


def test_what_is_made_from_a_forks_own_version_outlives_the_source(k: Inside) -> None:
    source = alloc(k, "One fact.")
    copies = fork(k, "alice", "copy")
    k("mem_write", cube_id=copies[source], content="Its own words.")
    composed = k("mem_compose", cube_ids=[copies[source]], namespace="copy")["cube_id"]
    k("mem_shred", cube_id=source)
    assert content(k, composed) == "Its own words."


def test_a_fused_composition_is_rebuilt_with_the_members_that_remain(k: Inside) -> None:
    erased, kept, other = alloc(k, "One fact."), alloc(k, "Another thing."), alloc(k, "A third matter.")
    composed = k("mem_compose", cube_ids=[erased, kept], namespace="alice")["cube_id"]
    fused = k("mem_fuse", cube_ids=[composed, other], strategy="dedupe")["cube_id"]
    report = k("mem_shred", cube_id=erased)["report"]
    rebuilt = {entry["replaces"]: entry["cube_id"] for entry in report["rebuilt"]}
    assert content(k, rebuilt[composed]) == "Another thing."
    assert content(k, rebuilt[fused]).splitlines() == ["Another thing.", "A third matter."]


def test_a_composition_with_bytes_in_it_does_not_hold_up_the_erasure_of_a_member(k: Inside) -> None:
    raw, text = alloc(k, b"\xff\xfe"), alloc(k, "One fact.")
    composed = k("mem_compose", cube_ids=[raw, text], namespace="alice")["cube_id"]
    report = k("mem_shred", cube_id=text)["report"]
    assert [entry["replaces"] for entry in report["rebuilt"]] == [composed]
    assert k("mem_read", cube_id=report["rebuilt"][0]["cube_id"])["content"] == b"\xff\xfe"
