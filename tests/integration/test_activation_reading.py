"""What a second reading of activation memory found: each test is a way in which it once went wrong."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from tests import activation, lm
from tests.activation import BEES, CHESS, KETTLE, Model

from memos_kernel import renewal
from memos_kernel.events import Slot
from memos_kernel.governance import raw_id
from memos_kernel.state import Cube, Version, View
from memos_syscalls import limits

tiny = lm.tiny
k = activation.sound_kernel
QUESTION = "Who keeps bees?"


# -- compositions of caches ----------------------------------------------------------------------------------------------


def test_compositions_of_compositions_double_only_as_far_as_a_call_can_use_them(k: Model) -> None:
    """Unbounded, thirty calls would make a cube whose header is a walk over a billion members."""
    pair = [k.capture(k.alloc(f"{content} {number}")) for number, content in enumerate(("bees", "chess"))]
    refused = ""
    for _ in range(8):
        ways = pair, pair[::-1]
        made = [k.submit("mem_compose", cube_ids=way, namespace="alice") for way in ways]
        if made[0].exception() if made[0].done() else False:
            break
        try:
            pair = [str(k.wait(one)["cube_id"]) for one in made]
        except Exception as error:
            refused = str(error)
            [one.exception() for one in made if one.done()]
            break
    assert refused.startswith("EMSGSIZE"), refused or "it was never refused"
    assert not k.header(pair[0])["stale"]
    assert k.ask(QUESTION, pair[0], max_new_tokens=1, recompute=0)["tokens_reused"]


def test_a_composition_of_caches_is_no_content(k: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    members = [k.capture(k.alloc(f"{content}content")) for content in (BEES, CHESS)]
    made = k("mem_compose", cube_ids=members, namespace="alice")["cube_id"]
    k("mem_write", cube_id=made, name="renamed")
    opened: list[int] = []
    content = k.kernel.vault.open_content

    def seen(row: Version) -> bytes:
        opened.append(row.payload_bytes)
        return content(row)

    monkeypatch.setattr(k.kernel.vault, "open_content", seen)
    assert k.failure("mem_read", cube_id=made).errno == "EINVAL"
    k("mem_diff", cube_id=made, a=1, b=2)
    assert not any(opened), "of its members nothing was opened"


# -- what a call may rest on ---------------------------------------------------------------------------------------------


def test_a_capture_sees_what_its_own_connection_wrote_before(k: Model) -> None:
    text = k.alloc(BEES + "piped")
    first = k.migrated(text)
    wrote = k.submit("mem_write", cube_id=text, content=CHESS + "piped")
    again = k.submit("mem_migrate", cube_id=text, to="activation")
    assert k.wait(wrote)["version"] == 2
    found = k.wait(again, 60)
    assert (found["version"], found.get("reused")) == (first["version"] + 1, None)


def test_an_answer_from_a_fork_ends_when_what_it_inherits_is_erased(k: Model) -> None:
    text = k.alloc(BEES + "inherited", namespace="origin")
    k("mem_fork", namespace="origin", to="copy")
    copy = str(k("mem_list", namespace="copy")["cubes"][0]["cube_id"])
    call = k.submit("mem_infer", **k.question(QUESTION, copy, max_new_tokens=3500, stream=True))
    peer = next(iter(k.peers.values()))
    peer.items.clear()
    while not peer.items:
        k.run(0.01)
    assert copy in k("mem_shred", cube_id=text)["report"]["forks"]
    assert k.error(call).errno == "EAGAIN", "whether it read what was erased, the next one finds out"
    assert k.failure("mem_infer", **k.question(QUESTION, copy)).errno == "ESHREDDED"


# -- jobs ----------------------------------------------------------------------------------------------------------------


def test_a_key_under_which_a_refused_cache_was_stored_is_destroyed(k: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is deleted from a database stays in its files for a while: under a key that another cube got, it could be read."""
    text = k.alloc(BEES * 12 + "stored")
    slots: list[Slot] = []
    kernel: Any = k.kernel
    store = kernel._store_large_in_thread
    shreds: list[asyncio.Future[dict[str, Any]]] = []

    def then_shred(content: Any, slot: Slot, stored: list[bytes]) -> Any:
        slots.append(slot)
        sealed = store(content, slot, stored)
        k.loop.call_soon_threadsafe(lambda: shreds.append(k.submit("mem_shred", cube_id=text)))
        while not shreds or not shreds[0].done():
            time.sleep(0.01)
        return sealed

    monkeypatch.setattr(k.kernel, "_store_large_in_thread", then_shred)
    error = k.failure("mem_migrate", cube_id=text, to="activation")
    assert (error.errno, error.outcome) == ("ESHREDDED", "none")
    until = time.monotonic() + 10
    while k.kernel.vault.keystore.key(slots[0]) is not None and time.monotonic() < until:
        k.run(0.02)
    assert k.kernel.vault.keystore.key(slots[0]) is None
    assert slots[0] not in [slot for slot, _key in kernel.vault._free]


def test_a_job_that_failed_remembers_its_error_and_no_text(k: Model) -> None:
    text = k.alloc(BEES + "forgotten")
    with k.during("capture", lambda: k.submit("mem_free", cube_id=text), after=True):
        job_id = k("mem_migrate", cube_id=text, to="activation", wait=False)["job_id"]
        assert k("job_wait", job_id=job_id)["state"] == "failed"
    jobs: Any = k.kernel.runtime.jobs
    error = jobs._jobs[job_id].error
    assert error is not None
    assert (error.__traceback__, error.__context__, error.__cause__) == (None, None, None), "frames hold what they read"


