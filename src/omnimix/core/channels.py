"""The style of feature maps: mean and deviation of each channel over places, and maps that take on another style.

    s = sqrt(var + eps),   restyled h = (h - m) / s * s' + m'   (AdaIN)

Source: Huang, Belongie, "Arbitrary Style Transfer in Real-time with Adaptive Instance Normalization", ICCV 2017, arXiv
1703.06868. Methods differ in whether the variance is the unbiased one (correction 1) and in eps: each states its own.
"""

from __future__ import annotations

import torch
from torch import Tensor


def channel_stats(h: Tensor, *, correction: int = 1, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """(mean, deviation) over places of the maps h (B, C, *spatial), each (B, C, 1, ...).

    At least in 32 bits. ValueError for tensors without places, or with one place where the variance is unbiased.
    """
    if h.ndim < 3 or h[0, 0].numel() <= correction:
        raise ValueError(
            f"the style of maps needs (B, C, *spatial) with more than one cell, got {tuple(h.shape)}: choose earlier "
            "taps, or larger inputs"
        )
    wide = h if h.dtype == torch.float64 else h.float()
    var, mean = torch.var_mean(wide, dim=tuple(range(2, h.ndim)), correction=correction, keepdim=True)
    return mean, (var + eps).sqrt()


def styles(h: Tensor, *, correction: int = 1, eps: float = 1e-6) -> Tensor:
    """(B, 2 C) the means of the channels, then their deviations."""
    return torch.cat([value.flatten(1) for value in channel_stats(h, correction=correction, eps=eps)], dim=1)


def standardize(h: Tensor, *, correction: int = 1, eps: float = 1e-6) -> Tensor:
    """The maps with mean 0 and deviation 1 in every channel (instance normalisation); gradients flow through both."""
    mean, deviation = channel_stats(h, correction=correction, eps=eps)
    return ((h - mean) / deviation).to(h.dtype)


def restyle(h: Tensor, style: Tensor, *, correction: int = 1, eps: float = 1e-6) -> Tensor:
    """The maps h (B, C, *spatial) with the style (B, 2 C), or (2 C,) for all.

    The statistics of h are constants for gradients, its standardised content is not.
    """
    mean, deviation = channel_stats(h.detach(), correction=correction, eps=eps)
    new_mean, new_deviation = style.expand(len(h), -1).chunk(2, dim=1)
    like = mean.shape
    return ((h - mean) / deviation * new_deviation.reshape(like) + new_mean.reshape(like)).to(h.dtype)


def adain(content: Tensor, style: Tensor, *, correction: int = 1, eps: float = 1e-5) -> Tensor:
    """The maps `content` (B, C, *spatial) with the style of the maps `style`; gradients flow through all statistics."""
    mean, deviation = channel_stats(content, correction=correction, eps=eps)
    new_mean, new_deviation = channel_stats(style, correction=correction, eps=eps)
    return ((content - mean) * (new_deviation / deviation) + new_mean).to(content.dtype)


def style_centres(style: Tensor, group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """(centres (G, F), spreads (G,)) of the styles (N, F): each group's mean, and mean distance of its samples to it.

    group: (N,) in 0..groups-1, each at least once.
    """
    counts = torch.bincount(group, minlength=groups).to(style.dtype)
    centres = torch.zeros(groups, style.shape[1], dtype=style.dtype, device=style.device)
    centres = centres.index_add(0, group, style) / counts.unsqueeze(1)
    distance = (style - centres[group]).norm(dim=1)
    return centres, torch.zeros_like(counts).index_add(0, group, distance) / counts


def nearest_style(style: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """(which (B,), distance (B,)): the centre (G, F) nearest to each style (B, F); the first one of equals."""
    distance = (style.unsqueeze(1) - centres).norm(dim=2)  # row by row, so that a batch gives what its rows give alone
    which = distance.argmin(dim=1)
    return which, distance.gather(1, which.unsqueeze(1)).squeeze(1)
