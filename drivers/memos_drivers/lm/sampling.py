"""From logits to the next token, and from tokens to text as they come.

Choosing happens on the CPU in float32 with a generator of its own: the same seed gives the same tokens on every device that
computes the same logits, and calls do not disturb one another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import torch

MISSING: Final = "\ufffd"
"""What a decoder writes for bytes that are no character yet."""


class Options(NamedTuple):
    """How a token is chosen. Temperature 0 takes the likeliest; top_k 0 and top_p 1 leave none out."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None


class Sampler:
    """Chooses tokens for one answer."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._generator = torch.Generator(device="cpu")
        if options.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(options.seed)

    def choose(self, logits: torch.Tensor) -> int:
        """One token id. `logits`: [vocabulary], any device and float dtype."""
        options = self._options
        if options.temperature == 0:
            return int(logits.argmax())
        scaled = logits.detach().to("cpu", torch.float32) / options.temperature
        if options.top_k:
            kept = torch.topk(scaled, min(options.top_k, scaled.numel()))
            scaled = torch.full_like(scaled, -torch.inf).scatter(0, kept.indices, kept.values)
        chances = torch.softmax(scaled, 0)
        if options.top_p < 1:
            ordered, places = torch.sort(chances, descending=True)
            # The first token that reaches top_p is still in.
            ordered[ordered.cumsum(0) - ordered >= options.top_p] = 0
            chances = torch.zeros_like(chances).scatter(0, places, ordered)
        return int(torch.multinomial(chances, 1, generator=self._generator))


class Writer:
    """Text of an answer, in pieces that are whole characters, up to a stop text.

    Only the newest tokens are decoded again: those since the last piece, and the piece before for its spacing.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stops = [stop for stop in stops if stop]
        self._hold = max((len(stop) for stop in self._stops), default=1) - 1
        self._ids: list[int] = []
        self._before = self._read = 0
        self.text = ""
        self._sent = 0
        self.stopped = False

    def _decode(self, ids: list[int]) -> str:
        found: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return found

    def add(self, token: int) -> str:
        """What can be shown now."""
        self._ids.append(token)
        known = self._decode(self._ids[self._before : self._read])
        whole = self._decode(self._ids[self._before :])
        if whole.endswith(MISSING) and len(self._ids) - self._read < 8:
            return ""
        self._before, self._read = self._read, len(self._ids)
        return self._add_text(whole[len(known) :])

    def end(self) -> str:
        """What was held back."""
        sent = self._sent
        if not self.stopped:
            known = self._decode(self._ids[self._before : self._read])
            self._add_text(self._decode(self._ids[self._before :])[len(known) :])
            self._read = self._before = len(self._ids)
        self._sent = len(self.text)
        return self.text[sent:]

    def _add_text(self, piece: str) -> str:
        start = max(0, len(self.text) - self._hold)
        self.text += piece
        found = [at for stop in self._stops if (at := self.text.find(stop, start)) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True
            return self.end()
        ready = max(self._sent, len(self.text) - self._hold)
        shown, self._sent = self.text[self._sent : ready], ready
        return shown
