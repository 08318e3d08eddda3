"""The embedder child: `python -m memos_drivers.embed.child FD` serves one socket until it closes.

A message is `u32 length` + MessagePack map of that length + as many raw bytes as the map's `bytes` says (0 if absent):

1. parent → child, first: `{spec}`; child → parent: `{name, dims, fingerprint}`, or `{errno, detail}` and exit
2. parent → child: `{id, texts}`; child → parent: `{id, rows, dims, spans, bytes}` + little-endian float32 rows + of each
   text its tokens as 64 int8 each, or `{id, errno, detail}`. `spans` are the tokens' places, [[begin, end]] a text; absent
   if the model has no tokens to show

One thread, idle priority (which idles its disk reads too), no torch. The child ends when its parent does: the socket
closes. It reads no other descriptor and writes no file.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
from typing import Any, Final

import msgpack

LENGTH: Final = struct.Struct("<I")
HEADER_BYTES_MAX: Final = 16 * 1024 * 1024


def message(header: dict[str, Any], raw: bytes = b"") -> bytes:
    """The bytes of one message."""
    if raw:
        header = {**header, "bytes": len(raw)}
    body = bytes(msgpack.packb(header, use_bin_type=True) or b"")
    return LENGTH.pack(len(body)) + body + raw


def _receive(peer: socket.socket, size: int) -> bytes | None:
    """Exactly this many bytes, or None when the parent is gone."""
    parts = bytearray()
    while len(parts) < size:
        part = peer.recv(size - len(parts))
        if not part:
            return None
        parts += part
    return bytes(parts)


def _next(peer: socket.socket) -> dict[str, Any] | None:
    head = _receive(peer, LENGTH.size)
    if head is None:
        return None
    size = int(LENGTH.unpack(head)[0])
    if size > HEADER_BYTES_MAX:
        return None
    body = _receive(peer, size)
    return None if body is None else dict(msgpack.unpackb(body, raw=False))


def _yield_to_others() -> None:
    """Idle priority where the system allows it; it is a courtesy, so refusal is no error."""
    with contextlib.suppress(OSError):
        os.nice(19)
    if hasattr(os, "SCHED_IDLE"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def serve(peer: socket.socket) -> None:
    """Answers until the socket closes."""
    first = _next(peer)
    if first is None:
        return
    from memos_syscalls.errors import MemError

    from .basis import encoded
    from .model import load

    try:
        model = load(first["spec"])
    except MemError as error:
        peer.sendall(message({"errno": error.errno, "detail": error.detail}))
        return
    peer.sendall(message({"name": model.name, "dims": model.dims, "fingerprint": model.fingerprint}))
    while (request := _next(peer)) is not None:
        try:
            rows, tokens = encoded(model, request["texts"])
        except MemError as error:
            peer.sendall(message({"id": request["id"], "errno": error.errno, "detail": error.detail}))
            continue
        raw = rows.astype("<f4", copy=False).tobytes()
        head: dict[str, Any] = {"id": request["id"], "rows": rows.shape[0], "dims": rows.shape[1]}
        if tokens is not None:
            head["spans"] = [one.spans for one in tokens]
            raw += b"".join(one.rows.tobytes() for one in tokens)
        peer.sendall(message(head, raw))


def main() -> None:
    # Before numpy and onnxruntime are imported: they read it once.
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    _yield_to_others()
    # The parent going away, even in the middle of an answer, is the normal end.
    with socket.socket(fileno=int(sys.argv[1])) as peer, contextlib.suppress(ConnectionError, KeyboardInterrupt):
        serve(peer)


if __name__ == "__main__":
    main()
