"""The loss of a batch at several weights."""

import torch
from torch import nn

from omnimix.core.replay import Replay


def _world():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
    return model, torch.randn(16, 4)


def test_passes_repeat_their_random_numbers():
    model, x = _world()
    own = torch.Generator().manual_seed(1)
    replay = Replay(model, lambda: (model(x) * torch.rand(16, 1, generator=own)).sum(), own)
    first, second, third = replay(), replay(), replay()
    assert first == second == third
    assert (model(x) * torch.rand(16, 1, generator=own)).sum() != first


def test_generators_stand_where_the_first_pass_left_them():
    model, x = _world()
    own = torch.Generator().manual_seed(1)
    replay = Replay(model, lambda: (model(x) * torch.rand(16, 1, generator=own)).sum(), own)
    replay()
    states = torch.get_rng_state(), own.get_state()
    replay()
    assert torch.equal(states[0], torch.get_rng_state())
    assert torch.equal(states[1], own.get_state())


def test_running_statistics_move_once():
    model, x = _world()
    replay = Replay(model, lambda: model(x).sum())
    replay()
    mean = model[1].running_mean.clone()
    replay()
    assert torch.equal(model[1].running_mean, mean)
    assert model[1].num_batches_tracked == 1
