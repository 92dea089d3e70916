"""Measures over domains: hand values, brute-force loops on tiny inputs, and their limits."""

import itertools
import math

import pytest
import torch
from torch import nn

from omnimix.core.divergence import js_divergence
from omnimix.domains.measure import (
    colour_histograms,
    domain_gradients,
    domain_purity,
    group_means,
    h_score,
    icv,
    idd,
    idd_floor,
    idd_interval,
    linear_domain_accuracy,
    mean_pairwise_cosine,
    oscr,
    proxy_a_distance,
    r0,
    r1,
    sphere_flatness,
    worst_group,
)


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


Q = torch.rand(20, 6, generator=draw(), dtype=torch.float64)
Q = Q / Q.sum(1, keepdim=True)
LABEL = torch.randint(3, (20,), generator=draw(1))
DOMAIN = torch.arange(20) % 3 + 4


def bits(p, q):
    m = (p + q) / 2
    return float(((p * (p / m).log2()).sum() + (q * (q / m).log2()).sum()) / 2)


def test_icv_and_idd_against_loops():
    inconsistency, between = icv(Q, LABEL, DOMAIN), idd(Q, LABEL, DOMAIN)
    for i, d in enumerate((4, 5, 6)):
        cells = [[r for r in range(20) if DOMAIN[r] == d and LABEL[r] == c] for c in range(3)]
        means = [
            sum(bits(Q[a], Q[b]) for a, b in itertools.combinations(cell, 2)) / math.comb(len(cell), 2)
            for cell in cells
            if len(cell) > 1
        ]
        assert inconsistency[i].item() == pytest.approx(sum(means) / len(means))
        for j, e in enumerate((4, 5, 6)):
            found = []
            for c in range(3):
                one, two = (Q[(g == DOMAIN) & (c == LABEL)] for g in (d, e))
                if len(one) and len(two):
                    found.append(bits(one.mean(0), two.mean(0)))
            assert between[i, j].item() == pytest.approx(sum(found) / len(found), abs=1e-12)
    assert torch.equal(between, between.T)


def test_limits_of_icv_and_idd():
    same = Q[LABEL]  # images of a class identical
    assert icv(same, LABEL, DOMAIN).abs().max() < 1e-12
    renamed = torch.tensor([7, 3, 11])[LABEL]
    assert torch.allclose(icv(Q, renamed, DOMAIN), icv(Q, LABEL, DOMAIN))
    assert torch.allclose(idd(Q, renamed, DOMAIN), idd(Q, LABEL, DOMAIN))
    twice = torch.cat((torch.zeros(20), torch.ones(20))).long()
    assert idd(Q.repeat(2, 1), LABEL.repeat(2), twice).abs().max() < 1e-12
    apart = idd(torch.eye(2), torch.zeros(2).long(), torch.arange(2))
    assert apart[0, 1].item() == pytest.approx(1)
    assert torch.isnan(idd(torch.eye(2), torch.arange(2), torch.arange(2))[0, 1])
    assert torch.isnan(icv(torch.eye(2), torch.arange(2), torch.zeros(2))).all()
    for wrong in (2 * Q, Q - 0.1):
        with pytest.raises(ValueError, match="probabilities"):
            idd(wrong, LABEL, DOMAIN)


def test_large_cells_are_sampled_without_pairs_of_one_image():
    q = torch.rand(150, 4, generator=draw(2), dtype=torch.float64)
    q = q / q.sum(1, keepdim=True)
    every = torch.stack([js_divergence(q[a], q[b]) for a, b in itertools.combinations(range(150), 2)])
    found = icv(q, torch.zeros(150), torch.zeros(150), draw())
    assert found.item() == pytest.approx(every.mean().item() / math.log(2), rel=0.05)
    apart = torch.eye(100, dtype=torch.float64)  # a pair of one image would count 0
    assert icv(apart, torch.zeros(100), torch.zeros(100), draw()).item() == pytest.approx(1, abs=1e-12)


def test_floor_and_interval():
    q = torch.rand(400, 4, generator=draw(3), dtype=torch.float64)
    q[200:, 0] += 1
    q = q / q.sum(1, keepdim=True)
    label, domain = torch.arange(400) % 2, torch.arange(400) // 200
    floor, value = idd_floor(q, label, domain, draw()), idd(q, label, domain)[0, 1]
    assert (floor < 0.2 * value).all()
    low, high = idd_interval(q, label, domain, 50, draw())[:, 0, 1]
    assert 0.6 * value < low < value < high < 1.5 * value


def test_colours():
    x = torch.tensor([[[[0.1, 0.9]], [[0.6, 0.2]]]])  # two channels, two pixels
    found = colour_histograms(x, bins=2)
    assert found.tolist() == [[0, 0.5, 0.5, 0]]
    assert colour_histograms(torch.ones(1, 3, 2, 2)).argmax() == 63


