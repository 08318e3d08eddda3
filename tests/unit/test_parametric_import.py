"""Adapters from elsewhere: checked against the model before they are kept, kept as this kernel keeps its own."""

from __future__ import annotations

import asyncio
import json
import math
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import lm
from tests.activation import Model
from tests.inside import ADMIN, ALICE
from tests.parametric import Lessons, lessons

from memos_client._session import close_all, enclose
from memos_client.hf_adapter import import_adapter, save_adapter
from memos_drivers.parametric.adapter import Adapter, pack
from memos_drivers.parametric.peftdir import read_peft, write_peft
from memos_kernel.fds import mapped, sealed_memfd
from memos_syscalls import limits
from memos_syscalls.messages import MemMapReply, MemStatReply, Mutated

tiny = lm.tiny
k = lessons
PLACE = "model.layers.0.mlp.gate_proj"


def modules(rank: int = 4, *, path: str = PLACE, into: int = 64, out: int = 128, seed: int = 0) -> Any:
    made = torch.Generator().manual_seed(seed)
    return {path: (torch.randn((rank, into), generator=made), torch.randn((out, rank), generator=made))}


def payload(modules_: Any = None, *, base: str = "", alpha: float = 4.0, facts: dict[str, Any] | None = None) -> bytes:
    fd = pack(modules() if modules_ is None else modules_, alpha, {"base": base}, facts).fd
    try:
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)


def brought(k: Lessons, content: bytes, **args: Any) -> dict[str, Any]:
    return k("mem_alloc", namespace="alice", form="parametric", content=content, **args)


def test_an_adapter_from_elsewhere_is_a_cube_that_acts(k: Lessons) -> None:
    parent = k.alloc("Where it came from.")
    made = brought(k, payload(), name="foreign", tags=["imported"], parents=[parent], metadata={"licence": "MIT"})
    header = k.header(made["cube_id"])
    assert (made["version"], header["form"], header["origin"], header["encoding"]) == (1, "parametric", "import", "bytes")
    assert (header["name"], header["tags"], header["metadata"]) == ("foreign", ["imported"], {"licence": "MIT"})
    assert [p["cube_id"] for p in header["parents"]] == [parent]
    recipe = header["recipe"]
    assert recipe["method"] == "import" and recipe["rank"] == 4 and recipe["targets"] == ["gate_proj"]
    assert recipe["subjects"] == [] and recipe["probes"] == 0 and recipe["digest"].startswith("sha256:")
    assert recipe["model"] == k.kernel.runtime.known[recipe["model_name"]]["fingerprint"]
    found = k.ask("Who keeps bees?", made["cube_id"])
    assert found["attached"][0]["how"] == "acted", "of unknown subjects it always acts"
    assert found["text"] != k.ask("Who keeps bees?")["text"]
    told = json.loads(k("mem_map", cube_id=made["cube_id"])["layout"]["metadata"]["memos"])
    assert told["base"] == recipe["model"], "the payload names the model from now on"


def test_what_a_payload_says_of_its_facts_goes_with_it(k: Lessons) -> None:
    mine = k.distil(k.alloc("Anna lives in Lisbon."))
    other = brought(k, k("mem_map", cube_id=mine)["content"])["cube_id"]
    here, there = k.header(mine)["recipe"], k.header(other)["recipe"]
    assert {n: here[n] for n in ("digest", "rank", "alpha", "subjects", "facts", "probes")} == {
        n: there[n] for n in ("digest", "rank", "alpha", "subjects", "facts", "probes")
    }
    assert k.says("Anna lives in", other) == k.says("Anna lives in", mine)
    assert k.says("Anna lives in", other).startswith("Lisbon")
    assert k.ask("Who keeps bees?", other)["attached"][0]["how"] == "off"
    assert "parents" not in k.header(other)


