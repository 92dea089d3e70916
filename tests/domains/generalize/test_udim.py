"""UDIM: the card's hand value, loops over samples, finite differences, and SAM as its limit."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import omnimix as om
from omnimix.core.weights import replaced
from omnimix.domains.generalize.udim import inconsistency, moved
from omnimix.testing import check_method
from omnimix.train import Budget, Data, Part, fit


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def test_hand_value():
    """A head W = 0 for two classes, features 1 (class 0) and 3 (class 1), moved to 2 and 6."""
    delta = torch.tensor([[-0.5, 0.5], [0.5, -0.5]])
    z, far, share = torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [6.0]]), torch.full((1, 2), 0.5)
    assert inconsistency(delta, z, delta, far, share, bias=False).item() == pytest.approx(2.640625 + 5)
    assert inconsistency(delta, z, delta, z, share, bias=False).item() == pytest.approx(1.25)


class Net(nn.Module):
    def __init__(self, bias=True, norm=False, drop=0.0):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6) if norm else nn.Identity(), nn.Tanh())
        self.drop, self.head = nn.Dropout(drop), nn.Linear(6, 3, bias=bias)

    def forward(self, x):
        return self.head(self.drop(self.body(x)))


def net(**parameters):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net(**parameters).double()


X = torch.randn(7, 4, generator=draw(), dtype=torch.float64)
Y, DOMAIN = torch.tensor([0, 1, 2, 0, 1, 2, 0]), torch.tensor([3, 3, 3, 3, 8, 8, 8])
BATCH = om.Batch(X, Y, DOMAIN)


def make(model, **parameters):
    table = om.Table(domain=torch.tensor([3, 8, 9]))
    return om.create("udim", **{"warmup": 0.0, **parameters}).setup(
        model, om.Classification(3), table, generator=draw()
    )


def per_sample(model, x, y):
    """The gradients by weight and bias of the head, one backward pass a sample."""
    rows = []
    for i in range(len(x)):
        loss = F.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        grads = torch.autograd.grad(loss, list(model.head.parameters()), create_graph=True)
        rows.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(rows)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("centre", ["source", "own"])
def test_inconsistency_against_a_loop_of_backward_passes(bias, centre):
    model = net(bias=bias)
    far = X + 0.3 * torch.randn(7, 4, generator=draw(1), dtype=torch.float64)
    expected = 0.0
    for d in (3, 8):
        rows = d == DOMAIN
        one, two = per_sample(model, X[rows], Y[rows]), per_sample(model, far[rows], Y[rows])
        v = (one - one.mean(0)).square().mean(0)
        w = (two - (one if centre == "source" else two).mean(0)).square().mean(0)
        middle = (v + w) / 2
        expected = expected + ((v - middle).square().mean() + (w - middle).square().mean()) / 2
        expected = expected + two[:, :18].square().sum(1).mean() / 18
        expected = expected + (two[:, 18:].square().sum(1).mean() / 3 if bias else 0)
    z, output = model.body(torch.cat((X, far))), model(torch.cat((X, far)))
    (delta,) = torch.autograd.grad(F.cross_entropy(output, Y.repeat(2), reduction="sum"), output, create_graph=True)
    share = torch.stack([(d == DOMAIN) / (d == DOMAIN).sum() for d in (3, 8)]).double()
    found = inconsistency(delta[:7], z[:7], delta[7:], z[7:], share, bias=bias, centre=centre).sum()
    assert torch.allclose(found, expected)
    for name, p in model.named_parameters():
        a, b = (torch.autograd.grad(v, p, retain_graph=True)[0] for v in (found, expected))
        assert torch.allclose(a, b, atol=1e-10), name


def test_order_within_halves_does_not_matter():
    values = [torch.randn(7, n, generator=draw(n), dtype=torch.float64) for n in (3, 5, 3, 5)]
    share = torch.full((1, 7), 1 / 7, dtype=torch.float64)
    order, other = torch.randperm(7, generator=draw()), torch.randperm(7, generator=draw(1))
    shuffled = [values[0][order], values[1][order], values[2][other], values[3][other]]
    assert torch.allclose(inconsistency(*values, share), inconsistency(*shuffled, share))


def score(model, x, rho=0.05):
    loss = F.cross_entropy(model(x), Y)
    grads = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    return loss + rho * torch.cat([g.flatten() for g in grads]).norm()


def variables(method, model, x, rho=0.05):
    given, styled = method._variables(x)
    loss = F.cross_entropy(model(given), Y)
    grads = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    return method._worse(loss, grads, given, styled)


def test_inputs_climb_loss_and_sharpness_by_finite_differences():
    model, method = net(), make(net(), rho=2.0, step=0.1)
    x = variables(method, model, X)
    gradient, h = torch.zeros_like(X), 1e-5
    for i in range(7):
        for j in range(4):
            up = torch.zeros_like(X)
            up[i, j] = h
            gradient[i, j] = (score(model, X + up, 2.0) - score(model, X - up, 2.0)).detach() / (2 * h)
    assert torch.allclose(x, X + 0.1 * F.normalize(gradient, dim=1), atol=1e-6)
    alone = torch.autograd.grad(F.cross_entropy(model(X.requires_grad_()), Y), X)[0]
    X.requires_grad_(False)
    assert not torch.allclose(x, X + 0.1 * F.normalize(alone, dim=1), atol=1e-3)


@pytest.mark.parametrize("style", [False, True])
def test_moved_inputs_are_worse(style):
    better = 0
    for seed in range(40):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            flat = nn.Flatten()
            model = nn.Sequential(flat, nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        x = torch.randn(7, 4, 2, 2, generator=draw(seed), dtype=torch.float64)
        found = variables(make(model, style=style, step=0.05), model, x)
        better += bool(score(model, found) > score(model, x))
        if not style:
            assert torch.allclose((found - x).flatten(1).norm(dim=1), torch.full((7,), 0.05).double(), atol=1e-5)
    assert better > 38


def test_steps_over_the_batch():
    gradient = torch.randn(5, 3, generator=draw())
    found = moved(torch.zeros(5, 3), gradient, 2.0, "batch")
    assert torch.allclose(found, 2 * F.normalize(gradient, dim=0))
    assert torch.equal(moved(torch.ones(5, 3), torch.zeros(5, 3), 2.0), torch.ones(5, 3))


@pytest.mark.parametrize("parameters", [{"lam": 0.0}, {"warmup": 1.0}])
def test_sam_is_the_limit_to_the_bit(parameters):
    sam, udim = net(norm=True, drop=0.3), net(norm=True, drop=0.3)
    for model, method in (
        (sam, om.create("sam").setup(sam, om.Classification(3), generator=draw())),
        (
            udim,
            om.create("udim", **{"warmup": 0.0, **parameters}).setup(
                udim, om.Classification(3), om.Table(domain=DOMAIN), steps=10, generator=draw()
            ),
        ),
    ):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            for _ in range(5):
                method.step(model, BATCH, optimizer)
                method.after_step()
    for a, b in zip(sam.state_dict().values(), udim.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_the_loss_by_its_equation():
    model, method = net(), make(net(), lam=0.7, step=0.2)
    method.setup(model, om.Classification(3), om.Table(domain=DOMAIN))
    x = variables(method, model, X).detach()
    grads = torch.autograd.grad(F.cross_entropy(model(X), Y), list(model.parameters()))
    norm = torch.cat([g.flatten() for g in grads]).norm()
    up = copy.deepcopy(model)
    with torch.no_grad():
        for p, g in zip(up.parameters(), grads, strict=True):
            p.add_(0.05 * g / norm)
    z, output = model.body(torch.cat((X, x))), model(torch.cat((X, x)))
    (delta,) = torch.autograd.grad(F.cross_entropy(output, Y.repeat(2), reduction="sum"), output, create_graph=True)
    share = torch.stack([(d == DOMAIN) / (d == DOMAIN).sum() for d in (3, 8)]).double()
    inner = inconsistency(delta[:7], z[:7], delta[7:], z[7:], share).sum()
    found = method.loss(model, BATCH)
    assert torch.allclose(found, F.cross_entropy(up(X), Y) + 0.7 * inner)
    found.backward()
    F.cross_entropy(up(X), Y).backward()
    wanted = torch.autograd.grad(inner, list(model.parameters()))
    for p, q, w in zip(model.parameters(), up.parameters(), wanted, strict=True):
        assert torch.allclose(p.grad, q.grad + 0.7 * w)


def test_no_step_leaves_everything_and_statistics_move_once():
    model, twin = net(norm=True), net(norm=True)
    method = make(model)
    method.step(model, BATCH, torch.optim.SGD(model.parameters(), lr=0.0))
    assert all(map(torch.equal, model.parameters(), twin.parameters()))
    twin(X)
    assert torch.allclose(model.body[1].running_mean, twin.body[1].running_mean)
    assert model.body[1].num_batches_tracked == 1


def test_weights_are_replaced_and_come_back():
    shared = nn.Linear(2, 2)
    model = nn.Sequential(shared, nn.Tanh(), shared)
    x, weight = torch.ones(1, 2), shared.weight
    names = [n for n, _ in model.named_parameters()]
    with replaced(model, [(weight, 2 * weight)]):
        found = model(x)
    assert torch.allclose(found, F.linear(torch.tanh(F.linear(x, 2 * weight, shared.bias)), 2 * weight, shared.bias))
    found.sum().backward()
    assert weight.grad is not None
    assert model[2].weight is weight
    assert [n for n, _ in model.named_parameters()] == names
    with pytest.raises(ZeroDivisionError), replaced(model, [(weight, 2 * weight)]):
        raise ZeroDivisionError
    assert model[0].weight is weight


def test_in_the_loop():
    data = Data(Part(X.float(), Y, DOMAIN), Part(X.float(), Y, DOMAIN), None, om.Classification(3))
    model = net(norm=True).float()
    result = fit(om.create("udim"), model, data, Budget(epochs=3, batch_size=3, lr=0.01), seed=0)
    assert len(result.history) == 3


def test_contract():
    assert len(check_method("udim")) >= 10
    check_method("udim", warmup=0.0, norm="batch", centre="own")


def test_refusals():
    for name, value in (("rho", 0.0), ("lam", -1.0), ("step", -1.0), ("warmup", 2.0), ("norm", "all"), ("centre", 0)):
        with pytest.raises(ValueError, match=name):
            om.create("udim", **{name: value})
    with pytest.raises(ValueError, match="planned steps"):
        make(net(), warmup=0.2)
    with pytest.raises(ValueError, match="linear head"):
        om.create("udim", warmup=0.0).setup(
            model := nn.Sequential(nn.Linear(4, 3), nn.Tanh()),
            om.Classification(3),
            om.Table(domain=DOMAIN),
            split=om.split(model, head="1"),
        )
