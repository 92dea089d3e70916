"""Side modules: they step like the user's optimiser, at its rate, undo scaling, and resume exactly."""

import pytest
import torch
from torch import nn

from omnimix.core.side import Beside, linear


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


X = torch.randn(4, 3, generator=draw())


def train(side, steps, lead=None, scale=1.0):
    for _ in range(steps):
        if lead is not None:
            side.like(lead)
        (scale * side.watch(side.modules["one"](X).square().mean())).backward()
        side.step()
    return side.modules["one"].weight.detach().clone()


def user(kind, **settings):
    return kind([nn.Parameter(torch.zeros(1))], **settings)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
        (torch.optim.AdamW, {"lr": 0.01, "betas": (0.5, 0.9)}),
        (torch.optim.Adam, {"lr": 0.01, "fused": True}),
    ],
)
def test_it_steps_like_the_users_optimiser(kind, settings):
    layer = linear(3, 2, 1.0, draw(1))
    own = kind(layer.parameters(), **settings)
    for _ in range(3):
        own.zero_grad()
        layer(X).square().mean().backward()
        own.step()
    side = Beside({"one": linear(3, 2, 1.0, draw(1))})
    assert torch.equal(train(side, 3, user(kind, **settings)), layer.weight)


def test_it_follows_the_rate_and_ignores_what_is_no_optimiser():
    side, lead = Beside({"one": linear(3, 2, 1.0, draw())}), user(torch.optim.SGD, lr=0.1)
    side.like(object())
    assert side.optimizer is None
    train(side, 1, lead)
    lead.param_groups[0]["lr"] = 0.0
    before = side.modules["one"].weight.detach().clone()
    assert torch.equal(train(side, 1, lead), before)


def test_scaling_is_undone_and_overflow_harmless():
    plain, scaled = (train(Beside({"one": linear(3, 2, 1.0, draw())}), 2, None, s) for s in (1.0, 1024.0))
    assert torch.allclose(plain, scaled)
    assert torch.isfinite(train(Beside({"one": linear(3, 2, 1.0, draw())}), 1, None, torch.inf)).all()


def test_nothing_without_a_backward_pass():
    side = Beside({"one": linear(3, 2, 1.0, draw())})
    before = side.modules["one"].weight.detach().clone()
    side.watch(side.modules["one"](X).sum())
    side.step()
    assert torch.equal(before, side.modules["one"].weight)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_exact_resume(kind):
    settings = {"lr": 0.05, "momentum": 0.9} if kind is torch.optim.SGD else {"lr": 0.05}
    lead = user(kind, **settings)
    side = Beside({"one": linear(3, 2, 1.0, draw())})
    train(side, 2, lead)
    state = side.state_dict()
    other = Beside({"one": linear(3, 2, 1.0, draw(5))})
    other.load_state_dict(state)
    expected = train(side, 3, lead)
    assert torch.equal(train(other, 3, user(kind, **settings)), expected)
