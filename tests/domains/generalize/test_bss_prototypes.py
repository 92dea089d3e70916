"""BSS with SwAV and MSN: hand values, a NumPy oracle in 64 bits, limits, and learning beside the network."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import omnimix as om
from omnimix.domains.generalize.bss_prototypes import (
    cosines,
    hide_patches,
    masked_match,
    sinkhorn_codes,
    swapped_prediction,
)
from omnimix.testing import check_method


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


SCORE, OTHER = (torch.rand(3, 5, 4, generator=draw(seed), dtype=torch.float64) * 2 - 1 for seed in (1, 2))
EYE = torch.eye(2).expand(2, 2, 2)


def softmax(value):
    e = np.exp(value - value.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def codes(score, epsilon, iterations):
    """The authors' order: prototypes in rows, sums 1 / K and 1 / N."""
    q = np.exp(score / epsilon).T
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(1, keepdims=True) * len(q)
        q /= q.sum(0, keepdims=True) * q.shape[1]
    return (q * q.shape[1]).T


def test_hand_values():
    assert sinkhorn_codes(EYE, 0.5)[0, 0].tolist() == pytest.approx([0.880797, 0.119203], abs=1e-6)
    assert swapped_prediction(EYE, 0.5, 0.5).item() == pytest.approx(0.365334, abs=1e-6)
    assert masked_match(EYE, EYE, 0.5, 0.25).item() == pytest.approx(0.162900 - math.log(2), abs=1e-6)
    assert masked_match(EYE, EYE, 0.5, 0.25, entropy=0.0).item() == pytest.approx(0.162900, abs=1e-6)


@pytest.mark.parametrize("iterations", [1, 3])
def test_swav_against_numpy(iterations):
    score = SCORE.numpy()
    wanted, pairs = 0.0, 0
    for v in range(3):
        q = codes(score[v], 0.3, iterations)
        assert np.allclose(sinkhorn_codes(SCORE, 0.3, iterations)[v].numpy(), q, atol=1e-12)
        for w in range(3):
            if v != w:
                wanted, pairs = wanted - (q * np.log(softmax(score[w] / 0.2))).sum(1).mean(), pairs + 1
    assert swapped_prediction(SCORE, 0.2, 0.3, iterations).item() == pytest.approx(wanted / pairs, rel=1e-12)


def test_msn_against_numpy():
    score, target = SCORE.numpy(), OTHER.numpy()
    match, spread = [], []
    for v in range(3):
        p = softmax(score[v] / 0.2)
        mean = p.mean(0)
        spread.append(-(mean * np.log(mean)).sum())
        match += [-(softmax(target[w] / 0.1) * np.log(p)).sum(1).mean() for w in range(3) if w != v]
    wanted = np.mean(match) - 0.7 * np.mean(spread)
    assert masked_match(SCORE, OTHER, 0.2, 0.1, 0.7).item() == pytest.approx(wanted, rel=1e-12)


def test_limits():
    balanced = sinkhorn_codes(SCORE, 0.3, 500)
    assert torch.allclose(balanced.sum(dim=2), torch.ones(3, 5, dtype=torch.float64))
    assert torch.allclose(balanced.sum(dim=1), torch.full((3, 4), 5 / 4, dtype=torch.float64))
    level = torch.zeros(2, 3, 7)
    assert swapped_prediction(level).item() == pytest.approx(math.log(7))  # nothing known
    assert masked_match(level, level).item() == pytest.approx(0.0, abs=1e-6)
    shifted = SCORE + torch.randn(3, 1, 4, generator=draw(), dtype=torch.float64)  # a style all images of a view share
    assert torch.allclose(sinkhorn_codes(shifted, 0.3, 1), sinkhorn_codes(SCORE, 0.3, 1))
    assert not torch.allclose(sinkhorn_codes(shifted.flatten(0, 1), 0.3), sinkhorn_codes(SCORE.flatten(0, 1), 0.3))
    assert torch.isfinite(swapped_prediction(40 * SCORE.float(), 0.1, 0.01))


def test_targets_are_constants():
    score, target = SCORE.clone().requires_grad_(), OTHER.clone().requires_grad_()
    masked_match(score, target).backward()
    assert target.grad is None
    code = sinkhorn_codes(SCORE)
    swapped_prediction(score.detach().requires_grad_()).backward()
    own = SCORE.clone().requires_grad_()
    swapped_prediction(own).backward()
    p = (SCORE / 0.1).softmax(dim=2)
    others = (code.sum(dim=0, keepdim=True) - code) / 2
    assert torch.allclose(own.grad, (p - others) / (0.1 * 3 * 5))


