"""The few parts of an ONNX file that `minilm` needs: a reader of weights and a writer of graphs.

An ONNX file is one protobuf message. Here are the field numbers of that format (onnx.proto), and no more of it than
nodes, initializers with raw bytes, and inputs and outputs. The package `onnx` would be 50 MB for the same.

- `read` answers the nodes in order and the initializers by name; a file that is no such message raises `ValueError`.
- `Graph` collects nodes and constants; `Graph.file` is the bytes an ONNX runtime loads.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

_TYPES: Final[dict[int, type[Any]]] = {1: np.float32, 2: np.uint8, 3: np.int8, 6: np.int32, 7: np.int64, 9: np.bool_}
FLOAT: Final = 1
INT32: Final = 6
INT64: Final = 7
_CODES: Final = {np.dtype(kind): code for code, kind in _TYPES.items()}
_IR_VERSION: Final = 10
_OPSET: Final = 17
CONTRIB: Final = "com.microsoft"
"""The operators that only ONNX Runtime has."""

Array = NDArray[Any]
Attribute = int | float | Sequence[int]


class Node(NamedTuple):
    operator: str
    inputs: list[str]
    outputs: list[str]


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def _varints(data: memoryview) -> list[int]:
    values: list[int] = []
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        values.append(value)
    return values


def _fields(data: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """Each field's number, its value if it is a number, and its bytes if it has any."""
    nothing = data[:0]
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        match key & 7:
            case 0:
                value, at = _varint(data, at)
                yield key >> 3, value, nothing
                continue
            case 1:
                size = 8
            case 2:
                size, at = _varint(data, at)
            case 5:
                size = 4
            case kind:
                raise ValueError(f"an ONNX file has no fields of kind {kind}")
        if at + size > len(data):
            raise ValueError("the ONNX file is cut short")
        yield key >> 3, 0, data[at : at + size]
        at += size


def _text(data: memoryview) -> str:
    return bytes(data).decode()


def _node(data: memoryview) -> Node:
    node = Node("", [], [])
    for field, _, value in _fields(data):
        match field:
            case 1:
                node.inputs.append(_text(value))
            case 2:
                node.outputs.append(_text(value))
            case 4:
                node = node._replace(operator=_text(value))
            case _:
                continue
    return node


def _initializer(data: memoryview) -> tuple[str, Array | None]:
    shape: list[int] = []
    kind, name, raw = 0, "", data[:0]
    for field, number, value in _fields(data):
        match field:
            case 1:
                shape += _varints(value) if len(value) else [number]
            case 2:
                kind = number
            case 8:
                name = _text(value)
            case 9:
                raw = value
            case _:
                continue
    if not len(raw) or kind not in _TYPES:
        return name, None
    return name, np.frombuffer(raw, _TYPES[kind]).reshape(shape)


def read(file: bytes) -> tuple[list[Node], dict[str, Array]]:
    """The nodes of a file's graph, and those of its initializers that are raw bytes of a common type."""
    nodes: list[Node] = []
    arrays: dict[str, Array] = {}
    try:
        for outer, _, graph in _fields(memoryview(file)):
            if outer != 7:
                continue
            for field, _, value in _fields(graph):
                if field == 1:
                    nodes.append(_node(value))
                elif field == 5:
                    name, array = _initializer(value)
                    if array is not None:
                        arrays[name] = array
    except (IndexError, UnicodeDecodeError) as error:
        raise ValueError("the file is no ONNX graph") from error
    return nodes, arrays


def _number(value: int) -> bytes:
    value &= 2**64 - 1
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _int(field: int, value: int) -> bytes:
    return _number(field << 3) + _number(value)


def _bytes(field: int, value: bytes | str) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return _number(field << 3 | 2) + _number(len(raw)) + raw


def _attribute(name: str, value: Attribute) -> bytes:
    if isinstance(value, float):
        body = _number(2 << 3 | 5) + struct.pack("<f", value) + _int(20, 1)
    elif isinstance(value, int):
        body = _int(3, value) + _int(20, 2)
    else:
        body = b"".join(_int(8, item) for item in value) + _int(20, 7)
    return _bytes(5, _bytes(1, name) + body)


def _value(field: int, name: str, kind: int, shape: Sequence[int | str]) -> bytes:
    sizes = b"".join(_bytes(1, _bytes(2, size) if isinstance(size, str) else _int(1, size)) for size in shape)
    return _bytes(field, _bytes(1, name) + _bytes(2, _bytes(1, _int(1, kind) + _bytes(2, sizes))))


class Graph:
    """A graph that grows node by node; every node answers the names of its outputs."""

    def __init__(self) -> None:
        self._nodes: list[bytes] = []
        self._constants: list[bytes] = []
        self._ends: list[bytes] = []

    def input(self, name: str, kind: int, shape: Sequence[int | str]) -> str:
        self._ends.append(_value(11, name, kind, shape))
        return name

    def output(self, name: str, kind: int, shape: Sequence[int | str], of: str) -> None:
        self._nodes.append(_bytes(1, _bytes(1, of) + _bytes(2, name) + _bytes(4, "Identity")))
        self._ends.append(_value(12, name, kind, shape))

    def constant(self, array: Array) -> str:
        name = f"constant{len(self._constants)}"
        sizes = b"".join(_int(1, size) for size in array.shape)
        raw = np.ascontiguousarray(array).tobytes()
        self._constants.append(_bytes(5, sizes + _int(2, _CODES[array.dtype]) + _bytes(8, name) + _bytes(9, raw)))
        return name

    def nodes(self, operator: str, inputs: Sequence[str], outputs: int, domain: str = "", **how: Attribute) -> list[str]:
        """A node with several outputs."""
        names = [f"{operator}{len(self._nodes)}.{at}" for at in range(outputs)]
        body = b"".join(_bytes(1, name) for name in inputs) + b"".join(_bytes(2, name) for name in names)
        body += _bytes(4, operator) + b"".join(_attribute(key, value) for key, value in how.items())
        self._nodes.append(_bytes(1, body + (_bytes(7, domain) if domain else b"")))
        return names

    def node(self, operator: str, *inputs: str, domain: str = "", **how: Attribute) -> str:
        """A node with one output."""
        return self.nodes(operator, inputs, 1, domain, **how)[0]

    def file(self) -> bytes:
        graph = b"".join(self._nodes) + _bytes(2, "graph") + b"".join(self._constants) + b"".join(self._ends)
        opsets = _bytes(8, _bytes(1, "") + _int(2, _OPSET)) + _bytes(8, _bytes(1, CONTRIB) + _int(2, 1))
        return _int(1, _IR_VERSION) + _bytes(7, graph) + opsets
