"""Several data sets in one comparison: each has its own report, all share one store, and ranks are taken over them."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..data import Source
from ..train.metrics import HIGHER_IS_BETTER
from . import rules
from .latex import suite_table
from .ranks import Ranks, picture, rank, svg
from .result import COLUMNS, Result
from .run import compare, make_plan
from .spec import Settings

TEMPLATE = Path(__file__).with_name("suite.html.j2")


def data_names(text: str) -> list[str]:
    """The data sets that `airfoil,no2,mine.csv` names; a path that exists is one, with commas or without.

    ValueError for the same one twice.
    """
    path = text.partition(":")[2] or text  # as in table:mine.csv
    if os.path.exists(os.path.expanduser(text)) or os.path.exists(os.path.expanduser(path)):
        return [text]
    names = [part.strip() for part in text.split(",") if part.strip()]
    for place, name in enumerate(names):
        if name in names[:place]:
            raise ValueError(f"the data set {name} is listed twice")
    return names or [text]


@dataclass(frozen=True)
class Suite:
    """The results of several data sets, in the order asked for."""

    results: list[Result]
    folder: Path

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    @property
    def complete(self) -> bool:
        """Every run ended well."""
        return all(result.complete for result in self.results)

    @property
    def baseline(self) -> str:
        return self.results[0].baseline

    @property
    def methods(self) -> list[str]:
        """By average rank; then those without one."""
        asked = [str(spec) for result in self.results for spec in result.settings.specs]
        return list(dict.fromkeys([*(self.ranks.average if self.ranks else ()), *asked]))

    @cached_property
    def ranks(self) -> Ranks | None:
        """Of the methods that have runs on all data sets, by their means; None for fewer than two of either."""
        results = [result for result in self.results if result.runs]
        first = results[0].by_method if results else {}
        names = [name for name in first if all(name in result.by_method for result in results)]
        if min(len(results), len(names)) < 2:
            return None
        signs = [-1 if result.primary in HIGHER_IS_BETTER else 1 for result in results]
        scores = [[sign * r.mean(name) for name in names] for r, sign in zip(results, signs, strict=True)]
        return rank(names, scores)

    @property
    def doubts(self) -> list[str]:
        """What a reader must know before believing the ranks."""
        said, found = [], self.ranks
        if found is None:
            said.append("there are no ranks: they need two methods that have runs on two data sets")
        else:
            empty = [result.data["name"] for result in self.results if not result.runs]
            if empty:
                said.append(f"the ranks leave out the data sets without any run: {', '.join(empty)}")
            missing = [name for name in self.methods if name not in found.average]
            if missing:
                said.append(f"the ranks leave out the methods without runs on some data set: {', '.join(missing)}")
            most = len(found.average) - 1
            if found.critical_difference > most:
                needed = math.ceil(found.sets * (found.critical_difference / most) ** 2)
                said.append(
                    f"with {found.sets} data sets no two of the {most + 1} methods could be told apart: the critical "
                    f"difference is more than average ranks can differ by ({most}); it takes {needed} data sets or more"
                )
        return said

    @property
    def warnings(self) -> list[str]:
        """Those of the ranks and of the data sets."""
        said, names = self.doubts, dict[str, list[str]]()
        for result in self.results:
            for line in result.warnings:
                names.setdefault(line, []).append(result.data["name"])
        for line, where in names.items():
            said.append(f"{'all data sets' if len(where) == len(self.results) else ', '.join(where)}: {line}")
        return said

    def to_json(self) -> dict[str, Any]:
        """suite: of each data set what its own `to_json` gives."""
        return {
            "suite": [result.to_json() for result in self.results],
            "ranks": self.ranks and self.ranks.to_json(),
            "warnings": self.warnings,
            "report": str(self.report),
        }

    def to_csv(self) -> str:
        """The rows of all data sets as CSV, a column a metric."""
        metrics = dict.fromkeys(name for result in self.results for name in result.metrics)
        text = io.StringIO()
        columns = ["data", *COLUMNS, *metrics]
        writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for result in self.results:
            writer.writerows({"data": result.data["name"], **row} for row in result.csv_rows())
        return text.getvalue()

    def to_latex(self) -> str:
        """Methods by data sets as a table for a paper; needs the package booktabs."""
        return suite_table(self)


def compare_suite(asked: Sequence[Settings], out: str | Path | None = None, **how: Any) -> Suite:
    """`compare` for each of `asked`, which differ in their data, and a report over all of them.

    out: a folder, None for omnimix-out/A+B+...; it gets the store, and a folder a data set. Where no methods are named,
    those are compared that are usual for all of the data. how: workers, watch, ... of `compare`. ValueError for
    settings that do not fit their data, before anything runs. An interrupt leaves a store from which the same call
    continues.
    """
    if len(asked) < 2 or any((one.methods, one.baseline) != (asked[0].methods, asked[0].baseline) for one in asked):
        raise ValueError("a suite needs two or more data sets, and the same methods and baseline for all")
    sources, usual = [], []
    for one in asked:
        source, methods = _checked(one)
        sources.append(source)
        usual.append(methods)
    names = [source.name for source in sources]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"several data sets are called {', '.join(twice)}; rename their files or folders")
    common = tuple(name for name in usual[0] if all(name in methods for methods in usual))
    folder = Path("omnimix-out") / "+".join(names) if out is None else Path(out)
    results = [
        compare(one.with_methods(common), folder / source.name, source=source, store_file=folder / "store.db", **how)
        for one, source in zip(asked, sources, strict=True)
    ]
    suite = Suite(results, folder)
    write(suite)
    return suite


def _checked(asked: Settings) -> tuple[Source, tuple[str, ...]]:
    try:
        settings, plan, _ = make_plan(asked)
    except ValueError as error:
        raise ValueError(f"{asked.data}: {error}") from error
    return plan.source, settings.methods


def write(suite: Suite) -> Path:
    """Write the page, the tables and the diagram into `suite.folder`; returns the page."""
    from .report.style import replace

    if suite.ranks is not None:
        picture(suite.ranks, suite.folder / "ranks.png")
        picture(suite.ranks, suite.folder / "ranks.svg")
    texts = {
        "results.json": json.dumps(suite.to_json(), indent=1, allow_nan=False),
        "results.csv": suite.to_csv(),
        "results.tex": suite.to_latex(),
        suite.report.name: page(suite),
    }
    for name, text in texts.items():
        replace(suite.folder / name, text.encode())
    return suite.report


def page(suite: Suite) -> str:
    """The HTML page."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    drawn = suite.ranks and Markup(svg(suite.ranks))
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        suite=suite, diagram=drawn, cell=_cell, higher=HIGHER_IS_BETTER, said=rules.said
    )


def _cell(result: Result, method: str) -> str:
    """Mean and standard deviation, n where it is not that of the seeds, and a star where the method is told apart from
    the baseline.
    """
    found = next((s for s in result.summaries if s.method == method), None)
    if found is None:
        return "no runs"
    metric, places = found.metrics[result.primary], result.places(result.primary)
    spread = "" if metric.sd is None else f" ± {metric.sd:.{places}f}"
    fewer = "" if metric.n == len(result.settings.seeds) else f" (n = {metric.n})"
    return f"{metric.mean:.{places}f}{spread}{fewer}" + (" *" if found.holm is not None and found.holm < 0.05 else "")
