"""Statistics of few paired runs: intervals by bootstrap, tests by seed, corrected for the number of methods.

Intervals are expanded percentile bootstrap intervals (Hesterberg, "What teachers should know about the bootstrap",
The American Statistician 2015): the plain percentile interval is too short for few seeds, so its tails are taken at
the level whose normal quantile is t * sqrt(n / (n - 1)). For 2 or 3 values that is from the smallest to the largest,
which covers the mean of normal values in 52 and 75 % of cases instead of 95, so below `FEWEST` there is none.

Every difference to the baseline has two tests, each corrected by Holm (Scandinavian Journal of Statistics 1979) over
the methods. The paired t-test decides: it can speak with few seeds, if differences are near normal. Wilcoxon's
signed-rank test needs no such shape, but cannot give less than 2 / 2^n (0.0625 for 5 seeds), so below 6 seeds it can
never reach 0.05; with more, it shows whether a few odd seeds made the t-test's answer. Its p is that over all signs of
the differences, ties or not, up to `EXACT_RANKS` of them, then normal with the variance that ties leave. Both speak
about repetition with other seeds (splits, initial weights, draws) on the same data, not about other data; for those see
`ranks`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

FEWEST = 4
"""Values that an interval needs."""
RESAMPLES = 20_000
POWER = 0.8
"""The chance of telling a true difference apart for which seeds are counted."""
MOST = 10_000
"""Seeds beyond which counting stops."""
SHORT_SECONDS, SHORT_EPOCHS = 1.0, 3
"""Runs below either have no comparable step time: it is the median over epochs, and the first epoch warms up."""
EXACT_RANKS = 100
"""Up to so many differences the signed-rank test counts all signs."""
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


def wilcoxon_p(differences: Sequence[float]) -> float | None:
    """Two-sided p of Wilcoxon's signed-rank test, exact up to `EXACT_RANKS` values; None for fewer than two.

    Zeros are dropped (p is 1 if nothing is left), ties share their mean rank. Beyond, p is normal with the variance
    that is corrected for ties.
    """
    from scipy.stats import rankdata, wilcoxon

    if len(differences) < 2:
        return None
    data = np.asarray(differences, dtype=np.float64)
    largest = np.abs(data).max()
    if largest == 0:
        return 1.0
    data = np.round(data / largest, 9)  # differences of 3 / 40 and 4 / 40 - 1 / 40 are a tie
    data = data[data != 0]
    if len(data) > EXACT_RANKS:
        return float(wilcoxon(data).pvalue)
    ranks = np.rint(2 * rankdata(np.abs(data))).astype(int)  # twice the ranks: those of ties may be halves
    positive, total = int(ranks[data > 0].sum()), int(ranks.sum())
    chances = np.zeros(total + 1)  # of every sum of the positive ranks, as all signs are equally likely
    chances[0] = 1.0
    for rank in ranks:
        chances[rank:] = (chances[rank:] + chances[:-rank]) / 2
        chances[:rank] /= 2
    return min(1.0, 2 * float(chances[: min(positive, total - positive) + 1].sum()))


def holm(p: Mapping[str, float | None]) -> dict[str, float | None]:
    """Holm's step-down correction over the tests that there are (None stays None)."""
    ordered = sorted((value, name) for name, value in p.items() if value is not None)
    corrected: dict[str, float | None] = dict.fromkeys(p)
    running = 0.0
    for rank, (value, name) in enumerate(ordered):
        running = max(running, min(1.0, (len(ordered) - rank) * value))
        corrected[name] = running
    return corrected


def power_of(effect: float, n: int, level: float = 0.05) -> float:
    """The chance that a paired t-test of n differences rejects at `level`, two-sided; exact for normal differences.

    effect: the true mean difference over the standard deviation of the differences. The square of noncentral t is
    noncentral F, whose routine stays finite where that of t does not.
    """
    from scipy.special import ncfdtr, stdtrit

    return 1 - float(ncfdtr(1, n - 1, n * effect**2, stdtrit(n - 1, level / 2) ** 2))


def seeds_needed(difference: float, sd: float, level: float = 0.05) -> int | None:
    """The fewest seeds that tell `difference` from zero with `POWER`; None if more than `MOST`.

    sd: the standard deviation of the paired differences, > 0.
    """
    if sd <= 0:
        raise ValueError(f"sd must be > 0, got {sd}; without any spread every difference is told apart")
    effect, low, high = difference / sd, 1, 2
    while power_of(effect, high, level) < POWER:
        if high == MOST:
            return None
        low, high = high, min(2 * high, MOST)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(effect, middle, level) >= POWER else (middle, high)
    return high


def resolved(sd: float, n: int, level: float = 0.05) -> float:
    """The smallest difference that n >= 2 seeds tell from zero with `POWER`."""
    from scipy.optimize import brentq

    most = 1.0
    while power_of(most, n, level) < POWER:
        most *= 2
    return sd * float(brentq(lambda effect: power_of(effect, n, level) - POWER, 0, most))


