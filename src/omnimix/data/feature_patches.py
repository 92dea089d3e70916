"""Synthetic patch data of feature-learning theory: classes that own several features, in inputs of several patches.

`multi_view` gives every training input both features of its class and every test input only one (Chidambaram et al.,
ICML 2023, arXiv 2210.13512); `common_rare` gives every input one, seldom the rare one (Zou et al., ICML 2023, arXiv
2303.08433).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.checks import at_least, in_unit, non_negative
from ..core.random import integers, uniform


@dataclass(frozen=True)
class FeaturePatches:
    """x (N, P, d) float32, y (N,) class ids, features (K, L, d), view (N,): which feature shows, -1 where all do."""

    x: Tensor
    y: Tensor
    view: Tensor
    features: Tensor


def orthonormal(classes: int, each: int, dim: int, generator: torch.Generator) -> Tensor:
    """Orthonormal random features (classes, each, dim) float32; ValueError if dim < classes * each."""
    if dim < classes * each:
        raise ValueError(f"dim must be at least classes * each = {classes * each}, got {dim}")
    basis: Tensor = torch.linalg.qr(torch.randn(dim, classes * each, generator=generator, dtype=torch.float64)).Q
    return basis.T.reshape(classes, each, dim).float()


def multi_view(
    count: int,
    features: Tensor,
    generator: torch.Generator,
    *,
    patches: int = 9,
    noise: float = 10.0,
    test: bool = False,
) -> FeaturePatches:
    """`count` inputs over the two features of each class, features (K, 2, d).

    Patches 0 and 1 hold c v_y1 and (.75 - c) v_y2 with c ~ U(.25, .5); with `test` both hold the same feature, drawn at
    random, each with its own c. The others hold noise: sum over the features of the other classes with weights
    U(.25, .75) * noise / K^1.5.
    """
    classes, each, dim = features.shape
    at_least("patches", patches, 3)
    non_negative("noise", noise)
    if each != 2:
        raise ValueError(f"features must be (K, 2, d), got {tuple(features.shape)}")
    y = integers(classes, count, generator=generator)
    rows = torch.arange(count)
    strength = (0.25 + 0.25 * uniform(count, 2, generator=generator)).float()
    view = torch.full((count,), -1)
    if test:
        view = integers(2, count, generator=generator)
        shown = features[y, view].unsqueeze(1).expand(count, 2, dim)
    else:
        strength[:, 1] = 0.75 - strength[:, 0]
        shown = features[y]
    weight = (0.25 + 0.5 * uniform(count, patches - 2, classes, 2, generator=generator)).float() * noise / classes**1.5
    weight[rows, :, y] = 0.0
    other = torch.einsum("npkl,kld->npd", weight, features)
    return FeaturePatches(torch.cat((strength.unsqueeze(2) * shown, other), dim=1), y, view, features)


def common_rare(
    count: int,
    features: Tensor,
    generator: torch.Generator,
    *,
    rare: float = 0.06,
    patches: int = 2,
    noise: float = 12.0,
) -> FeaturePatches:
    """`count` inputs whose patch 0 is the common feature of its class, or with probability `rare` the rare one.

    features: (K, 2, d), common and rare. The other patches are Gaussian noise off the features, of expected squared
    length `noise`. view: 0 common, 1 rare.
    """
    classes, each, dim = features.shape
    in_unit("rare", rare)
    non_negative("noise", noise)
    at_least("patches", patches, 2)
    if each != 2:
        raise ValueError(f"features must be (K, 2, d), got {tuple(features.shape)}")
    y = integers(classes, count, generator=generator)
    view = (uniform(count, generator=generator) < rare).long()
    basis = features.flatten(0, 1)
    off = torch.randn(count, patches - 1, dim, generator=generator) * math.sqrt(noise / dim)
    off = off - (off @ basis.T) @ basis
    return FeaturePatches(torch.cat((features[y, view].unsqueeze(1), off), dim=1), y, view, features)
