"""Peers of the recall benchmark: each takes the same texts and vectors, and ranks them for the same questions.

Runs under a peer's interpreter: `python peer_recall.py PEER IN.json OUT.json DIR`. IN holds `units` (`key`, `group`, `text`,
`vector`) and `questions` (`text`, `group`, `vector`); OUT gets `ranked`, a list of keys for each question, `ns` for each
question, `build_s` and `version`. Every group is a haystack of its own: a user, a table, an index.

Embedders are replaced by one that knows its answers, so no model's time is measured and all rank with equal vectors.
Each peer is set up as its documentation says for this use; where it offers stemming or stop words, it has them.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import re
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

HITS: Final = 50


class Ranker(Protocol):
    """A haystack of a peer's."""

    def add(self, units: Sequence[Mapping[str, Any]]) -> None: ...
    def search(self, text: str, vector: Sequence[float]) -> list[str]:
        """Keys, best first, at most `HITS`."""
        ...


class Known:
    """An embedder that knows its answers beforehand; in the shapes that mem0 and MemoryOS ask it."""

    def __init__(self, vectors: Mapping[str, Sequence[float]]) -> None:
        # Some peers trim what they are asked before they embed it.
        self._vectors = {" ".join(text.split()): vector for text, vector in vectors.items()}
        self.config: Any = type("Config", (), {"embedding_dims": len(next(iter(vectors.values())))})()

    def embed(self, texts: str | Sequence[str], *_more: Any, **_options: Any) -> Any:
        if isinstance(texts, str):
            return list(self._vectors[" ".join(texts.split())])
        return [self.embed(text) for text in texts]

    embed_batch = embed


class Bm25s:
    """Words alone: stems and English stop words."""

    package = "bm25s"

    def __init__(self, _group: str, _directory: Path, _known: Known) -> None:
        self._lib: Any = importlib.import_module("bm25s")
        self._stemmer: Any = importlib.import_module("Stemmer").Stemmer("english")
        self._keys: list[str] = []
        self._index: Any = self._lib.BM25()

    def add(self, units: Sequence[Mapping[str, Any]]) -> None:
        self._keys = [unit["key"] for unit in units]
        self._index.index(self._tokens([unit["text"] for unit in units]), show_progress=False)

    def search(self, text: str, vector: Sequence[float]) -> list[str]:
        tokens = self._tokens([text])
        places, scores = self._index.retrieve(tokens, k=min(HITS, len(self._keys)), show_progress=False)
        return [self._keys[place] for place, score in zip(places[0], scores[0], strict=True) if score > 0]

    def _tokens(self, texts: list[str]) -> Any:
        return self._lib.tokenize(texts, stopwords="en", stemmer=self._stemmer, show_progress=False)


class LanceDb:
    """Words and vectors: full-text index with stems and stop words, reciprocal ranks."""

    package = "lancedb"

    def __init__(self, group: str, directory: Path, _known: Known) -> None:
        lib: Any = importlib.import_module("lancedb")
        self._database: Any = lib.connect(str(directory / "lance"))
        self._name = re.sub(r"\W", "_", group)
        self._reranker: Any = importlib.import_module("lancedb.rerankers").RRFReranker()
        self._table: Any = None

    def add(self, units: Sequence[Mapping[str, Any]]) -> None:
        rows = [{"key": unit["key"], "text": unit["text"], "vector": unit["vector"]} for unit in units]
        self._table = self._database.create_table(self._name, rows)
        words: Any = importlib.import_module("lancedb.index").FTS(language="English", stem=True, remove_stop_words=True)
        self._table.create_index("text", config=words)
        self._table.optimize()

    def search(self, text: str, vector: Sequence[float]) -> list[str]:
        # A question mark or a quotation mark means nothing to us, and something to a query language.
        words = " ".join(re.findall(r"\w+", text))
        query = self._table.search(query_type="hybrid").vector(list(vector)).text(words)
        return [row["key"] for row in query.rerank(self._reranker).limit(HITS).to_list()]


