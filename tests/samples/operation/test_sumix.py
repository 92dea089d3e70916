import pytest
import torch
import torch.nn.functional as F
from torch import nn

import omnimix as om
from omnimix.core.recipe import Recipe
from omnimix.samples.operation.sumix import MIXERS, SUMix, seen_share, semantics, uncertain_loss

from .test_learned import Net, data, draw, ready, same, weights

CLEAN, MIXED = torch.tensor([[2.0, 0, 0], [0, 1.0, 0]]), torch.tensor([[1.0, 1, 0], [0, 2.0, 0]])
Y, PARTNER = torch.tensor([0, 1]), torch.tensor([1, 0])


def shares(clean, mixed, lam, scale, signed, y=Y):
    target = F.one_hot(y, clean.shape[1]).float()
    own = semantics(mixed, clean, target[PARTNER], scale, signed)
    guest = semantics(mixed, clean[PARTNER], target, scale, signed)
    share = torch.tensor([[lam, 1 - lam]]).expand(2, 2)
    return own, guest, seen_share(own, guest, target, target[PARTNER], share), target, share


def test_the_card_by_hand():
    own, guest, found, target, share = shares(CLEAN, MIXED, 0.6, 2.0, signed=True)
    torch.testing.assert_close(found[:, 0], torch.tensor([0.637734, 0.379767]), atol=2e-6, rtol=0)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(2))
    losses = [F.cross_entropy(MIXED, y, reduction="none") for y in (Y, Y[PARTNER])]
    main = (found[:, 0] * losses[0] + found[:, 1] * losses[1]).mean()
    assert float(main) == pytest.approx(1.171003, abs=2e-6)
    flat = found.mean(dim=0)
    assert float((flat[0] * losses[0] + flat[1] * losses[1]).mean()) == pytest.approx(1.042019, abs=2e-6)
    unsure = 2 / 3**0.5  # twice a row of length 1
    regular = uncertain_loss(own + unsure, guest + unsure, target, target[PARTNER], share)
    assert float(regular) == pytest.approx(1.070463, abs=2e-6)


class Answers(nn.Sequential):
    """Gives logits of its own: those of `CLEAN` for inputs of the batch, else those of `MIXED`."""

    def __init__(self, x):
        super().__init__(nn.Identity(), nn.Identity())
        self.x, self.fc = x, nn.Linear(3, 3)
        with torch.no_grad():
            self.fc.weight.copy_(torch.eye(3))
            self.fc.bias.zero_()

    def forward(self, x):
        return self.fc(CLEAN if torch.equal(x, self.x) else MIXED)


@pytest.mark.parametrize(("gamma", "total"), [(0.5, 1.577251), (0.0, 1.042019)])
def test_the_whole_loss_of_the_reference(gamma, total):
    x = torch.randn(2, 3, 10, 10, generator=draw())
    model = Answers(x)
    method = SUMix(gamma=gamma, reference=True).setup(model, om.Classification(3), generator=draw())
    recipe = Recipe(torch.stack((torch.arange(2), PARTNER), dim=1), torch.tensor([[0.6, 0.4]]).expand(2, 2))
    method._begin(3, x.device)
    nn.init.zeros_(method._side.modules["uncertainty"].weight)
    method.operation = om.Mixup().operation
    assert float(method.mixed_loss(model, om.Batch(x, Y), recipe).detach()) == pytest.approx(total, abs=2e-6)


def test_whose_image_is_seen_gets_the_label_and_the_other_way_round_in_the_reference():
    clean = torch.tensor([[0.9, 0.05, 0.05], [0.05, 0.9, 0.05]]).log()
    mixed = clean[1:].expand(2, 3)
    for scale, signed, absolute in ((1.0, 0.60, 0.477), (16.0, 0.9986, 0.183), (100.0, 1.0, 0.0001)):
        assert float(shares(clean, mixed, 0.5, scale, True)[2][0, 0]) == pytest.approx(signed, abs=6e-3)
        assert float(shares(clean, mixed, 0.5, scale, False)[2][0, 0]) == pytest.approx(absolute, abs=6e-4)


@pytest.mark.parametrize("signed", [False, True])
def test_limits_and_roles(signed):
    for lam in (0.0, 1.0):
        found = shares(CLEAN, MIXED, lam, 2.0, signed)[2]
        assert torch.equal(found[:, 0], torch.full((2,), lam))
    still = shares(CLEAN, MIXED, 0.3, 1e-9, signed)[2]
    torch.testing.assert_close(still[:, 0], torch.full((2,), 0.3))
    one = shares(CLEAN, MIXED, 0.3, 2.0, signed)[2]
    target = F.one_hot(Y, 3).float()
    own = semantics(MIXED, CLEAN[PARTNER], target, 2.0, signed)
    guest = semantics(MIXED, CLEAN, target[PARTNER], 2.0, signed)
    turned = seen_share(own, guest, target[PARTNER], target, torch.tensor([[0.7, 0.3]]).expand(2, 2))
    torch.testing.assert_close(turned, one.flip(1))
    alike = shares(CLEAN, MIXED, 0.3, 2.0, signed, y=torch.tensor([1, 1]))[2]
    torch.testing.assert_close(alike[:, 0], torch.full((2,), 0.3))


def test_the_clean_pass_learns_from_the_uncertainty_alone():
    def with_gradient(*_):
        torch.set_grad_enabled(True)

    found = []
    for needs in (True, False):
        model = Net()
        method = ready("sumix", model, gamma=0.0)
        if needs:
            model.register_forward_pre_hook(with_gradient)
        method.loss(model, data()).backward()
        found.append([p.grad for p in model.parameters()])
    assert same(*found)


def test_the_uncertainty_has_rows_of_length_one_and_learns():
    model, (x, y) = Net(), data()
    method = ready("sumix", model)
    method.loss(model, (x, y)).backward()
    head = method._side.modules["uncertainty"]
    assert bool(head.weight.grad.any())
    unsure = method._uncertainty(torch.randn(5, 12, generator=draw()))
    torch.testing.assert_close(unsure.square().sum(dim=1), torch.ones(5))
    before = weights(head)
    method.after_step()
    assert not same(before, head.parameters())


@pytest.mark.parametrize("mixer", [*MIXERS, om.CutMix(per_sample=True).operation])
def test_any_mixer_makes_the_images(mixer):
    model, batch = Net(), om.Batch(*data(size=(16, 10)))
    method = ready("sumix", model, mixer=mixer, alpha=1.0)
    recipe = method.recipe(batch)
    operation = MIXERS[mixer]() if isinstance(mixer, str) else mixer
    other = om.Mix(operation=operation).setup(model, om.Classification(4), generator=draw(5))
    other.generator.set_state(method.generator.get_state())
    assert torch.equal(method.mix(batch, recipe).x, other.mix(batch, recipe).x)
    assert torch.isfinite(method.loss(model, batch))


@pytest.mark.parametrize(
    ("option", "value"), [("mixer", "none"), ("gamma", -1.0), ("scale", 0.0), ("lr", 0.0), ("alpha", -1.0)]
)
def test_refusals(option, value):
    with pytest.raises(ValueError, match=option):
        SUMix(**{option: value})


def test_resizemix_keeps_its_own_sides():
    method = om.SUMix("resizemix").setup(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3)), om.Classification(3),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    batch = om.Batch(torch.rand(2, 3, 8, 8), torch.tensor([0, 1]))
    share = torch.stack([method.recipe(batch).lam[0] for _ in range(300)])
    assert 0.36 <= share.min() < 0.4
    assert 0.95 < share.max() <= 0.99
