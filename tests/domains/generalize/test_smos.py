"""SMOS: hand values of both divergences, the variances, a precursor that never moves, and resuming."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import omnimix as om
from omnimix.core.divergence import js_divergence
from omnimix.domains.generalize.smos import misplaced_divergence, of_channels, variance_bound
from omnimix.testing import check_method
from omnimix.train import Budget, Data, Part, fit


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


P, Q = torch.tensor([0.2, 0.8]), torch.tensor([0.6, 0.4])


def test_divergences_by_hand():
    assert js_divergence(P, Q).item() == pytest.approx(0.0863046, abs=1e-6)
    assert js_divergence(P, Q).item() / math.log(2) == pytest.approx(0.1245112, abs=1e-6)
    assert js_divergence(P, Q) == js_divergence(Q, P)
    assert js_divergence(P, P).item() == pytest.approx(0, abs=1e-7)
    assert js_divergence(torch.tensor([1.0, 0]), torch.tensor([0.0, 1])).item() == pytest.approx(math.log(2))
    assert misplaced_divergence(P, Q).item() == pytest.approx(-0.5965058, abs=1e-6)
    assert misplaced_divergence(P, P).item() == pytest.approx(-0.5902012, abs=1e-6)
    zeros = torch.tensor([0.0, 0.5])
    assert misplaced_divergence(zeros, zeros).item() == pytest.approx((0.5 * math.log(0.5) - 0.25) / 2)
    assert misplaced_divergence(P, Q, "kl").item() == pytest.approx(
        (0.6 * math.log(0.6) + 0.4 * math.log(0.4) - 0.12 - 0.32) / 2, abs=1e-6
    )


def test_the_bound_is_least_at_the_mean_squared_difference():
    student, teacher = (torch.randn(5, 3, 4, 4, generator=draw(s), dtype=torch.float64) for s in (0, 1))
    best = (student - teacher).square().mean(dim=(0, 2, 3), keepdim=True).requires_grad_()
    variance_bound(student, teacher, best).backward()
    assert best.grad.abs().max() < 1e-10
    assert variance_bound(student, student, torch.tensor(0.1)).item() == pytest.approx(-1.1512925)


class Net(nn.Module):
    taps = ("block", "second")

    def __init__(self):
        super().__init__()
        self.block, self.second = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 5, 3)
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.second(self.norm(self.block(x)).relu()).relu().mean((2, 3)))


def net(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Net()


X, Y = torch.randn(12, 2, 8, 8, generator=draw()), torch.arange(12) % 3


def make(model, precursor=None, **parameters):
    return om.create("smos", precursor=precursor, **parameters).setup(model, om.Classification(3), generator=draw())


@pytest.mark.parametrize("parameters", [{}, {"divergence": "kl"}, {"reference": True}])
def test_the_loss_by_its_equation(parameters):
    model, precursor = net(), net(1)
    twin, teacher = copy.deepcopy(model), copy.deepcopy(precursor).eval()
    found = make(model, precursor, weight=0.3, **parameters).loss(model, (X, Y))
    maps = []
    for network in (twin, teacher):
        first = network.block(X)
        second = network.second(network.norm(first).relu())
        maps.append((first, second, second.relu().mean((2, 3))))
    (f1, f2, f), (g1, g2, g) = maps
    bound = sum(0.5 * ((a - b).square() / 0.1 + math.log(0.1)).mean() for a, b in ((f1, g1), (f2, g2)))
    p, q = g.softmax(1), f.softmax(1)
    m = (p + q) / 2
    between = 0.5 * ((p * (p / m).log()).sum(1) + (q * (q / m).log()).sum(1)).mean()
    if parameters.get("divergence") == "kl":
        between = (p * (p / q).log()).sum(1).mean()
    if parameters.get("reference"):
        m = (g + f) / 2
        between = (F.kl_div(g, m, reduction="none").mean() + F.kl_div(f, m, reduction="none").mean()) / 2
    expected = F.cross_entropy(twin.head(f), Y) + 0.3 * (between + bound / 10)
    assert torch.allclose(found, expected, atol=1e-5)


def test_three_dimensions_are_sequences_after_a_convolution_and_tokens_after_a_linear_layer():
    convolved = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    tokens = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.GELU(), nn.Flatten(), nn.Linear(12, 3))
    h, t = torch.zeros(2, 4, 4), torch.zeros(2, 2, 6)
    assert [of_channels(convolved, name, h) for name in "01"] == [(1, 4, 1)] * 2
    assert [of_channels(tokens, name, t) for name in "012"] == [(1, 1, 6)] * 3
    assert of_channels(tokens, "4", torch.zeros(2, 3)) == (1, 3)
    model = nn.Sequential(
        nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU()), nn.Flatten(), nn.Linear(24, 3)
    )
    method = om.create("smos", taps=["0"]).setup(model, om.Classification(3), generator=draw())
    for length in (8, 8):
        method.loss(model, (torch.randn(3, 2, length, generator=draw()), torch.arange(3)))
    assert method.variances()[0].shape == (1, 4, 1)


def test_variances_start_at_a_tenth_and_learn_ten_times_as_fast():
    model = net()
    method = make(model, net(1))
    with pytest.raises(ValueError, match="first step"):
        method.variances()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    method.loss(model, (X, Y))
    assert [v.shape for v in method.variances()] == [(1, 4, 1, 1), (1, 5, 1, 1)]
    assert all(((v - 0.1).abs() < 1e-6).all() for v in method.variances())
    before = [b.detach().clone() for b in method.side.modules["b"].parameters()]
    method.step(model, om.Batch(X, Y), optimizer)
    method.after_step()
    for b, old in zip(method.side.modules["b"].parameters(), before, strict=True):
        assert torch.allclose((b - old).abs(), torch.tensor(1e-2), rtol=1e-2)


def test_the_precursor_never_moves():
    model, precursor = net(), net(1).train()
    method = make(model, precursor)
    start = {n: v.clone() for n, v in precursor.state_dict().items()}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(50):
        method.step(model, om.Batch(X, Y), optimizer)
        method.after_step()
    for network in (precursor, method.teacher):
        assert all(torch.equal(value, start[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in method.teacher.parameters())
    assert not method.teacher.training
    assert precursor.training
    assert all(p.requires_grad for p in precursor.parameters())


def test_zero_weight_is_plain_training():
    plain = om.ERM().setup(net(), om.Classification(3))
    assert torch.equal(make(net(), net(1), weight=0.0).loss(net(), (X, Y)), plain.loss(net(), (X, Y)))


def test_without_a_precursor_the_network_itself_is_it():
    model = net().eval()
    method = make(model)
    model.train()
    model.norm.eval()
    plain, found = F.cross_entropy(model(X), Y), method.loss(model, (X, Y))
    assert found.item() == pytest.approx(plain.item() + 0.15 / 10 * 2 * 0.5 * math.log(0.1), abs=1e-5)


def test_in_the_loop_interrupted_or_not(tmp_path):
    data = Data(Part(X, Y), Part(X.flip(0), Y.flip(0)), None, om.Classification(3))
    budget = Budget(epochs=4, batch_size=5, lr=0.01)
    whole, resumed = net(), net()
    fit(om.create("smos"), whole, data, budget, seed=0)

    class Stop(Exception):
        pass

    def stop(done, *_):
        if done == 2:
            raise Stop

    settings = {"seed": 0, "checkpoint": tmp_path / "run", "checkpoint_every": 0.0}
    with pytest.raises(Stop):
        fit(om.create("smos"), net(), data, budget, progress=stop, **settings)
    fit(om.create("smos"), resumed, data, budget, **settings)
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_contract():
    assert len(check_method("smos")) >= 10


def test_refusals():
    for name, value in (("weight", -1.0), ("lr_mult", 0.0), ("divergence", "l2")):
        with pytest.raises(ValueError, match=name):
            om.create("smos", **{name: value})
    with pytest.raises(ValueError, match="taps"):
        make(net(), taps="block")
    with pytest.raises(ValueError, match="built like the network"):
        make(net(), nn.Linear(2, 3))
