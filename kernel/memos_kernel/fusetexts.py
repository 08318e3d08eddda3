"""mem_fuse of texts that is more than a decision: `auto`, and `summarise` with a model's help.

    sources, read at their versions → fused by rule (`plaintext/fuse_text.py`, `plaintext/summary.py`)
        → where a summary has to leave something out: the model shortens what is in it, and what it says is examined
        → the questions that the sources answer, asked of the result → committed with the sources at the versions read

- What a model says never stands in a summary as such: `summary.accepts` decides, and the statement stays as it was otherwise.
  Its text is in the record like any other content, so a replay runs no model.
- Without a model, or when it fails and the caller named none, a summary is made by rule; the recipe says so.
- `scores.kept` in the recipe is the share of questions that the result still answers, `lost` the first of the others. Fewer
  than `min_kept`, and nothing is committed (`ELOWQUALITY`).
- When a source gets a new version meanwhile, the job begins anew; when one is erased, it ends.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from memos_drivers.plaintext import summary
from memos_drivers.plaintext.fuse_probe import Question, kept_share, questions
from memos_drivers.plaintext.fuse_text import FusedText, Source, auto
from memos_syscalls import limits
from memos_syscalls.errors import MemError, MemInvalid, MemLowQuality, MemTooLarge

from . import lifecycle
from .decide import live_cube, several
from .decide_migrate import Fusion
from .decide_shape import fused_bytes
from .governance import Access, text_id
from .infer import reads_of
from .jobs import Job, still_there
from .products import distinct, of_the_present, params_of, record, submit
from .sources import opened_at, texts_of
from .state import Cube
from .vault import Vault
from .writes import Write

if TYPE_CHECKING:
    from .dispatch import Kernel

BY_RULE: Final = "none"
SHORTEN_TOKENS_MIN: Final = 12
"""Statements shorter than this are left alone."""
SHORTENED_MAX: Final = 32
"""Statements that a model is asked to shorten, the longest ones."""
LOST_MAX: Final = 8
PROMPT: Final = (
    "Shorten the sentence. Use only its own words, in their order, and keep every name, number and fact.\n\n"
    "Sentence: On Friday, after quite a long and tiring day, Tom finally drove to the old harbour in Genoa.\n"
    "Short: On Friday Tom drove to the harbour in Genoa.\n\n"
    "Sentence: {statement}\nShort:"
)


class AutoParams(BaseModel):
    """`params` of strategy `auto`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=limits.NAME_CHARS_MAX)] | None = None
    min_kept: Annotated[float, Field(ge=0, le=1)] = 0.9


class SummaryParams(AutoParams):
    """`params` of strategy `summarise`."""

    min_kept: Annotated[float, Field(ge=0, le=1)] = 0.0
    budget_tokens: Annotated[int, Field(ge=1, le=limits.CAPTURE_BYTES_MAX)] | None = None
    ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    model: Annotated[str, Field(min_length=1, max_length=limits.NAME_CHARS_MAX)] | None = None

    def settings(self) -> dict[str, Any]:
        given = {"budget_tokens": self.budget_tokens, "ratio": self.ratio}
        return {name: value for name, value in given.items() if value is not None}


def fuse_texts(kernel: Kernel, write: Write) -> None:
    params = params_of(AutoParams if write.request.strategy == "auto" else SummaryParams, write.request.params)
    several(write.request.cube_ids)
    if isinstance(params, SummaryParams) and params.budget_tokens is not None and params.ratio is not None:
        raise MemInvalid("a summary has budget_tokens or a ratio, not both")
    named = isinstance(params, SummaryParams) and params.model not in (None, BY_RULE)

    def work(job: Job) -> Any:
        return of_the_present(job, lambda: _fuse(kernel, write, job, params))

    submit(kernel, write, "fuse", work, wait=True, model=named)


async def _fuse(kernel: Kernel, write: Write, job: Job, params: AutoParams) -> dict[str, Any]:
    request, caller = write.request, write.turn.peer.caller
    distinct(request.cube_ids)
    access = Access(kernel.frozen_view(), caller)
    cubes = [live_cube(access, text, kernel.clock.now()) for text in request.cube_ids]
    for cube in cubes:
        lifecycle.require(text_id(cube.cube_id), cube.state, "merge")
    access.target(request.namespace or cubes[0].namespace)
    job.reads, slots = reads_of(access, [(cube, cube.version) for cube in cubes])
    still_there(kernel, job.reads, slots)
    job.report(0.05, "reading the sources")
    in_thread = functools.partial(kernel.runtime.in_thread, caller.principal)
    sources, through = await in_thread(_read, kernel.vault, access, cubes)
    job.report(0.1, "fusing")
    asked = await in_thread(questions, sources)
    recipe: dict[str, Any] = {"method": "fuse", "strategy": request.strategy}
    if isinstance(params, SummaryParams):
        recipe |= {"settings": settings} if (settings := params.settings()) else {}
        fused, how = await _summary(kernel, job, sources, params, asked)
        recipe |= how
    else:
        fused = await in_thread(auto, sources)
    content = fused_bytes(fused)
    kept, lost = await in_thread(kept_share, asked, [statement.text for statement in fused.statements])
    share = kept / len(asked) if asked else 1.0
    recipe |= {**fused.recipe, "scores": {"questions": len(asked), "kept": round(share, 4)}}
    if lost:
        recipe["lost"] = [one.question for one in lost[:LOST_MAX]]
    if share < params.min_kept:
        raise MemLowQuality(
            f"the fused text answers {kept} of {len(asked)} questions that its sources answer ({share:.2f}); "
            f"min_kept is {params.min_kept:g}", 'Give it more room (budget_tokens), or use strategy "merge".',
        )  # fmt: skip
    product = Fusion(params.name, [(cube.cube_id, cube.version) for cube in cubes], through, recipe)
    return await record(kernel, write, job, product, [content])


