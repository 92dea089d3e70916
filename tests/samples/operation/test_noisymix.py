import pytest
import torch
import torch.nn.functional as F

import omnimix as om
from omnimix.core.operation import Context
from omnimix.core.recipe import Recipe
from omnimix.networks import create
from omnimix.samples.operation import AugMix, NoisyInterpolate, NoisyMix, jensen_shannon


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def recipe(rows, lam=0.3):
    own = torch.arange(rows)
    return Recipe(torch.stack((own, own.flip(0)), dim=1), torch.tensor([[lam, 1 - lam]]).expand(rows, 2))


def noise(operation, x, seed):
    given = recipe(len(x))
    return operation(x, given, Context(draw(seed)))[0] - (0.3 * x + 0.7 * x.flip(0))


def test_without_noise_it_interpolates():
    x = torch.randn(6, 5, generator=draw())
    torch.testing.assert_close(noise(NoisyInterpolate(0, 0), x, 0), torch.zeros(6, 5), atol=1e-6, rtol=0)
    torch.testing.assert_close(noise(NoisyInterpolate(1, 1, sparse=1.0), x, 0), torch.zeros(6, 5), atol=1e-6, rtol=0)


def test_sparse_noise_that_grows_with_the_version():
    x = torch.zeros(30, 2000)
    found = torch.stack([noise(NoisyInterpolate(0.5, 0.5, 0.65, versions=3), x, s).view(3, -1) for s in range(60)])
    assert float((found != 0).float().mean()) == pytest.approx(0.35, abs=0.01)
    # E[level^2] of Beta(2, 5) is 2 * 3 / (7 * 8)
    rms = found.square().mean(dim=(0, 2)).sqrt()
    expected = 0.5 * torch.arange(1, 4) * (0.35 * 6 / 56) ** 0.5
    torch.testing.assert_close(rms, expected, rtol=0.15, atol=0)
    per_call = found[:, 0].std(dim=1) / (0.5 * 0.35**0.5)  # the draws of Beta(2, 5) themselves
    assert float(per_call.mean()) == pytest.approx(2 / 7, abs=0.07)
    assert per_call.max() <= 1.05


def test_multiplicative_noise_is_bounded_and_centred():
    x = torch.ones(4, 20_000)
    found = torch.stack([noise(NoisyInterpolate(0, 0.5), x, s) for s in range(20)])
    assert found.abs().max() <= 0.5
    assert float(found.mean()) == pytest.approx(0, abs=2e-3)
    assert float((found != 0).float().mean()) == pytest.approx(0.35, abs=0.01)


def small_net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return create("small-cnn", (3, 8, 8), 4)


X, Y = torch.randn(6, 3, 8, 8, generator=draw()), torch.arange(6) % 4


@pytest.mark.parametrize("place", ["input", "block1"])
def test_the_three_versions_are_mixed_alike(place):
    model, task = small_net(), om.Classification(4)
    options = {"additive": 0.0, "multiplicative": 0.0, "taps": [place]}
    method = NoisyMix(weight=5.0, **options).setup(model, task, generator=draw(1))
    twin = NoisyMix(**options).setup(model, task, generator=draw(1))
    given = twin.recipe(om.Batch(X, Y))
    versions = AugMix().setup(model, task, generator=twin.generator).versions(X)
    partner, lam = given.partner[:, 1], float(given.lam[0])

    def mixed(h):
        parts = h.unflatten(0, (3, 6))
        return (lam * parts + (1 - lam) * parts[:, partner]).flatten(0, 1)

    h = model.block1(mixed(versions)) if place == "input" else mixed(model.block1(versions))
    output = torch.nn.Sequential(*list(model.children())[1:])(h).unflatten(0, (3, 6))
    clean = lam * F.cross_entropy(output[0], Y) + (1 - lam) * F.cross_entropy(output[0], Y[partner])
    torch.testing.assert_close(method.loss(model, (X, Y)), clean + 5 * jensen_shannon(output).mean())


def test_noisy_feature_mixup_is_manifold_mixup_with_noise():
    model, task = small_net(), om.Classification(4)
    quiet = NoisyMix(2.0, 0.0, 0.0, weight=0.0).setup(model, task, generator=draw(1))
    manifold = om.create("manifold-mixup").setup(model, task, generator=draw(1))
    assert quiet.places == manifold.places == ("input", "block1", "block2")
    torch.testing.assert_close(quiet.loss(model, (X, Y)), manifold.loss(model, (X, Y)))


@pytest.mark.parametrize(
    ("name", "value"), [("additive", -1.0), ("multiplicative", -0.1), ("sparse", 1.5), ("weight", -1.0)]
)
def test_refusals(name, value):
    with pytest.raises(ValueError, match=name):
        NoisyMix(**{name: value})
