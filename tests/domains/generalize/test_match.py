"""CORAL and MMD against loops over pairs of domains."""

import pytest
import torch
from torch import nn

import omnimix as om
from omnimix.domains.generalize.match import WIDTHS, coral_distance, mmd_distance

DOMAIN = torch.tensor([0, 1, 0, 2, 1, 0, 2])


def _shares():
    member = torch.nn.functional.one_hot(DOMAIN).T.double()
    return member / member.sum(1, keepdim=True)


def _coral(a, b):
    return (a.mean(0) - b.mean(0)).square().mean() + (torch.cov(a.T) - torch.cov(b.T)).square().mean()


def _mmd(a, b):
    def mean(p, q):
        square = (p[:, None] - q[None]).square().sum(-1)
        return sum(torch.exp(-w * square) for w in WIDTHS).mean()

    return mean(a, a) + mean(b, b) - 2 * mean(a, b)


@pytest.mark.parametrize(("distance", "naive"), [(coral_distance, _coral), (mmd_distance, _mmd)])
def test_distances_agree_with_a_loop_over_pairs(distance, naive):
    z = torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = distance(z, _shares())
    for d in range(3):
        for e in range(3):
            assert torch.allclose(found[d, e], naive(z[d == DOMAIN], z[e == DOMAIN]), atol=1e-12)


@pytest.mark.parametrize("name", ["coral", "mmd"])
def test_loss_adds_the_mean_distance_of_pairs(name):
    draw = torch.Generator().manual_seed(2)
    x, y = torch.randn(7, 4, generator=draw), torch.randint(3, (7,), generator=draw)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    plain, double = (
        om.create(name, gamma=g).setup(model, om.Classification(3), om.Table(domain=DOMAIN)) for g in (0.0, 2.0)
    )
    batch = om.Batch(x, y, DOMAIN)
    z = model[1](model[0](x))
    naive = {"coral": _coral, "mmd": _mmd}[name]
    pairs = [naive(z[d == DOMAIN], z[e == DOMAIN]) for d, e in ((0, 1), (0, 2), (1, 2))]
    assert torch.allclose(double.loss(model, batch) - plain.loss(model, batch), 2 * sum(pairs) / 3, atol=1e-5)


def test_one_domain_has_nothing_to_match():
    z = torch.randn(3, 2)
    assert coral_distance(z, torch.full((1, 3), 1 / 3)).item() == 0


@pytest.mark.parametrize("name", ["coral", "mmd", "bss"])
def test_the_pass_goes_through_the_module_that_is_given(name):
    """Fabric's wrappers cast and reduce: a pass that goes round them is another training."""

    class Wrapper(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network, self.calls = network, 0

        def forward(self, x):
            self.calls += 1
            return self.network(x)

    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    wrapper = Wrapper(network)
    domain = torch.tensor([0, 0, 1, 1])
    method = om.create(name).setup(
        network, om.Classification(2), om.Table(domain=domain, label=torch.tensor([0, 1, 0, 1])),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    method.loss(wrapper, om.Batch(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 0, 1]), domain))
    assert wrapper.calls == 1
