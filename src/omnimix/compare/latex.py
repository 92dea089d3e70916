"""A comparison as a table for a paper: booktabs, with a caption that says what was held equal and how it was tested."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..train.metrics import HIGHER_IS_BETTER
from .statistics import Estimate, Summary

if TYPE_CHECKING:
    from .result import Result
    from .suite import Suite

LEVEL = 0.05
_SPECIAL = {character: "\\" + character for character in "_%&#${}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "\n": " ",
}  # fmt: skip


def escape(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(_SPECIAL.get(character, character) for character in text)


def table(result: Result) -> str:
    """The summary of one comparison."""
    metric, places = result.primary, result.places(result.primary)
    bold, rows = best(result), []
    for summary in result.ranking:
        gap = summary.difference.get(metric)
        rows.append([
            _bold(escape(summary.method), summary.method == bold),
            str(summary.n),
            _bold(_spread(summary.metrics.get(metric), places), summary.method == bold),
            "--" if gap is None else f"${gap.mean:+.{places}f}$",
            "" if gap is None or gap.ci95 is None else f"$[{gap.ci95[0]:+.{places}f}, {gap.ci95[1]:+.{places}f}]$",
            _p(None if gap is None else gap.p_holm),
            _p(None if gap is None else gap.p_wilcoxon_holm),
        ])  # fmt: skip
    against = escape(result.baseline)
    head = ["Method", "Seeds", _metric(metric), f"Minus {against}", r"95\,\% interval", "$p$", "$p$ (Wilcoxon)"]
    better = "higher" if metric in HIGHER_IS_BETTER else "lower"
    caption = (
        f"Test {escape(metric)} on {escape(result.data['name'])} (mean $\\pm$ standard deviation over {result.span}; "
        f"{better} is better), protocol: {escape(result.protocol['name'])}. Differences to {against} are paired by "
        f"seed (split, initial weights), with bootstrap intervals. {escape(result.tests)}. {_rule(against)}"
    )
    return _table("lrcrrrr", head, rows, caption, f"tab:{result.data['name']}")


def suite_table(suite: Suite) -> str:
    """Methods by data sets, with average ranks."""
    cells = []
    for method in suite.methods:
        row = [escape(method)]
        for result in suite.results:
            found = {s.method: s.metrics[result.primary] for s in result.summaries}.get(method)
            row.append(_bold(_spread(found, result.places(result.primary)), method == best(result)))
        if suite.ranks is not None:
            row.append(f"{suite.ranks.average[method]:.2f}" if method in suite.ranks.average else "--")
        cells.append(row)
    ranked = suite.ranks is not None
    head = ["Method", *(f"{escape(r.data['name'])}, {_metric(r.primary)}" for r in suite.results), *["Rank"] * ranked]
    spans = " and ".join(dict.fromkeys(result.span for result in suite.results))
    tested = "" if suite.ranks is None else f" Average ranks: {escape(suite.ranks.verdict)}."
    against = escape(suite.baseline)
    caption = (
        f"Test results, mean $\\pm$ standard deviation over {spans}; arrows point to the better values. "
        f"{_rule(against)}{tested}"
    )
    return _table("l" + "c" * len(suite.results) + "r" * ranked, head, cells, caption, "tab:suite")


def best(result: Result) -> str | None:
    """The method whose mean is bold: the best one, if the paired t-test (Holm) tells it apart from the baseline; where
    the baseline is best, if the next one is told apart from it."""
    told = [s for s in result.ranking if result.primary in s.metrics]
    if len(told) < 2:
        return None
    judged: Summary = told[1] if told[0].method == result.baseline else told[0]
    return told[0].method if judged.holm is not None and judged.holm < LEVEL else None


def _rule(against: str) -> str:
    return (
        f"Bold: the best mean, where it differs from that of {against} (Holm $p < {LEVEL:g}$; where {against} is best, "
        "where the next best differs from it)."
    )


def _metric(name: str) -> str:
    return escape(name) + (r" $\uparrow$" if name in HIGHER_IS_BETTER else r" $\downarrow$")


def _spread(found: Estimate | None, places: int) -> str:
    if found is None:
        return "--"
    return f"{found.mean:.{places}f}" + ("" if found.sd is None else f" $\\pm$ {found.sd:.{places}f}")


def _p(value: float | None) -> str:
    from .result import show_p

    return "" if value is None else f"${show_p(value)}$"


def _bold(text: str, wanted: bool) -> str:
    return f"\\textbf{{{text}}}" if wanted else text


def _table(columns: str, head: Sequence[str], rows: Iterable[Sequence[str]], caption: str, label: str) -> str:
    lines = [" & ".join(cells) + r" \\" for cells in rows]
    label = "".join(c if c.isalnum() or c in ":-" else "-" for c in label)
    return "\n".join([
        "% needs \\usepackage{booktabs}",
        r"\begin{table}", r"\centering", f"\\caption{{{caption}}}", f"\\label{{{label}}}",
        f"\\begin{{tabular}}{{{columns}}}", r"\toprule", " & ".join(head) + r" \\", r"\midrule",
        *lines,
        r"\bottomrule", r"\end{tabular}", r"\end{table}", "",
    ])  # fmt: skip
