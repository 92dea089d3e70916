"""RIDG: hand values of the card, a naive oracle, limits, and the authors' class on fixed draws."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import omnimix as om
from omnimix.domains.generalize.ridg import rationale_distances
from omnimix.testing import check_method

W = torch.tensor([[1.0, 2.0], [-1.0, 0.5]])
Z, LABEL = torch.tensor([[1.0, 1.0], [3.0, 1.0], [0.0, 2.0]]), torch.tensor([0, 0, 1])


def head(weight=W):
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


def make(model, **parameters):
    outputs = [m for m in model.modules() if isinstance(m, nn.Linear)][-1].out_features
    return om.create("ridg", **parameters).setup(model, om.Classification(outputs))


@pytest.mark.parametrize(("per", "value"), [("class", 1.0), ("sample", 4 / 3), ("entry", 0.5)])
def test_hand_values(per, value):
    model = nn.Sequential(head())
    method = make(model, per=per)
    assert method.penalty(Z, model(Z), LABEL).item() == pytest.approx(value)
    assert torch.equal(method.bank[0], torch.tensor([[2.0, 2.0], [-2.0, 0.5]]))
    assert method.seen.tolist() == [True, True]


def naive(z, weight, label, bank):
    """Sum over classes of the mean squared distance of rationales, from tables (B, K, J)."""
    tables = weight * z.unsqueeze(1)
    return sum((tables[label == c] - bank[c]).square().sum(dim=(1, 2)).mean() for c in label.unique())


def test_distances_and_gradients_agree_with_tables():
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(9, 4, generator=draw, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 4, generator=draw, dtype=torch.float64, requires_grad=True)
    bank = torch.randn(3, 3, 4, generator=draw, dtype=torch.float64)
    label = torch.tensor([0, 2, 1, 1, 0, 2, 2, 2, 0])
    share = F.one_hot(label).T.double()
    share = share / share.sum(dim=1, keepdim=True)
    found, wanted = rationale_distances(z, weight, share, bank).sum(), naive(z, weight, label, bank)
    assert torch.allclose(found, wanted)
    pairs = zip(torch.autograd.grad(found, (z, weight)), torch.autograd.grad(wanted, (z, weight)), strict=True)
    assert all(torch.allclose(a, b) for a, b in pairs)


def test_rationales_sum_to_the_logits():
    layer = head()
    assert torch.allclose((layer.weight * Z.unsqueeze(1)).sum(dim=2) + layer.bias, layer(Z))


def test_zero_alpha_is_plain_training():
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))
    method = make(model, alpha=0.0)
    assert torch.equal(method.loss(model, (Z, LABEL)), method.task.mean_loss(model(Z), LABEL))


def test_m_one_takes_the_batch_and_m_zero_keeps_the_first():
    model = nn.Sequential(head())
    now, first = make(model, m=1.0), make(model, m=0.0)
    for method in (now, first):
        method.penalty(Z, model(Z), LABEL)
        method.penalty(2 * Z, model(Z), LABEL)
    mean = W * torch.tensor([2.0, 1.0])
    assert torch.allclose(now.bank[0], 2 * mean)
    assert torch.allclose(first.bank[0], mean)
    variance = ((W * (2 * Z[:2]).unsqueeze(1)) - 2 * mean).square().sum(dim=(1, 2)).mean() / 2
    assert now.penalty(2 * Z[:2], model(Z[:2]), LABEL[:2]).item() == pytest.approx(variance.item())


def test_an_equal_second_batch_moves_nothing_and_a_duplicated_one_changes_nothing():
    model = nn.Sequential(head())
    method = make(model, m=0.3)
    value = method.penalty(Z, model(Z), LABEL)
    bank = method.bank.clone()
    assert torch.allclose(method.penalty(Z, model(Z), LABEL), value)
    assert torch.allclose(method.bank, bank)
    for per in ("class", "sample"):
        once, twice, turned = (make(model, per=per) for _ in range(3))
        value = once.penalty(Z, model(Z), LABEL)
        double, order = torch.cat((Z, Z)), torch.tensor([2, 0, 1])
        assert torch.allclose(twice.penalty(double, model(double), LABEL.repeat(2)), value)
        assert torch.allclose(turned.penalty(Z[order], model(Z), LABEL[order]), value)


def test_the_mean_is_a_constant_that_keeps_no_graph():
    model = nn.Sequential(nn.Linear(2, 2), head())
    method = make(model, m=0.5)
    for _ in range(3):
        method.loss(model, (Z, LABEL)).backward()
        assert not method.bank.requires_grad
    z = Z.clone().requires_grad_()
    method.m = 0.0
    (found,) = torch.autograd.grad(method.penalty(z, model(Z), LABEL), z)
    (wanted,) = torch.autograd.grad(naive(z, model[1].weight, LABEL, method.bank) / 2, z)
    assert torch.allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize(("invariant", "value"), [("feature", 1.0), ("logit", 1.0)])
def test_what_to_compare_with(invariant, value):
    layer = head()  # logits (3, -.5), (5, -2.5), (4, 1): off their class means by (1, 1), (1, 1), 0
    model = nn.Sequential(layer)
    found = make(model, invariant=invariant).penalty(Z, layer(Z), LABEL).item()
    assert found == pytest.approx(2 * value if invariant == "logit" else value)
    zero = make(model, mean="zero")
    tables = W * Z.unsqueeze(1)
    wanted = naive(Z, W, LABEL, torch.zeros(2, 2, 2)) / 2
    assert tables.square().sum() > 0
    assert zero.penalty(Z, layer(Z), LABEL).item() == pytest.approx(wanted.item())


def test_agrees_with_the_authors_class():
    """Losses of four steps, and sums of weights and means, printed by it; its means' history cut after each step."""
    model = nn.Sequential(nn.Sequential(nn.Linear(3, 5), nn.Tanh()), nn.Linear(5, 4))
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            k, i = (1, i) if i < 2 else (7, i - 2)
            p.copy_(0.5 * torch.sin(torch.arange(p.numel()) * (k + i) + i).view(p.shape))
    x = torch.sin(torch.arange(36.0) * 1.3).view(12, 3)
    y = torch.tensor([0, 1, 2, 0, 1, 1, 2, 0, 0, 1, 2, 2])
    method, optimizer = make(model, alpha=0.5, m=0.3), torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for step in range(4):
        rows = slice(3 * step, 3 * step + 6) if step < 3 else slice(0, 12)
        losses.append(method.step(model, om.Batch(x[rows], y[rows]), optimizer).item())
    assert losses == pytest.approx([1.329513, 1.484454, 1.65646, 1.424114], abs=2e-6)
    assert sum(p.abs().sum() for p in model.parameters()).item() == pytest.approx(13.02283, abs=1e-4)
    assert method.bank.abs().sum().item() == pytest.approx(4.94137, abs=1e-4)


def test_contract_and_refusals():
    assert len(check_method("ridg")) >= 10
    check_method("ridg", per="sample", invariant="logit")
    for name, value in (("alpha", -1.0), ("m", 2.0), ("per", "x"), ("invariant", "x"), ("mean", "x")):
        with pytest.raises(ValueError, match=name):
            om.create("ridg", **{name: value})
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="linear head"):
        om.create("ridg").setup(model, om.Classification(2), split=om.split(model, head="1"))
