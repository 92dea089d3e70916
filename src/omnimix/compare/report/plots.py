"""The pictures of a comparison's numbers. The same colour is the same method in all of them; the baseline is grey."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ...train.metrics import HIGHER_IS_BETTER
from ..result import Result, show_p
from .style import GREY, Draw, colours, dashed, plain, png, short

Plot = Callable[[Result, Axes], None]


def figure_of(draw: Plot, result: Result) -> Draw:
    """A plot on the only axes of a figure."""
    return lambda figure: draw(result, figure.add_subplot())


def label(metric: str) -> str:
    """The name of a metric on an axis."""
    return f"test {metric} ({'higher' if metric in HIGHER_IS_BETTER else 'lower'} is better)"


def ranking(result: Result, axes: Axes) -> None:
    """Methods by mean, with 95 % interval and every seed."""
    ordered, colour = result.ranking, colours(result)
    for place, summary in enumerate(ordered):
        found = summary.metrics[result.primary]
        values = list(result.values(summary.method).values())
        axes.plot(values, [place + 0.22] * len(values), "o", ms=4, alpha=0.45, mew=0, color=colour[summary.method])
        if found.ci95:
            axes.plot(found.ci95, [place, place], "-", lw=2.5, color=colour[summary.method], solid_capstyle="butt")
        axes.plot(found.mean, place, "D", ms=6, color=colour[summary.method])
    _names(axes, [s.method for s in ordered])
    intervals = any(s.metrics[result.primary].ci95 for s in ordered)
    axes.set(xlabel=label(result.primary), title=f"Mean{', 95 % interval' if intervals else ''} and every seed")


def differences(result: Result, axes: Axes) -> None:
    """Paired differences to the baseline, with 95 % interval and Holm p."""
    ordered = [s for s in result.ranking if result.primary in s.difference]
    colour, places = colours(result), result.places(result.primary)
    axes.axvline(0, color=GREY, lw=1)
    for place, summary in enumerate(ordered):
        found = summary.difference[result.primary]
        if found.ci95:
            axes.plot(found.ci95, [place, place], "-", lw=2.5, color=colour[summary.method], solid_capstyle="butt")
        axes.plot(found.mean, place, "D", ms=6, color=colour[summary.method])
        sign = "" if summary.holm is None else f", p {show_p(summary.holm)}"
        axes.annotate(
            f"{found.mean:+.{places}f}{sign}", (found.mean, place), (0, 8), textcoords="offset points", ha="center"
        )
    _names(axes, [s.method for s in ordered])
    axes.margins(x=0.25)
    better = "above" if result.primary in HIGHER_IS_BETTER else "below"
    axes.set(
        xlabel=f"{result.primary} minus that of the baseline ({better} 0 is better)",
        title=f"Paired difference to {plain(result.baseline)}",
    )


def _names(axes: Axes, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), [short(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(6))  # beside long names there is no room for more
    axes.grid(False, axis="y")


def seeds(result: Result, axes: Axes) -> None:
    """Every run; runs of one seed (same split, same initial weights) are joined."""
    names = [s.method for s in result.ranking]
    values = {name: result.values(name) for name in names}
    for seed in result.settings.seeds:
        points = [values[name].get(seed, np.nan) for name in names]
        axes.plot(points, range(len(names)), "-", lw=0.8, color=GREY, alpha=0.6, zorder=1)
    for place, name in enumerate(names):
        found = list(values[name].values())
        axes.plot(found, [place] * len(found), "o", ms=6, mew=0, alpha=0.8, color=colours(result)[name])
    _names(axes, names)
    axes.set(xlabel=label(result.primary), title="Seed by seed (lines join runs of one seed)")


def curve(key: str, title: str) -> Plot:
    """The mean over seeds of a column of the histories, by epoch, with the range over seeds."""

    def draw(result: Result, axes: Axes) -> None:
        colour = colours(result)
        for name, runs in result.by_method.items():
            lines = [[row.get(key) for row in run.history] for run in runs]
            length = min(map(len, lines))
            values = np.array([line[:length] for line in lines], dtype=float)
            if length == 0 or np.isnan(values).all():
                continue
            epochs = np.arange(1, length + 1)
            style = "--" if dashed(result, name) else "-"
            axes.plot(epochs, values.mean(axis=0), style, lw=1.6, color=colour[name])
            axes.fill_between(epochs, values.min(0), values.max(0), color=colour[name], alpha=0.12, lw=0)
        if axes.lines:
            _focus(axes, np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.lines]))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="epoch", title=f"{title}: mean and range over seeds")

    return draw


def _focus(axes: Axes, values: np.ndarray) -> None:
    """A logarithmic axis where the first epochs would squeeze the rest flat."""
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0 and values.max() > 20 * values.min():
        axes.set_yscale("log")


def cost(result: Result, axes: Axes) -> None:
    """The primary metric against the step time relative to the baseline."""
    for summary in result.summaries:
        if summary.cost is None:
            continue
        found, colour = summary.metrics[result.primary], colours(result)[summary.method]
        if found.ci95:
            axes.plot([summary.cost] * 2, found.ci95, "-", lw=1.5, color=colour, alpha=0.6)
        axes.plot(summary.cost, found.mean, "s" if dashed(result, summary.method) else "o", ms=9, mew=0, color=colour)
    axes.set_xlim(0, 1.15 * max((s.cost or 0 for s in result.summaries), default=1))
    axes.set(
        xlabel=f"time of a step relative to {plain(result.baseline)}",
        ylabel=f"test {result.primary}",
        title="Result against cost",
    )


def height_for(names: Sequence[str]) -> float:
    """The height of a picture with a line a method, whose name may take several."""
    lines = max((short(name).count("\n") + 1 for name in names), default=1)
    return 1.3 + max(0.5, 0.17 * lines + 0.1) * max(2, len(names))


def picture(result: Result, path: Path) -> None:
    """The ranking and the differences side by side, as PNG."""

    def draw(figure: Figure) -> None:
        title = f"{plain(result.data['name'])}: test {result.primary} over {result.span}"
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
        left, right = figure.subplots(1, 2)
        ranking(result, left)
        differences(result, right)

    png(path, draw, 11, height_for(list(result.by_method)) + 0.4)
