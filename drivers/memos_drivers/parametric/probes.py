"""The commit gate: what a model with an adapter says to held-out prompts, beside what it says without.

    efficacy     the statement's prompt is continued with the object, token by token the likeliest
    paraphrase   the same for other wordings (`greedy`), or the object is likelier than what the base says there (`likelier`)
    question     the object is in the answer to a chat question, within `ANSWER_TOKENS`
    same         the first token behind a prompt that is none of the facts' business is the base's own
    locality     there the base's own token is still likelier than the fact's object
    leak         there the first token is an object's, and the base's was not
    kl           nats per token from the base, on neutral text

`examine` asks all that, of an adapter just trained and of any that exists (fused, imported, an older version). A generator:
`acting` makes the adapter act, and is entered for one batch at a time. The model itself answers, not a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, NamedTuple, cast

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from memos_drivers.parametric.facts import Fact
from memos_drivers.parametric.forms import Negative, Probe
from memos_drivers.parametric.teacher import Words

BATCH_TOKENS_MAX: Final = 256
ANSWER_TOKENS: Final = 24
NEUTRAL_TOKENS_MAX: Final = 128
Acting = Callable[[], AbstractContextManager[None]]


class Ask(NamedTuple):
    """A prompt's ids behind a prefix that others share, and an answer's. `rival` is another token that may stand "
    "there first."""

    before: tuple[int, ...]
    ids: tuple[int, ...]
    answer: tuple[int, ...]
    rival: int = -1


class Heard(NamedTuple):
    """Log-likelihood of the answer; whether it is the greedy one; the first token; log-likelihoods of the answer's first token
    and of the rival."""

    likely: float
    greedy: bool
    first: int
    begins: float
    rival: float


