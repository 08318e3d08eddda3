"""What a student is trained on: forms and negatives as rows of tokens, and what the base model says to the negatives.

A row of a form holds its prompt and its answer; the answer's tokens weigh 1 where the object stands and less elsewhere. A row
of a negative holds its prompt and the base model's own greedy continuation; the base's last states at its final positions
are kept (as many numbers a position as the model is wide, no logits), and the base's head is applied to them again later.

Rows of chat share the layout's prefix P: it is run once for each batch, and its keys and values stand before every row. The
gradient goes through it, so this is exact. Raw rows have no prefix, unless the layout's P is a lone BOS token.

The model of training is a copy of the base where the copy is affordable: in bfloat16 if the processor multiplies such numbers
itself, and with plain attention, which is faster than fused attention on short rows. The base itself is never touched.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Generator, Sequence
from typing import Any, Final, NamedTuple, cast

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from memos_drivers.lm.tokens import TokenLayout
from memos_drivers.parametric.facts import Fact
from memos_drivers.parametric.forms import Form, Negative
from memos_syscalls.errors import MemModel

COPY_BYTES_MAX: Final = 1 << 30
"""Of the training copy of a base model. Larger models are trained as they are."""
BATCH_TOKENS_MAX: Final = 288
"""Of one forward pass, padding included: what others wait for at most."""
CONTINUED: Final = 2
EARLIER: Final = 0.4
"""Positions of a negative that are compared: the last of its prompt and those of the greedy tokens; and all before them,
which together weigh this share."""
FREELY: Final = 12
"""Tokens that the base goes on with behind a prompt that is about nothing in particular: drawn, a sample of how it writes."""
OTHER_WEIGHT: Final = 0.2
"""Of answer tokens that are not the object's."""
ROW_TOKENS_MAX: Final = 192


class Row(NamedTuple):
    """Tokens, and positions (into them) whose next token matters, with their weights. `wanted` are a form's next tokens."""

    ids: tuple[int, ...]
    chat: bool
    at: tuple[int, ...]
    wanted: tuple[int, ...]
    weights: tuple[float, ...]
    avoided: int
    """A negative's: the first token of the fact's object, -1 if there is none."""
    more: int = 0
    """A negative's: how many tokens the base goes on with."""


class Words:
    """Texts as ids, by the layout's rules."""

    def __init__(self, layout: TokenLayout) -> None:
        self._layout = layout
        self._behind = layout.rest([{"role": "user", "content": ""}])
        prefix = layout.prefix()
        self.prefix: tuple[int, ...] = tuple(prefix)
        self.lead: tuple[int, ...] = () if self._behind else tuple(prefix)
        # What a template says first behind a content ends a turn.
        self.ends = frozenset(self._behind[:1])

    def text(self, text: str) -> list[int]:
        ids = self._layout.rest([{"role": "user", "content": text}])
        return ids[: len(ids) - len(self._behind)]

    def chat(self, prompt: str) -> list[int]:
        """What stands behind P."""
        return self._layout.rest([{"role": "user", "content": prompt}])

    def prompt(self, prompt: str, chat: bool) -> list[int]:
        return self.chat(prompt) if chat else [*self.lead, *self.text(prompt)]

    def answer(self, prompt: str, answer: str, chat: bool) -> tuple[list[int], list[int]]:
        """The prompt's ids and the answer's, tokenised as one text where they are one."""
        before = self.prompt(prompt, chat)
        if chat:
            return before, self.text(answer.strip())
        whole = [*self.lead, *self.text(joined(prompt, answer))]
        cut = shared(before, whole)
        return whole[:cut], whole[cut:]

    def hold(self, ids: Sequence[int], text: str) -> bool:
        """Whether this text stands among these ids, at the beginning of a word."""
        for wanted in (self.text(f" {text}"), self.text(text)):
            if wanted and any(list(ids[n : n + len(wanted)]) == wanted for n in range(len(ids) - len(wanted) + 1)):
                return True
        return False


def joined(prompt: str, answer: str) -> str:
    apart = not prompt or prompt[-1:].isspace() or answer[:1].isspace()
    return f"{prompt}{'' if apart else ' '}{answer}"


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids two runs begin with alike."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count


