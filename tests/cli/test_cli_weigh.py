"""`omnimix weigh`: what its verbs print and write, and RegMix's table from the runs that its authors published."""

import csv
import json

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("pandas", reason="the command line needs omnimix[compare]")

from omnimix.cli import weigh  # noqa: F401
from omnimix.cli.console import app
from omnimix.corpora import Mixture

COSTS = np.array([3.0, 1.0, 2.0])
SCALES = ("1m", "60m", "1B")


def run(*words, code=0):
    result = CliRunner().invoke(app, ["weigh", *map(str, words)])
    assert result.exit_code == code, result.output
    return result


def printed(*words):
    return json.loads(run(*words, "--json").stdout)


@pytest.fixture
def runs(tmp_path):
    """Files of 40 runs over three domains, two losses: one that web lowers, one that code lowers."""
    rng = np.random.default_rng(0)
    x = rng.dirichlet(np.ones(3), 40)
    y = np.stack([x @ COSTS + 2, x @ COSTS[::-1] + 2], axis=1)
    for name, columns, values in (("m", ["code", "web", "wiki"], x), ("l", ["loss/code", "loss/wiki"], y)):
        with open(tmp_path / f"{name}.csv", "w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["index", *columns])
            table.writerows([i, *row] for i, row in enumerate(values))
    (tmp_path / "sizes.csv").write_text("domain,tokens\ncode,100\nweb,1000\nwiki,10\n")
    return ["--mixtures", tmp_path / "m.csv", "--losses", tmp_path / "l.csv"]


@pytest.fixture
def tested(runs, tmp_path):
    return [*runs, "--test-mixtures", tmp_path / "m.csv", "--test-losses", tmp_path / "l.csv"]


def test_fit_prints_the_object(tested):
    found = printed("fit", *tested, "--target", "loss/code", "--regressor", "ols", "--candidates", 2000)
    assert set(found) == {"regressor", "target", "tests", "proposal", "baselines"}
    assert (found["regressor"], found["target"]) == ("ols", "loss/code")
    (test,) = found["tests"]
    assert set(test) == {"n", "spearman", "pearson", "mae", "mse"}
    assert test["n"] == 40
    assert test["spearman"] == pytest.approx(1)
    assert test["mae"] == pytest.approx(0, abs=1e-9)
    assert sum(found["proposal"].values()) == pytest.approx(1)
    assert max(found["proposal"], key=found["proposal"].get) == "web"
    base = found["baselines"]
    assert base["one-domain-weight"]["domain"] == "web"
    assert base["proportional"]["shares_from"] == "the mean of the fitted runs"
    assert base["uniform"]["predicted"] == pytest.approx(4)


def test_fit_of_all_targets_is_an_array(runs):
    found = printed("fit", *runs, "--target", "all", "--regressor", "mixing-law")
    assert [one["target"] for one in found] == ["loss/code", "loss/wiki"]
    average = printed("fit", *runs, "--target", "average", "--regressor", "ridge:alpha=0.1", "--proposer", "convex")
    assert average["regressor"] == "ridge:alpha=0.1"


def test_fit_for_people(tested):
    text = run("fit", *tested, "--target", "loss/code", "--regressor", "ols", "--candidates", 2000).stdout
    assert "by web alone" in text
    assert "measured place 1 of 40" in text


def test_proposals_keep_to_the_weights_of_the_runs(runs, tmp_path):
    most = np.loadtxt(tmp_path / "m.csv", delimiter=",", skiprows=1)[:, 1:].max(0)
    inside = printed("propose", *runs, "--target", "loss/code", "--regressor", "ols", "--proposer", "convex")
    assert inside["weights"]["web"] == pytest.approx(most[1])
    free = printed(
        "propose", *runs, "--target", "loss/code", "--regressor", "ols", "--proposer", "convex", "--extrapolate"
    )
    assert free["weights"]["web"] == pytest.approx(1)


def test_propose_within_epochs(runs, tmp_path):
    out = tmp_path / "mixture.json"
    run(
        "propose", *runs, "--target", "loss/code", "--regressor", "mixing-law", "--sizes", tmp_path / "sizes.csv",
        "--budget", 500, "--max-epochs", 0.4, "--extrapolate", "--out", out, code=2,
    )  # fmt: skip
    found = printed(
        "propose", *runs, "--target", "loss/code", "--regressor", "mixing-law", "--sizes", tmp_path / "sizes.csv",
        "--budget", 1000, "--max-epochs", 2, "--extrapolate", "--out", out,
    )  # fmt: skip
    mixture = Mixture.load(out)
    assert mixture.weights == pytest.approx(found["weights"])
    mixture.epochs(1000, {"code": 100, "web": 1000, "wiki": 10}, max_epochs=2)
    assert mixture.provenance["method"] == "mixing-law"


def test_the_search_of_weborganizer(runs, tmp_path):
    words = ["propose", *runs, "--target", "loss/code", "--regressor", "ols", "--sizes", tmp_path / "sizes.csv"]
    words += ["--candidates", 2000, "--top", 16, "--extrapolate", "--proposer"]
    near = printed(*words, "kl-search:upsampling=2:iterations=4", "--kl", 0.01)
    assert near["provenance"]["proposer"] == "kl-search"
    assert near["weights"]["code"] <= 2 * 100 / 1110 + 1e-12
    assert near["weights"]["wiki"] <= 2 * 10 / 1110 + 1e-12
    still = printed(*words, "kl-search:pull=0")
    assert still["weights"] == pytest.approx({"code": 100 / 1110, "web": 1000 / 1110, "wiki": 10 / 1110})
    assert "kl-search has no parameter 'eta'" in run(*words, "kl-search:eta=1", code=2).stderr
    assert "simulate has no parameter 'pull'" in run(*words, "simulate:pull=1", code=2).stderr


def test_heuristics(tmp_path, runs):
    sizes = ["--sizes", tmp_path / "sizes.csv"]
    assert printed("propose", "--heuristic", "proportional", *sizes)["weights"]["web"] == pytest.approx(1000 / 1110)
    found = printed("propose", "--heuristic", "unimax", *sizes, "--budget", 300, "--max-epochs", 2)
    assert found["weights"] == pytest.approx({"code": 140 / 300, "web": 140 / 300, "wiki": 20 / 300})


def test_design_and_transfer_law(tmp_path, runs):
    sizes = ["--sizes", tmp_path / "sizes.csv"]
    found = printed("design", *sizes, "--runs", 16, "--out", tmp_path / "d.csv")
    assert found["runs"] == 16
    drawn = np.loadtxt(tmp_path / "d.csv", delimiter=",", skiprows=1)
    assert drawn.shape == (16, 4)
    assert drawn[:, 0].tolist() == list(range(1, 17))
    assert "exists already" in run("design", *sizes, "--out", tmp_path / "d.csv", code=2).stderr
    organizer = ["--cap", 20, "--reference", "prior", "--apart", 0.05, "--runs", 8]
    assert printed("design", *sizes, *organizer, "--out", tmp_path / "w.csv")["runs"] == 8
    assert "apart" in run("design", *sizes, *organizer[:-2], "--apart", 2, "--out", tmp_path / "x.csv", code=2).stderr

    from omnimix.corpora.weigh.dmo import TransferLaw

    assert printed("design", *sizes, "--kind", "perturbations", "--out", tmp_path / "p.csv")["runs"] == 13
    amounts = np.loadtxt(tmp_path / "p.csv", delimiter=",", skiprows=1)[:, 1:]
    truth = [TransferLaw.of(i, 0.3, 2.0, 0.4, 0.5, 1.0) for i in range(3)]
    with open(tmp_path / "pl.csv", "w") as file:
        file.write("index,loss/code,loss/web,loss/wiki\n")
        for i, row in enumerate(np.stack([law.predict(amounts) for law in truth], axis=1), start=1):
            file.write(f"{i},{','.join(map(repr, row.tolist()))}\n")
    words = ["--mixtures", tmp_path / "p.csv", "--losses", tmp_path / "pl.csv", "--target", "average", "--regressor"]
    found = printed("propose", *words, "transfer-law", "--budget", 30)
    assert found["weights"] == pytest.approx(dict.fromkeys(["code", "web", "wiki"], 1 / 3), abs=2e-3)
    assert "needs --budget" in run("propose", *words, "transfer-law", code=2).stderr


def test_report(tested, tmp_path):
    out = tmp_path / "page.html"
    found = printed(
        "report", *tested, "--target", "loss/code", "--regressor", "ols", "--regressor", "ridge", "--curve", "10,20",
        "--candidates", 2000, "--parameters", 1e6, "--tokens", 1e9, "--large-parameters", 1e9, "--large-tokens", 1e10,
        "--out", out,
    )  # fmt: skip
    page = out.read_text()
    assert [one["regressor"] for one in found["studies"]] == ["ols", "ridge"]
    assert [point["runs"] for point in found["studies"][0]["learning_curve"]] == [10, 20, 40]
    assert found["cost"]["share"] == pytest.approx(40 * 6e15 / 6e19)
    assert page.count("<svg") == 5
    assert "http" not in page.replace("http://www.w3.org", "")
    for words in ("fitted runs", "no model: weight of web", "All weights", "2.4e+17 FLOPs"):
        assert words in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "loss/cod"], "no target 'loss/cod'; did you mean 'loss/code'"),
        (["--target", "loss/code", "--regressor", "forest"], "regressor must be one of"),
        (["--target", "loss/code", "--regressor", "ridge:beta=1"], "ridge has no parameter 'beta'; it takes alpha"),
        (["--target", "loss/code", "--regressor", "bimix"], "not to 1"),
        (["--target", "loss/code", "--max-epochs", "2"], "--max-epochs needs --sizes"),
        (["--target", "loss/code", "--regressor", "lightgbm", "--proposer", "convex"], "not convex"),
    ],
)
def test_errors(runs, words, message, request):
    if "lightgbm" in words:
        pytest.importorskip("lightgbm")
    if "bimix" in words:  # a row that is no mixture
        with open(runs[1], "a") as file:
            file.write("40,0.5,0.1,0.1\n")
    assert message in " ".join(run("fit", *runs, *words, code=2).stderr.split())


