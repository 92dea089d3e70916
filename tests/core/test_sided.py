"""Methods with side modules: made at the first batch, stepped as the user's optimiser, resumed exactly."""

import torch
from torch import nn

import omnimix as om
from omnimix.core.side import linear, mlp
from omnimix.core.sided import Sided


class _Guess(Sided):
    """The side module predicts the targets from features that it does not change."""

    def build(self, sizes):
        self.seen = dict(sizes)
        return {"guess": linear(sizes["head input"], 1, 0.1, self.generator)}

    def observed(self):
        return ("0",)

    def loss(self, model, batch, **streams):
        batch = om.Batch.of(batch)
        side = self.beside(model, batch.x)
        z, output = self.split.features_and_output(batch.x, model)
        extra = (side.modules["guess"](z.detach()) - batch.y).square().mean()
        return side.watch(self.task.mean_loss(output, batch.y) + extra)


def world():
    draw = torch.Generator().manual_seed(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    x, y = torch.randn(6, 3, generator=draw), torch.randn(6, 1, generator=draw)
    return model, om.Batch(x, y)


def train(method, model, batch, steps, optimizer=None):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(steps):
        method.step(model, batch, optimizer)
        method.after_step()
    return optimizer


def setup(model, seed=0):
    return _Guess().setup(model, om.Regression(1), generator=torch.Generator().manual_seed(seed))


def test_sizes_are_measured_without_traces():
    model, batch = world()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    method = setup(model)
    method.beside(model, batch.x)
    assert method.seen == {"head input": 4, "0": 4}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training


def test_modules_step_like_the_user():
    model, batch = world()
    method = setup(model)
    side = method.beside(model, batch.x)
    own = linear(4, 1, 0.1, torch.Generator().manual_seed(0))
    assert torch.equal(own.weight, side.modules["guess"].weight)
    optimizer = torch.optim.SGD(own.parameters(), lr=0.1, momentum=0.9)
    z = method.split.features_and_output(batch.x)[0].detach()
    train(method, model, batch, 1)
    (own(z) - batch.y).square().mean().backward()
    optimizer.step()
    assert torch.allclose(own.weight, side.modules["guess"].weight)


def test_a_loop_without_step_trains_them_too():
    model, batch = world()
    method = setup(model)
    before = method.beside(model, batch.x).modules["guess"].weight.detach().clone()
    method.loss(model, batch).backward()
    method.after_step()
    assert not torch.equal(before, method.side.modules["guess"].weight)


def test_exact_resume():
    model, batch = world()
    method = setup(model)
    train(method, model, batch, 2)
    other = setup(model, seed=5)
    other.load_state_dict(method.state_dict())
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    train(method, model, batch, 2)
    model.load_state_dict(weights)
    train(other, model, batch, 2)
    assert torch.equal(method.side.modules["guess"].weight, other.side.modules["guess"].weight)


def test_mlp_has_hidden_layers_of_the_scale_of_pytorch():
    net = mlp(300, 2, [400], torch.Generator().manual_seed(0))
    assert [type(layer).__name__ for layer in net] == ["Linear", "ReLU", "Linear"]
    assert abs(net[0].weight.std().item() - (3 * 300) ** -0.5) < 1e-3
    assert len(mlp(3, 2, [], torch.Generator())) == 1
