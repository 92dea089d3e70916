"""The pictures of a comparison, drawn by matplotlib as SVG for the report and as PNG beside it.

The same colour is the same method in all of them; the baseline is grey.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ...train.metrics import HIGHER_IS_BETTER
from ..result import Result, show_p

_GREY = "#666666"
_COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#7b3294",
    "#8c510a",
    "#1b7837",
    "#c51b7d",
)
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "svg.fonttype": "none",
    "figure.constrained_layout.use": True,
}


def colours(result: Result) -> dict[str, str]:
    """A colour a method."""
    others = [str(spec) for spec in result.settings.specs if str(spec) != result.baseline]
    return {result.baseline: _GREY, **{name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(others)}}


def _short(name: str, width: int = 22) -> str:
    """A method's name on several lines, broken before its parameters."""
    lines = [""]
    for part in re.split(r"(?=[:+])", name):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return _plain("\n".join(lines))


def _plain(text: str) -> str:
    """What users named, with the dollars that would begin a formula escaped."""
    return text.replace("$", r"\$")


def _label(metric: str) -> str:
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
    axes.set(xlabel=_label(result.primary), title="Mean, 95 % interval and every seed")


def differences(result: Result, axes: Axes) -> None:
    """Paired differences to the baseline, with 95 % interval and Holm p."""
    ordered = [s for s in result.ranking if result.primary in s.difference]
    colour, places = colours(result), result.places(result.primary)
    axes.axvline(0, color=_GREY, lw=1)
    for place, summary in enumerate(ordered):
        found = summary.difference[result.primary]
        if found.ci95:
            axes.plot(found.ci95, [place, place], "-", lw=2.5, color=colour[summary.method], solid_capstyle="butt")
        axes.plot(found.mean, place, "D", ms=6, color=colour[summary.method])
        sign = "" if summary.holm is None else f", p {show_p(summary.holm)}"
        axes.annotate(
            f"{found.mean:+.{places}f}{sign}", (found.mean, place), (0, 7), textcoords="offset points", ha="center",
            fontsize=9,
        )  # fmt: skip
    _names(axes, [s.method for s in ordered])
    axes.margins(x=0.15)
    axes.set(
        xlabel=f"{result.primary} minus that of {_plain(result.baseline)}",
        title=f"Paired difference to {_plain(result.baseline)}",
    )


def _names(axes: Axes, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), [_short(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(False, axis="y")


def seeds(result: Result, axes: Axes) -> None:
    """Every run; runs of one seed (same split, same initial weights) are joined."""
    names = [s.method for s in result.ranking]
    values = {name: result.values(name) for name in names}
    for seed in result.settings.seeds:
        points = [values[name].get(seed, np.nan) for name in names]
        axes.plot(range(len(names)), points, "-", lw=0.8, color="#bbbbbb", zorder=1)
    for place, name in enumerate(names):
        found = list(values[name].values())
        axes.plot([place] * len(found), found, "o", ms=5, mew=0, alpha=0.8, color=colours(result)[name])
    axes.set_xticks(range(len(names)), [_short(name, 14) for name in names], rotation=30, ha="right", fontsize=9)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set(ylabel=f"test {result.primary}", title="Seed by seed (lines join runs of one seed)")


def curve(key: str, title: str) -> Callable[[Result, Axes], None]:
    """The mean over seeds of a column of the histories, by epoch, with the range over seeds."""

    def draw(result: Result, axes: Axes) -> None:
        for name, runs in result.by_method.items():
            lines = [[row.get(key) for row in run.history] for run in runs]
            length = min(map(len, lines))
            values = np.array([line[:length] for line in lines], dtype=float)
            if length == 0 or np.isnan(values).all():
                continue
            epochs = np.arange(1, length + 1)
            axes.plot(epochs, values.mean(axis=0), lw=1.6, color=colours(result)[name], label=_plain(name))
            axes.fill_between(epochs, values.min(0), values.max(0), color=colours(result)[name], alpha=0.12, lw=0)
        shown = [line.get_ydata() for line in axes.lines]
        if shown:
            _focus(axes, np.concatenate([np.asarray(line, dtype=float) for line in shown]))
            axes.legend(fontsize=8, frameon=False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="epoch", title=title)

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
        axes.plot(summary.cost, found.mean, "o", ms=8, mew=0, color=colour, label=_plain(summary.method))
    axes.set_xlim(0, 1.15 * max((s.cost or 0 for s in result.summaries), default=1))
    axes.legend(fontsize=8, frameon=False)
    axes.set(
        xlabel=f"time of a step relative to {_plain(result.baseline)}",
        ylabel=f"test {result.primary}",
        title="Result against cost",
    )


def svg(
    name: str, draw: Callable[[Result, Axes], None], result: Result, height: float = 3.6, width: float = 5.0
) -> str:
    """One picture as an SVG element to put into a page; ids start with `name` so that several can share the page."""
    with rc_context(_STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(width, height))
        draw(result, figure.add_subplot())
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    drawn = text.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}-", drawn)
    return re.sub(r'<svg[^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img" class="plot">', drawn, count=1)


def height_for(rows: int) -> float:
    """The height of a picture with a line a method."""
    return 1.3 + 0.5 * max(2, rows)


def picture(result: Result, path: Path) -> None:
    """The ranking and the differences side by side, as PNG."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(11, height_for(len(result.ranking)) + 0.4))
        title = f"{_plain(result.data['name'])}: test {result.primary} over {result.span}"
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
        left, right = figure.subplots(1, 2)
        ranking(result, left)
        differences(result, right)
        figure.savefig(path, dpi=120)
