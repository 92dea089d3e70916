import itertools

import pytest
import torch

from omnimix.samples.operation.solver import sinkhorn


def test_masses_are_kept():
    g = torch.Generator().manual_seed(0)
    cost = torch.rand(4, 5, 7, generator=g)
    a, b = torch.rand(4, 5, generator=g).softmax(1), torch.rand(4, 7, generator=g).softmax(1)
    plan = sinkhorn(cost, 0.1, 200, a=a, b=b)
    torch.testing.assert_close(plan.sum(dim=2), a)
    torch.testing.assert_close(plan.sum(dim=1), b)
    assert bool((plan >= 0).all())


def test_a_small_temperature_gives_the_best_assignment():
    cost = torch.rand(6, 4, 4, generator=torch.Generator().manual_seed(1))
    found = (sinkhorn(cost, 0.003, 3000) * cost).flatten(1).sum(dim=1) * 4
    orders = list(itertools.permutations(range(4)))
    best = torch.stack([cost[:, range(4), order].sum(dim=1) for order in orders]).min(dim=0).values
    torch.testing.assert_close(found, best, atol=5e-3, rtol=0)


def test_a_large_temperature_spreads_evenly():
    torch.testing.assert_close(
        sinkhorn(torch.arange(9.0).view(1, 3, 3), 1e5), torch.full((1, 3, 3), 1 / 9), atol=1e-4, rtol=0
    )


def test_gradients_reach_the_cost():
    cost = torch.rand(1, 3, 3, requires_grad=True, generator=torch.Generator().manual_seed(2))
    (sinkhorn(cost, 0.1) * cost).sum().backward()
    assert bool(cost.grad.isfinite().all())
    assert bool(cost.grad.any())


@pytest.mark.parametrize(("eps", "iterations"), [(0.0, 5), (-1.0, 5), (0.1, 0)])
def test_bad_arguments(eps, iterations):
    with pytest.raises(ValueError, match=r"eps|iterations"):
        sinkhorn(torch.ones(1, 2, 2), eps, iterations)