def form_row(words: Words, form: Form, fact: Fact | None) -> Row | None:
    """None if the form has no answer, or is longer than any sensible form."""
    before, answer = words.answer(form.prompt, form.answer, form.chat)
    if not answer or not before or len(before) + len(answer) > ROW_TOKENS_MAX:
        return None
    weights = [1.0] * len(answer)
    place = form.answer.find(fact.object) if fact is not None else -1
    if fact is not None and place >= 0:
        end = place + len(fact.object)
        begins = shared(words.answer(form.prompt, form.answer[:place].rstrip(), form.chat)[1], answer) if place else 0
        ends = shared(words.answer(form.prompt, form.answer[:end], form.chat)[1], answer)
        weights = [1.0 if begins <= n < max(ends, begins + 1) else OTHER_WEIGHT for n in range(len(answer))]
    ids = (*before, *answer)
    at = tuple(range(len(before) - 1, len(ids) - 1))
    return Row(ids, form.chat, at, tuple(answer), tuple(weights), -1)


def negative_row(words: Words, negative: Negative, facts: Sequence[Fact]) -> Row | None:
    ids = words.prompt(negative.prompt, negative.chat)
    if not ids or len(ids) > ROW_TOKENS_MAX:
        return None
    avoided = -1
    if 0 <= negative.fact < len(facts):
        answer = words.answer(negative.prompt, facts[negative.fact].object, negative.chat)[1]
        avoided = answer[0] if answer else -1
    return Row(tuple(ids), negative.chat, (), (), (), avoided, FREELY if negative.fact < 0 else CONTINUED)


# -- the model of training ----------------------------------------------------------------------------------------------


class Student:
    """A base model to train adapters on: its copy, taken apart into states and head."""

    def __init__(self, model: torch.nn.Module, words: Words, dtype: torch.dtype | None = None) -> None:
        base = next(model.parameters())
        wanted = dtype or fast_dtype(base)
        size = sum(parameter.numel() for parameter in model.parameters()) * wanted.itemsize
        if size <= COPY_BYTES_MAX and (wanted != base.dtype or base.device.type == "cpu"):
            model = copied(model, wanted)
        whole: Any = model
        self.model = whole
        self.words = words
        self.device = base.device
        self.dtype: torch.dtype = next(model.parameters()).dtype
        self._body: Any = whole.base_model
        self._head: Any = whole.get_output_embeddings()
        if self._head is None or self._body is self.model:
            raise MemModel("the model has no head over its vocabulary", "Use a causal language model.")

    def states(self, rows: Sequence[Row]) -> torch.Tensor:
        """Last states [rows, longest, width]; rows are all of chat, or none is."""
        return self._run(rows, keep=False)[0]

    def begun(self, rows: Sequence[Row]) -> tuple[torch.Tensor, Any]:
        """The states, and a cache to go on from; the rows are of one length."""
        return self._run(rows, keep=True)

    def went_on(self, ids: torch.Tensor, cache: Any, at: int, chat: bool) -> torch.Tensor:
        """States [rows, 1, width] of one more token for each row, which stands at position `at` of it."""
        place = torch.tensor([[at + (len(self.words.prefix) if chat else 0)]], device=self.device)
        out = self._body(input_ids=ids[:, None], past_key_values=cache, position_ids=place, use_cache=True)
        return cast(torch.Tensor, out.last_hidden_state)

    def _run(self, rows: Sequence[Row], keep: bool) -> tuple[torch.Tensor, Any]:
        # Padding stands behind: what comes before never sees it, so there is no mask to make.
        ids = pad_sequence([torch.tensor(row.ids, device=self.device) for row in rows], batch_first=True)
        prefix = self.words.prefix if rows[0].chat else ()
        cache = DynamicCache() if keep or prefix else None
        if prefix:
            alone = DynamicCache()
            self._body(input_ids=torch.tensor([prefix], device=self.device), past_key_values=alone, use_cache=True)
            for number, layer in enumerate(cast(Any, alone).layers):
                spread = (held.expand(len(rows), -1, -1, -1) for held in (layer.keys, layer.values))
                cast(Any, cache).update(*spread, number)
        places = torch.arange(len(prefix), len(prefix) + ids.shape[1], device=self.device)[None]
        out = self._body(input_ids=ids, past_key_values=cache, position_ids=places, use_cache=cache is not None)
        return cast(torch.Tensor, out.last_hidden_state), cache

    def head(self, states: torch.Tensor) -> torch.Tensor:
        """Logits [n, vocabulary] of states [n, width]; two dimensions, because a slice of three is four times slower."""
        return cast(torch.Tensor, self._head(states))

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """The same in float32."""
        return self.head(states).float()


