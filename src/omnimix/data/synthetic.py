"""Synthetic sets for teaching: a smooth regression with useless inputs, and two interleaved half circles.

friedman: y = 10 sin(pi x1 x2) + 20 (x3 - 1/2)^2 + 10 x4 + 5 x5 + noise, x uniform in [0, 1].
Source: Friedman, "Multivariate Adaptive Regression Splines", Annals of Statistics 1991; drawn by scikit-learn.
"""

from __future__ import annotations

import torch

from ..core.checks import at_least, non_negative
from ..core.task import Regression
from .source import Source, labelled


def friedman(samples: int = 1000, features: int = 10, noise: float = 1.0, seed: int = 0) -> Source:
    """`features` >= 5 uniform inputs, of which the first five matter; `noise`: the standard deviation of the rest."""
    from sklearn.datasets import make_friedman1

    x, y = make_friedman1(
        at_least("samples", samples, 2), at_least("features", features, 5), noise=non_negative("noise", noise),
        random_state=seed,
    )  # fmt: skip
    return Source(
        "friedman",
        torch.from_numpy(x).float(),
        torch.from_numpy(y).float(),
        Regression(1),
        "table",
        feature_names=tuple(f"x{i + 1}" for i in range(features)),
        target_names=("y",),
        notes=(f"synthetic, seed {seed}",),
        builtin=True,
    )


def two_moons(samples: int = 1000, noise: float = 0.2, seed: int = 0) -> Source:
    """Two classes in the plane, half circles blurred by normal noise of standard deviation `noise`."""
    from sklearn.datasets import make_moons

    x, y = make_moons(at_least("samples", samples, 4), noise=non_negative("noise", noise), random_state=seed)
    names = ("upper", "lower")
    ids, task = labelled("two-moons", y, names)
    return Source(
        "two-moons",
        torch.from_numpy(x).float(),
        ids,
        task,
        "table",
        class_names=names,
        feature_names=("x1", "x2"),
        target_names=("moon",),
        notes=(f"synthetic, seed {seed}",),
        builtin=True,
    )
