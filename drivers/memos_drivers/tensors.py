"""Tensors as bytes: the safetensors format, planned and checked without torch or numpy.

1. u64, little-endian: bytes of the header
2. header: a JSON object, begins with `{`, padded with spaces: name → {"dtype", "shape", "data_offsets": [begin, end]}, and
   `__metadata__` → {text: text}
3. data: the tensors' bytes, little-endian, row by row; offsets count from its first byte

Invariants:

- tensors fill the data exactly: each begins where another ended, none is left out, nothing follows the last
- a tensor's bytes are what its dtype and shape say
- what `plan` makes, `parse` accepts, and so does the safetensors package; data begins at a multiple of 64 bytes

Refused with `MemInvalid`, which says what is wrong: lengths that lie, headers over the limit, names given twice, other
dtypes, numbers that are none or do not fit 63 bits, text that is not UTF-8. The order in the file is that of `tensors`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, NoReturn, cast

from memos_syscalls.errors import MemInvalid

HEADER_BYTES_MAX: Final = 100_000_000
"""Largest header that the format knows."""
ALIGNMENT: Final = 64
METADATA: Final = "__metadata__"
_COUNT_MAX: Final = 2**63 - 1
_LENGTH: Final = struct.Struct("<Q")

DTYPE_BYTES: Final[Mapping[str, int]] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4,
    "U32": 4, "F32": 4, "C64": 8, "F64": 8, "I64": 8, "U64": 8,
}  # fmt: skip
"""Bytes of one element. Types of less than a byte are not for memory payloads."""


class TensorInfo(NamedTuple):
    """Where one tensor lies."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    """Of its first byte, in the file."""
    bytes: int


class Layout(NamedTuple):
    """Where everything lies."""

    tensors: tuple[TensorInfo, ...]
    metadata: dict[str, str]
    size: int
    """Bytes of the file."""


def plan(tensors: Sequence[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]) -> tuple[bytes, Layout]:
    """`(header with its length word, layout)` of a file that holds tensors `(name, dtype, shape)` in this order."""
    header: dict[str, Any] = {}
    if metadata:
        header[METADATA] = dict(metadata)
    sizes: list[int] = []
    at = 0
    for name, dtype, shape in tensors:
        if name in header or name == METADATA:
            raise MemInvalid(f"tensor {name!r} is named twice, or as the metadata is")
        size = _size(name, dtype, shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        sizes.append(size)
        at += size
    try:
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        raise MemInvalid("a name or a metadata text is not Unicode") from None
    text += b" " * (-(len(text) + _LENGTH.size) % ALIGNMENT)
    if len(text) > HEADER_BYTES_MAX:
        raise MemInvalid(f"the header would have {len(text)} bytes; the limit is {HEADER_BYTES_MAX}")
    begin = _LENGTH.size + len(text)
    found = tuple(
        TensorInfo(name, dtype, tuple(shape), begin + header[name]["data_offsets"][0], size)
        for (name, dtype, shape), size in zip(tensors, sizes, strict=True)
    )
    return _LENGTH.pack(len(text)) + text, Layout(found, dict(metadata), begin + at)


def parse(data: memoryview | bytes, size: int | None = None, *, header_bytes_max: int = HEADER_BYTES_MAX) -> Layout:
    """The layout of a file of `size` bytes, of which `data` is the beginning, header included; raises `MemInvalid`."""
    size = len(data) if size is None else size
    if len(data) < _LENGTH.size or size < _LENGTH.size:
        _refuse(f"{min(len(data), size)} bytes are too few for a length")
    (length,) = _LENGTH.unpack_from(data)
    if length > header_bytes_max:
        _refuse(f"its header claims {length} bytes; the limit is {header_bytes_max}")
    begin = _LENGTH.size + length
    if begin > min(size, len(data)):
        _refuse(f"its header claims {length} bytes, and {min(size, len(data)) - _LENGTH.size} are there")
    header = _header(bytes(data[_LENGTH.size : begin]))
    metadata = _metadata(header.pop(METADATA, None))
    tensors = [_tensor(name, entry) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.bytes))
    at = 0
    for tensor in tensors:
        if tensor.offset != at:
            _refuse(f"tensor {tensor.name!r} begins at byte {tensor.offset} of the data, not {at}: a hole or an overlap")
        at += tensor.bytes
    if begin + at != size:
        _refuse(f"its tensors end at byte {begin + at} of the file, which has {size}")
    return Layout(tuple(tensor._replace(offset=begin + tensor.offset) for tensor in tensors), metadata, size)


def _refuse(why: str) -> NoReturn:
    raise MemInvalid(f"not a safetensors file: {why}")


def _pairs(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            _refuse(f"{name[:100]!r} is given twice")
        found[name] = value
    return found


def _constant(text: str) -> NoReturn:
    _refuse(f"{text} is no number of JSON")


def _header(raw: bytes) -> dict[str, Any]:
    if raw[:1] != b"{":
        _refuse("its header does not begin with {")
    try:
        # The whole is UTF-8 (a surrogate escaped in JSON is none, see `_text`).
        found = json.loads(raw.decode(), object_pairs_hook=_pairs, parse_constant=_constant)
    except UnicodeDecodeError:
        _refuse("its header is not UTF-8")
    except (ValueError, RecursionError) as error:
        _refuse(f"its header is not JSON: {str(error)[:100]}")
    return cast("dict[str, Any]", found)


def _text(value: object) -> bool:
    """Whether this is text that can be written down: JSON can spell halves of characters."""
    if type(value) is not str:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _metadata(value: object) -> dict[str, str]:
    if value is None:
        return {}
    if type(value) is not dict or not all(_text(k) and _text(v) for k, v in cast("dict[object, object]", value).items()):
        _refuse("its metadata is not a map of texts to texts")
    return cast("dict[str, str]", value)


def _numbers(value: object) -> tuple[int, ...] | None:
    """A list of whole numbers from 0 to 2^63 - 1."""
    if type(value) is not list:
        return None
    numbers = cast("list[object]", value)
    if not all(type(number) is int and 0 <= number <= _COUNT_MAX for number in numbers):
        return None
    return tuple(cast("list[int]", numbers))


def _tensor(name: str, entry: object) -> TensorInfo:
    """A tensor as its entry in the header says, at its offset in the data."""
    if not _text(name):
        _refuse("a tensor's name is not Unicode")
    if type(entry) is not dict or (fields := cast("dict[str, object]", entry)).keys() != {"dtype", "shape", "data_offsets"}:
        _refuse(f"tensor {name!r} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = fields["dtype"], _numbers(fields["shape"]), _numbers(fields["data_offsets"])
    if type(dtype) is not str:
        _refuse(f"the dtype of tensor {name!r} is not text")
    if shape is None:
        _refuse(f"the shape of tensor {name!r} is not a list of whole numbers")
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        _refuse(f"the offsets of tensor {name!r} are not a beginning and an end")
    size = _size(name, dtype, shape)
    if offsets[1] - offsets[0] != size:
        _refuse(f"tensor {name!r} is {dtype} {list(shape)[:16]}, {size} bytes, and has {offsets[1] - offsets[0]}")
    return TensorInfo(name, dtype, shape, offsets[0], size)


def _size(name: str, dtype: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor; what does not fit 63 bits on the way is refused."""
    size = DTYPE_BYTES.get(dtype)
    if size is None:
        raise MemInvalid(f"tensor {name!r} is of dtype {dtype[:100]!r}; known are {', '.join(DTYPE_BYTES)}")
    for length in shape:
        size *= length
        if length < 0 or size > _COUNT_MAX:
            raise MemInvalid(f"tensor {name!r} has a shape that no memory holds")
    return size
