"""Domain2Vec: mix data sets so that together they look like the validation set, without training anything.

    r* = argmin over r in the simplex, r <= caps, of  Dist(V r, q)

V: (n, k), the vectors of k data sets over n meta-domains (see `discover.vectors`); q: (n,) that of the validation set.
The assumption is that the loss is low where the distributions agree; with transfer between domains another mix can be
better. Second variant: laws f_j of the loss on meta-domain j, fitted once to runs on mixtures of meta-domains, serve
any data sets, L(r) = sum_j q_j f_j(V r). Zhang et al., "Domain2Vec: Vectorizing Datasets to Find the Optimal Data
Mixture without Training", ICML 2025, arXiv 2506.10952. Cost: a classifier on 1000 documents a data set; the variant
needs runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.linalg import null_space
from scipy.optimize import linprog, minimize

from ...core import random
from ...core.checks import at_least, in_unit, one_of, positive
from ..mixture import Mixture
from .base import Array, Mean, Regressor
from .design import MixtureDesign
from .propose import FLOOR, convex, simulate
from .regmix import LightGBM
from .run_table import RunTable
from .study import epoch_caps

if TYPE_CHECKING:
    from ..discover.vectors import DatasetVectors

DISTANCES = ("huber", "l2", "l1", "js")
DELTA = 0.01
"""Where Huber's distance turns from squares to absolute values. The paper does not say; at 1 it would be L2, as
probabilities never differ by more."""
SOLVERS = ("convex", "search")
DRAWS = 100_000
"""Of the paper's search."""
GAPS = (1e-9, 1e-6)
"""In units of the distance between the data sets; the second where the first is not reached, as by "js" among
distributions with zeros, whose slope is infinite there."""
ZERO = 1e-8
"""Below this, a difference of probabilities is none."""
ROWS = 8192
"""Mixtures whose distances are computed at a time."""


class Alignment(Regressor):
    """r -> Dist(V r, q): known, so that nothing is fitted, and convex, so that `convex` finds its minimum.

    "l1": sum |d|. "l2": sum d^2 / 2, with the minimum of the length of d. "huber": sum of d^2 / 2 up to |d| = delta and
    of delta (|d| - delta/2) beyond. "js": the Jensen-Shannon divergence in nats.
    """

    convex = True

    def __init__(self, matrix: Array, target: Array, distance: str = "huber", delta: float = DELTA) -> None:
        self.matrix, self.target = np.asarray(matrix, dtype=np.float64), np.asarray(target, dtype=np.float64)
        if self.matrix.ndim != 2 or self.target.shape != self.matrix.shape[:1]:
            raise ValueError(
                f"the matrix must be (n, k) and the target (n,), got {self.matrix.shape}, {self.target.shape}"
            )
        for name, v in (("matrix", self.matrix), ("target", self.target)):
            if not (np.isfinite(v).all() and (v >= 0).all() and (np.abs(v.sum(0) - 1) < 1e-6).all()):
                raise ValueError(f"the {name} must hold distributions over the meta-domains: >= 0, with sum 1")
        self.distance, self.delta = one_of("distance", distance, DISTANCES), positive("delta", delta)

    def _fit(self, x: Array, y: Array) -> None:
        raise ValueError("the distance is known: there is nothing to fit")

    def predict(self, weights: Array) -> Array:
        """(m,) distances of (m, k) mixtures."""
        r = np.asarray(weights, dtype=np.float64)
        return np.concatenate([self._distance(r[i : i + ROWS] @ self.matrix.T) for i in range(0, len(r), ROWS)])

    def gradient(self, weights: Array) -> Array:
        p = self.matrix @ weights
        d = p - self.target
        if self.distance == "js":
            p = np.maximum(p, FLOOR)  # where q is above 0 and p is 0 the slope is minus infinity
            return np.asarray(self.matrix.T @ np.log(2 * p / (p + self.target)) / 2)
        if self.distance == "huber":
            d = np.clip(d, -self.delta, self.delta)
        return np.asarray(self.matrix.T @ (np.sign(d) if self.distance == "l1" else d))

    def _distance(self, p: Array) -> Array:
        d = np.abs(p - self.target)
        if self.distance == "l1":
            return np.asarray(d.sum(1))
        if self.distance == "l2":
            return np.asarray((d**2).sum(1) / 2)
        if self.distance == "huber":
            return np.asarray(np.where(d <= self.delta, d**2 / 2, self.delta * (d - self.delta / 2)).sum(1))
        m = (p + self.target) / 2
        return np.asarray((_xlogy(p, p, m) + _xlogy(self.target, self.target, m)).sum(1) / 2)


