"""Adapters made of adapters, from elsewhere, and back into text.

    merge        adapters → one, asked the probes of all of them before it is handed out
    check        a payload from elsewhere → one that fits the model, as this kernel keeps adapters
    verbalise    an adapter → statements that its model makes with it, and does not make without
"""

from __future__ import annotations

import functools
import json
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

from memos_drivers.host.contract import Context, Op, Steps
from memos_drivers.parametric.adapter import Adapter, Packed, applied, pack, refusal, unpack
from memos_drivers.parametric.forms import NEUTRAL
from memos_drivers.parametric.fuse import fusing
from memos_drivers.parametric.probes import Reader
from memos_drivers.parametric.taught import Taught, taught, union
from memos_drivers.parametric.teacher import Words
from memos_drivers.parametric.verbalise import right, verbalise
from memos_syscalls.errors import MemInvalid, MemLowQuality

if TYPE_CHECKING:
    from memos_drivers.activation.engine import Engine
    from memos_drivers.host.ops import Workshop


def operations(shop: Workshop) -> dict[str, Op]:
    def merge(context: Context, args: dict[str, Any], fds: list[int]) -> Steps:
        engine = yield from shop.engine(args.get("model"), context)
        parents = shop.adapters(engine, args["parts"], fds)
        known = [taught(adapter.facts) for adapter, _weight in parents]
        context.progress(0.1, "merging")
        made = yield from fusing(
            [adapter for adapter, _weight in parents], args["strategy"], [weight for _adapter, weight in parents],
            density=args["density"], seed=args["seed"], rank=args["rank"],
        )  # fmt: skip
        context.progress(0.3, "asking it what its parents know")
        fused, told = Adapter(made.modules, made.alpha), union(known)
        scores = yield from _compared(engine, fused, [adapter for adapter, _weight in parents], known, args["min_share"])
        packed = pack(made.modules, made.alpha, {"base": engine.fingerprint}, told.told())
        return {**_described(engine, fused, told, packed), "scores": scores}, [packed.fd]

    def check(context: Context, args: dict[str, Any], fds: list[int]) -> Steps:
        engine = yield from shop.engine(args.get("model"), context)
        adapter = unpack(fds[0])
        if (refused := refusal(adapter, engine.model, engine.fingerprint)) is not None:
            raise refused
        known = taught(adapter.facts)
        yield
        packed = pack(adapter.modules, adapter.alpha, {"base": engine.fingerprint}, known.told())
        return _described(engine, adapter, known, packed), [packed.fd]

    def speak(context: Context, args: dict[str, Any], fds: list[int]) -> Steps:
        engine = yield from shop.engine(args.get("model"), context)
        [(adapter, weight)] = shop.adapters(engine, args["parts"], fds)
        known = taught(adapter.facts)
        if not known.facts:
            raise MemInvalid("nobody knows what this adapter was taught", "Distil one from texts instead.")
        reader, decode = Reader(engine.model, Words(engine.layout)), functools.partial(_text, engine)
        acting = functools.partial(applied, engine.model, [(adapter, weight)])
        said = yield from verbalise(reader, decode, known, acting, context.progress)
        return {
            "model": engine.name, "fingerprint": engine.fingerprint, "said": [one._asdict() for one in said],
        }, []  # fmt: skip

    return {"merge": merge, "check": check, "verbalise": speak}


def _text(engine: Engine, ids: Sequence[int]) -> str:
    text: str = engine.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def _described(engine: Engine, adapter: Adapter, known: Taught, packed: Packed) -> dict[str, Any]:
    return {
        "model": engine.name, "fingerprint": engine.fingerprint, "dtype": engine.dtype_name, "digest": packed.digest,
        "rank": adapter.rank, "alpha": adapter.alpha, "targets": adapter.descriptor["targets"], "bytes": packed.bytes,
        "facts": len(known.facts), "probes": len(known.probes), "subjects": known.subjects,
    }  # fmt: skip


def _compared(
    engine: Engine, fused: Adapter, parents: Sequence[Adapter], known: Sequence[Taught], least: float
) -> Generator[None, None, dict[str, Any]]:
    """What became of what each parent knows; refuses a fused adapter that forgot too much."""
    reader = Reader(engine.model, Words(engine.layout))
    rows: list[dict[str, Any]] = []
    for parent, mine in zip(parents, known, strict=True):
        alone = yield from right(reader, *mine, functools.partial(applied, engine.model, [(parent, 1.0)]))
        here = yield from right(reader, *mine, functools.partial(applied, engine.model, [(fused, 1.0)]))
        kept = sum(was and now for was, now in zip(alone, here, strict=True))
        rows.append({"probes": len(alone), "right": sum(alone), "kept": kept, "fused": sum(here)})
    share = min((row["kept"] / row["right"] for row in rows if row["right"]), default=1.0)
    apart = yield from reader.apart(NEUTRAL, functools.partial(applied, engine.model, [(fused, 1.0)]))
    scores = {"parents": rows, "share": round(share, 5), "kl": round(apart, 5)}
    if share < least:
        said = json.dumps({"scores": scores}, sort_keys=True)
        raise MemLowQuality(
            f"the fused adapter keeps {share:.3f} of what one of its parents answers rightly, below {least:g}: {said}",
            'Use other weights, strategy "cat", or train one anew with strategy "distil".',
        )
    return scores
