"""Hand values of channel statistics, and centres of styles against a loop."""

import pytest
import torch

from omnimix.core.channels import adain, channel_stats, nearest_style, restyle, standardize, style_centres, styles

MAP = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_unbiased_and_biased_deviation():
    mean, deviation = channel_stats(MAP, eps=0.0)
    assert (mean.item(), deviation.item()) == (2.5, pytest.approx(1.290994, abs=1e-6))
    assert channel_stats(MAP, correction=0, eps=0.0)[1].item() == pytest.approx(1.25**0.5)
    assert channel_stats(MAP, eps=4.0)[1].item() == pytest.approx((5 / 3 + 4) ** 0.5)


def test_restyle_hand_value():
    found = restyle(MAP, torch.tensor([10.0, 2.0]), eps=0.0)
    assert found.flatten().tolist() == pytest.approx([7.67621, 9.22540, 10.77460, 12.32379], abs=1e-5)


@pytest.mark.parametrize("size", [(9,), (3, 5), (2, 3, 4)])
def test_restyled_maps_have_the_style(size):
    h, other = draw(4, 3, *size) + 2, 3 * draw(4, 3, *size, seed=1) - 1
    target = styles(other, eps=0.0)
    assert torch.allclose(styles(restyle(h, target, eps=0.0), eps=0.0), target)
    assert torch.allclose(styles(adain(h, other, eps=0.0), eps=0.0), target)
    assert torch.allclose(restyle(h, styles(h)), h)


def test_standardized_maps_forget_gain_and_offset():
    h = draw(2, 3, 4, 4)
    found = styles(standardize(h, eps=0.0), eps=0.0)
    assert torch.allclose(found, torch.tensor([0.0] * 3 + [1.0] * 3, dtype=torch.float64))
    gain, offset = torch.tensor([0.1, 2.0, 30.0]).view(3, 1, 1), torch.tensor([5.0, -1.0, 0.0]).view(3, 1, 1)
    assert torch.allclose(standardize(gain * h + offset, eps=0.0), standardize(h, eps=0.0))


def test_gradients_pass_content_only():
    h = draw(1, 1, 2, 2).requires_grad_()
    target = torch.tensor([1.0, 3.0], dtype=torch.float64)
    (grad,) = torch.autograd.grad(restyle(h, target).sum(), h)
    assert torch.allclose(grad, 3.0 / channel_stats(h)[1].expand_as(h))


def test_half_precision_is_measured_in_single():
    h = (100 + torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))).half()
    assert channel_stats(h)[1].dtype == torch.float32
    assert restyle(h, styles(h)).dtype == torch.float16


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1, 1)])
def test_maps_without_places_are_refused(shape):
    with pytest.raises(ValueError, match="more than one cell"):
        channel_stats(torch.zeros(shape))


def test_centres_and_nearest_against_a_loop():
    style, group = draw(7, 4), torch.tensor([0, 1, 2, 1, 0, 2, 2])
    centres, spreads = style_centres(style, group, 3)
    for g in range(3):
        own = style[group == g]
        assert torch.allclose(centres[g], own.mean(0))
        assert torch.allclose(spreads[g], (own - own.mean(0)).norm(dim=1).mean())
    which, distance = nearest_style(style, centres)
    for i in range(7):
        each = (style[i] - centres).norm(dim=1)
        assert which[i] == each.argmin()
        assert torch.allclose(distance[i], each.min())
