"""Inter-domain mixup: who meets whom, one lam a domain, and agreement with DomainBed's Mixup under its draws."""

import pytest
import torch
from torch import nn

import omnimix as om
from omnimix.domains.generalize import inter_domain_mixup
from omnimix.domains.generalize.inter_domain_mixup import NextDomain
from omnimix.testing import check_method


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def pair(domain, seed=0):
    count = len(domain)
    return NextDomain()(om.Batch(torch.zeros(count, 1), torch.zeros(count), torch.tensor(domain)), draw(seed))[:, 1]


def test_ranks_meet_in_the_next_domain():
    domain = torch.tensor([7, 3, 7, 5, 3, 7, 5, 3, 7])  # 3: rows 1 4 7, 5: rows 3 6, 7: rows 0 2 5 8
    seen = set()
    for seed in range(20):
        partner = pair(domain.tolist(), seed)
        to = {int(d): {int(e) for e in domain[partner[domain == d]]} for d in (3, 5, 7)}
        assert all(len(others) == 1 and d not in others for d, others in to.items())
        assert set.union(*to.values()) == {3, 5, 7}  # a ring
        seen.add(to[3].pop())
        if domain[partner[1]] == 5:
            assert partner[[1, 4, 7]].tolist() == [3, 6, 3]
            assert partner[[3, 6]].tolist() == [0, 2]
            assert partner[[0, 2, 5, 8]].tolist() == [1, 4, 7, 1]
    assert seen == {5, 7}


def test_a_table_of_more_domains_than_the_batch_changes_nothing_but_the_draws():
    domain = torch.tensor([7, 3, 7, 5, 3, 7, 5, 3, 7])
    batch = om.Batch(torch.zeros(9, 1), torch.zeros(9), domain)
    known, rings = NextDomain(), set()
    known.prepare(om.Table(domain=torch.arange(12)), draw())
    alike = NextDomain()
    alike.prepare(om.Table(domain=torch.tensor([3, 5, 7])), draw())
    for seed in range(20):
        partner = known(batch, draw(seed))[:, 1]
        assert torch.equal(partner, NextDomain()(batch, draw(seed))[:, 1])  # 9 places either way
        rings.add(int(domain[partner[1]]))
        assert len(set(domain[alike(batch, draw(seed))[:, 1]].tolist())) == 3
    assert rings == {5, 7}


def test_two_domains_swap_and_one_stays():
    assert pair([0, 0, 1, 1]).tolist() == [2, 3, 0, 1]
    assert pair([4, 4, 4]).tolist() == [0, 1, 2]
    assert pair([4]).tolist() == [0]


def make(model, **parameters):
    method = om.create("inter-domain-mixup", **parameters)
    return method.setup(model, om.Classification(3), om.Table(domain=torch.arange(3)), generator=draw(1))


def test_one_share_a_domain():
    method, domain = make(nn.Linear(2, 3), alpha=1.0), torch.tensor([0, 1, 2, 0, 1, 2, 2])
    share = method.recipe(om.Batch(torch.zeros(7, 2), torch.zeros(7).long(), domain)).share[:, 0]
    assert all(len(share[domain == d].unique()) == 1 for d in range(3))
    assert len(share.unique()) == 3


def test_agrees_with_domainbed_under_its_draws(monkeypatch):
    """1.3189777135849 was printed by DomainBed's class for these weights, order of domains and lam."""
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 3))
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            k, i = (1, i) if i < 6 else (7, i - 6)
            p.copy_(0.5 * torch.sin(torch.arange(p.numel()) * (k + i) + i).view(p.shape))
    x, domain = torch.sin(torch.arange(36.0) * 1.3).view(12, 3), torch.arange(3).repeat_interleave(4)
    y = torch.tensor([0, 1, 2, 0, 1, 1, 2, 0, 0, 1, 2, 2])
    lam = torch.tensor([0.22159000690562608, 0.05650928571692141, 0.0755411717084825])[torch.tensor([1, 0, 2])]
    method = make(net)
    monkeypatch.setattr(inter_domain_mixup, "permutation", lambda n, generator: torch.tensor([1, 0, 2]))
    method.draw_share = lambda rows, k: torch.stack((lam, 1 - lam), dim=1)
    assert method.loss(net, om.Batch(x, y, domain)).item() == pytest.approx(1.3189777135849, abs=1e-6)


def test_contract_and_refusals():
    assert len(check_method("inter-domain-mixup")) >= 10
    with pytest.raises(ValueError, match="alpha"):
        om.create("inter-domain-mixup", alpha=0.0)
    model = nn.Linear(2, 3)
    with pytest.raises(ValueError, match="domain of every sample"):
        make(model).loss(model, (torch.zeros(2, 2), torch.zeros(2).long()))
    with pytest.raises(ValueError, match="only 3 of them"):
        make(model).loss(model, om.Batch(torch.zeros(4, 2), torch.zeros(4).long(), torch.arange(4)))
