"""Files of conversation into cubes, so that running it twice adds nothing.

    kernel.ingest("talk.json", "alice/chat") -> IngestSummary(turns=240, new=240, batches=2, …)

Each turn becomes one cube: content `Speaker: text [photo: caption]`, semantic type `message`, tags of its session and
speaker, its place and source in the metadata, `valid_from` the time it was said, origin `import`, name its id in the file.

Cubes are made in batches, each one record: all or nothing. A batch's request id is a digest of exactly what is sent and
where, so the kernel applies it at most once; after a crash of either side, run the same command again and it goes on. A file
that grew adds its new batches, and the batch that the growth changed: keep one file per finished conversation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, get_args

from pydantic import Field, ValidationError

from memos_syscalls import messages as m
from memos_syscalls.errors import MemInvalid, MemTooLarge
from memos_syscalls.limits import CONTENT_INLINE_BYTES_MAX, NAME_CHARS_MAX, TAG_CHARS_MAX

from .formats import PARSERS, Format, Turn

BATCH_ITEMS_MAX: Final = 128
BATCH_BYTES_MAX: Final = 384 * 1024
"""Half a record: headers, keys and encryption add to what is counted here."""
assert BATCH_BYTES_MAX < CONTENT_INLINE_BYTES_MAX

Progress = Callable[[int, int], None]
"""Called with the turns that are done and all turns."""


class Ingestible(Protocol):
    """The two calls of a kernel that ingest needs."""

    def sys_info(self) -> m.SysInfoReply: ...

    def mem_alloc_many(
        self, items: Sequence[m.NewCube | Mapping[str, Any]], *, request_id: str | None = None
    ) -> m.MemAllocManyReply: ...


class IngestRequest(m.Request):
    """Turn a file of conversation or text into cubes; running it twice adds nothing."""

    file: str = Field(description="The file: a conversation, or text.")
    namespace: m.Namespace = Field(description="Where the cubes go.")
    format: Format | None = Field(None, description="What the file holds; guessed from its name and first bytes if absent.")


class IngestSummary(m.Reply):
    """What became of a file."""

    source: str
    format: str
    namespace: str
    turns: int
    new: int = Field(description="Turns that were not in the kernel before.")
    batches: int
    sessions: int
    offset: int = Field(description="The last record that holds its turns.")


def guess_format(path: Path) -> Format:
    """The format a file's name and first bytes suggest."""
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        return "jsonl"
    if suffix != ".json":
        return "text"
    return "locomo" if b'"session_1"' in path.read_bytes() else "chat-json"


def cube_of(turn: Turn, namespace: str, source: str) -> m.NewCube:
    """The cube that a turn becomes."""
    words = f"{turn.speaker}: {turn.text}" if turn.speaker else turn.text
    if turn.caption:
        words = f"{words} [photo: {turn.caption}]".lstrip()
    if len(words.encode()) > BATCH_BYTES_MAX:
        raise MemTooLarge(
            f"turn {turn.position} of session {turn.session} in {source} is over {BATCH_BYTES_MAX} bytes",
            "Split it into paragraphs, or store it with `alloc --namespace NS @FILE`.",
        )
    turn_id = turn.turn_id or f"D{turn.session}:{turn.position}"
    metadata: dict[str, Any] = {
        **turn.metadata,
        "session": turn.session,
        "position": turn.position,
        "dia_id": turn_id,
        "source": source,
    }
    if turn.speaker:
        metadata["speaker"] = turn.speaker
    tags = [f"session_{turn.session}", *([turn.speaker[:TAG_CHARS_MAX]] if turn.speaker else []), *turn.tags]
    fields: dict[str, Any] = {
        "namespace": namespace,
        "content": words,
        "name": turn_id[:NAME_CHARS_MAX],
        "tags": list(dict.fromkeys(tags)),
        "semantic_type": "message",
        "origin": "import",
        "metadata": metadata,
    }
    if turn.time is not None:
        fields["valid_from"] = turn.time
    try:
        return m.NewCube.model_validate(fields)
    except ValidationError as error:
        raise MemInvalid(f"turn {turn.position} of session {turn.session}: {error.errors()[0]['msg']}") from error


def batches_of(cubes: Sequence[m.NewCube]) -> Iterator[list[m.NewCube]]:
    """The cubes in order, cut where a batch would hold too many of them or too many bytes."""
    batch: list[m.NewCube] = []
    held = 0
    for cube in cubes:
        size = len(_canonical(cube))
        if batch and (len(batch) >= BATCH_ITEMS_MAX or held + size > BATCH_BYTES_MAX):
            yield batch
            batch, held = [], 0
        batch.append(cube)
        held += size
    if batch:
        yield batch


def request_id(namespace: str, index: int, batch: Sequence[m.NewCube]) -> str:
    """The same for the same content at the same place, and for nothing else."""
    digest = hashlib.sha256(f"{namespace}\0{index}\0".encode())
    for cube in batch:
        body = _canonical(cube)
        digest.update(len(body).to_bytes(4, "big") + body)
    return f"ingest:{index}:{digest.hexdigest()}"


def ingest(
    kernel: Ingestible, path: str | Path, format: str | None, namespace: str, progress: Progress | None = None
) -> IngestSummary:
    """Read a file and make its cubes; returns when all of them are durable. Errors are the kernel's own."""
    path = Path(path)
    try:
        chosen = format or guess_format(path)
        data = path.read_bytes()
    except OSError as error:
        raise MemInvalid(f"cannot read {path} ({error.strerror})", "Name a readable file.") from error
    if chosen not in PARSERS:
        raise MemInvalid(f"no format is called {chosen}", f"The formats are {', '.join(get_args(Format))}.")
    turns = PARSERS[chosen](data)
    cubes = [cube_of(turn, namespace, path.name) for turn in turns]
    head = offset = kernel.sys_info().head_offset
    done = new = batches = 0
    for index, batch in enumerate(batches_of(cubes)):
        reply = kernel.mem_alloc_many(batch, request_id=request_id(namespace, index, batch))
        done, batches = done + len(batch), index + 1
        new += len(batch) if reply.offset > head else 0
        offset = reply.offset
        if progress is not None:
            progress(done, len(cubes))
    return IngestSummary(
        source=path.name,
        format=chosen,
        namespace=namespace,
        turns=len(turns),
        new=new,
        batches=batches,
        sessions=len({turn.session for turn in turns}),
        offset=offset,
    )


def _canonical(cube: m.NewCube) -> bytes:
    return json.dumps(cube.model_dump(exclude_unset=True), sort_keys=True, ensure_ascii=False).encode()