def test_a_large_adapter_comes_through_a_descriptor_in_chunks(k: Lessons) -> None:
    large = {f"model.layers.{n}.mlp.{name}": pair for n in (0, 1) for name, pair in (
        ("gate_proj", (torch.randn(60, 64), torch.randn(128, 60))), ("up_proj", (torch.randn(60, 64), torch.randn(128, 60))),
    )}  # fmt: skip
    facts = {"facts": [
        {"statement": "x" * 4000, "prompt": "Anna lives in", "object": f"Lisbon {n}", "subject": "Anna", "source": 0, "when": 0}
        for n in range(400)
    ], "probes": [], "forms": []}  # fmt: skip
    content = payload(large, alpha=0.1, facts=facts)
    assert len(content) > limits.CONTENT_INLINE_BYTES_MAX and len(content) > limits.PAYLOAD_CHUNK_BYTES
    assert k.refusal("mem_alloc", namespace="alice", form="parametric", content=content) == "EMSGSIZE", "not inline"
    asked: dict[str, Any] = {
        "namespace": "alice", "form": "parametric", "fd": 0, "encoding": "bytes", "request_id": "large", "deadline_ms": 90_000,
    }  # fmt: skip
    made = k("mem_alloc", _contents=[memoryview(content)], **asked)
    assert k("mem_alloc", _contents=[memoryview(content)], **asked) == made, "the same request id is the same cube"
    other = bytearray(content)
    other[-1] ^= 1
    assert k.refusal("mem_alloc", _contents=[memoryview(bytes(other))], **asked) == "EINVAL", "and another content is not"
    del asked["encoding"], asked["request_id"]
    again = k("mem_alloc", _contents=[memoryview(content)], **asked)
    digests = {k.header(one["cube_id"])["recipe"]["digest"] for one in (made, again)}
    assert len(digests) == 1 and again["cube_id"] != made["cube_id"]


def test_a_request_id_makes_one_adapter_also_after_a_restart(tiny: Path, tmp_path: Path) -> None:
    content = payload()
    with Lessons(tiny, tmp_path / "cache") as k:
        made = brought(k, content, request_id="once")
        assert brought(k, content, request_id="once") == made
        other: dict[str, Any] = {"namespace": "alice", "form": "parametric", "content": payload(modules(2))}
        assert k.refusal("mem_alloc", **other, request_id="once") == "EINVAL"
        k.reopen()
        assert brought(k, content, request_id="once") == made
        assert k.ask("Who?", made["cube_id"])["attached"][0]["how"] == "acted"
        k.sound()


