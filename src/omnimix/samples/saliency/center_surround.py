"""Centre-surround saliency ("static fine grained"): what is brighter or darker than its surroundings, at six scales.

    s = sum_r |g - m_r|

g: the grey image, m_r: its mean over boxes that reach r cells to either side, cut at the border, without the cell
itself. Source: Montabone, Soto, "Human detection using a mobile platform and novel features derived from a visual
saliency mechanism", Image and Vision Computing 2010. Cost: sums along each axis, on the inputs' device. OpenCV's
version, which SaliencyMix uses, blurs the image, scales bright and dark parts to the same height and rounds to 8 bits.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from ...core.operation import Context, Saliency

RADII = (12, 24, 28, 48, 56, 112)


def center_surround(x: Tensor) -> Tensor:
    """(R, 1, *spatial) float32 maps of the channel means of x (R, C, *spatial), 1 to 3 spatial axes."""
    grey = x.detach().float().mean(dim=1, keepdim=True)
    grey = grey - grey.mean(dim=tuple(range(2, x.ndim)), keepdim=True)  # small sums lose less
    both = torch.cat((grey, torch.ones_like(grey[:1])))
    for axis in range(2, x.ndim):  # sums of all cells before
        both = torch.cat((torch.zeros_like(both.narrow(axis, 0, 1)), both.cumsum(dim=axis)), dim=axis)
    farthest = max(x.shape[2:]) - 1  # from there on boxes hold the whole image
    total = torch.zeros_like(grey)
    for radius, times in Counter(min(radius, farthest) for radius in RADII).items():
        sums = _box_sums(both, radius)
        around = (sums[:-1] - grey) / (sums[-1:] - 1).clamp(min=1)
        total = total + times * (grey - around).abs()
    return total


def _box_sums(before: Tensor, radius: int) -> Tensor:
    """Sums over the cells c - radius .. c + radius, as far as they exist, from the sums of all cells before."""
    for axis in range(2, before.ndim):
        side = before.shape[axis] - 1
        first, last = before.narrow(axis, 0, 1), before.narrow(axis, side, 1)
        shape = [radius if a == axis else -1 for a in range(before.ndim)]
        wide = torch.cat((first.expand(shape), before, last.expand(shape)), dim=axis)
        before = wide.narrow(axis, 2 * radius + 1, side) - wide.narrow(axis, 0, side)
    return before


class CenterSurround(Saliency):
    """See `center_surround`."""

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        return center_surround(x)
