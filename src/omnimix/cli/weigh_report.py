"""The page of `omnimix weigh report`: weights, fits, learning curves, rank invariance, cost, and the baselines."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ..corpora.weigh.run_table import RunTable
    from ..corpora.weigh.study import Study

TEMPLATE = Path(__file__).with_name("weigh_report.html.j2")
SHOWN = 12
"""Domains with a bar of their own; the others share one."""


def facts(
    table: RunTable, tests: Sequence[tuple[str, RunTable]], studies: Sequence[Study],
    makers: Mapping[str, Callable[..., Any]], sizes: Sequence[int], costs: Sequence[float | None], seed: int,
) -> dict[str, Any]:  # fmt: skip
    """What the page says, as JSON holds it."""
    from ..corpora.weigh.run_table import short_names
    from ..corpora.weigh.scores import learning_curve
    from ..corpora.weigh.study import AVERAGE, fit, invariance

    short = dict(zip(table.domains, short_names(table.domains), strict=True))
    names = dict(zip(table.metrics, short_names(table.metrics), strict=True)) | {AVERAGE: "the average of all losses"}
    tables = [other for _, other in tests]
    found = []
    for one in studies:

        def make(rows: np.ndarray, one: Study = one) -> Any:
            return fit(table.take(rows), one.target, makers[one.regressor]).predict

        measured = [
            (t.ordered(table.domains).weights, test.measured) for t, test in zip(tables, one.tests, strict=True)
        ]
        curve = learning_curve(make, len(table), measured, sizes, seed=seed) if measured else []
        found.append(
            {
                **one.to_dict(),
                "predicted": {name: _null(value) for name, value in one.predicted.items()},
                "notes": list(one.notes),
                "lowest_predicted": [
                    {"test": t.name, "run": t.runs[t.best], "place": t.place_of_best, "of": t.score.n}
                    for t in one.tests
                ],
                "learning_curve": [{"runs": n, "spearman": [_spread(v) for v in values]} for n, values in curve],
            }
        )
    targets = {one.target: one for one in studies}
    invariant = [
        {"target": target, "first": a, "second": b, "n": n, "spearman": _null(rho)}
        for target, one in targets.items() for a, b, n, rho in invariance(one.tests, tables)
    ]  # fmt: skip
    return {
        "runs": len(table), "domains": list(table.domains), "short": short,
        "names": {one.target: names[one.target] for one in studies}, "tests": [name for name, _ in tests],
        "studies": found, "rank_invariance": invariant, "cost": _cost(len(table), *costs), "seed": seed,
    }  # fmt: skip


def _spread(values: Sequence[float]) -> dict[str, float | int] | None:
    """None where a fit was constant in some subset: its correlation is not defined."""
    if any(math.isnan(v) for v in values):
        return None
    return {"mean": float(np.mean(values)), "low": min(values), "high": max(values), "subsets": len(values)}


def _cost(
    runs: int,
    parameters: float | None,
    tokens: float | None,
    large_parameters: float | None,
    large_tokens: float | None,
) -> dict[str, Any] | None:
    """FLOPs of the fitted runs and of the large one, as far as sizes are known."""
    from ..corpora.weigh.scores import flops

    if (parameters is None) != (tokens is None) or (large_parameters is None) != (large_tokens is None):
        raise ValueError("cost needs parameters and tokens together")
    small = None if parameters is None or tokens is None else flops(parameters, tokens, runs)
    large = None if large_parameters is None or large_tokens is None else flops(large_parameters, large_tokens)
    if small is None and large is None:
        return None
    return {"runs": small, "large": large, "share": None if not small or not large else small / large}


def write(path: Path, found: Mapping[str, Any], studies: Sequence[Study]) -> None:
    """Write the page; it needs nothing beside it."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    from ..compare.report import style

    def drawn(name: str, draw: Callable[..., None], height: float, width: float, *what: Any) -> Markup:
        return Markup(style.svg(name, lambda figure: draw(figure, *what), height, width))

    pages = []
    for number, (one, said) in enumerate(zip(studies, found["studies"], strict=True)):
        weights = one.proposal.weights
        pages.append(
            {
                **said,
                "weights_svg": drawn(f"w{number}", _weights, 3.8, 5.0, one, found["short"]),
                "fits_svg": [drawn(f"f{number}-{i}", _fit, 3.0, 3.2, test) for i, test in enumerate(one.tests)],
                "rows": sorted(one.domains, key=weights.__getitem__, reverse=True),
            }
        )
    names = found["names"]
    targets = [
        {"name": target, "short": names[target], "svg": drawn(f"c{i}", _curves, 3.4, 8.6, target, found)}
        for i, target in enumerate(dict.fromkeys(one.target for one in studies))
        if found["tests"]
    ]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["hundred"] = lambda value: "undefined" if value is None else f"{100 * value:.2f}"
    environment.filters["loss"] = lambda value: "undefined" if value is None else f"{value:.4f}"
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    text = template.render(
        found=found, studies=pages, targets=targets, variables=style.variables(), short=found["short"], names=names
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    style.replace(path, text.encode())


def _weights(figure: Any, one: Study, short: Mapping[str, str]) -> None:
    """Bars of the proposal beside those of the proportional mixture."""
    from ..compare.report.style import COLOURS, GREY, plain

    axes = figure.add_subplot()
    mine, usual = one.proposal.weights, one.rivals["proportional"].weights
    order = sorted(one.domains, key=lambda d: -max(mine[d], usual[d]))
    shown, rest = order[:SHOWN], order[SHOWN:]
    names = [plain(short[d]) for d in shown] + ([f"{len(rest)} others"] if rest else [])
    for weights, colour, label, shift in ((mine, COLOURS[0], "proposal", -0.2), (usual, GREY, "proportional", 0.2)):
        values = [weights[d] for d in shown] + ([sum(weights[d] for d in rest)] if rest else [])
        axes.barh(np.arange(len(names)) + shift, values, 0.38, color=colour, label=label)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.set(xlabel="weight", title="Weights")
    axes.legend(loc="lower right")


def _fit(figure: Any, test: Any) -> None:
    """Predicted against measured losses; the line of equality only where the scales meet."""
    from ..compare.report.style import COLOURS, GREY, plain

    axes = figure.add_subplot()
    axes.plot(test.predicted, test.measured, "o", ms=3.5, alpha=0.6, mew=0, color=COLOURS[0])
    low, high = max(test.predicted.min(), test.measured.min()), min(test.predicted.max(), test.measured.max())
    if low < high:
        axes.plot([low, high], [low, high], "--", lw=1, color=GREY)
    axes.plot(test.predicted[test.best], test.measured[test.best], "o", ms=7, mfc="none", color=COLOURS[1])
    axes.set(xlabel="predicted loss", ylabel="measured loss", title=plain(test.name))


def _curves(figure: Any, target: str, found: Mapping[str, Any]) -> None:
    """Rank correlation over the number of runs: a panel a test, a line a regressor, and the ranking by one domain."""
    from ..compare.report.style import COLOURS, GREY, plain

    panels = figure.subplots(1, len(found["tests"]), squeeze=False, sharey=True)[0]
    mine = [one for one in found["studies"] if one["target"] == target]
    for place, (axes, test) in enumerate(zip(panels, found["tests"], strict=True)):
        trivial = mine[0]["baselines"]["one-domain-weight"]["tests"][place]["spearman"]
        if trivial is not None:
            axes.axhline(100 * trivial, ls="--", lw=1.2, color=GREY, label="one domain's weight")
        for number, one in enumerate(mine):
            points = [(p["runs"], p["spearman"][place]) for p in one["learning_curve"] if p["spearman"][place]]
            runs = [n for n, _ in points]
            colour = COLOURS[number % len(COLOURS)]
            axes.plot(
                runs, [100 * s["mean"] for _, s in points], "o-", ms=4, color=colour, label=plain(one["regressor"])
            )
            axes.fill_between(
                runs,
                [100 * s["low"] for _, s in points],
                [100 * s["high"] for _, s in points],
                color=colour,
                alpha=0.2,
                lw=0,
            )
        axes.set_xscale("log", base=2)
        ticks = [p["runs"] for p in mine[0]["learning_curve"]]
        axes.set_xticks(ticks, [str(n) for n in ticks])
        axes.minorticks_off()
        axes.set(xlabel="fitted runs", title=plain(test))
    panels[0].set_ylabel("Spearman × 100")
    panels[0].set_ylim(bottom=max(panels[0].get_ylim()[0], -5))
    panels[-1].legend(loc="lower right")


def _null(value: float) -> float | None:
    return None if math.isnan(value) else value
