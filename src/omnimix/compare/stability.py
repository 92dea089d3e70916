"""How far the order of methods hangs on the draws of hyperparameters that happened to be made.

The draws of every method and seed are drawn again with replacement, as many; the rule of selection chooses among
those, and the methods are ranked by what was chosen. Reported: the mean rank, where 95 % of ranks lie, and how often a
method is first. Test scores only measure; choosing looks at validation scores as ever. Leave-one-domain-out trains one
run without the tested domain after choosing: other draws have no test score, and there is nothing to report.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..train.metrics import HIGHER_IS_BETTER, headline
from .jobs import Job, Plan
from .selection import LEAVE_ONE_OUT, cells, scored
from .spec import Spec
from .store import Run

RESAMPLES = 1000


@dataclass(frozen=True)
class Stability:
    """rank: the mean one; low, high: where 95 % lie; first: the share of resamples in which the method leads."""

    method: str
    rank: float
    low: float
    high: float
    first: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def stability(plan: Plan, jobs: Iterable[Job], runs: Mapping[str, Run], seed: int = 0) -> list[Stability]:
    """A line a method, best mean rank first; [] where there is one draw, one method, or a cell without two draws."""
    from scipy.stats import rankdata

    jobs = list(jobs)
    if plan.protocol.selection == LEAVE_ONE_OUT or len({job.draw.number for job in jobs}) < 2:
        return []
    metric = headline(plan.source.task)
    tests = {(cells(job)[0], job.draw.number): runs[job.key].metrics.get(metric) for job in jobs if job.key in runs}
    choices = scored(plan, jobs, runs)
    methods = list(dict.fromkeys(job.method for job in jobs))
    seeds = list(dict.fromkeys(job.seed for job in jobs))
    rng = np.random.default_rng(seed)
    columns: list[np.ndarray] = []
    for method in methods:
        means = [_chosen(method, one, choices, tests, rng) for one in seeds]
        if any(mean is None for mean in means):
            return []
        columns.append(np.mean(np.stack([mean for mean in means if mean is not None]), axis=0))
    if len(columns) < 2:
        return []
    sign = -1 if metric in HIGHER_IS_BETTER else 1
    ranks = rankdata(sign * np.stack(columns, axis=1), axis=1)
    low, high = np.quantile(ranks, (0.025, 0.975), axis=0)
    found = [
        Stability(str(m), float(ranks[:, i].mean()), float(low[i]), float(high[i]), float((ranks[:, i] == 1).mean()))
        for i, m in enumerate(methods)
    ]
    return sorted(found, key=lambda line: line.rank)


def _chosen(
    method: Spec,
    seed: int,
    choices: Mapping[Any, Mapping[int, Any]],
    tests: Mapping[Any, Any],
    rng: np.random.Generator,
) -> np.ndarray | None:
    """(RESAMPLES,) the mean over domains of the test scores of what was chosen; None where a draw has no test score."""
    own = {cell: draws for cell, draws in choices.items() if (cell.method, cell.seed) == (method, seed)}
    if not own:
        return None
    numbers = sorted(set.intersection(*(set(draws) for draws in own.values())))
    if len(numbers) < 2 or any(tests.get((cell, number)) is None for cell in own for number in numbers):
        return None
    drawn = rng.integers(len(numbers), size=(RESAMPLES, len(numbers)))
    inside = np.zeros((RESAMPLES, len(numbers)), dtype=bool)
    np.put_along_axis(inside, drawn, True, axis=1)
    total = np.zeros(RESAMPLES)
    for cell, draws in own.items():
        # best first; of equals the first draw, as in choosing
        order = sorted(range(len(numbers)), key=lambda i: (*(-part for part in draws[numbers[i]][:2]), i))
        test = np.array([tests[cell, numbers[i]] for i in order], dtype=float)
        total += test[inside[:, order].argmax(axis=1)]
    return total / len(own)
