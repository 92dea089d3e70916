"""Differences to the baseline in every held-out domain, paired by seed, and over all pairs of seed and domain.

A domain has one pair a seed, often three: its interval is that of Student's t, mean +- t sd / sqrt(n), which is right
for normal differences however few, and wide. Over all domains the interval is that of `statistics.bootstrap_interval`
over pairs of seed and domain, as if they were independent; those of a seed share their split and initial weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .statistics import FEWEST, bootstrap_interval

if TYPE_CHECKING:
    from .result import Result


@dataclass(frozen=True)
class Gap:
    """n paired differences: their mean, and its 95 % interval, None where there are too few."""

    n: int
    mean: float
    ci95: tuple[float, float] | None


@dataclass(frozen=True)
class Targets:
    """What one method gains over the baseline in each held-out domain, and over all pairs of seed and domain."""

    method: str
    domains: Mapping[str, Gap]
    pairs: Gap | None

    def to_json(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "domains": {name: vars(gap) for name, gap in self.domains.items()},
            "pairs": self.pairs and vars(self.pairs),
        }


def t_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Student's interval of the mean; None for fewer than two values."""
    from scipy.special import stdtrit

    n = len(values)
    if n < 2:
        return None
    mean, half = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(n)
    half *= float(stdtrit(n - 1, (1 + level) / 2))
    return mean - half, mean + half


def by_target(result: Result) -> list[Targets]:
    """A line a method other than the baseline, in the order of the table; nothing where no domains are held out."""
    if not result.by_domain or result.baseline not in result.by_method:
        return []
    base = _scores(result, result.baseline)
    lines = []
    for summary in result.ranking:
        if summary.method == result.baseline:
            continue
        own = _scores(result, summary.method)
        found: dict[str, list[float]] = {}
        for key, value in own.items():
            if key in base:
                found.setdefault(key[1], []).append(value - base[key])
        every = [value for values in found.values() for value in values]
        domains = {name: _gap(found[name], t_interval(found[name])) for name in result.domains if name in found}
        interval = bootstrap_interval(every) if len(every) >= FEWEST else None
        lines.append(Targets(summary.method, domains, _gap(every, interval) if every else None))
    return lines


def _gap(values: Sequence[float], interval: tuple[float, float] | None) -> Gap:
    return Gap(len(values), math.fsum(values) / len(values), interval)


def _scores(result: Result, method: str) -> dict[tuple[int, str], float]:
    """The primary metric by seed and held-out domain."""
    found = {
        (run.seed, name): metrics.get(result.primary)
        for run in result.by_method[method]
        for name, metrics in run.domains.items()
    }
    return {key: value for key, value in found.items() if value is not None}
