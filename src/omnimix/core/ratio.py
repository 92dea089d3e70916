"""How much each sample contributes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .checks import in_unit, non_negative
from .random import dirichlet


class Ratio(ABC):
    """Draws the shares of a batch."""

    @abstractmethod
    def __call__(self, rows: int, k: int, generator: torch.Generator) -> Tensor:
        """(rows, k) float32 shares that sum to 1; column 0 is the share of the sample itself."""

    def ahead(self, steps: int, k: int, generator: torch.Generator) -> Sequence[Tensor]:
        """(1, k) shares of each of the coming steps, for ratios that draw one for a whole batch; else nothing."""
        return ()


class Beta(Ratio):
    """lam ~ Beta(alpha, alpha), or the symmetric Dirichlet(alpha) for k > 2; alpha = 0 is no mixing, 1 uniform.

    per_sample: one draw a sample rather than one a batch. fold: the sample itself gets the largest share,
    max(lam, 1 - lam).
    """

    def __init__(self, alpha: float = 1.0, *, per_sample: bool = False, fold: bool = False) -> None:
        self.alpha = non_negative("alpha", alpha)
        self.per_sample, self.fold = per_sample, fold

    def __call__(self, rows: int, k: int, generator: torch.Generator) -> Tensor:
        share = self._draw(rows if self.per_sample else 1, k, generator)
        return share if share.shape[0] == rows else share.expand(rows, k)

    def ahead(self, steps: int, k: int, generator: torch.Generator) -> Sequence[Tensor]:
        return () if self.per_sample else torch.split(self._draw(steps, k, generator), 1)

    def _draw(self, draws: int, k: int, generator: torch.Generator) -> Tensor:
        if self.alpha == 0:
            share = torch.zeros(draws, k, dtype=torch.float64, device=generator.device)
            share[:, 0] = 1.0
        else:
            share = dirichlet(self.alpha, draws, k, generator)
        if self.fold:
            share = share.sort(dim=1, descending=True).values
        return complete(share)


class Constant(Ratio):
    """The same share for every batch: `share` for the sample itself, the rest split equally; 0.5 is the midpoint."""

    def __init__(self, share: float = 0.5) -> None:
        self.share = in_unit("share", share)

    def __call__(self, rows: int, k: int, generator: torch.Generator) -> Tensor:
        share = torch.full((1, k), (1.0 - self.share) / (k - 1), dtype=torch.float64, device=generator.device)
        share[:, 0] = self.share
        return complete(share).expand(rows, k)

    def ahead(self, steps: int, k: int, generator: torch.Generator) -> Sequence[Tensor]:
        return (self(1, k, generator),) * steps


def complete(share: Tensor) -> Tensor:
    """Float32 shares; with k = 2 the second is exactly 1 - the first after rounding."""
    if share.shape[1] != 2:
        return share.float()
    if share.shape[0] == 1 and share.device.type == "cpu":  # NumPy is faster for one number
        lam = float(np.float32(share.tolist()[0][0]))
        return torch.tensor([[lam, 1.0 - lam]])
    first = share[:, :1].float()
    return torch.cat((first, 1.0 - first), dim=1)


def as_share(lam: float | Tensor, rows: int, device: torch.device) -> Tensor:
    """(rows, 2) shares from a given lam: a number, or (rows,) values in [0, 1]; ValueError otherwise."""
    value = torch.as_tensor(lam, dtype=torch.float32, device=device)
    if value.ndim > 1 or (value.ndim == 1 and value.shape[0] not in (1, rows)):
        raise ValueError(f"lam must be a number or hold one value per sample ({rows}), got shape {tuple(value.shape)}")
    if not bool(((value >= 0) & (value <= 1)).all()):
        raise ValueError(f"lam must lie in [0, 1], got {lam!r}")
    value = value.reshape(-1, 1).expand(rows, 1)
    return torch.cat((value, 1.0 - value), dim=1)
