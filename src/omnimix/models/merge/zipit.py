"""ZipIt!: merge units across and within networks, the most correlated first.

The units of all models in a group are put into one list; the pair of clusters with the largest correlation is joined
until n are left, its correlation to the rest becoming the smaller of the two times `alpha`. What makes a unit is the
mean over its cluster, what reads it the sum. Stoica et al., "ZipIt! Merging models from different tasks without
training", ICLR 2024, arXiv:2305.03053. Cost: a forward pass of every network over some inputs, and O(N^3) a group of N
units in all models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...core.checks import at_least, in_unit
from .matching.activation_matching import moments
from .matching.permutation import PermutationSpec
from .matching.recalibrate import recalibrate
from .matching.zipping import rebuilt, zip_states


def zip_units(correlation: Tensor, models: int, left: int, *, alpha: float = 0.3, within: float = 0.125) -> Tensor:
    """(models, n): the new unit, 0 to left - 1, of each unit.

    correlation: (models * n, models * n), the units of the first model first. alpha: factor of the correlation of
    joined units. within: the share of the joins that may be within one model, for each; the paper's beta. ValueError
    out of range.
    """
    total = len(correlation)
    at_least("left", left, 1)
    in_unit("alpha", alpha)
    owner = torch.arange(total) // (total // models)
    budget = torch.full((models,), int((total - left) // models * in_unit("within", within)))
    alike = correlation.double().clone()
    alike.fill_diagonal_(-torch.inf)
    cluster = torch.arange(total)
    held = torch.nn.functional.one_hot(owner, models).bool()
    """(clusters, models): whose units are in a cluster."""
    alive = torch.ones(total, dtype=torch.bool)
    for model in range(models):
        if budget[model] <= 0:
            _forbid(alike, held, model)
    for _ in range(total - left):
        best = int(alike.argmax())
        i, j = sorted(divmod(best, total))
        if alike[i, j] == -torch.inf:
            raise ValueError(f"units cannot be joined to {left}: raise `within`, now {within}")
        both = held[i] & held[j]
        budget[both] -= 1
        cluster[cluster == j] = i
        joined = torch.minimum(alike[i], alike[j])
        joined = torch.where(joined.isfinite(), joined * alpha, joined)
        alike[i], alike[:, i] = joined, joined
        alike[i, i] = -torch.inf
        alike[j], alike[:, j] = -torch.inf, -torch.inf
        held[i] |= held[j]
        alive[j] = False
        spent = budget <= 0
        barred = (held & held[i] & spent).any(1)
        alike[i, barred], alike[barred, i] = -torch.inf, -torch.inf
        for model in (both & spent).nonzero():
            _forbid(alike, held, int(model))
    new = alive.cumsum(0) - 1
    return new[cluster].reshape(models, -1)


def _forbid(alike: Tensor, held: Tensor, model: int) -> None:
    """No two clusters with units of this model may be joined any more."""
    mine = held[:, model]
    alike[mine[:, None] & mine[None]] = -torch.inf


def zipit(
    models: Sequence[nn.Module],
    spec: PermutationSpec,
    inputs: Sequence[Any],
    *,
    alpha: float = 0.3,
    within: float = 0.125,
) -> nn.Module:
    """A network of the same size that joins two or more of one architecture; its batch statistics are taken anew.

    spec: see `permutation_spec`. inputs: batches x that `model(x)` takes, gone through twice. alpha, within: see
    `zip_units`; in groups of attention heads and of residual streams through torch's attention, units pair across only.
    """
    at_least("the number of models", len(models), 2)
    clusters = {}
    for name, one in moments(models, spec, inputs).items():
        size = spec[name].size
        share = 0.0 if spec[name].rigid else within
        clusters[name] = zip_units(one.correlation(), len(models), size, alpha=alpha, within=share)
    state = zip_states([model.state_dict() for model in models], spec, clusters)
    return recalibrate(rebuilt(models[0], state), inputs)
