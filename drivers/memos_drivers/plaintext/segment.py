"""One index segment as plain bytes: the documents of at most 4,096 cubes and their quantised vectors.

The kernel encrypts and stores segments; this module only lays out bytes. Little-endian throughout:

1. `4s` magic `MSEG`, `u8` format number 2, `u8` whether the texts are deflated, `u16` dimensions D (0: no vectors)
2. `u32` documents N, `u32` bytes of tables, `u32` bytes of texts as stored, `u32` CRC-32 of everything after the header
3. columns of N entries each: `16s` cube id, `u32` version, `i64` seq, `i64` valid_from, `i64` valid_to, `u8` flags
   (1: valid_from is given, 2: valid_to is given), `u32` namespace number, `u32` tag set number, `u32` bytes of text,
   and in format 2 `u32` sequence number + 1 (0: no place), `u32` position, `u32` speaker number + 1 (0: nobody)
4. tables: MessagePack `[namespaces: [text], tag sets: [[text]], sequences: [text], speakers: [text]]`; format 1 has two
5. texts: UTF-8, one after another, without separators
6. vectors: N × D `i8`; a row of zeros is no vector

`unpack` refuses with `ValueError`: another magic or format, lengths that do not add up, a wrong CRC, numbers that point
outside their table, and texts that are not UTF-8. Texts are stored as they are unless `deflate` is asked for: level 1
takes conversation turns from 199 to 112 bytes a document and loads no faster or slower (7 to 8 ms for 4,000).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

import msgpack
import numpy as np

from memos_syscalls import limits

from .dense import Int8
from .documents import Document
from .sequences import Place

MAGIC: Final = b"MSEG"
FORMAT: Final = 2
_HEADER: Final = struct.Struct("<4sBBHIIII")
_COLUMNS: Final = ("V16", "<u4", "<i8", "<i8", "<i8", "u1", "<u4", "<u4", "<u4", "<u4", "<u4", "<u4")
_COLUMNS_1: Final = _COLUMNS[:9]
"""Of segments that were written before documents had places."""
TEXTS_BYTES_MAX: Final = limits.GIB
"""No deflated text may grow beyond this."""


def pack(documents: Sequence[Document], vectors: Int8 | None = None, *, deflate: bool = False) -> bytes:
    """The segment of these documents. `vectors` has one int8 row for each, zeros where there is none."""
    if len({document.cube_id for document in documents}) > limits.SEGMENT_CUBES_MAX:
        raise ValueError(f"a segment lists at most {limits.SEGMENT_CUBES_MAX} cubes")
    if vectors is not None and len(vectors) != len(documents):
        raise ValueError("a segment has one vector row for each document")
    namespaces: dict[str, int] = {}
    tag_sets: dict[tuple[str, ...], int] = {}
    sequences: dict[str, int] = {}
    speakers: dict[str, int] = {}
    places = [d.place for d in documents]
    texts = [document.text.encode() for document in documents]
    columns: list[bytes | list[int]] = [
        b"".join(d.cube_id for d in documents),
        [d.version for d in documents],
        [d.seq for d in documents],
        [d.valid_from or 0 for d in documents],
        [d.valid_to or 0 for d in documents],
        [(d.valid_from is not None) | (d.valid_to is not None) << 1 for d in documents],
        [namespaces.setdefault(d.namespace, len(namespaces)) for d in documents],
        [tag_sets.setdefault(d.tags, len(tag_sets)) for d in documents],
        [len(text) for text in texts],
        [0 if place is None else 1 + sequences.setdefault(place.sequence, len(sequences)) for place in places],
        [0 if place is None else place.position for place in places],
        [1 + speakers.setdefault(place.speaker, len(speakers)) if place and place.speaker else 0 for place in places],
    ]
    fixed = b"".join(
        column if isinstance(column, bytes) else np.asarray(column, kind).tobytes()
        for column, kind in zip(columns, _COLUMNS, strict=True)
    )
    tables = bytes(msgpack.packb((list(namespaces), list(tag_sets), list(sequences), list(speakers)), use_bin_type=True) or b"")
    text = b"".join(texts)
    if deflate:
        text = zlib.compress(text, 1)
    dims = vectors.shape[1] if vectors is not None else 0
    body = b"".join((fixed, tables, text, vectors.tobytes() if vectors is not None else b""))
    return _HEADER.pack(MAGIC, FORMAT, deflate, dims, len(documents), len(tables), len(text), zlib.crc32(body)) + body


def unpack(data: bytes) -> tuple[list[Document], Int8 | None]:
    """The documents and vectors of a segment. Raises `ValueError` when the bytes are not a whole segment."""
    if len(data) < _HEADER.size:
        raise ValueError("the segment is shorter than its header")
    magic, number, deflated, dims, count, table_bytes, text_bytes, crc = _HEADER.unpack_from(data)
    if magic != MAGIC or number not in (1, FORMAT) or deflated > 1:
        raise ValueError(f"not an index segment of format 1 or {FORMAT}")
    kinds = _COLUMNS if number == FORMAT else _COLUMNS_1
    view = memoryview(data)[_HEADER.size :]
    if len(view) != count * (sum(np.dtype(kind).itemsize for kind in kinds) + dims) + table_bytes + text_bytes:
        raise ValueError("the segment's lengths do not add up")
    if zlib.crc32(view) != crc:
        raise ValueError("the segment's checksum is wrong")
    columns: list[np.ndarray[tuple[int], np.dtype[np.generic]]] = []
    at = 0
    for kind in kinds:
        columns.append(np.frombuffer(view, kind, count, at))
        at += count * np.dtype(kind).itemsize
    namespaces, tag_sets, sequences, speakers = _tables(view[at : at + table_bytes])
    at += table_bytes
    blob = _texts(view[at : at + text_bytes], bool(deflated))
    at += text_bytes
    vectors = np.frombuffer(view, np.int8, count * dims, at).reshape(count, dims).copy() if dims else None
    rows: list[list[int]] = [column.tolist() for column in columns[1:]]
    rows += [[0] * count] * (len(_COLUMNS) - len(kinds))
    versions, seqs, begins, ends, flags, spaces, tags, lengths, named, positions, spoken = rows
    tables = ((spaces, namespaces, 0), (tags, tag_sets, 0), (named, sequences, 1), (spoken, speakers, 1))
    if sum(lengths) != len(blob) or any(max(used, default=-1) >= len(table) + more for used, table, more in tables):
        raise ValueError("the segment points outside its tables")
    stops = list(accumulate(lengths))
    documents = [
        Document(
            cube_id, version, seq, namespaces[space], str(blob[stop - length : stop], "utf-8"), tag_sets[tag],
            begin if flag & 1 else None, end if flag & 2 else None,
            Place(sequences[sequence - 1], position, speakers[speaker - 1] if speaker else "") if sequence else None,
        )
        for cube_id, version, seq, begin, end, flag, space, tag, length, stop, sequence, position, speaker in zip(
            (bytes(row) for row in columns[0].tolist()), versions, seqs, begins, ends, flags, spaces, tags, lengths, stops,
            named, positions, spoken, strict=True,
        )
    ]  # fmt: skip
    return documents, vectors


def _tables(data: memoryview) -> tuple[list[str], list[tuple[str, ...]], list[str], list[str]]:
    try:
        namespaces, tag_sets, *more = msgpack.unpackb(data, raw=False)
        sequences, speakers = more or ([], [])
        return (
            [str(name) for name in namespaces], [tuple(str(tag) for tag in tags) for tags in tag_sets],
            [str(name) for name in sequences], [str(name) for name in speakers],
        )  # fmt: skip
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise ValueError("the segment's tables are damaged") from error


def _texts(data: memoryview, deflated: bool) -> bytes:
    if not deflated:
        return bytes(data)
    inflate = zlib.decompressobj()
    try:
        text = inflate.decompress(data, TEXTS_BYTES_MAX)
    except zlib.error as error:
        raise ValueError("the segment's texts are damaged") from error
    if not inflate.eof or inflate.unused_data:
        raise ValueError("the segment's texts are damaged")
    return text
