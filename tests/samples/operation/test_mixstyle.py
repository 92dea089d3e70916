import pytest
import torch
from torch import nn

import omnimix as om
from omnimix.core.operation import Context
from omnimix.core.recipe import Recipe
from omnimix.networks import create
from omnimix.samples.operation import MixStyle, OtherDomain, Statistics


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def recipe(partner, lam):
    lam, own = torch.as_tensor(lam).expand(len(partner)), torch.arange(len(partner))
    return Recipe(torch.stack((own, torch.tensor(partner)), dim=1), torch.stack((lam, 1 - lam), dim=1))


def style(h):
    """Channel means and unbiased deviations over places."""
    flat = h.flatten(2)
    return flat.mean(dim=2), flat.var(dim=2).sqrt()


PARTNER = [2, 0, 3, 1]


@pytest.mark.parametrize("size", [(30,), (6, 9), (4, 5, 6)])
def test_the_output_has_the_mixed_statistics(size):
    h = torch.randn(4, 3, *size, generator=draw()) * torch.tensor([0.5, 1, 2, 5]).view(4, *[1] * (len(size) + 1)) + 1
    lam = torch.tensor([0.1, 0.5, 0.8, 0.0])
    mixed, done = Statistics()(h, recipe(PARTNER, lam), Context(draw()))
    for found, own in zip(style(mixed), style(h), strict=True):
        expected = lam.unsqueeze(1) * own + (1 - lam.unsqueeze(1)) * own[PARTNER]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    mean, deviation = (v.view(4, 3, *[1] * len(size)) for v in style(h))
    new = (v.view(4, 3, *[1] * len(size)) for v in style(mixed))
    content = (mixed - next(new)) / next(new)
    torch.testing.assert_close(content, (h - mean) / deviation, rtol=1e-3, atol=1e-3)  # the content is the sample's own
    assert torch.equal(done.label_share[:, 0], torch.ones(4))


def test_hand_value():
    h = torch.tensor([[[0.0, 2.0]], [[10.0, 16.0]]])  # means 1 and 13, deviations sqrt 2 and sqrt 18
    mixed, _ = Statistics()(h, recipe([1, 0], 0.25), Context(draw()))
    torch.testing.assert_close(mixed[0, 0], torch.tensor([7.5, 12.5]))  # 10 -+ (.25 sqrt 2 + .75 sqrt 18) / sqrt 2
    torch.testing.assert_close(mixed[1, 0], torch.tensor([2.5, 5.5]))


def test_share_one_and_own_partner_change_nothing():
    h = torch.randn(4, 3, 5, 5, generator=draw())
    for given in (recipe(PARTNER, 1.0), recipe([0, 1, 2, 3], 0.3)):
        torch.testing.assert_close(Statistics()(h, given, Context(draw()))[0], h)


def test_statistics_carry_no_gradient():
    h = torch.randn(2, 1, 3, 3, generator=draw()).requires_grad_()
    mixed, _ = Statistics()(h, recipe([1, 0], 0.3), Context(draw()))
    (grad,) = torch.autograd.grad(mixed[0].sum(), h)
    _, deviation = style(h.detach())
    expected = (0.3 * deviation[0] + 0.7 * deviation[1]) / deviation[0]
    torch.testing.assert_close(grad[0], expected.expand(9).view(1, 3, 3))
    assert not grad[1].any()


def test_partners_of_another_domain():
    domain = torch.tensor([0, 0, 1, 1, 1, 2])
    batch = om.Batch(torch.zeros(6, 1), torch.zeros(6), domain)
    seen = torch.zeros(6, 6)
    for seed in range(200):
        partner = OtherDomain()(batch, draw(seed))[:, 1]
        assert (domain[partner] != domain).all()
        seen[torch.arange(6), partner] += 1
    assert ((seen > 0) == (domain.unsqueeze(1) != domain)).all()
    alone = om.Batch(torch.zeros(3, 1), torch.zeros(3), torch.tensor([1, 1, 1]))
    assert OtherDomain()(alone, draw())[:, 1].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="domain"):
        OtherDomain()(om.Batch(torch.zeros(3, 1), torch.zeros(3)), draw())


def small_net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return create("small-cnn", (3, 8, 8), 4)


X, Y = torch.randn(6, 3, 8, 8, generator=draw()), torch.arange(6) % 4


def test_every_tap_mixes_with_its_own_coin():
    model, calls = small_net(), []
    method = MixStyle(0.5, 0.5).setup(model, om.Classification(4), generator=draw())
    restyle = method._restyle
    method._restyle = lambda recipe, h: calls[-1].append(h.shape[1]) or restyle(recipe, h)
    for _ in range(200):
        calls.append([])
        method.loss(model, (X, Y))
    counts = [sum(len(c) == n for c in calls) / 200 for n in range(3)]
    assert counts == pytest.approx([0.25, 0.5, 0.25], abs=0.1)
    assert not any(module._forward_hooks for module in model.modules())


def test_the_loss_is_that_of_restyled_maps_with_the_samples_own_labels():
    model = small_net()
    method = MixStyle(probability=1.0, taps=["block1"]).setup(model, om.Classification(4), generator=draw(1))
    twin = MixStyle(probability=1.0, taps=["block1"]).setup(model, om.Classification(4), generator=draw(1))
    given = twin.recipe(om.Batch(X, Y))
    found = []
    handle = model.block2.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    loss = method.loss(model, (X, Y))
    handle.remove()
    hidden = model.block1(X)
    expected = Statistics()(hidden, given, Context(draw()))[0]
    torch.testing.assert_close(found[0], expected)
    assert not torch.allclose(found[0], hidden)
    head = nn.Sequential(*list(model.children())[1:])
    torch.testing.assert_close(loss, nn.functional.cross_entropy(head(expected), Y))


def test_cross_domain_training_and_refusals():
    model, task = small_net(), om.Classification(4)
    method = MixStyle(probability=1.0, pairing="crossdomain").setup(model, task, generator=draw())
    assert torch.isfinite(method.loss(model, (X, Y, torch.arange(6) % 2)))
    with pytest.raises(ValueError, match="domain"):
        method.loss(model, (X, Y))
    with pytest.raises(ValueError, match="tap 'input'"):
        MixStyle(taps=["input"]).setup(model, task)
    with pytest.raises(ValueError, match="pairing"):
        MixStyle(pairing="class")
    with pytest.raises(ValueError, match="one cell"):
        Statistics()(torch.zeros(2, 3, 1, 1), recipe([1, 0], 0.5), Context(draw()))
