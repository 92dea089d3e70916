"""Linear regression of a loss on domain weights, with and without a ridge penalty.

L(w) = b + sum_i a_i w_i; ridge adds alpha |a|^2. The linear baseline of RegMix (Liu et al., "RegMix: Data Mixture as
Regression for Language Model Pre-training", ICLR 2025, arXiv 2407.01492). It ranks well where one domain dominates the
target; its optimum is a vertex of the simplex unless caps stop it. Cost: none beside the runs.
"""

from __future__ import annotations

import numpy as np

from ...core.checks import non_negative
from .base import Array, Regressor


class Ridge(Regressor):
    """Least squares with the penalty alpha |a|^2 on the coefficients, not on the intercept."""

    convex = True

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = non_negative("alpha", alpha)

    def _fit(self, x: Array, y: Array) -> None:
        centre, level = x.mean(0), y.mean()
        # rows of zeros in place of the penalty: lstsq also takes weights that sum to 1, whose columns are dependent
        rows = np.vstack([x - centre, np.sqrt(self.alpha) * np.eye(x.shape[1])]) if self.alpha else x - centre
        aims = np.concatenate([y - level, np.zeros(len(rows) - len(y))])
        self.coefficients = np.linalg.lstsq(rows, aims, rcond=None)[0]
        self.intercept = float(level - centre @ self.coefficients)

    def predict(self, weights: Array) -> Array:
        return np.asarray(self.intercept + np.asarray(weights, dtype=np.float64) @ self.coefficients)

    def gradient(self, weights: Array) -> Array:
        return np.asarray(self.coefficients)


class OLS(Ridge):
    """Ordinary least squares with an intercept."""

    def __init__(self) -> None:
        super().__init__(alpha=0.0)
