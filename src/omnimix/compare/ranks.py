"""Methods over several data sets: average ranks, the Friedman test, Nemenyi's critical difference and its diagram.

Demsar, "Statistical comparisons of classifiers over multiple data sets", JMLR 7, 2006: with N data sets, k methods and
average ranks R, chi2 = 12 N / (k (k + 1)) (sum R^2 - k (k + 1)^2 / 4) / C, F = (N - 1) chi2 / (N (k - 1) - chi2)
(Iman and Davenport), and two methods are told apart where their average ranks differ by CD = q sqrt(k (k + 1) / (6 N))
or more. C = 1 - sum (t^3 - t) / (N (k^3 - k)), over all groups of t methods that tie on a data set, corrects for ties
(Conover, "Practical Nonparametric Statistics", 1999); Demsar leaves it out, and CD has no such correction.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEVEL = 0.05
_INK, _COLOUR = "#1b1b1b", "#0072b2"
_LINE, _GAP, _BAR = 0.165, 0.11, 0.13
"""Inches: a line of a label, the space between labels, between the bars of groups."""
_STYLE: dict[Any, Any] = {"font.size": 10, "font.family": "sans-serif", "svg.fonttype": "none", "svg.hashsalt": "ranks"}


@dataclass(frozen=True)
class Ranks:
    """average: rank of each method, best first. chi2, p_chi2: Friedman's test; f, p_f: that of Iman and Davenport, f is
    None where all data sets agree. groups: methods that are not told apart, of which none lies within another.

    p_f is the one to read: it is less conservative, and chi2 has its distribution for many data sets only.
    """

    sets: int
    average: dict[str, float]
    chi2: float
    p_chi2: float
    f: float | None
    p_f: float
    critical_difference: float
    groups: tuple[tuple[str, ...], ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def verdict(self) -> str:
        """One sentence."""
        shown = f"Friedman's test over {self.sets} data sets: p {'< 0.001' if self.p_f < 0.001 else f'{self.p_f:.3f}'}"
        if self.p_f >= LEVEL:
            return f"{shown}; they do not tell the methods apart, so Nemenyi's critical difference is not to be read"
        return (
            f"{shown}; methods whose average ranks differ by {self.critical_difference:.2f} (Nemenyi's critical "
            "difference) or more are told apart"
        )


def rank(methods: Sequence[str], scores: Sequence[Sequence[float]] | np.ndarray) -> Ranks:
    """scores: (data sets, methods), lower is better in every row. ValueError for fewer than two of either."""
    from scipy.special import chdtrc, fdtrc
    from scipy.stats import rankdata, studentized_range

    table = np.asarray(scores, dtype=np.float64)
    n, k = table.shape if table.ndim == 2 else (0, 0)
    if n < 2 or k < 2 or k != len(methods) or not np.isfinite(table).all():
        raise ValueError(
            f"scores must be finite, of {len(methods)} methods (2 or more) on 2 or more data sets, got {table.shape}"
        )
    average = rankdata(table, axis=1).mean(axis=0)
    ties = [np.unique(row, return_counts=True)[1] for row in table]
    correction = 1 - sum(int((t**3 - t).sum()) for t in ties) / (n * (k**3 - k))
    chi2 = max(0.0, 12 * n / (k * (k + 1)) * (math.fsum(average**2) - k * (k + 1) ** 2 / 4))
    chi2 = chi2 / correction if correction > 1e-12 else 0.0  # 0: all methods tie on all data sets
    rest = n * (k - 1) - chi2
    agree = rest < 1e-9
    f = None if agree else float((n - 1) * chi2 / rest)
    # chance gives the same order everywhere, one of k! / prod t!, with probability (k! / prod t!)^(1 - N)
    orders = math.lgamma(k + 1) - sum(math.lgamma(int(t) + 1) for t in ties[0])
    p_f = math.exp((1 - n) * orders) if f is None else float(fdtrc(k - 1, (k - 1) * (n - 1), f))
    q = float(studentized_range.ppf(1 - LEVEL, k, np.inf)) / math.sqrt(2)
    difference = q * math.sqrt(k * (k + 1) / (6 * n))
    order = np.argsort(average, kind="stable")
    best_first = {methods[place]: float(average[place]) for place in order}
    return Ranks(n, best_first, chi2, float(chdtrc(k - 1, chi2)), f, p_f, difference, _groups(best_first, difference))


def _groups(average: dict[str, float], difference: float) -> tuple[tuple[str, ...], ...]:
    """The longest stretches of methods within the critical difference."""
    names, found, end = list(average), [], 0
    for start, first in enumerate(names):
        inside = [place for place in range(start, len(names)) if average[names[place]] - average[first] < difference]
        if inside[-1] > max(start, end):
            end = inside[-1]
            found.append(tuple(names[start : end + 1]))
    return tuple(found)


def diagram(ranks: Ranks) -> Figure:
    """Demsar's critical-difference diagram: best on the left, a bar joins methods that are not told apart."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names, k = list(ranks.average), len(ranks.average)
    labels = [_wrap(f"{name} ({ranks.average[name]:.2f})") for name in names]
    half = (k + 1) // 2
    sides = (list(range(half)), list(range(k - 1, half - 1, -1)))  # the outermost next to the axis
    canvas = FigureCanvasAgg(Figure(dpi=100))
    wide = [max((_width(labels[place], canvas) for place in side), default=0.0) + 0.3 for side in sides]
    axis = max(3.2, 0.4 * k)
    cd = ranks.critical_difference
    fits = cd <= k - 1
    title = f"average rank, 1 is best; critical difference {cd:.2f}" + ("" if fits else ": wider than the axis")
    wide[1] = max(wide[1], _width(title, canvas) - axis)
    levels = _levels(ranks)
    rows = [_rows([labels[place] for place in side], 0.3 + _BAR * (max(levels, default=-1) + 1)) for side in sides]
    above, below = 0.95, max(bottom for _, bottom in rows)

    width, height = wide[0] + axis + wide[1] + 0.1, above + below
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-wide[0] - 0.05, axis + wide[1] + 0.05), ylim=(-below, above))
    axes.set_axis_off()

    def x(value: float) -> float:
        return (value - 1) / (k - 1) * axis

    def text(at: float, y: float, said: str, **how: Any) -> None:
        axes.text(at, y, said, color=_INK, parse_math=False, va="center", **how)

    def line(xs: Sequence[float], ys: Sequence[float], width: float = 1.0, colour: str = _INK) -> None:
        axes.plot(xs, ys, "-", color=colour, lw=width, solid_capstyle="butt", solid_joinstyle="miter")

    line([0, axis], [0, 0], 1.3)
    for tick in range(1, k + 1):
        line([x(tick)] * 2, [0, 0.07])
        text(x(tick), 0.18, str(tick), ha="center", fontsize=9)
    if fits:
        line([0, x(1 + cd)], [0.45, 0.45], 2)
        for end in (0.0, x(1 + cd)):
            line([end, end], [0.4, 0.5], 1.3)
    text(0, 0.66, title, ha="left")
    for group, level in zip(ranks.groups, levels, strict=True):
        y = -0.14 - _BAR * level
        line([x(ranks.average[group[0]]) - 0.05, x(ranks.average[group[-1]]) + 0.05], [y, y], 4, _COLOUR)
    for side, (heights, _), end, at in zip(sides, rows, (-0.15, axis + 0.15), ("right", "left"), strict=True):
        for place, y in zip(side, heights, strict=True):
            where = x(ranks.average[names[place]])
            line([where, where, end], [0, -y, -y], 0.8)
            text(end + (0.06 if at == "left" else -0.06), -y, labels[place], ha=at, linespacing=1.1)
    return figure


