"""Rotary positions: the tables a model uses, and keys moved from one position to another.

A key is stored rotated to the position where it was computed. `moved` turns it on to another position, so that it is, to
rounding, the key that the model would have computed there. The angles are those of the model's own table, taken at both
positions and subtracted: at long positions the model's own float32 angles are rounded, and the difference of two rounded angles
is what the model would see. A scaling that the table carries (YaRN) is in the key already and is neither undone nor repeated.

Pairs are (i, i + D/2), as in Hugging Face's Llama family. All is computed in float32 and returned in the keys' own dtype.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from memos_syscalls.errors import MemModel

FIXED = frozenset({"default", "linear", "llama3", "yarn"})
"""Kinds of table that do not change with the length of the request. With the others a stored key would be of another table."""


@dataclass(frozen=True)
class Rotary:
    """A model's rotary table: angles are position · inverse frequency, cosine and sine carry `scaling`."""

    inverse: torch.Tensor
    scaling: float

    @classmethod
    def of(cls, module: torch.nn.Module, head_dim: int) -> Rotary:
        """The table of a model's `rotary_emb`; `MemModel` if it changes with length or turns only a part of a head."""
        kind = str(getattr(module, "rope_type", "default"))
        inverse = getattr(module, "inv_freq", None)
        if kind not in FIXED:
            raise MemModel(f"rotary positions of kind {kind!r} change with the length of the request")
        if not isinstance(inverse, torch.Tensor) or inverse.ndim != 1 or 2 * inverse.numel() != head_dim:
            raise MemModel("the model's rotary positions do not turn whole heads")
        return cls(inverse.float(), float(getattr(module, "attention_scaling", 1.0)))

    def angles(self, positions: torch.Tensor) -> torch.Tensor:
        """[tokens, D/2], float32."""
        return positions.to(self.inverse.device, torch.float32)[:, None] * self.inverse

    def table(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine, each [tokens, D], scaled: what the model itself multiplies queries and keys with."""
        angles = self.angles(positions)
        cos, sin = angles.cos() * self.scaling, angles.sin() * self.scaling
        return torch.cat((cos, cos), -1).to(dtype), torch.cat((sin, sin), -1).to(dtype)

    def turn(self, old: torch.Tensor, new: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine of the way from each old position to its new one, float32, unscaled, for `moved`."""
        was, will = self.angles(old), self.angles(new)
        cos = was.cos() * will.cos() + was.sin() * will.sin()
        sin = will.sin() * was.cos() - will.cos() * was.sin()
        return torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn [..., tokens, D] by a table [tokens, D], in the dtype of both."""
    half = x.shape[-1] // 2
    return torch.addcmul(x * cos, torch.cat((-x[..., half:], x[..., :half]), -1), sin)


def moved(keys: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Keys [..., tokens, D] turned on by `Rotary.turn`."""
    return rotate(keys.float(), *turn).to(keys.dtype)
