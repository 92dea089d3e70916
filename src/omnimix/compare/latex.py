"""A comparison as a table for a paper: booktabs, with a caption that says what was held equal and how it was tested."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..train.metrics import HIGHER_IS_BETTER
from . import rules
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
    """The summary of one comparison; below it, where there are any, domains and rules, and what tuning chose."""
    metric, places = result.primary, result.places(result.primary)
    bold, rows = best(result), []
    for summary in result.ranking:
        gap = summary.difference.get(metric)
        rows.append([
            _bold(escape(summary.method), summary.method == bold),
            str(summary.n),
            _bold(_spread(summary.metrics.get(metric), places, summary.n), summary.method == bold),
            "--" if gap is None else f"${gap.mean:+.{places}f}$" + _n(gap.n, summary.n),
            "" if gap is None or gap.ci95 is None else f"$[{gap.ci95[0]:+.{places}f}, {gap.ci95[1]:+.{places}f}]$",
            _p(None if gap is None else gap.p_holm),
            _p(None if gap is None else gap.p_wilcoxon_holm),
        ])  # fmt: skip
    against = escape(result.baseline)
    head = ["Method", "Seeds", _metric(metric), f"Minus {against}", r"95\,\% interval", "$p$", "$p$ (Wilcoxon)"]
    better = "higher" if metric in HIGHER_IS_BETTER else "lower"
    caption = (
        f"Test {escape(metric)} on {escape(result.data['name'])} (mean $\\pm$ standard deviation over {result.span}; "
        f"{better} is better), protocol: {escape(result.protocol['name'])}. {_chosen(result)}{_noise(result)}"
        f"Differences to {against} are paired by "
        f"seed (split, initial weights), with bootstrap intervals. {escape(result.tests)}. {_rule(against)}"
    )
    label = f"tab:{result.data['name']}"
    parts = [_table("lrcrrrr", head, rows, caption, label)]
    if result.by_domain or result.rules:
        parts.append(_rules_table(result, f"{label}-rules"))
    if any(one["chosen"] for one in result.tuning):
        parts.append(_draws_table(result, f"{label}-draws"))
    return "\n".join(parts)


def _rules_table(result: Result, label: str) -> str:
    """Every method under every rule of selection that ran, by domain."""
    places = result.places(result.primary)

    def number(value: float | None, sign: str = "") -> str:
        return "--" if value is None else f"${value:{sign}.{places}f}$"

    several, worst = bool(result.rules), any(line.worst is not None for line in result.side_by_side)
    head = ["Method", *["Selection"] * several, *map(escape, result.domains), *["Worst"] * worst, "Mean"]
    head += [f"Minus {escape(result.selection)}"] * several
    rows = [
        [
            escape(line.method),
            *[escape(line.rule)] * several,
            *map(number, line.domains.values()),
            *[number(line.worst)] * worst,
            number(line.mean) + _n(line.n, len(result.settings.seeds)),
            *[number(line.gap, "+")] * several,
        ]
        for line in result.side_by_side
    ]
    caption = f"Test {_metric(result.primary)} on {escape(result.data['name'])}, mean over {result.span}"
    if result.by_domain:
        caption += ", by the domain that was held out; worst: of each seed"
    ruled = {line.rule for line in result.side_by_side}
    caption += f". The oracle is {rules.REFERENCE}." if rules.ORACLE in ruled else "."
    return _table("l" * (1 + several) + "r" * (len(head) - 1 - several), head, rows, caption, label)


def _draws_table(result: Result, label: str) -> str:
    """Which draw of hyperparameters the rule of the comparison chose, and after how many epochs it was taken."""
    rows, held = [], result.by_domain
    for one in rules.draws(result):
        if one["rule"] != result.selection:
            continue
        rows.append([
            escape(one["method"]), str(one["seed"]), *[escape(str(one["domain"]))] * held,
            str(one["draw"]), str(one["epoch"]), escape(rules.write_parameters(one["given"])),
        ])  # fmt: skip
    head = ["Method", "Seed", *["Held out"] * held, "Draw", "Epoch", "Parameters"]
    caption = f"What was chosen on {escape(result.data['name'])}. {_chosen(result)}Draw 0 is the default."
    return _table("lr" + "l" * held + "rrl", head, rows, caption, label)


def _chosen(result: Result) -> str:
    return f"Selection by {escape(rules.said(result))}. "


def _noise(result: Result) -> str:
    share = result.settings.label_noise
    return f"{100 * share:g}\\,\\% of the training and validation labels are random. " if share else ""


def _n(count: int, usual: int) -> str:
    """The number of values where it is not what the reader expects."""
    return "" if count == usual else f" ($n = {count}$)"


def suite_table(suite: Suite) -> str:
    """Methods by data sets, with average ranks."""
    cells = []
    for method in suite.methods:
        row = [escape(method)]
        for result in suite.results:
            found = {s.method: s.metrics[result.primary] for s in result.summaries}.get(method)
            spread = _spread(found, result.places(result.primary), len(result.settings.seeds))
            row.append(_bold(spread, method == best(result)))
        if suite.ranks is not None:
            row.append(f"{suite.ranks.average[method]:.2f}" if method in suite.ranks.average else "--")
        cells.append(row)
    ranked = suite.ranks is not None
    head = ["Method", *(f"{escape(r.data['name'])}, {_metric(r.primary)}" for r in suite.results), *["Rank"] * ranked]
    spans = " and ".join(dict.fromkeys(result.span for result in suite.results))
    tested = "" if suite.ranks is None else f" Average ranks: {escape(suite.ranks.verdict)}."
    against = escape(suite.baseline)
    chosen = "".join(dict.fromkeys(_chosen(result) for result in suite.results))
    noise = "".join(dict.fromkeys(_noise(result) for result in suite.results))
    caption = (
        f"Test results, mean $\\pm$ standard deviation over {spans} ($n$ where there are fewer); arrows point to the "
        f"better values. {chosen}{noise}{_rule(against)}{tested}"
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


def _spread(found: Estimate | None, places: int, usual: int) -> str:
    if found is None:
        return "--"
    spread = "" if found.sd is None else f" $\\pm$ {found.sd:.{places}f}"
    return f"{found.mean:.{places}f}{spread}{_n(found.n, usual)}"


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
