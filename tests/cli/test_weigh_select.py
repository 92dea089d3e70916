"""`omnimix weigh select`: from documents and weights to the chosen documents."""

import json

import pytest
from typer.testing import CliRunner

pytest.importorskip("pandas", reason="the command line needs omnimix[compare]")
pytest.importorskip("pyarrow")

from omnimix.cli import weigh_select  # noqa: F401
from omnimix.cli.console import app
from omnimix.corpora import Mixture


@pytest.fixture
def words(tmp_path):
    rows = [{"topic": "ab"[i % 2], "n": 10, "quality": i, "text": "x"} for i in range(40)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Mixture({"a": 0.75, "b": 0.25}).save(tmp_path / "m.json")
    return [tmp_path / "d.jsonl", "--mixture", tmp_path / "m.json", "--domain", "topic", "-o", tmp_path / "out"]


def run(*words, code=0):
    result = CliRunner().invoke(app, ["weigh", "select", *map(str, words)])
    assert result.exit_code == code, result.output
    return result


def test_the_best_documents_under_quotas(words, tmp_path):
    found = json.loads(run(*words, "--budget", 80, "--tokens", "n", "--score", "quality", "--json").stdout)
    rows = [json.loads(line) for line in (tmp_path / "out" / "d.jsonl").read_text().splitlines()]
    assert [row["quality"] for row in rows] == [28, 30, 32, 34, 36, 37, 38, 39]
    assert found["domains"]["a"] == {
        "weight": 0.75, "quota": 60.0, "selected": 60, "share": 0.75, "documents": 6, "available": 200
    }  # fmt: skip
    assert found["short"] == []
    again = run(*words, "--budget", 80, "--tokens", "n", "--score", "quality").stdout
    assert "8 documents, 80 of 80 tokens" in again


def test_weights_as_csv_in_documents(words, tmp_path):
    (tmp_path / "w.csv").write_text("domain,weight\na,1\nb,3\n")
    words[2] = tmp_path / "w.csv"
    text = run(*words, "--budget", 30, "--unit", "documents").stdout
    assert "b (short)" in text
    assert "30 documents, 30 of 30 documents" in text


def test_errors(words, tmp_path):
    for more, message in (
        (["--unit", "documents"], "is in tokens, not in documents"),
        (["--tokens", "m"], "line 1: no column 'm'; it has topic, n, quality, text"),
        (["--shortage", "ignore"], "shortage must be one of"),
        (["--unit", "words"], "--unit must be one of"),
    ):
        shown = " ".join(run(*words[:-1], tmp_path / message[:6].strip(), "--budget", 10, *more, code=2).stderr.split())
        assert message in shown
