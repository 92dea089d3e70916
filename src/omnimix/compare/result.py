"""What came out of a comparison: its runs, their statistics, and both as JSON, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from .. import __version__
from ..train.metrics import HIGHER_IS_BETTER
from . import rules
from .rules import Line, Ruled
from .spec import Settings
from .stability import Stability
from .statistics import (
    FEWEST,
    SHORT_EPOCHS,
    SHORT_SECONDS,
    Difference,
    Estimate,
    Power,
    Summary,
    Timing,
    summarise,
    too_short,
)
from .store import Failure, Run
from .targets import Targets, by_target

COLUMNS = (
    "method", "seed", "domain", "held_out", "selection", "label_noise", "draw", "parameters", "status", "error",
    "seconds",
)  # fmt: skip
"""Of the CSV file, before those of the metrics."""


@dataclass(frozen=True)
class Result:
    """The state of a comparison. runs: in the order of methods and seeds. pending: runs that have not ended.
    foreign: runs in the store that other code made; they are not used.

    data: what the report says about the data. protocol: what was held equal, as JSON. parameters: those each method ran
    with where they differ from its defaults. tuning: see `selection.tuning`. rules: what other rules of selection
    chose, of which the store holds runs. failed_draws: the number of the draw of hyperparameters of failed runs by key.
    stability: of the order of methods over the draws. transductive: methods whose predictions depend on the other rows
    of the test batch.
    """

    settings: Settings
    data: dict[str, Any]
    protocol: dict[str, Any]
    parameters: dict[str, dict[str, Any]]
    primary: str
    runs: list[Run]
    failures: list[Failure]
    pending: int
    foreign: int
    store: Path
    folder: Path
    tuning: list[dict[str, Any]] = field(default_factory=list)
    rules: dict[str, Ruled] = field(default_factory=dict)
    failed_draws: dict[str, int] = field(default_factory=dict)
    stability: list[Stability] = field(default_factory=list)
    transductive: tuple[str, ...] = ()

    @property
    def baseline(self) -> str:
        return str(self.settings.baseline_spec)

    @property
    def selection(self) -> str:
        """The rule by which runs were chosen."""
        return str(self.protocol.get("selection", "validation"))

    @property
    def by_domain(self) -> bool:
        """Whether domains were held out."""
        return bool(self.protocol.get("by_domain"))

    @cached_property
    def side_by_side(self) -> list[Line]:
        """Every method under every rule of selection that ran."""
        return rules.side_by_side(self)

    @cached_property
    def targets(self) -> list[Targets]:
        """Differences to the baseline by held-out domain."""
        return by_target(self)

    def label(self, method: str) -> str:
        """The name of a method in tables."""
        return f"{method} (transductive)" if method in self.transductive else method

    @property
    def version(self) -> str:
        return __version__

    @property
    def span(self) -> str:
        """5 seeds"""
        count = len(self.settings.seeds)
        return "1 seed" if count == 1 else f"{count} seeds"

    @property
    def complete(self) -> bool:
        """Every run ended well."""
        return not self.failures and not self.pending

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    @cached_property
    def by_method(self) -> dict[str, list[Run]]:
        """The runs of each method that has any, in the order asked for."""
        names = [str(spec) for spec in self.settings.specs]
        found = {name: [run for run in self.runs if run.method == name] for name in names}
        return {name: runs for name, runs in found.items() if runs}

    @property
    def without_runs(self) -> list[str]:
        """Methods of which no run has ended well."""
        return [str(spec) for spec in self.settings.specs if str(spec) not in self.by_method]

    @cached_property
    def summaries(self) -> list[Summary]:
        return summarise(
            {name: {run.seed: run.metrics for run in runs} for name, runs in self.by_method.items()},
            self.baseline,
            self.primary,
            self.timings,
        )

    @cached_property
    def timings(self) -> dict[str, dict[int, Timing]]:
        """What the runs took, by method and seed."""
        return {name: {run.seed: _timing(run) for run in runs} for name, runs in self.by_method.items()}

    @property
    def ranking(self) -> list[Summary]:
        """Summaries, best mean of the primary metric first."""
        sign = -1 if self.primary in HIGHER_IS_BETTER else 1
        return sorted(self.summaries, key=lambda summary: sign * self.mean(summary.method))

    def mean(self, method: str) -> float:
        """The primary metric, mean over the seeds that all methods have, or if there is none, over its own."""
        values = self.values(method)
        return math.fsum(values[seed] for seed in self.shared or values) / len(self.shared or values)

    @cached_property
    def shared(self) -> list[int]:
        """The seeds with which every method that has any run has one."""
        done = [self.values(method) for method in self.by_method]
        return [seed for seed in self.settings.seeds if all(seed in values for values in done)]

    def values(self, method: str) -> dict[int, float]:
        """The primary metric by seed."""
        found = {run.seed: run.metrics[self.primary] for run in self.by_method[method]}
        return {seed: value for seed, value in found.items() if value is not None}

    def seconds(self, method: str) -> float:
        """The mean time of a run."""
        times = [run.seconds for run in self.by_method[method]]
        return sum(times) / len(times)

    @cached_property
    def domains(self) -> list[str]:
        """The names of the domains that were tested."""
        return list(dict.fromkeys(name for run in self.runs for name in run.domains))

    def domain_mean(self, method: str, domain: str) -> float | None:
        """The primary metric in one domain, mean over seeds."""
        lines = (line for line in self.side_by_side if (line.method, line.rule) == (method, self.selection))
        return next(lines).domains[domain]

    @cached_property
    def metrics(self) -> list[str]:
        """The names of all metrics, the primary one first."""
        names = dict.fromkeys(name for run in self.runs for name in run.metrics)
        return [self.primary, *(name for name in names if name != self.primary)] if names else []

    def verdict(self, summary: Summary, level: float = 0.05) -> str:
        """One sentence: better, worse or not told apart from the baseline."""
        found = summary.difference.get(self.primary)
        if summary.method == self.baseline or found is None:
            return f"{summary.method} is the baseline" if summary.method == self.baseline else "no pairs of runs"
        size = f"{self.primary} {signed(found, self.places(self.primary))}"
        if summary.holm is None:
            return f"{summary.method}: {size} against {self.baseline}; one seed tells nothing about significance"
        p = f"Holm p {show_p(summary.holm)}"
        if found.p_wilcoxon_holm is not None and len(self.settings.seeds) >= 6:
            p += f" (Wilcoxon {show_p(found.p_wilcoxon_holm)})"
        if summary.holm >= level:
            needs = "" if found.power is None else f"; {self._needs(found, found.power)}"
            return f"{summary.method} cannot be told apart from {self.baseline}: {size}, {p}{needs}"
        better = (found.mean > 0) == (self.primary in HIGHER_IS_BETTER)
        return f"{summary.method} is {'better' if better else 'worse'} than {self.baseline}: {size}, {p}"

    def _needs(self, found: Difference, power: Power) -> str:
        places = self.places(self.primary)
        resolved = f"{found.n} seeds resolve {power.resolved:.{places}f}"
        if power.seeds is None:  # next to no difference: whoever wants to find it has no plan, but a bound
            return resolved
        return f"to resolve a difference of {power.difference:.{places}f}, {power.seeds} seeds are needed; {resolved}"

    @property
    def tests(self) -> str:
        """What the p-values are."""
        count = len(self.settings.seeds)
        ranks = f"never below {2.0 ** (1 - count):.3g} with {self.span}" if count < 6 else "free of the normal shape"
        return (
            "p: paired t-test by seed; Wilcoxon p: signed-rank test of the same differences, "
            f"{ranks}; both corrected by Holm for the number of methods"
        )

    def places(self, metric: str) -> int:
        """Decimals to print a metric with: two digits of its smallest standard deviation over seeds."""
        found = [s.metrics[metric] for s in self.summaries if metric in s.metrics]
        spreads = [e.sd for e in found if e.sd]
        scale = min(spreads) * 10 if spreads else max((abs(e.mean) for e in found), default=1.0)
        return min(6, max(0, 2 - math.floor(math.log10(scale)))) if scale > 0 else 3

    @property
    def warnings(self) -> list[str]:
        """What a reader must know before believing the table."""
        said = []
        if self.failures:
            said.append(f"{len(self.failures)} of the runs failed; the table is about the others")
        if self.pending:
            said.append(f"{self.pending} runs have not ended; the same command continues the comparison")
        if self.foreign:
            said.append(f"{self.foreign} runs in the store were made by other versions of the code and were not used")
        if len(self.settings.seeds) < 5:
            said.append(f"with {self.span} only large differences can be told from chance")
        if any(summary.metrics[self.primary].ci95 is None for summary in self.summaries):
            said.append(f"too few seeds for an interval (fewer than {FEWEST}) where it is left empty")
        if len({summary.n for summary in self.summaries}) > 1:
            by = f"the {len(self.shared)} seeds that all of them have" if self.shared else "their own seeds"
            said.append(f"the methods have different numbers of runs (n); they are ordered by {by}")
        if self.data["domains"] and self.data["random_split"]:
            said.append(
                "the results by domain and worst_domain are of random splits: every domain is in training too, so they "
                "say nothing about new domains"
            )
        if self.settings.label_noise:
            said.append(
                f"{self.settings.label_noise:.0%} of the training and of the validation labels were replaced by random "
                "ones; test labels are clean"
            )
        said += [*self._selected(), *self.settings.variants]
        return [*said, *self._untimed(), *self._doubts()]

    def _selected(self) -> list[str]:
        """By what the runs were chosen, where that is not plain."""
        said = []
        if self.transductive:
            said.append(
                f"{', '.join(self.transductive)}: transductive, predictions depend on the other rows of the test batch"
            )
        if self.settings.tune > 1:
            said.append(
                f"each method had {self.settings.tune} draws of hyperparameters, the first its default; each seed uses "
                "the one with its best validation score"
            )
        if self.selection == rules.ORACLE:
            said.append(
                "selection by oracle: hyperparameters were chosen with labels of the tested domains, so these results "
                "are an upper reference, not what can be reached"
            )
        return said

    def _untimed(self) -> list[str]:
        """Why step times are not compared, where they are not."""
        missing = [s.method for s in self.summaries if s.cost is None]
        if len(self.summaries) < 2 or self.baseline not in self.by_method or not missing:
            return []
        if any(too_short(self.timings[name].values()) for name in (self.baseline, *missing)):
            return [
                "step times are not compared: the runs are too short for that (less than "
                f"{SHORT_SECONDS:g} s of training, or fewer than {SHORT_EPOCHS} epochs)"
            ]
        return [
            f"the step times of {', '.join(missing)} and {self.baseline} are not compared: their runs were not made in "
            "the same way (alone, or several together in one process), or not with the same seeds"
        ]

    def _doubts(self, level: float = 0.05) -> list[str]:
        """Where the rank test, which could, does not follow the t-test."""
        tests = {s.method: s.difference[self.primary] for s in self.summaries if self.primary in s.difference}
        least = len(tests) * 2.0 ** (1 - len(self.settings.seeds))
        alone = [
            name
            for name, found in tests.items()
            if found.p_holm is not None and found.p_wilcoxon_holm is not None
            if found.p_holm < level <= found.p_wilcoxon_holm and least < level
        ]
        if not alone:
            return []
        return [f"{', '.join(alone)}: the t-test finds a difference, the rank test (Wilcoxon) does not; run more seeds"]

    def rows(self) -> list[dict[str, Any]]:
        """One dict a run, and one for each of its domains where the data has any; failed runs at the end.

        held_out: the domains it did not train on. draw, parameters, training: what tuning chose for it, None where it
        chose nothing, or for each domain something else.
        """
        return [*self._rows_of(self.selection, Ruled(self.runs, self.tuning)), *map(self._failed_row, self.failures)]

    def _rows_of(self, rule: str, found: Ruled) -> Iterator[dict[str, Any]]:
        chosen = {(one["method"], one["seed"], one["domain"]): one["chosen"] or {} for one in found.tuning}
        for run in found.runs:
            own = {"method": run.method, "seed": run.seed, "selection": rule, "label_noise": self.settings.label_noise}
            for domain, metrics in [(None, run.metrics), *run.domains.items()]:
                draw = chosen.get((run.method, run.seed, domain if self.by_domain else None), {})
                yield {
                    **own,
                    "domain": domain,
                    "held_out": [domain] if self.by_domain and domain is not None else [],
                    **{name: draw.get(name) for name in ("draw", "parameters", "training")},
                    "metrics": metrics,
                    "seconds": run.seconds,
                    "status": "ok",
                }

    def _failed_row(self, fault: Failure) -> dict[str, Any]:
        return {
            "method": fault.method,
            "seed": fault.seed,
            "selection": self.selection,
            "label_noise": self.settings.label_noise,
            "domain": None,
            "held_out": held_out(fault),
            "draw": self.failed_draws.get(fault.key),
            "parameters": fault.config.get("parameters"),
            "training": None,
            "metrics": {},
            "seconds": None,
            "status": "failed",
            "error": fault.error,
        }

    def failure_name(self, fault: Failure) -> str:
        """mixup, seed 3, draw 5, without north and south"""
        number, out = self.failed_draws.get(fault.key), held_out(fault)
        parts = [fault.method, f"seed {fault.seed}", *([f"draw {number}"] if number else [])]
        return ", ".join([*parts, *(["without " + " and ".join(out)] if out else [])])

    def to_json(self) -> dict[str, Any]:
        return {
            "data": self.settings.data,
            "protocol": self.settings.protocol,
            "baseline": self.baseline,
            "primary": self.primary,
            "selection": self.selection,
            "rows": self.rows(),
            "rules": [line.to_json() for line in self.side_by_side],
            "targets": [line.to_json() for line in self.targets],
            "stability": [line.to_json() for line in self.stability],
            "summary": [_summary_json(summary) for summary in [*self.summaries, *map(_nothing, self.without_runs)]],
            "tests": self.tests,
            "pending": self.pending,
            "warnings": self.warnings,
            "configuration": {
                "settings": self.settings.model_dump(mode="json"),
                "data": self.data,
                "protocol": self.protocol,
                "parameters": self.parameters,
            },
            "tuning": self.tuning,
            "tuning_of_other_rules": {rule: found.tuning for rule, found in self.rules.items() if found.tuning},
            "store": str(self.store),
            "report": str(self.report),
        }

    def to_csv(self) -> str:
        """The rows of all rules of selection as CSV, a column a metric."""
        text = io.StringIO()
        writer = csv.DictWriter(text, [*COLUMNS, *self.metrics], extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.csv_rows())
        return text.getvalue()

    def csv_rows(self) -> Iterator[dict[str, Any]]:
        """The rows of all rules of selection with cells in place of lists and dicts."""
        others = (row for rule, found in self.rules.items() for row in self._rows_of(rule, found))
        for row in (*self.rows(), *others):
            given = {**(row["parameters"] or {}), **(row["training"] or {})}
            cells = {"held_out": "+".join(row["held_out"]), "parameters": rules.write_parameters(given, ":")}
            yield {**row, **cells, **row["metrics"]}

    def to_latex(self) -> str:
        """The summary as a table for a paper; needs the package booktabs."""
        from .latex import table

        return table(self)


def _timing(run: Run) -> Timing:
    """How long it was measured: runs that trained together each have their share of the time."""
    together, rates = run.versions.get("together"), run.versions.get("rates")
    beside = together and f"{together} runs, {rates or 1} rates"
    return Timing(run.step_seconds or 0.0, run.seconds * int(together or 1), len(run.history), beside)


def _column(estimates: dict[str, Estimate], part: str) -> dict[str, Any]:
    return {name: getattr(found, part) for name, found in estimates.items()}


def _summary_json(summary: Summary) -> dict[str, Any]:
    return {
        "method": summary.method,
        "n": summary.n,
        "mean": _column(summary.metrics, "mean"),
        "sd": _column(summary.metrics, "sd"),
        "ci95": _column(summary.metrics, "ci95"),
        "diff": {name: _difference_json(found) for name, found in summary.difference.items()},
        "p": summary.holm,
        "power": {name: found.power and asdict(found.power) for name, found in summary.difference.items()},
        "cost": summary.cost,
    }


def _difference_json(found: Difference) -> dict[str, Any]:
    return {name: value for name, value in vars(found).items() if name != "power"}


def _nothing(method: str) -> Summary:
    return Summary(method, 0, {}, {}, None, None)


def held_out(fault: Failure) -> list[str]:
    """The names of the domains that a failed run was not to train on."""
    return list((fault.config.get("held_out") or {}).get("out", []))


def show_p(p: float) -> str:
    """0.032, or < 0.001."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def show_interval(interval: Iterable[float] | None, places: int, sign: str = "") -> str:
    """[low, high], or nothing."""
    return "" if interval is None else "[" + ", ".join(f"{bound:{sign}.{places}f}" for bound in interval) + "]"


def signed(found: Estimate, places: int) -> str:
    """+0.91 [+0.70, +1.12]"""
    return f"{found.mean:+.{places}f} {show_interval(found.ci95, places, '+')}".strip()