@pytest.fixture(scope="module")
def published(real_data):
    folder = real_data("regmix")
    words = ["--mixtures", folder / "train_mixture_1m.csv", "--losses", folder / "train_pile_loss_1m.csv"]
    for scale in SCALES:
        words += ["--test-mixtures", folder / f"test_mixture_{scale}.csv"]
        words += ["--test-losses", folder / f"test_pile_loss_{scale}.csv"]
    return words


def test_linear_regression_of_regmix(published):
    found = printed("fit", *published, "--target", "Pile-CC", "--regressor", "ols")
    assert [100 * t["spearman"] for t in found["tests"]] == pytest.approx([90.21, 89.33, 87.66], abs=0.02)
    assert found["tests"][0]["mae"] == pytest.approx(0.124, abs=5e-4)
    assert found["tests"][0]["mse"] == pytest.approx(0.0235, abs=5e-5)
    base = found["baselines"]["one-domain-weight"]
    assert base["domain"] == "train_the_pile_pile_cc"
    assert [100 * t["spearman"] for t in base["tests"]] == pytest.approx([81.7, 81.4, 98.1], abs=0.05)


def test_trees_of_regmix(published):
    pytest.importorskip("lightgbm")
    result = run("fit", *published, "--target", "Pile-CC", "--candidates", 5000)
    assert "0.9941 over the 256 mixtures" in result.stdout
    assert "run 34, measured place 1 of 64" in result.stdout
    found = printed("fit", *published, "--target", "Pile-CC", "--candidates", 5000)
    assert [100 * t["spearman"] for t in found["tests"]] == pytest.approx([99.0, 98.6, 96.2], abs=0.5)
    assert found["tests"][0]["mae"] == pytest.approx(0.0398, abs=2e-3)
    assert found["tests"][0]["mse"] == pytest.approx(0.0027, abs=3e-4)
    assert max(found["proposal"], key=found["proposal"].get) == "train_the_pile_pile_cc"
