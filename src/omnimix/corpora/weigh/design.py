"""Which mixtures to try: designs on the simplex of domain weights, within caps.

"dirichlet" is the design of RegMix (Liu et al., ICLR 2025, arXiv 2407.01492): with token shares p, prior
q_i ~ p_i^(1/T), w ~ Dirichlet(s q), s from 15 log-spaced strengths, kept if w_i <= min(cap p_i, 1). WebOrganizer's
(Wettig et al., ICML 2025, arXiv 2502.10341) keeps w_i <= min(20 q_i, 1) and max_i |w_i - v_i| >= 0.05 for all kept v:
cap=20, reference="prior", apart=0.05. "sobol" spreads runs evenly over the whole simplex, "grid" takes every multiple
of a step. Cost: none beside the runs themselves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations

import numpy as np
import torch
from scipy.stats import qmc

from ...core import random
from ...core.checks import at_least, in_unit, non_negative, one_of, positive
from .base import Array

KINDS = ("dirichlet", "sobol", "grid")
REFERENCES = ("share", "prior")
BATCH = 1 << 16
HOPELESS = 1000
"""Draws for each kept one after which caps count as too tight."""


class MixtureDesign:
    """Draws candidate mixtures over the domains of `prior`.

    prior: token shares p by domain, in any scale. temperature: T >= 1 flattens the prior, p^(1/T); 2 is the paper's
    square root. strength: smallest and largest s; large s keeps close to the prior, small s goes to corners.
    cap: no domain above cap times its reference, which is "share", p before tempering, or "prior", q after it; None: no
    cap. minimum: smaller weights become 0, and weights are its multiples, so that every domain of a small run has
    enough data. apart: 0..1, the least L-infinity distance of two runs. pool: how many candidates are drawn for each
    run wanted, before equal or near ones go and the runs are picked.

    The reference rounds each weight on its own, and its rows sum to 0.996..1.003; here the rest goes to the weights
    that were rounded down most, and rows sum to 1.
    """

    def __init__(
        self, prior: Mapping[str, float], *, kind: str = "dirichlet", temperature: float = 2.0,
        strength: tuple[float, float] = (0.1, 5.0), strengths: int = 15, cap: float | None = 15.0,
        reference: str = "share", minimum: float = 2e-4, apart: float = 0.0, pool: int = 100,
    ) -> None:  # fmt: skip
        self.kind = one_of("kind", kind, KINDS)
        self.domains = tuple(prior)
        shares = np.array([non_negative(f"prior[{d!r}]", float(p)) for d, p in prior.items()])
        if len(shares) < 2 or (shares <= 0).any():
            raise ValueError(f"prior must give two domains or more a share > 0 each, got {dict(prior)}")
        self.shares = shares / shares.sum()
        low, high = strength
        if not 0 < low <= high < math.inf:
            raise ValueError(f"strength must be two numbers with 0 < low <= high, got {strength}")
        if temperature < 1:
            raise ValueError(f"temperature must be >= 1 (1 keeps the prior), got {temperature!r}")
        tempered = self.shares ** (1 / temperature)
        self.prior = tempered / tempered.sum()
        self.strengths = np.geomspace(low, high, at_least("strengths", strengths, 1))
        bound = self.shares if one_of("reference", reference, REFERENCES) == "share" else self.prior
        self.caps = np.minimum(bound * (math.inf if cap is None else positive("cap", cap)), 1.0)
        if self.caps.sum() < 1:
            raise ValueError(f"with cap={cap} all domains together reach {self.caps.sum():.3g} of the weight: raise it")
        if not 0 <= minimum < 1 / len(shares):
            raise ValueError(f"minimum must be >= 0 and below 1/k = {1 / len(shares):.3g}, got {minimum!r}")
        self.apart = in_unit("apart", apart)
        self.minimum, self.pool = minimum, at_least("pool", pool, 1)

    def draw(self, runs: int, generator: torch.Generator | None = None) -> Array:
        """(runs, k) different mixtures to train on. ValueError where the caps leave too few."""
        at_least("runs", runs, 1)
        generator = random.resolve(generator)
        found = self._grid() if self.kind == "grid" else self._rounded(self._points(runs * self.pool, generator))
        found = np.unique(found[(found <= self.caps + 1e-9).all(1)], axis=0)
        if self.apart:
            found = self._separate(found, len(found) if self.kind == "sobol" else runs, generator)
        if len(found) < runs:
            far = f" and {self.apart:g} apart" if self.apart else ""
            remedy = "a smaller minimum (the step)" if self.kind == "grid" else "a larger pool, cap or strength"
            raise ValueError(
                f"the {self.kind} design has only {len(found)} different mixtures within the caps{far}, {runs} were "
                f"asked for: {remedy}{', or a smaller apart' if self.apart else ''}"
            )
        if self.kind == "sobol":
            return self._spread(found, runs, generator)
        return np.asarray(found[random.permutation(len(found), generator)[:runs].numpy()])

    def candidates(self, count: int, generator: torch.Generator | None = None) -> Array:
        """(count, k) unrounded draws within the caps, for simulation."""
        at_least("count", count, 1)
        generator = random.resolve(generator)
        kept: list[Array] = []
        have = tried = 0
        while have < count:
            points = self._points(min(BATCH, max(count, 1024)), generator)
            tried += len(points)
            points = points[(points <= self.caps).all(1)]
            kept.append(points)
            have += len(points)
            if tried > HOPELESS * max(have, 100):
                raise ValueError(f"only {have} of {tried} drawn mixtures are within the caps: raise cap or strength")
        return np.concatenate(kept)[:count]

    def _points(self, count: int, generator: torch.Generator) -> Array:
        """(count, k) points of the simplex, unrounded."""
        k = len(self.domains)
        if self.kind != "dirichlet":
            seed = int(random.integers(2**31, 1, generator=generator))
            uniforms = qmc.Sobol(k - 1, rng=np.random.default_rng(seed)).random_base2(max(count - 1, 1).bit_length())
            cuts = np.sort(uniforms[:count], axis=1)  # the gaps between sorted uniforms are uniform on the simplex
            return np.diff(cuts, prepend=0.0, append=1.0, axis=1)
        which = random.integers(len(self.strengths), count, generator=generator)
        alpha = torch.from_numpy(self.strengths)[which, None] * torch.from_numpy(self.prior)
        return _dirichlet(alpha, generator)

    def _rounded(self, points: Array) -> Array:
        """Weights below the minimum become 0, the others multiples of it; rows sum to 1."""
        if not self.minimum:
            return points
        points = np.where(points < self.minimum, 0.0, points)
        units = points / points.sum(1, keepdims=True) / self.minimum
        total = round(1 / self.minimum)
        whole = np.floor(units)
        order = np.argsort(np.where(points > 0, whole - units, np.inf), axis=1, kind="stable")
        left = total - whole.sum(1, keepdims=True)
        np.put_along_axis(whole, order, np.take_along_axis(whole, order, 1) + (np.arange(whole.shape[1]) < left), 1)
        return np.asarray(whole / total)

    def _grid(self) -> Array:
        """All points whose weights are multiples of `minimum`, zeros among them."""
        steps, k = round(1 / self.minimum) if self.minimum else 0, len(self.domains)
        if not steps or abs(steps * self.minimum - 1) > 1e-9 or math.comb(steps + k - 1, k - 1) > 2_000_000:
            raise ValueError(
                f"a grid needs minimum = 1/n with at most 2e6 points, got {self.minimum!r} for {k} domains"
            )
        bars = np.array(list(combinations(range(steps + k - 1), k - 1)))
        return np.asarray((np.diff(bars, prepend=-1, append=steps + k - 1, axis=1) - 1) / steps)

    def _separate(self, found: Array, most: int, generator: torch.Generator) -> Array:
        """At random, up to `most` of the mixtures that keep their distance from all that were taken before."""
        taken = np.empty((most, found.shape[1]))
        count = 0
        for row in found[random.permutation(len(found), generator).numpy()]:
            if count == most:
                break
            if (np.abs(taken[:count] - row).max(1) >= self.apart - 1e-12).all():
                taken[count] = row
                count += 1
        return taken[:count]

    def _spread(self, found: Array, runs: int, generator: torch.Generator) -> Array:
        """The runs that lie farthest apart: each next one is the farthest from those that are chosen."""
        chosen = [int(random.integers(len(found), 1, generator=generator))]
        nearest = np.full(len(found), np.inf)
        for _ in range(runs - 1):
            nearest = np.minimum(nearest, np.abs(found - found[chosen[-1]]).sum(1))
            chosen.append(int(nearest.argmax()))
        return found[chosen]


def _dirichlet(alpha: torch.Tensor, generator: torch.Generator) -> Array:
    """One draw for each row of concentrations (m, k), which may differ and be tiny.

    Gamma variates are kept as logarithms, log G(a) = log G(a+1) + log(U)/a: a tiny one is an exact 0, never 0/0.
    """
    gamma = torch._standard_gamma(alpha + 1.0, generator=generator)
    boost = (1.0 - random.uniform(*alpha.shape, generator=generator)).log() / alpha
    return np.asarray((gamma.log() + boost).softmax(dim=1))
