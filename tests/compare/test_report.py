import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure

from omnimix.compare import report, run
from omnimix.compare.pictures import gallery
from omnimix.compare.report import duration, page, plots, style
from omnimix.compare.result import Result, show_interval, show_p, signed
from omnimix.compare.spec import settings
from omnimix.compare.statistics import Estimate
from omnimix.compare.store import Failure, Run
from omnimix.train.sketch import bands

VALUES = {
    "erm": (2.0, 2.2, 2.1, 2.3, 2.15),
    "mixup:alpha=2": (3.0, 3.3, 3.05, 3.4, 3.1),
    "c-mixup": (2.0, 2.3, 2.0, 2.3, 2.2),
}
TRUE = torch.arange(60.0)


def result(folder: Path, values=VALUES, failures=(), **more) -> Result:
    seeds = tuple(range(max(map(len, values.values()), default=1)))
    runs = [
        Run(
            f"{name}{seed}", name, seed, "digest", "code", {}, {"rmse": value, "r2": 0.5 + value / 100}, {},
            [{"epoch": e, "train_loss": 5 / e, "valid_loss": 4 / e + value} for e in (1, 2, 3)],
            3, 1.5, 0.01 * (1 + len(name)), 10**9, "cpu", {"torch": "2.12"},
            extras={"test": {"bands": [bands(0.9 * TRUE, TRUE)]}},
        )
        for name, column in values.items()
        for seed, value in enumerate(column)
    ]  # fmt: skip
    names = tuple(dict.fromkeys([*values, *(f.method for f in failures)]))
    facts = {
        "name": "toy<set>", "rows": 100, "inputs": "3", "task": "regression", "target": "y", "domains": [],
        "random_split": True, "classes": [], "features": ["x1", "x2"],
        "split": [60, 20, 20], "notes": ["2 cells of 'a' were imputed & counted"], "digest": "abc",
    }  # fmt: skip
    budget = {"epochs": 3, "optimizer": "adam", "momentum": 0.9, "milestones": []}
    held = {"name": "default", "source": "ours", "network": "mlp", "budget": budget}
    given = {"pending": 0, "foreign": 0, **more}
    return Result(
        settings(data="toy", methods=names, seeds=seeds), facts, held, {name: {"alpha": 2} for name in names}, "rmse",
        runs, list(failures), store=folder / "store.db", folder=folder, **given,
    )  # fmt: skip


def test_best_first_and_the_verdicts(tmp_path):
    made = result(tmp_path)
    assert [s.method for s in made.ranking] == ["erm", "c-mixup", "mixup:alpha=2"]
    by_name = {s.method: s for s in made.summaries}
    assert made.verdict(by_name["mixup:alpha=2"]).startswith("mixup:alpha=2 is worse than erm: rmse +1.02")
    assert made.verdict(by_name["c-mixup"]).startswith("c-mixup cannot be told apart from erm")
    up = Result(**{**vars_of(made), "primary": "r2"})
    assert up.ranking[0].method == "mixup:alpha=2"
    assert up.verdict({s.method: s for s in up.summaries}["mixup:alpha=2"]).startswith(
        "mixup:alpha=2 is better than erm"
    )


def vars_of(made: Result) -> dict:
    return {name: getattr(made, name) for name in made.__dataclass_fields__}


def shown(data: str, *methods: str):
    """What methods do to a built-in data set."""
    _, plan, jobs = run.make_plan(settings(data=data, methods=methods, seeds=(0, 1)))
    return gallery(plan, jobs)


def test_the_page_is_self_contained_and_escapes_what_users_wrote(tmp_path):
    text = page(result(tmp_path), shown("two-moons", "erm", "mixup"))
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    assert "url(http" not in text
    assert "@import" not in text
    assert "<script" not in text
    assert "toy&lt;set&gt;" in text
    assert "toy<set>" not in text
    assert "imputed &amp; counted" in text
    assert "momentum" not in text.split("What was held equal")[1].split("Notes on the data")[0]


def test_the_pictures_are_svg_with_ids_of_their_own(tmp_path):
    text = page(result(tmp_path))
    pictures = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(pictures) == 6 + 3
    for picture in pictures:
        ET.fromstring(picture.replace("xlink:href", "href"))
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    for target in re.findall(r'(?:url\(#|href="#)([^)"]+)', text):
        assert target in ids


