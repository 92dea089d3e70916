"""Data mixing laws: a validation loss falls exponentially with a linear combination of the domain weights.

L(w) = c + k exp(sum_j t_j w_j), one law a validation domain; an average target sums them. Losses at a training length
and a model size that were not run come from power laws in steps and then in size, before the law is fitted. Ye et al.,
"Data Mixing Laws: Optimizing Data Mixtures by Predicting Language Modeling Performance", ICLR 2025, arXiv 2403.16952.
Cost: some 20 runs for five domains, at a fraction of the steps and sizes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import least_squares

from ...core.checks import positive
from .base import Array, Regressor
from .power_law import PowerLaws

STARTS = (0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
"""c as shares of the lowest loss; with c given the law is linear in the logarithm, which gives the rest of a start."""

HIGHEST = 100.0
"""Exponents beyond this only occur on the way to a fit; their exponential would overflow."""


class MixingLaw(Regressor):
    """The law above, fitted by least squares with a Huber loss (delta in units of the loss); c, k >= 0.

    Weights that sum to 1 cannot tell k from a constant added to all t_j: the fit finds a_j = t_j + log k, and `k` and
    `t` are told with mean t_j = 0.
    """

    convex = True
    proposer = "convex"

    def __init__(self, delta: float = 0.02) -> None:
        self.delta = positive("delta", delta)

    def _fit(self, x: Array, y: Array) -> None:
        if (y <= 0).any():
            raise ValueError("a mixing law is of losses > 0")
        x = x / x.sum(1, keepdims=True)

        def residual(p: Array) -> Array:
            return np.asarray(p[0] + np.exp(np.minimum(x @ p[1:], HIGHEST)) - y)

        def slope(p: Array) -> Array:
            return np.column_stack([np.ones(len(y)), np.exp(np.minimum(x @ p[1:], HIGHEST))[:, None] * x])

        def solve(begin: Array, evaluations: int) -> Any:
            return least_squares(
                residual, begin, slope, bounds=([0.0] + [-np.inf] * x.shape[1], np.inf), loss="huber",
                f_scale=self.delta, xtol=1e-12, ftol=1e-12, gtol=1e-12, max_nfev=evaluations,
            )  # fmt: skip

        tried = []
        for share in STARTS:
            c = share * float(y.min())
            tried.append(solve(np.append(c, np.linalg.lstsq(x, np.log(y - c + 1e-9), rcond=None)[0]), 20))
        tried.sort(key=lambda found: found.cost)
        best = min((solve(found.x, 2000) for found in tried[:2]), key=lambda found: found.cost)
        self.c, self.a = float(best.x[0]), best.x[1:]

    @property
    def k(self) -> float:
        return float(np.exp(self.a.mean()))

    @property
    def t(self) -> Array:
        return np.asarray(self.a - self.a.mean())

    def predict(self, weights: Array) -> Array:
        x = np.asarray(weights, dtype=np.float64)
        return np.asarray(self.c + np.exp(x @ self.a / x.sum(1)))

    def gradient(self, weights: Array) -> Array:
        return np.asarray(np.exp(weights @ self.a) * self.a)


def nested(losses: Array, sizes: Array, steps: Array, size: float, step: float) -> Array:
    """(runs,) the losses that runs would have at another model size and training length.

    losses: (runs, len(sizes), len(steps)). Power laws in steps, one exponent a size, give the losses at `step`; power
    laws in size, one exponent, then give those at `size`.
    """
    y = np.asarray(losses, dtype=np.float64)
    if y.ndim != 3 or y.shape[1:] != (len(sizes), len(steps)):
        raise ValueError(f"losses must be (runs, {len(sizes)}, {len(steps)}), got {y.shape}")
    at_step = np.stack([PowerLaws().fit(steps, y[:, i]).predict(step) for i in range(len(sizes))], axis=1)
    return PowerLaws().fit(sizes, at_step).predict(size)
