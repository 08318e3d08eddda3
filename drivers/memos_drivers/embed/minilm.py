"""MiniLM's graph for ONNX Runtime, written anew from the weights in the package's file: the same network, twice as fast.

The package's graph keeps int8 weights but multiplies in float32, in small operators. `faster` writes one that
multiplies int8 by int8 and holds the package's weights bit for bit; only what flows through is rounded:

- every token's row is scaled to its own largest value before it is quantised, so that a text's vector hardly depends on
  the texts that share its run (`DynamicQuantizeMatMul` has one scale for all rows);
- a handful of channels carry values ten times larger than others (`_COPIES`). Such a channel is cut into n equal
  parts that each meet a copy of its weights: the sum is the same, and the others keep their bits;
- query, key and value are one product, attention one operator, and normalisation is made of operators that ONNX Runtime
  vectorises, which its own LayerNormalization is not (0.42 ms against 0.2 ms).

Against the package's graph over 2,760 turns of conversations: cosine .9997 on average, .9990 at least, and the same recall.
`int8_is_exact` tells machines whose int8 products saturate (x86 without VNNI): there the package's own graph runs.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .onnxfile import CONTRIB, FLOAT, INT32, INT64, Array, Graph, read

LAYERS: Final = 6
HEADS: Final = 12
WIDTH: Final = 384
_EPSILON: Final = 1e-12
_INNER: Final = "inner."
# Channel: into how many parts it is cut, where rows enter attention and where they enter the feed-forward product.
# The channels are the same few in every layer. In all 32 parts more than channels: a multiple of 16 suits the kernels.
_COPIES: Final = {
    "attention": {99: 7, 63: 5, 157: 5, 223: 4, 338: 4, 363: 4, 18: 3, 189: 3, 238: 3, 246: 2, 267: 2, 303: 2},
    "feed": {99: 12, 223: 6, 63: 5, 127: 5, 157: 3, 267: 3, 338: 3, 303: 2, 319: 2},
}


class _Weights(NamedTuple):
    values: NDArray[np.int8]
    scale: NDArray[np.float32]
    bias: NDArray[np.float32]


class _Source:
    """The weights of the package's file, by the names that they had in training."""

    def __init__(self, file: bytes) -> None:
        nodes, self._arrays = read(file)
        products = {node.outputs[0]: node.inputs[1] for node in nodes if node.operator == "MatMul"}
        # A product's weights have lost their name; the bias that is added to it still has it.
        self._products = {
            bias: products[product]
            for node in nodes
            if node.operator == "Add"
            for product, bias in (node.inputs, node.inputs[::-1])
            if product in products and bias.endswith(".bias")
        }

    def array(self, name: str) -> Array:
        return self._arrays[_INNER + name]

    def floats(self, name: str) -> NDArray[np.float32]:
        """A table that is kept as int8 with scales."""
        floats: NDArray[np.float32] = self.array(f"{name}_q").astype(np.float32) * self.array(f"{name}_scale")
        return floats

    def dense(self, *names: str) -> _Weights:
        """The weights of products with the same input, side by side."""
        parts: list[_Weights] = []
        for name in names:
            product = self._products[f"{_INNER}{name}.bias"]
            values = self._arrays[f"{product}_q"]
            scale = np.broadcast_to(self._arrays[f"{product}_scale"].reshape(-1), values.shape[1])
            parts.append(_Weights(values, scale, self.array(f"{name}.bias")))
        return _Weights(*(np.concatenate(arrays, axis=-1) for arrays in zip(*parts, strict=True)))


def _product(graph: Graph, rows: str, weights: _Weights) -> str:
    """Rows × weights, with one scale for all rows; without the bias."""
    return graph.node(
        "DynamicQuantizeMatMul", rows, graph.constant(weights.values), graph.constant(weights.scale), domain=CONTRIB
    )


def _product_by_rows(graph: Graph, rows: str, weights: _Weights) -> str:
    """Rows × weights, each row with a scale of its own; without the bias."""
    # Never zero, for a row of zeros would become NaN.
    least = graph.constant(np.asarray([1e-30], np.float32))
    peak = graph.node("Max", graph.node("ReduceMax", graph.node("Abs", rows), axes=[-1], keepdims=1), least)
    return graph.node("Mul", _product(graph, graph.node("Div", rows, peak), weights), peak)


def _product_in_parts(graph: Graph, rows: str, weights: _Weights, copies: dict[int, int]) -> str:
    """Rows × weights, with the channels in `copies` cut into parts; without the bias."""
    parts = np.ones(WIDTH, np.float32)
    parts[list(copies)] = list(copies.values())
    more = np.repeat(np.arange(WIDTH), parts.astype(np.int64) - 1)
    scaled = graph.node("Mul", rows, graph.constant((1 / parts).astype(np.float32)))
    rows = graph.node("Concat", scaled, graph.node("Gather", scaled, graph.constant(more), axis=2), axis=2)
    return _product_by_rows(graph, rows, weights._replace(values=np.concatenate((weights.values, weights.values[more]))))