def test_every_picture_has_a_description_and_follows_a_dark_background(tmp_path):
    text = page(result(tmp_path))
    assert text.count('class="plot"') == text.count('role="img" aria-label=') == 9
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    for fixed in ("#1b1b1b", "#666666", "#0072b2"):
        assert fixed not in drawn
    for name in set(re.findall(r"var\((--[a-z0-9]+)\)", text)):
        assert text.count(f"{name}: ") == 2, name


LONG = "c-mixup:alpha=0.123456789:bandwidth=1.75:per_sample=true:place=block1"
NO_BREAK = "a_plug_in_whose_name_is_as_long_as_a_sentence_but_has_no_place_to_break"


@pytest.mark.parametrize("baseline", [LONG, NO_BREAK])
def test_long_names_do_not_cut_titles(tmp_path, baseline):
    made = result(tmp_path, {LONG: VALUES["erm"], NO_BREAK: VALUES["mixup:alpha=2"]})
    made = Result(**{**vars_of(made), "settings": made.settings.model_copy(update={"baseline": baseline})})
    made.data["name"] = "a data set with a name " * 8
    seen = []

    def both(figure):
        left, right = figure.subplots(1, 2)
        plots.ranking(made, left)
        plots.differences(made, right)
        figure.suptitle(made.data["name"], x=0.01, ha="left")

    for draw, width in ((plots.differences, 5), (plots.seeds, 5), (plots.cost, 5), (None, 11)):
        with rc_context(style.STYLE):
            figure = Figure(figsize=(width, 4))
            (both if draw is None else plots.figure_of(draw, made))(figure)
            style.fit_texts(figure)
            figure.draw_without_rendering()
        for text, _ in style._texts(figure):
            box = text.get_window_extent()
            assert box.x0 >= -1, text
            assert box.x1 <= figure.bbox.width + 1, text
            seen.append(text.get_text())
    assert "".join(seen).replace("\n", "").count(baseline) >= 3


def test_lines_break_before_parameters_or_anywhere():
    assert style.wrap("mixup:alpha=0.2:k=3", 15) == "mixup:alpha=0.2\n:k=3"
    assert style.wrap("one two three", 8) == "one two\nthree"
    assert style.wrap("abcdefghij", 4) == "abcd\nefgh\nij"
    assert style.short("cost in $", 22) == r"cost in \$"


def test_the_page_says_how_many_values_and_what_chose(tmp_path):
    made = result(tmp_path, {"erm": (1.0, 2.0), "mixup": (2.0, 3.0, 2.5)})
    made.runs[0].metrics["r2"] = None
    text = page(made)
    assert "(n = 1)</td>" in text
    assert "<dt>Selection</dt><dd>validation: of the epochs" in text
    assert "Label noise" not in text
    assert "metric loss" not in text


def test_what_the_methods_mix_is_on_the_page(tmp_path):
    made = result(tmp_path)
    made.data["domains"] = []
    text = page(made, shown("airfoil", "erm", "c-mixup", "regmix-regression", "mixup"))
    erm, c_mixup, learned, mixup = re.findall(r'<section class="method">.*?</section>', text, flags=re.DOTALL)
    assert "mixes nothing" in erm
    assert "<svg" not in erm
    assert c_mixup.count("<svg") == mixup.count("<svg") == 2
    assert "cannot be shown without training" in learned
    assert "validation" in learned


def test_a_browser_opens_it_wide_and_narrow_without_errors(tmp_path, fits_in_windows):
    fault = Failure("k", "mixup", 0, {"seed": 0, "long": "x" * 300}, "RuntimeError: " + "lost" * 60, "Traceback", {})
    made = result(tmp_path, {**VALUES, "mixup:alpha=0.123456:per_sample=true:k=3": (1.0, 2.0)}, failures=[fault])
    fits_in_windows(page(made, shown("digits", "mixup", "cutmix")))


@pytest.mark.parametrize(
    "values",
    [
        {"erm": (1.0,)},
        {"erm": (1.0,), "mixup": (2.0,)},
        {"erm": (1.0, 1.0), "mixup": (1.0, 1.0)},
        {"mixup": (1.0, 2.0), "cutmix": (3.0,)},
        {},
    ],
)
def test_odd_comparisons_have_a_page_too(tmp_path, values):
    fault = Failure("k", "erm", 0, {"seed": 0}, "RuntimeError: lost", "Traceback: lost", {})
    made = result(tmp_path, values, failures=[fault])
    path = report.write(made)
    assert "RuntimeError: lost" in path.read_text()
    assert (tmp_path / "summary.png").exists() == bool(values)


