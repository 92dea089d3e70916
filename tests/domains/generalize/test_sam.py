"""SAM: hand value, limiting case, and the gradient at the climbed weights."""

import pytest
import torch
from torch import nn

import omnimix as om


def _model():
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 1.0]]))
    return model


def _step(model, x, y, **parameters):
    method = om.create("sam", **parameters).setup(model, om.Regression(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return method.step(model, om.Batch(x, y), optimizer)


def test_hand_value():
    model = _model()  # loss (3 w1 + 4 w2 - 2)^2 = 25, g = 10 (3, 4), g / |g| = (.6, .8)
    loss = _step(model, torch.tensor([[3.0, 4.0]]), torch.tensor([2.0]), rho=0.1)
    assert loss == 25
    climbed = 3 * 1.06 + 4 * 1.08 - 2
    expected = 1 - 0.1 * 2 * climbed * torch.tensor([[3.0, 4.0]])
    assert torch.allclose(model.weight, expected)


def test_a_tiny_radius_is_plain_descent():
    x, y = torch.randn(5, 2), torch.randn(5)
    sam, plain = _model(), _model()
    _step(sam, x, y, rho=1e-7)
    loss = (plain(x).flatten() - y).square().mean()
    (grad,) = torch.autograd.grad(loss, plain.weight)
    assert torch.allclose(sam.weight, plain.weight - 0.1 * grad, atol=1e-5)


def test_at_a_minimum_nothing_breaks():
    model = _model()
    _step(model, torch.zeros(3, 2), torch.zeros(3))
    assert torch.equal(model.weight, _model().weight)


def test_radius_must_be_positive():
    with pytest.raises(ValueError, match="rho must be a number > 0"):
        om.create("sam", rho=0)
