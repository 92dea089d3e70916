import csv
import json
from dataclasses import replace

import pytest
import torch

import omnimix.compare.jobs as jobs_module
import omnimix.compare.report.plots  # noqa: F401
from omnimix.compare import compare, settings
from omnimix.compare.result import Result
from omnimix.compare.run import make_plan
from omnimix.compare.store import Run, Store
from omnimix.core.task import Classification, Regression
from omnimix.data import Source
from omnimix.train import together


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """They take longer than these runs, and have tests of their own."""
    monkeypatch.setattr("omnimix.compare.report._plots", lambda result: [])
    monkeypatch.setattr("omnimix.compare.report._predictions", lambda result: [])
    monkeypatch.setattr("omnimix.compare.report._mixing", lambda result, number, shown: {
        "method": shown.method, "seed": shown.seed, "without": [], "said": "", "pictures": []
    })  # fmt: skip
    monkeypatch.setattr("omnimix.compare.report.plots.picture", lambda result, path: None)


def toy(rows=60, domain=False):
    x = torch.rand(rows, 3, generator=torch.Generator().manual_seed(0))
    extra = {"domain": torch.arange(rows) % 2, "domain_names": ("north", "south")} if domain else {}
    return Source("toy", x, 5 * x.sum(1), Regression(1), "table", notes=("two cells were imputed",), **extra)


def asked(**more):
    given = {"data": "toy", "methods": ("erm", "mixup:alpha=2"), "seeds": (0, 1), "epochs": 2, "net": "mlp:hidden=4"}
    return settings(**{**given, **more})


def alone(*given, **more):
    """A comparison whose runs train one by one."""
    return compare(*given, together=False, **more)


@pytest.fixture
def counted(monkeypatch):
    """The runs that were really made."""
    made, really = [], jobs_module._run

    def counting(job, plan, progress):
        made.append((str(job.method), job.seed))
        return really(job, plan, progress)

    monkeypatch.setattr(jobs_module, "_run", counting)
    return made


def test_a_comparison_from_data_to_report(tmp_path):
    result = compare(asked(), tmp_path, source=toy(), workers=1)
    assert isinstance(result, Result)
    assert result.complete
    assert [(r.method, r.seed) for r in result.runs] == [
        ("erm", 0), ("erm", 1), ("mixup:alpha=2", 0), ("mixup:alpha=2", 1),
    ]  # fmt: skip
    page = (tmp_path / "report.html").read_text()
    assert "two cells were imputed" in page
    assert not list(tmp_path.glob("*.part"))
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(result.to_json()))
    with open(tmp_path / "results.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert float(rows[0]["rmse"]) == result.runs[0].metrics["rmse"]


def test_errors_are_in_raw_units_whatever_training_saw(tmp_path):
    plain = toy()
    far = Source("toy", plain.x, 1000 * plain.y + 5000, Regression(1), "table")
    small = compare(asked(methods=("erm",)), tmp_path / "a", source=plain, workers=1).runs[0].metrics
    large = compare(asked(methods=("erm",)), tmp_path / "b", source=far, workers=1).runs[0].metrics
    assert large["rmse"] == pytest.approx(1000 * small["rmse"], rel=1e-3)
    assert large["r2"] == pytest.approx(small["r2"], abs=1e-3)


def test_nothing_is_repeated_and_what_is_new_is_added(tmp_path, counted):
    first = alone(asked(), tmp_path, source=toy(), workers=1)
    assert len(counted) == 4
    again = alone(asked(), tmp_path, source=toy(), workers=1)
    assert len(counted) == 4
    assert again.to_json() == first.to_json()
    alone(asked(seeds=(0, 1, 2), methods=("erm", "mixup:alpha=2", "mixup")), tmp_path, source=toy(), workers=1)
    assert sorted(counted[4:]) == [("erm", 2), ("mixup", 0), ("mixup", 1), ("mixup", 2), ("mixup:alpha=2", 2)]
    alone(asked(methods=("erm",), epochs=3), tmp_path, source=toy(), workers=1)
    assert counted[9:] == [("erm", 0), ("erm", 1)]


def test_an_interrupted_comparison_continues_where_it_was(tmp_path, counted, monkeypatch):
    def interrupt(self, entry, add=Store.add):
        if len(self) == 2:
            raise KeyboardInterrupt
        return add(self, entry)

    undisturbed = alone(asked(), tmp_path / "a", source=toy(), workers=1)
    counted.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Store, "add", interrupt)
        with pytest.raises(KeyboardInterrupt):
            alone(asked(), tmp_path / "b", source=toy(), workers=1)
    done = alone(asked(), tmp_path / "b", source=toy(), workers=1)
    assert len(counted) == 5  # the third run ended but was not written
    assert [r.metrics for r in done.runs] == [r.metrics for r in undisturbed.runs]
    assert [r.key for r in done.runs] == [r.key for r in undisturbed.runs]


