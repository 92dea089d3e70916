import csv
import io
import json
import re

import pytest
import torch

import omnimix.compare.suite as suite_module
from omnimix.compare.spec import settings
from omnimix.compare.store import Store
from omnimix.compare.suite import Suite, compare_suite, data_names, page, write

BASE = (2.0, 2.2, 2.1, 2.3)


@pytest.fixture
def suite(make_result, tmp_path):
    """erm is best on all, mixup_2 worst, of which nothing ran on the last."""

    def shift(by):
        return tuple(value + by for value in BASE)

    tables = (
        ("one", "rmse", {"erm": BASE, "a": shift(0.1), "mixup_2": shift(0.2)}),
        ("two", "accuracy", {"erm": shift(0.3), "a": shift(0.1), "mixup_2": BASE}),
        ("three", "rmse", {"erm": BASE, "a": shift(0.1), "mixup_2": shift(0.2)}),
    )
    return Suite([make_result(values, primary=metric, name=name) for name, metric, values in tables], tmp_path)


@pytest.fixture
def no_pages(monkeypatch):
    """Of single data sets: they take longer than these runs, and have tests of their own."""

    def write(result, shown=()):
        result.folder.mkdir(parents=True)
        result.report.write_text("a page")

    monkeypatch.setattr("omnimix.compare.report.write", write)
    monkeypatch.setattr("omnimix.compare.pictures.gallery", lambda plan, jobs: ())


@pytest.fixture
def tables(tmp_path):
    """Two regression tables and one with classes."""
    for name in ("north", "south", "kinds"):
        x = torch.rand(60, 2, generator=torch.Generator().manual_seed(len(name)))
        y = [f"c{int(a > 0.5)}" if name == "kinds" else f"{float(a + b)}" for a, b in x]
        rows = [f"{float(a)},{float(b)},{label}" for (a, b), label in zip(x, y, strict=True)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["a,b,y", *rows]))
    return tmp_path


def asked(folder, *names, methods=("erm", "mixup"), **more):
    given = {"target": "y", "seeds": (0, 1), "epochs": 2, "net": "mlp:hidden=4", "methods": methods, **more}
    return [settings(data=str(folder / f"{name}.csv"), **given) for name in names]


def test_names_with_commas_are_several_unless_they_are_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert data_names("airfoil") == ["airfoil"]
    assert data_names("airfoil, no2,") == ["airfoil", "no2"]
    (tmp_path / "a,b.csv").write_text("x")
    assert data_names("a,b.csv") == ["a,b.csv"]
    assert data_names("table:a,b.csv") == ["table:a,b.csv"]
    assert len(data_names(",".join(f"set{place}" for place in range(99)))) == 99
    with pytest.raises(ValueError, match="no2 is listed twice"):
        data_names("no2,airfoil,no2")


def test_ranks_know_that_more_accuracy_is_better(suite):
    assert suite.ranks.average == {"erm": 1.0, "a": 2.0, "mixup_2": 3.0}
    assert suite.ranks.p_f == pytest.approx(1 / 36)


def test_methods_and_data_without_runs_are_left_out_and_named(make_result, tmp_path):
    full = {"erm": BASE, "a": BASE, "b": BASE}
    results = [make_result(full, name="one"), make_result(full, name="two"), make_result({}, name="none")]
    part = make_result({"erm": BASE, "a": BASE}, name="part")
    made = Suite([*results, part], tmp_path)
    assert list(made.ranks.average) == ["erm", "a"]
    said = " ".join(made.warnings)
    assert "data sets without any run: none" in said
    assert "methods without runs on some data set: b" in said
    assert Suite(results[:1] + results[2:], tmp_path).ranks is None
    assert "there are no ranks" in Suite(results[:1] + results[2:], tmp_path).warnings[0]


def test_too_few_data_sets_are_told(make_result, tmp_path):
    names = ("erm", "a", "b", "c", "d", "e", "f")
    one, two = (make_result(dict.fromkeys(names, BASE), name=name) for name in ("one", "two"))
    said = Suite([one, two], tmp_path).warnings[0]
    assert "no two of the 7 methods could be told apart" in said
    assert "it takes 3 data sets" in said  # 2.949 sqrt(7 * 8 / 18) = 5.2 < 6
    assert any(line.startswith("all data sets: with 4 seeds") for line in Suite([one, two], tmp_path).warnings)


