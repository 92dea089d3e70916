"""How sure and how right the runs were on test rows: reliability diagrams, and predicted against true values."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..result import Result
from .style import GREY, Draw, colours

FEWEST = 5
"""Rows of a bin below which it is not drawn."""


def kept(result: Result, method: str) -> dict[str, Any]:
    """What the runs of a method kept of their predictions, over its seeds; {} where they kept nothing.

    {"reliability": counts, summed confidences and hits (3, bins)}, or {"bands": [(true, mean, low, high), ...]} with an
    array a seed, of the first output.
    """
    found = [run.extras.get("test", {}) for run in result.by_method[method]]
    sure = [s["reliability"] for s in found if "reliability" in s]
    if sure:
        return {"reliability": np.sum([[s["count"], s["confidence"], s["hits"]] for s in sure], axis=0)}
    bands = [s["bands"][0] for s in found if s.get("bands")]
    if bands:
        return {"bands": [np.array([b[name] for name in ("true", "mean", "low", "high")]) for b in bands]}
    return {}


def panel(result: Result, method: str) -> Draw | None:
    """The picture of one method, with the baseline in grey behind; None where nothing was kept."""
    own = kept(result, method)
    others = method != result.baseline and result.baseline in result.by_method
    base = kept(result, result.baseline) if others else {}
    colour = colours(result)[method]
    if "reliability" in own:
        return lambda figure: _reliability(figure, own["reliability"], base.get("reliability"), colour)
    if "bands" in own:
        return lambda figure: _bands(figure, own["bands"], base.get("bands"), colour)
    return None


def _reliability(figure: Figure, own: np.ndarray, base: np.ndarray | None, colour: str) -> None:
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    axes.plot((0, 1), (0, 1), "--", lw=1, color=GREY)
    if base is not None:
        _sure(axes, base, GREY, 0.6)
    _sure(axes, own, colour, 1.0)
    count, confidence, hits = own
    gap = np.abs(hits - confidence).sum() / count.sum()
    axes.set(ylabel="share right", ylim=(-0.02, 1.02), title=f"ECE of all seeds together {gap:.3f}")
    edges = np.linspace(0, 1, len(count) + 1)
    below.bar(edges[:-1], count / count.sum(), np.diff(edges), align="edge", color=colour, alpha=0.7, lw=0)
    below.set(xlabel="confidence", ylabel="rows", xlim=(-0.02, 1.02), yticks=[])
    below.grid(False)


def _sure(axes: Axes, sums: np.ndarray, colour: str, alpha: float) -> None:
    count, confidence, hits = sums[:, sums[0] >= FEWEST]
    x, y = confidence / count, hits / count
    axes.plot(x, y, "-", lw=1.6, color=colour, alpha=alpha)
    axes.scatter(x, y, s=12 + 90 * np.sqrt(count / count.sum()), color=colour, alpha=alpha, lw=0)


def _bands(figure: Figure, own: list[np.ndarray], base: list[np.ndarray] | None, colour: str) -> None:
    axes = figure.add_subplot()
    low, high = min(b[0].min() for b in own), max(b[0].max() for b in own)
    axes.plot((low, high), (low, high), "--", lw=1, color=GREY)
    for bands, shade, strength in ((base or [], GREY, 0.6), (own, colour, 1.0)):
        if bands:
            length = min(b.shape[1] for b in bands)
            true, mean, bottom, top = np.mean([b[:, :length] for b in bands], axis=0)
            if shade == colour:
                axes.fill_between(true, bottom, top, color=shade, alpha=0.18, lw=0)
            axes.plot(true, mean, "o-", ms=3.5, lw=1.6, color=shade, alpha=strength)
    axes.set(xlabel="true value", ylabel="predicted value")
