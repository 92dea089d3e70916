import csv
import sys
from contextlib import contextmanager

import pytest
import torch

import omnimix as om
from omnimix.compare.store import Failure, Run
from omnimix.integrations.loggers import by_address, log_run, log_runs, log_to, run_name

loggers = pytest.importorskip("lightning.pytorch.loggers", reason="needs lightning")
pytestmark = pytest.mark.filterwarnings("ignore")

RUN = Run(
    key="1f09ab77",
    method="c-mixup:alpha=0.5",
    seed=3,
    data="digest",
    code="code",
    config={"parameters": {"alpha": 0.5, "bandwidth": None}},
    metrics={"rmse": 2.0, "r2": None},
    domains={"north": {"rmse": 1.5}},
    history=[{"epoch": 1, "train_loss": 3.0, "valid_rmse": 2.5}, {"epoch": 2, "train_loss": 2.0, "valid_rmse": 2.25}],
    best_epoch=2,
    seconds=1.0,
    step_seconds=0.1,
    peak_memory=None,
    device="cpu",
    versions={},
)
FAILED = Failure("aa", "mixup", 0, {"parameters": {}}, "TrainingError: the loss became nan", "Traceback", {})


class Keeps:
    """The least that a logger does."""

    def __init__(self):
        self.rows, self.parameters, self.status = [], {}, None

    def log_metrics(self, metrics, step):
        self.rows.append((step, metrics))

    def log_hyperparams(self, params):
        self.parameters.update(params)

    def finalize(self, status):
        self.status = status


def test_a_finished_run_is_logged_with_settings_history_and_test_metrics():
    keeps = Keeps()
    log_run(keeps, RUN)
    assert keeps.rows == [
        (1, {"train_loss": 3.0, "valid_rmse": 2.5}),
        (2, {"train_loss": 2.0, "valid_rmse": 2.25}),
        (2, {"test_rmse": 2.0, "test_rmse.north": 1.5, "seconds": 1.0}),
    ]
    assert keeps.parameters["method"] == "c-mixup:alpha=0.5"
    assert keeps.parameters["parameter_alpha"] == 0.5
    assert keeps.status == "success"
    assert run_name(RUN) == "c-mixup-alpha=0.5-seed3-1f09ab"


def test_a_failed_run_is_logged_as_failed():
    keeps = Keeps()
    log_run(keeps, FAILED)
    assert (keeps.status, keeps.rows) == ("failed", [])
    assert keeps.parameters["error"] == "TrainingError: the loss became nan"


def test_training_reports_every_epoch(tmp_path):
    from omnimix.train import Budget, fit
    from omnimix.train.parts import Data, Part

    x = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
    y = torch.arange(24) % 3
    data = Data(Part(x[:16], y[:16]), Part(x[16:], y[16:]), None, om.Classification(3))
    logger = loggers.CSVLogger(tmp_path, name="run", version="")
    budget = Budget(epochs=3, batch_size=8, lr=0.1)
    done = fit(om.create("mixup"), torch.nn.Linear(4, 3), data, budget, seed=0, progress=log_to(logger))
    with open(tmp_path / "run" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [1, 2, 3]
    assert [float(row["train_loss"]) for row in rows] == pytest.approx([row["train_loss"] for row in done.history])


def test_a_comparison_logs_each_run_that_it_makes_once(tmp_path, monkeypatch):
    from omnimix.compare import compare, settings
    from omnimix.data import Source

    monkeypatch.setattr("omnimix.compare.report.write", lambda *_, **__: None)
    x = torch.rand(60, 3, generator=torch.Generator().manual_seed(0))
    source = Source("toy", x, 5 * x.sum(1), om.Regression(1), "table")
    asked = settings(data="toy", methods=("erm", "mixup:alpha=2"), seeds=(0, 1), epochs=2, net="mlp:hidden=4")
    made, told = {}, []

    def make(name):
        return made.setdefault(name, Keeps())

    @contextmanager
    def also(plan, units, found, fractions):
        yield told.append

    result = compare(asked, tmp_path, source=source, workers=1, watch=log_runs(make, also))
    assert len(made) == len(told) == len(result.runs) == 4
    for run in result.runs:
        keeps = made[run_name(run)]
        assert keeps.parameters["key"] == run.key
        assert keeps.rows[-1][1]["test_rmse"] == run.metrics["rmse"]
        assert [step for step, _ in keeps.rows] == [1, 2, 2]
    compare(asked, tmp_path, source=source, workers=1, watch=log_runs(make))
    assert all(len(keeps.rows) == 3 for keeps in made.values())


def test_tensorboard_gets_a_folder_a_run(tmp_path):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard")
    log_run(by_address(f"tensorboard:{tmp_path}")(run_name(RUN)), RUN)
    found = reading.EventAccumulator(str(tmp_path / run_name(RUN))).Reload()
    assert [(event.step, event.value) for event in found.Scalars("valid_rmse")] == [(1, 2.5), (2, 2.25)]
    assert [event.value for event in found.Scalars("test_rmse")] == [2.0]
    assert "parameter_alpha: 0.5" in (tmp_path / run_name(RUN) / "hparams.yaml").read_text()


def test_mlflow_gets_a_run_each(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    address = f"file:{tmp_path}/runs"
    make = by_address(f"mlflow:{address}")
    for outcome in (RUN, FAILED):
        log_run(make(run_name(outcome)), outcome)
    client = mlflow.MlflowClient(address)
    experiment = client.get_experiment_by_name("omnimix")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    good, bad = runs[run_name(RUN)], runs[run_name(FAILED)]
    assert (good.info.status, bad.info.status) == ("FINISHED", "FAILED")
    assert good.data.params["parameter_alpha"] == "0.5"
    assert good.data.metrics["test_rmse"] == 2.0
    assert [m.value for m in client.get_metric_history(good.info.run_id, "valid_rmse")] == [2.5, 2.25]
    assert bad.data.params["error"].startswith("TrainingError")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: by_address("wandb:project"), "tensorboard:FOLDER, mlflow:URI or csv:FOLDER, got 'wandb:project'"),
        (lambda: by_address("tensorboard"), "got 'tensorboard'"),
        (lambda: log_to(print), "has no log_metrics, log_hyperparams, finalize"),
        (lambda: log_to(None), "Lightning's interface"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_is_missing_is_said_at_once(monkeypatch):
    monkeypatch.setattr("omnimix.integrations.loggers.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install tensorboard"):
        by_address("tensorboard:logs")
    with pytest.raises(ValueError, match="pip install mlflow"):
        by_address("mlflow:logs")
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    with pytest.raises(ValueError, match="pip install lightning"):
        by_address("csv:logs")


def test_an_mlflow_that_cannot_be_used_is_refused_before_anything_runs(tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="needs mlflow")
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    with pytest.raises(ValueError, match="MLflow cannot log to ftp://nowhere"):
        by_address("mlflow:ftp://nowhere")
