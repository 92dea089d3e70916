"""The small transformer: causal, relative positions, losses per token, tied tables."""

import math

import pytest
import torch

from omnimix.networks.language_model import IGNORED, LanguageModel, rotate, rotation, token_losses


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LanguageModel(50, width=32, layers=2, heads=4).double()


def tokens(b=3, t=12, seed=0):
    return torch.randint(50, (b, t), generator=torch.Generator().manual_seed(seed))


def test_the_future_does_not_matter(model):
    x = tokens()
    y = x.clone()
    y[:, 7:] = (y[:, 7:] + 1) % 50
    torch.testing.assert_close(model(x)[:, :7], model(y)[:, :7], rtol=0, atol=1e-12)
    assert not torch.allclose(model(x)[:, 7], model(y)[:, 7])


def test_order_matters_and_rotations_are_relative(model):
    x = tokens()
    swapped = x.clone()
    swapped[:, [1, 2]] = x[:, [2, 1]]
    assert not torch.allclose(model(x)[:, -1], model(swapped)[:, -1])
    cosine, sine = rotation(9, 8, torch.zeros(1, dtype=torch.float64))
    q, k = (torch.randn(8, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (1, 2))
    products = [float(rotate(q, cosine[i], sine[i]) @ rotate(k, cosine[i - 3], sine[i - 3])) for i in range(3, 9)]
    assert products == pytest.approx([products[0]] * 6)


def test_losses_are_those_of_each_token(model):
    x, targets = tokens(), tokens(seed=1)
    targets[0, 5:] = IGNORED
    logits = model(x)
    losses = token_losses(logits, targets)
    assert losses.shape == targets.shape
    assert (losses[0, 5:] == 0).all()
    wanted = -logits.float().log_softmax(-1)[1, 3, targets[1, 3]]
    torch.testing.assert_close(losses[1, 3], wanted)


def test_it_starts_near_the_uniform_guess_and_ties_its_tables(model):
    assert token_losses(model(tokens()), tokens(seed=1)).mean().item() == pytest.approx(math.log(50), abs=0.15)
    assert model.head.weight is model.embed.weight
    apart = LanguageModel(50, width=32, layers=2, tied=False)
    assert apart.size == model.size
    assert sum(p.numel() for p in apart.parameters()) == model.size + 50 * 32


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="multiple of 2"):
        LanguageModel(50, width=30, heads=4)
    with pytest.raises(ValueError, match="vocabulary must be an integer >= 2"):
        LanguageModel(1)
