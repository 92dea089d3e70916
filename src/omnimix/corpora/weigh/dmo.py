"""Data mixing optimisation for fine-tuning: a law of transfer between domains, and the mixture for any token budget.

D_i = N_i + gamma_i (N - N_i)^alpha_i and L_i = C_i D_i^-beta_i + E_i, with N_i tokens of domain i and N of all; then
min over w of sum_i L_i(w N), which is convex, and whose answer changes with N. "Data Mixing Optimization for Supervised
Fine-Tuning of Large Language Models", ICML 2025. Cost: 4 k + 1 short fine-tuning runs for k domains.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

import numpy as np
from scipy.optimize import least_squares, nnls

from ...core.checks import at_least, in_unit, non_negative, one_of, positive
from ..mixture import Mixture
from .base import Array, Mean, Regressor
from .propose import convex

FACTORS = (1 / 3, 1 / 2, 1.0, 2.0, 3.0)
DELTA = 1e-3
"""Of the Huber losses."""
STRICT = 100.0
"""Weight of an irreducible loss below 0, in units of the spread of the losses."""
LEAST_OTHERS = 1e-6
"""Share of foreign tokens below which the slope of their power is not followed any further."""


def perturbations(domains: Sequence[str], base: float, factors: Sequence[float] = FACTORS) -> Array:
    """(runs, k) token amounts: the base run, then every domain at each other factor while the rest stays at base."""
    rows = [np.full(len(domains), positive("base", base))]
    for domain in range(len(domains)):
        for factor in factors:
            if factor != 1:
                row = rows[0].copy()
                row[domain] *= positive("factors", factor)
                rows.append(row)
    return np.array(rows)


class TransferLaw(Regressor):
    """The law of the domain at position `domain`, over token amounts (millions of tokens keep the numbers near 1).

    runs: "own" fits, as the paper does, the runs that change this domain only. They tell gamma M^alpha at the base
    amount M of other tokens but not gamma and alpha apart: alpha is then `alpha`, and `optimal_range` says what it
    decides. "all" fits gamma and alpha to the runs that change other domains as well.

    The reference compares ratios of logarithms of loss differences, which change with the unit of the loss; the paper's
    logarithms of ratios are fitted here.
    """

    convex = True
    own_domain = True
    proposer = "convex"

    def __init__(self, domain: int, runs: str = "own", alpha: float = 0.5) -> None:
        self.domain, self.runs = at_least("domain", domain, 0), one_of("runs", runs, ("own", "all"))
        self.start = in_unit("alpha", alpha)

    @classmethod
    def of(cls, domain: int, beta: float, c: float, gamma: float, alpha: float, e: float) -> TransferLaw:
        """The law with known constants; ValueError outside the ranges that keep it convex."""
        law = cls(domain)
        law.beta, law.c = non_negative("beta", beta), positive("c", c)
        law.gamma, law.alpha, law.e = non_negative("gamma", gamma), in_unit("alpha", alpha), non_negative("e", e)
        law.others = 1.0
        return law

    def _fit(self, x: Array, y: Array) -> None:
        own, rest = x[:, self.domain], np.delete(x, self.domain, axis=1)
        groups, which, counts = np.unique(rest, axis=0, return_inverse=True, return_counts=True)
        at_base = which.reshape(-1) == counts.argmax()
        n, losses = own[at_base], y[at_base]
        order = np.argsort(n)
        n, losses = n[order], losses[order]
        self.others = float(groups[counts.argmax()].sum())
        if len(np.unique(n)) < 4:
            raise ValueError(
                f"the transfer law needs four runs or more that differ in domain {self.domain} only, got {len(n)}"
            )
        self.beta, nuisance = _beta(n, losses, self.others)
        self._constants(n, losses, nuisance)
        if self.runs == "all":
            self._transfer(own, x.sum(1) - own, y)

    def _constants(self, n: Array, y: Array, nuisance: float) -> None:
        """C, E and g = gamma M^alpha <= M with beta given, by Huber loss."""

        def powers(g: float) -> Array:
            return np.asarray((n + g) ** -self.beta)

        def residual(p: Array) -> Array:
            return np.asarray(p[0] * powers(p[2]) + p[1] - y)

        best = None
        for g in (nuisance, 0.1 * self.others, 0.5 * self.others, 0.9 * self.others):
            linear = nnls(np.stack([powers(g), np.ones_like(n)], 1), y)[0]
            begin = [max(linear[0], 1e-9), max(linear[1], 0.0), min(g, self.others)]
            found = least_squares(
                residual, begin, bounds=([0, 0, 0], [np.inf, np.inf, self.others]), loss="huber", f_scale=DELTA,
                x_scale="jac", xtol=1e-14, ftol=1e-14, gtol=1e-14,
            )  # fmt: skip
            if best is None or found.cost < best.cost:
                best = found
        assert best is not None
        self.c, self.e, g = (float(v) for v in best.x)
        self.alpha, self.gamma = self.start, g / self.others**self.start

    def _transfer(self, own: Array, others: Array, y: Array) -> None:
        """gamma and alpha, with C and E, from runs whose amounts of other tokens differ."""
        if np.ptp(others) == 0:
            raise ValueError('runs="all" needs runs in which the amount of other tokens differs')

        def residual(p: Array) -> Array:
            g = p[2] * (others / self.others) ** p[3]
            return np.asarray(p[0] * (own + g) ** -self.beta + p[1] - y)

        begin_g = self.gamma * self.others**self.start
        best = None
        for alpha in (0.05, 0.5, 0.95):
            found = least_squares(
                residual, [self.c, self.e, begin_g, alpha], bounds=([0, 0, 0, 0], [np.inf, np.inf, self.others, 1]),
                loss="huber", f_scale=DELTA, x_scale="jac", xtol=1e-14, ftol=1e-14, gtol=1e-14,
            )  # fmt: skip
            if best is None or found.cost < best.cost:
                best = found
        assert best is not None
        self.c, self.e, g, self.alpha = (float(v) for v in best.x)
        self.gamma = g / self.others**self.alpha

    def effective(self, amounts: Array) -> Array:
        """(m,) D: the amount of data that counts for the domain."""
        x = np.asarray(amounts, dtype=np.float64)
        own = x[:, self.domain]
        return np.asarray(own + self.gamma * np.maximum(x.sum(1) - own, 0.0) ** self.alpha)

    def predict(self, weights: Array) -> Array:
        """(m,) losses of (m, k) token amounts."""
        return np.asarray(self.c * self.effective(weights) ** -self.beta + self.e)

    def gradient(self, weights: Array) -> Array:
        """(k,) the derivative by the token amounts."""
        x = np.asarray(weights, dtype=np.float64)
        others = max(float(x.sum() - x[self.domain]), LEAST_OTHERS * float(x.sum()))
        slope = np.full(len(x), self.gamma * self.alpha * others ** (self.alpha - 1))
        slope[self.domain] = 1.0
        return np.asarray(-self.beta * self.c * self.effective(x[None])[0] ** (-self.beta - 1) * slope)


class AtBudget(Regressor):
    """A law over token amounts as one over weights, for a budget of N tokens: w -> L(w N)."""

    convex = True
    proposer = "convex"

    def __init__(self, law: Regressor, budget: float) -> None:
        self.law, self.budget = law, positive("budget", budget)

    def _fit(self, x: Array, y: Array) -> None:
        raise ValueError("fit the law to token amounts")

    def predict(self, weights: Array) -> Array:
        return self.law.predict(np.asarray(weights) * self.budget)

    def gradient(self, weights: Array) -> Array:
        return self.budget * self.law.gradient(np.asarray(weights) * self.budget)


def optimal(
    laws: Mapping[str, TransferLaw], budget: float, importance: Mapping[str, float] | None = None,
    caps: Array | None = None,
) -> Mixture:  # fmt: skip
    """The mixture with the lowest sum of losses for a budget in the unit of the fit.

    laws: one a domain, in the order of the columns of the amounts. importance: factors on their losses (default 1
    each); all on one domain gives the mixture for a model of that domain.
    """
    shares = [1.0 if importance is None else importance.get(domain, 0.0) for domain in laws]
    w = convex(AtBudget(Mean(list(laws.values()), shares), budget), len(laws), caps, tolerance=1e-8)
    return Mixture(
        dict(zip(laws, (float(v) for v in w), strict=True)), provenance={"method": "dmo", "budget": float(budget)}
    )  # fmt: skip


def optimal_range(
    laws: Mapping[str, TransferLaw], budget: float, alphas: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0)
) -> dict[str, tuple[float, float]]:
    """The smallest and largest optimal weight of each domain when alpha takes other values that fit "own" runs as well.

    gamma M^alpha keeps its fitted value; a budget near that of the runs gives narrow ranges, a distant one wide ones.
    """
    found = []
    for alpha in alphas:
        moved = {}
        for domain, law in laws.items():
            gamma = law.gamma * law.others ** (law.alpha - alpha)
            moved[domain] = TransferLaw.of(law.domain, law.beta, law.c, gamma, alpha, law.e)
        found.append(optimal(moved, budget).vector(list(laws)))
    low, high = np.min(found, axis=0), np.max(found, axis=0)
    return {domain: (float(a), float(b)) for domain, a, b in zip(laws, low, high, strict=True)}


def _beta(n: Array, y: Array, most: float) -> tuple[float, float]:
    """beta and the nuisance A from ratios of loss differences, in which C and E cancel. n ascending.

    An exponent near 0 with a huge C can fit the ratios and leaves an E below 0, which no fit of step two can reach: the
    last residual keeps such exponents out.
    """
    pairs = [(a, b) for a in range(len(n)) for b in range(a + 2, len(n))]
    good = [(a, b) for a, b in pairs if y[a] - y[b] > 0]
    if len(good) < len(pairs):
        warnings.warn(
            f"{len(pairs) - len(good)} of {len(pairs)} pairs of runs are left out: more tokens gave a higher loss",
            stacklevel=5,
        )
    if len(good) < 2:
        raise ValueError("the losses do not fall with the tokens of the domain: no exponent can be fitted")
    first, second = (np.array(v) for v in zip(*good, strict=True))
    top, bottom = (np.array(v) for v in zip(*permutations(range(len(good)), 2), strict=True))
    measured = np.log(y[first] - y[second])

    def residual(p: Array) -> Array:
        beta, shift = p
        # log of (n_a + A)^-beta - (n_b + A)^-beta, without the log of beta, which cancels too
        near, far = np.log(n[first] + shift), np.log(n[second] + shift)
        model = -beta * far + np.log(np.expm1(beta * (far - near)) / beta)
        difference = measured - model
        powers = (n + shift) ** -beta
        c = (y[0] - y[-1]) / (powers[0] - powers[-1])
        below = min(float(np.mean(y - c * powers)), 0.0) / float(np.ptp(y))
        return np.append(difference[top] - difference[bottom], STRICT * below)

    def solve(begin: Array | tuple[float, float], evaluations: int) -> Any:
        return least_squares(
            residual, begin, bounds=([1e-6, 0.0], [20.0, most]), loss="huber", f_scale=DELTA, xtol=1e-14, ftol=1e-14,
            gtol=1e-14, max_nfev=evaluations,
        )  # fmt: skip

    tried = [solve((beta, share * most), 15) for beta in (0.02, 0.1, 0.5, 1.5) for share in (0.05, 0.3, 0.7)]
    tried.sort(key=lambda found: found.cost)
    best = min((solve(found.x, 500) for found in tried[:3]), key=lambda found: found.cost)
    return float(best.x[0]), float(best.x[1])