def _wrap(name: str, width: int = 30) -> str:
    """A long name on several lines, broken before its parameters."""
    lines = [""]
    for part in re.split(r"(?=[:+ ])", name):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _width(label: str, canvas: Any) -> float:
    """Inches."""
    text = canvas.figure.text(0, 0, label, fontsize=_STYLE["font.size"], parse_math=False)
    return float(text.get_window_extent(canvas.get_renderer()).width / canvas.figure.dpi)


def _rows(labels: list[str], start: float) -> tuple[list[float], float]:
    """How far below the axis the middle of each label lies, and where the last one ends."""
    middles, y = [], start
    for label in labels:
        tall = _LINE * (label.count("\n") + 1) + _GAP
        middles.append(y + tall / 2)
        y += tall
    return middles, y


def _levels(ranks: Ranks) -> list[int]:
    """The height of each group's bar, so that no two bars touch."""
    ends: list[float] = []
    found = []
    for group in ranks.groups:
        first, last = ranks.average[group[0]], ranks.average[group[-1]]
        level = next((place for place, end in enumerate(ends) if end + 0.4 < first), len(ends))
        ends[level : level + 1] = [last]
        found.append(level)
    return found


def svg(ranks: Ranks) -> str:
    """The diagram as an SVG element for a page, in the page's own colours of text and marks (`--mark`)."""
    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context(_STYLE):
        figure = diagram(ranks)
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    drawn = text.getvalue()
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn[drawn.index("<svg") :], flags=re.DOTALL)
    drawn = (
        re.sub(r'( id="|url\(#|href="#)', r"\g<1>ranks-", drawn)
        .replace(_INK, "currentColor")
        .replace(_COLOUR, "var(--mark)")
    )
    label = f"Critical-difference diagram of {len(ranks.average)} methods over {ranks.sets} data sets"
    least = 0.75 * figure.get_figwidth()  # smaller than that, the text is too small to read
    return drawn.replace("<svg", f'<svg role="img" aria-label="{label}" style="min-width: {least:.2f}in"', 1)


def picture(ranks: Ranks, path: Path) -> None:
    """The diagram as a file: PNG, PDF or SVG by its name."""
    from matplotlib import rc_context

    with rc_context(_STYLE):
        diagram(ranks).savefig(path, dpi=150)
