import json

import pytest
import torch

from omnimix.core.task import Classification, MultiLabel, Regression
from omnimix.train.calibration import ece
from omnimix.train.sketch import bands, reliability, sketch


def test_reliability_counts_by_hand():
    found = reliability(torch.tensor([0.05, 0.1, 0.1000001, 0.95, 1.0]), torch.tensor([0, 1, 1, 1, 0]), bins=10)
    assert found["count"] == [2, 1, 0, 0, 0, 0, 0, 0, 0, 2]
    assert found["hits"] == [1, 1, 0, 0, 0, 0, 0, 0, 0, 1]
    assert found["confidence"][9] == pytest.approx(1.95)


def test_the_expected_calibration_error_follows_from_it():
    draw = torch.Generator().manual_seed(0)
    p = torch.randn(500, 4, generator=draw).mul(2).softmax(dim=1).double()
    y = torch.randint(4, (500,), generator=draw)
    kept = sketch(Classification(4), p, y)["reliability"]
    gaps = [abs(h - c) for h, c in zip(kept["hits"], kept["confidence"], strict=True)]
    assert sum(kept["count"]) == 500
    assert sum(gaps) / 500 == pytest.approx(ece(p, y), abs=1e-6)


def test_bands_are_groups_by_the_true_value():
    y = torch.arange(30.0).flip(0)
    found = bands(2 * y, y, bins=3)
    assert found["true"] == [4.5, 14.5, 24.5]
    assert found["mean"] == [9.0, 29.0, 49.0]
    assert found["low"][0] == pytest.approx(1.8)
    assert found["high"][0] == pytest.approx(16.2)
    assert bands(y[:2], y[:2])["true"] == [28.0, 29.0]


def test_it_is_small_json_for_every_task():
    p, y = torch.rand(20, 3, dtype=torch.float64), torch.randint(2, (20, 3)).float()
    for task, prediction, target in (
        (MultiLabel(3), p, y),
        (Classification(3), p.softmax(1), torch.randint(3, (20,))),
        (Regression(3), p, y.double()),
        (Regression(6), p.repeat(1, 2), y.double().repeat(1, 2)),
    ):
        assert len(json.dumps(sketch(task, prediction, target), allow_nan=False)) < 4000
    assert sketch(Classification(2), torch.rand(2, 2, 4, 4), torch.zeros(2, 4, 4).long()) == {}
