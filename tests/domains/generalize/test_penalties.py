"""GroupDRO, IRM and V-REx: hand values and plain re-computations."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import omnimix as om
from omnimix.domains.generalize.group_dro import reweigh
from omnimix.domains.generalize.irm import irm_penalty

DOMAIN = torch.tensor([4, 2, 4, 2, 2, 7])


def _world(outputs=3):
    draw = torch.Generator().manual_seed(1)
    x, y = torch.randn(6, 5, generator=draw), torch.randint(outputs, (6,), generator=draw)
    model = nn.Linear(5, outputs)
    with torch.no_grad():
        model.weight.copy_(torch.randn(outputs, 5, generator=draw))
    return model, om.Batch(x, y, DOMAIN), om.Classification(outputs)


def _set_up(name, model, task, **parameters):
    method = om.create(name, **parameters)
    return method.setup(model, task, om.Table(label=torch.zeros(6), domain=DOMAIN), generator=torch.Generator())


def _risks(model, batch):
    losses = F.cross_entropy(model(batch.x), batch.y, reduction="none")
    return torch.stack([losses[batch.domain == d].mean() for d in (2, 4, 7)])


def test_group_dro_hand_value():
    found = reweigh(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 3.0]), eta=0.5)
    ratio = math.exp(0.5 * (3 - 1))
    assert torch.allclose(found, torch.tensor([1 / (1 + ratio), ratio / (1 + ratio)]))


def test_group_dro_weighs_the_risks():
    model, batch, task = _world()
    method = _set_up("group-dro", model, task, eta=1.0)
    risks = _risks(model, batch)
    for _ in range(2):
        weights = reweigh(method.weights, risks.detach(), 1.0)
        assert torch.allclose(method.loss(model, batch), (weights * risks).sum())
        assert torch.allclose(method.weights, weights)


def test_group_dro_leaves_absent_domains_their_share():
    model, batch, task = _world()
    method = _set_up("group-dro", model, task, eta=1.0)
    method.loss(model, om.Batch(batch.x[:2], batch.y[:2], torch.tensor([2, 2])))
    assert method.weights[1] == method.weights[2] < method.weights[0]


def test_vrex_is_mean_and_variance_of_the_risks():
    model, batch, task = _world()
    method = _set_up("vrex", model, task, weight=10.0, anneal=1)
    risks = _risks(model, batch)
    variance = (risks - risks.mean()).square().mean()
    assert torch.allclose(method.loss(model, batch), risks.mean() + variance)
    method.after_step()
    assert torch.allclose(method.loss(model, batch), (risks.mean() + 10 * variance) / 10)


def test_irm_penalty_is_the_product_of_the_slopes_on_two_halves():
    output = torch.tensor([[1.0, -1.0], [0.5, 2.0], [3.0, 0.0]], requires_grad=True)
    y = torch.tensor([0, 0, 1])
    losses, penalty = irm_penalty(output, y, torch.full((1, 3), 1 / 3), om.Classification(2))
    assert torch.allclose(losses, F.cross_entropy(output, y, reduction="none"))
    p = output.softmax(1)
    slope = ((p - F.one_hot(y, 2)) * output).sum(1)  # d/ds of the cross-entropy of s * output at s = 1
    assert torch.allclose(penalty, slope[[0, 2]].mean() * slope[1])
    (grad,) = torch.autograd.grad(penalty.sum(), output)
    assert grad.abs().sum() > 0


def test_irm_is_for_regression_too():
    output, y = torch.tensor([[2.0], [3.0]]), torch.tensor([1.0, 5.0])
    _, penalty = irm_penalty(output, y, torch.full((1, 2), 0.5), om.Regression(1))
    assert torch.allclose(penalty, torch.tensor([2 * (2 - 1) * 2.0 * 2 * (3 - 5) * 3.0]))


def test_a_batch_without_domains_or_with_unknown_ones_is_refused():
    model, batch, task = _world()
    method = _set_up("vrex", model, task)
    with pytest.raises(ValueError, match="VREx needs the domain of every sample"):
        method.loss(model, (batch.x, batch.y))
    with pytest.raises(ValueError, match=r"the batch holds domain 3, the training table \[2, 4, 7\]"):
        method.loss(model, om.Batch(batch.x[:1], batch.y[:1], torch.tensor([3])))


def test_elsewhere_than_on_the_cpu_unknown_domains_are_refused_a_little_later(monkeypatch):
    monkeypatch.setattr("omnimix.domains.generalize.base.AT_ONCE", ())
    model, batch, task = _world()
    method = _set_up("vrex", model, task)
    strange = om.Batch(batch.x[:3], batch.y[:3], torch.tensor([2, 3, 9]))
    for step in range(9):
        method.loss(model, strange if step == 4 else batch)
        if step == 7:
            with pytest.raises(ValueError, match=r"the batch holds domain 3, the training table \[2, 4, 7\]"):
                method.after_step()
        else:
            method.after_step()
    method.after_epoch()
    method.loss(model, strange)
    with pytest.raises(ValueError, match="the batch holds domain 3"):
        method.after_epoch()


@pytest.mark.parametrize("name", ["vrex", "irm", "idgm", "coral", "mmd", "fish", "drm", "udim", "group-dro"])
def test_domains_that_a_batch_lacks_do_not_count(name):
    """The loss is that of a training set without them."""
    parameters = {"vrex": {"anneal": 0}, "irm": {"anneal": 0}, "udim": {"warmup": 0.0}, "group-dro": {"eta": 1e-9}}
    losses, (linear, batch, task) = [], _world()
    model = nn.Sequential(linear)
    for domains in (DOMAIN, torch.tensor([2, 4, 2, 4, 2, 4])):
        method = om.create(name, **parameters.get(name, {}))
        method.setup(model, task, om.Table(domain=domains), generator=torch.Generator().manual_seed(0))
        losses.append(method.loss(model, om.Batch(batch.x[:5], batch.y[:5], DOMAIN[:5])))
    scale = 1.5 if name == "group-dro" else 1.0  # whose absent domains keep their weight
    assert torch.allclose(losses[0] * scale, losses[1], rtol=1e-4)
    gradients = [torch.autograd.grad(loss, linear.weight)[0] for loss in losses]
    assert torch.allclose(gradients[0] * scale, gradients[1], rtol=1e-3, atol=1e-5)