@dataclass(frozen=True)
class Power:
    """What seeds can tell apart, for the observed spread. level: 0.05 over the number of methods, the most that Holm's
    correction asks, so that what it does not tell apart always needs more seeds than there are.

    seeds: those that a difference as large as the observed one needs, None for more than `MOST`; this is a plan for a
    new comparison, and no second look at this one. resolved: the smallest difference for the present number of seeds.
    """

    level: float
    sd: float
    difference: float
    seeds: int | None
    resolved: float


@dataclass(frozen=True)
class Difference(Estimate):
    """The paired difference to the baseline, with both tests, before and after Holm's correction over the methods."""

    p_uncorrected: float | None
    p_holm: float | None
    p_wilcoxon_uncorrected: float | None
    p_wilcoxon_holm: float | None
    power: Power | None
    """None for one seed, or where all differences are equal."""


@dataclass(frozen=True)
class Timing:
    """How long a run trained: one step, all of it. together: what else trained in its process, None for nothing."""

    step: float
    seconds: float
    epochs: int
    together: str | None = None


Runs = Mapping[str, Mapping[int, Mapping[str, float | None]]]
"""method -> seed -> metric -> value."""


@dataclass(frozen=True)
class Summary:
    """One method over its finished seeds. difference: to the baseline, by metric, of the seeds that both finished.

    cost: step time relative to the baseline, median over seeds of the ratio; None where it would be noise.
    """

    method: str
    n: int
    metrics: dict[str, Estimate]
    difference: dict[str, Difference]
    holm: float | None
    """Holm-corrected p of the paired t-test of the primary metric."""
    cost: float | None


def summarise(runs: Runs, baseline: str, primary: str, timings: Mapping[str, Mapping[int, Timing]]) -> list[Summary]:
    """One summary a method, in the order of `runs`. Metrics that are missing or None in some seed use the others."""
    differences = {method: _differences(runs, method, baseline) for method in runs}
    named = dict.fromkeys(name for mine in differences.values() for name in mine)
    tested = {name: _test({m: mine[name] for m, mine in differences.items() if name in mine}) for name in named}
    summaries = []
    for method, seeds in runs.items():
        names = dict.fromkeys(name for metrics in seeds.values() for name in metrics)
        columns = {name: [v for m in seeds.values() if (v := m.get(name)) is not None] for name in names}
        mine = {name: tested[name][method] for name in differences[method]}
        summaries.append(
            Summary(
                method,
                len(seeds),
                {name: estimate(values) for name, values in columns.items() if values},
                mine,
                mine[primary].p_holm if primary in mine else None,
                relative_cost(timings.get(method, {}), timings.get(baseline, {})),
            )
        )
    return summaries


def _test(differences: Mapping[str, Sequence[float]]) -> dict[str, Difference]:
    """The differences of one metric, by method."""
    t = {method: paired_p(values) for method, values in differences.items()}
    ranks = {method: wilcoxon_p(values) for method, values in differences.items()}
    t_holm, ranks_holm = holm(t), holm(ranks)
    level = 0.05 / max(1, sum(p is not None for p in t.values()))
    found = {}
    for method, values in differences.items():
        what = estimate(values)
        found[method] = Difference(
            **vars(what),
            p_uncorrected=t[method],
            p_holm=t_holm[method],
            p_wilcoxon_uncorrected=ranks[method],
            p_wilcoxon_holm=ranks_holm[method],
            power=_power(what, level),
        )
    return found


def _power(found: Estimate, level: float) -> Power | None:
    if found.sd is None or found.sd <= 1e-12 * abs(found.mean):
        return None
    size = abs(found.mean)
    return Power(level, found.sd, size, seeds_needed(size, found.sd, level), resolved(found.sd, found.n, level))


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


def relative_cost(mine: Mapping[int, Timing], baseline: Mapping[int, Timing]) -> float | None:
    """Median over seeds of the ratio of step times, over runs that were made in the same way; None where runs are too
    short to time (`SHORT_SECONDS`, `SHORT_EPOCHS`), or no two can be compared."""
    if too_short(mine.values()) or too_short(baseline.values()):
        return None
    pairs = [(mine[seed], baseline[seed]) for seed in mine if seed in baseline]
    ratios = [one.step / other.step for one, other in pairs if one.together == other.together and other.step > 0]
    return float(np.median(ratios)) if ratios else None


def too_short(runs: Iterable[Timing]) -> bool:
    """Whether runs are too short for their step times to mean anything."""
    times = list(runs)
    if not times:
        return True
    return bool(
        np.median([run.seconds for run in times]) < SHORT_SECONDS
        or np.median([run.epochs for run in times]) < SHORT_EPOCHS
    )
