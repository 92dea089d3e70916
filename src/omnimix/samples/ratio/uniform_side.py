"""The partner's part has a side drawn uniformly: lam = 1 - u^power, u ~ U(low, high), one for the batch or per sample.

With power 2 u is the side of an area, as in ResizeMix (Qin et al. 2020, arXiv 2012.11101); with power 1 a plain share.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.checks import in_unit, positive
from ...core.random import uniform
from ...core.ratio import Ratio, complete


class UniformSide(Ratio):
    """See the module; ValueError unless 0 <= low <= high <= 1 and power > 0. For pairs only."""

    def __init__(self, low: float, high: float, power: float = 1.0, *, per_sample: bool = False) -> None:
        if in_unit("low", low) > in_unit("high", high):
            raise ValueError(f"low must not be above high, got {low!r} and {high!r}")
        self.low, self.high, self.power, self.per_sample = low, high, positive("power", power), per_sample

    def __call__(self, rows: int, k: int, generator: torch.Generator) -> Tensor:
        if k != 2:
            raise ValueError(f"a uniform side is defined for pairs, not for k = {k}")
        draw = uniform(rows if self.per_sample else 1, 1, generator=generator)
        lam = 1.0 - (self.low + (self.high - self.low) * draw) ** self.power
        return complete(torch.cat((lam, 1.0 - lam), dim=1)).expand(rows, 2)
