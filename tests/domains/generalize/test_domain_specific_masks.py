"""DMG: hand values of the card, the authors' SuperMask on fixed numbers, limits and the three ways to predict."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import omnimix as om
from omnimix.domains.generalize.domain_specific_masks import soft_overlap, straight_through, without_dropout
from omnimix.testing import check_method
from omnimix.train import Budget, Data, Part, fit

LOGITS = torch.sin(torch.arange(15.0) * 1.9).view(3, 5)


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def test_overlap_by_hand():
    assert soft_overlap(torch.tensor([[0.5, 0.75], [0.75, 0.25]])).item() == pytest.approx(1 / 3, abs=1e-6)
    m = torch.tensor([[0.2, 0.9, 0.5]])
    assert soft_overlap(m) == 0
    equal = (m * m).sum() / (2 * m - m * m).sum()
    assert soft_overlap(m.repeat(4, 1)).item() == pytest.approx(equal.item(), abs=1e-6)
    bits = torch.tensor([[1.0, 0, 1]])
    assert soft_overlap(bits.repeat(2, 1)).item() == pytest.approx(1)
    assert soft_overlap(torch.full((2, 50), 0.62)).item() == pytest.approx(0.62**2 / (1.24 - 0.62**2), abs=1e-6)


def test_overlap_agrees_with_the_authors_class():
    logits = LOGITS.clone().requires_grad_()
    found = soft_overlap(logits.sigmoid())
    assert found.item() == pytest.approx(0.3283447325, abs=1e-6)
    assert logits.sigmoid().sum().item() == pytest.approx(7.680482864, abs=1e-5)
    wanted = [0.0147761758, 0.0118218968, 0.0120403115, 0.0131893121, 0.0119599849]
    assert torch.autograd.grad(found, logits)[0][0].tolist() == pytest.approx(wanted, abs=1e-7)


def test_straight_through():
    for u in (0.2, 0.9):
        a = torch.zeros(1, requires_grad=True)
        mask = straight_through(a.sigmoid(), torch.tensor([u]))
        assert mask.item() == float(u < 0.5)
        assert torch.autograd.grad((2 * mask).sum(), a)[0].item() == 0.5
    m = torch.tensor([0.1, 0.5, 0.9])
    mean = straight_through(m.expand(10000, 3), torch.rand(10000, 3, generator=draw())).mean(dim=0)
    assert ((mean - m).abs() < 3 * (m * (1 - m) / 10000).sqrt()).all()


class Net(nn.Module):
    taps = ("one", "two")

    def __init__(self):
        super().__init__()
        self.one, self.two, self.drop = nn.Conv2d(2, 5, 3), nn.Conv2d(5, 4, 3), nn.Dropout(0.5)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.drop(self.two(self.one(x).relu()).relu().mean((2, 3))))


X, Y = torch.randn(6, 2, 7, 8, generator=draw(2)), torch.tensor([0, 1, 2, 0, 1, 2])
DOMAIN = torch.tensor([4, 4, 5, 5, 9, 9])
BATCH = om.Batch(X, Y, DOMAIN)


def make(model, seed=0, domain=DOMAIN, **parameters):
    method = om.create("dmg", **parameters)
    method.setup(model, om.Classification(3), om.Table(domain=domain), generator=draw(seed))
    method.beside(model, X)
    return method


def masks(method):
    return [part() for part in method.side.modules.values()]


def test_widths_and_start():
    method = make(Net())
    assert [tuple(m.shape) for m in masks(method)] == [(3, 5), (3, 4)]  # inputs of `two` and of the head
    assert all((m >= 0.5).all() and (m <= 0.732).all() for m in masks(method))
    assert (masks(make(Net(), init=0.0, layers=["two"]))[0] == 0.5).all()


def test_softscale_and_greedy_by_hand():
    model = Net().eval()
    method = make(model)
    with torch.no_grad():
        method.side.modules["0"].logits.copy_(LOGITS)
    first, last = masks(method)

    def run(d, hard=False):
        a, b = (m[d] > 0.5 if hard else m[d] for m in (first, last))
        h = model.two(model.one(X).relu() * a.view(1, 5, 1, 1)).relu().mean((2, 3))
        return model.head(h * b)

    assert torch.allclose(method.predict(model, X), (run(0) + run(1) + run(2)) / 3, atol=1e-6)
    greedy = method.predict_in(model, X, DOMAIN)
    wanted = torch.cat([run(d, hard=True)[2 * d : 2 * d + 2] for d in range(3)])
    assert torch.allclose(greedy, wanted, atol=1e-6)
    assert torch.allclose(method.predict_in(model, X[:2], DOMAIN[:2]), greedy[:2], atol=1e-6)
    strangers = method.predict_in(model, X, torch.tensor([4, 4, 7, 5, 0, 9]))
    both = torch.tensor([True, True, False, True, False, True]).view(-1, 1)
    own = method.predict_in(model, X, torch.tensor([4, 4, 4, 5, 4, 9]))
    assert torch.equal(strangers, torch.where(both, own, method.predict(model, X)))
    assert torch.equal(method.predict_in(model, X, DOMAIN + 100), method.predict(model, X))
    method.predictions = "mean"
    with torch.no_grad():
        mean = torch.logit(torch.stack([m.mean(dim=0) for m in (first,)])[0])
        method.side.modules["0"].logits.copy_(mean.expand(3, 5))
    one = method.predict(model, X)
    method.predictions = "each"
    with torch.no_grad():
        method.side.modules["1"].logits.copy_(torch.logit(last.mean(dim=0)).expand(3, 4))
    assert torch.allclose(method.predict(model, X), one, atol=1e-6)  # equal masks: the mean of passes is one pass


def test_open_masks_are_plain_training_and_closed_ones_leave_the_bias():
    model = Net()
    method = make(model, init=50.0, overlap=0.0)
    with without_dropout(model):
        assert torch.allclose(method.loss(model, BATCH), F.cross_entropy(model(X), Y), atol=1e-6)
    assert model.drop.training
    model.eval()
    assert torch.allclose(method.predict(model, X), model(X), atol=1e-5)
    assert torch.allclose(method.predict_in(model, X, DOMAIN), model(X), atol=1e-5)
    closed = make(model, init=-200.0)
    assert torch.allclose(closed.predict(model, X), model.head.bias.expand(6, 3))


def test_penalties_add_over_layers():
    model = Net().train()
    seen = [make(model, overlap=o, sparsity=s).loss(model, BATCH) for o, s in ((0, 0), (2.0, 0), (0, 0.5))]
    first, last = masks(make(model))
    assert torch.allclose(seen[1] - seen[0], 2 * (soft_overlap(first) + soft_overlap(last)), atol=1e-5)
    assert torch.allclose(seen[2] - seen[0], 0.5 * (first.sum() + last.sum()), atol=1e-5)


def test_bits_are_drawn_for_every_sample_by_its_domain():
    model = nn.Sequential(nn.Identity(), nn.Linear(4, 3))
    model.taps = ()
    method = om.create("dmg", layers=["1"], overlap=0.0)
    domain = torch.arange(400) % 2
    method.setup(model, om.Classification(3), om.Table(domain=domain), generator=draw())
    x = torch.ones(400, 4)
    method.beside(model, x)
    with torch.no_grad():
        method.side.modules["0"].logits.copy_(torch.tensor([[9.0, 9, -9, -9], [0, 0, 0, 0]]))
    kept = []
    handle = model[1].register_forward_hook(lambda _, inputs, output: kept.append(inputs[0]))
    method.loss(model, om.Batch(x, domain, domain))
    handle.remove()
    bits = kept[0]
    assert torch.allclose(bits[domain == 0].mean(dim=0), torch.tensor([1.0, 1, 0, 0]), atol=0.02)
    assert torch.allclose(bits[domain == 1].mean(dim=0), torch.full((4,), 0.5), atol=0.12)
    assert len(bits[domain == 1].unique(dim=0)) == 16


def test_training_validates_each_domain_with_its_own_mask():
    model, method, part = Net(), om.create("dmg", lr=0.3), Part(X, Y, DOMAIN)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=draw(5)) / 2)
    history = fit(method, model, Data(part, part, None, om.Classification(3)), Budget(2, 6, 0.01), seed=0).history
    model.eval()
    with torch.no_grad():
        wanted = F.cross_entropy(method.predict_in(model, X, DOMAIN), Y).item()
        other = F.cross_entropy(method.predict(model, X), Y).item()
    best = min(row["valid_loss"] for row in history)
    assert best == pytest.approx(wanted, abs=1e-6)
    assert abs(best - other) > 1e-4


def test_masks_of_domains_grow_apart():
    model = Net()
    method = make(model, overlap=1.0, lr=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    before = sum(soft_overlap(m).item() for m in masks(method))
    for _ in range(30):
        method.step(model, BATCH, optimizer)
        method.after_step()
    assert sum(soft_overlap(m).item() for m in masks(method)) < before - 0.3


def test_contract_and_refusals():
    assert len(check_method("dmg")) >= 10
    check_method("dmg", predictions="mean", sparsity=0.01)
    for name, value in (("overlap", -1.0), ("sparsity", -1.0), ("lr", 0.0), ("predictions", "x")):
        with pytest.raises(ValueError, match=name):
            om.create("dmg", **{name: value})
    method, model = om.create("dmg"), Net().eval()
    method.setup(model, om.Classification(3), om.Table(domain=DOMAIN))
    assert torch.equal(method.predict_in(model, X, DOMAIN), model(X))  # there are no masks before the first batch
    single = make(Net(), domain=torch.zeros(6, dtype=torch.long))
    assert torch.isfinite(single.loss(single.given.model, om.Batch(X, Y, torch.zeros(6, dtype=torch.long))))