def test_warnings(tmp_path):
    assert result(tmp_path).warnings == []
    said = " ".join(result(tmp_path, {"erm": (1.0, 2.0)}, pending=3, foreign=2).warnings)
    assert "3 runs have not ended" in said
    assert "with 2 seeds" in said
    assert "2 runs in the store were made by other versions" in said


def test_a_name_with_dollars_or_tags_is_drawn_and_written_as_it_is(tmp_path):
    made = result(tmp_path, {"erm": (1.0, 2.0), "mixup:alpha=$\\frac$": (3.0, 4.0)})
    made.data["name"] = "cost in $ or $\\x$ [/b]"
    baseline = made.settings.model_copy(update={"baseline": "mixup:alpha=$\\frac$"})
    for changed in (made, Result(**{**vars_of(made), "settings": baseline})):
        assert "mixup:alpha=$\\frac$" in "".join(re.findall(r"<svg.*?</svg>", page(changed), flags=re.DOTALL))
        report.write(changed)


def test_two_processes_write_to_files_of_their_own(tmp_path, monkeypatch):
    used = []
    monkeypatch.setattr(style.os, "replace", lambda half, path: used.append(half.name))
    for pid in (1, 2):
        monkeypatch.setattr(style.os, "getpid", lambda pid=pid: pid)
        style.replace(tmp_path / "page", b"text")
    assert len(set(used)) == 2


def test_a_file_that_cannot_be_written_whole_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    style.replace(path, b"old")

    def full(self, content):
        self.touch()
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space"):
        style.replace(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_no_interval_below_four_seeds_and_one_line_says_so(tmp_path):
    few = result(tmp_path, {"erm": (1.0, 2.0, 3.0), "mixup": (2.0, 3.0, 4.5)})
    for summary in few.to_json()["summary"]:
        assert summary["ci95"] == {"rmse": None, "r2": None}
    assert summary["diff"]["rmse"]["ci95"] is None
    assert sum("too few seeds for an interval" in line for line in few.warnings) == 1
    enough = result(tmp_path, {"erm": (1.0, 2.0, 3.0, 5.0)})
    assert enough.summaries[0].metrics["rmse"].ci95 == (1.0, 5.0)
    assert "too few seeds" not in " ".join(enough.warnings)


def test_methods_are_ordered_by_the_seeds_that_all_have(tmp_path):
    made = result(tmp_path, {"erm": (1.0, 1.0, 9.0), "mixup": (2.0, 2.0)})
    assert [s.method for s in made.ranking] == ["erm", "mixup"]  # by all of its seeds erm has mean 3.7
    assert "ordered by the 2 seeds" in " ".join(made.warnings)
    assert made.to_json()["summary"][1]["diff"]["rmse"]["n"] == 2
    assert "(n = 2)" in page(result(tmp_path, {"erm": (1.0, 1.0), "mixup": (2.0, 2.0, 2.0)}))


def test_results_by_domain_of_random_splits_are_no_new_domains(tmp_path):
    made = result(tmp_path)
    made.data["domains"] = ["north", "south"]
    assert "every domain is in training" in " ".join(made.warnings)
    made.data["random_split"] = False
    assert made.warnings == []


def test_decimals_follow_the_spread(tmp_path):
    assert result(tmp_path, {"erm": (2.0, 2.2)}).places("rmse") == 2
    assert result(tmp_path, {"erm": (200.0, 260.0)}).places("rmse") == 0
    assert result(tmp_path, {"erm": (0.93411, 0.93422)}).places("rmse") == 6
    assert result(tmp_path, {"erm": (0.5,)}).places("rmse") == 3


def test_how_numbers_are_written():
    assert [show_p(p) for p in (0.0004, 0.0321, 0.5)] == ["< 0.001", "0.032", "0.50"]
    assert show_interval((-1.0, 2.0), 1, "+") == "[-1.0, +2.0]"
    assert show_interval(None, 1) == ""
    assert signed(Estimate(3, 0.5, 1.0, (0.25, 0.75)), 2) == "+0.50 [+0.25, +0.75]"
    assert [duration(s) for s in (0.01, 0.12, 12.3, 130, 11100)] == [
        "< 0.1 s",
        "0.1 s",
        "12 s",
        "2 min 10 s",
        "3 h 05 min",
    ]