class ThroughVectors(Regressor):
    """A law over mixtures of meta-domains as one over mixtures r of data sets: r -> L(V r). Keeps convexity."""

    def __init__(self, law: Regressor, matrix: Array) -> None:
        self.law, self.matrix = law, np.asarray(matrix, dtype=np.float64)
        self.convex, self.proposer = law.convex, law.proposer  # type: ignore[misc]

    def _fit(self, x: Array, y: Array) -> None:
        raise ValueError("fit the law to mixtures of meta-domains")

    def predict(self, weights: Array) -> Array:
        return self.law.predict(np.asarray(weights) @ self.matrix.T)

    def gradient(self, weights: Array) -> Array:
        return np.asarray(self.matrix.T @ self.law.gradient(self.matrix @ weights))


def align(
    matrix: Array, target: Array, *, distance: str = "huber", delta: float = DELTA, caps: Array | None = None,
    prior: Array | None = None,
) -> Array:  # fmt: skip
    """(k,) the mixture of data sets that is nearest to the target.

    matrix: (n, k) distributions, a data set a column. target: (n,). caps: (k,) largest weights. prior: (k,) which
    mixture decides, by KL divergence, where several give the same V r, as when data sets are alike; default equal.
    "l1" is a linear programme; the others are proven to be within `GAPS` of the minimum. ValueError for caps that sum
    to less than 1.
    """
    objective = Alignment(matrix, target, distance, delta)
    k = objective.matrix.shape[1]
    most = np.ones(k) if caps is None else np.minimum(np.asarray(caps, dtype=np.float64), 1.0)
    given = np.full(k, 1 / k) if prior is None else np.asarray(prior, dtype=np.float64)
    if given.shape != (k,) or not (given >= 0).all() or not given.sum() > 0:
        raise ValueError(f"prior must be {k} numbers >= 0, not all 0, got {given}")
    if most.shape != (k,) or not (most >= 0).all() or most.sum() < 1 - 1e-9:
        raise ValueError(f"caps must be {k} numbers >= 0 whose sum is 1 or more, got {most} (sum {most.sum():.4g})")
    r = _least_absolute(objective, most) if distance == "l1" else _proven(objective, most)
    return _nearest_to(np.maximum(given / given.sum(), FLOOR), r, objective, most)


def domain2vec(
    vectors: DatasetVectors, target: Array, *, sizes: Mapping[str, float] | None = None, budget: float | None = None,
    max_epochs: float = 1.0, distance: str = "huber", delta: float = DELTA, solver: str = "convex",
    draws: int = DRAWS, top: int = 1, generator: torch.Generator | None = None,
) -> Mixture:  # fmt: skip
    """The mixture of data sets whose distribution is nearest to the validation set's, in the unit of the vectors.

    target: (n,) vector of the validation set, from the same classifier, so that its confusions cancel. sizes: what each
    data set holds, in that unit: the prior; with a budget, no data set is gone through more than max_epochs times.
    solver: "convex" is exact; "search" is the paper's: the nearest of `draws` mixtures r ~ Dirichlet(size shares)
    within the caps, or the mean of the `top` nearest (100 at the scale of the Pile). With many data sets the search
    stays far from the minimum: the provenance has the distance that it "reached" and that of the "nearest" mixture.
    """
    one_of("solver", solver, SOLVERS)
    names = vectors.datasets
    prior, caps = _shares(names, sizes), _caps(names, sizes, budget, max_epochs)
    objective = Alignment(vectors.matrix, target, distance, delta)
    nearest = align(vectors.matrix, target, distance=distance, delta=delta, caps=caps, prior=prior)
    r = nearest if solver == "convex" else simulate(objective, _drawn(prior, caps, draws, generator), top)
    facts = {
        "method": "domain2vec",
        "distance": distance,
        "solver": solver,
        "meta_domains": len(vectors.meta),
        "documents": dict(zip(names, vectors.counts, strict=True)),
        "reached": float(objective.predict(r[None])[0]),
        **({"delta": delta} if distance == "huber" else {}),
        **({"budget": budget} if budget is not None else {}),
        **(
            {"draws": draws, "top": top, "nearest": float(objective.predict(nearest[None])[0])}
            if solver == "search"
            else {}
        ),
    }
    return Mixture(dict(zip(names, r.tolist(), strict=True)), unit=vectors.unit, provenance=facts)


