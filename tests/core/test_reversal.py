"""Gradient reversal: the identity forward, the gradient times -scale backward, also twice."""

import torch

from omnimix.core.reversal import reverse


def test_identity_with_a_reversed_gradient():
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    y = reverse(x, 0.25)
    assert torch.equal(y, x)
    (grad,) = torch.autograd.grad((y * torch.tensor([3.0, 4.0])).sum(), x)
    assert torch.equal(grad, torch.tensor([-0.75, -1.0]))


def test_gradients_of_gradients_pass():
    x = torch.tensor(2.0, requires_grad=True)
    (slope,) = torch.autograd.grad(reverse(x, 0.5) ** 3, x, create_graph=True)
    assert slope.item() == -0.5 * 12
    (again,) = torch.autograd.grad(slope, x)  # d(-0.5 * 3 r^2)/dx, with dr/dx = -0.5
    assert again.item() == -0.5 * 12 * -0.5
