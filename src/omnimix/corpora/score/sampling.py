"""From the ratings of a corpus to copies of its documents: the arithmetic of SampleMix, in passes of flat memory.

    d = compactness * separation;  p_i = alpha d'_i + (1 - alpha) q'_i;
    c_i = T exp(p_i / tau) / sum_j exp(p_j / tau) l_j

A pass over all documents for the clusters and the range of quality, two or more for the sum. See samplemix.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import logsumexp

from ...core import random
from ...core.checks import in_unit, one_of, positive
from ..draw.select import Selected

Array = np.ndarray
ALPHA, TAU = 0.8, 0.2
SCALES = ("min-max", "clipped", "rank")
CLIP = (0.01, 0.99)
BINS = 2**16
MOST = 2.0**53
"""Copies up to which a float tells whole numbers apart."""


class Ratings(NamedTuple):
    """Of some documents: quality (n,), cluster (n,), distance to its centroid (n,), tokens (n,)."""

    quality: Array
    cluster: Array
    distance: Array
    tokens: Array


Blocks = Callable[[], Iterable[Ratings]]
"""The ratings of a corpus, block by block; called once a pass."""


@dataclass(frozen=True, eq=False)
class Sampling:
    """What the corpus as a whole says: `score` and `copies` then need no other document.

    quality_scale, diversity_scale: (knots, levels), between which values are interpolated. diversity: (k,) by cluster.
    log_scale: log of c / exp(p / tau). documents, tokens: of the corpus.
    """

    alpha: float
    tau: float
    budget: float
    cap: float
    scale: str
    quality_scale: tuple[Array, Array]
    diversity_scale: tuple[Array, Array]
    diversity: Array
    log_scale: float
    documents: int
    tokens: int

    def score(self, quality: Array, cluster: Array) -> Array:
        """(n,) p = alpha d' + (1 - alpha) q', in 0..1 for documents of the corpus."""
        d = np.interp(self.diversity[cluster], *self.diversity_scale)
        return np.asarray(self.alpha * d + (1 - self.alpha) * np.interp(quality, *self.quality_scale))

    def copies(self, score: Array) -> Array:
        """(n,) expected copies."""
        return np.minimum(np.exp(np.asarray(score) / self.tau + self.log_scale), self.cap)


def measure(
    blocks: Blocks, centroids: Array, budget: float, *, alpha: float = ALPHA, tau: float = TAU, cap: float = np.inf,
    scale: str = "min-max",
) -> Sampling:  # fmt: skip
    """The sampling of a corpus from its ratings, in passes that hold a block at a time.

    budget: tokens to draw, more or fewer than there are. alpha: share of diversity. tau: temperature, small ones take
    the best alone. cap: copies of a document at most. scale: "min-max"; "clipped" at the 1st and 99th percentile, or
    "rank", where outliers spoil it. ValueError for a budget that the cap does not allow.
    """
    positive("budget", budget), in_unit("alpha", alpha), positive("tau", tau), positive("cap", cap)
    one_of("scale", scale, SCALES)
    k = len(centroids)
    counts, apart = np.zeros(k, dtype=np.int64), np.zeros(k)
    low, high, tokens = np.inf, -np.inf, 0
    for block in blocks():
        if not all(np.isfinite(values).all() for values in block) or (np.asarray(block.tokens) < 0).any():
            raise ValueError("quality, distance and tokens must be finite numbers, tokens >= 0; some rating is not")
        counts += np.bincount(block.cluster, minlength=k)
        apart += np.bincount(block.cluster, weights=block.distance, minlength=k)
        if len(block.quality):
            low, high = min(low, float(block.quality.min())), max(high, float(block.quality.max()))
        tokens += int(block.tokens.sum())
    if not tokens:
        raise ValueError("the corpus holds no tokens")
    d = diversity(counts, apart, centroids)
    seen = np.array([low, high]), np.ones(2)
    if scale != "min-max" and high > low:
        seen = _histogram(blocks, low, high)
    used = counts > 0
    found = Sampling(
        float(alpha), float(tau), float(budget), float(cap), scale, scaled(*seen, scale),
        scaled(d[used], counts[used], scale), d, 0.0, int(counts.sum()), tokens,
    )  # fmt: skip

    def exponents() -> Iterator[tuple[Array, Array]]:
        for block in blocks():
            yield found.score(block.quality, block.cluster) / tau, block.tokens

    return replace(found, log_scale=_log_scale(exponents, budget, cap))


def diversity(counts: Array, distances: Array, centroids: Array) -> Array:
    """(k,) compactness * separation of clusters from their (k,) members and (k,) sums of distances to the centroid.

    0 for a cluster of one document at its centroid, and for an empty one, which no separation counts either.
    ValueError for fewer than two clusters with documents.
    """
    from scipy.spatial.distance import cdist

    used = np.asarray(counts) > 0
    if used.sum() < 2:
        raise ValueError(f"diversity needs two clusters with documents or more, got {used.sum()}")
    points = np.asarray(centroids, dtype=np.float64)[used]
    separation = cdist(points, points).sum(1) / (len(points) - 1)  # its distance to itself is 0
    found = np.zeros(len(used))
    found[used] = np.asarray(distances)[used] / np.asarray(counts)[used] * separation
    return found


def scaled(values: Array, counts: Array, scale: str = "min-max") -> tuple[Array, Array]:
    """Knots and levels 0..1, between which to interpolate, for values that occur `counts` times; equal ones give 0."""
    order = np.argsort(values, kind="stable")
    v, n = np.asarray(values, dtype=np.float64)[order], np.asarray(counts, dtype=np.float64)[order]
    if v[0] == v[-1]:
        return v[:1], np.zeros(1)
    below = np.cumsum(n) - n / 2
    if scale == "rank":
        knots, first = np.unique(v, return_index=True)
        total = np.add.reduceat(n, first)
        return knots, (np.cumsum(total) - total / 2) / n.sum()
    ends = v[[0, -1]] if scale == "min-max" else np.interp(np.array(CLIP) * n.sum(), below, v)
    return (ends, np.array([0.0, 1.0])) if ends[1] > ends[0] else (v[[0, -1]], np.array([0.0, 1.0]))


def expected_copies(score: Array, tokens: Array, budget: float, tau: float = TAU, cap: float = np.inf) -> Array:
    """(N,) c_i = T exp(p_i / tau) / sum_j exp(p_j / tau) l_j of (N,) scores p and tokens l, so that sum c_i l_i = T.

    cap: copies of a document at most; what it takes goes to the others in proportion. ValueError if all of the corpus,
    `cap` times, is less than the budget.
    """
    positive("budget", budget), positive("tau", tau), positive("cap", cap)
    z, length = np.asarray(score, dtype=np.float64) / tau, np.asarray(tokens)
    if z.shape != length.shape or not np.isfinite(z).all() or not (np.isfinite(length) & (length >= 0)).all():
        raise ValueError("give a finite score, and tokens >= 0, for each document")
    return np.asarray(np.minimum(np.exp(z + _log_scale(lambda: [(z, length)], budget, cap)), cap))


def round_copies(copies: Array, chance: torch.Generator | Array) -> Array:
    """(N,) whole numbers: floor(c), and one more with probability c - floor(c).

    chance: a generator, or (N,) uniforms in [0, 1).
    """
    if not ((copies >= 0) & (copies < MOST)).all():
        raise ValueError(f"copies must be numbers of 0 to {MOST:.0g}, got up to {np.max(copies)}: lower the budget")
    whole = np.floor(copies)
    if isinstance(chance, torch.Generator):
        chance = random.uniform(len(whole), generator=chance).cpu().numpy()
    return np.asarray(whole + (chance < copies - whole)).astype(np.int64)


def drawn(
    copies: Array, tokens: Array, domain: Sequence[str] | Array | None = None, generator: torch.Generator | None = None
) -> Selected:
    """The stream of documents: copies of one lie 1/copies of it apart, so that they are not next to each other.

    index: (sum of copies,) in the order of training. tokens: what each domain gives ("corpus" where none are named);
    `Mixture(selected.tokens)` is the mixture of domains that follows from the choice.
    """
    count, length = np.asarray(copies), np.asarray(tokens)
    names = np.full(len(count), "corpus") if domain is None else np.asarray(domain)
    index = np.repeat(np.arange(len(count)), count)
    nth = np.arange(len(index)) - np.repeat(np.cumsum(count) - count, count)
    start = random.uniform(len(count), generator=random.resolve(generator)).cpu().numpy()
    order = np.argsort((nth + start[index]) / count[index], kind="stable")
    kinds, which = np.unique(names, return_inverse=True)
    sums = np.bincount(which, weights=count * length, minlength=len(kinds))
    taken = {str(name): int(total) for name, total in zip(kinds, sums, strict=True) if total}
    return Selected(index[order], taken, ())


def _log_scale(exponents: Callable[[], Iterable[tuple[Array, Array]]], budget: float, cap: float) -> float:
    """log s with sum_i min(cap, s e^{z_i}) l_i = T: the budget that capped documents leave goes to the others.

    exponents: blocks of z and l. Each round caps more documents, until none is added.
    """
    log_s, capped = -np.inf, -1
    while True:
        open_, full, now = -np.inf, 0.0, 0
        for z, length in exponents():
            at_cap = z + log_s >= np.log(cap)
            now, full = now + int(at_cap.sum()), full + cap * float(length[at_cap].sum()) if at_cap.any() else full
            rest = ~at_cap & (length > 0)
            if rest.any():
                open_ = float(np.logaddexp(open_, logsumexp(z[rest], b=length[rest])))
        if now == capped:
            return log_s
        if full >= budget or open_ == -np.inf:
            if full >= budget * (1 - 1e-12):
                return log_s
            raise ValueError(f"all documents {cap:g} times give {full:g} tokens, less than the budget of {budget:g}")
        capped, log_s = now, float(np.log(budget - full) - open_)


def _histogram(blocks: Blocks, low: float, high: float) -> tuple[Array, Array]:
    """Values, and how many documents have a quality near each."""
    counts = np.zeros(BINS)
    for block in blocks():
        place = np.rint((block.quality - low) / (high - low) * (BINS - 1)).astype(np.int64)
        counts += np.bincount(place, minlength=BINS)
    kept = counts > 0
    return np.linspace(low, high, BINS)[kept], counts[kept]