class Reader:
    """A model that is asked many short things."""

    def __init__(self, model: Any, words: Words) -> None:
        self._model, self.words = model, words
        self._body, self._head = model.base_model, model.get_output_embeddings()
        self._device = next(model.parameters()).device

    def ask(self, prompt: str, answer: str, chat: bool) -> Ask:
        before = self.words.prefix if chat else ()
        ids, wanted = self.words.answer(prompt, answer, chat)
        return Ask(before, tuple(ids), tuple(wanted))

    def hear(self, asked: Sequence[Ask], acting: Acting = nullcontext) -> Generator[None, None, list[Heard]]:
        found: dict[int, Heard] = {}
        for batch in _batches(asked, lambda one: len(one.ids) + len(one.answer), alike=False):
            with torch.inference_mode(), acting():
                found.update(zip(batch, self._heard([asked[n] for n in batch]), strict=True))
            yield
        return [found[n] for n in range(len(asked))]

    def say(
        self, asked: Sequence[Ask], tokens: int, ends: frozenset[int], acting: Acting = nullcontext
    ) -> Generator[None, None, list[list[int]]]:
        """Greedy continuations of the prompts."""
        found: dict[int, list[int]] = {}
        for batch in _batches(asked, lambda one: len(one.ids), alike=True):
            rows = [asked[n] for n in batch]
            made: list[torch.Tensor] = []
            with torch.inference_mode(), acting():
                cache, at = self._begun(rows[0].before, len(rows))
                ids = torch.tensor([row.ids for row in rows], device=self._device)
                made.append(self._next(ids, cache, at))
            at += ids.shape[1]
            yield
            while len(made) < tokens and not all(set(row) & ends for row in torch.stack(made, 1).tolist()):
                with torch.inference_mode(), acting():
                    for _ in range(min(4, tokens - len(made))):
                        made.append(self._next(made[-1][:, None], cache, at))
                        at += 1
                yield
            for n, row in zip(batch, torch.stack(made, 1).tolist(), strict=True):
                stop = next((k for k, token in enumerate(row) if token in ends), len(row))
                found[n] = row[:stop]
        return [found[n] for n in range(len(asked))]

    def apart(self, texts: Sequence[str], acting: Acting) -> Generator[None, None, float]:
        """Mean KL of the base from the model with the adapter, per token of these texts."""
        total, count = 0.0, 0
        for text in texts:
            ids = [*self.words.lead, *self.words.text(text)][:NEUTRAL_TOKENS_MAX]
            if len(ids) < 2:
                continue
            batch = torch.tensor([ids], device=self._device)
            with torch.inference_mode():
                base = self._logits(self._body(input_ids=batch, use_cache=False).last_hidden_state[0])
            yield
            with torch.inference_mode(), acting():
                here = self._logits(self._body(input_ids=batch, use_cache=False).last_hidden_state[0])
                total += float((base.exp() * (base - here)).sum())
                count += len(ids)
            yield
        return total / max(1, count)

    def _logits(self, states: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self._head(states)).float().log_softmax(-1)

    def _begun(self, before: tuple[int, ...], rows: int) -> tuple[Any, int]:
        """A cache that holds the prefix for so many rows."""
        cache = DynamicCache()
        if before:
            alone = DynamicCache()
            self._body(input_ids=torch.tensor([before], device=self._device), past_key_values=alone, use_cache=True)
            for number, layer in enumerate(cast(Any, alone).layers):
                cache.update(*(held.expand(rows, -1, -1, -1) for held in (layer.keys, layer.values)), number)
        return cache, len(before)

    def _states(self, ids: torch.Tensor, cache: Any, at: int) -> torch.Tensor:
        places = torch.arange(at, at + ids.shape[1], device=self._device)[None]
        out = self._body(input_ids=ids, past_key_values=cache, position_ids=places, use_cache=True)
        return cast(torch.Tensor, out.last_hidden_state)

    def _next(self, ids: torch.Tensor, cache: Any, at: int) -> torch.Tensor:
        return cast(torch.Tensor, self._head(self._states(ids, cache, at)[:, -1])).argmax(-1)

    def _heard(self, rows: Sequence[Ask]) -> list[Heard]:
        cache, at = self._begun(rows[0].before, len(rows))
        # Padding stands behind, where nothing that counts sees it.
        ids = pad_sequence([torch.tensor((*row.ids, *row.answer), device=self._device) for row in rows], batch_first=True)
        states = self._states(ids, cache, at)
        which = [(n, len(row.ids) - 1 + k) for n, row in enumerate(rows) for k in range(max(1, len(row.answer)))]
        said = self._logits(states[[n for n, _ in which], [k for _, k in which]])
        tops = said.argmax(-1).tolist()
        made: list[Heard] = []
        begin = 0
        for row in rows:
            end = begin + max(1, len(row.answer))
            likely = [float(said[begin + k, token]) for k, token in enumerate(row.answer)]
            greedy = bool(row.answer) and tops[begin:end] == list(row.answer)
            rival = float(said[begin, row.rival]) if row.rival >= 0 else 0.0
            made.append(Heard(sum(likely), greedy, int(tops[begin]), likely[0] if likely else 0.0, rival))
            begin = end
        return made


def _batches(asked: Sequence[Ask], length: Callable[[Ask], int], alike: bool) -> list[list[int]]:
    """Numbers of asks with one prefix and like length (`alike`: the same)."""
    made: list[list[int]] = []
    for number in sorted(range(len(asked)), key=lambda n: (asked[n].before, length(asked[n]), n)):
        longest = length(asked[number])
        first = asked[made[-1][0]] if made else None
        joins = first is not None and first.before == asked[number].before and (not alike or length(first) == longest)
        if joins and (len(made[-1]) + 1) * longest <= BATCH_TOKENS_MAX:
            made[-1].append(number)
        else:
            made.append([number])
    return made


# -- the gate -----------------------------------------------------------------------------------------------------------


class Limits(NamedTuple):
    """What an adapter must reach. Shares are of 1."""

    efficacy: float = 0.7
    likelier: float = 0.5
    same: float = 0.5
    leak: float = 0.1
    kl: float = 0.1


class Examined(NamedTuple):
    """Scores of an adapter; `facts` has for each fact whether its statement is known, and held-out probes right and asked."""

    scores: dict[str, float]
    facts: list[tuple[bool, int, int]]

    def failed(self) -> list[int]:
        """Facts whose statement is not known, or most of whose held-out probes are wrong."""
        return [n for n, (known, right, asked) in enumerate(self.facts) if not known or 2 * right < asked]


