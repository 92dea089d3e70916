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
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import PlaceHolderLayoutEngine
from matplotlib.text import Text

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
    """A method's name on several lines, broken before its parameters, or anywhere if need be."""
    return plain(wrap(name, width))


def wrap(text: str, width: int) -> str:
    """Text on lines of at most `width` characters, broken at blanks and before : + @, or anywhere if need be."""
    lines = [""]
    for part in re.split(r"(?<= )|(?=[:+@])", text):
        if lines[-1] and len(lines[-1]) + len(part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
        while len(lines[-1].rstrip()) > width:
            lines[-1:] = [lines[-1][:width], lines[-1][width:]]
    return "\n".join(line.rstrip() for line in lines)


def fit_texts(figure: Figure) -> None:
    """Lay the figure out, with titles and labels of axes wrapped that would be cut off at its edges, or run into their
    neighbours.
    """
    given = {text: text.get_text().replace(r"\$", "$").split("\n") for text, _ in _texts(figure)}
    gridded = any(axes.get_subplotspec() for axes in figure.axes)
    layout = (gridded and figure.get_layout_engine()) or PlaceHolderLayoutEngine(True, True)  # axes placed by hand stay
    for last in (False, False, True):  # what is wrapped moves the axes
        layout.execute(figure)
        long = [(text, part) for text, axes in _texts(figure) if (part := _fitting(text, axes, figure)) < 1]
        if last or not long:
            break
        for text, part in long:
            longest = max(map(len, text.get_text().split("\n")))
            width = max(8, int(0.95 * longest * part))  # letters differ in width
            text.set_text(plain("\n".join(wrap(line, width) for line in given[text])))
    figure.set_layout_engine("none")  # it would be found anew at every drawing, half of the time of a report


def _fitting(text: Text, axes: Axes | None, figure: Figure) -> float:
    """The share of the length of a text for which there is room; 1 or more where it fits."""
    box, upright = text.get_window_extent(), text.get_rotation() == 90
    first, last = (box.y0, box.y1) if upright else (box.x0, box.x1)
    low, high = _between(axes, figure, "y" if upright else "x")
    middle = (first + last) / 2
    at_left = not upright and text.get_horizontalalignment() == "left"
    room = high - first if at_left else 2 * min(middle - low, high - middle)
    return float((room + 0.5) / max(last - first, 1e-9))


def _texts(figure: Figure) -> list[tuple[Text, Axes | None]]:
    """The titles and the labels of the axes that are not empty, and the title of the figure."""
    found: list[tuple[Text, Axes | None]] = [(text, None) for text in figure.texts]
    for axes in figure.axes:
        own = [child for child in axes.get_children() if type(child) is Text and child not in axes.texts]
        found += [(text, axes) for text in (*own, axes.xaxis.label, axes.yaxis.label)]
    return [(text, axes) for text, axes in found if text.get_text()]


def _between(axes: Axes | None, figure: Figure, way: str) -> tuple[float, float]:
    """From where to where along x or y the texts of axes may go: between their neighbours."""
    end = figure.bbox.width if way == "x" else figure.bbox.height
    if axes is None:
        return 0.0, end
    spans = [(getattr(other.bbox, f"{way}0"), getattr(other.bbox, f"{way}1")) for other in figure.axes]
    first, last = getattr(axes.bbox, f"{way}0"), getattr(axes.bbox, f"{way}1")
    return max((high for _, high in spans if high <= first), default=0.0), min(
        (low for low, _ in spans if low >= last), default=end
    )


def plain(text: str) -> str:
    """What users named, with the dollars that would begin a formula escaped."""
    return text.replace("$", r"\$")


def svg(name: str, draw: Draw, height: float = 3.6, width: float = 5.0) -> str:
    """A figure as an SVG element to put into a page; ids start with `name` so that several can share the page."""
    with rc_context(STYLE | {"svg.hashsalt": name, "figure.facecolor": "none", "axes.facecolor": "none"}):
        figure = Figure(figsize=(width, height), dpi=72)  # of SVG
        draw(figure)
        fit_texts(figure)
        text = io.StringIO()
        # `savefig` would draw everything once more before.
        canvas: Any = FigureCanvasSVG(figure)
        canvas.print_svg(text, metadata={"Date": None, "Creator": None})
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
        figure = Figure(figsize=(width, height), dpi=dpi)
        draw(figure)
        fit_texts(figure)
        content = io.BytesIO()
        figure.savefig(content, format="png")
    replace(path, content.getvalue())


def replace(path: Path, content: bytes) -> None:
    """Write a file under another name and move it to `path`: readers see the old one or the new one, whole."""
    half = path.with_name(f"{path.name}.{os.getpid()}.part")  # two comparisons may share the folder
    try:
        half.write_bytes(content)
        os.replace(half, path)
    finally:
        half.unlink(missing_ok=True)
