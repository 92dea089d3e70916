"""Activation matching: reorder the units of one network so that they respond to data like those of another.

One linear assignment a group, on -|a_i - b_j| over all samples and positions, or on the correlation of the units. Li et
al., "Convergent learning", ICLR 2016, arXiv:1511.07543; Ainsworth et al., "Git Re-Basin", ICLR 2023, arXiv:2209.04836,
section 3.1. One forward pass of both networks over some inputs; labels are not needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ....core.checks import one_of
from ..patches import watching
from .permutation import PermutationSpec, units
from .weight_matching import assignment

Criterion = Literal["distance", "correlation"]


class Moments:
    """Sums over samples of the units of several models, and of their products, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.total: Any = 0.0
        self.products: Any = 0.0

    def add(self, features: Tensor) -> None:
        """features: (units of all models, samples)."""
        self.count += features.shape[1]
        self.total = self.total + features.sum(1)
        self.products = self.products + features @ features.T

    def correlation(self) -> Tensor:
        """(N, N); 0 for units that never change."""
        mean = self.total / self.count
        covariance = self.products / self.count - torch.outer(mean, mean)
        size = covariance.diagonal().clamp(min=0).sqrt()
        # a spread that is rounding of the mean's square is no spread
        live = size > 1e-6 * (mean.abs() + 1e-12)
        scaled = covariance / torch.outer(size, size).clamp(min=1e-300)
        found: Tensor = torch.where(live[:, None] & live[None], scaled, 0.0)
        return found

    def distance(self) -> Tensor:
        """(N, N): Euclidean distances over all samples."""
        square = self.products.diagonal()
        found: Tensor = (square[:, None] + square[None] - 2 * self.products).clamp(min=0).sqrt()
        return found


def moments(models: Sequence[nn.Module], spec: PermutationSpec, inputs: Iterable[Any]) -> dict[str, Moments]:
    """Of every group, over the outputs of all modules that give out its units; models in evaluation mode.

    inputs: batches x of `model(x)`. ValueError without data, and for groups that no module gives out.
    """
    for name, group in spec.items():
        if not group.taps:
            raise ValueError(f"group {name!r} has no module whose output is its units: match it by weights")
    found = {name: Moments() for name in spec}
    names = {axis.name for group in spec.values() for axis in group.taps}
    seen: list[dict[str, Tensor]] = [{} for _ in models]

    def note(i: int) -> Any:
        return lambda name, layer, given, out: seen[i].__setitem__(name, out.detach())

    for x in inputs:
        for i, model in enumerate(models):
            with watching(model, {name: model.get_submodule(name) for name in names}, note(i)):
                model(x)
        for name, group in spec.items():
            for axis in group.taps:
                features = [units(one[axis.name], axis).double().cpu() for one in seen]
                found[name].add(torch.cat(features))
    if any(not one.count for one in found.values()):
        raise ValueError("inputs must hold at least one batch")
    return found


def activation_matching(
    a: nn.Module,
    b: nn.Module,
    spec: PermutationSpec,
    inputs: Iterable[Any],
    *,
    criterion: Criterion = "distance",
) -> dict[str, Tensor]:
    """Permutations of b's units, for `spec.apply(b.state_dict(), ...)`. inputs: batches x that `model(x)` takes."""
    one_of("criterion", criterion, ("distance", "correlation"))
    return {name: assignment(similarity(one, criterion)) for name, one in moments([a, b], spec, inputs).items()}


def similarity(one: Moments, criterion: Criterion) -> Tensor:
    """(n, n): of the first model's unit i to the second's unit j; larger is nearer."""
    whole = one.correlation() if criterion == "correlation" else -one.distance()
    n = len(whole) // 2
    return whole[:n, n:]
