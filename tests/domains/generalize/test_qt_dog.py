"""QT-DoG: hand values of rounding, what it costs near a minimum, learning after the switch, sizes and ensembles."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import omnimix as om
from omnimix.domains.generalize.qt_dog import MeanOutput, bounds, first_step_size, lsq, lsq_levels
from omnimix.testing import check_method
from omnimix.train import Budget, Data, Part, fit


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def test_hand_values():
    w = torch.tensor([0.10, -0.42, 0.33, 0.90], requires_grad=True)
    s = torch.tensor([0.2], requires_grad=True)
    found = lsq(w, s, 3)
    assert torch.allclose(found, torch.tensor([0.0, -0.4, 0.4, 0.6]))
    found.sum().backward()
    assert w.grad.tolist() == [1, 1, 1, 0]
    assert s.grad.item() == pytest.approx(0.851592, abs=1e-6)
    assert first_step_size(w, 3, per_channel=False).item() == pytest.approx(0.505181, abs=1e-6)
    assert bounds(7) == (-64, 63)


def test_step_sizes_of_channels_against_a_loop():
    w = torch.randn(3, 2, 4, generator=draw(), dtype=torch.float64).requires_grad_()
    s = first_step_size(w, 4).double().requires_grad_()
    weights = torch.randn(3, 2, 4, generator=draw(1), dtype=torch.float64)
    (weights * lsq(w, s, 4)).sum().backward()
    for c in range(3):
        expected = 0.0
        assert s[c].item() == pytest.approx(2 * w[c].abs().mean().item() / math.sqrt(7), rel=1e-6)
        for value, g in zip(w[c].flatten().tolist(), weights[c].flatten().tolist(), strict=True):
            v = value / s[c].item()
            expected += g * (round(v) - v if -8 <= v <= 7 else max(-8, min(7, v)))
        assert s.grad[c].item() == pytest.approx(expected / math.sqrt(w.numel() * 7))


def test_levels():
    w = torch.randn(5, 3, 3, 3, generator=draw())
    s = first_step_size(w, 5)
    levels, rounded = lsq_levels(w, s, 5), lsq(w, s, 5)
    assert levels.dtype == torch.int8
    assert (levels.amin(), levels.amax()) >= (torch.tensor(-16), torch.tensor(-16))
    assert torch.equal(levels * s, rounded)
    inside = (levels > -16) & (levels < 15)
    assert ((rounded - w).abs() <= s / 2 + 1e-6)[inside].all()
    assert all(len(row.unique()) <= 2**5 for row in levels.flatten(1))
    assert torch.equal(lsq(rounded, s, 5), rounded)
    assert not lsq(torch.zeros(2, 2), torch.zeros(1, 1), 7).any()


def test_rounding_near_a_minimum_costs_the_trace():
    h = torch.rand(10_000, generator=draw(), dtype=torch.float64) + 0.5
    w = torch.rand(10_000, generator=draw(1), dtype=torch.float64) * 2 - 1
    s = torch.tensor([0.031], dtype=torch.float64)
    cost = (h * (lsq(w, s, 8) - w).square()).sum() / 2
    assert cost.item() == pytest.approx(s.item() ** 2 / 24 * h.sum().item(), rel=0.1)


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


def train(model, steps, optimizer=None, method=None, **parameters):
    method = method or om.create("qt-dog", **{"start": 0.0, **parameters})
    if method.given is None:
        method.setup(model, om.Classification(3), steps=10, generator=draw())
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        method.step(model, om.Batch(X, Y), optimizer)
        method.after_step()
    return method, optimizer


def test_many_bits_are_the_network_itself():
    model, twin = net(), net()
    method, _ = train(model, 0, bits=16)
    with torch.no_grad():
        assert method._due()
        assert torch.allclose(method.predict(model.eval(), X), twin.eval()(X), atol=1e-3)


def test_weights_and_steps_learn_after_the_switch():
    model = net()
    method, optimizer = train(model, 5, start=0.5)
    assert not method.step_sizes()
    names = [id(p) for p in model.parameters()]
    train(model, 1, optimizer, method)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    sizes = {n: s.detach().clone() for n, s in method.step_sizes().items()}
    assert list(sizes) == ["first", "second"]
    train(model, 5, optimizer, method)
    for name in ("first", "second"):
        assert (model.get_parameter(f"{name}.weight") != before[f"{name}.weight"]).all()
        assert (method.step_sizes()[name] != sizes[name]).all()
    assert [id(p) for p in model.parameters()] == names
    assert len(optimizer.state) == len(names)
    assert all(value["step"] == 11 for value in optimizer.state.values())
    assert len(method.side.optimizer.state) == 2


def test_plain_training_before_the_switch():
    model, twin = net(), net()
    train(model, 4, start=0.5)
    optimizer = torch.optim.Adam(twin.parameters(), lr=1e-2)
    for _ in range(4):
        optimizer.zero_grad()
        nn.functional.cross_entropy(twin(X), Y).backward()
        optimizer.step()
    assert all(map(torch.equal, model.parameters(), twin.parameters()))


def test_the_authors_slip_freezes_what_is_rounded():
    model = net()
    start = copy.deepcopy(model)
    method, _ = train(model, 5, reference=True)
    assert torch.equal(model.first.weight, start.first.weight)
    assert not torch.equal(model.head.weight, start.head.weight)
    assert torch.equal(method.step_sizes()["first"], first_step_size(start.first.weight, 7))


def test_step_sizes_do_not_decay():
    model = net()
    method, optimizer = train(model, 1, torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.5))
    assert method.side.optimizer.param_groups[0]["weight_decay"] == 0
    sizes = [s.detach().clone() for s in method.step_sizes().values()]
    train(model, 1, optimizer, method)
    for before, now in zip(sizes, method.step_sizes().values(), strict=True):
        assert ((now - before).abs() < 2e-3).all()


def test_the_network_ends_with_the_rounded_weights():
    model = net()
    method, _ = train(model, 3, bits=4, keep=["first"])
    model.eval()
    float_weights = model.first.weight.clone()
    with torch.no_grad():
        expected, latent = method.predict(model, X), model(X)
        assert not torch.allclose(expected, latent)
        levels = method.levels()
        method.after_training(model, iter(()))
        assert torch.equal(model(X), expected)
        assert torch.equal(method.predict(model, X), expected)
    assert torch.equal(model.first.weight, float_weights)
    assert list(levels) == ["second"]
    assert torch.equal(levels["second"]["levels"] * levels["second"]["step"], model.second.weight)
    copied = copy.deepcopy(model)
    assert torch.equal(copied(X), model(X))


def test_size():
    model = net()
    method, _ = train(model, 1)
    rounded, every = 2 * 4 * 9 + 4 * 4 * 9, sum(p.numel() for p in model.parameters())
    assert method.size() == pytest.approx((7 * rounded + 32 * (every - rounded) + 32 * 8) / (32 * every))
    assert om.create("qt-dog").setup(net(), om.Classification(3), steps=10).size() == 1


def test_checkpointing_repeats_the_rounding():
    class Twice(Net):
        def forward(self, x):
            h = checkpoint(lambda t: self.second(self.first(t).relu()), x, use_reentrant=False)
            return self.head(h.relu().mean((2, 3)))

    class Once(Net):
        def forward(self, x):
            return self.head(self.second(self.first(x).relu()).relu().mean((2, 3)))

    grads = []
    for kind in (Once, Twice):
        model = kind()
        model.load_state_dict(net().state_dict())
        method = om.create("qt-dog", start=0.0, bits=3).setup(model, om.Classification(3), generator=draw())
        method.loss(model, (X, Y)).backward()
        grads.append([model.first.weight.grad, model.second.weight.grad, method.step_sizes()["first"].grad])
        assert isinstance(model.first.weight, nn.Parameter)
    for one, two in zip(*grads, strict=True):
        assert torch.allclose(one, two)


def test_an_error_in_the_pass_leaves_the_network_whole():
    model = net()
    method, _ = train(model, 1)
    with pytest.raises(RuntimeError):
        method.predict(model, X[:, :1])
    assert isinstance(model.first.weight, nn.Parameter)


@pytest.mark.parametrize("select", ["last", "best"])
def test_in_the_loop_interrupted_or_not(select, tmp_path):
    data = Data(Part(X, Y), Part(X.flip(0), Y.flip(0)), None, om.Classification(3))
    budget = Budget(epochs=6, batch_size=5, lr=0.01, select=select)
    whole, resumed = net(), net()
    fit(om.create("qt-dog", start=0.3), whole, data, budget, seed=0)

    class Stop(Exception):
        pass

    def stop(done, *_):
        if done == 4:
            raise Stop

    settings = {"seed": 0, "checkpoint": tmp_path / "run", "checkpoint_every": 0.0}
    with pytest.raises(Stop):
        fit(om.create("qt-dog", start=0.3), net(), data, budget, progress=stop, **settings)
    fit(om.create("qt-dog", start=0.3), resumed, data, budget, **settings)
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_an_ensemble_of_equals_is_one_of_them():
    model = net().eval()
    with torch.no_grad():
        assert torch.allclose(MeanOutput([model, copy.deepcopy(model), model])(X), model(X))
        assert torch.equal(MeanOutput([model])(X), model(X))
        other = Net().eval()
        assert torch.allclose(MeanOutput([model, other])(X), (model(X) + other(X)) / 2)


def test_contract():
    assert len(check_method("qt-dog")) >= 10
    check_method("qt-dog", start=0.0, bits=3)
    check_method("qt-dog", start=0.0, layers="all", per_channel=False)


def test_refusals():
    for name, value in (("bits", 1), ("bits", 33), ("start", 1.5), ("layers", "linear"), ("step_rate", 0.0)):
        with pytest.raises(ValueError, match=name):
            om.create("qt-dog", **{name: value})
    with pytest.raises(ValueError, match="keep must be one of"):
        om.create("qt-dog", keep=["third"]).setup(net(), om.Classification(3), steps=3)
    with pytest.raises(ValueError, match="no convolution"):
        om.create("qt-dog", start=0.0).setup(nn.Linear(2, 3), om.Classification(3))
    with pytest.raises(ValueError, match="planned steps"):
        om.create("qt-dog").setup(net(), om.Classification(3))