class Mem0:
    """Vectors: each text as it is (`infer=False`), no language model."""

    package = "mem0ai"
    _memory: Any = None

    def __init__(self, group: str, directory: Path, known: Known) -> None:
        self._group = group
        if Mem0._memory is not None:
            return
        # Beside this file, which is a script of the peer's own interpreter.
        opened = importlib.import_module("peer_mem0").opened
        Mem0._memory = opened(str(directory), known.config.embedding_dims, known)

    def add(self, units: Sequence[Mapping[str, Any]]) -> None:
        for unit in units:
            self._memory.add(unit["text"], user_id=self._group, infer=False, metadata={"key": unit["key"]})

    def search(self, text: str, vector: Sequence[float]) -> list[str]:
        found = self._memory.search(text, filters={"user_id": self._group}, top_k=HITS, threshold=0.0)
        return [hit["metadata"]["key"] for hit in found["results"]]


class MemoryOs:
    """Vectors: MemOS's GeneralTextMemory over embedded Qdrant; nothing is extracted, texts are added as they are."""

    package = "MemoryOS"

    def __init__(self, group: str, directory: Path, known: Known) -> None:
        os.environ.setdefault("MEMOS_BASE_PATH", str(directory))
        general: Any = importlib.import_module("memos.memories.textual.general")
        settings: Any = importlib.import_module("memos.configs.memory")
        self._item: Any = importlib.import_module("memos.memories.textual.item").TextualMemoryItem
        name = re.sub(r"\W", "_", group)
        model = {"model_name_or_path": "known", "provider": "openai", "api_key": "none", "base_url": "http://127.0.0.1:9/v1"}
        store = {
            "collection_name": name, "vector_dimension": known.config.embedding_dims, "distance_metric": "cosine",
            "path": str(directory / f"qdrant-{name}"),
        }  # fmt: skip
        self._memory: Any = general.GeneralTextMemory(
            settings.GeneralTextMemoryConfig(
                extractor_llm={"backend": "openai", "config": {"model_name_or_path": "none", "api_key": "none"}},
                vector_db={"backend": "qdrant", "config": store},
                embedder={"backend": "universal_api", "config": model},
            )
        )
        self._memory.embedder = known
        self._keys: dict[str, str] = {}

    def add(self, units: Sequence[Mapping[str, Any]]) -> None:
        items = [self._item(id=str(uuid.uuid4()), memory=unit["text"], metadata={}) for unit in units]
        self._keys = {item.id: unit["key"] for item, unit in zip(items, units, strict=True)}
        self._memory.add(items)

    def search(self, text: str, vector: Sequence[float]) -> list[str]:
        return [self._keys[item.id] for item in self._memory.search(text, HITS)]


PEERS: Final[dict[str, Any]] = {"bm25s": Bm25s, "lancedb": LanceDb, "mem0": Mem0, "memoryos": MemoryOs}


def main(peer: str, given: Path, out: Path, directory: Path) -> None:
    sets = json.loads(given.read_text(encoding="utf-8"))
    vectors: dict[str, Sequence[float]] = {of["text"]: of["vector"] for of in (*sets["units"], *sets["questions"])}
    make: Callable[[str, Path, Known], Ranker] = PEERS[peer]
    known = Known(vectors)
    by_group: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for unit in sets["units"]:
        by_group[unit["group"]].append(unit)
    began = time.perf_counter()
    haystacks: dict[str, Ranker] = {}
    for group, units in by_group.items():
        haystacks[group] = make(group, directory, known)
        haystacks[group].add(units)
    build_s = time.perf_counter() - began
    ranked: list[list[str]] = []
    spent: list[int] = []
    for question in sets["questions"]:
        start = time.perf_counter_ns()
        ranked.append(haystacks[question["group"]].search(question["text"], question["vector"]))
        spent.append(time.perf_counter_ns() - start)
    version = importlib.metadata.version(PEERS[peer].package)
    out.write_text(json.dumps({"ranked": ranked, "ns": spent, "build_s": build_s, "version": version}), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], *(Path(word) for word in sys.argv[2:5]))
