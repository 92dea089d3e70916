"""`omnimix compare`: which mixing method helps on these data, is it significant, what does it cost?"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .console import app, console, progress, user_errors
from .pace import Pace, Work

if TYPE_CHECKING:
    import numpy as np

    from ..compare.jobs import Job, Plan, Unit
    from ..compare.result import Result
    from ..compare.spec import Settings
    from ..compare.store import Failure, Run
    from ..compare.suite import Suite
    from ..data import Source


DATA, ROWS, TRAINING, CHOICE, RUNNING = "Data", "Rows of the table", "Training", "Tuning and selection", "Running"
"""Panels of the help."""


@app.command()
def compare(
    data: Annotated[
        str,
        typer.Option(
            help="A built-in data set (airfoil, digits, ...), or a file or folder, or KIND:PATH (pacs:DIR, "
            "rotated-mnist:DIR, ...); several with commas.",
            rich_help_panel=DATA,
        ),
    ],
    target: Annotated[
        str | None, typer.Option(help="The column(s) to predict, for tables.", rich_help_panel=DATA)
    ] = None,
    task: Annotated[str, typer.Option(help="auto, classification or regression.", rich_help_panel=DATA)] = "auto",
    drop: Annotated[str, typer.Option(help="Columns to leave out, with commas.", rich_help_panel=DATA)] = "",
    domain: Annotated[
        str | None, typer.Option(help="The column whose values are domains.", rich_help_panel=DATA)
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Bring images to this height and width.", rich_help_panel=DATA)
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(help="At most so many rows of every domain (in all, where there are none).", rich_help_panel=DATA),
    ] = None,
    data_seed: Annotated[
        int,
        typer.Option(
            help="What draws those rows, and makes the domains of rotated-mnist and the like; the same in all runs.",
            rich_help_panel=DATA,
        ),
    ] = 0,
    label_noise: Annotated[
        float,
        typer.Option(
            help="The share of training and validation labels to replace by random ones.", rich_help_panel=DATA
        ),
    ] = 0.0,
    noise_seed: Annotated[int, typer.Option(help="The seed of that noise.", rich_help_panel=DATA)] = 0,
    methods: Annotated[
        str,
        typer.Option(
            help="With commas: erm,mixup:alpha=0.2,c-mixup. Default: the usual ones for the task.", rich_help_panel=ROWS
        ),
    ] = "",
    baseline: Annotated[
        str | None, typer.Option(help="Compare with this method. Default: erm, or the first.", rich_help_panel=ROWS)
    ] = None,
    controls: Annotated[
        bool,
        typer.Option(
            "--controls", help="Also train on what each selecting method pairs, without mixing.", rich_help_panel=ROWS
        ),
    ] = False,
    equal_compute: Annotated[
        bool,
        typer.Option(
            "--equal-compute",
            help="Also train erm for as many gradient evaluations as dearer methods take (erm@2x).",
            rich_help_panel=ROWS,
        ),
    ] = False,
    seeds: Annotated[
        str | None,
        typer.Option(
            "--seeds",
            "--trials",
            help="How many (5: seeds 0 to 4), or which (3,5,7); each with a split of its own. Default: 5.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="What is held equal: default, c-mixup (airfoil, no2), or domains (each one held out in turn).",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    domain_protocol: Annotated[
        str | None,
        typer.Option(
            help="leave-one-out: every domain held out in turn (--protocol domains); official: with the publisher's "
            "training and validation rows of each.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            help="What to spend on a comparison over domains where nothing else is said: quick (minutes), or full (20 "
            "draws, 3 seeds).",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    net: Annotated[
        str | None,
        typer.Option(help="The network: mlp:hidden=64+64, small-cnn, timm:NAME, ...", rich_help_panel=TRAINING),
    ] = None,
    batch_norm: Annotated[
        str | None,
        typer.Option(
            help="train, or frozen: keep the statistics of batch-norm layers as they come with pretrained weights.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training rows.", rich_help_panel=TRAINING)] = None,
    evaluations: Annotated[
        int | None,
        typer.Option(
            help="In place of --epochs: gradient evaluations (of a batch), the same for every method.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Rows of a training step.", rich_help_panel=TRAINING)] = None,
    lr: Annotated[float | None, typer.Option(help="The learning rate.", rich_help_panel=TRAINING)] = None,
    devices: Annotated[
        int | None,
        typer.Option(
            help="Train every run on so many devices (GPUs; without them, processes), each with its part of every "
            "batch.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    tune: Annotated[
        int | None,
        typer.Option(
            "--tune",
            "--draws",
            help="Draws of hyperparameters for every method, the first its default; validation chooses, seed by seed.",
            rich_help_panel=CHOICE,
        ),
    ] = None,
    selection: Annotated[
        str | None,
        typer.Option(
            "--selection",
            "--select",
            help="What chooses epoch and draw: validation or last; for --protocol domains training-domain, "
            "leave-one-domain-out, oracle or last; several with commas. Default: the protocol's.",
            rich_help_panel=CHOICE,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The folder of store and report. Default: omnimix-out/NAME.", rich_help_panel=RUNNING),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Runs at a time. Default: one a core, or one on a GPU.", rich_help_panel=RUNNING)
    ] = None,
    engine: Annotated[
        str, typer.Option(help="What computes: local (processes), or ray (a cluster).", rich_help_panel=RUNNING)
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            help="Of the Ray cluster (auto, ray://host:10001). Default: one started here.", rich_help_panel=RUNNING
        ),
    ] = None,
    apart: Annotated[
        bool,
        typer.Option(
            "--apart",
            help="Train every run by itself; else the seeds of a small network train together where that is possible.",
            rich_help_panel=RUNNING,
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say which runs are missing, and run nothing.", rich_help_panel=RUNNING),
    ] = False,
    log: Annotated[
        str | None,
        typer.Option(help="Also log runs to tensorboard:FOLDER, mlflow:URI or csv:FOLDER.", rich_help_panel=RUNNING),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON object, and nothing else, on stdout.", rich_help_panel=RUNNING),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress and no table.", rich_help_panel=RUNNING)
    ] = False,
) -> None:
    """Train every method with every seed under one protocol, and report what came out.

    A comparison that was stopped continues where it was: runs in the store are not repeated.
    """
    with user_errors():
        from ..compare.profile import DOMAIN_PROTOCOLS, with_profile
        from ..compare.run import Watch
        from ..compare.run import compare as run
        from ..compare.spec import parse_seeds, parse_specs, settings
        from ..compare.suite import compare_suite, data_names
        from ..core.checks import one_of

        if domain_protocol is not None:
            if protocol is not None:
                raise ValueError("--domain-protocol is a protocol: leave out --protocol")
            protocol = DOMAIN_PROTOCOLS[one_of("domain_protocol", domain_protocol, tuple(DOMAIN_PROTOCOLS))]
        named = [part.strip() for part in (selection or "").split(",") if part.strip()]
        chosen: list[str | None] = [*named] or [None]
        given = {
            "data": data,
            "methods": tuple(map(str, parse_specs(methods))) if methods else (),
            "seeds": None if seeds is None else parse_seeds(seeds),
            "target": target,
            "task": task,
            "drop": tuple(part.strip() for part in drop.split(",") if part.strip()),
            "domain": domain,
            "size": size,
            "rows": rows,
            "data_seed": data_seed,
            "protocol": protocol,
            "batch_norm": batch_norm,
            "net": net,
            "epochs": epochs,
            "batch": batch,
            "lr": lr,
            "devices": devices,
            "label_noise": label_noise,
            "noise_seed": noise_seed,
            "baseline": baseline,
            "tune": tune,
            "selection": chosen[0],
            "controls": controls,
            "equal_compute": equal_compute,
            "evaluations": evaluations,
        }
        common = settings(**with_profile(profile, given))
        asked = [common.model_copy(update={"data": name}) for name in data_names(data)]
        if dry_run:
            for one in asked:
                source = None
                for rule in chosen:
                    source = _say_missing(one.model_copy(update={"selection": rule}), out, source)
            return
        messages = console(stderr=True)
        watch = _Watch(messages, quiet, several=len(asked) > 1)
        seen: Watch = watch
        if log is not None:
            from ..integrations.loggers import by_address, log_runs

            seen = log_runs(by_address(log), watch)
        how: dict[str, Any] = {
            "workers": jobs,
            "watch": seen,
            "engine": engine,
            "address": address,
            "together": not apart,
        }
        try:
            for rule in reversed(chosen):  # the report of the first one shows all of them
                wanted = [one.model_copy(update={"selection": rule}) for one in asked]
                result = compare_suite(wanted, out, **how) if len(wanted) > 1 else run(wanted[0], out, **how)
        except KeyboardInterrupt:
            typer.echo(f"omnimix: stopped; {watch.kept}; the same command continues from there", err=True)
            raise typer.Exit(130) from None
    if as_json:
        sys.stdout.write(json.dumps(result.to_json(), allow_nan=False) + "\n")
    if not quiet:
        show(result, messages if as_json else console(stderr=False))
    if not result.complete:
        raise typer.Exit(1)


def _say_missing(asked: Settings, out: Path | None, source: Source | None) -> Source:
    """What `compare` would run, by method and by what is held out; gives back the data."""
    from ..compare.missing import missing

    found = missing(asked, out, source)
    have, jobs = len(found.needed) - len(found.jobs), found.jobs
    said = console(stderr=False)
    said.print(
        f"{found.plan.source.name}, selection by {found.plan.protocol.selection}: {len(found.needed)} runs are needed, "
        f"{have} are in the store, {len(jobs)} are missing"
        + (f"; {found.later} more follow once those have chosen" if found.later else ""),
        markup=False,
        soft_wrap=True,
    )
    if not jobs:
        return found.plan.source
    table = Table("method", "seed", "held out", title="missing runs", title_justify="left")
    table.add_column("runs", justify="right")
    names, counts = found.plan.source.domain_names, dict[tuple[str, int, str], int]()
    for job in jobs:
        out_of = "" if job.hold is None else " and ".join(names[domain] for domain in job.hold.out)
        key = (str(job.method), job.seed, out_of)
        counts[key] = counts.get(key, 0) + 1
    for (method, seed, out_of), count in counts.items():
        table.add_row(escape(method), str(seed), escape(out_of), str(count))
    said.print(table)
    return found.plan.source


class _Watch:
    """Says what a comparison is doing."""

    def __init__(self, out: Console, quiet: bool, several: bool) -> None:
        self.out, self.quiet, self.several = out, quiet, several
        self.kept = "nothing has run yet"

    @contextmanager
    def __call__(
        self, plan: Plan, units: list[Unit], found: int, fractions: np.ndarray
    ) -> Iterator[Callable[[Run | Failure], None]]:
        ended, runs = 0, sum(map(len, units))

        def keep() -> None:
            self.kept = f"{found + ended} of {found + runs} runs are kept"

        keep()
        if self.quiet:

            def note(outcome: Run | Failure) -> None:
                nonlocal ended
                ended += 1
                keep()

            yield note
            return
        if self.several:
            self.out.print(f"{plan.source.name}:", markup=False)
        if found:
            self.out.print(f"{found} of {found + runs} runs are in the store already")
        for said in plan.source.notes:
            self.out.print(f"{plan.source.name}: {said}", markup=False)
        start = time.monotonic()
        jobs = {job.key: job for unit in units for job in unit}
        choosing = any(job.draw.number or (job.hold and len(job.hold.out) > 1) for job in jobs.values())

        pace = Pace([_work(unit) for unit in units])

        def left() -> float | None:
            return pace.left(fractions, time.monotonic() - start)

        with progress(lambda: runs * pace.done(fractions), runs, self.out, left=left) as tell:

            def show_outcome(outcome: Run | Failure) -> None:
                nonlocal ended, start
                ended += 1
                keep()
                if ended == 1:  # without the time that processes take to start
                    start = time.monotonic() - getattr(outcome, "seconds", 0.0)
                if hasattr(outcome, "error"):
                    said = f"failed: {_name(jobs[outcome.key], plan)}: {outcome.error}"
                    self.out.print(said, markup=False)
                else:
                    pace.ended(outcome.method, len(outcome.history), outcome.seconds)
                line, rest = _line(outcome, _name(jobs[outcome.key], plan), choosing), left()
                tell(line if self.out.is_terminal or rest is None else f"{line}; {_time(rest)} left")

            yield show_outcome


def _work(unit: Unit) -> Work:
    from ..compare.spec import cost, create

    job = unit[0]
    declared = cost(job.method, create(job.method, job.parameters))
    return Work(str(job.method), len(unit), job.budget.epochs, declared)


def _name(job: Job, plan: Plan) -> str:
    """mixup, seed 3, draw 5, without north and south"""
    parts = [str(job.method), f"seed {job.seed}"]
    if job.draw.number:
        parts.append(f"draw {job.draw.number}")
    if job.hold is not None:
        parts.append("without " + " and ".join(plan.source.domain_names[domain] for domain in job.hold.out))
    return ", ".join(parts)


def _line(outcome: Any, name: str, choosing: bool) -> str:
    """What a run gave: its test score, or where it is one of several to choose from, that of validation."""
    if hasattr(outcome, "error"):
        return f"{name}: failed"
    metric, value = next(iter(outcome.metrics.items()))
    if choosing:
        metric, value = f"validation {metric}", outcome.history[outcome.best_epoch - 1][f"valid_{metric}"]
    return f"{name}: {metric} {value:.4g} in {_time(outcome.seconds)}"


def _time(seconds: float) -> str:
    from ..compare.report import duration

    return duration(seconds)


def show(result: Result | Suite, out: Console) -> None:
    """The tables of a comparison, what to know before believing them, and where the report is."""
    from ..compare.suite import Suite

    if isinstance(result, Suite):
        _show_suite(result, out)
        return
    if result.runs:
        out.print(_main_table(result))
        if result.protocol.get("by_domain"):
            out.print(_domains_table(result))
            if result.targets:
                out.print(_targets_table(result))
            if result.stability:
                out.print(_stability_table(result))
        if len(result.metrics) > 1:
            out.print(_metrics_table(result))
        for summary in result.ranking:
            if summary.method != result.baseline:
                out.print(result.verdict(summary), markup=False)
    for line in result.warnings:
        out.print(f"note: {line}", markup=False)
    out.print(f"Report: {result.report}", markup=False, soft_wrap=True)


def _show_suite(suite: Suite, out: Console) -> None:
    for result in suite.results:
        show(result, out)
    if suite.ranks is not None:
        table = Table("method")
        table.add_column("average rank", justify="right")
        for name, rank in suite.ranks.average.items():
            table.add_row(escape(name), f"{rank:.2f}")
        out.print(f"Average ranks over {suite.ranks.sets} data sets (1 is best):")
        out.print(table)
        out.print(suite.ranks.verdict, markup=False)
    for line in suite.doubts:
        out.print(f"note: {line}", markup=False)
    out.print(f"Report: {suite.report}", markup=False, soft_wrap=True)


def _main_table(result: Result) -> Table:
    from ..compare.result import show_interval, show_p, signed

    where, rule = "", result.protocol.get("selection")
    if result.protocol.get("by_domain"):
        said = "oracle (an upper reference)" if rule == "oracle" else rule
        where = f", mean over held-out domains, selection by {said},"
    title = f"{result.data['name']}: test {result.primary}{where} over {result.span}"
    table = Table(title=escape(title), title_justify="left")
    table.add_column("method")
    for heading in ("n", "mean ± sd", "95 % interval", f"minus {escape(result.baseline)}", "Holm p", "step time"):
        table.add_column(heading, justify="right")
    places = result.places(result.primary)
    for summary in result.ranking:
        found, gap = summary.metrics[result.primary], summary.difference.get(result.primary)
        table.add_row(
            escape(result.label(summary.method)),
            str(summary.n),
            f"{found.mean:.{places}f}" + ("" if found.sd is None else f" ± {found.sd:.{places}f}"),
            escape(show_interval(found.ci95, places)),
            "" if gap is None else escape(signed(gap, places)) + (f" (n = {gap.n})" if gap.n != summary.n else ""),
            "" if summary.holm is None else show_p(summary.holm),
            "" if summary.cost is None else f"{summary.cost:.2f} ×",
        )
    for name in result.without_runs:
        table.add_row(escape(name), "0", "no run ended well" if result.failures else "not yet")
    return table


def _domains_table(result: Result) -> Table:
    """The mean over seeds in every held-out domain, by every rule of selection that ran."""
    table = Table(title=f"test {result.primary} by held-out domain, mean over seeds", title_justify="left")
    several, places = bool(result.rules), result.places(result.primary)
    for name in ("method", *["selection"] * several):
        table.add_column(name)
    for name in (*result.domains, "worst", "mean", *[f"minus {result.selection}"] * several):
        table.add_column(escape(name), justify="right")
    for line in result.side_by_side:
        means = [f"{v:.{places}f}" if v is not None else "" for v in (*line.domains.values(), line.worst, line.mean)]
        gap = "" if line.gap is None else f"{line.gap:+.{places}f}"
        table.add_row(escape(line.method), *[line.rule] * several, *means, *[gap] * several)
    return table


def _targets_table(result: Result) -> Table:
    """Differences to the baseline in every held-out domain, with intervals."""
    from ..compare.result import signed
    from ..compare.statistics import Estimate

    title = (
        f"{result.primary} minus {result.baseline} by held-out domain, paired by seed (t interval); all: pairs of seed "
        "and domain (bootstrap)"
    )
    table = Table(title=escape(title), title_justify="left")
    table.add_column("method")
    for name in (*result.domains, "all"):
        table.add_column(escape(name), justify="right")
    places = result.places(result.primary)
    for line in result.targets:
        gaps = [*(line.domains.get(name) for name in result.domains), line.pairs]
        shown = ["" if gap is None else signed(Estimate(gap.n, gap.mean, None, gap.ci95), places) for gap in gaps]
        table.add_row(escape(result.label(line.method)), *map(escape, shown))
    return table


def _stability_table(result: Result) -> Table:
    table = Table(title="ranks when the draws of hyperparameters are drawn again", title_justify="left")
    table.add_column("method")
    for name in ("mean rank", "95 % of ranks", "first"):
        table.add_column(name, justify="right")
    for line in result.stability:
        table.add_row(
            escape(line.method), f"{line.rank:.1f}", f"{line.low:.0f} to {line.high:.0f}", f"{line.first:.0%}"
        )
    return table


def _metrics_table(result: Result) -> Table:
    table = Table(title="other test metrics, mean ± sd", title_justify="left")
    table.add_column("method")
    names = result.metrics[1:]
    for name in names:
        table.add_column(name, justify="right")
    for summary in result.ranking:
        cells = []
        for name in names:
            found, places = summary.metrics.get(name), result.places(name)
            spread = "" if found is None or found.sd is None else f" ± {found.sd:.{places}f}"
            cells.append("" if found is None else f"{found.mean:.{places}f}{spread}")
        table.add_row(escape(result.label(summary.method)), *cells)
    return table
