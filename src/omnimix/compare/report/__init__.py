"""The report of a comparison: one self-contained HTML page; results.json, .csv and .tex and summary.png beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import rules
from ..result import Result, show_interval, show_p

if TYPE_CHECKING:
    from ..pictures import Shown

TEMPLATE = Path(__file__).with_name("template.html.j2")


def write(result: Result, shown: Sequence[Shown] = ()) -> Path:
    """Write the files into `result.folder`; returns the page. Each replaces its predecessor at once.

    shown: what the methods do to training samples, from `pictures.gallery`.
    """
    from .plots import picture
    from .style import replace

    folder = result.folder
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"results.json": json.dumps(result.to_json(), indent=1, allow_nan=False), "results.csv": result.to_csv()}
    if result.runs:
        texts["results.tex"] = result.to_latex()
        picture(result, folder / "summary.png")
    for name, text in {**texts, result.report.name: page(result, shown)}.items():
        replace(folder / name, text.encode())
    return result.report


def page(result: Result, shown: Sequence[Shown] = ()) -> str:
    """The HTML page."""
    from jinja2 import Environment, StrictUndefined

    from . import style

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(interval=show_interval, p=show_p, breaks=_breaks, parameters=rules.write_parameters)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    colour = style.colours(result)
    return template.render(
        result=result,
        plots=_plots(result),
        predictions=_predictions(result),
        mixing=[_mixing(result, number, one) for number, one in enumerate(shown)],
        key=[(name, style.variable(colour[name]), style.dashed(result, name)) for name in colour],
        variables=style.variables(),
        duration=duration,
        about=_about(result),
        draws=rules.draws(result),
        reference=rules.REFERENCE,
    )


def _breaks(name: str) -> Any:
    """A method's name that may go on to a new line before its parameters."""
    from markupsafe import Markup, escape

    return Markup("<wbr>:").join(escape(part) for part in name.split(":"))


def _drawn(name: str, text: str, draw: Any, height: float, width: float = 5.0) -> dict[str, Any]:
    """A picture for the page, with a description for those who do not see it."""
    from markupsafe import Markup

    from .style import svg

    return {"name": name, "text": text, "svg": Markup(svg(name, draw, height, width))}


def _plots(result: Result) -> list[dict[str, Any]]:
    if not result.runs:
        return []
    from . import plots

    rows = plots.height_for(list(result.by_method))
    listed: list[tuple[str, Any, float, str]] = [
        ("ranking", plots.ranking, rows, f"Methods by mean test {result.primary}, with interval and every seed"),
        ("differences", plots.differences, rows, f"Differences to {result.baseline} by seed, with interval"),
        ("seeds", plots.seeds, rows, "The test result of every run, joined by seed"),
        ("cost", plots.cost, 3.6, "The test result against the time of a training step"),
        ("valid", plots.curve("valid_loss", "Validation loss"), 3.6, "Validation loss by epoch"),
        ("train", plots.curve("train_loss", "Training loss"), 3.6, "Training loss by epoch, as each method defines it"),
    ]
    pairs = any(summary.difference for summary in result.summaries)
    timed = sum(summary.cost is not None for summary in result.summaries) > 1
    left_out = {*(() if pairs else ("differences",)), *(() if timed else ("cost",))}
    return [
        _drawn(name, text, plots.figure_of(draw, result), height)
        for name, draw, height, text in listed
        if name not in left_out
    ]


def _predictions(result: Result) -> list[dict[str, Any]]:
    """A picture a method of how its predictions met the truth."""
    from .predictions import panel

    drawn = []
    for number, method in enumerate(result.by_method):
        draw = panel(result, method)
        if draw is not None:
            text = f"Predictions of {method} against the truth"
            drawn.append({"method": method, **_drawn(f"predictions{number}", text, draw, 3.3, 3.2)})
    return drawn


def _mixing(result: Result, number: int, shown: Shown) -> dict[str, Any]:
    """What one method did to training samples."""
    from . import samples

    classes, domains = result.data["classes"], result.data["domains"]
    pictures = []
    if shown.steps:
        target = result.data["target"]
        for name, draw, text in (
            (
                "mixed",
                samples.examples(shown, classes, result.data["features"], target, domains),
                "Samples as mixed by",
            ),
            ("pairs", samples.who(shown, classes, domains), "Who was mixed with whom under"),
        ):
            if draw is not None:
                pictures.append(_drawn(f"{name}{number}", f"{text} {shown.method}", draw, 3.9))
    said = samples.sentence(shown)
    hidden = any(step.recipe is not None and step.recipe.place != "input" for step in shown.steps)
    if pictures and hidden and shown.steps[0].batch.x.ndim > 2:
        said += " The samples shown are those that were mixed at the input."
    return {
        "method": shown.method,
        "said": said,
        "pictures": pictures,
        "seed": shown.seed,
        "without": shown.without,
    }


def _about(result: Result) -> list[tuple[str, str]]:
    """What the head of the page says about data, protocol and machine."""
    data, protocol, budget = result.data, result.protocol, result.protocol["budget"]
    versions = result.runs[-1].versions if result.runs else {}
    return [
        ("Data", f"{data['name']}: {data['rows']} rows, inputs {data['inputs']}, {data['task']}"),
        *_split(data),
        ("Selection", rules.said(result)),
        *([("Label noise", _noise(result.settings.label_noise))] if result.settings.label_noise else []),
        ("Protocol", f"{protocol['name']} ({protocol['source']})"),
        ("Network", protocol["network"]),
        ("Budget", ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in _spent(budget).items())),
        ("Made by", ", ".join(f"{name} {value}" for name, value in versions.items())),
        ("Data digest", data["digest"]),
    ]


def _split(data: dict[str, Any]) -> list[tuple[str, str]]:
    """The rows of the parts; a line for each domain that is held out."""

    def said(sizes: Sequence[int]) -> str:
        return f"{sizes[0]} training, {sizes[1]} validation, {sizes[2]} test rows"

    folds: dict[str, Sequence[int]] = data.get("folds", {})
    return [(f"Without {name}", said(sizes)) for name, sizes in folds.items()] or [
        ("Split", f"{said(data['split'])}, by seed")
    ]


def _noise(share: float) -> str:
    return f"{share:.0%} of the training and of the validation labels are random; test labels are clean"


def _spent(budget: dict[str, Any]) -> dict[str, Any]:
    """A budget without what says nothing."""
    silent = {"momentum": budget["optimizer"] != "sgd", "milestones": not budget["milestones"]}
    silent |= {"select": True, "metric": True}  # the line of the selection says it
    return {name: value for name, value in budget.items() if value is not None and not silent.get(name)}


def duration(seconds: float) -> str:
    """< 0.1 s, 8.3 s, 2 min 10 s, 3 h 05 min."""
    if seconds < 0.05:
        return "< 0.1 s"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
