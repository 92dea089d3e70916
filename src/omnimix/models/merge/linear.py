"""Linear merging: theta = sum_i w_i theta_i / sum_i w_i, the weighted mean of the models' weights.

Wortsman et al., "Model soups", ICML 2022, arXiv:2203.05482. Computed as theta_a + sum_i w_i (theta_i - theta_a) / sum w
with a the model with the largest weight: equal models, and a single model with a weight, are given back exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from .base import Block, Merger
from .source import working


def checked_weights(weights: Sequence[float], *, normalize: bool) -> tuple[float, ...]:
    """The weights as floats, with sum 1 if asked; ValueError unless they are finite and, to be normalised, add up."""
    values = tuple(float(weight) for weight in weights)
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"weights must be finite numbers, one a model, got {list(weights)!r}")
    total = sum(values)
    if not normalize:
        return values
    if abs(total) < 1e-6:
        raise ValueError(f"weights must not add up to 0 to be normalised, got {list(weights)!r}")
    return tuple(value / total for value in values)


def linear(
    models: Sequence[Tensor],
    weights: Sequence[float] | None = None,
    *,
    normalize: bool = True,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The weighted sum of tensors of one shape; with `normalize` (default) the weighted mean.

    weights: one number a tensor, default all 1. dtype: of the result, default that of the first; float16 and bfloat16
    are summed in float32. ValueError for weights that do not fit.
    """
    merger = Linear(weights, normalize=normalize)
    merger.fit(len(models), False)
    parts = [model.to(working(models[0].dtype)) for model in models]
    return merger.combine(Block(parts, None, "", 0), None).to(dtype or models[0].dtype)


class Linear(Merger):
    """The weighted sum or mean of whole models. weights: one number a model, default all 1."""

    name: ClassVar[str] = "linear"
    pieces: ClassVar[bool] = True

    def __init__(self, weights: Sequence[float] | None = None, *, normalize: bool = True) -> None:
        self.weights = None if weights is None else checked_weights(weights, normalize=normalize)
        self.normalize = normalize

    def combine(self, block: Block, found: Any) -> Tensor:
        models = block.models
        weights = self.weights or checked_weights([1.0] * len(models), normalize=self.normalize)
        lead = max(range(len(models)), key=lambda i: weights[i])
        rest = [i for i in range(len(models)) if i != lead]
        if not self.normalize:
            merged = models[lead] * weights[lead]
            for i in rest:
                merged.add_(models[i], alpha=weights[i])
            return merged
        if len(models) == 2:
            return torch.lerp(models[lead], models[rest[0]], weights[rest[0]])
        merged = models[lead].clone()
        for i in rest:
            merged.add_(models[i] - models[lead], alpha=weights[i])
        return merged
