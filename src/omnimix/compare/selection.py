"""Which run stands for a method in the table: chosen by validation scores; test scores are never looked at.

Where rows are split at random: "validation" takes the epoch that the protocol's budget says, "last" the last one, and
both the draw of hyperparameters with the best validation score. Where domains are held out (Gulrajani and Lopez-Paz,
"In Search of Lost Domain Generalization", ICLR 2021, arXiv 2007.01434), for a tested domain T:

    training-domain        epoch and draw best by the mean over the training domains, each of them counting the same, of
                           the score on the 20 % that was put aside
    leave-one-domain-out   epoch and draw best by the mean over V of the score on V of a run without T and V;
                           then a run without T for so many epochs
    oracle                 last epoch, draw best on 20 % of T itself: an upper reference, out of reach in practice
    last                   last epoch, draw best by that mean

Every seed selects for itself. Of equal scores the lower validation loss wins, then the first draw.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from ..data.source import Source
from ..train.budget import Budget
from ..train.metrics import HIGHER_IS_BETTER, headline
from .protocol import Hold, Protocol, tested_domains
from .spec import Spec, fingerprint
from .store import Run

if TYPE_CHECKING:
    from .jobs import Job, Plan

LEAVE_ONE_OUT = "leave-one-domain-out"


class Cell(NamedTuple):
    """What one run of the table stands for. domain: the id of the tested one, None where rows are split at random."""

    method: Spec
    seed: int
    domain: int | None


@dataclass(frozen=True)
class Chosen:
    """The draw and epoch that validation chose, its score (the headline metric), and the scores of all draws."""

    draw: int
    epoch: int
    score: float
    scores: dict[int, float]


def holds(protocol: Protocol, source: Source) -> list[Hold | None]:
    """What the runs of a method hold out that the rule needs before anything is selected; ValueError for too few."""
    if not protocol.by_domain:
        return [None]
    domains = tested_domains(source)
    if protocol.selection != LEAVE_ONE_OUT:
        return [Hold((domain,), protocol.selection == "oracle") for domain in domains]
    if len(domains) < 3:
        raise ValueError(
            f"selection = {LEAVE_ONE_OUT!r} leaves out two domains and needs three or more; {source.name} has "
            f"{len(domains)}; use training-domain"
        )
    return [Hold(pair) for pair in itertools.combinations(domains, 2)]


def rule_budget(budget: Budget, protocol: Protocol, epochs: int | None = None) -> Budget:
    """The budget with the epoch that the rule keeps. epochs: after how many to stop, where they were chosen before."""
    if protocol.selection == "validation":
        return budget
    if protocol.by_domain:
        budget = replace(budget, metric="mean_domain")  # with it come the scores of single domains
    select = "best" if protocol.selection == "training-domain" else "last"
    return replace(budget, select=select, epochs=epochs or budget.epochs, planned=epochs and budget.epochs)


def cells(job: Job) -> list[Cell]:
    """What the run of a job helps to choose, or is chosen for."""
    return [Cell(job.method, job.seed, domain) for domain in (job.hold.out if job.hold else (None,))]


def is_final(job: Job, protocol: Protocol) -> bool:
    """Whether the job follows from what others chose."""
    return protocol.selection == LEAVE_ONE_OUT and job.hold is not None and len(job.hold.out) == 1


def scored(plan: Plan, jobs: Iterable[Job], runs: Mapping[str, Run]) -> dict[Cell, dict[int, _Score]]:
    """By cell and draw, the validation score of every draw that has all its runs."""
    metric = headline(plan.source.task)
    return {
        cell: {
            number: _score([(job, runs[job.key]) for job in some], cell, metric)
            for number, some in sorted(draws.items())
            if all(job.key in runs for job in some)
        }
        for cell, draws in _tried(plan, jobs).items()
    }


def choices(plan: Plan, jobs: Iterable[Job], runs: Mapping[str, Run]) -> dict[Cell, Chosen]:
    """By cell, what validation chose; cells are left out for which no draw has all its runs."""
    sign = _sign(headline(plan.source.task))
    found = {}
    for cell, draws in scored(plan, jobs, runs).items():
        if draws:
            best = max(draws, key=lambda number: draws[number][:2])
            scores = {number: sign * score.value for number, score in draws.items()}
            found[cell] = Chosen(best, draws[best].epoch, scores[best], scores)
    return found


def _tried(plan: Plan, jobs: Iterable[Job]) -> dict[Cell, dict[int, list[Job]]]:
    """By cell and draw, the jobs that score it."""
    tried: dict[Cell, dict[int, list[Job]]] = {}
    for job in jobs:
        if not is_final(job, plan.protocol):
            for cell in cells(job):
                tried.setdefault(cell, {}).setdefault(job.draw.number, []).append(job)
    return tried


def standing(plan: Plan, jobs: Iterable[Job], chosen: Mapping[Cell, Chosen]) -> dict[Cell, Job]:
    """By cell, the job whose run the table shows."""
    after = plan.protocol.selection == LEAVE_ONE_OUT
    found = {}
    for job in jobs:
        cell = cells(job)[0]
        if is_final(job, plan.protocol) if after else cell in chosen and chosen[cell].draw == job.draw.number:
            found[cell] = job
    return found


def table_runs(plan: Plan, jobs: Iterable[Job], chosen: Mapping[Cell, Chosen], runs: Mapping[str, Run]) -> list[Run]:
    """One run a method and seed, in the order of `jobs`; none where the run of some domain is missing.

    A method bears the name that was typed here: a run may have been made under another text of the same.
    """
    standing_jobs = standing(plan, jobs, chosen).items()
    shown = {cell: replace(runs[job.key], method=str(job.method)) for cell, job in standing_jobs if job.key in runs}
    if not plan.protocol.by_domain:
        return list(shown.values())
    names = {domain: plan.source.domain_names[domain] for domain in tested_domains(plan.source)}
    rows: dict[tuple[Spec, int], dict[str, Run]] = {}
    for cell, run in shown.items():
        if cell.domain is not None:
            rows.setdefault((cell.method, cell.seed), {})[names[cell.domain]] = run
    return [
        over_domains({name: row[name] for name in names.values()}, headline(plan.source.task))
        for row in rows.values()
        if len(row) == len(names)
    ]


def tuning(
    plan: Plan, jobs: Sequence[Job], chosen: Mapping[Cell, Chosen], runs: Mapping[str, Run]
) -> list[dict[str, Any]]:
    """By method, seed and tested domain: the draw that was chosen and all draws, with their validation scores."""
    shown = standing(plan, jobs, chosen)

    def told(job: Job) -> dict[str, Any]:
        return {"draw": job.draw.number, "parameters": dict(job.parameters), "training": dict(job.draw.budget)}

    listed = []
    for cell, draws in _tried(plan, jobs).items():
        choice, job = chosen.get(cell), shown.get(cell)
        scores = choice.scores if choice else {}
        listed.append(
            {
                "method": str(cell.method),
                "seed": cell.seed,
                "domain": None if cell.domain is None else plan.source.domain_names[cell.domain],
                "chosen": choice and job and {**told(job), "score": choice.score, "epoch": choice.epoch},
                "draws": [{**told(some[0]), "score": scores.get(number)} for number, some in sorted(draws.items())],
            }
        )
    return listed


class _Score(NamedTuple):
    """The larger the better."""

    value: float
    minus_loss: float
    epoch: int


def _sign(metric: str) -> int:
    return 1 if metric in HIGHER_IS_BETTER else -1


def _score(runs: Sequence[tuple[Job, Run]], cell: Cell, metric: str) -> _Score:
    """The score of a draw: of its run, or of its runs without the tested domain and one other."""
    job, run = runs[0]
    if job.hold is None or len(job.hold.out) == 1:
        epoch = run.best_epoch or len(run.history)
        row = run.history[epoch - 1]
        name = "mean_domain" if job.hold else metric
        return _Score(_sign(metric) * row[f"valid_{name}"], -row["valid_loss"], epoch)
    others = [next(domain for domain in job.hold.out if domain != cell.domain) for job, _ in runs if job.hold]
    curves = [
        [row[f"valid_{metric}@{other}"] for row in run.history] for other, (_, run) in zip(others, runs, strict=True)
    ]
    means = [_sign(metric) * math.fsum(values) / len(values) for values in zip(*curves, strict=True)]
    best = max(means)
    return _Score(best, 0.0, means.index(best) + 1)


def over_domains(runs: Mapping[str, Run], metric: str) -> Run:
    """The run of a method and a seed: its scores are the means over the held-out domains, by whose names `runs` are.

    worst_domain is the worst of them; the rows of the domains hold all metrics. Learning curves are means, times sums.
    """
    some = list(runs.values())
    own = {name: {k: v for k, v in run.metrics.items() if k != "worst_domain"} for name, run in runs.items()}
    metrics: dict[str, float | None] = {}
    for name in own[next(iter(own))]:
        values = [found[name] for found in own.values()]
        known = [value for value in values if value is not None]
        metrics[name] = math.fsum(known) / len(known) if len(known) == len(values) else None
    main = [value for found in own.values() if (value := found[metric]) is not None]
    metrics["worst_domain"] = min(main) if metric in HIGHER_IS_BETTER else max(main)
    history = [
        {
            name: rows[0][name] if name == "epoch" else math.fsum(row[name] for row in rows) / len(rows)
            for name in rows[0]
        }
        for rows in zip(*(_comparable(run) for run in some), strict=False)
    ]
    steps = [run.step_seconds for run in some if run.step_seconds is not None]
    return replace(
        some[0],
        key=fingerprint([run.key for run in some]),
        metrics=metrics,
        domains=own,
        history=history,
        best_epoch=some[0].best_epoch if len({run.best_epoch for run in some}) == 1 else None,
        seconds=math.fsum(run.seconds for run in some),
        step_seconds=math.fsum(steps) / len(steps) if steps else None,
        peak_memory=max((run.peak_memory for run in some if run.peak_memory is not None), default=None),
        finished=max(run.finished for run in some),
        extras={},
    )


def _comparable(run: Run) -> list[dict[str, float]]:
    """The history without the scores of single domains, which differ from run to run."""
    return [{name: value for name, value in row.items() if "@" not in name} for row in run.history]
