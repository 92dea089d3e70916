"""Weight matching: reorder the units of one network so that its weights are nearest to those of another.

max over permutations of sum over tensors <A, B permuted>, by coordinate descent: one group of units at a time, in
random order, is a linear assignment problem, solved exactly. Ainsworth et al., "Git Re-Basin: merging models modulo
permutation symmetries", ICLR 2023, arXiv:2209.04836, algorithm 1. No data; O(n^3) for a group of n units.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ....core.checks import at_least
from ....core.random import permutation, resolve
from .permutation import PermutationSpec, reorder, units

SKIPPED = ("running_mean", "running_var", "num_batches_tracked")
GAIN = 1e-12


def assignment(similarity: Tensor) -> Tensor:
    """(n,) the column p[i] for row i that maximises sum_i similarity[i, p[i]]; exact, O(n^3)."""
    return torch.from_numpy(linear_sum_assignment(similarity.double().cpu().numpy(), maximize=True)[1])


def weight_matching(
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    spec: PermutationSpec,
    *,
    rounds: int = 100,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Permutations of b's units, for `spec.apply(b, ...)`; see `similarities` for what they are paired by.

    a, b: state dicts of one architecture. rounds: passes over the groups at most; it ends when none gains. generator:
    of the order of the groups. ValueError for rounds < 1.
    """
    at_least("rounds", rounds, 1)
    generator = resolve(generator)
    moved = dict(b)
    found = spec.identity()
    names = [*spec]
    for _ in range(rounds):
        gained = False
        for i in permutation(len(names), generator).tolist():
            group = spec[names[i]]
            p = assignment(similarities(a, moved, spec, names[i]))
            tensors = {axis.name for axis in group.axes if not axis.name.endswith(SKIPPED)}
            trial = dict(moved)
            for axis in group.axes:
                trial[axis.name] = reorder(trial[axis.name], axis, p)
            # the true gain: a tensor with two axes in the group makes the assignment only an approximation
            gain = sum(_inner(a[name], trial[name]) - _inner(a[name], moved[name]) for name in tensors)
            size = sum(_inner(a[name], a[name]) for name in tensors)
            if gain > GAIN * max(size, 1e-30):
                moved, gained = trial, True
                found[names[i]] = found[names[i]][p]
        if not gained:
            break
    return found


def similarities(a: Mapping[str, Tensor], b: Mapping[str, Tensor], spec: PermutationSpec, name: str) -> Tensor:
    """(n, n) float64: inner products of all weights, biases and norms of a's unit i and b's unit j of a group."""
    group = spec[name]
    total = torch.zeros(group.size, group.size, dtype=torch.float64)
    for axis in group.axes:
        if not axis.name.endswith(SKIPPED):
            total += (units(a[axis.name], axis).double() @ units(b[axis.name], axis).double().T).cpu()
    return total


def _inner(a: Tensor, b: Tensor) -> float:
    return float((a.double() * b.double()).sum())
