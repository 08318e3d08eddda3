"""Two versions of an adapter compared: how far each module moved, and which probes are answered otherwise.

    diff    two adapters, and a model or none → norms by module; with a model, its answers to the probes of either

Only probes that are answered otherwise are named, and at most `PROBES_MAX` are asked. An adapter of another model says
nothing; then the norms are all there is, and `why` says so.
"""

from __future__ import annotations

import functools
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, Final

from memos_drivers.host.contract import Context, Op, Steps
from memos_drivers.parametric.adapter import Adapter, applied, refusal, unpack
from memos_drivers.parametric.forms import Probe
from memos_drivers.parametric.fuse import difference
from memos_drivers.parametric.probes import ANSWER_TOKENS, Reader
from memos_drivers.parametric.taught import taught
from memos_drivers.parametric.teacher import Words

if TYPE_CHECKING:
    from memos_drivers.activation.engine import Engine
    from memos_drivers.host.ops import Workshop

PROBES_MAX: Final = 256


def operations(shop: Workshop) -> dict[str, Op]:
    def diff(context: Context, args: dict[str, Any], fds: list[int]) -> Steps:
        a, b = (unpack(fds[part["fd"]]) for part in args["parts"])
        modules = [list(one) for one in difference(a, b) if one.between]
        yield
        probes: list[list[str]] = []
        why: str | None = None
        if args["model"] is None:
            why = "this kernel does not run its model"
        else:
            engine = yield from shop.engine(args["model"], context)
            a, b = (unpack(fds[part["fd"]], engine.device) for part in args["parts"])
            for adapter in (a, b):
                refused = refusal(adapter, engine.model, engine.fingerprint)
                why = why or (None if refused is None else refused.detail)
            if why is None:
                probes = yield from _answers(engine, context, a, b)
        return {"modules": modules, "probes": probes, "why": why}, []

    return {"diff": diff}


def _answers(
    engine: Engine, context: Context, a: Adapter, b: Adapter
) -> Generator[None, None, list[list[str]]]:
    """Prompt, answer under `a`, answer under `b`, where they differ."""
    known = [probe for adapter in (a, b) for probe in taught(adapter.facts).probes]
    asked = list({(probe.prompt, probe.chat): probe for probe in known}.values())[:PROBES_MAX]
    said: list[list[str]] = []
    for at, adapter in enumerate((a, b)):
        context.progress(0.5 * at, f"asking {len(asked)} probes")
        said.append((yield from _said(engine, adapter, asked)))
    return [[probe.prompt, one, other] for probe, one, other in zip(asked, *said, strict=True) if one != other]


def _said(engine: Engine, adapter: Adapter, probes: Sequence[Probe]) -> Generator[None, None, list[str]]:
    reader = Reader(engine.model, Words(engine.layout))
    acting = functools.partial(applied, engine.model, [(adapter, 1.0)])
    asks = [reader.ask(probe.prompt, "", probe.chat) for probe in probes]
    rows = yield from reader.say(asks, ANSWER_TOKENS, reader.words.ends, acting)
    return [str(engine.tokenizer.decode(row, skip_special_tokens=True)).strip() for row in rows]