def _normalised(graph: Graph, source: _Source, name: str, rows: str) -> str:
    centred = graph.node("Sub", rows, graph.node("ReduceMean", rows, axes=[-1], keepdims=1))
    square = graph.node("ReduceSumSquare", centred, axes=[-1], keepdims=1)
    square = graph.node("Add", square, graph.constant(np.asarray([_EPSILON * WIDTH], np.float32)))
    inverse = graph.node("Div", graph.constant(np.asarray([WIDTH**0.5], np.float32)), graph.node("Sqrt", square))
    scaled = graph.node("Mul", graph.node("Mul", centred, inverse), graph.constant(source.array(f"{name}.LayerNorm.weight")))
    return graph.node("Add", scaled, graph.constant(source.array(f"{name}.LayerNorm.bias")))


def _added(graph: Graph, product: str, weights: _Weights, rows: str) -> str:
    return graph.node("Add", graph.node("Add", product, graph.constant(weights.bias)), rows)


def faster(file: bytes) -> bytes:
    """The faster graph: `ids` and `positions` (int64) and `mask` (int32) to `states`. A file with another network than
    all-MiniLM-L6-v2 as the package names it raises `ValueError`."""
    graph = Graph()
    try:
        source = _Source(file)
        rows = _embedded(graph, source)
        mask = graph.input("mask", INT32, ["texts", "tokens"])
        for layer in range(LAYERS):
            rows = _layer(graph, source, f"encoder.layer.{layer}", rows, mask)
    except KeyError as error:
        raise ValueError(f"the file has no weights {error}") from error
    graph.output("states", FLOAT, ["texts", "tokens", WIDTH], rows)
    return graph.file()


def _embedded(graph: Graph, source: _Source) -> str:
    ids = graph.input("ids", INT64, ["texts", "tokens"])
    positions = graph.input("positions", INT64, ["tokens"])
    words = "embeddings.word_embeddings.weight"
    scale = source.array(f"{words}_scale").reshape(-1)
    rows = graph.node("Cast", graph.node("Gather", graph.constant(source.array(f"{words}_q")), ids), to=FLOAT)
    if len(scale) == WIDTH:
        rows = graph.node("Mul", rows, graph.constant(scale))
    else:
        rows = graph.node("Mul", rows, graph.node("Gather", graph.constant(scale.reshape(-1, 1)), ids))
    # Every token is of type 0.
    places = source.floats("embeddings.position_embeddings.weight") + source.array("embeddings.token_type_embeddings.weight")[0]
    rows = graph.node("Add", rows, graph.node("Gather", graph.constant(places), positions))
    return _normalised(graph, source, "embeddings", rows)


def _layer(graph: Graph, source: _Source, name: str, rows: str, mask: str) -> str:
    weights = source.dense(*(f"{name}.attention.self.{part}" for part in ("query", "key", "value")))
    widths = graph.constant(np.full(3, WIDTH, np.int64))
    parts = graph.nodes("Split", [_product_in_parts(graph, rows, weights, _COPIES["attention"]), widths], 3, axis=-1)
    seen = graph.node("MultiHeadAttention", *parts, graph.constant(weights.bias), mask, domain=CONTRIB, num_heads=HEADS)
    weights = source.dense(f"{name}.attention.output.dense")
    rows = _normalised(
        graph, source, f"{name}.attention.output", _added(graph, _product_by_rows(graph, seen, weights), weights, rows)
    )
    weights = source.dense(f"{name}.intermediate.dense")
    wide = _product_in_parts(graph, rows, weights, _COPIES["feed"])
    wide = graph.node("BiasGelu", wide, graph.constant(weights.bias), domain=CONTRIB)
    weights = source.dense(f"{name}.output.dense")
    return _normalised(graph, source, f"{name}.output", _added(graph, _product_by_rows(graph, wide, weights), weights, rows))


def exactness_graph() -> bytes:
    """A product whose sum of two neighbours passes 2^15: kernels that add in 16 bits answer less than 508 × 127."""
    graph = Graph()
    rows = graph.input("rows", FLOAT, [1, WIDTH])
    weights = _Weights(np.full((WIDTH, 16), 127, np.int8), np.ones(16, np.float32), np.zeros(16, np.float32))
    graph.output("sums", FLOAT, [1, 16], _product(graph, rows, weights))
    return graph.file()


def int8_is_exact(session: Any) -> bool:
    """Whether a session of `exactness_graph` adds without saturation on this machine."""
    sums = session.run(None, {"rows": np.ones((1, WIDTH), np.float32)})[0]
    return bool(np.allclose(sums, WIDTH * 127, rtol=1e-3))
