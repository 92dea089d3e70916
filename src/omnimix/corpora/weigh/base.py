"""What predicts a loss from domain weights: the common face of regressors and laws."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, TypeVar

import numpy as np

Array = np.ndarray
R = TypeVar("R", bound="Regressor")


class Regressor(ABC):
    """Fits losses of runs to their domain weights, and predicts the loss of other weights. Lower is better."""

    convex: ClassVar[bool] = False
    """Whether predictions are a convex, differentiable function of the weights."""
    own_domain: ClassVar[bool] = False
    """Whether it is a law of one domain's own loss, told which by the argument `domain`."""
    proposer: ClassVar[str] = "simulate"
    """How a mixture is proposed from it unless the user says otherwise."""

    def fit(self: R, weights: Array, losses: Array) -> R:
        """Fit (n,) losses to (n, k) weights, one run a row; returns itself. ValueError for what is not finite."""
        x, y = np.asarray(weights, dtype=np.float64), np.asarray(losses, dtype=np.float64)
        if x.ndim != 2 or y.shape != x.shape[:1]:
            raise ValueError(f"weights must be (n, k) and losses (n,), got {x.shape} and {y.shape}")
        if len(x) < 2:
            raise ValueError(f"a fit needs two runs or more, got {len(x)}")
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            raise ValueError("weights and losses must be finite")
        self._fit(x, y)
        return self

    @abstractmethod
    def _fit(self, x: Array, y: Array) -> None: ...

    @abstractmethod
    def predict(self, weights: Array) -> Array:
        """(m,) predicted losses of (m, k) weights."""

    def gradient(self, weights: Array) -> Array:
        """(k,) the derivative of the prediction at (k,) weights; ValueError where there is none."""
        raise ValueError(f"{type(self).__name__} has no gradient: propose by simulation")

    def lowest(self, weights: Array, k: int, penalty: Array | None = None) -> Array:
        """(k,) the rows of (m, d) weights with the lowest predictions, lowest first; ties by row.

        penalty: (m,) what is added to the predictions.
        """
        values = self.predict(weights)
        return lowest(values if penalty is None else values + penalty, k)


class Mean(Regressor):
    """The weighted mean of several fitted regressors: one a target."""

    def __init__(self, parts: Sequence[Regressor], shares: Sequence[float] | None = None) -> None:
        given = [1.0] * len(parts) if shares is None else list(shares)
        if not parts or len(given) != len(parts) or min(given) < 0 or not math.fsum(given) > 0:
            raise ValueError(f"shares must be numbers >= 0, one a part, and not all 0: got {given} for {len(parts)}")
        self.parts = list(parts)
        self.shares = np.array(given) / math.fsum(given)
        self.convex = all(part.convex for part in parts)  # type: ignore[misc]
        self.proposer = parts[0].proposer  # type: ignore[misc]

    def _fit(self, x: Array, y: Array) -> None:
        raise ValueError("fit the parts, each to its own losses")

    def predict(self, weights: Array) -> Array:
        return np.asarray(self.shares @ np.stack([part.predict(weights) for part in self.parts]))

    def gradient(self, weights: Array) -> Array:
        return np.asarray(self.shares @ np.stack([part.gradient(weights) for part in self.parts]))


def lowest(values: Array, k: int) -> Array:
    """(k,) positions of the smallest values, smallest first; ties by position."""
    if not 1 <= k <= len(values):
        raise ValueError(f"k must be 1 to {len(values)}, got {k}")
    return np.argsort(values, kind="stable")[:k]
