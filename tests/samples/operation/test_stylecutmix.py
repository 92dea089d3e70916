import pytest
import torch
from torch import nn

import omnimix as om
from omnimix.core.channels import adain
from omnimix.core.operation import Context
from omnimix.core.ratio import Beta, Constant
from omnimix.core.recipe import Recipe
from omnimix.samples.operation import StyleBox, StyleCutMix, cutmix, style_distances

PARTNER = torch.tensor([2, 0, 3, 1])


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


X = torch.randn(4, 3, 8, 10, generator=draw()) * torch.tensor([1.0, 2, 3, 4]).view(4, 1, 1, 1) + 1
Y = torch.tensor([0, 1, 1, 0])


def mix(lam, style, blend, x=X, seed=0, y=Y, **options):
    recipe = Recipe(torch.stack((torch.arange(4), PARTNER), dim=1), torch.tensor([[lam, 1 - lam]]).expand(4, 2))
    return StyleBox(Constant(style), Constant(blend), **options)(x, recipe, Context(draw(seed), y))


def test_images_that_keep_their_style_are_cutmix():
    mixed, done = mix(0.6, 0.3, 1.0)
    plain = cutmix(X, Y, lam=0.6, partner=PARTNER, generator=draw())
    torch.testing.assert_close(mixed, plain.x)
    assert torch.equal(done.mask, plain.recipe.mask)
    torch.testing.assert_close(done.share, plain.recipe.share)
    torch.testing.assert_close(done.label_share, plain.recipe.share)  # g = 1: the style is that of the content
    assert torch.equal(done.partner, plain.recipe.partner)


@pytest.mark.parametrize("style", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("blend", [0.0, 0.4])
def test_both_sides_by_hand(style, blend):
    mixed, done = mix(0.6, style, blend)
    other, m = X[PARTNER], done.mask
    own_restyled = blend * X + (1 - blend) * adain(X, other)
    other_restyled = blend * other + (1 - blend) * adain(other, X)
    expected = m * (style * X + (1 - style) * own_restyled) + (1 - m) * ((1 - style) * other + style * other_restyled)
    torch.testing.assert_close(mixed, expected)
    content = float(m.mean())
    share = 0.7 * content + 0.3 * (blend * content + (1 - blend) * style)
    torch.testing.assert_close(done.label_share, torch.tensor([[share, 1 - share]]).expand(4, 2))


def test_style_one_and_zero_are_those_of_one_image():
    whole, done = mix(1.0, 1.0, 0.0)
    torch.testing.assert_close(whole, X)
    torch.testing.assert_close(done.label_share[:, 0], torch.ones(4))
    none, _ = mix(1.0, 0.0, 0.0)
    torch.testing.assert_close(none, adain(X, X[PARTNER]))


def test_distances_of_classes_set_how_much_is_kept():
    distances = torch.tensor([[2.0, 0.5], [0.5, 2.0]])
    mixed, done = mix(0.6, 0.3, 1.0, distances=distances, delta=0.5)
    kept = torch.tanh(torch.where(Y[PARTNER] == Y, 4.0, 1.0))
    content = float(done.mask.mean())
    torch.testing.assert_close(done.label_share[:, 0], 0.7 * content + 0.3 * (kept * content + (1 - kept) * 0.3))
    assert not torch.allclose(mixed, mix(0.6, 0.3, 1.0)[0])
    with pytest.raises(ValueError, match="class ids"):
        mix(0.6, 0.3, 1.0, distances=distances, y=torch.rand(4))


def test_distances_by_hand():
    x = torch.tensor([[0.0, 2], [2, 4], [10, 10]]).view(3, 1, 2)  # means 1, 3, 10; deviations sqrt 2, sqrt 2, 0
    found = style_distances(x, torch.tensor([0, 0, 1]), 3)
    expected = (8.0**2 + 2.0) / 2  # class 0: mean 2; both of its samples count
    torch.testing.assert_close(found[0, 1], torch.tensor(expected))
    assert torch.equal(found, found.T)
    assert found.diagonal().tolist() == [2, 2, 2]
    assert found[2].tolist() == [2, 2, 2]
    doubled = style_distances(x, torch.tensor([0, 0, 1]), 3, nn.Conv1d(1, 1, 1, bias=False).requires_grad_(False))
    assert doubled.shape == (3, 3)


def test_given_networks_and_per_sample_boxes():
    encoder, decoder = nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 3, 1, bias=False)
    for part, factor in ((encoder, 2.0), (decoder, 0.5)):
        part.weight.data = factor * torch.eye(3).view(3, 3, 1, 1)
    found, _ = mix(0.6, 0.3, 0.4, encoder=encoder, decoder=decoder)
    torch.testing.assert_close(found, mix(0.6, 0.3, 0.4)[0], atol=1e-4, rtol=1e-4)
    assert not found.requires_grad
    _, done = mix(0.6, 0.3, 0.4, per_sample=True)
    assert done.mask.shape[0] == 4


@pytest.mark.parametrize("per_sample", [False, True])
def test_the_method_trains(per_sample):
    model = nn.Sequential(nn.Flatten(), nn.Linear(240, 2))
    method = StyleCutMix(per_sample=per_sample, probability=1.0).setup(model, om.Classification(2), generator=draw())
    shares = {float(method.mix(om.Batch(X, Y), method.recipe(om.Batch(X, Y))).recipe.label_share[0, 0]) for _ in "abc"}
    assert len(shares) == 3
    loss = method.loss(model, om.Batch(X, Y))
    loss.backward()
    assert torch.isfinite(loss)


def test_refusals():
    with pytest.raises(ValueError, match="delta"):
        StyleCutMix(delta=0.0)
    with pytest.raises(ValueError, match=r"distances must be \(classes, classes\), got \(2, 3\)"):
        StyleBox(Beta(1), Beta(1), torch.zeros(2, 3))
