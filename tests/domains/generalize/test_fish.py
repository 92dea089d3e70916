"""Fish and IDGM: the card's quadratics, limiting cases, and the inner product that they raise."""

import itertools

import pytest
import torch
from torch import nn

import omnimix as om
from omnimix.domains.generalize.fish import gradient_products, interpolate_state

WEIGHT, CENTRE = torch.tensor([1.0, 2.0]), torch.tensor([1.0, -2.0])


class _Quadratic(om.Regression):
    """L_1 = (w - 1)^2, L_2 = 2 (w + 2)^2 of the one weight w, that the network gives for every sample."""

    def losses(self, output, y):
        return WEIGHT[y] * (output.flatten() - CENTRE[y]) ** 2

    def mean_loss(self, output, y):
        return self.losses(output, y).mean()


class _Weight(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, x):
        return self.head(x)


def _fish(model, task, **parameters):
    method = om.create("fish", **parameters)
    return method.setup(model, task, om.Table(domain=torch.arange(2)), generator=torch.Generator().manual_seed(0))


def _one_step(order, **parameters):
    model, domain = _Weight(), torch.tensor(order)
    method = _fish(model, _Quadratic(1), shuffle=False, **parameters)
    method.group = lambda batch: torch.arange(len(batch))  # first come, first served
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method.step(model, om.Batch(torch.ones(2, 1), domain, domain), optimizer)
    return model.head.weight.item()


def test_quadratics_of_the_card():
    first, second = _one_step([0, 1], eps=1.0), _one_step([1, 0], eps=1.0)
    assert (first, second) == (pytest.approx(-0.68), pytest.approx(-0.44))
    assert (first + second) / 2 == pytest.approx(-0.6 + 0.005 * 8)
    assert _one_step([0, 1], eps=0.5) == pytest.approx(-0.34)


def test_eps_zero_keeps_weights_and_objects():
    model = _Weight()
    weight = model.head.weight
    method = _fish(model, _Quadratic(1), eps=0.0)
    domain = torch.arange(2)
    method.step(model, om.Batch(torch.ones(2, 1), domain, domain), torch.optim.SGD(model.parameters(), lr=0.1))
    assert model.head.weight is weight
    assert weight.item() == 0


def test_one_domain_is_a_damped_step():
    model = _Weight()
    method = _fish(model, _Quadratic(1), eps=0.5)
    domain = torch.zeros(2, dtype=torch.long)
    method.step(model, om.Batch(torch.ones(2, 1), domain, domain), torch.optim.SGD(model.parameters(), lr=0.1))
    assert model.head.weight.item() == pytest.approx(0.5 * 0.2)


def test_a_subset_of_the_domains_can_be_visited():
    assert _one_step([0, 1], eps=1.0, domains=1) == pytest.approx(0.2)


def test_statistics_are_interpolated_and_counters_kept():
    model = nn.BatchNorm1d(2)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    model(torch.tensor([[0.0, 2.0], [4.0, 6.0]]))
    now = model.running_mean.clone()
    interpolate_state(model, start, 0.25)
    assert torch.allclose(model.running_mean, 0.25 * now)
    assert model.num_batches_tracked.dtype == torch.long
    assert model.num_batches_tracked == 1


def _tanh_net():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=draw, dtype=torch.float64))
    return net


def _flat(tensors):
    return torch.cat([t.flatten() for t in tensors])


def test_displacement_over_all_orders_raises_the_inner_product_of_gradients():
    draw = torch.Generator().manual_seed(5)
    x = torch.randn(6, 3, generator=draw, dtype=torch.float64)
    y = torch.randn(6, 1, generator=draw, dtype=torch.float64)
    domain = torch.arange(2).repeat_interleave(3)

    def risks(net):
        return (net(x) - y).square().flatten().view(2, 3).mean(1)

    net = _tanh_net()
    wanted = _flat(torch.autograd.grad(gradient_products(risks(net), net.parameters()), list(net.parameters())))
    errors = []
    for rate in (0.02, 0.01):
        moved = []
        for order in itertools.permutations(range(2)):
            net = _tanh_net()
            start = _flat(net.parameters()).detach().clone()
            method = _fish(net, om.Regression(1), eps=1.0, shuffle=False)
            method.group = lambda batch, order=order: torch.tensor(order)[batch.domain]
            method.step(net, om.Batch(x, y, domain), torch.optim.SGD(net.parameters(), lr=rate))
            moved.append(_flat(net.parameters()).detach() - start)
        net = _tanh_net()
        plain = -rate * _flat(torch.autograd.grad(risks(net).sum(), list(net.parameters())))
        extra = torch.stack(moved).mean(0) - plain
        errors.append((extra / (rate**2 / 2) - wanted).norm() / wanted.norm())
    assert errors[0] < 0.3
    assert errors[1] < 0.6 * errors[0]