def test_a_capture_that_is_in_the_log_succeeded_whatever_the_host_tier_says(
    k: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: Any) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(k.kernel.hosttier, "put", full)
    text = k.alloc(BEES + "untiered")
    made = k.migrated(text)
    assert made["version"] == 1 and k.derived(text) == [raw_id(made["cube_id"])]


# -- renewals ------------------------------------------------------------------------------------------------------------


def renewable(k: Model, namespace: str) -> str:
    older, text = (k.alloc(content + namespace, namespace=namespace) for content in (CHESS, BEES))
    cache = k.capture(text, params={"neighbours": 1})
    k("mem_write", cube_id=older, content=KETTLE + namespace)
    assert k.header(cache)["renewable"]
    return cache


def renewals_end(k: Model) -> None:
    renewals: Any = k.kernel.renewals
    until = time.monotonic() + 30
    while renewals._working and time.monotonic() < until:
        k.run(0.05)


@pytest.mark.parametrize("what", ["frozen", "composed", "fused", "plain"])
def test_a_renewal_makes_a_new_version_or_nothing(k: Model, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """No cube that nobody asked for, and nothing that makes a cube of the user's stale."""
    monkeypatch.setattr(renewal, "LEISURE_SECONDS", 0.05)
    cache = renewable(k, f"renew-{what}")
    used = cache
    if what == "frozen":
        k("mem_freeze", cube_id=cache)
    elif what != "plain":
        other = k.capture(k.alloc(KETTLE + what))
        kind: dict[str, Any] = {"strategy": "kv"} if what == "fused" else {}
        used = k("mem_fuse" if kind else "mem_compose", cube_ids=[cache, other], namespace=f"renew-{what}", **kind)["cube_id"]
    before = len(k("mem_list", namespace=f"renew-{what}")["cubes"])
    for one in {used, cache}:
        k.ask(QUESTION, one, max_new_tokens=1)
    renewals_end(k)
    assert len(k("mem_list", namespace=f"renew-{what}")["cubes"]) == before
    assert k.header(cache)["version"] == (2 if what == "plain" else 1)
    assert not k.header(used)["stale"]
    if what == "frozen":
        k("mem_thaw", cube_id=cache)


# -- memory --------------------------------------------------------------------------------------------------------------


def test_caches_that_are_too_large_together_are_refused_before_they_are_loaded(
    k: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches = [k.capture(k.alloc(f"{content}large")) for content in (BEES, CHESS)]
    sizes = [k.header(cache)["bytes"] for cache in caches]
    monkeypatch.setattr(limits, "TENSOR_BYTES_MAX", max(sizes))
    assert k.ask(QUESTION, caches[0], max_new_tokens=1)["tokens_reused"]
    assert k.failure("mem_infer", **k.question(QUESTION, *caches)).errno == "EMSGSIZE"


@pytest.mark.parametrize("made", ["capture", "composition"])
def test_a_cache_of_what_has_expired_says_that_it_is_stale(k: Model, made: str) -> None:
    """Who maps it into a process of their own asks the header, as no kernel is there to refuse its use."""
    text = k.alloc(BEES + made + "ends")
    cache = k.capture(text)
    if made == "composition":
        cache = k("mem_compose", cube_ids=[cache, k.capture(k.alloc(CHESS + made + "ends"))], namespace="alice")["cube_id"]
    assert not k.header(cache)["stale"]
    k("mem_free", cube_id=text)
    assert k.header(cache)["stale"]


def test_a_fusion_whose_members_grow_stale_meanwhile_commits_nothing_and_merges_nothing(k: Model) -> None:
    texts = [k.alloc(f"{content}grows stale") for content in (BEES, CHESS)]
    caches = [k.capture(text) for text in texts]
    with k.during("fuse", lambda: k.submit("mem_write", cube_id=texts[1], content=KETTLE)):
        error = k.failure("mem_fuse", cube_ids=caches, strategy="kv")
    assert (error.errno, error.outcome) == ("ECONFLICT", "none")
    assert [k.header(cache)["state"] for cache in caches] == ["generated"] * 2


def test_texts_that_no_model_reads_together_are_refused_before_all_are_opened(
    k: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = [k.alloc(f"{number} {BEES}" * 10) for number in range(4)]
    monkeypatch.setattr(limits, "CAPTURE_BYTES_MAX", 12_000)
    opened: list[int] = []
    read = k.kernel.vault.open

    def seen(view: View, cube: Cube, version: int) -> Any:
        opened.append(version)
        return read(view, cube, version)

    monkeypatch.setattr(k.kernel.vault, "open", seen)
    assert k.failure("mem_infer", **k.question(QUESTION, *long)).errno == "EMSGSIZE"
    assert k.failure("mem_migrate", cube_ids=long, to="activation").errno == "EMSGSIZE"
    assert len(opened) == 4, "two by each call"


def test_a_neighbour_stands_before_a_memory_once(k: Model) -> None:
    older, text = (k.alloc(content + "once") for content in (CHESS, BEES))
    asked: dict[str, Any] = {"cube_id": text, "to": "activation", "params": {"neighbours": [older, older]}}
    assert k.failure("mem_migrate", **asked).errno == "EINVAL"
