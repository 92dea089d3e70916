"""Task arithmetic: theta = theta_0 + lam sum_i w_i (theta_i - theta_0), adding (or, negated, removing) skills.

Ilharco et al., "Editing models with task arithmetic", ICLR 2023, arXiv:2212.04089. lam comes from held-out data; 1 is
too much for many tasks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from .base import Block, Merger
from .linear import checked_weights
from .source import working


def task_arithmetic(
    models: Sequence[Tensor],
    base: Tensor,
    weights: Sequence[float] | None = None,
    *,
    lam: float = 1.0,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """base + lam sum_i weights_i (model_i - base), of tensors of one shape.

    weights: one number a tensor, default all 1. dtype: of the result, default that of the base. ValueError for weights
    that do not fit.
    """
    merger = TaskArithmetic(weights, lam=lam)
    merger.fit(len(models), True)
    work = working(base.dtype)
    return merger.combine(Block([m.to(work) for m in models], base.to(work), "", 0), None).to(dtype or base.dtype)


class TaskArithmetic(Merger):
    """Task arithmetic on whole models. weights: one number a model, default all 1; lam: scale of the sum.

    normalize: divide by the sum of the weights.
    """

    name: ClassVar[str] = "task-arithmetic"
    pieces: ClassVar[bool] = True
    base: ClassVar[Literal["required", "none"]] = "required"

    def __init__(self, weights: Sequence[float] | None = None, *, lam: float = 1.0, normalize: bool = False) -> None:
        self.weights = None if weights is None else checked_weights(weights, normalize=normalize)
        self.lam, self.normalize = checked_lam(lam), normalize

    def combine(self, block: Block, found: Any) -> Tensor:
        assert block.base is not None
        return self.add(block.base, [model - block.base for model in block.models])

    def add(self, base: Tensor, deltas: Sequence[Tensor]) -> Tensor:
        """The base with the weighted differences added."""
        weights = self.weights or checked_weights([1.0] * len(deltas), normalize=self.normalize)
        merged = base.clone()
        for delta, weight in zip(deltas, weights, strict=True):
            merged.add_(delta, alpha=self.lam * weight)
        return merged


def checked_lam(lam: float) -> float:
    """`lam` if it is a finite number, else ValueError."""
    if isinstance(lam, bool) or not isinstance(lam, (int, float)) or not math.isfinite(lam):
        raise ValueError(f"lam must be a finite number, got {lam!r}")
    return float(lam)
