import math

import pytest
import torch

from omnimix.samples.operation import smoothmix
from omnimix.samples.operation.smoothmix import gaussian_spot

SHAPES = [(40,), (24, 40), (6, 8, 10)]


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def test_hand_computed_spot():
    spot = gaussian_spot(torch.tensor([[1.0, 2.5]]), torch.tensor([0.25]), (4, 8))[0, 0]  # deviations 1 and 2 cells
    assert spot[1, 2] == pytest.approx(math.exp(-0.5 * 0.25**2))
    assert spot[3, 2] == pytest.approx(math.exp(-0.5 * (2**2 + 0.25**2)))
    assert spot[0, 7] == pytest.approx(math.exp(-0.5 * (1 + 2.25**2)))


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("per_sample", [False, True])
def test_inputs_and_shares_follow_the_spot(size, per_sample):
    x, y = torch.randn(7, 3, *size, generator=draw()), torch.arange(7)
    mixed = smoothmix(x, y, per_sample=per_sample, generator=draw(1))
    mask, partner = mixed.recipe.mask, mixed.recipe.partner[:, 1]
    assert mask.shape == (7 if per_sample else 1, 1, *size)
    torch.testing.assert_close(mixed.x, mask * x + (1 - mask) * x[partner])
    torch.testing.assert_close(mixed.recipe.lam, mask.flatten(1).mean(dim=1).expand(7))
    assert torch.equal(mixed.recipe.label_share, mixed.recipe.share)


def test_the_spot_takes_the_published_share():
    lam = smoothmix(torch.zeros(4000, 1, 32, 32), torch.zeros(4000), per_sample=True, generator=draw()).recipe.lam
    assert abs(float(1 - lam.mean()) - 0.43) < 0.01
    assert float((1 - lam).min()) == pytest.approx(0.12, abs=0.03)
    assert float((1 - lam).max()) == pytest.approx(0.72, abs=0.03)


def test_widths_of_nothing_and_given_ones():
    x, y = torch.randn(3, 1, 8, 8, generator=draw()), torch.arange(3)
    assert torch.equal(smoothmix(x, y, (0.0, 0.0), generator=draw()).x, x)
    assert torch.equal(smoothmix(x, y, lam=1.0, generator=draw()).x, x)
    mixed = smoothmix(x, y, lam=torch.tensor([1.0, 0.7, 0.5]), generator=draw())
    assert mixed.recipe.lam[0] == 1
    assert mixed.recipe.mask.shape[0] == 3


def test_half_precision():
    x = torch.randn(4, 2, 8, 8, generator=draw())
    full = smoothmix(x, torch.arange(4), generator=draw(1))
    half = smoothmix(x.bfloat16(), torch.arange(4), generator=draw(1))
    assert half.x.dtype == torch.bfloat16
    torch.testing.assert_close(half.x.float(), full.x, atol=0.05, rtol=0.05)
    assert torch.equal(half.recipe.share, full.recipe.share)