def test_worst_group():
    values, group = torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.tensor([5, 5, 2, 2])
    ids, means = group_means(values, group)
    assert (ids.tolist(), means.tolist()) == ([2, 5], [1.0, 0.5])
    assert worst_group(values, group) == 0.5
    assert worst_group(values, group, higher_is_better=False) == 1.0
    with pytest.raises(ValueError, match="both be"):
        worst_group(values, group[:2])


def test_oscr_by_hand():
    known, right, unknown = torch.tensor([0.9, 0.8, 0.3]), torch.tensor([1, 0, 1]), torch.tensor([0.7, 0.2])
    assert oscr(known, right, unknown) == pytest.approx(0.5)
    assert oscr(known, torch.ones(3), torch.tensor([0.1, 0.2])) == pytest.approx(1)
    assert oscr(known, right, torch.tensor([0.1, 0.2])) == pytest.approx(2 / 3)
    assert oscr(torch.full((3,), 0.5), torch.ones(3), torch.full((2,), 0.5)) == pytest.approx(0.5)
    assert h_score(known, right, unknown, 0.5) == pytest.approx(2 * (1 / 3) * 0.5 / (1 / 3 + 0.5))
    assert h_score(known, right, unknown, 1.0) == 0
    scores = torch.rand(3, 200, generator=draw())
    assert oscr(scores[0], scores[1] < 0.6, scores[2]) <= (scores[1] < 0.6).double().mean()
    with pytest.raises(ValueError, match="none empty"):
        oscr(known, right, torch.empty(0))


def test_domains_by_features():
    z, domain = torch.randn(200, 3, generator=draw()), torch.arange(200) % 2
    assert linear_domain_accuracy(z, domain) == pytest.approx(0.5, abs=0.12)
    assert abs(proxy_a_distance(z[:100], z[100:])) < 0.5
    apart = z + 20 * domain.unsqueeze(1)
    assert linear_domain_accuracy(apart, domain) == 1
    assert proxy_a_distance(apart[domain == 0], apart[domain == 1]) == 2
    assert domain_purity(apart, domain) == 1
    assert domain_purity(z, domain) == pytest.approx(0.5, abs=0.08)
    line = torch.tensor([[0.0], [1.0], [2.1], [9.0]])
    assert domain_purity(line, torch.tensor([0, 0, 1, 1]), k=1) == pytest.approx(3 / 4)
    uneven = linear_domain_accuracy(z, (torch.arange(200) < 10).long())
    assert uneven < 0.75  # a constant answer would be right for 95 %
    with pytest.raises(ValueError, match="5 samples or more"):
        linear_domain_accuracy(z, (torch.arange(200) < 3).long())
    with pytest.raises(ValueError, match="neighbours"):
        domain_purity(line, torch.zeros(4), k=4)


def test_gradients_of_domains():
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    fixed = nn.Parameter(torch.zeros(1), requires_grad=False)
    risks = torch.stack((3 * weight[0], 4 * weight[0] + 3 * weight[1], -weight[0]))
    found = domain_gradients(risks, [weight, fixed])
    assert found.tolist() == [[3, 0], [4, 3], [-1, 0]]
    assert weight.grad is None
    assert mean_pairwise_cosine(found) == pytest.approx((0.8 - 1 - 0.8) / 3)
    assert mean_pairwise_cosine(torch.tensor([[1.0, 0], [0.0, 0]])) == 0
    with pytest.raises(ValueError, match="two gradients"):
        mean_pairwise_cosine(found[:1])


def test_flatness_of_a_quadratic():
    curve = torch.tensor([4.0, 1.0], dtype=torch.float64)
    t = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def loss():
        return (curve * t.square()).sum() / 2

    assert r0(loss, [t], 0.1, 40, draw()) == pytest.approx(4 * 0.1**2 / 2, rel=1e-3)
    assert r1(loss, [t], 0.1, 40, draw()) == pytest.approx(0.1 * 4 * 0.1, rel=1e-3)
    assert sphere_flatness(loss, [t], 0.1, 2000, draw()) == pytest.approx(0.01 / 2 * 2.5, rel=0.03)
    assert torch.equal(t, torch.zeros(2, dtype=torch.float64))
    with torch.no_grad():
        t.copy_(torch.tensor([1.0, 1.0]))
    brute = max(
        float((curve * (1 + 0.1 * torch.tensor([math.cos(a), math.sin(a)])).square()).sum() / 2)
        for a in torch.linspace(0, 2 * math.pi, 2000).tolist()
    )
    assert r0(loss, [t], 0.1, 40, draw()) == pytest.approx(brute - 2.5, rel=1e-3)
    assert t.grad is None


def test_flatness_of_a_flat_loss_is_zero():
    t = nn.Parameter(torch.ones(3))
    loss = lambda: (0 * t).sum()  # noqa: E731
    assert (r0(loss, [t]), r1(loss, [t]), sphere_flatness(loss, [t], 0.1, 3)) == (0, 0, 0)
    with pytest.raises(ValueError, match="rho"):
        r0(loss, [t], 0)
