"""INQ: hand values of powers of two, portions by magnitude, what is frozen stays, and what the network ends with."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

import omnimix as om
from omnimix.domains.generalize.inq import largest_power, powers_of_two
from omnimix.testing import check_method
from omnimix.train import Budget, Data, Part, fit


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


W = torch.tensor([0.9, -0.42, 0.33, 0.1, -0.02, 0.0])


def test_hand_values():
    top = largest_power(W)
    assert top.item() == 1  # 4 / 3 of 0.9 is 1.2
    assert powers_of_two(W, top, 3).tolist() == [1, -0.5, 0.5, 0, 0, 0]  # n2 = -1
    assert powers_of_two(W, top, 4).tolist() == [1, -0.5, 0.25, 0.125, 0, 0]  # n2 = -3
    assert powers_of_two(W, top, 2).tolist() == [1, 0, 0, 0, 0, 0]  # 0.42 is below half of 1
    edges = torch.tensor([0.75, 0.7499, 1.4999, 0.25, 0.2499, 0.375])
    assert powers_of_two(edges, torch.tensor(1.0), 3).tolist() == [1, 0.5, 1, 0.5, 0, 0.5]
    assert powers_of_two(torch.tensor([7.0]), torch.tensor(1.0), 3).item() == 1  # it has grown since n1 was taken
    assert not powers_of_two(torch.zeros(3), largest_power(torch.zeros(3)), 5).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_rule_of_the_paper_level_by_level(dtype):
    w = (torch.randn(2000, generator=draw(), dtype=torch.float64) * 0.1).to(dtype)
    s = w.abs().max().item()
    n1 = math.floor(math.log2(4 * s / 3))
    n2 = n1 + 1 - 2 ** (5 - 1) // 2
    levels = [0.0] + [2.0**n for n in range(n2, n1 + 1)]
    wanted = torch.zeros(2000, dtype=torch.float64)
    for alpha, beta in pairwise(levels):
        inside = ((alpha + beta) / 2 <= w.abs().double()) & (w.abs().double() < 3 * beta / 2)
        wanted = torch.where(inside, beta * w.sign().double(), wanted)
    found = powers_of_two(w, largest_power(w), 5)
    assert found.dtype == dtype
    assert torch.equal(found.double(), wanted)
    assert len(found.abs().unique()) == 9


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3)
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.norm(self.second(self.first(x).relu())).relu().mean((2, 3)))


def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net()


X, Y = torch.randn(12, 2, 8, 8, generator=draw()), torch.arange(12) % 3


def test_portions_by_magnitude_and_what_is_frozen_stays():
    model = net()
    method = om.create("qt-dog-inq", start=0.2).setup(model, om.Classification(3), steps=10, generator=draw())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.5)
    assert method.turns == [2, 4, 6, 8]
    fixed, shares, used = {}, [], []
    handle = model.first.register_forward_hook(lambda module, *_: used.append(module.weight.detach().clone()))
    for _ in range(10):
        before = model.first.weight.detach().clone()
        done = method.done
        method.step(model, om.Batch(X, Y), optimizer)
        method.after_step()
        if method.done > done:
            now, old = method.frozen["first"], fixed.get("frozen", torch.zeros_like(before, dtype=torch.bool))
            if (~now).any():
                assert before.abs()[now & ~old].min() >= before.abs()[~now].max()
            assert torch.equal(now & old, old)
            fixed = {"frozen": now.clone(), "values": method.fixed["first"].clone()}
        shares.append(method.frozen["first"].double().mean().item() if method.frozen else 0.0)
        if fixed:
            assert torch.equal(used[-1][fixed["frozen"]], fixed["values"][fixed["frozen"]])
            assert torch.equal(method.fixed["first"], fixed["values"])
            assert torch.equal(used[-1][~fixed["frozen"]], before[~fixed["frozen"]])
    handle.remove()
    assert shares == pytest.approx([0, 0, 0.5, 0.5, 0.75, 0.75, 0.875, 0.875, 1, 1], abs=0.01)
    assert not torch.equal(used[2], used[3])  # the others learn in between
    assert torch.equal(used[8], used[9])
    with torch.no_grad():
        expected = method.predict(model.eval(), X)
        method.after_training(model, ())
        assert torch.equal(model(X), expected)
    for layer in (model.first, model.second):
        size = layer.weight[layer.weight != 0].abs().double()
        assert torch.equal(size.log2(), size.log2().round())
        assert len(size.unique()) <= 8
    assert isinstance(model.first.weight, nn.Parameter)


def test_frozen_weights_get_no_gradient():
    model = net()
    method = om.create("qt-dog-inq", start=0.0).setup(model, om.Classification(3), steps=8, generator=draw())
    method.loss(model, (X, Y)).backward()
    frozen = method.frozen["second"]
    assert not model.second.weight.grad[frozen].any()
    assert model.second.weight.grad[~frozen].all()


def test_in_the_loop_interrupted_or_not(tmp_path):
    data = Data(Part(X, Y), None, None, om.Classification(3))
    budget = Budget(epochs=6, batch_size=6, lr=0.01, select="last")
    whole, resumed = net(), net()
    fit(om.create("qt-dog-inq"), whole, data, budget, seed=0)

    class Stop(Exception):
        pass

    def stop(done, *_):
        if done == 4:
            raise Stop

    settings = {"seed": 0, "checkpoint": tmp_path / "run", "checkpoint_every": 0.0}
    with pytest.raises(Stop):
        fit(om.create("qt-dog-inq"), net(), data, budget, progress=stop, **settings)
    fit(om.create("qt-dog-inq"), resumed, data, budget, **settings)
    assert all(map(torch.equal, whole.state_dict().values(), resumed.state_dict().values()))
    assert len(whole.second.weight.abs().unique()) <= 9


def test_contract():
    assert len(check_method("qt-dog-inq")) >= 10
    check_method("qt-dog-inq", start=0.0, bits=3, layers="all")


def test_refusals():
    for name, value in (("bits", 1), ("bits", 9), ("start", 1.5), ("layers", "linear"), ("portions", (0.5, 0.9))):
        with pytest.raises(ValueError, match=name):
            om.create("qt-dog-inq", **{name: value})
    for portions in ((), (0.5, 0.5, 1.0), (0.0, 1.0)):
        with pytest.raises(ValueError, match="portions"):
            om.create("qt-dog-inq", portions=portions)
    with pytest.raises(ValueError, match="planned steps"):
        om.create("qt-dog-inq", start=0.0).setup(net(), om.Classification(3))


@pytest.mark.parametrize(("steps", "start"), [(10, 0.8), (10, 0.9), (100, 0.99), (4, 0.0)])
def test_all_portions_are_done_however_few_steps_are_left(steps, start):
    method = om.create("qt-dog-inq", start=start)
    method.setup(nn.Sequential(nn.Conv2d(1, 2, 3)), om.Classification(2), steps=steps)
    assert method.turns[0] == round(start * steps)
    assert method.turns[-1] < steps
