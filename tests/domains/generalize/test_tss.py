"""TSS and style balancing: the card's limiting cases, counts of cells, and intensity styles of real digits."""

import math

import pytest
import torch
from torch import nn

import omnimix as om
from omnimix.core.channels import restyle, styles
from omnimix.domains.generalize.tss import balanced_styles, surplus_to_deficit
from omnimix.testing import check_method


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


class Net(nn.Module):
    taps = ("block", "second")

    def __init__(self):
        super().__init__()
        self.block = nn.Identity()
        self.second = nn.Conv2d(3, 5, 3)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.second(self.block(x)).relu().mean(dim=(2, 3)))


X = torch.randn(12, 3, 6, 6, generator=draw())
DOMAIN = torch.tensor([4, 7, 9]).repeat(4)
SHIFT = torch.tensor([0.0, 3.0, 8.0]).repeat(4).view(-1, 1, 1, 1)


def trained(alpha=0.0, **parameters):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = Net().eval()
    method = om.create("tss", alpha=alpha, **parameters)
    method.setup(model, om.Classification(3), om.Table(domain=DOMAIN), generator=draw())
    x, y = X + SHIFT, torch.zeros(12, dtype=torch.long)
    method.after_training(model, [om.Batch(x[i : i + 5], y[i : i + 5], DOMAIN[i : i + 5]) for i in (0, 5, 10)])
    return model, method


def test_bank_by_hand():
    model, method = trained()
    centres, spreads = method.bank["block"]
    for d in range(3):
        own = styles((X + SHIFT)[d::3])
        assert torch.allclose(centres[d], own.mean(0), atol=1e-6)
        assert torch.allclose(spreads[d], (own - own.mean(0)).norm(dim=1).mean(), atol=1e-5)
    whole = [om.Batch(X + SHIFT, torch.zeros(12), DOMAIN)]
    method.after_training(model, whole)
    assert torch.allclose(method.bank["block"][0], centres)


def test_infinite_alpha_and_reset_change_nothing():
    model, method = trained(math.inf, taps=["block", "second"])
    assert len(method.bank) == 2
    assert torch.equal(method.predict(model, 40 * X), model(40 * X))
    _, method = trained(0.0)
    assert not torch.allclose(method.predict(model, X), model(X))
    method.reset()
    assert torch.equal(method.predict(model, X), model(X))


def test_content_survives_and_style_does_not():
    model, method = trained(0.0)
    gain, offset = torch.tensor([0.2, 5.0, 1.0]).view(3, 1, 1), torch.tensor([9.0, 8.5, 7.0]).view(3, 1, 1)
    centre = method.bank["block"][0][2]
    restyled = (X - X.mean((2, 3), keepdim=True)) / X.std((2, 3), keepdim=True)
    restyled = restyled * centre[3:].view(3, 1, 1) + centre[:3].view(3, 1, 1)
    assert torch.allclose(method.predict(model, gain * X + offset), model(restyled), atol=1e-4)


def test_one_domain_gives_its_style_to_all_and_names_do_not_matter():
    model, method = trained(0.0)
    found = method.predict(model, 5 * X)
    for domains in (torch.tensor([9, 4, 7]).repeat(4), torch.zeros(12, dtype=torch.long)):
        other = om.create("tss", alpha=0.0).setup(model, om.Classification(3), om.Table(domain=domains))
        other.after_training(model, [om.Batch(X + SHIFT, torch.zeros(12), domains)])
        if len(domains.unique()) == 3:
            assert torch.allclose(other.predict(model, 5 * X), found, atol=1e-5)
    (centre,) = other.bank["block"][0]
    assert torch.allclose(other.predict(model, 5 * X), model(restyle(X, centre.expand(12, -1))), atol=1e-4)
    at_home = restyle(X, centre.expand(12, -1))
    assert torch.allclose(other.predict(model, at_home), model(at_home), atol=1e-5)


def test_only_far_samples_move_and_batches_do_not_matter():
    model, method = trained(3.0)
    x = torch.cat((X[:3] + SHIFT[:3], X[:2] - 50))
    found, plain = method.predict(model, x), model(x)
    assert torch.equal(found[:3], plain[:3])
    assert not torch.isclose(found[3:], plain[3:]).any()
    assert torch.allclose(torch.cat([method.predict(model, row[None]) for row in x]), found, atol=1e-6)


