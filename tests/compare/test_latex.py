import re
from dataclasses import replace

import pytest

from omnimix.compare.latex import best, escape
from omnimix.compare.suite import Suite


def cells(text: str) -> list[list[str]]:
    """The rows of the body."""
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0]
    return [re.split(r" & ", line.strip().removesuffix(r" \\")) for line in body.strip().splitlines()]


def test_what_users_named_is_printed_as_it_is():
    assert escape("a_b%c&d#e$f{g}") == r"a\_b\%c\&d\#e\$f\{g\}"
    assert escape("\\x~^") == r"\textbackslash{}x\textasciitilde{}\textasciicircum{}"
    assert escape("mixup:alpha=0.2") == "mixup:alpha=0.2"


def test_a_row_a_method_and_as_many_cells_as_columns(make_result):
    made = make_result({"erm": (2.0, 2.2, 2.1, 2.3, 2.15), "mixup:per_sample=true": (3.0, 3.3, 3.05, 3.4, 3.1)})
    text = made.to_latex()
    rows = cells(text)
    columns = re.search(r"\\begin\{tabular\}\{(\w+)\}", text)[1]
    assert [len(row) for row in rows] == [len(columns)] * 2
    assert rows[1][:3] == [r"mixup:per\_sample=true", "5", r"3.17 $\pm$ 0.17"]
    assert rows[1][3:] == ["$+1.02$", "$[+0.95, +1.10]$", "$< 0.001$", "$0.062$"]
    assert rows[0] == [r"\textbf{erm}", "5", r"\textbf{2.15 $\pm$ 0.11}", "--", "", "", ""]
    caption = re.search(r"\\caption\{(.*)\}", text)[1]
    for said in (
        "5 seeds",
        "protocol: default",
        "rmse",
        "lower is better",
        "paired t-test",
        "Wilcoxon",
        "Holm",
        "Bold",
    ):
        assert said in caption
    assert text.count("{") == text.count("}")


def test_bold_is_what_is_best_and_told_apart(make_result):
    base, noise = (2.0, 2.2, 2.1, 2.3, 2.15), (1.9, 2.3, 2.0, 2.4, 2.1)
    better = tuple(value - 1 - 0.1 * place for place, value in enumerate(base))
    assert best(make_result({"erm": base, "a": better, "b": noise})) == "a"
    assert best(make_result({"erm": base, "b": noise})) is None  # b is best, but not told apart
    worse = tuple(value + 1 + 0.1 * place for place, value in enumerate(base))
    assert best(make_result({"erm": base, "a": worse})) == "erm"
    level = tuple(value + 0.01 * (-1) ** place for place, value in enumerate(base))
    assert best(make_result({"erm": base, "a": worse, "b": level})) is None
    assert best(make_result({"erm": base})) is None


def test_unequal_numbers_of_values_are_shown(make_result, tmp_path):
    made = make_result({"erm": (2.0, 2.2, 2.1), "a": (3.0, 3.3), "b": (1.0, 1.2, 1.4)})
    rows = {row[0].removeprefix(r"\textbf{").rstrip("}"): row for row in cells(made.to_latex())}
    assert rows["a"][1] == "2"
    assert rows["b"][3] == "$-0.90$"
    short = make_result({"erm": (2.0, 2.2), "a": (3.0, 3.3, 3.1)})
    (row,) = [row for row in cells(short.to_latex()) if row[0] == "a"]
    assert row[3] == "$+1.05$ ($n = 2$)"
    made.runs[1].metrics["rmse"] = None
    assert any("($n = 2$)" in row[2] for row in cells(make_result_again(made)) if "erm" in row[0])
    text = Suite([short, short], tmp_path).to_latex()
    assert r"2.10 $\pm$ 0.14 ($n = 2$)" in text
    assert "Selection by validation" in text


def make_result_again(made) -> str:
    """The table of the same runs, without what was computed before."""
    return replace(made).to_latex()


@pytest.mark.parametrize(
    "values", [{"erm": (1.0,)}, {"erm": (1.0,), "a": (2.0,)}, {"erm": (1.0, 1.0), "a": (2.0,)}, {}]
)
def test_few_runs_have_a_table_too(make_result, values):
    text = make_result(values).to_latex()
    assert len([row for row in cells(text) if row != [""]]) == len(values)