def test_the_page_links_the_reports_and_stands_alone(suite):
    text = page(suite)
    assert not re.search(r'(src|href)="(?!data:|#|one/|two/|three/)', text)
    assert 'href="one/report.html"' in text
    assert "<script" not in text
    assert "accuracy ↑" in text
    assert "rmse ↓" in text
    assert text.count("<svg") == 1
    assert " *<" not in text


def test_a_star_is_what_is_told_apart(make_result, tmp_path):
    clear = tuple(value + 1 + 0.1 * place for place, value in enumerate(BASE))
    one, two = (make_result({"erm": BASE, "a": clear}, name=name) for name in ("one", "two"))
    assert "<td>3.30 ± 0.24 *</td>" in page(Suite([one, two], tmp_path))


def test_what_is_written(suite):
    write(suite)
    told = json.loads((suite.folder / "results.json").read_text())
    assert told == json.loads(json.dumps(suite.to_json()))
    assert [one["data"] for one in told["suite"]] == ["one", "two", "three"]
    assert told["ranks"]["average"]["a"] == 2.0
    rows = list(csv.DictReader(io.StringIO((suite.folder / "results.csv").read_text())))
    assert len(rows) == 3 * 3 * 4
    assert (rows[0]["data"], rows[0]["rmse"], rows[0]["accuracy"]) == ("one", "2.0", "")
    for name in ("report.html", "results.tex", "ranks.png", "ranks.svg"):
        assert (suite.folder / name).stat().st_size > 0


def test_the_table_for_papers(suite):
    text = suite.to_latex()
    assert r"\begin{tabular}{lcccr}" in text
    assert r"mixup\_2 & 2.35 $\pm$ 0.13 & 2.15 $\pm$ 0.13 & 2.35 $\pm$ 0.13 & 3.00 \\" in text
    assert r"accuracy $\uparrow$" in text
    assert "Friedman" in text


def test_a_suite_from_files_to_pages_and_again(tables, no_pages, monkeypatch):
    out = tables / "out"
    suite = compare_suite(asked(tables, "north", "kinds"), out, workers=1)
    assert suite.complete
    assert [result.primary for result in suite.results] == ["rmse", "accuracy"]
    assert (out / "north" / "report.html").exists()
    assert (out / "report.html").exists()
    assert not (out / "north" / "store.db").exists()
    with Store(out / "store.db") as store:
        assert len(store) == 8
    monkeypatch.setattr(Store, "add", None)  # nothing runs twice
    monkeypatch.setattr("omnimix.compare.report.write", lambda result, shown=(): None)
    again = compare_suite(asked(tables, "north", "kinds"), out, workers=1)
    assert again.to_json() == suite.to_json()


def test_without_methods_those_usual_for_all_are_taken(tables, monkeypatch):
    run = []
    monkeypatch.setattr(suite_module, "compare", lambda one, *_, **__: run.append(one.methods))
    monkeypatch.setattr(suite_module, "write", lambda suite: None)
    compare_suite(asked(tables, "north", "kinds", methods=()), tables / "out")
    assert run == [("erm", "mixup", "manifold-mixup")] * 2


@pytest.mark.parametrize(
    ("names", "more", "message"),
    [
        (("north", "kinds"), {"methods": ("erm", "c-mixup")}, "kinds.csv: c-mixup is for regression"),
        (("north", "missing"), {}, "missing.csv"),
        (("north",), {}, "two or more data sets"),
        (("north", "north"), {}, "several data sets are called north"),
        (("north", "south"), {"protocol": "c-mixup"}, "north.csv: the protocol 'c-mixup'"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_runs(tables, names, more, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        compare_suite(asked(tables, *names, **more), tables / "out", workers=1)
    assert not (tables / "out").exists()


def test_methods_must_be_the_same_for_all(tables):
    mixed = [*asked(tables, "north"), *asked(tables, "south", methods=("erm", "c-mixup"))]
    with pytest.raises(ValueError, match="the same methods"):
        compare_suite(mixed, tables / "out")