def test_a_call_leaves_no_trace():
    model, method = trained(0.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    method.predict(model, X)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_calibration_bounds_the_share_that_moves():
    model, method = trained()
    held_out = om.Batch(torch.randn(40, 3, 6, 6, generator=draw(3)), torch.zeros(40), torch.full((40,), 4))
    method.calibrate(model, [held_out], 0.1)
    moved = (method.predict(model, held_out.x) != model(held_out.x)).any(dim=1)
    assert moved.sum() == 4


def test_the_sample_on_the_threshold_stays():
    model, method = trained()
    held_out = om.Batch(torch.randn(40, 3, 6, 6, generator=draw(3)), torch.zeros(40), torch.full((40,), 4))
    plain = model(held_out.x)
    for allowed in range(41):
        method.calibrate(model, [held_out], allowed / 40)
        moved = (method.predict(model, held_out.x) != plain).any(dim=1).sum()
        assert moved == min(allowed, 39)  # a distance of its own is never too far


def test_a_domain_of_equal_samples_has_finite_distances():
    model, _ = trained()
    method = om.create("tss").setup(model, om.Classification(3), om.Table(domain=torch.zeros(4, dtype=torch.long)))
    same = om.Batch(X[:1].repeat(4, 1, 1, 1), torch.zeros(4), torch.zeros(4, dtype=torch.long))
    method.after_training(model, [same])
    assert all(spread == 0 for _, spread in method.bank.values())
    assert method.calibrate(model, [same], 0.0) >= 0
    assert torch.equal(method.predict(model, same.x), model(same.x))
    method.alpha = 1e6
    assert torch.isfinite(method.predict(model, X)).all()
    assert not torch.isclose(method.predict(model, X[1:]), model(X[1:])).all(dim=1).any()
    method.alpha = math.inf
    assert torch.equal(method.predict(model, X), model(X))


def test_state_carries_the_bank():
    model, method = trained(1.0)
    other = om.create("tss").setup(model, om.Classification(3), om.Table(domain=DOMAIN))
    other.load_state_dict(method.state_dict())
    assert torch.equal(other.predict(model, X), method.predict(model, X))


def counts(label, domain):
    return torch.bincount(label * 3 + domain, minlength=6).view(2, 3).tolist()


def test_cells_are_evened_out():
    label = torch.tensor([0] * 9 + [1] * 6)
    domain = torch.tensor([0, 0, 1, 0, 0, 2, 0, 1, 0, 2, 0, 1, 0, 1, 2])
    assert counts(label, domain) == [[6, 2, 1], [2, 2, 2]]
    style = torch.randn(15, 4, generator=draw())
    target = surplus_to_deficit(style, label, domain, 2, 3)
    assert counts(label, target) == [[3, 3, 3], [2, 2, 2]]
    assert torch.equal(target[9:], domain[9:])
    own = torch.nonzero((label == 0) & (domain == 0)).flatten()
    closest = torch.cdist(style[own], style[own]).fill_diagonal_(torch.inf).min(dim=1).values
    assert set(own[target[own] != 0].tolist()) == set(own[closest.argsort()[:3]].tolist())


def test_what_cannot_be_filled_is_not_moved():
    label, domain = torch.zeros(8, dtype=torch.long), torch.tensor([0, 0, 0, 0, 0, 1, 1, 2])  # 2 each, one deficit
    target = surplus_to_deficit(torch.randn(8, 2, generator=draw()), label, domain, 1, 3)
    assert torch.bincount(target).tolist() == [4, 2, 2]


def test_new_styles_lie_between_two_of_the_new_domain():
    label = torch.zeros(6, dtype=torch.long)
    domain = torch.tensor([0, 0, 0, 0, 1, 1])
    style = torch.tensor([[0.0], [0.1], [1.0], [2.0], [10.0], [20.0]])
    for seed in range(20):
        new, moved = balanced_styles(style, label, domain, 1, 2, draw(seed))
        assert moved.tolist() == [True, False, False, False, False, False]
        assert 10 <= new[0].item() <= 20
        assert torch.equal(new[1:], style[1:])
    new, _ = balanced_styles(style, torch.tensor([0, 0, 0, 0, 1, 1]), domain, 2, 2, draw())  # no such class there
    assert (new[:2] >= 10).all()
    _, moved = balanced_styles(style[:4], label[:4], domain[:4], 1, 2, draw())
    assert not moved.any()  # nobody there to take a style from


def test_balancing_changes_some_training_steps():
    model, method = trained(balance=1.0)
    plain = om.create("tss", balance=0.0).setup(model, om.Classification(3), om.Table(domain=DOMAIN))
    model.train()
    uneven = om.Batch(
        X + SHIFT, torch.zeros(12, dtype=torch.long), DOMAIN[torch.tensor([0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2])]
    )
    even = om.Batch(X + SHIFT, torch.zeros(12, dtype=torch.long), DOMAIN)
    assert torch.equal(method.loss(model, even), plain.loss(model, even))
    assert not torch.equal(method.loss(model, uneven), plain.loss(model, uneven))


def test_contract():
    assert len(check_method("tss")) >= 10


def test_refusals():
    for name, value in (("alpha", -1), ("balance", 2.0), ("taps", "block")):
        with pytest.raises(ValueError, match=name):
            om.create("tss", **{name: value}).setup(Net(), om.Classification(3), om.Table(domain=DOMAIN))
