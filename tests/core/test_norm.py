"""Batch-norm statistics for weights that no training step has seen."""

import pytest
import torch
from torch import nn

import omnimix as om
from omnimix.core.norm import moving_norms, refresh_norms, some_rows


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def test_only_layers_in_training_mode_move():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False))
    model[0].eval()
    assert moving_norms(model) == ["1"]


def test_rows_are_all_or_a_fair_sample():
    x = torch.arange(20.0).unsqueeze(1)
    batches = [om.Batch(part, torch.zeros(len(part))) for part in torch.split(x, 6)]
    everything = some_rows(batches, 50, draw())
    assert sorted(everything.flatten().tolist()) == list(range(20))
    assert everything.flatten().tolist() != list(range(20))
    seen = torch.zeros(20)
    for seed in range(400):
        found = some_rows(batches, 5, draw(seed)).flatten().long()
        assert len(found.unique()) == 5
        seen[found] += 1
    assert (seen / 400 - 0.25).abs().max() < 0.09
    tree = [om.Batch({"a": part, "b": -part}, torch.zeros(len(part))) for part in torch.split(x, 6)]
    pairs = some_rows(tree, 7, draw())
    assert torch.equal(pairs["a"], -pairs["b"])
    with pytest.raises(ValueError, match="no training batches"):
        some_rows([], 5, draw())


def test_statistics_are_means_over_batches_and_all_else_stays():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, momentum=0.3), nn.Dropout(0.5), nn.BatchNorm1d(2))
    model[3].running_mean.fill_(7.0)
    x = torch.randn(9, 3, generator=draw())  # 4, then 4 and the one left over
    before = torch.get_rng_state()
    refresh_norms(model, ["1"], x, size=4)
    h = model[0](x)
    assert torch.allclose(model[1].running_mean, torch.stack((h[:4].mean(0), h[4:].mean(0))).mean(0))
    assert torch.allclose(model[1].running_var, torch.stack((h[:4].var(0), h[4:].var(0))).mean(0))
    assert (model[1].momentum, model[1].training) == (0.3, True)
    assert (model[3].running_mean == 7).all()
    assert torch.equal(before, torch.get_rng_state())
