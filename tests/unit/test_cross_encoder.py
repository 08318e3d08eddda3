"""Searches that a cross-encoder orders: a real graph in its real process, small enough to know what it must say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="needs the `embed` extra")

from tests.outside import Daemon, Wire
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from memos_drivers.embed.cross import TOKENS_MAX, CrossEncoder
from memos_drivers.embed.onnxfile import FLOAT, INT64, Graph
from memos_syscalls.errors import MemModel, MemNoModel

WORDS = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "zebra": 3, "soup": 4}


def made(path: Path, kind: str = "one") -> Path:
    """A cross-encoder that counts zebras in the text, not in the question. `two` says it as "no" and "yes"."""
    path.mkdir(parents=True)
    words: Any = Tokenizer(WordLevel(WORDS, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    words.save(str(path / "tokenizer.json"))
    graph = Graph()
    ids = graph.input("pixels" if kind == "wrong" else "input_ids", INT64, ["pairs", "tokens"])
    types = graph.input("token_type_ids", INT64, ["pairs", "tokens"])
    zebra = graph.node("Cast", graph.node("Equal", ids, graph.constant(np.asarray([3]))), to=FLOAT)
    own = graph.node("Mul", zebra, graph.node("Cast", types, to=FLOAT))
    keep = 0 if kind == "flat" else 1
    found = graph.node("ReduceSum", own, graph.constant(np.asarray([1])), keepdims=keep)
    if kind == "two":
        found = graph.node("Concat", graph.node("Neg", found), found, axis=1)
    if kind == "nan":
        found = graph.node("Log", graph.node("Neg", graph.node("Add", found, graph.constant(np.ones(1, np.float32)))))
    graph.output("logits", FLOAT, ["pairs"] if kind == "flat" else ["pairs", 2 if kind == "two" else 1], found)
    (path / "model.onnx").write_bytes(graph.file())
    return path


PAIRS = [("zebra zebra", "soup"), ("soup", "a zebra and a zebra"), ("soup", "zebra"), ("zebra", "")]


@pytest.mark.parametrize(("kind", "times"), [("one", 1), ("flat", 1), ("two", 2)])
def test_a_pair_has_the_score_that_its_graph_gives_whatever_stands_beside_it(tmp_path: Path, kind: str, times: int) -> None:
    model = CrossEncoder(str(made(tmp_path / "m", kind)))
    assert model.embed(PAIRS).ravel().tolist() == [0, 2 * times, times, 0]
    assert [float(model.embed([pair])[0, 0]) for pair in PAIRS] == [0, 2 * times, times, 0]
    assert (model.name, model.dims, len(model.fingerprint)) == ("m", 1, 64)


def test_a_long_text_is_cut_and_a_question_that_leaves_no_room_is_refused(tmp_path: Path) -> None:
    model = CrossEncoder(str(made(tmp_path / "m")))
    assert model.embed([("soup", "zebra " * 2 * TOKENS_MAX)])[0, 0] == TOKENS_MAX - 4
    with pytest.raises(MemModel, match="question is longer"):
        model.embed([("soup " * 2 * TOKENS_MAX, "zebra")])


def test_what_is_no_cross_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MemNoModel, match=r"model\.onnx is missing"):
        CrossEncoder(str(tmp_path))
    with pytest.raises(MemNoModel, match="takes pixels"):
        CrossEncoder(str(made(tmp_path / "wrong", "wrong")))
    made(tmp_path / "bad")
    (tmp_path / "bad" / "model.onnx").write_bytes(b"\x80\x04not a graph")
    with pytest.raises(MemNoModel, match="cannot be read"):
        CrossEncoder(str(tmp_path / "bad"))
    with pytest.raises(MemModel, match="finite"):
        CrossEncoder(str(made(tmp_path / "nan", "nan"))).embed(PAIRS)


TEXTS = ["soup soup for all", "soup with a zebra", "soup", "zebra zebra soup of the day that nobody ever ate"]


def test_a_search_stands_in_the_order_of_the_model(tmp_path: Path) -> None:
    words = ["--model", "none", "--reranker", str(made(tmp_path / "m"))]
    with Daemon(tmp_path / "a", *words).ready() as daemon, Wire(daemon.socket) as wire:
        for text in TEXTS:
            wire.call("mem_alloc", namespace="a", content=text)
        asked: dict[str, Any] = {"query": "soup", "namespace": "a", "mode": "lexical", "explain": True}
        plain = wire.call("mem_search", **asked)
        hits = wire.call("mem_search", rerank=True, k=3, **asked)
    assert plain["hits"][0]["content"] != TEXTS[3] and "rerank" not in plain["hits"][0]["why"]
    assert [hit["content"] for hit in hits["hits"]][:2] == [TEXTS[3], TEXTS[1]] and len(hits["hits"]) == 3
    assert not hits["partial"] and [hit["score"] for hit in hits["hits"]] == [2, 1, 0]
    assert hits["hits"][0]["why"]["rerank"]["rank"] == 1


def test_without_a_model_it_is_said_and_with_a_dead_one_the_order_stays(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"query": "soup", "namespace": "a", "mode": "lexical"}
    for name, words in (("none", []), ("dead", ["--reranker", str(tmp_path / "nowhere")])):
        with Daemon(tmp_path / name, "--model", "none", *words).ready() as daemon, Wire(daemon.socket) as wire:
            for text in TEXTS:
                wire.call("mem_alloc", namespace="a", content=text)
            plain = wire.call("mem_search", **asked)
            if not words:
                with pytest.raises(MemNoModel, match="no reranker is configured"):
                    wire.call("mem_search", rerank=True, **asked)
                continue
            hits = wire.call("mem_search", rerank=True, **asked)
            assert hits["partial"] and not plain["partial"]
            assert [hit["cube_id"] for hit in hits["hits"]] == [hit["cube_id"] for hit in plain["hits"]]
