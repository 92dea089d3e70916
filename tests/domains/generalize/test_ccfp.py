"""CCFP: hand values of the card, who learns from what, and the authors' class on fixed numbers."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import omnimix as om
from omnimix.domains.generalize.ccfp import Perturbation, gram
from omnimix.testing import check_method


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def fill(parameters, k):
    with torch.no_grad():
        for i, p in enumerate(parameters):
            p.copy_(0.5 * torch.sin(torch.arange(p.numel()) * (k + i) + i).view(p.shape))


class Net(nn.Module):
    taps = ("first", "second")

    def __init__(self, norm=False):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3) if norm else nn.Identity(), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(3, 4, 2), nn.ReLU())
        self.third = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())
        self.head = nn.Linear(4, 3)

    def body(self):
        return [*self.first.parameters(), *self.second.parameters(), *self.third.parameters()]

    def forward(self, x):
        return self.head(self.third(self.second(self.first(x))).mean((2, 3)))


X = torch.sin(torch.arange(6 * 2 * 6 * 5.0) * 1.3).view(6, 2, 6, 5)
Y = torch.tensor([0, 1, 2, 0, 1, 1])
BATCH = om.Batch(X, Y)


def make(model, seed=0, **parameters):
    method = om.create("ccfp", **parameters).setup(model, om.Classification(3), generator=draw(seed))
    method.beside(model, X)
    return method


def network():
    model = Net()
    fill(model.body(), 1)
    fill(model.head.parameters(), 7)
    return model


def test_perturbation_by_hand():
    h = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    layer = Perturbation(1)
    assert torch.allclose(layer(h), h, atol=1e-5)
    with torch.no_grad():
        layer.g.fill_(0.5)
        layer.b.fill_(-1.0)
    out = layer(h)
    assert out.mean().item() == pytest.approx(1.5, abs=1e-5)
    assert out.std().item() == pytest.approx(1.790994, abs=1e-5)
    layer.limit = 0.1
    assert layer(h).std().item() == pytest.approx(1.390994, abs=1e-5)
    assert layer(h).mean().item() == pytest.approx(2.4, abs=1e-5)


def test_gram_by_hand():
    h = torch.tensor([[[[1.0, 0.0], [2.0, 1.0]], [[0.0, 1.0], [1.0, 1.0]]]])
    assert torch.allclose(gram(h), torch.tensor([[[0.75, 0.375], [0.375, 0.375]]]))


def test_agrees_with_the_authors_class():
    """Losses, style distances, sums of |g| and |b| of five Adam steps, weights and a prediction, printed by it."""
    model = network()
    method = make(model, sem=0.7, dis=1.3)
    fill(method.twin.head.parameters(), 9)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    style, losses, distances, shifts = method.style_distance, [], [], []
    method.style_distance = lambda *given: distances.append(style(*given)) or distances[-1]
    for _ in range(5):
        losses.append(method.step(model, BATCH, optimizer).item())
        method.after_step()
        shifts.append([value.abs().sum().item() for layer in method.shifts for value in (layer.g, layer.b)])
    assert losses == pytest.approx([2.992193, 2.909184, 2.830915, 2.756644, 2.687814], abs=1e-5)
    found = [1.3 * distance.item() for distance in distances]
    assert found == pytest.approx([0.644463, 1.039951, 1.394333, 1.77011, 2.172255], abs=1e-4)
    assert shifts[0] == pytest.approx([0.06, 0.04, 0.04, 0.06], abs=1e-5)
    assert shifts[2] == pytest.approx([0.117989, 0.089194, 0.126238, 0.167649], abs=1e-4)
    assert shifts[4] == pytest.approx([0.153372, 0.132452, 0.209927, 0.258908], abs=1e-4)
    assert sum(p.abs().sum() for p in model.body()).item() == pytest.approx(42.12372, abs=2e-3)
    assert sum(p.abs().sum() for p in method.twin.body()).item() == pytest.approx(41.912, abs=2e-3)
    assert method.predict(model, X[:1])[0].tolist() == pytest.approx([0.5363421, -0.4057499, 0.1818331], abs=1e-4)


def test_neither_network_follows_the_other():
    model = network()
    method = make(model, sem=2.0)
    with torch.no_grad():
        plain, other = model(X), method.perturbed(X)
    method.loss(model, BATCH).backward()
    alone = F.cross_entropy(model(X), Y) + 2.0 * (model(X) - other).square().mean()
    wanted = torch.autograd.grad(alone, list(model.parameters()))
    assert all(torch.allclose(p.grad, g, atol=1e-6) for p, g in zip(model.parameters(), wanted, strict=True))
    out = method.perturbed(X)
    weights = [*method.twin.parameters(), *method.shifts.parameters()]
    theirs = torch.autograd.grad(F.cross_entropy(out, Y) + 2.0 * (out - plain).square().mean(), weights)
    assert all(torch.allclose(p.grad, g, atol=1e-6) for p, g in zip(weights, theirs, strict=True))


def test_the_style_step_moves_the_shifts_alone():
    model = Net(norm=True)
    method = make(model, sem=0.0)
    step, before = method.style.step, {}

    def spy(rate):
        for part in (model, method.twin, method.shifts):
            before[part] = {name: value.clone() for name, value in part.state_dict().items()}
        assert all(p.grad is None for p in [*model.head.parameters(), *method.twin.parameters()])
        assert rate == 0.1
        step(rate)

    method.style.step = spy
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    method.step(model, BATCH, optimizer)
    passed = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer.zero_grad()
    method.after_step()
    for part in (model, method.twin):
        assert all(torch.equal(value, before[part][name]) for name, value in part.state_dict().items())
    shifts = before[method.shifts]
    assert not any(torch.equal(value, shifts[name]) for name, value in method.shifts.state_dict().items())
    assert all(torch.equal(value, passed[name]) for name, value in model.state_dict().items())  # statistics moved once
    assert not torch.equal(start["first.1.running_mean"], passed["first.1.running_mean"])


def test_styles_go_apart():
    model = network().requires_grad_(False)
    method = make(model, sem=0.0)
    method.twin.requires_grad_(False)
    with torch.no_grad():
        for layer in method.shifts:
            layer.b.add_(0.01)  # at exactly equal styles the distance has no direction
    distances = []
    for _ in range(15):
        distances.append(method.style_distance(model, X).item())
        method.style.backward(-method.style_distance(model, X))
        method.style.step(1e-3)
    assert all(b > a for a, b in pairwise(distances))
    twice = method.style_distance(model, torch.cat((X, X)))
    assert twice.item() == pytest.approx(2**0.5 * method.style_distance(model, X).item(), rel=1e-4)


def test_without_agreement_and_style_the_network_is_plain_training():
    model, same = network(), network()
    method = make(model, sem=0.0, dis=0.0)
    mine, theirs = (torch.optim.Adam(m.parameters(), lr=0.01) for m in (model, same))
    for _ in range(3):
        method.step(model, BATCH, mine)
        method.after_step()
        theirs.zero_grad()
        method.task.mean_loss(same(X), Y).backward()
        theirs.step()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(model.parameters(), same.parameters(), strict=True))
    assert all(layer.g.any() and layer.b.any() for layer in method.shifts)


def test_predictions():
    model = network()
    method = make(model)
    twin, plain = method.predict(model, X), model(X)
    assert not torch.allclose(twin, plain, atol=1e-3)  # the heads start apart
    method.predictions = "mean"
    assert torch.allclose(method.predict(model, X), (twin + plain) / 2)
    method.predictions = "plain"
    assert torch.equal(method.predict(model, X), plain)


def test_exact_resume():
    found = []
    for stop in (False, True):
        model = network()
        method, optimizer = make(model), torch.optim.Adam(model.parameters(), lr=0.01)
        for step in range(4):
            if stop and step == 2:
                state = method.state_dict()
                method = om.create("ccfp").setup(model, om.Classification(3), generator=draw(9))
                method.load_state_dict(state)
            method.step(model, BATCH, optimizer)
            method.after_step()
        found.append([p.detach().clone() for p in method.side.modules.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_contract_and_refusals():
    assert len(check_method("ccfp")) >= 10
    check_method("ccfp", predictions="mean", limit=1.0)
    for name, value in (("sem", -1.0), ("dis", -1.0), ("predictions", "x"), ("limit", 0.0)):
        with pytest.raises(ValueError, match=name):
            om.create("ccfp", **{name: value})
