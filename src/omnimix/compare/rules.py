"""What chose the runs of a comparison, in words; the draws that were chosen; and selection rules side by side.

A store may hold runs of several rules for the same methods and seeds, each made by a call of its own: then the report
of any of them shows all, with their gap to the one that was asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from .arguments import write_value
from .store import Run

if TYPE_CHECKING:
    from .result import Result

ORACLE = "oracle"
REFERENCE = "an upper reference, out of reach in practice"
"""What the oracle is."""


@dataclass(frozen=True)
class Ruled:
    """What one rule chose. runs: those of its table; tuning: see `selection.tuning`."""

    runs: list[Run]
    tuning: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Line:
    """A method under one rule: its means over n seeds, in each domain, of the worst one of each seed, and in all.

    gap: the mean minus that under the rule of the comparison, over the seeds that both have; None for that rule itself.
    """

    method: str
    rule: str
    n: int
    domains: dict[str, float | None]
    worst: float | None
    mean: float
    gap: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def side_by_side(result: Result) -> list[Line]:
    """A line a method and rule: methods by rank, the rule of the comparison first, the oracle last."""
    by_rule = {result.selection: result.runs, **{rule: found.runs for rule, found in result.rules.items()}}
    rules = sorted(by_rule, key=lambda rule: (rule == ORACLE, rule != result.selection))
    lines = []
    for method in [*(summary.method for summary in result.ranking), *result.without_runs]:
        own = _values(by_rule[result.selection], method, result.primary)
        for rule in rules:
            values = _values(by_rule[rule], method, result.primary)
            if not values:
                continue
            runs = [run for run in by_rule[rule] if run.method == method]
            both = [seed for seed in values if seed in own] if rule != result.selection else []
            lines.append(
                Line(
                    method,
                    rule,
                    len(runs),
                    {name: _mean([_of(run, name, result.primary) for run in runs]) for name in result.domains},
                    _mean([run.metrics.get("worst_domain") for run in runs]),
                    math.fsum(values.values()) / len(values),
                    _mean([values[seed] - own[seed] for seed in both]),
                )
            )
    return lines


def _values(runs: Sequence[Run], method: str, metric: str) -> dict[int, float]:
    found = {run.seed: run.metrics.get(metric) for run in runs if run.method == method}
    return {seed: value for seed, value in found.items() if value is not None}


def _of(run: Run, domain: str, metric: str) -> float | None:
    return run.domains.get(domain, {}).get(metric)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def said(result: Result) -> str:
    """What chose the epoch, and the draw of hyperparameters where there were several."""
    budget, rule = result.protocol["budget"], result.selection
    best = budget.get("select") == "best"
    epoch, scored = {
        "training-domain": (
            "the best one",
            "rows of all training domains that were put aside, each domain counting alike",
        ),
        "leave-one-domain-out": (
            "the best one",
            "each other domain in turn, left out of training too; then a run without the tested domain, for so long",
        ),
        ORACLE: ("the last one", "some rows of the tested domain itself"),
        "last": ("the last one", "the validation rows"),
    }.get(rule, (f"that of the best {budget.get('metric', 'loss')}" if best else "the last one", "the validation rows"))
    tuned = result.settings.tune > 1
    chosen = tuned or epoch != "the last one"
    parts = [f"{rule}{', seed by seed' if chosen else ''}: of the epochs {epoch}"]
    if tuned:
        parts[0] += f", of {result.settings.tune} draws of hyperparameters (the first is the default) the best one,"
    if chosen:
        parts[0] += f" on {scored}"
    if rule == ORACLE:
        parts.append(REFERENCE)
    return "; ".join(parts)


def draws(result: Result) -> list[dict[str, Any]]:
    """What was chosen for every method, seed and tested domain, by all rules: one dict each, empty if nothing was.

    given: the parameters of the method and what differs in its training.
    """
    by_rule = {result.selection: result.tuning, **{rule: found.tuning for rule, found in result.rules.items()}}
    listed = []
    for rule, tuning in by_rule.items():
        for one in tuning:
            if one["chosen"]:
                given = {**one["chosen"]["parameters"], **one["chosen"]["training"]}
                listed.append({"rule": rule, **one, **one["chosen"], "given": given})
    return listed


def write_parameters(parameters: Mapping[str, Any], between: str = ", ") -> str:
    """alpha=0.2, taps=block1+block2"""
    return between.join(f"{name}={write_value(value)}" for name, value in parameters.items())
