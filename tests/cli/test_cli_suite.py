import json
import sys

import pytest

from omnimix.cli import main

SMALL = ["--target", "price", "--methods", "erm,mixup", "--seeds", "2", "--epochs", "2", "--net", "mlp:hidden=4"]


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """(exit status, standard output, standard error) of `omnimix compare` in a folder with two tables."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("omnimix.compare.report._plots", lambda result: [])
    monkeypatch.setattr("omnimix.compare.report.plots.picture", lambda result, path: None)
    monkeypatch.setattr("omnimix.compare.pictures.gallery", lambda plan, jobs: ())
    for name, slope in (("north", 3.5), ("south", -1.5)):
        lines = ["size,price", *(f"{i % 17}.5,{slope * (i % 17) + i % 2}" for i in range(60))]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["omnimix", "compare", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return run


def test_data_with_commas_are_a_suite(call, tmp_path):
    code, out, err = call("--data", "north.csv,south.csv", *SMALL, "--jobs", "1", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert [one["data"] for one in told["suite"]] == ["north.csv", "south.csv"]
    assert set(told["ranks"]["average"]) == {"erm", "mixup"}
    assert told["report"] == "omnimix-out/north+south/report.html"
    assert (tmp_path / told["report"]).exists()
    assert err.index("north:") < err.index("[4/4]") < err.index("south:")
    assert "Average ranks over 2 data sets" in err
    code, out, err = call("--data", "north.csv,south.csv", *SMALL, "--jobs", "1")
    assert code == 0, err
    assert "4 of 4 runs are in the store already" in err
    assert "Friedman's test over 2 data sets" in out
    assert "Report: omnimix-out/north+south/report.html" in out
    assert "omnimix-out/north+south/south/report.html" in out


def test_a_path_with_a_comma_is_one_data_set(call, tmp_path):
    (tmp_path / "north.csv").rename(tmp_path / "north,south.csv")
    code, out, err = call("--data", "north,south.csv", *SMALL, "--jobs", "1", "--json")
    assert code == 0, err
    assert json.loads(out)["data"] == "north,south.csv"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("north.csv,nort.csv", "nort.csv"),
        ("north.csv,north.csv", "north.csv is listed twice"),
        ("north.csv,digits", "digits"),
    ],
)
def test_bad_suites_are_refused_in_one_line(call, tmp_path, data, message):
    code, out, err = call("--data", data, *SMALL)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "omnimix-out").exists()