def test_hidden_patches():
    x = torch.ones(6, 2, 7, 9)
    found = hide_patches(x, 0.5, 3, draw())
    assert torch.equal(found[:, 0], found[:, 1])
    corners = found[:, 0, ::3, ::3]
    assert corners.flatten(1).sum(1).tolist() == [9 - 4] * 6  # round(0.5 * 9) of 3 x 3
    grown = corners.repeat_interleave(3, 1).repeat_interleave(3, 2)[:, :7, :9]
    assert torch.equal(found[:, 0], grown)
    assert len(corners.flatten(1).unique(dim=0)) > 1
    assert torch.equal(hide_patches(x, 0.0, 3, draw()), x)
    assert hide_patches(torch.ones(2, 1, 4, 5, 6), 0.5, 2, draw()).shape == (2, 1, 4, 5, 6)
    small = hide_patches(torch.ones(1, 1, 28, 30), 0.15, None, draw())[0, 0]
    assert torch.equal(small[::2, ::2], small[1::2, 1::2])  # patches of side 2
    assert (small[::2, ::2] == 0).sum() == round(0.15 * 14 * 15)
    with pytest.raises(ValueError, match="hides nothing"):
        hide_patches(x, 0.15, 16, draw())


X, Y = torch.rand(8, 3, 6, 9, generator=draw()), torch.arange(8) % 3


def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(168, 3))


def train(name, steps, **parameters):
    model = net()
    method = om.create(name, prototypes=5, **parameters)
    method.setup(model, om.Classification(3), steps=10, generator=draw())
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.05), []
    for _ in range(steps):
        losses.append(method.step(model, om.Batch(X, Y), optimizer).item())
        method.after_step()
    return model, method, losses


@pytest.mark.parametrize("name", ["bss-swav", "bss-msn"])
def test_network_and_prototypes_learn_without_labels(name):
    model, method, losses = train(name, 1, labels=False)
    before = [p.detach().clone() for p in method.side.modules.parameters()]
    model, method, losses = train(name, 30, labels=False)
    (prototypes,) = method.side.modules.parameters()
    assert prototypes.shape == (5, 168)
    assert not torch.equal(before[0], prototypes)
    assert not torch.equal(net()[0].weight, model[0].weight)
    assert torch.equal(net()[4].weight, model[4].weight)  # the head is not asked
    assert sum(losses[-5:]) < sum(losses[:5])


def test_the_loss_joins_labels_and_the_part():
    model, method, _ = train("bss-swav", 0, weight=0.3)
    twin = train("bss-swav", 0, weight=0.3)[1]
    loss = method.loss(model, om.Batch(X, Y))
    z = torch.stack([model[:4](v) for v in [torch.cat([twin.view(X), twin.view(X)])]]).reshape(2, 8, -1)
    scores = cosines(z, method.side.modules["prototypes"].weight)
    plain = nn.functional.cross_entropy(model[4](z.flatten(0, 1)), torch.cat((Y, Y)))
    assert torch.allclose(loss, plain + 0.3 * swapped_prediction(scores), atol=1e-5)


def test_the_target_follows_the_network_more_and_more_slowly():
    model = net()
    method = om.create("bss-msn", prototypes=5, momentum=0.5)
    method.setup(model, om.Classification(3), steps=10, generator=draw())
    start, own = model[0].weight.detach().clone(), method.teacher[0].weight
    with torch.no_grad():
        model[0].weight.add_(1.0)
    method.after_step()  # 0.5 + 0.5 / 10
    assert torch.allclose(own - start, torch.full_like(start, 0.45))
    for _ in range(20):
        method.after_step()
    now = own.clone()
    method.after_step()
    assert torch.equal(own, now)
    assert not method.teacher.training


@pytest.mark.parametrize("name", ["bss-swav", "bss-msn"])
def test_contract(name):
    assert len(check_method(name, prototypes=4, views=3, jitter=0.4)) >= 10


def test_masks_in_the_contract():
    check_method("bss-msn", prototypes=4, patch=2, hide=0.5)


def test_refusals():
    for name, values in (
        ("bss-swav", {"prototypes": 1, "temperature": 0.0, "epsilon": 0.0, "iterations": 0, "views": 1}),
        ("bss-msn", {"sharp": 0.0, "entropy": -1.0, "hide": 1.0, "patch": 0, "momentum": 1.5}),
    ):
        for argument, value in values.items():
            with pytest.raises(ValueError, match=argument):
                om.create(name, **{argument: value})
    with pytest.raises(ValueError, match="steps"):
        om.create("bss-msn").setup(net(), om.Classification(3))