def fast_dtype(base: torch.Tensor) -> torch.dtype:
    """Bfloat16 where the processor has it; the same processor always gives the same answer."""
    if base.device.type != "cpu" or base.dtype != torch.float32 or os.environ.get("MEMOS_TRAIN_DTYPE") == "float32":
        return base.dtype
    supported = cast(Any, torch.cpu)
    return torch.bfloat16 if supported._is_avx512_bf16_supported() or supported._is_amx_tile_supported() else torch.float32


def copied(model: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """A frozen copy with plain attention."""
    made = copy.deepcopy(model)
    for parameter in made.parameters():
        # Parameters alone: the rotary frequencies are a buffer, and positions need all of their digits.
        parameter.data = parameter.data.to(dtype)
    for parameter in made.parameters():
        parameter.requires_grad_(False)
    cast(Any, made).set_attn_implementation("eager")
    return made.eval()


def batches(rows: Sequence[Row], numbers: Sequence[int], alike: bool = False) -> list[list[int]]:
    """These rows in batches of like length, or of the same, raw and chat apart."""
    made: list[list[int]] = []
    last = (0, 0)
    for chat in (False, True):
        batch: list[int] = []
        for number in sorted(
            (n for n in numbers if rows[n].chat is chat), key=lambda n: (rows[n].more * alike, len(rows[n].ids), n)
        ):
            longest, kind = len(rows[number].ids), (rows[number].more, len(rows[number].ids))
            if batch and ((len(batch) + 1) * longest > BATCH_TOKENS_MAX or (alike and last != kind)):
                made.append(batch)
                batch = []
            batch.append(number)
            last = kind
        if batch:
            made.append(batch)
    return made


class Taught(NamedTuple):
    """A negative's row with the base's continuation, and the base's states at its positions [n, width]."""

    row: Row
    states: torch.Tensor


def _weights(length: int, more: int) -> tuple[float, ...]:
    """Of a negative's positions; their sum is 1."""
    if length < 2 or more > CONTINUED:
        return (1 / (length + more),) * (length + more)
    return (EARLIER / (length - 1),) * (length - 1) + ((1 - EARLIER) / (more + 1),) * (more + 1)


@torch.no_grad()
def _taught(student: Student, rows: Sequence[Row], made: torch.Generator) -> list[Taught]:
    """One batch of rows of one length: their states, and on with tokens that the base would say."""
    length, more = len(rows[0].ids), rows[0].more
    states, cache = student.begun(rows)
    kept = [states]
    said: list[torch.Tensor] = []
    for number in range(more):
        logits = student.logits(kept[-1][:, -1])
        drawn = logits.softmax(-1).cpu().multinomial(1, generator=made)[:, 0].to(logits.device)
        said.append(drawn if more > CONTINUED else logits.argmax(-1))
        kept.append(student.went_on(said[-1], cache, length + number, rows[0].chat))
    ids, whole = torch.stack(said, 1).tolist(), torch.cat(kept, 1)
    at = tuple(range(length + more))
    weights = _weights(length, more)
    return [
        Taught(row._replace(ids=(*row.ids, *map(int, said_)), at=at, weights=weights), whole[number].clone())
        for number, (row, said_) in enumerate(zip(rows, ids, strict=True))
    ]


def teach(student: Student, rows: Sequence[Row], progress: Callable[[float], None]) -> Generator[None, None, list[Taught]]:
    """What the base says to each row."""
    found: dict[int, Taught] = {}
    made = torch.Generator().manual_seed(0)
    for batch in batches(rows, range(len(rows)), alike=True):
        found.update(zip(batch, _taught(student, [rows[number] for number in batch], made), strict=True))
        progress(len(found) / len(rows))
        yield
    return [found[number] for number in range(len(rows))]