async def _summary(
    kernel: Kernel, job: Job, sources: list[Source], params: SummaryParams, asked: list[Question]
) -> tuple[FusedText, dict[str, Any]]:
    """A summary, and how it came to be."""
    in_thread = functools.partial(kernel.runtime.in_thread, job.caller.principal)
    made = await in_thread(summary.plan, sources)
    most = summary.budget(made, params.budget_tokens, params.ratio)
    shorter: dict[int, str] = {}
    how: dict[str, Any] = {"model": None}

    async def places() -> tuple[int, ...]:
        fitting = await in_thread(summary.chosen, made, most, shorter)
        return fitting if params.settings() else await in_thread(summary.completed, made, fitting, asked)

    if params.model == BY_RULE or not kernel.runtime.names:
        how["why"] = "the caller wanted no model" if params.model == BY_RULE else "this kernel runs no models"
    elif sum(summary.tokens(one.text) for one in made.statements) <= most:
        how["why"] = "every statement fits as it stands"
    else:
        try:
            how = await _shorten(kernel, job, made, await places(), params.model, shorter)
        except MemError as error:
            if params.model is not None:
                raise
            shorter.clear()
            how["why"] = f"the model failed: {error.errno}"
    fused = summary.composed(made, await places(), shorter)
    if params.budget_tokens is not None and (size := summary.tokens(fused.text)) > params.budget_tokens:
        raise MemTooLarge(f"the shortest statement has {size} tokens; budget_tokens is {params.budget_tokens}", "Raise it.")
    return fused, how


async def _shorten(
    kernel: Kernel, job: Job, made: summary.Plan, places: tuple[int, ...], model: str | None, shorter: dict[int, str]
) -> dict[str, Any]:
    """Ask the model for shorter forms of statements; those that say the same go into `shorter`."""
    texts = {place: made.statements[place].text for place in places}
    long = [place for place in places if summary.tokens(texts[place]) >= SHORTEN_TOKENS_MIN]
    long = sorted(sorted(long, key=lambda place: (-summary.tokens(texts[place]), place))[:SHORTENED_MAX])
    how: dict[str, Any] = {"model": None, "why": "no statement is long enough to be shortened"}
    for number, place in enumerate(long):
        job.report(0.1 + 0.8 * number / len(long), f"shortening statement {number + 1} of {len(long)}")
        asked = {
            "model": model, "tenant": job.caller.principal, "parts": [], "on_miss": "refuse", "recompute": 0.0,
            "messages": [{"role": "user", "content": PROMPT.format(statement=texts[place])}], "temperature": 0.0, "top_p": 1.0,
            "top_k": 0, "seed": 0, "stop": ["\n"], "max_new_tokens": 2 * summary.tokens(texts[place]),
        }  # fmt: skip
        said = (await kernel.runtime.host.run("infer", asked, [], who=job.caller.principal)).result
        form = summary.form_of(said["text"])
        if summary.accepts(texts[place], form):
            shorter[place] = form
        how = {"model": said["fingerprint"], "model_name": said["model"], "asked": len(long)}
    return how


def _read(vault: Vault, access: Access, cubes: list[Cube]) -> tuple[list[Source], list[tuple[bytes, int]]]:
    """The texts, and the members of compositions on the way to them. For a thread."""
    sources: list[Source] = []
    through: list[tuple[bytes, int]] = []
    size = 0
    for cube in cubes:
        opened = opened_at(vault, access, cube, cube.version)
        if cube.form != "plaintext" or opened.private.encoding != "text":
            raise MemInvalid(f"cube {text_id(cube.cube_id)} holds no text; only text can be fused so")
        found = texts_of(vault, access, cube, cube.version, current=False)
        size += found.bytes
        if size > limits.CAPTURE_BYTES_MAX:
            raise MemTooLarge(
                f"the sources have more than {limits.CAPTURE_BYTES_MAX} bytes", 'Fuse fewer, or with strategy "dedupe".'
            )
        read = [*((leaf.cube.cube_id, leaf.version) for leaf in found.leaves), *found.through]
        through += [one for one in read if one != (cube.cube_id, cube.version)]
        text, private = "\n".join(leaf.text for leaf in found.leaves), opened.private
        sources.append(Source(text_id(cube.cube_id), cube.version, text, private.valid_from, private.name, cube.created_time))
    return sources, through
