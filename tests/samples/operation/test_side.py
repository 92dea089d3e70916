import pytest
import torch
from torch import nn

from omnimix.core.side import linear
from omnimix.samples.operation.side import Side, cosine, ema_momentum, follow


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_momentum_rises_after_a_tenth_of_the_steps():
    found = [ema_momentum(step, 1000, 0.999, 0.999999) for step in (0, 99, 100, 500, 1000)]
    assert found == pytest.approx([0.999, 0.999, 0.99902445, 0.9994995, 0.999999], abs=5e-9)
    assert ema_momentum(500, None, 0.999, 0.999999) == 0.999


def test_the_rate_falls_by_a_cosine():
    assert [cosine(0.1, 0.05, step, 100) for step in (0, 50, 100, 120)] == pytest.approx([0.1, 0.075, 0.05, 0.05])
    assert cosine(0.1, 0.05, 70, None) == 0.1


def test_the_average_follows_parameters_and_keeps_its_buffers():
    average, network = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    nn.init.constant_(network.weight, 3.0)
    network.running_mean.fill_(7.0)
    follow(average, network, 0.75)
    assert average.weight.tolist() == [1.5, 1.5]
    assert average.running_mean.tolist() == [0.0, 0.0]
    assert network.weight.tolist() == [3.0, 3.0]


def test_a_scaled_backward_pass_makes_the_same_step():
    x, found = torch.randn(4, 3, generator=draw()), []
    for scale in (1.0, 1024.0):
        side = Side({"one": linear(3, 2, 1.0, draw(1))}, lr=0.1, lr_end=0.0, steps=4)
        for step in range(3):
            loss = side.modules["one"](x).square().mean()
            watched = side.watch(loss)
            assert torch.equal(watched, loss)
            (scale * watched).backward()
            side.step_at(step)
        found.append(side.modules["one"].weight.detach().clone())
    torch.testing.assert_close(*found)
    side.step_at(3)  # nothing has come since
    assert torch.equal(found[1], side.modules["one"].weight)


def test_overflowing_gradients_do_no_harm():
    side = Side({"one": linear(3, 2, 1.0, draw())}, lr=0.1, lr_end=0.0, steps=None)
    (torch.inf * side.watch(side.modules["one"](torch.ones(1, 3)).sum())).backward()
    side.step_at(0)
    assert torch.isfinite(side.modules["one"].weight).all()


def test_layers_leave_global_randomness_alone():
    before = torch.get_rng_state()
    layer = linear(200, 300, 0.01, draw(2))
    assert torch.equal(before, torch.get_rng_state())
    assert float(layer.weight.detach().std()) == pytest.approx(0.01, rel=0.05)
    assert not layer.bias.any()
    assert torch.equal(layer.weight, linear(200, 300, 0.01, draw(2)).weight)
