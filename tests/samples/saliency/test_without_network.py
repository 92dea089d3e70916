"""Spectral residual and centre-surround, and what maps have in common."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from omnimix.core.operation import Context
from omnimix.samples.saliency import (
    CenterSurround,
    Given,
    SpectralResidual,
    as_saliency,
    at_size,
    center_surround,
    normalised,
    spectral_residual,
)

SHAPES = [(3, 40), (3, 24, 36), (2, 8, 10, 12)]


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def test_spectral_residual_is_the_formula_of_the_paper():
    x = torch.rand(2, 3, 24, 36, generator=draw())
    for image, found in zip(x, spectral_residual(x), strict=True):
        spectrum = np.fft.fft2(image.double().mean(dim=0).numpy())
        log = np.log(np.abs(spectrum) + 1e-6 * np.abs(spectrum).max())
        residual = log - ndimage.uniform_filter(log, 3, mode="nearest")
        saliency = np.abs(np.fft.ifft2(np.exp(residual + 1j * np.angle(spectrum)))) ** 2
        sigma = 2.5 * 36 / 64
        saliency = ndimage.gaussian_filter(saliency, sigma, mode="nearest", radius=round(2 * sigma))
        np.testing.assert_allclose(found[0], saliency, rtol=2e-3)


def test_what_breaks_the_pattern_stands_out():
    stripes = (torch.arange(64) % 8 < 4).float().expand(64, 64).clone()
    stripes[20:26, 40:46] = torch.rand(6, 6, generator=draw()) * 2
    place = int(spectral_residual(stripes.expand(1, 3, 64, 64)).argmax())
    assert abs(place // 64 - 23) < 8
    assert abs(place % 64 - 43) < 8


def test_large_images_are_shrunk_and_maps_have_their_size():
    x = torch.rand(2, 3, 100, 150, generator=draw())
    assert spectral_residual(x).shape == (2, 1, 100, 150)
    assert spectral_residual(x, side=16).shape == (2, 1, 100, 150)


def brute_center_surround(grey, radius):
    found = np.zeros_like(grey)
    for r, c in np.ndindex(grey.shape):
        box = grey[max(r - radius, 0) : r + radius + 1, max(c - radius, 0) : c + radius + 1]
        around = (box.sum() - grey[r, c]) / (box.size - 1)
        found[r, c] = abs(grey[r, c] - around)
    return found


def test_center_surround_by_brute_force():
    x = torch.rand(2, 3, 30, 20, generator=draw())
    for image, found in zip(x, center_surround(x), strict=True):
        grey = image.double().mean(dim=0).numpy()
        expected = sum(brute_center_surround(grey, radius) for radius in (12, 24, 28, 48, 56, 112))
        np.testing.assert_allclose(found[0], expected, atol=1e-4)


def test_a_spot_is_the_peak_and_a_flat_image_has_none():
    x = torch.zeros(3, 1, 20, 30)
    x[0, 0, 7, 21], x[1, 0, 15, 3] = 5.0, -2.0
    maps = center_surround(x).flatten(1)
    assert maps.argmax(dim=1)[:2].tolist() == [7 * 30 + 21, 15 * 30 + 3]
    assert (maps[2] == 0).all()


@pytest.mark.parametrize("saliency", [SpectralResidual(), CenterSurround()])
@pytest.mark.parametrize("shape", SHAPES)
def test_any_number_of_axes_scale_and_type(saliency, shape):
    x = torch.rand(4, *shape, generator=draw())
    maps = saliency(x, Context(draw()))
    assert maps.shape == (4, 1, *shape[1:])
    assert maps.isfinite().all()
    assert (maps >= 0).all()
    torch.testing.assert_close(maps[2:3], saliency(x[2:3], Context(draw())))
    brighter = normalised(saliency(3 * x + 1, Context(draw())))
    if isinstance(saliency, CenterSurround):
        torch.testing.assert_close(brighter, normalised(maps), atol=1e-4, rtol=1e-2)
    assert saliency(x.bfloat16(), Context(draw())).dtype == torch.float32
    assert saliency(torch.zeros(2, *shape), Context(draw())).isfinite().all()


def test_maps_that_are_given():
    x, maps = torch.zeros(3, 2, 8, 8), torch.rand(3, 1, 4, 4, generator=draw())
    assert torch.equal(as_saliency(maps)(x, Context(draw())), maps)
    for wrong in (maps[:2], maps[:, 0], torch.rand(3, 2, 4, 4)):
        with pytest.raises(ValueError, match=r"\(1, \*grid\)"):
            Given(wrong)(x, Context(draw()))
    with pytest.raises(ValueError, match="saliency must be"):
        as_saliency("gradient")


def test_normalised_maps_and_their_fallback():
    maps = torch.stack((torch.full((1, 2, 2), 3.0), torch.zeros(1, 2, 2), torch.full((1, 2, 2), torch.nan)))
    assert torch.equal(normalised(maps), torch.full((3, 1, 2, 2), 0.25))
    assert at_size(maps, (2, 2)) is maps
    assert at_size(maps, (4, 6)).shape == (3, 1, 4, 6)
