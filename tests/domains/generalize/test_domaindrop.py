"""DomainDrop: hand values of the card, how often channels go, what trains what, and the authors' masks."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import omnimix as om
from omnimix.domains.generalize.domaindrop import agreement, domain_scores, largest_keys
from omnimix.testing import check_method


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def test_hand_values():
    score = domain_scores(torch.tensor([[0.2, 0.8, 0.5, 0.1, 0.9, 0.4]]), torch.ones(1, 6))
    assert torch.allclose(score, torch.tensor([[0.125, 0.875, 0.5, 0.0, 1.0, 0.375]]))
    u = torch.tensor([[0.9, 0.3, 0.6, 0.5, 0.2, 0.95]])
    assert largest_keys(score, 1, u).tolist() == [[False] * 5 + [True]]
    assert largest_keys(score, 2, u).nonzero()[:, 1].tolist() == [0, 5]  # keys .4305 and .8722
    assert largest_keys(score, 2).nonzero()[:, 1].tolist() == [1, 4]
    p, q = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[0.0, 2.0, 0.0]])
    assert agreement(p, q, 5.0).item() == pytest.approx(0.018780, abs=1e-6)
    assert agreement(q, p, 5.0).item() == pytest.approx(0.018780, abs=1e-6)
    assert agreement(p, p, 5.0).item() == 0


def test_channels_go_in_proportion_to_their_scores():
    score = torch.tensor([[1.0, 0.5, 0.1, 0.0]]).expand(20000, 4)
    gone = largest_keys(score, 1, torch.rand(20000, 4, generator=draw())).float().mean(dim=0)
    assert torch.allclose(gone, torch.tensor([0.625, 0.3125, 0.0625, 0.0]), atol=0.012)
    assert gone[3] == 0


def test_scores_of_maps_are_taken_place_by_place():
    draws = draw(1)
    h, weight = torch.randn(2, 4, 3, 2, generator=draws), torch.randn(2, 4, generator=draws)
    wanted = torch.zeros(2, 4)
    for n in range(2):
        for i in range(3):
            for j in range(2):
                s = h[n, :, i, j] * weight[n]
                wanted[n] += (s - s.min()) / (s.max() - s.min()) / 6
        wanted[n] = (wanted[n] - wanted[n].min()) / (wanted[n].max() - wanted[n].min())
    assert torch.allclose(domain_scores(h, weight), wanted, atol=1e-6)


def test_dead_places_weigh_nothing_and_equal_channels_stay():
    h = torch.randn(1, 4, 5, generator=draw())
    dead = torch.cat((h, torch.zeros(1, 4, 3)), dim=2)
    weight = torch.ones(1, 4)
    assert torch.allclose(domain_scores(dead, weight), domain_scores(h, weight))
    flat = domain_scores(torch.ones(2, 4, 5), torch.ones(2, 4))
    assert not flat.any()
    assert not largest_keys(flat, 2, torch.rand(2, 4, generator=draw())).any()


def test_agrees_with_the_authors_masks():
    """The masks that their LayerDiscriminator gave for these maps, weights and uniforms."""
    h = torch.sin(torch.arange(48.0) * 1.7).view(2, 6, 2, 2)
    weight = torch.cos(torch.arange(18.0) * 0.9).view(3, 6)[torch.tensor([2, 0])]
    u = (torch.sin(torch.arange(12.0) * 3.1) * 0.5 + 0.5).view(2, 6)
    keep = ~largest_keys(domain_scores(h, weight), int(0.34 * 6), u)
    assert keep.int().tolist() == [[1, 1, 0, 0, 1, 1], [1, 1, 1, 0, 0, 1]]


class Net(nn.Module):
    taps = ("one", "two")

    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 9, 3), nn.Linear(9, 3)

    def forward(self, x):
        return self.head(self.two(self.one(x).relu()).relu().mean((2, 3)))


X = torch.randn(6, 2, 8, 8, generator=draw(2))
Y, DOMAIN = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([0, 0, 1, 1, 2, 2])
BATCH = om.Batch(X, Y, DOMAIN)


def make(model, seed=0, **parameters):
    method = om.create("domaindrop", **parameters)
    return method.setup(model, om.Classification(3), om.Table(domain=DOMAIN), generator=draw(seed))


def test_masks_drop_the_share_and_keep_the_mean():
    method = make(Net())
    for random in (True, False):
        method.random = random
        mask = method.mask(torch.randn(5, 9, 2, 2, generator=draw()), torch.randn(5, 9, generator=draw(1)))
        assert mask.shape == (5, 9, 1, 1)
        assert ((mask == 0).sum(dim=1) == int(0.33 * 9)).all()
        assert mask.mean().item() == pytest.approx(1, abs=1e-6)
    method.rescale = False
    assert method.mask(torch.randn(5, 9, generator=draw()), torch.ones(5, 9)).unique().tolist() == [0, 1]


def test_without_dropping_and_reversal_it_is_plain_training():
    model = Net()
    method = make(model, probability=0.0, lam=0.0, weight=0.0)
    method.loss(model, BATCH).backward()
    found = [p.grad.clone() for p in model.parameters()]
    wanted = torch.autograd.grad(F.cross_entropy(model(X), Y), list(model.parameters()))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, wanted, strict=True))


def test_the_network_climbs_and_the_classifiers_descend_at_full_rate():
    model = Net()
    once, none = make(model, probability=0.0, weight=0.0), make(model, probability=0.0, weight=0.0, lam=0.0)
    judges = once.beside(model, X).modules
    assert torch.equal(judges["0"].weight, none.beside(model, X).modules["0"].weight)
    first = model.one(X)
    second = model.two(first.relu())
    told = (F.cross_entropy(judges["0"](first.mean((2, 3))), DOMAIN)) / 2
    told = told + F.cross_entropy(judges["1"](second.mean((2, 3))), DOMAIN) / 2
    trunk, sides = [model.one.weight, model.two.weight], [judges["0"].weight, judges["1"].weight]
    wanted = torch.autograd.grad(told, trunk + sides)
    with_it = torch.autograd.grad(once.loss(model, BATCH), trunk + sides)
    without = torch.autograd.grad(none.loss(model, BATCH), trunk)
    for i in range(2):
        assert torch.allclose(with_it[i] - without[i], -0.25 * wanted[i], atol=1e-6)
        assert torch.allclose(with_it[2 + i], wanted[2 + i], atol=1e-6)


def test_one_tap_of_a_step_or_all():
    model = Net()
    method = make(model)
    picked = torch.tensor([method.chosen() for _ in range(3000)]).float()
    assert torch.allclose(picked.mean(dim=0), torch.tensor([0.4, 0.4]), atol=0.03)
    assert picked.sum(dim=1).max() == 1
    assert make(model, stages="all", probability=1.0).chosen() == [True, True]


def test_the_classifier_of_a_tap_sees_the_map_before_it_is_masked():
    model = Net()
    method = make(model, probability=1.0, taps=["two"], weight=0.0)
    judge = method.beside(model, X).modules["0"]
    loss = method.loss(model, BATCH)
    (found,) = torch.autograd.grad(loss, judge.weight)
    told = F.cross_entropy(judge(model.two(model.one(X).relu()).mean((2, 3))), DOMAIN)
    assert torch.allclose(found, torch.autograd.grad(told, judge.weight)[0], atol=1e-6)
    plain = F.cross_entropy(model(X), Y) + told
    assert not torch.allclose(loss, plain)  # the classification path is masked


def test_the_loss_by_hand():
    """The largest scores of the sample's own domain go, in both halves; later layers see what is left."""
    model = Net()
    method = make(model, probability=1.0, taps=["one"], drop=0.2, random=False)
    judge = method.beside(model, X).modules["0"]
    h = model.one(X)
    mask = torch.ones(6, 6)
    for n in range(6):
        product = h[n] * judge.weight[DOMAIN[n]].view(6, 1, 1)
        low, high = product.amin(0), product.amax(0)
        mask[n, ((product - low) / (high - low)).mean((1, 2)).argmax()] = 0
    output = model.head(model.two((h * (mask * 6 / 5).view(6, 6, 1, 1)).relu()).relu().mean((2, 3)))
    wanted = F.cross_entropy(output, Y) + F.cross_entropy(judge(h.mean((2, 3))), DOMAIN)
    assert torch.allclose(method.loss(model, BATCH), wanted, atol=1e-5)  # equal halves agree


def test_classifiers_learn_the_domain():
    """With a network that stands still they end where their own loss is small."""
    model = Net().requires_grad_(False)
    shifted = om.Batch(X + 3 * DOMAIN.view(-1, 1, 1, 1), Y, DOMAIN)
    method = make(model, probability=0.0)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.2, momentum=0.9)
    losses = []
    for _ in range(60):
        losses.append(method.step(model, shifted, optimizer).item())
        method.after_step()
    assert losses[-1] < losses[0] - 0.5


def test_contract_and_refusals():
    assert len(check_method("domaindrop")) >= 10
    check_method("domaindrop", stages="all", random=False, probability=1.0)
    for name, value in (("drop", 1.0), ("lam", -1.0), ("weight", -1.0), ("temperature", 0.0), ("stages", "x")):
        with pytest.raises(ValueError, match=name):
            om.create("domaindrop", **{name: value})