def test_equal_domains_have_the_squared_norm_as_inner_product():
    net = _tanh_net()
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    risk = net(x).square().mean()
    squares = sum(g.square().sum() for g in torch.autograd.grad(risk, list(net.parameters()), retain_graph=True))
    assert torch.allclose(gradient_products(torch.stack((risk, risk)), net.parameters()), squares)


def test_idgm_is_risk_less_inner_products():
    net = _tanh_net()
    draw = torch.Generator().manual_seed(7)
    x = torch.randn(6, 3, dtype=torch.float64, generator=draw)
    y = torch.randn(6, 1, dtype=torch.float64, generator=draw)
    domain = torch.arange(3).repeat(2)
    method = om.create("idgm", gamma=0.5).setup(net, om.Regression(1), om.Table(domain=domain))
    losses = (net(x) - y).square().flatten()
    risks = torch.stack([losses[domain == d].mean() for d in range(3)])
    grads = [_flat(torch.autograd.grad(r, list(net.parameters()), retain_graph=True)) for r in risks]
    products = torch.stack([grads[a] @ grads[b] for a, b in ((0, 1), (0, 2), (1, 2))]).mean()
    assert torch.allclose(method.loss(net, om.Batch(x, y, domain)), risks.mean() - 0.5 * products)


def test_three_steps_of_adam_agree_with_domainbed():
    """Its class Fish at b93c22a with Adam of rate 0.05, weight decay 0.1 and meta_lr 0.5."""
    net = nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh()), nn.Linear(4, 3))
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(0.5 * torch.sin(torch.arange(p.numel()) * 1.7 + i).view(p.shape))
    x, domain = torch.sin(torch.arange(36.0) * 1.3).view(12, 3), torch.arange(3).repeat_interleave(4)
    y = torch.tensor([0, 1, 2, 0, 1, 1, 2, 0, 0, 1, 2, 2])
    method = om.create("fish", eps=0.5, shuffle=False)
    method.setup(net, om.Classification(3), om.Table(domain=domain))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05, weight_decay=0.1)
    for t in range(3):
        method.step(net, om.Batch(x + t, y, domain), optimizer)
        method.after_step()
    wanted = {
        "0.0.weight": [-0.04172069, 0.27539098, -0.00874932, -0.24199624, 0.13310969, 0.18299654],
        "0.0.bias": [0.20302708, 0.01433436, -0.25679964, 0.01633991],
        "0.1.weight": [0.39368221, -0.28792292, -0.18021034, 0.20681915],
        "0.1.bias": [0.13371691, -0.40725446, -0.01876348, 0.43784261],
        "0.1.running_mean": [0.20516841, 0.07472359, -0.13670591, -0.101611],
        "0.1.running_var": [0.67272401, 0.72208786, 0.71464354, 0.67604363],
        "1.weight": [-0.18986726, -0.32973945, 0.32871822, 0.04790732, -0.56426412, 0.05408772],
        "1.bias": [-0.32180619, 0.10763207, 0.28585082],
    }
    state = net.state_dict()
    for name, values in wanted.items():
        assert state[name].flatten()[: len(values)].tolist() == pytest.approx(values, abs=2e-6), name


def test_a_batch_holds_the_domains_that_a_step_visits():
    domain = torch.arange(40) % 5
    method = om.create("fish", domains=2)
    method.setup(_Weight(), om.Regression(1), om.Table(domain=domain))
    batches = method.batches(8, 30, torch.Generator().manual_seed(0))
    assert all(torch.unique(domain[batch], return_counts=True)[1].tolist() == [4, 4] for batch in batches)
    assert set(torch.unique(domain[torch.cat(batches)]).tolist()) == set(range(5))
    assert om.create("fish").batches(8, 30, torch.Generator()) is None
