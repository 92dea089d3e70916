"""Spectral residual saliency: what is unexpected in the spectrum of an image; no network, no training.

    S = g * |ifft(exp(L - h * L + i P))|^2,   L, P: log amplitude and phase of the spectrum, h: mean of 3 x 3, g: bell

Source: Hou, Zhang, "Saliency Detection: A Spectral Residual Approach", CVPR 2007. Cost: two Fourier transforms of
images shrunk to `side` cells along their longest axis, batched on the inputs' device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.checks import at_least
from ...core.operation import Context, Saliency
from .maps import at_size, filtered

SPREAD = 2.5 / 64
"""Standard deviation of the Gaussian, in sides: 2.5 cells of the paper's 64."""


def spectral_residual(x: Tensor, side: int = 64) -> Tensor:
    """(R, 1, *spatial) float32 maps of the channel means of x (R, C, *spatial), 1 to 3 spatial axes.

    side: the longest axis of the images on which the spectrum is taken; smaller images keep their size.
    """
    size = tuple(x.shape[2:])
    shrink = min(1.0, at_least("side", side, 2) / max(size))
    grey = at_size(x.detach().float().mean(dim=1, keepdim=True), [max(1, round(s * shrink)) for s in size])
    axes = tuple(range(2, x.ndim))
    spectrum = torch.fft.fftn(grey, dim=axes)
    amplitude = spectrum.abs()
    floor = 1e-6 * amplitude.amax(dim=axes, keepdim=True) + torch.finfo(torch.float32).tiny
    residual = (amplitude + floor).log()
    residual = residual - filtered(residual, residual.new_full((3,), 1 / 3))
    phase = torch.where(amplitude > 0, spectrum / amplitude, 1.0)
    maps = torch.fft.ifftn(residual.exp() * phase, dim=axes).abs().square()
    spread = SPREAD * max(maps.shape[2:])
    reach = max(1, round(2 * spread))
    bell = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=x.device) / spread) ** 2)
    return at_size(filtered(maps, bell / bell.sum()), size)


class SpectralResidual(Saliency):
    """See `spectral_residual`."""

    def __init__(self, side: int = 64) -> None:
        self.side = at_least("side", side, 2)

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        return spectral_residual(x, self.side)