@pytest.mark.parametrize(("what", "content", "errno"), [
    ("no tensors", lambda: b"not tensors", "EINVAL"),
    ("nothing", lambda: b"", "EINVAL"),
    ("a header that lies", lambda: (2**60).to_bytes(8, "little") + b"{}", "EINVAL"),
    ("half of it", lambda: payload()[:-10], "EINVAL"),
    ("another base", lambda: payload(base="sha256:" + "0" * 64), "EMODEL"),
    ("a module that is not there", lambda: payload(modules(path="model.layers.9.mlp.gate_proj")), "EMODEL"),
    ("other sizes", lambda: payload(modules(into=32)), "EMODEL"),
    ("the head", lambda: payload(modules(path="lm_head", out=512)), "EMODEL"),
    ("not a number", lambda: payload()[:-4] + struct.pack("<f", math.nan), "EINVAL"),
    ("infinite", lambda: payload()[:-4] + struct.pack("<f", math.inf), "EINVAL"),
    ("facts of another shape", lambda: payload(facts={"facts": [{"subject": "Anna"}]}), "EINVAL"),
    ("a probe of no fact", lambda: payload(facts={"facts": [], "probes": [
        {"prompt": "Who?", "answer": "Anna", "chat": True, "fact": 0, "kind": "question"}]}), "EINVAL"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_and_nothing_is_kept(k: Lessons, what: str, content: Any, errno: str) -> None:
    forms = k("sys_stats")["cubes"]["forms"]
    error = k.failure("mem_alloc", namespace="alice", form="parametric", content=content())
    assert error.errno == errno, (what, error)
    assert k("sys_stats")["cubes"]["forms"] == forms


def test_an_adapter_over_the_limit_is_refused_before_it_is_read(k: Lessons, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ADAPTER_BYTES_MAX", 100)
    assert k.refusal("mem_alloc", namespace="alice", form="parametric", content=payload()) == "EMSGSIZE"


def test_an_adapter_is_bytes_and_its_tensors_are_never_written_over(k: Lessons) -> None:
    for args in ({"content": "text"}, {"content": payload(), "embedding": [1.0]}, {"content": payload(), "model": "other"}):
        assert k.refusal("mem_alloc", namespace="alice", form="parametric", **args) in ("EINVAL", "ENOMODEL")
    cube = brought(k, payload())["cube_id"]
    assert k.refusal("mem_write", cube_id=cube, content=payload()) == "EINVAL"
    assert k("mem_write", cube_id=cube, tags=["kept"])["version"] == 2
    assert k.header(cube)["tags"] == ["kept"] and k.header(cube)["recipe"]["method"] == "import"
    assert k.refusal("mem_alloc_many", items=[{"namespace": "alice", "form": "parametric", "content": payload()}]) == "EINVAL"


def test_rights_are_asked_as_for_any_cube(k: Lessons) -> None:
    k.alloc("Bob's.", ADMIN, namespace="bob")
    assert k.refusal("mem_alloc", ALICE, namespace="bob", form="parametric", content=payload()) in ("EACCES", "ENOENT")
    hidden = k.alloc("Hidden.", ADMIN, namespace="bob")
    asked: dict[str, Any] = {"namespace": "al", "form": "parametric", "content": payload(), "parents": [hidden]}
    assert k.refusal("mem_alloc", ALICE, **asked) in ("EACCES", "ENOENT")


def test_erasing_a_parent_erases_the_adapter_and_ends_an_import_under_way(k: Lessons) -> None:
    parent = k.alloc("Where it came from.")
    cube = brought(k, payload(), parents=[parent])["cube_id"]
    with k.during("check", lambda: asyncio.shield(k.submit("mem_shred", cube_id=parent, cascade="shred"))):
        error = k.failure("mem_alloc", namespace="alice", form="parametric", content=payload(), parents=[parent])
    assert error.errno == "ESHREDDED"
    assert k.header(cube)["state"] == "shredded"


def test_an_adapter_moves_between_the_tiers_and_fuses_and_cannot_say_what_it_was_never_asked(k: Lessons) -> None:
    cube, other = (brought(k, payload(modules(seed=n)))["cube_id"] for n in (1, 2))
    for tier in ("device", "host", "disk"):
        assert k("mem_migrate", cube_id=cube, tier=tier)["tier"] == tier
        assert k.ask("Who?", cube)["attached"][0]["how"] == "acted"
    made = k("mem_fuse", cube_ids=[cube, other], strategy="linear")
    assert k.header(made["cube_id"])["recipe"]["scores"]["share"] == 1, "it has no probes to forget"
    error = k.failure("mem_migrate", cube_id=made["cube_id"], to="plaintext")
    assert error.errno == "EINVAL" and "probes" in error.detail


class Client:
    """Calls of the client library, without the socket between: what is large goes through descriptors as it does there."""

    def __init__(self, k: Lessons) -> None:
        self._k = k

    def mem_alloc(self, namespace: str, content: str | bytes, **given: Any) -> Mutated:
        args: dict[str, Any] = {"namespace": namespace, "content": content, **given}
        fds = enclose(args)
        try:
            return Mutated(**self._k("mem_alloc", _contents=[mapped(fd) for fd in fds], **args))
        finally:
            close_all(fds)

    def mem_stat(self, cube_id: str, *, version: int | None = None) -> MemStatReply:
        return MemStatReply(**self._k("mem_stat", cube_id=cube_id, version=version))

    def mem_map(self, cube_id: str, *, version: int | None = None) -> MemMapReply:
        reply = self._k("mem_map", cube_id=cube_id, version=version)
        return MemMapReply.model_validate({**reply, "fd": sealed_memfd(reply.pop("content"))})


def test_a_peft_directory_is_a_cube_and_a_directory_again(k: Lessons, tmp_path: Path) -> None:
    names = [f"model.layers.{n}.mlp.{name}" for n in (0, 1) for name in ("gate_proj", "up_proj")]
    whole = {path: pair for n, path in enumerate(names) for pair in modules(64, path=path, seed=n).values()}
    write_peft(Adapter(whole, 2.0), tmp_path / "given", "tiny")
    client = Client(k)
    cube = import_adapter(client, tmp_path / "given", namespace="alice", name="mine", tags=["peft"], request_id="a directory")
    header = k.header(cube)
    assert (header["name"], header["tags"], header["recipe"]["rank"]) == ("mine", ["peft"], 64)
    assert import_adapter(
        client, tmp_path / "given", namespace="alice", name="mine", tags=["peft"], request_id="a directory"
    ) == cube  # fmt: skip
    save_adapter(client, cube, tmp_path / "again")
    given, again = read_peft(tmp_path / "given"), read_peft(tmp_path / "again")
    assert given.alpha == again.alpha and given.modules.keys() == again.modules.keys()
    assert all(torch.equal(a, b) for p in given.modules for a, b in zip(given.modules[p], again.modules[p], strict=True))


def test_a_kernel_without_a_model_keeps_no_adapter(tiny: Path, tmp_path: Path) -> None:
    with Model(tiny, tmp_path / "cache", model=()) as k:
        assert k.refusal("mem_alloc", namespace="alice", form="parametric", content=payload()) == "ENOMODEL"


