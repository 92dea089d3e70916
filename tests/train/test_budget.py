from dataclasses import replace

import pytest
import torch

import omnimix as om
from omnimix.train import Budget, fit
from omnimix.train.parts import Data, Part


def test_a_run_that_stops_early_is_the_start_of_the_planned_one():
    x = torch.rand(24, 3, generator=torch.Generator().manual_seed(0))
    data = Data(Part(x, x.sum(1, keepdim=True)), Part(x, x.sum(1, keepdim=True)), None, om.Regression(1))
    budget = Budget(epochs=6, batch_size=8, lr=0.01, schedule="cosine", select="last")

    def history(budget):
        model = torch.nn.Linear(3, 1)
        torch.nn.init.zeros_(model.weight)
        torch.nn.init.zeros_(model.bias)
        method = om.EarlyStopped(stop=0.5)  # mixes until the middle of the plan
        return fit(method, model, data, budget, seed=0).history

    whole, half = history(budget), history(replace(budget, epochs=4, planned=6))
    assert half == whole[:4]
    assert history(replace(budget, epochs=4)) != whole[:4]


def test_no_more_epochs_than_are_planned():
    with pytest.raises(ValueError, match="planned must be an integer >= 5, got 4"):
        Budget(epochs=5, batch_size=8, lr=0.1, planned=4)
