"""MODE: spectra and styles of mixtures, the search by hand, donors by domain, and limiting cases."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import omnimix as om
from omnimix.core.channels import styles
from omnimix.domains.generalize.mode import explore, mix_of_amplitudes, mix_styles
from omnimix.testing import check_method


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


X = torch.randn(6, 3, 8, 9, generator=draw(), dtype=torch.float64)
Y, DOMAIN = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([4, 4, 7, 4, 7, 9])
DONOR = torch.cat((torch.arange(6).unsqueeze(1), torch.randint(6, (6, 3), generator=draw(1))), dim=1)
SHARE = torch.rand(6, 4, generator=draw(2), dtype=torch.float64)
SHARE = SHARE / SHARE.sum(1, keepdim=True)
OWN = torch.eye(4)[:1].expand(6, 4).double()


class Net(nn.Module):
    taps = ("block",)

    def __init__(self):
        super().__init__()
        self.block, self.second, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), nn.Linear(5, 3)
        self.norm = nn.BatchNorm2d(5)

    def forward(self, x):
        return self.head(self.norm(self.second(self.block(x).tanh())).tanh().mean((2, 3)))


def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Net().double()


def make(name, model, **parameters):
    table = om.Table(domain=torch.tensor([4, 7, 9]))
    return om.create(name, **parameters).setup(model, om.Classification(3), table, generator=draw(3))


BATCH = om.Batch(X, Y, DOMAIN)


def test_amplitudes_are_the_mixture_and_phases_stay():
    before, after = torch.fft.fft2(X), torch.fft.fft2(mix_of_amplitudes(X, DONOR)(SHARE))
    wanted = (SHARE.view(6, 4, 1, 1, 1) * before.abs()[DONOR]).sum(1)
    assert torch.allclose(after.abs(), wanted)
    assert torch.allclose(after / after.abs(), before / before.abs(), atol=1e-6)
    half = torch.fft.fft2(mix_of_amplitudes(X, DONOR, 0.3)(SHARE)).abs()
    assert torch.allclose(half, 0.7 * before.abs() + 0.3 * wanted)


def test_the_image_alone_is_itself():
    assert torch.allclose(mix_of_amplitudes(X, DONOR)(OWN), X)
    assert torch.allclose(mix_of_amplitudes(X, DONOR, 0.0)(SHARE), X)
    assert torch.allclose(mix_styles(X, styles(X, eps=1e-5), DONOR, OWN), X)
    assert torch.equal(mix_styles(X, styles(X), DONOR, SHARE, 0.0), X)


def test_styles_are_the_mixture():
    wanted = (SHARE.unsqueeze(2) * styles(X)[DONOR]).sum(1)
    assert torch.allclose(styles(mix_styles(X, styles(X), DONOR, SHARE)), wanted, atol=1e-4)


def push(signs):
    """A loss whose gradient by the weights has these signs as long as they differ from each other."""
    return lambda share: (share * torch.tensor(signs)).sum()


def test_search_by_hand():
    start = torch.full((2, 4), 0.25)
    assert torch.allclose(explore(push([1.0, -1, -1, -1]), start, 10, 0.05), torch.tensor([1.0, 0, 0, 0]))
    assert torch.allclose(explore(push([1.0, 1, -1, -1]), start, 4, 0.05), torch.tensor([0.45, 0.45, 0.05, 0.05]))
    assert torch.equal(explore(push([1.0, 1, -1, -1]), start, 0, 0.05), start)
    assert torch.equal(start, torch.full((2, 4), 0.25))


@pytest.mark.parametrize("name", ["mode-f", "mode-a"])
def test_the_gradient_of_shares_and_the_rise_of_the_loss(name):
    model = net().eval()
    mixing = make(name, model).mixing(model, BATCH, DONOR)
    w = torch.full((6, 4), 0.25, dtype=torch.float64, requires_grad=True)
    history = []

    def loss(share):
        x, within = mixing(share)
        with within:
            history.append(F.cross_entropy(model(x), Y))
        return history[-1]

    (grad,) = torch.autograd.grad(loss(w / w.sum(1, keepdim=True)), w)
    assert (w * grad).sum(1).abs().max() < 1e-8
    assert grad.abs().max() > 1e-6
    history.clear()
    explore(loss, w.detach(), 8, 0.005)
    assert all(now >= before for before, now in itertools.pairwise(history))


def test_donors():
    method = make("mode-a", net())
    big = om.Batch(torch.zeros(400, 3, 1, 1), torch.zeros(400), torch.tensor([4, 7, 7, 4]).repeat(100))
    donor = method.donors(big)
    assert torch.equal(donor[:, 0], torch.arange(400))
    assert (big.domain[donor[:, 1]] == 4).all()
    assert (big.domain[donor[:, 2]] == 7).all()
    assert set(big.domain[donor[:, 3]].tolist()) == {4, 7}  # none of 9 there: anybody
    assert all(len(column.unique()) > 100 for column in donor.T)
    donor = make("mode-f", net(), mixed=6).donors(big)
    assert donor.shape == (400, 6)
    assert (donor < 400).all()
    assert torch.equal(donor[:, 0], torch.arange(400))


@pytest.mark.parametrize("name", ["mode-f", "mode-a"])
def test_the_loss_and_what_the_search_leaves(name):
    model, twin = net(), net()
    method = make(name, model, steps=3)
    before = {n: v.clone() for n, v in model.named_buffers()}
    seen = []
    model.register_forward_hook(lambda m, i, o: seen.append((m.training, len(o), m.norm.running_mean.clone())))
    loss = method.loss(model, BATCH)
    assert [(training, rows) for training, rows, _ in seen] == [(False, 6)] * 3 + [(True, 12)]
    assert all(torch.equal(mean, before["norm.running_mean"]) for _, _, mean in seen[:3])
    assert all(p.grad is None for p in model.parameters())
    assert model.training

    again = make(name, twin, steps=3)
    donor, harm = again.donors(BATCH), []
    mixing = again.mixing(twin.eval(), BATCH, donor)

    def worst(share):
        x, within = mixing(share)
        with within:
            harm.append(F.cross_entropy(twin(x), Y))
        return harm[-1]

    share = explore(worst, torch.full((6, 4), 0.25), 3, 0.05)
    x, within = mixing(share)
    with within:
        output = twin.train()(torch.cat((X, x)))
    assert torch.allclose(loss, 0.6 * F.cross_entropy(output[:6], Y) + 0.4 * F.cross_entropy(output[6:], Y))


def test_an_encoder_and_its_decoder():
    encoder, decoder = nn.Conv2d(3, 5, 1).double(), nn.Conv2d(5, 3, 1).double()
    model = net()
    mean, deviation = [0.1, 0.2, 0.3], [2.0, 3.0, 4.0]
    method = make("mode-a", model, encoder=encoder, decoder=decoder, scale=(mean, deviation), gamma=0.7)
    found, _ = method.mixing(model, BATCH, DONOR)(SHARE)
    m, d = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (mean, deviation))
    h = encoder(X * d + m)
    mu, sd = h.mean((2, 3)), (h.var((2, 3)) + 1e-5).sqrt()
    new_mu, new_sd = ((SHARE.unsqueeze(2) * s[DONOR]).sum(1)[:, :, None, None] for s in (mu, sd))
    mixed = (h - mu[:, :, None, None]) / sd[:, :, None, None] * new_sd + new_mu
    assert torch.allclose(found, (decoder(0.7 * mixed + 0.3 * h) - m) / d)
    method.loss(model, BATCH).backward()
    assert encoder.weight.grad is None
    assert decoder.weight.grad is None
    with pytest.raises(ValueError, match="needs a decoder"):
        om.create("mode-a", encoder=encoder)


@pytest.mark.parametrize("name", ["mode-f", "mode-a"])
def test_zero_weight_is_plain_training(name):
    model, x = net(), X.clone()
    assert torch.equal(make(name, model, beta=0.0).loss(model, BATCH), F.cross_entropy(net()(X), Y))
    make(name, model).loss(model, BATCH)
    assert torch.equal(x, X)


@pytest.mark.parametrize("name", ["mode-f", "mode-a"])
def test_contract(name):
    assert len(check_method(name)) >= 10
    check_method(name, steps=0, gamma=0.5)


def test_refusals():
    for name, value in (("beta", 2.0), ("gamma", -1.0), ("steps", -1), ("mu", 0.0), ("mixed", 0)):
        with pytest.raises(ValueError, match=name):
            om.create("mode-f", **{name: value})
    with pytest.raises(ValueError, match="tables"):
        make("mode-f", nn.Linear(3, 3)).loss(nn.Linear(3, 3), (torch.randn(4, 3), torch.tensor([0, 1, 2, 0])))
    with pytest.raises(ValueError, match="domain 8"):
        make("mode-a", net()).loss(net(), om.Batch(X, Y, torch.full((6,), 8)))


def test_equal_donors_leave_shares():
    """Where no donor makes a difference rounding decides, and all weights may fall at once."""
    x = torch.rand(1, 3, 8, 8, generator=draw())
    for seed in range(200):
        style = torch.rand(3, generator=draw(seed))
        share = explore(lambda w, style=style: (w @ style[:1].expand(6, 1)).sum().sin(), torch.ones(64, 6), 10, 0.1)
        assert torch.isfinite(share).all()
        torch.testing.assert_close(share.sum(dim=1), torch.ones(64))
    assert torch.isfinite(mix_of_amplitudes(x, torch.zeros(1, 6, dtype=torch.long))(share[:1])).all()
