"""Tokens' vectors in 64 dimensions: the matrix beside this file, and how it was made.

    python -m memos_drivers.embed.basis

writes `basis.npy` again: the 64 directions in which the states of MiniLM's tokens differ most, over two kinds of text at equal
shares: the model's own frequent words in random order, and this package's sentences about nothing in particular. It is float16,
[384, 64]. Another model has other states, and no tokens here.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from memos_drivers.plaintext.latent import WIDTH, Tokens, rounded

from .model import Embedder, Floats, MiniLM

FILE: Final = Path(__file__).with_name("basis.npy")


@cache
def basis() -> NDArray[np.float32]:
    return np.asarray(np.load(FILE, allow_pickle=False), np.float32)


def encoded(model: Embedder, texts: Sequence[str]) -> tuple[Floats, list[Tokens] | None]:
    """Vectors of texts, and their tokens if it is the model that the matrix was made for."""
    if not isinstance(model, MiniLM):
        return model.embed(texts), None
    found = model.encode(texts)
    vectors = np.stack([one.vector for one in found])
    return vectors, [Tokens(rounded(one.states, basis()), one.spans) for one in found]


def main() -> None:
    from memos_drivers.parametric import neutral

    model = MiniLM(plain=True)
    made = random.Random(0)
    words = [word for word in model.words() if word.isalpha() and word.isascii() and len(word) > 2][:8000]
    mixed = [" ".join(made.choices(words, k=14)) for _ in range(700)]
    told = [*neutral.CONTEXTS, *neutral.CONTEXTS_HELD, *neutral.FREE, *neutral.FREE_HELD, *neutral.CHAT, *neutral.NEUTRAL]
    spread = np.zeros((model.dims, model.dims))
    for texts in (mixed, told):
        states = np.concatenate([one.states for one in model.encode(texts)])
        states /= np.linalg.norm(states, axis=1, keepdims=True)
        spread += np.cov(states.T.astype(np.float64))
    directions = np.linalg.eigh(spread)[1][:, ::-1][:, :WIDTH]
    # An eigenvector's sign is arbitrary: the same file on every machine.
    directions *= np.sign(directions[np.abs(directions).argmax(0), np.arange(WIDTH)])
    np.save(FILE, directions.astype(np.float16), allow_pickle=False)


if __name__ == "__main__":
    main()
