"""Statistics of few paired runs: intervals by bootstrap, tests by seed, corrected for the number of methods.

Intervals are expanded percentile bootstrap intervals (Hesterberg, "What teachers should know about the bootstrap",
The American Statistician 2015): the plain percentile interval is too short for few seeds, so its tails are taken at
the level whose normal quantile is t * sqrt(n / (n - 1)). For 2 or 3 values that is from the smallest to the largest,
which covers the mean of normal values in 52 and 75 % of cases instead of 95, so below `FEWEST` there is none. The test
is the paired t-test: rank and sign-flip tests cannot give less than 2 / 2^n (0.0625 for 5 seeds). All of this speaks
about repetition with other seeds (splits, initial weights, draws) on the same data, not about other data.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

FEWEST = 4
"""Values that an interval needs."""
RESAMPLES = 20_000
_EXACT = 6
"""Up to so many values all n^n resamples are enumerated."""


@dataclass(frozen=True)
class Estimate:
    """Mean, standard deviation (n - 1) and 95 % interval of the mean; None where there are too few values."""

    n: int
    mean: float
    sd: float | None
    ci95: tuple[float, float] | None


def estimate(values: Sequence[float]) -> Estimate:
    """ValueError for no values."""
    if not values:
        raise ValueError("values must hold at least one number")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Estimate(1, mean, None, None)
    interval = bootstrap_interval(values) if len(values) >= FEWEST else None
    return Estimate(len(values), mean, float(np.std(values, ddof=1)), interval)


def bootstrap_interval(values: Sequence[float], level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """The expanded percentile interval of the mean of at least `FEWEST` values."""
    from scipy.special import ndtr, stdtrit

    data = np.asarray(values, dtype=np.float64)
    n = len(data)
    if n < FEWEST:
        raise ValueError(f"values must hold at least {FEWEST} numbers for an interval, got {n}; run more seeds")
    tail = float(ndtr(-stdtrit(n - 1, (1 + level) / 2) * math.sqrt(n / (n - 1))))
    means = data[_resamples(n, seed)].mean(axis=1)
    low, high = np.quantile(means, (tail, 1 - tail), method="inverted_cdf")
    return float(low), float(high)


def _resamples(n: int, seed: int) -> np.ndarray:
    if n <= _EXACT:
        return np.array(list(itertools.product(range(n), repeat=n)))
    return np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))


def paired_p(differences: Sequence[float]) -> float | None:
    """Two-sided p of the paired t-test that the mean difference is zero; None for fewer than two.

    Where all differences are equal, t is undefined: 1 if they are zero, else the exact sign-flip p, 2 / 2^n.
    """
    from scipy.special import stdtr

    n = len(differences)
    if n < 2:
        return None
    mean, sd = float(np.mean(differences)), float(np.std(differences, ddof=1))
    if sd <= 1e-12 * abs(mean) or sd == 0:
        return 1.0 if mean == 0 else 2.0 ** (1 - n)
    return float(2 * stdtr(n - 1, -abs(mean) / (sd / math.sqrt(n))))


def holm(p: Mapping[str, float | None]) -> dict[str, float | None]:
    """Holm's step-down correction over the tests that there are (None stays None)."""
    ordered = sorted((value, name) for name, value in p.items() if value is not None)
    corrected: dict[str, float | None] = dict.fromkeys(p)
    running = 0.0
    for rank, (value, name) in enumerate(ordered):
        running = max(running, min(1.0, (len(ordered) - rank) * value))
        corrected[name] = running
    return corrected


Runs = Mapping[str, Mapping[int, Mapping[str, float | None]]]
"""method -> seed -> metric -> value."""


@dataclass(frozen=True)
class Summary:
    """One method over its finished seeds. difference: to the baseline, by seed, where both finished."""

    method: str
    n: int
    metrics: dict[str, Estimate]
    difference: dict[str, Estimate]
    p: dict[str, float]
    """Uncorrected p of each metric's difference."""
    holm: float | None
    """Holm-corrected p of the primary metric."""
    cost: float | None
    """Step time relative to the baseline: median over seeds of the ratio."""


def summarise(
    runs: Runs, baseline: str, primary: str, step_seconds: Mapping[str, Mapping[int, float]]
) -> list[Summary]:
    """One summary a method, in the order of `runs`. Metrics that are missing or None in some seed use the others."""
    differences = {method: _differences(runs, method, baseline) for method in runs}
    tests = {method: paired_p(differences[method].get(primary, [])) for method in runs if method != baseline}
    corrected = holm(tests)
    summaries = []
    for method, seeds in runs.items():
        names = dict.fromkeys(name for metrics in seeds.values() for name in metrics)
        columns = {name: [v for m in seeds.values() if (v := m.get(name)) is not None] for name in names}
        mine = differences[method]
        raw = {name: paired_p(values) for name, values in mine.items()}
        summaries.append(
            Summary(
                method,
                len(seeds),
                {name: estimate(values) for name, values in columns.items() if values},
                {name: estimate(values) for name, values in mine.items() if values},
                {name: value for name, value in raw.items() if value is not None},
                corrected.get(method),
                _relative(step_seconds.get(method, {}), step_seconds.get(baseline, {})),
            )
        )
    return summaries


def _differences(runs: Runs, method: str, baseline: str) -> dict[str, list[float]]:
    """By metric, the differences to the baseline of the seeds that both finished."""
    if method == baseline:
        return {}
    found: dict[str, list[float]] = {}
    reference = runs.get(baseline, {})
    for seed, metrics in runs[method].items():
        for name, value in metrics.items():
            other = reference.get(seed, {}).get(name)
            if value is not None and other is not None:
                found.setdefault(name, []).append(value - other)
    return found


def _relative(mine: Mapping[int, float], baseline: Mapping[int, float]) -> float | None:
    ratios = [mine[seed] / baseline[seed] for seed in mine if baseline.get(seed)]
    return float(np.median(ratios)) if ratios else None
