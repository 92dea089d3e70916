"""DANN and CDANN: gradients by hand, limits, and DomainBed's classes under its schedule."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import omnimix as om
from omnimix.domains.generalize.dann import balanced_weights
from omnimix.testing import check_method

X, DOMAIN = torch.sin(torch.arange(36.0) * 1.3).view(12, 3), torch.arange(2).repeat_interleave(6)
Y = torch.tensor([0, 1, 2, 0, 1, 1, 2, 0, 0, 1, 2, 2])
BATCH = om.Batch(X, Y, DOMAIN)


def fill(module, k):
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.copy_(0.5 * torch.sin(torch.arange(p.numel()) * (k + i) + i).view(p.shape))


def network():
    body = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    head = nn.Linear(4, 3)
    fill(body, 1)
    fill(head, 7)
    return nn.Sequential(body, head)


def make(model, name="dann", steps=None, **parameters):
    method = om.create(name, **{"width": 4, "lr": 0.01, **parameters})
    method.setup(model, om.Classification(3), om.Table(domain=DOMAIN), steps=steps)
    modules = method.beside(model, X).modules
    fill(modules["domain"], 11)
    if "class" in modules:
        with torch.no_grad():
            modules["class"].weight.copy_(0.5 * torch.sin(torch.arange(12) * 17.0).view(3, 4).T)
    return method


@pytest.mark.parametrize(
    ("name", "d_steps", "losses", "body", "judge"),
    [
        ("dann", 1, {1: 1.376627, 3: 1.35891, 5: 1.348915}, 18.47413, 14.31671),
        ("dann", 2, {0: 1.287125, 2: 1.299095, 3: 1.226071, 5: 1.20901}, 18.54379, 14.17159),
        ("cdann", 1, {1: 1.477592, 3: 1.445492, 5: 1.417222}, 18.50173, 14.31528),
        ("cdann", 2, {0: 1.398824, 2: 1.385138, 3: 1.289405, 5: 1.272862}, 18.47885, 14.17608),
    ],
)
def test_agrees_with_domainbed(name, d_steps, losses, body, judge):
    """Losses of the classifier's steps and sums of absolute weights after six, printed by DomainBed's classes."""
    model = network()
    method = make(model, name, lam=0.7, penalty=0.3, d_steps=d_steps)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02, betas=(0.5, 0.9))
    for step in range(6):
        loss = method.step(model, BATCH, optimizer)
        method.after_step()
        if step in losses:
            assert loss.item() == pytest.approx(losses[step], abs=2e-6)
    assert sum(p.abs().sum() for p in model[0].parameters()).item() == pytest.approx(body, abs=1e-4)
    found = sum(p.abs().sum() for p in method.side.modules["domain"].parameters()).item()
    assert found == pytest.approx(judge, abs=1e-4)


@pytest.mark.parametrize("lam", [0.0, 0.5, 2.0])
def test_network_climbs_what_the_classifier_descends(lam):
    model = network()
    method = make(model, lam=lam)
    weights, judge = list(model.parameters()), method.side.modules["domain"]
    z = model[0](X)
    doubt = F.cross_entropy(judge(z), DOMAIN)
    risk = F.cross_entropy(model[1](z), Y)
    wanted = torch.autograd.grad(risk - lam * doubt, weights, retain_graph=True)
    theirs = torch.autograd.grad(doubt, list(judge.parameters()))
    loss = method.loss(model, BATCH)
    loss.backward()
    assert torch.allclose(loss, risk + doubt)
    assert all(torch.allclose(p.grad, g, atol=1e-6) for p, g in zip(weights, wanted, strict=True))
    assert all(torch.allclose(p.grad, g, atol=1e-6) for p, g in zip(judge.parameters(), theirs, strict=True))


def test_penalty_is_the_squared_slope_at_the_features():
    model = network()
    method = make(model)
    z = model[0](X).detach().requires_grad_()
    plain = method.adversary(z, BATCH)
    slopes = [
        torch.autograd.grad(F.cross_entropy(method.side.modules["domain"](z[i : i + 1]), DOMAIN[i : i + 1]), z)[0][i]
        for i in range(12)
    ]
    method.penalty = 3.0
    expected = plain + 3.0 * torch.stack(slopes).square().sum(dim=1).mean()
    assert torch.allclose(method.adversary(z, BATCH), expected, atol=1e-6)


def test_classes_weigh_the_same():
    target = F.one_hot(torch.tensor([0, 0, 0, 2]), 4).double()
    assert torch.allclose(balanced_weights(target), torch.tensor([1 / 6, 1 / 6, 1 / 6, 1 / 2]).double())
    soft = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    assert balanced_weights(soft).sum().item() == pytest.approx(1)


def test_ramp():
    model = network()
    method = make(model, lam=2.0, ramp=True, steps=10)
    found = []
    for done in (0, 5, 10, 20):
        method.steps_done = done
        found.append(method.strength())
    assert found[0] == 0
    assert found[1] == pytest.approx(2 * (2 / (1 + math.exp(-5)) - 1))
    assert found[2] == found[3] == pytest.approx(2 * (2 / (1 + math.exp(-10)) - 1))
    with pytest.raises(ValueError, match="steps"):
        make(model, ramp=True)


@pytest.mark.parametrize("name", ["dann", "cdann"])
def test_contract(name):
    assert len(check_method(name)) >= 10
    check_method(name, penalty=0.5)


def test_refusals():
    for name, value in (("lam", -1.0), ("penalty", -1.0), ("d_steps", -1), ("lr", 0.0), ("width", 0)):
        with pytest.raises(ValueError, match=name):
            om.create("dann", **{name: value})
