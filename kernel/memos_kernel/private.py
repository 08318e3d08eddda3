"""The private part of a version: everything about it that the log may hold only as ciphertext.

Plaintext of the private part: MessagePack array in the order of `Private`'s fields; it begins with H(arguments).
`canonical` is the encoding under that hash: maps sorted by key, floats as their IEEE bytes, contents as their digest.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

from . import crypto
from .events import Damaged, pack, unpack

_APART = frozenset(("request_id", "deadline_ms", "fd", "content"))
"""Not arguments, or hashed by themselves."""
_DEEP = frozenset((dict, list, tuple, float))


class Private(NamedTuple):
    """Private header fields of one version. `embedding` is float32 little-endian."""

    args_hash: bytes
    name: str | None = None
    tags: list[str] = []  # noqa: RUF012  # A shared default that nobody changes: the tuple is rebuilt by _replace.
    semantic_type: str | None = None
    origin: str = "user_input"
    metadata: dict[str, Any] = {}  # noqa: RUF012
    valid_from: int | None = None
    valid_to: int | None = None
    priority: int = 0
    labels: list[str] = []  # noqa: RUF012
    encoding: str = "text"
    embedding: bytes | None = None
    recipe: dict[str, Any] | None = None
    note: str | None = None


def encode(private: Private) -> bytes:
    data: bytes = pack(private)
    return data


def decode(data: bytes) -> Private:
    raw = unpack(data)
    if type(raw) is not list or len(raw) != len(Private._fields):
        raise Damaged("not a private part of format 1")
    return Private(*raw)


def canonical(value: Any) -> Any:
    """The same value in a form whose encoding does not depend on key order or on how floats are written."""
    if isinstance(value, float):
        return [b"float", struct.pack(">d", value)]
    if isinstance(value, Mapping):
        return [[key, canonical(value[key])] for key in sorted(value, key=str)]
    if isinstance(value, (list, tuple)):
        return [canonical(item) for item in value]
    return value


def args_hash(number: int, args: Mapping[str, Any], content: bytes | memoryview | None) -> bytes:
    """H(arguments) of a call: what makes a repeated request id the same request."""
    flat = [[k, canonical(v) if type(v) in _DEEP else v] for k, v in sorted(args.items()) if v is not None and k not in _APART]
    digest = None if content is None else crypto.sha256(content)
    return crypto.sha256(pack((number, flat, digest)))
