"""What the driver host does with adapters.

    distil    texts → an adapter that knows them, examined before it is handed out
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, Final

from memos_drivers.host.contract import Context, Op, Steps
from memos_drivers.lm.sampling import Options
from memos_drivers.parametric import train
from memos_drivers.parametric.adapter import pack
from memos_drivers.parametric.facts import Fact, Text, facts_of
from memos_drivers.parametric.forms import Form, accept, requests_for
from memos_drivers.parametric.setting import Spec
from memos_syscalls import limits
from memos_syscalls.errors import MemInvalid, MemTooLarge

if TYPE_CHECKING:
    from memos_drivers.activation.engine import Engine
    from memos_drivers.host.ops import Workshop

BOUNDS: Final = {"max_kl": "kl", "min_locality": "same", "min_efficacy": "efficacy", "min_paraphrase": "likelier"}
"""Limits that a caller may set, and what the examination calls them."""
GREEDY: Final = Options(0.0, 1.0, 0, None)
WRITTEN_TOKENS_MAX: Final = 192


def operations(shop: Workshop) -> dict[str, Op]:
    def distil(context: Context, args: dict[str, Any], fds: list[int]) -> Steps:
        engine = yield from shop.engine(args.get("model"), context)
        found = facts_of([Text(str(text["content"]), int(text["when"])) for text in args["texts"]])
        if not found.facts:
            raise MemInvalid("the memories state nothing that could be learnt", "Name memories that say something.")
        if len(found.facts) > limits.DISTIL_FACTS_MAX:
            raise MemTooLarge(
                f"the memories state {len(found.facts)} facts; one adapter takes {limits.DISTIL_FACTS_MAX}",
                "Make several adapters of them.",
            )
        params: dict[str, Any] = dict(args["params"])
        writer: str | None = params.pop("writer", None)
        written: list[Form] = []
        if writer is not None:
            written = yield from _written(shop, writer, context, found.facts)
        bounds = {name: params.pop(given) for given, name in BOUNDS.items() if given in params}
        spec = Spec()._replace(**params)
        spec = spec._replace(limits=spec.limits._replace(**bounds))
        made = yield from train.distil(engine.model, engine.layout, found.facts, spec, written, context.progress)
        packed = pack(made.modules, made.alpha, {"base": engine.fingerprint}, told(made, written))
        subjects = sorted({str(fact["subject"]) for fact in made.facts})
        return {
            "model": engine.name, "fingerprint": engine.fingerprint, "dtype": engine.dtype_name, "digest": packed.digest,
            "rank": made.rank, "alpha": made.alpha, "targets": sorted({path.rpartition(".")[2] for path in made.modules}),
            "facts": len(made.facts), "subjects": subjects, "probes": len(made.probes), "scores": made.scores,
            "dropped": made.dropped, "left_out": found.left_out, "written": len(written), "seconds": made.seconds,
            "steps": made.steps, "bytes": packed.bytes,
            "conflicts": [{"kept": kept.statement, "dropped": dropped.statement} for kept, dropped in found.conflicts],
        }, [packed.fd]  # fmt: skip

    return {"distil": distil}


def told(made: train.Distilled, written: Sequence[Form]) -> dict[str, Any]:
    """What the payload says that the adapter was taught, as `taught` reads it; and how well each fact was learnt, in order."""
    facts = [{field: fact[field] for field in Fact._fields} for fact in made.facts]
    learnt = [{field: value for field, value in fact.items() if field not in Fact._fields} for fact in made.facts]
    return {"facts": facts, "probes": made.probes, "forms": [form._asdict() for form in written], "learnt": learnt}


def _written(
    shop: Workshop, writer: str, context: Context, facts: Sequence[Fact]
) -> Generator[None, None, list[Form]]:
    """Forms that another of the host's models words, greedily; what does not state the fact is left out."""
    engine: Engine = yield from shop.engine(writer, context)
    found: list[Form] = []
    for number, fact in enumerate(facts):
        context.progress(0.1 * number / len(facts), f"{writer} words forms")
        for request in requests_for(fact):
            said = [{"role": "system", "content": request.system}, {"role": "user", "content": request.user}]
            begun = yield from engine.attach("", said, [], 0.0)
            answer = yield from engine.answer(begun, GREEDY, WRITTEN_TOKENS_MAX, [], lambda _text: None)
            forms = (accept(fact, line) for line in str(answer["text"]).splitlines())
            found += [form._replace(fact=number) for form in forms if form is not None]
    return list(dict.fromkeys(found))
