import pytest
import torch
import torch.nn.functional as F
from torch import nn

import omnimix as om
from omnimix.core.operation import Context
from omnimix.samples.operation import SalientBox
from omnimix.samples.saliency import InputGradient, input_gradient


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


class Net(nn.Sequential):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv = nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU())
            self.end = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.fc = nn.Linear(5, 3)


X, Y = torch.randn(4, 2, 6, 7, generator=draw()), torch.tensor([0, 2, 1, 1])


def test_a_linear_network_by_hand():
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 1, bias=False))
    weight = torch.tensor([3.0, 0, 0, 1, 4, 0, 0, 1])
    model[1].weight.data = weight[None]
    x, y = torch.zeros(2, 2, 2, 2), torch.tensor([1.0, 2.0])
    found = input_gradient(model, x, y, om.Regression(1))  # d (w x - y)^2 / dx = -2 y w
    expected = 2 * torch.tensor([[12.5, 0], [0, 1.0]]).sqrt()  # root of the mean over the two channels
    torch.testing.assert_close(found, torch.stack((expected, 2 * expected)).unsqueeze(1))


def test_maps_do_not_depend_on_the_rest_of_the_batch():
    model = Net()
    whole = input_gradient(model, X, Y)
    torch.testing.assert_close(whole[1:2], input_gradient(model, X[1:2], Y[1:2]))


@pytest.mark.parametrize("shape", [(3, 9), (3, 4, 5), (3, 4, 3, 2)])
def test_one_to_three_spatial_axes_and_half_precision(shape):
    count = torch.Size(shape).numel()
    model = nn.Sequential(nn.Flatten(), nn.Linear(count, 3)).to(torch.bfloat16)
    maps = input_gradient(model, torch.randn(4, *shape, generator=draw()).bfloat16(), Y)
    assert maps.shape == (4, 1, *shape[1:])
    assert maps.dtype == torch.float32


def test_the_kept_gradient_is_that_of_the_clean_loss():
    model, weight = Net(), 0.3
    operation = SalientBox(InputGradient(keep=weight))
    method = om.Mix(operation=operation).setup(model, om.Classification(3), generator=draw(1))
    loss = method.loss(model, (X, Y))
    loss.backward()
    found = [p.grad.clone() for p in model.parameters()]

    twin = Net()
    again = om.Mix(operation=SalientBox(InputGradient(keep=weight))).setup(
        twin, om.Classification(3), generator=draw(1)
    )
    batch = om.Batch(X, Y)
    mixed = again.mix(batch, again.recipe(batch))
    expected = mixed.loss(F.cross_entropy, twin(mixed.x)) + weight * F.cross_entropy(twin(X), Y)
    torch.testing.assert_close(loss, expected)
    grads = torch.autograd.grad(expected, list(twin.parameters()))
    for a, b in zip(found, grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_kept_gradients_scale_with_the_loss_and_skip_frozen_parameters():
    model = Net()
    model.conv.requires_grad_(False)
    context = Context(draw(), Y, om.Split(model), om.Classification(3))
    InputGradient(keep=1.0)(X, context)
    (context.extra[0] * 8).backward()
    (expected,) = torch.autograd.grad(F.cross_entropy(model(X), Y), [model.fc.weight])
    torch.testing.assert_close(model.fc.weight.grad, 8 * expected)
    assert model.conv[0].weight.grad is None


@pytest.mark.parametrize("keep", [0.0, 1.0])
def test_only_a_clean_pass_of_training_moves_the_running_statistics(keep):
    model = Net()
    before = model.conv[1].running_mean.clone()
    InputGradient(keep)(X, Context(draw(), Y, om.Split(model), om.Classification(3)))
    expected = before + (0.1 * (model.conv[0](X).mean(dim=(0, 2, 3)) - before) if keep else 0)
    torch.testing.assert_close(model.conv[1].running_mean, expected)
    assert model.conv[1].training


def test_refusals():
    with pytest.raises(ValueError, match="keep must be a number >= 0, got -1"):
        InputGradient(keep=-1)
