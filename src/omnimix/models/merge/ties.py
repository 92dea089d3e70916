"""TIES: trim small changes, elect a sign per entry, average the changes that agree with it.

tau_i = theta_i - theta_0, trimmed to the share `density` of largest magnitude; s = sign(sum_i w_i tau_i); theta =
theta_0 + lam * (weighted mean of the non-zero trimmed tau_i whose sign is s). Yadav et al., "TIES-Merging: resolving
interference when merging models", NeurIPS 2023, arXiv:2306.01708. The paper trims over the whole model, and a sum of
zero takes the majority of the elected signs; with trim="tensor" every tensor is trimmed by itself and such sums count
as positive.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from ...core.checks import in_unit, one_of
from .base import Block, Blocks, Merger
from .linear import checked_weights
from .source import working
from .task_arithmetic import checked_lam

Trim: TypeAlias = Literal["model", "tensor"]


class Found(NamedTuple):
    thresholds: list[float]
    """Least magnitude kept, a model."""
    tie: float
    """The sign of entries whose sum is 0."""


def ties(
    models: Sequence[Tensor],
    base: Tensor,
    weights: Sequence[float] | None = None,
    *,
    density: float | Sequence[float] = 0.2,
    lam: float = 1.0,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The TIES merge of tensors of one shape, trimmed within these tensors.

    weights: one number a tensor, default all 1. density: share of entries kept, in (0, 1], one number or one a tensor;
    entries as large as the smallest kept are kept too; where less than one entry would be left none is trimmed. lam:
    scale of the merged change. dtype: of the result, default that of the base. ValueError for values out of range.
    """
    merger = Ties(weights, density=density, lam=lam)
    merger.fit(len(models), True)
    work = working(base.dtype)
    block = Block([m.to(work).reshape(-1) for m in models], base.to(work).reshape(-1), "", 0)
    merged = merger.combine(block, merger.measure(lambda: iter([block])))
    return merged.reshape(base.shape).to(dtype or base.dtype)


class Ties(Merger):
    """TIES on whole models; see `ties`.

    trim: "model" (the paper) keeps the largest changes of the whole model, "tensor" of each tensor. normalize: divide
    by the weights that agree (the paper); else their sum is added.
    """

    name: ClassVar[str] = "ties"
    pieces: ClassVar[bool] = True
    base: ClassVar[Literal["required", "none"]] = "required"

    def __init__(
        self,
        weights: Sequence[float] | None = None,
        *,
        density: float | Sequence[float] = 0.2,
        lam: float = 1.0,
        normalize: bool = True,
        trim: Trim = "model",
    ) -> None:
        self.weights = None if weights is None else checked_weights(weights, normalize=False)
        self.density, self.lam, self.normalize = checked_density(density), checked_lam(lam), normalize
        self.scope = one_of("trim", trim, ("model", "tensor"))

    def fit(self, models: int, base: bool) -> None:
        super().fit(models, base)
        if not isinstance(self.density, float) and len(self.density) != models:
            raise ValueError(f"density must be one number, or one a model: got {len(self.density)} for {models} models")

    def measure(self, blocks: Blocks) -> Found:
        """The thresholds, exactly and in two passes over the values, and the majority of the elected signs."""
        first = next(blocks(), None)
        if first is None:  # an empty tensor
            return Found([], 1.0)
        shares = [self.density] * len(first.models) if isinstance(self.density, float) else list(self.density)
        thresholds = _thresholds(blocks, shares)
        found = Found(thresholds, 1.0)
        if self.scope == "tensor":
            return found
        votes = 0.0
        for block in blocks():
            votes += self._weighted(block, found)[1].sign().sum(dtype=torch.float64).item()
        return Found(thresholds, -1.0 if votes < 0 else 1.0)

    def _weighted(self, block: Block, found: Found) -> tuple[list[Tensor], Tensor]:
        """The trimmed, weighted changes and their sum."""
        assert block.base is not None
        weights = self.weights or [1.0] * len(block.models)
        changes = []
        for model, weight, threshold in zip(block.models, weights, found.thresholds, strict=True):
            change = model - block.base
            if threshold > 0:  # hardshrink keeps what is larger than its bound
                change = functional.hardshrink(change, below(threshold))
            changes.append(change.mul_(weight) if weight != 1 else change)
        total = changes[0].clone()
        for change in changes[1:]:
            total.add_(change)
        return changes, total

    def combine(self, block: Block, found: Any) -> Tensor:
        assert block.base is not None
        changes, total = self._weighted(block, found)
        return elect(block.base, changes, total, self.weights, found.tie, self.lam, normalize=self.normalize)


