"""Shredding a memory shreds every cache that saw it: on the device, in memory and on disk, and under jobs in progress."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests import lm
from tests.activation import BEES, CHESS, KETTLE, Model

from memos_kernel import attach, infer
from memos_kernel.clock import RealClock

tiny = lm.tiny
QUESTION = "Who keeps bees?"


@pytest.fixture(scope="module")
def k(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    data = tmp_path_factory.mktemp("data") / "data"
    with Model(tiny, tmp_path_factory.mktemp("cache"), data, rocks=True, clock=RealClock()) as kernel:
        yield kernel
        kernel.sound()


def tensors_of(k: Model, cache: str, version: int | None = None) -> bytes:
    """The payload, as mem_map hands it out."""
    content = k("mem_map", cube_id=cache, version=version)["content"]
    assert isinstance(content, bytes)
    return content


def files_with(root: Path, words: list[bytes]) -> list[str]:
    """Files of the data directory in which one of these runs of bytes stands."""
    return [
        f"{path.name}: {word[:8].hex()}" for path in root.rglob("*") if path.is_file() for word in words
        if word in path.read_bytes()
    ]  # fmt: skip


def runs_of(payload: bytes) -> list[bytes]:
    """Places of a payload that nothing else looks like: keys and values are numbers of no pattern."""
    return [payload[at : at + 24] for at in range(2048, len(payload) - 4096, len(payload) // 7)]


@pytest.mark.parametrize("role", ["content", "context", "far below"])
def test_a_shred_reaches_every_version_on_every_tier(k: Model, role: str) -> None:
    space = f"shred-{role.split()[0]}"
    older, text, other = (k.alloc(content + role, namespace=space) for content in (CHESS, BEES, KETTLE))
    cache = k.capture(text, params={"neighbours": [older]})
    k("mem_write", cube_id=text, content=BEES + "changed")
    assert k.migrated(text, params={"neighbours": [older]})["cube_id"] == cache
    used = cache
    if role == "far below":
        used = k("mem_fuse", cube_ids=[cache, k.capture(other)], strategy="kv")["cube_id"]
        used = k("mem_compose", cube_ids=[used], namespace=space)["cube_id"]
    k.ask(QUESTION, used)
    rows = [k.row(cache, 1).payload_id, k.row(cache, 2).payload_id]
    payloads = [tensors_of(k, cache, version) for version in (1, 2)]
    before, resident = k.tiers, set(k.kernel.runtime.resident)
    report = k("mem_shred", cube_id=text if role == "content" else older)["report"]
    assert {cache, used} <= set(report["shredded"])
    assert any(cache in line for line in report["maps"]), "who was handed a map is named"
    after = k.tiers
    assert after["host"]["bytes"] < before["host"]["bytes"] and after["device"]["bytes"] < before["device"]["bytes"]
    assert resident & set(rows) or role == "far below"
    assert not k.kernel.runtime.resident & set(rows)
    for version in (1, 2, None):
        for name in ("mem_map", "mem_read"):
            assert k.failure(name, cube_id=cache, version=version).errno == "ESHREDDED"
    for named in (cache, {"cube_id": cache, "version": 1}, used):
        assert k.failure("mem_infer", **k.question(QUESTION, named, on_miss="recompute")).errno == "ESHREDDED"
    assert k.failure("mem_migrate", cube_id=cache, tier="device").errno == "ESHREDDED"
    found = [word for payload in payloads for word in runs_of(payload)]
    assert files_with(k.paths.root, found) == []


def test_keys_and_values_stand_nowhere_on_disk_in_the_clear(k: Model) -> None:
    cache = k.capture(k.alloc(BEES + "clear"))
    k.ask(QUESTION, cache)
    words = runs_of(tensors_of(k, cache))
    assert len(words) > 3 and len(set(words)) == len(words)
    assert files_with(k.paths.root, words) == []


def test_what_is_rebuilt_after_a_shred_is_text_alone(k: Model) -> None:
    one, two = k.alloc(BEES + "r"), k.alloc(CHESS + "r")
    cache = k.capture(one, two)
    report = k("mem_shred", cube_id=one, cascade="rebuild")["report"]
    assert cache in report["shredded"] and cache not in [made["replaces"] for made in report["rebuilt"]]
    assert k.header(two)["state"] == "generated"


def test_a_capture_of_what_is_shredded_meanwhile_ends_and_commits_nothing(k: Model) -> None:
    for op, after in (("tokens", False), ("capture", False), ("capture", True)):
        text = k.alloc(BEES + op + str(after))
        with k.during(op, lambda shredded=text: k.submit("mem_shred", cube_id=shredded), after=after):  # type: ignore[misc]
            error = k.failure("mem_migrate", cube_id=text, to="activation")
        assert (error.errno, error.outcome) == ("ESHREDDED", "none"), op
        assert k.derived(text) == []


def test_a_capture_behind_a_neighbour_that_is_shredded_meanwhile_commits_nothing(k: Model) -> None:
    older, text = (k.alloc(content, namespace="under") for content in (CHESS, BEES))
    with k.during("capture", lambda: k.submit("mem_shred", cube_id=older), after=True):
        error = k.failure("mem_migrate", cube_id=text, to="activation", params={"neighbours": [older]})
    assert error.errno == "ESHREDDED" and k.derived(text) == []
    assert k.capture(text, params={"neighbours": 1}), "the next one stands behind what is left"


@pytest.mark.parametrize("attached", ["text", "cache"])
def test_an_answer_from_what_is_shredded_meanwhile_ends(k: Model, attached: str) -> None:
    text = k.alloc(BEES + attached)
    cube = text if attached == "text" else k.capture(text)
    call = k.submit("mem_infer", **k.question(QUESTION, cube, max_new_tokens=3500, stream=True))
    peer = next(iter(k.peers.values()))
    peer.items.clear()
    while not peer.items:
        k.run(0.01)
    report = k("mem_shred", cube_id=text)["report"]
    assert text in report["shredded"]
    error = k.error(call)
    assert error.errno == "ESHREDDED"
    said = len(peer.items)
    k.run(0.3)
    assert len(peer.items) == said, "not a word more"
    assert k("sys_stats")["host"]["running"] == 0
    assert k.ask(QUESTION)["text"], "the host goes on"


def test_a_memory_that_is_shredded_while_a_call_opens_it_is_not_read(k: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the moment when its text was opened and the moment when the kernel knows that the call holds it."""
    text = k.alloc(BEES + "opened")
    shreds: list[asyncio.Future[dict[str, Any]]] = []

    def slowly(*args: Any, **more: Any) -> Any:
        found = attach.wanted(*args, **more)
        k.loop.call_soon_threadsafe(lambda: shreds.append(k.submit("mem_shred", cube_id=text)))
        while not shreds or not shreds[0].done():
            time.sleep(0.01)
        return found

    monkeypatch.setattr(infer, "wanted", slowly)
    assert k.failure("mem_infer", **k.question(QUESTION, text)).errno == "ESHREDDED"


def test_a_tier_move_of_what_is_shredded_meanwhile_leaves_nothing_on_the_device(k: Model) -> None:
    text = k.alloc(BEES + "moved")
    cache = k.capture(text)
    k("mem_migrate", cube_id=cache, tier="disk")
    payload = k.row(cache).payload_id
    before = k.tiers["device"]["entries"]
    with k.during("load", lambda: k.submit("mem_shred", cube_id=text)):
        assert k.failure("mem_migrate", cube_id=cache, tier="device").errno == "ESHREDDED"
    assert k.tiers["device"]["entries"] == before
    assert payload not in k.kernel.runtime.resident


def test_a_shred_waits_for_no_host_that_hangs(k: Model) -> None:
    """A host that does not answer is killed, and with it goes what it holds."""
    text = k.alloc(BEES + "hangs")
    cache = k.capture(text)
    k.ask(QUESTION, cache)
    pid = k.stop_host()
    assert cache in k("mem_shred", cube_id=text)["report"]["shredded"]
    assert k.host.pid != pid
    assert k.failure("mem_infer", **k.question(QUESTION, cache)).errno == "ESHREDDED"
