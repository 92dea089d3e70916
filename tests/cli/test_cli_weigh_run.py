"""`omnimix weigh run` and `weigh online` from documents to a mixture: rows kept, resumed, refused with a reason."""

import csv
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from omnimix.cli import weigh_run  # noqa: F401  (adds its verbs)
from omnimix.cli.console import app
from omnimix.compare.store import Store
from omnimix.corpora import Mixture
from omnimix.corpora.weigh.run_table import RunTable, write_mixtures

SMALL = [
    "--steps",
    "3",
    "--batch",
    "6",
    "--context",
    "16",
    "--width",
    "16",
    "--layers",
    "1",
    "--heads",
    "2",
    "--json",
    "-q",
]


@pytest.fixture
def corpus(tmp_path):
    random, file = np.random.default_rng(0), tmp_path / "documents.jsonl"
    with open(file, "w") as out:
        for name, letters in {"a": "abcd ", "b": "efgh ", "c": "abef "}.items():
            for _ in range(30):
                text = "".join(random.choice(list(letters), size=40))
                out.write(json.dumps({"domain": name, "text": text}) + "\n")
    return file


@pytest.fixture
def mixtures(tmp_path):
    write_mixtures(tmp_path / "design.csv", ["a", "b", "c"], np.array([[1.0, 0, 0], [0.2, 0.3, 0.5], [0, 0.5, 0.5]]))
    return tmp_path / "design.csv"


def call(*arguments):
    return CliRunner().invoke(app, ["weigh", *map(str, arguments)])


def run(corpus, mixtures, out, *more):
    return call("run", "--documents", corpus, "--mixtures", mixtures, "--out", out, "--jobs", 1, *SMALL, *more)


def test_every_mixture_and_seed_is_a_row_and_fits(corpus, mixtures, tmp_path):
    done = run(corpus, mixtures, tmp_path / "o", "--seeds", 2)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["runs"], found["failed"], found["domains"]) == (6, [], ["a", "b", "c"])
    table = RunTable.read(found["mixtures"], found["losses"]["valid"])
    assert len(table) == 6
    assert table.metrics == ("loss/a", "loss/b", "loss/c", "loss/mean")
    assert table.weights[0].tolist() == table.weights[1].tolist() == [1, 0, 0]
    assert table.loss("loss/mean") == pytest.approx(table.losses[:, :3].mean(1))
    assert len({tuple(row) for row in table.losses.tolist()}) == 6
    with Store(tmp_path / "o" / "store.db") as store:
        assert len(store) == 6


def test_a_stopped_command_repeats_nothing(corpus, mixtures, tmp_path, monkeypatch):
    from omnimix.compare import proxies

    real, calls = proxies.train, []

    def stopping(*arguments, **more):
        calls.append(more["seed"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **more)

    monkeypatch.setattr(proxies, "train", stopping)
    stopped = run(corpus, mixtures, tmp_path / "o")
    assert stopped.exit_code == 130
    assert "1 of 3 runs are kept; the same command continues from there" in stopped.output
    assert run(corpus, mixtures, tmp_path / "o").exit_code == 0
    assert len(calls) == 4  # one, the one that was stopped, and the two that were missing
    assert run(corpus, mixtures, tmp_path / "o").exit_code == 0
    assert len(calls) == 4
    whole = run(corpus, mixtures, tmp_path / "other")
    assert whole.exit_code == 0
    one, two = ((tmp_path / name / "losses-valid.csv").read_text() for name in ("o", "other"))
    assert one == two


def test_what_fails_is_said_and_the_others_are_kept(corpus, mixtures, tmp_path, monkeypatch):
    from omnimix.compare import proxies

    real = proxies.train

    def failing(packed, rule, *arguments, **more):
        if rule.given.weights["a"] == 1:
            raise FloatingPointError("the loss became nan")
        return real(packed, rule, *arguments, **more)

    monkeypatch.setattr(proxies, "train", failing)
    done = run(corpus, mixtures, tmp_path / "o")
    assert done.exit_code == 1
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["runs"] == 2
    assert found["failed"] == [{"index": 1, "error": "FloatingPointError: the loss became nan"}]
    with open(found["mixtures"]) as file:
        assert [row["index"] for row in csv.DictReader(file)] == ["2", "3"]


def online(corpus, out, method, *more):
    return call("online", "--documents", corpus, "--method", method, "--out", out, *SMALL, *more)


@pytest.mark.parametrize("method", ["doremi:rounds=2", "doge:mu=0.05", "r-and-b:every=1", "odm", "group-dro:every=1"])
def test_online_writes_the_mixture_that_it_found(method, corpus, tmp_path):
    done = online(corpus, tmp_path / "o", method)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert sum(found["weights"].values()) == pytest.approx(1)
    assert Mixture.load(found["mixture"]).weights == found["weights"]
    assert set(found["losses"]) == {"valid", "test"}
    assert [point["step"] for point in found["path"]] == [0, 1, 2]
    assert found["tokens"] > 0 < found["flops"]


def test_a_target_leads_the_methods_that_have_one(corpus, tmp_path):
    led = json.loads(online(corpus, tmp_path / "o", "r-and-b:every=1", "--target", "b=1").stdout)
    assert max(led["weights"], key=led["weights"].get) == "b"
    refused = online(corpus, tmp_path / "o", "odm", "--target", "b=1")
    assert refused.exit_code == 2
    assert "odm takes no target domains; doge and r-and-b do" in refused.output


def test_bad_input_is_one_message(corpus, mixtures, tmp_path):
    write_mixtures(tmp_path / "z.csv", ["a", "z"], np.array([[0.5, 0.5]]))
    for done, message in (
        (online(corpus, tmp_path / "o", "regmix"), "--method must be one of doremi, doge"),
        (online(corpus, tmp_path / "o", "doge:nu=1"), "doge has no setting 'nu'; it takes targets, held_out, mu"),
        (online(corpus, tmp_path / "o", "doge", "--target", "b"), "--target must be names and numbers"),
        (online(tmp_path / "none.jsonl", tmp_path / "o", "odm"), "there is no file or folder"),
        (run(corpus, tmp_path / "z.csv", tmp_path / "o"), "the mixtures name ['z']; the documents have a, b, c"),
        (run(corpus, tmp_path / "no.csv", tmp_path / "o"), "there is no such file"),
        (run(corpus, mixtures, tmp_path / "o", "--heads", "5"), "width must be a multiple of"),
        (run(corpus, mixtures, tmp_path / "o", "--engine", "dask"), "engine must be one of"),
    ):
        assert done.exit_code in (1, 2), done.output
        assert message in " ".join(done.output.split())
