import math

import numpy as np
import pytest
import torch

import omnimix as om
from omnimix.train import metrics
from omnimix.train.calibration import nll
from omnimix.train.metrics import scores


def test_regression_by_hand():
    prediction, y = torch.tensor([[1.0], [2.0], [5.0]]), torch.tensor([[2.0], [2.0], [3.0]])
    found = scores(om.Regression(1), prediction, y)
    assert found == pytest.approx(
        {"rmse": math.sqrt(5 / 3), "mae": 1.0, "mape": 100 * (0.5 + 2 / 3) / 3, "r2": 1 - 5 / (2 / 3)}
    )


def test_mape_skips_targets_of_zero():
    assert metrics.mape(torch.tensor([3.0, 1.0]), torch.tensor([0.0, -2.0])) == 150
    assert math.isnan(metrics.mape(torch.ones(2), torch.zeros(2)))


def test_r2_is_a_mean_over_outputs_and_undefined_for_constant_targets():
    y = torch.tensor([[0.0, 0.0], [2.0, 4.0]])
    assert metrics.r2(torch.tensor([[0.0, 2.0], [2.0, 2.0]]), y) == 0.5
    assert math.isnan(metrics.r2(y[:1], y[:1]))
    assert math.isnan(metrics.r2(y, torch.tensor([[1.0, 0.0], [1.0, 4.0]])))


def test_errors_are_summed_in_float64():
    y = torch.full((1000, 1), 3e7)
    assert metrics.mae(y + 4, y) == 4
    assert metrics.rmse(torch.tensor([[1e-30]]), torch.zeros(1, 1)) == pytest.approx(1e-30)


def test_classification_by_hand():
    p = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2]], dtype=torch.float64)
    y = torch.tensor([0, 1, 1])
    found = scores(om.Classification(2), p, y)
    assert set(found) == {"accuracy", "nll", "ece", "adaptive_ece", "brier"}
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["nll"] == pytest.approx(-(math.log(0.9) + math.log(0.6) + math.log(0.2)) / 3) == nll(p, y)
    assert found["brier"] == pytest.approx((0.02 + 0.32 + 1.28) / 3)
    assert found["ece"] == pytest.approx((0.1 + 0.4 + 0.8) / 3)


def test_multi_label_by_hand():
    p = torch.tensor([[0.9, 0.4, 0.1], [0.2, 0.6, 0.3], [0.7, 0.5, 0.2]], dtype=torch.float64)
    y = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    found = scores(om.MultiLabel(3), p, y)
    assert found["accuracy"] == pytest.approx(6 / 9)
    logs = torch.where(y > 0, p, 1 - p).log()
    assert found["nll"] == pytest.approx(-logs.mean().item())
    assert found["map"] == pytest.approx((1 + (1 / 2 + 2 / 3) / 2) / 2)  # the third label has no positive
    assert math.isnan(metrics.mean_average_precision(p, torch.zeros(3, 3)))


@pytest.mark.parametrize(("task", "worst"), [(om.Regression(1), 3.0), (om.Classification(2), 0.5)])
def test_the_worst_domain_and_each_domain(task, worst):
    domain = torch.tensor([4, 4, 7, 7, 9])
    if task.name == "regression":
        prediction, y = torch.tensor([[1.0], [1.0], [3.0], [-3.0], [2.0]]), torch.zeros(5, 1)
        names = {"rmse@4": 1.0, "rmse@7": 3.0, "rmse@9": 2.0}
    else:
        prediction, y = torch.eye(2)[[0, 1, 1, 1, 1]].double(), torch.tensor([0, 1, 0, 1, 1])
        names = {"accuracy@4": 1.0, "accuracy@7": 0.5, "accuracy@9": 1.0}
    found = scores(task, prediction, y, domain)
    assert found["worst_domain"] == worst
    assert {k: v for k, v in found.items() if "@" in k} == names
    mean = sum(names.values()) / 3  # each domain counts the same, whatever its size
    assert scores(task, prediction, y, domain, ["mean_domain"]) == {"mean_domain": pytest.approx(mean), **names}
    assert scores(task, prediction, y, domain, ["worst_domain"]) == {
        k: found[k] for k in found if "domain" in k or "@" in k
    }


def test_chosen_metrics_and_directions():
    y = torch.rand(6, 1)
    assert list(scores(om.Regression(1), y, y, names=["r2", "mae"])) == ["r2", "mae"]
    known = "one of 'rmse', 'mae', 'mape', 'r2', 'worst_domain', 'mean_domain', got 'accuracy'"
    with pytest.raises(ValueError, match=known):
        scores(om.Regression(1), y, y, names=["accuracy"])
    with pytest.raises(ValueError, match="domain column"):
        scores(om.Regression(1), y, y, names=["worst_domain"])
    better = metrics.higher_is_better
    assert [better(om.Classification(2), m) for m in ("accuracy", "mean_domain", "loss", "ece")] == [1, 1, 0, 0]
    assert [better(om.Regression(1), m) for m in ("r2", "rmse", "mean_domain")] == [1, 0, 0]


def test_agreement_with_scikit_learn():
    from sklearn import metrics as peer

    draw = np.random.default_rng(0)
    y, p = draw.normal(size=(50, 2)) + 3, draw.normal(size=(50, 2)) + 3
    found = scores(om.Regression(2), torch.tensor(p), torch.tensor(y))
    expected = {
        "rmse": math.sqrt(peer.mean_squared_error(y, p)),
        "mae": peer.mean_absolute_error(y, p),
        "mape": 100 * peer.mean_absolute_percentage_error(y, p),
        "r2": peer.r2_score(y, p),
    }
    assert found == pytest.approx(expected)
    p, y = draw.dirichlet(np.ones(4), size=60), draw.integers(4, size=60)
    found = scores(om.Classification(4), torch.tensor(p), torch.tensor(y))
    assert found["nll"] == pytest.approx(peer.log_loss(y, p))
    assert found["accuracy"] == pytest.approx(peer.accuracy_score(y, p.argmax(1)))