def interval(
    matrix: Array, probabilities: Array, *, resamples: int = 100, level: float = 0.95,
    generator: torch.Generator | None = None, **how: object,
) -> tuple[Array, Array]:  # fmt: skip
    """(k,) lower and (k,) upper weights over bootstrap samples of the validation documents: what their number decides.

    probabilities: (N, n) of the classifier for each document. how: see `align`.
    """
    p, generator = np.asarray(probabilities, dtype=np.float64), random.resolve(generator)
    found = []
    for _ in range(at_least("resamples", resamples, 2)):
        rows = random.integers(len(p), len(p), generator=generator).cpu().numpy()
        target = p[rows].mean(0)
        found.append(align(matrix, target / target.sum(), **how))  # type: ignore[arg-type]
    outside = (1 - in_unit("level", level)) / 2
    return np.quantile(found, outside, axis=0), np.quantile(found, 1 - outside, axis=0)


def meta_law(
    table: RunTable, meta: Sequence[str], target: Array, make: Callable[[], Regressor] = LightGBM
) -> Mean:  # fmt: skip
    """L(m) = sum_j q_j f_j(m) over mixtures m of meta-domains, in the order of `meta`.

    table: runs on mixtures of the meta-domains, with a loss column named like each meta-domain j whose share q_j of the
    target (n,) is above 0. make: the regressor of one column. With the identity for V this is RegMix for the loss on q.
    """
    q = np.asarray(target, dtype=np.float64)
    if q.shape != (len(meta),) or not (q >= 0).all() or not q.sum() > 0:
        raise ValueError(f"target must be {len(meta)} shares >= 0, not all 0, got {q}")
    runs = table.ordered(meta)
    columns = {runs.own_domain(metric): metric for metric in runs.metrics}
    needed = np.flatnonzero(q).tolist()
    missing = [meta[j] for j in needed if j not in columns]
    if missing:
        raise ValueError(f"the runs have no loss on {', '.join(missing)}, which the target contains")
    return Mean([make().fit(runs.weights, runs.loss(columns[j])) for j in needed], q[needed].tolist())


def domain2vec_regmix(
    table: RunTable, vectors: DatasetVectors, target: Array, *, make: Callable[[], Regressor] = LightGBM,
    sizes: Mapping[str, float] | None = None, budget: float | None = None, max_epochs: float = 1.0,
    draws: int = DRAWS, top: int = 128, generator: torch.Generator | None = None,
) -> Mixture:  # fmt: skip
    """The mixture of data sets with the lowest predicted loss on the target, from runs on meta-domains that exist once.

    make: the regressor of a meta-domain's loss; a convex one, as `MixingLaw`, is minimised exactly, others by the mean
    of the `top` lowest of `draws` mixtures. The rest: see `domain2vec`, `meta_law`.
    """
    names = vectors.datasets
    caps = _caps(names, sizes, budget, max_epochs)
    law = ThroughVectors(meta_law(table, vectors.meta, target, make), vectors.matrix)
    if law.convex:
        r = convex(law, len(names), caps)
    else:
        r = simulate(law, _drawn(_shares(names, sizes), caps, draws, generator), top)
    facts = {
        "method": "domain2vec-regmix", "regressor": type(make()).__name__, "runs": len(table),
        "meta_domains": len(vectors.meta), "predicted": float(law.predict(r[None])[0]),
    }  # fmt: skip
    return Mixture(dict(zip(names, r.tolist(), strict=True)), unit=vectors.unit, provenance=facts)


class _Scaled(Regressor):
    """Distances in units of the largest one between a data set and the mean of all: tolerances then mean the same."""

    convex = True

    def __init__(self, objective: Alignment) -> None:
        centre = objective.matrix.mean(1)
        spread = Alignment(objective.matrix, centre, objective.distance, objective.delta)
        largest = float(spread.predict(np.eye(objective.matrix.shape[1])).max())
        self.objective, self.unit = objective, largest if largest > FLOOR else 1.0

    def _fit(self, x: Array, y: Array) -> None:
        raise ValueError("the distance is known: there is nothing to fit")

    def predict(self, weights: Array) -> Array:
        return self.objective.predict(weights) / self.unit

    def gradient(self, weights: Array) -> Array:
        return self.objective.gradient(weights) / self.unit


