"""How pictures look, on paper and in the page: colours by method, fonts, and matplotlib figures as SVG for a page.

In the page the ink, the grid and the methods' colours become CSS variables, so that they follow a dark background.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from ..result import Result

INK, GRID, GREY = "#1b1b1b", "#e6e6e6", "#666666"
COLOURS = (
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
LIGHTER = (
    "#4aa8e0",
    "#ff8a3d",
    "#2fd0a2",
    "#e39cc6",
    "#ffc04d",
    "#8fd0f5",
    "#b98ad0",
    "#cf9a55",
    "#6fc487",
    "#f072b6",
)
"""The same on a dark background."""
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": GRID,
    "axes.axisbelow": True,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "figure.constrained_layout.use": True,
}
Draw = Callable[[Figure], None]


def colours(result: Result) -> dict[str, str]:
    """A colour a method; the baseline is grey."""
    others = [str(spec) for spec in result.settings.specs if str(spec) != result.baseline]
    return {result.baseline: GREY, **{name: COLOURS[i % len(COLOURS)] for i, name in enumerate(others)}}


def dashed(result: Result, method: str) -> bool:
    """Whether a method shares its colour with an earlier one."""
    return list(colours(result)).index(method) > len(COLOURS)


def variable(colour: str) -> str:
    """The CSS value of a colour in the page."""
    names = {INK: "currentColor", GRID: "var(--grid)", GREY: "var(--base)"}
    return names.get(colour) or f"var(--c{COLOURS.index(colour)})"


def variables() -> dict[str, list[tuple[str, str]]]:
    """The CSS variables of the page on a light and on a dark background."""
    return {
        "light": [("grid", GRID), ("base", GREY), *((f"c{i}", colour) for i, colour in enumerate(COLOURS))],
        "dark": [("grid", "#34383f"), ("base", "#a0a0a0"), *((f"c{i}", colour) for i, colour in enumerate(LIGHTER))],
    }


def short(name: str, width: int = 22) -> str:
    """A method's name on several lines, broken before its parameters."""
    lines = [""]
    for part in re.split(r"(?=[:+])", name):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return plain("\n".join(lines))


def plain(text: str) -> str:
    """What users named, with the dollars that would begin a formula escaped."""
    return text.replace("$", r"\$")


def svg(name: str, draw: Draw, height: float = 3.6, width: float = 5.0) -> str:
    """A figure as an SVG element to put into a page; ids start with `name` so that several can share the page."""
    with rc_context(STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(width, height))
        draw(figure)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    drawn = text.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}-", drawn)
    for colour in (INK, GRID, GREY, *COLOURS):
        drawn = drawn.replace(colour, variable(colour))
    return re.sub(
        r'<svg[^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" class="plot" aria-hidden="true">', drawn, count=1
    )


def png(path: Path, draw: Draw, width: float, height: float, dpi: int = 120) -> None:
    """Write a figure to `path`, replacing what is there at once."""
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        draw(figure)
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=dpi)
    replace(path, content.getvalue())


def replace(path: Path, content: bytes) -> None:
    """Write a file under another name and move it to `path`: readers see the old one or the new one, whole."""
    half = path.with_name(f"{path.name}.{os.getpid()}.part")  # two comparisons may share the folder
    try:
        half.write_bytes(content)
        os.replace(half, path)
    finally:
        half.unlink(missing_ok=True)
