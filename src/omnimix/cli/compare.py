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

if TYPE_CHECKING:
    import numpy as np

    from ..compare.jobs import Plan, Unit
    from ..compare.result import Result
    from ..compare.store import Failure, Run


@app.command()
def compare(
    data: Annotated[str, typer.Option(help="A built-in data set (airfoil, digits, ...), or a file or folder.")],
    methods: Annotated[
        str, typer.Option(help="With commas: erm,mixup:alpha=0.2,c-mixup. Default: the usual ones for the task.")
    ] = "",
    seeds: Annotated[str, typer.Option(help="How many (5: seeds 0 to 4), or which (3,5,7).")] = "5",
    target: Annotated[str | None, typer.Option(help="The column(s) to predict, for tables.")] = None,
    task: Annotated[str, typer.Option(help="auto, classification or regression.")] = "auto",
    drop: Annotated[str, typer.Option(help="Columns to leave out, with commas.")] = "",
    domain: Annotated[str | None, typer.Option(help="The column whose values are domains.")] = None,
    protocol: Annotated[str, typer.Option(help="What is held equal: default, or c-mixup (airfoil, no2).")] = "default",
    net: Annotated[str | None, typer.Option(help="The network: mlp:hidden=64+64, small-cnn, timm:NAME, ...")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training rows.")] = None,
    batch: Annotated[int | None, typer.Option(help="Rows of a training step.")] = None,
    lr: Annotated[float | None, typer.Option(help="The learning rate.")] = None,
    label_noise: Annotated[
        float, typer.Option(help="The share of training and validation labels to replace by random ones.")
    ] = 0.0,
    noise_seed: Annotated[int, typer.Option(help="The seed of that noise.")] = 0,
    baseline: Annotated[str | None, typer.Option(help="Compare with this method. Default: erm, or the first.")] = None,
    out: Annotated[Path | None, typer.Option(help="The folder of store and report. Default: omnimix-out/NAME.")] = None,
    jobs: Annotated[int | None, typer.Option(help="Runs at a time. Default: one a core, or one on a GPU.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, and nothing else, on stdout.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no table.")] = False,
) -> None:
    """Train every method with every seed under one protocol, and report what came out.

    A comparison that was stopped continues where it was: runs in the store are not repeated.
    """
    with user_errors():
        from ..compare.run import compare as run
        from ..compare.spec import parse_seeds, parse_specs, settings

        asked = settings(
            data=data,
            methods=tuple(map(str, parse_specs(methods))) if methods else (),
            seeds=parse_seeds(seeds),
            target=target,
            task=task,
            drop=tuple(part.strip() for part in drop.split(",") if part.strip()),
            domain=domain,
            protocol=protocol,
            net=net,
            epochs=epochs,
            batch=batch,
            lr=lr,
            label_noise=label_noise,
            noise_seed=noise_seed,
            baseline=baseline,
        )
        messages = console(stderr=True)
        watch = _Watch(messages, quiet)
        try:
            result = run(asked, out, workers=jobs, watch=watch)
        except KeyboardInterrupt:
            typer.echo(f"omnimix: stopped; {watch.kept}; the same command continues from there", err=True)
            raise typer.Exit(130) from None
    if as_json:
        sys.stdout.write(json.dumps(result.to_json(), allow_nan=False) + "\n")
    if not quiet:
        show(result, messages if as_json else console(stderr=False))
    if not result.complete:
        raise typer.Exit(1)


class _Watch:
    """Says what a comparison is doing."""

    def __init__(self, out: Console, quiet: bool) -> None:
        self.out, self.quiet = out, quiet
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
        if found:
            self.out.print(f"{found} of {found + runs} runs are in the store already")
        for said in plan.source.notes:
            self.out.print(f"{plan.source.name}: {said}", markup=False)
        start = time.monotonic()

        def done_runs() -> float:
            return sum(float(share) * len(unit) for share, unit in zip(fractions, units, strict=False))

        with progress(done_runs, runs, self.out) as tell:

            def show_outcome(outcome: Run | Failure) -> None:
                nonlocal ended, start
                ended += 1
                keep()
                if ended == 1:  # without the time that processes take to start
                    start = time.monotonic() - getattr(outcome, "seconds", 0.0)
                if hasattr(outcome, "error"):
                    self.out.print(f"failed: {outcome.method}, seed {outcome.seed}: {outcome.error}", markup=False)
                done = done_runs()
                left = (time.monotonic() - start) * (runs - done) / done
                tell(_line(outcome) + ("" if self.out.is_terminal else f"; {_time(left)} left"))

            yield show_outcome


def _line(outcome: Any) -> str:
    if hasattr(outcome, "error"):
        return f"{outcome.method}, seed {outcome.seed}: failed"
    name, value = next(iter(outcome.metrics.items()))
    return f"{outcome.method}, seed {outcome.seed}: {name} {value:.4g} in {_time(outcome.seconds)}"


def _time(seconds: float) -> str:
    from ..compare.report import duration

    return duration(seconds)


def show(result: Result, out: Console) -> None:
    """The tables of a comparison, what to know before believing them, and where the report is."""
    if result.runs:
        out.print(_main_table(result))
        if len(result.metrics) > 1:
            out.print(_metrics_table(result))
        for summary in result.ranking:
            if summary.method != result.baseline:
                out.print(result.verdict(summary), markup=False)
    for line in result.warnings:
        out.print(f"note: {line}", markup=False)
    out.print(f"Report: {result.report}", markup=False, soft_wrap=True)


def _main_table(result: Result) -> Table:
    from ..compare.result import show_interval, show_p, signed

    title = f"{result.data['name']}: test {result.primary} over {result.span}"
    table = Table(title=escape(title), title_justify="left")
    table.add_column("method")
    for heading in ("n", "mean ± sd", "95 % interval", f"minus {escape(result.baseline)}", "Holm p", "step time"):
        table.add_column(heading, justify="right")
    places = result.places(result.primary)
    for summary in result.ranking:
        found, gap = summary.metrics[result.primary], summary.difference.get(result.primary)
        table.add_row(
            escape(summary.method),
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
        table.add_row(escape(summary.method), *cells)
    return table
