"""Scores by group, and that of the worst one: pure functions."""

from __future__ import annotations

import torch
from torch import Tensor


def group_means(values: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """(ids (G,) ascending, means (G,) in float64) of the values (N,) by group (N,) of integers."""
    ids, place = torch.unique(group, return_inverse=True)
    if values.shape != group.shape or values.ndim != 1:
        raise ValueError(f"values {tuple(values.shape)} and group {tuple(group.shape)} must both be (N,)")
    total = torch.zeros(len(ids), dtype=torch.float64, device=values.device).index_add(0, place, values.double())
    return ids, total / torch.bincount(place, minlength=len(ids))


def worst_group(values: Tensor, group: Tensor, *, higher_is_better: bool = True) -> float:
    """The mean value of the group that does worst; arguments as in `group_means`."""
    means = group_means(values, group)[1]
    return float(means.min() if higher_is_better else means.max())
