"""How well predicted losses agree with measured ones, how runs of two scales agree, and what runs cost."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from scipy import stats

from ...core import random
from ...core.checks import at_least, positive
from .base import Array


@dataclass(frozen=True)
class Score:
    """Agreement of n predicted losses with the measured ones.

    spearman and pearson: correlations, in -1..1. mae: mean absolute error. mse: mean squared error. Errors are in the
    unit of the losses; where the models are of another size than the fitted runs', only spearman has a meaning.
    """

    n: int
    spearman: float
    pearson: float
    mae: float
    mse: float

    def to_dict(self) -> dict[str, float | int | None]:
        """As JSON holds it: what is not a number is null."""
        return {name: None if value != value else value for name, value in asdict(self).items()}


def score(predicted: Array, measured: Array) -> Score:
    """Compare (n,) predicted with (n,) measured losses."""
    difference = np.asarray(predicted) - np.asarray(measured)
    return Score(
        len(difference), spearman(predicted, measured), _correlation(stats.pearsonr, predicted, measured),
        float(np.abs(difference).mean()), float((difference**2).mean()),
    )  # fmt: skip


def spearman(a: Array, b: Array) -> float:
    """Rank correlation in -1..1; NaN with a warning where one side is constant, or with fewer than two values."""
    return _correlation(stats.spearmanr, a, b)


def _correlation(function: Callable[..., tuple[float, float]], a: Array, b: Array) -> float:
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        why = "all predictions are equal" if len(a) > 1 and np.ptp(a) == 0 else "there are no two different values"
        warnings.warn(f"a correlation is not defined: {why}", stacklevel=3)
        return float("nan")
    return float(function(a, b)[0])


@dataclass(frozen=True)
class DomainRanking:
    """The sceptic's baseline: rank mixtures by the weight of one domain, with no model."""

    domain: int
    sign: float
    """-1: the more of the domain, the lower the loss."""

    def ranks(self, weights: Array) -> Array:
        """(n,) what stands for the loss: higher is worse."""
        return self.sign * np.asarray(weights)[:, self.domain]


def domain_ranking(weights: Array, losses: Array) -> DomainRanking:
    """The domain whose weight alone ranks the runs best, chosen on the runs that the regressors are fitted to.

    weights: (n, k). losses: (n,). ValueError where no weight varies.
    """
    varied = [d for d in range(weights.shape[1]) if np.ptp(weights[:, d]) > 0]
    if not varied or np.ptp(losses) == 0:
        raise ValueError("no domain's weight can rank runs that all have the same weights or the same loss")
    found = {d: float(stats.spearmanr(weights[:, d], losses)[0]) for d in varied}
    best = max(found, key=lambda d: abs(found[d]))
    return DomainRanking(best, float(np.sign(found[best])) or 1.0)


def learning_curve(
    make: Callable[[Array], Callable[[Array], Array]], runs: int, tests: Sequence[tuple[Array, Array]],
    sizes: Sequence[int], repeats: int = 5, seed: int = 0,
) -> list[tuple[int, list[list[float]]]]:  # fmt: skip
    """Rank correlations on each test set when only some of the runs are fitted.

    make: from the rows of the runs to fit, a function that predicts the losses of (m, k) weights. tests: weights and
    measured losses. Returns (size, one list a test set, with a correlation for each random subset) by size; all `runs`
    are one subset. A constant prediction gives NaN.
    """
    at_least("repeats", repeats, 1)
    generator = torch.Generator().manual_seed(seed)
    curve = []
    for size in sizes:
        found: list[list[float]] = [[] for _ in tests]
        for _ in range(repeats if size < runs else 1):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                predict = make(random.permutation(runs, generator)[:size].numpy())
                for values, (weights, measured) in zip(found, tests, strict=True):
                    values.append(spearman(predict(weights), measured))
        curve.append((size, found))
    return curve


def flops(parameters: float, tokens: float, runs: int = 1) -> float:
    """6 x parameters x tokens x runs: the usual estimate of what training costs (Kaplan et al. 2020)."""
    return 6.0 * positive("parameters", parameters) * positive("tokens", tokens) * at_least("runs", runs, 0)