def elect(
    base: Tensor,
    changes: Sequence[Tensor],
    total: Tensor,
    weights: Sequence[float] | None,
    tie: float,
    lam: float,
    *,
    normalize: bool,
) -> Tensor:
    """base + lam * mean of the weighted changes that have the sign of their sum `total` (of `tie` where it is 0)."""
    # adding 0 makes -0 positive, so that zeros get the sign of `tie`
    sign = torch.full_like(total, tie).copysign_(total * tie + 0.0).mul_(tie)
    merged, divisor = torch.zeros_like(total), torch.zeros_like(total)
    for change, weight in zip(changes, weights or [1.0] * len(changes), strict=True):
        agreeing = (change * sign).clamp_(min=0)
        merged.add_(agreeing)
        if normalize:
            divisor.add_(agreeing.sign_(), alpha=weight)
    if normalize:
        least = min(weights or [1.0])
        merged.div_(divisor.clamp_(min=least) if least > 0 else divisor.masked_fill_(divisor == 0, 1.0))
    return torch.addcmul(base, merged, sign, value=lam)


def below(value: float) -> float:
    """The next smaller float32."""
    return float(torch.nextafter(torch.tensor(value), torch.tensor(0.0)))


def _thresholds(blocks: Blocks, shares: Sequence[float]) -> list[float]:
    """The int(share * size)-th largest magnitude of each model's change: a radix selection on the bits of float32.

    Non-negative floats are ordered as their bits are. One pass counts the upper 16 bits and finds the bucket of the
    threshold, one counts the lower 16 bits within it.
    """
    if all(share == 1 for share in shares):
        return [0.0] * len(shares)
    size = 0
    upper = [torch.zeros(2**15, dtype=torch.int64) for _ in shares]
    for block in blocks():
        size += block.models[0].numel()
        for count, bits in zip(upper, _bits(block), strict=True):
            count += torch.bincount((bits >> 16).reshape(-1), minlength=2**15).cpu()
    ranks = [int(share * size) or size for share in shares]
    found = [_locate(count, rank) for count, rank in zip(upper, ranks, strict=True)]
    lower = [torch.zeros(2**16 + 2, dtype=torch.int64) for _ in shares]
    for block in blocks():
        for count, (bucket, _), bits in zip(lower, found, _bits(block), strict=True):
            inside = bits.sub_(bucket << 16).clamp_(-1, 2**16).add_(1)  # all others at the two ends: no selection
            count += torch.bincount(inside.reshape(-1), minlength=2**16 + 2).cpu()
    lower = [count[1:-1] for count in lower]
    whole = [bucket << 16 | _locate(count, rest)[0] for count, (bucket, rest) in zip(lower, found, strict=True)]
    return torch.tensor(whole, dtype=torch.int32).view(torch.float32).tolist()


def _bits(block: Block) -> list[Tensor]:
    assert block.base is not None
    base = block.base
    return [(model - base).abs().float().view(torch.int32) for model in block.models]


def _locate(count: Tensor, rank: int) -> tuple[int, int]:
    """The bucket that holds the rank-th largest value, and its rank within the bucket."""
    above = count.flip(0).cumsum(0)
    place = int(torch.searchsorted(above, rank))
    return len(count) - 1 - place, rank - int(above[place - 1] if place else 0)


def checked_density(density: float | Sequence[float]) -> float | tuple[float, ...]:
    """`density` as one float or a tuple; ValueError unless in (0, 1]."""
    values = [density] if isinstance(density, (int, float)) else list(density)
    for value in values:
        if in_unit("density", value) == 0:
            raise ValueError("density must be a number in (0, 1], got 0: nothing would be left")
    return float(values[0]) if isinstance(density, (int, float)) else tuple(map(float, values))
