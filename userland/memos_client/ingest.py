"""Files of conversation and documents into cubes, so that running it twice adds nothing.

    kernel.ingest("talk.json", "alice/chat") -> IngestSummary(turns=240, new=240, batches=2, …)

Each turn becomes one cube, a long one several: content `Speaker: text [photo: caption]`, or the headings it stands under
and the passage; a semantic type, times and names by rule (`reading`); tags of its session and speaker, its place and source
in the metadata, `valid_from` the time it was said, origin `import`, name its id in the file.

The whole file is read before the first cube is made. Cubes are made in batches, each one record: all or nothing. A batch's
request id is a digest of exactly what is sent and where, so the kernel applies it at most once; after a crash of either
side, run the same command again and it goes on. A file that grew adds its new batches, and the batch that the growth
changed: keep one file per finished conversation.

With `extract=Endpoint(url, model, key_env)` a model is then asked for facts (`reading.facts`), which become cubes of their
own. Whatever it answers, or if it does not, the turns are there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, get_args

import msgpack
from pydantic import Field, ValidationError

from memos_syscalls import messages as m
from memos_syscalls.errors import MemInvalid, MemTooLarge
from memos_syscalls.limits import CONTENT_INLINE_BYTES_MAX, METADATA_BYTES_MAX, MIB, NAME_CHARS_MAX, TAG_CHARS_MAX

from .formats import PARSERS, Format, Turn
from .reading.endpoint import Endpoint as Endpoint
from .reading.extraction import Extraction, Store
from .reading.extraction import extract as extract_facts
from .reading.turns import read

FILE_BYTES_MAX: Final = 64 * MIB
"""Largest file: all of it is in memory while it is read."""
METADATA_DEPTH_MAX: Final = 16
BATCH_ITEMS_MAX: Final = 128
BATCH_BYTES_MAX: Final = 384 * 1024
"""Half a record: headers, keys and encryption add to what is counted here."""
assert BATCH_BYTES_MAX < CONTENT_INLINE_BYTES_MAX

Progress = Callable[[int, int], None]
"""Called with the turns that are done and all turns."""


class Ingestible(Store, Protocol):
    """The calls of a kernel that ingest needs: `mem_alloc_many`, `sys_info`, and for facts `mem_list`."""

    def sys_info(self) -> m.SysInfoReply: ...


class IngestRequest(m.Request):
    """Turn a file of conversation, text or Markdown into cubes; running it twice adds nothing."""

    file: str = Field(description="The file: a conversation, or text.")
    namespace: m.Namespace = Field(description="Where the cubes go.")
    format: Format | None = Field(None, description="What the file holds; guessed from its name and first bytes if absent.")
    extract_url: str | None = Field(
        None, description="An OpenAI-compatible endpoint, up to `/v1`, whose model is asked for facts in addition to the turns."
    )
    extract_model: str | None = Field(None, description="The model to ask there.")
    extract_key_env: str | None = Field(None, description="The environment variable that holds the endpoint's key.")

    def endpoint(self) -> Endpoint | None:
        """The endpoint that these arguments name, if they name one."""
        if self.extract_url is None and self.extract_model is None and self.extract_key_env is None:
            return None
        if self.extract_url is None or self.extract_model is None:
            raise MemInvalid("extract_url and extract_model go together", "Give both, or neither.")
        return Endpoint(self.extract_url, self.extract_model, self.extract_key_env)


class IngestSummary(m.Reply):
    """What became of a file."""

    source: str
    format: str
    namespace: str
    turns: int = Field(description="Cubes of turns and passages; a long turn is several.")
    new: int = Field(description="Those of them that were not in the kernel before.")
    batches: int
    sessions: int
    offset: int = Field(description="The last record that holds its turns or facts.")
    times: int = Field(0, description="Expressions of time that were resolved.")


class IngestFacts(IngestSummary):
    """What became of a file, and of the facts that an endpoint was asked for."""

    facts: int = Field(description="Facts that the endpoint named and that are stored.")
    new_facts: int = Field(description="Those of them that were not in the kernel before.")
    without_facts: dict[str, int] = Field(description="How many turns no fact stands for, by reason.")
    dropped_facts: dict[str, int] = Field(description="How many of the facts named were not kept, by reason.")


def guess_format(path: Path) -> Format:
    """The format a file's name and first bytes suggest."""
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        return "jsonl"
    if suffix in (".md", ".markdown", ".mdown"):
        return "markdown"
    if suffix != ".json":
        return "text"
    return "locomo" if b'"session_1"' in path.read_bytes() else "chat-json"


