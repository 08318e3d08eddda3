"""What a mutating call carries on its way to a decision: its contents, its ids, and how it is given up."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from memos_syscalls import limits
from memos_syscalls import messages as m
from memos_syscalls.errors import MemCanceled, MemInvalid, MemTooLarge

from . import crypto
from .events import Slot
from .private import args_hash
from .state import cube_id_of
from .supersession import Checked
from .turn import Turn
from .vault import Vault


class Write:
    """A mutating call on its way to a decision."""

    __slots__ = (
        "_hash", "args", "check_again", "checked", "contents", "mac", "product", "request", "reserved", "slot", "turn",
    )  # fmt: skip

    def __init__(self, turn: Turn, request: Any, args: dict[str, Any]) -> None:
        self.turn = turn
        self.request = request
        self.args = args
        self.contents: list[Any] = []
        """Contents as bytes, or as mapped descriptors: one, or one for each item."""
        self.mac: bytes | None = None
        """MAC of the request id."""
        self.slot: Slot | None = None
        """Key that stored content is sealed under."""
        self.reserved: Slot | None = None
        """The same, when it was taken for this call."""
        self.product: Any = None
        """What a job made for this call."""
        self.checked: Checked | None = None
        """What a check for conflicts found, for a call that asked for one."""
        self.check_again: Callable[[], None] = lambda: None
        """Called instead of deciding when what was found has changed meanwhile."""
        self._hash: bytes | None = None

    def made(self, turn: Turn, product: Any) -> Write:
        """The write that records what a job made for this call: who repeats the call finds that record."""
        own = Write(turn, self.request, self.args)
        own.product, own.mac, own._hash = product, self.mac, self.args_hash()
        return own

    def args_hash(self) -> bytes:
        """H(arguments), computed once; over large contents in a thread."""
        if self._hash is None:
            content = None
            if self.contents:
                one = len(self.contents) == 1
                content = self.contents[0] if one else b"".join(crypto.sha256(c) for c in self.contents)
            self._hash = args_hash(self.turn.syscall.number, self.args, content)
        return self._hash


class Abandoned:
    """Cancels a long write: it is answered now, and drops its work before it would apply it."""

    __slots__ = ("_turn",)

    def __init__(self, turn: Turn) -> None:
        self._turn = turn

    def cancel(self) -> None:
        if not self._turn.appended:
            self._turn.fail(MemCanceled("the call was cancelled"))


class Fresh:
    """Ids for one decision: cube ids of the record's time, slots from the vault."""

    __slots__ = ("_given", "_made", "_time", "_vault")

    def __init__(self, vault: Vault, time: int, given: Slot | None = None) -> None:
        self._vault = vault
        self._time = time
        self._given = given
        self._made = -1

    def cube_id(self) -> bytes:
        self._made += 1
        return cube_id_of(self._time, self._made, int.from_bytes(self._vault.randoms.take(5), "big"))

    def slot(self) -> Slot:
        if self._given is not None:
            slot, self._given = self._given, None
            return slot
        return self._vault.take_slot()


def contents_of(request: Any, mapped: list[memoryview]) -> list[Any]:
    """The contents of a call as bytes, or as the mapped descriptors that hold them."""
    if isinstance(request, m.MemAllocMany):
        items: list[Any] = list(request.items)
    elif isinstance(request, (m.MemAlloc, m.MemWrite)):
        items = [request]
    else:
        return []
    found: list[Any] = []
    for item in items:
        content, fd = item.content, item.fd
        if content is not None:
            found.append(content.encode() if isinstance(content, str) else content)
        elif fd is not None:
            if fd >= len(mapped):
                raise MemInvalid(f"fd names descriptor {fd}, but {len(mapped)} came with the call")
            if len(mapped[fd]) > limits.CONTENT_BYTES_MAX:
                raise MemTooLarge(f"content of {len(mapped[fd])} bytes is over the limit of {limits.CONTENT_BYTES_MAX}")
            content = mapped[fd] if crypto.is_chunked(len(mapped[fd])) else bytes(mapped[fd])
            if isinstance(content, bytes) and contents_are_text(item):
                check_text(content)
            found.append(content)
        else:
            continue
        if crypto.is_chunked(len(found[-1])) and isinstance(request, m.MemAllocMany):
            raise MemTooLarge(
                f"an item of {len(found[-1])} bytes is over {limits.PAYLOAD_CHUNK_BYTES}, the most that one of many may have",
                "Make this cube by itself with mem_alloc.",
            )
        if fd is None and len(found[-1]) > limits.CONTENT_INLINE_BYTES_MAX:
            raise MemTooLarge(f"inline content of {len(found[-1])} bytes is over {limits.CONTENT_INLINE_BYTES_MAX}")
    return found


def invalid(error: ValidationError) -> MemInvalid:
    """The first problems of a request, in words."""
    said = [
        f"{'.'.join(str(p) for p in e['loc']) or 'request'}: {e['msg'].removeprefix('Value error, ')}"
        for e in error.errors()[:3]
    ]
    return MemInvalid("; ".join(said))


def contents_are_text(item: Any) -> bool:
    """Whether a descriptor is said to hold text."""
    return item.fd is not None and (item.encoding or "text") == "text" and getattr(item, "form", "plaintext") == "plaintext"


def check_text(content: bytes | memoryview) -> None:
    """Refuse bytes that are said to be text and are not UTF-8."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(content, True)
    except UnicodeDecodeError as error:
        raise MemInvalid(
            f"the content is not UTF-8 at byte {error.start}", 'Pass encoding="bytes" for what is not text.'
        ) from error
