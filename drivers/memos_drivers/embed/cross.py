"""A cross-encoder: a model that reads a question and a text together and says how well one answers the other.

A directory holds `model.onnx` and `tokenizer.json`, as Hugging Face's exports of such models do. The graph takes some of
`input_ids`, `attention_mask` and `token_type_ids` (int64 [pairs, tokens]) and answers one number for a pair, the larger the
better, or two, of "no" and "yes" (monoBERT, arXiv:1901.04085). None is bundled. Imported by the embedder child only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from memos_syscalls.errors import MemModel, MemNoModel

from .model import Floats, runs_of, runtime

TOKENS_MAX: Final = 512
"""Of a question and a text together; the text is cut."""
_INPUTS: Final = {"input_ids", "attention_mask", "token_type_ids"}


class CrossEncoder:
    """Scores of pairs on one thread; as an `Embedder` it makes rows of one number."""

    dims = 1

    def __init__(self, path: str) -> None:
        session, tokenizer = runtime()
        graph, words = Path(path) / "model.onnx", Path(path) / "tokenizer.json"
        for file in (graph, words):
            if not file.is_file():
                raise MemNoModel(f"there is no cross-encoder at {path}: {file.name} is missing")
        self.name = Path(path).name
        try:
            self.fingerprint = hashlib.sha256(graph.read_bytes() + words.read_bytes()).hexdigest()
            self._session: Any = session(str(graph))
            self._tokenizer: Any = tokenizer.from_file(str(words))
        except Exception as error:
            # Both libraries raise types of their own, and bare Exception.
            raise MemNoModel(f"the cross-encoder at {path} cannot be read ({type(error).__name__})") from error
        self._tokenizer.enable_truncation(TOKENS_MAX, strategy="only_second")
        self._tokenizer.no_padding()
        self._inputs = {one.name for one in self._session.get_inputs()}
        if not {"input_ids"} <= self._inputs <= _INPUTS:
            raise MemNoModel(f"the graph at {path} takes {', '.join(sorted(self._inputs))}; a cross-encoder takes input_ids")

    def embed(self, texts: Sequence[Any]) -> Floats:
        """Scores [n, 1] of pairs of question and text."""
        try:
            encodings = self._tokenizer.encode_batch([tuple(pair) for pair in texts])
        except Exception as error:
            raise MemModel("the question is longer than the cross-encoder takes") from error
        scores = np.zeros((len(texts), 1), np.float32)
        order = sorted(range(len(texts)), key=lambda at: len(encodings[at].ids))
        for part in runs_of([len(encodings[at].ids) for at in order]):
            run = order[part]
            scores[run, 0] = self._scores([encodings[at] for at in run])
        return scores

    def _scores(self, encodings: Sequence[Any]) -> Floats:
        width = len(encodings[-1].ids)
        inputs = {name: np.zeros((len(encodings), width), np.int64) for name in _INPUTS}
        for row, one in enumerate(encodings):
            inputs["input_ids"][row, : len(one.ids)] = one.ids
            inputs["attention_mask"][row, : len(one.ids)] = 1
            inputs["token_type_ids"][row, : len(one.ids)] = one.type_ids
        answer = np.asarray(self._session.run(None, {name: inputs[name] for name in self._inputs})[0], np.float32)
        rows = answer.reshape(len(encodings), -1)
        if rows.shape[1] not in (1, 2) or not np.isfinite(rows).all():
            raise MemModel(f"the cross-encoder answered {rows.shape[1]} numbers for a pair, or none that is finite")
        found: Floats = rows[:, -1] if rows.shape[1] == 1 else rows[:, 1] - rows[:, 0]
        return found