def cube_of(turn: Turn, namespace: str, source: str) -> m.NewCube:
    """The cube that a turn becomes."""
    words = f"{turn.speaker}: {turn.text}" if turn.speaker else turn.text
    if turn.caption:
        words = f"{words} [photo: {turn.caption}]".lstrip()
    if turn.context:
        words = f"{turn.context}\n{words}"
    where = f"turn {turn.position} of session {turn.session}"
    if len(words.encode()) > BATCH_BYTES_MAX:
        raise MemTooLarge(
            f"{where} in {source} is over {BATCH_BYTES_MAX} bytes",
            "Split it into paragraphs, or store it with `alloc --namespace NS @FILE`.",
        )
    turn_id = turn.turn_id or f"D{turn.session}:{turn.position}"
    placed: dict[str, Any] = {
        "session": turn.session,
        "position": turn.position,
        "dia_id": turn_id,
        "source": source,
    }
    if turn.part:
        placed["part"] = list(turn.part)
    if turn.speaker:
        placed["speaker"] = turn.speaker
    part = f"/{turn.part[0]}" if turn.part else ""
    tags = [f"session_{turn.session}"[:TAG_CHARS_MAX], *([turn.speaker[:TAG_CHARS_MAX]] if turn.speaker else []), *turn.tags]
    fields: dict[str, Any] = {
        "namespace": namespace,
        "content": words,
        "name": turn_id[: NAME_CHARS_MAX - len(part)] + part,
        "tags": list(dict.fromkeys(tags)),
        "semantic_type": turn.kind or "message",
        "origin": "import",
        "metadata": _bounded({**turn.metadata, **placed}, where),
    }
    if turn.time is not None:
        fields["valid_from"] = turn.time
    try:
        return m.NewCube.model_validate(fields)
    except ValidationError as error:
        raise MemInvalid(f"{where}: {error.errors()[0]['msg']}") from error


def _bounded(metadata: dict[str, Any], where: str) -> dict[str, Any]:
    """Metadata as the kernel takes it, found out before the first cube is made."""
    if _depth(metadata) > METADATA_DEPTH_MAX:
        raise MemInvalid(f"{where}: its metadata is nested deeper than {METADATA_DEPTH_MAX}", "Flatten it.")
    try:
        data: bytes = msgpack.Packer(use_bin_type=True).pack(metadata)
    except (ValueError, OverflowError, TypeError) as error:
        raise MemInvalid(f"{where}: its metadata holds a number or a text that cannot be stored") from error
    if len(data) > METADATA_BYTES_MAX:
        raise MemTooLarge(f"{where}: its metadata is over {METADATA_BYTES_MAX} bytes", "Put less into it.")
    return metadata


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max((_depth(item) for item in value.values()), default=0)
    return 1 + max((_depth(item) for item in value), default=0) if isinstance(value, list) else 0


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
    kernel: Ingestible, path: str | Path, format: str | None, namespace: str, progress: Progress | None = None,
    *, extract: Endpoint | None = None,
) -> IngestSummary:  # fmt: skip
    """Read a file and make its cubes; returns when all of them are durable. Errors are the kernel's own."""
    path = Path(path)
    key = None if extract is None else extract.key()
    chosen, data = _content(path, format)
    turns = read(PARSERS[chosen](data))
    if not turns:
        raise MemInvalid(f"{path.name} holds nothing to remember, read as {chosen}", "Check the file, and `--format`.")
    cubes = [cube_of(turn, namespace, path.name) for turn in turns]
    head = offset = kernel.sys_info().head_offset
    done = new = batches = 0
    ids: list[str] = []
    for index, batch in enumerate(batches_of(cubes)):
        reply = kernel.mem_alloc_many(batch, request_id=request_id(namespace, index, batch))
        done, batches = done + len(batch), index + 1
        new += len(batch) if reply.offset > head else 0
        offset = reply.offset
        ids += [item.cube_id for item in reply.items]
        if progress is not None:
            progress(done, len(cubes))
    summary = IngestSummary(
        source=path.name,
        format=chosen,
        namespace=namespace,
        turns=len(turns),
        new=new,
        batches=batches,
        sessions=len({turn.session for turn in turns}),
        offset=offset,
        times=sum(map(_times, turns)),
    )
    if extract is None:
        return summary
    return _with_facts(summary, extract_facts(kernel, extract, key, turns, ids, namespace, path.name, head))


def _content(path: Path, format: str | None) -> tuple[Format, bytes]:
    """The format and the bytes of a file."""
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise MemTooLarge(f"{path.name} is over {FILE_BYTES_MAX} bytes", "Split it into several files.")
        chosen = format or guess_format(path)
        data = path.read_bytes()
    except OSError as error:
        raise MemInvalid(f"cannot read {path} ({error.strerror})", "Name a readable file.") from error
    for known in get_args(Format):
        if chosen == known:
            return known, data
    raise MemInvalid(f"no format is called {chosen}", f"The formats are {', '.join(get_args(Format))}.")


def _times(turn: Turn) -> int:
    found = turn.metadata.get("times")
    return len(found) if isinstance(found, list) else 0  # The file's own metadata may say anything under this name.


def _with_facts(summary: IngestSummary, done: Extraction) -> IngestFacts:
    counts = {"facts": done.facts, "new_facts": done.new, "offset": max(summary.offset, done.offset)}
    reasons = {"without_facts": dict(done.without), "dropped_facts": dict(done.dropped)}
    return IngestFacts.model_validate({**summary.model_dump(), **counts, **reasons})


def _canonical(cube: m.NewCube) -> bytes:
    return json.dumps(cube.model_dump(exclude_unset=True), sort_keys=True, ensure_ascii=False).encode()
