"""The report of a comparison: one self-contained HTML page, and results.json, results.csv and summary.png beside it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..result import Result, show_interval, show_p

TEMPLATE = Path(__file__).with_name("template.html.j2")


def write(result: Result) -> Path:
    """Write the four files into `result.folder`; returns the page. Each replaces its predecessor at once."""
    result.folder.mkdir(parents=True, exist_ok=True)
    _replace(result.folder / "results.json", json.dumps(result.to_json(), indent=1, allow_nan=False))
    _replace(result.folder / "results.csv", result.to_csv())
    if result.runs:
        from .plots import picture

        picture(result, result.folder / "summary.png")
    _replace(result.report, page(result))
    return result.report


def _replace(path: Path, text: str) -> None:
    half = path.with_name(f"{path.name}.{os.getpid()}.part")  # two comparisons may share the folder
    half.write_text(text, encoding="utf-8")
    os.replace(half, path)


def page(result: Result) -> str:
    """The HTML page."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(interval=show_interval, p=show_p)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(result=result, plots=_plots(result), duration=duration, about=_about(result))


def _plots(result: Result) -> list[dict[str, str]]:
    """SVG pictures with a description for those who do not see them."""
    if not result.runs:
        return []
    from markupsafe import Markup

    from . import plots

    height = plots.height_for(len(result.ranking))
    drawn: list[tuple[str, Any, float, str]] = [
        ("ranking", plots.ranking, height, f"Methods by mean test {result.primary}, with interval and every seed"),
        ("differences", plots.differences, height, f"Differences to {result.baseline} by seed, with interval"),
        ("seeds", plots.seeds, 3.6, "The test result of every run, joined by seed"),
        ("cost", plots.cost, 3.6, "The test result against the time of a training step"),
        ("valid", plots.curve("valid_loss", "Validation loss"), 3.6, "Validation loss by epoch"),
        ("train", plots.curve("train_loss", "Training loss, as each method defines it"), 3.6, "Training loss by epoch"),
    ]
    if not any(summary.difference for summary in result.summaries):
        drawn = [plot for plot in drawn if plot[0] not in ("differences", "cost")]
    return [
        {"name": name, "text": text, "svg": Markup(plots.svg(name, draw, result, tall))}
        for name, draw, tall, text in drawn
    ]


def _about(result: Result) -> list[tuple[str, str]]:
    """What the head of the page says about data, protocol and machine."""
    data, protocol, budget = result.data, result.protocol, result.protocol["budget"]
    versions = result.runs[-1].versions if result.runs else {}
    return [
        ("Data", f"{data['name']}: {data['rows']} rows, inputs {data['inputs']}, {data['task']}"),
        ("Split", f"{data['split'][0]} training, {data['split'][1]} validation, {data['split'][2]} test rows, by seed"),
        ("Protocol", f"{protocol['name']} ({protocol['source']})"),
        ("Network", protocol["network"]),
        ("Budget", ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in _spent(budget).items())),
        ("Made by", ", ".join(f"{name} {value}" for name, value in versions.items())),
        ("Data digest", data["digest"]),
    ]


def _spent(budget: dict[str, Any]) -> dict[str, Any]:
    """A budget without what says nothing."""
    silent = {"momentum": budget["optimizer"] != "sgd", "milestones": not budget["milestones"]}
    return {name: value for name, value in budget.items() if value is not None and not silent.get(name)}


def duration(seconds: float) -> str:
    """8.3 s, 2 min 10 s, 3 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