def test_checkpoints_are_kept_until_the_row_is_and_serve_any_grouping(tmp_path, monkeypatch):
    undisturbed = compare(asked(seeds=(0, 1, 2)), tmp_path / "a", source=toy(), workers=1)
    monkeypatch.setitem(together.fit_together.__kwdefaults__, "checkpoint_every", 0.0)

    def interrupt(self, entry, add=Store.add):
        if len(self) == 1:
            raise KeyboardInterrupt
        return add(self, entry)

    folder = tmp_path / "b" / "checkpoints"
    with monkeypatch.context() as patch:
        patch.setattr(Store, "add", interrupt)
        with pytest.raises(KeyboardInterrupt):
            compare(asked(seeds=(0, 1, 2)), tmp_path / "b", source=toy(), workers=1)
    files = sorted(folder.iterdir())
    assert len(files) == 3  # of the unit whose first row is stored
    (folder / f"{files[0].name}.123.tmp").write_bytes(b"half a file")

    epochs, really = [], together._Together._epoch
    monkeypatch.setattr(together._Together, "_epoch", lambda self, epoch: (epochs.append(epoch), really(self, epoch)))
    done = compare(asked(seeds=(0, 1, 2)), tmp_path / "b", source=toy(), workers=1)
    assert epochs == [0, 1]  # of the other method
    assert [r.metrics for r in done.runs] == [r.metrics for r in undisturbed.runs]
    assert [r.history for r in done.runs] == [r.history for r in undisturbed.runs]
    assert not list(folder.iterdir())


def test_progress_goes_on_where_runs_cannot_train_together(monkeypatch):
    plan, jobs = make_plan(asked(methods=("erm",)), toy())[1:]
    plan, told = replace(plan, together=True), []

    def refuse(*given, **more):
        raise ValueError("not alike")

    with monkeypatch.context() as patch:
        really, calls = together.fit_together, []

        def first_refused(*given, **more):
            calls.append(len(given[0]))
            return refuse() if len(calls) == 1 else really(*given, **more)

        patch.setattr(together, "fit_together", first_refused)
        found = jobs_module.execute(tuple(jobs), plan, told.append)
    assert calls == [2, 1, 1]
    assert all(isinstance(run, Run) for run in found)
    assert told == [0.25, 0.5, 0.75, 1.0]


def test_failed_runs_are_told_and_tried_again(tmp_path, counted, monkeypatch):
    really = jobs_module._given

    def failing(job, plan):
        if (job.method.name, job.seed) == ("mixup", 1):
            raise RuntimeError("out of luck")
        return really(job, plan)

    with monkeypatch.context() as patch:
        patch.setattr(jobs_module, "_given", failing)
        broken = alone(asked(), tmp_path, source=toy(), workers=1)
    assert not broken.complete
    (row,) = [row for row in broken.to_json()["rows"] if row["status"] == "failed"]
    assert (row["method"], row["seed"], row["metrics"]) == ("mixup:alpha=2", 1, {})
    assert row["error"] == "RuntimeError: out of luck"
    assert "out of luck" in broken.report.read_text()
    assert "1 of the runs failed" in broken.warnings[0]
    counted.clear()
    mended = alone(asked(), tmp_path, source=toy(), workers=1)
    assert counted == [("mixup:alpha=2", 1)]
    assert mended.complete


def test_when_every_run_fails_there_is_still_a_report(tmp_path, monkeypatch):
    def failing(job, plan):
        raise RuntimeError("nothing works <b>here</b>")

    monkeypatch.setattr(jobs_module, "_given", failing)
    result = alone(asked(), tmp_path, source=toy(), workers=1)
    assert [s["n"] for s in result.to_json()["summary"]] == [0, 0]
    assert "nothing works &lt;b&gt;here&lt;/b&gt;" in result.report.read_text()


def test_domains_have_rows_and_the_worst_is_a_metric(tmp_path):
    result = compare(asked(), tmp_path, source=toy(domain=True), workers=1)
    rows = result.to_json()["rows"]
    assert [row["domain"] for row in rows[:3]] == [None, "north", "south"]
    assert rows[0]["metrics"]["worst_domain"] == max(row["metrics"]["rmse"] for row in rows[1:3])
    assert "By domain" in result.report.read_text()
    assert "every domain is in training" in result.report.read_text()


def test_classification_and_label_noise(tmp_path):
    x = torch.rand(90, 2, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0.5).long()
    source = Source("toy", x, y, Classification(2), "table", class_names=("no", "yes"))
    result = compare(asked(label_noise=0.4), tmp_path, source=source, workers=1)
    assert result.primary == "accuracy"
    assert {"nll", "ece", "adaptive_ece", "brier"} < set(result.metrics)
    assert "40% of the training and of the validation labels" in result.report.read_text()


def test_the_json_has_the_promised_shape(tmp_path):
    told = compare(asked(), tmp_path, source=toy(), workers=1).to_json()
    assert (told["data"], told["protocol"], told["baseline"]) == ("toy", "default", "erm")
    row = told["rows"][0]
    assert (row["method"], row["seed"], row["domain"], row["status"]) == ("erm", 0, None, "ok")
    assert set(row["metrics"]) == {"rmse", "mae", "mape", "r2"}
    assert row["seconds"] > 0
    erm, mixup = told["summary"]
    assert (erm["method"], erm["n"], erm["diff"], erm["p"]) == ("erm", 2, {}, None)
    values = [r["metrics"]["rmse"] for r in told["rows"]]
    assert mixup["mean"]["rmse"] == pytest.approx((values[2] + values[3]) / 2)
    assert mixup["diff"]["rmse"]["mean"] == pytest.approx((values[2] + values[3] - values[0] - values[1]) / 2)
    assert mixup["ci95"]["rmse"] is None
    assert 0 <= mixup["p"] <= 1
    assert told["store"] == str(tmp_path / "store.db")
    assert told["report"] == str(tmp_path / "report.html")
    json.dumps(told, allow_nan=False)


def test_a_parameter_may_be_infinite(tmp_path):
    result = compare(asked(methods=("erm", "mixup:alpha=inf")), tmp_path, source=toy(), workers=1)
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["configuration"]["parameters"]["mixup:alpha=inf"] == {"alpha": "inf"}
    assert result.complete
