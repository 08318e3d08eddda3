"""mem0ai with embedded Qdrant and a vector that is there already: adds and searches a second, one after the other.

Runs under the peers' interpreter: `python peer_mem0.py DIR COUNT` prints one JSON line. `infer=False`, so no language
model is asked; the embedder answers at once, so no model's time is measured. mem0 searches by vectors only.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import sys
import time
from typing import Any

DIMS = 384


class Given:
    """An embedder that knows its answers beforehand."""

    def __init__(self) -> None:
        draw = random.Random(20261123)
        self.config = type("Config", (), {"embedding_dims": DIMS})()
        self._vectors = [[draw.gauss(0, 1) for _ in range(DIMS)] for _ in range(256)]
        self._next = 0

    def embed(self, *_text: Any, **_options: Any) -> list[float]:
        self._next = (self._next + 1) % len(self._vectors)
        return self._vectors[self._next]

    def embed_batch(self, texts: Any, *_more: Any, **_options: Any) -> list[list[float]]:
        return [self.embed() for _ in texts]


def opened(directory: str, dims: int, embedder: Any) -> Any:
    """A mem0 whose data lie in this directory, with this embedder in place of its own. It talks to nobody."""
    os.environ.update(MEM0_TELEMETRY="False", OPENAI_API_KEY="none", MEM0_DIR=directory)
    qdrant = {"path": f"{directory}/qdrant", "on_disk": True, "embedding_model_dims": dims, "collection_name": "bench"}
    memory: Any = importlib.import_module("mem0").Memory.from_config(
        {
            "vector_store": {"provider": "qdrant", "config": qdrant},
            "llm": {"provider": "openai", "config": {"api_key": "none"}},
            "embedder": {"provider": "openai", "config": {"api_key": "none", "embedding_dims": dims}},
            "history_db_path": f"{directory}/history.db",
        }
    )
    memory.embedding_model = embedder
    return memory


def main(directory: str, count: int) -> None:
    memory = opened(directory, DIMS, Given())
    text = ("Alice's dog is a beagle named Biscuit; she walks him along the river before breakfast. " * 4)[:280]
    for place in range(10):
        memory.add(f"warm {place} {text}"[:300], user_id="bench", infer=False)
    began = time.perf_counter()
    for place in range(count):
        memory.add(f"{place:08d} {text}"[:300], user_id="bench", infer=False)
    adds = time.perf_counter() - began
    began = time.perf_counter()
    for place in range(count // 4):
        memory.search(f"beagle {place}", filters={"user_id": "bench"}, top_k=10, threshold=0.0)
    searches = time.perf_counter() - began
    print(json.dumps({"per_s": count / adds, "searches_per_s": (count // 4) / searches}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
