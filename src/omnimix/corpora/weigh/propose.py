"""From a fitted regressor to a mixture: simulate and average, or minimise on the simplex within caps.

`simulate` is RegMix's proposer for any regressor; `convex` finds min L(w) + kl KL(w || prior) over sum w = 1,
0 <= w <= caps, and proves it: for convex L, L(w) - L(w*) <= max over v of <grad L(w), w - v>, a linear programme that
is solved by filling the cheapest domains first (Jaggi, ICML 2013). `slsqp` takes the best of several starts where L is
smooth but not convex.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import brentq, minimize

from ...core import random
from ...core.checks import at_least, non_negative
from .base import Array, Regressor

FLOOR = 1e-12
"""Weights of a mixture inside the simplex, where laws with infinite slope at 0 have gradients."""


def simulate(regressor: Regressor, candidates: Array, top: int = 128) -> Array:
    """(k,) the mean of the `top` candidates with the lowest predictions; top=1 is the best of them.

    candidates: (m, k) weights, as of `MixtureDesign.candidates`. Boxes are convex: the mean keeps caps that they keep.
    """
    at_least("top", top, 1)
    if top > len(candidates):
        raise ValueError(f"top must be at most the number of candidates, {len(candidates)}, got {top}")
    mean = candidates[regressor.lowest(candidates, top)].mean(0)
    return np.asarray(mean / mean.sum())


def convex(
    regressor: Regressor, k: int, caps: Array | None = None, *, prior: Array | None = None, kl: float = 0.0,
    tolerance: float = 1e-6,
) -> Array:  # fmt: skip
    """(k,) weights whose objective is proven to be within `tolerance` of the lowest.

    caps: (k,) largest weights. prior and kl: add kl * KL(w || prior), which keeps w near the prior; needs every
    prior > 0. ValueError where the regressor is not convex, or where the proof fails.
    """
    if not regressor.convex:
        raise ValueError(f"{type(regressor).__name__} is not convex: propose by simulation")
    caps = _caps(k, caps)
    value, slope = _objective(regressor, k, prior, kl)
    w = _descend(value, slope, caps / caps.sum(), caps)
    for _ in range(2000):
        if gap(slope(w), w, caps) <= tolerance:
            return w
        w = _step(slope, w, caps)
    raise ValueError(
        f"the lowest loss was not found within {tolerance:g} (it is at most {gap(slope(w), w, caps):.3g} lower): "
        "raise tolerance"
    )


def slsqp(
    regressor: Regressor, k: int, caps: Array | None = None, *, starts: int = 16,
    generator: torch.Generator | None = None,
) -> Array:  # fmt: skip
    """(k,) the best end of sequential quadratic programming from the middle and from random weights."""
    caps, generator = _caps(k, caps), random.resolve(generator)
    value, slope = _objective(regressor, k, None, 0.0)
    begin = [caps / caps.sum()]
    draws = random.dirichlet(1.0, at_least("starts", starts, 1), k, generator).numpy()
    begin += [_within(draw, caps) for draw in draws[1:]]
    return min((_descend(value, slope, w, caps) for w in begin), key=value)


def fill(costs: Array, caps: Array) -> Array:
    """(k,) the weights that minimise <costs, w> within caps: the cheapest domains up to their caps."""
    w, left = np.zeros(len(costs)), 1.0
    for domain in np.argsort(costs, kind="stable"):
        w[domain] = min(caps[domain], left)
        left -= w[domain]
    return w


def water_fill(weights: Array, caps: Array) -> Array:
    """(..., k) weights c * w below their caps and the caps elsewhere, with the c at which they sum to 1.

    A weight of 0 stays 0. ValueError where the caps of the others sum to less than 1.
    """
    w, most = np.asarray(weights, dtype=np.float64), np.asarray(caps, dtype=np.float64)
    room = float(np.where(w > 0, most, 0.0).sum(-1).min())
    if room < 1 - 1e-12:
        raise ValueError(
            f"the domains with a weight may take {room:.4g} of the run at most, which is below 1: lower the budget to "
            f"{room:.4g} of it, or raise max_epochs"
        )
    full = np.zeros(w.shape, dtype=bool)
    while True:
        rest = np.where(full, 0.0, w).sum(-1, keepdims=True)
        left = 1 - np.where(full, most, 0.0).sum(-1, keepdims=True)
        scale = np.divide(left, rest, out=np.zeros_like(rest), where=rest > 0)
        found = np.where(full, most, w * scale)
        over = ~full & (found > most)
        if not over.any():
            return found
        full |= over


def gap(slope: Array, w: Array, caps: Array) -> float:
    """How far the lowest value can be below that of w, for a convex objective with this slope at w."""
    return float(slope @ (w - fill(slope, caps)))


def _caps(k: int, caps: Array | None) -> Array:
    given = np.ones(k) if caps is None else np.minimum(np.asarray(caps, dtype=np.float64), 1.0)
    if given.shape != (k,) or (given < 0).any() or not np.isfinite(given).all() or given.sum() < 1 - 1e-9:
        raise ValueError(f"caps must be {k} numbers >= 0 whose sum is 1 or more, got {given} (sum {given.sum():.4g})")
    return given


def _objective(
    regressor: Regressor, k: int, prior: Array | None, kl: float
) -> tuple[Callable[[Array], float], Callable[[Array], Array]]:
    if not non_negative("kl", kl):
        return lambda w: float(regressor.predict(w[None])[0]), regressor.gradient
    if prior is None or np.shape(prior) != (k,) or not (np.asarray(prior) > 0).all():
        raise ValueError("kl needs a prior with a share > 0 for every domain")
    p = np.asarray(prior, dtype=np.float64) / np.sum(prior)

    def value(w: Array) -> float:
        v = np.maximum(w, FLOOR)
        return float(regressor.predict(w[None])[0] + kl * (v * np.log(v / p)).sum())

    return value, lambda w: regressor.gradient(w) + kl * (np.log(np.maximum(w, FLOOR) / p) + 1)


def _descend(value: Callable[[Array], float], slope: Callable[[Array], Array], w: Array, caps: Array) -> Array:
    found = minimize(
        value, w, jac=slope, method="SLSQP", bounds=list(zip(np.minimum(FLOOR, caps), caps, strict=True)),
        constraints={"type": "eq", "fun": lambda v: v.sum() - 1, "jac": np.ones_like},
        options={"maxiter": 500, "ftol": 1e-14},
    )  # fmt: skip
    end = _within(found.x, caps)
    return end if value(end) <= value(w) else w


def _within(w: Array, caps: Array) -> Array:
    """Weights moved onto the simplex and below their caps, the excess shared out over those that have room."""
    w = np.clip(w, 0, caps)
    room = caps - w
    missing = 1 - w.sum()
    return np.asarray(w + room * missing / room.sum() if missing > 0 else w / w.sum())


def _step(slope: Callable[[Array], Array], w: Array, caps: Array) -> Array:
    """One pairwise step: weight goes from the most to the least costly domain, as far as that pays."""
    costs = slope(w)
    giver = int(np.where(w > FLOOR, costs, -np.inf).argmax())
    taker = int(np.where(w < caps, costs, np.inf).argmin())
    most = min(w[giver], caps[taker] - w[taker])
    direction = np.zeros(len(w))
    direction[giver], direction[taker] = -1.0, 1.0

    def along(t: float) -> float:
        return float(slope(w + t * direction) @ direction)

    if along(0.0) >= 0:
        return w
    length = most if along(most) <= 0 else brentq(along, 0.0, most, xtol=1e-16)
    return np.asarray(w + length * direction)
