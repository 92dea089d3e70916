"""Midpoint mixup: mix every pair half and half, so that the loss stays up until all features of both classes count.

    x~_i = (x_i + x_pi(i)) / 2,   loss_i = (loss(f(x~_i), y_i) + loss(f(x~_i), y_pi(i))) / 2

Source: Chidambaram, Wang, Wu, Ge, "Provably Learning Diverse Features in Multi-View Data with Midpoint Mixup", ICML
2023, arXiv 2210.13512. Cost: 1. It is the provable case, not the best one in practice: in the reference's own runs
uniform mixup does at least as well. The permutation pi may have fixed points, as in the reference.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...core.checks import non_negative
from ...core.method import Mix
from ...core.operation import Context, Operation, require_float
from ...core.pairing import RandomPairing
from ...core.preset import mix_once
from ...core.ratio import Constant
from ...core.recipe import Mixed, Recipe, rowwise, sum_of
from ...core.registry import register
from ...core.tree import Tree, tree_map


class WeightedSum(Operation):
    """sum_k share_k x_k, term by term: the midpoint of (i, j) is bitwise that of (j, i), as `torch.lerp`'s is not."""

    by_row = True

    def __call__(self, x: Tree, recipe: Recipe, context: Context) -> tuple[Tree, Recipe]:
        def mix(t: Tensor) -> Tensor:
            require_float(t)
            share = recipe.share.to(t.device, t.dtype)
            return sum_of(rowwise(share[:, k], t) * t[recipe.partner[:, k]] for k in range(share.shape[1]))

        return tree_map(mix, x), recipe


def midpoint_mixup(
    x: Any, y: Tensor, *, partner: Tensor | None = None, generator: torch.Generator | None = None
) -> Mixed:
    """Mix a batch at its midpoints: `mixed = midpoint_mixup(x, y); mixed.loss(F.cross_entropy, model(mixed.x))`.

    x: float tensor (B, ...) or a tree of them. y: class ids (B,), soft or multi-label (B, C), real (B,) or (B, D).
    partner: (B,) rows in place of a random permutation. ValueError for integer x or rows out of range.
    """
    return mix_once(x, y, RandomPairing(), Constant(0.5), WeightedSum(), None, partner, generator)


@register(
    "midpoint-mixup",
    paper="Provably Learning Diverse Features in Multi-View Data with Midpoint Mixup, ICML 2023, arXiv 2210.13512",
)
class MidpointMixup(Mix):
    """Train on the midpoints of random pairs and of their labels."""

    def __init__(self) -> None:
        super().__init__(RandomPairing(), Constant(0.5), WeightedSum())


def learned_features(weight: Tensor, features: Tensor, threshold: float = 0.1) -> tuple[Tensor, Tensor]:
    """Which features of each class a patch network has learned: (A (K, L), learned (K, L) bool).

    A_kl = sum_r max(0, <w_kr, v_kl>) over the filters r of class k. weight: filters (K, m, d), class first. features:
    (K, L, d), L of each class. A feature counts as learned if A_kl > threshold * max_l A_kl (and that maximum is > 0),
    so `learned.all(1).float().mean()` is the fraction of classes with all features learned.
    """
    non_negative("threshold", threshold)
    if weight.ndim != 3 or features.ndim != 3 or weight.shape[::2] != features.shape[::2]:
        raise ValueError(
            f"weight must be (K, m, d) and features (K, L, d) with the same K and d, got {tuple(weight.shape)} and "
            f"{tuple(features.shape)}"
        )
    strength = torch.einsum("kmd,kld->kml", weight, features).clamp(min=0).sum(dim=1)
    top = strength.amax(dim=1, keepdim=True)
    return strength, (strength > threshold * top) & (top > 0)
