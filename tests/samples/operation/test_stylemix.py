import pytest
import torch
from torch import nn

import omnimix as om
from omnimix.core.channels import adain
from omnimix.core.operation import Context
from omnimix.core.ratio import Beta, Constant
from omnimix.core.recipe import Recipe
from omnimix.samples.operation import ContentStyle, StyleMix


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def recipe(partner, lam):
    share = torch.tensor([[lam, 1 - lam]]).expand(len(partner), 2)
    return Recipe(torch.stack((torch.arange(len(partner)), torch.tensor(partner)), dim=1), share)


PARTNER = [2, 0, 3, 1]
X = torch.randn(4, 3, 6, 9, generator=draw()) * torch.tensor([1.0, 2, 3, 4]).view(4, 1, 1, 1) + 1


def mix(content, style, operation=None, x=X, seed=0):
    operation = operation or ContentStyle(Constant(style))
    return operation(x, recipe(PARTNER, content), Context(draw(seed)))


def test_adain_takes_over_the_statistics():
    found = adain(X, X[PARTNER])
    for statistic in (torch.mean, torch.std):
        torch.testing.assert_close(
            statistic(found, dim=(2, 3)), statistic(X[PARTNER], dim=(2, 3)), rtol=1e-4, atol=1e-4
        )
    torch.testing.assert_close(adain(X, X), X)


@pytest.mark.parametrize(
    ("content", "style", "expected"),
    [(1, 1, X), (0, 0, X[PARTNER]), (1, 0, adain(X, X[PARTNER])), (0, 1, adain(X[PARTNER], X))],
)
def test_corners(content, style, expected):
    mixed, done = mix(float(content), float(style))
    torch.testing.assert_close(mixed, expected)
    torch.testing.assert_close(done.lam, torch.full((4,), 0.7 * content + 0.3 * style))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("content", "style"), [(0.3, 0.6), (0.8, 0.9)])
def test_mixed_content_and_style(content, style, seed):
    mixed, done = mix(content, style, seed=seed)
    mean = X.mean(dim=(2, 3))
    torch.testing.assert_close(mixed.mean(dim=(2, 3)), style * mean + (1 - style) * mean[PARTNER])
    torch.testing.assert_close(done.label_share, done.share)
    torch.testing.assert_close(done.share[:, 0], torch.full((4,), 0.7 * content + 0.3 * style))
    same = torch.ones(4, 1, 1, 1) * X[:1]
    torch.testing.assert_close(mix(content, style, x=same, seed=seed)[0], same)  # the coefficients sum to 1


def test_the_share_of_the_whole_own_image_is_uniform_within_its_bounds():
    own = torch.zeros(2, 1, 4)
    own[0] = torch.tensor([-1.0, 1.0, -1.0, 1.0])
    own[1] = 100 + torch.tensor([-1.0, -1.0, 1.0, 1.0]) * 2
    found = []
    for seed in range(300):
        mixed = ContentStyle(Constant(0.6))(own, recipe([1, 0], 0.7), Context(draw(seed)))[0][0, 0]
        # contrast along the own pattern: t * 1 + (c - t) * 2, in units of its deviation
        found.append(0.7 * 2 - float(mixed @ own[0, 0]) / 4)
    assert min(found) == pytest.approx(0.3, abs=0.01)
    assert max(found) == pytest.approx(0.6, abs=0.01)
    assert sum(found) / 300 == pytest.approx(0.45, abs=0.02)


def test_given_networks_encode_and_decode_at_their_size():
    class Seen(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.factor, self.sizes = nn.Parameter(torch.tensor(factor)), []

        def forward(self, x):
            assert not self.training
            self.sizes.append(tuple(x.shape[2:]))
            return x * self.factor

    encoder, decoder = Seen(2.0), Seen(0.5)
    operation = ContentStyle(Constant(0.6), encoder, decoder)
    torch.testing.assert_close(mix(0.3, 0.6, operation)[0], mix(0.3, 0.6)[0], atol=1e-4, rtol=0)
    resized = ContentStyle(Constant(0.6), encoder, decoder, side=12)
    mixed, _ = mix(0.3, 0.6, resized)
    assert encoder.sizes[-1] == decoder.sizes[-1] == (12, 12)
    assert mixed.shape == X.shape
    assert not mixed.requires_grad
    assert encoder.training
    with pytest.raises(ValueError, match="decoder"):
        ContentStyle(Beta(1), encoder)


def test_the_method_draws_two_ratios():
    model = nn.Sequential(nn.Flatten(), nn.Linear(162, 4))
    method = StyleMix(1.0, probability=1.0).setup(model, om.Classification(4), generator=draw())
    shares = set()
    for _ in range(4):
        batch = om.Batch(X, torch.arange(4))
        given = method.recipe(batch)
        done = method.mix(batch, given).recipe
        rest = (done.lam - 0.7 * given.lam) / 0.3
        assert ((rest >= -1e-6) & (rest <= 1 + 1e-6)).all()
        assert not torch.allclose(rest, given.lam)
        shares.add(float(done.lam[0]))
    assert len(shares) == 4
    steps = StyleMix().setup(model, om.Classification(4), generator=draw())
    share = sum(steps.recipe(om.Batch(X, torch.arange(4))) is not None for _ in range(500)) / 500
    assert share == pytest.approx(0.2, abs=0.06)


@pytest.mark.parametrize(("name", "value"), [("alpha", -1.0), ("content_weight", 1.1), ("side", 0)])
def test_refusals(name, value):
    with pytest.raises(ValueError, match=name):
        StyleMix(**{name: value})