class Prompts(NamedTuple):
    """What the gate asks: all of it held out from training."""

    probes: Sequence[Probe]
    locality: Sequence[Negative]
    neutral: Sequence[str]


def examine(reader: Reader, facts: Sequence[Fact], prompts: Prompts, acting: Acting) -> Generator[None, None, Examined]:
    """Scores of what `acting` makes the model say."""
    raw = [probe for probe in prompts.probes if not probe.chat]
    asked = [reader.ask(probe.prompt, facts[probe.fact].object, False) for probe in raw]
    base = yield from reader.hear(asked)
    # The rival is what the base says there first.
    here = yield from reader.hear([one._replace(rival=was.first) for one, was in zip(asked, base, strict=True)], acting)
    known = {probe.fact: False for probe in raw if probe.kind == "statement"}
    held = [[0, 0] for _ in facts]
    likelier, greedy, statements, wordings = 0, 0, 0, 0
    for probe, one, was in zip(raw, here, base, strict=True):
        if probe.kind == "statement":
            statements += 1
            known[probe.fact] = known.get(probe.fact, False) or one.greedy
            continue
        better = one.begins >= one.rival or was.greedy
        wordings, likelier, greedy = wordings + 1, likelier + better, greedy + one.greedy
        held[probe.fact][0] += better
        held[probe.fact][1] += 1
    questions = [probe for probe in prompts.probes if probe.chat]
    said = yield from reader.say(
        [reader.ask(probe.prompt, "", True) for probe in questions], ANSWER_TOKENS, reader.words.ends, acting
    )
    answered = 0
    for probe, ids in zip(questions, said, strict=True):
        right = reader.words.hold(ids, facts[probe.fact].object)
        answered += right
        held[probe.fact][0] += right
        held[probe.fact][1] += 1
    scores = {
        "efficacy": _share(sum(known.values()), len(known)), "paraphrase_likelier": _share(likelier, wordings),
        "paraphrase_greedy": _share(greedy, wordings), "question": _share(answered, len(questions)),
    }  # fmt: skip
    scores |= yield from _elsewhere(reader, facts, prompts.locality, acting)
    scores["kl"] = yield from reader.apart(prompts.neutral, acting)
    return Examined({name: round(score, 5) for name, score in scores.items()}, [
        (known.get(n, True), right, asked_) for n, (right, asked_) in enumerate(held)
    ])  # fmt: skip


def _elsewhere(
    reader: Reader, facts: Sequence[Fact], prompts: Sequence[Negative], acting: Acting
) -> Generator[None, None, dict[str, float]]:
    """Whether prompts that are not about the facts are answered as ever."""
    if not prompts:
        return {}
    about = [facts[one.fact].object if 0 <= one.fact < len(facts) else "" for one in prompts]
    asked = [reader.ask(one.prompt, wanted, one.chat) for one, wanted in zip(prompts, about, strict=True)]
    base = yield from reader.hear(asked)
    here = yield from reader.hear([one._replace(rival=was.first) for one, was in zip(asked, base, strict=True)], acting)
    firsts = {one.answer[0] for one in asked if one.answer}
    same = sum(one.first == was.first for one, was in zip(here, base, strict=True))
    kept = sum(not ask.answer or one.rival >= one.begins for ask, one in zip(asked, here, strict=True))
    leaked = sum(one.first in firsts and was.first != one.first for one, was in zip(here, base, strict=True))
    return {"same": same / len(asked), "locality": kept / len(asked), "leak": leaked / len(asked)}


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0


def refusal(examined: Examined, limits: Limits) -> str:
    """Which limit the scores miss, "" if none."""
    scores = examined.scores
    for name, score, least in (
        ("efficacy", scores["efficacy"], limits.efficacy), ("paraphrase", scores["paraphrase_likelier"], limits.likelier),
        ("first token unchanged", scores.get("same", 1.0), limits.same),
    ):  # fmt: skip
        if score < least:
            return f"{name} is {score:.3f}, below {least:g}"
    for name, score, most in (("leak", scores.get("leak", 0.0), limits.leak), ("KL on neutral text", scores["kl"], limits.kl)):
        if not score <= most:
            return f"{name} is {score:.4f}, above {most:g}"
    return ""
