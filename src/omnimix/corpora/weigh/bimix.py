"""BiMix: the loss of a domain as a power law in its own share and in the training volume; and entropy as a stand-in.

L_i(w_i, s) = (A_i / w_i^alpha_i) (B_i / s^beta_i + C_i). A_i only scales B_i and C_i and is set to 1. Ge et al.,
"BiMix: A Bivariate Data Mixing Law for Language Model Pretraining", 2024, arXiv 2405.14908. Cost: a handful of runs.
The law knows nothing of other domains: the loss of a domain that is not trained on is infinite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from scipy.optimize import least_squares

from ...core.checks import at_least, positive
from ..mixture import Mixture
from .base import Array, Regressor


class BiMix(Regressor):
    """The law of the domain at position `domain`: at one volume, `fit`; over volumes, `fit_volumes` and `at`.

    floor: the weight that stands for smaller ones; None refuses weights of 0, which the law does not know.
    """

    convex = True
    own_domain = True
    proposer = "convex"

    def __init__(self, domain: int, floor: float | None = None) -> None:
        self.domain = at_least("domain", domain, 0)
        self.floor = None if floor is None else positive("floor", floor)

    def _fit(self, x: Array, y: Array) -> None:
        share = self._share(x)
        if (y <= 0).any() or np.ptp(share) == 0:
            raise ValueError("BiMix needs losses > 0 and runs in which the weight of the domain differs")
        slope, level = np.polyfit(np.log(share), np.log(y), 1)
        self.alpha, self.level = max(-float(slope), 0.0), float(math.exp(level))
        if slope > 0:  # more of the domain did not help: the law's best is a constant
            self.level = float(np.exp(np.log(y).mean()))

    def fit_volumes(self, weights: Array, volumes: Array, losses: Array) -> BiMix:
        """Fit alpha, B, beta and C to runs of several lengths. volumes: (n,) steps or tokens > 0. Returns itself."""
        share, s, y = self._share(np.asarray(weights)), np.asarray(volumes, float), np.log(np.asarray(losses, float))
        unit = float(np.exp(np.log(s).mean()))
        u, v = np.log(share), np.log(s / unit)

        def residual(p: Array) -> Array:
            return np.asarray(-p[0] * u + np.logaddexp(p[1] - p[2] * v, p[3]) - y)

        level = float(y.mean())
        begins = [(a, level + math.log(q), b, level + math.log1p(-q))
                  for a in (0.02, 0.2) for b in (0.2, 0.8) for q in (0.1, 0.5, 0.9)]  # fmt: skip
        bounds = ([0, -50, 0, -50], [np.inf, 50, np.inf, 50])
        tight = {"xtol": 1e-14, "ftol": 1e-14, "gtol": 1e-14}
        best = min((least_squares(residual, b, bounds=bounds, **tight) for b in begins), key=lambda r: r.cost)
        self.alpha, self.beta = float(best.x[0]), float(best.x[2])
        self.b, self.c = float(math.exp(best.x[1]) * unit**self.beta), float(math.exp(best.x[3]))
        return self

    def at(self, volume: float) -> BiMix:
        """The law at one volume, after `fit_volumes`."""
        law = BiMix(self.domain, self.floor)
        law.alpha, law.level = self.alpha, self.b * positive("volume", volume) ** -self.beta + self.c
        return law

    def _share(self, x: Array) -> Array:
        share = np.asarray(x, dtype=np.float64)[:, self.domain]
        if self.floor is not None:
            return np.maximum(share, self.floor)
        if (share <= 0).any():
            raise ValueError(
                f"BiMix is not defined for a weight of 0 (domain {self.domain}, row {int((share <= 0).argmax())}): "
                "leave these runs out, or give a floor"
            )
        return share

    def predict(self, weights: Array) -> Array:
        return self.level * self._share(weights) ** -self.alpha

    def gradient(self, weights: Array) -> Array:
        slope = np.zeros(len(weights))
        share = float(self._share(weights[None])[0])
        if self.floor is None or weights[self.domain] > self.floor:
            slope[self.domain] = -self.alpha * self.level * share ** (-self.alpha - 1)
        return slope


def entropy_mixture(entropies: Mapping[str, float]) -> Mixture:
    """Weights in proportion to exp(entropy): diverse domains get more. entropies: nats by domain."""
    highest = max(entropies.values())
    weights = {domain: math.exp(h - highest) for domain, h in entropies.items()}
    return Mixture(weights, provenance={"method": "bimix-entropy", "entropies": dict(entropies)})


def shannon_entropy(tokens: Array) -> float:
    """The entropy in nats of the token frequencies. tokens: (n,) ids."""
    counts = np.unique(np.asarray(tokens), return_counts=True)[1]
    p = counts / counts.sum()
    return float(-(p * np.log(p)).sum())


def conditional_entropy(tokens: Array) -> float:
    """The entropy in nats of a token given the one before it, from pairs of neighbours. tokens: (n,) ids, n >= 2."""
    ids = np.asarray(tokens)
    if len(ids) < 2:
        raise ValueError(f"pairs of neighbours need two tokens or more, got {len(ids)}")
    pairs = np.unique(np.stack([ids[:-1], ids[1:]]), axis=1, return_counts=True)[1]
    p = pairs / pairs.sum()
    return float(-(p * np.log(p)).sum()) - shannon_entropy(ids[:-1])