def _proven(objective: Alignment, caps: Array) -> Array:
    """The minimum of a smooth distance."""
    scaled = _Scaled(objective)
    try:
        return convex(scaled, len(caps), caps, tolerance=GAPS[0])
    except ValueError:
        return convex(scaled, len(caps), caps, tolerance=GAPS[1])


def _least_absolute(objective: Alignment, caps: Array) -> Array:
    """The linear programme min sum_i t_i, |V r - q| <= t."""
    v, q = objective.matrix, objective.target
    n, k = v.shape
    sides = np.block([[v, -np.eye(n)], [-v, -np.eye(n)]])
    costs, sums = np.repeat([0.0, 1.0], [k, n]), np.repeat([1.0, 0.0], [k, n])
    bounds = [(0.0, cap) for cap in caps] + [(0.0, None)] * n
    found = linprog(costs, sides, np.concatenate([q, -q]), sums[None], [1.0], bounds)
    if not found.success:
        raise ValueError(f"the nearest mixture was not found: {found.message}")
    r = np.clip(found.x[:k], 0, caps)
    return np.asarray(r / r.sum())


def _nearest_to(prior: Array, r: Array, objective: Alignment, caps: Array) -> Array:
    """Of the mixtures with the same V r, within the caps, the one with the least KL divergence to the prior."""
    free = null_space(np.vstack([objective.matrix, np.ones((1, len(r)))]), rcond=ZERO)
    if not free.shape[1]:
        return r

    def divergence(z: Array) -> float:
        w = np.maximum(r + free @ z, FLOOR)
        return float((w * np.log(w / prior)).sum())

    room, limits = np.concatenate([r, caps - r]), np.vstack([free, -free])
    moved = minimize(
        divergence, np.zeros(free.shape[1]), method="SLSQP",
        jac=lambda z: free.T @ (np.log(np.maximum(r + free @ z, FLOOR) / prior) + 1),
        constraints={"type": "ineq", "fun": lambda z: room + limits @ z, "jac": lambda z: limits},
        options={"maxiter": 200, "ftol": 1e-12},
    )  # fmt: skip
    w = np.clip(r + free @ moved.x, 0, caps)
    w /= w.sum()
    as_near = np.abs(objective.matrix @ (w - r)).max() <= 10 * ZERO and (w <= caps + 1e-9).all()
    return np.asarray(w if as_near and divergence(moved.x) < divergence(0 * moved.x) else r)


def _shares(names: Sequence[str], sizes: Mapping[str, float] | None) -> Array:
    """(k,) shares of the sizes; equal without sizes."""
    if sizes is None:
        return np.full(len(names), 1 / len(names))
    missing = [name for name in names if name not in sizes]
    if missing:
        raise ValueError(f"sizes has no number for {', '.join(missing)}")
    return Mixture({name: sizes[name] for name in names}).vector()


def _caps(
    names: Sequence[str], sizes: Mapping[str, float] | None, budget: float | None, max_epochs: float
) -> Array:  # fmt: skip
    if budget is None:
        return np.ones(len(names))
    if sizes is None:
        raise ValueError("a budget needs sizes, what each data set holds")
    return epoch_caps(names, sizes, positive("budget", budget), positive("max_epochs", max_epochs))


def _drawn(prior: Array, caps: Array, draws: int, generator: torch.Generator | None) -> Array:
    """(draws, k) mixtures r ~ Dirichlet(prior) within the caps; what has no prior share gets no weight."""
    some = np.flatnonzero(prior)
    if len(some) == 1:
        return np.repeat(np.eye(len(prior))[some], draws, axis=0)
    design = MixtureDesign(
        {str(i): float(prior[i]) for i in some}, temperature=1.0, strength=(1.0, 1.0), strengths=1, cap=None
    )
    design.caps = np.minimum(design.caps, caps[some])
    found = np.zeros((draws, len(prior)))
    found[:, some] = design.candidates(draws, generator)
    return found


def _xlogy(weight: Array, a: Array, b: Array) -> Array:
    """weight log(a / b), 0 where the weight is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(weight > 0, weight * np.log(a / b), 0.0)
