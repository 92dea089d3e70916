"""The page of `omnimix merge --evaluate`: models and operators with their scores and intervals, and every sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from .merging import RANGES, Score, ranked

if TYPE_CHECKING:
    from .report.style import Draw

TEMPLATE = "merging.html.j2"


def write(scores: Sequence[Score], folder: Path, *, judge: str, lower: bool, store: Path) -> Path:
    """Write report.html into `folder`, from what `merging.evaluate` gave; returns the page."""
    from .report.style import replace

    replace(folder / "report.html", page(scores, judge=judge, lower=lower, store=store).encode())
    return folder / "report.html"


def page(scores: Sequence[Score], *, judge: str, lower: bool, store: Path) -> str:
    """The HTML page. judge: FILE.py:function; lower: whether lower is better."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    from .report import style

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    order = ranked(scores, lower)
    alone = next((score for score in order if score.recipe is None), None)
    swept = sweeps(scores)
    plots = [
        {"text": f"{name} of {method} against the score", "svg": Markup(style.svg(f"sweep{i}", draw, 2.9, 4.2))}
        for i, (method, name, draw) in enumerate(drawn(swept, alone))
    ]
    best = next((score for score in order if score.recipe is not None), None)
    several = any(len(score.values) > 1 for score in order)
    rows = [(score, None if alone is None or score is alone else score.minus(alone)) for score in order]
    return environment.get_template(TEMPLATE).render(
        order=order, rows=rows, alone=alone, best=best, gap=next((gap for score, gap in rows if score is best), None),
        plots=plots, judge=judge, lower=lower, store=store, intervals=several, said=said, variables=style.variables(),
        version=__version__,
    )  # fmt: skip


def sweeps(scores: Sequence[Score]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """operator -> coefficient -> (its value, the score) of every draw; a weight a model is a coefficient each."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for score in scores:
        if score.recipe is None:
            continue
        mine = found.setdefault(score.name, {})
        for name, value in _numbers(score.options).items():
            mine.setdefault(name, []).append((value, score.value))
    return {
        method: kept
        for method, mine in found.items()
        if (kept := {name: points for name, points in mine.items() if len({x for x, _ in points}) > 1})
    }


def _numbers(options: Mapping[str, Any]) -> dict[str, float]:
    found = {}
    for name in RANGES:
        value = options.get(name)
        if isinstance(value, (int, float)):
            found[name] = float(value)
        elif isinstance(value, list):
            found |= {f"{name} of model {i}": float(v) for i, v in enumerate(value, start=1) if v is not None}
    return found


def drawn(
    swept: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], alone: Score | None
) -> list[tuple[str, str, Draw]]:
    """(operator, coefficient, picture) of every sweep; a line marks the best of the models alone."""
    from .report.style import COLOURS, GREY, plain

    def picture(method: str, name: str, colour: str) -> Draw:
        def draw(figure: Any) -> None:
            axes = figure.add_subplot()
            if alone is not None:
                axes.axhline(alone.value, color=GREY, lw=1)
            x, y = zip(*swept[method][name], strict=True)
            axes.plot(x, y, "o", ms=6, mew=0, alpha=0.8, color=colour)
            axes.set(xlabel=plain(name), ylabel="score", title=plain(method))

        return draw

    return [
        (method, name, picture(method, name, COLOURS[i % len(COLOURS)]))
        for i, (method, mine) in enumerate(swept.items())
        for name in mine
    ]


def said(options: Mapping[str, Any]) -> str:
    """The options of a merge, numbers short."""

    def short(value: Any) -> str:
        if isinstance(value, list):
            return f"({', '.join(map(short, value))})"
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    return ", ".join(f"{name} {short(value)}" for name, value in options.items())
